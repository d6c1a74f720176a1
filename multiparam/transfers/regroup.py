"""Layers that one side packs into one, and the other has apart: both are shown alike before they are matched.

Queries, keys and values may be three linear layers, one linear layer (``qkv``), or the packed arrays of an attention
layer; the gate and up projections of a gated network two linear layers or one (``gate_up_proj``); N layers of one shape
N layers or one whose arrays have N in front. Where two sides differ in that, the entries of such layers are listed
under one virtual layer, each as one of its leaves. What becomes what in it is in
:mod:`multiparam.transfers.packing`. What a name says of an order of rows is an inference, and so a guess.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from .. import paths
from ..core.layers import KINDS
from .layer_rules import LEAF_NAMES
from .manifest import Entry, Manifest
from .names import tokens
from .rename import RenamedLayers
from .stacks import Instead, Layers, gather_stacked, put_instead

PARTS: Mapping[str, str] = {
    **dict.fromkeys(("q", "query", "queries", "wq"), "q"),
    **dict.fromkeys(("k", "key", "keys", "wk"), "k"),
    **dict.fromkeys(("v", "value", "values", "wv"), "v"),
    "gate": "gate",
    "up": "up",
}
TOGETHER: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("qkv", "wqkv", "c attn"), ("q", "k", "v")),
    **dict.fromkeys(("kv", "wkv"), ("k", "v")),
}
WAY_OUT = frozenset({"o", "out", "output", "wo", "proj", "c proj", "dense"})
FILLERS = frozenset({"proj", "projection", "to", "w", "dense", "linear", "lin", "fc", "layer"})
# The parts of one thing, and of which kind that is; the leaf of a whole.
FAMILIES: Mapping[frozenset[str], str] = {frozenset("qkv"): "attention", frozenset({"gate", "up"}): "gated"}
WHOLE: Mapping[tuple[str, ...], str] = {("q", "k", "v"): "in"}


class Regrouped(NamedTuple):
    """Two sides whose packed layers are shown alike.

    Attributes:
        source: The source's layers after the rules.
        target: The target.
    """

    source: RenamedLayers
    target: Manifest


class _Group(NamedTuple):
    """Layers of one side that are parts of one: layer -> the leaf's name but for its ending; and the way out."""

    name: str
    kind: str
    parts: dict[str, str]
    out: str
    packed: bool


def parts_of(name: str) -> tuple[str, ...]:
    """Which projections a layer of this name holds, in their order; none where the name says nothing of it.

    >>> parts_of("to_q"), parts_of("key_proj"), parts_of("qkv"), parts_of("gate_up_proj"), parts_of("fc1")
    (('q',), ('k',), ('q', 'k', 'v'), ('gate', 'up'), ())
    """
    words = [str(token) for token in tokens(name)]
    if " ".join(words) in TOGETHER:
        return TOGETHER[" ".join(words)]
    words = [word for word in words if word not in FILLERS]
    if len(words) == 1 and words[0] in TOGETHER:
        return TOGETHER[words[0]]
    parts = tuple(PARTS[word] for word in words if word in PARTS)
    return parts if len(parts) == len(words) == len(set(parts)) else ()


