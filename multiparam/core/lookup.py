"""What a name or a position is among some slots: a parameter, or a group of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Union

from .. import paths
from ..errors import PositionError
from .table import Table


class Found(NamedTuple):
    """Some slots of a table.

    Attributes:
        prefix: What their names begin with, and are shown without.
        way: The path that they were found by, as text: their prefix, or an alias of it.
        inside: Their indices.
    """

    prefix: paths.Path
    way: str
    inside: Collection[int]


def by_name(table: Table, among: Found, name: str) -> Union[int, Found, None]:
    """What a name, or an alias, is among some slots.

    Args:
        table: The model's.
        among: Where to look.
        name: Relative to its prefix, or to the way it was found by.

    Returns:
        The index of a parameter; a group; None where it is nothing.
    """
    prefix = paths.text(among.prefix)
    full = f"{prefix}.{name}" if among.prefix else name
    found = _found(table, among, [full], full)
    if found is not None:
        return found
    way = f"{among.way}.{name}" if among.way or among.prefix else name
    return _found(table, _reached(table, among), table.aliases.names(way) or [way], way)


def _reached(table: Table, among: Found) -> Found:
    """Where aliases lead: anywhere from a layer, which may hold one that is named elsewhere; not out of a selection."""
    everything = Found((), "", range(len(table.slots)))
    whole = by_name(table, everything, among.way) if among.way else everything
    is_whole = isinstance(whole, Found) and set(whole.inside) == set(among.inside)
    return everything if is_whole else among


def _found(table: Table, among: Found, names: list[str], way: str) -> Union[int, Found, None]:
    if len(names) == 1:
        index = table.by_name.get(names[0])
        if index is not None and index in among.inside:
            return index
    starts = tuple(f"{name}." for name in names)
    inside = tuple(i for i in among.inside if table.names[i].startswith(starts))
    if not inside:
        return None
    path = table.slots[inside[0]].path
    if len(names) > 1:  # one alias of several layers, as that of a list of them
        return Found(_common([table.slots[i].path[:-1] for i in inside]), way, inside)
    # A segment may hold dots, so how deep the name reaches is told by the path's text, not by counting dots.
    depth = 1
    while depth < len(path) and paths.text(path[:depth]) != names[0]:
        depth += 1
    return Found(path[:depth], way, inside)


def by_position(table: Table, among: Found, position: int) -> Found:
    """The group at a position among the children of what was found.

    Args:
        table: The model's.
        among: Where to look.
        position: Its place among all children, those without parameters too, so that ``net[2]`` is what the native
            nested list has at 2.

    Returns:
        The group there.

    Raises:
        PositionError: There are no parameters.
    """
    depth, slots = len(among.prefix), table.slots
    stated: dict[int, int] = {}
    if among.way == paths.text(among.prefix):
        stated = {i: slots[i].positions[depth] for i in among.inside if len(slots[i].positions) > depth}
    inside = tuple(i for i, there in stated.items() if there == position)
    if inside:
        path = slots[inside[0]].path[: depth + 1]
        return Found(path, paths.text(path), inside)
    below = table.aliases.below(among.way)
    everywhere = Found((), "", _reached(table, among).inside)
    known = {i: by_name(table, everywhere, text) for i, text in below.items()}
    found = known.get(position)
    if isinstance(found, Found):
        return found
    there = sorted({*stated.values(), *(i for i, each in known.items() if isinstance(each, Found))})
    where = f"{among.way!r}" if among.way else "the model"
    raise PositionError(
        f"{where} has no parameters at position {position}. Positions with parameters: "
        f"{', '.join(map(str, there)) or 'none'}."
    )


def _common(found: list[paths.Path]) -> paths.Path:
    """The first segments that some paths have in common."""
    first, depth = found[0], 0
    while depth < len(first) and all(path[: depth + 1] == first[: depth + 1] for path in found):
        depth += 1
    return first[:depth]
