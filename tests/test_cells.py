"""Every built-in cell on the Halide kernels, with every option, against the float64 reference, and what has to hold to
the last bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from differences import each
from layer_checks import (
    LAYERS,
    Example,
    Passes,
    beyond,
    check,
    check_differences,
    check_rows_alone,
    example,
    of,
    operations,
    own_passes,
    reference_passes,
)
from numpy.testing import assert_array_equal
from problems import Array, Problem, named
from tolerance import assert_close, tolerance

import rnn
from rnn._backends import halide
from rnn._backends.base import Kernel

AHEAD = ["rnn_tanh", "lstm", "gru"]
"""Cells whose float32 kernels with masks are compiled ahead."""
NAMES = [
    "one of everything",
    "no time",
    "no lanes",
    "no input",
    "no hidden units",
    "no readout",
    "odd primes",
    "one unit, one lane, long",
    "one unit, many lanes",
    "one lane over an AVX-512 vector",
    "one lane over two vectors",
    "one lane over two vectors, one lane",
    "wide input",
    "wide state",
]
MASKED = [
    "one of everything",
    "no time",
    "odd primes",
    "one lane over two vectors",
    "one lane over two vectors, one lane",
    "wide state",
]


class Option(NamedTuple):
    """What makes a run other than plain: arguments of the layer, and of `forward`; whether it draws random numbers."""

    config: Mapping[str, Any] = MappingProxyType({})
    call: Callable[[Problem], dict[str, Any]] = lambda problem: {}
    draws: bool = False


def lengths(problem: Problem) -> dict[str, Any]:
    """In no order; the first row has no steps at all, the second all of them."""
    found = np.random.default_rng(7).integers(0, problem.T + 1, problem.N)
    found[:2] = [0, problem.T][: problem.N]
    return {"lengths": found}


def reset(problem: Problem) -> dict[str, Any]:
    return {"reset": np.random.default_rng(8).random((problem.T, problem.N)) < 0.3}


def lengths_and_reset(problem: Problem) -> dict[str, Any]:
    return lengths(problem) | reset(problem)


DROPPED: dict[str, Any] = {"recurrent_dropout": 0.5, "zoneout": 0.25}
PLAIN = {
    "plain": Option(),
    "no bias": Option({"bias": False}),
    "reverse": Option({"reverse": True}),
    "lengths": Option({}, lengths),
    "lengths in reverse": Option({"reverse": True}, lengths),
}
OPTIONS = {
    "reset": Option({}, reset),
    "reset in reverse": Option({"reverse": True}, reset),
    "recurrent dropout": Option({"recurrent_dropout": 0.5}, draws=True),
    "zoneout": Option({"zoneout": 0.25}, draws=True),
    "zoneout in evaluation": Option({"zoneout": 0.25}),
    "everything": Option(DROPPED, lengths_and_reset, draws=True),
    "everything in reverse": Option(DROPPED | {"reverse": True}, lengths_and_reset, draws=True),
}


def check_option(cell: str, problem: Problem, option: Option) -> None:
    given = example(LAYERS[cell], problem, **option.config)
    call = option.call(problem)
    if "lengths" in call:  # nobody may look there
        given = given._replace(x=beyond(call["lengths"], given.x), d_output=beyond(call["lengths"], given.d_output))
    got = check(given, seed=5 if option.draws else None, **call)
    if "lengths" in call:
        for array in (got.run.output, got.gradients.x):
            assert_array_equal(array, beyond(call["lengths"], array, 0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("option", PLAIN)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cell", LAYERS)
def test_whole_and_partial_rows_either_way(cell: str, name: str, option: str, dtype: str) -> None:
    check_option(cell, named(name)._replace(dtype=dtype), PLAIN[option])


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("cell", AHEAD)
def test_resets_recurrent_dropout_and_zoneout(cell: str, name: str, option: str) -> None:
    check_option(cell, named(name), OPTIONS[option])


@pytest.mark.parametrize("option", ["reset", "recurrent dropout", "zoneout", "everything", "everything in reverse"])
@pytest.mark.parametrize("cell", ["lstm_peephole", "gru_reset_before", "indrnn_tanh"])
def test_the_same_for_cells_with_vectors_or_two_phases(cell: str, option: str) -> None:
    """Nobody compiled these ahead; the JIT is quickest to."""
    pytest.importorskip("halide")
    with rnn.backend.using("halide-jit", schedule="tiled"):
        check_option(cell, named("odd primes"), OPTIONS[option])


@pytest.mark.parametrize("states", [(0.5, 0.0), (0.0, 0.5)])
def test_zoneout_of_one_state_alone(states: tuple[float, float]) -> None:
    given = example(rnn.LSTM, named("odd primes"), zoneout=states)
    check(given)
    check(given, seed=3)


@pytest.mark.parametrize("option", PLAIN)
@pytest.mark.parametrize("cell", LAYERS)
def test_gradients_are_central_differences(cell: str, option: str) -> None:
    problem = Problem("small", T=4, N=3, I=2, H=5, O=2, dtype="float64")
    check_differences(example(LAYERS[cell], problem, **PLAIN[option].config), **PLAIN[option].call(problem))


def test_central_differences_catch_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("small", T=4, N=3, I=2, H=5, O=2, dtype="float64")
    right = rnn.Layer.bptt

    def wrong(self: rnn.Layer, *given: Any) -> rnn.Gradients:
        gradients = right(self, *given)
        gradients.weights["weight_hh_l0"][3, 2] += 1e-4
        return gradients

    monkeypatch.setattr(rnn.Layer, "bptt", wrong)
    with pytest.raises(AssertionError, match="weight_hh_l0"):
        check_differences(example(rnn.LSTM, problem))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, 1e30, -1e30])
@pytest.mark.parametrize("cell", LAYERS)
def test_extremes_saturate(cell: str, bad: float) -> None:
    given = example(LAYERS[cell], named("one lane over an AVX-512 vector"))
    given.x[2, 5, 1] = bad
    with np.errstate(invalid="ignore", over="ignore"):
        got, want = given.layer.forward(given.x, given.state), reference_passes(given).run
    assert_close("output", got.output, want.output, tolerance(given.problem, backward=False))


@pytest.mark.parametrize("cell", LAYERS)
def test_nan_stays_in_its_row_and_goes_on_in_time(cell: str) -> None:
    _, layer, _, x, state, d_output, d_state = example(LAYERS[cell], named("odd primes"))
    x[2, 3, 1] = np.nan
    run = layer.forward(x, state)
    bad = np.isnan(run.output)
    assert bad[2:, 3].all()
    assert bad.sum() == bad[2:, 3].size
    gradients = layer.bptt(run, d_output, d_state)
    assert np.isnan(gradients.x[:, 3]).any()
    assert not np.isnan(np.delete(gradients.x, 3, axis=1)).any()


@pytest.mark.parametrize("option", ["plain", "everything in reverse"])
@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("name", ["odd primes", "rows of a picture", "wide state"])
def test_any_number_of_threads_gives_the_same_bits(cell: str, name: str, option: str) -> None:
    chosen = (PLAIN | OPTIONS)[option]
    given = example(LAYERS[cell], named(name), **chosen.config)
    seen = []
    for threads in (1, 2, 3, 8):
        with rnn.threads(threads):
            made = own_passes(given, seed=1 if chosen.draws else None, **chosen.call(given.problem))
        seen.append({name: array.tobytes() for name, array in made.arrays.items()})
    assert all(one == seen[0] for one in seen)


TILES = [
    ("shared", "rnn_tanh", 725, 31), ("shared", "lstm", 363, 16), ("shared", "lstm", 363, 23),
    ("shared_short", "lstm", 363, 16), ("shared_short", "gru", 419, 47), ("shared", "lstm", 513, 16),
    ("shared", "gru", 419, 47), ("shared", "gru", 419, 65), ("wide", "lstm", 363, 41),
    ("few", "lstm", 187, 4), ("few", "lstm", 187, 3), ("few", "gru", 211, 4), ("single", "gru", 211, 1),
    ("rows_5", "gru", 211, 5), ("rows_6", "gru", 211, 12),
    ("rows_10", "rnn_tanh", 363, 10), ("rows_6", "rnn_tanh", 363, 6), ("rows_8", "lstm", 187, 7),
    ("rows_10", "lstm", 187, 20), ("broad", "lstm", 187, 12), ("broad", "gru", 245, 18),
    ("turning", "rnn_tanh", 173, 3), ("single", "rnn_tanh", 183, 1), ("single", "lstm", 91, 1), ("few", "lstm", 23, 4),
    ("few", "rnn_tanh", 49, 4), ("few", "rnn_tanh", 183, 3), ("pair", "lstm", 187, 2),
    ("pair", "gru", 211, 2), ("pair", "gru", 9, 2), ("pair", "rnn_tanh", 183, 2), ("pair", "rnn_tanh", 19, 2),
    ("single", "lstm", 64, 3), ("single_narrow", "lstm", 40, 3), ("single_narrow", "rnn_tanh", 65, 3),
    ("single_narrow", "lstm", 107, 1), ("single_narrow", "gru", 107, 1), ("single_narrow", "rnn_tanh", 203, 1),
    ("half", "lstm", 21, 16), ("half", "gru", 7, 5),
    ("thin", "rnn_tanh", 100, 20), ("thin", "lstm", 40, 7), ("thin", "gru", 9, 7),
]  # fmt: skip
"""(tile, cell, units, rows) that take it on AVX-512 (halide_gen/machine.py): just enough weights for two to eight
blocks of rows to go through them together, for a step to be shared by threads, and beside the borders."""


@pytest.mark.parametrize("option", ["plain", "lengths", "lengths in reverse"])
@pytest.mark.parametrize(("tile", "cell", "units", "rows"), TILES)
def test_tiles_that_only_large_weights_take(tile: str, cell: str, units: int, rows: int, option: str) -> None:
    problem = Problem("large", T=4, N=rows, I=3, H=units, O=None, cell=cell)
    check_option(cell, problem, PLAIN[option])
    given = example(LAYERS[cell], problem)
    if "avx512" in (chosen := str(rnn.explain(given.layer, (4, rows)))):
        assert f"tile {tile}:" in chosen
    seen = []
    for threads in (1, 2, 3):
        with rnn.threads(threads):
            seen.append({name: array.tobytes() for name, array in own_passes(given).arrays.items()})
    assert seen[0] == seen[1] == seen[2]
    row = slice(min(rows, 6) - 1, min(rows, 6))
    alone = given.layer.forward(given.x[:, row], of(given.state, lambda a: a[row]))
    assert_array_equal(alone.output, given.layer.forward(given.x, given.state).output[:, row])


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("name", ["odd primes", "one unit, many lanes", "one lane over two vectors", "wide state"])
def test_a_row_alone_gives_the_bits_of_its_row_in_a_batch(cell: str, name: str) -> None:
    check_rows_alone(example(LAYERS[cell], named(name)), most=9)


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("name", ["odd primes", "one lane, long", "one unit, many lanes", "wide state"])
def test_pieces_with_the_state_carried_over_give_the_bits_of_the_whole(cell: str, name: str) -> None:
    _, layer, _, x, state, *_ = example(LAYERS[cell], named(name))
    whole = layer.forward(x, state)
    for begin in range(0, len(x), 3):
        piece = layer.forward(x[begin : begin + 3], state)
        assert_array_equal(piece.output, whole.output[begin : begin + 3])
        state = piece.state
    for one, last in zip(each(state), each(whole.state), strict=True):
        assert_array_equal(one, last)


@pytest.mark.parametrize("cell", LAYERS)
def test_steps_of_a_stream_give_the_whole(cell: str) -> None:
    problem, layer, _, x, state, *_ = given = example(LAYERS[cell], named("odd primes"))
    whole, allowed = reference_passes(given).run, tolerance(problem, backward=False, more=operations(layer.cell))
    outputs = []
    for now in x:
        output, state = layer.step(now, state)
        outputs.append(output)
    assert_close("output", np.stack(outputs), whole.output, allowed)
    for one, last in zip(each(state), each(whole.state), strict=True):
        assert_close("state", one, last, allowed)


def long_example(cell: str, option: str) -> tuple[Example, Passes, dict[str, Any]]:
    """A sequence of 53 steps: what passes take, what they make of it at once, and how they are called."""
    chosen = (PLAIN | OPTIONS)[option]
    problem = named("odd primes")._replace(T=53)
    seed = 5 if chosen.draws else None
    how = {"seed": seed, **chosen.call(problem)}
    given = example(LAYERS[cell], problem, **chosen.config)
    return given, own_passes(given, **how), how


@pytest.mark.parametrize("option", [*PLAIN, "everything", "everything in reverse"])
@pytest.mark.parametrize("cell", LAYERS)
def test_long_sequences_in_several_calls(cell: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend cuts them so that a piece stays in the cache."""
    given, whole, how = long_example(cell, option)
    cut = halide._pieces
    counts: set[int] = set()

    def counted(*given: Any) -> Sequence[tuple[int, int]]:
        found = cut(*given)
        counts.add(len(found))
        return found

    for constant in ("PIECE_BYTES", "PIECE_ROWS"):
        monkeypatch.setattr(halide, constant, 1)
    monkeypatch.setattr(halide, "_pieces", counted)
    pieces = check(given, **how)
    assert counts == ({1} if option in ("lengths in reverse", "everything in reverse") else {3})
    for name, array in pieces.arrays.items():
        assert_array_equal(array, whole.arrays[name], err_msg=name)


