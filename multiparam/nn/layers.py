"""Descriptions of layers with one input and one output, and of chains of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InvalidArgument, ShapeError, WrongType

Shape = tuple[int, ...]  # without the batch axis
Size = int | tuple[int, ...]
CHANNELS = "an input (N, channels, *spatial)"


# Descriptions compare by identity (``eq=False`` below): using one object twice shares its weights, and two layers that
# happen to have the same options must stay two.
class Layer:
    """The root of all descriptions. Two layers are the same one only if they are the same object."""

    # Where channels sit last natively: "last" for layers that need it so, "first" for those that read the
    # axes in canonical order, "any" for elementwise ones.
    order = "first"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "padding" else 1
            numbers = value if isinstance(value, tuple) else (value,)
            if any(type(n) is int and n < least for n in numbers):
                raise InvalidArgument(f"{type(self).__name__} has {name}={value!r}; it is {least} or more.")

    def infer(self, shape: Shape) -> Shape:
        """The output shape for an input shape.

        Args:
            shape: The input's shape without the batch axis, channels first.

        Returns:
            The output's, likewise.

        Raises:
            ShapeError: The layer has no meaning for such an input.
        """
        return shape


def sizes(value: Size, n: int) -> tuple[int, ...]:
    """One number per spatial axis.

    Args:
        value: One number for all axes, or one each.
        n: How many spatial axes there are.

    Returns:
        ``n`` numbers.

    Raises:
        ShapeError: ``value`` has another count of numbers.

    >>> sizes(3, 2), sizes((3, 5), 2)
    ((3, 3), (3, 5))
    """
    result = (value,) * n if isinstance(value, int) else tuple(value)
    if len(result) != n:
        raise ShapeError(f"{value!r} has {len(result)} numbers for {n} spatial axes")
    return result


def need(shape: Shape, rank: int, layer: Layer, what: str) -> None:
    """Refuse an input of too few axes.

    Args:
        shape: The input's, without the batch axis.
        rank: The least number of axes.
        layer: Which needs them.
        what: What it needs.

    Raises:
        ShapeError: There are fewer.
    """
    if len(shape) < rank:
        raise ShapeError(f"{type(layer).__name__} needs {what}; it gets {('N', *shape)}")


def _windows(shape: Shape, kernel: Size, stride: Size, padding: Size, dilation: Size, layer: Layer) -> Shape:
    n = len(shape)
    result = tuple(
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(
            shape, sizes(kernel, n), sizes(stride, n), sizes(padding, n), sizes(dilation, n), strict=True
        )
    )
    if min(result) < 1:
        raise ShapeError(f"{type(layer).__name__} with kernel {kernel} has no output on spatial shape {shape}")
    return result


@dataclass(frozen=True, eq=False)
class Linear(Layer):
    """``y = x Wᵀ + b`` over the last axis.

    Args:
        out_features: The size of the output's last axis; weight is (out_features, in), bias (out_features,).
        bias: Whether there is a ``b``.
    """

    out_features: int
    bias: bool = True

    def infer(self, shape: Shape) -> Shape:
        need(shape, 1, self, "an input (N, ..., features)")
        return (*shape[:-1], self.out_features)


@dataclass(frozen=True, eq=False)
class Conv(Layer):
    """Convolution over 1 to 3 spatial axes, as many as the input has.

    Sizes are one number for all spatial axes, or one each.

    Args:
        out_channels: The output's channels; weight is (out, in / groups, *kernel), bias (out,).
        kernel_size: The size of the window.
        stride: The step between windows.
        padding: Zeros added on both sides of each axis.
        dilation: The step between the elements of a window.
        groups: How many blocks the channels fall into, each seeing its own inputs only.
        bias: Whether a number is added to each output channel.
    """

    out_channels: int
    kernel_size: Size
    stride: Size = 1
    padding: Size = 0
    dilation: Size = 1
    groups: int = 1
    bias: bool = True

    order = "last"

    def infer(self, shape: Shape) -> Shape:
        need(shape, 2, self, CHANNELS)
        if len(shape) > 4:
            raise ShapeError(f"Conv takes 1 to 3 spatial axes; it gets {len(shape) - 1}")
        if shape[0] % self.groups or self.out_channels % self.groups:
            raise ShapeError(f"Conv: groups={self.groups} does not divide {shape[0]} and {self.out_channels} channels")
        spatial = _windows(shape[1:], self.kernel_size, self.stride, self.padding, self.dilation, self)
        return (self.out_channels, *spatial)

    def windows(self, n: int) -> tuple[Shape, Shape, Shape, Shape]:
        """The sizes for an input.

        Args:
            n: How many spatial axes it has.

        Returns:
            Kernel, stride, padding and dilation, one number per axis.
        """
        return sizes(self.kernel_size, n), sizes(self.stride, n), sizes(self.padding, n), sizes(self.dilation, n)


@dataclass(frozen=True, eq=False)
class _Pool(Layer):
    kernel_size: Size
    stride: Size | None = None
    padding: Size = 0

    order = "last"

    def infer(self, shape: Shape) -> Shape:
        need(shape, 2, self, CHANNELS)
        stride = self.kernel_size if self.stride is None else self.stride
        for k, p in zip(sizes(self.kernel_size, len(shape) - 1), sizes(self.padding, len(shape) - 1), strict=True):
            if 2 * p > k:
                raise ShapeError(f"{type(self).__name__}: padding {p} is more than half of kernel {k}")
        return (shape[0], *_windows(shape[1:], self.kernel_size, stride, self.padding, 1, self))

    def windows(self, n: int) -> tuple[Shape, Shape, Shape]:
        """The sizes for an input.

        Args:
            n: How many spatial axes it has.

        Returns:
            Kernel, stride and padding, one number per axis.
        """
        stride = self.kernel_size if self.stride is None else self.stride
        return sizes(self.kernel_size, n), sizes(stride, n), sizes(self.padding, n)


@dataclass(frozen=True, eq=False)
class MaxPool(_Pool):
    """Maximum over windows.

    Args:
        kernel_size: The size of a window: one number for all spatial axes, or one each.
        stride: The step between windows; None: the window's size.
        padding: Minus infinities added on both sides of each axis, at most half a window.
    """


@dataclass(frozen=True, eq=False)
class AvgPool(_Pool):
    """Mean over windows.

    Args:
        kernel_size: The size of a window: one number for all spatial axes, or one each.
        stride: The step between windows; None: the window's size.
        padding: Zeros added on both sides of each axis, at most half a window. They count in the mean, as in PyTorch.
    """


@dataclass(frozen=True, eq=False)
class BatchNorm(Layer):
    """Normalises each channel over batch and space, by running statistics in evaluation (Ioffe and Szegedy, 2015).

    Args:
        eps: Added to the variance.
        momentum: The weight of the new batch in the running statistics, as in PyTorch. Keras' and Flax' momentum is
            that of the old ones, 1 minus it.
    """

    eps: float = 1e-5
    momentum: float = 0.1

    order = "last"

    def infer(self, shape: Shape) -> Shape:
        need(shape, 1, self, CHANNELS)
        return shape


@dataclass(frozen=True, eq=False)
class LayerNorm(Layer):
    """Normalises the last axis (Ba, Kiros and Hinton, 2016). weight and bias have its size.

    Args:
        eps: Added to the variance.
    """

    eps: float = 1e-5

    def infer(self, shape: Shape) -> Shape:
        need(shape, 1, self, "an input (N, ..., features)")
        return shape


@dataclass(frozen=True, eq=False)
class Embedding(Layer):
    """Rows of a table looked up by integers.

    Args:
        num_embeddings: How many rows: inputs are below it.
        embedding_dim: The size of a row; weight is (num_embeddings, embedding_dim).
    """

    num_embeddings: int
    embedding_dim: int

    def infer(self, shape: Shape) -> Shape:
        return (*shape, self.embedding_dim)


@dataclass(frozen=True, eq=False)
class Dropout(Layer):
    """Zeroes elements in training and scales the rest by 1 / (1 - p); the identity in evaluation.

    Args:
        p: The probability of each element to be zeroed.
    """

    p: float = 0.5

    order = "any"


@dataclass(frozen=True, eq=False)
class Flatten(Layer):
    """All axes but the batch's into one, in canonical order: channels, then space."""

    def infer(self, shape: Shape) -> Shape:
        return (math.prod(shape),)


