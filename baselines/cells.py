"""The equations of one time step, and of its derivative, one class a cell.

A cell sees its part of the product with the inputs, `from_input = W_ih x_t + b_ih` (N, G*H), its states before the
step, (N, H) each, of which the first is h, and its vectors (H,), weights that each unit has for itself. The product
with the recurrent weights it asks for, with what it wants multiplied: `from_hidden(v) = W_hh v + b_hh`, or of some
gates alone, since a GRU gates either the product or the operand. The engine (`recurrence.py`) makes both products.

Gates are single letters, in the order in which their H rows stand in the weights. sigmoid is the logistic function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
States = tuple[Array, ...]
Vectors = Mapping[str, Array]


class FromHidden(Protocol):
    def __call__(self, operand: Array, gates: str | None = None) -> Array:
        """W_hh v + b_hh for the operand v (N, H): the rows of `gates`, which are neighbours, or of all gates."""
        ...


class ThroughWeights(Protocol):
    def __call__(self, d: Array, operand: Array, gates: str | None = None) -> Array:
        """The way back through `from_hidden(operand, gates)`: the gradient of the operand from that of the product.

        To be called once for each product that `step` asked for: the gradient of W_hh is made of these calls.
        """
        ...


class Cell(Protocol):
    """A recurrent cell. `kept`: how many values, (N, H), a step leaves for BPTT besides its states."""

    gates: str
    states: tuple[str, ...]
    vectors: tuple[str, ...]
    kept: int

    def step(
        self, from_input: Array, from_hidden: FromHidden, before: Sequence[Array], vectors: Vectors
    ) -> tuple[States, States]:
        """The states after the step and the `kept` further values that `step_back` wants to see again."""
        ...

    def step_back(
        self,
        d_after: Sequence[Array],
        before: Sequence[Array],
        after: Sequence[Array],
        kept: Sequence[Array],
        through_weights: ThroughWeights,
        vectors: Vectors,
    ) -> tuple[Array, States, dict[str, Array]]:
        """Gradients of `from_input`, of the states before the step, and of the vectors, (N, H) each, from those of the
        states after it."""
        ...


class Elman:
    """h_t = act(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), Elman, "Finding structure in time", 1990.

    `slope` is the derivative of `act`, written in terms of its result h, so that BPTT keeps nothing but h.
    """

    gates = "h"
    states: tuple[str, ...] = ("h",)
    vectors: tuple[str, ...] = ()
    kept = 0

    def __init__(self, act: Callable[[Array], Array], slope: Callable[[Array], Array]) -> None:
        self.act = act
        self.slope = slope

    def step(
        self, from_input: Array, from_hidden: FromHidden, before: Sequence[Array], vectors: Vectors
    ) -> tuple[States, States]:
        return (self.act(from_input + from_hidden(before[0])),), ()

    def step_back(
        self,
        d_after: Sequence[Array],
        before: Sequence[Array],
        after: Sequence[Array],
        kept: Sequence[Array],
        through_weights: ThroughWeights,
        vectors: Vectors,
    ) -> tuple[Array, States, dict[str, Array]]:
        delta = d_after[0] * self.slope(after[0])
        return delta, (through_weights(delta, before[0]),), {}


class IndRNN(Elman):
    """h_t = act(W_ih x_t + b_ih + u * h_{t-1}), Li et al., "Independently recurrent neural network", 2018.

    It is Elman's with a diagonal W_hh, so that no unit hears another: `from_hidden(h)` is u * h here, which the engine
    makes of the vector named "recurrent".
    """

    vectors: tuple[str, ...] = ("recurrent",)


class LSTM:
    """Long short-term memory, as torch.nn.LSTM, with peepholes and coupled gates on request.

        i_t = sigmoid(W_i x_t + U_i h_{t-1} + p_i * c_{t-1})        f_t = sigmoid(W_f x_t + U_f h_{t-1} + p_f * c_{t-1})
        g_t = tanh(W_g x_t + U_g h_{t-1})                           c_t = f_t * c_{t-1} + i_t * g_t
        o_t = sigmoid(W_o x_t + U_o h_{t-1} + p_o * c_t)            h_t = o_t * tanh(c_t)

    (biases left out) after Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of Gers,
    Schmidhuber and Cummins, "Learning to forget", 2000. The vectors p, "peephole_i" and so on, are there with
    `peepholes`: Gers, Schraudolph and Schmidhuber, "Learning precise timing with LSTM recurrent networks", 2002; the
    output gate sees the new c. `coupled` is f_t = 1 - i_t, with no weights of its own: CIFG in Greff et al., "LSTM: a
    search space odyssey", 2015.
    """

    states: tuple[str, ...] = ("h", "c")

    def __init__(self, *, peepholes: bool = False, coupled: bool = False) -> None:
        self.coupled = coupled
        self.gates = "igo" if coupled else "ifgo"
        self.kept = len(self.gates)
        self.vectors = tuple(f"peephole_{gate}" for gate in self.gates if gate != "g" and peepholes)

    def step(
        self, from_input: Array, from_hidden: FromHidden, before: Sequence[Array], vectors: Vectors
    ) -> tuple[States, States]:
        h, c = before
        a = dict(zip(self.gates, split(from_input + from_hidden(h), len(self.gates)), strict=True))
        i = sigmoid(a["i"] + peep("i", c, vectors))
        f = 1 - i if self.coupled else sigmoid(a["f"] + peep("f", c, vectors))
        g = tanh(a["g"])
        c = f * c + i * g
        o = sigmoid(a["o"] + peep("o", c, vectors))
        return (o * tanh(c), c), ((i, g, o) if self.coupled else (i, f, g, o))

    def step_back(
        self,
        d_after: Sequence[Array],
        before: Sequence[Array],
        after: Sequence[Array],
        kept: Sequence[Array],
        through_weights: ThroughWeights,
        vectors: Vectors,
    ) -> tuple[Array, States, dict[str, Array]]:
        (d_h, d_c), (h, c_before), (_, c) = d_after, before, after
        gate = dict(zip(self.gates, kept, strict=True))
        i, g, o = (gate[name] for name in "igo")
        f = 1 - i if self.coupled else gate["f"]

        squashed = tanh(c)
        d: dict[str, Array] = {"o": d_h * squashed * sigmoid_slope(o)}
        d_c = d_c + d_h * o * tanh_slope(squashed) + peep("o", d["o"], vectors)
        d["g"] = d_c * i * tanh_slope(g)
        if self.coupled:
            d["i"] = d_c * (g - c_before) * sigmoid_slope(i)
        else:
            d["i"] = d_c * g * sigmoid_slope(i)
            d["f"] = d_c * c_before * sigmoid_slope(f)
        delta = join(*(d[name] for name in self.gates))
        d_c_before: Array = d_c * f + peep("i", d["i"], vectors)
        if not self.coupled:
            d_c_before = d_c_before + peep("f", d["f"], vectors)

        seen = {"peephole_i": c_before, "peephole_f": c_before, "peephole_o": c}
        d_vectors: dict[str, Array] = {name: d[name[-1]] * seen[name] for name in vectors}
        return delta, (through_weights(delta, h), d_c_before), d_vectors


def peep(gate: str, a: Array, vectors: Vectors) -> Array | float:
    """What goes through a gate's peephole, either way: nothing if it has none."""
    name = f"peephole_{gate}"
    return vectors[name] * a if name in vectors else 0.0


