"""The file of ``multiparam compare agree.toml``: reading it, and accepting the differences that it expects.

The keys are in ``schemas/compare.json``, which editors read too. There each key's ``title`` is what the key takes, in
words, and errors are made of those.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.regular import require_regular
from ..errors import FileError, InvalidArgument
from ..paths import did_you_mean, matches
from ..transfers.rename import renamer
from .judge import Check
from .schemas import jsonschema, schema

if TYPE_CHECKING:
    from jsonschema import ValidationError

BARE = re.compile(r"[A-Za-z0-9_-]+")  # a key that TOML takes without quotes


@dataclass(frozen=True, kw_only=True)
class KnownDifference:
    """A difference that is known and meant: in which models and checks (globs), what it says, and why it is meant."""

    model: str = "*"
    check: str
    contains: str = ""
    reason: str

    def covers(self, model: str, check: Check) -> list[str]:
        """Those of a check's differences that are this one.

        >>> padding = KnownDifference(check="opt*", contains="padding", reason="a layer of its own there")
        >>> padding.covers("jax", Check("", "options", "jax", False, items=("stem: padding is 0 there", "bn: eps")))
        ['stem: padding is 0 there']
        """
        named = matches(model, self.model) and matches(check.check, self.check)
        return [text for text in _differences(check) if named and self.contains in text]


@dataclass(frozen=True)
class Config:
    """What to compare. Its paths are relative to where the process is, no more to the file.

    ``models`` are references or recordings by name, the first being what others are compared with. ``tolerances`` are
    in eps, and only those the file gives. No ``layers`` are all of them.
    """

    models: dict[str, str]
    inputs: Path | None = None
    keywords: bool = False
    objective: str | None = None
    rules: dict[str, Any] | Path | None = None
    sync: str | None = None
    tolerances: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    optimizer: str = "sgd"
    lr: float = 0.01
    layers: tuple[str, ...] = ()
    against: Path | None = None
    expected: tuple[KnownDifference, ...] = ()


def read_config(path: Path) -> Config:
    r"""Read a TOML file that says what to compare.

    Raises FileError with all that is wrong in it, a line each; and OSError where there is no such file.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "agree.toml")
    ...     _ = path.write_text('steps = 3\n[models]\na = "nets.py:make"\nb = "nets.b:make"\n')
    ...     config = read_config(path)
    >>> config.steps, config.models["a"] == f"{path.parent / 'nets.py'}:make", config.models["b"]
    (3, True, 'nets.b:make')
    """
    text = _text(path)
    try:
        document = tomllib.loads(text)
        problems = list(dict.fromkeys(_problems(document)))
    except tomllib.TOMLDecodeError as error:
        raise FileError(f"{str(path)!r} is not TOML: {_with_line(str(error), text)}.") from None
    except (ValueError, RecursionError):  # Python reads or shows no such number, and nothing so deep
        raise FileError(f"{str(path)!r} has a number of too many digits, or tables or lists too deep.") from None
    if problems:
        raise FileError("\n  ".join([f"In {str(path)!r}:", *problems]))
    return _config(document, path.parent)


# -- known differences


def accept_known(checks: Mapping[str, Sequence[Check]], known: Sequence[KnownDifference]) -> dict[str, list[Check]]:
    """Each model's checks, of which those that disagree only as known agree, with the reasons in ``expected``.

    What is expected and does not occur is one more check, which fails: at the first model it was expected of, or else
    at the first of all. So no expectation outlives its difference.

    >>> wrong = Check("", "options", "jax", False, items=("bn: eps is 1e-05 there, 0.001 here",))
    >>> eps = KnownDifference(check="options", contains="eps", reason="as published")
    >>> gone = KnownDifference(check="options", contains="padding", reason="a layer of its own")
    >>> for check in accept_known({"jax": [wrong]}, [eps, gone])["jax"]:
    ...     print(check.check, check.agrees, check.expected or check.detail)
    options True as published
    expected difference False nothing like 'padding' in options: a layer of its own; take it out of the file
    """
    accepted = {model: [_accepted(model, each, known) for each in of_model] for model, of_model in checks.items()}
    for each in known:
        occurs = any(each.covers(model, check) for model, of_model in checks.items() for check in of_model)
        if accepted and not occurs:
            first = next((model for model in checks if matches(model, each.model)), next(iter(checks)))
            detail = f"{_outlived(each, checks)}: {each.reason}; take it out of the file"
            accepted[first].append(Check("", "expected difference", first, False, detail=detail))
    return accepted


def _differences(check: Check) -> tuple[str, ...]:
    if check.agrees:
        return ()
    return check.items or (check.detail,)


def _accepted(model: str, check: Check, known: Sequence[KnownDifference]) -> Check:
    """The check as it is, or agreeing where every one of its differences is known."""
    fitting = {each: covered for each in known if (covered := each.covers(model, check))}
    if not fitting or {text for covered in fitting.values() for text in covered} != set(_differences(check)):
        return check
    reasons = dict.fromkeys(each.reason for each in fitting)
    return replace(check, agrees=True, expected="; ".join(reasons))


def _outlived(known: KnownDifference, checks: Mapping[str, Sequence[Check]]) -> str:
    """Why a known difference does not occur."""
    models = [model for model in checks if matches(model, known.model)]
    if not models:
        return f"no model {known.model!r} is compared"
    if not any(matches(check.check, known.check) for model in models for check in checks[model]):
        return f"no check {known.check!r} is made"
    what = f"like {known.contains!r} in" if known.contains else "differs in"
    return f"nothing {what} {known.check}"


# -- a file that can be read


def _text(path: Path) -> str:
    require_regular(path)
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")  # some editors of Windows begin a file with a mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileError(
            f"{str(path)!r} is not TOML: the byte 0x{data[error.start]:02x} in line {line} is not UTF-8. "
            "Save the file as UTF-8."
        ) from None


def _with_line(message: str, text: str) -> str:
    """The parser's words, with line and column for the end of the file too."""
    line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
    return message.replace("at end of document", f"at the end, line {line}, column {column}")


