"""The one table of machine knowledge: the register tiles of each class of CPU.

A tile is a block of (vectors of hidden units) x (rows) whose sums stay in registers while k runs over the whole inner
product. The recurrence, the products and the packing see this table; nothing else does.

The numbers behind it: 2-core AMD EPYC (Zen 4), AVX-512, one thread, whole RNN layer with I = H, GFLOP/s of 117 at peak:

    vectors x rows    H=16 N=512 (I=1)   H=32 N=48   H=256 N=48   H=512 N=48   H=1024 N=64
    1 x 12            20                 49          95           104          81 (panels read too often from L2)
    2 x 8             14                 50          97           104          98
    4 x 6              8 (padding)       28          100          103          95

No more than 16 wide, 8 rows against 12: N=4 and N=8 1.4 times as fast, N=48 1.1, N=512 0.96 to 1.09, N=12 0.9.

An LSTM's forward pass with 8 rows and two sums at a time against 6 rows and all four: 1.15 times as fast with 16 rows
(of 512 units) and 1.07 with 32, which 6 does not divide, but 0.96 with 48. With 64 rows 1.015, and 1.05 to 1.09 on two
threads, for each of which there are 4 blocks, where of 6 rows there are 6 and 5.

With 4 rows, tiles of 4 against tiles of 6 and 8: LSTM and GRU from 256 to 1536 wide 1.3 to 1.5 times as fast, from 8 to
128 wide 1.2 to 1.5; RNN from 48 to 1024 wide 1.3 to 1.5, training 1.15 to 1.3. With 3, against single rows, RNN 1024
wide 1.2, LSTM 128 wide 1.0, 24 and 32 wide 0.83, RNN 40 wide 0.65.

With 2 rows, a tile of 2 against single rows, which read all weights twice, forward and with BPTT: LSTM 40 to 512 wide
1.5 to 1.8 and 1.2 to 1.4, GRU 1.3 to 1.8 and 1.1 to 1.5, RNN 80 to 1024 wide 1.2 to 1.8 and 1.15 to 1.5. With 3 rows,
as two tiles, LSTM 32 wide 0.9, 40 wide 0.8, 80 wide 1.04. Two vectors of units in those of 2 and 4 rows against four,
which take twice as long to compile: to 96 wide 1.0 to 1.4, wider 0.93 to 1.05, BPTT of an LSTM 1024 wide 0.9. (AVX2,
with four vectors, 2 rows against single ones: 8 to 32 wide 1.1 to 1.2, to 512 1.2 to 1.8.)

With fewer rows of padding (Zen 5, 285 GFLOP/s at peak), against the tiles of 8 rows and, LSTM, 6 and 8 alone:

    rows of the tile  cell and H     N     forward    training
    10                RNN 100, 256   20    1.17       1.10
    10                LSTM 256       20    1.19       1.08
    5                 GRU 256        20    1.20       1.07
    6                 GRU 256        12    1.31       1.06
    5                 GRU 64         9     1.53       1.30

One vector of units instead of two where that pads less (Zen 4): RNN 100 wide, 20 rows, a training step 3.23 -> 2.84 ms;
BPTT of an LSTM 40 wide, 40 rows, 1.21 times as fast, of a GRU 1.20; 16 wide, LSTM, 8 rows 2.2, GRU, 32 rows 1.9.

Vectors of 8 lanes instead of 16 where a quarter less of a tile is padding then (Zen 4, one thread, times as fast): LSTM
and GRU 4 wide, 16 and 64 rows, forward 1.3 to 1.5; LSTM 8 wide, 32 rows, forward 1.5, BPTT 1.7; 24 wide forward LSTM
1.09, GRU 1.06, BPTT of either 1.2. Where they pad but a sixth to an eighth less, 40 to 72 wide, the activations' twice
as many instructions wait for each other: forward 0.87 to 1.08, BPTT 1.02 to 1.1. (RNN 4 wide forward 1.1 to 1.5, 24 and
40 wide 0.92 to 1.0; left out for the 10 s that it takes to compile.)

A product over a sequence, whose blocks of weights are read by many rows, wants few loads a multiply-add (Sapphire
Rapids, K=2048, GFLOP/s of a loop in C): 4 x 6 216, 2 x 12 205, 2 x 8 195; what BPTT sums up, GRU 128 wide, one row,
then takes 0.88 of the time, LSTM 256 and 512 wide 0.96. Outer products, 128 rows at a time, 2048 x 512 162 and 153, 256
x 256 172 and 151, and 64 x 64, which 6 does not divide, 205 and 183: so a twentieth of padding is worth it.

BPTT of an LSTM, whose sum takes four products (Zen 4, GFLOP/s of its recurrent part): what is fed back is four times as
much as of an RNN, so a block of weights that several blocks of rows share has to leave room for it in L2 (1 MiB).

    vectors x rows    H=1024 N=32   H=1024 N=48   H=1536 N=16   H=512 N=48
    2 x 8, shared     57            53            45
    1 x 8, shared     80            78            75
    2 x 8                                                       85
    4 x 6                                                       91

Half as many broadcasts a multiply-add count more where L2 has room for both (Sapphire Rapids, 2 MiB, 200 at most for
any tile): 1 x 8 shared against 2 x 8 shared, LSTM H=512 N=48 96 and 114, N=16 93 and 102, H=1024 N=32 102 and 110; GRU
H=512 N=48 87 and 103, H=1536 N=32 89 and 107.

A single row of an RNN that goes through its weights from either end in turns finds some of them still in L1 or L2 (Zen
4, forward and BPTT): 128 wide, 64 KiB, 1.12 and 1.18 times as fast, 512 wide, 1 MiB, 1.06 and 1.09; 1024 wide, 4 MiB,
and LSTM and GRU 128 wide, 256 and 192 KiB, were no faster. (Where threads share the units of a step, LLVM took the two
ways' indices for different ones, and stored each sum in each iteration; there the team turns. See TURNED_WEIGHTS.)

    vectors x rows    H=32 N=1   H=64 N=1   H=1024 N=1
    2 x 1             29         53         40
    4 x 1             21         65         37

Where 2 x 1 pads less it is faster at any width: RNN 80 to 460 wide forward 1.09 to 1.2, BPTT 1.03 to 1.12. So is 1 x 1
against 2 x 1, LSTM and GRU forward: 8 wide 1.4 and 1.2, 40 wide 1.5 and 1.2, 80 to 227 wide 1.05 to 1.2. Their BPTT in
2 x 1 against 4 x 1: 8 wide 1.3 and 1.25, 32 wide 1.65, 80 wide 1.12 (1 x 1, one sum in flight: 100 to 227 wide 0.8).

AVX2 has as high a peak there (118 with vectors of 8), and half the registers. Layers of I = H, one thread, GFLOP/s:

    tile, "of s": sums at a time    pass            H and N                   instead of
    1 x 6 of 2                      LSTM forward    256 48: 92; 512 48: 85    1 x 3: 45, 44; 2 x 6 of 1: 90, 84
    1 x 4 of 2                      LSTM forward    256 4: 76; 256 8: 78      1 x 6 of 2: 57, 57 (16 rows: 80, 78)
    1 x 4, 2 sums in all            GRU before      256 48: 77; 512 32: 73    1 x 6: 70, 61 (its 18 projections spill)
    2 x 6                           RNN forward     256 48: 93; 512 48: 98    3 x 4: 59, 61 (spills); 1 x 12: 75, 79
    2 x 4                           RNN forward     256 8: 86; 512 32: 90     2 x 6: 62, 86
    2 x 4                           BPTT, 512 32    RNN 77, LSTM 70, GRU 73   2 x 6: 73, 65, 70
    4 x 1, 2 steps                  RNN forward     128 1: 65; 512 1: 54      3 steps: 48, 42 (spill); 8 x 1: 63, 44
    1 x 1, 2 steps                  LSTM forward    128 1: 57; 512 1: 45      3 steps: 44, 35 (spill)
    1 x 1, 4 steps                  GRU forward     128 1: 55; 512 1: 47      2 x 1, 2 steps: 46, 38
    shared                          BPTT, 1024 32   LSTM 54                   36

SSE4.1 has no multiply-add: mulps and addps together reach 59 there. 8 products of 2 x 4 take 32 instructions: 5 are
copies, since mulps overwrites an operand, and 4 broadcasts take two each, of which the shuffle runs where mulps and
addps do. That loop alone, from L1, reaches 39 (66%); unrolled by 4, 39; as 4 x 2, 39; as 3 x 3, 41; as 4 x 2 with a
broadcast that is but a load, 47. Weights that mulps takes from memory would give 45 (4 x 2) to 50 (12 x 1, whose 192
bytes a k L2 does not deliver: RNN forward 29), but LLVM loads them first where two rows share them, and spills with
more vectors. So, with all that belongs to a pass:

    tile         pass            H and N                 instead of
    1 x 2        LSTM forward    256 48: 33; 512 32: 30  1 x 3: 19, 19; 2 x 2 of 2: 32, 30; 1 x 4 of 2: 29, 28
    1 x 3        GRU forward     256 48: 33; 512 32: 31  1 x 4: 26, 24; 1 x 2: 31, 30
    2 x 4        RNN forward     256 48: 32; 512 48: 30  4 x 2: 35, 32, but GRU's BPTT 22 for 27; 3 x 3: 29, 29
    4 x 1        RNN forward     64 1: 27; 256 1: 31     2 x 4: 7, 8
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple


class Tile(NamedTuple):
    """A register tile: vectors of units x rows x steps. The recurrence takes one step at a time; its input's
    product takes several, so that single rows fill the registers too."""

    vectors: int
    rows: int
    steps: int = 1
    sums: int | None = None  # of a unit that are summed up at a time, None: all
    together: Any = 1  # blocks of rows (in the table: at most) that go through a block of weights before the next
    turns: bool = False  # every other step goes through the weights from their end; its units are never shared
    half: bool = False  # in vectors of half as many lanes

    def lanes(self, most: int) -> int:
        """Of its vectors, where the widest have `most`."""
        return most // 2 if self.half else most


class Machine(NamedTuple):
    """The tiles of one class of CPU for so many sums a unit, by the problem they suit. Each one that is there costs
    its share of compile time, some 0.1 s for each vector of the cell's equations that its block holds."""

    wide: Tile
    single: Tile | None = None  # fewer than FEW rows
    single_narrow: Tile | None = None  # fewer than FEW rows, where it pads less than `single`
    others: tuple[Tile, ...] = ()  # where one pads fewer rows than `wide`; the first of those that pad the fewest
    narrow: Tile | None = None  # no more hidden units than lanes in a vector
    pair: Tile | None = None  # 2 rows
    few: Tile | None = None  # 4 rows, and 3 whose steps are worth sharing: see SPLIT_UNITS
    shared: Tile | None = None  # for weights that L2 does not hold: see SHARED_WEIGHTS
    shared_short: Tile | None = None  # the same, where sums are of few products: see SHORT_SUM
    half: Tile | None = None  # where it pads a quarter less than all others for many rows
    thin: Tile | None = None  # where it pads less than `wide` and all `others`
    broad: Tile | None = None  # of a recurrence, where it pads no more than `wide`
    product: Tile | None = None  # of a product over a sequence, where it pads little more than `wide`
    turning: Tile | None = None  # fewer than FEW rows, and steps that are not worth sharing: before `single`


