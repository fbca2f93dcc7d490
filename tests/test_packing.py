"""Packed weights: what the kernel `pack` makes of a matrix, and how long it is kept."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import rnn
from rnn import _generators
from rnn._backends.halide import load
from rnn._backends.packing import is_frozen
from rnn._kernels import kernels
from rnn._memory import aligned

LAYERS = [rnn.RNN, rnn.LSTM, rnn.GRU]
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 17, 20, 24, 32, 33, 48]
WIDTHS = [1, 15, 16, 17, 31, 32, 33, 40, 64, 65, 100, 192]


@pytest.mark.parametrize("by_rows", [True, False], ids=["by rows", "by columns"])
@pytest.mark.parametrize(("width", "extent"), [(1, 1), (16, 16), (5, 33), (33, 5), (64, 7), (47, 48)])
@pytest.mark.parametrize(("gates", "together"), [(1, 1), (4, 2), (3, 3)])
def test_a_panel_is_the_matrix_in_blocks_of_units(
    gates: int, together: int, width: int, extent: int, by_rows: bool, rng: np.random.Generator
) -> None:
    """[block, part, k, gate, lane], zero beyond the last unit."""
    units = 32
    of_gates = rng.standard_normal((gates, width, extent)).astype(np.float32)
    weight = np.concatenate(of_gates if by_rows else of_gates.swapaxes(1, 2), axis=0)
    packed = aligned((-(-width // units), gates // together, extent, together, units), weight.dtype)
    packed[...] = np.nan
    kernels["pack_tuned_float32"](int(by_rows), gates, np.ascontiguousarray(weight), packed)
    want = np.zeros((gates, packed.shape[0] * units, extent), np.float32)
    want[:, :width] = of_gates
    # [part, gate, block, lane, k] -> [block, part, k, gate, lane]
    want = want.reshape(gates // together, together, -1, units, extent).transpose(2, 0, 4, 1, 3)
    np.testing.assert_array_equal(packed, want)


DEFECTS: dict[str, tuple[dict[str, Any], str]] = {
    "blocks too few": ({"shape": (1, 1, 5, 1, 16)}, "packed"),
    "k too few": ({"shape": (2, 1, 4, 1, 16)}, "packed"),
    "half a vector": ({"shape": (4, 1, 5, 1, 8)}, "packed"),
    "no units": ({"shape": (2, 1, 5, 1, 0)}, "packed"),
    "gates of none": ({"shape": (2, 1, 5, 0, 16)}, "packed"),
    "no gates": ({"gates": 0}, "packed"),
    "gates that are not there": ({"gates": 7}, "packed"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_panel_of_another_shape_is_refused(defect: str) -> None:
    wrong, named = DEFECTS[defect]
    given: dict[str, Any] = {"gates": 1, "shape": (2, 1, 5, 1, 16)} | wrong
    packed = aligned(given["shape"], np.dtype(np.float32))
    with pytest.raises(ValueError, match=named):
        kernels["pack_tuned_float32"](1, given["gates"], np.zeros((20, 5), np.float32), packed)


@pytest.mark.parametrize("made", LAYERS)
@pytest.mark.parametrize("hidden", WIDTHS)
def test_weights_are_packed_for_the_tile_that_the_kernel_chooses(made: type[rnn.Layer], hidden: int) -> None:
    """The kernel refuses a panel of another size, and makes something else of one of another shape."""
    layer = made(3, hidden, output_size=2, seed=1)
    x = np.random.default_rng(2).standard_normal((2, max(ROWS), 3)).astype(np.float32)
    whole = layer.forward(x)
    for rows in ROWS:
        some = layer.forward(np.ascontiguousarray(x[:, :rows]))
        np.testing.assert_array_equal(some.output, whole.output[:, :rows])
        layer.bptt(some, some.output)


def test_a_choice_for_other_sizes_is_refused_and_nothing_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = rnn.LSTM(3, 40, seed=1), np.zeros((2, 8, 3), np.float32)
    fresh = load()  # which has not prepared anything
    other = fresh.layout("forward", layer.cell, False, 4, 400, 1)  # type: ignore[attr-defined]
    monkeypatch.setattr(fresh, "layout", lambda *_: other)
    monkeypatch.setattr(rnn.backend, "current", lambda: fresh)
    with pytest.raises(ValueError, match="Constraint violated: weight"):
        layer(x)


# ---- frozen weights


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what is packed in a test, on a backend that has kept nothing yet."""
    fresh, found = load(), []
    pack = fresh._pack._kernel(4)  # type: ignore[attr-defined]

    def counted(by_rows: int, gates: int, weight: Any, packed: Any) -> None:
        found.append(packed.shape)
        pack(by_rows, gates, weight, packed)

    monkeypatch.setattr(fresh._pack, "_kernel", lambda itemsize: counted)  # type: ignore[attr-defined]
    monkeypatch.setattr(rnn.backend, "current", lambda: fresh)
    return found


