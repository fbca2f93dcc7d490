"""Starts the workers, checks what they compute, and has them timed in turns."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import problems

import rnn.tasks
from rnn.baselines.network import Objective
from rnn.baselines.remote import Remote, RemoteError
from rnn.baselines.theano_environment import NoTheano

from . import instruction_sets, timer
from .cases import Array, Step
from .check import Expected, check, expected
from .implementations import IMPLEMENTATIONS, RIVALS, command
from .machine import Limits
from .results import Curve, FirstStep, Memory, Row

WORKER = str(Path(__file__).resolve().parent / "worker.py")
PASSES = ("forward", "train")
THREAD_VARIABLES = ("RNN_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
RATE = 1e-4
"""Learning rate of the steps that are timed: nothing that matters happens to the weights."""


class WorkerFailed(Exception):
    """A worker could not do what it was asked for, or did it wrong; the message says who, what and why."""


class Absent(Exception):
    """An implementation can't run here; the message says why."""


class Worker(Remote):
    """The near end of `worker.py`: one implementation on these processors. Raises Absent."""

    def __init__(self, name: str, processors: Sequence[int], **environment: str) -> None:
        implementation = IMPLEMENTATIONS[name]
        self.name = name
        self.threads = len(processors)
        try:
            interpreter = command(name)
        except NoTheano as reason:
            raise Absent(str(reason).removeprefix(f"{name}: ")) from None
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("RNN_")}
        if folder := os.environ.get("RNN_THEANO"):
            inherited["RNN_THEANO"] = folder
        numbers = ",".join(map(str, processors))
        super().__init__(
            [*interpreter, WORKER, implementation.module, numbers, implementation.backend, implementation.option],
            {**inherited, **dict.fromkeys(THREAD_VARIABLES, str(len(processors))), **environment},
        )
        try:
            started = self.ask("start")
        except WorkerFailed as reason:
            raise Absent(str(reason).removeprefix(f"{name}: ")) from None
        if "absent" in started:
            self.close()
            raise Absent(started["absent"])
        self.versions: dict[str, str] = started["versions"]
        self.resident: float = started["resident"]
        self.cache: str = started["cache"]

    def ask(self, do: str, *arguments: Any, **values: Any) -> Any:
        """As Remote.ask; raises WorkerFailed."""
        try:
            return super().ask(do, *arguments, **values)
        except RemoteError as reason:
            raise WorkerFailed(f"{self.name}: {do}: {reason}") from None

    def create(self, step: Step, objective: Objective = Objective()) -> float:  # noqa: B008
        """Make the network of a step in the worker; the seconds that took there."""
        arrays = {**step.weights, "x": step.x, "target": step.target}
        return float(self.ask("create", arrays, cell=step.problem.cell, objective=list(objective))["seconds"])

    def timed(self, which: str) -> Callable[[int], float]:
        return lambda runs: float(self.ask("time", which=which, rate=RATE, runs=runs)["seconds"])


