"""BPTT as the well-known tutorial has it, which goes back again from every time step: O(T^2).

Britz, "Recurrent neural networks tutorial, part 3: backpropagation through time and vanishing gradients", 2015,
whose loop over the outputs has a second one inside it, over the steps before, of which `bptt_truncate` are taken.
Here with a squared error in place of the softmax, a bias, several lanes and the gradient of x; all of a step's
products are NumPy's. In full it finds what one sweep finds (`recurrence.py`), in T (T + 1) / 2 steps in place of T.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from . import numpy as fast
from .cells import Array
from .network import Objective

set_threads, versions = fast.set_threads, fast.versions


def forward(x: Array, weights: Mapping[str, Array]) -> tuple[Array, Array]:
    """States (T+1, N, H), from zeros, and output (T, N, O or H), for x (T, N, I): a tanh layer with its readout."""
    states = np.zeros((len(x) + 1, x.shape[1], len(weights["weight_hh_l0"])), x.dtype)
    none = np.zeros((), x.dtype)
    bias = weights.get("bias_ih_l0", none) + weights.get("bias_hh_l0", none)
    for t in range(len(x)):
        states[t + 1] = np.tanh(x[t] @ weights["weight_ih_l0"].T + states[t] @ weights["weight_hh_l0"].T + bias)
    if "weight_ho" not in weights:
        return states, states[1:]
    return states, states[1:] @ weights["weight_ho"].T + weights.get("bias_o", none)


def slope(h: Array) -> Array:
    """The derivative of tanh, in terms of its result."""
    return 1 - h**2


def steps_back(t: int, bptt_truncate: int | None) -> Iterator[int]:
    """The steps that output t is carried back through: t, t-1, ..., 0, at most `bptt_truncate` before t itself."""
    first = 0 if bptt_truncate is None else max(0, t - bptt_truncate)
    return reversed(range(first, t + 1))


def bptt(
    x: Array, weights: Mapping[str, Array], states: Array, d_output: Array, bptt_truncate: int | None = None
) -> dict[str, Array]:
    """Gradients of the weights, by name, and of x as "x", from that of the output, (T, N, O or H)."""
    gradients = {name: np.zeros_like(weight) for name, weight in weights.items()}
    gradients["x"] = np.zeros_like(x)
    for t in range(len(x)):
        delta = d_output[t]
        if "weight_ho" in weights:
            gradients["weight_ho"] += delta.T @ states[t + 1]
            if "bias_o" in weights:
                gradients["bias_o"] += delta.sum(axis=0)
            delta = delta @ weights["weight_ho"]
        for step in steps_back(t, bptt_truncate):
            delta = delta * slope(states[step + 1])
            gradients["weight_ih_l0"] += delta.T @ x[step]
            gradients["weight_hh_l0"] += delta.T @ states[step]
            if "bias_ih_l0" in weights:
                bias = delta.sum(axis=0)
                gradients["bias_ih_l0"] += bias
                gradients["bias_hh_l0"] += bias
            gradients["x"][step] += delta @ weights["weight_ih_l0"]
            delta = delta @ weights["weight_hh_l0"]
    return gradients


class Network(fast.Network):
    """`network.Network` for "rnn_tanh"; another cell raises ValueError. bptt_truncate: how many steps before its own an
    output is carried back, None for all of them."""

    def __init__(
        self, cell: str, weights: Mapping[str, Array], objective: Objective, bptt_truncate: int | None = None
    ) -> None:
        if cell != "rnn_tanh":
            raise ValueError(f"cell: expected 'rnn_tanh', all that the tutorial has, got {cell!r}")
        super().__init__(cell, weights, objective)
        self._truncate = bptt_truncate

    def forward(self, batch: fast.Batch) -> Array:
        return forward(batch.x, self._weights)[1]

    def _differentiate(self, batch: fast.Batch) -> tuple[float, Array]:
        states, output = forward(batch.x, self._weights)
        d_output = np.empty_like(output)
        value = fast.loss(output, batch.target, self._objective, d_output)
        gradients = bptt(batch.x, self._weights, states, d_output, self._truncate)
        d_x = gradients.pop("x")
        for name, gradient in gradients.items():
            self._gradients[name][...] = gradient
        return value, d_x
