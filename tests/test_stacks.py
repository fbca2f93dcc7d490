"""Several layers, both directions, and what training draws: against NumPy, and put together by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from differences import each
from layer_checks import LAYERS, Example, beyond, check, check_differences, example, of, own_passes, passes
from numpy.testing import assert_allclose, assert_array_equal
from problems import Problem

import rnn

PROBLEM = Problem("a stack", T=6, N=4, I=3, H=5, O=None, dtype="float64")
LENGTHS = [4, 0, 6, 1]

STACKS: dict[str, dict[str, Any]] = {
    "two layers": {"num_layers": 2},
    "three layers in reverse": {"num_layers": 3, "reverse": True},
    "both directions": {"bidirectional": True},
    "both directions, summed": {"bidirectional": True, "merge": "sum"},
    "three layers, both directions": {"num_layers": 3, "bidirectional": True},
    "two layers, both directions, summed": {"num_layers": 2, "bidirectional": True, "merge": "sum"},
    "two layers, no bias": {"num_layers": 2, "bidirectional": True, "bias": False},
}


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole rows", "lengths"])
@pytest.mark.parametrize("O", [None, 2], ids=["no readout", "readout"])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_a_stack_is_what_numpy_makes_of_it(cell: str, stack: str, O: int | None, lengths: list[int] | None) -> None:
    given = example(LAYERS[cell], PROBLEM._replace(O=O), **STACKS[stack])
    if lengths is not None:
        ends = np.array(lengths)
        given = given._replace(x=beyond(ends, given.x), d_output=beyond(ends, given.d_output))
    got = own_passes(given, lengths=lengths)
    with rnn.backend.using("numpy"):
        want = own_passes(given, lengths=lengths)
    assert got.arrays.keys() == want.arrays.keys()
    for name, array in got.arrays.items():
        assert_allclose(array, want.arrays[name], rtol=1e-11, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole rows", "lengths"])
@pytest.mark.parametrize(
    "stack", ["three layers in reverse", "two layers, both directions, summed", "two layers, no bias"]
)
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru_reset_before"])
def test_gradients_are_central_differences(cell: str, stack: str, lengths: list[int] | None) -> None:
    small = Problem("small", T=6, N=4, I=2, H=3, O=2, dtype="float64")
    check_differences(example(LAYERS[cell], small, **STACKS[stack]), lengths=lengths)


@pytest.mark.parametrize("remat", [False, 2], ids=["kept", "remat"])
@pytest.mark.parametrize("on", ["halide", "numpy"])
@pytest.mark.parametrize("stack", ["one layer", *STACKS])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru_reset_before"])
def test_without_a_gradient_all_others_are_the_same(cell: str, stack: str, on: str, remat: bool | int) -> None:
    given = example(LAYERS[cell], PROBLEM, **STACKS.get(stack, {}))
    with rnn.backend.using(on):
        run = given.layer.forward(given.x, given.state, remat=remat)
        whole, not_x, not_state = (
            given.layer.bptt(run, given.d_output, given.d_state, of_x=of_x, of_state=of_state)
            for of_x, of_state in ((True, True), (False, True), (True, False))
        )
    assert not_x.x.shape == (*given.x.shape[:2], 0)
    assert_array_equal(not_state.x, whole.x)
    for less in not_x, not_state:
        assert less.weights.keys() == whole.weights.keys()
        for name, gradient in whole.weights.items():
            assert_array_equal(less.weights[name], gradient)
    for one, other, none in zip(each(not_x.state), each(whole.state), each(not_state.state), strict=True):
        assert_array_equal(one, other)
        assert none.shape == (*other.shape[:-1], 0)


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "forward": ({}, {}),
    "in reverse": ({"reverse": True}, {}),
    "lengths": ({}, {"lengths": LENGTHS}),
    "lengths, in reverse": ({"reverse": True}, {"lengths": LENGTHS}),
    "resets": ({}, {"reset": np.arange(24).reshape(6, 4) % 5 == 0}),
    "segments": ({}, {"remat": 2}),
    "segments, in reverse": ({"reverse": True}, {"remat": 2}),
    "two layers, both directions": ({"num_layers": 2, "bidirectional": True}, {}),
    "zoneout and dropout": ({"recurrent_dropout": 0.3, "zoneout": 0.2}, {}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("T", [1, 6])
@pytest.mark.parametrize("cell", LAYERS)
def test_what_starts_from_zeros_is_what_starts_from_an_array_of_zeros(cell: str, T: int, way: str) -> None:
    """Though its first step's products with the states are not made."""
    config, options = WAYS[way]
    if T == 1:
        options = options | {"lengths": [1, 0, 1, 1]} if "lengths" in options else options
        options = options | {"reset": options["reset"][:1]} if "reset" in options else options
    given = example(LAYERS[cell], PROBLEM._replace(T=T), **config)
    seed = 3 if "zoneout" in config else None
    zeros = of(given.state, np.zeros_like)
    want = passes(given.layer, given.x, zeros, given.d_output, given.d_state, seed, **options)
    got = passes(given.layer, given.x, None, given.d_output, given.d_state, seed, **options)
    for name, array in want.arrays.items():
        assert_array_equal(got.arrays[name], array, err_msg=name)


