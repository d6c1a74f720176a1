"""Weights from one model, or a file, into another model, of any framework: first a plan, then the transfer.

:mod:`multiparam.transfers.match` says which layer goes into which, :mod:`multiparam.transfers.layer_rules` what becomes
what inside a pair. Here that becomes moves of parameters, each is looked at for what forbids it, and what weights do
not carry is compared as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import paths
from ..core.arrays import castable, dtype_kind, numpy_dtype, overflows
from ..core.layers import BOOKKEEPING, KINDS
from ..core.model import Model
from ..core.state import options_equal, same
from ..errors import WrongType
from .flattening import flattened_channels, permute_flattened
from .manifest import Manifest, manifest_of
from .match import NAME, LayerMatch, match_layers
from .ranking import Ranking, by_words
from .regroup import regroup
from .rename import RenamedLayers, Rules, rename_layers

WHEN_IT_TRAINS = ", when it trains"  # of an option that evaluation does not look at
# No file and no layer says that its inputs were flattened, nor in which order; it is inferred from the layers before.
FLATTENED = "guess: flattened in another order"


@dataclass(frozen=True)
class Move:
    """One target parameter: the source names it is made of, what is done to them, and why they were chosen.

    Attributes:
        target: The target's name of the parameter or buffer.
        sources: The source's names; several where arrays are packed or summed, none where it is a constant.
        change: What is done to the arrays, in words; empty where they are as they were.
        why: The evidence: ``"name"``, ``"rule"`` or ``"guess: order, kind and shape"``.
        make: Gives the target's array, in canonical form, from the source's present values.
        permutation: The permutation of a flattening in it, which is inferred from the layers before; also that of its
            inputs. None where there is none.
        gradient: The target's gradient from those of the sources; None where there is no such thing.
    """

    target: str
    sources: tuple[str, ...]
    change: str
    why: str
    make: Callable[[], np.ndarray] = field(repr=False, compare=False)
    permutation: Callable[[np.ndarray], np.ndarray] | None = field(default=None, repr=False, compare=False)
    gradient: Callable[..., np.ndarray] | None = field(default=None, repr=False, compare=False)


def without_permutation(move: Move, read: Callable[[str], np.ndarray]) -> Move:
    """A move without the flattening that was inferred for it."""
    if move.permutation is None:
        return move
    change = "rows as they are: nothing is flattened before, or in one order on both sides"
    gradient = None if move.gradient is None else lambda array: array
    return replace(move, make=lambda: read(move.sources[0]), change=change, permutation=None, gradient=gradient)


@dataclass
class Plan:
    """Which source parameter goes where, through which change, and why. ``print`` it; nothing is written yet.

    Attributes:
        source: What the source is.
        target: What the target is.
        moves: How each target parameter and buffer is made, one :class:`Move` for each storage.
        missing: Target parameters that nothing makes.
        unused: Source parameters that go nowhere.
        refused: Pairs that cannot be, with the reason.
        options: What weights do not carry and differs, so that outputs will.
        ties: What is tied in the source only, with the call that ties it in the target.
        layers: The pairs of layers, by their own names on both sides.
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
        """The moves that nothing but order, kind and shape speaks for, or in which a flattening is only inferred."""
        return [move for move in self.moves if move.why.startswith("guess")]

    def with_moves(self, moves: list[Move]) -> Plan:
        """The same plan with other moves for the same parameters."""
        return replace(self, moves=moves)

    @property
    def complete(self) -> bool:
        """Whether every target parameter is made and nothing is refused. Guesses still have to be accepted."""
        return not self.missing and not self.refused

    def problems(self, *, partial: bool = False, accept_guesses: bool = False) -> dict[str, int]:
        """What keeps the plan from being carried out.

        Args:
            partial: Whether target parameters that nothing makes may stay as they are.
            accept_guesses: Whether moves that only order, kind and shape speak for may be done.

        Returns:
            How many there are of each: ``"refused"``, ``"missing"``, ``"guesses"``; empty where nothing keeps it.
        """
        counts = {
            "refused": len(self.refused),
            "missing": 0 if partial else len(self.missing),
            "guesses": 0 if accept_guesses else len(self.guesses),
        }
        return {problem: count for problem, count in counts.items() if count}

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


