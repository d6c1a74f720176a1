"""Layers that one side packs into one, and the other has apart: both are shown alike before they are matched.

Queries, keys and values may be three linear layers, one linear layer (``qkv``), or the packed arrays of an attention
layer; the gate and up projections of a gated network two linear layers or one (``gate_up_proj``); N layers of one shape
N layers or one whose arrays have N in front. Where two sides differ in that, the entries of such layers are listed
under one virtual layer, each as one of its leaves. What becomes what in it is in
:mod:`multiparam.transfers.packing`. What a name says of an order of rows is an inference, and so a guess.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from .. import paths
from .manifest import Entry, Manifest
from .names import CONTAINERS, tokens
from .packing import stacked_leaf
from .rename import RenamedLayers

Layers = Mapping[str, Mapping[str, Entry]]

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

    inferred = set(renamed.inferred)
    sides = (_groups(source_layers, source_kind), _groups(target_layers, target_kind))
    for kind in FAMILIES.values():
        ours, theirs = ([group for group in side if group.kind == kind] for side in sides)
        whole = [
            Counter(layer_kind(layer) for layer in layers)[kind]
            for layers, layer_kind in ((source_layers, source_kind), (target_layers, target_kind))
        ]
        # Where one side has nothing of this family that can be seen, there is nothing to be shown alike.
        both = (ours or whole[0]) and (theirs or whole[1])
        if both and _form(ours, whole[0]) != _form(theirs, whole[1]):
            _gather(source_layers, source_kinds, ours)
            _gather(target_layers, target_kinds, theirs)
            inferred |= {group.name for group in (*ours, *theirs) if group.packed}
    for one, other, kinds in (
        (source_layers, target_layers, source_kinds),
        (target_layers, source_layers, target_kinds),
    ):
        _gather_stacked(one, other, kinds)
    if not source_kinds and not target_kinds:
        return Regrouped(renamed, target)
    virtual = {(layer, leaf): target_kinds[layer] for layer in target_kinds for leaf in target_layers[layer]}
    shown = replace(
        target,
        layers={layer: dict(leaves) for layer, leaves in target_layers.items()},
        kinds={**target.kinds, **virtual},
        virtual=frozenset(target_kinds),
    )
    layers = {layer: dict(leaves) for layer, leaves in source_layers.items()}
    again = renamed._replace(layers=layers, kinds=source_kinds, inferred=frozenset(inferred))
    return Regrouped(again, shown)


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
    for parent, found in below.items():
        for family, family_kind in FAMILIES.items():
            own = {layer: parts for layer, parts in found.items() if family.issuperset(parts)}
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
    for group in groups:
        leaves = {
            f"{part}_proj_{leaf}": entry for layer, part in group.parts.items() for leaf, entry in layers[layer].items()
        }
        if layers.get(group.name, {}).keys() & leaves.keys():
            continue
        out = f"{group.name}.out_proj" if group.name else "out_proj"
        renamed: dict[str, Mapping[str, Entry]] = {}
        for layer, own in layers.items():
            if layer in group.parts:
                renamed.setdefault(group.name, {**layers.get(group.name, {}), **leaves})
            elif layer == group.out and out not in layers:
                renamed[out] = own
            elif layer != group.name:
                renamed[layer] = own
        layers.clear()
        layers.update(renamed)
        kinds[group.name] = group.kind


# -- layers of one shape, stacked


def _gather_stacked(layers: dict[str, Mapping[str, Entry]], others: Layers, kinds: dict[str, str]) -> None:
    """Put a virtual layer in the place of N layers ``name.0.rest`` that the other side has as one, ``name.rest``."""
    stacks: dict[str, dict[int, str]] = {}
    for layer in layers:
        if layer in others:
            continue
        segments = layer.split(".")
        for i, segment in enumerate(segments):
            match = re.fullmatch(r"(?:(\w*?)_)?(\d+)", segment)
            if match:
                rest = [*segments[:i], *([match[1]] if match[1] else []), *segments[i + 1 :]]
                stacks.setdefault(".".join(rest), {})[int(match[2])] = layer
    by_words = {_words(layer): layer for layer in others}
    for name, members in stacks.items():
        other = name if name in others else by_words.get(_words(name))
        if other is None or name in layers or sorted(members) != list(range(len(members))):
            continue
        own = [layers.get(members[i]) for i in range(len(members))]
        if any(leaves is None or leaves.keys() != (own[0] or {}).keys() for leaves in own):
            continue
        first = own[0] or {}
        if not any(
            leaf in others[other] and others[other][leaf].spec.shape == (len(own), *entry.spec.shape)
            for leaf, entry in first.items()
        ):
            continue
        leaves = {stacked_leaf(leaf, i): each[leaf] for leaf in first for i, each in enumerate(own) if each}
        place = members[0]
        shown = {name if layer == place else layer: leaves if layer == place else e for layer, e in layers.items()}
        for member in members.values():
            shown.pop(member, None)
        layers.clear()
        layers.update(shown)
        kinds[name] = ""


def _words(layer: str) -> tuple[object, ...]:
    return tuple(token for token in tokens(layer) if token not in CONTAINERS)
