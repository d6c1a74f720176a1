"""The layers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import autograd.numpy as np
import numpy
from autograd.scipy.special import erf
from autograd.tracer import getval

from .module import Buffer, Module, Parameter

Sizes = tuple[int, ...]
generator = numpy.random.default_rng()  # of dropout


def zeros(*shape: int, dtype: Any) -> Parameter:
    return Parameter(numpy.zeros(shape, dtype))


class Linear(Module):
    """``x @ kernel + bias``; kernel (in, out)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, dtype: Any = "float32") -> None:
        super().__init__()
        self.parameters["kernel"] = zeros(inputs, outputs, dtype=dtype)
        if bias:
            self.parameters["bias"] = zeros(outputs, dtype=dtype)

    def __call__(self, x: Any) -> Any:
        y = np.dot(x, self["kernel"])
        return y + self["bias"] if "bias" in self.parameters else y


class Conv(Module):
    """Convolution of (N, C, *space); kernel (*space, in / groups, out)."""

    def __init__(
        self, inputs: int, outputs: int, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes,
        groups: int = 1, bias: bool = True, dtype: Any = "float32",
    ) -> None:  # fmt: skip
        super().__init__()
        self.size, self.stride, self.padding, self.dilation, self.groups = size, stride, padding, dilation, groups
        self.parameters["kernel"] = zeros(*size, inputs // groups, outputs, dtype=dtype)
        if bias:
            self.parameters["bias"] = zeros(outputs, dtype=dtype)

    def __call__(self, x: Any) -> Any:
        kernel, groups, y = self["kernel"], self.groups, 0.0
        space = "xyz"[: len(self.size)]
        for at, seen in windows(x, self.size, self.stride, self.padding, self.dilation):
            seen = np.reshape(seen, (seen.shape[0], groups, -1, *seen.shape[2:]))
            part = np.reshape(kernel[at], (kernel.shape[-2], groups, -1))
            y = y + np.einsum(f"ngi{space},igo->ngo{space}", seen, part)
        y = np.reshape(y, (y.shape[0], -1, *y.shape[3:]))
        if "bias" in self.parameters:
            y = y + np.reshape(self["bias"], (-1, *[1] * len(self.size)))
        return y


def windows(x: Any, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, fill: float = 0.0) -> Any:
    """For each offset in a sliding window: the offset, and what all positions of the window see there."""
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)], "constant", constant_values=fill)
    count = [
        (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], size, stride, dilation, strict=True)
    ]  # fmt: skip
    for at in itertools.product(*map(range, size)):
        cut = [slice(o * d, o * d + s * (n - 1) + 1, s) for o, d, s, n in zip(at, dilation, stride, count, strict=True)]
        yield at, x[(slice(None), slice(None), *cut)]


class MaxPool(Module):
    """The largest in each window."""

    fill = -math.inf

    def __init__(self, size: Sizes, stride: Sizes, padding: Sizes) -> None:
        super().__init__()
        self.size, self.stride, self.padding = size, stride, padding

    def __call__(self, x: Any) -> Any:
        seen = windows(x, self.size, self.stride, self.padding, (1,) * len(self.size), self.fill)
        return self.reduce(np.stack([each for _, each in seen]))

    def reduce(self, seen: Any) -> Any:
        return np.max(seen, axis=0)


class AvgPool(MaxPool):
    """The mean of each window; padded zeros count."""

    fill = 0.0

    def reduce(self, seen: Any) -> Any:
        return np.mean(seen, axis=0)


class BatchNorm(Module):
    """Normalises each channel; ``momentum`` is the weight of the new batch."""

    def __init__(self, channels: int, eps: float, momentum: float, dtype: Any = "float32") -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.parameters["scale"] = zeros(channels, dtype=dtype)
        self.parameters["shift"] = zeros(channels, dtype=dtype)
        self.parameters["mean"] = Buffer(numpy.zeros(channels, dtype))
        self.parameters["var"] = Buffer(numpy.ones(channels, dtype))

    def __call__(self, x: Any) -> Any:
        axes, shape = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
        mean, var = self["mean"], self["var"]
        if self.training:
            mean = np.mean(x, axis=axes)
            var = np.mean((x - np.reshape(mean, shape)) ** 2, axis=axes)
            count = x.size // x.shape[1]
            self.follow("mean", getval(mean))
            self.follow("var", getval(var) * (count / max(count - 1, 1)))
        y = (x - np.reshape(mean, shape)) / np.sqrt(np.reshape(var, shape) + self.eps)
        return y * np.reshape(self["scale"], shape) + np.reshape(self["shift"], shape)

    def follow(self, name: str, batch: Any) -> None:
        buffer = self.parameters[name]
        buffer.data = ((1 - self.momentum) * buffer.data + self.momentum * batch).astype(buffer.data.dtype)


class LayerNorm(Module):
    """Normalises the last axis."""

    def __init__(self, size: int, eps: float, dtype: Any = "float32") -> None:
        super().__init__()
        self.eps = eps
        self.parameters["scale"] = zeros(size, dtype=dtype)
        self.parameters["shift"] = zeros(size, dtype=dtype)

    def __call__(self, x: Any) -> Any:
        centred = x - np.mean(x, axis=-1, keepdims=True)
        var = np.mean(centred**2, axis=-1, keepdims=True)
        return centred / np.sqrt(var + self.eps) * self["scale"] + self["shift"]


class RMSNorm(Module):
    """Divides the last axis by the root of its mean square."""

    def __init__(self, size: int, eps: float, dtype: Any = "float32") -> None:
        super().__init__()
        self.eps = eps
        self.parameters["scale"] = zeros(size, dtype=dtype)

    def __call__(self, x: Any) -> Any:
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + self.eps) * self["scale"]


