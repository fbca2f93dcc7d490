"""A backend over another one that keeps the states at the borders of segments in time alone, and computes the rest
again on the way back, a segment at a time: Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory
cost", 2016, with segments of about sqrt(T) steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from .._memory import empty
from ..cells import CellEquations
from .base import Array, Backend, Gradients, Tape, Walk


class Borders(Tape):
    """`states` are those before each segment, in the order in which the segments are walked through, and at the end
    the last ones of each row: (segments + 1, N, H) each."""

    def last(self, walk: Walk) -> list[Array]:
        return [states[-1] for states in self.states]


class Segments:
    """Outputs and the gradients of x and of the initial states have the bits of the backend below, if what that
    computes of a step does not depend on how many steps it is given (NumPy's products do). The weights' gradients are
    summed segment by segment."""

    def __init__(self, below: Backend, steps: int) -> None:
        self.name, self.schedule = below.name, below.schedule
        self._below, self._steps = below, steps

    def forward(
        self,
        cell: CellEquations,
        x: Array,
        initial: Sequence[Array],
        weights: Mapping[str, Array],
        walk: Walk,
        keep: bool = True,
    ) -> Tape:
        output: Array | None = None
        borders = [list(initial)]
        for start, stop in self._spans(len(x), walk):
            within = _within(walk, start, stop)
            tape = self._below.forward(cell, x[start:stop], borders[-1], weights, within, keep=False)
            if output is None:
                output = empty((len(x), *tape.output.shape[1:]), x.dtype)
            output[start:stop] = tape.output
            borders.append([np.array(state) for state in tape.last(within)])
        assert output is not None
        return Borders(tuple(np.stack(states) for states in zip(*borders, strict=True)), None, output)

    def bptt(
        self,
        cell: CellEquations,
        x: Array,
        weights: Mapping[str, Array],
        tape: Tape,
        d_output: Array,
        d_last: Sequence[Array | None],
        walk: Walk,
    ) -> Gradients:
        d_x = empty(x.shape, x.dtype)
        sums: dict[str, Array] = {}
        for number, (start, stop) in reversed(list(enumerate(self._spans(len(x), walk)))):
            within, piece = _within(walk, start, stop), x[start:stop]
            again = self._below.forward(cell, piece, [states[number] for states in tape.states], weights, within)
            made = self._below.bptt(cell, piece, weights, again, d_output[start:stop], d_last, within)
            d_x[start:stop] = made.x
            sums = {name: sums[name] + one if sums else one for name, one in made.weights.items()}
            d_last = made.initial
        return Gradients(sums, d_x, tuple(d for d in d_last if d is not None))

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return self._below.linear(x, weight, bias)

    def linear_bptt(self, x: Array, weight: Array, d_output: Array) -> tuple[Array, Array, Array]:
        return self._below.linear_bptt(x, weight, d_output)

    def _spans(self, T: int, walk: Walk) -> list[tuple[int, int]]:
        """(start, stop) of equally long segments, in the order of the walk."""
        count = max(1, math.ceil(T / self._steps))
        spans = list(pairwise(T * number // count for number in range(count + 1)))
        return spans[::-1] if walk.reverse else spans


def _within(walk: Walk, start: int, stop: int) -> Walk:
    """The walk through a segment. A row that has none of its steps has the length 0 there, so that its state goes by
    as it is: in reverse the initial one until the row's end comes, forward the last one from there on."""
    return walk._replace(
        lengths=None if walk.lengths is None else np.clip(walk.lengths - np.int32(start), 0, stop - start),
        reset=None if walk.reset is None else walk.reset[start:stop],
        zoneout=None if walk.zoneout is None else tuple(share[start:stop] for share in walk.zoneout),
    )
