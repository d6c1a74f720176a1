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
    hook_calls,
    rank,
)

from .layers import LAYERS, RECURRENT_BLOCKS, blocks, channels_last, leaf_names, places
from .load import load
from .storage import GluonStorage, TiedView, is_np, namespace, parameter_shape
from .symbols import SymbolBlock, auxiliary, variables

mx = load()
autograd, gluon = mx.autograd, mx.gluon

EPS_IN_FLOAT32 = (gluon.nn.LayerNorm, gluon.nn.GroupNorm, gluon.nn.InstanceNorm)
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

    def slots(self) -> list[Slot]:
        slots: list[Slot] = []
        all_places = list(places(self.native))
        for path, positions, block in all_places:
            slots += self._own_slots(block, path, positions)
        held = {id(slot.storage.native) for slot in slots}
        slots += self._unheld(all_places, held)
        self._storages.keep(slots)
        return slots

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
            source, view = (parameter.source, parameter.view) if isinstance(parameter, TiedView) else (parameter, None)
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
            source, view = (parameter.source, parameter.view) if isinstance(parameter, TiedView) else (parameter, None)
            storage = self._storages.of(source, GluonStorage)
            name, layout = LAYERS.canonical(cls, leaf, parameter_shape(parameter), names)
            buffer = leaf in ("running_mean", "running_var") or isinstance(parameter, gluon.Constant)
            own.append(Slot((*path, name), positions, kind, storage, layout, block, leaf, buffer, view))
        if isinstance(block, RECURRENT_BLOCKS):  # Gluon lists all weights of all its layers first
            own.sort(key=lambda slot: rank(kind, slot.path[-1]))
        return own

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

    def activations(self, inputs: tuple[Any, ...], on_call: Callable[[Activation], None]) -> Any:
        names = LayerNames.of_slots(self.slots(), places(self.native))
        active = [(block, block._active) for block in blocks(self.native, gluon.HybridBlock)]
        try:
            for block, _ in active:  # a compiled graph calls no hooks
                block._active = False
            with hook_calls(names, on_call):
                return self.call(inputs, {}, False)
        finally:
            for block, was_active in active:
                block._active = was_active

    def options(self, slot: Slot) -> Mapping[str, Any]:
        if isinstance(slot.owner, SymbolBlock):
            return variables(slot.owner)[slot.leaf].options
        return LAYERS.options(slot.options_layer)

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        if autograd.is_recording():  # inside the user's own record(), or a step: the mode is decided there
            return self.native(*inputs, **kwargs)
        with autograd.train_mode() if train else autograd.predict_mode():
            return self.native(*inputs, **kwargs)

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
            renew_gradients(parameters)
            for parameter in neighbours:
                arrays = parameter._data
                autograd.mark_variables(arrays, [_empty_like(a) for a in arrays], ["write"] * len(arrays))
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


def frozen_neighbours(slots: Sequence[Slot], storages: Sequence[Any]) -> list[Any]:
    """Frozen parameters of blocks that have others to differentiate. MXNet 1.9.1 writes no gradient of a bias in
    float32 where it is to write none of the weight, so these get one that is thrown away."""
    wanted = {id(storage) for storage in storages}
    parameters = [slot for slot in slots if not slot.buffer]
    owners = {id(slot.owner) for slot in parameters if id(slot.storage) in wanted}
    frozen = [slot.storage for slot in parameters if id(slot.owner) in owners and not slot.storage.trainable]
    return list({id(each): each.native for each in frozen if each.native._differentiable}.values())


def renew_gradients(parameters: Sequence[Any]) -> None:
    """Give parameters new arrays for their gradients: backward overwrites them, and an earlier step's result must
    not change. Cheaper than copying every result, since nothing is filled or copied."""
    data, grads, requests = [], [], []
    for parameter in parameters:
        old = parameter._grad
        parameter._grad = [_empty_like(g) for g in old]
        if parameter.grad_req == "add":
            for g in parameter._grad:
                g[:] = 0
        data += parameter._data
        grads += parameter._grad
        requests += [parameter.grad_req] * len(old)
    autograd.mark_variables(data, grads, requests)
    for array in data:
        array._fresh_grad = False


