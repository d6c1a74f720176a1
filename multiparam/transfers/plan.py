"""Weights from one model, or a file, into another model, of any framework: first a plan, then the transfer.

Layers are matched by canonical name, by the user's rules, or, as guesses to confirm, by order, kind and shape. Inside
a pair of layers :mod:`multiparam.transfers.layer_rules` says what becomes what. What weights do not carry is compared
as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import paths
from ..core.arrays import castable
from ..core.group import store_of
from ..core.layers import BOOKKEEPING, KINDS
from ..core.model import Model
from ..core.parameter import peek
from ..core.state import ArraySpec, Source, options_equal, same, spec
from ..errors import InvalidArgument, WrongType
from . import layer_rules
from .rename import Rules, renamer

if TYPE_CHECKING:
    from ..weights.files import FileMetadata


class Entry(NamedTuple):
    """One name of one side. ``key`` is the same for names of one storage, ``view`` for those that show it alike."""

    name: str
    spec: ArraySpec
    key: Any
    buffer: bool = False
    view: Any = None


@dataclass
class Manifest:
    """What a plan needs to know of a model or a file."""

    title: str
    layers: dict[str, dict[str, Entry]]
    kinds: dict[tuple[str, str], str]  # (layer, leaf) -> kind of layer
    read: Callable[[str], np.ndarray]
    options: Mapping[str, Mapping[str, Any]]
    order: str | None = None  # "first" or "last": where data has its channels when it is flattened
    own_layouts: bool = False  # a file of a framework's own, whose arrays are not in canonical form

    def kind(self, layer: str) -> str:
        """The kind of a layer; nothing where a file does not say."""
        return next((self.kinds[layer, leaf] for leaf in self.layers[layer] if (layer, leaf) in self.kinds), "")

    def entries(self) -> dict[str, Entry]:
        """Every entry by its name."""
        return {entry.name: entry for layer in self.layers.values() for entry in layer.values()}

    def ties(self) -> list[list[str]]:
        groups: dict[Any, list[str]] = {}
        for name, entry in self.entries().items():
            groups.setdefault(entry.key, []).append(name)
        return [names for names in groups.values() if len(names) > 1]


@dataclass(frozen=True)
class Move:
    """One target parameter: the source names it is made of, what is done to them, and why they were chosen."""

    target: str
    sources: tuple[str, ...]
    change: str
    why: str
    make: Callable[[], np.ndarray] = field(repr=False, compare=False)
    permutation: Callable[[np.ndarray], np.ndarray] | None = field(default=None, repr=False, compare=False)
    """The permutation of a flattening in it, which is inferred from the layers before; also that of its inputs."""
    gradient: Callable[..., np.ndarray] | None = field(default=None, repr=False, compare=False)
    """The target's gradient from those of the sources; None where there is no such thing."""


@dataclass
class Plan:
    """Which source parameter goes where, through which change, and why. ``print`` it; nothing is written yet.

    ``missing``: target parameters that nothing makes. ``unused``: source parameters that go nowhere. ``refused``:
    pairs that cannot be, with the reason. ``options``: what weights do not carry and differs, so that outputs will.
    """

    source: str
    target: str
    moves: list[Move] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    ties: list[str] = field(default_factory=list)
    layers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def guesses(self) -> list[Move]:
        """The moves that only order, kind and shape speak for."""
        return [move for move in self.moves if move.why == GUESS]

    @property
    def complete(self) -> bool:
        """Whether every target parameter is made and nothing is refused. Guesses still have to be accepted."""
        return not self.missing and not self.refused

    def __str__(self) -> str:
        width = max((len(" + ".join(move.sources)) for move in self.moves), default=0)
        lines = [f"{self.source} -> {self.target}"]
        for move in self.moves:
            notes = "; ".join(note for note in (move.change, move.why if move.why != NAME else "") if note)
            lines.append(f"  {' + '.join(move.sources):{width}} -> {move.target}" + (f"   ({notes})" if notes else ""))
        for title, texts in (
            ("missing, nothing makes them:", self.missing),
            ("unused, they go nowhere:", self.unused),
            ("refused:", self.refused),
            ("ties:", self.ties),
            ("these will make outputs differ:", self.options),
        ):
            if texts:
                lines += [title, *(f"  {text}" for text in texts)]
        return "\n".join(lines)


