"""Checks of arguments. Each names the argument, what was expected and what came.

A forward pass of a tiny layer takes microseconds, so `array` first asks the extension module whether all is well, and
looks for the reason only where it isn't.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ._extension import extension

Array = NDArray[np.floating[Any]]

LIMIT = 2**31
"""The kernels count with 32 bits: extents, numbers of elements, and strides in elements are below this."""

Shape = tuple[int | None, ...]  # None: any extent


_fits: Callable[[object, Shape, np.dtype[Any]], bool] = (lambda *_: False) if extension is None else extension.fits


def array(name: str, value: object, dtype: np.dtype[Any], shape: Shape, axes: str) -> Array:
    """`value` as a backend wants it: itself, or a copy in C order if it has strides that a kernel can't walk.

    Raises as `expect`.
    """
    return cast(Array, value) if _fits(value, shape, dtype) else walkable(_expect(name, value, dtype, shape, axes))


def expect(name: str, value: object, dtype: np.dtype[Any], shape: Shape, axes: str) -> Array:
    """`value` itself, if it is an array of this dtype and shape.

    axes: one letter an axis, for the message. Raises TypeError (no array, wrong dtype or byte order),
    ValueError (rank or shape), OverflowError (2^31 elements or more).
    """
    return cast(Array, value) if _fits(value, shape, dtype) else _expect(name, value, dtype, shape, axes)


def _expect(name: str, value: object, dtype: np.dtype[Any], shape: Shape, axes: str) -> Array:
    expected = f"{name}: expected a {dtype} array of shape {_shape_text(shape, axes)}"
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{expected}, got dtype {_dtype_text(value.dtype)}")
    if value.ndim != len(shape):
        raise ValueError(f"{expected}, got rank {value.ndim}, shape {value.shape}")
    if any(want is not None and want != got for want, got in zip(shape, value.shape, strict=True)):
        raise ValueError(f"{expected}, got {value.shape}")
    limit(name, value.shape)
    return value


def walkable(value: Array) -> Array:
    """`value`, or a copy in C order if a kernel can't walk its strides: see `_backends/base.py`."""
    flags = value.flags
    if flags.c_contiguous and flags.aligned:
        return value if type(value) is np.ndarray else np.asarray(value)
    long = [(extent, stride) for extent, stride in zip(value.shape, value.strides, strict=True) if extent > 1]
    ok = (
        flags.aligned
        and all(stride >= 0 and extent * stride < LIMIT * value.itemsize for extent, stride in long)
        and (value.shape[-1] <= 1 or value.strides[-1] == value.itemsize)
    )
    return np.asarray(value) if ok else np.array(value, order="C", subok=False)


def limit(name: str, shape: Iterable[int]) -> None:
    """Raise OverflowError if an array of this shape is out of the kernels' reach."""
    shape = tuple(shape)
    if max(shape, default=0) >= LIMIT or math.prod(shape) >= LIMIT:
        raise OverflowError(f"{name}: expected fewer than 2^31 elements and every extent below 2^31, got shape {shape}")


def size(name: str, value: object, minimum: int = 0) -> int:
    """An integer of at least `minimum`. Raises TypeError, ValueError, or OverflowError from 2^31 on."""
    expected = f"{name}: expected an integer of at least {minimum}"
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{expected}, got {_value_text(value)}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:  # an array of several elements has __index__, but no value
        raise TypeError(f"{expected}, got {_value_text(value)}") from None
    if number < minimum:
        raise ValueError(f"{expected}, got {number}")
    if number >= LIMIT:
        raise OverflowError(f"{name}: expected less than 2^31, got {number}")
    return number


