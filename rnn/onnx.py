"""ONNX models of RNN, LSTM and GRU nodes, run by the layers here (needs the package onnx).

    prepared = rnn.onnx.Backend.prepare(onnx.load("model.onnx"))
    (output,) = prepared.run([x])

`Backend` is an onnx.backend.base.Backend. To train such a model, or to write one, make layers of it and back:
`from_model` and `to_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, defs, numpy_helper
from onnx.backend import base

from ._backends.base import Array
from .interchange import NotCarried, _nodes
from .interchange import _plumbing as plumbing
from .interchange.onnx import from_model, to_model

__all__ = ["Backend", "NotCarried", "Prepared", "from_model", "to_model"]

_Step = Callable[[dict[str, Array]], None]


class Backend(base.Backend):
    """Runs models whose nodes are RNN, LSTM and GRU, with all their attributes, on the CPU.

    A node runs as one of `rnn.RNN`, `rnn.LSTM` and `rnn.GRU` on the chosen backend (`rnn.backend`), and with `clip`
    or other activations as a cell of its own, which is compiled when it is first seen. float32 and float64; float16
    and bfloat16 are computed in float32. Between recurrent nodes may stand those that join them or make shapes, as
    exporters write them (Transpose, Reshape, Concat, MatMul, Add, ...). All other node types are refused by name.

    Where the operators' text leaves a choice: `clip` bounds what goes into the gates' activations, not what goes into
    LSTM's h; after the end of a sequence (`sequence_lens`) Y is 0; a sequence of length 0 ends in its initial state.
    """

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True for "CPU", also with a number ("CPU:0")."""
        return isinstance(device, str) and device.partition(":")[0] == "CPU"

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether `prepare` would take all node types of the model."""
        try:
            plumbing.check(model)
        except NotCarried:
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        """The model, ready to be run often: weights that are constants are taken over now.

        Raises NotCarried (a ValueError), naming the node types or attributes that aren't run here; ValueError for
        another device and for a model that is wrong in itself.
        """
        _check_device(device)
        if not isinstance(model, ModelProto):
            raise TypeError(f"model: expected an onnx.ModelProto, got {type(model).__name__}")
        plumbing.check(model)
        return Prepared(model)

    @classmethod
    def run_model(cls, model: ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Array, ...]:
        """`prepare(model, device).run(inputs)`."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype[Any], tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Array, ...]:
        """The named outputs of one RNN, LSTM or GRU node, in order.

        inputs: an array for each of the node's inputs (None or anything for those left out, or none at all), or a
        dict by the node's names of them. `opset_version`: the newest one, if not given.
        Raises as `prepare`.
        """
        _check_device(device)
        if not isinstance(node, NodeProto):
            raise TypeError(f"node: expected an onnx.NodeProto, got {type(node).__name__}")
        if node.op_type not in _nodes.RECURRENT or node.domain not in plumbing.STANDARD:
            raise NotCarried(f"node: expected one of {', '.join(_nodes.RECURRENT)}, got a {plumbing.label(node)}")
        opset = kwargs.get("opset_version", defs.onnx_opset_version())
        step = _recurrent(node, opset, {})
        names = [name for name in node.input if name]
        if not isinstance(inputs, Mapping) and len(inputs) == len(node.input):
            inputs = [value for name, value in zip(node.input, inputs, strict=True) if name]
        values = _feeds("inputs", inputs, names, names)
        step(values)
        names = [name for name in node.output if name]
        return _answer(base.namedtupledict("Outputs", names), names, values)


class Prepared(base.BackendRep):
    """A model, ready to be run. Its runs share nothing that changes."""

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        opset = plumbing.opset(model)
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._known = [value.name for value in graph.input]
        self._needed = [name for name in self._known if name not in self._constants]
        self._outputs = [value.name for value in graph.output]
        self._answer = base.namedtupledict("Outputs", self._outputs)
        self._steps: list[_Step] = []
        fixed = {name: value for name, value in self._constants.items() if name not in self._known}
        for node in graph.node:
            step = (_recurrent if node.op_type in _nodes.RECURRENT else _joining)(node, opset, fixed)
            if node.op_type not in _nodes.RECURRENT and all(name in fixed for name in node.input if name):
                step(fixed)
            else:
                self._steps.append(step)
        self._constants |= fixed

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Array, ...]:
        """The graph's outputs, in its order, also by name (`result["output"]`).

        inputs: an array for each of the graph's inputs that has no initializer, in its order; or a dict by name,
        which may also replace initializers that are inputs of the graph; or the one array of a single input.
        Raises ValueError or TypeError, naming the input and what was expected.
        """
        values = self._constants | _feeds("inputs", inputs, self._needed, self._known)
        for step in self._steps:
            step(values)
        return _answer(self._answer, self._outputs, values)


def _check_device(device: str) -> None:
    if not Backend.supports_device(device):
        raise ValueError(f"device: expected CPU, got {device!r}")


def _feeds(name: str, inputs: Any, needed: Sequence[str], known: Sequence[str]) -> dict[str, Array]:
    if isinstance(inputs, np.ndarray) and len(needed) == 1:
        inputs = [inputs]
    if isinstance(inputs, Mapping):
        feeds = dict(inputs)
    elif isinstance(inputs, list | tuple) and len(inputs) == len(needed):
        feeds = dict(zip(needed, inputs, strict=True))
    else:
        came = f"{len(inputs)}" if isinstance(inputs, list | tuple) else type(inputs).__name__
        raise ValueError(f"{name}: expected {len(needed)} arrays ({', '.join(needed)}), got {came}")
    unknown = [key for key in feeds if key not in known]
    missing = [key for key in needed if key not in feeds]
    if unknown or missing:
        came = ", ".join(map(str, feeds)) or "nothing"
        raise ValueError(f"{name}: expected arrays for {', '.join(needed)}, got {came}")
    for key, value in feeds.items():
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{name}: {key}: expected an array, got {type(value).__name__}")
    return feeds


def _recurrent(node: NodeProto, opset: int, constants: Mapping[str, Array]) -> _Step:
    """A step that runs a recurrent node, with the layer made now if its weights are known."""
    read = _nodes.read(node, opset)
    weights = {formal: read.inputs[formal] for formal in ("W", "R", "B", "P") if formal in read.inputs}
    others = {formal: name for formal, name in read.inputs.items() if formal not in weights}
    made: _nodes.Runner | None = None
    if all(name in constants for name in weights.values()):
        made = _nodes.Runner(read, {formal: constants[name] for formal, name in weights.items()})
        for layer in made.layers:
            layer.freeze()

    def step(values: dict[str, Array]) -> None:
        runner = made or _nodes.Runner(read, {formal: values[name] for formal, name in weights.items()})
        results = runner({formal: values[name] for formal, name in others.items()})
        values |= {name: results[formal] for formal, name in read.outputs.items()}

    return step


def _joining(node: NodeProto, opset: int, constants: Mapping[str, Array]) -> _Step:
    evaluator = plumbing.evaluator(node, opset)
    names = [name for name in node.output if name]

    def step(values: dict[str, Array]) -> None:
        results = evaluator.run(None, {name: values[name] for name in node.input if name})
        values |= dict(zip(names, results, strict=True))

    return step


def _answer(
    kind: Callable[..., tuple[Array, ...]], names: Sequence[str], values: dict[str, Array]
) -> tuple[Array, ...]:
    return kind(*(values[name] for name in names))
