"""Flax NNX: a storage is an ``nnx.Variable``; a slot is an attribute, or an entry of an ``nnx.List`` or ``Dict``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax.numpy as jnp
from flax import nnx

import multiparam.adapter as mpa
from multiparam.errors import Unsupported

from .arrays import (
    NAMESPACE,
    computes_narrower,
    in_float64,
    is_concrete,
    scope,
)
from .host import ArrayHost
from .layers import COMPOSITES, LAYERS, leaves_of, stacked_in_front
from .nnx_walk import TIED, NnxStorage, below, entries, fingerprint, held, places, view_of, with_view, without_view
from .training import compiled_step

# Attributes of layers that decide whether they train, and their value in training
MODES = {"deterministic": False, "use_running_average": False}

SlotKey = tuple[tuple[str, ...], int | None]


def _key(slot: mpa.Slot) -> SlotKey:
    """What tells a slot from all others: parts of one parameter have one path."""
    return slot.path, None if slot.piece is None else slot.piece.part


class _Attributes:
    """A module's attributes without what NNX does when they are set: it refuses that inside a user's own trace, where
    a mode, which holds no array, is none of its business."""

    def __init__(self, module: Any) -> None:
        self.__dict__ = vars(module)


class NnxHost(ArrayHost):
    """An nnx.Module."""

    def __init__(self, native: Any, order: list[tuple[SlotKey, tuple[int, ...]]] | None = None) -> None:
        self.native = native
        # The slots' keys and positions at the first look: nnx.clone and nnx.jit keep no order of attributes.
        self._order = order
        self._storages: mpa.Storages[NnxStorage] = mpa.Storages()
        self._layers: list[tuple[str, Any]] = []
        self._holders = mpa.Holders(native)
        self._counts: dict[tuple[str, ...], int] = {}

    def slots(self) -> list[mpa.Slot]:
        slots: list[mpa.Slot] = []
        self._layers, self._counts = [], {}
        self._holders = mpa.Holders(self.native)
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
        place: tuple[str, ...] | None = None,
    ) -> None:
        """Add the slots of a module and of all below it; ``place`` is where it is held, if that is not its path."""
        place = path if place is None else place
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
                self._holders.add((*path, name), place, value, held, module, name)
                self._walk(value, path, positions, slots, above, (*path, name))
            else:  # a list counts the functions in it too
                listed = name.isdigit() and isinstance(module, (list, tuple, nnx.List))
                number = int(name) if listed else position
                self._holders.add((*path, name), place, value, held, module, name)
                self._walk(value, (*path, name), (*positions, number), slots, above)
            position += 1
        if not inline:
            self._counts[path] = len(module) if isinstance(module, (list, tuple, nnx.List)) else position
        composite = COMPOSITES.of(type(module))
        if composite is not None:
            mpa.fold(composite, slots, start, len(path), module)

    def fingerprint(self) -> Any:
        return fingerprint(self.native)

    def count_children(self, path: tuple[str, ...]) -> int | None:
        return self._counts.get(path)

    def holds(self, slot: mpa.Slot) -> bool:
        attribute = slot.leaf if slot.view is None else slot.leaf + TIED
        storage: Any = slot.storage
        return held(slot.owner, attribute) is storage.native and self._holders.lead_to(slot.path[:-1], slot.owner)

    def _own(self, module: Any, path: tuple[str, ...], positions: tuple[int, ...]) -> list[mpa.Slot]:
        """The slots of a module's own Variables, in canonical order."""
        kind, leaves, own = LAYERS.of(type(module)), leaves_of(module), []
        for attribute, value in entries(module):
            if isinstance(value, nnx.Variable):
                storage = self._storages.of(value, NnxStorage)
                name, view = view_of(module, attribute)
                shape = storage.shape or () if view is None else view.shape(storage.shape or ())
                stacked = stacked_in_front(kind, module, shape)
                leaf, layout = LAYERS.canonical(type(module), name, shape[stacked:], leaves)
                if layout is not None and stacked:
                    layout = layout.lifted(shape[:stacked])
                buffer = not isinstance(value, nnx.Param)
                piece = mpa.Piece(options_layer=module, stacked=stacked) if stacked else None
                own.append(mpa.Slot((*path, leaf), positions, kind, storage, layout, module, name, buffer, view, piece))
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

    def watch(
        self, on_call: Callable[[mpa.Activation], Any], on_enter: mpa.OnEnter | None = None
    ) -> AbstractContextManager[None]:
        def concrete(call: mpa.Activation) -> Any:
            return on_call(call) if is_concrete(call.output) else None

        def concrete_inputs(layer: str, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return on_enter(layer, inputs) if on_enter is not None and is_concrete(inputs) else inputs

        entering = None if on_enter is None else concrete_inputs
        return mpa.watch_calls(mpa.LayerNames(self._layers), concrete, entering)

    def stored_names(self, slots: Sequence[mpa.Slot]) -> list[list[str]]:
        paths = places(self.native)
        names = [".".join((*paths[id(slot.owner)], slot.leaf)) for slot in slots]
        return [names, [f"{name}.value" for name in names]]  # with nnx.State's own wrapping, or without

    def _parameter_tree(self) -> Any:
        known = {id(storage.native): storage for storage in self._storages}
        variables = [item for item in nnx.iter_graph(self.native) if isinstance(item[1], nnx.Param)]
        return nnx.State.from_flat_path({path: known.get(id(v)) or NnxStorage(v) for path, v in variables})

    def options(self, slot: mpa.Slot) -> Mapping[str, Any]:
        return LAYERS.options(slot.options_layer)

    def low_rank_scale(self, slot: mpa.Slot) -> float | None:
        return 1.0 if isinstance(slot.owner, nnx.LoRA) and slot.path[-1] == "lora_a" else None

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        modes = (
            (_Attributes(module), name, value is bool(train))
            for module in self._modules()
            for name, value in MODES.items()
            if vars(module).get(name) is not None
        )
        with mpa.temporarily(modes), scope({storage.get().dtype for storage in self._storages}):
            return self.native(*inputs, **kwargs)

    def call_with(self, values: Mapping[Any, Any], inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        host = NnxHost(nnx.clone(self.native), self._order)
        for storage, twin in zip(self._all(), host._all(), strict=True):
            if storage in values:
                twin.set(values[storage])
        return host.call(inputs, kwargs, train)

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