def number(name: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    """A finite number in [low, high), or in (low, high). Raises TypeError or ValueError."""
    interval = f"{'(' if open_low else '['}{low:g}, {high:g})"
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number in {interval}, got {_value_text(value)}")
    result = float(value)
    if not (low <= result < high) or (open_low and result == low):
        raise ValueError(f"{name}: expected a number in {interval}, got {result:g}")
    return result


def choice(name: str, value: object, known: Iterable[str]) -> str:
    """One of the `known` strings. Raises TypeError or ValueError."""
    known = tuple(known)
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {', '.join(known)}, got {_value_text(value)}")
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return value


def flag(name: str, value: object) -> bool:
    """True or False. Raises TypeError."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {_value_text(value)}")
    return bool(value)


def named(name: str, value: object, shapes: dict[str, tuple[int, ...]], dtype: np.dtype[Any]) -> dict[str, Array]:
    """A dict of arrays with exactly these names and shapes. Raises TypeError or ValueError."""
    if not isinstance(value, dict):
        raise TypeError(f"{name}: expected a dict of arrays, got {type(value).__name__}")
    usual: dict[str, Array] | None = None if extension is None else extension.usual(value, shapes, dtype)
    if usual is not None:
        return usual
    if value.keys() != shapes.keys():
        raise ValueError(f"{name}: expected exactly the names {', '.join(shapes)}, got {', '.join(map(str, value))}")
    return {
        key: array(f"{name}[{key!r}]", value[key], dtype, shape, _weight_axes(key, len(shape)))
        for key, shape in shapes.items()
    }


def _weight_axes(name: str, rank: int) -> str:
    """Axis letters for a message. G stands for all gates' rows."""
    known = {"weight_ih": "GI", "weight_hh": "GH", "bias_ih": "G", "bias_hh": "G", "weight_ho": "OH", "bias_o": "O"}
    return next((axes for start, axes in known.items() if name.startswith(start)), "H" if rank == 1 else "?" * rank)


def lengths(value: object, T: int, N: int) -> NDArray[np.int32] | None:
    """`value` as the numbers of steps of N rows, or None. Raises TypeError or ValueError."""
    if value is None:
        return None
    expected = f"lengths: expected {N} integers (N={N}) from 0 to T={T}"
    array = np.asarray(value)
    if array.dtype.kind not in "iu" and not (array.size == 0 and N == 0):
        raise TypeError(f"{expected}, got dtype {array.dtype}")
    if array.shape != (N,):
        raise ValueError(f"{expected}, got shape {array.shape}")
    if N and (array.min() < 0 or array.max() > T):
        raise ValueError(f"{expected}, got {array.min()} to {array.max()}")
    return array.astype(np.int32)


def reset(value: object, T: int, N: int) -> NDArray[np.uint8] | None:
    """`value` as a mask (T, N) of booleans, or None. Raises TypeError or ValueError."""
    if value is None:
        return None
    expected = f"reset: expected a bool array of shape (T={T}, N={N})"
    array = np.asarray(value)
    if array.dtype != np.bool_:
        raise TypeError(f"{expected}, got dtype {array.dtype}")
    if array.shape != (T, N):
        raise ValueError(f"{expected}, got shape {array.shape}")
    return np.ascontiguousarray(array).view(np.uint8)


def segment(value: object) -> bool | int:
    """`value` as `remat`: a flag, or the steps of a segment. Raises TypeError or ValueError."""
    return value if isinstance(value, bool) else size("remat", value, 1)


def _shape_text(shape: Shape, axes: str) -> str:
    parts = [axis if extent is None else f"{axis}={extent}" for axis, extent in zip(axes, shape, strict=True)]
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def _dtype_text(dtype: np.dtype[Any]) -> str:
    return f"{dtype} ({dtype.str}, foreign byte order)" if not dtype.isnative else str(dtype)


def _value_text(value: object) -> str:
    return f"{value!r}"[:60] if isinstance(value, str | bool | int | float | None) else type(value).__name__


def output(value: object) -> None:
    """The first argument of a loss: a float32 or float64 array (T, N, O). Raises TypeError or ValueError."""
    expected = "output: expected a float32 or float64 array of shape (T, N, O)"
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    if value.dtype not in (np.float32, np.float64):
        raise TypeError(f"{expected}, got dtype {_dtype_text(value.dtype)}")
    if value.ndim != 3:
        raise ValueError(f"{expected}, got shape {value.shape}")


def generator(name: str, seed: int | np.random.Generator | None) -> np.random.Generator:
    """numpy.random.default_rng(seed). Raises TypeError or ValueError."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as reason:
        expected = f"{name}: expected an integer of at least 0, a numpy.random.Generator or None"
        raise type(reason)(f"{expected}, got {_value_text(seed)}") from None
