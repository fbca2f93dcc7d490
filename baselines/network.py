"""What every rival is: one network in one library, trained and asked through the same few calls.

Each module of this folder that is named after a library has

    Network         the class below
    set_threads(n)  so many threads, before the first network; raises ValueError where the library can't
    versions()      {"library": "version"} of what does the work, for the machine card
    fresh           of those alone that keep what they compile on the disk: whether there was nothing yet

so that whoever times it sees no difference. What a library wants to be fast is not timed: its own arrays and its own
layout of the weights are made in `__init__` and `batch`, and what it compiles, there or at the first call of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from .cells import Array

BETAS = (0.9, 0.999)
EPS = 1e-8
CLIP_NORM = 1.0


class Objective(NamedTuple):
    """What training lowers, and how.

    loss = scale * mean of (y - target)^2 over the time steps from `skip` on

    update "sgd":  w = w - rate * g
    update "adam": g = g * min(1, CLIP_NORM / (|g| + 1e-6)), |g| the L2 norm of all gradients together (that of x is
                   none of them), then Kingma and Ba, "Adam", 2015, with BETAS and EPS, as torch.optim.Adam
    """

    update: str = "sgd"
    scale: float = 1.0
    skip: int = 0


class Network(Protocol):
    """A recurrent layer and its readout, from h0 = 0.

    cell: "rnn_tanh", "rnn_sigmoid" or "rnn_relu"; weights as `recurrence.forward` has them (the biases and the
    readout may be missing); all arrays have one dtype, float32 or float64. Nothing here writes to an argument.

    One whose functions take long to compile and serve any sizes may also have

        load(weights)   start anew, as a new network of the same cell and objective would, from weights of any sizes;
                        raises ValueError unless their names and dtype are those that it was made with

    Whoever makes many networks looks for it with hasattr (bench/worker.py).
    """

    def __init__(self, cell: str, weights: Mapping[str, Array], objective: Objective) -> None: ...

    def batch(self, x: Array, target: Array) -> Any:
        """x (T, N, I) and target (T, N, O, or H without a readout) as the library wants them."""
        ...

    def forward(self, batch: Any) -> Any:
        """The output y, of the target's shape: whatever np.asarray takes. All work is done when it returns."""
        ...

    def train(self, batch: Any, rate: float) -> float:
        """One training step: forward, loss, BPTT with the gradient of x too, update. The loss before the update."""
        ...

    def gradients(self, batch: Any) -> dict[str, Array]:
        """Of the loss, before any clipping: those of the weights by name, and "x". By the same code as `train`."""
        ...

    def weights(self) -> dict[str, Array]:
        """As they are now, by the names and shapes that went in."""
        ...
