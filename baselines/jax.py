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
- The inputs are projected before the scan; biases are added in it, where they cost nothing, and before it a pass over
  all that was projected (LSTM, 256, 256, 48, 100, forward: 70 ms, and 89). The weights' memory is donated to those that
  follow.
- tanh is only vectorised over the whole of what a product made, not over a gate's part of it: all sigmoids are a tanh,
  (1 + tanh(a / 2)) / 2, in one with that of an LSTM, and a GRU takes both of its functions over the whole width, a
  third of each for nothing. Forward, ms: LSTM (64, 64, 48, 200) 8.8, and 14.9; GRU 7.0, and 14.6; GRU (1, 32, 1, 1000)
  0.28, and 0.71.

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

from . import memory
from .cells import Array
from .network import BETAS, CLIP_NORM, EPS, Objective

memory.keep()

Arrays = dict[str, jax.Array]
States = tuple[jax.Array, ...]


class Cell(NamedTuple):
    """A step and its derivative; the first of the states is h, (N, H) each, or (H,) for one lane."""

    step: Callable[[jax.Array, jax.Array, States], tuple[States, States]]
    """From W_ih x + b_ih, W_hh h + b_hh and the states: the states after, and what else `back` wants to see."""
    back: Callable[[States, States, jax.Array, States], tuple[jax.Array, jax.Array, States]]
    """From the gradients of the states after, the states before, h after, and what was kept: the gradients of those
    two sums and of the states before, but for what goes through W_hh."""
    states: int = 1


def elman(act: Callable[[jax.Array], jax.Array], slope: Callable[[jax.Array], jax.Array]) -> Cell:
    """An activation, and its derivative in terms of its result h."""

    def step(p: jax.Array, u: jax.Array, before: States) -> tuple[States, States]:
        return (act(p + u),), ()

    def back(d: States, before: States, h: jax.Array, kept: States) -> tuple[jax.Array, jax.Array, States]:
        delta = slope(h) * d[0]
        return delta, delta, (jnp.zeros_like(h),)

    return Cell(step, back)


def lstm_step(p: jax.Array, u: jax.Array, before: States) -> tuple[States, States]:
    """As `cells.LSTM`, with one tanh over all gates (see above)."""
    is_g = np.repeat([False, False, True, False], before[0].shape[-1])
    factor, offset = (np.where(is_g, of_g, 0.5).astype(p.dtype) for of_g in (1, 0))
    gates = jnp.tanh((p + u) * factor) * factor + offset
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = f * before[1] + i * g
    tanh_c = jnp.tanh(c)
    return (o * tanh_c, c), (gates, tanh_c)


def lstm_back(d: States, before: States, h: jax.Array, kept: States) -> tuple[jax.Array, jax.Array, States]:
    (gates, tanh_c), (d_h, d_c) = kept, d
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    d_c += d_h * o * (1 - tanh_c * tanh_c)
    parts = d_c * g * i * (1 - i), d_c * before[1] * f * (1 - f), d_c * i * (1 - g * g), d_h * tanh_c * o * (1 - o)
    delta = jnp.concatenate(parts, axis=-1)
    return delta, delta, (jnp.zeros_like(h), d_c * f)


def gru_step(p: jax.Array, u: jax.Array, before: States) -> tuple[States, States]:
    """As `cells.GRU`, over the whole width (see above)."""
    (h,), H = before, before[0].shape[-1]
    r, z, _ = jnp.split(0.5 * jnp.tanh(0.5 * (p + u)) + 0.5, 3, axis=-1)
    n = jnp.tanh(p + jnp.tile(r, 3) * u)[..., 2 * H :]
    return (n + z * (h - n),), (r, z, n, u[..., 2 * H :])


def gru_back(d: States, before: States, h: jax.Array, kept: States) -> tuple[jax.Array, jax.Array, States]:
    (r, z, n, u_n), (d_h,) = kept, d
    d_n = d_h * (1 - z) * (1 - n * n)
    d_z = d_h * (before[0] - n) * z * (1 - z)
    d_r = d_n * u_n * r * (1 - r)
    d_p, d_u = (jnp.concatenate([d_r, d_z, last], axis=-1) for last in (d_n, d_n * r))
    return d_p, d_u, (d_h * z,)


