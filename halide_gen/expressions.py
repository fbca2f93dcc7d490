"""The language of the cells: plain arithmetic on values of one unit, one row and one time step.

An expression is a node of a graph, and equal expressions are one node. It is evaluated by whoever brings the functions,
Halide or NumPy (`evaluate`), and differentiated backwards (`adjoints`), so that a cell's equations are written once.
Nothing here knows Halide, NumPy, layouts or time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, NamedTuple, Union

Operand = Union["Expression", float, int]


class Expression:
    """A value. `op` names an operation on `args`; leaves have no args and a `label` that tells them apart."""

    __slots__ = ("args", "label", "op")
    __array_ufunc__ = None  # a NumPy number on the left asks us instead of taking us for an object

    op: str
    args: tuple[Expression, ...]
    label: Any

    def __add__(self, other: Operand) -> Expression:
        return _sum(self, lift(other))

    def __radd__(self, other: Operand) -> Expression:
        return _sum(lift(other), self)

    def __sub__(self, other: Operand) -> Expression:
        return _difference(self, lift(other))

    def __rsub__(self, other: Operand) -> Expression:
        return _difference(lift(other), self)

    def __mul__(self, other: Operand) -> Expression:
        return _product(self, lift(other))

    def __rmul__(self, other: Operand) -> Expression:
        return _product(lift(other), self)

    def __truediv__(self, other: Operand) -> Expression:
        return _quotient(self, lift(other))

    def __rtruediv__(self, other: Operand) -> Expression:
        return _quotient(lift(other), self)

    def __neg__(self) -> Expression:
        return _difference(constant(0), self)

    def __pos__(self) -> Expression:
        return self

    def __abs__(self) -> Expression:
        return node("abs", self)

    def __pow__(self, power: int) -> Expression:
        if isinstance(power, bool) or not isinstance(power, int) or power < 1:
            raise TypeError(f"power: expected an integer of at least 1, got {power!r}")
        value = self
        for _ in range(power - 1):
            value = value * self
        return value

    def __lt__(self, other: Operand) -> Expression:
        return node("less", self, lift(other))

    def __gt__(self, other: Operand) -> Expression:
        return node("less", lift(other), self)

    def __bool__(self) -> bool:
        raise TypeError("a cell's values are not known while its equations are read: write where(condition, a, b)")

    def __call__(self, *_: object) -> Expression:
        raise TypeError(f"{self!r} is a value, not a function; a recurrent product is u.gate(value)")

    def __repr__(self) -> str:
        return f"{self.label}" if not self.args else f"{self.op}({', '.join(map(repr, self.args))})"


_nodes: dict[tuple[Any, ...], Expression] = {}


def node(op: str, *args: Expression, label: Any = None) -> Expression:
    """The one expression of this operation, these arguments and this label."""
    key = (op, args, label)
    found = _nodes.get(key)
    if found is None:
        found = Expression.__new__(Expression)
        found.op, found.args, found.label = op, args, label
        _nodes[key] = found
    return found


def constant(value: float) -> Expression:
    return node("constant", label=float(value))


def lift(value: Operand) -> Expression:
    """`value` as an expression. Raises TypeError for what is neither an expression nor a number."""
    if isinstance(value, Expression):
        return value
    if isinstance(value, Real):
        return constant(float(value))
    raise TypeError(f"a cell's equations: expected a value or a number, got {type(value).__name__}")


ZERO, ONE = constant(0), constant(1)
TERMS = "mul", "add", "sub"  # operations that a sum rounds before it adds


def _numbers(a: Expression, b: Expression) -> tuple[float, float] | None:
    return (a.label, b.label) if a.op == b.op == "constant" else None


def _sum(a: Expression, b: Expression) -> Expression:
    numbers = _numbers(a, b)
    if numbers:
        return constant(numbers[0] + numbers[1])
    if a is ZERO or b is ZERO:
        return b if a is ZERO else a
    return node("add", _rounded(a, *TERMS), _rounded(b, *TERMS))


def _difference(a: Expression, b: Expression) -> Expression:
    numbers = _numbers(a, b)
    if numbers:
        return constant(numbers[0] - numbers[1])
    return a if b is ZERO else node("sub", _rounded(a, *TERMS), _rounded(b, *TERMS))


def _rounded(a: Expression, *ops: str) -> Expression:
    """`a`, rounded before anything else if it is one of these operations. A compiler would fuse a product with a sum,
    or take terms and factors in another order, in one copy of the code and not in another, where it has moved some of
    them out of a loop or needs them elsewhere: other bits for another number of threads or rows."""
    return node("apart", a) if a.op in ops else a


def _product(a: Expression, b: Expression) -> Expression:
    numbers = _numbers(a, b)
    if numbers:
        return constant(numbers[0] * numbers[1])
    if a is ONE or b is ONE:
        return b if a is ONE else a
    return node("mul", _rounded(a, "mul"), _rounded(b, "mul"))


def _quotient(a: Expression, b: Expression) -> Expression:
    return a if b is ONE else node("div", a, b)


# ---- functions for equations


def tanh(a: Operand) -> Expression:
    return node("tanh", lift(a))


def sigmoid(a: Operand) -> Expression:
    """1 / (1 + exp(-a))."""
    return node("sigmoid", lift(a))


def relu(a: Operand) -> Expression:
    """max(a, 0); its derivative at 0 is 0, as in PyTorch."""
    return node("relu", lift(a))


def exp(a: Operand) -> Expression:
    return node("exp", lift(a))


def log(a: Operand) -> Expression:
    return node("log", lift(a))


def sqrt(a: Operand) -> Expression:
    return node("sqrt", lift(a))


def maximum(a: Operand, b: Operand) -> Expression:
    """The larger; where both are equal the derivative is b's."""
    a, b = lift(a), lift(b)
    return where(b < a, a, b)


