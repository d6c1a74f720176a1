"""Optimizers over a store: the framework's own, by names of PyTorch's meaning or as users make them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from .. import paths
from ..errors import InvalidArgument, MultiparamWarning, ShapeError, WrongType
from .arrays import numpy_dtype, to_numpy
from .composite import Packed, row_of
from .parameter import parameter_at
from .protocol import Array, NativeOptimizer, Slot, Storage
from .schedules import Rate, rate_at
from .store import Store
from .training import Gradients

OPTIMIZERS: Mapping[str, Mapping[str, float | bool]] = MappingProxyType(
    {
        "sgd": {"lr": 0.01, "weight_decay": 0.0},
        "momentum": {"lr": 0.01, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
        "adam": {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
        "adamw": {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
    }
)


def require_known(foreign: int) -> None:
    """See that a user's own optimizer moves parameters of the model only: adapters count what it holds.

    Args:
        foreign: How many of its arrays are no parameter of the model.

    Raises:
        InvalidArgument: There are some.
    """
    if foreign:
        raise InvalidArgument(
            f"The optimizer holds {foreign} arrays that are no parameters of this model, or are so no longer: make it "
            "anew over the parameters that the model has now, or step it natively."
        )


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    if name not in OPTIMIZERS:
        raise InvalidArgument(f"No optimizer {name!r}. {paths.did_you_mean(name, OPTIMIZERS)}")
    for option in options:
        if option not in OPTIMIZERS[name]:
            hint = paths.did_you_mean(option, OPTIMIZERS[name])
            raise InvalidArgument(f"{name!r} has no option {option!r}. {hint}")
    decay = options.get("weight_decay", 0.0)
    if not isinstance(decay, (int, float)) or not 0 <= decay < math.inf:
        raise InvalidArgument(f"weight_decay is {decay!r}: it is finite and not negative.")


def _native_one(store: Store, given: Any, options: Mapping[str, Any], storages: Sequence[Storage]) -> NativeOptimizer:
    """The user's own optimizer, or one of a class of them. Raises WrongType for what is none."""
    kind = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
    if callable(given):
        try:
            given = store.host.make_optimizer(given, options, storages)
        except (TypeError, ValueError) as error:
            shown = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
            raise InvalidArgument(f"{kind} cannot be made of {shown}: {error}") from error
    elif options:
        raise InvalidArgument(f"A native optimizer has its options already: {', '.join(options)} cannot be set.")
    try:
        native = None if given is None else store.host.native_optimizer(given, storages)
    except TypeError as error:
        raise WrongType(f"net.optimizer cannot step {kind}: {error}") from error
    if native is None:
        names = ", ".join(repr(name) for name in OPTIMIZERS)
        raise WrongType(f"net.optimizer takes {names} or one of the optimizers of {store.backend}; this is {kind}.")
    return native


class Optimizer:
    """A framework's own optimizer over the trainable parameters. Made by :meth:`Model.optimizer`.

    After a tie or untie the native optimizer is made anew, since the old one holds a storage that is gone; its
    moments start from zero, and a warning says so.
    """

    def __init__(self, store: Store, given: Any, options: Mapping[str, Rate]) -> None:
        self._by_name = by_name = isinstance(given, str)
        self.name = given if by_name else getattr(given, "__name__", type(given).__name__)
        self._store = store
        self._storages: list[Storage] = []
        self._native: NativeOptimizer | None = None
        self._steps = 0
        self._options: dict[str, Any] = dict(options)
        self._schedule: Rate | None = None
        if by_name:
            _check_options(given, options)
            self._options = {**OPTIMIZERS[given], **options}
            if given != "adamw" and not self._options["weight_decay"]:
                del self._options["weight_decay"]  # adapters need not know what is not asked for
            self.lr = self._options["lr"]
            self._make: Callable[[Sequence[Storage]], NativeOptimizer] = partial(
                store.host.optimizer, given, self._options
            )
        else:
            schedule = self._options.pop("lr") if callable(self._options.get("lr")) else None
            self._make = partial(_native_one, store, given, self._options)
            self._current()  # what cannot be taken is refused now
            if schedule is not None:
                self.lr = schedule

    @property
    def lr(self) -> float:
        """The learning rate of the next update; settable between steps, to a number or a function of the step."""
        if self._schedule is not None:
            return rate_at(self._schedule, self._steps)
        return float(self._options["lr"] if self._native is None else self._native.lr)

    @lr.setter
    def lr(self, value: Rate) -> None:
        rate = rate_at(value, self._steps) if callable(value) else value  # what is no schedule is refused now
        self._schedule = value if callable(value) else None
        self._set_rate(rate)

    def _set_rate(self, rate: float) -> None:
        if self._by_name:
            self._options["lr"] = rate
        if self._native is not None:
            self._native.lr = rate

    def _current(self) -> NativeOptimizer:
        # The storages themselves, not the store's version: freezing changes that too, and moments must outlive it.
        self._store.refresh(listing=not self._steps)
        storages = self._store.table.storages()
        if self._native is None or [id(s) for s in storages] != [id(s) for s in self._storages]:
            self._native = self._make(storages)
            self._storages = storages
            if self._steps and self.name != "sgd":
                warnings.warn(
                    f"Parameters were tied, untied or replaced since this {self.name!r} optimizer was made: "
                    "its moments start from zero.",
                    MultiparamWarning,
                    stacklevel=3,
                )
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
            pairs = self._own() if grads is None else grads.native_pairs()
        else:
            pairs = self._named(grads)
        pairs = [(storage, grad) for storage, grad in pairs if storage.trainable]
        if not pairs:
            raise InvalidArgument("No trainable parameter has a gradient yet. Run a step of net.value_and_grad first.")
        if self._schedule is not None:
            self._set_rate(rate_at(self._schedule, self._steps))
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
        return [(storage, self._store.from_numpy(array)) for storage, array in by_storage.values()]

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
