"""Theano: as a backend and as a rival the reference's network, at its full speed or not at all; and its environment."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from differences import check_gradients
from problems import SHAPES, Problem, data, named
from reference import ReferenceBackend
from rivals import FEW, Case, check, check_load
from tolerance import assert_close, tolerance

import rnn
from rnn import backend, baselines
from rnn._backends.base import Walk
from rnn._backends.theano import TheanoBackend
from rnn.baselines import theano_environment
from rnn.baselines.cells import Array
from rnn.baselines.network import Objective
from rnn.baselines.remote import Remote, RemoteError
from rnn.baselines.theano_environment import NoTheano
from rnn.cells import BUILT_IN

FOLDER = Path(baselines.__file__).parent
ODD = named("odd primes")
TANH = BUILT_IN["rnn_tanh"]


@pytest.fixture(scope="session")
def python() -> Path:
    """Theano's Python. On a new machine this takes a minute, and the first functions compiled another."""
    if sys.version_info[:2] != theano_environment.PYTHON:
        pytest.skip("Theano runs on Python 3.11 alone")
    theano_environment.make(lambda line: print(line, file=sys.stderr))
    return theano_environment.python()


@pytest.fixture(scope="module")
def theano(python: Path) -> Iterator[TheanoBackend]:
    made = TheanoBackend(python)
    yield made
    made._close()


# the backend


def check_backend(got_backend: rnn.backend.Backend, problem: Problem) -> None:
    x, h0, weights, d_output, d_state = data(problem)
    cell = BUILT_IN[problem.cell]
    want = ReferenceBackend().forward(cell, x, (h0,), weights, Walk())
    got = got_backend.forward(cell, x, (h0,), weights, Walk())
    assert_close("states", got.states[0], want.states[0], tolerance(problem, backward=False))
    assert_close("output", got.output, want.output, tolerance(problem, backward=False))
    for last in (d_state, None):
        back, got_back = (
            one.bptt(cell, x, weights, tape, d_output, (last,), Walk())
            for one, tape in ((ReferenceBackend(), want), (got_backend, got))
        )
        assert list(got_back.weights) == list(back.weights)
        for name, gradient in {**back.weights, "x": back.x, "h0": back.initial[0]}.items():
            got_gradient = {**got_back.weights, "x": got_back.x, "h0": got_back.initial[0]}[name]
            assert got_gradient.dtype == problem.dtype
            assert_close(name, got_gradient, gradient, tolerance(problem, backward=True))


@pytest.mark.parametrize(
    "problem",
    [
        ODD,
        named("powers of two"),
        named("wide state"),
        named("one lane, long"),
        named("one of everything"),
        named("no readout")._replace(cell="rnn_sigmoid"),
        named("one step")._replace(cell="rnn_relu", bias=False),
        ODD._replace(N=1, cell="rnn_relu", bias=False, dtype="float64"),
    ],
    ids=str,
)
def test_the_backend_is_the_reference(theano: TheanoBackend, problem: Problem) -> None:
    check_backend(theano, problem)


