"""What tells that native code has put other layers or variables into a Keras model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

import multiparam.adapter as mpa

from .framework import is_variable
from .storage import TiedView
from .variables import own_lists
from .walk import TRACKERS, Path, Place, is_layer

_matters: dict[type, int] = {}  # of a value by its type: a layer or variable, what may hold some, or neither
_LAYER, _HOLDER = 1, 2


def _kind(value: Any) -> int:
    if isinstance(value, (list, tuple, dict)):
        kind = _HOLDER
    else:
        kind = _LAYER if is_layer(value) or is_variable(value) or isinstance(value, (keras.Variable, TiedView)) else 0
    _matters[type(value)] = kind
    return kind


def fingerprint(root: Any) -> Any:
    """What is another where a layer or a variable has been put in the place of one, added or taken away."""
    seen: dict[int, Any] = {}  # a layer used twice once
    waiting = [root]
    while waiting:
        layer = waiting.pop()
        if id(layer) in seen:
            continue
        seen[id(layer)] = known = [id(each) for group in own_lists(layer) for each in group]
        for name, value in vars(layer).items():
            kind = _matters.get(type(value))
            kind = _kind(value) if kind is None else kind
            if kind == _LAYER:
                known.append(id(value))
            elif kind == _HOLDER and value and not name.startswith("_"):
                items = value.values() if isinstance(value, dict) else value
                known += [id(each) for each in items if (_matters.get(type(each)) or _kind(each)) == _LAYER]
        below = [each for each in layer._flatten_layers(include_self=False, recursive=False) if is_layer(each)]
        known += map(id, below)
        waiting += below
    return seen


def _there(parent: Any, layer: Any) -> Any:
    """The layer, where another one still has it among its own."""
    below = parent._flatten_layers(include_self=False, recursive=False)
    return layer if any(each is layer for each in below) else None


def holders(root: Any, places: Sequence[Place]) -> mpa.Holders:
    """What each layer is held by, and under which attribute, if it is in one."""
    known, by_path = mpa.Holders(root), dict[Path, Any]({(): root})
    for path, _, layer in places:
        by_path[path] = layer
        if not path:
            continue
        above = next(path[:n] for n in range(len(path) - 1, -1, -1) if path[:n] in by_path)
        parent = by_path[above]
        attributes = ((name, value) for name, value in vars(parent).items() if name not in TRACKERS)
        name = next((name for name, value in attributes if value is layer), None)
        if name is None:
            known.add(path, above, layer, _there, parent, layer)
        else:
            known.add(path, above, layer, vars(parent).get, name)
    return known
