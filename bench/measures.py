"""What is measured for each plot. A measurement gets the session and leaves its records there."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import problems
from problems import Problem

import rnn
import rnn.tasks
from rnn._backends.halide import SCHEDULES
from rnn._backends.halide_jit import AUTOMATIC
from rnn.baselines.network import Objective
from rnn.tasks import CosineAdam

from .cases import LEARNED, WIDTHS, Array, Case, Step, step_of, step_of_case, task_of
from .implementations import OURS, REFERENCE, REMAT
from .results import Curve, FirstStep, Memory
from .runner import RATE, Absent, Session, Worker
from .timer import WARM_UP, Timing, measure

LADDER = problems.named("32 lanes of 256")
GROWTH = {
    "T": [Problem(f"T={T}", T, 32, 64, 64, None) for T in (16, 32, 64, 128, 256, 512, 1024, 2048)],
    "N": [Problem(f"N={N}", 64, N, 64, 64, None) for N in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)],
    "H": [Problem(f"H={H}", 32, 32, 64, H, None) for H in (8, 16, 32, 64, 128, 256, 512, 1024)],
}
"""One size grows, the others stay."""
TUTORIAL = [Problem(f"tutorial, T={T}", T, 1, 16, 32, 16) for T in (8, 16, 32, 64, 128, 256, 512)]
MEMORY = [Problem(f"memory, T={T}", T, 16, 64, 256, 64) for T in (64, 256, 1024, 4096)]
MOST = 4e9
"""Multiplications of a pass, above which a problem is not for runs that measure everything: the ten of the grid take as
long as all others."""
SAMPLE = [problem for problem in problems.GRID[::4] if problem.multiplications < MOST]
"""A quarter of the grid, but for the largest problems."""
FIRST = problems.named("32 lanes of 256")
RIVALS_LEARN = 5.0
"""Seconds after which a rival's training of a task is cut short."""
TURN = 1.0
"""Seconds for which an implementation learns before the next one does."""
TUTORIALS = ("tutorial", "tutorial, truncated")
SIDE_BY_SIDE = f"{OURS}, a process a core"
FLAGS = {"theano": "THEANO_FLAGS", "pytensor": "PYTENSOR_FLAGS"}
"""Environment variables that can move the folder in which an implementation keeps what it has compiled."""


def speedup(session: Session) -> None:
    """A training step of both tasks in the wide readings, from 16 to 1024 inputs."""
    with session.crews(session.rivals) as crews:
        for case, sizes in WIDTHS.items():
            for width, size in sizes.items():
                if not session.quick or width in (16, 256, 1024):
                    session.measure("speedup", crews, step_of_case(case, size), ["train"])


def ladder(session: Session) -> None:
    """One problem on every schedule, compiled ahead of time and at the first call, and by Halide's autoscheduler. First
    steps, whose compiler has one thread, are taken on all processors at once, from the last rungs on, which last."""
    names = [f"{OURS} {schedule}" for schedule in SCHEDULES]
    names += [f"{OURS}-jit {schedule}" for schedule in SCHEDULES + AUTOMATIC]
    step, everything = step_of(LADDER), session.processors

    def first(worker: Worker) -> float:
        worker.create(step)
        return worker.timed("train")(1)

    with session.crew(names, everything) as crew:
        with concurrent.futures.ThreadPoolExecutor(len(everything)) as pool:
            taken = {name: pool.submit(first, crew[name]) for name in reversed(crew)}
        for name in crew:
            seconds = taken[name].result()
            once = Timing(seconds, seconds, 0.0, 1)
            session.rows.append(session.row("ladder", LADDER, "first train", len(everything), name, once))
        session.measure("ladder", [crew], step)