@dataclass(frozen=True, eq=False)
class ReLU(Layer):
    """Elementwise max(x, 0)."""

    order = "any"


@dataclass(frozen=True, eq=False)
class Tanh(Layer):
    """Hyperbolic tangent."""

    order = "any"


@dataclass(frozen=True, eq=False)
class Sigmoid(Layer):
    """1 / (1 + exp(-x))."""

    order = "any"


@dataclass(frozen=True, eq=False)
class GELU(Layer):
    """x Φ(x), Φ being the normal distribution's cumulative function (Hendrycks and Gimpel, 2016).

    Args:
        approximate: ``"none"`` for the exact form, PyTorch's default; ``"tanh"`` for 0.5 x (1 + tanh(...)).

    Raises:
        InvalidArgument: ``approximate`` is neither.
    """

    approximate: str = "none"

    order = "any"

    def __post_init__(self) -> None:
        if self.approximate not in ("none", "tanh"):
            raise InvalidArgument(f"GELU: approximate is 'none' or 'tanh', not {self.approximate!r}")


@dataclass(frozen=True, eq=False)
class Softmax(Layer):
    """Softmax over the last axis."""


class Container(Layer):
    """Layers with names: by position, or by you.

    Args:
        *layers: Layers, ``(name, layer)`` pairs, or one mapping name -> layer; at least one. Names may hold any text.

    Attributes:
        names: The children's names.
        layers: The children.

    Raises:
        WrongType: A child is no layer, or its name no text.
        InvalidArgument: There is no child, two have one name, or a name is not valid Unicode.
    """

    def __init__(self, *layers: Layer | tuple[str, Layer] | Mapping[str, Layer]) -> None:
        title = type(self).__name__
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            layers = tuple(layers[0].items())
        named = [entry if isinstance(entry, tuple) else (str(position), entry) for position, entry in enumerate(layers)]
        for name, layer in named:
            if not isinstance(name, str):
                raise WrongType(f"A child's name is a text; {title} gets {name!r}")
            # A lone surrogate has no UTF-8, so no file and no framework could hold the name.
            if any("\ud800" <= char <= "\udfff" for char in name):
                raise InvalidArgument(f"The child name {name!r} is no valid Unicode text")
            if not isinstance(layer, Layer):
                raise WrongType(f"{title} takes layers of mp.nn; at {name!r} it gets {type(layer).__name__}")
        self.names: tuple[str, ...] = tuple(name for name, _ in named)
        self.layers: tuple[Layer, ...] = tuple(layer for _, layer in named if isinstance(layer, Layer))
        if not named:
            raise InvalidArgument(f"{title} needs at least one layer")
        if len(set(self.names)) != len(self.names):
            raise InvalidArgument(f"{title} has two children of one name: {self.names}")

    def __repr__(self) -> str:
        children = ", ".join(f"{n!r}: {c!r}" for n, c in zip(self.names, self.layers, strict=True))
        return f"{type(self).__name__}({children})"


class Sequential(Container):
    """Layers one after another, named by position, or by you.

    Args:
        *layers: Layers, ``(name, layer)`` pairs, or one mapping name -> layer; at least one. Names may hold any text.

    Attributes:
        names: The children's names.
        layers: The children.

    Raises:
        WrongType: A child is no layer, or its name no text.
        InvalidArgument: There is no child, two have one name, or a name is not valid Unicode.

    >>> Sequential(Linear(8), ReLU()).names
    ('0', '1')
    >>> Sequential(("block 0", Linear(8)), ("block 1", Linear(8))).names
    ('block 0', 'block 1')
    """


@dataclass(frozen=True, eq=False)
class Residual(Layer):
    """``x + body(x)`` (He et al., 2016).

    Args:
        body: A layer that keeps the shape.
    """

    body: Layer
