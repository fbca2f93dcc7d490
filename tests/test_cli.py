"""The command as a user runs it: a process of its own, on a real picture and a real video."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command import COMMAND, last_json, run
from test_tasks import CAMERA, VIDEO, cut, remux

import rnn

KEYS = {
    *("task", "mode", "backend", "schedule", "threads", "epochs", "epoch_seconds"),
    *("train_loss", "test_relative_rmse", "out"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model.safetensors`, trained for a moment on one real picture."""
    folder = tmp_path_factory.mktemp("trained")
    run("train", "sobel", "--images", CAMERA, "--epochs", "2", "--out", folder, cwd=folder)
    return folder


def test_train_sobel_on_a_real_picture_writes_the_model_its_curve_and_pictures(tmp_path: Path) -> None:
    done = run(
        *("train", "sobel", "--images", CAMERA, CAMERA, "--epochs", "3", "--threads", "1", "--json", "--out", "here"),
        cwd=tmp_path,
    )
    answer = last_json(done)
    assert set(answer) >= KEYS
    assert (answer["task"], answer["mode"]) == ("sobel", "rows")
    assert (answer["backend"], answer["schedule"]) == ("halide", "tuned")
    assert (answer["threads"], answer["epochs"], answer["out"]) == (1, 3, "here")
    assert 0 < answer["train_loss"] < 100
    assert 0 < answer["test_relative_rmse"] < 10
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"model.safetensors", "loss.png", "learned.png"}
    assert "rnn: epoch 3/3: relative RMSE" in done.stderr


@pytest.mark.filterwarnings("ignore:precision")  # where the CPU lacks it
def test_a_precision_goes_into_the_model(tmp_path: Path) -> None:
    run("train", "sobel", "--images", CAMERA, "--epochs", "1", "--precision", "bf16", "--out", "here", cwd=tmp_path)
    assert rnn.load(tmp_path / "here" / "model.safetensors").layer.precision == "bf16"


def test_train_frames_on_a_real_video_then_predict(tmp_path: Path) -> None:
    made = run(
        *("train", "frames", "--mode", "frames", "--video", VIDEO, "--max-frames", "60"),
        *("--epochs", "1", "--backend", "numpy", "--out", "here"),
        cwd=tmp_path,
    )
    assert "the best linear predictor of the current input alone" in made.stdout
    done = run(
        *("predict", "here/model.safetensors", "--video", VIDEO, "--max-frames", "20", "--out", "there", "--json"),
        cwd=tmp_path,
    )
    (answer,) = last_json(done)["results"]
    assert 0 < answer["relative_rmse"] < 10
    assert np.load(tmp_path / "there" / "carphone_pristine.npy").shape == (20, 8, 8)
    assert (tmp_path / "there" / "carphone_pristine.png").exists()


def test_predict_runs_over_a_whole_picture_and_two_of_one_name_get_two_files(trained: Path, tmp_path: Path) -> None:
    run("predict", trained / "model.safetensors", "--images", CAMERA, "--images", CAMERA, "--out", ".", cwd=tmp_path)
    one, two = (np.load(tmp_path / f"{name}.npy") for name in ("camera", "camera-2"))
    assert one.shape == (512, 512)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, two)


