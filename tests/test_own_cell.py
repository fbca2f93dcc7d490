"""Cells that users write: their gradients, their values, the folder of compiled kernels, and what makes no cell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from differences import each
from layer_checks import Example, check_differences, check_rows_alone, example, of, operations
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from problems import Array, Problem, named
from tolerance import assert_close, tolerance

import rnn
from rnn import _compiler
from rnn.cells import CellError, exp, log, maximum, minimum, relu, sigmoid, sqrt, tanh, where

pytest.importorskip("halide")


@rnn.cell
class TwoStates:
    """A state that the output does not show, and a weight for each unit."""

    gates = "a", "b"
    states = "h", "s"
    vectors = ("leak",)

    def step(self, x: Any, u: Any, h: Any, s: Any) -> Any:
        a = sigmoid(x.a + u.a(h))
        s = a * s + (1 - a) * tanh(x.b + u.b(h) + u.leak * s)
        return tanh(s) * (2 - a), s


@rnn.cell
class ThreeStates:
    """More states than gradients of sums."""

    gates = "a"
    states = "h", "k", "l"
    vectors = "p"

    def step(self, x: Any, u: Any, h: Any, k: Any, l: Any) -> Any:
        a = tanh(x.a + u.a(h))
        return a + l / 2, a * u.p * k - h / 4, k - a


@rnn.cell
class GatedOperand:
    """A product of what the same step computes: a second phase."""

    gates = "r", "n"
    states = "h"

    def step(self, x: Any, u: Any, h: Any) -> Any:
        r = sigmoid(x.r + u.r(h))
        return tanh(x.n + u.n(r * h)) * r + h / 2


@rnn.cell
class SquaredOperand:
    """A product of what is no state, but known before the step."""

    gates = "n"
    states = "h"

    def step(self, x: Any, u: Any, h: Any) -> Any:
        return tanh(x.n + u.n(h**2)) - 0.1 * h


@rnn.cell
class ShiftedOperand:
    """A product of what is not 0 where the state is."""

    gates = "n"
    states = "h"

    def step(self, x: Any, u: Any, h: Any) -> Any:
        return tanh(x.n + u.n(1 - h))


@rnn.cell
class WeightedOperand:
    """Vectors in what is multiplied, whose gradients come through the product, and an operand without a state."""

    gates = "a", "b"
    states = "h"
    vectors = "p", "q"

    def step(self, x: Any, u: Any, h: Any) -> Any:
        return tanh(x.a + u.a(u.p * h + u.q)) * sigmoid(x.b + u.b(u.q)) + h / 2


@rnn.cell
class LongSums:
    """Sums and products of more than two, some of them the same for all rows."""

    gates = "a"
    states = "h", "k", "l"
    vectors = "p", "q"

    def step(self, x: Any, u: Any, h: Any, k: Any, l: Any) -> Any:
        a = sigmoid(x.a + u.a(l))
        bent = tanh((1 - k) * tanh(a) * (k * k + u.p * u.q) + a)
        return sigmoid(sigmoid(l * u.p)) * h * 0.9 + a * 0.3 + 0.1 * a, bent, tanh(u.p * (a + k + u.q) + a)


@rnn.cell
class OperandOfInputs:
    """No product before the second phase."""

    gates = "r", "n"
    states = "h"

    def step(self, x: Any, u: Any, h: Any) -> Any:
        return tanh(x.n + u.n(sigmoid(x.r) * h))


@rnn.cell
class EveryFunction:
    """And of an input gate without a recurrent product, and the other way round."""

    gates = "a", "b", "c"
    states = "h"

    def step(self, x: Any, u: Any, h: Any) -> Any:
        a, b = x.a, u.b(h)
        smooth = exp(-abs(a)) * log(2 + b * b) / sqrt(1 + a * a)
        bent = maximum(a, b) - minimum(b, 0.5 * a) + where(a < b, 0.3 * a, -b) + relu(x.c + u.c(h))
        return tanh(smooth + bent)


def every_function(weights: dict[str, Array], x: Array, h: Array) -> Array:
    """The states of EveryFunction, in NumPy."""
    H, states = h.shape[1], []
    for now in x:
        inputs, hidden = (
            v @ weights[f"weight_{w}_l0"].T + weights[f"bias_{w}_l0"] for v, w in ((now, "ih"), (h, "hh"))
        )
        a, b, c = inputs[:, :H], hidden[:, :H], inputs[:, H:] + hidden[:, H:]
        smooth = np.exp(-np.abs(a)) * np.log(2 + b * b) / np.sqrt(1 + a * a)
        bent = np.maximum(a, b) - np.minimum(b, 0.5 * a) + np.where(a < b, 0.3 * a, -b) + np.maximum(c, 0)
        h = np.tanh(smooth + bent)
        states.append(h)
    return np.stack(states)


def two_states(weights: dict[str, Array], x: Array, h: Array, s: Array) -> Array:
    """The states h of TwoStates, in NumPy."""
    H, states = h.shape[1], []
    for now in x:
        sums = now @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]
        sums = sums + h @ weights["weight_hh_l0"].T + weights["bias_hh_l0"]
        a = 1 / (1 + np.exp(-sums[:, :H]))
        s = a * s + (1 - a) * np.tanh(sums[:, H:] + weights["leak_l0"] * s)
        h = np.tanh(s) * (2 - a)
        states.append(h)
    return np.stack(states)


# A type checker takes a decorated class for what it was before.
CELLS = (
    TwoStates,
    ThreeStates,
    GatedOperand,
    SquaredOperand,
    ShiftedOperand,
    WeightedOperand,
    LongSums,
    OperandOfInputs,
    EveryFunction,
)
OWN: dict[str, Any] = {made.__name__: made for made in CELLS}
SMALL = Problem("small", T=4, N=3, I=2, H=3, O=2, dtype="float64")


@pytest.fixture
def jit() -> Iterator[None]:
    with rnn.backend.using("halide-jit", schedule="tiled"):
        yield


@pytest.mark.usefixtures("jit")
@pytest.mark.parametrize("config", [{}, {"reverse": True}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("cell", OWN)
def test_gradients_are_central_differences(cell: str, config: dict[str, Any]) -> None:
    given = example(OWN[cell], SMALL, **config)
    check_differences(given)
    check_differences(given, lengths=[2, 0, 4])


@pytest.mark.usefixtures("jit")
@pytest.mark.parametrize("cell", ["TwoStates", "ShiftedOperand", "WeightedOperand", "OperandOfInputs"])
def test_with_masks_too(cell: str) -> None:
    given = example(OWN[cell], SMALL, recurrent_dropout=0.5, zoneout=0.25)
    reset = np.random.default_rng(1).random((SMALL.T, SMALL.N)) < 0.3
    reset[0, 0] = True
    check_differences(given, seed=3, reset=reset, lengths=[2, 0, 4])
    check_with_resets(given, reset)


@pytest.mark.parametrize("cell", ["LongSums", "GatedOperand"])
def test_a_row_alone_gives_the_bits_of_its_row_in_a_batch(cell: str) -> None:
    problem = Problem("rows", T=9, N=12, I=5, H=5, O=None)
    check_rows_alone(example(OWN[cell], problem), most=problem.N)


def check_with_resets(given: Example, reset: NDArray[np.bool_]) -> None:
    """A row that is set to zero before a step goes on as one that starts from zeros there."""
    whole = given.layer.forward(given.x, given.state, reset=reset).output
    for n in range(given.problem.N):
        for start in np.flatnonzero(reset[:, n]):
            following = np.flatnonzero(reset[start + 1 :, n])
            stop = start + 1 + following[0] if len(following) else given.problem.T
            alone = given.layer.forward(given.x[start:stop, n : n + 1]).output
            assert_allclose(alone, whole[start:stop, n : n + 1], rtol=1e-12)


@pytest.mark.usefixtures("jit")
@pytest.mark.parametrize(("cell", "expected"), [("EveryFunction", every_function), ("TwoStates", two_states)])
def test_values_are_those_of_the_equations(cell: str, expected: Callable[..., Array]) -> None:
    problem = named("odd primes")._replace(O=None, dtype="float64")
    _, layer, _, x, state, *_ = example(OWN[cell], problem)
    assert_allclose(layer.forward(x, state).output, expected(layer.weights, x, *each(state)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cell", OWN)
def test_single_steps_go_through_a_kernel_of_their_own(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("a step", T=2, N=3, I=5, H=19, O=2)
    given = example(OWN[cell], problem, num_layers=2)
    with rnn.backend.using("numpy"):
        output, state = given.wide(given.x[:1].astype("float64"), of(given.state, lambda a: a.astype("float64")))
    monkeypatch.setattr(rnn.Layer, "_step_of_a_sequence", None)
    got, last = given.layer.step(given.x[0], given.state)
    allowed = tolerance(problem, backward=False, more=operations(given.layer.cell))
    assert_close("output", got, output[0], allowed)
    for one, other in zip(each(last), each(state), strict=True):
        assert_close("state", one, other, allowed)


def test_the_equations_of_a_built_in_cell_are_that_cell() -> None:
    @rnn.cell
    class Again:
        gates = "i", "f", "g", "o"
        states = "h", "c"

        def step(self, x: Any, u: Any, h: Any, c: Any) -> Any:
            i, f, g, o = sigmoid(x.i + u.i(h)), sigmoid(x.f + u.f(h)), tanh(x.g + u.g(h)), sigmoid(x.o + u.o(h))
            c = f * c + i * g
            return o * tanh(c), c

    again: Any = Again
    assert again.cell.plain == rnn.LSTM(1, 1).cell.plain
    assert again.cell.digest == rnn.cells.BUILT_IN["lstm"].digest
    assert again.cell.digest != rnn.cells.BUILT_IN["lstm_coupled"].digest


def test_a_cell_is_a_layer_like_any_other(tmp_path: Path) -> None:
    layer = OWN["TwoStates"](3, 4, 2, True, output_size=2, seed=0, zoneout=(0.1, 0.2))
    assert {name: w.shape for name, w in layer.weights.items() if name.endswith("_l1")} == {
        "weight_ih_l1": (8, 8),
        "weight_hh_l1": (8, 4),
        "bias_ih_l1": (8,),
        "bias_hh_l1": (8,),
        "leak_l1": (4,),
    }
    assert repr(layer).startswith("TwoStates(input_size=3, hidden_size=4, num_layers=2, bidirectional=True")
    rnn.save(tmp_path / "own", layer)
    again = rnn.load(tmp_path / "own").layer
    assert type(again) is OWN["TwoStates"]
    assert again.config() == layer.config()
    for name, weight in layer.weights.items():
        assert_array_equal(weight, again.weights[name])


def test_a_gate_that_only_x_or_only_u_is_asked_for_has_rows_in_that_matrix_alone() -> None:
    shapes = {name: weight.shape for name, weight in OWN["EveryFunction"](7, 5).weights.items()}
    assert (shapes["weight_ih_l0"], shapes["weight_hh_l0"]) == ((10, 7), (10, 5))  # a c, b c


# Kernels that are compiled when they are first needed

PROGRAM = """
import os
import numpy as np
import rnn
from rnn.cells import sigmoid, tanh

