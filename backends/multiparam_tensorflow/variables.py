"""The variables that a Keras layer itself has, and where it holds each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .storage import TiedView

Path = tuple[str, ...]

# The attributes in which each class of layers was known to hold variables: where to look first.
holders: dict[type, list[str]] = {}


def own_lists(layer: Any) -> tuple[list[Any], list[Any]]:
    """A layer's own trainable and other variables, in either generation."""
    if hasattr(layer, "_trainable_variables"):
        return layer._trainable_variables, layer._non_trainable_variables
    return layer._trainable_weights, layer._non_trainable_weights


def variables(layer: Any) -> Iterator[tuple[Path, Any]]:
    """A layer's own variables and where it holds each: an attribute, a place in a list or mapping there; for one that
    it keeps nowhere, the name that the variable was made with."""
    attributes, names = vars(layer), holders.setdefault(type(layer), [])
    inside: dict[int, Path] | None = None
    taken: set[Path] = set()
    for variable in {id(v): v for group in own_lists(layer) for v in group}.values():  # a tie may list one twice
        name = next(
            (name for name in itertools.chain(names, attributes) if _holds(attributes.get(name), variable)), None
        )
        if name is not None:
            if name not in names:
                names.append(name)
            place: Path = (name,)
        else:
            inside = _contained(layer) if inside is None else inside
            place = inside.get(id(variable)) or _unheld(variable, {*taken, *((each,) for each in attributes)})
        taken.add(place)
        yield place, variable


def held(layer: Any, place: str, variable: Any) -> tuple[bool, Any]:
    """Whether a layer still holds a variable as its own, at the place where it did, and in which layout it shows it."""
    value = vars(layer).get(place, layer)
    if value is layer:  # inside a list or mapping, or in no attribute
        return any(variable is each for group in own_lists(layer) for each in group), None
    return _holds(value, variable), value.layout if isinstance(value, TiedView) else None


def _holds(value: Any, variable: Any) -> bool:
    return value is variable or (isinstance(value, TiedView) and value.source is variable)


def _contained(layer: Any) -> dict[int, Path]:
    """The places of what lists and mappings in a layer's attributes hold, by identity; the first of each, and public
    attributes before private ones, where Keras' own lists are."""
    places: dict[int, Path] = {}
    own = [*own_lists(layer), getattr(layer, "_self_tracked_trackables", None)]
    for attribute in sorted(vars(layer), key=lambda name: (name.startswith("_"), name.startswith("_self_"))):
        value = vars(layer)[attribute]
        if not attribute.startswith("_self_") and not any(value is each for each in own):
            for path, item in _items(value, (attribute,)):
                places.setdefault(id(item), path)
    return places


def _items(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping):
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        return
    for name, item in items:
        yield (*path, str(name)), item
        yield from _items(item, (*path, str(name)))


def _unheld(variable: Any, taken: set[Path]) -> Path:
    """The name a variable was made with, without the scope in front of it and the count that Keras puts behind."""
    name = re.sub(r"(?<=.)_\d+$", "", str(variable.name).partition(":")[0].rpartition("/")[2]) or "variable"
    counted = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(1)))
    return next((each,) for each in counted if (each,) not in taken)
