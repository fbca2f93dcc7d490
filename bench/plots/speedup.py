"""How many times faster a training step is, against the width of the problem."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..cases import WIDTHS
from ..implementations import OURS
from ..runner import Session
from .style import GRID, STYLES, count, label, say_missing


def draw(session: Session) -> Figure:
    rows = {(r.problem, r.threads, r.implementation): r for r in session.rows if r.benchmark == "speedup"}
    rivals = [name for name in session.rivals if name != OURS and name not in session.absent]
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    grid = figure.subplots(len(WIDTHS), len(session.counts), sharey=True, sharex=True, squeeze=False)
    for line, (case, widths) in zip(grid, WIDTHS.items(), strict=True):
        for axes, threads in zip(line, session.counts, strict=True):
            curves: dict[str, dict[int, float]] = {name: {} for name in rivals}
            for name, curve in curves.items():
                for width in widths:
                    ours, other = (rows.get((f"{case.name}, {width} wide", threads, who)) for who in (OURS, name))
                    if ours and other:
                        curve[width] = other.seconds_min / ours.seconds_min
            for name, curve in curves.items():
                axes.plot(*zip(*curve.items(), strict=True), label=f"over {label(name)}", markersize=7, **STYLES[name])
                for width, ratio in curve.items():
                    text = f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"
                    lowest = ratio == min(other.get(width, ratio) for other in curves.values())
                    if len(curves) > 2 and not lowest:
                        continue  # the figures of many would lie over each other
                    place = {"xytext": (0, -6 if lowest else 6), "va": "top" if lowest else "bottom"}
                    axes.annotate(text, (width, ratio), textcoords="offset points", fontsize=8, ha="center", **place)
            axes.axhline(1, color="black", linewidth=1)
            axes.margins(y=0.12)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set_xticks(list(widths), [str(width) for width in widths])
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_title(f"{case.name}, {count(threads)}")
            axes.grid(**GRID)
            say_missing(axes, session)
        line[0].set_ylabel("times as fast (1: no faster)")
    for axes in grid[-1]:
        axes.set_xlabel("values a time step")
    grid[-1][0].legend(loc="upper right")
    figure.suptitle("Speed-up of a training step (forward, loss, BPTT, update), each library with as many threads")
    return figure
