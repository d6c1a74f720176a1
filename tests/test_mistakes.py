"""A transformer and a residual network, each written by hand in several frameworks, with one mistake put into one of
them at a time: ``mp.compare`` finds each, and says where, and of many also what it is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import multiparam as mp
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
TOKENS = np.random.default_rng(0).integers(0, WORDS, (2, TIME))
IMAGES = np.random.default_rng(1).normal(size=(4, 3, 16, 16)).astype("float32")


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
        weights = scores.softmax(1 if self.mistake == "softmax axis" else -1)
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
    weights = jax.nn.softmax(scores, axis=1 if mistake == "softmax axis" else -1)
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


class LinenTransposed(linen.Dense):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        kernel = self.param("kernel", self.kernel_init, (WIDTH, WIDTH))
        return x @ kernel.T + self.param("bias", self.bias_init, (WIDTH,))


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
        self.norm2, self.norm3 = linen.LayerNorm(epsilon=1e-5), linen.LayerNorm(epsilon=1e-5)
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


def torch_language(mistake: str = "") -> mp.Model:
    torch.manual_seed(0)
    return mp.wrap(TorchLanguage(mistake))


def linen_language(mistake: str = "") -> mp.Model:
    return mp.wrap(LinenLanguage(mistake), TOKENS)


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
        if self.mistake == "residual":
            return F.relu(y)
        if hasattr(self, "shortcut"):
            x = self.norm3(self.shortcut(x))
        return F.relu(y) + x if self.mistake == "order of relu" else F.relu(y + x)


class TorchResidual(nn.Module):
    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.mistake = mistake
        self.stem = nn.Conv2d(3, 8, 3, 2, 0 if mistake == "padding" else 1, bias=False)
        self.norm = nn.BatchNorm2d(8, eps=1e-3 if mistake == "eps" else 1e-5)
        self.block1, self.block2 = TorchBlock(8, 8, 1, mistake), TorchBlock(8, 16, 2, mistake)
        self.last = nn.GroupNorm(2 if mistake == "groups" else 4, 16)
        self.out = nn.Linear(16 * 4 * 4, 5, bias=mistake != "no bias")

    def forward(self, x: Any) -> Any:
        if self.mistake == "padding":
            x = F.pad(x, (0, 1, 0, 1))  # as TensorFlow's "same"
        x = self.norm(self.stem(x))
        x = F.leaky_relu(x) if self.mistake == "activation" else F.relu(x)
        x = self.last(self.block2(self.block1(x)))
        if self.mistake == "flatten":
            x = x.permute(0, 2, 3, 1)
        return self.out(F.dropout(x.flatten(1), 0.5, self.training or self.mistake == "dropout"))


def keras_block(x: Any, name: str, width: int, stride: int, mistake: str) -> Any:
    layers = keras.layers

    def conv(x: Any, what: str, size: int, stride: int = 1, dilation: int = 1) -> Any:
        x = layers.ZeroPadding2D(1)(x) if stride > 1 and size > 1 else x
        padding = "valid" if stride > 1 else "same"
        return layers.Conv2D(
            width, size, stride, padding, dilation_rate=dilation, use_bias=False, name=f"{name}_{what}"
        )(x)

    def norm(x: Any, what: str, **options: Any) -> Any:
        return layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_{what}")(x, **options)

    first, second = (1, stride) if mistake == "stride" else (stride, 1)
    y = conv(x, "conv1", 3, first)
    y = norm(layers.ReLU()(y), "norm1") if mistake == "order" else layers.ReLU()(norm(y, "norm1"))
    y = conv(y, "conv2", 3, second, 2 if mistake == "dilation" and stride == 1 else 1)
    y = norm(y, "norm2", **({"training": True} if mistake == "train mode" else {}))
    if mistake == "residual":
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
    x = layers.Dropout(0.5)(x, training=True) if mistake == "dropout" else layers.Dropout(0.5)(x)
    return mp.wrap(keras.Model(image, layers.Dense(5, use_bias=mistake != "no bias", name="out")(x)))


def torch_residual(mistake: str = "") -> mp.Model:
    torch.manual_seed(0)
    native = TorchResidual(mistake)
    return mp.wrap(native)
