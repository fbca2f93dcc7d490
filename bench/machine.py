"""The machine card: what a figure was measured on, for every table and plot."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def card(threads: list[int]) -> dict[str, str]:
    """Name -> value, in the order to be shown."""
    from rnn import _threads

    try:
        from rnn import _kernels

        instructions = _kernels.instruction_set()
    except ImportError as reason:
        instructions = f"no kernels: {reason}"
    return {
        "cpu": _cpu(),
        "cores": f"{_threads.default_threads()} of {os.cpu_count()} cores usable",
        "instruction set of the kernels": instructions,
        "threads": " and ".join(map(str, threads)),
        "python": platform.python_version(),
        "halide-rnn": _version("halide-rnn"),
        "numpy": f"{np.__version__} with {_blas()}",
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def text(card: dict[str, str]) -> str:
    """Two lines, for the foot of a plot."""
    return (
        f"{card['cpu']}, {card['cores']}; kernels: {card['instruction set of the kernels']}; "
        f"threads: {card['threads']}\n"
        f"Python {card['python']}; halide-rnn {card['halide-rnn']}, commit {card['commit']}; "
        f"NumPy {card['numpy']}; {card['date']}"
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _blas() -> str:
    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    return f"{blas.get('name', 'an unknown BLAS')} {blas.get('version', '')}".strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    try:
        head, changes = (
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + (" and changes" if changes else "")
