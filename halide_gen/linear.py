"""The generator of a linear layer's forward pass, which reads the states out."""

from __future__ import annotations

from typing import Any

import halide as hl
from blocks import starts_at_zero
from matmul import Projection, Weight, project
from schedules import schedule


@hl.generator(name="linear")
class Linear:
    """y = W x + b for each of R = T N rows. Shapes are NumPy's; a buffer's dimensions come in the reverse order."""

    schedule = hl.GeneratorParam("tuned")
    dtype = hl.GeneratorParam("float32")

    def configure(self: Any) -> None:
        dtype = {"float32": hl.Float(32), "float64": hl.Float(64)}[self.dtype]
        self.add_input("threads", hl.InputScalar(hl.Int(32)))
        self.add_input("x", hl.InputBuffer(dtype, 2))  # (R, I)
        self.add_input("weight", hl.InputBuffer(dtype, 2))  # (O, I)
        self.add_input("bias", hl.InputBuffer(dtype, 1))  # (O,)
        self.add_output("y", hl.OutputBuffer(dtype, 2))  # (R, O)

    def generate(self: Any) -> None:
        g = self
        starts_at_zero(g.x, g.weight, g.bias, g.y)
        plan = schedule(g.schedule, g.target(), g.x.type())
        I, R, O = g.x.dim(0).extent(), g.x.dim(1).extent(), g.bias.dim(0).extent()
        projection = Projection(
            weight=Weight(lambda _, k, o: g.weight[k, o], rows_of_k=True),
            factor=lambda k, r, _: g.x[k, r],
            extent=I,
            bias=lambda _, o: g.bias[o],
        )
        project(g.y, "product", projection, O, R, plan)


if __name__ == "__main__":
    hl.main()