def test_synthetic_pictures_need_no_files_and_quiet_says_nothing(tmp_path: Path) -> None:
    done = run(
        *("train", "sobel", "--mode", "columns", "--size", "16", "--synthetic", "3", "--epochs", "1", "--hidden", "8"),
        *("--quiet", "--json"),
        cwd=tmp_path,
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert last_json(done)["out"] == "results/sobel-columns"


@pytest.mark.parametrize("task", [["sobel", "--synthetic", "2"], ["text", "--data", "verse.txt"]])
def test_training_with_remat_goes_on_with_it_alone(task: list[str], tmp_path: Path) -> None:
    (tmp_path / "verse.txt").write_text("to be or not to be, that is the question: " * 10)
    train = ["train", *task, "--hidden", "8", "--out", "here", "--quiet"]
    run(*train, "--epochs", "1", "--remat", cwd=tmp_path)
    refused = run(*train, "--epochs", "2", "--resume", cwd=tmp_path, status=1)
    assert "resume: remat differs: expected True" in refused.stderr
    run(*train, "--epochs", "2", "--resume", "--remat", cwd=tmp_path)


def test_info_says_what_is_ready_and_what_a_model_holds(trained: Path, tmp_path: Path) -> None:
    backends = last_json(run("info", "--json", cwd=tmp_path))["backends"]
    assert backends["halide"] == backends["numpy"] == "ready"
    answer = last_json(run("info", trained / "model.safetensors", "--json", cwd=tmp_path))
    assert answer["metadata"]["mode"] == "rows"
    assert answer["epochs"] == 2
    assert answer["weights"]["weight_hh_l0"] == [16, 16]


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    arguments = ["train", "sobel", "--images", str(CAMERA), "--out", "here", "--epochs"]
    with subprocess.Popen([*COMMAND, *arguments, "2000"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 200/2000" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "Go on with:\nrnn:   rnn train sobel" in rest
    assert rest.rstrip().endswith("--epochs 2000 --resume")
    reached = last_json(run("info", "here/model.safetensors", "--json", cwd=tmp_path))["epochs"]
    assert 200 <= reached < 2000
    done = run(*arguments, str(reached + 2), "--resume", "--json", cwd=tmp_path)
    assert last_json(done)["epochs"] == reached + 2


def test_a_terminal_gets_a_bar_and_standard_output_stays_clean(tmp_path: Path) -> None:
    near, far = pty.openpty()
    command = [*COMMAND, *["train", "sobel", "--synthetic", "2", "--epochs", "2", "--json"]]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=far, text=True) as process:
        os.close(far)
        shown = b""
        try:
            while part := os.read(near, 4096):
                shown += part
        except OSError:  # how Linux says that the other end is closed
            pass
        output = process.communicate()[0]
    os.close(near)
    assert process.returncode == 0
    assert "epoch 2/2" in shown.decode()
    assert "━" in shown.decode()
    assert len(output.splitlines()) == 1


BAD: dict[str, tuple[int, list[str | Path], str]] = {
    "no picture": (1, ["train", "sobel", "--images", VIDEO], "expected a picture, got a file that is none"),
    "no such picture": (1, ["train", "sobel", "--images", "none.png"], "none.png: expected a readable file"),
    "cut picture": (1, ["train", "sobel", "--images", "cut.png"], "cut.png: expected a whole picture"),
    "no video": (1, ["train", "frames", "--video", __file__], "expected a video, got a file that PyAV can't read"),
    "cut video": (1, ["train", "frames", "--video", "cut.mp4"], "one that ends early: 59 of 120 frames are there"),
    "unknown backend": (2, ["train", "sobel", "--backend", "cuda"], "expected one of halide, halide-jit, numpy"),
    "unknown schedule": (2, ["train", "sobel", "--schedule", "fast"], "schedule: expected one of"),
    "no schedules": (2, ["train", "sobel", "--backend", "numpy", "--schedule", "naive"], "the numpy backend has none"),
    "cut model": (1, ["info", "cut.safetensors"], "cut.safetensors: no checkpoint, or cut off"),
    "foreign model": (1, ["predict", __file__, "--images", CAMERA], "no checkpoint"),
    "no model": (1, ["info", "none.safetensors"], "none.safetensors: No such file or directory"),
    "nothing to resume": (1, ["train", "sobel", "--resume"], "--resume: expected a training run in results/sobel-rows"),
    "cut resume": (1, ["train", "sobel", "--images", CAMERA, "--resume", "--out", "cut"], "cut off"),
    "wrong mode": (2, ["train", "sobel", "--mode", "pixels"], "'pixels' is not one of 'rows', 'columns'"),
    "no epochs": (2, ["train", "sobel", "--epochs", "0"], "0 is not in the range x>=1"),
    "too many threads": (2, ["train", "sobel", "--threads", "100000"], "expected 1 to 256 threads, got 100000"),
    "stray argument": (2, ["train", "sobel", "cat.png"], "unexpected argument 'cat.png'; files come after --images"),
    "two sources": (2, ["train", "sobel", "--images", CAMERA, "--synthetic", "2"], "expected one of them, got both"),
    "too large": (
        1,
        ["train", "sobel", "--synthetic", "2", "--hidden", "50000"],
        "expected fewer than 2^31 elements",
    ),
    "out is a file": (2, ["train", "sobel", "--out", "cut.png"], "Directory 'cut.png' is a file"),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """A folder of files that are cut off."""
    folder = tmp_path_factory.mktemp("broken")
    cut(CAMERA, folder / "cut.png", 0.5)
    cut(remux(folder / "whole.mp4", movflags="faststart"), folder / "cut.mp4", 0.5)
    cut(trained / "model.safetensors", folder / "cut.safetensors", 0.2)
    (folder / "cut").mkdir()
    cut(trained / "model.safetensors", folder / "cut" / "model.safetensors", 0.7)
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_message(case: str, broken: Path) -> None:
    status, arguments, message = BAD[case]
    before = sorted(broken.rglob("*"))
    done = run(*arguments, "--quiet" if arguments[0] != "info" else "--json", cwd=broken, status=status)
    assert message in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == (1 if status == 1 else 4), "one line; after click's usage, hint and gap"
    assert sorted(broken.rglob("*")) == before, "nothing was written"


def test_a_model_of_one_task_is_not_run_on_the_other(trained: Path, tmp_path: Path) -> None:
    done = run("predict", trained / "model.safetensors", "--video", VIDEO, cwd=tmp_path, status=2)
    assert "is a model of the task sobel: expected --images PATH" in done.stderr
