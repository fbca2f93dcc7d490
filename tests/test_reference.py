"""The NumPy reference, on which all other checks stand, against the definition of a derivative and itself.

So is the fast NumPy backend: it answers where the kernels have nothing to compute.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from differences import central_differences, check_gradients, each
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from problems import PROBLEMS, SMALL, Problem, data, named
from reference import ReferenceBackend
from tolerance import assert_close, tolerance

import rnn
from rnn.baselines import cells, recurrence
from rnn.baselines.cells import CELLS, Array, Cell


@pytest.fixture(autouse=True)
def _backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference, or in a test that is marked `both` also NumPy's backend."""
    if getattr(request, "param", "reference") == "numpy":
        rnn.backend.use("numpy")
    else:
        monkeypatch.setattr(rnn.backend, "_default", ReferenceBackend())


both = pytest.mark.parametrize("_backend", ["reference", "numpy"], indirect=True)


@both
@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_gradients_are_central_differences(problem: Problem) -> None:
    check_gradients(problem)


@both
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_shapes_and_dtypes(problem: Problem) -> None:
    layer = problem.layer()
    x, h0, layer.weights, d_output, d_state = data(problem)
    run = layer.forward(x, h0)
    gradients = layer.bptt(run, d_output, d_state)
    assert (run.output.shape, *(state.shape for state in each(run.state))) == (d_output.shape, h0.shape)
    assert (gradients.x.shape, gradients.h0.shape) == (x.shape, h0.shape)
    assert {n: g.shape for n, g in gradients.weights.items()} == {n: w.shape for n, w in layer.weights.items()}
    for array in (run.output, *each(run.state), gradients.x, gradients.h0, *gradients.weights.values()):
        assert array.dtype == problem.dtype


@both
def test_one_step_by_hand() -> None:
    layer = rnn.RNN(1, 1, output_size=1, dtype="float64")
    values = {
        "weight_ih_l0": 2,
        "weight_hh_l0": 3,
        "bias_ih_l0": 5,
        "bias_hh_l0": 7,
        "weight_ho": 11,
        "bias_o": 13,
    }
    layer.weights = {name: np.full(layer.weights[name].shape, value / 100) for name, value in values.items()}
    run = layer.forward(np.full((1, 1, 1), 0.5), np.full((1, 1), 0.25))
    h = np.tanh(0.02 * 0.5 + 0.05 + 0.03 * 0.25 + 0.07)
    assert_allclose(run.state, [[h]], rtol=1e-15)
    assert_allclose(run.output, [[[0.11 * h + 0.13]]], rtol=1e-15)


@both
@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_sigmoid", "rnn_relu"])
def test_batch_is_a_stack_of_single_lanes(cell: str) -> None:
    problem = named("odd primes")._replace(cell=cell, dtype="float64")
    layer = problem.layer()
    x, h0, layer.weights, d_output, d_state = data(problem)
    run = layer.forward(x, h0)
    gradients = layer.bptt(run, d_output, d_state)
    total = {name: np.zeros_like(weight) for name, weight in layer.weights.items()}
    for lane in range(problem.N):
        one = slice(lane, lane + 1)
        single = layer.forward(x[:, one], h0[one])
        back = layer.bptt(single, d_output[:, one], d_state[one])
        assert_allclose(run.output[:, one], single.output, rtol=1e-12, atol=1e-14)
        assert_allclose(gradients.x[:, one], back.x, rtol=1e-12, atol=1e-14)
        assert_allclose(gradients.h0[one], back.h0, rtol=1e-12, atol=1e-14)
        total = {name: total[name] + back.weights[name] for name in total}
    for name, gradient in gradients.weights.items():
        assert_allclose(gradient, total[name], rtol=1e-12, atol=1e-13, err_msg=name)


