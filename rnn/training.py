"""Training: mini-batches, (truncated) back-propagation through time, early stop, and exact resume."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _check
from . import checkpoint as checkpoints
from ._backends.base import Array
from .layers import Layer, State
from .losses import Loss
from .optim import Optimizer, global_norm
from .optim import clip_norm as clip

__all__ = ["History", "Progress", "TrainingDiverged", "evaluate", "fit"]

Pair = tuple[NDArray[Any], NDArray[Any]]
Encode = Callable[[NDArray[Any]], Array]


class TrainingDiverged(ArithmeticError):
    """A loss or a gradient became NaN or infinite. The step that would have used it was not taken."""


@dataclass
class History:
    """One entry a finished epoch: mean training loss, validation loss (if any), seconds of training alone."""

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        return len(self.loss)


class Progress(NamedTuple):
    """What a callback gets, after each batch and once more at the end of each epoch."""

    epoch: int
    """The running epoch, from 1."""
    epochs: int
    batch: int
    """Batches done in this epoch, from 1."""
    batches: int
    loss: float
    """Mean training loss over the epoch so far."""
    finished: bool
    """Whether this is the call at the end of the epoch; `history` has it as its last entry then."""
    history: History
    layer: Layer


Callback = Callable[[Progress], None]


def fit(
    layer: Layer,
    sequences: Sequence[Pair],
    loss: Loss,
    optimizer: Optimizer,
    *,
    epochs: int,
    batch_size: int | None = None,
    bptt_steps: int | None = None,
    clip_norm: float | None = None,
    rng: np.random.Generator | int | None = None,
    validation: Sequence[Pair] | None = None,
    patience: int | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume: bool = False,
    encode: Encode | None = None,
    remat: bool | int = False,
) -> History:
    """Train `layer` in place for `epochs` epochs in all, and return the curves.

    sequences    pairs (x (T, N, I), target (T, N, ...) as `loss` takes it), each with its own T and N
    batch_size   how many of a sequence's N lanes make a batch; None: all
    bptt_steps   truncated BPTT: an optimizer step every so many time steps, the state carried over (Williams
                 and Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
                 trajectories", 1990); None: the whole sequence
    clip_norm    the largest L2 norm of a step's gradients, see `optim.clip_norm`; None: any
    rng          seed or Generator that deals the lanes and shuffles the batches anew each epoch, and from
                 which come dropout and zoneout; None: the order is fixed
    validation   further pairs, whose loss is taken after each epoch, as `evaluate` does with steps=bptt_steps
    patience     stop after so many epochs in a row without a new best validation loss
    callbacks    each is called with a `Progress`, after each batch and each epoch
    checkpoint   file to be written after each epoch and on Ctrl-C; `metadata` (JSON values) goes into it
    resume       go on from that file, with the same bits as if there had been no interruption
    encode       makes x (t, n, I) from a piece (t, n, ...) of what the pairs hold in its place, so that what is much
                 larger than the data, such as one-hot vectors, is there for `bptt_steps` steps of a batch at a time;
                 None: the pairs hold x itself
    remat        compute again on the way back what would grow with the steps of a pass, as `Layer.forward` says

    Ctrl-C (KeyboardInterrupt) goes on to the caller; layer and optimizer are back at the last finished batch.

    Raises TypeError or ValueError naming the argument, TrainingDiverged naming epoch and batch,
    CheckpointError and OSError for the file.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"layer: expected a layer, got {type(layer).__name__}")
    if not callable(loss):
        raise TypeError(f"loss: expected a function of (output, target), got {type(loss).__name__}")
    epochs = _check.size("epochs", epochs)
    settings = {
        "batch_size": None if batch_size is None else _check.size("batch_size", batch_size, 1),
        "bptt_steps": None if bptt_steps is None else _check.size("bptt_steps", bptt_steps, 1),
        "clip_norm": None if clip_norm is None else _check.number("clip_norm", clip_norm, 0, open_low=True),
        "remat": _check.segment(remat) or None,  # None as in files from before there was such a choice
        "sequences": _fingerprint(_pairs("sequences", sequences, layer, encode)),
    }
    if validation is not None:
        _pairs("validation", validation, layer, encode)
    if patience is not None:
        _check.size("patience", patience, 1)
        if validation is None:
            raise ValueError("patience: expected validation sequences to watch, got validation=None")
    if resume and checkpoint is None:
        raise ValueError("resume: expected the file to resume from as checkpoint, got checkpoint=None")
    rng = None if rng is None else _check.generator("rng", rng)
    if rng is None and layer.is_random:
        raise ValueError("rng: expected a seed or a Generator for a layer with dropout or zoneout, got None")
    if checkpoint is not None and not Path(checkpoint).absolute().parent.is_dir():
        raise FileNotFoundError(f"checkpoint: expected an existing folder to write in, got {os.fspath(checkpoint)!r}")
    metadata = checkpoints.json_object("metadata", metadata or {})

    history = History()
    done = _Point(dict(layer.weights), optimizer.state, _random_state(rng))
    if resume and checkpoint is not None:
        done = _resume(checkpoint, settings, layer, optimizer, rng, history)

    def write() -> None:
        if checkpoint is not None:
            stored = Layer.from_weights(layer.config(), done.weights)
            training = settings | done.position()
            curves = {"loss": history.loss, "validation": history.validation, "seconds": history.seconds}
            whole = checkpoints.Checkpoint(stored, metadata, optimizer.config(), done.optimizer, training, curves)
            checkpoints.write(checkpoint, whole)

    def tell(epoch: int, *, finished: bool) -> None:
        for callback in callbacks:
            callback(Progress(epoch, epochs, batch, len(batches), mean, finished, history, layer))

    try:
        while done.epoch < epochs and not _stalled(history.validation, patience):
            epoch = done.epoch + 1
            batches = _batches(sequences, batch_size, rng)
            noise = int(rng.integers(2**62)) if rng is not None and layer.is_random else None
            batch, mean = done.batch, done.mean()
            for batch, (which, lanes, size) in enumerate(batches[done.batch :], done.batch + 1):
                x, target = sequences[which]
                place = f"epoch {epoch}, batch {batch} (from sequences[{which}])"
                start = time.perf_counter()
                mean = _train(
                    layer,
                    _take(x, lanes),
                    _take(target, lanes),
                    loss,
                    optimizer,
                    bptt_steps,
                    clip_norm,
                    None if noise is None else np.random.default_rng([noise, batch]),
                    place,
                    encode,
                    remat,
                )
                seconds = time.perf_counter() - start
                done = done.after(layer, optimizer, mean, len(x) * size, seconds)
                mean = done.mean()
                tell(epoch, finished=False)
            if validation is not None:
                history.validation.append(evaluate(layer, validation, loss, steps=bptt_steps, encode=encode))
            history.seconds.append(done.seconds)
            history.loss.append(mean)
            done = _Point(done.weights, done.optimizer, _random_state(rng), epoch)
            write()
            tell(epoch, finished=True)
    except (KeyboardInterrupt, SystemExit):
        layer.weights, optimizer.state = dict(done.weights), done.optimizer
        for curve in (history.loss, history.validation, history.seconds):
            del curve[done.epoch :]
        write()
        raise
    return history


