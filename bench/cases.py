"""What is measured: the tasks in all readings and widths, and the problems that the tests name."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import problems
from numpy.typing import NDArray

import rnn
import rnn.tasks

Array = NDArray[np.floating[Any]]


class Case(NamedTuple):
    """A task to be learned."""

    task: str
    mode: str

    @property
    def name(self) -> str:
        return f"{self.task} {self.mode}"


LEARNED = [Case("sobel", "rows"), Case("sobel", "columns"), Case("frames", "pixels"), Case("frames", "frames")]

WIDTHS = {
    Case("sobel", "columns"): {size: size for size in (16, 32, 64, 128, 256, 512, 1024)},
    Case("frames", "frames"): {size**2: size for size in (4, 8, 16, 32)},
}
"""Inputs of a reading -> its size: pixels of a column, or of a frame's side."""


class Step(NamedTuple):
    """One training step: a network from these weights, on x (T, N, I), towards the target (T, N, O)."""

    problem: problems.Problem
    weights: dict[str, Array]
    x: Array
    target: Array


def task_of(case: Case, size: int | None = None, seed: int = 0) -> rnn.tasks.Task:
    rng = np.random.default_rng(seed)
    make = rnn.tasks.sobel_task if case.task == "sobel" else rnn.tasks.frames_task
    return make(case.mode, size=size, rng=rng)


def step_of_case(case: Case, size: int | None = None) -> Step:
    """The first batch of a task, and a layer that isn't trained yet (with a readout that isn't 0)."""
    task = task_of(case, size)
    how = rnn.tasks.recipe(case.mode, task.size)
    x, target = (np.ascontiguousarray(array[:, : how.batch]) for array in task.training[0])
    T, N, I = x.shape
    problem = problems.Problem(f"{case.name}, {I} wide", T, N, I, how.hidden, I)
    return Step(problem, problem.layer(0).weights, x, target)


def step_of(problem: problems.Problem) -> Step:
    """Random data for a shape."""
    data = problems.data(problem)
    return Step(problem, data.weights, data.x, data.d_output)
