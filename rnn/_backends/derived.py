"""A cell of the user's own for the reference engine: its equations, and what was derived from them, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..baselines.cells import Array, FromHidden, States, ThroughWeights, Vectors
from ..cells import CellEquations, Expression, evaluate_numpy, node, ordered


class Derived:
    """`baselines.cells.Cell` from a cell's equations. The engine calls gates by single letters; here a, b, c, ..."""

    def __init__(self, cell: CellEquations) -> None:
        d = self.derivation = cell.plain
        self.gates = "".join(chr(ord("a") + number) for number in range(len(d.hidden)))
        self.states = tuple(str(leaf) for leaf in d.state_leaves)
        self.vectors = d.vectors
        self.kept = len(d.kept)
        self.inputs = [node("input", label=f"x.{gate}") for gate in d.inputs]
        self.products = [e for e in ordered(d.new) if e.op == "product"]  # each after those that it needs
        self.letters = {f"u.{gate}": letter for gate, letter in zip(d.hidden, self.gates, strict=True)}

    def step(
        self, from_input: Array, from_hidden: FromHidden, before: Sequence[Array], vectors: Vectors
    ) -> tuple[States, States]:
        d, H = self.derivation, before[0].shape[1]
        known: dict[Expression, Array] = dict(zip(d.state_leaves, before, strict=True)) | self._vectors(vectors)
        known |= {leaf: from_input[:, i * H : (i + 1) * H] for i, leaf in enumerate(self.inputs)}
        for product in self.products:
            (operand,) = self._values([product.args[0]], known, before[0])
            known[product] = from_hidden(operand, self.letters[product.label])
        values = self._values([*d.new, *d.kept], known, before[0])
        return tuple(values[: len(d.new)]), tuple(values[len(d.new) :])

    def step_back(
        self,
        d_after: Sequence[Array],
        before: Sequence[Array],
        after: Sequence[Array],
        kept: Sequence[Array],
        through_weights: ThroughWeights,
        vectors: Vectors,
    ) -> tuple[Array, States, dict[str, Array]]:
        d, like = self.derivation, before[0]
        known: dict[Expression, Array] = dict(zip(d.new, after, strict=True))
        known |= dict(zip(d.state_leaves, before, strict=True)) | self._vectors(vectors)
        known |= dict(zip(d.kept, kept, strict=True)) | dict(zip(d.gradient_leaves, d_after, strict=True))
        # first what is computed in the step itself, the last phase of the way there first
        for total in sorted(d.back_sums, key=lambda total: (total.carried, total.phase)):
            (operand,) = self._values([d.operands[total.operand].value], known, like)
            deltas = self._values([d.delta_hidden[row] for row in total.hidden], known, like)
            known[total.node] = sum(
                through_weights(delta, operand, self.gates[row])
                for row, delta in zip(total.hidden, deltas, strict=True)
            )  # type: ignore[assignment]  # of at least one
        d_inputs = self._values(d.delta_inputs, known, like)
        past = self._values([a + b for a, b in zip(d.carried, d.from_operands, strict=True)], known, like)
        d_vectors = dict(zip(d.vectors, self._values(d.delta_vectors, known, like), strict=True))
        return np.concatenate(d_inputs, axis=1), tuple(past), d_vectors

    def _vectors(self, vectors: Vectors) -> dict[Expression, Array]:
        d = self.derivation
        return {leaf: vectors[name] for name, leaf in zip(d.vectors, d.vector_leaves, strict=True)}

    def _values(self, roots: Sequence[Expression], known: dict[Expression, Array], like: Array) -> list[Array]:
        """Each (N, H), also where an expression is a number or a vector."""
        return [np.broadcast_to(evaluate_numpy(root, known, like.dtype), like.shape) for root in roots]