@both
def test_two_pieces_with_the_state_carried_over_are_one_sequence() -> None:
    problem = named("odd primes")._replace(dtype="float64")
    layer = problem.layer()
    x, h0, layer.weights, d_output, d_state = data(problem)
    whole = layer.forward(x, h0)
    first = layer.forward(x[:3], h0)
    second = layer.forward(x[3:], first.state)
    assert_allclose(np.concatenate([first.output, second.output]), whole.output, rtol=1e-13)
    back = layer.bptt(whole, d_output, d_state)
    back_second = layer.bptt(second, d_output[3:], d_state)
    back_first = layer.bptt(first, d_output[:3], back_second.h0)
    assert_allclose(back_first.h0, back.h0, rtol=1e-12)
    for name, gradient in back.weights.items():
        assert_allclose(back_first.weights[name] + back_second.weights[name], gradient, rtol=1e-11, err_msg=name)


@both
def test_without_time_the_last_state_is_the_first() -> None:
    problem = named("no time")
    layer = problem.layer()
    x, h0, layer.weights, d_output, d_state = data(problem)
    run = layer.forward(x, h0)
    gradients = layer.bptt(run, d_output, d_state)
    np.testing.assert_array_equal(run.state, h0)
    np.testing.assert_array_equal(gradients.h0, d_state)
    assert not np.shares_memory(run.state, h0)
    assert not np.shares_memory(gradients.h0, d_state)
    assert not any(gradient.any() for gradient in gradients.weights.values())


@both
@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_sigmoid", "rnn_relu"])
def test_nan_stays_in_its_lane_and_goes_on_in_time(cell: str) -> None:
    problem = named("odd primes")._replace(cell=cell)
    layer = problem.layer()
    x, h0, layer.weights, _, _ = data(problem)
    x[2, 3, 1] = np.nan
    bad = np.isnan(layer.forward(x, h0).output)
    assert bad[2:, 3].all()
    assert bad.sum() == bad[2:, 3].size


