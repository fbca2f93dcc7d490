"""Recurrent layers: what users make, run forward, and differentiate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _check, backend
from ._backends import bf16
from ._backends.base import Array, Backend, Tape, Walk, cut
from ._backends.packing import frozen
from ._backends.segments import Segments
from ._backends.stepping import Step, stepper
from ._memory import empty
from .cells import BUILT_IN, CellEquations, own

__all__ = ["GRU", "LAYERS", "LSTM", "MGU", "RNN", "Gradients", "IndRNN", "Layer", "Run", "cell", "layer_class"]

NONLINEARITIES = ("tanh", "sigmoid", "relu")
PRECISIONS = ("float32", "bf16")
State = Array | tuple[Array, ...]
"""One array where the cell has one state, else a tuple, in the cell's order (LSTM: h, c). Each is (N, H), or
(num_layers * D, N, H) where there are several layers or D = 2 directions: as PyTorch numbers them, layer by layer, in
each the forward direction first."""

_L = TypeVar("_L", bound="Layer")


class _Part(NamedTuple):
    """A layer of the stack in one direction."""

    names: dict[str, str]
    """Of its weights: as a backend calls them -> as they are called in `weights`."""
    reverse: bool


class _Pass(NamedTuple):
    """What one part did in a forward pass."""

    x: Array
    weights: dict[str, Array]
    walk: Walk
    tape: Tape


class Run(NamedTuple):
    """One forward pass: the result, and all that BPTT needs to go back through it.

    It holds the arrays that were used, not copies: change none of them in place before `bptt`. (The
    optimizers here never do; they put new arrays into `layer.weights`.)
    """

    layer: Layer
    backend: Backend
    output: Array
    """(T, N, O): the readout of each state, or in a layer without readout the states: O = H, or 2 H where two
    directions are concatenated."""
    passes: tuple[_Pass, ...]
    weights: dict[str, Array]
    masks: tuple[NDArray[np.bool_], ...]
    """Where dropout let the output of each layer but the last through; nothing if there was none."""

    @property
    def state(self) -> State:
        """The last state of each row, to be carried over as `state` of the next piece (the initial one where a row has
        no steps)."""
        return self.layer._joined([done.tape.last(done.walk) for done in self.passes])


class Gradients(NamedTuple):
    """Gradients of a loss: `weights` (the names and shapes of the layer's), `x` (T, N, I), `state` (as `Run.state`: of
    the initial state)."""

    weights: dict[str, Array]
    x: Array
    state: State

    @property
    def h0(self) -> Array:
        """Of the first initial state, h."""
        return self.state[0] if isinstance(self.state, tuple) else self.state


class Layer:
    """Recurrent layers over each other, in one direction or two, and a linear readout if `output_size` is given.

        y_t = W_ho h_t + b_o        h_t as the cell says, from x_t and the states before

    Arguments, of every layer here:

    input_size, hidden_size, output_size   of the input, each state and the output, any of them 0 or more
        (`output_size=None`: no readout, the output is the last layer's state)
    num_layers     each layer but the first sees the output of the one below
    bidirectional  each layer runs forward and in reverse; `merge` "concat" puts both outputs side by side, "sum" adds
    reverse        every layer runs from the end of the sequence to its start (not with `bidirectional`)
    bias           False: no biases at all
    dropout        the share of numbers between two layers that training sets to 0
    recurrent_dropout  the share of the state's numbers that recurrent products do not see in training, the same ones in
        all steps of a sequence (Gal and Ghahramani, 2016)
    zoneout        the share of each state's numbers that keep their old value in a step of training; the expected value
        otherwise (Krueger et al., 2017). One number, or one for each state of the cell
    seed           as in numpy.random.default_rng, for the weights
    dtype          "float32" or "float64"
    precision      "bf16": what products multiply (weights, inputs, states, deltas) and what gates leave for BPTT is
        rounded to bfloat16; sums, states, weights and gradients are float32. About twice as fast for 256 units and
        more on AMD's CPUs. Where backend, CPU, cell or options have no kernels for it, or the CPU is slow at them (see
        `explain`), float32, the default

    Attributes: `weights`, a dict of arrays with PyTorch's names and shapes: weight_ih_l0 (G*H, I), weight_hh_l0
    (G*H, H), bias_ih_l0 and bias_hh_l0 (G*H,) for G gates, `_l1` and so on for further layers, with `_reverse` for the
    other direction; vectors of the cell as NAME_l0 (H,); weight_ho (O, H or 2 H), bias_o (O,). All start uniform in
    [-1/sqrt(H), 1/sqrt(H)). Put new arrays in as you like; names, shapes and dtype are checked at each call.

    Raises TypeError or ValueError naming the argument, OverflowError if a weight had 2^31 elements or more. Warns with
    RuntimeWarning where the CPU lacks what the precision needs or is slow at it; the layer is computed in float32 then.
    """

    cell: CellEquations
    _classes: ClassVar[dict[str, type[Layer]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Remember the class, by whose name `from_weights` and checkpoints find it."""
        super().__init_subclass__(**kwargs)
        Layer._classes[cls.__name__] = cls

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        *,
        output_size: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float | Sequence[float] = 0.0,
        merge: str = "concat",
        reverse: bool = False,
        seed: int | np.random.Generator | None = None,
        dtype: DTypeLike = "float32",
        precision: str = "float32",
    ) -> None:
        self._configure(
            input_size, hidden_size, num_layers, bidirectional, output_size, bias, dropout, recurrent_dropout, zoneout,
            merge, reverse, dtype, precision,
        )  # fmt: skip
        bound = 1 / np.sqrt(self.hidden_size) if self.hidden_size else 0.0
        rng = _check.generator("seed", seed)
        self.weights: dict[str, Array] = {
            name: rng.uniform(-bound, bound, shape).astype(self.dtype) for name, shape in self._shapes.items()
        }

    @classmethod
    def from_weights(cls: type[_L], config: dict[str, Any], weights: dict[str, Array]) -> _L:
        """The layer that `config()` described, around these weights. Raises TypeError or ValueError."""
        config = dict(config)
        made = layer_class(config.pop("layer", cls.__name__))
        if not issubclass(made, cls):
            raise ValueError(f"config: expected that of a {cls.__name__}, got that of a {made.__name__}")
        layer = made.__new__(made)
        layer._arrange(**config)
        layer.weights = _check.named("weights", weights, layer._shapes, layer.dtype)
        return layer

    def _arrange(self, **config: Any) -> None:
        """`_configure` from what `config()` said. Further arguments of a subclass are its own to take out."""
        defaults = {
            "num_layers": 1, "bidirectional": False, "output_size": None, "bias": True, "dropout": 0.0,
            "recurrent_dropout": 0.0, "zoneout": 0.0, "merge": "concat", "reverse": False, "dtype": "float32",
            "precision": "float32",
        }  # fmt: skip
        self._configure(**(defaults | config))

    def _configure(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        output_size: int | None,
        bias: bool,
        dropout: float,
        recurrent_dropout: float,
        zoneout: float | Sequence[float],
        merge: str,
        reverse: bool,
        dtype: DTypeLike,
        precision: str,
    ) -> None:
        self.input_size = _check.size("input_size", input_size)
        self.hidden_size = _check.size("hidden_size", hidden_size)
        self.num_layers = _check.size("num_layers", num_layers, 1)
        self.bidirectional = _check.flag("bidirectional", bidirectional)
        self.output_size = None if output_size is None else _check.size("output_size", output_size)
        self.bias = _check.flag("bias", bias)
        self.dropout = _check.number("dropout", dropout, 0, 1)
        self.recurrent_dropout = _check.number("recurrent_dropout", recurrent_dropout, 0, 1)
        self.zoneout = _zoneout(zoneout, self.cell)
        self.merge = _check.choice("merge", merge, ("concat", "sum"))
        self.reverse = _check.flag("reverse", reverse)
        if self.reverse and self.bidirectional:
            raise ValueError("reverse: expected False in a bidirectional layer, which runs both ways, got True")
        self.dtype = _dtype(dtype)
        self.precision = _check.choice("precision", precision, PRECISIONS)
        if self.precision == "bf16":
            if self.dtype != np.float32:
                raise ValueError(f"precision: expected 'float32' with dtype {self.dtype}, got 'bf16'")
            if (lacking := bf16.lacking()) is not None:
                warnings.warn(f"precision: bf16 was asked for, float32 is used: {lacking}", RuntimeWarning, 4)
        self._directions = (False, True) if self.bidirectional else (self.reverse,)
        self._features = self.hidden_size * (2 if self.bidirectional and self.merge == "concat" else 1)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._parts: list[_Part] = []
        for number in range(self.num_layers):
            for reverse_part in self._directions:
                suffix = f"_l{number}" + "_reverse" * (reverse_part and self.bidirectional)
                shapes = self._part_shapes(self.input_size if number == 0 else self._features)
                self._shapes |= {f"{name}{suffix}": shape for name, shape in shapes.items()}
                self._parts.append(_Part({f"{name}_l0": f"{name}{suffix}" for name in shapes}, reverse_part))
        if self.output_size is not None:
            self._shapes["weight_ho"] = (self.output_size, self._features)
            if self.bias:
                self._shapes["bias_o"] = (self.output_size,)
        for name, shape in self._shapes.items():
            _check.limit(name, shape)
        # Where one part makes the last output, its backend reads it out too.
        if len(self._directions) == 1:
            self._parts[-1].names.update({name: name for name in ("weight_ho", "bias_o") if name in self._shapes})
        self._one = self._parts[0] if len(self._parts) == 1 else None
        self._stepping: tuple[Backend, Step | None] | None = None

    def _part_shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """Of the weights of one layer in one direction, in PyTorch's order."""
        cell, H = self.cell, self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (cell.inputs * H, inputs)}
        if cell.hidden:
            shapes["weight_hh"] = (cell.hidden * H, H)
        if self.bias:
            shapes["bias_ih"] = (cell.inputs * H,)
            if cell.hidden:
                shapes["bias_hh"] = (cell.hidden * H,)
        return shapes | dict.fromkeys(cell.vectors, (H,))

    @property
    def is_random(self) -> bool:
        """Whether training draws random numbers."""
        return bool((self.dropout and self.num_layers > 1) or self.recurrent_dropout or any(self.zoneout))

    # ---- forward

    def forward(
        self,
        x: Array,
        state: State | None = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        rng: np.random.Generator | None = None,
        remat: bool | int = False,
    ) -> Run:
        """Run over x (T, N, I) from the initial state (as `Run.state`), or from zeros.

        lengths (N,), integers from 0 to T: row n has the steps t < lengths[n]. Its output is 0 from there on, its last
        state the one at its end, and x there is never looked at; in reverse it begins at its end.
        reset (T, N), booleans: where true, all states are set to 0 before the step.
        rng: a generator makes this a pass of training, which draws from it what dropout, recurrent_dropout and zoneout
        need. Without one they are off (zoneout: at its expected value).
        remat: True keeps of each layer its output alone, and `bptt` computes the rest again, a segment of about sqrt(T)
        steps at a time; an integer: of so many steps. On the Halide backends outputs, last states and the gradients of
        x and of the initial states have the same bits; weight gradients are summed in another order.

        Arrays must have the layer's dtype in native byte order; any strides will do (those that a kernel can't walk
        cost a copy). Raises TypeError (dtype), ValueError (shape, values), OverflowError (2^31 elements or more), each
        naming the argument, and `backend.BackendUnavailable`.
        """
        x, initial, weights, walk = self._checked(x, state, lengths, reset)
        chosen = self._backend()
        if remat is not False:
            chosen = Segments(chosen, _check.segment(remat))
        if self._one is not None and rng is None and not any(self.zoneout):
            tape = chosen.forward(self.cell, x, initial[0], weights, walk)
            return Run(self, chosen, tape.output, (_Pass(x, weights, walk, tape),), weights, ())
        passes: list[_Pass] = []
        output, masks = self._stack(chosen, x, initial, weights, walk, rng, passes.append)
        return Run(self, chosen, output, tuple(passes), weights, tuple(masks))

    def __call__(
        self, x: Array, state: State | None = None, *, lengths: Any = None, reset: Any = None
    ) -> tuple[Array, State]:
        """The output (T, N, O) and the last state, as `forward` gives them and with the same bits, where nobody wants
        gradients: what BPTT needs is not kept, which takes less time and memory. Arguments and errors as `forward`."""
        x, initial, weights, walk = self._checked(x, state, lengths, reset)
        last: list[list[Array]] = []

        def take(done: _Pass) -> None:
            last.append([np.array(state) for state in done.tape.last(done.walk)])

        output, _ = self._stack(self._backend(), x, initial, weights, walk, None, take, keep=False)
        return output, self._joined(last)

    def _backend(self) -> Backend:
        """The one in use, in the layer's precision."""
        chosen = backend.current()
        return bf16.Bfloat16(chosen) if self.precision == "bf16" else chosen

    def _checked(
        self, x: Array, state: State | None, lengths: Any, reset: Any
    ) -> tuple[Array, list[list[Array]], dict[str, Array], Walk]:
        """(x, initial states of each part, weights, walk), as a backend wants them."""
        _check.expect("x", x, self.dtype, (None, None, self.input_size), "TNI")
        T, N, _ = x.shape
        widest = max(self.hidden_size * max(self.cell.inputs, 2), self.output_size or 0)
        if (T + 1) * N * widest >= _check.LIMIT or T + 1 >= _check.LIMIT:
            _check.limit("x: the states or the output", (T + 1, N, widest))
        x = _check.walkable(x)
        initial = self._initial(state, N)
        weights = _check.named("weights", self.weights, self._shapes, self.dtype)
        walk = Walk(self._directions[0], state is None, _check.lengths(lengths, T, N), _check.reset(reset, T, N))
        if walk.lengths is not None:
            x = cut(x, walk.lengths)
        return x, initial, weights, walk

    def _stack(
        self,
        chosen: Backend,
        x: Array,
        initial: list[list[Array]],
        weights: dict[str, Array],
        walk: Walk,
        rng: np.random.Generator | None,
        take: Callable[[_Pass], None],
        keep: bool = True,
    ) -> tuple[Array, list[NDArray[np.bool_]]]:
        """All layers and directions: the output, and what dropout let through. `take` is given what each part did."""
        masks: list[NDArray[np.bool_]] = []
        remat = isinstance(chosen, Segments)
        for number in range(self.num_layers):
            outputs = []
            for which in range(len(self._directions)):
                at = number * len(self._directions) + which
                part = self._parts[at]
                own = {name: weights[full] for name, full in part.names.items()}
                way = self._drawn(walk._replace(reverse=part.reverse), x.shape, rng, remat)
                tape = chosen.forward(self.cell, x, initial[at], own, way, keep)
                outputs.append(tape.output)
                if remat and number + 1 < self.num_layers:  # what the next layer makes its input of, and nobody else
                    tape = tape._replace(output=np.empty((0, 0, 0), self.dtype))
                take(_Pass(x, own, way, tape))
            x = self._merged(outputs)
            if rng is not None and self.dropout and number + 1 < self.num_layers:
                masks.append(~_below(rng, self.dropout, x.shape))
                x = self._dropped(x, masks[-1])
        if self.output_size is not None and self.bidirectional:
            x = chosen.linear(x, weights["weight_ho"], weights.get("bias_o"))
            if walk.lengths is not None:
                x = cut(x, walk.lengths)
        return x, masks

    def _merged(self, outputs: list[Array]) -> Array:
        if len(outputs) == 1:
            return outputs[0]
        forward, reverse = outputs
        merged: Array = np.concatenate(outputs, axis=2) if self.merge == "concat" else forward + reverse
        return merged

    def _dropped(self, a: Array, mask: NDArray[np.bool_]) -> Array:
        """What dropout leaves of a: 0, or 1 / (1 - dropout) of it."""
        factor, left = 1 / self.dtype.type(1 - self.dropout), empty(a.shape, self.dtype)
        for piece in _pieces(a.shape):
            np.multiply(a[piece], mask[piece], out=left[piece])
            left[piece] *= factor
        return left

    def _drawn(self, walk: Walk, shape: tuple[int, ...], rng: np.random.Generator | None, remat: bool) -> Walk:
        """The walk with what training draws for one part; zoneout as booleans for `remat`, a quarter of float32."""
        T, N, H = *shape[:2], self.hidden_size
        if rng is not None and self.recurrent_dropout:
            mask = (~_below(rng, self.recurrent_dropout, (N, H))).astype(self.dtype)
            walk = walk._replace(recurrent_mask=mask / self.dtype.type(1 - self.recurrent_dropout))
        if any(self.zoneout):
            shares: list[NDArray[Any]]
            if rng is None:
                shares = [np.broadcast_to(self.dtype.type(share), (T, N, H)) for share in self.zoneout]
            else:
                shares = [_below(rng, share, (T, N, H)) for share in self.zoneout]
                shares = shares if remat else [share.astype(self.dtype) for share in shares]
            walk = walk._replace(zoneout=tuple(shares))
        return walk

    def step(self, x: Array, state: State | None = None) -> tuple[Array, State]:
        """One time step, for streams: x (N, I) and the state after the step before (None: zeros) to the output (N, O)
        and the state after this one. Within rounding (bfloat16's, with that precision) what `forward` gives
        over a longer sequence; raises as it does."""
        chosen = backend.current()
        if self._stepping is None or self._stepping[0] is not chosen:
            self._stepping = chosen, self._stepper(chosen)
        step = self._stepping[1]
        made = None if step is None else step(x, state, self.weights)
        return self._step_of_a_sequence(x, state) if made is None else made

    def _stepper(self, chosen: Backend) -> Step | None:
        """What makes single steps on a backend, if it has something for them."""
        if self.bidirectional or self.reverse or any(self.zoneout):
            return None
        sizes = self.input_size, self.hidden_size, self.output_size
        return stepper(chosen, self.cell, sizes, self.dtype, [part.names for part in self._parts], self._shapes)

    def _step_of_a_sequence(self, x: Array, state: State | None) -> tuple[Array, State]:
        """The same through the forward pass, after all checks."""
        _check.expect("x", x, self.dtype, (None, self.input_size), "NI")
        if self.bidirectional or self.reverse:
            raise ValueError("step: expected a layer that runs forward in time alone")
        output, after = self(x[np.newaxis], state)
        return output[0], after

    # ---- backward

    def bptt(
        self,
        run: Run,
        d_output: Array,
        d_state: State | None = None,
        *,
        of_x: bool = True,
        of_state: bool = True,
    ) -> Gradients:
        """Gradients of a loss, back-propagated through the whole of `run` on the backend that made it.

        d_output (T, N, O) and d_state (as `run.state`; None, or None for one of several states: zeros) are the loss's
        gradients with respect to `run.output` and `run.state`; d_output past a row's end is never looked at. The answer
        has `.weights` (the names and shapes of the layer's), `.x` (T, N, I) and `.state`, of the initial state. Where
        nobody asks for that of x, of_x=False saves its product; `.x` has the shape (T, N, 0) then. of_state=False saves
        one step's product; `.state` has no columns then, (N, 0). Werbos, "Backpropagation through time", 1990; the cost
        is linear in T. Raises as `forward`, and ValueError for a run of another layer.
        """
        if not isinstance(run, Run):
            raise TypeError(f"run: expected what this layer's forward returned, got {type(run).__name__}")
        if run.layer is not self:
            raise ValueError(f"run: expected a run of this layer ({self!r}), got one of another ({run.layer!r})")
        d_output = _check.array("d_output", d_output, self.dtype, run.output.shape, "TNO")
        d_last = self._d_last(d_state, run.output.shape[1])
        lengths = run.passes[0].walk.lengths
        if lengths is not None:
            d_output = cut(d_output, lengths)
        if self._one is not None:
            ((x, own, walk, tape),) = run.passes
            made = run.backend.bptt(self.cell, x, own, tape, d_output, d_last[0], walk, of_x, of_state)
            return self._asked_for(made.weights, made.x, [made.initial], of_x, of_state)

        gradients: dict[str, Array] = {}
        initials: list[tuple[Array, ...]] = []
        if self.output_size is not None and self.bidirectional:
            merged = self._merged([done.tape.output for done in run.passes[-2:]])
            d_output, gradients["weight_ho"], gradients["bias_o"] = run.backend.linear_bptt(
                merged, run.weights["weight_ho"], d_output
            )
        d_x = d_output
        for number in reversed(range(self.num_layers)):
            if number < len(run.masks):
                d_x = self._dropped(d_x, run.masks[number])
            below: Array | None = None
            for which in reversed(range(len(self._directions))):
                at = number * len(self._directions) + which
                x, own, walk, tape = run.passes[at]
                d_own, wanted = self._share(d_x, which), of_x or number > 0
                made = run.backend.bptt(self.cell, x, own, tape, d_own, d_last[at], walk, wanted, of_state)
                names = self._parts[at].names
                gradients |= {names[name]: gradient for name, gradient in made.weights.items()}
                initials.insert(0, made.initial)
                below = made.x if below is None else below + made.x
            assert below is not None
            d_x = below
        return self._asked_for({name: gradients[name] for name in self._shapes}, d_x, initials, of_x, of_state)

    def _asked_for(
        self,
        weights: dict[str, Array],
        x: Array,
        initials: Sequence[tuple[Array, ...]],
        of_x: bool,
        of_state: bool,
    ) -> Gradients:
        """All gradients, or those that were asked for."""
        if of_state:
            state = self._joined(initials)
        else:
            none = np.empty((*([len(initials)] if len(initials) > 1 else []), x.shape[1], 0), self.dtype)
            state = none if self.cell.states == 1 else (none,) * self.cell.states
        return Gradients(weights, x if of_x else x[:, :, :0], state)

    def _share(self, d_output: Array, which: int) -> Array:
        """The gradient of one direction's output, from that of the merged one."""
        if len(self._directions) == 1 or self.merge == "sum":
            return d_output
        H = self.hidden_size
        return d_output[:, :, which * H : (which + 1) * H]

    # ---- states

    def _initial(self, state: State | None, N: int) -> list[list[Array]]:
        """The initial states of each part."""
        shape = (N, self.hidden_size)
        if state is None:
            zeros = np.zeros(shape, self.dtype)
            return [[zeros] * self.cell.states] * len(self._parts)
        arrays = self._taken_apart("state", state, N)
        return [[arrays[k][at] for k in range(self.cell.states)] for at in range(len(self._parts))]

    def _d_last(self, d_state: State | None, N: int) -> list[list[Array | None]]:
        if d_state is None:
            return [[None] * self.cell.states] * len(self._parts)
        arrays = self._taken_apart("d_state", d_state, N, optional=True)
        return [
            [None if arrays[k] is None else arrays[k][at] for k in range(self.cell.states)]
            for at in range(len(self._parts))
        ]

    def _taken_apart(self, name: str, state: State, N: int, optional: bool = False) -> list[Any]:
        """For each state of the cell its arrays (N, H), part by part."""
        names, H, several = self.cell.plain.state_leaves, self.hidden_size, len(self._parts) > 1
        if len(names) == 1:
            given: Sequence[Any] = state if isinstance(state, tuple | list) and len(state) == 1 else (state,)
        elif isinstance(state, tuple | list) and len(state) == len(names):
            given = state
        else:
            listed = ", ".join(str(leaf) for leaf in names)
            got = f"{len(state)} of them" if isinstance(state, tuple | list) else type(state).__name__
            raise TypeError(f"{name}: expected a tuple of {len(names)} arrays ({listed}), got {got}")
        shape = (len(self._parts), N, H) if several else (N, H)
        arrays: list[Any] = []
        for one, leaf in zip(given, names, strict=True):
            if one is None and optional:
                arrays.append(None)
                continue
            label = name if len(names) == 1 else f"{name}: {leaf}"
            checked = _check.array(label, one, self.dtype, shape, "LNH" if several else "NH")
            arrays.append(checked if several else checked[np.newaxis])
        return arrays

    def _joined(self, parts: Sequence[Sequence[Array]]) -> State:
        """The other way: from each part's states to what users see."""
        arrays = tuple(given[0] if len(given) == 1 else np.stack(given) for given in zip(*parts, strict=True))
        return arrays[0] if len(arrays) == 1 else arrays

    # ---- weights and configuration

    def __getstate__(self) -> dict[str, Any]:
        """For copies: all but what `step` made for itself."""
        return self.__dict__ | {"_stepping": None}

    def freeze(self) -> None:
        """Put read-only copies of the weights in their place, which nothing can write to.

        What the kernels make of such weights is kept for the calls to come: they are packed once, and not in each call,
        for each shape of register tile that is used. Worth it for inference on short sequences and few rows (LSTM, 512
        units, 25 steps of one row: 1.3 times as fast). It ends by itself: a step of an optimizer, `load_state_dict` or
        you put other arrays into `weights`.
        """
        self.weights = frozen(_check.named("weights", self.weights, self._shapes, self.dtype))

    def state_dict(self) -> dict[str, Array]:
        """Copies of the weights, under PyTorch's names."""
        return {name: weight.copy() for name, weight in self.weights.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take copies of these weights. Raises TypeError or ValueError unless names, shapes and dtype are the layer's;
        nothing has changed then."""
        taken = _check.named("state_dict", state_dict, self._shapes, self.dtype)
        self.weights = {name: np.array(weight, order="C") for name, weight in taken.items()}

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, but the seed, and the name of the class, as JSON values: what `from_weights`
        takes."""
        return {"layer": type(self).__name__} | self._arguments()

    def _arguments(self) -> dict[str, Any]:
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "output_size": self.output_size,
            "bias": self.bias,
            "dropout": self.dropout,
            "recurrent_dropout": self.recurrent_dropout,
            "zoneout": self.zoneout[0] if len(set(self.zoneout)) == 1 else list(self.zoneout),
            "merge": self.merge,
            "reverse": self.reverse,
            "dtype": str(self.dtype),
            "precision": self.precision,
        }

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._arguments().items())
        return f"{type(self).__name__}({arguments})"


