"""The order of things in `python3 bench`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rnn import _threads

from . import machine, plots, runner, table
from .cases import CASES, SHAPES, step_of_case, step_of_shape

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 1.5
"""Seconds to time one pass of one problem with one number of threads."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 bench",
        description="Train and time both tasks on every implementation, and plot it (4 to 5 minutes).",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder for all files (default: results)")
    parser.add_argument("--quick", action="store_true", help="in half a minute: short training, rough times")
    chosen = parser.parse_args(arguments)
    try:
        return run(chosen.out, quick=chosen.quick)
    except KeyboardInterrupt:
        say("stopped; nothing was written")
        return 130
    except runner.WorkerFailed as error:
        say(f"error: {error}")
    except (ImportError, ValueError) as error:  # a package or data that is missing says what to do
        say(f"error: {error}")
    return 1


def run(out: Path, *, quick: bool) -> int:
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    most = _threads.default_threads()
    counts = sorted({1, most})
    card = machine.card(counts)
    footer = machine.text(card)
    say(footer)
    results = runner.Results()

    def step(line: str) -> None:
        say(f"[{time.monotonic() - start:4.0f} s] {line}")

    step("reading pictures and videos")
    cases = [case._replace(epochs=2) for case in CASES if case.epochs is None] if quick else CASES
    shapes = SHAPES[:2] if quick else SHAPES
    steps = [*map(step_of_case, cases), *map(step_of_shape, shapes)]
    for threads in counts:
        runner.time_steps(steps, threads, 0.2 if quick else BUDGET, results, step)
    files = runner.learn(cases, most, out, footer, results, step)

    step("drawing")
    table.write_steps(out / "steps.csv", results, card)
    table.write_training(out / "training.csv", results, card)
    files += [out / "steps.csv", out / "training.csv", *plots.draw(out, results, footer)]

    print("\nfiles")
    for path in sorted(files):
        print(f"  {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    print(f"\n{table.steps_text(results)}\n\n{table.training_text(results)}")
    for name, reason in results.absent.items():
        print(f"\nNOT MEASURED: {name}: {reason}")
    return 0


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)
