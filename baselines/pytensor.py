"""PyTensor as a rival: the graph of `symbolic.py` through its C backend.

Its other backend, Numba, was slower on each of five shapes (1.8 for 1.4 ms forward at H 64, N 1, T 1000; 36 for 16 at
H 256, N 32, T 100), and takes 10 to 20 s to compile a function where C takes 1 once its operations are cached.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import numpy as np

from . import symbolic
from .symbolic import Library, set_threads

__all__ = ["Network", "set_threads", "versions"]


def set_up() -> Library:
    """PyTensor. Flags that the environment variable PYTENSOR_FLAGS has already come after ours."""
    ours = symbolic.flags(Path(sys.prefix, "share", "halide-rnn", "pytensor"))
    os.environ["PYTENSORRC"] = os.devnull
    os.environ["PYTENSOR_FLAGS"] = flags = ",".join(filter(None, [ours, os.environ.get("PYTENSOR_FLAGS")]))
    fresh = symbolic.is_fresh(flags)

    import pytensor
    import pytensor.compile.mode
    import pytensor.tensor

    scan = functools.partial(pytensor.scan, strict=True, return_updates=False)
    apart = pytensor.compile.mode.get_default_mode().excluding("fusion")
    return Library(
        name="pytensor",
        version=pytensor.__version__,
        tensor=pytensor.tensor,
        function=pytensor.function,
        shared=pytensor.shared,
        scan=scan,
        scan_apart=functools.partial(scan, mode=apart),
        sigmoid=pytensor.tensor.sigmoid,
        scan_module="pytensor.scan.scan_perform",
        config=pytensor.config,
        fresh=fresh,
    )


class Network(symbolic.Network):
    """`network.Network` in PyTensor."""

    library = set_up()


fresh = Network.library.fresh


def versions() -> dict[str, str]:
    version = Network.library.version
    return {"pytensor": version, "numpy": np.__version__, "openblas": symbolic.blas_version()}
