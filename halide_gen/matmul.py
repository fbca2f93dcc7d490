"""Matrix products over whole sequences: packed weights, projections, and sums of outer products.

All of them keep a register tile of sums (blocks.py) while the inner product runs.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import halide as hl
from blocks import Layout, blocks, inside, layouts, mostly_inside, only_if
from machine import FAR, Tile, at_a_time
from schedules import Schedule

STEP_BLOCKS = 8  # blocks of steps that share a panel of weights, and that a thread takes at a time
PIECE_ROWS = 2048  # rows of an outer-product sum whose 2048 x 32 panel, 256 KiB, stays in L2
PIECE_BYTES = 1 << 26  # partial sums of all pieces together
MANY = 16  # tasks that are enough for all threads
ROWS = 64  # that are packed at a time, block beside block
SIDE = 4  # of the squares in which a panel is transposed
SHORT = 32, 512  # rows of an outer-product sum up to which it is a short one; the second where both sides are FAR
NEAR = 1 << 18  # floats in a piece up to which full blocks are read where they are: 1 MiB, as much as L2 holds


@dataclass(frozen=True)
class Weight:
    """value(gate, k, unit), for `gates` blocks of units that lie above each other; `rows_of_k`: k is the axis that is
    contiguous in memory."""

    value: Callable[[hl.Expr, hl.Expr, hl.Expr], hl.Expr]
    rows_of_k: bool
    gates: int = 1

    def panel(self, name: str, width: hl.Expr, extent: hl.Expr, layout: Layout) -> Panel:
        """Packed by the pipeline at hand, for a layout."""
        return Panel(name, self, width, extent, layout.units, at_a_time(layout.tile, self.gates), layout.lanes)


@dataclass(frozen=True)
class Packed:
    """Weights that pack.py has packed for the layout that will be used, in one dimension."""

    buffer: hl.ImageParam
    gates: int = 1

    def panel(self, name: str, width: hl.Expr, extent: hl.Expr, layout: Layout) -> PackedPanel:
        """As it lies there, if that is the layout."""
        return PackedPanel(self, extent, layout.units, at_a_time(layout.tile, self.gates))

    def expect(self, width: hl.Expr, extent: hl.Expr, chosen: Sequence[tuple[Layout, hl.Expr]]) -> None:
        """Have calls check that the buffer is as large as the layout wants whose condition holds, and that no vector
        lies in two lines of the cache."""
        sizes = (
            hl.select(condition, blocks(width, layout.units) * layout.units * extent * self.gates, 0)
            for layout, condition in chosen
        )
        self.buffer.set_host_alignment(chosen[0][0].lanes * self.buffer.type().bytes())
        self.buffer.dim(0).set_bounds(0, functools.reduce(operator.add, sizes))


class Turned:
    """A matrix whose rows are contiguous, value(across, down), to be read along its columns."""

    def __init__(
        self, name: str, value: Callable[[hl.Expr, hl.Expr], hl.Expr], lanes: int, others: tuple[hl.Var, ...]
    ) -> None:
        self.lanes, self.others = lanes, others
        side = self.side = min(SIDE, lanes)
        across, down, left, top = self.square = tuple(hl.Var(v) for v in ("across", "down", "left", "top"))
        self.read, self.turned = hl.Func(f"{name}_read"), hl.Func(f"{name}_turned")
        self.read[(across, down, left, top, *others)] = value(left * side + across, top * side + down)
        self.turned[(down, across, left, top, *others)] = self.read[(across, down, left, top, *others)]

    def at(self, across: hl.Expr, down: hl.Expr) -> hl.Expr:
        side = self.side
        return hl.Expr(self.turned[(down % side, across % side, across // side, down // side, *self.others)])

    def schedule(self, consumer: hl.Func, where: hl.Var) -> None:
        """At loop `where` of the consumer, which takes a vector down and `side` numbers across there. In registers, in
        squares that LLVM shuffles within 128 bits. One step of an LSTM, which is all but packing: 0.57 ms 512 wide and
        5.9 ms 1024 wide; 0.86 and 7.6 through a square of 16 x 16 on the stack."""
        across, down, left, top = self.square
        for func in self.read, self.turned:
            func.compute_at(consumer, where).unroll(top)
            extents = [(across, self.side), (down, self.side), (left, 1), (top, self.lanes // self.side)]
            for variable, extent in extents + [(other, 1) for other in self.others]:
                func.bound_extent(variable, extent)
        self.read.vectorize(across).unroll(down)
        self.turned.vectorize(down).unroll(across)


class Panel:
    """A weight matrix packed for blocks of `units`: [lane, gate, k, part, block], zero beyond the last unit, contiguous
    in reading order: the `together` gates that a tile sums up at a time lie together, as one part. `extent`: how many k
    there are."""

    def __init__(
        self,
        name: str,
        weight: Weight,
        width: hl.Expr,
        extent: hl.Expr,
        units: hl.Expr | int,
        together: hl.Expr | int,
        lanes: int,
    ) -> None:
        self.gates, self.together, self.lanes = weight.gates, together, lanes
        lane, gate, k, part, block = self.vars = tuple(hl.Var(v) for v in ("lane", "gate", "k", "part", "block"))
        unit = block * units + lane
        gate_of_all = part * together + gate
        self.func = hl.Func(name)
        self.turned: Turned | None = None
        if weight.rows_of_k and lanes > 1:

            def value_of(across: hl.Expr, down: hl.Expr) -> hl.Expr:
                row = inside(block * units + down, width)
                return weight.value(gate_of_all, mostly_inside(across, extent), row)

            self.turned = Turned(name, value_of, lanes, (gate, part, block))
            value = self.turned.at(k, lane)
        else:
            value = weight.value(gate_of_all, inside(k, extent), mostly_inside(unit, width))
        self.func[lane, gate, k, part, block] = hl.select(unit < width, value, hl.cast(value.type(), 0))

    def __getitem__(self, index: tuple[Any, Any, Any, Any]) -> hl.Expr:
        lane, gate, k, block = index
        return self.func[lane, gate % self.together, k, gate // self.together, block]

    def schedule(self) -> None:
        """Before all that reads it."""
        _, gate, _, part, _ = self.vars
        self.func.compute_root().bound(gate, 0, self.together).bound(part, 0, self.gates // self.together)
        self.schedule_stage(self.func, self.func)

    def schedule_stage(self, func: hl.Func, stage: hl.Func | hl.Stage, *outermost: hl.RVar) -> None:
        """A stage of `func` that is this panel, of whole vectors."""
        lane, gate, k, part, block = self.vars
        vector, whole = hl.Var("vector"), hl.TailStrategy.RoundUp
        ko, ki, guard = hl.Var("ko"), hl.Var("ki"), hl.TailStrategy.GuardWithIf
        stage.split(lane, vector, lane, self.lanes, whole).vectorize(lane)
        if self.turned is None:
            # Rows to their end, not block by block: LSTM, 1024 wide, 4.1 -> 2.9 ms, RNN, 256 to 1024 wide, 1.0 to 1.4.
            stage.split(k, ko, ki, ROWS, guard)
            stage.reorder(lane, vector, block, ki, gate, part, ko, *outermost).parallel(ko)
            return
        stage.split(k, ko, ki, self.turned.side, guard)
        stage.reorder(lane, ki, ko, vector, gate, part, block, *outermost).unroll(ki).parallel(block)
        self.turned.schedule(func, ko)


class PackedPanel:
    """The same, from a buffer."""

    def __init__(self, packed: Packed, extent: hl.Expr, units: int, together: int) -> None:
        self.packed, self.extent, self.units, self.together = packed, extent, units, together

    def __getitem__(self, index: tuple[Any, Any, Any, Any]) -> hl.Expr:
        lane, gate, k, block = index
        buffer, parts = self.packed.buffer, self.packed.gates // self.together
        row = ((block * parts + gate // self.together) * self.extent + k) * self.together + gate % self.together
        at = hl.unsafe_promise_clamped(row * self.units + lane, 0, buffer.dim(0).extent() - 1)
        weight: hl.Expr = buffer[at]
        return weight

    def schedule(self) -> None:
        """Nothing to do."""


Value = Callable[[hl.Expr, hl.Expr, hl.Expr], hl.Expr]  # (unit, row, step)


@dataclass(frozen=True)
class Projection:
    """bias(gate, unit) + sum_k weight(gate, k, unit) factor(k, row, step), k < extent."""

    weight: Weight | Packed
    factor: Value
    extent: hl.Expr
    bias: Callable[[hl.Expr, hl.Expr], hl.Expr] | None = None


class BlockedProjection:
    """A projection in a blocked layout, a register tile at a time: [lane, gate, row, block, group, step]."""

    def __init__(
        self,
        name: str,
        p: Projection,
        width: hl.Expr,
        rows: hl.Expr,
        steps: hl.Expr,
        layout: Layout,
    ) -> None:
        self.layout, self.gates = layout, p.weight.gates
        self.vars = tuple(hl.Var(v) for v in ("lane", "gate", "row", "block", "group", "step"))
        lane, gate, row, block, group, step = self.vars
        units, first = layout.place(block, group)
        n = inside(first + row, rows)
        t = inside(step, steps)
        self.panel = p.weight.panel(f"{name}_panel", width, p.extent, layout)
        self.k = hl.RDom([(0, p.extent)], f"{name}_k")[0]
        self.func = hl.Func(name)
        factor = p.factor(self.k, n, t)
        start = hl.cast(factor.type(), 0)
        self.bias = None
        if p.bias is not None:
            self.bias = hl.Func(f"{name}_bias")
            self.bias[lane, gate, block] = p.bias(gate, mostly_inside(block * layout.units + lane, width))
            start = start + self.bias[lane, gate, units]
        self.func[lane, gate, row, block, group, step] = start
        self.func[lane, gate, row, block, group, step] += self.panel[lane, gate, self.k, units] * factor

    def __getitem__(self, index: tuple[hl.Expr | int, ...]) -> hl.Expr:
        return self.func[index]

    def schedule(self, consumer: hl.Func, where: hl.Var) -> None:
        """One tile at loop `where` of the consumer."""
        lane, gate, row, block, group, step = self.vars
        tile = self.layout.tile
        self.panel.schedule()
        if self.bias is not None:
            # In blocks as the weights are: a block that reaches over the edge would gather it in each step otherwise
            # (LSTM, 24 wide, a fifth of a forward pass).
            self.bias.compute_root().bound_extent(gate, self.gates).vectorize(lane, self.layout.lanes)
        self.func.compute_at(consumer, where).reorder_storage(lane, gate, row, step, block, group)
        # With all extents known it lies on the stack: RNN, 512 wide, malloc took a fiftieth of a training step.
        for variable, extent in (
            (lane, self.layout.units), (row, tile.rows), (block, 1), (group, 1), (step, tile.steps),
        ):  # fmt: skip
            self.func.bound_extent(variable, extent)
        self.func.bound(gate, 0, self.gates)
        part = hl.Var("part")
        for stage in (self.func, self.func.update()):
            stage.split(gate, part, gate, self.panel.together)
            stage.vectorize(lane, self.layout.lanes).unroll(lane).unroll(gate).unroll(row).unroll(step)
        self.func.update().reorder(lane, gate, row, step, self.k, part, block, group)


def project(
    out: hl.Func, name: str, p: Projection, width: hl.Expr, rows: hl.Expr, steps: hl.Expr, schedule: Schedule
) -> None:
    """out[unit, row, step] = the projection p, for every step of a sequence."""
    dtype = p.factor(hl.Expr(0), hl.Expr(0), hl.Expr(0)).type()
    j, n, t = (hl.Var(v) for v in ("j", "n", "t"))

    # ---- algorithm
    out[j, n, t] = hl.undef(dtype)
    made = []
    for layout, condition in layouts(schedule, width, rows):
        blocked = BlockedProjection(f"{name}_{layout.name}", p, width, rows, steps, layout)
        once = only_if(condition, f"{name}_if_{layout.name}")
        units, size = layout.units, layout.tile.rows
        out[j, n, t] = blocked[j % units, 0, n % size, j // units, n // size, t + once]
        made.append((blocked, once))

    # ---- schedule
    if not schedule.by_hand:
        return
    for i, (blocked, once) in enumerate(made):
        layout = blocked.layout
        jo, ji, no, ni, to, ti, chunk = (
            hl.Var(f"{v}_{layout.name}") for v in ("jo", "ji", "no", "ni", "to", "ti", "chunk")
        )
        guard = hl.TailStrategy.GuardWithIf
        update = out.update(i)
        update.split(j, jo, ji, layout.units, hl.TailStrategy.PredicateStores).split(n, no, ni, layout.tile.rows, guard)
        update.split(t, to, ti, layout.tile.steps, guard).split(to, chunk, to, STEP_BLOCKS, guard)
        update.reorder(ji, ni, ti, no, to, jo, chunk, once).vectorize(ji).unroll(ni)
        update.never_partition([ti, no, to, jo, chunk])
        if schedule.parallel:
            # Of few chunks of steps the last, a short one, would leave threads idle: blocks of units are tasks too.
            several, many = hl.Var(f"several_{layout.name}"), steps >= MANY * STEP_BLOCKS * layout.tile.steps
            update.split(jo, several, jo, hl.select(many, hl.max(blocks(width, layout.units), 1), 1), guard)
            update.parallel(several).parallel(chunk)
        blocked.schedule(out, no)


def cut(rows: hl.Expr, steps: hl.Expr, sums: hl.Expr) -> tuple[hl.Expr, hl.Expr]:
    """(steps in a piece, pieces) for sums over rows and steps. From the sizes alone, never from the number of threads:
    each piece is summed in order, then the pieces in order, which gives the same bits for any number."""
    most = hl.max(PIECE_BYTES // 4 // hl.max(sums, 1), 1)
    length = blocks(steps, hl.max(hl.min(blocks(rows * steps, PIECE_ROWS), most), 1))
    return length, blocks(steps, length)


def row_sum(name: str, value: Value, width: hl.Expr, rows: hl.Expr, steps: hl.Expr, schedule: Schedule) -> hl.Func:
    """The Func [a] of the sums over all rows and steps of value(a, row, step)."""
    a, piece = hl.Var("a"), hl.Var("piece")

    # ---- algorithm
    length, pieces = cut(rows, steps, width)
    partial, total = hl.Func(f"{name}_partial"), hl.Func(name)
    r = hl.RDom([(0, rows), (0, length)], f"{name}_r")
    r.where(piece * length + r.y < steps)
    p = hl.RDom([(0, pieces)], f"{name}_p")
    zero = hl.cast(value(a, hl.Expr(0), hl.Expr(0)).type(), 0)
    partial[a, piece] = zero
    partial[a, piece] += value(a, r.x, inside(piece * length + r.y, steps))
    total[a] = zero
    total[a] += partial[a, p.x]

    # ---- schedule
    if not schedule.by_hand:
        return total
    guard = hl.TailStrategy.GuardWithIf
    total.compute_root().update().reorder(a, p.x).vectorize(a, schedule.lanes, guard)
    partial.compute_root().vectorize(a, schedule.lanes, guard)
    partial.update().reorder(a, r.x, r.y, piece).vectorize(a, schedule.lanes, guard)
    if schedule.parallel:
        partial.update().parallel(piece)
    return total


@dataclass(frozen=True)
class OuterProducts:
    """across(a, row, step) * down(d, row, step), a < width and d < height, to be summed up over all rows and steps."""

    across: Value  # in the lanes of the vectors
    down: Value
    width: hl.Expr
    height: hl.Expr
    rows: hl.Expr
    steps: hl.Expr

    @property
    def type(self) -> hl.Type:
        return self.across(hl.Expr(0), hl.Expr(0), hl.Expr(0)).type()

    @property
    def far(self) -> hl.Expr:
        """Whether rows of both sides are so far apart that both are worth packing."""
        return (self.height >= FAR) & (self.width >= FAR)

    def transposed(self) -> OuterProducts:
        """The same with the two sides exchanged."""
        return OuterProducts(self.down, self.across, self.height, self.width, self.rows, self.steps)

    def panel(self, name: str, units: int) -> tuple[hl.Func, hl.RDom]:
        """The Func [lane, row, step, block] of what lies in the lanes, and the domain of its copying. Lanes past the
        width make sums that nobody reads."""
        lane, n, t, block = (hl.Var(v) for v in ("lane", "n", "t", "block"))
        func, l = hl.Func(f"{name}_panel"), hl.RDom([(0, self.width)], f"{name}_l")
        func[lane, n, t, block] = hl.undef(self.type)
        func[l.x % units, n, t, l.x // units] = self.across(l.x, n, t)
        return func, l


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
            full = (o.width % layout.units == 0) & (o.rows * length * o.width <= NEAR)
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
    256 rows 1.1 to 1.2, 400 and 512 rows 1.0 to 1.14, 800 rows 0.96 to 1.05; 400 x 100 and 128 rows 0.94."""
    tiles = schedule.tiles(1, 0)
    if isinstance(tiles, Tile):
        return hl.cast(hl.UInt(1), 0)
    condition = (o.rows * o.steps <= hl.select(o.far, SHORT[1], SHORT[0])) & (o.width > schedule.lanes)
    a, d = out.args()
    lane, row, block, batch, n, t = (hl.Var(v) for v in ("lane", "row", "block", "batch", "n", "t"))

    # ---- algorithm
    units, size = tiles.wide.vectors * schedule.lanes, tiles.wide.rows
    tile = hl.Func(f"{name}_tile")
    panel, l = o.panel(name, units)
    r = hl.RDom([(0, o.rows), (0, o.steps)], f"{name}_r")
    unit = inside(batch * size + row, o.height)
    tile[lane, row, block, batch] = hl.cast(o.type, 0)
    tile[lane, row, block, batch] += panel[lane, r.x, r.y, block] * o.down(unit, r.x, r.y)
    out[a, d] = tile[a % units, d % size, a // units, d // size + only_if(condition, f"{name}_if")]

    # ---- schedule
    ao, do, li, lo, guard = hl.Var("ao"), hl.Var("do"), hl.RVar("li"), hl.RVar("lo"), hl.TailStrategy.GuardWithIf
    update = out.update(out.num_update_definitions() - 1)
    update.split(a, ao, a, units, hl.TailStrategy.PredicateStores).vectorize(a)
    update.split(d, do, d, size, guard).reorder(a, d, ao, do).unroll(d)
    panel.compute_root().bound_extent(lane, units)
    copying = panel.update().allow_race_conditions().split(l.x, lo, li, units, hl.TailStrategy.Predicate)  # each once
    copying.vectorize(li).reorder(li, lo, n, t)
    tile.compute_at(out, ao)
    for variable, extent in ((lane, units), (row, size), (block, 1), (batch, 1)):  # all known: it lies in registers
        tile.bound_extent(variable, extent)
    for stage in (tile, tile.update()):
        stage.vectorize(lane, schedule.lanes).unroll(lane).unroll(row)
    tile.update().reorder(lane, row, r.x, r.y, block, batch)
    if schedule.parallel:
        update.parallel(do)
    return condition


def outer_sum(out: hl.Func, name: str, o: OuterProducts, schedule: Schedule, transposed: bool = False) -> None:
    """out[a, d], or out[d, a] if transposed, = the sum over all rows and steps."""
    width, height, rows, steps = o.width, o.height, o.rows, o.steps
    a, d, piece = (hl.Var(v) for v in ("a", "d", "piece"))
    lane, row, block, batch = (hl.Var(v) for v in ("lane", "row", "block", "batch"))
    n_, t_ = hl.Var("n"), hl.Var("t")

    # ---- algorithm
    length, pieces = cut(rows, steps, width * height)
    zero = hl.cast(o.type, 0)
    here = (d, a) if transposed else (a, d)
    out[here] = hl.undef(zero.type())
    made = []
    short = short_sum(out, f"{name}_short", o.transposed() if transposed else o, schedule)
    first = out.num_update_definitions()
    for layout, condition, pack_across, pack_down in packings(schedule, o, length, short):
        label = f"{name}_{layout.name}{'_packed' * pack_down}{'_direct' * (not pack_across)}"
        units, size = layout.units, layout.tile.rows
        packed, tile, partial, total = (hl.Func(f"{label}_{part}") for part in ("packed", "tile", "partial", "total"))
        if pack_across:
            panel, l = o.panel(label, units)
        else:
            panel, l = hl.Func(f"{label}_panel"), None
            unit = hl.unsafe_promise_clamped(block * units + lane, 0, width - 1)
            panel[lane, n_, t_, block] = o.across(unit, n_, t_)
        r = hl.RDom([(0, rows), (0, length)], f"{label}_r")
        r.where(piece * length + r.y < steps)
        step = inside(piece * length + r.y, steps)
        tile[lane, row, block, batch, piece] = zero
        packed[row, n_, t_, batch] = o.down(inside(batch * size + row, height), n_, t_)
        tile[lane, row, block, batch, piece] += panel[lane, r.x, step, block] * packed[row, r.x, step, batch]
        partial[lane, d, block, piece] = tile[lane, d % size, block, d // size, piece]
        p = hl.RDom([(1, pieces - 1)], f"{label}_p")
        total[a, d] = partial[a % units, d, a // units, 0]
        total[a, d] += partial[a % units, d, a // units, p.x]
        once = only_if(condition, f"{label}_if")
        turned = None
        if transposed and schedule.lanes > 1:

            def value_of(across: hl.Expr, down: hl.Expr, total: hl.Func = total) -> hl.Expr:
                return hl.Expr(total[across, inside(down, height)])

            turned = Turned(label, value_of, schedule.lanes, ())
            out[here] = turned.at(a, d + once)
        else:
            out[here] = total[a, d + once]
        made.append((layout, pack_down, label, panel, l, packed, tile, r, partial, total, p, turned, once))

    # ---- schedule
    if not schedule.by_hand:
        return
    lanes, guard = schedule.lanes, hl.TailStrategy.GuardWithIf
    for i, made_one in enumerate(made):
        layout, pack_down, label, panel, l, packed, tile, r, partial, total, p, turned, once = made_one
        ao, av, ai, do, di = (hl.Var(f"{v}_{label}") for v in ("ao", "av", "ai", "do", "di"))
        # Squares of lanes x lanes, which stay in L1, and along the rows of `out`.
        update = out.update(first + i)
        update.split(a, ao, ai, layout.units, guard).split(ai, av, ai, lanes, guard).split(d, do, di, lanes, guard)
        if turned is None:
            update.reorder(ai, di, av, do, ao, once).vectorize(ai, lanes, guard).never_partition([di, av, do, ao])
        else:
            aq = hl.Var(f"aq_{label}")
            update.split(ai, aq, ai, turned.side, guard).reorder(di, ai, aq, av, do, ao, once)
            update.vectorize(di, lanes, guard).unroll(ai).never_partition([aq, av, do, ao])
            turned.schedule(out, aq)
        # On the stack too: GRU, 512 wide, one step, malloc took a seventh of BPTT.
        total.compute_at(out, av).bound_extent(a, lanes).bound_storage(d, lanes).vectorize(a, lanes)
        total.update().reorder(a, d, p.x).vectorize(a, lanes)
        partial.compute_root().bound_extent(lane, layout.units).reorder_storage(lane, d, block, piece)
        partial.split(d, do, di, layout.tile.rows, hl.TailStrategy.RoundUp).reorder(lane, di, do, block, piece)
        partial.vectorize(lane).unroll(di).never_partition([do, block, piece])
        if schedule.parallel:
            update.parallel(ao)
            # Threads share the blocks of a piece where there are many, so that all read one packed operand.
            several, many = hl.Var(f"several_{label}"), blocks(width, layout.units) >= MANY
            partial.split(piece, several, piece, hl.select(many, pieces, 1), guard).parallel(several).parallel(block)
        # All blocks at once, so that rows are read to their end: 320 wide, 6400 rows: 3 ms for 10.
        if l is not None:
            to, ti = hl.Var(f"to_{label}"), hl.Var(f"ti_{label}")
            panel.compute_at(partial, piece).bound_extent(lane, layout.units)
            lo, li = hl.RVar(f"lo_{label}"), hl.RVar(f"li_{label}")
            copying = panel.update().allow_race_conditions().split(t_, to, ti, STEP_BLOCKS, guard)  # to each place once
            copying.split(l.x, lo, li, layout.units, hl.TailStrategy.Predicate).vectorize(li)
            copying.reorder(li, lo, n_, ti, to)
            if schedule.parallel:
                copying.parallel(to)
        if pack_down:
            to, ti = hl.Var(f"down_to_{label}"), hl.Var(f"down_ti_{label}")
            packed.compute_at(partial, piece).bound_extent(row, layout.tile.rows).split(t_, to, ti, STEP_BLOCKS, guard)
            packed.reorder(row, batch, n_, ti, to).vectorize(row).parallel(to)
        tile.compute_at(partial, do).bound_extent(lane, layout.units).bound_extent(row, layout.tile.rows)
        for stage in (tile, tile.update()):
            stage.vectorize(lane, lanes).unroll(lane).unroll(row)
        tile.update().reorder(lane, row, r.x, r.y, block, batch, piece)
