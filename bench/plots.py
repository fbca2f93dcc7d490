"""The plots, PNG and SVG, one idea a picture, legible in black and white, with the machine card at the foot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rnn.tasks.pictures import save_figure

from . import table
from .cases import CASES
from .runner import IMPLEMENTATIONS, REFERENCE, Results

FILLS = [("0.85", ""), ("0.45", ""), ("0.7", "///"), ("0.2", "")]
LINES: dict[str, dict[str, Any]] = {
    "halide": {"color": "0.65", "linewidth": 5.0},
    REFERENCE: {"color": "black", "linestyle": "--"},
}
ENDS = (".png", ".svg")


def speedup(out: Path, results: Results, footer: str) -> list[Path]:
    """Bars: how many times faster a training step is than the reference's, for each task."""
    tasks = list(dict.fromkeys(case.task for case in CASES))
    groups = {task: [case.name for case in CASES if case.task == task] for task in tasks}
    groups["other shapes"] = list(
        dict.fromkeys(row.case for row in results.rows if row.case not in {case.name for case in CASES})
    )
    rows = {(row.case, row.threads, row.implementation): row for row in results.rows if row.pass_ == "train"}
    threads = sorted({row.threads for row in results.rows})
    bars = [(name, n) for name in IMPLEMENTATIONS if name != REFERENCE for n in threads]
    measured = {case for case, _, _ in rows}
    groups = {title: [case for case in cases if case in measured] for title, cases in groups.items()}
    groups = {title: cases for title, cases in groups.items() if cases}

    figure = Figure(figsize=(14, 5.5), layout="constrained")
    axes = figure.subplots(
        1, len(groups) or 1, sharey=True, squeeze=False, width_ratios=[*map(len, groups.values())] or [1]
    )
    highest = max((row.ratio for row in rows.values()), default=1.0)
    for axis, (title, cases) in zip(axes[0], groups.items(), strict=False):
        width = 0.8 / max(1, len(bars))
        for index, (name, n) in enumerate(bars):
            fill, hatch = FILLS[index % len(FILLS)]
            for place, case in enumerate(cases):
                x = place + (index - (len(bars) - 1) / 2) * width
                row = rows.get((case, n, name))
                if row is None:
                    axis.text(x, 1.05, f"{name}: NOT MEASURED", rotation=90, ha="center", va="bottom", fontsize=8)
                    continue
                label = f"{name}, {n} thread{'s' * (n > 1)}" if place == 0 else None
                axis.bar(x, row.ratio, width * 0.92, color=fill, edgecolor="black", hatch=hatch, label=label)
                stable = row.stable and rows[case, n, REFERENCE].stable
                text = f"{'' if stable else '~'}{row.ratio:.1f}"
                axis.text(x, row.ratio + 0.01 * highest, text, ha="center", va="bottom", fontsize=9)
        axis.axhline(1, color="black", linestyle="--", linewidth=1)
        axis.set(title=title, xlim=(-0.6, len(cases) - 0.4), ylim=(0, 1.12 * max(highest, 1)))
        axis.set_xticks(range(len(cases)), [_label(case, rows) for case in cases], fontsize=8)
    axes[0][0].set_ylabel(f"times as fast as {REFERENCE}\n(dashed: {REFERENCE}, as many threads)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        axes[0][0].legend(handles, labels, loc="upper left", fontsize=9)
    figure.suptitle(f"Training step (forward + back-propagation through time): speed-up over {REFERENCE}")
    if any(not row.stable for row in rows.values()):
        footer = f"~ {table.NOISY}\n{footer}"
    return _save(figure, out / "speedup", results, footer)


def _label(case: str, rows: dict[tuple[str, int, str], Any]) -> str:
    row = next(row for (name, _, _), row in rows.items() if name == case)
    name = case.replace(", ", ",\n") if ", " in case else case.replace(" of ", "\nof ")
    return f"{name}\nT={row.T} N={row.N}\nI={row.I} H={row.H}"


def loss(out: Path, results: Results, footer: str) -> list[Path]:
    """Loss curves of all implementations on top of each other: one seed, so one curve, if they compute the same."""
    cases = [case for case in CASES if any(curve.case == case.name for curve in results.curves)]
    columns = 3
    lines = -(-len(cases) // columns) or 1
    figure = Figure(figsize=(14, 3.7 * lines + 0.8), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes[len(cases) :]:
        axis.remove()
    for axis, case in zip(axes, cases, strict=False):
        for curve in results.curves:
            if curve.case == case.name:
                label = f"{curve.implementation}: {np.mean(curve.seconds):.2f} s an epoch"
                if curve.error is not None:
                    label += f", held out {curve.error:.3f}"
                epochs = np.arange(1, len(curve.loss) + 1)
                marker = "o" if len(epochs) < 5 else ""
                axis.plot(epochs, np.sqrt(curve.loss), label=label, marker=marker, **LINES[curve.implementation])
        axis.set(yscale="log", title=case.name, xlabel="epoch", ylabel="relative RMSE in training")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(True, color="0.92")
        axis.legend(fontsize=8)
    figure.suptitle(
        "Loss curves on top of each other: same seed, same data; only rounding differs (always answering 0 has 1)"
    )
    return _save(figure, out / "loss", results, footer)


def _save(figure: Figure, stem: Path, results: Results, footer: str) -> list[Path]:
    for name, reason in results.absent.items():
        footer = f"NOT MEASURED: {name}: {reason}\n{footer}"
    figure.supxlabel(footer, fontsize=7, x=0.01, ha="left")
    paths = [stem.with_suffix(end) for end in ENDS]
    for path in paths:
        save_figure(figure, path)
    return paths


def draw(out: Path, results: Results, footer: str) -> Sequence[Path]:
    return [*speedup(out, results, footer), *loss(out, results, footer)]
