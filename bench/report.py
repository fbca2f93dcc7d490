"""One page with everything, `report.html`, which needs no other file, and the same in Markdown beside the pictures."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from rnn._files import write_atomically

from . import table
from .implementations import OURS
from .runner import Session

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
img { max-width: 100%; height: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.8rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #111; }
.tables { overflow-x: auto; } .missing { color: #b00000; font-weight: bold; }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1rem; font-size: 0.85rem; }
dt { font-weight: bold; } dd { margin: 0; } nav a { margin-right: 1rem; }
"""

WORDS = {
    "speedup": "How many times faster a training step is than in the other libraries, as both tasks get wider.",
    "peers": "Every problem of the grid, every library, both passes. Rows in which we are behind are kept.",
    "tasks": "Both tasks, learned from the same weights with the same batches and the same optimizer.",
    "ladder": "What each schedule brings, compiled ahead of time and at the first call.",
    "threads": "What further cores bring.",
    "roofline": "How far every named problem is from what this machine can do.",
    "growth": "How the cost grows with the size of the problem; one sweep back against the tutorial's many.",
    "memory": "What a training step takes of the memory.",
    "first-step": "How long one waits for the first training step in a new process.",
}


class Section(NamedTuple):
    name: str
    pictures: Sequence[Path]
    """PNG files."""
    tables: Sequence[tuple[table.Table, str]]
    """Each with a note to stand below it."""


def tables(name: str, session: Session) -> list[tuple[table.Table, str]]:
    """What a benchmark measured."""
    if name == "tasks":
        return [(table.training(session.curves), table.TRAINING_NOTE)]
    if name == "memory":
        return [(table.memory(session.memory), "")]
    if name == "first-step":
        return [(table.first_steps(session.first_steps), "")]
    rows = [row for row in session.rows if row.benchmark == name]
    names = list(dict.fromkeys([*session.rivals, *(row.implementation for row in rows)]))
    return [(table.times(rows, names, session.absent), table.NOISY)] if rows else []


def missing(session: Session) -> list[str]:
    """What has no figures, and why."""
    lines = [f"NOT MEASURED: {name}: {reason}" for name, reason in session.absent.items()]
    return lines + [f"WRONG, NOT TIMED: {failure}" for failure in session.failures]


def summary(session: Session) -> list[str]:
    """The sentences that a reader in a hurry needs."""
    lines = []
    for name in ("speedup", "peers"):
        rows = [row for row in session.rows if row.benchmark == name]
        best = [ratio for row, ratio in table.ratios(rows).items() if row.implementation == OURS]
        best = [ratio for ratio in best if not math.isnan(ratio)]
        if best:
            behind = sum(ratio < 1 for ratio in best)
            lines.append(
                f"{name}: the best other library's time over ours is {table.geometric_mean(best):.2f} "
                f"in the geometric mean over {len(best)} figures; {behind} of them are below 1."
            )
            if name == "peers" and not session.whole_grid:
                lines[-1] += " They are a sample of the grid; `python3 bench peers` measures all of it."
    return lines


def write(out: Path, session: Session, sections: Sequence[Section]) -> list[Path]:
    """Write both reports; the files."""
    page = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>halide-rnn: the benchmark</title><style>{STYLE}</style>",
        "<h1>halide-rnn: the benchmark</h1>",
        "<nav>" + "".join(f"<a href='#{section.name}'>{section.name}</a>" for section in sections) + "</nav>",
        *(f"<p class=missing>{escape(line)}</p>" for line in missing(session)),
        *(f"<p>{escape(line)}</p>" for line in summary(session)),
        "<h2>The machine</h2><dl>",
        *(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in session.card.items()),
        "</dl>",
    ]
    text = ["# halide-rnn: the benchmark", "", *missing(session), *summary(session), "", "## The machine", ""]
    text += [f"- **{name}**: {value}" for name, value in session.card.items()]
    for section in sections:
        page.append(f"<h2 id='{section.name}'>{section.name}</h2><p>{WORDS[section.name]}</p>")
        text += ["", f"## {section.name}", "", WORDS[section.name], ""]
        for picture in section.pictures:
            data = base64.b64encode(picture.read_bytes()).decode()
            page.append(f"<img alt='{picture.stem}' src='data:image/png;base64,{data}'>")
            text.append(f"![{picture.stem}]({picture.name})")
        for one, note in section.tables:
            figures = f"<div class=tables>{table.html(one)}</div><p>{escape(note)}</p>"
            page.append(f"<details><summary>the figures</summary>{figures}</details>")
            text += ["", table.markdown(one), "", note]
    paths = [out / "report.html", out / "report.md"]
    for path, lines in zip(paths, (page, text), strict=True):
        write_atomically(path, ("\n".join(lines) + "\n").encode())
    return paths
