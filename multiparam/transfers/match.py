"""Which layer of a source goes into which layer of a target, and on what evidence.

Manifests in, pairs out. From the strongest evidence down: the user's rules; equal names; names equal but for known
differences (:mod:`multiparam.transfers.names`); the only layer of its kind and shape; then ranked candidates
(:mod:`multiparam.transfers.ranking`), which are guesses until numbers prove them. Values are not looked at, but where a
rule inside a pair of layers holds only for zeros; these are then read through the source's manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .. import paths
from ..core.layers import BOOKKEEPING, KINDS, RECURRENT
from .containers import pairs_of_containers
from .layer_rules import LEAF_NAMES, Convention, LeafMatch, leaf_orientation, match_leaves, one_function
from .manifest import Entry, Manifest
from .names import NamePair, name_pairs
from .ranking import Ranking, by_words, ranked
from .regroup import kind_of
from .rename import RenamedLayers

# The evidence for a pair, as plans say it: a rule of the user's, an equal name, an equal name written differently, the
# only one of its kind and shape, or none of these.
NAME, RULE, GUESS = "name", "rule", "guess: order, kind and shape"
ALIKE, ONLY = "name, {}", "the only one of its kind and shape"
WITHIN = "name, in the only part with these names, kinds and shapes"
NORMS = frozenset({"layernorm", "groupnorm", "instancenorm", "batchnorm"})
# Of one linear layer that holds several projections no name says whether their rows are in blocks.
PACKED = "guess: rows in blocks, in the order of the name"


class LayerMatch(NamedTuple):
    """A source layer and the target layer that it goes into.

    ``source``: its own name, before the rules; ``entries``: its leaves by the names that they have after the rules, and
    ``target_entries`` those of the target; ``renamed``: the source layer's name after the rules;
    ``leaves``: what becomes what; ``evidence``: NAME, RULE or GUESS; ``parts``: whether either is several layers, or a
    part of one, of its own side.
    """

    source: str
    target: str
    entries: Mapping[str, Entry]
    leaves: LeafMatch
    evidence: str
    parts: bool = False
    target_entries: Mapping[str, Entry] = {}
    renamed: str = ""


def match_layers(
    source: Manifest, target: Manifest, renamed: RenamedLayers, *, ranking: Ranking = by_words
) -> dict[str, LayerMatch]:
    """The layers of a target for which there is a source layer, by target name.

    Args:
        source: The manifest of the source.
        target: That of the target.
        renamed: The source's layers by the names that they have after the rules.
        ranking: How layers that names do not lead to each other are paired within one kind and shape.

    Returns:
        target layer -> the match.
    """
    matcher = _LayerMatcher(source, target, renamed)
    evidence: dict[str, tuple[str, str]] = {}  # target layer -> source layer, and why
    unfit: dict[str, str] = {}
    pairs = name_pairs(list(renamed.layers), list(target.layers))
    matcher.learn_conventions(pairs)
    for pair in pairs:
        rule = RULE if pair.source in renamed.by_rule else NAME
        why = ALIKE.format(pair.difference) if pair.difference else rule
        if matcher.suits(pair.source, pair.target) or (why == RULE):
            evidence[pair.target] = pair.source, why
        elif not pair.difference:
            unfit[pair.target] = pair.source
    matcher.add_ranked(evidence, ranking)
    for layer, source_layer in unfit.items():  # what is wrong with a pair of one name is said, if neither has another
        if layer not in evidence and all(source_layer != taken for taken, _ in evidence.values()):
            evidence[layer] = source_layer, NAME
    order = {layer: i for i, layer in enumerate(target.layers)}
    evidence = {layer: (of, PACKED if {layer, of} & renamed.inferred else why) for layer, (of, why) in evidence.items()}
    return {
        layer: matcher.match(source_layer, layer, why)
        for layer, (source_layer, why) in sorted(evidence.items(), key=lambda item: order[item[0]])
    }


class _LayerMatcher:
    """Pairs of layers, by what the two manifests say of them."""

    def __init__(self, source: Manifest, target: Manifest, renamed: RenamedLayers) -> None:
        self._source, self._target, self._layers, self._kinds = source, target, renamed.layers, renamed.kinds
        self._scales = renamed.scales
        self._suits: dict[tuple[object, object], bool] = {}
        self._signatures: dict[tuple[str, str], object] = {}
        self._transposed: dict[tuple[str, str, str, str], set[bool]] = {}  # kinds and leaves -> what shapes tell

    def match(self, source_layer: str, target_layer: str, evidence: str) -> LayerMatch:
        """A pair with what becomes what inside it."""
        entries = self._layers[source_layer]
        own_name = paths.split(next(iter(entries.values())).name)[0]
        leaves = self._leaves(source_layer, target_layer, lambda leaf: self._source.read(entries[leaf].name))
        parts = source_layer in self._kinds or self._gathers(source_layer) or target_layer in self._target.virtual
        return LayerMatch(
            own_name, target_layer, entries, leaves, evidence, parts, self._target.layers[target_layer], source_layer
        )

    def _gathers(self, source_layer: str) -> bool:
        """Whether rules call leaves of other layers parts of this one."""
        kinds = self._source.kinds
        places = [(leaf, paths.split(entry.name)) for leaf, entry in self._layers[source_layer].items()]
        several = len({at for _, (at, _) in places}) > 1
        return several and any(leaf != own and kinds.get((at, own)) in KINDS for leaf, (at, own) in places)

    def _leaves(self, source_layer: str, target_layer: str, read: Callable[[str], np.ndarray]) -> LeafMatch:
        source_shapes = {leaf: entry.spec.shape for leaf, entry in self._layers[source_layer].items()}
        target_shapes = {leaf: entry.spec.shape for leaf, entry in self._target.layers[target_layer].items()}
        kinds = self._kind(source_layer), self._target.kind(target_layer)
        scale = self._scales.get(source_layer)
        return match_leaves(source_shapes, target_shapes, kinds, read, self._convention(*kinds), scale)

    def _convention(self, source_kind: str, target_kind: str) -> Convention:
        def convention(source_leaf: str, target_leaf: str) -> bool | None:
            seen = self._transposed.get((source_kind, target_kind, source_leaf, target_leaf), set())
            return next(iter(seen)) if len(seen) == 1 else None

        return convention

    def learn_conventions(self, pairs: Sequence[NamePair]) -> None:
        """See from the matrices that are not square how classes that multiparam does not know lay out theirs."""
        for pair in pairs:
            kinds = self._kind(pair.source), self._target.kind(pair.target)
            if all(kind in KINDS for kind in kinds):
                continue
            for source_leaf, entry in self._layers[pair.source].items():
                for leaf, other in self._target.layers[pair.target].items():
                    transposed = leaf_orientation(entry.spec.shape, other.spec.shape)
                    meaning = LEAF_NAMES.get(leaf)
                    if transposed is not None and meaning and LEAF_NAMES.get(source_leaf) == meaning:
                        self._transposed.setdefault((*kinds, source_leaf, leaf), set()).add(transposed)

    def add_ranked(self, evidence: dict[str, tuple[str, str]], ranking: Ranking) -> None:
        """Pair what names left: those in containers that are the only ones with what they hold, and those that are
        alone in suiting each other, where that pairs everything; and by rank."""
        taken = {source_layer for source_layer, _ in evidence.values()}
        sources = [layer for layer in self._layers if layer not in taken]
        targets = [layer for layer in self._target.layers if layer not in evidence]
        within = pairs_of_containers(sources, targets, self.suits, self._signature)
        held = set(within.values())
        left = [[layer for layer in side if layer not in had] for side, had in ((sources, held), (targets, within))]
        rest = ranked(left[0], left[1], self.suits, self._signature, ranking)
        whole = len(within) + len(rest) == len(sources) == len(targets)
        # Where anything is left, the two are not one structure, and what is alike in them may be so by chance.
        pairs = {**within, **rest} if whole else ranked(sources, targets, self.suits, self._signature, ranking)
        counts = Counter(self._signature("source", layer) for layer in self._layers)
        counts.update(self._signature("target", layer) for layer in self._target.layers)
        for layer, source_layer in pairs.items():
            why = GUESS
            if whole:
                why = WITHIN if layer in within else ONLY if self._alone(source_layer, layer, counts) else GUESS
            evidence[layer] = source_layer, why

    def _alone(self, source_layer: str, target_layer: str, counts: Mapping[object, int]) -> bool:
        """Whether no other layer, paired or not, suits either of these; where both are of one kind, none of it.

        ``counts``: how many layers have each signature; one of the same signature would suit as well.
        """
        if counts[self._signature("source", source_layer)] > 1 or counts[self._signature("target", target_layer)] > 1:
            return False
        kinds = {self._kind(source_layer), self._target.kind(target_layer)}
        sources = [each for each in self._layers if len(kinds) > 1 or self._kind(each) in kinds]
        targets = [each for each in self._target.layers if len(kinds) > 1 or self._target.kind(each) in kinds]
        rival = any(each != source_layer and self.suits(each, target_layer) for each in sources)
        return not rival and not any(each != target_layer and self.suits(source_layer, each) for each in targets)

    def suits(self, source_layer: str, target_layer: str) -> bool:
        """Whether two layers are of one kind, and every leaf of both has its place, whatever the values are."""
        key = self._signature("source", source_layer), self._signature("target", target_layer)
        if key not in self._suits:
            self._suits[key] = self._look(source_layer, target_layer)
        return self._suits[key]

    def _look(self, source_layer: str, target_layer: str) -> bool:
        source_kind, target_kind = self._kind(source_layer), self._target.kind(target_layer)
        if source_kind and target_kind and not self._may_be_one(source_layer, source_kind, target_kind):
            return False
        return self._leaves(source_layer, target_layer, lambda leaf: np.zeros(0)).perfect

    def _may_be_one(self, source_layer: str, source_kind: str, target_kind: str) -> bool:
        """Whether layers of two kinds may compute the same. A class that multiparam does not know may be an embedding,
        or a norm with several leaves, which have one layout; a matrix of a class that is not known may have either, and
        a scale alone may be an offset from 1."""
        known = [kind for kind in (source_kind, target_kind) if kind in KINDS]
        if len(known) != 1:
            return not known or one_function(source_kind, target_kind)
        leaves = [leaf for leaf in self._layers[source_layer] if leaf not in BOOKKEEPING]
        return known[0] == "embedding" or (known[0] in NORMS and len(leaves) > 1)

    def _signature(self, side: str, layer: str) -> object:
        """What all layers have in common that suit the same others: side, kind, and the shapes of their leaves."""
        known = self._signatures.get((side, layer))
        if known is None:
            leaves = self._layers[layer] if side == "source" else self._target.layers[layer]
            kind = self._kind(layer) if side == "source" else self._target.kind(layer)
            shapes = sorted((leaf, entry.spec.shape) for leaf, entry in leaves.items() if leaf not in BOOKKEEPING)
            known = self._signatures[side, layer] = (side, kind, tuple(shapes))
        return known

    def _kind(self, source_layer: str) -> str:
        """The kind of a source layer; of one that rules gathered, that of which all its leaves are."""
        if source_layer in self._kinds:
            return self._kinds[source_layer]
        entries = self._layers[source_layer]
        if self._gathers(source_layer):
            if entries.keys() <= KINDS["attention"].keys():
                return "attention"
            kinds = {self._source.kinds.get(paths.split(entry.name), "") for entry in entries.values()}
            # Layers that are one below the other, as those of a stacked LSTM, are one of their kind.
            return kinds.pop() if len(kinds) == 1 and KINDS.get(min(kinds)) is RECURRENT else ""
        return kind_of(self._source, entries)
