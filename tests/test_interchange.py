"""Weights to and from PyTorch, Keras and ONNX, and ONNX models run by the layers."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_operators
import pytest
from numpy.typing import NDArray

import rnn
import rnn.interchange
from rnn import cells
from rnn.interchange import NotCarried, _layers, keras, pytorch
from rnn.interchange._cells import ACTIVATIONS, Activation, NodeCell, equations
from rnn.layers import layer_class

onnx = pytest.importorskip("onnx")
import rnn.interchange.onnx as from_to_onnx  # noqa: E402
import rnn.onnx  # noqa: E402
from rnn.onnx import Backend  # noqa: E402

Array = NDArray[Any]

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_sigmoid": ("RNN", {"nonlinearity": "sigmoid"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {"peepholes": False, "coupled": False}),
    "lstm_peephole": ("LSTM", {"peepholes": True, "coupled": False}),
    "lstm_coupled": ("LSTM", {"peepholes": False, "coupled": True}),
    "lstm_peephole_coupled": ("LSTM", {"peepholes": True, "coupled": True}),
    "gru": ("GRU", {"reset_after": True}),
    "gru_reset_before": ("GRU", {"reset_after": False}),
}
STACKS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "no bias": {"bias": False},
    "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "two layers, both directions, readout": {"num_layers": 2, "bidirectional": True, "output_size": 2},
    "readout, no bias": {"output_size": 2, "bias": False},
    "float64": {"dtype": "float64", "num_layers": 3},
}
SUMMED = {"num_layers": 2, "bidirectional": True, "merge": "sum", "output_size": 3}


@pytest.fixture(autouse=True)
def _own_cells_in_numpy() -> Iterator[None]:
    """Nodes with activations of their own are cells of their own: hundreds here, which nobody wants to compile. What is
    built in runs on the kernels in test_cells.py."""
    with rnn.backend.using("numpy"):
        yield
    _layers.own_cell.cache_clear()


def make(cell: str, **sizes: Any) -> Any:
    """A layer with random weights; its input is 3 wide and its state 4, unless said otherwise."""
    name, options = OPTIONS[cell]
    return layer_class(name)(**{"input_size": 3, "hidden_size": 4, "seed": 1, **options, **sizes})


def same(one: Any, other: Any) -> None:
    """Assert that two layers are of one kind, with the same bits."""
    assert type(one) is type(other)
    assert one.config() == other.config()
    assert list(one.weights) == list(other.weights)
    for name, array in one.weights.items():
        assert array.dtype == other.weights[name].dtype
        np.testing.assert_array_equal(array, other.weights[name], err_msg=name)


def inputs(rng: np.random.Generator, T: int = 5, N: int = 3, I: int = 3, dtype: str = "float32") -> Array:
    return rng.standard_normal((T, N, I)).astype(dtype)


# ---- PyTorch


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("cell", pytorch.CELLS)
def test_pytorch_there_and_back_is_the_same_layer(cell: str, stack: dict[str, Any]) -> None:
    layer = make(cell, **stack)
    state = pytorch.to_state_dict(layer, prefix="a.", readout_prefix="b." if "output_size" in stack else None)
    back = pytorch.from_state_dict(
        cell, state | {"c.weight": 1}, prefix="a.", readout_prefix="b." if "output_size" in stack else None
    )
    same(layer, back)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        assert not np.shares_memory(state[f"a.{name}"], layer.weights[name])
        assert not np.shares_memory(state[f"a.{name}"], back.weights[name])


@pytest.mark.parametrize("cell", pytorch.CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_pytorch_loads_what_we_give_and_computes_the_same(cell: str, bias: bool, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    sizes: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "bias": bias, "dtype": "float64"}
    layer = make(cell, **sizes)
    sizes["dtype"] = torch.float64
    if cell.startswith("rnn_"):
        module = torch.nn.RNN(3, 4, nonlinearity=cell.removeprefix("rnn_"), **sizes)
    else:
        module = getattr(torch.nn, cell.upper())(3, 4, **sizes)
    state = pytorch.to_state_dict(layer)
    assert list(state) == list(module.state_dict())
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    same(layer, pytorch.from_state_dict(cell, module.state_dict()))
    same(layer, pytorch.from_state_dict(cell, dict(module.named_parameters())))

    x = inputs(rng, dtype="float64")
    with torch.no_grad():
        output, last = module(torch.from_numpy(x))
    run = layer.forward(x)
    np.testing.assert_allclose(run.output, output.numpy(), rtol=1e-12, atol=1e-14)
    for ours, theirs in zip(*([a] if cell != "lstm" else a for a in (run.state, last)), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("cell", "sizes", "message"),
    [
        ("rnn_sigmoid", {}, "PyTorch has no rnn_sigmoid"),
        ("lstm_peephole", {}, "PyTorch has no lstm_peephole"),
        ("lstm_coupled", {}, "PyTorch has no lstm_coupled"),
        ("gru_reset_before", {}, "PyTorch has no gru_reset_before"),
        ("lstm", {"bidirectional": True, "merge": "sum"}, "expected merge='concat'.*got merge='sum'"),
        ("lstm", {"reverse": True}, "only goes backwards"),
        ("lstm", {"output_size": 1}, "readout_prefix"),
        ("gru", {"zoneout": 0.1}, "expected zoneout=0.*got 0.1"),
    ],
)
def test_pytorch_has_no_word_for(cell: str, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(NotCarried, match=message):
        pytorch.to_state_dict(make(cell, **sizes))


def test_other_libraries_have_no_word_for_a_minimal_gated_unit() -> None:
    layer = rnn.MGU(3, 4)
    for there, library in (
        (pytorch.to_state_dict, "PyTorch"),
        (keras.to_weights, "Keras"),
        (rnn.onnx.to_model, "ONNX"),
    ):
        with pytest.raises(NotCarried, match=f"{library} has no MGU"):
            there(layer)
        with pytest.raises(TypeError, match="layer: expected a layer, got dict"):
            there({})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight_hr_l0": np.zeros((2, 4))}, NotCarried, r"state_dict\['weight_hr_l0'\].*proj_size"),
        ({"weight_ih_l2": np.zeros((16, 4), np.float32)}, ValueError, "expected 'weight_ih_l1' beside"),
        ({"extra": np.zeros(3)}, ValueError, r"state_dict\['extra'\]: expected names like"),
        ({"bias_hh_l0": None}, TypeError, r"state_dict\['bias_hh_l0'\]: expected a float32 or float64 array"),
        ({"bias_hh_l0": np.zeros(16, np.float16)}, TypeError, "got dtype float16"),
        ({"bias_hh_l0": np.zeros(16)}, TypeError, r"'bias_hh_l0'\]: expected float32 like"),
        ({"bias_hh_l0": np.zeros(4, np.float32)}, ValueError, r"expected shape \(16,\) \(G\*H\), got \(4,\)"),
        ({"weight_hh_l0": np.zeros((16, 5), np.float32)}, ValueError, r"expected shape \(16, 4\)"),
        ({"weight_ih_l0": np.zeros((15, 3), np.float32)}, ValueError, r"shape \(G\*H, I\) with G=4, got \(15, 3\)"),
        ({"weight_ih_l0_reverse": np.zeros((16, 3), np.float32)}, ValueError, "expected 'weight_hh_l0_reverse'"),
    ],
)
def test_a_state_dict_that_does_not_fit(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pytorch.from_state_dict("lstm", pytorch.to_state_dict(make("lstm")) | change)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("lstm_peephole", {}), NotCarried, "cell: .*PyTorch has no lstm_peephole"),
        (("mgu", {}), NotCarried, "PyTorch has no mgu"),
        (("LSTM", {}), ValueError, "cell: expected one of rnn_tanh, rnn_relu, lstm, gru, got 'LSTM'"),
        (("lstm", []), TypeError, "state_dict: expected a mapping"),
        (("lstm", {}), ValueError, "state_dict: expected names like weight_ih_l0"),
        (("lstm", {"weight_hh_l0": np.zeros((16, 4))}), ValueError, "expected weight_ih_l0, got 'weight_hh_l0'"),
    ],
)
def test_arguments_of_from_state_dict(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pytorch.from_state_dict(*arguments)


def test_a_readout_alone_in_having_a_bias_or_none(rng: np.random.Generator) -> None:
    state = pytorch.to_state_dict(make("gru", bias=False)) | {"out.weight": np.ones((2, 4), np.float32)}
    assert pytorch.from_state_dict("gru", state, readout_prefix="out.").config()["bias"] is False
    layer: Any = pytorch.from_state_dict("gru", state | {"out.bias": np.ones(2, np.float32)}, readout_prefix="out.")
    assert layer.config()["bias"] is True
    assert not layer.weights["bias_ih_l0"].any()
    assert layer.weights["bias_o"].all()
    with pytest.raises(ValueError, match=r"'out.weight'\]: expected shape \(2, 4\) \(O, D\*H\), got \(2, 5\)"):
        pytorch.from_state_dict("gru", state | {"out.weight": np.ones((2, 5), np.float32)}, readout_prefix="out.")
    with pytest.raises(ValueError, match=r"expected the readout's 'o\.weight'"):
        pytorch.from_state_dict("gru", pytorch.to_state_dict(make("gru")), readout_prefix="o.")


# ---- Keras


def keras_forward(cell: str, weights: list[Array], x: Array) -> Array:
    """One Keras layer, return_sequences=True, as its documentation has it. x (T, N, I) -> (T, N, H)."""
    kernel, recurrent, *rest = weights
    H = len(recurrent)
    bias = rest[0] if rest else np.zeros((2, 3 * H) if cell == "gru" else kernel.shape[1])
    input_bias, recurrent_bias = bias if cell == "gru" else (bias, 0 * bias)

    def columns(array: Array) -> list[Array]:
        return np.split(array, array.shape[-1] // H, axis=-1)

    h = c = np.zeros((x.shape[1], H))
    outputs = []
    for x_t in x:
        inner = columns(x_t @ kernel + input_bias)
        if cell == "lstm":
            i, f, g, o = (a + b for a, b in zip(inner, columns(h @ recurrent), strict=True))
            c = 1 / (1 + np.exp(-f)) * c + 1 / (1 + np.exp(-i)) * np.tanh(g)
            h = 1 / (1 + np.exp(-o)) * np.tanh(c)
        elif cell.startswith("gru"):
            across = columns(h @ recurrent + recurrent_bias)
            z, r = (1 / (1 + np.exp(-inner[k] - across[k])) for k in (0, 1))
            made = r * across[2] if cell == "gru" else (r * h) @ columns(recurrent)[2]
            h = z * h + (1 - z) * np.tanh(inner[2] + made)
        else:
            act: dict[str, Any] = {
                "tanh": np.tanh,
                "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
                "relu": lambda v: np.maximum(v, 0),
            }
            h = act[cell.removeprefix("rnn_")](inner[0] + h @ recurrent)
        outputs.append(h)
    return np.stack(outputs)


KERAS_STACKS = {name: stack | {"dtype": "float64"} for name, stack in STACKS.items()} | {
    "summed": SUMMED | {"dtype": "float64"},
    "backwards": {"reverse": True, "dtype": "float64"},
}


@pytest.mark.parametrize("stack", KERAS_STACKS.values(), ids=KERAS_STACKS)
@pytest.mark.parametrize("cell", keras.CELLS)
def test_keras_computes_the_same(cell: str, stack: dict[str, Any], rng: np.random.Generator) -> None:
    layer = make(cell, **stack)
    weights, dense = keras.to_weights(layer)
    x = want = inputs(rng, dtype="float64")
    each = 3 if stack.get("bias", True) else 2
    for arrays in weights:
        assert len(arrays) == each * (1 + stack.get("bidirectional", False))
        parts = [keras_forward(cell, arrays[:each], want[::-1] if "reverse" in stack else want)]
        if "reverse" in stack:
            parts = [parts[0][::-1]]
        if len(arrays) > each:
            parts.append(keras_forward(cell, arrays[each:], want[::-1])[::-1])
        want = np.concatenate(parts, axis=2) if stack.get("merge") != "sum" else parts[0] + parts[1]
    if dense is not None:
        want = want @ dense[0] + (dense[1] if len(dense) > 1 else 0)
    np.testing.assert_allclose(layer.forward(x).output, want, rtol=1e-12, atol=1e-14)

    # back: the function is the same, and from then on so are the bits
    options = {"merge": stack.get("merge", "concat"), "reverse": stack.get("reverse", False), "dense": dense}
    back: Any = keras.from_weights(cell, weights, **options)
    np.testing.assert_allclose(back.forward(x).output, want, rtol=1e-12, atol=1e-14)
    assert back.config() == layer.config()
    again, again_dense = keras.to_weights(back)
    for one, other in zip([*weights, dense or []], [*again, again_dense or []], strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    same(back, keras.from_weights(cell, again, **options))
    if cell == "gru":
        same(layer, back)  # both biases stay apart


@pytest.mark.parametrize(
    ("cell", "sizes", "message"),
    [
        ("lstm_peephole", {}, "Keras has no lstm_peephole"),
        ("lstm_coupled", {}, "Keras has no lstm_coupled"),
        ("lstm", {"reverse": True, "num_layers": 2}, "expected num_layers=1 with reverse"),
        ("lstm", {"zoneout": 0.5}, "zoneout"),
    ],
)
def test_keras_has_no_word_for(cell: str, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(NotCarried, match=message):
        keras.to_weights(make(cell, **sizes))


def test_keras_weights_that_do_not_fit() -> None:
    (one,), _ = keras.to_weights(make("gru"))
    before = keras.to_weights(make("gru_reset_before")).stack
    cases: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (ValueError, r"stack\[0\]\[2\], the bias of 'gru': expected shape \(2, 12\) .*got \(12,\)", before, {}),
        (ValueError, "expected 2 or 3 arrays a layer, .*got 3, 2", [one, one[:2]], {}),
        (
            ValueError,
            r"stack\[1\]\[0\], the kernel: expected shape \(4, 12\) \(I, G\*H\), got \(3, 12\)",
            [one, one],
            {},
        ),
        (
            ValueError,
            r"stack\[0\]\[1\], the recurrent kernel: expected shape \(4, 12\)",
            [[one[0], one[0], one[2]]],
            {},
        ),
        (TypeError, r"stack\[0\]\[1\]: expected float32 like", [[one[0], one[1].astype("float64"), one[2]]], {}),
        (TypeError, r"stack: expected a list of lists", one, {}),
        (TypeError, r"stack: expected a list of lists", [], {}),
        (NotCarried, "merge: expected 'concat' or 'sum'.*got 'mul'", [one + one], {"merge": "mul"}),
        (NotCarried, "reverse: expected one layer of one direction", [one + one], {"reverse": True}),
        (ValueError, r"dense: expected \[kernel\]", [one], {"dense": []}),
        (ValueError, r"dense\[0\], the kernel: expected shape \(4, 2\)", [one], {"dense": [np.ones((3, 2), "f")]}),
        (ValueError, r"dense\[1\]", [one], {"dense": [np.ones((4, 2), "f"), np.ones(3, "f")]}),
    ]
    for error, message, stack, options in cases:
        with pytest.raises(error, match=message):
            keras.from_weights("gru", stack, **options)
    with pytest.raises(NotCarried, match="Keras has no lstm_peephole"):
        keras.from_weights("lstm_peephole", [one])


# ---- ONNX: layers to models and back

ONNX_STACKS = STACKS | {"summed": SUMMED, "backwards": {"reverse": True, "num_layers": 2}}


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("stack", ONNX_STACKS.values(), ids=ONNX_STACKS)
@pytest.mark.parametrize("cell", OPTIONS)
def test_onnx_there_and_back_is_the_same_layer(
    cell: str, stack: dict[str, Any], layout: int, rng: np.random.Generator
) -> None:
    layer = make(cell, **stack)
    plain = rnn.onnx.to_model(layer, layout=layout)
    (back,) = rnn.onnx.from_model(plain)
    same(layer, back)

    model = rnn.onnx.to_model(layer, lengths=True, states=True, layout=layout)
    (back,) = rnn.onnx.from_model(model)
    same(layer, back)

    dtype = stack.get("dtype", "float32")
    x, lengths = inputs(rng, dtype=dtype), np.array([2, 5, 0], np.int32)
    count = stack.get("num_layers", 1) * (1 + stack.get("bidirectional", False))
    states = [rng.standard_normal((count, 3, 4)).astype(dtype) for _ in range(1 + ("lstm" in cell))]
    ours = [state if count > 1 else state[0] for state in states]
    run = layer.forward(x, tuple(ours) if "lstm" in cell else ours[0], lengths=lengths)
    want = [run.output, *(s.reshape(count, 3, 4) for s in (run.state if "lstm" in cell else [run.state]))]
    feeds = [x, *states]
    if layout:
        feeds, want = ([a.swapaxes(0, 1) for a in arrays] for arrays in (feeds, want))
    got = Backend.run_model(model, [feeds[0], lengths, *feeds[1:]])
    shape = want[0].shape
    if "output_size" in stack:  # past a row's end, where a layer puts out 0, the model's readout is its bias
        inside = np.arange(len(x))[:, None] < lengths
        inside = inside.T if layout else inside
        got, want = (got[0][inside], *got[1:]), [want[0][inside], *want[1:]]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert Backend.prepare(plain).run(feeds[0])["output"].shape == shape  # type: ignore[call-overload]


@pytest.mark.parametrize("stack", [name for name in ONNX_STACKS if name != "float64"])  # it has none of that
@pytest.mark.parametrize("cell", OPTIONS)
def test_onnxruntime_runs_what_we_write(cell: str, stack: str, rng: np.random.Generator) -> None:
    runtime = pytest.importorskip("onnxruntime")
    layer = make(cell, **ONNX_STACKS[stack])
    x, lengths = inputs(rng), np.array([2, 5, 3], np.int32)
    model = rnn.onnx.to_model(layer, lengths=True)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x, "lengths": lengths})
    if "output_size" in ONNX_STACKS[stack]:  # a readout of the zeros past the end
        alive = np.arange(5)[:, None] < lengths
        want = np.where(alive[:, :, None], want, 0)
        got = np.where(alive[:, :, None], layer.forward(x, lengths=lengths).output, 0)
    else:
        got = layer.forward(x, lengths=lengths).output
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


REFERENCED = ("rnn_tanh", "lstm", "lstm_peephole", "gru", "gru_reset_before")
"""Where onnx.reference runs the operator. It passes over `sequence_lens`, `input_forget` and `clip`, says nothing, and
knows no other activations."""


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("stack", ONNX_STACKS.values(), ids=ONNX_STACKS)
@pytest.mark.parametrize("cell", REFERENCED)
def test_onnx_s_reference_runs_what_we_write(
    cell: str, stack: dict[str, Any], layout: int, rng: np.random.Generator
) -> None:
    from onnx.reference import ReferenceEvaluator

    layer, dtype = make(cell, **stack), stack.get("dtype", "float32")
    model = rnn.onnx.to_model(layer, states=True, layout=layout)
    count, lstm = stack.get("num_layers", 1) * (1 + stack.get("bidirectional", False)), "lstm" in cell
    feeds = {"x": inputs(rng, dtype=dtype)}
    feeds |= {name: rng.standard_normal((count, 3, 4)).astype(dtype) for name in ("h0", "c0")[: 1 + lstm]}
    states = [feeds[name] if count > 1 else feeds[name][0] for name in feeds if name != "x"]
    run = layer.forward(feeds["x"], tuple(states) if lstm else states[0])
    want = [run.output, *(state.reshape(count, 3, 4) for state in (run.state if lstm else [run.state]))]
    if layout:
        feeds, want = {name: a.swapaxes(0, 1) for name, a in feeds.items()}, [a.swapaxes(0, 1) for a in want]
    for ours, theirs in zip(want, ReferenceEvaluator(model).run(None, feeds), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the exporter, about itself
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_what_pytorch_exports_runs_and_becomes_a_layer(
    kind: str, layers: int, batch_first: bool, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    import io

    both = layers > 1
    module = getattr(torch.nn, kind)(3, 4, num_layers=layers, bidirectional=both, batch_first=batch_first)
    x, file = torch.from_numpy(inputs(rng)), io.BytesIO()
    names: dict[str, Any] = {"input_names": ["x"], "dynamic_axes": {"x": {0: "a", 1: "b"}}, "opset_version": 17}
    torch.onnx.export(module, (x,), file, dynamo=False, **names)
    model = onnx.load_from_string(file.getvalue())
    x = torch.from_numpy(inputs(rng, T=6, N=2))
    with torch.no_grad():
        output, last = module(x)
    want = [output, *(last if kind == "LSTM" else [last])]
    for ours, theirs in zip(Backend.run_model(model, [x.numpy()]), want, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)
    (layer,) = rnn.onnx.from_model(model)
    cell = {"RNN": "rnn_tanh", "LSTM": "lstm", "GRU": "gru"}[kind]
    same(layer, pytorch.from_state_dict(cell, module.state_dict()))


def chain(*nodes: Any, outputs: tuple[str, ...] = ("Y",), extra: dict[str, Array] | None = None, I: int = 3) -> Any:
    """A model of these nodes over X (T, N, I), with weights W, R for an LSTM of 4 units."""
    rng = np.random.default_rng(3)
    arrays = {"W": (1, 16, I), "R": (1, 16, 4), "W1": (1, 16, 4), "W2": (2, 16, I), "R2": (2, 16, 4)}
    constants = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()} | (extra or {})
    used = {name for node in nodes for name in node.input}
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        list(nodes),
        "chain",
        [value("X", 1, ["T", "N", I])] + [value(name, 1, None) for name in ("V", "H0") if name in used],
        [value(name, 1, None) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """A node, its inputs and outputs as words; _ is one left out."""
    split = ([("" if name == "_" else name) for name in names.split()] for names in (inputs, outputs))
    return onnx.helper.make_node(op, *split, name=f"my {op}", **attributes)


AXES: dict[str, Array] = {
    "one": np.array([1], np.int64),
    "flat": np.array([0, 0, -1], np.int64),
    "M": np.ones((4, 2), np.float32),
}


def test_unlike_nodes_become_layers_of_their_own() -> None:
    model = chain(
        node("LSTM", "X W R", "Y1", hidden_size=4),
        node("Squeeze", "Y1 one", "S1"),
        node("LSTM", "S1 W1 R", "Y2", hidden_size=4, direction="reverse"),
        node("Squeeze", "Y2 one", "S2"),
        node("MatMul", "S2 M", "Y"),
        extra=AXES,
    )
    one, two = rnn.onnx.from_model(model)
    assert (one.config()["reverse"], two.config()["reverse"], two.config()["output_size"]) == (False, True, 2)
    x = inputs(np.random.default_rng(0))
    np.testing.assert_allclose(
        Backend.run_model(model, [x])[0], two.forward(one.forward(x).output).output, rtol=1e-5, atol=1e-6
    )


def test_nodes_with_other_lengths_are_layers_of_their_own() -> None:
    nodes = [node("LSTM", "X W R _ V", "Y1"), node("Squeeze", "Y1 one", "S1"), node("LSTM", "S1 W1 R", "Y")]
    assert len(rnn.onnx.from_model(chain(*nodes, extra=AXES))) == 2
    nodes[0].input[4] = ""
    (layer,) = rnn.onnx.from_model(chain(*nodes, extra=AXES))
    assert layer.config()["num_layers"] == 2


def test_rows_of_a_forget_gate_that_is_not_there_are_zero() -> None:
    model = rnn.onnx.to_model(make("lstm_peephole_coupled"))
    written = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name in ("W_l0", "R_l0", "B_l0", "P_l0"):
        i, _, f, *_ = np.split(written[name], written[name].shape[1] // 4, axis=1)
        assert i.all()
        assert not f.any()


def test_a_node_with_clip_becomes_a_layer_of_its_own_cell_and_a_node_again() -> None:
    attributes: dict[str, Any] = {"activations": ["HardSigmoid", "Tanh", "Elu"], "activation_alpha": [0.3], "clip": 0.3}
    model = chain(node("LSTM", "X W R", "Y", hidden_size=4, **attributes))
    (layer,) = rnn.onnx.from_model(model)
    written = rnn.onnx.to_model(layer)
    (back,) = rnn.onnx.from_model(written)
    same(layer, back)
    (again,) = (attributes_of(one) for one in written.graph.node if one.op_type == "LSTM")
    assert again["activations"] == attributes["activations"]
    assert np.float32(again["clip"]) == np.float32(0.3)
    for there in (pytorch.to_state_dict, keras.to_weights):
        with pytest.raises(NotCarried, match="has no OnnxLSTM"):
            there(layer)
    x = inputs(np.random.default_rng(0))
    (y,) = Backend.run_model(model, [x])
    np.testing.assert_allclose(layer.forward(x).output, y[:, 0], rtol=1e-6)
    (plain,) = rnn.onnx.from_model(chain(node("LSTM", "X W R", "Y", hidden_size=4)))
    assert np.abs(plain.forward(x).output - y[:, 0]).max() > 0.01


LSTM_NODE = ("LSTM", "X W R", "Y1")
MIXED = ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Relu", "Tanh"]


@pytest.mark.parametrize(
    ("nodes", "outputs", "message"),
    [
        ([("LSTM", "X V R", "Y")], "Y", "LSTM node 'my LSTM': W: expected a constant, 'V' isn't one"),
        ([("LSTM", "X W R _ _ C0", "Y")], "Y", "initial_h: expected an input of the graph or zeros"),
        ([("LSTM", "X W R _ L", "Y")], "Y", "sequence_lens: expected an input of the graph"),
        ([LSTM_NODE, ("Squeeze", "Y1 one", "S"), ("LSTM", "S W1 R", "Y")], "Y S", "output 'S': expected the last"),
        ([LSTM_NODE, ("LSTM", "X W R", "Y")], "Y", "X: expected the output of the recurrent node before it"),
        (
            [LSTM_NODE, ("Squeeze", "Y1 one", "S"), ("LSTM", "S W1 R", "Y", {"layout": 1})],
            "Y",
            "X: expected the output",
        ),
        ([("Split", "X", "A B", {"axis": 2}), ("LSTM", "A W R", "Y")], "Y", "X: expected the output"),
        ([("Transpose", "X", "A", {"perm": [2, 1, 0]}), ("LSTM", "A W R", "Y")], "Y", "Transpose node"),
        ([LSTM_NODE, ("Add", "Y1 M", "Y")], "Y", "Add node 'my Add': expected only what joins"),
        ([LSTM_NODE, ("Transpose", "Y1", "Y", {"perm": [0, 1, 3, 2]})], "Y", "Transpose node 'my Transpose'"),
        ([LSTM_NODE, ("Reshape", "Y1 flat", "Y")], "Y", "Reshape node 'my Reshape'"),
        ([("LSTM", "X W R", "_ H"), ("MatMul", "H M", "Y")], "Y", "MatMul node 'my MatMul'"),
        ([("LSTM", "X W2 R2", "Y", {"direction": "bidirectional", "activations": MIXED})], "Y", "activations: .* both"),
    ],
)
def test_models_that_are_no_layers(nodes: Any, outputs: str, message: str) -> None:
    made = [node(*parts[:3], **(parts[3] if len(parts) > 3 else {})) for parts in nodes]
    extra = AXES | {"C0": np.ones((1, 2, 4), np.float32), "L": np.ones(2, np.int32)}
    with pytest.raises(NotCarried, match=message):
        rnn.onnx.from_model(chain(*made, outputs=tuple(outputs.split()), extra=extra))


def test_zoneout_and_layouts_that_are_none() -> None:
    with pytest.raises(NotCarried, match=r"ONNX has no zoneout, got 0\.1"):
        rnn.onnx.to_model(make("lstm", zoneout=0.1))
    with pytest.raises(ValueError, match="layout: expected 0 or 1, got 2"):
        rnn.onnx.to_model(make("lstm"), layout=2)
    with pytest.raises(TypeError, match=r"model: expected an onnx\.ModelProto, got bytes"):
        rnn.onnx.from_model(b"")  # type: ignore[arg-type]


# ---- ONNX: the backend


def test_onnx_s_own_tests_of_the_operators() -> None:
    """onnx.backend.test makes its cases when it is imported, all two thousand of them, with some noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnx.backend.test

        runner = onnx.backend.test.BackendTest(Backend, __name__).include(r"(gru|lstm|rnn).*_cpu$")
        cases = runner.tests
    names = [name for name in dir(cases) if re.search(r"(gru|lstm|rnn).*_cpu$", name)]
    assert len(names) >= 18
    for name in names:
        getattr(cases(name), name)()


