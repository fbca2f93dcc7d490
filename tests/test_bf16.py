"""precision="bf16": against a float64 reference that rounds what the kernels round, against float32, and where it falls
back to float32."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from problems import Problem
from test_instruction_sets import run
from test_tasks import VIDEO
from tolerance import assert_close, tolerance

import rnn
from rnn import _kernels, tasks
from rnn._backends import bf16

Array = NDArray[np.floating[Any]]

needs_bf16 = pytest.mark.skipif(not _kernels.has_bf16(), reason="NOT TESTED: kernels in bfloat16, this CPU has none")


@pytest.fixture(autouse=True)
def _even_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_BF16", "1")


CELLS = {"rnn_tanh": rnn.RNN, "lstm": rnn.LSTM, "gru": rnn.GRU}
EPS = 2.0**-8
"""Relative error of a number rounded to bfloat16, at most half of it."""


def nearest(a: Any) -> Array:
    """The nearest bfloat16 of each number, ties to even, by its definition: 8 bits."""
    fraction, exponent = np.frexp(np.asarray(np.asarray(a, np.float32), np.float64))
    return np.asarray(np.ldexp(np.rint(fraction * 256), exponent - 8), np.float64)


def sigmoid(z: Array) -> Array:
    made: Array = 1 / (1 + np.exp(-z))
    return made


class Stepped(NamedTuple):
    states: list[Array]
    kept: list[Array]
    """What BPTT wants to see of the step."""


def one_step(cell: str, weights: dict[str, Array], x: Array, states: list[Array]) -> Stepped:
    """A step from float32's states, in float64 but for the operands of products."""
    h = states[0]
    a = nearest(x) @ nearest(weights["weight_ih_l0"]).T + weights["bias_ih_l0"]
    b = nearest(h) @ nearest(weights["weight_hh_l0"]).T + weights["bias_hh_l0"]
    if cell == "rnn_tanh":
        return Stepped([np.tanh(a + b)], [])
    if cell == "lstm":
        ai, af, ag, ao = np.split(a + b, 4, axis=1)
        i, f, g, o = sigmoid(ai), sigmoid(af), np.tanh(ag), sigmoid(ao)
        c = f * states[1] + i * g
        return Stepped([o * np.tanh(c), c], [i, f, g, o])
    (ar, az, an), (br, bz, bn) = np.split(a, 3, axis=1), np.split(b, 3, axis=1)
    r, z = sigmoid(ar + br), sigmoid(az + bz)
    n = np.tanh(an + r * bn)
    return Stepped([(1 - z) * n + z * h], [r, z, n, bn])


def back(
    cell: str, kept: Sequence[Array], before: Sequence[Array], after: Sequence[Array], d: Sequence[Array]
) -> tuple[Array, Array, list[Array]]:
    """(delta of W_ih's rows, of W_hh's, what goes on past the products) from the gradients of the states."""
    if cell == "rnn_tanh":
        delta = d[0] * (1 - after[0] ** 2)
        return delta, delta, [np.zeros_like(d[0])]
    if cell == "lstm":
        i, f, g, o = kept
        tc = np.tanh(after[1])
        dc = d[1] + d[0] * o * (1 - tc**2)
        parts = [dc * g * i * (1 - i), dc * before[1] * f * (1 - f), dc * i * (1 - g**2), d[0] * tc * o * (1 - o)]
        delta = np.concatenate(parts, axis=1)
        return delta, delta, [np.zeros_like(dc), dc * f]
    r, z, n, bn = kept
    dn = d[0] * (1 - z) * (1 - n**2)
    dr, dz = dn * bn * r * (1 - r), d[0] * (before[0] - n) * z * (1 - z)
    return np.concatenate([dr, dz, dn], axis=1), np.concatenate([dr, dz, dn * r], axis=1), [d[0] * z]


SHAPES = {
    "a tile": (4, 8, 32, 32),
    "one row, one step": (1, 1, 2, 16),
    "odd numbers of rows, steps and inputs": (5, 7, 5, 64),
    "units that fill no vector": (3, 9, 6, 18),
    "several pieces of rows": (70, 17, 6, 32),
}


def given(cell: str, shape: str, rng: np.random.Generator, **options: Any) -> tuple[Any, Problem, Array]:
    T, N, I, H = SHAPES[shape]
    layer = CELLS[cell](I, H, seed=1, precision="bf16", **options)
    return layer, Problem(shape, T, N, I, H, None, cell=cell), rng.standard_normal((T, N, I)).astype(np.float32)


