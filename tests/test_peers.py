"""What needs PyTorch, JAX or PyTensor, for those who have these packages (`--peers`): the rivals that are written with
them, as in test_baselines.py, and torch.nn's own layers, by which the reference is checked."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax as jax_library
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from rivals import (
    CASES,
    FEW,
    GATED,
    ODD,
    RATE,
    SEEN_BY,
    Case,
    Mutant,
    check,
    check_central_differences,
    check_gradients,
    check_lanes,
    check_load,
    check_mutant,
    check_threads,
    check_training,
    check_versions,
    example,
)

from rnn.baselines import jax, pytensor, pytorch, recurrence, symbolic
from rnn.baselines.cells import CELLS, Array
from rnn.baselines.network import Objective

RIVALS: dict[str, ModuleType] = {"pytorch": pytorch, "jax": jax, "pytensor": pytensor}
PAIRS = [
    pytest.param(name, case, id=f"{name}, {case}") for name in RIVALS for case in (FEW if name == "pytensor" else CASES)
]


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_output_and_gradients_are_the_references(name: str, case: Case) -> None:
    check_gradients(RIVALS[name], case)


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_losses_and_updates_are_the_references(name: str, case: Case) -> None:
    check_training(RIVALS[name], case)


@pytest.mark.parametrize("cell", ["rnn_tanh", *GATED])
@pytest.mark.parametrize("name", RIVALS)
def test_gradients_are_central_differences(name: str, cell: str) -> None:
    check_central_differences(RIVALS[name], cell)


@pytest.mark.parametrize("cell", ["rnn_tanh", *GATED])
@pytest.mark.parametrize("name", RIVALS)
def test_batch_is_a_stack_of_single_lanes(name: str, cell: str) -> None:
    check_lanes(RIVALS[name], cell)


def test_jax_sums_many_rows_as_it_sums_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "MANY", 0)
    check_gradients(jax, SEEN_BY)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("pytorch", "rival.torch.get_num_threads()"),
        ("jax", "len(os.sched_getaffinity(0))"),
        ("pytensor", "rival.symbolic.loaded_openblas().scipy_openblas_get_num_threads()"),
    ],
)
def test_threads_are_set_or_refused(name: str, count: str) -> None:
    check_threads(name, count)


@pytest.mark.parametrize("name", RIVALS)
def test_versions_are_named(name: str) -> None:
    check_versions(RIVALS[name])


def test_jax_compiles_once_for_a_shape() -> None:
    x, target, weights = example(ODD)
    network = jax.Network(ODD.cell, weights, Objective())
    assert network.compile_seconds == 0
    network.train(network.batch(x, target), RATE)
    first = network.compile_seconds
    assert first > 0
    network.train(network.batch(x + 1, target), RATE)
    assert network.compile_seconds == first
    network.train(network.batch(x[1:], target[1:]), RATE)
    assert network.compile_seconds > first


def test_pytensor_started_anew_is_a_new_network() -> None:
    check_load(pytensor)


TORCH_LAYERS: dict[str, Callable[..., torch.nn.RNNBase]] = {
    "rnn_tanh": lambda *sizes, **rest: torch.nn.RNN(*sizes, nonlinearity="tanh", **rest),
    "rnn_relu": lambda *sizes, **rest: torch.nn.RNN(*sizes, nonlinearity="relu", **rest),
    "lstm": torch.nn.LSTM,
    "gru": torch.nn.GRU,
}


@pytest.mark.parametrize("ends", [None, [5, 2, 7, 1]], ids=["whole", "lengths"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", TORCH_LAYERS)
def test_the_reference_is_torchs_layer_in_both_directions(
    name: str, bias: bool, ends: list[int] | None, rng: np.random.Generator
) -> None:
    T, N, I, H, cell = 7, 4, 3, 5, CELLS[name]
    torch.manual_seed(3)
    layer = TORCH_LAYERS[name](I, H, bias=bias, bidirectional=True, dtype=torch.float64)
    x, d_output = rng.standard_normal((T, N, I)), rng.standard_normal((T, N, 2 * H))
    initial = [rng.standard_normal((2, N, H)) for _ in cell.states]
    d_last = [rng.standard_normal((2, N, H)) for _ in cell.states]

    leaves: list[Any] = [torch.from_numpy(array).requires_grad_() for array in (x, *initial)]
    packed, *torch_initial = leaves
    if ends is not None:
        packed = torch.nn.utils.rnn.pack_padded_sequence(packed, torch.tensor(ends), enforce_sorted=False)
    output, last = layer(packed, tuple(torch_initial) if len(initial) > 1 else torch_initial[0])
    if ends is not None:
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, total_length=T)
    last = last if len(initial) > 1 else (last,)
    loss = (output * torch.from_numpy(d_output)).sum()
    loss = loss + sum((state * torch.from_numpy(d)).sum() for state, d in zip(last, d_last, strict=True))
    loss.backward()

    d_x: Array = np.zeros_like(x)
    for direction, suffix in enumerate(["", "_reverse"]):
        parameters = {key.removesuffix("_reverse"): p for key, p in layer.named_parameters()
                      if key.endswith("_reverse") == bool(suffix)}  # fmt: skip
        weights = {key: parameter.detach().numpy() for key, parameter in parameters.items()}
        options: dict[str, Any] = {"reverse": bool(suffix), "lengths": None if ends is None else np.array(ends)}
        part = slice(direction * H, (direction + 1) * H)
        run = recurrence.forward(cell, x, [state[direction] for state in initial], weights, **options)
        back = recurrence.bptt(cell, x, weights, run.states, run.kept, d_output[..., part],
                               [d[direction] for d in d_last], **options)  # fmt: skip
        d_x += back.x
        pairs = [(run.output, output[..., part])]
        pairs += [(run.last[k], last[k][direction]) for k in range(len(initial))]
        pairs += [(back.initial[k], torch_initial[k].grad[direction]) for k in range(len(initial))]
        pairs += [(back.weights[key], parameter.grad) for key, parameter in parameters.items()]
        for got, want in pairs:
            assert_allclose(got, want.detach().numpy(), rtol=1e-10, atol=1e-12)
    assert_allclose(d_x, leaves[0].grad.numpy(), rtol=1e-10, atol=1e-12)


# Mutants

TORCH_BACK, TORCH_GRU_BACK = pytorch.recur_back, pytorch.recur_gru_back
JAX_BACK, JAX_FORWARD, JAX_ADAM = jax.recur_back, jax.forward, jax.adam
SUM_OF_ROWS, ELMAN_INIT = symbolic.Graph.sum_of_rows, symbolic.Elman.__init__


def unbiased(backward: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's backward pass without the gradient of the bias."""

    def wrong(ctx: Any, d_hidden: Any) -> Any:
        *gradients, d_bias = backward(ctx, d_hidden)
        return *gradients, None if d_bias is None else 0 * d_bias

    return wrong