def evaluate(
    layer: Layer,
    sequences: Sequence[Pair],
    loss: Loss,
    *,
    steps: int | None = None,
    encode: Encode | None = None,
) -> float:
    """Mean loss over pairs (x (T, N, I), target), each counted by its T*N.

    steps: run over so many time steps at once, the state carried over; None: over whole sequences. encode: as `fit`.
    Raises as `fit`.
    """
    if steps is not None:
        _check.size("steps", steps, 1)
    total, weight = 0.0, 0
    for x, target in _pairs("sequences", sequences, layer, encode):
        state = None
        for piece in _pieces(len(x), steps):
            output, state = layer(_encoded(x[piece], encode), state)
            value, _ = loss(output, target if steps is None else target[piece])
            count = output.shape[0] * output.shape[1]
            total, weight = total + value * count, weight + count
    return total / weight


@dataclass(frozen=True)
class _Point:
    """A training run after a finished batch. Arrays are never written into, so that references are enough."""

    weights: dict[str, Array]
    optimizer: dict[str, Array]
    rng: dict[str, Any] | None
    """The random state at the start of the running epoch, to deal its batches again on resume."""
    epoch: int = 0
    batch: int = 0
    total: float = 0.0
    weight: int = 0
    seconds: float = 0.0

    def after(self, layer: Layer, optimizer: Optimizer, mean: float, weight: int, seconds: float) -> _Point:
        return replace(
            self,
            weights=dict(layer.weights),
            optimizer=optimizer.state,
            batch=self.batch + 1,
            total=self.total + mean * weight,
            weight=self.weight + weight,
            seconds=self.seconds + seconds,
        )

    def mean(self) -> float:
        return self.total / max(self.weight, 1)

    def position(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _POSITION}


