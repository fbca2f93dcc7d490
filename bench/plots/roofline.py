"""Every named problem against what the machine can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import problems
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ..implementations import OURS
from ..results import Row
from ..runner import Session
from .style import GRID, plain_log

ITEM = 4  # bytes of a float32
CLOSE = 8  # operations a byte from which on problems are shown from near


class Point(NamedTuple):
    name: str
    intensity: float
    gflops: float


def draw(session: Session) -> Figure:
    ours = [r for r in session.rows if (r.implementation, r.threads) == (OURS, 1)]
    rows = {(r.problem, r.pass_): r for r in ours if r.benchmark in ("roofline", "peers")}
    figure = Figure(figsize=(14, 7), layout="constrained")
    whole, near = figure.subplots(1, 2, width_ratios=(3, 4))
    peak, bandwidth = session.limits[1]
    ahead: list[Point] = []
    back: list[Point] = []
    for problem in sorted({name for name, _ in rows}, key=lambda name: -rows[name, "forward"].gflop):
        forward, train = rows[problem, "forward"], rows.get((problem, "train"))
        name = f"{forward.cell.removeprefix('rnn_')} H{forward.H} N{forward.N}"
        ahead.append(Point(name, forward.gflop * 1e9 / forward_bytes(forward), forward.gflops))
        if train is None:  # nobody trains at its sizes
            continue
        seconds = max(train.seconds_min - forward.seconds_min, 1e-9)
        back.append(Point(name, 2 * forward.gflop * 1e9 / backward_bytes(forward), 2 * forward.gflop / seconds))
    intensities = [point.intensity for point in ahead + back]
    x = np.geomspace(min(intensities) / 2, max(intensities) * 2, 200)
    for axes in whole, near:
        axes.plot(x, np.minimum(peak, bandwidth * x), color="black", linewidth=2)
        for points, marker, color, label in (
            (ahead, "o", "0.75", "forward pass"),
            (back, "x", "black", "backward pass (a training step less that)"),
        ):
            places = [point.intensity for point in points], [point.gflops for point in points]
            axes.plot(*places, marker, color=color, markeredgecolor="black", label=label)
        axes.set_xscale("log")
        axes.set(xlabel="floating-point operations a byte", ylabel="GFLOP/s")
        axes.grid(**GRID)
    whole.set_yscale("log")
    whole.set_title("All named problems; small ones end before the machine gets going")
    whole.text(peak / bandwidth / 2.2, peak / 2, f"memory: {bandwidth:.1f} GB/s", ha="right", va="bottom")
    near.set(xlim=(CLOSE, x[-1]), ylim=(0, 1.1 * peak), title=f"From {CLOSE} operations a byte on")
    near.text(x[-1] / 1.1, peak * 1.02, f"multiply-adds: {peak:.0f} GFLOP/s", ha="right")
    near.legend(loc="lower right")
    figure.suptitle("Roofline, 1 thread (bytes: each array of the pass counted once, as if caches were endless)")
    plain_log(near.xaxis)
    name_points(near, ahead, back)
    return figure


def name_points(axes: Axes, points: Sequence[Point], others: Sequence[Point]) -> None:
    """Beside those for whose names there is room between all points, the first ones first."""
    axes.figure.get_figure(root=True).draw_without_rendering()
    centers = axes.transData.transform([(point.intensity, point.gflops) for point in (*points, *others)])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in centers]
    for point in points:
        for offset, align in (((7, -3), "left"), ((-7, -3), "right"), ((0, -13), "center"), ((0, 7), "center")):
            text = axes.annotate(
                point.name, point[1:], offset, textcoords="offset points", fontsize=8, ha=align, annotation_clip=True
            )
            box = text.get_window_extent()
            if axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()


def forward_bytes(r: Row) -> float:
    """x and the weights are read, states and output written."""
    return ITEM * (r.T * r.N * (r.I + r.H + r.O) + weights(r))


def backward_bytes(r: Row) -> float:
    """x, states, the gradient of the output and the weights are read, the gradients of x and the weights written."""
    return ITEM * (r.T * r.N * (2 * r.I + r.H + (r.O or r.H)) + 2 * weights(r))


def weights(r: Row) -> int:
    """How many numbers its weight matrices hold."""
    return r.H * (problems.KINDS[r.cell].gates * (r.I + r.H) + r.O)