CONSUMED = [
    ("Relu", 0, 0),
    ("Tanh", 0, 0),
    ("Sigmoid", 0, 0),
    ("Affine", 2, 2),
    ("LeakyRelu", 1, 0),
    ("ThresholdedRelu", 2, 0),
    ("ScaledTanh", 2, 2),
    ("HardSigmoid", 1, 1),
    ("Elu", 1, 0),
    ("Softsign", 0, 0),
    ("Softplus", 0, 0),
]
"""Activations, and whether they take alpha and beta: 2, a value must be given; 1, there is a default that all share."""


def random_node(rng: np.random.Generator, layouts: tuple[int, ...] = (0, 1)) -> tuple[Any, dict[str, Array]]:
    """A node with random attributes, inputs left out and outputs unnamed, and its inputs."""
    op = str(rng.choice(["RNN", "LSTM", "GRU"]))
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    D, G = 1 + (direction == "bidirectional"), {"RNN": 1, "LSTM": 4, "GRU": 3}[op]
    T, N, I, H = (int(rng.integers(1, top)) for top in (7, 5, 6, 6))
    layout = int(rng.choice(layouts))
    attributes: dict[str, Any] = {"direction": direction}
    if layouts == (0,) or rng.random() < 0.8:  # onnxruntime must have it
        attributes["hidden_size"] = H
    if layout or rng.random() < 0.2:
        attributes["layout"] = layout
    if rng.random() < 0.4:
        attributes["clip"] = float(rng.uniform(0.05, 1.5))
    if op == "LSTM" and rng.random() < 0.4:
        attributes["input_forget"] = int(rng.integers(2))
    if op == "GRU" and rng.random() < 0.6:
        attributes["linear_before_reset"] = int(rng.integers(2))
    if rng.random() < 0.6:
        functions = [CONSUMED[k] for k in rng.integers(len(CONSUMED), size=D * len(onnx_operators.DEFAULTS[op]))]
        attributes["activations"] = [name for name, _, _ in functions]
        for k, name in ((1, "activation_alpha"), (2, "activation_beta")):
            takers = [kind[k] for kind in functions if kind[k]]
            while takers and takers[-1] == 1 and rng.random() < 0.5:
                takers.pop()  # the default is used
            if takers:
                attributes[name] = [float(value) for value in rng.uniform(0.1, 0.9, len(takers))]
    state = (N, D, H) if layout else (D, N, H)
    shapes: dict[str, tuple[int, ...]] = {
        "X": (N, T, I) if layout else (T, N, I),
        "W": (D, G * H, I),
        "R": (D, G * H, H),
    }
    optional: dict[str, tuple[int, ...]] = {"B": (D, 2 * G * H), "initial_h": state}
    if op == "LSTM":
        optional |= {"initial_c": state, "P": (D, 3 * H)}
    shapes |= {name: shape for name, shape in optional.items() if rng.random() < 0.5}
    given: dict[str, Array] = {n: rng.uniform(-0.9, 0.9, shape).astype(np.float32) for n, shape in shapes.items()}
    if rng.random() < 0.5:
        given["sequence_lens"] = rng.integers(0, T + 1, N).astype(np.int32)
    formal = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    names = [name if name in given else "" for name in formal]
    while not names[-1]:
        names.pop()
    outputs = [name if rng.random() < 0.7 else "" for name in ("Y", "Y_h", "Y_c")[: 2 + (op == "LSTM")]]
    while outputs and not outputs[-1]:
        outputs.pop()
    return onnx.helper.make_node(op, names, outputs or ["Y"], **attributes), given


