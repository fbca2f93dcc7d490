"""Gradients by central differences, to check those that back-propagation finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from problems import Problem, data

import rnn
from rnn.layers import State

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


def each(state: State) -> tuple[Array, ...]:
    """One array a state of the cell."""
    return state if isinstance(state, tuple) else (state,)


def check_layer(
    layer: rnn.Layer,
    x: Array,
    state: State,
    d_output: Array,
    d_state: State,
    *,
    seed: int | None = None,
    **options: Any,
) -> None:
    """Compare BPTT on the current backend with central differences, for every weight, x and initial state.

    The loss is linear in the output and in the last states, with the factors `d_output` and `d_state`: they are its
    gradients. `options` are those of `forward`; a `seed` makes every pass the same one of training.
    """
    assert layer.dtype == np.float64

    def forward() -> rnn.Run:
        return layer.forward(x, state, rng=None if seed is None else np.random.default_rng(seed), **options)

    def loss() -> float:
        run = forward()
        last = zip(each(run.state), each(d_state), strict=True)
        return float((run.output * d_output).sum() + sum((s * d).sum() for s, d in last))

    gradients = layer.bptt(forward(), d_output, d_state)
    assert gradients.weights.keys() == layer.weights.keys()
    pairs = {name: (weight, gradients.weights[name]) for name, weight in layer.weights.items()}
    pairs["x"] = (x, gradients.x)
    for leaf, initial, gradient in zip(layer.cell.plain.state_leaves, each(state), each(gradients.state), strict=True):
        pairs[f"initial {leaf}"] = (initial, gradient)
    for name, (array, gradient) in pairs.items():
        assert_allclose(gradient, central_differences(loss, array), rtol=1e-6, atol=1e-8, err_msg=name)


def check_gradients(problem: Problem) -> None:
    """The same for a named problem."""
    layer = problem.layer()
    x, h0, layer.weights, d_output, d_state = data(problem)
    check_layer(layer, x, h0, d_output, d_state)