def regroup(source: Manifest, renamed: RenamedLayers, target: Manifest) -> Regrouped:
    """Show packed layers of both sides alike, where the two differ in how they pack.

    Args:
        source: The manifest of the source.
        renamed: Its layers after the rules.
        target: The manifest of the target.

    Returns:
        Both sides; as they were where they pack alike.
    """

    source_layers: dict[str, Mapping[str, Entry]] = dict(renamed.layers)
    target_layers: dict[str, Mapping[str, Entry]] = dict(target.layers)
    source_kinds, target_kinds = dict(renamed.kinds), dict[str, str]()

    def source_kind(layer: str) -> str:
        return source_kinds.get(layer) or kind_of(source, source_layers[layer])

    def target_kind(layer: str) -> str:
        return target_kinds.get(layer) or target.kind(layer)

    inferred, by_rule = set(renamed.inferred), set(renamed.by_rule)
    sides = (_groups(source_layers, source_kind), _groups(target_layers, target_kind))
    for kind in FAMILIES.values():
        of_source, of_target = ([group for group in side if group.kind == kind] for side in sides)
        whole = [
            Counter(layer_kind(layer) for layer in layers)[kind]
            for layers, layer_kind in ((source_layers, source_kind), (target_layers, target_kind))
        ]
        # Where one side has nothing of this family that can be seen, there is nothing to be shown alike.
        both = (of_source or whole[0]) and (of_target or whole[1])
        if both and _form(of_source, whole[0]) != _form(of_target, whole[1]):
            _gather(source_layers, source_kinds, of_source)
            _gather(target_layers, target_kinds, of_target)
            ruled = {g.name for g in of_source if all(layer in renamed.by_rule for layer in g.parts)} | renamed.by_rule
            inferred |= {group.name for group in (*of_source, *of_target) if group.packed} - ruled
            by_rule |= ruled
    biased = [_gather_biases(layers) for layers in (source_layers, target_layers)]
    for layers_here, layers_there, kinds, kind_in in (
        (source_layers, target_layers, source_kinds, source_kind),
        (target_layers, source_layers, target_kinds, target_kind),
    ):
        _spread(layers_here, layers_there, kinds, kind_in)
    for layers_here, layers_there, kinds in (
        (source_layers, target_layers, source_kinds),
        (target_layers, source_layers, target_kinds),
    ):
        gather_stacked(layers_here, layers_there, kinds)
    if not source_kinds and not target_kinds and not any(biased):
        return Regrouped(renamed, target)
    layers = {layer: dict(leaves) for layer, leaves in source_layers.items()}
    again = renamed._replace(layers=layers, by_rule=by_rule, kinds=source_kinds, inferred=frozenset(inferred))
    return Regrouped(again, _shown(target, target_layers, target_kinds))


def _shown(target: Manifest, target_layers: Layers, target_kinds: Mapping[str, str]) -> Manifest:
    """A target with other layers, some of which are none of its own."""
    virtual = {(layer, leaf): target_kinds[layer] for layer in target_kinds for leaf in target_layers[layer]}
    return replace(
        target,
        layers={layer: dict(leaves) for layer, leaves in target_layers.items()},
        kinds={**target.kinds, **virtual},
        virtual=frozenset(target_kinds),
    )


def kind_of(source: Manifest, entries: Mapping[str, Entry]) -> str:
    """The kind of the first of a layer's leaves that has one: rules may gather leaves of several layers."""
    places = (paths.split(entry.name) for entry in entries.values())
    return next((source.kinds[place] for place in places if place in source.kinds), "")


# -- queries, keys and values; gate and up


def _form(groups: Sequence[_Group], whole: int) -> tuple[int, ...]:
    """How a side packs: two that are alike in it need not be shown otherwise."""
    packed = sum(group.packed for group in groups)
    return packed, len(groups) - packed, whole


def _groups(layers: Layers, kind: Callable[[str], str]) -> list[_Group]:
    """The groups of layers of one side, each of which makes up one thing."""
    below: dict[str, dict[str, tuple[str, ...]]] = {}
    children: dict[str, list[str]] = {}
    for layer, leaves in layers.items():
        if not leaves or kind(layer) in ("attention", "embedding"):
            continue
        parent, name = paths.split(layer)
        children.setdefault(parent, []).append(layer)
        weight = leaves.get("weight")
        if weight is not None and len(weight.spec.shape) > 1 and (parts := parts_of(name)):
            below.setdefault(parent, {})[layer] = parts
    groups = []
    for parent, candidates in below.items():
        for family, family_kind in FAMILIES.items():
            own = {layer: parts for layer, parts in candidates.items() if family.issuperset(parts)}
            held = [part for parts in own.values() for part in parts]
            if sorted(held) != sorted(family):
                continue
            names = {layer: WHOLE.get(parts, "_".join(parts)) for layer, parts in own.items()}
            outs = [c for c in children[parent] if c not in own and _leads_out(paths.split(c)[1])]
            out = outs[0] if len(outs) == 1 and family_kind == "attention" else ""
            packed = any(len(parts) > 1 for parts in own.values())
            groups.append(_Group(parent, family_kind, names, out, packed))
    return groups


