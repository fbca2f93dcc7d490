"""Kernels that the extension module does not have: compiled when first asked for, and kept on disk by content.

A kernel becomes a shared library of its own, which the extension module loads and calls as one of its own: same checks,
same threads, same memory. Halide (extra `jit`) makes the object file, the C compiler links it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import _generators
from .backend import BackendUnavailable
from .cells import CellEquations

TARGETS = {
    "avx512": "x86-64-linux-sse41-avx-f16c-fma-avx2-avx512-avx512_skylake",
    "avx2": "x86-64-linux-sse41-avx-f16c-fma-avx2",
    "sse41": "x86-64-linux-sse41",
}
"""As in CMakeLists.txt."""

CLASSES = {
    "forward": "Forward", "bptt": "BPTT", "pack": "Pack", "step": "Step", "linear": "Linear", "gradients": "Gradients",
}  # fmt: skip

UNCHECKED = "-no_asserts-no_bounds_query"
"""Of the targets of single steps: their only caller makes all checks. As in CMakeLists.txt."""

# What the extension module looks for: the kernel, and where the library's own Halide runtime takes ours instead.
EXPORTS = """{{ global: {name}_argv; {name}_metadata; halide_set_custom_malloc; halide_set_custom_free;
halide_set_error_handler; halide_set_custom_parallel_runtime; local: *; }};
"""

_lock = threading.Lock()


def folder() -> Path:
    """Where kernels are kept: RNN_CACHE, or halide-rnn in the user's cache folder."""
    own = os.environ.get("RNN_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "halide-rnn"


def compiled(direction: str, cell: CellEquations, dtype: str, masked: bool) -> Any:
    """The kernel of a pass for this machine. Takes seconds the first time for a cell, and says so on standard error.

    Raises BackendUnavailable without Halide or a C compiler, OSError if the folder can't be written.
    """
    from ._kernels import instruction_set, load

    with _lock:
        path = library(direction, cell, dtype, masked, instruction_set())
        return load(str(path), _symbol(direction, cell))


def library_path(
    direction: str, cell: CellEquations, dtype: str, masked: bool, instructions: str | None = None
) -> Path:
    """Where a kernel's shared library is, or would be; `instructions` None: for this machine."""
    if instructions is None:
        from ._kernels import instruction_set

        instructions = instruction_set()
    what = (direction, cell.digest, dtype, masked, TARGETS[instructions], _sources())
    return folder() / f"{direction}-{hashlib.sha256(repr(what).encode()).hexdigest()[:24]}.so"


def library(direction: str, cell: CellEquations, dtype: str, masked: bool, instructions: str) -> Path:
    """The shared library of a kernel, made if it isn't there yet. Raises as `compiled`."""
    path = library_path(direction, cell, dtype, masked, instructions)
    if not path.exists():
        print(
            f"rnn: compiling {cell} ({direction}, {dtype}{', masks' * masked}) for {instructions}, once",
            file=sys.stderr,
            flush=True,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        _make(path, direction, cell, dtype, masked, TARGETS[instructions])
    return path


def pipeline(generator: str, cell: CellEquations | None, schedule: str, dtype: str, masked: bool) -> Any:
    """A generator with its parameters, ready to be compiled. Call it inside a `halide.GeneratorContext`."""
    parameters: dict[str, Any] = {"dtype": dtype}
    if generator != "step":
        parameters["schedule"] = schedule
    if cell is not None:
        _generators.module("cells").CELLS[cell.label] = cell.cell
        parameters["cell"] = cell.label
    if masked:
        parameters["masked"] = True
    return getattr(_generators.module(generator), CLASSES[generator])(parameters)


def built(generator: Any) -> tuple[Any, list[Any]]:
    """A generator's pipeline, as its compile_to_callable builds it, and the parameters of its inputs in order."""
    import halide as hl

    made = generator._build_pipeline()
    return made, [
        generator._get_input_parameter(argument.name)
        for argument in generator._get_arginfos()
        if argument.dir == hl.ArgInfoDirection.Input
    ]


def _symbol(direction: str, cell: CellEquations) -> str:
    return f"{direction}_{cell.digest}"


@cache
def _sources() -> str:
    """What tells this version of the generators and of Halide from others."""
    digest = hashlib.sha256()
    for path in sorted(_generators.FOLDER.glob("*.py")):
        digest.update(path.read_bytes())
    try:
        digest.update(version("halide").encode())
    except PackageNotFoundError:  # what has been compiled will do
        digest.update(b"21.0.0")
    return digest.hexdigest()


def _make(path: Path, direction: str, cell: CellEquations, dtype: str, masked: bool, target_name: str) -> None:
    try:
        import halide as hl
    except ImportError as reason:
        raise BackendUnavailable(
            f"halide: {cell} ({dtype}) is not among the compiled kernels, and compiling it needs Halide ({reason}); "
            "install it with 'pip install halide-rnn[jit]'"
        ) from reason
    linker = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if linker is None:
        raise BackendUnavailable(f"halide: compiling {cell} needs a C compiler to link with, and there is no cc here")
    name = _symbol(direction, cell)
    target = hl.Target(f"{target_name}-user_context{UNCHECKED * (direction == 'step')}")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as scratch:
        made, exports, linked = (Path(scratch, part) for part in ("kernel.o", "exports.map", "kernel.so"))
        with hl.GeneratorContext(target):
            kernel, inputs = built(pipeline(direction, cell, "tuned", dtype, masked))
            arguments = [parameter._to_argument() for parameter in inputs]
            kernel.compile_to({hl.OutputFileType.object: str(made)}, arguments, name, target)
        exports.write_text(EXPORTS.format(name=name))
        command = [linker, "-shared", "-o", linked, made, f"-Wl,--version-script={exports}", "-lpthread", "-ldl", "-lm"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BackendUnavailable(f"halide: {linker} could not link {cell}: {done.stderr.strip()[-500:]}")
        os.replace(linked, path)  # whole or not at all
