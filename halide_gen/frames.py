"""Which place of the engine's frame holds what, and what a step of a cell writes into them, forward and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import halide as hl
from activations import FUNCTIONS, PRECISION, constant
from derivation import Derivation, latest
from expressions import ZERO, Expression, evaluate
from recurrence import Frame


class ForwardFrame:
    """Which place of a frame holds what: sums, states, operands, zoneout, and what is kept beside the sums' places."""

    def __init__(self, cell: Derivation) -> None:
        self.cell = cell
        self.states = [len(cell.sums) + k for k in range(len(cell.new))]
        # An operand that is a state is in that state's place; with masks the two differ.
        self.apart = [m for m, o in enumerate(cell.operands) if cell.masked or o.value not in cell.state_leaves]
        self.operands = [
            self.states[-1] + 1 + self.apart.index(m)
            if m in self.apart
            else self.states[cell.state_leaves.index(o.value)]
            for m, o in enumerate(cell.operands)
        ]
        self.zones = [self.states[-1] + 1 + len(self.apart) + k for k in range(len(cell.zone_leaves))]
        self.size = len(cell.sums) + len(self.states) + len(self.apart) + len(self.zones)
        # A sum that is kept stays where it is; other values take the places of sums, which nobody needs after the step.
        own = {s.node: i for i, s in enumerate(cell.sums)}
        free = [i for i, s in enumerate(cell.sums) if s.node not in cell.kept]
        self.kept: dict[Expression, int] = {}
        for value in cell.kept:
            if value in own:
                self.kept[value] = own[value]
            elif free:
                self.kept[value] = free.pop(0)
            else:
                self.kept[value] = self.size
                self.size += 1
        loose = [self.operands[m] for m, o in enumerate(cell.operands) if not o.carried]
        self.columns = [*self.states, *self.kept.values(), *loose]

    def step(self, phase: int, seen: Frame) -> dict[int, hl.Expr]:
        """What the step writes in a phase. The flags, with masks: whether this step, and the next, see the states
        before them."""
        cell = self.cell
        known = {s.node: seen.now[i] for i, s in enumerate(cell.sums)}
        known |= {
            leaf: where(seen.flags[0], seen.before[place]) if cell.masked else seen.before[place]
            for leaf, place in zip(cell.state_leaves, self.states, strict=True)
        }
        known |= dict(zip(cell.constant_leaves, seen.constants, strict=True))
        known |= {leaf: seen.now[place] for leaf, place in zip(cell.zone_leaves, self.zones, strict=True)}
        # an operand of an earlier phase is there
        known |= {
            o.value: seen.now[place]
            for o, place in zip(cell.operands, self.operands, strict=True)
            if not o.carried and o.phase < phase
        }
        if phase < cell.phases - 1:
            due = [
                (o.value, self.operands[m]) for m, o in enumerate(cell.operands) if not o.carried and o.phase == phase
            ]
            return dict(zip((p for _, p in due), compute([e for e, _ in due], known, seen.apart), strict=True))
        kept, places = list(self.kept), list(self.kept.values())
        values = compute([*cell.new, *kept], known, seen.apart)
        written = dict(zip([*self.states, *places], values, strict=True))
        # what the next step multiplies
        after = dict(known)
        for leaf, value in zip(cell.state_leaves, values, strict=False):
            after[leaf] = where(seen.flags[1], value) if cell.masked else value
        for m in self.apart:
            o = cell.operands[m]
            if o.carried:
                fixed = {e: x for e, x in after.items() if e.op in ("state", "vector", "mask")}
                written[self.operands[m]] = compute([o.value], fixed, seen.apart)[0]
        return {i: value for i, value in written.items() if value is not seen.now[i]}