class RNN(Layer):
    """Plain (Elman) recurrent units: h_t = act(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), `nonlinearity` "tanh", "sigmoid"
    or "relu". Elman, "Finding structure in time", 1990; as torch.nn.RNN. Further arguments as `Layer`."""

    def __init__(self, *args: Any, nonlinearity: str = "tanh", **kwargs: Any) -> None:
        self._choose(nonlinearity)
        super().__init__(*args, **kwargs)

    def _arrange(self, **config: Any) -> None:
        self._choose(config.pop("nonlinearity", "tanh"))
        super()._arrange(**config)

    def _choose(self, nonlinearity: str) -> None:
        self.nonlinearity = _check.choice("nonlinearity", nonlinearity, NONLINEARITIES)
        self.cell = BUILT_IN[f"rnn_{nonlinearity}"]

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {"nonlinearity": self.nonlinearity}


class LSTM(Layer):
    """Long short-term memory, gates i f g o, states h and c:

        i, f, o = sigmoid(...)    g = tanh(...)    c_t = f c_{t-1} + i g    h_t = o tanh(c_t)

    Hochreiter and Schmidhuber, 1997, and Gers, Schmidhuber and Cummins, 2000; as torch.nn.LSTM. `peepholes` (Gers and
    Schmidhuber, 2000): i and f see c_{t-1}, o sees c_t, through vectors peephole_i, peephole_f, peephole_o. `coupled`
    (Greff et al., 2017): no gate f, f = 1 - i. `forget_bias`: where the bias of the gate f starts, None: as the others.
    Further arguments as `Layer`.
    """

    def __init__(
        self,
        *args: Any,
        peepholes: bool = False,
        coupled: bool = False,
        forget_bias: float | None = None,
        **kwargs: Any,
    ) -> None:
        self._choose(peepholes, coupled)
        super().__init__(*args, **kwargs)
        if forget_bias is None:
            return
        start = _check.number("forget_bias", forget_bias, -np.inf)
        if self.coupled or not self.bias:
            why = "in a coupled LSTM, which has no gate f" if self.coupled else "without biases"
            raise ValueError(f"forget_bias: expected None {why}, got {forget_bias!r}")
        H = self.hidden_size
        for name, weight in self.weights.items():
            if name.startswith(("bias_ih", "bias_hh")):
                weight[H : 2 * H] = start if name.startswith("bias_ih") else 0

    def _arrange(self, **config: Any) -> None:
        self._choose(config.pop("peepholes", False), config.pop("coupled", False))
        super()._arrange(**config)

    def _choose(self, peepholes: bool, coupled: bool) -> None:
        self.peepholes, self.coupled = _check.flag("peepholes", peepholes), _check.flag("coupled", coupled)
        self.cell = BUILT_IN["lstm" + "_peephole" * self.peepholes + "_coupled" * self.coupled]

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {"peepholes": self.peepholes, "coupled": self.coupled}


