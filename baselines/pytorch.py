"""The network in PyTorch, as fast as PyTorch is on a CPU.

`torch.nn.LSTM` is that: oneDNN runs its forward pass and its gradients, and of the shapes below loops are ahead in one,
by 7%. `torch.nn.RNN` and `torch.nn.GRU` with autograd
are not: their loop makes new tensors in each step, and its backward pass adds a step's part to the gradient of the
weights one step at a time. Here these layers are one autograd function each around two scripted loops that work in
place, with each gradient of a weight as one product over all time steps; readout, loss and optimizer are PyTorch's own.
All in PyTorch 2.13, float32, one AMD EPYC core (Zen 4), other work beside it, ms, forward and training step, the least
of several; the RNN with a readout of I outputs, GRU and LSTM without one:

    (I, H, N, T)            nn.RNN           here
    (1, 8, 1, 2048)         6.6   63.4       2.6    9.1
    (1, 32, 32, 1000)       8.8   42.4       5.5   14.7
    (64, 64, 48, 200)       5.8   20.8       5.2   15.3
    (256, 256, 48, 100)    25.6   78.4      25.5   72.9
    (1024, 1024, 1, 256)   33.0  151.6      32.2   89.3
    (1, 16, 512, 512)      20.8   54.8      16.5   34.0

    (I, H, N, T)            nn.GRU           here            nn.LSTM         loops like these for it
    (1, 8, 1, 2048)        17.0  205        10.8   24.1       1.0    3.7     13.6   34.9
    (1, 32, 1, 1000)        8.8   93.8       5.7   13.2       0.8    3.1      7.1   17.9
    (64, 64, 48, 200)      10.2   43.6       9.0   27.9       9.0   28.8     14.5   44.6
    (256, 256, 48, 100)    49.1  156        48.8  147        48.5  154       64.8  191
    (512, 512, 16, 25)     17.0   56.5      17.0   49.2      17.6   54.6     22.3   63.9
    (1024, 1024, 1, 50)    20.0  117        20.7   48.9      24.1   74.5     27.0   69.0

What else was tried: `torch.compile` takes no RNN as it is (Dynamo breaks the graph at it), and of a loop it unrolls
every time step; the same loops in Python take 18 ms where the scripted ones take 11 (1, 8, 1, 2048). "fused" optimizers
are no slower than the others, and Adam takes a third of the time (3 million weights: 1.7 ms, and 5.5). The time that is
left with many lanes is `tanh`, 2.5 ns a number where NumPy's takes 0.5; flushing denormals is off, as it is in NumPy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from . import memory
from .cells import Array
from .network import BETAS, CLIP_NORM, EPS, Objective

memory.keep()


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


def recur_gru(
    W_hh: torch.Tensor, bias_u: torch.Tensor, rz: torch.Tensor, n: torch.Tensor, u: torch.Tensor, states: torch.Tensor
) -> None:
    """`cells.GRU` over rz (T, N, 2H) and n (T, N, H), which hold what comes from the input before and the gates after.

    Fills u (T, N, H), W_hn h_{t-1} + b_hn, and all of the states (T+1, N, H) but the first.
    """
    H = W_hh.size(1)
    W_rz, W_n = W_hh[: 2 * H].t(), W_hh[2 * H :].t()
    r, z = rz[:, :, :H].unbind(0), rz[:, :, H:].unbind(0)
    gates, ns, us, h = rz.unbind(0), n.unbind(0), u.unbind(0), states.unbind(0)
    for t in range(len(ns)):
        gates[t].addmm_(h[t], W_rz).sigmoid_()
        torch.addmm(bias_u, h[t], W_n, out=us[t])
        ns[t].addcmul_(r[t], us[t]).tanh_()
        torch.lerp(ns[t], h[t], z[t], out=h[t + 1])


def recur_gru_back(
    W_hh: torch.Tensor,
    rz: torch.Tensor,
    n: torch.Tensor,
    u: torch.Tensor,
    states: torch.Tensor,
    d_h: torch.Tensor,
    delta: torch.Tensor,
) -> None:
    """Fills delta (T, N, 4H) with the gradients of the arguments of r and z, of u, and of the argument of n; d_h
    (T, N, H) holds what reaches each h_t from its own output, and is used up."""
    H = W_hh.size(1)
    r, z = rz[:, :, :H], rz[:, :, H:]
    four = delta.unflatten(2, (4, H))
    to_r, to_z, to_u, to_n = four.unbind(2)  # what dh_t is to be multiplied with for each, all at once
    torch.ops.aten.tanh_backward(1 - z, n, grad_input=to_n)
    torch.mul(to_n, r, out=to_u)
    torch.ops.aten.sigmoid_backward(to_n * u, r, grad_input=to_r)
    torch.ops.aten.sigmoid_backward(states[:-1] - n, z, grad_input=to_z)
    d, d_wide, zs = d_h.unbind(0), d_h.unsqueeze(2).unbind(0), z.unbind(0)
    deltas, hidden = four.unbind(0), delta[:, :, : 3 * H].unbind(0)
    for t in range(len(d) - 1, -1, -1):
        if t < len(d) - 1:
            d[t].addcmul_(d[t + 1], zs[t + 1]).addmm_(hidden[t + 1], W_hh)
        deltas[t].mul_(d_wide[t])


with warnings.catch_warnings():
    # deprecated in favour of torch.compile, which unrolls loops (see above)
    warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
    recur = torch.jit.script(recur)
    recur_back = torch.jit.script(recur_back)
    recur_gru = torch.jit.script(recur_gru)
    recur_gru_back = torch.jit.script(recur_gru_back)


def project(x: torch.Tensor, W: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """out_t = W x_t + b for all t, as one product."""
    inputs, out = x.flatten(0, 1), out.flatten(0, 1)
    if bias is None:
        torch.mm(inputs, W.t(), out=out)
    elif W.shape[1] == 1:
        torch.addcmul(bias, inputs, W.t(), out=out)  # H = 16, N = T = 512: 0.7 ms, and 1.7 with addmm
    else:
        torch.addmm(bias, inputs, W.t(), out=out)


Gradients = tuple[torch.Tensor | None, ...]


class Elman(torch.autograd.Function):
    """All h_t (T, N, H), from zeros, for x (T, N, I); bias is the sum of both."""

    @staticmethod
    def forward(
        ctx: Any, cell: str, x: torch.Tensor, W_ih: torch.Tensor, W_hh: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        T, N, _ = x.shape
        states = x.new_empty(T + 1, N, len(W_hh))
        states[0] = 0
        project(x, W_ih, bias, states[1:])
        recur(cell, W_hh, states)
        ctx.cell, ctx.biased = cell, bias is not None
        ctx.save_for_backward(x, W_ih, W_hh, states)
        return states[1:]

    @staticmethod
    def backward(ctx: Any, d_hidden: torch.Tensor) -> Gradients:
        x, W_ih, W_hh, states = ctx.saved_tensors
        delta = d_hidden.clone(memory_format=torch.contiguous_format)  # autograd's own, not to be written to
        recur_back(ctx.cell, W_hh, states, delta)
        d = delta.flatten(0, 1)
        d_bias = d.sum(0) if ctx.biased else None
        return None, (d @ W_ih).view_as(x), d.t() @ x.flatten(0, 1), d.t() @ states[:-1].flatten(0, 1), d_bias


class GRU(torch.autograd.Function):
    """All h_t (T, N, H), from zeros, for x (T, N, I)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        W_ih: torch.Tensor,
        W_hh: torch.Tensor,
        b_ih: torch.Tensor | None,
        b_hh: torch.Tensor | None,
    ) -> torch.Tensor:
        (T, N, _), H = x.shape, W_hh.shape[1]
        bias_rz, bias_n, bias_u = None, None, x.new_zeros(H)
        if b_ih is not None and b_hh is not None:
            bias_rz, bias_n, bias_u = b_ih[: 2 * H] + b_hh[: 2 * H], b_ih[2 * H :], b_hh[2 * H :]
        rz, n, u, states = (x.new_empty(T + more, N, width * H) for more, width in ((0, 2), (0, 1), (0, 1), (1, 1)))
        states[0] = 0
        project(x, W_ih[: 2 * H], bias_rz, rz)
        project(x, W_ih[2 * H :], bias_n, n)
        recur_gru(W_hh, bias_u, rz, n, u, states)
        ctx.biased = b_ih is not None
        ctx.save_for_backward(x, W_ih, W_hh, rz, n, u, states)
        return states[1:]

    @staticmethod
    def backward(ctx: Any, d_hidden: torch.Tensor) -> Gradients:
        x, W_ih, W_hh, rz, n, u, states = ctx.saved_tensors
        H, inputs = W_hh.shape[1], x.flatten(0, 1)
        delta = x.new_empty(*n.shape[:2], 4 * H)
        recur_gru_back(W_hh, rz, n, u, states, d_hidden.clone(memory_format=torch.contiguous_format), delta)
        d = delta.flatten(0, 1)
        d_rz, d_n = d[:, : 2 * H], d[:, 3 * H :]
        d_x = (d_rz @ W_ih[: 2 * H]).addmm_(d_n, W_ih[2 * H :]).view_as(x)
        d_W_ih = torch.empty_like(W_ih)
        torch.mm(d_rz.t(), inputs, out=d_W_ih[: 2 * H])
        torch.mm(d_n.t(), inputs, out=d_W_ih[2 * H :])
        d_W_hh = d[:, : 3 * H].t() @ states[:-1].flatten(0, 1)
        if not ctx.biased:
            return d_x, d_W_ih, d_W_hh, None, None
        sums = d.sum(0)
        return d_x, d_W_ih, d_W_hh, torch.cat([sums[: 2 * H], sums[3 * H :]]), sums[: 3 * H]


