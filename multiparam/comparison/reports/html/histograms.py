"""The page's histograms: the numbers of a parameter in both models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .text import several

BINS_HIGH = 30  # the height that a histogram's counts are scaled to


@dataclass(frozen=True)
class HistogramPlot:
    """A parameter's numbers in both models, drawn over each other in a box ``bins`` wide and ``BINS_HIGH`` high."""

    name: str
    network: str
    what: str
    low: str
    high: str
    bins: int
    reference: str  # the path of the reference's, closed
    candidate: str
    moved: int  # how many numbers lie in another bin
    count: int

    @property
    def summary(self) -> str:
        """In words."""
        if not self.moved:
            return f"{several(self.count, 'number')}, same bins"
        return f"{self.moved} of {several(self.count, 'number')} in another bin"


def sort_histograms(histograms: Sequence[Mapping[str, Any]]) -> tuple[list[HistogramPlot], list[HistogramPlot]]:
    """Those that differ, and the others; each in the model's order."""
    drawn = [_histogram(each) for each in histograms]
    return [each for each in drawn if each.moved], [each for each in drawn if not each.moved]


def _histogram(each: Mapping[str, Any]) -> HistogramPlot:
    references, candidates = each["reference_counts"], each["counts"]
    bins = max(len(references), len(candidates), 1)
    references, candidates = ([*counts, *[0] * (bins - len(counts))] for counts in (references, candidates))
    most = max(*references, *candidates, 1)
    # A number that lies elsewhere is missing in one bin and one too many in another: it counts once.
    more, less = (sum(max(sign * (a - b), 0) for a, b in zip(references, candidates, strict=True)) for sign in (1, -1))
    return HistogramPlot(
        " → ".join(dict.fromkeys((each["reference"], each["parameter"]))),
        each["network"],
        each["what"],
        f"{each['low']:.3g}",
        f"{each['high']:.3g}",
        bins,
        _steps(references, most),
        _steps(candidates, most),
        max(more, less),
        max(sum(references), sum(candidates)),
    )


def _steps(counts: Sequence[int], most: int) -> str:
    """A staircase as an SVG path, from the floor to the floor; no step where a bin is as high as the one before.

    >>> _steps([0, 2, 2, 1], 2)
    'M0,30H1V0H3V15H4V30Z'
    """
    path, before = f"M0,{BINS_HIGH}", 0
    for i, count in enumerate(counts):
        if count != before:
            path += f"H{i}" * (i > 0) + f"V{_height(count, most):g}"
        before = count
    return f"{path}H{len(counts)}V{BINS_HIGH}Z"


def _height(count: int, most: int) -> float:
    """A single number among thousands still shows."""
    return round(BINS_HIGH - max(count / most * BINS_HIGH, 0.6 if count else 0), 2)
