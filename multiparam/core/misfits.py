"""What keeps a state from a model, as the lines of an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..paths import did_you_mean
from .parameter import Parameter

LINES = 10  # of each sort of misfit that an error lists


def report(
    known: Mapping[str, Parameter],
    missing: Iterable[str],
    unexpected: Iterable[str],
    misfits: Mapping[str, str],
    conflicts: list[str],
) -> list[str]:
    """All that is wrong, so much of each sort."""
    missing, unexpected = list(missing), list(unexpected)
    wanted = [f"{name!r}, {known[name].shape} {known[name].dtype}" for name in missing[:LINES]]
    near = missing or list(known)
    strange = [f"{name!r}{_hint(name, near)}" for name in unexpected[:LINES]]
    return [
        *listed("missing", wanted, len(missing)),
        *listed("unexpected", strange, len(unexpected)),
        *listed("misfits", list(misfits.values())),
        *listed("conflicts", conflicts),
    ]


def _hint(name: str, known: list[str]) -> str:
    """A near name; no list of others, since there is one line for each name."""
    suggestion = did_you_mean(name, known)
    return f". {suggestion}" if suggestion.startswith("Did") else ""


def listed(title: str, lines: list[str], count: int | None = None) -> list[str]:
    """So many lines under a title that says of how many; nothing where there are none."""
    count = len(lines) if count is None else count
    if not count:
        return []
    more = [f"  ... and {count - LINES} more"] if count > LINES else []
    return [f"{title} ({count}):", *(f"  {line}" for line in lines[:LINES]), *more]
