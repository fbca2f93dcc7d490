"""Checkpoints: what is saved comes back, a file is never half-written, a damaged one is never believed, and
training that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import PROBLEMS, Problem
from safetensors.numpy import load_file, save_file

import rnn


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


# --- what is saved comes back ---


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.cell == "rnn_relu"], ids=str)
def test_a_layer_comes_back(problem: Problem, path: Path) -> None:
    layer = problem.layer()
    rnn.save(path, layer, metadata={"task": "sobel", "scale": [0.1, 255], "größe": None})
    back = rnn.load(path)
    assert back.layer.config() == layer.config()
    assert_same(back.layer.weights, layer.weights)
    assert back.metadata == {"task": "sobel", "scale": [0.1, 255], "größe": None}


def test_the_file_is_a_state_dict_for_others(path: Path) -> None:
    """`torch.nn.RNN.load_state_dict(safetensors.torch.load_file(path))` needs these names, and no more."""
    layer = rnn.RNN(3, 4)
    rnn.save(path, layer)
    assert_same(load_file(path), layer.weights)


def test_permissions_and_links_stay(path: Path) -> None:
    rnn.save(path, rnn.RNN(1, 2))
    path.chmod(0o640)
    link = path.with_name("latest")
    link.symlink_to(path)
    rnn.save(link, rnn.RNN(1, 3))
    assert path.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert rnn.load(path).layer.hidden_size == 3


# --- a file is never half-written ---


@pytest.mark.parametrize("call", ["open", "fsync", "replace", "fchmod"])
def test_a_failing_disk_leaves_the_old_file(call: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rnn.save(path, rnn.RNN(1, 2, seed=1))
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        rnn.save(path, rnn.RNN(1, 2, seed=2))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_killed_process_leaves_a_whole_file(path: Path) -> None:
    """kill -9 at random moments of a program that saves without a pause, layer after layer."""
    program = """
import sys, rnn
layer = rnn.RNN(1, 400)
print("ready", flush=True)
for number in range(10**9):
    layer.weights["bias_ih_l0"] = layer.weights["bias_ih_l0"] * 0 + number
    rnn.save(sys.argv[1], layer, metadata={"number": number})
