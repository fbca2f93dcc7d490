"""Theano as a rival: the graph of `symbolic.py` through Theano-PyMC 1.1.2, the last that goes by that name.

It is of 2021, and runs on Python 3.11 with what `prepare` does. Its Python needs NumPy 1.26, SciPy and Theano alone:
`theano_environment.py` makes one.
"""

from __future__ import annotations

import builtins
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import symbolic
from .symbolic import Library, set_threads

__all__ = ["Network", "set_threads", "versions"]

# For scan_perform.c, which Cython wrote for Python 3.9. What it knew of the inside of Python's objects is turned off;
# its one call of PyCode_New, whose arguments changed, makes a code object for tracebacks, and Python can make that.
FOR_PYTHON_3_11 = """
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define CYTHON_FAST_PYCALL 0
#define CYTHON_FAST_THREAD_STATE 0
#define CYTHON_USE_EXC_INFO_STACK 0
#define CYTHON_USE_PYLONG_INTERNALS 0
#define PyCode_New(args, more, locals, stack, flags, code, consts, names, vars, free, cell, file, name, line, table)\\
    PyCode_NewEmpty(PyUnicode_AsUTF8(file), PyUnicode_AsUTF8(name), line)
"""
LINE_OF_FRAME = "(frame)->f_lineno = (lineno)"  # for tracebacks too; the field can't be set any more


class NoProperties(tuple[Any, ...]):
    """An empty tuple that counts as true, and is stored as an empty tuple.

    Theano takes an operation without properties (an empty `__props__`) for one whose C code has no version, and
    compiles it again in each process, ten or so in a graph like ours.
    """

    def __bool__(self) -> bool:
        return True

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, ()


def prepare() -> None:
    """Make Theano run on this Python and NumPy, as fast as it did on its own. It has to be loaded, and unused."""
    import theano.graph.op
    import theano.link.c.cmodule

    compiler = theano.link.c.cmodule.GCC_compiler
    compile_str = compiler.compile_str

    def with_new_python(module_name: str, src_code: str, *arguments: Any, **options: Any) -> Any:
        if module_name == "scan_perform":
            src_code = FOR_PYTHON_3_11 + src_code.replace(LINE_OF_FRAME, "((void)0)")
        return compile_str(module_name, src_code, *arguments, **options)

    compiler.compile_str = staticmethod(with_new_python)
    for operation in subclasses(theano.graph.op.Op):
        if vars(operation).get("__props__") == ():
            operation.__props__ = NoProperties()


def subclasses(of: type[Any]) -> Iterator[type[Any]]:
    for one in of.__subclasses__():
        yield one
        yield from subclasses(one)


def set_up() -> Library:
    """Theano. Flags that the environment variable THEANO_FLAGS has already come after ours."""
    # Without preallocation: deciding whether a result is in place already, scan compares contents, not addresses.
    ours = symbolic.flags(Path(sys.prefix, "compiled"), "scan__allow_output_prealloc=False")
    os.environ["THEANORC"] = os.devnull
    os.environ["THEANO_FLAGS"] = flags = ",".join(filter(None, [ours, os.environ.get("THEANO_FLAGS")]))
    fresh = symbolic.is_fresh(flags)  # importing it fills some
    for name in {"bool", "int", "float", "complex", "object"} - vars(np).keys():  # NumPy 1.24 took them away
        setattr(np, name, getattr(builtins, name))

    import theano
    import theano.compile.mode
    import theano.tensor

    prepare()
    # Inside a scan a product and a sum are a gemm, which first copies what is added number by number; a sum in one loop
    # with the activation takes less: 13.0 for 14.3 ms forward, 40 for 45 a training step, at H 16, N 512, T 512.
    mode = theano.compile.mode.get_default_mode().excluding("gemm_optimizer")

    def scan(*arguments: Any, mode: Any = mode, **options: Any) -> Any:
        return theano.scan(*arguments, strict=True, mode=mode, **options)[0]

    return Library(
        name="theano",
        version=theano.__version__,
        tensor=theano.tensor,
        function=theano.function,
        shared=theano.shared,
        scan=scan,
        scan_apart=functools.partial(scan, mode=mode.excluding("fusion")),
        sigmoid=theano.tensor.nnet.sigmoid,
        scan_module="scan_perform.scan_perform",
        config=theano.config,
        fresh=fresh,
    )


class Network(symbolic.Network):
    """`network.Network` in Theano."""

    library = set_up()


fresh = Network.library.fresh


def versions() -> dict[str, str]:
    return {"theano-pymc": Network.library.version, "numpy": np.__version__, "openblas": symbolic.blas_version()}
