"""The generators by themselves: how near the activations come, and what the tuned recurrence compiles to."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rnn
from rnn._backends import halide_jit

hl = pytest.importorskip("halide")
AVX512 = "x86-64-linux-sse41-avx-f16c-fma-avx2-avx512-avx512_skylake"
TARGETS = [AVX512, "x86-64-linux-sse41-avx-f16c-fma-avx2", "x86-64-linux-sse41"]


@pytest.fixture
def activations(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(rnn.__file__).parent / "halide_gen")
    monkeypatch.delitem(sys.modules, "activations", raising=False)
    return importlib.import_module("activations")


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
    }
    with np.errstate(all="ignore"):
        return functions[name](x)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("on", TARGETS)
def test_float32_activations_are_within_4_ulp(activations: Any, name: str, on: str) -> None:
    """Every 1021st float32, from all of them: NaN, infinities and subnormal numbers are there too."""
    x = np.arange(0, 2**32, 1021, dtype=np.uint32).view(np.float32)
    got = evaluate(getattr(activations, name), x, target(on))
    with np.errstate(invalid="ignore"):  # signalling NaN
        want = exact(name, x.astype(np.float64))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(x))
    keep = ~np.isnan(x) & (np.abs(x) < np.finfo(np.float32).max / 2)  # spacing overflows at the very end
    assert ulps(got[keep], want[keep]) <= 4
    if name != "relu":
        assert np.abs(got[~np.isnan(got)]).max() <= 1


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_float64_activations_are_within_4_ulp(activations: Any, name: str, rng: np.random.Generator) -> None:
    """Against NumPy's 80-bit long double."""
    x = np.concatenate([rng.uniform(-1, 1, 20000), rng.uniform(-40, 40, 20000), rng.uniform(-700, 700, 2000)])
    got = evaluate(getattr(activations, name), x, hl.get_host_target())
    assert ulps(got, exact(name, x.astype(np.longdouble))) <= 4


@pytest.mark.parametrize("on", TARGETS)
def test_special_values(activations: Any, on: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -np.inf, np.inf, 1e30, -1e30], np.float32)
    tanh, sigmoid, relu = (evaluate(getattr(activations, f), x, target(on)) for f in ("tanh", "sigmoid", "relu"))
    np.testing.assert_array_equal(tanh, np.array([np.nan, 1, -1, 0, -1, 1, 1, -1], np.float32))
    np.testing.assert_array_equal(sigmoid, np.array([np.nan, 1, 0, 0.5, 0, 1, 1, 0], np.float32))
    np.testing.assert_array_equal(relu, np.array([np.nan, np.inf, 0, 0, 0, np.inf, 1e30, 0], np.float32))


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


@pytest.mark.parametrize(("direction", "func"), [("forward", "layer"), ("bptt", "back")])
def test_the_loop_over_k_holds_multiply_adds_and_loads_and_no_stores(direction: str, func: str, tmp_path: Path) -> None:
    with hl.GeneratorContext(hl.Target(AVX512)):
        generator = halide_jit._generator(direction)({"cell": "rnn_tanh", "schedule": "tuned"})
        pipeline = generator._build_pipeline()
        inputs = [
            generator._get_input_parameter(a.name)._to_argument()
            for a in generator._get_arginfos()
            if a.dir == hl.ArgInfoDirection.Input
        ]
    pipeline.compile_to_assembly(str(tmp_path / "tuned.s"), inputs, direction, hl.Target(AVX512))
    loops = innermost_loops((tmp_path / "tuned.s").read_text())
    # LLVM names a block after the loop variable: stage 2 of the recurrence, the one over k
    for layout in ("wide", "some", "narrow", "single", "single_narrow"):
        found = [
            loop
            for loop in loops
            if re.search(rf"[0-9]_for_{func}_{layout}(\$\d+)?\.s2\.{func}_{layout}_r(\$\d+)?\$w", loop[0])
        ]
        assert found, layout
        for loop in found:
            assert sum("fmadd" in line for line in loop) >= 2
            stores = [line for line in loop if re.match(r"\s+vmov\S+\s+%[xyz]mm\d+,\s*\S*\(", line)]
            assert not stores
