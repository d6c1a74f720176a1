"""A comparison's document as one HTML page: verdict, hints, checks, layers, histograms, and what was compared where.

The page loads nothing and runs no script, so it can be mailed, archived and printed. Plots are SVG whose x is in
percent and whose y is in pixels: they are as wide as the page, on any screen, and their text keeps its size. All their
geometry is computed here; the template only draws.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template

# Of the plot of layers, in pixels.
TOP, FLOOR = 40, 232  # the axis' ends; above it is the mark of the first layer apart
ROW = 24  # how far 0, and infinity, are from where the logarithmic part ends
LETTER = 6.7  # the advance of a letter of an 11 px monospace font
NAMED, UPRIGHT = 48, 7  # at most so many layers have room for their names below each other, and beside each other
DENSE = 100  # with more layers, points would touch
FEW = 4  # so many plots are all shown
BINS_HIGH = 30  # the height that a histogram's counts are scaled to


def as_html(document: Mapping[str, Any]) -> str:
    """One self-contained page from a comparison's JSON document (see ``schemas/comparison.json``).

    >>> document = {
    ...     "format": "multiparam-comparison-1", "multiparam": "0.1.0", "agrees": False, "reference": "torch",
    ...     "models": {}, "environments": [], "options": {}, "bounds_eps": {"output": 1024},
    ...     "pairs": [{"model": "flax", "agrees": False, "parted": "at layer <b1>: its inputs agree", "hints": [],
    ...                "checks": [], "layers": [], "histograms": []}],
    ... }
    >>> as_html(document).partition("<title>")[2].partition("</title>")[0]
    'They do not agree: flax parts from torch at layer &lt;b1&gt;'
    """
    found = _readable(document)
    return _template().render(
        found=found,
        headline=headline(found),
        lines=[_line(pair, found["reference"]) for pair in found["pairs"]],
        table=Table.of(found),
        plots=Plots.of(found),
        histograms=[(pair["model"], *_sorted(pair["histograms"])) for pair in found["pairs"] if pair["histograms"]],
        environments=list(_environments(found["environments"])),
        options={name: plain(value) for name, value in found["options"].items()},
        bounds=", ".join(f"{name} {short(bound)}" for name, bound in found["bounds_eps"].items()),
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined  # here: a comparison without a page does not need it

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"short": short, "exact": exact, "shortened": shortened}
    return environment.from_string(resources.files(__package__).joinpath("page.html.jinja").read_text("utf-8"))


# Text


def _readable(value: Any) -> Any:
    """A JSON value with all its text, names of keys included, fit to be read on a page."""
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, Mapping):
        return {readable(str(key)): _readable(each) for key, each in value.items()}
    return [_readable(each) for each in value] if isinstance(value, (list, tuple)) else value


def readable(text: str) -> str:
    """Text whose characters all show, and whose direction stays its own.

    A control character, a lone surrogate or a mark that turns what follows around could make one name look like
    another, or spoil the file.

        >>> readable("a" + chr(0x202E) + "b" + chr(0))
        'a\\\\u202eb\\\\u0000'
    """
    hidden = "Cc", "Cf", "Cs", "Zl", "Zp"
    return _isolated(
        "".join(c if c in "\n\t" or unicodedata.category(c) not in hidden else f"\\u{ord(c):04x}" for c in text)
    )


ISOLATE, POP = "\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"


def _isolated(text: str) -> str:
    """Where some of it runs from right to left, between marks that keep this from what is around."""
    turns = any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)
    return f"{ISOLATE}{text}{POP}" if turns else text


def shortened(text: str, most: int = 48) -> str:
    """Without its middle, where that is longer: names differ at their ends.

    >>> shortened("encoder.layers.11.attention.query", 16)
    'encoder.…n.query'
    """
    bare, keep = text.replace(ISOLATE, "").replace(POP, ""), most // 2
    return text if len(bare) <= most else _isolated(f"{bare[:keep]}…{bare[-(most - 1 - keep) :]}")


def short(eps: float | str | None) -> str:
    """A distance in few letters.

    >>> [short(eps) for eps in (None, 0, 3.14159, 0.0000312, 1023.7, 6.03e11, "inf")]
    ['', '0', '3.1', '3.1e-5', '1024', '6e11', '∞']
    """
    if eps is None:
        return ""
    far = float(eps)
    if not math.isfinite(far):
        return "∞"
    text = f"{far:.0f}" if 10 <= far < 1e5 else f"{far:.2g}"
    return re.sub(r"e([+-])0*", lambda found: "e" + found[1].strip("+"), text)


def exact(eps: float | str | None) -> str:
    """A distance in so many letters as one may want to compare.

    >>> [exact(eps) for eps in (1023.71, 6.0312e11, "inf")]
    ['1023.71 eps', '6.0312e+11 eps', 'infinitely far']
    """
    return "" if eps is None else f"{float(eps):.6g} eps" if math.isfinite(float(eps)) else "infinitely far"


def plain(value: Any) -> str:
    """An option as a person would write it.

    >>> [plain(value) for value in ([{"shape": [2, 5], "dtype": "int64"}], None, True, 0.01, ["a", "b"], {"a": 1})]
    ['(2, 5) of int64', 'none', 'yes', '0.01', 'a, b', '{"a": 1}']
    """
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(map(plain, value)) or "none"
    if isinstance(value, dict) and value.keys() == {"shape", "dtype"} and isinstance(value["shape"], list):
        return f"({', '.join(map(str, value['shape']))}) of {value['dtype']}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _and(words: Sequence[str], most: int = 3) -> str:
    """Words in a row, not too many.

    >>> _and(["a", "b"]), _and(list("abcde"))
    ('a and b', 'a, b, c and 2 more')
    """
    shown = [*words[:most], f"{len(words) - most} more"] if len(words) > most else list(words)
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def _several(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


# The verdict


@dataclass(frozen=True)
class Line:
    """What there is to say of one pair: in one sentence, and in another."""

    agrees: bool
    says: str
    more: str


def headline(found: Mapping[str, Any]) -> str:
    """The verdict, in one sentence."""
    apart = [pair for pair in found["pairs"] if not pair["agrees"]]
    if found["agrees"]:
        return "They agree"
    if len(apart) == 1:
        return f"They do not agree: {_clause(apart[0], found['reference'])}"
    names = _and([shortened(pair["model"]) for pair in apart])
    return f"They do not agree: {names} differ from {shortened(found['reference'])}" if apart else "They do not agree"


def _clause(pair: Mapping[str, Any], reference: str) -> str:
    model, other = shortened(pair["model"]), _against(pair, reference)
    if pair["parted"]:
        where = re.sub(r"\S{49,}", lambda name: shortened(name[0]), _parted(pair)[0])
        return f"{model} parts from {other} {shortened(where, 160)}"
    wrong = [check for check in pair["checks"] if not check["agrees"]]
    what = dict.fromkeys(check["network"] or check["check"] for check in wrong)
    return f"{model} differs from {other}" + (f" in {_and(list(what))}" if what else "")


def _against(pair: Mapping[str, Any], reference: str) -> str:
    return "its own reference run" if pair["model"] == reference else shortened(reference)


def _parted(pair: Mapping[str, Any]) -> tuple[str, str]:
    """Where, and what is there."""
    where, *rest = re.split(r": (?=its inputs)|, (?=whose )", pair["parted"], maxsplit=1)
    return where, rest[0] if rest else ""


def _line(pair: Mapping[str, Any], reference: str) -> Line:
    checks = pair["checks"]
    wrong = [check for check in checks if not check["agrees"]]
    expected = sum(bool(check["expected"]) for check in checks)
    if pair["agrees"]:
        but = f"; {_several(expected, 'difference')} {'is' if expected == 1 else 'are'} expected" * bool(expected)
        says = f"{shortened(pair['model'])} agrees with {_against(pair, reference)}"
        return Line(True, says, f"{_several(len(checks), 'check')} {'holds' if len(checks) == 1 else 'hold'}{but}.")
    there = _parted(pair)[1]
    named = [" ".join(filter(None, (check["network"], check["check"], _brief(check["dtype"])))) for check in wrong]
    failing = f"{len(wrong)} of {_several(len(checks), 'check')} fail{'s' * (len(wrong) == 1)}: {_and(named, 5)}."
    more = " ".join(filter(None, (there and f"{there[0].upper()}{there[1:]}.", failing * bool(wrong))))
    return Line(False, _clause(pair, reference), more)


def _brief(dtype: str) -> str:
    return dtype.replace("float", "f")


# The table of checks


@dataclass(frozen=True)
class Mark:
    """One check in its cell."""

    state: str  # agrees, apart or expected
    eps: float | str | None
    note: int = 0  # the number of the reason why a difference is expected


@dataclass
class Row:
    """One check of all models; where one has it twice, both are shown."""

    check: str
    dtype: str
    cells: dict[str, list[Mark]]
    bounds: list[str] = field(default_factory=list)
    details: list[tuple[str, str, str]] = field(default_factory=list)  # model, state, text

    @property
    def agrees(self) -> bool:
        """Whether all models do."""
        return all(mark.state != "apart" for marks in self.cells.values() for mark in marks)


@dataclass
class Table:
    """Rows by network, and the reasons that they refer to."""

    models: list[str]
    networks: dict[str, list[Row]]
    reasons: list[str]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Table:
        """A column for each model that has a check: the reference too, where it was held against itself."""
        models = [pair["model"] for pair in found["pairs"]]
        checks = [(pair["model"], check) for pair in found["pairs"] for check in pair["checks"]]
        reasons = list(dict.fromkeys(check["expected"] for _, check in checks if check["expected"]))
        rows = {key: Row(key[1], _brief(key[2]), {name: [] for name in models}) for key in _keys(found["pairs"])}
        for model, check in checks:
            row = rows[_key(check)]
            row.cells[model].append(_mark(check, reasons))
            bound = short(check["bound_eps"])
            row.bounds += [bound] * (bool(bound) and bound not in row.bounds)
            if check["detail"]:
                row.details.append((model, row.cells[model][-1].state, check["detail"]))
        networks = list(dict.fromkeys(key[0] for key in rows))
        return cls(models, {name: [rows[key] for key in rows if key[0] == name] for name in networks}, reasons)


def _key(check: Mapping[str, Any]) -> tuple[str, str, str]:
    return check["network"], check["check"], check["dtype"]


def _keys(pairs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """As they were made, and what only a later model has where that has it. A check's dtypes are next to each other,
    float64 first: that is where models must agree."""
    order: list[tuple[str, str]] = []
    for pair in pairs:
        at = 0
        for network, what in (_key(check)[:2] for check in pair["checks"]):
            if (network, what) not in order:
                order.insert(at, (network, what))
            at = order.index((network, what)) + 1
    keys = {_key(check) for pair in pairs for check in pair["checks"]}
    return sorted(keys, key=lambda key: (order.index(key[:2]), key[2] != "float64", key[2]))


def _mark(check: Mapping[str, Any], reasons: Sequence[str]) -> Mark:
    if not check["agrees"]:
        return Mark("apart", check["distance_eps"])
    if check["expected"]:
        return Mark("expected", check["distance_eps"], reasons.index(check["expected"]) + 1)
    return Mark("agrees", check["distance_eps"])


# The plot of layers


class Scale:
    """Distances to pixels: logarithmic, with a row of its own for 0 below, and for infinity above where there is one.

    >>> scale = Scale([0.0, 0.5, 1024.0, 2e9])
    >>> scale(0.0) > scale(0.5) > scale(1024.0) > scale(2e9)
    True
    >>> [label for _, label in scale.ticks()]
    ['0', '10⁻¹', '10¹', '10³', '10⁵', '10⁷', '10⁹']
    """

    def __init__(self, values: Iterable[float]) -> None:
        given = list(values)
        logs = [0.0, *(math.log10(value) for value in given if 0 < value < math.inf)]  # 1 eps is always on it
        self.infinite = any(math.isinf(value) for value in given)
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
    apart: bool
    first: bool
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Plot:
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
    def apart(self) -> bool:
        """Whether any layer is."""
        return any(point.apart or point.first for point in self.points)

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
class Plots:
    """Of all pairs: those to look at, and, where there are many, those in which there is nothing to see."""

    shown: list[Plot]
    folded: list[Plot]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Plots:
        """Folded are those within the bound, unless they are few."""
        drawn = [plot for pair in found["pairs"] for plot in plots(pair, found["reference"])]
        if len(drawn) <= FEW:
            return cls(drawn, [])
        return cls([plot for plot in drawn if plot.apart], [plot for plot in drawn if not plot.apart])


def plots(pair: Mapping[str, Any], reference: str) -> Iterator[Plot]:
    """One for each network of the pair whose layers were followed."""
    for network in dict.fromkeys(layer["network"] for layer in pair["layers"]):
        yield _plot(pair["model"], reference, network, [each for each in pair["layers"] if each["network"] == network])


def _plot(model: str, reference: str, network: str, layers: Sequence[Mapping[str, Any]]) -> Plot:
    measures = [_number(layer[key]) for layer in layers for key in ("inputs_eps", "output_eps", "bound_eps")]
    scale = Scale(value for value in measures if value is not None)
    points = [_point(i, len(layers), layer, scale) for i, layer in enumerate(layers)]
    return Plot(
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
    apart = output is not None and bound is not None and output > bound
    left, x = (round(part / count * 100, 3) for part in (index, index + 0.5))
    return Point(
        index + 1, _both(layer), _brief(layer["dtype"]), left, x, heights[0], heights[1], heights[2],
        apart, bool(layer["first"]), layer,
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
    what = f"{_several(len(points), 'layer')} of {shortened(model)} against {shortened(reference)}"
    first = next((point for point in points if point.first), None)
    if first is not None:
        inputs, output, bound = (short(first.data[key]) for key in ("inputs_eps", "output_eps", "bound_eps"))
        before = f"inputs {inputs} eps, " if inputs else ""
        return (
            f"{what}. First apart at layer {shortened(first.name)}, "
            f"number {first.number} of {len(points)}: {before}output {output} eps, bound {bound}."
        )
    apart = sum(point.apart for point in points)
    if apart:
        return f"{what}, {apart} beyond the bound."
    outputs = [far for point in points if (far := _number(point.data["output_eps"])) is not None]
    worst = f" The largest distance is {short(max(outputs))} eps." if outputs else ""
    return f"{what}, all within the bound.{worst}"


# Histograms


@dataclass(frozen=True)
class Histogram:
    """A parameter's numbers in both models, drawn over each other in a box ``bins`` wide and ``BINS_HIGH`` high."""

    name: str
    network: str
    what: str
    low: str
    high: str
    bins: int
    reference: str  # the path of the reference's, closed
    other: str
    moved: int  # how many numbers lie in another bin
    count: int

    @property
    def summary(self) -> str:
        """In words."""
        if not self.moved:
            return f"{_several(self.count, 'number')}, same bins"
        return f"{self.moved} of {_several(self.count, 'number')} in another bin"


