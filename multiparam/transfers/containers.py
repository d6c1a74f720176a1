"""Containers of layers that stand for each other, whatever they are called: each the only one with what it holds.

A stage of a network is ``layer2`` here and ``2`` there. What is in such a container is called the same on both sides,
is of the same kinds and shapes, and no other container of either side holds that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from .names import Key, tokens, without_containers

Held = Mapping[Key, str]  # what a container holds: the words and numbers below it -> layer
Alike = frozenset[tuple[Key, object]]


def pairs_of_containers(
    sources: Sequence[str],
    targets: Sequence[str],
    suits: Callable[[str, str], bool],
    group: Callable[[str, str], object],
) -> dict[str, str]:
    """The layers in containers that are each the only one with what it holds.

    Args:
        sources: The source's layers.
        targets: The target's.
        suits: Whether a source layer can go into a target layer.
        group: A key of a side's layer, ``group("source", name)``: layers of one key suit the same others.

    Returns:
        target layer -> source layer.

    >>> pairs_of_containers(["b2.fc", "b2.out"], ["1.fc", "1.out"], lambda *_: True, lambda *_: 0)
    {'1.fc': 'b2.fc', '1.out': 'b2.out'}
    >>> pairs_of_containers(["a.x", "a.y", "b.x", "b.y"], ["c.x", "c.y"], lambda *_: True, lambda *_: 0)
    {}
    """
    source_held, target_held = (
        _by_content(_containers(names), lambda layer, side=side: group(side, layer))  # type: ignore[misc]
        for names, side in ((sources, "source"), (targets, "target"))
    )
    pairs: dict[str, str] = {}
    taken: set[str] = set()
    for there, here in _alone(target_held, source_held, lambda target, source: suits(source, target)):
        if taken.isdisjoint(there.values()) and pairs.keys().isdisjoint(here.values()):
            pairs.update((layer, there[key]) for key, layer in here.items())
            taken.update(there.values())
    return pairs


def _alone(
    target_held: Mapping[Alike, Sequence[Held]],
    source_held: Mapping[Alike, Sequence[Held]],
    suits: Callable[[str, str], bool],
) -> list[tuple[Held, Held]]:
    """The containers of both sides, the largest first, that no other of either side could stand for."""
    by_names: dict[frozenset[Key], list[Sequence[Held]]] = {}
    for others in source_held.values():
        by_names.setdefault(frozenset(others[0]), []).append(others)
    matched: list[tuple[Held, Held]] = []
    wanted: dict[int, int] = {}
    for members in target_held.values():
        here = members[0]
        fitting = [
            other
            for others in by_names.get(frozenset(here), ())
            if all(suits(layer, others[0][key]) for key, layer in here.items())
            for other in others
        ]
        for other in fitting:
            wanted[id(other)] = wanted.get(id(other), 0) + len(members)
        if len(fitting) == len(members) == 1:
            matched.append((fitting[0], here))
    alone = [(there, here) for there, here in matched if wanted[id(there)] == 1]
    return sorted(alone, key=lambda pair: -len(pair[1]))


def _by_content(containers: Iterable[Held], group: Callable[[str], object]) -> dict[Alike, list[Held]]:
    """Containers by what they hold: names, and what all layers have in common that suit the same others."""
    alike: dict[Alike, list[Held]] = {}
    for held in containers:
        alike.setdefault(frozenset((key, group(layer)) for key, layer in held.items()), []).append(held)
    return alike


def _containers(names: Sequence[str]) -> list[Held]:
    """Every container of several layers, but for those in which two layers have the same words."""
    below: dict[tuple[str, ...], dict[Key, str]] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    for name in names:
        segments = tuple(name.split("."))
        keys = [without_containers(tokens(segment)) for segment in segments]
        for depth in range(1, len(segments)):
            held = tuple(token for key in keys[depth:] for token in key)
            below.setdefault(segments[:depth], {})[held] = name
            counts[segments[:depth]] += 1
    return [held for place, held in below.items() if len(held) == counts[place] > 1]
