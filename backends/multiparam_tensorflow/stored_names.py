"""What Keras' own weight files call the variables of a model.

Three ways: ``.weights.h5`` and ``.keras`` number a layer's variables below its path, which Keras' saving library makes
up while it walks the model; so that walk is made here, with a store that keeps no values. ``.h5`` has a group for each
layer of the model, and in it the variables by their own names, whose counts differ from process to process. Checkpoints
of TensorFlow have the attributes on the way to each variable, its SavedModels their place in the model's list.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import multiparam.adapter as mpa

from .names import auto_base
from .storage import TiedView
from .variables import own_lists
from .walk import walk

Key = tuple[int, int]  # of a layer and a variable of it, by identity


def stored_names(model: Any, slots: Sequence[mpa.Slot]) -> list[list[str]]:
    """A list for each way, with a name for each slot, empty where the files do not hold it."""
    numbered, by_group = _numbered(model), _by_group(model)
    counted = {str(layer.name): mark for _, _, layer in walk(model) if (mark := _marked(layer)) is not None}
    by_count = {
        key: ".".join(counted.get(segment, segment) for segment in name.split(".")) for key, name in by_group.items()
    }
    rows = [
        [names.get((id(slot.owner), id(slot.storage.native)), "") for slot in slots]
        for names in (numbered, by_group, by_count)
    ]
    if hasattr(model, "_trackable_children"):  # Keras over TensorFlow, which has ways of its own
        rows += _tracked(model, slots)
    return rows


def _tracked(model: Any, slots: Sequence[mpa.Slot]) -> list[list[str]]:
    """Names in a checkpoint, and in a SavedModel: as Keras 3 exports, by the model's list alone, and as tf_keras saves,
    where a way as short as that comes first."""
    from .checkpoints import names_of

    tracked = names_of(model)
    listed = {id(variable): f"variables.{i}" for i, variable in enumerate(getattr(model, "variables", ()))}
    keys = [id(slot.storage.native) for slot in slots]
    shorter = {key: name if name.count(".") < 2 else listed.get(key, "") for key, name in tracked.items()}
    return [[names.get(key, "") for key in keys] for names in (tracked, listed, shorter)]


def _marked(layer: Any) -> str | None:
    """The name that Keras has made up for a layer, its count marked: ``dense_3`` as ``dense#3``."""
    base = auto_base(layer)
    return None if base is None else f"{base}#{str(layer.name)[len(base) :].lstrip('_')}"


class _Entry(dict[str, Any]):
    """What a layer writes into; only variables are kept."""

    def __setitem__(self, key: str, value: Any) -> None:
        value = value.source if isinstance(value, TiedView) else value
        super().__setitem__(key, value if hasattr(value, "assign") else None)


class _Visited(set[int]):
    """What has been saved, by identity, with the path and the entry that the store made just before."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[str, _Entry]] = {}
        self.made: tuple[str, _Entry] | None = None

    def make(self, path: str, metadata: Any = None) -> _Entry:
        entry = _Entry()
        self.made = path, entry
        return entry

    def add(self, item: int) -> None:
        if self.made is not None:
            self.entries[item] = self.made
            self.made = None
        super().add(item)


def _numbered(model: Any) -> dict[Key, str]:
    """``layers/dense/vars/0``, as ``save_weights`` and ``save`` write it."""
    root = next(cls.__module__.partition(".")[0] for cls in type(model).__mro__ if cls.__name__ == "Layer")
    library = import_module(f"{root}.src.saving.saving_lib")
    visited = _Visited()
    # Keras 3 takes no other store than its own.
    store_type = type("Store", (library.H5IOStore,), {"__init__": lambda self: None, "__bool__": lambda self: True})
    store = store_type()
    store.make = visited.make
    library._save_state(model, store, None, "", visited)
    names: dict[Key, str] = {}
    for _, _, layer in walk(model):
        path, entry = visited.entries.get(id(layer), ("", {}))
        own = [variable for group in own_lists(layer) for variable in group]
        for key, variable in entry.items():
            if variable is None and key.isdigit() and int(key) < len(own):  # tf_keras writes arrays, in this order
                variable = own[int(key)]
            names.setdefault(
                (id(layer), id(variable)), ".".join([*path.split("/"), "vars", key] if path else ["vars", key])
            )
    return names


def _by_group(model: Any) -> dict[Key, str]:
    """``dense/dense/kernel:0``, as ``.h5`` has it: the layer of the model, then the variable's own name or path."""
    names: dict[Key, str] = {}
    groups = [(layer.name, [own for _, _, own in walk(layer)]) for layer in getattr(model, "layers", [])]
    for group, layers in [*groups, ("top_level_model_weights", [model])]:
        for layer in layers:
            for variable in (v for own in own_lists(layer) for v in own):
                name = getattr(variable, "path", variable.name)
                names.setdefault((id(layer), id(variable)), f"{group}/{name}".replace("/", "."))
    return names
