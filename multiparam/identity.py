"""One storage per native object, the same at each look: what an adapter's ``slots()`` needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from .protocol import Slot

S = TypeVar("S")


class Storages(Generic[S]):
    """The storages a host has made, by the identity of their ``native``.

    >>> class Box:
    ...     def __init__(self, native): self.native = native
    >>> storages, native = Storages(), [1.0]
    >>> storages.of(native, Box) is storages.of(native, Box)
    True
    """

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}

    def of(self, native: Any, make: Callable[..., S], *arguments: Any) -> S:
        """The storage of a native object, made as ``make(native, *arguments)`` the first time."""
        found = self._known.get(id(native))
        if found is None or found.native is not native:  # a freed object's id is used again
            found = self._known[id(native)] = make(native, *arguments)
        return found

    def add(self, storage: S) -> S:
        """Know a storage made elsewhere."""
        self._known[id(storage.native)] = storage  # type: ignore[attr-defined]
        return storage

    def keep(self, slots: Iterable[Slot]) -> None:
        """Forget those that no slot uses any more."""
        used = {id(slot.storage) for slot in slots}
        self._known = {key: storage for key, storage in self._known.items() if id(storage) in used}

    def __iter__(self) -> Iterator[S]:
        return iter(self._known.values())
