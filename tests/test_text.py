"""Writing text, the cells of the tasks, and compiling cells: as a library, and as a user runs the command."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import COMMAND, last_json, run
from tolerance import assert_close

import rnn
from rnn import tasks
from rnn.tasks import data, text

KEYS = {
    *("task", "cell", "layers", "hidden", "backend", "schedule", "threads", "epochs", "epoch_seconds", "train_loss"),
    *("test_bits_per_character", "out"),
}
VERSE = "round and round the rugged rock\n"
"""Some letters are followed by others than the time before: who writes it has to remember."""
SMALL = ["--hidden", "24", "--layers", "1", "--lanes", "4", "--steps", "16", "--seed", "1"]

CELL = """
import rnn
from rnn.cells import sigmoid, tanh

@rnn.cell
class Leaky:
    gates = "z"
    states = "h"

    def step(self, x, u, h):
        return 0.9 * h + 0.1 * tanh(x.z + u.z(h))
"""


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `verse.txt`, `run/model.safetensors` that knows it by heart, and `answer.json`."""
    folder = tmp_path_factory.mktemp("learned")
    written(folder / "verse.txt", VERSE * 60)
    arguments = ["train", "text", "--data", "verse.txt", *SMALL, "--epochs", "30", "--lr", "0.03", "--json"]
    done = run(*arguments, "--out", "run", cwd=folder)
    written(folder / "answer.json", done.stdout)
    return folder


# What a text is.


@pytest.mark.parametrize("content", ["plain text, of one line or two.\n" * 2, "naïve 漢字 \U0001f600 text\r\n" * 2])
def test_characters_become_numbers_and_characters_again(content: str, tmp_path: Path) -> None:
    read = text.read_text(written(tmp_path / "text.txt", "\ufeff" + content))
    numbers = np.concatenate([read.training, read.held_out])
    assert len(numbers) == len(content)
    assert len(read.held_out) == len(content) // 10
    assert len(read.alphabet) == len(set(content))
    assert read.alphabet.decode(numbers) == content.encode()
    np.testing.assert_array_equal(read.alphabet.encode(content), numbers)
    same = text.Alphabet.from_metadata(json.loads(json.dumps(read.alphabet.metadata())))
    np.testing.assert_array_equal(same.encode(content), numbers)


def test_any_file_is_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) + b"\xff\xfe"
    read = text.read_text(written(tmp_path / "noise", content), as_bytes=True)
    assert len(read.alphabet) == 256
    assert read.alphabet.decode(np.concatenate([read.training, read.held_out])) == content
    same = text.Alphabet.from_metadata(json.loads(json.dumps(read.alphabet.metadata())))
    assert same.decode(same.encode("é")) == "é".encode()


def test_one_hot_vectors_have_their_1_at_the_symbol() -> None:
    numbers = np.array([[0, 2], [1, 1], [2, 0]], np.int32)
    x = text.Alphabet([97, 98, 99]).one_hot(numbers)
    assert x.shape == (3, 2, 3)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x.argmax(axis=2), numbers)
    np.testing.assert_array_equal(x.sum(axis=2), 1)


def test_lanes_follow_each_other_and_targets_are_the_next_characters() -> None:
    numbers = np.arange(20, dtype=np.int32)
    x, target = text.lanes_of(numbers, 3)
    np.testing.assert_array_equal(x.T.ravel(), numbers[:18])
    np.testing.assert_array_equal(target, x + 1)
    assert x.shape == (6, 3)


BAD_ALPHABETS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "numbers of characters": {"unit": "characters", "alphabet": [1, 2]},
    "not in order": {"unit": "characters", "alphabet": "ba"},
    "twice the same": {"unit": "characters", "alphabet": "aa"},
    "no symbols": {"unit": "characters", "alphabet": ""},
    "no bytes": {"unit": "bytes", "alphabet": [255, 256]},
    "half a character": {"unit": "characters", "alphabet": "\ud800"},
}


