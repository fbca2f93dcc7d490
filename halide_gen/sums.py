"""Sums over all rows of all steps of a sequence: of numbers, and of outer products, which gradients of weights are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import halide as hl
from blocks import Layout, blocks, inside, layouts, only_if
from machine import FAR, Lean, Tile
from matmul import Turned
from schedules import Schedule

# Sums of outer products go through ROWS rows of a piece at a time, of which a tile's operands, 128 x 64 numbers, stay
# in L1: with 2048 at a time (Sapphire Rapids, GFLOP/s), 2048 rows, 128 across and 128 down, 104 became 150, 256 and 64
# 106 and 140; 2400 rows, 2048 and 512, with more rows in a register tile too, 143 and 165. 64 and 256 rows are as good.
ROWS = 128

# Rows of a piece, which is one thread's, and whose sums lie in memory of their own; bytes of those of all pieces. There
# are at least PIECES, or a piece for each ROWS, if that memory is small.
PIECE_ROWS = 512
PIECE_BYTES = 1 << 24
PIECES = 4

# Sums from which on that memory is not small; and those from which on there is but one piece, and threads share its
# blocks, and the packing: of PARTS times ROWS, COPIED rows at a time. What one thread packs and others read comes
# slowly out of its cache: on two threads, 256 x 256 sums of 2000 rows took 1.4 ms that way, in pieces 0.85; 512 x 512
# of 2400 5.1 and 4.4, but of 640 1.1 and 1.3.
LARGE = 1 << 16
SHARED = 1 << 19
PARTS = 2
COPIED = 32

# Rows that what is packed has room for, which each call checks: one more than there are, or blocks were 64 KiB apart,
# and lay in the same set of the caches.
STORED = PARTS * ROWS + 1

# Rows of an outer-product sum up to which it is a short one; the second where both sides are FAR.
SHORT = 64, 256

# Numbers in a row up to which full blocks are read where they are. 2000 rows, 256 across and 64 down, 0.50 became 0.45
# ms, 16 down 0.18 and 0.12; 512 across and 128 down no faster.
NEAR = 256

Value = Callable[[hl.Expr, hl.Expr], hl.Expr]  # (unit, row)


def shares_blocks(rows: hl.Expr, sums: hl.Expr) -> hl.Expr:
    """Whether all rows are one piece, whose blocks threads share."""
    return (sums >= SHARED) | (sums >= LARGE) & (rows < 2 * PIECE_ROWS)


def cut(rows: hl.Expr, sums: hl.Expr) -> tuple[hl.Expr, hl.Expr]:
    """(rows in a piece, pieces) for sums over rows. From the sizes alone, never from the number of threads: each piece
    is summed in order, then the pieces in order, which gives the same bits for any number."""
    # With a condition on the rows Halide's simplifier lost the bounds: each part packed the parts before it once more.
    many = hl.max(blocks(rows, PIECE_ROWS), hl.min(blocks(rows, ROWS), PIECES))
    few, most = rows // (2 * PIECE_ROWS) * 2, PIECE_BYTES // 4 // hl.max(sums, 1)
    wanted = hl.select(sums < SHARED, hl.min(hl.select(sums < LARGE, many, few), most), 1)
    length = hl.max(blocks(blocks(rows, hl.max(wanted, 1)), ROWS), 1) * ROWS
    return length, blocks(rows, length)


def row_sum(name: str, value: Value, width: hl.Expr, rows: hl.Expr, schedule: Schedule) -> hl.Func:
    """The Func [a] of the sums over all rows of value(a, row)."""
    a, piece = hl.Var("a"), hl.Var("piece")

    # ---- algorithm
    length, pieces = cut(rows, width)
    partial, total = hl.Func(f"{name}_partial"), hl.Func(name)
    r = hl.RDom([(0, length)], f"{name}_r")
    r.where(piece * length + r.x < rows)
    p = hl.RDom([(0, pieces)], f"{name}_p")
    zero = hl.cast(value(a, hl.Expr(0)).type(), 0)
    partial[a, piece] = zero
    partial[a, piece] += value(a, inside(piece * length + r.x, rows))
    total[a] = zero
    total[a] += partial[a, p.x]

    # ---- schedule
    if not schedule.by_hand:
        return total
    guard = hl.TailStrategy.GuardWithIf
    total.compute_root().update().reorder(a, p.x).vectorize(a, schedule.lanes, guard)
    partial.compute_root().vectorize(a, schedule.lanes, guard)
    partial.update().reorder(a, r.x, piece).vectorize(a, schedule.lanes, guard)
    if schedule.parallel:
        partial.update().parallel(piece)
    return total


@dataclass(frozen=True)
class OuterProducts:
    """across(a, row) * down(d, row), a < width and d < height, to be summed up over all rows."""

    across: Value  # in the lanes of the vectors
    down: Value
    width: hl.Expr
    height: hl.Expr
    rows: hl.Expr

    @property
    def type(self) -> hl.Type:
        return self.across(hl.Expr(0), hl.Expr(0)).type()

    @property
    def far(self) -> hl.Expr:
        """Whether rows of both sides are so far apart that both are worth packing."""
        return (self.height >= FAR) & (self.width >= FAR)

    def transposed(self) -> OuterProducts:
        """The same with the two sides exchanged."""
        return OuterProducts(self.down, self.across, self.height, self.width, self.rows)

    def panel(self, name: str, units: int) -> tuple[hl.Func, hl.RVar, hl.RVar]:
        """The Func [lane, row, block] of what lies in the lanes, and the variables of its updates: over the lanes of
        the last block, which become 0 if it is not a whole one, and over the width, which is copied there. Otherwise
        lanes past the width would make sums that nobody reads of whatever lies in memory: of subnormal numbers, they
        took 3 to 6 times as long (Intel; all of BPTT of a GRU 7 wide, and of an RNN 100 wide)."""
        lane, n, block = (hl.Var(v) for v in ("lane", "n", "block"))
        func, l, edge = hl.Func(f"{name}_panel"), hl.RDom([(0, self.width)], f"{name}_l"), hl.RDom([(0, units)])
        edge.where(self.width % units != 0)
        func[lane, n, block] = hl.undef(self.type)
        func[edge.x, n, (self.width - 1) // units] = hl.cast(self.type, 0)
        func[l.x % units, n, l.x // units] = self.across(l.x, n)
        return func, edge.x, l.x


class Packing(NamedTuple):
    """How a sum of outer products reads what it multiplies."""

    layout: Layout
    condition: hl.Expr  # under which it does
    across: bool  # whether what lies in the lanes is packed
    down: bool  # whether what is broadcast is


def packings(schedule: Schedule, o: OuterProducts, short: hl.Expr) -> list[Packing]:
    """Exactly one condition holds; with nothing to sum up for, or if `short` does, none."""
    # Without tiles that only pad less, `gradients` compiles in three quarters of the time; 1 x 10, whose loads are as
    # many as its multiply-adds, was slower too: 100 x 100 and 2000 rows 114 and 123 GFLOP/s, 400 x 100 125 and 141.
    found = layouts(schedule, o.width, o.height, others=False)
    if len(found) == 1:
        return [Packing(layout, condition & (o.height > 0), True, False) for layout, condition in found]
    made = []
    some, far = (o.height > 0) & ~short, o.far
    for layout, condition in found:
        near = condition & some & ~far
        if layout.name in ("narrow", "wide", "product"):
            full = (o.width % layout.units == 0) & (o.width <= NEAR)
            made.append(Packing(layout, near & full, False, False))
            near = near & ~full
        made.append(Packing(layout, near, True, False))
        if layout.name in ("wide", "product"):
            made.append(Packing(layout, condition & far & some, True, True))
    return made


def short_sum(out: hl.Func, name: str, o: OuterProducts, schedule: Schedule) -> hl.Expr:
    """outer_sum for few rows: tiles go from registers to their place, along the rows of `out`, not through partial
    sums and a transposition. Answers under which condition it does all. 1024 x 1024 and 2 rows, 1.4 -> 0.7 ms; 1536 x
    512 and 32 rows, 0.90 -> 0.46; 128 x 128 and 32 rows 1.2 times as fast; from 256 x 256 on, 128 rows 1.15 to 1.35,
    256 rows 1.1 to 1.2, 400 and 512 rows 1.0 to 1.14, 800 rows 0.96 to 1.05; 400 x 100 and 128 rows 0.94. (Sapphire
    Rapids: 64 rows, 128 x 128 1.2, 256 x 256 1.3; 128 rows, 64 x 64 1.07, 512 x 512 1.1; 256 rows 1.0.)"""
    tiles = schedule.tiles(1, Lean.ALL)
    if isinstance(tiles, Tile):
        return hl.cast(hl.UInt(1), 0)
    condition = (o.rows <= hl.select(o.far, SHORT[1], SHORT[0])) & (o.width > schedule.lanes)
    a, d = out.args()
    lane, row, block, batch, n = (hl.Var(v) for v in ("lane", "row", "block", "batch", "n"))

    # ---- algorithm
    units, size = tiles.wide.vectors * schedule.lanes, tiles.wide.rows
    tile = hl.Func(f"{name}_tile")
    panel, edge, l = o.panel(name, units)
    r = hl.RDom([(0, o.rows)], f"{name}_r")
    unit = inside(batch * size + row, o.height)
    tile[lane, row, block, batch] = hl.cast(o.type, 0)
    tile[lane, row, block, batch] += panel[lane, r.x, block] * o.down(unit, r.x)
    out[a, d] = tile[a % units, d % size, a // units, d // size + only_if(condition, f"{name}_if")]

    # ---- schedule
    ao, do, li, lo, guard = hl.Var("ao"), hl.Var("do"), hl.RVar("li"), hl.RVar("lo"), hl.TailStrategy.GuardWithIf
    update = out.update(out.num_update_definitions() - 1)
    update.split(a, ao, a, units, hl.TailStrategy.PredicateStores).vectorize(a)
    update.split(d, do, d, size, guard).reorder(a, d, ao, do).unroll(d)
    panel.compute_root().bound_extent(lane, units)
    panel.update(0).vectorize(edge)
    copying = panel.update(1).allow_race_conditions().split(l, lo, li, units, hl.TailStrategy.Predicate)  # each once
    copying.vectorize(li).reorder(li, lo, n)
    tile.compute_at(out, ao)
    for variable, extent in ((lane, units), (row, size), (block, 1), (batch, 1)):  # all known: it lies in registers
        tile.bound_extent(variable, extent)
    for stage in (tile, tile.update()):
        stage.vectorize(lane, schedule.lanes).unroll(lane).unroll(row)
    tile.update().reorder(lane, row, r.x, block, batch)
    if schedule.parallel:
        update.parallel(do)
    return condition


class PiecewiseSum:
    """A sum of outer products, read in one of the ways: each piece of the sequence by itself, ROWS at a time, of those
    a register tile at a time; then all pieces in order, as `total` [a, d]."""

    def __init__(self, label: str, o: OuterProducts, how: Packing, length: hl.Expr, pieces: hl.Expr) -> None:
        self.label, self.how = label, how
        self.shared, self.large = shares_blocks(o.rows, o.width * o.height), o.width * o.height >= LARGE
        self.count = blocks(o.width, how.layout.units)
        a, d, piece = self.vars = tuple(hl.Var(v) for v in ("a", "d", "piece"))
        self.tile_vars = tuple(hl.Var(v) for v in ("lane", "row", "block", "batch", "part"))
        (lane, row, block, batch, part), n = self.tile_vars, hl.Var("n")
        units, size = how.layout.units, how.layout.tile.rows
        self.packed, self.tile, self.partial, self.total = (
            hl.Func(f"{label}_{name}") for name in ("packed", "tile", "partial", "total")
        )
        self.copied: list[hl.RVar] = []
        if how.across:
            self.panel, *self.copied = o.panel(label, units)
        else:
            self.panel = hl.Func(f"{label}_panel")
            self.panel[lane, n, block] = o.across(hl.unsafe_promise_clamped(block * units + lane, 0, o.width - 1), n)
        first = piece * length + part * ROWS
        self.r = hl.RDom([(0, ROWS)], f"{label}_r")
        self.r.where(first + self.r.x < o.rows)
        # A clamp would be in the innermost loop: 8 of its 38 instructions.
        summed = hl.unsafe_promise_clamped(first + self.r.x, 0, o.rows - 1)
        self.packed[row, n, batch] = o.down(inside(batch * size + row, o.height), n)
        product = self.panel[lane, summed, block] * self.packed[row, summed, batch]
        self.tile[lane, row, block, batch, part, piece] = hl.cast(o.type, 0)
        self.tile[lane, row, block, batch, part, piece] += product
        # Past the last row too, where the sums are 0.
        self.part = hl.RDom([(0, length // ROWS)], f"{label}_parts").x
        more = self.tile[lane, d % size, block, d // size, self.part, piece]
        self.partial[lane, d, block, piece] = hl.undef(o.type)
        so_far = hl.Expr(self.partial[lane, d, block, piece])
        self.partial[lane, d, block, piece] = hl.select(self.part == 0, more, so_far + more)
        self.rest = hl.RDom([(1, pieces - 1)], f"{label}_p")
        self.total[a, d] = self.partial[a % units, d, a // units, 0]
        self.total[a, d] += self.partial[a % units, d, a // units, self.rest.x]

    def schedule(self, consumer: hl.Func, where: hl.Var, schedule: Schedule) -> None:
        """`total` at loop `where` of the consumer, over a square of vectors; the pieces before it."""
        label, layout, lanes, guard = self.label, self.how.layout, schedule.lanes, hl.TailStrategy.GuardWithIf
        (a, d, piece), (lane, row, block, batch, part) = self.vars, self.tile_vars
        total, partial, panel, packed, tile = self.total, self.partial, self.panel, self.packed, self.tile
        do, di, task, no, ni = (hl.Var(f"{name}_{label}") for name in ("do", "di", "task", "no", "ni"))
        several, one, lo, li = (hl.RVar(f"{name}_{label}") for name in ("several", "one", "lo", "li"))
        # On the stack too: GRU, 512 wide, one step, malloc took a seventh of BPTT.
        total.compute_at(consumer, where).bound_extent(a, lanes).bound_storage(d, lanes).vectorize(a, lanes)
        total.update().reorder(a, d, self.rest.x).vectorize(a, lanes)
        partial.compute_root().bound_extent(lane, layout.units).reorder_storage(lane, d, block, piece)
        update = partial.update()
        update.split(d, do, di, layout.tile.rows, hl.TailStrategy.RoundUp)
        update.split(block, task, block, hl.select(self.shared, 1, hl.max(self.count, 1)), guard)
        update.split(self.part, several, one, hl.select(self.large, PARTS, 1), guard)
        update.reorder(lane, di, do, block, one, task, several, piece)
        update.vectorize(lane).unroll(di).never_partition([do, block, one, task, several, piece])
        if schedule.parallel:
            update.parallel(piece).parallel(task)
        copied = hl.select(self.shared, COPIED, ROWS)
        # All blocks at once, so that rows are read to their end: 320 wide, 6400 rows: 3 ms for 10.
        if self.copied:
            edge, across = self.copied
            panel.compute_at(partial, several).bound_extent(lane, layout.units)
            panel.update(0).vectorize(edge)
            copying, n = panel.update(1).allow_race_conditions(), panel.args()[1]  # to each place once
            panel.bound_storage(n, STORED)
            copying.split(across, lo, li, layout.units, hl.TailStrategy.Predicate).vectorize(li)
            copying.split(n, no, ni, copied, guard).reorder(li, lo, ni, no)
            if schedule.parallel:
                copying.parallel(no)
        if self.how.down:
            n = packed.args()[1]
            packed.compute_at(partial, several).bound_extent(row, layout.tile.rows).bound_storage(n, STORED)
            packed.split(n, no, ni, copied, guard).reorder(row, batch, ni, no).vectorize(row).parallel(no)
        tile.compute_at(partial, do).bound_extent(lane, layout.units).bound_extent(row, layout.tile.rows)
        for stage in (tile, tile.update()):
            stage.vectorize(lane, lanes).unroll(lane).unroll(row)
        tile.update().reorder(lane, row, self.r.x, block, batch, part, piece)


def outer_sum(out: hl.Func, name: str, o: OuterProducts, schedule: Schedule, transposed: bool = False) -> None:
    """out[a, d], or out[d, a] if transposed, = the sum over all rows."""
    a, d = hl.Var("a"), hl.Var("d")

    # ---- algorithm
    length, pieces = cut(o.rows, o.width * o.height)
    here = (d, a) if transposed else (a, d)
    out[here] = hl.undef(o.type)
    made: list[tuple[PiecewiseSum, Turned | None, hl.RVar]] = []
    short = short_sum(out, f"{name}_short", o.transposed() if transposed else o, schedule)
    first = out.num_update_definitions()
    for how in packings(schedule, o, short):
        label = f"{name}_{how.layout.name}{'_packed' * how.down}{'_direct' * (not how.across)}"
        summed = PiecewiseSum(label, o, how, length, pieces)
        once = only_if(how.condition, f"{label}_if")
        turned = None
        if transposed and schedule.lanes > 1:

            def value_of(across: hl.Expr, down: hl.Expr, total: hl.Func = summed.total) -> hl.Expr:
                return hl.Expr(total[across, inside(down, o.height)])

            turned = Turned(label, value_of, schedule.lanes, ())
            out[here] = turned.at(a, d + once)
        else:
            out[here] = summed.total[a, d + once]
        made.append((summed, turned, once))

    # ---- schedule
    if not schedule.by_hand:
        return
    lanes, guard = schedule.lanes, hl.TailStrategy.GuardWithIf
    for number, (summed, turned, once) in enumerate(made):
        ao, av, ai, do, di = (hl.Var(f"{v}_{summed.label}") for v in ("ao", "av", "ai", "do", "di"))
        # Squares of lanes x lanes, which stay in L1, and along the rows of `out`, so that few of them are at hand: of
        # 64 rows 4 KiB apart, 4096 x 1024 sums of 800 rows took 49.3 instead of 47.2 ms, 2048 x 2048 of 1600 89 and 81.
        update = out.update(first + number)
        update.split(a, ao, ai, summed.how.layout.units, guard).split(ai, av, ai, lanes, guard)
        update.split(d, do, di, lanes, guard)
        if turned is None:
            update.reorder(ai, di, av, do, ao, once).vectorize(ai, lanes, guard).never_partition([di, av, do, ao])
        else:
            aq = hl.Var(f"aq_{summed.label}")
            update.split(ai, aq, ai, turned.side, guard).reorder(di, ai, aq, do, av, ao, once)
            update.vectorize(di, lanes, guard).unroll(ai).never_partition([aq, do, av, ao])
            turned.schedule(out, aq)
        if schedule.parallel:
            update.parallel(ao)
        summed.schedule(out, av if turned is None else do, schedule)
