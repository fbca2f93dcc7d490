"""What every rival is compared with: the reference's output, loss, gradients and training, in float64.

Nothing here needs a rival's library: test_baselines.py, test_theano.py and test_peers.py bring their own.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from differences import central_differences
from numpy.testing import assert_allclose
from problems import Problem, data, named
from tolerance import assert_close, tolerance

from rnn.baselines import recurrence
from rnn.baselines.cells import CELLS, Array
from rnn.baselines.network import BETAS, CLIP_NORM, EPS, Objective

RATE = 0.05
Rival = Any  # a module of `baselines`, or whatever has a Network like one


class Case(NamedTuple):
    problem: Problem
    objective: Objective

    def __str__(self) -> str:
        return f"{self.problem}, {self.objective.update}"


ODD = named("odd primes")
LATE = Objective("adam", scale=2.5, skip=2)
GATED = ("lstm", "gru")
CASES = [
    Case(ODD, Objective("sgd")),
    Case(ODD._replace(dtype="float64"), LATE),
    Case(ODD._replace(dtype="float64", cell="rnn_relu", bias=False), Objective("sgd", scale=0.5, skip=1)),
    Case(ODD._replace(dtype="float64", cell="rnn_sigmoid"), LATE),
    Case(named("one lane, long"), Objective("adam")),
    Case(named("no readout"), Objective("adam")),
    Case(named("no readout")._replace(dtype="float64", cell="rnn_relu"), Objective("sgd")),
    Case(named("columns of a picture")._replace(bias=False), Objective("sgd", scale=1024, skip=8)),
    Case(named("wide input"), Objective("adam", scale=100)),
    *(
        case
        for cell in GATED
        for case in (
            Case(ODD._replace(cell=cell), Objective("sgd")),
            Case(ODD._replace(cell=cell, dtype="float64", bias=False), Objective("sgd", scale=0.5, skip=1)),
            Case(named("one lane, long")._replace(cell=cell), Objective("sgd", scale=10)),
            Case(named("no readout")._replace(cell=cell, dtype="float64"), Objective("adam")),
            Case(named("wide state")._replace(cell=cell), Objective("sgd", scale=100)),
        )
    ),
]
FEW = [
    Case(ODD._replace(dtype="float64", cell="rnn_relu", bias=False), Objective("sgd", scale=0.5, skip=1)),
    Case(named("one lane, long"), Objective("adam")),
    Case(named("no readout")._replace(dtype="float64", cell="rnn_sigmoid"), LATE),
    Case(ODD._replace(dtype="float64", cell="lstm"), Objective("sgd", scale=0.5, skip=1)),
    Case(named("one lane, long")._replace(cell="lstm", bias=False), Objective("sgd")),
    Case(ODD._replace(dtype="float64", cell="gru"), Objective("sgd", scale=0.5, skip=1)),
    Case(named("one lane, long")._replace(cell="gru", bias=False), Objective("sgd")),
]
"""For a library that compiles some seconds for each."""
SEEN_BY = Case(ODD, Objective("adam", scale=25, skip=2))
"""What the mutants below are to be caught on: clipped, and with a start that Adam's bias correction changes."""


class Example(NamedTuple):
    x: Array
    target: Array
    weights: dict[str, Array]


def example(problem: Problem) -> Example:
    x, _, weights, target, _ = data(problem)
    return Example(x, target, weights)


