"""``multiparam compare``: the networks built in, models of the user's, or recordings of either."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import builtin_networks, user_models
from .opening import check_folder
from .options import (
    FOR_BUILT_IN,
    REPORTS,
    USER_MODELS,
    BackendNames,
    Inputs,
    Keywords,
    LayerGlobs,
    LearningRate,
    NetworkNames,
    Objective,
    OptimizerName,
    Seed,
    Steps,
    reject_values,
)
from .terminal import exit_on_error

MODELS = (
    "Two models or more, each [NAME=]file.py:callable or a recording; or recordings of the networks built in; or a "
    "TOML file that says all. Without any, the networks built in."
)
RULES = "TOML or JSON: the first model's names -> others'."

Models = Annotated[list[str] | None, typer.Argument(help=MODELS)]
Against = Annotated[Path | None, typer.Option(help="A recording to hold everything against.")]
RenamingRules = Annotated[Path | None, typer.Option(help=RULES, rich_help_panel=USER_MODELS)]
SyncFrom = Annotated[
    str | None, typer.Option(help="Give the others the weights of this one first.", rich_help_panel=USER_MODELS)
]
Bound = Annotated[float | None, typer.Option(help="One bound for all distances, in eps.", rich_help_panel=USER_MODELS)]
Json = Annotated[Path | None, typer.Option(help="Also write the result to this file.", rich_help_panel=REPORTS)]
Markdown = Annotated[Path | None, typer.Option(help="The same as a job's summary.", rich_help_panel=REPORTS)]
Junit = Annotated[Path | None, typer.Option(help="The same as JUnit's XML.", rich_help_panel=REPORTS)]
Html = Annotated[Path | None, typer.Option(help="The same as a page, with plots.", rich_help_panel=REPORTS)]


def compare_command(
    models: Models = None,
    backends: BackendNames = None,
    networks: NetworkNames = None,
    steps: Steps = None,
    seed: Seed = None,
    against: Against = None,
    inputs: Inputs = None,
    keywords: Keywords = False,
    objective: Objective = None,
    optimizer: OptimizerName = None,
    lr: LearningRate = None,
    rules: RenamingRules = None,
    sync: SyncFrom = None,
    rtol_eps: Bound = None,
    layers: LayerGlobs = None,
    json: Json = None,
    markdown: Markdown = None,
    junit: Junit = None,
    html: Html = None,
) -> None:
    """Check that models agree: two or more of yours, or the same networks built in every backend from one seed.

    Names, shapes, kinds, ties, values, outputs, gradients, and parameters after training: semantically in float64,
    numerically in float32. A recording, of multiparam record, needs no framework.
    """
    reports = {"json": json, "markdown": markdown, "junit": junit, "html": html}
    for form, path in reports.items():
        if path is not None:
            check_folder(path, f"--{form}")
    for_built_in = {"backend": backends, "model": networks, "seed": seed}
    for_user_models = {
        "inputs": inputs, "objective": objective, "optimizer": optimizer, "lr": lr, "rules": rules, "sync": sync,
        "layers": layers, "keywords": keywords or None,
    }  # fmt: skip
    with exit_on_error():
        if not _are_built_in(models, against):
            reject_values(for_built_in, FOR_BUILT_IN)
            options = {**for_user_models, "layers": tuple(layers or ()), "steps": steps, "against": against}
            config = user_models.configuration(models or [], options)
            raise typer.Exit(user_models.compare_models(config, rtol_eps, reports))
        reject_values({**for_user_models, "rtol_eps": rtol_eps}, "it is for models of yours: name two")
        if not models:
            raise typer.Exit(builtin_networks.compare_built_in({**for_built_in, "steps": steps}, against, reports))
        reject_values({**for_built_in, "steps": steps}, "recordings have it already")
        files = [*([] if against is None else [against]), *map(Path, models)]
        raise typer.Exit(builtin_networks.compare_recordings(files, reports))


def _are_built_in(models: list[str] | None, against: Path | None) -> bool:
    """Whether it is the networks built in that are compared: nothing is named, or only recordings of those."""
    files = [Path(text) for text in models or ()]
    if any(path.suffix != user_models.RECORDING or "=" in path.name for path in files):
        return False
    from ..comparison.recording import open_recording

    return all("networks" in open_recording(path)[1] for path in [*files, *([] if against is None else [against])])
