"""A transformer and a residual network, each written by hand in several frameworks, with one mistake put into one of
them at a time: ``mp.compare`` finds each, and says where, and of many also what it is."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import multiparam as mp
from multiparam import errors
from multiparam.comparison.models import Comparison

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
flax = pytest.importorskip("flax")
keras = pytest.importorskip("keras")

import jax.numpy as jnp  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from flax import linen, nnx  # noqa: E402
from torch import nn  # noqa: E402

WORDS, TIME, WIDTH, HEADS = 13, 6, 16, 2
pytestmark = pytest.mark.needs("torch", "jax", "tensorflow")

TOKENS = np.random.default_rng(0).integers(0, WORDS, (2, TIME))
IMAGES = np.random.default_rng(1).normal(size=(4, 3, 16, 16)).astype("float32")


def settled(net: mp.Model) -> mp.Model:
    """A model with weights as if it were trained, but for the biases of batch norms, which are those of a new one."""
    rng, state = np.random.default_rng(0), net.state_dict()
    for name, value in state.items():
        layer, leaf = name.rsplit(".", 1)
        drawn = rng.normal(size=value.shape) / math.sqrt(max(1, math.prod(value.shape[1:])))
        if leaf == "running_var" or (leaf == "weight" and value.ndim == 1):
            drawn = 1 + np.abs(drawn)
        state[name] = 0 * value if leaf == "bias" and f"{layer}.running_mean" in state else drawn.astype(value.dtype)
    net.load_state_dict(state)
    return net


# -- a transformer: a gated block before which it normalises, and a head as BERT's


class TorchNorm(nn.LayerNorm):
    """Written by hand, as in many tutorials: torch.var divides by n - 1."""

    def forward(self, x: Any) -> Any:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + self.eps) * self.weight + self.bias


class TorchTransposed(nn.Linear):
    def forward(self, x: Any) -> Any:
        return x @ self.weight + self.bias


class TorchAttention(nn.Module):
    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake, self.heads = mistake, 4 if mistake == "heads" else HEADS
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = (TorchTransposed if mistake == "transposed" else nn.Linear)(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        batch, time, width = x.shape
        q, k, v = (f(x).view(batch, time, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.mistake == "q and k":
            q, k = k, q
        scores = q @ k.transpose(-2, -1)
        if self.mistake != "no scale":
            scores = scores / math.sqrt(width if self.mistake == "scale of the model" else q.shape[-1])
        if self.mistake != "no mask":
            later = torch.ones(time, time, dtype=torch.bool).triu(2 if self.mistake == "mask off by one" else 1)
            scores = scores.masked_fill(later, -torch.inf)
        weights = scores.softmax(-2 if self.mistake == "softmax axis" else -1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, time, width))


class TorchGated(nn.Module):
    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH, bias=mistake != "no bias")

    def forward(self, x: Any) -> Any:
        a, b = self.up(x).chunk(2, -1)
        if self.mistake == "gate order":
            a, b = b, a
        h = F.gelu(a) * b if self.mistake == "gate's activation" else F.silu(a) * b
        return self.down(F.dropout(h, 0.25) if self.mistake == "dropout inside" else h)


class TorchLanguage(nn.Module):
    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.mistake = mistake
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(TIME, WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6 if mistake == "eps" else 1e-5)
        self.attention = TorchAttention(mistake)
        self.norm2 = (TorchNorm if mistake == "unbiased" else nn.LayerNorm)(WIDTH)
        self.gated = TorchGated(mistake)
        self.dense, self.norm3 = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.decode = nn.Linear(WIDTH, WORDS)

    def forward(self, tokens: Any) -> Any:
        x = self.words(tokens) * (1 if self.mistake == "embedding scale" else math.sqrt(WIDTH))
        x = x + self.places(torch.arange(tokens.shape[1]))
        if self.mistake == "dropout":
            x = F.dropout(x, 0.1)
        if self.mistake == "post-norm":
            x = self.norm1(x + self.attention(x))
            x = self.norm2(x + self.gated(x))
        else:
            y = self.attention(self.norm1(x))
            x = y if self.mistake == "residual" else x + y
            x = x + self.gated(self.norm2(x))
        return self.decode(self.head(self.dense(x)))

    def head(self, x: Any) -> Any:
        if self.mistake == "order":
            return F.gelu(self.norm3(x))
        if self.mistake == "activation":
            return self.norm3(F.relu(x))
        if self.mistake == "final dropout":
            return F.dropout(self.norm3(F.gelu(x)), 0.2)
        return self.norm3(F.gelu(x, approximate="tanh" if self.mistake == "gelu" else "none"))


def jax_attend(q: Any, k: Any, v: Any, mistake: str) -> Any:
    """Scaled dot-product attention, (batch, time, width) each."""
    batch, time, width = q.shape
    heads = 4 if mistake == "heads" else HEADS
    q, k, v = (a.reshape(batch, time, heads, -1) for a in (q, k, v))
    if mistake == "q and k":
        q, k = k, q
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
    if mistake != "no scale":
        scores = scores / math.sqrt(width if mistake == "scale of the model" else q.shape[-1])
    if mistake != "no mask":
        mask = jnp.tril(jnp.ones((time, time), bool), 1 if mistake == "mask off by one" else 0)
        scores = jnp.where(mask, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-2 if mistake == "softmax axis" else -1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, time, width)


def jax_gate(h: Any, mistake: str) -> Any:
    a, b = jnp.split(h, 2, axis=-1)
    if mistake == "gate order":
        a, b = b, a
    return jax.nn.gelu(a, approximate=False) * b if mistake == "gate's activation" else jax.nn.silu(a) * b


def jax_head(x: Any, norm: Callable[[Any], Any], mistake: str) -> Any:
    if mistake == "order":
        return jax.nn.gelu(norm(x), approximate=False)
    return norm(jax.nn.relu(x) if mistake == "activation" else jax.nn.gelu(x, approximate=mistake == "gelu"))


def jax_norm(x: Any, eps: float) -> Any:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True, ddof=1)
    return (x - mean) / jnp.sqrt(variance + eps)


class LinenTransposed(linen.Dense):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        kernel = self.param("kernel", self.kernel_init, (WIDTH, WIDTH))
        return x @ kernel.T + self.param("bias", self.bias_init, (WIDTH,))


class LinenNorm(linen.LayerNorm):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        scale, bias = (self.param(name, linen.initializers.ones, (WIDTH,)) for name in ("scale", "bias"))
        return jax_norm(x, self.epsilon) * scale + bias


class LinenAttention(linen.Module):
    mistake: str

    @linen.compact
    def __call__(self, x: Any) -> Any:
        q, k, v = (linen.Dense(WIDTH, name=name)(x) for name in "qkv")
        last = LinenTransposed if self.mistake == "transposed" else linen.Dense
        return last(WIDTH, name="out")(jax_attend(q, k, v, self.mistake))


class LinenGated(linen.Module):
    mistake: str

    @linen.compact
    def __call__(self, x: Any) -> Any:
        h = jax_gate(linen.Dense(4 * WIDTH, name="up")(x), self.mistake)
        return linen.Dense(WIDTH, use_bias=self.mistake != "no bias", name="down")(h)


class LinenLanguage(linen.Module):
    mistake: str = ""

    def setup(self) -> None:
        self.words, self.places = linen.Embed(WORDS, WIDTH), linen.Embed(TIME, WIDTH)
        self.norm1 = linen.LayerNorm(epsilon=1e-6 if self.mistake == "eps" else 1e-5)
        self.norm2 = (LinenNorm if self.mistake == "unbiased" else linen.LayerNorm)(epsilon=1e-5)
        self.norm3 = linen.LayerNorm(epsilon=1e-5)
        self.attention, self.gated = LinenAttention(self.mistake), LinenGated(self.mistake)
        self.dense, self.decode = linen.Dense(WIDTH), linen.Dense(WORDS)

    def __call__(self, tokens: Any) -> Any:
        x = self.words(tokens) * (1 if self.mistake == "embedding scale" else math.sqrt(WIDTH))
        x = x + self.places(jnp.arange(tokens.shape[1]))
        if self.mistake == "post-norm":
            x = self.norm1(x + self.attention(x))
            x = self.norm2(x + self.gated(x))
        else:
            y = self.attention(self.norm1(x))
            x = y if self.mistake == "residual" else x + y
            x = x + self.gated(self.norm2(x))
        return self.decode(jax_head(self.dense(x), self.norm3, self.mistake))


class NnxNorm(nnx.LayerNorm):
    def __call__(self, x: Any) -> Any:
        return jax_norm(x, self.epsilon) * self.scale + self.bias


class NnxTransposed(nnx.Linear):
    def __call__(self, x: Any) -> Any:
        return x @ self.kernel.T + self.bias


class NnxAttention(nnx.Module):
    def __init__(self, mistake: str, rngs: Any) -> None:
        self.mistake = mistake
        self.q, self.k, self.v = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(3))
        self.out = (NnxTransposed if mistake == "transposed" else nnx.Linear)(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.out(jax_attend(self.q(x), self.k(x), self.v(x), self.mistake))


class NnxGated(nnx.Module):
    def __init__(self, mistake: str, rngs: Any) -> None:
        self.mistake = mistake
        self.up, self.down = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
        self.drop = nnx.Dropout(0.25, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        h = jax_gate(self.up(x), self.mistake)
        return self.down(self.drop(h, deterministic=False) if self.mistake == "dropout inside" else h)


class NnxLanguage(nnx.Module):
    def __init__(self, mistake: str, rngs: Any) -> None:
        self.mistake = mistake
        self.words, self.places = nnx.Embed(WORDS, WIDTH, rngs=rngs), nnx.Embed(TIME, WIDTH, rngs=rngs)
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=1e-6 if mistake == "eps" else 1e-5, rngs=rngs)
        self.attention = NnxAttention(mistake, rngs)
        self.norm2 = (NnxNorm if mistake == "unbiased" else nnx.LayerNorm)(WIDTH, epsilon=1e-5, rngs=rngs)
        self.gated = NnxGated(mistake, rngs)
        self.dense, self.norm3 = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.decode = nnx.Linear(WIDTH, WORDS, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        x = self.words(tokens) * (1 if self.mistake == "embedding scale" else math.sqrt(WIDTH))
        x = x + self.places(jnp.arange(tokens.shape[1]))
        y = self.attention(self.norm1(x))
        x = y if self.mistake == "residual" else x + y
        x = x + self.gated(self.norm2(x))
        return self.decode(jax_head(self.dense(x), self.norm3, self.mistake))


def torch_language(mistake: str = "") -> mp.Model:
    return settled(mp.wrap(TorchLanguage(mistake)))


def linen_language(mistake: str = "") -> mp.Model:
    return settled(mp.wrap(LinenLanguage(mistake), TOKENS))


def nnx_language(mistake: str = "") -> mp.Model:
    return settled(mp.wrap(NnxLanguage(mistake, nnx.Rngs(0))))


# -- a residual network: a stem, a block, a block that halves, a norm of groups, and a linear layer


class TorchBatchNorm(nn.BatchNorm2d):
    """Somebody wanted the batch's statistics, always."""

    def forward(self, x: Any) -> Any:
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class TorchBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake
        strides = (1, stride) if mistake == "stride" else (stride, 1)
        dilation = 2 if mistake == "dilation" and stride == 1 else 1
        self.conv1 = nn.Conv2d(channels, width, 3, strides[0], 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, strides[1], dilation, dilation, bias=False)
        self.norm2 = (TorchBatchNorm if mistake == "train mode" else nn.BatchNorm2d)(width)
        if stride > 1:
            self.shortcut, self.norm3 = nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Any) -> Any:
        y = self.conv1(x)
        y = self.norm1(F.relu(y)) if self.mistake == "order" else F.relu(self.norm1(y))
        y = self.norm2(self.conv2(y))
        if self.mistake == "residual" and not hasattr(self, "shortcut"):
            return F.relu(y)
        if hasattr(self, "shortcut"):
            x = self.norm3(self.shortcut(x))
        return F.relu(y) + x if self.mistake == "order of relu" else F.relu(y + x)


