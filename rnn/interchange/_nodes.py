"""An RNN, LSTM or GRU node: its attributes read and checked, its weights turned into ours and back, and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, helper

from .._backends.base import Array
from ..layers import Layer
from ._cells import ACTIVATIONS, DEFAULTS, Activation, NodeCell
from ._layers import NotCarried, Sizes, make, own_cell, reorder, suffixes

GATES_OF = {"RNN": "h", "LSTM": "iofg", "GRU": "zrn"}
"""ONNX's order of the gates, in our letters: its c is our g, its h of a GRU our n."""

RECURRENT = ("RNN", "LSTM", "GRU")
INPUTS = {
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
}
OUTPUTS = {"RNN": ("Y", "Y_h"), "LSTM": ("Y", "Y_h", "Y_c"), "GRU": ("Y", "Y_h")}
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "RNN": ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout"),
}
_ATTRIBUTES["LSTM"] = (*_ATTRIBUTES["RNN"], "input_forget")
_ATTRIBUTES["GRU"] = (*_ATTRIBUTES["RNN"], "linear_before_reset")
_KINDS = {
    "activation_alpha": AttributeProto.FLOATS,
    "activation_beta": AttributeProto.FLOATS,
    "activations": AttributeProto.STRINGS,
    "clip": AttributeProto.FLOAT,
    "direction": AttributeProto.STRING,
}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
FIRST_OPSET = 7
"""Before it these operators had an attribute output_sequence, and GRU another default."""

Wanted = dict[str, Array]


@dataclass(frozen=True)
class Node:
    """A node as read: `cells` has one cell a direction; `inputs` and `outputs` map the operator's names to the
    graph's, without those left out.
    """

    label: str
    op: str
    cells: tuple[NodeCell, ...]
    direction: str
    layout: int
    hidden_size: int | None
    inputs: dict[str, str]
    outputs: dict[str, str]


def read(node: NodeProto, opset: int) -> Node:
    """Raises NotCarried for an old opset or an unknown attribute or activation, ValueError for wrong values."""
    op = node.op_type
    label = f"{op} node {node.name!r}" if node.name else f"{op} node"
    if opset < FIRST_OPSET:
        raise NotCarried(f"{label}: expected opset {FIRST_OPSET} or later, got {opset}")
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        name = attribute.name
        if name not in _ATTRIBUTES[op]:
            raise NotCarried(f"{label}: attribute {name}: expected one of {', '.join(_ATTRIBUTES[op])}")
        kind = _KINDS.get(name, AttributeProto.INT)
        if attribute.type != kind:
            wanted, came = (AttributeProto.AttributeType.Name(k) for k in (kind, attribute.type))
            raise ValueError(f"{label}: attribute {name}: expected {wanted}, got {came}")
        attributes[name] = helper.get_attribute_value(attribute)

    direction = attributes.get("direction", b"forward").decode()
    if direction not in DIRECTIONS:
        raise ValueError(f"{label}: direction: expected one of {', '.join(DIRECTIONS)}, got {direction!r}")
    layout = attributes.get("layout", 0)
    if layout not in (0, 1):
        raise ValueError(f"{label}: layout: expected 0 or 1, got {layout}")
    clip = attributes.get("clip")
    if clip is not None and not clip >= 0:
        raise ValueError(f"{label}: clip: expected a number of at least 0, got {clip}")
    hidden_size = attributes.get("hidden_size")
    inputs = _names(label, "inputs", INPUTS[op], node.input)
    for needed in ("X", "W", "R"):
        if needed not in inputs:
            raise ValueError(f"{label}: input {needed}: expected one, it is left out")
    each = len(DEFAULTS[op])
    functions = _activations(label, op, attributes, DIRECTIONS[direction])
    return Node(
        label=label,
        op=op,
        cells=tuple(
            NodeCell(
                op=op,
                activations=functions[d * each : (d + 1) * each],
                clip=clip,
                coupled=bool(attributes.get("input_forget", 0)),
                peepholes="P" in inputs,
                reset_after=bool(attributes.get("linear_before_reset", 0)),
            )
            for d in range(DIRECTIONS[direction])
        ),
        direction=direction,
        layout=layout,
        hidden_size=hidden_size,
        inputs=inputs,
        outputs=_names(label, "outputs", OUTPUTS[op], node.output),
    )