@pytest.mark.parametrize("lanes", [1, 2])
def test_gradients_are_central_differences(theano: TheanoBackend, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_default", theano)
    check_gradients(Problem("small", T=4, N=lanes, I=2, H=3, O=2, dtype="float64"))


@pytest.mark.parametrize("problem", [shape for shape in SHAPES if 0 in shape[1:6]], ids=str)
def test_where_there_is_nothing_to_compute_no_process_is_started(problem: Problem) -> None:
    check_backend(TheanoBackend(Path("no such python")), problem)


def test_arguments_of_any_strides(theano: TheanoBackend) -> None:
    x, h0, weights, _, _ = data(ODD)
    strided = np.empty((2 * ODD.T, ODD.N, ODD.I), "float32")[::2]
    strided[...] = x
    same = np.broadcast_to(h0[:1], h0.shape)
    got = theano.forward(TANH, strided, (same,), weights, Walk())
    np.testing.assert_array_equal(got.output, theano.forward(TANH, x, (same.copy(),), weights, Walk()).output)


def test_nan_goes_on_in_time_and_stays_in_its_lane(theano: TheanoBackend) -> None:
    x, h0, weights, _, _ = data(ODD)
    x[2, 3, 1] = np.nan
    bad = np.isnan(theano.forward(TANH, x, (h0,), weights, Walk()).output)
    assert bad[2:, 3].all()
    assert bad.sum() == bad[2:, 3].size


def test_a_worker_that_died_is_an_error_once(theano: TheanoBackend) -> None:
    check_backend(theano, ODD)
    assert theano._remote is not None
    os.kill(theano._remote.process.pid, signal.SIGSTOP)  # so that it can't answer before it dies
    timer = threading.Timer(0.2, theano._remote.process.kill)
    timer.start()
    with pytest.raises(RemoteError, match="killed by signal 9"):
        check_backend(theano, ODD)
    check_backend(theano, ODD)


def test_threads_share_a_worker(theano: TheanoBackend) -> None:
    problems = [ODD, named("powers of two"), named("one lane, long"), named("wide state")] * 3
    failures: list[BaseException] = []

    def run(problem: Problem) -> None:
        try:
            check_backend(theano, problem)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(problem,)) for problem in problems]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


FORK = """
import os, sys
import numpy as np
import rnn
rnn.backend.use("theano")
layer = rnn.RNN(3, 11, output_size=13)
x = np.ones((7, 5, 3), "float32")
before = layer.forward(x).output
child = os.fork()
same = np.array_equal(layer.forward(x).output, before)
if child == 0:
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
print(same, os.waitstatus_to_exitcode(status), np.array_equal(layer.forward(x).output, before))
"""


@pytest.mark.usefixtures("python")
def test_the_child_of_a_fork_has_a_worker_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=300)
    assert done.stdout == "True 0 True\n", done.stderr


def test_it_has_no_schedules() -> None:
    with pytest.raises(ValueError, match="schedule: the theano backend has none to choose from, got 'tuned'"):
        backend.use("theano", schedule="tuned")


# the rival


class RemoteNetwork:
    """`network.Network` of Theano, at the end of a wire. One at a time."""

    remote: Remote

    def __init__(self, cell: str, weights: dict[str, Array], objective: Objective) -> None:
        self.remote.ask("make", weights, cell=cell, objective=list(objective))

    def load(self, weights: dict[str, Array]) -> None:
        self.remote.ask("load", weights)

    def batch(self, x: Array, target: Array) -> None:
        self.remote.ask("batch", {"x": x, "target": target})

    def forward(self, batch: None) -> Array:
        return self.remote.ask("forward").arrays["output"]

    def train(self, batch: None, rate: float) -> float:
        return float(self.remote.ask("train", rate=rate)["loss"])

    def gradients(self, batch: None) -> dict[str, Array]:
        return self.remote.ask("gradients").arrays

    def weights(self) -> dict[str, Array]:
        return self.remote.ask("weights").arrays


