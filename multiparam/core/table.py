"""The table of a model's slots: names, storages and which slots are one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from .. import paths
from ..errors import InvalidArgument, ParameterNotFound
from .aliases import Aliases
from .composite import Packed, bases, pack
from .protocol import Adapter, Host, Slot, Storage


class Tie(NamedTuple):
    """A name and whether it is the transpose of the first name of its group."""

    name: str
    transposed: bool


class Table:
    """A model's slots grouped by storage, with the look-ups every access needs. Made once per wrap or tie.

    It is a cache of what the model holds: nothing is written here, and what changes the model makes another.
    """

    def __init__(
        self, host: Host, adapter: Adapter, packed: dict[Any, Packed], slots: list[Slot] | None = None
    ) -> None:
        self.slots = slots = pack(host.slots() if slots is None else slots, adapter, packed)
        self._host = host
        self._aliases: Aliases | None = None
        self.names: list[str] = []
        self.by_name: dict[str, int] = {}
        self.first: dict[int, int] = {}  # id of a storage -> its first slot
        self._names: dict[int, tuple[str, ...]] | None = None
        names, by_name, first = self.names, self.by_name, self.first
        # Large models have thousands of slots: one pass, and no call for a name without dots or backslashes inside.
        for i, slot in enumerate(slots):
            path = slot.path
            name = ".".join(path)
            if "\\" in name or name.count(".") >= len(path):  # a dot inside a segment: see paths.text
                name = paths.text(path)
            names.append(name)
            by_name[name] = i
            # Identity is what ties: equal numbers in two storages are two parameters.
            key = id(slot.storage)
            if key not in first:
                first[key] = i
        if len(by_name) != len(slots):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"Two parameters of one name: {', '.join(twice)}. This is a defect of the adapter.")

    def names_of(self, storage: Storage) -> tuple[str, ...]:
        """All names of a storage in definition order."""
        if self._names is None:  # on the first question: most tables of a traced host are asked for no names
            names: dict[int, list[str]] = {}
            for name, slot in zip(self.names, self.slots, strict=True):
                names.setdefault(id(slot.storage), []).append(name)
            self._names = {key: tuple(each) for key, each in names.items()}
        return self._names[id(storage)]

    def uses(self, slot: Slot) -> tuple[Slot, ...]:
        """All places of a slot's storage, of native arrays: where one has another now, a tie has been lost."""
        if len(self.first) == len(self.slots):
            return slot.parts
        tied = (self.slots[self.by_name[name]] for name in self.names_of(slot.storage))
        return tuple(part for each in tied for part in each.parts)

    def storages(self) -> list[Storage]:
        """Each native array of a parameter once, in definition order."""
        chosen = (self.slots[i].storage for i in self.first.values() if not self.slots[i].buffer)
        return list(dict.fromkeys(base for storage in chosen for base in bases(storage)))

    def view(self, index: int) -> int:
        """The first slot that shows the same storage in the same layout.

        Tied names that show one array in one way are one Parameter. In another layout, as transposed ties are, it has
        another shape, so these have a Parameter of their own; the first of them stands for all, whichever is asked for.
        """
        slot = self.slots[index]
        first = self.first[id(slot.storage)]
        if self.slots[first].canonical == slot.canonical:
            return first
        return next(i for i, s in enumerate(self.slots) if s.storage is slot.storage and s.canonical == slot.canonical)

    def layers(self, indices: Iterable[int]) -> list[tuple[list[paths.Path], tuple[int, ...]]]:
        """Each distinct layer among some slots: the paths of all its uses, and the slots of the first of these."""
        uses: dict[paths.Path, list[int]] = {}
        for i in indices:
            uses.setdefault(self.slots[i].path[:-1], []).append(i)
        same: dict[tuple[Any, ...], list[paths.Path]] = {}
        for path, inside in uses.items():
            # By storage and not by native layer: layers tied leaf by leaf, in one layout, compute the same.
            key = tuple((self.slots[i].path[-1], id(self.slots[i].storage), self.slots[i].canonical) for i in inside)
            same.setdefault(key, []).append(path)
        return [(layer, tuple(uses[layer[0]])) for layer in same.values()]

    @property
    def aliases(self) -> Aliases:
        """Where else users see layers: asked only when a name or a position finds nothing, since that may take long."""
        if self._aliases is None:
            self._aliases = Aliases(self._host)
        return self._aliases

    def count_children(self, place: paths.Path | str) -> int | None:
        """How many children a layer, or a list of them, has, by its path or an alias as text; None: nobody knows."""
        if isinstance(place, str):
            place = tuple(segment.replace("\\.", ".").replace("\\\\", "\\") for segment in paths.segments(place))
        return self._host.count_children(place)

    def stored_names(self) -> Iterator[list[tuple[int, str]]]:
        """What the framework's own files call what slots are, for each way of naming: slots and names, which may be
        empty."""
        parts = [(i, part) for i, slot in enumerate(self.slots) for part in slot.parts]
        for names in self._host.stored_names([part for _, part in parts]):
            yield [(i, name) for (i, _), name in zip(parts, names, strict=True)]

    def index(self, name: str) -> int:
        """The slot of a full name, or of one in a layer's alias, as its index. Raises ParameterNotFound."""
        index = self.by_name.get(name)
        if index is None:
            index = next((i for real in self.aliases.names(name) if (i := self.by_name.get(real)) is not None), None)
        if index is None:
            raise ParameterNotFound(f"No parameter {name!r}. {paths.did_you_mean(name, self.names)}")
        return index

    def slot(self, name: str) -> Slot:
        """The slot of a full name. Raises ParameterNotFound."""
        return self.slots[self.index(name)]

    def all_storages(self) -> list[Storage]:
        """Each storage once, of parameters and buffers, packed ones as they are, in definition order."""
        return [self.slots[i].storage for i in self.first.values()]

    def groups(self) -> list[tuple[str, ...]]:
        """The names that share one storage, in definition order."""
        groups = (self.names_of(storage) for storage in self.all_storages())
        return [names for names in groups if len(names) > 1]

    def ties(self) -> list[list[Tie]]:
        """The same with which of them are transposed."""
        if len(self.first) == len(self.slots):
            return []
        groups = [[self.slots[self.by_name[name]] for name in names] for names in self.groups()]
        return [[Tie(paths.text(s.path), s.canonical != group[0].canonical) for s in group] for group in groups]


def same_architecture(before: Table, now: Table) -> None:
    """Raises InvalidArgument unless two tables have the same names and canonical shapes: a tie may have given a place
    an array in another layout."""
    for i, name in enumerate(before.names):
        if name not in now.by_name:
            raise InvalidArgument(f"This model has no parameter {name!r}. {paths.did_you_mean(name, now.names)}")
        old, new = before.slots[i].shape, now.slots[now.by_name[name]].shape
        if old != new:
            raise InvalidArgument(f"{name!r} has shape {new} in this model, and {old} in the one it replaces.")
    if now.names != before.names:
        more = next((name for name in now.names if name not in before.by_name), None)
        raise InvalidArgument(
            f"This model has a parameter {more!r} more." if more else "This model has its parameters in another order."
        )
