"""Whole networks, as their users write them, into twins of other frameworks; and random ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.flavours import NEEDS
from support.library_models import Torch, bits, far, fill, library, model, net_input, turned

import multiparam as mp

pytest.importorskip("torch")
import torch

pytestmark = pytest.mark.xdist_group("transfer")
N, F = torch.nn, torch.nn.functional
IMAGE = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype("float32")
PHOTO = np.moveaxis(IMAGE, 1, -1)


def sensible(net: mp.Model, seed: int = 3) -> mp.Model:
    """Random numbers of a size that signals live through."""
    rng = np.random.default_rng(seed)
    for name, p in {**net.parameters(), **net.buffers()}.items():
        leaf = name.split(".")[-1]
        if leaf == "num_batches_tracked":
            continue
        fan_in = max(int(np.prod(p.shape[1:])), 1)
        value = rng.normal(size=p.shape) * (2 / fan_in) ** 0.5 if p.kind != "batchnorm" and len(p.shape) > 1 else (
            rng.uniform(0.5, 1.5, p.shape) if leaf in ("weight", "running_var") else rng.normal(size=p.shape) * 0.2
        )  # fmt: skip
        p.assign(value.astype(p.dtype))
    return net


# -- ResNet-18


class BasicBlock(N.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = N.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = N.BatchNorm2d(outputs)
        self.conv2 = N.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = N.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = N.Sequential(N.Conv2d(inputs, outputs, 1, stride, bias=False), N.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(N.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = N.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = N.BatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        for i in range(1, 5):
            first = BasicBlock(widths[i - 1], widths[i], 1 if i == 1 else 2)
            setattr(self, f"layer{i}", N.Sequential(first, BasicBlock(widths[i], widths[i], 1)))
        self.fc = N.Linear(512, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


TO_TORCH = {"features.0": "conv1", "features.1": "bn1", "output": "fc"}
for i in range(1, 5):
    for j, name in {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2"}.items():
        TO_TORCH[f"features.{i + 3}.*.body.{j}"] = f"layer{i}.*.{name}"
    if i > 1:
        TO_TORCH[f"features.{i + 3}.*.downsample.*"] = f"layer{i}.*.downsample.*"


@pytest.mark.needs("mxnet")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.quick("float64")
def test_gluons_resnet_into_pytorchs_and_back(dtype: str) -> None:
    g = library("gluon")
    native = g.model_zoo.vision.resnet18_v1(classes=10)
    native.cast(dtype)
    native.initialize("zeros")
    x = IMAGE.astype(dtype)
    gluon = sensible(mp.wrap(native, net_input("gluon", x, dtype)))
    twin = mp.wrap(ResNet18(10).to(getattr(torch, dtype)))
    with pytest.raises(mp.errors.TransferError, match="guesses"):
        mp.transfer(gluon, twin)
    report = mp.transfer(gluon, twin, TO_TORCH, verify=x, bound=512)
    assert report.agrees, report
    assert not report.plan.options and not report.plan.unused and {m.why for m in report.plan.moves} == {"rule"}
    before = bits(gluon)
    sensible(gluon, 4)
    report = mp.transfer(twin, gluon, accept_guesses=True, verify=x, bound=512)
    assert report.agrees and not report.plan.guesses and bits(gluon) == before
    assert sum(move.why == "proved by the outputs" for move in report.plan.moves) == 81
    twin["layer3.1.bn1.weight"] *= 1.5
    twin.native.layer2[1].bn2.eps = 0.1
    report = mp.transfer(gluon, twin, TO_TORCH, verify=x, bound=512)
    assert report.parted.startswith("layer features.5.1.body.4 -> layer2.1.bn2 (") and not report.agrees
    assert report.plan.options == ["layer2.1.bn2: eps is 1e-05 there, 0.1 here"]


# -- MobileNetV2 and ResNet50 of Keras


def application(name: str) -> Any:
    options = {"alpha": 0.35} if name == "MobileNetV2" else {}
    return getattr(library("keras").applications, name)(weights=None, input_shape=(32, 32, 3), classes=10, **options)


@pytest.mark.needs("tensorflow")
@pytest.mark.parametrize("name", ["MobileNetV2", pytest.param("ResNet50", marks=pytest.mark.slow)])
def test_keras_networks_through_a_file(name: str, tmp_path: Any) -> None:
    source, target = sensible(mp.wrap(application(name))), sensible(mp.wrap(application(name)), 4)
    path = mp.save(source, tmp_path / "w.safetensors")
    report = mp.transfer(path, target)
    assert not report.plan.options and not report.plan.guesses and not report.plan.unused
    assert bits(target) == bits(source)
    assert mp.transfer(source, sensible(target, 4), verify=PHOTO).distance < 64


class Unit(N.Module):
    """Convolution, norm and ReLU6; Keras pads an even image at the far end only where the stride is 2."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True):
        super().__init__()
        self.pad = (0, 1, 0, 1) if stride == 2 else (kernel // 2,) * 4
        self.conv = N.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.bn = N.BatchNorm2d(outputs, 1e-3, 0.001)
        self.relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pad = self.pad if x.shape[-1] % 2 == 0 or self.conv.stride[0] == 1 else (1,) * 4
        y = self.bn(self.conv(F.pad(x, pad)))
        return F.relu6(y) if self.relu else y


class Inverted(N.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        self.expand = Unit(inputs, wide) if expand > 1 else N.Identity()
        self.depthwise = Unit(wide, wide, 3, stride, wide)
        self.project = Unit(wide, outputs, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def mobile_net() -> Any:
    table = ((16, 1, 1, 1), (24, 2, 2, 6), (32, 3, 2, 6), (64, 4, 2, 6), (96, 3, 1, 6), (160, 3, 2, 6), (320, 1, 1, 6))
    layers: list[Any] = [Unit(3, inputs := 16, 3, 2)]
    for width, times, stride, expand in table:
        outputs = max(8, int(width * 0.35 + 4) // 8 * 8)
        outputs += 8 if outputs < 0.9 * width * 0.35 else 0
        for i in range(times):
            layers.append(Inverted(inputs, outputs, stride if i == 0 else 1, expand))
            inputs = outputs
    return N.Sequential(
        *layers, Unit(inputs, 1280), N.AdaptiveAvgPool2d(1), N.Flatten(), N.Linear(1280, 10), N.Softmax(1)
    )


@pytest.mark.needs("tensorflow")
def test_keras_mobile_net_into_pytorch_and_back() -> None:
    source, twin = sensible(mp.wrap(application("MobileNetV2"))), mp.wrap(mobile_net())
    report = mp.transfer(source, twin, accept_guesses=True, verify=PHOTO, bound=2048)
    assert report.agrees, report
    assert "flattened" not in str(report.plan) and not report.plan.guesses and report.proved
    assert not [text for text in report.plan.options if "padding" not in text and "activation" not in text]
    before = bits(source)
    report = mp.transfer(twin, sensible(source, 4), accept_guesses=True, verify=IMAGE, bound=2048)
    assert report.agrees and bits(source) == before


# -- PyTorch's transformer encoder

E, HEADS, WIDE = 8, 2, 12
TOKENS = np.random.default_rng(1).normal(size=(2, 5, E))


def linen_block(nn: Any, dtype: str) -> Any:
    class Block(nn.Module):
        def setup(self) -> None:
            self.self_attn = nn.MultiHeadDotProductAttention(HEADS, param_dtype=dtype)
            self.linear1, self.linear2 = nn.Dense(WIDE, param_dtype=dtype), nn.Dense(E, param_dtype=dtype)
            self.norm1, self.norm2 = (nn.LayerNorm(1e-5, param_dtype=dtype) for _ in range(2))

        def __call__(self, x: Any) -> Any:
            x = self.norm1(x + self.self_attn(x, x))
            return self.norm2(x + self.linear2(nn.relu(self.linear1(x))))

    return Block()


def nnx_block(nn: Any, dtype: str) -> Any:
    class Block(nn.Module):
        def __init__(self) -> None:
            more = {"param_dtype": dtype, "rngs": nn.Rngs(0)}
            self.self_attn = nn.MultiHeadAttention(HEADS, E, decode=False, **more)
            self.linear1, self.linear2 = nn.Linear(E, WIDE, **more), nn.Linear(WIDE, E, **more)
            self.norm1, self.norm2 = nn.LayerNorm(E, epsilon=1e-5, **more), nn.LayerNorm(E, epsilon=1e-5, **more)

        def __call__(self, x: Any) -> Any:
            x = self.norm1(x + self.self_attn(x))
            return self.norm2(x + self.linear2(nn.relu(self.linear1(x))))

    return Block()


def keras_block(keras: Any, dtype: str) -> Any:
    k = keras.layers

    class Block(k.Layer):
        def __init__(self) -> None:
            super().__init__(dtype=dtype)
            self.self_attn = k.MultiHeadAttention(HEADS, E // HEADS, dtype=dtype)
            self.linear1, self.linear2 = k.Dense(WIDE, "relu", dtype=dtype), k.Dense(E, dtype=dtype)
            self.norm1, self.norm2 = (k.LayerNormalization(epsilon=1e-5, dtype=dtype) for _ in range(2))

        def call(self, x: Any) -> Any:
            x = self.norm1(x + self.self_attn(x, x))
            return self.norm2(x + self.linear2(self.linear1(x)))

    return Block()


@pytest.mark.needs("jax", "tensorflow")
@pytest.mark.parametrize(
    ("flavour", "block", "dtype"),
    [
        ("linen", linen_block, "float64"),
        ("linen", linen_block, "float32"),
        ("nnx", nnx_block, "float32"),
        ("keras", keras_block, "float64"),
        ("keras", keras_block, "float32"),
    ],
)
@pytest.mark.quick("linen*float64", "keras*float32")
def test_pytorchs_transformer_encoder(flavour: str, block: Any, dtype: str) -> None:
    layer = N.TransformerEncoderLayer(E, HEADS, WIDE, 0.0, batch_first=True)
    source = fill(mp.wrap(N.TransformerEncoder(layer, 2, enable_nested_tensor=False).to(getattr(torch, dtype))))
    layers = {f"layers_{i}": lambda f: block(library(flavour), dtype) for i in range(2)}
    twin = model(flavour, layers, lambda net, x: net.layers_1(net.layers_0(x)), TOKENS, dtype)
    report = mp.transfer(source, twin, verify=TOKENS)
    assert report.agrees and {move.why for move in report.plan.moves} == {"name, written otherwise"}
    sensible(twin, 4)
    report = mp.transfer(source, twin, {"layers.*": "layers_*"}, verify=TOKENS)
    assert report.agrees and report.distance < 64 and {move.why for move in report.plan.moves} == {"rule"}
    assert not report.plan.unused and not report.plan.options
    before = bits(source)
    report = mp.transfer(twin, fill(source, "b"), accept_guesses=True, verify=TOKENS.astype(dtype))
    assert report.agrees and bits(source) == before


# -- a language model

WORDS = np.array([[3, 1, 4, 1], [5, 9, 2, 6]])
HIDDEN = 6
SPLIT = {"rnn.*_l0": "rnn0.*_l0", "rnn.*_l1": "rnn1.*_l0"}
LANGUAGE: dict[str, dict[str, Any]] = {
    "linen": {
        "embed": lambda f: f.Embed(10, E), "rnn0": lambda f: f.RNN(f.OptimizedLSTMCell(HIDDEN)),
        "rnn1": lambda f: f.RNN(f.LSTMCell(HIDDEN)), "head": lambda f: f.Dense(10),
    },
    "keras": {
        "embed": lambda k: k.Embedding(10, E), "rnn0": lambda k: k.LSTM(HIDDEN, return_sequences=True),
        "rnn1": lambda k: k.LSTM(HIDDEN, return_sequences=True), "head": lambda k: k.Dense(10),
    },
    "keras, stacked": {
        "embed": lambda k: k.Embedding(10, E), "head": lambda k: k.Dense(10),
        "rnn": lambda k: k.RNN(k.StackedRNNCells([k.LSTMCell(HIDDEN), k.LSTMCell(HIDDEN)]), return_sequences=True),
    },
}  # fmt: skip


@pytest.mark.needs("jax", "tensorflow")
@pytest.mark.parametrize("which", LANGUAGE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.quick("float64-linen", "float32-keras*")
def test_pytorchs_language_model(which: str, dtype: str) -> None:
    source = Torch(
        lambda net, x: net.head(net.rnn(net.embed(x))[0]),
        embed=N.Embedding(10, E), rnn=N.LSTM(E, HIDDEN, 2, batch_first=True), head=N.Linear(HIDDEN, 10),
    )  # fmt: skip
    net = fill(mp.wrap(source.to(getattr(torch, dtype))))
    one = which == "keras, stacked"
    forward = (lambda net, x: net.head(net.rnn(net.embed(x)))) if one else (
        lambda net, x: net.head(net.rnn1(net.rnn0(net.embed(x))))
    )  # fmt: skip
    twin = model(which.partition(",")[0], LANGUAGE[which], forward, WORDS, dtype)
    report = mp.transfer(net, twin, None if one else SPLIT, verify=WORDS)
    assert report.agrees and report.distance < 64 and not report.plan.guesses and not report.plan.unused
    before = mp.to_numpy(net(WORDS))
    back = None if one else {"rnn0.*_l0": "rnn.*_l0", "rnn1.*_l0": "rnn.*_l1"}
    report = mp.transfer(twin, fill(net, "b"), back, verify=WORDS)
    assert report.agrees and far(mp.to_numpy(net(WORDS)), before) < 64


# -- random networks

nn = mp.nn
CONV = st.tuples(st.just("conv"), st.integers(2, 3), st.integers(1, 2))  # channels, kernel
PART = st.one_of(CONV, st.sampled_from([("norm",), ("relu",), ("relu",)]))
TAIL = st.one_of(st.tuples(st.just("linear"), st.integers(2, 4)), st.sampled_from([("layer norm",), ("relu",)]))
SMALL = np.random.default_rng(2).normal(size=(2, 2, 6, 5))


def spec_of(parts: list[Any]) -> Any:
    make = {
        "conv": lambda out, k: nn.Conv(out, k), "norm": lambda: nn.BatchNorm(), "relu": lambda: nn.ReLU(),
        "flatten": lambda: nn.Flatten(), "linear": lambda out: nn.Linear(out), "layer norm": lambda: nn.LayerNorm(),
    }  # fmt: skip
    return nn.Sequential(*(make[name](*rest) for name, *rest in parts))


def torch_net(parts: list[Any]) -> mp.Model:
    make: dict[str, Any] = {
        "conv": lambda out, k: N.LazyConv2d(out, k), "norm": N.LazyBatchNorm2d, "relu": N.ReLU, "flatten": N.Flatten,
        "linear": lambda out: N.LazyLinear(out),
    }  # fmt: skip
    layers, x = [], torch.tensor(SMALL, dtype=torch.float32)
    for name, *rest in parts:
        layers.append(N.LayerNorm(x.shape[1:]) if name == "layer norm" else make[name](*rest))
        x = layers[-1].eval()(x)
    return mp.wrap(N.Sequential(*layers).double())


def keras_net(parts: list[Any]) -> mp.Model:
    """With each ReLU in the layer before it where that can be, so that positions differ from PyTorch's."""
    keras = library("keras")
    k, dtype = keras.layers, {"dtype": "float64"}
    layers: list[Any] = [k.Input(turned(SMALL, "keras").shape[1:], **dtype)]
    for (name, *rest), (then, *_) in zip(parts, [*parts[1:], ("",)], strict=True):
        joined = {"activation": "relu" if then == "relu" else None, **dtype}
        make: dict[str, Any] = {
            "conv": lambda out, size, joined=joined: k.Conv2D(out, size, **joined),
                "flatten": lambda: k.Flatten(**dtype),
            "linear": lambda out, joined=joined: k.Dense(out, **joined), "relu": lambda: k.ReLU(**dtype),
            "norm": lambda: k.BatchNormalization(epsilon=1e-5, momentum=0.9, **dtype),
            "layer norm": lambda: k.LayerNormalization(epsilon=1e-5, **dtype),
        }  # fmt: skip
        if name != "relu" or not isinstance(layers[-1], (k.Dense, k.Conv2D)):
            layers.append(make[name](*rest))
    return mp.wrap(keras.Sequential(layers))


MAKERS = {
    "native torch": torch_net,
    "native keras": keras_net,
    **{b: lambda parts, b=b: mp.build(spec_of(parts), SMALL, backend=b, dtype="float64") for b in ("torch", "mxnet",
        "jax", "tensorflow")},
}  # fmt: skip


@pytest.mark.needs(*sorted(set(NEEDS.values()) - {"tf_keras"}))
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    CONV,
    st.lists(PART, max_size=3),
    st.lists(TAIL, max_size=3),
    st.lists(st.sampled_from(sorted(MAKERS)), min_size=2, max_size=2, unique=True),
)
def test_random_networks(first: Any, head: list[Any], tail: list[Any], makers: list[str]) -> None:
    parts = [first, *head, ("flatten",), ("linear", 4), *tail, ("linear", 3)]
    source, target = (MAKERS[each](parts) for each in makers)
    fill(source), fill(target, "another")
    sides = ["keras" if each == "native keras" else "torch" for each in makers]
    x, expected = turned(SMALL, sides[0]), mp.to_numpy(source(source.native_array(turned(SMALL, sides[0]))))
    report = mp.transfer(source, target, accept_guesses=True, verify=x, bound=1e5)
    assert not report.plan.missing and not report.plan.unused and ("keras" in sides or not report.plan.options)
    if np.abs(expected).max() > 1e-3:
        assert report.agrees, f"{makers}\n{report}\n{report.plan}"
    before = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    fill(source, "a third")
    mp.transfer(target, source, accept_guesses=True)
    after = source.state_dict()
    assert all(np.array_equal(after[name], value) for name, value in before.items())
