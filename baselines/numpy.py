"""The network in NumPy, as fast as NumPy is: what `recurrence.py` says, with nothing allocated in a time step.

What made it fast, each measured in float32 on one AMD EPYC core (Zen 4), NumPy 2.4 with OpenBLAS 0.3:

- A step is three calls into memory that is there already, forward dot, add, tanh: 1.2 us at H = 8, N = 1, where the
  reference takes 7.9. `np.dot` is a quarter faster to call than `np.matmul` (1.2 and 1.5 us).
- The projection of the inputs is written where the states will be: no second (T, N, H) array goes through the cache
  (H = 16, N = 512, T = 512: 9.6 ms, and 14.8 with one).
- With several lanes W_hh^T is copied once, so that its rows are contiguous (H = 256, N = 48: 78 us a step, and 100 with
  the transposed view); with one lane the view is the faster (H = 1024: 55 us, and 70 with the copy). A network keeps
  the copy until its weights change: it is a third of the time of 25 steps of an LSTM of 512 on four lanes.
- LSTM and GRU: one product a step for all gates. A sigmoid is a tanh, (1 + tanh(a / 2)) / 2: with a factor of 1 where
  an LSTM has a tanh, that is four calls for all gates instead of nine (H = 8, N = 1: 3.6 us a step in all).
- On the way back a gate's gradient is dh or dc times something known before: what, is found for many steps at once
  (GRU, H = 8, N = 1: the step itself is five calls), but not for more than stay in L2.
- Products with states that start as zeros, as everybody's do here, are left out: that of an Elman network's first step,
  and the first step's part of the gradient of W_hh (a sixteenth of both where T = 16).
- Biases are summed over rows as a product with ones (H = 16, T*N = 262144: 0.6 ms, and 5.5 for `sum`).
- A network keeps its arrays for the next batch: new memory costs a page fault every 4 KiB (I = H = 64, N = 48, T = 200,
  a training step: 10.8 ms, and 15.9).
- All weights are one vector, and so are their gradients: an update is few calls, whatever the number of weights.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from .cells import Array, States
from .network import BETAS, CLIP_NORM, EPS, Objective
from .recurrence import Backward, Forward, rows

Last = Sequence[Array | float]

NARROW = 32
"""Inputs below which a column of ones beside x is cheaper than one more pass to add the bias: at I = 1, H = 16 and
T*N = 262144 2.1 ms, and 3.8 with the pass; at I = 64 it gains nothing, and 1025 columns make the product 10% slower."""

BLOCK = 1 << 16  # numbers an update takes at once, which stay in L2: Adam over 3 million in 5.5 ms, and 7.1 unblocked

WINDOW = 1 << 16
"""Numbers of a state for which the factors of BPTT are found at once. A training step of an LSTM: T = 200, N = 48,
H = 64 35.5 ms, and 39.6 with those of all steps at once; T = 1000, N = 1, H = 32 7.9 ms, and 8.6 with those of 32."""

STRIP = 16
SMALL = 1 << 16
"""A matrix of more numbers than SMALL is transposed STRIP rows at a time, a cache line of the result: 4096 by 1024 in
4.7 ms, and 29 at once."""

FEW = 64
"""Rows up to which W x^T, then transposed, is the faster product: 16 rows by 512, and 2048 gates, 0.48 ms, and 1.07."""


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


def quiet() -> np.errstate:
    """NaN and infinity go through without a warning, as they do in the kernels: the loss shows them."""
    return np.errstate(over="ignore", under="ignore", invalid="ignore")


class Span(NamedTuple):
    """Gates, the first and one past the last, and the first of the blocks of H columns in which their gradients lie."""

    first: int
    last: int
    block: int

    def rows(self, H: int) -> slice:
        """Of the weights."""
        return slice(self.first * H, self.last * H)

    def columns(self, H: int) -> slice:
        """Of the gradients."""
        return slice(self.block * H, (self.block + self.last - self.first) * H)


class Cell(Protocol):
    """What differs from cell to cell. Only what is said to be is written to."""

    @property
    def states(self) -> int:
        """How many; the first is h."""

    @property
    def kept(self) -> tuple[int, ...]:
        """What a forward pass leaves for BPTT besides: widths, in units of H."""

    @property
    def wide(self) -> int:
        """Width of `room` in `back`, in units of H."""

    @property
    def from_input(self) -> tuple[Span, ...]:
        """Where the gradient of W_ih x + b_ih lies in what `back` returns."""

    @property
    def from_hidden(self) -> tuple[Span, ...]:
        """And that of W_hh h + b_hh."""

    def forward(
        self, x: Array, weights: Mapping[str, Array], W: Array, states: Sequence[Array], kept: Sequence[Array]
    ) -> None:
        """Fill `kept`, (T, N, width * H) each, and all of the states, (T+1, N, H) each, but the first.

        W is W_hh^T as `transposed` made it.
        """

    def back(
        self, W_hh: Array, states: Sequence[Array], kept: Sequence[Array], d_last: Last, d_h: Array, room: Array
    ) -> tuple[Array, States]:
        """Gradients of the gates' arguments, in d_h or in `room`, and of the initial states.

        d_last: those of the last states. d_h (T, N, H): what reaches each h_t from its own output. It is used up, and
        so is room (T, N, wide * H).
        """


def project(x: Array, W: Array, bias: Array | None, out: Array) -> None:
    """out_t = W x_t + b for all t, as one product."""
    x, out = rows(x), rows(out)
    if len(x) <= FEW:
        np.add(np.dot(W, x.T).T, 0 if bias is None else bias, out)
    elif bias is None:
        np.dot(x, W.T, out=out)
    elif x.shape[1] < NARROW:
        ones = np.ones((len(x), 1), x.dtype)
        np.dot(np.concatenate([x, ones], axis=1), np.concatenate([W, bias[:, None]], axis=1).T, out=out)
    else:
        np.dot(x, W.T, out=out)
        out += bias


def transposed(W: Array, N: int) -> Array:
    """W^T, as N lanes want it (see above)."""
    if N == 1:
        return W.T
    made = np.empty_like(W.T, order="C")
    strip = STRIP if W.size > SMALL else len(W)
    for start in range(0, len(W), max(strip, 1)):
        made[:, start : start + strip] = W[start : start + strip].T
    return made


class Elman:
    """h_t = act(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh); `slope` is the derivative of `act` in terms of its result.

    Both take (from, to).
    """

    states, wide = 1, 1
    kept: tuple[int, ...] = ()
    from_input = from_hidden = (Span(0, 1, 0),)

    def __init__(self, act: Callable[[Array, Array], object], slope: Callable[[Array, Array], object]) -> None:
        self.act, self.slope = act, slope

    def forward(
        self, x: Array, weights: Mapping[str, Array], W: Array, states: Sequence[Array], kept: Sequence[Array]
    ) -> None:
        bias = weights["bias_ih_l0"] + weights["bias_hh_l0"] if "bias_ih_l0" in weights else None
        project(x, weights["weight_ih_l0"], bias, states[0][1:])
        dot, add, act = np.dot, np.add, self.act
        product = np.empty_like(states[0][0])
        h, *following = states[0]
        if following and not h.any():
            h = following.pop(0)
            act(h, h)
        for after in following:
            dot(h, W, product)
            add(after, product, after)
            act(after, after)
            h = after

    def back(
        self, W_hh: Array, states: Sequence[Array], kept: Sequence[Array], d_last: Last, d_h: Array, room: Array
    ) -> tuple[Array, States]:
        """All slopes at once are faster than one in each step (H = 8, N = 1: 1.6 us a step, and 2.4)."""
        self.slope(states[0][1:], room)
        return d_h, (recur_back(W_hh, room, d_h, d_last[0]),)


def recur_back(W_hh: Array, slopes: Array, delta: Array, d_last: Array | float) -> Array:
    """d_t = act'(a_t) (dy_t + W_hh^T d_{t+1}), where delta (T, N, H) holds dy before and d after; returns d_h0."""
    dot, add, multiply = np.dot, np.add, np.multiply
    back = np.empty(delta.shape[1:], delta.dtype)
    back[...] = d_last
    for d, slope in zip(delta[::-1], slopes[::-1], strict=True):
        add(d, back, d)
        multiply(d, slope, d)
        dot(d, W_hh, back)
    return back


