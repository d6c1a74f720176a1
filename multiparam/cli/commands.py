"""The command line, assembled: ``multiparam backends | inspect | convert | compare | record``.

Exit codes: 0 done, or all agree; 1 disagree; 2 usage; 3 could not run.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from .. import __version__
from .terminal import COULD_NOT_RUN, die_with_the_reader, exit_on_error, speak_any_encoding

HELP = {"help_option_names": ["-h", "--help"]}

# A command's module is imported when the command is run, or its own help is asked for: what all of them import takes
# longer than the list of them. Name -> the first paragraph of its help; the module and the function have its name.
COMMANDS: Mapping[str, str] = {
    "backends": "List the backends: the installed version, or the pip line that would install it.",
    "inspect": "Show what a model or a weight file holds: names, kinds, shapes, dtypes, ties, and what is trained.",
    "convert": "Bring weights from a model or a file into a model of any framework, or into a file of another format.",
    "compare": (
        "Check that models agree: two or more of yours, or the same networks built in every backend from one seed."
    ),
    "record": "Write down what models compute in this environment, for multiparam compare to judge in any other.",
}


def help_of(name: str) -> str:
    """A command's docstring with each paragraph in one line: the terminal decides where it is broken."""
    paragraphs = (inspect.getdoc(_function(name)) or "").split("\n\n")
    return "\n\n".join(" ".join(text.split()) for text in paragraphs)


def _function(name: str) -> Callable[..., None]:
    function: Callable[..., None] = getattr(import_module(f".{name}", __package__), f"{name}_command")
    return function


class Commands(TyperGroup):
    """The commands, each made when it is asked for by name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: TyperCommand(name, help=text) for name, text in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in COMMANDS:
            one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            one.command(args[0], help=help_of(args[0]), context_settings=HELP)(_function(args[0]))
            self.commands[args[0]] = get_command(one)
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"multiparam {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
]


@app.callback(context_settings=HELP)
def main_command(version: Version = False) -> None:
    """One parameter API for PyTorch, MXNet Gluon, JAX/Flax and TensorFlow/Keras."""


def run() -> None:
    """Run the command that the arguments name: errors of ours in a sentence, others whole.

    Python exits with 1 after an exception, and 1 is only for what disagrees: so whatever nobody foresaw exits with 3.
    """
    speak_any_encoding()
    die_with_the_reader()
    try:
        with exit_on_error():
            app()
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except Exception:
        traceback.print_exc()
        sys.exit(COULD_NOT_RUN)
