"""One storage per native object, the same at each look, and the names of layers: what adapters need to walk models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from .protocol import Activation, Slot

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
        storage = self._known.get(id(native))
        if storage is None or storage.native is not native:  # a freed object's id is used again
            storage = self._known[id(native)] = make(native, *arguments)
        return storage

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


class LayerNames:
    """The names of layers by identity; one that is used at several positions has several, given out in turn.

    >>> layer = object()
    >>> names = Names([("0", layer), ("2", layer)])
    >>> names.next(layer), names.next(layer), names.next(layer)
    ('0', '2', '0')
    """

    def __init__(self, layers: Iterable[tuple[str, Any]]) -> None:
        self._names: dict[int, list[str]] = {}
        kept: dict[int, Any] = {}
        for name, layer in layers:
            self._names.setdefault(id(layer), []).append(name)
            kept[id(layer)] = layer
        self.layers = list(kept.values())
        self._count: dict[int, int] = {}

    def __contains__(self, layer: object) -> bool:
        return id(layer) in self._names

    def next(self, layer: Any) -> str:
        """The name of the layer's next use."""
        names, at = self._names[id(layer)], self._count.get(id(layer), 0)
        self._count[id(layer)] = at + 1
        return names[at % len(names)]


@contextmanager
def temporarily(changes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes of layers set to other values for a while, whatever happens inside.

    Args:
        changes: The object, the attribute's name and its value inside.

    Example:
        >>> from types import SimpleNamespace
        >>> layer = SimpleNamespace(training=False)
        >>> with temporarily([(layer, "training", True)]):
        ...     layer.training
        True
        >>> layer.training
        False
    """
    before: list[tuple[Any, str, Any]] = []
    try:
        for item, name, value in changes:
            before.append((item, name, getattr(item, name)))
            setattr(item, name, value)
        yield
    finally:
        for item, name, value in reversed(before):
            setattr(item, name, value)


@contextmanager
def watch_calls(names: LayerNames, on_call: Callable[[Activation], None]) -> Iterator[None]:
    """Where layers call hooks of no kind: their classes' ``__call__`` shows the calls of those in ``names``."""
    inside: set[int] = set()

    def watching(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self not in names or id(self) in inside:  # inside: the call of a base class
                return original(self, *args, **kwargs)
            inside.add(id(self))
            try:
                output = original(self, *args, **kwargs)
            finally:
                inside.discard(id(self))
            on_call(Activation(names.next(self), args, output))
            return output

        return call

    classes = {type(layer) for layer in names.layers}
    before = {cls: vars(cls).get("__call__") for cls in classes}
    originals = {cls: cls.__call__ for cls in classes}
    try:
        for cls in classes:
            cls.__call__ = watching(originals[cls])
        yield
    finally:
        for cls, own in before.items():
            if own is None:
                del cls.__call__
            else:
                cls.__call__ = own
