"""Proving guesses by running both models: candidates are tried, and what is kept is one whose outputs agree.

A guess (a pair by rank, the permutation of a flattening) is what names do not decide. With inputs it is decided by
numbers: each ranking of :mod:`multiparam.transfers.ranking` gives a plan; with and without its permutations it is
carried out, and both models run. The first that agrees stays. If none does, the target has its own values back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.model import Model
from ..core.parameter import write
from .manifest import Manifest
from .moves import Move
from .plan import Plan, plan_manifests
from .ranking import Ranking, by_calls, by_order, by_words
from .rename import Rules

PROVED = "proved by the outputs"  # the evidence for what was a guess


@dataclass(frozen=True)
class Candidate:
    """A plan to try, and in words how it came about."""

    plan: Plan
    how: str


def candidates(
    source: Manifest,
    target: Manifest,
    rules: Rules,
    *,
    cast: bool,
    calls: Callable[[], tuple[list[str], list[str]]],
) -> Iterator[Candidate]:
    """The plans worth trying, the likeliest first, each once.

    Args:
        source: The manifest of the source.
        target: That of the target.
        rules: The user's.
        cast: As in :func:`multiparam.plan`.
        calls: Gives the layers of both sides in order of execution; asked only if order of definition does not do.

    Yields:
        At most six: three rankings, each with and without the permutations of flattenings.
    """
    tried: set[tuple[Any, ...]] = set()
    for name, ranking in _rankings(calls):
        plan = plan_manifests(source, target, rules, cast=cast, ranking=ranking)
        for how, each in (
            (name, plan),
            (f"{name}, nothing flattened in another order", _without_permutations(plan)),
        ):
            key = tuple((move.target, move.sources, move.plain is None) for move in each.moves)
            if key not in tried:
                tried.add(key)
                yield Candidate(each, how)


def _rankings(calls: Callable[[], tuple[list[str], list[str]]]) -> Iterator[tuple[str, Ranking]]:
    yield "by the words in their names", by_words
    yield "by order of definition", by_order
    yield "by order of execution", by_calls(*calls())


def _without_permutations(plan: Plan) -> Plan:
    """A plan without the flattenings that were inferred for it."""
    return plan.with_moves([move.plain or move for move in plan.moves])


def is_inferred(plan: Plan) -> bool:
    """Whether anything in a plan is a guess or an inference that numbers may prove."""
    return bool(plan.guesses) or any(move.plain for move in plan.moves)


def proven(plan: Plan) -> Plan:
    """A plan whose guesses the outputs have borne out."""
    guesses = set(map(id, plan.guesses))
    return plan.with_moves([replace(move, why=PROVED) if id(move) in guesses else move for move in plan.moves])


class Snapshot:
    """The values of what a plan writes, to put back."""

    def __init__(self, target: Model, moves: list[Move]) -> None:
        self._target = target
        self._values: dict[str, np.ndarray] = {move.target: target.parameter(move.target).numpy() for move in moves}

    def restore(self) -> None:
        """Write the values back."""
        for name, value in self._values.items():
            write(self._target.parameter(name), value)
