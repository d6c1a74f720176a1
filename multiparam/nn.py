"""Portable architectures: plain frozen descriptions that every backend builds natively.

Layers say what PyTorch's layers of the same name say, with input sizes left out: they are inferred from the
inputs. Using one layer object twice shares it. Data is channels first, ``(N, C, *spatial)``.

    >>> shared = Linear(8)
    >>> spec = Sequential(Linear(8), ReLU(), shared, ReLU(), shared, ReLU(), Linear(1))
    >>> [node.shape for node in infer_shapes(spec, (4,)).leaves()][-1]
    (1,)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from .errors import InvalidArgument, ShapeError, WrongType

T = TypeVar("T")
Shape = tuple[int, ...]  # without the batch axis
Size = int | tuple[int, ...]


class Layer:
    """The root of all descriptions. Two layers are the same one only if they are the same object."""

    # Where channels sit last natively: "last" for layers that need it so, "first" for those that read the
    # axes in canonical order, "any" for elementwise ones.
    order = "first"

    def infer(self, shape: Shape) -> Shape:
        """The output shape for an input shape, both without the batch axis. Raises ShapeError."""
        return shape


def sizes(value: Size, n: int) -> tuple[int, ...]:
    """One number per spatial axis."""
    result = (value,) * n if isinstance(value, int) else tuple(value)
    if len(result) != n:
        raise ShapeError(f"{value!r} has {len(result)} numbers for {n} spatial axes")
    return result


def _need(shape: Shape, rank: int, layer: Layer, what: str) -> None:
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
    """``y = x Wᵀ + b`` over the last axis. weight (out_features, in), bias (out_features,)."""

    out_features: int
    bias: bool = True

    def infer(self, shape: Shape) -> Shape:
        _need(shape, 1, self, "an input (N, ..., features)")
        return (*shape[:-1], self.out_features)


@dataclass(frozen=True, eq=False)
class Conv(Layer):
    """Convolution over 1 to 3 spatial axes, as many as the input has. weight (out, in / groups, *kernel)."""

    out_channels: int
    kernel_size: Size
    stride: Size = 1
    padding: Size = 0
    dilation: Size = 1
    groups: int = 1
    bias: bool = True

    order = "last"

    def infer(self, shape: Shape) -> Shape:
        _need(shape, 2, self, "an input (N, channels, *spatial)")
        if len(shape) > 4:
            raise ShapeError(f"Conv takes 1 to 3 spatial axes; it gets {len(shape) - 1}")
        if shape[0] % self.groups or self.out_channels % self.groups:
            raise ShapeError(f"Conv: groups={self.groups} does not divide {shape[0]} and {self.out_channels} channels")
        spatial = _windows(shape[1:], self.kernel_size, self.stride, self.padding, self.dilation, self)
        return (self.out_channels, *spatial)

    def windows(self, n: int) -> tuple[Shape, Shape, Shape, Shape]:
        """Kernel, stride, padding and dilation, one number per spatial axis."""
        return sizes(self.kernel_size, n), sizes(self.stride, n), sizes(self.padding, n), sizes(self.dilation, n)


@dataclass(frozen=True, eq=False)
class _Pool(Layer):
    kernel_size: Size
    stride: Size | None = None
    padding: Size = 0

    order = "last"

    def infer(self, shape: Shape) -> Shape:
        _need(shape, 2, self, "an input (N, channels, *spatial)")
        stride = self.kernel_size if self.stride is None else self.stride
        for k, p in zip(sizes(self.kernel_size, len(shape) - 1), sizes(self.padding, len(shape) - 1), strict=True):
            if 2 * p > k:
                raise ShapeError(f"{type(self).__name__}: padding {p} is more than half of kernel {k}")
        return (shape[0], *_windows(shape[1:], self.kernel_size, stride, self.padding, 1, self))

    def windows(self, n: int) -> tuple[Shape, Shape, Shape]:
        """Kernel, stride and padding, one number per spatial axis."""
        stride = self.kernel_size if self.stride is None else self.stride
        return sizes(self.kernel_size, n), sizes(stride, n), sizes(self.padding, n)


@dataclass(frozen=True, eq=False)
class MaxPool(_Pool):
    """Maximum over windows; the padding is minus infinity."""


@dataclass(frozen=True, eq=False)
class AvgPool(_Pool):
    """Mean over windows; padded zeros count, as in PyTorch."""


@dataclass(frozen=True, eq=False)
class BatchNorm(Layer):
    """Normalises each channel over batch and space; ``momentum`` is the weight of the new batch, as in PyTorch."""

    eps: float = 1e-5
    momentum: float = 0.1

    order = "last"

    def infer(self, shape: Shape) -> Shape:
        _need(shape, 1, self, "an input (N, channels, *spatial)")
        return shape


@dataclass(frozen=True, eq=False)
class LayerNorm(Layer):
    """Normalises the last axis. weight and bias have its size."""

    eps: float = 1e-5

    def infer(self, shape: Shape) -> Shape:
        _need(shape, 1, self, "an input (N, ..., features)")
        return shape


@dataclass(frozen=True, eq=False)
class Embedding(Layer):
    """Rows of a table (num_embeddings, embedding_dim) looked up by integers."""

    num_embeddings: int
    embedding_dim: int

    def infer(self, shape: Shape) -> Shape:
        return (*shape, self.embedding_dim)


@dataclass(frozen=True, eq=False)
class Dropout(Layer):
    """Zeroes elements with probability ``p`` in training and scales the rest by 1 / (1 - p)."""

    p: float = 0.5

    order = "any"


@dataclass(frozen=True, eq=False)
class Flatten(Layer):
    """All axes but the batch's into one, in canonical order: channels, then space."""

    def infer(self, shape: Shape) -> Shape:
        return (math.prod(shape),)


