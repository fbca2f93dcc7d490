"""One network as a symbolic graph, for the two libraries that compile one: Theano and PyTensor, its successor.

Standard library and NumPy alone: the module named after the library says which one it is, and sets it up first.

Forms chosen by time, float32, one thread, least of several calls, milliseconds forward / training step:

    H, N, T            64,1,1000    64,32,100   256,32,100   16,512,512   1024,1,256
    I, O                  64           64          256           1           1024
    Theano
      its gradient     2.2 / 6.0    1.5 / 5.2    17 / 59      14 / 53      236 / 371
      own BPTT         2.1 / 5.0    1.6 / 5.1    17 / 58      15 / 49      237 / 380
      and a vector     2.0 / 4.8                                            28 / 78
      as it is now     2.1 / 4.9    1.4 / 4.2    17 / 51      12 / 36       27 / 75
    PyTensor
      its gradient     1.4 / 4.0    1.3 / 4.9    16 / 55      10 / 50      233 / 368
      own BPTT         1.5 / 3.5    1.3 / 4.2    16 / 51       8 / 31      233 / 368
      and a vector     1.4 / 3.3                                            27 / 75
      as it is now     1.4 / 3.2    1.2 / 3.8    16 / 50       9 / 30       27 / 73

So BPTT is a scan of our own over the states that forward left (the library's gradient of a scan computes them again),
and a batch of one lane is a vector, for which BLAS reads the weights once instead of packing them at every step.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .cells import Array
from .network import BETAS, CLIP_NORM, EPS, Objective

Symbol = Any  # a node of the graph
Compiled = Callable[..., list[Any]]

# tanh and exp of whole vectors from libmvec, sums in any order; NaN and infinity stay what they are. -ffast-math would
# also set flush-to-zero for the whole process.
COMPILER_FLAGS = (
    "-O3 -march=native -fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math -freciprocal-math "
    "-D__FAST_MATH__"
)
BLAS_FUNCTIONS = tuple(kind + name for kind in "sd" for name in ("gemm", "gemv", "dot", "ger"))
BLAS_OPS = {"Gemm", "CGemv", "CGer", "Dot22", "Dot22Scalar", "BatchedDot"}
SLOW_OPS = {"Dot", "Gemv", "Ger"}  # through NumPy, or through SciPy with a copy


class NotFast(Exception):
    """The library runs, but not as fast as it can: it fell back on something slow. The message says what."""


class Library(NamedTuple):
    """Where the two libraries differ."""

    name: str
    version: str
    tensor: Any
    function: Callable[..., Any]
    shared: Callable[..., Any]
    scan: Callable[..., Symbol]  # with the results alone
    sigmoid: Callable[[Symbol], Symbol]
    scan_module: str  # loaded once a compiled scan is in use
    config: Any

    def compile(self, inputs: Sequence[Symbol], outputs: Any, updates: Any = ()) -> Compiled:
        """The function; it trusts its arguments to be arrays of the right dtype. Raises NotFast."""
        function = self.function(inputs, outputs, updates=updates, on_unused_input="ignore")
        self.check(function)
        function.trust_input = True
        compiled: Compiled = function
        return compiled

    def check(self, function: Any) -> None:
        """Raise NotFast unless BLAS, compiled scan and the compiled loop over the graph are what `function` uses."""
        if not self.config.blas__ldflags:
            raise NotFast(f"{self.name}: expected flags that link BLAS, got blas__ldflags=''")
        ops = {type(node.op).__name__ for node in nodes(function)}
        if ops & SLOW_OPS or not ops & BLAS_OPS:
            raise NotFast(f"{self.name}: expected matrix products in BLAS alone, got the ops {', '.join(sorted(ops))}")
        loop = type(getattr(function, "vm", None) or function.fn).__name__
        if self.config.linker != "cvm" or loop != "CVM":
            raise NotFast(f"{self.name}: expected linker=cvm and its CVM, got {self.config.linker} and {loop}")
        if sys.modules.get(self.scan_module) is None:
            raise NotFast(f"{self.name}: expected the compiled scan, got the one in Python: no {self.scan_module}")


def nodes(function: Any) -> Iterator[Any]:
    """All operations of a compiled function, those inside its scans too."""
    for node in function.maker.fgraph.toposort():
        yield node
        if type(node.op).__name__ == "Scan":
            yield from nodes(node.op.fn)


def openblas() -> Path:
    """The OpenBLAS inside SciPy's wheel: the same wherever that wheel is. Its functions begin with scipy_."""
    spec = importlib.util.find_spec("scipy")
    if spec is None or spec.origin is None:
        raise NotFast("expected SciPy, whose wheel holds OpenBLAS, got none")
    found = sorted(Path(spec.origin).parent.with_name("scipy.libs").glob("libscipy_openblas*.so"))
    if len(found) != 1:
        raise NotFast(f"expected one libscipy_openblas in SciPy's wheel, got {len(found)}")
    return found[0]