MUTANTS: dict[str, tuple[object, str, Callable[..., object]]] = {
    "slope of tanh": (cells.CELLS["rnn_tanh"], "slope", lambda h: 1 - h),
    "no way back through W_hh": (
        cells.CELLS["rnn_tanh"],
        "step_back",
        lambda d, before, after, kept, through, vectors: ((delta := d[0] * (1 - after[0] ** 2)), (0 * delta,), {}),
    ),
    "activation unlike its slope": (cells.CELLS["rnn_tanh"], "act", lambda a: np.tanh(0.99 * a)),
    "transposed gradients": (
        recurrence,
        "rows",
        lambda a: a.swapaxes(0, 1).reshape(a.shape[0] * a.shape[1], -1),
    ),
    "bias left out": (recurrence, "affine", lambda a, weight, bias=None: a @ weight.T),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_central_differences_catch_a_wrong_reference(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, wrong = MUTANTS[mutant]
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises((AssertionError, ValueError)):
        check_gradients(named("odd primes")._replace(dtype="float64"))


# Every cell, with every option: one layer in one direction, as the engine has it


class Example(NamedTuple):
    """Random arrays: all that the engine takes, but the options."""

    x: Array
    initial: tuple[Array, ...]
    weights: dict[str, Array]
    d_output: Array
    d_last: tuple[Array, ...]


def example(cell: Cell, T: int = 4, N: int = 4, I: int = 2, H: int = 3, O: int | None = None) -> Example:
    rng = np.random.default_rng(5)
    G, diagonal = len(cell.gates), "recurrent" in cell.vectors
    shapes: dict[str, tuple[int, ...]] = {"weight_ih_l0": (G * H, I), "bias_ih_l0": (G * H,)}
    if not diagonal:
        shapes |= {"weight_hh_l0": (G * H, H), "bias_hh_l0": (G * H,)}
    shapes |= {f"{name}_l0": (H,) for name in cell.vectors}
    if O is not None:
        shapes |= {"weight_ho": (O, H), "bias_o": (O,)}
    weights: dict[str, Array] = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    x, d_output = rng.standard_normal((T, N, I)), rng.standard_normal((T, N, H if O is None else O))
    initial, d_last = (tuple(rng.standard_normal((N, H)) for _ in cell.states) for _ in range(2))
    return Example(x, initial, weights, d_output, d_last)


Options = dict[str, Any]
ENDS = np.array([2, 0, 4, 3])
"""Lengths of `example`'s four rows: in no order, one of them nothing, one whole."""


def reverse(cell: Cell) -> Options:
    return {"reverse": True}


def lengths(cell: Cell) -> Options:
    return {"lengths": ENDS}


def reset(cell: Cell) -> Options:
    return {"reset": np.random.default_rng(6).random((4, 4)) < 0.3}


def mask(cell: Cell) -> Options:
    return {"recurrent_mask": np.random.default_rng(7).choice([0, 2.0], (4, 3))}


def zoneout(cell: Cell) -> Options:
    """What is drawn, and between."""
    rng = np.random.default_rng(8)
    return {"zoneout": [rng.choice([0, 1, 0.3], (4, 4, 3)) for _ in cell.states]}


def zoneout_of_the_last(cell: Cell) -> Options:
    """One state's alone, in evaluation."""
    return {"zoneout": [*[None for _ in cell.states[1:]], 0.3]}


def everything(cell: Cell) -> Options:
    return lengths(cell) | reset(cell) | mask(cell) | zoneout(cell)


def everything_in_reverse(cell: Cell) -> Options:
    return everything(cell) | reverse(cell)


OPTIONS: dict[str, Callable[[Cell], Options]] = {
    "none": lambda cell: {},
    "reverse": reverse,
    "lengths": lengths,
    "reset": reset,
    "recurrent mask": mask,
    "zoneout": zoneout,
    "zoneout of the last": zoneout_of_the_last,
    "everything": everything,
    "everything in reverse": everything_in_reverse,
}


def run_and_back(
    cell: Cell, given: Example, options: Options, engine: ModuleType = recurrence
) -> tuple[recurrence.Forward, recurrence.Backward]:
    x, initial, weights, d_output, d_last = given
    run = engine.forward(cell, x, initial, weights, **options)
    return run, engine.bptt(cell, x, weights, run.states, run.kept, d_output, d_last, **options)


def beyond(ends: NDArray[np.integer[Any]], a: Array) -> Array:
    """a (T, N, any), with NaN past the end of each row."""
    a = a.copy()
    for n, end in enumerate(ends):
        a[end:, n] = np.nan
    return a


def part(given: Example, steps: slice, row: int) -> Example:
    """Some steps of one row."""
    x, initial, weights, d_output, d_last = given
    one = slice(row, row + 1)
    return Example(x[steps, one], tuple(s[one] for s in initial), weights, d_output[steps, one],
                   tuple(d[one] for d in d_last))  # fmt: skip


def near(got: Array, want: Array, what: str = "") -> None:
    assert_allclose(got, want, rtol=1e-11, atol=1e-13, err_msg=what)


def check_central_differences(cell: Cell, options: Options, engine: ModuleType = recurrence) -> None:
    """For every weight, x, and the initial states; with NaN where nobody may look."""
    given = example(cell, O=2)
    seen = given.d_output
    if "lengths" in options:
        given = given._replace(x=beyond(ENDS, given.x), d_output=beyond(ENDS, given.d_output))
        seen = np.nan_to_num(given.d_output)
    x, initial, weights, _, d_last = given
    _, back = run_and_back(cell, given, options, engine)

    def loss() -> float:
        run = engine.forward(cell, x, initial, weights, **options)
        from_last = sum(float((s * d).sum()) for s, d in zip(run.last, d_last, strict=True))
        return float((run.output * seen).sum()) + from_last

    assert back.weights.keys() == weights.keys()
    pairs = {name: (weight, back.weights[name]) for name, weight in weights.items()} | {"x": (x, back.x)}
    pairs |= {f"{name}0": (initial[k], back.initial[k]) for k, name in enumerate(cell.states)}
    for name, (array, gradient) in pairs.items():
        assert_allclose(gradient, central_differences(loss, array), rtol=1e-6, atol=1e-8, err_msg=name)


ByGate = Mapping[str, Array]
Recurrent = Callable[[str, Array], Array]


def logistic(a: Array) -> Array:
    half: Array = np.tanh(a / 2) / 2
    return half + 0.5


def lstm(x: ByGate, u: Recurrent, p: ByGate, h: Array, c: Array) -> tuple[Array, ...]:
    i = logistic(x["i"] + u("i", h) + p["i"] * c)
    f = logistic(x["f"] + u("f", h) + p["f"] * c)
    new = f * c + i * np.tanh(x["g"] + u("g", h))
    return logistic(x["o"] + u("o", h) + p["o"] * new) * np.tanh(new), new


def lstm_coupled(x: ByGate, u: Recurrent, p: ByGate, h: Array, c: Array) -> tuple[Array, ...]:
    i = logistic(x["i"] + u("i", h) + p["i"] * c)
    new = (1 - i) * c + i * np.tanh(x["g"] + u("g", h))
    return logistic(x["o"] + u("o", h) + p["o"] * new) * np.tanh(new), new


def gru(x: ByGate, u: Recurrent, p: ByGate, h: Array) -> tuple[Array, ...]:
    z = logistic(x["z"] + u("z", h))
    return ((1 - z) * np.tanh(x["n"] + logistic(x["r"] + u("r", h)) * u("n", h)) + z * h,)


def gru_reset_before(x: ByGate, u: Recurrent, p: ByGate, h: Array) -> tuple[Array, ...]:
    z = logistic(x["z"] + u("z", h))
    return ((1 - z) * np.tanh(x["n"] + u("n", logistic(x["r"] + u("r", h)) * h)) + z * h,)


def mgu(x: ByGate, u: Recurrent, p: ByGate, h: Array) -> tuple[Array, ...]:
    f = logistic(x["f"] + u("f", h))
    return ((1 - f) * h + f * np.tanh(x["n"] + u("n", f * h)),)


EQUATIONS: dict[str, tuple[str, str, Callable[..., tuple[Array, ...]]]] = {
    "rnn_tanh": ("h", "", lambda x, u, p, h: (np.tanh(x["h"] + u("h", h)),)),
    "rnn_sigmoid": ("h", "", lambda x, u, p, h: (logistic(x["h"] + u("h", h)),)),
    "rnn_relu": ("h", "", lambda x, u, p, h: (np.maximum(0, x["h"] + u("h", h)),)),
    "lstm": ("i f g o", "", lstm),
    "lstm_peephole": ("i f g o", "peephole_i peephole_f peephole_o", lstm),
    "lstm_coupled": ("i g o", "", lstm_coupled),
    "lstm_peephole_coupled": ("i g o", "peephole_i peephole_o", lstm_coupled),
    "gru": ("r z n", "", gru),
    "gru_reset_before": ("r z n", "", gru_reset_before),
    "mgu": ("f n", "", mgu),
    "indrnn_tanh": ("h", "recurrent", lambda x, u, p, h: (np.tanh(x["h"] + p["recurrent"] * h),)),
    "indrnn_relu": ("h", "recurrent", lambda x, u, p, h: (np.maximum(0, x["h"] + p["recurrent"] * h),)),
}
"""Of each cell the gates in order, the vectors, and the equations once more, for one lane, whose arrays are (H,)."""


def check_equations(name: str, cell: Cell, engine: ModuleType = recurrence) -> None:
    gates, vectors, step = EQUATIONS[name]
    assert (list(cell.gates), list(cell.vectors)) == (gates.split(), vectors.split())
    given = example(cell)
    w, run = given.weights, engine.forward(cell, given.x, given.initial, given.weights)
    place = {gate: slice(3 * k, 3 * k + 3) for k, gate in enumerate(gates.split())}
    p = dict.fromkeys("ifo", np.zeros(3)) | {name.removeprefix("peephole_"): w[f"{name}_l0"] for name in cell.vectors}
    for lane in range(4):
        states = tuple(first[lane] for first in given.initial)
        for t in range(4):
            x = {gate: w["weight_ih_l0"][at] @ given.x[t, lane] + w["bias_ih_l0"][at] for gate, at in place.items()}
            states = step(
                x, lambda gate, v: w["weight_hh_l0"][place[gate]] @ v + w["bias_hh_l0"][place[gate]], p, *states
            )
            for got, want in zip(run.states, states, strict=True):
                near(got[t + 1, lane], want, f"step {t}")
            near(run.output[t, lane], states[0])


def check_lengths(cell: Cell, engine: ModuleType = recurrence) -> None:
    """Rows of several lengths are rows that end there, each by itself."""
    for O, options in [(2, {}), (None, {"reverse": True})]:
        given = example(cell, O=O)
        hidden = given._replace(x=beyond(ENDS, given.x), d_output=beyond(ENDS, given.d_output))
        run, back = run_and_back(cell, hidden, {"lengths": ENDS, **options}, engine)
        total = {name: np.zeros_like(weight) for name, weight in given.weights.items()}
        for n, end in enumerate(ENDS):
            alone, alone_back = run_and_back(cell, part(given, slice(end), n), options, engine)
            of_steps = [(run.output, alone.output), (back.x, alone_back.x), *zip(run.kept, alone.kept, strict=True)]
            for ahead, pairs in [(0, of_steps), (1, zip(run.states, alone.states, strict=True))]:
                for got, want in pairs:
                    near(got[: end + ahead, n], want[:, 0])
                    assert not got[end + ahead :, n].any()
            for got, want in zip((*run.last, *back.initial), (*alone.last, *alone_back.initial), strict=True):
                near(got[n], want[0])
            total = {name: total[name] + alone_back.weights[name] for name in total}
        for name, want in total.items():
            near(back.weights[name], want, name)


def check_reverse(cell: Cell, engine: ModuleType = recurrence) -> None:
    """In reverse is forward over the sequence turned round."""
    given = example(cell, O=2)
    run, back = run_and_back(cell, given, {"reverse": True}, engine)
    turned = given._replace(x=given.x[::-1], d_output=given.d_output[::-1])
    want, want_back = run_and_back(cell, turned, {}, engine)
    for got, expected in zip((run.output, *run.states, back.x), (want.output, *want.states, want_back.x), strict=True):
        near(got[::-1], expected)
    for got, expected in zip((*run.last, *back.initial), (*want.last, *want_back.initial), strict=True):
        near(got, expected)
    for name, gradient in want_back.weights.items():
        near(back.weights[name], gradient, name)


def check_reset(cell: Cell, engine: ModuleType = recurrence) -> None:
    """Row n, reset before step n, is two sequences, of which the second starts from zeros."""
    given = example(cell)
    zeros = tuple(np.zeros((1, 3)) for _ in cell.states)
    for options in ({}, {"reverse": True}):
        run = engine.forward(cell, given.x, given.initial, given.weights, reset=np.eye(4, dtype=bool), **options)
        for n in range(4):
            one, two = (slice(n + 1, 4), slice(n + 1)) if options else (slice(n), slice(n, 4))
            x, initial, weights, _, _ = part(given, one, n)
            before = engine.forward(cell, x, initial, weights, **options)
            after = engine.forward(cell, part(given, two, n).x, zeros, weights, **options)
            near(run.output[one, n], before.output[:, 0])
            near(run.output[two, n], after.output[:, 0])
            for got, want in zip(run.last, after.last, strict=True):
                near(got[n], want[0])


def check_mask(cell: Cell, engine: ModuleType = recurrence) -> None:
    """A unit that is masked is heard by none: its column of the recurrent weights is multiplied."""
    given = example(cell)
    drop = mask(cell)["recurrent_mask"]
    run = engine.forward(cell, given.x, given.initial, given.weights, recurrent_mask=drop)
    for n in range(4):
        x, initial, weights, _, _ = part(given, slice(4), n)
        name = "recurrent_l0" if "recurrent" in cell.vectors else "weight_hh_l0"
        want = engine.forward(cell, x, initial, {**weights, name: weights[name] * drop[n]})
        near(run.output[:, n], want.output[:, 0])


def check_zoneout(cell: Cell, engine: ModuleType = recurrence) -> None:
    """Between the old state and the one computed, step by step."""
    for options in (zoneout(cell), zoneout_of_the_last(cell)):
        x, states, weights, _, _ = example(cell)
        run = engine.forward(cell, x, states, weights, **options)
        for t in range(4):
            computed = engine.forward(cell, x[t : t + 1], states, weights).last
            zones = [zone if np.ndim(zone) == 0 else zone[t] for zone in options["zoneout"]]
            states = tuple(
                new if zone is None else zone * old + (1 - zone) * new
                for zone, old, new in zip(zones, states, computed, strict=True)
            )
            for got, want in zip(run.states, states, strict=True):
                near(got[t + 1], want)
            near(run.output[t], states[0])


CHECKS = [check_lengths, check_reverse, check_reset, check_mask, check_zoneout]


def test_the_cells_are_those_whose_equations_are_here() -> None:
    assert CELLS.keys() == EQUATIONS.keys()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_every_cell_and_option_are_central_differences(name: str, options: str) -> None:
    check_central_differences(CELLS[name], OPTIONS[options](CELLS[name]))


@pytest.mark.parametrize("name", CELLS)
def test_steps_follow_the_equations(name: str) -> None:
    check_equations(name, CELLS[name])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", CELLS)
def test_options_mean_what_they_say(name: str, check: Callable[[Cell], None]) -> None:
    check(CELLS[name])


@pytest.mark.parametrize("name", CELLS)
def test_float32_stays_float32_and_near(name: str) -> None:
    cell = CELLS[name]
    given, options = example(cell, O=2), everything(cell)
    x, initial, weights, d_output, d_last = given
    narrow = Example(
        x.astype(np.float32),
        tuple(s.astype(np.float32) for s in initial),
        {name: weight.astype(np.float32) for name, weight in weights.items()},
        d_output.astype(np.float32),
        tuple(d.astype(np.float32) for d in d_last),
    )
    problem = Problem(name, T=4, N=4, I=2, H=3, O=2)
    (run, back), (want, want_back) = run_and_back(cell, narrow, options), run_and_back(cell, given, options)
    for got, exact in zip((*run.states, *run.kept, run.output, *run.last),
                          (*want.states, *want.kept, want.output, *want.last), strict=True):  # fmt: skip
        assert got.dtype == np.float32
        assert_close("forward", got, exact, tolerance(problem, backward=False))
    for got, exact in zip((back.x, *back.initial, *back.weights.values()),
                          (want_back.x, *want_back.initial, *want_back.weights.values()), strict=True):  # fmt: skip
        assert got.dtype == np.float32
        assert_close("backward", got, exact, tolerance(problem, backward=True))


@pytest.mark.parametrize("sizes", [(0, 2, 3, 2), (2, 0, 3, 2), (2, 3, 0, 2), (2, 3, 2, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("name", CELLS)
def test_any_size_may_be_0(name: str, sizes: tuple[int, int, int, int]) -> None:
    T, N, I, H = sizes
    cell, given = CELLS[name], example(CELLS[name], *sizes)
    for options in (
        {},
        {
            "reverse": True,
            "lengths": np.full(N, T),
            "reset": np.ones((T, N), bool),
            "recurrent_mask": np.ones((N, H)),
            "zoneout": [0.5 for _ in cell.states],
        },
    ):
        run, back = run_and_back(cell, given, options)
        assert (run.output.shape, back.x.shape) == ((T, N, H), (T, N, I))
        assert {name: g.shape for name, g in back.weights.items()} == {n: w.shape for n, w in given.weights.items()}
        if T == 0:
            for got, want in zip((*run.last, *back.initial), (*given.initial, *given.d_last), strict=True):
                assert_array_equal(got, want)


@pytest.mark.parametrize("name", CELLS)
def test_arguments_are_left_alone(name: str) -> None:
    cell, given, same = CELLS[name], example(CELLS[name], O=2), example(CELLS[name], O=2)
    run_and_back(cell, given, everything(cell))
    for before, after in zip(same, given, strict=True):
        np.testing.assert_equal(after, before)


def check_all(name: str, cell: Cell, engine: ModuleType) -> None:
    check_equations(name, cell, engine)
    for check in CHECKS:
        check(cell, engine)
    for options in (zoneout_of_the_last, everything, everything_in_reverse):
        check_central_differences(cell, options(cell), engine)


def rewritten(module: ModuleType, old: str, new: str) -> ModuleType:
    """The module with a piece of its text changed, where that piece stands first."""
    text = inspect.getsource(module)
    assert old in text, f"{old!r} is not in {module.__name__}: the mutant needs its new wording"
    other = ModuleType(module.__name__)
    other.__package__ = module.__package__
    exec(compile(text.replace(old, new, 1), f"{module.__name__}, mutant", "exec", dont_inherit=True), other.__dict__)
    return other


MISTAKES: list[tuple[str, str, str]] = [
    ("lstm", '"ifgo"', '"figo"'),
    ("lstm", "c = f * c + i * g", "c = f * c + g"),
    ("lstm", "o * tanh(c), c", "o * c, c"),
    ("lstm", "d_c * g * sigmoid_slope(i)", "d_c * g * sigmoid_slope(f)"),
    ("lstm", "d_c + d_h * o * tanh_slope(squashed)", "d_h * o * tanh_slope(squashed)"),
    ("lstm", "d_c_before = d_c * f", "d_c_before = d_c"),
    ("lstm_coupled", "f = 1 - i if", "f = i if"),
    ("lstm_coupled", "(g - c_before)", "g"),
    ("lstm_peephole", 'o = sigmoid(a["o"] + peep("o", c, vectors))', 'o = sigmoid(a["o"])'),
    ("lstm_peephole", ' + peep("o", d["o"], vectors)', ""),
    ("lstm_peephole", 'peep("i", d["i"], vectors)', "0"),
    ("lstm_peephole", 'd_c_before + peep("f", d["f"], vectors)', "d_c_before"),
    ("lstm_peephole", '"peephole_o": c}', '"peephole_o": c_before}'),
    ("lstm_peephole_coupled", '"peephole_i": c_before', '"peephole_i": c'),
    ("gru", 'gates = "rzn"', 'gates = "zrn"'),
    ("gru", "x_r, x_z, x_n = split", "x_z, x_r, x_n = split"),
    ("gru", "(1 - z) * n + z * h", "z * n + (1 - z) * h"),
    ("gru", "d_n * kept[3]", "d_n"),
    ("gru", "join(d_r, d_z, d_n * r)", "join(d_r, d_z, d_n)"),
    ("gru", "(h - n) * sigmoid_slope(z)", "(n - h) * sigmoid_slope(z)"),
    ("gru_reset_before", 'from_hidden(r * h, "n")', 'from_hidden(h, "n")'),
    ("gru_reset_before", 'through_weights(d_n, r * h, "n")', 'through_weights(d_n, h, "n")'),
    ("gru_reset_before", "d_reset * r", "d_reset"),
    ("gru_reset_before", 'join(d_r, d_z), h, "rz"', 'join(d_z, d_r), h, "rz"'),
    ("mgu", "(1 - f) * h + f * n", "f * h + (1 - f) * n"),
    ("mgu", 'from_hidden(f * h, "n")', 'from_hidden(h, "n")'),
    ("mgu", "d_h * (n - h) + d_gated * h", "d_h * (n - h)"),
    ("mgu", "+ d_gated * f", "+ d_gated"),
    ("rnn_sigmoid", "return h * (1 - h)", "return h * (1 + h)"),
    ("rnn_relu", "np.maximum(a, 0)", "np.abs(a)"),
    ("indrnn_tanh", "through_weights(delta, before[0])", "through_weights(delta, after[0])"),
]
MISTAKES_OF_THE_ENGINE: list[tuple[str, str, str]] = [
    ("rnn_tanh", "np.arange(T)[:, None] < end", "np.arange(T)[:, None] <= end"),
    ("rnn_tanh", "range(T)[::-1], 1, 0, end", "range(T)[::-1], 1, 0, np.full(N, T)"),
    ("lstm", "state[course.last, np.arange(N)]", "state[-1]"),
    ("lstm", "runs & ~reset[..., None]", "runs"),
    ("lstm", "np.where(course.carries[t], d, 0), past)", "d, past)"),
    ("lstm", "np.where(course.carries[t], d, 0), past)", "np.where(course.carries[t], d, 0), 0)"),
    ("gru", "d_after = [np.where(course.runs[t], d, 0) for d in d_states]", "d_after = list(d_states)"),
    ("gru", "d_output = course.within(x), course.within(d_output)", "d_output = course.within(x), d_output"),
    ("gru", "x, d_output = course.within(x)", "x, d_output = x"),
    ("rnn_tanh", "kept, course.within(output), last", "kept, output, last"),
    ("lstm", "zone[t] * old + (1 - zone[t]) * new", "zone[t] * new + (1 - zone[t]) * old"),
    ("lstm", "zone[t] * old", "zone[t - 1] * old"),
    ("lstm", "(1 - zone[t]) * d for d, zone", "d for d, zone"),
    ("gru", "d + zone[t] * past", "d"),
    ("lstm", "(hidden, *others) if zoneout is None else kept[cell.kept :]", "(hidden, *others)"),
    ("mgu", "return self._masked(d @", "return (d @"),
    ("gru_reset_before", "operand = self._masked(operand)\n        if self._diagonal is not None:\n            grad",
     "if self._diagonal is not None:\n            grad"),
    ("indrnn_tanh", "self._masked(self._diagonal * d)", "self._diagonal * d"),
    ("indrnn_tanh", "(d * operand).sum(axis=(0, 1))", "d.sum(axis=(0, 1))"),
    ("gru_reset_before", "slice(first * H, (first + len(gates)) * H)", "slice(first * H, (first + 1) * H)"),
    ("gru", "gradients[\"bias_hh_l0\"][self._rows(gates)] = d.sum", "gradients[\"bias_hh_l0\"][...] = 0 * d.sum"),
    ("lstm_peephole", "gradients[f\"{name}_l0\"] += d.sum", "gradients[f\"{name}_l0\"] = d.sum"),
    ("rnn_tanh", "[state[t] for state in computed]", "[state[t - 1] for state in computed]"),
]  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_the_text_as_it_stands_passes(name: str) -> None:
    check_all(name, rewritten(cells, "", "").CELLS[name], rewritten(recurrence, "", ""))


@pytest.mark.parametrize(("name", "old", "new"), MISTAKES)
def test_a_mistake_in_a_cell_is_caught(name: str, old: str, new: str) -> None:
    with pytest.raises((AssertionError, ValueError, KeyError)):
        check_all(name, rewritten(cells, old, new).CELLS[name], recurrence)


@pytest.mark.parametrize(("name", "old", "new"), MISTAKES_OF_THE_ENGINE)
def test_a_mistake_in_the_engine_is_caught(name: str, old: str, new: str) -> None:
    engine = rewritten(recurrence, old, new)
    with pytest.raises((AssertionError, ValueError)):
        check_all(name, CELLS[name], engine)
