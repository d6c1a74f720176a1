"""All that an adapter must offer, and nothing more.

Three small interfaces. A :class:`Storage` is one array the framework keeps. A :class:`Host` is one live model:
it lists its slots, runs, binds a slot to a storage, and differentiates. A :class:`Backend` makes hosts and
moves arrays. Naming, selection, ties, seeds, checks, files and comparison are written once, in the core.

Adapters may subclass these protocols to inherit the few defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .layouts import Layout, join

if TYPE_CHECKING:
    import numpy as np

    from .nn import Plan

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


class Slot:
    """A place in a model that uses a storage.

    ``path`` ends in the canonical leaf name; ``positions`` gives, for each segment before the leaf, its place
    among all children of its parent, those without parameters included. ``layout`` says how the native array
    shows in canonical form; None: as it is.
    ``owner`` and ``leaf`` say where the framework keeps it: slots with the same two are one place seen twice,
    as when one layer object is used at two positions. ``through`` is what a transposed tie does: the place uses the
    storage's array in this layout, and ``layout`` then is the canonical form of the storage's array seen from here,
    ``own`` that of the place.
    ``part``, ``apart``, ``row`` and ``pieces``: see :mod:`multiparam.packed`.
    """

    __slots__ = (
        "path", "positions", "kind", "storage", "layout", "owner", "leaf", "buffer", "through", "own", "part", "apart",
        "row", "pieces", "home",
    )  # fmt: skip

    def __init__(
        self,
        path: tuple[str, ...],
        positions: tuple[int, ...],
        kind: str,
        storage: Storage,
        layout: Layout | None = None,
        owner: Any = None,
        leaf: str = "",
        buffer: bool = False,
        through: Layout | None = None,
    ) -> None:
        self.path = path
        self.positions = positions
        self.kind = kind
        self.storage = storage
        self.layout = layout if through is None else join(through, layout)
        self.own = layout
        self.owner = owner
        self.leaf = leaf
        self.buffer = buffer
        self.through = through
        self.home = owner  # the layer whose options matter: a gate's cell
        self.part: int | None = None
        self.apart = ""
        self.row: int | None = None
        self.pieces: tuple[Slot, ...] = ()


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

    data_order: str = "first"
    """Where images have their channels inside the model, when it flattens them: ``"first"`` or ``"last"``."""

    def slots(self) -> list[Slot]:
        """Every use of every parameter and buffer, in definition order. The same storage object each time."""

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        """The forward pass, with dropout and batch statistics on when ``train``."""

    def bind(self, slots: Sequence[Slot], storage: Storage, through: Layout | None = None) -> None:
        """Make these slots, which share owner and leaf, use ``storage``; no compiled function may stay stale.

        With ``through`` the place computes with that layout of the array, differentiably.
        """

    def copy(self, storage: Storage, through: Layout | None = None) -> Storage:
        """A new, independent storage with the same flags and the same values, or their layout ``through``."""

    def activations(self, inputs: tuple[Any, ...], see: Callable[[Activation], None]) -> Any:
        """A forward pass in evaluation, and its output. ``see`` is shown what each layer that holds parameters takes
        and gives, in order of execution, as soon as it has run: later layers may write into the same memory."""
        return self.call(inputs, {}, False)

    def in_float64(self) -> AbstractContextManager[None] | None:
        """A context in which a float32 model computes in float64 with the same numbers; None where it cannot."""
        return None

    def set_trainable(self, storages: Sequence[Storage], flag: bool) -> None:
        """Freeze or unfreeze storages together; override to refuse what the framework cannot do, before any change."""
        for storage in storages:
            storage.trainable = flag

    def gradient(self, run: Run, storages: Sequence[Storage], train: bool) -> Callable[..., tuple[Array, list[Array]]]:
        """A compiled ``step(*batch) -> (loss, gradients)`` for ``run(host, *batch)``.

        The gradients, one per storage in native layout, zeros where the loss does not depend on it, are
        fresh arrays, and are what :meth:`Storage.grad` answers afterwards. A functional framework may hand
        ``run`` another host that holds traced values.
        """

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Storage]) -> NativeOptimizer:
        """The framework's ``sgd``, ``momentum`` or ``adam``, with PyTorch's meaning of each option."""

    def options(self, slot: Slot) -> Mapping[str, Any]:
        """What weights do not carry: the options of the layer that holds a slot, in PyTorch's words (eps, momentum,
        ...), as JSON can write them."""
        return {}


class Backend(Protocol):
    """A framework."""

    unsupported: Mapping[str, str] = {}
    """What the framework cannot do: name -> reason. The tests turn these into strict xfails."""

    def wrap(self, native: Any, inputs: tuple[Any, ...], **options: Any) -> Host:
        """A host for a user's model; ``inputs``, the framework's arrays, let lazily made shapes be inferred."""

    def build(self, plan: Plan, dtype: str) -> Host:
        """Real native layers for an architecture whose shapes are known."""

    def to_numpy(self, array: Array) -> np.ndarray:
        """Any array of the framework, tracked or not, as numpy; it may alias."""

    def from_numpy(self, array: np.ndarray) -> Array:
        """The framework's array with the same dtype and its own memory."""

    def transpose(self, array: Array, axes: tuple[int, ...]) -> Array:
        """Permute axes, differentiably, as numpy does; so too the next four."""

    def reshape(self, array: Array, shape: tuple[int, ...]) -> Array:
        """The same elements in row-major order in another shape."""

    def flip(self, array: Array, axes: tuple[int, ...]) -> Array:
        """Reverse the order along axes."""

    def reorder(self, array: Array, order: tuple[int, ...]) -> Array:
        """``array[order]``: another order along the first axis."""

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        """Arrays one after another along an axis."""

    def detach(self, array: Array) -> Array:
        """The same values as an independent, untracked array."""

    def mse(self, prediction: Array, target: Array) -> Array:
        """Mean of squared differences over all elements."""

    def cross_entropy(self, logits: Array, labels: Array) -> Array:
        """Mean over the batch of ``-log softmax(logits)[label]``; logits (N, C), integer labels (N,)."""

    def initializer(self, function: Any) -> Callable[[Storage, int], None] | None:
        """For one of the framework's own initialisers: ``fill(storage, seed)``. Otherwise None."""
        return None
