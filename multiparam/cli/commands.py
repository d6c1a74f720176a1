"""The command line, assembled: ``multiparam backends | inspect | convert | compare | record``.

Exit codes: 0 done, or all agree; 1 disagree; 2 usage; 3 could not run.
"""

from __future__ import annotations

import sys
import traceback

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core import registry
from ..errors import BackendMissing
from .compare import compare_command
from .convert import convert_command
from .inspect import inspect_command
from .record import record_command
from .terminal import COULD_NOT_RUN, exit_on_error, quiet

app = typer.Typer(
    help="One parameter API for PyTorch, MXNet Gluon, JAX/Flax and TensorFlow/Keras.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command("backends")
def backends_command() -> None:
    """List the backends: the installed version, or the pip line that would install it."""
    table = Table(box=None, header_style="bold")
    for column in ("backend", "version", "unsupported"):
        table.add_column(column)
    for name, status in registry.backends().items():
        try:
            with quiet():
                unsupported = ", ".join(registry.info(name).load().unsupported) if status else ""
        except BackendMissing as error:  # one whose installation is broken; the others are listed all the same
            unsupported = str(error)
        table.add_row(name, Text(str(status)), Text(unsupported))
    Console().print(table)


app.command("inspect")(inspect_command)
app.command("convert")(convert_command)
app.command("compare")(compare_command)
app.command("record")(record_command)


def run() -> None:
    """Run the command that the arguments name: errors of ours in a sentence, others whole.

    Python exits with 1 after an exception, and 1 is only for what disagrees: so whatever nobody foresaw exits with 3.
    """
    try:
        with exit_on_error():
            app()
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except Exception:
        traceback.print_exc()
        sys.exit(COULD_NOT_RUN)