def _names(label: str, what: str, known: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    if len(given) > len(known):
        raise ValueError(f"{label}: expected at most {len(known)} {what}, got {len(given)}")
    return {formal: actual for formal, actual in zip(known, given, strict=False) if actual}


def _activations(label: str, op: str, attributes: Mapping[str, Any], directions: int) -> tuple[Activation, ...]:
    each = len(DEFAULTS[op])
    names = [name.decode() for name in attributes.get("activations", ())] or DEFAULTS[op] * directions
    if len(names) != each * directions:
        expected = f"expected {each * directions} names ({each} a direction)"
        raise ValueError(f"{label}: activations: {expected}, got {', '.join(names)}")
    spelled = {name.lower(): name for name in ACTIVATIONS}  # exporters write them in lower case too
    for i, name in enumerate(names):
        if name.lower() not in spelled:
            raise NotCarried(f"{label}: activations: expected names out of {', '.join(ACTIVATIONS)}, got {name!r}")
        names[i] = spelled[name.lower()]
    numbers = {
        letter: _consumed(f"{label}: {attribute}", letter, names, list(attributes.get(attribute, ())))
        for letter, attribute in (("a", "activation_alpha"), ("b", "activation_beta"))
    }
    return tuple(
        Activation(name, alpha, beta) for name, alpha, beta in zip(names, numbers["a"], numbers["b"], strict=True)
    )


def _consumed(name: str, letter: str, functions: Sequence[str], values: list[float]) -> list[float]:
    """One number for each function: those that take one consume the values in their order, and where these are used
    up have their default. A list with a value for every function, also those that take none, is how others read
    the operators' text; where that would mean other numbers, nobody knows what the model's author meant.
    """
    takers = [i for i, function in enumerate(functions) if letter in ACTIVATIONS[function].takes]
    if len(values) > len(takers):
        by_position = [values[i] for i in takers] if len(values) == len(functions) else None
        if by_position != values[: len(takers)]:
            wanted = ", ".join(functions[i] for i in takers) or "no function here"
            raise NotCarried(f"{name}: expected {len(takers)} values, for {wanted}, got {len(values)}: {values}")
    numbers = [0.0] * len(functions)
    for position, i in enumerate(takers):
        formula = ACTIVATIONS[functions[i]]
        if position < len(values):
            numbers[i] = values[position]
        elif formula.defaults:
            numbers[i] = float(np.float32(formula.defaults[formula.takes.index(letter)]))  # as attributes are
        else:
            raise ValueError(f"{name}: expected a value for {functions[i]}, which has no default")
    return numbers


# ---- weights


def layer_weights(node: Node, given: Mapping[str, Array]) -> tuple[Sizes, Wanted]:
    """W (D,G*H,I), R (D,G*H,H), B (D,2*G*H) and P (D,3*H) of one node as the weights of one layer.

    Rows that the operator never reads, the forget gate's with `input_forget`, are not taken over.
    Raises ValueError for shapes, TypeError for dtypes.
    """
    W, R = given["W"], given["R"]
    gates, directions = len(GATES_OF[node.op]), len(node.cells)
    if R.ndim != 3:
        raise ValueError(f"{node.label}: R: expected shape (D, G*H, H), got {R.shape}")
    hidden = R.shape[2] if node.hidden_size is None else node.hidden_size
    width = W.shape[2] if W.ndim == 3 else 0
    shapes = {
        "W": ((directions, gates * hidden, width), "D, G*H, I"),
        "R": ((directions, gates * hidden, hidden), "D, G*H, H"),
        "B": ((directions, 2 * gates * hidden), "D, 2*G*H"),
        "P": ((directions, 3 * hidden), "D, 3*H"),
    }
    for name, array in given.items():
        shape, axes = shapes[name]
        if array.shape != shape:
            raise ValueError(f"{node.label}: {name}: expected shape {shape} ({axes}), got {array.shape}")
        if array.dtype != W.dtype:
            raise TypeError(f"{node.label}: {name}: expected {W.dtype} like W, got {array.dtype}")
    sizes = Sizes(
        input_size=width,
        hidden_size=hidden,
        directions=directions,
        reverse=node.direction == "reverse",
        bias="B" in given,
        dtype=str(W.dtype),
    )
    weights: Wanted = {}
    for d, (cell, end) in enumerate(zip(node.cells, suffixes(sizes, 0), strict=True)):
        weights |= _one_direction(cell, end, {name: array[d] for name, array in given.items()})
    return sizes, weights


def _one_direction(cell: NodeCell, end: str, given: Mapping[str, Array]) -> Wanted:
    theirs = GATES_OF[cell.op]
    weights = {
        f"weight_ih{end}": reorder(given["W"], theirs, cell.gates),
        f"weight_hh{end}": reorder(given["R"], theirs, cell.gates),
    }
    if "B" in given:
        for part, bias in zip(("bias_ih", "bias_hh"), np.split(given["B"], 2), strict=True):
            weights[part + end] = reorder(bias, theirs, cell.gates)
    if "P" in given:
        vectors = dict(zip(("peephole_i", "peephole_o", "peephole_f"), np.split(given["P"], 3), strict=True))
        weights |= {name + end: vectors[name] for name in cell.vectors}
    return weights


def node_weights(cell: NodeCell, sizes: Sizes, weights: Mapping[str, Array], k: int) -> Wanted:
    """The other way: W, R, and where there are any B and P, of layer k."""
    ours, theirs, ends = cell.gates, GATES_OF[cell.op], suffixes(sizes, k)

    def stacked(part: str) -> Array:
        return np.stack([reorder(weights[part + end], ours, theirs) for end in ends])

    result = {"W": stacked("weight_ih"), "R": stacked("weight_hh")}
    if sizes.bias:
        result["B"] = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1)
    if cell.peepholes:
        none = np.zeros(sizes.hidden_size, sizes.dtype)
        parts = [[weights.get(f"peephole_{gate}{end}", none) for gate in "iof"] for end in ends]
        result["P"] = np.stack([np.concatenate(part) for part in parts])
    return result


