"""The rivals: each must be the same network as the reference, or its time says nothing.

What the checks are worth is shown by mutants, rivals with one thing wrong: the same checks must turn them down.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax as jax_library
import numpy as np
import pytest
import torch
from differences import central_differences
from numpy.testing import assert_allclose
from problems import PROBLEMS, Problem, data, named
from reference import ReferenceBackend
from tolerance import assert_close, tolerance

from rnn._backends.numpy import NumpyBackend
from rnn.baselines import jax, numpy, pytorch, recurrence, tutorial
from rnn.baselines.cells import CELLS, Array
from rnn.baselines.network import BETAS, CLIP_NORM, EPS, Objective

RIVALS: dict[str, ModuleType] = {"numpy": numpy, "tutorial": tutorial, "pytorch": pytorch, "jax": jax}
RATE = 0.05


class Case(NamedTuple):
    problem: Problem
    objective: Objective

    def __str__(self) -> str:
        return f"{self.problem}, {self.objective.update}"


ODD = named("odd primes")
LATE = Objective("adam", scale=2.5, skip=2)
CASES = [
    Case(ODD, Objective("sgd")),
    Case(ODD._replace(dtype="float64"), LATE),
    Case(ODD._replace(dtype="float64", nonlinearity="relu", bias=False), Objective("sgd", scale=0.5, skip=1)),
    Case(ODD._replace(dtype="float64", nonlinearity="sigmoid"), LATE),
    Case(named("one lane, long"), Objective("adam")),
    Case(named("no readout"), Objective("adam")),
    Case(named("no readout")._replace(dtype="float64", nonlinearity="relu"), Objective("sgd")),
    Case(named("columns of a picture")._replace(bias=False), Objective("sgd", scale=1024, skip=8)),
    Case(named("wide input"), Objective("adam", scale=100)),
]
PAIRS = [
    pytest.param(name, case, id=f"{name}, {case}")
    for name in RIVALS
    for case in CASES
    if name != "tutorial" or case.problem.nonlinearity == "tanh"
]


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_output_and_gradients_are_the_references(name: str, case: Case) -> None:
    check_gradients(RIVALS[name], case)


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_losses_and_updates_are_the_references(name: str, case: Case) -> None:
    check_training(RIVALS[name], case)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_numpy_backend_is_the_reference(problem: Problem) -> None:
    x, h0, weights, d_output, d_state = data(problem)
    want = ReferenceBackend().forward(problem.cell, x, h0, weights)
    got = NumpyBackend().forward(problem.cell, x, h0, weights)
    assert_close("states", got.states[0], want.states[0], tolerance(problem, backward=False))
    assert_close("output", got.output, want.output, tolerance(problem, backward=False))
    for last in (d_state, None):
        back, got_back = (
            backend.bptt(problem.cell, x, weights, want, d_output, last)
            for backend in (ReferenceBackend(), NumpyBackend())
        )
        allowed = tolerance(problem, backward=True)
        assert got_back.weights.keys() == back.weights.keys()
        for name, gradient in back.weights.items():
            assert_close(name, got_back.weights[name], gradient, allowed)
        assert_close("x", got_back.x, back.x, allowed)
        assert_close("h0", got_back.h0, back.h0, allowed)


@pytest.mark.parametrize("name", RIVALS)
def test_gradients_are_central_differences(name: str) -> None:
    problem = Problem("small", T=4, N=2, I=2, H=3, O=2, dtype="float64")
    given = example(problem)
    _, scale, skip = objective = Objective(scale=1.5, skip=1)
    network = RIVALS[name].Network(problem.cell, given.weights, objective)
    gradients = network.gradients(network.batch(given.x, given.target))

    def loss() -> float:
        run = recurrence.forward(CELLS[problem.cell], given.x, (np.zeros((2, 3)),), given.weights)
        return scale * float(np.mean((run.output - given.target)[skip:] ** 2))

    for which, array in {**given.weights, "x": given.x}.items():
        assert_allclose(gradients[which], central_differences(loss, array), rtol=1e-6, atol=1e-8, err_msg=which)


@pytest.mark.parametrize("name", RIVALS)
def test_batch_is_a_stack_of_single_lanes(name: str) -> None:
    problem = ODD._replace(dtype="float64")
    x, target, weights = example(problem)
    network = RIVALS[name].Network(problem.cell, weights, Objective(scale=problem.N))  # the mean, then, is a sum
    batch = network.batch(x, target)
    output, gradients = np.array(network.forward(batch)), network.gradients(batch)
    single = RIVALS[name].Network(problem.cell, weights, Objective())
    total = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for lane in range(problem.N):
        one = single.batch(x[:, lane : lane + 1], target[:, lane : lane + 1])
        assert_allclose(output[:, lane : lane + 1], single.forward(one), rtol=1e-12, atol=1e-14)
        back = single.gradients(one)
        assert_allclose(gradients["x"][:, lane : lane + 1], back["x"], rtol=1e-12, atol=1e-14)
        total = {name: total[name] + back[name] for name in total}
    for which, gradient in total.items():
        assert_allclose(gradients[which], gradient, rtol=1e-12, atol=1e-13, err_msg=which)


# The tutorial


def tutorial_gradients(case: Case, bptt_truncate: int | None) -> dict[str, Array]:
    given = example(case.problem)
    network = tutorial.Network(case.problem.cell, given.weights, case.objective, bptt_truncate=bptt_truncate)
    return network.gradients(network.batch(given.x, given.target))


SHORT = Case(ODD._replace(dtype="float64"), Objective())


@pytest.mark.parametrize("bptt_truncate", [SHORT.problem.T - 1, SHORT.problem.T, 1000])
def test_the_tutorial_cut_no_earlier_than_the_sequence_is_not_cut(bptt_truncate: int) -> None:
    _, _, want = expected_gradients(SHORT, example(SHORT.problem))
    for name, gradient in tutorial_gradients(SHORT, bptt_truncate).items():
        assert_close(name, gradient, want[name], tolerance(SHORT.problem, backward=True))


@pytest.mark.parametrize("bptt_truncate", [0, 1, 4])
def test_the_tutorial_cut_early_takes_older_states_for_constants(bptt_truncate: int) -> None:
    """Each output by itself, run anew from the state `bptt_truncate` steps before it."""
    problem = SHORT.problem
    x, target, weights = example(problem)
    cell, h0 = CELLS[problem.cell], np.zeros((problem.N, problem.H))
    run = recurrence.forward(cell, x, (h0,), weights)
    want = {name: np.zeros_like(array) for name, array in {**weights, "x": x}.items()}
    for t in range(problem.T):
        first = max(0, t - bptt_truncate)
        piece = recurrence.forward(cell, x[first : t + 1], (run.states[0][first],), weights)
        d_output = np.zeros_like(piece.output)
        d_output[-1] = 2 / target.size * (piece.output[-1] - target[t])
        back = recurrence.bptt(cell, x[first : t + 1], weights, piece.states, (), d_output, (h0,))
        for name, gradient in back.weights.items():
            want[name] += gradient
        want["x"][first : t + 1] += back.x
    got = tutorial_gradients(SHORT, bptt_truncate)
    for name, gradient in want.items():
        assert_close(name, got[name], gradient, tolerance(problem, backward=True))
    with pytest.raises(AssertionError, match="weight_hh_l0"):
        assert_close(
            "weight_hh_l0",
            got["weight_hh_l0"],
            tutorial_gradients(SHORT, None)["weight_hh_l0"],
            tolerance(problem, backward=True),
        )


@pytest.mark.parametrize(("bptt_truncate", "steps"), [(None, 7 * 8 // 2), (2, 1 + 2 + 3 * 5), (0, 7)])
def test_the_tutorials_cost(bptt_truncate: int | None, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quadratic in T = 7, and linear when cut: in steps, not in seconds."""
    taken = []

    def counted(t: int, bptt_truncate: int | None) -> Iterator[int]:
        for step in STEPS_BACK(t, bptt_truncate):
            taken.append(step)
            yield step

    monkeypatch.setattr(tutorial, "steps_back", counted)
    tutorial_gradients(SHORT, bptt_truncate)
    assert len(taken) == steps


