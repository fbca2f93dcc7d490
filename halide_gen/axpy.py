"""The generator of y + a x, which a step of gradient descent is made of."""

from __future__ import annotations

from typing import Any

import halide as hl
from blocks import starts_at_zero
from sweep import sweep


@hl.generator(name="axpy")
class Axpy:
    """z = y + a x, as BLAS has it but into new memory. All arrays are (n,), n >= 1, and a is (1,)."""

    dtype = hl.GeneratorParam("float32")

    def configure(self: Any) -> None:
        dtype = {"float32": hl.Float(32), "float64": hl.Float(64)}[self.dtype]
        self.add_input("threads", hl.InputScalar(hl.Int(32)))
        for name in ("a", "x", "y"):
            self.add_input(name, hl.InputBuffer(dtype, 1))
        self.add_output("z", hl.OutputBuffer(dtype, 1))

    def generate(self: Any) -> None:
        g: Any = self
        starts_at_zero(g.a, g.x, g.y, g.z)
        i = hl.Var("i")

        # ---- algorithm
        g.z[i] = g.y[i] + g.a[0] * g.x[i]

        # ---- schedule
        # A step of SGD over the weights of a GRU 512 wide: 0.75 -> 0.55 ms, on two threads 0.81 -> 0.35, of NumPy's two
        # operations in blocks that stay in L2; over small weights they take as long.
        sweep(g.z, i, g.natural_vector_size(g.x.type()))


if __name__ == "__main__":
    hl.main()
