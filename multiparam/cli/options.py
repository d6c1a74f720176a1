"""The options that several commands have, each stated once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from .terminal import reject_options

BUILT_IN, USER_MODELS, REPORTS = "For the networks built in", "For models of yours", "Reports"  # panels of --help
OBJECTIVE = "mse, cross_entropy or file.py:function; the last array of the inputs is then the targets."
STEPS = "Training steps; with the networks built in 100 with each optimizer, with MODELS none."

BackendNames = Annotated[
    list[str] | None, typer.Option("--backend", help="These only. Repeatable.", rich_help_panel=BUILT_IN)
]
NetworkNames = Annotated[
    list[str] | None, typer.Option("--model", help="Only these networks. Repeatable.", rich_help_panel=BUILT_IN)
]
Seed = Annotated[int | None, typer.Option(help="Seed of the initial values.", rich_help_panel=BUILT_IN)]
Steps = Annotated[int | None, typer.Option(min=0, help=STEPS)]
Inputs = Annotated[
    Path | None, typer.Option(help="An npz file of the first one's inputs.", rich_help_panel=USER_MODELS)
]
Keywords = Annotated[
    bool, typer.Option("--keywords", help="Pass the npz file's arrays by their names in it, not in their order.")
]
Objective = Annotated[str | None, typer.Option(help=OBJECTIVE, rich_help_panel=USER_MODELS)]
OptimizerName = Annotated[str | None, typer.Option(help="sgd, momentum, adam or adamw.", rich_help_panel=USER_MODELS)]
LearningRate = Annotated[float | None, typer.Option(help="Its learning rate.", rich_help_panel=USER_MODELS)]
LayerGlobs = Annotated[list[str] | None, typer.Option(help="Follow only layers that fit this glob. Repeatable.")]

FOR_BUILT_IN = "it is for the networks built in, not for models of yours"


def reject_values(values: Mapping[str, object], why: str) -> None:
    """A usage error for the first option that has a value; options by their names in Python."""
    reject_options({f"--{name.replace('_', '-')}": value for name, value in values.items()}, why)
