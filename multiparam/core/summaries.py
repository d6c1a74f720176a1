"""The summary of a model: a table of its layers, as text and as HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from .. import paths
from .group import Group, named_parameters
from .parameter import Parameter, slot_of, storage_of
from .slots import Activation

UNKNOWN = "?"
WORDS = ("layer", "kind", "output", "ties")  # columns of words; the others are numbers


@dataclass(frozen=True)
class LayerRow:
    """One layer: the numbers of what is first in it, and the ties of the rest.

    Attributes:
        name: Its first name; "(itself)" for what the model holds directly.
        kind: As its parameters have it.
        output: The shape that it gave; empty where none is known.
        count: How many numbers its parameters have; None where a shape is not known.
        buffers: The same of its buffers.
        bytes: What both take; None likewise.
        trained: How many of ``count`` are trainable.
        ties: What is shared, in words.
    """

    name: str
    kind: str
    output: str
    count: int | None
    buffers: int | None
    bytes: int | None
    trained: int
    ties: str


class Summary:
    """A table of a model's layers. Made by :meth:`multiparam.Model.summary`.

    Attributes:
        title: The framework and the class of the model.
        rows: The layers, in definition order.
        ran: Whether a forward pass has given shapes of outputs.
    """

    def __init__(self, title: str, rows: list[LayerRow], ran: bool) -> None:
        self.title = title
        self.rows = rows
        self.ran = ran

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        columns: dict[str, Callable[[LayerRow], str]] = {
            "layer": lambda row: row.name,
            "kind": lambda row: row.kind,
            "output": lambda row: row.output,
            "parameters": lambda row: _number(row.count),
            "buffers": lambda row: _number(row.buffers) if row.buffers != 0 else "",
            "trainable": _trainable,
            "memory": lambda row: UNKNOWN if row.bytes is None else size(row.bytes),
            "ties": lambda row: row.ties,
        }
        filled = {title: [cell(row) for row in self.rows] for title, cell in columns.items()}
        shown = {title: column for title, column in filled.items() if any(column)}
        return list(shown), [list(line) for line in zip(*shown.values(), strict=True)]

    def _totals(self) -> str:
        known = [row for row in self.rows if row.count is not None and row.bytes is not None]
        count, trained = sum(row.count or 0 for row in known), sum(row.trained for row in known)
        buffers = sum(row.buffers or 0 for row in known)
        state = "all trainable" if trained == count else f"{trained:,} trainable, {count - trained:,} frozen"
        layers = f"{len(self.rows)} layer{'s' if len(self.rows) != 1 else ''}"
        parts = [layers, f"{count:,} parameters", *([state] if count else [])]
        parts += [f"{buffers:,} in buffers"] if buffers else []
        text = f"{', '.join(parts)}; {size(sum(row.bytes or 0 for row in known))}."
        if len(known) < len(self.rows):
            some = paths.some(repr(row.name) for row in self.rows if row not in known)
            text += f" Not counted: {some}, whose shapes are not known before a forward pass."
        return text if self.ran else f"{text} Nothing was run: net.summary(X) shows the shapes of outputs."

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.title}\nNo parameters."
        titles, lines = self._cells()
        widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
        table = [
            "  ".join(
                cell.ljust(width) if title in WORDS else cell.rjust(width)
                for title, cell, width in zip(titles, line, widths, strict=True)
            ).rstrip()
            for line in (titles, *lines)
        ]
        return "\n".join([self.title, *table, self._totals()])

    def __repr__(self) -> str:
        return f"<Summary of {self.title}: {self._totals().partition(';')[0]}>"

    def _repr_html_(self) -> str:
        if not self.rows:
            return f"<p>{escape(self.title)}: no parameters.</p>"
        titles, lines = self._cells()
        sides = ["left" if title in WORDS else "right" for title in titles]

        def row(cells: list[str], tag: str) -> str:
            inside = zip(cells, sides, strict=True)
            return "".join(f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for cell, side in inside)

        body = "".join(f"<tr>{row(line, 'td')}</tr>" for line in lines)
        head = f"<thead><tr>{row(titles, 'th')}</tr></thead>"
        table = f"<table><caption>{escape(self.title)}</caption>{head}<tbody>{body}</tbody></table>"
        return f"{table}<p>{escape(self._totals())}</p>"


def summarise(group: Group, title: str, shapes: Mapping[str, str] | None) -> Summary:
    """The summary of all layers of a group.

    Args:
        group: The model.
        title: What it is.
        shapes: A layer's name -> the shape of its output; None where nothing was run.

    Returns:
        The table.
    """
    seen: set[int] = set()
    everywhere = named_parameters(group)
    rows = [_row(everywhere, names, layer, shapes or {}, seen) for names, layer in group.layers().items()]
    return Summary(title, rows, shapes is not None)


def _row(
    everywhere: Mapping[str, Parameter], names: tuple[str, ...], layer: Group, shapes: Mapping[str, str], seen: set[int]
) -> LayerRow:
    """The row of one layer; ``seen`` has the storages of the rows before, by identity."""
    inside, first = named_parameters(layer), list[Parameter]()
    ties = [f"also {', '.join(names[1:])}"] if len(names) > 1 else []
    for leaf, p in inside.items():
        name, key = p.names[0], id(storage_of(p))
        if key not in seen:
            seen.add(key)
            first.append(p)
        elif name != ".".join([names[0], leaf] if names[0] else [leaf]):
            ties.append(f"{leaf} is {name}{' transposed' if everywhere[name] is not p else ''}")
    counts, of_buffers = [_count(p) for p in first if not p.buffer], [_count(p) for p in first if p.buffer]
    sizes = [None if (count := _count(p)) is None else count * bytes_of(p.dtype) for p in first]
    trained = _total([_count(p) for p in first if p.trainable])
    return LayerRow(
        names[0] or "(itself)",
        next((p.kind for p in inside.values()), ""),
        next((shapes[name] for name in names if name in shapes), ""),
        _total(counts),
        _total(of_buffers),
        _total(sizes),
        trained or 0,
        "; ".join(ties),
    )


def _trainable(row: LayerRow) -> str:
    if not row.count:
        return ""
    return "yes" if row.trained == row.count else "partly" if row.trained else "no"


def _count(p: Parameter) -> int | None:
    shape = slot_of(p).shape
    return None if shape is None else math.prod(shape)


def _total(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _number(count: int | None) -> str:
    return UNKNOWN if count is None else f"{count:,}"


# -- shapes of outputs


def output_shapes(shapes: dict[str, str]) -> Callable[[Activation], None]:
    """What notes the shape of the first output of each layer."""

    def note(call: Activation) -> None:
        shapes.setdefault(call.layer, shape_text(call.output))

    return note


def shape_text(output: Any) -> str:
    """The shapes of what a layer gives, in its structure.

    >>> import numpy as np
    >>> shape_text(np.ones((2, 3))), shape_text((np.ones((2, 3)), [np.ones(4)])), shape_text({"x": np.ones(2)})
    ('(2, 3)', '((2, 3), [(4,)])', '{x: (2,)}')
    """
    if hasattr(output, "shape"):
        return str(tuple(output.shape))
    if isinstance(output, Mapping):
        return f"{{{', '.join(f'{key}: {shape_text(value)}' for key, value in output.items())}}}"
    if isinstance(output, (list, tuple)):
        inside = ", ".join(map(shape_text, output))
        return f"[{inside}]" if isinstance(output, list) else f"({inside})"
    return type(output).__name__


# -- sizes


def bytes_of(dtype: str) -> int:
    """Bytes of one number, by the dtype's name, those of ml_dtypes too.

    >>> bytes_of("float32"), bytes_of("bfloat16"), bytes_of("float8_e4m3fn"), bytes_of("bool")
    (4, 2, 1, 1)
    """
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else 1


def size(count: int) -> str:
    """Bytes in the unit that suits them.

    >>> size(120), size(1_234_567)
    ('120 bytes', '1.23 MB')
    """
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"
