"""The machine card: what a figure was measured on, for every table and plot."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rnn._compiler import TARGETS

ROOT = Path(__file__).resolve().parent.parent
PEAK = ROOT / "bench" / "peak.py"


class Limits(NamedTuple):
    """What the machine reached on some threads, see `peak.py`."""

    gflops: float
    gbytes: float
    """A second, to and from memory."""


def processors(most: int) -> list[int]:
    """At most so many of those that this process may use, the last ones."""
    return sorted(os.sched_getaffinity(0))[-most:]


def limits(processors: Sequence[int], isa: str = "") -> Limits:
    """Measure them on these processors, one thread on each; `isa`: with this instruction set."""
    command = [sys.executable, str(PEAK), ",".join(map(str, processors)), *([TARGETS[isa]] if isa else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{PEAK.name}: {done.stderr.strip().splitlines()[-1]}")
    return Limits(**json.loads(done.stdout))


def card(measured: Mapping[int, Limits], isa: str = "") -> dict[str, str]:
    """Name -> value, in the order to be shown; `isa`: the instruction set that all are held to."""
    try:
        from rnn import _kernels

        instructions = _kernels.instruction_set()
        if isa:
            instructions = f"{isa} (all are held to it; the CPU has {instructions})"
    except ImportError as reason:
        instructions = f"no kernels: {reason}"
    peaks = (f"{m.gflops:.0f} GFLOP/s, {m.gbytes:.1f} GB/s (threads: {n})" for n, m in measured.items())
    return {
        "cpu": _cpu(),
        "cores": f"{max(measured)} of {os.cpu_count()} cores used",
        "instruction set": instructions,
        "measured peak": "; ".join(peaks),
        "threads": " and ".join(map(str, measured)),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def text(card: Mapping[str, str]) -> str:
    """For the foot of a plot."""
    machine = f"{card['cpu']}, {card['cores']}, {card['instruction set']}; measured peak {card['measured peak']}"
    known = ("cpu", "cores", "instruction set", "measured peak", "threads", "python", "commit", "date")
    libraries = "; ".join(f"{name}: {versions}" for name, versions in card.items() if name not in known)
    return f"{machine}\n{libraries}\nPython {card['python']}, commit {card['commit']}, {card['date']}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    try:
        head, changes = (
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + (" and changes" if changes else "")
