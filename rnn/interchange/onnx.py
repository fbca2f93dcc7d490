"""Layers from and to ONNX models (needs the package onnx): one RNN, LSTM or GRU node for each layer of a stack.

    onnx.save(rnn.interchange.onnx.to_model(layer), "model.onnx")
    (layer,) = rnn.interchange.onnx.from_model(onnx.load("model.onnx"))

ONNX's gates stand in the order i, o, f, c and z, r, h, its peepholes in the order i, o, f; biases, peepholes,
directions, both forms of GRU, coupled gates (`input_forget`) and RNN's tanh, sigmoid and ReLU have counterparts
on both sides, and weights cross bit by bit. Models that need no layer are run by `rnn.onnx.Backend`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from .. import _check
from .._backends.base import Array
from ..layers import Layer
from . import _nodes
from . import _plumbing as plumbing
from ._cells import NodeCell
from ._layers import (
    NotCarried,
    Sizes,
    add_readout,
    as_array,
    expect_shape,
    make,
    own_cell,
    same_dtype,
    take,
)
from ._nodes import RECURRENT, Node

__all__ = ["from_model", "to_model"]

OPSET = 17
"""What `to_model` writes, with the IR version of its time: runtimes since 2022 read it."""
IR_VERSION = 8

# ---- to ONNX


def to_model(layer: Layer, *, lengths: bool = False, states: bool = False, layout: int = 0) -> ModelProto:
    """`layer` as a model: a node a layer, Squeeze, Transpose, Reshape or ReduceSum between, MatMul and Add as readout.

    Its input is "x" (T, N, I), its output "output" (T, N, D*H or O), of the layer's dtype; T and N are left open.
    lengths: one more input, "lengths" (N,) int32; past a row's end, where the layer puts out 0, the model's readout is
    its bias. states: more inputs "h0" (and "c0" of an LSTM) and outputs "hn"
    (and "cn"), (L*D, N, H) numbered as in PyTorch. layout=1: (N, T, I), (N, T, D*H) and (N, L*D, H) instead, by the
    nodes' attribute (some runtimes have only 0).

    Dropout exists in training alone and isn't written. Raises NotCarried for what ONNX has no operator for: minimal
    gated units, IndRNN, own cells (but those that `from_model` made), zoneout. Raises TypeError if `layer` isn't one,
    ValueError for another layout.
    """
    cell, sizes, weights = take(layer, "ONNX", own=True)
    if isinstance(layout, bool) or layout not in (0, 1):
        raise ValueError(f"layout: expected 0 or 1, got {layout!r}")
    graph = _Graph(cell, sizes, weights, layout, _check.flag("lengths", lengths), _check.flag("states", states))
    for k in range(sizes.num_layers):
        graph.recurrent(k)
    return graph.model()


class _Graph:
    """A model that grows by a layer at a time."""

    def __init__(
        self,
        cell: NodeCell,
        sizes: Sizes,
        weights: Mapping[str, Array],
        layout: int,
        lengths: bool,
        states: bool,
    ) -> None:
        self.cell, self.sizes, self.weights, self.layout = cell, sizes, weights, layout
        self.op = cell.op
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, Array] = {}
        self.sequence, self.lengths, self.states = "x", "lengths" if lengths else "", states
        self.state_names = ("h", "c") if self.op == "LSTM" else ("h",)
        self.before: dict[str, list[str]] = {}
        self.after: dict[str, list[str]] = {name: [] for name in self.state_names}
        if states:
            for name in self.state_names:
                self.before[name] = self._split(f"{name}0")

    def add(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))

    def constant(self, name: str, value: Array) -> str:
        self.initializers[name] = value
        return name

    def _split(self, name: str) -> list[str]:
        """The layers' parts of an initial state."""
        sizes = self.sizes
        if sizes.num_layers == 1:
            return [name]
        parts = [f"{name}_l{k}" for k in range(sizes.num_layers)]
        each = self.constant(f"{name}_parts", np.full(sizes.num_layers, sizes.directions, np.int64))
        self.add("Split", [name, each], parts, axis=self._state_axis)
        return parts

    @property
    def _state_axis(self) -> int:
        return 1 if self.layout else 0

    def recurrent(self, k: int) -> None:
        sizes, end = self.sizes, f"_l{k}"
        names = {
            name: self.constant(f"{name}{end}", array)
            for name, array in _nodes.node_weights(self.cell, sizes, self.weights, k).items()
        }
        names |= {"X": self.sequence, "sequence_lens": self.lengths}
        names |= {f"initial_{name}": parts[k] for name, parts in self.before.items()}
        inputs = [names.get(name, "") for name in _nodes.INPUTS[self.op]]
        while not inputs[-1]:
            inputs.pop()
        outputs = [f"Y{end}"]
        if self.states:
            for name in self.state_names:
                outputs.append(f"{name}n" if sizes.num_layers == 1 else f"{name}n{end}")
                self.after[name].append(outputs[-1])
        self.add(self.op, inputs, outputs, **_nodes.node_attributes(self.cell, sizes, self.layout))
        last = k == sizes.num_layers - 1
        self.sequence = self._merged(f"Y{end}", "output" if last and sizes.output_size is None else f"output{end}")

    def _merged(self, given: str, result: str) -> str:
        """The directions of Y side by side, or summed."""
        if self.sizes.directions == 1 or self.sizes.merge == "sum":
            axis = self.constant("direction_axis", np.array([2 if self.layout else 1], np.int64))
            if self.sizes.directions == 1:
                self.add("Squeeze", [given, axis], [result])
            else:
                self.add("ReduceSum", [given, axis], [result], keepdims=0)
            return result
        if not self.layout:
            self.add("Transpose", [given], [f"{given}_t"], perm=[0, 2, 1, 3])
            given = f"{given}_t"
        both = self.constant("side_by_side", np.array([0, 0, 2 * self.sizes.hidden_size], np.int64))
        self.add("Reshape", [given, both], [result])
        return result

    def model(self) -> ModelProto:
        sizes, weights = self.sizes, self.weights
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(sizes.dtype))
        if sizes.output_size is not None:
            product = "output_product" if sizes.bias else "output"
            matrix = self.constant("weight_ho", np.ascontiguousarray(weights["weight_ho"].T))
            self.add("MatMul", [self.sequence, matrix], [product])
            if sizes.bias:
                self.add("Add", [product, self.constant("bias_o", weights["bias_o"])], ["output"])
        wide = sizes.hidden_size * (sizes.directions if sizes.merge == "concat" else 1)
        wide = wide if sizes.output_size is None else sizes.output_size

        def info(name: str, *shape: str | int) -> Any:
            return helper.make_tensor_value_info(
                name, kind, [shape[i] for i in ((1, 0, 2) if self.layout else (0, 1, 2))]
            )

        inputs, outputs = [info("x", "T", "N", sizes.input_size)], [info("output", "T", "N", wide)]
        if self.lengths:
            inputs.append(helper.make_tensor_value_info(self.lengths, TensorProto.INT32, ["N"]))
        if self.states:
            shape = (sizes.num_layers * sizes.directions, "N", sizes.hidden_size)
            for name in self.state_names:
                inputs.append(info(f"{name}0", *shape))
                outputs.append(info(f"{name}n", *shape))
                if sizes.num_layers > 1:
                    self.add("Concat", self.after[name], [f"{name}n"], axis=self._state_axis)
        initializers = [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in self.initializers.items()]
        graph = helper.make_graph(
            self.nodes, f"halide_rnn_{self.cell.name or self.op.lower()}", inputs, outputs, initializers
        )
        opset = [helper.make_opsetid("", OPSET)]
        made = helper.make_model(graph, producer_name="halide-rnn", opset_imports=opset, ir_version=IR_VERSION)
        checker.check_model(made)
        return made


