"""An architecture of :mod:`multiparam.nn` with every shape known: what an adapter builds natively.

Shapes are without the batch axis, and canonical: channels first. Where a framework keeps channels last, the marks of
each :class:`Node` say where its data changes order, so that adapters need not find out each for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from ..errors import ShapeError, WrongType
from ..nn import Container, Join, Layer, Residual, Shape

T = TypeVar("T")


@dataclass
class Node:
    """One use of a layer in an architecture with known shapes.

    Attributes:
        layer: The description; the same object in each of its uses.
        path: The names on the way to it from the top.
        positions: Its place among the children of each parent on that way.
        input: The shape of its input, without the batch axis.
        shape: The shape of its output, likewise.
        children: The nodes of a container's layers, in order of execution.
        convert: The order, ``"last"`` or ``"first"``, that the data must be brought into before this node where
            channels sit last natively; None: it is so already.
        after: The same behind it.
        rejoin: The same behind this use of it, which is a branch: both branches must be in one order.
        axis: Of a :class:`~multiparam.nn.Join`: where its channels are natively if they sit last, 1 or -1.
    """

    layer: Layer
    path: tuple[str, ...]
    positions: tuple[int, ...]
    input: Shape
    shape: Shape
    children: list[Node] = field(default_factory=list)
    convert: str | None = None
    after: str | None = None
    rejoin: str | None = None
    axis: int = 1

    def leaves(self) -> Iterator[Node]:
        """The nodes that are not containers, in order of execution.

        Yields:
            Each of them; the node itself where it has no children.
        """
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()


@dataclass
class Architecture:
    """An architecture with every shape known: what an adapter's ``build`` gets.

    Attributes:
        root: The node of the whole.
        dtype: numpy's name of the input's dtype: ``"int64"`` where an embedding looks it up.
        shared: The ids of the layers that are used more than once.
    """

    root: Node
    dtype: str
    shared: frozenset[int]

    def leaves(self) -> Iterator[Node]:
        """The nodes that are not containers, in order of execution.

        Yields:
            Each of them: see :meth:`Node.leaves`.
        """
        return self.root.leaves()

    @property
    def input(self) -> Shape:
        """The input's shape without the batch axis."""
        return self.root.input

    def assemble(self, make: Callable[[Node, Callable[[Node], T]], T]) -> T:
        """The native model, made from the leaves up: one native layer for each layer, wherever it is used.

        Args:
            make: ``make(node, build)`` makes the native layer of a node; ``build(child)`` gives that of a child.

        Returns:
            What ``make`` gives for the root.

            >>> from multiparam.nn import Linear, ReLU, Sequential
            >>> shared = Linear(4)
            >>> layers = infer_shapes(Sequential(shared, ReLU(), shared), (4,)).assemble(
            ...     lambda node, build: [build(child) for child in node.children]
            ... )
            >>> layers[0] is layers[2], layers[0] is layers[1]
            (True, False)
        """
        native: dict[int, T] = {}

        def build(node: Node) -> T:
            # By identity: sharing means one object, and two equal descriptions are two layers.
            key = id(node.layer)
            if key not in native:
                native[key] = make(node, build)
            return native[key]

        return build(self.root)


def infer_shapes(spec: Layer, shape: Shape, dtype: str = "float32") -> Architecture:
    """Infer every shape of an architecture, and where its data must change order.

    Args:
        spec: A layer of ``mp.nn``, mostly a ``Sequential``.
        shape: The input's shape without the batch axis, channels first.
        dtype: numpy's name of the input's dtype.

    Returns:
        The architecture, for an adapter's ``build``.

    Raises:
        ShapeError: A layer does not fit its input, or a shared one gets inputs of two shapes; it is named by its path.
        WrongType: ``spec`` is no layer.

    >>> from multiparam.nn import Conv, Flatten, Linear, Sequential
    >>> spec = Sequential(Conv(8, 3), Flatten(), Linear(10))
    >>> [node.shape for node in infer_shapes(spec, (1, 5, 5)).leaves()]
    [(8, 3, 3), (72,), (10,)]
    """
    if not isinstance(spec, Layer):
        raise WrongType(f"mp.build takes an architecture of mp.nn; it gets {type(spec).__name__}")
    uses: dict[int, list[Node]] = {}
    root = _infer(spec, (), (), tuple(shape), uses)
    for first, *others in uses.values():
        for again in others:
            if again.input != first.input:
                raise ShapeError(
                    f"One {type(first.layer).__name__} is shared at {_at(first.path)} and {_at(again.path)} "
                    f"but gets {first.input} and {again.input} there"
                )
    shared = frozenset(key for key, nodes in uses.items() if len(nodes) > 1)
    _mark_order(root, "first", shared, close=True)
    return Architecture(root, dtype, shared)


