"""What got slower between two runs, by more than the noise that they measured."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from . import results, table


class Change(NamedTuple):
    old: results.Row
    new: results.Row

    @property
    def ratio(self) -> float:
        """New seconds over old ones."""
        return self.new.seconds_min / self.old.seconds_min

    @property
    def noise(self) -> float:
        """What the samples of both runs differed by, at least 1%: two quiet runs differ by as much."""
        return max(0.01, self.old.noise + self.new.noise)


def compare(old: Path, new: Path) -> str:
    """A table of what got slower, and the drift of each implementation. Raises ValueError, OSError."""
    before = {_key(row): row for row in results.read(old)}
    pairs = [Change(before[_key(row)], row) for row in results.read(new) if _key(row) in before]
    if not pairs:
        raise ValueError(f"{old} and {new}: expected figures of the same problems, got none that both have")
    slower = sorted((pair for pair in pairs if pair.ratio > 1 + pair.noise), key=lambda pair: -pair.ratio)
    lines = [["problem", "pass", "threads", "implementation", "old ms", "new ms", "slower by", "noise"]]
    for pair in slower:
        row = pair.new
        milliseconds = [f"{1000 * seconds:.3g}" for seconds in (pair.old.seconds_min, row.seconds_min)]
        shares = [f"{100 * share:.1f}%" for share in (pair.ratio - 1, pair.noise)]
        lines.append([row.problem, row.pass_, str(row.threads), row.implementation, *milliseconds, *shares])
    text = table.aligned(lines) if slower else "nothing got slower by more than the noise"
    drift = []
    for name in dict.fromkeys(pair.new.implementation for pair in pairs):
        mean = table.geometric_mean([pair.ratio for pair in pairs if pair.new.implementation == name])
        drift.append(f"{name} {mean:.3f}")
    return (
        f"{text}\n\n{len(slower)} of {len(pairs)} figures got slower.\n"
        f"New time over old, geometric mean: {', '.join(drift)}.\n"
        "Where implementations that did not change got slower too, the machine did."
    )


def _key(row: results.Row) -> tuple[object, ...]:
    return row.benchmark, row.problem, row.pass_, row.threads, row.implementation
