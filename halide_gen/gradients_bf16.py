"""The generator of what BPTT's deltas give in bfloat16: the gradients of weights and input, one pipeline for any cell
(bfloat16.py)."""

from __future__ import annotations

from typing import Any

import halide as hl
from bfloat16 import BF16, FLOAT32, PairProduct, PairTile, outer_sum, widened
from blocks import Layout, starts_at_zero
from machine import bf16_tile
from matmul import Weight
from schedules import schedule
from sums import row_sum


@hl.generator(name="gradients_bf16")
class GradientsBF16:
    """As gradients.py, for R = T N rows of bfloat16 and without a readout.

    Shapes are NumPy's; a buffer's dimensions come in the reverse order. A and B rows of W_ih and W_hh, D sums; R >= 1;
    A even; I' is I made even.
    """

    def configure(self: Any) -> None:
        self.add_input("threads", hl.InputScalar(hl.Int(32)))
        self.add_input("x", hl.InputBuffer(BF16, 2))  # (R, I')
        self.add_input("weight_ih", hl.InputBuffer(FLOAT32, 2))  # (A, I)
        self.add_input("d_input", hl.InputBuffer(BF16, 2))  # (R, A), of W_ih x
        self.add_input("previous", hl.InputBuffer(BF16, 2))  # (R, H), the states before each step
        self.add_input("d_hidden", hl.InputBuffer(BF16, 2))  # (R, B), of W_hh h
        self.add_input("deltas", hl.InputBuffer(BF16, 2))  # (R, D), what is to be summed up
        self.add_output("d_x", hl.OutputBuffer(FLOAT32, 2))  # (R, I), or none of it
        self.add_output("d_weight_ih", hl.OutputBuffer(FLOAT32, 2))  # (A, I)
        self.add_output("d_weight_hh", hl.OutputBuffer(FLOAT32, 2))  # (B, H)
        self.add_output("sums", hl.OutputBuffer(FLOAT32, 1))  # (D,)

    def generate(self: Any) -> None:
        g = self
        starts_at_zero(g.x, g.weight_ih, g.d_input, g.previous, g.d_hidden, g.deltas, g.d_x, g.sums)
        R, I, A = g.x.dim(1).extent(), g.weight_ih.dim(0).extent(), g.d_input.dim(0).extent()
        B, H, D = g.d_hidden.dim(0).extent(), g.previous.dim(0).extent(), g.deltas.dim(0).extent()
        layout, plan = Layout("bf16", 16, bf16_tile(1)), schedule("tuned", g.target(), FLOAT32)
        i, n, a = hl.Var("i"), hl.Var("n"), hl.Var("a")

        # ---- algorithm
        outer_sum(g.d_weight_ih, "dw_ih", lambda i, r: g.x[i, r], lambda a, r: g.d_input[a, r], I, A, R, layout)
        outer_sum(g.d_weight_hh, "dw_hh", lambda i, r: g.previous[i, r], lambda a, r: g.d_hidden[a, r], H, B, R, layout)
        product = PairProduct(
            Weight(lambda _, k, j: g.weight_ih[j, k], rows_of_k=False), lambda k, r, _: g.d_input[k, r], A, [0]
        )
        tile = PairTile("dx", [product], 1, I, R, layout)
        g.d_x[i, n] = tile[i, 0, n, 0]
        total = row_sum("sums_of", lambda a, r: widened(g.deltas[a, r]), D, R, plan)
        g.sums[a] = total[a]

        # ---- schedule
        io, ii, batch, row, chunk = (hl.Var(v) for v in ("io", "ii", "batch", "row", "chunk"))
        guard = hl.TailStrategy.GuardWithIf
        g.sums.vectorize(a, layout.lanes, guard)
        g.d_x.split(i, io, ii, layout.units, hl.TailStrategy.Predicate).split(n, batch, row, layout.tile.rows, guard)
        g.d_x.split(batch, chunk, batch, 8, guard).reorder(ii, row, batch, io, chunk)
        g.d_x.vectorize(ii, layout.lanes).unroll(ii).parallel(chunk).never_partition([row, batch, io, chunk])
        tile.schedule(g.d_x, batch)


if __name__ == "__main__":
    hl.main()
