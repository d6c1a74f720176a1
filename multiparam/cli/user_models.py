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
from .terminal import exit_on_error, print_recorded, print_verdict, quiet

if TYPE_CHECKING:
    from ..comparison.config import Config
    from ..comparison.results import Comparison

RECORDING, TOML = ".safetensors", ".toml"


def configuration(models: Sequence[str], options: Mapping[str, Any]) -> Config:
    """What the command line asks for, or the TOML file it names; options that are used count instead of the file's own.

    Raises BadParameter or InvalidArgument for words that name nothing, and FileError for a file that is not right.
    """
    from ..comparison.config import Config, read_config

    used = {key: value for key, value in options.items() if value is not None and value != ()}
    files = [text for text in models if text.endswith(TOML)]
    if files:
        if len(models) > 1:
            raise typer.BadParameter(f"{files[0]} names the models; say nothing beside it", param_hint="MODELS")
        return replace(read_config(Path(files[0])), **used)
    named: dict[str, str] = {}
    for text in models:
        name, reference = parse_model(text)
        named[name if name not in named else text] = reference
    return Config(models=named, **used)


def parse_model(text: str) -> tuple[str, str]:
    """A model's name and its reference or recording.

    ``name=file.py:callable``, or named by what is behind the colon; ``name=run.safetensors``, or named by its file.

    >>> parse_model("nets.py:Mlp.small"), parse_model("torch=nets.py:make"), parse_model("runs/new.safetensors")
    (('Mlp.small', 'nets.py:Mlp.small'), ('torch', 'nets.py:make'), ('new', 'runs/new.safetensors'))
    """
    name, equals, reference = text.partition("=")
    if not equals:
        reference = text
        name = Path(text).stem if text.endswith(RECORDING) else text.rpartition(":")[2]
    if not reference.endswith(RECORDING) and not references.is_reference(reference):
        raise InvalidArgument(f"{text!r} names no model: say file.py:callable, package.module:callable or a recording.")
    return name, reference


def compare_models(config: Config, rtol_eps: float | None, reports: Mapping[str, Path | None]) -> int:
    """Compare the models that references name, and write the reports that have a path; the exit code."""
    from ..comparison.config import accept_known
    from ..comparison.models import compare
    from ..comparison.reports.files import write_reports

    if config.inputs is None and not recordings_of(config):
        raise typer.BadParameter("models are compared on inputs", param_hint="--inputs")
    with exit_on_error():
        with quiet():
            objective, inputs, targets = load_task(config)
            comparison = compare(
                load_models(config, inputs), inputs or None, targets=targets or None, objective=objective,
                rules=config.rules, sync=config.sync, rtol_eps=config.tolerances if rtol_eps is None else rtol_eps,
                steps=config.steps, optimizer=config.optimizer, lr=config.lr, layers=config.layers,
                against=config.against, histograms=reports.get("html") is not None,
            )  # fmt: skip
            judged = accept_known({pair.name: pair.checks for pair in comparison.pairs}, config.expected)
            for pair in comparison.pairs:
                pair.checks = judged[pair.name]
        print_comparison(comparison)
        write_reports(comparison, reports)
    return 0 if comparison.agrees else 1


def record_models(config: Config, output: Path) -> None:
    """Record the models that references name."""
    from ..comparison.models import record

    if config.inputs is None:
        raise typer.BadParameter("models are run on inputs", param_hint="--inputs")
    if recordings_of(config):
        raise typer.BadParameter(f"{recordings_of(config)[0]} is recorded already", param_hint="MODELS")
    if config.sync is not None:
        raise InvalidArgument("A recording has each model's own weights: sync is for compare, where both are live.")
    with exit_on_error():
        with quiet():
            objective, inputs, targets = load_task(config)
            path = record(
                output, load_models(config, inputs), inputs, targets=targets or None, objective=objective,
                steps=config.steps, optimizer=config.optimizer, lr=config.lr, layers=config.layers,
            )  # fmt: skip
        print_recorded(path, ", ".join(config.models))


def recordings_of(config: Config) -> list[str]:
    """The files among the models, and the one to hold them against."""
    files = [reference for reference in config.models.values() if reference.endswith(RECORDING)]
    return files + ([] if config.against is None else [str(config.against)])


def load_models(config: Config, inputs: references.Examples) -> dict[str, Model | Path]:
    """The models by name, live; recordings as their paths."""
    return {
        name: Path(reference) if reference.endswith(RECORDING) else references.model(reference, inputs)
        for name, reference in config.models.items()
    }


def load_task(config: Config) -> tuple[Callable[..., Any] | None, references.Examples, tuple[Any, ...]]:
    """The objective, the inputs and the targets: where there is an objective, the last array of the file."""
    from ..comparison.recording import OBJECTIVES

    arrays = () if config.inputs is None else references.examples(config.inputs, config.keywords)
    name = config.objective
    if name is None:
        return None, arrays, ()
    if references.is_reference(name):
        function = references.function(name)
    elif name in OBJECTIVES:
        function = OBJECTIVES[name]
    else:
        raise InvalidArgument(f"No objective {name!r}. {did_you_mean(name, OBJECTIVES)} Or say file.py:function.")
    if config.inputs is None:
        return function, (), ()
    if len(arrays) < 2 and name in OBJECTIVES:
        raise InvalidArgument(f"{name} needs targets: the inputs file must hold them as its last array.")
    if len(arrays) < 2:
        return function, arrays, ()
    if isinstance(arrays, Mapping):
        *names, targets = arrays
        return function, {name: arrays[name] for name in names}, (arrays[targets],)
    return function, arrays[:-1], arrays[-1:]


def print_comparison(comparison: Comparison) -> None:
    """A comparison on the terminal: the first line is the verdict."""
    text, *rest = str(comparison).split("\n")
    console = Console()
    print_verdict(console, text, comparison.agrees)
    for line in rest:
        style = "red" if line.startswith("  NOT") else ""
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