@dataclass
class Session:
    """What one run of the benchmark shares."""

    out: Path
    processors: list[int]
    """That may be used, one thread on each."""
    rivals: tuple[str, ...]
    budget: float
    """Seconds to time one pass of one problem on three implementations; more take more."""
    quick: bool
    limits: Mapping[int, Limits]
    """Of the machine, by threads."""
    say: Callable[[str], None]
    card: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    first_steps: list[FirstStep] = field(default_factory=list)
    learned: dict[str, tuple[rnn.tasks.Task, list[Array]]] = field(default_factory=dict)
    """Case -> its data, and what we made of the held-out part."""
    whole_grid: bool = True
    """Whether `peers` measures all problems of the grid, which takes longer than everything else, or a sample."""
    absent: dict[str, str] = field(default_factory=dict)
    """Implementation -> why it wasn't measured. To be said wherever its figures would be."""
    failures: list[str] = field(default_factory=list)
    """Rivals that were wrong on a problem, and so weren't timed there."""
    isa: str = ""
    """The instruction set that all are held to, if any."""

    @property
    def counts(self) -> list[int]:
        """Numbers of threads to measure: one and all."""
        return sorted({1, len(self.processors)})

    def some(self, problems: Sequence[Any], each: int) -> Sequence[Any]:
        """All, or with --quick one in `each`."""
        return problems[::each] if self.quick else problems

    def last(self, threads: int) -> list[int]:
        """So many of the processors: the last ones, since most of the system's own work lands on the first."""
        return self.processors[-threads:]

    def worker(self, name: str, processors: Sequence[int], **environment: str) -> Worker:
        """An implementation's process, held to the instruction set. Raises Absent."""
        if reason := instruction_sets.BEYOND.get(self.isa, {}).get(name):
            raise Absent(reason)
        return Worker(name, processors, **instruction_sets.variables(self.isa), **environment)

    @contextlib.contextmanager
    def crew(self, names: Sequence[str], processors: Sequence[int]) -> Iterator[dict[str, Worker]]:
        """A process on these processors for each implementation that can run here; the others go to `absent`."""
        with contextlib.ExitStack() as stack:
            started = {}
            for name in names:
                try:
                    started[name] = worker = stack.enter_context(self.worker(name, processors))
                except Absent as reason:
                    self.absent[name] = str(reason)
                else:
                    library = name.replace(",", " ").split()[0]  # rungs of the ladder are one
                    self.card[library] = ", ".join(map(" ".join, worker.versions.items()))
            yield started

    @contextlib.contextmanager
    def crews(self, names: Sequence[str], counts: Sequence[int] = ()) -> Iterator[list[dict[str, Worker]]]:
        """A crew for each of these numbers of threads, or for those to be measured."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self.crew(names, self.last(count))) for count in counts or self.counts]

    def measure(
        self,
        benchmark: str,
        crews: Sequence[Mapping[str, Worker]],
        step: Step,
        passes: Sequence[str] = PASSES,
    ) -> list[Row]:
        """Check every worker on a step, then time those of each crew in turns, the passes that the problem has. A rival
        that is wrong there goes to `failures`, and isn't timed; raises WorkerFailed if we are.

        Those of a crew are checked at once, as far as there are processors, since some compile for it: two OpenBLAS of
        two threads each wait for each other (five to seven times as long). Not those of all crews: Theano's processes
        would wait for each other's lock, 5 s at a time."""
        want = expected(step)
        if step.problem.forward_only:
            passes = [which for which in passes if which == "forward"]
        made = []
        for crew in crews:
            at_once = len(self.processors) // max((worker.threads for worker in crew.values()), default=1)
            with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
                found = pool.map(lambda worker: self.is_right(worker, step, want), crew.values())
            right = {name: crew[name] for name, is_right in zip(crew, found, strict=True) if is_right}
            for which in passes if right else ():
                made += self.time(benchmark, right, step.problem, which)
        return made

    def is_right(self, worker: Worker, step: Step, want: Expected) -> bool:
        implementation = IMPLEMENTATIONS[worker.name]
        try:
            worker.create(step)
            check(worker, step, want, whole=not implementation.option)
        except (AssertionError, WorkerFailed) as reason:
            failure = f"{worker.name} on {step.problem.name}: {reason}"
            if implementation.backend:
                raise WorkerFailed(failure) from None
            self.failures.append(failure)
            self.say(f"WRONG, NOT TIMED: {failure}")
            return False
        return True

    def time(self, benchmark: str, crew: Mapping[str, Worker], problem: problems.Problem, which: str) -> list[Row]:
        """Time the workers of a crew in turns, on what they were given last."""
        budget = self.budget * max(1, len(crew) / len(RIVALS))
        threads = next(iter(crew.values())).threads
        warm_up = timer.WARM_UP if threads > 1 else timer.SHORTEST_SAMPLE  # nobody spins, nobody has to be woken
        timings = timer.measure({name: worker.timed(which) for name, worker in crew.items()}, budget, warm_up)
        made = [self.row(benchmark, problem, which, threads, name, timing) for name, timing in timings.items()]
        figures = ", ".join(f"{row.implementation} {1000 * row.seconds_min:.3g} ms" for row in made)
        self.say(f"{benchmark}: {problem.name}, {which}, {threads} thread{'s' * (threads > 1)}: {figures}")
        self.rows += made
        return made

    def row(
        self, benchmark: str, p: problems.Problem, which: str, threads: int, name: str, timing: timer.Timing
    ) -> Row:
        gflop = 2e-9 * p.multiplications * (3 if which == "train" else 1)
        sizes = (p.T, p.N, p.I, p.H, p.O or 0)
        gflops = gflop / timing.minimum
        speed = (gflop, gflops, gflops / self.limits[threads].gflops)
        return Row(benchmark, p.name, p.cell, *sizes, which, threads, name, *timing, *speed)
