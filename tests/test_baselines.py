"""The rivals in NumPy: each must be the same network as the reference, or its time says nothing.

What the checks are worth is shown by mutants, rivals with one thing wrong: the same checks must turn them down.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from problems import PROBLEMS, SHAPES, Problem, data
from reference import ReferenceBackend
from rivals import (
    CASES,
    GATED,
    ODD,
    SEEN_BY,
    Case,
    Mutant,
    check,
    check_central_differences,
    check_gradients,
    check_lanes,
    check_mutant,
    check_threads,
    check_training,
    check_versions,
    example,
    expected_gradients,
)
from tolerance import assert_close, tolerance

from rnn._backends.base import Walk
from rnn._backends.numpy import NumpyBackend
from rnn.baselines import numpy, recurrence, tutorial
from rnn.baselines.cells import CELLS, Array
from rnn.baselines.network import Objective
from rnn.cells import BUILT_IN

RIVALS: dict[str, ModuleType] = {"numpy": numpy, "tutorial": tutorial}
PAIRS = [
    pytest.param(name, case, id=f"{name}, {case}")
    for name in RIVALS
    for case in CASES
    if name != "tutorial" or case.problem.cell == "rnn_tanh"
]
GATED_PROBLEMS = [
    shape._replace(cell=cell, bias=bias, dtype=dtype)
    for shape in SHAPES
    for dtype in ("float32", "float64")
    for cell in GATED
    for bias in (True, False)
]
CELLS_OF = [
    (name, cell) for name in RIVALS for cell in ("rnn_tanh", *GATED) if name != "tutorial" or cell == "rnn_tanh"
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
    cell = BUILT_IN[problem.cell]
    want = ReferenceBackend().forward(cell, x, (h0,), weights, Walk())
    got = NumpyBackend().forward(cell, x, (h0,), weights, Walk())
    assert_close("states", got.states[0], want.states[0], tolerance(problem, backward=False))
    assert_close("output", got.output, want.output, tolerance(problem, backward=False))
    for last in (d_state, None):
        back, got_back = (
            backend.bptt(cell, x, weights, tape, d_output, (last,), Walk())
            for backend, tape in ((ReferenceBackend(), want), (NumpyBackend(), got))
        )
        allowed = tolerance(problem, backward=True)
        assert got_back.weights.keys() == back.weights.keys()
        for name, gradient in back.weights.items():
            assert_close(name, got_back.weights[name], gradient, allowed)
        assert_close("x", got_back.x, back.x, allowed)
        assert_close("h0", got_back.initial[0], back.initial[0], allowed)


@pytest.mark.parametrize("problem", GATED_PROBLEMS, ids=str)
def test_states_may_begin_and_end_anywhere(problem: Problem, rng: np.random.Generator) -> None:
    """LSTM and GRU in NumPy, from any states to any gradients of the last ones, against the reference."""
    x, _, weights, d_output, _ = data(problem)
    initial, d_last = (
        tuple(rng.standard_normal((problem.N, problem.H)).astype(problem.dtype) for _ in range(problem.kind.states))
        for _ in range(2)
    )
    cell = CELLS[problem.cell]
    want, got = recurrence.forward(cell, x, initial, weights), numpy.forward(problem.cell, x, initial, weights)
    for k, (got_state, state) in enumerate(zip(got.states, want.states, strict=True)):
        assert_close(f"state {k}", got_state, state, tolerance(problem, backward=False))
    assert_close("output", got.output, want.output, tolerance(problem, backward=False))
    untouched = d_output.copy()
    for last in (d_last, None):
        zeros = tuple(map(np.zeros_like, initial))
        back = recurrence.bptt(cell, x, weights, want.states, want.kept, d_output, last or zeros)
        got_back = numpy.bptt(problem.cell, x, weights, got.states, got.kept, d_output, last)
        allowed = tolerance(problem, backward=True)
        assert got_back.weights.keys() == back.weights.keys()
        for name, gradient in back.weights.items():
            assert_close(name, got_back.weights[name], gradient, allowed)
        assert_close("x", got_back.x, back.x, allowed)
        for k, (got_initial, gradient) in enumerate(zip(got_back.initial, back.initial, strict=True)):
            assert_close(f"initial state {k}", got_initial, gradient, allowed)
    np.testing.assert_array_equal(d_output, untouched)


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (3, 0), (7, 5), (300, 300), (257, 1031)])
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_transposed_matrix_is_its_transpose(rows: int, columns: int, lanes: int) -> None:
    matrix = np.arange(rows * columns, dtype="float32").reshape(rows, columns)
    np.testing.assert_array_equal(numpy.transposed(matrix, lanes), matrix.T)


def test_a_forward_pass_sees_the_weights_of_the_last_step() -> None:
    """W_hh^T, which is kept from pass to pass, changes with them."""
    x, target, weights = example(ODD)
    network = numpy.Network(ODD.cell, weights, Objective())
    batch = network.batch(x, target)
    before = network.forward(batch).copy()
    network.train(batch, 0.5)
    after = numpy.Network(ODD.cell, network.weights(), Objective())
    np.testing.assert_array_equal(network.forward(batch), after.forward(after.batch(x, target)))
    assert not np.array_equal(network.forward(batch), before)


@pytest.mark.parametrize(("name", "cell"), CELLS_OF)
def test_gradients_are_central_differences(name: str, cell: str) -> None:
    check_central_differences(RIVALS[name], cell)


@pytest.mark.parametrize(("name", "cell"), CELLS_OF)
def test_batch_is_a_stack_of_single_lanes(name: str, cell: str) -> None:
    check_lanes(RIVALS[name], cell)


def test_threads_are_set_or_refused() -> None:
    check_threads("numpy", "rival._openblas().scipy_openblas_get_num_threads64_()")


@pytest.mark.parametrize("name", RIVALS)
def test_versions_are_named(name: str) -> None:
    check_versions(RIVALS[name])


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


# Mutants

STEPS_BACK = tutorial.steps_back
RECUR_BACK, LOSS, ADAM_INIT = numpy.recur_back, numpy.loss, numpy.Adam.__init__
LSTM_FACTORS, GRU_FACTORS = numpy.LSTM.factors, numpy.GRU.factors


def late(self: numpy.Adam, *arguments: Any) -> None:
    """Adam's start, as if a step were done."""
    ADAM_INIT(self, *arguments)
    self._count = 1