FEW = 4  # three single rows cost about what one padded tile of 8 does

# By the sums of a unit; 0: one sum, into which the products of several gates go, as BPTT's.
MACHINES = {
    # 32 registers, multiply-adds with a broadcast operand from memory; a single row wants two or more sums in flight
    "avx512": {
        # with 10 rows LLVM spills sums in the loop over k
        0: Machine(
            Tile(2, 8),
            Tile(4, 1, 6),
            Tile(2, 1, 8),
            few=Tile(2, 4),
            pair=Tile(2, 2),
            shared_short=Tile(2, 8, together=8),
            shared=Tile(1, 8, together=4),
            half=Tile(1, 8, half=True),
            thin=Tile(1, 8),
            broad=Tile(4, 6),
        ),
        1: Machine(
            Tile(2, 8),
            Tile(4, 1, 6),
            Tile(2, 1, 8),
            others=(Tile(2, 10), Tile(2, 6)),
            narrow=Tile(1, 8),
            few=Tile(2, 4),
            pair=Tile(2, 2),
            shared=Tile(2, 8, together=8),
            thin=Tile(1, 10),
            turning=Tile(4, 1, 6, turns=True),
            product=Tile(4, 6),
        ),
        2: Machine(Tile(1, 12), Tile(4, 1, 3)),
        3: Machine(
            Tile(1, 8),
            Tile(2, 1, 4),
            Tile(1, 1, 4),
            others=(Tile(1, 6), Tile(1, 5)),
            few=Tile(1, 4),
            pair=Tile(1, 2),
            shared=Tile(1, 8, together=8),
            half=Tile(1, 8, half=True),
        ),
        4: Machine(
            Tile(1, 6),
            Tile(2, 1, 3),
            Tile(1, 1, 3),
            others=(Tile(1, 8, sums=2), Tile(1, 10, sums=2)),
            few=Tile(1, 4),
            pair=Tile(1, 2),
            shared=Tile(1, 8, sums=2, together=8),
            half=Tile(1, 8, sums=2, half=True),
        ),
        6: Machine(Tile(1, 4), Tile(1, 1, 4)),
        8: Machine(Tile(1, 3), Tile(1, 1, 3)),
    },
    # 16 registers: 12 sums, 2 of the weights and a broadcast; a fourth of the weights, and LLVM spills sums
    "avx2": {
        0: Machine(Tile(2, 6), Tile(4, 1, 2), others=(Tile(2, 4),), pair=Tile(4, 2), shared=Tile(2, 6, together=4)),
        1: Machine(Tile(2, 6), Tile(4, 1, 2), others=(Tile(2, 4),), pair=Tile(4, 2), shared=Tile(2, 6, together=12)),
        2: Machine(Tile(1, 4), Tile(2, 1, 3)),
        3: Machine(Tile(1, 4), Tile(1, 1, 4), pair=Tile(1, 2), shared=Tile(1, 4, together=16)),
        4: Machine(
            Tile(1, 6, sums=2),
            Tile(1, 1, 2),
            others=(Tile(1, 4, sums=2),),
            pair=Tile(1, 2),
            shared=Tile(1, 6, sums=2, together=12),
        ),
        8: Machine(Tile(1, 1)),
    },
    # 16 registers, and no multiply-add: every product needs one of its own, so 8 or 9 sums. 66% of the peak: see above
    "sse41": {
        1: Machine(Tile(2, 4), Tile(4, 1, 2)),
        2: Machine(Tile(1, 3)),
        3: Machine(Tile(1, 3)),
        4: Machine(Tile(1, 2)),
        8: Machine(Tile(1, 1)),
    },
}


