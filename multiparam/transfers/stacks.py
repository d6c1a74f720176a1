"""N layers of one shape that the other side has as one, whose arrays have N in front, as ``nn.scan`` keeps them.

The layers are numbered, and what they are in is called the same on both sides or is the only one with what it holds:
``layers.0.attn.q``, ``layers.1.attn.q`` become leaves of ``h.attn.q``, if nothing else could be that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Optional

from ..paths import joined
from .manifest import Entry
from .names import Key, tokens, without_containers
from .packing import stacked_leaf

Leaves = Mapping[str, Entry]
Layers = Mapping[str, Leaves]
Instead = dict[str, Optional[tuple[str, Leaves]]]
Shapes = frozenset[tuple[str, tuple[int, ...]]]
Numbered = Mapping[str, Mapping[str, Sequence[str]]]  # what is before the number -> what is behind it -> N layers


def gather_stacked(layers: dict[str, Leaves], others: Layers, kinds: dict[str, str]) -> None:
    """Put a virtual layer in the place of N numbered layers that the other side has as one.

    Args:
        layers: Those of one side; they are changed.
        others: Those of the other.
        kinds: The kinds of virtual layers; they are added.
    """
    numbered = _numbered(layers, others)
    if not numbered:  # as where both sides call all alike
        return
    by_words = {without_containers(tokens(layer)): layer for layer in others}
    otherwise = _called_otherwise(numbered, layers, others)
    instead: Instead = {}
    for place, by_rest in numbered.items():
        for rest, members in by_rest.items():
            name = joined(place, rest)
            stack = name if name in others else by_words.get(without_containers(tokens(name)))
            if stack is None and place in otherwise:
                name = stack = joined(otherwise[place], rest)
            own = [layers[member] for member in members]
            new = stack is not None and name not in layers and name not in kinds and instead.keys().isdisjoint(members)
            if stack is None or not new or not _some_stack_up(own, others[stack]):
                continue
            leaves = {stacked_leaf(leaf, i): each[leaf] for leaf in own[0] for i, each in enumerate(own)}
            instead.update({**dict.fromkeys(members), members[0]: (name, leaves)})
            kinds[name] = ""
    put_instead(layers, instead)


def put_instead(layers: dict[str, Leaves], instead: Instead) -> None:
    """Put other layers in the places of some.

    Args:
        layers: They are changed.
        instead: Name -> another name and its leaves, or None: nothing is put there.

    >>> layers = {"a.0": {}, "a.1": {}, "b": {}}
    >>> put_instead(layers, {"a.0": ("a", {}), "a.1": None})
    >>> list(layers)
    ['a', 'b']
    """
    if instead:
        shown = [instead.get(layer, (layer, leaves)) for layer, leaves in layers.items()]
        layers.clear()
        layers.update(each for each in shown if each is not None)


def _numbered(layers: Layers, others: Layers) -> Numbered:
    """The layers that are numbered from 0 on and that the other side does not have, in the order of their numbers."""
    members: dict[tuple[str, str], dict[int, str]] = {}
    for layer in layers:
        segments = layer.split(".") if layer not in others else []
        for i, segment in enumerate(segments):
            match = re.fullmatch(r"(?:(\w*?)_)?(\d+)", segment)
            if match:
                place = joined(".".join(segments[:i]), match[1] or "")
                members.setdefault((place, ".".join(segments[i + 1 :])), {})[int(match[2])] = layer
    numbered: dict[str, dict[str, Sequence[str]]] = {}
    for (place, rest), by_number in members.items():
        if sorted(by_number) == list(range(len(by_number))):
            numbered.setdefault(place, {})[rest] = [by_number[i] for i in range(len(by_number))]
    return numbered


def _some_stack_up(own: Sequence[Leaves], stack: Leaves) -> bool:
    """Whether N layers have the same leaves, and one of these or more is in the stack with N in front."""
    return all(leaves.keys() == own[0].keys() for leaves in own) and any(
        leaf in stack and stack[leaf].spec.shape == (len(own), *entry.spec.shape) for leaf, entry in own[0].items()
    )


def _called_otherwise(numbered: Numbered, layers: Layers, others: Layers) -> dict[str, str]:
    """Containers of N layers, and what the other side calls the only container that can be these, stacked."""
    wholes = {
        place: {
            rest: whole for rest, members in by_rest.items() if (whole := _whole([layers[each] for each in members]))
        }
        for place, by_rest in numbered.items()
    }
    wanted = {whole for by_rest in wholes.values() for whole in by_rest.values()}
    containers: dict[tuple[str, Shapes], list[str]] = {}  # what is behind a container -> the containers
    for other, leaves in others.items():
        shapes = _shapes(leaves)
        if shapes in wanted and other not in layers:
            segments = other.split(".")
            for i in range(len(segments) + 1):
                containers.setdefault((".".join(segments[i:]), shapes), []).append(".".join(segments[:i]))
    taken = {_shapes(leaves) for leaves in layers.values()} if containers else set()
    fitting: dict[str, list[str]] = {}
    for place, by_rest in wholes.items():
        if len(by_rest) == len(numbered[place]) and taken.isdisjoint(by_rest.values()):
            candidates = [containers.get(each, []) for each in by_rest.items()]
            fitting[place] = [each for each in candidates[0] if all(each in others for others in candidates[1:])]
    return _one_each({place: candidates for place, candidates in fitting.items() if candidates})


def _one_each(fitting: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The candidate of each place that has one, which is no other's; and those of the rest, where names tell all apart.

    None may be left over then: where one side counts from 1 the names are shifted, and leave one.
    """
    claims = Counter(each for candidates in fitting.values() for each in candidates)
    alone = {place: each[0] for place, each in fitting.items() if len(each) == claims[each[0]] == 1}
    alike = {place: _called_alike(place, each) for place, each in fitting.items() if place not in alone}
    named = {place: each[0] for place, each in alike.items() if len(each) == 1}
    all_told = len(named) == len(alike) and {*alone.values(), *named.values()} == claims.keys()
    return {**alone, **named} if all_told and len({*named.values()}) == len(named) else alone


def _called_alike(place: str, candidates: Sequence[str]) -> list[str]:
    """The candidates whose words and numbers are all in those of a place, in their order, or the other way round."""
    own = without_containers(tokens(place))
    keys = {candidate: without_containers(tokens(candidate)) for candidate in candidates}
    return [candidate for candidate, key in keys.items() if _is_in(key, own) or _is_in(own, key)]


def _is_in(some: Key, all_: Key) -> bool:
    rest = iter(all_)
    return all(token in rest for token in some)


def _whole(own: Sequence[Leaves]) -> Shapes | None:
    """The leaves and shapes of N layers, stacked; None where these differ."""
    first = _shapes(own[0])
    if not first or any(_shapes(leaves) != first for leaves in own[1:]):
        return None
    return frozenset((leaf, (len(own), *shape)) for leaf, shape in first)


def _shapes(leaves: Leaves) -> Shapes:
    return frozenset((leaf, entry.spec.shape) for leaf, entry in leaves.items())
