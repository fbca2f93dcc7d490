"""Learn the filter [-1 0 1] along the rows of pictures.

Walking over a picture from left to right, a net that has seen columns 0 to t can answer with the filter's value at
column t - 1: in[t] - in[t-2]. So it has to remember two steps. Two readings:

    rows      each row of a picture is a sequence of single pixels: N = rows, I = O = 1
    columns   a picture is one sequence of whole columns: I = O = its height, to which it is scaled
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .data import Picture, Values, resize
from .task import Sample, Task, difference, sample, signal

__all__ = ["columns", "rows", "samples"]

LAG = 2
ROWS = 128
"""Rows of each training picture that are used, evenly spaced: its neighbours look much the same."""
TRAINING_PIXELS = 2**22
"""Pixels in all crops of the columns reading together."""


def rows(training: Sequence[Picture], test: Sequence[Picture]) -> Task:
    """The reading `rows`. Raises DataError if a picture is flat."""
    pairs = []
    for picture in training:
        height = len(picture.values)
        chosen = np.unique(np.linspace(0, height - 1, min(ROWS, height)).round().astype(int))
        x = _by_rows(picture.values[chosen])
        pairs.append((x, difference(x, LAG)))
    return Task("sobel", "rows", 1, LAG, pairs, samples("rows", 1, test))


def columns(training: Sequence[Picture], test: Sequence[Picture], size: int, rng: np.random.Generator) -> Task:
    """The reading `columns`, for columns of `size` pixels. Raises DataError if a picture is flat.

    Trained on square crops of random place and width, turned and mirrored, scaled to `size`; judged on whole pictures.
    """
    crops = [_crop(training, size, rng) for _ in range(max(1, TRAINING_PIXELS // size**2))]
    x = np.ascontiguousarray(np.stack([crop.T for crop in crops], axis=1))
    return Task("sobel", "columns", size, LAG, [(x, difference(x, LAG))], samples("columns", size, test))


def samples(mode: str, size: int, pictures: Sequence[Picture]) -> list[Sample]:
    """Whole pictures as the reading `mode` wants them. Raises DataError if one is flat."""
    result = []
    for name, values in pictures:
        if mode == "columns":
            height, width = values.shape
            values = resize(values, size, max(LAG + 2, round(width * size / height)))
            x = np.ascontiguousarray(signal(values).T[:, None, :])
        else:
            x = _by_rows(values)
        result.append(sample(name, x, LAG, (values.shape[0], values.shape[1])))
    return result


def _by_rows(values: Values) -> Values:
    return np.ascontiguousarray(signal(values).T[:, :, None])


def _crop(pictures: Sequence[Picture], size: int, rng: np.random.Generator) -> Values:
    values = pictures[int(rng.integers(len(pictures)))].values
    largest = min(values.shape)
    side = int(rng.integers(min(size, largest), largest + 1))
    top, left = (int(rng.integers(extent - side + 1)) for extent in values.shape)
    crop = signal(resize(values, size, size, (top, left, top + side, left + side)))
    turned: Values = np.rot90(crop, int(rng.integers(4)))
    if rng.integers(2):
        turned = turned.T
    return -turned if rng.integers(2) else turned
