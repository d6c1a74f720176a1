"""What a model or a weight file holds: a row for each array, totals, statistics; as JSON and markdown."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import paths
from ..core.group import named_parameters, store_of
from ..core.model import Model
from ..core.state import Source
from ..core.summaries import bytes_of, size
from ..errors import InvalidArgument, ParameterNotFound
from .metadata import file_metadata

CHUNK = 1 << 20  # elements that are looked at together: float64 copies stay small


@dataclass(frozen=True)
class Stats:
    """Of the finite numbers; those that are not are counted. None where there are none, or they have no order."""

    norm: float
    min: float | None
    max: float | None
    mean: float | None
    nan: int
    inf: int


@dataclass(frozen=True)
class Row:
    """One array. ``kind`` and ``state`` ("trainable", "frozen" or "buffer") are empty where a file does not say them.
    ``aliases``: its other names; ``transposed``: those of them that show its transpose."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    state: str
    aliases: tuple[str, ...]
    transposed: tuple[str, ...]
    read: Callable[[], np.ndarray]
    stats: Stats | None = None

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * bytes_of(self.dtype)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def alias_texts(self) -> list[str]:
        return [f"{name} (transposed)" if name in self.transposed else name for name in self.aliases]


@dataclass(frozen=True)
class Listing:
    """All rows of a model or a file, or those selected of ``whole``."""

    title: str
    rows: list[Row]
    whole: int
    notes: tuple[str, ...] = ()

    @property
    def states_known(self) -> bool:
        """Whether it is known what is trained."""
        return all(row.state for row in self.rows)

    def totals(self) -> dict[str, int]:
        """Numbers in all; where states are not known, all counts as parameters."""
        parameters = [row for row in self.rows if row.state != "buffer"]
        counts = {"parameters": sum(row.count for row in parameters)}
        if self.states_known:
            counts["trainable"] = sum(row.count for row in parameters if row.state == "trainable")
            counts["frozen"] = sum(row.count for row in parameters if row.state == "frozen")
            counts["buffers"] = sum(row.count for row in self.rows if row.state == "buffer")
        return {**counts, "bytes": sum(row.bytes for row in self.rows)}


# -- what there is


def of_model(net: Model) -> Listing:
    """The parameters and buffers of a model, each once, in definition order."""
    by_name = named_parameters(net)
    order = {name: i for i, name in enumerate(store_of(net).table.names)}
    parameters = sorted({**net.parameters(), **net.buffers()}.items(), key=lambda item: order[item[0]])
    rows = []
    for name, p in parameters:
        state = "buffer" if p.buffer else "trainable" if p.trainable else "frozen"
        aliases = tuple(each for each in p.names if each != name)
        transposed = tuple(each for each in aliases if by_name[each] is not by_name[name])
        rows.append(Row(name, p.kind, p.shape, p.dtype, state, aliases, transposed, p.numpy))
    return Listing(f"{net.backend} {type(net.native).__name__}", rows, len(rows))


def of_file(source: Source, title: str) -> Listing:
    """The arrays of a file, with what it says of them: in the order of the model it was written from, if it does."""
    metadata = file_metadata(source)
    order = {name: i for i, name in enumerate(metadata.parameters)}
    names = sorted(source, key=lambda name: order.get(name, len(order))) if order else _natural(source)
    rows = []
    for name in names:
        entry = metadata.parameters.get(name, {})
        shape, dtype = source.spec(name)
        state = _stored_state(entry) if entry else ""
        aliases, transposed = tuple(entry.get("aliases", ())), tuple(entry.get("transposed", ()))
        kind = str(entry.get("kind", ""))
        rows.append(Row(name, kind, shape, dtype, state, aliases, transposed, _reader(source, name)))
    listing = Listing(title, rows, len(rows))
    note = "The file does not say kinds of layers, ties, or what is trained; one saved by mp.save from a model does."
    return listing if listing.states_known else replace(listing, notes=(note,))


def _stored_state(entry: Mapping[str, Any]) -> str:
    """The state that a file's document says of a parameter."""
    return "buffer" if entry.get("buffer") else "trainable" if entry.get("trainable") else "frozen"


def _reader(source: Source, name: str) -> Callable[[], np.ndarray]:
    return lambda: source[name]


def _natural(source: Source) -> list[str]:
    """Alphabetical names with their numbers in order, ``h.2`` before ``h.10``; any other order as it is."""
    names = list(source)
    if names != sorted(names):
        return names
    return sorted(names, key=lambda name: [(part.isdigit(), int(part) if part.isdigit() else part) for part in
                                           re.split(r"([0-9]+)", name)])  # fmt: skip


def select(listing: Listing, globs: Iterable[str], kind: str | None) -> Listing:
    """The rows of which a name fits one of the globs, and the kind fits too. Raises ParameterNotFound for none."""
    patterns = list(globs)
    if kind and not any(row.kind for row in listing.rows):
        raise InvalidArgument("The file does not say the kinds of its layers. Select by name.")
    rows = [
        row
        for row in listing.rows
        if (not patterns or any(paths.matches(name, pattern) for name in row.names for pattern in patterns))
        and (not kind or paths.matches(row.kind, kind))
    ]
    if not rows:
        names = [name for row in listing.rows for name in row.names]
        kinds = sorted({row.kind for row in listing.rows})
        hint = paths.did_you_mean(patterns[0], names) if patterns else paths.did_you_mean(str(kind), kinds)
        wanted = " or ".join(map(repr, patterns)) or "any name"
        raise ParameterNotFound(f"Nothing matches {wanted}{f' of kind {kind!r}' if kind else ''}. {hint}")
    return Listing(listing.title, rows, listing.whole, listing.notes)


