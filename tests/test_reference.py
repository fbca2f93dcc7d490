"""The NumPy reference, on which all other checks stand, against the definition of a derivative and itself.

So is the fast NumPy backend: it answers where the kernels have nothing to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from differences import central_differences, check_gradients
from numpy.testing import assert_allclose
from problems import PROBLEMS, SMALL, Problem, data, named
from reference import ReferenceBackend

import rnn
from rnn.baselines import cells, recurrence
from rnn.baselines.cells import Array, States


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
    assert (run.output.shape, run.state.shape) == (d_output.shape, h0.shape)
    assert (gradients.x.shape, gradients.h0.shape) == (x.shape, h0.shape)
    assert {n: g.shape for n, g in gradients.weights.items()} == {n: w.shape for n, w in layer.weights.items()}
    for array in (run.output, run.state, gradients.x, gradients.h0, *gradients.weights.values()):
        assert array.dtype == problem.dtype


@both
def test_one_step_by_hand() -> None:
    layer = rnn.RNN(1, 1, 1, dtype="float64")
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
        lambda d, before, after, kept, through: ((delta := d[0] * (1 - after[0] ** 2)), delta, (0 * delta,)),
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


class Lstm:
    """h, c and the gates i, f, g, o: the engine must serve a cell with two states and four gates as it is.

    Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000, as torch.nn.LSTM.
    """

    kept = 4

    def step(self, from_input: Array, from_hidden: Array, before: Sequence[Array]) -> tuple[States, States]:
        gates = np.split(from_input + from_hidden, 4, axis=1)
        i, f, o = (cells.sigmoid(gates[index]) for index in (0, 1, 3))
        g = np.tanh(gates[2])
        c = f * before[1] + i * g
        return (o * np.tanh(c), c), (i, f, g, o)

    def step_back(
        self,
        d_after: Sequence[Array],
        before: Sequence[Array],
        after: Sequence[Array],
        kept: Sequence[Array],
        through_weights: Callable[[Array], Array],
    ) -> tuple[Array, Array, States]:
        i, f, g, o = kept
        squashed = np.tanh(after[1])
        d_h, d_c = d_after[0], d_after[1] + d_after[0] * o * (1 - squashed**2)
        delta = np.concatenate(
            [
                d_c * g * i * (1 - i),
                d_c * before[1] * f * (1 - f),
                d_c * i * (1 - g**2),
                d_h * squashed * o * (1 - o),
            ],
            axis=1,
        )
        return delta, delta, (through_weights(delta), d_c * f)


def test_the_engine_takes_a_cell_with_several_gates_and_states(rng: np.random.Generator) -> None:
    T, N, I, H, O = 5, 3, 2, 4, 3
    shapes = {
        "weight_ih_l0": (4 * H, I),
        "weight_hh_l0": (4 * H, H),
        "bias_ih_l0": (4 * H,),
        "bias_hh_l0": (4 * H,),
    }
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    weights |= {"weight_ho": rng.standard_normal((O, H)), "bias_o": rng.standard_normal(O)}
    x, d_output = rng.standard_normal((T, N, I)), rng.standard_normal((T, N, O))
    initial = (rng.standard_normal((N, H)), rng.standard_normal((N, H)))
    d_last = (rng.standard_normal((N, H)), rng.standard_normal((N, H)))

    def loss() -> float:
        states, _, output = recurrence.forward(Lstm(), x, initial, weights)
        return float((output * d_output).sum() + sum((s[-1] * d).sum() for s, d in zip(states, d_last, strict=True)))

    states, kept, _ = recurrence.forward(Lstm(), x, initial, weights)
    back = recurrence.bptt(Lstm(), x, weights, states, kept, d_output, d_last)
    for name, array, gradient in [
        ("x", x, back.x),
        ("h0", initial[0], back.initial[0]),
        ("c0", initial[1], back.initial[1]),
        *((name, weights[name], back.weights[name]) for name in weights),
    ]:
        assert_allclose(gradient, central_differences(loss, array), rtol=1e-6, atol=1e-8, err_msg=name)