Weights = Mapping[str, torch.nn.Parameter]
Layer = Callable[[torch.Tensor], torch.Tensor]


def elman(cell: str, weights: Weights) -> Layer:
    def layer(x: torch.Tensor) -> torch.Tensor:
        bias = weights["bias_ih_l0"] + weights["bias_hh_l0"] if "bias_ih_l0" in weights else None
        return Elman.apply(cell, x, weights["weight_ih_l0"], weights["weight_hh_l0"], bias)  # type: ignore[no-any-return, no-untyped-call]

    return layer


def gru(weights: Weights) -> Layer:
    def layer(x: torch.Tensor) -> torch.Tensor:
        biases = weights.get("bias_ih_l0"), weights.get("bias_hh_l0")
        return GRU.apply(x, weights["weight_ih_l0"], weights["weight_hh_l0"], *biases)  # type: ignore[no-any-return, no-untyped-call]

    return layer


def lstm(weights: Weights) -> Layer:
    W_ih, W_hh = weights["weight_ih_l0"], weights["weight_hh_l0"]
    module = torch.nn.LSTM(W_ih.shape[1], W_hh.shape[1], bias="bias_ih_l0" in weights, dtype=W_hh.dtype)
    for name, _ in list(module.named_parameters()):
        setattr(module, name, weights[name])
    return lambda x: module(x)[0]


