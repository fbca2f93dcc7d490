"""The kernels compiled ahead of time as a backend, and what both Halide backends share: the kernels' arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .. import _generators
from .._memory import empty
from ..backend import BackendUnavailable
from ..cells import MASK, CellEquations, Derivation, evaluate_numpy
from . import numpy as reference
from .base import Array, Backend, Gradients, Kernel, Tape, Walk, cut
from .packing import Layout, Packing, layout, nothing

SCHEDULES: tuple[str, ...] = _generators.module("schedules").NAMES
FAR: int = _generators.module("machine").FAR
INSTRUCTIONS = ("sse41", "avx2", "avx512")
"""Sets of instructions, from the narrowest to the widest."""

_DTYPES = {4: "float32", 8: "float64"}  # dtype.name takes 5 us


class Kernels:
    """Where kernels come from. `dtype` is "float32" or "float64"."""

    def recurrent(self, direction: str, cell: CellEquations, dtype: str, masked: bool) -> Kernel:
        """The "forward" or "bptt" pipeline of a cell, with or without resets, recurrent dropout and zoneout."""
        raise NotImplementedError

    def product(self, name: str, dtype: str) -> Kernel:
        """The pipeline "linear" or "gradients", which no cell has a part in."""
        raise NotImplementedError

    def origin(self, direction: str, cell: CellEquations, dtype: str, masked: bool) -> str:
        """In words, where `recurrent` will find a kernel."""
        raise NotImplementedError

    def instructions(self, cell: CellEquations, dtype: str, masked: bool) -> str:
        """The set that a cell's kernels are compiled for: "avx512", "avx2" or "sse41"."""
        raise NotImplementedError


