"""Ties: binding slots to one storage, giving them their own again, and noticing when the framework lost one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from . import paths
from .errors import InvalidArgument, ShapeError, TieError, Unsupported
from .layouts import TRANSPOSED, Layout, join
from .packed import bases
from .protocol import Slot, Storage

if TYPE_CHECKING:
    from .model import Model, Table


def tie(net: Model, target: str, source: str, transpose: bool) -> None:
    """See :meth:`Model.tie`."""
    to, of = net._slot(target), net._slot(source)
    _check(net, target, source, transpose)
    turn = TRANSPOSED if transpose else None
    if to.storage is of.storage:
        if to.layout == join(of.layout, turn):
            return
        raise TieError(f"{target!r} and {source!r} are tied already, the other way round. Untie {target!r} first.")
    for pieces, piece in zip(_pieces(_place(net, to)), of.pieces or (of,), strict=True):
        net._host.bind(pieces, piece.storage, join(piece.layout, turn, _inverse(pieces[0].own)))
        _leave(net, pieces)
    net._changed(slots=True)


def _check(net: Model, target: str, source: str, transpose: bool) -> None:
    to, of, mine, other = net._slot(target), net._slot(source), net[target], net[source]
    if to.buffer or of.buffer:
        raise TieError(f"{target if to.buffer else source!r} is a buffer; only parameters can be tied.")
    shape = other.shape[::-1] if transpose else other.shape
    if transpose and len(shape) != 2:
        raise TieError(f"Cannot tie {target!r} to {source!r}: only a matrix has a transpose; it is {other.shape}.")
    if mine.shape != shape:
        hint = " Say transpose=True if one is to be the other's transpose." * (mine.shape == other.shape[::-1])
        cause = "they differ when transposed" if transpose else "the shapes differ"
        raise ShapeError(f"Cannot tie {target!r} {mine.shape} to {source!r} {other.shape}: {cause}.{hint}")
    if mine.dtype != other.dtype:
        raise TieError(f"Cannot tie {target!r} ({mine.dtype}) to {source!r} ({other.dtype}): the dtypes differ.")
    if len(to.pieces) != len(of.pieces) or any(
        a.row is not None or b.row is not None or a.storage.shape != b.storage.shape
        for a, b in zip(to.pieces, of.pieces, strict=True)
    ):
        raise TieError(f"Cannot tie {target!r} to {source!r}: {net.backend} keeps them in arrays cut differently.")
    if to.pieces and transpose:
        raise TieError(f"Cannot tie {target!r} to {source!r}: {net.backend} keeps each in several arrays.")


def untie(net: Model, name: str) -> None:
    """See :meth:`Model.untie`."""
    slot = net._slot(name)
    place = _place(net, slot)
    uses = [s for s in net._table.slots if s.storage is slot.storage]
    if len(uses) == 1:
        raise TieError(f"{name!r} is not tied.")
    if len(uses) == len(place):
        names = ", ".join(repr(paths.text(s.path)) for s in place)
        raise TieError(
            f"{names} are one layer used at {len(place)} positions, which has one weight. "
            "Make two layers and tie their parameters if you want to untie them later."
        )
    if any(piece.row is not None for piece in slot.pieces):
        raise TieError(f"{name!r} is a part of a native array, which cannot be untied by itself.")
    _forget(slot.storage)
    for pieces in _pieces(place):
        if not _leave(net, pieces):
            net._host.bind(pieces, net._host.copy(pieces[0].storage, pieces[0].through))
    net._changed(slots=True)


def _forget(storage: Storage) -> None:
    """Drop a gradient, which is of all uses together, before these part."""
    for base in bases(storage):
        if base.trainable:
            base.trainable = False  # as freezing does
            base.trainable = True


def _leave(net: Model, place: list[Slot]) -> bool:
    """A place leaves its storage: others that use it only through a layout get one of their own, so that each
    storage is somewhere as it is. True where that was so, and the old one is this place's alone."""
    old, mine = place[0].storage, {id(slot) for slot in place}
    everything = (piece for slot in net._table.slots for piece in slot.pieces or (slot,))
    rest = [slot for slot in everything if slot.storage is old and id(slot) not in mine]
    if place[0].through is not None or not rest or any(slot.through is None for slot in rest):
        return False
    through = rest[0].through
    fresh = net._host.copy(old, through)
    for other in _places(rest):
        net._host.bind(other, fresh, join(_inverse(through), other[0].through))
    return True


def _place(net: Model, slot: Slot) -> list[Slot]:
    """The slots that are one place seen at several positions."""
    return [s for s in net._table.slots if s.owner is slot.owner and s.leaf == slot.leaf]


def _pieces(place: list[Slot]) -> list[list[Slot]]:
    """A place's slots, or, where they are packed, the slots of each piece."""
    return [list(each) for each in zip(*(slot.pieces or (slot,) for slot in place), strict=True)]


def _places(slots: list[Slot]) -> list[list[Slot]]:
    """Slots grouped by where the framework keeps them."""
    found: dict[tuple[int, str], list[Slot]] = {}
    for slot in slots:
        found.setdefault((id(slot.owner), slot.leaf), []).append(slot)
    return list(found.values())


def _inverse(layout: Layout | None) -> Layout | None:
    return None if layout is None else layout.inverse


class Tie(NamedTuple):
    """A name and whether it is the transpose of the first name of its group."""

    name: str
    transposed: bool


def known(net: Model) -> list[list[Tie]]:
    """The ties of a model as it is now."""
    slots, by_name = net._table.slots, net._table.by_name
    if len(net._table.first) == len(slots):
        return []
    groups = [[slots[by_name[name]] for name in names] for names in net.ties()]
    return [[Tie(paths.text(slot.path), slot.layout != group[0].layout) for slot in group] for group in groups]


def same_architecture(before: Table, now: Table) -> None:
    """Raises InvalidArgument unless two tables have the same names and shapes."""
    for i, name in enumerate(before.names):
        if name not in now.by_name:
            raise InvalidArgument(f"This model has no parameter {name!r}. {paths.did_you_mean(name, now.names)}")
        old, new = before.slots[i].storage.shape, now.slots[now.by_name[name]].storage.shape
        if old != new:
            raise InvalidArgument(f"{name!r} has shape {new} in this model, and {old} in the one it replaces.")
    if now.names != before.names:
        more = next((name for name in now.names if name not in before.by_name), None)
        raise InvalidArgument(
            f"This model has a parameter {more!r} more." if more else "This model has its parameters in another order."
        )


def broken(net: Model) -> list[tuple[str, ...]]:
    """See :meth:`Model.check`. The model's table is up to date afterwards."""
    before, kept = net._table, net._known_ties
    net._changed(slots=True)
    net._known_ties = kept
    if net._table.names != before.names:
        net._table = before
        raise Unsupported("The native model has other parameters than when it was wrapped. Wrap it again.")
    slots, by_name = net._table.slots, net._table.by_name
    lost = [group for group in kept if len({id(slots[by_name[name]].storage) for name, _ in group}) > 1]
    return [tuple(name for name, _ in group) for group in lost]


def repair(net: Model) -> None:
    """Tie each known group that is broken to its first name again."""
    groups = net._known_ties
    for names in broken(net):
        group = next(group for group in groups if group[0].name == names[0])
        for name, transposed in group[1:]:
            if net._slot(name).storage is not net._slot(names[0]).storage:
                tie(net, name, names[0], transposed)
