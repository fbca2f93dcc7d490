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

LSTM and GRU are the same. What the libraries fuse into one loop is not vectorised (tanh(a + b): 12 ns a number, and 0.7
for a tanh alone), so their scans are compiled with a loop for each operation. Forward, an LSTM of I = H = 64, N = 48,
T = 200: PyTensor 10 ms, and 34 fused; Theano 11, and 23.

    I = H, N, T    1 and 8,1,2048   1 and 32,1,1000   64,48,200   256,48,100   512,16,25   1024,1,50
    Theano LSTM       8.1 / 19         4.5 / 10.8      11 / 44     67 / 207     31 / 80     41 / 87
           GRU        7.6 / 19         4.2 / 10.3       9 / 35     50 / 166     23 / 62     20 / 55
    PyTensor LSTM     8.3 / 15         4.6 /  8.7      11 / 44     69 / 208     31 / 84     29 / 78
             GRU      7.3 / 15         4.0 /  8.7       8 / 35     48 / 161     25 / 58     18 / 48
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
from typing import Any, NamedTuple, Protocol

import numpy as np

from .cells import Array
from .network import BETAS, CLIP_NORM, EPS, Objective

Symbol = Any  # a node of the graph
Compiled = Callable[..., list[Any]]

# tanh and exp of whole vectors from libmvec, sums in any order; NaN and infinity stay what they are. -ffast-math would
# also set flush-to-zero for the whole process. RNN_MARCH: where a benchmark is held to another CPU's instructions.
COMPILER_FLAGS = (
    f"-O3 -march={os.environ.get('RNN_MARCH', 'native')} -fno-math-errno -fno-trapping-math -fno-signed-zeros "
    "-fassociative-math -freciprocal-math -D__FAST_MATH__"
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
    scan_apart: Callable[..., Symbol]  # the same, with a loop of its own for each operation: only those are vectorised
    sigmoid: Callable[[Symbol], Symbol]
    scan_module: str  # loaded once a compiled scan is in use
    config: Any
    fresh: bool  # whether nothing was compiled on the disk yet

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


def is_fresh(flags: str) -> bool:
    """Whether the folder for what is compiled, the last one that the flags name, is empty or not there."""
    return not any(Path(flags.rpartition("base_compiledir=")[2]).glob("*"))


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


class Tape(NamedTuple):
    """What a forward pass leaves, one (T*N, F) each: the states, the first is h, and what else the cell keeps."""

    states: list[Symbol]
    kept: list[Symbol]


class Deltas(NamedTuple):
    """Gradients of W_ih x + b_ih and W_hh h + b_hh, (T*N, G*H), and of the initial states, (N, H) each."""

    from_input: Symbol
    from_hidden: Symbol
    initial: list[Symbol]


class Graph:
    """The equations of `recurrence.py` as symbols.

    A sequence is all its T*N rows; inside a scan a state is (N, H), or with one lane (H,), which is a graph of its own.
    """

    def __init__(self, library: Library, cell: str, weights: Mapping[str, Symbol], one_lane: bool) -> None:
        self.library, self.weights, self.one_lane = library, weights, one_lane
        self.cell = CELLS[cell](self)

    def tape(self, x: Symbol, initial: Sequence[Symbol]) -> Tape:
        """x (T*N, I), initial states (N, H) each."""
        return self.cell.forward(x, initial)

    def output(self, states: Symbol) -> Symbol:
        """(T*N, H) -> (T*N, O), or the states without a readout."""
        if "weight_ho" not in self.weights:
            return states
        return self.affine(states, self.weights["weight_ho"], self.weights.get("bias_o"))

    def bptt(
        self,
        x: Symbol,
        initial: Sequence[Symbol],
        tape: Tape,
        d_output: Symbol,
        d_last: Sequence[Symbol] | None = None,
    ) -> tuple[dict[str, Symbol], Symbol, list[Symbol]]:
        """From the gradients of the output (T*N, O) and of the last states (N, H) each: those of the weights by name,
        of x (T*N, I) and of the initial states.
        """
        dot, weights, N, states = self.library.tensor.dot, self.weights, initial[0].shape[0], tape.states[0]
        d_states = dot(d_output, weights["weight_ho"]) if "weight_ho" in weights else d_output
        deltas = self.cell.back(initial, tape, d_states, d_last)
        d = deltas.from_hidden
        gradients = {
            "weight_ih_l0": lambda: dot(deltas.from_input.T, x),
            "weight_hh_l0": lambda: dot(d[N:].T, states[:-N]) + dot(d[:N].T, initial[0]),
            "bias_ih_l0": lambda: self.sum_of_rows(deltas.from_input),
            "bias_hh_l0": lambda: self.sum_of_rows(d),
            "weight_ho": lambda: dot(d_output.T, states),
            "bias_o": lambda: self.sum_of_rows(d_output),
        }
        d_x = dot(deltas.from_input, weights["weight_ih_l0"])
        return {name: gradients[name]() for name in weights}, d_x, deltas.initial

    # what the cells are made of

    def bias(self) -> Symbol | None:
        """Both together, where there are any."""
        return self.weights["bias_ih_l0"] + self.weights["bias_hh_l0"] if "bias_ih_l0" in self.weights else None

    def factor(self) -> Symbol:
        """W_hh as `times` wants it."""
        W_hh = self.weights["weight_hh_l0"]
        # made contiguous once, BLAS packs it in less time at each step: 1.15 for 1.35 ms at H 64, N 32, T 100
        return W_hh if self.one_lane else self.library.tensor.extra_ops.cpu_contiguous(W_hh.T)

    def times(self, h: Symbol, W: Symbol) -> Symbol:
        """W_hh h inside a scan."""
        return self.library.tensor.dot(W, h) if self.one_lane else self.library.tensor.dot(h, W)

    def times_back(self, d: Symbol, W_hh: Symbol) -> Symbol:
        """W_hh^T d inside a scan."""
        return self.library.tensor.dot(W_hh.T, d) if self.one_lane else self.library.tensor.dot(d, W_hh)

    def enter(self, sequence: Symbol, N: Symbol) -> Symbol:
        """(T*N, F) as a scan takes it."""
        return sequence if self.one_lane else steps(sequence, N)

    def leave(self, sequence: Symbol) -> Symbol:
        """What a scan made, as (T*N, F)."""
        return sequence if self.one_lane else rows(sequence)

    def state(self, a: Symbol) -> Symbol:
        """(N, F) as a scan takes it."""
        return a[0] if self.one_lane else a

    def whole(self, a: Symbol) -> Symbol:
        """What a scan made of a state, as (N, F)."""
        return a.dimshuffle("x", 0) if self.one_lane else a

    def all_lanes(self, row: Symbol, N: Symbol) -> Symbol:
        """(F,) once for each lane: an operation over arrays of one shape is one loop over all of their numbers."""
        return row if self.one_lane else self.library.tensor.tile(row.dimshuffle("x", 0), (N, 1))

    def part(self, a: Symbol, first: int, last: int, gates: int) -> Symbol:
        """Of so many gates side by side, those from `first` to before `last`."""
        H = a.shape[a.ndim - 1] // gates
        return a[first * H : last * H] if a.ndim == 1 else a[:, first * H : last * H]

    def join(self, *parts: Symbol) -> Symbol:
        """Gates side by side."""
        return self.library.tensor.concatenate(parts, axis=parts[0].ndim - 1)

    def before(self, first: Symbol, sequence: Symbol) -> Symbol:
        """The state before each step, from the one after."""
        return self.library.tensor.concatenate([first, sequence[: -first.shape[0]]])

    def sum_of_rows(self, sequence: Symbol) -> Symbol:
        """(T*N, F) -> (F,), as a product, which BLAS has vectorised: 1.3 for 5.1 ms at F 16, T*N 262144."""
        return self.library.tensor.dot(self.library.tensor.ones_like(sequence[:, 0]), sequence)

    def affine(self, a: Symbol, weight: Symbol, bias: Symbol | None) -> Symbol:
        product = self.library.tensor.dot(a, weight.T)
        return product if bias is None else product + bias


class Cell(Protocol):
    """One of the cells of `cells.py` in a graph."""

    def forward(self, x: Symbol, initial: Sequence[Symbol]) -> Tape:
        """x (T*N, I), initial states (N, H) each."""

    def back(self, initial: Sequence[Symbol], tape: Tape, d_states: Symbol, d_last: Sequence[Symbol] | None) -> Deltas:
        """d_states (T*N, H): what reaches each h from its own output; d_last (N, H) each, None for zeros."""


class Elman:
    """An activation, and its derivative in terms of its result."""

    states, kept = 1, 0

    def __init__(self, graph: Graph, act: str) -> None:
        tensor = graph.library.tensor
        both: dict[str, tuple[Callable[[Symbol], Symbol], Callable[[Symbol], Symbol]]] = {
            "tanh": (tensor.tanh, lambda h: 1 - h * h),
            "sigmoid": (graph.library.sigmoid, lambda h: h * (1 - h)),
            "relu": (lambda a: tensor.maximum(a, 0), lambda h: tensor.cast(h > 0, h.dtype)),
        }
        self.graph, (self.act, self.slope) = graph, both[act]

    def forward(self, x: Symbol, initial: Sequence[Symbol]) -> Tape:
        graph, (h0,) = self.graph, initial
        # not inside the scan: there it would be added in a loop that is not vectorised (37 for 10 us a step)
        from_input = graph.affine(x, graph.weights["weight_ih_l0"], graph.bias())
        states = graph.library.scan(
            lambda a, h, W: self.act(a + graph.times(h, W)),
            sequences=[graph.enter(from_input, h0.shape[0])],
            outputs_info=[graph.state(h0)],
            non_sequences=[graph.factor()],
        )
        return Tape([graph.leave(states)], [])

    def back(self, initial: Sequence[Symbol], tape: Tape, d_states: Symbol, d_last: Sequence[Symbol] | None) -> Deltas:
        graph, (h0,) = self.graph, initial
        N, W_hh = h0.shape[0], graph.weights["weight_hh_l0"]
        if d_last is not None:
            d_states = graph.library.tensor.inc_subtensor(d_states[-N:], d_last[0])
        deltas = graph.library.scan(
            lambda d_state, slope, after, W_hh: slope * (d_state + graph.times_back(after, W_hh)),
            sequences=[graph.enter(d_states, N), graph.enter(self.slope(tape.states[0]), N)],
            outputs_info=[graph.state(h0.zeros_like())],
            non_sequences=[W_hh],
            go_backwards=True,
        )[::-1]
        deltas = graph.leave(deltas)
        return Deltas(deltas, deltas, [graph.library.tensor.dot(deltas[:N], W_hh)])


class LSTM:
    """As `cells.LSTM`; kept are the gates i, f, g, o side by side, and tanh(c)."""

    states, kept = 2, 2

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def forward(self, x: Symbol, initial: Sequence[Symbol]) -> Tape:
        graph, tensor, N = self.graph, self.graph.library.tensor, initial[0].shape[0]
        H, dtype = graph.weights["weight_hh_l0"].shape[1], x.dtype
        from_input = graph.affine(x, graph.weights["weight_ih_l0"], graph.bias())
        half, one = (number * tensor.ones((H,), dtype=dtype) for number in np.array([0.5, 1], dtype))
        factor, offset = (
            graph.all_lanes(graph.join(half, half, of_g, half), N) for of_g in (one, one.zeros_like())
        )  # sigmoid(a) = tanh(a / 2) / 2 + 1 / 2: one tanh over all gates

        def step(a: Symbol, h: Symbol, c: Symbol, W: Symbol, factor: Symbol, offset: Symbol) -> list[Symbol]:
            gates = tensor.tanh((a + graph.times(h, W)) * factor) * factor + offset
            i, f, g, o = (graph.part(gates, gate, gate + 1, 4) for gate in range(4))
            c = f * c + i * g
            tanh_c = tensor.tanh(c)
            return [o * tanh_c, c, gates, tanh_c]

        h, c, gates, tanh_c = graph.library.scan_apart(
            step,
            sequences=[graph.enter(from_input, N)],
            outputs_info=[*map(graph.state, initial), None, None],
            non_sequences=[graph.factor(), factor, offset],
        )
        return Tape([graph.leave(h), graph.leave(c)], [graph.leave(gates), graph.leave(tanh_c)])

    def back(self, initial: Sequence[Symbol], tape: Tape, d_states: Symbol, d_last: Sequence[Symbol] | None) -> Deltas:
        graph, N, (gates, tanh_c) = self.graph, initial[0].shape[0], tape.kept
        i, f, g, o = (graph.part(gates, gate, gate + 1, 4) for gate in range(4))
        c_before = graph.before(initial[1], tape.states[1])
        to_c = o * (1 - tanh_c * tanh_c)
        to_gates = graph.join(g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o))

        def step(
            d_h: Symbol, to_c: Symbol, to_gates: Symbol, f: Symbol, back: Symbol, d_c: Symbol, W_hh: Symbol
        ) -> list[Symbol]:
            d_h += back
            d_c += d_h * to_c
            delta = graph.join(d_c, d_c, d_c, d_h) * to_gates
            return [graph.times_back(delta, W_hh), d_c * f, delta]

        back, d_c, deltas = graph.library.scan_apart(
            step,
            sequences=[graph.enter(sequence, N) for sequence in (d_states, to_c, to_gates, f)],
            outputs_info=[*map(graph.state, d_last or [h.zeros_like() for h in initial]), None],
            non_sequences=[graph.weights["weight_hh_l0"]],
            go_backwards=True,
        )
        deltas = graph.leave(deltas[::-1])
        return Deltas(deltas, deltas, [graph.whole(back[-1]), graph.whole(d_c[-1])])


