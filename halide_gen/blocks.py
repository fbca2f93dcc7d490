"""Blocked layouts, and the choice among register tiles at run time.

Sums live in blocks (lane, row, ...): `lane` runs over the units of a tile, `row` over its rows, both of constant
extent, so that every sum has a constant address and LLVM keeps it in a register. This is where the split between
algorithm and schedule leaks: tile sizes are part of a blocked layout's index expressions. They come from machine.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import halide as hl
from machine import GROUPED, Lean, Machine, Tile, blocks, offers
from schedules import Schedule

__all__ = ["Layout", "blocks", "inside", "layouts", "mostly_inside", "only_if", "starts_at_zero"]


def inside(i: hl.Expr, extent: hl.Expr) -> hl.Expr:
    """`i`, or the last index where a block reaches over the edge. Right for extent 0 too: nothing is read then, and the
    promise keeps the bounds empty where a plain clamp would ask for index -1. Not for what a vector under a predicate
    reads (a plain clamp for that): Halide takes a promise for a side effect, and goes through the vector number by
    number."""
    return hl.unsafe_promise_clamped(hl.min(i, extent - 1), 0, extent - 1)


def mostly_inside(i: hl.Expr, extent: hl.Expr) -> hl.Expr:
    """As `inside`, and worth a loop of its own for the blocks that need no clamp: vectors are dense loads there."""
    return inside(hl.likely(i), extent)


@dataclass(frozen=True)
class Layout:
    """The blocked layout that a register tile and a vector width imply."""

    name: str
    lanes: int
    tile: Tile

    @property
    def units(self) -> int:
        """Units in a block."""
        return self.lanes * self.tile.vectors

    @property
    def grouped(self) -> bool:
        """Whether several blocks of rows go through each block of weights together."""
        return self.name in GROUPED

    def place(self, block: hl.Expr, group: hl.Expr, across: hl.Expr) -> tuple[hl.Expr, hl.Expr]:
        """(the block of units, the first row) of a tile, where there are `across` blocks of units: within a group of
        blocks of rows, each of these has its blocks of units side by side."""
        together, rows = self.tile.together, self.tile.rows
        if not self.grouped:  # `across` may be 0 there
            return block, group * rows
        return block % across, (group * together + block // across) * rows


def layouts(
    schedule: Schedule,
    width: hl.Expr,
    rows: hl.Expr,
    sums: int = 1,
    lean: Lean = Lean.ALL,
    weights: hl.Expr | None = None,
    others: bool = True,
) -> list[tuple[Layout, hl.Expr]]:
    """The layouts that a schedule chooses among for width x rows units with so many sums each, and the condition under
    which each is used; exactly one condition holds. `others` False: without most of those that only pad less. The other
    arguments as in machine.py."""
    tiles, lanes = schedule.tiles(sums, lean), schedule.lanes
    if isinstance(tiles, Tile):
        return [(Layout("block", lanes, tiles), hl.cast(hl.UInt(1), 1))]
    assert isinstance(tiles, Machine)
    if not others:
        tiles = tiles._replace(others=(), half=None, thin=None)
    rest, found = hl.cast(hl.UInt(1), 1), []
    for name, tile, condition in offers(tiles, width, rows, lanes, weights):
        found.append((Layout(name, tile.lanes(lanes), tile), rest & condition))
        rest = rest & ~condition
    return found


def only_if(condition: hl.Expr, name: str) -> hl.RVar:
    """A loop of one iteration that runs if the condition holds. An update that mentions its variable (whose value is 0)
    is skipped otherwise, and so is whatever is computed for that update alone."""
    once = hl.RDom([(0, 1)], name)
    once.where(condition)
    return once[0]


def starts_at_zero(*buffers: hl.ImageParam | hl.Func) -> None:
    """Promise that every dimension of the caller's buffers starts at 0."""
    for buffer in buffers:
        parameter = buffer if isinstance(buffer, hl.ImageParam) else buffer.output_buffer()
        for i in range(buffer.dimensions()):
            parameter.dim(i).set_min(0)
