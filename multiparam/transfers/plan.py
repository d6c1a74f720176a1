"""Weights from one model, or a file, into another model, of any framework: first a plan, then the transfer.

:mod:`multiparam.transfers.match` says which layer goes into which, :mod:`multiparam.transfers.layer_rules` what becomes
what inside a pair. Here that becomes moves of parameters, each is looked at for what forbids it, and what weights do
not carry is compared as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import paths
from ..core.layers import BOOKKEEPING
from ..core.lazy import LazyArray
from ..core.model import Model
from ..core.plain_text import PlainText
from ..core.state import options_equal
from ..errors import InvalidArgument, WrongType
from .flattening import Flattening, flattening_of
from .kernels import in_pytorchs_form
from .low_rank import merge_low_rank
from .manifest import Entry, Manifest, manifest_of, source_manifest
from .match import NAME, RULE, LayerMatch, match_layers
from .moves import Move, make_storages_once, refuse_dtypes, refuse_own_layouts
from .ranking import Ranking, by_words
from .regroup import regroup
from .rename import RenamedLayers, Rules, RuleSet, loaded, rename_layers
from .saved_rules import inverse_rules_of, rules_of

WHEN_IT_TRAINS = ", when it trains"  # of an option that evaluation does not look at
# No file and no layer says that its inputs were flattened, nor in which order; it is inferred from the layers before.
FLATTENED = "guess: flattened in another order"
AS_THEY_ARE = "rows as they are: nothing is flattened before, or in one order on both sides"


@dataclass(repr=False)
class Plan(PlainText):
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
        matches: The pairs of layers as they were matched, with what becomes what in each.
        sides: What is known of the source and of the target.
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
    matches: list[LayerMatch] = field(default_factory=list, repr=False, compare=False)
    sides: tuple[Manifest, Manifest] | None = field(default=None, repr=False, compare=False)

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

    def rules(self) -> RuleSet:
        """What was matched, as rules that lead to the same plan: to be looked at, saved, and used again.

        Returns:
            A mapping of source names to target names, which ``rules=`` takes; ``.save(path)`` writes it as TOML. What
            was a guess in this plan is a rule in the next; the file says which were.

        Example:
            >>> X, layers = np.ones((1, 4)), [mp.nn.Linear(3), mp.nn.Linear(2)]
            >>> a = mp.build(mp.nn.Sequential(*layers), X, backend="torch")
            >>> b = mp.build(mp.nn.Sequential(mp.nn.ReLU(), *layers), X, backend="jax")
            >>> mp.plan(a, b).rules()
            {'0': '1', '1': '2'}
        """
        flattened = {move.target: move.flattened for move in self.moves if move.flattened is not None}
        rules = rules_of(self.matches, self._unpaired(self.unused, 0))
        guessed = {name: move.why for move in self.guesses for name in move.sources}
        notes = {text: why for name, why in guessed.items() for text in (name, paths.split(name)[0]) if text in rules}
        return RuleSet(rules, flattened, notes)

    def inverse(self) -> Plan:
        """The plan of the way back: from what the target holds by then into the source.

        Its ``rules()`` are those for a transfer from the target to the source, or for a file in the source's names.

        Returns:
            The plan. What cannot be undone, such as a sum of two biases, is refused in it.

        Raises:
            InvalidArgument: This plan was not made of two sides.

        Example:
            >>> X, layers = np.ones((1, 4)), [mp.nn.Linear(3), mp.nn.Linear(2)]
            >>> a = mp.build(mp.nn.Sequential(*layers), X, backend="torch")
            >>> b = mp.build(mp.nn.Sequential(mp.nn.ReLU(), *layers), X, backend="jax")
            >>> back = mp.plan(a, b).inverse()
            >>> back.moves[0].sources, back.moves[0].target
            (('1.weight',), '0.weight')
            >>> report = mp.transfer(b, a, back.rules())
        """
        if self.sides is None:
            raise InvalidArgument("This plan has been made by hand: only one that mp.plan makes has an inverse.")
        source, target = self.sides
        flattened = {name: move.flattened for move in self.moves if move.flattened is not None for name in move.sources}
        rules = RuleSet(inverse_rules_of(self.matches, self._unpaired(self.missing, 1)), flattened)
        plan = plan_manifests(target, source, rules)
        lost = [move for move in self.moves if not move.reversible]
        plan.refused += [f"{move.target} cannot be taken apart again: {move.change}" for move in lost]
        return plan

    def _unpaired(self, names: list[str], side: int) -> list[str]:
        """Those of some names of one side that no pair of layers has."""
        paired = {
            entry.name for match in self.matches for entry in (match.entries, match.target_entries)[side].values()
        }
        return [name for name in names if name not in paired]

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

    def __repr__(self) -> str:
        counts = {"missing": len(self.missing), **self.problems(partial=True)}
        problems = ", ".join(f"{count} {problem}" for problem, count in counts.items() if count)
        return f"<Plan: {self.source} -> {self.target}, {len(self.moves)} moves, {problems or 'complete'}>"


def plan(source: Any, target: Model, rules: Rules = None, *, cast: bool = False) -> Plan:
    """Which source parameter goes where, through which change, and why. Writes nothing.

    Layers match by canonical name, after ``rules``. Where names do not lead to a layer of its kind and shapes, the
    match is by order, kind and shape if there is only one, and is marked as a guess.

    Args:
        source: A Model, the path of a weight file, an open one (:func:`multiparam.read`), or a mapping name -> array.
        target: The model that the weights are for.
        rules: What the source's names are in the target: a mapping pattern -> new name, or None for what is left out; a
            function of a name; or the path of a TOML file (under ``[rules]``) or JSON file with such a mapping. A
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
    manifest = source_manifest(source, target, rules)
    if rules is None and manifest.own_layouts:
        manifest = in_pytorchs_form(manifest)
    return plan_manifests(manifest, manifest_of(target), rules, cast=cast)