def _empty_like(array: Any) -> Any:
    if array.stype != "default":
        return mx.nd.sparse.zeros(array.stype, array.shape, array.context, array.dtype)
    new = mx.nd.empty(array.shape, array.context, array.dtype)
    return new.as_np_ndarray() if is_np(array) else new


class GluonOptimizer:
    """A gluon.Trainer."""

    def __init__(self, name: str, options: Mapping[str, Any], storages: Sequence[GluonStorage]) -> None:
        native = Adam(**options) if name == "adam" else Sgd(**options)
        self._storages = list(storages)
        self.native = gluon.Trainer([storage.native for storage in storages], native, kvstore=None)

    @property
    def lr(self) -> float:
        return float(self.native.learning_rate)

    @lr.setter
    def lr(self, value: float) -> None:
        if not isinstance(self.native._optimizer, Adam):  # its velocity holds the rate, PyTorch's does not
            for updater in self.native._updaters:
                for state in updater.states.values():
                    if state is not None:
                        state *= value / self.lr
        self.native.set_learning_rate(value)

    def apply(self, storages: Sequence[Any], grads: Sequence[Any]) -> None:
        for storage in self._storages:
            if storage.trainable:
                storage.native.data()._fresh_grad = False
        for storage, grad in zip(storages, grads, strict=True):
            own = storage.native.grad()
            if own is not grad:
                own[:] = grad
            storage.mark_fresh()
        self.native.step(1, ignore_stale_grad=True)  # it updates the fresh ones; 1: the loss is a mean already


# The update operators of MXNet 1.9.1 take their rates as float32. For float64 parameters the two optimizers below
# compute the same formulas by array arithmetic, which takes float64 rates; other dtypes use MXNet's operators.


class Sgd(mx.optimizer.NAG):  # type: ignore[misc,name-defined]
    """MXNet's SGD, with momentum of either kind. The velocity is ``-lr`` times PyTorch's."""

    def __init__(self, lr: float, momentum: float = 0.0, nesterov: bool = False) -> None:
        super().__init__(learning_rate=lr, momentum=momentum)
        self._nesterov = nesterov
        self._plain = mx.optimizer.SGD(learning_rate=lr, momentum=momentum)

    def update_multi_precision(self, index: Any, weight: Any, grad: Any, state: Any) -> None:
        if weight.dtype == np.float64:
            change = grad * -self._get_lr(index)
            if state is not None:
                state[:] = state * self.momentum + change
                change = state * self.momentum + change if self._nesterov else state
            weight[:] = weight + change
        elif self._nesterov:
            super().update(index, weight, grad, state)
        else:
            self._plain.set_learning_rate(self.learning_rate)
            self._plain.update([index], [weight], [grad], [state])


class Adam(mx.optimizer.Adam):  # type: ignore[misc,name-defined]
    """MXNet's Adam with PyTorch's eps: MXNet adds it before the bias correction, so it is scaled by that first."""

    def __init__(self, lr: float, beta1: float, beta2: float, eps: float) -> None:
        super().__init__(learning_rate=lr, beta1=beta1, beta2=beta2, epsilon=eps)
        self._eps = eps

    def update(self, index: Any, weight: Any, grad: Any, state: Any) -> None:
        t = self._index_update_count.get(index, self.begin_num_update) + 1
        correction = math.sqrt(1 - self.beta2**t)
        self.epsilon = self._eps * correction
        if weight.dtype != np.float64:
            super().update(index, weight, grad, state)
            return
        self._update_count(index)
        mean, square = state
        mean[:] = mean + (grad - mean) * (1 - self.beta1)
        square[:] = square + (grad * grad - square) * (1 - self.beta2)
        rate = self._get_lr(index) * correction / (1 - self.beta1**t)
        weight[:] = weight - mean * rate / (square.sqrt() + self.epsilon)