@rnn.cell
class Leaky:
    gates = "z", "n"
    states = "h"

    def step(self, x, u, h):
        z = sigmoid(x.z + u.z(h))
        return z * h + (1 - z) * tanh(x.n + u.n(h)) * SCALE

rnn.set_num_threads(3)
rnn.LSTM(3, 5).forward(np.ones((4, 50, 3), "float32"))
before = len(os.listdir("/proc/self/task"))
layer = Leaky(3, 5, seed=0)
layer.forward(np.ones((4, 50, 3), "float32"))
assert len(os.listdir("/proc/self/task")) == before, "one pool of threads for all kernels"
run = layer.forward(np.ones((4, 2, 3), "float32"))
print(float(run.output.sum()))
if BACK:
    print(layer.bptt(run, np.ones_like(run.output)).x.tolist())
"""


def in_new_process(folder: Path, scale: float = 1.0, *, back: bool = True) -> subprocess.CompletedProcess[str]:
    """What the program does there; `scale` changes the cell's equations."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("SCALE", str(scale)).replace("BACK", str(back))],
        env={**os.environ, "RNN_CACHE": str(folder)},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def test_kernels_are_compiled_once_for_all_processes(tmp_path: Path) -> None:
    cache = tmp_path / "kernels"
    first = in_new_process(cache)
    assert "rnn: compiling Leaky (forward, float32) for" in first.stderr
    assert "rnn: compiling Leaky (bptt, float32) for" in first.stderr
    made = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert sorted(path.name.split("-")[0] for path in made) == ["bptt", "forward"]
    assert all(path.suffix == ".so" for path in made), "nothing is left of the making"

    second = in_new_process(cache)
    assert second.stderr == ""
    assert second.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == made

    other = in_new_process(cache, 0.5, back=False)
    assert "rnn: compiling Leaky (forward, float32) for" in other.stderr, "another cell under the same name"
    assert float(other.stdout) != float(first.stdout.splitlines()[0])
    assert len(list(cache.iterdir())) == 3


