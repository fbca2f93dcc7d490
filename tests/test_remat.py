"""`remat`: what is computed again on the way back is what was computed before, and is not kept."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from layer_checks import LAYERS, Example, example, operations, own_passes
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from problems import Array, Problem
from tolerance import assert_close, tolerance

import rnn
from rnn import backend
from rnn._backends.base import Tape

PROBLEM = Problem("some segments", T=37, N=5, I=3, H=11, O=None)
LENGTHS = [30, 0, 37, 8, 1]
RESET = np.random.default_rng(8).random((37, 5)) < 0.1

STACKS: dict[str, dict[str, Any]] = {
    "forward": {},
    "in reverse": {"reverse": True},
    "readout": {"O": 4},
    "three layers, both directions": {"num_layers": 3, "bidirectional": True},
    "both directions, readout": {"bidirectional": True, "merge": "sum", "O": 4},
    "all that training draws": {"num_layers": 2, "dropout": 0.3, "recurrent_dropout": 0.4, "zoneout": 0.25},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "whole rows": {},
    "lengths": {"lengths": LENGTHS},
    "reset": {"reset": RESET},
    "lengths and reset": {"lengths": LENGTHS, "reset": RESET},
}


def stacked(cell: str, stack: str, dtype: str = "float32") -> Example:
    config = dict(STACKS[stack])
    return example(LAYERS[cell], PROBLEM._replace(O=config.pop("O", None), dtype=dtype), **config)


def both(given: Example, remat: bool | int, **options: Any) -> Iterator[tuple[str, Array, Array]]:
    """(name, array without, array with remat) for all that a pass of training and the way back give."""
    without, with_ = (own_passes(given, 3, **options, remat=how).arrays for how in (False, remat))
    assert without.keys() == with_.keys()
    return ((name, array, with_[name]) for name, array in without.items())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru", "gru_reset_before", "lstm_peephole"])
def test_all_but_the_weights_gradients_has_the_same_bits(cell: str, stack: str, options: str) -> None:
    given = stacked(cell, stack)
    allowed = tolerance(PROBLEM, backward=True, more=operations(given.layer.cell))
    for name, without, with_ in both(given, 6, **OPTIONS[options]):
        if name.startswith("gradient of") and name != "gradient of x":
            assert_close(name, with_, without, allowed)
        else:
            assert_array_equal(with_, without, err_msg=name)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("stack", STACKS)
def test_numpy_gives_the_same_but_for_rounding(stack: str, options: str) -> None:
    given = stacked("lstm", stack, "float64")
    with backend.using("numpy"):
        for name, without, with_ in both(given, 6, **OPTIONS[options]):
            assert_allclose(with_, without, rtol=1e-11, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("remat", [1, 36, 37, 1000, True])
def test_segments_may_be_of_any_length(remat: int) -> None:
    given = example(rnn.GRU, PROBLEM)
    allowed = tolerance(PROBLEM, backward=True, more=operations(given.layer.cell))
    for name, without, with_ in both(given, remat):
        assert_close(name, with_, without, allowed)


@pytest.mark.parametrize("T", [0, 1, 2])
@pytest.mark.parametrize("N", [0, 2])
def test_there_need_not_be_much_to_compute(T: int, N: int) -> None:
    for name, without, with_ in both(example(rnn.LSTM, PROBLEM._replace(T=T, N=N, O=2, dtype="float64")), 1):
        assert_allclose(with_, without, rtol=1e-11, atol=1e-13, err_msg=name)


def test_a_run_gives_its_gradients_again() -> None:
    given = example(rnn.LSTM, PROBLEM)
    run = given.layer.forward(given.x, remat=6)
    one, again = (given.layer.bptt(run, given.d_output) for _ in range(2))
    assert_array_equal(one.x, again.x)
    for name, gradient in one.weights.items():
        assert_array_equal(gradient, again.weights[name], err_msg=name)


# What is kept


class Watched:
    """The backend in use, and the calls that it got: (steps, whether the tape was kept)."""

    def __init__(self) -> None:
        self._below = backend.current()
        self.forward_calls: list[tuple[int, bool]] = []
        self.bptt_steps: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)

    def forward(self, cell: Any, x: Array, initial: Any, weights: Any, walk: Any, keep: bool = True) -> Tape:
        self.forward_calls.append((len(x), keep))
        return self._below.forward(cell, x, initial, weights, walk, keep)

    def bptt(self, cell: Any, x: Array, *arguments: Any) -> Any:
        self.bptt_steps.append(len(x))
        return self._below.bptt(cell, x, *arguments)


@contextmanager
def watched() -> Iterator[Watched]:
    one = Watched()
    token = backend._chosen.set(one)
    try:
        yield one
    finally:
        backend._chosen.reset(token)


def test_each_segment_but_the_last_is_computed_twice_and_kept_once() -> None:
    given = example(rnn.LSTM, PROBLEM)
    with watched() as calls:
        run = given.layer.forward(given.x, remat=10)
        there, calls.forward_calls = calls.forward_calls, []
        given.layer.bptt(run, given.d_output)
    assert there == [(10, False), (10, False), (10, False), (7, True)]
    assert calls.forward_calls == [(10, True), (10, True), (10, True)]
    assert calls.bptt_steps == [7, 10, 10, 10]


@pytest.mark.parametrize(("T", "N", "steps"), [(1024, 32, 32), (1024, 8, 128), (100, 300, 10), (1000, 1, 1000)])
def test_true_is_the_root_of_the_steps_or_more_where_rows_are_few(T: int, N: int, steps: int) -> None:
    with watched() as calls:
        rnn.RNN(1, 1).forward(np.zeros((T, N, 1), np.float32), remat=True)
    assert {length for length, _ in calls.forward_calls} == {steps}


def held(run: rnn.Run, *apart: Array) -> int:
    """Bytes of all arrays that the passes of a run hold on to, apart from the layer's weights and these."""
    found: dict[int, NDArray[Any]] = {}

    def look(value: Any) -> None:
        if isinstance(value, np.ndarray):
            owner = value.base if isinstance(value.base, np.ndarray) else value
            found[id(owner)] = owner
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for one in value:
                look(one)

    for done in run.passes:
        look([done.x, done.walk, done.tape])
    look(run.masks)
    for array in apart:
        found.pop(id(array), None)
    return sum(array.nbytes for array in found.values())


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_what_a_run_holds_grows_with_the_root_of_the_steps(cell: str) -> None:
    """Four times the steps: twice the memory, which without `remat` is four times as much."""
    layer = LAYERS[cell](2, 16, output_size=1)

    def kept(T: int, remat: bool) -> int:
        x = np.zeros((T, 64, 2), np.float32)
        run = layer.forward(x, remat=remat)
        return held(run, x, run.output)

    for remat, growth in ((True, 2), (False, 4)):
        assert kept(4096, remat) == pytest.approx(growth * kept(1024, remat), rel=0.05)


