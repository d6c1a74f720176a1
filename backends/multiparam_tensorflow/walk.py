"""The layers of a Keras model: which there are, where they are held, and in which order.

Layers are found where Keras itself finds them when it saves weights: in a Sequential's or a Functional model's list, in
attributes, and in lists and mappings that attributes hold. What they are called is in
:mod:`multiparam_tensorflow.names`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import multiparam.adapter as mpa

from .layers import ROOTS, composite_of
from .names import Child, counted_names, given_names

Path = tuple[str, ...]
Place = tuple[Path, tuple[int, ...], Any]  # path, positions, layer

# The places of the models mp.build made: a shared layer's second name is nowhere in a Functional model.
built: weakref.WeakKeyDictionary[Any, list[Place]] = weakref.WeakKeyDictionary()
# How many children each layer of these has, by its path: activations and poolings are no Keras layers.
counts: weakref.WeakKeyDictionary[Any, dict[Path, int]] = weakref.WeakKeyDictionary()
# tf_keras' metrics are layers too, and none of a model's.
IS_LAYER = mpa.ByClass({f"{root}.{name}": name == "Layer" for root in ROOTS for name in ("Layer", "Metric")})
# Where Keras 3, Keras on torch and TensorFlow list again, for themselves, what attributes hold.
TRACKERS = {
    *("_modules", "_layers", "_tracked", "_operations", "_metrics", "_functional", "_obj_reference_counts_dict"),
    *("_self_tracked_trackables", "_self_saveable_object_factories", "_self_name_based_restores"),
    *(f"_self_unconditional_{which}" for which in ("checkpoint_dependencies", "dependency_names")),
    "_self_unconditional_deferred_dependencies",
}


def is_layer(item: object) -> bool:
    """Whether something is a layer of either generation."""
    return bool(IS_LAYER.of(type(item)))


def is_unbuilt(layer: Any) -> bool:
    """Whether a layer has yet to make variables; one without a ``build`` of its own, as Dropout, has none to make."""
    builds = next(cls for cls in type(layer).__mro__ if "build" in vars(cls))
    own = builds.__name__ not in ("Layer", "BaseRandomLayer") or builds.__module__.partition(".")[0] not in ROOTS
    return own and not layer.built


def places(model: Any) -> list[Place]:
    """Every use of every layer of a model in definition order."""
    return built.get(model) or list(walk(model))


def count_children(model: Any, path: Path) -> int | None:
    """How many children a layer has, or a list in an attribute of one; None where there is no such layer."""
    if model in counts:
        return counts[model].get(path)
    known = {place: layer for place, _, layer in walk(model)}
    alias = dict(aliases(model)).get(path, path)
    if alias in known:
        return len(_children(known[alias]))
    above = next((n for n in range(len(path) - 1, -1, -1) if path[:n] in known), 0)
    listed: Any = vars(known[path[:above]])
    for segment in path[above:]:
        if isinstance(listed, (list, tuple)):
            listed = listed[int(segment)] if segment.isdigit() and int(segment) < len(listed) else None
        else:
            listed = listed.get(segment) if isinstance(listed, Mapping) else None
    return len(listed) if isinstance(listed, (list, tuple)) else None


def walk(
    layer: Any,
    path: Path = (),
    positions: tuple[int, ...] = (),
    above: tuple[int, ...] = (),
    composite: bool = False,
) -> Iterator[Place]:
    """Every use of every layer in definition order; one used at several places comes several times.

    Inside a ``composite`` layer given names do not count: Keras itself gives some, and what the parts are is known by
    the attributes.
    """
    if id(layer) in above:  # a layer that refers back to its parent
        return
    yield path, positions, layer
    children = _children(layer)
    if not children:  # most layers of a large model
        return
    composite = composite or composite_of(layer) is not None
    for position, (segments, held, child) in enumerate(_named(layer, children, composite)):
        nested = [int(segment) if segment.isdigit() else 0 for segment in held[1:]] if segments == held else []
        yield from walk(child, (*path, *segments), (*positions, position, *nested), (*above, id(layer)), composite)


def aliases(
    layer: Any, path: Path = (), alias: Path = (), above: tuple[int, ...] = (), composite: bool = False
) -> Iterator[tuple[Path, Path]]:
    """Where layers with given names are held, attributes or positions all the way down or below the last name, and
    their paths."""
    children = [] if id(layer) in above else _children(layer)
    if not children:
        return
    composite = composite or composite_of(layer) is not None
    for segments, held, child in _named(layer, children, composite):
        named = (*path, *segments)
        places = (*alias, *held), (*path, *held)
        yield from ((place, named) for place in dict.fromkeys(places) if place != named)
        yield from aliases(child, named, places[0], (*above, id(layer)), composite)


def _named(layer: Any, children: list[Child], composite: bool) -> Iterator[tuple[Path, Path, Any]]:
    """A layer's direct sublayers: under which segments, where they are held, and which."""
    names = {} if composite else given_names(layer, children)
    for position, (held, child) in enumerate(children):
        yield (names[position],) if position in names else held, held, child


