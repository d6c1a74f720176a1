"""The command line: ``multiparam backends | inspect | convert | compare | record``.

Exit codes: 0 done, or all agree; 1 disagree; 2 usage; 3 could not run.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core import registry
from ..errors import BackendMissing
from . import builtin, convert, inspect, user_models
from .terminal import exit_on_error, quiet, reject_options

app = typer.Typer(
    help="One parameter API for PyTorch, MXNet Gluon, JAX/Flax and TensorFlow/Keras.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def backends() -> None:
    """List the backends: the installed version, or the pip line that would install it."""
    table = Table(box=None, header_style="bold")
    for column in ("backend", "version", "unsupported"):
        table.add_column(column)
    for name, status in registry.backends().items():
        try:
            with quiet():
                declared = ", ".join(registry.info(name).load().unsupported) if status else ""
        except BackendMissing as error:
            declared = str(error)
        table.add_row(name, Text(str(status)), Text(declared))
    Console().print(table)


app.command()(inspect.inspect)
app.command()(convert.convert)


OURS, YOURS, REPORTS = "For the networks built in", "For models of yours", "Reports"
OBJECTIVE = "mse, cross_entropy or file.py:function; the last array of the inputs is then the targets."
STEPS = "Training steps; with the networks built in 100 with each optimizer, with MODELS none."

Backends = Annotated[
    Optional[list[str]], typer.Option("--backend", help="These only. Repeatable.", rich_help_panel=OURS)
]
Networks = Annotated[
    Optional[list[str]], typer.Option("--model", help="Only these networks. Repeatable.", rich_help_panel=OURS)
]
Seed = Annotated[Optional[int], typer.Option(help="Seed of the initial values.", rich_help_panel=OURS)]
Steps = Annotated[Optional[int], typer.Option(min=0, help=STEPS)]
Inputs = Annotated[Optional[Path], typer.Option(help="An npz file of the first one's inputs.", rich_help_panel=YOURS)]
Objective = Annotated[Optional[str], typer.Option(help=OBJECTIVE, rich_help_panel=YOURS)]
OptimizerName = Annotated[Optional[str], typer.Option(help="sgd, momentum or adam.", rich_help_panel=YOURS)]
Rate = Annotated[Optional[float], typer.Option(help="Its learning rate.", rich_help_panel=YOURS)]
Layers = Annotated[Optional[list[str]], typer.Option(help="Follow only layers that fit this glob. Repeatable.")]


@app.command()
def compare(
    models: Annotated[
        Optional[list[str]],
        typer.Argument(
            help="Two models or more, each [NAME=]file.py:callable or a recording; or recordings of the networks built "
            "in; or a TOML file that says all. Without any, the networks built in."
        ),
    ] = None,
    backend: Backends = None,
    model: Networks = None,
    steps: Steps = None,
    seed: Seed = None,
    against: Annotated[Optional[Path], typer.Option(help="A recording to hold everything against.")] = None,
    inputs: Inputs = None,
    objective: Objective = None,
    optimizer: OptimizerName = None,
    lr: Rate = None,
    rules: Annotated[
        Optional[Path], typer.Option(help="TOML or JSON: the first model's names -> others'.", rich_help_panel=YOURS)
    ] = None,
    sync: Annotated[
        Optional[str], typer.Option(help="Give the others the weights of this one first.", rich_help_panel=YOURS)
    ] = None,
    rtol_eps: Annotated[
        Optional[float], typer.Option(help="One bound for all distances, in eps.", rich_help_panel=YOURS)
    ] = None,
    layers: Layers = None,
    json: Annotated[
        Optional[Path], typer.Option(help="Also write the result to this file.", rich_help_panel=REPORTS)
    ] = None,
    markdown: Annotated[
        Optional[Path], typer.Option(help="The same as a job's summary.", rich_help_panel=REPORTS)
    ] = None,
    junit: Annotated[Optional[Path], typer.Option(help="The same as JUnit's XML.", rich_help_panel=REPORTS)] = None,
    html: Annotated[
        Optional[Path], typer.Option(help="The same as a page, with plots.", rich_help_panel=REPORTS)
    ] = None,
) -> None:
    """Check that models agree: two or more of yours, or the same networks built in every backend from one seed.

    Names, shapes, kinds, ties, values, outputs, gradients, and parameters after training: semantically in float64,
    numerically in float32. A recording, of multiparam record, needs no framework.
    """
    forms = {"json": json, "markdown": markdown, "junit": junit, "html": html}
    for form, path in forms.items():
        if path is not None:
            inspect.check_folder(path, f"--{form}")
    ours = {"backend": backend, "model": model, "seed": seed}
    yours = {
        "inputs": inputs, "objective": objective, "optimizer": optimizer, "lr": lr, "rules": rules, "sync": sync,
        "layers": layers,
    }  # fmt: skip
    with exit_on_error():
        if not _networks(models, against):
            _refuse(ours, "it is for the networks built in, not for models of yours")
            given = {**yours, "layers": tuple(layers or ()), "steps": steps, "against": against}
            raise typer.Exit(user_models.run(user_models.asked_for(models or [], given), rtol_eps, forms))
        _refuse({**yours, "rtol_eps": rtol_eps}, "it is for models of yours: name two")
        if not models:
            raise typer.Exit(builtin.run({**ours, "steps": steps}, against, forms))
        _refuse({**ours, "steps": steps}, "recordings have it already")
        files = [Path(text) for text in models]
        raise typer.Exit(builtin.judge(files if against is None else [against, *files], forms))


@app.command()
def record(
    models: Annotated[
        Optional[list[str]],
        typer.Argument(
            help="Models, each [NAME=]file.py:callable, or a TOML file; without any, the networks built in."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="The safetensors file to write.")] = Path("run.safetensors"),
    backend: Backends = None,
    model: Networks = None,
    steps: Steps = None,
    seed: Seed = None,
    inputs: Inputs = None,
    objective: Objective = None,
    optimizer: OptimizerName = None,
    lr: Rate = None,
    layers: Layers = None,
) -> None:
    """Write down what models compute in this environment, for multiparam compare to judge in any other.

    Names, ties, options, values, outputs, what layers give, gradients, parameters after training; versions and seeds.
    """
    inspect.check_folder(output, "--output")
    if output.suffix != user_models.RECORDING:
        raise typer.BadParameter(f"a recording is a {user_models.RECORDING} file", param_hint="--output")
    ours = {"backend": backend, "model": model, "seed": seed}
    yours = {"inputs": inputs, "objective": objective, "optimizer": optimizer, "lr": lr}
    followed = tuple(layers or ())
    with exit_on_error():
        if models:
            _refuse(ours, "it is for the networks built in, not for models of yours")
            asked = user_models.asked_for(models, {**yours, "layers": followed, "steps": steps})
            user_models.record(asked, output)
        else:
            _refuse(yours, "it is for models of yours: name one")
            builtin.record({**ours, "steps": steps}, followed, output)


def _networks(models: list[str] | None, against: Path | None) -> bool:
    """Whether what is asked for is of the networks built in: nothing is named, or only recordings of those."""
    named = [Path(text) for text in models or ()]
    if any(path.suffix != user_models.RECORDING or "=" in path.name for path in named):
        return False
    from ..comparison.recording import open_recording

    return all("networks" in open_recording(path)[1] for path in [*named, *([] if against is None else [against])])


def _refuse(options: Mapping[str, object], why: str) -> None:
    reject_options({f"--{name.replace('_', '-')}": given for name, given in options.items()}, why)


def main() -> None:
    """The entry point: errors of ours are said in a sentence, others are shown whole; 1 is only for what disagrees."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with exit_on_error():
            app()
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except Exception:
        traceback.print_exc()
        sys.exit(3)


if __name__ == "__main__":
    main()
