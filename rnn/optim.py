"""Optimizers and gradient clipping, with PyTorch's formulas.

An optimizer puts new arrays into the dict of weights and into its own `state`; it never writes into an old
array. So a `Run` made before a step can still be differentiated, and a shallow copy of both dicts is a
snapshot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from . import _check
from ._backends.base import Array
from ._extension import each, sum_of_squares

__all__ = ["SGD", "Adam", "Optimizer", "clip_norm"]


class Optimizer(Protocol):
    """Takes one step at a time."""

    state: dict[str, Array]
    """What it remembers, "kind.weight" -> array; empty before the first step. Replaced, not written into."""

    def step(self, weights: dict[str, Array], gradients: Mapping[str, Array]) -> None:
        """Replace each array in `weights`, given the gradient of the same name.

        Raises ValueError if names, shapes or dtypes differ; then nothing has changed.
        """
        ...

    def config(self) -> dict[str, Any]:
        """`name` and the constructor's arguments, as JSON values."""
        ...

    def state_shapes(self, weights: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
        """Names and shapes that `state` has after a step over `weights`."""
        ...


class SGD:
    """Gradient descent, with momentum if asked for: b = momentum * b + g (the first b is g), w = w - lr * b.

    As torch.optim.SGD (Sutskever et al., "On the importance of initialization and momentum in deep learning",
    2013, with the learning rate outside). lr > 0, 0 <= momentum < 1, else ValueError.
    """

    def __init__(self, lr: float, momentum: float = 0.0) -> None:
        self.lr = _check.number("lr", lr, 0, open_low=True)
        self.momentum = _check.number("momentum", momentum, 0, 1)
        self.state: dict[str, Array] = {}

    def step(self, weights: dict[str, Array], gradients: Mapping[str, Array]) -> None:
        _same(weights, gradients, self)
        updates = [gradients[name] for name in weights]
        if self.momentum:
            keys = [f"momentum.{name}" for name in weights]
            if self.state:
                updates = _plus(updates, self.momentum, [self.state[key] for key in keys])
            else:
                updates = [update.copy() for update in updates]
            self.state = dict(zip(keys, updates, strict=True))
        weights.update(zip(weights, _plus(list(weights.values()), -self.lr, updates), strict=True))

    def config(self) -> dict[str, Any]:
        return {"name": "SGD", "lr": self.lr, "momentum": self.momentum}

    def state_shapes(self, weights: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
        return {f"momentum.{name}": weight.shape for name, weight in weights.items()} if self.momentum else {}


class Adam:
    """Kingma and Ba, "Adam: a method for stochastic optimization", 2015, as torch.optim.Adam:

        m = b1 m + (1 - b1) g      v = b2 v + (1 - b2) g^2
        w = w - lr / (1 - b1^k) * m / (sqrt(v) / sqrt(1 - b2^k) + eps)      at step k = 1, 2, ...

    lr > 0, both betas in [0, 1), eps > 0, else ValueError.
    """

    def __init__(self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.lr = _check.number("lr", lr, 0, open_low=True)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"betas: expected two numbers, got {betas!r}")
        self.betas = (_check.number("betas[0]", betas[0], 0, 1), _check.number("betas[1]", betas[1], 0, 1))
        self.eps = _check.number("eps", eps, 0, open_low=True)
        self.state: dict[str, Array] = {}

    def step(self, weights: dict[str, Array], gradients: Mapping[str, Array]) -> None:
        _same(weights, gradients, self)
        b1, b2 = self.betas
        count = int(self.state["step"][0]) + 1 if self.state else 1
        settings = (b1, 1 - b1, b2, 1 - b2, self.lr / (1 - b1**count), math.sqrt(1 - b2**count), self.eps)
        kinds = [f"{kind}." for kind in "mv"]
        given = [list(weights.values()), [gradients[name] for name in weights]]
        for kind in kinds:
            given.append([self.state[kind + name] if self.state else np.zeros_like(weights[name]) for name in weights])
        updated, *moments = _adam(settings, *given)
        self.state = {"step": np.array([count], np.float64)}
        for kind, made in zip(kinds, moments, strict=True):
            self.state |= {kind + name: moment for name, moment in zip(weights, made, strict=True)}
        weights.update(zip(weights, updated, strict=True))

    def config(self) -> dict[str, Any]:
        return {"name": "Adam", "lr": self.lr, "betas": list(self.betas), "eps": self.eps}

    def state_shapes(self, weights: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
        moments = {f"{kind}.{name}": weight.shape for kind in "mv" for name, weight in weights.items()}
        return {"step": (1,), **moments}


def _adam(settings: tuple[float, ...], *given: list[Array]) -> Sequence[list[Array]]:
    """Lists of the weights, m and v after a step, from b1, 1 - b1, b2, 1 - b2, rate, root and eps, and from lists of
    weights, gradients, m and v."""
    made = each("adam", settings, *given)
    if made is not None:
        return made
    b1, rest1, b2, rest2, rate, root, eps = settings
    after: list[list[Array]] = [[], [], []]
    for weight, gradient, m, v in zip(*given, strict=True):
        m = b1 * m + rest1 * gradient
        v = b2 * v + rest2 * (gradient * gradient)
        for kept, new in zip(after, (weight - rate * m / (np.sqrt(v) / root + eps), m, v), strict=True):
            kept.append(new)
    return after


def _plus(ys: list[Array], a: float, xs: list[Array]) -> list[Array]:
    """y + a x for each."""
    made = each("axpy", (a,), xs, ys)
    return [y + a * x for y, x in zip(ys, xs, strict=True)] if made is None else made[0]


def clip_norm(gradients: dict[str, Array], max_norm: float) -> float:
    """Scale all gradients together so that their L2 norm is at most `max_norm`; returns the norm before.

    As torch.nn.utils.clip_grad_norm_: the factor is min(1, max_norm / (norm + 1e-6)). The dict gets new
    arrays. With a norm that is NaN or infinite nothing is scaled. Pascanu et al., "On the difficulty of
    training recurrent neural networks", 2013. Raises TypeError or ValueError unless max_norm > 0.
    """
    max_norm = _check.number("max_norm", max_norm, 0, open_low=True)
    norm = global_norm(gradients)
    factor = max_norm / (norm + 1e-6)
    if factor < 1 and math.isfinite(norm):
        gradients.update({name: gradient * factor for name, gradient in gradients.items()})
    return norm


def global_norm(arrays: Mapping[str, Array]) -> float:
    """L2 norm over all arrays, summed in float64: finite only if every element is."""
    return math.sqrt(sum(map(sum_of_squares, arrays.values())))


def _same(weights: Mapping[str, Array], gradients: Mapping[str, Array], optimizer: Optimizer) -> None:
    expected = optimizer.state_shapes(weights)
    if optimizer.state and expected != {key: array.shape for key, array in optimizer.state.items()}:
        raise ValueError("weights: expected those of the optimizer's earlier steps, got other names or shapes")
    if weights.keys() != gradients.keys():
        raise ValueError(f"gradients: expected the names {', '.join(weights)}, got {', '.join(gradients)}")
    for name, weight in weights.items():
        gradient = gradients[name]
        if gradient.shape != weight.shape or gradient.dtype != weight.dtype:
            raise ValueError(
                f"gradients[{name!r}]: expected {weight.dtype} {weight.shape} like the weight, "
                f"got {gradient.dtype} {gradient.shape}"
            )
