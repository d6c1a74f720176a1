"""What the commands share: quiet frameworks, tables, a progress bar, and errors as sentences with an exit code."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import typer
from rich import box
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..errors import DoesNotRun, InvalidArgument, MultiparamError, MultiparamWarning, ParameterNotFound

USAGE, COULD_NOT_RUN = 2, 3  # exit codes; 0 is done, or all agree, and 1 is only for what disagrees
FOLDED = ("change", "because", "also called")  # columns whose cells may go on in a next line


# What is written of a sign that the output's encoding has not: a C locale's, or that of a file on Windows.
PLAIN: Mapping[str, str] = {"→": "->", "✓": "+", "✗": "x", "…": "...", "—": "-", "•": "*"}


def speak_any_encoding() -> None:
    """Let signs that standard output and error cannot encode become plain ones, for as long as the process lives."""

    def plain(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        texts = (PLAIN.get(sign, "?") for sign in error.object[error.start : error.end])
        return "".join(texts), error.end

    codecs.register_error("multiparam.plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="multiparam.plain")


def die_with_the_reader() -> None:
    """Let the system end the process when nobody reads its output any more, as of ``head -1``: rich and click would
    exit with 1, which means that models disagree."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    else:  # Windows has no such signal
        Console.on_broken_pipe = _stop  # type: ignore[method-assign]


def _stop(self: Console) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it flushes
    sys.exit(COULD_NOT_RUN)


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
        except BaseException as error:
            sys.stderr.flush()
            if isinstance(error, MultiparamError) and error.__cause__ is None:
                raise  # its sentence is enough; where it has a cause, what was printed may say more of that
            noise.seek(0)
            stderr.write(noise.read().decode(errors="replace"))
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Errors of ours, and of the disk, in a sentence: exit code 2 for an argument that has no meaning, else 3."""
    try:
        yield
    except MultiparamError as error:
        print_error(str(error))
        # DoesNotRun is an InvalidArgument for callers in Python; here it is the user's code that failed, not the words.
        usage = isinstance(error, (InvalidArgument, ParameterNotFound)) and not isinstance(error, DoesNotRun)
        raise typer.Exit(USAGE if usage else COULD_NOT_RUN) from None
    except OSError as error:
        print_error(f"{error.strerror or type(error).__name__}: {error.filename or error}")
        raise typer.Exit(COULD_NOT_RUN) from None


def print_error(text: str, style: str = "red") -> None:
    """A sentence on standard error; its brackets are no markup of rich's."""
    Console(stderr=True).print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_verdict(console: Console, text: str, agrees: bool) -> None:
    """A verdict, whole lines of it, in the colour of good or bad news."""
    style = "bold green" if agrees else "bold red"
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def print_recorded(path: Path, content: str) -> None:
    """Say that a recording is there, what is in it and how large it is."""
    print_error(f"Recorded {content} in {str(path)!r}: {path.stat().st_size / 1e6:.3g} MB.", "green")


def reject_options(options: Mapping[str, Any], why: str) -> None:
    """A usage error for the first of these options that is used: one that is None, or a flag that is False, is not."""
    for option, value in options.items():
        if value is not None and value is not False:
            raise typer.BadParameter(why, param_hint=option)


@contextmanager
def warnings_as_sentences() -> Iterator[None]:
    """Warnings of ours as sentences, when all is done; the frameworks' own are not shown."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", MultiparamWarning)
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught):  # each text once
        print_error(f"Note: {text}", "yellow")


@contextmanager
def progress(activity: str, total: int | None, stderr: TextIO) -> Iterator[Callable[[str], None]]:
    """A bar that goes when all is done; gives the function that moves it by one."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(file=stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(activity, total=total)

        def tick(name: str) -> None:
            bar.update(task, advance=1, description=f"{activity} {name}")

        yield tick


def print_table(
    title: str, columns: Sequence[str], lines: Sequence[Sequence[Text]], styles: Sequence[str], words: Container[str]
) -> Console:
    """A title and a table; columns with nothing in them are left out, those not of words are numbers."""
    from ..comparison.reports.console import console_for

    shown = [i for i in range(len(columns)) if any(line[i].plain for line in lines)]
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i in shown:
        folded = columns[i] in FOLDED
        justify: JustifyMethod = "left" if columns[i] in words else "right"
        width = 12 if folded else max(line[i].cell_len for line in lines)  # a name that is cut is of no use
        table.add_column(columns[i], justify=justify, overflow="fold", no_wrap=not folded, min_width=width)
    for line, style in zip(lines, styles, strict=True):
        table.add_row(*(line[i] for i in shown), style=style)
    console = console_for(table)
    console.print(Text(title, "bold"), soft_wrap=True)
    if lines:
        console.print(table)
    return console
