"""The schedule of a sweep over the numbers of a weight, shared by threads."""

from __future__ import annotations

import halide as hl

CHUNK = 1 << 14  # numbers that a thread takes at a time


def sweep(func: hl.Func, i: hl.Var, lanes: int) -> None:
    """func[i] for all i, in chunks and vectors."""
    chunk, vector = hl.Var("chunk"), hl.Var("vector")
    # Vectors first, so that the last chunk ends with the last vector. Those past the end, all masked, are slow where no
    # memory is: Zen 4 takes some 300 cycles for each, SGD of 200 x 200 weights took 5 to 200 us.
    func.split(i, i, vector, lanes, hl.TailStrategy.Predicate).vectorize(vector)
    func.split(i, chunk, i, CHUNK // lanes, hl.TailStrategy.GuardWithIf).parallel(chunk)
