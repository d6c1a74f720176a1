"""``multiparam compare`` and ``multiparam record`` with models of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ..core.model import Model
from ..errors import InvalidArgument
from ..paths import did_you_mean
from . import references
from .terminal import exit_on_error, print_error, print_verdict, quiet

if TYPE_CHECKING:
    from ..comparison.config import Config as Asked
    from ..comparison.results import Comparison

RECORDING, FILE = ".safetensors", ".toml"


def asked_for(models: Sequence[str], given: Mapping[str, Any]) -> Asked:
    """What the command line asks for, or the TOML file it names; options that are given too count instead of its own.

    Raises BadParameter or InvalidArgument for words that name nothing, and FileError for a file that is not right.
    """
    from ..comparison.config import Config as Asked
    from ..comparison.config import read_config as read

    options = {key: value for key, value in given.items() if value is not None and value != ()}
    files = [text for text in models if text.endswith(FILE)]
    if files:
        if len(models) > 1:
            raise typer.BadParameter(f"{files[0]} names the models; say nothing beside it", param_hint="MODELS")
        return replace(read(Path(files[0])), **options)
    found: dict[str, str] = {}
    for text in models:
        name, reference = named(text)
        found[name if name not in found else text] = reference
    return Asked(models=found, **options)


def named(text: str) -> tuple[str, str]:
    """A model's name and what it is: ``name=file.py:callable``, or named by what is behind the colon; or a recording,
    ``name=run.safetensors``, or named by its file."""
    name, equals, reference = text.partition("=")
    if not equals:
        reference = text
        name = Path(text).stem if text.endswith(RECORDING) else text.rpartition(":")[2]
    if not reference.endswith(RECORDING) and not references.is_reference(reference):
        raise InvalidArgument(f"{text!r} names no model: say file.py:callable, package.module:callable or a recording.")
    return name, reference


def run(asked: Asked, rtol_eps: float | None, written: Mapping[str, Path | None]) -> int:
    """Compare the models that references name; the exit code."""
    from ..comparison.config import accept_known as excused
    from ..comparison.models import compare
    from ..comparison.reports.files import write_reports as write

    if asked.inputs is None and not recordings(asked):
        raise typer.BadParameter("models are compared on inputs", param_hint="--inputs")
    with exit_on_error():
        with quiet():
            function, inputs, targets = given(asked)
            found = compare(
                models(asked, inputs), inputs or None, targets=targets or None, objective=function, rules=asked.rules,
                sync=asked.sync, rtol_eps=asked.tolerances if rtol_eps is None else rtol_eps, steps=asked.steps,
                optimizer=asked.optimizer, lr=asked.lr, layers=asked.layers, against=asked.against,
                histograms=written.get("html") is not None,
            )  # fmt: skip
            judged = excused({pair.name: pair.checks for pair in found.pairs}, asked.expected)
            for pair in found.pairs:
                pair.checks = judged[pair.name]
        show(found)
        write(found, written)
    return 0 if found.agrees else 1


def record(asked: Asked, output: Path) -> None:
    """Record the models that references name."""
    from ..comparison.models import record

    if asked.inputs is None:
        raise typer.BadParameter("models are run on inputs", param_hint="--inputs")
    if recordings(asked):
        raise typer.BadParameter(f"{recordings(asked)[0]} is recorded already", param_hint="MODELS")
    if asked.sync is not None:
        raise InvalidArgument("A recording has each model's own weights: sync is for compare, where both are live.")
    with exit_on_error():
        with quiet():
            function, inputs, targets = given(asked)
            path = record(
                output, models(asked, inputs), inputs, targets=targets or None, objective=function, steps=asked.steps,
                optimizer=asked.optimizer, lr=asked.lr, layers=asked.layers,
            )  # fmt: skip
        written(path, ", ".join(asked.models))


def written(path: Path, what: str) -> None:
    """Say that a recording is there."""
    print_error(f"Recorded {what} in {str(path)!r}: {path.stat().st_size / 1e6:.3g} MB.", "green")


def recordings(asked: Asked) -> list[str]:
    """The files among the models, and the one to hold them against."""
    files = [reference for reference in asked.models.values() if reference.endswith(RECORDING)]
    return files + ([] if asked.against is None else [str(asked.against)])


def models(asked: Asked, inputs: tuple[Any, ...]) -> dict[str, Model | Path]:
    """The models by name, made; recordings as their paths."""
    return {
        name: Path(reference) if reference.endswith(RECORDING) else references.model(reference, inputs)
        for name, reference in asked.models.items()
    }


def given(asked: Asked) -> tuple[Callable[..., Any] | None, tuple[Any, ...], tuple[Any, ...]]:
    """The objective, the inputs and the targets: where there is an objective, the last array of the file."""
    from ..comparison.recording import OBJECTIVES

    arrays = () if asked.inputs is None else references.examples(asked.inputs)
    name = asked.objective
    if name is None:
        return None, arrays, ()
    if references.is_reference(name):
        function = references.function(name)
    elif name in OBJECTIVES:
        function = OBJECTIVES[name]
    else:
        raise InvalidArgument(f"No objective {name!r}. {did_you_mean(name, OBJECTIVES)} Or say file.py:function.")
    if asked.inputs is None:
        return function, (), ()
    if len(arrays) < 2 and name in OBJECTIVES:
        raise InvalidArgument(f"{name} needs targets: the inputs file must hold them as its last array.")
    return (function, arrays[:-1], arrays[-1:]) if len(arrays) > 1 else (function, arrays, ())


def show(found: Comparison) -> None:
    """A comparison on the terminal."""
    text, *rest = str(found).split("\n")
    console = Console()
    print_verdict(console, text, found.agrees)
    for line in rest:
        style = "red" if line.startswith("  NOT") else ""
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
