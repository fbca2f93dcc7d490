"""The equations of one time step, and of its derivative, one class a cell.

A cell sees the two products that the engine (`recurrence.py`) makes for it, `from_input = W_ih x_t + b_ih`
and `from_hidden = W_hh h_{t-1} + b_hh`, both (N, G*H), and its states before the step, each (N, H), of which
the first is h. The products come apart, not summed, because the GRU gates one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
States = tuple[Array, ...]


class Cell(Protocol):
    """A recurrent cell. `kept`: how many values, (N, H), a step leaves for BPTT besides its states."""

    kept: int

    def step(self, from_input: Array, from_hidden: Array, before: Sequence[Array]) -> tuple[States, States]:
        """The states after the step and the `kept` further values that `step_back` wants to see again."""
        ...

    def step_back(
        self,
        d_after: Sequence[Array],
        before: Sequence[Array],
        after: Sequence[Array],
        kept: Sequence[Array],
        through_weights: Callable[[Array], Array],
    ) -> tuple[Array, Array, States]:
        """Gradients of `from_input`, of `from_hidden` and of the states before the step, from those after it.

        `through_weights` takes a gradient of `from_hidden` to the h that it was made from: d -> d W_hh.
        """
        ...


class Elman:
    """h_t = act(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), Elman, "Finding structure in time", 1990.

    `slope` is the derivative of `act`, written in terms of its result h, so that BPTT keeps nothing but h.
    """

    kept = 0

    def __init__(self, act: Callable[[Array], Array], slope: Callable[[Array], Array]) -> None:
        self.act = act
        self.slope = slope

    def step(self, from_input: Array, from_hidden: Array, before: Sequence[Array]) -> tuple[States, States]:
        return (self.act(from_input + from_hidden),), ()

    def step_back(
        self,
        d_after: Sequence[Array],
        before: Sequence[Array],
        after: Sequence[Array],
        kept: Sequence[Array],
        through_weights: Callable[[Array], Array],
    ) -> tuple[Array, Array, States]:
        delta = d_after[0] * self.slope(after[0])
        return delta, delta, (through_weights(delta),)


def tanh(a: Array) -> Array:
    return np.tanh(a)


def tanh_slope(h: Array) -> Array:
    return 1 - h * h


def sigmoid(a: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-a) = inf gives the right 0
        return 1 / (1 + np.exp(-a))


def sigmoid_slope(h: Array) -> Array:
    return h * (1 - h)


def relu(a: Array) -> Array:
    return np.maximum(a, 0)


def relu_slope(h: Array) -> Array:
    return (h > 0).astype(h.dtype)  # 0 at 0, as in PyTorch


CELLS: dict[str, Cell] = {
    "rnn_tanh": Elman(tanh, tanh_slope),
    "rnn_sigmoid": Elman(sigmoid, sigmoid_slope),
    "rnn_relu": Elman(relu, relu_slope),
}
