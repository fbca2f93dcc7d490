"""The generators by themselves: how near the activations come, and what the tuned recurrence compiles to."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rnn import _compiler, _generators
from rnn.cells import BUILT_IN

hl = pytest.importorskip("halide")
AVX512 = "x86-64-linux-sse41-avx-f16c-fma-avx2-avx512-avx512_skylake"
AVX2 = "x86-64-linux-sse41-avx-f16c-fma-avx2"
TARGETS = [AVX512, AVX2, "x86-64-linux-sse41"]


@pytest.fixture(scope="module")
def functions() -> dict[str, Callable[..., Any]]:
    """What the generators make of each operation of a cell's equations."""
    found: dict[str, Callable[..., Any]] = _generators.module("activations").FUNCTIONS
    return found


def target(name: str) -> Any:
    host = hl.get_host_target()
    wanted = hl.Target(name)
    if name == AVX512 and not host.has_feature(hl.TargetFeature.AVX512_Skylake):
        pytest.skip("this machine has no AVX-512")
    return wanted


def evaluate(function: Callable[[Any], Any], x: NDArray[Any], on: Any) -> NDArray[Any]:
    dtype = hl.Float(x.dtype.itemsize * 8)
    given, out, i = hl.ImageParam(dtype, 1), hl.Func("out"), hl.Var("i")
    out[i] = function(given[i])
    out.vectorize(i, on.natural_vector_size(dtype), hl.TailStrategy.GuardWithIf)
    result = np.empty_like(x)
    out.compile_to_callable([given], on)(hl.Buffer(x), hl.Buffer(result))
    return result


def ulps(got: NDArray[Any], want: NDArray[Any]) -> float:
    """The largest error in units of the last place of the true value, over the finite ones."""
    finite = np.isfinite(want)
    spacing = np.spacing(np.abs(want[finite]).astype(got.dtype)).astype(np.longdouble)
    return float((np.abs(got[finite].astype(np.longdouble) - want[finite]) / spacing).max())


def exact(name: str, x: NDArray[Any]) -> NDArray[Any]:
    functions: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
        "tanh": np.tanh,
        "sigmoid": lambda x: np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x))),
        "relu": lambda x: np.maximum(x, 0),
        "exp": np.exp,
        "log": np.log,
        "sqrt": np.sqrt,
    }
    with np.errstate(all="ignore"):
        return functions[name](x)


Functions = dict[str, Callable[..., Any]]


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu", "exp", "log", "sqrt"])
@pytest.mark.parametrize("on", TARGETS)
def test_float32_functions_are_within_4_ulp(functions: Functions, name: str, on: str) -> None:
    """Every 1021st float32, from all of them: NaN, infinities and subnormal numbers are there too."""
    x = np.arange(0, 2**32, 1021, dtype=np.uint32).view(np.float32)
    got = evaluate(functions[name], x, target(on))
    with np.errstate(invalid="ignore"):  # signalling NaN
        want = exact(name, x.astype(np.float64))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    largest = np.finfo(np.float32).max / 2  # spacing overflows at the very end
    keep = ~np.isnan(want) & (np.abs(x) < largest) & (np.abs(want) < largest)
    assert ulps(got[keep], want[keep]) <= 4
    np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])
    if name in ("tanh", "sigmoid"):
        assert np.abs(got[~np.isnan(got)]).max() <= 1


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "exp", "log", "sqrt"])
def test_float64_functions_are_within_4_ulp(functions: Functions, name: str, rng: np.random.Generator) -> None:
    """Against NumPy's 80-bit long double."""
    x = np.concatenate([rng.uniform(-1, 1, 20000), rng.uniform(-40, 40, 20000), rng.uniform(-700, 700, 2000)])
    x = np.abs(x) if name in ("log", "sqrt") else x
    got = evaluate(functions[name], x, hl.get_host_target())
    assert ulps(got, exact(name, x.astype(np.longdouble))) <= 4


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30]
AT_SPECIAL = {
    "tanh": [np.nan, 1, -1, 0, 0, 1, -1],
    "sigmoid": [np.nan, 1, 0, 0.5, 0.5, 1, 0],
    "relu": [np.nan, np.inf, 0, 0, 0, 1e30, 0],
    "step": [np.nan, 1, 0, 0, 0, 1, 0],
    "exp": [np.nan, np.inf, 0, 1, 1, np.inf, 0],
    "log": [np.nan, np.inf, np.nan, -np.inf, -np.inf, np.log(1e30), np.nan],
    "sqrt": [np.nan, np.inf, np.nan, 0, 0, 1e15, np.nan],
    "abs": [np.nan, np.inf, np.inf, 0, 0, 1e30, 1e30],
}


