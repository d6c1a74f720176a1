"""What a model is to the core: slots, the places that use a parameter, each bound to one storage.

Two slots on one storage are tied. Naming, selection, seeds, files and comparison are written in these terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .layouts import Layout, join

if TYPE_CHECKING:
    import numpy as np

Array = Any  # a framework's own array


Box = tuple[slice, ...]  # a block of an array: where it starts and ends on each axis


class Storage(Protocol):
    """One array the framework keeps, in its native layout. Compared by identity: one object per array.

    It is a place, not a tensor: frameworks and users put other arrays there, and ``native`` is what is there now.
    """

    trainable: bool
    """Whether gradient steps change it; settable."""

    @property
    def native(self) -> Any:
        """The untouched framework object: a Parameter, a Variable, an array."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The native shape; None while it is not known."""

    @property
    def dtype(self) -> str:
        """numpy's name of the dtype, such as ``"float32"``."""

    def read(self) -> Array:
        """The live array.

        Returns:
            The framework's array in native layout; it may alias the model's memory, and is tracked inside an objective.
        """

    def write(self, value: np.ndarray) -> None:
        """Replace all values.

        Args:
            value: Of the native shape and the dtype: the core has checked both. The storage keeps no alias of it.
        """

    def grad(self) -> Array | None:
        """The gradient.

        Returns:
            What the last backward left, in native layout; None before the first one.
        """

    def hold_grad(self) -> Callable[[], None]:
        """Keep the gradient of now while other steps are taken.

        Returns:
            A function that puts it back, also where there is none.
        """


class KeptGradient:
    """The gradient's part of a :class:`Storage`, of a framework whose arrays have no place for one.

    Attributes:
        gradient: What the last step left, set by the adapter; None before the first one.

    >>> class Leaf(KeptGradient): pass
    >>> leaf = Leaf()
    >>> put_back, leaf.gradient = leaf.hold_grad(), 1.0
    >>> put_back(), leaf.grad()
    (None, None)
    """

    gradient: Array | None = None

    def grad(self) -> Array | None:
        """The gradient.

        Returns:
            What the last step left; None before the first one.
        """
        return self.gradient

    def hold_grad(self) -> Callable[[], None]:
        """Keep the gradient of now while other steps are taken.

        Returns:
            A function that puts it back.
        """
        return partial(setattr, self, "gradient", self.gradient)


class NativeOptimizer(Protocol):
    """The framework's own optimizer over some storages."""

    lr: float

    def apply(self, storages: Sequence[Storage], grads: Sequence[Array]) -> None:
        """One update by gradients.

        Args:
            storages: Some or all of those it was made for.
            grads: A gradient each, in native layout.
        """


# run(host, *batch) -> a native scalar. It takes the host, since a functional framework must trace through a copy that
# holds its tracers, while the model of the user stays as it is.
Run = Callable[..., Any]


class Piece(NamedTuple):
    """What a slot is of a parameter that several native arrays make up: see :mod:`multiparam.core.composite`.

    Attributes:
        part: The place among the arrays below one another; None where the slot is not one of several.
        unpacked: The leaf's name where the parts do not have one shape, and each is a parameter by itself.
        row: The row of the native array that the slot is; None for the whole of it.
        options_layer: The layer whose options matter: a gate's cell.
        stacked: How many axes in front number layers of a stack, where the framework knows it.
    """

    part: int | None = None
    unpacked: str = ""
    row: int | None = None
    options_layer: Any = None
    stacked: int = 0


# Ten fields and no more: what an adapter must state. Not frozen, only because that costs a call for each field, and
# large models are listed anew after each tie.
@dataclass(slots=True, eq=False)
class Slot:
    """A place in a model that uses a storage, as the adapter states it. Not changed once it is made: see ``replace``.

    Attributes:
        path: Segments of the name; the last is the canonical leaf.
        positions: For each segment before the leaf, its place among all children of its parent, those without
            parameters included. Fewer where the host's :meth:`~multiparam.adapter.Host.positions` says the rest.
        kind: The kind of layer, such as ``"linear"``; the class name of an unknown layer.
        storage: The array that is used here.
        layout: How the array used here shows in canonical form; None: as it is.
        owner: Where the framework keeps it. Slots of the same owner and leaf are one place used twice, as when one
            layer object is used at two positions.
        leaf: The native name of it there.
        buffer: Whether it is state that is not trained.
        view: What a transposed tie does: the place uses the storage's array in this layout.
        piece: What it is of a parameter made of several arrays.
    """

    path: tuple[str, ...]
    positions: tuple[int, ...]
    kind: str
    storage: Storage
    layout: Layout | None = None
    owner: Any = None
    leaf: str = ""
    buffer: bool = False
    view: Layout | None = None
    piece: Piece | None = None

    @property
    def canonical(self) -> Layout | None:
        """How the storage's array shows in canonical form from here."""
        return self.layout if self.view is None else join(self.view, self.layout)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape in canonical form; None while the framework does not know it."""
        shape = self.storage.shape
        if shape is None:
            return None
        if self.piece is not None and self.piece.row is not None:
            shape = shape[1:]
        layout = self.canonical
        return shape if layout is None else layout.shape(shape)

    @property
    def options_layer(self) -> Any:
        """The layer whose options the weights do not carry."""
        return self.owner if self.piece is None else self.piece.options_layer

    @property
    def parts(self) -> tuple[Slot, ...]:
        """The slots of the native arrays behind it: itself, unless it is packed."""
        return (self,)

    def replace(self, **changes: Any) -> Slot:
        """A copy with some fields changed.

        Args:
            **changes: Fields and their new values.

        Returns:
            Another slot of the same place.
        """
        return replace(self, **changes)


class Activation(NamedTuple):
    """One call of a layer: its name, what it took by position, and what it gave."""

    layer: str
    inputs: tuple[Any, ...]
    output: Any


# on_enter(layer, inputs) -> what the layer is called on instead, by position.
OnEnter = Callable[[str, tuple[Any, ...]], tuple[Any, ...]]