def test_a_first_step_from_zeros_does_not_look_at_the_recurrent_weights() -> None:
    given = example(rnn.GRU, PROBLEM._replace(T=1))
    want = given.layer.forward(given.x)
    gradients = given.layer.bptt(want, given.d_output, of_state=False)
    given.layer.weights["weight_hh_l0"] = np.full_like(given.layer.weights["weight_hh_l0"], np.nan)
    got = given.layer.forward(given.x)
    assert_array_equal(got.output, want.output)
    assert_array_equal(given.layer.bptt(got, given.d_output, of_state=False).x, gradients.x)


def part(given: Example, number: int, reverse: bool) -> rnn.Layer:
    """One layer of a bidirectional LSTM in one direction, by itself."""
    ending = f"_l{number}" + "_reverse" * reverse
    weights = {name[: -len(ending)] + "_l0": w for name, w in given.layer.weights.items() if name.endswith(ending)}
    inputs = weights["weight_ih_l0"].shape[1]
    return rnn.LSTM.from_weights(
        {"input_size": inputs, "hidden_size": given.problem.H, "reverse": reverse, "dtype": "float64"}, weights
    )


@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_a_stack_is_its_layers_one_by_one(merge: str) -> None:
    """And states are numbered as PyTorch does: layer by layer, in each the forward direction first."""
    given = example(rnn.LSTM, PROBLEM, num_layers=2, bidirectional=True, merge=merge)
    run = given.layer.forward(given.x, given.state, lengths=LENGTHS)
    below, states = given.x, []
    for number in range(2):
        halves = []
        for direction in range(2):
            state = tuple(one[2 * number + direction] for one in each(given.state))
            one = part(given, number, bool(direction)).forward(below, state, lengths=LENGTHS)
            halves.append(one.output)
            states.append(each(one.state))
        below = np.concatenate(halves, axis=2) if merge == "concat" else halves[0] + halves[1]
    assert_array_equal(run.output, below)
    for k, last in enumerate(each(run.state)):
        assert_array_equal(last, np.stack([one[k] for one in states]))


def test_the_weights_of_a_stack_have_pytorchs_names_and_shapes() -> None:
    layer = rnn.LSTM(3, 5, 2, True, output_size=4)
    assert {name: weight.shape for name, weight in layer.weights.items()} == {
        "weight_ih_l0": (20, 3),
        "weight_hh_l0": (20, 5),
        "bias_ih_l0": (20,),
        "bias_hh_l0": (20,),
        "weight_ih_l0_reverse": (20, 3),
        "weight_hh_l0_reverse": (20, 5),
        "bias_ih_l0_reverse": (20,),
        "bias_hh_l0_reverse": (20,),
        "weight_ih_l1": (20, 10),
        "weight_hh_l1": (20, 5),
        "bias_ih_l1": (20,),
        "bias_hh_l1": (20,),
        "weight_ih_l1_reverse": (20, 10),
        "weight_hh_l1_reverse": (20, 5),
        "bias_ih_l1_reverse": (20,),
        "bias_hh_l1_reverse": (20,),
        "weight_ho": (4, 10),
        "bias_o": (4,),
    }
    assert rnn.LSTM(3, 5, 2, True, merge="sum").weights["weight_ih_l1"].shape == (20, 5)


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("lstm_peephole", ["peephole_i_l0", "peephole_f_l0", "peephole_o_l0"]),
        ("lstm_peephole_coupled", ["peephole_i_l0", "peephole_o_l0"]),
        ("indrnn_relu", ["recurrent_l0"]),
    ],
)
def test_vectors_have_a_number_a_unit(cell: str, names: list[str]) -> None:
    weights = LAYERS[cell](3, 5).weights
    assert [name for name in weights if not name.startswith(("weight", "bias"))] == names
    assert all(weights[name].shape == (5,) for name in names)
    assert ("weight_hh_l0" in weights) == (cell != "indrnn_relu")


