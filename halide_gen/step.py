"""The generator of one time step, for streams: the states after it, and what is read out of them, one pipeline.

A sequence's pass packs the weights first, which a single step of one row can't pay for. Here the weights are read where
they are, each row of them once, as dot products along the axis that is contiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import halide as hl
from activations import constant
from blocks import blocks, starts_at_zero
from cells import CELLS
from derivation import derive
from expressions import Expression
from frames import compute, kept_apart
from schedules import instruction_set, schedule

# Dot products in flight, of so many units as these leave for each of a phase's sums.
CHAINS = {"avx512": 8, "avx2": 8, "sse41": 8}

Product = tuple[Callable[[hl.Expr, hl.Expr], hl.Expr], Callable[[hl.Expr, hl.Expr], hl.Expr]]
"""(weight(k, unit), factor(k, row))."""


@dataclass(frozen=True)
class Round:
    """Products over the same k, one or none for each sum."""

    extent: hl.Expr
    products: Sequence[Product | None]


class Dots:
    """Sums of dot products, [unit, row] of each: `lanes` units at a time, and of those `group` in registers."""

    def __init__(self, name: str, rounds: Sequence[Round], units: hl.Expr, rows: hl.Expr, lanes: int, group: int, dtype: hl.Type):
        self.lanes, self.group, self.count = lanes, group, len(rounds[0].products)
        self.lane, self.unit, self.n = hl.Var("lane"), hl.Var("unit"), hl.Var("n")
        lane, unit, n = self.lane, self.unit, self.n
        zeros = [constant_of(dtype)] * self.count

        # Each lane adds up every so many products; the k that are left over are one masked vector.
        self.partial = hl.Func(f"{name}_partial")
        self.partial[lane, unit, n] = packed(zeros)
        self.loops: list[hl.RVar] = []
        row = hl.clamp(unit, 0, rows - 1)
        self.edges: list[hl.Func] = []
        k = hl.Var("k")
        for i, part in enumerate(rounds):
            given = [product for product in part.products if product is not None]

            def sums(terms: Sequence[hl.Expr], part: Round = part) -> Any:
                left = iter(terms)
                old = unpacked(self.partial[lane, unit, n], self.count)
                return packed([o if product is None else o + next(left) for o, product in zip(old, part.products, strict=True)])

            whole = hl.RDom([(0, part.extent // lanes)])
            at = whole[0] * lanes + lane
            self.partial[lane, unit, n] = sums([weight(at, row) * factor(at, n) for weight, factor in given])
            edge = hl.Func(f"{name}_edge{i}")
            edge[k, unit, n] = packed([weight(k, row) * factor(k, n) for weight, factor in given])
            rest = hl.RDom([(0, blocks(part.extent, lanes) - part.extent // lanes)])
            at = hl.unsafe_promise_clamped((part.extent // lanes + rest[0]) * lanes + lane, 0, part.extent - 1)
            inside = lane < part.extent % lanes
            self.partial[lane, unit, n] = sums(
                [hl.select(inside, term, constant_of(dtype)) for term in unpacked(edge[at, unit, n], len(given))]
            )
            self.loops += [whole[0], rest[0]]
            self.edges.append(edge)

        # the lanes of a unit, then the units of a block, group by group
        across = hl.RDom([(0, lanes)])
        self.sums = []
        for i in range(self.count):
            total = hl.Func(f"{name}_sum{i}")
            total[unit, n] = constant_of(dtype)
            total[unit, n] += unpacked(self.partial[across[0], unit, n], self.count)[i]
            self.sums.append((total, across[0]))
        self.block = hl.Var("block")
        self.func = hl.Func(name)
        self.func[lane, self.block, n] = packed(zeros)
        r = self.r = hl.RDom([(0, group), (0, lanes // group)])
        within = r[1] * group + r[0]
        r.where(self.block * lanes + r[1] * group < units)
        self.func[within, self.block, n] = packed([total[self.block * lanes + within, n] for total, _ in self.sums])

    def __getitem__(self, index: tuple[hl.Expr, hl.Expr]) -> list[hl.Expr]:
        unit, n = index
        return unpacked(self.func[unit % self.lanes, unit // self.lanes, n], self.count)

    def schedule(self) -> None:
        """In registers; whoever uses the sums says where."""
        u, groups = self.r[0], self.r[1]
        self.func.vectorize(self.lane, self.lanes).update(0).unroll(u).never_partition([groups])
        for total, lane in self.sums:
            total.compute_at(self.func, groups).bound_extent(self.unit, self.group).unroll(self.unit)
            total.update(0).atomic().vectorize(lane).unroll(self.unit)
        self.partial.compute_at(self.func, groups).vectorize(self.lane, self.lanes).unroll(self.unit)
        self.partial.bound_extent(self.unit, self.group).bound_extent(self.lane, self.lanes)
        for i, k in enumerate(self.loops):
            update = self.partial.update(i)
            update.reorder(self.lane, self.unit, k).vectorize(self.lane, self.lanes).unroll(self.unit)
        for edge, k in zip(self.edges, self.loops[1::2], strict=True):
            edge.compute_at(self.partial, k).bound_storage(edge.args()[0], self.lanes).bound_extent(self.unit, self.group)
            edge.vectorize(edge.args()[0], self.lanes, hl.TailStrategy.PredicateLoads).unroll(self.unit)

def constant_of(dtype: hl.Type) -> hl.Expr:
    return hl.cast(dtype, 0)


def packed(values: Sequence[hl.Expr]) -> Any:
    """What a Func of so many values is set to."""
    return values[0] if len(values) == 1 else hl.Tuple(list(values))


def unpacked(value: Any, count: int) -> list[hl.Expr]:
    """The other way."""
    return [hl.Expr(value)] if count == 1 else [value[i] for i in range(count)]


@hl.generator(name="step")
class Step:
    """The states after a time step, and y = W_ho h + b_o; or with O = 0 no y.

    Shapes are NumPy's; a buffer's dimensions come in the reverse order. N, H >= 1; I, O >= 0. A gates that see x, B
    gates that see the state.
    """

    cell = hl.GeneratorParam("rnn_tanh")
    schedule = hl.GeneratorParam("tuned")
    dtype = hl.GeneratorParam("float32")

    def configure(self: Any) -> None:
        dtype = {"float32": hl.Float(32), "float64": hl.Float(64)}[self.dtype]
        cell = derive(CELLS[self.cell])
        self.add_input("threads", hl.InputScalar(hl.Int(32)))
        self.add_input("x", hl.InputBuffer(dtype, 2))  # (N, I)
        for k in range(len(cell.new)):
            self.add_input(f"before_{k}", hl.InputBuffer(dtype, 2))  # (N, H)
        self.add_input("weight_ih", hl.InputBuffer(dtype, 2))  # (A H, I)
        self.add_input("weight_hh", hl.InputBuffer(dtype, 2))  # (B H, H)
        self.add_input("bias_ih", hl.InputBuffer(dtype, 1))  # (A H,)
        self.add_input("bias_hh", hl.InputBuffer(dtype, 1))  # (B H,)
        for p in range(len(cell.vectors)):
            self.add_input(f"vector_{p}", hl.InputBuffer(dtype, 1))  # (H,)
        self.add_input("weight_ho", hl.InputBuffer(dtype, 2))  # (O, H)
        self.add_input("bias_o", hl.InputBuffer(dtype, 1))  # (O,)
        self.add_output("after", hl.OutputBuffer([dtype] * len(cell.new), 2))  # (N, H) each
        self.add_output("y", hl.OutputBuffer(dtype, 2))  # (N, O)

    def generate(self: Any) -> None:
        g: Any = self
        cell = derive(CELLS[g.cell])
        before = [getattr(g, f"before_{k}") for k in range(len(cell.new))]
        vectors = [getattr(g, f"vector_{p}") for p in range(len(cell.vectors))]
        starts_at_zero(g.x, *before, g.weight_ih, g.weight_hh, g.bias_ih, g.bias_hh, *vectors, g.weight_ho, g.bias_o)
        for buffer in (g.after.output_buffers()[0], g.y.output_buffer()):
            for i in range(2):
                buffer.dim(i).set_min(0)
        plan = schedule(g.schedule, g.target(), g.x.type())
        lanes, chains = plan.lanes, CHAINS[instruction_set(g.target())]
        H, I, O = before[0].dim(0).extent(), g.x.dim(0).extent(), g.bias_o.dim(0).extent()
        j, n, o = hl.Var("j"), hl.Var("n"), hl.Var("o")

        # ---- algorithm
        def apart(x: hl.Expr) -> hl.Expr:
            return kept_apart(x, g.threads >> 20)

        def leaves(j: hl.Expr, n: hl.Expr) -> dict[Expression, hl.Expr]:
            known = {leaf: before[k][j, n] for k, leaf in enumerate(cell.state_leaves)}
            return known | {leaf: vectors[p][j] for p, leaf in enumerate(cell.vector_leaves)}

        sums: list[tuple[list[Any], Dots]] = []  # of each phase

        def known(j: hl.Expr, n: hl.Expr) -> dict[Expression, hl.Expr]:
            """What is there after the phases so far."""
            values = leaves(j, n)
            for totals, dots in sums:
                for total, value in zip(totals, dots[j, n], strict=True):
                    if total.input is not None:
                        value = value + g.bias_ih[total.input * H + j]
                    if total.hidden is not None:
                        value = value + g.bias_hh[total.hidden * H + j]
                    values[total.node] = value
            return values

        operands: dict[int, hl.Func] = {}

        def operand(m: int, phase: int) -> Callable[[hl.Expr, hl.Expr], hl.Expr]:
            value = cell.operands[m].value
            if value in cell.state_leaves:
                return lambda k, n: before[cell.state_leaves.index(value)][k, n]
            if m not in operands:
                operands[m] = hl.Func(f"operand_{m}")
                operands[m][j, n] = compute([value], known(j, n), apart)[0]
            return lambda k, n: operands[m][k, n]

        def from_input(a: int) -> Product:
            return lambda k, j: g.weight_ih[k, a * H + j], lambda k, n: g.x[k, n]

        def from_hidden(b: int, m: int, phase: int) -> Product:
            return lambda k, j: g.weight_hh[k, b * H + j], operand(m, phase)

        def group(count: int) -> int:
            return min(lanes, 1 << (max(1, chains // count).bit_length() - 1))

        for phase in range(cell.phases):
            totals = [s for s in cell.sums if s.phase == phase]
            inputs = [None if s.input is None else from_input(s.input) for s in totals]
            hidden = [
                None if s.hidden is None or s.operand is None else from_hidden(s.hidden, s.operand, phase)
                for s in totals
            ]
            rounds = [Round(extent, made) for extent, made in ((I, inputs), (H, hidden)) if any(made)]
            dots = Dots(f"dots_{phase}", rounds, H, H, lanes, group(len(totals)), g.x.type())
            sums.append((totals, dots))
        g.after[j, n] = packed(compute(cell.new, known(j, n), apart))
        readout: Product = (lambda k, o: g.weight_ho[k, o]), (lambda k, n: unpacked(g.after[k, n], len(cell.new))[0])
        out = Dots("readout", [Round(H, [readout])], O, g.weight_ho.dim(1).extent(), lanes, group(1), g.x.type())
        g.y[o, n] = out[o, n][0] + g.bias_o[o]

        # ---- schedule
        masked = hl.TailStrategy.Predicate
        jo, ji, oo, oi = hl.Var("jo"), hl.Var("ji"), hl.Var("oo"), hl.Var("oi")
        g.after.compute_root().split(j, jo, ji, lanes, masked).vectorize(ji).never_partition([jo])
        g.y.split(o, oo, oi, lanes, masked).vectorize(oi).never_partition([oo])
        for made in operands.values():
            made.compute_at(g.after, n).split(j, jo, ji, lanes, masked).vectorize(ji).never_partition([jo])
        for phase, (_, dots) in enumerate(sums):
            dots.schedule()
            dots.func.compute_at(g.after, n if phase < cell.phases - 1 else jo)
        out.schedule()
        out.func.compute_at(g.y, oo)


if __name__ == "__main__":
    hl.main()
