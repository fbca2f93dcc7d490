"""The same generators through Halide's JIT: compiled at the first call, for any cell, schedule and dtype."""

from __future__ import annotations

import ctypes
import importlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .._threads import get_num_threads
from ..backend import BackendUnavailable
from .base import Array, Backend
from .halide import HalideBackend, Kernel, check_schedule

GENERATORS = Path(__file__).parent.parent / "halide_gen"
CLASSES = {"forward": "Forward", "bptt": "BPTT"}


@cache
def _generator(direction: str) -> Any:
    """The generator class of a pass. Generators are scripts in one flat folder that import each other by bare names, as
    Halide's build runs them; those names are the folder's only while it is being imported."""
    ours = {path.stem for path in GENERATORS.glob("*.py")}
    hidden = {name: sys.modules.pop(name) for name in ours if name in sys.modules}
    sys.path.insert(0, str(GENERATORS))
    try:
        return getattr(importlib.import_module(direction), CLASSES[direction])
    finally:
        sys.path.remove(str(GENERATORS))
        for name in ours:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


@cache
def _compiled(direction: str, cell: str, schedule: str, dtype: str) -> Any:
    import halide as hl

    with hl.GeneratorContext(hl.get_jit_target_from_environment()):
        parameters = {"cell": cell, "schedule": schedule, "dtype": dtype}
        return _generator(direction)(parameters).compile_to_callable()


@cache
def _set_pool_size(threads: int) -> None:
    """The JIT's pool is not the kernels'. It grows but never shrinks, which costs time and not bits; Halide's Python
    package has no call for it."""
    import halide as hl

    library = ctypes.CDLL(str(Path(hl.install_dir()) / "lib64" / "libHalide.so"))
    library._ZN6Halide8Internal16JITSharedRuntime15set_num_threadsEi(ctypes.c_int(threads))


def load(schedule: str = "tuned") -> Backend:
    """The generators under a schedule. Raises ValueError for an unknown schedule, BackendUnavailable without Halide."""
    check_schedule(schedule)
    try:
        import halide as hl
    except ImportError as reason:
        raise BackendUnavailable(
            f"halide-jit: needs Halide ({reason}); install it with 'pip install halide-rnn[jit]'"
        ) from reason

    def buffer(array: Array) -> Any:
        # hl.Buffer takes writable arrays only; it copies nothing, so those that are not are copied here
        return hl.Buffer(array if array.flags.writeable else np.array(array, order="C"))

    def find(direction: str, cell: str, dtype: str) -> Kernel:
        def call(*arrays: Array) -> None:
            compiled = _compiled(direction, cell, schedule, dtype)
            threads = get_num_threads()
            _set_pool_size(threads)
            compiled(threads, *(buffer(array) for array in arrays))

        return call

    return HalideBackend("halide-jit", schedule, find)
