"""Weights from and to other libraries: `pytorch` and `keras` (NumPy is enough), `onnx` (needs the package onnx).

    rnn.interchange.pytorch.from_state_dict("lstm", module.state_dict())    # and to_state_dict(layer)
    rnn.interchange.keras.from_weights("gru", [keras_layer.get_weights()])  # and to_weights(layer)
    rnn.interchange.onnx.from_model(onnx.load("model.onnx"))                # and to_model(layer)

The last one wants `import rnn.interchange.onnx`. Whatever the other side can't express raises `NotCarried`.

A weight crosses bit by bit, its rows reordered where the other side orders gates differently. Options that
act in training alone (dropout between layers, recurrent dropout) are no weights, and stay behind; zoneout
changes what a trained layer computes, so a layer with zoneout is refused.
"""

from . import keras, pytorch
from ._layers import NotCarried

__all__ = ["NotCarried", "keras", "pytorch"]
