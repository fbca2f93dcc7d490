"""The same generators through Halide's JIT: compiled at the first call, for any cell, schedule and dtype."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .._compiler import pipeline
from .._threads import get_num_threads
from ..backend import BackendUnavailable
from ..cells import CellEquations
from .base import Backend
from .halide import HalideBackend, Kernel, Kernels, check_schedule


@cache
def _compiled(generator: str, cell: CellEquations | None, schedule: str, dtype: str, masked: bool) -> Any:
    import halide as hl

    with hl.GeneratorContext(hl.get_jit_target_from_environment()):
        return pipeline(generator, cell, schedule, dtype, masked).compile_to_callable()


@cache
def _set_pool_size(threads: int) -> None:
    """The JIT's pool is not the kernels'. It grows but never shrinks, which costs time and not bits; Halide's Python
    package has no call for it."""
    import halide as hl

    library = ctypes.CDLL(str(Path(hl.install_dir()) / "lib64" / "libHalide.so"))
    library._ZN6Halide8Internal16JITSharedRuntime15set_num_threadsEi(ctypes.c_int(threads))


class Jit(Kernels):
    """Compiled when they are first called."""

    def __init__(self, schedule: str) -> None:
        self._schedule = schedule

    def recurrent(self, direction: str, cell: CellEquations, dtype: str, masked: bool) -> Kernel:
        return self._kernel(direction, cell, dtype, masked)

    def product(self, name: str, dtype: str) -> Kernel:
        return self._kernel(name, None, dtype, False)

    def origin(self, direction: str, cell: CellEquations, dtype: str, masked: bool) -> str:
        name = f"{direction}_{cell}_{self._schedule}_{dtype}{'_masked' * masked}"
        return f"{name}, compiled by Halide's JIT at the first call"

    def _kernel(self, generator: str, cell: CellEquations | None, dtype: str, masked: bool) -> Kernel:
        import halide as hl

        def argument(value: Any) -> Any:
            if isinstance(value, int):
                return value
            # hl.Buffer takes writable arrays only; it copies nothing, so those that are not are copied here
            return hl.Buffer(value if value.flags.writeable else np.array(value, order="C"))

        def call(*arguments: Any) -> None:
            compiled = _compiled(generator, cell, self._schedule, dtype, masked)
            threads = get_num_threads()
            _set_pool_size(threads)
            compiled(threads, *(argument(value) for value in arguments))

        return call


def load(schedule: str = "tuned") -> Backend:
    """The generators under a schedule. Raises ValueError for an unknown schedule, BackendUnavailable without Halide."""
    check_schedule(schedule)
    try:
        import halide  # noqa: F401
    except ImportError as reason:
        raise BackendUnavailable(
            f"halide-jit: needs Halide ({reason}); install it with 'pip install halide-rnn[jit]'"
        ) from reason
    return HalideBackend("halide-jit", schedule, Jit(schedule))