"""
    rng = np.random.default_rng(5)
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            while not path.exists():
                assert process.poll() is None
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
        saved = rnn.load(path)
        assert (saved.layer.weights["bias_ih_l0"] == saved.metadata["number"]).all()
    rnn.save(path, rnn.RNN(1, 2))
    assert os.listdir(path.parent) == [path.name]  # what the killed ones left aside is gone


# --- a damaged or foreign file is never believed ---


def refuse(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(rnn.CheckpointError) as caught:
        rnn.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.fixture
def good(path: Path) -> bytes:
    rnn.save(path, rnn.RNN(2, 3, output_size=1, seed=0), metadata={"task": "sobel"})
    return path.read_bytes()


def test_cut_off_at_any_length(path: Path, good: bytes) -> None:
    for length in range(0, len(good), 7):
        message = refuse(path, good[:length])
        assert "cut off" in message


def test_any_flipped_bit(path: Path, good: bytes) -> None:
    for position in range(len(good)):
        flipped = bytearray(good)
        flipped[position] ^= 1 << position % 8
        refuse(path, bytes(flipped))


def test_too_long(path: Path, good: bytes) -> None:
    assert "damaged" in refuse(path, good + b"\0")


def test_a_header_that_claims_to_be_huge(path: Path, good: bytes) -> None:
    message = refuse(path, (2**62).to_bytes(8, "little") + good[8:])
    assert "expected a header of at most 1048576 bytes, it claims 4611686018427387904" in message


def test_foreign_files(path: Path) -> None:
    assert "no checkpoint" in refuse(path, b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert "no checkpoint" in refuse(path, b"")
    save_file({"weight_ih_l0": np.zeros((3, 2), np.float32)}, path)
    assert "expected format 'halide-rnn checkpoint 1', got None" in refuse(path, path.read_bytes())
    save_file({"weight_ih_l0": np.zeros((3, 2), np.float32)}, path, {"format": "pt"})
    assert "foreign" in refuse(path, path.read_bytes())


CONFIG = {"layer": rnn.RNN(2, 3).config(), "optimizer": None, "training": None, "metadata": {}}
FORGED = {
    "no layer": CONFIG | {"layer": None},
    "a layer with other keys": CONFIG | {"layer": {"units": 3}},
    "a layer of another size": CONFIG | {"layer": rnn.RNN(2, 4).config()},
    "a huge layer": CONFIG | {"layer": rnn.RNN(2, 3).config() | {"hidden_size": 40000}},
    "a negative layer": CONFIG | {"layer": rnn.RNN(2, 3).config() | {"hidden_size": -3}},
    "a layer of a newer kind": CONFIG | {"layer": rnn.RNN(2, 3).config() | {"nonlinearity": "swish"}},
    "no metadata": {name: value for name, value in CONFIG.items() if name != "metadata"},
    "a list": [],
    "a number": 3,
}


@pytest.mark.parametrize("what", FORGED)
def test_right_checksum_but_wrong_contents(what: str, path: Path) -> None:
    """A file of a newer version, or made to do harm: an error says what is wrong."""
    message = refuse(path, forge(json.dumps(FORGED[what])))
    assert "unexpected contents" in message


def test_json_too_deep(path: Path) -> None:
    assert "unexpected contents: RecursionError" in refuse(path, forge("[" * 200_000))


def forge(config: str) -> bytes:
    from safetensors.numpy import save

    from rnn import checkpoint

    weights = rnn.RNN(2, 3).weights
    header = {"format": checkpoint.FORMAT, "config": config, "sha256": checkpoint._digest(config, weights)}
    return save(weights, header)


# --- resume ---

PROGRAM = """
import hashlib, signal, sys
import numpy as np
import rnn

path, epochs, stop_epoch, stop_batch, resume = sys.argv[1], *map(int, sys.argv[2:])
data = np.random.default_rng(0).uniform(-1, 1, (2, 15, 11, 1)).astype("float32")
sequences = [(x, np.roll(x, 1, axis=0)) for x in data]
layer = rnn.RNN(1, 5, output_size=1, seed=resume)  # another start, if it goes on: the file decides
optimizer = OPTIMIZER

def stop(progress):
    if (progress.epoch, progress.batch, progress.finished) == (stop_epoch, stop_batch % 100, stop_batch >=
    100):
        signal.raise_signal(signal.SIGINT)

try:
    history = rnn.fit(
        layer, sequences, rnn.MSE(), optimizer, epochs=epochs, batch_size=4, bptt_steps=6, clip_norm=1.0,
        rng=np.random.Generator(np.random.BIT_GENERATOR(1 + resume)), validation=sequences[:1], patience=50,
        callbacks=[stop], checkpoint=path, resume=bool(resume),
    )
except KeyboardInterrupt:
    print("stopped")
else:
    digest = hashlib.sha256(repr((history.loss, history.validation)).encode())
    for arrays in (layer.weights, optimizer.state):
        for name in sorted(arrays):
            digest.update(name.encode() + arrays[name].tobytes())
    print(digest.hexdigest())
