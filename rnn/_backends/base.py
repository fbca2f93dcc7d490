"""What a backend is: two functions over whole sequences, and the arrays they hand to each other.

The layer checks every argument before it calls a backend. Arrays come with the layer's dtype (float32 or
float64), in native byte order, aligned, with fewer than 2^31 elements, no negative strides, and a contiguous
last axis; the outer strides are free and may be 0. (An axis of extent 0 or 1 may have any stride.) A backend
never writes to its arguments, and what it returns shares no memory with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


class Tape(NamedTuple):
    """What a forward pass leaves behind for BPTT."""

    states: tuple[Array, ...]
    """One a state of the cell, the first is h: each (T+1, N, H), slot 0 holds the initial state."""

    gates: tuple[Array, ...]
    """Further values that the cell keeps for BPTT (none for the plain RNN), each (T, N, H)."""

    output: Array
    """(T, N, O): the readout, or `states[0][1:]` (O = H) where there is none."""


class Gradients(NamedTuple):
    """Gradients of a loss: `weights` (the names and shapes of the layer's), `x` (T, N, I), `h0` (N, H)."""

    weights: dict[str, Array]
    x: Array
    h0: Array


class Backend(Protocol):
    """A way to run a cell over a whole sequence and batch. Stateless: one object serves any thread."""

    name: str

    schedule: str | None
    """The name of the schedule, or None where there is no such choice."""

    def forward(self, cell: str, x: Array, h0: Array, weights: Mapping[str, Array]) -> Tape:
        """Run `cell` ("rnn_tanh", "rnn_sigmoid", "rnn_relu") over x (T, N, I) from h0 (N, H).

        weights: weight_ih_l0 (H, I), weight_hh_l0 (H, H), with bias bias_ih_l0 and bias_hh_l0 (H,), with a
        readout weight_ho (O, H), with both bias_o (O,). Any size may be 0.
        """
        ...

    def bptt(
        self,
        cell: str,
        x: Array,
        weights: Mapping[str, Array],
        tape: Tape,
        d_output: Array,
        d_state: Array | None,
    ) -> Gradients:
        """Gradients from those of `tape.output` and (N, H) of the last state (None stands for zeros).

        `x` and `weights` are what `forward` was given when it made `tape`.
        """
        ...
