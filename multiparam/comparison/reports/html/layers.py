"""The page's plots of distances, layer by layer. All their geometry is computed here; the template only draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from .text import brief_dtype, several, short, shortened

# Of the plot of layers, in pixels.
TOP, FLOOR = 40, 232  # the axis' ends; above it is the mark of the first layer apart
ROW = 24  # how far 0, and infinity, are from where the logarithmic part ends
LETTER = 6.7  # the advance of a letter of an 11 px monospace font
NAMED, UPRIGHT = 48, 7  # at most so many layers have room for their names below each other, and beside each other
DENSE = 100  # with more layers, points would touch
FEW = 4  # so many plots are all shown


class Scale:
    """Distances to pixels: logarithmic, with a row of its own for 0 below, and for infinity above where there is one.

    >>> scale = Scale([0.0, 0.5, 1024.0, 2e9])
    >>> scale(0.0) > scale(0.5) > scale(1024.0) > scale(2e9)
    True
    >>> [label for _, label in scale.ticks()]
    ['0', '10⁻¹', '10¹', '10³', '10⁵', '10⁷', '10⁹']
    """

    def __init__(self, values: Iterable[float]) -> None:
        measured = list(values)
        logs = [0.0, *(math.log10(value) for value in measured if 0 < value < math.inf)]  # 1 eps is always on it
        self.infinite = any(math.isinf(value) for value in measured)
        self.low = math.floor(min(logs))
        self.high = max(math.ceil(max(logs)), self.low + 1)
        self.bottom = FLOOR - ROW - 6
        self.top = TOP + ROW if self.infinite else TOP

    def __call__(self, value: float) -> float:
        if value == 0:
            return self.bottom + ROW
        if math.isinf(value):
            return self.top - ROW
        return self._at(math.log10(value))

    def _at(self, power: float) -> float:
        part = (power - self.low) / (self.high - self.low)
        return round(self.bottom + part * (self.top - self.bottom), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """At most seven powers of ten, and the rows beside them."""
        step = math.ceil((self.high - self.low) / 6)
        powers = range(self.low, self.high + 1, step)
        ticks = [(self(0.0), "0"), *((self._at(power), _power(power)) for power in powers)]
        return [*ticks, (self(math.inf), "∞")] if self.infinite else ticks


def _power(power: int) -> str:
    """Of ten.

    >>> _power(0), _power(-12)
    ('1', '10⁻¹²')
    """
    return f"10{str(power).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}" if power else "1"


@dataclass(frozen=True)
class Point:
    """A layer: where it is drawn, and what is said of it. A y is None where nothing was compared."""

    number: int
    name: str
    dtype: str
    left: float  # of its band, in percent
    x: float
    inputs: float | None
    output: float | None
    bound: float | None
    beyond: bool  # its bound
    first: bool
    data: Mapping[str, Any]


@dataclass(frozen=True)
class LayerPlot:
    """How far apart a pair is, layer by layer."""

    model: str
    network: str
    points: list[Point]
    ticks: list[tuple[float, str]]
    numbers: list[tuple[float, int]]  # x and number of some layers
    bounds: list[tuple[float, float, float, str]]  # from x to x, at y, the bound
    summary: str

    @property
    def first(self) -> Point | None:
        """The first layer apart."""
        return next((point for point in self.points if point.first), None)

    @property
    def disagrees(self) -> bool:
        """Whether any layer is beyond its bound."""
        return any(point.beyond or point.first for point in self.points)

    @property
    def named(self) -> bool:
        """Whether names of layers have room below the axis, where the page is wide."""
        return len(self.points) <= NAMED

    @property
    def upright(self) -> bool:
        """Whether they have it beside each other."""
        return len(self.points) <= UPRIGHT

    @property
    def dense(self) -> bool:
        """Whether points must be small not to cover each other."""
        return len(self.points) > DENSE

    @property
    def width(self) -> float:
        """Of a layer's band, in percent."""
        return round(100 / len(self.points), 4)

    @property
    def height(self) -> int:
        """With names."""
        if self.upright or not self.named:
            return FLOOR + 24
        return FLOOR + round(14 + LETTER * max(len(shortened(point.name, 18)) for point in self.points))

    def segments(self, what: str) -> Iterator[tuple[float, float, float, float]]:
        """Lines between neighbouring points that both have a distance: of ``output`` or ``inputs``."""
        for a, b in pairwise(self.points):
            start, end = getattr(a, what), getattr(b, what)
            if start is not None and end is not None:
                yield a.x, start, b.x, end


