"""Tables of outcomes, for the terminal and for the README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ATTEMPTS = {"bare": "without a rule", "guesses": "guesses accepted", "inputs": "with inputs"}
WORDS = ("right", "wrong", "noticed", "refused", "failed")

Results = Mapping[str, Mapping[str, Any]]  # pair -> attempt -> [word, reason, seconds]


def progress(section: str, name: str, result: Mapping[str, Any]) -> str:
    """A line for a pair that is done."""
    words = ", ".join(f"{ATTEMPTS.get(attempt, 'pair')}: {word}" for attempt, (word, _, _) in result.items())
    return f"{section}/{name}  {words}"


def outcome(result: Mapping[str, Any], attempt: str) -> tuple[str, str]:
    """Word and reason of an attempt; a pair that could not be made has failed in each, one without inputs has none."""
    word, reason, _ = result.get("pair") or result.get(attempt) or ("", "", 0)
    return word, reason


def counts(results: Results, attempt: str) -> dict[str, int]:
    """How many pairs came out in each way."""
    words = [outcome(result, attempt)[0] for result in results.values()]
    return {word: words.count(word) for word in WORDS if word in words}


def table(title: str, results: Results) -> str:
    """A section for the terminal: a line for each pair, and reasons where there are some."""
    width = max(map(len, results), default=0) + 2
    lines = [f"\n{title}", f"{'':{width}}" + "".join(f"{text:20}" for text in ATTEMPTS.values())]
    for name, result in results.items():
        found = {attempt: outcome(result, attempt) for attempt in ATTEMPTS}
        lines.append(f"{name:{width}}" + "".join(f"{word or '-':20}" for word, _ in found.values()).rstrip())
        reasons = dict.fromkeys(f"{word}: {reason}" for word, reason in found.values() if reason and word != "right")
        lines += [f"    {reason[:200]}" for reason in reasons]
    return "\n".join(lines)


def cell(count: Mapping[str, int]) -> str:
    """Right of all, and how many are wrong; empty where nothing was tried."""
    total = sum(count.values())
    if not total:
        return "—"
    rest = ", ".join(f"{count[word]} {word}" for word in ("wrong", "noticed") if count.get(word))
    return f"{count.get('right', 0)} of {total}" + (f" ({rest})" if rest else "")


def summary(found: Mapping[str, Any]) -> str:
    """The counts of each section, for the terminal."""
    lines = [""]
    for section in found.values():
        cells = {text: cell(counts(section["pairs"], attempt)) for attempt, text in ATTEMPTS.items()}
        lines.append(f"{section['title']}: " + "; ".join(f"{text} {each}" for text, each in cells.items()))
    return "\n".join(lines)


def markdown(found: Mapping[str, Any]) -> str:
    """The counts of each section as the README's table."""
    lines = [f"| pairs | {' | '.join(ATTEMPTS.values())} |", "|---|" + "---|" * len(ATTEMPTS)]
    for section in found.values():
        cells = " | ".join(cell(counts(section["pairs"], attempt)) for attempt in ATTEMPTS)
        lines.append(f"| {section['title']} | {cells} |")
    return "\n".join(lines) + "\n"