def _at(path: tuple[str, ...]) -> str:
    return repr(".".join(path)) if path else "the top"


@contextmanager
def _at_place(path: tuple[str, ...]) -> Iterator[None]:
    try:
        yield
    except ShapeError as error:
        raise ShapeError(f"At {_at(path)}: {error}") from None


def _infer(
    layer: Layer, path: tuple[str, ...], positions: tuple[int, ...], shape: Shape, uses: dict[int, list[Node]]
) -> Node:
    """The node of one use of a layer, and those below it; ``uses`` collects each layer's."""
    node = Node(layer, path, positions, shape, shape)
    if isinstance(layer, Container):
        for position, (name, child) in enumerate(zip(layer.names, layer.layers, strict=True)):
            start = shape if isinstance(layer, Join) else node.shape
            below = _infer(child, (*path, name), (*positions, position), start, uses)
            node.children.append(below)
            node.shape = below.shape
        if isinstance(layer, Join):
            with _at_place(path):
                node.shape = layer.joined([child.shape for child in node.children])
    elif isinstance(layer, Residual):
        body = _infer(layer.body, (*path, "body"), (*positions, 0), shape, uses)
        if body.shape != shape:
            raise ShapeError(f"Residual at {_at(path)}: the body turns {shape} into {body.shape}; it must keep it")
        node.children.append(body)
    else:
        with _at_place(path):
            node.shape = layer.infer(shape)
    uses.setdefault(id(layer), []).append(node)
    return node


def _mark_order(node: Node, order: str, shared: frozenset[int], close: bool = False) -> str:
    """Mark where data that comes in ``order`` changes it; gives the order behind the node.

    Elementwise layers take either order, so a chain of convolutions changes it once, not around each layer.
    """
    # A shared container is one native layer, the same wherever it is used, so it cannot take data in one order here
    # and in the other there: it starts and ends with channels first, and so does the whole, which users see.
    closed = close or (bool(node.children) and id(node.layer) in shared)
    if closed and order == "last":
        node.convert, order = "first", "first"
    before = order
    if not node.children:
        wanted = node.layer.order if len(node.input) > 1 else "any"
        if wanted != "any" and wanted != order:
            node.convert, order = wanted, wanted
    start, joins = order, isinstance(node.layer, Join)
    if joins:
        node.axis = -1 if start == "last" else 1
    for child in node.children:
        order = _mark_order(child, start if joins else order, shared)
        if joins and order != start:
            child.rejoin = order = start
    # Both addends of a residual must be in one order: the input's, since the other one is the input itself.
    end = "first" if closed else before if isinstance(node.layer, Residual) else order
    if end != order:
        node.after = end
    return end


def data_permutation(shape: Shape, order: str) -> tuple[int, ...]:
    """The permutation that brings a batch into an order of channels.

    Args:
        shape: The batch's canonical shape, channels first, without the batch axis.
        order: ``"last"``, from channels first; or ``"first"``, from channels last.

    Returns:
        The axes for a transpose, the batch's among them.

    >>> data_permutation((3, 8, 9), "last"), data_permutation((3, 8, 9), "first")
    ((0, 2, 3, 1), (0, 3, 1, 2))
    """
    n = len(shape)
    return (0, *range(2, n + 1), 1) if order == "last" else (0, n, *range(1, n))
