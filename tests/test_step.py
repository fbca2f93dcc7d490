"""Single time steps: `layer.step` through a kernel of its own, for every cell, and whatever it is given."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from differences import each
from layer_checks import LAYERS, Example, example, of, operations
from numpy.testing import assert_array_equal
from problems import Array, Problem
from reference import on_the_reference
from tolerance import assert_close, tolerance

import rnn
from rnn._kernels import kernels
from rnn.layers import State

WIDTHS = [1, 7, 8, 15, 16, 17, 33, 128]
INPUTS = [0, 1, 3, 8, 17]


def one_step(
    make: Callable[..., rnn.Layer], N: int, I: int, H: int, O: int | None, layers: int, **config: Any
) -> Example:
    """As many layers over each other add to an error what as many steps would."""
    return example(make, Problem("a step", layers, N, I, H, O), num_layers=layers, **config)


def arrays(made: tuple[Array, State]) -> list[Array]:
    return [made[0], *each(made[1])]


def in_float64(given: Example, x: Array, state: State) -> list[Array]:
    with on_the_reference():
        output, last = given.wide(x.astype(np.float64)[np.newaxis], of(state, lambda a: a.astype(np.float64)))
    return arrays((output[0], last))


def check_step(given: Example) -> None:
    """Compare a step with the reference's. Arrays of few numbers are compared as one: one may be a sum that cancels."""
    x = given.x[0]
    got, want = arrays(given.layer.step(x, given.state)), in_float64(given, x, given.state)
    assert [(a.shape, a.dtype) for a in got] == [(a.shape, np.dtype(np.float32)) for a in want]
    allowed = tolerance(given.problem, backward=False, more=operations(given.layer.cell))
    one, other = (np.concatenate([a.ravel() for a in made]) for made in (got, want))
    assert_close("output and states", one, other, allowed)


