"""Figures as CSV, for programs, and as text, for people."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from rnn._files import write_atomically

from .runner import IMPLEMENTATIONS, REFERENCE, Results, Row

NOISY = "too noisy to be trusted: best and third best time differ by more than 3%, for this one or the reference"


def write_steps(path: Path, results: Results, card: dict[str, str]) -> None:
    """Every timed pass; the machine card and what is missing stand above it in lines that begin with #."""
    names = [name.rstrip("_") for name in Row._fields]
    _write(path, results, card, names, results.rows)


def write_training(path: Path, results: Results, card: dict[str, str]) -> None:
    """Every epoch of every training run."""
    rows = (
        (curve.case, curve.implementation, curve.threads, epoch, seconds, loss, math.sqrt(loss))
        for curve in results.curves
        for epoch, (seconds, loss) in enumerate(zip(curve.seconds, curve.loss, strict=True), 1)
    )
    names = ["case", "implementation", "threads", "epoch", "seconds", "train_loss", "train_relative_rmse"]
    _write(path, results, card, names, rows)


def _write(
    path: Path, results: Results, card: dict[str, str], names: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    buffer = io.StringIO()
    for name, value in card.items():
        buffer.write(f"# {name}: {value}\n")
    for name, reason in results.absent.items():
        buffer.write(f"# NOT MEASURED: {name}: {reason}\n")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
    write_atomically(path, buffer.getvalue().encode())


def steps_text(results: Results) -> str:
    """Milliseconds of a training step, and how many times faster than the reference."""
    others = [name for name in IMPLEMENTATIONS if name != REFERENCE]
    head = ["training step (forward + BPTT)", "T", "N", "I", "H", "threads", f"{REFERENCE} ms"]
    for name in others:
        head += [f"{name} ms", f"{name} / {REFERENCE}"]
    lines = [head]
    rows = {(row.case, row.threads, row.implementation): row for row in results.rows if row.pass_ == "train"}
    for reference in rows.values():
        if reference.implementation != REFERENCE:
            continue
        sizes = (reference.T, reference.N, reference.I, reference.H, reference.threads)
        line = [reference.case, *map(str, sizes), _milliseconds(reference)]
        for name in others:
            row = rows.get((reference.case, reference.threads, name))
            line += ["NOT MEASURED", ""] if row is None else [_milliseconds(row), _ratio(row, reference)]
        lines.append(line)
    unstable = any(not row.stable for row in rows.values())
    note = f"\n~ {NOISY}" if unstable else ""
    return _aligned(lines) + note


def training_text(results: Results) -> str:
    """Seconds an epoch, and the error on what was held out."""
    lines = [
        ["training", "backend", "threads", "epochs", "s an epoch", "s in all", "held-out error", "linear", "faster"]
    ]
    reference = {curve.case: sum(curve.seconds) for curve in results.curves if curve.implementation == REFERENCE}
    for curve in results.curves:
        total = sum(curve.seconds)
        lines.append(
            [
                curve.case,
                curve.implementation,
                str(curve.threads),
                str(len(curve.loss)),
                f"{total / len(curve.seconds):.3f}",
                f"{total:.1f}",
                "not judged" if curve.error is None else f"{curve.error:.3f}",
                "" if curve.linear is None else f"{curve.linear:.3f}",
                f"{reference[curve.case] / total:.2f} x" if curve.case in reference else "",
            ]
        )
    note = (
        "held-out error: relative RMSE, RMSE over the RMS of the target, so always answering 0 has 1;\n"
        "linear: that of the best linear predictor of the current input alone (one number alone has none)"
    )
    return f"{_aligned(lines)}\n{note}"


def _ratio(row: Row, reference: Row) -> str:
    return f"{'' if row.stable and reference.stable else '~'}{row.ratio:.2f} x as fast"


def _milliseconds(row: Row) -> str:
    return f"{'' if row.stable else '~'}{1000 * row.seconds_min:.3g}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        text.append("  ".join([first.ljust(widths[0]), *cells]))
    text.insert(1, "-" * len(text[0]))
    return "\n".join(line.rstrip() for line in text)
