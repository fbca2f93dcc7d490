"""From the naive schedule to the tuned one: the share of peak that each reaches, and what the JIT takes to compile."""

from __future__ import annotations

from matplotlib.figure import Figure

from rnn._backends.halide import SCHEDULES
from rnn._backends.halide_jit import AUTOMATIC

from ..implementations import OURS
from ..runner import Session
from .style import GRID, count


def draw(session: Session) -> Figure:
    rows = {(r.implementation, r.pass_): r for r in session.rows if r.benchmark == "ladder"}
    one = next(iter(rows.values()))
    figure = Figure(figsize=(13, 6), layout="constrained")
    speed, compiling = figure.subplots(1, 2)
    bars = [
        (OURS, "forward", "0.8", "", "ahead of time, forward"),
        (OURS, "train", "0.35", "", "ahead of time, training step"),
        (f"{OURS}-jit", "forward", "0.8", "////", "JIT, forward"),
        (f"{OURS}-jit", "train", "0.35", "////", "JIT, training step"),
    ]
    for index, (kind, which, colour, hatch, title) in enumerate(bars):
        names = SCHEDULES + AUTOMATIC * (kind != OURS)
        places = [place + 0.2 * (index - 1.5) for place in range(len(names))]
        shares = [100 * rows[f"{kind} {name}", which].share_of_peak for name in names]
        drawn = speed.bar(places, shares, 0.19, color=colour, edgecolor="black", hatch=hatch, label=title)
        speed.bar_label(drawn, [f"{share:.2g}" for share in shares], fontsize=7, padding=2)
    rungs = SCHEDULES + AUTOMATIC
    labels = [*SCHEDULES, *(f"{name}\n(autoscheduler)" for name in AUTOMATIC)]
    speed.set_xticks(range(len(rungs)), labels)
    peak = session.limits[one.threads].gflops
    speed.set(ylim=(0, 100), ylabel=f"% of the measured peak, {peak:.0f} GFLOP/s", title="Speed")
    speed.legend(loc="upper left")
    speed.set_axisbelow(True)
    speed.grid(axis="y", **GRID)

    jit = [rows[f"{OURS}-jit {schedule}", "train"] for schedule in rungs]
    first = [rows[f"{OURS}-jit {schedule}", "first train"] for schedule in rungs]
    waits = [f.seconds_min - r.seconds_min for f, r in zip(first, jit, strict=True)]
    for offset, values, colour, title in (
        (-0.2, waits, "0.8", "compiling, once a process (ahead of time: none)"),
        (0.2, [r.seconds_min for r in jit], "0.35", "running, each step"),
    ):
        places = [place + offset for place in range(len(rungs))]
        drawn = compiling.bar(places, values, 0.38, color=colour, edgecolor="black", label=title)
        texts = [f"{v:.2g} s" if v > 0.1 else f"{1000 * v:.2g} ms" for v in values]
        compiling.bar_label(drawn, texts, fontsize=8, padding=2)
    compiling.set_xticks(range(len(rungs)), labels)
    compiling.set_yscale("log")
    compiling.set(ylabel="seconds", title="JIT: a training step, and compiling it")
    compiling.set_ylim(top=compiling.get_ylim()[1] * 4)
    compiling.legend(loc="upper right")
    compiling.set_axisbelow(True)
    compiling.grid(axis="y", **GRID)
    shape = f"T={one.T} N={one.N} I={one.I} H={one.H} O={one.O}"
    figure.suptitle(f"The ladder of schedules: {one.problem} ({shape}), {count(one.threads)}")
    return figure
