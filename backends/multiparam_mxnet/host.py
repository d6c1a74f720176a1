"""A live block: a storage is a ``gluon.Parameter``; a slot is a key of a block's ``_reg_params``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import numpy as np

from multiparam.adapter import (
    Activation,
    Holders,
    Host,
    LayerNames,
    Layout,
    OnEnter,
    Place,
    Run,
    Slot,
    Storages,
    Unsupported,
    rank,
    require_dependence,
    temporarily,
    watch_calls,
)

from .layers import (
    LAYERS,
    RECURRENT_BLOCKS,
    blocks,
    channels_last,
    fingerprint,
    held_children,
    leaf_names,
    places,
)
from .load import load
from .optimizers import GluonOptimizer, made, trainer
from .pooling import differentiable_poolings
from .storage import GluonStorage, TiedView, is_np, namespace, parameter_shape, untied
from .symbols import SymbolBlock, auxiliary, variables

mx = load()
autograd, gluon = mx.autograd, mx.gluon

EPS_IN_FLOAT32 = (gluon.nn.LayerNorm, gluon.nn.GroupNorm, gluon.nn.InstanceNorm)
PLAIN = (
    "an array with a gradient in a plain attribute, which Gluon lists nowhere. Make it a gluon.Parameter of the block, "
    "and it is found."
)
_copies = itertools.count()


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
        self._holders = Holders(native)

    def slots(self) -> list[Slot]:
        slots: list[Slot] = []
        all_places = list(places(self.native))
        self._holders = held_children(self.native, all_places)
        for path, positions, block in all_places:
            slots += self._own_slots(block, path, positions)
        held = {id(slot.storage.native) for slot in slots}
        slots += self._unheld(all_places, held)
        self._storages.keep(slots)
        return slots

    def fingerprint(self) -> Any:
        return fingerprint(self.native)

    def holds(self, slot: Slot) -> bool:
        block: Any = slot.owner
        there = block._reg_params.get(slot.leaf)
        if there is None:  # in no attribute, or one of a graph
            there = block._params._params.get(slot.leaf)
        if there is None or not self._holders.lead_to(slot.path[:-1], block):
            return False
        source, view = untied(there)
        return source is slot.storage.native and view == slot.view

    def count_children(self, path: tuple[str, ...]) -> int | None:
        block = next((block for place, _, block in places(self.native) if place == path), None)
        return None if block is None or isinstance(block, SymbolBlock) else len(block._children)

    def _unheld(self, all_places: list[Place], held: set[int]) -> list[Slot]:
        """Parameters that are in no attribute, under the name they were asked for, ``self.params.get(name)``."""
        slots = []
        for path, positions, block in all_places:
            for name, parameter in block._params.items():
                if id(parameter) not in held:
                    held.add(id(parameter))
                    storage, kind = self._storages.of(parameter, GluonStorage), LAYERS.of(type(block))
                    leaf, buffer = name.removeprefix(block.prefix), isinstance(parameter, gluon.Constant)
                    slots.append(Slot((*path, leaf), positions, kind, storage, None, block, name, buffer))
        return slots

    def _symbol_slots(self, block: Any, path: tuple[str, ...], positions: tuple[int, ...]) -> list[Slot]:
        """The slots of a SymbolBlock, layer by layer as its graph has them."""
        own, buffers = [], auxiliary(block)
        for name, (layer, number, leaf, kind, *_) in (known := variables(block)).items():
            parameter = block._params[name]
            source, view = untied(parameter)
            storage = self._storages.of(source, GluonStorage)
            layout = known[name].canonical(parameter_shape(parameter))
            place, inside = ((*path, layer), (*positions, number)) if layer else (path, positions)
            own.append(Slot((*place, leaf), inside, kind, storage, layout, block, name, name in buffers, view))
        return sorted(own, key=lambda slot: (slot.positions, rank(slot.kind, slot.path[-1])))

    def _own_slots(self, block: Any, path: tuple[str, ...], positions: tuple[int, ...]) -> list[Slot]:
        if isinstance(block, SymbolBlock):
            return self._symbol_slots(block, path, positions)
        cls, kind, names = type(block), LAYERS.of(type(block)), leaf_names(block)
        own: list[Slot] = []
        for leaf, parameter in block._reg_params.items():
            source, view = untied(parameter)
            storage = self._storages.of(source, GluonStorage)
            name, layout = LAYERS.canonical(cls, leaf, parameter_shape(parameter), names)
            buffer = leaf in ("running_mean", "running_var") or isinstance(parameter, gluon.Constant)
            own.append(Slot((*path, name), positions, kind, storage, layout, block, leaf, buffer, view))
        if isinstance(block, RECURRENT_BLOCKS):  # Gluon lists all weights of all its layers first
            own.sort(key=lambda slot: rank(kind, slot.path[-1]))
        return own

    def stored_names(self, slots: Sequence[Slot]) -> list[list[str]]:
        structured = {id(p): name for name, p in self.native._collect_params_with_prefix().items()}
        prefix = self.native.prefix
        return [
            [structured.get(id(slot.storage.native), "") for slot in slots],  # Block.save_parameters
            [slot.storage.native.name for slot in slots],  # collect_params().save, and what export writes
            [slot.storage.native.name.removeprefix(prefix) for slot in slots],
        ]

    @property
    def data_order(self) -> str:
        return "last" if any(map(channels_last, blocks(self.native))) else "first"

    def in_float64(self) -> AbstractContextManager[None] | None:
        dtypes = {slot.storage.dtype for slot in self.slots()}
        return self._doubled(dtypes.pop()) if dtypes in ({"float32"}, {"float16"}) else None

    @contextmanager
    def _doubled(self, dtype: str) -> Iterator[None]:
        norms = blocks(self.native, EPS_IN_FLOAT32)
        self.native.cast("float64")
        try:
            for block in norms:
                block.hybrid_forward = _with_exact_eps(block)
            yield
        finally:
            for block in norms:
                del block.hybrid_forward
            self.native.cast(dtype)

    def unlisted(self) -> Mapping[str, str]:
        held = ((path, name, value) for path, _, block in places(self.native) for name, value in vars(block).items())
        arrays = (
            (path, name) for path, name, each in held if isinstance(each, mx.nd.NDArray) and each.grad is not None
        )
        return {".".join((*path, name)): PLAIN for path, name in arrays}

    @contextmanager
    def watch(self, on_call: Callable[[Activation], Any], on_enter: OnEnter | None = None) -> Iterator[None]:
        names = LayerNames.of_slots(self.slots(), places(self.native))
        # a compiled graph calls no blocks; and not by hooks, which change nothing
        active = ((block, "_active", False) for block in blocks(self.native, gluon.HybridBlock))
        with temporarily(active), watch_calls(names, on_call, on_enter):
            yield

    def options(self, slot: Slot) -> Mapping[str, Any]:
        if isinstance(slot.owner, SymbolBlock):
            return variables(slot.owner)[slot.leaf].options
        return LAYERS.options(slot.options_layer)

    def place(self, array: Any) -> Any:
        for storage in self._storages:
            with suppress(RuntimeError):  # of one that is not initialised
                return array.as_in_context(storage.native.list_ctx()[0])
        return array

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        if autograd.is_recording():  # inside the user's own record(), or a step: the mode is decided there
            return self.native(*inputs, **kwargs)
        with autograd.train_mode() if train else autograd.predict_mode():
            return self.native(*inputs, **kwargs)

    def call_with(self, values: Mapping[Any, Any], inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        changes = []
        for slot in self.slots():
            native, there = slot.storage.native, slot.storage.native.list_data()
            array = values.get(slot.storage)
            arrays = there if array is None else [array.as_in_context(each.context) for each in there]
            if slot.buffer:  # running statistics are written into it
                arrays = [each.copy() for each in arrays]
            changes.append((native, "_data", arrays))
        with temporarily(changes):
            return self.call(inputs, kwargs, train)

    def bind(self, slots: Sequence[Slot], storage: Any, view: Layout | None = None) -> None:
        block, leaf = slots[0].owner, slots[0].leaf
        old, new = slots[0].storage.native, storage.native
        if isinstance(block, SymbolBlock) or leaf not in block._reg_params:
            raise Unsupported(
                f"{leaf!r} is in no attribute of its block, which finds it by that name, so nothing else can be tied "
                "there. In a block of your own, assign what self.params.get returns to an attribute."
            )
        # The three places a block keeps a parameter; plain assignment asserts that the two are the same.
        held = new if view is None else TiedView(new, view)
        object.__setattr__(block, leaf, held)
        block._reg_params[leaf] = held
        entries = [(new.name, new) if p is old else (name, p) for name, p in block._params._params.items()]
        block._params._params.clear()
        block._params._params.update(entries)
        self._storages.add(storage)
        for each in blocks(self.native, gluon.HybridBlock):  # a compiled graph would go on using the old one
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
            poolings = nullcontext() if train else differentiable_poolings(self.native)
            with renewed_gradients(parameters), _marked(neighbours):
                with poolings, autograd.record(train_mode=train):
                    loss = run(self, *batch)
                _backward(loss, train)
            for storage in storages:
                if not storage.native.data()._fresh_grad:
                    storage.native.grad()[:] = 0  # the loss does not depend on it
                storage.mark_fresh()
            return loss.detach(), [parameter.grad() for parameter in parameters]

        return step

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> GluonOptimizer:
        return GluonOptimizer(trainer(made(name, options), storages), storages)

    def make_optimizer(self, kind: Any, options: Mapping[str, Any], storages: Sequence[Any]) -> Any:
        is_one = isinstance(kind, type) and issubclass(kind, mx.optimizer.Optimizer)
        return kind(**options) if is_one else None

    def native_optimizer(self, native: Any, storages: Sequence[Any]) -> GluonOptimizer | None:
        if isinstance(native, mx.optimizer.Optimizer):
            native = trainer(native, storages)
        return GluonOptimizer(native, storages) if isinstance(native, gluon.Trainer) else None


def _backward(loss: Any, train: bool) -> None:
    try:
        loss.backward(train_mode=train)
    except mx.base.MXNetError as error:
        require_dependence("not in a computational graph" not in str(error))
        raise


def frozen_neighbours(slots: Sequence[Slot], storages: Sequence[Any]) -> list[Any]:
    """Frozen parameters of blocks that have others to differentiate. MXNet 1.9.1 writes no gradient of a bias in
    float32 where it is to write none of the weight, so these get one that is thrown away."""
    wanted = {id(storage) for storage in storages}
    parameters = [slot for slot in slots if not slot.buffer]
    owners = {id(slot.owner) for slot in parameters if id(slot.storage) in wanted}
    frozen = [slot.storage for slot in parameters if id(slot.owner) in owners and not slot.storage.trainable]
    return list({id(each): each.native for each in frozen if each.native._differentiable}.values())


@contextmanager
def _marked(parameters: Sequence[Any]) -> Iterator[None]:
    """Gradients of frozen parameters that are thrown away, for those that MXNet would not write without."""
    for parameter in parameters:
        arrays = parameter._data
        autograd.mark_variables(arrays, [_empty_like(a) for a in arrays], ["write"] * len(arrays))
    try:
        yield
    finally:
        for parameter in parameters:
            parameter._data = [array.detach() for array in parameter._data]


@contextmanager
def renewed_gradients(parameters: Sequence[Any]) -> Iterator[None]:
    """New arrays for the gradients of parameters: backward overwrites them, and an earlier step's result must not
    change. Cheaper than copying every result, since nothing is filled or copied. After an error the old ones are back.
    """
    before = [parameter._grad for parameter in parameters]
    data = [array for parameter in parameters for array in parameter._data]
    fresh = [array._fresh_grad for array in data]
    for parameter in parameters:
        parameter._grad = [_empty_like(g) for g in parameter._grad]
        if parameter.grad_req == "add":
            for g in parameter._grad:
                g[:] = 0
    _mark(parameters, data, [False] * len(data))
    try:
        yield
    except BaseException:
        for parameter, grads in zip(parameters, before, strict=True):
            parameter._grad = grads
        _mark(parameters, data, fresh)
        raise


def _mark(parameters: Sequence[Any], data: Sequence[Any], fresh: Sequence[bool]) -> None:
    """Tell autograd where gradients go, and Trainers whether they are new."""
    requests = [parameter.grad_req for parameter in parameters for _ in parameter._grad]
    autograd.mark_variables(data, [g for parameter in parameters for g in parameter._grad], requests)
    for array, is_fresh in zip(data, fresh, strict=True):
        array._fresh_grad = is_fresh


def _empty_like(array: Any) -> Any:
    if array.stype != "default":
        return mx.nd.sparse.zeros(array.stype, array.shape, array.context, array.dtype)
    new = mx.nd.empty(array.shape, array.context, array.dtype)
    return new.as_np_ndarray() if is_np(array) else new
