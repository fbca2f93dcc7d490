"""The extension module, for what goes on without it: other backends work in a source tree that was never built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

extension: Any
"""None where there is none."""
try:
    # `from . import` would turn the module's absence into the same ImportError as any failure inside it
    extension = import_module("._kernels", __package__)
except ModuleNotFoundError:
    extension = None


_DTYPES = {"f": "_float32", "d": "_float64"}  # dtype.name takes 5 us


def kernel(name: str, array: NDArray[np.floating[Any]]) -> Callable[..., None] | None:
    """The kernel `name` for arrays like this one; None where there is none, or nothing to do."""
    if extension is None or array.size == 0 or not array.dtype.isnative:
        return None
    found: Callable[..., None] | None = extension.kernels.get(name + _DTYPES.get(array.dtype.char, ""))
    return found


def each(name: str, settings: Sequence[float], *given: list[NDArray[Any]]) -> Sequence[list[NDArray[Any]]] | None:
    """What the kernel `name` makes of each array: a list for each of its outputs, from one for each of its inputs. None
    where it can't: there is no extension, or the arrays are not all of one dtype, and not empty."""
    found: Any = kernel(name, given[0][0]) if given[0] else None
    if found is None:
        return None
    numbers = np.array(settings, given[0][0].dtype)
    made: Sequence[list[NDArray[Any]]] | None = found.each(numbers, *given)
    if made is None:  # some may not be in C order
        made = found.each(numbers, *([np.ascontiguousarray(array) for array in arrays] for arrays in given))
    return made


def sum_of_squares(array: NDArray[np.floating[Any]]) -> float:
    """Over all elements, in float64. One thread of a Zen 4: 3 million float32 in 0.2 ms, where NumPy takes 3.5."""
    compiled = kernel("squares", array)
    if compiled is None:
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.square(array, dtype=np.float64).sum())
    total = np.empty(1)
    compiled(np.ravel(array), total)
    return float(total[0])