STEP_UNITS = 1024
"""The most units of single steps (step.py): what later phases need of earlier ones lies on the stack."""

LANES = {"avx512": 64, "avx2": 32, "sse41": 16}
"""Bytes in a vector."""

FUSED = {"avx512": True, "avx2": True, "sse41": False}
"""Whether there are multiply-adds."""

# Recurrent weights from which on threads share a step. A single row on 2 threads, forward, times as fast: LSTM 128 wide
# (65,536 weights) 1.49, RNN 256 wide (as many) 1.51, LSTM 96 and RNN 192 wide (36,864) 1.15, RNN 128 wide (16,384) 1.0.
SPLIT_UNITS = 1 << 15


# From which on the blocks of units are tasks for a single thread too: the team goes through them from either end in
# turns (rnn/_team.h), and finds some of the weights in an L2 cache that does not hold them all. One row, forward and
# training, times as fast (Sapphire Rapids, 2 MiB of L2): 2 to 4 MiB, RNN 768 wide 1.57 and 1.50, 1024 wide 1.50 and
# 1.40, LSTM 512 wide 1.45 and 1.37, GRU 512 wide 1.71 and 1.52, LSTM 512 wide with 4 rows 1.27 and 1.17; 16 MiB, RNN
# 2048 wide 1.08 and 1.07; 27 MiB, GRU 1536 wide 1.04 and 1.03; 1 MiB, which L2 holds, RNN 512 and LSTM 256 wide 1.0.
# Two threads, RNN 1024 wide 1.32 and 1.26, LSTM 512 wide 1.38 and 1.25.
TURNED_WEIGHTS = 1 << 18


