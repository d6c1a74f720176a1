"""Rules that say what a source's names are in the target: a mapping of patterns, a function, or a file."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Union

from .. import paths
from ..core.regular import require_regular
from ..errors import FileError, InvalidArgument, WrongType
from ..weights.atomic import atomic_path
from .manifest import Entry, Manifest

Rules = Union[Mapping[Any, Union[str, None]], Callable[[str], Union[str, None]], str, Path, None]


class RuleSet(dict[str, "str | None"]):
    """Rules by exact names of layers or parameters, as a mapping; and what is known of flattened inputs.

    Attributes:
        flattened: Target name of a linear layer's weight -> whether its inputs come in another order.
        notes: Rule -> a comment on it, in a file.
    """

    def __init__(
        self,
        names: Mapping[str, str | None] = {},
        flattened: Mapping[str, bool] = {},
        notes: Mapping[str, str] = {},
    ) -> None:
        super().__init__(names)
        self.flattened, self.notes = dict(flattened), dict(notes)

    def save(self, path: str | Path) -> None:
        """Write the rules as a TOML file, which ``rules=`` and ``--rules`` take.

        Args:
            path: The file; one that is there is replaced.
        """
        lines = ["[rules]"]
        for name, new in self.items():
            note = f"  # {self.notes[name]}" if name in self.notes else ""
            lines.append(f"{_quoted(name)} = {'false' if new is None else _quoted(new)}{note}")
        if self.flattened:
            lines += ["", "# whether the inputs of these were flattened in another order", "[flattened]"]
            lines += [f"{_quoted(name)} = {str(permuted).lower()}" for name, permuted in self.flattened.items()]
        with atomic_path(Path(path)) as temporary:
            temporary.write_text("\n".join(lines) + "\n", "utf-8")


def _quoted(text: str) -> str:
    """A text as TOML has it, which is as JSON, but for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def renamer(rules: Rules) -> Callable[[str], str | None]:
    """A function from source names to target names, None for one that is left out.

    Rules are such a function; a mapping pattern -> new name or None; or a TOML or JSON file with one, under ``rules``
    in TOML. A pattern is a glob over a whole name or a whole layer's name, whose ``*`` stand in the new name again, or
    a compiled regular expression, ``"re:..."`` in a file, with groups. The first that fits counts.

    >>> rename = renamer({"encoder.*": "body.*", re.compile(r"h(\\d)\\.w"): r"layers.\\1.weight", "old.*": None})
    >>> [rename(name) for name in ("encoder.0.weight", "h3.w", "old.bias", "head.bias")]
    ['body.0.weight', 'layers.3.weight', None, 'head.bias']
    """
    if rules is None:
        return lambda name: name
    rules = loaded(rules)
    if callable(rules):
        return rules
    if not isinstance(rules, Mapping):
        raise WrongType(f"Rules are a mapping, a function or a file, not a {type(rules).__name__}.")
    return _Patterns(rules)


def loaded(rules: Rules) -> Rules:
    """Rules, read where they are in a file."""
    return _rules_file(Path(rules)) if isinstance(rules, (str, Path)) else rules


class _Patterns:
    """A mapping of patterns as a function of names. Exact names are looked up: of a large model there may be many."""

    def __init__(self, rules: Mapping[Any, str | None]) -> None:
        self._rules = list(rules)
        self._compiled = [(_pattern(pattern), _template(pattern, new)) for pattern, new in rules.items()]
        self._literals: dict[str, int] = {}
        self._globs: list[int] = []
        for i, rule in enumerate(self._rules):
            if isinstance(rule, str) and "*" not in rule and not rule.startswith("re:"):
                self._literals[rule] = i
            else:
                self._globs.append(i)

    def __call__(self, name: str) -> str | None:
        i = self._first(name)
        if i is None:
            return name
        pattern, new = self._compiled[i]
        match = pattern.fullmatch(name)
        assert match is not None
        return None if new is None else _expanded(match, new) + (match.groupdict().get("_leaf") or "")

    def names(self, name: str) -> bool:
        """Whether a rule has exactly this name, or that of its layer, and not a pattern that fits it."""
        return (i := self._first(name)) is not None and self._rules[i] in (name, paths.split(name)[0])

    def _first(self, name: str) -> int | None:
        """The place of the first rule that fits."""
        exact = [i for text in (name, paths.split(name)[0]) if text and (i := self._literals.get(text)) is not None]
        first = min(exact, default=len(self._rules))
        fitting = (i for i in self._globs if i > first or self._compiled[i][0].fullmatch(name))
        first = min(first, next(fitting, first))
        return first if first < len(self._rules) else None

    def check(self, names: Iterable[str]) -> None:
        """Raise InvalidArgument for a rule that fits none of the names: it is a slip, which would go unnoticed."""
        names = list(names)
        known = {*names, *(paths.split(name)[0] for name in names)}
        for rule, (pattern, _) in zip(self._rules, self._compiled, strict=True):
            if rule not in known and not any(pattern.fullmatch(name) for name in names):
                text = rule.pattern if isinstance(rule, re.Pattern) else rule
                hint = paths.did_you_mean(str(text), names)
                raise InvalidArgument(f"The rule {text!r} fits no source name. {hint}")


