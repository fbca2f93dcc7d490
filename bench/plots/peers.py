"""Every problem of the grid, every implementation: times as multiples of ours."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..implementations import OURS
from ..runner import PASSES, Session
from ..table import geometric_mean, ratios
from .style import GRID, STYLES, count, label, say_missing


def draw(session: Session) -> Figure:
    rows = [r for r in session.rows if r.benchmark == "peers"]
    found = {(r.problem, r.pass_, r.threads, r.implementation): r for r in rows}
    cases = list(dict.fromkeys(r.problem for r in rows))
    best = ratios(rows)
    panels = [(which, threads) for which in PASSES for threads in session.counts]
    figure = Figure(figsize=(5 + 3.6 * len(panels), 2 + 0.42 * len(cases)), layout="constrained")
    columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (which, threads) in zip(columns, panels, strict=True):
        for name in session.rivals:
            points = []
            for place, case in enumerate(cases):
                ours, other = (found.get((case, which, threads, who)) for who in (OURS, name))
                if ours and other:
                    points.append((other.seconds_min / ours.seconds_min, place))
            if points:
                style = STYLES[name] | {"linestyle": "-" if name == OURS else ""}
                axes.plot(*zip(*points, strict=True), label=label(name), markersize=7, **style)
        ours_here = [r for r in rows if (r.implementation, r.pass_, r.threads) == (OURS, which, threads)]
        mean = geometric_mean([best[r] for r in ours_here])
        what = "forward pass" if which == "forward" else "training step"
        axes.set_title(f"{what}, {count(threads)}\ngeometric mean of best peer's time / ours: {mean:.2f}", fontsize=10)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("time, as multiples of ours (right of 1: slower)")
        axes.grid(**GRID)
        say_missing(axes, session)
    first = figure.axes[0]
    first.set_yticks(range(len(cases)), cases)
    first.invert_yaxis()
    figure.axes[-1].legend(loc="lower right")
    figure.suptitle("Against the peers: layers without readout, each library with as many threads, in turns")
    return figure
