"""Calls into another process: a line of JSON each way, and the arrays in memory that both processes share.

Standard library and NumPy alone: the other end may be a Python that has nothing else of ours.

    with Remote([python, "worker.py"]) as remote:        class Worker:
        answer = remote.ask("scale", {"a": a}, by=2)         def scale(self, arrays, by):
        answer.arrays["a"], answer["took"]                       return {"took": 0.1}, {"a": by * arrays["a"]}

                                                         serve(Worker())
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

ALIGNMENT = 64  # bytes: a cache line, and an AVX-512 vector


class RemoteError(Exception):
    """The other end could not do it, or is gone; the message says why."""


class Memory:
    """An anonymous file that both processes map; it grows and never shrinks."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create("arrays") if descriptor is None else descriptor
        self._map: mmap.mmap | None = None

    def put(self, arrays: Mapping[str, NDArray[Any]]) -> list[Any]:
        """Copy the arrays in; returns what `get` at the other end needs."""
        places, end = [], 0
        for name, array in arrays.items():
            places.append((name, array.dtype.str, array.shape, end))
            end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        if end > os.fstat(self.descriptor).st_size:
            os.ftruncate(self.descriptor, end)
        for name, view in self.get(places).items():
            view[...] = arrays[name]
        return places

    def get(self, places: Sequence[Any]) -> Arrays:
        """The arrays, where they lie: good until the next request."""
        size = os.fstat(self.descriptor).st_size
        if size and (self._map is None or len(self._map) < size):
            self._map = mmap.mmap(self.descriptor, size)  # arrays in the map before keep that one alive
        buffer: Any = self._map if size else b""
        return {name: np.ndarray(shape, dtype, buffer, start) for name, dtype, shape, start in places}

    def close(self) -> None:
        self._map = None
        os.close(self.descriptor)


class Answer(dict[str, Any]):
    """The values that came back; `arrays` are copies."""

    arrays: Arrays


class Remote:
    """The near end: starts `command`, whose program calls `serve`, with two more arguments, and talks to it.

    It has a session of its own, so that Ctrl-C stops this process alone, which then ends it. A call that is
    interrupted ends it too: the next answer would be that of the last request.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._lock = threading.Lock()
        self._there, self._back = Memory(), Memory()
        shared = (self._there.descriptor, self._back.descriptor)
        self.process = subprocess.Popen(
            [*command, *map(str, shared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=None if env is None else dict(env),
            pass_fds=shared,
            start_new_session=True,
        )

    def ask(self, do: str, arrays: Mapping[str, NDArray[Any]] | None = None, **values: Any) -> Answer:
        """Call the method `do`. Raises RemoteError."""
        with self._lock:
            try:
                return self._ask(do, arrays or {}, values)
            except BaseException as error:
                if not isinstance(error, RemoteError) or self.process.poll() is not None:
                    self.close()
                raise

    def _ask(self, do: str, arrays: Mapping[str, NDArray[Any]], values: dict[str, Any]) -> Answer:
        if self.process.poll() is not None:
            raise RemoteError(self._gone())
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(
                json.dumps({"do": do, "arrays": self._there.put(arrays), "values": values}),
                file=self.process.stdin,
                flush=True,
            )
        except BrokenPipeError:
            raise RemoteError(self._gone()) from None
        line = self.process.stdout.readline()
        if not line:
            raise RemoteError(self._gone())
        message = json.loads(line)
        if "error" in message:
            raise RemoteError(message["error"])
        answer = Answer(message["values"])
        answer.arrays = {name: array.copy() for name, array in self._back.get(message["arrays"]).items()}
        return answer

    def _gone(self) -> str:
        status = self.process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"the process {how} (what it printed, if anything, stands above)"

    def close(self) -> None:
        """End the process, whatever it does. Does nothing the second time."""
        if self.process.stdin is None or self.process.stdin.closed:
            return
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        self._there.close()
        self._back.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(worker: Any) -> None:
    """The far end: answer requests with the methods of `worker` until the near end closes.

    A method gets `arrays` (good until it returns) and the values by name; it returns the values to be answered, or
    those and arrays. Only answers get to standard output: what else is printed goes to standard error.
    """
    there, back = (Memory(int(descriptor)) for descriptor in sys.argv[-2:])
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def say(**message: Any) -> None:
            print(json.dumps(message), file=answers, flush=True)

        for line in sys.stdin:
            request = json.loads(line)
            try:
                done = getattr(worker, request["do"])(there.get(request["arrays"]), **request["values"])
                values, arrays = done if isinstance(done, tuple) else (done, {})
            except Exception as error:
                say(error=f"{type(error).__name__}: {error}")
            else:
                say(values=values or {}, arrays=back.put(arrays))
