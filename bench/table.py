"""Figures as text: tables for people, a line of JSON a figure for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median

from .implementations import OURS, REFERENCE
from .results import Curve, FirstStep, Memory, Row

NOISY = "~ too noisy to be trusted: best and third best time differ by more than 3%, or there were fewer than three"

Table = list[list[str]]
"""The head, then the lines; the first column is text, the others are figures."""


def ratios(rows: Sequence[Row]) -> dict[Row, float]:
    """The fastest other implementation's seconds over a row's own: above 1 is ahead of all others."""
    best = {}
    for row in rows:
        others = [other.seconds_min for other in rows if _key(other) == _key(row) and other is not row]
        best[row] = min(others) / row.seconds_min if others else math.nan
    return best


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def json_lines(rows: Sequence[Row]) -> str:
    """One line a problem, pass, number of threads and implementation."""
    best = ratios(rows)
    return "\n".join(
        json.dumps(
            {
                "problem": row.problem,
                "pass": row.pass_,
                "threads": row.threads,
                "implementation": row.implementation,
                "seconds_min": row.seconds_min,
                "seconds_median": row.seconds_median,
                "gflops": row.gflops,
                "share_of_peak": row.share_of_peak,
                "ratio_to_best_peer": None if math.isnan(best[row]) else best[row],
            }
        )
        for row in rows
    )


def times(rows: Sequence[Row], names: Sequence[str], absent: Mapping[str, str]) -> Table:
    """Milliseconds of each implementation, our share of peak, and the ratio to the best peer."""
    names = [name for name in names if any(row.implementation == name for row in rows) or name in absent]
    peers = OURS in names and len(names) > 1
    table = [["problem", "pass", "threads", *(f"{name} ms" for name in names), f"{OURS} % of peak"]]
    if peers:
        table[0].append("best peer / ours")
    best = ratios(rows)
    found: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in rows:
        found.setdefault(_key(row), {})[row.implementation] = row
    for (problem, which, threads), here in found.items():
        line = [problem, which, str(threads)]
        line += [
            milliseconds(here[name]) if name in here else "NOT MEASURED" if name in absent else "" for name in names
        ]
        ours = here.get(OURS)
        line.append(f"{100 * ours.share_of_peak:.0f}" if ours else "")
        if peers:
            line.append(f"{best[ours]:.2f}" if ours and not math.isnan(best[ours]) else "")
        table.append(line)
    if peers:
        for which, threads in dict.fromkeys((which, threads) for _, which, threads in found):
            values = [
                best[row]
                for row in rows
                if (row.implementation, row.pass_, row.threads) == (OURS, which, threads) and not math.isnan(best[row])
            ]
            if len(values) > 1:
                blank = [""] * (len(names) + 1)
                table.append(["geometric mean", which, str(threads), *blank, f"{geometric_mean(values):.2f}"])
    return table


def training(curves: Sequence[Curve]) -> Table:
    """Seconds an epoch, and the error on what was held out."""
    table = [
        [
            "training",
            "implementation",
            "threads",
            "epochs",
            "s an epoch",
            "held-out error",
            "linear",
            f"{REFERENCE} / it",
        ]
    ]
    reference = {c.case: median(c.seconds) for c in curves if c.implementation == REFERENCE}
    for c in curves:
        epoch = median(c.seconds)  # the first one may include compiling
        table.append(
            [
                c.case,
                c.implementation,
                str(c.threads),
                str(len(c.loss)),
                f"{epoch:.3f}",
                "cut short" if c.error is None else f"{c.error:.3f}",
                "" if c.linear is None else f"{c.linear:.3f}",
                f"{reference[c.case] / epoch:.2f}" if c.case in reference else "",
            ]
        )
    return table


TRAINING_NOTE = (
    "held-out error: relative RMSE, RMSE over the RMS of the target, so always answering 0 has 1;\n"
    "linear: that of the best linear predictor of the current input alone (one number alone has none)"
)


def memory(records: Sequence[Memory]) -> Table:
    """MiB that training steps add at most, a line a length."""
    names = list(dict.fromkeys(record.implementation for record in records))
    found = {(record.problem, record.implementation): record.mebibytes for record in records}
    table = [["problem", *(f"{name} MiB" for name in names)]]
    for problem in dict.fromkeys(record.problem for record in records):
        table.append([problem, *(f"{found[problem, name]:.1f}" if (problem, name) in found else "" for name in names)])
    return table


def first_steps(records: Sequence[FirstStep]) -> Table:
    """Seconds from a new process to its first training step."""
    return [["first step", "cache", "seconds"], *([r.implementation, r.cache, f"{r.seconds:.2f}"] for r in records)]


def milliseconds(row: Row) -> str:
    return f"{'' if row.stable else '~'}{1000 * row.seconds_min:.3g}"


def aligned(table: Table) -> str:
    """For the terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *others in table:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def markdown(table: Table) -> str:
    head, *lines = table
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def html(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head, *lines = table
    body = "".join(line(cells, "td") for cells in lines)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"


def _key(row: Row) -> tuple[str, str, int]:
    return row.problem, row.pass_, row.threads