_POSITION = ("rng", "epoch", "batch", "total", "weight", "seconds")


class _Batch(NamedTuple):
    sequence: int
    lanes: slice | NDArray[np.intp]
    size: int


def _batches(sequences: Sequence[Pair], batch_size: int | None, rng: np.random.Generator | None) -> list[_Batch]:
    batches = []
    for which, (x, _) in enumerate(sequences):
        count = x.shape[1]
        size = batch_size or count
        dealt = None if rng is None or size >= count else rng.permutation(count)
        for start in range(0, count, size):
            stop = min(start + size, count)
            lanes = slice(start, stop) if dealt is None else dealt[start:stop]
            batches.append(_Batch(which, lanes, stop - start))
    return batches if rng is None else [batches[index] for index in rng.permutation(len(batches))]


def _take(array: NDArray[Any], lanes: slice | NDArray[np.intp]) -> NDArray[Any]:
    return array[:, lanes] if isinstance(lanes, slice) else array.take(lanes, axis=1)


def _train(
    layer: Layer,
    x: NDArray[Any],
    target: NDArray[Any],
    loss: Loss,
    optimizer: Optimizer,
    bptt_steps: int | None,
    clip_norm: float | None,
    rng: np.random.Generator | None,
    place: str,
    encode: Encode | None,
    remat: bool | int,
) -> float:
    """One pass over a batch, one optimizer step a chunk of `bptt_steps`. Returns the mean loss."""
    total, state = 0.0, None
    for part in _pieces(len(x), bptt_steps):
        run = layer.forward(_encoded(x[part], encode), state, rng=rng, remat=remat)
        value, d_output = loss(run.output, target[part])
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"{place}: the loss is {value}; look for NaN in the data, or lower the learning rate"
            )
        gradients = layer.bptt(run, d_output, of_x=False, of_state=False).weights
        norm = global_norm(gradients) if clip_norm is None else clip(gradients, clip_norm)
        if not math.isfinite(norm):
            raise TrainingDiverged(
                f"{place}: the norm of the gradients is {norm}; clip_norm or a lower learning rate may help"
            )
        optimizer.step(layer.weights, gradients)
        total += value * len(x[part])
        state = _copied(run.state)
        del run, d_output  # or they would stay beside those of the next piece
    return total / len(x)


def _copied(state: State) -> State:
    return tuple(map(np.copy, state)) if isinstance(state, tuple) else state.copy()


def _pieces(steps: int, most: int | None) -> list[slice]:
    size = most or steps
    return [slice(start, start + size) for start in range(0, steps, size)]


def _encoded(x: NDArray[Any], encode: Encode | None) -> Array:
    return x if encode is None else encode(x)


def _stalled(validation: list[float], patience: int | None) -> bool:
    """Whether the best validation loss is `patience` epochs old. NaN is never the best."""
    if patience is None or not validation:
        return False
    best = min(range(len(validation)), key=lambda i: (math.isnan(validation[i]), validation[i]))
    return len(validation) - 1 - best >= patience


