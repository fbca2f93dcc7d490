"""What is compared, and where each of it runs."""

from __future__ import annotations

import sys
from typing import NamedTuple

from rnn._backends.halide import SCHEDULES
from rnn._backends.halide_jit import AUTOMATIC
from rnn.baselines import theano_environment

OURS = "halide"
REMAT = f"{OURS}, remat"
REFERENCE = "numpy"


class Implementation(NamedTuple):
    """One contestant; each worker process runs one."""

    module: str
    """That has `Network`, `set_threads` and `versions` (see baselines/network.py)."""
    backend: str = ""
    """For our own layers, backend and schedule: "halide", "halide-jit naive"."""
    option: str = ""
    """"NAME=NUMBER": a further argument of its `Network`."""
    peer: bool = False
    """Whether it needs the extra `peers`."""


IMPLEMENTATIONS = {
    OURS: Implementation("bench.ours", OURS),
    REFERENCE: Implementation("baselines.numpy"),
    "theano": Implementation("baselines.theano"),
    "pytensor": Implementation("baselines.pytensor", peer=True),
    "pytorch": Implementation("baselines.pytorch", peer=True),
    "jax": Implementation("baselines.jax", peer=True),
    "tutorial": Implementation("baselines.tutorial"),
    "tutorial, truncated": Implementation("baselines.tutorial", option="bptt_truncate=4"),
    REMAT: Implementation("bench.ours", OURS, option="remat=1"),
    **{f"{OURS} {name}": Implementation("bench.ours", f"{OURS} {name}") for name in SCHEDULES},
    **{f"{OURS}-jit {name}": Implementation("bench.ours", f"{OURS}-jit {name}") for name in SCHEDULES + AUTOMATIC},
}

RIVALS = (OURS, REFERENCE, "theano")
PEERS = tuple(name for name, implementation in IMPLEMENTATIONS.items() if implementation.peer)


def command(name: str) -> list[str]:
    """The interpreter that runs it, with its options. Raises NoTheano, which says what is missing."""
    if name == "theano":
        return [str(theano_environment.python()), "-I", "-W", "ignore"]
    return [sys.executable]
