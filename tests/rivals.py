"""What every rival is compared with: the reference's output, loss, gradients and training, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

import numpy as np
from problems import Problem, data
from tolerance import assert_close, tolerance

from rnn.baselines import recurrence
from rnn.baselines.cells import CELLS, Array
from rnn.baselines.network import BETAS, CLIP_NORM, EPS, Objective

RATE = 0.05


class Case(NamedTuple):
    problem: Problem
    objective: Objective

    def __str__(self) -> str:
        return f"{self.problem}, {self.objective.update}"


class Example(NamedTuple):
    x: Array
    target: Array
    weights: dict[str, Array]


def example(problem: Problem) -> Example:
    x, _, weights, target, _ = data(problem)
    return Example(x, target, weights)


def wide(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def expected_gradients(case: Case, given: Example) -> tuple[Array, float, dict[str, Array]]:
    """The reference's output, loss and gradients, in float64."""
    problem, (_, scale, skip) = case
    x, target, weights = given.x.astype(np.float64), given.target.astype(np.float64), wide(given.weights)
    cell, h0 = CELLS[problem.cell], (np.zeros((problem.N, problem.H)),)
    run = recurrence.forward(cell, x, h0, weights)
    difference = run.output[skip:] - target[skip:]
    d_output = np.zeros_like(target)
    d_output[skip:] = 2 * scale / difference.size * difference
    back = recurrence.bptt(cell, x, weights, run.states, run.kept, d_output, h0)
    return run.output, scale * float(np.mean(difference**2)), {**back.weights, "x": back.x}


def expected_training(case: Case, given: Example, steps: int) -> tuple[list[float], dict[str, Array]]:
    """The losses before each step, and the weights after the last."""
    weights, losses = wide(given.weights), []
    m, v = ({name: np.zeros_like(weight) for name, weight in weights.items()} for _ in range(2))
    for k in range(1, steps + 1):
        _, loss, g = expected_gradients(case, given._replace(weights=weights))
        losses.append(loss)
        del g["x"]
        if case.objective.update == "sgd":
            weights = {name: weight - RATE * g[name] for name, weight in weights.items()}
            continue
        norm = math.sqrt(sum(float(np.sum(one**2)) for one in g.values()))
        g = {name: one * min(1, CLIP_NORM / (norm + 1e-6)) for name, one in g.items()}
        m = {name: BETAS[0] * m[name] + (1 - BETAS[0]) * g[name] for name in g}
        v = {name: BETAS[1] * v[name] + (1 - BETAS[1]) * g[name] ** 2 for name in g}
        for name in weights:
            m_hat, v_hat = m[name] / (1 - BETAS[0] ** k), v[name] / (1 - BETAS[1] ** k)
            weights[name] = weights[name] - RATE * m_hat / (np.sqrt(v_hat) + EPS)
    return losses, weights


def check_gradients(rival: ModuleType, case: Case) -> None:
    given = example(case.problem)
    output, _, gradients = expected_gradients(case, given)
    network = rival.Network(case.problem.cell, given.weights, case.objective)
    batch = network.batch(given.x, given.target)
    got = np.asarray(network.forward(batch))
    assert got.dtype == case.problem.dtype
    assert_close("output", got, output, tolerance(case.problem, backward=False))
    got_gradients = network.gradients(batch)
    assert got_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert got_gradients[name].dtype == case.problem.dtype
        assert_close(name, got_gradients[name], gradient, tolerance(case.problem, backward=True))


def check_training(rival: ModuleType, case: Case) -> None:
    given = example(case.problem)
    untouched = [given.x.copy(), given.target.copy(), *(weight.copy() for weight in given.weights.values())]
    steps = 1 if case.objective.update == "sgd" else 2
    losses, weights = expected_training(case, given, steps)
    network = rival.Network(case.problem.cell, given.weights, case.objective)
    batch = network.batch(given.x, given.target)
    allowed = tolerance(case.problem, backward=True)
    for step, loss in enumerate(losses):
        assert_close(f"loss before step {step}", np.array(network.train(batch, RATE)), np.array(loss), allowed)
    got = network.weights()
    assert got.keys() == weights.keys()
    for name, weight in weights.items():
        assert got[name].dtype == case.problem.dtype
        assert_close(f"{name} after {steps} of {case.objective.update}", got[name], weight, allowed)
    for before, after in zip(untouched, [given.x, given.target, *given.weights.values()], strict=True):
        np.testing.assert_array_equal(before, after)


def check(rival: ModuleType, case: Case) -> None:
    check_gradients(rival, case)
    check_training(rival, case)
