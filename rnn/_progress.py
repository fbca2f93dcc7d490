"""What the command says on standard error: lines, and how far training is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from .training import Progress

__all__ = ["log", "progress_shown"]

PLAIN_LINES = 10
"""Progress lines of a whole training run where there is no terminal."""


def log(line: str) -> None:
    print(f"rnn: {line}", file=sys.stderr, flush=True)


Describe = Callable[[Progress], str]
"""How well it goes, in a few words."""


@contextlib.contextmanager
def progress_shown(quiet: bool, epochs: int, describe: Describe) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, a line now and then elsewhere, nothing if quiet."""
    if quiet:
        yield lambda _progress: None
    elif sys.stderr.isatty():
        with bar(epochs, describe) as show:
            yield show
    else:
        yield lambda progress: plain_line(progress, epochs, describe)


def plain_line(progress: Progress, epochs: int, describe: Describe) -> None:
    if progress.finished and (progress.epoch % max(1, epochs // PLAIN_LINES) == 0 or progress.epoch == epochs):
        log(f"epoch {progress.epoch}/{epochs}: {describe(progress)}, {progress.history.seconds[-1]:.3f} s")


@contextlib.contextmanager
def bar(epochs: int, describe: Describe) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        TextColumn("{task.fields[how]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as shown:
        line = shown.add_task("", total=epochs, epoch=0, epochs=epochs, how="")

        def show(progress: Progress) -> None:
            done = progress.epoch - 1 + progress.batch / progress.batches
            shown.update(line, completed=done, epoch=progress.epoch, how=describe(progress))

        yield show
