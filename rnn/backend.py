"""Choose what runs the layers: `use` for the whole process, `using` for a block, RNN_BACKEND for a program's
start.

    halide       kernels compiled ahead of time (the default)
    halide-jit   the same generators through Halide's JIT; needs the extra `jit`
    numpy        the reference in `rnn.baselines`
    theano       Theano-PyMC, in a process of its own; needs the environment that `rnn setup theano` makes
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module

from ._backends.base import Backend

__all__ = ["Backend", "BackendUnavailable", "available", "current", "use", "using"]

_MODULES = {
    "halide": "rnn._backends.halide",
    "halide-jit": "rnn._backends.halide_jit",
    "numpy": "rnn._backends.numpy",
    "theano": "rnn._backends.theano",
}

_default: Backend | None = None
_chosen: ContextVar[Backend | None] = ContextVar("rnn_backend", default=None)


class BackendUnavailable(ImportError):
    """A backend that is known but can't run here. The message says why, and what to install."""


def use(name: str, *, schedule: str | None = None) -> None:
    """Make `name` the backend of this process, wherever no `using` says otherwise.

    schedule: one of the backend's schedules ("naive", ..., "tuned" for the Halide ones); None is its best.
    Raises ValueError for an unknown name or schedule, BackendUnavailable if it can't run here.
    """
    global _default
    _default = _load(name, schedule)


@contextmanager
def using(name: str, *, schedule: str | None = None) -> Iterator[Backend]:
    """Use `name` inside a `with` block; what was chosen before is back after it. Arguments and errors as in
    `use`.

    The choice belongs to the calling context (`contextvars`): other threads and tasks keep theirs.
    """
    backend = _load(name, schedule)
    token = _chosen.set(backend)
    try:
        yield backend
    finally:
        _chosen.reset(token)


def current() -> Backend:
    """The backend that a layer called here and now runs on: has `.name` and `.schedule`.

    It is that of the innermost `using`, else of the last `use`, else RNN_BACKEND, else "halide".
    Raises BackendUnavailable if that can't run here, ValueError if RNN_BACKEND is an unknown name.
    """
    backend = _chosen.get() or _default
    if backend is None:
        name = os.environ.get("RNN_BACKEND") or "halide"
        use(_known(name, "environment variable RNN_BACKEND"))
        assert _default is not None
        backend = _default
    return backend


def available() -> dict[str, str]:
    """Every known backend: "ready", or the reason why it can't run here and what to install."""
    answer = {}
    for name in _MODULES:
        try:
            _load(name, None)
            answer[name] = "ready"
        except ImportError as reason:
            answer[name] = str(reason)
    return answer


def _load(name: str, schedule: str | None) -> Backend:
    _known(name, "backend")
    if schedule is not None and not isinstance(schedule, str):
        raise TypeError(f"schedule: expected a name (str) or None, got {type(schedule).__name__}")
    return _loaded(name, schedule)


def _known(name: str, where: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{where}: expected a name (str), got {type(name).__name__}")
    if name not in _MODULES:
        raise ValueError(f"{where}: expected one of {', '.join(_MODULES)}, got {name!r}")
    return name


@cache  # backends are stateless, and a JIT one is dear to make
def _loaded(name: str, schedule: str | None) -> Backend:
    module = import_module(_MODULES[name])
    backend: Backend = module.load() if schedule is None else module.load(schedule=schedule)
    return backend