def growth(session: Session) -> None:
    """Our cost against T, N and H; the reference's against the tutorial's, which goes back anew from every step."""
    with session.crew([OURS, REFERENCE], session.last(1)) as crew:
        for grown in GROWTH.values():
            for problem in session.some(grown, 2):
                session.measure("growth", [crew], step_of(problem), ["train"])
    with session.crew([OURS, REFERENCE, *TUTORIALS], session.last(1)) as crew:
        for problem in session.some(TUTORIAL, 2):
            session.measure("growth", [crew], step_of(problem), ["train"])


def roofline(session: Session) -> None:
    """Every named problem that has something to compute, on one thread; those that `peers` has measured as they are. Of
    the largest, where everything is measured, none but those of `SPEED`."""
    grid = problems.GRID if session.whole_grid else [p for p in problems.GRID if p.multiplications < MOST]
    named = [p for p in problems.SHAPES + problems.SPEED + grid if 0 not in (p.T, p.N, p.I, p.H, p.O)]
    done = {row.problem for row in session.rows if row.benchmark == "peers"}
    with session.crew([OURS], session.last(1)) as crew:
        for problem in session.some(named, 3):
            if problem.name not in done:
                session.measure("roofline", [crew], step_of(problem))


def threads(session: Session) -> None:
    """Strong scaling over 1, 2, 4, ... threads, and as many processes of one thread each at the same time."""
    most = len(session.processors)
    counts = sorted({most, *(2**power for power in range(most.bit_length()) if 2**power < most)})
    with contextlib.ExitStack() as stack:
        crews = stack.enter_context(session.crews([OURS, REFERENCE], counts))
        alone = [stack.enter_context(session.worker(OURS, [processor])) for processor in session.processors]
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(most))

        def together(runs: int) -> float:
            slowest: float = max(pool.map(lambda worker: worker.timed("train")(runs), alone))
            return slowest / most

        for problem in problems.SPEED:
            step = step_of(problem)
            session.measure("threads", crews, step, ["train"])
            for worker in alone:
                worker.create(step)
            timing = measure({SIDE_BY_SIDE: together}, session.budget)[SIDE_BY_SIDE]
            session.rows.append(session.row("threads", problem, "train", most, SIDE_BY_SIDE, timing))


def peers(session: Session) -> None:
    """The grid: both passes, or the forward pass where nobody trains at these sizes."""
    with session.crews(session.rivals) as crews:
        for problem in problems.GRID if session.whole_grid else SAMPLE:
            session.measure("peers", crews, step_of(problem))


def memory(session: Session) -> None:
    """Peak resident memory of training steps, from short sequences to long ones. Each has a process of its own: ours
    keeps the memory of shorter ones for later, NumPy's its arrays for each length."""
    for name in (*session.rivals, REMAT):
        for problem in session.some(MEMORY, 2):
            with session.crew([name], session.last(1)) as crew:
                for worker in crew.values():
                    worker.create(step_of(problem))
                    added = float(worker.ask("peak", rate=RATE)["resident"]) - worker.resident
                    session.memory.append(Memory(problem.name, problem.T, name, added, worker.resident))
                    session.say(f"{problem.name}: {name} {added:.0f} MiB")


def first_step(session: Session) -> None:
    """From a new process to its first finished training step, three times; with compiled code on the disk, and without:
    an empty cache is filled in more than a minute, so once, and not at all with --quick. It goes before all that would
    fill the cache of a new environment."""
    step = step_of(FIRST)
    for name in session.rivals:
        seconds: dict[str, list[float]] = {}
        try:
            for _ in range(3):
                take_first_step(session, name, step, seconds)
            if name in FLAGS and "empty" not in seconds and not session.quick:
                with tempfile.TemporaryDirectory() as folder:
                    take_first_step(session, name, step, seconds, **{FLAGS[name]: f"base_compiledir={folder}"})
        except Absent as reason:
            session.absent[name] = str(reason)
        for cache in sorted(seconds):
            session.first_steps.append(FirstStep(name, cache, min(seconds[cache])))
            session.say(f"first-step: {name}{', cache ' * bool(cache)}{cache}: {min(seconds[cache]):.2f} s")


