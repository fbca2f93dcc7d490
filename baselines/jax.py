"""The network in JAX, as fast as JAX is on a CPU: a scan under jit, one compiled training step.

What made it fast, measured with JAX 0.10.2 in float32 on one AMD EPYC core (Zen 4), (I, H, N, T) as named:

- The scan's derivative is written down: a second scan back in time that leaves delta, then each gradient of a weight as
  one product over all time steps. JAX's own derivative adds to the gradient of W_hh in each step.
  A training step with a readout of I outputs, ms: (1, 8, 1, 2048) 0.32, and 0.44; (1, 32, 32, 1000) 9.0, and 13.9;
  (64, 64, 48, 200) 11.4, and 14.0; (256, 256, 48, 100) 66, and 85; (1024, 1024, 1, 256) 72, and 84.
- `unroll` stays 1. 2 to 16 are no faster where a product takes its time (64, 64, 48, 200: 1.5 to 1.7 ms), slower where
  it does not (1, 8, 1, 2048: 0.17 ms at 2, 0.34 at 4, and 0.11), and take up to seven times as long to compile.
- One lane is a vector, W h and not h W^T: 13.8 ms, and 18.1 (1024, 1024, 1, 256). Several lanes want W^T made before
  the scan: 3.4 ms, and 7.7 contracted as it is (1, 32, 32, 1000).
- The inputs are projected before the scan, biases added there; the weights' memory is donated to those that follow.

`jax.default_matmul_precision` changes nothing here: products on a CPU are of full precision.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .cells import Array
from .network import BETAS, CLIP_NORM, EPS, Objective

Arrays = dict[str, jax.Array]


class Cell(NamedTuple):
    """An activation, and its derivative in terms of its result h."""

    act: Callable[[jax.Array], jax.Array]
    slope: Callable[[jax.Array], jax.Array]


CELLS = {
    "rnn_tanh": Cell(jnp.tanh, lambda h: 1 - h * h),
    "rnn_sigmoid": Cell(jax.nn.sigmoid, lambda h: h * (1 - h)),
    "rnn_relu": Cell(lambda a: jnp.maximum(a, 0), lambda h: (h > 0).astype(h.dtype)),
}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(cell: str, projected: jax.Array, W_hh: jax.Array) -> jax.Array:
    """h_t = act(p_t + W_hh h_{t-1}), from zeros, for projected (T, N, H), or (T, H) for one lane; all h_t."""
    return recur_forward(cell, projected, W_hh)[0]


def recur_forward(cell: str, projected: jax.Array, W_hh: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """All h_t, and what `recur_back` wants: all h_{t-1} too, which are cheaper written twice than cut out later."""
    act = CELLS[cell].act
    W = W_hh.T

    def step(h: jax.Array, p: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        after = act(p + (W_hh @ h if h.ndim == 1 else h @ W))
        return after, (h, after)

    _, (before, h) = jax.lax.scan(step, jnp.zeros_like(projected[0]), projected)
    return h, (before, h, W_hh)


def recur_back(cell: str, kept: tuple[jax.Array, ...], d_hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """d_t = act'(a_t) (dh_t + W_hh^T d_{t+1}): all d_t, and the gradient of W_hh, the sum of d_t h_{t-1}^T."""
    before, h, W_hh = kept
    slope = CELLS[cell].slope

    def step(back: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h, d_h = now
        delta = slope(h) * (d_h + back)
        return delta @ W_hh, delta

    _, delta = jax.lax.scan(step, jnp.zeros_like(h[0]), (h, d_hidden), reverse=True)
    return delta, (rows(before).T @ rows(delta)).T


recur.defvjp(recur_forward, recur_back)


def rows(a: jax.Array) -> jax.Array:
    return a.reshape(-1, a.shape[-1])


def affine(a: jax.Array, W: jax.Array) -> jax.Array:
    """a W^T over the last axis, as one product of two matrices: its derivative is a faster one than that of three."""
    return (rows(a) @ W.T).reshape(*a.shape[:-1], len(W))


def forward(cell: str, weights: Arrays, x: jax.Array) -> jax.Array:
    """The output (T, N, O or H) for x (T, N, I)."""
    projected = affine(x, weights["weight_ih_l0"])
    if "bias_ih_l0" in weights:
        projected += weights["bias_ih_l0"] + weights["bias_hh_l0"]
    if x.shape[1] == 1:
        h = recur(cell, projected[:, 0], weights["weight_hh_l0"])[:, None]
    else:
        h = recur(cell, projected, weights["weight_hh_l0"])
    if "weight_ho" not in weights:
        return h
    y = affine(h, weights["weight_ho"])
    return y + weights["bias_o"] if "bias_o" in weights else y


def differentiate(
    cell: str, objective: Objective, weights: Arrays, x: jax.Array, target: jax.Array
) -> tuple[jax.Array, tuple[Arrays, jax.Array]]:
    """The loss, and its gradients with respect to the weights and to x."""

    def loss(weights: Arrays, x: jax.Array) -> jax.Array:
        y = forward(cell, weights, x)
        return objective.scale * jnp.mean((y[objective.skip :] - target[objective.skip :]) ** 2)

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(weights, x)
    return value, gradients


class Rates(NamedTuple):
    """What a step of the optimizer is told: sgd the rate; adam rate / (1 - b1^k) and sqrt(1 - b2^k) at step k."""

    step_size: Array
    root: Array


def train(
    cell: str, objective: Objective, weights: Arrays, moments: tuple[Arrays, ...], x: jax.Array, target: jax.Array,
    rates: Rates,
) -> tuple[Arrays, tuple[Arrays, ...], jax.Array, jax.Array]:  # fmt: skip
    """The next weights and moments, the loss before, and the gradient of x (unasked, it would not be computed)."""
    value, (gradients, d_x) = differentiate(cell, objective, weights, x, target)
    update = sgd if objective.update == "sgd" else adam
    return *update(weights, moments, gradients, rates), value, d_x


def sgd(
    weights: Arrays, moments: tuple[Arrays, ...], gradients: Arrays, rates: Rates
) -> tuple[Arrays, tuple[Arrays, ...]]:
    return {name: weight - rates.step_size * gradients[name] for name, weight in weights.items()}, moments


def adam(
    weights: Arrays, moments: tuple[Arrays, ...], gradients: Arrays, rates: Rates
) -> tuple[Arrays, tuple[Arrays, ...]]:
    b1, b2 = BETAS
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in gradients.values()))
    clip = jnp.minimum(1, CLIP_NORM / (norm + 1e-6))
    g = {name: clip * gradient for name, gradient in gradients.items()}
    m = {name: b1 * moments[0][name] + (1 - b1) * g[name] for name in g}
    v = {name: b2 * moments[1][name] + (1 - b2) * g[name] ** 2 for name in g}
    after = {
        name: weight - rates.step_size * m[name] / (jnp.sqrt(v[name]) / rates.root + EPS)
        for name, weight in weights.items()
    }
    return after, (m, v)


