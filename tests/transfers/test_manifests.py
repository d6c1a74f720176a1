"""Matching on manifests alone: names, kinds and shapes recorded from models that others wrote twice.

``tools/corpora/record_manifests.py`` makes the files. Nothing that is called certain may be wrong, in them and in what
users make of such models: other orders of definition, renamed containers, a prefix on one side, more blocks.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multiparam import paths
from multiparam.core.state import ArraySpec
from multiparam.transfers.manifest import Entry, Manifest
from multiparam.transfers.plan import Plan, plan_manifests

FILES = sorted((Path(__file__).parent / "manifests").glob("*.json"))
PREFIXES = ("module.", "_orig_mod.", "model.", "bert.")
# Names that libraries give to the container of a model's blocks
CONTAINERS = {"layer": "layers", "layers": "blocks", "blocks": "h", "h": "layer", "block": "layers"}


@dataclass
class Side:
    """One side of a recorded pair. ``leaves``: layer -> leaf -> (shape, dtype, buffer)."""

    title: str
    order: str | None
    leaves: dict[str, dict[str, Any]]
    kinds: dict[str, str]
    options: dict[str, Any]
    ties: list[list[str]]

    def renamed(self, rename: Callable[[str], str]) -> Side:
        """The same under other names of layers."""
        ties = [[name_of(rename(layer), leaf) for layer, leaf in map(paths.split, tied)] for tied in self.ties]
        leaves, kinds, options = (
            {rename(key): value for key, value in each.items()} for each in (self.leaves, self.kinds, self.options)
        )
        return Side(self.title, self.order, leaves, kinds, options, ties)


@dataclass
class Recorded:
    """A pair: both sides, and target name -> its source names.

    ``certain``: how many of them are matched without a guess; ``varied``: the same in each variation. They only rise:
    ``tools/corpora/certain.py`` writes what matching reaches.
    """

    source: Side
    target: Side
    pairs: dict[str, tuple[str, ...]]
    certain: int = 0
    varied: Mapping[str, int] = field(default_factory=dict)


def name_of(layer: str, leaf: str) -> str:
    return f"{layer}.{leaf}" if layer else leaf


@cache
def recorded(path: Path) -> Recorded:
    found = json.loads(path.read_text())
    sides = [
        Side(each["title"], each["order"], each["layers"], each["kinds"], each["options"], each.get("ties", []))
        for each in (found["source"], found["target"])
    ]
    pairs = {name: (of,) if isinstance(of, str) else tuple(of) for name, of in found["pairs"].items()}
    return Recorded(*sides, pairs, found.get("certain", 0), found.get("varied", {}))


def manifest(side: Side, seed: int) -> Manifest:
    """A manifest whose values are random numbers of the recorded shapes, drawn when they are read."""
    first = {name: tied[0] for tied in side.ties for name in tied}
    layers: dict[str, dict[str, Entry]] = {}
    specs: dict[str, ArraySpec] = {}
    for layer, leaves in side.leaves.items():
        for leaf, (shape, dtype, buffer) in leaves.items():
            name = name_of(layer, leaf)
            specs[name] = spec = ArraySpec(tuple(shape), dtype)
            key = first.get(name, name)
            layers.setdefault(layer, {})[leaf] = Entry(name, spec, key, bool(buffer), key)

    def read(name: str) -> np.ndarray:
        drawn = np.random.default_rng([seed, zlib.crc32(first.get(name, name).encode())])
        return np.asarray(drawn.normal(size=specs[name].shape)).astype(specs[name].dtype)

    kinds = {(layer, leaf): kind for layer, kind in side.kinds.items() for leaf in side.leaves.get(layer, ())}
    return Manifest(side.title, layers, kinds, read, side.options, side.order)


def plan_of(pair: Recorded) -> Plan:
    return plan_manifests(manifest(pair.source, 0), manifest(pair.target, 1))


def wrong(pair: Recorded, plan: Plan) -> list[str]:
    """The moves that are called certain and are not what is right; other names of one storage are the same."""
    first = {name: tied[0] for tied in pair.source.ties for name in tied}
    tied = {name: tied for tied in pair.target.ties for name in tied}

    def storages(names: tuple[str, ...]) -> list[str]:
        return sorted({first.get(name, name) for name in names})

    def right(move_target: str) -> list[list[str]]:
        names = tied.get(move_target, [move_target])
        return [storages(pair.pairs[name]) for name in names if name in pair.pairs]

    guesses = {id(move) for move in plan.guesses}
    return [
        f"{' + '.join(move.sources) or move.change} -> {move.target}, right is {pair.pairs.get(move.target)}"
        for move in plan.moves
        if id(move) not in guesses and right(move.target) and storages(move.sources) not in right(move.target)
    ]


def certain(pair: Recorded, plan: Plan) -> int:
    """How many targets of which the right source is known are matched without a guess."""
    guesses = {move.target for move in plan.guesses}
    return sum(move.target in pair.pairs and move.target not in guesses for move in plan.moves)


# -- what users make of such models


def shuffled(pair: Recorded, seed: int) -> Recorded:
    """The source's layers defined in another order."""
    layers = list(pair.source.leaves)
    random.Random(seed).shuffle(layers)
    source = Side(**{**vars(pair.source), "leaves": {layer: pair.source.leaves[layer] for layer in layers}})
    return Recorded(source, pair.target, pair.pairs)


