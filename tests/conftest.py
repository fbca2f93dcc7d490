"""Fixtures that all tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import rnn
from rnn import _kernels

PEERS = "test_peers.py"

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from what it runs in the background


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--peers", action="store_true", help=f"also run {PEERS}: PyTorch, JAX and PyTensor")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name == PEERS and not config.getoption("--peers") else None


def pytest_report_header(config: pytest.Config) -> str | None:
    if config.getoption("--peers"):
        return None
    return f"NOT RUN: {PEERS}, which needs gigabytes of packages: python3 tests --peers"


@pytest.fixture
def rng() -> np.random.Generator:
    """The one source of randomness: every test starts from the same seed."""
    return np.random.default_rng(20161121)


@pytest.fixture(scope="session")
def _kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(autouse=True)
def _fresh_settings(monkeypatch: pytest.MonkeyPatch, _kernel_folder: Path) -> Iterator[None]:
    """Each test starts on the default backend and number of threads, and leaves them as they were; kernels that it has
    compiled do not go into the user's folder."""
    monkeypatch.setattr(rnn.backend, "_default", None)
    monkeypatch.setenv("RNN_CACHE", str(_kernel_folder))
    threads, worth_sharing = rnn.get_num_threads(), _kernels.worth_sharing()
    _kernels.set_worth_sharing(0)  # small problems are to use all threads too
    yield
    _kernels.set_worth_sharing(worth_sharing)
    if rnn.get_num_threads() != threads:
        rnn.set_num_threads(threads)