@pytest.mark.parametrize("name", AT_SPECIAL)
@pytest.mark.parametrize("on", TARGETS)
def test_special_values(functions: Functions, name: str, on: str) -> None:
    x, want = (np.array(values, np.float32) for values in (SPECIAL, AT_SPECIAL[name]))
    np.testing.assert_allclose(evaluate(functions[name], x, target(on)), want, rtol=3e-7 if name == "log" else 0)


def innermost_loops(assembly: str) -> list[list[str]]:
    """The instructions of each innermost loop: from a label to a jump back to it with no such pair inside."""
    lines = assembly.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\.LBB\d+_\d+):", line))}
    loops = [
        (labels[m[1]], i)
        for i, line in enumerate(lines)
        if (m := re.match(r"\s+j\w+\s+(\.LBB\d+_\d+)", line)) and labels.get(m[1], len(lines)) < i
    ]
    return [lines[a : b + 1] for a, b in loops if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)]


LAYOUTS = {
    ("rnn_tanh", "forward"): (
        "wide", "few", "pair", "thin", "rows_10", "rows_6", "single", "turning", "narrow", "single_narrow",
    ),
    ("rnn_tanh", "bptt"): (
        "wide", "few", "pair", "thin", "rows_10", "rows_6", "single", "turning", "narrow", "single_narrow",
    ),
    ("lstm", "forward"): ("wide", "half", "rows_8", "rows_10", "single", "single_narrow", "few", "pair"),
    ("lstm", "bptt"): ("wide", "few", "pair", "half", "thin", "broad", "single", "single_narrow"),
    ("gru", "forward"): ("wide", "half", "rows_6", "rows_5", "single", "single_narrow", "few", "pair"),
    ("gru", "bptt"): ("wide", "few", "pair", "half", "thin", "broad", "single", "single_narrow"),
    ("gru_reset_before", "forward"): ("wide", "single"),
    ("gru_reset_before", "bptt"): ("wide", "single"),
}  # fmt: skip
LAYOUTS_AVX2 = {
    ("rnn_tanh", "forward"): ("wide", "rows_4", "single", "pair"),
    ("lstm", "forward"): ("wide", "rows_4", "single", "pair"),
    ("lstm", "bptt"): ("wide", "rows_4", "single", "pair"),
    ("gru", "forward"): ("wide", "single", "pair"),
    ("gru", "bptt"): ("wide", "rows_4", "single", "pair"),
}
"""Those of `machine.py` that a recurrence chooses among, but for the shared ones. For SSE4.1, LLVM spills where several
products go into a sum."""


@pytest.mark.parametrize(
    ("on", "cell", "direction", "names"),
    [(on, *key, names) for on, known in ((AVX512, LAYOUTS), (AVX2, LAYOUTS_AVX2)) for key, names in known.items()],
)
def test_the_loop_over_k_holds_multiply_adds_and_loads_and_no_stores(
    on: str, cell: str, direction: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    func, stage = {"forward": ("layer", 3), "bptt": ("back", 4)}[direction]
    with hl.GeneratorContext(hl.Target(on)):
        generator = _compiler.pipeline(direction, BUILT_IN[cell], "tuned", "float32", False)
        pipeline, inputs = _compiler.built(generator)
        arguments = [parameter._to_argument() for parameter in inputs]
    pipeline.compile_to_assembly(str(tmp_path / "tuned.s"), arguments, direction, hl.Target(on))
    assembly = (tmp_path / "tuned.s").read_text()
    assert not re.search(r"_for_\S+_given\S+\.within", assembly), "vectors of what a step is given: a mask for the last"
    loops = innermost_loops(assembly)
    # LLVM names a block after the loop variable: the last stage of the recurrence, the one over k
    for layout in names:
        name = rf"{func}_{layout}(\$\d+)?\.s{stage}\.{func}_{layout}_r(\$\d+)?\$w"
        found = [loop for loop in loops if re.search(rf"[0-9]_for_{name}", loop[0])]
        assert found, layout
        for loop in found:
            assert sum("fmadd" in line for line in loop) >= 2
            stores = [line for line in loop if re.match(r"\s+vmov\S+\s+%[xyz]mm\d+,\s*\S*\(", line)]
            assert not stores
