"""Training: the steps it takes, how it stops, what it tells, and that it learns."""

from __future__ import annotations

import math
import signal
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import rnn
from rnn.training import Pair


def delay(rng: np.random.Generator, lanes: int = 12, steps: int = 20) -> Pair:
    """A task that needs memory: the output is the input of the step before."""
    x = rng.uniform(-1, 1, (steps, lanes, 1)).astype(np.float32)
    return x, np.concatenate([np.zeros_like(x[:1]), x[:-1]])


def net() -> rnn.RNN:
    return rnn.RNN(1, 6, output_size=1, seed=3)


def test_it_learns_and_reports(rng: np.random.Generator) -> None:
    layer = net()
    history = rnn.fit(
        layer,
        [delay(rng)],
        rnn.MSE(),
        rnn.Adam(0.02),
        epochs=60,
        batch_size=4,
        rng=0,
        validation=[delay(rng)],
    )
    assert len(history.loss) == len(history.validation) == len(history.seconds) == history.epochs == 60
    assert history.loss[-1] < 0.02 * history.loss[0]
    assert history.validation[-1] < 0.02 * history.validation[0]
    assert all(seconds > 0 for seconds in history.seconds)


def test_an_epoch_is_the_steps_one_would_write(rng: np.random.Generator) -> None:
    """Mini-batches in order, truncated BPTT with the state carried over, clipping."""
    sequences = [delay(rng, lanes=3, steps=7), delay(rng, lanes=2, steps=4)]
    layer, same = net(), net()
    history = rnn.fit(
        layer, sequences, rnn.MSE(), rnn.SGD(0.1, 0.9), epochs=1, batch_size=2, bptt_steps=3, clip_norm=0.1
    )

    optimizer, losses, weights = rnn.SGD(0.1, 0.9), [], []
    for which, lanes in [(0, slice(0, 2)), (0, slice(2, 3)), (1, slice(0, 2))]:
        x, target = (array[:, lanes] for array in sequences[which])
        state = None
        for start in range(0, len(x), 3):
            run = same.forward(x[start : start + 3], state)
            value, d_output = rnn.MSE()(run.output, target[start : start + 3])
            gradients = same.bptt(run, d_output).weights
            rnn.clip_norm(gradients, 0.1)
            optimizer.step(same.weights, gradients)
            state = run.state
            losses.append(value)
            weights.append(run.output.size)
    for name, weight in same.weights.items():
        np.testing.assert_array_equal(layer.weights[name], weight, err_msg=name)
    assert_allclose(history.loss, [np.average(losses, weights=weights)], rtol=1e-12)


def test_the_seed_deals_the_batches(rng: np.random.Generator) -> None:
    pair = delay(rng)

    def train(seed: int | np.random.Generator | None) -> list[float]:
        return rnn.fit(net(), [pair], rnn.MSE(), rnn.SGD(0.1), epochs=2, batch_size=5, rng=seed).loss

    assert train(0) == train(0) == train(np.random.default_rng(0))
    assert train(0) != train(1)
    assert train(None) == train(None)


