"""Weights as the recurrent kernels read them: packed for the register tile that will be used (halide_gen/pack.py)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from .. import _generators
from .._memory import aligned
from ..cells import CellEquations
from .base import Array, Kernel


def _table() -> Any:
    return _generators.module("machine")


@dataclass(frozen=True, eq=False)  # each is kept, and its hash, of tuples, took a sixth of a small packing
class Layout:
    """A register tile of halide_gen/machine.py, in vectors of so many lanes."""

    name: str
    tile: Any
    lanes: int
    sums: int  # of a unit, at once
    weights: int  # recurrent ones

    @property
    def units(self) -> int:
        """Of a block."""
        units: int = self.tile.vectors * self.lanes
        return units


def layout(
    direction: str, cell: CellEquations, masked: bool, schedule: str, instructions: str, itemsize: int, H: int, N: int
) -> Layout:
    """The one that the "forward" or "bptt" kernel of a cell chooses, compiled for these instructions."""
    d = cell.masked if masked else cell.plain
    sums = d.sums_at_once if direction == "forward" else d.back_sums_at_once
    plan, table = _generators.module("schedules").schedule_for(schedule, instructions, itemsize), _table()
    tiles, weights = plan.tiles(sums, table.lean(cell.label, d.is_long, d.is_rare)), len(d.hidden) * H * H
    name, tile = table.chosen(tiles, H, N, plan.lanes, weights or None)
    return Layout(name, tile, tile.lanes(plan.lanes), sums, weights)


@lru_cache(maxsize=2)
def nothing(dtype: str) -> Array:
    """What is packed where there are no weights."""
    array: Array = aligned((0,), np.dtype(dtype))
    return array


@lru_cache(maxsize=1024)
def _shape(layout: Layout, gates: int, rows: int, columns: int, by_rows: bool) -> tuple[int, ...]:
    """(blocks, parts, k, gates of a part, units of a block)."""
    table = _table()
    together = table.at_a_time(layout.tile, gates)
    width, extent = (rows // gates, columns) if by_rows else (columns, rows // gates)
    return table.blocks(width, layout.units), gates // together, extent, together, layout.units


class Packing:
    """Packs weights by a kernel, and keeps what it made of those that nothing can change: see `Layer.freeze`."""

    def __init__(self, kernel: Callable[[int], Kernel]) -> None:
        self._kernel = cache(kernel)  # for numbers of so many bytes
        self._kept: dict[tuple[int, tuple[int, ...], bool], tuple[weakref.ref[Array], Array]] = {}

    def __call__(self, weight: Array, gates: int, layout: Layout, by_rows: bool, unread: bool = False) -> Array:
        """The weights of so many gates, in one dimension; units are the rows of each gate, or else the columns.
        `unread`: any numbers will do."""
        shape = _shape(layout, gates, *weight.shape, by_rows)
        if unread:
            return aligned(shape, weight.dtype).reshape(-1)
        if not is_frozen(weight):
            return self._packed(weight, gates, shape, by_rows)
        key = id(weight), shape, by_rows
        if key not in self._kept:  # until the weights are gone, and another array may lie where they were
            gone = weakref.ref(weight, lambda _: self._kept.pop(key, None))
            self._kept[key] = gone, self._packed(weight, gates, shape, by_rows)
        return self._kept[key][1]

    def _packed(self, weight: Array, gates: int, shape: tuple[int, ...], by_rows: bool) -> Array:
        packed = aligned(shape, weight.dtype)
        if weight.size:
            self._kernel(weight.itemsize)(int(by_rows), gates, weight, packed)
        return packed.reshape(-1)


def frozen(weights: Mapping[str, Array]) -> dict[str, Array]:
    """The same numbers in memory that nothing can write to, that of `bytes` objects."""
    return {
        name: weight if is_frozen(weight) else np.ndarray(weight.shape, weight.dtype, weight.tobytes())
        for name, weight in weights.items()
    }


def is_frozen(array: Array) -> bool:
    return isinstance(array.base, bytes)