def test_the_tutorial_has_tanh_alone() -> None:
    with pytest.raises(ValueError, match=r"cell: expected 'rnn_tanh'.*got 'rnn_relu'"):
        tutorial.Network("rnn_relu", example(ODD).weights, Objective())


def test_jax_compiles_once_for_a_shape() -> None:
    x, target, weights = example(ODD)
    network = jax.Network(ODD.cell, weights, Objective())
    assert network.compile_seconds == 0
    network.train(network.batch(x, target), RATE)
    first = network.compile_seconds
    assert first > 0
    network.train(network.batch(x + 1, target), RATE)
    assert network.compile_seconds == first
    network.train(network.batch(x[1:], target[1:]), RATE)
    assert network.compile_seconds > first


# Threads

THREADS = """
import json, os, sys
from importlib import import_module
name = sys.argv[1]
rival = import_module(f"rnn.baselines.{name}")
count = {
    "numpy": lambda: rival._openblas().scipy_openblas_get_num_threads64_(),
    "pytorch": lambda: rival.torch.get_num_threads(),
    "jax": lambda: len(os.sched_getaffinity(0)),
}[name]
rival.set_threads(1)
try:
    rival.set_threads(10**4)
    refused = ""
except ValueError as error:
    refused = str(error)
print(json.dumps([count(), refused]))
"""