def plan_manifests(
    source: Manifest, target: Manifest, rules: Rules = None, *, cast: bool = False, ranking: Ranking = by_words
) -> Plan:
    """:func:`plan` for two sides, whatever they are of; ``ranking`` pairs what names do not."""
    rules = loaded(rules)
    renamed = merge_low_rank(source, rename_layers(source, rules), target)
    regrouped = regroup(source, renamed, target)
    matches = match_layers(source, regrouped.target, regrouped.source, ranking=ranking)
    plan = Plan(source.title, target.title, matches=list(matches.values()), sides=(source, target))
    for layer, leaves in regrouped.target.layers.items():
        if layer in matches:
            _add_layer(plan, source, regrouped.target, matches[layer])
        else:
            plan.missing += [entry.name for leaf, entry in leaves.items() if leaf not in BOOKKEEPING]
    if not target.layers and source.layers:
        plan.refused.append("the target has no parameter that is reached: it may keep plain arrays in attributes")
    if isinstance(rules, RuleSet):
        plan.moves = [_as_known(move, rules.flattened) for move in plan.moves]
    _find_unused(plan, source, renamed)
    entries = target.entries()
    made = {entries[move.target].key for move in plan.moves}
    plan.missing = [name for name in plan.missing if entries[name].key not in made]  # a tied one's other name is made
    plan.moves = make_storages_once(plan.moves, source, target, plan.refused)
    refuse_dtypes(plan.moves, source, target, cast, plan.refused)
    refuse_own_layouts(plan.moves, source, target, plan.refused)
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
    flattening = flattening_of(source, target, match.entries, match.target)
    for move in leaves.moves:
        sources = tuple(match.entries[leaf].name for leaf in move.sources)
        gradient = move.gradient if callable(move.gradient) else move.make if move.gradient else None
        maker, change = _maker(source, move.make, sources), move.change
        of: Any = move.make
        if move.target == "weight" and _is_fixed(source, match.source):
            maker, change, gradient, of = _ones(entries[move.target].spec.shape), "counts as 1 there", None, None
        elif move.target == "weight" and _is_fixed(target, match.target) and (maker() != 1).any():
            plan.refused.append(f"{where}: weight is not all 1, and counts as 1 here whatever it holds")
        inputs = _inputs(source, [match.entries[leaf] for leaf in move.sources])
        name = entries[move.target].name
        made = Move(name, sources, change, match.evidence, maker, None, gradient, of=of, inputs=inputs)
        made = made if not callable(move.gradient) else replace(made, reversible=False)
        plan.moves.append(_flattened(made, flattening) if flattening and move.target == "weight" else made)
    if not match.parts:
        _compare_options(plan, source, target, match)


