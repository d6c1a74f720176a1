"""What a comparison gives: the checks of each pair, where it first parted, and known causes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.plain_text import PlainText
from ..transfers.plan import Plan
from .divergence import Divergence, LayerDistance
from .exercise import in_words
from .judge import Check

SHOWN = 8  # of the places where two models part


@dataclass(frozen=True)
class Histogram:
    """How the values, or gradients, of a parameter are distributed in both models: counts in equal bins."""

    parameter: str
    reference: str
    what: str
    low: float
    high: float
    reference_counts: Sequence[int]
    counts: Sequence[int]


@dataclass
class Pair:
    """One candidate against the reference.

    ``layers`` and ``first`` are by network, which has a name only where the networks built in are compared.

    Attributes:
        name: The candidate's name.
        checks: What was checked, with each verdict.
        layers: network -> the distances of each layer that was followed, in the reference's order of execution.
        first: network -> which of its layers is the first to part.
        dtype: In whose eps the distances of layers are.
        parted: Where the two first part, in words; empty where they do not.
        faults: Every place where they part: each layer, and the code before it, judged on what the reference's took.
        hints: Known causes.
        histograms: Of values and gradients, where they were asked for.
        plan: Which of the reference's parameters is which of the candidate's; None for the networks built in.
        unexercised: The reference's parameters -> the share that the inputs did not exercise: see
            :mod:`multiparam.comparison.exercise`.
    """

    name: str
    checks: list[Check] = field(default_factory=list)
    layers: dict[str, list[LayerDistance]] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    dtype: str = "float64"
    parted: str = ""
    faults: list[Divergence] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    plan: Plan | None = None
    unexercised: Mapping[str, float] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        """Whether every check holds."""
        return all(check.agrees for check in self.checks)

    @property
    def undecided(self) -> bool:
        """Whether nothing disagrees, and yet what was computed says nothing of the models."""
        failed = [check for check in self.checks if not check.agrees]
        return bool(failed) and all(check.undecided for check in failed)


@dataclass(repr=False)
class Comparison(PlainText):
    """What :func:`multiparam.compare` gives: ``print`` it, or ask whether it ``agrees``, and where a pair ``parted``.

    Attributes:
        reference: The reference's name.
        pairs: One for each candidate.
        bounds: What distances were held under, in eps, by kind.
        models: name -> backend, version, title, number of parameters, and the recording it is from.
        environments: Python, platform and packages where models were run.
        options: What they were run on, and how they were trained, as plain data.
    """

    reference: str
    pairs: list[Pair]
    bounds: Mapping[str, float]
    models: Mapping[str, Mapping[str, Any]]
    environments: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checks(self) -> list[Check]:
        """All checks of all pairs."""
        return [check for pair in self.pairs for check in pair.checks]

    @property
    def agrees(self) -> bool:
        """Whether every check holds."""
        return all(pair.agrees for pair in self.pairs)

    @property
    def versions(self) -> dict[str, str]:
        """Backend -> its version, or versions."""
        by_backend: dict[str, list[str]] = {}
        for model in self.models.values():
            by_backend.setdefault(model["backend"], []).append(model["version"])
        return {backend: " and ".join(dict.fromkeys(versions)) for backend, versions in by_backend.items()}

    def __str__(self) -> str:
        return "\n".join(line for pair in self.pairs for line in _lines(pair, self.reference))

    def __repr__(self) -> str:
        return f"<Comparison: {'; '.join(_verdict(pair, self.reference) for pair in self.pairs)}>"


def _held_under(check: Check) -> str:
    """The bound of a distance in words, and the noise floor where it is what the bound is made of."""
    if check.bound is None:
        return ""
    return f" (bound {check.bound:.6g}" + (")" if check.floor is None else f", noise floor {check.floor:.3g})")


def which_is_which(pair: Pair, reference: str) -> str:
    """Whom "there" and "here" mean, where a pair's hints or checks say so; else nothing.

    >>> which_is_which(Pair("new", hints=["1: eps is 1e-05 there, 1e-06 here"]), "old")
    '"there" is old, "here" is new.'
    """
    texts = [*pair.hints, pair.parted, *map(str, pair.faults), *(check.detail for check in pair.checks)]
    told_apart = any(re.search(r"\bhere\b|\bthere\b(?! (is|are))", text) for text in texts)
    return f'"there" is {reference}, "here" is {pair.name}.' if told_apart else ""


def _verdict(pair: Pair, reference: str) -> str:
    verdict = "agrees with" if pair.agrees else "is UNDECIDED against" if pair.undecided else "DISAGREES with"
    return f"{pair.name} {verdict} {reference}"


def _lines(pair: Pair, reference: str) -> Iterator[str]:
    yield _verdict(pair, reference)
    for check in pair.checks:
        eps = "" if check.distance is None else f"{check.distance:.3g} eps of {check.dtype}{_held_under(check)}"
        expected = f"expected: {check.expected}" if check.expected else ""
        notes = " ".join(filter(None, (eps, check.detail, expected)))
        yield f"  {'ok ' if check.agrees else 'NOT'} {check.check}" + (f": {notes}" if notes else "")
    if pair.parted:
        yield f"  They part first {pair.parted}."
    yield from (f"  They part also {fault}." for fault in pair.faults[1:SHOWN])
    if len(pair.faults) > SHOWN:
        yield f"  They part at {len(pair.faults) - SHOWN} more places."
    yield from (f"  Hint: {hint}." for hint in pair.hints)
    if which := which_is_which(pair, reference):
        yield f"  {which}"
    if pair.unexercised:
        yield f"  These inputs did not exercise {in_words(pair.unexercised)}."
