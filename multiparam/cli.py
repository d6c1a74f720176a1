"""The command line: ``multiparam backends | inspect | convert | compare``.

Exit codes: 0 done, or all agree; 1 disagree; 2 usage; 3 could not run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from . import commands, comparing, converting, registry
from .errors import BackendMissing, BackendUnknown, MultiparamError
from .paths import did_you_mean
from .terminal import quiet, refuse, say

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


app.command()(commands.inspect)
app.command()(converting.convert)


@app.command()
def compare(
    models: Annotated[
        Optional[list[str]],
        typer.Argument(help="Two models or more, as [NAME=]file.py:callable; without any, the networks built in."),
    ] = None,
    backend: Annotated[Optional[list[str]], typer.Option(help="Compare these only. Repeatable.")] = None,
    model: Annotated[Optional[list[str]], typer.Option(help="Only these models of the zoo. Repeatable.")] = None,
    steps: Annotated[int, typer.Option(min=0, help="Training steps with each optimizer; 0 for none.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the initial values.")] = 0,
    json: Annotated[Optional[Path], typer.Option(help="Also write the result to this file.")] = None,
    markdown: Annotated[Optional[Path], typer.Option(help="The same as a job's summary. With MODELS.")] = None,
    junit: Annotated[Optional[Path], typer.Option(help="The same as JUnit's XML. With MODELS.")] = None,
    inputs: Annotated[Optional[Path], typer.Option(help="An npz file of the first one's inputs. With MODELS.")] = None,
    objective: Annotated[
        Optional[str], typer.Option(help="mse or cross_entropy; the last array of the inputs is then the targets.")
    ] = None,
    rules: Annotated[Optional[Path], typer.Option(help="TOML or JSON: the first model's names -> others'.")] = None,
    sync: Annotated[Optional[str], typer.Option(help="Give the others the weights of this one first.")] = None,
    rtol_eps: Annotated[Optional[float], typer.Option(help="One bound for all distances, in eps.")] = None,
) -> None:
    """Check that models agree: two or more of yours, or the same networks built in every backend from one seed.

    Names, shapes, kinds, ties, values, outputs, gradients, and parameters after training: semantically in float64,
    numerically in float32. For MODELS, --steps counts only where it is given.
    """
    if models:
        given = {"inputs": inputs, "objective": objective, "rules": rules, "sync": sync, "rtol_eps": rtol_eps}
        raise typer.Exit(comparing.run(models, given, {"json": json, "markdown": markdown, "junit": junit}))
    own = {"--inputs": inputs, "--objective": objective, "--rules": rules, "--sync": sync, "--rtol-eps": rtol_eps,
           "--markdown": markdown, "--junit": junit}  # fmt: skip
    refuse(own, "it is for models of yours: name two")
    from .comparison import TICKS, ZOO, compare_zoo
    from .comparison.report import show, verdict, write_json

    names = _known(model, ZOO, "--model")
    if json is not None:
        commands.check_folder(json, "--json")
    chosen = _chosen(backend)
    versions = {name: str(registry.info(name).version()) for name in chosen}
    console = Console()
    if len(chosen) == 1:
        console.print(f"Only {chosen[0]} is compared: its float32 against its own float64.")
    total = len(names) * len(chosen) * 2 * (TICKS if steps else 1)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with quiet() as stderr, Progress(*columns, console=Console(file=stderr), transient=True) as progress:
        task = progress.add_task("importing", total=total)

        def tick(what: str) -> None:
            progress.update(task, advance=1, description=what)

        for name in chosen:
            registry.info(name).load()
        checks = compare_zoo(names, chosen, steps=steps, seed=seed, tick=tick)
    show(console, checks, chosen, steps)
    lines = verdict(checks, versions)
    agree = all(check.agrees for check in checks)
    say(console, "\n".join(lines), agree)
    if json is not None:
        write_json(json, checks, versions, {"models": names, "steps": steps, "seed": seed})
    raise typer.Exit(0 if agree else 1)


def _known(asked: list[str] | None, known: Iterable[str], option: str) -> list[str]:
    names = list(known)
    for name in asked or ():
        if name not in names:
            raise typer.BadParameter(f"no {name!r}. {did_you_mean(name, names)}", param_hint=option)
    return [name for name in names if not asked or name in asked]


def _chosen(asked: list[str] | None) -> list[str]:
    """The backends asked for, or in the environment, or all installed ones, in the registry's order."""
    fallback = os.environ.get(registry.VARIABLE)
    asked = asked or ([fallback] if fallback else None)
    try:
        for name in asked or ():
            registry.info(name).require()
    except BackendUnknown as error:
        raise typer.BadParameter(str(error), param_hint="--backend") from None
    installed = [name for name, status in registry.backends().items() if status]
    if not installed:
        registry.selected()
    return [name for name in dict.fromkeys(asked or installed) if name in installed]


def main() -> None:
    """The entry point: errors of ours are said in one line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        app()
    except BackendMissing as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False)
        sys.exit(3)
    except MultiparamError as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
