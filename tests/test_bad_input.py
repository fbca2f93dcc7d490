"""Bad input to the library: the right exception, naming the argument, what was expected and what came."""

# mypy: disable-error-code="arg-type, has-type"

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import rnn

F4 = np.float32
LAYER = rnn.RNN(3, 4, output_size=2, seed=0)
X, H0 = np.zeros((5, 2, 3), F4), np.zeros((2, 4), F4)
D_OUTPUT, D_STATE = np.zeros((5, 2, 2), F4), np.zeros((2, 4), F4)


def huge(*shape: int) -> np.ndarray:
    """An array of any size that takes no memory."""
    return as_strided(np.zeros(1, F4), shape, [0] * len(shape))


def forward(x: Any = X, state: Any = None, **options: Any) -> None:
    LAYER.forward(x, state, **options)


def lstm(state: Any = None, **config: Any) -> None:
    rnn.LSTM(3, 4, **config).forward(X, state)


def bptt(d_output: Any = D_OUTPUT, d_state: Any = None, run: Any = None) -> None:
    LAYER.bptt(LAYER.forward(X) if run is None else run, d_output, d_state)


def with_weights(**changed: Any) -> None:
    layer = rnn.RNN(3, 4, output_size=2, seed=0)
    layer.weights |= changed
    layer.forward(X)


def fit(**changed: Any) -> None:
    arguments: dict[str, Any] = {
        "sequences": [(X, D_OUTPUT)],
        "loss": rnn.MSE(),
        "optimizer": rnn.SGD(0.1),
        "epochs": 1,
    }
    rnn.fit(rnn.RNN(3, 4, output_size=2, seed=0), **arguments | changed)


Case = tuple[Callable[[], object], type[Exception], str]