@dataclass(frozen=True)
class LayerPlots:
    """Of all pairs: those to look at, and, where there are many, those in which there is nothing to see."""

    shown: list[LayerPlot]
    folded: list[LayerPlot]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> LayerPlots:
        """Folded are those within the bound, unless they are few."""
        drawn = [plot for pair in document["pairs"] for plot in plots(pair, document["reference"])]
        if len(drawn) <= FEW:
            return cls(drawn, [])
        return cls([plot for plot in drawn if plot.disagrees], [plot for plot in drawn if not plot.disagrees])


def plots(pair: Mapping[str, Any], reference: str) -> Iterator[LayerPlot]:
    """One for each network of the pair whose layers were followed."""
    for network in dict.fromkeys(layer["network"] for layer in pair["layers"]):
        yield _plot(pair["model"], reference, network, [each for each in pair["layers"] if each["network"] == network])


def _plot(model: str, reference: str, network: str, layers: Sequence[Mapping[str, Any]]) -> LayerPlot:
    measures = [_number(layer[key]) for layer in layers for key in ("inputs_eps", "output_eps", "bound_eps")]
    scale = Scale(value for value in measures if value is not None)
    points = [_point(i, len(layers), layer, scale) for i, layer in enumerate(layers)]
    return LayerPlot(
        model, network, points, scale.ticks(), _numbers(points), _bounds(points), _summary(model, reference, points)
    )  # fmt: skip


def _number(eps: float | str | None) -> float | None:
    """A distance as a number: not a number is as far as can be."""
    if eps is None:
        return None
    return math.inf if math.isnan(float(eps)) else float(eps)


def _point(index: int, count: int, layer: Mapping[str, Any], scale: Scale) -> Point:
    inputs, output, bound = (_number(layer[key]) for key in ("inputs_eps", "output_eps", "bound_eps"))
    heights = [None if value is None else scale(value) for value in (inputs, output, bound)]
    beyond = output is not None and bound is not None and output > bound
    left, x = (round(part / count * 100, 3) for part in (index, index + 0.5))
    return Point(
        index + 1, _both(layer), brief_dtype(layer["dtype"]), left, x, heights[0], heights[1], heights[2],
        beyond, bool(layer["first"]), layer,
    )  # fmt: skip


def _both(layer: Mapping[str, Any]) -> str:
    """The layer's name, or both where they differ."""
    names = [layer[key] or "the model" for key in ("reference", "layer")]
    return " → ".join(dict.fromkeys(names))


def _numbers(points: Sequence[Point]) -> list[tuple[float, int]]:
    """The first layer and round numbers, few enough for a telephone."""
    steps = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    step = next(step for step in steps if len(points) / step <= 8)
    return [(point.x, point.number) for point in points if point.number == 1 or point.number % step == 0]


def _bounds(points: Sequence[Point]) -> list[tuple[float, float, float, str]]:
    """A line for each run of layers with one bound; a bound of infinity binds nothing."""
    lines = []
    for y, group in groupby(points, key=lambda point: point.bound):
        run = list(group)
        if y is not None and short(run[0].data["bound_eps"]) != "∞":
            right = round(run[-1].number / len(points) * 100, 3)
            lines.append((run[0].left, right, y, short(run[0].data["bound_eps"])))
    return lines


def _summary(model: str, reference: str, points: Sequence[Point]) -> str:
    """What the plot shows, for those who read instead."""
    what = f"{several(len(points), 'layer')} of {shortened(model)} against {shortened(reference)}"
    first = next((point for point in points if point.first), None)
    if first is not None:
        inputs, output, bound = (short(first.data[key]) for key in ("inputs_eps", "output_eps", "bound_eps"))
        before = f"inputs {inputs} eps, " if inputs else ""
        return (
            f"{what}. First apart at layer {shortened(first.name)}, "
            f"number {first.number} of {len(points)}: {before}output {output} eps, bound {bound}."
        )
    beyond = sum(point.beyond for point in points)
    if beyond:
        return f"{what}, {beyond} beyond the bound."
    outputs = [eps for point in points if (eps := _number(point.data["output_eps"])) is not None]
    worst = f" The largest distance is {short(max(outputs))} eps." if outputs else ""
    return f"{what}, all within the bound.{worst}"