def jax_recur(back: Callable[..., Any]) -> Any:
    """JAX's recurrence with another way back."""
    wrong = jax_library.custom_vjp(jax.recur.fun, nondiff_argnums=(0,))
    wrong.defvjp(jax.recur_forward, back)
    return wrong


def jax_turned(cell: str, kept: Any, d: Any) -> Any:
    d_projected, d_W_hh, d_biases = JAX_BACK(cell, kept, d)
    return d_projected, d_W_hh.T, d_biases


def jax_forward(cell: str, weights: Any, x: Any) -> Any:
    stopped = {"bias_hh_l0": jax_library.lax.stop_gradient(weights["bias_hh_l0"])}
    return JAX_FORWARD(cell, {**weights, **stopped}, x)


def jax_adam(weights: Any, moments: Any, gradients: Any, rates: Any) -> Any:
    return JAX_ADAM(weights, moments, gradients, rates._replace(root=rates.root**2))


def flat(self: symbolic.Elman, *arguments: Any, **options: Any) -> None:
    """A cell whose activation has the slope 1."""
    ELMAN_INIT(self, *arguments, **options)
    self.slope = lambda h: h * 0 + 1


MUTANTS: dict[tuple[str, str, str], Mutant] = {
    ("pytorch", "rnn_tanh", "slope of a sigmoid"): (
        pytorch,
        "recur_back",
        lambda cell, W, h, d: TORCH_BACK("rnn_sigmoid", W, h, d),
    ),
    ("pytorch", "rnn_tanh", "slope of the step before"): (
        pytorch,
        "recur_back",
        lambda cell, W, h, d: TORCH_BACK(cell, W, torch.roll(h, 1, 0), d),
    ),
    ("pytorch", "rnn_tanh", "W_hh transposed on the way back"): (
        pytorch,
        "recur_back",
        lambda cell, W, h, d: TORCH_BACK(cell, W.t(), h, d),
    ),
    ("pytorch", "rnn_tanh", "bias gradient forgotten"): (
        pytorch.Elman,
        "backward",
        staticmethod(unbiased(pytorch.Elman.backward)),
    ),
    ("pytorch", "rnn_tanh", "another second moment"): (pytorch, "BETAS", (0.9, 0.99)),
    ("pytorch", "rnn_tanh", "no clipping"): (pytorch, "CLIP_NORM", 1e6),
    ("pytorch", "gru", "gradient of r forgotten"): (
        pytorch,
        "recur_gru_back",
        lambda W, rz, n, u, *others: TORCH_GRU_BACK(W, rz, n, 0 * u, *others),
    ),
    ("pytorch", "gru", "gradient of one bias forgotten"): (
        pytorch.GRU,
        "backward",
        staticmethod(unbiased(pytorch.GRU.backward)),
    ),
    ("jax", "rnn_tanh", "slope dropped"): (
        jax,
        "CELLS",
        {"rnn_tanh": jax.elman(jax_library.numpy.tanh, lambda h: h * 0 + 1)},
    ),
    ("jax", "rnn_tanh", "slope of the step before"): (
        jax,
        "recur",
        jax_recur(lambda cell, kept, d: JAX_BACK(cell, (kept[0], kept[0][0], *kept[2:]), d)),
    ),
    ("jax", "rnn_tanh", "gradient of W_hh transposed"): (
        jax,
        "recur",
        jax_recur(jax_turned),
    ),
    ("jax", "rnn_tanh", "bias gradient forgotten"): (jax, "forward", jax_forward),
    ("jax", "rnn_tanh", "Adam's root forgotten"): (jax, "adam", jax_adam),
    ("jax", "rnn_tanh", "no clipping"): (jax, "CLIP_NORM", 1e6),
    ("jax", "lstm", "c not carried back"): (
        jax,
        "CELLS",
        {"lstm": jax.CELLS["lstm"]._replace(back=lambda d, *others: jax.lstm_back((d[0], 0 * d[1]), *others))},
    ),
    ("jax", "gru", "the state after in place of the one before"): (
        jax,
        "CELLS",
        {"gru": jax.CELLS["gru"]._replace(back=lambda d, before, h, kept: jax.gru_back(d, (h,), h, kept))},
    ),
    ("pytensor", "rnn_tanh", "slope dropped"): (symbolic.Elman, "__init__", flat),
    ("pytensor", "rnn_tanh", "bias gradient forgotten"): (
        symbolic.Graph,
        "sum_of_rows",
        lambda self, d: 0 * SUM_OF_ROWS(self, d),
    ),
    ("pytensor", "lstm", "the state after in place of the one before"): (
        symbolic.Graph,
        "before",
        lambda self, first, sequence: sequence,
    ),
    ("pytensor", "gru", "the state after in place of the one before"): (
        symbolic.Graph,
        "before",
        lambda self, first, sequence: sequence,
    ),
    ("pytensor", "rnn_tanh", "no clipping"): (symbolic, "CLIP_NORM", 1e6),
}


@pytest.mark.parametrize("name", RIVALS)
def test_a_right_rival_passes(name: str) -> None:
    check(RIVALS[name], SEEN_BY)


@pytest.mark.parametrize(("name", "cell", "mutant"), MUTANTS, ids=lambda part: part)
def test_a_wrong_rival_is_caught(name: str, cell: str, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_mutant(RIVALS[name], MUTANTS[name, cell, mutant], monkeypatch, cell)
