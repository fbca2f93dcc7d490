"""The reference engine: a recurrent layer with a linear readout, forward and back through time, in NumPy.

Forward, for t = 1..T:      h_t = cell(W_ih x_t + b_ih, W_hh h_{t-1} + b_hh)        y_t = W_ho h_t + b_o
Backward, for t = T..1:     dh_t = W_ho^T dy_t + (what came back from step t+1)     d_t = cell'(dh_t)
Gradients, summed over t:   dW_ih = d_t x_t^T           dW_hh = d_t h_{t-1}^T           dW_ho = dy_t h_t^T

BPTT as in Werbos, "Backpropagation through time: what it does and how to do it", 1990: one sweep, whose cost
is linear in the length of the sequence (the well-known tutorial's starts anew at each output: quadratic).
What does not depend on the step before is one matrix product over all T*N rows: the input projection, the
readout, and each weight's gradient.

Axes: T time, N batch, I input, H hidden, G gates, O output. Any of them may be 0. Works in the dtype of its
arguments, float32 or float64. Nothing is checked here: the layer does that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .cells import Array, Cell, States


class Forward(NamedTuple):
    """What a forward pass leaves: states (T+1, N, H) each, kept (T, N, H) each, output (T, N, O or H)."""

    states: States
    kept: States
    output: Array


class Backward(NamedTuple):
    """Gradients of the weights (by name), of x (T, N, I), and of the initial states, (N, H) each."""

    weights: dict[str, Array]
    x: Array
    initial: States


def forward(cell: Cell, x: Array, initial: Sequence[Array], weights: Mapping[str, Array]) -> Forward:
    """Run `cell` over x (T, N, I) from the `initial` states, (N, H) each.

    weights: weight_ih_l0 (G*H, I), weight_hh_l0 (G*H, H); optionally bias_ih_l0 and bias_hh_l0 (G*H,), and
    for a readout weight_ho (O, H) and bias_o (O,).
    """
    T = x.shape[0]
    W_hh, b_hh = weights["weight_hh_l0"], weights.get("bias_hh_l0")
    states = tuple(np.empty((T + 1, *first.shape), x.dtype) for first in initial)
    kept = tuple(np.empty((T, *initial[0].shape), x.dtype) for _ in range(cell.kept))
    for state, first in zip(states, initial, strict=True):
        state[0] = first

    from_input = affine(x, weights["weight_ih_l0"], weights.get("bias_ih_l0"))
    for t in range(T):
        from_hidden = affine(states[0][t], W_hh, b_hh)
        after, keep = cell.step(from_input[t], from_hidden, [state[t] for state in states])
        for sequence, value in zip(states, after, strict=True):
            sequence[t + 1] = value
        for sequence, value in zip(kept, keep, strict=True):
            sequence[t] = value

    output = states[0][1:]
    if "weight_ho" in weights:
        output = affine(output, weights["weight_ho"], weights.get("bias_o"))
    return Forward(states, kept, output)


def bptt(
    cell: Cell,
    x: Array,
    weights: Mapping[str, Array],
    states: Sequence[Array],
    kept: Sequence[Array],
    d_output: Array,
    d_last: Sequence[Array],
) -> Backward:
    """Gradients of a loss, from those of the output (T, N, O or H) and of the last states, (N, H) each.

    `states` and `kept` are what `forward` returned for the same `x` and `weights`.
    """
    T, N, _ = x.shape
    W_ih, W_hh = weights["weight_ih_l0"], weights["weight_hh_l0"]
    hidden = states[0]
    gradients: dict[str, Array] = {}

    d_hidden = d_output  # what reaches each h_t from its own output
    if "weight_ho" in weights:
        d_hidden = affine(d_output, weights["weight_ho"].T)
        gradients["weight_ho"] = outer(d_output, hidden[1:])
        if "bias_o" in weights:
            gradients["bias_o"] = d_output.sum(axis=(0, 1))

    d_from_input = np.empty((T, N, W_ih.shape[0]), x.dtype)
    d_from_hidden = np.empty_like(d_from_input)
    d_states = tuple(d.copy() for d in d_last)
    for t in reversed(range(T)):
        d_from_input[t], d_from_hidden[t], d_states = cell.step_back(
            (d_states[0] + d_hidden[t], *d_states[1:]),
            [state[t] for state in states],
            [state[t + 1] for state in states],
            [value[t] for value in kept],
            lambda d: d @ W_hh,
        )

    gradients["weight_ih_l0"] = outer(d_from_input, x)
    gradients["weight_hh_l0"] = outer(d_from_hidden, hidden[:-1])
    if "bias_ih_l0" in weights:
        gradients["bias_ih_l0"] = d_from_input.sum(axis=(0, 1))
        gradients["bias_hh_l0"] = d_from_hidden.sum(axis=(0, 1))
    return Backward({name: gradients[name] for name in weights}, affine(d_from_input, W_ih.T), d_states)


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
