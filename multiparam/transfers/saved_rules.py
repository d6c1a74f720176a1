"""Rules that a plan comes to: what was matched once, to be looked at, kept in a file, used again, and turned round.

A pair of layers becomes a rule of its names. Where one side has several layers for one of the other, each of them is
named below the other side's, so that both are shown alike again (:mod:`multiparam.transfers.regroup`). What was decided
about flattened inputs is kept in a table of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .. import paths
from .manifest import Entry
from .match import NAME, LayerMatch
from .packing import LEAF, STACKED


def rules_of(matches: Iterable[LayerMatch], left_out: Iterable[str]) -> dict[str, str | None]:
    """The rules that lead from a source's names to a target's.

    Args:
        matches: The pairs of layers.
        left_out: Names of the source that go nowhere.
    """
    return _rules(((match.entries, match.target_entries, match.evidence) for match in matches), left_out)


def inverse_rules_of(matches: Iterable[LayerMatch], left_out: Iterable[str]) -> dict[str, str | None]:
    """The rules that lead back; ``left_out`` are names of the target."""
    return _rules(((match.target_entries, match.entries, match.evidence) for match in matches), left_out)


Side = Mapping[str, Entry]


def _rules(pairs: Iterable[tuple[Side, Side, str]], left_out: Iterable[str]) -> dict[str, str | None]:
    rules: dict[str, str] = {}
    for old_side, new_side, evidence in pairs:
        place, plain = _place(new_side), _is_plain(old_side) and _is_plain(new_side)
        plain_place = new_side if not _is_group(new_side) else {}
        renamed = {
            entry.name: _new_name(shown, entry, old_side, plain_place, place) for shown, entry in old_side.items()
        }
        if not plain or evidence != NAME or any(name != new for name, new in renamed.items()):
            rules.update(renamed)  # else it is one name, of one layer: nothing to say
    return {**dict.fromkeys(left_out), **_by_layer(rules)}  # the first that fits counts


def _new_name(shown: str, entry: Entry, old_side: Side, new_side: Side, place: str) -> str:
    """What a parameter is called on the other side. ``shown``: its leaf as it was matched."""
    layer, leaf = paths.split(entry.name)
    stacked = STACKED.fullmatch(shown)
    if stacked:
        return paths.joined(place, stacked[2], leaf)
    if _is_group(old_side):
        return paths.joined(place, paths.split(layer)[1], leaf)
    if shown in new_side:
        return new_side[shown].name
    return paths.joined(place, shown)


def _by_layer(rules: Mapping[str, str]) -> dict[str, str]:
    """One rule for all parameters of a layer, where it is one for all."""
    layers: dict[str, set[str]] = {}
    for name, new in rules.items():
        (layer, leaf), (new_layer, new_leaf) = paths.split(name), paths.split(new)
        layers.setdefault(layer, set()).add(new_layer if leaf == new_leaf else "")
    short: dict[str, str] = {}
    for name, new in rules.items():
        layer = paths.split(name)[0]
        new_layer = next(iter(layers[layer])) if len(layers[layer]) == 1 and layer and layer not in rules else ""
        short[layer if new_layer else name] = new_layer or new
    return short


def _is_plain(entries: Side) -> bool:
    return len({paths.split(entry.name)[0] for entry in entries.values()}) == 1 and not _is_group(entries)


def _is_group(entries: Side) -> bool:
    """Whether layers of one side are shown as the projections of one."""
    return any(LEAF.fullmatch(shown) and paths.split(entry.name)[1] != shown for shown, entry in entries.items())


def _place(entries: Side) -> str:
    """The layer that entries are of; of those of several layers, what these are in."""
    layers = list(dict.fromkeys(paths.split(entry.name)[0] for entry in entries.values()))
    if any(STACKED.fullmatch(shown) for shown in entries):
        split = [layer.split(".") for layer in layers]
        return ".".join(segment for i, segment in enumerate(split[0]) if all(segment == other[i] for other in split))
    return paths.split(layers[0])[0] if _is_group(entries) or len(layers) > 1 else layers[0]