def attributes_of(node: Any) -> dict[str, Any]:
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    values = {n: v.decode() if isinstance(v, bytes) else v for n, v in values.items()}
    return {n: [e.decode() for e in v] if n == "activations" else v for n, v in values.items()}


@pytest.mark.parametrize("seed", range(60))
def test_random_attributes_against_the_operators_text(seed: int) -> None:
    made, given = random_node(np.random.default_rng(seed))
    want = onnx_operators.run(made.op_type, given, attributes_of(made))
    got = Backend.run_node(made, [given.get(name) for name in made.input])
    names = [name for name in made.output if name]
    assert len(got) == len(names)
    for name, array in zip(names, got, strict=True):
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, want[name], rtol=1e-4, atol=1e-5, err_msg=f"{name}\n{made}")
    doubles = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in given.items()}
    for name, array in zip(names, Backend.run_node(made, doubles), strict=True):
        assert array.dtype == np.float64
        np.testing.assert_allclose(array, want[name], rtol=1e-11, atol=1e-12, err_msg=f"{name}\n{made}")


@pytest.mark.parametrize("seed", range(60))
def test_random_attributes_against_onnxruntime(seed: int) -> None:
    runtime = pytest.importorskip("onnxruntime")
    made, given = random_node(np.random.default_rng(1000 + seed), layouts=(0,))  # it has no other
    value = onnx.helper.make_tensor_value_info
    named = [name for name in made.input if name]
    outputs = [name for name in made.output if name]
    kinds = {np.dtype(np.float32): 1, np.dtype(np.int32): 6}
    graph = onnx.helper.make_graph(
        [made],
        "one",
        [value(name, kinds[given[name].dtype], given[name].shape) for name in named],
        [value(name, 1, None) for name in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want = session.run(None, given)
    got = Backend.run_model(model, given)
    empty = given.get("sequence_lens", np.ones(1)) == 0
    for name, ours, theirs in zip(outputs, got, want, strict=True):
        if name != "Y" and empty.any():  # its state after no steps is 0, whatever it was before
            ours, theirs = ours[:, ~empty], theirs[:, ~empty]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=f"{name}\n{made}")


def test_equations_of_nodes_are_those_of_our_cells_and_use_every_gate() -> None:
    for name in OPTIONS:
        made = cells.CellEquations(name, equations(NodeCell.named(name), cells)())
        assert made.digest == cells.BUILT_IN[name].digest
        assert NodeCell.named(name).name == name
    seen = set()
    for op, count in (("RNN", 1), ("LSTM", 3), ("GRU", 2)):
        for name, formula in ACTIVATIONS.items():
            for number in (0.0, 0.5) if formula.takes else (0.0,):
                cell = NodeCell(op, (Activation(name, number, number),) * count, clip=1.0)
                made = cells.CellEquations(op, equations(cell, cells)())
                assert "".join(made.plain.inputs) == "".join(made.plain.hidden) == cell.gates
                seen.add(made.digest)
    assert len(seen) == 3 * (len(ACTIVATIONS) + sum(bool(formula.takes) for formula in ACTIVATIONS.values()))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_halves_are_computed_in_float32(kind: str, rng: np.random.Generator) -> None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, kind.upper()))
    X, W, R = (rng.standard_normal(shape).astype(dtype) for shape in ((4, 2, 3), (1, 12, 3), (1, 12, 4)))
    made = node("GRU", "X W R", "Y")
    (y,) = Backend.run_node(made, [X, W, R])
    (want,) = Backend.run_node(made, [a.astype(np.float32) for a in (X, W, R)])
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, want.astype(dtype))