# -- statistics


def with_stats(row: Row) -> Row:
    """The row with the statistics of its values, which are read here and let go."""
    return replace(row, stats=stats(row.read()))


def stats(array: np.ndarray) -> Stats:
    """Norm, extremes, mean, and how many numbers are NaN or infinite.

    >>> stats(np.array([3.0, -4.0, np.nan]))
    Stats(norm=5.0, min=-4.0, max=3.0, mean=-0.5, nan=1, inf=0)
    """
    ordered = array.dtype.kind != "c"
    norms, total, finite, nan, inf = [0.0], 0.0, 0, 0, 0
    least, most = math.inf, -math.inf
    for chunk in wide_chunks(array):
        numbers = chunk[np.isfinite(chunk)]
        nans = int(np.isnan(chunk).sum())
        nan, inf = nan + nans, inf + chunk.size - numbers.size - nans
        if numbers.size:
            norms.append(_norm(numbers))
            finite += numbers.size
            if ordered:
                total += float(numbers.sum())
                least, most = min(least, float(numbers.min())), max(most, float(numbers.max()))
    if not ordered or not finite:
        return Stats(math.hypot(*norms), None, None, None, nan, inf)
    return Stats(math.hypot(*norms), least, most, total / finite, nan, inf)


def wide_chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers in float64, or complex128, some at a time."""
    flat = array.reshape(-1)
    wide = np.complex128 if array.dtype.kind == "c" else np.float64
    for start in range(0, flat.size, CHUNK):
        yield flat[start : start + CHUNK].astype(wide)


def _norm(chunk: np.ndarray) -> float:
    """The root of the sum of squares, which may be too large, or too small, for a float64 itself."""
    sizes = np.abs(chunk)
    largest = float(sizes.max())
    return largest * math.sqrt(float(np.square(sizes / largest).sum())) if largest else 0.0


# -- as text


def listing_as_json(listing: Listing) -> str:
    """The listing as JSON; numbers that JSON has no word for as texts."""
    rows = []
    for row in listing.rows:
        entry: dict[str, Any] = {
            "name": row.name,
            "aliases": list(row.aliases),
            "transposed": list(row.transposed),
            "kind": row.kind or None,
            "shape": list(row.shape),
            "dtype": row.dtype,
            "count": row.count,
            "bytes": row.bytes,
            "state": row.state or None,
        }
        if row.stats is not None:
            entry["stats"] = {key: _finite(value) for key, value in vars(row.stats).items()}
        rows.append(entry)
    content = {
        "format": "multiparam-inspect-1",
        "source": listing.title,
        "parameters": rows,
        "totals": listing.totals(),
    }
    return json.dumps(content, indent=1, ensure_ascii=False)


def _finite(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def listing_as_markdown(listing: Listing) -> str:
    """The listing as a markdown table and a line of totals."""
    titles, lines = cells(listing)
    right = {title for title in titles if title not in LEFT}
    names = [[f"`{cell}`" if i == 0 else cell for i, cell in enumerate(line)] for line in lines]
    table = [titles, ["---:" if title in right else "---" for title in titles], *names]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table)
    return f"`{listing.title}`\n\n{body}\n\n{summary(listing)}"


LEFT = ("name", "kind", "shape", "dtype", "state", "also called")  # columns of words; the others are numbers


def cells(listing: Listing) -> tuple[list[str], list[list[str]]]:
    """Titles and lines of the table; columns that would be empty are left out."""
    columns: dict[str, Callable[[Row], str]] = {
        "name": lambda row: row.name,
        "kind": lambda row: row.kind,
        "shape": lambda row: str(row.shape),
        "dtype": lambda row: row.dtype,
        "count": lambda row: f"{row.count:,}",
        "state": lambda row: row.state,
        "also called": lambda row: ", ".join(row.alias_texts),
        "norm": lambda row: number(row.stats.norm) if row.stats else "",
        "min": lambda row: number(row.stats.min) if row.stats else "",
        "max": lambda row: number(row.stats.max) if row.stats else "",
        "mean": lambda row: number(row.stats.mean) if row.stats else "",
        "NaN": lambda row: f"{row.stats.nan:,}" if row.stats else "",
        "inf": lambda row: f"{row.stats.inf:,}" if row.stats else "",
    }
    filled = {title: [cell(row) for row in listing.rows] for title, cell in columns.items()}
    shown = {title: column for title, column in filled.items() if any(column) or title in ("name", "shape")}
    return list(shown), [list(line) for line in zip(*shown.values(), strict=True)]


def number(value: float | None) -> str:
    """Four digits.

    >>> number(0.0123456), number(None)
    ('0.01235', '')
    """
    return "" if value is None else f"{value:.4g}"


def summary(listing: Listing) -> str:
    """The totals in one sentence."""
    totals = listing.totals()
    of = f" of {listing.whole:,}" if len(listing.rows) != listing.whole else ""
    arrays = f"{len(listing.rows):,}{of} array{'s' if listing.whole != 1 else ''}"
    if not listing.states_known:
        return f"{arrays}, {totals['parameters']:,} numbers, {size(totals['bytes'])}."
    parts = [f"{totals['parameters']:,} parameters"]
    if totals["frozen"]:
        parts += [f"{totals['trainable']:,} trainable", f"{totals['frozen']:,} frozen"]
    else:
        parts[0] += ", all trainable" if totals["parameters"] else ""
    if totals["buffers"]:
        parts.append(f"{totals['buffers']:,} in buffers")
    return f"{arrays}: {', '.join(parts)}; {size(totals['bytes'])}."