class GRU:
    """As `cells.GRU`; kept are r and z side by side, n, and W_hn h + b_hn."""

    states, kept = 1, 3

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def forward(self, x: Symbol, initial: Sequence[Symbol]) -> Tape:
        graph, tensor, weights, N = self.graph, self.graph.library.tensor, self.graph.weights, initial[0].shape[0]
        H = weights["weight_hh_l0"].shape[1]
        bias, bias_u = None, tensor.zeros((H,), dtype=x.dtype)
        if "bias_ih_l0" in weights:
            of_rz, bias_u = graph.part(weights["bias_hh_l0"], 0, 2, 3), graph.part(weights["bias_hh_l0"], 2, 3, 3)
            bias = weights["bias_ih_l0"] + graph.join(of_rz, bias_u.zeros_like())

        def step(a: Symbol, h: Symbol, W: Symbol, bias_u: Symbol) -> list[Symbol]:
            product = graph.times(h, W)
            # Only what is in one piece is vectorised: so a third of the sigmoids for nothing, and u, which is, before
            # r, since the product is written like the first of its operands (64, 64, 48, 200, forward: 8 ms, and 18).
            sigmoids = graph.library.sigmoid(a + product)
            r, z, u = (
                graph.part(sigmoids, 0, 1, 3),
                graph.part(sigmoids, 1, 2, 3),
                graph.part(product, 2, 3, 3) + bias_u,
            )
            n = tensor.tanh(u * r + graph.part(a, 2, 3, 3))
            return [n + z * (h - n), graph.part(sigmoids, 0, 2, 3), n, u]

        found = graph.library.scan_apart(
            step,
            sequences=[graph.enter(graph.affine(x, weights["weight_ih_l0"], bias), N)],
            outputs_info=[graph.state(initial[0]), None, None, None],
            non_sequences=[graph.factor(), graph.all_lanes(bias_u, N)],
        )
        h, *kept = map(graph.leave, found)
        return Tape([h], kept)

    def back(self, initial: Sequence[Symbol], tape: Tape, d_states: Symbol, d_last: Sequence[Symbol] | None) -> Deltas:
        graph, N, (rz, n, u) = self.graph, initial[0].shape[0], tape.kept
        r, z = graph.part(rz, 0, 1, 2), graph.part(rz, 1, 2, 2)
        to_n = (1 - n * n) * (1 - z)
        to_u = to_n * r
        to_z = (graph.before(initial[0], tape.states[0]) - n) * z * (1 - z)
        to_hidden = graph.join(to_u * u * (1 - r), to_z, to_u)

        def step(d_h: Symbol, to_hidden: Symbol, z: Symbol, back: Symbol, W_hh: Symbol) -> list[Symbol]:
            d_h += back
            delta = graph.join(d_h, d_h, d_h) * to_hidden
            return [graph.times_back(delta, W_hh) + d_h * z, delta, d_h]

        back, deltas, d_h = graph.library.scan_apart(
            step,
            sequences=[graph.enter(sequence, N) for sequence in (d_states, to_hidden, z)],
            outputs_info=[*map(graph.state, d_last or [initial[0].zeros_like()]), None, None],
            non_sequences=[graph.weights["weight_hh_l0"]],
            go_backwards=True,
        )
        deltas, d_h = (graph.leave(sequence[::-1]) for sequence in (deltas, d_h))
        return Deltas(graph.join(graph.part(deltas, 0, 2, 3), d_h * to_n), deltas, [graph.whole(back[-1])])


