"""What NNX modules hold: Variables, modules, lists and dicts of them; and which attributes show transposed ties."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from flax import nnx

import multiparam.adapter as mpa
from multiparam.errors import UnsupportedAttribute

from .arrays import NAMESPACE, ArrayStorage

TIED = "_tied"  # ends the attribute that holds the Variable of a transposed tie


class _Flag:
    """Whether a Variable is trained: one for all its storages, of which each wrapper of a model has its own.

    A Variable's metadata would be part of what nnx.jit compiles for, and nothing can refer weakly to a Variable of flax
    0.12.10. So storages hold the flag, and the flag the Variable, whose identity is nobody else's as long.
    """

    def __init__(self, variable: Any) -> None:
        self.variable = variable
        self.trainable = True


_flags: weakref.WeakValueDictionary[int, _Flag] = weakref.WeakValueDictionary()  # by the Variable's identity


class NnxStorage(ArrayStorage):
    """An nnx.Variable."""

    def __init__(self, native: Any) -> None:
        super().__init__(native)
        self._flag = _flags.setdefault(id(native), _Flag(native))

    @property
    def trainable(self) -> bool:
        return self._flag.trainable

    @trainable.setter
    def trainable(self, flag: bool) -> None:
        self._flag.trainable = flag
        if not flag:
            self.gradient = None

    def get(self) -> Any:
        variable = self.native  # get_value came with flax 0.12, where value is deprecated
        return variable.get_value() if hasattr(variable, "get_value") else variable.value

    def set(self, array: Any) -> None:
        if hasattr(self.native, "set_value"):
            self.native.set_value(array)
        else:
            self.native.value = array


class TiedView(nnx.Param):
    """What a module shows of a transposed tie; a write to it would be lost."""

    def __setitem__(self, key: Any, value: Any) -> None:
        raise UnsupportedAttribute("This is the transpose of another parameter: write to that one, or by its name.")

    def set_value(self, *args: Any, **kwargs: Any) -> None:
        self[...] = args


@functools.cache
def with_view(cls: Any, leaf: str, layout: mpa.Layout) -> type:
    """A class of modules whose ``leaf`` is a layout of the Variable in another attribute. NNX follows the Variable
    itself, as one shared; what it computes with is made of it at each use, so that gradients reach it."""

    def show(self: Any) -> Any:
        shared = NnxStorage(getattr(self, leaf + TIED)).get()
        return TiedView(layout.apply(shared, NAMESPACE))

    body = {leaf: property(show), "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    subclass: type = type(cls)(cls.__name__, (cls,), {**body, "_multiparam_view": (leaf, layout)})
    return subclass


def without_view(cls: Any, leaf: str) -> type:
    """The class without that leaf's view; another leaf's may have been made after it."""
    base, (name, layout) = cls.__base__, vars(cls)["_multiparam_view"]
    return base if name == leaf else with_view(without_view(base, leaf), name, layout)


def view_of(module: Any, attribute: str) -> tuple[str, mpa.Layout | None]:
    """An attribute's own name and, where it holds a transposed tie, the name and layout of that."""
    for cls in type(module).__mro__:
        leaf, layout = vars(cls).get("_multiparam_view", (None, None))
        if leaf is not None and attribute == leaf + TIED:
            return leaf, layout
    return attribute, None


def entries(module: Any, streams: bool = False) -> Iterator[tuple[str, Any]]:
    """A module's Variables and submodules by name, in definition order; random streams only with ``streams``."""
    items: Any
    if isinstance(module, (list, tuple)):
        items = enumerate(module)
    else:
        items = (module if isinstance(module, Mapping) else vars(module)).items()
    for name, value in list(items):
        if str(name).startswith(("_pytree__", "_object__")):  # NNX's own bookkeeping, as of flax 0.12
            continue
        if isinstance(value, (nnx.RngState, nnx.Rngs, nnx.RngStream)) and not streams:
            continue
        if isinstance(value, (nnx.Variable, nnx.Module, nnx.Rngs, nnx.RngStream)) or (
            isinstance(value, (list, tuple, dict)) and any(True for _ in entries(value))
        ):
            yield str(name), value


def held(module: Any, name: str) -> Any:
    """What a module, list or mapping holds under one of the names that :func:`entries` gives."""
    if isinstance(module, (list, tuple)):
        return module[int(name)] if int(name) < len(module) else None
    return (module if isinstance(module, Mapping) else vars(module)).get(name)


def fingerprint(root: Any) -> Any:
    """What is another where a Variable, a module or a list has been put in the place of one, added or taken away."""
    seen: dict[int, Any] = {}
    waiting = [root]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        inside: Any = enumerate(module) if isinstance(module, (list, tuple)) else None
        if inside is None:
            inside = (module if isinstance(module, Mapping) else vars(module)).items()
        seen[id(module)] = known = []
        for name, value in inside:
            if isinstance(value, nnx.Variable):
                known.append((name, id(value)))
            elif isinstance(value, (nnx.Module, list, tuple, dict)):
                known.append((name, id(value)))
                waiting.append(value)
    return seen


def below(module: Any, streams: bool = False, visited: set[int] | None = None) -> Iterator[Any]:
    """A module and everything below it, each once, in the order of names, which a clone has too."""
    visited = set() if visited is None else visited
    if id(module) not in visited:
        visited.add(id(module))
        yield module
        if not isinstance(module, nnx.Variable):
            for _, value in sorted(entries(module, streams), key=lambda entry: entry[0]):
                yield from below(value, streams, visited)


def places(module: Any) -> dict[int, tuple[str, ...]]:
    """The path, as ``nnx.state`` has it, of a module and of each module, list and mapping below it, by identity."""
    places: dict[int, tuple[str, ...]] = {}

    def walk(item: Any, path: tuple[str, ...]) -> None:
        if id(item) not in places and not isinstance(item, nnx.Variable):
            places[id(item)] = path
            for name, value in entries(item):
                walk(value, (*path, name))

    walk(module, ())
    return places
