"""bench/environment.py on a stand-in project, which builds in a moment and without a network.

Where a run matters it is a process, as a user starts it; elsewhere the stand-in's environment.py is loaded.
"""

import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stand_in_backend

SOURCE = Path(__file__).resolve().parent.parent / "bench" / "environment.py"

PYPROJECT = """
[build-system]
requires = []
build-backend = "stand_in_backend"
backend-path = ["."]

[project]
name = "stand-in"
version = "1.0"
dependencies = ["needed"]

[project.optional-dependencies]
bench = ["plots"]
dev = ["stand-in[bench]", "checks"]
"""

MAIN = """
import json, os, sys
from pathlib import Path
root = str(Path(__file__).resolve().parent.parent)
sys.path.insert(0, root)
from bench.environment import enter
sys.path.remove(root)
enter(tuple(os.environ["EXTRAS"].split()))
import needed, plots, rnn
print(json.dumps({"prefix": sys.prefix, "argv": sys.argv[1:], "answer": rnn.ANSWER, "rnn": rnn.__file__}))
"""


class Project:
    """A repository of the same shape as this one, in a path with a space in it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone"
        for room in ("bench", "rnn", "halide_gen", "baselines", "links"):
            (self.root / room).mkdir(parents=True)
        shutil.copy(SOURCE, self.root / "bench")
        shutil.copy(stand_in_backend.__file__, self.root)
        self.write("bench/__init__.py", "")
        self.write("bench/__main__.py", MAIN)
        self.write("pyproject.toml", PYPROJECT)
        self.write("rnn/__init__.py", "ANSWER = 42\n")
        self.write("halide_gen/cells.py", "h = 1\n")
        for name in ("needed", "plots", "checks", "cmake", "ninja"):
            stand_in_backend.write_wheel(self.root / "links", name, "99.0", {f"{name}.py": ""})

    def write(self, path: str, text: str) -> None:
        (self.root / path).write_text(text)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`python3 bench` from another folder, with a pip that knows the folder `links` and no network."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        links = (self.root / "links").as_uri()
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": links, "PIP_CONFIG_FILE": os.devnull}
        return subprocess.Popen(
            [sys.executable, str(self.root / "bench"), *arguments],
            cwd=self.root.parent,
            env={**ours, **pip, "EXTRAS": "bench", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def answer(self, *arguments: str, **environment: str) -> dict[str, Any]:
        """What the program printed once it was inside."""
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def builds(self) -> list[str]:
        return (self.root / "builds").read_text().splitlines()

    def load(self) -> Any:
        """environment.py as a module whose ROOT is this project."""
        spec = importlib.util.spec_from_file_location("environment", self.root / "bench" / "environment.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@pytest.fixture
def fresh(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose first set-up was done by two runs at once."""
    project = Project(tmp_path_factory.mktemp("made"))
    runs = [project.start(), project.start()]
    outputs = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert len(project.builds()) == 1, outputs
    return project


def test_goes_on_inside_with_the_same_arguments(made: Project) -> None:
    made.write("rnn/__init__.py", "ANSWER = 42\n")
    answer = made.answer("--epochs", "2", "two words", PYTHONPATH=str(made.root))
    assert answer["prefix"] == str(made.root / ".venv")
    assert answer["argv"] == ["--epochs", "2", "two words"]
    assert answer["answer"] == 42
    assert answer["rnn"].startswith(str(made.root / ".venv")), "the installed one, not the folder in the tree"


def test_second_run_does_nothing(made: Project) -> None:
    made.answer()
    builds = made.builds()
    done = made.run()
    assert done.returncode == 0
    assert done.stderr == ""
    assert made.builds() == builds


def test_stale_build_is_rebuilt_in_the_kept_build_folder(made: Project) -> None:
    made.answer()
    builds = made.builds()
    made.write("rnn/__init__.py", "ANSWER = 43\n")
    assert made.answer()["answer"] == 43
    made.write("halide_gen/cells.py", "h = 2\n")
    made.answer()
    assert made.builds() == [*builds, *["{'build-dir': 'build/venv'}"] * 2]


def test_failed_build_shows_why_and_leaves_the_environment_whole(made: Project) -> None:
    made.write("rnn/__init__.py", "ANSWER = 44\n")
    made.answer()
    made.write("rnn/__init__.py", "ANSWER = = 45\n")
    done = made.run()
    assert done.returncode == 1
    assert "SyntaxError: invalid syntax" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("The set-up failed: ")
    assert str(made.root / "build" / "environment.log") in done.stderr
    made.write("rnn/__init__.py", "ANSWER = 44\n")
    done = made.run()
    assert done.returncode == 0
    assert done.stderr == "", "what is installed is what the tree holds again"