class GRU:
    """Gated recurrent unit: a reset gate r, an update gate z, a new value n.

        r_t = sigmoid(W_r x_t + U_r h_{t-1})            z_t = sigmoid(W_z x_t + U_z h_{t-1})
        n_t = tanh(W_n x_t + r_t * (U_n h_{t-1}))       h_t = (1 - z_t) * n_t + z_t * h_{t-1}

    (biases left out, but that of U_n h is within the brackets) after Cho et al., "Learning phrase representations using
    RNN encoder-decoder", 2014, in the form of its first version, which resets after the product, as torch.nn.GRU and
    cuDNN do. `reset_after=False` is the form of its later versions, n_t = tanh(W_n x_t + U_n (r_t * h_{t-1})).
    """

    gates = "rzn"
    states: tuple[str, ...] = ("h",)
    vectors: tuple[str, ...] = ()

    def __init__(self, *, reset_after: bool = True) -> None:
        self.reset_after = reset_after
        self.kept = 4 if reset_after else 3

    def step(
        self, from_input: Array, from_hidden: FromHidden, before: Sequence[Array], vectors: Vectors
    ) -> tuple[States, States]:
        (h,) = before
        x_r, x_z, x_n = split(from_input, 3)
        if self.reset_after:
            u_r, u_z, u_n = split(from_hidden(h), 3)
        else:
            u_r, u_z = split(from_hidden(h, "rz"), 2)
        r = sigmoid(x_r + u_r)
        z = sigmoid(x_z + u_z)
        n = tanh(x_n + (r * u_n if self.reset_after else from_hidden(r * h, "n")))
        return ((1 - z) * n + z * h,), ((r, z, n, u_n) if self.reset_after else (r, z, n))

    def step_back(
        self,
        d_after: Sequence[Array],
        before: Sequence[Array],
        after: Sequence[Array],
        kept: Sequence[Array],
        through_weights: ThroughWeights,
        vectors: Vectors,
    ) -> tuple[Array, States, dict[str, Array]]:
        (d_h,), (h,), (r, z, n) = d_after, before, kept[:3]
        d_n = d_h * (1 - z) * tanh_slope(n)
        d_z = d_h * (h - n) * sigmoid_slope(z)
        if self.reset_after:
            d_r = d_n * kept[3] * sigmoid_slope(r)
            d_before = d_h * z + through_weights(join(d_r, d_z, d_n * r), h)
        else:
            d_reset = through_weights(d_n, r * h, "n")  # of r * h
            d_r = d_reset * h * sigmoid_slope(r)
            d_before = d_h * z + d_reset * r + through_weights(join(d_r, d_z), h, "rz")
        return join(d_r, d_z, d_n), (d_before,), {}


