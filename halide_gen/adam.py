"""The generator of a step of the optimizer Adam over one weight, in one sweep."""

from __future__ import annotations

from typing import Any

import halide as hl
from blocks import starts_at_zero
from sweep import sweep


@hl.generator(name="adam")
class Adam:
    """m' = b1 m + (1 - b1) g, v' = b2 v + (1 - b2) g^2, w' = w - rate m' / (sqrt(v') / root + eps): Kingma and Ba,
    2015, with rate and root as in rnn/optim.py. All arrays are (n,), n >= 1."""

    dtype = hl.GeneratorParam("float32")

    def configure(self: Any) -> None:
        dtype = {"float32": hl.Float(32), "float64": hl.Float(64)}[self.dtype]
        self.add_input("threads", hl.InputScalar(hl.Int(32)))
        self.add_input("settings", hl.InputBuffer(dtype, 1))  # (7,): b1, 1 - b1, b2, 1 - b2, rate, root, eps
        for name in ("weight", "gradient", "m", "v"):
            self.add_input(name, hl.InputBuffer(dtype, 1))
        self.add_output("after", hl.OutputBuffer([dtype] * 3, 1))  # weight, m, v

    def generate(self: Any) -> None:
        g: Any = self
        starts_at_zero(g.settings, g.weight, g.gradient, g.m, g.v)
        g.after.output_buffers()[0].dim(0).set_min(0)
        i = hl.Var("i")

        # ---- algorithm
        b1, rest1, b2, rest2, rate, root, eps = (g.settings[k] for k in range(7))
        m = b1 * g.m[i] + rest1 * g.gradient[i]
        v = b2 * g.v[i] + rest2 * (g.gradient[i] * g.gradient[i])
        g.after[i] = hl.Tuple([g.weight[i] - rate * m / (hl.sqrt(v) / root + eps), m, v])

        # ---- schedule
        # 3 million weights, one thread of a Zen 4: 3.2 ms; in a sweep of NumPy for each operation 10.
        sweep(g.after, i, g.natural_vector_size(g.weight.type()))


if __name__ == "__main__":
    hl.main()
