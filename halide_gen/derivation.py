"""What a cell's equations imply: which sums a time step forms and in what order, what it has to keep for the way back,
and the whole backward step, derived.

A step has phases. In a phase the products of one round are summed up, then values are computed; u.n(r * h) needs r of
all units, so it is summed up one phase after r. Most cells have one phase, forward and back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cells import Cell
from expressions import OPERATIONS, ZERO, Expression, adjoints, node, ordered

MASK = node("mask", label="mask")
"""What recurrent dropout multiplies the operands of recurrent products by."""


def zone(state: str) -> Expression:
    """The share of a state's old value that zoneout keeps."""
    return node("zone", label=f"zone of {state}")


class CellError(ValueError):
    """A cell's definition that can't be used. The message says why."""


class _Inputs:
    """`x` in the equations."""

    def __init__(self, gates: Iterable[str]) -> None:
        self._gates = tuple(gates)

    def __getattr__(self, gate: str) -> Expression:
        if gate not in self._gates:
            raise CellError(f"x.{gate}: expected one of the gates {', '.join(self._gates)}")
        return node("input", label=f"x.{gate}")


class _Hidden:
    """`u` in the equations."""

    def __init__(self, gates: Iterable[str], vectors: Iterable[str], masked: bool) -> None:
        self._gates, self._vectors, self._masked = tuple(gates), tuple(vectors), masked

    def __getattr__(self, name: str) -> Any:
        if name in self._vectors:
            return node("vector", label=f"u.{name}")
        if name not in self._gates:
            known = ", ".join(self._gates + self._vectors)
            raise CellError(f"u.{name}: expected one of the gates and vectors {known}")

        def product(operand: Any) -> Expression:
            if not isinstance(operand, Expression):
                raise CellError(f"u.{name}(...): expected a value of the cell, got {operand!r}")
            return node("product", MASK * operand if self._masked else operand, label=f"u.{name}")

        return product


@dataclass(frozen=True)
class Sum:
    """What is there before a phase computes: an input product, a recurrent product, or both in one."""

    node: Expression
    input: int | None  # row block of W_ih
    hidden: int | None  # row block of W_hh
    operand: int | None  # what W_hh is multiplied by
    phase: int


@dataclass(frozen=True)
class Operand:
    """What recurrent products multiply. `carried`: made of states alone, so that a step leaves it for the next one.
    (Not of vectors, whose gradients are summed over steps, and would miss that of an initial state.)"""

    value: Expression
    carried: bool
    phase: int  # in which it is computed, if it isn't carried

    @property
    def vanishes(self) -> bool:
        """Whether it is 0 where the states are: if it is one of them, or one times whatever else."""

        def is_multiple(e: Expression) -> bool:
            return e.op == "state" or (e.op in ("mul", "apart") and any(is_multiple(a) for a in e.args))

        return is_multiple(self.value)


@dataclass(frozen=True)
class BackSum:
    """The gradient of an operand: the sum over its products of W_hh,g^T delta_g."""

    node: Expression
    operand: int
    hidden: tuple[int, ...]
    carried: bool  # from the deltas of the step after; else of this step, in an earlier phase
    phase: int


