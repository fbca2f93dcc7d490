"""The benchmark's own parts, on problems that take no time."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import problems
import pytest

from rnn._backends.halide import SCHEDULES
from rnn._backends.halide_jit import AUTOMATIC
from rnn.baselines import theano_environment
from rnn.baselines.network import Objective
from rnn.baselines.remote import Answer

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path.insert(0, ROOT)
from bench import (  # noqa: E402
    cases,
    check,
    command,
    compare,
    implementations,
    instruction_sets,
    machine,
    measures,
    plots,
    report,
    results,
    runner,
    table,
    timer,
    worker,
)

sys.path.remove(ROOT)

SMALL = problems.named("powers of two")
LIMITS = {1: machine.Limits(100.0, 10.0), 2: machine.Limits(200.0, 20.0)}


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


def test_contestants_take_turns_until_all_agree_with_themselves() -> None:
    clock = Clock()
    contestants = {"a": clock.contestant("a", lambda _: 0.1), "b": clock.contestant("b", lambda _: 0.05)}
    timings = timer.measure(contestants, budget=100, clock=clock)
    assert clock.order == ["a", "a", "b", "b", *["a", "a", "b", "b"] * timer.FEWEST]  # a warm-up and a sample each
    assert timings["a"] == timer.Timing(0.1, 0.1, 0.0, timer.FEWEST)
    assert timings["a"].stable
    assert timings["b"].minimum == 0.05


def test_noise_ends_with_the_budget_and_is_said() -> None:
    clock = Clock()
    contestants = {"a": clock.contestant("a", lambda turn: 1.5**turn)}
    timing = timer.measure(contestants, budget=50, clock=clock)["a"]
    assert not timing.stable
    assert timing.minimum < timing.median
    assert timing.noise > timer.AGREEMENT


def test_what_is_short_is_timed_many_times_at_once_and_what_is_long_needs_no_warming_up() -> None:
    clock = Clock()
    timing = timer.measure({"a": clock.contestant("a", lambda _: 1e-5)}, budget=10, clock=clock)["a"]
    assert np.isclose(timing.minimum, 1e-5)
    assert clock.now > timer.FEWEST * timer.SHORTEST_SAMPLE * 0.9
    clock = Clock()
    timer.measure({"a": clock.contestant("a", lambda _: timer.LONG * timer.WARM_UP)}, budget=100, clock=clock)
    assert len(clock.order) == 1 + timer.FEWEST


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> runner.Session:
    """Ours and NumPy, measured on a small problem as the benchmark does it."""
    card = machine.card(LIMITS)
    processors = machine.processors(1)
    made = runner.Session(
        tmp_path_factory.mktemp("results"), processors, ("halide", "numpy"), 0.2, True, LIMITS, lambda _: None, card
    )
    with made.crews(made.rivals) as crews:
        made.measure("peers", crews, cases.step_of(SMALL))
    return made


def test_what_was_measured_before_a_stop_is_written(
    session: runner.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(running: runner.Session) -> None:
        running.rows += session.rows
        raise KeyboardInterrupt

    monkeypatch.setitem(measures.MEASURES, "peers", stopped)
    monkeypatch.setattr(theano_environment, "make", lambda say: None)
    monkeypatch.setattr(machine, "limits", lambda processors, isa: LIMITS[1])
    assert command.main(["peers", "--out", str(tmp_path)]) == 130
    assert len(results.read(tmp_path / "peers.csv")) == len(session.rows) == 4


@pytest.mark.parametrize(("whole", "expected"), [(True, problems.GRID), (False, measures.SAMPLE)])
def test_peers_take_the_whole_grid_only_where_they_are_asked_for(
    session: runner.Session, monkeypatch: pytest.MonkeyPatch, whole: bool, expected: list[problems.Problem]
) -> None:
    seen: list[problems.Problem] = []
    monkeypatch.setattr(session, "rivals", ())
    monkeypatch.setattr(session, "whole_grid", whole)
    monkeypatch.setattr(session, "measure", lambda benchmark, crews, step: seen.append(step))
    monkeypatch.setattr(measures, "step_of", lambda problem: problem)
    measures.peers(session)
    assert seen == expected


def test_steps_are_timed_in_processes_of_their_own(session: runner.Session) -> None:
    assert not session.absent
    found = {(row.pass_, row.implementation) for row in session.rows}
    assert found == {(which, name) for which in runner.PASSES for name in session.rivals}
    for row in session.rows:
        assert (row.T, row.N, row.I, row.H, row.O, row.threads) == (8, 16, 32, 64, 16, 1)
        assert 0 < row.seconds_min <= row.seconds_median < 1
        multiplications = 16 * 64 * (8 * (32 + 16) + 7 * 64) * (3 if row.pass_ == "train" else 1)
        assert np.isclose(row.gflops, 2e-9 * multiplications / row.seconds_min)
        assert np.isclose(row.share_of_peak, row.gflops / 100)
    assert "numpy" in session.card["numpy"]


@pytest.mark.parametrize("isa", instruction_sets.VARIABLES)
def test_all_are_held_to_an_instruction_set(session: runner.Session, isa: str) -> None:
    try:
        instruction_sets.check(isa)
    except ValueError as reason:
        pytest.skip(str(reason))
    limits = {1: machine.limits(session.processors, isa)}
    held = replace(session, isa=isa, limits=limits, card=machine.card(limits, isa), rows=[], absent={})
    with held.crew([*session.rivals, *instruction_sets.BEYOND.get(isa, ())], session.processors) as crew:
        assert {*crew} == {*session.rivals}
        for worker in crew.values():
            environment = Path(f"/proc/{worker.process.pid}/environ").read_text().split("\0")
            assert {f"{name}={value}" for name, value in instruction_sets.VARIABLES[isa].items()} <= {*environment}
        for row in held.measure("peers", [crew], cases.step_of(SMALL)):
            assert np.isclose(row.share_of_peak, row.gflops / limits[1].gflops)
    assert f"{isa} (all are held to it" in machine.text(held.card)
    assert all("SSE4.1" in reason for reason in held.absent.values())


class Wrong:
    """Answers like a worker, from the reference, and spoils one of the arrays."""

    def __init__(self, step: cases.Step, spoil: str = "") -> None:
        self.step, self.want, self.spoil = step, check.expected(step), spoil

    def ask(self, do: str, *, rate: float = 0.0) -> Any:
        class Answer(dict[str, Any]):
            arrays: dict[str, Any]

        answer = Answer(loss=self.want.loss * (1.01 if self.spoil == "loss" else 1))
        gradients = dict(self.want.gradients)
        if self.spoil in gradients and do == "gradients":
            gradients[self.spoil] = 1.001 * gradients[self.spoil]
        if do == "train":
            wrong = 0.0 if self.spoil == "update" else rate
            answer.arrays = {name: w - wrong * gradients[name] for name, w in self.step.weights.items()}
        else:
            answer.arrays = gradients if do == "gradients" else {"output": self.want.output}
        if self.spoil == do == "forward":
            answer.arrays["output"] = np.roll(self.want.output, 1, axis=0)  # off by one in time
        return answer


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("forward", "output"),
        ("weight_hh_l0", "gradient of weight_hh_l0"),
        ("x", "gradient of x"),
        ("loss", "loss: expected"),
        ("update", "weight_ih_l0 after a step"),
    ],
)
def test_an_implementation_that_is_wrong_is_not_timed(spoil: str, message: str) -> None:
    step = cases.step_of(SMALL)
    check.check(Wrong(step), step, check.expected(step))
    with pytest.raises(AssertionError, match=message):
        check.check(Wrong(step, spoil), step, check.expected(step))


def test_an_implementation_that_is_not_there_says_why_and_an_error_in_a_worker_comes_through(
    monkeypatch: pytest.MonkeyPatch, session: runner.Session
) -> None:
    absent = implementations.Implementation("bench.ours", "halide")
    monkeypatch.setitem(implementations.IMPLEMENTATIONS, "elsewhere", absent._replace(module="baselines.nothing"))
    with pytest.raises(runner.Absent, match=r"No module named 'baselines\.nothing'"):
        runner.Worker("elsewhere", session.processors)
    with runner.Worker("numpy", session.processors) as worker:
        with pytest.raises(runner.WorkerFailed, match="numpy: forward: AttributeError"):
            worker.ask("forward")
        assert worker.create(cases.step_of(SMALL)) > 0, "it goes on after an error"


def test_a_worker_that_dies_is_named(session: runner.Session) -> None:
    with runner.Worker("numpy", session.processors) as worker:
        worker.process.kill()
        with pytest.raises(runner.WorkerFailed, match="numpy: create: the process was killed by signal 9"):
            worker.create(cases.step_of(SMALL))


@pytest.mark.parametrize(
    ("caches", "expected"),
    [
        (["empty", "filled", "filled"], {"empty": 9.0, "filled": 2.0}),
        (["filled", "filled", "filled", "empty"], {"filled": 2.0, "empty": 6.0}),
    ],
    ids=["a new environment", "one that was used"],
)
def test_a_first_step_is_measured_with_an_empty_cache_and_a_filled_one(
    session: runner.Session, monkeypatch: pytest.MonkeyPatch, caches: list[str], expected: dict[str, float]
) -> None:
    seconds = iter([9.0, 3.0, 2.0, 6.0])
    left, folders = list(caches), []

    class Fake:
        def __init__(self, **environment: str) -> None:
            self.cache = left.pop(0)
            folders.append(environment.get("THEANO_FLAGS", ""))

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None: ...

        def create(self, step: cases.Step) -> None: ...

        def ask(self, do: str, rate: float) -> dict[str, float]:
            return {"since_start": next(seconds)}

    monkeypatch.setattr(session, "rivals", ("theano",))
    monkeypatch.setattr(session, "quick", False)
    monkeypatch.setattr(session, "first_steps", [])
    monkeypatch.setattr(session, "worker", lambda name, processors, **environment: Fake(**environment))
    measures.first_step(session)
    assert {record.cache: record.seconds for record in session.first_steps} == expected
    assert not left
    assert [bool(folder) for folder in folders] == [False] * 3 + [True] * (len(caches) - 3)


@pytest.mark.parametrize("can_load", [True, False])
def test_a_network_is_started_anew_where_it_can_be_and_differs_in_sizes_alone(can_load: bool) -> None:
    calls: list[str] = []

    class Network:
        def __init__(self, *arguments: Any) -> None:
            calls.append("made")
            if can_load:
                self.load = lambda weights: calls.append(f"loaded {weights['weight_hh_l0'].shape}")

    far_end = worker.Worker("", [0], "", "")
    far_end.library = SimpleNamespace(Network=Network)
    small, large = ({"weight_hh_l0": np.ones((size, size), "float32")} for size in (2, 3))
    sgd, adam = ["sgd", 1.0, 0], ["adam", 1.0, 0]
    far_end.create(small, "rnn_tanh", sgd)
    far_end.create(large, "rnn_tanh", sgd)
    assert calls == ["made", "loaded (3, 3)" if can_load else "made"]
    calls.clear()
    far_end.create(large, "rnn_relu", sgd)
    far_end.create(large, "rnn_relu", adam)
    far_end.create({**large, "bias_o": np.ones(3, "float32")}, "rnn_relu", adam)
    far_end.create({name: weight.astype("float64") for name, weight in large.items()}, "rnn_relu", adam)
    assert calls == ["made"] * 4


def test_a_turn_is_whole_epochs_whose_loss_is_the_mean_over_all_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Any] = []

    class Network:
        def batch(self, x: Any, target: Any) -> Any:
            batches.append((x[0, :, 0].tolist(), target[0, :, 0].tolist()))
            return x

        def train(self, batch: Any, rate: float) -> float:
            return rate

    far_end = worker.Worker("", [0], "", "")
    far_end.network = Network()
    lanes = {name: np.arange(3.0).reshape(1, 3, 1) + 10 * (name == "target0") for name in ("x0", "target0")}
    longer = {name: np.zeros((5, 3, 1)) for name in ("x1", "target1")}
    far_end.study({**lanes, **longer})
    epochs, rates = [[(0, [2, 0]), (1, [1])], [(0, [1])]], [[1.0, 8.0], [3.0]]
    assert far_end.learn({}, epochs, rates, turn=1e-9)["loss"] == [pytest.approx((2 * 1.0 + 5 * 8.0) / 7)]
    assert batches == [([2, 0], [12, 10]), ([0], [0])]
    assert far_end.learn({}, epochs, rates, turn=1e9)["loss"] == [pytest.approx(6.0), pytest.approx(3.0)]


def test_libraries_learn_a_task_in_turns_and_a_slow_rival_is_cut_short(session: runner.Session) -> None:
    asked: list[str] = []

    class Learner:
        def __init__(self, name: str) -> None:
            self.name = name

        def ask(self, do: str, arrays: Any = None, **values: Any) -> Any:
            if do == "create":
                self.made = arrays
            if do == "learn":
                assert [len(rates) for rates in values["rates"]] == [len(batches) for batches in values["epochs"]]
                asked.append(self.name)
            answer = Answer(loss=[1.0], seconds=[0.3 * measures.RIVALS_LEARN])
            answer.arrays = self.made
            return answer

    session.quick = False
    crew: Any = {name: Learner(name) for name in ("halide", "numpy")}
    measures.learn(session, cases.Case("sobel", "columns"), crew, 2)
    ours, rival = session.curves
    assert asked[:4] == ["halide", "numpy"] * 2
    assert len(rival.loss) == 5, "the first is not counted, and the fourth after it is the one that is too much"
    assert rival.error is None
    assert len(ours.loss) == asked.count("halide") > 5
    assert ours.error == pytest.approx(1.0, rel=0.5), "nothing was learned"


def test_our_own_network_trains_as_the_library_does() -> None:
    step = cases.step_of(SMALL)
    network = load_ours().Network(SMALL.cell, step.weights, Objective("adam", 2.0, 1))
    batch = network.batch(step.x, step.target)
    losses = [network.train(batch, 0.01) for _ in range(20)]
    assert losses[-1] < losses[0]
    expected = 2 * np.mean((np.asarray(network.forward(batch)) - step.target)[1:] ** 2)
    assert np.isclose(network.train(batch, 0.01), expected, rtol=1e-5)


def load_ours() -> Any:
    sys.path.insert(0, ROOT)
    try:
        from bench import ours
    finally:
        sys.path.remove(ROOT)
    return ours


def test_csv_files_hold_the_card_and_come_back(session: runner.Session, tmp_path: Path) -> None:
    path = results.write(tmp_path / "peers.csv", session.card, {"theano": "not here"}, session.rows)
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# cpu: ")
    assert "# NOT MEASURED: theano: not here" in lines
    head = next(csv.reader(line for line in lines if not line.startswith("#")))
    assert head[8:14] == ["pass", "threads", "implementation", "seconds_min", "seconds_median", "noise"]
    for back, row in zip(results.read(path), session.rows, strict=True):
        assert back[:11] == row[:11]
        assert np.isclose(back.seconds_min, row.seconds_min, rtol=1e-5)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns benchmark, problem"):
        results.read(tmp_path / "other.csv")


def row(implementation: str, seconds: float, noise: float = 0.01, which: str = "train") -> results.Row:
    sizes = (8, 16, 32, 64, 16)
    timing = (seconds, seconds, noise, 5)
    return results.Row("peers", "powers", "rnn_tanh", *sizes, which, 1, implementation, *timing, 1.0, 1 / seconds, 0.5)


def test_ratios_are_to_the_best_of_the_others() -> None:
    rows = [row("halide", 0.5), row("numpy", 2.0), row("jax", 1.0), row("halide", 1.0, which="forward")]
    best = table.ratios(rows)
    assert [best[one] for one in rows[:3]] == [2.0, 0.25, 0.5]
    assert np.isnan(best[rows[3]]), "alone"
    assert table.geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)


def test_json_has_a_line_a_figure() -> None:
    lines = [json.loads(line) for line in table.json_lines([row("halide", 0.5), row("numpy", 2.0)]).splitlines()]
    assert lines[0] == {
        "problem": "powers",
        "pass": "train",
        "threads": 1,
        "implementation": "halide",
        "seconds_min": 0.5,
        "seconds_median": 0.5,
        "gflops": 2.0,
        "share_of_peak": 0.5,
        "ratio_to_best_peer": 4.0,
    }
    assert lines[1]["ratio_to_best_peer"] == 0.25
    assert json.loads(table.json_lines([row("halide", 0.5)]))["ratio_to_best_peer"] is None


def test_compare_names_what_got_slower_by_more_than_the_noise(tmp_path: Path) -> None:
    card = {"cpu": "one"}
    old = results.write(tmp_path / "old.csv", card, {}, [row("halide", 1.0), row("numpy", 1.0, noise=0.2)])
    new = results.write(tmp_path / "new.csv", card, {}, [row("halide", 1.1), row("numpy", 1.1, noise=0.2)])
    text = compare.compare(old, new)
    slower = text.splitlines()[2]
    assert slower.split() == ["powers", "train", "1", "halide", "1e+03", "1.1e+03", "10.0%", "2.0%"]
    assert "1 of 2 figures got slower" in text
    assert "halide 1.100, numpy 1.100" in text
    assert "nothing got slower" in compare.compare(new, old)
    with pytest.raises(ValueError, match="got none that both have"):
        compare.compare(old, results.write(tmp_path / "other.csv", card, {}, [row("jax", 1.0)]))


@pytest.fixture
def full(session: runner.Session, tmp_path: Path) -> runner.Session:
    """Figures for every plot: made up, with two threads, and without Theano."""
    rows = []

    def add(
        benchmark: str, problem: problems.Problem, names: list[str], which: str = "train", threads: int = 1
    ) -> None:
        for place, name in enumerate(names, 2):
            timing = timer.Timing(1e-3 * place * (problem.T + 1), 2e-3 * place, 0.1, 3)
            rows.append(made.row(benchmark, problem, which, threads, name, timing))

    made = runner.Session(
        tmp_path, [0, 1], ("halide", "numpy", "theano"), 0.1, True, LIMITS, lambda _: None, session.card,
        absent={"theano": "no such environment"},
    )  # fmt: skip
    for threads in (1, 2):
        for case, widths in cases.WIDTHS.items():
            for width in widths:
                wide = SMALL._replace(name=f"{case.name}, {width} wide")
                add("speedup", wide, ["halide", "numpy"], threads=threads)
        for problem in problems.GRID:
            for which in runner.PASSES[:1] if problem.forward_only else runner.PASSES:
                add("peers", problem, ["halide", "numpy"], which, threads)
        for problem in problems.SPEED:
            add("threads", problem, ["halide", "numpy"], threads=threads)
    for problem in problems.SPEED:
        add("threads", problem, [measures.SIDE_BY_SIDE], threads=2)
    for which in (*runner.PASSES, "first train"):
        names = [f"{kind} {name}" for kind in ("halide", "halide-jit") for name in SCHEDULES]
        names += [f"halide-jit {name}" for name in AUTOMATIC]
        add("ladder", measures.LADDER, names, which, 2)
    for problem in [one for grown in measures.GROWTH.values() for one in grown]:
        add("growth", problem, ["halide", "numpy"])
    for problem in measures.TUTORIAL:
        add("growth", problem, ["halide", "numpy", *measures.TUTORIALS])
    made.rows = rows
    made.memory = [
        results.Memory(p.name, p.T, name, p.T / 8, 30.0)
        for p in measures.MEMORY
        for name in ("halide", "halide, remat", "numpy")
    ]
    made.first_steps = [results.FirstStep("halide", "", 0.3), results.FirstStep("theano", "empty", 60.0)]
    made.curves = [
        results.Curve(case.name, name, 2, [0.5, 0.1], [1.0, 1.0], error, None)
        for case in cases.LEARNED
        for name, error in (("halide", 0.01), ("numpy", None))
    ]
    return made


@pytest.mark.parametrize("name", plots.DRAW)
def test_every_plot_is_drawn_with_the_card_and_what_is_missing(
    name: str, full: runner.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = plots.draw(name, full)
    assert [file.name for file in files] == [f"{name}.png", f"{name}.svg"]
    assert all(file.stat().st_size > 1000 for file in files)
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    plots.draw(name, full)
    footer = " ".join(figures[0].get_supxlabel().split())
    assert footer.startswith("NOT MEASURED: Theano: no such environment")
    assert full.card["cpu"] in footer
    assert full.card["commit"] in footer
    said = [text.get_text() for axes in figures[0].axes for text in axes.texts]
    if name in ("speedup", "peers", "memory", "tasks", "first-step"):  # where Theano's figures would be
        assert any(text.startswith("NOT MEASURED: Theano") for text in said)


def test_the_report_is_one_page_with_everything(full: runner.Session) -> None:
    sections = []
    for name in plots.DRAW:
        pictures = [path for path in plots.draw(name, full) if path.suffix == ".png"]
        sections.append(report.Section(name, pictures, report.tables(name, full)))
    html, markdown = (path.read_text() for path in report.write(full.out, full, sections))
    assert html.count("data:image/png;base64,") == len(plots.DRAW)
    assert "src='http" not in html
    assert full.card["cpu"] in html
    assert full.card["cpu"] in markdown
    for name in plots.DRAW:
        assert f"<h2 id='{name}'>" in html
        assert f"]({name}.png)" in markdown
    assert "NOT MEASURED: theano: no such environment" in html
    assert "NOT MEASURED" in markdown.split("## speedup")[1]


def test_tables_say_what_was_cut_short_or_not_measured(full: runner.Session) -> None:
    (training, _), = report.tables("tasks", full)  # fmt: skip
    assert [line[5] for line in training[1:3]] == ["0.010", "cut short"]
    (times, note), = report.tables("peers", full)  # fmt: skip
    assert times[1][5] == "NOT MEASURED"
    assert times[1][3].startswith("~"), "best and third best differ by 10%"
    assert "too noisy" in note
    assert times[-1][0] == "geometric mean"
    assert table.aligned(times).count("\n") == len(times)


def test_batches_hold_every_lane_once(rng: np.random.Generator) -> None:
    batches = measures.deal([5, 3], 2, rng)
    for which, lanes in enumerate([5, 3]):
        dealt = [lane for pair, chosen in batches for lane in chosen if pair == which]
        assert sorted(dealt) == list(range(lanes))
    assert max(len(chosen) for _, chosen in batches) == 2


def test_every_task_can_be_made_as_a_step() -> None:
    step = cases.step_of_case(cases.LEARNED[0])
    assert (step.problem.T, step.problem.I, step.problem.H, step.problem.O) == (512, 1, 16, 1)
    assert {width for widths in cases.WIDTHS.values() for width in widths} == {16, 32, 64, 128, 256, 512, 1024}


def test_the_grid_is_what_was_agreed() -> None:
    kinds = [problem.cell for problem in problems.GRID]
    assert {cell: kinds.count(cell) for cell in kinds} == {"rnn_tanh": 16, "lstm": 17, "gru": 13}
    assert len({problem.name for problem in problems.GRID}) == len(kinds)
    assert problems.named("tanh I2048 H2048 N32 T50").multiplications == (50 + 49) * 32 * 2048**2
    assert problems.named("lstm I64 H64 N48 T200").multiplications == 48 * 4 * 64 * (200 * 64 + 199 * 64)
    assert problems.named("gru I1 H8 N1 T2048").multiplications == 3 * 8 * (2048 * 1 + 2047 * 8)
    forward_only = [problem for problem in problems.GRID if problem.forward_only]
    assert {problem.N for problem in forward_only} == {1, 4}
    assert len(forward_only) == 6


def test_where_nobody_trains_the_forward_pass_alone_is_timed(session: runner.Session) -> None:
    timed: list[str] = []

    class Watched(runner.Session):
        def is_right(self, *arguments: object) -> bool:
            return True

        def time(self, benchmark: str, crew: object, problem: problems.Problem, which: str) -> list[results.Row]:
            timed.append(which)
            return []

    watched = Watched(session.out, [0], ("halide",), 0.1, True, LIMITS, lambda _: None, {})
    crew: Any = {"halide": SimpleNamespace(threads=1)}
    for problem in (SMALL, SMALL._replace(forward_only=True)):
        watched.measure("peers", [crew], cases.step_of(problem))
    assert timed == ["forward", "train", "forward"]