class LSTM:
    """As `cells.LSTM`. Kept are the gates i, f, g, o side by side."""

    states, wide = 2, 4
    kept = (4,)
    from_input = from_hidden = (Span(0, 4, 0),)

    def forward(
        self, x: Array, weights: Mapping[str, Array], W: Array, states: Sequence[Array], kept: Sequence[Array]
    ) -> None:
        (h, c), (gates,) = states, kept
        _, N, H = h.shape
        bias = weights["bias_ih_l0"] + weights["bias_hh_l0"] if "bias_ih_l0" in weights else None
        project(x, weights["weight_ih_l0"], bias, gates)
        dot, add, multiply, tanh = np.dot, np.add, np.multiply, np.tanh
        product, part = (np.empty((N, width), h.dtype) for width in (4 * H, H))
        factor, offset = np.full_like(product, 0.5), np.full_like(product, 0.5)
        factor[:, 2 * H : 3 * H], offset[:, 2 * H : 3 * H] = 1, 0  # g is a tanh
        each = (gates[:, :, gate * H : (gate + 1) * H] for gate in range(4))
        for a, h_before, h_after, c_before, c_after, i, f, g, o in zip(gates, h, h[1:], c, c[1:], *each, strict=False):
            dot(h_before, W, product)
            add(a, product, a)
            multiply(a, factor, a)
            tanh(a, a)
            multiply(a, factor, a)
            add(a, offset, a)
            multiply(f, c_before, c_after)
            multiply(i, g, part)
            add(c_after, part, c_after)
            tanh(c_after, part)
            multiply(o, part, h_after)

    def back(
        self, W_hh: Array, states: Sequence[Array], kept: Sequence[Array], d_last: Last, d_h: Array, room: Array
    ) -> tuple[Array, States]:
        T, N, H = d_h.shape
        dot, add, multiply = np.dot, np.add, np.multiply
        back, d_c, part = (np.empty((N, 1, H), d_h.dtype) for _ in range(3))
        back[:, 0], d_c[:, 0] = d_last
        into = back[:, 0]
        gates, deltas = kept[0].reshape(T, N, 4, H), room.reshape(T, N, 4, H)
        for some in windows(T, N * H):
            c, c_before, d = states[1][1:][some], states[1][:-1][some], deltas[some]
            to_c = self.factors(gates[some], c_before, c, d)
            now = (d_h[some, :, None], to_c[:, :, None], d[:, :, :3], d[:, :, 3:], room[some], gates[some, :, 1:2])
            for d_h_now, to_c_now, ifg, o, delta, f in zip(*(sequence[::-1] for sequence in now), strict=True):
                add(d_h_now, back, d_h_now)
                multiply(d_h_now, to_c_now, part)
                add(d_c, part, d_c)
                multiply(ifg, d_c, ifg)
                multiply(o, d_h_now, o)
                multiply(d_c, f, d_c)
                dot(delta, W_hh, into)
        return room, (into, d_c[:, 0])

    def factors(self, gates: Array, c_before: Array, c: Array, out: Array) -> Array:
        """What dc_t is to be multiplied with for the arguments of i, f and g, and dh_t for that of o; returns what dh_t
        is to be multiplied with for dc_t."""
        i, _, g, o = (gates[:, :, gate] for gate in range(4))
        to_i, to_f, to_g, to_o = (out[:, :, gate] for gate in range(4))
        np.subtract(1, gates, out)
        np.multiply(out, gates, out)  # the slope of a sigmoid
        np.multiply(to_i, g, to_i)
        np.multiply(to_f, c_before, to_f)
        np.multiply(g, g, to_g)
        np.subtract(1, to_g, to_g)
        np.multiply(to_g, i, to_g)
        to_c = np.tanh(c)
        np.multiply(to_o, to_c, to_o)
        np.multiply(to_c, to_c, to_c)
        np.subtract(1, to_c, to_c)
        np.multiply(to_c, o, to_c)
        return to_c


