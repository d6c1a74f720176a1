"""Descriptions of branches that join, and of more norms, poolings and convolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ShapeError
from .layers import CHANNELS, Container, Layer, Shape, Size, need, sizes


class Join(Container):
    """Branches that all get the same input, and whose outputs become one."""

    def joined(self, shapes: list[Shape]) -> Shape:
        """The output's shape.

        Args:
            shapes: Those of the branches' outputs, without the batch axis.

        Returns:
            That of what they become.

        Raises:
            ShapeError: They do not fit each other.
        """
        raise NotImplementedError


class Add(Join):
    """The sum of what each branch makes of the input: a residual block with a projection is two branches.

    Args:
        *layers: Layers, ``(name, layer)`` pairs, or one mapping name -> layer; at least one.

    >>> from multiparam.nn import Linear, ReLU, Sequential
    >>> block = Add(("body", Sequential(Linear(8), ReLU(), Linear(6))), ("shortcut", Linear(6)))
    >>> block.names, block.joined([(6,), (6,)])
    (('body', 'shortcut'), (6,))
    """

    def joined(self, shapes: list[Shape]) -> Shape:
        if len(set(shapes)) > 1:
            raise ShapeError(f"Add: the branches give {' and '.join(map(str, dict.fromkeys(shapes)))}; one is needed")
        return shapes[0]


class Concat(Join):
    """What each branch makes of the input, one behind the other along the channels, axis 1.

    Args:
        *layers: Layers, ``(name, layer)`` pairs, or one mapping name -> layer; at least one.

    >>> from multiparam.nn import Conv
    >>> Concat(Conv(4, 1), Conv(8, 3, padding=1)).joined([(4, 5, 5), (8, 5, 5)])
    (12, 5, 5)
    """

    def joined(self, shapes: list[Shape]) -> Shape:
        if not all(shapes) or len({shape[1:] for shape in shapes}) > 1:
            raise ShapeError(f"Concat: the branches give {' and '.join(map(str, shapes))}; all but channels must agree")
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


@dataclass(frozen=True, eq=False)
class Identity(Layer):
    """The input itself: a branch that does nothing."""

    order = "any"


@dataclass(frozen=True, eq=False)
class _GlobalPool(Layer):
    order = "last"

    def infer(self, shape: Shape) -> Shape:
        need(shape, 2, self, CHANNELS)
        return shape[:1]


@dataclass(frozen=True, eq=False)
class GlobalAvgPool(_GlobalPool):
    """The mean over all spatial axes: (N, channels)."""


@dataclass(frozen=True, eq=False)
class GlobalMaxPool(_GlobalPool):
    """The maximum over all spatial axes: (N, channels)."""


@dataclass(frozen=True, eq=False)
class Tokens(Layer):
    """Positions in space as a sequence: (N, channels, *spatial) to (N, positions, channels), as in a ViT."""

    def infer(self, shape: Shape) -> Shape:
        need(shape, 2, self, CHANNELS)
        return (math.prod(shape[1:]), shape[0])


@dataclass(frozen=True, eq=False)
class ConvTranspose(Layer):
    """Transposed convolution over 1 to 3 spatial axes: the gradient of a convolution by its input.

    Args:
        out_channels: The output's channels; weight is (in, out, *kernel), bias (out,).
        kernel_size: The size of the window: one number for all spatial axes, or one each.
        stride: The step between windows in the output.
        padding: What is cut off on both sides of each axis of the output.
        bias: Whether a number is added to each output channel.
    """

    out_channels: int
    kernel_size: Size
    stride: Size = 1
    padding: Size = 0
    bias: bool = True

    order = "last"

    def infer(self, shape: Shape) -> Shape:
        need(shape, 2, self, CHANNELS)
        if len(shape) > 4:
            raise ShapeError(f"ConvTranspose takes 1 to 3 spatial axes; it gets {len(shape) - 1}")
        windows = zip(shape[1:], *self.windows(len(shape) - 1), strict=True)
        spatial = tuple((size - 1) * s - 2 * p + k for size, k, s, p in windows)
        if min(spatial) < 1:
            raise ShapeError(f"ConvTranspose with padding {self.padding} leaves nothing of spatial shape {shape[1:]}")
        return (self.out_channels, *spatial)

    def windows(self, n: int) -> tuple[Shape, Shape, Shape]:
        """The sizes for an input.

        Args:
            n: How many spatial axes it has.

        Returns:
            Kernel, stride and padding, one number per axis.
        """
        return sizes(self.kernel_size, n), sizes(self.stride, n), sizes(self.padding, n)


@dataclass(frozen=True, eq=False)
class GroupNorm(Layer):
    """Normalises groups of channels over space, each example by itself (Wu and He, 2018). weight and bias: a channel's.

    Args:
        num_groups: How many groups the channels fall into.
        eps: Added to the variance.
    """

    num_groups: int
    eps: float = 1e-5

    order = "last"

    def infer(self, shape: Shape) -> Shape:
        need(shape, 1, self, CHANNELS)
        if shape[0] % self.num_groups:
            raise ShapeError(f"GroupNorm: num_groups={self.num_groups} does not divide {shape[0]} channels")
        return shape


@dataclass(frozen=True, eq=False)
class InstanceNorm(Layer):
    """Normalises each channel over space, each example by itself; with weight and bias (Ulyanov et al., 2016).

    Args:
        eps: Added to the variance.
    """

    eps: float = 1e-5

    order = "last"

    def infer(self, shape: Shape) -> Shape:
        need(shape, 2, self, CHANNELS)
        return shape


@dataclass(frozen=True, eq=False)
class RMSNorm(Layer):
    """Divides the last axis by the root of its mean square (Zhang and Sennrich, 2019). weight has its size.

    Args:
        eps: Added to the mean square.
    """

    eps: float = 1e-5

    def infer(self, shape: Shape) -> Shape:
        need(shape, 1, self, "an input (N, ..., features)")
        return shape
