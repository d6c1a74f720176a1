"""The values of a model or a weight file as a picture: a histogram for each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from .. import paths
from ..errors import InvalidArgument, PackageMissing
from .atomic import atomic_path
from .summary import Listing, Row, stats, wide_chunks

PANELS = 64  # of a picture, at most
BINS = 60  # of a histogram, at most


def groups(rows: Iterable[Row], limit: int = PANELS) -> dict[str, list[Row]]:
    """The rows by layer, or by the block of layers that is small enough to leave no more than so many groups."""
    rows = list(rows)
    parts = {row.name: paths.segments(row.name)[:-1] for row in rows}
    depth = max(map(len, parts.values()), default=0)
    while True:
        by_layer: dict[str, list[Row]] = {}
        for row in rows:
            by_layer.setdefault(".".join(parts[row.name][:depth]), []).append(row)
        if len(by_layer) <= limit or depth == 0:
            return by_layer
        depth -= 1


def plot(listing: Listing, file: Path, tick: Callable[[str], None] = lambda name: None) -> None:
    """A histogram for each group of parameters, in a file whose suffix says the format.

    Values are read twice, for their range and their numbers, one array at a time. Raises PackageMissing without
    matplotlib, and InvalidArgument for a format it does not write, or where there is nothing to draw.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise PackageMissing('Drawing needs matplotlib. Try: pip install "multiparam[plot]"') from None

    formats = sorted(FigureCanvasAgg.get_supported_filetypes())
    if file.suffix[1:].lower() not in formats:
        raise InvalidArgument(f"No picture ends in {file.suffix!r}. There are: {', '.join(formats)}.")
    drawn = [row for row in listing.rows if row.count and row.dtype.startswith(("float", "bfloat"))]
    if not drawn:
        raise InvalidArgument("There is nothing to draw: no array of floating numbers.")
    panels = groups(drawn)
    across = min(4, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(3.2 * across, 2.4 * down + 0.4), layout="constrained")
    figure.suptitle(listing.title)
    for i, (name, rows) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(down, across, i)
        axes.set_title(name or "(top)", fontsize=9)
        for leaf, (edges, heights) in histograms(rows, tick).items():
            axes.stairs(heights, edges, label=leaf, fill=True, alpha=0.5)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
        axes.legend(fontsize=7, frameon=False)
    with atomic_path(file) as path:
        figure.savefig(path)


def histograms(
    rows: Iterable[Row], tick: Callable[[str], None] = lambda name: None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Leaf name -> edges and heights, in shares of the highest, for the finite values of a group's arrays called so."""
    leaves: dict[str, list[Row]] = {}
    for row in rows:
        leaves.setdefault(paths.segments(row.name)[-1], []).append(row)
    curves = {}
    for leaf, same in leaves.items():
        spans = [(s.min, s.max) for row in same if (s := row.stats or stats(row.read())).min is not None]
        if not spans:
            continue
        low, high = min(a for a, _ in spans if a is not None), max(b for _, b in spans if b is not None)
        low, high = (low, high) if high > low else (low - max(abs(low), 1) / 2, high + max(abs(low), 1) / 2)
        bins = min(BINS, max(8, math.isqrt(sum(row.count for row in same))))
        edges, counts = np.linspace(low, high, bins + 1), np.zeros(bins)
        for row in same:
            for chunk in wide_chunks(row.read()):
                counts += np.histogram(chunk, edges)[0]  # NaN and infinities are in no bin
            tick(row.name)
        curves[leaf] = edges, counts / counts.max()
    return curves