class GRU:
    """As `cells.GRU`. Kept are r and z side by side, n, and what r is multiplied with, u = W_hn h + b_hn."""

    states, wide = 1, 4
    kept = (2, 1, 1)
    from_input = Span(0, 2, 0), Span(2, 3, 3)
    from_hidden = (Span(0, 3, 0),)

    def forward(
        self, x: Array, weights: Mapping[str, Array], W: Array, states: Sequence[Array], kept: Sequence[Array]
    ) -> None:
        (h,), (rz, n, u) = states, kept
        _, N, H = h.shape
        W_ih, bias, bias_n, bias_u = weights["weight_ih_l0"], None, None, np.zeros(H, h.dtype)
        if "bias_ih_l0" in weights:
            both = weights["bias_ih_l0"] + weights["bias_hh_l0"]
            bias, bias_n, bias_u = both[: 2 * H], weights["bias_ih_l0"][2 * H :], weights["bias_hh_l0"][2 * H :]
        project(x, W_ih[: 2 * H], bias, rz)
        project(x, W_ih[2 * H :], bias_n, n)
        dot, add, multiply, subtract, tanh = np.dot, np.add, np.multiply, np.subtract, np.tanh
        product, part, half = (np.empty((N, width), h.dtype) for width in (3 * H, H, 2 * H))
        half[...] = 0.5
        to_rz, to_u = product[:, : 2 * H], product[:, 2 * H :]
        now = rz, n, u, rz[:, :, :H], rz[:, :, H:], h, h[1:]
        for rz_now, n_now, u_now, r, z, before, after in zip(*now, strict=False):
            dot(before, W, product)
            add(rz_now, to_rz, rz_now)
            multiply(rz_now, half, rz_now)
            tanh(rz_now, rz_now)
            multiply(rz_now, half, rz_now)
            add(rz_now, half, rz_now)
            add(to_u, bias_u, u_now)
            multiply(r, u_now, part)
            add(n_now, part, n_now)
            tanh(n_now, n_now)
            subtract(before, n_now, part)
            multiply(z, part, part)
            add(n_now, part, after)

    def back(
        self, W_hh: Array, states: Sequence[Array], kept: Sequence[Array], d_last: Last, d_h: Array, room: Array
    ) -> tuple[Array, States]:
        T, N, H = d_h.shape
        dot = np.dot if N == 1 else np.matmul  # which takes rows that do not lie side by side as they are
        add, multiply = np.add, np.multiply
        back, part = (np.empty((N, 1, H), d_h.dtype) for _ in range(2))
        back[:, 0] = d_last[0]
        into = back[:, 0]
        deltas = room.reshape(T, N, 4, H)
        for some in windows(T, N * H):
            rz, n, u = (sequence[some] for sequence in kept)
            r, z = rz[:, :, :H], rz[:, :, H:]
            self.factors(r, z, n, u, states[0][:-1][some], deltas[some])
            now = d_h[some, :, None], deltas[some], room[some, :, : 3 * H], z[:, :, None]
            for d_h_now, all_four, hidden, z_now in zip(*(sequence[::-1] for sequence in now), strict=True):
                add(d_h_now, back, d_h_now)
                multiply(all_four, d_h_now, all_four)
                dot(hidden, W_hh, into)
                multiply(d_h_now, z_now, part)
                add(back, part, back)
        return room, (into,)

    def factors(self, r: Array, z: Array, n: Array, u: Array, before: Array, out: Array) -> None:
        """What dh_t is to be multiplied with for the arguments of r and z, for u, and for the argument of n."""
        to_r, to_z, to_u, to_n = (out[:, :, part] for part in range(4))
        rest = np.subtract(1, z)
        np.multiply(n, n, to_n)
        np.subtract(1, to_n, to_n)
        np.multiply(to_n, rest, to_n)
        np.multiply(to_n, r, to_u)
        np.subtract(before, n, to_z)
        np.multiply(to_z, z, to_z)
        np.multiply(to_z, rest, to_z)
        np.subtract(1, r, to_r)
        np.multiply(to_r, u, to_r)
        np.multiply(to_r, to_u, to_r)


