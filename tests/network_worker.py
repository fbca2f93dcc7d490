"""A network of `baselines` in a Python that has nothing else of ours: `python -I network_worker.py FOLDER MODULE`.

FOLDER is that of `baselines`; the near end is `RemoteNetwork` of test_theano.py.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

folder, module = sys.argv[1:3]
package = types.ModuleType("baselines")
package.__path__ = [folder]
sys.modules["baselines"] = package

rival = importlib.import_module(f"baselines.{module}")
Objective = importlib.import_module("baselines.network").Objective


class Worker:
    def versions(self, arrays: Any) -> Any:
        return rival.versions()

    def set_threads(self, arrays: Any, n: int) -> Any:
        rival.set_threads(n)

    def make(self, arrays: Any, cell: str, objective: list[Any]) -> Any:
        self.network = rival.Network(cell, arrays, Objective(*objective))

    def load(self, arrays: Any) -> Any:
        self.network.load(arrays)

    def batch(self, arrays: Any) -> Any:
        self.kept = self.network.batch(arrays["x"].copy(), arrays["target"].copy())

    def forward(self, arrays: Any) -> Any:
        return {}, {"output": self.network.forward(self.kept)}

    def train(self, arrays: Any, rate: float) -> Any:
        return {"loss": self.network.train(self.kept, rate)}

    def gradients(self, arrays: Any) -> Any:
        return {}, self.network.gradients(self.kept)

    def weights(self, arrays: Any) -> Any:
        return {}, self.network.weights()


importlib.import_module("baselines.remote").serve(Worker())
