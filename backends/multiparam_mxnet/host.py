"""A live block: a storage is a ``gluon.Parameter``; a slot is a key of a block's ``_reg_params``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from multiparam.adapter import (
    Activation,
    Host,
    LayerNames,
    Layout,
    Place,
    Run,
    Slot,
    Storages,
    Unsupported,
    rank,
    walk,
)

from .layers import LAYERS, RECURRENT_BLOCKS, RUNNING, channels_last, leaf_names
from .load import load
from .storage import GluonStorage, TiedView, namespace
from .training import GluonOptimizer, frozen_neighbours, mark_for_gradients, renew_gradients

mx = load()
autograd, gluon = mx.autograd, mx.gluon

EPS_IN_FLOAT32 = (gluon.nn.LayerNorm, gluon.nn.GroupNorm, gluon.nn.InstanceNorm)
_copies = itertools.count()


def places(block: Any) -> Iterator[Place]:
    """Every use of every block below one."""
    return walk(block, lambda block: block._children.items())


def blocks(block: Any) -> list[Any]:
    """Every use of every block below one, without paths."""
    return [each for _, _, each in places(block)]


def _with_exact_eps(block: Any) -> Callable[..., Any]:
    """A norm whose operator takes eps in float32 (MXNet 1.9.1): with inputs scaled by s it is the norm with
    eps / s ** 2, so that s can make that the eps the user wrote."""
    forward, eps = block.hybrid_forward, block._epsilon
    scale = math.sqrt(float(np.float32(eps)) / eps) if eps else 1.0
    return lambda F, x, *args, **parameters: forward(F, x * scale, *args, **parameters)


class GluonHost(Host):
    """A Block."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self._storages: Storages[GluonStorage] = Storages()

    def slots(self) -> list[Slot]:
        slots: list[Slot] = []
        for path, positions, block in places(self.native):
            slots += self._own_slots(block, path, positions)
        held = {id(slot.storage.native) for slot in slots}
        lost = [p.name for p in self.native.collect_params().values() if id(p) not in held]
        if lost:
            raise Unsupported(
                f"Parameter {lost[0]!r} is held by no attribute of its block, so it has no stable name. "
                "Assign what self.params.get returns to an attribute."
            )
        self._storages.keep(slots)
        return slots

    def _own_slots(self, block: Any, path: tuple[str, ...], positions: tuple[int, ...]) -> list[Slot]:
        cls, kind, names = type(block), LAYERS.of(type(block)), leaf_names(block)
        own: list[Slot] = []
        for leaf, parameter in block._reg_params.items():
            source, view = (parameter.source, parameter.view) if isinstance(parameter, TiedView) else (parameter, None)
            storage = self._storages.of(source, GluonStorage)
            name, layout = LAYERS.canonical(cls, leaf, parameter.shape or (), names)
            buffer = leaf in RUNNING or isinstance(parameter, gluon.Constant)
            own.append(Slot((*path, name), positions, kind, storage, layout, block, leaf, buffer, view))
        if isinstance(block, RECURRENT_BLOCKS):  # Gluon lists all weights of all its layers first
            own.sort(key=lambda slot: rank(kind, slot.path[-1]))
        return own

    @property
    def data_order(self) -> str:
        return "last" if any(map(channels_last, blocks(self.native))) else "first"

    def in_float64(self) -> AbstractContextManager[None] | None:
        if any(slot.storage.dtype != "float32" for slot in self.slots()):
            return None
        return self._doubled()

    @contextmanager
    def _doubled(self) -> Iterator[None]:
        norms = [block for block in blocks(self.native) if isinstance(block, EPS_IN_FLOAT32)]
        self.native.cast("float64")
        try:
            for block in norms:
                block.hybrid_forward = _with_exact_eps(block)
            yield
        finally:
            for block in norms:
                del block.hybrid_forward
            self.native.cast("float32")

    def activations(self, inputs: tuple[Any, ...], on_call: Callable[[Activation], None]) -> Any:
        names = LayerNames.of_slots(self.slots(), places(self.native))
        active = [(block, block._active) for block in self._hybrid_blocks()]
        handles = [
            block.register_forward_hook(lambda block, *call: on_call(Activation(names.next(block), *call)))
            for block in names.layers
        ]
        try:
            for block, _ in active:  # a compiled graph calls no hooks
                block._active = False
            return self.call(inputs, {}, False)
        finally:
            for handle in handles:
                handle.detach()
            for block, was_active in active:
                block._active = was_active

    def _hybrid_blocks(self) -> list[Any]:
        return [block for block in blocks(self.native) if isinstance(block, gluon.HybridBlock)]

    def options(self, slot: Slot) -> Mapping[str, Any]:
        return LAYERS.options(slot.options_layer)

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        if autograd.is_recording():  # inside the user's own record(), or a step: the mode is decided there
            return self.native(*inputs, **kwargs)
        with autograd.train_mode() if train else autograd.predict_mode():
            return self.native(*inputs, **kwargs)

    def bind(self, slots: Sequence[Slot], storage: Any, view: Layout | None = None) -> None:
        block, leaf = slots[0].owner, slots[0].leaf
        old, new = slots[0].storage.native, storage.native
        # The three places a block keeps a parameter; plain assignment asserts that the two are the same.
        held = new if view is None else TiedView(new, view)
        object.__setattr__(block, leaf, held)
        block._reg_params[leaf] = held
        entries = [(new.name, new) if p is old else (name, p) for name, p in block._params._params.items()]
        block._params._params.clear()
        block._params._params.update(entries)
        self._storages.add(storage)
        for each in self._hybrid_blocks():  # a compiled graph would go on using the old one
            each._clear_cached_op()

    def copy(self, storage: Any, view: Layout | None = None) -> GluonStorage:
        old = storage.native
        values = old.data() if view is None else view.apply(old.data(), namespace(old.data()))
        # A Trainer knows parameters by name: the copy needs one of its own.
        fresh = gluon.Parameter(f"{old.name}_copy{next(_copies)}", old.grad_req, values.shape, old.dtype)
        fresh.initialize(mx.init.Zero(), ctx=old.list_ctx())
        fresh.set_data(values)
        return self._storages.of(fresh, GluonStorage)

    def gradient(self, run: Run, storages: Sequence[Any], train: bool) -> Callable[..., tuple[Any, list[Any]]]:
        parameters = [storage.native for storage in storages]
        neighbours = frozen_neighbours(self.slots(), storages)

        def step(*batch: Any) -> tuple[Any, list[Any]]:
            renew_gradients(parameters)
            mark_for_gradients(neighbours)
            with autograd.record(train_mode=train):
                loss = run(self, *batch)
            loss.backward(train_mode=train)
            for parameter in neighbours:
                parameter._data = [array.detach() for array in parameter._data]
            for storage in storages:
                if not storage.native.data()._fresh_grad:
                    storage.native.grad()[:] = 0  # the loss does not depend on it
                storage.mark_fresh()
            return loss.detach(), [parameter.grad() for parameter in parameters]

        return step

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> GluonOptimizer:
        return GluonOptimizer(name, options, storages)
