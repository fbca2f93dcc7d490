"""How far a result may be from the reference, from arithmetic and not from taste, and the comparer.

The bound is oneDNN's (tests/benchdnn/rnn): rounding errors of sums of K terms, carried through T steps, grow
with the depth of the sum, and every product passes a few roundings:
4 * (2 if backward) * ceil(log2(K * T)) * eps. A cell of several gates adds the operations that a number passes in a
step beyond the two of an Elman cell, a sum and an activation, to the logarithm.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from problems import Problem


def tolerance(problem: Problem, *, backward: bool, more: int = 0) -> float:
    """Largest error, relative to the L2 norm of the reference. K is the longest sum that a number goes
    through; `more`: operations of a step beyond those of an Elman cell.
    """
    longest = max(problem.N, problem.I, problem.kind.gates * problem.H, problem.O or 0)
    depth = math.ceil(math.log2(max(longest * problem.T, 2))) + more
    return float(4 * (2 if backward else 1) * depth * np.finfo(problem.dtype).eps)


def assert_close(name: str, got: NDArray[Any], want: NDArray[Any], allowed: float) -> None:
    """Raise AssertionError unless `got` has the shape of `want`, is NaN or infinite exactly where `want` is,
    and the error of the rest is within `allowed`, in L2 norm and in maximum, relative to those of `want`.
    """
    assert got.shape == want.shape, f"{name}: expected shape {want.shape}, got {got.shape}"
    got, want = got.astype(np.float64), want.astype(np.float64)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    finite = np.isfinite(got) & np.isfinite(want)
    odd = ~same & ~finite
    if odd.any():
        count = f"{odd.sum()} of {odd.size} are NaN or infinite in one only"
        raise AssertionError(f"{name} {_worst(got, want, odd)}; {count}")

    scale = np.where(finite, want, 0.0)
    error = np.where(finite, got, 0.0) - scale
    floor = float(np.finfo(np.float32).tiny)  # below it float32 has fewer bits than its eps says
    for norm, text in ((_l2, "L2 norm"), (_largest, "maximum")):
        size, reference = norm(error), norm(scale)
        if size > allowed * reference + floor:
            raise AssertionError(
                f"{name} {want.shape}: {text} of the error {size:.3g}, of the reference {reference:.3g}: "
                f"ratio {size / max(reference, floor):.3g}, allowed {allowed:.3g}\n"
                f"worst {_worst(got, want, np.abs(error) == np.abs(error).max())}; "
                f"{(np.abs(error) > allowed * reference).sum()} of {error.size} elements are off by more"
            )


def _l2(a: NDArray[Any]) -> float:
    return float(np.sqrt(np.square(a).sum()))


def _largest(a: NDArray[Any]) -> float:
    return float(np.abs(a).max(initial=0))


def _worst(got: NDArray[Any], want: NDArray[Any], where: NDArray[np.bool_]) -> str:
    index = tuple(int(i) for i in np.argwhere(where)[0])
    return f"at {index}: expected {want[index]:.9g}, got {got[index]:.9g}"
