"""``multiparam inspect``, and how a command opens a model or a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional, TextIO

import typer
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from .. import paths
from ..comparison.reports.console import console_for
from ..core.model import Model
from ..core.state import Source
from ..errors import FileError
from ..weights import histograms, summary
from ..weights.formats import read
from ..weights.summary import Listing, Row
from . import references
from .terminal import exit_on_error, print_table, progress, quiet, warnings_as_sentences

COLOURS = {"trainable": "green", "frozen": "cyan", "buffer": "dim"}


class Format(StrEnum):
    text = "text"
    json = "json"
    markdown = "markdown"


def inspect(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_FILE",
            help="A weight file, or a model: package.module:callable or path/to/file.py:callable, which is run.",
        ),
    ],
    select: Annotated[Optional[list[str]], typer.Option(help="Only names that fit this glob. Repeatable.")] = None,
    kind: Annotated[Optional[str], typer.Option(help="Only layers of this kind, such as linear; a glob.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Norm, min, max, mean, and how many are NaN or inf.")] = False,
    tree: Annotated[bool, typer.Option("--tree", help="As a tree of layers.")] = False,
    format: Annotated[Format, typer.Option(help="How the table is written.")] = Format.text,
    plot: Annotated[Optional[Path], typer.Option(help="Draw a histogram for each layer into this file.")] = None,
    inputs: Annotated[Optional[Path], typer.Option(help="An npz file of example inputs, to infer shapes from.")] = None,
) -> None:
    """Show what a model or a weight file holds: names, kinds, shapes, dtypes, ties, and what is trained.

    A file runs no code. A callable takes no arguments and gives a native model, an mp.Model, or a tuple of a model and
    its example inputs.
    """
    if tree and format is not Format.text:
        raise typer.BadParameter("a tree is text; leave one of the two out", param_hint="--tree")
    if plot is not None:
        check_folder(plot, "--plot")
    if inputs is not None and not references.is_reference(source):
        raise typer.BadParameter("a file has its shapes already", param_hint="--inputs")
    with exit_on_error(), warnings_as_sentences():
        with opened(source, inputs) as (thing, stderr):
            found = summary.of_model(thing) if isinstance(thing, Model) else summary.of_file(thing, source)
            found = summary.select(found, select or (), kind)
            if stats:
                with progress("reading", len(found.rows), stderr) as tick:
                    rows = [_ticked(summary.with_stats, row, tick) for row in found.rows]
                found = Listing(found.title, rows, found.whole, found.notes)
            if plot is not None:
                with progress("drawing", None, stderr) as tick:
                    histograms.plot(found, plot, tick)
        _show(found, tree, format)


def _ticked(function: Callable[[Row], Row], row: Row, tick: Callable[[str], None]) -> Row:
    done = function(row)
    tick(row.name)
    return done


@contextmanager
def opened(source: str, inputs: Path | None = None) -> Iterator[tuple[Model | Source, TextIO]]:
    """The model or the file, with the frameworks quiet; what user code prints goes to standard error."""
    with quiet() as stderr:
        if references.is_reference(source):
            yield model_of(source, stderr, inputs), stderr
        else:
            with file_of(source) as found:
                yield found, stderr


def model_of(reference: str, stderr: TextIO, inputs: Path | None = None) -> Model:
    given = () if inputs is None else references.examples(inputs)
    with redirect_stdout(stderr):
        return references.model(reference, given)


def file_of(source: str) -> Source:
    path = Path(source)
    if path.suffix == ".py":
        raise FileError(f"{source!r} is code: say which callable in it gives the model, as in {source}:make.")
    try:
        return read(path)
    except FileNotFoundError as error:
        forms = "" if path.suffix else f" {references.FORMS}"
        raise FileError(f"There is no file {str(error.filename or source)!r}.{forms}") from None


def check_folder(path: Path, option: str) -> None:
    if not path.parent.is_dir():
        raise typer.BadParameter(
            f"there is no folder {str(path.parent)!r} to write {path.name!r} into", param_hint=option
        )


# -- what inspect shows


def _show(found: Listing, tree: bool, format: Format) -> None:
    if format is Format.json:
        typer.echo(summary.listing_as_json(found))
    elif format is Format.markdown:
        typer.echo(summary.listing_as_markdown(found))
    else:
        console = _print_tree(found) if tree else _print_table(found)
        console.print(summary.summary(found), style="bold", highlight=False, soft_wrap=True)
        for note in found.notes:
            console.print(note, style="dim", highlight=False, soft_wrap=True)


def _print_table(found: Listing) -> Console:
    titles, lines = summary.cells(found)
    texts = [
        [Text(cell, _colour(title, cell)) for title, cell in zip(titles, line, strict=True)]
        for row, line in zip(found.rows, lines, strict=True)
    ]
    styles = ["dim" if row.state == "buffer" else "" for row in found.rows]
    return print_table(found.title, titles, texts, styles, words=summary.LEFT)


def _colour(title: str, cell: str) -> str:
    if title in ("NaN", "inf"):
        return "dim" if cell in ("", "0") else "bold red"
    return COLOURS.get(cell, "") if title == "state" else ""


def _print_tree(found: Listing) -> Console:
    """Layers as branches, with their kind and how many numbers they hold; the other names of a tie point to it."""
    root = Tree(Text(found.title, "bold"), guide_style="dim")
    leaves = [(name, row) for row in found.rows for name in row.names]
    counts: dict[tuple[str, ...], int] = {}
    for row in found.rows:
        path = _path(row.name)
        for depth in range(len(path)):
            counts[path[:depth]] = counts.get(path[:depth], 0) + row.count
    branches: dict[tuple[str, ...], Tree] = {(): root}
    titles, lines = summary.cells(found)
    shown = {line[0]: dict(zip(titles, line, strict=True)) for line in lines}
    for name, row in leaves:
        path = _path(name)
        for depth in range(1, len(path)):
            if path[:depth] not in branches:
                label = Text(path[depth - 1], "bold")
                last = depth == len(path) - 1
                label.append(f"  {row.kind}" if last and row.kind else "", "blue")
                label.append(f"  {counts.get(path[:depth], 0):,}" if path[:depth] in counts else "", "dim")
                branches[path[:depth]] = branches[path[: depth - 1]].add(label)
        branches[path[:-1]].add(_leaf(path[-1], name, row, shown[row.name]))
    console = console_for(root)
    console.print(root)
    return console


def _leaf(text: str, name: str, row: Row, cells: dict[str, str]) -> Text:
    if name != row.name:
        return Text(f"{text}  = {row.name}{', transposed' if name in row.transposed else ''}", "yellow")
    label = Text(f"{text}  {cells['shape']}  {row.dtype}")
    label.append(f"  {row.state}" if row.state else "", COLOURS.get(row.state, ""))
    for title in ("norm", "min", "max", "mean"):
        label.append(f"  {title} {cells[title]}" if cells.get(title) else "", "dim")
    for title in ("NaN", "inf"):
        label.append(f"  {cells[title]} {title}" if cells.get(title, "0") not in ("", "0") else "", "bold red")
    return label


def _path(name: str) -> tuple[str, ...]:
    return tuple(paths.segments(name))
