"""How every plot looks: one line and one marker an implementation, told apart without colour too."""

from __future__ import annotations

import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter

from ..implementations import OURS, REMAT
from ..machine import text
from ..runner import Session

# Okabe and Ito's colours, of different brightness, ours the strongest.
STYLES: dict[str, dict[str, Any]] = {
    OURS: {"color": "black", "marker": "o", "linestyle": "-", "linewidth": 2.2},
    REMAT: {"color": "black", "marker": "o", "linestyle": ":", "markerfacecolor": "white"},
    "numpy": {"color": "#0072B2", "marker": "s", "linestyle": "--"},
    "theano": {"color": "#D55E00", "marker": "^", "linestyle": "-."},
    "pytensor": {"color": "#E69F00", "marker": "v", "linestyle": (0, (3, 1, 1, 1, 1, 1))},
    "pytorch": {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
    "jax": {"color": "#009E73", "marker": "P", "linestyle": (0, (6, 2))},
    "tutorial": {"color": "#56B4E9", "marker": "X", "linestyle": ":"},
    "tutorial, truncated": {"color": "0.5", "marker": "d", "linestyle": ":"},
}
LABELS = {
    OURS: "halide (ours)",
    REMAT: "halide (ours), remat=True",
    "numpy": "NumPy",
    "theano": "Theano",
    "pytensor": "PyTensor",
    "pytorch": "PyTorch",
    "jax": "JAX",
}
GRID: dict[str, Any] = {"color": "0.9", "linewidth": 0.8, "which": "both"}
FOOTER = 18  # characters of a footer an inch


def label(name: str) -> str:
    return LABELS.get(name, name)


def count(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def plain_log(*axes: Axis) -> None:
    """Plain numbers at 1, 2, 5, 10... of a logarithmic axis."""
    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def footer(session: Session, inches: float) -> str:
    """The machine card, under whatever could not be measured, for a picture so many inches wide."""
    missing = [f"NOT MEASURED: {label(name)}: {reason}" for name, reason in session.absent.items()]
    missing += [f"WRONG, NOT TIMED: {failure}" for failure in session.failures]
    entries = [*missing, *text(session.card).splitlines()]
    lines = [line for entry in entries for line in textwrap.wrap(entry, int(FOOTER * inches))]
    return "\n".join(lines)


def say_missing(axes: Axes, session: Session) -> None:
    """In large letters where the curves would be."""
    names = [label(name) for name in session.rivals if name in session.absent]
    if names:
        axes.text(
            0.5, 0.98, f"NOT MEASURED: {', '.join(names)} (see below)", transform=axes.transAxes,
            ha="center", va="top", fontsize=9, fontweight="bold", color="#B00000",
        )  # fmt: skip