def take_first_step(
    session: Session, name: str, step: Step, seconds: dict[str, list[float]], **environment: str
) -> None:
    """Adds what a new process takes to those of its kind of cache. Raises Absent."""
    with session.worker(name, session.processors, **environment) as worker:
        worker.create(step)
        taken = float(worker.ask("train", rate=RATE)["since_start"])
        seconds.setdefault(worker.cache, []).append(taken)


def tasks(session: Session) -> None:
    """Train each task on all implementations, in turns: same weights to start from, same batches, same optimizer."""
    everything = session.processors
    with session.crew(session.rivals, everything) as crew:
        for case in LEARNED:
            learn(session, case, crew, len(everything))


def learn(session: Session, case: Case, crew: Mapping[str, Worker], count: int) -> None:
    task = task_of(case)
    how = rnn.tasks.recipe(case.mode, task.size)
    epochs = 2 if session.quick else how.epochs
    layer = rnn.tasks.make_layer(task, how.hidden, seed=0)
    loss = task.loss()
    rng = np.random.default_rng(0)
    order = [deal([x.shape[1] for x, _ in task.training], how.batch, rng) for _ in range(epochs)]
    optimizer = CosineAdam(how.lr, sum(map(len, order)))
    data: dict[str, Array] = {}
    for number, (x, target) in enumerate(task.training):
        data |= {f"x{number}": x, f"target{number}": target}
    for worker in crew.values():
        objective = Objective("adam", 1 / loss.mean_square, loss.lag)
        worker.ask("create", layer.weights, cell=layer.cell.name, objective=list(objective))
        worker.ask("study", data)
    step = itertools.count()
    rates = [[optimizer.rate(next(step)) for _ in batches] for batches in order]
    losses: dict[str, list[float]] = {name: [] for name in crew}
    seconds: dict[str, list[float]] = {name: [] for name in crew}
    learning = dict(crew)
    while learning:
        for name, worker in list(learning.items()):
            done = len(losses[name])
            time.sleep(WARM_UP)  # till the threads of the one before sleep
            taken = worker.ask("learn", epochs=order[done:], rates=rates[done:], turn=TURN)
            losses[name] += taken["loss"]
            seconds[name] += taken["seconds"]
            session.say(f"tasks: {case.name}, {name}: epoch {len(losses[name])} of {epochs}")
            # the first epoch may include compiling
            cut = name != OURS and sum(seconds[name][1:]) > RIVALS_LEARN
            if cut or len(losses[name]) == epochs:
                del learning[name]
    for name, worker in crew.items():
        error = linear = None
        if len(losses[name]) == how.epochs:
            learned = rnn.Layer.from_weights(layer.config(), worker.ask("weights").arrays)
            result = rnn.tasks.judge(learned, task)
            error, linear = result.relative_rmse, result.linear
            if name == OURS:
                session.learned[case.name] = (task, result.outputs)
        session.curves.append(Curve(case.name, name, count, losses[name], seconds[name], error, linear))


def deal(lanes: Sequence[int], size: int, rng: np.random.Generator) -> list[tuple[int, list[int]]]:
    """The batches of an epoch, (number of the sequence, its lanes), shuffled as `rnn.fit` does."""
    batches = []
    for which, count in enumerate(lanes):
        dealt = rng.permutation(count)
        batches += [(which, dealt[start : start + size].tolist()) for start in range(0, count, size)]
    return [batches[index] for index in rng.permutation(len(batches))]


MEASURES: dict[str, Callable[[Session], None]] = {
    "first-step": first_step,
    "speedup": speedup,
    "ladder": ladder,
    "growth": growth,
    "threads": threads,
    "peers": peers,
    "roofline": roofline,
    "memory": memory,
    "tasks": tasks,
}
"""In the order in which they run: `roofline` uses what `peers` measured, and `first-step` may find an empty cache."""