def test_the_folder_of_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RNN_CACHE", str(tmp_path / "own"))
    assert _compiler.folder() == tmp_path / "own"
    monkeypatch.delenv("RNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _compiler.folder() == tmp_path / "halide-rnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _compiler.folder() == tmp_path / ".cache" / "halide-rnn"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> rnn.Layer:
    """A cell that nobody has compiled, and an empty folder to compile it into."""
    monkeypatch.setenv("RNN_CACHE", str(tmp_path))

    @rnn.cell
    class Fresh:
        gates = "n"
        states = "h"

        def step(self, x: Any, u: Any, h: Any) -> Any:
            return tanh(x.n + u.n(h)) * 0.7

    made: Any = Fresh
    layer: rnn.Layer = made(2, 3, seed=0)
    return layer


X = np.ones((4, 2, 2), np.float32)


def test_without_halide_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, fresh: rnn.Layer) -> None:
    monkeypatch.setitem(sys.modules, "halide", None)
    with pytest.raises(rnn.backend.BackendUnavailable, match=r"Fresh \(float32\) is not among .*halide-rnn\[jit\]"):
        fresh.forward(X)


def test_without_halide_a_step_makes_do_with_the_forward_kernel(
    monkeypatch: pytest.MonkeyPatch, fresh: rnn.Layer
) -> None:
    want = fresh.forward(X).output[0]
    monkeypatch.setitem(sys.modules, "halide", None)
    assert_array_equal(fresh.step(X[0])[0], want)


