"""What the converters need to know of layers: to take one apart, and to make one. Nothing else here does."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .. import _check, cells, layers
from .._backends.base import Array
from ..layers import Layer
from ._cells import NodeCell, equations

GATES = {
    "rnn_tanh": "h",
    "rnn_sigmoid": "h",
    "rnn_relu": "h",
    "lstm": "ifgo",
    "lstm_peephole": "ifgo",
    "lstm_coupled": "igo",
    "lstm_peephole_coupled": "igo",
    "gru": "rzn",
    "gru_reset_before": "rzn",
}
"""The cells that some other format knows, and the order of the gates in the rows of their weights."""

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class NotCarried(ValueError):
    """One side has no word for what the other says. The message names it."""


@dataclass(frozen=True)
class Sizes:
    """All that a layer is besides its cell and its weights. `directions` is 1 or 2, `reverse` for 1 alone."""

    input_size: int
    hidden_size: int
    num_layers: int = 1
    directions: int = 1
    reverse: bool = False
    merge: str = "concat"
    bias: bool = True
    output_size: int | None = None
    dtype: str = "float32"


class Taken(NamedTuple):
    """A layer taken apart: its cell, its sizes, its weights by name."""

    cell: NodeCell
    sizes: Sizes
    weights: dict[str, Array]


@functools.cache
def own_cell(cell: NodeCell) -> type[Layer]:
    """A class like `rnn.LSTM` of a cell that isn't built in; compiled once for the same attributes."""
    made = layers.cell(equations(cell, cells))
    _own_cells[made] = cell
    return made


_own_cells: dict[Any, NodeCell] = {}


def make(cell: str | type[Layer], sizes: Sizes, weights: Mapping[str, Array]) -> Layer:
    """A layer of this cell (a name out of GATES, or the class of an own cell) with copies of these weights."""
    options: dict[str, Any] = {}
    if isinstance(cell, str):
        cell, options = layers.LAYERS[cell]
    layer = cell(
        input_size=sizes.input_size,
        hidden_size=sizes.hidden_size,
        num_layers=sizes.num_layers,
        bidirectional=sizes.directions == 2,
        output_size=sizes.output_size,
        bias=sizes.bias,
        merge=sizes.merge,
        reverse=sizes.reverse,
        seed=0,  # the weights it draws are replaced at once
        dtype=sizes.dtype,
        **options,
    )
    layer.load_state_dict({name: np.array(value, order="C") for name, value in weights.items()})
    return layer


