"""Flax NNX: a storage is an ``nnx.Variable``; a slot is an attribute, or an entry of an ``nnx.List`` or ``Dict``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from multiparam import paths
from multiparam.core import layers as layer_kinds
from multiparam.core import layouts
from multiparam.core.composite import fold
from multiparam.core.identity import LayerNames, Storages, watch_calls
from multiparam.core.protocol import Activation, Host, Run, Slot
from multiparam.errors import Unsupported, UnsupportedAttribute

from .arrays import (
    COMPOSITES,
    FLOAT32,
    LAYERS,
    ArrayStorage,
    Namespace,
    OptaxOptimizer,
    compiled_step,
    in_float64,
    leaves_of,
    scope,
)

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


TIED = "_tied"  # ends the attribute that holds the Variable of a transposed tie


class View(nnx.Param):  # type: ignore[type-arg]
    """What a module shows of a transposed tie; a write to it would be lost."""

    def __setitem__(self, key: Any, value: Any) -> None:
        raise UnsupportedAttribute("This is the transpose of another parameter: write to that one, or by its name.")

    def set_value(self, *args: Any, **kwargs: Any) -> None:
        self[...] = args


@functools.cache
def _seen_through(cls: type, leaf: str, view: layouts.Layout) -> type:
    """A class of modules whose ``leaf`` is a layout of the Variable in another attribute. NNX follows the Variable
    itself, as one shared; what it computes with is made of it at each use, so that gradients reach it."""

    def view(self: Any) -> Any:
        shared = VariableStorage(getattr(self, leaf + TIED)).get()
        return View(view.apply(shared, Namespace))

    body = {leaf: property(view), "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls)(cls.__name__, (cls,), {**body, "_multiparam_through": (leaf, view)})


def _seen_plainly(cls: type, leaf: str) -> type:
    """The class without that leaf's view; another leaf's may have been made after it."""
    base, (name, view) = cls.__base__, vars(cls)["_multiparam_through"]
    assert base is not None
    return base if name == leaf else _seen_through(_seen_plainly(base, leaf), name, view)


def _tied(module: Any, name: str) -> tuple[str, layouts.Layout | None]:
    """An attribute's own name and, where it holds a transposed tie, the name and layout of that."""
    for cls in type(module).__mro__:
        leaf, view = vars(cls).get("_multiparam_through", (None, None))
        if leaf is not None and name == leaf + TIED:
            return leaf, view
    return name, None


def _key(slot: Slot) -> tuple[Any, ...]:
    """What tells a slot from all others: parts of one parameter have one path."""
    return slot.path, None if slot.piece is None else slot.piece.part


