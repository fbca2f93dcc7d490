"""The generator of the kernel that rounds an input to bfloat16, once for both passes."""

from __future__ import annotations

from typing import Any

import halide as hl
from bfloat16 import BF16, FLOAT32, rounded
from blocks import mostly_inside, starts_at_zero


@hl.generator(name="round_bf16")
class RoundBF16:
    """The nearest bfloat16 of each number, ties to even, and a zero past an odd last axis."""

    def configure(self: Any) -> None:
        self.add_input("x", hl.InputBuffer(FLOAT32, 3))  # (T, N, I)
        self.add_output("made", hl.OutputBuffer(BF16, 3))  # (T, N, I'), I' is I made even

    def generate(self: Any) -> None:
        g = self
        starts_at_zero(g.x, g.made)
        i, n, t = hl.Var("i"), hl.Var("n"), hl.Var("t")
        I = g.x.dim(0).extent()

        # ---- algorithm
        g.made[i, n, t] = rounded(hl.select(i < I, g.x[mostly_inside(i, I), n, t], hl.f32(0)))

        # ---- schedule
        g.made.vectorize(i, 32, hl.TailStrategy.Predicate).parallel(t)


if __name__ == "__main__":
    hl.main()
