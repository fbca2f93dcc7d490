"""Learn to write text: from each character and all before it, the probability of the next one.

    from rnn.tasks import text

    book = text.read_text("book.txt")
    how = text.recipe(book)
    layer = text.make_layer(book, how, seed=0)
    history = text.train(layer, book, how, seed=0)
    print(text.bits_per_character(layer, book))
    print(text.sample(layer, book.alphabet, 200, temperature=0.7, seed=0, prime="The ").decode())

The last tenth of the text is held out. The rest is cut into equally long lanes; a batch of them is walked from start to
end in steps of truncated BPTT, the state carried over, as Graves does in "Generating sequences with recurrent neural
networks", 2013. Characters are one-hot vectors, made for the steps and lanes at hand and never for the whole text.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._memory import empty
from ..layers import Layer
from ..losses import SoftmaxCrossEntropy
from ..training import Callback, History, Pair, evaluate, fit
from .cells import is_gated, layer_of
from .data import DataError, Values, check_file
from .training import CLIP_NORM, CosineAdam

__all__ = [
    "Alphabet",
    "Text",
    "TextRecipe",
    "bits_per_character",
    "make_layer",
    "read_text",
    "recipe",
    "sample",
    "train",
]

Codes = NDArray[np.int32]

FEWEST_CHARACTERS = 20
MOST_SYMBOLS = 4096
"""Of an alphabet: inputs and outputs of the layer are vectors of that length."""
HELD_OUT = 10
"""One part in so many, at the end."""
LANES = 32
STEPS = 32
LANE_STEPS = 128
"""Optimizer steps that a lane of a long text lasts: the state starts from zero once in so many."""
CHARACTERS = 5 * 10**6
"""To be seen in training, counted over all epochs, if the text is long enough for it."""


class Alphabet:
    """The symbols of a text, numbered in the order of their codes: characters, or single bytes.

    Raises ValueError unless the codes rise and are Unicode's, or those of bytes.
    """

    def __init__(self, codes: Sequence[int], *, of_bytes: bool = False) -> None:
        self.codes = np.array(codes, np.int64)
        self.of_bytes = of_bytes
        expected = "bytes" if of_bytes else "characters of Unicode"
        limit = 256 if of_bytes else 0x110000
        within = len(self.codes) > 0 and self.codes[0] >= 0 and self.codes[-1] < limit
        if not within or (np.diff(self.codes) <= 0).any() or (not of_bytes and _is_surrogate(self.codes).any()):
            raise ValueError(f"codes: expected rising numbers of {expected}, got {list(codes)[:10]}")

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def unit(self) -> str:
        """What its symbols are: "characters" or "bytes"."""
        return "bytes" if self.of_bytes else "characters"

    def encode(self, text: str | bytes) -> Codes:
        """The numbers of the symbols of a text, or of the bytes that it has in UTF-8. Raises ValueError for others."""
        codes = _codes(text, of_bytes=self.of_bytes)
        known = np.isin(codes, self.codes)
        if not known.all():
            stranger = int(codes[~known][0])
            named = f"byte 0x{stranger:02x}" if self.of_bytes else repr(chr(stranger))
            raise ValueError(f"expected {self.unit} that were in the training text, got {named}")
        return np.searchsorted(self.codes, codes).astype(np.int32)

    def decode(self, numbers: Sequence[int] | NDArray[Any]) -> bytes:
        """The text of these numbers, as bytes: in UTF-8 where the symbols are characters."""
        codes = self.codes[np.asarray(numbers, np.intp)]
        return bytes(codes.tolist()) if self.of_bytes else "".join(map(chr, codes.tolist())).encode()

    def one_hot(self, numbers: NDArray[Any]) -> Values:
        """(...) -> (..., I): 1 at the symbol's number, and 0 elsewhere."""
        x: Values = empty((*numbers.shape, len(self)), "float32")
        x[...] = 0
        np.put_along_axis(x, numbers[..., np.newaxis], np.float32(1), axis=-1)
        return x

    def metadata(self) -> dict[str, Any]:
        """As JSON values: what `from_metadata` takes."""
        symbols: object = self.codes.tolist() if self.of_bytes else "".join(map(chr, self.codes.tolist()))
        return {"unit": self.unit, "alphabet": symbols}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Alphabet:
        """Raises ValueError unless it is as `metadata()` made it."""
        symbols, of_bytes = metadata.get("alphabet"), metadata.get("unit") == "bytes"
        if not of_bytes and isinstance(symbols, str):
            return cls(list(map(ord, symbols)))
        if of_bytes and isinstance(symbols, list) and all(isinstance(symbol, int) for symbol in symbols):
            return cls(symbols, of_bytes=True)
        raise ValueError(f"alphabet: expected a {'list of bytes' if of_bytes else 'string'}, got {symbols!r:.60}")


