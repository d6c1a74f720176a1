"""What a name or a position is among some slots: a parameter, or a group of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, Union

from .. import paths
from ..errors import InvalidArgument, ParameterNotFound, PositionError, WrongType
from .table import Table


class Selection(NamedTuple):
    """Some slots of a table.

    Attributes:
        prefix: What their names begin with, and are shown without.
        way: The path that they were found by, as text: their prefix, or an alias of it.
        inside: Their indices.
        window: Of a slice: the positions among the children of the way that positions in it stand for.
    """

    prefix: paths.Path
    way: str
    inside: Collection[int]
    window: range | None = None


def by_name(table: Table, among: Selection, name: str) -> Union[int, Selection, None]:
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
    named = _selected(table, among, [full], full)
    if named is not None:
        return named
    way = f"{among.way}.{name}" if among.way or among.prefix else name
    return _selected(table, _reached(table, among), table.aliases.names(way) or [way], way)


def _reached(table: Table, among: Selection) -> Selection:
    """Where aliases lead: anywhere from a layer, which may hold one that is named elsewhere; not out of a selection."""
    all_slots = Selection((), "", range(len(table.slots)))
    whole = by_name(table, all_slots, among.way) if among.way else all_slots
    is_whole = isinstance(whole, Selection) and set(whole.inside) == set(among.inside)
    return all_slots if is_whole else among


def _selected(table: Table, among: Selection, names: list[str], way: str) -> Union[int, Selection, None]:
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
        return Selection(_common([table.slots[i].path[:-1] for i in inside]), way, inside)
    # A segment may hold dots, so how deep the name reaches is told by the path's text, not by counting dots.
    depth = 1
    while depth < len(path) and paths.text(path[:depth]) != names[0]:
        depth += 1
    return Selection(path[:depth], way, inside)


def not_found(table: Table, among: Selection, name: str, known: Mapping[int, str]) -> ParameterNotFound:
    """The error for a name that is nothing among some slots: near names, or that which the framework's own has here.

    Args:
        table: The model's.
        among: Where was looked.
        name: What was looked for.
        known: Slot -> its name, as it is shown there.

    Returns:
        The error, to be raised.
    """
    full = f"{paths.text(among.prefix)}.{name}" if among.prefix else name
    own = _native_name(table, among, full)
    hint = paths.did_you_mean(name, known.values()) if own is None else f"It is called {known[own]!r} here."
    where = f" in {among.way!r}" if among.way else ""
    return ParameterNotFound(f"No parameter {name!r}{where}. {hint}")


def _native_name(table: Table, among: Selection, full: str) -> int | None:
    """The slot that the framework, or a file of its own, calls so; None where there is none, or several."""
    wanted = {full, *table.aliases.names(full)}
    for i in among.inside:
        for part in table.slots[i].parts:
            leaves = {part.leaf, part.leaf.lstrip("_")}  # Keras has a kernel in the attribute _kernel
            if not wanted.isdisjoint(paths.text((*part.path[:-1], leaf)) for leaf in leaves):
                return i
    for names in table.stored_names():
        same = {i for i, stored in names if i in among.inside and (stored == full or stored.endswith(f".{full}"))}
        if len(same) == 1:
            return same.pop()
    return None


def by_position(table: Table, among: Selection, position: int) -> Selection:
    """The group at a position among the children of what was looked up.

    Args:
        table: The model's.
        among: Where to look.
        position: Its place among all children, those without parameters too, so that ``net[2]`` is what the native
            nested list has at 2; from the end where it is negative.

    Returns:
        The group there.

    Raises:
        PositionError: There are no parameters.
    """
    asked = position
    if among.window is not None:
        position = among.window[position] if -len(among.window) <= position < len(among.window) else -1
    elif position < 0:
        position += _count(table, among, f"{position}")
    children = dict(_children(table, among))
    group = children.get(position)
    if group is not None:
        return group
    shown = list(children) if among.window is None else [i for i, at in enumerate(among.window) if at in children]
    where = f"{among.way!r}" if among.way else "the model"
    where = where if among.window is None else f"This slice of {where}"
    raise PositionError(
        f"{where} has no parameters at position {asked}. Positions with parameters: "
        f"{', '.join(map(str, sorted(shown))) or 'none'}."
    )


def by_slice(table: Table, among: Selection, key: slice) -> Selection:
    """The group of several positions.

    Args:
        table: The model's.
        among: Where to look.
        key: As of a list, in its order.

    Returns:
        What is at these positions, under the names it has in ``among``.

    Raises:
        PositionError: There are no parameters.
        WrongType: It is a slice of something else than integers.
        InvalidArgument: It goes backwards.
    """
    for each in (key.start, key.stop, key.step):
        if each is not None and (not isinstance(each, int) or isinstance(each, bool)):
            raise WrongType(f"Index by name or by position, not by a slice of {type(each).__name__}")
    if key.step is not None and key.step < 1:
        raise InvalidArgument("A group is in the order of the model: let the step of a slice be positive.")
    whole = among.window
    if whole is None:
        from_front = (key.start or 0) >= 0 and key.stop is not None and key.stop >= 0
        whole = range(max(key.stop, 0)) if from_front else range(_count(table, among, _text(key)))
    window = whole[key]
    inside = sorted({i for at, group in _children(table, among) if at in window for i in group.inside})
    if not inside:
        where = f"{among.way!r}" if among.way else "the model"
        raise PositionError(f"{where} has no parameters at the positions {_text(key)}.")
    below = all(table.slots[i].path[: len(among.prefix)] == among.prefix for i in inside)
    return Selection(among.prefix if below else (), among.way, tuple(inside), window)


def _text(key: slice) -> str:
    step = "" if key.step is None else f":{key.step}"
    return f"{'' if key.start is None else key.start}:{'' if key.stop is None else key.stop}{step}"


def _count(table: Table, among: Selection, asked: str) -> int:
    """How many children there are. Raises PositionError where the framework does not tell."""
    count = table.count_children(among.prefix if among.way == paths.text(among.prefix) else among.way)
    if count is None:
        where = f"{among.way!r}" if among.way else "this model"
        raise PositionError(f"How many layers {where} has is not known, so not what {asked} is: count from the front.")
    return count


def _children(table: Table, among: Selection) -> Iterator[tuple[int, Selection]]:
    """What has parameters among the children of what was looked up, by position."""
    depth, slots = len(among.prefix), table.slots
    stated: dict[int, list[int]] = {}
    if among.way == paths.text(among.prefix):
        for i in among.inside:
            if len(slots[i].positions) > depth:
                stated.setdefault(slots[i].positions[depth], []).append(i)
    for position, inside in stated.items():
        path = slots[inside[0]].path[: depth + 1]
        yield position, Selection(path, paths.text(path), tuple(inside))
    below = table.aliases.below(among.way)
    everywhere = Selection((), "", _reached(table, among).inside)
    for position, text in below.items():
        group = None if position in stated else by_name(table, everywhere, text)
        if isinstance(group, Selection):
            yield position, group


def _common(layers: list[paths.Path]) -> paths.Path:
    """The first segments that some paths have in common."""
    first, depth = layers[0], 0
    while depth < len(first) and all(path[: depth + 1] == first[: depth + 1] for path in layers):
        depth += 1
    return first[:depth]
