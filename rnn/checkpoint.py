"""Layers, and the whole state of a training run, in one safetensors file.

The tensors are the layer's weights under PyTorch's names, the optimizer's under "optimizer.", the curves
under "history.". The header's metadata holds "format", "config" (JSON: layer, optimizer, training, metadata)
and "sha256" over all of it, so that a damaged file is never taken for a good one. Nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._files import write_atomically
from .layers import Layer

__all__ = ["Checkpoint", "CheckpointError", "load", "save"]

FORMAT = "halide-rnn checkpoint 1"
HEADER_LIMIT = 2**20  # bytes; ours have a few thousand
METADATA_LIMIT = 2**18  # bytes; JSON in JSON can double

Tensors = dict[str, NDArray[Any]]


class CheckpointError(ValueError):
    """A file that is no checkpoint of ours, or a damaged one. The message names it and says what is wrong."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds. Those written by `fit` have the optimizer's `config()` and state, and the curves."""

    layer: Layer
    metadata: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    optimizer_state: Tensors = field(default_factory=dict)
    training: dict[str, Any] | None = None
    history: dict[str, list[float]] = field(default_factory=dict)


def save(path: str | os.PathLike[str], layer: Layer, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a layer (weights and configuration) and `metadata` (JSON values) of your own to `path`.

    The file there is replaced at once or not at all. Raises OSError, or TypeError/ValueError if metadata
    isn't JSON.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"layer: expected a layer, got {type(layer).__name__}")
    write(path, Checkpoint(layer, json_object("metadata", metadata or {})))


def write(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write all of a checkpoint to `path`, atomically. Raises as `save`."""
    from safetensors.numpy import save as to_bytes  # here, so that `import rnn` stays light

    layer = Layer.from_weights(
        checkpoint.layer.config(), checkpoint.layer.weights
    )  # names, shapes, dtypes as they should
    tensors: Tensors = dict(layer.weights)
    tensors |= {f"optimizer.{name}": array for name, array in checkpoint.optimizer_state.items()}
    tensors |= {f"history.{name}": np.array(curve, np.float64) for name, curve in checkpoint.history.items()}
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    config = {
        "layer": layer.config(),
        "optimizer": checkpoint.optimizer,
        "training": checkpoint.training,
        "metadata": checkpoint.metadata,
    }
    text = json.dumps(config, allow_nan=False, default=_plain)
    header = {"format": FORMAT, "config": text, "sha256": _digest(text, tensors)}
    write_atomically(path, to_bytes(tensors, header))


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint: `.layer` is ready to run, `.metadata` is what was saved with it.

    Raises OSError if there is no such file, CheckpointError if it is cut off, damaged, foreign, or too new.
    """
    name = os.fspath(path)
    try:
        return _parse(_read(Path(path)))
    except _ReadError as reason:
        raise CheckpointError(f"{name}: {reason}") from None


def json_object(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as a dict, if JSON can hold it. Raises TypeError or ValueError."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a dict of JSON values, got {type(value).__name__}")
    try:
        text = json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as reason:
        raise type(reason)(f"{name}: expected JSON values: {reason}") from None
    if len(text) > METADATA_LIMIT:
        raise ValueError(f"{name}: expected at most {METADATA_LIMIT} bytes of JSON, got {len(text)}")
    return dict(value)


def _plain(value: object) -> Any:
    """Arrays inside the state of some random generators, as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"expected JSON values, got {type(value).__name__}")


class _ReadError(Exception):
    """What is wrong with a file, for `load` to say together with the file's name."""


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _ReadError("expected a regular file")
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8:
            raise _ReadError(f"no checkpoint, or cut off: it has {len(first)} bytes")
        if length > HEADER_LIMIT:
            raise _ReadError(f"no checkpoint: expected a header of at most {HEADER_LIMIT} bytes, it claims {length}")
        if 8 + length > status.st_size:
            raise _ReadError(
                f"no checkpoint, or cut off: its header alone has {length} bytes, the file {status.st_size}"
            )
        return first + file.read()


def _parse(data: bytes) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        tensors = from_bytes(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as reason:
        raise _ReadError(f"no safetensors file, or cut off, or damaged: {reason}") from None
    if header.get("format") != FORMAT:
        raise _ReadError(f"a foreign safetensors file: expected format {FORMAT!r}, got {header.get('format')!r}")
    text = header.get("config", "")
    if header.get("sha256") != _digest(text, tensors):
        raise _ReadError("damaged: the contents don't match their checksum")
    # From here on the file is as some program wrote it, though not for certain ours.
    try:
        config = json.loads(text)
        parts = _split(tensors)
        layer = Layer.from_weights(config["layer"], parts[""])
        return Checkpoint(
            layer=layer,
            metadata=dict(config["metadata"]),
            optimizer=config["optimizer"],
            optimizer_state=parts["optimizer."],
            training=config["training"],
            history={name: curve.tolist() for name, curve in parts["history."].items()},
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as reason:
        raise _ReadError(f"unexpected contents: {type(reason).__name__}: {reason}") from None


def _split(tensors: Tensors) -> dict[str, Tensors]:
    parts: dict[str, Tensors] = {"": {}, "optimizer.": {}, "history.": {}}
    for name, array in tensors.items():
        prefix = next((prefix for prefix in ("optimizer.", "history.") if name.startswith(prefix)), "")
        parts[prefix][name.removeprefix(prefix)] = array
    return parts


def _digest(text: str, tensors: Tensors) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