def plan(source: Any, target: Model, rules: Rules = None, *, cast: bool = False) -> Plan:
    """Which source parameter goes where, through which change, and why. Writes nothing.

    Layers match by canonical name, after ``rules``. Where names do not lead to a layer of its kind and shapes, the
    match is by order, kind and shape if there is only one, and is marked as a guess.

    Args:
        source: A Model, the path of a weight file, an open one (:func:`multiparam.read`), or a mapping name -> array.
        target: The model that the weights are for.
        rules: What the source's names are in the target: a mapping pattern -> new name, or None for what is left out; a
            function of a name; or the path of a TOML file (under ``[rename]``) or JSON file with such a mapping. A
            pattern is a glob over a whole name or a whole layer's name, whose ``*`` stand in the new name again, or a
            compiled regular expression (``"re:..."`` in a file). The first that fits counts.
        cast: Whether to convert to the target's dtypes, where no fraction or imaginary part is lost; else another dtype
            is refused.

    Returns:
        The plan: :func:`multiparam.transfer` carries it out.

    Raises:
        InvalidArgument: For a rule that fits no source name, or that makes two names one.
        WrongType: For a source or a target that is none.
        FileError: For a file, of weights or rules, that is damaged.

    Example:
        >>> X, spec = np.ones((1, 4)), mp.nn.Sequential(mp.nn.Linear(3), mp.nn.Linear(2))
        >>> a, b = mp.build(spec, X, backend="torch"), mp.build(spec, X, backend="jax")
        >>> p = mp.plan(a, b)
        >>> p.complete, p.moves[0].sources, p.moves[0].target
        (True, ('0.weight',), '0.weight')
    """
    if not isinstance(target, Model):
        raise WrongType(f"A transfer goes into a wrapped model, not into a {type(target).__name__}. Say mp.wrap first.")
    return plan_manifests(manifest_of(source), manifest_of(target), rules, cast=cast)


def plan_manifests(
    source: Manifest, target: Manifest, rules: Rules = None, *, cast: bool = False, ranking: Ranking = by_words
) -> Plan:
    """:func:`plan` for two sides, whatever they are of; ``ranking`` pairs what names do not."""
    renamed = rename_layers(source, rules)
    regrouped = regroup(source, renamed, target)
    matches = match_layers(source, regrouped.target, regrouped.source, ranking=ranking)
    plan = Plan(source.title, target.title)
    for layer, leaves in regrouped.target.layers.items():
        if layer in matches:
            _add_layer(plan, source, regrouped.target, matches[layer])
        else:
            plan.missing += [entry.name for leaf, entry in leaves.items() if leaf not in BOOKKEEPING]
    if not target.layers and source.layers:
        plan.refused.append("the target has no parameter that is reached: it may keep plain arrays in attributes")
    _find_unused(plan, renamed)
    entries = target.entries()
    made = {entries[move.target].key for move in plan.moves}
    plan.missing = [name for name in plan.missing if entries[name].key not in made]  # a tied one's other name is made
    _make_storages_once(plan, source, target)
    _refuse_dtypes(plan, source, target, cast)
    _refuse_own_layouts(plan, source, target)
    _suggest_ties(plan, source, target)
    return plan


# -- the moves


def _add_layer(plan: Plan, source: Manifest, target: Manifest, match: LayerMatch) -> None:
    """A pair of layers into the plan."""
    entries, leaves = target.layers[match.target], match.leaves
    if not match.parts:  # else there is no layer on one side whose outputs are those of one on the other
        plan.layers.append((match.source, match.target))
    where = f"{match.source or 'the source'} -> {match.target or 'the target'}"
    plan.refused += [f"{where}: {reason}" for reason in leaves.refused]
    plan.missing += [entries[leaf].name for leaf in leaves.missing] if not leaves.refused else []
    channels = flattened_channels(source, target, match.target) if target.kind(match.target) == "linear" else 0
    for move in leaves.moves:
        sources = tuple(match.entries[leaf].name for leaf in move.sources)
        make, change, permutation = move.make, move.change, None
        if channels and move.target == "weight":
            make = permutation = _permuter(channels, str(target.order))
            change = f"rows permuted: {channels} channels were flattened {source.order}, here {target.order}"
        gradient = move.gradient if callable(move.gradient) else make if move.gradient else None
        maker = _maker(source, make, sources)
        if move.target == "weight" and _is_fixed(source, match.source):
            maker, change, gradient = _ones(entries[move.target].spec.shape), "counts as 1 there", None
        elif move.target == "weight" and _is_fixed(target, match.target) and (maker() != 1).any():
            plan.refused.append(f"{where}: weight is not all 1, and counts as 1 here whatever it holds")
        name, why = entries[move.target].name, match.evidence if permutation is None else FLATTENED
        plan.moves.append(Move(name, sources, change, why, maker, permutation, gradient))
    if not match.parts:
        _compare_options(plan, source, target, match)


def _is_fixed(side: Manifest, layer: str) -> bool:
    """Whether a norm computes as if its weight were 1, whatever it holds, as Gluon's BatchNorm(scale=False) does."""
    return side.options.get(layer, {}).get("scale") is False


