"""How a pass walks through time: in which direction, how far for each row of the batch, and where it starts anew.

Slots count the states in the order in which the forward pass makes them: slot 0 holds the initial state, slot s the one
after s steps. A backward pass visits them from the last to slot 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import halide as hl


@dataclass(frozen=True)
class Walk:
    """steps: T. reverse: not 0 if time runs backwards, from each row's last step to its first. lengths (N,): steps of
    each row, 0 to T. reset (T, N), or None: not 0 where a row's states are set to zero before the step."""

    steps: hl.Expr
    reverse: hl.Expr
    lengths: hl.ImageParam
    reset: hl.ImageParam | None

    def length(self, row: hl.Expr) -> hl.Expr:
        return hl.unsafe_promise_clamped(self.lengths[row], 0, self.steps)

    def mirrored(self, s: hl.Expr, row: hl.Expr) -> hl.Expr:
        """The slot of a place in an array of states (T + 1, N, ...), or the place of a slot: forward the same number,
        in reverse counted from the row's end, so that the state after the step at time t is beside x_t either way."""
        return hl.select(self.reverse != 0, self.lengths[row] - s, s)

    def place(self, slot: hl.Expr, row: hl.Expr) -> hl.Expr:
        """Where an array of states holds a slot's, or somewhere inside if no step made it."""
        return hl.clamp(self.mirrored(slot, row), 0, self.steps)

    def time(self, slot: hl.Expr, row: hl.Expr) -> hl.Expr:
        """The time of the step that makes a slot, or some time if none does."""
        t = hl.select(self.reverse != 0, self.lengths[row] - slot, slot - 1)
        return hl.clamp(t, 0, self.steps - 1)

    def made(self, slot: hl.Expr, row: hl.Expr) -> hl.Expr:
        """Whether the slot is the initial one or a step makes it."""
        return (slot >= 0) & (slot <= self.lengths[row])

    def goes_on(self, slot: hl.Expr, row: hl.Expr) -> hl.Expr:
        """Whether the step that makes the slot sees the states before it, and not zeros."""
        assert self.reset is not None
        return self.reset[row, self.time(slot, row)] == 0