def test_ctrl_c_stops_the_build_and_the_next_run_goes_on(made: Project) -> None:
    made.answer()
    builds = made.builds()
    made.write("rnn/__init__.py", "ANSWER = 46  # slow\n")
    process = made.start()
    for _ in range(600):
        if made.builds() != builds:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=30)
    assert process.returncode == 130
    assert messages.endswith("environment: stopped; the same command goes on from here\n")
    made.write("rnn/__init__.py", "ANSWER = 46\n")
    done = made.run()
    assert done.returncode == 0
    assert "waiting" not in done.stderr, "pip, which holds the lock as well, is gone"
    assert "making .venv" not in done.stderr


def test_more_extras_are_added_without_a_build(made: Project) -> None:
    made.answer(EXTRAS="bench")
    builds = made.builds()
    assert not list((made.root / ".venv").glob("lib/*/site-packages/checks.py"))
    made.answer(EXTRAS="dev")
    assert list((made.root / ".venv").glob("lib/*/site-packages/checks.py"))
    assert made.builds() == builds
    assert made.run(EXTRAS="bench").stderr == "", "and the extras from before are still there"


def test_interrupted_set_up_is_done_again(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = fresh.load()
    stages: list[str] = []

    def stop_at(stage: str) -> None:
        def run(command: list[str], _lock: int) -> None:
            (name,) = {"venv", "wheel", "install"} & set(command)
            name += " wheel" if command[-1].endswith(".whl") else ""
            stages.append(name)
            if name == stage:
                raise KeyboardInterrupt
            if name == "venv":
                environment.PYTHON.parent.mkdir(parents=True, exist_ok=True)
                environment.PYTHON.symlink_to(sys.executable)
            if name == "wheel":
                environment.WHEELS.mkdir()
                (environment.WHEELS / "stand_in-1.0-py3-none-any.whl").touch()

        monkeypatch.setattr(environment, "run", run)
        stages.clear()
        if stage == "none":
            environment.set_up(("bench",), 0)
        else:
            with pytest.raises(KeyboardInterrupt):
                environment.set_up(("bench",), 0)
        assert environment.is_current(("bench",)) == (stage == "none")

    (fresh.root / "build").mkdir()
    monkeypatch.setattr(environment, "check_machine", lambda: None)
    stop_at("install")
    assert stages == ["venv", "install"]
    environment.PYTHON.unlink()
    stop_at("wheel")
    assert stages == ["venv", "install", "wheel"], "packages half-installed: from the start"
    stop_at("install wheel")
    assert stages == ["wheel", "install wheel"], "stopped amid the kernels: on from there"
    environment.PYTHON.unlink()
    stop_at("none")
    assert stages == ["venv", "install", "wheel", "install wheel"]


@pytest.mark.parametrize("stamp", ["", "{", "[]", '{"python": "cpython-311"}', "null"])
def test_damaged_stamp_counts_as_none(fresh: Project, stamp: str) -> None:
    environment = fresh.load()
    environment.VENV.mkdir()
    environment.STAMP.write_text(stamp)
    assert environment.read_stamp() is None


def change_python(environment: Any) -> None:
    environment.PYTHON_TAG = "cpython-399"


def change_folder(environment: Any) -> None:
    environment.VENV = environment.VENV.with_name("moved")


def change_interpreter(environment: Any) -> None:
    environment.PYTHON.unlink()
    environment.PYTHON.symlink_to("/nowhere/python3")


@pytest.mark.parametrize("change", [change_python, change_folder, change_interpreter])
def test_another_python_or_place_is_noticed(fresh: Project, change: Callable[[Any], None]) -> None:
    environment = fresh.load()
    environment.PYTHON.parent.mkdir(parents=True)
    environment.PYTHON.symlink_to(sys.executable)
    stamp = environment.Stamp(
        environment.PYTHON_TAG, str(environment.VENV), ["bench", "dev"], [], environment.tree_digest()
    )
    environment.write_stamp(stamp)
    assert environment.is_current(("bench",))
    assert not environment.is_current(("bench", "jit"))
    change(environment)
    assert not environment.is_current(("bench",))


PATHS_IN_THE_WHEEL = [
    "halide_gen/cells.py",
    "rnn/__init__.py",
    "pyproject.toml",
    "baselines/new.py",
    "LICENSE",
]
OTHER_PATHS = ["rnn/_kernels.so", "rnn/.x.swp", "rnn/__pycache__/a.pyc", "tests/a.py", "build/a"]


@pytest.mark.parametrize("path", PATHS_IN_THE_WHEEL)
def test_digest_sees_what_goes_into_the_wheel(fresh: Project, path: str) -> None:
    environment = fresh.load()
    before = environment.tree_digest()
    fresh.write(path, "# edited\n")
    assert environment.tree_digest() != before


@pytest.mark.parametrize("path", OTHER_PATHS)
def test_digest_does_not_see_the_rest(fresh: Project, path: str) -> None:
    environment = fresh.load()
    before = environment.tree_digest()
    (fresh.root / path).parent.mkdir(exist_ok=True)
    fresh.write(path, "anything\n")
    (fresh.root / "rnn" / "baselines").symlink_to("../baselines")
    assert environment.tree_digest() == before


def no_compiler(patch: pytest.MonkeyPatch) -> None:
    patch.delenv("CXX", raising=False)
    patch.setenv("PATH", "")


def wrong_compiler(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CXX", "no-such-compiler -m64")


def no_ensurepip(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "ensurepip", None)


def no_header(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sysconfig, "get_path", lambda _: "/nowhere")


def old_python(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "version_info", (3, 10, 12, "final", 0))


def new_python(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "version_info", (3, 14, 0, "final", 0))


def other_processor(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(platform, "machine", lambda: "aarch64")


@pytest.mark.parametrize(
    ("lack", "words"),
    [
        (no_compiler, "apt install g++"),
        (wrong_compiler, "unset CXX"),
        (no_ensurepip, "-venv)"),
        (no_header, "-dev)"),
        (old_python, "Python 3.11 to 3.13; this is python3.10"),
        (new_python, "Python 3.11 to 3.13; this is python3.14"),
        (other_processor, "linux on aarch64"),
    ],
)
def test_what_is_missing_gets_one_sentence(
    fresh: Project, monkeypatch: pytest.MonkeyPatch, lack: Callable[[pytest.MonkeyPatch], None], words: str
) -> None:
    environment = fresh.load()
    environment.check_machine()
    lack(monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        environment.enter(("bench",))
    monkeypatch.undo()
    sentence = stopped.value.code
    assert isinstance(sentence, str)
    assert words in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert not environment.VENV.exists()


def test_no_compiler_as_a_user_sees_it(fresh: Project) -> None:
    done = fresh.run(PATH="/nowhere", CXX="")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "No C++ compiler (c++, g++ or clang++) on the PATH: install one (Debian: apt install g++).\n"
    )


def test_folder_that_cannot_be_written(fresh: Project) -> None:
    fresh.write("build", "a file where the folder has to be")
    done = fresh.run()
    assert done.returncode == 1
    assert done.stderr == f"Cannot write in {fresh.root / 'build'}: File exists.\n"


def test_requirements_are_those_of_pyproject(fresh: Project) -> None:
    environment = fresh.load()
    config = {
        "build-system": {"requires": ["halide==21.0.0"]},
        "project": {
            "name": "halide-rnn",
            "dependencies": ["numpy>=2"],
            "optional-dependencies": {
                "all": ["halide-rnn[bench, jit]", "x"],
                "bench": ["matplotlib", "halide-rnn[all]"],
                "jit": ["halide==21.0.0"],
            },
        },
    }
    tools = list(environment.BUILD_TOOLS)
    assert environment.requirements(config, []) == sorted(["halide==21.0.0", "numpy>=2", *tools])
    assert environment.requirements(config, ["all"]) == sorted(
        ["halide==21.0.0", "numpy>=2", "matplotlib", "x", *tools]
    )


def test_progress_is_the_last_step_of_the_command_that_runs(fresh: Project) -> None:
    environment = fresh.load()
    (fresh.root / "build").mkdir()
    environment.LOG.write_text("$ pip wheel\n  [1/9] Generating a.o\n  [2/9] Generating b.o\n  [x/9]\n")
    assert environment.ninja_progress() == ", step [2/9]"
    environment.LOG.write_text(environment.LOG.read_text() + "\n$ pip install\nCollecting numpy[1/2]\n")
    assert environment.ninja_progress() == ""