def shares_units(count: Any, threads: Any, weights: Any) -> Any:
    """Whether the blocks of units of each step are tasks: where there are fewer blocks of rows than threads and enough
    recurrent weights for that, or where a single thread has so many of them that their order counts."""
    return (count < threads) & (weights >= SPLIT_UNITS) | (threads == 1) & (weights >= TURNED_WEIGHTS)


class Lean(IntEnum):
    """With how few tiles a cell's kernels do, each of which takes its time to compile."""

    ALL = 0  # of the table
    LONG = 1  # without those that cells whose steps are long can do without
    SMALL = 2  # and without those for many weights, and most of those that only pad less
    FEWEST = 3  # one for many rows, and one for single ones


LEAN = {"rnn_sigmoid": Lean.SMALL, "rnn_relu": Lean.SMALL, "lstm_coupled": Lean.FEWEST}
"""Built-in cells that fewer people use than their equations suggest."""


def lean(cell: str, is_long: bool, is_rare: bool) -> Lean:
    """For a cell of this name, whose step is long, or whose options few people use."""
    implied = Lean.FEWEST if is_rare else Lean.LONG if is_long else Lean.ALL
    return max(LEAN.get(cell, Lean.ALL), implied)


def machine(instruction_set: str, sums: int, lean: Lean) -> Machine:
    """The entry of the table for an instruction set and so many sums a unit: the most sums that it has for any more."""
    row = MACHINES[instruction_set]
    several = lean >= Lean.LONG and sums == 1 and 0 in row
    found = row[0 if several else min((most for most in row if most >= sums), default=max(row))]
    if lean == Lean.FEWEST:
        return Machine(found.wide._replace(vectors=1), found.single)
    if lean == Lean.SMALL:
        return Machine(found.wide, found.single, few=found.few, pair=found.pair, thin=found.thin)
    return found