def test_a_stack_holds_one_array_a_layer_and_masks_of_single_bytes() -> None:
    T, N, H = 1024, 64, 16
    layer = rnn.LSTM(2, H, 3, output_size=1, dropout=0.5, zoneout=0.5)
    x = np.zeros((T, N, 2), np.float32)
    run = layer.forward(x, rng=np.random.default_rng(0), remat=True)
    between, dropout, zoneout = 2 * 4, 2 * 1, 3 * 2 * 1
    segment = 3 * 16 * 4 * np.sqrt(T)  # fewer than 16 numbers a step and unit
    assert held(run, x, run.output) < (T * (between + dropout + zoneout) + segment) * N * H


# Where users train


def test_fit_takes_the_steps_that_one_would_write(rng: np.random.Generator) -> None:
    x, target = (rng.standard_normal((20, 4, 1)).astype(np.float32) for _ in range(2))
    layer, same = (rnn.LSTM(1, 6, output_size=1, seed=3) for _ in range(2))
    with watched() as calls:
        rnn.fit(layer, [(x, target)], rnn.MSE(), rnn.SGD(0.1), epochs=1, remat=7)
    assert calls.bptt_steps == [6, 7, 7]
    run = same.forward(x, remat=7)
    rnn.SGD(0.1).step(same.weights, same.bptt(run, rnn.MSE()(run.output, target)[1]).weights)
    for name, weight in same.weights.items():
        assert_array_equal(layer.weights[name], weight, err_msg=name)


def test_truncated_bptt_holds_one_piece_at_a_time(rng: np.random.Generator) -> None:
    tapes: list[Any] = []

    def loss(output: Array, target: Array) -> tuple[float, Array]:
        tapes.append(weakref.ref(output if output.base is None else output.base))
        return rnn.MSE()(output, target)

    def encode(x: Array) -> Array:  # called before the next piece
        assert all(tape() is None for tape in tapes)
        return x

    x = rng.standard_normal((20, 4, 5)).astype(np.float32)
    rnn.fit(rnn.RNN(5, 5), [(x, x)], loss, rnn.SGD(0.1), epochs=1, bptt_steps=6, encode=encode)
    assert len(tapes) == 4
