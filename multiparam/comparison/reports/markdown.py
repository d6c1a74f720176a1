"""A comparison as a markdown summary, such as a CI job shows."""

from __future__ import annotations

from ..exercise import in_words
from ..judge import Check
from ..results import Comparison, which_is_which


def to_markdown(comparison: Comparison) -> str:
    """Verdict first, then a table for each model; of one that agrees it is folded."""
    named = ", ".join(f"{name} {version}" for name, version in comparison.versions.items())
    verdict = "All agree" if comparison.agrees else "Not all agree"
    lines = [f"**{verdict}** with `{comparison.reference}` ({named})."]
    for pair in comparison.pairs:
        lines += ["", f"### {pair.name}", ""]
        if pair.parted:
            lines += [f"They part first {_escaped(pair.parted)}.", ""]
            lines += [f"* They part also {_escaped(str(fault))}." for fault in pair.faults[1:]]
            lines += [""] * (len(pair.faults) > 1)
        lines += [f"* {_escaped(hint)}" for hint in pair.hints] + [""] * bool(pair.hints)
        if which := which_is_which(pair, comparison.reference):
            lines += [_escaped(which), ""]
        if pair.unexercised:
            lines += [f"These inputs did not exercise {_escaped(in_words(pair.unexercised))}.", ""]
        if pair.agrees:
            lines += [f"<details><summary>{len(pair.checks)} checks agree</summary>", ""]
        lines += ["| check | | distance | bound | |", "| --- | --- | ---: | ---: | --- |"]
        lines += [_row(check) for check in pair.checks]
        if pair.agrees:
            lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def _row(check: Check) -> str:
    name = " ".join(filter(None, (check.network, check.check, check.dtype)))
    eps = "" if check.distance is None else f"{check.distance:.3g} eps"
    bound = "" if check.bound is None else f"{check.bound:g}"
    notes = " ".join(filter(None, (check.detail, f"expected: {check.expected}" if check.expected else "")))
    return f"| {name} | {'✓' if check.agrees else '**✗**'} | {eps} | {bound} | {_escaped(notes)} |"


def _escaped(text: str) -> str:
    """In a cell, a bar, a line's end or a tag would be markup."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
