"""The same generators through Halide's JIT: compiled at the first call, for any cell, schedule and dtype, and by one of
Halide's autoschedulers too."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import _generators
from .._compiler import built, pipeline
from .._threads import get_num_threads
from ..backend import BackendUnavailable
from ..cells import CellEquations
from .base import Backend, Kernel
from .halide import SCHEDULES, HalideBackend, Kernels, check_schedule

AUTOMATIC: tuple[str, ...] = _generators.module("schedules").AUTOMATIC
"""Autoschedulers, as schedules: halide_gen/schedules.py says which there are besides. What li2018 makes of BPTT wants a
readout: it looks at `weight_ho` where there is none too, and Halide's check of the bounds says so."""

_lock = threading.Lock()
_made: dict[tuple[Any, ...], Any] = {}


def _compiled(
    generator: str, cell: CellEquations | None, schedule: str, dtype: str, masked: bool, arguments: Sequence[Any]
) -> Any:
    """A pipeline as a function. `arguments` of the first call: the sizes that an autoscheduler is told to expect."""
    import halide as hl

    what = generator, cell, schedule, dtype, masked
    with _lock:
        if what not in _made:
            target = hl.get_jit_target_from_environment()
            with hl.GeneratorContext(target):
                made = pipeline(*what)
                if schedule in AUTOMATIC:
                    _made[what] = _autoscheduled(made, schedule, target, arguments)
                else:
                    _made[what] = made.compile_to_callable()
        return _made[what]


def _autoscheduled(made: Any, scheduler: str, target: Any, arguments: Sequence[Any]) -> Any:
    import halide as hl

    hl.load_plugin(str(Path(hl.install_dir()) / "lib64" / f"libautoschedule_{scheduler}.so"))
    kernel, inputs = built(made)
    for parameter, value in zip(inputs, arguments, strict=False):
        if isinstance(value, int):
            parameter.set_estimate(hl.Expr(value))
        else:
            for dimension, extent in enumerate(reversed(value.shape)):
                parameter.set_min_constraint_estimate(dimension, hl.Expr(0))
                parameter.set_extent_constraint_estimate(dimension, hl.Expr(extent))
    for output, value in zip(kernel.outputs(), arguments[len(inputs) :], strict=True):
        output.set_estimates([(0, extent) for extent in reversed(value.shape)])
    parallelism = {"parallelism": str(get_num_threads())}
    kernel.apply_autoscheduler(target, hl.AutoschedulerParams(scheduler.capitalize(), parallelism))
    return kernel.compile_to_callable([parameter._to_argument() for parameter in inputs], target)


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

    def instructions(self, cell: CellEquations, dtype: str, masked: bool) -> str:
        import halide as hl

        found: str = _generators.module("schedules").instruction_set(hl.get_jit_target_from_environment())
        return found

    def _kernel(self, generator: str, cell: CellEquations | None, dtype: str, masked: bool) -> Kernel:
        import halide as hl

        def argument(value: Any) -> Any:
            if isinstance(value, int):
                return value
            # hl.Buffer takes writable arrays only; it copies nothing, so those that are not are copied here
            return hl.Buffer(value if value.flags.writeable else np.array(value, order="C"))

        def call(*arguments: Any) -> None:
            threads = get_num_threads()
            given = threads, *arguments
            compiled = _compiled(generator, cell, self._schedule, dtype, masked, given)
            _set_pool_size(threads)
            compiled(*(argument(value) for value in given))

        return call


def load(schedule: str = "tuned") -> Backend:
    """The generators under a schedule. Raises ValueError for an unknown schedule, BackendUnavailable without Halide."""
    check_schedule(schedule, SCHEDULES + AUTOMATIC)
    try:
        import halide  # noqa: F401
    except ImportError as reason:
        raise BackendUnavailable(
            f"halide-jit: needs Halide ({reason}); install it with 'pip install halide-rnn[jit]'"
        ) from reason
    return HalideBackend("halide-jit", schedule, Jit(schedule))
