"""Sums over all rows of all steps of a sequence: of numbers, and of outer products, which gradients of weights are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import halide as hl
from blocks import Layout, blocks, inside, layouts, only_if
from machine import FAR, Lean, Tile
from matmul import CHUNK, MANY, Turned
from schedules import Schedule

PIECE_ROWS = 2048  # rows of an outer-product sum whose 2048 x 32 panel, 256 KiB, stays in L2
PIECE_BYTES = 1 << 26  # partial sums of all pieces together
SHORT = 32, 256  # rows of an outer-product sum up to which it is a short one; the second where both sides are FAR
NEAR = 1 << 18  # floats in a piece up to which full blocks are read where they are: 1 MiB, as much as L2 holds

Value = Callable[[hl.Expr, hl.Expr], hl.Expr]  # (unit, row)


def cut(rows: hl.Expr, sums: hl.Expr) -> tuple[hl.Expr, hl.Expr]:
    """(rows in a piece, pieces) for sums over rows. From the sizes alone, never from the number of threads: each piece
    is summed in order, then the pieces in order, which gives the same bits for any number."""
    most = hl.max(PIECE_BYTES // 4 // hl.max(sums, 1), 1)
    length = blocks(rows, hl.max(hl.min(blocks(rows, PIECE_ROWS), most), 1))
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


def packings(schedule: Schedule, o: OuterProducts, length: hl.Expr, short: hl.Expr) -> list[Packing]:
    """Exactly one condition holds; with nothing to sum up for, or if `short` does, none. `length`: of a piece. Full
    blocks of rows that stay in L2 need no packing: 1.2 times as fast at 64 to 128 wide (16 wide, 512 rows: 12.9 instead
    of 16.2 ms)."""
    # Padding to 8 rows costs a twelfth at the most where it counts; without tiles of 6 and 10, `gradients` compiles in
    # three quarters of the time.
    found = layouts(schedule, o.width, o.height, others=False)
    if len(found) == 1:
        return [Packing(layout, condition & (o.height > 0), True, False) for layout, condition in found]
    made = []
    some, far = (o.height > 0) & ~short, o.far
    for layout, condition in found:
        near = condition & some & ~far
        if layout.name in ("narrow", "wide"):
            full = (o.width % layout.units == 0) & (length * o.width <= NEAR)
            made.append(Packing(layout, near & full, False, False))
            near = near & ~full
        made.append(Packing(layout, near, True, False))
        if layout.name == "wide":
            made.append(Packing(layout, far & some, True, True))
    return made


def short_sum(out: hl.Func, name: str, o: OuterProducts, schedule: Schedule) -> hl.Expr:
    """outer_sum for few rows: tiles go from registers to their place, along the rows of `out`, not through partial
    sums and a transposition. Answers under which condition it does all. 1024 x 1024 and 2 rows, 1.4 -> 0.7 ms; 1536 x
    512 and 32 rows, 0.90 -> 0.46; 128 x 128 and 32 rows 1.2 times as fast; from 256 x 256 on, 128 rows 1.15 to 1.35,
    256 rows 1.1 to 1.2, 400 and 512 rows 1.0 to 1.14, 800 rows 0.96 to 1.05; 400 x 100 and 128 rows 0.94. (Sapphire
    Rapids, with what else is summed up: 128 rows 1.1, 256 rows 0.9 to 1.0, 400 rows 0.8.)"""
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
    """A sum of outer products, read in one of the ways: each piece of the sequence by itself, a register tile at a
    time, then all pieces in order, as `total` [a, d]."""

    def __init__(self, label: str, o: OuterProducts, how: Packing, length: hl.Expr, pieces: hl.Expr) -> None:
        self.label, self.how, self.width, self.pieces = label, how, o.width, pieces
        a, d, piece = self.vars = tuple(hl.Var(v) for v in ("a", "d", "piece"))
        lane, row, block, batch = self.tile_vars = tuple(hl.Var(v) for v in ("lane", "row", "block", "batch"))
        n = self.row_var = hl.Var("n")
        units, size = how.layout.units, how.layout.tile.rows
        self.packed, self.tile, self.partial, self.total = (
            hl.Func(f"{label}_{part}") for part in ("packed", "tile", "partial", "total")
        )
        self.copied: list[hl.RVar] = []
        if how.across:
            self.panel, *self.copied = o.panel(label, units)
        else:
            self.panel = hl.Func(f"{label}_panel")
            self.panel[lane, n, block] = o.across(hl.unsafe_promise_clamped(block * units + lane, 0, o.width - 1), n)
        self.r = hl.RDom([(0, length)], f"{label}_r")
        self.r.where(piece * length + self.r.x < o.rows)
        # A clamp would be in the innermost loop: 8 of its 38 instructions.
        summed = hl.unsafe_promise_clamped(piece * length + self.r.x, 0, o.rows - 1)
        self.tile[lane, row, block, batch, piece] = hl.cast(o.type, 0)
        self.packed[row, n, batch] = o.down(inside(batch * size + row, o.height), n)
        self.tile[lane, row, block, batch, piece] += self.panel[lane, summed, block] * self.packed[row, summed, batch]
        self.partial[lane, d, block, piece] = self.tile[lane, d % size, block, d // size, piece]
        self.rest = hl.RDom([(1, pieces - 1)], f"{label}_p")
        self.total[a, d] = self.partial[a % units, d, a // units, 0]
        self.total[a, d] += self.partial[a % units, d, a // units, self.rest.x]

    def schedule(self, consumer: hl.Func, where: hl.Var, schedule: Schedule) -> None:
        """`total` at loop `where` of the consumer, over a square of vectors; the pieces before it."""
        label, layout, lanes, guard = self.label, self.how.layout, schedule.lanes, hl.TailStrategy.GuardWithIf
        (a, d, piece), (lane, row, block, batch), n = self.vars, self.tile_vars, self.row_var
        total, partial, panel, packed, tile = self.total, self.partial, self.panel, self.packed, self.tile
        do, di = hl.Var(f"do_{label}"), hl.Var(f"di_{label}")
        # On the stack too: GRU, 512 wide, one step, malloc took a seventh of BPTT.
        total.compute_at(consumer, where).bound_extent(a, lanes).bound_storage(d, lanes).vectorize(a, lanes)
        total.update().reorder(a, d, self.rest.x).vectorize(a, lanes)
        partial.compute_root().bound_extent(lane, layout.units).reorder_storage(lane, d, block, piece)
        partial.split(d, do, di, layout.tile.rows, hl.TailStrategy.RoundUp).reorder(lane, di, do, block, piece)
        partial.vectorize(lane).unroll(di).never_partition([do, block, piece])
        if schedule.parallel:
            # Threads share the blocks of a piece where there are many, so that all read one packed operand.
            several, many = hl.Var(f"several_{label}"), blocks(self.width, layout.units) >= MANY
            partial.split(piece, several, piece, hl.select(many, self.pieces, 1), guard)
            partial.parallel(several).parallel(block)
        # All blocks at once, so that rows are read to their end: 320 wide, 6400 rows: 3 ms for 10.
        if self.copied:
            no, ni = hl.Var(f"no_{label}"), hl.Var(f"ni_{label}")
            panel.compute_at(partial, piece).bound_extent(lane, layout.units)
            lo, li, (edge, across) = hl.RVar(f"lo_{label}"), hl.RVar(f"li_{label}"), self.copied
            panel.update(0).vectorize(edge)
            copying = panel.update(1).allow_race_conditions().split(n, no, ni, CHUNK, guard)  # to each place once
            copying.split(across, lo, li, layout.units, hl.TailStrategy.Predicate).vectorize(li)
            copying.reorder(li, lo, ni, no)
            if schedule.parallel:
                copying.parallel(no)
        if self.how.down:
            no, ni = hl.Var(f"down_no_{label}"), hl.Var(f"down_ni_{label}")
            packed.compute_at(partial, piece).bound_extent(row, layout.tile.rows).split(n, no, ni, CHUNK, guard)
            packed.reorder(row, batch, ni, no).vectorize(row).parallel(no)
        tile.compute_at(partial, do).bound_extent(lane, layout.units).bound_extent(row, layout.tile.rows)
        for stage in (tile, tile.update()):
            stage.vectorize(lane, lanes).unroll(lane).unroll(row)
        tile.update().reorder(lane, row, self.r.x, block, batch, piece)


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
    for how in packings(schedule, o, length, short):
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
        # Squares of lanes x lanes, which stay in L1, and along the rows of `out`.
        update = out.update(first + number)
        update.split(a, ao, ai, summed.how.layout.units, guard).split(ai, av, ai, lanes, guard)
        update.split(d, do, di, lanes, guard)
        if turned is None:
            update.reorder(ai, di, av, do, ao, once).vectorize(ai, lanes, guard).never_partition([di, av, do, ao])
        else:
            aq = hl.Var(f"aq_{summed.label}")
            update.split(ai, aq, ai, turned.side, guard).reorder(di, ai, aq, av, do, ao, once)
            update.vectorize(di, lanes, guard).unroll(ai).never_partition([aq, av, do, ao])
            turned.schedule(out, aq)
        if schedule.parallel:
            update.parallel(ao)
        summed.schedule(out, av, schedule)