def node_attributes(cell: NodeCell, sizes: Sizes, layout: int) -> dict[str, Any]:
    """The attributes of a node of this cell; those that have their defaults are left out."""
    attributes: dict[str, Any] = {"hidden_size": sizes.hidden_size}
    if sizes.directions == 2 or sizes.reverse:
        attributes["direction"] = "bidirectional" if sizes.directions == 2 else "reverse"
    functions = [function for _ in range(sizes.directions) for function in cell.activations]
    if [function.name for function in cell.activations] != DEFAULTS[cell.op]:
        attributes["activations"] = [function.name for function in functions]
        alphas = [function.alpha for function in functions if "a" in ACTIVATIONS[function.name].takes]
        betas = [function.beta for function in functions if "b" in ACTIVATIONS[function.name].takes]
        attributes |= {"activation_alpha": alphas} if alphas else {}
        attributes |= {"activation_beta": betas} if betas else {}
    flags = {"layout": layout, "input_forget": cell.coupled, "linear_before_reset": cell.reset_after}
    attributes |= {name: 1 for name, flag in flags.items() if flag}
    return attributes if cell.clip is None else attributes | {"clip": cell.clip}


# ---- running


class Runner:
    """One node with its weights, ready to run: the layers it takes, one for both directions if they have one cell."""

    def __init__(self, node: Node, given: Mapping[str, Array]) -> None:
        self.node = node
        self.dtype = given["W"].dtype
        computed = {name: _widened(f"{node.label}: {name}", array) for name, array in given.items()}
        sizes, weights = layer_weights(node, computed)
        self.sizes = sizes
        cells = node.cells
        self.layers: list[Layer] = []
        if len(set(cells)) == 1:
            self.layers.append(make(_known(cells[0]), sizes, weights))
            return
        for cell, end, reverse in zip(cells, suffixes(sizes, 0), (False, True), strict=True):
            one = Sizes(
                sizes.input_size, sizes.hidden_size, reverse=reverse, bias=sizes.bias, dtype=sizes.dtype
            )  # fmt: skip
            part = {name.removesuffix(end) + "_l0": array for name, array in weights.items() if name.endswith(end)}
            self.layers.append(make(_known(cell), one, part))

    def __call__(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """X, and what there is of sequence_lens, initial_h, initial_c -> Y, Y_h, Y_c, in the node's layout."""
        node, sizes = self.node, self.sizes
        for name in ("X", "initial_h", "initial_c"):
            if name in given and given[name].dtype != self.dtype:
                raise TypeError(f"{node.label}: {name}: expected {self.dtype} like W, got {given[name].dtype}")
        x = _widened(f"{node.label}: X", given["X"])
        if x.ndim != 3 or x.shape[2] != sizes.input_size:
            axes = "N, T, I" if node.layout else "T, N, I"
            raise ValueError(f"{node.label}: X: expected shape ({axes}) with I={sizes.input_size}, got {x.shape}")
        if node.layout:
            x = x.swapaxes(0, 1)
        steps, lanes, _ = x.shape
        lengths = self._lengths(given.get("sequence_lens"), steps, lanes)
        before = self._states(given, lanes)
        runs = []
        for k, layer in enumerate(self.layers):
            part = [state if len(self.layers) == 1 else state[k : k + 1] for state in before]
            part = [state[0] if len(state) == 1 else state for state in part]
            state = None if not part else part[0] if node.op != "LSTM" else tuple(part)
            runs.append(layer(np.ascontiguousarray(x), state, lengths=lengths))
        each = sizes.directions // len(runs)
        split = [output.reshape(steps, lanes, each, sizes.hidden_size) for output, _ in runs]
        Y = np.concatenate(split, axis=2).swapaxes(1, 2)
        after = [state if isinstance(state, tuple) else (state,) for _, state in runs]
        last = [
            np.concatenate([state[i].reshape(each, lanes, sizes.hidden_size) for state in after])
            for i in range(len(after[0]))
        ]
        if node.layout:
            Y, last = Y.transpose(2, 0, 1, 3), [state.swapaxes(0, 1) for state in last]
        return {
            name: np.ascontiguousarray(array, dtype=self.dtype)
            for name, array in zip(OUTPUTS[node.op], (Y, *last), strict=True)
        }

    def _lengths(self, value: Array | None, steps: int, lanes: int) -> Array | None:
        if value is None:
            return None
        expected = f"{self.node.label}: sequence_lens: expected {lanes} integers from 0 to {steps}"
        if value.shape != (lanes,) or value.dtype.kind not in "iu":
            raise ValueError(f"{expected}, got dtype {value.dtype}, shape {value.shape}")
        if lanes and not 0 <= value.min() <= value.max() <= steps:
            raise ValueError(f"{expected}, got {value.tolist()}")
        return value.astype(np.int64)

    def _states(self, given: Mapping[str, Array], lanes: int) -> list[Array]:
        """The initial states (D, N, H), or none if they all are 0 by default."""
        names = ("initial_h", "initial_c") if self.node.op == "LSTM" else ("initial_h",)
        if not any(name in given for name in names):
            return []
        states = []
        directions, hidden = self.sizes.directions, self.sizes.hidden_size
        shape, axes = (directions, lanes, hidden), "D, N, H"
        if self.node.layout:
            shape, axes = (lanes, directions, hidden), "N, D, H"
        for name in names:
            state = given.get(name)
            if state is not None and state.shape != shape:
                raise ValueError(f"{self.node.label}: {name}: expected shape {shape} ({axes}), got {state.shape}")
            state = (
                np.zeros(shape, self.sizes.dtype) if state is None else _widened(f"{self.node.label}: {name}", state)
            )
            states.append(np.ascontiguousarray(state.swapaxes(0, 1) if self.node.layout else state))
        return states


def _known(cell: NodeCell) -> str | type[Layer]:
    return own_cell(cell) if cell.name is None else cell.name


def _widened(name: str, array: Array) -> Array:
    """The array as a layer computes: float64, or float32, also for the 16 bit types, which are rounded at the end."""
    if array.dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        return array
    if array.dtype.name in ("float16", "bfloat16"):
        return array.astype(np.float32)
    raise TypeError(f"{name}: expected float32, float64, float16 or bfloat16, got {array.dtype}")
