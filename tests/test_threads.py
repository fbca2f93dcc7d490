"""Threads: the setting, Python threads that call at once, and fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from problems import data, named

import rnn
from rnn import _kernels, _threads

PROBLEM = named("rows of a picture")


def digest(layer: rnn.Layer) -> bytes:
    x, h0, layer.weights, d_output, d_state = data(PROBLEM)
    run = layer.forward(x, h0)
    gradients = layer.bptt(run, d_output, d_state)
    return b"".join(a.tobytes() for a in (run.output, gradients.x, *gradients.weights.values()))


def workers() -> int:
    """Threads of this process besides Python's own."""
    return len(os.listdir("/proc/self/task")) - threading.active_count()


@pytest.mark.parametrize("n", [4, 2, 1, 3])
def test_the_pool_grows_and_shrinks(n: int) -> None:
    rnn.set_num_threads(1)
    digest(PROBLEM.layer())
    idle = workers()  # NumPy's BLAS keeps a pool of its own
    rnn.set_num_threads(n)
    digest(PROBLEM.layer())
    assert rnn.get_num_threads() == n
    assert workers() - idle == n - 1


def test_many_rows_are_worth_sharing_sooner() -> None:
    rnn.set_num_threads(1)
    layer = rnn.RNN(8, 32, seed=0)
    fifteen, sixteen = (np.ones((120, N, 8), "float32") for N in (15, 16))  # with all arrays 320 KiB
    layer(fifteen)
    idle = workers()
    rnn.set_num_threads(2)
    _kernels.set_worth_sharing(1 << 19)
    layer(fifteen)
    assert workers() == idle
    assert "1 of 2 threads: " in str(rnn.explain(layer, (120, 15)))
    layer(sixteen)
    assert workers() == idle + 1
    assert "1 of 2 threads: " not in str(rnn.explain(layer, (120, 16)))


@pytest.mark.parametrize(("H", "turns"), [(64, False), (512, True)])
def test_a_thread_turns_where_its_cache_does_not_hold_the_weights(H: int, turns: bool) -> None:
    rnn.set_num_threads(1)
    assert ("came to last" in str(rnn.explain(rnn.GRU(8, H, seed=0), (4, 1)))) is turns


def test_calls_with_little_to_do_wake_nobody_up() -> None:
    rnn.set_num_threads(1)
    want = digest(PROBLEM.layer())
    idle = workers()
    rnn.set_num_threads(3)
    _kernels.set_worth_sharing(1 << 30)
    assert digest(PROBLEM.layer()) == want
    assert workers() == idle
    assert "1 of 3 threads" in str(rnn.explain(PROBLEM.layer(), (PROBLEM.T, PROBLEM.N)))
    with rnn.backend.using("halide-jit"):  # whose pool knows of no such limit
        assert "1 of 3 threads" not in str(rnn.explain(PROBLEM.layer(), (PROBLEM.T, PROBLEM.N)))
    _kernels.set_worth_sharing(0)
    assert digest(PROBLEM.layer()) == want
    assert workers() == idle + 2


def test_threads_is_put_back_after_an_error() -> None:
    before = rnn.get_num_threads()
    inside = []

    def fail() -> None:
        with rnn.threads(before + 1):
            inside.append(rnn.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [before + 1]
    assert rnn.get_num_threads() == before


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-3, ValueError), (10**9, ValueError), (1.5, TypeError), ("2", TypeError)]
)
def test_bad_numbers_are_named(n: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^n: expected .* got"):
        rnn.set_num_threads(n)


def in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_default_is_what_the_process_may_run_on() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import rnn; print(rnn.get_num_threads())"
    )
    assert in_new_process(code).stdout == "1\n"


def test_the_environment_sets_it() -> None:
    done = in_new_process("import rnn; print(rnn.get_num_threads())", RNN_NUM_THREADS="5")
    assert done.stdout == "5\n"
    bad = in_new_process("import rnn; print(rnn.get_num_threads())", RNN_NUM_THREADS="many")
    assert int(bad.stdout) >= 1
    assert "RNN_NUM_THREADS: expected a whole number" in bad.stderr


def test_cgroup_quotas_are_rounded_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "_lines", lambda path: {
        Path("/proc/self/cgroup"): ["0::/a/b"],
        tmp_path / "a/b/cpu.max": ["max 100000"],
        tmp_path / "a/cpu.max": ["150000 100000"],
    }.get(path, []))  # fmt: skip
    assert min(_threads.quotas(tmp_path)) == 2


def test_python_threads_at_once_get_the_same_bits() -> None:
    """Eight threads call while another changes the size of the pool."""
    want = digest(PROBLEM.layer())
    got: list[bytes] = []
    callers = [
        threading.Thread(target=lambda: got.extend(digest(PROBLEM.layer()) for _ in range(20))) for _ in range(8)
    ]
    for caller in callers:
        caller.start()
    for i in range(40):
        rnn.set_num_threads(1 + i % 3)
    for caller in callers:
        caller.join()
    assert len(got) == 160
    assert all(one == want for one in got)


FORK = """
import os, threading
from test_threads import PROBLEM, digest
import rnn
rnn.set_num_threads(2)
rnn._kernels.set_worth_sharing(0)
want = digest(PROBLEM.layer())
stop = threading.Event()
def busy():
    while not stop.is_set():
        digest(PROBLEM.layer())
threading.Thread(target=busy).start()
try:
    for _ in range(40):
        child = os.fork()
        if child == 0:
            ok = digest(PROBLEM.layer()) == want
            workers = len(os.listdir("/proc/self/task"))
            os._exit(0 if ok and workers >= 2 else 1)
        assert os.waitpid(child, 0)[1] == 0
finally:
    stop.set()
print("forked")
"""


def test_a_fork_during_calls_has_a_working_pool_on_both_sides() -> None:
    done = in_new_process(FORK)
    assert done.stdout == "forked\n", done.stderr


def test_kernels_leave_the_floating_point_mode_alone() -> None:
    """A kernel or a library linked with -ffast-math would flush subnormal numbers to zero in the whole process."""
    digest(PROBLEM.layer())
    assert np.float32(1e-40) * np.float32(0.5) > 0
