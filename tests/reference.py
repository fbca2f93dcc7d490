"""The reference engine as a backend, so that layers run on what everything else is compared with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rnn._backends.base import Array, Gradients, Tape
from rnn.baselines import recurrence
from rnn.baselines.cells import CELLS


class ReferenceBackend:
    name = "reference"
    schedule: str | None = None

    def forward(self, cell: str, x: Array, h0: Array, weights: Mapping[str, Array]) -> Tape:
        run = recurrence.forward(CELLS[cell], x, (h0,), weights)
        return Tape(run.states, run.kept, run.output)

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
        gradients = recurrence.bptt(CELLS[cell], x, weights, tape.states, tape.gates, d_output, (d_last,))
        return Gradients(gradients.weights, gradients.x, gradients.initial[0])