@pytest.fixture
def _kernel_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that goes through the forward pass fails."""
    monkeypatch.setattr(rnn.layers.Layer, "_step_of_a_sequence", None)


def lstm() -> Example:
    return one_step(rnn.LSTM, 3, 5, 9, 2, 2)


@pytest.mark.usefixtures("_kernel_only")
@pytest.mark.parametrize("O", [None, 3])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", LAYERS)
def test_a_step_is_the_references(cell: str, layers: int, O: int | None) -> None:
    for N in (1, 3):
        for H in WIDTHS:
            check_step(one_step(LAYERS[cell], N, 5, H, O, layers))
        for I in INPUTS:
            check_step(one_step(LAYERS[cell], N, I, 11, O, layers))


@pytest.mark.usefixtures("_kernel_only")
@pytest.mark.parametrize("O", [0, 1, 8, 17, 130])
def test_readouts_of_any_width(O: int) -> None:
    check_step(one_step(rnn.GRU, 2, 3, 33, O, 1))


@pytest.mark.usefixtures("_kernel_only")
@pytest.mark.parametrize("cell", LAYERS)
def test_without_biases(cell: str) -> None:
    problem = Problem("a step", 1, 2, 5, 19, 3, bias=False)
    check_step(example(LAYERS[cell], problem))


@pytest.mark.usefixtures("_kernel_only")
@pytest.mark.parametrize("cell", LAYERS)
def test_a_stream_starts_from_zeros(cell: str) -> None:
    given = one_step(LAYERS[cell], 3, 5, 9, 2, 2)
    zeros = of(given.state, np.zeros_like)
    want = arrays(given.layer.step(given.x[0], zeros))
    for one, other in zip(arrays(given.layer.step(given.x[0])), want, strict=True):
        assert_array_equal(one, other)


@pytest.mark.parametrize("H", [1024, 1025])
def test_the_widest_state_and_one_unit_more(H: int) -> None:
    check_step(one_step(rnn.MGU, 1, 2, H, None, 1))


@pytest.mark.parametrize("N", [16, 17])
def test_as_many_rows_as_the_kernel_takes_and_one_more(N: int) -> None:
    check_step(one_step(rnn.GRU, N, 2, 9, 3, 2))


@pytest.mark.usefixtures("_kernel_only")
@pytest.mark.parametrize("cell", LAYERS)
def test_a_row_alone_gives_the_bits_of_its_row_in_a_batch(cell: str) -> None:
    given = one_step(LAYERS[cell], 5, 3, 11, 2, 1)
    whole = arrays(given.layer.step(given.x[0], given.state))
    for n in range(5):
        row = slice(n, n + 1)
        alone = given.layer.step(given.x[0][row], of(given.state, lambda a, row=row: a[row]))  # type: ignore[misc]
        for one, of_batch in zip(arrays(alone), whole, strict=True):
            assert_array_equal(one, of_batch[row])


@pytest.mark.usefixtures("_kernel_only")
@pytest.mark.parametrize("cell", LAYERS)
def test_any_number_of_threads_gives_the_same_bits(cell: str) -> None:
    given = one_step(LAYERS[cell], 3, 5, 130, 2, 1)
    seen = []
    for threads in (1, 2, 3):
        with rnn.threads(threads):
            seen.append([array.tobytes() for array in arrays(given.layer.step(given.x[0], given.state))])
    assert all(one == seen[0] for one in seen)


@pytest.mark.usefixtures("_kernel_only")
@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("H", [7, 8, 9])
def test_a_unit_sees_its_own_weights_alone(cell: str, H: int) -> None:
    """Vectors reach over the ends of rows: nothing of the next row may come in, not even NaN."""
    given = one_step(LAYERS[cell], 1, 3, H, None, 1)
    for weight in given.layer.weights.values():
        weight[1::H] = np.nan  # of unit 1, of all gates
    output, _ = given.layer.step(given.x[0], of(given.state, lambda a: a * 0))
    mixes = cell in ("mgu", "gru_reset_before")  # a gate of that unit is an operand of all others
    assert np.isnan(output).sum() == (H if mixes else 1)


# ---- what users do between steps


@pytest.mark.usefixtures("_kernel_only")
def test_weights_that_were_changed_in_place_are_seen() -> None:
    given = lstm()
    given.layer.step(given.x[0], given.state)
    for name, weight in given.layer.weights.items():
        weight *= 0.5
        given.wide.weights[name] *= 0.5
    check_step(given)


@pytest.mark.usefixtures("_kernel_only")
@pytest.mark.parametrize("how", ["one by one", "another dict", "load_state_dict"])
def test_weights_that_were_replaced_are_seen(how: str) -> None:
    given, other = lstm(), rnn.LSTM(5, 9, 2, output_size=2, seed=99)
    given.layer.step(given.x[0], given.state)
    if how == "one by one":
        for name, weight in other.weights.items():
            given.layer.weights[name] = weight
    elif how == "another dict":
        given.layer.weights = dict(reversed(other.weights.items()))
    else:
        given.layer.load_state_dict(other.weights)
    given.wide.weights = {name: weight.astype(np.float64) for name, weight in other.weights.items()}
    check_step(given)


@pytest.mark.usefixtures("_kernel_only")
def test_what_comes_out_belongs_to_the_caller() -> None:
    for O in (None, 2):
        given = one_step(rnn.LSTM, 3, 5, 9, O, 2)
        made = arrays(given.layer.step(given.x[0], given.state))
        taken = [given.x, *each(given.state), *given.layer.weights.values()]
        for number, array in enumerate(made):
            assert array.flags.owndata
            assert array.flags.writeable
            assert not any(np.shares_memory(array, other) for other in taken + made[:number])


def test_arguments_are_left_alone() -> None:
    given, was = lstm(), lstm()
    given.layer.step(given.x[0], given.state)
    for one, other in zip([given.x, *each(given.state)], [was.x, *each(was.state)], strict=True):
        assert_array_equal(one, other)
    for name, weight in given.layer.weights.items():
        assert_array_equal(weight, was.layer.weights[name])


def test_a_layer_that_has_made_steps_can_be_copied() -> None:
    given = lstm()
    want = arrays(given.layer.step(given.x[0], given.state))
    layer = copy.deepcopy(given.layer)
    for weight in given.layer.weights.values():
        weight[...] = 0
    for one, other in zip(arrays(layer.step(given.x[0], given.state)), want, strict=True):
        assert_array_equal(one, other)


# ---- what else there is


def unaligned(a: Array) -> Array:
    """The same numbers at an odd address."""
    memory = np.zeros(a.nbytes + 1, np.uint8)[1:]
    moved: Array = memory.view(a.dtype).reshape(a.shape)
    moved[...] = a
    return moved


LEGAL: dict[str, Callable[[Array], Any]] = {
    "Fortran order": np.asfortranarray,
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: a[..., ::-1].copy()[..., ::-1],
    "unaligned": unaligned,
    "of a subclass": lambda a: a.view(type("Own", (np.ndarray,), {})),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@pytest.mark.parametrize("what", ["x", "state", "weights"])
@pytest.mark.parametrize("form", LEGAL)
def test_any_strides_and_classes_of_arrays(form: str, what: str) -> None:
    given, change = lstm(), LEGAL[form]
    x, state = given.x[0], given.state
    want = in_float64(given, x, state)
    if what == "x":
        x = change(x)
    elif what == "state":
        state = of(state, change)
    else:
        given.layer.weights = {name: change(weight) for name, weight in given.layer.weights.items()}
    allowed = tolerance(given.problem, backward=False, more=operations(given.layer.cell))
    for got, expected in zip(arrays(given.layer.step(x, state)), want, strict=True):
        assert_close(form, got, expected, allowed)


def test_a_state_may_be_a_list_or_the_input() -> None:
    layer = rnn.GRU(4, 4, seed=0)
    x = np.linspace(-1, 1, 4, dtype=np.float32)[np.newaxis]
    want = layer.step(x, x.copy())
    for state in (x, [x], (x,)):
        for one, other in zip(arrays(layer.step(x, state)), arrays(want), strict=True):  # type: ignore[arg-type]
            assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("x", "state", "error", "message"),
    [
        ([[1.0] * 5], None, TypeError, r"x: expected a float32 array of shape \(N, I=5\), got list"),
        (None, None, TypeError, "x: expected a float32 array"),
        (np.zeros((3, 5)), None, TypeError, "x: .*got dtype float64"),
        (np.zeros((3, 5), ">f4"), None, TypeError, "x: .*foreign byte order"),
        (np.zeros((3, 6), np.float32), None, ValueError, r"x: .*got \(3, 6\)"),
        (np.zeros(5, np.float32), None, ValueError, "x: .*got rank 1"),
        (
            np.zeros((3, 5), np.float32),
            np.zeros((2, 3, 9), np.float32),
            TypeError,
            "state: expected a tuple of 2 arrays",
        ),
        (np.zeros((3, 5), np.float32), (np.zeros((2, 3, 9), np.float32),), TypeError, "got 1 of them"),
        (np.zeros((3, 5), np.float32), (np.zeros((2, 3, 9), np.float32), None), TypeError, "state: c: .*got NoneType"),
        (np.zeros((3, 5), np.float32), (np.zeros((2, 4, 9), np.float32),) * 2, ValueError, r"state: h: .*\(2, 4, 9\)"),
        (np.zeros((3, 5), np.float32), (np.zeros((3, 9), np.float32),) * 2, ValueError, "state: h: .*rank 2"),
        (np.zeros((3, 5), np.float32), (np.zeros((2, 3, 9)),) * 2, TypeError, "state: h: .*float64"),
        (np.zeros((3, 5), np.float32), "hc", TypeError, "state: expected a tuple of 2 arrays"),
    ],
)
def test_bad_arguments_are_named(x: Any, state: Any, error: type[Exception], message: str) -> None:
    given = lstm()
    given.layer.step(given.x[0])
    with pytest.raises(error, match=message):
        given.layer.step(x, state)


def _spoil(weights: dict[str, Any], how: str) -> None:
    if how == "one is missing":
        del weights["bias_hh_l1"]
    elif how == "one too many":
        weights["weight_hh_l2"] = weights["weight_hh_l1"]
    elif how == "no array":
        weights["weight_hh_l1"] = None
    elif how == "another dtype":
        weights["weight_hh_l1"] = weights["weight_hh_l1"].astype(np.float64)
    elif how == "another shape":
        weights["weight_hh_l1"] = weights["weight_hh_l1"][:-1]
    elif how == "transposed":
        weights["weight_hh_l1"] = weights["weight_hh_l1"].T.copy()
    else:
        weights["weight_hh_l1"] = np.ones((36, 9), np.float32)
        weights["weight_hh_l1"].resize((2, 9), refcheck=False)


@pytest.mark.parametrize(
    "how",
    ["one is missing", "one too many", "no array", "another dtype", "another shape", "transposed", "resized"],
)
def test_bad_weights_are_named(how: str) -> None:
    given = lstm()
    given.layer.step(given.x[0])
    _spoil(given.layer.weights, how)
    with pytest.raises(
        (TypeError, ValueError), match=r"^weights: expected exactly|^weights\['weight_hh_l1'\]: expected"
    ):
        given.layer.step(given.x[0])


def test_what_has_no_kernel_goes_through_the_forward_pass() -> None:
    """float64, zoneout, nothing to compute, other backends and schedules: the bits of a forward pass."""
    for layer in (rnn.RNN(3, 4, dtype="float64"), rnn.RNN(3, 4, zoneout=0.25), rnn.RNN(3, 0)):
        x: Array = np.ones((2, 3), layer.dtype)
        assert_array_equal(layer.step(x)[0], layer.forward(x[np.newaxis]).output[0])
    layer, x = rnn.RNN(3, 4, seed=0), np.ones((2, 3), np.float32)
    layer.step(x)
    for name, schedule in (("numpy", None), ("halide", "naive")):
        with rnn.backend.using(name, schedule=schedule):
            assert_array_equal(layer.step(x)[0], layer.forward(x[np.newaxis]).output[0])
    assert rnn.RNN(3, 4).step(x[:0])[0].shape == (0, 4)
    for other in (rnn.RNN(3, 4, bidirectional=True), rnn.RNN(3, 4, reverse=True)):
        with pytest.raises(ValueError, match="step: expected a layer that runs forward in time alone"):
            other.step(x)


def test_nobody_else_calls_the_kernels() -> None:
    with pytest.raises(TypeError, match="step_lstm_tuned_float32: expected to be called by a Stepper"):
        kernels["step_lstm_tuned_float32"]()


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        (rnn.LSTM(3, 4), "step      step_lstm_tuned_float32, built in, for up to 16 rows; then forward"),
        (rnn.LSTM(3, 4, dtype="float64"), "step      the forward pass of one step: its kernels are in float32"),
        (rnn.LSTM(3, 1025), "step      the forward pass of one step: its kernels are for 1 to 1024 units"),
        (rnn.LSTM(3, 4, zoneout=0.1), "step      the forward pass of one step: zoneout has none"),
        (rnn.LSTM(3, 4, bidirectional=True), "step      none: it is for layers that run forward in time alone"),
    ],
)
def test_explain_says_what_a_step_goes_through(layer: rnn.Layer, line: str) -> None:
    assert line in rnn.explain(layer, (1, 1)).lines
