"""NumPy as a backend: float32 and float64, no kernels needed. Fast where `baselines.numpy` has the cell, and for the
rest the reference, which also runs a user's own cell from its equations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from ..baselines import numpy as fast
from ..baselines import recurrence
from ..baselines.cells import CELLS, Cell
from ..cells import CellEquations
from .base import Array, Backend, Gradients, Tape, Walk
from .derived import Derived


class NumpyBackend:
    name = "numpy"
    schedule: str | None = None

    def forward(
        self,
        cell: CellEquations,
        x: Array,
        initial: Sequence[Array],
        weights: Mapping[str, Array],
        walk: Walk,
        keep: bool = True,
    ) -> Tape:
        if _is_fast(cell, walk):
            done = fast.forward(cell.name, x, initial, weights)
            return Tape(done.states, done.kept, done.output)
        run = recurrence.forward(_known(cell), x, tuple(initial), weights, **options(walk))
        return Tape(run.states, run.kept, run.output)

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
        last = tuple(np.zeros(tape.states[0].shape[1:], x.dtype) if d is None else d for d in d_last)
        if _is_fast(cell, walk):
            back = fast.bptt(cell.name, x, weights, tape.states, tape.kept, d_output, last)
        else:
            back = recurrence.bptt(_known(cell), x, weights, tape.states, tape.kept, d_output, last, **options(walk))
        return Gradients(back.weights, back.x, back.initial)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return recurrence.affine(x, weight, bias)

    def linear_bptt(self, x: Array, weight: Array, d_output: Array) -> tuple[Array, Array, Array]:
        return recurrence.affine(d_output, weight.T), recurrence.outer(d_output, x), d_output.sum(axis=(0, 1))


def _is_fast(cell: CellEquations, walk: Walk) -> bool:
    return cell.name in fast.CELLS and cell.is_built_in and walk.is_plain


@cache
def _known(cell: CellEquations) -> Cell:
    return CELLS[cell.name] if cell.is_built_in else Derived(cell)


def options(walk: Walk) -> dict[str, Any]:
    """The reference's names for them; it makes all products."""
    options = {name: option for name, option in walk._asdict().items() if name != "from_zeros"}
    return options | {"reset": None if walk.reset is None else walk.reset.astype(bool)}


def load(schedule: str | None = None) -> Backend:
    """The NumPy backend. Raises ValueError if a schedule is asked for: it has none to choose from."""
    if schedule is not None:
        raise ValueError(f"schedule: the numpy backend has none to choose from, got {schedule!r}")
    return NumpyBackend()
