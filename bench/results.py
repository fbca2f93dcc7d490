"""What was measured, one record a figure, and the CSV files that hold it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from rnn._files import write_atomically

from . import timer


class Row(NamedTuple):
    """Seconds of one pass."""

    benchmark: str
    problem: str
    cell: str
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
    noise: float
    """By how much the third best sample exceeds the best, as a share of it."""
    samples: int
    gflop: float
    """10^9 additions and multiplications, of the products alone."""
    gflops: float
    """gflop / seconds_min"""
    share_of_peak: float
    """gflops, over those that this machine reached on as many threads."""

    @property
    def stable(self) -> bool:
        return timer.Timing(self.seconds_min, self.seconds_median, self.noise, self.samples).stable


class Epoch(NamedTuple):
    """One epoch of one training run."""

    case: str
    implementation: str
    threads: int
    epoch: int
    seconds: float
    loss: float
    """Mean over the epoch, as a share of the mean square of the targets."""


class Curve(NamedTuple):
    """One training run of a task."""

    case: str
    implementation: str
    threads: int
    loss: list[float]
    """Of each epoch."""
    seconds: list[float]
    error: float | None
    """Relative RMSE on what was held out; None if training was cut short."""
    linear: float | None
    """That of the best linear predictor of the current input alone; None where that is a single number."""

    def epochs(self) -> list[Epoch]:
        numbers = enumerate(zip(self.seconds, self.loss, strict=True), 1)
        return [Epoch(self.case, self.implementation, self.threads, epoch, *both) for epoch, both in numbers]


class Memory(NamedTuple):
    """What a training step adds to the resident memory of a process that has imported the library."""

    problem: str
    T: int
    implementation: str
    mebibytes: float
    imported: float
    """MiB resident before."""


class FirstStep(NamedTuple):
    """Seconds from the first line of a new Python process to the end of its first training step."""

    implementation: str
    cache: str
    """Whether compiled code lay on the disk: "empty", "filled", or "" for what keeps none."""
    seconds: float


def write(path: Path, card: Mapping[str, str], absent: Mapping[str, str], rows: Sequence[Any]) -> Path:
    """NamedTuples of one kind as CSV; the card, and what is missing, stand above in lines that begin with #."""
    buffer = io.StringIO()
    for name, value in card.items():
        buffer.write(f"# {name}: {value}\n")
    for name, reason in absent.items():
        buffer.write(f"# NOT MEASURED: {name}: {reason}\n")
    writer = csv.writer(buffer, lineterminator="\n")
    if rows:
        writer.writerow([name.rstrip("_") for name in rows[0]._fields])
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
    write_atomically(path, buffer.getvalue().encode())
    return path


def read(path: Path) -> list[Row]:
    """The rows of such a file of times. Raises ValueError for another file, OSError."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    fields = [name.rstrip("_") for name in Row._fields]
    found = list(csv.reader(lines))
    if not found or found[0] != fields:
        got = ", ".join(found[0]) if found else "nothing"
        raise ValueError(f"{path}: expected the columns {', '.join(fields)}, got {got}")
    kinds = get_type_hints(Row).values()
    return [Row(*(kind(text) for kind, text in zip(kinds, line, strict=True))) for line in found[1:]]
