"""The kernels compiled ahead of time as a backend, and what both Halide backends share: the kernels' arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .._memory import empty
from ..backend import BackendUnavailable
from . import numpy as reference
from .base import Array, Backend, Gradients, Tape

SCHEDULES = ("naive", "vectorized", "parallel", "tiled", "tuned")

_DTYPES = {4: "float32", 8: "float64"}  # dtype.name takes 5 us
Kernel = Callable[..., None]
Find = Callable[[str, str, str], Kernel]  # (pass, cell, dtype)


class HalideBackend:
    """Hands whole sequences to one kernel call a pass. `find` gives the kernel of a pass, a cell and a dtype."""

    def __init__(self, name: str, schedule: str, find: Find) -> None:
        self.name = name
        self.schedule: str | None = schedule
        self._find = find
        self._empty = reference.NumpyBackend()  # where nothing is to be computed: kernels want T, N, H >= 1

    def forward(self, cell: str, x: Array, h0: Array, weights: Mapping[str, Array]) -> Tape:
        (T, N, _), H = x.shape, h0.shape[1]
        if 0 in (T, N, H):
            return self._empty.forward(cell, x, h0, weights)
        weight_ho, bias_o = _readout(weights, H, x.dtype)
        none = np.zeros(H, x.dtype)
        states = empty((T + 1, N, H), x.dtype)
        output = empty((T, N, len(weight_ho)), x.dtype)
        self._find("forward", cell, _DTYPES[x.itemsize])(
            x,
            h0,
            weights["weight_ih_l0"],
            weights["weight_hh_l0"],
            weights.get("bias_ih_l0", none),
            weights.get("bias_hh_l0", none),
            weight_ho,
            bias_o,
            states,
            output,
        )
        return Tape((states,), (), output if "weight_ho" in weights else states[1:])

    def bptt(
        self, cell: str, x: Array, weights: Mapping[str, Array], tape: Tape, d_output: Array, d_state: Array | None
    ) -> Gradients:
        (T, N, I), H = x.shape, tape.states[0].shape[2]
        if 0 in (T, N, H):
            return self._empty.bptt(cell, x, weights, tape, d_output, d_state)
        dtype = x.dtype
        weight_ho, _ = _readout(weights, H, dtype)
        O = len(weight_ho)
        # one row of zeros stands for all of them: its outer strides are 0
        nothing = np.ndarray((T, N, H), dtype, np.zeros(H, dtype), strides=(0, 0, x.itemsize))
        d_states = nothing if "weight_ho" in weights else d_output
        d_output = d_output if "weight_ho" in weights else empty((T, N, 0), dtype)
        d_x, d_h0 = empty((T, N, I), dtype), empty((N, H), dtype)
        d_weight_ih, d_weight_hh = empty((H, I), dtype), empty((H, H), dtype)
        d_bias, d_weight_ho, d_bias_o = empty((H,), dtype), empty((O, H), dtype), empty((O,), dtype)
        self._find("bptt", cell, _DTYPES[x.itemsize])(
            x,
            weights["weight_ih_l0"],
            weights["weight_hh_l0"],
            weight_ho,
            tape.states[0],
            d_output,
            d_states,
            nothing[0] if d_state is None else d_state,
            d_x,
            d_h0,
            d_weight_ih,
            d_weight_hh,
            d_bias,
            d_weight_ho,
            d_bias_o,
        )
        made = {
            "weight_ih_l0": d_weight_ih,
            "weight_hh_l0": d_weight_hh,
            "bias_ih_l0": d_bias,
            "bias_hh_l0": d_bias,
            "weight_ho": d_weight_ho,
            "bias_o": d_bias_o,
        }
        # the two biases have the same gradient, but not the same memory
        return Gradients(
            {name: made[name].copy() if name == "bias_hh_l0" else made[name] for name in weights}, d_x, d_h0
        )


def _readout(weights: Mapping[str, Array], H: int, dtype: np.dtype[np.floating]) -> tuple[Array, Array]:
    """(weight_ho, bias_o); no output at all where there is no readout, zeros where there is no bias."""
    weight_ho = weights.get("weight_ho")
    if weight_ho is None:
        weight_ho = empty((0, H), dtype)
    bias_o = weights.get("bias_o")
    return weight_ho, np.zeros(len(weight_ho), dtype) if bias_o is None else bias_o


def check_schedule(schedule: str) -> None:
    """Raises ValueError for a schedule that there is not."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")


def load(schedule: str = "tuned") -> Backend:
    """The kernels of a schedule ("tuned" in float32 and float64, the others in float32).

    Raises ValueError for an unknown schedule, BackendUnavailable where the kernels were not built.
    """
    check_schedule(schedule)
    try:
        from .._kernels import kernels
    except ModuleNotFoundError as reason:
        raise BackendUnavailable(
            f"halide: the compiled kernels are missing ({reason}); install the package with 'pip install .'"
        ) from reason

    def find(direction: str, cell: str, dtype: str) -> Kernel:
        kernel: Kernel | None = kernels.get(f"{direction}_{cell}_{schedule}_{dtype}")
        if kernel is None:
            raise ValueError(
                f"schedule: expected 'tuned' (or the backend halide-jit) for {cell} in {dtype}, got {schedule!r}"
            )
        return kernel

    return HalideBackend("halide", schedule, find)
