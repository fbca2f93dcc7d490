"""bfloat16: products of pairs, and a whole sequence of a recurrent layer a step at a time.

AVX512_BF16 has one instruction for products, `vdpbf16ps`: to each of 16 float32 sums it adds the products of a pair of
bfloat16 numbers, at twice the rate of float32's multiply-adds. Halide emits it for `sum += f32(a) * f32(b)` over two
numbers that lie side by side in both operands. The update of recurrence.py, which either adds a product or applies the
cell, has no such form.

So what is fed back goes through the caller's memory: the pipeline gets one array twice, as an output that a step writes
its bfloat16 results to, and as an input `fed_back` that the next step's products read. Then a step is a loop nest like
any other: a tile of sums, then the cell's equations on it. So do the states, `states_back`.

Halide knows nothing of the two arrays being one. It keeps the order of loops that it was given, and moves no load out
of them; LLVM is told that they don't overlap, and might move a load of one step before the stores of the step before.
It can't: what a step does is the body of a parallel loop, which is a function of its own, called through a pointer by
`par_for` in _kernels.cpp. All its loads come after the call and all the last step's stores before, with a single task
too, and the atomic counters of _team.h see to the order between threads. So the loop over tasks has to be parallel, and
the one right inside the loop over time. Within a step nobody reads what another unit or row writes; and where a step
writes over what it has read (BPTT's gradients of states, of which one step alone is kept), the new value is made from
the old one.

No sum of a step is split, and tasks share blocks of units: the bits are the same for any number of threads and of rows.
The instruction takes subnormal numbers for zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import halide as hl
from blocks import Layout, blocks, inside, mostly_inside
from machine import BF16_SHARED_PAIRS
from matmul import Weight

BF16 = hl.BFloat(16)
FLOAT32 = hl.Float(32)


def bits_of(x: hl.Expr) -> hl.Expr:
    """A float32's nearest bfloat16, ties to even, as the low half of 32 bits. Halide's cast adds as we do, but lets NaN
    overflow to zero."""
    bits = hl.reinterpret(hl.UInt(32), x)
    one = hl.cast(hl.UInt(32), 1)
    nearest = (bits + hl.cast(hl.UInt(32), 0x7FFF) + ((bits >> 16) & one)) >> 16
    is_nan = (bits & hl.cast(hl.UInt(32), 0x7FFFFFFF)) > hl.cast(hl.UInt(32), 0x7F800000)
    return hl.select(is_nan, (bits >> 16) | hl.cast(hl.UInt(32), 0x40), nearest)


def rounded(x: hl.Expr) -> hl.Expr:
    """A float32's nearest bfloat16."""
    return hl.reinterpret(BF16, hl.cast(hl.UInt(16), bits_of(x)))


def exact(x: hl.Expr) -> hl.Expr:
    """A bfloat16 as float32, in the form that makes products of pairs."""
    return hl.cast(FLOAT32, x)


def widened(x: hl.Expr) -> hl.Expr:
    """A bfloat16 as float32, by its bits."""
    return hl.reinterpret(FLOAT32, hl.cast(hl.UInt(32), hl.reinterpret(hl.UInt(16), x)) << 16)


class PairPanel:
    """A weight matrix in bfloat16, packed for a layout: [two, lane, gate, pair, block]; zero beyond the edges. An odd
    extent of k leaves half a pair, whose other operand must be a finite number."""

    def __init__(self, name: str, weight: Weight, width: hl.Expr, extent: hl.Expr, layout: Layout) -> None:
        self.weight, self.layout = weight, layout
        two, lane, gate, pair, block = self.vars = tuple(hl.Var(v) for v in ("two", "lane", "gate", "pair", "block"))
        unit = block * layout.units + lane
        zero = hl.cast(hl.UInt(32), 0)

        def bits(k: hl.Expr) -> hl.Expr:
            # whichever of the two is contiguous in memory is worth a loop without clamps
            k_inside, unit_inside = (mostly_inside, inside) if weight.rows_of_k else (inside, mostly_inside)
            value = bits_of(weight.value(gate, k_inside(k, extent), unit_inside(unit, width)))
            return hl.select((k < extent) & (unit < width), value, zero)

        self.staged, self.func = hl.Func(f"{name}_staged"), hl.Func(name)
        self.staged[pair, lane, gate, block] = bits(2 * pair) | (bits(2 * pair + 1) << 16)
        half = hl.cast(hl.UInt(32), 16 * two)
        self.func[two, lane, gate, pair, block] = hl.reinterpret(
            BF16, hl.cast(hl.UInt(16), hl.Expr(self.staged[pair, lane, gate, block]) >> half)
        )

    def schedule(self) -> None:
        two, lane, gate, pair, block = self.vars
        lanes = self.layout.lanes
        po, pi = hl.Var("po"), hl.Var("pi")
        self.func.compute_root().bound(two, 0, 2).bound(gate, 0, self.weight.gates)
        self.func.split(pair, po, pi, lanes, hl.TailStrategy.GuardWithIf)
        self.func.reorder(two, lane, pi, po, gate, block).vectorize(lane, lanes).unroll(two).parallel(block)
        self.func.never_partition([pi, gate, block if self.weight.rows_of_k else po])
        # As in matmul.Panel: a transpose goes through a square in L1.
        self.staged.compute_at(self.func, po).bound_storage(pair, lanes).bound_extent(lane, self.layout.units)
        if self.weight.rows_of_k:
            self.staged.vectorize(pair, lanes, hl.TailStrategy.RoundUp)
        else:
            self.staged.reorder_storage(lane, pair, gate, block).reorder(lane, pair).vectorize(lane, lanes)


