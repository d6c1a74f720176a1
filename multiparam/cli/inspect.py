"""``multiparam inspect``: what a model or a weight file holds, as a table, a tree, JSON or markdown."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from .. import paths
from ..comparison.reports.console import console_for
from ..core.model import Model
from ..weights import histograms, summary
from ..weights.summary import Listing, Row
from . import references
from .opening import check_folder, open_source
from .options import Keywords
from .terminal import exit_on_error, print_table, progress, warnings_as_sentences

COLOURS = {"trainable": "green", "frozen": "cyan", "buffer": "dim"}
SOURCE = "A weight file, or a model: package.module:callable or path/to/file.py:callable, which is run."
STATS = "Norm, min, max, mean, and how many are NaN or inf."


class Format(StrEnum):
    """How the listing is written; the values are those of ``--format``."""

    text = "text"
    json = "json"
    markdown = "markdown"


SourceName = Annotated[str, typer.Argument(metavar="MODEL_OR_FILE", help=SOURCE)]
Globs = Annotated[list[str] | None, typer.Option(help="Only names that fit this glob. Repeatable.")]
KindGlob = Annotated[str | None, typer.Option(help="Only layers of this kind, such as linear; a glob.")]
WithStats = Annotated[bool, typer.Option("--stats", help=STATS)]
AsTree = Annotated[bool, typer.Option("--tree", help="As a tree of layers.")]
FormatName = Annotated[Format, typer.Option(help="How the table is written.")]
Picture = Annotated[Path | None, typer.Option(help="Draw a histogram for each layer into this file.")]
ExampleInputs = Annotated[Path | None, typer.Option(help="An npz file of example inputs, to infer shapes from.")]


def inspect_command(
    source: SourceName,
    select: Globs = None,
    kind: KindGlob = None,
    stats: WithStats = False,
    tree: AsTree = False,
    format: FormatName = Format.text,
    plot: Picture = None,
    inputs: ExampleInputs = None,
    keywords: Keywords = False,
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
    if keywords and inputs is None:
        raise typer.BadParameter("there are no inputs: name their file with --inputs", param_hint="--keywords")
    with exit_on_error(), warnings_as_sentences():
        with open_source(source, inputs, keywords) as (model_or_file, stderr):
            if isinstance(model_or_file, Model):
                listing = summary.of_model(model_or_file)
            else:
                listing = summary.of_file(model_or_file, source)
            listing = summary.select(listing, select or (), kind)
            if stats:
                with progress("reading", len(listing.rows), stderr) as tick:
                    listing = _with_stats(listing, tick)
            if plot is not None:
                with progress("drawing", None, stderr) as tick:
                    histograms.plot(listing, plot, tick)
        _print_listing(listing, tree, format)


def _with_stats(listing: Listing, tick: Callable[[str], None]) -> Listing:
    rows = []
    for row in listing.rows:
        rows.append(summary.with_stats(row))
        tick(row.name)
    return Listing(listing.title, rows, listing.whole, listing.notes)


# -- on the terminal


def _print_listing(listing: Listing, tree: bool, format: Format) -> None:
    if format is Format.json:
        typer.echo(summary.listing_as_json(listing))
    elif format is Format.markdown:
        typer.echo(summary.listing_as_markdown(listing))
    else:
        console = _print_tree(listing) if tree else _print_table(listing)
        console.print(summary.summary(listing), style="bold", highlight=False, soft_wrap=True)
        for note in listing.notes:
            console.print(note, style="dim", highlight=False, soft_wrap=True)


def _print_table(listing: Listing) -> Console:
    titles, lines = summary.cells(listing)
    texts = [[Text(cell, _colour(title, cell)) for title, cell in zip(titles, line, strict=True)] for line in lines]
    styles = ["dim" if row.state == "buffer" else "" for row in listing.rows]
    return print_table(listing.title, titles, texts, styles, words=summary.LEFT)


def _colour(title: str, cell: str) -> str:
    if title in ("NaN", "inf"):
        return "dim" if cell in ("", "0") else "bold red"
    return COLOURS.get(cell, "") if title == "state" else ""


def _print_tree(listing: Listing) -> Console:
    """Layers as branches, with their kind and how many numbers they hold; the other names of a tie point to it."""
    root = Tree(Text(listing.title, "bold"), guide_style="dim")
    branches: dict[tuple[str, ...], Tree] = {(): root}
    counts = _counts(listing)
    titles, lines = summary.cells(listing)
    cells = {line[0]: dict(zip(titles, line, strict=True)) for line in lines}  # by the name, which is the first
    for row in listing.rows:
        for name in row.names:
            *layers, leaf = path = _path(name)
            for depth in range(1, len(path)):
                layer = path[:depth]
                if layer not in branches:
                    kind = row.kind if depth == len(layers) else ""
                    branches[layer] = branches[layer[:-1]].add(_branch_label(layer[-1], kind, counts.get(layer)))
            branches[path[:-1]].add(_leaf_label(leaf, name, row, cells[row.name]))
    console = console_for(root)
    console.print(root)
    return console


def _counts(listing: Listing) -> dict[tuple[str, ...], int]:
    """How many numbers each layer holds, with the layers in it; those of a tie count where its first name is."""
    counts: dict[tuple[str, ...], int] = {}
    for row in listing.rows:
        path = _path(row.name)
        for depth in range(len(path)):
            counts[path[:depth]] = counts.get(path[:depth], 0) + row.count
    return counts


def _branch_label(name: str, kind: str, count: int | None) -> Text:
    label = Text(name, "bold")
    label.append(f"  {kind}" if kind else "", "blue")
    label.append("" if count is None else f"  {count:,}", "dim")
    return label


def _leaf_label(leaf: str, name: str, row: Row, cells: dict[str, str]) -> Text:
    if name != row.name:
        return Text(f"{leaf}  = {row.name}{', transposed' if name in row.transposed else ''}", "yellow")
    label = Text(f"{leaf}  {cells['shape']}  {row.dtype}")
    label.append(f"  {row.state}" if row.state else "", COLOURS.get(row.state, ""))
    for title in ("norm", "min", "max", "mean"):
        label.append(f"  {title} {cells[title]}" if cells.get(title) else "", "dim")
    for title in ("NaN", "inf"):
        label.append(f"  {cells[title]} {title}" if cells.get(title, "0") not in ("", "0") else "", "bold red")
    return label


def _path(name: str) -> tuple[str, ...]:
    return tuple(paths.segments(name))