def minimum(a: Operand, b: Operand) -> Expression:
    """The smaller; where both are equal the derivative is b's."""
    a, b = lift(a), lift(b)
    return where(a < b, a, b)


def where(condition: Expression, a: Operand, b: Operand) -> Expression:
    """a where the condition (a < b or a > b) holds, else b."""
    if not isinstance(condition, Expression) or condition.op != "less":
        raise TypeError(f"condition: expected a comparison a < b or a > b, got {condition!r}")
    return node("where", condition, lift(a), lift(b))


class Operation(NamedTuple):
    """An operation's derivative: (d of the result, the result, *args) -> a d for each of the args (None: none)."""

    back: Callable[..., tuple[Expression | None, ...]]
    costly: bool = False
    """Whether a backward pass had better keep the result than compute it again."""


OPERATIONS: dict[str, Operation] = {
    "add": Operation(lambda d, y, a, b: (d, d)),
    "sub": Operation(lambda d, y, a, b: (d, -d)),
    "mul": Operation(lambda d, y, a, b: (d * b, d * a)),
    "div": Operation(lambda d, y, a, b: (d / b, -(d * y) / b), costly=True),
    "apart": Operation(lambda d, y, a: (d,)),
    "abs": Operation(lambda d, y, a: (where(a < 0, -d, where(a > 0, d, 0)),)),
    "less": Operation(lambda d, y, a, b: (None, None)),
    "where": Operation(lambda d, y, c, a, b: (None, where(c, d, 0), where(c, 0, d))),
    "tanh": Operation(lambda d, y, a: (d * (1 - y * y),), costly=True),
    "sigmoid": Operation(lambda d, y, a: (d * (y * (1 - y)),), costly=True),
    # y is NaN where a is, and `0 < NaN` is false: the product keeps it
    "relu": Operation(lambda d, y, a: (d * node("step", y),), costly=True),
    "step": Operation(lambda d, y, a: (None,)),
    "exp": Operation(lambda d, y, a: (d * y,), costly=True),
    "log": Operation(lambda d, y, a: (d / a,), costly=True),
    "sqrt": Operation(lambda d, y, a: (d / (2 * y),), costly=True),
}
"""What there is besides leaves and constants. "step" is 1 above 0, 0 below and at it, and NaN for NaN."""


def ordered(roots: Iterable[Expression]) -> list[Expression]:
    """All nodes below and including the roots, arguments first."""
    found: dict[Expression, None] = {}

    def visit(e: Expression) -> None:
        if e not in found:
            for a in e.args:
                visit(a)
            found[e] = None

    for root in roots:
        visit(root)
    return list(found)


def adjoints(seeds: Mapping[Expression, Expression]) -> dict[Expression, Expression]:
    """Reverse-mode differentiation: for each node that the seeds depend on, the gradient of whatever has the gradients
    `seeds` (node -> its own). Leaves, and nodes of operations that are not in OPERATIONS, are where it ends."""
    d: dict[Expression, Expression] = dict(seeds)
    for e in reversed(ordered(seeds)):
        if e in d and e.op in OPERATIONS:
            for a, d_a in zip(e.args, OPERATIONS[e.op].back(d[e], e, *e.args), strict=True):
                if d_a is not None and a.op != "constant":
                    d[a] = d[a] + d_a if a in d else d_a
    return d


def evaluate(
    roots: Iterable[Expression],
    leaves: Mapping[Expression, Any],
    functions: Mapping[str, Callable[..., Any]],
    number: Callable[[float], Any],
) -> list[Any]:
    """The roots' values, where `leaves` gives values for leaves (and for any other nodes that are known already),
    `functions` an implementation of each operation, and `number` a constant's value."""
    known = dict(leaves)

    def value(e: Expression) -> Any:
        if e not in known:
            if e.op == "constant":
                known[e] = number(e.label)
            elif e.op not in functions:
                raise KeyError(f"no value for {e!r}")
            else:
                known[e] = functions[e.op](*(value(a) for a in e.args))
        return known[e]

    return [value(root) for root in roots]
