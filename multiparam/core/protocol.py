"""What an adapter answers, and nothing more.

Three small interfaces. A :class:`Storage` is one array the framework keeps. A :class:`Host` is one live model:
it lists its slots, runs, binds a slot to a storage, and differentiates. An :class:`Adapter` makes hosts and
moves arrays. Naming, selection, ties, seeds, checks, files and comparison are written once, in the core.

Adapters subclass these protocols to inherit the defaults: what has a body here need not be written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..errors import UnsupportedAttribute
from .layouts import Layout, join

if TYPE_CHECKING:
    import numpy as np

    from .architecture import Architecture

Array = Any  # a framework's own array


class Storage(Protocol):
    """One array the framework keeps, in its native layout. Compared by identity: one object per array."""

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
        """The live array; it may alias the model's memory, and is tracked inside an objective."""

    def write(self, value: np.ndarray) -> None:
        """Replace all values. The core has checked shape and dtype; the storage keeps no alias of ``value``."""

    def grad(self) -> Array | None:
        """What the last backward left, or None before the first one."""


class Piece(NamedTuple):
    """What a slot is of a parameter that several native arrays make up: see :mod:`multiparam.core.composite`.

    Attributes:
        part: The place among the arrays below one another; None where the slot is not one of several.
        unpacked: The leaf's name where the parts do not have one shape, and each is a parameter by itself.
        row: The row of the native array that the slot is; None for the whole of it.
        options_layer: The layer whose options matter: a gate's cell.
    """

    part: int | None = None
    unpacked: str = ""
    row: int | None = None
    options_layer: Any = None


@dataclass(slots=True, eq=False)
class Slot:
    """A place in a model that uses a storage, as the adapter states it. Not changed once it is made: see ``replace``.

    Attributes:
        path: Segments of the name; the last is the canonical leaf.
        positions: For each segment before the leaf, its place among all children of its parent, those without
            parameters included.
        kind: The kind of layer, such as ``"linear"``; the class name of an unknown layer.
        storage: The array that is used here.
        layout: How the array used here shows in canonical form; None: as it is.
        owner: Where the framework keeps it. Slots of the same owner and leaf are one place seen twice, as when one
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
    def options_layer(self) -> Any:
        """The layer whose options the weights do not carry."""
        return self.owner if self.piece is None else self.piece.options_layer

    @property
    def parts(self) -> tuple[Slot, ...]:
        """The slots of the native arrays behind it: itself, unless it is packed."""
        return (self,)

    def replace(self, **changes: Any) -> Slot:
        """A copy with some fields changed."""
        return replace(self, **changes)


class Activation(NamedTuple):
    """One call of a layer: its name, what it was given by position, and what it gave."""

    layer: str
    inputs: tuple[Any, ...]
    output: Any


class NativeOptimizer(Protocol):
    """The framework's own optimizer over some storages."""

    lr: float

    def apply(self, storages: Sequence[Storage], grads: Sequence[Array]) -> None:
        """One update of ``storages`` (some or all of those it was made for) by native-layout gradients."""


Run = Callable[..., Any]  # run(host, *batch) -> a native scalar


class Host(Protocol):
    """One live model."""

    native: Any
    """The model as the user knows it."""

    def slots(self) -> list[Slot]:
        """Every use of every parameter and buffer, in definition order. The same storage object each time."""

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        """The forward pass, with dropout and batch statistics on when ``train``."""

    def bind(self, slots: Sequence[Slot], storage: Storage, view: Layout | None = None) -> None:
        """Make these slots, which share owner and leaf, use ``storage``; no compiled function may stay stale.

        With ``view`` the place computes with that layout of the array, differentiably.
        """

    def copy(self, storage: Storage, view: Layout | None = None) -> Storage:
        """A new, independent storage with the same flags and the same values, or their layout ``view``."""

    def gradient(self, run: Run, storages: Sequence[Storage], train: bool) -> Callable[..., tuple[Array, list[Array]]]:
        """A compiled ``step(*batch) -> (loss, gradients)`` for ``run(host, *batch)``.

        The gradients, one per storage in native layout, zeros where the loss does not depend on it, are
        fresh arrays, and are what :meth:`Storage.grad` answers afterwards. A functional framework may hand
        ``run`` another host that holds traced values.
        """

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Storage]) -> NativeOptimizer:
        """The framework's ``sgd``, ``momentum`` or ``adam``, with PyTorch's meaning of each option."""

    @property
    def data_order(self) -> str:
        """Where images have their channels inside the model, when it flattens them: ``"first"`` or ``"last"``."""
        return "first"

    @property
    def variables(self) -> Any:
        """The plain pytree of a framework that keeps parameters apart from the model, ties expanded; settable there."""
        raise UnsupportedAttribute("The parameters are kept in the model itself: use net.native.")

    @variables.setter
    def variables(self, tree: Any) -> None:
        raise UnsupportedAttribute("The parameters are kept in the model itself: use net.native.")

    def activations(self, inputs: tuple[Any, ...], on_call: Callable[[Activation], None]) -> Any:
        """A forward pass in evaluation, and its output. ``on_call`` is given what each layer that holds parameters
        takes and gives, in order of execution, as soon as it has run: later layers may write into the same memory."""
        return self.call(inputs, {}, False)

    def in_float64(self) -> AbstractContextManager[None] | None:
        """A context in which a float32 model computes in float64 with the same numbers; None where it cannot."""
        return None

    def set_trainable(self, storages: Sequence[Storage], flag: bool) -> None:
        """Freeze or unfreeze storages together; override to refuse what the framework cannot do, before any change."""
        for storage in storages:
            storage.trainable = flag

    def options(self, slot: Slot) -> Mapping[str, Any]:
        """What weights do not carry: the options of the layer that holds a slot, in PyTorch's words (eps, momentum,
        ...), as JSON can write them."""
        return {}


class Adapter(Protocol):
    """What answers for a framework."""

    unsupported: Mapping[str, str] = {}
    """What the framework cannot do: name -> reason. The tests turn these into strict xfails."""

    def wrap(self, native: Any, inputs: tuple[Any, ...]) -> Host:
        """A host for a user's model; ``inputs``, the framework's arrays, let lazily made shapes be inferred.

        Options that :func:`multiparam.wrap` takes (``variables``, ``seed``) are handed on, by name, to an adapter
        that has them as parameters of this method.
        """

    def build(self, architecture: Architecture, dtype: str) -> Host:
        """Real native layers for an architecture whose shapes are known."""

    def to_numpy(self, array: Array) -> np.ndarray:
        """Any array of the framework, tracked or not, as numpy; it may alias."""

    def from_numpy(self, array: np.ndarray) -> Array:
        """The framework's array with the same dtype and its own memory."""

    def detach(self, array: Array) -> Array:
        """The same values as an independent, untracked array."""

    def mse(self, prediction: Array, target: Array) -> Array:
        """Mean of squared differences over all elements."""

    def cross_entropy(self, logits: Array, labels: Array) -> Array:
        """Mean over the batch of ``-log softmax(logits)[label]``; logits (N, C), integer labels (N,)."""

    def namespace(self, array: Array) -> Any:
        """What has ``permute_dims``, ``reshape``, ``flip`` and ``concat`` for an array, differentiably, by the array
        API standard; numpy's older names do as well. The default: what the array itself names."""
        return array.__array_namespace__()

    def initializer(self, function: Any) -> Callable[[Storage, int], None] | None:
        """For one of the framework's own initialisers: ``fill(storage, seed)``. Otherwise None."""
        return None
