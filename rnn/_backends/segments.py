"""A backend over another one that keeps the states at the borders of segments in time alone, and computes the rest
again on the way back, a segment at a time: Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory
cost", 2016, with segments of about sqrt(T) steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._memory import empty
from ..cells import CellEquations
from .base import Array, Backend, Gradients, Tape, Walk
from .packing import frozen

SEGMENT_ROWS = 1024
"""Rows of work that a segment has at the least, unless it is told its steps: each is several calls of kernels. An LSTM
with I = H = 64, N = 1 and T = 2000 takes 1.9 times as long as without segments in those of 44 steps, 1.2 in two of
1000; a GRU with I = H = 256, N = 8 and T = 1000 1.4 in segments of 31 steps, 1.3 in those of 128."""


class Borders(Tape):
    """`states` are those before each segment, in the order in which the segments are walked through, and at the end
    the last ones of each row: (segments + 1, N, H) each. `kept` is the tape of the last segment, the first one on the
    way back."""

    def last(self, walk: Walk) -> list[Array]:
        return [states[-1] for states in self.states]


class Segments:
    """Outputs and the gradients of x and of the initial states have the bits of the backend below, if what that
    computes of a step does not depend on how many steps it is given (NumPy's products do). The weights' gradients are
    summed segment by segment."""

    def __init__(self, below: Backend, remat: bool | int) -> None:
        """`remat`: the steps of a segment, or True: about sqrt(T)."""
        self.name, self.schedule = below.name, below.schedule
        self._below, self._remat = below, remat

    def forward(
        self,
        cell: CellEquations,
        x: Array,
        initial: Sequence[Array],
        weights: Mapping[str, Array],
        walk: Walk,
        keep: bool = True,
    ) -> Tape:
        spans, weights = self._spans(x, walk), frozen(weights)  # all segments share what is packed
        output: Array | None = None
        borders = [list(initial)]
        for number, (start, stop) in enumerate(spans, 1):
            within, last = _within(walk, start, stop, x.dtype, number == 1), number == len(spans)
            tape = self._below.forward(cell, x[start:stop], borders[-1], weights, within, keep=last)
            if output is None:
                output = empty((len(x), *tape.output.shape[1:]), x.dtype)
            output[start:stop] = tape.output
            borders.append([np.array(state) for state in tape.last(within)])
        assert output is not None
        return Borders(tuple(np.stack(states) for states in zip(*borders, strict=True)), tape, output)

    def bptt(
        self,
        cell: CellEquations,
        x: Array,
        weights: Mapping[str, Array],
        tape: Tape,
        d_output: Array,
        d_last: Sequence[Array | None],
        walk: Walk,
        of_x: bool = True,
        of_state: bool = True,
    ) -> Gradients:
        weights = frozen(weights)
        d_x = empty(x.shape if of_x else (*x.shape[:2], 0), x.dtype)
        sums: dict[str, Array] = {}
        # The output is known: computing that again, too, took 1.05 of the time with I, H, O = 64, 256, 64.
        recurrent = {name: weight for name, weight in weights.items() if name not in ("weight_ho", "bias_o")}
        again = tape.kept
        for number, (start, stop) in reversed(list(enumerate(self._spans(x, walk)))):
            within, piece = _within(walk, start, stop, x.dtype, number == 0), x[start:stop]
            if again is None:
                before = [states[number] for states in tape.states]
                again = self._below.forward(cell, piece, before, recurrent, within)
            made = self._below.bptt(
                cell, piece, weights, again, d_output[start:stop], d_last, within, of_x, of_state or number > 0
            )
            again = None
            if of_x:
                d_x[start:stop] = made.x
            sums = {name: sums[name] + one if sums else one for name, one in made.weights.items()}
            d_last = made.initial
        return Gradients(sums, d_x, tuple(d for d in d_last if d is not None))

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return self._below.linear(x, weight, bias)

    def linear_bptt(self, x: Array, weight: Array, d_output: Array) -> tuple[Array, Array, Array]:
        return self._below.linear_bptt(x, weight, d_output)

    def _spans(self, x: Array, walk: Walk) -> list[tuple[int, int]]:
        """(start, stop) of each segment, in the order of the walk. All but one are of one length, so that their arrays
        take turns in the same memory: 0.95 of the time of lengths that differ by one step."""
        T, N, _ = x.shape
        steps = max(math.isqrt(T), SEGMENT_ROWS // max(N, 1), 1) if self._remat is True else self._remat
        even = max(1, math.ceil(T / max(1, math.ceil(T / steps))))
        spans = [(start, min(start + even, T)) for start in range(0, max(T, 1), even)]
        return spans[::-1] if walk.reverse else spans


def _within(walk: Walk, start: int, stop: int, dtype: np.dtype[Any], first: bool) -> Walk:
    """The walk through a segment, `first` if it begins there. A row that has none of its steps has the length 0 there,
    so that its state goes by as it is: in reverse the initial one until the row's end comes, forward the last one from
    there on."""
    lengths, reset, zoneout = walk.lengths, walk.reset, walk.zoneout
    return walk._replace(
        from_zeros=walk.from_zeros and first,
        lengths=None if lengths is None else np.clip(lengths - np.int32(start), 0, stop - start),
        reset=None if reset is None else reset[start:stop],
        zoneout=None if zoneout is None else tuple(share[start:stop].astype(dtype, copy=False) for share in zoneout),
    )
