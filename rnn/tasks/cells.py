"""The cells that tasks can be trained with, by the names that the command takes."""

from __future__ import annotations

from typing import Any

from ..layers import GRU, LSTM, MGU, RNN, IndRNN, Layer

__all__ = ["CELLS", "is_gated", "layer_of"]

CELLS: dict[str, tuple[type[Layer], dict[str, Any]]] = {
    "rnn": (RNN, {}),
    "rnn-sigmoid": (RNN, {"nonlinearity": "sigmoid"}),
    "rnn-relu": (RNN, {"nonlinearity": "relu"}),
    "lstm": (LSTM, {}),
    "lstm-peephole": (LSTM, {"peepholes": True}),
    "lstm-coupled": (LSTM, {"coupled": True}),
    "gru": (GRU, {}),
    "gru-reset-before": (GRU, {"reset_after": False}),
    "mgu": (MGU, {}),
    "indrnn": (IndRNN, {}),
    "indrnn-tanh": (IndRNN, {"nonlinearity": "tanh"}),
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