class TorchResidual(nn.Module):
    def __init__(self, mistake: str = "", groups: int = 4) -> None:
        super().__init__()
        self.mistake = mistake
        self.stem = nn.Conv2d(3, 8, 3, 2, 0 if mistake == "padding" else 1, bias=False)
        self.norm = nn.BatchNorm2d(8, eps=1e-3 if mistake == "eps" else 1e-5)
        self.block1, self.block2 = TorchBlock(8, 8, 1, mistake), TorchBlock(8, 16, 2, mistake)
        self.last = nn.GroupNorm(2 if mistake == "groups" else groups, 16) if groups else nn.Identity()
        self.out = nn.Linear(16 * 4 * 4, 5, bias=mistake != "no bias")

    def forward(self, x: Any) -> Any:
        if self.mistake == "padding":
            x = F.pad(x, (0, 1, 0, 1))  # as TensorFlow's "same"
        x = self.norm(self.stem(x))
        x = F.leaky_relu(x) if self.mistake == "activation" else F.relu(x)
        x = self.last(self.block2(self.block1(x)))
        if self.mistake == "flatten":
            x = x.permute(0, 2, 3, 1)
        x = x.flatten(1)
        return self.out(F.dropout(x, 0.5) if self.mistake == "dropout" else x)


class KerasBatchNorm(keras.layers.BatchNormalization):
    def call(self, x: Any, training: Any = None, mask: Any = None) -> Any:
        return super().call(x, training=True)


