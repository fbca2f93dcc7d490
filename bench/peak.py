"""What the machine can do at most: multiply-adds a second, and bytes a second from memory.

    python peak.py PROCESSORS [TARGET]    prints {"gflops": ..., "gbytes": ...}, of one thread on each of them together

Both loops are Halide pipelines, compiled when they start: for this very CPU, or for a target of Halide.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

import halide as hl
import numpy as np

SUMS = 10
"""Vectors of sums in flight: with a latency of 4 cycles and two multiply-adds a cycle 8 are enough; 16 registers (AVX2)
hold 10 and what they are multiplied with."""
SUMS_SSE = 14
"""Without multiply-add, 3 cycles for the product and 3 for the sum: Zen 4, 55 GFLOP/s; 10 reach 42, assembly 59."""
FACTORS, ROUNDS = 1 << 10, 1 << 10
"""The sums are multiplied with FACTORS numbers, each ROUNDS times from a register: 2 to 3 ms in all."""
ELEMENTS = 1 << 25
"""Of each array of the triad: 128 MiB, far beyond any cache."""
SECONDS = 0.5


def multiply_adds(threads: int, target: hl.Target) -> float:
    """10^9 additions and multiplications a second in float32, from registers alone."""
    in_flight = SUMS if target.has_feature(hl.TargetFeature.FMA) else SUMS_SSE
    lanes = target.natural_vector_size(hl.Float(32))
    x, vector, thread = hl.Var("x"), hl.Var("vector"), hl.Var("thread")
    sums, r = hl.Func("sums"), hl.RDom([(0, ROUNDS), (0, FACTORS)])
    factors = hl.ImageParam(hl.Float(32), 1)
    sums[x, vector, thread] = hl.cast(hl.Float(32), 1)
    sums[x, vector, thread] = sums[x, vector, thread] * factors[r.y] + 1.0
    out = hl.Func("out")
    out[x, vector, thread] = sums[x, vector, thread]

    out.bound(x, 0, lanes).bound(vector, 0, in_flight).vectorize(x).parallel(thread)
    sums.compute_at(out, thread).bound_extent(x, lanes).bound_extent(vector, in_flight).vectorize(x)
    sums.update().reorder(x, vector, r.x, r.y).vectorize(x).unroll(vector)
    out.compile_jit(target)
    factors.set(hl.Buffer(np.full(FACTORS, 0.5, np.float32)))
    result = hl.Buffer(hl.Float(32), [lanes, in_flight, threads])
    return 2e-9 * FACTORS * ROUNDS * in_flight * int(lanes) * threads / best(lambda: out.realize(result))


def triad(threads: int, target: hl.Target) -> float:
    """10^9 bytes a second of a = b + s c, two arrays read and one written (McCalpin, "STREAM", 1995)."""
    part = ELEMENTS // threads
    x, thread = hl.Var("x"), hl.Var("thread")
    a, b, c = hl.Func("a"), *(hl.ImageParam(hl.Float(32), 2) for _ in range(2))
    s = hl.Param(hl.Float(32), 3.0)
    a[x, thread] = b[x, thread] + s * c[x, thread]
    a.vectorize(x, 16).parallel(thread)
    arrays = [np.ones((threads, part), np.float32) for _ in range(3)]
    for parameter, array in zip((b, c), arrays[1:], strict=True):
        parameter.set(hl.Buffer(array))
    a.compile_jit(target)
    out = hl.Buffer(arrays[0])
    return 3e-9 * arrays[0].nbytes / best(lambda: a.realize(out))


def best(run: Callable[[], object]) -> float:
    """Seconds of the fastest run, over SECONDS."""
    run()
    end = time.perf_counter() + SECONDS
    seconds: list[float] = []
    while time.perf_counter() < end or len(seconds) < 3:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    processors = [int(number) for number in sys.argv[1].split(",")]
    os.sched_setaffinity(0, processors)
    os.environ["HL_NUM_THREADS"] = str(len(processors))
    target = hl.Target(sys.argv[2]) if sys.argv[2:] else hl.get_host_target()
    threads = len(processors)
    print(json.dumps({"gflops": multiply_adds(threads, target), "gbytes": triad(threads, target)}))