@cache
def _classes(mro: tuple[type, ...]) -> frozenset[str]:
    """The names of a class and of those it is derived from."""
    return frozenset(base.__name__ for base in mro)


def _children(layer: Any) -> list[Child]:
    """A layer's direct sublayers and where they are held: in a Sequential or a Functional model those of its list; then
    those in public attributes; and once, if they are not among these, those in private attributes, which
    MultiHeadAttention, for one, keeps, and whatever else Keras tracks, as in a set."""
    classes = _classes(type(layer).__mro__)
    sequential = "Sequential" in classes  # of tf_keras a Functional model too
    if not (sequential or getattr(layer, "_layers", None) or getattr(layer, "_self_tracked_trackables", None)):
        return []
    public, private = _held(layer)
    unused = vars(layer).get("layer") if "Bidirectional" in classes and hasattr(layer, "backward_layer") else None
    if unused is not None:  # tf_keras keeps the layer it was given beside the two it made of it
        public = [child for child in public if child.layer is not unused]
    children: list[Child] = []
    if sequential:
        children = [Child((str(i),), child) for i, child in enumerate(applied(layer))]
        listed = {id(child.layer) for child in children}
        public = [child for child in public if id(child.layer) not in listed]
    elif "Functional" in classes:
        children = _graph(layer, public)
    places = {child.segments for child in children}
    children += [child for child in public if child.segments not in places]
    reached = {id(unused), *(id(child.layer) for child in children)}
    taken = {child.segments[0] for child in children}
    for (attribute, *segments), child in private:
        if id(child) not in reached:
            reached.add(id(child))
            bare = attribute.lstrip("_")
            children.append(Child((attribute if bare in taken else bare, *segments), child))
    tracked = [each for each in layer._flatten_layers(recursive=False, include_self=False) if is_layer(each)]
    rest = [each for each in tracked if id(each) not in reached and not _is_input(each)]
    names = counted_names(rest, {child.segments[0] for child in children})
    return children + [Child((name,), child) for name, child in zip(names, rest, strict=True)]


def _graph(model: Any, public: list[Child]) -> list[Child]:
    """The layers of a Functional model by the attribute that holds them, else by their class and a count."""
    held = {id(child.layer): child for child in reversed(public)}
    layers = [layer for layer in model.layers if not _is_input(layer)]
    rest = [layer for layer in layers if id(layer) not in held]
    names = counted_names(rest, {child.segments[0] for child in public})
    counted = {id(layer): Child((name,), layer) for name, layer in zip(names, rest, strict=True)}
    return [held.get(id(layer)) or counted[id(layer)] for layer in layers]


def _held(layer: Any) -> tuple[list[Child], list[Child]]:
    """What a layer's attributes hold: the public ones, and those that Keras' bookkeeping is not in."""
    attributes = {**vars(layer), **vars(layer).get("_modules", {})}  # where layers are torch's modules, they are there
    public: list[Child] = []
    private: list[Child] = []
    for attribute, value in attributes.items():
        if attribute not in TRACKERS:
            held = [Child((attribute, *segments), child) for segments, child in _layers(value)]
            (private if attribute.startswith("_") else public).extend(held)
    return public, private


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
    items: Any = list(value.items()) if isinstance(value, Mapping) else ()
    if is_layer(value):
        yield (), value
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for name, item in items:
        yield from (((str(name), *segments), child) for segments, child in _layers(item))