def windows(T: int, numbers: int) -> Iterator[slice]:
    """Slices of the time steps, the last ones first, in which a state of so many numbers a step has WINDOW or fewer."""
    length = max(1, WINDOW // max(numbers, 1))
    for end in range(T, 0, -length):
        yield slice(max(0, end - length), end)


CELLS: dict[str, Cell] = {
    "rnn_tanh": Elman(np.tanh, tanh_slope),
    "rnn_sigmoid": Elman(sigmoid, sigmoid_slope),
    "rnn_relu": Elman(relu, relu_slope),
    "lstm": LSTM(),
    "gru": GRU(),
}


class Room(NamedTuple):
    """What one forward and one backward pass fill: the states (T+1, N, H) and what else is kept (T, N, width * H),
    output and its gradient (T, N, O or H), the gradient of h (T, N, H), the cell's own room (T, N, wide * H), and the
    gradient of x (T, N, I). Without a readout the output is a view of h, and its gradient that of h."""

    states: States
    kept: States
    output: Array
    d_output: Array
    d_h: Array
    wide: Array
    d_x: Array


def make_room(cell: Cell, x: Array, weights: Mapping[str, Array]) -> Room:
    """Memory for x (T, N, I); what is not written to takes none."""
    T, N, _ = x.shape
    H = weights["weight_hh_l0"].shape[1]

    def empty(*shape: int) -> Array:
        return np.empty(shape, x.dtype)

    states = tuple(empty(T + 1, N, H) for _ in range(cell.states))
    kept = tuple(empty(T, N, width * H) for width in cell.kept)
    d_h = empty(T, N, H)
    output, d_output = states[0][1:], d_h
    if "weight_ho" in weights:
        output, d_output = (empty(T, N, len(weights["weight_ho"])) for _ in range(2))
    return Room(states, kept, output, d_output, d_h, empty(T, N, cell.wide * H), empty(*x.shape))


def forward(cell: str, x: Array, initial: Sequence[Array], weights: Mapping[str, Array]) -> Forward:
    """As `recurrence.forward`, of the cell of this name, for x (T, N, I) from the initial states, (N, H) each; what is
    kept differs. Any size may be 0. The output without a readout is a view of the states.
    """
    to = make_room(CELLS[cell], x, weights)
    with quiet():
        run(CELLS[cell], x, initial, weights, transposed(weights["weight_hh_l0"], x.shape[1]), to)
    return Forward(to.states, to.kept, to.output, tuple(state[-1] for state in to.states))


def run(
    cell: Cell, x: Array, initial: Sequence[Array | float], weights: Mapping[str, Array], W: Array, to: Room
) -> None:
    """Write states, what is kept, and output into the room; W is W_hh^T as `transposed` made it."""
    for state, first in zip(to.states, initial, strict=True):
        state[0] = first
    cell.forward(x, weights, W, to.states, to.kept)
    if "weight_ho" in weights:
        np.dot(rows(to.states[0][1:]), weights["weight_ho"].T, out=rows(to.output))
        if "bias_o" in weights:
            np.add(to.output, weights["bias_o"], to.output)


def bptt(
    cell: str,
    x: Array,
    weights: Mapping[str, Array],
    states: Sequence[Array],
    kept: Sequence[Array],
    d_output: Array,
    d_last: Sequence[Array] | None,
) -> Backward:
    """Gradients from those of the output (T, N, O or H) and of the last states, (N, H) each, None for zeros: as
    `recurrence.bptt`. `states` and `kept` are what `forward` returned for the same `x` and `weights`."""
    chosen = CELLS[cell]
    gradients = {name: np.empty_like(weight, order="C") for name, weight in weights.items()}
    to = make_room(chosen, x, weights)._replace(states=tuple(states), kept=tuple(kept), d_output=d_output)
    with quiet():
        d_initial = differentiate(chosen, x, weights, to, d_last or (0.0,) * chosen.states, gradients)
    return Backward(gradients, to.d_x, d_initial)


def differentiate(
    cell: Cell, x: Array, weights: Mapping[str, Array], to: Room, d_last: Last, gradients: Mapping[str, Array]
) -> States:
    """Write the gradients of the weights into C-contiguous `gradients`, that of x into the room, from what `run` wrote
    there and d_output; return those of the initial states."""
    h, d_output, d_h = to.states[0], rows(to.d_output), rows(to.d_h)
    if "weight_ho" in weights:
        np.dot(d_output, weights["weight_ho"], out=d_h)
        np.dot(d_output.T, rows(h[1:]), out=gradients["weight_ho"])
        if "bias_o" in weights:
            total(d_output, gradients["bias_o"])
    elif to.d_output is not to.d_h:
        to.d_h[...] = to.d_output
    delta, d_initial = cell.back(weights["weight_hh_l0"], to.states, to.kept, d_last, to.d_h, to.wide)
    d, H = rows(delta), h.shape[2]
    idle = 0 if h[0].any() else 1  # steps
    sides = ("ih", x, delta, cell.from_input), ("hh", h[idle:-1], delta[idle:], cell.from_hidden)
    for side, into, of, spans in sides:
        for span in spans:
            part = rows(of)[:, span.columns(H)]
            np.matmul(part.T, rows(into), out=gradients[f"weight_{side}_l0"][span.rows(H)])
    if "bias_ih_l0" in weights:
        sums = np.empty_like(d, shape=d.shape[1])
        total(d, sums)
        for side, spans in (("ih", cell.from_input), ("hh", cell.from_hidden)):
            for span in spans:
                gradients[f"bias_{side}_l0"][span.rows(H)] = sums[span.columns(H)]
    first, *others = cell.from_input
    np.matmul(d[:, first.columns(H)], weights["weight_ih_l0"][first.rows(H)], out=rows(to.d_x))
    for span in others:
        more = np.matmul(d[:, span.columns(H)], weights["weight_ih_l0"][span.rows(H)])
        np.add(to.d_x, more.reshape(x.shape), to.d_x)
    return d_initial


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
        self._cell, self._objective = CELLS[cell], objective
        self._vector = np.concatenate([weight.ravel() for weight in weights.values()])
        self._gradient = np.empty_like(self._vector)
        self._weights, self._gradients = pieces(self._vector, weights), pieces(self._gradient, weights)
        self._transposed: Array | None = None
        self._zeros = (0.0,) * self._cell.states
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
            self._run(batch, to)
        return to.output

    def train(self, batch: Batch, rate: float) -> float:
        with quiet():
            value, _ = self._differentiate(batch)
            self._update(self._vector, self._gradient, rate)
        self._transposed = None
        return value

    def gradients(self, batch: Batch) -> dict[str, Array]:
        with quiet():
            _, d_x = self._differentiate(batch)
        return {name: gradient.copy() for name, gradient in {**self._gradients, "x": d_x}.items()}

    def weights(self) -> dict[str, Array]:
        return {name: weight.copy() for name, weight in self._weights.items()}

    def _room(self, batch: Batch) -> Room:
        if batch.x.shape not in self._rooms:
            self._rooms[batch.x.shape] = make_room(self._cell, batch.x, self._weights)
        return self._rooms[batch.x.shape]

    def _run(self, batch: Batch, to: Room) -> None:
        """W_hh^T is made anew only where the weights have changed since."""
        lanes = batch.x.shape[1]
        if lanes == 1:
            W = transposed(self._weights["weight_hh_l0"], lanes)
        elif self._transposed is None:
            W = self._transposed = transposed(self._weights["weight_hh_l0"], lanes)
        else:
            W = self._transposed
        run(self._cell, batch.x, self._zeros, self._weights, W, to)

    def _differentiate(self, batch: Batch) -> tuple[float, Array]:
        """The loss, and its gradient with respect to x; those of the weights are in `_gradients`."""
        to = self._room(batch)
        self._run(batch, to)
        value = loss(to.output, batch.target, self._objective, to.d_output)
        differentiate(self._cell, batch.x, self._weights, to, self._zeros, self._gradients)
        return value, to.d_x


def loss(output: Array, target: Array, objective: Objective, d_output: Array) -> float:
    """The objective's loss; writes its gradient with respect to the output into C-contiguous d_output."""
    np.subtract(output, target, d_output)
    d_output[: objective.skip] = 0
    factor = objective.scale / max(d_output[objective.skip :].size, 1)
    value = factor * sum_of_squares(d_output.reshape(-1))
    d_output *= 2 * factor
    return value


def sum_of_squares(vector: Array) -> float:
    """In blocks: OpenBLAS adds up in few sums, and of 4 million squares at once a Zen 5 gave 2e-5 too little."""
    parts = (vector[start : start + BLOCK] for start in range(0, len(vector), BLOCK))
    return sum(float(np.dot(part, part)) for part in parts)


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
        clip = min(1.0, CLIP_NORM / (math.sqrt(sum_of_squares(gradient)) + 1e-6))
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
