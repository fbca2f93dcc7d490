"""The generator of a single time step, for streams: the states after it, and what is read out of them, one pipeline.

The pass over a sequence packs the weights first, which one step of a few rows can't pay for. Here they are read where
they are, each once for a row of the batch, as dot products along the axis that is contiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import halide as hl
from blocks import blocks, starts_at_zero
from cells import CELLS
from derivation import Sum, derive
from expressions import Expression
from frames import compute, kept_apart
from machine import STEP_UNITS

# Sums in registers: units x sums of a phase. AMD EPYC (Zen 4), one thread. LSTM, 32 and 64 units: 0.55 and 1.7 us with
# 4 sums, 0.57 and 1.8 with 8, 0.71 and 2.3 with 16, whose pointers spill; tanh, 16 and 64 units: 0.09 and 0.45 with 4,
# 0.07 and 0.37 with 8 and 16. Vectors of 16 lanes were no faster than those of 8, and for 8 units 1.3 times as slow.
CHAINS = 8

Value = Callable[[hl.Expr, hl.Expr], hl.Expr]


@dataclass(frozen=True)
class Product:
    """The sum over k of weight(k, unit) factor(k, row)."""

    weight: Value
    factor: Value


@dataclass(frozen=True)
class Round:
    """Products over the same k: one or none for each sum."""

    extent: hl.Expr
    products: Sequence[Product | None]


class Dots:
    """Sums of dot products for `units` units of each row; [unit, row] is the list of a unit's sums.

    The lanes of a vector run over k, the vectors over a few units at a time. A unit's lanes are added up at the end.
    `rows`: of the weights.
    """

    def __init__(self, name: str, rounds: Sequence[Round], units: hl.Expr, rows: hl.Expr, lanes: int, zero: hl.Expr):
        self.lanes, self.count = lanes, len(rounds[0].products)
        self.group = min(lanes, 1 << (max(1, CHAINS // self.count).bit_length() - 1))
        self.lane, self.unit, self.n, self.k, self.block = (hl.Var(v) for v in ("lane", "unit", "n", "k", "block"))
        lane, unit, n, k = self.lane, self.unit, self.n, self.k
        row = hl.clamp(unit, 0, rows - 1)

        self.partial = hl.Func(f"{name}_partial")
        self.partial[lane, unit, n] = packed([zero] * self.count)
        self.loops: list[hl.RVar] = []
        self.edges: list[tuple[hl.Func, hl.RVar]] = []
        for i, part in enumerate(rounds):
            given = [product for product in part.products if product is not None]
            whole = hl.RDom([(0, part.extent // lanes)])
            at = whole[0] * lanes + lane
            self._add(part, [product.weight(at, row) * product.factor(at, n) for product in given])
            # The k that are left over, if any: a vector whose loads are masked.
            edge = hl.Func(f"{name}_edge{i}")
            edge[k, unit, n] = packed([product.weight(k, row) * product.factor(k, n) for product in given])
            rest = hl.RDom([(0, blocks(part.extent, lanes) - part.extent // lanes)])
            at = hl.unsafe_promise_clamped((part.extent // lanes + rest[0]) * lanes + lane, 0, part.extent - 1)
            terms = unpacked(edge[at, unit, n], len(given))
            self._add(part, [hl.select(lane < part.extent % lanes, term, zero) for term in terms])
            self.loops += [whole[0], rest[0]]
            self.edges.append((edge, rest[0]))

        self.totals: list[tuple[hl.Func, hl.RVar]] = []
        for i in range(self.count):
            total, across = hl.Func(f"{name}_total{i}"), hl.RDom([(0, lanes)])
            total[unit, n] = zero
            total[unit, n] += unpacked(self.partial[across[0], unit, n], self.count)[i]
            self.totals.append((total, across[0]))

        # [lane, block, row]: as many units as lanes, for vectors of units in what the sums are for
        self.func = hl.Func(name)
        self.func[lane, self.block, n] = packed([zero] * self.count)
        few = hl.RDom([(0, self.group), (0, lanes // self.group)])
        few.where(self.block * lanes + few[1] * self.group < units)
        self.few = few[0], few[1]
        within = few[1] * self.group + few[0]
        self.func[within, self.block, n] = packed([total[self.block * lanes + within, n] for total, _ in self.totals])

    def _add(self, part: Round, terms: Sequence[hl.Expr]) -> None:
        """An update of the partial sums, by a term for each product of a round."""
        old = unpacked(self.partial[self.lane, self.unit, self.n], self.count)
        left = iter(terms)
        new = [o if product is None else o + next(left) for o, product in zip(old, part.products, strict=True)]
        self.partial[self.lane, self.unit, self.n] = packed(new)

    def __getitem__(self, index: tuple[hl.Expr, hl.Expr]) -> list[hl.Expr]:
        unit, n = index
        return unpacked(self.func[unit % self.lanes, unit // self.lanes, n], self.count)

    def schedule(self) -> None:
        """Everything but where the sums are computed."""
        unit, groups = self.few
        self.func.vectorize(self.lane, self.lanes).update(0).unroll(unit).never_partition([groups])
        for total, across in self.totals:
            total.compute_at(self.func, groups).bound_extent(self.unit, self.group).unroll(self.unit)
            total.update(0).atomic().vectorize(across).unroll(self.unit)
        self.partial.compute_at(self.func, groups).vectorize(self.lane, self.lanes).unroll(self.unit)
        self.partial.bound_extent(self.lane, self.lanes).bound_extent(self.unit, self.group)
        for i, k in enumerate(self.loops):
            update = self.partial.update(i).reorder(self.lane, self.unit, k)
            update.vectorize(self.lane, self.lanes).unroll(self.unit)
        for edge, rest in self.edges:
            edge.compute_at(self.partial, rest).bound_extent(self.unit, self.group).unroll(self.unit)
            edge.bound_storage(self.k, self.lanes).vectorize(self.k, self.lanes, hl.TailStrategy.PredicateLoads)


def packed(values: Sequence[hl.Expr]) -> Any:
    """What a Func of so many values is set to."""
    return values[0] if len(values) == 1 else hl.Tuple(list(values))


def unpacked(value: Any, count: int) -> list[hl.Expr]:
    """The other way."""
    return [hl.Expr(value)] if count == 1 else [value[i] for i in range(count)]


@hl.generator(name="step")
class Step:
    """The states after a time step, and y = W_ho h + b_o (cells.py, derivation.py).

    Shapes are NumPy's; a buffer's dimensions come in the reverse order. 1 <= H <= STEP_UNITS; I, N, O >= 0. A gates
    that see x, B gates that see the state. One thread.
    """

    cell = hl.GeneratorParam("rnn_tanh")
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
            buffer.dim(0).set_min(0)
            buffer.dim(1).set_min(0)
        dtype, lanes = g.x.type(), g.natural_vector_size(g.x.type())
        H, I, O = before[0].dim(0).extent(), g.x.dim(0).extent(), g.bias_o.dim(0).extent()
        j, n, o = hl.Var("j"), hl.Var("n"), hl.Var("o")

        # ---- algorithm
        zero = hl.cast(dtype, 0)
        phases: list[tuple[list[Sum], Dots]] = []
        operands: dict[int, hl.Func] = {}

        def apart(x: hl.Expr) -> hl.Expr:
            return kept_apart(x, g.threads >> 20)

        def known() -> dict[Expression, hl.Expr]:
            """What is there after the phases so far."""
            values = {leaf: before[k][j, n] for k, leaf in enumerate(cell.state_leaves)}
            values |= {leaf: vectors[p][j] for p, leaf in enumerate(cell.vector_leaves)}
            for sums, dots in phases:
                for total, value in zip(sums, dots[j, n], strict=True):
                    if total.input is not None:
                        value = value + g.bias_ih[total.input * H + j]
                    if total.hidden is not None:
                        value = value + g.bias_hh[total.hidden * H + j]
                    values[total.node] = value
            return values

        def factor(m: int) -> Value:
            """An operand of recurrent products: a state as it came, or computed for all units first."""
            value = cell.operands[m].value
            if value in cell.state_leaves:
                state = before[cell.state_leaves.index(value)]
                return lambda k, n: state[k, n]
            if m not in operands:
                operands[m] = hl.Func(f"operand_{m}")
                operands[m][j, n] = compute([value], known(), apart)[0]
            return lambda k, n: operands[m][k, n]

        def from_input(total: Sum) -> Product | None:
            a = total.input
            if a is None:
                return None
            return Product(lambda k, j: g.weight_ih[k, a * H + j], lambda k, n: g.x[k, n])

        def from_hidden(total: Sum) -> Product | None:
            b, m = total.hidden, total.operand
            if b is None or m is None:
                return None
            return Product(lambda k, j: g.weight_hh[k, b * H + j], factor(m))

        for phase in range(cell.phases):
            sums = [total for total in cell.sums if total.phase == phase]
            made = (I, [from_input(total) for total in sums]), (H, [from_hidden(total) for total in sums])
            rounds = [Round(extent, products) for extent, products in made if any(products)]
            if rounds:  # the first phase may do without
                phases.append((sums, Dots(f"dots_{phase}", rounds, H, H, lanes, zero)))
        g.after[j, n] = packed(compute(cell.new, known(), apart))

        read = Product(lambda k, o: g.weight_ho[k, o], lambda k, n: unpacked(g.after[k, n], len(cell.new))[0])
        readout = Dots("readout", [Round(H, [read])], O, g.weight_ho.dim(1).extent(), lanes, zero)
        g.y[o, n] = readout[o, n][0] + g.bias_o[o]

        # ---- schedule
        # AMD EPYC (Zen 4), one thread, LSTM with I = H, one row: 0.11 us for 8 units, 0.57 for 32, 1.7 for 64, and 5.8
        # for 128, whose 512 KiB of weights come from the L2 cache at 90 GB/s.
        block, lane = hl.Var("block"), hl.Var("lane")

        def by_vectors(func: hl.Func, axis: hl.Var) -> None:
            func.split(axis, block, lane, lanes, hl.TailStrategy.Predicate).vectorize(lane).never_partition([block])

        by_vectors(g.after.compute_root(), j)
        by_vectors(g.y, o)
        for func in operands.values():
            by_vectors(func.compute_at(g.after, n).bound_storage(j, STEP_UNITS), j)
        for number, (_, dots) in enumerate(phases, 1):
            dots.schedule()
            if number < len(phases):
                dots.func.compute_at(g.after, n).bound_storage(dots.block, STEP_UNITS // lanes)
            else:
                dots.func.compute_at(g.after, block)
        readout.schedule()
        readout.func.compute_at(g.y, block)


if __name__ == "__main__":
    hl.main()