def _pairs(name: str, sequences: Sequence[Pair], layer: Layer, encode: Encode | None) -> Sequence[Pair]:
    if not isinstance(sequences, list | tuple):
        raise TypeError(f"{name}: expected a list of pairs (x, target), got {type(sequences).__name__}")
    if not sequences:
        raise ValueError(f"{name}: expected at least one pair (x, target), got none")
    for index, pair in enumerate(sequences):
        where = f"{name}[{index}]"
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"{where}: expected a pair (x, target), got {type(pair).__name__}")
        x, target = pair
        if encode is None:
            _check.expect(f"{where}[0]", x, layer.dtype, (None, None, layer.input_size), "TNI")
        elif not isinstance(x, np.ndarray) or x.ndim < 2:
            raise TypeError(f"{where}[0]: expected an array (T, N, ...) for encode, got {_kind(x)}")
        if x.shape[0] * x.shape[1] == 0:
            raise ValueError(
                f"{where}[0]: expected at least one time step and one lane to learn from, got shape {x.shape}"
            )
        if not isinstance(target, np.ndarray):
            raise TypeError(f"{where}[1]: expected an array (T, N, ...), got {type(target).__name__}")
        if target.shape[:2] != x.shape[:2]:
            raise ValueError(f"{where}[1]: expected a target of shape {x.shape[:2]} (T, N) + ..., got {target.shape}")
    return sequences


def _kind(value: object) -> str:
    return f"shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _fingerprint(sequences: Sequence[Pair]) -> str:
    """Something short that tells apart sequences of other numbers or shapes."""
    digest = hashlib.sha256(repr([(x.shape, target.shape) for x, target in sequences]).encode())
    return f"{len(sequences)} with shapes {digest.hexdigest()[:12]}"


def _random_state(rng: np.random.Generator | None) -> dict[str, Any] | None:
    return None if rng is None else dict(rng.bit_generator.state)


def _resume(
    path: str | os.PathLike[str],
    settings: dict[str, Any],
    layer: Layer,
    optimizer: Optimizer,
    rng: np.random.Generator | None,
    history: History,
) -> _Point:
    """Put layer, optimizer, rng and history where the checkpoint left them; on an error none has changed."""
    stored = checkpoints.load(path)
    name = os.fspath(path)
    if stored.training is None or stored.optimizer is None:
        raise checkpoints.CheckpointError(f"{name}: holds a layer, but no training run to resume")
    for what, here, there in (
        ("layer", layer.config(), stored.layer.config()),
        ("optimizer", optimizer.config()["name"], stored.optimizer.get("name")),
        *((key, value, stored.training.get(key)) for key, value in settings.items()),
    ):
        if here != there:
            if isinstance(here, dict) and isinstance(there, dict):
                differing = [key for key in there | here if there.get(key) != here.get(key)]
                here, there = ({key: one[key] for key in differing if key in one} for one in (here, there))
            raise ValueError(f"resume: {what} differs: expected {there} as in {name}, got {here}")
    try:
        point = _Point(
            dict(stored.layer.weights),
            stored.optimizer_state,
            **{key: stored.training[key] for key in _POSITION},
        )
        if (point.rng is None) != (rng is None):
            raise ValueError(f"it was {'un' * (point.rng is None)}shuffled, with rng={rng} this one isn't")
        shapes = optimizer.state_shapes(layer.weights)
        if point.optimizer and {key: array.shape for key, array in point.optimizer.items()} != shapes:
            raise ValueError(f"the optimizer's state has other names or shapes than {shapes}")
        curves = History(**stored.history)
        if rng is not None:
            rng.bit_generator.state = dict(point.rng or {})
    except (KeyError, TypeError, ValueError) as reason:
        raise checkpoints.CheckpointError(f"{name}: no training run to resume: {reason}") from None
    layer.weights, optimizer.state = dict(point.weights), point.optimizer
    history.loss, history.validation, history.seconds = curves.loss, curves.validation, curves.seconds
    return point