@dataclass(frozen=True)
class Text:
    """A text to learn from, and its end to be judged on."""

    name: str
    alphabet: Alphabet
    training: Codes
    """(characters,): the number of each in the alphabet."""
    held_out: Codes
    """The last tenth, which follows."""

    @property
    def digest(self) -> str:
        """What tells this text from others."""
        digest = hashlib.sha256(self.alphabet.unit.encode())
        for numbers in (self.alphabet.codes, self.training, self.held_out):
            digest.update(numbers.tobytes())
        return digest.hexdigest()[:16]


class TextRecipe(NamedTuple):
    """How to train."""

    cell: str
    layers: int
    hidden: int
    dropout: float
    """Between the layers."""
    lanes: int
    """Places of the text that are walked through at once, the N of a batch."""
    steps: int
    """Time steps from one optimizer step to the next: as far as gradients go back."""
    epochs: int
    lr: float


def read_text(path: str | os.PathLike[str], *, as_bytes: bool = False) -> Text:
    """A file in UTF-8 as characters, or any file as bytes.

    Raises DataError: no such file, not UTF-8, too short, or of more different characters than can be one-hot inputs.
    """
    name = os.fspath(path)
    check_file(path)
    data = Path(path).read_bytes()
    unit = "bytes" if as_bytes else "characters"
    if not data:
        raise DataError(f"{name}: expected a text, got an empty file")
    try:
        text: str | bytes = data if as_bytes else data.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise DataError(
            f"{name}: expected text in UTF-8, got byte 0x{data[reason.start]:02x} at position {reason.start}; "
            "read as bytes, any file will do"
        ) from None
    if len(text) < FEWEST_CHARACTERS:
        raise DataError(f"{name}: expected a text of at least {FEWEST_CHARACTERS} {unit}, got {len(text)}")
    codes = _codes(text, of_bytes=as_bytes)
    symbols = np.unique(codes)
    if len(symbols) > MOST_SYMBOLS:
        raise DataError(
            f"{name}: expected at most {MOST_SYMBOLS} different characters, got {len(symbols)}; "
            "read as bytes, there are no more than 256"
        )
    number = np.zeros(int(symbols[-1]) + 1, np.int32)
    number[symbols] = np.arange(len(symbols))
    numbers: Codes = number[codes]
    cut = len(numbers) - max(2, len(numbers) // HELD_OUT)
    return Text(Path(path).name, Alphabet(symbols.tolist(), of_bytes=as_bytes), numbers[:cut], numbers[cut:])


def _codes(text: str | bytes, *, of_bytes: bool) -> NDArray[Any]:
    if of_bytes:
        return np.frombuffer(text.encode(errors="replace") if isinstance(text, str) else text, np.uint8)
    text = text if isinstance(text, str) else text.decode()
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)


