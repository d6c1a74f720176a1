"""Build: networks compute what the layers' definitions say: forward, gradient, names, start, training mode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import nn
from multiparam.core import registry

from . import FEATURES
from .networks import feature, state_of, without_counts
from .reference import erf, forward, slope

RNG = np.random.default_rng(7)


def images(*shape: int) -> np.ndarray:
    return RNG.normal(0.5, 2.0, shape)


# id -> (architecture, input)
LAYERS = {
    "linear": (nn.Linear(5), images(3, 4)),
    "linear without bias": (nn.Linear(5, bias=False), images(3, 4)),
    "linear over the last of four axes": (nn.Linear(5), images(2, 3, 4, 6)),
    "conv1d": (nn.Conv(6, 3), images(2, 3, 9)),
    "conv2d": (nn.Conv(6, 3), images(2, 3, 8, 9)),
    "conv3d": (nn.Conv(4, 2), images(2, 3, 5, 6, 4)),
    "conv2d, padded and strided": (nn.Conv(4, (3, 2), stride=(2, 1), padding=(1, 0)), images(2, 3, 8, 9)),
    "conv2d, stride 2 where padding same would differ": (nn.Conv(4, 3, stride=2, padding=1), images(2, 3, 8, 8)),
    "conv2d, dilated": (nn.Conv(4, 3, dilation=2), images(2, 3, 8, 9)),
    "conv2d, grouped": (nn.Conv(6, 3, groups=2), images(2, 4, 8, 9)),
    "conv2d, depthwise": (nn.Conv(8, 3, groups=4, bias=False), images(2, 4, 8, 9)),
    "max pool": (nn.MaxPool(2), images(2, 3, 8, 9)),
    "max pool 1d, overlapping": (nn.MaxPool(3, stride=1), images(2, 3, 9)),
    "max pool of negative numbers, padded": (nn.MaxPool(3, stride=2, padding=1), -5 + images(2, 3, 8, 9)),
    "max pool 3d": (nn.MaxPool(2), images(2, 3, 4, 4, 6)),
    "avg pool": (nn.AvgPool(2), images(2, 3, 8, 9)),
    "avg pool, padded zeros count": (nn.AvgPool(3, stride=2, padding=1), images(2, 3, 8, 9)),
    "batch norm over features": (nn.BatchNorm(), images(6, 5)),
    "batch norm over images": (nn.BatchNorm(eps=1e-3, momentum=0.3), images(4, 3, 5, 6)),
    "batch norm over sequences": (nn.BatchNorm(), images(4, 3, 7)),
    "layer norm": (nn.LayerNorm(), images(4, 6)),
    "layer norm, large eps": (nn.LayerNorm(eps=0.5), images(2, 5, 6)),
    "embedding": (nn.Embedding(11, 4), RNG.integers(0, 11, (3, 5))),
    "flatten keeps channels first": (nn.Sequential(nn.Conv(4, 3), nn.Flatten(), nn.Linear(3)), images(2, 3, 5, 6)),
    "linear after conv sees the canonical last axis": (nn.Sequential(nn.Conv(4, 3), nn.Linear(3)), images(2, 3, 5, 6)),
    "softmax after conv": (nn.Sequential(nn.Conv(4, 3), nn.Softmax()), images(2, 3, 5, 6)),
    "relu": (nn.Sequential(nn.Linear(6), nn.ReLU()), images(3, 4)),
    "tanh": (nn.Sequential(nn.Linear(6), nn.Tanh()), images(3, 4)),
    "sigmoid": (nn.Sequential(nn.Linear(6), nn.Sigmoid()), images(3, 4)),
    "gelu": (nn.Sequential(nn.Linear(6), nn.GELU()), images(3, 4)),
    "gelu, tanh form": (nn.Sequential(nn.Linear(6), nn.GELU("tanh")), images(3, 4)),
    "softmax": (nn.Sequential(nn.Linear(6), nn.Softmax()), images(3, 4)),
    "residual": (nn.Residual(nn.Sequential(nn.Linear(4), nn.Tanh(), nn.Linear(4))), images(3, 4)),
    "residual over images": (
        nn.Sequential(nn.Conv(4, 1), nn.Residual(nn.Sequential(nn.Conv(4, 3, padding=1), nn.BatchNorm(), nn.ReLU()))),
        images(2, 3, 5, 6),
    ),
    "residual with a linear body between convolutions": (
        nn.Sequential(nn.Conv(4, 3), nn.Residual(nn.Linear(4)), nn.Conv(2, 1)),
        images(2, 3, 5, 6),
    ),
    "a shared block between convolutions": (
        (lambda block: nn.Sequential(nn.Conv(3, 1), block, nn.ReLU(), block, nn.Flatten(), nn.Linear(2)))(
            nn.Sequential(nn.Conv(3, 3, padding=1), nn.Tanh())
        ),
        images(2, 3, 5, 6),
    ),
    "a convolution shared inside and outside a block": (
        (lambda conv: nn.Sequential(conv, nn.Sequential(nn.Tanh(), conv), nn.Flatten()))(nn.Conv(3, 1)),
        images(2, 3, 5, 6),
    ),
    "one layer at three positions": (
        (lambda shared: nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), shared))(nn.Linear(4)),
        images(3, 4),
    ),
    "embedding, norm and head": (
        nn.Sequential(nn.Embedding(7, 6), nn.LayerNorm(), nn.Linear(4), nn.GELU("tanh"), nn.Flatten(), nn.Linear(2)),
        RNG.integers(0, 7, (3, 5)),
    ),
    "dropout does nothing to an evaluation": (nn.Sequential(nn.Linear(4), nn.Dropout(0.9)), images(3, 4)),
}


LAYERS |= {
    "conv transpose 1d": (nn.ConvTranspose(4, 3), images(2, 3, 5)),
    "conv transpose 2d, padded and strided": (nn.ConvTranspose(4, (4, 3), (2, 3), (1, 0)), images(2, 3, 4, 5)),
    "conv transpose 2d, stride above kernel": (nn.ConvTranspose(2, 2, 3, bias=False), images(2, 3, 4, 3)),
    "group norm": (nn.GroupNorm(2), images(3, 4, 5, 6)),
    "group norm, large eps, over sequences": (nn.GroupNorm(3, eps=0.5), images(3, 6, 7)),
    "instance norm": (nn.InstanceNorm(), images(3, 4, 5, 6)),
    "rms norm": (nn.RMSNorm(), images(3, 5, 6)),
    "rms norm, large eps, after conv": (nn.Sequential(nn.Conv(4, 3), nn.RMSNorm(0.5)), images(2, 3, 5, 6)),
    "global avg": (nn.Sequential(nn.Conv(4, 3), nn.GlobalAvgPool(), nn.Linear(3)), images(2, 3, 5, 6)),
    "global max pool": (nn.Sequential(nn.Conv(4, 3), nn.GlobalMaxPool(), nn.Linear(3)), images(2, 3, 5, 6)),
    "tokens": (nn.Sequential(nn.Conv(4, 2, stride=2), nn.Tokens(), nn.Linear(3)), images(2, 3, 4, 6)),
    "add": (nn.Add(("body", nn.Sequential(nn.Linear(4), nn.Tanh())), ("shortcut", nn.Linear(4))), images(3, 5)),
    "add over images": (
        nn.Sequential(nn.Conv(4, 1), nn.Add(nn.Conv(4, 3, padding=1), nn.Sequential(nn.Linear(6), nn.Conv(4, 1)))),
        images(2, 3, 5, 6),
    ),
    "concat": (
        nn.Sequential(nn.Conv(3, 1), nn.Concat(nn.Identity(), nn.Conv(4, 1), nn.Linear(6)), nn.Conv(2, 1)),
        images(2, 3, 5, 6),
    ),
    "concat of flat and global": (
        nn.Sequential(nn.Conv(3, 1), nn.Concat(nn.Flatten(), nn.GlobalAvgPool()), nn.Linear(2)),
        images(2, 3, 2, 3),
    ),
    "a branch shared with what is outside": (
        (lambda conv: nn.Sequential(conv, nn.Concat(conv, nn.Sequential(nn.Tanh(), conv)), nn.Flatten()))(
            nn.Conv(3, 1)
        ),
        images(2, 3, 4, 5),
    ),
}


def built(case: str, backend: str, dtype: str = "float64") -> tuple[mp.Model, nn.Layer, np.ndarray]:
    spec, x = LAYERS[case]
    x = x if x.dtype.kind == "i" else x.astype(dtype)
    net = mp.build(spec, x, backend=backend, dtype=dtype, seed=3)
    for name, p in net.buffers().items():  # statistics that could not be confused with each other or the start
        if name.endswith("running_mean"):
            p.assign(np.linspace(-1, 1, p.size).astype(p.dtype))
        elif name.endswith("running_var"):
            p.assign(np.linspace(0.5, 3, p.size).astype(p.dtype))
    return net, spec, x


def cases(*, float64: bool = False, smooth: bool = False) -> list[Any]:
    """Each with the features it needs, by the layers it has."""
    chosen = []
    for case, (spec, _) in LAYERS.items():
        needed = sorted({f"nn.{type(layer).__name__}" for layer in layers_of(spec)} & FEATURES.keys())
        if float64 and case in ("layer norm", "embedding, norm and head"):  # their eps, 1e-5, float32 cannot hold
            needed.append("float64 eps of LayerNorm")
        if not (smooth and ("pool" in case or "dropout" in case)):
            chosen.append(pytest.param(case, marks=feature(*needed)))
    return chosen


def layers_of(spec: nn.Layer) -> Iterator[nn.Layer]:
    """A description and all that is in it."""
    yield spec
    children = spec.layers if isinstance(spec, nn.Container) else [spec.body] if isinstance(spec, nn.Residual) else []
    for child in children:
        yield from layers_of(child)


def far(value: np.ndarray, truth: np.ndarray, dtype: str) -> float:
    return float(np.max(np.abs(value - truth)) / np.max(np.abs(truth)) / np.finfo(dtype).eps)


@pytest.mark.parametrize("case", cases(float64=True))
def test_a_layer_computes_its_definition(case: str, backend: str) -> None:
    net, spec, x = built(case, backend)
    y = mp.to_numpy(net(x))
    truth = forward(spec, state_of(net), x)
    assert y.dtype == np.float64
    assert y.shape == truth.shape
    assert far(y, truth, "float64") < 32


@pytest.mark.parametrize("case", cases())
def test_a_layer_agrees_with_float64_in_float32(case: str, backend: str) -> None:
    net, spec, x = built(case, backend, "float32")
    y = mp.to_numpy(net(x))
    state = {name: value.astype(np.float64) for name, value in state_of(net).items()}
    assert y.dtype == np.float32
    assert far(y, forward(spec, state, x if x.dtype.kind == "i" else x.astype(np.float64)), "float32") < 64


@pytest.mark.parametrize("case", cases(smooth=True))
def test_gradients_are_the_slope_of_the_loss(case: str, backend: str) -> None:
    """Along a random direction, against central differences of the numpy definition, ties moving together."""
    net, spec, x = built(case, backend)
    y = np.zeros(mp.to_numpy(net(x)).shape)
    state = state_of(net)
    _, grads = net.value_and_grad(mp.losses.mse)(x, y)
    rng = np.random.default_rng(0)
    direction, predicted = {}, 0.0
    for name, p in net.parameters().items():
        step = rng.normal(size=p.shape)
        predicted += float(np.sum(mp.to_numpy(grads[name]) * step))
        direction.update(dict.fromkeys(p.names, step))
    truth = slope(spec, state, direction, x, y)
    assert predicted == pytest.approx(truth, rel=1e-6, abs=1e-8)


@feature("nn.GELU", "float64 gradient of exact GELU")
def test_the_gradient_of_exact_gelu(backend: str) -> None:
    """Its derivative is the normal distribution function plus x times the density."""
    x = np.linspace(-3, 3, 13)[:, None]
    net = mp.build(nn.Sequential(nn.Linear(1, bias=False), nn.GELU()), x, backend=backend, dtype="float64")
    net["0.weight"].assign([[0.7]])
    _, grads = net.value_and_grad(mp.losses.mse)(x, np.zeros_like(x))
    z = 0.7 * x
    value = z * 0.5 * (1 + erf(z / math.sqrt(2)))
    derivative = 0.5 * (1 + erf(z / math.sqrt(2))) + z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(mp.to_numpy(grads["0.weight"]), [[np.mean(2 * value * derivative * x)]], rtol=1e-13)


@feature("nn.Dropout")
def test_dropout_scales_what_it_keeps_in_training(backend: str) -> None:
    net = mp.build(nn.Dropout(0.25), np.ones((100, 100), "float32"), backend=backend)
    y = mp.to_numpy(net(np.ones((100, 100), "float32"), train=True))
    kept = y != 0
    np.testing.assert_allclose(y[kept], 1 / 0.75, rtol=1e-6)
    assert 0.70 < kept.mean() < 0.80


@feature("nn.Dropout")
def test_dropout_changes_from_step_to_step(backend: str) -> None:
    net = mp.build(nn.Sequential(nn.Linear(1), nn.Dropout(0.5)), np.ones((64, 3)), backend=backend)
    step = net.value_and_grad(mp.losses.mse)
    losses = {mp.to_numpy(step(np.ones((64, 3)), np.zeros((64, 1)))[0]).item() for _ in range(5)}
    assert len(losses) > 1


@feature("nn.Conv", "nn.BatchNorm", "nn.LayerNorm", "nn.Embedding")
def test_a_network_starts_as_pytorch_starts_it(backend: str) -> None:
    """U(-b, b) with b = 1 / sqrt(fan_in) for weight and bias, N(0, 1) for embeddings, ones and zeros for norms."""
    spec = nn.Sequential(nn.Conv(32, 3), nn.BatchNorm(), nn.Flatten(), nn.Linear(50), nn.LayerNorm())
    net = mp.build(spec, np.ones((1, 4, 8, 8)), backend=backend)
    for name, fan_in in {"0": 4 * 9, "3": 32 * 36}.items():
        bound = 1 / math.sqrt(fan_in)
        weight = net[f"{name}.weight"].numpy()
        assert np.abs(weight).max() <= bound
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert 0.5 * bound < np.abs(net[f"{name}.bias"].numpy()).max() <= bound
    for name in ("1", "4"):
        np.testing.assert_array_equal(net[f"{name}.weight"].numpy(), 1)
        np.testing.assert_array_equal(net[f"{name}.bias"].numpy(), 0)
    np.testing.assert_array_equal(net["1.running_mean"].numpy(), 0)
    np.testing.assert_array_equal(net["1.running_var"].numpy(), 1)
    table = mp.build(nn.Embedding(500, 20), np.ones((1, 2), int), backend=backend)["weight"].numpy()
    assert table.std() == pytest.approx(1, rel=0.05)


@feature("nn.Conv", "nn.BatchNorm")
def test_a_seed_gives_the_same_bits_in_every_backend(backend: str, multiparam_peers: list[str]) -> None:
    spec = nn.Sequential(nn.Conv(4, 3), nn.BatchNorm(), nn.Flatten(), nn.Linear(700), nn.Linear(500))
    x = np.ones((1, 2, 8, 8), "float32")
    state = mp.build(spec, x, backend=backend, seed=11).state_dict()
    peer = mp.build(spec, x, backend=multiparam_peers[0], seed=11).state_dict()
    assert without_counts(state) == without_counts(peer)
    for name in without_counts(state):
        np.testing.assert_array_equal(state[name], peer[name])


def test_another_seed_gives_other_numbers(backend: str) -> None:
    a, b = (mp.build(nn.Linear(8), np.ones((1, 4)), backend=backend, seed=s)["weight"].numpy() for s in (0, 1))
    assert not np.any(a == b)


@feature("nn.BatchNorm", "exact running statistics")
def test_running_statistics_move_in_training_as_pytorch_moves_them(backend: str) -> None:
    """new = (1 - momentum) * old + momentum * batch, the variance being the unbiased one."""
    x = images(6, 3, 2, 2)
    net = mp.build(nn.BatchNorm(momentum=0.3), x, backend=backend, dtype="float64")
    net.value_and_grad(mp.losses.mse)(x, np.zeros_like(x))
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(net["running_mean"].numpy(), 0.3 * mean, rtol=1e-12)
    np.testing.assert_allclose(net["running_var"].numpy(), 0.7 + 0.3 * variance, rtol=1e-12)


@feature("nn.BatchNorm")
def test_running_statistics_stay_in_evaluation(backend: str) -> None:
    x = images(6, 3, 2, 2)
    net = mp.build(nn.BatchNorm(), x, backend=backend, dtype="float64")
    before = net.state_dict()
    net(x)
    net.value_and_grad(mp.losses.mse, train=False)(x, np.zeros_like(x))
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@feature("nn.Residual")
def test_names_follow_the_architecture(backend: str) -> None:
    block = nn.Sequential(("block 0", nn.Sequential(nn.Linear(3), nn.ReLU())), ("block 1", nn.Residual(nn.Linear(3))))
    net = mp.build(nn.Sequential(block, nn.Linear(2)), np.ones((1, 3)), backend=backend)
    assert list(net.parameters()) == [
        "0.block 0.0.weight",
        "0.block 0.0.bias",
        "0.block 1.body.weight",
        "0.block 1.body.bias",
        "1.weight",
        "1.bias",
    ]


def test_the_native_model_is_the_frameworks_own(backend: str) -> None:
    net = mp.build(nn.Sequential(nn.Linear(2), nn.ReLU()), np.ones((1, 3)), backend=backend)
    known = registry.info(backend)
    assert registry.detect(net.native) is known


@pytest.mark.parametrize("name", ["a b", "a/b", "é", "weight", "body", "tanh_1", "a.b", "", "forward"], ids=ascii)
def test_any_text_is_a_name_or_refused_by_name(backend: str, name: str) -> None:
    spec = nn.Sequential((name, nn.Linear(3)), ("last", nn.Linear(3)))
    try:
        net = mp.build(spec, np.ones((2, 3)), backend=backend)
    except mp.MultiparamError as error:
        assert repr(name) in str(error)
        return
    place = name.replace(".", "\\.")
    assert list(net.parameters())[:2] == [f"{place}.weight", f"{place}.bias"]
    assert net[0]["weight"] is net[f"{place}.weight"]


def test_inputs_of_another_shape_are_an_error_of_ours(backend: str) -> None:
    with pytest.raises(mp.errors.ShapeError):
        mp.build(nn.Sequential(nn.Linear(3), nn.Conv(2, 9)), np.ones((2, 3)), backend=backend)


def test_a_declaration_is_one_that_the_kit_knows(backend: str) -> None:
    """Otherwise nothing would notice when it is no longer true."""
    for name, reason in registry.info(backend).load().unsupported.items():
        assert name in FEATURES, f"{backend} declares {name!r}; the kit knows {', '.join(map(repr, FEATURES))}"
        assert reason.strip()
