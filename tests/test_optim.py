"""Optimizers, step by step, against the formulas in the documentation of PyTorch, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.testing import assert_allclose
from problems import Array

import rnn
from rnn.optim import Optimizer, global_norm

GRADIENTS = [0.5, -1.0, 0.25, 2.0, 0.0, 1e-5]


def walk(optimizer: Optimizer) -> list[float]:
    """The places of one weight that starts at 1 and meets GRADIENTS."""
    weights: dict[str, Array] = {"weight": np.array([1.0])}
    places = []
    for gradient in GRADIENTS:
        optimizer.step(weights, {"weight": np.array([gradient])})
        places.append(float(weights["weight"][0]))
    return places


def test_sgd() -> None:
    w, places = 1.0, []
    for g in GRADIENTS:
        w -= 0.1 * g
        places.append(w)
    assert_allclose(walk(rnn.SGD(0.1)), places, rtol=1e-15)


def test_sgd_with_momentum() -> None:
    w, b, places = 1.0, None, []
    for g in GRADIENTS:
        b = g if b is None else 0.9 * b + g
        w -= 0.1 * b
        places.append(w)
    assert_allclose(walk(rnn.SGD(0.1, momentum=0.9)), places, rtol=1e-15)


def test_adam() -> None:
    w, m, v, places = 1.0, 0.0, 0.0, []
    for k, g in enumerate(GRADIENTS, 1):
        m = 0.8 * m + 0.2 * g
        v = 0.95 * v + 0.05 * g * g
        w -= 0.1 * (m / (1 - 0.8**k)) / (math.sqrt(v / (1 - 0.95**k)) + 1e-3)
        places.append(w)
    assert_allclose(walk(rnn.Adam(0.1, betas=(0.8, 0.95), eps=1e-3)), places, rtol=1e-14)


def test_adams_first_step_is_the_learning_rate() -> None:
    weights: dict[str, Array] = {"weight": np.zeros(3)}
    rnn.Adam(0.01).step(weights, {"weight": np.array([3.0, -1e-3, 100.0])})
    assert_allclose(weights["weight"], [-0.01, 0.01, -0.01], rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (15,), (17,), (3, 43), (0, 4), (129, 255), (16385,)])
def test_adam_on_arrays_of_any_size_and_layout(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    """Sizes beside those of a vector and of a thread's part; gradients that are no contiguous arrays."""
    optimizer, eps = rnn.Adam(0.1), float(np.finfo(dtype).eps)
    start, g = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    weights = {"weight": start}
    w, m, v = start.astype(np.float64), np.zeros(shape), np.zeros(shape)
    for k in range(1, 4):
        across = np.asfortranarray(np.repeat(g, 2, axis=-1))[..., ::2]
        optimizer.step(weights, {"weight": across})
        m, v = 0.9 * m + 0.1 * g.astype(np.float64), 0.999 * v + 0.001 * np.square(g, dtype=np.float64)
        w -= 0.1 * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
        g = -g
    # each step of 0.1 or less has some ten roundings
    assert_allclose(weights["weight"], w, rtol=3 * eps, atol=3 * 0.1 * 10 * eps)
    assert (weights["weight"].shape, weights["weight"].dtype) == (shape, np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (15,), (17,), (3, 43), (0, 4), (129, 255), (16385,)])
