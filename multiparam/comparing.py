"""``multiparam compare`` with models of the user's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from . import losses, references
from .commands import check_folder
from .errors import InvalidArgument
from .files import written_whole
from .model import Model
from .paths import did_you_mean
from .terminal import quiet, said, say

OBJECTIVES: Mapping[str, Callable[..., Any]] = {"mse": losses.mse, "cross_entropy": losses.cross_entropy}


def run(asked: list[str], given: Mapping[str, Any], written: Mapping[str, Path | None]) -> int:
    """Compare the models that references name; the exit code."""
    from .comparison.models import compare

    for form, path in written.items():
        if path is not None:
            check_folder(path, f"--{form}")
    if given["inputs"] is None:
        raise typer.BadParameter("models are compared on inputs", param_hint="--inputs")
    with said():
        with quiet():
            function, inputs, targets = objective(given["objective"], references.examples(given["inputs"]))
            found = compare(
                models(asked, inputs), inputs, targets=targets or None, objective=function,
                rules=given["rules"], sync=given["sync"], rtol_eps=given["rtol_eps"],
            )  # fmt: skip
        report(found, written)
    return 0 if found.agrees else 1


def models(asked: list[str], inputs: tuple[Any, ...]) -> dict[str, Model]:
    """The models that references name: ``name=file.py:callable``, or named by what is behind the colon."""
    found: dict[str, Model] = {}
    for text in asked:
        name, equals, reference = text.partition("=")
        if not equals:
            name, reference = text.rpartition(":")[2], text
        if not references.is_reference(reference):
            raise InvalidArgument(f"{text!r} names no model: say file.py:callable or package.module:callable.")
        name = name if name not in found else text
        found[name] = references.model(reference, inputs)
    return found


def objective(name: str | None, arrays: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
    """An objective by name, and which arrays are inputs and which its targets: the last one, where it takes some."""
    if name is None:
        return None, arrays, ()
    if name not in OBJECTIVES:
        raise InvalidArgument(f"No objective {name!r}. {did_you_mean(name, OBJECTIVES)}")
    if len(arrays) < 2:
        raise InvalidArgument(f"{name} needs targets: the inputs file must hold them as its last array.")
    return OBJECTIVES[name], arrays[:-1], arrays[-1:]


def report(found: Any, written: Mapping[str, Path | None]) -> None:
    """Show a comparison, and write it in the forms asked for."""
    from .comparison.written import WRITERS

    text, *rest = str(found).split("\n")
    console = Console()
    say(console, text, found.agrees)
    for line in rest:
        style = "red" if line.startswith("  NOT") else ""
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    for form, path in written.items():
        if path is not None:
            content = WRITERS[form](found)
            written_whole(path, content if isinstance(content, str) else json.dumps(content, indent=1) + "\n")