class Rival:
    """What test_peers.py sees in a module of `baselines`."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.Network = type("Network", (RemoteNetwork,), {"remote": remote})


@pytest.fixture(scope="module")
def rival(python: Path) -> Iterator[Rival]:
    worker = Path(__file__).with_name("network_worker.py")
    with Remote([str(python), "-I", "-W", "ignore", str(worker), str(FOLDER), "theano"]) as remote:
        yield Rival(remote)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_the_rival_is_the_references_network(rival: Any, case: Case) -> None:
    check(rival, case)


def test_started_anew_it_is_a_new_network(rival: Any) -> None:
    check_load(rival)
    network = rival.Network(ODD.cell, data(ODD).weights, Objective())
    with pytest.raises(RemoteError, match=r"ValueError: weights: expected .*'bias_o': 'float32'.*, got .*'float64'"):
        network.load(data(ODD._replace(dtype="float64")).weights)
    with pytest.raises(RemoteError, match=r"ValueError: weights: expected .*'bias_o': 'float32'.*, got .*hh_l0"):
        network.load(data(ODD._replace(bias=False)).weights)


def test_versions_and_threads_of_the_rival(rival: Rival) -> None:
    versions = rival.remote.ask("versions")
    assert (versions["theano-pymc"], versions["numpy"]) == ("1.1.2", "1.26.4")
    assert versions["openblas"][0].isdigit()
    rival.remote.ask("set_threads", n=1)
    with pytest.raises(RemoteError, match="ValueError: n: expected a number of threads that OpenBLAS can have"):
        rival.remote.ask("set_threads", n=100_000)


SLOW = """
import sys, types
sys.modules["baselines"] = package = types.ModuleType("baselines")
package.__path__ = [sys.argv[1]]
{break_it}
from baselines import symbolic, theano
symbolic.compile_forward(theano.Network.library, "rnn_tanh", ["weight_ih_l0", "weight_hh_l0"], "float32", True)
"""

BROKEN = {
    "nothing": ("", "", ""),
    "no BLAS": ("blas__ldflags=", "", "NotFast: theano: expected flags that link BLAS, got blas__ldflags=''"),
    "another linker": ("linker=vm", "", "NotFast: theano: expected linker=cvm and its CVM, got vm"),
    "scan in Python": ("", "sys.modules['scan_perform'] = None", "NotFast: theano: expected the compiled scan"),
    "products by NumPy": (
        "optimizer_excluding=BlasOpt",
        "",
        "NotFast: theano: expected matrix products in BLAS alone, got the ops",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_slow_theano_is_an_error(python: Path, what: str) -> None:
    flags, break_it, message = BROKEN[what]
    done = subprocess.run(
        [python, "-I", "-W", "ignore", "-c", SLOW.format(break_it=break_it), FOLDER],
        env={**os.environ, "THEANO_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert message in done.stderr
    assert (done.returncode == 0) == (what == "nothing"), done.stderr


# its environment


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where there is none yet, and one would be made; a path with a space in it."""
    folder = tmp_path / "some where" / "theano"
    monkeypatch.setenv("RNN_THEANO", str(folder))
    return folder


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[list[str]]:
    """The commands that making it runs, which are not run: there is an interpreter after the first."""
    ran: list[list[str]] = []

    def run(command: list[str]) -> None:
        ran.append(command)
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        (folder / "bin" / "python").touch(mode=0o755)
        (folder / "pyvenv.cfg").touch()

    monkeypatch.setattr(theano_environment, "run", run)
    monkeypatch.setattr(theano_environment, "PYTHON", sys.version_info[:2])
    return ran


def test_it_is_made_once(folder: Path, commands: list[list[str]]) -> None:
    said: list[str] = []
    with pytest.raises(NoTheano, match="needs an environment of its own; make it with 'rnn setup theano'"):
        theano_environment.python()
    theano_environment.make(said.append)
    assert theano_environment.python() == folder / "bin" / "python"
    assert commands[1][-3:] == ["numpy==1.26.4", "scipy==1.15.3", "theano-pymc==1.1.2"]
    assert said[-1] == "ready"

    count = len(said), len(commands)
    theano_environment.make(said.append)
    assert (len(said), len(commands)) == count


@pytest.mark.usefixtures("commands")
def test_one_that_was_not_finished_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = KeyboardInterrupt()
    with monkeypatch.context() as patch:
        patch.setattr(theano_environment, "write_stamp", raising(stopped))
        with pytest.raises(KeyboardInterrupt):
            theano_environment.make(lambda line: None)
    with pytest.raises(NoTheano, match=r"\(a set-up of it never ended\); make it with 'rnn setup theano'"):
        theano_environment.python()
    theano_environment.make(lambda line: None)
    assert theano_environment.python().exists()


