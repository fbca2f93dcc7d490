"""Choosing a backend: for the process, for a block, from the environment."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import rnn
from rnn import backend


def test_using_restores_what_was_there_also_after_an_error() -> None:
    backend.use("numpy")
    before = backend.current()

    def fail() -> None:
        with backend.using("numpy") as inside:
            assert backend.current() is inside
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert backend.current() is before


def test_using_belongs_to_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, outer = object(), object()
    monkeypatch.setattr(backend, "_load", lambda name, schedule: {"inner": inner, "outer": outer}[name])
    backend.use("outer")
    seen = []
    with backend.using("inner"):
        thread = threading.Thread(target=lambda: seen.append(backend.current()))
        thread.start()
        thread.join()
        assert backend.current() is inner
    assert seen == [outer]
    assert backend.current() is outer


def test_the_environment_chooses_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_BACKEND", "numpy")
    assert backend.current().name == "numpy"


def test_a_wrong_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_BACKEND", "fortran")
    with pytest.raises(ValueError, match=r"RNN_BACKEND: expected one of halide, .*numpy.*, got 'fortran'"):
        backend.current()


def test_halide_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RNN_BACKEND", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(backend, "_load", lambda name, schedule: f"{name}, {schedule}")
        assert str(backend.current()) == "halide, None"


@pytest.fixture
def no_theano(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine where nobody made its environment."""
    monkeypatch.setenv("RNN_THEANO", str(tmp_path / "theano"))
    monkeypatch.setattr(backend, "_loaded", backend._loaded.__wrapped__)


@pytest.mark.usefixtures("no_theano")
def test_available_says_ready_or_why_not() -> None:
    available = backend.available()
    assert list(available) == ["halide", "halide-jit", "numpy", "theano"]
    assert available["numpy"] == "ready"
    assert available["theano"] == "theano: needs an environment of its own; make it with 'rnn setup theano'"
    assert all(available.values())


@pytest.mark.usefixtures("no_theano")
def test_an_absent_backend_is_an_import_error() -> None:
    with pytest.raises(backend.BackendUnavailable, match="theano: needs an environment of its own"):
        backend.use("theano")
    assert issubclass(backend.BackendUnavailable, ImportError)


def test_a_failed_choice_changes_nothing() -> None:
    backend.use("numpy")
    with pytest.raises(ValueError, match="got 'nympy'"):
        backend.use("nympy")
    assert backend.current().name == "numpy"


def test_import_is_light() -> None:
    """`import rnn` loads NumPy, and neither Halide nor what only the command line and the tasks need."""
    heavy = "{'halide', 'click', 'rich', 'matplotlib', 'av', 'skimage', 'safetensors'}"
    code = f"import sys, rnn; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_schedules_of_the_halide_backend() -> None:
    with backend.using("halide") as chosen:
        assert (chosen.name, chosen.schedule) == ("halide", "tuned")
    with backend.using("halide", schedule="naive") as chosen:
        assert chosen.schedule == "naive"
    with pytest.raises(ValueError, match=r"naive.*tuned.*'nave'"):
        backend.use("halide", schedule="nave")


def test_backends_are_reached_through_the_layer() -> None:
    layer = rnn.RNN(1, 2)
    with backend.using("numpy"):
        assert layer.forward(np.zeros((1, 1, 1), "float32")).backend.name == "numpy"
