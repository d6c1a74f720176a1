"""tinynet: a storage is a ``tinynet.Parameter``; a slot is a key of a module's ``parameters``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import autograd.numpy as anp
import numpy as np
import tinynet
from autograd.tracer import getval

from multiparam.adapter import (
    Activation,
    Adapter,
    Architecture,
    Host,
    Inputs,
    LayerNames,
    Layers,
    Layout,
    Node,
    OnEnter,
    Place,
    Run,
    Slot,
    Storages,
    Unrecognised,
    Unsupported,
    nn,
    walk,
    watch_calls,
)

NORM = {"scale": ("weight", "*"), "shift": ("bias", "*")}
CHANNELS = {
    "scale": ("weight", "C"),
    "shift": ("bias", "C"),
    "mean": ("running_mean", "C"),
    "var": ("running_var", "C"),
}
LAYERS = Layers(
    {
        tinynet.Linear: "linear",
        tinynet.Conv: "conv",
        tinynet.Embedding: "embedding",
        tinynet.LayerNorm: "layernorm",
        tinynet.BatchNorm: "batchnorm",
        tinynet.ConvTranspose: "conv_transpose",
        tinynet.GroupNorm: "groupnorm",
        tinynet.InstanceNorm: "instancenorm",
        tinynet.RMSNorm: "rmsnorm",
    },
    {
        "linear": {"kernel": ("weight", "IO"), "bias": ("bias", "O")},
        "conv": {"kernel": ("weight", "*IO"), "bias": ("bias", "O")},
        "embedding": {"table": ("weight", "VD")},
        "layernorm": NORM,
        "batchnorm": CHANNELS,
        "conv_transpose": {"kernel": ("weight", "*IO"), "bias": ("bias", "O")},
        "groupnorm": {name: CHANNELS[name] for name in ("scale", "shift")},
        "instancenorm": {name: CHANNELS[name] for name in ("scale", "shift")},
        "rmsnorm": {"scale": ("weight", "*")},
    },
    {
        "conv": {name: name for name in ("stride", "padding", "dilation", "groups")},
        "layernorm": {"eps": "eps"},
        "batchnorm": {"eps": "eps", "momentum": "momentum"},
        "conv_transpose": {name: name for name in ("stride", "padding")},
        "groupnorm": {"eps": "eps", "groups": "groups"},
        "instancenorm": {"eps": "eps"},
        "rmsnorm": {"eps": "eps"},
    },
)


class ParameterStorage:
    """A Parameter or a Buffer."""

    def __init__(self, native: tinynet.Parameter) -> None:
        self.native = native

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.native.data.shape)

    @property
    def dtype(self) -> str:
        return str(self.native.data.dtype)

    @property
    def trainable(self) -> bool:
        return self.native.trainable

    @trainable.setter
    def trainable(self, flag: bool) -> None:
        self.native.trainable = flag
        if not flag:
            self.native.grad = None  # an optimizer would still follow it

    def read(self) -> Any:
        return self.native.data

    def write(self, value: np.ndarray) -> None:
        self.native.data = np.array(value, order="C")

    def grad(self) -> np.ndarray | None:
        return self.native.grad

    def hold_grad(self) -> Callable[[], None]:
        grad = self.native.grad
        return lambda: setattr(self.native, "grad", grad)


class TinynetHost(Host):
    """A Module."""

    def __init__(self, native: tinynet.Module) -> None:
        self.native = native
        self._storages: Storages[ParameterStorage] = Storages()

    def slots(self) -> list[Slot]:
        slots = [self._slot(place, name) for place in self._places() for name in place[2].parameters]
        self._storages.keep(slots)
        return slots

    def _places(self) -> list[Place]:
        return list(walk(self.native, lambda module: module.children.items()))

    def _slot(self, place: Place, name: str) -> Slot:
        path, positions, module = place
        parameter, kind = module.parameters[name], LAYERS.of(type(module))
        storage = self._storages.of(parameter, ParameterStorage)
        leaf, layout = LAYERS.canonical(type(module), name, storage.shape)
        buffer = isinstance(parameter, tinynet.Buffer)
        view = module.views[name].keywords["layout"] if name in module.views else None
        return Slot((*path, leaf), positions, kind, storage, layout, module, name, buffer, view)

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        modes = [(module, module.training) for module in self.native.modules()]
        for module, _ in modes:
            module.training = train
        try:
            return self.native(*inputs, **kwargs)
        finally:
            for module, mode in modes:
                module.training = mode

    def bind(self, slots: Sequence[Slot], storage: Any, view: Layout | None = None) -> None:
        module, name = slots[0].owner, slots[0].leaf
        module.parameters[name] = storage.native
        module.views.pop(name, None)
        if view is not None:
            module.views[name] = partial(tied_view, layout=view)

    def copy(self, storage: Any, view: Layout | None = None) -> ParameterStorage:
        data = storage.native.data if view is None else view.apply(storage.native.data, np)
        parameter = tinynet.Parameter(np.array(data, order="C"), storage.native.trainable)
        return self._storages.of(parameter, ParameterStorage)

    def gradient(self, run: Run, storages: Sequence[Any], train: bool) -> Callable[..., tuple[Any, list[Any]]]:
        parameters = [storage.native for storage in storages]

        def step(*batch: Any) -> tuple[Any, list[Any]]:
            loss = tinynet.value_and_grad(lambda: run(self, *batch), parameters)
            return np.asarray(loss), [parameter.grad for parameter in parameters]

        return step

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> Optimizer:
        kinds = {"sgd": tinynet.SGD, "momentum": tinynet.Momentum, "adam": tinynet.Adam, "adamw": tinynet.AdamW}
        optimizer = kinds[name]
        return Optimizer(optimizer([storage.native for storage in storages], **options))

    def watch(
        self, on_call: Callable[[Activation], Any], on_enter: OnEnter | None = None
    ) -> AbstractContextManager[None]:
        return watch_calls(LayerNames.of_slots(self.slots(), self._places()), on_call, on_enter)

    def options(self, slot: Slot) -> Mapping[str, Any]:
        return LAYERS.options(slot.options_layer)


def tied_view(data: Any, layout: Layout) -> Any:
    """What a module with a transposed tie computes with."""
    return layout.apply(data, anp)


class Optimizer:
    """One of tinynet's, over some of its parameters at a time."""

    def __init__(self, native: tinynet.SGD) -> None:
        self.native = native

    @property
    def lr(self) -> float:
        return self.native.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.native.lr = value

    def apply(self, storages: Sequence[Any], grads: Sequence[Any]) -> None:
        chosen = {id(storage.native): grad for storage, grad in zip(storages, grads, strict=True)}
        before = [parameter.grad for parameter in self.native.parameters]
        for parameter in self.native.parameters:
            parameter.grad = chosen.get(id(parameter))  # tinynet leaves out what has None
        self.native.step()
        for parameter, grad in zip(self.native.parameters, before, strict=True):
            parameter.grad = grad


