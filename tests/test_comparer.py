"""The comparer that the kernels are checked with must itself turn down what is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from problems import named
from tolerance import assert_close, tolerance

ALLOWED = tolerance(named("odd primes"), backward=False)


@pytest.fixture
def want(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((7, 5, 13))


def test_rounding_passes(want: np.ndarray) -> None:
    assert_close("output", want.astype(np.float32), want, ALLOWED)


def test_zeros_fail(want: np.ndarray) -> None:
    with pytest.raises(AssertionError, match=r"output \(7, 5, 13\).*ratio 1, allowed"):
        assert_close("output", np.zeros_like(want), want, ALLOWED)


def test_swapped_columns_fail(want: np.ndarray) -> None:
    swapped = want.copy()
    swapped[..., [2, 3]] = swapped[..., [3, 2]]
    with pytest.raises(AssertionError, match="elements are off"):
        assert_close("output", swapped, want, ALLOWED)


def test_one_wrong_element_fails_though_the_norm_hides_it() -> None:
    want = np.ones(10**6)
    got = want.copy()
    got[123456] += 1e-3  # 1e-6 of the norm
    with pytest.raises(AssertionError, match=r"worst at \(123456,\): expected 1, got 1\.001"):
        assert_close("output", got, want, allowed=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_fail(want: np.ndarray, bad: float) -> None:
    got = want.copy()
    got[1, 2, 3] = bad
    with pytest.raises(AssertionError, match=r"at \(1, 2, 3\).* 1 of 455 are NaN or infinite in one only"):
        assert_close("output", got, want, ALLOWED)
    with pytest.raises(AssertionError, match="NaN or infinite in one only"):
        assert_close("output", want, got, ALLOWED)
    assert_close("output", got, got, ALLOWED)


def test_infinity_of_the_other_sign_fails() -> None:
    with pytest.raises(AssertionError, match="expected inf, got -inf"):
        assert_close("output", np.array([-math.inf]), np.array([math.inf]), ALLOWED)


def test_wrong_shape_fails(want: np.ndarray) -> None:
    with pytest.raises(AssertionError, match=r"expected shape \(7, 5, 13\), got \(5, 7, 13\)"):
        assert_close("output", want.swapaxes(0, 1), want, ALLOWED)


def test_empty_arrays_are_equal() -> None:
    assert_close("output", np.zeros((0, 3)), np.zeros((0, 3)), ALLOWED)


def test_tolerance_is_the_formula() -> None:
    problem = named("odd primes")._replace(T=8, N=1, I=1, H=16, O=1)  # log2(16 * 8) = 7
    eps = float(np.finfo(np.float32).eps)
    assert tolerance(problem, backward=False) == 4 * 7 * eps
    assert tolerance(problem, backward=True) == 2 * 4 * 7 * eps