def test_a_sequence_of_no_steps_ends_where_it_began(rng: np.random.Generator) -> None:
    X, W, R = (rng.standard_normal(shape).astype("f") for shape in ((4, 2, 3), (1, 12, 3), (1, 12, 4)))
    H = rng.standard_normal((1, 2, 4)).astype("f")
    X[:, 1] = np.nan  # never looked at
    made = node("GRU", "X W R _ L H", "Y Y_h")
    y, last = Backend.run_node(made, {"X": X, "W": W, "R": R, "L": np.array([4, 0], np.int32), "H": H})
    np.testing.assert_array_equal(last[:, 1], H[:, 1])
    np.testing.assert_array_equal(last[:, 0], y[-1, :, 0])
    assert not y[:, :, 1].any()


def test_a_prepared_model_is_run_again_with_other_sizes_and_inputs_by_name(rng: np.random.Generator) -> None:
    layer = make("lstm", bidirectional=True)
    prepared = Backend.prepare(rnn.onnx.to_model(layer, states=True), "CPU:0")
    for T, N in ((5, 3), (1, 1), (2, 7)):
        x, h, c = inputs(rng, T, N), *(rng.standard_normal((2, N, 4)).astype("f") for _ in range(2))
        run = layer.forward(x, (h, c))
        for result in (prepared.run([x, h, c]), prepared.run({"c0": c, "x": x, "h0": h})):
            np.testing.assert_allclose(result["output"], run.output, rtol=1e-5, atol=1e-6)  # type: ignore[call-overload]
            np.testing.assert_allclose(result[2], run.state[1], rtol=1e-5, atol=1e-6)