class HalideBackend:
    """Hands whole sequences to the kernels: one call forward, one back, and one for what the deltas give."""

    def __init__(self, name: str, schedule: str, kernels: Kernels) -> None:
        self.name = name
        self.schedule: str | None = schedule
        self._schedule = schedule
        self._kernels = kernels
        self._pack = Packing(lambda itemsize: kernels.product("pack", _DTYPES[itemsize]))
        self._empty = reference.NumpyBackend()  # where nothing is to be computed: kernels want T, N, H >= 1
        self.origin, self.instructions = kernels.origin, kernels.instructions
        # of the sizes that were used last: what follows from them took a fifth of a small call
        self._prepared = lru_cache(1024)(self._prepare)

    def layout(self, direction: str, cell: CellEquations, masked: bool, itemsize: int, H: int, N: int) -> Layout:
        """What the "forward" or "bptt" kernel of a cell will choose for these sizes."""
        instructions = self.instructions(cell, _DTYPES[itemsize], masked)
        return layout(direction, cell, masked, self._schedule, instructions, itemsize, H, N)

    def _prepare(
        self, direction: str, cell: CellEquations, masked: bool, itemsize: int, H: int, N: int
    ) -> tuple[_Plan, Layout, Kernel]:
        """What a pass needs to know of its cell, the layout that its kernel will choose, and the kernel."""
        dtype = _DTYPES[itemsize]
        tile = self.layout(direction, cell, masked, itemsize, H, N)
        return _plan(cell, masked), tile, self._kernels.recurrent(direction, cell, dtype, masked)

    def forward(
        self,
        cell: CellEquations,
        x: Array,
        initial: Sequence[Array],
        weights: Mapping[str, Array],
        walk: Walk,
        keep: bool = True,
    ) -> Tape:
        (T, N, _), H, dtype = x.shape, initial[0].shape[1], x.dtype
        if 0 in (T, N, H):
            return self._empty.forward(cell, x, initial, weights, walk)
        masks = _masks(walk, cell, T, N, H, dtype)
        plan, tile, kernel = self._prepared("forward", cell, bool(masks), x.itemsize, H, N)
        # Without what is kept for the way back, LSTM: 1.08 times as fast 64 wide with 48 rows.
        frames = empty((plan.columns if keep else cell.states, T + 1, N, H), dtype)
        none = _zeros((plan.widest * H,), dtype.char)
        fixed = (
            self._pack(weights["weight_ih_l0"], cell.inputs, tile, by_rows=True),
            self._recurrent(
                cell, weights, tile, by_rows=True, unread=T == 1 and walk.from_zeros and plan.derivation.starts_idle
            ),
            weights.get("bias_ih_l0", none),
            weights.get("bias_hh_l0", none[: cell.hidden * H]),
            _vectors(cell, weights, H, dtype),
        )
        if len(initial) == 1:
            now = initial[0][np.newaxis]
        elif walk.from_zeros:  # stacking them takes 3 us, a tenth of a call of an LSTM, 42 wide, with a row of 15 steps
            now = _still_zeros((cell.states, N, H), dtype.char)
        else:
            now = np.stack(initial)
        for number, (start, stop) in enumerate(_pieces(plan, walk, T, N, H, x.itemsize, keep)):
            whole = number == 0
            if whole:
                made = frames[:, start : stop + 1]
            elif walk.reverse:
                now, made = frames[: cell.states, stop].copy(), frames[:, start:stop]
            else:
                now, made = frames[: cell.states, start].copy(), frames[:, start + 1 : stop + 1]
            kernel(
                int(walk.reverse),
                int(whole and walk.from_zeros),
                int(not whole),
                _within(walk.lengths, start, stop, N),
                x[start:stop],
                now,
                *fixed,
                *_masks_within(masks, start, stop),
                made,
            )
        return Tape(tuple(frames[k] for k in range(cell.states)), frames, self.read_out(frames[0], weights, walk))

    def _recurrent(
        self, cell: CellEquations, weights: Mapping[str, Array], tile: Layout, by_rows: bool, unread: bool
    ) -> Array:
        """W_hh for a kernel; `unread` where it makes no product of it."""
        if not cell.hidden:
            return nothing(weights["weight_ih_l0"].dtype.char)
        return self._pack(weights["weight_hh_l0"], cell.hidden, tile, by_rows, unread)

    def read_out(self, states: Array, weights: Mapping[str, Array], walk: Walk) -> Array:
        """A tape's output from the first state's (T + 1, N, H)."""
        after = states[:-1] if walk.reverse else states[1:]
        if walk.reverse and walk.lengths is not None:  # the initial states are in there, at the rows' ends
            after = cut(after, walk.lengths)
        if "weight_ho" not in weights:
            return after
        output = self.linear(after, weights["weight_ho"], weights.get("bias_o"))
        return output if walk.lengths is None else cut(output, walk.lengths)

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
        (T, N, I), H, dtype = x.shape, tape.states[0].shape[2], x.dtype
        if 0 in (T, N, H):
            return self._empty.bptt(cell, x, weights, tape, d_output, d_last, walk, of_x, of_state)
        masks = _masks(walk, cell, T, N, H, dtype)
        plan, tile, kernel = self._prepared("bptt", cell, bool(masks), x.itemsize, H, N)
        frames = tape.kept
        unread = T == 1 and not of_state and plan.derivation.ends_idle
        weight_hh, weight_ho = self._recurrent(cell, weights, tile, by_rows=False, unread=unread), nothing(dtype.char)
        if "weight_ho" in weights:
            weight_ho = self._pack(weights["weight_ho"], 1, tile, by_rows=False)
            d_states = _still_zeros((T, N, H), dtype.char)
        else:
            d_states, d_output = d_output, empty((T, N, 0), dtype)
        if not [d for d in d_last if d is not None]:
            last = _still_zeros((cell.states, N, H), dtype.char)
        else:
            last = np.stack([_zeros((N, H), dtype.char) if d is None else d for d in d_last])
        vectors = _vectors(cell, weights, H, dtype)
        d_x = empty((T, N, I if of_x else 0), dtype)
        sums: list[Array] = []
        spans = _spans(plan, walk, T, N, H, x.itemsize)
        longest = -(-T // len(spans))
        room = empty((longest + 1, N, plan.deltas, H), dtype)
        for first, past in reversed(spans):
            deltas = room[: past - first + 1]
            for start, stop in reversed(_pieces(plan, walk, past - first, N, H, x.itemsize)):
                here = slice(first + start, first + stop)
                goes_on = of_state or not _is_first(walk, here, T)
                kernel(
                    int(walk.reverse),
                    int(goes_on),
                    _within(walk.lengths, here.start, here.stop, N),
                    weight_hh,
                    weight_ho,
                    vectors,
                    frames[:, here.start : here.stop + 1],
                    d_output[here],
                    d_states[here],
                    last,
                    *_masks_within(masks, here.start, here.stop),
                    deltas[start : stop + 1],
                )
                # what goes on from here: the gradients of the states before this piece
                border = deltas[stop if walk.reverse else start]
                if walk.reverse and walk.lengths is not None:  # at the rows' ends, beside deltas that count as none
                    ends = walk.lengths, np.arange(N)
                    border = deltas[ends]
                    deltas[ends] = 0
                if goes_on:
                    last = border[:, : cell.states].swapaxes(0, 1).copy(order="C")
            span = slice(first, past)
            within = walk if walk.reset is None else walk._replace(reset=walk.reset[span])
            from_zeros = walk.from_zeros and walk.lengths is None and _is_first(walk, span, T)
            made = self._sums(
                cell, plan, x[span], weights, frames[:, first : past + 1], d_output[span], deltas, d_x[span], within,
                from_zeros,
            )  # fmt: skip
            if sums:
                for total, part in zip(sums, made, strict=True):
                    total += part
            else:
                sums = made
        return Gradients(_by_name(cell, plan, H, weights, *sums), d_x, tuple(last) if of_state else ())

    def _sums(
        self,
        cell: CellEquations,
        plan: _Plan,
        x: Array,
        weights: Mapping[str, Array],
        frames: Array,
        d_output: Array,
        deltas: Array,
        d_x: Array,
        walk: Walk,
        from_zeros: bool,
    ) -> list[Array]:
        """What the deltas of a span of time give: `d_x` is filled in, and the answer is the span's part of the
        gradients of W_ih, W_hh, W_ho and b_o, and of the sums of all deltas. `from_zeros`: whether the states before
        the first step of all, which is in the span, are 0."""
        (T, N, I), H, dtype = x.shape, frames.shape[3], x.dtype
        A, B, O = cell.inputs * H, cell.hidden * H, d_output.shape[2]
        steps = (deltas[:-1] if walk.reverse else deltas[1:]).reshape(T * N, plan.deltas * H)
        before, after = (slice(1, None), slice(0, -1)) if walk.reverse else (slice(0, -1), slice(1, None))
        shift = 0 if plan.one_delta else A
        d_weight_ih, d_weight_hh = empty((A, I), dtype), empty((B, H), dtype)
        d_weight_ho, d_bias_o, sums = empty((O, H), dtype), empty((O,), dtype), empty((plan.deltas * H,), dtype)
        # in one call, and one more for each further run of rows of W_hh that sees another operand
        gradients, states = self._kernels.product("gradients", _DTYPES[dtype.itemsize]), _rows(frames[0, after])
        for number, (operand, first, past) in enumerate(plan.products or [(-1, 0, 0)]):
            previous = states if operand < 0 else _rows(_operand(plan, operand, cell, frames, before, weights, walk))
            d_hidden, made_hh = steps[:, shift + first * H : shift + past * H], d_weight_hh[first * H : past * H]
            if from_zeros and operand in plan.vanishing:
                if T == 1:
                    made_hh[:] = 0
                    d_hidden, made_hh = d_hidden[:, :0], made_hh[:0]
                else:
                    rest = slice(0, -N) if walk.reverse else slice(N, None)
                    previous, d_hidden = previous[rest], d_hidden[rest]
            if number == 0:
                gradients(
                    _rows(x), weights["weight_ih_l0"], steps[:, :A], previous, d_hidden, states, _rows(d_output),
                    steps, _rows(d_x), d_weight_ih, made_hh, d_weight_ho, d_bias_o, sums,
                )  # fmt: skip
            else:
                self._gradients(
                    T * N, dtype, previous=previous, states=states, d_hidden=d_hidden, d_weight_hh=made_hh
                )  # fmt: skip
        return [d_weight_ih, d_weight_hh, d_weight_ho, d_bias_o, sums]

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        output = empty((*x.shape[:2], len(weight)), x.dtype)
        bias = _zeros((len(weight),), x.dtype.char) if bias is None else bias
        if output.size:
            self._kernels.product("linear", _DTYPES[x.itemsize])(_rows(x), weight, bias, _rows(output))
        return output

    def linear_bptt(self, x: Array, weight: Array, d_output: Array) -> tuple[Array, Array, Array]:
        (T, N, I), O, dtype = x.shape, len(weight), x.dtype
        if 0 in (T, N):
            return self._empty.linear_bptt(x, weight, d_output)
        d_x, d_weight, d_bias = empty((T, N, I), dtype), empty((O, I), dtype), empty((O,), dtype)
        rows = _rows(d_output)
        self._gradients(
            T * N, dtype, x=_rows(x), weight_ih=weight, d_input=rows, deltas=rows, d_x=_rows(d_x),
            d_weight_ih=d_weight, sums=d_bias,
        )  # fmt: skip
        return d_x, d_weight, d_bias

    def _gradients(self, rows: int, dtype: np.dtype[Any], **given: Any) -> None:
        """Call the pipeline "gradients" with these arguments, and empty arrays for the rest."""
        H = given["states"].shape[1] if "states" in given else 0
        given = {"d_weight_ho": empty((0, H), dtype), **given}
        missing = {"rows": empty((rows, 0), dtype), "weight": empty((0, 0), dtype), "vector": empty((0,), dtype)}
        given = {name: given[name] if name in given else missing[kind] for name, kind in _GRADIENTS.items()}
        self._kernels.product("gradients", _DTYPES[dtype.itemsize])(*given.values())


_GRADIENTS = {
    "x": "rows", "weight_ih": "weight", "d_input": "rows", "previous": "rows", "d_hidden": "rows",
    "states": "rows", "d_output": "rows", "deltas": "rows", "d_x": "rows", "d_weight_ih": "weight",
    "d_weight_hh": "weight", "d_weight_ho": "weight", "d_bias_o": "vector", "sums": "vector",
}  # fmt: skip
"""The arguments of the pipeline "gradients" (halide_gen/gradients.py), in order, and of what kind each is."""

# Bytes of one block of rows in one piece of a sequence. The kernels keep a piece in blocks before they copy it out, and
# pieces that stay in L2 need not come back from memory.
PIECE_BYTES = 1 << 18
# Rows of work in a piece at the least, and numbers of a state that are enough: with half of the rows LSTM, 64 wide,
# went back 5% slower; with twice the numbers LSTM, 256 wide, 32 rows, went forward 5% slower. Twice as many where only
# the states are put out, or threads would not share the call: GRU, 40 wide, 40 rows, two threads, 16.9 -> 10.4 ms.
PIECE_ROWS = 2048
PIECE_NUMBERS = 1 << 17
# Bytes of the deltas of a span of a sequence, which is summed up while they are in the caches, before the span before
# goes back; and its rows at the least: the second number from the width on from which sums pack what they multiply.
# Against BPTT of all steps and then all sums, one thread: GRU, 40 wide, 40 rows, T = 2048: 61.8 -> 38.7 ms; LSTM, 24
# wide, 32 rows, T = 2000: 27.0 -> 20.4; LSTM, 64 wide, 48 rows, T = 400: 34.1 -> 29.7; GRU, 512 wide, 48 rows, T = 200:
# in spans of 2048 rows 600, of 8192 and in one 590. With half the bytes two threads took longer: plain RNN, 16 wide,
# 512 rows, 7.7 -> 10 ms.
SPAN_BYTES = 1 << 20
SPAN_ROWS = 2048, 8192
SHORTEST = 16
"""Steps of a piece or a span."""


def _pieces(
    plan: _Plan, walk: Walk, T: int, N: int, H: int, itemsize: int, keep: bool = True
) -> Sequence[tuple[int, int]]:
    """(start, stop) in time of what one kernel call does, in the order in which the forward pass takes them."""
    if _is_one_part(walk, T):
        return ((0, T),)
    block = (plan.columns + 2) * (1 if N < 4 else 8) * -(-H // 16) * 16 * itemsize
    rows = min(PIECE_ROWS, PIECE_NUMBERS // H) * (1 if keep else 2)
    return _parts(walk, T, max(PIECE_BYTES // block, rows // N))


def _spans(plan: _Plan, walk: Walk, T: int, N: int, H: int, itemsize: int) -> Sequence[tuple[int, int]]:
    """(start, stop) in time of what is summed up at a time on the way back, in the order of the forward pass."""
    if _is_one_part(walk, T):
        return ((0, T),)
    return _parts(walk, T, max(SPAN_BYTES // (plan.deltas * N * H * itemsize), SPAN_ROWS[H >= FAR] // N))


def _is_one_part(walk: Walk, T: int) -> bool:
    """Whether T steps are not to be cut: in reverse each row's border would be another one. Asked before the sizes of
    parts are worked out, 3 of 74 us of a tiny training step."""
    return T < 2 * SHORTEST or (walk.reverse and walk.lengths is not None)


def _parts(walk: Walk, T: int, length: int) -> Sequence[tuple[int, int]]:
    """T steps in parts of about this length."""
    parts = _cut(T, max(length, SHORTEST))
    return parts[::-1] if walk.reverse else parts


@lru_cache(maxsize=256)
def _cut(T: int, length: int) -> tuple[tuple[int, int], ...]:
    count = round(T / length) if 2 * length <= T else 1
    return tuple(pairwise(T * number // count for number in range(count + 1)))


def _is_first(walk: Walk, part: slice, T: int) -> bool:
    """Whether the forward pass begins with this part of T steps."""
    first: bool = part.stop == T if walk.reverse else part.start == 0
    return first


def _within(lengths: Any, start: int, stop: int, N: int) -> Any:
    """The lengths of N rows within a piece."""
    if lengths is None:
        return _whole(stop - start, N)
    return np.clip(lengths - np.int32(start), 0, stop - start)


def _masks_within(masks: tuple[Any, ...], start: int, stop: int) -> tuple[Any, ...]:
    if not masks:
        return ()
    reset, mask, zoneout = masks
    return reset[start:stop], mask, zoneout[:, start:stop]


class _Plan(NamedTuple):
    """What a cell's derivation says about the kernels' arrays."""

    derivation: Derivation
    columns: int  # of the tape
    deltas: int
    one_delta: bool
    widest: int
    products: tuple[tuple[int, int, int], ...]  # (operand, first and last row block of W_hh that see it)
    loose: dict[int, int]  # operand -> its column of the tape
    states: dict[int, int]  # operand that is a state -> which
    vanishing: frozenset[int]  # operands that are 0 where the states are


@cache
def _plan(cell: CellEquations, masked: bool) -> _Plan:
    d = cell.masked if masked else cell.plain
    seen_by: list[int] = [-1] * len(d.hidden)
    for back in d.back_sums:
        for row in back.hidden:
            seen_by[row] = back.operand
    products: list[tuple[int, int, int]] = []
    for row, operand in enumerate(seen_by):
        if products and products[-1][0] == operand:
            products[-1] = (operand, products[-1][1], row + 1)
        else:
            products.append((operand, row, row + 1))
    loose, column = {}, len(d.new) + len(d.kept)
    for m, o in enumerate(d.operands):
        if not o.carried:
            loose[m] = column
            column += 1
    return _Plan(
        derivation=d,
        columns=column,
        deltas=max(len(d.deltas), len(d.new)),
        one_delta=d.one_delta,
        widest=max(len(d.inputs), len(d.hidden)),
        products=tuple(products),
        loose=loose,
        vanishing=frozenset(m for m, o in enumerate(d.operands) if o.vanishes),
        states={m: d.state_leaves.index(o.value) for m, o in enumerate(d.operands) if o.value in d.state_leaves},
    )


def _by_name(
    cell: CellEquations,
    plan: _Plan,
    H: int,
    weights: Mapping[str, Array],
    d_weight_ih: Array,
    d_weight_hh: Array,
    d_weight_ho: Array,
    d_bias_o: Array,
    sums: Array,
) -> dict[str, Array]:
    """The gradients of the weights, from `HalideBackend._sums`, by their names."""
    A, B = cell.inputs * H, cell.hidden * H
    found = {"weight_ih_l0": d_weight_ih, "weight_hh_l0": d_weight_hh, "weight_ho": d_weight_ho, "bias_o": d_bias_o}
    if "bias_ih_l0" in weights:
        found["bias_ih_l0"] = sums[:A]
        found["bias_hh_l0"] = sums[:B].copy() if plan.one_delta else sums[A : A + B]
    first = A if plan.one_delta else A + B
    for number, name in enumerate(cell.vectors):
        found[f"{name}_l0"] = sums[first + number * H : first + (number + 1) * H]
    return {name: found[name] for name in weights}


def _operand(
    plan: _Plan,
    operand: int,
    cell: CellEquations,
    frames: Array,
    before: slice,
    weights: Mapping[str, Array],
    walk: Walk,
) -> Array:
    """(T, N, H): what a recurrent product was made of, in each step."""
    if operand in plan.loose:
        column: Array = frames[plan.loose[operand]]
        return column[:-1] if walk.reverse else column[1:]
    if walk.reset is None and operand in plan.states:
        state: Array = frames[plan.states[operand], before]
        return state
    d = plan.derivation
    value = d.operands[operand].value
    states = {leaf: frames[k, before] for k, leaf in enumerate(d.state_leaves)}
    if walk.reset is not None:
        goes_on = (walk.reset == 0)[:, :, np.newaxis]
        states = {leaf: np.where(goes_on, state, state.dtype.type(0)) for leaf, state in states.items()}
    if value in states:
        return states[value]
    vectors = {leaf: weights[f"{name}_l0"] for name, leaf in zip(d.vectors, d.vector_leaves, strict=True)}
    mask = frames.dtype.type(1) if walk.recurrent_mask is None else walk.recurrent_mask
    return evaluate_numpy(value, {**states, **vectors, MASK: mask}, frames.dtype)


def _rows(sequence: Array) -> Array:
    """(T N, ...): the rows of all steps; a copy where they are not one stride apart."""
    T, N, width = sequence.shape
    return sequence.reshape(T * N, width)


@lru_cache(maxsize=64)
def _whole(T: int, N: int) -> Any:
    """The lengths of rows that are whole."""
    return np.full(N, T, np.int32)


@lru_cache(maxsize=64)
def _zeros(shape: tuple[int, ...], dtype: str) -> Array:
    """Zeros that nobody writes to."""
    zeros: Array = np.zeros(shape, dtype)
    return zeros


@lru_cache(maxsize=64)
def _still_zeros(shape: tuple[int, ...], dtype: str) -> Array:
    """The same, that take the memory of one row."""
    zeros: Array = _still(np.zeros(shape[-1:], dtype), shape)
    return zeros


def _still(row: Any, shape: tuple[int, ...]) -> Any:
    """An array of this shape whose outer strides are 0: `row` again and again."""
    return np.ndarray(shape, row.dtype, row, strides=(0,) * (len(shape) - 1) + (row.itemsize,))


def _vectors(cell: CellEquations, weights: Mapping[str, Array], H: int, dtype: np.dtype[Any]) -> Array:
    if not cell.vectors:
        return _zeros((0, H), dtype.char)
    return np.stack([weights[f"{name}_l0"] for name in cell.vectors])


def _masks(walk: Walk, cell: CellEquations, T: int, N: int, H: int, dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """(reset, mask, zoneout) for kernels that know masks; nothing where there is none of the three."""
    if walk.reset is None and walk.recurrent_mask is None and walk.zoneout is None:
        return ()
    reset = _still(np.zeros(N, np.uint8), (T, N)) if walk.reset is None else walk.reset
    mask = _still(np.ones(H, dtype), (N, H)) if walk.recurrent_mask is None else walk.recurrent_mask
    if walk.zoneout is None:
        zoneout = _still_zeros((cell.states, T, N, H), dtype.char)
    else:
        zoneout = np.stack([np.broadcast_to(share, (T, N, H)) for share in walk.zoneout])
    return reset, mask, zoneout


def check_schedule(schedule: str, known: Sequence[str] = SCHEDULES) -> None:
    """Raises ValueError for a schedule that is not among those known."""
    if schedule not in known:
        raise ValueError(f"schedule: expected one of {', '.join(known)}, got {schedule!r}")


class Compiled(Kernels):
    """Those of the extension module, under one schedule; what it does not have is compiled when it is first used."""

    def __init__(self, schedule: str, kernels: Mapping[str, Kernel], widest: str) -> None:
        self._schedule, self._kernels, self._widest = schedule, kernels, widest
        self._found: dict[tuple[object, ...], Kernel] = {}

    def recurrent(self, direction: str, cell: CellEquations, dtype: str, masked: bool) -> Kernel:
        key = (direction, cell, dtype, masked)
        kernel = self._found.get(key)
        if kernel is None:
            if self._is_built_in(direction, cell, dtype, masked):
                kernel = self._kernels[self._name(direction, cell, dtype, masked)]
            if kernel is None and self._schedule != "tuned":
                raise ValueError(
                    f"schedule: expected 'tuned' (or the backend halide-jit) for {cell} in {dtype}, "
                    f"got {self._schedule!r}"
                )
            if kernel is None:
                from .._compiler import compiled

                kernel = compiled(direction, cell, dtype, masked)
            self._found[key] = kernel
        return kernel

    def product(self, name: str, dtype: str) -> Kernel:
        return self._kernels[f"{name}_{self._schedule}_{dtype}"]

    def instructions(self, cell: CellEquations, dtype: str, masked: bool) -> str:
        if dtype == "float64" and self._is_built_in("forward", cell, dtype, masked):
            most = "avx2" if cell.name in ("rnn_tanh", "lstm", "gru") else "sse41"
            return min(most, self._widest, key=INSTRUCTIONS.index)
        return self._widest

    def origin(self, direction: str, cell: CellEquations, dtype: str, masked: bool) -> str:
        from .._compiler import library_path

        if self._is_built_in(direction, cell, dtype, masked):
            return f"{self._name(direction, cell, dtype, masked)}, built in"
        path = library_path(direction, cell, dtype, masked)
        return f"{path}" if path.exists() else f"to be compiled when it is first used, in seconds, into {path}"

    def _is_built_in(self, direction: str, cell: CellEquations, dtype: str, masked: bool) -> bool:
        return cell.is_built_in and self._name(direction, cell, dtype, masked) in self._kernels

    def _name(self, direction: str, cell: CellEquations, dtype: str, masked: bool) -> str:
        return f"{direction}_{cell.name}_{self._schedule}_{dtype}" + "_masked" * masked


def load(schedule: str = "tuned") -> Backend:
    """The kernels of a schedule ("tuned" in float32 and float64, the others in float32).

    Raises ValueError for an unknown schedule, BackendUnavailable where the kernels were not built.
    """
    check_schedule(schedule)
    try:
        from .._kernels import instruction_set, kernels
    except ModuleNotFoundError as reason:
        raise BackendUnavailable(
            f"halide: the compiled kernels are missing ({reason}); install the package with 'pip install .'"
        ) from reason
    return HalideBackend("halide", schedule, Compiled(schedule, kernels, instruction_set()))