class GRU(Layer):
    """Gated recurrent units, gates r z n: h_t = (1 - z) n + z h_{t-1}, Cho et al., 2014.

    `reset_after` (torch.nn.GRU, cuDNN): n = tanh(W_in x + b_in + r (W_hn h + b_hn)); else, as in the paper and by
    default in ONNX, n = tanh(W_in x + b_in + W_hn (r h) + b_hn). Further arguments as `Layer`.
    """

    def __init__(self, *args: Any, reset_after: bool = True, **kwargs: Any) -> None:
        self._choose(reset_after)
        super().__init__(*args, **kwargs)

    def _arrange(self, **config: Any) -> None:
        self._choose(config.pop("reset_after", True))
        super()._arrange(**config)

    def _choose(self, reset_after: bool) -> None:
        self.reset_after = _check.flag("reset_after", reset_after)
        self.cell = BUILT_IN["gru" if self.reset_after else "gru_reset_before"]

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {"reset_after": self.reset_after}


class MGU(Layer):
    """Minimal gated units, gates f n: n = tanh(W_in x + W_hn (f h)), h_t = (1 - f) h_{t-1} + f n. Zhou et al., 2016.
    Arguments as `Layer`."""

    cell = BUILT_IN["mgu"]


class IndRNN(Layer):
    """Units that see the input and themselves alone: h_t = act(W_ih x_t + b_ih + recurrent h_{t-1}), `nonlinearity`
    "tanh" or "relu"; `recurrent` is a vector. Li et al., 2018. Further arguments as `Layer`."""

    def __init__(self, *args: Any, nonlinearity: str = "relu", **kwargs: Any) -> None:
        self._choose(nonlinearity)
        super().__init__(*args, **kwargs)

    def _arrange(self, **config: Any) -> None:
        self._choose(config.pop("nonlinearity", "relu"))
        super()._arrange(**config)

    def _choose(self, nonlinearity: str) -> None:
        self.nonlinearity = _check.choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        self.cell = BUILT_IN[f"indrnn_{nonlinearity}"]

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {"nonlinearity": self.nonlinearity}


