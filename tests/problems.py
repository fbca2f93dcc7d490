"""The named problems that tests check and benches time: one list, each odd shape named after its reason."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import rnn

Array = NDArray[np.floating[Any]]


class Kind(NamedTuple):
    """A cell's layer: its class in `rnn`, the arguments that choose the cell, its gates and its states."""

    layer: str
    options: dict[str, str]
    gates: int
    states: int


KINDS = {
    "rnn_tanh": Kind("RNN", {"nonlinearity": "tanh"}, gates=1, states=1),
    "rnn_sigmoid": Kind("RNN", {"nonlinearity": "sigmoid"}, gates=1, states=1),
    "rnn_relu": Kind("RNN", {"nonlinearity": "relu"}, gates=1, states=1),
    "lstm": Kind("LSTM", {}, gates=4, states=2),
    "gru": Kind("GRU", {}, gates=3, states=1),
}


class Problem(NamedTuple):
    """T time steps, N lanes (the batch), I inputs, H hidden units, O outputs (None: no readout), one of the KINDS."""

    name: str
    T: int
    N: int
    I: int
    H: int
    O: int | None
    bias: bool = True
    cell: str = "rnn_tanh"
    dtype: str = "float32"
    forward_only: bool = False
    """Whether nobody trains at these sizes, so that benches time the forward pass alone."""

    def __str__(self) -> str:
        parts = [self.name, self.cell, *([] if self.bias else ["no bias"]), self.dtype]
        return ", ".join(parts)

    @property
    def kind(self) -> Kind:
        return KINDS[self.cell]

    @property
    def multiplications(self) -> int:
        """Multiply-adds of the products of a forward pass from zeros, whose first step has nothing to multiply by W_hh;
        a training step has three times as many."""
        gates = self.kind.gates
        return self.N * self.H * (self.T * (gates * self.I + (self.O or 0)) + (self.T - 1) * gates * self.H)

    def layer(self, seed: int | np.random.Generator = 0) -> rnn.Layer:
        """A layer of `rnn` that has never been trained."""
        make = getattr(rnn, self.kind.layer)
        given = {"output_size": self.O, "bias": self.bias, "seed": seed, "dtype": self.dtype}
        made: rnn.Layer = make(self.I, self.H, **given, **self.kind.options)
        return made


class Data(NamedTuple):
    """Random arrays for a problem: all that a forward pass and BPTT take, of a cell with one state."""

    x: Array
    h0: Array
    weights: dict[str, Array]
    d_output: Array
    d_state: Array


def data(problem: Problem, seed: int = 1) -> Data:
    rng = np.random.default_rng(seed)
    T, N, H = problem.T, problem.N, problem.H
    O = H if problem.O is None else problem.O

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(problem.dtype)

    weights = problem.layer(rng).weights
    return Data(normal(T, N, problem.I), normal(N, H), weights, normal(T, N, O), normal(N, H))


SHAPES = [
    Problem("one of everything", T=1, N=1, I=1, H=1, O=1),
    Problem("no time", T=0, N=2, I=3, H=4, O=2),
    Problem("no lanes", T=3, N=0, I=3, H=4, O=2),
    Problem("no input", T=3, N=2, I=0, H=4, O=2),
    Problem("no hidden units", T=3, N=2, I=3, H=0, O=2),
    Problem("no output", T=3, N=2, I=3, H=4, O=0),
    Problem("nothing at all", T=0, N=0, I=0, H=0, O=0),
    Problem("no readout", T=4, N=3, I=5, H=7, O=None),
    Problem("odd primes", T=7, N=5, I=3, H=11, O=13),
    Problem("one unit, one lane, long", T=257, N=1, I=1, H=1, O=1),
    Problem("one unit, many lanes", T=5, N=67, I=2, H=1, O=3),
    Problem("one lane, long", T=130, N=1, I=2, H=19, O=1),
    Problem("one step", T=1, N=6, I=4, H=9, O=3),
    Problem("powers of two", T=8, N=16, I=32, H=64, O=16),
    Problem("one lane short of a vector", T=5, N=15, I=7, H=15, O=15),
    Problem("one lane over an AVX-512 vector", T=5, N=17, I=17, H=17, O=17),
    Problem("three halves of an AVX-512 vector", T=5, N=16, I=6, H=21, O=3),
    Problem("one lane over two vectors", T=4, N=33, I=33, H=33, O=33),
    Problem("one lane over four vectors", T=3, N=65, I=65, H=65, O=65),
    Problem("one lane over two vectors, one lane", T=9, N=1, I=33, H=33, O=33),
    Problem("one lane over four vectors, two lanes", T=6, N=2, I=1, H=65, O=1),
    Problem("wide input", T=4, N=3, I=129, H=5, O=2),
    Problem("wide output", T=4, N=3, I=2, H=5, O=131),
    Problem("wide state", T=5, N=2, I=3, H=257, O=2),
    Problem("rows of a picture", T=48, N=40, I=1, H=16, O=1),
    Problem("columns of a picture", T=40, N=1, I=48, H=48, O=48),
]