def test_every_lane_of_every_sequence_is_seen_once_an_epoch(rng: np.random.Generator) -> None:
    x = np.arange(7, dtype=np.float32).reshape(1, 7, 1)
    seen: list[float] = []

    def loss(output: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
        seen.extend(target.ravel())
        return 0.0, np.zeros_like(output)

    rnn.fit(net(), [(x, x), (x + 10, x + 10)], loss, rnn.SGD(0.1), epochs=1, batch_size=3, rng=rng)
    assert sorted(seen) == [0, 1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 15, 16]
    assert seen != sorted(seen)


def test_callbacks_follow_batches_and_epochs(rng: np.random.Generator) -> None:
    told: list[tuple[int, int, bool]] = []

    def note(progress: rnn.Progress) -> None:
        told.append((progress.epoch, progress.batch, progress.finished))
        assert (progress.epochs, progress.batches) == (2, 3)
        assert math.isfinite(progress.loss)
        assert progress.history.epochs == progress.epoch - (not progress.finished)

    rnn.fit(net(), [delay(rng)], rnn.MSE(), rnn.SGD(0.1), epochs=2, batch_size=5, callbacks=[note])
    assert told == [
        (1, 1, False), (1, 2, False), (1, 3, False), (1, 3, True),
        (2, 1, False), (2, 2, False), (2, 3, False), (2, 3, True),
    ]  # fmt: skip


def test_patience_counts_epochs_without_a_new_best(rng: np.random.Generator) -> None:
    pair = delay(rng)
    values = iter([math.nan, 3.0, 4.0, 3.0, math.nan, 1.0, 0.5])  # a NaN is never the best

    def loss(output: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
        return (next(values) if target is watched[1] else 0.0), np.zeros_like(output)

    watched = delay(rng)
    history = rnn.fit(net(), [pair], loss, rnn.SGD(0.1), epochs=9, validation=[watched], patience=3)
    assert len(history.validation) == 5
    assert history.validation[1:4] == [3.0, 4.0, 3.0]


def test_no_epochs_is_no_work(rng: np.random.Generator) -> None:
    layer = net()
    assert rnn.fit(layer, [delay(rng)], rnn.MSE(), rnn.SGD(0.1), epochs=0).loss == []
    np.testing.assert_array_equal(layer.weights["weight_ih_l0"], net().weights["weight_ih_l0"])


def test_nan_in_the_data_stops_before_the_step(rng: np.random.Generator) -> None:
    good, bad = delay(rng), delay(rng)
    bad[0][3, 4, 0] = np.nan
    layer = net()
    with pytest.raises(rnn.TrainingDiverged, match=r"epoch 1, batch 2 \(from sequences\[1\]\): the loss is nan"):
        rnn.fit(layer, [good, bad], rnn.MSE(), rnn.Adam(0.01), epochs=3)
    assert all(np.isfinite(weight).all() for weight in layer.weights.values())


def test_a_gradient_that_is_not_finite_stops_before_the_step(rng: np.random.Generator) -> None:
    layer = net()

    def loss(output: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
        return 1.0, np.full_like(output, np.inf)

    for clip_norm in (None, 1.0):
        with pytest.raises(rnn.TrainingDiverged, match=r"epoch 1, batch 1 .*norm of the gradients"):
            rnn.fit(layer, [delay(rng)], loss, rnn.SGD(0.1), epochs=1, clip_norm=clip_norm)
    np.testing.assert_array_equal(layer.weights["bias_o"], net().weights["bias_o"])


def test_ctrl_c_leaves_layer_and_optimizer_at_the_last_finished_batch(rng: np.random.Generator) -> None:
    """The signal comes in the middle of the third batch's second step."""
    pair = delay(rng)
    layer, optimizer, same, other = net(), rnn.Adam(0.01), net(), rnn.Adam(0.01)
    calls = 0

    def loss(output: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal calls
        calls += 1
        if calls == 2 * 4 + 2:
            signal.raise_signal(signal.SIGINT)
        return rnn.MSE()(output, target)

    settings: dict[str, Any] = {"epochs": 1, "batch_size": 3, "bptt_steps": 5}
    with pytest.raises(KeyboardInterrupt):
        rnn.fit(layer, [pair], loss, optimizer, **settings)
    rnn.fit(same, [(pair[0][:, :6], pair[1][:, :6])], rnn.MSE(), other, **settings)
    for name, weight in same.weights.items():
        np.testing.assert_array_equal(layer.weights[name], weight, err_msg=name)
    for name, array in other.state.items():
        np.testing.assert_array_equal(optimizer.state[name], array, err_msg=name)


def test_evaluate_weighs_sequences_by_their_size(rng: np.random.Generator) -> None:
    layer, short, long = net(), delay(rng, lanes=2, steps=3), delay(rng, lanes=5, steps=9)
    one, two = (rnn.evaluate(layer, [pair], rnn.MSE()) for pair in (short, long))
    assert_allclose(rnn.evaluate(layer, [short, long], rnn.MSE()), (6 * one + 45 * two) / 51, rtol=1e-12)


def test_classes_can_be_learned(rng: np.random.Generator) -> None:
    """The class is the sign of the input of the step before."""
    x, before = delay(rng, lanes=30)
    target = (before[..., 0] > 0).astype(np.int64)
    layer = rnn.RNN(1, 8, output_size=2, seed=0)
    history = rnn.fit(layer, [(x, target)], rnn.SoftmaxCrossEntropy(), rnn.Adam(0.05), epochs=60)
    assert history.loss[-1] < 0.3 * history.loss[0]
