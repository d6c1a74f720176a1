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
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization, remove_parametrizations

from multiparam.adapter import Activation, Host, LayerNames, Layout, Run, Slot, Storages, hook_calls, walk

from .arrays import dtype_name, from_numpy
from .layers import LAYERS

WIDENED = (torch.float32, torch.float16, torch.bfloat16)  # whose numbers float64 has exactly
_VALUES = operator.methodcaller("values")


class TorchStorage:
    """A Parameter, looked up where its module keeps it: native code puts others there.

    Attributes:
        table: A module's ``_parameters`` or ``_buffers``; of a copy that no module has yet, one of its own.
        name: The key in it.
    """

    __slots__ = ("table", "name")

    def __init__(self, native: torch.Tensor, table: dict[str, Any], name: str) -> None:
        self.table, self.name = table, name

    @property
    def native(self) -> torch.Tensor:
        tensor: torch.Tensor = self.table[self.name]
        return tensor

    @property
    def shape(self) -> tuple[int, ...] | None:
        return None if is_lazy(self.native) else tuple(self.native.shape)

    @property
    def dtype(self) -> str:
        return dtype_name(self.native)

    @property
    def trainable(self) -> bool:
        return self.native.requires_grad

    @trainable.setter
    def trainable(self, flag: bool) -> None:
        self.native.requires_grad_(flag)
        if not flag:
            self.native.grad = None  # an optimizer would still follow it

    def read(self) -> torch.Tensor:
        return self.native

    def write(self, value: np.ndarray) -> None:
        with torch.no_grad():
            self.native.copy_(from_numpy(value))

    def grad(self) -> torch.Tensor | None:
        return self.native.grad

    def hold_grad(self) -> Callable[[], None]:
        native, grad = self.native, self.native.grad  # the tensor itself: a step lets go of it and does not change it
        return lambda: setattr(native, "grad", grad)


class TiedView(tnn.Module):
    """The parametrization of a transposed tie: a module computes with a layout of another's Parameter."""

    def __init__(self, layout: Layout, position: int) -> None:
        super().__init__()
        self.layout = layout
        self.position = position  # of the parameter among its module's, which torch forgets

    def forward(self, source: torch.Tensor) -> Any:
        return self.layout.apply(source, torch)


def _tied_leaves(module: tnn.Module) -> list[tuple[str, TiedView, tnn.Parameter]]:
    """A module's parameters that are transposed ties, in their order: name, view, and the Parameter it is a view of."""
    lists = module._modules.get("parametrizations")
    if lists is None:
        return []
    chains = [(name, chain) for name, chain in lists._modules.items() if isinstance(chain, ParametrizationList)]
    tied: list[Any] = [(name, chain[0], chain.original) for name, chain in chains if isinstance(chain[0], TiedView)]
    return sorted(tied, key=lambda leaf: leaf[1].position)


def _constants(module: tnn.Module) -> list[str]:
    """The names of a module's buffers that are no part of its state, in their order."""
    names = module._non_persistent_buffers_set  # torch asks nowhere public
    return [name for name, buffer in module._buffers.items() if buffer is not None and name in names]


def _unwrapped(module: tnn.Module | None) -> Any:
    """torch.compile (2.0 and later) wraps a module; the names of parameters are the module's all the same."""
    while module is not None and type(module).__name__ == "OptimizedModule":
        module = module._modules["_orig_mod"]
    return module


def _children(module: tnn.Module) -> Iterable[tuple[str, tnn.Module | None]]:
    below = module._modules
    if not below:  # most modules of a large model
        return ()
    children = {name: _unwrapped(child) for name, child in below.items()}
    lists = below.get("parametrizations")
    if lists is not None and len(lists._modules) == len(_tied_leaves(module)):
        # where torch keeps parametrizations that are ours alone is no layer that the user knows
        children["parametrizations"] = None
    return children.items()