def _is_fixed(side: Manifest, layer: str) -> bool:
    """Whether a norm computes as if its weight were 1, whatever it holds, as Gluon's BatchNorm(scale=False) does."""
    return side.options.get(layer, {}).get("scale") is False


def _ones(shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    return lambda: np.ones(shape, np.float32)


def _maker(source: Manifest, make: Callable[..., np.ndarray], names: tuple[str, ...]) -> Callable[[], np.ndarray]:
    return lambda: make(*(source.read(name) for name in names))


def _inputs(source: Manifest, entries: list[Entry]) -> Callable[[], list[LazyArray]]:
    return lambda: [source.lazy(entry) for entry in entries]


def _as_known(move: Move, flattened: Mapping[str, bool]) -> Move:
    """A move with the order of a flattening that rules decide."""
    if move.flattened is None or move.target not in flattened:
        return move
    chosen = move if flattened[move.target] else move.plain or move
    return replace(chosen, why=RULE, plain=None)


def _flattened(move: Move, flattening: Flattening) -> Move:
    """A move with the order of a flattening that is inferred for it."""
    permute = flattening.permute
    if permute is None:
        return replace(move, why=f"guess: {flattening.words}", flattened=True)
    make, gradient, of = move.make, move.gradient, move.of
    return replace(
        move,
        make=lambda: permute(make()),
        of=None if of is None else lambda *arrays: permute(of(*arrays)),
        change="; ".join(filter(None, (move.change, flattening.words))),
        why=FLATTENED,
        permutation=None if flattening.over_positions else permute,
        gradient=None if gradient is None else lambda *arrays: permute(gradient(*arrays)),
        plain=replace(move, change="; ".join(filter(None, (move.change, AS_THEY_ARE))), flattened=False),
        flattened=True,
    )


def _compare_options(plan: Plan, source: Manifest, target: Manifest, match: LayerMatch) -> None:
    """Options of a pair of layers, such as eps, that differ, of those that both sides tell."""
    options = source.options.get(match.source, {})
    for option, value in target.options.get(match.target, {}).items():
        if option in options and not options_equal(options[option], value):
            when = WHEN_IT_TRAINS if option == "momentum" else ""
            there, here = (tuple(v) if isinstance(v, list) else v for v in (options[option], value))  # JSON: no tuples
            plan.options.append(f"{match.target or 'the model'}: {option} is {there} there, {here} here{when}")


# -- what the moves leave, and what forbids them


def _find_unused(plan: Plan, source: Manifest, renamed: RenamedLayers) -> None:
    """The source's names that go nowhere, if no other name of their storage goes anywhere; and those left out."""
    used = {name for move in plan.moves for name in move.sources}
    keys = {entry.key for layer in renamed.layers.values() for entry in layer.values() if entry.name in used}
    entries = [entry for layer in renamed.layers.values() for leaf, entry in layer.items() if leaf not in BOOKKEEPING]
    plan.unused = [entry.name for entry in entries if entry.name not in used and entry.key not in keys]
    plan.unused += [*renamed.dropped, *source.left_out]


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