@pytest.mark.parametrize("case", BAD_ALPHABETS)
def test_metadata_that_is_no_alphabet_is_refused(case: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        text.Alphabet.from_metadata(BAD_ALPHABETS[case])


# What fit does with it.


def test_encoding_piece_by_piece_is_training_on_one_hot_vectors(tmp_path: Path) -> None:
    """Same bits, and the held-out loss in pieces is the one over the whole."""
    read = text.read_text(written(tmp_path / "verse.txt", VERSE * 8))
    x, target = text.lanes_of(read.training, 4)
    held_out = text.lanes_of(read.held_out, 1)
    how = text.recipe(read)._replace(hidden=6, layers=1)
    one, other = (text.make_layer(read, how, seed=0) for _ in range(2))
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 2, "bptt_steps": 9, "rng": 0}
    loss = rnn.SoftmaxCrossEntropy()
    lazy = rnn.fit(
        *(one, [(x, target)], loss, rnn.Adam(0.01)), validation=[held_out], encode=read.alphabet.one_hot, **settings
    )
    whole = read.alphabet.one_hot(x)
    rnn.fit(other, [(whole, target)], loss, rnn.Adam(0.01), **settings)
    for name, weight in one.weights.items():
        np.testing.assert_array_equal(other.weights[name], weight, err_msg=name)
    straight = rnn.evaluate(one, [(read.alphabet.one_hot(held_out[0]), held_out[1])], loss)
    assert math.isclose(lazy.validation[-1], straight, rel_tol=1e-6)
    assert math.isclose(text.bits_per_character(one, read), straight / math.log(2), rel_tol=1e-6)


def test_pieces_to_encode_need_time_and_lanes() -> None:
    layer = rnn.RNN(3, 2, output_size=3, seed=0)
    one_hot, flat = text.Alphabet([97, 98, 99]).one_hot, np.zeros(5, np.int32)
    with pytest.raises(
        TypeError, match=r"sequences\[0\]\[0\]: expected an array \(T, N, \.\.\.\) for encode, got shape"
    ):
        rnn.fit(layer, [(flat, flat)], rnn.SoftmaxCrossEntropy(), rnn.SGD(0.1), epochs=1, encode=one_hot)


def test_sampling_at_temperature_1_follows_the_probabilities(rng: np.random.Generator) -> None:
    """A layer that forgets: its scores are its output's biases."""
    layer = rnn.RNN(3, 2, output_size=3, seed=0)
    layer.weights = {name: np.zeros_like(weight) for name, weight in layer.weights.items()}
    share = np.array([0.2, 0.5, 0.3])
    layer.weights["bias_o"] = np.log(share).astype(np.float32)
    alphabet = text.Alphabet([97, 98, 99])
    drawn = text.sample(layer, alphabet, 2000, seed=rng)
    counts = np.array([drawn.count(letter) for letter in b"abc"])
    assert (np.abs(counts / 2000 - share) < 5 * np.sqrt(share * (1 - share) / 2000)).all()
    assert text.sample(layer, alphabet, 9, temperature=0) == b"b" * 9
    assert text.sample(layer, alphabet, 9, temperature=1e-300, seed=0) == b"b" * 9
    with pytest.raises(ValueError, match="temperature: expected a finite number of at least 0, got -1"):
        text.sample(layer, alphabet, 9, temperature=-1)
    with pytest.raises(ValueError, match="prime: expected characters that were in the training text, got 'd'"):
        text.sample(layer, alphabet, 9, prime="abcd")


# The command.


def test_a_verse_is_learned_by_heart_and_recited(learned: Path) -> None:
    answer = json.loads((learned / "answer.json").read_text())
    assert set(answer) >= KEYS
    assert (answer["task"], answer["cell"], answer["layers"], answer["hidden"]) == ("text", "lstm", 1, 24)
    assert answer["epochs"] == 30
    assert answer["test_bits_per_character"] < 0.1
    assert {path.name for path in (learned / "run").iterdir()} == {"model.safetensors", "loss.png"}
    prime = VERSE[:9]
    sampled = ["sample", "run/model.safetensors", "--length", "96", "--temperature", "0", "--prime", prime]
    assert run(*sampled, cwd=learned).stdout == prime + (VERSE * 4)[9 : 9 + 96] + "\n"
    assert last_json(run(*sampled, "--json", cwd=learned))["text"] == (VERSE * 4)[9 : 9 + 96]


