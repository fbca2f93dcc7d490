"""Single time steps of layers over each other, through pipelines of their own where the compiled kernels have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import _generators
from ..backend import BackendUnavailable
from ..cells import CellEquations
from .base import Array, Backend
from .halide import Compiled, HalideBackend

Step = Callable[[Array, Any, dict[str, Array]], tuple[Array, Any] | None]
"""(x, state, the layer's weights) -> (output, state), or None where something is not quite as expected."""

MOST_UNITS: int = _generators.module("machine").STEP_UNITS
# Up to so many rows the kernel is ahead of the forward pass of one step, which packs the weights. LSTM, 1 and 16 rows:
# 8 units 1.6 and 3.3 us instead of 46 and 31, 128 units 7.7 and 97 instead of 155 and 208, 1024 units 1.1 and 20 ms
# instead of 22 and 20. From 32 or 64 rows on it is behind.
MOST_ROWS = 16


def stepper(
    backend: Backend,
    cell: CellEquations,
    sizes: tuple[int, int, int | None],
    dtype: np.dtype[Any],
    parts: Sequence[Mapping[str, str]],
    shapes: Mapping[str, tuple[int, ...]],
) -> Step | None:
    """What makes a step, or None where the forward pass of one step has to.

    sizes: of the input, the state and the readout (None: there is none); parts: of each layer its weights, as a backend
    calls them -> as `shapes` and the layer do.
    """
    if reason_against(backend, sizes[1], dtype) is not None:
        return None
    assert isinstance(backend, HalideBackend)
    try:
        kernel = backend._kernels.recurrent("step", cell, str(dtype), False)
    except BackendUnavailable:  # a cell of the user's own, and no Halide: its other kernels may be there
        return None
    from .._kernels import Stepper

    I, H, O = sizes
    zeros = {
        "weight_hh_l0": (cell.hidden * H, H),
        "bias_ih_l0": (cell.inputs * H,),
        "bias_hh_l0": (cell.hidden * H,),
        "weight_ho": (0, H),
    }
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", *(f"{name}_l0" for name in cell.vectors)]
    keys = {name: name for name in shapes}  # a dict is faster with the very keys that it has: those of the weights
    weights = []
    for part in parts:
        missing = zeros | {"bias_o": (O or 0,) if "weight_ho" in part else (0,)}
        weights.append(
            [
                (keys[part[name]], shapes[part[name]]) if name in part else (None, missing[name])
                for name in [*names, "weight_ho", "bias_o"]
            ]
        )
    step: Step = Stepper(kernel, weights, I, H, O or 0, O is not None, MOST_ROWS).step
    return step


def reason_against(backend: Backend, hidden_size: int, dtype: np.dtype[Any]) -> str | None:
    """Why a step goes through the forward pass, or None if it need not."""
    if not isinstance(backend, HalideBackend) or not isinstance(backend._kernels, Compiled):
        return f"the backend {backend.name} has no kernel for it"
    if backend.schedule != "tuned":
        return "it has the schedule tuned alone"
    if dtype != np.float32:
        return "its kernels are in float32"
    if not 0 < hidden_size <= MOST_UNITS:
        return f"its kernels are for 1 to {MOST_UNITS} units"
    return None
