"""Theano as a backend: float32 and float64, in a process of its own, with a Python of its own."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .. import baselines
from .._threads import get_num_threads
from ..backend import BackendUnavailable
from ..baselines import theano_environment
from ..baselines.remote import Answer, Remote
from ..cells import CellEquations
from . import numpy as reference
from .base import Array, Backend, Gradients, Tape, Walk

CELLS = ("rnn_tanh", "rnn_sigmoid", "rnn_relu", "lstm", "gru")
WORKER = Path(baselines.__file__).with_name("theano_worker.py")


class TheanoBackend:
    """Sends whole sequences to one worker process, which starts at the first call, and anew where it ended.

    Theano compiles at the first call for each cell, dtype and set of weights, and for one lane apart from several: some
    seconds, and a minute more where it has never compiled before. What goes wrong there is a `remote.RemoteError`.
    """

    name = "theano"
    schedule: str | None = None

    def __init__(self, python: Path) -> None:
        self._command = [str(python), "-I", "-W", "ignore", str(WORKER)]
        self._empty = reference.NumpyBackend()  # where nothing is to be computed
        self._lock = threading.Lock()
        self._remote: Remote | None = None
        self._parents: list[Remote] = []
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self._close)

    def forward(
        self,
        cell: CellEquations,
        x: Array,
        initial: Sequence[Array],
        weights: Mapping[str, Array],
        walk: Walk,
        keep: bool = True,
    ) -> Tape:
        _expect(cell, walk)
        if _is_empty(x, weights):
            return self._empty.forward(cell, x, initial, weights, walk)
        found = self._ask("forward", cell.name, {"x": x, **_named("initial", initial), **weights}).arrays
        states = tuple(np.concatenate([first[np.newaxis], found[f"state{k}"]]) for k, first in enumerate(initial))
        kept = tuple(array for name, array in found.items() if name.startswith("kept"))
        return Tape(states, kept, found["output"] if "weight_ho" in weights else states[0][1:])

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
        if _is_empty(x, weights):
            return self._empty.bptt(cell, x, weights, tape, d_output, d_last, walk, of_x)
        last = [np.zeros_like(state[-1]) if d is None else d for state, d in zip(tape.states, d_last, strict=True)]
        arrays = {"x": x, **_named("state", tape.states), **_named("kept", tape.kept), "d_output": d_output}
        found = self._ask("bptt", cell.name, {**arrays, **_named("d_last", last), **weights}).arrays
        initial = tuple(found[f"initial{k}"] for k in range(len(last)))
        return Gradients({name: found[name] for name in weights}, found["x"], initial)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return self._empty.linear(x, weight, bias)

    def linear_bptt(self, x: Array, weight: Array, d_output: Array) -> tuple[Array, Array, Array]:
        return self._empty.linear_bptt(x, weight, d_output)

    def _ask(self, do: str, cell: str, arrays: Mapping[str, Array]) -> Answer:
        with self._lock:
            if self._remote is None or self._remote.process.poll() is not None:
                self._close()
                self._remote = Remote(self._command)
            remote = self._remote
        return remote.ask(do, arrays, cell=cell, threads=get_num_threads())

    def _forget(self) -> None:
        """In the child of a fork: the worker is the parent's. It is not dropped, which would take it for lost."""
        self._lock = threading.Lock()
        if self._remote is not None:
            self._parents.append(self._remote)
            self._remote = None

    def _close(self) -> None:
        if self._remote is not None:
            self._remote.close()


def _expect(cell: CellEquations, walk: Walk) -> None:
    """Raises BackendUnavailable for what its graphs don't have."""
    if cell.name not in CELLS:
        raise BackendUnavailable(f"theano: expected one of the cells {', '.join(CELLS)}, got {cell.name}")
    if not walk.is_plain:
        raise BackendUnavailable("theano: expected whole rows, forward in time, without masks")


def _named(name: str, arrays: Sequence[Array]) -> dict[str, Array]:
    """name0, name1, ..."""
    return {f"{name}{k}": array for k, array in enumerate(arrays)}


def _is_empty(x: Array, weights: Mapping[str, Array]) -> bool:
    return 0 in x.shape or any(weight.size == 0 for weight in weights.values())


def load(schedule: str | None = None) -> Backend:
    """Theano. Raises BackendUnavailable without its environment, ValueError if a schedule is asked for."""
    if schedule is not None:
        raise ValueError(f"schedule: the theano backend has none to choose from, got {schedule!r}")
    try:
        return TheanoBackend(theano_environment.python())
    except theano_environment.NoTheano as reason:
        raise BackendUnavailable(str(reason)) from reason
