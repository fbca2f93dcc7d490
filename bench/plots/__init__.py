"""The pictures, a module each: `draw(session)` gives a figure, legible in black and white, with one idea."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from rnn.tasks.pictures import WIDTH, draw_panels, save_figure

from ..runner import Session
from . import first_step, growth, ladder, memory, peers, roofline, speedup, tasks, threads
from .style import footer

ENDS = (".png", ".svg")

DRAW: dict[str, Callable[[Session], Figure]] = {
    "speedup": speedup.draw,
    "peers": peers.draw,
    "tasks": tasks.draw,
    "ladder": ladder.draw,
    "threads": threads.draw,
    "roofline": roofline.draw,
    "growth": growth.draw,
    "memory": memory.draw,
    "first-step": first_step.draw,
}
"""In the order of the report."""


def draw(name: str, session: Session) -> list[Path]:
    """Write one plot; with `tasks` also the pictures of what was learned. The files."""
    figure = DRAW[name](session)
    figure.supxlabel(footer(session, figure.get_figwidth()), fontsize=7, x=0.01, ha="left")
    paths = [session.out / f"{name}{end}" for end in ENDS]
    for path in paths:
        save_figure(figure, path)
    if name == "tasks":
        for case, (task, outputs) in session.learned.items():
            for end in ENDS:
                path = session.out / f"learned-{case.replace(' ', '-')}{end}"
                title = f"{case}: held out, never trained on."
                draw_panels(path, task.name, task.lag, task.test, outputs, title=title, footer=footer(session, WIDTH))
                paths.append(path)
    return paths
