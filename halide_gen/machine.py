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

from typing import NamedTuple

import halide as hl


class Tile(NamedTuple):
    """A register tile: vectors of units x rows x steps. The recurrence takes one step at a time; products over a
    sequence take several, so that single rows fill the registers too."""

    vectors: int
    rows: int
    steps: int = 1


class Machine(NamedTuple):
    """The tiles of one class of CPU, by the problem they suit."""

    wide: Tile
    some: Tile  # where it pads fewer rows than `wide`
    narrow: Tile  # no more hidden units than lanes in a vector
    single: Tile  # fewer than FEW rows
    single_narrow: Tile  # fewer than FEW rows, and no more hidden units than lanes in two vectors


FEW = 4  # three single rows cost about what one padded tile of 8 does

MACHINES = {
    # 32 registers, multiply-adds with a broadcast operand from memory; a single row wants two or more sums in flight
    "avx512": Machine(
        wide=Tile(2, 8), some=Tile(4, 6), narrow=Tile(1, 12), single=Tile(4, 1, 6), single_narrow=Tile(2, 1, 8)
    ),
    # 16 registers: 2 x 6 sums, 2 of the weights and 2 broadcasts fill them
    "avx2": Machine(
        wide=Tile(2, 6), some=Tile(2, 4), narrow=Tile(1, 8), single=Tile(4, 1, 3), single_narrow=Tile(2, 1, 6)
    ),
    # 16 registers, and no multiply-add: every product needs one of its own
    "sse41": Machine(
        wide=Tile(2, 4), some=Tile(2, 4), narrow=Tile(1, 8), single=Tile(4, 1, 2), single_narrow=Tile(2, 1, 4)
    ),
}


def machine(target: hl.Target) -> Machine:
    """The row of the table for a target; the safe one, SSE4.1, for what it does not know."""
    if target.has_feature(hl.TargetFeature.AVX512_Skylake):
        return MACHINES["avx512"]
    if target.has_feature(hl.TargetFeature.AVX2):
        return MACHINES["avx2"]
    return MACHINES["sse41"]