class AutogradAdapter(Adapter):
    """tinynet over autograd."""

    def wrap(self, native: Any, inputs: Inputs) -> TinynetHost:
        if not isinstance(native, tinynet.Module):
            raise Unrecognised(f"mp.wrap takes a tinynet.Module, not {type(native).__qualname__}.")
        return TinynetHost(native)

    def build(self, architecture: Architecture, dtype: str) -> TinynetHost:
        if dtype == "bfloat16":
            raise Unsupported("NumPy has no bfloat16.")
        return TinynetHost(architecture.assemble(partial(make, dtype=dtype)))

    def to_numpy(self, array: Any) -> np.ndarray:
        return np.asarray(getval(array.data if isinstance(array, tinynet.Parameter) else array))

    def from_numpy(self, array: np.ndarray) -> np.ndarray:
        return np.array(array)

    def namespace(self, array: Any) -> Any:
        return anp  # what autograd traces; its arrays have no __array_namespace__

    def detach(self, array: Any) -> np.ndarray:
        return np.array(self.to_numpy(array))

    def mse(self, prediction: Any, target: Any) -> Any:
        return anp.mean((prediction - target) ** 2)

    def cross_entropy(self, logits: Any, labels: Any, ignore_index: int) -> Any:
        rows = np.flatnonzero(labels != ignore_index)
        shifted = logits - anp.max(logits, axis=1, keepdims=True)
        losses = anp.log(anp.sum(anp.exp(shifted), axis=1))[rows] - shifted[rows, labels[rows]]
        return anp.mean(losses)


def make(node: Node, build: Callable[[Node], tinynet.Module], dtype: str) -> tinynet.Module:
    """The module of a node; ``build`` gives its children's."""
    layer, shape, n = node.layer, node.input, len(node.input) - 1
    match layer:
        case nn.Sequential() | nn.Join():
            container: type[tinynet.Sequential] = getattr(tinynet, type(layer).__name__)
            return container(dict(zip(layer.names, map(build, node.children), strict=True)))
        case nn.Residual():
            return tinynet.Residual(build(node.children[0]))
        case nn.Linear():
            return tinynet.Linear(shape[-1], layer.out_features, layer.bias, dtype)
        case nn.Conv():
            return tinynet.Conv(shape[0], layer.out_channels, *layer.windows(n), layer.groups, layer.bias, dtype)
        case nn.ConvTranspose():
            return tinynet.ConvTranspose(shape[0], layer.out_channels, *layer.windows(n), layer.bias, dtype)
        case nn.MaxPool():
            return tinynet.MaxPool(*layer.windows(n))
        case nn.AvgPool():
            return tinynet.AvgPool(*layer.windows(n))
        case nn.BatchNorm():
            return tinynet.BatchNorm(shape[0], layer.eps, layer.momentum, dtype)
        case nn.LayerNorm():
            return tinynet.LayerNorm(shape[-1], layer.eps, dtype)
        case nn.GroupNorm():
            return tinynet.GroupNorm(layer.num_groups, shape[0], layer.eps, dtype)
        case nn.InstanceNorm():
            return tinynet.InstanceNorm(shape[0], layer.eps, dtype)
        case nn.RMSNorm():
            return tinynet.RMSNorm(shape[-1], layer.eps, dtype)
        case nn.Embedding():
            return tinynet.Embedding(layer.num_embeddings, layer.embedding_dim, dtype)
        case nn.Dropout():
            return tinynet.Dropout(layer.p)
        case nn.GELU():
            return tinynet.GELU(layer.approximate == "tanh")
    plain: tinynet.Module = getattr(tinynet, type(layer).__name__)()
    return plain
