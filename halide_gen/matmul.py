"""Matrix products over whole sequences: packed weights, and projections, which keep a register tile of sums (blocks.py)
while the inner product runs.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import halide as hl
from blocks import Layout, blocks, inside, layouts, mostly_inside, only_if
from machine import at_a_time
from schedules import Schedule

CHUNK = 384  # rows that share a panel of weights, and that a thread takes at a time
MANY = 16  # tasks that are enough for all threads
ROWS = 64  # that are packed at a time, block beside block
SIDE = 4  # of the squares in which a panel is transposed


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
        """Have calls check that the buffer is as large as the layout wants whose condition holds, and begins where a
        vector of any layout may. (No vector should lie in two lines of the cache: that is up to who packs them.)"""
        sizes = (
            hl.select(condition, blocks(width, layout.units) * layout.units * extent * self.gates, 0)
            for layout, condition in chosen
        )
        self.buffer.set_host_alignment(min(layout.lanes for layout, _ in chosen) * self.buffer.type().bytes())
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
        units, first = layout.place(block, group, blocks(width, layout.units))
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


def project(out: hl.Func, name: str, p: Projection, width: hl.Expr, rows: hl.Expr, schedule: Schedule) -> None:
    """out[unit, row] = the projection p of one step, for the rows of all steps of a sequence."""
    dtype = p.factor(hl.Expr(0), hl.Expr(0), hl.Expr(0)).type()
    j, n = hl.Var("j"), hl.Var("n")

    # ---- algorithm
    out[j, n] = hl.undef(dtype)
    made = []
    for layout, condition in layouts(schedule, width, rows):
        layout = replace(layout, tile=layout.tile._replace(steps=1))
        blocked = BlockedProjection(f"{name}_{layout.name}", p, width, rows, hl.Expr(1), layout)
        once = only_if(condition, f"{name}_if_{layout.name}")
        units, size = layout.units, layout.tile.rows
        out[j, n] = blocked[j % units, 0, n % size, j // units, n // size, once]
        made.append((blocked, once))

    # ---- schedule
    if not schedule.by_hand:
        return
    for i, (blocked, once) in enumerate(made):
        layout = blocked.layout
        jo, ji, no, ni, chunk = (hl.Var(f"{v}_{layout.name}") for v in ("jo", "ji", "no", "ni", "chunk"))
        guard = hl.TailStrategy.GuardWithIf
        update = out.update(i)
        update.split(j, jo, ji, layout.units, hl.TailStrategy.PredicateStores).split(n, no, ni, layout.tile.rows, guard)
        update.split(no, chunk, no, CHUNK // layout.tile.rows, guard)
        update.reorder(ji, ni, no, jo, chunk, once).vectorize(ji).unroll(ni).never_partition([no, jo, chunk])
        if schedule.parallel:
            # Of few chunks of rows the last, a short one, would leave threads idle: blocks of units are tasks too.
            several, many = hl.Var(f"several_{layout.name}"), rows >= MANY * CHUNK
            update.split(jo, several, jo, hl.select(many, hl.max(blocks(width, layout.units), 1), 1), guard)
            update.parallel(several).parallel(chunk)
        blocked.schedule(out, no)
