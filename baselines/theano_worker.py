"""The far end of the backend `theano`: `python -I theano_worker.py`, by Theano's Python, through `remote.Remote`."""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

# This Python has no package of ours. On the search path this folder would hide NumPy behind numpy.py.
if not __package__:
    package = types.ModuleType("baselines")
    package.__path__ = [str(Path(__file__).resolve().parent)]
    sys.modules["baselines"] = package

from baselines import remote, symbolic, theano


@functools.cache
def compiled(
    make: Callable[..., symbolic.Compiled], cell: str, names: tuple[str, ...], dtype: str, one_lane: bool
) -> symbolic.Compiled:
    return make(theano.Network.library, cell, names, dtype, one_lane)


class Worker:
    """Arrays as `rnn._backends.base` has them, none empty; in a request, the weights come last."""

    def forward(self, arrays: remote.Arrays, cell: str, threads: int) -> tuple[dict[str, Any], remote.Arrays]:
        """x, the initial states and weights -> the states "state0", ... (T, N, H), what else is kept, "kept0", ..., and
        the output."""
        states, kept = symbolic.COUNTS[cell]
        names = [*(f"state{k}" for k in range(states)), *(f"kept{k}" for k in range(kept)), "output"]
        found = self._run(symbolic.compile_forward, arrays, cell, threads, first=1 + states)
        return {}, dict(zip(names, found, strict=True))

    def bptt(self, arrays: remote.Arrays, cell: str, threads: int) -> tuple[dict[str, Any], remote.Arrays]:
        """x, the states (T+1, N, H), what else was kept, d_output, the gradients of the last states, and weights -> the
        gradients of the weights, of x and of the initial states, "initial0", ..."""
        states, kept = symbolic.COUNTS[cell]
        first = 2 + 2 * states + kept
        found = self._run(symbolic.compile_bptt, arrays, cell, threads, first)
        return {}, dict(zip([*list(arrays)[first:], "x", *(f"initial{k}" for k in range(states))], found, strict=True))

    def _run(
        self, make: Callable[..., symbolic.Compiled], arrays: remote.Arrays, cell: str, threads: int, first: int
    ) -> list[Any]:
        with contextlib.suppress(ValueError):  # then as many as there are
            symbolic.set_threads(threads)
        x = arrays["x"]
        return compiled(make, cell, tuple(arrays)[first:], x.dtype.name, x.shape[1] == 1)(*arrays.values())


if __name__ == "__main__":
    remote.serve(Worker())
