"""What more cores bring."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..implementations import OURS, REFERENCE
from ..measures import SIDE_BY_SIDE
from ..runner import Session
from .style import GRID, STYLES, label


def draw(session: Session) -> Figure:
    rows = [r for r in session.rows if r.benchmark == "threads"]
    cases = list(dict.fromkeys(r.problem for r in rows))
    figure = Figure(figsize=(14, 4.8), layout="constrained")
    most = len(session.processors)
    for axes, case in zip(figure.subplots(1, len(cases), sharey=True), cases, strict=True):
        here = [r for r in rows if r.problem == case]
        one = next(r for r in here if r.implementation == OURS and r.threads == 1)
        axes.plot([1, most], [1, most], color="0.75", linewidth=5, label="ideal")
        for name in (OURS, REFERENCE):
            points = [(r.threads, one.seconds_min / r.seconds_min) for r in here if r.implementation == name]
            axes.plot(*zip(*points, strict=True), label=label(name), **STYLES[name])
        for r in here:
            if r.implementation == SIDE_BY_SIDE:
                text = f"halide: {most} processes of 1 thread side by side"
                axes.plot(most, one.seconds_min / r.seconds_min, "*", color="black", markersize=14, label=text)
        axes.set(title=f"{case}\nT={one.T} N={one.N} I={one.I} H={one.H}", xlabel="threads", xlim=(0.8, most + 0.2))
        axes.set_xticks(sorted({r.threads for r in here}))
        axes.grid(**GRID)
    axes = figure.axes[0]
    axes.set_ylim(bottom=0)  # of all
    axes.set_ylabel("training steps a second,\nas multiples of ours on 1 thread")
    axes.legend(loc="lower right", fontsize=8)
    figure.suptitle("Strong scaling of a training step")
    return figure
