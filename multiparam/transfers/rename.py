"""Rules that say what a source's names are in the target: a mapping of patterns, a function, or a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Union

from ..errors import FileError, InvalidArgument, WrongType

Rules = Union[Mapping[Any, Union[str, None]], Callable[[str], Union[str, None]], str, Path, None]


def renamer(rules: Rules) -> Callable[[str], str | None]:
    """A function from source names to target names, None for one that is left out.

    Rules are such a function; a mapping pattern -> new name or None; or a TOML or JSON file with one, under ``rename``
    in TOML. A pattern is a glob over a whole name or a whole layer's name, whose ``*`` stand in the new name again, or
    a compiled regular expression, ``"re:..."`` in a file, with groups. The first that fits counts.

    >>> rename = renamer({"encoder.*": "body.*", re.compile(r"h(\\d)\\.w"): r"layers.\\1.weight", "old.*": None})
    >>> [rename(name) for name in ("encoder.0.weight", "h3.w", "old.bias", "head.bias")]
    ['body.0.weight', 'layers.3.weight', None, 'head.bias']
    """
    if rules is None:
        return lambda name: name
    if isinstance(rules, (str, Path)):
        return renamer(_rules_file(Path(rules)))
    if callable(rules):
        return rules
    if not isinstance(rules, Mapping):
        raise WrongType(f"Rules are a mapping, a function or a file, not a {type(rules).__name__}.")
    compiled = [(_pattern(pattern), _template(pattern, new)) for pattern, new in rules.items()]

    def rename(name: str) -> str | None:
        for pattern, new in compiled:
            found = pattern.fullmatch(name)
            if found:
                return None if new is None else _expanded(found, new) + (found.groupdict().get("_leaf") or "")
        return name

    rename.patterns = [pattern for pattern, _ in compiled]  # type: ignore[attr-defined]
    rename.given = list(rules)  # type: ignore[attr-defined]
    return rename


def _expanded(found: re.Match[str], new: str) -> str:
    try:
        return found.expand(new)
    except (re.error, IndexError) as error:
        raise InvalidArgument(f"The new name {new!r} of the rule {found.re.pattern!r}: {error}") from None


def _rules_file(path: Path) -> Mapping[Any, str | None]:
    import tomllib

    try:
        text = path.read_text("utf-8")
        found = tomllib.loads(text).get("rename") if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{str(path)!r} is not {path.suffix[1:].upper() or 'JSON'}: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(new, str) or not new for new in found.values()):
        raise FileError(
            f"{str(path)!r} holds no rules: a JSON object, or a table [rename] in TOML, of patterns and new names, "
            'with false (or null in JSON) for "leave it out".'
        )
    return {pattern: new if isinstance(new, str) else None for pattern, new in found.items()}


def _pattern(pattern: Any) -> re.Pattern[str]:
    if isinstance(pattern, re.Pattern):
        return pattern
    if not isinstance(pattern, str):
        raise WrongType(f"A rule's pattern is a text or a compiled regular expression, not {type(pattern).__name__}.")
    if pattern.startswith("re:"):
        try:
            return re.compile(pattern[3:])
        except (re.error, OverflowError, RecursionError) as error:
            raise InvalidArgument(f"The rule {pattern!r} is no regular expression: {error}") from None
    text = "".join("(.*)" if part == "*" else re.escape(part) for part in re.split(r"(\*)", pattern))
    return re.compile(text + r"(?P<_leaf>\.[^.]+)?" if not pattern.endswith("*") else text)


def _template(pattern: Any, new: str | None) -> str | None:
    if new is not None and not isinstance(new, str):
        raise WrongType(f"The rule {pattern!r} gives a new name or None, not {type(new).__name__}.")
    if new is None or isinstance(pattern, re.Pattern) or pattern.startswith("re:"):
        return new
    if new.count("*") > pattern.count("*"):
        raise InvalidArgument(f"The rule {pattern!r} -> {new!r} has more * in the new name than in the pattern.")
    parts = new.replace("\\", "\\\\").split("*")
    return parts[0] + "".join(f"\\g<{i}>{part}" for i, part in enumerate(parts[1:], 1))
