"""Published JSON schemas: of a comparison's result, of a recording's document and of the file that asks for one."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from types import ModuleType
from typing import Any

from ...core.packages import require


@cache
def schema(name: str) -> dict[str, Any]:
    """A schema by its name: ``"comparison"``, ``"recording"`` or ``"compare"``.

    >>> from multiparam.comparison.schemas import schema
    >>> schema("recording")["title"]
    'A recording of multiparam'
    """
    text = resources.files(__package__).joinpath(f"{name}.json").read_text("utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def problems(document: Any, name: str) -> list[str]:
    """What is wrong with a document, each with its place."""
    errors = jsonschema().Draft202012Validator(schema(name)).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]


def jsonschema() -> ModuleType:
    """The package. Raises PackageMissing without it."""
    return require("jsonschema", "Reading a recording or a file for compare", 'pip install "multiparam[cli]"')