@dataclass(frozen=True)
class Derivation:
    """Everything the generators need to know of a cell."""

    inputs: tuple[str, ...]  # gates that x is asked for: the row blocks of W_ih
    hidden: tuple[str, ...]  # gates that u is asked for: the row blocks of W_hh
    vectors: tuple[str, ...]
    state_leaves: tuple[Expression, ...]
    vector_leaves: tuple[Expression, ...]
    zone_leaves: tuple[Expression, ...]  # as many as states, or none
    sums: tuple[Sum, ...]
    operands: tuple[Operand, ...]
    new: tuple[Expression, ...]  # the states after the step
    kept: tuple[Expression, ...]  # what BPTT wants to see again, beside states
    phases: int

    gradient_leaves: tuple[Expression, ...]  # of the new states, in whole
    back_sums: tuple[BackSum, ...]
    from_operands: tuple[Expression, ...]  # of each state after a step, through the carried operands made of it
    carried: tuple[Expression, ...]  # of each state before the step, past its products
    delta_inputs: tuple[Expression, ...]  # of each input product
    delta_hidden: tuple[Expression, ...]  # of each recurrent product
    delta_vectors: tuple[Expression, ...]
    seen: tuple[bool, ...]  # whether BPTT looks at a state's values
    back_phases: int

    @property
    def masked(self) -> bool:
        """Whether masks are in the equations."""
        return bool(self.zone_leaves)

    @property
    def constant_leaves(self) -> tuple[Expression, ...]:
        """What a unit of a row sees the same in all steps: the vectors, and what recurrent dropout leaves."""
        return self.vector_leaves + ((MASK,) if self.masked else ())

    @property
    def is_long(self) -> bool:
        """Whether a step has several gates."""
        return len(self.sums) > 1

    @property
    def is_rare(self) -> bool:
        """Whether it has what few people use: masks, vectors, several phases."""
        return self.masked or bool(self.vectors) or self.phases > 1

    @property
    def sums_at_once(self) -> int:
        """The most recurrent products that a unit sums up in one phase."""
        return _most([s.phase for s in self.sums if s.hidden is not None])

    @property
    def back_sums_at_once(self) -> int:
        """The same of BPTT."""
        return _most([s.phase for s in self.back_sums])

    @property
    def one_delta(self) -> bool:
        """Whether the input's and the recurrent products' gradients are the same ones."""
        return not self.hidden or self.delta_inputs == self.delta_hidden

    @property
    def starts_idle(self) -> bool:
        """Whether, from zeros, a forward pass has no product to make in its first step."""
        return all(o.vanishes for o in self.operands)

    @property
    def ends_idle(self) -> bool:
        """Whether BPTT has none to make in its first step, the last in time."""
        return all(total.carried for total in self.back_sums)

    @property
    def deltas(self) -> tuple[Expression, ...]:
        """What a backward step puts out: for W_ih, for W_hh where they differ, and for the vectors."""
        return self.delta_inputs + (() if self.one_delta else self.delta_hidden) + self.delta_vectors


def _most(phases: list[int]) -> int:
    return max((phases.count(phase) for phase in phases), default=1)


