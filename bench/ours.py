"""Our own layers as one more network of `baselines.network`, through what users call."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

import rnn
from baselines.network import CLIP_NORM, Objective
from rnn.layers import LAYERS
from rnn.optim import SGD, Adam, clip_norm
from rnn.tasks import RelativeError

Array = np.typing.NDArray[np.floating[Any]]


class Batch(NamedTuple):
    x: Array
    target: Array


class Network:
    """A layer of `rnn` on the backend in use: "rnn_tanh" is an RNN with that nonlinearity, "lstm" an LSTM. Raises as
    the layers do. `remat`, 0 or 1: as `Layer.forward` has it."""

    def __init__(self, cell: str, weights: Mapping[str, Array], objective: Objective, remat: int = 0) -> None:
        self.remat = bool(remat)
        made, options = LAYERS[cell]
        config = {
            "layer": made.__name__,
            "input_size": weights["weight_ih_l0"].shape[1],
            "hidden_size": weights["weight_hh_l0"].shape[1],
            "output_size": len(weights["weight_ho"]) if "weight_ho" in weights else None,
            "bias": "bias_ih_l0" in weights,
            "dtype": weights["weight_ih_l0"].dtype,
        }
        self.layer = rnn.Layer.from_weights(config | options, dict(weights))
        self.frozen = False
        self.objective = objective
        self.loss = RelativeError(1 / objective.scale, objective.skip)
        self.optimizer: SGD | Adam = SGD(1.0) if objective.update == "sgd" else Adam(1.0)

    def batch(self, x: Array, target: Array) -> Batch:
        return Batch(x, target)

    def forward(self, batch: Batch) -> Array:
        """With frozen weights, as in an application that runs a trained net: nobody changes them between calls."""
        if not self.frozen:
            self.layer.freeze()
            self.frozen = True
        output, _ = self.layer(batch.x)
        return output

    def train(self, batch: Batch, rate: float) -> float:
        loss, gradients = self._gradients(batch)
        if self.objective.update == "adam":
            clip_norm(gradients.weights, CLIP_NORM)
        self.optimizer.lr = rate
        self.optimizer.step(self.layer.weights, gradients.weights)
        self.frozen = False
        return loss

    def gradients(self, batch: Batch) -> dict[str, Array]:
        _, gradients = self._gradients(batch)
        return {**gradients.weights, "x": gradients.x}

    def weights(self) -> dict[str, Array]:
        return dict(self.layer.weights)

    def _gradients(self, batch: Batch) -> tuple[float, rnn.Gradients]:
        run = self.layer.forward(batch.x, remat=self.remat)
        loss, d_output = self.loss(run.output, batch.target)
        return loss, self.layer.bptt(run, d_output, of_state=False)


def set_threads(n: int) -> None:
    """Raises ValueError for less than one."""
    rnn.set_num_threads(n)


def versions() -> dict[str, str]:
    return {"halide-rnn": version("halide-rnn"), "numpy": np.__version__}