MUTANTS: dict[tuple[str, str, str], Mutant] = {
    ("numpy", "rnn_tanh", "slope dropped"): (
        numpy,
        "CELLS",
        {"rnn_tanh": numpy.Elman(np.tanh, lambda h, out: out.fill(1))},
    ),
    ("numpy", "rnn_tanh", "slope of the step before"): (
        numpy,
        "recur_back",
        lambda W, slopes, delta, last: RECUR_BACK(W, np.roll(slopes, 1, axis=0), delta, last),
    ),
    ("numpy", "rnn_tanh", "W_hh transposed on the way back"): (
        numpy,
        "recur_back",
        lambda W, slopes, delta, last: RECUR_BACK(W.T, slopes, delta, last),
    ),
    ("numpy", "rnn_tanh", "bias gradient forgotten"): (numpy, "total", lambda d, out: out.fill(0)),
    ("numpy", "rnn_tanh", "loss of all steps"): (
        numpy,
        "loss",
        lambda y, to, how, out: LOSS(y, to, how._replace(skip=0), out),
    ),
    ("numpy", "rnn_tanh", "Adam's bias correction late"): (numpy.Adam, "__init__", late),
    ("numpy", "rnn_tanh", "no clipping"): (numpy, "CLIP_NORM", 1e6),
    ("numpy", "lstm", "the state after in place of the one before"): (
        numpy.LSTM,
        "factors",
        lambda self, gates, c_before, c, out: LSTM_FACTORS(self, gates, c, c, out),
    ),
    ("numpy", "gru", "gradient of z forgotten"): (
        numpy.GRU,
        "factors",
        lambda self, r, z, n, u, before, out: GRU_FACTORS(self, r, z, n, u, n, out),
    ),
    ("numpy", "gru", "reset before the product on the way back"): (numpy.GRU, "from_input", (numpy.Span(0, 3, 0),)),
    ("tutorial", "rnn_tanh", "slope dropped"): (tutorial, "slope", np.ones_like),
    ("tutorial", "rnn_tanh", "first step missed"): (tutorial, "steps_back", lambda t, _: reversed(range(1, t + 1))),
    ("tutorial", "rnn_tanh", "not carried back"): (tutorial, "steps_back", lambda t, _: [t]),
    ("tutorial", "rnn_tanh", "Adam's bias correction late"): (numpy.Adam, "__init__", late),
}


@pytest.mark.parametrize("name", RIVALS)
def test_a_right_rival_passes(name: str) -> None:
    check(RIVALS[name], SEEN_BY)


@pytest.mark.parametrize(("name", "cell", "mutant"), MUTANTS, ids=lambda part: part)
def test_a_wrong_rival_is_caught(name: str, cell: str, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_mutant(RIVALS[name], MUTANTS[name, cell, mutant], monkeypatch, cell)


def test_the_loss_is_right_over_millions_of_numbers(rng: np.random.Generator) -> None:
    output, target = (rng.standard_normal((100, 64, 1024), np.float32) for _ in range(2))
    got = numpy.loss(output, target, Objective(), np.empty_like(output))
    assert got == pytest.approx(np.mean((output.astype(np.float64) - target) ** 2), rel=1e-6)
