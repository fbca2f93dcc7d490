"""Layers in a few lines of NumPy with the constructors, weights and results of the real ones, and own cells."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def sigmoid(x: Array) -> Array:
    result: Array = 0.5 + 0.5 * np.tanh(0.5 * x)
    return result


functions = types.SimpleNamespace(
    sigmoid=sigmoid,
    tanh=np.tanh,
    relu=lambda x: np.maximum(x, 0),
    exp=np.exp,
    log=np.log,
    sqrt=np.sqrt,
    maximum=np.maximum,
    minimum=np.minimum,
    where=lambda condition, a, b: np.where(condition, a, b),
)


class Run(NamedTuple):
    output: Array
    state: Any


class StandIn:
    """A layer whose cell is `_cell(config)`: an object with gates, states, vectors and step."""

    _cell: Callable[[dict[str, Any]], Any]
    _options: tuple[str, ...] = ()

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        *,
        output_size: int | None = None,
        bias: bool = True,
        zoneout: float = 0.0,
        merge: str = "concat",
        reverse: bool = False,
        seed: Any = None,
        dtype: str = "float32",
        **options: Any,
    ) -> None:
        assert set(options) <= set(self._options), options
        self._config: dict[str, Any] = {
            "input_size": input_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "bidirectional": bidirectional,
            "output_size": output_size,
            "bias": bias,
            "zoneout": zoneout,
            "merge": merge,
            "reverse": reverse,
            "dtype": str(np.dtype(dtype)),
            **options,
        }
        self.cell = type(self)._cell(self._config)
        rng = np.random.default_rng(seed)
        self.weights = {n: rng.uniform(-1, 1, shape).astype(dtype) for n, shape in self._shapes().items()}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        c = self._config
        H, rows, D = c["hidden_size"], len(self.cell.gates) * c["hidden_size"], 1 + c["bidirectional"]
        wide = D * H if c["merge"] == "concat" else H
        shapes: dict[str, tuple[int, ...]] = {}
        for k in range(c["num_layers"]):
            for end in [f"_l{k}", f"_l{k}_reverse"][:D]:
                shapes[f"weight_ih{end}"] = (rows, wide if k else c["input_size"])
                shapes[f"weight_hh{end}"] = (rows, H)
                if c["bias"]:
                    shapes |= {f"bias_ih{end}": (rows,), f"bias_hh{end}": (rows,)}
                shapes |= {f"{vector}{end}": (H,) for vector in self.cell.vectors}
        if c["output_size"] is not None:
            shapes["weight_ho"] = (c["output_size"], wide)
            if c["bias"]:
                shapes["bias_o"] = (c["output_size"],)
        return shapes

    def config(self) -> dict[str, Any]:
        return dict(self._config)

    def state_dict(self) -> dict[str, Array]:
        return {name: array.copy() for name, array in self.weights.items()}

    def load_state_dict(self, state_dict: dict[str, Array]) -> None:
        assert {n: (a.shape, str(a.dtype)) for n, a in state_dict.items()} == {
            n: (shape, self._config["dtype"]) for n, shape in self._shapes().items()
        }
        self.weights = dict(state_dict)

    def forward(self, x: Array, state: Any = None, *, lengths: Array | None = None) -> Run:
        c = self._config
        T, N, _ = x.shape
        D, H, S = 1 + c["bidirectional"], c["hidden_size"], len(self.cell.states)
        assert str(x.dtype) == c["dtype"]
        lengths = np.full(N, T) if lengths is None else lengths
        every = c["num_layers"] * D
        shape = (N, H) if every == 1 else (every, N, H)
        initial = state if S > 1 else (state,)
        if state is None:
            initial = [np.zeros(shape, x.dtype)] * S
        assert [a.shape for a in initial] == [shape] * S
        initial = [a.reshape(every, N, H) for a in initial]
        final = [np.zeros((every, N, H), x.dtype) for _ in range(S)]
        for k in range(c["num_layers"]):
            parts = []
            for d, end in enumerate([f"_l{k}", f"_l{k}_reverse"][:D]):
                begin = [a[k * D + d] for a in initial]
                part, last = self._direction(x, begin, lengths, end, bool(d) or c["reverse"])
                parts.append(part)
                for s in range(S):
                    final[s][k * D + d] = last[s]
            x = np.concatenate(parts, axis=2) if c["merge"] == "concat" else sum(parts[1:], start=parts[0])
        if c["output_size"] is not None:
            x = x @ self.weights["weight_ho"].T + self.weights.get("bias_o", 0)
        final = [a.reshape(shape) for a in final]
        return Run(x, tuple(final) if S > 1 else final[0])

    def _direction(
        self, x: Array, state: list[Array], lengths: Array, end: str, backwards: bool
    ) -> tuple[Array, list[Array]]:
        w = {name.removesuffix(end): array for name, array in self.weights.items() if name.endswith(end)}
        gates, H = list(self.cell.gates), self._config["hidden_size"]

        def rows(array: Array, gate: str) -> Array:
            return array[gates.index(gate) * H : (gates.index(gate) + 1) * H]

        def product(gate: str) -> Callable[[Array], Array]:
            bias = rows(w["bias_hh"], gate) if "bias_hh" in w else 0
            return lambda v: v @ rows(w["weight_hh"], gate).T + bias

        u = types.SimpleNamespace(**{gate: product(gate) for gate in gates}, **{v: w[v] for v in self.cell.vectors})
        bias = w.get("bias_ih", np.zeros(len(gates) * H, x.dtype))
        y = np.zeros((len(x), x.shape[1], H), x.dtype)
        for t in reversed(range(len(x))) if backwards else range(len(x)):
            alive = (t < lengths)[:, None]
            from_input = np.where(alive, x[t], 0) @ w["weight_ih"].T + bias
            named = {gate: from_input[:, i * H : (i + 1) * H] for i, gate in enumerate(gates)}
            made = self.cell.step(types.SimpleNamespace(**named), u, *state)
            made = made if isinstance(made, tuple) else (made,)
            state = [np.where(alive, new, old).astype(x.dtype) for new, old in zip(made, state, strict=True)]
            y[t] = np.where(alive, state[0], 0)
        return y, state


class _Elman:
    gates, states, vectors = ("h",), ("h",), ()

    def __init__(self, config: dict[str, Any]) -> None:
        self.act = getattr(functions, config.get("nonlinearity", "tanh"))

    def step(self, x: Any, u: Any, h: Array) -> Any:
        return self.act(x.h + u.h(h))


class _LSTM:
    states = ("h", "c")

    def __init__(self, config: dict[str, Any]) -> None:
        self.coupled = config.get("coupled", False)
        self.gates = "igo" if self.coupled else "ifgo"
        self.vectors = [f"peephole_{g}" for g in self.gates if g != "g" and config.get("peepholes", False)]

    def step(self, x: Any, u: Any, h: Array, c: Array) -> Any:
        p_i, p_f, p_o = (getattr(u, f"peephole_{g}", 0) for g in "ifo")
        i = sigmoid(x.i + u.i(h) + p_i * c)
        f = 1 - i if self.coupled else sigmoid(x.f + u.f(h) + p_f * c)
        c = f * c + i * np.tanh(x.g + u.g(h))
        return sigmoid(x.o + u.o(h) + p_o * c) * np.tanh(c), c


class _GRU:
    gates, states, vectors = ("r", "z", "n"), ("h",), ()

    def __init__(self, config: dict[str, Any]) -> None:
        self.after = config.get("reset_after", True)

    def step(self, x: Any, u: Any, h: Array) -> Any:
        r, z = sigmoid(x.r + u.r(h)), sigmoid(x.z + u.z(h))
        n = np.tanh(x.n + (r * u.n(h) if self.after else u.n(r * h)))
        return (1 - z) * n + z * h


class _MGU:
    gates, states, vectors = ("f", "n"), ("h",), ()

    def __init__(self, config: dict[str, Any]) -> None:
        pass


class RNN(StandIn):
    _cell, _options = _Elman, ("nonlinearity",)


class LSTM(StandIn):
    _cell, _options = _LSTM, ("peepholes", "coupled")


class GRU(StandIn):
    _cell, _options = _GRU, ("reset_after",)


class MGU(StandIn):
    _cell, _options = _MGU, ()


def cell(definition: type) -> type[StandIn]:
    """What `rnn.cell` makes of a user's class."""
    return type(definition.__name__, (StandIn,), {"_cell": staticmethod(lambda config: definition()), "_options": ()})