class TorchHost(Host):
    """A Module."""

    def __init__(self, native: tnn.Module) -> None:
        self.native = native
        self._storages: Storages[TorchStorage] = Storages()
        self._constants: Storages[TorchStorage] = Storages()
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
            for name in _constants(module):
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
        for name, view, source in _tied_leaves(module):
            held: Any = module.get_submodule(f"parametrizations.{name}")
            own.insert(view.position, slot(name, self._at(source, held._parameters, "original"), view=view.layout))
        table = module._buffers
        if table:
            constants = _constants(module)
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
            there = [source for name, _, source in _tied_leaves(module) if name == slot.leaf]
            return bool(there) and there[0] is slot.storage.native
        table = module._buffers if slot.buffer else module._parameters
        storage: Any = slot.storage
        if slot.leaf not in table or storage.name not in storage.table:
            return False
        there, known = table[slot.leaf], storage.native
        return there is known or isinstance(module, torch.jit.ScriptModule)

    def activations(self, inputs: tuple[Any, ...], on_call: Callable[[Activation], None]) -> Any:
        names = LayerNames.of_slots(self.slots(), walk(self.native, lambda module: module._modules.items()))
        with hook_calls(names, on_call), torch.no_grad():
            return self.call(inputs, {}, False)

    def in_float64(self) -> AbstractContextManager[None] | None:
        tensors = [t for t in (*self.native.parameters(), *self.native.buffers()) if t.is_floating_point()]
        return None if any(t.dtype not in WIDENED for t in tensors) else self._doubled(tensors)

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

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        if self._is_in(train):  # setting the mode of each module costs more than a small network's pass
            return self.native(*inputs, **kwargs)
        return self._in_mode(train, self.native, *inputs, **kwargs)

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

    def infer(self, inputs: tuple[Any, ...]) -> None:
        """Let lazy modules see an input; nothing else changes."""
        with torch.no_grad():
            self._in_mode(False, self.native, *inputs)

    def bind(self, slots: Sequence[Slot], storage: Any, view: Layout | None = None) -> None:
        module, name = slots[0].owner, slots[0].leaf
        table = module._parameters
        order = list(table)  # of the parameters, those of transposed ties where they were
        for leaf, tied, _ in _tied_leaves(module):
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
            for parameter in parameters:
                parameter.grad = None  # not zero_grad(): an earlier step's result must not change
            loss: torch.Tensor = run(self, *batch)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        def step(*batch: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
            if self._is_in(train):
                loss = forward_and_backward(*batch)
            else:
                loss = self._in_mode(train, forward_and_backward, *batch)
            grads = []
            for parameter in parameters:
                if parameter.grad is None:  # the loss does not depend on it
                    parameter.grad = torch.zeros_like(parameter)
                grads.append(parameter.grad)
            return loss, grads

        return step

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> TorchOptimizer:
        return TorchOptimizer(name, options, storages)


class TorchOptimizer:
    """One of torch.optim, over the Parameters of some storages."""

    native: torch.optim.Optimizer

    def __init__(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> None:
        self._parameters = [storage.native for storage in storages]
        lr = options["lr"]
        if name == "adam":
            betas = (options["beta1"], options["beta2"])
            self.native = torch.optim.Adam(self._parameters, lr=lr, betas=betas, eps=options["eps"])
        else:  # "sgd" has no momentum
            momentum, nesterov = options.get("momentum", 0.0), bool(options.get("nesterov", False))
            self.native = torch.optim.SGD(self._parameters, lr=lr, momentum=momentum, nesterov=nesterov)

    @property
    def lr(self) -> float:
        return float(self.native.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.native.param_groups:
            group["lr"] = value

    def apply(self, storages: Sequence[Any], grads: Sequence[torch.Tensor]) -> None:
        chosen = {storage.native: grad for storage, grad in zip(storages, grads, strict=True)}
        for parameter in self._parameters:
            parameter.grad = chosen.get(parameter)  # torch.optim leaves out what has None, its momentum too
        self.native.step()
