"""Large arrays in memory that is used again."""

from __future__ import annotations

import gc
import resource
import threading

import numpy as np
import pytest
from numpy.typing import DTypeLike

import rnn
from rnn._kernels import smallest_array
from rnn._memory import aligned, empty

LARGE = (smallest_array // 4 + 1777,)
LARGER = ((9 << 21) + 1777,)  # 75 MB: no other test has left such an array behind


def address(array: object) -> int:
    assert isinstance(array, np.ndarray)
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (5,), (7, 11), LARGE, (3, 1 << 20)])
def test_arrays_are_as_numpys(shape: tuple[int, ...], dtype: str) -> None:
    array = empty(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    array[...] = 3
    assert (array == 3).all()


def test_memory_is_used_again_when_nobody_holds_it() -> None:
    first = empty(LARGER, "float32")
    place, part = address(first), first[1:]
    del first
    gc.collect()
    second = empty(LARGER, "float32")
    assert address(second) != place, "a view still holds it"
    del part
    assert address(empty(LARGER, "float32")) == place


def test_what_came_back_last_is_kept_when_there_is_too_much() -> None:
    """A step finds its arrays again also after 800 MiB of other shapes; new ones would cost a page fault each 4 KiB."""
    others = [empty((mebibytes << 18,), "float32") for mebibytes in range(100, 108)]
    del others
    empty((60 << 18,), "float32").fill(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    empty((60 << 18,), "float32").fill(2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000


def test_live_arrays_share_nothing() -> None:
    arrays = [empty(LARGE, "float32") for _ in range(20)]
    for value, array in enumerate(arrays):
        array[...] = value
    assert [array[0] for array in arrays] == list(range(20))
    assert [array[-1] for array in arrays] == list(range(20))


def test_what_a_run_holds_stays_while_others_come_and_go() -> None:
    layer = rnn.RNN(8, 64, output_size=8, seed=0)
    x = np.random.default_rng(0).standard_normal((64, 32, 8)).astype("float32")
    run = layer.forward(x)
    output = run.output.copy()
    for _ in range(3):
        other = layer.forward(-x)
        layer.bptt(other, other.output)
    np.testing.assert_array_equal(run.output, output)


def test_threads_get_arrays_of_their_own() -> None:
    wrong: list[int] = []

    def work(value: int) -> None:
        for _ in range(200):
            array = empty(LARGE, "float32")
            array[...] = value
            if not (array == value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_kernels_get_memory_from_a_cache_line_on() -> None:
    for numbers in (0, 1, 17, 1000):
        assert address(aligned((numbers,), "float32")) % 64 == 0


@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [((-1,), "float32", ValueError), ((1 << 40, 1 << 40), "float32", ValueError), ((2,), object, TypeError)],
)
def test_arrays_that_can_not_be_are_refused(shape: tuple[int, ...], dtype: DTypeLike, error: type[Exception]) -> None:
    for make in (empty, aligned):
        with pytest.raises(error):
            make(shape, dtype)
