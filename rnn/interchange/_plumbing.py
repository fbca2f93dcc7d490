"""Nodes between recurrent ones: those that move numbers or make shapes, and the few sums that exporters write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx import ModelProto, NodeProto
from onnx.reference import ReferenceEvaluator

from .._backends.base import Array
from ._layers import NotCarried
from ._nodes import RECURRENT

JOINS = ("Transpose", "Reshape", "Squeeze", "ReduceSum", "Split", "Concat", "MatMul", "Add")
"""What `to_model` writes."""

SHAPES = ("Cast", "Constant", "ConstantOfShape", "Expand", "Gather", "Identity", "Shape", "Slice", "Unsqueeze")
"""What others write beside it, to make initial states of the batch's size: no arithmetic."""

STANDARD = ("", "ai.onnx")


def label(node: NodeProto) -> str:
    """A node's type, with its domain if that isn't ONNX's own, and its name."""
    kind = node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"
    return f"{kind} node {node.name!r}" if node.name else f"{kind} node"


def refused(nodes: Sequence[NodeProto]) -> list[str]:
    """The types of the nodes that nothing here runs, each once."""
    known = {*RECURRENT, *JOINS, *SHAPES}
    kinds = [n.op_type if n.domain in STANDARD else f"{n.domain}.{n.op_type}" for n in nodes]
    return list(dict.fromkeys(kind for kind in kinds if kind not in known))


def check(model: ModelProto) -> None:
    """Raise NotCarried, naming them, for node types that aren't run here, and for a model without recurrent nodes.

    A model of joins alone is none of ours: any NumPy runs it better.
    """
    nodes = model.graph.node
    kinds = refused(nodes)
    if not kinds and not any(node.op_type in RECURRENT for node in nodes):
        kinds = list(dict.fromkeys(node.op_type for node in nodes))
        raise NotCarried(f"model: expected a node of {', '.join(RECURRENT)}, got only {', '.join(kinds) or 'no nodes'}")
    if kinds:
        expected = f"{', '.join(RECURRENT)} and what joins them ({', '.join((*JOINS, *SHAPES))})"
        raise NotCarried(f"model: expected nodes of {expected}, got {', '.join(kinds)}")
    if model.graph.sparse_initializer:
        raise NotCarried("model: expected dense initializers, got a sparse one")
    # Not onnx.checker.check_model: it copies all weights, and wants the shapes of what the graph puts out.
    known = {value.name for value in (*model.graph.input, *model.graph.initializer)}
    for node in nodes:
        for name in node.input:
            if name and name not in known:
                raise ValueError(
                    f"{label(node)}: input {name!r}: expected a tensor that is made before it, it isn't there"
                )
        known.update(node.output)
    for value in model.graph.output:
        if value.name not in known:
            raise ValueError(f"output {value.name!r}: expected a tensor that some node makes, it isn't there")


def opset(model: ModelProto) -> int:
    """The version of ONNX's own operators that a model is written in."""
    return next((int(one.version) for one in model.opset_import if one.domain in STANDARD), 1)


def evaluator(node: NodeProto, opset: int) -> ReferenceEvaluator:
    """What runs such a node: ONNX's own reference, in NumPy."""
    return ReferenceEvaluator(node, opsets={"": opset})


def evaluate(node: NodeProto, opset: int, given: Mapping[str, Any]) -> list[Array]:
    """The node's outputs, without those left out."""
    return list(evaluator(node, opset).run(None, dict(given)))
