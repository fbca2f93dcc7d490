"""Learning both tasks: loss against seconds."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..cases import LEARNED
from ..runner import Session
from .style import GRID, STYLES, count, label, plain_log, say_missing


def draw(session: Session) -> Figure:
    figure = Figure(figsize=(13, 9), layout="constrained")
    for axes, case in zip(figure.subplots(2, 2).ravel(), LEARNED, strict=True):
        for curve in session.curves:
            if curve.case != case.name:
                continue
            what = f"{label(curve.implementation)}: {np.median(curve.seconds):.2g} s an epoch"
            if curve.error is not None:
                what += f"; held out {curve.error:.3f}"
            style = STYLES[curve.implementation] | {"markersize": 4}
            axes.plot(np.cumsum(curve.seconds), np.sqrt(curve.loss), label=what, **style)
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_log(axes.xaxis, axes.yaxis)
        axes.set(title=case.name, xlabel="seconds of training", ylabel="relative RMSE in training")
        axes.grid(**GRID)
        axes.legend(fontsize=8)
        say_missing(axes, session)
    threads = count(session.curves[0].threads) if session.curves else ""
    figure.suptitle(
        f"Training from the same weights, with the same batches and Adam, {threads}\n"
        "(a mark is an epoch; always answering 0 has an error of 1; the slower curves end where they were cut)"
    )
    return figure
