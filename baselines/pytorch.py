"""The network in PyTorch, as fast as PyTorch is on a CPU.

`torch.nn.RNN` with autograd is not that: its loop makes new tensors in each step, and its backward pass adds a step's
part to the gradient of the weights one step at a time. Here the layer is one autograd function around two scripted
loops that work in place, with each gradient of a weight as one product over all time steps; readout, loss and
optimizer are PyTorch's own. Both with a readout of I outputs in PyTorch 2.13, float32, one AMD EPYC core (Zen 4),
other work beside it, ms, forward and training step:

    (I, H, N, T)            nn.RNN           here
    (1, 8, 1, 2048)         6.6   63.4       2.6    9.1
    (1, 32, 32, 1000)       8.8   42.4       5.5   14.7
    (64, 64, 48, 200)       5.8   20.8       5.2   15.3
    (256, 256, 48, 100)    25.6   78.4      25.5   72.9
    (1024, 1024, 1, 256)   33.0  151.6      32.2   89.3
    (1, 16, 512, 512)      20.8   54.8      16.5   34.0

What else was tried: `torch.compile` takes no RNN as it is (Dynamo breaks the graph at it), and of a loop it unrolls
every time step; the same loops in Python take 18 ms where the scripted ones take 11 (1, 8, 1, 2048). "fused" optimizers
are no slower than the others, and Adam takes a third of the time (3 million weights: 1.7 ms, and 5.5). The time that is
left with many lanes is `tanh`, 2.5 ns a number where NumPy's takes 0.5; flushing denormals is off, as it is in NumPy.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from .cells import Array
from .network import BETAS, CLIP_NORM, EPS, Objective


def recur(cell: str, W_hh: torch.Tensor, states: torch.Tensor) -> None:
    """h_t = act(p_t + W_hh h_{t-1}), where states (T+1, N, H) hold h_0, p_1, p_2, ... before and all h after."""
    h = states.unbind(0)
    W = W_hh.t()
    for t in range(1, len(h)):
        h[t].addmm_(h[t - 1], W)
        if cell == "rnn_tanh":
            h[t].tanh_()
        elif cell == "rnn_relu":
            h[t].relu_()
        else:
            h[t].sigmoid_()


def recur_back(cell: str, W_hh: torch.Tensor, states: torch.Tensor, delta: torch.Tensor) -> None:
    """d_t = act'(a_t) (dy_t + W_hh^T d_{t+1}), where delta (T, N, H) holds dy before and d after."""
    h, d = states.unbind(0), delta.unbind(0)
    for t in range(len(d) - 1, -1, -1):
        if t < len(d) - 1:
            d[t].addmm_(d[t + 1], W_hh)
        if cell == "rnn_tanh":
            torch.ops.aten.tanh_backward(d[t], h[t + 1], grad_input=d[t])
        elif cell == "rnn_relu":
            torch.ops.aten.threshold_backward(d[t], h[t + 1], 0, grad_input=d[t])
        else:
            torch.ops.aten.sigmoid_backward(d[t], h[t + 1], grad_input=d[t])


with warnings.catch_warnings():
    # deprecated in favour of torch.compile, which unrolls loops (see above)
    warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
    recur = torch.jit.script(recur)
    recur_back = torch.jit.script(recur_back)


