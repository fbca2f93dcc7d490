"""Weights from and to Keras: what get_weights and set_weights of SimpleRNN, LSTM, GRU and Bidirectional hold.

A Keras layer is a flat list of arrays, [kernel (I, G*H), recurrent_kernel (H, G*H), bias], without the bias if
`use_bias=False`; a Bidirectional one has both of its layers' arrays one after the other. LSTM gates stand there
in the order i, f, c, o, GRU gates in the order z, r, h; a GRU with `reset_after=True` (the default there) has a
bias (2, 3*H), the input's and the recurrent product's, all others one bias (G*H,).

Where Keras has one bias and we have two that are only ever added, theirs becomes bias_ih, and bias_hh is zero;
ours goes out as the sum. So Keras's weights come back bit by bit, and ours compute the same to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

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
    reorder,
    same_dtype,
    suffixes,
    take,
    widths,
)

__all__ = ["Weights", "from_weights", "to_weights"]

CELLS = {"rnn_tanh": "h", "rnn_sigmoid": "h", "rnn_relu": "h", "lstm": "ifgo", "gru": "zrn", "gru_reset_before": "zrn"}
"""Keras's order of the gates, in our letters: their c is our g, their h (of a GRU) our n."""


class Weights(NamedTuple):
    """A layer in Keras's form: for each Keras layer of the stack what its `set_weights` takes, and for a readout
    what that of a Dense layer takes, [kernel (D*H, O), bias (O,)], or None.
    """

    stack: list[list[Array]]
    dense: list[Array] | None


def to_weights(layer: Layer) -> Weights:
    """The weights of `layer` for Keras layers with `return_sequences=True`, in a row (copies).

    "rnn_*" is a SimpleRNN with that activation, "gru" a GRU with `reset_after=True`, "gru_reset_before" one
    without; two directions are a Bidirectional with `merge_mode` as here, "concat" or "sum". A layer that only
    goes backwards is one with `go_backwards=True`; Keras gives its outputs last step first.

    Raises NotCarried for what Keras hasn't: peepholes, coupled gates, minimal gated units, IndRNN, own cells,
    zoneout; and for several layers that only go backwards, since Keras would turn the sequence each time.
    """
    taken, sizes, weights = take(layer, "Keras")
    cell = choose("layer", taken.name, CELLS, "Keras")
    order = CELLS[cell]
    if sizes.reverse and sizes.num_layers > 1:
        raise NotCarried(f"layer: expected num_layers=1 with reverse, Keras turns between, got {sizes.num_layers}")

    def direction(end: str) -> list[Array]:
        kernels = [reorder(weights[part + end], GATES[cell], order) for part in ("weight_ih", "weight_hh")]
        arrays = [np.ascontiguousarray(kernel.T) for kernel in kernels]
        if sizes.bias:
            biases = [reorder(weights[part + end], GATES[cell], order) for part in ("bias_ih", "bias_hh")]
            arrays.append(np.stack(biases) if cell == "gru" else biases[0] + biases[1])
        return arrays

    stack = [[array for end in suffixes(sizes, k) for array in direction(end)] for k in range(sizes.num_layers)]
    if sizes.output_size is None:
        return Weights(stack, None)
    dense = [np.array(weights["weight_ho"].T, order="C")]
    return Weights(stack, [*dense, weights["bias_o"].copy()] if sizes.bias else dense)


