"""The one table of machine knowledge: the register tiles of each class of CPU.

A tile is a block of (vectors of hidden units) x (rows) whose sums stay in registers while k runs over the whole inner
product. The recurrence, the products and the packing see this table; nothing else does.

The numbers behind it: 2-core AMD EPYC (Zen 4), AVX-512, one thread, whole RNN layer with I = H, GFLOP/s of 117 at peak:

    vectors x rows    H=16 N=512 (I=1)   H=32 N=48   H=256 N=48   H=512 N=48   H=1024 N=64
    1 x 12            20                 49          95           104          81 (panels read too often from L2)
    2 x 8             14                 50          97           104          98
    4 x 6              8 (padding)       28          100          103          95

    vectors x rows    H=1024 N=5 (T=16)   H=1024 N=4 (I=256)
    2 x 8             38                  49 (8 rows of work for 4)
    4 x 6             53                  68

    vectors x rows    H=32 N=1   H=64 N=1   H=1024 N=1
    2 x 1             29         53         40
    4 x 1             21         65         37
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class Tile(NamedTuple):
    """A register tile: vectors of units x rows x steps. The recurrence takes one step at a time; products over a
    sequence take several, so that single rows fill the registers too."""

    vectors: int
    rows: int
    steps: int = 1


class Machine(NamedTuple):
    """The tiles of one class of CPU for so many sums a unit, by the problem they suit. Each one that is there costs
    its share of compile time, some 0.1 s for each vector of the cell's equations that its block holds."""

    wide: Tile
    single: Tile | None = None  # fewer than FEW rows
    single_narrow: Tile | None = None  # fewer than FEW rows, and no more hidden units than lanes in two vectors
    some: Tile | None = None  # where it pads fewer rows than `wide`
    narrow: Tile | None = None  # no more hidden units than lanes in a vector


FEW = 4  # three single rows cost about what one padded tile of 8 does

MACHINES = {
    # 32 registers, multiply-adds with a broadcast operand from memory; a single row wants two or more sums in flight
    "avx512": {
        1: Machine(Tile(2, 8), Tile(4, 1, 6), Tile(2, 1, 8), some=Tile(4, 6), narrow=Tile(1, 12)),
        2: Machine(Tile(1, 12), Tile(4, 1, 3)),
        3: Machine(Tile(1, 8), Tile(2, 1, 4)),
        4: Machine(Tile(1, 6), Tile(2, 1, 3)),
        6: Machine(Tile(1, 4), Tile(1, 1, 4)),
        8: Machine(Tile(1, 3), Tile(1, 1, 3)),
    },
    # 16 registers: 2 x 6 sums, 2 of the weights and 2 broadcasts fill them
    "avx2": {
        1: Machine(Tile(2, 6), Tile(4, 1, 3)),
        2: Machine(Tile(1, 6), Tile(2, 1, 3)),
        3: Machine(Tile(1, 4), Tile(2, 1, 2)),
        4: Machine(Tile(1, 3), Tile(1, 1, 3)),
        8: Machine(Tile(1, 1)),
    },
    # 16 registers, and no multiply-add: every product needs one of its own
    "sse41": {
        1: Machine(Tile(2, 4)),
        2: Machine(Tile(1, 6)),
        3: Machine(Tile(1, 4)),
        4: Machine(Tile(1, 3)),
        8: Machine(Tile(1, 1)),
    },
}


LANES = {"avx512": 64, "avx2": 32, "sse41": 16}
"""Bytes in a vector."""

# Weights from which on one step is worth 1 us for a fork and join: 1024 x 1024 gains 1.35 on 2 threads.
SPLIT_UNITS = 1 << 17


def machine(instruction_set: str, sums: int, lean: bool) -> Machine:
    """The entry of the table for an instruction set and so many sums a unit: the most sums that it has for any more.
    `lean`: without the tiles that cells of several gates, whose equations are long, can do without."""
    row = MACHINES[instruction_set]
    found = row[min((most for most in row if most >= sums), default=max(row))]
    return found._replace(single_narrow=None, some=None, narrow=None) if lean else found


def blocks(extent: Any, size: Any) -> Any:
    """The number of blocks of `size` that cover `extent`, a number or an expression of Halide."""
    return (extent + (size - 1)) // size


def offers(tiles: Machine, width: Any, rows: Any, lanes: int) -> Iterator[tuple[str, Tile, Any]]:
    """(name, tile, condition) for width x rows units: the first whose condition holds is the one to use."""
    if tiles.single_narrow is not None:
        yield "single_narrow", tiles.single_narrow, (rows < FEW) & (width <= 2 * lanes)
    if tiles.single is not None:
        yield "single", tiles.single, rows < FEW
    if tiles.narrow is not None:
        yield "narrow", tiles.narrow, width <= lanes
    if tiles.some is not None:
        some, wide = (blocks(rows, tile.rows) * tile.rows for tile in (tiles.some, tiles.wide))
        yield "some", tiles.some, (width > 2 * lanes) & (some < wide)
    yield "wide", tiles.wide, rows >= 0