class Batch(NamedTuple):
    x: jax.Array
    target: jax.Array


class Network:
    """`network.Network` in JAX. A function is compiled when it first meets a shape; `compile_seconds` is how long all
    of that took up to now."""

    def __init__(self, cell: str, weights: Mapping[str, Array], objective: Objective) -> None:
        self._dtype = weights["weight_hh_l0"].dtype
        if self._dtype == np.float64:
            jax.config.update("jax_enable_x64", True)
        self._adam, self._count = objective.update == "adam", 0
        self._weights = {name: jnp.array(weight) for name, weight in weights.items()}
        self._moments = tuple(jax.tree.map(jnp.zeros_like, self._weights) for _ in range(2 if self._adam else 0))
        self._functions = {
            "forward": jax.jit(partial(forward, cell)),
            "differentiate": jax.jit(partial(differentiate, cell, objective)),
            "train": jax.jit(partial(train, cell, objective), donate_argnums=(0, 1)),
        }
        self._compiled: dict[tuple[str, tuple[int, ...]], Any] = {}
        self.compile_seconds = 0.0

    def batch(self, x: Array, target: Array) -> Batch:
        return Batch(jnp.array(x), jnp.array(target))

    def forward(self, batch: Batch) -> jax.Array:
        output: jax.Array = self._call("forward", self._weights, batch.x)
        return output.block_until_ready()

    def train(self, batch: Batch, rate: float) -> float:
        self._count += 1
        b1, b2 = BETAS if self._adam else (0.0, 0.0)
        rates = Rates(*np.array([rate / (1 - b1**self._count), (1 - b2**self._count) ** 0.5], self._dtype))
        made = self._call("train", self._weights, self._moments, *batch, rates)
        self._weights, self._moments, value, _ = jax.block_until_ready(made)
        return float(value)

    def gradients(self, batch: Batch) -> dict[str, Array]:
        _, (gradients, d_x) = self._call("differentiate", self._weights, *batch)
        return {name: np.array(gradient) for name, gradient in {**gradients, "x": d_x}.items()}

    def weights(self) -> dict[str, Array]:
        return {name: np.array(weight) for name, weight in self._weights.items()}

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call one of the functions, compiled for these arguments' shapes; only those of a batch ever differ."""
        batch = arguments[1] if name != "train" else arguments[2]
        compiled = self._compiled.get((name, batch.shape))
        if compiled is None:
            start = time.perf_counter()
            compiled = self._functions[name].lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - start
            self._compiled[name, batch.shape] = compiled
        return compiled(*arguments)


_threads = 0


def set_threads(n: int) -> None:
    """Bind this process to n of the processors that it may run on, and start XLA, which counts them when it starts.

    There is no other way: XLA has no setting for its number of threads, only one for a single thread or many. Raises
    ValueError where there are fewer than n, and for another n the second time.
    """
    global _threads
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < n:
        raise ValueError(f"n: expected at most the {len(processors)} processors of this process, got {n}")
    if _threads not in (0, n):
        raise ValueError(f"n: expected {_threads}, with which XLA has started, got {n}")
    os.sched_setaffinity(0, processors[:n])
    jax.devices()
    _threads = n


def versions() -> dict[str, str]:
    """JAX, and jaxlib, which carries XLA."""
    return {"jax": jax.__version__, "jaxlib": version("jaxlib")}
