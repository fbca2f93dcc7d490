"""The schedule of a sweep over the numbers of a weight, shared by threads."""

from __future__ import annotations

import halide as hl

CHUNK = 1 << 14  # numbers that a thread takes at a time


def sweep(func: hl.Func, i: hl.Var, extent: hl.Expr, lanes: int) -> None:
    """func[i] for all i below `extent`, in chunks and vectors."""
    chunk, vector = hl.Var("chunk"), hl.Var("vector")
    size = hl.min(extent, CHUNK)  # or small arrays would go through a whole chunk: Adam, 64 weights, 7.9 for 0.6 us
    func.split(i, chunk, i, size, hl.TailStrategy.GuardWithIf).parallel(chunk)
    func.split(i, i, vector, lanes, hl.TailStrategy.Predicate).vectorize(vector)
