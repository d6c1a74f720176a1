"""What an adapter answers, and nothing more.

Three small interfaces. A :class:`Storage` is one array the framework keeps. A :class:`Host` is one live model:
it lists its slots, runs, binds a slot to a storage, and differentiates. An :class:`Adapter` makes hosts and
moves arrays. Naming, selection, ties, seeds, checks, files and comparison are written once, in the core.

Adapters subclass these protocols to inherit the defaults: what has a body here need not be written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UnsupportedAttribute
from ..paths import Path
from .layouts import Layout
from .slots import Activation, Array, Piece, Slot, Storage

if TYPE_CHECKING:
    import numpy as np

    from .architecture import Architecture

__all__ = ["Activation", "Adapter", "Array", "Host", "NativeOptimizer", "Piece", "Run", "Slot", "Storage"]


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


class Host(Protocol):
    """One live model."""

    native: Any
    """The model as the user knows it."""

    def slots(self) -> list[Slot]:
        """Every use of every parameter and buffer.

        Returns:
            The slots in definition order; those of one native array with the same storage object each time.
        """

    def constants(self) -> list[Slot]:
        """Buffers that are no part of the model's state: computed by its code, in none of its framework's files.

        Returns:
            Their slots, as :meth:`slots` would list them, and does not; none by default. What moves the model to
            another dtype, as :meth:`in_float64`, moves these too.
        """
        return []

    def fingerprint(self) -> Any:
        """What tells cheaply whether native code has put other parameters or layers into the model.

        Asked at each step and each verb on the whole model; a listing is then read again only where it changed.

        Returns:
            What compares equal as long as :meth:`slots` would list the same storages; None, as by default: nothing
            tells, so the verbs that take long anyway list the model anew.
        """
        return None

    def holds(self, slot: Slot) -> bool:
        """Whether a slot's place still is in the model, and has the slot's storage: asked at each read and write.

        Args:
            slot: One that :meth:`slots` has listed.

        Returns:
            True by default, as for a framework whose storages cannot be replaced.
        """
        return True

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        """The forward pass.

        Args:
            inputs: By position: the framework's arrays, or what users gave.
            kwargs: By keyword, as users gave them.
            train: Whether dropout and batch statistics are on.

        Returns:
            The framework's output.
        """

    def bind(self, slots: Sequence[Slot], storage: Storage, view: Layout | None = None) -> None:
        """Make a place use a storage; no compiled function may stay stale.

        Args:
            slots: Those of the place: they share owner and leaf.
            storage: What it uses from now on.
            view: The layout of the array that the place computes with, differentiably; None: the array as it is.
        """

    def copy(self, storage: Storage, view: Layout | None = None) -> Storage:
        """A new, independent storage with the same flags and values.

        Args:
            storage: The one to copy.
            view: The layout of it to copy; None: as it is.

        Returns:
            One that no slot uses yet.
        """

    def gradient(self, run: Run, storages: Sequence[Storage], train: bool) -> Callable[..., tuple[Array, list[Array]]]:
        """A compiled gradient step.

        Args:
            run: ``run(host, *batch)`` gives a native scalar. A functional framework may hand it another host that holds
                traced values.
            storages: What to differentiate by.
            train: Whether forward passes are in training mode.

        Returns:
            ``step(*batch)`` gives the loss and the gradients: one per storage in native layout, fresh arrays, zeros
            where the loss does not depend on it. They are what :meth:`Storage.grad` answers afterwards.
        """

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Storage]) -> NativeOptimizer:
        """One of the framework's own optimizers.

        Args:
            name: ``"sgd"``, ``"momentum"`` or ``"adam"``.
            options: All options of it, with PyTorch's meaning: see :meth:`multiparam.Model.optimizer`.
            storages: What it may update.

        Returns:
            The optimizer, its moments at zero.
        """

    @property
    def data_order(self) -> str:
        """Where images have their channels inside the model, when it flattens them: ``"first"`` or ``"last"``."""
        return "first"

    # A body that raises, not a bare declaration: only a functional framework has such a tree, and the core tells by
    # whether the class overrides it.
    @property
    def variables(self) -> Any:
        """The plain pytree of a framework that keeps parameters apart from the model, ties expanded; settable there."""
        raise UnsupportedAttribute("The parameters are kept in the model itself: use net.native.")

    @variables.setter
    def variables(self, tree: Any) -> None:
        raise UnsupportedAttribute("The parameters are kept in the model itself: use net.native.")

    def activations(self, inputs: tuple[Any, ...], on_call: Callable[[Activation], None]) -> Any:
        """A forward pass in evaluation, watched. The default watches nothing.

        Args:
            inputs: By position, the framework's arrays.
            on_call: Gets what each layer that holds parameters takes and gives, in order of execution, as soon as it
                has run: later layers may write into the same memory.

        Returns:
            The framework's output.
        """
        return self.call(inputs, {}, False)

    def in_float64(self) -> AbstractContextManager[None] | None:
        """A context in which a model of narrower floats computes in float64 with the same numbers.

        Returns:
            The context; None where the framework has no such thing, as by default.
        """
        return None

    def set_trainable(self, storages: Sequence[Storage], flag: bool) -> None:
        """Freeze or unfreeze storages together. Override it to refuse, before any change, what the framework cannot do.

        Args:
            storages: Which.
            flag: Whether gradient steps change them.
        """
        for storage in storages:
            storage.trainable = flag

    def options(self, slot: Slot) -> Mapping[str, Any]:
        """What weights do not carry.

        Args:
            slot: A slot; :attr:`Slot.options_layer` is the layer whose options matter.

        Returns:
            Option in PyTorch's words (eps, momentum, ...) -> value, as JSON can write it; empty by default.
        """
        return {}

    def aliases(self) -> Mapping[Path, Path]:
        """Where users see layers besides the paths of the slots, which are those of the framework's checkpoints.

        Asked when a look-up by name finds nothing: names cost what they do without. Look-ups find a layer there, and
        all in it; listings, files and transfers know its name only.

        Returns:
            Another path of a layer, such as attributes, ``("blocks", "0")`` -> its path, ``("blocks_0",)``; empty by
            default.
        """
        return {}

    def positions(self) -> Mapping[tuple[int, ...], Path]:
        """The positions of layers, where their slots do not state them; asked as :meth:`aliases`.

        Returns:
            Position at each level -> path or alias of the layer, or of the list of layers, that is there; empty by
            default.
        """
        return {}


class Adapter(Protocol):
    """What answers for a framework."""

    unsupported: Mapping[str, str] = {}
    """What the framework cannot do: name -> reason. The tests turn these into strict xfails."""

    def wrap(self, native: Any, inputs: tuple[Any, ...]) -> Host:
        """A host for a user's model.

        Options that :func:`multiparam.wrap` takes (``variables``, ``seed``) are handed on, by name, to an adapter
        that has them as parameters of this method.

        Args:
            native: The model.
            inputs: The framework's arrays, to infer lazily made shapes from; empty where users give none.

        Returns:
            The host. The model stays as it is.
        """

    def build(self, architecture: Architecture, dtype: str) -> Host:
        """Real native layers for an architecture. The core fills them with numbers.

        Args:
            architecture: What to build, its shapes known: :meth:`Architecture.assemble` makes shared layers once.
            dtype: That of the parameters.

        Returns:
            The host of the new model.
        """

    def to_numpy(self, array: Array) -> np.ndarray:
        """The framework's array as numpy.

        Args:
            array: Tracked or not.

        Returns:
            The same numbers; they may alias.
        """

    def from_numpy(self, array: np.ndarray) -> Array:
        """numpy as the framework's array.

        Args:
            array: Of any dtype that the framework has.

        Returns:
            An array of the same dtype, with its own memory.
        """

    def detach(self, array: Array) -> Array:
        """A snapshot of an array.

        Args:
            array: Tracked or not.

        Returns:
            The same values as an independent, untracked array.
        """

    def mse(self, prediction: Array, target: Array) -> Array:
        """Mean squared error, differentiable (``torch.nn.MSELoss``).

        Args:
            prediction: A native array of any shape.
            target: One of the same shape.

        Returns:
            A native scalar: the mean of squared differences over all elements.
        """

    def cross_entropy(self, logits: Array, labels: Array) -> Array:
        """Cross-entropy, differentiable (``torch.nn.CrossEntropyLoss``).

        Args:
            logits: (N, C), before the softmax.
            labels: (N,) integers below C.

        Returns:
            A native scalar: the mean over the batch of ``-log softmax(logits)[label]``.
        """

    def namespace(self, array: Array) -> Any:
        """The array operations, by the array API standard.

        Args:
            array: A native array.

        Returns:
            What has ``permute_dims``, ``reshape``, ``flip`` and ``concat`` for it, differentiably; numpy's older names
            do as well. The default: what the array itself names.
        """
        return array.__array_namespace__()  # of the array API standard; numpy's have it from 2.0 on

    def initializer(self, function: Any) -> Callable[[Storage, int], None] | None:
        """A filler, for one of the framework's own initialisers.

        Args:
            function: What a user gave to :meth:`multiparam.Group.init`.

        Returns:
            ``fill(storage, seed)``; None where it is none of the framework's, as by default.
        """
        return None
