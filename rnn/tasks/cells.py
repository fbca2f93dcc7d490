"""The cells that tasks can be trained with, by the names that the command takes."""

from __future__ import annotations

from typing import Any

from ..layers import LAYERS, Layer

__all__ = ["CELLS", "is_gated", "layer_of"]

CELLS = {
    "rnn": LAYERS["rnn_tanh"],
    "rnn-sigmoid": LAYERS["rnn_sigmoid"],
    "rnn-relu": LAYERS["rnn_relu"],
    "lstm": LAYERS["lstm"],
    "lstm-peephole": LAYERS["lstm_peephole"],
    "lstm-coupled": LAYERS["lstm_coupled"],
    "gru": LAYERS["gru"],
    "gru-reset-before": LAYERS["gru_reset_before"],
    "mgu": LAYERS["mgu"],
    "indrnn": LAYERS["indrnn_relu"],
    "indrnn-tanh": LAYERS["indrnn_tanh"],
}
"""Name -> layer class, and what its constructor gets besides sizes and seed."""


def is_gated(cell: str) -> bool:
    """Whether gates say how much of the state changes: such cells want learning rates a few times higher."""
    return cell.startswith(("lstm", "gru", "mgu"))


def layer_of(cell: str, input_size: int, hidden_size: int, num_layers: int = 1, **options: Any) -> Layer:
    """A layer with this cell; further options as `Layer` takes them. Raises ValueError for an unknown cell."""
    if cell not in CELLS:
        raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {cell!r}")
    made, own = CELLS[cell]
    return made(input_size, hidden_size, num_layers, **own, **options)
