"""The schedules by name: the rungs of the ladder from what a beginner writes to what the library runs.

naive       one value at a time, one thread
vectorized  a vector of hidden units at a time
parallel    and rows of the batch over the threads
tiled       and a block of vectors and rows in registers
tuned       and the block that suits the sizes, and hidden units over the threads where there are too few rows
"""

from __future__ import annotations

from dataclasses import dataclass

import halide as hl
from machine import Machine, Tile, machine


@dataclass(frozen=True)
class Schedule:
    """Which of the engine's liberties a schedule takes."""

    lanes: int  # values in a vector
    tile: Tile | Machine  # one register tile for everything, or the machine's, to choose from at run time
    parallel: bool  # rows over the threads
    split_units: bool  # hidden units of one time step over the threads


NAMES = ("naive", "vectorized", "parallel", "tiled", "tuned")


def schedule(name: str, target: hl.Target, dtype: hl.Type) -> Schedule:
    """The schedule `name` for a target; ValueError for a name not in NAMES."""
    lanes, tiles = target.natural_vector_size(dtype), machine(target)
    known = {
        "naive": Schedule(1, Tile(1, 1), parallel=False, split_units=False),
        "vectorized": Schedule(lanes, Tile(1, 1), parallel=False, split_units=False),
        "parallel": Schedule(lanes, Tile(1, 1), parallel=True, split_units=False),
        "tiled": Schedule(lanes, tiles.wide, parallel=True, split_units=False),
        "tuned": Schedule(lanes, tiles, parallel=True, split_units=True),
    }
    if name not in known:
        raise ValueError(f"schedule: expected one of {', '.join(NAMES)}, got {name!r}")
    return known[name]