def take(layer: Layer, format: str, own: bool = False) -> Taken:
    """`own`: also cells that `own_cell` made. Raises NotCarried if only we have this cell, or if zoneout makes it
    another one; TypeError for no layer.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"layer: expected a layer, got {type(layer).__name__}")
    config = layer.config()
    kind = type(layer).__name__
    cell = _own_cells.get(type(layer)) if own else None
    name = layer.cell.name
    if name in GATES and type(layer) is layers.LAYERS[name][0]:
        cell = NodeCell.named(name)
    if cell is None:
        names = sorted({layers.LAYERS[known][0].__name__ for known in GATES})
        raise NotCarried(f"layer: expected one of {', '.join(names)}, {format} has no {kind}")
    if np.any(np.asarray(config.get("zoneout", 0.0), np.float64) != 0):
        raise NotCarried(f"layer: expected zoneout=0, {format} has no zoneout, got {config['zoneout']}")
    sizes = Sizes(
        input_size=config["input_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_layers"],
        directions=2 if config["bidirectional"] else 1,
        reverse=bool(config["reverse"]) and not config["bidirectional"],
        merge=config["merge"],
        bias=config["bias"],
        output_size=config["output_size"],
        dtype=str(config["dtype"]),
    )
    return Taken(cell, sizes, layer.weights)


def suffixes(sizes: Sizes, layer: int) -> list[str]:
    """The ends of the names of one layer's weights, one a direction. (A layer that only goes backwards has no
    `_reverse`: it has one direction, and the names of one.)
    """
    return [f"_l{layer}", f"_l{layer}_reverse"][: sizes.directions]


def widths(sizes: Sizes) -> list[int]:
    """The input sizes of the layers of a stack."""
    inner = sizes.hidden_size * (sizes.directions if sizes.merge == "concat" else 1)
    return [sizes.input_size] + [inner] * (sizes.num_layers - 1)


def add_readout(
    sizes: Sizes, weights: dict[str, Array], weight: Array, bias: Array | None
) -> tuple[Sizes, dict[str, Array]]:
    """A readout to a layer without: weight (O, D*H), bias (O,). Biases that only one of both has are zeros in the
    other, since a layer has them everywhere or nowhere.
    """
    weights = weights | {"weight_ho": weight}
    if bias is not None and not sizes.bias:
        for name in [name for name in weights if name.startswith(("weight_ih", "weight_hh"))]:
            weights[name.replace("weight", "bias")] = np.zeros(len(weights[name]), weight.dtype)
    if bias is not None or sizes.bias:
        weights["bias_o"] = np.zeros(len(weight), weight.dtype) if bias is None else bias
    return replace(sizes, output_size=len(weight), bias="bias_o" in weights), weights


def reorder(array: Array, have: str, want: str) -> Array:
    """The blocks of rows `have` (one letter a gate) in the order `want`; of gates that aren't there, zeros."""
    blocks = dict(zip(have, np.split(array, len(have)), strict=True))
    nothing = np.zeros_like(blocks[have[0]])
    return np.concatenate([blocks.get(gate, nothing) for gate in want])


def choose(name: str, cell: object, known: Mapping[str, Any], format: str) -> str:
    """A cell that the format has. Raises TypeError, ValueError for no cell at all, NotCarried for one of ours."""
    if isinstance(cell, str) and cell not in known and (cell in GATES or cell.startswith(("mgu", "indrnn"))):
        raise NotCarried(f"{name}: expected one of {', '.join(known)}, {format} has no {cell}")
    return _check.choice(name, cell, known)


def as_array(name: str, value: object) -> Array:
    """A NumPy array of what has __array__ (tensors of other libraries), float32 or float64 in native order.

    Raises TypeError.
    """
    if not isinstance(value, np.ndarray):
        detach = getattr(value, "detach", None)  # a tensor that takes part in automatic differentiation
        value = detach() if callable(detach) else value
        if not hasattr(value, "__array__"):
            raise TypeError(f"{name}: expected a float32 or float64 array, got {type(value).__name__}")
        try:
            value = np.asarray(value)
        except (TypeError, RuntimeError) as reason:  # a type that NumPy hasn't, or a device that it can't see
            raise TypeError(f"{name}: expected a float32 or float64 array, NumPy can't read it: {reason}") from None
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: expected a float32 or float64 array, got dtype {value.dtype}")
    return value


def same_dtype(arrays: Mapping[str, Array]) -> str:
    """The one dtype of all these. Raises TypeError."""
    first_name, first = next(iter(arrays.items()))
    for name, array in arrays.items():
        if array.dtype != first.dtype:
            raise TypeError(f"{name}: expected {first.dtype} like {first_name}, got {array.dtype}")
    return str(first.dtype)


def expect_shape(name: str, array: Array, shape: tuple[int, ...], axes: str) -> Array:
    """`array`, if it has this shape. Raises ValueError."""
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape} ({axes}), got {array.shape}")
    return array


def gate_rows(name: str, array: Array, gates: int, rest: str) -> int:
    """H of an array whose first axis is G*H long, where the second is H or I. Raises ValueError."""
    if array.ndim != 2 or array.shape[0] % gates:
        expected = f"shape (G*H, {rest}) with G={gates}"
        raise ValueError(f"{name}: expected {expected}, got {array.shape}")
    return int(array.shape[0]) // gates
