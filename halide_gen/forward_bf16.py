"""The generator of the forward pass in bfloat16: the states of a whole sequence, one pipeline (bfloat16.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import halide as hl
from bfloat16 import BF16, FLOAT32, PairProduct, PairTile, rounded, steps
from blocks import Layout, starts_at_zero
from cells import CELLS
from derivation import derive
from frames import ForwardFrame, kept_apart
from machine import bf16_tile
from matmul import Weight
from recurrence import Frame
from walk import Walk


@hl.generator(name="forward_bf16")
class ForwardBF16:
    """As forward.py, where products multiply bfloat16 numbers and sums, equations and states are float32.

    Shapes are NumPy's; a buffer's dimensions come in the reverse order. T, N, H >= 1; H even; I' is I made even. S
    states, K further values that BPTT wants to see, A gates that see x, B gates that see the state.
    """

    cell = hl.GeneratorParam("rnn_tanh")

    def configure(self: Any) -> None:
        self.add_input("threads", hl.InputScalar(hl.Int(32)))
        self.add_input("reverse", hl.InputScalar(hl.Int(32)))
        self.add_input("lengths", hl.InputBuffer(hl.Int(32), 1))  # (N,)
        self.add_input("x", hl.InputBuffer(BF16, 3))  # (T, N, I')
        self.add_input("initial", hl.InputBuffer(FLOAT32, 3))  # (S, N, H)
        self.add_input("weight_ih", hl.InputBuffer(FLOAT32, 2))  # (A H, I)
        self.add_input("weight_hh", hl.InputBuffer(FLOAT32, 2))  # (B H, H)
        self.add_input("bias_ih", hl.InputBuffer(FLOAT32, 1))  # (A H,)
        self.add_input("bias_hh", hl.InputBuffer(FLOAT32, 1))  # (B H,)
        self.add_input("fed_back", hl.InputBuffer(BF16, 3))  # (T + 1, N, H): the memory of the last output
        self.add_input("states_back", hl.InputBuffer(FLOAT32, 4))  # (S, T + 1, N, H): that of the first S outputs
        # S times (T + 1, N, H) float32, the states; K times bfloat16, what is kept; h in bfloat16
        cell = derive(CELLS[self.cell])
        self.add_output("tape", hl.OutputBuffer([FLOAT32] * len(cell.new) + [BF16] * (len(cell.kept) + 1), 3))

    def generate(self: Any) -> None:
        g: Any = self
        starts_at_zero(g.lengths, g.x, g.initial, g.weight_ih, g.weight_hh, g.bias_ih, g.bias_hh, g.fed_back)
        starts_at_zero(g.states_back)
        cell = derive(CELLS[g.cell])
        frame = ForwardFrame(cell)
        H, N, T, I = g.initial.dim(0).extent(), g.x.dim(1).extent(), g.x.dim(2).extent(), g.weight_ih.dim(0).extent()
        walk = Walk(T, g.reverse, g.lengths, None)
        (operand,) = frame.operands

        def place(s: hl.Expr) -> hl.Expr:
            return hl.select(g.reverse != 0, T - s, s)

        def bias(i: int, unit: hl.Expr) -> hl.Expr:
            total, value = cell.sums[i], hl.f32(0)
            if total.input is not None:
                value = value + g.bias_ih[total.input * H + unit]
            return value if total.hidden is None else value + g.bias_hh[total.hidden * H + unit]

        inputs = {total.input: i for i, total in enumerate(cell.sums)}
        hidden = {total.hidden: i for i, total in enumerate(cell.sums)}
        products = [
            PairProduct(
                Weight(lambda a, k, j: g.weight_ih[k, a * H + j], rows_of_k=True, gates=len(cell.inputs)),
                lambda k, n, s: g.x[k, n, walk.time(s, n)],
                I,
                [inputs[a] for a in range(len(cell.inputs))],
            ),
            PairProduct(
                Weight(lambda b, k, j: g.weight_hh[k, b * H + j], rows_of_k=True, gates=len(cell.hidden)),
                lambda k, n, s: g.fed_back[k, n, place(s - 1)],
                H,
                [hidden[b] for b in range(len(cell.hidden))],
            ),
        ]
        layout = Layout("bf16", 16, bf16_tile(len(cell.sums)))
        tile = PairTile("sums", products, len(cell.sums), H, N, layout, bias)

        def stored(values: Sequence[hl.Expr]) -> list[hl.Expr]:
            """The outputs from those of the frame's columns."""
            count = len(cell.new)
            fed = rounded(values[frame.columns.index(operand)])
            return [*values[:count], *(rounded(value) for value in values[count:]), fed]

        def first(j: hl.Expr, n: hl.Expr) -> list[hl.Expr]:
            values = [g.initial[j, n, k] for k in range(len(cell.new))]
            return stored([*values, *[hl.f32(0)] * len(cell.kept)])

        def reads(j: hl.Expr, n: hl.Expr, s: hl.Expr) -> list[hl.Expr]:
            return [g.states_back[j, n, place(s - 1), k] for k in range(len(cell.new))]

        def step(sums: Sequence[hl.Expr], read: Sequence[hl.Expr], n: hl.Expr, s: hl.Expr) -> list[hl.Expr]:
            before, now = [hl.f32(0)] * frame.size, [hl.f32(0)] * frame.size
            now[: len(sums)] = sums
            for at, state in zip(frame.states, read, strict=True):
                before[at] = state
            seen = Frame(now, before, [], [], [], lambda x: kept_apart(x, g.threads >> 20))
            written = frame.step(0, seen)
            made = walk.made(s, n)
            return stored([hl.select(made, written.get(at, now[at]), hl.f32(0)) for at in frame.columns])

        work = hl.cast(FLOAT32, N) * H * (len(cell.inputs) * I + len(cell.hidden) * H) / 2
        steps(g.tape, tile, H, N, work, g.threads, first, reads, step, T, place)


if __name__ == "__main__":
    hl.main()
