"""A live module: a storage is a ``torch.nn.Parameter`` or a buffer; a slot is a key of a module's ``_parameters``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn as tnn
from torch.func import functional_call
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from multiparam.adapter import (
    Activation,
    Box,
    Host,
    Inputs,
    LayerNames,
    Layout,
    OnEnter,
    Run,
    Slot,
    Storages,
    hook_calls,
    require_dependence,
    walk,
)

from . import sharded
from .arrays import memory, overlaps
from .dependence import computes_without_gradients
from .layers import LAYERS, low_rank_scale
from .optimizers import TorchOptimizer, made, taken
from .storage import TiedView, TorchStorage, tied_leaves, with_memory
from .unlisted import constant_buffers, unlisted

WIDENED = (torch.float32, torch.float16, torch.bfloat16)  # whose numbers float64 has exactly
_VALUES = operator.methodcaller("values")


# What torch wraps around a module, to compile it or to run it on many devices or in less memory: where the module is.
WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}


def _unwrapped(module: tnn.Module | None) -> Any:
    """The module that the user wrote: the names of parameters are this one's, whatever is around it."""
    while module is not None and type(module).__name__ in WRAPPERS and type(module).__module__.startswith("torch."):
        module = module._modules[WRAPPERS[type(module).__name__]]
    return module


def _children(module: tnn.Module) -> Iterable[tuple[str, tnn.Module | None]]:
    below = module._modules
    if not below:  # most modules of a large model
        return ()
    children = {name: _unwrapped(child) for name, child in below.items()}
    lists = below.get("parametrizations")
    if lists is not None and len(lists._modules) == len(tied_leaves(module)):
        # where torch keeps parametrizations that are ours alone is no layer that the user knows
        children["parametrizations"] = None
    return children.items()