NAME, RULE, GUESS = "name", "rule", "guess: order, kind and shape"


# -- the two sides


def manifest_of(thing: Any) -> Manifest:
    if isinstance(thing, Manifest):
        return thing
    if isinstance(thing, Model):
        return _model(thing)
    if isinstance(thing, (str, Path)):
        from ..weights.formats import read

        return _state(read(thing), str(thing))
    if isinstance(thing, Mapping):
        return _state(thing, "state")
    raise WrongType(f"A transfer is from a model, a file or a state, not from a {type(thing).__name__}.")


def _model(net: Model) -> Manifest:
    layers: dict[str, dict[str, Entry]] = {}
    kinds: dict[tuple[str, str], str] = {}
    for name, slot in zip(store_of(net).table.names, store_of(net).table.slots, strict=True):
        layer, leaf = paths.text(slot.path[:-1]), paths.text(slot.path[-1:])
        p = net[name]
        layers.setdefault(layer, {})[leaf] = Entry(
            name, ArraySpec(p.shape, p.dtype), id(slot.storage), slot.buffer, id(p)
        )
        kinds[layer, leaf] = slot.kind
    title = f"{net.backend} {type(net.native).__name__}"
    return Manifest(
        title, layers, kinds, lambda name: peek(net.parameter(name)), net.options(), store_of(net).host.data_order
    )


def _state(state: Mapping[str, Any], title: str) -> Manifest:
    from ..weights.files import file_metadata

    return manifest_of_arrays(state, title, file_metadata(state))


def manifest_of_arrays(
    state: Mapping[str, Any], title: str, document: FileMetadata, order: str | None = None
) -> Manifest:
    """The side of arrays by name, of which a document tells the rest."""
    from ..core.arrays import to_numpy

    layers: dict[str, dict[str, Entry]] = {}
    kinds: dict[tuple[str, str], str] = {}
    stored: dict[str, tuple[str, bool]] = {}
    for name in state:
        about = document.parameters.get(name, {})
        found = state.spec(name) if isinstance(state, Source) else spec(state[name])
        for each in (name, *about.get("aliases", ())):
            turned = each in about.get("transposed", ())
            layer, leaf = paths.split(each)
            shown = found._replace(shape=found.shape[::-1]) if turned else found
            layers.setdefault(layer, {})[leaf] = Entry(each, shown, name, bool(about.get("buffer")), (name, turned))
            stored[each] = name, turned
            if "kind" in about and each == name:
                kinds[layer, leaf] = about["kind"]

    def read(name: str) -> np.ndarray:
        at, turned = stored[name]
        array = to_numpy(state[at])
        return array.T if turned else array

    own = isinstance(state, Source) and state.own_layouts
    return Manifest(title, layers, kinds, read, document.layers, order, own)


# -- the plan


def plan(source: Any, target: Model, rules: Rules = None, *, cast: bool = False) -> Plan:
    """Which source parameter goes where, through which change, and why. Writes nothing.

    ``source`` is a Model, a weight file, or a state. Layers match by canonical name, after ``rules``: see
    :func:`renamer`. Where names do not lead to a layer of its kind and shapes, the match is by order, kind and shape
    if there is only one, and is marked as a guess. Raises InvalidArgument for a rule that fits nothing.

        >>> X, spec = np.ones((1, 4)), mp.nn.Sequential(mp.nn.Linear(3), mp.nn.Linear(2))
        >>> a, b = mp.build(spec, X, backend="torch"), mp.build(spec, X, backend="jax")
        >>> p = mp.plan(a, b)
        >>> p.complete, p.moves[0].sources, p.moves[0].target
        (True, ('0.weight',), '0.weight')
    """
    if not isinstance(target, Model):
        raise WrongType(f"A transfer goes into a wrapped model, not into a {type(target).__name__}. Say mp.wrap first.")
    return plan_manifests(manifest_of(source), _model(target), rules, cast=cast)