class MGU:
    """Minimal gated unit: one gate f, which both resets and updates, and a new value n.

        f_t = sigmoid(W_f x_t + U_f h_{t-1})
        n_t = tanh(W_n x_t + U_n (f_t * h_{t-1}))       h_t = (1 - f_t) * h_{t-1} + f_t * n_t

    (biases left out) Zhou et al., "Minimal gated unit for recurrent neural networks", 2016.
    """

    gates = "fn"
    states: tuple[str, ...] = ("h",)
    vectors: tuple[str, ...] = ()
    kept = 2

    def step(
        self, from_input: Array, from_hidden: FromHidden, before: Sequence[Array], vectors: Vectors
    ) -> tuple[States, States]:
        (h,) = before
        x_f, x_n = split(from_input, 2)
        f = sigmoid(x_f + from_hidden(h, "f"))
        n = tanh(x_n + from_hidden(f * h, "n"))
        return ((1 - f) * h + f * n,), (f, n)

    def step_back(
        self,
        d_after: Sequence[Array],
        before: Sequence[Array],
        after: Sequence[Array],
        kept: Sequence[Array],
        through_weights: ThroughWeights,
        vectors: Vectors,
    ) -> tuple[Array, States, dict[str, Array]]:
        (d_h,), (h,), (f, n) = d_after, before, kept
        d_n = d_h * f * tanh_slope(n)
        d_gated = through_weights(d_n, f * h, "n")  # of f * h
        d_f = (d_h * (n - h) + d_gated * h) * sigmoid_slope(f)
        d_before = d_h * (1 - f) + d_gated * f + through_weights(d_f, h, "f")
        return join(d_f, d_n), (d_before,), {}


def split(a: Array, gates: int) -> list[Array]:
    """The (N, H) of each gate out of the (N, G*H) of all."""
    return np.split(a, gates, axis=1)


def join(*gates: Array) -> Array:
    """The (N, G*H) of all gates out of the (N, H) of each."""
    return np.concatenate(gates, axis=1)


def tanh(a: Array) -> Array:
    return np.tanh(a)


def tanh_slope(h: Array) -> Array:
    return 1 - h * h


def sigmoid(a: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-a) = inf gives the right 0
        return 1 / (1 + np.exp(-a))


def sigmoid_slope(h: Array) -> Array:
    return h * (1 - h)


def relu(a: Array) -> Array:
    return np.maximum(a, 0)


def relu_slope(h: Array) -> Array:
    return (h > 0).astype(h.dtype)  # 0 at 0, as in PyTorch


CELLS: dict[str, Cell] = {
    "rnn_tanh": Elman(tanh, tanh_slope),
    "rnn_sigmoid": Elman(sigmoid, sigmoid_slope),
    "rnn_relu": Elman(relu, relu_slope),
    "lstm": LSTM(),
    "lstm_peephole": LSTM(peepholes=True),
    "lstm_coupled": LSTM(coupled=True),
    "lstm_peephole_coupled": LSTM(peepholes=True, coupled=True),
    "gru": GRU(),
    "gru_reset_before": GRU(reset_after=False),
    "mgu": MGU(),
    "indrnn_tanh": IndRNN(tanh, tanh_slope),
    "indrnn_relu": IndRNN(relu, relu_slope),
}