def _sorted(histograms: Sequence[Mapping[str, Any]]) -> tuple[list[Histogram], list[Histogram]]:
    """Those that differ, and the others; each in the model's order."""
    drawn = [_histogram(each) for each in histograms]
    return [each for each in drawn if each.moved], [each for each in drawn if not each.moved]


def _histogram(each: Mapping[str, Any]) -> Histogram:
    mine, theirs = each["reference_counts"], each["counts"]
    bins = max(len(mine), len(theirs), 1)
    mine, theirs = ([*counts, *[0] * (bins - len(counts))] for counts in (mine, theirs))
    most = max(*mine, *theirs, 1)
    # A number that lies elsewhere is missing in one bin and one too many in another: it counts once.
    more, less = (sum(max(sign * (a - b), 0) for a, b in zip(mine, theirs, strict=True)) for sign in (1, -1))
    return Histogram(
        " → ".join(dict.fromkeys((each["reference"], each["parameter"]))),
        each["network"],
        each["what"],
        f"{each['low']:.3g}",
        f"{each['high']:.3g}",
        bins,
        _steps(mine, most),
        _steps(theirs, most),
        max(more, less),
        max(sum(mine), sum(theirs)),
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


# What was compared, and where


def _environments(environments: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str], bool]]:
    """Rows: what, its version in each environment, and whether they are the same."""
    packages = sorted({name for each in environments for name in each["packages"]}, key=str.lower)
    for what in ("python", "platform"):
        yield _versions(what, [each[what] for each in environments])
    for name in packages:
        yield _versions(name, [each["packages"].get(name, "") for each in environments])


def _versions(what: str, versions: list[str]) -> tuple[str, list[str], bool]:
    return what, versions, len(set(versions)) <= 1
