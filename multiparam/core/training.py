"""Gradient steps over a store."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import paths
from ..errors import InvalidArgument, MultiparamWarning, NoGradient, ParameterNotFound, ShapeError, WrongType
from .arrays import to_numpy
from .composite import Packed, bases, hold_grads
from .labels import BatchCheck
from .materialise import require_values
from .protocol import Adapter, Array, Host, Slot, Storage
from .store import Objective, Store


def _scalar(loss: Any) -> Any:
    """A loss that is one number; some frameworks would sum another silently."""
    if loss is None:
        raise InvalidArgument("The objective returned None: let it return the loss.")
    if isinstance(loss, (bool, int, float, np.ndarray, np.generic)):
        raise WrongType(
            f"The objective returned a {type(loss).__name__} of Python or numpy, through which no gradient goes: "
            "compute the loss with the framework's own functions, and do not convert it."
        )
    shape = tuple(getattr(loss, "shape", ()))
    if any(n is not None and n != 1 for n in shape):
        raise ShapeError(f"The objective must return a scalar; it returned shape {shape}. Take its mean or sum.")
    return loss


def require_dependence(depends: bool, switched_off: bool = False) -> None:
    """See that a gradient goes through a loss: adapters say whether their framework has seen any.

    Args:
        depends: Whether the loss depends on a trainable parameter.
        switched_off: Whether it was computed without gradients on purpose, where an adapter can tell.

    Raises:
        NoGradient: It does not.
    """
    if not depends:
        why = "Was it detached, or computed from numpy?"
        if switched_off:
            why = "It was computed where gradients are switched off."
        text = f"No gradient goes through the loss: it depends on no trainable parameter. {why}"
        raise NoGradient(text, switched_off)


def compiled_if_possible(
    compiled: Callable[..., Any], plain: Callable[..., Any], refusals: tuple[type[Exception], ...]
) -> Callable[..., Any]:
    """A step that runs as it is written from the first call on that its framework cannot compile, and warns of that.

    Args:
        compiled: What is called first.
        plain: The same, not compiled.
        refusals: What the framework raises for code that it cannot compile.

    Returns:
        A function of the same arguments, to be called by the step that :meth:`Host.gradient` gives.

    >>> def compiled(x): raise TypeError
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     step = compiled_if_possible(compiled, abs, (TypeError,))
    ...     step(-1), step(-2), len(caught)
    (1, 2, 1)
    """
    chosen = compiled

    def run(*args: Any) -> Any:
        nonlocal chosen
        try:
            return chosen(*args)
        except refusals:
            if chosen is plain:
                raise
        warnings.warn(
            "The model or the objective decides by values, as Python's if and while do, so the step is not compiled: "
            "it runs as it is written, slower.",
            MultiparamWarning,
            stacklevel=4,  # this, the adapter's step, Step.__call__, then the user's line
        )
        chosen = plain
        return plain(*args)

    return run


@contextmanager
def gradients_kept(store: Store) -> Iterator[None]:
    """Inside, steps may be taken; afterwards each parameter has the gradient it had before."""
    put_back = hold_grads(store.table.storages())
    try:
        yield
    finally:
        put_back()


@contextmanager
def unchanged_on_error(store: Store) -> Iterator[None]:
    """Where a step inside fails, gradients and buffers, such as running means, are as they were."""
    put_back = hold_grads(store.table.storages())
    bases_of_buffers = (base for slot in store.table.slots if slot.buffer for base in bases(slot.storage))
    before = {base: np.array(to_numpy(base.read())) for base in bases_of_buffers}
    try:
        yield
    except BaseException:
        put_back()
        for base, values in before.items():
            base.write(values)
        raise


class Gradients(Mapping[str, Array]):
    """The gradients of a step: name -> the framework's array in canonical layout, each trainable storage once.

    Looking one up raises ParameterNotFound where no trainable parameter has the name.
    """

    # They are kept native, and brought into canonical layout when looked at: an optimizer takes them as they are.

    def __init__(
        self, adapter: Adapter, slots: Mapping[str, Slot], where: Mapping[Storage, int], native: Sequence[Array]
    ) -> None:
        self._adapter = adapter
        self._slots = slots
        self._where = where
        self._native = native

    def __getitem__(self, name: str) -> Array:
        slot = self._slots.get(name)
        if slot is None:
            raise ParameterNotFound(f"No gradient {name!r}. {paths.did_you_mean(name, self._slots)}")
        if isinstance(slot.storage, Packed):
            return slot.storage.gather([self._native[self._where[base]] for base in slot.storage.bases])
        array, layout = self._native[self._where[slot.storage]], slot.canonical
        return array if layout is None else layout.apply(array, self._adapter.namespace(array))

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def native_pairs(self) -> list[tuple[Storage, Array]]:
        """Native arrays and their gradients, as the framework gave them."""
        return list(zip(self._where, self._native, strict=True))

    def __repr__(self) -> str:
        return f"Gradients({list(self)})"


class Step:
    """A gradient step: ``loss, grads = step(*batch)``. Compiled on first use, and again after a tie or freeze.

    Made by :meth:`Model.value_and_grad`. The gradients are also left in each parameter's ``.grad``.
    """

    def __init__(self, store: Store, objective: Objective, train: bool) -> None:
        self._store = store
        self._objective = objective
        self._train = train
        self._version = -1  # of the store when this was compiled: a tie changes what is differentiated by
        self._slots: dict[str, Slot] = {}
        self._where: dict[Storage, int] = {}
        self._flags: list[tuple[Storage, bool]] = []  # of every parameter: native code may freeze and unfreeze
        self._step: Callable[..., tuple[Array, list[Array]]]
        self._labels = BatchCheck()

    def _compile(self) -> None:
        store, table = self._store, self._store.table
        self._slots = {
            table.names[i]: table.slots[i]
            for i in table.first.values()
            if not table.slots[i].buffer and table.slots[i].storage.trainable
        }
        # Two parameters may be rows of one native array: it is differentiated by once.
        unique = dict.fromkeys(base for slot in self._slots.values() for base in bases(slot.storage))
        self._where = {base: i for i, base in enumerate(unique)}
        parameters = (table.slots[i] for i in table.first.values() if not table.slots[i].buffer)
        every = dict.fromkeys(base for slot in parameters for base in bases(slot.storage))
        self._flags = [(base, base.trainable) for base in every]
        if not self._slots:
            cure = (
                "Say net.unfreeze()."
                if any(not slot.buffer for slot in table.slots)
                else "The model has no parameters."
            )
            raise InvalidArgument(f"No parameter is trainable: there is nothing to differentiate. {cure}")
        require_values(store, *table.slots)
        objective, train = self._objective, self._train

        def run(host: Host, *batch: Any) -> Any:
            with store.tracing_with(host, train), self._labels.watch(batch):
                return _scalar(objective(*batch))

        self._step = store.host.gradient(run, list(self._where), train)
        self._labels = BatchCheck()

    def __call__(self, *batch: Any) -> tuple[Array, Gradients]:
        store = self._store
        store.refresh(listing=False)
        arrays = [store.native_array(x) for x in batch]
        if self._version == store.version and all(base.trainable is flag for base, flag in self._flags):
            self._labels(batch, to_numpy)
            loss, native = self._step(*arrays)
        else:
            self._compile()
            with unchanged_on_error(store):
                try:
                    loss, native = self._step(*arrays)
                finally:  # a framework may have refused it too, in its own words
                    self._labels(batch, to_numpy)
            self._version = store.version
        return loss, Gradients(store.adapter, self._slots, self._where, native)