@functools.cache
def loaded_openblas() -> ctypes.CDLL:
    return ctypes.CDLL(str(openblas()))


def flags(compiled: Path, *more: str) -> str:
    """THEANO_FLAGS or PYTENSOR_FLAGS. What is compiled is kept in `compiled`, in a folder for these flags alone: not
    all that the libraries keep there is made anew when they change.
    """
    # By name and LIBRARY_PATH, not by folder: the libraries split their flags at blanks, and folders may have some.
    # Once loaded, a library is found by its name.
    loaded_openblas()
    folder = str(openblas().parent)
    paths = os.environ.get("LIBRARY_PATH", "").split(os.pathsep)
    if folder not in paths:
        os.environ["LIBRARY_PATH"] = os.pathsep.join([folder, *filter(None, paths)])
    renamed = " ".join(f"-D{name}_=scipy_{name}_" for name in BLAS_FUNCTIONS)
    chosen = [
        f"blas__ldflags=-l:{openblas().name}",
        f"gcc__cxxflags={COMPILER_FLAGS} {renamed}",
        "linker=cvm",
        "allow_gc=False",  # keep the memory of intermediate results: up to a quarter less time
        *more,
    ]
    key = hashlib.sha256(repr((chosen, np.__version__)).encode()).hexdigest()[:8]
    return ",".join([*chosen, f"base_compiledir={compiled / key}"])


def set_threads(n: int) -> None:
    """So many threads of OpenBLAS, which alone uses several. Raises ValueError where it was built for fewer."""
    library = loaded_openblas()
    before = library.scipy_openblas_get_num_threads()
    library.scipy_openblas_set_num_threads(ctypes.c_int(n))
    got = library.scipy_openblas_get_num_threads()
    if got != n:
        library.scipy_openblas_set_num_threads(ctypes.c_int(before))
        raise ValueError(f"n: expected a number of threads that OpenBLAS can have, got {n} (it took {got})")


def blas_version() -> str:
    config = loaded_openblas().scipy_openblas_get_config
    config.restype = ctypes.c_char_p
    text: bytes = config()  # "OpenBLAS 0.3.30 DYNAMIC_ARCH ..."
    return text.decode().split()[1]


