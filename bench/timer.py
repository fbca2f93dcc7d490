"""How long things take: several contestants in turns, so that a noisy neighbour hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

SHORTEST_SAMPLE = 0.02
"""Seconds: below this a sample is several runs, or the clock and the call would be part of it."""
AGREEMENT = 1.03
FEWEST = 5
REST = 0.15
"""Seconds before each sample, in which the threads that the last contestant left spinning go to sleep: OpenBLAS keeps
its own awake for 2^28 cycles after a product, 0.1 s, on a processor that the next contestant wants."""


class Timing(NamedTuple):
    """Seconds of one run."""

    minimum: float
    median: float
    samples: int
    stable: bool
    """Whether the best and the third best sample agree within 3%."""


def measure(
    contestants: Mapping[str, Callable[[int], float]],
    budget: float,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
) -> dict[str, Timing]:
    """Time all contestants. Each takes a number of runs and returns the seconds that they took together.

    They take turns, each after a rest and a run to warm up, until for each the best and third best sample agree within
    3%, or `budget` seconds are over.
    """
    end = clock() + budget
    runs = {}
    for name, contestant in contestants.items():
        contestant(1)
        runs[name] = max(1, round(SHORTEST_SAMPLE / max(contestant(1), 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    while not all(map(stable, samples.values())):
        for name, contestant in contestants.items():
            rest(REST)
            contestant(1)  # threads of its own that fell asleep are up again: training is one step after another
            samples[name].append(contestant(runs[name]) / runs[name])
        if clock() > end:
            break
    return {
        name: Timing(min(taken), statistics.median(taken), len(taken), stable(taken)) for name, taken in samples.items()
    }


def stable(samples: list[float]) -> bool:
    best = sorted(samples)
    return len(best) >= FEWEST and best[2] <= AGREEMENT * best[0]
