"""The extension module, for what goes on without it: other backends work in a source tree that was never built."""

from __future__ import annotations

from importlib import import_module
from typing import Any

extension: Any
"""None where there is none."""
try:
    # `from . import` would turn the module's absence into the same ImportError as any failure inside it
    extension = import_module("._kernels", __package__)
except ModuleNotFoundError:
    extension = None
