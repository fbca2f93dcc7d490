"""The generator of back-propagation through time: from a loss's gradients of the states to those of every product, for
a whole sequence, one pipeline, O(T)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import halide as hl
from blocks import inside, starts_at_zero
from cells import CELLS
from derivation import derive
from frames import BackFrame, kept_apart
from machine import lean
from matmul import Packed, Projection
from recurrence import Equations, Place, Recurrence, sequence
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
        self.add_input("of_state", hl.InputScalar(hl.Int(32)))  # 0: nobody asks for the gradients of initial states
        self.add_input("lengths", hl.InputBuffer(hl.Int(32), 1))  # (N,)
        self.add_input("weight_hh", hl.InputBuffer(dtype, 1))  # (B H, H), packed by columns (pack.py)
        self.add_input("weight_ho", hl.InputBuffer(dtype, 1))  # (O, H), packed by columns
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
        # forward pass has the state that the step made; where it has the initial state, the gradients of that, or what
        # reaches it without its products
        self.add_output("deltas", hl.OutputBuffer(dtype, 4))

    def generate(self: Any) -> None:
        g: Any = self
        starts_at_zero(g.lengths, g.vectors, g.tape, g.d_output, g.d_states, g.d_last, g.deltas)
        if g.masked:
            starts_at_zero(g.reset, g.mask, g.zoneout)
        cell, dtype = derive(CELLS[g.cell], bool(g.masked)), g.tape.type()
        plan = schedule(g.schedule, g.target(), dtype)
        H, N, T = g.d_last.dim(0).extent(), g.lengths.dim(0).extent(), g.d_states.dim(2).extent()
        O = g.d_output.dim(0).extent()
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

        def inside_row(s: hl.Expr, n: hl.Expr) -> hl.Expr:
            return (T + 1 - s > 0) & walk.made(T + 1 - s, n)

        def reaches(k: int) -> Place:
            """What reaches a state from outside."""
            if k > 0:
                return Place(given=lambda j, n, s: last(k, j, n, T + 1 - s))

            def given(j: hl.Expr, n: hl.Expr, s: hl.Expr) -> hl.Expr:
                q = T + 1 - s
                d_state = g.d_states[j, n, walk.time(q, n)]
                return hl.select(inside_row(s, n), d_state, zero) + last(k, j, n, q)

            return Place(given, lambda projected, n, s: hl.select(inside_row(s, n), projected(0), zero))

        def zone(k: int) -> Place:
            return Place(lambda j, n, s: g.zoneout[j, n, walk.time(T + 1 - s, n), k])

        def vector(p: int) -> Callable[[hl.Expr, hl.Expr], hl.Expr]:
            return lambda j, n: g.vectors[j, p]

        def on_tape(column: int) -> Place:
            return Place(lambda j, n, s: g.tape[j, n, walk.place(T + 1 - s, n), column])

        made = [
            Place(
                feeds=[(b, frame.hidden[b]) for b in s.hidden],
                lag=1 if s.carried else 0,
                phase=s.phase,
            )
            for s in cell.back_sums
        ]
        made += [reaches(k) for k in range(len(cell.new))]
        made += [on_tape(column) for column in frame.tape]
        made += [zone(k) for k in range(len(cell.zone_leaves))]
        made += [Place()] * (frame.size - len(made))

        def idle(s: hl.Expr) -> hl.Expr:
            unasked = (s == T + 1) & (g.of_state == 0)
            return (s == 1) | unasked if cell.ends_idle else unasked

        constants = [vector(p) for p in range(len(cell.vectors))]
        if g.masked:
            constants.append(lambda j, n: g.mask[j, n])
        equations = Equations(
            dtype=dtype,
            width=H,
            rows=N,
            steps=T + 1,
            sums=cell.back_sums_at_once,
            lean=lean(g.cell, cell.is_long, cell.is_rare),
            ahead=1,
            places=made,
            projection=Projection(
                weight=Packed(g.weight_ho),
                factor=lambda o, n, s: g.d_output[o, n, walk.time(T + 1 - s, n)],
                extent=O,
            ),
            weights=Packed(g.weight_hh, len(cell.hidden)) if cell.hidden else None,
            step=frame.step,
            constants=constants,
            flags=[
                lambda s, n: walk.made(T + 1 - s, n),
                lambda s, n: s == T + 1,
                came_on,
                *([lambda s, n: walk.goes_on(T + 1 - s, n)] if g.masked else []),
            ],
            apart=lambda x: kept_apart(x, g.threads >> 20),
            length=walk.length,
            needed=lambda s, length: s >= T + 1 - length,
            idle=idle,
        )

        def copied(recurrence: Recurrence, j: hl.Expr, n: hl.Expr, i: hl.Expr) -> list[hl.Expr]:
            row = inside(n, N)
            q = walk.mirrored(i, row)
            slot = T + 1 - hl.clamp(q, 0, T)
            values = [recurrence.value(place, j, n, slot) for place in frame.columns]
            return [hl.select(walk.made(q, row), value, zero) for value in values]

        sequence(g.deltas, "back", equations, plan, g.threads, len(frame.columns), copied, beside=True)


if __name__ == "__main__":
    hl.main()
