"""The network in NumPy, as fast as NumPy is: what `recurrence.py` says, with nothing allocated in a time step.

What made it fast, each measured in float32 on one AMD EPYC core (Zen 4), NumPy 2.4 with OpenBLAS 0.3:

- A step is three calls into memory that is there already, forward dot, add, tanh: 1.2 us at H = 8, N = 1, where the
  reference takes 7.9. `np.dot` is a quarter faster to call than `np.matmul` (1.2 and 1.5 us).
- The projection of the inputs is written where the states will be: no second (T, N, H) array goes through the cache
  (H = 16, N = 512, T = 512: 9.6 ms, and 14.8 with one).
- With several lanes W_hh^T is copied once, so that its rows are contiguous (H = 256, N = 48: 78 us a step, and 100 with
  the transposed view); with one lane the view is the faster (H = 1024: 55 us, and 70 with the copy).
- Biases are summed over rows as a product with ones (H = 16, T*N = 262144: 0.6 ms, and 5.5 for `sum`).
- A network keeps its arrays for the next batch: new memory costs a page fault every 4 KiB (I = H = 64, N = 48, T = 200,
  a training step: 10.8 ms, and 15.9).
- All weights are one vector, and so are their gradients: an update is few calls, whatever the number of weights.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .cells import Array
from .network import BETAS, CLIP_NORM, EPS, Objective
from .recurrence import Backward, rows

NARROW = 32
"""Inputs below which a column of ones beside x is cheaper than one more pass to add the bias: at I = 1, H = 16 and
T*N = 262144 2.1 ms, and 3.8 with the pass; at I = 64 it gains nothing, and 1025 columns make the product 10% slower."""

BLOCK = 1 << 16  # numbers an update takes at once, which stay in L2: Adam over 3 million in 5.5 ms, and 7.1 unblocked


def sigmoid(a: Array, out: Array) -> None:
    np.negative(a, out)
    np.exp(out, out)
    np.add(out, 1, out)
    np.reciprocal(out, out)


def relu(a: Array, out: Array) -> None:
    np.maximum(a, 0, out=out)


def tanh_slope(h: Array, out: Array) -> None:
    np.multiply(h, h, out)
    np.subtract(1, out, out)


def sigmoid_slope(h: Array, out: Array) -> None:
    np.subtract(1, h, out)
    np.multiply(h, out, out)


def relu_slope(h: Array, out: Array) -> None:
    np.greater(h, 0, out)  # 0 at 0, as in PyTorch


class Cell(NamedTuple):
    """An activation, and its derivative in terms of its result h, each (from, to)."""

    act: Callable[[Array, Array], object]
    slope: Callable[[Array, Array], object]


CELLS = {
    "rnn_tanh": Cell(np.tanh, tanh_slope),
    "rnn_sigmoid": Cell(sigmoid, sigmoid_slope),
    "rnn_relu": Cell(relu, relu_slope),
}


def quiet() -> np.errstate:
    """NaN and infinity go through without a warning, as they do in the kernels: the loss shows them."""
    return np.errstate(over="ignore", under="ignore", invalid="ignore")


class Room(NamedTuple):
    """What one forward and one backward pass fill: states (T+1, N, H), output and its gradient (T, N, O or H), delta
    and slopes (T, N, H), and the gradient of x (T, N, I). Without a readout the output is a view of the states, and its
    gradient is delta, which begins with it."""

    states: Array
    output: Array
    d_output: Array
    delta: Array
    slopes: Array
    d_x: Array


def room(x: Array, weights: Mapping[str, Array]) -> Room:
    """Memory for x (T, N, I); what is not written to takes none."""
    T, N, _ = x.shape
    H = len(weights["weight_hh_l0"])
    states = np.empty((T + 1, N, H), x.dtype)
    delta = np.empty((T, N, H), x.dtype)
    output, d_output = states[1:], delta
    if "weight_ho" in weights:
        output, d_output = (np.empty((T, N, len(weights["weight_ho"])), x.dtype) for _ in range(2))
    return Room(states, output, d_output, delta, np.empty_like(delta), np.empty(x.shape, x.dtype))


def forward(cell: str, x: Array, h0: Array, weights: Mapping[str, Array]) -> tuple[Array, Array]:
    """States (T+1, N, H) and output (T, N, O or H), as `recurrence.forward`, for x (T, N, I) and h0 (N, H).

    Any size may be 0. The output without a readout is a view of the states.
    """
    to = room(x, weights)
    with quiet():
        run(cell, x, h0, weights, to)
    return to.states, to.output


def run(cell: str, x: Array, h0: Array | float, weights: Mapping[str, Array], to: Room) -> None:
    """Write states and output into the room."""
    to.states[0] = h0
    project(x, weights, to.states[1:])
    recur(cell, weights["weight_hh_l0"], to.states)
    if "weight_ho" in weights:
        np.dot(rows(to.states[1:]), weights["weight_ho"].T, out=rows(to.output))
        if "bias_o" in weights:
            np.add(to.output, weights["bias_o"], to.output)


def project(x: Array, weights: Mapping[str, Array], out: Array) -> None:
    """out_t = W_ih x_t + b_ih + b_hh for all t, as one product."""
    W, x, out = weights["weight_ih_l0"], rows(x), rows(out)
    if "bias_ih_l0" not in weights:
        np.dot(x, W.T, out=out)
        return
    bias = weights["bias_ih_l0"] + weights["bias_hh_l0"]
    if x.shape[1] < NARROW:
        ones = np.ones((len(x), 1), x.dtype)
        np.dot(np.concatenate([x, ones], axis=1), np.concatenate([W, bias[:, None]], axis=1).T, out=out)
    else:
        np.dot(x, W.T, out=out)
        out += bias


def recur(cell: str, W_hh: Array, states: Array) -> None:
    """h_t = act(p_t + W_hh h_{t-1}), where states (T+1, N, H) hold h_0, p_1, p_2, ... before and all h after."""
    dot, add, act = np.dot, np.add, CELLS[cell].act
    W = W_hh.T if states.shape[1] == 1 else np.ascontiguousarray(W_hh.T)
    product = np.empty_like(states[0])
    h, *following = states
    for after in following:
        dot(h, W, product)
        add(after, product, after)
        act(after, after)
        h = after


def bptt(
    cell: str, x: Array, weights: Mapping[str, Array], states: Array, d_output: Array, d_last: Array | None
) -> Backward:
    """Gradients from those of the output (T, N, O or H) and of the last state (N, H), None for zeros: as
    `recurrence.bptt`. `states` are what `forward` returned for the same `x` and `weights`."""
    gradients = {name: np.empty_like(weight, order="C") for name, weight in weights.items()}
    to = room(x, weights)._replace(states=states, d_output=d_output)
    with quiet():
        d_h0 = differentiate(cell, x, weights, to, 0.0 if d_last is None else d_last, gradients)
    return Backward(gradients, to.d_x, (d_h0,))


def differentiate(
    cell: str,
    x: Array,
    weights: Mapping[str, Array],
    to: Room,
    d_last: Array | float,
    gradients: Mapping[str, Array],
) -> Array:
    """Write the gradients of the weights into C-contiguous `gradients`, that of x into the room, from the room's states
    and d_output; return that of h0."""
    hidden, d_output, delta = to.states[1:], rows(to.d_output), rows(to.delta)
    if "weight_ho" in weights:
        np.dot(d_output, weights["weight_ho"], out=delta)
        np.dot(d_output.T, rows(hidden), out=gradients["weight_ho"])
        if "bias_o" in weights:
            total(d_output, gradients["bias_o"])
    elif to.d_output is not to.delta:
        to.delta[...] = to.d_output
    CELLS[cell].slope(hidden, to.slopes)
    d_h0 = recur_back(weights["weight_hh_l0"], to.slopes, to.delta, d_last)
    np.dot(delta.T, rows(x), out=gradients["weight_ih_l0"])
    np.dot(delta.T, rows(to.states[:-1]), out=gradients["weight_hh_l0"])
    if "bias_ih_l0" in weights:
        total(delta, gradients["bias_ih_l0"])
        gradients["bias_hh_l0"][...] = gradients["bias_ih_l0"]
    np.dot(delta, weights["weight_ih_l0"], out=rows(to.d_x))
    return d_h0


def recur_back(W_hh: Array, slopes: Array, delta: Array, d_last: Array | float) -> Array:
    """d_t = act'(a_t) (dy_t + W_hh^T d_{t+1}), where delta (T, N, H) holds dy before and d after; returns d_h0.

    slopes: all act'(a_t), which is faster than one in each step (H = 8, N = 1: 1.6 us a step, and 2.4).
    """
    dot, add, multiply = np.dot, np.add, np.multiply
    back = np.empty(delta.shape[1:], delta.dtype)
    back[...] = d_last
    for d, slope in zip(delta[::-1], slopes[::-1], strict=True):
        add(d, back, d)
        multiply(d, slope, d)
        dot(d, W_hh, back)
    return back


def total(d: Array, out: Array) -> None:
    """The sum over the rows."""
    np.dot(np.ones(len(d), d.dtype), d, out=out)


def pieces(vector: Array, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Views of `vector`, one after the other, with the names and shapes of `weights`."""
    views, start = {}, 0
    for name, weight in weights.items():
        views[name] = vector[start : start + weight.size].reshape(weight.shape)
        start += weight.size
    return views


