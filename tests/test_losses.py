"""Losses against their formulas, and their gradients against central differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from differences import central_differences
from numpy.testing import assert_allclose

import rnn


def test_mse_by_hand() -> None:
    output = np.array([[[1.0, 2.0]], [[3.0, 4.0]]])
    target = np.array([[[1.0, 0.0]], [[0.0, 5.0]]])
    value, gradient = rnn.MSE()(output, target)
    assert value == (0 + 4 + 9 + 1) / 4
    assert_allclose(gradient, [[[0.0, 1.0]], [[1.5, -0.5]]])


def test_cross_entropy_by_hand() -> None:
    value, gradient = rnn.SoftmaxCrossEntropy()(np.log([[[1.0, 2.0, 5.0]]]), np.array([[1]]))
    assert_allclose(value, -math.log(2 / 8))
    assert_allclose(gradient, [[[1 / 8, 2 / 8 - 1, 5 / 8]]])


@pytest.mark.parametrize("loss", [rnn.MSE(), rnn.SoftmaxCrossEntropy()], ids=lambda loss: type(loss).__name__)
def test_gradients_are_central_differences(loss: rnn.losses.Loss, rng: np.random.Generator) -> None:
    output = rng.standard_normal((3, 4, 5))
    target = rng.standard_normal((3, 4, 5)) if isinstance(loss, rnn.MSE) else rng.integers(0, 5, (3, 4))
    _, gradient = loss(output, target)
    assert_allclose(gradient, central_differences(lambda: loss(output, target)[0], output), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_have_the_outputs_dtype(dtype: str) -> None:
    output = np.ones((2, 3, 4), dtype)
    assert rnn.MSE()(output, np.zeros((2, 3, 4), dtype))[1].dtype == dtype
    assert rnn.SoftmaxCrossEntropy()(output, np.zeros((2, 3), np.uint8))[1].dtype == dtype


def test_cross_entropy_of_huge_scores_is_finite() -> None:
    value, gradient = rnn.SoftmaxCrossEntropy()(np.array([[[1e30, -1e30]]], np.float32), np.array([[1]]))
    assert value == pytest.approx(2e30)
    assert_allclose(gradient, [[[1, -1]]])


def test_nan_goes_through() -> None:
    output = np.zeros((2, 3, 4), np.float32)
    output[1, 2, 3] = np.nan
    assert math.isnan(rnn.MSE()(output, np.zeros_like(output))[0])
    assert math.isnan(rnn.MSE()(np.zeros_like(output), output)[0])
    assert math.isnan(rnn.SoftmaxCrossEntropy()(output, np.zeros((2, 3), int))[0])


def test_the_loss_of_nothing_is_zero() -> None:
    empty = np.zeros((0, 3, 4), np.float32)
    for value, gradient in (rnn.MSE()(empty, empty), rnn.SoftmaxCrossEntropy()(empty, np.zeros((0, 3), int))):
        assert value == 0
        assert gradient.shape == empty.shape


def test_arguments_are_left_alone(rng: np.random.Generator) -> None:
    output, target = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 4))
    before = output.copy(), target.copy()
    rnn.MSE()(output, target)
    rnn.SoftmaxCrossEntropy()(output, np.zeros((2, 3), int))
    np.testing.assert_array_equal(output, before[0])
    np.testing.assert_array_equal(target, before[1])
