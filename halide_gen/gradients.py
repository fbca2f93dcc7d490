"""The generator of what BPTT's deltas give: the gradients of weights and input, one pipeline for any cell."""

from __future__ import annotations

from typing import Any

import halide as hl
from blocks import starts_at_zero
from matmul import Projection, Weight, project
from schedules import schedule
from sums import OuterProducts, outer_sum, row_sum


@hl.generator(name="gradients")
class Gradients:
    """Sums over all R = T N rows of outer products of deltas and what they were multiplied by, and W_ih^T delta.

    Shapes are NumPy's; a buffer's dimensions come in the reverse order. A and B rows of W_ih and W_hh, D sums; R >= 1.
    U >= 1: R, or less by the rows of the steps that start from zeros.
    """

    schedule = hl.GeneratorParam("tuned")
    dtype = hl.GeneratorParam("float32")

    def configure(self: Any) -> None:
        dtype = {"float32": hl.Float(32), "float64": hl.Float(64)}[self.dtype]
        self.add_input("threads", hl.InputScalar(hl.Int(32)))
        self.add_input("x", hl.InputBuffer(dtype, 2))  # (R, I)
        self.add_input("weight_ih", hl.InputBuffer(dtype, 2))  # (A, I)
        self.add_input("d_input", hl.InputBuffer(dtype, 2))  # (R, A), of W_ih x
        self.add_input("previous", hl.InputBuffer(dtype, 2))  # (U, H), the states before each step
        self.add_input("d_hidden", hl.InputBuffer(dtype, 2))  # (U, B), of W_hh h
        self.add_input("states", hl.InputBuffer(dtype, 2))  # (R, H), those after each step
        self.add_input("d_output", hl.InputBuffer(dtype, 2))  # (R, O), of W_ho h
        self.add_input("deltas", hl.InputBuffer(dtype, 2))  # (R, D), whatever else is to be summed up
        self.add_output("d_x", hl.OutputBuffer(dtype, 2))  # (R, I)
        self.add_output("d_weight_ih", hl.OutputBuffer(dtype, 2))  # (A, I)
        self.add_output("d_weight_hh", hl.OutputBuffer(dtype, 2))  # (B, H)
        self.add_output("d_weight_ho", hl.OutputBuffer(dtype, 2))  # (O, H)
        self.add_output("d_bias_o", hl.OutputBuffer(dtype, 1))  # (O,)
        self.add_output("sums", hl.OutputBuffer(dtype, 1))  # (D,)

    def generate(self: Any) -> None:
        g = self
        starts_at_zero(g.x, g.weight_ih, g.d_input, g.previous, g.d_hidden, g.states, g.d_output, g.deltas)
        starts_at_zero(g.d_x, g.d_weight_ih, g.d_weight_hh, g.d_weight_ho, g.d_bias_o, g.sums)
        dtype = g.x.type()
        plan = schedule(g.schedule, g.target(), dtype)
        I, R, U = g.x.dim(0).extent(), g.x.dim(1).extent(), g.previous.dim(1).extent()
        A, B, O, D, H = (b.dim(0).extent() for b in (g.d_input, g.d_hidden, g.d_output, g.deltas, g.previous))
        a = hl.Var("a")

        # ---- algorithm
        projection = Projection(
            weight=Weight(lambda _, k, i: g.weight_ih[i, k], rows_of_k=False),
            factor=lambda k, r, _: g.d_input[k, r],
            extent=A,
        )
        project(g.d_x, "dx", projection, I, R, plan)

        def value(buffer: Any) -> Any:
            return lambda i, r: buffer[i, r]

        def products(across: Any, down: Any, width: hl.Expr, height: hl.Expr, rows: hl.Expr) -> OuterProducts:
            return OuterProducts(value(across), value(down), width, height, rows)

        outer_sum(g.d_weight_ih, "dw_ih", products(g.d_input, g.x, A, I, R), plan, transposed=True)
        outer_sum(g.d_weight_hh, "dw_hh", products(g.d_hidden, g.previous, B, H, U), plan, transposed=True)
        outer_sum(g.d_weight_ho, "dw_ho", products(g.states, g.d_output, H, O, R), plan)
        sums, d_bias_o = (
            row_sum("sums_of", value(g.deltas), D, R, plan),
            row_sum("db_o", value(g.d_output), O, R, plan),
        )
        g.sums[a] = sums[a]
        g.d_bias_o[a] = d_bias_o[a]

        # ---- schedule
        if not plan.by_hand:
            return
        for gradient in (g.sums, g.d_bias_o):
            gradient.vectorize(a, plan.lanes, hl.TailStrategy.GuardWithIf)


if __name__ == "__main__":
    hl.main()