def test_weights_that_are_inputs_of_the_graph_may_be_replaced(rng: np.random.Generator) -> None:
    model = chain(node("LSTM", "X W R", "Y", hidden_size=4))
    model.graph.input.append(onnx.helper.make_tensor_value_info("W", 1, [1, 16, 3]))
    prepared, x = Backend.prepare(model), inputs(rng)
    (first,) = prepared.run(x)
    (second,) = prepared.run({"X": x, "W": np.zeros((1, 16, 3), "f")})
    assert first.any()
    assert not second.any()
    np.testing.assert_array_equal(prepared.run([x])[0], first)


@pytest.mark.parametrize("attributes", [{}, {"activations": ["Relu", "Tanh", "Tanh", "Sigmoid", "Tanh", "Tanh"]}])
@pytest.mark.parametrize(("T", "N"), [(0, 2), (2, 0), (0, 0)])
def test_no_steps_and_no_rows(T: int, N: int, attributes: dict[str, Any]) -> None:
    feeds = [np.ones(shape, "f") for shape in ((T, N, 3), (2, 16, 3), (2, 16, 4))]
    y, h, c = Backend.run_node(node("LSTM", "X W R", "Y H C", direction="bidirectional", **attributes), feeds)
    assert (y.shape, h.shape, c.shape) == ((T, 2, N, 4), (2, N, 4), (2, N, 4))
    assert not h.any()


