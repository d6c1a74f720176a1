"""One live model, as an adapter answers for it: a part of :mod:`multiparam.core.protocol`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import Unsupported, UnsupportedAttribute
from .layouts import Layout
from .naming import Naming
from .slots import Activation, Array, Box, NativeOptimizer, OnEnter, Run, Slot, Storage

if TYPE_CHECKING:
    import numpy as np


class Host(Naming, Protocol):
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

    def unlisted(self) -> Mapping[str, str]:
        """What the model holds that is neither parameter nor buffer and yet is its state, or is trained.

        Asked when it is wrapped, checked and saved.

        Returns:
            Name -> what it is and what to do, as a sentence without its subject; empty by default.
        """
        return {}

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

    def has_values(self, storage: Storage) -> bool:
        """Whether a storage has numbers, and not only a shape and a dtype, as of a model that was made without memory.

        Args:
            storage: One of the model's.

        Returns:
            True by default, as for a framework without such arrays.
        """
        return True

    def allocate(self, storages: Sequence[Storage]) -> None:
        """Give memory to storages that have none, with zeros in it, wherever the model holds them; flags stay.

        Args:
            storages: Some for which :meth:`has_values` is false; there are none by default.
        """
        return None

    def memory(self, storage: Storage) -> np.ndarray | None:
        """A storage's own memory, for files to be read straight into it.

        Args:
            storage: One of this model's.

        Returns:
            A contiguous array of the storage's shape and dtype, writing into which is writing the storage, once; by
            default None: the framework gives nobody its memory.
        """
        return None

    def overlaps(self, storages: Sequence[Storage]) -> Sequence[tuple[int, int, bool]]:
        """Storages that are two to the framework and share memory, so that a write to one changes the other.

        Args:
            storages: Of this model.

        Returns:
            Pairs by their place in the sequence, and whether both have the same numbers of it at the same places, and
            no others; none by default, as for frameworks whose arrays have memory of their own.
        """
        return ()

    def place(self, array: Array) -> Array:
        """An array that was made of numpy, where the model computes.

        Args:
            array: The framework's, wherever it makes arrays.

        Returns:
            The array on the device of the model's parameters; by default as it is, as for frameworks that move arrays
            themselves.
        """
        return array

    def write_native(self, storage: Storage, array: Array) -> bool:
        """Write an array of this framework that is on an accelerator, without a copy of it in the machine's memory.

        Args:
            storage: One of this model's.
            array: Of the storage's native shape and dtype. The storage keeps no alias of it.

        Returns:
            Whether that was done; by default False, and the core writes it by way of numpy.
        """
        return False

    def sharding(self, storage: Storage) -> Box | None:
        """The block of a storage that this process holds.

        Args:
            storage: One of the model's.

        Returns:
            Start and stop on each native axis; None, as by default, where it holds all of it.
        """
        return None

    def fill(self, storage: Storage, make: Callable[[Box], np.ndarray]) -> None:
        """Write the blocks of a storage that this process holds.

        Args:
            storage: One of the model's.
            make: Gives the values of a block, start and stop on each native axis. It is asked once for each; by default
                for one, which is all of the storage.
        """
        storage.write(make(tuple(slice(0, n) for n in storage.shape or ())))

    def gather(self, array: Array) -> Array:
        """All of an array. A collective where it is sharded: every process calls it.

        Args:
            array: What a storage reads, or a gradient.

        Returns:
            The framework's array; the default is for frameworks that hold arrays whole.
        """
        return array

    def rank(self) -> int:
        """Which of the processes that hold the model together this one is.

        Returns:
            Its number; 0, as by default, where it is alone.
        """
        return 0

    def all_succeeded(self, done: bool) -> bool:
        """Wait for the other processes that hold the model.

        Args:
            done: Whether this one has done its part.

        Returns:
            Whether all have; by default there are no others.
        """
        return done

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        """The forward pass.

        Args:
            inputs: By position: the framework's arrays, or what users gave.
            kwargs: By keyword, as users gave them.
            train: Whether dropout and batch statistics are on.

        Returns:
            The framework's output.
        """

    def call_with(
        self, values: Mapping[Storage, Array], inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool
    ) -> Any:
        """A forward pass with other arrays in the place of storages' own, differentiable by them.

        Args:
            values: Storages -> arrays of their native shapes, tracked or traced as it may be.
            inputs: As for :meth:`call`.
            kwargs: As for :meth:`call`.
            train: As for :meth:`call`; what training would write is dropped.

        Returns:
            The framework's output; the model is as before.

        Raises:
            Unsupported: The framework has no such thing, as by default.
        """
        raise Unsupported("This framework has no functional form: differentiate net.value_and_grad's objective.")

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
            name: ``"sgd"``, ``"momentum"``, ``"adam"`` or ``"adamw"``.
            options: All options of it, with PyTorch's meaning: see :meth:`multiparam.Model.optimizer`; of all but
                adamw a ``weight_decay`` only where it is not 0.
            storages: What it may update.

        Returns:
            The optimizer, its moments at zero.
        """

    def make_optimizer(self, kind: Callable[..., Any], options: Mapping[str, Any], storages: Sequence[Storage]) -> Any:
        """One of a class of the framework's own optimizers.

        Args:
            kind: Whatever can be called that the user gave.
            options: Its own, by keyword.
            storages: What it may hold.

        Returns:
            What :meth:`native_optimizer` takes; None where it is no such class, as by default.
        """
        return None

    def native_optimizer(self, native: Any, storages: Sequence[Storage]) -> NativeOptimizer | None:
        """A user's own optimizer.

        Args:
            native: Whatever the user gave.
            storages: What it may hold.

        Returns:
            It; None where it is none of the framework's, or there is no such thing, as by default.
        """
        return None

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

    def watch(
        self, on_call: Callable[[Activation], Any], on_enter: OnEnter | None = None
    ) -> AbstractContextManager[None]:
        """A context in which the forward passes of this host are watched. The default watches nothing.

        Args:
            on_call: Gets what each layer that holds parameters takes and gives, in order of execution, as soon as it
                has run: later layers may write into the same memory. What it returns, unless that is None, is what the
                layer gives instead.
            on_enter: ``on_enter(layer, inputs)`` gets what each of them takes by position before it runs, and returns
                what it takes instead. Only where there is one does anybody count on what ``on_call`` returns, so that a
                framework that can put nothing in the place of an output may leave it out.

        Returns:
            The context.
        """
        return nullcontext()

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

    def trainable_mask(self) -> Any:
        """What is trainable, for native training that no flag of an array reaches.

        Returns:
            The pytree of bools that the framework's optimizers take.

        Raises:
            UnsupportedAttribute: Flags are kept in the model, as by default, where native training sees them.
        """
        raise UnsupportedAttribute("What is frozen is so in the model itself, where native training sees it.")

    def options(self, slot: Slot) -> Mapping[str, Any]:
        """What weights do not carry.

        Args:
            slot: A slot; :attr:`Slot.options_layer` is the layer whose options matter.

        Returns:
            Option in PyTorch's words (eps, momentum, ...) -> value, as JSON can write it; empty by default.
        """
        return {}

    def low_rank_scale(self, slot: Slot) -> float | None:
        """What the product of two low-rank factors is multiplied with before it is added to a layer's weight (LoRA).

        Args:
            slot: A slot of the model.

        Returns:
            The scale, for the first factor of an update that the layer adds when it runs; None for all other slots, and
            where the update is switched off, merged already, or more than such a product. None by default.
        """
        return None
