"""Every named problem against what the machine can do."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..implementations import OURS
from ..results import Row
from ..runner import Session
from .style import GRID

ITEM = 4  # bytes of a float32
NAMED = 14


def draw(session: Session) -> Figure:
    ours = [r for r in session.rows if (r.implementation, r.threads) == (OURS, 1)]
    rows = {(r.problem, r.pass_): r for r in ours if r.benchmark in ("roofline", "peers")}
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots()
    peak, bandwidth = session.limits[1]
    points: dict[str, list[tuple[float, float]]] = {"forward": [], "backward": []}
    for problem in dict.fromkeys(name for name, _ in rows):
        ahead, train = rows[problem, "forward"], rows.get((problem, "train"))
        points["forward"].append((ahead.gflop * 1e9 / forward_bytes(ahead), ahead.gflops))
        if train is None:  # nobody trains at its sizes
            continue
        back = max(train.seconds_min - ahead.seconds_min, 1e-9)
        points["backward"].append((2 * ahead.gflop * 1e9 / backward_bytes(ahead), 2 * ahead.gflop / back))
    everything = np.array(points["forward"] + points["backward"])
    x = np.geomspace(everything[:, 0].min() / 2, everything[:, 0].max() * 2, 200)
    axes.plot(x, np.minimum(peak, bandwidth * x), color="black", linewidth=2)
    axes.text(x[-1], peak * 1.06, f"multiply-adds: {peak:.0f} GFLOP/s", ha="right")
    ridge = peak / bandwidth
    axes.text(ridge / 2.2, peak / 2, f"memory: {bandwidth:.1f} GB/s", ha="right", va="bottom")
    axes.plot(*np.array(points["forward"]).T, "o", color="0.75", markeredgecolor="black", label="forward pass")
    axes.plot(
        *np.array(points["backward"]).T, "x", color="black", label="backward pass (training step less forward pass)"
    )
    by_work = sorted((r for (_, which), r in rows.items() if which == "forward"), key=lambda r: -r.gflop)[:NAMED]
    for r in by_work:
        place = (r.gflop * 1e9 / forward_bytes(r), r.gflops)
        axes.annotate(
            f"{r.cell.removeprefix('rnn_')} H{r.H} N{r.N}",
            place,
            (0, -11),
            textcoords="offset points",
            fontsize=7,
            ha="center",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(
        xlabel="floating-point operations a byte (each array of the pass counted once, as if caches were endless)",
        ylabel="GFLOP/s",
    )
    axes.grid(**GRID)
    axes.legend(loc="lower right")
    axes.set_title(
        "Roofline: every named problem, 1 thread (small ones lie low: they end before the machine gets going)"
    )
    return figure


def forward_bytes(r: Row) -> float:
    """x and the weights are read, states and output written."""
    return ITEM * (r.T * r.N * (r.I + r.H + r.O) + weights(r))


def backward_bytes(r: Row) -> float:
    """x, states, the gradient of the output and the weights are read, the gradients of x and the weights written."""
    return ITEM * (r.T * r.N * (2 * r.I + r.H + (r.O or r.H)) + 2 * weights(r))


def weights(r: Row) -> float:
    """How many, from a forward pass, which uses each in every step of every lane."""
    return r.gflop * 1e9 / (2 * r.T * r.N)
