"""Large arrays that a training step needs again and again, in memory that is used again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._extension import extension

empty: Callable[[Sequence[int], DTypeLike], NDArray[Any]] = np.empty if extension is None else extension.empty
"""As np.empty, for dtypes of numbers. When nobody holds a large array any more, its memory waits for the next one (at
most 512 MiB do): memory that is new costs a page fault each 4 KiB, 10 of the 40 ms that a training step of 512 steps,
512 lanes and 16 units takes."""


def _aligned(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    line, numbers = 64 // np.dtype(dtype).itemsize, math.prod(shape)
    room = np.empty(numbers + line, dtype)
    first = -room.ctypes.data // room.itemsize % line
    array: NDArray[Any] = room[first : first + numbers].reshape(shape)
    return array


aligned: Callable[[Sequence[int], DTypeLike], NDArray[Any]] = _aligned if extension is None else extension.aligned
"""As `empty`, from the start of a cache line on, which kernels may ask for."""
