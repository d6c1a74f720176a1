"""Gradient steps and optimizers over a store."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np

from .. import paths
from ..errors import InvalidArgument, MultiparamWarning, ParameterNotFound, ShapeError
from .arrays import numpy_dtype, to_numpy
from .composite import Packed, bases, row_of
from .parameter import parameter_at
from .protocol import Adapter, Array, Host, NativeOptimizer, Slot, Storage
from .store import Objective, Store


def _scalar(loss: Any) -> Any:
    """A loss that is one number; some frameworks would sum another silently."""
    shape = tuple(getattr(loss, "shape", ()))
    if any(n is not None and n != 1 for n in shape):
        raise ShapeError(f"The objective must return a scalar; it returned shape {shape}. Take its mean or sum.")
    return loss


@contextmanager
def gradients_kept(store: Store) -> Iterator[None]:
    """Inside, steps may be taken; afterwards each parameter has the gradient it had before."""
    put_back = [storage.hold_grad() for storage in store.table.storages()]
    try:
        yield
    finally:
        for put in put_back:
            put()


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
        self._step: Callable[..., tuple[Array, list[Array]]]

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
        if not self._slots:
            raise InvalidArgument("No parameter is trainable: there is nothing to differentiate. Say net.unfreeze().")
        objective, train = self._objective, self._train

        def run(host: Host, *batch: Any) -> Any:
            with store.tracing_with(host, train):
                return _scalar(objective(*batch))

        self._step = store.host.gradient(run, list(self._where), train)
        self._version = store.version

    def __call__(self, *batch: Any) -> tuple[Array, Gradients]:
        store = self._store
        store.refresh(listing=False)
        if self._version != store.version:
            self._compile()
        loss, native = self._step(*[store.native_array(x) for x in batch])
        return loss, Gradients(store.adapter, self._slots, self._where, native)


OPTIMIZERS: Mapping[str, Mapping[str, float | bool]] = MappingProxyType(
    {
        "sgd": {"lr": 0.01},
        "momentum": {"lr": 0.01, "momentum": 0.9, "nesterov": False},
        "adam": {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    }
)


class Optimizer:
    """A framework's own optimizer over the trainable parameters. Made by :meth:`Model.optimizer`.

    After a tie or untie the native optimizer is made anew, since the old one holds a storage that is gone; its
    moments start from zero, and a warning says so.
    """

    def __init__(self, store: Store, name: str, options: Mapping[str, float | bool]) -> None:
        if name not in OPTIMIZERS:
            raise InvalidArgument(f"No optimizer {name!r}. {paths.did_you_mean(name, OPTIMIZERS)}")
        for option in options:
            if option not in OPTIMIZERS[name]:
                hint = paths.did_you_mean(option, OPTIMIZERS[name])
                raise InvalidArgument(f"{name!r} has no option {option!r}. {hint}")
        self.name = name
        self._store = store
        self._options = {**OPTIMIZERS[name], **options}
        self._storages: list[Storage] = []
        self._native: NativeOptimizer | None = None
        self._steps = 0

    @property
    def lr(self) -> float:
        """The learning rate; settable between steps."""
        return float(self._options["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        self._options["lr"] = value
        if self._native is not None:
            self._native.lr = value

    def _current(self) -> NativeOptimizer:
        # The storages themselves, not the store's version: freezing changes that too, and moments must outlive it.
        self._store.refresh(listing=not self._steps)
        storages = self._store.table.storages()
        if self._native is None or [id(s) for s in storages] != [id(s) for s in self._storages]:
            if self._steps and self.name != "sgd":
                warnings.warn(
                    f"Parameters were tied or untied since this {self.name!r} optimizer was made: "
                    "its moments start from zero.",
                    MultiparamWarning,
                    stacklevel=3,
                )
            self._storages = storages
            self._native = self._store.host.optimizer(self.name, self._options, storages)
        return self._native

    def step(self, grads: Mapping[str, Any] | None = None) -> None:
        """One update. Frozen parameters are left alone, and so is one that has no gradient.

        Args:
            grads: Name -> gradient, any framework's array in canonical layout, such as a step gives; None: each
                parameter's ``.grad``.

        Raises:
            InvalidArgument: No trainable parameter has a gradient, or ``grads`` names a buffer.
            ParameterNotFound: ``grads`` has a name that the model has not.
            ShapeError: A gradient of ``grads`` has not its parameter's shape.
        """
        native = self._current()
        if grads is None or isinstance(grads, Gradients):
            pairs = self._own() if grads is None else list(zip(grads._where, grads._native, strict=True))
        else:
            pairs = self._named(grads)
        pairs = [(storage, grad) for storage, grad in pairs if storage.trainable]
        if not pairs:
            raise InvalidArgument("No trainable parameter has a gradient yet. Run a step of net.value_and_grad first.")
        native.apply([storage for storage, _ in pairs], [grad for _, grad in pairs])
        self._steps += 1

    def _own(self) -> list[tuple[Storage, Array]]:
        pairs = ((storage, storage.grad()) for storage in self._storages if storage.trainable)
        return [(storage, grad) for storage, grad in pairs if grad is not None]

    def _named(self, grads: Mapping[str, Any]) -> list[tuple[Storage, Array]]:
        """Gradients by name as native ones of native arrays."""
        by_storage: dict[int, tuple[Storage, np.ndarray]] = {}
        rows: dict[int, set[int]] = {}
        for name, grad in grads.items():
            for slot, array in self._checked(name, grad):
                storage = slot.storage
                if (row := row_of(slot)) is not None:
                    _, whole = by_storage.get(id(storage), (storage, np.zeros(storage.shape or (), array.dtype)))
                    whole[row] = array
                    array = whole
                    rows.setdefault(id(storage), set()).add(row)
                by_storage[id(storage)] = storage, np.asarray(array, order="C")
        for key, numbers in rows.items():
            if len(numbers) < len(by_storage[key][1]):  # the optimizer moves whole arrays, rows of no gradient too
                names = ", ".join(repr(n) for n in grads)
                raise InvalidArgument(f"One native array holds a parameter of {names} and another one: give both.")
        return [(storage, self._store.adapter.from_numpy(array)) for storage, array in by_storage.values()]

    def _checked(self, name: str, grad: Any) -> list[tuple[Slot, np.ndarray]]:
        slot = self._store.table.slot(name)
        if slot.buffer:
            raise InvalidArgument(f"{name!r} is a buffer, which no optimizer moves.")
        parameter = parameter_at(self._store, self._store.table.index(name))
        array = to_numpy(grad)
        if array.shape != parameter.shape:
            raise ShapeError(f"The gradient of {name!r} has shape {array.shape}; the parameter has {parameter.shape}.")
        array = array.astype(numpy_dtype(parameter.dtype), copy=False)
        if isinstance(slot.storage, Packed):
            return slot.storage.scatter(array)
        layout = slot.canonical
        return [(slot, array if layout is None else layout.undo(array, np))]
