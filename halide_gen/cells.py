"""The equations of the cells, and nothing else: no schedule, no layout.

A cell is G gates and one or more states, the first of them h. The engine in recurrence.py forms the pre-activations
z_g = W_ih,g x_t + b_ih,g + W_hh,g h_{t-1} + b_hh,g and calls `step`; going back it forms
d_h = dL/dh_t + sum_g W_hh,g^T delta_{g,t+1} and calls `step_gradient`. Lists are in the order of the gates and states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import activations
import halide as hl


class Cell(ABC):
    """What the engine asks of a cell."""

    gates: int
    states: int

    @abstractmethod
    def step(self, z: list[hl.Expr], previous: list[hl.Expr]) -> tuple[list[hl.Expr], list[hl.Expr]]:
        """(activated gates, new states) from the pre-activations z_g and the states of the step before."""

    @abstractmethod
    def step_gradient(
        self, d_h: hl.Expr, carried: list[hl.Expr], gates: list[hl.Expr]
    ) -> tuple[list[hl.Expr], list[hl.Expr]]:
        """(delta_g = dL/dz_g, carried gradients of the further states for the step before)."""


class RNN(Cell):
    """Elman's network (Cognitive Science 14, 1990): h_t = act(z), delta_t = d_h act'(z), act' in terms of h_t."""

    gates = 1
    states = 1

    def __init__(self, activation: Callable[[hl.Expr], hl.Expr], derivative: Callable[[hl.Expr], hl.Expr]) -> None:
        self.activation = activation
        self.derivative = derivative

    def step(self, z: list[hl.Expr], previous: list[hl.Expr]) -> tuple[list[hl.Expr], list[hl.Expr]]:
        h = self.activation(z[0])
        return [h], [h]

    def step_gradient(
        self, d_h: hl.Expr, carried: list[hl.Expr], gates: list[hl.Expr]
    ) -> tuple[list[hl.Expr], list[hl.Expr]]:
        (h,) = gates
        return [d_h * self.derivative(h)], []


CELLS: dict[str, Cell] = {
    "rnn_tanh": RNN(activations.tanh, lambda h: 1 - h * h),
    "rnn_sigmoid": RNN(activations.sigmoid, lambda h: h * (1 - h)),
    # NaN must stay NaN: `h > 0` is false for it
    "rnn_relu": RNN(activations.relu, lambda h: activations.with_nan(h, hl.select(h > 0, hl.cast(h.type(), 1), 0))),
}