def _config(document: Mapping[str, Any], folder: Path) -> Config:
    """A document without problems as plain objects, its paths relative to where the file's own is."""
    convert: Mapping[str, Callable[[Any], Any]] = {
        "models": lambda models: {name: _reference(text, folder) for name, text in models.items()},
        "inputs": folder.joinpath,
        "objective": lambda text: _reference(text, folder),
        "rules": lambda rules: folder / rules if isinstance(rules, str) else {old: _new(rules[old]) for old in rules},
        "tolerances": lambda bounds: {name: float(bound) for name, bound in bounds.items()},
        "steps": int,
        "lr": float,
        "layers": tuple,
        "against": folder.joinpath,
        "expected": lambda tables: tuple(KnownDifference(**table) for table in tables),
    }
    return Config(**{key: convert[key](value) if key in convert else value for key, value in document.items()})


def _reference(text: str, folder: Path) -> str:
    where, _, what = text.rpartition(":")
    if where.endswith(".py"):
        return f"{folder / where}:{what}"
    return str(folder / text) if text.endswith(".safetensors") else text


def _new(name: str | bool) -> str | None:
    return name if isinstance(name, str) else None  # TOML has no null: false says "leave it out"


# -- a file that cannot


@cache
def _validator() -> Any:
    package = jsonschema()
    draft = package.Draft202012Validator
    types = draft.TYPE_CHECKER.redefine("number", _is_finite)  # TOML has inf and nan, JSON has not
    return package.validators.extend(draft, type_checker=types)(schema("compare"))


def _is_finite(_: Any, value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def _problems(document: Mapping[str, Any]) -> Iterator[str]:
    for error in _validator().iter_errors(document):
        yield from _messages(error)
    if "against" not in document:  # its own name counts too, and is not known yet
        yield from _wrong_sync(document.get("sync"), document.get("models"))
    yield from _wrong_rules(document.get("rules"))


def _messages(error: ValidationError) -> Iterator[str]:
    """What is wrong, in our words: jsonschema's are for those who know the schema."""
    place = tuple(error.absolute_path)
    value: Any = error.instance
    schema: Any = error.schema
    if error.validator == "additionalProperties":
        for key in value:
            if key not in schema["properties"]:
                known = did_you_mean(key, schema["properties"])
                yield f"{_place(*place, key)} is unknown. {known}{_belongs_above(*place, key, value=value[key])}"
    elif error.validator == "required":
        for key in schema["required"]:
            if key not in value:
                yield f"{_place(*place, key)} is missing; it takes {schema['properties'][key]['title']}."
    else:
        text = f"{_place(*place)} is {_shown(value)}; it takes {schema['title']}."
        yield f"{text}{_belongs_above(*place, value=value)}"


def _belongs_above(*place: str | int, value: Any) -> str:
    """A hint for a key of the file's own that fell into a table because it stands after that one's name."""
    key = place[-1]
    if key not in _validator().schema["properties"]:
        return ""
    if any(error.absolute_path for error in _validator().iter_errors({key: value})):  # it is as wrong up there
        return ""
    return f" The file's own {key} stands above [{place[0]}]."


def _wrong_sync(sync: Any, models: Any) -> Iterator[str]:
    """A name of no model, nor of one of several in a recording, which are called ``model@name``."""
    if not isinstance(sync, str) or not isinstance(models, dict):
        return
    if not any(sync == name or sync.endswith(f"@{name}") for name in models):
        yield f"sync is {_shown(sync)}, which names no model. {did_you_mean(sync, models)}"


def _wrong_rules(rules: Any) -> Iterator[str]:
    """Patterns and new names that have no meaning, each on its own."""
    for old, new in rules.items() if isinstance(rules, dict) else ():
        if not isinstance(new, str) and new is not False:
            continue
        try:
            renamer({old: _new(new)})
        except InvalidArgument as error:
            yield f"{_place('rules', old)}: {error}"


def _place(*path: str | int) -> str:
    """Where a key stands, as TOML writes it; the tables of a list are counted from 0.

    >>> _place("expected", 1, "chek"), _place("rules", "encoder.*")
    ('expected[1].chek', 'rules."encoder.*"')
    """
    quoted = (each if isinstance(each, int) or BARE.fullmatch(each) else json.dumps(each) for each in path)
    return "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in quoted).removeprefix(".")


def _shown(value: Any) -> str:
    """A value as TOML writes it, if it is short.

    >>> _shown(True), _shown("x" * 99), _shown({}), _shown({"a": 1}), _shown([1, 2])
    ('true', "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...", 'an empty table', 'a table of 1', 'a list of 2')
    """
    if isinstance(value, (dict, list)):
        kind = "table" if isinstance(value, dict) else "list"
        return f"a {kind} of {len(value)}" if value else f"an empty {kind}"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value) if isinstance(value, (str, int, float)) else f"the date or time {value}"
    return text if len(text) <= 60 else f"{text[:37]}..."
