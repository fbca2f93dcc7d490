"""The reference engine as a backend, so that layers run on what everything else is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from rnn import backend
from rnn._backends.base import Array, Gradients, Tape, Walk
from rnn._backends.numpy import options
from rnn.baselines import recurrence
from rnn.baselines.cells import CELLS
from rnn.cells import CellEquations


class ReferenceBackend:
    name = "reference"
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
        run = recurrence.forward(CELLS[cell.name], x, initial, weights, **options(walk))
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
        last = [np.zeros(tape.states[0].shape[1:], x.dtype) if d is None else d for d in d_last]
        made = recurrence.bptt(CELLS[cell.name], x, weights, tape.states, tape.kept, d_output, last, **options(walk))
        return Gradients(made.weights, made.x, made.initial)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        product: Array = np.einsum("tni,oi->tno", x, weight)
        return product if bias is None else product + bias

    def linear_bptt(self, x: Array, weight: Array, d_output: Array) -> tuple[Array, Array, Array]:
        d_x, d_weight = np.einsum("tno,oi->tni", d_output, weight), np.einsum("tno,tni->oi", d_output, x)
        return d_x, d_weight, d_output.sum(axis=(0, 1))


@contextmanager
def on_the_reference() -> Iterator[None]:
    """Layers run on it inside a `with` block."""
    token = backend._chosen.set(ReferenceBackend())
    try:
        yield
    finally:
        backend._chosen.reset(token)
