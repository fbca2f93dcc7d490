"""The reference of `rnn.baselines` as a backend: float32 and float64, no kernels needed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..baselines import recurrence
from ..baselines.cells import CELLS
from .base import Array, Backend, Gradients, Tape


class NumpyBackend:
    name = "numpy"
    schedule: str | None = None

    def forward(self, cell: str, x: Array, h0: Array, weights: Mapping[str, Array]) -> Tape:
        with _quiet():
            return Tape(*recurrence.forward(CELLS[cell], x, (h0,), weights))

    def bptt(
        self,
        cell: str,
        x: Array,
        weights: Mapping[str, Array],
        tape: Tape,
        d_output: Array,
        d_state: Array | None,
    ) -> Gradients:
        d_last = np.zeros_like(tape.states[0][-1]) if d_state is None else d_state
        with _quiet():
            gradients = recurrence.bptt(CELLS[cell], x, weights, tape.states, tape.gates, d_output, (d_last,))
        return Gradients(gradients.weights, gradients.x, gradients.initial[0])


def _quiet() -> np.errstate:
    """NaN and infinity go through without a warning, as they do in the kernels: the loss shows them."""
    return np.errstate(over="ignore", under="ignore", invalid="ignore")


def load(schedule: str | None = None) -> Backend:
    """The NumPy backend. Raises ValueError if a schedule is asked for: it has none to choose from."""
    if schedule is not None:
        raise ValueError(f"schedule: the numpy backend has none to choose from, got {schedule!r}")
    return NumpyBackend()
