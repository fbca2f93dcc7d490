"""Learn the difference between each frame of a video and the one before: x_t - x_{t-1}. Two readings:

pixels   each pixel of a video is a sequence: N = pixels, I = O = 1
frames   a video is one sequence of whole frames, down-sampled to size x size: I = O = size^2
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .data import Values, Video
from .task import Sample, Task, difference, sample, signal

__all__ = ["frames", "pixels", "reading_size", "samples"]

LAG = 1
PIXELS = 2048
"""Pixels of each training video that are used."""
CLIP = 16
"""Frames in a training sequence of the frames reading."""
TRAINING_VALUES = 2**21
"""Values in all clips of the frames reading together."""


def reading_size(mode: str, size: int) -> int:
    """Pixels that the shorter side of a video is to have when it is read for this reading."""
    return size if mode == "pixels" else size * max(1, round(128 / size))  # room to crop smaller parts


def pixels(training: Sequence[Video], test: Sequence[Video], size: int, rng: np.random.Generator) -> Task:
    """The reading `pixels`. Raises DataError if nothing moves."""
    pairs = []
    for video in training:
        x = _by_pixels(video.values)
        chosen = rng.permutation(x.shape[1])[:PIXELS]
        mirrored = rng.choice(np.array([-1, 1], np.float32), (1, len(chosen), 1))  # as many dark scenes as bright ones
        x = np.ascontiguousarray(x[:, chosen] * mirrored)
        pairs.append((x, difference(x, LAG)))
    return Task("frames", "pixels", size, LAG, pairs, samples("pixels", size, test))


def frames(training: Sequence[Video], test: Sequence[Video], size: int, rng: np.random.Generator) -> Task:
    """The reading `frames`, of size x size pixels. Raises DataError if nothing moves.

    Trained on clips: square parts of random place and width, turned and mirrored; judged on the whole middle square.
    """
    starts = [(video, start) for video in training for start in range(0, max(1, len(video.values) - CLIP // 2), CLIP)]
    # At least one clip from each start; enough of them to be many different scenes.
    copies = max(1, TRAINING_VALUES // (len(starts) * CLIP * size**2))
    pairs = []
    for video, start in starts:
        clips = [_clip(video.values[start : start + CLIP], size, rng) for _ in range(copies)]
        x = np.ascontiguousarray(np.stack(clips, axis=1))
        pairs.append((x, difference(x, LAG)))
    return Task("frames", "frames", size, LAG, pairs, samples("frames", size, test))


def samples(mode: str, size: int, videos: Sequence[Video]) -> list[Sample]:
    """Whole videos as the reading `mode` wants them. Raises DataError if nothing moves in one."""
    result = []
    for name, values in videos:
        steps, height, width = values.shape
        if mode == "frames":
            factor = min(height, width) // size
            top, left = (height - factor * size) // 2, (width - factor * size) // 2
            square = signal(_part(values, size, factor, top, left))
            result.append(sample(name, square.reshape(steps, 1, size**2), LAG, (size, size)))
        else:
            result.append(sample(name, _by_pixels(values), LAG, (height, width)))
    return result


def _by_pixels(values: Values) -> Values:
    return np.ascontiguousarray(signal(values).reshape(len(values), -1, 1))


def _part(values: Values, size: int, factor: int, top: int, left: int) -> Values:
    """size x size pixels, each the mean over factor x factor of the video's."""
    side = size * factor
    part = values[:, top : top + side, left : left + side]
    blocks = part.reshape(len(values), size, factor, size, factor)
    return np.asarray(blocks.mean(axis=(2, 4), dtype=np.float32))


def _clip(values: Values, size: int, rng: np.random.Generator) -> Values:
    height, width = values.shape[1:]
    factor = int(rng.integers(1, min(height, width) // size + 1))
    top, left = (int(rng.integers(extent - size * factor + 1)) for extent in (height, width))
    clip = signal(_part(values, size, factor, top, left))
    turned: Values = np.rot90(clip, int(rng.integers(4)), axes=(1, 2))
    if rng.integers(2):
        turned = turned.transpose(0, 2, 1)
    if rng.integers(2):
        turned = turned[::-1]  # the same movement backwards
    return np.ascontiguousarray(-turned if rng.integers(2) else turned).reshape(len(values), -1)
