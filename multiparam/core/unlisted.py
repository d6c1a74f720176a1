"""What a model holds besides parameters and buffers, which no verb reaches: named, and not left out in silence."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from .. import paths
from ..errors import MultiparamWarning
from .protocol import Host


def warn_of_overlaps(pairs: Iterable[tuple[str, str, bool]]) -> None:
    """Say which parameters lie in one memory and are not tied; the warning is of the caller's caller's line."""
    if names := [f"{a!r} and {b!r}" for a, b, _ in pairs]:
        warnings.warn(
            f"{paths.some(names)} share memory and are parameters of their own: a write to one changes the other, and "
            "an optimizer moves both. Tie them, or give each a copy natively.",
            MultiparamWarning,
            stacklevel=3,
        )


def warn_of_unlisted(host: Host) -> None:
    """Say what a model holds that is neither parameter nor buffer; the warning is of the caller's caller's line."""
    by_kind: dict[str, list[str]] = {}
    for name, what in host.unlisted().items():
        by_kind.setdefault(what, []).append(name)
    for what, names in by_kind.items():
        warnings.warn(f"{paths.some(map(repr, names))}: {what}", MultiparamWarning, stacklevel=3)
