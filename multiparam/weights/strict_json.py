"""JSON that means one thing: no key twice, and no number that JSON has not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import FileError


def strict_json(text: bytes, path: Path) -> dict[str, Any]:
    """A JSON object without duplicate keys or numbers that JSON has not. Raises FileError."""
    try:
        content = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{str(path)!r} is damaged: {error}.") from None
    if not isinstance(content, dict):
        raise FileError(f"{str(path)!r} is damaged: no JSON object where one must be.")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        name, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"two entries are called {name!r}")
    return entries


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")