def wide(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def zeros(problem: Problem) -> tuple[Array, ...]:
    """States."""
    return tuple(np.zeros((problem.N, problem.H)) for _ in range(problem.kind.states))


def expected_gradients(case: Case, given: Example) -> tuple[Array, float, dict[str, Array]]:
    """The reference's output, loss and gradients, in float64."""
    problem, (_, scale, skip) = case
    x, target, weights = given.x.astype(np.float64), given.target.astype(np.float64), wide(given.weights)
    cell, initial = CELLS[problem.cell], zeros(problem)
    run = recurrence.forward(cell, x, initial, weights)
    difference = run.output[skip:] - target[skip:]
    d_output = np.zeros_like(target)
    d_output[skip:] = 2 * scale / difference.size * difference
    back = recurrence.bptt(cell, x, weights, run.states, run.kept, d_output, initial)
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


def check_gradients(rival: Rival, case: Case) -> None:
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


def check_training(rival: Rival, case: Case) -> None:
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


def check(rival: Rival, case: Case) -> None:
    check_gradients(rival, case)
    check_training(rival, case)


def check_central_differences(rival: Rival, cell: str) -> None:
    problem = Problem("small", T=4, N=2, I=2, H=3, O=2, cell=cell, dtype="float64")
    given = example(problem)
    _, scale, skip = objective = Objective(scale=1.5, skip=1)
    network = rival.Network(problem.cell, given.weights, objective)
    gradients = network.gradients(network.batch(given.x, given.target))

    def loss() -> float:
        run = recurrence.forward(CELLS[problem.cell], given.x, zeros(problem), given.weights)
        return scale * float(np.mean((run.output - given.target)[skip:] ** 2))

    for name, array in {**given.weights, "x": given.x}.items():
        assert_allclose(gradients[name], central_differences(loss, array), rtol=1e-6, atol=1e-8, err_msg=name)


def check_lanes(rival: Rival, cell: str) -> None:
    """A batch is a stack of single lanes."""
    problem = ODD._replace(cell=cell, dtype="float64")
    x, target, weights = example(problem)
    network = rival.Network(problem.cell, weights, Objective(scale=problem.N))  # the mean, then, is a sum
    batch = network.batch(x, target)
    output, gradients = np.array(network.forward(batch)), network.gradients(batch)
    single = rival.Network(problem.cell, weights, Objective())
    total = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for lane in range(problem.N):
        one = single.batch(x[:, lane : lane + 1], target[:, lane : lane + 1])
        assert_allclose(output[:, lane : lane + 1], single.forward(one), rtol=1e-12, atol=1e-14)
        back = single.gradients(one)
        assert_allclose(gradients["x"][:, lane : lane + 1], back["x"], rtol=1e-12, atol=1e-14)
        total = {name: total[name] + back[name] for name in total}
    for name, gradient in total.items():
        assert_allclose(gradients[name], gradient, rtol=1e-12, atol=1e-13, err_msg=name)


def check_load(rival: Rival) -> None:
    """A network of other sizes, used in every way, is a new one after `load`."""
    other = ODD._replace(T=4, N=3, I=5, H=6, O=2)
    given = example(other)
    network = rival.Network(other.cell, given.weights, SEEN_BY.objective)
    batch = network.batch(given.x, given.target)
    network.forward(batch)
    network.gradients(batch)
    network.train(batch, RATE)

    def started_anew(cell: str, weights: Mapping[str, Array], objective: Objective) -> Any:
        network.load(weights)
        return network

    check(SimpleNamespace(Network=started_anew), SEEN_BY)


THREADS = """
import json, os, sys
from importlib import import_module
rival = import_module(f"rnn.baselines.{sys.argv[1]}")
rival.set_threads(1)
try:
    rival.set_threads(10**4)
    refused = ""
except ValueError as error:
    refused = str(error)
print(json.dumps([eval(sys.argv[2]), refused]))
"""


def check_threads(name: str, count: str) -> None:
    """Threads of this rival are set or refused. count: the expression for how many there are, in a process in which
    the module is `rival`.
    """
    done = subprocess.run([sys.executable, "-c", THREADS, name, count], capture_output=True, text=True, check=True)
    threads, refused = json.loads(done.stdout)
    assert threads == 1
    assert refused.startswith("n: expected")


def check_versions(rival: Rival) -> None:
    versions = rival.versions()
    assert versions
    assert all(version[0].isdigit() for version in versions.values())


Mutant = tuple[object, str, Any]
"""A module or class, its attribute, and what stands there in place of what is right."""


def check_mutant(
    rival: Rival, mutant: Mutant, monkeypatch: pytest.MonkeyPatch, cell: str = SEEN_BY.problem.cell
) -> None:
    """The rival with this one thing wrong is turned down."""
    monkeypatch.setattr(*mutant)
    with pytest.raises(AssertionError, match="allowed"):
        check(rival, SEEN_BY._replace(problem=ODD._replace(cell=cell)))