class TorchHost(Host):
    """A Module."""

    def __init__(self, native: tnn.Module) -> None:
        self.native = native
        self._storages: Storages[TorchStorage] = Storages()
        self._constants: Storages[TorchStorage] = Storages()
        self._stepping = False
        self._every: list[tnn.Module] = list(native.modules())
        self._tables = [module._modules for module in self._every]
        self._below = [*chain.from_iterable(map(_VALUES, self._tables))]

    def slots(self) -> list[Slot]:
        slots: list[Slot] = []
        for path, positions, module in walk(_unwrapped(self.native), _children):
            slots += self._own_slots(module, path, positions)
        self._storages.keep(slots)
        return slots

    def constants(self) -> list[Slot]:
        """The buffers of ``persistent=False``, which torch keeps out of its ``state_dict``."""
        slots: list[Slot] = []
        for path, positions, module in walk(_unwrapped(self.native), _children):
            for name in constant_buffers(module):
                storage = self._constants.of(module._buffers[name], TorchStorage, module._buffers, name)
                kind = LAYERS.of(type(module))
                slots.append(Slot((*path, name), positions, kind, storage, None, module, name, True))
        self._constants.keep(slots)
        return slots

    def _own_slots(self, module: tnn.Module, path: tuple[str, ...], positions: tuple[int, ...]) -> list[Slot]:
        """A module's own parameters, then its buffers."""
        cls = type(module)
        kind, renamed = LAYERS.of(cls), LAYERS.leaves(cls)

        def slot(name: str, storage: TorchStorage, buffer: bool = False, view: Layout | None = None) -> Slot:
            leaf, layout = LAYERS.canonical(cls, name, storage.shape or ()) if name in renamed else (name, None)
            return Slot((*path, leaf), positions, kind, storage, layout, module, name, buffer, view)

        table: dict[str, Any] = module._parameters
        own = [slot(name, self._at(p, table, name)) for name, p in table.items() if p is not None]
        for name, view, source in tied_leaves(module):
            held: Any = module.get_submodule(f"parametrizations.{name}")
            own.insert(view.position, slot(name, self._at(source, held._parameters, "original"), view=view.layout))
        table = module._buffers
        if table:
            constants = constant_buffers(module)
            buffers = [(name, each) for name, each in table.items() if each is not None and name not in constants]
            own += [slot(name, self._at(buffer, table, name), True) for name, buffer in buffers]
        return own

    def _at(self, tensor: torch.Tensor, table: dict[str, Any], name: str) -> TorchStorage:
        """The storage of a tensor, which is at this place in the model, and not where it may have been before."""
        storage = self._storages.of(tensor, TorchStorage, table, name)
        storage.table, storage.name = table, name
        return storage

    def _modules(self) -> list[tnn.Module]:
        """Every module, each once; walked again only where one holds other modules than before."""
        below = [*chain.from_iterable(map(_VALUES, self._tables))]
        if len(below) != len(self._below) or not all(map(operator.is_, below, self._below)):
            self._every = list(self.native.modules())
            self._tables = [module._modules for module in self._every]
            self._below = [*chain.from_iterable(map(_VALUES, self._tables))]
        return self._every

    def fingerprint(self) -> Any:
        modules = self._modules()
        if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
            return ()  # what it holds is fixed, and shown as other objects at each look
        parameters = [module._parameters for module in modules]
        buffers = [module._buffers for module in modules if module._buffers]
        # Buffers by name only: modules put other tensors there in each forward pass, as they may.
        there = [name for table in buffers for name, buffer in table.items() if buffer is not None]
        names = [*chain.from_iterable(self._tables), *chain.from_iterable(parameters), *there]
        return names, [*map(id, modules)], [*map(id, chain.from_iterable(map(_VALUES, parameters)))]

    def holds(self, slot: Slot) -> bool:
        module = _unwrapped(self.native)
        for segment in slot.path[:-1]:
            module = _unwrapped(module._modules.get(segment))
            if module is None:
                return False
        if module is not slot.owner:
            return False
        if slot.view is not None:
            there = [source for name, _, source in tied_leaves(module) if name == slot.leaf]
            return bool(there) and there[0] is slot.storage.native
        table = module._buffers if slot.buffer else module._parameters
        storage: Any = slot.storage
        if slot.leaf not in table or storage.name not in storage.table:
            return False
        there, known = table[slot.leaf], storage.native
        return there is known or isinstance(module, torch.jit.ScriptModule)

    def count_children(self, path: tuple[str, ...]) -> int | None:
        module = _unwrapped(self.native)
        for segment in path:
            module = None if module is None else _unwrapped(module._modules.get(segment))
        return None if module is None else sum(name != "parametrizations" for name, _ in _children(module))

    def memory(self, storage: Any) -> np.ndarray | None:
        return memory(storage.native)

    def overlaps(self, storages: Sequence[Any]) -> list[tuple[int, int, bool]]:
        return overlaps([storage.native for storage in storages])

    def place(self, array: Any) -> Any:
        first = next(self.native.parameters(), None)
        return array if first is None or first.is_meta or first.device == array.device else array.to(first.device)

    def write_native(self, storage: Any, array: Any) -> bool:
        return sharded.write_on_device(storage.native, array)

    def sharding(self, storage: Any) -> Box | None:
        return sharded.local_box(storage.native)

    def fill(self, storage: Any, make: Callable[[Box], np.ndarray]) -> None:
        sharded.fill(storage.native, make)

    def gather(self, array: Any) -> torch.Tensor:
        return sharded.gather(array)

    def rank(self) -> int:
        return sharded.rank(self._modules())

    def all_succeeded(self, done: bool) -> bool:
        return sharded.all_succeeded(self._modules(), done)

    def unlisted(self) -> Mapping[str, str]:
        return unlisted((".".join(path), module) for path, _, module in walk(_unwrapped(self.native), _children))

    def has_values(self, storage: Any) -> bool:
        return not storage.native.is_meta

    def allocate(self, storages: Sequence[Any]) -> None:
        fresh = {id(native): with_memory(native) for native in (storage.native for storage in storages)}
        for module in self._modules():
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for table in tables:
                table.update((name, fresh[id(there)]) for name, there in table.items() if id(there) in fresh)

    @contextmanager
    def watch(self, on_call: Callable[[Activation], Any], on_enter: OnEnter | None = None) -> Iterator[None]:
        names = LayerNames.of_slots(self.slots(), walk(self.native, lambda module: module._modules.items()))
        with hook_calls(names, on_call, on_enter), torch.no_grad():
            yield

    def in_float64(self) -> AbstractContextManager[None] | None:
        tensors = [t for t in (*self.native.parameters(), *self.native.buffers()) if t.is_floating_point()]
        kept = any(map(sharded.is_dtensor, tensors))  # whose dtype is the one that they had at first
        return None if kept or any(t.dtype not in WIDENED for t in tensors) else self._doubled(tensors)

    @contextmanager
    def _doubled(self, tensors: list[torch.Tensor]) -> Iterator[None]:
        # Not double() and back: each tensor has its own dtype and memory again, which somebody may share.
        before = [t.data for t in tensors]
        try:
            for t in tensors:
                t.data = t.data.double()
            yield
        finally:
            for t, data in zip(tensors, before, strict=True):
                t.data = data

    def options(self, slot: Slot) -> Mapping[str, Any]:
        return LAYERS.options(slot.options_layer)

    def low_rank_scale(self, slot: Slot) -> float | None:
        at = next((i for i, segment in enumerate(slot.path) if segment in ("lora_A", "lora_embedding_A")), None)
        return (
            None if at is None else low_rank_scale(self.native.get_submodule(".".join(slot.path[:at])), slot.path[at:])
        )

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        if self._is_in(train):  # setting the mode of each module costs more than a small network's pass
            output = self.native(*inputs, **kwargs)
        else:
            output = self._in_mode(train, self.native, *inputs, **kwargs)
        if not self._stepping:  # a backward pass does so itself
            sharded.reshard(self._modules)
        return output

    def call_with(
        self, values: Mapping[Any, torch.Tensor], inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool
    ) -> Any:
        given = {id(storage.native): array for storage, array in values.items()}
        tensors = {n: given[id(p)] for n, p in self.native.named_parameters(remove_duplicate=False) if id(p) in given}
        for name, buffer in self.native.named_buffers(remove_duplicate=False):
            array = given.get(id(buffer), buffer)
            if train or array is not buffer:
                tensors[name] = array.clone() if train else array  # running statistics are written into it
        return self._in_mode(train, functional_call, self.native, tensors, inputs, kwargs, tie_weights=False)

    def _is_in(self, train: bool) -> bool:
        """Whether every module is in a mode: one may be in another than the root."""
        return all(module.training is train for module in self._modules())

    def _in_mode(self, train: bool, run: Callable[..., Any], /, *inputs: Any, **kwargs: Any) -> Any:
        """Run in a mode, then give each module back the one it had, which need not be the root's."""
        modes = [(module, module.training) for module in self.native.modules()]
        self.native.train(train)
        try:
            return run(*inputs, **kwargs)
        finally:
            for module, mode in modes:
                module.training = mode

    def infer(self, inputs: Inputs) -> None:
        """Let lazy modules see an input; nothing else changes."""
        with torch.no_grad():
            self._in_mode(False, self.native, *inputs.positional, **inputs.keywords)

    def bind(self, slots: Sequence[Slot], storage: Any, view: Layout | None = None) -> None:
        module, name = slots[0].owner, slots[0].leaf
        sharded.refuse_owned(self._modules(), slots[0].storage.native, name)
        table = module._parameters
        order = list(table)  # of the parameters, those of transposed ties where they were
        for leaf, tied, _ in tied_leaves(module):
            order.insert(tied.position, leaf)
        if slots[0].view is not None:
            # remove_parametrizations (torch 2) writes the view into the tensor it finds in the list: nobody else's
            module.parametrizations[name].original = tnn.Parameter(slots[0].storage.native.detach().clone())
            remove_parametrizations(module, name)
            table.update([(leaf, table.pop(leaf)) for leaf in order if leaf in table])  # and appends the parameter
        if view is None:
            table[name] = storage.native
            return
        # unsafe: torch's check of shapes and dtypes runs on the array that is replaced in the next line
        register_parametrization(module, name, TiedView(view, order.index(name)), unsafe=True)
        module.parametrizations[name].original = storage.native

    def copy(self, storage: Any, view: Layout | None = None) -> TorchStorage:
        values = storage.native.detach()
        values = values.clone() if view is None else view.apply(values, torch).clone().contiguous()
        fresh = tnn.Parameter(values, requires_grad=storage.trainable)
        return self._storages.of(fresh, TorchStorage, {"": fresh}, "")

    def gradient(
        self, run: Run, storages: Sequence[Any], train: bool
    ) -> Callable[..., tuple[torch.Tensor, list[torch.Tensor]]]:
        parameters: list[torch.Tensor] = [storage.native for storage in storages]

        def forward_and_backward(*batch: Any) -> torch.Tensor:
            loss: torch.Tensor = run(self, *batch)
            if not loss.requires_grad:
                require_dependence(False, computes_without_gradients(lambda: run(self, *batch)))
            for parameter in parameters:  # only now: an objective that fails leaves them as they are
                parameter.grad = None  # not zero_grad(): an earlier step's result must not change
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        def step(*batch: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
            self._stepping = True
            try:
                if self._is_in(train):
                    loss = forward_and_backward(*batch)
                else:
                    loss = self._in_mode(train, forward_and_backward, *batch)
            finally:
                self._stepping = False
            grads = []
            for parameter in parameters:
                if parameter.grad is None:  # the loss does not depend on it
                    parameter.grad = torch.zeros_like(parameter)
                grads.append(parameter.grad)
            return loss, grads

        return step

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> TorchOptimizer:
        return TorchOptimizer(made(name, options, [storage.native for storage in storages]), storages)

    def native_optimizer(self, native: Any, storages: Sequence[Any]) -> TorchOptimizer | None:
        return TorchOptimizer(taken(native), storages) if isinstance(native, torch.optim.Optimizer) else None

    def make_optimizer(self, kind: Any, options: Mapping[str, Any], storages: Sequence[Any]) -> Any:
        is_one = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
        return kind([storage.native for storage in storages], **options) if is_one else None
