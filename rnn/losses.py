"""Losses: each takes (output, target) to (value, gradient of the value with respect to the output).

The value is a float, summed in float64; the gradient has the output's shape and dtype. NaN goes through: a
NaN in either array gives a NaN value. The mean over an empty output is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _check
from ._backends.base import Array
from ._extension import sum_of_squares
from ._memory import empty

__all__ = ["MSE", "Loss", "SoftmaxCrossEntropy"]

Loss = Callable[[Array, NDArray[Any]], tuple[float, Array]]


class MSE:
    """Mean squared error, the mean of (output - target)^2 over all elements, as torch.nn.MSELoss.

    output (T, N, O), target the same shape and dtype. Raises TypeError or ValueError.
    """

    def __call__(self, output: Array, target: NDArray[Any]) -> tuple[float, Array]:
        _check.output(output)
        target = _check.array("target", target, output.dtype, output.shape, "TNO")
        count = max(output.size, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            difference: Array = np.subtract(output, target, out=empty(output.shape, output.dtype))
        value = sum_of_squares(difference) / count
        difference *= 2 / count
        return value, difference


class SoftmaxCrossEntropy:
    """Mean over T and N of -log softmax(output)[target], as torch.nn.CrossEntropyLoss.

    output (T, N, O): unnormalised scores of O classes; target (T, N): the right class, any integer dtype,
    from 0 to O - 1. Raises TypeError or ValueError.
    """

    def __call__(self, output: Array, target: NDArray[Any]) -> tuple[float, Array]:
        _check.output(output)
        expected = f"target: expected an integer array of shape (T, N) = {output.shape[:2]}"
        if not isinstance(target, np.ndarray) or not np.issubdtype(target.dtype, np.integer):
            came = target.dtype if isinstance(target, np.ndarray) else type(target).__name__
            raise TypeError(f"{expected}, got {came}")
        if target.shape != output.shape[:2]:
            raise ValueError(f"{expected}, got shape {target.shape}")
        if target.size == 0:
            return 0.0, np.zeros_like(output)
        if target.min() < 0 or target.max() >= output.shape[2]:
            raise ValueError(
                f"target: expected classes from 0 to O - 1 = {output.shape[2] - 1}, "
                f"got {target.min()} to {target.max()}"
            )
        index = target[:, :, None].astype(np.intp)
        shifted: Array = output - output.max(axis=2, keepdims=True)  # so that exp can't overflow
        gradient = np.exp(shifted)
        total = gradient.sum(axis=2, keepdims=True)
        losses = np.log(total) - np.take_along_axis(shifted, index, axis=2)
        value = float(np.sum(losses, dtype=np.float64)) / target.size
        gradient /= total
        np.put_along_axis(gradient, index, np.take_along_axis(gradient, index, axis=2) - 1, axis=2)
        gradient /= target.size
        return value, gradient