def test_devices() -> None:
    assert Backend.supports_device("CPU")
    assert Backend.supports_device("CPU:0")
    assert not Backend.supports_device("CUDA")
    with pytest.raises(ValueError, match="device: expected CPU, got 'CUDA:1'"):
        Backend.prepare(chain(node("LSTM", "X W R", "Y", hidden_size=4)), "CUDA:1")


@pytest.mark.parametrize("op", ["Conv", "Relu", "Gemm", "Softmax", "Loop", "my.domain.LSTM"])
def test_other_node_types_are_refused_by_name(op: str) -> None:
    domain, _, kind = op.rpartition(".")
    other = node(kind, "Y1", "Y", domain=domain)
    model = chain(node("LSTM", "X W R", "Y1", hidden_size=4), other)
    assert not Backend.is_compatible(model)
    for refuse in (Backend.prepare, rnn.onnx.from_model):
        with pytest.raises(NotCarried, match=rf"got {re.escape(op)}$"):
            refuse(model)
    with pytest.raises(NotCarried, match=f"got a {re.escape(op)} node 'my {kind}'"):
        Backend.run_node(other, [np.zeros((2, 2), "f")])


def test_a_model_without_recurrent_nodes_is_refused() -> None:
    model = chain(node("Add", "X X", "Y"))
    assert not Backend.is_compatible(model)
    with pytest.raises(NotCarried, match="expected a node of RNN, LSTM, GRU, got only Add"):
        Backend.prepare(model)
    assert Backend.is_compatible(chain(node("LSTM", "X W R", "Y")))


