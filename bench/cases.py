"""What is measured: both tasks in both readings and 1024 wide, and the shapes that the tests name.

To add one is to add a line.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import problems
from numpy.typing import NDArray

import rnn
import rnn.tasks

Array = NDArray[np.float32]


class Case(NamedTuple):
    name: str
    task: str
    mode: str
    size: int | None = None
    """None: the default of the reading."""
    epochs: int | None = None
    """To be trained for; None: the default of the reading."""
    judged: bool = True
    """Whether training goes far enough for an error on what was held out to mean anything."""


CASES = [
    Case("sobel rows", "sobel", "rows"),
    Case("sobel columns", "sobel", "columns"),
    Case("sobel columns, 1024 wide", "sobel", "columns", size=1024, epochs=3, judged=False),
    Case("frames pixels", "frames", "pixels"),
    Case("frames frames", "frames", "frames"),
    Case("frames frames, 1024 wide", "frames", "frames", size=32, epochs=3, judged=False),
]

SHAPES = problems.SPEED


class Step(NamedTuple):
    """The arrays of one training step: forward, then BPTT of `d_output`."""

    name: str
    layer: rnn.RNN
    x: Array
    d_output: Array

    @property
    def problem(self) -> problems.Problem:
        T, N, I = self.x.shape
        return problems.Problem(self.name, T, N, I, self.layer.hidden_size, self.layer.output_size)


def task_of(case: Case, seed: int = 0) -> rnn.tasks.Task:
    rng = np.random.default_rng(seed)
    if case.task == "sobel":
        return rnn.tasks.sobel_task(case.mode, size=case.size, rng=rng)
    return rnn.tasks.frames_task(case.mode, size=case.size, rng=rng)


def step_of_case(case: Case) -> Step:
    """The first batch of a task, and a layer that isn't trained yet (with a readout that isn't 0)."""
    task = task_of(case)
    how = rnn.tasks.recipe(case.mode, task.size)
    x, target = (np.ascontiguousarray(array[:, : how.batch]) for array in task.training[0])
    _, d_output = task.loss()(np.zeros_like(target), target)
    return Step(case.name, rnn.RNN(task.width, how.hidden, task.width, seed=0), x, d_output)


def step_of_shape(problem: problems.Problem) -> Step:
    data = problems.data(problem)
    layer = problem.layer()
    return Step(problem.name, layer, data.x, data.d_output)
