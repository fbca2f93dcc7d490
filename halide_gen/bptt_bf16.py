"""The generator of back-propagation through time in bfloat16: from a loss's gradients of the states to those of every
product, for a whole sequence, one pipeline (bfloat16.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import halide as hl
from bfloat16 import BF16, FLOAT32, PairProduct, PairTile, rounded, steps, widened
from blocks import Layout, starts_at_zero
from cells import CELLS
from derivation import derive
from expressions import ZERO
from frames import BackFrame, kept_apart
from machine import bf16_tile
from matmul import Weight
from recurrence import Frame
from walk import Walk


@hl.generator(name="bptt_bf16")
class BPTTBF16:
    """As bptt.py, where products multiply bfloat16 numbers. There is no readout in it: `d_states` is all that reaches
    the states from the output.

    Shapes are NumPy's; a buffer's dimensions come in the reverse order. T, N, H >= 1; H even. S states, B gates that
    see the state, K further values that are kept, D deltas.
    """

    cell = hl.GeneratorParam("rnn_tanh")

    def configure(self: Any) -> None:
        cell = derive(CELLS[self.cell])
        self.add_input("threads", hl.InputScalar(hl.Int(32)))
        self.add_input("reverse", hl.InputScalar(hl.Int(32)))
        self.add_input("lengths", hl.InputBuffer(hl.Int(32), 1))  # (N,)
        self.add_input("weight_hh", hl.InputBuffer(FLOAT32, 2))  # (B H, H)
        self.add_input("states", hl.InputBuffer(FLOAT32, 4))  # (S, T + 1, N, H), from the forward pass
        self.add_input("kept", hl.InputBuffer(BF16, 4))  # (K, T + 1, N, H), from the forward pass
        self.add_input("d_states", hl.InputBuffer(FLOAT32, 3))  # (T, N, H), dL/dh_t
        self.add_input("d_last", hl.InputBuffer(FLOAT32, 3))  # (S, N, H), of each row's last states
        self.add_input("fed_back", hl.InputBuffer(BF16, 3))  # (T + 2, N, B H): the memory of the last B of D outputs
        self.add_input("states_back", hl.InputBuffer(FLOAT32, 4))  # (S, T + 2, N, H): that of the last S outputs
        # D times (T + 2, N, H) bfloat16: the deltas of the step at time t in place t + 1, for the rows of W_ih, and for
        # those of W_hh if they differ; then S times (T + 2, N, H) float32, what reaches a state, at the end the initial
        self.add_output("deltas", hl.OutputBuffer([BF16] * len(cell.deltas) + [FLOAT32] * len(cell.new), 3))

    def generate(self: Any) -> None:
        g: Any = self
        starts_at_zero(g.lengths, g.weight_hh, g.states, g.kept, g.d_states, g.d_last, g.fed_back, g.states_back)
        cell = derive(CELLS[g.cell])
        H, N, T = g.d_last.dim(0).extent(), g.lengths.dim(0).extent(), g.d_states.dim(2).extent()
        frame, walk, zero = BackFrame(cell), Walk(T, g.reverse, g.lengths, None), hl.f32(0)
        D, B = len(cell.deltas), len(cell.hidden)

        # Step s is about slot T + 1 - s of the forward pass: 1 is the last, T + 1 the initial state.
        def place(s: hl.Expr) -> hl.Expr:
            """Of a step in the outputs, which have one place more than there are slots."""
            return hl.select(g.reverse != 0, s, T + 1 - s)

        # Whole rows alone run in reverse, so that times are the same for all rows.
        def on_tape(q: hl.Expr) -> hl.Expr:
            return hl.select(g.reverse != 0, T - q, q)

        def time(q: hl.Expr) -> hl.Expr:
            return hl.clamp(hl.select(g.reverse != 0, T - q, q - 1), 0, T - 1)

        back = PairProduct(
            Weight(lambda _, k, j: g.weight_hh[j, k], rows_of_k=False),
            lambda k, n, s: g.fed_back[k, n, place(s - 1)],
            B * H,
            [0],
        )
        tile = PairTile("sums", [back], 1, H, N, Layout("bf16", 16, bf16_tile(1)))

        def first(j: hl.Expr, n: hl.Expr) -> list[hl.Expr]:
            return [rounded(zero)] * D + [zero] * len(cell.new)

        def reads(j: hl.Expr, n: hl.Expr, s: hl.Expr) -> list[hl.Expr]:
            q, count = T + 1 - s, len(cell.new)
            last = [g.d_last[j, n, k] for k in range(count)]
            past = [zero if e is ZERO else g.states_back[j, n, place(s - 1), k] for k, e in enumerate(cell.carried)]
            kept = [widened(g.kept[j, n, on_tape(q), i]) for i in range(len(cell.kept))]
            taped = [*(g.states[j, n, on_tape(q), k] for k in frame.states), *kept]
            ahead = [g.states[j, n, on_tape(hl.max(q - 1, 0)), k] for k in frame.states]
            return [g.d_states[j, n, time(q)], *last, *past, *taped, *ahead]

        def step(sums: Sequence[hl.Expr], read: Sequence[hl.Expr], n: hl.Expr, s: hl.Expr) -> list[hl.Expr]:
            q, numbers = T + 1 - s, iter(read)
            now, before, ahead = ([zero] * frame.size for _ in range(3))
            now[0] = sums[0]
            outside = hl.select((q > 0) & walk.made(q, n), next(numbers), zero)
            for k, at in enumerate(frame.gradients):
                now[at] = hl.select(q == walk.length(n), next(numbers), zero) + (outside if k == 0 else zero)
            for places, frame_of in (
                (frame.gradients, before),
                ([*frame.states.values(), *frame.kept.values()], now),
                (frame.states.values(), ahead),
            ):
                for at in places:
                    frame_of[at] = next(numbers)
            flags = [walk.made(q, n), hl.cast(hl.UInt(1), 0), q < walk.length(n)]
            seen = Frame(now, before, ahead, [], flags, lambda x: kept_apart(x, g.threads >> 20))
            written = frame.step(0, seen)
            reached = frame.reached(seen)
            past = [written[at] for at in frame.gradients]
            carried = [hl.select(q == 0, at_first, on) for at_first, on in zip(reached, past, strict=True)]
            return [rounded(written[frame.deltas[delta]]) for delta in cell.deltas] + carried

        work = hl.cast(FLOAT32, N) * H * (B * H) / 2
        steps(g.deltas, tile, H, N, work, g.threads, first, reads, step, T + 1, place)


if __name__ == "__main__":
    hl.main()
