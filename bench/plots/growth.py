"""How the cost grows: with T, N and H, and with T in the tutorial's BPTT."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..implementations import OURS, REFERENCE
from ..measures import GROWTH, TUTORIAL, TUTORIALS
from ..runner import Session
from .style import GRID, STYLES, label


def draw(session: Session) -> Figure:
    figure = Figure(figsize=(13, 9), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    sizes = {p.name: p.T for p in TUTORIAL}
    curves(panels[0], session, sizes, (*TUTORIALS, REFERENCE, OURS))
    one = TUTORIAL[0]
    panels[0].set_title(f"BPTT from each step anew, against one sweep (N={one.N} I={one.I} H={one.H})")
    panels[0].set_xlabel("T, time steps")
    words = ("time steps", "lanes", "hidden units")
    for axes, (letter, grown), what in zip(panels[1:], GROWTH.items(), words, strict=True):
        curves(axes, session, {p.name: getattr(p, letter) for p in grown}, (REFERENCE, OURS))
        p = grown[0]
        others = " ".join(f"{other}={getattr(p, other)}" for other in "TNIH" if other != letter)
        axes.set_title(f"against {letter} ({others})")
        axes.set_xlabel(f"{letter}, {what}")
    figure.suptitle("Growth of a training step's cost, 1 thread; slopes fitted to the upper half of each curve")
    return figure


def curves(axes: Axes, session: Session, sizes: dict[str, int], names: tuple[str, ...]) -> None:
    """Seconds against size, on log axes, with the exponent of each."""
    for name in names:
        rows = [r for r in session.rows if (r.benchmark, r.implementation) == ("growth", name)]
        found = [(sizes[r.problem], r.seconds_min) for r in rows if r.problem in sizes]
        if len(found) < 2:
            continue
        x, y = np.array(sorted(found)).T
        upper = slice(len(x) // 2 if len(x) > 3 else 0, None)
        slope = float(np.polyfit(np.log(x[upper]), np.log(y[upper]), 1)[0])
        axes.plot(x, y, label=f"{label(name)}: slope {slope:.2f}", **STYLES[name])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("seconds a training step")
    axes.grid(**GRID)
    axes.legend()
