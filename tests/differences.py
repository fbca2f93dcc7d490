"""Gradients by central differences, to check those that back-propagation finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from problems import Problem, data

Array = NDArray[np.floating[Any]]


def central_differences(loss: Callable[[], float], array: Array, step: float = 1e-6) -> Array:
    """d loss() / d array, where `loss` looks at `array`, which is wiggled in place, number by number."""
    gradient = np.empty_like(array)
    for index in np.ndindex(*array.shape):
        value = array[index]
        array[index] = value + step
        above = loss()
        array[index] = value - step
        below = loss()
        array[index] = value
        gradient[index] = (above - below) / (2 * step)
    return gradient


def check_gradients(problem: Problem) -> None:
    """Compare BPTT on the current backend with central differences, for every weight, x and h0.

    The loss is linear in the output and in the last state, with random factors: they are its gradients.
    """
    assert problem.dtype == "float64"
    layer = problem.layer()
    x, h0, layer.weights, d_output, d_state = data(problem)
    run = layer.forward(x, h0)
    gradients = layer.bptt(run, d_output, d_state)

    def loss() -> float:
        run = layer.forward(x, h0)
        return float((run.output * d_output).sum() + (run.state * d_state).sum())

    assert gradients.weights.keys() == layer.weights.keys()
    for name, weight in layer.weights.items():
        assert_allclose(gradients.weights[name], central_differences(loss, weight), rtol=1e-6, atol=1e-8, err_msg=name)
    assert_allclose(gradients.x, central_differences(loss, x), rtol=1e-6, atol=1e-8, err_msg="x")
    assert_allclose(gradients.h0, central_differences(loss, h0), rtol=1e-6, atol=1e-8, err_msg="h0")
