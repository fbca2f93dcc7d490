"""What both tasks are made of: sequences, targets that are differences in time, and how well a net meets them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._extension import sum_of_squares
from .._memory import empty
from ..layers import Layer
from ..training import Pair
from .data import DataError, Values

__all__ = ["LinearPredictor", "RelativeError", "Sample", "Task", "difference", "output", "relative_rmse", "signal"]

CONTRAST = 1 / 8
"""Grey values from 0 to 1 go in as (value - 1/2) * CONTRAST: there tanh is nearly straight, as the targets are."""

LANES = 256
"""Sequences run at once outside of training, so that a picture of any size fits into memory."""


class Sample(NamedTuple):
    """One held-out picture or video."""

    name: str
    x: Values
    """(T, N, I)"""
    target: Values
    """(T, N, I)"""
    shape: tuple[int, int]
    """Height and width of the picture, or of each frame."""


@dataclass(frozen=True)
class Task:
    """Data to learn from and to be judged on. The target at step t is x_t - x_{t-lag}."""

    name: str
    mode: str
    size: int
    lag: int
    """The first `lag` steps have nothing to be compared with: they are in no loss and in no error."""
    training: list[Pair]
    test: list[Sample]

    @property
    def width(self) -> int:
        """I and O: values a time step."""
        return int(self.training[0][0].shape[2])

    def loss(self) -> RelativeError:
        """The loss that training lowers. Raises DataError if nothing ever changes in the training data."""
        return RelativeError(_mean_square([target for _, target in self.training], self.lag), self.lag)


class RelativeError:
    """Mean squared error over the mean square of the targets: 1 for a net that always answers 0.

    Its root is the relative RMSE. The first `lag` steps don't count. Takes and returns what `rnn.MSE` does.
    """

    def __init__(self, mean_square: float, lag: int) -> None:
        self.mean_square = mean_square
        self.lag = lag

    def __call__(self, output: NDArray[Any], target: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        gradient = np.subtract(output, target, out=empty(output.shape, output.dtype))
        gradient[: self.lag] = 0
        scale = 1 / (max(gradient[self.lag :].size, 1) * self.mean_square)
        value = sum_of_squares(gradient) * scale
        gradient *= 2 * scale
        return value, gradient


def signal(values: Values) -> Values:
    """Grey values as a layer takes them."""
    return np.asarray((values - np.float32(0.5)) * np.float32(CONTRAST))


def difference(x: Values, lag: int) -> Values:
    """x_t - x_{t-lag} along the first axis, and 0 for the first `lag` steps."""
    target = np.zeros_like(x)
    np.subtract(x[lag:], x[:-lag], out=target[lag:])
    return target


def sample(name: str, x: Values, lag: int, shape: tuple[int, int]) -> Sample:
    """Raises DataError if nothing ever changes in it: no error could be told as a share of the changes."""
    target = difference(x, lag)
    _mean_square([target], lag, name)
    return Sample(name, x, target, shape)


def output(layer: Layer, x: Values) -> Values:
    """What the layer makes of x (T, N, I), whatever N."""
    parts = [layer(np.ascontiguousarray(x[:, lane : lane + LANES]))[0] for lane in range(0, x.shape[1], LANES)]
    return np.concatenate(parts, axis=1)


def relative_rmse(outputs: Sequence[NDArray[Any]], targets: Sequence[NDArray[Any]], lag: int) -> float:
    """RMSE over the RMS of the target, over all steps of all arrays but the first `lag` of each."""
    error = sum(
        float(np.square(y[lag:] - t[lag:]).sum(dtype=np.float64)) for y, t in zip(outputs, targets, strict=True)
    )
    return math.sqrt(error / sum(float(np.square(t[lag:]).sum(dtype=np.float64)) for t in targets))


class LinearPredictor:
    """The best target that a matrix and a bias can make of the current input alone (least squares over the pairs).

    What a net without memory could at most reach if it were linear: the comparison for a net with memory.
    """

    def __init__(self, pairs: Sequence[Pair], lag: int) -> None:
        width = pairs[0][0].shape[2]
        gram, moments = np.zeros((width + 1, width + 1)), np.zeros((width + 1, width))
        for x, target in pairs:
            inputs = _with_one(x[lag:])
            gram += inputs.T @ inputs
            moments += inputs.T @ target[lag:].reshape(-1, width)
        self.matrix: NDArray[np.float64] = np.linalg.lstsq(gram, moments, rcond=None)[0]

    def __call__(self, x: Values) -> NDArray[np.float64]:
        answer: NDArray[np.float64] = _with_one(x) @ self.matrix
        return answer.reshape(x.shape)


def _with_one(x: Values) -> NDArray[np.float64]:
    flat = x.reshape(-1, x.shape[2]).astype(np.float64)
    return np.hstack([flat, np.ones((len(flat), 1))])


def _mean_square(targets: Sequence[NDArray[Any]], lag: int, name: str = "the training data") -> float:
    count = sum(target[lag:].size for target in targets)
    total = sum(float(np.square(target[lag:]).sum(dtype=np.float64)) for target in targets)
    if not total > 0:
        raise DataError(f"{name}: expected something that changes along the sequence, got the same value everywhere")
    return total / count