@dataclass(frozen=True, eq=False)
class ReLU(Layer):
    """max(x, 0)."""

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
    """x Φ(x); ``approximate="tanh"`` for the tanh form. PyTorch's default is the exact one."""

    approximate: str = "none"

    order = "any"

    def __post_init__(self) -> None:
        if self.approximate not in ("none", "tanh"):
            raise InvalidArgument(f"GELU: approximate is 'none' or 'tanh', not {self.approximate!r}")


@dataclass(frozen=True, eq=False)
class Softmax(Layer):
    """Softmax over the last axis."""


class Sequential(Layer):
    """Layers one after another, named by position, or by you.

    >>> Sequential(Linear(8), ReLU()).names
    ('0', '1')
    >>> Sequential(("block 0", Linear(8)), ("block 1", Linear(8))).names
    ('block 0', 'block 1')
    """

    def __init__(self, *layers: Layer | tuple[str, Layer] | Mapping[str, Layer]) -> None:
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            layers = tuple(layers[0].items())
        named = [entry if isinstance(entry, tuple) else (str(position), entry) for position, entry in enumerate(layers)]
        for name, layer in named:
            if not isinstance(name, str):
                raise WrongType(f"A child's name is a text; Sequential gets {name!r}")
            if any("\ud800" <= char <= "\udfff" for char in name):
                raise InvalidArgument(f"The child name {name!r} is no valid Unicode text")
            if not isinstance(layer, Layer):
                raise WrongType(f"Sequential takes layers of mp.nn; at {name!r} it gets {type(layer).__name__}")
        self.names: tuple[str, ...] = tuple(name for name, _ in named)
        self.layers: tuple[Layer, ...] = tuple(layer for _, layer in named if isinstance(layer, Layer))
        if not named:
            raise InvalidArgument("Sequential needs at least one layer")
        if len(set(self.names)) != len(self.names):
            raise InvalidArgument(f"Sequential has two children of one name: {self.names}")

    def __repr__(self) -> str:
        return f"Sequential({', '.join(f'{n!r}: {c!r}' for n, c in zip(self.names, self.layers, strict=True))})"


@dataclass(frozen=True, eq=False)
class Residual(Layer):
    """``x + body(x)``; the body keeps the shape."""

    body: Layer