@pytest.mark.parametrize("made", LAYERS)
def test_frozen_weights_give_the_same_bits_and_are_packed_once(
    made: type[rnn.Layer], packs: list[tuple[int, ...]], rng: np.random.Generator
) -> None:
    layer = made(20, 20, bidirectional=True, num_layers=2, output_size=3, seed=1)
    x = rng.standard_normal((4, 5, 20)).astype(np.float32)
    run = layer.forward(x)
    want = layer.bptt(run, run.output)
    each = len(packs)
    layer.freeze()
    for repetition in range(3):
        frozen_run = layer.forward(x)
        got = layer.bptt(frozen_run, frozen_run.output)
        assert len(packs) == 2 * each, repetition
        np.testing.assert_array_equal(frozen_run.output, run.output)
        np.testing.assert_array_equal(got.x, want.x)
        for name, gradient in got.weights.items():
            np.testing.assert_array_equal(gradient, want.weights[name])


def test_weights_that_are_not_frozen_are_packed_anew_in_each_call(packs: list[tuple[int, ...]]) -> None:
    layer, x = rnn.RNN(2, 3, seed=0), np.ones((4, 5, 2), np.float32)
    before, _ = layer(x)
    layer.weights["weight_hh_l0"][...] = 0
    after, _ = layer(x)
    assert len(packs) == 4
    assert (before[1:] != after[1:]).all()


def test_a_long_sequence_packs_once(packs: list[tuple[int, ...]]) -> None:
    rnn.RNN(2, 64, seed=0)(np.zeros((9000, 2, 2), np.float32))
    assert len(packs) == 2


def test_segments_of_remat_share_what_is_packed(packs: list[tuple[int, ...]]) -> None:
    layer, x = rnn.LSTM(2, 3, seed=0), np.ones((50, 5, 2), np.float32)
    run = layer.forward(x, remat=5)
    assert len(packs) == 2
    layer.bptt(run, run.output)
    assert len(packs) == 2 + 2 + 1  # forward again, and back


def test_nothing_can_write_to_frozen_weights() -> None:
    layer = rnn.GRU(2, 3, output_size=2, seed=0)
    layer.freeze()
    for weight in layer.weights.values():
        with pytest.raises(ValueError, match="read-only"):
            weight[...] = 0
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            weight.flags.writeable = True


def test_freezing_copies_and_twice_is_once() -> None:
    layer = rnn.RNN(2, 3, seed=0)
    mine = dict(layer.weights)
    layer.freeze()
    mine["weight_hh_l0"][...] = 7
    assert not (layer.weights["weight_hh_l0"] == 7).any()
    once = dict(layer.weights)
    layer.freeze()
    assert all(layer.weights[name] is weight for name, weight in once.items())
    assert not is_frozen(once["weight_hh_l0"][:2])  # a part of it is packed like any other array


def test_a_step_of_an_optimizer_or_other_weights_end_it(packs: list[tuple[int, ...]]) -> None:
    layer, x = rnn.RNN(2, 3, seed=0), np.ones((4, 5, 2), np.float32)
    layer.freeze()
    run = layer.forward(x)
    rnn.SGD(0.1).step(layer.weights, layer.bptt(run, run.output).weights)
    assert not any(map(is_frozen, layer.weights.values()))
    after, _ = layer(x)
    assert (after != run.output).all()
    layer.freeze()
    layer.load_state_dict(run.weights)
    again, _ = layer(x)
    np.testing.assert_array_equal(again, run.output)


def test_what_was_packed_goes_with_its_weights(packs: list[tuple[int, ...]]) -> None:
    layer, x = rnn.LSTM(2, 3, seed=0), np.ones((4, 5, 2), np.float32)
    layer.freeze()
    layer(x)
    kept = rnn.backend.current()._pack._kept  # type: ignore[attr-defined]
    assert len(kept) == 2
    del layer
    gc.collect()
    assert not kept


def test_bad_weights_are_not_frozen() -> None:
    layer = rnn.RNN(2, 3, seed=0)
    layer.weights["weight_hh_l0"] = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="weight_hh_l0"):
        layer.freeze()


def test_explain_says_how_often_weights_are_packed() -> None:
    layer = rnn.LSTM(2, 3, seed=0)
    assert "packed for a tile in each call" in str(rnn.explain(layer, (4, 3)))
    layer.freeze()
    assert "frozen: packed for a tile once" in str(rnn.explain(layer, (4, 3)))


def test_schedules_know_their_tiles_without_halide() -> None:
    """Kernels that are compiled ahead need no Halide package, so neither does the choice of what they are given."""
    schedules = _generators.module("schedules")
    assert schedules.schedule_for("tuned", "avx512", 4).lanes == 16
    assert schedules.schedule_for("naive", "avx512", 4).lanes == 1
    with pytest.raises(ValueError, match="expected one of naive"):
        schedules.schedule_for("fast", "avx512", 4)
