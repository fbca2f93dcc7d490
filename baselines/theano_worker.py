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

    def forward(
        self, arrays: remote.Arrays, tell: remote.Tell, cell: str, threads: int
    ) -> tuple[dict[str, Any], remote.Arrays]:
        """x, h0 and weights -> states (T, N, H), output."""
        states, output = self._run(symbolic.compile_forward, arrays, cell, threads, first=2)
        return {}, {"states": states, "output": output}

    def bptt(
        self, arrays: remote.Arrays, tell: remote.Tell, cell: str, threads: int
    ) -> tuple[dict[str, Any], remote.Arrays]:
        """x, states (T+1, N, H), d_output, d_state and weights -> the gradients of the weights, x and h0."""
        found = self._run(symbolic.compile_bptt, arrays, cell, threads, first=4)
        return {}, dict(zip([*list(arrays)[4:], "x", "h0"], found, strict=True))

    def _run(
        self, make: Callable[..., symbolic.Compiled], arrays: remote.Arrays, cell: str, threads: int, first: int
    ) -> list[Any]:
        with contextlib.suppress(ValueError):  # then as many as there are
            symbolic.set_threads(threads)
        x = arrays["x"]
        return compiled(make, cell, tuple(arrays)[first:], x.dtype.name, x.shape[1] == 1)(*arrays.values())


if __name__ == "__main__":
    remote.serve(Worker())
