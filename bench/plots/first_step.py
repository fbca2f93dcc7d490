"""How long one waits for the first training step."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..implementations import OURS
from ..measures import FIRST
from ..runner import Session
from .style import GRID, label, plain_log, say_missing


def draw(session: Session) -> Figure:
    steps = session.first_steps
    names = [label(s.implementation) + (f"\n{s.cache} cache" if s.cache else "") for s in steps]
    figure = Figure(figsize=(10, 1.8 + 0.6 * len(steps)), layout="constrained")
    axes = figure.subplots()
    colours = ["0.25" if s.implementation == OURS else "0.75" for s in steps]
    bars = axes.barh(range(len(steps)), [s.seconds for s in steps], color=colours, edgecolor="black")
    axes.bar_label(bars, [f"{s.seconds:.2f} s" for s in steps], padding=4)
    axes.set_yticks(range(len(steps)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    plain_log(axes.xaxis)
    axes.set_xlim(right=2.5 * max(s.seconds for s in steps))
    axes.set_xlabel("seconds from a new process to the end of its first training step: importing, compiling, running")
    axes.set_title(f"First step: {FIRST.name} (T={FIRST.T} N={FIRST.N} I={FIRST.I} H={FIRST.H} O={FIRST.O})")
    axes.set_axisbelow(True)
    axes.grid(axis="x", **GRID)
    say_missing(axes, session)
    return figure