def _expanded(match: re.Match[str], new: str) -> str:
    try:
        return match.expand(new)
    except (re.error, IndexError) as error:
        raise InvalidArgument(f"The new name {new!r} of the rule {match.re.pattern!r}: {error}") from None


def _rules_file(path: Path) -> RuleSet:
    require_regular(path)
    try:
        text = path.read_text("utf-8")
        document = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{str(path)!r} is not {path.suffix[1:].upper() or 'JSON'}: {error}") from None
    rules = _table(document) if path.suffix == ".toml" else document
    if not isinstance(rules, dict) or not all(isinstance(new, str) or not new for new in rules.values()):
        raise FileError(
            f"{str(path)!r} holds no rules: a JSON object, or a table [rules] in TOML, of patterns and new names, "
            'with false (or null in JSON) for "leave it out".'
        )
    flattened = document.get("flattened", {}) if rules is not document else {}
    if not isinstance(flattened, dict) or not all(isinstance(each, bool) for each in flattened.values()):
        raise FileError(f"{str(path)!r}: its table [flattened] has names of weights, and true or false for each.")
    return RuleSet({pattern: new if isinstance(new, str) else None for pattern, new in rules.items()}, flattened)


def _table(document: Mapping[str, Any]) -> Any:
    """The rules in a TOML document: its table ``rules``, as in a comparison's; or ``rename``, as it was called; or all
    of it, where there is no table."""
    for name in ("rules", "rename"):
        if isinstance(document.get(name), dict):
            return document[name]
    return document


def _pattern(pattern: Any) -> re.Pattern[str]:
    """The regular expression of a rule."""
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
    # A pattern without a last * may be a layer's name: its leaf, whichever it is, then stays.
    return re.compile(text + r"(?P<_leaf>\.[^.]+)?" if not pattern.endswith("*") else text)


def _template(pattern: Any, new: str | None) -> str | None:
    """The new name of a rule, as ``re.Match.expand`` takes it."""
    if new is not None and not isinstance(new, str):
        raise WrongType(f"The rule {pattern!r} gives a new name or None, not {type(new).__name__}.")
    if new is None or isinstance(pattern, re.Pattern) or pattern.startswith("re:"):
        return new
    if new.count("*") > pattern.count("*"):
        raise InvalidArgument(f"The rule {pattern!r} -> {new!r} has more * in the new name than in the pattern.")
    parts = new.replace("\\", "\\\\").split("*")
    return parts[0] + "".join(f"\\g<{i}>{part}" for i, part in enumerate(parts[1:], 1))


# -- a source under its names after the rules


class RenamedLayers(NamedTuple):
    """A source's entries by the layer and leaf they are called after the rules, the layers that a rule named, and the
    names that were left out. Of layers that are none of the source's own: their kinds, and those in which an order of
    rows is only inferred (:mod:`multiparam.transfers.regroup`); and what a layer's low-rank update is multiplied with,
    where it is known (:mod:`multiparam.transfers.low_rank`)."""

    layers: dict[str, dict[str, Entry]]
    by_rule: set[str]
    dropped: list[str]
    kinds: Mapping[str, str] = {}
    inferred: frozenset[str] = frozenset()
    scales: Mapping[str, float] = {}


def rename_layers(source: Manifest, rules: Rules) -> RenamedLayers:
    """A source after the rules. Raises InvalidArgument for a rule that fits nothing, or two names that become one."""
    rename = renamer(rules)
    renamed = RenamedLayers({}, set(), [])
    for layer, leaves in source.layers.items():
        for leaf, entry in leaves.items():
            name = rename(entry.name)
            if name is None:
                renamed.dropped.append(entry.name)
                continue
            if not isinstance(name, str):
                raise WrongType(f"The rules give a name or None for {entry.name!r}, not {type(name).__name__}.")
            new_layer, new_leaf = (layer, leaf) if name == entry.name else paths.split(name)
            if name != entry.name or (isinstance(rename, _Patterns) and rename.names(entry.name)):
                renamed.by_rule.add(new_layer)
            if new_leaf in renamed.layers.get(new_layer, {}):
                raise InvalidArgument(f"Two source parameters are called {name!r} by the rules, {entry.name!r} is one.")
            renamed.layers.setdefault(new_layer, {})[new_leaf] = entry
    if isinstance(rename, _Patterns):
        rename.check(source.entries())
    return renamed
