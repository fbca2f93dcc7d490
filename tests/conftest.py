"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import rnn


@pytest.fixture
def rng() -> np.random.Generator:
    """The one source of randomness: every test starts from the same seed."""
    return np.random.default_rng(20161121)


@pytest.fixture(autouse=True)
def _fresh_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts on the default backend and number of threads, and leaves them as they were."""
    monkeypatch.setattr(rnn.backend, "_default", None)
    threads = rnn.get_num_threads()
    yield
    if rnn.get_num_threads() != threads:
        rnn.set_num_threads(threads)