class BackFrame:
    """Which place of a frame holds what: sums of W_hh^T delta, the gradient that reaches each state (later: what goes
    on past the products), what the forward pass left (later: the deltas), zoneout."""

    def __init__(self, cell: Derivation) -> None:
        self.cell = cell
        count = len(cell.new)
        self.gradients = [len(cell.back_sums) + k for k in range(count)]
        next_place = self.gradients[-1] + 1
        self.tape: list[int] = []  # columns of the tape that are read
        self.states: dict[int, int] = {}
        self.kept: dict[Expression, int] = {}
        for k in range(count):
            if cell.seen[k]:
                self.states[k] = next_place + len(self.tape)
                self.tape.append(k)
        for i, value in enumerate(cell.kept):
            self.kept[value] = next_place + len(self.tape)
            self.tape.append(count + i)
        self.zones = [next_place + len(self.tape) + k for k in range(len(cell.zone_leaves))]
        self.size = next_place + len(self.tape) + len(self.zones)

        # Each delta has a place; at the end of a step nobody needs what was kept for it.
        self.phase = {s.node: s.phase for s in cell.back_sums}
        free = list(self.kept.values()) if cell.back_phases == 1 else []
        self.deltas: dict[Expression, int] = {}
        for delta in cell.deltas:
            if delta not in self.deltas:
                if free:
                    self.deltas[delta] = free.pop(0)
                else:
                    self.deltas[delta] = self.size
                    self.size += 1
        self.hidden = [self.deltas[delta] for delta in cell.delta_hidden]
        # The first columns also bring the gradients of the initial states.
        self.columns = [self.deltas[delta] for delta in cell.deltas]
        for k in range(count):
            if k >= len(self.columns) or self.columns[k] in self.columns[:k]:
                self.columns[k : k + 1] = [self.size]
                self.size += 1

    def step(self, phase: int, seen: Frame) -> dict[int, hl.Expr]:
        """What the step writes in a phase. The flags: whether the row has got that far, whether this is the initial
        state, whether a step after saw this one's, and with masks whether this step saw the states before it."""
        cell, zero = self.cell, constant(0, seen.now[0])
        active, initial, _, *goes_on = seen.flags
        fixed = dict(zip(cell.constant_leaves, seen.constants, strict=True))
        fixed |= {leaf: seen.now[place] for leaf, place in zip(cell.zone_leaves, self.zones, strict=True)}
        sums = {s.node: seen.now[i] for i, s in enumerate(cell.back_sums)}

        d_new = self.reached(seen)
        known = fixed | sums | dict(zip(cell.gradient_leaves, d_new, strict=True))
        known |= {value: seen.now[place] for value, place in self.kept.items()}
        for k, place in self.states.items():
            known[cell.new[k]] = seen.now[place]
        for k, place in self.states.items():
            known[cell.state_leaves[k]] = (
                hl.select(goes_on[0], seen.ahead[place], zero) if goes_on else seen.ahead[place]
            )

        written: dict[int, hl.Expr] = {}
        due = [(delta, place) for delta, place in self.deltas.items() if latest(delta, self.phase) == phase]
        values = compute([delta for delta, _ in due], known, seen.apart)
        for (_, place), value in zip(due, values, strict=True):
            written[place] = hl.select(active, value, zero)
        final = phase == cell.back_phases - 1
        if final:
            carried = compute(cell.carried, known, seen.apart)
            for place, value in zip(self.gradients, carried, strict=True):
                value = hl.select(active, value, zero)
                written[place] = hl.select(goes_on[0], value, zero) if goes_on else value
            for k, place in enumerate(self.columns):
                if place not in self.deltas.values():
                    delta = cell.deltas[k] if k < len(cell.deltas) else ZERO
                    written[place] = hl.select(active, compute([delta], known, seen.apart)[0], zero)
        for k in range(len(cell.new)):
            place = self.columns[k]
            if place in written:
                written[place] = hl.select(initial, d_new[k], written[place])
        return written

    def reached(self, seen: Frame) -> list[hl.Expr]:
        """What reaches each new state: from outside, from the step after past its products, and through operands."""
        cell, came_on = self.cell, seen.flags[2]
        fixed = dict(zip(cell.constant_leaves, seen.constants, strict=True))
        sums = {s.node: seen.now[i] for i, s in enumerate(cell.back_sums)}
        after = {cell.state_leaves[k]: seen.now[place] for k, place in self.states.items()}
        through = compute(cell.from_operands, fixed | after | sums, seen.apart)
        return [
            seen.now[place] + hl.select(came_on, seen.before[place] + back, constant(0, back))
            for place, back in zip(self.gradients, through, strict=True)
        ]


def where(condition: hl.Expr, value: hl.Expr) -> hl.Expr:
    """The value, or zero where the condition does not hold."""
    return hl.select(condition, value, constant(0, value))


def compute(
    roots: Sequence[Expression], known: Mapping[Expression, hl.Expr], apart: Callable[[hl.Expr], hl.Expr]
) -> list[hl.Expr]:
    """Expressions of a cell as Halide's; `apart` gives a value that nothing can be merged with."""
    like = next(iter(known.values()))
    functions = {**FUNCTIONS, "apart": apart}
    return evaluate(roots, known, functions, lambda value: constant(value, like))


def kept_apart(x: hl.Expr, zero: hl.Expr) -> hl.Expr:
    """x, after a detour through its bits and a `zero` that no compiler knows."""
    integer = PRECISION[x.type().bits()].integer
    return hl.reinterpret(x.type(), hl.reinterpret(integer, x) + hl.cast(integer, zero))
