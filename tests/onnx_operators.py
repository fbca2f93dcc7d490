"""The operators RNN, LSTM and GRU row by row in float64, as onnx/defs/rnn says them; attributes as in the node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Function = Callable[[Array], Array]

DEFAULTS = {"RNN": ["Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}
DEFAULT_ALPHA = {"LeakyRelu": 0.01, "ThresholdedRelu": 1, "HardSigmoid": 0.2, "Elu": 1, "Affine": 1}
DEFAULT_BETA = {"HardSigmoid": 0.5, "Affine": 0.0}
WITH_ALPHA = ("Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu")
WITH_BETA = ("Affine", "ScaledTanh", "HardSigmoid")


def activation(name: str, x: Array, alpha: float, beta: float) -> Array:
    values: dict[str, Callable[[], Array]] = {
        "Relu": lambda: x * (x > 0),
        "Tanh": lambda: np.tanh(x),
        "Sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "Affine": lambda: alpha * x + beta,
        "LeakyRelu": lambda: np.where(x >= 0, x, alpha * x),
        "ThresholdedRelu": lambda: np.where(x >= alpha, x, 0),
        "ScaledTanh": lambda: alpha * np.tanh(beta * x),
        "HardSigmoid": lambda: np.clip(alpha * x + beta, 0, 1),
        "Elu": lambda: np.where(x >= 0, x, alpha * np.expm1(x)),
        "Softsign": lambda: x / (1 + np.abs(x)),
        "Softplus": lambda: np.log1p(np.exp(x)),
    }
    return values[name]()


def run(op: str, given: Mapping[str, Array], attributes: Mapping[str, Any]) -> dict[str, Array]:
    """Inputs by the operator's names -> Y, Y_h, Y_c, all float64."""
    given = {name: value.astype(np.float64) for name, value in given.items()}
    layout, direction = attributes.get("layout", 0), attributes.get("direction", "forward")
    if layout:
        swapped = [name for name in ("X", "initial_h", "initial_c") if name in given]
        given |= {name: given[name].swapaxes(0, 1) for name in swapped}
    X, W, R = given["X"], given["W"], given["R"]
    (T, N, _), (D, _, H) = X.shape, R.shape
    lengths = given.get("sequence_lens", np.full(N, T)).astype(int)
    Y, Y_h, Y_c = np.zeros((T, D, N, H)), np.zeros((D, N, H)), np.zeros((D, N, H))
    functions = _functions(op, attributes, D)
    for d in range(D):
        backwards = direction == "reverse" or d == 1
        B = given["B"][d] if "B" in given else np.zeros(2 * len(W[d]))
        P = given["P"][d] if "P" in given else np.zeros(3 * H)
        for n in range(N):
            h = given["initial_h"][d, n] if "initial_h" in given else np.zeros(H)
            c = given["initial_c"][d, n] if "initial_c" in given else np.zeros(H)
            steps = range(lengths[n])
            for t in reversed(steps) if backwards else steps:
                h, c = _step(op, X[t, n], h, c, W[d], R[d], B, P, functions[d], attributes)
                Y[t, d, n] = h
            Y_h[d, n], Y_c[d, n] = h, c
    if layout:
        Y, Y_h, Y_c = Y.transpose(2, 0, 1, 3), Y_h.swapaxes(0, 1), Y_c.swapaxes(0, 1)
    return {"Y": Y, "Y_h": Y_h, "Y_c": Y_c} if op == "LSTM" else {"Y": Y, "Y_h": Y_h}


def _functions(op: str, attributes: Mapping[str, Any], D: int) -> list[list[Function]]:
    alphas, betas = list(attributes.get("activation_alpha", [])), list(attributes.get("activation_beta", []))
    made: list[Function] = []
    for name in attributes.get("activations", DEFAULTS[op] * D):
        alpha = beta = np.nan
        if name in WITH_ALPHA:
            alpha = np.float64(np.float32(alphas.pop(0))) if alphas else np.float64(np.float32(DEFAULT_ALPHA[name]))
        if name in WITH_BETA:
            beta = np.float64(np.float32(betas.pop(0))) if betas else DEFAULT_BETA[name]
        made.append(lambda x, name=name, alpha=alpha, beta=beta: activation(name, x, alpha, beta))  # type: ignore[misc]
    each = len(DEFAULTS[op])
    return [made[d * each : (d + 1) * each] for d in range(D)]


def _step(
    op: str,
    x: Array,
    h: Array,
    c: Array,
    W: Array,
    R: Array,
    B: Array,
    P: Array,
    functions: list[Function],
    attributes: Mapping[str, Any],
) -> tuple[Array, Array]:
    threshold = attributes.get("clip", np.inf)

    def gate(k: int, function: Function, more: Array | float = 0.0, seen: Array = h) -> Array:
        block = slice(k * len(h), (k + 1) * len(h))
        Wb, Rb = np.split(B, 2)
        total = W[block] @ x + R[block] @ seen + Wb[block] + Rb[block] + more
        return function(np.clip(total, -threshold, threshold))

    f = functions[0]
    if op == "RNN":
        return gate(0, f), c
    if op == "GRU":
        z, r = gate(0, f), gate(1, f)
        if attributes.get("linear_before_reset", 0):
            Rh, Rbh = R[2 * len(h) :], B[5 * len(h) :]
            candidate = gate(2, functions[1], more=(r - 1) * (Rh @ h + Rbh))
        else:
            candidate = gate(2, functions[1], seen=r * h)
        return (1 - z) * candidate + z * h, c
    p_i, p_o, p_f = np.split(P, 3)
    i = gate(0, f, p_i * c)
    forget = 1 - i if attributes.get("input_forget", 0) else gate(2, f, p_f * c)
    c = forget * c + i * gate(3, functions[1])
    return gate(1, f, p_o * c) * functions[2](c), c