def _ones(shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    return lambda: np.ones(shape, np.float32)


def _maker(source: Manifest, make: Callable[..., np.ndarray], names: tuple[str, ...]) -> Callable[[], np.ndarray]:
    return lambda: make(*(source.read(name) for name in names))


def _permuter(channels: int, to: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: permute_flattened(array, channels, to)


def _compare_options(plan: Plan, source: Manifest, target: Manifest, match: LayerMatch) -> None:
    """Options of a pair of layers, such as eps, that differ, of those that both sides tell."""
    options = source.options.get(match.source, {})
    for option, value in target.options.get(match.target, {}).items():
        if option in options and not options_equal(options[option], value):
            when = WHEN_IT_TRAINS if option == "momentum" else ""
            there, here = (tuple(v) if isinstance(v, list) else v for v in (options[option], value))  # JSON: no tuples
            plan.options.append(f"{match.target or 'the model'}: {option} is {there} there, {here} here{when}")


# -- what the moves leave, and what forbids them


def _find_unused(plan: Plan, renamed: RenamedLayers) -> None:
    """The source's names that go nowhere, if no other name of their storage goes anywhere; and those left out."""
    used = {name for move in plan.moves for name in move.sources}
    keys = {entry.key for layer in renamed.layers.values() for entry in layer.values() if entry.name in used}
    entries = [entry for layer in renamed.layers.values() for leaf, entry in layer.items() if leaf not in BOOKKEEPING]
    plan.unused = [entry.name for entry in entries if entry.name not in used and entry.key not in keys]
    plan.unused += renamed.dropped


def _make_storages_once(plan: Plan, source: Manifest, target: Manifest) -> None:
    """Each target storage is made once; a tied target may come from several source arrays, if those are equal."""
    source_entries, target_entries = source.entries(), target.entries()
    moves: dict[Any, Move] = {}  # by the storage they make
    for move in plan.moves:
        first = moves.setdefault(target_entries[move.target].key, move)
        if first is move:
            continue
        transposed = target_entries[first.target].view != target_entries[move.target].view
        views = [[source_entries[name].view for name in each.sources] for each in (first, move)]
        if transposed or views[0] != views[1]:
            a, b = first.make(), move.make()
            if not same(a, b.T if transposed else b):
                plan.refused.append(
                    f"{first.target} and {move.target} are tied in the target, and {' + '.join(first.sources)} and "
                    f"{' + '.join(move.sources)} have different values"
                )
    plan.moves = list(moves.values())


def _refuse_dtypes(plan: Plan, source: Manifest, target: Manifest, cast: bool) -> None:
    """Other dtypes are refused, unless they may be cast; index tables, which are whole numbers in buffers, may be."""
    source_entries, target_entries = source.entries(), target.entries()
    for move in plan.moves:
        for name in move.sources:
            a, b = source_entries[name].spec.dtype, target_entries[move.target].spec.dtype
            whole = a != b and {dtype_kind(a), dtype_kind(b)} <= {"i", "u"}
            table = whole and target_entries[move.target].buffer
            if whole and castable(a, b) and (table or cast) and overflows(source.read(name), numpy_dtype(b)):
                plan.refused.append(f"{name} is {a}, with values beyond the range of {move.target}, which is {b}")
                break
            if a != b and not table and not (cast and castable(a, b)):
                cure = "" if not castable(a, b) else "; say cast=True to convert it"
                plan.refused.append(f"{name} is {a}, {move.target} is {b}{cure}")
                break


def _refuse_own_layouts(plan: Plan, source: Manifest, target: Manifest) -> None:
    """Arrays of a file that is in a framework's own layouts: of a square one nobody would see it."""
    entries = source.entries()
    for move in plan.moves:
        kind = target.kind(paths.split(move.target)[0])
        for name in move.sources:
            # "kernel" is what Flax and Keras call a weight whose inputs come first.
            own = source.own_layouts or (not source.kinds and name.endswith("kernel"))
            if own and len(entries[name].spec.shape) > 1 and kind in KINDS and kind != "embedding":
                plan.refused.append(
                    f"{name} is in the file as its framework lays it out: load the file into its own model, and "
                    "transfer from that"
                )


def _suggest_ties(plan: Plan, source: Manifest, target: Manifest) -> None:
    """What is tied in the source only, with the call that ties it in the target."""
    target_of: dict[str, str] = {}
    for move in plan.moves:
        target_of.update(dict.fromkeys(move.sources, move.target))
    entries, target_ties = source.entries(), target.ties()
    for names in source.ties():
        targets = list(dict.fromkeys(target_of[name] for name in names if name in target_of))
        if len(targets) > 1 and not any(set(targets) <= set(tied) for tied in target_ties):
            first, *others = targets
            views = {to: entries[name].view for name, to in target_of.items()}
            option = {name: ", transpose=True" if views[name] != views[first] else "" for name in others}
            cure = ", ".join(f"net.tie({name!r}, {first!r}{option[name]})" for name in others)
            plan.ties.append(f"{' and '.join(names)} are tied there, their targets are not: say {cure}")
