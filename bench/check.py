"""What is wrong isn't worth timing: each implementation against the reference in float64, before it is timed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tolerance import assert_close, tolerance

from rnn.baselines import recurrence
from rnn.baselines.cells import CELLS

from .cases import Array, Step

STEP_SIZE = 2**-6
"""Length of the step that is checked, as a share of the weights' own: long enough to be seen in each of their bits."""

ROWS_OF_A_BLOCK = 4
"""At least so many terms OpenBLAS adds up before it adds them to what was there, matrix times vector."""


class Asked(Protocol):
    """The part of `runner.Worker` that is checked."""

    def ask(self, do: str, *arguments: Any, **values: Any) -> Any: ...


class Expected(NamedTuple):
    output: Array
    loss: float
    gradients: dict[str, Array]
    """By the names of the weights, and "x"."""


def expected(step: Step) -> Expected:
    """What the reference makes of a step in float64, with the mean squared error as loss."""
    x, target = step.x.astype(np.float64), step.target.astype(np.float64)
    weights = {name: weight.astype(np.float64) for name, weight in step.weights.items()}
    h0 = np.zeros((x.shape[1], weights["weight_hh_l0"].shape[1]))
    cell, zeros = CELLS[step.problem.cell], (h0,) * step.problem.kind.states
    states, kept, output, _ = recurrence.forward(cell, x, zeros, weights)
    d_output = (output - target) * (2 / max(output.size, 1))
    back = recurrence.bptt(cell, x, weights, states, kept, d_output, zeros)
    return Expected(output, float(np.mean((output - target) ** 2)), {**back.weights, "x": back.x})


def check(worker: Asked, step: Step, want: Expected, *, whole: bool = True) -> None:
    """Output, gradients, loss and one step of SGD; of what isn't `whole`, whose gradients are cut short on purpose, the
    output alone. Raises AssertionError for the first that is wrong."""
    forward, backward = tolerance(step.problem, backward=False), tolerance(step.problem, backward=True)
    # BLAS adds up the T N products of a weight's gradient one after the other, where `tolerance` thinks of a tree:
    # their rounding errors walk at random.
    T, N, _ = step.x.shape
    backward = max(backward, math.sqrt(T * N) * float(np.finfo(step.x.dtype).eps))
    assert_close("output", worker.ask("forward").arrays["output"], want.output, forward)
    if not whole:
        return
    gradients = worker.ask("gradients").arrays
    for name, gradient in want.gradients.items():
        assert_close(f"gradient of {name}", gradients[name], gradient, backward)

    before = {name: weight.astype(np.float64) for name, weight in step.weights.items()}
    rate = STEP_SIZE * _norm(before) / max(_norm({name: want.gradients[name] for name in before}), 1e-30)
    after = worker.ask("train", rate=rate)
    if not math.isclose(after["loss"], want.loss, rel_tol=2 * forward):
        raise AssertionError(f"loss: expected {want.loss}, got {after['loss']}")
    for name, weight in before.items():
        step_wanted = rate * want.gradients[name]
        error = float(np.linalg.norm(after.arrays[name] - (weight - step_wanted)))
        # Theano and PyTensor take the step inside the product, which rounds the weight once for each block of rows: a
        # random walk, whose steps have a standard deviation of 0.3 eps.
        roundings = max(1.0, 0.3 * math.sqrt(T * N / ROWS_OF_A_BLOCK))
        rounding = roundings * float(np.finfo(step.x.dtype).eps * np.linalg.norm(weight))
        allowed = backward * float(np.linalg.norm(step_wanted)) + rounding
        if not error <= allowed:
            raise AssertionError(f"{name} after a step: L2 norm of the error {error:.3g}, allowed {allowed:.3g}")


def _norm(arrays: Mapping[str, NDArray[Any]]) -> float:
    return math.sqrt(sum(float(np.square(array).sum()) for array in arrays.values()))