# ---- from ONNX


@dataclass(frozen=True)
class _Value:
    """What a tensor of the graph is to the layers: kind

    "input"     one of the graph's inputs
    "part"      a part of one: the initial state of one layer
    "Y"         what node k puts out, its directions on axis `axis`
    "sequence"  the same with the directions merged
    "product"   its product with the readout's matrix
    "readout"   the same with the bias added
    "last"      final states
    "zeros"     zeros of a shape found at run time
    "shape"     numbers made of shapes
    """

    kind: str
    k: int = -1
    axis: int = -1
    time: int = 0
    merge: str = "concat"


_Known = _Value | np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Part:
    """One recurrent node, as a layer."""

    node: Node
    sizes: Sizes
    weights: dict[str, Array]
    lengths: str | None


def from_model(model: ModelProto) -> list[Layer]:
    """The layers of a model that is a chain of RNN, LSTM and GRU nodes, in their order (weights are copied).

    Nodes in a row that agree in everything but their input's size become one layer of several (num_layers), so what
    `to_model` wrote comes back as one. Between them may stand what merges directions, concatenated or summed, and at
    the end a MatMul, with or without an Add, as readout. Initial states, where they are the graph's inputs, and
    sequence_lens are arguments of the layers' `forward`; `layout` is about the arrays that go in and out, and a
    layer's are always (T, N, I). A node with `clip` or activations of its own becomes a layer of a cell of its own.

    Raises NotCarried, naming the node, for everything else: other operators, weights that aren't constants, states
    that are constants other than 0, directions with different activations, outputs from the middle of the chain.
    Raises ValueError or TypeError for a model that is wrong in itself.
    """
    if not isinstance(model, ModelProto):
        raise TypeError(f"model: expected an onnx.ModelProto, got {type(model).__name__}")
    reader = _Reader(model)
    for node in model.graph.node:
        reader.read(node)
    return reader.layers([output.name for output in model.graph.output])


