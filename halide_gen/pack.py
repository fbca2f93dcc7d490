"""The generator that packs weights for a register tile, once for all calls in which they are the same."""

from __future__ import annotations

from typing import Any

import halide as hl
from blocks import blocks, only_if, starts_at_zero
from matmul import Panel, Weight
from schedules import schedule

# The most in a vector: the units of all tiles are whole ones then, and RNN, 1024 wide, takes 0.18 ms instead of 0.35.
LANES = 8


@hl.generator(name="pack")
class Pack:
    """Blocks of rows or columns of a matrix that consists of G gates above each other, zero where a block reaches over
    the edge, as matmul.PackedPanel reads them.

    Shapes are NumPy's; a buffer's dimensions come in the reverse order.
    """

    schedule = hl.GeneratorParam("tuned")
    dtype = hl.GeneratorParam("float32")

    def configure(self: Any) -> None:
        dtype = {"float32": hl.Float(32), "float64": hl.Float(64)}[self.dtype]
        self.add_input("threads", hl.InputScalar(hl.Int(32)))
        # not 0: units are the rows of each gate, and k the columns; 0: the other way round
        self.add_input("by_rows", hl.InputScalar(hl.Int(32)))
        self.add_input("gates", hl.InputScalar(hl.Int(32)))
        self.add_input("weight", hl.InputBuffer(dtype, 2))  # (G R, C)
        # (blocks, parts, k, gates of a part, units of a block): parts times their gates are G, units are whole vectors
        self.add_output("packed", hl.OutputBuffer(dtype, 5))

    def generate(self: Any) -> None:
        g: Any = self
        starts_at_zero(g.weight, g.packed)
        plan = schedule(g.schedule, g.target(), g.weight.type())
        C, R = g.weight.dim(0).extent(), g.weight.dim(1).extent() // g.gates
        rows, packed = g.by_rows != 0, g.packed.output_buffer()
        units, together = (packed.dim(i).extent() for i in range(2))
        for i, extent in (
            (2, hl.select(rows, C, R)),
            (3, g.gates // together),
            (4, blocks(hl.select(rows, R, C), units)),
        ):
            packed.dim(i).set_extent(extent)

        # ---- algorithm
        by_rows = Weight(lambda gate, k, j: g.weight[k, gate * R + j], rows_of_k=True)
        by_columns = Weight(lambda gate, k, j: g.weight[j, gate * R + k], rows_of_k=False)
        lane, gate, k, part, block = here = tuple(hl.Var(v) for v in ("lane", "gate", "k", "part", "block"))
        g.packed[here] = hl.undef(g.weight.type())
        made = []
        for name, condition, weight, width, extent in (
            ("rows", rows, by_rows, R, C),
            ("columns", ~rows, by_columns, C, R),
        ):
            panel = Panel(name, weight, width, extent, units, together, min(plan.lanes, LANES))
            once = only_if(condition, f"if_{name}")
            g.packed[here] = panel.func[lane, gate, k, part, block + once]
            made.append((panel, once))

        # ---- schedule
        if not plan.by_hand:
            return
        for stage, (panel, once) in enumerate(made):
            panel.schedule_stage(g.packed, g.packed.update(stage), once)


if __name__ == "__main__":
    hl.main()