@dataclass(frozen=True)
class PairProduct:
    """sum_k weight(gate, k, unit) factor(k, row, step) for each gate, k < extent, added to the tile's sum
    `sums[gate]`. `factor` gives bfloat16 numbers that are contiguous in k."""

    weight: Weight
    factor: Callable[[hl.Expr, hl.Expr, hl.Expr], hl.Expr]
    extent: hl.Expr
    sums: Sequence[int]


class PairTile:
    """A register tile of sums: [lane, sum, row, block, batch, step]."""

    def __init__(
        self,
        name: str,
        products: Sequence[PairProduct],
        count: int,
        width: hl.Expr,
        rows: hl.Expr,
        layout: Layout,
        bias: Callable[[int, hl.Expr], hl.Expr] | None = None,
    ) -> None:
        """`count` sums of each unit and row; bias(sum, unit): what they start from."""
        self.layout, self.count, self.products = layout, count, products
        self.vars = tuple(hl.Var(v) for v in ("lane", "sum", "row", "block", "batch", "step"))
        lane, which, row, block, batch, step = self.vars
        self.func = hl.Func(name)
        n = inside(batch * layout.tile.rows + row, rows)
        self.bias = None
        start = hl.f32(0)
        if bias is not None:
            self.bias = hl.Func(f"{name}_bias")
            unit = inside(block * layout.units + lane, width)
            values = [bias(i, unit) for i in range(count)]
            self.bias[lane, which, block] = values[0] if count == 1 else hl.mux(which, values)
            start = hl.Expr(self.bias[lane, which, block])
        self.func[lane, which, row, block, batch, step] = start
        self.panels, self.domains = [], []
        for i, p in enumerate(products):
            panel = PairPanel(f"{name}_panel{i}", p.weight, width, p.extent, layout)
            domain = [(0, 2), (0, p.weight.gates), (0, blocks(p.extent, 2))]
            r = hl.RDom(domain, f"{name}_k{i}")
            two, gate, pair = r[0], r[1], r[2]
            target = hl.Expr(gate)
            if list(p.sums) != list(range(p.weight.gates)):  # a constant once the loop is unrolled
                target = hl.clamp(hl.mux(gate, list(p.sums)), 0, count - 1)
            weight, factor = exact(panel.func[two, lane, gate, pair, block]), exact(p.factor(2 * pair + two, n, step))
            self.func[lane, target, row, block, batch, step] += weight * factor
            self.panels.append(panel)
            self.domains.append(r)

    def __getitem__(self, index: tuple[hl.Expr | int, ...]) -> hl.Expr:
        """[unit, sum, row of the batch, step]."""
        unit, which, n, step = index
        units, rows = self.layout.units, self.layout.tile.rows
        return hl.Expr(self.func[unit % units, which, n % rows, unit // units, n // rows, step])

    def schedule(self, consumer: hl.Func, where: hl.Var) -> None:
        """One tile at loop `where` of the consumer."""
        lane, which, row, block, batch, step = self.vars
        tile, lanes = self.layout.tile, self.layout.lanes
        if self.bias is not None:
            self.bias.compute_root().bound_extent(which, self.count).bound_extent(lane, self.layout.units)
            self.bias.vectorize(lane, lanes)
        for panel in self.panels:
            panel.schedule()
        self.func.compute_at(consumer, where).bound(which, 0, self.count)
        for variable, extent in ((lane, self.layout.units), (row, tile.rows), (block, 1), (batch, 1), (step, 1)):
            self.func.bound_extent(variable, extent)
        self.func.vectorize(lane, lanes).unroll(lane).unroll(which).unroll(row)
        for i, r in enumerate(self.domains):
            two, gate, pair = r[0], r[1], r[2]
            update = self.func.update(i).atomic()
            inner = hl.Var("inner")
            update.split(lane, lane, inner, lanes)
            update.reorder(two, inner, lane, gate, row, pair, block, batch, step)
            update.vectorize(inner).vectorize(two).unroll(lane).unroll(gate).unroll(row)


def steps(
    out: hl.Func,
    tile: PairTile,
    width: hl.Expr,
    rows: hl.Expr,
    work: hl.Expr,
    threads: hl.Expr,
    first: Callable[[hl.Expr, hl.Expr], Sequence[hl.Expr]],
    reads: Callable[[hl.Expr, hl.Expr, hl.Expr], Sequence[hl.Expr]],
    step: Callable[[Sequence[hl.Expr], Sequence[hl.Expr], hl.Expr, hl.Expr], Sequence[hl.Expr]],
    number: hl.Expr,
    place: Callable[[hl.Expr], hl.Expr],
) -> None:
    """out[unit, row, place(0)] = first(unit, row), then for s from 1 to `number` out[unit, row, place(s)] =
    step(sums, read, row, s), from the tile's sums of step s and the numbers reads(unit, row, s). `work`: pairs that a
    step multiplies, in floating point, since they may be more than 2^31."""
    j, n, slot = hl.Var("j"), hl.Var("n"), hl.Var("slot")
    lane, block = hl.Var("lane"), hl.Var("block")
    units = tile.layout.units

    # ---- algorithm
    out[j, n, slot] = tuple(hl.undef(t) for t in out.types())
    out[j, n, place(hl.Expr(0))] = tuple(first(j, n))
    # What a step reads is first copied for a whole tile: so many loads wait for memory at the same time (LSTM, H=256
    # N=48, BPTT: 125 instead of 106 GFLOP/s). Then all that a row's equations see is brought together in registers.
    # Read in each value's equations, LLVM took equal loads for different ones, and computed activations once for each
    # value (GRU, the same sizes, forward: 159 instead of 130 GFLOP/s).
    unit = block * units + lane
    whole = width % units == 0
    unit = hl.select(whole, hl.unsafe_promise_clamped(unit, 0, width - 1), inside(unit, width))
    near, seen = hl.Func("near"), hl.Func("seen")
    read = list(reads(unit, inside(n, rows), slot))
    near[lane, n, block, slot] = tuple(read) if len(read) > 1 else read[0]
    sums = [tile[block * units + lane, i, n, slot] for i in range(tile.count)]

    def parts(func: hl.FuncRef, count: int) -> list[hl.Expr]:
        return [hl.Expr(func[i]) for i in range(count)] if count > 1 else [hl.Expr(func)]

    given = [*sums, *parts(near[lane, n, block, slot], len(read))]
    seen[lane, n, block, slot] = tuple(given)
    s = hl.RDom([(1, number)], "s")[0]
    values = parts(seen[j % units, n, j // units, s], len(given))
    out[j, n, place(s)] = tuple(step(values[: tile.count], values[tile.count :], n, s))

    # ---- schedule
    for axis in range(3):
        out.output_buffers()[0].dim(axis).set_min(0)  # the others' are the same
    layout = tile.layout
    jo, ji, task, batch, row = (hl.Var(v) for v in ("jo", "ji", "task", "batch", "row"))
    out.update(0).vectorize(j, layout.lanes, hl.TailStrategy.Predicate)
    update = out.update(1)
    update.split(j, jo, ji, layout.units, hl.TailStrategy.Predicate)
    update.split(n, batch, row, layout.tile.rows, hl.TailStrategy.GuardWithIf)
    # Blocks of units are the outer loop: all rows go through a block of weights while L2 has it.
    shared = (threads > 1) & (work >= BF16_SHARED_PAIRS)
    update.split(
        jo, task, jo, hl.select(shared, 1, hl.max(blocks(width, layout.units), 1)), hl.TailStrategy.GuardWithIf
    )
    update.reorder(ji, row, batch, jo, task, s).vectorize(ji, layout.lanes).unroll(ji).parallel(task)
    update.never_partition([row, batch, jo, task])
    tile.schedule(out, batch)
    near.compute_at(out, batch).bound_extent(n, layout.tile.rows)
    seen.compute_at(out, row).bound_extent(n, 1)
    for func in (near, seen):
        func.bound_extent(lane, units).bound_extent(block, 1).bound_extent(slot, 1)
        func.vectorize(lane, layout.lanes).unroll(lane)
    near.specialize(whole)


PIECE_PAIRS = 512
"""Pairs of rows of a sum of outer products that are packed at a time: 32 units of them take 64 KiB of L2."""


def outer_sum(
    out: hl.Func,
    name: str,
    across: Callable[[hl.Expr, hl.Expr], hl.Expr],
    down: Callable[[hl.Expr, hl.Expr], hl.Expr],
    width: hl.Expr,
    height: hl.Expr,
    rows: hl.Expr,
    layout: Layout,
) -> None:
    """out[a, d] = the sum over all rows of across(a, row) * down(d, row), a < width and d < height, of bfloat16
    numbers. Pieces of the rows are added up in order."""
    a, d = hl.Var("a"), hl.Var("d")
    two, lane, row, pair, block, batch, piece = (
        hl.Var(v) for v in ("two", "lane", "row", "pair", "block", "batch", "piece")
    )
    units, size, nothing = layout.units, layout.tile.rows, rounded(hl.f32(0))

    # ---- algorithm
    pieces = hl.max(blocks(rows, 2 * PIECE_PAIRS), 1)
    length = blocks(blocks(rows, 2), pieces)
    panel, packed, tile = (hl.Func(f"{name}_{part}") for part in ("panel", "packed", "tile"))
    n = 2 * pair + two  # an odd number of rows, and uneven pieces, leave rows of zeros
    panel[two, lane, pair, block] = hl.select(
        n < rows, across(mostly_inside(block * units + lane, width), inside(n, rows)), nothing
    )
    packed[two, row, pair, batch] = hl.select(
        n < rows, down(mostly_inside(batch * size + row, height), inside(n, rows)), nothing
    )
    r = hl.RDom([(0, 2), (0, length)], f"{name}_r")
    tile[lane, row, block, batch, piece] = hl.f32(0)
    tile[lane, row, block, batch, piece] += exact(panel[r.x, lane, piece * length + r.y, block]) * exact(
        packed[r.x, row, piece * length + r.y, batch]
    )
    p = hl.RDom([(0, pieces)], f"{name}_p")[0]
    out[a, d] = hl.f32(0)
    out[a, d] += tile[a % units, d % size, a // units, d // size, p]

    # ---- schedule
    for axis in range(2):
        out.output_buffer().dim(axis).set_min(0)
    lanes = layout.lanes
    ao, ai, do, di, chunk, inner = (hl.Var(f"{v}_{name}") for v in ("ao", "ai", "do", "di", "chunk", "inner"))
    out.vectorize(a, lanes, hl.TailStrategy.Predicate)
    update = out.update().split(a, ao, ai, units, hl.TailStrategy.Predicate)
    update.split(d, do, di, size, hl.TailStrategy.GuardWithIf).split(do, chunk, do, 16, hl.TailStrategy.GuardWithIf)
    update.reorder(ai, di, do, ao, chunk, p).vectorize(ai, lanes).unroll(ai).parallel(chunk)
    update.never_partition([di, do, ao, chunk])
    for func, at, far in ((panel, lane, block), (packed, row, batch)):
        func.compute_at(out, p).bound_extent(two, 2).bound_extent(at, units if func is panel else size)
        func.reorder(two, at, far, pair).vectorize(at).unroll(two)
        outer = hl.Var(f"outer_{far.name()}")
        func.split(pair, outer, pair, 16, hl.TailStrategy.GuardWithIf).parallel(outer).never_partition([pair, outer])
    tile.compute_at(out, do)
    for variable, extent in ((lane, units), (row, size), (block, 1), (batch, 1), (piece, 1)):
        tile.bound_extent(variable, extent)
    tile.vectorize(lane, lanes).unroll(lane).unroll(row)
    summing = tile.update().atomic().split(lane, lane, inner, lanes)
    summing.reorder(r.x, inner, lane, row, r.y, block, batch, piece)
    summing.vectorize(inner).vectorize(r.x).unroll(lane).unroll(row)
