"""The modules of `halide_gen`, for Python that is not a generator.

Halide runs a generator as a script, so that folder is flat and its modules import each other by bare names. Those names
are the folder's only while it is being imported here.
"""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent / "halide_gen"

_loaded: dict[str, ModuleType] = {}
_lock = threading.RLock()


def module(name: str) -> ModuleType:
    """One of them. Raises ImportError if it needs Halide and there is none."""
    with _lock:
        if name not in _loaded:
            ours = {path.stem for path in FOLDER.glob("*.py")}
            hidden = {other: sys.modules.pop(other) for other in ours if other in sys.modules}
            sys.modules.update(_loaded)
            sys.path.insert(0, str(FOLDER))
            try:
                importlib.import_module(name)
                _loaded.update({other: sys.modules[other] for other in ours if other in sys.modules})
            finally:
                sys.path.remove(str(FOLDER))
                for other in ours:
                    sys.modules.pop(other, None)
                sys.modules.update(hidden)
        return _loaded[name]
