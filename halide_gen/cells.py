"""The equations of the cells, and nothing else: no schedule, no layout, no derivative, no Halide.

A cell names its gates and its states, and says in `step` what a time step makes of them:

    x.g        W_ih,g x_t + b_ih,g, for gate g
    u.g(v)     W_hh,g v + b_hh,g, where v is a state or anything made of states and gates
    u.p        a vector of its own, one number a unit, for p in `vectors`

in plain arithmetic and the functions of expressions.py, on values of one unit, one row and one time step. It returns
the new states in their order; the first is what the layer puts out. The rows of W_ih are the gates that `x` is asked
for, in the order of `gates`, and those of W_hh the ones that `u` is. What is differentiated, kept and summed up follows
from this alone (derivation.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from expressions import Expression, relu, sigmoid, tanh

Value = Expression
Step = Callable[..., Any]


class Cell:
    """What is asked of a cell."""

    gates: Sequence[str]
    states: Sequence[str] = ("h",)
    vectors: Sequence[str] = ()

    step: Step
    """(x, u, *states) -> the states after a time step: a value, or a tuple of them."""


class RNN(Cell):
    """Elman, "Finding structure in time", Cognitive Science 14, 1990."""

    gates = ("h",)

    def __init__(self, act: Callable[[Value], Value]) -> None:
        self.act = act

    def step(self, x: Any, u: Any, h: Value) -> Value:
        return self.act(x.h + u.h(h))


class LSTM(Cell):
    """Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of Gers, Schmidhuber and
    Cummins, "Learning to forget", 2000; gates in the order of torch.nn.LSTM."""

    gates = ("i", "f", "g", "o")
    states = ("h", "c")

    def step(self, x: Any, u: Any, h: Value, c: Value) -> tuple[Value, Value]:
        i = sigmoid(x.i + u.i(h))
        f = sigmoid(x.f + u.f(h))
        g = tanh(x.g + u.g(h))
        o = sigmoid(x.o + u.o(h))
        c = f * c + i * g
        return o * tanh(c), c


class PeepholeLSTM(LSTM):
    """Gers and Schmidhuber, "Recurrent nets that time and count", 2000: the gates see the cell; o sees the new one."""

    vectors = ("peephole_i", "peephole_f", "peephole_o")

    def step(self, x: Any, u: Any, h: Value, c: Value) -> tuple[Value, Value]:
        i = sigmoid(x.i + u.i(h) + u.peephole_i * c)
        f = sigmoid(x.f + u.f(h) + u.peephole_f * c)
        g = tanh(x.g + u.g(h))
        c = f * c + i * g
        o = sigmoid(x.o + u.o(h) + u.peephole_o * c)
        return o * tanh(c), c


class CoupledLSTM(Cell):
    """An LSTM that forgets as much as it lets in, f = 1 - i: Greff et al., "LSTM: a search space odyssey", 2017."""

    gates = ("i", "g", "o")
    states = ("h", "c")

    def step(self, x: Any, u: Any, h: Value, c: Value) -> tuple[Value, Value]:
        i = sigmoid(x.i + u.i(h))
        g = tanh(x.g + u.g(h))
        o = sigmoid(x.o + u.o(h))
        c = (1 - i) * c + i * g
        return o * tanh(c), c


class CoupledPeepholeLSTM(CoupledLSTM):
    """Both of the above."""

    vectors = ("peephole_i", "peephole_o")

    def step(self, x: Any, u: Any, h: Value, c: Value) -> tuple[Value, Value]:
        i = sigmoid(x.i + u.i(h) + u.peephole_i * c)
        g = tanh(x.g + u.g(h))
        c = (1 - i) * c + i * g
        o = sigmoid(x.o + u.o(h) + u.peephole_o * c)
        return o * tanh(c), c


class GRU(Cell):
    """Cho et al., "Learning phrase representations", 2014, with the reset gate applied after the product, as in
    torch.nn.GRU and cuDNN."""

    gates = ("r", "z", "n")

    def step(self, x: Any, u: Any, h: Value) -> Value:
        r = sigmoid(x.r + u.r(h))
        z = sigmoid(x.z + u.z(h))
        n = tanh(x.n + r * u.n(h))
        return (1 - z) * n + z * h


class GRUResetBefore(GRU):
    """The same with the reset gate before the product, as in the paper and by default in ONNX."""

    def step(self, x: Any, u: Any, h: Value) -> Value:
        r = sigmoid(x.r + u.r(h))
        z = sigmoid(x.z + u.z(h))
        n = tanh(x.n + u.n(r * h))
        return (1 - z) * n + z * h


class MGU(Cell):
    """The minimal gated unit of Zhou et al., International Journal of Automation and Computing 13, 2016."""

    gates = ("f", "n")

    def step(self, x: Any, u: Any, h: Value) -> Value:
        f = sigmoid(x.f + u.f(h))
        n = tanh(x.n + u.n(f * h))
        return (1 - f) * h + f * n


class IndRNN(Cell):
    """Li et al., "Independently recurrent neural network", 2018: each unit sees itself alone."""

    gates = ("h",)
    vectors = ("recurrent",)

    def __init__(self, act: Callable[[Value], Value]) -> None:
        self.act = act

    def step(self, x: Any, u: Any, h: Value) -> Value:
        return self.act(x.h + u.recurrent * h)


CELLS: dict[str, Cell] = {
    "rnn_tanh": RNN(tanh),
    "rnn_sigmoid": RNN(sigmoid),
    "rnn_relu": RNN(relu),
    "lstm": LSTM(),
    "lstm_peephole": PeepholeLSTM(),
    "lstm_coupled": CoupledLSTM(),
    "lstm_peephole_coupled": CoupledPeepholeLSTM(),
    "gru": GRU(),
    "gru_reset_before": GRUResetBefore(),
    "mgu": MGU(),
    "indrnn_tanh": IndRNN(tanh),
    "indrnn_relu": IndRNN(relu),
}
