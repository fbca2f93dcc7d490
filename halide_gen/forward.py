"""The generator of the forward pass: the states of a whole sequence and the readout, one pipeline."""

from __future__ import annotations

from typing import Any

import halide as hl
from blocks import inside, starts_at_zero
from cells import CELLS
from matmul import Projection, Weight, project
from recurrence import Equations, sequence
from schedules import schedule


@hl.generator(name="forward")
class Forward:
    """h_t = act(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), y_t = W_ho h_t + b_o.

    Shapes are NumPy's; a buffer's dimensions come in the reverse order. T, N, H >= 1; I, O >= 0.
    """

    cell = hl.GeneratorParam("rnn_tanh")
    schedule = hl.GeneratorParam("tuned")
    dtype = hl.GeneratorParam("float32")

    def configure(self: Any) -> None:
        dtype = {"float32": hl.Float(32), "float64": hl.Float(64)}[self.dtype]
        self.add_input("threads", hl.InputScalar(hl.Int(32)))
        self.add_input("x", hl.InputBuffer(dtype, 3))  # (T, N, I)
        self.add_input("h0", hl.InputBuffer(dtype, 2))  # (N, H)
        self.add_input("weight_ih", hl.InputBuffer(dtype, 2))  # (H, I)
        self.add_input("weight_hh", hl.InputBuffer(dtype, 2))  # (H, H)
        self.add_input("bias_ih", hl.InputBuffer(dtype, 1))  # (H,)
        self.add_input("bias_hh", hl.InputBuffer(dtype, 1))  # (H,)
        self.add_input("weight_ho", hl.InputBuffer(dtype, 2))  # (O, H)
        self.add_input("bias_o", hl.InputBuffer(dtype, 1))  # (O,)
        self.add_output("states", hl.OutputBuffer(dtype, 3))  # (T + 1, N, H), slot 0 the initial state
        self.add_output("output", hl.OutputBuffer(dtype, 3))  # (T, N, O)

    def generate(self: Any) -> None:
        g = self
        starts_at_zero(
            g.x, g.h0, g.weight_ih, g.weight_hh, g.bias_ih, g.bias_hh, g.weight_ho, g.bias_o, g.states, g.output
        )
        cell = CELLS[g.cell]
        plan = schedule(g.schedule, g.target(), g.x.type())
        I, N, T = (g.x.dim(i).extent() for i in range(3))
        H, O = g.h0.dim(0).extent(), g.bias_o.dim(0).extent()

        # ---- algorithm
        equations = Equations(
            width=H,
            rows=N,
            steps=T,
            sums=[
                Projection(
                    start=lambda j, n, s: g.bias_ih[j] + g.bias_hh[j],
                    weight=Weight(lambda k, j: g.weight_ih[k, j], rows_of_k=True),
                    # slot 0 is filled too, and then overwritten
                    factor=lambda k, n, s: g.x[k, n, inside(hl.max(s - 1, 0), T)],
                    extent=I,
                )
            ],
            values=[lambda j, n, s: hl.cast(g.x.type(), 0)],
            initial=[lambda j, n: g.h0[j, n]],
            weights=[[Weight(lambda k, j: g.weight_hh[k, j], rows_of_k=True)]],
            step=lambda sums, values, before: cell.step(sums, before),
        )
        sequence(g.states, "layer", equations, plan, g.threads, slot=lambda t: t)
        readout = Projection(
            start=lambda o, n, t: g.bias_o[o],
            weight=Weight(lambda k, o: g.weight_ho[k, o], rows_of_k=True),
            factor=lambda k, n, t: g.states[k, n, t + 1],
            extent=H,
        )
        project(g.output, "readout", readout, O, N, T, plan)


if __name__ == "__main__":
    hl.main()
