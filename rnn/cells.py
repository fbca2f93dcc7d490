"""Cells: the equations of one time step, written once, from which the kernels, forward and back, are made.

    @rnn.cell
    class LiGRU:
        gates = "z", "n"                       # row blocks of weight_ih and weight_hh
        states = "h"                           # the first is what the layer puts out

        def step(self, x, u, h):               # x.z = W_ih,z x_t + b_ih,z     u.z(v) = W_hh,z v + b_hh,z
            z = sigmoid(x.z + u.z(h))
            n = relu(x.n + u.n(h))
            return z * h + (1 - z) * n

    layer = LiGRU(input_size=8, hidden_size=32)    # as rnn.LSTM

`vectors` names further weights, one number a unit: `u.name`. The functions of this module, + - * / and comparisons
inside `where` are all there is: values are read as equations, once, and not known then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._generators import module as _module
from .baselines import cells as reference

if TYPE_CHECKING:
    from cells import CELLS, Cell
    from derivation import MASK, CellError, Derivation, derive
    from expressions import (
        Expression,
        evaluate,
        exp,
        log,
        maximum,
        minimum,
        node,
        ordered,
        relu,
        sigmoid,
        sqrt,
        tanh,
        where,
    )
else:
    _cells, _derivation, _expressions = (_module(name) for name in ("cells", "derivation", "expressions"))
    CELLS, Cell = _cells.CELLS, _cells.Cell
    CellError, Derivation, derive = _derivation.CellError, _derivation.Derivation, _derivation.derive
    MASK = _derivation.MASK
    Expression, evaluate = _expressions.Expression, _expressions.evaluate
    node, ordered = _expressions.node, _expressions.ordered
    exp, log, sqrt = _expressions.exp, _expressions.log, _expressions.sqrt
    tanh, sigmoid, relu = _expressions.tanh, _expressions.sigmoid, _expressions.relu
    maximum, minimum, where = _expressions.maximum, _expressions.minimum, _expressions.where

__all__ = [
    "MASK",
    "CellEquations",
    "CellError",
    "Derivation",
    "Expression",
    "exp",
    "log",
    "maximum",
    "minimum",
    "node",
    "ordered",
    "relu",
    "sigmoid",
    "sqrt",
    "tanh",
    "where",
]


class CellEquations:
    """A cell's equations, read. Raises CellError if they make no cell."""

    def __init__(self, name: str, cell: Cell) -> None:
        self.name, self.cell = name, cell
        self.plain: Derivation = derive(cell)
        self.inputs = len(self.plain.inputs)
        self.hidden = len(self.plain.hidden)
        self.states = len(self.plain.new)
        self.vectors = self.plain.vectors

    @cached_property
    def masked(self) -> Derivation:
        """With recurrent dropout and zoneout in them."""
        return derive(self.cell, masked=True)

    @cached_property
    def digest(self) -> str:
        """What tells these equations from others."""
        text = repr((self.plain.inputs, self.plain.hidden, self.plain.vectors, self.plain.state_leaves, self.plain.new))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def label(self) -> str:
        """What it is called among the generators: its name, or if it is not built in a name that no other has."""
        return self.name if self.is_built_in else f"own_{self.digest}"

    @property
    def is_built_in(self) -> bool:
        """Whether it is one of `BUILT_IN`, and not a user's of the same name."""
        return BUILT_IN.get(self.name) is self

    def __deepcopy__(self, memo: object) -> CellEquations:
        """Itself: it never changes, and kernels are found by it."""
        return self

    def __repr__(self) -> str:
        return self.name


def own(definition: type) -> CellEquations:
    """The equations of a user's class. Raises CellError, or TypeError for what is no class with a step."""
    if not isinstance(definition, type) or not callable(getattr(definition, "step", None)):
        raise TypeError(f"cell: expected a class with a method step, got {definition!r}")
    try:
        return CellEquations(definition.__name__, definition())
    except CellError:
        raise
    except (TypeError, AttributeError) as reason:
        raise CellError(f"{definition.__name__}: {reason}") from reason


BUILT_IN = {name: CellEquations(name, cell) for name, cell in CELLS.items()}


_NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "apart": lambda a: a,
    "abs": np.abs,
    "less": np.less,
    "where": np.where,
    "tanh": np.tanh,
    "sigmoid": reference.sigmoid,
    "relu": reference.relu,
    "step": lambda a: np.where(np.isnan(a), a, a > 0),
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
}


def evaluate_numpy(
    value: Expression, leaves: Mapping[Expression, Any], dtype: np.dtype[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """An expression of a cell over whole arrays."""
    array: NDArray[np.floating[Any]] = evaluate([value], leaves, _NUMPY, dtype.type)[0]
    return array
