"""The generator of the forward pass: the states of a whole sequence, one pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import halide as hl
from activations import FUNCTIONS, constant
from blocks import inside, starts_at_zero
from cells import CELLS
from derivation import MASK, Derivation, derive
from expressions import Expression, evaluate
from matmul import Projection, Weight
from recurrence import Equations, Frame, Place, Recurrence, sequence
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
        self.add_input("first", hl.InputScalar(hl.Int(32)))  # 1: the tape, forward in time, is without the initial states
        self.add_input("lengths", hl.InputBuffer(hl.Int(32), 1))  # (N,)
        self.add_input("x", hl.InputBuffer(dtype, 3))  # (T, N, I)
        self.add_input("initial", hl.InputBuffer(dtype, 3))  # (S, N, H)
        self.add_input("weight_ih", hl.InputBuffer(dtype, 2))  # (A H, I)
        self.add_input("weight_hh", hl.InputBuffer(dtype, 2))  # (B H, H)
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
        g = self
        starts_at_zero(g.lengths, g.x, g.initial, g.weight_ih, g.weight_hh, g.bias_ih, g.bias_hh, g.vectors)
        starts_at_zero(g.tape)
        if g.masked:
            starts_at_zero(g.reset, g.mask, g.zoneout)
        cell = derive(CELLS[g.cell], bool(g.masked))
        plan = schedule(g.schedule, g.target(), g.x.type())
        H, N, T, I = g.initial.dim(0).extent(), g.x.dim(1).extent(), g.x.dim(2).extent(), g.x.dim(0).extent()
        walk = Walk(T, g.reverse, g.lengths, g.reset if g.masked else None)
        j, v, n, i = (hl.Var(name) for name in ("j", "v", "n", "i"))

        # ---- algorithm
        frame = ForwardFrame(cell)

        def start(gate: hl.Expr, unit: hl.Expr, n: hl.Expr, s: hl.Expr) -> hl.Expr:
            value = g.bias_ih[gate * H + unit]
            both = {s.input: s.hidden for s in cell.sums if s.input is not None and s.hidden is not None}
            if len(both) == len(cell.inputs) and all(a == b for a, b in both.items()):
                return value + g.bias_hh[gate * H + unit]
            zero = constant(0, value)
            return value + hl.mux(
                gate, [g.bias_hh[both[a] * H + unit] if a in both else zero for a in range(len(cell.inputs))] + [zero]
            )

        def places() -> Sequence[Place]:
            made = []
            for s in cell.sums:
                feeds = [] if s.operand is None else [(s.hidden, frame.operands[s.operand])]
                hidden = s.hidden
                lag = 1 if s.operand is None or cell.operands[s.operand].carried else 0
                if s.input is not None:
                    begin = lambda p, j, n, s, gate=s.input: p(gate)
                else:
                    begin = lambda p, j, n, s, hidden=hidden: g.bias_hh[hidden * H + j]
                made.append(Place(begin, feeds=feeds, lag=lag, phase=s.phase))
            for k in range(len(cell.new)):
                made.append(Place(None, initial=lambda j, n, k=k: g.initial[j, n, k]))
            for m in frame.apart:
                o = cell.operands[m]
                made.append(Place(None, initial=(lambda j, n, o=o: first(o.value, j, n)) if o.carried else None))
            for k in range(len(cell.zone_leaves)):
                made.append(Place(lambda p, j, n, s, k=k: g.zoneout[j, n, walk.time(s, n), k]))
            made.extend(Place(None) for _ in range(frame.size - len(made)))
            return made

        def first(value: Expression, j: hl.Expr, n: hl.Expr) -> hl.Expr:
            """A carried operand for the first step."""
            leaves = {leaf: g.initial[j, n, k] for k, leaf in enumerate(cell.state_leaves)}
            leaves |= {leaf: g.vectors[j, p] for p, leaf in enumerate(cell.vector_leaves)}
            if g.masked:
                leaves[MASK] = g.mask[j, n]
                leaves = {leaf: _if(walk.goes_on(hl.Expr(1), n), value) for leaf, value in leaves.items()}
            return compute([value], leaves, g.x.type())[0]

        constants: list[Callable[[hl.Expr, hl.Expr], hl.Expr]] = [
            lambda j, n, p=p: g.vectors[j, p] for p in range(len(cell.vectors))
        ]
        if g.masked:
            constants.append(lambda j, n: g.mask[j, n])
        equations = Equations(
            dtype=g.x.type(),
            width=H,
            rows=N,
            steps=T,
            lean=len(cell.sums) > 1 or cell.masked or not cell.hidden,
            ahead=0,
            places=places(),
            projection=Projection(
                start=start,
                weight=Weight(lambda a, k, j: g.weight_ih[k, a * H + j], rows_of_k=True, gates=len(cell.inputs)),
                factor=lambda k, n, s: g.x[k, n, walk.time(s, n)],
                extent=I,
            ),
            weights=Weight(lambda b, k, j: g.weight_hh[k, b * H + j], rows_of_k=True, gates=len(cell.hidden))
            if cell.hidden
            else None,
            step=frame.step,
            constants=constants,
            flags=[walk.goes_on, lambda s, n: walk.goes_on(s + 1, n)] if g.masked else [],
            length=walk.length,
            needed=lambda s, length: s <= length,
        )

        def copied(recurrence: Recurrence, j: hl.Expr, n: hl.Expr, i: hl.Expr) -> list[hl.Expr]:
            row = inside(n, N)
            s = walk.mirrored(i + hl.select(g.reverse != 0, 0, g.first), row)
            slot = hl.clamp(s, 0, T)
            values = [recurrence.value(place, j, n, slot) for place in frame.columns]
            return [hl.select(walk.made(s, row), value, constant(0, value)) for value in values]

        sequence(g.tape, "layer", equations, plan, g.threads, len(frame.columns), copied)


class ForwardFrame:
    """Which place of a frame holds what: sums, states, operands, zoneout, and what is kept beside the sums' places."""

    def __init__(self, cell: Derivation) -> None:
        self.cell = cell
        self.states = [len(cell.sums) + k for k in range(len(cell.new))]
        # An operand that is a state is in that state's place; with masks the two differ.
        self.apart = [m for m, o in enumerate(cell.operands) if cell.masked or o.value not in cell.state_leaves]
        self.operands = [
            self.states[-1] + 1 + self.apart.index(m)
            if m in self.apart
            else self.states[cell.state_leaves.index(o.value)]
            for m, o in enumerate(cell.operands)
        ]
        self.zones = [self.states[-1] + 1 + len(self.apart) + k for k in range(len(cell.zone_leaves))]
        self.size = len(cell.sums) + len(self.states) + len(self.apart) + len(self.zones)
        # A sum that is kept stays where it is; other values take the places of sums, which nobody needs after the step.
        own = {s.node: i for i, s in enumerate(cell.sums)}
        free = [i for i, s in enumerate(cell.sums) if s.node not in cell.kept]
        self.kept: dict[Expression, int] = {}
        for value in cell.kept:
            if value in own:
                self.kept[value] = own[value]
            elif free:
                self.kept[value] = free.pop(0)
            else:
                self.kept[value] = self.size
                self.size += 1
        loose = [self.operands[m] for m, o in enumerate(cell.operands) if not o.carried]
        self.columns = [*self.states, *self.kept.values(), *loose]

    def step(self, phase: int, seen: Frame) -> dict[int, hl.Expr]:
        """What the step writes in a phase. The flags, with masks: whether this step, and the next, see the states before
        them."""
        cell = self.cell
        known = {s.node: seen.now[i] for i, s in enumerate(cell.sums)}
        known |= {
            leaf: _if(seen.flags[0], seen.before[place]) if cell.masked else seen.before[place]
            for leaf, place in zip(cell.state_leaves, self.states, strict=True)
        }
        known |= dict(zip(cell.constant_leaves, seen.constants, strict=True))
        known |= {leaf: seen.now[place] for leaf, place in zip(cell.zone_leaves, self.zones, strict=True)}
        # an operand of an earlier phase is there
        known |= {
            o.value: seen.now[place]
            for o, place in zip(cell.operands, self.operands, strict=True)
            if not o.carried and o.phase < phase
        }
        dtype = seen.now[0].type()
        if phase < cell.phases - 1:
            due = [(o.value, self.operands[m]) for m, o in enumerate(cell.operands) if not o.carried and o.phase == phase]
            return dict(zip((p for _, p in due), compute([e for e, _ in due], known, dtype), strict=True))
        kept, places = list(self.kept), list(self.kept.values())
        values = compute([*cell.new, *kept], known, dtype)
        written = dict(zip([*self.states, *places], values, strict=True))
        # what the next step multiplies
        after = dict(known)
        for leaf, value in zip(cell.state_leaves, values, strict=False):
            after[leaf] = _if(seen.flags[1], value) if cell.masked else value
        for m in self.apart:
            o = cell.operands[m]
            if o.carried:
                fixed = {e: x for e, x in after.items() if e.op in ("state", "vector", "mask")}
                written[self.operands[m]] = compute([o.value], fixed, dtype)[0]
        return {i: value for i, value in written.items() if value is not seen.now[i]}


def _if(condition: hl.Expr, value: hl.Expr) -> hl.Expr:
    return hl.select(condition, value, constant(0, value))


def compute(roots: Sequence[Expression], known: dict[Expression, hl.Expr], dtype: hl.Type) -> list[hl.Expr]:
    """Expressions of a cell as Halide's."""
    return evaluate(roots, known, FUNCTIONS, lambda value: hl.cast(dtype, hl.f64(value)))


if __name__ == "__main__":
    hl.main()
