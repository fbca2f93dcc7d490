"""Makes `.venv` once, keeps it up to date, and goes on inside it.

Standard library alone: it runs before anything is installed.

`.venv/environment.json` says what is in the folder. It is away while pip changes the folder, and comes back,
written aside and renamed, when the folder is whole: without that file a set-up never ended, and is done again
from the start. Building the wheel touches `build/` alone, so stopping amid the kernels loses nothing: ninja
goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "environment.json"
BUILD = ROOT / "build"
LOG = BUILD / "environment.log"
WHEELS = BUILD / "wheel"
BUILD_DIR_SETTING = "--config-settings=build-dir=build/venv"  # in full: Debian 12's pip has no -C yet

# All that goes into the wheel or decides how it is built.
SOURCES = ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE", "halide_gen", "rnn", "baselines")
# scikit-build-core brings these in an isolated build alone; ours is not isolated, for incremental rebuilds.
BUILD_TOOLS = ("cmake>=3.28", "ninja>=1.11")
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)  # the newest one that halide==21.0.0 has a wheel for
# What the extension is built for: Debian's 3.11 and pyenv's 3.11 share a `.venv`, 3.11 and 3.12 do not.
PYTHON_TAG = f"{sys.implementation.cache_tag}{getattr(sys, 'abiflags', '')}"
PROGRESS_SECONDS = 15.0
LOG_LINES_SHOWN = 40


class SetupError(Exception):
    """The set-up cannot go on; the message is one sentence for the user."""


class Stamp(NamedTuple):
    """What `.venv` holds. `tree`: `tree_digest` of the installed wheel's sources, empty before the first."""

    python: str
    folder: str  # scripts in .venv/bin begin with its absolute path: a moved .venv is a broken one
    extras: list[str]
    requirements: list[str]
    tree: str


def enter(extras: tuple[str, ...]) -> None:
    """Return inside `.venv`, with the project and these extras of it installed.

    Elsewhere it starts the program again there, with the same arguments and by `exec`: signals and the exit
    status are the program's own. Exits with 1 and one sentence if something is missing, with 130 on Ctrl-C.
    """
    inside = os.path.realpath(sys.prefix) == os.path.realpath(VENV)
    if not is_current(extras):
        if inside:  # the interpreter in use may have to be replaced: leave it first
            start_again(os.path.realpath(PYTHON))
        try:
            with locked() as lock:
                if not is_current(extras):  # another run may have done it meanwhile
                    set_up(extras, lock)
        except SetupError as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            say("stopped; the same command goes on from here")
            sys.exit(130)
    if not inside:
        start_again(str(PYTHON))


def is_current(extras: tuple[str, ...]) -> bool:
    """Whether `.venv` holds the tree as it is now, built for this Python, and these extras."""
    stamp = read_stamp()
    return (
        stamp is not None
        and fits(stamp)
        and set(extras) <= set(stamp.extras)
        and stamp.tree == tree_digest()  # last, since it reads every source
    )


def fits(stamp: Stamp) -> bool:
    return (stamp.python, stamp.folder) == (PYTHON_TAG, str(VENV)) and os.access(PYTHON, os.X_OK)


def set_up(extras: tuple[str, ...], lock: int) -> None:
    """Bring `.venv` from whatever it is to current; each step is left out if it is done."""
    check_machine()
    LOG.write_bytes(b"")
    tree = tree_digest()  # before the build: what is edited meanwhile is built the next time
    stamp = read_stamp()
    if stamp is None or not fits(stamp):
        say("making .venv (about 5 s)")
        STAMP.unlink(missing_ok=True)
        run([sys.executable, "-m", "venv", "--clear", str(VENV)], lock)
        stamp = Stamp(PYTHON_TAG, str(VENV), [], [], "")
        write_stamp(stamp)

    config = read_pyproject()
    known = config["project"].get("optional-dependencies", {})
    all_extras = sorted({*extras, *(extra for extra in stamp.extras if extra in known)})
    wanted = requirements(config, all_extras)
    if wanted != stamp.requirements:
        say(f"installing what the build and {', '.join(all_extras)} need (one or two minutes the first time)")
        with changing(stamp):
            pip("install", *wanted, lock=lock)
    stamp = stamp._replace(extras=all_extras, requirements=wanted)
    write_stamp(stamp)

    if tree != stamp.tree:
        say(f"building the kernels that changed (all of them the first time: some minutes); log: {LOG}")
        shutil.rmtree(WHEELS, ignore_errors=True)
        build = ["--no-build-isolation", "--no-deps", BUILD_DIR_SETTING, "--wheel-dir", str(WHEELS), "-v"]
        pip("wheel", *build, ".", lock=lock)
        (wheel,) = WHEELS.glob("*.whl")
        with changing(stamp):
            pip("install", "--no-deps", "--force-reinstall", str(wheel), lock=lock)
        write_stamp(stamp._replace(tree=tree))
    say("ready")


