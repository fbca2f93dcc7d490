"""How many threads the kernels use. One pool serves the whole process; results do not depend on its size."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ._extension import extension

__all__ = ["get_num_threads", "set_num_threads", "threads"]

VARIABLE = "RNN_NUM_THREADS"
CGROUP = Path("/sys/fs/cgroup")


def set_num_threads(n: int) -> None:
    """Let the kernels use n >= 1 threads, from the next call on, in the whole process.

    Waits for the calls that are running. Raises TypeError or ValueError for anything but a positive whole number.
    """
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n: expected a whole number of threads, got {type(n).__name__}")
    if not 1 <= int(n) <= MOST:
        raise ValueError(f"n: expected 1 to {MOST} threads, got {n}")
    if extension is not None:  # without it this number means nothing
        extension.set_num_threads(int(n))


def get_num_threads() -> int:
    """How many threads the kernels may use: RNN_NUM_THREADS, or what the process may run on, until it is set."""
    return 1 if extension is None else int(extension.get_num_threads())


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Use n threads inside a `with` block, and as many as before after it. The setting is the whole process's."""
    before = get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(before)


MOST = 256  # of the pool that the JIT has


def default_threads(cgroup: Path = CGROUP) -> int:
    """The processors that this process may use, by affinity and by cgroup quota (rounded up), at least 1."""
    return max(1, min(len(os.sched_getaffinity(0)), *quotas(cgroup), MOST))


def quotas(root: Path) -> list[int]:
    """Processors that each cgroup around this process grants (v2: cpu.max; v1: cpu.cfs_quota_us), if limited."""
    found = [MOST]
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root
        elif "cpu" in controllers.split(","):
            base = root / controllers
        else:
            continue
        for group in (base / path.strip("/"), *(base / path.strip("/")).parents):
            if not group.is_relative_to(base):
                break
            text = " ".join(_lines(group / "cpu.max"))
            if not text:
                text = " ".join(_lines(group / "cpu.cfs_quota_us") + _lines(group / "cpu.cfs_period_us"))
            quota, _, period = text.partition(" ")
            if quota.isdigit() and period.isdigit() and int(period) > 0:
                found.append(-(-int(quota) // int(period)))
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _from_environment() -> int:
    text = os.environ.get(VARIABLE, "").strip()
    if text.isdecimal() and 1 <= int(text) <= MOST:
        return int(text)
    if text:
        warnings.warn(
            f"{VARIABLE}: expected a whole number from 1 to {MOST}, got {text!r}; using {default_threads()}",
            RuntimeWarning,
            stacklevel=2,
        )
    return default_threads()


set_num_threads(_from_environment())
