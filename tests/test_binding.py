"""The binding alone: what it refuses, and that kernels stay inside the memory they are given."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from problems import SHAPES, Problem, data

from rnn._backends.halide import HalideBackend
from rnn._kernels import kernels

T, N, I, H, O = 3, 4, 5, 6, 2
FORWARD = kernels["forward_rnn_tanh_tuned_float32"]


def arguments() -> dict[str, NDArray[Any]]:
    shapes = {
        "x": (T, N, I),
        "h0": (N, H),
        "weight_ih": (H, I),
        "weight_hh": (H, H),
        "bias_ih": (H,),
        "bias_hh": (H,),
        "weight_ho": (O, H),
        "bias_o": (O,),
        "states": (T + 1, N, H),
        "output": (T, N, O),
    }
    assert list(shapes) == FORWARD.arguments
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def read_only(a: NDArray[Any]) -> NDArray[Any]:
    a = a.copy()
    a.flags.writeable = False
    return a


DEFECTS: list[tuple[str, str, Callable[[NDArray[Any]], Any], type[Exception], str]] = [
    ("x", "float64", lambda a: a.astype(np.float64), TypeError, "expected float32"),
    ("x", "integers", lambda a: a.astype(np.int32), TypeError, "expected float32"),
    ("x", "other byte order", lambda a: a.astype(">f4"), TypeError, "native byte order"),
    ("x", "a list", lambda a: a.tolist(), TypeError, "got list"),
    ("x", "None", lambda a: None, TypeError, "got NoneType"),
    ("x", "an axis too few", lambda a: a[0], ValueError, "expected 3 axes, got 2"),
    ("x", "an axis too many", lambda a: a[None], ValueError, "expected 3 axes, got 4"),
    ("x", "backwards in time", lambda a: a[::-1], ValueError, "not negative"),
    ("x", "last axis with gaps", lambda a: np.zeros((T, N, 2 * I), np.float32)[:, :, ::2], ValueError, "contiguous"),
    (
        "x",
        "unaligned",
        lambda a: np.zeros(a.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(a.shape),
        ValueError,
        "aligned",
    ),
    (
        "x",
        "2^31 elements",
        lambda a: np.broadcast_to(np.zeros(I, np.float32), (2**20, 2**10, I)),
        OverflowError,
        "2^31",
    ),
    ("h0", "a row too few", lambda a: a[:-1], ValueError, "h0"),
    ("weight_hh", "a column too few", lambda a: np.ascontiguousarray(a[:, :-1]), ValueError, "weight_hh"),
    ("states", "read-only", read_only, TypeError, "writable"),
    (
        "states",
        "rows that overlap",
        lambda a: np.lib.stride_tricks.as_strided(a, a.shape, (0, 4 * H, 4)),
        ValueError,
        "overlap",
    ),
]


@pytest.mark.parametrize(
    ("name", "defect", "spoil", "error", "words"), DEFECTS, ids=[f"{d[0]}, {d[1]}" for d in DEFECTS]
)
def test_defects_are_refused_by_name(
    name: str, defect: str, spoil: Callable[[NDArray[Any]], Any], error: type[Exception], words: str
) -> None:
    given = arguments()
    given["states"][:] = given["output"][:] = 7
    spoilt = {**given, name: spoil(given[name])}
    with pytest.raises(error, match=name) as raised:
        FORWARD(*spoilt.values())
    assert words in str(raised.value)
    assert (given["states"] == 7).all()
    assert (given["output"] == 7).all()


def test_outputs_share_memory_with_nothing() -> None:
    given = arguments()
    memory = np.zeros(1000, np.float32)
    for first, second in (("states", "output"), ("x", "states"), ("weight_ho", "output")):
        shared = dict(given)
        for name in (first, second):
            shared[name] = memory[: given[name].size].reshape(given[name].shape)
        with pytest.raises(ValueError, match="expected memory of its own"):
            FORWARD(*shared.values())


def test_too_few_and_too_many_arguments() -> None:
    given = list(arguments().values())
    with pytest.raises(TypeError, match="expected an array for output"):
        FORWARD(*given[:-1])
    with pytest.raises(TypeError, match="expected 10 arrays, got 11"):
        FORWARD(*given, given[0])


class Guarded:
    """Copies of arrays that end where a page without access begins, or begin where one ends."""

    def __init__(self, at_the_end: bool) -> None:
        self.at_the_end = at_the_end
        self.maps: list[mmap.mmap] = []

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        page = mmap.PAGESIZE
        inner = -(-max(array.nbytes, 1) // page) * page
        memory = mmap.mmap(-1, inner + 2 * page)
        self.maps.append(memory)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for guard in (base, base + page + inner):
            assert protect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
        start = page + (inner - array.nbytes if self.at_the_end else 0)
        copy = np.frombuffer(memory, array.dtype, array.size, start).reshape(array.shape)
        copy[...] = array
        return copy


@pytest.mark.parametrize("at_the_end", [True, False], ids=["before a guard page", "after a guard page"])
@pytest.mark.parametrize("schedule", ["naive", "vectorized", "parallel", "tiled", "tuned"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_stay_inside_their_arrays(shape: Problem, schedule: str, at_the_end: bool) -> None:
    """A read or a write outside would end the process; every array of a call, in and out, is guarded."""
    guard = Guarded(at_the_end)

    def find(direction: str, cell: str, dtype: str) -> Callable[..., None]:
        def call(*arrays: NDArray[Any]) -> None:
            copies = [guard(array) for array in arrays]
            kernels[f"{direction}_{cell}_{schedule}_{dtype}"](*copies)
            for array, copy in zip(arrays, copies, strict=True):
                if array.flags.writeable:
                    array[...] = copy

        return call

    x, h0, weights, d_output, d_state = data(shape)
    chosen = HalideBackend("halide", schedule, find)
    tape = chosen.forward("rnn_tanh", x, h0, weights)
    gradients = chosen.bptt("rnn_tanh", x, weights, tape, d_output, d_state)
    assert np.isfinite(tape.output).all()
    assert np.isfinite(gradients.x).all()