class KerasDropout(keras.layers.Dropout):
    """As in "Monte Carlo dropout"."""

    def call(self, x: Any, training: Any = None) -> Any:
        return super().call(x, training=True)


def keras_block(x: Any, name: str, width: int, stride: int, mistake: str) -> Any:
    layers = keras.layers

    def conv(x: Any, what: str, size: int, stride: int = 1, dilation: int = 1) -> Any:
        x = layers.ZeroPadding2D(1)(x) if stride > 1 and size > 1 else x
        padding = "valid" if stride > 1 else "same"
        return layers.Conv2D(
            width, size, stride, padding, dilation_rate=dilation, use_bias=False, name=f"{name}_{what}"
        )(x)

    def norm(x: Any, what: str, layer: Any = layers.BatchNormalization) -> Any:
        return layer(epsilon=1e-5, momentum=0.9, name=f"{name}_{what}")(x)

    first, second = (1, stride) if mistake == "stride" else (stride, 1)
    y = conv(x, "conv1", 3, first)
    y = norm(layers.ReLU()(y), "norm1") if mistake == "order" else layers.ReLU()(norm(y, "norm1"))
    y = conv(y, "conv2", 3, second, 2 if mistake == "dilation" and stride == 1 else 1)
    y = norm(y, "norm2", KerasBatchNorm if mistake == "train mode" else layers.BatchNormalization)
    if mistake == "residual" and stride == 1:
        return layers.ReLU()(y)
    if stride > 1:
        x = norm(conv(x, "shortcut", 1, stride), "norm3")
    return layers.Add()([layers.ReLU()(y), x]) if mistake == "order of relu" else layers.ReLU()(layers.Add()([y, x]))


