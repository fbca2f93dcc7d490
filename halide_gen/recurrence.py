"""The engine: a whole sequence of a recurrent layer, forward or back, as one Func.

Halide has no mutual recursion between Funcs, so "sums of products with the last state, then the cell's equations"
can't be two Funcs. Here one tuple-valued Func `S` carries what a step produces: the sums, then the values that the cell
makes of them. Its update runs over a domain whose loop over k has one iteration too many: for k < K it adds
U[k] S[k, slot - 1] to the sums, at k = K it applies the cell. `likely` and `always_partition` peel that last iteration.

Slots count the steps in the order of computation; slot 0 is the state before the first step. Forward, slot s is time
s - 1; back, it is time T - s. Each slot is first filled with all that its step needs besides the slot before: the sums
with their input products, the values with what the forward pass left behind. The step then writes over it.

Look at the assembly to check it: the innermost loop over k holds multiply-adds and loads, no stores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import halide as hl
from blocks import Layout, blocks, inside, layouts, mostly_inside, only_if
from matmul import BlockedProjection, Panel, Projection, Value, Weight
from schedules import Schedule

# Weights from which on one step is worth 1 us for a fork and join: 1024 x 1024 gains 1.35 on 2 threads.
SPLIT_UNITS = 1 << 17

Step = Callable[[list[hl.Expr], list[hl.Expr], list[hl.Expr]], tuple[list[hl.Expr], list[hl.Expr]]]


@dataclass(frozen=True)
class Equations:
    """What the engine computes, free of layout and schedule."""

    width: hl.Expr  # units, and the values of each that are fed back
    rows: hl.Expr  # of the batch
    steps: hl.Expr
    sums: Sequence[Projection]  # what each sum starts from, by slot
    values: Sequence[Value]  # what each value's place in a slot holds before the step
    initial: Sequence[Callable[[hl.Expr, hl.Expr], hl.Expr]]  # of each value, in slot 0
    weights: Sequence[Sequence[Weight]]  # [sum][value fed back]
    step: Step  # (sums, values in place, values of the slot before) -> (sums to keep, values)


class Recurrence:
    """The equations in the blocked layout of one register tile."""

    def __init__(self, name: str, e: Equations, layout: Layout) -> None:
        self.layout, self.e, self.sums = layout, e, len(e.sums)
        self.vars = tuple(hl.Var(v) for v in ("lane", "row", "block", "batch", "slot"))
        lane, row, block, batch, slot = self.vars
        units, rows = layout.units, layout.tile.rows
        unit, n = mostly_inside(block * units + lane, e.width), inside(batch * rows + row, e.rows)

        self.starts = [
            BlockedProjection(f"{name}_start{i}", p, e.width, e.rows, e.steps + 1, layout) for i, p in enumerate(e.sums)
        ]
        # [sum][value fed back]; the first values are the ones that are
        self.weights = [
            [Panel(f"{name}_weights{a}{b}", w, e.width, layout) for b, w in enumerate(row)]
            for a, row in enumerate(e.weights)
        ]

        S = self.func = hl.Func(name)
        S[lane, row, block, batch, slot] = tuple(start[lane, row, block, batch, slot] for start in self.starts) + tuple(
            value(unit, n, inside(slot, e.steps + 1)) for value in e.values
        )
        zeros = tuple(hl.cast(v.type(), 0) for v in [e.initial[0](unit, n)] * self.sums)
        S[lane, row, block, batch, 0] = zeros + tuple(initial(unit, n) for initial in e.initial)

        self.r = hl.RDom(
            [
                (0, layout.lanes),
                (0, layout.tile.vectors),
                (0, rows),
                (0, e.width + 1),
                (0, blocks(e.width, units)),
                (1, e.steps),
            ],
            f"{name}_r",
        )
        rlane, rvector, rrow, rk, rblock, rslot = (self.r[i] for i in range(6))
        at = rvector * layout.lanes + rlane
        now = [hl.Expr(S[at, rrow, rblock, batch, rslot][i]) for i in range(self.sums + len(e.values))]
        before = [
            hl.Expr(S[at, rrow, rblock, batch, rslot - 1][i]) for i in range(self.sums, self.sums + len(e.values))
        ]
        summing = hl.likely(rk < e.width)
        k = hl.min(hl.likely(rk), e.width - 1)
        sums = now[: self.sums]
        for a, panels in enumerate(self.weights):
            for b, panel in enumerate(panels):
                fed_back = hl.Expr(S[k % units, rrow, k // units, batch, rslot - 1][self.sums + b])
                sums[a] = sums[a] + panel[at, k, rblock] * fed_back
        kept, values = e.step(now[: self.sums], now[self.sums :], before)
        S[at, rrow, rblock, batch, rslot] = tuple(
            hl.select(summing, a, b) for a, b in zip([*sums, *now[self.sums :]], [*kept, *values], strict=True)
        )

    def value(self, index: int, unit: hl.Expr, row: hl.Expr, slot: hl.Expr) -> hl.Expr:
        """Value number `index` of a unit and a row in a slot."""
        units, rows = self.layout.units, self.layout.tile.rows
        return hl.Expr(self.func[unit % units, row % rows, unit // units, row // rows, slot][self.sums + index])

    def schedule(self, consumer: hl.Func, where: hl.Var, split_units: hl.Expr | None) -> None:
        """Computed at loop `where` of the consumer, a loop over blocks of rows. Where `split_units` holds, the blocks
        of units are spread over the threads, in every step."""
        layout, S = self.layout, self.func
        lane, row, block, batch, slot = self.vars
        outer, inner = hl.Var("outer"), hl.Var("inner")

        # Bounds that are said to start at 0 keep the index of a sum one and the same expression where it is read and
        # written; otherwise LLVM can't tell that it is one place, and stores it in every iteration of k.
        slots = blocks(self.e.steps + 1, layout.tile.steps) * layout.tile.steps
        S.compute_at(consumer, where).bound(lane, 0, layout.units).bound(row, 0, layout.tile.rows)
        S.bound(block, 0, blocks(self.e.width, layout.units)).bound(slot, 0, slots)
        S.split(slot, outer, inner, layout.tile.steps, hl.TailStrategy.RoundUp)
        S.reorder(lane, row, inner, outer, batch, block).vectorize(lane, layout.lanes)
        S.never_partition([row, inner, outer, batch])
        S.update(0).vectorize(lane, layout.lanes)
        for start in self.starts:
            start.schedule(S, outer)
        for panel in (panel for row in self.weights for panel in row):
            panel.schedule()

        # No race: each lane, vector, row and block of a slot writes its own place and reads the slot before.
        rlane, rvector, rrow, rk, rblock, rslot = (self.r[i] for i in range(6))
        update = S.update(1).allow_race_conditions()
        update.vectorize(rlane).unroll(rvector).unroll(rrow)
        update.reorder(rlane, rvector, rrow, rk, batch, rblock, rslot).always_partition([rk])
        if split_units is not None:
            S.specialize(split_units).parallel(block)
            update.specialize(split_units).parallel(rblock)


def sequence(
    out: hl.Func,
    name: str,
    e: Equations,
    plan: Schedule,
    threads: hl.Expr,
    slot: Callable[[hl.Expr], hl.Expr],
) -> None:
    """out[unit, row, t] = the first value of slot(t), for every t of `out`."""
    j, n, t = (hl.Var(v) for v in ("j", "n", "t"))

    # ---- algorithm
    out[j, n, t] = hl.undef(e.initial[0](j, n).type())
    made = []
    for layout, condition in layouts(plan, e.width, e.rows):
        recurrence = Recurrence(f"{name}_{layout.name}", e, layout)
        once = only_if(condition, f"{name}_if_{layout.name}")
        out[j, n, t] = recurrence.value(0, j, n, slot(t + once))
        made.append((recurrence, once))

    # ---- schedule
    for i, (recurrence, once) in enumerate(made):
        layout = recurrence.layout
        jo, ji, batch, row = (hl.Var(f"{v}_{layout.name}") for v in ("jo", "ji", "batch", "row"))
        guard = hl.TailStrategy.GuardWithIf
        update = out.update(i)
        update.split(j, jo, ji, layout.units, guard).split(n, batch, row, layout.tile.rows, guard)
        update.reorder(ji, row, t, jo, batch, once).vectorize(ji, layout.lanes, guard)
        update.never_partition([row, t, batch])
        if plan.parallel:
            update.parallel(batch)
        few = (blocks(e.rows, layout.tile.rows) < threads) & (e.width * e.width >= SPLIT_UNITS)
        recurrence.schedule(out, batch, few if plan.split_units else None)