LAYERS: dict[str, Callable[[Weights], Layer]] = {
    **{name: partial(elman, name) for name in ("rnn_tanh", "rnn_sigmoid", "rnn_relu")},
    "lstm": lstm,
    "gru": gru,
}
"""From the weights to a function of x (T, N, I) that gives all h_t (T, N, H), from zeros."""


class Batch(NamedTuple):
    x: torch.Tensor
    target: torch.Tensor


class Network:
    """`network.Network` in PyTorch."""

    def __init__(self, cell: str, weights: Mapping[str, Array], objective: Objective) -> None:
        self._objective = objective
        self._weights = {name: torch.nn.Parameter(torch.tensor(weight)) for name, weight in weights.items()}
        self._layer = LAYERS[cell](self._weights)
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
            return self._readout(self._layer(batch.x)).numpy()

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

    def _readout(self, h: torch.Tensor) -> torch.Tensor:
        if "weight_ho" not in self._weights:
            return h
        return torch.nn.functional.linear(h, self._weights["weight_ho"], self._weights.get("bias_o"))

    def _differentiate(self, batch: Batch) -> torch.Tensor:
        """The loss; its gradients are in `.grad` of the weights and of x."""
        self._optimizer.zero_grad(set_to_none=True)
        batch.x.grad = None
        output = self._readout(self._layer(batch.x))
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