class _Reader:
    def __init__(self, model: ModelProto) -> None:
        plumbing.check(model)
        self.opset = plumbing.opset(model)
        self.values: dict[str, _Known] = {value.name: _Value("input") for value in model.graph.input}
        self.values |= {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.parts: list[_Part] = []
        self.merges: dict[int, str] = {}
        self.readout: tuple[Array, Array | None] | None = None

    def read(self, node: NodeProto) -> None:
        if node.op_type in RECURRENT:
            self._recurrent(_nodes.read(node, self.opset))
            return
        given = [self.values[name] for name in node.input if name]
        if all(isinstance(value, np.ndarray) for value in given):
            made = plumbing.evaluate(node, self.opset, {name: self.values[name] for name in node.input if name})
            self.values |= dict(zip([name for name in node.output if name], made, strict=True))
            return
        value = self._plumbing(node, given)
        if value is None:
            raise NotCarried(f"{plumbing.label(node)}: expected only what joins the layers of a chain, not this, here")
        self.values |= {name: value for name in node.output if name}

    def _recurrent(self, node: Node) -> None:
        label = node.label
        if len(set(node.cells)) > 1:
            raise NotCarried(f"{label}: activations: expected the same in both directions of a layer")
        given: dict[str, Array] = {}
        for name in ("W", "R", "B", "P"):
            if name in node.inputs:
                value = self.values[node.inputs[name]]
                if not isinstance(value, np.ndarray):
                    raise NotCarried(f"{label}: {name}: expected a constant, {node.inputs[name]!r} isn't one")
                given[name] = as_array(f"{label}: {name}", value)
        for name in ("initial_h", "initial_c"):
            value = self.values[node.inputs[name]] if name in node.inputs else _Value("zeros")
            zeros = not value.any() if isinstance(value, np.ndarray) else value.kind in ("input", "part", "zeros")
            if not zeros:
                raise NotCarried(f"{label}: {name}: expected an input of the graph or zeros, a layer keeps no state")
        x = self.values[node.inputs["X"]]
        k = len(self.parts)
        follows = isinstance(x, _Value) and (
            (x.kind == "input" and k == 0) or (x.kind == "sequence" and x.k == k - 1 and x.time == node.layout)
        )
        if not follows:
            raise NotCarried(f"{label}: X: expected the output of the recurrent node before it: a chain")
        lengths = node.inputs.get("sequence_lens")
        if lengths is not None and not self._is(lengths, "input"):
            raise NotCarried(f"{label}: sequence_lens: expected an input of the graph")
        self.parts.append(_Part(node, *_nodes.layer_weights(node, given), lengths))
        for formal, actual in node.outputs.items():
            y = _Value("Y", k, axis=2 if node.layout else 1, time=node.layout)
            self.values[actual] = y if formal == "Y" else _Value("last")

    def _is(self, name: str, kind: str) -> bool:
        value = self.values[name]
        return isinstance(value, _Value) and value.kind == kind

    def _plumbing(self, node: NodeProto, given: list[_Known]) -> _Value | None:
        """What a node that isn't recurrent makes of its first input; None where that is nothing a layer has."""
        op, x, rest = node.op_type, given[0], list(given[1:])
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        kinds = {value.kind if isinstance(value, _Value) else "constant" for value in given}
        if op == "Shape" or (
            kinds <= {"shape", "constant"} and op in ("Gather", "Unsqueeze", "Squeeze", "Concat", "Cast")
        ):
            return _Value("shape")
        if op in ("ConstantOfShape", "Expand") and kinds <= {"shape", "constant"}:
            fill = attributes.get("value") if op == "ConstantOfShape" else None
            content = numpy_helper.to_array(fill) if fill is not None else x if op == "Expand" else np.zeros(1)
            return _Value("zeros") if isinstance(content, np.ndarray) and not content.any() else None
        if op == "Concat" and len(kinds) == 1 and kinds <= {"last", "zeros"}:
            return x if isinstance(x, _Value) else None
        if not isinstance(x, _Value):
            x, rest = (rest[0], [x, *rest[1:]]) if op == "Add" and rest else (x, rest)
        constants: list[Array] = [value for value in rest if isinstance(value, np.ndarray)]
        if not isinstance(x, _Value) or len(constants) < len(rest):
            return None
        if op == "Identity":
            return x
        if x.kind in ("input", "part", "zeros") and op in ("Split", "Slice"):
            return x if x.kind == "zeros" else _Value("part")
        if op == "Transpose" and list(attributes.get("perm", ())) == [1, 0, 2]:  # to another layout and back
            if x.kind in ("input", "part", "zeros", "last"):
                return x
            if x.kind == "sequence":
                return replace(x, time=1 - x.time)
        if x.kind == "Y":
            return self._merge(op, x, attributes, constants)
        if x.kind == "sequence" and op == "MatMul" and x.k == len(self.parts) - 1 and self.readout is None:
            (matrix,) = constants
            if matrix.ndim == 2:
                self.readout = matrix, None
                return replace(x, kind="product")
        if x.kind == "product" and op == "Add" and self.readout is not None and self.readout[1] is None:
            (bias,) = constants
            if bias.shape == self.readout[0].shape[1:]:
                self.readout = self.readout[0], bias
                return replace(x, kind="readout")
        return None

    def _merge(self, op: str, y: _Value, attributes: Mapping[str, Any], constants: list[Array]) -> _Value | None:
        """Y with its directions merged, or turned so that they can be."""
        sizes = self.parts[y.k].sizes
        numbers = constants[0].tolist() if constants else list(attributes.get("axes", ()))
        if op == "Transpose" and list(attributes.get("perm", ())) == [0, 2, 1, 3] and y.axis == 1:
            return replace(y, axis=2)
        merge = None
        if op == "Squeeze" and numbers in ([y.axis], [y.axis - 4]) and sizes.directions == 1:
            merge = "concat"
        wide = sizes.directions * sizes.hidden_size
        if (
            op == "Reshape"
            and numbers in ([0, 0, -1], [0, 0, wide])
            and y.axis == 2
            and not attributes.get("allowzero")
        ):
            merge = "concat"
        if op == "ReduceSum" and numbers in ([y.axis], [y.axis - 4]) and not attributes.get("keepdims", 1):
            merge = "sum" if sizes.directions == 2 else "concat"
        if merge is None or self.merges.setdefault(y.k, merge) != merge:
            return None
        return replace(y, kind="sequence", merge=merge)

    def layers(self, outputs: list[str]) -> list[Layer]:
        if not self.parts:
            raise NotCarried(f"model: expected a node of {', '.join(RECURRENT)}, there is none")
        last = len(self.parts) - 1
        ends = ("last", "Y", "sequence") if self.readout is None else ("last", "readout", "product")
        for name in outputs:
            value = self.values[name]
            whole = isinstance(value, _Value) and value.kind in ends and value.k in (last, -1)
            if isinstance(value, _Value) and value.kind == "product" and self.readout and self.readout[1] is not None:
                whole = False
            if not whole:
                raise NotCarried(
                    f"output {name!r}: expected the last layer's output, or final states: a layer has no other"
                )
        groups: list[list[int]] = [[0]]
        for k in range(1, len(self.parts)):
            if self._agree(groups[-1], k):
                groups[-1].append(k)
            else:
                groups.append([k])
        return [self._layer(group, group is groups[-1]) for group in groups]

    def _agree(self, group: list[int], k: int) -> bool:
        """Whether node k is one more layer of the same stack."""
        first, part = self.parts[group[0]], self.parts[k]
        merge = self.merges.get(group[0], "concat")
        return (
            part.node.cells == first.node.cells
            and replace(part.sizes, input_size=first.sizes.input_size) == first.sizes
            and part.lengths == first.lengths
            and self.merges.get(k, merge) == merge
            and all(self.merges.get(i, merge) == merge for i in group)
        )

    def _layer(self, group: list[int], last: bool) -> Layer:
        first = self.parts[group[0]]
        sizes = replace(first.sizes, num_layers=len(group), merge=self.merges.get(group[0], "concat"))
        weights: dict[str, Array] = {}
        for k, index in enumerate(group):
            for name, array in self.parts[index].weights.items():
                weights[name.replace("_l0", f"_l{k}")] = array
        if last and self.readout is not None:
            matrix, bias = self.readout
            wide = sizes.hidden_size * (sizes.directions if sizes.merge == "concat" else 1)
            expect_shape("the readout's MatMul", matrix, (wide, matrix.shape[1]), "D*H, O")
            same_dtype({"W": first.weights["weight_ih_l0"], "the readout's MatMul": matrix})
            sizes, weights = add_readout(sizes, weights, matrix.T, bias)
        cell = first.node.cells[0]
        return make(own_cell(cell) if cell.name is None else cell.name, sizes, weights)
