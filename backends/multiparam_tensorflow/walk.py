"""The layers of a Keras model and the attributes that hold their variables.

Keras' own names and paths are neither unique nor stable, so variables and layers are found by looking up, by identity,
which attribute holds them; a Sequential's children are named by position.
"""

from __future__ import annotations

import itertools
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import multiparam.adapter as mpa
from multiparam.errors import Unsupported

from .layers import ROOTS
from .storage import TiedView

Path = tuple[str, ...]
Place = tuple[Path, tuple[int, ...], Any]  # path, positions, layer

# The places of the models mp.build made: a shared layer's second name is nowhere in a Functional model.
built: weakref.WeakKeyDictionary[Any, list[Place]] = weakref.WeakKeyDictionary()
# The attributes in which each class of layers was known to hold variables: where to look first.
holders: dict[type, list[str]] = {}
# tf_keras' metrics are layers too, and none of a model's.
IS_LAYER = mpa.ByClass({f"{root}.{name}": name == "Layer" for root in ROOTS for name in ("Layer", "Metric")})
# Where Keras 3 itself lists a layer's sublayers again; TensorFlow's own lists begin with "_self_".
TRACKERS = {"_modules", "_layers", "_tracked", "_operations", "_metrics", "_functional", "_obj_reference_counts_dict"}


def is_layer(item: object) -> bool:
    """Whether something is a layer of either generation."""
    return bool(IS_LAYER.of(type(item)))


def own_lists(layer: Any) -> tuple[list[Any], list[Any]]:
    """A layer's own trainable and other variables, in either generation."""
    if hasattr(layer, "_trainable_variables"):
        return layer._trainable_variables, layer._non_trainable_variables
    return layer._trainable_weights, layer._non_trainable_weights


def variables(layer: Any) -> Iterator[tuple[str, Any]]:
    """A layer's own variables with the attribute that holds each."""
    attributes, names = vars(layer), holders.setdefault(type(layer), [])
    for variable in (v for group in own_lists(layer) for v in group):
        name = next(
            (name for name in itertools.chain(names, attributes) if _holds(attributes.get(name), variable)), None
        )
        if name is None:
            raise Unsupported(
                f"A variable of layer {layer.name!r} is held by no attribute of its own, so it has no stable name; "
                "assign what add_weight returns to an attribute."
            )
        if name not in names:
            names.append(name)
        yield name, variable


def _holds(value: Any, variable: Any) -> bool:
    return value is variable or (isinstance(value, TiedView) and value.source is variable)


def places(model: Any) -> list[Place]:
    """Every use of every layer of a model in definition order."""
    return built.get(model) or list(walk(model))


def walk(layer: Any, path: Path = (), positions: tuple[int, ...] = (), above: tuple[int, ...] = ()) -> Iterator[Place]:
    """Every use of every layer in definition order; one used at several places comes several times."""
    if id(layer) in above:  # a layer that refers back to its parent
        return
    yield path, positions, layer
    for position, (segments, child) in enumerate(_children(layer)):
        nested = (int(segment) if segment.isdigit() else 0 for segment in segments[1:])
        yield from walk(child, (*path, *segments), (*positions, position, *nested), (*above, id(layer)))


def _children(layer: Any) -> Iterator[tuple[Path, Any]]:
    """A layer's direct sublayers by name: by position in a Sequential; elsewhere by the attributes that hold them, then
    by layer name in a Functional model, then by private attributes, which MultiHeadAttention, for one, keeps."""
    classes = {base.__name__ for base in type(layer).__mro__}
    if "Sequential" in classes:
        yield from (((str(i),), child) for i, child in enumerate(applied(layer)))
        return
    if not (getattr(layer, "_layers", None) or getattr(layer, "_self_tracked_trackables", None)):
        return
    reached: set[int] = set()
    attributes = {**vars(layer), **vars(layer).get("_modules", {})}  # where layers are torch's modules, they are there
    if "Bidirectional" in classes and hasattr(layer, "backward_layer"):
        attributes.pop("layer", None)  # tf_keras keeps the layer it was given, unused, beside the two it made of it
    public = [attribute for attribute in attributes if not attribute.startswith("_")]
    for attribute in public:
        for segments, child in _layers(attributes[attribute]):
            reached.add(id(child))
            yield (attribute, *segments), child
    if "Functional" in classes:
        graph = [child for child in layer.layers if not _is_input(child) and id(child) not in reached]
        reached.update(map(id, graph))
        yield from zip(((name,) for name in _stable_names(graph)), graph, strict=True)
    for attribute, value in attributes.items():
        if attribute.startswith("_") and not attribute.startswith("_self_") and attribute not in TRACKERS:
            for segments, child in _layers(value):
                if id(child) not in reached:
                    reached.add(id(child))
                    bare = attribute.lstrip("_")
                    yield (attribute if bare in public else bare, *segments), child


def _is_input(layer: Any) -> bool:
    return type(layer).__name__ == "InputLayer"


def applied(model: Any) -> list[Any]:
    """A Sequential's layers as it applies them. tf_keras lists one that is repeated once, whatever it does."""
    if not getattr(model, "_graph_initialized", False):
        return list(model.layers)
    nodes = [node.layer for _, depth in sorted(model._nodes_by_depth.items(), reverse=True) for node in depth]
    layers = [layer for layer in nodes if not _is_input(layer)]
    return layers if len(layers) > len(model.layers) else list(model.layers)


def repeated(model: Any) -> list[Any]:
    """The layers of a tf_keras Sequential that is not built yet, where one is there twice."""
    if getattr(model, "_graph_initialized", True) or type(model).__name__ != "Sequential":
        return []
    added = [each for each in model._self_tracked_trackables if not _is_input(each)]
    return added if len(set(map(id, added))) < len(added) else []


def _layers(value: Any) -> Iterator[tuple[Path, Any]]:
    """The layers in a value of an attribute: itself, or those in lists and mappings."""
    items: Any = value.items() if isinstance(value, Mapping) else ()
    if is_layer(value):
        yield (), value
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for name, item in items:
        yield from (((str(name), *segments), child) for segments, child in _layers(item))


def _stable_names(graph: Sequence[Any]) -> list[str]:
    """The names of a Functional model's layers: the user's where there is one, else the class and a count within the
    model. Keras' own count is the process's, and a model built twice would have two sets of names."""
    bases = [
        next((base for base in _auto_names(layer) if re.fullmatch(rf"{re.escape(base)}(_\d+)?", layer.name)), None)
        for layer in graph
    ]
    taken = {layer.name for layer, base in zip(graph, bases, strict=True) if base is None}
    names = []
    for layer, base in zip(graph, bases, strict=True):
        counted = itertools.chain([base], (f"{base}_{n}" for n in itertools.count(1)))
        names.append(str(layer.name if base is None else next(name for name in counted if name not in taken)))
        taken.add(names[-1])
    return names


def _auto_names(layer: Any) -> list[str]:
    """What Keras would call a layer of this class: Keras 3, then tf_keras."""
    name = type(layer).__name__
    words = (re.sub(rf"(.)([A-Z][a-z{digits}]+)", r"\1_\2", name) for digits in ("", "0-9"))
    snakes = [re.sub(r"([a-z])([A-Z])", r"\1_\2", word).lower() for word in words]
    return [*snakes, *(["model"] if name in ("Functional", "Model") else [])]
