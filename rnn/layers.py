"""Recurrent layers: what users make, run forward, and differentiate."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from . import _check, backend
from ._backends.base import Array, Backend, Gradients, Tape

__all__ = ["RNN", "Gradients", "Run", "weight_shapes"]

NONLINEARITIES = ("tanh", "sigmoid", "relu")


class Run(NamedTuple):
    """One forward pass: the result, and all that BPTT needs to go back through it.

    It holds the arrays that were used, not copies: change none of them in place before `bptt`. (The
    optimizers here never do; they put new arrays into `layer.weights`.)
    """

    layer: RNN
    backend: Backend
    x: Array
    weights: dict[str, Array]
    tape: Tape

    @property
    def output(self) -> Array:
        """(T, N, O): the readout of each state, or in a layer without readout the states (O = H)."""
        return self.tape.output

    @property
    def state(self) -> Array:
        """(N, H): the last state, to be carried over as `h0` of the next piece (the initial one if T = 0)."""
        last: Array = self.tape.states[0][-1]
        return last


class RNN:
    """One hidden layer of plain (Elman) recurrent units, and a linear readout if `output_size` is given.

        h_t = act(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)        y_t = W_ho h_t + b_o

    after Elman, "Finding structure in time", 1990; as torch.nn.RNN, whose names and shapes the weights have,
    followed by a torch.nn.Linear.

    Arguments: sizes of the input, the hidden state and the output, any of them 0 or more (`output_size=None`:
    no readout, the output is the state); `nonlinearity` "tanh", "sigmoid" or "relu"; `bias=False` drops all
    three biases; `seed` as in numpy.random.default_rng; `dtype` "float32" or "float64".

    Attributes: `weights`, a dict of arrays: weight_ih_l0 (H, I), weight_hh_l0 (H, H), bias_ih_l0 (H,),
    bias_hh_l0 (H,), weight_ho (O, H), bias_o (O,). All start uniform in [-1/sqrt(H), 1/sqrt(H)). Put new
    arrays in as you like; names, shapes and dtype are checked at each call.

    Raises TypeError or ValueError naming the argument, OverflowError if a weight had 2^31 elements or more.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = None,
        nonlinearity: str = "tanh",
        bias: bool = True,
        seed: int | np.random.Generator | None = None,
        dtype: DTypeLike = "float32",
    ) -> None:
        self._configure(input_size, hidden_size, output_size, nonlinearity, bias, dtype)
        bound = 1 / np.sqrt(self.hidden_size) if self.hidden_size else 0.0
        rng = _check.generator("seed", seed)
        self.weights: dict[str, Array] = {
            name: rng.uniform(-bound, bound, shape).astype(self.dtype) for name, shape in self._shapes.items()
        }

    @classmethod
    def from_weights(cls, config: dict[str, Any], weights: dict[str, Array]) -> RNN:
        """The layer that `config()` described, around these weights. Raises TypeError or ValueError."""
        layer = cls.__new__(cls)
        layer._configure(**config)
        layer.weights = _check.named("weights", weights, layer._shapes, layer.dtype)
        return layer

    def _configure(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None,
        nonlinearity: str,
        bias: bool,
        dtype: DTypeLike,
    ) -> None:
        self.input_size = _check.size("input_size", input_size)
        self.hidden_size = _check.size("hidden_size", hidden_size)
        self.output_size = None if output_size is None else _check.size("output_size", output_size)
        self.nonlinearity = _check.choice("nonlinearity", nonlinearity, NONLINEARITIES)
        self.bias = _check.flag("bias", bias)
        self.dtype = _dtype(dtype)
        self._cell = f"rnn_{nonlinearity}"
        self._shapes = weight_shapes(self.input_size, self.hidden_size, self.output_size, self.bias)
        for name, shape in self._shapes.items():
            _check.limit(name, shape)

    def forward(self, x: Array, h0: Array | None = None) -> Run:
        """Run over x (T, N, I) from the initial state h0 (N, H), or from zeros.

        Both must have the layer's dtype in native byte order; any strides will do (those that a kernel can't
        walk cost a copy). Raises TypeError (dtype), ValueError (shape), OverflowError (2^31 elements or
        more), each naming the argument, and `backend.BackendUnavailable`.
        """
        _check.expect("x", x, self.dtype, (None, None, self.input_size), "TNI")
        steps, lanes, _ = x.shape
        widest = max(self.hidden_size, self.output_size or 0)
        if (steps + 1) * lanes * widest >= _check.LIMIT or steps + 1 >= _check.LIMIT:
            _check.limit("x: the states or the output", (steps + 1, lanes, widest))
        x = _check.walkable(x)
        if h0 is None:
            h0 = np.zeros((lanes, self.hidden_size), self.dtype)
        else:
            h0 = _check.array("h0", h0, self.dtype, (lanes, self.hidden_size), "NH")
        weights = _check.named("weights", self.weights, self._shapes, self.dtype)
        chosen = backend.current()
        return Run(self, chosen, x, weights, chosen.forward(self._cell, x, h0, weights))

    def bptt(self, run: Run, d_output: Array, d_state: Array | None = None) -> Gradients:
        """Gradients of a loss, back-propagated through the whole of `run` on the backend that made it.

        d_output (T, N, O) and d_state (N, H; None: zeros) are the loss's gradients with respect to
        `run.output` and `run.state`. The answer has `.weights` (the names and shapes of `run.weights`), `.x`
        (T, N, I) and `.h0` (N, H). Werbos, "Backpropagation through time", 1990; the cost is linear in T.
        Raises as `forward`, and ValueError for a run of another layer.
        """
        if not isinstance(run, Run):
            raise TypeError(f"run: expected what this layer's forward returned, got {type(run).__name__}")
        if run.layer is not self:
            raise ValueError(f"run: expected a run of this layer ({self!r}), got one of another ({run.layer!r})")
        d_output = _check.array("d_output", d_output, self.dtype, run.tape.output.shape, "TNO")
        if d_state is not None:
            d_state = _check.array("d_state", d_state, self.dtype, run.tape.states[0].shape[1:], "NH")
        return run.backend.bptt(self._cell, run.x, run.weights, run.tape, d_output, d_state)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, but the seed, as JSON values: `RNN(**config)` has the same shape."""
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "output_size": self.output_size,
            "nonlinearity": self.nonlinearity,
            "bias": self.bias,
            "dtype": str(self.dtype),
        }

    def __repr__(self) -> str:
        return f"RNN({', '.join(f'{name}={value!r}' for name, value in self.config().items())})"


def weight_shapes(input_size: int, hidden_size: int, output_size: int | None, bias: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's weights, in PyTorch's order."""
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih_l0": (hidden_size, input_size),
        "weight_hh_l0": (hidden_size, hidden_size),
    }
    if bias:
        shapes |= {"bias_ih_l0": (hidden_size,), "bias_hh_l0": (hidden_size,)}
    if output_size is not None:
        shapes["weight_ho"] = (output_size, hidden_size)
        if bias:
            shapes["bias_o"] = (output_size,)
    return shapes


def _dtype(value: DTypeLike) -> np.dtype[Any]:
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise TypeError(f"dtype: expected float32 or float64, got {value!r}") from None
    if dtype not in (np.dtype(np.float32), np.dtype(np.float64)) or value is None:
        raise ValueError(f"dtype: expected float32 or float64 in native byte order, got {value!r}")
    return dtype
