"""What the commands share: quiet frameworks, a progress bar, and errors as sentences with an exit code."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .errors import InvalidArgument, MultiparamError, MultiparamWarning, ParameterNotFound


@contextmanager
def quiet() -> Iterator[TextIO]:
    """Keep the frameworks' own start-up messages off the terminal, and show them if something fails.

    They come from compiled code, so the file descriptor itself is redirected. Gives the real standard error.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as noise, os.fdopen(saved, "w", closefd=True) as stderr:
        os.dup2(noise.fileno(), 2)
        try:
            yield stderr
        except BaseException:
            sys.stderr.flush()
            noise.seek(0)
            stderr.write(noise.read().decode(errors="replace"))
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)


@contextmanager
def said() -> Iterator[None]:
    """Errors of ours, and of the disk, in a sentence: exit code 2 for an argument that has no meaning, else 3."""
    try:
        yield
    except (InvalidArgument, ParameterNotFound) as error:
        complain(str(error))
        raise typer.Exit(2) from None
    except MultiparamError as error:
        complain(str(error))
        raise typer.Exit(3) from None
    except OSError as error:
        complain(f"{error.strerror or type(error).__name__}: {error.filename or error}")
        raise typer.Exit(3) from None


def complain(text: str, style: str = "red") -> None:
    """A sentence on standard error."""
    Console(stderr=True).print(text, style=style, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def noted() -> Iterator[None]:
    """Warnings of ours as sentences, when all is done; the frameworks' own are not shown."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", MultiparamWarning)
        yield
    for text in dict.fromkeys(str(each.message) for each in caught):
        complain(f"Note: {text}", "yellow")


@contextmanager
def progress(what: str, total: int | None, stderr: TextIO) -> Iterator[Callable[[str], None]]:
    """A bar that goes when all is done; gives the function that moves it by one."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=stderr), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def tick(name: str) -> None:
            bar.update(task, advance=1, description=f"{what} {name}")

        yield tick