def tile_of_float64(instruction_set: str, sums: int, lean: Lean) -> Tile:
    """float64 is for checks of gradients: one tile will do, and a small one for cells that few people use."""
    return Tile(1, 2) if lean == Lean.FEWEST else machine(instruction_set, sums, lean).wide


def blocks(extent: Any, size: Any) -> Any:
    """The number of blocks of `size` that cover `extent`, a number or an expression of Halide."""
    return (extent + (size - 1)) // size


# Recurrent weights from which on several blocks of rows, as many as the tile has `together`, go through each block of
# weights before the next one is read. One thread, training: LSTM H=1024 N=32 (16 MiB) 1.2 to 1.4 times as fast, GRU
# H=1024 N=32 (12 MiB) 1.16, RNN H=2048 N=32 (16 MiB) 1.08; RNN H=1024 N=64 (4 MiB, which L3 holds) 0.98. Zen 5: LSTM
# H=1536 N=16 (two blocks) 1.27. Sapphire Rapids (L2 of 2 MiB, which a core reads at 190 GB/s; L3 at 30): 4 MiB, RNN
# H=1024 N=64 1.16, LSTM H=512 N=48 1.18, forward 1.26 and 1.49; 3 MiB, GRU H=512 N=48 1.12, forward 1.25; 2.5 MiB, RNN
# H=800 N=32 1.15, LSTM H=400 N=32 1.06, forward 1.25 and 1.18.
# Eight against four blocks there, forward and training: RNN H=1760 N=64 1.05 and 1.03 (two threads 1.04 and 1.04), LSTM
# H=512 N=48 1.06 and 1.05 (two threads 1.02 and 1.0, with blocks of units side by side), RNN H=1024 N=64 0.98 and 1.0,
# GRU H=512 N=48 0.96 and 1.0. With BPTT's long sums eight blocks' rows would not be in an L2 cache of 1 MiB. Of 11 or
# 12 rows instead of 8, which read the weights less often, a forward pass was 1.0 to 1.05 times as fast, and training
# 0.98 to 1.02.
# AVX2 there, against no such tile, forward and training: RNN H=1760 N=64 1.23 and 1.11, H=1024 N=64 1.05 and 1.0, LSTM
# H=1024 N=32 1.32 and 1.11, H=512 N=48 1.08 and 1.0, N=16 1.22 and 1.07, GRU H=1024 N=32 1.33 and 1.13.
# What is left there is the latency of L3: that loop in C, 2 x 8, reaches 165 GFLOP/s with four blocks of rows and 143
# with two, and 189 and 184, as from L2, if each block of rows prefetches its share of the next block of weights. But
# Halide's prefetch is PREFETCHNTA, which goes past the L2 cache there: 78 and 45.
SHARED_WEIGHTS = 1 << 19

# Products in a sum of a recurrence up to which it is a short one: a block of their weights, two vectors wide, takes
# 256 KiB of the L2 cache then. See the measurements of BPTT above.
SHORT_SUM = 1 << 11

GROUPED = "shared_short", "shared"
"""The tiles whose blocks of rows go through each block of weights together."""


