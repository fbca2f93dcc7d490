"""Theano's environment of its own: it needs a NumPy older than ours.

Standard library alone. The folder is RNN_THEANO, or one beside the packages of the Python that runs. What Theano
compiles is kept in it too. `environment.json`, written last, says that it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

VARIABLE = "RNN_THEANO"
REQUIREMENTS = ("numpy==1.26.4", "scipy==1.15.3", "theano-pymc==1.1.2")
PYTHON = (3, 11)  # the newest that Theano runs on as it is, but for one C file (theano.py)
COMMAND = "make it with 'rnn setup theano'"
LOG_LINES_SHOWN = 20

Say = Callable[[str], None]


class NoTheano(Exception):
    """There is no environment for Theano, or it can't be made; the message says why, and what to do."""


def folder() -> Path:
    """Where it is, or would be."""
    return Path(os.environ.get(VARIABLE) or Path(sys.prefix, "share", "halide-rnn", "theano")).absolute()


def python() -> Path:
    """The interpreter that has Theano; to be started with -I, so that it sees nothing of ours. Raises NoTheano."""
    found = interpreter()
    if not stamp_path().exists():
        unfinished = " (a set-up of it never ended)" if found.exists() else ""
        raise NoTheano(f"theano: needs an environment of its own{unfinished}; {COMMAND}")
    if read_stamp() != stamp() or not os.access(found, os.X_OK):
        raise NoTheano(f"theano: the environment in {folder()} is of another version, or was moved; {COMMAND}")
    return found


def make(say: Say) -> None:
    """Make it, unless it is there. `say` gets lines of progress; what pip prints goes to a log beside the folder.

    Raises NoTheano if it can't be made. Stopped half-way, it starts anew the next time.
    """
    with contextlib.suppress(NoTheano):
        python()
        return
    check_machine()
    try:
        folder().parent.mkdir(parents=True, exist_ok=True)
        with locked(say):
            with contextlib.suppress(NoTheano):  # another process may have made it meanwhile
                python()
                return
            check_folder()
            say(f"making the environment for Theano in {folder()} (about a minute)")
            stamp_path().unlink(missing_ok=True)
            log_path().write_bytes(b"")
            run([sys.executable, "-I", "-m", "venv", "--clear", str(folder())])
            pip = [str(interpreter()), "-I", "-m", "pip", "--no-input", "--disable-pip-version-check", "install"]
            run([*pip, *REQUIREMENTS])
            write_stamp()
            say("ready")
    except OSError as error:
        raise NoTheano(f"theano: its environment can't be made: {error.filename}: {error.strerror}") from error


def check_machine() -> None:
    """Raise NoTheano for what would fail later without saying so clearly."""
    version = sys.version_info[:2]
    if version != PYTHON:
        raise NoTheano("theano: needs Python {}.{}, this is Python {}.{}".format(*PYTHON, *version))
    if shutil.which("g++") is None:
        raise NoTheano("theano: compiles with g++, and there is none on the PATH; install it (Debian: apt install g++)")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise NoTheano(f"theano: the header {header} is missing; install it (Debian: apt install python3-dev)")


def check_folder() -> None:
    """Raise NoTheano for a folder that holds something else: making the environment empties it."""
    if folder().exists() and any(folder().iterdir()) and not (folder() / "pyvenv.cfg").exists():
        raise NoTheano(f"theano: {VARIABLE}: expected a folder that is empty or not there, got {folder()}")


def interpreter() -> Path:
    return folder() / "bin" / "python"


def stamp_path() -> Path:
    return folder() / "environment.json"


def log_path() -> Path:
    return folder().with_name(folder().name + ".log")


def stamp() -> dict[str, Any]:
    """What a whole environment says of itself; with its folder, since what was compiled for one has its path."""
    return {"requirements": list(REQUIREMENTS), "folder": str(folder())}


def read_stamp() -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(stamp_path().read_text())
        return found
    except (OSError, ValueError):
        return None


def write_stamp() -> None:
    aside = stamp_path().with_suffix(".new")
    with open(aside, "w") as file:
        json.dump(stamp(), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, stamp_path())


@contextlib.contextmanager
def locked(say: Say) -> Iterator[None]:
    """One set-up of the folder at a time; the lock lies beside it, and goes with the process."""
    with open(folder().with_name(folder().name + ".lock"), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that makes the environment for Theano")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(command: list[str]) -> None:
    """Run one command, its output in the log; raise NoTheano with the end of it if it fails."""
    elsewhere = ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER")
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    with open(log_path(), "ab") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that a stop reaches pip and all that it started
        )
        try:
            status = process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if status:
        tail = log_path().read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        raise NoTheano(
            f"theano: its environment can't be made: {shlex.join(command)} failed; "
            f"the log, {log_path()}, ends with\n" + "\n".join(tail)
        )
