"""The cell of an ONNX node: one of ours where we have it, and else its equations, in the language of rnn.cells.

The equations are those of the operators RNN, LSTM and GRU (onnx/defs/rnn), with any activations and `clip`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DEFAULTS = {"RNN": ["Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}
"""The activations of each operator: f; f, g, h; f, g."""

Squash = Callable[[Any], Any]


@dataclass(frozen=True)
class Activation:
    """An activation function by ONNX's name; alpha and beta are 0 where it has none."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0


@dataclass(frozen=True)
class NodeCell:
    """What a node's attributes make of a time step, in one direction.

    activations: f of RNN; f, g, h of LSTM; f, g of GRU. clip: bound of what goes into the gates' activations.
    """

    op: str
    activations: tuple[Activation, ...]
    clip: float | None = None
    coupled: bool = False
    peepholes: bool = False
    reset_after: bool = False

    @classmethod
    def named(cls, name: str) -> NodeCell:
        """The one whose name this is."""
        op = name.partition("_")[0].upper()
        function = name.removeprefix("rnn_").capitalize() if op == "RNN" else ""
        return cls(
            op=op,
            activations=tuple(Activation(name) for name in ([function] if function else DEFAULTS[op])),
            coupled=name.endswith("_coupled"),
            peepholes="_peephole" in name,
            reset_after=name == "gru",
        )

    @property
    def gates(self) -> str:
        """One letter a gate, in the order of the rows of the layer's weights."""
        if self.op == "LSTM":
            return "igo" if self.coupled else "ifgo"
        return {"RNN": "h", "GRU": "rzn"}[self.op]

    @property
    def vectors(self) -> tuple[str, ...]:
        """The names of its peepholes."""
        return tuple(f"peephole_{gate}" for gate in "ifo" if gate in self.gates) if self.peepholes else ()

    @property
    def name(self) -> str | None:
        """The name of our cell that computes this, if there is one."""
        names = tuple(activation.name for activation in self.activations)
        if self.clip is not None:
            return None
        if self.op == "RNN" and names[0] in ("Tanh", "Sigmoid", "Relu"):
            return f"rnn_{names[0].lower()}"
        if self.op == "LSTM" and names == ("Sigmoid", "Tanh", "Tanh"):
            return "lstm" + "_peephole" * self.peepholes + "_coupled" * self.coupled
        if self.op == "GRU" and names == ("Sigmoid", "Tanh"):
            return "gru" if self.reset_after else "gru_reset_before"
        return None


@dataclass(frozen=True)
class Formula:
    """What an activation computes from (the functions of rnn.cells, x, alpha, beta), which of alpha and beta it has,
    and their defaults, which are those of the operator of this name; ScaledTanh has none.
    """

    compute: Callable[[Any, Any, float, float], Any]
    takes: str = ""
    defaults: tuple[float, ...] = ()


ACTIVATIONS: dict[str, Formula] = {  # comparisons are written so that NaN stays NaN
    "Relu": Formula(lambda m, x, a, b: m.relu(x)),
    "Tanh": Formula(lambda m, x, a, b: m.tanh(x)),
    "Sigmoid": Formula(lambda m, x, a, b: m.sigmoid(x)),
    "Affine": Formula(lambda m, x, a, b: _scaled(m, a, x) + b, "ab", (1.0, 0.0)),
    "LeakyRelu": Formula(lambda m, x, a, b: m.where(x < 0, a * x, x), "a", (0.01,)),
    "ThresholdedRelu": Formula(lambda m, x, a, b: m.where(x < a, 0.0, x), "a", (1.0,)),
    "ScaledTanh": Formula(lambda m, x, a, b: _scaled(m, a, m.tanh(_scaled(m, b, x))), "ab"),
    "HardSigmoid": Formula(lambda m, x, a, b: _bound(m, _scaled(m, a, x) + b, 0.0, 1.0), "ab", (0.2, 0.5)),
    "Elu": Formula(lambda m, x, a, b: m.where(x < 0, a * (m.exp(m.where(x > 0, 0.0, x)) - 1), x), "a", (1.0,)),
    "Softsign": Formula(lambda m, x, a, b: x / (1 + abs(x))),
    "Softplus": Formula(lambda m, x, a, b: m.relu(x) + m.log(1 + m.exp(-abs(x)))),
}


def equations(cell: NodeCell, m: Any) -> type:
    """A class of this cell for `rnn.cell`: gates, states, vectors, and `step`, in the functions of `m` (rnn.cells).

    The functions of the operators stand for themselves, and clip before those that make gates. (The operators'
    text says "the input of activations"; runtimes clip the gates, and leave h(C_t) alone, so do we.)
    """
    plain = [_function(m, activation) for activation in cell.activations]
    f, g = (_clipped(m, function, cell.clip) for function in (plain[0], plain[min(1, len(plain) - 1)]))

    def rnn(self: Any, x: Any, u: Any, h: Any) -> Any:
        return f(x.h + u.h(h))

    def lstm(self: Any, x: Any, u: Any, h: Any, c: Any) -> tuple[Any, Any]:
        def seen(gate: str, cell_state: Any) -> Any:
            asked = getattr(x, gate) + getattr(u, gate)(h)
            return asked + getattr(u, f"peephole_{gate}") * cell_state if cell.peepholes else asked

        i = f(seen("i", c))
        forget = 1 - i if cell.coupled else f(seen("f", c))
        c = forget * c + i * g(x.g + u.g(h))
        return f(seen("o", c)) * plain[2](c), c

    def gru(self: Any, x: Any, u: Any, h: Any) -> Any:
        r = f(x.r + u.r(h))
        z = f(x.z + u.z(h))
        n = g(x.n + (r * u.n(h) if cell.reset_after else u.n(r * h)))
        return (1 - z) * n + z * h

    body: dict[str, Any] = {
        "__doc__": repr(cell),
        "__module__": __name__,
        "gates": tuple(cell.gates),
        "states": ("h", "c") if cell.op == "LSTM" else ("h",),
        "vectors": cell.vectors,
        "step": {"RNN": rnn, "LSTM": lstm, "GRU": gru}[cell.op],
    }
    return type(f"Onnx{cell.op}", (), body)


def _function(m: Any, activation: Activation) -> Squash:
    compute = ACTIVATIONS[activation.name].compute
    return lambda x: compute(m, x, activation.alpha, activation.beta)


def _clipped(m: Any, function: Squash, clip: float | None) -> Squash:
    return function if clip is None else lambda x: function(_bound(m, x, -clip, clip))


def _scaled(m: Any, a: float, x: Any) -> Any:
    """a * x, and for a = 0 still made of x: a gate that nothing sees would be none, and have no rows of weights."""
    return a * x if a else m.where(x < x, x, 0.0)


def _bound(m: Any, x: Any, low: float, high: float) -> Any:
    return m.where(x < low, low, m.where(x > high, high, x))