def test_sgd_on_arrays_of_any_size_and_layout(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    optimizer, eps = rnn.SGD(0.1, momentum=0.9), float(np.finfo(dtype).eps)
    start, g = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    weights, w, b = {"weight": start}, start.astype(np.float64), np.zeros(shape)
    for _ in range(3):
        across = np.asfortranarray(np.repeat(g, 2, axis=-1))[..., ::2]
        optimizer.step(weights, {"weight": across})
        b = 0.9 * b + g.astype(np.float64)
        w -= 0.1 * b
    assert_allclose(weights["weight"], w, rtol=3 * eps, atol=3 * 0.1 * 10 * eps)  # |b| is below 10
    assert (weights["weight"].shape, weights["weight"].dtype) == (shape, np.dtype(dtype))


@pytest.mark.parametrize("make", [rnn.SGD, rnn.Adam])
def test_steps_have_the_same_bits_for_any_number_of_threads(
    make: Callable[[float], Optimizer], rng: np.random.Generator
) -> None:
    weight, gradient = (rng.standard_normal(100_003).astype(np.float32) for _ in range(2))
    seen = []
    for threads in (1, 2, 3, 8):
        weights: dict[str, Array] = {"weight": weight}
        with rnn.threads(threads):
            make(0.1).step(weights, {"weight": gradient})
        seen.append((weights["weight"].tobytes(), global_norm({"g": gradient})))
    assert all(one == seen[0] for one in seen)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_adam_lets_what_is_not_finite_be_seen(bad: float) -> None:
    weights: dict[str, Array] = {"weight": np.zeros(20, np.float32)}
    gradient = np.ones(20, np.float32)
    gradient[18] = bad
    with np.errstate(invalid="ignore"):
        rnn.Adam().step(weights, {"weight": gradient})
    assert np.isnan(weights["weight"]).nonzero()[0].tolist() == [18]


OPTIMIZERS = [rnn.SGD(0.1), rnn.SGD(0.1, 0.9), rnn.Adam(0.1)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: f"{one.config()}")
def test_steps_make_new_arrays_of_the_same_dtype(optimizer: Optimizer) -> None:
    layer = rnn.RNN(2, 3, output_size=1)
    gradients = {name: np.ones_like(weight) for name, weight in layer.weights.items()}
    for _ in range(3):
        weights, state = dict(layer.weights), dict(optimizer.state)
        copies = {name: array.copy() for name, array in {**weights, **state}.items()}
        optimizer.step(layer.weights, gradients)
        for name, array in {**weights, **state}.items():
            np.testing.assert_array_equal(array, copies[name])
        assert all(weight.dtype == np.float32 for weight in layer.weights.values())
        assert {name: array.shape for name, array in optimizer.state.items()} == optimizer.state_shapes(layer.weights)
    assert all((gradient == 1).all() for gradient in gradients.values())
    optimizer.state = {}


def test_the_gradients_may_be_overwritten_after_a_step() -> None:
    weights: dict[str, Array] = {"weight": np.zeros(1)}
    optimizer, gradient = rnn.SGD(1.0, momentum=0.5), np.ones(1)
    optimizer.step(weights, {"weight": gradient})
    gradient[:] = 100
    optimizer.step(weights, {"weight": np.ones(1)})
    assert weights["weight"] == -1 - 1.5


def test_a_wrong_step_changes_nothing() -> None:
    layer, other = rnn.RNN(2, 3), rnn.RNN(4, 3)
    optimizer = rnn.Adam(0.1)
    optimizer.step(layer.weights, dict(layer.weights))
    weights, state = dict(layer.weights), optimizer.state
    for bad in ({}, dict(other.weights), {name: w.astype("float64") for name, w in layer.weights.items()}):
        with pytest.raises(ValueError, match="gradients"):
            optimizer.step(layer.weights, bad)
    with pytest.raises(ValueError, match="earlier steps"):
        optimizer.step(other.weights, dict(other.weights))
    assert optimizer.state is state
    assert all(layer.weights[name] is weights[name] for name in weights)


def test_clip_norm_scales_all_gradients_together() -> None:
    gradients: dict[str, Array] = {"a": np.array([3.0], np.float32), "b": np.array([[4.0]])}
    assert rnn.clip_norm(gradients, 1.0) == 5.0
    assert_allclose(gradients["a"], [3 / (5 + 1e-6)], rtol=1e-6)
    assert_allclose(gradients["b"], [[4 / (5 + 1e-6)]], rtol=1e-12)
    assert gradients["a"].dtype == np.float32


def test_clip_norm_leaves_small_gradients_alone() -> None:
    small = np.array([3.0, 4.0])
    gradients = {"a": small}
    assert rnn.clip_norm(gradients, 6.0) == 5.0
    assert gradients["a"] is small


def test_clip_norm_reports_what_is_not_finite() -> None:
    assert math.isnan(rnn.clip_norm({"a": np.array([math.nan, 1.0])}, 1.0))
    assert math.isinf(rnn.clip_norm({"a": np.array([math.inf, 1.0])}, 1.0))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 1000])
def test_the_norm_of_arrays_of_any_size(size: int, dtype: str, rng: np.random.Generator) -> None:
    array = rng.standard_normal(size).astype(dtype)
    expected = math.sqrt(math.fsum(float(x) ** 2 for x in array))
    assert global_norm({"a": array[:-1], "b": array[-1:]}) == pytest.approx(expected, rel=size * 2**-52, abs=0)


def test_the_norm_of_large_float32_gradients_does_not_overflow() -> None:
    assert global_norm({"a": np.full(4, 1e30, np.float32)}) == pytest.approx(2e30, rel=1e-6)
