"""The generator of the forward pass: the states of a whole sequence, one pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import halide as hl
from activations import constant
from blocks import inside, starts_at_zero
from cells import CELLS
from derivation import MASK, Sum, derive
from expressions import Expression
from frames import ForwardFrame, compute, kept_apart, where
from machine import lean
from matmul import Packed, Projection
from recurrence import Equations, Place, Recurrence, sequence
from schedules import schedule
from walk import Walk


@hl.generator(name="forward")
class Forward:
    """The states after each step, and what BPTT wants to see of the steps (cells.py, derivation.py).

    Shapes are NumPy's; a buffer's dimensions come in the reverse order. T, N, H >= 1; I >= 0. S states, V vectors, A
    gates that see x, B gates that see the state.
    """

    cell = hl.GeneratorParam("rnn_tanh")
    schedule = hl.GeneratorParam("tuned")
    dtype = hl.GeneratorParam("float32")
    masked = hl.GeneratorParam(False)

    def configure(self: Any) -> None:
        dtype = {"float32": hl.Float(32), "float64": hl.Float(64)}[self.dtype]
        self.add_input("threads", hl.InputScalar(hl.Int(32)))
        self.add_input("reverse", hl.InputScalar(hl.Int(32)))
        self.add_input("from_zeros", hl.InputScalar(hl.Int(32)))  # 1: the initial states are 0
        # 1: the tape of a pass forward in time begins with the state after the first step
        self.add_input("first", hl.InputScalar(hl.Int(32)))
        self.add_input("lengths", hl.InputBuffer(hl.Int(32), 1))  # (N,)
        self.add_input("x", hl.InputBuffer(dtype, 3))  # (T, N, I)
        self.add_input("initial", hl.InputBuffer(dtype, 3))  # (S, N, H)
        self.add_input("weight_ih", hl.InputBuffer(dtype, 1))  # (A H, I), packed by rows (pack.py)
        self.add_input("weight_hh", hl.InputBuffer(dtype, 1))  # (B H, H), packed by rows
        self.add_input("bias_ih", hl.InputBuffer(dtype, 1))  # (A H,)
        self.add_input("bias_hh", hl.InputBuffer(dtype, 1))  # (B H,)
        self.add_input("vectors", hl.InputBuffer(dtype, 2))  # (V, H)
        if self.masked:
            self.add_input("reset", hl.InputBuffer(hl.UInt(8), 2))  # (T, N)
            self.add_input("mask", hl.InputBuffer(dtype, 2))  # (N, H)
            self.add_input("zoneout", hl.InputBuffer(dtype, 4))  # (S, T, N, H)
        # (S or more, T + 1, N, H): the states, what is kept, operands that are no states; as in walk.py
        self.add_output("tape", hl.OutputBuffer(dtype, 4))

    def generate(self: Any) -> None:
        g: Any = self
        starts_at_zero(g.lengths, g.x, g.initial, g.bias_ih, g.bias_hh, g.vectors, g.tape)
        if g.masked:
            starts_at_zero(g.reset, g.mask, g.zoneout)
        cell = derive(CELLS[g.cell], bool(g.masked))
        plan = schedule(g.schedule, g.target(), g.x.type())
        H, N, T, I = g.initial.dim(0).extent(), g.x.dim(1).extent(), g.x.dim(2).extent(), g.x.dim(0).extent()
        walk = Walk(T, g.reverse, g.lengths, g.reset if g.masked else None)

        # ---- algorithm
        frame = ForwardFrame(cell)

        def bias(gate: hl.Expr, unit: hl.Expr) -> hl.Expr:
            value = g.bias_ih[gate * H + unit]
            both = {s.input: s.hidden for s in cell.sums if s.input is not None and s.hidden is not None}
            if len(both) == len(cell.inputs) and all(a == b for a, b in both.items()):
                return value + g.bias_hh[gate * H + unit]
            zero = constant(0, value)
            return value + hl.mux(
                gate, [g.bias_hh[both[a] * H + unit] if a in both else zero for a in range(len(cell.inputs))] + [zero]
            )

        def summed(total: Sum) -> Place:
            """A sum starts from the input's product, or from a bias alone."""
            start: dict[str, Any] = {}
            if total.input is not None:
                gate = total.input
                start["projected"] = lambda projected, n, s: projected(gate)
            elif total.hidden is not None:
                row = total.hidden
                start["offset"] = lambda j: g.bias_hh[row * H + j]
            if total.operand is None or total.hidden is None:
                return Place(**start)
            feeds = [(total.hidden, frame.operands[total.operand])]
            lag = 1 if cell.operands[total.operand].carried else 0
            return Place(**start, feeds=feeds, lag=lag, phase=total.phase)

        def state(k: int) -> Place:
            return Place(initial=lambda j, n: g.initial[j, n, k])

        def operand(m: int) -> Place:
            value = cell.operands[m].value
            return Place(initial=(lambda j, n: first(value, j, n)) if cell.operands[m].carried else None)

        def zone(k: int) -> Place:
            return Place(given=lambda j, n, s: g.zoneout[j, n, walk.time(s, n), k])

        def vector(p: int) -> Callable[[hl.Expr, hl.Expr], hl.Expr]:
            return lambda j, n: g.vectors[j, p]

        def places() -> Sequence[Place]:
            made = [summed(total) for total in cell.sums] + [state(k) for k in range(len(cell.new))]
            made += [operand(m) for m in frame.apart] + [zone(k) for k in range(len(cell.zone_leaves))]
            return made + [Place()] * (frame.size - len(made))

        def apart(x: hl.Expr) -> hl.Expr:
            return kept_apart(x, g.threads >> 20)

        def first(value: Expression, j: hl.Expr, n: hl.Expr) -> hl.Expr:
            """A carried operand for the first step."""
            leaves = {leaf: g.initial[j, n, k] for k, leaf in enumerate(cell.state_leaves)}
            if g.masked:
                leaves = {leaf: where(walk.goes_on(hl.Expr(1), n), state) for leaf, state in leaves.items()}
                leaves[MASK] = g.mask[j, n]
            return compute([value], leaves, apart)[0]

        constants = [vector(p) for p in range(len(cell.vectors))]
        if g.masked:
            constants.append(lambda j, n: g.mask[j, n])
        equations = Equations(
            dtype=g.x.type(),
            width=H,
            rows=N,
            steps=T,
            sums=cell.sums_at_once,
            lean=lean(g.cell, cell.is_long, cell.is_rare),
            ahead=0,
            places=places(),
            projection=Projection(
                weight=Packed(g.weight_ih, len(cell.inputs)),
                factor=lambda k, n, s: g.x[k, n, walk.time(s, n)],
                extent=I,
                bias=bias,
            ),
            weights=Packed(g.weight_hh, len(cell.hidden)) if cell.hidden else None,
            step=frame.step,
            constants=constants,
            flags=[walk.goes_on, lambda s, n: walk.goes_on(s + 1, n)] if g.masked else [],
            apart=apart,
            length=walk.length,
            needed=lambda s, length: s <= length,
            idle=(lambda s: (s == 1) & (g.from_zeros != 0)) if cell.starts_idle else None,
        )

        def copied(recurrence: Recurrence, j: hl.Expr, n: hl.Expr, i: hl.Expr) -> list[hl.Expr]:
            row = inside(n, N)
            s = walk.mirrored(i + hl.select(g.reverse != 0, 0, g.first), row)
            slot = hl.clamp(s, 0, T)
            values = [recurrence.value(place, j, n, slot) for place in frame.columns]
            return [hl.select(walk.made(s, row), value, constant(0, value)) for value in values]

        sequence(g.tape, "layer", equations, plan, g.threads, len(frame.columns), copied)


if __name__ == "__main__":
    hl.main()
