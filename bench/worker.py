"""One implementation in a process of its own: the far end of `runner.Worker`.

    python worker.py MODULE PROCESSORS BACKEND OPTION (and what baselines.remote adds)

PROCESSORS, such as "0,1", are those that it may run on, one thread on each. It sees NumPy and what the implementation
needs, nothing else: Theano's Python has no `rnn`.
"""

import time

START = time.perf_counter()  # before anything is imported: `first_step` counts from here

import importlib  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

HERE = str(Path(__file__).resolve().parent)
ROOT = str(Path(HERE).parent)
MEBIBYTE = 2**20


def load(name: str) -> Any:
    """A module of this tree. Only while it loads, the tree is on the path: `rnn` is to be the installed one."""
    sys.path.insert(0, ROOT)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(ROOT)


class Worker:
    """The methods are the requests; see baselines/remote.py for how arrays and values come and go."""

    network: Any

    def __init__(self, module: str, processors: list[int], backend: str, option: str) -> None:
        self.module, self.processors, self.backend, self.option = module, processors, backend, option
        self.kind: Any = None

    def start(self, arrays: Any) -> dict[str, Any]:
        """Import the library. Answers its versions, what is resident now, and whether its cache of compiled code on the
        disk, if it has one, is "empty" or "filled"; or {"absent": why it can't run here}."""
        try:
            if self.backend:
                import rnn  # before the tree is on the path: the installed one, with its kernels
            self.library = load(self.module)
            self.library.set_threads(len(self.processors))
            if self.backend:
                name, _, schedule = self.backend.partition(" ")
                rnn.backend.use(name, schedule=schedule or None)
        except ImportError as error:
            return {"absent": str(error)}
        fresh = getattr(self.library, "fresh", None)
        cache = "" if fresh is None else "empty" if fresh else "filled"
        return {"versions": self.library.versions(), "resident": resident("VmRSS"), "cache": cache}

    def create(self, arrays: Any, cell: str, objective: list[Any]) -> dict[str, Any]:
        """A network from its weights; with "x" and "target" also the batch that the requests below work on.

        If the last one has `load` (see baselines/network.py), and differs in sizes alone, it starts anew: what took it
        seconds to compile need not be compiled again.
        """
        network = load("baselines.network")
        arrays = {name: array.copy() for name, array in arrays.items()}
        x, target = arrays.pop("x", None), arrays.pop("target", None)
        argument, _, number = self.option.partition("=")
        options = {argument: int(number)} if argument else {}
        kind = cell, objective, {name: array.dtype for name, array in arrays.items()}
        start = time.perf_counter()
        if kind == self.kind and hasattr(self.network, "load"):
            self.network.load(arrays)
        else:
            self.network = self.library.Network(cell, arrays, network.Objective(*objective), **options)
            self.kind = kind
        self.batch = None if x is None else self.network.batch(x, target)
        return {"seconds": time.perf_counter() - start}

    def forward(self, arrays: Any) -> Any:
        import numpy as np

        return {}, {"output": np.asarray(self.network.forward(self.batch))}

    def gradients(self, arrays: Any) -> Any:
        return {}, self.network.gradients(self.batch)

    def train(self, arrays: Any, rate: float) -> Any:
        """One step. Answers the loss before it and the weights after it, and the seconds since this process began."""
        loss = self.network.train(self.batch, rate)
        return {"loss": float(loss), "since_start": time.perf_counter() - START}, self.network.weights()

    def time(self, arrays: Any, which: str, rate: float, runs: int) -> dict[str, Any]:
        """The seconds of `runs` forward passes ("forward") or training steps ("train") together."""
        network, batch = self.network, self.batch
        start = time.perf_counter()
        if which == "forward":
            for _ in range(runs):
                network.forward(batch)
        else:
            for _ in range(runs):
                network.train(batch, rate)
        return {"seconds": time.perf_counter() - start}

    def peak(self, arrays: Any, rate: float) -> dict[str, Any]:
        """MiB that were resident at most while training steps ran (two, since allocators learn from the first), without
        those in which the batch came from the near end."""
        self.network.train(self.batch, rate)  # which may compile: not what a training step needs
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
        for _ in range(2):
            self.network.train(self.batch, rate)
        return {"resident": resident("VmHWM") - resident("RssShmem")}

    def study(self, arrays: Any) -> None:
        """Keep the pairs "x0", "target0", "x1", ... that `learn` trains on."""
        self.pairs = {name: array.copy() for name, array in arrays.items()}

    def learn(self, arrays: Any, epochs: list[Any], rates: list[list[float]], turn: float) -> dict[str, Any]:
        """Train until all epochs are done or `turn` seconds are over. An epoch is its batches, (number of the pair, its
        lanes), with a rate each. Answers loss, the mean over all numbers, and seconds of each epoch; cutting batches
        out of the data counts as training."""
        losses: list[float] = []
        seconds: list[float] = []
        while len(losses) < len(epochs) and sum(seconds) < turn:
            start, total, weight = time.perf_counter(), 0.0, 0
            for (pair, lanes), rate in zip(epochs[len(losses)], rates[len(losses)], strict=True):
                x, target = (self.pairs[f"{name}{pair}"].take(lanes, axis=1) for name in ("x", "target"))
                total += float(self.network.train(self.network.batch(x, target), rate)) * len(lanes) * len(x)
                weight += len(lanes) * len(x)
            seconds.append(time.perf_counter() - start)
            losses.append(total / weight)
        return {"loss": losses, "seconds": seconds}

    def weights(self, arrays: Any) -> Any:
        return {}, self.network.weights()


def resident(name: str) -> float:
    """MiB of this process, VmRSS (now), VmHWM (at most so far) or RssShmem (of VmRSS, shared with other processes)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / MEBIBYTE


if __name__ == "__main__":
    if HERE in sys.path:  # not with -I
        sys.path.remove(HERE)
    module, processors, backend, option = sys.argv[1:5]
    chosen = [int(number) for number in processors.split(",")]
    os.sched_setaffinity(0, chosen)  # before any library counts the processors that it may use
    load("baselines.remote").serve(Worker(module, chosen, backend, option))
