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
import sys
import numpy as np
from problems import PROBLEMS, data
from tolerance import assert_close, tolerance
import rnn
from rnn._kernels import instruction_set
from rnn.baselines import recurrence
from rnn.baselines.cells import CELLS

for problem in PROBLEMS:
    cell = problem.cell
    x, h0, weights, d_output, d_state = data(problem)
    wide = {name: weight.astype(np.float64) for name, weight in weights.items()}
    want = recurrence.forward(CELLS[cell], x.astype(np.float64), (h0.astype(np.float64),), wide)
    with rnn.backend.using("halide") as chosen:
        tape = chosen.forward(cell, x, h0, weights)
        assert_close(f"{problem}: output", tape.output, want.output, tolerance(problem, backward=False))
        states = want.states[0].astype(problem.dtype)
        tape = tape._replace(states=(states,))
        got = chosen.bptt(cell, x, weights, tape, d_output, d_state)
    back = recurrence.bptt(CELLS[cell], x.astype(np.float64), wide, (states.astype(np.float64),), (),
                           d_output.astype(np.float64), (d_state.astype(np.float64),))
    for name, gradient in got.weights.items():
        assert_close(f"{problem}: {name}", gradient, back.weights[name], tolerance(problem, backward=True))
    assert_close(f"{problem}: x", got.x, back.x, tolerance(problem, backward=True))
    assert_close(f"{problem}: h0", got.h0, back.initial[0], tolerance(problem, backward=True))
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
