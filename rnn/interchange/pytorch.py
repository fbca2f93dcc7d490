"""Weights from and to PyTorch: the state_dict of torch.nn.RNN, LSTM and GRU. Needs no PyTorch.

Names, shapes and the order of the gates are the same on both sides, so the arrays cross as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .._backends.base import Array
from ..layers import Layer
from ._layers import (
    GATES,
    NotCarried,
    Sizes,
    add_readout,
    as_array,
    choose,
    expect_shape,
    gate_rows,
    make,
    same_dtype,
    suffixes,
    take,
    widths,
)

__all__ = ["from_state_dict", "to_state_dict"]

CELLS = {cell: GATES[cell] for cell in ("rnn_tanh", "rnn_relu", "lstm", "gru")}
"""What PyTorch has: torch.nn.RNN with both nonlinearities, torch.nn.LSTM, torch.nn.GRU."""

_NAME = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh)_l(0|[1-9][0-9]{0,4})(_reverse)?")


def to_state_dict(layer: Layer, *, prefix: str = "", readout_prefix: str | None = None) -> dict[str, Array]:
    """The weights of `layer` for `load_state_dict` of the torch.nn module with the same sizes (copies, NumPy).

    In PyTorch's order: weight_ih_l0 (G*H, I), weight_hh_l0 (G*H, H), bias_ih_l0, bias_hh_l0 (G*H,), then the
    same with `_reverse`, then the next layers. `prefix` stands before each name. A layer's readout is a module
    of its own in PyTorch, a torch.nn.Linear: its weight (O, D*H) and bias (O,) come under `readout_prefix`.

    Raises NotCarried for what torch.nn hasn't: other cells than RNN with tanh or relu, LSTM without peepholes
    and with uncoupled gates, and GRU with the reset after the product; directions summed; backwards only;
    zoneout; a readout without `readout_prefix`. Raises TypeError if `layer` isn't one.
    """
    cell, sizes, weights = take(layer, "PyTorch")
    choose("layer", cell.name, CELLS, "PyTorch")
    if sizes.directions == 2 and sizes.merge != "concat":
        raise NotCarried(f"layer: expected merge='concat', PyTorch has nothing else, got merge={sizes.merge!r}")
    if sizes.reverse:
        raise NotCarried("layer: expected a forward or bidirectional one, PyTorch has none that only goes backwards")
    if sizes.output_size is not None and readout_prefix is None:
        raise NotCarried("layer: expected one without readout, or a readout_prefix: PyTorch's has none inside")

    parts = ("weight_ih", "weight_hh") + (("bias_ih", "bias_hh") if sizes.bias else ())
    names = [part + end for k in range(sizes.num_layers) for end in suffixes(sizes, k) for part in parts]
    state = {prefix + name: weights[name].copy() for name in names}
    if sizes.output_size is not None:
        state[f"{readout_prefix}weight"] = weights["weight_ho"].copy()
        if sizes.bias:
            state[f"{readout_prefix}bias"] = weights["bias_o"].copy()
    return state


def from_state_dict(
    cell: str, state_dict: Mapping[str, object], *, prefix: str = "", readout_prefix: str | None = None
) -> Layer:
    """The layer whose weights a torch.nn.RNN, LSTM or GRU gave away (copies); its sizes are read off the shapes.

    cell: "rnn_tanh", "rnn_relu", "lstm" or "gru", which the names alone don't tell. state_dict: names to NumPy
    arrays or torch tensors, float32 or float64, all the same. With a `prefix` ("encoder.rnn.") only the names
    that begin so are read; without one, all have to be known. `readout_prefix`: a torch.nn.Linear after it
    (weight (O, D*H), bias (O,)), taken as the readout. A layer here has biases everywhere or nowhere: if the
    Linear alone has none, or it alone has one, the missing ones are zeros.

    Raises NotCarried for projections (`proj_size`, weight_hr_l0) and for cells that PyTorch hasn't; ValueError
    for names that are missing or unknown, and for shapes that don't fit; TypeError for other dtypes.
    """
    gates = len(CELLS[choose("cell", cell, CELLS, "PyTorch")])
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: expected a mapping of names to arrays, got {type(state_dict).__name__}")
    chosen, readout = _select(state_dict, prefix, readout_prefix)

    last = max(int(match[2]) for name in chosen if (match := _NAME.fullmatch(name)))
    reverse = any(name.endswith("_reverse") for name in chosen)
    bias = any(name.startswith("bias") for name in chosen)
    first = chosen.get("weight_ih_l0")
    if first is None:
        raise ValueError(f"state_dict: expected {prefix}weight_ih_l0, got {', '.join(map(repr, state_dict))}")
    hidden_size = gate_rows(f"state_dict[{prefix + 'weight_ih_l0'!r}]", first, gates, "I")
    sizes = Sizes(
        input_size=first.shape[1],
        hidden_size=hidden_size,
        num_layers=last + 1,
        directions=2 if reverse else 1,
        bias=bias,
        output_size=None,
        dtype=same_dtype({f"state_dict[{prefix + name!r}]": value for name, value in chosen.items()}),
    )
    weights: dict[str, Array] = {}
    rows = gates * hidden_size
    for k, width in enumerate(widths(sizes)):
        for end in suffixes(sizes, k):
            shapes: dict[str, tuple[tuple[int, ...], str]]
            shapes = {"weight_ih": ((rows, width), "G*H, I"), "weight_hh": ((rows, hidden_size), "G*H, H")}
            if bias:
                shapes |= {"bias_ih": ((rows,), "G*H"), "bias_hh": ((rows,), "G*H")}
            for part, (shape, axes) in shapes.items():
                name = part + end
                if name not in chosen:
                    raise ValueError(f"state_dict: expected {prefix + name!r} beside the others, it isn't there")
                weights[name] = expect_shape(f"state_dict[{prefix + name!r}]", chosen[name], shape, axes)
    if readout_prefix is not None:
        sizes, weights = _add_readout(sizes, weights, readout, readout_prefix)
    return make(cell, sizes, weights)


def _select(
    state_dict: Mapping[str, object], prefix: str, readout_prefix: str | None
) -> tuple[dict[str, Array], dict[str, Array]]:
    chosen: dict[str, Array] = {}
    readout: dict[str, Array] = {}
    for key, value in state_dict.items():
        label = f"state_dict[{key!r}]"
        if not isinstance(key, str):
            raise TypeError(f"state_dict: expected names, got {key!r}")
        if readout_prefix is not None and key in (f"{readout_prefix}weight", f"{readout_prefix}bias"):
            readout[key.removeprefix(readout_prefix)] = as_array(label, value)
            continue
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        if re.fullmatch(r"weight_hr_l\d+(_reverse)?", name):
            raise NotCarried(f"{label}: expected no projection, a layer here has no proj_size")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{label}: expected names like {prefix}weight_ih_l0 or {prefix}bias_hh_l1_reverse only")
        chosen[name] = as_array(label, value)
    if not chosen:
        raise ValueError(
            f"state_dict: expected names like {prefix}weight_ih_l0, got {', '.join(map(repr, state_dict))}"
        )
    return chosen, readout


def _add_readout(
    sizes: Sizes, weights: dict[str, Array], readout: dict[str, Array], prefix: str
) -> tuple[Sizes, dict[str, Array]]:
    if "weight" not in readout:
        raise ValueError(f"state_dict: expected the readout's {prefix + 'weight'!r}, it isn't there")
    label = f"state_dict[{prefix + 'weight'!r}]"
    weight, bias = readout["weight"], readout.get("bias")
    output_size = weight.shape[0] if weight.ndim else 0
    expect_shape(label, weight, (output_size, sizes.directions * sizes.hidden_size), "O, D*H")
    used = {"weight_ih_l0": weights["weight_ih_l0"], label: weight}
    if bias is not None:
        used[f"state_dict[{prefix + 'bias'!r}]"] = expect_shape(
            f"state_dict[{prefix + 'bias'!r}]", bias, (output_size,), "O"
        )
    same_dtype(used)
    return add_readout(sizes, weights, weight, bias)
