"""The kernels of every instruction set that this machine has, forced one by one; each in a process of its own, since
Halide keeps its choice once a kernel has run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETS = ["avx512", "avx2", "sse41"]
CHECK = """
import numpy as np
from layer_checks import LAYERS, check, check_rows_alone, example
from problems import PROBLEMS, named
from rnn._kernels import instruction_set
from test_step import INPUTS, WIDTHS, check_step, one_step

for problem in PROBLEMS:
    if problem.cell in LAYERS:
        check(example(LAYERS[problem.cell], problem))
NAMES = "no readout", "odd primes", "one lane over two vectors", "one lane over two vectors, one lane", "wide state"
for name in NAMES:
    for dtype in ("float32", "float64"):
        problem = named(name)._replace(dtype=dtype)
        lengths = np.arange(problem.N) % (problem.T + 1)
        for make in LAYERS.values():
            check(example(make, problem, reverse=True), lengths=lengths)
            check_rows_alone(example(make, problem), most=2)
    for cell in ("rnn_tanh", "lstm", "gru"):
        given = example(LAYERS[cell], named(name), recurrent_dropout=0.5, zoneout=0.25)
        check(given, seed=1, reset=np.arange(problem.T * problem.N).reshape(problem.T, problem.N) % 5 == 0)
for make in LAYERS.values():
    for H in WIDTHS:
        check_step(one_step(make, 2, 5, H, 3, 2))
    for I in INPUTS:
        check_step(one_step(make, 1, I, 11, None, 1))
print(instruction_set())
"""


def run(code: str, instruction_set: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RNN_INSTRUCTION_SET": instruction_set}
    here = Path(__file__).parent
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def widest() -> str:
    done = run("from rnn._kernels import instruction_set; print(instruction_set())", "")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("instruction_set", SETS)
def test_every_problem(instruction_set: str) -> None:
    have = SETS[SETS.index(widest()) :]
    if instruction_set not in have:
        pytest.skip(f"this machine has no {instruction_set}")
    done = run(CHECK, instruction_set)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == instruction_set


def test_an_unknown_one_is_named() -> None:
    done = run("import rnn", "avx9000")
    assert done.returncode != 0
    assert "RNN_INSTRUCTION_SET: expected avx512, avx2 or sse41, got 'avx9000'" in done.stderr
