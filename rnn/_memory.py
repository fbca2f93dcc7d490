"""Large arrays that a training step needs again and again, in memory that is used again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._extension import extension

SMALLEST = 1 << 15
"""Elements, below which malloc keeps memory by itself."""


def empty(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """As np.empty, for float32, float64 and uint16. When nobody holds the array any more, its memory waits for the next
    one (at most 512 MiB do): memory that is new costs a page fault each 4 KiB, 10 of the 40 ms that a training step of
    512 steps, 512 lanes and 16 units takes."""
    if math.prod(shape) < SMALLEST or extension is None:
        return np.empty(shape, dtype)
    array: NDArray[Any] = extension.empty(shape, 8 * np.dtype(dtype).itemsize)
    return array


def aligned(shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """As `empty`, from the start of a cache line on, which kernels may ask for."""
    array: NDArray[Any]
    if extension is not None:
        array = extension.empty(shape, 8 * dtype.itemsize)
        return array
    line, numbers = 64 // dtype.itemsize, math.prod(shape)
    room = np.empty(numbers + line, dtype)
    first = -room.ctypes.data // dtype.itemsize % line
    array = room[first : first + numbers].reshape(shape)
    return array