def states_of(layer: Any, run: rnn.Run) -> list[Array]:
    """Each of a pass forward in time, (T + 1, N, H), after a look at whether it was in bfloat16."""
    (done,) = run.passes
    assert isinstance(done.tape.kept, bf16._Kept)
    return list(done.tape.states)


@needs_bf16
def test_numbers_are_rounded_to_the_nearest_ties_to_even_and_nan_stays_nan() -> None:
    bits = np.arange(0, 2**32, 65537 * 3 - 2**13, dtype=np.uint64).astype(np.uint32)
    odd = [0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x3F808000, 0x3F818000, 0x7F7FFFFF, 1, 0]
    x = np.concatenate([bits, np.array(odd, np.uint32)])
    x = x[: x.size // 5 * 5].view(np.float32).reshape(-1, 1, 5)
    made = np.empty((len(x), 1, 6), np.uint16)
    _kernels.kernels["round_bf16"](x, made)
    got = (made.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(np.isnan(got[:, :, :5]), np.isnan(x))
    ordinary = np.isfinite(x) & (np.abs(x) >= np.finfo(np.float32).tiny)
    with np.errstate(over="ignore"):
        want = nearest(np.where(ordinary, x, 0)).astype(np.float32)
    np.testing.assert_array_equal(got[:, :, :5][ordinary], want[ordinary])
    np.testing.assert_array_equal(got[:, :, :5][np.isinf(x)], x[np.isinf(x)])
    assert not made[:, :, 5].any()


@needs_bf16
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_each_step_is_the_reference_s(cell: str, shape: str, rng: np.random.Generator) -> None:
    """From the states that the kernel made of the steps before: it rounds the same numbers, so what is left is
    float32's rounding."""
    layer, problem, x = given(cell, shape, rng)
    states = states_of(layer, layer.forward(x))
    weights = {name: weight.astype(np.float64) for name, weight in layer.weights.items()}
    allowed = tolerance(problem._replace(T=1), backward=False, more=8)
    for t in range(problem.T):
        made = one_step(cell, weights, x[t], [state[t].astype(np.float64) for state in states])
        for name, state, want in zip("hc", states, made.states, strict=False):
            assert_close(f"{name} at {t}", state[t + 1], want, allowed)


@needs_bf16
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_the_reference_s(cell: str, shape: str, reverse: bool, rng: np.random.Generator) -> None:
    """The numbers that are rounded differ by float32's errors, so that some are rounded to the neighbour: of as many as
    that error is of EPS, each off by EPS. In the L2 norm, that is the root of the error times EPS."""
    layer, problem, x = given(cell, shape, rng, reverse=reverse)
    T, N, _, H = SHAPES[shape]
    run = layer.forward(x)
    d_output = rng.standard_normal(run.output.shape).astype(np.float32)
    d_last = [rng.standard_normal((N, H)).astype(np.float32) for _ in range(layer.cell.states)]
    got = layer.bptt(run, d_output, tuple(d_last) if len(d_last) > 1 else d_last[0])

    weights = {name: weight.astype(np.float64) for name, weight in layer.weights.items()}
    states = [s[::-1].astype(np.float64) if reverse else s.astype(np.float64) for s in states_of(layer, run)]
    order = range(T - 1, -1, -1) if reverse else range(T)
    d: list[Array] = [last.astype(np.float64) for last in d_last]
    want = {name: np.zeros_like(weight) for name, weight in weights.items()}
    d_x = np.zeros(x.shape)
    for s, t in reversed(list(enumerate(order))):
        before, after = [state[s] for state in states], [state[s + 1] for state in states]
        kept = [nearest(value) for value in one_step(cell, weights, x[t], before).kept]
        d[0] = d[0] + d_output[t]
        of_input, of_hidden, d = back(cell, kept, before, after, d)
        of_input, of_hidden = nearest(of_input), nearest(of_hidden)
        want["weight_ih_l0"] += of_input.T @ nearest(x[t])
        want["weight_hh_l0"] += of_hidden.T @ nearest(before[0])
        want["bias_ih_l0"] += of_input.sum(axis=0)
        want["bias_hh_l0"] += of_hidden.sum(axis=0)
        d_x[t] = of_input @ nearest(weights["weight_ih_l0"])
        d[0] = d[0] + of_hidden @ nearest(weights["weight_hh_l0"])

    error = tolerance(problem, backward=True, more=8)
    allowed = error + math.sqrt(error * EPS)
    initial = got.state if isinstance(got.state, tuple) else (got.state,)
    pairs = {name: (got.weights[name], want[name]) for name in want} | {"x": (got.x, d_x)}
    pairs |= {f"state {k}": pair for k, pair in enumerate(zip(initial, d, strict=True))}
    for name, (mine, reference) in pairs.items():
        assert mine.shape == reference.shape
        assert np.linalg.norm(mine - reference) <= allowed * np.linalg.norm(reference), name


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reverse": {"reverse": True},
    "readout": {"output_size": 5},
    "both directions of two layers": {"bidirectional": True, "num_layers": 2},
    "no bias": {"bias": False},
}


@needs_bf16
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_results_are_close_to_float32_s(cell: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    """Within the roundings to bfloat16 that a number passes in each step of each layer, EPS / 2 each: a weight and what
    it multiplies forward, and a delta, what was kept and a weight on the way back."""
    rounding, plain = (CELLS[cell](24, 32, seed=1, precision=p, **options) for p in ("bf16", "float32"))
    x = rng.standard_normal((6, 10, 24)).astype(np.float32)
    run, exact = rounding.forward(x), plain.forward(x)
    assert all(isinstance(done.tape.kept, bf16._Kept) for done in run.passes)
    steps = len(x) * rounding.num_layers
    assert_close("output", run.output, exact.output, steps * 2 * EPS / 2)
    d_output = rng.standard_normal(run.output.shape).astype(np.float32)
    got, want = rounding.bptt(run, d_output), plain.bptt(exact, d_output)
    for name in want.weights:
        assert_close(name, got.weights[name], want.weights[name], steps * 5 * EPS / 2)
    assert_close("x", got.x, want.x, steps * 5 * EPS / 2)
    np.testing.assert_array_equal(rounding(x)[0], run.output)


@needs_bf16
@pytest.mark.parametrize("cell", CELLS)
def test_any_number_of_threads_gives_the_same_bits(cell: str, rng: np.random.Generator) -> None:
    layer = CELLS[cell](96, 256, seed=0, precision="bf16")
    x = rng.standard_normal((9, 33, 96)).astype(np.float32)
    assert "2 threads share the units of each step" in str(_explained(layer, 2))
    made = []
    for threads in (1, 2, 3, 8):
        with rnn.threads(threads):
            run = layer.forward(x)
            gradients = layer.bptt(run, run.output)
        made.append([run.output, gradients.x, gradients.h0, *gradients.weights.values()])
    for others in made[1:]:
        for one, other in zip(made[0], others, strict=True):
            np.testing.assert_array_equal(one, other)


def _explained(layer: rnn.Layer, threads: int) -> rnn.Explanation:
    with rnn.threads(threads):
        return rnn.explain(layer, (9, 33))


@needs_bf16
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_by_itself_and_cut_to_its_length_gives_the_same_bits(cell: str, rng: np.random.Generator) -> None:
    layer = CELLS[cell](6, 34, seed=0, precision="bf16")
    x, lengths = rng.standard_normal((7, 11, 6)).astype(np.float32), np.arange(11) % 8
    run = layer.forward(x, lengths=lengths)
    d_output = rng.standard_normal(run.output.shape).astype(np.float32)
    gradients = layer.bptt(run, d_output, run.state)
    for n, length in enumerate(lengths):
        row = slice(n, n + 1)
        alone = layer.forward(x[:length, row])
        np.testing.assert_array_equal(run.output[:length, row], alone.output)
        assert not run.output[length:, row].any()
        state = alone.state
        of_row = layer.bptt(alone, d_output[:length, row], state)
        np.testing.assert_array_equal(gradients.x[:length, row], of_row.x)
        assert not gradients.x[length:, row].any()
        np.testing.assert_array_equal(gradients.h0[row], of_row.h0)


@needs_bf16
@pytest.mark.parametrize("cell", CELLS)
def test_remat_gives_the_same_bits_of_output_and_input_gradient(cell: str, rng: np.random.Generator) -> None:
    layer = CELLS[cell](6, 32, seed=0, precision="bf16")
    x = rng.standard_normal((12, 5, 6)).astype(np.float32)
    run, again = layer.forward(x), layer.forward(x, remat=5)
    np.testing.assert_array_equal(run.output, again.output)
    np.testing.assert_array_equal(layer.bptt(run, run.output).x, layer.bptt(again, run.output).x)


@needs_bf16
@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_row(cell: str, rng: np.random.Generator) -> None:
    layer = CELLS[cell](5, 32, seed=0, precision="bf16")
    x = rng.standard_normal((3, 6, 5)).astype(np.float32)
    x[1, 2, 4] = np.nan
    run = layer.forward(x)
    assert np.isnan(run.output[1:, 2]).all()
    assert np.isfinite(run.output[:, [0, 1, 3, 4, 5]]).all()
    assert np.isfinite(run.output[0]).all()


def small_sobel(rng: np.random.Generator) -> tuple[rnn.tasks.Task, str, dict[str, Any]]:
    task = tasks.sobel_task("columns", tasks.synthetic_pictures(2, rng), size=32, rng=rng)
    return task, "columns", {"epochs": 5}


def small_frames(rng: np.random.Generator) -> tuple[rnn.tasks.Task, str, dict[str, Any]]:
    # At the recipe's own rate the loss after a few epochs is a matter of chance: float32's changes by 1 to 4% if the
    # first weights are changed by a thousandth, at this rate by less than 1%.
    task = tasks.frames_task("frames", [VIDEO], size=6, most_frames=60, rng=rng)
    return task, "frames", {"epochs": 8, "lr": 0.001, "batch": 8}


@needs_bf16
@pytest.mark.parametrize(
    ("make", "cell"), [(small_sobel, "rnn"), (small_sobel, "gru"), (small_frames, "rnn"), (small_frames, "lstm")]
)
def test_a_task_is_learned_as_in_float32(make: Any, cell: str) -> None:
    losses = []
    for precision in ("float32", "bf16"):
        task, mode, options = make(np.random.default_rng(5))
        how = tasks.recipe(mode, task.size, cell)._replace(hidden=64, **options)
        layer = tasks.make_layer(task, how.hidden, 1, cell, precision)
        losses.append(tasks.train(layer, task, how, seed=2).loss)
    assert losses[0][-1] < 0.8 * losses[0][0]  # it does learn
    assert losses[1][-1] == pytest.approx(losses[0][-1], rel=0.02)
    assert losses[1] != losses[0]


# ---- where there are no kernels for it

FALLS_BACK: dict[str, tuple[type[rnn.Layer], dict[str, Any], str]] = {
    "another cell": (rnn.MGU, {}, "the cells with kernels in bfloat16 are rnn_tanh, lstm, gru"),
    "another function": (
        rnn.RNN,
        {"nonlinearity": "relu"},
        "the cells with kernels in bfloat16 are rnn_tanh, lstm, gru",
    ),
    "peepholes": (rnn.LSTM, {"peepholes": True}, "the cells with kernels in bfloat16 are rnn_tanh, lstm, gru"),
    "zoneout": (rnn.LSTM, {"zoneout": 0.1}, "resets, recurrent dropout and zoneout have no kernels in bfloat16"),
    "an odd size": (rnn.GRU, {"hidden_size": 33}, "hidden_size is odd"),
}


@needs_bf16
@pytest.mark.parametrize("name", FALLS_BACK)
def test_what_has_no_kernels_runs_in_float32_and_explain_says_why(name: str, rng: np.random.Generator) -> None:
    make, options, reason = FALLS_BACK[name]
    options = {"hidden_size": 32, "seed": 0, **options}
    layer, plain = make(5, precision="bf16", **options), make(5, **options)
    assert f"precision float32, not bf16: {reason}" in str(rnn.explain(layer, (4, 3)))
    _same_bits(layer, plain, rng.standard_normal((4, 3, 5)).astype(np.float32))


@needs_bf16
def test_options_of_a_call_without_kernels_run_in_float32(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3, 5)).astype(np.float32)
    layer, plain = (rnn.LSTM(5, 32, seed=0, precision=p) for p in ("bf16", "float32"))
    _same_bits(layer, plain, x, reset=np.arange(12).reshape(4, 3) % 5 == 0)
    layer, plain = (rnn.LSTM(5, 32, seed=0, reverse=True, precision=p) for p in ("bf16", "float32"))
    assert "rows of different lengths in reverse: float32" in str(rnn.explain(layer, (4, 3)))
    _same_bits(layer, plain, x, lengths=np.array([4, 0, 2]))


def test_other_backends_and_schedules_run_in_float32_and_explain_says_so(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3, 5)).astype(np.float32)
    with pytest.warns(RuntimeWarning) if bf16.lacking() else contextlib.nullcontext():
        layer = rnn.RNN(5, 32, seed=0, precision="bf16")
    plain = rnn.RNN(5, 32, seed=0)
    for name, schedule in (("numpy", None), ("halide", "tiled")):
        with rnn.backend.using(name, schedule=schedule):
            assert "float32, not bf16: only the backend halide" in str(rnn.explain(layer, (4, 3)))
            _same_bits(layer, plain, x)