def _is_surrogate(codes: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray((codes >= 0xD800) & (codes < 0xE000))


def recipe(text: Text, cell: str = "lstm", *, lanes: int | None = None, steps: int | None = None) -> TextRecipe:
    """The recipe for a text: found by trying on one of half a million characters.

    lanes: None is 32, and fewer for a short text; steps: None is 32. Raises DataError for more lanes than there are
    characters for.
    """
    steps = steps or STEPS
    there = len(text.training) - 1
    if lanes is not None and lanes > there:
        unit = text.alphabet.unit
        raise DataError(
            f"lanes: expected at most {there} for {there + 1} {unit} of {text.name} to train on, got {lanes}"
        )
    epochs = min(50, max(5, round(CHARACTERS / there)))
    return TextRecipe(
        cell,
        layers=2,
        hidden=128,
        dropout=0.1,
        lanes=lanes or max(1, min(LANES, there // steps)),
        steps=steps,
        epochs=epochs,
        lr=0.01 if is_gated(cell) else 0.003,
    )


def make_layer(text: Text, how: TextRecipe, seed: int, precision: str = "float32") -> Layer:
    """Stacked layers from one-hot symbols to unnormalised scores of the next one.

    A one-hot input reaches a gate through one weight alone, so those of the first layer start uniform in [-2, 2), wider
    than suits a sum over many inputs: that leaves out a long start without progress.
    """
    size = len(text.alphabet)
    options: dict[str, Any] = {"dropout": how.dropout, "seed": seed, "precision": precision}
    layer = layer_of(how.cell, size, how.hidden, how.layers, output_size=size, **options)
    layer.weights["weight_ih_l0"] *= np.float32(2 * math.sqrt(how.hidden))
    return layer


def lanes_of(numbers: Codes, count: int) -> Pair:
    """The text as `count` lanes of equal length T, one after the other, and the characters that follow, both (T, N).

    Up to `count` characters are left over at the end.
    """
    steps = (len(numbers) - 1) // count
    used = steps * count
    x, target = (part.reshape(count, steps).T for part in (numbers[:used], numbers[1 : used + 1]))
    return np.ascontiguousarray(x), np.ascontiguousarray(target)


def _training_lanes(text: Text, how: TextRecipe) -> Pair:
    there = len(text.training) - 1
    groups = max(1, there // (how.lanes * how.steps * LANE_STEPS))
    return lanes_of(text.training, how.lanes * groups)


def _held_out_lanes(text: Text) -> Pair:
    """Several lanes are faster than one, and long ones lose little by starting from nothing."""
    return lanes_of(text.held_out, max(1, min(LANES, len(text.held_out) // (STEPS * LANE_STEPS))))


def train(
    layer: Layer,
    text: Text,
    how: TextRecipe,
    seed: int,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume: bool = False,
    remat: bool = False,
) -> History:
    """Train `layer` in place with `rnn.fit`; what isn't said here is as there.

    The loss is the cross-entropy in nats a character, `history.validation` that of the held-out part.
    """
    x, target = _training_lanes(text, how)
    steps = -(-x.shape[1] // how.lanes) * -(-len(x) // how.steps)
    return fit(
        layer,
        [(x, target)],
        SoftmaxCrossEntropy(),
        CosineAdam(how.lr, steps * how.epochs),
        epochs=how.epochs,
        batch_size=how.lanes,
        bptt_steps=how.steps,
        clip_norm=CLIP_NORM,
        rng=seed,
        validation=[_held_out_lanes(text)],
        callbacks=callbacks,
        checkpoint=checkpoint,
        metadata=metadata,
        resume=resume,
        encode=text.alphabet.one_hot,
        remat=remat,
    )


def bits_per_character(layer: Layer, text: Text) -> float:
    """The mean of -log2 of the probability that the layer gave to each character of the held-out part.

    Two to this power is the perplexity: as many equally likely characters would be as hard to guess.
    """
    loss = evaluate(layer, [_held_out_lanes(text)], SoftmaxCrossEntropy(), steps=STEPS, encode=text.alphabet.one_hot)
    return loss / math.log(2)


def sample(
    layer: Layer,
    alphabet: Alphabet,
    length: int,
    *,
    temperature: float = 1.0,
    seed: int | np.random.Generator | None = None,
    prime: str | bytes = "",
    tell: Callable[[bytes], None] | None = None,
) -> bytes:
    """A text of `length` symbols that the layer finds likely after `prime`, which is not in it; in UTF-8.

    temperature   divides the scores before the softmax: below 1 likelier, above 1 more surprising; 0: always the
                  likeliest symbol
    prime         what the layer reads first; "": a line's end, as if a new line began (the first symbol of an alphabet
                  that has none)
    tell          called with each symbol as soon as it is there

    Raises ValueError naming the argument: for a temperature below 0, or a prime with symbols not in the alphabet.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature: expected a finite number of at least 0, got {temperature}")
    rng = np.random.default_rng(seed)
    try:
        read = alphabet.encode(prime) if prime else np.flatnonzero(alphabet.codes == ord("\n"))[:1]
    except ValueError as reason:
        raise ValueError(f"prime: {reason}") from None
    read = read if len(read) else np.zeros(1, np.intp)
    state = None
    for start in range(0, len(read) - 1, STEPS):  # all but the last, whose scores are wanted
        piece = read[start : min(start + STEPS, len(read) - 1)]
        _, state = layer(alphabet.one_hot(piece[:, np.newaxis]), state)
    number = int(read[-1])
    written: list[int] = []
    while len(written) < length:
        scores, state = layer.step(alphabet.one_hot(np.full(1, number)), state)
        number = _drawn(scores[0], temperature, rng)
        written.append(number)
        if tell is not None:
            tell(alphabet.decode([number]))
    return alphabet.decode(written)


def _drawn(scores: NDArray[Any], temperature: float, rng: np.random.Generator) -> int:
    if temperature == 0:
        return int(scores.argmax())
    with np.errstate(over="ignore"):  # exp(-inf) is the right 0
        likely = np.exp((scores - scores.max()).astype(np.float64) / temperature)
    return int(np.searchsorted(likely.cumsum(), rng.random() * likely.sum(), side="right").clip(0, len(scores) - 1))