@pytest.mark.usefixtures("commands")
def test_one_of_another_version_or_place_is_made_anew(
    folder: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    theano_environment.make(lambda line: None)
    moved = folder.with_name("moved")
    folder.rename(moved)
    monkeypatch.setenv("RNN_THEANO", str(moved))
    with pytest.raises(NoTheano, match="is of another version, or was moved; make it with 'rnn setup theano'"):
        theano_environment.python()

    monkeypatch.setenv("RNN_THEANO", str(folder))
    moved.rename(folder)
    theano_environment.python()
    monkeypatch.setattr(theano_environment, "REQUIREMENTS", ("numpy==1.26.5",))
    with pytest.raises(NoTheano, match="of another version"):
        theano_environment.python()
    theano_environment.make(lambda line: None)
    assert commands[-1][-1] == "numpy==1.26.5"


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*arguments: object) -> Any:
        raise error

    return call


@pytest.mark.usefixtures("commands")
def test_two_at_once_make_one(folder: Path, commands: list[list[str]]) -> None:
    folder.parent.mkdir()
    said: list[str] = []
    waiting = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        waiting.set()

    with open(folder.with_name("theano.lock"), "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread = threading.Thread(target=theano_environment.make, args=(say,))
        thread.start()
        assert waiting.wait(30)
        assert said == ["waiting for another process that makes the environment for Theano"]
        theano_environment.run([])  # that other process made it
        theano_environment.write_stamp()
    thread.join()
    assert len(commands) == 1
    assert theano_environment.python().exists()


def test_a_folder_of_something_else_is_left_alone(folder: Path, commands: list[list[str]]) -> None:
    folder.mkdir(parents=True)
    (folder / "letters.txt").write_text("dear")
    with pytest.raises(NoTheano, match=r"RNN_THEANO: expected a folder that is empty or not there, got .*some where"):
        theano_environment.make(lambda line: None)
    assert (folder / "letters.txt").read_text() == "dear"
    assert not commands


@pytest.mark.usefixtures("commands")
def test_what_the_machine_lacks_is_said_before_anything_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(theano_environment, "PYTHON", (3, 5))
        with pytest.raises(NoTheano, match=r"theano: needs Python 3\.5, this is Python 3\.1"):
            theano_environment.make(lambda line: None)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(folder))
        with pytest.raises(NoTheano, match=r"compiles with g\+\+, and there is none on the PATH"):
            theano_environment.make(lambda line: None)
    with monkeypatch.context() as patch:
        patch.setattr("sysconfig.get_path", lambda name: str(folder))
        with pytest.raises(NoTheano, match=r"header .*Python\.h is missing"):
            theano_environment.make(lambda line: None)
    assert not folder.parent.exists()


def test_a_command_that_fails_is_quoted_with_the_end_of_its_log(folder: Path) -> None:
    folder.parent.mkdir()
    with pytest.raises(NoTheano, match=r"failed; the log, .*theano\.log, ends with\nno such package"):
        theano_environment.run([sys.executable, "-c", "print('no such package'); raise SystemExit(1)"])


def test_a_place_that_cannot_be_written_is_named(
    folder: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.parent.touch()
    with pytest.raises(NoTheano, match=r"theano: its environment can't be made: .*some where: "):
        theano_environment.make(lambda line: None)


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rnn", *arguments], env={**os.environ, **variables}, capture_output=True, text=True
    )


def test_the_command_makes_it(python: Path) -> None:
    done = command("setup", "theano")  # it is there: this test is quick
    assert (done.returncode, done.stdout) == (0, f"{python.parent.parent}\n"), done.stderr


def test_the_command_says_how_to_get_it(folder: Path) -> None:
    done = command("train", "sobel", "--backend", "theano", RNN_THEANO=str(folder))
    assert done.returncode == 1
    assert done.stderr == "rnn: error: theano: needs an environment of its own; make it with 'rnn setup theano'\n"