def _same_bits(layer: rnn.Layer, plain: rnn.Layer, x: Array, **options: Any) -> None:
    run, want = layer.forward(x, **options), plain.forward(x, **options)
    np.testing.assert_array_equal(run.output, want.output)
    got = layer.bptt(run, want.output)
    for name, gradient in plain.bptt(want, want.output).weights.items():
        np.testing.assert_array_equal(got.weights[name], gradient)


LACKING = """
import warnings
import numpy as np
import rnn

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    layer = rnn.LSTM(6, 32, seed=0, precision="bf16")
(warning,) = caught
assert warning.category is RuntimeWarning and warning.filename == "<string>", warning
print(warning.message)
x = np.random.default_rng(0).standard_normal((4, 3, 6)).astype(np.float32)
run, plain = layer.forward(x), rnn.LSTM(6, 32, seed=0)
np.testing.assert_array_equal(run.output, plain(x)[0])
layer.bptt(run, run.output)
print(rnn.explain(layer, (4, 3)))
"""


@pytest.mark.parametrize("instruction_set", ["avx2", "sse41"])
def test_a_cpu_without_it_is_told_once_and_computes_in_float32(instruction_set: str) -> None:
    done = run(LACKING, instruction_set)
    assert done.returncode == 0, done.stderr
    reason = "this CPU has no AVX512_BF16, or RNN_INSTRUCTION_SET forbids it"
    assert done.stdout.startswith(f"precision: bf16 was asked for, float32 is used: {reason}\n")
    assert f"precision float32, not bf16: {reason}\n" in done.stdout


