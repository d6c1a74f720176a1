"""``multiparam record``: what models compute in this environment, written down to be compared in another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import builtin_networks, user_models
from .opening import check_folder
from .options import (
    FOR_BUILT_IN,
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

MODELS = "Models, each [NAME=]file.py:callable, or a TOML file; without any, the networks built in."

Models = Annotated[list[str] | None, typer.Argument(help=MODELS)]
Output = Annotated[Path, typer.Option(help="The safetensors file to write.")]


def record_command(
    models: Models = None,
    output: Output = Path("run.safetensors"),
    backends: BackendNames = None,
    networks: NetworkNames = None,
    steps: Steps = None,
    seed: Seed = None,
    inputs: Inputs = None,
    keywords: Keywords = False,
    objective: Objective = None,
    optimizer: OptimizerName = None,
    lr: LearningRate = None,
    layers: LayerGlobs = None,
) -> None:
    """Write down what models compute in this environment, for multiparam compare to judge in any other.

    Names, ties, options, values, outputs, what layers give, gradients, parameters after training; versions and seeds.
    """
    check_folder(output, "--output")
    if output.suffix != user_models.RECORDING:
        raise typer.BadParameter(f"a recording is a {user_models.RECORDING} file", param_hint="--output")
    for_built_in = {"backend": backends, "model": networks, "seed": seed}
    for_user_models = {"inputs": inputs, "objective": objective, "optimizer": optimizer, "lr": lr,
                       "keywords": keywords or None}  # fmt: skip
    followed = tuple(layers or ())
    with exit_on_error():
        if models:
            reject_values(for_built_in, FOR_BUILT_IN)
            config = user_models.configuration(models, {**for_user_models, "layers": followed, "steps": steps})
            user_models.record_models(config, output)
        else:
            reject_values(for_user_models, "it is for models of yours: name one")
            builtin_networks.record_built_in({**for_built_in, "steps": steps}, followed, output)