@pytest.mark.parametrize("name", ["numpy", "pytorch", "jax"])
def test_threads_are_set_or_refused(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", THREADS, name], capture_output=True, text=True, check=True)
    count, refused = json.loads(done.stdout)
    assert count == 1
    assert refused.startswith("n: expected")


@pytest.mark.parametrize("name", RIVALS)
def test_versions_are_named(name: str) -> None:
    versions = RIVALS[name].versions()
    assert versions
    assert all(version[0].isdigit() for version in versions.values())


# Mutants: (module, attribute, what stands there in its place)

STEPS_BACK = tutorial.steps_back
Mutant = tuple[object, str, Any]


def late(self: numpy.Adam, *arguments: Any) -> None:
    """Adam's start, as if a step were done."""
    ADAM_INIT(self, *arguments)
    self._count = 1


def unbiased(backward: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's backward pass without the gradient of the bias."""

    def wrong(ctx: Any, d_hidden: Any) -> Any:
        *gradients, d_bias = backward(ctx, d_hidden)
        return *gradients, None if d_bias is None else 0 * d_bias

    return wrong


def jax_recur(back: Callable[..., Any]) -> Any:
    """JAX's recurrence with another way back."""
    wrong = jax_library.custom_vjp(jax.recur.fun, nondiff_argnums=(0,))
    wrong.defvjp(jax.recur_forward, back)
    return wrong


def jax_forward(cell: str, weights: Any, x: Any) -> Any:
    stopped = {"bias_hh_l0": jax_library.lax.stop_gradient(weights["bias_hh_l0"])}
    return JAX_FORWARD(cell, {**weights, **stopped}, x)


def jax_adam(weights: Any, moments: Any, gradients: Any, rates: Any) -> Any:
    return JAX_ADAM(weights, moments, gradients, rates._replace(root=rates.root**2))


RECUR_BACK, TORCH_BACK, LOSS = numpy.recur_back, pytorch.recur_back, numpy.loss
ADAM_INIT = numpy.Adam.__init__
JAX_BACK, JAX_FORWARD, JAX_ADAM = jax.recur_back, jax.forward, jax.adam

MUTANTS: dict[tuple[str, str], Mutant] = {
    ("numpy", "slope dropped"): (
        numpy,
        "CELLS",
        {"rnn_tanh": numpy.Cell(np.tanh, lambda h, out: out.fill(1))},
    ),
    ("numpy", "slope of the step before"): (
        numpy,
        "recur_back",
        lambda W, slopes, delta, last: RECUR_BACK(W, np.roll(slopes, 1, axis=0), delta, last),
    ),
    ("numpy", "W_hh transposed on the way back"): (
        numpy,
        "recur_back",
        lambda W, slopes, delta, last: RECUR_BACK(W.T, slopes, delta, last),
    ),
    ("numpy", "bias gradient forgotten"): (numpy, "total", lambda d, out: out.fill(0)),
    ("numpy", "loss of all steps"): (numpy, "loss", lambda y, to, how, out: LOSS(y, to, how._replace(skip=0), out)),
    ("numpy", "Adam's bias correction late"): (numpy.Adam, "__init__", late),
    ("numpy", "no clipping"): (numpy, "CLIP_NORM", 1e6),
    ("tutorial", "slope dropped"): (tutorial, "slope", np.ones_like),
    ("tutorial", "first step missed"): (tutorial, "steps_back", lambda t, _: reversed(range(1, t + 1))),
    ("tutorial", "not carried back"): (tutorial, "steps_back", lambda t, _: [t]),
    ("tutorial", "Adam's bias correction late"): (numpy.Adam, "__init__", late),
    ("pytorch", "slope of a sigmoid"): (
        pytorch,
        "recur_back",
        lambda cell, W, h, d: TORCH_BACK("rnn_sigmoid", W, h, d),
    ),
    ("pytorch", "slope of the step before"): (
        pytorch,
        "recur_back",
        lambda cell, W, h, d: TORCH_BACK(cell, W, torch.roll(h, 1, 0), d),
    ),
    ("pytorch", "W_hh transposed on the way back"): (
        pytorch,
        "recur_back",
        lambda cell, W, h, d: TORCH_BACK(cell, W.t(), h, d),
    ),
    ("pytorch", "bias gradient forgotten"): (pytorch.Layer, "backward", staticmethod(unbiased(pytorch.Layer.backward))),
    ("pytorch", "another second moment"): (pytorch, "BETAS", (0.9, 0.99)),
    ("pytorch", "no clipping"): (pytorch, "CLIP_NORM", 1e6),
    ("jax", "slope dropped"): (
        jax,
        "CELLS",
        {"rnn_tanh": jax.CELLS["rnn_tanh"]._replace(slope=lambda h: h * 0 + 1)},
    ),
    ("jax", "slope of the step before"): (
        jax,
        "recur",
        jax_recur(lambda cell, kept, d: JAX_BACK(cell, (kept[0], kept[0], kept[2]), d)),
    ),
    ("jax", "gradient of W_hh transposed"): (
        jax,
        "recur",
        jax_recur(lambda cell, kept, d: (JAX_BACK(cell, kept, d)[0], JAX_BACK(cell, kept, d)[1].T)),
    ),
    ("jax", "bias gradient forgotten"): (jax, "forward", jax_forward),
    ("jax", "Adam's root forgotten"): (jax, "adam", jax_adam),
    ("jax", "no clipping"): (jax, "CLIP_NORM", 1e6),
}
SEEN_BY = Case(ODD, Objective("adam", scale=25, skip=2))


@pytest.mark.parametrize("name", RIVALS)
def test_a_right_rival_passes(name: str) -> None:
    check(RIVALS[name], SEEN_BY)


@pytest.mark.parametrize(("name", "mutant"), MUTANTS, ids=lambda part: part)
def test_a_wrong_rival_is_caught(name: str, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MUTANTS[name, mutant])
    with pytest.raises(AssertionError, match="allowed"):
        check(RIVALS[name], SEEN_BY)