LAYERS: dict[str, tuple[type[Layer], dict[str, Any]]] = {
    "rnn_tanh": (RNN, {"nonlinearity": "tanh"}),
    "rnn_sigmoid": (RNN, {"nonlinearity": "sigmoid"}),
    "rnn_relu": (RNN, {"nonlinearity": "relu"}),
    "lstm": (LSTM, {}),
    "lstm_peephole": (LSTM, {"peepholes": True}),
    "lstm_coupled": (LSTM, {"coupled": True}),
    "lstm_peephole_coupled": (LSTM, {"peepholes": True, "coupled": True}),
    "gru": (GRU, {}),
    "gru_reset_before": (GRU, {"reset_after": False}),
    "mgu": (MGU, {}),
    "indrnn_tanh": (IndRNN, {"nonlinearity": "tanh"}),
    "indrnn_relu": (IndRNN, {"nonlinearity": "relu"}),
}
"""For each cell that is built in its layer class, and the arguments that choose the cell."""


def cell(definition: type) -> type[Layer]:
    """Decorator: a layer class, used as `rnn.LSTM` is, from a class that holds a cell's equations (see rnn.cells).

    The equations are read at once; kernels are compiled when a layer first needs them, and kept on disk. Raises
    `cells.CellError` for equations that make no cell, ValueError for the name of a layer class that is taken by ours.
    """
    equations = own(definition)
    if definition.__name__ in BUILT_IN_LAYERS:
        raise ValueError(f"cell: expected a name other than {', '.join(BUILT_IN_LAYERS)}, got {definition.__name__}")
    text = (definition.__doc__ or "A cell of one's own.") + "\n\nArguments as `rnn.layers.Layer`."
    return type(
        definition.__name__, (Layer,), {"cell": equations, "__doc__": text, "__module__": definition.__module__}
    )


