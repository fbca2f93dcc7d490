"""The binding alone: what it refuses, and that kernels stay inside the memory they are given."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from problems import SHAPES, Problem

from rnn._backends.base import Kernel, Walk
from rnn._backends.halide import Compiled, HalideBackend, Kernels, load
from rnn._kernels import fits, instruction_set, kernels, usual
from rnn._memory import aligned
from rnn.cells import BUILT_IN, CellEquations

T, N, I, H = 3, 4, 5, 6
FORWARD = kernels["forward_rnn_tanh_tuned_float32"]


def arguments() -> dict[str, Any]:
    """What the kernel takes: of a cell with one gate, one state, nothing kept and no vectors."""
    units = load().layout("forward", BUILT_IN["rnn_tanh"], False, 4, H, N).units  # type: ignore[attr-defined]
    shapes = {
        "x": (T, N, I),
        "initial": (1, N, H),
        "weight_ih": (I * units,),
        "weight_hh": (H * units,),
        "bias_ih": (H,),
        "bias_hh": (H,),
        "vectors": (0, H),
        "tape": (1, T + 1, N, H),
    }
    given: dict[str, Any] = {"reverse": 0, "from_zeros": 0, "first": 0, "lengths": np.full(N, T, np.int32)}
    given |= {name: aligned(shape, np.dtype(np.float32)) for name, shape in shapes.items()}
    for name in shapes:
        given[name][...] = 0
    assert list(given) == FORWARD.arguments
    return given


def read_only(a: NDArray[Any]) -> NDArray[Any]:
    a = a.copy()
    a.flags.writeable = False
    return a


DEFECTS: list[tuple[str, str, Callable[[Any], Any], type[Exception], str]] = [
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
    ("initial", "a row too few", lambda a: a[:, :-1], ValueError, "initial"),
    ("lengths", "64 bits", lambda a: a.astype(np.int64), TypeError, "expected int32"),
    ("lengths", "a row too few", lambda a: a[:-1], ValueError, "lengths"),
    ("reverse", "an array", lambda a: np.zeros(2, np.int32), TypeError, "expected a 32-bit integer"),
    ("reverse", "None", lambda a: None, TypeError, "expected a 32-bit integer"),
    ("reverse", "2^32", lambda a: 2**32, TypeError, "expected a 32-bit integer"),
    ("weight_hh", "a block of units too few", lambda a: a[: len(a) // 2], ValueError, "weight_hh"),
    ("weight_ih", "a number too many", lambda a: np.append(a, a[:1]), ValueError, "weight_ih"),
    (
        "weight_ih",
        "from the middle of a vector on",
        lambda a: np.append(a, a)[1 : 1 + len(a)],
        ValueError,
        "not aligned",
    ),
    ("tape", "read-only", read_only, TypeError, "writable"),
    (
        "tape",
        "rows that overlap",
        lambda a: np.lib.stride_tricks.as_strided(a, a.shape, (0, 0, 4 * H, 4)),
        ValueError,
        "overlap",
    ),
]


@pytest.mark.parametrize(
    ("name", "defect", "spoil", "error", "words"), DEFECTS, ids=[f"{d[0]}, {d[1]}" for d in DEFECTS]
)
def test_defects_are_refused_by_name(
    name: str, defect: str, spoil: Callable[[Any], Any], error: type[Exception], words: str
) -> None:
    given = arguments()
    given["tape"][:] = 7
    spoilt = {**given, name: spoil(given[name])}
    with pytest.raises(error, match=name) as raised:
        FORWARD(*spoilt.values())
    assert words in str(raised.value)
    assert (given["tape"] == 7).all()


@pytest.mark.parametrize("name", ["x", "initial", "weight_hh"])
def test_outputs_share_memory_with_nothing(name: str) -> None:
    given = arguments()
    memory = aligned((1000,), np.dtype(np.float32))
    memory[...] = 0
    for one in (name, "tape"):
        given[one] = memory[: given[one].size].reshape(given[one].shape)
    with pytest.raises(ValueError, match=f"tape: expected memory of its own, got memory shared with {name}"):
        FORWARD(*given.values())


def test_too_few_and_too_many_arguments() -> None:
    given = list(arguments().values())
    with pytest.raises(TypeError, match="expected tape, got too few arguments"):
        FORWARD(*given[:-1])
    with pytest.raises(TypeError, match="expected 12 arguments, got 13"):
        FORWARD(*given, given[-1])


def test_good_arguments_are_taken() -> None:
    given = arguments()
    given["bias_hh"][:] = 0.5
    given["initial"][:] = 0.25
    FORWARD(*given.values())
    np.testing.assert_array_equal(given["tape"][0, 0], given["initial"][0])
    np.testing.assert_allclose(given["tape"][0, 1:], np.tanh(0.5), rtol=1e-6)


def test_a_tape_may_begin_after_the_initial_states() -> None:
    whole, part = arguments(), arguments()
    whole["initial"][:] = part["initial"][:] = 0.25
    for given in whole, part:
        given["weight_hh"].reshape(H, -1)[:, :H] = np.eye(H)  # the only block of units
    part |= {"first": 1, "tape": np.zeros((1, T, N, H), np.float32)}
    FORWARD(*whole.values())
    FORWARD(*part.values())
    np.testing.assert_array_equal(part["tape"], whole["tape"][:, 1:])


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


class GuardedKernels(Kernels):
    """The compiled ones, called with guarded copies of every array, in and out."""

    def __init__(self, schedule: str, at_the_end: bool) -> None:
        self.compiled = Compiled(schedule, kernels, instruction_set())
        self.guard = Guarded(at_the_end)

    def recurrent(self, direction: str, cell: CellEquations, dtype: str, masked: bool) -> Kernel:
        return self.guarded(self.compiled.recurrent(direction, cell, dtype, masked))

    def product(self, name: str, dtype: str) -> Kernel:
        return self.guarded(self.compiled.product(name, dtype))

    def instructions(self, cell: CellEquations, dtype: str, masked: bool) -> str:
        return self.compiled.instructions(cell, dtype, masked)

    def guarded(self, kernel: Kernel) -> Kernel:
        def call(*given: Any) -> None:
            copies = [self.guard(one) if isinstance(one, np.ndarray) else one for one in given]
            kernel(*copies)
            for one, copy in zip(given, copies, strict=True):
                if isinstance(one, np.ndarray) and one.flags.writeable:
                    one[...] = copy

        return call


GUARDED = [(schedule, "rnn_tanh") for schedule in ("naive", "vectorized", "parallel", "tiled", "tuned")]
GUARDED += [("tuned", cell) for cell in BUILT_IN if cell != "rnn_tanh"]


@pytest.mark.parametrize("at_the_end", [True, False], ids=["before a guard page", "after a guard page"])
@pytest.mark.parametrize(("schedule", "name"), GUARDED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_stay_inside_their_arrays(shape: Problem, schedule: str, name: str, at_the_end: bool) -> None:
    """A read or a write outside would end the process."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, shape.T + 1, shape.N).astype(np.int32)
    walks = [Walk(), Walk(reverse=True, lengths=lengths)]
    if name in ("rnn_tanh", "lstm", "gru") and schedule == "tuned":
        walks.append(Walk(lengths=lengths, reset=rng.integers(0, 2, (shape.T, shape.N), np.uint8)))
    for walk in walks:
        check_inside(
            shape, HalideBackend("halide", schedule, GuardedKernels(schedule, at_the_end)), BUILT_IN[name], walk
        )