def plan_manifests(one: Manifest, other: Manifest, rules: Rules = None, *, cast: bool = False) -> Plan:
    """:func:`plan` for two sides, whatever they are of."""
    found = Plan(one.title, other.title)
    groups, by_rule, dropped = renamed(one, rules)
    pairs = {layer: layer for layer in other.layers if layer in groups}
    why = {layer: RULE if layer in by_rule else NAME for layer in pairs}
    fits = {layer: _fit(one, other, groups[layer], layer) for layer in pairs}
    misfit = any(fit.refused or fit.missing for fit in fits.values())
    if rules is None and (misfit or len(pairs) < len(other.layers)):
        structural = _by_structure(one, other, groups, list(groups), list(other.layers))
        elsewhere = (layer for layer in pairs if structural.get(layer) != layer)
        numbers = any(layer.rpartition(".")[2].isdigit() for layer in elsewhere)  # of a sequence, which counts others
        if len(structural) == len(other.layers) and (misfit or numbers):
            pairs, why, fits = structural, {}, {}  # the names are of two schemes that happen to overlap
    rest = [layer for layer in groups if layer not in pairs.values()]
    for layer, guess in _by_structure(
        one, other, groups, rest, [layer for layer in other.layers if layer not in pairs]
    ).items():
        pairs[layer] = guess
    for layer in other.layers:
        if layer not in pairs:
            found.missing += [e.name for leaf, e in other.layers[layer].items() if leaf not in BOOKKEEPING]
            continue
        at = pairs[layer]
        fit = fits.get(layer) or _fit(one, other, groups[at], layer)
        _add(found, one, other, groups[at], layer, fit, why.get(layer, GUESS))
    used = {name for move in found.moves for name in move.sources}
    keys = {entry.key for group in groups.values() for entry in group.values() if entry.name in used}
    entries = [entry for group in groups.values() for leaf, entry in group.items() if leaf not in BOOKKEEPING]
    found.unused = [e.name for e in entries if e.name not in used and e.key not in keys] + dropped
    theirs = other.entries()
    made = {theirs[move.target].key for move in found.moves}
    found.missing = [name for name in found.missing if theirs[name].key not in made]  # a tied one's other name is made
    _once(found, one, other)
    _dtypes(found, one, other, cast)
    _layouts(found, one, other)
    _ties(found, one, other)
    return found


def renamed(one: Manifest, rules: Rules) -> tuple[dict[str, dict[str, Entry]], set[str], list[str]]:
    """The source's entries by the layer and leaf they are called after the rules; which layers a rule named; and what
    was left out."""
    rename = renamer(rules)
    groups: dict[str, dict[str, Entry]] = {}
    by_rule: set[str] = set()
    dropped: list[str] = []
    for layer, leaves in one.layers.items():
        for leaf, entry in leaves.items():
            name = rename(entry.name)
            if name is None:
                dropped.append(entry.name)
                continue
            if not isinstance(name, str):
                raise WrongType(f"The rules give a name or None for {entry.name!r}, not {type(name).__name__}.")
            to, end = (layer, leaf) if name == entry.name else paths.split(name)
            if name != entry.name:
                by_rule.add(to)
            if end in groups.get(to, {}):
                raise InvalidArgument(f"Two source parameters are called {name!r} by the rules, {entry.name!r} is one.")
            groups.setdefault(to, {})[end] = entry
    names = list(one.entries())
    for pattern, given in zip(getattr(rename, "patterns", []), getattr(rename, "given", []), strict=True):
        if not any(pattern.fullmatch(name) for name in names):
            text = given.pattern if isinstance(given, re.Pattern) else given
            raise InvalidArgument(f"The rule {text!r} fits no source name. {paths.did_you_mean(str(text), names)}")
    return groups, by_rule, dropped