BUILT_IN_LAYERS = ("RNN", "LSTM", "GRU", "MGU", "IndRNN", "Layer")


def layer_class(name: object) -> type[Layer]:
    """The class of this name: one of ours, or a cell of the user's own that has been defined. Raises ValueError."""
    if not isinstance(name, str) or name not in Layer._classes:
        raise ValueError(f"layer: expected one of {', '.join(Layer._classes)}, got {name!r}")
    return Layer._classes[name]


def _below(rng: np.random.Generator, share: float, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """True for about this share of numbers. They are drawn piece by piece, in order: all of them at once would be four
    times as large as the answer."""
    drawn = np.empty(shape, np.bool_)
    for piece in _pieces(shape):
        np.less(rng.random(drawn[piece].shape, np.float32), share, out=drawn[piece])
    return drawn


def _pieces(shape: tuple[int, ...]) -> list[slice]:
    """Of the first axis, of about 2^16 numbers each, which stay in the cache."""
    length = max(1, (1 << 16) // max(1, math.prod(shape[1:])))
    return [slice(start, start + length) for start in range(0, shape[0], length)]


def _zoneout(value: object, cell: CellEquations) -> tuple[float, ...]:
    count = cell.states
    if isinstance(value, tuple | list):
        if len(value) != count:
            raise ValueError(f"zoneout: expected one number, or one for each of {count} states, got {len(value)}")
        return tuple(_check.number(f"zoneout[{k}]", one, 0, 1) for k, one in enumerate(value))
    return (_check.number("zoneout", value, 0, 1),) * count


def _dtype(value: DTypeLike) -> np.dtype[Any]:
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise TypeError(f"dtype: expected float32 or float64, got {value!r}") from None
    if dtype not in (np.dtype(np.float32), np.dtype(np.float64)) or value is None:
        raise ValueError(f"dtype: expected float32 or float64 in native byte order, got {value!r}")
    return dtype
