"""The generator of back-propagation through time: from a loss's gradients of the states to those of every product, for
a whole sequence, one pipeline, O(T)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import halide as hl
from activations import constant
from blocks import inside, starts_at_zero
from cells import CELLS
from derivation import MASK, Derivation, derive, latest
from expressions import ZERO, Expression
from forward import ForwardFrame, compute
from matmul import Projection, Weight
from recurrence import Equations, Frame, Place, Projected, Recurrence, Start, sequence
from schedules import schedule
from walk import Walk


@hl.generator(name="bptt")
class BPTT:
    """delta_g = dL/dz_g for each product z_g of each step, from what reaches the states from the output, from the step
    after and, by W_hh^T delta, from its products (Werbos, Proceedings of the IEEE 78, 1990).

    Shapes are NumPy's; a buffer's dimensions come in the reverse order. T, N, H >= 1; O >= 0. S states, V vectors, B
    gates that see the state.
    """

    cell = hl.GeneratorParam("rnn_tanh")
    schedule = hl.GeneratorParam("tuned")
    dtype = hl.GeneratorParam("float32")
    masked = hl.GeneratorParam(False)

    def configure(self: Any) -> None:
        dtype = {"float32": hl.Float(32), "float64": hl.Float(64)}[self.dtype]
        self.add_input("threads", hl.InputScalar(hl.Int(32)))
        self.add_input("reverse", hl.InputScalar(hl.Int(32)))
        self.add_input("lengths", hl.InputBuffer(hl.Int(32), 1))  # (N,)
        self.add_input("weight_hh", hl.InputBuffer(dtype, 2))  # (B H, H)
        self.add_input("weight_ho", hl.InputBuffer(dtype, 2))  # (O, H)
        self.add_input("vectors", hl.InputBuffer(dtype, 2))  # (V, H)
        self.add_input("tape", hl.InputBuffer(dtype, 4))  # (S or more, T + 1, N, H), from the forward pass
        self.add_input("d_output", hl.InputBuffer(dtype, 3))  # (T, N, O)
        self.add_input("d_states", hl.InputBuffer(dtype, 3))  # (T, N, H), dL/dh_t past the readout
        self.add_input("d_last", hl.InputBuffer(dtype, 3))  # (S, N, H), of each row's last states
        if self.masked:
            self.add_input("reset", hl.InputBuffer(hl.UInt(8), 2))  # (T, N)
            self.add_input("mask", hl.InputBuffer(dtype, 2))  # (N, H)
            self.add_input("zoneout", hl.InputBuffer(dtype, 4))  # (S, T, N, H)
        # (T + 1, N, D, H): delta for the rows of W_ih, for those of W_hh if they differ, and for the vectors, where the
        # forward pass has the state that the step made; where it has the initial state, the gradients of that
        self.add_output("deltas", hl.OutputBuffer(dtype, 4))

    def generate(self: Any) -> None:
        g = self
        starts_at_zero(g.lengths, g.weight_hh, g.weight_ho, g.vectors, g.tape, g.d_output, g.d_states)
        starts_at_zero(g.d_last, g.deltas)
        if g.masked:
            starts_at_zero(g.reset, g.mask, g.zoneout)
        cell, dtype = derive(CELLS[g.cell], bool(g.masked)), g.tape.type()
        plan = schedule(g.schedule, g.target(), dtype)
        H, N, T = g.d_last.dim(0).extent(), g.lengths.dim(0).extent(), g.d_states.dim(2).extent()
        O = g.weight_ho.dim(1).extent()
        walk = Walk(T, g.reverse, g.lengths, g.reset if g.masked else None)
        zero = hl.cast(dtype, 0)

        # ---- algorithm
        # Slot s of the engine is slot T + 1 - s of the forward pass: 1 is the last, T + 1 the initial state.
        frame = BackFrame(cell)

        def last(k: int, j: hl.Expr, n: hl.Expr, q: hl.Expr) -> hl.Expr:
            return hl.select(q == g.lengths[n], g.d_last[j, n, k], zero)

        def came_on(s: hl.Expr, n: hl.Expr) -> hl.Expr:
            within = T + 1 - s < g.lengths[n]
            return within & walk.goes_on(T + 2 - s, n) if g.masked else within

        def reaches(k: int) -> Start:
            """What reaches a state from outside."""

            def start(projected: Projected, j: hl.Expr, n: hl.Expr, s: hl.Expr) -> hl.Expr:
                q = T + 1 - s
                if k > 0:
                    return last(k, j, n, q)
                return hl.select((q > 0) & walk.made(q, n), projected(0), zero) + last(k, j, n, q)

            return start

        def on_tape(column: int) -> Start:
            return lambda _, j, n, s: g.tape[j, n, walk.place(T + 1 - s, n), column]

        made = [
            Place(
                None,
                feeds=[(b, frame.hidden[b]) for b in s.hidden],
                lag=1 if s.carried else 0,
                phase=s.phase,
            )
            for s in cell.back_sums
        ]
        made += [Place(reaches(k)) for k in range(len(cell.new))]
        made += [Place(on_tape(column)) for column in frame.tape]
        for k in range(len(cell.zone_leaves)):
            made.append(Place(lambda _, j, n, s, k=k: g.zoneout[j, n, walk.time(T + 1 - s, n), k]))
        made += [Place(None) for _ in range(frame.size - len(made))]
        constants: list[Callable[[hl.Expr, hl.Expr], hl.Expr]] = [
            lambda j, n, p=p: g.vectors[j, p] for p in range(len(cell.vectors))
        ]
        if g.masked:
            constants.append(lambda j, n: g.mask[j, n])
        equations = Equations(
            dtype=dtype,
            width=H,
            rows=N,
            steps=T + 1,
            lean=len(cell.sums) > 1 or cell.masked or not cell.hidden,
            ahead=1,
            places=made,
            projection=Projection(
                start=lambda _, j, n, s: g.d_states[j, n, walk.time(T + 1 - s, n)],
                weight=Weight(lambda _, o, j: g.weight_ho[j, o], rows_of_k=False),
                factor=lambda o, n, s: g.d_output[o, n, walk.time(T + 1 - s, n)],
                extent=O,
            ),
            weights=Weight(lambda b, k, j: g.weight_hh[j, b * H + k], rows_of_k=False, gates=len(cell.hidden))
            if cell.hidden
            else None,
            step=frame.step,
            constants=constants,
            flags=[
                lambda s, n: walk.made(T + 1 - s, n),
                lambda s, n: s == T + 1,
                came_on,
                *([lambda s, n: walk.goes_on(T + 1 - s, n)] if g.masked else []),
            ],
            length=walk.length,
            needed=lambda s, length: s >= T + 1 - length,
        )

        def copied(recurrence: Recurrence, j: hl.Expr, n: hl.Expr, i: hl.Expr) -> list[hl.Expr]:
            row = inside(n, N)
            q = walk.mirrored(i, row)
            slot = T + 1 - hl.clamp(q, 0, T)
            values = [recurrence.value(place, j, n, slot) for place in frame.columns]
            return [hl.select(walk.made(q, row), value, zero) for value in values]

        sequence(g.deltas, "back", equations, plan, g.threads, len(frame.columns), copied, beside=True)


class BackFrame:
    """Which place of a frame holds what: sums of W_hh^T delta, the gradient that reaches each state (later: what goes
    on past the products), what the forward pass left (later: the deltas), zoneout."""

    def __init__(self, cell: Derivation) -> None:
        self.cell = cell
        tape = ForwardFrame(cell)
        count = len(cell.new)
        self.gradients = [len(cell.back_sums) + k for k in range(count)]
        next_place = self.gradients[-1] + 1
        self.tape: list[int] = []  # columns of the tape that are read
        self.states: dict[int, int] = {}
        self.kept: dict[Expression, int] = {}
        for k in range(count):
            if cell.seen[k]:
                self.states[k] = next_place + len(self.tape)
                self.tape.append(k)
        for i, value in enumerate(cell.kept):
            self.kept[value] = next_place + len(self.tape)
            self.tape.append(count + i)
        assert len(tape.columns) >= count + len(cell.kept)
        self.zones = [next_place + len(self.tape) + k for k in range(len(cell.zone_leaves))]
        self.size = next_place + len(self.tape) + len(self.zones)

        # Each delta has a place; at the end of a step nobody needs what was kept for it.
        self.phase = {s.node: s.phase for s in cell.back_sums}
        free = list(self.kept.values()) if cell.back_phases == 1 else []
        self.deltas: dict[Expression, int] = {}
        for delta in cell.deltas:
            if delta not in self.deltas:
                if free:
                    self.deltas[delta] = free.pop(0)
                else:
                    self.deltas[delta] = self.size
                    self.size += 1
        self.hidden = [self.deltas[delta] for delta in cell.delta_hidden]
        # The first columns also bring the gradients of the initial states.
        self.columns = [self.deltas[delta] for delta in cell.deltas]
        for k in range(count):
            if k >= len(self.columns) or self.columns[k] in self.columns[:k]:
                self.columns[k : k + 1] = [self.size]
                self.size += 1

    def step(self, phase: int, seen: Frame) -> dict[int, hl.Expr]:
        """What the step writes in a phase. The flags: whether the row has got that far, whether this is the initial
        state, whether a step after saw this one's, and with masks whether this step saw the states before it."""
        cell, zero = self.cell, constant(0, seen.now[0])
        active, initial, came_on, *goes_on = seen.flags
        fixed = dict(zip(cell.constant_leaves, seen.constants, strict=True))
        fixed |= {leaf: seen.now[place] for leaf, place in zip(cell.zone_leaves, self.zones, strict=True)}
        sums = {s.node: seen.now[i] for i, s in enumerate(cell.back_sums)}
        dtype = zero.type()

        # what reaches each new state: from outside, from the step after past its products, and through its operands
        after = {cell.state_leaves[k]: seen.now[place] for k, place in self.states.items()}
        through = compute(cell.from_operands, fixed | after | sums, dtype)
        d_new = [
            seen.now[place] + hl.select(came_on, seen.before[place] + back, zero)
            for place, back in zip(self.gradients, through, strict=True)
        ]
        known = fixed | sums | dict(zip(cell.gradient_leaves, d_new, strict=True))
        known |= {value: seen.now[place] for value, place in self.kept.items()}
        for k, place in self.states.items():
            known[cell.new[k]] = seen.now[place]
        for k, place in self.states.items():
            known[cell.state_leaves[k]] = hl.select(goes_on[0], seen.ahead[place], zero) if goes_on else seen.ahead[place]

        written: dict[int, hl.Expr] = {}
        due = [(delta, place) for delta, place in self.deltas.items() if latest(delta, self.phase) == phase]
        values = compute([delta for delta, _ in due], known, dtype)
        for (_, place), value in zip(due, values, strict=True):
            written[place] = hl.select(active, value, zero)
        final = phase == cell.back_phases - 1
        if final:
            carried = compute(cell.carried, known, dtype)
            for place, value in zip(self.gradients, carried, strict=True):
                value = hl.select(active, value, zero)
                written[place] = hl.select(goes_on[0], value, zero) if goes_on else value
            for k, place in enumerate(self.columns):
                if place not in self.deltas.values():
                    delta = cell.deltas[k] if k < len(cell.deltas) else ZERO
                    written[place] = hl.select(active, compute([delta], known, dtype)[0], zero)
        for k in range(len(cell.new)):
            place = self.columns[k]
            if place in written:
                written[place] = hl.select(initial, d_new[k], written[place])
        return written


if __name__ == "__main__":
    hl.main()
