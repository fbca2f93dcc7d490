"""The order of things in `python3 bench`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rnn import _threads
from rnn.baselines import theano_environment

from . import compare, instruction_sets, machine, plots, report, results, table
from .implementations import PEERS, RIVALS
from .measures import MEASURES
from .runner import Session, WorkerFailed

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 0.6
"""Seconds to time one pass of one problem, with one number of threads, on three implementations."""


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["compare"]:
        return main_compare(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python3 bench",
        description="Measure and plot everything (10 minutes, 3 of them Theano's compiler), or what is named: `peers` "
        "in whole, where everything takes a sample of its problems. compare OLD.csv NEW.csv: what got slower.",
    )
    known = ", ".join(MEASURES)
    parser.add_argument("name", nargs="*", choices=[*MEASURES, []], metavar="NAME", help=f"of {known}; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder for all files (default: results)")
    parser.add_argument("--quick", action="store_true", help="a third of the problems, short training")
    parser.add_argument("--peers", action="store_true", help="PyTorch, JAX and PyTensor too (installs them)")
    isa = "hold ours and all others to this instruction set"
    parser.add_argument("--isa", choices=instruction_sets.VARIABLES, default="", help=isa)
    parser.add_argument("--json", action="store_true", help="print a line of JSON a figure, and no tables")
    chosen = parser.parse_args(arguments)
    try:
        instruction_sets.check(chosen.isa)
        how = {"quick": chosen.quick, "peers": chosen.peers, "as_json": chosen.json, "isa": chosen.isa}
        failures = run(chosen.name, chosen.out, **how)
    except KeyboardInterrupt:
        say("stopped; what was finished is written")
        return 130
    except (WorkerFailed, ImportError, ValueError) as error:  # a package or data that is missing says what to do
        say(f"error: {error}")
        return 1
    return 1 if failures else 0


def main_compare(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python3 bench compare", description="What got slower, beyond the noise.")
    parser.add_argument("old", type=Path, metavar="OLD.csv")
    parser.add_argument("new", type=Path, metavar="NEW.csv")
    chosen = parser.parse_args(arguments)
    try:
        print(compare.compare(chosen.old, chosen.new))
    except (OSError, ValueError) as error:
        say(f"error: {error}")
        return 1
    return 0


def run(names: Sequence[str], out: Path, *, quick: bool, peers: bool, as_json: bool, isa: str) -> list[str]:
    """Measure, draw and print what is named, all of it if nothing is; the failures."""
    start = time.monotonic()

    def step(line: str) -> None:
        say(f"[{time.monotonic() - start:4.0f} s] {line}")

    out.mkdir(parents=True, exist_ok=True)
    absent = {}
    try:
        theano_environment.make(step)
    except theano_environment.NoTheano as error:
        absent["theano"] = str(error).removeprefix("theano: ")
        step(f"NOT MEASURED: {error}")
    processors = machine.processors(_threads.default_threads())
    step("measuring what the machine can do")
    counts = sorted({1, len(processors)})
    limits = {count: machine.limits(processors[-count:], isa) for count in counts}
    session = Session(
        out,
        processors,
        RIVALS + (PEERS if peers else ()),
        0.3 if quick else BUDGET,
        quick,
        limits,
        step,
        machine.card(limits, isa),
        absent=absent,
        whole_grid=bool(names) and not quick,
        isa=isa,
    )
    sections = []
    for name in (name for name in MEASURES if name in (names or MEASURES)):
        try:
            MEASURES[name](session)
        finally:  # what was measured before a stop or a failure is worth keeping
            write(name, session)
        pictures = [path for path in plots.draw(name, session) if path.suffix == ".png"]
        sections.append(report.Section(name, pictures, report.tables(name, session)))
        report.write(out, session, sorted(sections, key=lambda section: list(plots.DRAW).index(section.name)))
    step(f"done: {out}/report.html, report.md, a CSV, a PNG and an SVG each of {', '.join(s.name for s in sections)}")

    if as_json:
        print(table.json_lines(session.rows))
        return session.failures
    for section in sections:
        for one, note in section.tables:
            print(f"\n{section.name}\n\n{table.aligned(one)}\n{note}")
    for line in report.summary(session):
        print(f"\n{line}")
    for line in report.missing(session):
        print(f"\n{line}")
    return session.failures


def write(name: str, session: Session) -> None:
    """The CSV file of one benchmark."""
    records: Sequence[Any]
    if name == "tasks":
        records = [epoch for curve in session.curves for epoch in curve.epochs()]
    elif name == "memory":
        records = session.memory
    elif name == "first-step":
        records = session.first_steps
    else:
        records = [row for row in session.rows if row.benchmark == name]
    results.write(session.out / f"{name}.csv", session.card, session.absent, records)


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)
