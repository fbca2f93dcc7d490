"""Pictures of what was learned, and the loss curve, drawn with matplotlib (the extra `bench` has it)."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._files import write_atomically
from ..training import History
from .data import Values, require
from .task import CONTRAST, Sample, Task, relative_rmse

__all__ = ["draw_bits", "draw_loss", "draw_panels", "save_figure"]

ERROR_SHOWN = 10
"""The error is drawn so many times stronger than the target, or nothing could be seen of it."""
FRAMES_SHOWN = 3
WIDTH = 13
"""Inches of a picture of samples."""
MOST_SAMPLES = 6


class _Row(NamedTuple):
    title: str
    images: tuple[Values, Values, Values, Values]


def draw_panels(
    path: str | os.PathLike[str],
    task: str,
    lag: int,
    samples: Sequence[Sample],
    outputs: Sequence[Values],
    *,
    title: str = "",
    footer: str = "",
) -> None:
    """Write a PNG or SVG: input, expected, learned and error of each picture, or of three frames of each video.

    Of many samples it shows the first few. Raises OSError, MissingPackage.
    """
    require("matplotlib", "matplotlib", "draw pictures")
    from matplotlib.figure import Figure

    rows = [
        row
        for sample, y in list(zip(samples, outputs, strict=True))[:MOST_SAMPLES]
        for row in (_picture(sample, y, lag) if task == "sobel" else _frames(sample, y, lag))
    ]
    heights = [max(0.5, min(4.0, 3 * row.images[0].shape[0] / row.images[0].shape[1])) for row in rows]
    total = sum(heights) + 0.35 * len(rows) + 0.5
    figure = Figure(figsize=(WIDTH, total), layout="constrained")
    axes = figure.subplots(len(rows), 4, squeeze=False, height_ratios=heights)
    step = f"t-{lag}"
    titles = ("input", f"expected: in[t] - in[{step}]", "learned", f"error, {ERROR_SHOWN} times stronger")
    for index, row in enumerate(rows):
        # The largest hundredth may be cut off: one sharp edge would turn all the rest grey.
        limit = float(np.quantile(np.abs(row.images[1]), 0.99)) or float(np.abs(row.images[1]).max()) or 1.0
        for column, (axis, image) in enumerate(zip(axes[index], row.images, strict=True)):
            low, high = (-CONTRAST / 2, CONTRAST / 2) if column == 0 else (-limit, limit)
            axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if index == 0:
                axis.set_title(titles[column], fontsize=11)
        axes[index][0].set_xlabel(row.title, fontsize=9, loc="left")
    figure.suptitle(f"{title} Grey means no change; expected and learned have the same scale.".strip(), fontsize=10)
    figure.supxlabel(footer, fontsize=7, x=0.01, ha="left")
    save_figure(figure, path)


def _picture(sample: Sample, y: Values, lag: int) -> list[_Row]:
    def picture(values: NDArray[Any]) -> Values:
        return np.asarray(values.transpose(1, 2, 0).reshape(sample.shape)[:, lag:])

    images = (picture(sample.x), picture(sample.target), picture(y), ERROR_SHOWN * picture(y - sample.target))
    return [_Row(f"{sample.name}: relative RMSE {relative_rmse([y], [sample.target], lag):.3f}", images)]


def _frames(sample: Sample, y: Values, lag: int) -> list[_Row]:
    """Frames from little to much movement."""
    movement = np.square(sample.target[lag:]).mean(axis=(1, 2))
    order = lag + np.argsort(movement)
    chosen = sorted({int(order[int(share * (len(order) - 1))]) for share in np.linspace(0.5, 0.95, FRAMES_SHOWN)})
    rows = []
    for t in chosen:
        images = [values[t].reshape(sample.shape) for values in (sample.x, sample.target, y, y - sample.target)]
        error = relative_rmse([y[t : t + 1]], [sample.target[t : t + 1]], 0)
        title = f"{sample.name}, frame {t}: relative RMSE {error:.3f}"
        rows.append(_Row(title, (images[0], images[1], images[2], ERROR_SHOWN * images[3])))
    return rows


def draw_loss(path: str | os.PathLike[str], history: History, task: Task, test: float) -> None:
    """Write a PNG or SVG of the relative RMSE on the training data after each epoch, and that on the test data."""
    require("matplotlib", "matplotlib", "draw pictures")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    epochs = np.arange(1, history.epochs + 1)
    axis.plot(
        epochs,
        np.sqrt(history.loss),
        "k-",
        marker="." if len(epochs) < 30 else "",
        label="training, mean over the epoch",
    )
    axis.axhline(test, color="0.4", linestyle="--", label=f"held out, at the end: {test:.3f}")
    axis.axhline(1, color="0.7", linestyle=":", label="always answering 0")
    axis.set(yscale="log", xlabel="epoch", ylabel="relative RMSE", title=f"{task.name} {task.mode}: loss curve")
    axis.grid(True, which="major", color="0.9")
    axis.legend()
    save_figure(figure, path)


def draw_bits(path: str | os.PathLike[str], history: History, name: str, unit: str) -> None:
    """Write a PNG or SVG of the bits per character after each epoch, in training and on the held-out part.

    history: losses in nats; unit: "characters" or "bytes". Raises OSError, MissingPackage.
    """
    require("matplotlib", "matplotlib", "draw pictures")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    curves = (("training, mean over the epoch", "k-", history.loss), ("held out", "k--", history.validation))
    for label, line, losses in curves:
        epochs = np.arange(1, len(losses) + 1)
        axis.plot(epochs, np.array(losses) / math.log(2), line, marker="." if len(epochs) < 30 else "", label=label)
    axis.set(ylim=(0, None), xlabel="epoch", ylabel=f"bits per {unit.removesuffix('s')}", title=f"{name}: loss curve")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(True, which="major", color="0.9")
    axis.legend()
    save_figure(figure, path)


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a matplotlib figure as PNG or SVG, by the name's end; whole or not at all. Raises OSError."""
    buffer = io.BytesIO()
    kind = Path(path).suffix.removeprefix(".")
    figure.savefig(buffer, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    write_atomically(path, buffer.getvalue())