def hidden(
    cell: str, x: torch.Tensor, W_ih: torch.Tensor, W_hh: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """States (T+1, N, H), from zeros, for x (T, N, I); bias is the sum of both."""
    T, N, _ = x.shape
    states = x.new_empty(T + 1, N, len(W_hh))
    states[0] = 0
    inputs, projected = x.flatten(0, 1), states[1:].flatten(0, 1)
    if bias is None:
        torch.mm(inputs, W_ih.t(), out=projected)
    elif W_ih.shape[1] == 1:
        torch.addcmul(bias, inputs, W_ih.t(), out=projected)  # H = 16, N = T = 512: 0.7 ms, and 1.7 with addmm
    else:
        torch.addmm(bias, inputs, W_ih.t(), out=projected)
    recur(cell, W_hh, states)
    return states


class Layer(torch.autograd.Function):
    """`hidden` without the first state, for autograd."""

    @staticmethod
    def forward(
        ctx: Any, cell: str, x: torch.Tensor, W_ih: torch.Tensor, W_hh: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        states = hidden(cell, x, W_ih, W_hh, bias)
        ctx.cell, ctx.biased = cell, bias is not None
        ctx.save_for_backward(x, W_ih, W_hh, states)
        return states[1:]

    @staticmethod
    def backward(ctx: Any, d_hidden: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, W_ih, W_hh, states = ctx.saved_tensors
        delta = d_hidden.clone(memory_format=torch.contiguous_format)  # autograd's own, not to be written to
        recur_back(ctx.cell, W_hh, states, delta)
        d = delta.flatten(0, 1)
        d_bias = d.sum(0) if ctx.biased else None
        return None, (d @ W_ih).view_as(x), d.t() @ x.flatten(0, 1), d.t() @ states[:-1].flatten(0, 1), d_bias


class Batch(NamedTuple):
    x: torch.Tensor
    target: torch.Tensor


class Network:
    """`network.Network` in PyTorch."""

    def __init__(self, cell: str, weights: Mapping[str, Array], objective: Objective) -> None:
        self._cell, self._objective = cell, objective
        self._weights = {name: torch.tensor(weight, requires_grad=True) for name, weight in weights.items()}
        self._optimizer: torch.optim.Optimizer
        if objective.update == "sgd":
            self._optimizer = torch.optim.SGD(self._weights.values(), lr=0.0, fused=True)
        else:
            self._optimizer = torch.optim.Adam(self._weights.values(), lr=0.0, betas=BETAS, eps=EPS, fused=True)

    def batch(self, x: Array, target: Array) -> Batch:
        """Shares memory with both where they are contiguous."""
        return Batch(tensor(x).requires_grad_(), tensor(target))

    def forward(self, batch: Batch) -> Array:
        with torch.inference_mode():
            states = hidden(self._cell, batch.x, *self._layer())
            return self._readout(states[1:]).numpy()

    def train(self, batch: Batch, rate: float) -> float:
        loss = self._differentiate(batch)
        if self._objective.update == "adam":
            torch.nn.utils.clip_grad_norm_(self._weights.values(), CLIP_NORM)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        return loss.item()

    def gradients(self, batch: Batch) -> dict[str, Array]:
        self._differentiate(batch)
        gradients = {name: leaf.grad for name, leaf in {**self._weights, "x": batch.x}.items()}
        return {name: gradient.numpy() for name, gradient in gradients.items() if gradient is not None}

    def weights(self) -> dict[str, Array]:
        return {name: weight.detach().numpy().copy() for name, weight in self._weights.items()}

    def _layer(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        w = self._weights
        bias = w["bias_ih_l0"] + w["bias_hh_l0"] if "bias_ih_l0" in w else None
        return w["weight_ih_l0"], w["weight_hh_l0"], bias

    def _readout(self, h: torch.Tensor) -> torch.Tensor:
        if "weight_ho" not in self._weights:
            return h
        return torch.nn.functional.linear(h, self._weights["weight_ho"], self._weights.get("bias_o"))

    def _differentiate(self, batch: Batch) -> torch.Tensor:
        """The loss; its gradients are in `.grad` of the weights and of x."""
        self._optimizer.zero_grad(set_to_none=True)
        batch.x.grad = None
        states = Layer.apply(self._cell, batch.x, *self._layer())  # type: ignore[no-untyped-call]
        output = self._readout(states)
        _, scale, skip = self._objective
        loss = scale * torch.nn.functional.mse_loss(output[skip:], batch.target[skip:])
        loss.backward()
        return loss


def tensor(array: Array) -> torch.Tensor:
    """The array's own memory; a copy where it is not contiguous, or read-only, which PyTorch knows no tensor for."""
    contiguous = array.flags.c_contiguous and array.flags.writeable
    return torch.from_numpy(array if contiguous else array.copy())


def set_threads(n: int) -> None:
    """n threads in each operator, and as many beside each other.

    Raises ValueError where the second number was another one already and work has begun: PyTorch sets it once.
    """
    before = torch.get_num_interop_threads()
    if before != n:
        try:
            torch.set_num_interop_threads(n)
        except RuntimeError as reason:
            raise ValueError(f"n: expected {before}, with which PyTorch has begun, got {n} ({reason})") from None
    torch.set_num_threads(n)


def versions() -> dict[str, str]:
    """PyTorch with its build, such as 2.13.0+cpu."""
    return {"torch": torch.__version__}
