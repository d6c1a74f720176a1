"""Flax NNX: a storage is an ``nnx.Variable``; a slot is an attribute, or an entry of an ``nnx.List`` or ``Dict``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax.numpy as jnp
from flax import nnx

import multiparam.adapter as mpa
from multiparam.errors import Unsupported

from .arrays import NAMESPACE, computes_narrower, in_float64, is_concrete, scope
from .layers import COMPOSITES, LAYERS, leaves_of
from .nnx_walk import TIED, NnxStorage, below, entries, view_of, with_view, without_view
from .training import OptaxOptimizer, compiled_step

# Attributes of layers that decide whether they train, and their value in training
MODES = {"deterministic": False, "use_running_average": False}

SlotKey = tuple[tuple[str, ...], int | None]


def _key(slot: mpa.Slot) -> SlotKey:
    """What tells a slot from all others: parts of one parameter have one path."""
    return slot.path, None if slot.piece is None else slot.piece.part


class NnxHost(mpa.Host):
    """An nnx.Module."""

    def __init__(self, native: Any, order: list[tuple[SlotKey, tuple[int, ...]]] | None = None) -> None:
        self.native = native
        # The slots' keys and positions at the first look: nnx.clone and nnx.jit keep no order of attributes.
        self._order = order
        self._storages: mpa.Storages[NnxStorage] = mpa.Storages()
        self._layers: list[tuple[str, Any]] = []

    def slots(self) -> list[mpa.Slot]:
        slots: list[mpa.Slot] = []
        self._layers = []
        self._walk(self.native, (), (), slots, ())
        self._storages.keep(slots)
        by_key = {_key(slot): slot for slot in slots}
        if self._order is not None and by_key.keys() == {key for key, _ in self._order}:
            slots = [by_key[key].replace(positions=positions) for key, positions in self._order]
        self._order = [(_key(slot), slot.positions) for slot in slots]
        return slots

    def _walk(
        self,
        module: Any,
        path: tuple[str, ...],
        positions: tuple[int, ...],
        slots: list[mpa.Slot],
        above: tuple[int, ...],
    ) -> None:
        if id(module) in above:  # a module that refers back to its parent
            return
        above = (*above, id(module))
        if isinstance(module, nnx.Module):
            self._layers.append((mpa.paths.text(path), module))
        start, position = len(slots), 0
        slots += self._own(module, path, positions)
        inline = isinstance(module, nnx.Sequential)  # its list of layers is the sequence itself
        for name, value in entries(module):
            if isinstance(value, nnx.Variable):
                continue
            if inline and name == "layers":
                self._walk(value, path, positions, slots, above)
            else:  # a list counts the functions in it too
                listed = name.isdigit() and isinstance(module, (list, tuple, nnx.List))
                place = int(name) if listed else position
                self._walk(value, (*path, name), (*positions, place), slots, above)
            position += 1
        composite = COMPOSITES.of(type(module))
        if composite is not None:
            mpa.fold(composite, slots, start, len(path), module)

    def _own(self, module: Any, path: tuple[str, ...], positions: tuple[int, ...]) -> list[mpa.Slot]:
        """The slots of a module's own Variables, in canonical order."""
        kind, leaves, own = LAYERS.of(type(module)), leaves_of(module), []
        for attribute, value in entries(module):
            if isinstance(value, nnx.Variable):
                storage = self._storages.of(value, NnxStorage)
                name, view = view_of(module, attribute)
                shape = storage.shape or () if view is None else view.shape(storage.shape or ())
                leaf, layout = LAYERS.canonical(type(module), name, shape, leaves)
                buffer = not isinstance(value, nnx.Param)
                own.append(mpa.Slot((*path, leaf), positions, kind, storage, layout, module, name, buffer, view))
        return sorted(own, key=lambda slot: mpa.rank(kind, slot.path[-1]))

    @property
    def data_order(self) -> str:
        return "last"

    def _modules(self) -> Iterator[Any]:
        """Every module, each once."""
        return (item for item in below(self.native) if not isinstance(item, (list, tuple, dict, nnx.Variable)))

    def in_float64(self) -> AbstractContextManager[None] | None:
        wide = in_float64(slot.storage for slot in self.slots())
        return None if wide is None else self._computing_in_float64(wide)

    @contextmanager
    def _computing_in_float64(self, wide: AbstractContextManager[None]) -> Iterator[None]:
        """Layers compute in their ``dtype``, and flax 0.12's Embed in that of its array when it was made."""
        narrow = [module for module in self._modules() if computes_narrower(module)]
        with mpa.temporarily((module, "dtype", jnp.float64) for module in narrow), wide:
            yield

    def activations(self, inputs: tuple[Any, ...], on_call: Callable[[mpa.Activation], None]) -> Any:
        def concrete(call: mpa.Activation) -> None:
            if is_concrete(call.output):
                on_call(call)

        with mpa.watch_calls(mpa.LayerNames(self._layers), concrete):
            return self.call(inputs, {}, False)

    def options(self, slot: mpa.Slot) -> Mapping[str, Any]:
        return LAYERS.options(slot.options_layer)

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        modes = (
            (module, name, value is bool(train))
            for module in self._modules()
            for name, value in MODES.items()
            if vars(module).get(name) is not None
        )
        with mpa.temporarily(modes), scope({storage.get().dtype for storage in self._storages}):
            return self.native(*inputs, **kwargs)

    def bind(self, slots: Sequence[mpa.Slot], storage: Any, view: mpa.Layout | None = None) -> None:
        owner, leaf = slots[0].owner, slots[0].leaf
        if view is not None and (isinstance(owner, (list, tuple, dict)) or not hasattr(owner, leaf)):
            raise Unsupported("NNX lists hold no views: a parameter in a list cannot be the transpose of another.")
        order = list(vars(owner)) if hasattr(owner, "__dict__") else []
        if slots[0].view is not None:
            delattr(owner, leaf + TIED)
            owner.__class__ = without_view(type(owner), leaf)
        elif view is not None:
            delattr(owner, leaf)
        if view is not None:
            owner.__class__ = with_view(owner.__class__, leaf, view)
        attribute, names = leaf if view is None else leaf + TIED, (leaf, leaf + TIED)
        if attribute.isdigit() and isinstance(owner, nnx.List):
            owner[int(attribute)] = storage.native
        else:
            setattr(owner, attribute, storage.native)
            place = next(i for i, name in enumerate(order) if name in names)
            for name in order[place:]:  # its place among the attributes is its place among the parameters
                name = attribute if name in names else name
                vars(owner)[name] = vars(owner).pop(name)
        self._storages.add(storage)

    def copy(self, storage: Any, view: mpa.Layout | None = None) -> NnxStorage:
        fresh = self._storages.of(storage.native.copy(), NnxStorage)
        if view is not None:
            fresh.set(view.apply(fresh.get(), NAMESPACE))
        fresh.trainable = storage.trainable
        return fresh

    def _all(self) -> list[Any]:
        """The storage of each Variable once: the slots', then the state of random streams, which a step moves too."""
        held = dict.fromkeys(slot.storage for slot in self.slots())
        streams = (item for item in below(self.native, streams=True) if isinstance(item, nnx.RngState))
        return [*held, *map(NnxStorage, streams)]

    def gradient(self, run: mpa.Run, storages: Sequence[Any], train: bool) -> Callable[..., tuple[Any, list[Any]]]:
        everything, order = self._all(), self._order
        trained = [everything.index(storage) for storage in storages]
        others = [i for i in range(len(everything)) if i not in trained]

        def host_of(values: list[Any], rest: list[Any], count: Any) -> tuple[NnxHost, Callable[[], list[Any]]]:
            host = NnxHost(nnx.clone(self.native), order)  # a clone made inside the trace may hold traced values
            copies = host._all()
            for i, value in zip([*trained, *others], [*values, *rest], strict=True):
                copies[i].set(value)
            return host, lambda: [copies[i].get() for i in others]

        return compiled_step(host_of, run, storages, [everything[i] for i in others])

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> OptaxOptimizer:
        return OptaxOptimizer(name, options, storages)
