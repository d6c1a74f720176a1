"""Filling parameters with an initialiser: all of them, or none where one cannot be filled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from .. import initializers
from ..errors import ShapeError, Unsupported, WrongType
from ..initializers import Initializer, draw
from ..paths import did_you_mean
from .arrays import to_numpy
from .composite import bases, row_of
from .layers import stacked_axes
from .materialise import require_values
from .slots import Slot, Storage
from .store import Store
from .user_code import raising_does_not_run
from .values import canonical_shape, in_dtype, memory_of_slot, write_canonical

NativeFill = Callable[[Storage, int], None]  # fill(storage, seed)


class _Filled(NamedTuple):
    """A parameter to fill."""

    name: str
    slot: Slot

    @property
    def shape(self) -> tuple[int, ...]:
        return canonical_shape(self.slot, self.name)


def fill(store: Store, indices: Sequence[int], function: Any, seed: int) -> None:
    """Fill the parameters of slots, by their indices: see :meth:`Group.init`."""
    parameters = [_Filled(store.table.names[i], store.slot(i)) for i in indices]
    require_values(store, *(p.slot for p in parameters))
    _check_callable(function)
    native = store.adapter.initializer(function)
    if native is not None:
        _refuse_stacks(parameters)
        _fill_natively(native, store, parameters, seed)
    elif isinstance(function, Initializer):
        for p in parameters:
            try:
                function.check(p.shape[stacked_axes(p.slot) :])
            except ShapeError as error:
                raise ShapeError(f"{function} cannot fill {p.name!r}: {error}") from None
        for p in parameters:  # nothing can fail from here on, so one array at a time is enough memory, or its own
            memory = memory_of_slot(store, p.slot)
            if (value := _drawn(function, p, seed, memory)) is not memory:
                write_canonical(store, p.slot, value)
    else:  # a user's function may raise at any parameter, so all is drawn before the first is written
        drawn = [_drawn(function, p, seed) for p in parameters]
        for p, value in zip(parameters, drawn, strict=True):
            write_canonical(store, p.slot, value)


def _drawn(function: Any, p: _Filled, seed: int, memory: np.ndarray | None = None) -> np.ndarray:
    stacked, imaginary = stacked_axes(p.slot), p.slot.storage.dtype.startswith("complex")
    value = draw(function, p.shape, seed=seed, name=p.name, stacked=stacked, imaginary=imaginary, out=memory)
    return value if value is memory else in_dtype(p.slot, p.name, value)


def _refuse_stacks(parameters: Sequence[_Filled]) -> None:
    for p in parameters:
        if stacked := stacked_axes(p.slot):
            raise Unsupported(
                f"{p.name!r} holds layers one behind another, {p.shape[:stacked]} of them; a native initialiser would "
                "take them for one, with other fans: give one of mp.init, or a function f(shape, rng), which are "
                "asked for a layer at a time."
            )


def _check_callable(function: Any) -> None:
    """Raise WrongType for what fills nothing: a name, or one of ``mp.init`` that was not called."""
    if not callable(function):
        known = [f"mp.init.{name}()" for name in dir(initializers) if not name.startswith("_")]
        hint = did_you_mean(str(function), known)
        raise WrongType(f"init takes an initialiser or a function of shape and rng; this is {function!r}. {hint}")
    name = getattr(function, "__name__", "")
    own = getattr(function, "__module__", "") == initializers.__name__
    if own and not name.startswith("_") and hasattr(initializers, name):
        raise WrongType(f"mp.init.{name} makes an initialiser when it is called: say mp.init.{name}().")


def _fill_natively(native: NativeFill, store: Store, parameters: Sequence[_Filled], seed: int) -> None:
    # It writes into the model as it draws, so the old values are what undoes a failure.
    before = {base: np.array(to_numpy(base.read())) for p in parameters for base in bases(p.slot.storage)}
    try:
        for p in parameters:
            with raising_does_not_run(f"The native initialiser cannot fill {p.name!r}, {p.shape}"):
                _fill_one(native, store, p, seed)
    except Exception:
        for base, values in before.items():
            base.write(values)
        raise


def _fill_one(native: NativeFill, store: Store, p: _Filled, seed: int) -> None:
    """Let a native initialiser fill a parameter; where that is one row of a native array, only this row."""
    to_numpy = store.adapter.to_numpy
    for i, (base, part) in enumerate(zip(bases(p.slot.storage), p.slot.parts, strict=True)):
        row = row_of(part)
        before = None if row is None else np.array(to_numpy(base.read()))
        native(base, _small_seed(seed, f"{p.name} {i}" if i else p.name))
        if before is not None:
            before[row] = to_numpy(base.read())[row]
            base.write(before)


def _small_seed(seed: int, name: str) -> int:
    """A seed for the framework's own generator; 31 bits, since MXNet takes a C int."""
    return int.from_bytes(blake2b(f"{seed}\0{name}".encode(), digest_size=4).digest(), "little") >> 1
