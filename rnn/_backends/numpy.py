"""NumPy as a backend, as fast as NumPy is: float32 and float64, no kernels needed."""

from __future__ import annotations

from collections.abc import Mapping

from ..baselines import numpy as fast
from .base import Array, Backend, Gradients, Tape


class NumpyBackend:
    name = "numpy"
    schedule: str | None = None

    def forward(self, cell: str, x: Array, h0: Array, weights: Mapping[str, Array]) -> Tape:
        return Tape(*fast.forward(cell, x, (h0,), weights))

    def bptt(
        self,
        cell: str,
        x: Array,
        weights: Mapping[str, Array],
        tape: Tape,
        d_output: Array,
        d_state: Array | None,
    ) -> Gradients:
        d_last = None if d_state is None else (d_state,)
        gradients = fast.bptt(cell, x, weights, tape.states, tape.gates, d_output, d_last)
        return Gradients(gradients.weights, gradients.x, gradients.initial[0])


def load(schedule: str | None = None) -> Backend:
    """The NumPy backend. Raises ValueError if a schedule is asked for: it has none to choose from."""
    if schedule is not None:
        raise ValueError(f"schedule: the numpy backend has none to choose from, got {schedule!r}")
    return NumpyBackend()
