"""The language of the cells and what is derived from their equations, by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from differences import central_differences
from numpy.testing import assert_allclose, assert_array_equal
from problems import Array

from rnn import _generators
from rnn.cells import (
    _NUMPY,
    BUILT_IN,
    CellEquations,
    CellError,
    Expression,
    evaluate_numpy,
    exp,
    log,
    maximum,
    minimum,
    relu,
    sigmoid,
    sqrt,
    tanh,
    where,
)

LANGUAGE = _generators.module("expressions")
A, B = (LANGUAGE.node("input", label=f"x.{name}") for name in "ab")
FLOAT64 = np.dtype(np.float64)

FUNCTIONS: dict[str, Callable[[Any, Any], Expression]] = {
    "a + b": lambda a, b: a + b,
    "a + 2": lambda a, b: a + 2,
    "2 + a": lambda a, b: 2 + a,
    "a - b": lambda a, b: a - b,
    "3 - a": lambda a, b: 3 - a,
    "-a": lambda a, b: -a,
    "+a": lambda a, b: +a,
    "a * b": lambda a, b: a * b,
    "a * a": lambda a, b: a * a,
    "2 * a * b": lambda a, b: 2 * a * b,
    "a**3": lambda a, b: a**3,
    "a / b": lambda a, b: a / b,
    "1 / a": lambda a, b: 1 / a,
    "abs(a)": lambda a, b: abs(a),
    "tanh(a)": lambda a, b: tanh(a),
    "sigmoid(a)": lambda a, b: sigmoid(a),
    "relu(a)": lambda a, b: relu(a),
    "exp(a)": lambda a, b: exp(a),
    "log(abs(a))": lambda a, b: log(abs(a)),
    "sqrt(abs(a))": lambda a, b: sqrt(abs(a)),
    "maximum(a, b)": lambda a, b: maximum(a, b),
    "minimum(a, b)": lambda a, b: minimum(a, b),
    "maximum(a, 0.1)": lambda a, b: maximum(a, 0.1),
    "where(a < b, a * a, b)": lambda a, b: where(a < b, a * a, b),
    "where(a > 0.5, b, 0)": lambda a, b: where(a > 0.5, b, 0),
    "a used three times": lambda a, b: tanh(a) * sigmoid(a + b) - a,
    "a chain": lambda a, b: log(1 + exp(a * tanh(b))) / sqrt(1 + b * b),
}


def test_all_operations_are_tried() -> None:
    used = {e.op for make in FUNCTIONS.values() for e in LANGUAGE.ordered([make(A, B)])}
    assert used - {"input", "constant"} == LANGUAGE.OPERATIONS.keys() - {"step"}  # relu's derivative
    assert _NUMPY.keys() == LANGUAGE.OPERATIONS.keys()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_derivatives_are_central_differences(function: str, rng: np.random.Generator) -> None:
    value = FUNCTIONS[function](A, B)
    d = LANGUAGE.node("d_state", label="value")
    adjoints = LANGUAGE.adjoints({value: d})
    arrays: dict[Expression, Array] = {leaf: rng.uniform(0.2, 2, 20) * rng.choice([-1, 1], 20) for leaf in (A, B)}
    factors = rng.standard_normal(20)

    def loss() -> float:
        return float((evaluate_numpy(value, arrays, FLOAT64) * factors).sum())

    for leaf, array in arrays.items():
        want = central_differences(loss, array)
        if leaf not in adjoints:
            assert not want.any()
            continue
        got = evaluate_numpy(adjoints[leaf], {**arrays, d: factors}, FLOAT64)
        assert_allclose(got, want, rtol=1e-6, atol=1e-8)


def test_a_wrong_derivative_is_seen(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    tanhs = LANGUAGE.OPERATIONS["tanh"]
    monkeypatch.setitem(LANGUAGE.OPERATIONS, "tanh", tanhs._replace(back=lambda d, y, a: (d * (1 - y),)))
    with pytest.raises(AssertionError):
        test_derivatives_are_central_differences("tanh(a)", rng)


@pytest.mark.parametrize(
    ("function", "at", "a", "b"),
    [
        ("relu(a)", (0.0, 0.0), 0.0, 0.0),  # as PyTorch
        ("abs(a)", (0.0, 0.0), 0.0, 0.0),
        ("maximum(a, b)", (1.5, 1.5), 0.0, 1.0),
        ("minimum(a, b)", (1.5, 1.5), 0.0, 1.0),
    ],
)
def test_derivatives_at_kinks(function: str, at: tuple[float, float], a: float, b: float) -> None:
    adjoints = LANGUAGE.adjoints({FUNCTIONS[function](A, B): LANGUAGE.ONE})
    leaves = {A: np.array(at[0]), B: np.array(at[1])}
    got = [evaluate_numpy(adjoints.get(leaf, LANGUAGE.ZERO), leaves, FLOAT64) for leaf in (A, B)]
    assert [float(one) for one in got] == [a, b]


def test_nan_is_not_lost() -> None:
    nan = {A: np.array(np.nan), B: np.array(1.0)}
    for function in ("relu(a)", "tanh(a)", "sigmoid(a)", "abs(a)", "exp(a)", "a * b"):
        value = FUNCTIONS[function](A, B)
        adjoints = LANGUAGE.adjoints({value: LANGUAGE.ONE})
        assert np.isnan(evaluate_numpy(value, nan, FLOAT64)), function
        if function in ("relu(a)", "tanh(a)", "sigmoid(a)", "exp(a)"):
            assert np.isnan(evaluate_numpy(adjoints[A], nan, FLOAT64)), function


def test_numpy_evaluates_in_the_dtype_asked_for(rng: np.random.Generator) -> None:
    leaves = {leaf: rng.standard_normal(5).astype(np.float32) for leaf in (A, B)}
    for make in FUNCTIONS.values():
        assert evaluate_numpy(make(A, B), leaves, np.dtype(np.float32)).dtype == np.float32


def test_sigmoid_of_large_numbers_is_quiet() -> None:
    got = evaluate_numpy(sigmoid(A), {A: np.array([-1e4, -800.0, 0.0, 800.0])}, FLOAT64)
    assert_array_equal(got, [0, 0, 0.5, 1])


def test_equal_expressions_are_one() -> None:
    assert tanh(A + B) is tanh(A + B)
    assert (A + B) is not (B + A)
    assert A * 1 is A
    assert 0 + A is A
    assert A - 0 is A
    assert (LANGUAGE.lift(2) * 3 + 1).label == 7


@pytest.mark.parametrize("bad", [None, [], "a", np.ones(3), object()])
def test_only_values_and_numbers_go_in(bad: Any) -> None:
    with pytest.raises(TypeError, match="a cell's equations: expected a value or a number, got"):
        tanh(bad)


@pytest.mark.parametrize("power", [0, -1, 0.5, True, A])
def test_powers_are_positive_integers(power: Any) -> None:
    with pytest.raises(TypeError, match="power: expected an integer of at least 1"):
        A**power


def test_numpys_numbers_are_numbers() -> None:
    assert A * np.float32(0.5) is A * 0.5
    assert np.float64(0.5) * A is 0.5 * A


# What follows from a cell's equations


def names(values: Any, cell: CellEquations) -> list[str]:
    """Kept values by the gate whose product they are made of: "sigmoid i", "product n"."""
    gates = {s.node: (cell.plain.hidden[s.hidden] if s.hidden is not None else "") for s in cell.plain.sums}

    def gate(e: Expression) -> str:
        found = {gates[below] for below in LANGUAGE.ordered([e]) if below in gates and below.op != "input"}
        own = [g for g in found if e.args and gates.get(e.args[0]) == g] or sorted(found)
        return own[0]

    return [f"{value.op} {gate(value)}" for value in values]


@pytest.mark.parametrize(
    ("cell", "kept"),
    [
        ("rnn_tanh", []),  # its derivative is made of the state itself
        ("rnn_sigmoid", []),
        ("rnn_relu", []),
        ("indrnn_tanh", []),
        ("lstm", ["sigmoid i", "sigmoid f", "tanh g", "sigmoid o"]),  # not tanh(c): c is a state
        ("lstm_coupled", ["sigmoid i", "tanh g", "sigmoid o"]),
        ("gru", ["sigmoid r", "sigmoid z", "tanh n", "product n"]),
        ("gru_reset_before", ["sigmoid r", "sigmoid z", "tanh n"]),
        ("mgu", ["sigmoid f", "tanh n"]),
    ],
)
def test_what_is_kept_for_the_way_back(cell: str, kept: list[str]) -> None:
    assert sorted(names(BUILT_IN[cell].plain.kept, BUILT_IN[cell])) == sorted(kept)


@pytest.mark.parametrize(
    ("cell", "inputs", "hidden", "states", "vectors"),
    [
        ("rnn_tanh", 1, 1, 1, ()),
        ("lstm", 4, 4, 2, ()),
        ("lstm_peephole", 4, 4, 2, ("peephole_i", "peephole_f", "peephole_o")),
        ("lstm_peephole_coupled", 3, 3, 2, ("peephole_i", "peephole_o")),
        ("gru", 3, 3, 1, ()),
        ("mgu", 2, 2, 1, ()),
        ("indrnn_relu", 1, 0, 1, ("recurrent",)),
    ],
)
def test_weights_follow_from_the_equations(
    cell: str, inputs: int, hidden: int, states: int, vectors: tuple[str, ...]
) -> None:
    got = BUILT_IN[cell]
    assert (got.inputs, got.hidden, got.states, got.vectors) == (inputs, hidden, states, vectors)


@pytest.mark.parametrize("cell", BUILT_IN)
def test_a_product_of_what_the_step_computes_takes_a_phase_more(cell: str) -> None:
    derived = BUILT_IN[cell].plain
    two = cell in ("gru_reset_before", "mgu")
    assert (derived.phases, derived.back_phases) == ((2, 2) if two else (1, 1))
    assert [o.carried for o in derived.operands] == ([True, False] if two else [True] * len(derived.operands))


def test_the_phases_of_a_gru_that_resets_before() -> None:
    derived = BUILT_IN["gru_reset_before"].plain
    assert {derived.hidden[s.hidden]: s.phase for s in derived.sums if s.hidden is not None} == {"r": 0, "z": 0, "n": 1}
    reset, gated = derived.back_sums
    assert (reset.hidden, reset.carried, reset.phase) == ((0, 1), True, 0)  # from r and z of the step after, to h
    assert (gated.hidden, gated.carried, gated.phase) == ((2,), False, 1)  # from n, through r h, to r


@pytest.mark.parametrize(
    ("cell", "sums", "one_delta"),
    [
        ("rnn_tanh", 1, True),
        ("lstm", 4, True),
        ("gru", 4, False),
        ("gru_reset_before", 3, True),
        ("indrnn_tanh", 1, True),
    ],
)
def test_products_that_are_only_added_are_one_sum(cell: str, sums: int, one_delta: bool) -> None:
    """A GRU's new value has x.n and u.n apart, so their gradients differ too."""
    derived = BUILT_IN[cell].plain
    assert (len(derived.sums), derived.one_delta) == (sums, one_delta)