def test_without_a_linker_it_says_so(monkeypatch: pytest.MonkeyPatch, fresh: rnn.Layer) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(rnn.backend.BackendUnavailable, match="compiling Fresh needs a C compiler"):
        fresh.forward(X)


def test_a_linker_that_fails_is_shown(monkeypatch: pytest.MonkeyPatch, fresh: rnn.Layer, tmp_path: Path) -> None:
    pipeline = _compiler.pipeline
    monkeypatch.setattr(  # the schedule that compiles fastest
        _compiler, "pipeline", lambda generator, cell, _, *rest: pipeline(generator, cell, "naive", *rest)
    )
    monkeypatch.setenv("CC", "false")
    with pytest.raises(rnn.backend.BackendUnavailable, match="could not link Fresh"):
        fresh.forward(X)
    assert not list(tmp_path.iterdir()), "half a kernel is not kept"


@pytest.mark.parametrize("name", OWN)
def test_numpy_runs_the_same_equations(name: str, rng: np.random.Generator) -> None:
    layer = OWN[name](3, 5, seed=1, dtype="float64")
    x, d_output = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 5))
    found = []
    for backend in ("numpy", "halide"):
        with rnn.backend.using(backend):
            run = layer.forward(x)
            found.append((run.output, layer.bptt(run, d_output)))
    (output, gradients), (got_output, got) = found
    np.testing.assert_allclose(got_output, output, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got.x, gradients.x, rtol=1e-10, atol=1e-12)
    for weight, gradient in gradients.weights.items():
        np.testing.assert_allclose(got.weights[weight], gradient, rtol=1e-10, atol=1e-12, err_msg=weight)


# What makes no cell

Step = Callable[..., Any]


def define(step: Step, gates: Any = ("a", "b"), states: Any = "h", vectors: Any = ()) -> type[rnn.Layer]:
    return rnn.cell(type("Mine", (), {"gates": gates, "states": states, "vectors": vectors, "step": step}))


def too_few_states(self: object, x: Any, u: Any, h: Any, c: Any) -> Any:
    return tanh(x.a + u.b(h)) + c


def too_many_states(self: object, x: Any, u: Any, h: Any) -> Any:
    return tanh(x.a + u.b(h)), h


def unknown_gate(self: object, x: Any, u: Any, h: Any) -> Any:
    return tanh(x.a + x.z + u.b(h))


def unknown_recurrent_gate(self: object, x: Any, u: Any, h: Any) -> Any:
    return tanh(x.a + u.z(h))


def gate_not_used(self: object, x: Any, u: Any, h: Any) -> Any:
    return tanh(x.a + u.a(h))


def two_products(self: object, x: Any, u: Any, h: Any) -> Any:
    return tanh(x.a + u.a(h) + x.b + u.a(h * h))


def no_input(self: object, x: Any, u: Any, h: Any) -> Any:
    return tanh(u.a(h) + u.b(h))


def python_if(self: object, x: Any, u: Any, h: Any) -> Any:
    return x.a if x.a > 0 else x.b


def python_max(self: object, x: Any, u: Any, h: Any) -> Any:
    return max(x.a, x.b + u.b(h))


def no_expression(self: object, x: Any, u: Any, h: Any) -> Any:
    return 3.0


