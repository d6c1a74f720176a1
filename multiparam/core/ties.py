"""Ties: binding slots to one storage, giving them their own again, and noticing when the framework lost one.

The words here: a *slot* is one use of a parameter, a *place* all slots that the framework keeps in one spot (owner and
leaf), such as the weight of a layer that is used at two positions. A place is bound as a whole, or not at all.
"""

from __future__ import annotations

from .. import paths
from ..errors import ShapeError, TieError
from .composite import PackedSlot, bases, row_of
from .layouts import TRANSPOSED, Layout, join
from .parameter import parameter_at
from .slots import Slot, Storage
from .store import Store


def tie(store: Store, target: str, source: str, transpose: bool) -> None:
    """See :meth:`Model.tie`."""
    to, of = store.table.slot(target), store.table.slot(source)
    _check(store, target, source, transpose)
    transposition = TRANSPOSED if transpose else None
    # Identity, not equality: two storages of equal numbers would part at the next gradient step.
    if to.storage is of.storage:
        if to.canonical == join(of.canonical, transposition):
            return
        raise TieError(f"{target!r} and {source!r} are tied already, the other way round. Untie {target!r} first.")
    for pieces, piece in zip(_pieces(_place(store, to)), of.parts, strict=True):
        store.host.bind(pieces, piece.storage, join(piece.canonical, transposition, _inverse(pieces[0].layout)))
        _leave(store, pieces)
    store.reread()


def _check(store: Store, target: str, source: str, transpose: bool) -> None:
    """Raise where two cannot be tied. All of it comes before the first bind, so that a refusal changes nothing."""
    to, of = (parameter_at(store, store.table.index(name)) for name in (target, source))
    if to.buffer or of.buffer:
        raise TieError(f"{target if to.buffer else source!r} is a buffer; only parameters can be tied.")
    shape = of.shape[::-1] if transpose else of.shape
    if transpose and len(shape) != 2:
        raise TieError(f"Cannot tie {target!r} to {source!r}: only a matrix has a transpose; it is {of.shape}.")
    if to.shape != shape:
        hint = " Say transpose=True if one is to be the other's transpose." * (to.shape == of.shape[::-1])
        cause = "they differ when transposed" if transpose else "the shapes differ"
        raise ShapeError(f"Cannot tie {target!r} {to.shape} to {source!r} {of.shape}: {cause}.{hint}")
    if to.dtype != of.dtype:
        raise TieError(f"Cannot tie {target!r} ({to.dtype}) to {source!r} ({of.dtype}): the dtypes differ.")
    target_slot, source_slot = store.table.slot(target), store.table.slot(source)
    if not _cut_alike(target_slot, source_slot):
        raise TieError(f"Cannot tie {target!r} to {source!r}: {store.backend} keeps them in arrays cut differently.")
    if isinstance(target_slot, PackedSlot) and transpose:
        raise TieError(f"Cannot tie {target!r} to {source!r}: {store.backend} keeps each in several arrays.")


def _cut_alike(target: Slot, source: Slot) -> bool:
    """Whether both are one native array, or the same number of whole ones of the same shapes."""
    packed = isinstance(target, PackedSlot), isinstance(source, PackedSlot)
    if not any(packed):
        return True
    if not all(packed) or len(target.parts) != len(source.parts):
        return False
    return all(
        row_of(a) is None and row_of(b) is None and a.storage.shape == b.storage.shape
        for a, b in zip(target.parts, source.parts, strict=True)
    )


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
        if base.trainable:  # freezing drops it in every framework, so adapters need no verb of their own for it
            base.trainable = False
            base.trainable = True


def _leave(store: Store, place: list[Slot]) -> bool:
    """A place leaves its storage: others that use it only through a view get one of their own, so that each
    storage is somewhere as it is. True where that was so, and the old one is this place's alone."""
    old, leaving = place[0].storage, {id(slot) for slot in place}
    pieces = (piece for slot in store.table.slots for piece in slot.parts)
    rest = [slot for slot in pieces if slot.storage is old and id(slot) not in leaving]
    # The framework keeps an array where it is used as it is; a view only computes from it. Where the place that leaves
    # was the last such one, the first of the rest must become the array's home.
    if place[0].view is not None or not rest or any(slot.view is None for slot in rest):
        return False
    view = rest[0].view
    fresh = store.host.copy(old, view)
    for viewing in _places(rest):
        store.host.bind(viewing, fresh, join(_inverse(view), viewing[0].view))
    return True


def _place(store: Store, slot: Slot) -> list[Slot]:
    """The slots that are one place, used at several positions."""
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
    # The model is the truth: it is listed anew, since users change it, and frameworks lose ties, without telling us.
    store.reread(keep_known=True)
    slots, by_name = store.table.slots, store.table.by_name
    lost = [group for group in store.known_ties if len({id(slots[by_name[name]].storage) for name, _ in group}) > 1]
    return [tuple(name for name, _ in group) for group in lost]


def repair(store: Store) -> None:
    """Tie each known group that is broken to its first name again."""
    groups = store.known_ties
    for names in broken(store):
        group = next(group for group in groups if group[0].name == names[0])
        for name, transposed in group[1:]:
            if store.table.slot(name).storage is not store.table.slot(names[0]).storage:
                tie(store, name, names[0], transposed)