def from_weights(
    cell: str,
    stack: Sequence[Sequence[object]],
    *,
    dense: Sequence[object] | None = None,
    merge: str = "concat",
    reverse: bool = False,
) -> Layer:
    """The layer whose weights Keras layers in a row gave away (copies); its sizes are read off the shapes.

    cell: "rnn_tanh", "rnn_sigmoid", "rnn_relu" (SimpleRNN by activation), "lstm", "gru" (`reset_after=True`) or
    "gru_reset_before". stack: the `get_weights()` of each Keras layer, first layer first, all of the same units:
    2 or 3 arrays, or of a Bidirectional 4 or 6, float32 or float64. dense: the `get_weights()` of a Dense layer
    after them, as readout. merge: the Bidirectional's `merge_mode`, "concat" or "sum". reverse: `go_backwards`.

    Raises NotCarried for other cells or merge modes, ValueError for lists or shapes that don't fit (a GRU's bias
    tells whether `reset_after` is what `cell` says), TypeError for other dtypes.
    """
    order = CELLS[choose("cell", cell, CELLS, "Keras")]
    if merge not in ("concat", "sum"):
        raise NotCarried(f"merge: expected 'concat' or 'sum', a layer here knows no other, got {merge!r}")
    arrays = _arrays(stack)
    counts = {len(one) for one in arrays}
    count = len(arrays[0])
    if len(counts) > 1 or count not in (2, 3, 4, 6):
        counts_text = ", ".join(str(len(one)) for one in arrays)
        raise ValueError(f"stack: expected 2 or 3 arrays a layer, or 4 or 6 (Bidirectional), got {counts_text}")
    directions = 2 if count in (4, 6) else 1
    each = count // directions
    if reverse and (directions == 2 or len(arrays) > 1):
        raise NotCarried("reverse: expected one layer of one direction, Keras turns the sequence after each")

    first = arrays[0][0]
    hidden_size = gate_rows("stack[0][0]", first.T, len(order), "I")
    sizes = Sizes(
        input_size=first.shape[0],
        hidden_size=hidden_size,
        num_layers=len(arrays),
        directions=directions,
        reverse=reverse,
        merge=merge,
        bias=each == 3,
        dtype=same_dtype({f"stack[{k}][{i}]": a for k, one in enumerate(arrays) for i, a in enumerate(one)}),
    )
    columns = len(order) * hidden_size
    bias_shape, bias_axes = ((2, columns), "2, G*H") if cell == "gru" else ((columns,), "G*H")
    weights: dict[str, Array] = {}
    for k, width in enumerate(widths(sizes)):
        for d, end in enumerate(suffixes(sizes, k)):
            labels = [f"stack[{k}][{each * d + i}]" for i in range(each)]
            part = arrays[k][each * d : each * d + each]
            expect_shape(f"{labels[0]}, the kernel", part[0], (width, columns), "I, G*H")
            expect_shape(f"{labels[1]}, the recurrent kernel", part[1], (hidden_size, columns), "H, G*H")
            weights[f"weight_ih{end}"] = reorder(part[0].T, order, GATES[cell])
            weights[f"weight_hh{end}"] = reorder(part[1].T, order, GATES[cell])
            if sizes.bias:
                expect_shape(f"{labels[2]}, the bias of {cell!r}", part[2], bias_shape, bias_axes)
                ours, theirs = part[2] if cell == "gru" else (part[2], np.zeros_like(part[2]))
                weights[f"bias_ih{end}"] = reorder(ours, order, GATES[cell])
                weights[f"bias_hh{end}"] = reorder(theirs, order, GATES[cell])
    if dense is not None:
        sizes, weights = _add_dense(sizes, weights, dense)
    return make(cell, sizes, weights)


def _arrays(stack: object) -> list[list[Array]]:
    if not isinstance(stack, Sequence) or not stack or not all(isinstance(one, Sequence) for one in stack):
        raise TypeError("stack: expected a list of lists of arrays, one list for each Keras layer")
    return [[as_array(f"stack[{k}][{i}]", a) for i, a in enumerate(one)] for k, one in enumerate(stack)]


def _add_dense(sizes: Sizes, weights: dict[str, Array], dense: Sequence[object]) -> tuple[Sizes, dict[str, Array]]:
    if not isinstance(dense, Sequence) or len(dense) not in (1, 2):
        raise ValueError("dense: expected [kernel] or [kernel, bias]")
    kernel, *bias = (as_array(f"dense[{i}]", array) for i, array in enumerate(dense))
    wide = sizes.hidden_size * (sizes.directions if sizes.merge == "concat" else 1)
    output_size = kernel.shape[-1] if kernel.ndim else 0
    expect_shape("dense[0], the kernel", kernel, (wide, output_size), "D*H, O")
    for one in bias:
        expect_shape("dense[1], the bias", one, (output_size,), "O")
    same_dtype({"stack[0][0]": weights["weight_ih_l0"], **{f"dense[{i}]": a for i, a in enumerate((kernel, *bias))}})
    return add_readout(sizes, weights, kernel.T, bias[0] if bias else None)