def nothing(self: object, x: Any, u: Any, h: Any) -> Any:
    tanh(x.a + x.b + u.a(h))


def text(self: object, x: Any, u: Any, h: Any) -> Any:
    return tanh(x.a + x.b + "1")


def numpys(self: object, x: Any, u: Any, h: Any) -> Any:
    return np.tanh(x.a + x.b + u.a(h))


def product_of_a_number(self: object, x: Any, u: Any, h: Any) -> Any:
    return tanh(x.a + x.b + u.a(1.0))


def value_called(self: object, x: Any, u: Any, h: Any) -> Any:
    return tanh(x.a(h) + x.b)


def bad_condition(self: object, x: Any, u: Any, h: Any) -> Any:
    return where(x.a, x.b, u.a(h))


def too_few_arguments(self: object, x: Any, u: Any) -> Any:
    return tanh(x.a + x.b)


def good(self: object, x: Any, u: Any, h: Any) -> Any:
    return tanh(x.a + x.b + u.a(h))


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "too few states": (
        lambda: define(too_few_states, states=("h", "c")),
        "Mine.step: expected the new values of the states h, c, got 1 of them",
    ),
    "too many states": (lambda: define(too_many_states), "Mine.step: expected the new values of .* h, got 2 of them"),
    "unknown gate": (lambda: define(unknown_gate), r"x\.z: expected one of the gates a, b"),
    "unknown recurrent gate": (
        lambda: define(unknown_recurrent_gate),
        r"u\.z: expected one of the gates and vectors a, b",
    ),
    "gate not used": (lambda: define(gate_not_used), "Mine.step: gate b is not used"),
    "two products": (
        lambda: define(two_products),
        r"u\.a: expected one product for a gate, got 2 with different operands",
    ),
    "no input": (lambda: define(no_input), "Mine.step: no use of x"),
    "python if": (lambda: define(python_if), r"Mine: .*values are not known .*write where\(condition, a, b\)"),
    "python max": (lambda: define(python_max), r"Mine: .*values are not known"),
    "no expression": (lambda: define(no_expression), "Mine.step: expected the new values of the states h, got 3.0"),
    "nothing": (lambda: define(nothing), "Mine.step: expected the new values of the states h, got None"),
    "text": (lambda: define(text), "Mine: .*expected a value or a number, got str"),
    "NumPy's function": (lambda: define(numpys), "Mine: .*does not support ufuncs"),
    "product of a number": (
        lambda: define(product_of_a_number),
        r"u\.a\(\.\.\.\): expected a value of the cell, got 1.0",
    ),
    "a value called": (lambda: define(value_called), r"Mine: x\.a is a value, not a function; .*u\.gate\(value\)"),
    "a condition that is none": (
        lambda: define(bad_condition),
        "Mine: condition: expected a comparison a < b or a > b, got x.a",
    ),
    "too few arguments": (lambda: define(too_few_arguments), "Mine: .*takes 3 positional arguments but 4 were given"),
    "no gates": (lambda: define(good, gates=()), "Mine: expected at least one gate and one state"),
    "no states": (lambda: define(good, states=()), "Mine: expected at least one gate and one state"),
    "a gate that is no name": (lambda: define(good, gates=("a", "b c")), "Mine.gates: expected names, got 'b c'"),
    "a gate that is a number": (lambda: define(good, gates=("a", 3)), "Mine.gates: expected names, got 3"),
    "a gate with an underscore": (lambda: define(good, gates=("a", "_b")), "Mine.gates: expected names, got '_b'"),
    "a gate twice": (lambda: define(good, gates=("a", "a")), "Mine.gates: expected names that differ, got a, a"),
    "a vector that is no name": (lambda: define(good, vectors="1"), "Mine.vectors: expected names, got '1'"),
    "a vector named as a gate": (lambda: define(good, vectors="a"), "Mine.*: expected names that differ"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_equations_are_explained(bad: str) -> None:
    call, message = BAD[bad]
    with pytest.raises(CellError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "message"), [("LSTM", "cell: expected a name other than RNN, LSTM, .*got LSTM"), ("Layer", "got Layer")]
)
def test_names_of_our_layers_are_taken(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rnn.cell(type(name, (), {"gates": ("a", "b"), "states": "h", "step": good}))
    assert rnn.layers.layer_class("LSTM") is rnn.LSTM


@pytest.mark.parametrize("what", [3, good, type("Empty", (), {})])
def test_a_cell_is_a_class_with_a_step(what: Any) -> None:
    with pytest.raises(TypeError, match="cell: expected a class with a method step, got"):
        rnn.cell(what)