def with_source(pair: Recorded, rename: Callable[[str], str]) -> Recorded:
    """The source's layers under other names."""

    def new(name: str) -> str:
        layer, leaf = paths.split(name)
        return name_of(rename(layer), leaf)

    pairs = {target: tuple(map(new, names)) for target, names in pair.pairs.items()}
    return Recorded(pair.source.renamed(rename), pair.target, pairs)


def prefixed(pair: Recorded, prefix: str) -> Recorded:
    """A prefix on the source's names, as wrappers leave it."""
    return with_source(pair, lambda layer: prefix + layer if layer else prefix[:-1])


def in_other_containers(pair: Recorded) -> Recorded:
    """The containers of the source's numbered blocks under another library's word for them."""

    def rename(layer: str) -> str:
        segments = paths.segments(layer)
        following = [*segments[1:], ""]
        return ".".join(
            CONTAINERS.get(segment, segment) if after.isdigit() else segment
            for segment, after in zip(segments, following, strict=True)
        )

    return with_source(pair, rename)


def doubled(pair: Recorded) -> Recorded | None:
    """Twice as many blocks on both sides, where one container of the source is one of the target; else None."""
    containers: dict[tuple[str, ...], set[tuple[str, ...]]] = {}  # of the target -> those of the source
    for target, names in pair.pairs.items():
        containers.setdefault(container(target)[0], set()).update(container(name)[0] for name in names)
    one = {
        target: next(iter(sources))
        for target, sources in containers.items()
        if target and len(sources) == 1 and all(sources)
    }
    sizes = {
        target: 1 + max(container(name)[1] for name in pair.pairs if container(name)[0] == target) for target in one
    }
    target_by, source_by = sizes, {one[target]: size for target, size in sizes.items()}
    agree = all(
        container(target)[1] == container(name)[1]
        for target, names in pair.pairs.items()
        if container(target)[0] in one
        for name in names
    )
    if not one or len(source_by) < len(one) or not agree:
        return None
    pairs = dict(pair.pairs)
    for target, names in pair.pairs.items():
        if container(target)[0] in one:
            pairs[moved(target, target_by)] = tuple(moved(name, source_by) for name in names)
    return Recorded(more(pair.source, source_by), more(pair.target, target_by), pairs)


def container(name: str) -> tuple[tuple[str, ...], int]:
    """The path before the first number in a name, and that number; an empty path where there is none."""
    segments = paths.segments(name)
    at = next((i for i, segment in enumerate(segments) if segment.isdigit()), 0)
    return tuple(segments[:at]), int(segments[at]) if at else -1


def moved(name: str, by: Mapping[tuple[str, ...], int]) -> str:
    """A name in the block that many further on; itself outside of the containers."""
    at, number = container(name)
    if at not in by:
        return name
    return ".".join([*at, str(number + by[at]), *paths.segments(name)[len(at) + 1 :]])


def more(side: Side, by: Mapping[tuple[str, ...], int]) -> Side:
    copy = side.renamed(lambda layer: moved(layer, by))
    ties = [tied for tied in copy.ties if tied not in side.ties]
    merged = ({**getattr(side, part), **getattr(copy, part)} for part in ("leaves", "kinds", "options"))
    return Side(side.title, side.order, *merged, [*side.ties, *ties])


VARIATIONS: dict[str, Callable[[Recorded], Recorded | None]] = {
    "shuffled": lambda pair: shuffled(pair, 0),
    "renamed containers": in_other_containers,
    "prefix": lambda pair: prefixed(pair, PREFIXES[len(pair.pairs) % len(PREFIXES)]),
    "doubled blocks": doubled,
    "all at once": lambda pair: prefixed(in_other_containers(shuffled(doubled(pair) or pair, 2)), "module."),
}


# -- tests


def test_there_are_thirty_pairs() -> None:
    assert len(FILES) >= 30


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_certain_is_wrong_and_nothing_certain_is_lost(path: Path) -> None:
    pair = recorded(path)
    plan = plan_of(pair)
    assert wrong(pair, plan) == []
    assert certain(pair, plan) >= pair.certain


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("variation", VARIATIONS)
def test_nothing_certain_is_wrong_in_variations(path: Path, variation: str) -> None:
    pair = VARIATIONS[variation](recorded(path))
    if pair is None:
        pytest.skip("no container of blocks that is one on both sides")
    plan = plan_of(pair)
    assert wrong(pair, plan) == []
    assert certain(pair, plan) >= recorded(path).varied.get(variation, 0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_are_consistent(path: Path) -> None:
    """The right pairing names what is there."""
    pair = recorded(path)
    sides = [
        {name_of(layer, leaf) for layer, leaves in side.leaves.items() for leaf in leaves}
        for side in (pair.source, pair.target)
    ]
    assert set(pair.pairs) <= sides[1]
    assert {name for names in pair.pairs.values() for name in names} <= sides[0]