def _kind(one: Manifest, group: Mapping[str, Entry]) -> str:
    """The kind of the source layer that most of a group is of."""
    return next((one.kinds[at] for entry in group.values() if (at := paths.split(entry.name)) in one.kinds), "")


def _fit(one: Manifest, other: Manifest, group: Mapping[str, Entry], layer: str) -> layer_rules.Fit:
    source = {leaf: entry.spec.shape for leaf, entry in group.items()}
    target = {leaf: entry.spec.shape for leaf, entry in other.layers[layer].items()}
    return layer_rules.fit(
        source, target, (_kind(one, group), other.kind(layer)), lambda leaf: one.read(group[leaf].name)
    )


def _by_structure(
    one: Manifest, other: Manifest, groups: Mapping[str, Mapping[str, Entry]], sources: list[str], targets: list[str]
) -> dict[str, str]:
    """target layer -> source layer, where order, kind and shape leave one way only."""

    def goes(source: str, target: str) -> bool:
        mine, theirs = _kind(one, groups[source]), other.kind(target)
        if mine and theirs and mine != theirs and (mine in KINDS or theirs in KINDS):
            return False
        fit = _fit(one, other, groups[source], target)
        return not (fit.missing or fit.refused or fit.unused)

    if len(sources) == len(targets) and all(goes(s, t) for s, t in zip(sources, targets, strict=True)):
        return dict(zip(targets, sources, strict=True))
    ways = {target: [source for source in sources if goes(source, target)] for target in targets}
    return {
        target: found[0]
        for target, found in ways.items()
        if len(found) == 1 and sum(found[0] in each for each in ways.values()) == 1
    }


def _add(
    found: Plan, one: Manifest, other: Manifest, group: Mapping[str, Entry], layer: str, fit: layer_rules.Fit, why: str
) -> None:
    """A pair of layers into the plan."""
    theirs = other.layers[layer]
    at = paths.split(next(iter(group.values())).name)[0]
    found.layers.append((at, layer))
    found.refused += [f"{at or 'the source'} -> {layer or 'the target'}: {reason}" for reason in fit.refused]
    found.missing += [theirs[leaf].name for leaf in fit.missing] if not fit.refused else []
    channels = _flattened(one, other, layer) if other.kind(layer) == "linear" else 0
    for move in fit.moves:
        sources = tuple(group[leaf].name for leaf in move.sources)
        make, change, permutation = move.make, move.change, None
        if channels and move.target == "weight":
            make = permutation = _flattener(channels, str(other.order))
            change = f"rows permuted: {channels} channels were flattened {one.order}, here {other.order}"
        gradient = move.gradient if callable(move.gradient) else make if move.gradient else None
        maker = _maker(one, make, sources)
        found.moves.append(Move(theirs[move.target].name, sources, change, why, maker, permutation, gradient))
    mine = one.options.get(at, {})
    for option, value in other.options.get(layer, {}).items():
        if option in mine and not options_equal(mine[option], value):
            when = ", when it trains" if option == "momentum" else ""
            there, here = (tuple(v) if isinstance(v, list) else v for v in (mine[option], value))  # JSON has no tuples
            found.options.append(f"{layer or 'the model'}: {option} is {there} there, {here} here{when}")


def _maker(one: Manifest, make: Callable[..., np.ndarray], sources: tuple[str, ...]) -> Callable[[], np.ndarray]:
    return lambda: make(*(one.read(name) for name in sources))