"""


def run(optimizer: str, bits: str, *arguments: object) -> str:
    program = PROGRAM.replace("OPTIMIZER", optimizer).replace("BIT_GENERATOR", bits)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("optimizer", "bits"),
    [("rnn.Adam(0.01)", "PCG64"), ("rnn.SGD(0.1, 0.9)", "MT19937"), ("rnn.SGD(0.1)", "Philox")],
)
def test_resume_in_a_new_process_gives_the_same_bits(optimizer: str, bits: str, path: Path) -> None:
    """Interrupted by Ctrl-C in the middle of epoch 2 and right after epoch 3; an epoch has 6 batches."""
    whole = run(optimizer, bits, path, 4, 0, 0, 0)
    assert run(optimizer, bits, path, 4, 2, 3, 0) == "stopped"
    assert run(optimizer, bits, path, 4, 3, 106, 1) == "stopped"
    assert run(optimizer, bits, path, 4, 0, 0, 1) == whole


def pairs() -> list[rnn.training.Pair]:
    x = np.random.default_rng(0).uniform(-1, 1, (6, 4, 1)).astype(np.float32)
    return [(x, x)]


def fit(path: Path, **changed: Any) -> rnn.History:
    settings: dict[str, Any] = {
        "layer": rnn.RNN(1, 3, output_size=1, seed=0),
        "sequences": pairs(),
        "loss": rnn.MSE(),
        "optimizer": rnn.Adam(0.01),
        "epochs": 2,
        "batch_size": 2,
        "rng": 0,
        "checkpoint": path,
    }
    return rnn.fit(**settings | changed)


def test_resume_of_a_finished_run_does_nothing(path: Path) -> None:
    layer = rnn.RNN(1, 3, output_size=1, seed=0)
    history = fit(path, layer=layer)
    again = rnn.RNN(1, 3, output_size=1, seed=1)
    assert fit(path, layer=again, resume=True) == history
    assert_same(again.weights, layer.weights)


def test_resume_for_more_epochs_is_one_long_run(path: Path) -> None:
    long, short = rnn.RNN(1, 3, output_size=1, seed=0), rnn.RNN(1, 3, output_size=1, seed=0)
    curve = fit(path, layer=long, epochs=5).loss
    fit(path, layer=short)
    assert fit(path, layer=short, epochs=5, resume=True).loss == curve
    assert_same(short.weights, long.weights)


def test_the_checkpoint_of_a_run_is_a_model_too(path: Path) -> None:
    layer = rnn.RNN(1, 3, output_size=1, seed=0)
    history = fit(path, layer=layer, metadata={"task": "frames"})
    saved = rnn.load(path)
    assert_same(saved.layer.weights, layer.weights)
    assert saved.metadata == {"task": "frames"}
    assert saved.history["loss"] == history.loss


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"layer": rnn.RNN(1, 4, output_size=1)},
            "resume: layer differs: expected .*'hidden_size': 3.*got .*'hidden_size': 4",
        ),
        ({"optimizer": rnn.SGD(0.1)}, "resume: optimizer differs: expected Adam as in .*got SGD"),
        ({"batch_size": 3}, "resume: batch_size differs: expected 2 as in .*, got 3"),
        ({"sequences": pairs() * 2}, "resume: sequences differs: expected 1 with .*, got 2 with"),
        ({"bptt_steps": 3}, "resume: bptt_steps differs: expected None as in .*, got 3"),
        ({"remat": 4}, "resume: remat differs: expected None as in .*, got 4"),
        ({"rng": None}, "no training run to resume: .*rng"),
    ],
)
def test_resume_with_other_settings_is_refused(changed: dict[str, Any], message: str, path: Path) -> None:
    fit(path)
    layer = changed.pop("layer", rnn.RNN(1, 3, output_size=1, seed=9))
    weights = dict(layer.weights)
    with pytest.raises(ValueError, match=message):
        fit(path, layer=layer, resume=True, **changed)
    assert all(layer.weights[name] is weight for name, weight in weights.items())


def test_resume_from_a_mere_model_is_refused(path: Path) -> None:
    rnn.save(path, rnn.RNN(1, 3, output_size=1))
    with pytest.raises(rnn.CheckpointError, match="holds a layer, but no training run to resume"):
        fit(path, resume=True)


def test_resume_without_a_file_is_refused(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fit(path, resume=True)


def test_ctrl_c_while_saving_leaves_a_whole_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes between the old file and the new one; the handler saves again."""
    replace, calls = os.replace, 0

    def interrupted(source: str, target: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGINT)
        replace(source, target)

    whole = fit(path, epochs=3)
    path.unlink()
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(path, epochs=3)
    monkeypatch.undo()
    assert os.listdir(path.parent) == [path.name]
    assert fit(path, epochs=3, resume=True).loss == whole.loss