def keras_residual(mistake: str = "") -> mp.Model:
    layers = keras.layers
    x = image = keras.Input((16, 16, 3))
    x = x if mistake == "padding" else layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(8, 3, 2, "same" if mistake == "padding" else "valid", use_bias=False, name="stem")(x)
    momentum = 0.99 if mistake == "momentum" else 0.9
    x = layers.BatchNormalization(epsilon=1e-3 if mistake == "eps" else 1e-5, momentum=momentum, name="norm")(x)
    x = layers.LeakyReLU(negative_slope=0.01)(x) if mistake == "activation" else layers.ReLU()(x)
    x = keras_block(x, "block1", 8, 1, mistake)
    x = keras_block(x, "block2", 16, 2, mistake)
    x = layers.GroupNormalization(2 if mistake == "groups" else 4, epsilon=1e-5, name="last")(x)
    if mistake == "flatten":
        x = layers.Permute((3, 1, 2))(x)
    x = layers.Flatten()(x)
    x = KerasDropout(0.5)(x) if mistake == "dropout" else x
    return settled(mp.wrap(keras.Model(image, layers.Dense(5, use_bias=mistake != "no bias", name="out")(x))))


def torch_residual(mistake: str = "") -> mp.Model:
    return settled(mp.wrap(TorchResidual(mistake)))


def torch_residual_without_groups() -> mp.Model:
    return settled(mp.wrap(TorchResidual(groups=0)))


