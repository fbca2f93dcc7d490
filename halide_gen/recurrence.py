"""The engine: a whole sequence of a recurrent layer, forward or back, as one Func.

Halide has no mutual recursion between Funcs, so "sums of products with the last state, then the cell's equations"
can't be two Funcs. Here one tuple-valued Func `S` holds all places of a step's frame: sums, and values that the cell
reads or makes. Its update runs over a domain whose loop over k has one iteration too many: for k < K it adds
W[k] S[k, slot - 1] to the sums, at k = K it applies the cell. `likely` and `always_partition` peel that last iteration.
Where a product needs values of the same step, the step has phases, each with a loop over k of its own. So have parts of
the sums, where a tile takes fewer of them at a time.

Frames lie one a slot, in the order of computation; slot 0 is before the first step. Each place is first filled with
what it starts from: a sum with its input product, a value with what the forward pass left behind, which is read along
the rows of the caller's arrays. The step then writes over it. Where L2 does not hold the weights, a group of several
blocks of rows goes through each block of weights together; blocks of units and of rows then share one dimension, since
with a loop of its own for the second LLVM computed activations twice (LSTM, 64 wide: 1.17 times the time). What is fed
back is never in the place of a sum: LLVM could not tell their addresses apart, and would store each sum in every
iteration.

Look at the assembly to check it: the innermost loop over k holds multiply-adds and loads, no stores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import halide as hl
from blocks import Layout, blocks, inside, layouts, mostly_inside, only_if
from machine import Lean, shares_units
from matmul import BlockedProjection, Packed, Projection
from schedules import Schedule

CHUNK = 8  # slots that a thread fills from the caller's arrays at a time, where threads share them

Projected = Callable[[int], hl.Expr]  # a block of the equations' projection, for the unit, row and slot at hand


@dataclass(frozen=True)
class Place:
    """One number of a frame, for each unit and row. Before the step it holds what it is given, and the projection's
    part, if either is there; a sum without them holds zero, a value nothing."""

    given: Callable[[hl.Expr, hl.Expr, hl.Expr], hl.Expr] | None = None  # (unit, row, slot) -> from the caller's arrays
    projected: Callable[[Projected, hl.Expr, hl.Expr], hl.Expr] | None = None  # (projected, row, slot)
    offset: Callable[[hl.Expr], hl.Expr] | None = None  # (unit) -> what is there instead, in all rows and slots
    initial: Callable[[hl.Expr, hl.Expr], hl.Expr] | None = None  # (unit, row) -> what slot 0 holds; None: zero
    feeds: Sequence[tuple[int, int]] = ()  # (block of the weights, place that they are multiplied by)
    lag: int = 1  # 1: the places fed back are those of the slot before, 0: of this one, from an earlier phase
    phase: int = 0  # in which the products are summed up


@dataclass(frozen=True)
class Equations:
    """What the engine computes, free of layout and schedule."""

    dtype: hl.Type
    width: hl.Expr  # units, and the values of each that are fed back
    rows: hl.Expr  # of the batch
    steps: hl.Expr  # slots after slot 0
    sums: int  # the most that a unit sums up at once
    lean: Lean
    ahead: int  # slots past the last that a step may look at
    places: Sequence[Place]
    projection: Projection | None
    weights: Packed | None
    step: Callable[[int, Frame], Mapping[int, hl.Expr]]  # (phase, frame) -> what it writes, by place
    constants: Sequence[Callable[[hl.Expr, hl.Expr], hl.Expr]]  # (unit, row) -> a number for all time
    flags: Sequence[Callable[[hl.Expr, hl.Expr], hl.Expr]]  # (slot, row) -> a condition that steps ask for
    apart: Callable[[hl.Expr], hl.Expr]  # its argument, which nothing can be merged with
    length: Callable[[hl.Expr], hl.Expr]  # of a row
    needed: Callable[[hl.Expr, hl.Expr], hl.Expr]  # (slot, length): whether a row of no more than that takes part
    idle: Callable[[hl.Expr], hl.Expr] | None  # (slot): whether its products are 0, or nobody asks for them

    @property
    def fed_back(self) -> hl.Expr | None:
        """How many recurrent weights there are."""
        return None if self.weights is None else self.width * self.width * self.weights.gates


@dataclass(frozen=True)
class Frame:
    """What a step sees of a unit and a row."""

    now: list[hl.Expr]
    before: list[hl.Expr]  # the frame of the slot before
    ahead: list[hl.Expr]  # the frame of the slot after, as it is before its step
    constants: list[hl.Expr]
    flags: list[hl.Expr]
    apart: Callable[[hl.Expr], hl.Expr]  # see frames.py


class Recurrence:
    """The equations in the blocked layout of one register tile."""

    def __init__(self, name: str, e: Equations, layout: Layout, fused: bool) -> None:
        self.layout, self.e, self.name = layout, e, name
        together = layout.tile.together
        self.vars = tuple(hl.Var(v) for v in ("lane", "row", "block", "group", "slot"))
        lane, row, block, group, slot = self.vars
        units, rows = layout.units, layout.tile.rows
        # Of each block of rows, the blocks of units lie side by side: it reads them all in each of its steps (RNN, 1760
        # wide, 64 rows, forward 1.07 times as fast as block of rows beside block of rows).
        self.across = blocks(e.width, units)
        self.blocks = self.across * together
        unit_block, first_row = layout.place(block, group, self.across)
        unit, n = mostly_inside(unit_block * units + lane, e.width), inside(first_row + row, e.rows)
        self.last = e.steps + e.ahead

        self.projected = self.panel = None
        if e.projection is not None:
            p = BlockedProjection(f"{name}_start", e.projection, e.width, e.rows, self.last + 1, layout)
            self.projected = p
        if e.weights is not None:
            self.panel = e.weights.panel(f"{name}_weights", e.width, e.width, layout)
        self.constants = []
        for i, value in enumerate(e.constants):
            constant = hl.Func(f"{name}_constant{i}")
            constant[lane, row, block, group] = value(unit, n)
            self.constants.append(constant)

        # Conditions in arrays of their own: with their equations in the step, Halide's simplifier fails on some cells.
        self.flags, batch = [], hl.Var("batch")
        for i, condition in enumerate(e.flags):
            flag = hl.Func(f"{name}_flag{i}")
            flag[row, batch, group, slot] = hl.cast(
                hl.UInt(8), condition(slot, inside((group * together + batch) * rows + row, e.rows))
            )
            self.flags.append(flag)

        S = self.func = hl.Func(name)
        zero = hl.cast(e.dtype, 0)
        # Sums are stored last. LLVM then drops a value's store of what was just loaded; after stores to the sums it
        # sometimes kept it, in each iteration of k: rnn_tanh, 512 wide, 59 instead of 100 GFLOP/s.
        self.order = sorted(range(len(e.places)), key=lambda i: bool(e.places[i].feeds))

        undefined = hl.undef(e.dtype)
        S[lane, row, block, group, slot] = self._frame([undefined] * len(e.places))
        self.given, self.filled = self._given(), self._filled()
        S[lane, row, block, group, 0] = self._frame(
            [zero if place.initial is None else place.initial(unit, n) for place in e.places]
        )

        self.longest = hl.Func(f"{name}_longest")
        r = hl.RDom([(0, rows * together)], f"{name}_rows")
        self.longest[group] = 0
        self.longest[group] = hl.max(self.longest[group], e.length(inside(group * together * rows + r.x, e.rows)))

        # ---- the step
        K = e.width if e.weights is not None else hl.Expr(0)
        domain = [(0, layout.lanes), (0, layout.tile.vectors), (0, rows), (0, K + 1), (0, self.blocks)]
        # Rounds, each with a loop over k: one a phase, or several where a tile takes fewer sums at a time.
        rounds: list[tuple[int, list[int], bool]] = []  # (phase, places that are summed up, whether the phase ends)
        for phase in range(1 + max(place.phase for place in e.places)):
            fed = [i for i, place in enumerate(e.places) if place.feeds and place.phase == phase]
            size = layout.tile.sums or max(len(fed), 1)
            parts = [fed[first : first + size] for first in range(0, len(fed), size)] or [[]]
            rounds += [(phase, part, part is parts[-1]) for part in parts]
        if len(rounds) > 1:
            domain.append((0, len(rounds)))
        turns = layout.tile.turns
        domain += [(0, 2), (0, blocks(e.steps, 2))] if turns else [(1, e.steps)]
        r = hl.RDom(domain, f"{name}_r")
        self.r = [r[i] for i in range(len(domain))]
        rlane, rvector, rrow, rk, rblock, *loops = self.r
        self.unrolled, (*way, rslot) = ([loops[0]], loops[1:]) if len(rounds) > 1 else ([], loops)
        if turns:
            rblock = hl.select(way[0] == 0, rblock, self.blocks - 1 - rblock)
            rslot = 2 * rslot + way[0] + 1
            r.where(rslot <= e.steps)
            self.unrolled = [*self.unrolled, *way]
        r.where(e.needed(rslot, self.longest[group]))
        if e.idle is not None:
            r.where(~e.idle(rslot) | (rk >= K))  # BPTT of one step of a GRU, 512 wide, 32 rows: 0.93 instead of 1.50 ms
        self.late = [number for number, (_, part, _) in enumerate(rounds) if not part] if len(rounds) > 1 else []
        for number in self.late:
            r.where((loops[0] != number) | (rk >= K))
        at = rvector * layout.lanes + rlane
        # The tile of each task: a block of units, which a group's blocks of rows go through one after another. From
        # an array of its own, since LLVM took sums' indices of three terms for two places, and stored each sum in each
        # iteration of k.
        self.tile_of: hl.Func | None = None
        tile, of_units, of_rows = rblock, rblock, hl.Expr(0)
        if layout.grouped:
            task = hl.Var("task")
            of_units, of_rows = rblock // together, rblock % together
            self.tile_of = hl.Func(f"{name}_tile")
            self.tile_of[task] = self._block(task // together, task % together)
            tile = hl.clamp(self.tile_of[rblock], 0, self.blocks - 1)

        def frame(slot: hl.Expr) -> list[hl.Expr]:
            return [self._part(S[at, rrow, tile, group, slot], i) for i in range(len(e.places))]

        now, before = frame(rslot), frame(rslot - 1)
        seen = Frame(
            now,
            before,
            frame(rslot + 1) if e.ahead else [],
            [hl.Expr(constant[at, rrow, tile, group]) for constant in self.constants],
            [hl.Expr(flag[rrow, of_rows, group, rslot]) != 0 for flag in self.flags],
            e.apart,
        )
        summing = hl.likely(rk < K)
        k = hl.min(hl.likely(rk), e.width - 1)
        result = list(now)
        for number, (phase, part, ends) in enumerate(rounds):
            written = dict(e.step(phase, seen)) if ends else {}
            due = loops[0] == number if len(rounds) > 1 else None
            for i, place in enumerate(e.places):
                sums, value = now[i], written.get(i, now[i])
                for gate, source in place.feeds if i in part else ():
                    assert self.panel is not None
                    from_block = self._block(k // units, of_rows)
                    fed_back = self._part(S[k % units, rrow, from_block, group, rslot - place.lag], source)
                    sums = sums + self.panel[at, gate, k, of_units] * fed_back
                    if not fused:  # LLVM would add up several products first, and others in another tile
                        sums = hl.strict_float(sums)
                if sums is now[i] and value is now[i]:
                    continue
                if i in written:
                    # LLVM sees at once that the condition is false; Halide doesn't, and so gives the index of the block
                    # a name in each expression. Where it had one in some, the others' index was widened to 64 bits in
                    # another order, and LLVM took equal loads for two: activations were computed twice (LSTM, units
                    # shared by threads: 54 divisions in a tile of 6 rows, not 30).
                    value = hl.select((rblock ^ rblock) != 0, now[i] + now[i - 1], value)
                new = hl.select(summing, sums, value)
                result[i] = new if due is None else hl.select(due, new, result[i])
        S[at, rrow, tile, group, rslot] = self._frame(result)

    def _given(self) -> hl.RDom | None:
        """The update that fills places from the caller's arrays, and sums that start from nothing; its domain."""
        e, units, together = self.e, self.layout.units, self.layout.tile.together
        _, row, _, group, _ = self.vars
        zero, undefined = hl.cast(e.dtype, 0), hl.undef(e.dtype)
        r = hl.RDom([(0, e.width), (0, together), (1, self.last)], f"{self.name}_given")
        # No `inside`: the last vector is read under a predicate. Nor in walk.py, which is asked for the place.
        n = hl.clamp((group * together + r.y) * self.layout.tile.rows + row, 0, e.rows - 1)

        def value(place: Place) -> hl.Expr | None:
            if place.given is not None:
                return place.given(r.x, n, hl.clamp(r.z, 1, self.last))
            return zero if place.feeds and place.projected is None and place.offset is None else None

        values = [value(place) for place in e.places]
        if all(one is None for one in values):
            return None
        here = r.x % units, row, self._block(r.x // units, r.y), group, r.z
        self.func[here] = self._frame([undefined if one is None else one for one in values])
        return r

    def _filled(self) -> hl.RVar | None:
        """The update that fills places from the projection and the offsets; its domain over the slots."""
        e, name = self.e, self.name
        lane, row, block, group, _ = self.vars
        unit_block, first_row = self.layout.place(block, group, self.across)
        n = inside(first_row + row, e.rows)
        r = hl.RDom([(1, self.last)], f"{name}_slots")
        if e.projection is not None and all(p.given is not None for p in e.places if p.projected is not None):
            r.where(e.projection.extent > 0)  # it adds nothing then
        slot, S = r[0], self.func
        self.offsets: list[hl.Func] = []

        def value(i: int, place: Place) -> hl.Expr | None:
            if place.offset is not None:
                # In blocks: one that reaches over the edge would gather it in each step otherwise.
                offset = hl.Func(f"{name}_offset{i}")
                offset[lane, block] = place.offset(mostly_inside(block * self.layout.units + lane, e.width))
                self.offsets.append(offset)
                return hl.Expr(offset[lane, unit_block])
            if place.projected is None:
                return None
            assert self.projected is not None
            blocked = self.projected
            part = place.projected(
                lambda gate: hl.Expr(blocked[lane, gate, row, block, group, slot]), n, inside(slot, self.last + 1)
            )
            return part if place.given is None else self._part(S[lane, row, block, group, slot], i) + part

        values = [value(i, place) for i, place in enumerate(e.places)]
        if all(one is None for one in values):
            return None
        S[lane, row, block, group, slot] = self._frame([hl.undef(e.dtype) if one is None else one for one in values])
        return slot

    def _block(self, of_units: hl.Expr, of_rows: hl.Expr) -> hl.Expr:
        """Where a group has a block of units of one of its blocks of rows; `Layout.place` goes the other way."""
        return of_rows * self.across + of_units

    def _frame(self, values: Sequence[hl.Expr]) -> tuple[hl.Expr, ...]:
        """The places' values as the Func has them."""
        return tuple(values[i] for i in self.order)

    def _part(self, frame: hl.FuncRef, index: int) -> hl.Expr:
        """A place's value."""
        return hl.Expr(frame[self.order.index(index)])

    def value(self, index: int, unit: hl.Expr, row: hl.Expr, slot: hl.Expr) -> hl.Expr:
        """What place `index` of a unit and a row holds in a slot."""
        units, rows, together = self.layout.units, self.layout.tile.rows, self.layout.tile.together
        block, group = self._block(unit // units, row // rows % together), row // rows // together
        return self._part(self.func[unit % units, row % rows, block, group, slot], index)

    def schedule(self, consumer: hl.Func, where: hl.Var, split_units: hl.Expr | None) -> None:
        """Computed at loop `where` of the consumer, a loop over blocks of rows. Where `split_units` holds, the blocks
        of units are spread over the threads, in every step."""
        layout, S = self.layout, self.func
        lane, row, block, group, slot = self.vars
        outer, inner = hl.RVar("outer"), hl.RVar("inner")

        # Bounds that are said to start at 0 keep the index of a sum one and the same expression where it is read and
        # written; otherwise LLVM can't tell that it is one place, and stores it in every iteration of k.
        S.compute_at(consumer, where).bound(lane, 0, layout.units).bound(row, 0, layout.tile.rows)
        S.bound(block, 0, self.blocks).bound_extent(group, 1).bound(slot, 0, self.last + 1 + int(layout.tile.turns))
        guard, stage = hl.TailStrategy.GuardWithIf, 0
        given = fill = None
        units, batch, chunk = hl.Var("units"), hl.Var("batch"), hl.RVar("chunk")
        if self.given is not None:
            # Along the rows of the caller's arrays, and the last vector of a row under a mask. LSTM, 256 wide, 48 rows:
            # BPTT reads the tape in 3.1 instead of 6.5 ms, block by block, of 33 in all.
            given, (unit, together, step) = S.update(stage).allow_race_conditions(), (self.given[i] for i in range(3))
            within, stage = hl.RVar("within"), stage + 1
            given.split(unit, unit, within, layout.units, hl.TailStrategy.Predicate).vectorize(within)
            given.split(step, chunk, step, CHUNK, guard)
            given.reorder(within, unit, row, together, step, chunk, group)
        if self.filled is not None:
            fill, stage = S.update(stage), stage + 1
            fill.split(self.filled, outer, inner, layout.tile.steps, guard)
            fill.split(block, batch, units, self.across, hl.TailStrategy.RoundUp)
            fill.reorder(lane, row, inner, outer, batch, units, group).vectorize(lane, layout.lanes).unroll(row)
            fill.never_partition([inner, outer, batch, group])
        S.update(stage).vectorize(lane, layout.lanes)
        for offset in self.offsets:
            offset.compute_root().bound_extent(lane, layout.units).vectorize(lane, layout.lanes)
        if self.projected is not None:
            self.projected.schedule(S, outer)
        for constant in self.constants:
            constant.compute_at(consumer, where).bound_extent(lane, layout.units).bound_extent(row, layout.tile.rows)
            constant.vectorize(lane, layout.lanes)
        if self.tile_of is not None:
            self.tile_of.compute_at(consumer, where)
        self.longest.compute_at(consumer, where).bound_extent(group, 1)
        for flag in self.flags:
            flag.compute_at(consumer, where).bound_extent(row, layout.tile.rows)

        # No race: each lane, vector, row and block of a slot writes its own place and reads the slot before.
        rlane, rvector, rrow, rk, rblock, *loops = self.r
        update = S.update(stage + 1).allow_race_conditions()
        update.vectorize(rlane)
        for variable in (rvector, rrow, *self.unrolled):
            update.unroll(variable)
        update.reorder(rlane, rvector, rrow, rk, rblock, *loops, group)
        if not self.late:  # where a round has but its last iteration, Halide takes the demand for an error
            update.always_partition([rk])
        if layout.grouped:  # a step of a group takes a millisecond
            if given is not None:
                given.parallel(chunk)
            if fill is not None:
                fill.parallel(units)
            update.parallel(rblock)
        elif split_units is not None and not layout.tile.turns:
            # The same code, with one task or many. In each step the one task costs 50 to 75 ns; so where that counts,
            # and people mind, steps have code for both, which takes twice as long to compile.
            task, rtask, several = hl.Var("task"), hl.RVar("rtask"), hl.RVar("several")
            size = hl.select(split_units, 1, self.blocks)
            if given is not None:
                most = hl.select(split_units, 1, blocks(self.last, CHUNK))
                given.split(chunk, several, chunk, most, guard).parallel(several)
            if fill is not None:
                fill.split(units, task, units, size, guard).parallel(task)
            if self.e.lean != Lean.FEWEST and layout.name in ("single", "single_narrow", "wide"):
                update.specialize(split_units).parallel(rblock)
            else:
                update.split(rblock, rtask, rblock, size, guard).parallel(rtask)


Copied = Callable[[Recurrence, hl.Expr, hl.Expr, hl.Expr], Sequence[hl.Expr]]


def sequence(
    out: hl.Func,
    name: str,
    e: Equations,
    plan: Schedule,
    threads: hl.Expr,
    columns: int,
    copied: Copied,
    *,
    beside: bool = False,
) -> None:
    """out[unit, row, i, column] = copied(recurrence, unit, row, i)[column], for as many columns as `out` has;
    `beside`: out[unit, column, row, i]."""
    j, v, n, i = (hl.Var(name) for name in ("j", "v", "n", "i"))
    here = (j, v, n, i) if beside else (j, n, i, v)

    # ---- algorithm
    out[here] = hl.undef(e.dtype)
    made = []
    found = layouts(plan, e.width, e.rows, e.sums, e.lean, e.fed_back)
    if e.weights is not None:
        e.weights.expect(e.width, e.width, found)
    if e.projection is not None and isinstance(e.projection.weight, Packed):
        e.projection.weight.expect(e.width, e.projection.extent, found)
    for layout, condition in found:
        recurrence = Recurrence(f"{name}_{layout.name}", e, layout, plan.fused)
        once = only_if(condition, f"{name}_if_{layout.name}")
        values = copied(recurrence, j, n, i + once)
        out[here] = values[0] if columns == 1 else hl.mux(v, list(values))
        made.append((recurrence, once))

    # ---- schedule
    if not plan.by_hand:
        return
    for number, (recurrence, once) in enumerate(made):
        layout = recurrence.layout
        jo, ji, batch, group, row, vo, vi = (
            hl.Var(f"{v}_{layout.name}") for v in ("jo", "ji", "batch", "group", "row", "vo", "vi")
        )
        guard = hl.TailStrategy.GuardWithIf
        update = out.update(number)
        update.split(j, jo, ji, layout.units, hl.TailStrategy.PredicateStores)
        update.split(n, batch, row, layout.tile.rows, guard)
        update.split(batch, group, batch, layout.tile.together, guard).split(v, vo, vi, columns, guard)
        count = blocks(e.rows, layout.tile.rows * layout.tile.together)
        # A step at a time, and its rows to their end. Block of units by block of units, over all steps, the rows lie
        # too far apart for the prefetchers (Sapphire Rapids, LSTM: 40 wide, forward 1.23 times as fast, 24 wide,
        # training 1.27; forward with what BPTT wants to see, 256 wide: 25% of the time became 14%).
        update.reorder(ji, vi, jo, row, i, vo, batch, group, once).vectorize(ji).unroll(vi)
        update.never_partition([row, i, batch, group, vo])
        if plan.parallel:
            update.parallel(group)
        shared = plan.split_units and e.weights is not None and layout.name not in ("narrow", "half", "block")
        recurrence.schedule(out, group, shares_units(count, threads, e.fed_back) if shared else None)