def test_masks_are_in_the_equations_on_request() -> None:
    cell = BUILT_IN["lstm"]
    assert not cell.plain.masked
    assert cell.masked.masked
    (operand,) = cell.masked.operands
    assert repr(operand.value) == "mul(mask, h)"
    assert [repr(zone) for zone in cell.masked.zone_leaves] == ["zone of h", "zone of c"]
    assert repr(BUILT_IN["indrnn_relu"].masked.sums[0].node) == "x.h", "a vector is not part of a sum"


def test_the_digest_tells_equations_and_not_names_apart() -> None:
    digests = {cell.digest for cell in BUILT_IN.values()}
    assert len(digests) == len(BUILT_IN)
    tanhs = BUILT_IN["rnn_tanh"]
    assert CellEquations("another name", tanhs.cell).digest == tanhs.digest


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_what_bptt_computes_needs_only_what_there_is(cell: str, masked: bool) -> None:
    """From states, what is kept, vectors, masks and gradients all deltas can be computed."""
    derived = BUILT_IN[cell].masked if masked else BUILT_IN[cell].plain
    there = {leaf for leaf, seen in zip(derived.state_leaves, derived.seen, strict=True) if seen}
    there |= {value for value, seen in zip(derived.new, derived.seen, strict=True) if seen}
    there |= {*derived.kept, *derived.constant_leaves, *derived.zone_leaves, *derived.gradient_leaves}
    there |= {s.node for s in derived.back_sums}
    assert_computable([*derived.deltas, *derived.carried], there)
    assert_computable(derived.kept, set(LANGUAGE.ordered(derived.new)))


def test_what_is_kept_is_known_going_forward() -> None:
    """A derivative holds quotients too; they are no results of the forward pass."""

    class Quotients:
        gates = ("a", "b")
        states = ("h",)

        def step(self, x: Any, u: Any, h: Any) -> Any:
            return tanh(sqrt(1 + x.a * x.a) / (1 + exp(u.b(h))) * log(2 + x.b * x.b))

    derived = CellEquations("Quotients", Quotients()).plain  # type: ignore[arg-type]
    assert_computable(derived.kept, set(LANGUAGE.ordered(derived.new)))


def assert_computable(roots: Any, there: set[Expression]) -> None:
    for root in roots:
        if root in there or root.op == "constant":
            continue
        assert root.args, f"no value for {root!r}"
        assert root.op in LANGUAGE.OPERATIONS, f"no value for {root!r}"
        assert_computable(root.args, there)


def test_cell_error_is_a_value_error() -> None:
    assert issubclass(CellError, ValueError)