def test_forget_bias_is_where_the_gate_f_starts() -> None:
    plain, open_ = rnn.LSTM(3, 5, 2, seed=0), rnn.LSTM(3, 5, 2, seed=0, forget_bias=1)
    for name, weight in open_.weights.items():
        f = weight[5:10]
        if name.startswith("bias"):
            assert (f == (1 if "ih" in name else 0)).all()
        else:
            assert_array_equal(f, plain.weights[name][5:10])
        assert_array_equal(weight[10:], plain.weights[name][10:])


# What training draws


def test_dropout_is_between_layers_in_training_alone() -> None:
    given = example(rnn.LSTM, PROBLEM._replace(H=50), num_layers=2, dropout=0.25)
    training = given.layer.forward(given.x, given.state, rng=np.random.default_rng(1))
    (mask,) = training.masks
    assert abs((~mask).mean() - 0.25) < 0.05
    below, above = training.passes
    assert_array_equal(above.x, below.tape.output * mask * (1 / 0.75))
    evaluation = given.layer.forward(given.x, given.state)
    assert evaluation.masks == ()
    assert_array_equal(evaluation.passes[1].x, evaluation.passes[0].tape.output)


@pytest.mark.parametrize("stack", ["two layers", "two layers, both directions, summed"])
def test_gradients_go_through_what_dropout_left(stack: str) -> None:
    small = Problem("small", T=6, N=4, I=2, H=3, O=2, dtype="float64")
    check_differences(example(rnn.LSTM, small, **STACKS[stack], dropout=0.5), seed=1)


@pytest.mark.parametrize("config", [{"dropout": 0.5}, {"recurrent_dropout": 0.5}, {"zoneout": 0.5}])
def test_a_generator_decides_what_is_dropped(config: dict[str, float]) -> None:
    given = example(rnn.LSTM, PROBLEM._replace(dtype="float32"), num_layers=2, **config)
    one, same, other = (own_passes(given, seed=seed).arrays for seed in (3, 3, 4))
    for name, array in one.items():
        assert_array_equal(array, same[name])
    assert not np.array_equal(one["output"], other["output"])
    assert not np.array_equal(one["output"], own_passes(given).arrays["output"])


def test_without_shares_training_is_evaluation() -> None:
    given = example(rnn.LSTM, PROBLEM, num_layers=2)
    assert not given.layer.is_random
    for name, array in own_passes(given, seed=3).arrays.items():
        assert_array_equal(array, own_passes(given).arrays[name])


@pytest.mark.parametrize("stack", ["two layers", "two layers, both directions, summed"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_everything_at_once_against_the_reference(cell: str, stack: str) -> None:
    """Half of the numbers are dropped, so that float32 and float64 multiply the rest by the same 2."""
    shares = {"dropout": 0.5, "recurrent_dropout": 0.5, "zoneout": 0.25}
    given = example(LAYERS[cell], PROBLEM._replace(O=2, dtype="float32"), **STACKS[stack], **shares)
    check(given, seed=2, lengths=LENGTHS, reset=np.random.default_rng(8).random((6, 4)) < 0.3)


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_recurrent_dropout_hides_the_same_units_in_all_steps_of_a_row(cell: str) -> None:
    given = example(LAYERS[cell], PROBLEM._replace(dtype="float32"), recurrent_dropout=0.5)
    (done,) = given.layer.forward(given.x, given.state, rng=np.random.default_rng(0)).passes
    mask = done.walk.recurrent_mask
    assert mask is not None
    assert mask.shape == (4, 5)
    assert set(np.unique(mask)) == {0, 2}


def test_zoneout_keeps_old_values() -> None:
    """Drawn for each step, row and unit; in evaluation the share of the old value is the constant itself."""
    given = example(rnn.LSTM, PROBLEM._replace(dtype="float32"), zoneout=(0.5, 0.25))
    (done,) = given.layer.forward(given.x, given.state, rng=np.random.default_rng(0)).passes
    assert done.walk.zoneout is not None
    for states, zone in zip(done.tape.states, done.walk.zoneout, strict=True):
        assert zone.shape == (6, 4, 5)
        assert set(np.unique(zone)) == {0, 1}
        before, after = states[:-1], states[1:]
        assert_allclose(after[zone == 1], before[zone == 1], rtol=1e-6, atol=1e-7)
        assert (np.abs(after - before)[zone == 0] > 1e-4).all()
    (evaluated,) = given.layer.forward(given.x, given.state).passes
    assert evaluated.walk.zoneout is not None
    assert [set(np.unique(zone)) for zone in evaluated.walk.zoneout] == [{0.5}, {0.25}]
