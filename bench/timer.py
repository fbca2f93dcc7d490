"""How long things take: several contestants in turns, so that a noisy neighbour hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

SHORTEST_SAMPLE = 0.02
"""Seconds: below this a sample is several runs, or the clock and the call would be part of it."""
AGREEMENT = 0.03
FEWEST = 3
WARM_UP = 0.2
"""Seconds of untimed runs before each sample on several threads: training is one step after another. OpenBLAS keeps its
own threads awake for 0.1 s after a product, on a processor that the next contestant wants; and threads that fell asleep
share one processor at first (2 threads, steps of 1.3 ms: 2.4 ms a step for the first 0.06 s)."""
LONG = 5
"""Warm-ups that a run takes, from which on it is its own."""


class Timing(NamedTuple):
    """Seconds of one run."""

    minimum: float
    median: float
    noise: float
    """By how much the third best sample exceeds the best, as a share of it."""
    samples: int

    @property
    def stable(self) -> bool:
        return self.samples >= FEWEST and self.noise <= AGREEMENT


def measure(
    contestants: Mapping[str, Callable[[int], float]],
    budget: float,
    warm_up: float = WARM_UP,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time all contestants. Each takes a number of runs and returns the seconds that they took together.

    They take turns, each after a warm-up of so many seconds, until for each the best and third best sample agree within
    3%, or `budget` seconds are over; three samples each they get in any case.
    """
    end = clock() + budget
    once = {}
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for name, contestant in contestants.items():
        contestant(1)  # which may compile first
        once[name] = max(contestant(1), 1e-7)
        if once[name] >= LONG * warm_up:
            samples[name].append(once[name])
    while True:
        for name, contestant in contestants.items():
            if once[name] < LONG * warm_up:
                contestant(max(1, round(warm_up / once[name])))
            runs = max(1, round(SHORTEST_SAMPLE / once[name]))
            samples[name].append(contestant(runs) / runs)
        timings = {name: timing(taken) for name, taken in samples.items()}
        enough = min(map(len, samples.values())) >= FEWEST
        if enough and (clock() > end or all(one.stable for one in timings.values())):
            return timings


def timing(samples: list[float]) -> Timing:
    best = sorted(samples)
    third = best[min(2, len(best) - 1)]
    return Timing(best[0], statistics.median(best), third / best[0] - 1, len(best))