CASES: dict[str, Case] = {
    # RNN(...)
    "negative size": (
        lambda: rnn.RNN(-1, 4),
        ValueError,
        "input_size: expected an integer of at least 0, got -1",
    ),
    "size is a float": (lambda: rnn.RNN(3, 4.0), TypeError, "hidden_size: expected an integer .*got 4.0"),
    "size is a bool": (lambda: rnn.RNN(3, True), TypeError, "hidden_size: .*got True"),
    "size is a string": (lambda: rnn.RNN(3, 4, output_size="2"), TypeError, "output_size: .*got '2'"),
    "size is an array": (lambda: rnn.RNN(3, np.ones(2, int)), TypeError, "hidden_size: .*got ndarray"),
    "size of 2^31": (
        lambda: rnn.RNN(2**31, 0),
        OverflowError,
        "input_size: expected less than 2\\^31, got 2147483648",
    ),
    "weights of 2^31 elements": (
        lambda: rnn.RNN(1, 46341),
        OverflowError,
        "weight_hh_l0: .*shape \\(46341, 46341\\)",
    ),
    "nonlinearity": (
        lambda: rnn.RNN(3, 4, nonlinearity="swish"),
        ValueError,
        "nonlinearity: .*tanh, sigmoid, relu.*'swish'",
    ),
    "nonlinearity is a function": (
        lambda: rnn.RNN(3, 4, nonlinearity=np.tanh),
        TypeError,
        "nonlinearity: .*got ufunc",
    ),
    "bias": (lambda: rnn.RNN(3, 4, bias="no"), TypeError, "bias: expected True or False, got 'no'"),
    "seed": (lambda: rnn.RNN(3, 4, seed=-1), ValueError, "seed: .*got -1"),
    "seed is a string": (lambda: rnn.RNN(3, 4, seed="a"), TypeError, "seed: .*got 'a'"),
    "dtype": (
        lambda: rnn.RNN(3, 4, dtype="float16"),
        ValueError,
        "dtype: expected float32 or float64 .*'float16'",
    ),
    "dtype in foreign byte order": (
        lambda: rnn.RNN(3, 4, dtype=">f4"),
        ValueError,
        "dtype: .*byte order, got '>f4'",
    ),
    "dtype is nonsense": (lambda: rnn.RNN(3, 4, dtype="floats"), TypeError, "dtype: .*got 'floats'"),
    "dtype is None": (lambda: rnn.RNN(3, 4, dtype=None), ValueError, "dtype: .*got None"),
    # options of layers
    "no layers": (lambda: rnn.LSTM(3, 4, 0), ValueError, "num_layers: expected an integer of at least 1, got 0"),
    "bidirectional": (lambda: rnn.LSTM(3, 4, 1, 1), TypeError, "bidirectional: expected True or False, got 1"),
    "reverse in both directions": (
        lambda: rnn.LSTM(3, 4, bidirectional=True, reverse=True),
        ValueError,
        "reverse: expected False in a bidirectional layer",
    ),
    "merge": (lambda: rnn.LSTM(3, 4, merge="max"), ValueError, "merge: expected one of concat, sum, got 'max'"),
    "dropout of 1": (lambda: rnn.LSTM(3, 4, dropout=1), ValueError, r"dropout: expected a number in \[0, 1\), got 1"),
    "recurrent_dropout is negative": (
        lambda: rnn.LSTM(3, 4, recurrent_dropout=-0.1),
        ValueError,
        "recurrent_dropout: .*got -0.1",
    ),
    "zoneout is NaN": (lambda: rnn.GRU(3, 4, zoneout=float("nan")), ValueError, "zoneout: .*got nan"),
    "zoneout of another cell": (
        lambda: rnn.GRU(3, 4, zoneout=(0.1, 0.2)),
        ValueError,
        "zoneout: expected one number, or one for each of 1 states, got 2",
    ),
    "zoneout of one state": (lambda: rnn.LSTM(3, 4, zoneout=(0.1, "a")), TypeError, r"zoneout\[1\]: .*got 'a'"),
    "peepholes": (lambda: rnn.LSTM(3, 4, peepholes="all"), TypeError, "peepholes: expected True or False"),
    "reset_after": (lambda: rnn.GRU(3, 4, reset_after=None), TypeError, "reset_after: expected True or False"),
    "forget_bias without the gate": (
        lambda: rnn.LSTM(3, 4, coupled=True, forget_bias=1),
        ValueError,
        "forget_bias: expected None in a coupled LSTM, which has no gate f, got 1",
    ),
    "forget_bias without biases": (
        lambda: rnn.LSTM(3, 4, bias=False, forget_bias=1),
        ValueError,
        "forget_bias: expected None without biases, got 1",
    ),
    "nonlinearity of an IndRNN": (
        lambda: rnn.IndRNN(3, 4, nonlinearity="sigmoid"),
        ValueError,
        "nonlinearity: expected one of tanh, relu, got 'sigmoid'",
    ),
    "state_dict of another layer": (
        lambda: LAYER.load_state_dict(rnn.LSTM(3, 4).state_dict()),
        ValueError,
        "state_dict: expected exactly the names .*bias_o, got",
    ),
    "state_dict of another size": (
        lambda: LAYER.load_state_dict(rnn.RNN(3, 5, output_size=2).state_dict()),
        ValueError,
        r"state_dict\['weight_ih_l0'\]: .*\(G=4, I=3\), got \(5, 3\)",
    ),
    "weights of another dtype": (
        lambda: LAYER.load_state_dict(rnn.RNN(3, 4, output_size=2, dtype="float64").state_dict()),
        TypeError,
        r"state_dict\['weight_ih_l0'\]: .*got dtype float64",
    ),
    "config of no layer": (
        lambda: rnn.Layer.from_weights({"layer": "Unknown", "input_size": 3, "hidden_size": 4}, {}),
        ValueError,
        "layer: expected one of .*LSTM.*got 'Unknown'",
    ),
    "config of another layer": (
        lambda: rnn.GRU.from_weights(LAYER.config(), LAYER.weights),
        ValueError,
        "config: expected that of a GRU, got that of a RNN",
    ),
    # forward
    "x is a list": (
        lambda: forward(X.tolist()),
        TypeError,
        r"x: expected a float32 array of shape \(T, N, I=3\), got list",
    ),
    "x is None": (lambda: forward(None), TypeError, "x: .*got NoneType"),
    "x is a number": (lambda: forward(1.5), TypeError, "x: .*got float"),
    "x is masked": (lambda: forward(np.ma.array(X)), TypeError, "x: .*got MaskedArray"),
    "x is float64": (
        lambda: forward(X.astype("f8")),
        TypeError,
        "x: expected a float32 array .*got dtype float64",
    ),
    "x is integer": (lambda: forward(X.astype("i4")), TypeError, "x: .*got dtype int32"),
    "x is complex": (lambda: forward(X.astype("c8")), TypeError, "x: .*got dtype complex64"),
    "x is of objects": (lambda: forward(X.astype(object)), TypeError, "x: .*got dtype object"),
    "x has foreign bytes": (lambda: forward(X.astype(">f4")), TypeError, "x: .*foreign byte order"),
    "x has rank 0": (lambda: forward(np.zeros((), F4)), ValueError, "x: .*got rank 0"),
    "x has rank 2": (lambda: forward(X[0]), ValueError, r"x: .*got rank 2, shape \(2, 3\)"),
    "x has rank 4": (lambda: forward(X[None]), ValueError, "x: .*got rank 4"),
    "x has other inputs": (lambda: forward(X[..., :2]), ValueError, r"x: .*\(T, N, I=3\), got \(5, 2, 2\)"),
    "x has 2^31 elements": (
        lambda: forward(huge(2**30, 1, 3)),
        OverflowError,
        r"x: .*2\^31.*\(1073741824, 1, 3\)",
    ),
    "x has no elements but 2^31 steps": (
        lambda: forward(huge(2**31, 0, 3)),
        OverflowError,
        "x: .*2147483648",
    ),
    "x has 2^60 elements": (lambda: forward(huge(2**30, 2**28, 3)), OverflowError, "x: expected fewer than"),
    "states of 2^31 elements": (
        lambda: forward(huge(2**29, 1, 3)),
        OverflowError,
        r"states or the output.*536870913",
    ),
    "state is float64": (
        lambda: forward(X, H0.astype("f8")),
        TypeError,
        "state: expected a float32 .*got dtype float64",
    ),
    "state has other lanes": (lambda: forward(X, H0[:1]), ValueError, r"state: .*\(N=2, H=4\), got \(1, 4\)"),
    "state has rank 3": (lambda: forward(X, H0[None]), ValueError, "state: .*got rank 3"),
    "two states for one": (lambda: forward(X, (H0, H0)), TypeError, "state: expected a float32 .*got tuple"),
    "one state for two": (
        lambda: lstm(H0),
        TypeError,
        r"state: expected a tuple of 2 arrays \(h, c\), got ndarray",
    ),
    "three states for two": (lambda: lstm((H0, H0, H0)), TypeError, r"state: .*\(h, c\), got 3 of them"),
    "a state is None": (lambda: lstm((H0, None)), TypeError, "state: c: expected a float32 .*got NoneType"),
    "c has other units": (lambda: lstm((H0, H0[:, :3])), ValueError, r"state: c: .*H=4\), got \(2, 3\)"),
    "states of one layer for two": (
        lambda: lstm((H0, H0), num_layers=2),
        ValueError,
        r"state: h: .*\(L=2, N=2, H=4\), got rank 2",
    ),
    # options of forward
    "segments of no steps": (lambda: forward(remat=0), ValueError, "remat: expected an integer of at least 1, got 0"),
    "remat is a number": (lambda: forward(remat=2.5), TypeError, "remat: expected an integer .*got 2.5"),
    "remat is None": (lambda: forward(remat=None), TypeError, "remat: .*got None"),
    "lengths are floats": (
        lambda: forward(lengths=[1.0, 2.0]),
        TypeError,
        r"lengths: expected 2 integers \(N=2\) from 0 to T=5, got dtype float64",
    ),
    "lengths are booleans": (lambda: forward(lengths=[True, False]), TypeError, "lengths: .*got dtype bool"),
    "a length too few": (lambda: forward(lengths=[1]), ValueError, r"lengths: .*got shape \(1,\)"),
    "one length for all": (lambda: forward(lengths=3), ValueError, r"lengths: .*got shape \(\)"),
    "a length past the end": (lambda: forward(lengths=[0, 6]), ValueError, "lengths: .*to T=5, got 0 to 6"),
    "a length of -1": (lambda: forward(lengths=[-1, 3]), ValueError, "lengths: .*got -1 to 3"),
    "a length of 2^32": (lambda: forward(lengths=[2**32, 3]), ValueError, "lengths: .*got 3 to 4294967296"),
    "reset is integer": (
        lambda: forward(reset=np.zeros((5, 2), int)),
        TypeError,
        r"reset: expected a bool array of shape \(T=5, N=2\), got dtype int64",
    ),
    "reset of another shape": (
        lambda: forward(reset=np.zeros((2, 5), bool)),
        ValueError,
        r"reset: .*got shape \(2, 5\)",
    ),
    # weights
    "a weight is missing": (
        lambda: LAYER_WITHOUT.forward(X),
        ValueError,
        "weights: expected exactly .*bias_o, got",
    ),
    "a weight too many": (
        lambda: with_weights(bias=H0),
        ValueError,
        "weights: expected exactly .*got .*bias",
    ),
    "a weight is transposed": (
        lambda: with_weights(weight_ih_l0=np.zeros((3, 4), F4)),
        ValueError,
        r"weights\['weight_ih_l0'\]: .*\(G=4, I=3\), got \(3, 4\)",
    ),
    "a weight is float64": (
        lambda: with_weights(bias_o=np.zeros(2)),
        TypeError,
        r"weights\['bias_o'\]: .*float64",
    ),
    "weights is a list": (
        lambda: LAYER_OF_LIST.forward(X),
        TypeError,
        "weights: expected a dict of arrays, got list",
    ),
    # bptt
    "d_output is float64": (lambda: bptt(D_OUTPUT.astype("f8")), TypeError, "d_output: .*got dtype float64"),
    "d_output is shorter": (
        lambda: bptt(D_OUTPUT[:4]),
        ValueError,
        r"d_output: .*\(T=5, N=2, O=2\), got \(4, 2, 2\)",
    ),
    "d_output is None": (lambda: bptt(None), TypeError, "d_output: .*got NoneType"),
    "d_state has other units": (
        lambda: bptt(d_state=D_STATE[:, :3]),
        ValueError,
        r"d_state: .*H=4\), got \(2, 3\)",
    ),
    "d_state of one state for two": (
        lambda: (layer := rnn.LSTM(3, 4)).bptt(layer.forward(X), np.zeros((5, 2, 4), F4), H0),
        TypeError,
        r"d_state: expected a tuple of 2 arrays \(h, c\), got ndarray",
    ),
    "run of another layer": (
        lambda: bptt(run=rnn.RNN(3, 4, output_size=2).forward(X)),
        ValueError,
        "run: expected a run of this",
    ),
    "run is its output": (lambda: bptt(run=D_OUTPUT), TypeError, "run: .*got ndarray"),
    # losses
    "mse of two shapes": (
        lambda: rnn.MSE()(X, X[:1]),
        ValueError,
        r"target: .*\(T=5, N=2, O=3\), got \(1, 2, 3\)",
    ),
    "mse of two dtypes": (
        lambda: rnn.MSE()(X, X.astype("f8")),
        TypeError,
        "target: .*float32.*got dtype float64",
    ),
    "mse of a list": (lambda: rnn.MSE()([1.0], X), TypeError, "output: .*got list"),
    "mse of integers": (lambda: rnn.MSE()(X.astype(int), X), TypeError, "output: .*got dtype int64"),
    "mse of rank 2": (lambda: rnn.MSE()(X[0], X[0]), ValueError, r"output: .*got shape \(2, 3\)"),
    "classes as floats": (
        lambda: rnn.SoftmaxCrossEntropy()(X, X),
        TypeError,
        "target: expected an integer .*float32",
    ),
    "classes of another shape": (
        lambda: rnn.SoftmaxCrossEntropy()(X, np.zeros((5, 3), int)),
        ValueError,
        r"target: .*\(5, 2\), got shape \(5, 3\)",
    ),
    "class too large": (
        lambda: rnn.SoftmaxCrossEntropy()(X, np.full((5, 2), 3)),
        ValueError,
        "target: expected classes from 0 to O - 1 = 2, got 3 to 3",
    ),
    "class negative": (
        lambda: rnn.SoftmaxCrossEntropy()(X, np.full((5, 2), -1)),
        ValueError,
        "target: .*got -1 to -1",
    ),
    # optimizers
    "lr is zero": (lambda: rnn.SGD(0), ValueError, r"lr: expected a number in \(0, inf\), got 0"),
    "lr is NaN": (lambda: rnn.Adam(float("nan")), ValueError, "lr: .*got nan"),
    "lr is infinite": (lambda: rnn.Adam(float("inf")), ValueError, "lr: .*got inf"),
    "lr is a string": (lambda: rnn.SGD("fast"), TypeError, "lr: .*got 'fast'"),
    "momentum of 1": (
        lambda: rnn.SGD(0.1, 1.0),
        ValueError,
        r"momentum: expected a number in \[0, 1\), got 1",
    ),
    "one beta": (lambda: rnn.Adam(0.1, betas=0.9), TypeError, "betas: expected two numbers, got 0.9"),
    "beta of 1": (lambda: rnn.Adam(0.1, betas=(0.9, 1)), ValueError, r"betas\[1\]: .*got 1"),
    "negative eps": (lambda: rnn.Adam(0.1, eps=-1e-8), ValueError, "eps: .*got -1e-08"),
    "max_norm of 0": (lambda: rnn.clip_norm({}, 0), ValueError, "max_norm: .*got 0"),
    # fit
    "no sequences": (lambda: fit(sequences=[]), ValueError, "sequences: expected at least one pair"),
    "sequences is an array": (
        lambda: fit(sequences=X),
        TypeError,
        "sequences: expected a list of pairs .*got ndarray",
    ),
    "a pair is a triple": (lambda: fit(sequences=[(X, X, X)]), TypeError, r"sequences\[0\]: expected a pair"),
    "an x in float64": (
        lambda: fit(sequences=[(X, D_OUTPUT), (X.astype("f8"), D_OUTPUT)]),
        TypeError,
        r"sequences\[1\]\[0\]: .*float64",
    ),
    "an x without lanes": (
        lambda: fit(sequences=[(X[:, :0], D_OUTPUT[:, :0])]),
        ValueError,
        "at least one .* lane",
    ),
    "a target too short": (
        lambda: fit(sequences=[(X, D_OUTPUT[1:])]),
        ValueError,
        r"sequences\[0\]\[1\]: .*\(5, 2\)",
    ),
    "a target of another width": (
        lambda: fit(sequences=[(X, X)]),
        ValueError,
        r"target: .*O=2\), got \(5, 2, 3\)",
    ),
    "negative epochs": (lambda: fit(epochs=-1), ValueError, "epochs: .*got -1"),
    "batch_size of 0": (
        lambda: fit(batch_size=0),
        ValueError,
        "batch_size: expected an integer of at least 1, got 0",
    ),
    "remat of 0 in fit": (lambda: fit(remat=0), ValueError, "remat: .*got 0"),
    "bptt_steps of 0": (lambda: fit(bptt_steps=0), ValueError, "bptt_steps: .*got 0"),
    "clip_norm of 0": (lambda: fit(clip_norm=0), ValueError, "clip_norm: .*got 0"),
    "patience alone": (lambda: fit(patience=3), ValueError, "patience: expected validation sequences"),
    "rng is a string": (lambda: fit(rng="a"), TypeError, "rng: .*got 'a'"),
    "resume from nothing": (lambda: fit(resume=True), ValueError, "resume: expected .* checkpoint"),
    "no such folder": (
        lambda: fit(checkpoint="/no/such/folder/file"),
        FileNotFoundError,
        "checkpoint: .*/no/such/folder",
    ),
    "metadata is no JSON": (lambda: fit(metadata={"a": X}), TypeError, "metadata: expected JSON values"),
    "validation is empty": (lambda: fit(validation=[]), ValueError, "validation: expected at least one pair"),
    "layer is an array": (
        lambda: rnn.fit(X, [], rnn.MSE(), rnn.SGD(0.1), epochs=1),
        TypeError,
        "layer: .*ndarray",
    ),
    "loss is a name": (lambda: fit(loss="mse"), TypeError, "loss: expected a function of .*got str"),
    # files
    "load of no file": (lambda: rnn.load("/no/such/file"), FileNotFoundError, "/no/such/file"),
    "load of a folder": (lambda: rnn.load("/"), IsADirectoryError, "'/'"),
    "load of a device": (
        lambda: rnn.load("/dev/zero"),
        rnn.CheckpointError,
        "/dev/zero: expected a regular file",
    ),
    "save of NaN": (
        lambda: rnn.save("unwritten", LAYER, metadata={"a": float("nan")}),
        ValueError,
        "metadata: expected JSON values",
    ),
    "save of a book": (
        lambda: rnn.save("unwritten", LAYER, metadata={"a": "b" * 2**18}),
        ValueError,
        "metadata: expected at most 262144 bytes of JSON, got 262153",
    ),
    "save of no layer": (lambda: rnn.save("unwritten", X), TypeError, "layer: expected a layer, got ndarray"),
    # backends
    "unknown backend": (
        lambda: rnn.backend.use("torch"),
        ValueError,
        "backend: expected one of halide, .*got 'torch'",
    ),
    "backend is a module": (lambda: rnn.backend.use(np), TypeError, "backend: expected a name .*got module"),
    "schedule of numpy": (
        lambda: rnn.backend.use("numpy", schedule="tuned"),
        ValueError,
        "schedule: .*'tuned'",
    ),
    "schedule is a number": (lambda: rnn.backend.use("numpy", schedule=3), TypeError, "schedule: .*got int"),
}

LAYER_WITHOUT = rnn.RNN(3, 4, output_size=2)
del LAYER_WITHOUT.weights["bias_o"]
LAYER_OF_LIST = rnn.RNN(3, 4, output_size=2)
LAYER_OF_LIST.weights = list(LAYER_OF_LIST.weights.values())  # type: ignore[assignment]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, kind, message = CASES[case]
    weights = {name: weight.copy() for name, weight in LAYER.weights.items()}
    with pytest.raises(kind, match=message):
        call()
    assert not list(tmp_path.iterdir())
    for name, weight in weights.items():
        np.testing.assert_array_equal(LAYER.weights[name], weight)
    LAYER.forward(X)  # and the next good call works