@pytest.mark.parametrize(
    ("op", "attributes", "error", "message"),
    [
        ("LSTM", {"output_sequence": 1}, Exception, "output_sequence"),
        ("RNN", {"input_forget": 1}, Exception, "input_forget"),
        ("RNN", {"direction": "sideways"}, ValueError, "direction: expected one of forward, .*got 'sideways'"),
        ("RNN", {"layout": 2}, ValueError, "layout: expected 0 or 1, got 2"),
        ("RNN", {"clip": -1.0}, ValueError, "clip: expected a number of at least 0, got -1"),
        ("RNN", {"hidden_size": 5}, ValueError, r"W: expected shape \(1, 5, 3\)"),
        ("RNN", {"activations": ["Cos"]}, NotCarried, "activations: .*got 'Cos'"),
        ("RNN", {"activations": ["Tanh", "Tanh"]}, ValueError, "activations: expected 1 names .*got Tanh, Tanh"),
        ("RNN", {"activations": ["ScaledTanh"]}, ValueError, "activation_alpha: expected a value for ScaledTanh"),
        (
            "LSTM",
            {"activations": ["Elu", "Tanh", "Elu"], "activation_alpha": [1.0, 2.0, 3.0]},
            NotCarried,
            "expected 2",
        ),
        (
            "RNN",
            {"activation_beta": [1.0, 2.0]},
            NotCarried,
            "activation_beta: expected 0 values, for no function here",
        ),
    ],
)
def test_attributes_that_are_wrong_or_unknown(op: str, attributes: Any, error: type[Exception], message: str) -> None:
    gates = {"RNN": 1, "LSTM": 4}[op]
    feeds = [np.ones(shape, "f") for shape in ((2, 2, 3), (1, gates * 4, 3), (1, gates * 4, 4))]
    with pytest.raises(error, match=message):
        Backend.run_node(node(op, "X W R", "Y", **attributes), feeds)