def derive(cell: Cell, masked: bool = False) -> Derivation:
    """Read a cell's equations. `masked`: with what masks do to them: recurrent dropout, zoneout, and (seen by the
    generators alone) resets.

    Raises CellError for equations that make no cell.
    """
    gates, states, vectors = (_names(cell, what) for what in ("gates", "states", "vectors"))
    if not gates or not states:
        raise CellError(f"{type(cell).__name__}: expected at least one gate and one state")
    if len(set(gates + vectors)) < len(gates + vectors):
        listed = ", ".join(gates + vectors)
        raise CellError(f"{type(cell).__name__}: expected names that differ for gates and vectors, got {listed}")
    leaves = tuple(node("state", label=name) for name in states)
    zones = tuple(zone(name) for name in states) if masked else ()
    answer = cell.step(_Inputs(gates), _Hidden(gates, vectors, masked), *leaves)
    new = answer if isinstance(answer, tuple | list) else (answer,)
    if len(new) != len(states) or not all(isinstance(value, Expression) for value in new):
        got = f"{len(new)} of them" if len(new) != len(states) else repr(answer)
        raise CellError(
            f"{type(cell).__name__}.step: expected the new values of the states {', '.join(states)}, got {got}"
        )
    new = tuple(new)
    vector_leaves = tuple(node("vector", label=f"u.{name}") for name in vectors)
    if masked:
        new = tuple(z * old + (1 - z) * value for z, old, value in zip(zones, leaves, new, strict=True))

    graph = ordered(new)
    if masked and not any(e.op == "product" for e in graph):
        # without recurrent matrices the vectors are what is recurrent
        new = _replaced(new, {leaf: MASK * leaf for leaf in vector_leaves})
        graph = ordered(new)
    products: dict[str, list[Expression]] = {e.label: [] for e in graph if e.op == "product"}
    for e in graph:
        if e.op == "product":
            products[e.label].append(e)
    for label, found in products.items():
        if len(found) > 1:
            raise CellError(f"{label}: expected one product for a gate, got {len(found)} with different operands")
    inputs = tuple(g for g in gates if node("input", label=f"x.{g}") in graph)
    hidden = tuple(g for g in gates if f"u.{g}" in products)
    unused = [g for g in gates if g not in inputs and g not in hidden]
    if unused or not inputs:
        raise CellError(
            f"{type(cell).__name__}.step: " + (f"gate {unused[0]} is not used" if unused else "no use of x")
        )
    operands, sums, phases = _forward(graph, inputs, hidden, leaves)
    at = {s.node: s.phase for s in sums}

    # ---- backward
    d_new = tuple(node("d_state", label=name) for name in states)
    backs = [node("back", label=str(m)) for m in range(len(operands))]
    seeds: dict[Expression, Expression] = {}
    for value, d in [*zip(new, d_new, strict=True)] + [
        (o.value, back) for o, back in zip(operands, backs, strict=True) if not o.carried
    ]:
        seeds[value] = seeds[value] + d if value in seeds else d
    gradient = adjoints(seeds)
    delta_inputs = tuple(gradient.get(node("input", label=f"x.{g}"), ZERO) for g in inputs)
    delta_hidden = tuple(gradient.get(products[f"u.{g}"][0], ZERO) for g in hidden)
    delta_vectors = tuple(gradient.get(leaf, ZERO) for leaf in vector_leaves)
    carried = tuple(gradient.get(leaf, ZERO) for leaf in leaves)
    through = adjoints_of_operands(operands, backs)
    from_operands = tuple(through.get(leaf, ZERO) for leaf in leaves)
    back_sums = _backward(operands, backs, [products[f"u.{g}"][0] for g in hidden], delta_hidden)
    roots = [*delta_inputs, *delta_hidden, *delta_vectors, *carried]
    kept, seen = _kept(roots, new, leaves, set(at))
    seen = {*seen, *(e for e in ordered(from_operands) if e.op == "state")}
    return Derivation(
        inputs=inputs,
        hidden=hidden,
        vectors=vectors,
        state_leaves=leaves,
        vector_leaves=vector_leaves,
        zone_leaves=zones,
        sums=sums,
        operands=operands,
        new=new,
        kept=kept,
        phases=phases,
        gradient_leaves=d_new,
        back_sums=back_sums,
        from_operands=from_operands,
        carried=carried,
        delta_inputs=delta_inputs,
        delta_hidden=delta_hidden,
        delta_vectors=delta_vectors,
        seen=tuple(leaf in seen for leaf in leaves),
        back_phases=1 + max((s.phase for s in back_sums), default=0),
    )


def latest(e: Expression, phase: dict[Expression, int]) -> int:
    """The phase in which all is there that e needs: the latest of the nodes below it that `phase` knows."""
    known = dict(phase)
    for below in ordered([e]):
        if below not in known:
            known[below] = max((known[a] for a in below.args), default=0)
    return known[e]


def _names(cell: Cell, what: str) -> tuple[str, ...]:
    names = getattr(cell, what, ("h",) if what == "states" else ())
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            raise CellError(f"{type(cell).__name__}.{what}: expected names, got {name!r}")
    if len(set(names)) < len(names):
        raise CellError(f"{type(cell).__name__}.{what}: expected names that differ, got {', '.join(names)}")
    return names


