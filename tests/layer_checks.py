"""Every cell as a layer, and what a layer makes of a problem compared with what the reference makes of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from differences import check_layer, each
from numpy.typing import NDArray
from problems import Array, Problem
from reference import on_the_reference
from tolerance import assert_close, tolerance

import rnn
from rnn.cells import CellEquations, Expression
from rnn.layers import State

FEW = 16

LAYERS: dict[str, Callable[..., rnn.Layer]] = {
    "rnn_tanh": rnn.RNN,
    "rnn_sigmoid": partial(rnn.RNN, nonlinearity="sigmoid"),
    "rnn_relu": partial(rnn.RNN, nonlinearity="relu"),
    "lstm": rnn.LSTM,
    "lstm_peephole": partial(rnn.LSTM, peepholes=True),
    "lstm_coupled": partial(rnn.LSTM, coupled=True),
    "lstm_peephole_coupled": partial(rnn.LSTM, peepholes=True, coupled=True),
    "gru": rnn.GRU,
    "gru_reset_before": partial(rnn.GRU, reset_after=False),
    "mgu": rnn.MGU,
    "indrnn_tanh": partial(rnn.IndRNN, nonlinearity="tanh"),
    "indrnn_relu": rnn.IndRNN,
}


class Example(NamedTuple):
    """A layer, the same one in float64, and random arrays: all that a forward pass and BPTT take."""

    problem: Problem
    layer: rnn.Layer
    wide: rnn.Layer
    x: Array
    state: State
    d_output: Array
    d_state: State


class Passes(NamedTuple):
    """What a forward pass and BPTT gave."""

    run: rnn.Run
    gradients: rnn.Gradients

    @property
    def arrays(self) -> dict[str, Array]:
        """All of it, by name."""
        found = {"output": self.run.output}
        for name, state in (("state", self.run.state), ("initial", self.gradients.state)):
            found |= {f"{name} {k}": one for k, one in enumerate(each(state))}
        return (
            found
            | {f"gradient of {name}": g for name, g in self.gradients.weights.items()}
            | {"gradient of x": self.gradients.x}
        )


def of(state: State, change: Callable[[Array], Array]) -> State:
    """The state with each of its arrays changed."""
    return tuple(change(one) for one in state) if isinstance(state, tuple) else change(state)


def example(make: Callable[..., rnn.Layer], problem: Problem, **config: Any) -> Example:
    """`config`: further arguments of the layer."""
    rng = np.random.default_rng(11)
    T, N, I, H, O = problem.T, problem.N, problem.I, problem.H, problem.O
    common = {"input_size": I, "hidden_size": H, "output_size": O, "bias": problem.bias} | config
    layer = make(**common, dtype=problem.dtype, seed=rng)
    wide = type(layer).from_weights(
        layer.config() | {"dtype": "float64"},
        {name: weight.astype(np.float64) for name, weight in layer.weights.items()},
    )

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(problem.dtype)

    parts = layer.num_layers * (1 + layer.bidirectional)
    shape = (N, H) if parts == 1 else (parts, N, H)
    states, d_states = (tuple(normal(*shape) for _ in range(layer.cell.states)) for _ in range(2))
    width = O if O is not None else H * (1 + (layer.bidirectional and layer.merge == "concat"))
    one = layer.cell.states == 1
    return Example(
        problem, layer, wide, normal(T, N, I), states[0] if one else states, normal(T, N, width),
        d_states[0] if one else d_states,
    )  # fmt: skip


def passes(
    layer: rnn.Layer,
    x: Array,
    state: State | None,
    d_output: Array,
    d_state: State,
    seed: int | None = None,
    **options: Any,
) -> Passes:
    """Forward and back on the current backend. `seed`: in training, with what that draws; None: and forward without
    keeping anything, which must give the same bits."""
    run = layer.forward(x, state, rng=None if seed is None else np.random.default_rng(seed), **options)
    if seed is None:
        output, last = layer(x, state, **{name: option for name, option in options.items() if name != "remat"})
        np.testing.assert_array_equal(output, run.output)
        np.testing.assert_equal(last, run.state)
    return Passes(run, layer.bptt(run, d_output, d_state))


def own_passes(given: Example, seed: int | None = None, **options: Any) -> Passes:
    return passes(given.layer, given.x, given.state, given.d_output, given.d_state, seed, **options)


def reference_passes(given: Example, seed: int | None = None, **options: Any) -> Passes:
    """In float64, on the reference."""
    x, d_output = (array.astype(np.float64) for array in (given.x, given.d_output))
    state, d_state = (of(one, lambda a: a.astype(np.float64)) for one in (given.state, given.d_state))
    with on_the_reference():
        return passes(given.wide, x, state, d_output, d_state, seed, **options)


def check_rows_alone(given: Example, most: int) -> None:
    """The first rows of the batch, at most so many, give the same bits without the others, forward and back."""
    _, layer, _, x, state, d_output, d_state = given
    run = layer.forward(x, state)
    gradients = layer.bptt(run, d_output, d_state)
    for n in range(min(x.shape[1], most)):
        row = slice(n, n + 1)
        alone = layer.forward(x[:, row], of(state, lambda a, row=row: a[row]))  # type: ignore[misc]
        back = layer.bptt(alone, d_output[:, row], of(d_state, lambda a, row=row: a[row]))  # type: ignore[misc]
        np.testing.assert_array_equal(alone.output, run.output[:, row])
        np.testing.assert_array_equal(back.x, gradients.x[:, row])
        for ours, of_batch in (alone.state, run.state), (back.state, gradients.state):
            for one, of_all in zip(each(ours), each(of_batch), strict=True):
                np.testing.assert_array_equal(one, of_all[row])


def check_differences(given: Example, seed: int | None = None, **options: Any) -> None:
    """Compare the gradients of the current backend, in float64, with central differences."""
    check_layer(given.layer, given.x, given.state, given.d_output, given.d_state, seed=seed, **options)


def operations(cell: CellEquations) -> int:
    """What `tolerance` calls `more`."""
    passed: dict[Expression, int] = {}

    def count(e: Expression) -> int:
        if e not in passed:
            passed[e] = max(map(count, e.args)) + 1 if e.args and e.op != "product" else 0
        return passed[e]

    return max(map(count, cell.plain.new)) - 2


def check(given: Example, seed: int | None = None, **options: Any) -> Passes:
    """Compare the current backend with the reference: outputs, states after every step, all gradients."""
    got, want = own_passes(given, seed, **options), reference_passes(given, seed, **options)
    more = operations(given.layer.cell)
    forward, backward = (tolerance(given.problem, backward=which, more=more) for which in (False, True))
    assert got.run.output.dtype == got.gradients.x.dtype == given.layer.dtype
    for ours, theirs in zip(got.run.passes, want.run.passes, strict=True):
        for k, (states, expected) in enumerate(zip(ours.tape.states, theirs.tape.states, strict=True)):
            assert_close(f"state {k} after each step", states, expected, forward)
    for allowed, names in (
        (forward, [name for name in want.arrays if name == "output" or name.startswith("state")]),
        (backward, [name for name in want.arrays if name.startswith(("gradient", "initial"))]),
    ):
        # A number may be a sum that cancels out, so arrays of few numbers are compared as one.
        few = [name for name in names if want.arrays[name].size < FEW]
        for name in names:
            assert got.arrays[name].shape == want.arrays[name].shape
            if name not in few:
                assert_close(name, got.arrays[name], want.arrays[name], allowed)
        if few:
            one, other = (np.concatenate([made.arrays[name].ravel() for name in few]) for made in (got, want))
            assert_close(", ".join(few), one, other, allowed)
    return got


def beyond(lengths: NDArray[np.integer[Any]], a: Array, value: float = np.nan) -> Array:
    """a (T, N, any), with `value` past the end of each row."""
    a = a.copy()
    for n, length in enumerate(lengths):
        a[length:, n] = value
    return a
