"""The generator of back-propagation through time: every gradient of a whole sequence, one pipeline, O(T)."""

from __future__ import annotations

from typing import Any

import halide as hl
from blocks import inside, starts_at_zero
from cells import CELLS, Cell
from matmul import Projection, Weight, outer_sum, project, row_sum
from recurrence import Equations, sequence
from schedules import schedule


@hl.generator(name="bptt")
class BPTT:
    """delta_t = act'(h_t) (dL/dh_t + W_ho^T dL/dy_t + W_hh^T delta_{t+1}), and from it the gradients of the weights, of
    the input and of the initial state (Werbos, Proceedings of the IEEE 78, 1990).

    Shapes are NumPy's; a buffer's dimensions come in the reverse order. T, N, H >= 1; I, O >= 0.
    """

    cell = hl.GeneratorParam("rnn_tanh")
    schedule = hl.GeneratorParam("tuned")
    dtype = hl.GeneratorParam("float32")

    def configure(self: Any) -> None:
        dtype = {"float32": hl.Float(32), "float64": hl.Float(64)}[self.dtype]
        self.add_input("threads", hl.InputScalar(hl.Int(32)))
        self.add_input("x", hl.InputBuffer(dtype, 3))  # (T, N, I)
        self.add_input("weight_ih", hl.InputBuffer(dtype, 2))  # (H, I)
        self.add_input("weight_hh", hl.InputBuffer(dtype, 2))  # (H, H)
        self.add_input("weight_ho", hl.InputBuffer(dtype, 2))  # (O, H)
        self.add_input("states", hl.InputBuffer(dtype, 3))  # (T + 1, N, H), from the forward pass
        self.add_input("d_output", hl.InputBuffer(dtype, 3))  # (T, N, O)
        self.add_input("d_states", hl.InputBuffer(dtype, 3))  # (T, N, H), dL/dh_t past the readout
        self.add_input("d_state", hl.InputBuffer(dtype, 2))  # (N, H), to be added to the last of d_states
        self.add_output("d_x", hl.OutputBuffer(dtype, 3))  # (T, N, I)
        self.add_output("d_h0", hl.OutputBuffer(dtype, 2))  # (N, H)
        self.add_output("d_weight_ih", hl.OutputBuffer(dtype, 2))  # (H, I)
        self.add_output("d_weight_hh", hl.OutputBuffer(dtype, 2))  # (H, H)
        self.add_output("d_bias", hl.OutputBuffer(dtype, 1))  # (H,), of bias_ih and of bias_hh
        self.add_output("d_weight_ho", hl.OutputBuffer(dtype, 2))  # (O, H)
        self.add_output("d_bias_o", hl.OutputBuffer(dtype, 1))  # (O,)

    def generate(self: Any) -> None:
        g = self
        starts_at_zero(g.x, g.weight_ih, g.weight_hh, g.weight_ho, g.states, g.d_output, g.d_states, g.d_state)
        starts_at_zero(g.d_x, g.d_h0, g.d_weight_ih, g.d_weight_hh, g.d_bias, g.d_weight_ho, g.d_bias_o)
        cell, dtype = CELLS[g.cell], g.x.type()
        plan = schedule(g.schedule, g.target(), dtype)
        I, N, T = (g.x.dim(i).extent() for i in range(3))
        H, O = g.d_state.dim(0).extent(), g.d_output.dim(0).extent()
        j, o, n, t = (hl.Var(v) for v in ("j", "o", "n", "t"))
        zero = hl.cast(dtype, 0)

        # ---- algorithm
        # Slot s is time T - s; the place of a delta first holds the h that its derivative is written in.
        equations = Equations(
            width=H,
            rows=N,
            steps=T,
            sums=[
                Projection(
                    start=lambda j, n, s: g.d_states[j, n, inside(T - s, T)] + hl.select(s == 1, g.d_state[j, n], zero),
                    weight=Weight(lambda o, j: g.weight_ho[j, o], rows_of_k=False),
                    factor=lambda o, n, s: g.d_output[o, n, inside(T - s, T)],
                    extent=O,
                )
            ],
            values=[lambda j, n, s: g.states[j, n, inside(T + 1 - s, T + 1)]],
            initial=[lambda j, n: zero],
            weights=[[Weight(lambda k, j: g.weight_hh[j, k], rows_of_k=False)]],
            step=lambda sums, values, before: back(cell, sums, values, before),
        )
        delta = hl.Func("delta")
        sequence(delta, "back", equations, plan, g.threads, slot=lambda t: T - t)

        def deltas(j: hl.Expr, n: hl.Expr, t: hl.Expr) -> hl.Expr:
            return hl.Expr(delta[j, n, t])

        def previous(j: hl.Expr, n: hl.Expr, t: hl.Expr) -> hl.Expr:
            return g.states[j, n, t]

        def state(j: hl.Expr, n: hl.Expr, t: hl.Expr) -> hl.Expr:
            return g.states[j, n, t + 1]

        project(
            g.d_x,
            "dx",
            Projection(
                start=lambda i, n, t: zero,
                weight=Weight(lambda k, i: g.weight_ih[i, k], rows_of_k=False),
                factor=deltas,
                extent=H,
            ),
            width=I,
            rows=N,
            steps=T,
            schedule=plan,
        )
        d_h0 = hl.Func("d_h0_step")
        project(
            d_h0,
            "dh0",
            Projection(
                start=lambda j, n, t: zero,
                weight=Weight(lambda k, j: g.weight_hh[j, k], rows_of_k=False),
                factor=lambda k, n, t: deltas(k, n, hl.Expr(0)),
                extent=H,
            ),
            width=H,
            rows=N,
            steps=hl.Expr(1),
            schedule=plan,
        )
        x, d_output = (lambda i, n, t: g.x[i, n, t]), (lambda o, n, t: g.d_output[o, n, t])
        outer_sum(g.d_weight_ih, "dw_ih", deltas, x, H, I, N, T, plan, transposed=True)
        outer_sum(g.d_weight_hh, "dw_hh", previous, deltas, H, H, N, T, plan)
        outer_sum(g.d_weight_ho, "dw_ho", state, d_output, H, O, N, T, plan)
        d_bias = row_sum("db", deltas, H, N, T, plan)
        d_bias_o = row_sum("db_o", d_output, O, N, T, plan)
        g.d_h0[j, n] = d_h0[j, n, 0]
        g.d_bias[j] = d_bias[j]
        g.d_bias_o[o] = d_bias_o[o]

        # ---- schedule
        delta.compute_root().bound(j, 0, H).bound(n, 0, N).bound(t, 0, T)
        d_h0.compute_root()
        for gradient, inner in ((g.d_h0, j), (g.d_bias, j), (g.d_bias_o, o)):
            gradient.vectorize(inner, plan.lanes, hl.TailStrategy.GuardWithIf)


def back(
    cell: Cell, sums: list[hl.Expr], values: list[hl.Expr], before: list[hl.Expr]
) -> tuple[list[hl.Expr], list[hl.Expr]]:
    """The cell's gradient step, as the engine asks for it: no sum is kept."""
    deltas, carried = cell.step_gradient(sums[0], before[cell.gates :], values[: cell.gates])
    return sums, [*deltas, *carried]


if __name__ == "__main__":
    hl.main()
