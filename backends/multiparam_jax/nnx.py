"""Flax NNX: a storage is an ``nnx.Variable``; a slot is an attribute, or an entry of an ``nnx.List`` or ``Dict``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flax import nnx

from multiparam import layouts
from multiparam.identity import Storages
from multiparam.protocol import Host, Run, Slot

from .arrays import LAYERS, ArrayStorage, OptaxOptimizer, compiled_step, leaves_of, scope

# Attributes of layers that say whether they train, and their value in training
MODES = {"deterministic": False, "use_running_average": False}


class VariableStorage(ArrayStorage):
    """An nnx.Variable."""

    def __init__(self, native: Any) -> None:
        self.native = native

    def get(self) -> Any:
        variable = self.native
        return variable.get_value() if hasattr(variable, "get_value") else variable.value

    def set(self, array: Any) -> None:
        variable = self.native
        if hasattr(variable, "set_value"):
            variable.set_value(array)
        else:
            variable.value = array


class NnxHost(Host):
    """An nnx.Module."""

    def __init__(self, native: Any, like: list[Slot] | None = None) -> None:
        self.native = native
        self._like = like  # the slots in the order first seen, which nnx.clone and nnx.jit do not keep
        self._storages: Storages[VariableStorage] = Storages()

    def slots(self) -> list[Slot]:
        found: list[Slot] = []
        self._walk(self.native, (), (), found, ())
        self._storages.keep(found)
        mine = {slot.path: slot for slot in found}
        if self._like is not None and mine.keys() == {slot.path for slot in self._like}:
            found = [
                Slot(s.path, s.positions, s.kind, mine[s.path].storage, s.layout, mine[s.path].owner, s.leaf, s.buffer)
                for s in self._like
            ]
        self._like = found
        return found

    def _walk(
        self, module: Any, path: tuple[str, ...], positions: tuple[int, ...], found: list[Slot], above: tuple[int, ...]
    ) -> None:
        if id(module) in above:  # a module that refers back to its parent
            return
        above = (*above, id(module))
        kind, own, position = LAYERS.of(type(module)), [], 0
        for name, value in entries(module):
            if isinstance(value, nnx.Variable):
                storage = self._storages.of(value, VariableStorage)
                leaf, layout = LAYERS.canonical(type(module), name, storage.shape or (), leaves_of(module))
                buffer = not isinstance(value, nnx.Param)
                own.append(Slot((*path, leaf), positions, kind, storage, layout, module, name, buffer))
        found.extend(sorted(own, key=lambda slot: layouts.rank(kind, slot.path[-1])))
        inline = isinstance(module, nnx.Sequential)  # its list of layers is the sequence itself
        for name, value in entries(module):
            if not isinstance(value, nnx.Variable):
                if inline and name == "layers":
                    self._walk(value, path, positions, found, above)
                else:  # a list counts the functions in it too
                    listed = name.isdigit() and isinstance(module, (list, tuple, nnx.List))
                    at = int(name) if listed else position
                    self._walk(value, (*path, name), (*positions, at), found, above)
                position += 1

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        with self._mode(train), scope({storage.get().dtype for storage in self._storages}):
            return self.native(*inputs, **kwargs)

    @contextmanager
    def _mode(self, train: bool) -> Iterator[None]:
        """Put every layer in a mode, then give each back the one it had."""
        before = []
        for module in modules(self.native):
            for name, value in MODES.items():
                if name in vars(module) and vars(module)[name] is not None:
                    before.append((module, name, getattr(module, name)))
                    setattr(module, name, value is train)
        try:
            yield
        finally:
            for module, name, value in before:
                setattr(module, name, value)

    def bind(self, slots: Sequence[Slot], storage: Any) -> None:
        owner, leaf = slots[0].owner, slots[0].leaf
        if leaf.isdigit() and isinstance(owner, nnx.List):
            owner[int(leaf)] = storage.native
        else:
            setattr(owner, leaf, storage.native)
        self._storages.add(storage)

    def copy(self, storage: Any) -> VariableStorage:
        fresh = self._storages.of(storage.native.copy(), VariableStorage)
        fresh.trainable = storage.trainable
        return fresh

    def _all(self) -> list[VariableStorage]:
        """Each Variable once: the slots', then the state of random streams, which a step moves too."""
        found: dict[int, VariableStorage] = {id(slot.storage): slot.storage for slot in self.slots()}  # type: ignore[misc]
        streams = {path: value for path, value in random_state(self.native, ()) if isinstance(value, nnx.RngState)}
        return [*found.values(), *(VariableStorage(streams[path]) for path in sorted(streams))]

    def gradient(self, run: Run, storages: Sequence[Any], train: bool) -> Callable[..., tuple[Any, list[Any]]]:
        like, everything = self.slots(), self._all()
        wanted = [everything.index(storage) for storage in storages]
        others = [i for i in range(len(everything)) if i not in wanted]

        def view(values: list[Any], rest: list[Any], count: Any) -> tuple[NnxHost, Callable[[], list[Any]]]:
            host = NnxHost(nnx.clone(self.native), like)  # a clone made inside the trace may hold traced values
            copies = host._all()
            for i, value in zip([*wanted, *others], [*values, *rest], strict=True):
                copies[i].set(value)
            return host, lambda: [copies[i].get() for i in others]

        return compiled_step(view, run, storages, [everything[i] for i in others])

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> OptaxOptimizer:
        return OptaxOptimizer(name, options, storages)


def entries(module: Any, streams: bool = False) -> Iterator[tuple[str, Any]]:
    """A module's Variables and submodules by name, in definition order; random streams only when asked for."""
    items: Any
    if isinstance(module, Mapping):
        items = module.items()
    elif isinstance(module, (list, tuple)):
        items = enumerate(module)
    else:
        items = vars(module).items()
    for name, value in list(items):
        if str(name).startswith(("_pytree__", "_object__")):  # NNX's own bookkeeping
            continue
        stream = isinstance(value, (nnx.RngState, nnx.Rngs, nnx.RngStream))
        if stream and not streams:
            continue
        if isinstance(value, (nnx.Variable, nnx.Module, nnx.Rngs, nnx.RngStream)) or (
            isinstance(value, (list, tuple, dict)) and any(True for _ in entries(value))
        ):
            yield str(name), value


def modules(module: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Every module below and including one, each once."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    if not isinstance(module, (list, tuple, dict)):
        yield module
    for _, value in entries(module):
        if not isinstance(value, nnx.Variable):
            yield from modules(value, seen)


def random_state(module: Any, path: tuple[str, ...], seen: set[int] | None = None) -> Iterator[tuple[Any, Any]]:
    """Every Variable with the path it is first found at, in the order of names, random streams included."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    for name, value in sorted(entries(module, streams=True), key=lambda entry: entry[0]):
        if not isinstance(value, nnx.Variable):
            yield from random_state(value, (*path, name), seen)
        elif id(value) not in seen:
            seen.add(id(value))
            yield (*path, name), value