class Kind(Protocol):
    """A cell that is yet to be put into a graph."""

    def __call__(self, graph: Graph) -> Cell: ...


CELLS: dict[str, Kind] = {
    **{f"rnn_{act}": functools.partial(Elman, act=act) for act in ("tanh", "sigmoid", "relu")},
    "lstm": LSTM,
    "gru": GRU,
}
COUNTS = {**dict.fromkeys(("rnn_tanh", "rnn_sigmoid", "rnn_relu"), (1, 0)), "lstm": (2, 2), "gru": (1, 3)}
"""States, and what else a forward pass keeps."""


def rows(sequence: Symbol) -> Symbol:
    """(T, N, F) -> (T*N, F)"""
    return sequence.reshape((sequence.shape[0] * sequence.shape[1], sequence.shape[2]))


def steps(all_rows: Symbol, N: Symbol) -> Symbol:
    """(T*N, F) -> (T, N, F)"""
    return all_rows.reshape((all_rows.shape[0] // N, N, all_rows.shape[1]))


def compile_forward(library: Library, cell: str, names: Sequence[str], dtype: str, one_lane: bool) -> Compiled:
    """A function of x (T, N, I), the initial states (N, H) each, and the weights of these names, in order:
    [the states (T, N, H) and what else is kept (T, N, width), as many as COUNTS says, and the output].
    """
    weights = {name: symbol(library, name, dtype) for name in names}
    tensor = library.tensor
    x, initial = tensor.tensor3("x", dtype=dtype), [tensor.matrix(dtype=dtype) for _ in range(COUNTS[cell][0])]
    graph = Graph(library, cell, weights, one_lane)
    tape = graph.tape(rows(x), initial)
    sequences = [*tape.states, *tape.kept, graph.output(tape.states[0])]
    return library.compile([x, *initial, *weights.values()], [steps(one, x.shape[1]) for one in sequences])


def compile_bptt(library: Library, cell: str, names: Sequence[str], dtype: str, one_lane: bool) -> Compiled:
    """A function of x (T, N, I), the states (T+1, N, H) and what else was kept, the gradients of the output (T, N, O)
    and of the last states (N, H) each, and the weights of these names, in order: the gradients [those of the weights,
    of x, of the initial states].
    """
    weights = {name: symbol(library, name, dtype) for name in names}
    tensor = library.tensor
    x, d_output = (tensor.tensor3(name, dtype=dtype) for name in ("x", "d_output"))
    states, kept = ([tensor.tensor3(dtype=dtype) for _ in range(count)] for count in COUNTS[cell])
    d_last = [tensor.matrix(dtype=dtype) for _ in states]
    graph = Graph(library, cell, weights, one_lane)
    tape = Tape([rows(state[1:]) for state in states], [rows(one) for one in kept])
    gradients, d_x, d_initial = graph.bptt(rows(x), [state[0] for state in states], tape, rows(d_output), d_last)
    inputs = [x, *states, *kept, d_output, *d_last, *weights.values()]
    return library.compile(inputs, [*gradients.values(), steps(d_x, x.shape[1]), *d_initial])


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

    def _begin(self, one_lane: bool) -> tuple[Graph, Symbol, list[Symbol], Tape]:
        """The graph, x (T, N, I), the initial states and what a forward pass leaves."""
        graph = Graph(self.library, self._cell, self._shared, one_lane)
        tensor = self.library.tensor
        x = tensor.tensor3("x", dtype=self._dtype.name)
        shape = x.shape[1], self._shared["weight_hh_l0"].shape[1]
        initial = [tensor.zeros(shape, dtype=self._dtype.name) for _ in range(COUNTS[self._cell][0])]
        return graph, x, initial, graph.tape(rows(x), initial)

    def _compile_forward(self, one_lane: bool) -> Compiled:
        graph, x, _, tape = self._begin(one_lane)
        return self.library.compile([x], [steps(graph.output(tape.states[0]), x.shape[1])])

    def _backward(self, one_lane: bool) -> tuple[list[Symbol], Symbol, dict[str, Symbol], Symbol]:
        """The inputs x and target, the loss, the gradients of the weights and of x."""
        graph, x, initial, tape = self._begin(one_lane)
        tensor = self.library.tensor
        target = tensor.tensor3("target", dtype=self._dtype.name)
        number = self._dtype.type
        first = self._objective.skip * x.shape[1]
        error = graph.output(tape.states[0])[first:] - rows(target)[first:]
        loss = tensor.sqr(error).mean(dtype=self._dtype.name) * number(self._objective.scale)
        d_output = error * (number(2 * self._objective.scale) / tensor.cast(error.size, self._dtype.name))
        if self._objective.skip:
            nothing = tensor.zeros((first, error.shape[1]), dtype=self._dtype.name)
            d_output = tensor.concatenate([nothing, d_output])
        gradients, d_x, _ = graph.bptt(rows(x), initial, tape, d_output)
        return [x, target], loss, gradients, steps(d_x, x.shape[1])

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