def check_inside(shape: Problem, chosen: HalideBackend, cell: CellEquations, walk: Walk) -> None:
    rng = np.random.default_rng(4)
    T, N, I, H, O = shape.T, shape.N, shape.I, shape.H, shape.O

    def normal(*axes: int) -> NDArray[Any]:
        return rng.standard_normal(axes).astype(np.float32) / np.float32(np.sqrt(H + 1))

    weights = {"weight_ih_l0": normal(cell.inputs * H, I), "bias_ih_l0": normal(cell.inputs * H)}
    if cell.hidden:
        weights |= {"weight_hh_l0": normal(cell.hidden * H, H), "bias_hh_l0": normal(cell.hidden * H)}
    weights |= {f"{vector}_l0": normal(H) for vector in cell.vectors}
    if O is not None:
        weights |= {"weight_ho": normal(O, H), "bias_o": normal(O)}
    x, states = normal(T, N, I), [normal(N, H) for _ in range(cell.states)]
    tape = chosen.forward(cell, x, states, weights, walk)
    gradients = chosen.bptt(cell, x, weights, tape, normal(*tape.output.shape), states, walk)
    for array in (tape.output, gradients.x, *gradients.weights.values(), *gradients.initial):
        assert np.isfinite(array).all()


WANTED = {"weight": (3, 2), "bias": (3,)}
ARRAYS = {"bias": np.ones(3, np.float32), "weight": np.ones((3, 2), np.float32)}


