"""The functional form: a forward pass with other arrays in the place of the parameters, differentiable by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import ShapeError, StateError, WrongType
from .composite import Packed, row_of
from .layouts import concat
from .parameter import Parameter
from .slots import Array, Slot, Storage
from .state import same
from .store import Store
from .values import canonical_shape


def native_values(store: Store, parameters: Mapping[str, Any]) -> dict[Storage, Array]:
    """The native arrays behind some parameters, made of canonical ones by operations that are differentiated.

    Args:
        store: The model's.
        parameters: Name -> canonical array: the framework's, traced or not, numpy's, or a Parameter.

    Returns:
        Each native storage that one of them is of -> its array, in native layout.

    Raises:
        ParameterNotFound: The model has no such name.
        ShapeError: An array has another shape.
        StateError: Two names of one parameter have different arrays.
        WrongType: It is no mapping.
    """
    if not isinstance(parameters, Mapping):
        raise WrongType(f"The parameters are a mapping name -> array; this is a {type(parameters).__name__}.")
    given: dict[int, tuple[str, Slot, Array]] = {}
    for name, value in parameters.items():
        slot = store.table.slot(name)
        array = store.native_array(value.value if isinstance(value, Parameter) else value)
        shape = canonical_shape(slot, name)
        if tuple(getattr(array, "shape", ())) != shape:
            raise ShapeError(f"{name!r} has shape {shape}; the array has {tuple(getattr(array, 'shape', ()))}.")
        first, _, known = given.setdefault(id(slot.storage), (name, slot, array))
        if known is not array and not _same(parameters[first], value):
            raise StateError(f"{first!r} and {name!r} are one parameter: give it once, or the same array for both.")
    natives: dict[Storage, Array] = {}
    rows: dict[Storage, dict[int, Array]] = {}
    for _, slot, array in given.values():
        for piece, part in _parts(slot, array):
            xp, layout = store.adapter.namespace(part), piece.canonical
            native = part if layout is None else layout.undo(part, xp)
            if (row := row_of(piece)) is None:
                natives[piece.storage] = native
            else:
                rows.setdefault(piece.storage, {})[row] = xp.reshape(native, (1, *native.shape))
    for storage, known_rows in rows.items():
        whole = storage.read()
        every = [known_rows.get(i, whole[i : i + 1]) for i in range((storage.shape or ())[0])]
        natives[storage] = concat(store.adapter.namespace(every[0]), every, 0)
    return natives


def _parts(slot: Slot, array: Array) -> list[tuple[Slot, Array]]:
    """A canonical array as what each native array behind it holds; by slices, which every framework differentiates."""
    storage = slot.storage
    if not isinstance(storage, Packed):
        return [(slot, array)]
    return storage.split(array)


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and same(a, b)
