"""The reference engine: a recurrent layer with a linear readout, forward and back through time, in NumPy.

Forward, for t = 1..T:      h_t = cell(W_ih x_t + b_ih, W_hh h_{t-1} + b_hh)        y_t = W_ho h_t + b_o
Backward, for t = T..1:     dh_t = W_ho^T dy_t + (what came back from step t+1)     d_t = cell'(dh_t)
Gradients, summed over t:   dW_ih = d_t x_t^T           dW_hh = d_t h_{t-1}^T           dW_ho = dy_t h_t^T

BPTT as in Werbos, "Backpropagation through time: what it does and how to do it", 1990: one sweep, whose cost
is linear in the length of the sequence (the well-known tutorial's starts anew at each output: quadratic).
What does not depend on the step before is one matrix product over all T*N rows: the input projection, the
readout, and each weight's gradient.

This is one layer in one direction. Both passes take the same options:

reverse         the steps are computed from the last to the first.
lengths (N,)    integers 0..T: row n has the steps t < lengths[n], and nothing beyond. Its last state is that of its
                end, where the other direction begins. Output and gradient of x are 0 past the end, where x and the
                gradient of the output are not looked at.
reset (T, N)    booleans: all states of the row are 0 before the step is computed.
recurrent_mask  (N, H), multiplies the operand of each product with the recurrent weights, the same in all steps: Gal
                and Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", 2016.
zoneout         for each state None or what can be broadcast to (T, N, H): new = zone * old + (1 - zone) * computed,
                with 0 or 1 drawn in training, or their mean: Krueger et al., "Zoneout", 2017. `old` is after the
                reset; what the cell computes from a new state (h from c) sees it as computed.

Axes: T time, N batch, I input, H hidden, G gates, O output. Any of them may be 0. Works in the dtype of its
arguments, float32 or float64. Nothing is checked here: the layer does that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .cells import Array, Cell, States

Zoneout = Sequence[Array | float | None]


class Forward(NamedTuple):
    """What a forward pass leaves.

    states: (T+1, N, H) each. Forward, index 0 holds the initial state and t+1 the state after step t; in reverse, t
    holds the state after step t and lengths[n], or T, the initial one of row n. 0 past the end.
    kept: (T, N, H) each: what the cell keeps, and with zoneout also its states as it computed them. 0 past the end.
    output: (T, N, O or H). last: the states after the last step, (N, H) each.
    """

    states: States
    kept: States
    output: Array
    last: States


class Backward(NamedTuple):
    """Gradients of the weights (by name), of x (T, N, I), and of the initial states, (N, H) each."""

    weights: dict[str, Array]
    x: Array
    initial: States


def forward(
    cell: Cell,
    x: Array,
    initial: Sequence[Array],
    weights: Mapping[str, Array],
    *,
    reverse: bool = False,
    lengths: NDArray[np.integer[Any]] | None = None,
    reset: NDArray[np.bool_] | None = None,
    recurrent_mask: Array | None = None,
    zoneout: Zoneout | None = None,
) -> Forward:
    """Run `cell` over x (T, N, I) from the `initial` states, (N, H) each.

    weights: weight_ih_l0 (G*H, I), weight_hh_l0 (G*H, H); optionally bias_ih_l0 and bias_hh_l0 (G*H,); the cell's
    vectors, as peephole_i_l0 (H,), of which recurrent_l0 stands in the place of weight_hh_l0 and bias_hh_l0; and for a
    readout weight_ho (O, H) and bias_o (O,).
    """
    T, N, _ = x.shape
    H = initial[0].shape[1]
    course = plan(T, N, reverse, lengths, reset)
    recurrent = Recurrent(cell.gates, weights, recurrent_mask)
    vectors = {name: weights[f"{name}_l0"] for name in cell.vectors}
    zones = spread(zoneout, cell, (T, N, H), x.dtype)

    states = tuple(np.zeros((T + 1, N, H), x.dtype) for _ in initial)
    for state, first in zip(states, initial, strict=True):
        state[course.first, np.arange(N)] = first
    kept = tuple(np.zeros((T, N, H), x.dtype) for _ in range(cell.kept + (0 if zoneout is None else len(states))))

    from_input = affine(course.within(x), weights["weight_ih_l0"], weights.get("bias_ih_l0"))
    for t in course.order:
        before = [np.where(course.carries[t], state[t + course.before], 0) for state in states]
        computed, keep = cell.step(from_input[t], recurrent.product, before, vectors)
        if zoneout is not None:
            keep = (*keep, *computed)
        for state, zone, old, new in zip(states, zones, before, computed, strict=True):
            value = new if zone is None else zone[t] * old + (1 - zone[t]) * new
            np.copyto(state[t + course.after], value, where=course.runs[t])
        for sequence, value in zip(kept, keep, strict=True):
            np.copyto(sequence[t], value, where=course.runs[t])

    output = states[0][course.after : course.after + T]
    if "weight_ho" in weights:
        output = affine(output, weights["weight_ho"], weights.get("bias_o"))
    last = tuple(state[course.last, np.arange(N)] for state in states)
    return Forward(states, kept, course.within(output), last)


def bptt(
    cell: Cell,
    x: Array,
    weights: Mapping[str, Array],
    states: Sequence[Array],
    kept: Sequence[Array],
    d_output: Array,
    d_last: Sequence[Array],
    *,
    reverse: bool = False,
    lengths: NDArray[np.integer[Any]] | None = None,
    reset: NDArray[np.bool_] | None = None,
    recurrent_mask: Array | None = None,
    zoneout: Zoneout | None = None,
) -> Backward:
    """Gradients of a loss, from those of the output (T, N, O or H) and of the last states, (N, H) each.

    `states` and `kept` are what `forward` returned for the same `x`, `weights` and options.
    """
    T, N, _ = x.shape
    W_ih = weights["weight_ih_l0"]
    course = plan(T, N, reverse, lengths, reset)
    recurrent = Recurrent(cell.gates, weights, recurrent_mask)
    vectors = {name: weights[f"{name}_l0"] for name in cell.vectors}
    zones = spread(zoneout, cell, states[0][1:].shape, x.dtype)
    hidden, *others = (course.within(state[course.after : course.after + T]) for state in states)
    computed = (hidden, *others) if zoneout is None else kept[cell.kept :]
    x, d_output = course.within(x), course.within(d_output)
    gradients = {name: np.zeros_like(weight) for name, weight in weights.items()}

    d_hidden = d_output  # what reaches each h_t from its own output
    if "weight_ho" in weights:
        d_hidden = affine(d_output, weights["weight_ho"].T)
        gradients["weight_ho"] = outer(d_output, hidden)
        if "bias_o" in weights:
            gradients["bias_o"] = d_output.sum(axis=(0, 1))

    products: defaultdict[str, list[tuple[Array, Array]]] = defaultdict(list)  # by gates: gradient and operand

    def through_weights(d: Array, operand: Array, gates: str | None = None) -> Array:
        products[gates or cell.gates].append((d, operand))
        return recurrent.product_back(d, gates)

    d_from_input = np.empty((T, N, W_ih.shape[0]), x.dtype)
    d_states = tuple(d.copy() for d in d_last)
    for t in reversed(course.order):
        d_after = [np.where(course.runs[t], d, 0) for d in d_states]
        d_after[0] += d_hidden[t]
        d_from_input[t], d_before, d_vectors = cell.step_back(
            [d if zone is None else (1 - zone[t]) * d for d, zone in zip(d_after, zones, strict=True)],
            [np.where(course.carries[t], state[t + course.before], 0) for state in states],
            [state[t] for state in computed],
            [value[t] for value in kept[: cell.kept]],
            through_weights,
            vectors,
        )
        d_before = tuple(
            d if zone is None else d + zone[t] * past for d, zone, past in zip(d_before, zones, d_after, strict=True)
        )
        # Past its end a row has no step: what came in at its last state goes by.
        d_states = tuple(
            np.where(course.runs[t], np.where(course.carries[t], d, 0), past)
            for d, past in zip(d_before, d_states, strict=True)
        )
        for name, d in d_vectors.items():
            gradients[f"{name}_l0"] += d.sum(axis=0)

    gradients["weight_ih_l0"] = outer(d_from_input, x)
    if "bias_ih_l0" in weights:
        gradients["bias_ih_l0"] = d_from_input.sum(axis=(0, 1))
    for gates, pairs in products.items():
        d, operand = (np.stack(steps) for steps in zip(*pairs, strict=True))
        recurrent.differentiate(d, operand, gates, gradients)
    return Backward(gradients, affine(d_from_input, W_ih.T), d_states)


class Course(NamedTuple):
    """How the options lead through the steps.

    order: of the steps. before, after: what to add to t for the index of the states before and after step t.
    first, last: the index of each row's initial and last state. runs (T, N, 1): whether the row has the step; carries:
    and also sees the states before it.
    """

    order: range
    before: int
    after: int
    first: NDArray[np.integer[Any]]
    last: NDArray[np.integer[Any]]
    runs: NDArray[np.bool_]
    carries: NDArray[np.bool_]

    def within(self, a: Array) -> Array:
        """a (T, N, any), 0 past the end, whatever is there: `a` itself if all rows are whole."""
        return a if self.runs.all() else np.where(self.runs, a, 0)


def plan(
    T: int,
    N: int,
    reverse: bool,
    lengths: NDArray[np.integer[Any]] | None,
    reset: NDArray[np.bool_] | None,
) -> Course:
    start, end = np.zeros(N, np.int64), np.full(N, T) if lengths is None else np.asarray(lengths)
    runs = (np.arange(T)[:, None] < end)[..., None]
    carries = runs if reset is None else runs & ~reset[..., None]
    if reverse:
        return Course(range(T)[::-1], 1, 0, end, start, runs, carries)
    return Course(range(T), 0, 1, start, end, runs, carries)


def spread(zoneout: Zoneout | None, cell: Cell, shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[Array | None]:
    """The zones of each state, (T, N, H), or None."""
    if zoneout is None:
        return [None for _ in cell.states]
    return [None if zone is None else np.broadcast_to(np.asarray(zone, dtype), shape) for zone in zoneout]


class Recurrent:
    """The product W_hh (m * v) + b_hh of whatever operand v (N, H) a cell asks for, and the way back through it.

    m is the mask of recurrent dropout. Of an IndRNN, W_hh is diagonal: the vector "recurrent", and no bias.
    """

    def __init__(self, gates: str, weights: Mapping[str, Array], mask: Array | None) -> None:
        self._gates, self._weights = gates, weights
        self._mask = None if mask is None else mask.astype(weights["weight_ih_l0"].dtype, copy=False)
        self._diagonal = weights.get("recurrent_l0")

    def product(self, operand: Array, gates: str | None = None) -> Array:
        """`cells.FromHidden`."""
        operand = self._masked(operand)
        if self._diagonal is not None:
            return self._diagonal * operand
        part, bias = self._rows(gates), self._weights.get("bias_hh_l0")
        return affine(operand, self._weights["weight_hh_l0"][part], None if bias is None else bias[part])

    def product_back(self, d: Array, gates: str | None = None) -> Array:
        """The gradient of the operand from that of the product."""
        if self._diagonal is not None:
            return self._masked(self._diagonal * d)
        return self._masked(d @ self._weights["weight_hh_l0"][self._rows(gates)])

    def differentiate(self, d: Array, operand: Array, gates: str, gradients: Mapping[str, Array]) -> None:
        """Write the gradients of the rows of `gates`, from those of the products in all steps and their operands."""
        operand = self._masked(operand)
        if self._diagonal is not None:
            gradients["recurrent_l0"][...] = (d * operand).sum(axis=(0, 1))
            return
        gradients["weight_hh_l0"][self._rows(gates)] = outer(d, operand)
        if "bias_hh_l0" in gradients:
            gradients["bias_hh_l0"][self._rows(gates)] = d.sum(axis=(0, 1))

    def _masked(self, a: Array) -> Array:
        return a if self._mask is None else self._mask * a

    def _rows(self, gates: str | None) -> slice:
        """Where the rows of these neighbours are among those of all gates."""
        if gates is None:
            return slice(None)
        H = self._weights["weight_hh_l0"].shape[1]
        first = self._gates.index(gates)
        return slice(first * H, (first + len(gates)) * H)


def affine(a: Array, weight: Array, bias: Array | None = None) -> Array:
    """a W^T + b over the last axis of a, as one matrix product."""
    product = rows(a) @ weight.T
    if bias is not None:
        product += bias
    return product.reshape(*a.shape[:-1], weight.shape[0])


def outer(d: Array, a: Array) -> Array:
    """The sum over time and batch of the outer products d_t a_t^T, as one matrix product."""
    return rows(d).T @ rows(a)


def rows(a: Array) -> Array:
    """a with all axes but the last made one. (Not reshape(-1, ...), which can't tell how many rows an empty
    array has.)
    """
    count = 1
    for extent in a.shape[:-1]:
        count *= extent
    return a.reshape(count, a.shape[-1])