def offers(
    tiles: Machine, width: Any, rows: Any, lanes: int, weights: Any | None = None
) -> Iterator[tuple[str, Tile, Any]]:
    """(name, tile, condition) for width x rows units: the first whose condition holds is the one to use. `weights`:
    how many recurrent ones there are, None where nothing recurs."""

    def padded(tile: Tile) -> Any:
        return blocks(rows, tile.rows) * tile.rows

    def area(tile: Tile) -> Any:
        units = tile.vectors * tile.lanes(lanes)
        return padded(tile) * units * blocks(width, units)

    def at_most(share: int, of: int, tile: Tile, *others: Tile | None) -> Any:
        """Whether a tile covers no more than `share` in `of` of what each of the others does."""
        found = rows >= 0
        for other in filter(None, others):
            found = found & (of * area(tile) <= share * area(other))
        return found

    if tiles.pair is not None and weights is not None:
        yield "pair", tiles.pair, rows == 2
    if tiles.few is not None and weights is not None:
        enough = (rows == tiles.few.rows) | (rows == tiles.few.rows - 1) & (weights >= SPLIT_UNITS)
        yield "few", tiles.few, enough & (area(tiles.few) < area(tiles.wide))
    if tiles.single_narrow is not None:
        yield "single_narrow", tiles.single_narrow, (rows < FEW) & at_most(19, 20, tiles.single_narrow, tiles.single)
    if tiles.turning is not None and weights is not None:
        yield "turning", tiles.turning, (rows < FEW) & (width > 2 * lanes) & (weights < SPLIT_UNITS)
    if tiles.single is not None:
        yield "single", tiles.single, rows < FEW
    for name in GROUPED:
        tile = getattr(tiles, name)
        if tile is not None and weights is not None:
            count = blocks(rows, tile.rows)
            groups = blocks(count, tile.together)
            together = blocks(count, groups)
            in_groups = together * groups * tile.rows
            condition = (weights >= SHARED_WEIGHTS) & (together > 1) & (8 * in_groups <= 9 * padded(tiles.wide))
            if name == "shared_short":
                condition = condition & (weights <= SHORT_SUM * width)
            yield name, tile._replace(together=together), condition
    if tiles.half is not None:
        yield "half", tiles.half, at_most(3, 4, tiles.half, tiles.wide, *tiles.others, tiles.thin)
    if tiles.narrow is not None:
        yield "narrow", tiles.narrow, width <= lanes
    if tiles.thin is not None:
        yield "thin", tiles.thin, at_most(19, 20, tiles.thin, tiles.wide, *tiles.others)
    if tiles.broad is not None and weights is not None:
        yield "broad", tiles.broad, area(tiles.broad) <= area(tiles.wide)
    if tiles.product is not None and weights is None:
        yield "product", tiles.product, at_most(21, 20, tiles.product, tiles.wide)
    for number, tile in enumerate(tiles.others):
        share, of = (32, 33) if tile.rows > tiles.wide.rows else (19, 20)
        condition = of * padded(tile) <= share * padded(tiles.wide)
        for later in tiles.others[number + 1 :]:
            condition = condition & (padded(tile) <= padded(later))
        yield f"rows_{tile.rows}", tile, condition
    yield "wide", tiles.wide, rows >= 0


def chosen(tiles: Tile | Machine, width: int, rows: int, lanes: int, weights: int | None = None) -> tuple[str, Tile]:
    """(name, tile): the one that a kernel uses for these sizes, "block" where there is no choice."""
    if isinstance(tiles, Tile):
        return "block", tiles
    return next((name, tile) for name, tile, holds in offers(tiles, width, rows, lanes, weights) if holds)


def at_a_time(tile: Tile, gates: int) -> int:
    """How many of so many gates a tile sums up in one loop over k."""
    return gates if tile.sums is None or gates % tile.sums else tile.sums


# Numbers across and down from which on an outer-product sum packs both operands: rows 4 KiB apart lie in one set of the
# L1 cache. 1024 wide, 2048 rows: 33 became 88 GFLOP/s (Zen 4); LSTM 256 wide, a training step: 75.6 became 73.6 ms
# (Zen 5). Packing a row costs as much as 30 to 40 numbers across: 64 across and 256 down, 12.5 became 14.5 ms.
FAR = 256

# AVX512_BF16, by the sums of a unit. Whole forward pass with I = H, one thread, GFLOP/s of 234 at peak:
#
#                    vectors x rows   H=256 N=48   H=1024 N=32
#     RNN            2 x 8            173          180
#                    2 x 12           171          168
#                    4 x 6            177          164
#                    4 x 4            172          172
#     LSTM           1 x 4            160          156
#                    1 x 6            150          141
BF16_TILES = {1: Tile(2, 8), 4: Tile(1, 4)}

BF16_SHARED_PAIRS = 1 << 19
"""Pairs that a step multiplies from which on threads share its units: 5 us, for a fork and join of 1."""


def bf16_tile(sums: int) -> Tile:
    """The register tile of products in bfloat16 for so many sums a unit."""
    return BF16_TILES[min(most for most in BF16_TILES if most >= sums)]
