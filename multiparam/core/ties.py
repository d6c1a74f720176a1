"""Ties: binding slots to one storage, giving them their own again, and noticing when the framework lost one."""

from __future__ import annotations

from .. import paths
from ..errors import ShapeError, TieError, Unsupported
from .composite import PackedSlot, bases, row_of
from .layouts import TRANSPOSED, Layout, join
from .parameter import parameter_at
from .protocol import Slot, Storage
from .store import Store


def tie(store: Store, target: str, source: str, transpose: bool) -> None:
    """See :meth:`Model.tie`."""
    to, of = store.table.slot(target), store.table.slot(source)
    _check(store, target, source, transpose)
    transposition = TRANSPOSED if transpose else None
    if to.storage is of.storage:
        if to.canonical == join(of.canonical, transposition):
            return
        raise TieError(f"{target!r} and {source!r} are tied already, the other way round. Untie {target!r} first.")
    for pieces, piece in zip(_pieces(_place(store, to)), of.parts, strict=True):
        store.host.bind(pieces, piece.storage, join(piece.canonical, transposition, _inverse(pieces[0].layout)))
        _leave(store, pieces)
    store.reread()


def _check(store: Store, target: str, source: str, transpose: bool) -> None:
    to, of = store.table.slot(target), store.table.slot(source)
    mine, other = (parameter_at(store, store.table.by_name[name]) for name in (target, source))
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
    packed = [isinstance(slot, PackedSlot) for slot in (to, of)]
    if (
        packed[0] != packed[1]
        or len(to.parts) != len(of.parts)
        or (
            any(packed)
            and any(
                row_of(a) is not None or row_of(b) is not None or a.storage.shape != b.storage.shape
                for a, b in zip(to.parts, of.parts, strict=True)
            )
        )
    ):
        raise TieError(f"Cannot tie {target!r} to {source!r}: {store.backend} keeps them in arrays cut differently.")
    if packed[0] and transpose:
        raise TieError(f"Cannot tie {target!r} to {source!r}: {store.backend} keeps each in several arrays.")


def untie(store: Store, name: str) -> None:
    """See :meth:`Model.untie`."""
    slot = store.table.slot(name)
    place = _place(store, slot)
    uses = [s for s in store.table.slots if s.storage is slot.storage]
    if len(uses) == 1:
        raise TieError(f"{name!r} is not tied.")
    if len(uses) == len(place):
        names = ", ".join(repr(paths.text(s.path)) for s in place)
        raise TieError(
            f"{names} are one layer used at {len(place)} positions, which has one weight. "
            "Make two layers and tie their parameters if you want to untie them later."
        )
    if any(row_of(piece) is not None for piece in slot.parts):
        raise TieError(f"{name!r} is a part of a native array, which cannot be untied by itself.")
    _forget(slot.storage)
    for pieces in _pieces(place):
        if not _leave(store, pieces):
            store.host.bind(pieces, store.host.copy(pieces[0].storage, pieces[0].view))
    store.reread()


def _forget(storage: Storage) -> None:
    """Drop a gradient, which is of all uses together, before these part."""
    for base in bases(storage):
        if base.trainable:
            base.trainable = False  # as freezing does
            base.trainable = True


def _leave(store: Store, place: list[Slot]) -> bool:
    """A place leaves its storage: others that use it only through a layout get one of their own, so that each
    storage is somewhere as it is. True where that was so, and the old one is this place's alone."""
    old, mine = place[0].storage, {id(slot) for slot in place}
    everything = (piece for slot in store.table.slots for piece in slot.parts)
    rest = [slot for slot in everything if slot.storage is old and id(slot) not in mine]
    if place[0].view is not None or not rest or any(slot.view is None for slot in rest):
        return False
    view = rest[0].view
    fresh = store.host.copy(old, view)
    for other in _places(rest):
        store.host.bind(other, fresh, join(_inverse(view), other[0].view))
    return True


def _place(store: Store, slot: Slot) -> list[Slot]:
    """The slots that are one place seen at several positions."""
    return [s for s in store.table.slots if s.owner is slot.owner and s.leaf == slot.leaf]


def _pieces(place: list[Slot]) -> list[list[Slot]]:
    """A place's slots, or, where they are packed, the slots of each piece."""
    return [list(each) for each in zip(*(slot.parts for slot in place), strict=True)]


def _places(slots: list[Slot]) -> list[list[Slot]]:
    """Slots grouped by where the framework keeps them."""
    places: dict[tuple[int, str], list[Slot]] = {}
    for slot in slots:
        places.setdefault((id(slot.owner), slot.leaf), []).append(slot)
    return list(places.values())


def _inverse(layout: Layout | None) -> Layout | None:
    return None if layout is None else layout.inverse


def broken(store: Store) -> list[tuple[str, ...]]:
    """See :meth:`Model.check`. The model's table is up to date afterwards."""
    before, known = store.table, store.known_ties
    store.reread(keep_known=True)
    if store.table.names != before.names:
        store.table = before
        raise Unsupported("The native model has other parameters than when it was wrapped. Wrap it again.")
    slots, by_name = store.table.slots, store.table.by_name
    lost = [group for group in known if len({id(slots[by_name[name]].storage) for name, _ in group}) > 1]
    return [tuple(name for name, _ in group) for group in lost]


def repair(store: Store) -> None:
    """Tie each known group that is broken to its first name again."""
    groups = store.known_ties
    for names in broken(store):
        group = next(group for group in groups if group[0].name == names[0])
        for name, transposed in group[1:]:
            if store.table.slot(name).storage is not store.table.slot(names[0]).storage:
                tie(store, name, names[0], transposed)
