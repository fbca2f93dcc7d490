"""One implementation in a process of its own: reads a request a line from standard input, answers a line each.

Requests and answers are JSON. It is started as a script, with the threads set in its environment before NumPy loads.

    {"do": "load", "file": F}                  arrays of a training step (see `runner.save_step`)
    {"do": "time", "which": W, "runs": R}      -> {"seconds": of R runs together}; W is "forward" or "train"
    {"do": "results", "file": F}               writes the output and all gradients to F
    {"do": "learn", "task": ..., ...}          -> {"epoch": ...} lines, then {"loss": ..., "seconds": ..., ...}
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import rnn
import rnn.tasks


class Worker:
    def __init__(self, answers: Any) -> None:
        self.answers = answers

    def answer(self, **values: Any) -> None:
        print(json.dumps(values), file=self.answers, flush=True)

    def load(self, file: str) -> None:
        with np.load(file) as arrays:
            stored = {name: arrays[name] for name in arrays.files}
        config = json.loads(str(stored.pop("config")))
        self.x, self.d_output = stored.pop("x"), stored.pop("d_output")
        self.layer = rnn.RNN.from_weights(config, stored)
        self.answer()

    def time(self, which: str, runs: int) -> None:
        backwards = which == "train"
        layer, x, d_output = self.layer, self.x, self.d_output
        start = time.perf_counter()
        for _ in range(runs):
            run = layer.forward(x)
            if backwards:
                layer.bptt(run, d_output)
        self.answer(seconds=time.perf_counter() - start)

    def results(self, file: str) -> None:
        run = self.layer.forward(self.x)
        gradients = self.layer.bptt(run, self.d_output)
        arrays: dict[str, Any] = {"output": run.output, "d_x": gradients.x, "d_h0": gradients.h0}
        np.savez(file, **(arrays | gradients.weights))
        self.answer()

    def learn(
        self, task: str, mode: str, size: int | None, epochs: int | None, judged: bool, pictures: list[str], footer: str
    ) -> None:
        """Train with the defaults (but for `epochs`), and if wanted judge and draw what was learned."""
        rng = np.random.default_rng(0)
        if task == "sobel":
            data = rnn.tasks.sobel_task(mode, size=size, rng=rng)
        else:
            data = rnn.tasks.frames_task(mode, size=size, rng=rng)
        how = rnn.tasks.recipe(mode, data.size)
        how = how._replace(epochs=epochs or how.epochs)
        layer = rnn.tasks.make_layer(data, how.hidden, seed=0)

        def tell(progress: rnn.Progress) -> None:
            if progress.finished:
                self.answer(epoch=progress.epoch, epochs=progress.epochs)

        history = rnn.tasks.train(layer, data, how, seed=0, callbacks=[tell])
        error = linear = None
        if judged:
            result = rnn.tasks.judge(layer, data)
            error, linear = result.relative_rmse, result.linear
            title = f"{task} {mode}: held out, never trained on."
            for path in pictures:
                rnn.tasks.draw_panels(path, task, data.lag, data.test, result.outputs, title=title, footer=footer)
        self.answer(loss=history.loss, seconds=history.seconds, error=error, linear=linear, hidden=how.hidden)


def main(name: str) -> None:
    # Only answers may get to standard output.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(answers)
    try:
        rnn.backend.use(name)
    except (ImportError, ValueError) as error:
        worker.answer(absent=str(error))
        return
    worker.answer(threads=rnn.get_num_threads(), schedule=rnn.backend.current().schedule)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            worker.answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))
    main(sys.argv[1])