def _flattener(channels: int, to: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: layer_rules.flatten(array, channels, to)


def _flattened(one: Manifest, other: Manifest, layer: str) -> int:
    """How many channels a linear layer's inputs were flattened from, where the two sides do it in another order: those
    of the last convolution or norm of channels before it, when it has a multiple of them as inputs."""
    if one.order is None or other.order is None or one.order == other.order:
        return 0
    channels = 0
    for name, leaves in other.layers.items():
        kind, weight = other.kind(name), leaves.get("weight")
        if name == layer:
            inputs = weight.spec.shape[1] if weight else 0
            return channels if channels and inputs > channels and inputs % channels == 0 else 0
        if weight is not None and kind in ("conv", "conv_transpose"):
            groups = other.options.get(name, {}).get("groups", 1)
            channels = weight.spec.shape[0] if kind == "conv" else weight.spec.shape[1] * groups
        elif channels and kind in ("batchnorm", "groupnorm", "instancenorm"):
            channels = next(iter(leaves.values())).spec.shape[0]  # the outputs of several convolutions may be joined
        elif kind in KINDS and kind not in ("prelu", "layernorm", "rmsnorm"):
            channels = 0  # it gives features of its own
    return 0


def _once(found: Plan, one: Manifest, other: Manifest) -> None:
    """Each target storage is made once; a tied target may come from several source arrays, if those are equal."""
    mine, theirs = one.entries(), other.entries()
    kept: dict[Any, Move] = {}
    for move in found.moves:
        first = kept.setdefault(theirs[move.target].key, move)
        turned = theirs[first.target].view != theirs[move.target].view
        same_view = [mine[name].view for name in first.sources] == [mine[name].view for name in move.sources]
        if first is not move and (turned or not same_view):
            a, b = first.make(), move.make()
            if not same(a, b.T if turned else b):
                found.refused.append(
                    f"{first.target} and {move.target} are tied in the target, and {' + '.join(first.sources)} and "
                    f"{' + '.join(move.sources)} have different values"
                )
    found.moves = list(kept.values())


def _dtypes(found: Plan, one: Manifest, other: Manifest, cast: bool) -> None:
    mine, theirs = one.entries(), other.entries()
    for move in found.moves:
        for name in move.sources:
            a, b = mine[name].spec.dtype, theirs[move.target].spec.dtype
            if a != b and not (cast and castable(a, b)):
                cure = "" if not castable(a, b) else "; say cast=True to convert it"
                found.refused.append(f"{name} is {a}, {move.target} is {b}{cure}")
                break


def _layouts(found: Plan, one: Manifest, other: Manifest) -> None:
    """Arrays of a file that is in a framework's own layouts: of a square one nobody would see it."""
    mine = one.entries()
    for move in found.moves:
        kind = other.kind(paths.split(move.target)[0])
        for name in move.sources:
            own = one.own_layouts or (not one.kinds and name.endswith("kernel"))
            if own and len(mine[name].spec.shape) > 1 and kind in KINDS and kind != "embedding":
                found.refused.append(
                    f"{name} is in the file as its framework lays it out: load the file into its own model, and "
                    "transfer from that"
                )


def _ties(found: Plan, one: Manifest, other: Manifest) -> None:
    """What is tied on one side only."""
    to: dict[str, str] = {}
    for move in found.moves:
        to.update(dict.fromkeys(move.sources, move.target))
    mine, theirs = one.entries(), other.ties()
    for names in one.ties():
        targets = list(dict.fromkeys(to[name] for name in names if name in to))
        if len(targets) > 1 and not any(set(targets) <= set(group) for group in theirs):
            first, *more = targets
            views = {target: mine[name].view for name, target in to.items()}
            turned = {name: ", transpose=True" if views[name] != views[first] else "" for name in more}
            cure = ", ".join(f"net.tie({name!r}, {first!r}{turned[name]})" for name in more)
            found.ties.append(f"{' and '.join(names)} are tied there, their targets are not: say {cure}")