def test_the_seed_and_nothing_else_chooses_what_is_written(learned: Path) -> None:
    def write(*more: str) -> str:
        sampled = ("sample", "run/model.safetensors", "--length", "60", "--temperature", "3")
        return run(*sampled, *more, cwd=learned).stdout

    assert write() == write("--seed", "0", "--threads", "1")
    assert write() != write("--seed", "1")
    assert len(write()) == 61


def test_a_text_model_says_what_it_holds_and_is_for_sample_alone(learned: Path, tmp_path: Path) -> None:
    model = learned / "run" / "model.safetensors"
    answer = last_json(run("info", model, "--json", cwd=tmp_path))
    assert answer["metadata"]["alphabet"] == "".join(sorted(set(VERSE)))
    assert (answer["metadata"]["cell"], answer["layer"]["layer"]) == ("lstm", "LSTM")
    assert r"alphabet: '\n acdeghknortu'" in run("info", model, cwd=tmp_path).stdout
    done = run("predict", model, "--images", "cat.png", cwd=tmp_path, status=2)
    assert "is a model of the task text: rnn sample" in done.stderr


@pytest.mark.parametrize("dropout", ["0", "0.3"])
def test_training_that_was_stopped_goes_on_with_the_same_bits(dropout: str, tmp_path: Path) -> None:
    """With two layers, so that dropout has a place, and on bytes."""
    read = text.read_text(written(tmp_path / "verse.txt", VERSE * 20), as_bytes=True)
    how = text.TextRecipe("gru", 2, 8, float(dropout), lanes=3, steps=7, epochs=3, lr=0.01)
    file = tmp_path / "model.safetensors"
    straight, broken, resumed = (text.make_layer(read, how, seed=0) for _ in range(3))

    def stop(progress: rnn.Progress) -> None:
        if progress.epoch == 2 and not progress.finished:
            raise KeyboardInterrupt

    text.train(straight, read, how, seed=3)
    with pytest.raises(KeyboardInterrupt):
        text.train(broken, read, how, seed=3, callbacks=[stop], checkpoint=file)
    history = text.train(resumed, read, how, seed=3, checkpoint=file, resume=True)
    assert history.epochs == 3
    for name, weight in straight.weights.items():
        np.testing.assert_array_equal(resumed.weights[name], weight, err_msg=name)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    written(tmp_path / "verse.txt", VERSE * 20)
    arguments = ["train", "text", "--data", "verse.txt", *SMALL, "--out", "here", "--epochs"]
    with subprocess.Popen([*COMMAND, *arguments, "2000"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 200/2000" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.rstrip().endswith("--epochs 2000 --resume")
    reached = last_json(run("info", "here/model.safetensors", "--json", cwd=tmp_path))["epochs"]
    assert 200 <= reached < 2000
    done = run(*arguments, str(reached + 1), "--resume", "--json", cwd=tmp_path)
    assert last_json(done)["epochs"] == reached + 1
    written(tmp_path / "verse.txt", VERSE[::-1] * 20)
    done = run(*arguments, str(reached + 2), "--resume", "--quiet", cwd=tmp_path, status=1)
    assert "--resume: expected the text that here/model.safetensors has learned from, got another one" in done.stderr


BAD: dict[str, tuple[int, list[str], str]] = {
    "no text named": (2, ["train", "text"], "Missing option '--data'"),
    "no such text": (1, ["train", "text", "--data", "none.txt"], "--data none.txt: expected a readable file"),
    "a folder": (1, ["train", "text", "--data", "."], "--data .: expected a file, got a folder"),
    "empty": (1, ["train", "text", "--data", "empty.txt"], "--data empty.txt: expected a text, got an empty file"),
    "not UTF-8": (
        1,
        ["train", "text", "--data", "latin.txt"],
        "latin.txt: expected text in UTF-8, got byte 0xef at position 2; read as bytes, any file will do (--bytes)",
    ),
    "too short": (1, ["train", "text", "--data", "short.txt"], "at least 20 characters, got 5"),
    "too many characters": (
        1,
        ["train", "text", "--data", "wide.txt"],
        "at most 4096 different characters, got 5000; read as bytes, there are no more than 256 (--bytes)",
    ),
    "too many lanes": (
        1,
        ["train", "text", "--data", "verse.txt", "--lanes", "500"],
        "--lanes: expected at most 57 for 58 characters of verse.txt to train on, got 500",
    ),
    "no layers": (2, ["train", "text", "--data", "verse.txt", "--layers", "0"], "0 is not in the range x>=1"),
    "all dropped": (2, ["train", "text", "--data", "verse.txt", "--dropout", "1"], "1.0 is not in the range 0<=x<1"),
    "no rate": (2, ["train", "text", "--data", "verse.txt", "--lr", "nan"], "nan is not a finite number"),
    "unknown cell": (2, ["train", "text", "--data", "verse.txt", "--cell", "esn"], "'esn' is not one of 'rnn'"),
    "nothing to resume": (
        1,
        ["train", "text", "--data", "verse.txt", "--resume"],
        "--resume: expected a training run in results/text",
    ),
    "cold": (2, ["sample", "model.safetensors", "--temperature", "-1"], "'--temperature': -1.0 is not in the range"),
    "undefined heat": (2, ["sample", "model.safetensors", "--temperature", "nan"], "nan is not a finite number"),
    "strange prime": (
        2,
        ["sample", "model.safetensors", "--prime", "Round"],
        "--prime: expected characters that were in the training text, got 'R'",
    ),
    "no characters": (2, ["sample", "model.safetensors", "--length", "0"], "0 is not in the range x>=1"),
    "no model": (1, ["sample", "none.safetensors"], "none.safetensors: No such file or directory"),
    "no text model": (
        1,
        ["sample", "other.safetensors"],
        "other.safetensors: expected a model that `rnn train text` wrote, got another one",
    ),
    "no cell file": (1, ["compile", "none.py"], "none.py: expected a readable file"),
    "no cells": (1, ["compile", "nothing.py"], "nothing.py: expected classes under @rnn.cell, got none"),
    "no Python": (1, ["compile", "verse.txt"], "verse.txt: expected Python that can be imported, got SyntaxError"),
    "a cell without gates": (1, ["compile", "wrong.py"], "wrong.py: "),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, learned: Path) -> Path:
    """A folder of files that can't be used, and some that can."""
    folder = tmp_path_factory.mktemp("broken")
    written(folder / "empty.txt", "")
    written(folder / "short.txt", "short")
    written(folder / "verse.txt", VERSE * 2)
    written(folder / "latin.txt", "naïve".encode("latin-1") * 20)
    written(folder / "wide.txt", "".join(map(chr, range(0x4E00, 0x4E00 + 5000))))
    written(folder / "nothing.py", "import rnn\nfrom rnn import LSTM\nlayer = LSTM(1, 2)\n")
    written(folder / "wrong.py", CELL.replace("u.z(h)", "u.q(h)"))
    written(folder / "model.safetensors", (learned / "run" / "model.safetensors").read_bytes())
    rnn.save(folder / "other.safetensors", rnn.LSTM(3, 4, output_size=3, seed=0), metadata={"task": "text"})
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_message(case: str, broken: Path) -> None:
    status, arguments, message = BAD[case]
    before = sorted(broken.rglob("*"))
    done = run(*arguments, cwd=broken, status=status)
    assert message in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == (1 if status == 1 else 4), "one line; after click's usage, hint and gap"
    assert [path for path in sorted(broken.rglob("*")) if "__pycache__" not in path.parts] == before


# The other tasks' cells.


@pytest.mark.parametrize("cell", tasks.CELLS)
def test_every_cell_makes_a_layer_that_answers_nothing_at_first(cell: str, rng: np.random.Generator) -> None:
    noise = data.Picture("noise", rng.random((9, 12), dtype=np.float32))
    made = tasks.sobel.rows([noise], [noise])
    layer = tasks.make_layer(made, 4, 0, cell)
    assert (type(layer), layer.cell.name.startswith(cell.split("-")[0])) == (tasks.CELLS[cell][0], True)
    assert tasks.judge(layer, made).relative_rmse == 1
    assert rnn.Layer.from_weights(layer.config(), layer.weights).cell is layer.cell


def test_the_cell_without_a_name_is_the_plain_one(rng: np.random.Generator) -> None:
    noise = data.Picture("noise", rng.random((9, 12), dtype=np.float32))
    layer = tasks.make_layer(tasks.sobel.rows([noise], [noise]), 4, 0)
    assert layer.config() == rnn.RNN(1, 4, output_size=1).config()
    with pytest.raises(ValueError, match=r"cell: expected one of rnn, .*, got 'esn'"):
        tasks.make_layer(tasks.sobel.rows([noise], [noise]), 4, 0, "esn")


@pytest.mark.parametrize("cell", ["lstm", "gru", "mgu", "indrnn"])
def test_sobel_with_another_cell_trains_resumes_and_predicts(cell: str, tmp_path: Path) -> None:
    train = ("train", "sobel", "--synthetic", "3", "--cell", cell, "--epochs")
    first = last_json(run(*train, "1", "--json", cwd=tmp_path))
    assert (first["cell"], first["out"]) == (cell, f"results/sobel-rows-{cell}")
    model = tmp_path / first["out"] / "model.safetensors"
    assert last_json(run("info", model, "--json", cwd=tmp_path))["metadata"]["cell"] == cell
    more = last_json(run(*train, "3", "--resume", "--json", cwd=tmp_path))
    assert more["epochs"] == 3
    assert more["train_loss"] < first["train_loss"]
    picture = first["out"] + "/learned.png"
    done = last_json(run("predict", model, "--images", picture, "--json", cwd=tmp_path))
    assert done["cell"] == cell
    assert 0 < done["results"][0]["relative_rmse"] < 2


# Compiling.


def test_a_cell_is_compiled_ahead_of_time_and_found_again(tmp_path: Path) -> None:
    pytest.importorskip("halide")
    written(tmp_path / "mycell.py", CELL)
    done = run("compile", "mycell.py", "--out", "kernels", cwd=tmp_path)
    files = done.stdout.splitlines()
    assert len(files) == len(set(files)) == 5
    assert all((tmp_path / file).stat().st_size > 0 for file in files)
    assert {Path(file).name for file in files} == {path.name for path in (tmp_path / "kernels").iterdir()}
    again = run("compile", "mycell.py", "--out", "kernels", "--json", cwd=tmp_path)
    assert again.stderr == "", "nothing was compiled anew"
    assert [kernel["file"] for kernel in last_json(again)["kernels"]] == files
    use = """
import mycell, numpy as np, rnn
layer = mycell.Leaky(3, 5, seed=0)
run = layer.forward(np.ones((4, 2, 3), "float32"))
layer.bptt(run, run.output)
layer.step(np.ones((2, 3), "float32"))
print(run.output.ravel().tolist())
"""
    used = subprocess.run(
        [sys.executable, "-c", use],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"RNN_CACHE": "kernels"},
    )
    assert used.stderr == "", "nothing was compiled anew"
    weights = rnn.RNN(3, 5, seed=0).weights
    h = np.zeros((2, 5))
    expected = []
    for _ in range(4):
        gate = np.ones((2, 3)) @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]
        h = 0.9 * h + 0.1 * np.tanh(gate + h @ weights["weight_hh_l0"].T + weights["bias_hh_l0"])
        expected.append(h)
    assert_close("output", np.array(json.loads(used.stdout)), np.stack(expected).ravel(), 1e-6)


def test_without_halide_compiling_says_what_to_install(tmp_path: Path) -> None:
    """A folder in front of the path stands for its absence."""
    written(tmp_path / "mycell.py", CELL)
    written(tmp_path / "halide.py", "raise ImportError('no halide here')\n")
    done = run("compile", "mycell.py", "--out", "kernels", cwd=tmp_path, status=1)
    assert "compiling it needs Halide (no halide here); install it with 'pip install halide-rnn[jit]'" in done.stderr
    assert done.stdout == ""
