"""What a backend is: two functions over whole sequences of one layer in one direction, and the arrays they hand to each
other.

The layer checks every argument before it calls a backend. Arrays come with the layer's dtype (float32 or
float64), in native byte order, aligned, with fewer than 2^31 elements, no negative strides, and a contiguous
last axis; the outer strides are free and may be 0. (An axis of extent 0 or 1 may have any stride.) A backend
never writes to its arguments, and what it returns shares no memory with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..cells import CellEquations

Array = NDArray[np.floating[Any]]
Kernel = Callable[..., None]
"""A compiled pipeline: called with its inputs, then its outputs."""


class Walk(NamedTuple):
    """How a pass goes through time, and what training does to it. All of it may be missing."""

    reverse: bool = False
    """From each row's last step to its first."""
    from_zeros: bool = False
    """Whether the initial states are zeros. Products with those, which are 0, need not be made."""
    lengths: NDArray[np.int32] | None = None
    """(N,): steps of each row, 0 to T; inputs past them are 0."""
    reset: NDArray[np.uint8] | None = None
    """(T, N): 1 where the states are set to 0 before the step."""
    recurrent_mask: Array | None = None
    """(N, H): what the operands of recurrent products are multiplied by."""
    zoneout: tuple[NDArray[Any], ...] | None = None
    """(T, N, H) for each state: the share of its old value that is kept. (For `segments` booleans will do.)"""

    @property
    def is_plain(self) -> bool:
        """Forward in time, whole rows, and nothing done to them."""
        return not self.reverse and all(option is None for option in self[2:])


class Tape(NamedTuple):
    """What a forward pass leaves behind for BPTT."""

    states: tuple[Array, ...]
    """One a state of the cell, the first is h: each (T+1, N, H). Forward, slot 0 holds the initial state and slot t+1
    the one after step t; in reverse slot t holds the one after step t, and the slot of a row's length the initial one.
    Past a row's end: zeros."""

    kept: Any
    """Whatever else the backend wants to see again."""

    output: Array
    """(T, N, O): the readout, or the states after each step (O = H) where there is none; zeros past a row's end."""

    def last(self, walk: Walk) -> list[Array]:
        """Each state of the rows at their ends, (N, H): views of `states` where they can be."""
        if walk.reverse:
            return [states[0] for states in self.states]
        if walk.lengths is not None:
            return [states[walk.lengths, np.arange(len(walk.lengths))] for states in self.states]
        return [states[-1] for states in self.states]


class Gradients(NamedTuple):
    """Gradients of a loss: `weights` (the names and shapes that came), `x` (T, N, I), `initial` (N, H) a state."""

    weights: dict[str, Array]
    x: Array
    initial: tuple[Array, ...]


def cut(array: Array, lengths: NDArray[np.int32]) -> Array:
    """A copy of an array (T, N, ...) with zeros past each row's end."""
    inside = np.arange(len(array))[:, np.newaxis] < lengths
    kept: Array = np.where(inside[:, :, np.newaxis], array, array.dtype.type(0))
    return kept


class Backend(Protocol):
    """A way to run a cell over a whole sequence and batch. Stateless: one object serves any thread."""

    name: str

    schedule: str | None
    """The name of the schedule, or None where there is no such choice."""

    def forward(
        self,
        cell: CellEquations,
        x: Array,
        initial: Sequence[Array],
        weights: Mapping[str, Array],
        walk: Walk,
        keep: bool = True,
    ) -> Tape:
        """Run the cell over x (T, N, I) from its initial states, (N, H) each. `keep` False: nobody will ask for
        gradients, so that of the tape only `states` and `output` need be there.

        weights: weight_ih_l0 (A*H, I) for the gates that see the input, weight_hh_l0 (B*H, H) for those that see the
        state (none: no such name), with bias bias_ih_l0 (A*H,) and bias_hh_l0 (B*H,), the cell's vectors as NAME_l0
        (H,), with a readout weight_ho (O, H), and with both bias_o (O,). T, N, I, H and O may all be 0.

        Raises `BackendUnavailable` for a cell or an option that it does not know.
        """
        ...

    def bptt(
        self,
        cell: CellEquations,
        x: Array,
        weights: Mapping[str, Array],
        tape: Tape,
        d_output: Array,
        d_last: Sequence[Array | None],
        walk: Walk,
        of_x: bool = True,
        of_state: bool = True,
    ) -> Gradients:
        """Back-propagate through time: gradients from d_output (T, N, O or H) and from those of each row's last states
        ((N, H) each, None: zeros).

        `x`, `weights`, `tape` and `walk` are those of one forward call of this backend, which need not have had the
        readout; d_output past a row's end is 0. `of_x` False: nobody will ask for the gradient of x, which may be
        missing, (T, N, 0). `of_state` False: nor for those of the initial states, which may be missing, ().
        """
        ...

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """x W^T + b, (T, N, O), for x (T, N, I) and weight (O, I): a readout of what several passes put out."""
        ...

    def linear_bptt(self, x: Array, weight: Array, d_output: Array) -> tuple[Array, Array, Array]:
        """Gradients of x (T, N, I), of the weight (O, I) and of the bias (O,)."""
        ...
