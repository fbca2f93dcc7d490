"""Every kernel against the float64 NumPy reference, over the named problems, and against exact arithmetic.

The backend is called as the layer calls it, so that BPTT can be given the reference's own tape, rounded: a
ReLU that a rounding error switches from one side to the other would otherwise be a true and large difference
in its gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
from differences import check_gradients, each
from problems import PROBLEMS, SMALL, Array, Data, Problem, data, named
from tolerance import assert_close, tolerance

import rnn
from rnn._backends.base import Tape, Walk
from rnn._backends.halide_jit import AUTOMATIC
from rnn.backend import Backend, BackendUnavailable
from rnn.baselines import recurrence
from rnn.baselines.cells import CELLS
from rnn.cells import BUILT_IN

SCHEDULES = ["naive", "vectorized", "parallel", "tiled", "tuned"]
KERNELS = [
    *(("halide", schedule) for schedule in SCHEDULES),
    *(("halide-jit", schedule) for schedule in ("naive", "tiled", "li2018")),
]
ELMAN = [problem for problem in PROBLEMS if problem.cell.startswith("rnn_")]
JIT_NAMES = ["one of everything", "no time", "no hidden units", "no readout", "odd primes", "wide state"]
"""The JIT runs the same generators: some problems, with tanh, are enough to see that it runs them right."""


def kernel(backend: str, schedule: str) -> Backend:
    try:
        with rnn.backend.using(backend, schedule=schedule) as chosen:
            return chosen
    except BackendUnavailable as reason:
        if backend == "halide-jit":
            pytest.skip(str(reason))
        raise


def cases() -> list[object]:
    """tanh under every schedule, the rest under the tuned one, which alone is built in float64 too."""

    def has(backend: str, schedule: str, problem: Problem) -> bool:
        if schedule in AUTOMATIC and problem.O is None:
            return False  # see there
        if backend == "halide-jit":
            return problem.name in JIT_NAMES and problem.cell == "rnn_tanh"
        return schedule == "tuned" or (problem.dtype == "float32" and problem.cell == "rnn_tanh")

    return [
        pytest.param(backend, schedule, problem, id=f"{backend}, {schedule}, {problem}")
        for backend, schedule in KERNELS
        for problem in ELMAN
        if has(backend, schedule, problem)
    ]


@cache
def reference(problem: Problem) -> tuple[Data, recurrence.Forward]:
    arrays = data(problem)
    x, h0 = arrays.x.astype(np.float64), arrays.h0.astype(np.float64)
    return arrays, recurrence.forward(CELLS[problem.cell], x, (h0,), _wide(arrays.weights))


@pytest.mark.parametrize(("backend", "schedule", "problem"), cases())
def test_forward(backend: str, schedule: str, problem: Problem) -> None:
    (x, h0, weights, _, _), want = reference(problem)
    got = kernel(backend, schedule).forward(BUILT_IN[problem.cell], x, (h0,), weights, Walk())
    allowed = tolerance(problem, backward=False)
    assert got.states[0].dtype == got.output.dtype == problem.dtype
    assert_close("states", got.states[0], want.states[0], allowed)
    assert_close("output", got.output, want.output, allowed)


@pytest.mark.parametrize(("backend", "schedule", "problem"), cases())
def test_bptt(backend: str, schedule: str, problem: Problem) -> None:
    (x, _, weights, d_output, d_state), forward = reference(problem)
    states = forward.states[0].astype(problem.dtype)
    output = forward.output.astype(problem.dtype) if "weight_ho" in weights else states[1:]
    want = recurrence.bptt(
        CELLS[problem.cell],
        x.astype(np.float64),
        _wide(weights),
        (states.astype(np.float64),),
        (),
        d_output.astype(np.float64),
        (d_state.astype(np.float64),),
    )
    tape = Tape((states,), states[np.newaxis], output)  # nothing is kept but the states
    got = kernel(backend, schedule).bptt(BUILT_IN[problem.cell], x, weights, tape, d_output, (d_state,), Walk())
    allowed = tolerance(problem, backward=True)
    assert got.weights.keys() == weights.keys()
    wanted = {**want.weights, "x": want.x, "h0": want.initial[0]}
    for name, gradient in {**got.weights, "x": got.x, "h0": got.initial[0]}.items():
        assert gradient.dtype == problem.dtype
        assert_close(name, gradient, wanted[name], allowed)


@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_gradients_are_central_differences(problem: Problem) -> None:
    with rnn.backend.using("halide"):
        check_gradients(problem)


@pytest.mark.parametrize(("backend", "schedule"), [("halide", "tuned"), ("halide-jit", "tiled")])
@pytest.mark.parametrize("name", ["odd primes", "one lane over two vectors", "one lane over two vectors, one lane"])
def test_small_integers_are_exact(backend: str, schedule: str, name: str, rng: np.random.Generator) -> None:
    """ReLU and integers below 2^24: float32 makes no rounding error, whatever the order of the sums."""
    cell, problem = BUILT_IN["rnn_relu"], named(name)
    weights = {
        key: rng.integers(-1, 2, weight.shape).astype(np.float32) for key, weight in problem.layer().weights.items()
    }
    weights["weight_hh_l0"] = np.eye(problem.H, dtype=np.float32)[rng.permutation(problem.H)]  # so that h grows slowly
    x = rng.integers(-3, 4, (problem.T, problem.N, problem.I)).astype(np.float32)
    h0 = rng.integers(-3, 4, (problem.N, problem.H)).astype(np.float32)
    chosen, exact = kernel(backend, schedule), _numpy()
    got, want = (one.forward(cell, x, (h0,), weights, Walk()) for one in (chosen, exact))
    assert 0 < np.abs(want.output).max() < 2**24
    np.testing.assert_array_equal(got.states[0], want.states[0])
    np.testing.assert_array_equal(got.output, want.output)

    d_output = rng.integers(-3, 4, want.output.shape).astype(np.float32)
    back, wanted = (
        one.bptt(cell, x, weights, tape, d_output, (h0,), Walk()) for one, tape in ((chosen, got), (exact, want))
    )
    for key, gradient in {**back.weights, "x": back.x, "h0": back.initial[0]}.items():
        expected = {**wanted.weights, "x": wanted.x, "h0": wanted.initial[0]}[key]
        assert 0 < np.abs(expected).max() < 2**24
        np.testing.assert_array_equal(gradient, expected, err_msg=key)


SUMS = {
    "few rows": (4, 8, 70, 40),
    "one row": (1, 1, 33, 9),
    "few rows, a narrow input": (4, 8, 16, 40),
    "one row more": (3, 11, 70, 40),
    "few rows for many units": (8, 32, 257, 300),
    "too many rows": (1, 257, 257, 300),
    "several pieces": (70, 40, 256, 256),
    "full blocks": (10, 10, 64, 64),
}
"""(T, N, I, O): the ways of summing up outer products (halide_gen/sums.py), and beside their borders."""


@pytest.mark.parametrize("name", SUMS)
def test_the_gradients_of_a_linear_layer_are_exact_for_small_integers(name: str, rng: np.random.Generator) -> None:
    T, N, I, O = SUMS[name]
    x, weight, d_output = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((T, N, I), (O, I), (T, N, O)))
    exact = d_output.astype(np.float64)
    wanted = exact @ weight, np.einsum("tno,tni->oi", exact, x), exact.sum((0, 1))
    for threads in (1, 2, 3):
        with rnn.threads(threads):
            made = kernel("halide", "tuned").linear_bptt(x, weight, d_output)
        for gradient, want in zip(made, wanted, strict=True):
            np.testing.assert_array_equal(gradient, want)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["odd primes", "rows of a picture", "one lane over four vectors", "wide state"])
def test_any_number_of_threads_gives_the_same_bits(schedule: str, name: str) -> None:
    layer = named(name).layer()
    x, h0, layer.weights, d_output, d_state = data(named(name))
    seen = []
    with rnn.backend.using("halide", schedule=schedule):
        for threads in (1, 2, 3, 1):
            with rnn.threads(threads):
                run = layer.forward(x, h0)
                gradients = layer.bptt(run, d_output, d_state)
            arrays = [run.output, *each(run.state), gradients.x, gradients.h0, *gradients.weights.values()]
            seen.append(b"".join(array.tobytes() for array in arrays))
    assert all(one == seen[0] for one in seen)


@pytest.mark.parametrize(
    ("schedule", "cell"),
    [*((schedule, "rnn_tanh") for schedule in SCHEDULES), ("tuned", "rnn_sigmoid"), ("tuned", "rnn_relu")],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_no_nan_is_hidden_and_extremes_saturate(schedule: str, cell: str, bad: float) -> None:
    problem = named("one lane over an AVX-512 vector")
    x, h0, weights, d_output, d_state = data(problem)
    x[2, 5, 1] = bad
    wide = [array.astype(np.float64) for array in (x, h0)]
    with np.errstate(invalid="ignore"):
        want = recurrence.forward(CELLS[cell], wide[0], (wide[1],), _wide(weights))
        chosen = kernel("halide", schedule)
        got = chosen.forward(BUILT_IN[cell], x, (h0,), weights, Walk())
        assert_close("states", got.states[0], want.states[0], tolerance(problem, backward=False))
        back = chosen.bptt(BUILT_IN[cell], x, weights, got, d_output, (d_state,), Walk())
    if np.isnan(bad):
        assert np.isnan(back.weights["weight_ih_l0"][:, 1]).any()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_arguments_are_left_alone(schedule: str) -> None:
    problem, cell = named("odd primes"), BUILT_IN["rnn_tanh"]
    arrays = data(problem)
    copies = data(problem)
    chosen = kernel("halide", schedule)
    tape = chosen.forward(cell, arrays.x, (arrays.h0,), arrays.weights, Walk())
    states = tape.states[0].copy()
    chosen.bptt(cell, arrays.x, arrays.weights, tape, arrays.d_output, (arrays.d_state,), Walk())
    np.testing.assert_array_equal(tape.states[0], states)
    for array, copy in zip(_flat(arrays), _flat(copies), strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("schedule", ["naive", "vectorized", "parallel", "tiled"])
def test_the_rungs_of_the_ladder_are_built_for_tanh_alone(schedule: str) -> None:
    x, h0, weights, _, _ = data(named("odd primes"))
    with pytest.raises(ValueError, match=rf"schedule: expected 'tuned' .*halide-jit.* for lstm.*got '{schedule}'"):
        kernel("halide", schedule).forward(BUILT_IN["lstm"], x, (h0, h0), weights, Walk())


def _numpy() -> Backend:
    with rnn.backend.using("numpy") as chosen:
        return chosen


def _wide(weights: Mapping[str, Array]) -> dict[str, Array]:
    return {name: weight.astype(np.float64) for name, weight in weights.items()}


def _flat(arrays: Data) -> list[Array]:
    return [arrays.x, arrays.h0, *arrays.weights.values(), arrays.d_output, arrays.d_state]