class Batch(NamedTuple):
    x: Array
    target: Array


class Network:
    """`network.Network` in NumPy."""

    def __init__(self, cell: str, weights: Mapping[str, Array], objective: Objective) -> None:
        self._cell, self._objective = cell, objective
        self._vector = np.concatenate([weight.ravel() for weight in weights.values()])
        self._gradient = np.empty_like(self._vector)
        self._weights, self._gradients = pieces(self._vector, weights), pieces(self._gradient, weights)
        self._rooms: dict[tuple[int, ...], Room] = {}
        self._update: Callable[[Array, Array, float], None] = sgd
        if objective.update == "adam":
            self._update = Adam(len(self._vector), self._vector.dtype)

    def batch(self, x: Array, target: Array) -> Batch:
        return Batch(np.ascontiguousarray(x), np.ascontiguousarray(target))

    def forward(self, batch: Batch) -> Array:
        """Good until the next call."""
        to = self._room(batch)
        with quiet():
            run(self._cell, batch.x, 0.0, self._weights, to)
        return to.output

    def train(self, batch: Batch, rate: float) -> float:
        with quiet():
            value, _ = self._differentiate(batch)
            self._update(self._vector, self._gradient, rate)
        return value

    def gradients(self, batch: Batch) -> dict[str, Array]:
        with quiet():
            _, d_x = self._differentiate(batch)
        return {name: gradient.copy() for name, gradient in {**self._gradients, "x": d_x}.items()}

    def weights(self) -> dict[str, Array]:
        return {name: weight.copy() for name, weight in self._weights.items()}

    def _room(self, batch: Batch) -> Room:
        if batch.x.shape not in self._rooms:
            self._rooms[batch.x.shape] = room(batch.x, self._weights)
        return self._rooms[batch.x.shape]

    def _differentiate(self, batch: Batch) -> tuple[float, Array]:
        """The loss, and its gradient with respect to x; those of the weights are in `_gradients`."""
        to = self._room(batch)
        run(self._cell, batch.x, 0.0, self._weights, to)
        value = loss(to.output, batch.target, self._objective, to.d_output)
        differentiate(self._cell, batch.x, self._weights, to, 0.0, self._gradients)
        return value, to.d_x