class Graph:
    """The equations of `recurrence.py` as symbols.

    A sequence is all its T*N rows; inside a scan a state is (N, H), or with one lane (H,), which is a graph of its own.
    """

    def __init__(self, library: Library, cell: str, weights: Mapping[str, Symbol], one_lane: bool) -> None:
        self.library, self.weights, self.one_lane = library, weights, one_lane
        tensor = library.tensor
        cells: dict[str, tuple[Callable[[Symbol], Symbol], Callable[[Symbol], Symbol]]] = {
            "rnn_tanh": (tensor.tanh, lambda h: 1 - h * h),
            "rnn_sigmoid": (library.sigmoid, lambda h: h * (1 - h)),
            "rnn_relu": (lambda a: tensor.maximum(a, 0), lambda h: tensor.cast(h > 0, h.dtype)),
        }
        self.act, self.slope = cells[cell]

    def states(self, x: Symbol, h0: Symbol) -> Symbol:
        """x (T*N, I), h0 (N, H) -> the states after each step, (T*N, H)."""
        dot = self.library.tensor.dot
        bias = self.weights["bias_ih_l0"] + self.weights["bias_hh_l0"] if "bias_ih_l0" in self.weights else None
        # not inside the scan: there it would be added in a loop that is not vectorised (37 for 10 us a step)
        from_input = self.affine(x, self.weights["weight_ih_l0"], bias)
        W_hh = self.weights["weight_hh_l0"]
        if self.one_lane:
            return self.library.scan(
                lambda a, h, W_hh: self.act(a + dot(W_hh, h)),
                sequences=[from_input],
                outputs_info=[h0[0]],
                non_sequences=[W_hh],
            )
        # made contiguous once, BLAS packs it in less time at each step: 1.15 for 1.35 ms at H 64, N 32, T 100
        transposed = self.library.tensor.extra_ops.cpu_contiguous(W_hh.T)
        states = self.library.scan(
            lambda a, h, transposed: self.act(a + dot(h, transposed)),
            sequences=[steps(from_input, h0.shape[0])],
            outputs_info=[h0],
            non_sequences=[transposed],
        )
        return rows(states)

    def output(self, states: Symbol) -> Symbol:
        """(T*N, H) -> (T*N, O), or the states without a readout."""
        if "weight_ho" not in self.weights:
            return states
        return self.affine(states, self.weights["weight_ho"], self.weights.get("bias_o"))

    def bptt(
        self, x: Symbol, h0: Symbol, states: Symbol, d_output: Symbol, d_last: Symbol | None = None
    ) -> tuple[dict[str, Symbol], Symbol, Symbol]:
        """x (T*N, I), h0 (N, H), states (T*N, H) as `states` gave them, the gradients of the output (T*N, O) and of the
        last state (N, H) -> those of the weights by name, of x (T*N, I) and of h0 (N, H).
        """
        dot, weights, N = self.library.tensor.dot, self.weights, h0.shape[0]
        d_states = dot(d_output, weights["weight_ho"]) if "weight_ho" in weights else d_output
        if d_last is not None:
            d_states = self.library.tensor.inc_subtensor(d_states[-N:], d_last)

        W_hh, slopes, nothing = weights["weight_hh_l0"], self.slope(states), h0.zeros_like()
        if self.one_lane:
            deltas = self.library.scan(
                lambda d_state, slope, after, W_hh: slope * (d_state + dot(W_hh.T, after)),
                sequences=[d_states, slopes],
                outputs_info=[nothing[0]],
                non_sequences=[W_hh],
                go_backwards=True,
            )[::-1]
        else:
            deltas = rows(
                self.library.scan(
                    lambda d_state, slope, after, W_hh: slope * (d_state + dot(after, W_hh)),
                    sequences=[steps(d_states, N), steps(slopes, N)],
                    outputs_info=[nothing],
                    non_sequences=[W_hh],
                    go_backwards=True,
                )[::-1]
            )
        gradients = {
            "weight_ih_l0": dot(deltas.T, x),
            "weight_hh_l0": dot(deltas[N:].T, states[:-N]) + dot(deltas[:N].T, h0),
            "bias_ih_l0": self.sum_of_rows(deltas),
            "bias_hh_l0": self.sum_of_rows(deltas),
            "weight_ho": dot(d_output.T, states),
            "bias_o": self.sum_of_rows(d_output),
        }
        return {name: gradients[name] for name in weights}, dot(deltas, weights["weight_ih_l0"]), dot(deltas[:N], W_hh)

    def sum_of_rows(self, sequence: Symbol) -> Symbol:
        """(T*N, F) -> (F,), as a product, which BLAS has vectorised: 1.3 for 5.1 ms at F 16, T*N 262144."""
        return self.library.tensor.dot(self.library.tensor.ones_like(sequence[:, 0]), sequence)

    def affine(self, a: Symbol, weight: Symbol, bias: Symbol | None) -> Symbol:
        product = self.library.tensor.dot(a, weight.T)
        return product if bias is None else product + bias


def rows(sequence: Symbol) -> Symbol:
    """(T, N, F) -> (T*N, F)"""
    return sequence.reshape((sequence.shape[0] * sequence.shape[1], sequence.shape[2]))


