"""What will run, and why."""

from __future__ import annotations

from typing import NamedTuple

from . import _check, _generators, backend
from ._backends import bf16
from ._backends.base import Walk
from ._backends.halide import HalideBackend, _pieces, _plan, _spans
from ._backends.packing import Layout, is_frozen
from ._backends.stepping import MOST_ROWS, reason_against
from ._threads import get_num_threads
from .layers import Layer

__all__ = ["Explanation", "explain"]


class Explanation(NamedTuple):
    """One line for each decision; `str` of it is the text."""

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def explain(layer: Layer, shape: tuple[int, int], *, masks: bool | None = None) -> Explanation:
    """Which kernels, schedule and threads a layer's passes over x of `shape` (T, N), or (T, N, I), will use, and why.

    masks: whether there will be resets, recurrent dropout or zoneout; None: as training of this layer has them.
    Nothing is run or compiled. Raises TypeError or ValueError naming the argument.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"layer: expected a layer, got {type(layer).__name__}")
    if not isinstance(shape, tuple | list) or len(shape) not in (2, 3):
        raise ValueError(f"shape: expected (T, N) or (T, N, I), got {shape!r}")
    T, N = _check.size("shape[0]", shape[0]), _check.size("shape[1]", shape[1])
    chosen = backend.current()
    H, cell = layer.hidden_size, layer.cell
    directions = "both directions" if layer.bidirectional else "in reverse" if layer.reverse else "forward in time"
    lines = [
        f"layer     {cell}, H={H}, {layer.num_layers} layer{'s' * (layer.num_layers > 1)}, {directions}, {layer.dtype}",
        f"backend   {chosen.name}" + (f", schedule {chosen.schedule}" if chosen.schedule else ""),
    ]
    if masks is None:
        masks = bool(layer.recurrent_dropout or any(layer.zoneout))
    rounds = False
    if layer.precision == "bf16":
        reason = bf16.reason_against(chosen, cell, H, masks)
        rounds = reason is None
        bfloat16 = "bf16 in products; rows of different lengths in reverse: float32"
        lines.append("precision " + (bfloat16 if rounds else f"float32, not bf16: {reason}"))
    if not isinstance(chosen, HalideBackend):
        return Explanation((*lines, "kernel    none: this backend is not compiled from the cell's equations"))
    if 0 in (T, N, H):
        return Explanation((*lines, "kernel    none: there is nothing to compute"))
    from ._kernels import worth_sharing

    if rounds:
        return Explanation((*lines, *_rounded(layer, T, N, chosen, worth_sharing(N))))
    from ._kernels import instruction_set

    why = "the widest that this CPU has (or RNN_INSTRUCTION_SET allows)"
    if (instructions := chosen.instructions(cell, str(layer.dtype), masks)) != instruction_set():
        why = "all that float64, which is for checks of gradients, is compiled for"
    lines.append(f"code      {instructions}, {why}")
    plan = _plan(cell, masks)
    least = worth_sharing(N) if chosen.name == "halide" else 0  # the JIT has a pool of its own
    way, size = Walk(layer.reverse), layer.dtype.itemsize
    spans = len(_spans(plan, way, T, N, H, size))
    span = T // spans
    steps = {
        "forward": T // len(_pieces(plan, way, T, N, H, size)),
        "bptt": span // len(_pieces(plan, way, span, N, H, size)),
    }
    for direction in ("forward", "bptt"):
        lines.append(f"{direction:9} {chosen.origin(direction, cell, str(layer.dtype), masks)}")
        if chosen.schedule == "tuned":
            layout = chosen.layout(direction, cell, masks, size, H, N)
            lines += [
                f"          {line}" for line in _tile(layer, direction, steps[direction], N, masks, layout, least)
            ]
    frozen = all(is_frozen(weight) for weight in layer.weights.values())
    lines.append(f"weights   {'frozen: packed for a tile once' if frozen else 'packed for a tile in each call'}")
    lines += [
        f"pieces    {direction}: of about {length} steps, which stay in the L2 cache"
        for direction, length in steps.items()
        if length < T
    ]
    lines.append(f"step      {_step(layer, chosen)}")
    at_once = "all steps at once" if spans == 1 else f"about {span} steps at once, as soon as their deltas are there"
    lines.append(f"products  linear: readout; gradients: of weights and input, over {at_once}")
    return Explanation(tuple(lines))


def _rounded(layer: Layer, T: int, N: int, chosen: HalideBackend, least: int) -> list[str]:
    """The lines about kernels in bfloat16."""
    table, d, threads = _generators.module("machine"), layer.cell.plain, get_num_threads()
    H, I = layer.hidden_size, layer.input_size
    recurrent = len(d.hidden) * H * H
    lines = ["code      avx512_bf16, which has one instruction for two multiply-adds of bfloat16 numbers"]
    for direction, sums, weights in (
        ("forward", len(d.sums), len(d.inputs) * H * I + recurrent),
        ("bptt", 1, recurrent),
    ):
        tile = table.bf16_tile(sums)
        count = table.blocks(N, tile.rows)
        lines.append(f"{direction:9} {direction}_{layer.cell}_bf16, built in")
        lines.append(
            f"          tile: {16 * tile.vectors} units x {tile.rows} rows x {sums} sum{'s' * (sums > 1)} in registers "
            f"({count} block{'s' * (count > 1)} of {tile.rows} rows for N={N})"
        )
        size = 4 * weights + (T + 1) * N * H * (4 * len(d.new) + 2 * len(d.kept))  # there is more, but less than that
        if threads == 1:
            shared = "1 thread"
        elif N * weights // 2 < table.BF16_SHARED_PAIRS or size < least:
            shared = f"1 of {threads} threads: a step too short to share"
        else:
            shared = f"{threads} threads share the units of each step"
        lines.append(f"          {shared}")
    lines.append(f"step      {_step(layer, chosen)}")
    lines.append("products  round_bf16 and gradients_bf16; readout: linear and gradients, in float32")
    return lines


def _step(layer: Layer, chosen: HalideBackend) -> str:
    """What `layer.step` goes through."""
    if layer.bidirectional or layer.reverse:
        return "none: it is for layers that run forward in time alone"
    reason = "zoneout has none" if any(layer.zoneout) else reason_against(chosen, layer.hidden_size, layer.dtype)
    if reason is not None:
        return f"the forward pass of one step: {reason}"
    rows = f"{MOST_ROWS} rows" + ", in float32" * (layer.precision == "bf16")
    return f"{chosen.origin('step', layer.cell, str(layer.dtype), False)}, for up to {rows}; then forward"


def _bytes(layer: Layer, direction: str, T: int, N: int, masks: bool, units: int) -> int:
    """In the arrays of one call of a training step of the first layer, but for those of masks."""
    plan, H, I, O = _plan(layer.cell, masks), layer.hidden_size, layer.input_size, layer.output_size or 0
    A, B, S = layer.cell.inputs, layer.cell.hidden, layer.cell.states
    whole = -(-H // units) * units  # of blocks
    tape = plan.columns * (T + 1) * N * H
    if direction == "forward":
        numbers = tape + T * N * I + S * N * H + whole * (A * I + B * H) + (A + B) * H
    else:
        numbers = tape + T * N * (O + H) + S * N * H + whole * (B * H + O) + plan.deltas * (T + 1) * N * H
    return numbers * layer.dtype.itemsize


def _tile(layer: Layer, direction: str, T: int, N: int, masks: bool, layout: Layout, least: int) -> list[str]:
    """The register tile that the kernel will choose from the sizes, and what the threads share: nothing where a call's
    arrays hold less than `least` bytes."""
    table, threads = _generators.module("machine"), get_num_threads()
    name, tile, sums, weights = layout.name, layout.tile, layout.sums, layout.weights
    group = tile.rows * tile.together
    count = table.blocks(N, group)
    tile_text = (
        f"tile {name}: {layout.units} units x {tile.rows} row{'s' * (tile.rows > 1)} x {tile.sums or sums} "
        f"sum{'s' * ((tile.sums or sums) > 1)} in registers ({count} block{'s' * (count > 1)} of {group} "
        f"row{'s' * (group > 1)} for N={N})"
    )
    size = _bytes(layer, direction, T, N, masks, layout.units)
    # the one tile of float64 has no code for it
    shares_units = name != "block" and table.shares_units(count, threads, weights)
    if threads == 1:
        turns = tile.turns or tile.together > 1 or shares_units
        shared = "1 thread" + ", which begins each step with the weights that it came to last" * turns
    elif size < least:
        shared = (
            f"1 of {threads} threads: {size >> 10} KiB in a call's arrays, and to wake a thread pays from "
            f"{least >> 10} KiB on"
        )
    elif tile.together > 1:
        shared = f"{threads} threads share the blocks of rows, and the units of each step"
    elif count >= threads:
        shared = f"{min(threads, count)} threads, each with blocks of rows of its own"
    elif shares_units:
        shared = f"{threads} threads share the units of each step: too few rows, and weights that are worth it"
    else:
        shared = f"{count} of {threads} threads: too few rows, and a step too short to share"
    return [tile_text, shared]
