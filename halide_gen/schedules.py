"""The schedules by name: the rungs of the ladder from what a beginner writes to what the library runs.

naive       one value at a time, one thread
vectorized  a vector of hidden units at a time
parallel    and rows of the batch over the threads
tiled       and a block of vectors and rows in registers
tuned       and the block that suits the sizes, and hidden units over the threads where there are too few rows

Beside them, for the JIT alone: li2018, what Halide's autoscheduler of that name makes of the naive algorithm. Its other
two do not get through a recurrence (Halide 21): Mullapudi2016 gives up without a word; Adams2019 schedules the forward
pass in half a minute, which then takes three quarters of Li2018's time, but reorders BPTT's update in a way that Halide
refuses, and ends the process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from machine import FUSED, LANES, Lean, Machine, Tile, machine, tile_of_float64

if TYPE_CHECKING:
    import halide as hl  # whoever calls compiled kernels asks for their tiles too, and has no Halide


@dataclass(frozen=True)
class Schedule:
    """Which of the engine's liberties a schedule takes."""

    lanes: int  # values in a vector
    fused: bool  # whether a product and a sum are one instruction
    # (sums a unit, with how few tiles to do) -> one register tile, or several to choose from at run time
    tiles: Callable[[int, Lean], Tile | Machine]
    parallel: bool  # rows over the threads
    split_units: bool  # hidden units of one time step over the threads
    by_hand: bool = True  # False: nothing is scheduled, an autoscheduler will


NAMES = ("naive", "vectorized", "parallel", "tiled", "tuned")
AUTOMATIC = ("li2018",)


def instruction_set(target: hl.Target) -> str:
    """A row of the machine table for a target: the safe one, SSE4.1, for what it does not know."""
    import halide as hl

    if target.has_feature(hl.TargetFeature.AVX512_Skylake):
        return "avx512"
    return "avx2" if target.has_feature(hl.TargetFeature.AVX2) else "sse41"


def schedule(name: str, target: hl.Target, dtype: hl.Type) -> Schedule:
    """The schedule `name` for a target; ValueError for any other."""
    return schedule_for(name, instruction_set(target), dtype.bytes())


def schedule_for(name: str, instructions: str, size: int) -> Schedule:
    """The schedule `name` for an instruction set, and numbers of so many bytes; ValueError for any other."""
    lanes, fused = LANES[instructions] // size, FUSED[instructions]

    def one(sums: int, lean: Lean) -> Tile:
        return Tile(1, 1)

    def wide(sums: int, lean: Lean) -> Tile:
        return machine(instructions, sums, lean).wide

    def tuned(sums: int, lean: Lean) -> Tile | Machine:
        if size == 8:
            return tile_of_float64(instructions, sums, lean)
        return machine(instructions, sums, lean)

    known = {
        "naive": Schedule(1, fused, one, parallel=False, split_units=False),
        "vectorized": Schedule(lanes, fused, one, parallel=False, split_units=False),
        "parallel": Schedule(lanes, fused, one, parallel=True, split_units=False),
        "tiled": Schedule(lanes, fused, wide, parallel=True, split_units=False),
        "tuned": Schedule(lanes, fused, tuned, parallel=True, split_units=True),
        **{auto: Schedule(1, fused, one, parallel=False, split_units=False, by_hand=False) for auto in AUTOMATIC},
    }
    if name not in known:
        raise ValueError(f"schedule: expected one of {', '.join(known)}, got {name!r}")
    return known[name]