class NnxHost(Host):
    """An nnx.Module."""

    def __init__(self, native: Any, like: list[tuple[Any, tuple[int, ...]]] | None = None) -> None:
        self.native = native
        # The slots' paths and positions in the order first seen, which nnx.clone and nnx.jit do not keep.
        self._like = like
        self._storages: Storages[VariableStorage] = Storages()

    def slots(self) -> list[Slot]:
        found: list[Slot] = []
        self._layers: list[tuple[str, Any]] = []
        self._walk(self.native, (), (), found, ())
        self._storages.keep(found)
        mine = {_key(slot): slot for slot in found}
        if self._like is not None and mine.keys() == {key for key, _ in self._like}:
            found = [mine[key].replace(positions=positions) for key, positions in self._like]
        self._like = [(_key(slot), slot.positions) for slot in found]
        return found

    def _walk(
        self, module: Any, path: tuple[str, ...], positions: tuple[int, ...], found: list[Slot], above: tuple[int, ...]
    ) -> None:
        if id(module) in above:  # a module that refers back to its parent
            return
        above = (*above, id(module))
        if isinstance(module, nnx.Module):
            self._layers.append((paths.text(path), module))
        kind, own, position = LAYERS.of(type(module)), [], 0
        for name, value in entries(module):
            if isinstance(value, nnx.Variable):
                storage = self._storages.of(value, VariableStorage)
                name, view = _tied(module, name)
                shape = storage.shape or () if view is None else view.shape(storage.shape or ())
                leaf, layout = LAYERS.canonical(type(module), name, shape, leaves_of(module))
                buffer = not isinstance(value, nnx.Param)
                own.append(Slot((*path, leaf), positions, kind, storage, layout, module, name, buffer, view))
        start = len(found)
        found.extend(sorted(own, key=lambda slot: layer_kinds.rank(kind, slot.path[-1])))
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
        composite = COMPOSITES.of(type(module))
        if composite is not None:
            fold(composite, found, start, len(path), module)

    data_order = "last"

    def in_float64(self) -> AbstractContextManager[None] | None:
        wide = in_float64(list(dict.fromkeys(slot.storage for slot in self.slots())))  # type: ignore[arg-type]
        return None if wide is None else self._doubled(wide)

    @contextmanager
    def _doubled(self, wide: AbstractContextManager[None]) -> Iterator[None]:
        """Layers compute in the dtype they were told, and an Embed in that of its array when it was made."""
        told = [(module, module.dtype) for module in modules(self.native) if vars(module).get("dtype") == FLOAT32]
        try:
            for module, _ in told:
                module.dtype = jnp.float64
            with wide:
                yield
        finally:
            for module, dtype in told:
                module.dtype = dtype

    def activations(self, inputs: tuple[Any, ...], on_call: Callable[[Activation], None]) -> Any:
        def concrete(call: Activation) -> None:
            if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(call.output)):  # not in a scan
                on_call(call)

        with watch_calls(LayerNames(self._layers), concrete):
            return self.call(inputs, {}, False)

    def options(self, slot: Slot) -> Mapping[str, Any]:
        return LAYERS.options(slot.options_layer)

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

    def bind(self, slots: Sequence[Slot], storage: Any, view: layouts.Layout | None = None) -> None:
        owner, leaf = slots[0].owner, slots[0].leaf
        if view is not None and (isinstance(owner, (list, tuple, dict)) or not hasattr(owner, leaf)):
            raise Unsupported("NNX lists hold no views: a parameter in a list cannot be the transpose of another.")
        order = list(vars(owner)) if hasattr(owner, "__dict__") else []
        if slots[0].view is not None:
            delattr(owner, leaf + TIED)
            owner.__class__ = _seen_plainly(type(owner), leaf)
        if view is not None:
            if slots[0].view is None:
                delattr(owner, leaf)
            owner.__class__ = _seen_through(type(owner), leaf, view)
            leaf += TIED
        if leaf.isdigit() and isinstance(owner, nnx.List):
            owner[int(leaf)] = storage.native
        else:
            setattr(owner, leaf, storage.native)
            bare = leaf.removesuffix(TIED)
            held, names = vars(owner), (bare, bare + TIED)
            at = next(i for i, name in enumerate(order) if name in names)
            for name in order[at:]:  # its place among the attributes is its place among the parameters
                name = leaf if name in names else name
                held[name] = held.pop(name)
        self._storages.add(storage)

    def copy(self, storage: Any, view: layouts.Layout | None = None) -> VariableStorage:
        native = storage.native.copy()
        fresh = self._storages.of(native, VariableStorage)
        if view is not None:
            fresh.set(view.apply(fresh.get(), Namespace))
        fresh.trainable = storage.trainable
        return fresh

    def _all(self) -> list[VariableStorage]:
        """Each Variable once: the slots', then the state of random streams, which a step moves too."""
        found: dict[int, VariableStorage] = {id(slot.storage): slot.storage for slot in self.slots()}  # type: ignore[misc]
        streams = {path: value for path, value in random_state(self.native, ()) if isinstance(value, nnx.RngState)}
        return [*found.values(), *(VariableStorage(streams[path]) for path in sorted(streams))]

    def gradient(self, run: Run, storages: Sequence[Any], train: bool) -> Callable[..., tuple[Any, list[Any]]]:
        everything = self._all()
        like = self._like
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