@pytest.mark.parametrize("option", PLAIN | OPTIONS)
@pytest.mark.parametrize("cell", LAYERS)
def test_gradients_of_long_sequences_are_summed_up_span_by_span(
    cell: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the weights' have the bits of one span; those are right too."""
    given, whole, how = long_example(cell, option)
    monkeypatch.setattr(halide, "SPAN_BYTES", 1)
    monkeypatch.setattr(halide, "SPAN_ROWS", (1, 1))
    spans = check(given, **how)
    summed = {f"gradient of {name}" for name in given.layer.weights}
    assert summed < set(whole.arrays)
    for name in set(whole.arrays) - summed:
        assert_array_equal(spans.arrays[name], whole.arrays[name], err_msg=name)


def test_explain_says_how_long_the_parts_of_a_sequence_are(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, T, N = rnn.GRU(1, 24, seed=0), 1000, 64
    made = str(rnn.explain(layer, (T, N)))
    steps: dict[str, list[int]] = {"forward": [], "bptt": [], "gradients": []}

    def counted(name: str, kernel: Kernel) -> Kernel:
        def call(*given: Any) -> None:
            if name == "gradients":
                steps[name].append(len(given[0]) // N)  # the rows of x
            elif name in steps:
                steps[name].append(given[-1].shape[{"forward": 1, "bptt": 0}[name]])
            kernel(*given)

        return call

    recurrent, product = halide.Compiled.recurrent, halide.Compiled.product
    monkeypatch.setattr(
        halide.Compiled, "recurrent", lambda self, name, *what: counted(name, recurrent(self, name, *what))
    )
    monkeypatch.setattr(halide.Compiled, "product", lambda self, name, dtype: counted(name, product(self, name, dtype)))
    run = layer.forward(np.zeros((T, N, 1), np.float32))
    layer.bptt(run, np.zeros_like(run.output))
    for name, said in (
        ("forward", "pieces    forward: of about {} steps"),
        ("bptt", "pieces    bptt: of about {} steps"),
        ("gradients", "over about {} steps at once"),
    ):
        taken = steps[name]
        assert len(taken) > 1
        whole = round(sum(taken) / len(taken))  # arrays of states have one more than steps, but for later pieces
        assert any(said.format(whole - less) in made for less in (0, 1)), (name, taken, made)


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_state_is_that_of_each_rows_end(cell: str, reverse: bool) -> None:
    _, layer, _, x, state, *_ = example(LAYERS[cell], named("odd primes"), reverse=reverse)
    ends = [3, 0, 7, 1, 5]
    run = layer.forward(x, state, lengths=ends)
    for n, end in enumerate(ends):
        row = slice(n, n + 1)
        alone = layer.forward(x[:end, row], of(state, lambda a, row=row: a[row]))  # type: ignore[misc]
        assert_array_equal(run.output[:end, row], alone.output)
        assert not run.output[end:, n].any()
        for one, of_batch in zip(each(alone.state), each(run.state), strict=True):
            assert_array_equal(of_batch[row], one)


@pytest.mark.parametrize("cell", LAYERS)
def test_reverse_is_forward_on_the_sequence_turned_round(cell: str) -> None:
    given = example(LAYERS[cell], named("odd primes"))
    backwards = example(LAYERS[cell], named("odd primes"), reverse=True)
    turned = backwards._replace(x=given.x[::-1], d_output=given.d_output[::-1])
    want, got = own_passes(given), own_passes(turned)
    assert_array_equal(got.run.output, want.run.output[::-1])
    for one, other in zip(each(got.run.state), each(want.run.state), strict=True):
        assert_array_equal(one, other)
    assert_array_equal(got.gradients.x, want.gradients.x[::-1])


@pytest.mark.parametrize("cell", AHEAD)
def test_masks_of_ones_and_zeros_change_nothing(cell: str) -> None:
    """Kernels with masks, with nothing masked, give what those without give."""
    given = example(LAYERS[cell], named("odd primes"))
    plain, masked = own_passes(given), own_passes(given, reset=np.zeros((7, 5), bool))
    for name, array in masked.arrays.items():
        np.testing.assert_allclose(array, plain.arrays[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("cell", AHEAD)
def test_a_reset_starts_the_rest_anew(cell: str) -> None:
    _, layer, _, x, state, *_ = example(LAYERS[cell], named("odd primes"))
    reset = np.zeros((7, 5), bool)
    reset[4] = True
    got = layer.forward(x, state, reset=reset)
    np.testing.assert_allclose(got.output[4:], layer.forward(x[4:]).output, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.output[:4], layer.forward(x[:4], state).output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", LAYERS)
def test_arguments_are_left_alone(cell: str) -> None:
    given, copy = (example(LAYERS[cell], named("odd primes")) for _ in range(2))
    own_passes(given, lengths=[3, 0, 7, 1, 5])

    def arrays(of: Any) -> list[Array]:
        return [of.x, *each(of.state), of.d_output, *each(of.d_state), *of.layer.weights.values()]

    for array, was in zip(arrays(given), arrays(copy), strict=True):
        assert_array_equal(array, was)
