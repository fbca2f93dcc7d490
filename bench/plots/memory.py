"""What a training step takes of the memory, against the length of the sequence."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..implementations import REMAT
from ..measures import MEMORY
from ..runner import Session
from .style import GRID, STYLES, label, say_missing


def draw(session: Session) -> Figure:
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for name in (*session.rivals, REMAT):
        points = [(m.T, m.mebibytes) for m in session.memory if m.implementation == name]
        if points:
            axes.plot(*zip(*points, strict=True), label=label(name), **STYLES[name])
    p = MEMORY[0]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks([p.T for p in MEMORY], [str(p.T) for p in MEMORY])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("T, time steps")
    axes.set_ylabel("MiB at most, without those of the imported library")
    axes.set_title(f"Peak resident memory of training steps, N={p.N} I={p.I} H={p.H} O={p.O}, 1 thread")
    axes.grid(**GRID)
    axes.legend()
    say_missing(axes, session)
    return figure