PROBLEMS = [
    shape._replace(cell=cell, bias=bias, dtype=dtype)
    for shape in SHAPES
    for dtype in ("float32", "float64")
    for cell in ("rnn_tanh", "rnn_sigmoid", "rnn_relu")
    for bias in (True, False)
]

SMALL = [problem for problem in PROBLEMS if problem.dtype == "float64" and problem.T * problem.N <= 40
         and max(problem.I, problem.H, problem.O or 0) <= 13]  # fmt: skip
"""Small enough for central differences over every number."""

SPEED = [
    Problem("many thin lanes", T=512, N=512, I=1, H=16, O=1),
    Problem("one lane of 64", T=256, N=1, I=64, H=64, O=64),
    Problem("32 lanes of 256", T=64, N=32, I=256, H=256, O=256),
    Problem("one lane of 1024", T=1024, N=1, I=1024, H=1024, O=1024),
]
"""The shapes on which the Halide backend is to be faster than NumPy."""


def _grid(cell: str, *shapes: tuple[int, int, int, int], forward_only: bool = False) -> list[Problem]:
    """Of shapes (I, H, N, T)."""
    kind = cell.removeprefix("rnn_")
    return [
        Problem(f"{kind} I{I} H{H} N{N} T{T}", T, N, I, H, None, cell=cell, forward_only=forward_only)
        for I, H, N, T in shapes
    ]


GATED = [
    (1, 8, 1, 2048), (1, 24, 32, 2000), (1, 32, 1, 1000), (1, 40, 40, 2048),
    (64, 64, 48, 200), (128, 128, 1, 500), (256, 256, 48, 100), (512, 512, 48, 50),
]  # fmt: skip
"""What LSTM and GRU are both compared on, from one unit's audio effect up."""

# What people run, from one unit's audio effect to DeepBench's rows (baidu-research/DeepBench,
# code/kernels/rnn_problems.h, with I = H and the input product counted): the last three of tanh, and what stands after
# GATED; batches of 1 and 4 are its inference rows.
GRID = [
    *_grid(
        "rnn_tanh",
        (1, 8, 1, 2048), (1, 16, 512, 512), (1, 32, 1, 1000), (1, 32, 32, 1000), (64, 64, 1, 256), (64, 64, 48, 200),
        (128, 128, 1, 500), (100, 100, 20, 100), (256, 256, 48, 100), (320, 320, 64, 100), (512, 512, 48, 50),
        (1024, 1024, 1, 1024), (1024, 1024, 64, 32), (1760, 1760, 16, 50), (1760, 1760, 64, 50), (2048, 2048, 32, 50),
    ),
    *_grid(
        "lstm", *GATED,
        (256, 256, 32, 150), (512, 512, 16, 25), (512, 512, 64, 25), (1024, 1024, 32, 25), (1536, 1536, 16, 50),
    ),
    *_grid(
        "lstm", (512, 512, 1, 25), (512, 512, 4, 25), (1024, 1024, 1, 25), (1024, 1024, 4, 25), forward_only=True
    ),
    *_grid("gru", *GATED, (512, 512, 32, 1), (1024, 1024, 32, 187), (1536, 1536, 32, 187)),
    *_grid("gru", (1536, 1536, 1, 50), (1536, 1536, 4, 50), forward_only=True),
]  # fmt: skip
"""What the peers are compared on. A row is all that another shape takes."""


def named(name: str) -> Problem:
    """The shape of this name (tanh, with bias, float32): `_replace` the rest."""
    return next(shape for shape in SHAPES + SPEED + GRID if shape.name == name)