@dataclass
class Node:
    """One use of a layer in an architecture with known shapes.

    ``convert`` is what the data needs before this node where channels sit last natively: ``"last"``, ``"first"``
    or None; ``after`` the same behind it.
    """

    layer: Layer
    path: tuple[str, ...]
    positions: tuple[int, ...]
    input: Shape
    shape: Shape
    children: list[Node] = field(default_factory=list)
    convert: str | None = None
    after: str | None = None

    def leaves(self) -> Iterator[Node]:
        """The nodes that are not containers, in order of execution."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()


@dataclass
class Architecture:
    """An architecture with every shape known: what a backend's ``build`` gets."""

    root: Node
    dtype: str  # of the input, "int" kinds for embeddings
    shared: frozenset[int]  # ids of the layers used more than once

    def leaves(self) -> Iterator[Node]:
        """See :meth:`Node.leaves`."""
        return self.root.leaves()

    @property
    def input(self) -> Shape:
        """The input's shape without the batch axis."""
        return self.root.input

    def assemble(self, make: Callable[[Node, Callable[[Node], T]], T]) -> T:
        """The native model, made from the leaves up: one native layer for each layer, wherever it is used.

        Args:
            make: ``make(node, build)`` makes the native layer of a node; ``build(child)`` gives that of a child.

            >>> shared = Linear(4)
            >>> made = infer_shapes(Sequential(shared, ReLU(), shared), (4,)).assemble(
            ...     lambda node, build: [build(child) for child in node.children]
            ... )
            >>> made[0] is made[2], made[0] is made[1]
            (True, False)
        """
        made: dict[int, T] = {}

        def build(node: Node) -> T:
            key = id(node.layer)
            if key not in made:
                made[key] = make(node, build)
            return made[key]

        return build(self.root)


def infer_shapes(spec: Layer, shape: Shape, dtype: str = "float32") -> Architecture:
    """Infer every shape of an architecture and where its data must change order.

    Raises :class:`~multiparam.errors.ShapeError` naming the layer, and WrongType for something that is no layer.
    """
    if not isinstance(spec, Layer):
        raise WrongType(f"mp.build takes an architecture of mp.nn; it gets {type(spec).__name__}")
    uses: dict[int, list[Node]] = {}
    root = _infer(spec, (), (), tuple(shape), uses)
    for nodes in uses.values():
        first = nodes[0]
        for other in nodes[1:]:
            if other.input != first.input:
                raise ShapeError(
                    f"One {type(first.layer).__name__} is shared at {_at(first.path)} and {_at(other.path)} "
                    f"but gets {first.input} and {other.input} there"
                )
    result = Architecture(root, dtype, frozenset(key for key, nodes in uses.items() if len(nodes) > 1))
    _order(root, "first", result.shared, close=True)
    return result


def _at(path: tuple[str, ...]) -> str:
    return repr(".".join(path)) if path else "the top"


def _infer(
    layer: Layer, path: tuple[str, ...], positions: tuple[int, ...], shape: Shape, uses: dict[int, list[Node]]
) -> Node:
    node = Node(layer, path, positions, shape, shape)
    if isinstance(layer, Sequential):
        for position, (name, child) in enumerate(zip(layer.names, layer.layers, strict=True)):
            sub = _infer(child, (*path, name), (*positions, position), node.shape, uses)
            node.children.append(sub)
            node.shape = sub.shape
    elif isinstance(layer, Residual):
        body = _infer(layer.body, (*path, "body"), (*positions, 0), shape, uses)
        if body.shape != shape:
            raise ShapeError(f"Residual at {_at(path)}: the body turns {shape} into {body.shape}; it must keep it")
        node.children.append(body)
    else:
        try:
            node.shape = layer.infer(shape)
        except ShapeError as error:
            raise ShapeError(f"At {_at(path)}: {error}") from None
    uses.setdefault(id(layer), []).append(node)
    return node


def _order(node: Node, now: str, shared: frozenset[int], close: bool = False) -> str:
    """Mark where data changes between channels first and last; returns the order behind the node.

    A container used at several places must look the same at each: it starts and ends with channels first.
    """
    closed = close or (bool(node.children) and id(node.layer) in shared)
    if closed and now == "last":
        node.convert, now = "first", "first"
    before = now
    if not node.children:
        wants = node.layer.order if len(node.input) > 1 else "any"
        if wants != "any" and wants != now:
            node.convert, now = wants, wants
    for child in node.children:
        now = _order(child, now, shared)
    ends = "first" if closed else before if isinstance(node.layer, Residual) else now
    if ends != now:
        node.after = ends
    return ends


def convert(shape: Shape, order: str) -> tuple[int, ...]:
    """The permutation of a batch whose canonical shape (without batch) is ``shape`` into ``order``.

    >>> convert((3, 8, 9), "last"), convert((3, 8, 9), "first")
    ((0, 2, 3, 1), (0, 3, 1, 2))
    """
    n = len(shape)
    return (0, *range(2, n + 1), 1) if order == "last" else (0, n, *range(1, n))
