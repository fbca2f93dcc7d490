"""A cell of one's own: ten lines of equations, at the speed of a built-in one.

    pip install "halide-rnn[jit,peers]"; python examples/own_cell.py

The cell is the light GRU of Ravanelli et al., "Light gated recurrent units for speech recognition", 2018: no reset
gate, and a ReLU where the GRU has tanh. This file builds it, checks its gradient, and times it against the same
equations in PyTorch, eager and compiled, and in JAX (whichever are installed).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rnn
from rnn.cells import relu, sigmoid

# ---- the cell


@rnn.cell
class LightGRU:
    """z = sigmoid(W_z x + U_z h)    n = relu(W_n x + U_n h)    h = z h + (1 - z) n"""

    gates = ("z", "n")
    states = ("h",)

    def step(self, x, u, h):  # type: ignore[no-untyped-def]  # values of the equations, not numbers
        z = sigmoid(x.z + u.z(h))
        n = relu(x.n + u.n(h))
        return z * h + (1 - z) * n


Array = NDArray[np.floating[Any]]
I, H, N, T = 64, 64, 32, 100


def check_gradient(seed: int = 0) -> float:
    """BPTT against a central difference in float64, along a random direction of all weights; the relative error."""
    rng = np.random.default_rng(seed)
    layer = LightGRU(5, 7, seed=rng, dtype="float64")
    x, factor = rng.standard_normal((9, 3, 5)), rng.standard_normal((9, 3, 7))
    start = layer.state_dict()
    direction = {name: rng.standard_normal(weight.shape) for name, weight in start.items()}

    def loss(distance: float) -> float:
        layer.load_state_dict({name: weight + distance * direction[name] for name, weight in start.items()})
        return float((layer.forward(x).output * factor).sum())

    expected = (loss(1e-6) - loss(-1e-6)) / 2e-6
    layer.load_state_dict(start)
    gradients = layer.bptt(layer.forward(x), factor).weights
    got = sum(float((gradients[name] * direction[name]).sum()) for name in gradients)
    return abs(got - expected) / abs(expected)


# ---- the same in other libraries: each gives a function that does one training step's forward and backward pass


def ours(x: Array, d_output: Array, weights: dict[str, Array]) -> Callable[[], Array]:
    layer = LightGRU(I, H)
    layer.load_state_dict(weights)

    def run() -> Array:
        return layer.bptt(layer.forward(x), d_output).x

    return run


def pytorch(x: Array, d_output: Array, weights: dict[str, Array], compiled: bool) -> Callable[[], Array]:
    import torch

    W_ih, W_hh, b_ih, b_hh = (torch.tensor(weight, requires_grad=True) for weight in weights.values())
    inputs, d = torch.tensor(x, requires_grad=True), torch.tensor(d_output)

    def step(from_input: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        z, n = (from_input + torch.nn.functional.linear(h, W_hh, b_hh)).chunk(2, 1)
        z = torch.sigmoid(z)
        return z * h + (1 - z) * torch.relu(n)

    one = torch.compile(step) if compiled else step

    def run() -> Array:
        inputs.grad = None
        h, states = inputs.new_zeros(N, H), []
        for from_input in torch.nn.functional.linear(inputs, W_ih, b_ih):
            h = one(from_input, h)
            states.append(h)
        torch.stack(states).backward(d)
        assert inputs.grad is not None
        return inputs.grad.numpy()

    return run


def jax(x: Array, d_output: Array, weights: dict[str, Array]) -> Callable[[], Array]:
    import jax
    import jax.numpy as jnp

    def loss(W_ih: Any, W_hh: Any, b_ih: Any, b_hh: Any, x: Any) -> Any:
        def step(h: Any, from_input: Any) -> Any:
            z, n = jnp.split(from_input + h @ W_hh.T + b_hh, 2, axis=1)
            z = jax.nn.sigmoid(z)
            h = z * h + (1 - z) * jax.nn.relu(n)
            return h, h

        return (jax.lax.scan(step, jnp.zeros((N, H), x.dtype), x @ W_ih.T + b_ih)[1] * d_output).sum()

    gradient = jax.jit(jax.grad(loss, argnums=tuple(range(5))))
    return lambda: np.asarray(gradient(*weights.values(), x)[4])


def best(run: Callable[[], Array], seconds: float = 1.0) -> float:
    """The shortest time of a call, after one that warms up."""
    run()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> int:
    print(f"relative error of the gradient, float64: {check_gradient():.1e}")
    rng = np.random.default_rng(1)
    x, d_output = (rng.standard_normal((T, N, size)).astype(np.float32) for size in (I, H))
    weights = LightGRU(I, H, seed=1).state_dict()
    rivals: dict[str, Callable[[], Callable[[], Array]]] = {
        "halide-rnn": lambda: ours(x, d_output, weights),
        "PyTorch": lambda: pytorch(x, d_output, weights, compiled=False),
        "PyTorch, torch.compile": lambda: pytorch(x, d_output, weights, compiled=True),
        "JAX": lambda: jax(x, d_output, weights),
    }
    expected, own_time = None, 0.0
    print(f"forward and backward pass, I={I} H={H} N={N} T={T}, float32:")
    for name, make in rivals.items():
        try:
            run = make()
            start = time.perf_counter()
            gradient = run()
            first = time.perf_counter() - start
        except ImportError as reason:
            print(f"  {name:24}  not measured: {reason}")
            continue
        expected = gradient if expected is None else expected
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)
        seconds = best(run)
        own_time = own_time or seconds
        print(f"  {name:24}  {seconds * 1e3:8.2f} ms  {seconds / own_time:6.1f} x   first call {first:6.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