class GroupNorm(Module):
    """Normalises groups of channels over space, each example by itself."""

    def __init__(self, groups: int, channels: int, eps: float, dtype: Any = "float32") -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.parameters["scale"] = zeros(channels, dtype=dtype)
        self.parameters["shift"] = zeros(channels, dtype=dtype)

    def __call__(self, x: Any) -> Any:
        split, shape = np.reshape(x, (x.shape[0], self.groups, -1)), (-1, *[1] * (x.ndim - 2))
        centred = split - np.mean(split, axis=-1, keepdims=True)
        var = np.mean(centred**2, axis=-1, keepdims=True)
        y = np.reshape(centred / np.sqrt(var + self.eps), x.shape)
        return y * np.reshape(self["scale"], shape) + np.reshape(self["shift"], shape)


class InstanceNorm(GroupNorm):
    """Normalises each channel over space, each example by itself."""

    def __init__(self, channels: int, eps: float, dtype: Any = "float32") -> None:
        super().__init__(channels, channels, eps, dtype)


class ConvTranspose(Module):
    """Each position of (N, C, *space) adds the kernel to the output, ``stride`` apart; kernel (*space, in, out)."""

    def __init__(
        self, inputs: int, outputs: int, size: Sizes, stride: Sizes, padding: Sizes,
        bias: bool = True, dtype: Any = "float32",
    ) -> None:  # fmt: skip
        super().__init__()
        self.size, self.stride, self.padding = size, stride, padding
        self.parameters["kernel"] = zeros(*size, inputs, outputs, dtype=dtype)
        if bias:
            self.parameters["bias"] = zeros(outputs, dtype=dtype)

    def __call__(self, x: Any) -> Any:
        y, axes = 0.0, "xyz"[: len(self.size)]
        for at in itertools.product(*map(range, self.size)):
            part = np.einsum(f"ni{axes},io->no{axes}", x, self["kernel"][at])
            for axis, offset in enumerate(at):
                part = np.moveaxis(np.tensordot(part, self.places(axis, offset, x), [[2 + axis], [0]]), -1, 2 + axis)
            y = y + part
        return y + np.reshape(self["bias"], (-1, *[1] * len(self.size))) if "bias" in self.parameters else y

    def places(self, axis: int, offset: int, x: Any) -> Any:
        """(positions in, positions out): 1 where one number of the kernel takes an input to an output."""
        count, size, stride, padding = x.shape[2 + axis], self.size[axis], self.stride[axis], self.padding[axis]
        rows = numpy.arange(count)[:, None]
        columns = numpy.arange((count - 1) * stride - 2 * padding + size)
        return (rows * stride + offset - padding == columns).astype(getval(x).dtype)


class Embedding(Module):
    """Rows of a table."""

    def __init__(self, count: int, size: int, dtype: Any = "float32") -> None:
        super().__init__()
        self.parameters["table"] = zeros(count, size, dtype=dtype)

    def __call__(self, x: Any) -> Any:
        return self["table"][x]


class Dropout(Module):
    """Zeroes elements in training and scales the rest."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def __call__(self, x: Any) -> Any:
        if not self.training:
            return x
        kept = (generator.random(x.shape) >= self.p) / (1 - self.p)
        return x * kept.astype(x.dtype)


class Flatten(Module):
    def __call__(self, x: Any) -> Any:
        return np.reshape(x, (x.shape[0], -1))


class GlobalAvgPool(Module):
    def __call__(self, x: Any) -> Any:
        return np.mean(x, axis=tuple(range(2, x.ndim)))


class GlobalMaxPool(Module):
    def __call__(self, x: Any) -> Any:
        return np.max(x, axis=tuple(range(2, x.ndim)))


class Tokens(Module):
    """(N, C, *space) as a sequence (N, positions, C)."""

    def __call__(self, x: Any) -> Any:
        return np.swapaxes(np.reshape(x, (*x.shape[:2], -1)), 1, 2)


class Identity(Module):
    def __call__(self, x: Any) -> Any:
        return x


class ReLU(Module):
    def __call__(self, x: Any) -> Any:
        return np.maximum(x, 0)


class Tanh(Module):
    def __call__(self, x: Any) -> Any:
        return np.tanh(x)


class Sigmoid(Module):
    def __call__(self, x: Any) -> Any:
        return 0.5 * (np.tanh(0.5 * x) + 1)


class GELU(Module):
    def __init__(self, tanh: bool = False) -> None:
        super().__init__()
        self.tanh = tanh

    def __call__(self, x: Any) -> Any:
        if self.tanh:
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))


class Softmax(Module):
    def __call__(self, x: Any) -> Any:
        e = np.exp(x - np.max(x, axis=-1, keepdims=True))
        return e / np.sum(e, axis=-1, keepdims=True)


class Sequential(Module):
    """One after another, under the names given."""

    def __init__(self, children: dict[str, Module]) -> None:
        super().__init__()
        self.children.update(children)

    def __call__(self, x: Any) -> Any:
        for child in self.children.values():
            x = child(x)
        return x


class Residual(Module):
    """``x + body(x)``."""

    def __init__(self, body: Module) -> None:
        super().__init__()
        self.children["body"] = body

    def __call__(self, x: Any) -> Any:
        return x + self.children["body"](x)


class Add(Sequential):
    """The sum of what each child makes of the input."""

    def __call__(self, x: Any) -> Any:
        first, *others = [child(x) for child in self.children.values()]
        return sum(others, first)


class Concat(Sequential):
    """What each child makes of the input, one behind the other along axis 1."""

    def __call__(self, x: Any) -> Any:
        return np.concatenate([child(x) for child in self.children.values()], axis=1)