def check_machine() -> None:
    """Raise SetupError for the first thing that the build would fail on without saying so clearly."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.maxsize < 2**32:
        raise SetupError(
            f"This project needs Linux and a 64-bit Python on x86-64; this is {sys.platform} on {platform.machine()}."
        )
    version = sys.version_info[:2]
    name = "python{}.{}".format(*version)
    if not OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        raise SetupError(
            "This project needs Python {}.{} to {}.{}; ".format(*OLDEST_PYTHON, *NEWEST_PYTHON)
            + f"this is {name} ({sys.executable}): install another one and start with it."
        )
    if not all(importlib.util.find_spec(module) for module in ("venv", "ensurepip")):
        raise SetupError(f"{sys.executable} lacks venv or ensurepip: install them (Debian: apt install {name}-venv).")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise SetupError(f"The header {header} is missing: install it (Debian: apt install {name}-dev).")
    chosen = os.environ.get("CXX")
    compilers = [shlex.split(chosen)[0]] if chosen else ["c++", "g++", "clang++"]
    if not any(shutil.which(compiler) for compiler in compilers):
        raise SetupError(
            f"The C++ compiler {chosen}, named by the environment variable CXX, cannot be found: unset CXX."
            if chosen
            else "No C++ compiler (c++, g++ or clang++) on the PATH: install one (Debian: apt install g++)."
        )


def tree_digest() -> str:
    """SHA-256 over the names and contents of all that goes into the wheel; no caches, no built modules."""
    digest = hashlib.sha256()
    for path in sources():
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def sources() -> Iterator[Path]:
    for name in SOURCES:
        top = ROOT / name
        if top.is_file():
            yield top
        for folder, folders, files in os.walk(top):  # nothing if it is a file; does not go into links
            folders[:] = sorted(f for f in folders if f != "__pycache__" and not f.startswith("."))
            kept = (f for f in sorted(files) if not f.startswith(".") and not f.endswith((".so", "~")))
            yield from (Path(folder, f) for f in kept)


def read_pyproject() -> dict[str, Any]:
    import tomllib  # not at the top: Python 3.10 is to get as far as its clear sentence

    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)


def requirements(config: dict[str, Any], extras: list[str]) -> list[str]:
    """What the build, the project and these extras of it need; its own `name[extra]` is looked up."""
    project = config["project"]
    itself = re.compile(re.escape(project["name"]) + r"\s*\[(.*)\]\s*")
    found = {*config["build-system"]["requires"], *BUILD_TOOLS}
    left, seen = [*project.get("dependencies", [])], set(extras)
    for extra in extras:
        left += project["optional-dependencies"][extra]
    while left:
        requirement = left.pop()
        own = itself.fullmatch(requirement)
        if own is None:
            found.add(requirement)
            continue
        for extra in own[1].replace(" ", "").split(","):
            if extra not in seen:
                seen.add(extra)
                left += project["optional-dependencies"][extra]
    return sorted(found)


def read_stamp() -> Stamp | None:
    try:
        return Stamp(**json.loads(STAMP.read_text()))
    except (OSError, ValueError, TypeError):  # none, cut off, or of another version of this file
        return None


def write_stamp(stamp: Stamp) -> None:
    aside = STAMP.with_name(STAMP.name + ".new")
    with open(aside, "w") as file:
        json.dump(stamp._asdict(), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, STAMP)
    folder = os.open(VENV, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def changing(stamp: Stamp) -> Iterator[None]:
    """No stamp while pip changes `.venv`; back if pip fails, since that undoes its work, not after a kill."""
    STAMP.unlink(missing_ok=True)
    try:
        yield
    except SetupError:
        write_stamp(stamp)
        raise


@contextlib.contextmanager
def locked() -> Iterator[int]:
    """One set-up at a time. Yields the lock's descriptor: a child that has it keeps the lock if we die."""
    import fcntl  # not at the top: Windows has none, and is to get its clear sentence

    try:
        BUILD.mkdir(exist_ok=True)
        file = open(BUILD / "environment.lock", "a")  # noqa: SIM115
    except OSError as error:
        raise SetupError(f"Cannot write in {BUILD}: {error.strerror}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run that is setting .venv up")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def pip(*arguments: str, lock: int) -> None:
    run([str(PYTHON), "-I", "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments], lock)


def run(command: list[str], lock: int) -> None:
    """Run one command, its output in the log; a line now and then meanwhile, the log's end if it fails."""
    with open(LOG, "ab") as log:
        log.write(f"\n$ {shlex.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=activated(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            start_new_session=True,  # so that a stop reaches pip and all that it started, once
        )
        seconds = 0.0
        try:
            while process.poll() is None:
                try:
                    process.wait(PROGRESS_SECONDS)
                except subprocess.TimeoutExpired:
                    seconds += PROGRESS_SECONDS
                    say(f"  {seconds:.0f} s{ninja_progress()}")
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise
    if process.returncode < 0:  # a signal: pip undid nothing, which is as if we had been stopped ourselves
        raise KeyboardInterrupt
    if process.returncode > 0:
        tail = LOG.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        print(*tail, sep="\n", file=sys.stderr)
        raise SetupError(f"The set-up failed: {shlex.join(command)} (above is the end of its log, {LOG}).")


def ninja_progress() -> str:
    """The last `[12/48]` that ninja wrote, if any."""
    end = LOG.read_bytes()[-20_000:].decode(errors="replace").rpartition("\n$ ")[2]
    steps = re.findall(r"^\s*(\[\d+/\d+\])", end, re.MULTILINE)
    return f", step {steps[-1]}" if steps else ""


def activated() -> dict[str, str]:
    """As `.venv/bin/activate` leaves it, less what brings in packages from elsewhere or sends ours there."""
    elsewhere = ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    path = os.pathsep.join([str(PYTHON.parent), os.environ.get("PATH", os.defpath)])
    return {**environment, "VIRTUAL_ENV": str(VENV), "PATH": path, "PYTHONNOUSERSITE": "1", "PIP_USER": "0"}


def start_again(python: str) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(python, [python, *sys.argv], activated())


def say(line: str) -> None:
    print(f"environment: {line}", file=sys.stderr, flush=True)
