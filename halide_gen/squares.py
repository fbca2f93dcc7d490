"""The generator of a sum of squares, which the norm of gradients is made of."""

from __future__ import annotations

from typing import Any

import halide as hl
from blocks import starts_at_zero

SUMS = 32  # that run side by side: four vectors of AVX-512 hide the latency of an addition


@hl.generator(name="squares")
class Squares:
    """The sum of the squares of n numbers, in float64, always in the same order."""

    dtype = hl.GeneratorParam("float32")

    def configure(self: Any) -> None:
        dtype = {"float32": hl.Float(32), "float64": hl.Float(64)}[self.dtype]
        self.add_input("threads", hl.InputScalar(hl.Int(32)))
        self.add_input("x", hl.InputBuffer(dtype, 1))  # (n,)
        self.add_output("total", hl.OutputBuffer(hl.Float(64), 1))  # (1,)

    def generate(self: Any) -> None:
        g: Any = self
        starts_at_zero(g.x, g.total)
        n, lane, i = g.x.dim(0).extent(), hl.Var("lane"), hl.Var("i")

        # ---- algorithm
        partial = hl.Func("partial")
        r = hl.RDom([(0, n)])
        number = hl.cast(hl.Float(64), g.x[r.x])
        partial[lane] = hl.f64(0)
        partial[r.x % SUMS] += number * number
        across = hl.RDom([(0, SUMS)])
        g.total[i] = hl.f64(0)
        g.total[i] += partial[across.x]

        # ---- schedule
        outer, inner = hl.RVar("outer"), hl.RVar("inner")
        partial.compute_root().bound(lane, 0, SUMS).vectorize(lane)
        update = partial.update().allow_race_conditions()  # to each place once a vector
        update.split(r.x, outer, inner, SUMS, hl.TailStrategy.Predicate).vectorize(inner)


if __name__ == "__main__":
    hl.main()