def test_usual_arrays_come_in_the_order_of_their_shapes() -> None:
    found = usual(ARRAYS, WANTED, np.dtype(np.float32))
    assert found is not None
    assert list(found) == list(WANTED)
    assert all(found[name] is ARRAYS[name] for name in WANTED)


UNUSUAL = {
    "another dtype": np.ones((3, 2)),
    "foreign byte order": np.ones((3, 2), ">f4"),
    "another shape": np.ones((2, 3), np.float32),
    "another rank": np.ones((3, 2, 1), np.float32),
    "not in C order": np.ones((2, 3), np.float32).T,
    "a subclass": np.ma.ones((3, 2), np.float32),
    "no array": [[1.0, 1.0]] * 3,
}


@pytest.mark.parametrize("weight", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_unusual_arrays_want_a_closer_look(weight: Any) -> None:
    assert usual({**ARRAYS, "weight": weight}, WANTED, np.dtype(np.float32)) is None


def test_other_names_want_a_closer_look() -> None:
    for other in ({"weight": ARRAYS["weight"]}, {**ARRAYS, "more": ARRAYS["bias"]}, {**ARRAYS, "more": 1}):
        assert usual(other, WANTED, np.dtype(np.float32)) is None
    assert usual({"weight": ARRAYS["weight"], "bia": ARRAYS["bias"]}, WANTED, np.dtype(np.float32)) is None


@pytest.mark.parametrize(("shape", "fitting"), [((2, 3), True), ((None, 3), True), ((2, 4), False), ((2, 3, 1), False)])
def test_an_array_fits_a_shape(shape: tuple[int | None, ...], fitting: bool) -> None:
    assert fits(np.zeros((2, 3), np.float32), shape, np.dtype(np.float32)) is fitting


@pytest.mark.parametrize(
    "value",
    [None, [[0.0]], np.zeros((1, 2), np.float64), np.zeros((1, 2), ">f4"), np.zeros((2, 4), np.float32)[:, ::2]],
)
def test_what_does_not_fit(value: object) -> None:
    assert not fits(value, (None, 2), np.dtype(np.float32))


AXPY, TWO = kernels["axpy_float32"], np.array([2], np.float32)


def test_each_of_several_arrays_of_any_shape() -> None:
    xs = [np.ones((2, 3), np.float32), np.arange(4, dtype=np.float32)]
    ys = [np.full(6, 5, np.float32), np.zeros(4, np.float32)]
    made = AXPY.each(TWO, xs, ys)
    assert made is not None
    ((first, second),) = made
    assert np.array_equal(first, np.full((2, 3), 7))  # in the shape of the first list's
    assert np.array_equal(second, [0, 2, 4, 6])


@pytest.mark.parametrize(
    "odd", [np.ones(2, np.float64), np.ones(4, np.float32)[::2], np.ones(0, np.float32), 1.0, None], ids=str
)
def test_each_is_for_full_arrays_of_the_kernels_type(odd: Any) -> None:
    whole = np.ones(2, np.float32)
    assert AXPY.each(TWO, [whole, odd], [whole, whole]) is None
    assert AXPY.each(TWO, [whole, whole], [whole, odd]) is None


@pytest.mark.parametrize(
    ("kernel", "settings", "lists", "error"),
    [
        ("axpy_float32", TWO, [[np.ones(3, np.float32)], [np.ones(2, np.float32)]], "axpy_float32.*access"),
        ("axpy_float32", TWO, [[np.ones(3, np.float32)], []], "as many arrays for each input"),
        ("axpy_float32", TWO, [[np.ones(3, np.float32)]], "a list for each input, got 1"),
        ("axpy_float32", np.ones(1), [[], []], "a: expected float32"),
        ("linear_tuned_float32", TWO, [[], [], []], "kernel of arrays of one axis"),
    ],
)
def test_each_refuses_by_name(kernel: str, settings: Any, lists: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        kernels[kernel].each(settings, *lists)
