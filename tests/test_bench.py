"""The benchmark's own parts, on problems that take no time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import problems
import pytest

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path.insert(0, ROOT)
from bench import cases, machine, plots, runner, table, timer  # noqa: E402

sys.path.remove(ROOT)


class Clock:
    """Time that passes only while a contestant runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def contestant(self, name: str, seconds: Callable[[int], float]) -> Callable[[int], float]:
        def run(runs: int) -> float:
            self.order.append(name)
            taken = runs * seconds(self.order.count(name))
            self.now += taken
            return taken

        return run

    def __call__(self) -> float:
        return self.now


def no_rest(seconds: float) -> None:
    """Nothing is left spinning here."""


def test_contestants_take_turns_until_all_agree_with_themselves() -> None:
    clock = Clock()
    contestants = {"a": clock.contestant("a", lambda _: 0.1), "b": clock.contestant("b", lambda _: 0.05)}
    timings = timer.measure(contestants, budget=100, clock=clock, rest=no_rest)
    assert clock.order == ["a", "a", "b", "b", *["a", "a", "b", "b"] * timer.FEWEST]
    assert timings["a"] == timer.Timing(0.1, 0.1, timer.FEWEST, True)
    assert timings["b"].minimum == 0.05


def test_noise_ends_with_the_budget_and_is_said() -> None:
    clock = Clock()
    contestants = {"a": clock.contestant("a", lambda turn: 1.5**turn)}
    timing = timer.measure(contestants, budget=50, clock=clock, rest=no_rest)["a"]
    assert not timing.stable
    assert timing.minimum < timing.median


def test_what_is_short_is_timed_many_times_at_once() -> None:
    clock = Clock()
    timing = timer.measure({"a": clock.contestant("a", lambda _: 1e-5)}, budget=10, clock=clock, rest=no_rest)["a"]
    assert np.isclose(timing.minimum, 1e-5)
    assert clock.now > timer.FEWEST * timer.SHORTEST_SAMPLE * 0.9


SMALL = problems.named("powers of two")


@pytest.fixture(scope="module")
def measured() -> runner.Results:
    results = runner.Results()
    lines: list[str] = []
    runner.time_steps([cases.step_of_shape(SMALL)], 1, 0.2, results, lines.append)
    assert len(lines) == len(runner.PASSES)
    return results


def test_steps_are_timed_in_processes_of_their_own(measured: runner.Results) -> None:
    assert not measured.absent
    found = {(row.pass_, row.implementation) for row in measured.rows}
    assert found == {(which, name) for which in runner.PASSES for name in runner.IMPLEMENTATIONS}
    for row in measured.rows:
        assert (row.T, row.N, row.I, row.H, row.O, row.threads) == (8, 16, 32, 64, 16, 1)
        assert 0 < row.seconds_min <= row.seconds_median < 1
    assert {row.ratio for row in measured.rows if row.implementation == runner.REFERENCE} == {1.0}


def test_an_implementation_that_is_wrong_is_not_timed(tmp_path: Path) -> None:
    step = cases.step_of_shape(SMALL)

    class Wrong:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def ask(self, *, file: str, **_: Any) -> None:
            np.savez(file, output=self.factor * np.ones(3, np.float32))

    started: Any = {"halide": Wrong(1.001), runner.REFERENCE: Wrong(1.0)}
    with pytest.raises(runner.WorkerFailed, match="halide differs from numpy on 'powers of two': output"):
        runner.check(step, started, tmp_path)
    runner.check(step, {"halide": Wrong(1.0), runner.REFERENCE: Wrong(1.0)}, tmp_path)  # type: ignore[dict-item]


def test_an_implementation_that_is_not_there_says_why_and_an_error_in_a_worker_comes_through() -> None:
    with pytest.raises(runner.Absent, match="theano: not part of this version yet"):
        runner.WorkerProcess("theano", 1)
    worker = runner.WorkerProcess("numpy", 1)
    try:
        with pytest.raises(runner.WorkerFailed, match="numpy: FileNotFoundError"):
            worker.ask(do="load", file="/no/such/file")
    finally:
        worker.close()


def curve(name: str, implementation: str, error: float | None = 0.01) -> runner.Curve:
    return runner.Curve(name, implementation, 1, [0.5, 0.1], [1.0, 1.0], error, None)


def test_tables_hold_the_card_times_and_ratios(measured: runner.Results, tmp_path: Path) -> None:
    card = machine.card([1])
    table.write_steps(tmp_path / "steps.csv", measured, card)
    lines = (tmp_path / "steps.csv").read_text().splitlines()
    assert lines[0].startswith("# cpu: ")
    head = next(line for line in lines if not line.startswith("#"))
    assert head == "case,T,N,I,H,O,pass,threads,implementation,seconds_min,seconds_median,samples,stable,ratio"
    assert len(lines) == len(card) + 1 + len(measured.rows)
    assert "x as fast" in table.steps_text(measured)

    learned = runner.Results(curves=[curve("sobel rows", "halide"), curve("sobel rows", "numpy", None)])
    table.write_training(tmp_path / "training.csv", learned, card)
    assert (tmp_path / "training.csv").read_text().splitlines()[-1] == "sobel rows,numpy,1,2,1,0.1,0.316228"
    assert "not judged" in table.training_text(learned)


def test_what_is_missing_is_said_loudly_in_the_tables_and_on_the_plots(
    measured: runner.Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in measured.rows if row.implementation == runner.REFERENCE]
    alone = runner.Results(rows, [curve("sobel rows", runner.REFERENCE)], {"halide": "no kernels here"})
    assert "NOT MEASURED" in table.steps_text(alone)
    table.write_steps(tmp_path / "steps.csv", alone, machine.card([1]))
    assert "# NOT MEASURED: halide: no kernels here" in (tmp_path / "steps.csv").read_text()

    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    plots.draw(tmp_path, alone, "the card")
    for figure in figures:
        footer = figure.get_supxlabel()  # between the two may stand that a figure was noisy
        assert footer.startswith("NOT MEASURED: halide: no kernels here\n")
        assert footer.endswith("\nthe card")
    texts = [text.get_text() for axis in figures[0].axes for text in axis.texts]
    assert texts == ["halide: NOT MEASURED"]


def test_plots_are_written_as_png_and_svg(measured: runner.Results, tmp_path: Path) -> None:
    both = runner.Results(measured.rows, [curve("sobel rows", name) for name in runner.IMPLEMENTATIONS])
    files = plots.draw(tmp_path, both, "the card")
    assert [file.name for file in files] == ["speedup.png", "speedup.svg", "loss.png", "loss.svg"]
    assert all(file.stat().st_size > 1000 for file in files)


def test_every_case_is_a_task_that_can_be_made() -> None:
    step = cases.step_of_case(cases.CASES[0])
    assert step.problem.T == 512
    assert (step.problem.I, step.problem.H, step.problem.O) == (1, 16, 1)
    wide = [case for case in cases.CASES if case.size]
    assert {case.size for case in wide} == {1024, 32}, "both tasks are there with 1024 inputs"