def _leads_out(name: str) -> bool:
    words = [str(token) for token in tokens(name)]
    bare = [word for word in words if word not in FILLERS]
    return " ".join(words) in WAY_OUT or (len(bare) == 1 and bare[0] in WAY_OUT)


def _gather(layers: dict[str, Mapping[str, Entry]], kinds: dict[str, str], groups: Sequence[_Group]) -> None:
    """Put a virtual layer in the place of the first of each group's layers."""
    instead: Instead = {}
    for group in groups:
        leaves = {
            f"{part}_proj_{leaf}": entry for layer, part in group.parts.items() for leaf, entry in layers[layer].items()
        }
        around = layers.get(group.name, {})
        if around.keys() & leaves.keys() or not instead.keys().isdisjoint([group.name, *group.parts]):
            continue
        instead.update(dict.fromkeys([group.name, *group.parts]))
        instead[next(iter(group.parts))] = (group.name, {**around, **leaves})
        out = f"{group.name}.out_proj" if group.name else "out_proj"
        if group.out and out not in layers:
            instead[group.out] = (out, layers[group.out])
        kinds[group.name] = group.kind
    put_instead(layers, instead)


# -- arrays that one side keeps in a layer of their own, the other in the layer around it


def _spread(
    layers: dict[str, Mapping[str, Entry]], others: Layers, kinds: dict[str, str], kind: Callable[[str], str]
) -> None:
    """Show an array of a layer of no known kind, as ``embeddings.position_embeddings``, as the layer of one array that
    the other side has for it, ``embeddings.position_embeddings.weight``."""
    alone: dict[tuple[object, ...], set[tuple[int, ...]]] = {}  # last words of a layer of one array -> shapes
    leaves_there = {leaf for leaves in others.values() for leaf in leaves}
    for layer_there, leaves in others.items():
        if len(leaves) == 1 and LEAF_NAMES.get(next(iter(leaves))) == "weight":
            shape = next(iter(leaves.values())).spec.shape
            alone.setdefault(tokens(paths.split(layer_there)[1]), set()).add(shape)
    if not alone:
        return
    shown: dict[str, Mapping[str, Entry]] = {}
    for layer, leaves in layers.items():
        rest = dict(leaves)
        for leaf, entry in leaves.items():
            as_layer = f"{layer}.{leaf}" if layer else leaf
            named = leaf not in LEAF_NAMES and leaf not in leaves_there and kind(layer) not in KINDS
            shapes = alone.get(tokens(leaf), set())
            # With as many in front as the other side has layers, as experts, it is these, stacked.
            fits = not shapes.isdisjoint({entry.spec.shape, entry.spec.shape[1:]})
            if named and fits and as_layer not in layers:
                shown[as_layer] = {"weight": rest.pop(leaf)}
                kinds[as_layer] = ""
        if rest:
            shown[layer] = rest
    layers.clear()
    layers.update(shown)


def _gather_biases(layers: dict[str, Mapping[str, Entry]]) -> bool:
    """Show a bias beside a depthwise and a pointwise convolution as that of the second, which has none; whether there
    was one."""
    before = len(layers)
    for layer, leaves in list(layers.items()):
        depthwise, pointwise = (layers.get(f"{layer}.{part}", {}) for part in ("depthwise", "pointwise"))
        if list(leaves) == ["bias"] and list(depthwise) == ["weight"] and list(pointwise) == ["weight"]:
            layers[f"{layer}.pointwise"] = {**pointwise, "bias": leaves["bias"]}
            del layers[layer]
    return len(layers) < before