def _forward(
    graph: list[Expression], inputs: tuple[str, ...], hidden: tuple[str, ...], states: tuple[Expression, ...]
) -> tuple[tuple[Operand, ...], tuple[Sum, ...], int]:
    users: dict[Expression, set[Expression]] = {e: set() for e in graph}
    for e in graph:
        for a in e.args:
            users[a].add(e)
    products = {e.label[2:]: e for e in graph if e.op == "product"}
    values = list(dict.fromkeys(products[g].args[0] for g in hidden))
    phase: dict[Expression, int] = {}  # in which a value is there
    operands: dict[Expression, Operand] = {}

    def operand(value: Expression) -> Operand:
        if value not in operands:
            below = {e.op for e in ordered([value])}
            carried = "state" in below and not below & {"input", "product", "vector", "zone"}
            operands[value] = Operand(value, carried, 0 if carried else latest_sum(value))
        return operands[value]

    def latest_sum(e: Expression) -> int:
        if e not in phase:
            if e.op == "product":
                o = operand(e.args[0])
                phase[e] = 0 if o.carried else o.phase + 1
            else:
                phase[e] = max((latest_sum(a) for a in e.args), default=0)
        return phase[e]

    sums = []
    for gate in dict.fromkeys(inputs + hidden):
        x, product = node("input", label=f"x.{gate}"), products.get(gate)
        where = None if product is None else latest_sum(product)
        both = None if product is None else next((e for e in users[product] if e.op == "add" and x in e.args), None)
        source = inputs.index(gate) if gate in inputs else None
        if product is None:
            sums.append(Sum(x, source, None, None, 0))
            continue
        assert where is not None
        row, factor = hidden.index(gate), values.index(product.args[0])
        if both is not None and users[product] == users.get(x) == {both}:
            sums.append(Sum(both, source, row, factor, where))
        else:
            if source is not None:
                sums.append(Sum(x, source, None, None, 0))
            sums.append(Sum(product, None, row, factor, where))
    return tuple(operand(v) for v in values), tuple(sums), 1 + max((s.phase for s in sums), default=0)


def adjoints_of_operands(operands: tuple[Operand, ...], backs: list[Expression]) -> dict[Expression, Expression]:
    """The gradients of what carried operands are made of."""
    seeds = {o.value: back for o, back in zip(operands, backs, strict=True) if o.carried}
    return adjoints(seeds)


def _backward(
    operands: tuple[Operand, ...], backs: list[Expression], products: list[Expression], deltas: tuple[Expression, ...]
) -> tuple[BackSum, ...]:
    phase: dict[Expression, int] = {back: 0 for o, back in zip(operands, backs, strict=True) if o.carried}
    found: dict[int, BackSum] = {}
    for _ in operands:  # as many rounds as there can be phases
        for m, (o, back) in enumerate(zip(operands, backs, strict=True)):
            rows = tuple(g for g, p in enumerate(products) if p.args[0] is o.value)
            known = all(e in phase for g in rows for e in ordered([deltas[g]]) if e.op == "back")
            if m not in found and (o.carried or known):
                phase[back] = 0 if o.carried else 1 + max(latest(deltas[g], phase) for g in rows)
                found[m] = BackSum(back, m, rows, o.carried, phase[back])
    return tuple(found[m] for m in sorted(found))


def _kept(
    roots: list[Expression], new: tuple[Expression, ...], leaves: tuple[Expression, ...], sums: set[Expression]
) -> tuple[tuple[Expression, ...], set[Expression]]:
    """(what has to be kept to compute the roots, the states that are looked at before or after the step).

    Costly results are kept, unless the states alone give them; what is cheap is computed again.
    """
    kept: dict[Expression, None] = {}
    seen: set[Expression] = set()
    done: set[Expression] = set()

    def costly(e: Expression) -> bool:
        """Whether the forward pass computes it, at some cost."""
        below = (b.op for b in ordered([e]))
        return e.op in OPERATIONS and OPERATIONS[e.op].costly and not {"d_state", "back"} & set(below)

    def from_states(e: Expression) -> bool:
        if e in new:
            return True
        if e in sums or e.op in ("input", "product"):
            return False
        return all(from_states(a) for a in e.args)

    def need(e: Expression) -> None:
        if e in done:
            return
        done.add(e)
        if e in new:
            seen.add(leaves[new.index(e)])
        elif e.op == "state":
            seen.add(e)
        elif e in sums or (costly(e) and not from_states(e)):
            kept[e] = None
        else:
            for a in e.args:
                need(a)

    for root in roots:
        need(root)
    return tuple(kept), seen


def _replaced(roots: tuple[Expression, ...], by: dict[Expression, Expression]) -> tuple[Expression, ...]:
    """The roots with some leaves replaced."""
    made: dict[Expression, Expression] = {}
    for e in ordered(roots):
        made[e] = by[e] if e in by else node(e.op, *(made[a] for a in e.args), label=e.label)
    return tuple(made[root] for root in roots)
