"""Filling parameters with an initialiser: all of them, or none where one cannot be filled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..initializers import Initializer, draw
from .arrays import to_numpy
from .composite import bases, row_of
from .parameter import Parameter, cast_to, slot_of, storage_of, write
from .slots import Storage
from .store import Store

NativeFill = Callable[[Storage, int], None]  # fill(storage, seed)


def fill(store: Store, parameters: Sequence[Parameter], function: Any, seed: int) -> None:
    """Fill parameters of a store: see :meth:`Group.init`."""
    native = store.adapter.initializer(function)
    if native is not None:
        _fill_natively(native, store, parameters, seed)
    elif isinstance(function, Initializer):
        for p in parameters:
            try:
                function.check(p.shape)
            except ShapeError as error:
                raise ShapeError(f"{function} cannot fill {p.name!r}: {error}") from None
        for p in parameters:  # nothing can fail from here on, so one array at a time is enough memory
            write(p, cast_to(p, draw(function, p.shape, seed=seed, name=p.name)))
    else:  # a user's function may raise at any parameter, so all is drawn before the first is written
        drawn = [cast_to(p, draw(function, p.shape, seed=seed, name=p.name)) for p in parameters]
        for p, value in zip(parameters, drawn, strict=True):
            write(p, value)


def _fill_natively(native: NativeFill, store: Store, parameters: Sequence[Parameter], seed: int) -> None:
    # It writes into the model as it draws, so the old values are what undoes a failure.
    before = {base: np.array(to_numpy(base.read())) for p in parameters for base in bases(storage_of(p))}
    try:
        for p in parameters:
            _fill_one(native, store, p, seed)
    except Exception:
        for base, values in before.items():
            base.write(values)
        raise


def _fill_one(native: NativeFill, store: Store, p: Parameter, seed: int) -> None:
    """Let a native initialiser fill a parameter; where that is one row of a native array, only this row."""
    to_numpy = store.adapter.to_numpy
    for i, (base, part) in enumerate(zip(bases(storage_of(p)), slot_of(p).parts, strict=True)):
        row = row_of(part)
        before = None if row is None else np.array(to_numpy(base.read()))
        native(base, _small_seed(seed, f"{p.name} {i}" if i else p.name))
        if before is not None:
            before[row] = to_numpy(base.read())[row]
            base.write(before)


def _small_seed(seed: int, name: str) -> int:
    """A seed for the framework's own generator; 31 bits, since MXNet takes a C int."""
    return int.from_bytes(blake2b(f"{seed}\0{name}".encode(), digest_size=4).digest(), "little") >> 1