def gluon_residual(mistake: str = "") -> mp.Model:
    """The same in MXNet, without the norm of groups, which has a scale of another shape there."""
    from multiparam_mxnet.load import load

    mx = load()
    layers = mx.gluon.nn

    class Block(layers.HybridBlock):
        def __init__(self, channels: int, width: int, stride: int) -> None:
            super().__init__()
            strides = (1, stride) if mistake == "stride" else (stride, 1)
            dilation = 2 if mistake == "dilation" and stride == 1 else 1
            with self.name_scope():
                self.conv1 = layers.Conv2D(width, 3, strides[0], 1, use_bias=False, in_channels=channels)
                self.norm1 = layers.BatchNorm(in_channels=width)
                self.conv2 = layers.Conv2D(width, 3, strides[1], dilation, dilation, use_bias=False, in_channels=width)
                self.norm2 = layers.BatchNorm(in_channels=width)
                self.halves = stride > 1
                if self.halves:
                    self.shortcut = layers.Conv2D(width, 1, stride, use_bias=False, in_channels=channels)
                    self.norm3 = layers.BatchNorm(in_channels=width)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            y = self.conv1(x)
            y = self.norm1(F.relu(y)) if mistake == "order" else F.relu(self.norm1(y))
            with mx.autograd.train_mode() if mistake == "train mode" else contextlib.nullcontext():
                y = self.norm2(self.conv2(y))
            if self.halves:
                x = self.norm3(self.shortcut(x))
            elif mistake == "residual":
                return F.relu(y)
            return F.relu(y) + x if mistake == "order of relu" else F.relu(y + x)

    class Residual(layers.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.stem = layers.Conv2D(8, 3, 2, 0 if mistake == "padding" else 1, use_bias=False, in_channels=3)
                self.norm = layers.BatchNorm(epsilon=1e-3 if mistake == "eps" else 1e-5, in_channels=8)
                self.block1, self.block2 = Block(8, 8, 1), Block(8, 16, 2)
                self.out = layers.Dense(5, in_units=16 * 4 * 4)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            if mistake == "padding":
                x = F.pad(x, mode="constant", pad_width=(0, 0, 0, 0, 0, 1, 0, 1), constant_value=0)
            x = self.norm(self.stem(x))
            x = F.LeakyReLU(x, slope=0.01) if mistake == "activation" else F.relu(x)
            x = self.block2(self.block1(x))
            if mistake == "flatten":
                x = F.transpose(x, (0, 2, 3, 1))
            x = F.flatten(x)
            return self.out(F.Dropout(x, 0.5, mode="always") if mistake == "dropout" else x)

    native = Residual()
    native.initialize()
    return settled(mp.wrap(native, IMAGES))


# -- what is said of each mistake


NEEDS = {"gluon": pytest.mark.needs("mxnet")}


class Row(NamedTuple):
    mistake: str
    twins: str  # the frameworks whose implementation gets it
    parted: str  # what is said of the place begins so
    hint: str = ""  # all that is said of the cause


def rows(*table: Row) -> Any:
    cases = [(twin, row) for row in table for twin in row.twins.split()]
    return pytest.mark.parametrize(
        "twin, row",
        [pytest.param(twin, row, id=f"{row.mistake} in {twin}", marks=NEEDS.get(twin, ())) for twin, row in cases],
    )


class Pair(NamedTuple):
    """What makes a twin with a mistake, and the reference without one; inputs as the reference takes them, and its
    names in the twin."""

    make: Callable[[str], mp.Model]
    reference: Callable[[], mp.Model]
    inputs: np.ndarray
    rules: Any = None


TRANSFORMERS = {
    "torch": Pair(torch_language, linen_language, TOKENS),
    "linen": Pair(linen_language, torch_language, TOKENS),
    "nnx": Pair(nnx_language, torch_language, TOKENS),
}
UNDER, DOT = ({"block1_*": "block1.*", "block2_*": "block2.*"}, {"block1.*": "block1_*", "block2.*": "block2_*"})
RESIDUALS = {
    "torch": Pair(torch_residual, keras_residual, np.moveaxis(IMAGES, 1, -1), UNDER),
    "keras": Pair(keras_residual, torch_residual, IMAGES, DOT),
    "gluon": Pair(gluon_residual, torch_residual_without_groups, IMAGES),
}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """What is run once need not be fast."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


Recorded = Callable[[Pair], Path]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """What a pair's reference computes, once for all its twins."""
    made: dict[Any, Path] = {}

    def path(pair: Pair) -> Path:
        if pair.reference not in made:
            net, path = pair.reference(), tmp_path_factory.mktemp("recorded") / "reference.safetensors"
            with jax.disable_jit():
                made[pair.reference] = mp.record(path, net, pair.inputs)
        return made[pair.reference]

    return path


def compared(pair: Pair, mistake: str, recorded: Recorded) -> Comparison:
    path, net = recorded(pair), pair.make(mistake)
    with jax.disable_jit():  # it compiles single operations, once for all models, instead of each model's gradient
        return mp.compare({"twin": net}, against=path, sync="reference", rules=pair.rules)


def plainly(text: str) -> str:
    """The same with one name for a layer that has two."""
    return re.sub(r" -> [\w.]+", "", text).replace("_", ".")


def judge(found: Comparison, row: Row) -> None:
    pair = found.pairs[0]
    assert {check.check for check in pair.checks if not check.agrees} > {"outputs"}
    assert plainly(pair.parted).startswith(row.parted), str(found)
    hints = [plainly(hint) for hint in pair.hints]
    assert row.hint in hints if row.hint else not hints, str(found)


@pytest.mark.xdist_group("transformers")
@pytest.mark.parametrize("twin", TRANSFORMERS)
@pytest.mark.quick("torch", "linen")
def test_transformers_without_a_mistake_agree(twin: str, recorded: Recorded) -> None:
    found = compared(TRANSFORMERS[twin], "", recorded)
    assert found.agrees, str(found)
    assert "13 layers on the way" in [check.check for check in found.checks]
    assert next(check for check in found.checks if check.check == "outputs").dtype == "float64"


@pytest.mark.xdist_group("residual")
@pytest.mark.parametrize("twin", [pytest.param(twin, marks=NEEDS.get(twin, ())) for twin in RESIDUALS])
def test_residual_networks_without_a_mistake_agree(twin: str, recorded: Recorded) -> None:
    found = compared(RESIDUALS[twin], "", recorded)
    assert found.agrees, str(found)
    options = next(check for check in found.checks if check.check == "options")
    if twin != "gluon":  # Keras pads in a layer of its own
        assert len(options.items) == 2 and all(" padding is " in item for item in options.items)
        assert "it makes no difference" in options.expected
    assert not found.pairs[0].parted and not found.pairs[0].hints


ALL = "torch linen nnx"
ATTENTION = "between layers attention.v and attention.out, whose inputs are"
GATED = "between layers gated.up and gated.down, whose inputs are"
SILU = "after the layer there is silu of its first half times its second there"


@pytest.mark.xdist_group("transformers")
@rows(
    Row("eps", ALL, "at layer norm1: its inputs agree", "norm1: eps is 1e-05 there, 1e-06 here"),
    Row(
        "unbiased",
        ALL,
        "at layer norm2: its inputs agree",
        "it divides by the biased variance there, by the unbiased one here",
    ),
    Row("transposed", ALL, "at layer attention.out: its inputs agree", "it multiplies by the transposed weight"),
    Row("heads", "torch linen", ATTENTION),
    Row("q and k", ALL, ATTENTION),
    Row("no scale", "torch nnx", ATTENTION),
    Row("scale of the model", ALL, ATTENTION),
    Row("no mask", ALL, ATTENTION),
    Row("mask off by one", "torch nnx", ATTENTION),
    Row("softmax axis", "torch nnx", ATTENTION),
    Row("gate order", ALL, GATED, f"{SILU}, silu of its second half times its first here"),
    Row("gate's activation", "torch nnx", GATED, f"{SILU}, exact gelu of its first half times its second here"),
    Row("dropout inside", "torch nnx", GATED, "dropout (p = 0.25) is still on here"),
    Row("dropout", "torch", "between layers places and norm1", "dropout (p = 0.1) is still on here"),
    Row("final dropout", "torch", "between layers norm3 and decode", "dropout (p = 0.2) is still on here"),
    Row(
        "embedding scale",
        "torch nnx",
        "between layers places and norm1",
        "what is added to the layer's output is 0.25 times as much here",
    ),
    Row("post-norm", "torch linen", "between layers places and norm1"),
    Row(
        "residual",
        ALL,
        "between layers attention.out and norm2",
        "after the layer there is something else (a residual connection, a mask?) there, no activation here",
    ),
    Row(
        "order",
        "torch nnx",
        "between layers dense and norm3",
        "after the layer there is exact gelu there, no activation here",
    ),
    Row("activation", ALL, "between layers dense and norm3", "after the layer there is exact gelu there, relu here"),
    Row("gelu", ALL, "between layers dense and norm3", "after the layer there is exact gelu there, tanh's gelu here"),
)
def test_a_mistake_in_a_transformer_is_found_and_placed(twin: str, row: Row, recorded: Recorded) -> None:
    judge(compared(TRANSFORMERS[twin], row.mistake, recorded), row)


EVERY = "torch keras gluon"


@pytest.mark.xdist_group("residual")
@rows(
    Row("padding", "torch", "before layer stem"),  # it is done before
    Row("padding", "keras", "at layer stem: its inputs agree", "stem: padding is (1, 1) there, same here"),
    Row("padding", "gluon", "at layer stem: its inputs agree", "stem: padding is (1, 1) there, (0, 0) here"),
    Row("eps", EVERY, "at layer norm: its inputs agree", "norm: eps is 1e-05 there, 0.001 here"),
    Row(
        "stride",
        EVERY,
        "at layer block2.conv1: its inputs agree",
        "block2.conv1: stride is (2, 2) there, (1, 1) here",
    ),
    Row(
        "dilation",
        EVERY,
        "at layer block1.conv2: its inputs agree",
        "block1.conv2: dilation is (1, 1) there, (2, 2) here",
    ),
    Row("groups", "torch keras", "at layer last: its inputs agree", "last: groups is 4 there, 2 here"),
    Row(
        "train mode",
        EVERY,
        "at layer block1.norm2: its inputs agree",
        "it normalises by the batch's statistics here: it is in training mode",
    ),
    Row(
        "order",
        EVERY,
        "between layers block1.conv1 and block1.norm1",
        "after the layer there is no activation there, relu here",
    ),
    Row(
        "residual",
        EVERY,
        "between layers block1.norm2 and block2.conv1",
        "after the layer there is something else (a residual connection, a mask?) there, relu here",
    ),
    Row("order of relu", EVERY, "between layers block1.norm2 and block2.conv1"),
    Row(
        "activation",
        EVERY,
        "between layers norm and block1.conv1",
        "after the layer there is relu there, leaky relu (0.01) here",
    ),
    Row("dropout", "torch keras", "between layers last and out", "dropout (p = 0.5) is still on here"),
    Row("dropout", "gluon", "between layers block2.norm3 and out", "dropout (p = 0.5) is still on here"),
    Row(
        "flatten",
        "gluon",
        "between layers block2.norm3 and out",
        "it is flattened with channels first there, last here",
    ),
    Row(
        "flatten",
        "torch keras",
        "between layers last and out",
        "both flatten channels in one order, and the weight is permuted as if they did not",
    ),
)
def test_a_mistake_in_a_residual_network_is_found_and_placed(twin: str, row: Row, recorded: Recorded) -> None:
    judge(compared(RESIDUALS[twin], row.mistake, recorded), row)


@pytest.mark.xdist_group("residual")
def test_the_batch_norms_momentum_counts_where_it_trains() -> None:
    models = {"torch": torch_residual(), "keras": keras_residual("momentum")}
    found = mp.compare(models, IMAGES, sync="torch", rules=RESIDUALS["keras"].rules, steps=1)
    checks = {check.check: check for check in found.checks if not check.agrees}
    assert list(checks) == ["options", "1 steps of sgd"]
    assert "norm: momentum is 0.1 there, 0.01 here, when it trains" in checks["options"].items
    assert checks["1 steps of sgd"].detail.startswith("norm.running_")


# -- right models with wrong weights, brought over by hand


def halves_swapped(a: np.ndarray) -> np.ndarray:
    return np.concatenate(np.split(a, 2)[::-1])


class Weight(NamedTuple):
    mistake: str
    twin: str
    name: str
    change: Callable[[np.ndarray], np.ndarray]
    parted: str
    hint: str


WEIGHTS = (
    Weight(
        "a square weight transposed",
        "nnx",
        "attention.out.weight",
        np.transpose,
        "at layer attention.out: its inputs agree",
        "attention.out.weight is the transpose of attention.out.weight",
    ),
    Weight(
        "the halves of a gate swapped",
        "nnx",
        "gated.up.weight",
        halves_swapped,
        "at layer gated.up: its inputs agree",
        "gated.up.weight has the numbers of gated.up.weight in another order: its parts [1, 0]",
    ),
    Weight(
        "a bias forgotten",
        "nnx",
        "gated.down.bias",
        np.zeros_like,
        "at layer gated.down: its inputs agree",
        "its outputs differ by the same numbers everywhere, as of a bias",
    ),
    Weight(
        "a square kernel's channels transposed",
        "gluon",
        "block1.conv1.weight",
        lambda a: a.swapaxes(0, 1),
        "at layer block1.conv1: its inputs agree",
        "block1.conv1.weight has axes [1, 0, 2, 3] of block1.conv1.weight",
    ),
    Weight(
        "a kernel's height and width transposed",
        "gluon",
        "block1.conv1.weight",
        lambda a: a.swapaxes(2, 3),
        "at layer block1.conv1: its inputs agree",
        "block1.conv1.weight has axes [0, 1, 3, 2] of block1.conv1.weight",
    ),
    Weight(
        "a convolution's kernel for a correlation",
        "gluon",
        "stem.weight",
        lambda a: a[:, :, ::-1, ::-1],
        "at layer stem: its inputs agree",
        "stem.weight has the kernel of stem.weight flipped",
    ),
    Weight(
        "running statistics left behind",
        "gluon",
        "block2.norm1.running_var",
        np.ones_like,
        "at layer block2.norm1: its inputs agree",
        "",
    ),
)


def by_hand(source: mp.Model, twin: mp.Model, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    mp.transfer(source, twin)
    twin[name].assign(np.ascontiguousarray(change(twin[name].numpy())))


@pytest.mark.parametrize(
    "weight", [pytest.param(weight, id=weight.mistake, marks=NEEDS.get(weight.twin, ())) for weight in WEIGHTS]
)
def test_a_wrong_weight_is_named_and_placed(weight: Weight) -> None:
    pair = {**TRANSFORMERS, **RESIDUALS}[weight.twin]
    source, twin = pair.reference(), pair.make("")
    by_hand(source, twin, weight.name, weight.change)
    with jax.disable_jit():
        found = mp.compare({"reference": source, "twin": twin}, pair.inputs)
    judge(found, Row(weight.mistake, weight.twin, weight.parted, weight.hint))
    assert next(check.items for check in found.checks if check.check == "values") == (weight.name,)


def test_weights_of_queries_and_keys_that_are_swapped_are_named() -> None:
    source, twin = torch_language(), nnx_language()
    mp.transfer(source, twin)
    names = [f"attention.{part}.{leaf}" for part in "qk" for leaf in ("weight", "bias")]
    for name, value in zip(names, [source[name].numpy() for name in (*names[2:], *names[:2])], strict=True):
        twin[name].assign(value)
    with jax.disable_jit():
        found = mp.compare({"torch": source, "nnx": twin}, TOKENS)
    assert next(check.items for check in found.checks if check.check == "values") == tuple(sorted(names, reverse=True))
    assert found.pairs[0].parted.startswith("at layer attention.q: its inputs agree")


def test_a_linear_layer_whose_features_were_flattened_in_the_other_order_is_named() -> None:
    source, twin = torch_residual(), keras_residual()
    mp.transfer(source, twin, RESIDUALS["keras"].rules, accept_guesses=True)
    twin["out.weight"].assign(source["out.weight"].numpy())
    found = mp.compare({"torch": source, "keras": twin}, IMAGES, rules=RESIDUALS["keras"].rules)
    row = Row(
        "flatten",
        "keras",
        "at layer out: its inputs agree",
        "out.weight has the numbers of out.weight in another order: its columns as 16 x 16, transposed",
    )
    judge(found, row)


class TorchRecurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 4, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.rnn(x)[0]


@pytest.mark.parametrize("kind, order", [("LSTM", [0, 2, 1, 3]), ("GRU", [1, 0, 2])])
def test_gates_in_another_order_are_named(kind: str, order: list[int]) -> None:
    """As where a GRU's reset and update gates are taken for each other, which Keras and PyTorch keep in two orders."""
    sequence = keras.Input((5, 3))
    layer = getattr(keras.layers, kind)(4, return_sequences=True, name="rnn")
    source, twin = mp.wrap(TorchRecurrent(kind)), mp.wrap(keras.Model(sequence, layer(sequence)))
    inputs = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    mp.transfer(source, twin)
    assert mp.compare({"torch": source, "keras": twin}, inputs).agrees
    for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l0"):
        parts = np.split(source[name].numpy(), len(order))
        twin[name].assign(np.concatenate([parts[i] for i in order]))
    pair = mp.compare({"torch": source, "keras": twin}, inputs).pairs[0]
    assert pair.parted.startswith("at layer rnn: its inputs agree")
    assert pair.hints == [
        f"{name} has the numbers of {name} in another order: its parts {order}"
        for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l0")
    ]


# -- what another structure, or the framework itself, does not let pass


def test_a_missing_bias_is_a_matter_of_structure() -> None:
    source, twin = torch_language(), linen_language("no bias")
    with pytest.raises(errors.TransferError, match=r"gated\.down.*bias"):
        mp.compare({"torch": source, "linen": twin}, TOKENS, sync="torch")
    for name in twin.parameters():
        twin[name].assign(source[name].numpy())
    with jax.disable_jit():
        found = mp.compare({"torch": source, "linen": twin}, TOKENS)
    structure = next(check for check in found.checks if check.check == "structure")
    assert not structure.agrees and "gated.down" in structure.detail
    assert not found.agrees


@pytest.mark.parametrize(
    "layer, said",
    [
        (linen.Dropout(0.1, deterministic=False), "InvalidRngError"),
        (linen.BatchNorm(use_running_average=False), "ModifyScopeVariableError"),
    ],
    ids=["dropout", "batch norm"],
)
def test_flax_itself_refuses_to_evaluate_what_is_left_in_training_mode(layer: Any, said: str) -> None:
    source = mp.wrap(nn.Sequential(nn.Linear(4, 4)))
    twin = mp.wrap(linen.Sequential([linen.Dense(4), layer]), np.ones((2, 4), "float32"))
    with pytest.raises(errors.MultiparamError, match=said):
        mp.compare({"torch": source, "linen": twin}, np.eye(4, dtype="float32"))


# -- what is no mistake, and what hid some


def test_flax_layers_that_were_told_to_compute_in_float32_do_so_in_float64_too() -> None:
    source = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    inputs = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    layers = [linen.Dense(8, dtype=jnp.float32), linen.LayerNorm(epsilon=1e-5, dtype="float32"), linen.Dense(3)]
    embed = nnx.Embed(WORDS, WIDTH, rngs=nnx.Rngs(0))  # it keeps its array's dtype
    found = mp.compare({"torch": source, "linen": mp.wrap(linen.Sequential(layers), inputs)}, inputs, sync="torch")
    assert found.agrees, str(found)
    found = mp.compare({"torch": nn.Embedding(WORDS, WIDTH), "nnx": mp.wrap(embed)}, TOKENS, sync="torch")
    assert found.agrees, str(found)
    assert [layer.dtype for layer in layers] == [jnp.float32, "float32", None]
    assert embed.dtype == np.float32 and embed(TOKENS).dtype == np.float32


class TorchPositive(nn.Linear):
    factor = 1.0

    def forward(self, x: Any) -> Any:
        y = self.factor * super().forward(x)
        return y, y > 0


class TorchFirst(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layer = TorchPositive(4, 3)
        self.layer.factor = factor

    def forward(self, x: Any) -> Any:
        return self.layer(x)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_any_dtype_are_followed_whatever_else_they_give(dtype: Any) -> None:
    torch.manual_seed(0)
    models = {name: TorchFirst(factor).to(dtype) for name, factor in (("one", 1.0), ("three", 3.0))}
    inputs = np.eye(4, dtype="float32").astype(mp.to_numpy(torch.zeros(1, dtype=dtype)).dtype)
    found = mp.compare(models, inputs, sync="one", rtol_eps=8)
    assert found.pairs[0].parted.startswith("at layer layer: its inputs agree"), str(found)
    assert found.pairs[0].hints == ["its output here is 3 times that there"]