def steps(all_rows: Symbol, N: Symbol) -> Symbol:
    """(T*N, F) -> (T, N, F)"""
    return all_rows.reshape((all_rows.shape[0] // N, N, all_rows.shape[1]))


def compile_forward(library: Library, cell: str, names: Sequence[str], dtype: str, one_lane: bool) -> Compiled:
    """A function of x (T, N, I), h0 (N, H) and the weights of these names, in order: [states (T, N, H), output]."""
    weights = {name: symbol(library, name, dtype) for name in names}
    x, h0 = library.tensor.tensor3("x", dtype=dtype), library.tensor.matrix("h0", dtype=dtype)
    graph = Graph(library, cell, weights, one_lane)
    states = graph.states(rows(x), h0)
    N = h0.shape[0]
    return library.compile([x, h0, *weights.values()], [steps(states, N), steps(graph.output(states), N)])


def compile_bptt(library: Library, cell: str, names: Sequence[str], dtype: str, one_lane: bool) -> Compiled:
    """A function of x (T, N, I), the states (T+1, N, H), the gradients of the output (T, N, O) and of the last state
    (N, H), and the weights of these names, in order: the gradients [those of the weights, of x, of h0].
    """
    weights = {name: symbol(library, name, dtype) for name in names}
    tensor = library.tensor
    x, states, d_output = (tensor.tensor3(name, dtype=dtype) for name in ("x", "states", "d_output"))
    d_last = tensor.matrix("d_last", dtype=dtype)
    graph = Graph(library, cell, weights, one_lane)
    gradients, d_x, d_h0 = graph.bptt(rows(x), states[0], rows(states[1:]), rows(d_output), d_last)
    inputs = [x, states, d_output, d_last, *weights.values()]
    return library.compile(inputs, [*gradients.values(), steps(d_x, x.shape[1]), d_h0])


def symbol(library: Library, name: str, dtype: str) -> Symbol:
    """For a weight: the biases are vectors."""
    kind = library.tensor.vector if name.startswith("bias") else library.tensor.matrix
    return kind(name, dtype=dtype)


class Batch(NamedTuple):
    x: Array
    target: Array


class Network:
    """`network.Network`, less the library. A function is compiled at its first call, once for one lane and once for
    several, for any T and N; with `load`, which bench/worker.py looks for, for weights of any sizes too.
    """

    library: Library

    def __init__(self, cell: str, weights: Mapping[str, Array], objective: Objective) -> None:
        self._cell, self._objective = cell, objective
        self._dtype = weights["weight_hh_l0"].dtype
        self._shared = {name: self.library.shared(value.copy(), name=name) for name, value in weights.items()}
        self._updates = 0
        self._moments = {
            name: [self.library.shared(np.zeros_like(value)) for _ in range(2)] for name, value in weights.items()
        }
        self._compiled: dict[tuple[str, bool], Compiled] = {}

    def load(self, weights: Mapping[str, Array]) -> None:
        """Start anew from these weights, of any sizes. Raises ValueError for other names or another dtype than those
        that the network was made with, which its functions are compiled for.
        """
        expected = dict.fromkeys(self._shared, self._dtype.name)
        got = {name: value.dtype.name for name, value in weights.items()}
        if got != expected:
            raise ValueError(f"weights: expected {expected}, got {got}")
        for name, value in weights.items():
            self._shared[name].set_value(value.copy(), borrow=True)
            for moment in self._moments[name]:
                moment.set_value(np.zeros_like(value), borrow=True)
        self._updates = 0

    def batch(self, x: Array, target: Array) -> Batch:
        return Batch(np.ascontiguousarray(x), np.ascontiguousarray(target))

    def forward(self, batch: Batch) -> Array:
        output: Array = self._function("forward", batch)(batch.x)[0]
        return output

    def train(self, batch: Batch, rate: float) -> float:
        scales = [rate]
        if self._objective.update == "adam":
            self._updates += 1
            first, second = (1 - beta**self._updates for beta in BETAS)
            scales = [rate * math.sqrt(second) / first, EPS * math.sqrt(second)]
        numbers = [np.asarray(scale, self._dtype) for scale in scales]
        loss, _ = self._function("train", batch)(batch.x, batch.target, *numbers)
        return float(loss)

    def gradients(self, batch: Batch) -> dict[str, Array]:
        found = self._function("gradients", batch)(batch.x, batch.target)
        return dict(zip([*self._shared, "x"], found, strict=True))

    def weights(self) -> dict[str, Array]:
        return {name: shared.get_value() for name, shared in self._shared.items()}

    def _function(self, what: str, batch: Batch) -> Compiled:
        key = (what, batch.x.shape[1] == 1)
        if key not in self._compiled:
            self._compiled[key] = getattr(self, f"_compile_{what}")(key[1])
        return self._compiled[key]

    def _begin(self, one_lane: bool) -> tuple[Graph, Symbol, Symbol, Symbol]:
        """The graph, x (T, N, I), h0 and the states."""
        graph = Graph(self.library, self._cell, self._shared, one_lane)
        tensor = self.library.tensor
        x = tensor.tensor3("x", dtype=self._dtype.name)
        h0 = tensor.zeros((x.shape[1], self._shared["weight_hh_l0"].shape[0]), dtype=self._dtype.name)
        return graph, x, h0, graph.states(rows(x), h0)

    def _compile_forward(self, one_lane: bool) -> Compiled:
        graph, x, h0, states = self._begin(one_lane)
        return self.library.compile([x], [steps(graph.output(states), h0.shape[0])])

    def _backward(self, one_lane: bool) -> tuple[list[Symbol], Symbol, dict[str, Symbol], Symbol]:
        """The inputs x and target, the loss, the gradients of the weights and of x."""
        graph, x, h0, states = self._begin(one_lane)
        tensor = self.library.tensor
        target = tensor.tensor3("target", dtype=self._dtype.name)
        number = self._dtype.type
        first = self._objective.skip * h0.shape[0]
        error = graph.output(states)[first:] - rows(target)[first:]
        loss = tensor.sqr(error).mean(dtype=self._dtype.name) * number(self._objective.scale)
        d_output = error * (number(2 * self._objective.scale) / tensor.cast(error.size, self._dtype.name))
        if self._objective.skip:
            nothing = tensor.zeros((first, error.shape[1]), dtype=self._dtype.name)
            d_output = tensor.concatenate([nothing, d_output])
        gradients, d_x, _ = graph.bptt(rows(x), h0, states, d_output)
        return [x, target], loss, gradients, steps(d_x, h0.shape[0])

    def _compile_gradients(self, one_lane: bool) -> Compiled:
        inputs, _, gradients, d_x = self._backward(one_lane)
        return self.library.compile(inputs, [*gradients.values(), d_x])

    def _compile_train(self, one_lane: bool) -> Compiled:
        """Gives the loss and the gradient of x, which would be left out if nobody saw it."""
        inputs, loss, gradients, d_x = self._backward(one_lane)
        tensor, number = self.library.tensor, self._dtype.type
        rate, eps = (tensor.scalar(name, dtype=self._dtype.name) for name in ("rate", "eps"))
        if self._objective.update == "sgd":
            updates = [(self._shared[name], self._shared[name] - rate * g) for name, g in gradients.items()]
            return self.library.compile([*inputs, rate], [loss, d_x], updates)

        norm = tensor.sqrt(sum(tensor.sqr(g).sum() for g in gradients.values()))
        clip = tensor.minimum(number(1), number(CLIP_NORM) / (norm + number(1e-6)))
        updates = []
        for name, gradient in gradients.items():
            g = gradient * clip
            means = [
                mean * number(beta) + power * number(1 - beta)
                for mean, power, beta in zip(self._moments[name], (g, g * g), BETAS, strict=True)
            ]
            weight = self._shared[name]
            updates += zip(self._moments[name], means, strict=True)
            updates.append((weight, weight - rate * means[0] / (tensor.sqrt(means[1]) + eps)))
        return self.library.compile([*inputs, rate, eps], [loss, d_x], updates)
