"""The page's verdict: a headline, and a sentence for each pair."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .text import brief_dtype, enumeration, several, shortened


@dataclass(frozen=True)
class Verdict:
    """What there is to say of one pair: in one sentence, and in another."""

    agrees: bool
    sentence: str
    more: str


def headline(document: Mapping[str, Any]) -> str:
    """The verdict, in one sentence."""
    disagreeing = [pair for pair in document["pairs"] if not pair["agrees"]]
    if document["agrees"]:
        return "They agree"
    if len(disagreeing) == 1:
        return f"They do not agree: {_clause(disagreeing[0], document['reference'])}"
    names = enumeration([shortened(pair["model"]) for pair in disagreeing])
    differ = f": {names} differ from {shortened(document['reference'])}" if disagreeing else ""
    return f"They do not agree{differ}"


def _clause(pair: Mapping[str, Any], reference: str) -> str:
    model, against = shortened(pair["model"]), _against(pair, reference)
    if pair["parted"]:
        where = re.sub(r"\S{49,}", lambda name: shortened(name[0]), _divergence(pair)[0])
        return f"{model} parts from {against} {shortened(where, 160)}"
    wrong = [check for check in pair["checks"] if not check["agrees"]]
    what = dict.fromkeys(check["network"] or check["check"] for check in wrong)
    return f"{model} differs from {against}" + (f" in {enumeration(list(what))}" if what else "")


def _against(pair: Mapping[str, Any], reference: str) -> str:
    return "its own reference run" if pair["model"] == reference else shortened(reference)


def _divergence(pair: Mapping[str, Any]) -> tuple[str, str]:
    """Where, and what is there."""
    where, *rest = re.split(r": (?=its inputs)|, (?=whose )", pair["parted"], maxsplit=1)
    return where, rest[0] if rest else ""


def verdict_of(pair: Mapping[str, Any], reference: str) -> Verdict:
    """Whether a pair agrees, and what there is to say of it."""
    checks = pair["checks"]
    wrong = [check for check in checks if not check["agrees"]]
    expected = sum(bool(check["expected"]) for check in checks)
    if pair["agrees"]:
        but = f"; {several(expected, 'difference')} {'is' if expected == 1 else 'are'} expected" * bool(expected)
        hold = f"{several(len(checks), 'check')} {'holds' if len(checks) == 1 else 'hold'}"
        return Verdict(True, f"{shortened(pair['model'])} agrees with {_against(pair, reference)}", f"{hold}{but}.")
    what = _divergence(pair)[1]
    named = [" ".join(filter(None, (check["network"], check["check"], brief_dtype(check["dtype"])))) for check in wrong]
    failing = f"{len(wrong)} of {several(len(checks), 'check')} fail{'s' * (len(wrong) == 1)}: {enumeration(named, 5)}."
    more = " ".join(filter(None, (what and f"{what[0].upper()}{what[1:]}.", failing * bool(wrong))))
    return Verdict(False, _clause(pair, reference), more)
