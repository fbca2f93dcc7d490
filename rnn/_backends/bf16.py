"""The products of a recurrence in bfloat16, over the backend of compiled kernels: weights, inputs, fed-back states and
deltas are rounded to bfloat16, products are summed in float32, and all else is float32 too."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .._memory import empty
from ..cells import CellEquations
from .base import Array, Backend, Gradients, Tape, Walk
from .halide import HalideBackend, _plan, _still_zeros, _whole, _zeros

CELLS = ("rnn_tanh", "lstm", "gru")
"""Those with kernels in bfloat16 (CMakeLists.txt)."""

Bits = NDArray[np.uint16]
"""Numbers in bfloat16, which NumPy has no type for."""


class _Kept(NamedTuple):
    """What a forward pass in bfloat16 leaves behind."""

    states: Array  # (S, T + 1, N, H)
    values: Bits  # (K, T + 1, N, H), what else BPTT wants to see
    fed: Bits  # (T + 1, N, H), h
    x: Bits  # (T, N, I'), I' is I made even


def lacking() -> str | None:
    """Why no kernel in bfloat16 can or should run in this process; None where they do, and where there are no kernels
    at all. Where the CPU has them but is slower with them, RNN_BF16=1 has them run nonetheless."""
    try:
        from .._kernels import has_bf16, has_slow_bf16
    except ModuleNotFoundError:
        return None
    if not has_bf16():
        return "this CPU has no AVX512_BF16, or RNN_INSTRUCTION_SET forbids it"
    if has_slow_bf16() and os.environ.get("RNN_BF16") != "1":
        return "this CPU's AVX512_BF16 is slower than its float32 (RNN_BF16=1 uses it nonetheless)"
    return None


def reason_against(chosen: Backend, cell: CellEquations, hidden_size: int, masked: bool) -> str | None:
    """Why passes of a layer on a backend run in float32 nonetheless, None if they don't. (Rows of different lengths in
    reverse do, too.)"""
    if not isinstance(chosen, HalideBackend) or chosen.name != "halide" or chosen.schedule != "tuned":
        return "only the backend halide has kernels in bfloat16, in its schedule tuned"
    if not cell.is_built_in or cell.name not in CELLS:
        return f"the cells with kernels in bfloat16 are {', '.join(CELLS)}"
    if masked:
        return "resets, recurrent dropout and zoneout have no kernels in bfloat16"
    if hidden_size % 2:
        return "hidden_size is odd, and the CPU multiplies pairs of bfloat16 numbers"
    return lacking()


class Bfloat16:
    """`below`, in bfloat16 where it has kernels for that."""

    def __init__(self, below: Backend) -> None:
        self.name, self.schedule = below.name, below.schedule
        self._below = below

    def forward(
        self,
        cell: CellEquations,
        x: Array,
        initial: Sequence[Array],
        weights: Mapping[str, Array],
        walk: Walk,
        keep: bool = True,
    ) -> Tape:
        (T, N, I), H = x.shape, initial[0].shape[1]
        masked = any(option is not None for option in (walk.reset, walk.recurrent_mask, walk.zoneout))
        if (
            reason_against(self._below, cell, H, masked) is not None
            or 0 in (T, N, H)
            or (walk.reverse and walk.lengths is not None)
        ):
            return self._below.forward(cell, x, initial, weights, walk, keep)
        below, kernels, plan = self._halide, _kernels(), _plan(cell, False)
        rounded: Bits = empty((T, N, I + I % 2), np.uint16)
        kernels["round_bf16"](x, rounded)
        states = empty((cell.states, T + 1, N, H), np.float32)
        fed: Bits = empty((T + 1, N, H), np.uint16)
        values, shape = len(plan.derivation.kept), (T + 1, N, H)
        kept: Bits = empty((values, *shape), np.uint16) if keep else _rolling(values, shape, np.uint16)
        kernels[f"forward_{cell.name}_bf16"](
            int(walk.reverse),
            _whole(T, N) if walk.lengths is None else walk.lengths,
            rounded,
            np.stack(initial),
            weights["weight_ih_l0"],
            weights["weight_hh_l0"],
            weights.get("bias_ih_l0", _zeros((cell.inputs * H,), "f")),
            weights.get("bias_hh_l0", _zeros((cell.hidden * H,), "f")),
            fed,
            states,
            *states,
            *kept,
            fed,
        )
        return Tape(tuple(states), _Kept(states, kept, fed, rounded), below.read_out(states[0], weights, walk))

    def bptt(
        self,
        cell: CellEquations,
        x: Array,
        weights: Mapping[str, Array],
        tape: Tape,
        d_output: Array,
        d_last: Sequence[Array | None],
        walk: Walk,
        of_x: bool = True,
        of_state: bool = True,
    ) -> Gradients:
        kept = tape.kept
        if not isinstance(kept, _Kept):
            return self._below.bptt(cell, x, weights, tape, d_output, d_last, walk, of_x, of_state)
        (T, N, I), H = x.shape, tape.states[0].shape[2]
        below, kernels, plan = self._halide, _kernels(), _plan(cell, False)
        made: dict[str, Array] = {}
        d_states = d_output
        if "weight_ho" in weights:
            after = tape.states[0][:-1] if walk.reverse else tape.states[0][1:]
            d_states, made["weight_ho"], made["bias_o"] = below.linear_bptt(after, weights["weight_ho"], d_output)
        last = _still_zeros((cell.states, N, H), "f")
        if any(d is not None for d in d_last):
            last = np.stack([_zeros((N, H), "f") if d is None else d for d in d_last])
        derivation = plan.derivation
        D, A, B = len(derivation.deltas), cell.inputs * H, cell.hidden * H
        deltas: Bits = empty((T + 2, N, D * H), np.uint16)
        reached: Array = _rolling(cell.states, (T + 2, N, H), np.float32)
        kernels[f"bptt_{cell.name}_bf16"](
            int(walk.reverse),
            _whole(T, N) if walk.lengths is None else walk.lengths,
            weights["weight_hh_l0"],
            kept.states,
            kept.values,
            d_states,
            last,
            deltas[:, :, D * H - B :],
            reached,
            *(deltas[:, :, d * H : (d + 1) * H] for d in range(D)),
            *reached,
        )
        rows = deltas[1:-1].reshape(T * N, D * H)
        before = kept.fed[1:] if walk.reverse else kept.fed[:-1]
        d_x = empty((T * N, I if of_x else 0), np.float32)
        d_weight_ih, d_weight_hh = empty((A, I), np.float32), empty((B, H), np.float32)
        sums = empty((D * H,), np.float32)
        kernels["gradients_bf16"](
            kept.x.reshape(T * N, -1),
            weights["weight_ih_l0"],
            rows[:, :A],
            before.reshape(T * N, H),
            rows[:, D * H - B :],
            rows,
            d_x,
            d_weight_ih,
            d_weight_hh,
            sums,
        )
        made |= {
            "weight_ih_l0": d_weight_ih,
            "weight_hh_l0": d_weight_hh,
            "bias_ih_l0": sums[:A],
            "bias_hh_l0": sums[D * H - B :].copy() if plan.one_delta else sums[D * H - B :],
        }
        return Gradients({name: made[name] for name in weights}, d_x.reshape(T, N, -1), tuple(reached[:, 0].copy()))

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return self._below.linear(x, weight, bias)

    def linear_bptt(self, x: Array, weight: Array, d_output: Array) -> tuple[Array, Array, Array]:
        return self._below.linear_bptt(x, weight, d_output)

    @property
    def _halide(self) -> HalideBackend:
        """What is below, where there are kernels in bfloat16."""
        assert isinstance(self._below, HalideBackend)
        return self._below


def _kernels() -> Mapping[str, Any]:
    from .._kernels import kernels

    found: Mapping[str, Any] = kernels
    return found


def _rolling(count: int, shape: tuple[int, int, int], dtype: DTypeLike) -> NDArray[Any]:
    """(count, steps, N, H) in the memory of one step: each step writes over the last one's."""
    memory = np.empty((count, 1, *shape[1:]), dtype)
    outer, _, row, number = memory.strides
    return np.ndarray((count, *shape), dtype, memory, strides=(outer, 0, row, number))
