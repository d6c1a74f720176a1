"""Which layer of a source goes into which layer of a target, and on what evidence.

Manifests in, pairs out. Values are not looked at, but where a rule inside a pair of layers holds only for zeros; these
are then read through the source's manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .. import paths
from ..core.layers import KINDS
from .layer_rules import LeafMatch, match_leaves
from .manifest import Entry, Manifest
from .rename import RenamedLayers

# The evidence for a pair, as plans say it: a rule of the user's, an equal name, or neither.
NAME, RULE, GUESS = "name", "rule", "guess: order, kind and shape"


class LayerMatch(NamedTuple):
    """A source layer and the target layer that it goes into.

    ``source``: its own name, before the rules; ``entries``: its leaves by the names that they have after the rules;
    ``leaves``: what becomes what; ``evidence``: NAME, RULE or GUESS.
    """

    source: str
    target: str
    entries: Mapping[str, Entry]
    leaves: LeafMatch
    evidence: str


def match_layers(source: Manifest, target: Manifest, renamed: RenamedLayers, *, rules: bool) -> dict[str, LayerMatch]:
    """The layers of a target for which there is a source layer, by target name.

    Names decide. What is left is paired by structure; and where there are no ``rules``, all layers are, if by their
    names leaves are missing or refused, or a sequence is only numbered otherwise, and structure leaves one way only.
    """
    matcher = _LayerMatcher(source, target, renamed.layers)
    pairs = {layer: layer for layer in target.layers if layer in renamed.layers}
    evidence = {layer: RULE if layer in renamed.by_rule else NAME for layer in pairs}
    leaves = {layer: matcher.leaves(layer, layer) for layer in pairs}
    misfit = any(match.refused or match.missing for match in leaves.values())
    if not rules and (misfit or len(pairs) < len(target.layers)):
        by_structure = matcher.by_structure(list(renamed.layers), list(target.layers))
        elsewhere = (layer for layer in pairs if by_structure.get(layer) != layer)
        numbers = any(layer.rpartition(".")[2].isdigit() for layer in elsewhere)  # of a sequence, which counts others
        if len(by_structure) == len(target.layers) and (misfit or numbers):
            # The names are of two schemes that happen to overlap.
            pairs, evidence, leaves = by_structure, {}, {}
    paired = set(pairs.values())
    left = [layer for layer in renamed.layers if layer not in paired]
    pairs.update(matcher.by_structure(left, [layer for layer in target.layers if layer not in pairs]))
    matches = {}
    for layer, source_layer in pairs.items():
        entries = renamed.layers[source_layer]
        own_name = paths.split(next(iter(entries.values())).name)[0]
        inside = leaves.get(layer) or matcher.leaves(source_layer, layer)
        matches[layer] = LayerMatch(own_name, layer, entries, inside, evidence.get(layer, GUESS))
    return matches


class _LayerMatcher:
    """Pairs of layers, by what the two manifests say of them. ``layers`` are the source's, after the rules."""

    def __init__(self, source: Manifest, target: Manifest, layers: Mapping[str, Mapping[str, Entry]]) -> None:
        self._source, self._target, self._layers = source, target, layers

    def leaves(self, source_layer: str, target_layer: str) -> LeafMatch:
        """What becomes what inside a pair."""
        entries = self._layers[source_layer]
        source_shapes = {leaf: entry.spec.shape for leaf, entry in entries.items()}
        target_shapes = {leaf: entry.spec.shape for leaf, entry in self._target.layers[target_layer].items()}
        kinds = self._kind(source_layer), self._target.kind(target_layer)
        return match_leaves(source_shapes, target_shapes, kinds, lambda leaf: self._source.read(entries[leaf].name))

    def by_structure(self, sources: Sequence[str], targets: Sequence[str]) -> dict[str, str]:
        """target layer -> source layer, where order, kind and shape leave one way only."""
        in_order = list(zip(sources, targets, strict=False))
        if len(sources) == len(targets) and all(self._suits(s, t) for s, t in in_order):
            return {target: source for source, target in in_order}
        candidates = {target: [source for source in sources if self._suits(source, target)] for target in targets}
        wanted = Counter(source for suiting in candidates.values() for source in suiting)
        return {
            target: suiting[0]
            for target, suiting in candidates.items()
            if len(suiting) == 1 and wanted[suiting[0]] == 1
        }

    def _suits(self, source_layer: str, target_layer: str) -> bool:
        """Whether two layers are of one kind, and every leaf of both has its place."""
        source_kind, target_kind = self._kind(source_layer), self._target.kind(target_layer)
        known = source_kind in KINDS or target_kind in KINDS
        if source_kind and target_kind and source_kind != target_kind and known:
            return False
        return self.leaves(source_layer, target_layer).perfect

    def _kind(self, source_layer: str) -> str:
        """The kind of the first of a layer's leaves that has one: rules may gather leaves of several layers."""
        kinds = self._source.kinds
        entries = self._layers[source_layer].values()
        return next((kinds[place] for entry in entries if (place := paths.split(entry.name)) in kinds), "")
