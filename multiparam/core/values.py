"""Values of a slot in canonical form: what shape they have, which arrays they can be, and how they are written."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DtypeError, UnknownShapes
from . import registry
from .arrays import castable, dtype_name, numpy_dtype, overflows
from .composite import bases
from .materialise import require_values
from .slots import Slot
from .store import Store

PLAIN = (np.ndarray, np.generic, int, float, list, tuple)
UNKNOWN_CURE = "Pass example inputs, mp.wrap(net, X), or run the model once before wrapping it."


def canonical_shape(slot: Slot, name: str) -> tuple[int, ...]:
    """The canonical shape. Raises UnknownShapes where the framework does not know it before the first forward pass."""
    shape = slot.shape
    if shape is None:
        raise UnknownShapes(f"The shape of {name!r} is not known yet. {UNKNOWN_CURE}")
    return shape


def in_dtype(slot: Slot, name: str, value: np.ndarray) -> np.ndarray:
    """An array in a slot's dtype, unless that would lose its kind: no fraction, no imaginary part."""
    dtype = slot.storage.dtype
    target = numpy_dtype(dtype)
    if value.dtype != target and not castable(value.dtype.name, dtype):
        raise DtypeError(f"{name!r} is {dtype}; {value.dtype} values cannot be written into it.")
    if overflows(value, target):
        raise DtypeError(f"{name!r} is {dtype}; the values go beyond its range.")
    return value.astype(target, copy=False)


def write_native(store: Store, slot: Slot, array: Any) -> bool:
    """Write a canonical array of the model's own framework where it is, on an accelerator; whether that was done.

    It is not where the array is another framework's or does not fit, which the way by numpy then says.
    """
    known = None if isinstance(array, PLAIN) or store.tracing else registry.detect_array(array)
    if known is None or known.name != store.backend or len(bases(slot.storage)) > 1:
        return False
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):  # a layer, say
        return False
    if tuple(array.shape) != slot.shape or dtype_name(array.dtype) != slot.storage.dtype:
        return False
    require_values(store, slot)
    layout = slot.canonical
    native = array if layout is None else layout.undo(array, store.adapter.namespace(array))
    return store.host.write_native(slot.storage, native)


def memory_of_slot(store: Store, slot: Slot) -> np.ndarray | None:
    """A slot's own memory, where its framework lets others write into that, and in canonical layout."""
    require_values(store, slot)
    plain = slot.canonical is None and bases(slot.storage) == (slot.storage,)
    return store.host.memory(slot.storage) if plain else None


def write_canonical(store: Store, slot: Slot, value: np.ndarray) -> None:
    """Write a canonical array of the right shape and dtype."""
    require_values(store, slot)
    layout = slot.canonical
    slot.storage.write(value if layout is None else layout.undo(value, np))