@needs_bf16
@pytest.mark.parametrize("is_slow", [False, True])
def test_a_cpu_that_is_slow_at_it_computes_in_float32_unless_told_otherwise(
    is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kernels, "has_slow_bf16", lambda: is_slow)
    assert bf16.lacking() is None, "RNN_BF16 is 1 in this file"
    monkeypatch.delenv("RNN_BF16")
    assert (bf16.lacking() is not None) == is_slow
    with pytest.warns(RuntimeWarning, match="slower than") if is_slow else contextlib.nullcontext():
        layer = rnn.LSTM(6, 32, seed=0, precision="bf16")
    x = np.ones((4, 3, 6), np.float32)
    assert np.array_equal(layer(x)[0], rnn.LSTM(6, 32, seed=0)(x)[0]) == is_slow


# ---- arguments


def test_bad_values_name_the_argument() -> None:
    with pytest.raises(ValueError, match="precision: expected one of float32, bf16, got 'bfloat16'"):
        rnn.LSTM(2, 4, precision="bfloat16")
    with pytest.raises(ValueError, match="precision: expected 'float32' with dtype float64, got 'bf16'"):
        rnn.LSTM(2, 4, precision="bf16", dtype="float64")


@pytest.mark.filterwarnings("ignore:precision")
def test_it_is_part_of_the_configuration_and_old_ones_still_load() -> None:
    layer = rnn.GRU(2, 4, precision="bf16")
    config = layer.config()
    assert config["precision"] == "bf16"
    assert rnn.Layer.from_weights(config, layer.state_dict()).precision == "bf16"
    del config["precision"]
    assert rnn.Layer.from_weights(config, layer.state_dict()).precision == "float32"


@needs_bf16
def test_columns_of_one_array_may_be_outputs_side_by_side_but_may_not_overlap() -> None:
    kernel, N, H = _kernels.kernels["bptt_lstm_bf16"], 3, 4
    zeros, deltas = np.zeros((2, 2, N, H), np.float32), np.zeros((3, N, 4 * H), np.uint16)
    reached = np.zeros((2, 3, N, H), np.float32)

    def call(starts: list[int]) -> None:
        columns = [deltas[:, :, start : start + H] for start in starts]
        fixed = 0, np.full(N, 1, np.int32), np.zeros((4 * H, H), np.float32), zeros, np.zeros((4, 2, N, H), np.uint16)
        kernel(*fixed, zeros[0, :1], zeros[:, 0], deltas, reached, *columns, *reached)

    call([0, H, 2 * H, 3 * H])
    with pytest.raises(ValueError, match=r"deltas\.0: expected memory of its own, got memory shared with deltas\.1"):
        call([0, H - 1, 2 * H, 3 * H])
    with pytest.raises(
        TypeError, match=r"made: expected bfloat16 \(as uint16\) in native byte order, got dtype float64"
    ):
        _kernels.kernels["round_bf16"](zeros[0], zeros[1].astype(np.float64))
