"""Traps of judging, as data: what layers compute, what gradients are, and what models do besides. See support.traps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .traps import AGREES, DISAGREES, RAISES, TOKENS, UNDECIDED, Forward, Trap, X, body

IMAGES = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype("float32")
SERIES = np.random.default_rng(2).normal(size=(4, 6, 8)).astype("float32")
ZEROS = np.zeros((6, 8), "float32")


def through(*functions: Callable[[Any], Any]) -> tuple[Forward, ...]:
    """For each function a forward pass that has it between two linear layers."""
    return tuple(lambda m, x, f=function: m.b(f(m.a(x))) for function in functions)


def linears() -> dict[str, nn.Module]:
    return {"a": nn.Linear(8, 8), "b": nn.Linear(8, 4)}


def leak(slope: float) -> Callable[[Any], Any]:
    return lambda x: F.leaky_relu(x, slope)


def pair(name: str, right: str, one: Callable[[Any], Any], other: Callable[[Any], Any], **more: Any) -> Trap:
    """A function between two linear layers, and another one."""
    return Trap(name, right, *through(one, other), layers=more.pop("layers", linears), **more)


FUNCTIONS = [
    pair("relu", AGREES, F.relu, lambda x: x.clamp(min=0)),
    pair("relu by a product", AGREES, F.relu, lambda x: x * (x > 0)),
    pair("relu that leaks by 1e-3", DISAGREES, F.relu, leak(1e-3)),
    pair("relu that leaks by 1e-6", DISAGREES, F.relu, leak(1e-6)),
    pair("leaky relu of another slope", DISAGREES, leak(0.01), leak(0.011)),
    pair("relu of six where nothing is above", AGREES, F.relu, F.relu6),
    pair("relu of six", DISAGREES, lambda x: F.relu(9 * x), lambda x: F.relu6(9 * x)),
    pair("gelu", AGREES, F.gelu, lambda x: 0.5 * x * torch.erfc(-x / math.sqrt(2))),
    pair("gelu by tanh", DISAGREES, F.gelu, lambda x: F.gelu(x, approximate="tanh")),
    pair("gelu by sigmoid", DISAGREES, F.gelu, lambda x: x * torch.sigmoid(1.702 * x)),
    pair("silu", AGREES, F.silu, lambda x: x * torch.sigmoid(x)),
    pair("silu against hardswish", DISAGREES, F.silu, F.hardswish),
    pair("sigmoid by tanh", AGREES, torch.sigmoid, lambda x: 0.5 * (1 + torch.tanh(x / 2))),
    pair("hard sigmoid", DISAGREES, torch.sigmoid, F.hardsigmoid),
    pair("tanh by exponentials", AGREES, torch.tanh, lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())),
    pair("softplus by a logarithm", AGREES, F.softplus, lambda x: torch.log1p(x.exp())),
    pair("softplus of another beta", DISAGREES, F.softplus, lambda x: F.softplus(x, beta=1.01)),
    pair("elu against selu", DISAGREES, F.elu, F.selu),
    pair("softmax by hand", AGREES, lambda x: x.softmax(-1), lambda x: x.exp() / x.exp().sum(-1, keepdim=True)),
    pair("softmax over the batch", DISAGREES, lambda x: x.softmax(-1), lambda x: x.softmax(0)),
    pair("softmax of another temperature", DISAGREES, lambda x: x.softmax(-1), lambda x: (x / 1.0001).softmax(-1)),
    pair("logarithm of softmax", AGREES, lambda x: x.log_softmax(-1), lambda x: x.softmax(-1).log()),
    pair("log of base two", DISAGREES, lambda x: x.exp().log1p(), lambda x: (1 + x.exp()).log2()),
    pair("a step", AGREES, lambda x: (x > 0).to(x.dtype), lambda x: torch.heaviside(x, 0 * x)),
    pair("a step elsewhere", DISAGREES, lambda x: (x > 0).to(x.dtype), lambda x: (x > 0.5).to(x.dtype)),
    pair("rounding to whole numbers", AGREES, lambda x: torch.round(4 * x), lambda x: (x * 4).round()),
    pair("rounding down", DISAGREES, lambda x: torch.round(4 * x), lambda x: torch.floor(4 * x)),
    pair("a sum in another order", AGREES, lambda x: x.cumsum(-1), lambda x: x.sum(-1, keepdim=True) + x
         - x.flip(-1).cumsum(-1).flip(-1)),
    pair("features in another order", DISAGREES, lambda x: x, lambda x: x.flip(-1)),
    pair("nothing against a residual", DISAGREES, F.relu, lambda x: x + F.relu(x)),
    pair("a threshold never reached", AGREES, lambda x: x, lambda x: x.clamp(-50, 50)),
    pair("a threshold sometimes reached", DISAGREES, lambda x: x, lambda x: x.clamp(-1, 1)),
]  # fmt: skip


def norms(layer: Callable[[], nn.Module]) -> Callable[[], dict[str, nn.Module]]:
    return lambda: {"a": nn.Linear(8, 8), "n": layer(), "b": nn.Linear(8, 4)}


def normed(name: str, right: str, one: Callable[[], nn.Module], other: Callable[[], nn.Module], **more: Any) -> Trap:
    """A norm between two linear layers, and another one with its weights."""
    forward = more.pop("forward", lambda m, x: m.b(m.n(m.a(x))))
    return Trap(name, right, forward, more.pop("candidate", forward), layers=norms(one), other=norms(other), **more)


class Rms(nn.Module):
    def __init__(self, eps: float = 1e-6, one_more: bool = False, outside: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.eps, self.one_more, self.outside = eps, one_more, outside

    def forward(self, x: Any) -> Any:
        square = x.pow(2).mean(-1, keepdim=True)
        x = x / (square.sqrt() + self.eps if self.outside else (square + self.eps).sqrt())
        return x * (1 + self.weight if self.one_more else self.weight)


def unbiased(m: Any, x: Any) -> Any:
    h = m.a(x)
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True) + m.n.eps).sqrt()
    return m.b(h * m.n.weight + m.n.bias)


def with_statistics(mean: float, more: Any = None) -> Callable[[nn.Module], nn.Module]:
    def made(module: nn.Module) -> nn.Module:
        torch.nn.init.constant_(module.n.running_mean, mean)
        if more is not None:
            more(module)
        return module

    return made


def batch_by_hand(m: Any, x: Any) -> Any:
    h = m.a(x)
    h = (h - m.n.running_mean) * torch.rsqrt(m.n.running_var + m.n.eps)
    return m.b(h * m.n.weight + m.n.bias)


def batch_of_training(m: Any, x: Any) -> Any:
    h = m.a(x)
    return m.b(F.batch_norm(h, None, None, m.n.weight, m.n.bias, True, 0.1, m.n.eps))


BATCH, LAYER = (lambda: nn.BatchNorm1d(8)), (lambda: nn.LayerNorm(8))
NORMS = [
    normed("layer norm of another eps", DISAGREES, LAYER, lambda: nn.LayerNorm(8, 1e-6), says="eps"),
    normed("layer norm of nearly the same eps", DISAGREES, LAYER, lambda: nn.LayerNorm(8, 1.001e-5)),
    normed("layer norm of an eps of BERT", DISAGREES, LAYER, lambda: nn.LayerNorm(8, 1e-12)),
    normed("a variance divided by n - 1", DISAGREES, LAYER, LAYER, candidate=unbiased),
    normed("layer norm against a norm of one group", DISAGREES, lambda: nn.GroupNorm(2, 8), lambda: nn.GroupNorm(1, 8)),
    normed("rms norm", AGREES, Rms, lambda: Rms(outside=False)),
    normed("rms norm of another eps", DISAGREES, Rms, lambda: Rms(1e-5)),
    normed("rms norm with eps outside", DISAGREES, Rms, lambda: Rms(outside=True)),
    normed("rms norm with one more", DISAGREES, Rms, lambda: Rms(one_more=True)),
    normed("batch norm by hand", AGREES, BATCH, BATCH, candidate=batch_by_hand),
    normed("batch norm with the statistics of the batch", DISAGREES, BATCH, BATCH, candidate=batch_of_training),
    normed("batch norm of another eps", DISAGREES, BATCH, lambda: nn.BatchNorm1d(8, 1e-3), says="eps"),
    normed("batch norm of another momentum, in evaluation", AGREES, BATCH, lambda: nn.BatchNorm1d(8, momentum=0.01)),
    normed("batch norm of another momentum, in training", DISAGREES, BATCH, lambda: nn.BatchNorm1d(8, momentum=0.01),
           options={"steps": 2}),
    normed("batch norm in training", AGREES, BATCH, BATCH, options={"steps": 2}),
    normed("batch norm with other statistics", DISAGREES, BATCH, BATCH, made=with_statistics(0.5),
           also=with_statistics(0.4), says="running_mean"),
    normed("batch norm left in training mode", AGREES, BATCH, BATCH, made=with_statistics(0.5),
           also=with_statistics(0.5, lambda m: m.n.train())),
    normed("no statistics on one side", DISAGREES, BATCH, lambda: nn.BatchNorm1d(8, track_running_stats=False)),
]  # fmt: skip


def convolution(name: str, right: str, one: Any, other: Any, **more: Any) -> Trap:
    """A function of the output of a convolution, or of its image, and another one."""
    layers = more.pop("layers", lambda: {"c": nn.Conv2d(3, 4, 3, padding=1)})
    return Trap(name, right, one, other, layers=layers, inputs=more.pop("inputs", IMAGES), **more)


def conv(**options: Any) -> Forward:
    return lambda m, x: F.conv2d(x, m.c.weight, m.c.bias, **{"padding": 1, **options})


def pooled(pool: Callable[[Any], Any]) -> Forward:
    return lambda m, x: pool(m.c(x))


def padded_by(mode: str, *sides: int) -> Forward:
    return lambda m, x: F.conv2d(F.pad(x, sides or (1, 1, 1, 1), mode=mode), m.c.weight, m.c.bias)


def even() -> dict[str, nn.Module]:
    return {"c": nn.Conv2d(3, 4, 4)}


def resized(**options: Any) -> Forward:
    return pooled(lambda y: F.interpolate(y, size=(5, 5), **options))


def flattened(order: str) -> Forward:
    return lambda m, x: m.b((m.c(x).permute(0, 2, 3, 1) if order == "last" else m.c(x)).flatten(1))


def with_head() -> dict[str, nn.Module]:
    return {"c": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Linear(256, 3)}


largest, average = (lambda y: F.max_pool2d(y, 2)), (lambda y: F.avg_pool2d(y, 2))
IMAGE = [
    convolution("max pooling by reshaping", AGREES, pooled(largest),
                pooled(lambda y: y.reshape(2, 4, 4, 2, 4, 2).amax((3, 5)))),
    convolution("max pooling against average", DISAGREES, pooled(largest), pooled(average)),
    convolution("average pooling by reshaping", AGREES, pooled(average),
                pooled(lambda y: y.reshape(2, 4, 4, 2, 4, 2).mean((3, 5)))),
    convolution("padding counted in the average", DISAGREES, pooled(lambda y: F.avg_pool2d(y, 3, 2, 1)),
                pooled(lambda y: F.avg_pool2d(y, 3, 2, 1, count_include_pad=False))),
    convolution("pooling of another stride", DISAGREES, pooled(lambda y: F.max_pool2d(y, 2, 2)),
                pooled(lambda y: F.max_pool2d(y, 2, 1))),
    convolution("max pooling padded by zeros", DISAGREES, pooled(lambda y: F.max_pool2d(y, 3, 2, 1)),
                pooled(lambda y: F.max_pool2d(F.pad(y - 3, (1, 1, 1, 1)), 3, 2) + 3)),
    convolution("a mean over the image", AGREES, pooled(lambda y: y.mean((2, 3))),
                pooled(lambda y: F.adaptive_avg_pool2d(y, 1).flatten(1))),
    convolution("the largest of the image for its mean", DISAGREES, pooled(lambda y: y.mean((2, 3))),
                pooled(lambda y: y.amax((2, 3)))),
    convolution("padding as a layer of its own", AGREES, conv(), padded_by("constant")),
    convolution("padding by reflection", DISAGREES, conv(), padded_by("reflect")),
    convolution("padding by repetition", DISAGREES, conv(), padded_by("replicate")),
    convolution("no padding", DISAGREES, conv(), conv(padding=0)),
    convolution("same padding of an even kernel", AGREES,
                lambda m, x: F.conv2d(x, m.c.weight, m.c.bias, padding="same"), padded_by("constant", 1, 2, 1, 2),
                layers=even),
    convolution("same padding of an even kernel on the other side", DISAGREES, padded_by("constant", 1, 2, 1, 2),
                padded_by("constant", 2, 1, 2, 1), layers=even),
    convolution("same padding where the stride does not fit", DISAGREES, conv(stride=2),
                lambda m, x: F.conv2d(F.pad(x, (0, 1, 0, 1)), m.c.weight, m.c.bias, stride=2)),
    convolution("a stride", DISAGREES, conv(stride=2), conv()),
    convolution("dilation", DISAGREES, conv(), conv(dilation=2, padding=2)),
    convolution("dilation of a 1x1 kernel", AGREES, conv(padding=0), conv(padding=0, dilation=2),
                layers=lambda: {"c": nn.Conv2d(3, 4, 1)}),
    convolution("a kernel turned round", DISAGREES, conv(),
                lambda m, x: F.conv2d(x, m.c.weight.flip(2, 3), m.c.bias, padding=1)),
    convolution("a kernel transposed", DISAGREES, conv(),
                lambda m, x: F.conv2d(x, m.c.weight.transpose(2, 3), m.c.bias, padding=1)),
    convolution("by unfolding", AGREES, conv(), lambda m, x: (m.c.weight.reshape(4, -1) @ F.unfold(x, 3, padding=1)
                + m.c.bias[:, None]).reshape(2, 4, 8, 8)),
    convolution("corners aligned", DISAGREES, resized(mode="bilinear"), resized(mode="bilinear", align_corners=True)),
    convolution("nearest against bilinear", DISAGREES, resized(mode="nearest"), resized(mode="bilinear")),
    convolution("nearest and exact", DISAGREES, resized(mode="nearest"), resized(mode="nearest-exact")),
    convolution("pixels shuffled", DISAGREES, pooled(lambda y: F.pixel_shuffle(y, 2)),
                pooled(lambda y: F.interpolate(y.mean(1, keepdim=True), scale_factor=2))),
    convolution("flattened with channels last", DISAGREES, flattened("first"), flattened("last"), layers=with_head),
    convolution("flattened alike", AGREES, flattened("last"), flattened("last"), layers=with_head),
    convolution("channels last outside", DISAGREES, conv(), lambda m, x: m.c(x).permute(0, 2, 3, 1)),
    convolution("colours in another order", DISAGREES, conv(), lambda m, x: m.c(x.flip(1))),
    convolution("in the memory format of channels last", AGREES, conv(),
                lambda m, x: m.c(x.contiguous(memory_format=torch.channels_last))),
]  # fmt: skip


def attention(heads: int = 2, scale: float = 1.0, mask: str = "", order: str = "qkv", mix: bool = False) -> Forward:
    """Self-attention over (batch, time, width)."""

    def forward(m: Any, x: Any) -> Any:
        named = {"q": m.q(x), "k": m.k(x), "v": m.v(x)}
        q, k, v = (named[each].unflatten(-1, (heads, -1)).transpose(1, 2) for each in order)
        scores = scale * q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        time = x.shape[1]
        later = torch.ones(time, time, dtype=torch.bool).triu(2 if mask == "off by one" else 1)
        if mask in ("infinite", "off by one"):
            scores = scores.masked_fill(later, -torch.inf)
        elif mask:
            scores = scores + float(mask) * later
        y = scores.softmax(-1) @ v
        if mix:
            y = y.flip(1)
        return m.o(y.transpose(1, 2).flatten(2))

    return forward


def fused(m: Any, x: Any) -> Any:
    q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (m.q, m.k, m.v))
    return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def projections() -> dict[str, nn.Module]:
    return {name: nn.Linear(8, 8) for name in "qkvo"}


def attending(name: str, right: str, other: Forward, one: Forward | None = None) -> Trap:
    return Trap(name, right, one or attention(), other, layers=projections, inputs=SERIES)


ATTENTION = [
    attending("attention by one kernel", AGREES, fused),
    attending("q and k swapped", DISAGREES, attention(order="kqv")),
    attending("k and v swapped", DISAGREES, attention(order="qvk")),
    attending("another number of heads", DISAGREES, attention(heads=4)),
    attending("heads permuted", DISAGREES, attention(mix=True)),
    attending("scores of another scale", DISAGREES, attention(scale=1.0001)),
    attending("no mask", DISAGREES, attention(), attention(mask="infinite")),
    attending("a mask of large numbers", AGREES, attention(mask="-1e9"), attention(mask="infinite")),
    attending("a mask of numbers that are not large", DISAGREES, attention(mask="-10"), attention(mask="infinite")),
    attending("a mask off by one", DISAGREES, attention(mask="off by one"), attention(mask="infinite")),
]


def rotated(base: float = 10000.0, halves: bool = True, start: int = 0) -> Forward:
    def forward(m: Any, x: Any) -> Any:
        angles = (torch.arange(x.shape[1]) + start)[:, None] * base ** (-torch.arange(4) / 4.0)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        q = m.q(x)
        a, b = (q[..., :4], q[..., 4:]) if halves else (q[..., ::2], q[..., 1::2])
        parts = a * cos - b * sin, a * sin + b * cos
        return m.o(torch.cat(parts, -1) if halves else torch.stack(parts, -1).flatten(-2))

    return forward


def recurrent(kind: type = nn.GRU, **options: Any) -> dict[str, nn.Module]:
    return {"r": kind(8, 5, batch_first=True, **options)}


def last_state(m: Any, x: Any) -> Any:
    return m.r(x)[0]


def gru(after: bool = True, turned: bool = False) -> Forward:
    """A GRU by hand; with its reset gate before the product, and with its gates in another order."""

    def forward(m: Any, x: Any) -> Any:
        h, outputs = x.new_zeros(len(x), 5), []
        r, w = m.r, slice(10, 15)
        for t in range(x.shape[1]):
            i, j = F.linear(x[:, t], r.weight_ih_l0, r.bias_ih_l0), F.linear(h, r.weight_hh_l0, r.bias_hh_l0)
            reset, update = torch.sigmoid(i[:, :10] + j[:, :10]).chunk(2, -1)
            if turned:
                reset, update = update, reset
            candidate = reset * j[:, w] if after else F.linear(reset * h, r.weight_hh_l0[w], r.bias_hh_l0[w])
            h = (1 - update) * torch.tanh(i[:, w] + candidate) + update * h
            outputs.append(h)
        return torch.stack(outputs, 1)

    return forward


def looked_up(position: int = 0, scale: float = 1.0, words: Callable[[Any], Any] = lambda t: t) -> Forward:
    def forward(m: Any, tokens: Any) -> Any:
        places = torch.arange(tokens.shape[1]) + position
        return m.b(scale * m.e(words(tokens)) + m.p(places))

    return forward


def embeddings(**options: Any) -> Callable[[], dict[str, nn.Module]]:
    return lambda: {"e": nn.Embedding(7, 8, **options), "p": nn.Embedding(6, 8), "b": nn.Linear(8, 4)}


def words(name: str, right: str, one: Forward, **more: Any) -> Trap:
    return Trap(name, right, looked_up(), one, **{"layers": embeddings(), "inputs": TOKENS, **more})


def changed(path: str, at: Any, by: float) -> Callable[[nn.Module], nn.Module]:
    """One number, or one row, of a parameter is another."""

    def made(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            module.get_parameter(path)[at] += by
        return module

    return made


def zeroed(path: str, at: Any) -> Callable[[nn.Module], nn.Module]:
    def made(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            module.get_parameter(path)[at] = 0
        return module

    return made


SEQUENCES = [
    Trap("positions rotated", AGREES, rotated(), rotated(), layers=projections, inputs=SERIES),
    Trap("rotated from one", DISAGREES, rotated(), rotated(start=1), layers=projections, inputs=SERIES),
    Trap("rotated by another base", DISAGREES, rotated(), rotated(10001.0), layers=projections, inputs=SERIES),
    Trap("rotated in neighbours instead of halves", DISAGREES, rotated(), rotated(halves=False), layers=projections,
         inputs=SERIES),
    Trap("a GRU by hand", AGREES, last_state, gru(), layers=recurrent, inputs=SERIES),
    Trap("a GRU that resets before", DISAGREES, last_state, gru(after=False), layers=recurrent, inputs=SERIES),
    Trap("a GRU with its gates in another order", DISAGREES, last_state, gru(turned=True), layers=recurrent,
         inputs=SERIES),
    Trap("time before the batch", DISAGREES, last_state, lambda m, x: m.r(x)[0].transpose(0, 1), layers=recurrent,
         inputs=SERIES),
    Trap("time before the batch, as long as it", DISAGREES, last_state, lambda m, x: m.r(x)[0].transpose(0, 1),
         layers=recurrent, inputs=SERIES[:, :4]),
    Trap("backwards", DISAGREES, last_state, lambda m, x: m.r(x.flip(1))[0], layers=recurrent, inputs=SERIES),
    Trap("the last output against the state", AGREES, lambda m, x: m.r(x)[0][:, -1], lambda m, x: m.r(x)[1][0],
         layers=recurrent, inputs=SERIES),
    Trap("the first output for the last", DISAGREES, lambda m, x: m.r(x)[0][:, -1], lambda m, x: m.r(x)[0][:, 0],
         layers=recurrent, inputs=SERIES),
    words("words by a product", AGREES,
          lambda m, t: m.b(F.one_hot(t, 7).to(m.e.weight.dtype) @ m.e.weight + m.p.weight[: t.shape[1]])),
    words("positions off by one", DISAGREES, looked_up(position=1)),
    words("words off by one", DISAGREES, looked_up(words=lambda t: (t + 1) % 7)),
    words("an embedding scaled", DISAGREES, looked_up(scale=math.sqrt(8))),
    words("a wrong row", DISAGREES, looked_up(), also=changed("e.weight", 3, 0.01)),
    words("a wrong row that no word looks up", DISAGREES, looked_up(), also=changed("e.weight", 6, 0.01),
          says="e.weight"),
    words("rows that no word looks up", AGREES, looked_up(), says="did not exercise"),
    words("a row whose gradient is left out", DISAGREES, looked_up(), layers=embeddings(),
          other=embeddings(padding_idx=0), made=zeroed("e.weight", 0), says="gradients"),
    words("gradients scaled by frequency", DISAGREES, looked_up(), other=embeddings(scale_grad_by_freq=True)),
]  # fmt: skip


def stopped(part: float) -> Forward:
    return lambda m, x: (lambda y: part * y.detach() + (1 - part) * y)(body(m, x))


class Wrong(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return 1.01 * grad


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        raise RuntimeError("no backward pass")


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def tied(module: nn.Module) -> nn.Module:
    module.c.weight = module.a.weight
    return module


def training(module: nn.Module) -> nn.Module:
    return module.train()


def straight_through(m: Any, x: Any) -> Any:
    y = m.a(x)
    return m.b(y + (torch.round(y) - y).detach())


def no_grad(forward: Forward) -> Forward:
    @torch.no_grad()
    def run(m: Any, x: Any) -> Any:
        return forward(m, x)

    return run


def three() -> dict[str, nn.Module]:
    return {"a": nn.Linear(8, 8), "c": nn.Linear(8, 8), "b": nn.Linear(8, 4)}


def nothing() -> Mapping[str, Any]:
    return {}


def dropped(p: float, on: bool = False) -> Forward:
    return lambda m, x: m.b(F.dropout(m.a(x), p, training=on or m.training))


def twice(m: Any, x: Any) -> Any:
    return m.b(F.gelu(m.a(F.gelu(m.a(x)))))


def in_place(m: Any, x: Any) -> Any:
    x.mul_(2)
    return m.b(F.gelu(m.a(x)))


def outside(m: Any, x: Any) -> Any:
    return m.b(F.gelu(m.a(2 * x)))


def raising(m: Any, x: Any) -> Any:
    raise KeyError("no such word")


def by_value(m: Any, x: Any) -> Any:
    y = m.a(x)
    return m.b(y if float(y.detach().sum()) > 1e9 else F.gelu(y))


def counted(m: Any, x: Any) -> Any:
    m.count += 1
    return m.b(m.a(x))


def with_count() -> dict[str, Any]:
    return linears()


def given_count(module: nn.Module) -> nn.Module:
    module.register_buffer("count", torch.zeros(()))
    return module


def no_bias() -> dict[str, nn.Module]:
    return {"a": nn.Linear(8, 8, bias=False), "b": nn.Linear(8, 4, bias=False)}


gelu = lambda m, x: m.b(F.gelu(m.a(x)))  # noqa: E731
PAIR = (X, X[::-1].copy())
GRADIENTS = [
    Trap("detached", DISAGREES, body, stopped(1), says="gradients"),
    Trap("half detached", DISAGREES, body, stopped(0.5), says="gradients"),
    Trap("detached on both sides", AGREES, stopped(1), stopped(1)),
    Trap("one layer detached", DISAGREES, gelu, lambda m, x: m.b(F.gelu(m.a(x)).detach()), layers=linears),
    Trap("one layer detached on both sides", AGREES, lambda m, x: m.b(F.gelu(m.a(x)).detach()),
         lambda m, x: m.b(F.gelu(m.a(x).detach())), layers=linears),
    Trap("a gradient of its own, one per cent off", DISAGREES, gelu, lambda m, x: m.b(Wrong.apply(F.gelu(m.a(x)))),
         layers=linears, says="gradients"),
    Trap("a gradient of its own, one per cent off, in bfloat16", DISAGREES, gelu,
         lambda m, x: m.b(Wrong.apply(F.gelu(m.a(x)))), layers=linears, made=lambda m: m.bfloat16()),
    Trap("straight through", AGREES, straight_through, straight_through, layers=linears),
    Trap("straight through on one side", DISAGREES, lambda m, x: m.b(torch.round(m.a(x))), straight_through,
         layers=linears),
    Trap("no gradients on both sides", AGREES, no_grad(body), no_grad(body)),
    Trap("no gradients on one side", AGREES, body, no_grad(body), says="gradients"),
    Trap("no gradients on one side, and wrong", DISAGREES, body, no_grad(lambda m, x: 1.001 * body(m, x))),
    Trap("frozen", AGREES, body, body, made=frozen, says="no trainable parameter"),
    Trap("frozen, and wrong", DISAGREES, body, lambda m, x: 1.001 * body(m, x), made=frozen),
    Trap("frozen on one side", AGREES, body, body, also=frozen),
    Trap("no parameter", AGREES, lambda m, x: F.gelu(x), lambda m, x: F.gelu(x), layers=nothing),
    Trap("no parameter, and wrong", DISAGREES, lambda m, x: F.gelu(x), lambda m, x: F.silu(x), layers=nothing),
    Trap("a parameter that has no use", AGREES, lambda m, x: m.b(m.a(x)), lambda m, x: m.b(m.a(x)), layers=three,
         says="c.weight"),
    Trap("zeros that show a bias only", AGREES, gelu, gelu, inputs=ZEROS, layers=linears, says="did not exercise"),
    Trap("zeros that show nothing", UNDECIDED, gelu, lambda m, x: m.b(torch.tanh(m.a(x))), inputs=ZEROS,
         layers=no_bias),
    Trap("zeros by a last layer of zeros", UNDECIDED, gelu, lambda m, x: m.b(torch.tanh(m.a(x))),
         made=lambda m: zeroed("b.bias", ...)(zeroed("b.weight", ...)(m)), layers=linears),
]  # fmt: skip

BEHAVIOUR = [
    Trap("dropout left on", DISAGREES, dropped(0.1), dropped(0.1, on=True), layers=linears),
    Trap("dropout left on in the reference", DISAGREES, dropped(0.1, on=True), dropped(0.1), layers=linears),
    Trap("dropout of another rate, in evaluation", AGREES, dropped(0.1), dropped(0.5), layers=linears),
    Trap("a model in training mode", AGREES, dropped(0.1), dropped(0.1), layers=linears, also=training),
    Trap("noise", DISAGREES, gelu, lambda m, x: gelu(m, x) + 1e-4 * torch.randn(6, 4), layers=linears),
    Trap("one layer twice", AGREES, twice, lambda m, x: m.b(F.gelu(F.linear(F.gelu(m.a(x)), m.a.weight, m.a.bias))),
         layers=linears),
    Trap("one layer once", DISAGREES, twice, gelu, layers=linears),
    Trap("one layer three times", DISAGREES, twice, lambda m, x: twice(m, F.gelu(m.a(x))), layers=linears),
    Trap("two layers in another order", DISAGREES, lambda m, x: m.b(m.c(F.gelu(m.a(x)))),
         lambda m, x: m.b(m.a(F.gelu(m.c(x)))), layers=three),
    Trap("a layer left out", DISAGREES, lambda m, x: m.b(m.c(F.gelu(m.a(x)))), lambda m, x: m.b(F.gelu(m.a(x))),
         layers=three),
    Trap("tied", AGREES, lambda m, x: m.b(m.c(F.gelu(m.a(x)))), lambda m, x: m.b(m.c(F.gelu(m.a(x)))), layers=three,
         made=tied),
    Trap("tied on one side", DISAGREES, lambda m, x: m.b(m.c(F.gelu(m.a(x)))),
         lambda m, x: m.b(m.c(F.gelu(m.a(x)))), layers=three,
         made=lambda m: tied(m) and untied(m), also=tied, says="ties"),
    Trap("an input changed in place", AGREES, in_place, outside, layers=linears),
    Trap("an input changed in place on both sides", AGREES, in_place, in_place, layers=linears),
    Trap("an input changed in place, and wrong", DISAGREES, in_place, gelu, layers=linears),
    Trap("an activation in place", AGREES, lambda m, x: m.b(F.relu(m.a(x))),
         lambda m, x: m.b(F.relu_(m.a(x))), layers=linears),
    Trap("an activation in place, and leaking", DISAGREES, lambda m, x: m.b(F.relu(m.a(x))),
         lambda m, x: m.b(F.leaky_relu_(m.a(x), 1e-3)), layers=linears),
    Trap("decided by a value", AGREES, gelu, by_value, layers=linears),
    Trap("one number of a weight", DISAGREES, body, body, also=changed("a.weight", (0, 0), 1e-4), says="a.weight"),
    Trap("the last place of a weight", DISAGREES, body, body, also=changed("a.weight", (0, 0), 3e-8)),
    Trap("a bias of a wrong sign", DISAGREES, gelu, lambda m, x: m.b(F.gelu(m.a(x) - 2 * m.a.bias)), layers=linears),
    Trap("a bias twice", DISAGREES, gelu, lambda m, x: m.b(F.gelu(m.a(x) + m.a.bias)), layers=linears),
    Trap("a weight transposed", DISAGREES, gelu, lambda m, x: m.b(F.gelu(x @ m.a.weight + m.a.bias)), layers=linears),
    Trap("a layer of its own less", DISAGREES, body, gelu, other=linears, says="n.weight"),
    Trap("a bias missing", DISAGREES, gelu, gelu, layers=linears, says="b.bias",
         other=lambda: {"a": nn.Linear(8, 8), "b": nn.Linear(8, 4, bias=False)}),
    Trap("two inputs", AGREES, lambda m, x, y: m.b(m.a(x) * y), lambda m, x, y: m.b(y * m.a(x)), layers=linears,
         inputs=PAIR),
    Trap("two inputs swapped", DISAGREES, lambda m, x, y: m.b(m.a(x) * y), lambda m, y, x: m.b(m.a(x) * y),
         layers=linears, inputs=PAIR),
    Trap("two inputs by name", AGREES, lambda m, x, y: m.b(m.a(x) * y), lambda m, y, x: m.b(m.a(x) * y),
         layers=linears, inputs={"x": PAIR[0], "y": PAIR[1]}),
    Trap("an option by name", AGREES, lambda m, x, s: m.b(s * m.a(x)), lambda m, x, s=1: m.b(s * m.a(x)),
         layers=linears, inputs={"x": X, "s": 3}),
    Trap("an option that one passes over", DISAGREES, lambda m, x, s: m.b(s * m.a(x)), lambda m, x, s: m.b(m.a(x)),
         layers=linears, inputs={"x": X, "s": 3}),
    Trap("a candidate that raises", RAISES, gelu, raising, layers=linears, says="candidate.*no such word"),
    Trap("a reference that raises", RAISES, raising, gelu, layers=linears, says="reference.*no such word"),
    Trap("inputs of another shape", RAISES, gelu, gelu, layers=linears, inputs=X[:, :5], says="reference"),
    Trap("a backward pass that raises", AGREES, gelu, lambda m, x: Raises.apply(gelu(m, x)), layers=linears,
         says="no backward pass"),
    Trap("steps of training", AGREES, gelu, gelu, layers=linears, options={"steps": 3, "optimizer": "adam"}),
    Trap("a batch of one", AGREES, body, body, inputs=X[:1]),
    Trap("a batch of none", UNDECIDED, body, body, inputs=X[:0]),
]  # fmt: skip


def untied(module: nn.Module) -> nn.Module:
    module.c.weight = nn.Parameter(module.c.weight.detach().clone())
    return module


TRAPS = [*FUNCTIONS, *NORMS, *IMAGE, *ATTENTION, *SEQUENCES, *GRADIENTS, *BEHAVIOUR]
