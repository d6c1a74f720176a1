"""The file of ``multiparam compare agree.toml``: what is read, every error's text, and expected differences."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from multiparam import errors
from multiparam.cli.references import REFERENCE
from multiparam.comparison.config import Config, KnownDifference, accept_known, read_config
from multiparam.comparison.judge import Check
from multiparam.comparison.pairs import BOUNDS
from multiparam.comparison.recording import OBJECTIVES
from multiparam.comparison.schemas import schema as published
from multiparam.core.optimizing import OPTIMIZERS
from multiparam.testing.architectures import examples

GOOD = """
inputs = "batch.npz"
keywords = true
objective = "cross_entropy"
sync = "torch"
steps = 3
optimizer = "adam"
lr = 0.001
layers = ["b*", "head"]
rules = { "encoder.*" = "enc.*", 're:h(\\d)\\..*' = 'layers.\\1', "old.*" = false }
against = "golden/net.safetensors"

[models]
torch = "a.py:make_torch"
jax = "nets.jax:Net.small"
before = "old/run.safetensors"

[tolerances]    # in eps
output = 64
gradient = 4096.5

[[expected]]
model = "jax"
check = "options"
contains = "stem: padding"
reason = "the padding is a layer of its own there"

[[expected]]
check = "* layers on the way"
reason = "it has more of them"
"""
TWO = '[models]\na = "a.py:make"\nb = "b.py:make"\n'
SECOND = '[[expected]]\ncheck = "ties"\nreason = "so"\n[[expected]]\n'
# What jsonschema says, and nobody should read.
RAW = ("is not of type", "is a required property", "does not match", "Additional properties", "is not valid under any",
       "Traceback", "is not one of", "non-empty")  # fmt: skip


def written(folder: Path, text: str | bytes, name: str = "agree.toml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# -- a good file


def test_every_key_is_read(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, GOOD)) == Config(
        models={
            "torch": f"{tmp_path / 'a.py'}:make_torch",
            "jax": "nets.jax:Net.small",
            "before": str(tmp_path / "old" / "run.safetensors"),
        },
        inputs=tmp_path / "batch.npz",
        keywords=True,
        objective="cross_entropy",
        rules={"encoder.*": "enc.*", r"re:h(\d)\..*": r"layers.\1", "old.*": None},
        sync="torch",
        tolerances={"output": 64.0, "gradient": 4096.5},
        steps=3,
        optimizer="adam",
        lr=0.001,
        layers=("b*", "head"),
        against=tmp_path / "golden" / "net.safetensors",
        expected=(
            KnownDifference(
                model="jax",
                check="options",
                contains="stem: padding",
                reason="the padding is a layer of its own there",
            ),
            KnownDifference(model="*", check="* layers on the way", contains="", reason="it has more of them"),
        ),
    )


def test_the_good_file_has_every_key() -> None:
    schema = published("compare")
    assert set(schema["properties"]) == {field.name for field in dataclasses.fields(Config)}
    assert all(key in GOOD for key in schema["properties"])


def test_models_are_enough_and_keep_their_order(tmp_path: Path) -> None:
    asked = read_config(written(tmp_path, '[models]\nz = "z.n:make"\na = "a.n:make"\n"my net" = "m:make"\n'))
    assert asked == Config({"z": "z.n:make", "a": "a.n:make", "my net": "m:make"})
    assert list(asked.models) == ["z", "a", "my net"]


def test_paths_are_relative_to_the_file_and_absolute_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = tmp_path / "elsewhere"
    (tmp_path / "nets").mkdir()
    path = written(
        tmp_path / "nets",
        f"inputs = '{far / 'batch.npz'}'\nrules = '../names.toml'\nobjective = 'losses.py:loss'\n"
        f"[models]\na = '../a.py:make'\nb = '{far / 'b.py'}:make'\nc = 'a.py.b:make'\n",
    )
    monkeypatch.chdir(tmp_path)
    for place, folder in ((path, path.parent), (Path("nets/agree.toml"), Path("nets"))):
        asked = read_config(place)
        assert asked.inputs == far / "batch.npz"
        assert asked.rules == folder / ".." / "names.toml"
        assert asked.objective == f"{folder / 'losses.py'}:loss"
        assert asked.models == {"a": f"{folder / '../a.py'}:make", "b": f"{far / 'b.py'}:make", "c": "a.py.b:make"}
    monkeypatch.chdir(path.parent)
    assert read_config(Path("agree.toml")).models["a"] == f"{Path('../a.py')}:make"


def test_numbers_are_of_the_type_they_are_used_as(tmp_path: Path) -> None:
    asked = read_config(written(tmp_path, f"steps = 3.0\nlr = 1\n{TWO}[tolerances]\noutput = 64\n"))
    assert [type(each) for each in (asked.steps, asked.lr, asked.tolerances["output"])] == [int, float, float]


@pytest.mark.parametrize("objective", ["mse", "cross_entropy", "package.losses:loss"])
def test_an_objective_that_is_no_file_stays(tmp_path: Path, objective: str) -> None:
    assert read_config(written(tmp_path, f'objective = "{objective}"\n{TWO}')).objective == objective


@pytest.mark.parametrize(
    "text",
    [
        'against = "golden.safetensors"\n[models]\na = "a.py:make"\n',
        'against = "golden.safetensors"\nsync = "the golden"\n[models]\na = "a.py:make"\n',  # its name is not known yet
        'sync = "mlp@b"\n' + TWO,
        "layers = []\nexpected = []\n" + TWO,
        "rules = {}\n" + TWO,
        TWO + "[rules]\n'a.*' = 'b.*'\n",
        f"\ufeff{TWO}".replace("\n", "\r\n"),
    ],
    ids=[
        "one against a recording",
        "sync with the recording",
        "sync with one of a recording's",
        "empty lists",
        "no rules",
        "rules below",
        "from Windows",
    ],
)
def test_these_are_read_too(tmp_path: Path, text: str) -> None:
    assert "a" in read_config(written(tmp_path, text)).models


# -- bad files: (the file, all that is said of it, a line each)

MODEL = "it takes file.py:callable, package.module:callable, or a path of a recording, which ends in .safetensors."
TWO_MODELS = "it takes a table of two models or more, or of one with `against`."
EPS = "it takes a finite number of eps, 0 or more."
GLOB = 'it takes a glob of layers\' names, such as "b*".'
GLOBS = 'it takes a list of globs, such as ["b*", "head"].'
TABLES = "it takes tables, each under a line [[expected]]."
ITEM = "it takes a table under a line [[expected]]."
LARGE = "re:a{99999999999}"
RULES = "it takes a table of patterns and new names, or a path of a TOML or JSON file with one."
NEW = "it takes a new name, or false to leave the parameter out; a pattern with dots or * is written in quotes."
OPEN = "rules.\"re:(\": The rule 're:(' is no regular expression: missing ), unterminated subpattern at position 0"
OBJECTIVE = "it takes mse, cross_entropy, or a function as file.py:function or package.module:function."

BROKEN: dict[str, tuple[str, list[str]]] = {
    "empty": ("", [f"models is missing; {TWO_MODELS}"]),
    "unknown key": ("synch = 'a'\n" + TWO, ["synch is unknown. Did you mean 'sync'?"]),
    "far key": ("x = 1\n" + TWO, ["x is unknown. There are: 'models', 'inputs', 'keywords', 'objective', 'rules', "
                                  "'sync', ...."]),
    "unknown table": (TWO + "[tolerance]\noutput = 1\n", ["tolerance is unknown. Did you mean 'tolerances'?"]),
    "unknown in a list": (
        TWO + SECOND + "chek = 'options'\nreason = 'so'\n",
        [
            "expected[1].check is missing; it takes the name of a check, or a glob of some, such as \"options\" or "
            '"* layers on the way".',
            "expected[1].chek is unknown. Did you mean 'check'?",
        ],
    ),
    "unknown bound": (TWO + "[tolerances]\ngradients = 3\n",
                      ["tolerances.gradients is unknown. Did you mean 'gradient'?"]),
    "a key below the tables": (
        TWO + "steps = 3\nsync = 'a'\n[tolerances]\nlr = 0.1\n",
        [
            f"models.steps is 3; {MODEL} The file's own steps stands above [models].",
            f"models.sync is 'a'; {MODEL} The file's own sync stands above [models].",
            "tolerances.lr is unknown. There are: 'output', 'layer', 'gradient', 'training', 'numeric'. "
            "The file's own lr stands above [tolerances].",
        ],
    ),
    "a wrong key below a table": (
        TWO + "steps = -3\n" + SECOND + "check = 'ties'\nreason = 'so'\nmodels = 'a'\n",
        [f"models.steps is -3; {MODEL}", "expected[1].models is unknown. Did you mean 'model'?"],
    ),
    "one model": ("[models]\na = 'a.py:make'\n", [f"models is a table of 1; {TWO_MODELS}"]),
    "no model": ("[models]\n", [f"models is an empty table; {TWO_MODELS}"]),
    "no model against": ("against = 'g'\n[models]\n", [f"models is an empty table; {TWO_MODELS}"]),
    "models in a list": ("models = ['a.py:make', 'b.py:make']\n", [f"models is a list of 2; {TWO_MODELS}"]),
    "a model's file alone": (TWO + "c = 'c.py'\n", [f"models.c is 'c.py'; {MODEL}"]),
    "a model's table": (TWO + "[models.'my.net']\nfile = 'c.py'\n", [f'models."my.net" is a table of 1; {MODEL}']),
    "no input": ("inputs = ''\n" + TWO, ["inputs is ''; it takes a path."]),
    "inputs in a list": ("inputs = ['a', 'b']\n" + TWO, ["inputs is a list of 2; it takes a path."]),
    "a path with a zero": ('inputs = "a\\u0000"\n' + TWO, ["inputs is 'a\\x00'; it takes a path."]),
    "against": ("against = true\n" + TWO, ["against is true; it takes a path."]),
    "objective": ("objective = 'mes'\n" + TWO, [f"objective is 'mes'; {OBJECTIVE}"]),
    "objective's file alone": ("objective = 'loss.py'\n" + TWO, [f"objective is 'loss.py'; {OBJECTIVE}"]),
    "sync": ("sync = 'aa'\n" + TWO, ["sync is 'aa', which names no model. Did you mean 'a'?"]),
    "sync's type": ("sync = true\n" + TWO, ["sync is true; it takes the name of a model."]),
    "steps below zero": ("steps = -1\n" + TWO, ["steps is -1; it takes a whole number, 0 or more."]),
    "steps in parts": ("steps = 1.5\n" + TWO, ["steps is 1.5; it takes a whole number, 0 or more."]),
    "steps as a text": ("steps = '3'\n" + TWO, ["steps is '3'; it takes a whole number, 0 or more."]),
    "steps as a bool": ("steps = true\n" + TWO, ["steps is true; it takes a whole number, 0 or more."]),
    "no step": ("steps = inf\n" + TWO, ["steps is inf; it takes a whole number, 0 or more."]),
    "optimizer": ("optimizer = 'adm'\n" + TWO, ["optimizer is 'adm'; it takes sgd, momentum, adam or adamw."]),
    "optimizer's type": (
        "optimizer = []\n" + TWO,
        ["optimizer is an empty list; it takes sgd, momentum, adam or adamw."],
    ),
    "lr of zero": ("lr = 0\n" + TWO, ["lr is 0; it takes a finite number above 0."]),
    "no lr": ("lr = nan\n" + TWO, ["lr is nan; it takes a finite number above 0."]),
    "lr without end": ("lr = inf\n" + TWO, ["lr is inf; it takes a finite number above 0."]),
    "lr too long": (f"lr = 1{'0' * 400}\n" + TWO, [f"lr is 1{'0' * 36}...; it takes a finite number above 0."]),
    "a bound as a text": (TWO + "[tolerances]\noutput = '64 eps'\n", [f"tolerances.output is '64 eps'; {EPS}"]),
    "bounds": (TWO + "[tolerances]\nlayer = -1\ntraining = nan\n",
               [f"tolerances.layer is -1; {EPS}", f"tolerances.training is nan; {EPS}"]),
    "one bound": ("tolerances = 64\n" + TWO, ["tolerances is 64; it takes a table of bounds in eps."]),
    "one layer": ("layers = 'b*'\n" + TWO, [f"layers is 'b*'; {GLOBS}"]),
    "layers": ("layers = ['b*', 3, '']\n" + TWO, [f"layers[1] is 3; {GLOB}", f"layers[2] is ''; {GLOB}"]),
    "rules": ("rules = ['a', 'b']\n" + TWO, [f"rules is a list of 2; {RULES}"]),
    "a rule without quotes": ("rules = { encoder.body = 'enc' }\n" + TWO, [f"rules.encoder is a table of 1; {NEW}"]),
    "a rule's new name": ("rules = { 'old.*' = true }\n" + TWO, [f'rules."old.*" is true; {NEW}']),
    "rules without meaning": (
        "rules = { 're:(' = 'a', 'a.*' = '*.*', 're:a{99999999999}' = 'b' }\n" + TWO,
        [
            OPEN,
            "rules.\"a.*\": The rule 'a.*' -> '*.*' has more * in the new name than in the pattern.",
            f'rules."{LARGE}": The rule {LARGE!r} is no regular expression: the repetition number is too large',
        ],
    ),
    "expected as one table": (TWO + "[expected]\ncheck = 'ties'\n", [f"expected is a table of 1; {TABLES}"]),
    "expected as a text": ("expected = ['options']\n" + TWO, [f"expected[0] is 'options'; {ITEM}"]),
    "no reason": (TWO + "[[expected]]\ncheck = 'ties'\n",
                  ["expected[0].reason is missing; it takes a text that says why."]),
    "an empty reason": (TWO + "[[expected]]\ncheck = 'ties'\nreason = ' '\n",
                        ["expected[0].reason is ' '; it takes a text that says why."]),
    "expected of a date": (
        TWO + SECOND + "check = ''\nmodel = 3\ncontains = 2026-01-01\nreason = 07:32:00\n",
        [
            "expected[1].model is 3; it takes the name of a model, or a glob of some.",
            "expected[1].check is ''; it takes the name of a check, or a glob of some, such as \"options\" or "
            '"* layers on the way".',
            "expected[1].contains is the date or time 2026-01-01; it takes a text.",
            "expected[1].reason is the date or time 07:32:00; it takes a text that says why.",
        ],
    ),
    "all of it": (
        "inputs = 3\nsync = 'jxa'\nrules = { 're:(' = 'a' }\nstep = 1\n[models]\njax = 'a.py:make'\n",
        [
            f"models is a table of 1; {TWO_MODELS}",
            "inputs is 3; it takes a path.",
            "step is unknown. Did you mean 'steps'?",
            "sync is 'jxa', which names no model. Did you mean 'jax'?",
            OPEN,
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_all_that_is_wrong_is_said_a_line_each(name: str, tmp_path: Path) -> None:
    text, said = BROKEN[name]
    path = written(tmp_path, text)
    with pytest.raises(errors.FileError) as caught:
        read_config(path)
    first, *lines = str(caught.value).split("\n  ")
    assert first == f"In {str(path)!r}:"
    assert sorted(lines) == sorted(said)
    assert not any(raw in str(caught.value) for raw in RAW)


SYNTAX: dict[str, tuple[str | bytes, str]] = {
    "a value without quotes": ("steps = 3\nsync = torch\n", "is not TOML: Invalid value (at line 2, column 8)."),
    "a key twice": ("a = 1\na = 2\n", "is not TOML: Cannot overwrite a value (at line 2, column 6)."),
    "an open list": ("layers = ['a',\n", "is not TOML: Invalid value (at the end, line 2, column 1)."),
    "an open table": ("\n[models", "is not TOML: Expected ']' at the end of a table declaration "
                      "(at the end, line 2, column 8)."),
    "no TOML": ("PK\x03\x04", "is not TOML: "),
    "Latin-1": ("steps = 3\nsync = 'é'".encode("latin-1"), "is not TOML: the byte 0xe9 in line 2 is not UTF-8. "
                "Save the file as UTF-8."),
    "UTF-16": ("steps = 3".encode("utf-16"), "the byte 0xff in line 1 is not UTF-8."),
    "digits": (f"steps = {'9' * 5000}", "has a number of too many digits, or tables or lists too deep."),
    "hexadecimal digits": (f"sync = 0x{'f' * 5000}", "has a number of too many digits, or tables or lists too deep."),
    "deep": (f"layers = {'[' * 5000}{']' * 5000}", "has a number of too many digits, or tables or lists too deep."),
}  # fmt: skip


@pytest.mark.parametrize("name", SYNTAX)
def test_what_is_no_toml_is_said_with_its_line_and_column(name: str, tmp_path: Path) -> None:
    text, said = SYNTAX[name]
    path = written(tmp_path, text)
    with pytest.raises(errors.FileError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{str(path)!r} ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_that_only_the_parser_can_follow_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.FileError, match=r"tables or lists too deep|rules\.a is a table of 1"):
        # How deep Python's repr follows depends on its version.
        read_config(written(tmp_path, f"rules{'.a' * 2000} = 1"))


def test_no_file_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_config(tmp_path / "none.toml")


# -- the schema


def subschemas(schema: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The schema of each key and of each item, by where it stands."""
    for word in ("properties", "$defs"):
        for key, each in schema.get(word, {}).items():
            yield f"{place}.{key}", each
            yield from subschemas(each, f"{place}.{key}")
    for word in ("items", "additionalProperties", "then"):
        if isinstance(schema.get(word), dict):
            if word != "then":
                yield f"{place}.{word}", schema[word]
            yield from subschemas(schema[word], f"{place}.{word}")


