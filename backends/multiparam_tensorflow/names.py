"""What Keras' layers are called.

Names that the user gave are names, as in Keras' own paths and files. Those that Keras makes up count the layers of the
process, so that a model built twice would have two sets of them: the attribute, the position, or the class and a count
within the model stands in their place.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, NamedTuple


class Child(NamedTuple):
    """A layer's direct sublayer, and where it is held: an attribute and what follows inside it, or a position."""

    segments: tuple[str, ...]
    layer: Any


def given_names(parent: Any, children: Sequence[Child]) -> dict[int, str]:
    """The names that the user gave, by the index of the child. One that is held twice has its name the first time.

    A name that two children have, or that another one is held under, names neither.
    """
    names: dict[int, str] = {}
    seen: set[int] = set()
    base = auto_base(parent) if children else None
    for i, (_, layer) in enumerate(children):
        name = None if id(layer) in seen else _given_name(layer, base)
        seen.add(id(layer))
        if name is not None:
            names[i] = name
    if not names:
        return names
    count = Counter(names.values())
    heads = Counter(child.segments[0] for child in children)
    own = {i: heads[name] - (children[i].segments[0] == name) for i, name in names.items()}
    return {i: name for i, name in names.items() if count[name] == 1 and own[i] == 0}


def counted_names(layers: Sequence[Any], taken: Collection[str] = ()) -> list[str]:
    """Names of layers that no attribute holds: the user's where there is one, else the class and a count among these,
    which passes over the names that are ``taken``."""
    given = [None if auto_base(layer) is not None else str(layer.name) for layer in layers]
    times = Counter(given)
    names: list[str | None] = [name if name not in taken and times[name] == 1 else None for name in given]
    used = {*taken, *(name for name in names if name is not None)}
    for i, layer in enumerate(layers):
        if names[i] is None:
            base = str(given[i] or auto_base(layer))
            counted = itertools.chain([base], (f"{base}_{n}" for n in itertools.count(1)))
            free = next(name for name in counted if name not in used)
            used.add(free)
            names[i] = free
    return [str(name) for name in names]


def _given_name(layer: Any, base: str | None) -> str | None:
    """The name the user gave; without the parent's, where Keras made that up, from ``base``, and the user put it in
    front."""
    name = str(layer.name)
    if auto_base(layer) is not None:
        return None
    inside = base and re.fullmatch(rf"{re.escape(base)}(_\d+)?[_/](?P<rest>[^\W\d].*)", name)
    return inside["rest"] if inside else name


def auto_base(layer: Any) -> str | None:
    """What Keras counts where it has made up a layer's name; None where it has not."""
    name = str(layer.name)
    return next((base for base in _auto_bases(type(layer).__name__) if _is_counted(name, base)), None)


def _is_counted(name: str, base: str) -> bool:
    return name == base or (name.startswith(f"{base}_") and name[len(base) + 1 :].isdigit())


@cache
def _auto_bases(cls: str) -> tuple[str, ...]:
    """What Keras calls a layer of a class before it counts: Keras 3, then tf_keras."""
    words = (re.sub(rf"(.)([A-Z][a-z{digits}]+)", r"\1_\2", cls) for digits in ("", "0-9"))
    snakes = [re.sub(r"([a-z])([A-Z])", r"\1_\2", word).lower() for word in words]
    private = [f"private{snake}" for snake in snakes if snake.startswith("_")]
    return (*snakes, *private, *(["model"] if cls in ("Functional", "Model") else []))