CELLS = {
    "rnn_tanh": elman(jnp.tanh, lambda h: 1 - h * h),
    "rnn_sigmoid": elman(jax.nn.sigmoid, lambda h: h * (1 - h)),
    "rnn_relu": elman(lambda a: jnp.maximum(a, 0), lambda h: (h > 0).astype(h.dtype)),
    "lstm": Cell(lstm_step, lstm_back, states=2),
    "gru": Cell(gru_step, gru_back),
}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(cell: str, projected: jax.Array, W_hh: jax.Array, biases: States) -> jax.Array:
    """All h_t, from zeros, for projected (T, N, G*H), or (T, G*H) for one lane; biases: (b_ih, b_hh) or ()."""
    return recur_forward(cell, projected, W_hh, biases)[0]


def recur_forward(
    cell: str, projected: jax.Array, W_hh: jax.Array, biases: States
) -> tuple[jax.Array, tuple[Any, ...]]:
    """All h_t, and what `recur_back` wants: the states before too, cheaper written twice than cut out later."""
    W, H = W_hh.T, W_hh.shape[1]

    def step(before: States, p: jax.Array) -> tuple[States, tuple[States, jax.Array, States]]:
        u = W_hh @ before[0] if p.ndim == 1 else before[0] @ W
        if biases:
            p, u = p + biases[0], u + biases[1]
        after, kept = CELLS[cell].step(p, u, before)
        return after, (before, after[0], kept)

    zeros = jnp.zeros((*projected.shape[1:-1], H), projected.dtype)
    _, (before, h, kept) = jax.lax.scan(step, (zeros,) * CELLS[cell].states, projected)
    return h, (before, h, kept, W_hh, biases)


def recur_back(cell: str, saved: tuple[Any, ...], d_hidden: jax.Array) -> tuple[jax.Array, jax.Array, States]:
    """The gradients of what was projected, of W_hh, the sum over the steps of d_t h_{t-1}^T, and of the biases."""
    before, h, kept, W_hh, biases = saved

    def step(back: States, now: tuple[Any, ...]) -> tuple[States, States]:
        d_h, *of_step = now
        d_p, d_u, d_before = CELLS[cell].back((back[0] + d_h, *back[1:]), *of_step)
        return (d_before[0] + d_u @ W_hh, *d_before[1:]), (d_p,) if d_p is d_u else (d_p, d_u)

    zeros = tuple(jnp.zeros_like(state[0]) for state in before)
    _, deltas = jax.lax.scan(step, zeros, (d_hidden, before, h, kept), reverse=True)
    d_p, d_u = deltas[0], deltas[-1]
    return d_p, outer(d_u, before[0]), tuple(rows(d).sum(0) for d in (d_p, d_u)) if biases else ()


recur.defvjp(recur_forward, recur_back)


def rows(a: jax.Array) -> jax.Array:
    return a.reshape(-1, a.shape[-1])


MANY = 1000
"""Rows from which on a^T d is worth a transpose: with I = H = 256, T N = 4800 and four gates 25 ms, and 38 for d^T a;
with I = H = 1024 and T N = 50 a training step of an LSTM takes 104 ms so, and 67 with d^T a."""


def outer(d: jax.Array, a: jax.Array) -> jax.Array:
    """The sum over the rows of d^T a: over many of them as (a^T d)^T, which XLA left to itself would turn round."""
    d, a = rows(d), rows(a)
    return jax.lax.optimization_barrier(a.T @ d).T if len(a) > MANY else d.T @ a


@jax.custom_vjp
def affine(a: jax.Array, W: jax.Array) -> jax.Array:
    """a W^T over the last axis, as one product of two matrices."""
    return (rows(a) @ W.T).reshape(*a.shape[:-1], len(W))


def affine_forward(a: jax.Array, W: jax.Array) -> tuple[jax.Array, States]:
    return affine(a, W), (a, W)


def affine_back(saved: States, d: jax.Array) -> States:
    a, W = saved
    return (rows(d) @ W).reshape(a.shape), outer(d, a)


affine.defvjp(affine_forward, affine_back)


def forward(cell: str, weights: Arrays, x: jax.Array) -> jax.Array:
    """The output (T, N, O or H) for x (T, N, I)."""
    projected = affine(x, weights["weight_ih_l0"])
    biases = (weights["bias_ih_l0"], weights["bias_hh_l0"]) if "bias_ih_l0" in weights else ()
    if x.shape[1] == 1:
        h = recur(cell, projected[:, 0], weights["weight_hh_l0"], biases)[:, None]
    else:
        h = recur(cell, projected, weights["weight_hh_l0"], biases)
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