PUBLISHED = published("compare")


def test_the_schema_is_one() -> None:
    assert PUBLISHED["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]
    jsonschema.Draft202012Validator.check_schema(PUBLISHED)


@pytest.mark.parametrize(
    "place, schema", list(subschemas(PUBLISHED)), ids=lambda each: each if isinstance(each, str) else ""
)
def test_every_key_has_a_description_and_says_what_it_takes(place: str, schema: dict[str, Any]) -> None:
    if "$ref" in schema:
        schema = {**PUBLISHED["$defs"][schema["$ref"].rpartition("/")[2]], **schema}
    assert schema["title"] and not schema["title"].endswith(".")
    assert schema["description"].endswith(".")
    for each in schema.get("examples", []):
        jsonschema.Draft202012Validator({**schema, "$defs": PUBLISHED["$defs"]}).validate(each)


def test_the_schema_says_what_the_code_says() -> None:
    keys = PUBLISHED["properties"]
    known = KnownDifference(check="", reason="")
    for schema, made in ((keys, Config({})), (keys["expected"]["items"]["properties"], known)):
        for key, each in schema.items():
            if "default" in each:
                plain = list(found) if isinstance(found := getattr(made, key), tuple) else found
                assert plain == each["default"]
    assert keys["optimizer"]["enum"] == list(OPTIMIZERS)
    assert keys["optimizer"]["title"] == "sgd, momentum, adam or adamw"
    assert set(keys["tolerances"]["properties"]) == set(BOUNDS)
    assert {field.name for field in dataclasses.fields(KnownDifference)} == set(keys["expected"]["items"]["properties"])
    reference = REFERENCE.pattern.replace("?P<where>", "?:").replace("(?P<what>", "").removesuffix(")")
    assert keys["objective"]["pattern"] == f"^(?:{'|'.join(OBJECTIVES)}|{reference})$"
    assert PUBLISHED["$defs"]["model"]["pattern"] == rf"^(?:{reference}|[^\x00]+\.safetensors)$"


# -- any file


def toml(value: Any) -> str:
    """A value in TOML, tables inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml(key)} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return value.isoformat() if isinstance(value, datetime.date) else str(value).lower()


def document() -> dict[str, Any]:
    import tomllib

    return tomllib.loads(GOOD)


def places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*place, key)
        yield from places(value[key], (*place, key))


KEYS = sorted({key for place in places(document()) for key in place if isinstance(key, str)})
KEY = st.sampled_from(KEYS) | st.sampled_from(KEYS).map(lambda key: key[1:]) | st.text(max_size=5)
SCALARS = (
    st.none().map(lambda _: "") | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.dates() | KEY
    | st.sampled_from(["a.py:make", "x.safetensors", "torch", "re:(", "*", "mse"])
)  # fmt: skip
VALUES = st.recursive(SCALARS, lambda each: st.lists(each, max_size=3) | st.dictionaries(KEY, each, max_size=3))
MUTATION = st.tuples(st.integers(0, 10**6), st.sampled_from(["drop", "rename", "retype"]), KEY, VALUES)


def mutated(good: dict[str, Any], number: int, how: str, key: str, value: Any) -> dict[str, Any]:
    """The document with one key, or one item of a list, dropped, renamed, or of another type."""
    changed = copy.deepcopy(good)
    known = list(places(changed))
    if not known:
        return changed
    *outer, last = known[number % len(known)]
    parent: Any = changed
    for each in outer:
        parent = parent[each]
    old = parent.pop(last)
    if how == "rename" and isinstance(parent, dict):
        parent[key] = old
    elif how == "retype" and isinstance(parent, dict):
        parent[last] = value
    elif how == "retype":
        parent.insert(last, value)
    return changed


def read_or_refused(folder: Path, text: str | bytes) -> Config | str:
    """What is read, or what is said instead; each process has a file of its own."""
    path = written(folder, text, f"{os.getpid()}.toml")
    try:
        return read_config(path)
    except errors.FileError as error:
        assert repr(str(path)) in str(error)
        assert not any(raw in str(error) for raw in RAW)
        return str(error)


@examples(150)
@given(st.lists(MUTATION, min_size=1, max_size=3))
def test_any_mutation_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, mutations: Any) -> None:
    changed = document()
    for mutation in mutations:
        changed = mutated(changed, *mutation)
    text = "\n".join(f"{toml(key)} = {toml(value)}" for key, value in changed.items())
    found = read_or_refused(tmp_path_factory.getbasetemp(), text)
    valid = not any(jsonschema.Draft202012Validator(PUBLISHED).iter_errors(changed))
    assert valid or isinstance(found, str)
    if isinstance(found, Config):
        assert set(found.models) == set(changed["models"])
    else:
        assert "is not TOML" not in found and "\n  " in found


def test_the_document_is_written_as_it_is_read(tmp_path: Path) -> None:
    text = "\n".join(f"{toml(key)} = {toml(value)}" for key, value in document().items())
    assert read_config(written(tmp_path, text)) == read_config(written(tmp_path, GOOD))


@examples(100)
@given(st.binary(max_size=60) | st.tuples(st.integers(0, len(GOOD)), st.integers(0, 40), st.text(max_size=8)))
@example((GOOD.index("[models]"), 8, "[models"))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, change: Any) -> None:
    text: Any = change
    if isinstance(change, tuple):
        start, length, instead = change
        text = GOOD[:start] + instead + GOOD[start + length :]
    read_or_refused(tmp_path_factory.getbasetemp(), text)


# -- expected differences

EPS_HERE, PADDING = "bn: eps is 1e-05 there, 0.001 here", "stem: padding is 1 there, 0 here"
OPTIONS = Check("", "options", "jax", False, detail=f"{EPS_HERE}; {PADDING}", items=(EPS_HERE, PADDING))
GRADIENTS = Check("", "gradients", "jax", False, "float32", 9000.0, 256.0, "stem.weight")
OUTPUTS = Check("", "outputs", "jax", True, "float64", 3.0, 1024.0)
LAYERS = Check("", "13 layers on the way", "jax", False, "float64", 9e9, 1024.0)
WHY = {"reason": "so"}


def verdicts(checks: list[Check], *expected: KnownDifference) -> dict[str, tuple[bool, str]]:
    return {c.check: (c.agrees, c.expected or c.detail) for c in accept_known({"jax": checks}, expected)["jax"]}


def test_nothing_expected_changes_nothing() -> None:
    checks = [OPTIONS, GRADIENTS, OUTPUTS]
    assert accept_known({"jax": checks, "keras": []}, ()) == {"jax": checks, "keras": []}


def test_items_are_accepted_only_all_of_them() -> None:
    eps = KnownDifference(check="options", contains="bn: eps", reason="as published")
    padding = KnownDifference(check="opt*", model="j?x", contains="padding", reason="a layer of its own")
    assert verdicts([OPTIONS], eps) == {"options": (False, OPTIONS.detail)}
    assert verdicts([OPTIONS], eps, padding) == {"options": (True, "as published; a layer of its own")}
    assert verdicts([OPTIONS], KnownDifference(check="options", reason="old")) == {"options": (True, "old")}


def test_a_reason_is_said_once() -> None:
    twice = [KnownDifference(check="options", contains=text, **WHY) for text in ("eps", "padding", "is")]
    assert verdicts([OPTIONS], *twice) == {"options": (True, "so")}


def test_a_check_without_items_is_accepted_by_its_detail() -> None:
    assert verdicts([GRADIENTS], KnownDifference(check="gradients", contains="stem", **WHY)) == {
        "gradients": (True, "so")
    }
    assert verdicts([LAYERS], KnownDifference(check="* layers on the way", **WHY)) == {
        "13 layers on the way": (True, "so")
    }
    assert verdicts([LAYERS], KnownDifference(check="*", contains="x", **WHY))["13 layers on the way"] == (False, "")


def test_the_rest_of_a_check_stays() -> None:
    (found,) = accept_known({"jax": [GRADIENTS]}, [KnownDifference(check="*", **WHY)])["jax"]
    assert found == dataclasses.replace(GRADIENTS, agrees=True, expected="so")


def test_names_with_brackets_are_their_own_globs() -> None:
    each = KnownDifference(model="net[1]", check="gradients", **WHY)
    assert accept_known({"net[1]": [GRADIENTS]}, [each])["net[1]"][0].agrees


@pytest.mark.parametrize(
    "expected, said",
    [
        ({"check": "options", "contains": "dilation"}, "nothing like 'dilation' in options"),
        ({"check": "outputs"}, "nothing differs in outputs"),  # it agrees by now
        ({"check": "outputs", "contains": "stem"}, "nothing like 'stem' in outputs"),
        ({"check": "optoins"}, "no check 'optoins' is made"),
        ({"check": "options", "model": "kears"}, "no model 'kears' is compared"),
    ],
)
def test_what_is_expected_and_not_found_fails(expected: dict[str, str], said: str) -> None:
    checks = [OPTIONS, OUTPUTS]
    found = accept_known({"jax": checks}, [KnownDifference(**expected, **WHY)])["jax"]
    missing = Check("", "expected difference", "jax", False, detail=f"{said}: so; take it out of the file")
    assert found == [*checks, missing]


def test_an_expectation_is_met_by_one_model_of_those_it_names() -> None:
    each = KnownDifference(check="gradients", **WHY)
    fine = dataclasses.replace(GRADIENTS, agrees=True, detail="")
    found = accept_known({"jax": [fine], "keras": [GRADIENTS]}, [each])
    assert [[check.agrees for check in checks] for checks in found.values()] == [[True], [True]]


def test_a_missing_difference_is_reported_once_at_a_model_it_was_expected_of() -> None:
    models = {"jax": [OUTPUTS], "keras": [OUTPUTS], "keras2": [OUTPUTS]}
    for named, at in (("keras*", "keras"), ("*", "jax"), ("mxnet", "jax")):
        found = accept_known(models, [KnownDifference(model=named, check="outputs", **WHY)])
        assert {name: len(checks) for name, checks in found.items()} == {**dict.fromkeys(models, 1), at: 2}
        assert found[at][-1].backend == at
    assert models["jax"] == [OUTPUTS]  # what is given stays


def test_of_no_model_at_all_nothing_is_said() -> None:
    assert accept_known({}, [KnownDifference(check="outputs", **WHY)]) == {}