def loss(output: Array, target: Array, objective: Objective, d_output: Array) -> float:
    """The objective's loss; writes its gradient with respect to the output into C-contiguous d_output."""
    np.subtract(output, target, d_output)
    d_output[: objective.skip] = 0
    factor = objective.scale / max(d_output[objective.skip :].size, 1)
    differences = d_output.reshape(-1)
    value = factor * float(np.dot(differences, differences))
    d_output *= 2 * factor
    return value


def sgd(weights: Array, gradient: Array, rate: float) -> None:
    """w = w - rate g, in place; the gradient is used up."""
    for start in range(0, len(weights), BLOCK):
        w, g = weights[start : start + BLOCK], gradient[start : start + BLOCK]
        g *= rate
        w -= g


class Adam:
    """`Objective`'s update over one vector of `size` weights."""

    def __init__(self, size: int, dtype: np.dtype[Any]) -> None:
        self._count = 0
        self._mean, self._square = np.zeros(size, dtype), np.zeros(size, dtype)

    def __call__(self, weights: Array, gradient: Array, rate: float) -> None:
        """Take a step in place; the gradient is used up."""
        b1, b2 = BETAS
        self._count += 1
        step_size = rate / (1 - b1**self._count)
        root = math.sqrt(1 - b2**self._count)
        clip = min(1.0, CLIP_NORM / (math.sqrt(float(np.dot(gradient, gradient))) + 1e-6))
        scratch = np.empty(min(BLOCK, len(weights)), weights.dtype)
        for start in range(0, len(weights), BLOCK):
            w, g, m, v = (a[start : start + BLOCK] for a in (weights, gradient, self._mean, self._square))
            s = scratch[: len(w)]
            if clip != 1:
                g *= clip
            m *= b1
            m += np.multiply(g, 1 - b1, out=s)
            v *= b2
            np.multiply(g, g, out=s)
            s *= 1 - b2
            v += s
            np.sqrt(v, out=s)
            s /= root
            s += EPS
            np.divide(m, s, out=s)
            s *= step_size
            w -= s


@cache
def _openblas() -> ctypes.CDLL:
    """The OpenBLAS that NumPy's wheels carry. Raises ValueError where NumPy was built with another library."""
    folder = Path(np.__file__).parent.with_name("numpy.libs")
    found = next(iter(folder.glob("libscipy_openblas64_*")), None)
    if found is None:
        raise ValueError(f"set_threads: expected NumPy from its wheel, which has OpenBLAS in {folder.name}, got none")
    return ctypes.CDLL(str(found))  # loaded already: this is another name for it


def set_threads(n: int) -> None:
    """Let OpenBLAS's products use n threads; all else in NumPy uses one.

    Raises ValueError for another BLAS, or if OpenBLAS has fewer threads than n.
    """
    library = _openblas()
    before = library.scipy_openblas_get_num_threads64_()
    library.scipy_openblas_set_num_threads64_(n)
    most = library.scipy_openblas_get_num_threads64_()
    if most != n:
        library.scipy_openblas_set_num_threads64_(before)
        raise ValueError(f"n: expected at most the {most} threads that OpenBLAS was built for, got {n}")


def versions() -> dict[str, str]:
    """NumPy and its BLAS."""
    blas: Any = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {"numpy": np.__version__, blas["name"]: blas["version"]}
