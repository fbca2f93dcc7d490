"""Starts the workers, checks that they agree, has them timed in turns, and has them learn."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tolerance import assert_close, tolerance

from . import timer
from .cases import Case, Step

WORKER = Path(__file__).resolve().parent / "worker.py"
REFERENCE = "numpy"
IMPLEMENTATIONS = ("halide", REFERENCE)
PASSES = ("forward", "train")
THREAD_VARIABLES = ("RNN_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


class Row(NamedTuple):
    """One measured figure."""

    case: str
    T: int
    N: int
    I: int
    H: int
    O: int
    pass_: str
    threads: int
    implementation: str
    seconds_min: float
    seconds_median: float
    samples: int
    stable: bool
    ratio: float
    """Seconds of the reference over these, of the same run: above 1 is faster than the reference."""


class Curve(NamedTuple):
    """One training run."""

    case: str
    implementation: str
    threads: int
    loss: list[float]
    seconds: list[float]
    """Of each epoch."""
    error: float | None
    """Relative RMSE on what was held out; None if it wasn't trained to the end."""
    linear: float | None
    """That of the best linear predictor of the current input alone."""


@dataclass
class Results:
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """Implementation -> why it wasn't measured. To be said wherever its figures would be."""


class WorkerFailed(Exception):
    """A worker could not do what it was asked for; the message says why."""


class Absent(Exception):
    """An implementation can't run here; the message says why."""


class WorkerProcess:
    """The near end of `worker.py`."""

    def __init__(self, implementation: str, threads: int) -> None:
        self.implementation = implementation
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RNN_")}
        environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), implementation],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        first = self._read()
        if "absent" in first:
            self.close()
            raise Absent(first["absent"])

    def ask(self, tell: Callable[[dict[str, Any]], None] | None = None, **request: Any) -> dict[str, Any]:
        """One request; `tell` gets what comes before the last answer. Raises WorkerFailed."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerFailed(f"{self.implementation}: the worker ended with status {self.process.wait()}") from None
        answer = self._read()
        while "epoch" in answer:
            if tell:
                tell(answer)
            answer = self._read()
        if "error" in answer and len(answer) == 1:
            raise WorkerFailed(f"{self.implementation}: {answer['error']}")
        return answer

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise WorkerFailed(f"{self.implementation}: the worker ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def workers(threads: int, results: Results) -> Iterator[dict[str, WorkerProcess]]:
    """A worker for each implementation that can run here; the others go into `results.absent`."""
    with contextlib.ExitStack() as stack:
        started = {}
        for implementation in IMPLEMENTATIONS:
            try:
                started[implementation] = worker = WorkerProcess(implementation, threads)
            except (Absent, WorkerFailed) as reason:
                results.absent[implementation] = str(reason)
            else:
                stack.callback(worker.close)
        yield started


def time_steps(
    steps: Sequence[Step], threads: int, budget: float, results: Results, say: Callable[[str], None]
) -> None:
    """Time forward passes and whole training steps of all implementations; `budget` seconds for each pass."""
    with tempfile.TemporaryDirectory() as folder, workers(threads, results) as started:
        for step in steps:
            file = Path(folder) / "step.npz"
            save_step(file, step)
            for worker in started.values():
                worker.ask(do="load", file=str(file))
            check(step, started, Path(folder))
            for which in PASSES:
                timings = timer.measure(
                    {name: asking(worker, which) for name, worker in started.items()},
                    budget,
                )
                reference = timings[REFERENCE].minimum
                problem = step.problem
                for name, taken in timings.items():
                    ratio = reference / taken.minimum
                    sizes = (problem.T, problem.N, problem.I, problem.H, problem.O or 0)
                    results.rows.append(Row(step.name, *sizes, which, threads, name, *taken, ratio))
                figures = ", ".join(f"{name} {1000 * taken.minimum:.3g} ms" for name, taken in timings.items())
                say(f"{step.name}, {which}, {threads} thread{'s' * (threads > 1)}: {figures}")


def asking(worker: WorkerProcess, which: str) -> Callable[[int], float]:
    return lambda runs: float(worker.ask(do="time", which=which, runs=runs)["seconds"])


def save_step(file: Path, step: Step) -> None:
    arrays: dict[str, Any] = {"config": json.dumps(step.layer.config()), "x": step.x, "d_output": step.d_output}
    np.savez(file, **(arrays | step.layer.weights))


def check(step: Step, started: dict[str, WorkerProcess], folder: Path) -> None:
    """Raise WorkerFailed unless all agree with the reference: what is wrong isn't worth timing."""
    found = {}
    for name, worker in started.items():
        file = folder / f"{name}.npz"
        worker.ask(do="results", file=str(file))
        with np.load(file) as arrays:
            found[name] = {array: arrays[array] for array in arrays.files}
    for name, arrays in found.items():
        for array, want in found[REFERENCE].items():
            try:
                assert_close(array, arrays[array], want, tolerance(step.problem, backward=array != "output"))
            except AssertionError as reason:
                raise WorkerFailed(f"{name} differs from {REFERENCE} on {step.name!r}: {reason}") from None


def learn(
    cases: Sequence[Case],
    threads: int,
    out: Path,
    footer: str,
    results: Results,
    say: Callable[[str], None],
) -> list[Path]:
    """Train each case on each implementation; returns the pictures that the first one of them drew."""
    drawn: list[Path] = []
    with workers(threads, results) as started:
        for case in cases:
            for number, (name, worker) in enumerate(started.items()):
                stem = out / f"learned-{case.task}-{case.mode}"
                pictures = [stem.with_suffix(end) for end in (".png", ".svg")] if number == 0 and case.judged else []

                def tell(answer: dict[str, Any], what: str = f"{case.name}, {name}") -> None:
                    if answer["epoch"] % max(1, answer["epochs"] // 3) == 0:
                        say(f"{what}: epoch {answer['epoch']} of {answer['epochs']}")

                answer = worker.ask(
                    tell,
                    do="learn",
                    task=case.task,
                    mode=case.mode,
                    size=case.size,
                    epochs=case.epochs,
                    judged=case.judged,
                    pictures=[str(path) for path in pictures],
                    footer=footer,
                )
                drawn += pictures
                curve = Curve(
                    case.name, name, threads, answer["loss"], answer["seconds"], answer["error"], answer["linear"]
                )
                results.curves.append(curve)
    return drawn
