"""The layer: weights as PyTorch has them, runs that stay right, and any array that NumPy can describe."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from differences import each
from layer_checks import example, of
from problems import Array, data, named
from tolerance import assert_close, tolerance

import rnn
from rnn._backends.base import Gradients, Tape, Walk
from rnn.cells import CellEquations


def test_weights_have_pytorchs_names_shapes_and_start() -> None:
    layer = rnn.RNN(3, 16, output_size=5, seed=0)
    assert {name: weight.shape for name, weight in layer.weights.items()} == {
        "weight_ih_l0": (16, 3),
        "weight_hh_l0": (16, 16),
        "bias_ih_l0": (16,),
        "bias_hh_l0": (16,),
        "weight_ho": (5, 16),
        "bias_o": (5,),
    }
    everything = np.concatenate([weight.ravel() for weight in layer.weights.values()])
    assert everything.dtype == np.float32
    assert np.abs(everything).max() <= 1 / math.sqrt(16)
    assert np.abs(everything).max() > 0.9 / math.sqrt(16)
    assert abs(everything.mean()) < 0.03


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"bias": False}, ["weight_ih_l0", "weight_hh_l0"]),
        ({"bias": False, "output_size": 2}, ["weight_ih_l0", "weight_hh_l0", "weight_ho"]),
        (
            {"output_size": 0},
            ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_ho", "bias_o"],
        ),
    ],
)
def test_options_choose_the_weights(arguments: dict[str, Any], names: list[str]) -> None:
    assert list(rnn.RNN(3, 4, **arguments).weights) == names


def test_a_seed_gives_the_same_weights_again() -> None:
    one, same, other = (rnn.RNN(3, 4, output_size=2, seed=seed) for seed in (7, 7, 8))
    for name, weight in one.weights.items():
        np.testing.assert_array_equal(weight, same.weights[name])
        assert not np.array_equal(weight, other.weights[name])
    assert rnn.RNN(3, 4).weights["bias_ih_l0"].tolist() != rnn.RNN(3, 4).weights["bias_ih_l0"].tolist()


def test_config_makes_the_same_layer_again() -> None:
    layer = rnn.RNN(3, 4, output_size=2, nonlinearity="relu", bias=False, dtype="float64")
    assert layer.config() == {
        "layer": "RNN",
        "input_size": 3,
        "hidden_size": 4,
        "num_layers": 1,
        "bidirectional": False,
        "output_size": 2,
        "bias": False,
        "dropout": 0.0,
        "recurrent_dropout": 0.0,
        "zoneout": 0.0,
        "merge": "concat",
        "reverse": False,
        "dtype": "float64",
        "precision": "float32",
        "nonlinearity": "relu",
    }
    assert repr(layer).startswith("RNN(input_size=3, hidden_size=4, num_layers=1, bidirectional=False, output_size=2, ")


CONFIGURED = [
    rnn.RNN(3, 4, 2, True, nonlinearity="relu", merge="sum", output_size=5),
    rnn.LSTM(3, 4, 2, peepholes=True, coupled=True, dropout=0.1),
    rnn.LSTM(3, 4, zoneout=(0.1, 0.2)),
    rnn.LSTM(3, 4, reverse=True, recurrent_dropout=0.5, dtype="float64"),
    rnn.GRU(3, 4, reset_after=False, bias=False),
    rnn.MGU(3, 4),
    rnn.IndRNN(3, 4, nonlinearity="tanh"),
]


@pytest.mark.parametrize("layer", CONFIGURED, ids=repr)
def test_a_configuration_and_weights_make_the_same_layer_again(layer: rnn.Layer) -> None:
    config = json.loads(json.dumps(layer.config()))
    again = rnn.Layer.from_weights(config, layer.state_dict())
    assert type(again) is type(layer)
    assert again.cell is layer.cell
    assert (again.config(), repr(again)) == (layer.config(), repr(layer))
    given = {name: value for name, value in config.items() if name != "layer"}
    assert type(layer)(**given).config() == layer.config()
    x = np.ones((4, 2, 3), layer.dtype)
    np.testing.assert_array_equal(again.forward(x).output, layer.forward(x).output)


def test_a_state_dict_is_a_copy() -> None:
    layer, other = rnn.LSTM(3, 4, seed=0), rnn.LSTM(3, 4, seed=1)
    state_dict = layer.state_dict()
    other.load_state_dict(state_dict)
    for name, weight in layer.weights.items():
        state_dict[name][...] = 7
        np.testing.assert_array_equal(weight, other.weights[name])
        assert not np.shares_memory(weight, other.weights[name])


def test_initial_state_is_zero_by_default() -> None:
    layer = named("odd primes").layer()
    x, h0, *_ = data(named("odd primes"))
    np.testing.assert_array_equal(layer.forward(x).output, layer.forward(x, np.zeros_like(h0)).output)
    assert not np.array_equal(layer.forward(x).output, layer.forward(x, h0).output)


def test_gradient_of_the_last_state_is_zero_by_default() -> None:
    layer = named("odd primes").layer()
    x, h0, _, d_output, d_state = data(named("odd primes"))
    run = layer.forward(x, h0)
    without, zeros = layer.bptt(run, d_output), layer.bptt(run, d_output, np.zeros_like(d_state))
    np.testing.assert_array_equal(without.h0, zeros.h0)
    assert not np.array_equal(without.h0, layer.bptt(run, d_output, d_state).h0)


def test_without_readout_the_output_is_the_state() -> None:
    layer = named("no readout").layer()
    run = layer.forward(data(named("no readout")).x)
    np.testing.assert_array_equal(run.output[-1], run.state)


def test_a_run_outlives_the_next_optimizer_step() -> None:
    layer = named("odd primes").layer()
    x, h0, _, d_output, _ = data(named("odd primes"))
    run = layer.forward(x, h0)
    before = layer.bptt(run, d_output)
    rnn.Adam(0.1).step(layer.weights, before.weights)
    after = layer.bptt(run, d_output)
    np.testing.assert_array_equal(before.x, after.x)
    assert not np.array_equal(layer.forward(x, h0).output, run.output)


def test_bptt_twice_gives_the_same() -> None:
    layer = named("odd primes").layer()
    x, h0, _, d_output, d_state = data(named("odd primes"))
    run = layer.forward(x, h0)
    one, two = (layer.bptt(run, d_output, d_state) for _ in range(2))
    for name in one.weights:
        np.testing.assert_array_equal(one.weights[name], two.weights[name])


def test_bptt_runs_on_the_backend_that_made_the_run() -> None:
    layer = named("odd primes").layer()
    x, h0, _, d_output, _ = data(named("odd primes"))
    with rnn.backend.using("numpy"):
        run = layer.forward(x, h0)
        inside = layer.bptt(run, d_output)
    np.testing.assert_array_equal(layer.bptt(run, d_output).x, inside.x)


def _every_other(a: Array) -> Array:
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def _misaligned(a: Array) -> Array:
    buffer = np.zeros(a.nbytes + 1, np.uint8)
    view = buffer[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _last_first(a: Array) -> list[int]:
    return [a.ndim - 1, *range(a.ndim - 1)]


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "Fortran order": np.asfortranarray,
    "axes turned round in memory": lambda a: np.ascontiguousarray(np.moveaxis(a, 0, -1)).transpose(_last_first(a)),
    "part of a larger array": lambda a: np.pad(a, 3)[tuple(slice(3, 3 + n) for n in a.shape)],
    "every other element": _every_other,
    "backwards in time": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "backwards in the last axis": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "misaligned": _misaligned,
    "subclass of array": lambda a: a.view(np.recarray),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["odd primes", "rows of a picture", "one unit, many lanes"])
def test_any_layout_in_memory_gives_the_same_result(layout: str, name: str) -> None:
    layer = named(name).layer()
    plain = data(named(name))
    x, h0, weights, d_output, d_state = plain
    change = LAYOUTS[layout]
    layer.weights = weights
    run = layer.forward(x, h0)
    want = layer.bptt(run, d_output, d_state)

    layer.weights = {key: change(weight) for key, weight in weights.items()}
    again = layer.forward(change(x), change(h0))
    got = layer.bptt(again, change(d_output), change(d_state))
    allowed = tolerance(named(name), backward=True)  # NumPy's products round otherwise for other strides
    assert_close("output", again.output, run.output, allowed)
    for state, wanted in zip(each(again.state), each(run.state), strict=True):
        assert_close("state", state, wanted, allowed)
    for key, gradient in {**got.weights, "x": got.x, "h0": got.h0}.items():
        assert_close(key, gradient, {**want.weights, "x": want.x, "h0": want.h0}[key], allowed)


class Strict:
    """The NumPy backend, which first checks that it gets what `_backends/base.py` promises."""

    name = "strict"
    schedule: str | None = None

    def __init__(self) -> None:
        with rnn.backend.using("numpy") as self.inner:
            pass

    def forward(
        self,
        cell: CellEquations,
        x: Array,
        initial: Sequence[Array],
        weights: Mapping[str, Array],
        walk: Walk,
        keep: bool = True,
    ) -> Tape:
        self.check(x, *initial, *weights.values())
        return self.inner.forward(cell, x, initial, weights, walk, keep)

    def bptt(
        self,
        cell: CellEquations,
        x: Array,
        weights: Mapping[str, Array],
        tape: Tape,
        d_output: Array,
        d_last: Sequence[Array | None],
        walk: Walk,
        of_x: bool = True,
        of_state: bool = True,
    ) -> Gradients:
        self.check(x, d_output, *(d for d in d_last if d is not None), *weights.values())
        assert len(d_last) == cell.states
        return self.inner.bptt(cell, x, weights, tape, d_output, d_last, walk, of_x, of_state)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        self.check(x, weight)
        return self.inner.linear(x, weight, bias)

    def linear_bptt(self, x: Array, weight: Array, d_output: Array) -> tuple[Array, Array, Array]:
        self.check(x, weight, d_output)
        return self.inner.linear_bptt(x, weight, d_output)

    def check(self, *arrays: Array) -> None:
        for array in arrays:
            assert type(array) is np.ndarray
            assert array.flags.aligned
            assert array.dtype == np.float32
            assert all(stride >= 0 for stride in array.strides)
            assert array.shape[-1] <= 1 or array.strides[-1] == array.itemsize


@pytest.mark.parametrize("config", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one layer", "a stack"])
@pytest.mark.parametrize("make", [rnn.RNN, rnn.LSTM])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_backend_gets_what_it_was_promised(
    layout: str, make: Callable[..., rnn.Layer], config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rnn.backend, "_default", Strict())
    change = LAYOUTS[layout]
    given = example(make, named("odd primes"), **config)
    given.layer.weights = {key: change(weight) for key, weight in given.layer.weights.items()}
    run = given.layer.forward(change(given.x), of(given.state, change))
    given.layer.bptt(run, change(given.d_output), of(given.d_state, change))


def test_broadcast_arrays_are_as_good_as_full_ones() -> None:
    problem = named("odd primes")
    layer = problem.layer()
    lane = data(problem).x[:, :1]
    spread = np.broadcast_to(lane, (problem.T, problem.N, problem.I))  # stride 0 along the batch
    want = layer.forward(spread.copy()).output
    assert_close("output", layer.forward(spread).output, want, tolerance(problem, backward=False))


def test_a_step_of_a_stream_costs_microseconds_of_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No timing here: a good call takes the short way through the checks, which looks for no reasons."""

    def slow(*_: object) -> None:
        raise AssertionError("the long way")

    monkeypatch.setattr(rnn._check, "_expect", slow)
    layer = named("one of everything").layer()
    x, h0, _, d_output, d_state = data(named("one of everything"))
    layer.bptt(layer.forward(x, h0), d_output, d_state)