def test_activations_in_lower_case_and_as_many_numbers_as_functions() -> None:
    """How some exporters write them."""
    feeds = [np.full(shape, -0.3, "f") for shape in ((2, 2, 3), (1, 12, 3), (1, 12, 4))]
    want = Backend.run_node(node("GRU", "X W R", "Y", activations=["Elu", "Tanh"], activation_alpha=[0.5]), feeds)
    got = Backend.run_node(node("GRU", "X W R", "Y", activations=["elu", "tanh"], activation_alpha=[0.5, 0.5]), feeds)
    np.testing.assert_array_equal(want[0], got[0])


def test_old_opsets_are_refused() -> None:
    made = node("LSTM", "X W R", "Y")
    with pytest.raises(NotCarried, match="expected opset 7 or later, got 6"):
        Backend.run_node(made, [], opset_version=6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": np.ones((2, 2, 4), "f")}, ValueError, r"X: expected shape \(T, N, I\) with I=3, got \(2, 2, 4\)"),
        ({"X": np.ones((2, 3), "f")}, ValueError, "X: expected shape"),
        ({"X": np.ones((2, 2, 3))}, TypeError, "X: expected float32 like W, got float64"),
        ({"W": np.ones((2, 12, 3), "f")}, ValueError, r"W: expected shape \(1, 12, 3\) \(D, G\*H, I\)"),
        ({"R": np.ones((1, 12, 3), "f")}, ValueError, r"R|W: expected shape"),
        ({"R": np.ones((1, 12, 4))}, TypeError, "R: expected float32 like W, got float64"),
        ({"B": np.ones((1, 12), "f")}, ValueError, r"B: expected shape \(1, 24\) \(D, 2\*G\*H\), got \(1, 12\)"),
        ({"L": np.array([1, 3], np.int32)}, ValueError, r"sequence_lens: .*from 0 to 2, got \[1, 3\]"),
        ({"L": np.array([1], np.int32)}, ValueError, "sequence_lens: expected 2 integers"),
        ({"H": np.ones((2, 1, 4), "f")}, ValueError, r"initial_h: expected shape \(1, 2, 4\) \(D, N, H\)"),
        ({"H": None}, TypeError, "inputs: H: expected an array, got NoneType"),
        ({"Z": np.ones(3)}, ValueError, "inputs: expected arrays for X, W, R, B, L, H, got"),
    ],
)
def test_inputs_that_do_not_fit(change: dict[str, Any], error: type[Exception], message: str) -> None:
    shapes = {"X": (2, 2, 3), "W": (1, 12, 3), "R": (1, 12, 4), "B": (1, 24), "H": (1, 2, 4)}
    feeds: dict[str, Any] = {name: np.ones(shape, "f") for name, shape in shapes.items()}
    feeds |= {"L": np.array([1, 2], np.int32)}
    made = node("GRU", "X W R B L H", "Y")
    assert Backend.run_node(made, feeds)[0].shape == (2, 1, 2, 4)
    with pytest.raises(error, match=message):
        Backend.run_node(made, feeds | change)


def test_the_number_of_inputs() -> None:
    prepared = Backend.prepare(rnn.onnx.to_model(make("gru"), lengths=True))
    with pytest.raises(ValueError, match=r"inputs: expected 2 arrays \(x, lengths\), got 1"):
        prepared.run([np.ones((1, 1, 3), "f")])
    with pytest.raises(ValueError, match=r"inputs: expected 2 arrays \(x, lengths\), got int"):
        prepared.run(3)


def test_importing_rnn_needs_no_onnx() -> None:
    import subprocess

    code = "import sys; sys.modules['onnx'] = None; import rnn, rnn.interchange; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


_ = from_to_onnx
