"""tinynet: a storage is a ``tinynet.Parameter``; a slot is a key of a module's ``parameters``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import autograd.numpy as anp
import numpy as np
import tinynet
from autograd.tracer import getval

from multiparam import nn, paths
from multiparam.core.identity import LayerNames, Storages, watch_calls
from multiparam.core.layers import Layers
from multiparam.core.layouts import Layout
from multiparam.core.protocol import Activation, Adapter, Host, Run, Slot
from multiparam.errors import Unrecognised, Unsupported

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
    },
    {
        "linear": {"kernel": ("weight", "IO"), "bias": ("bias", "O")},
        "conv": {"kernel": ("weight", "*IO"), "bias": ("bias", "O")},
        "embedding": {"table": ("weight", "VD")},
        "layernorm": NORM,
        "batchnorm": CHANNELS,
    },
    {
        "conv": {name: name for name in ("stride", "padding", "dilation", "groups")},
        "layernorm": {"eps": "eps"},
        "batchnorm": {"eps": "eps", "momentum": "momentum"},
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


class TinynetHost(Host):
    """A Module."""

    def __init__(self, native: tinynet.Module) -> None:
        self.native = native
        self._storages: Storages[ParameterStorage] = Storages()

    def slots(self) -> list[Slot]:
        found = list(self._walk(self.native, (), ()))
        self._storages.keep(found)
        return found

    def _walk(self, module: tinynet.Module, path: tuple[str, ...], positions: tuple[int, ...]) -> Iterator[Slot]:
        kind = LAYERS.of(type(module))
        for name, parameter in module.parameters.items():
            view = module.views.get(name)
            leaf, layout = LAYERS.canonical(type(module), name, parameter.data.shape)
            yield Slot(
                (*path, leaf), positions, kind, self._storages.of(parameter, ParameterStorage), layout, module, name,
                isinstance(parameter, tinynet.Buffer), None if view is None else view.keywords["layout"],
            )  # fmt: skip
        for position, (name, child) in enumerate(module.children.items()):
            yield from self._walk(child, (*path, name), (*positions, position))

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        before = [(module, module.training) for module in self.native.modules()]
        for module, _ in before:
            module.training = train
        try:
            return self.native(*inputs, **kwargs)
        finally:
            for module, mode in before:
                module.training = mode

    def bind(self, slots: Sequence[Slot], storage: Any, view: Layout | None = None) -> None:
        module, name = slots[0].owner, slots[0].leaf
        module.parameters[name] = storage.native
        module.views.pop(name, None)
        if view is not None:
            module.views[name] = partial(shown, layout=view)

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
        made = {"sgd": tinynet.SGD, "momentum": tinynet.Momentum, "adam": tinynet.Adam}[name]
        return Optimizer(made([storage.native for storage in storages], **options))

    def activations(self, inputs: tuple[Any, ...], on_call: Callable[[Activation], None]) -> Any:
        wanted = {slot.path[:-1] for slot in self.slots()}
        names = LayerNames((paths.text(path), layer) for path, layer in layers(self.native, ()) if path in wanted)
        with watch_calls(names, on_call):
            return self.call(inputs, {}, False)

    def options(self, slot: Slot) -> Mapping[str, Any]:
        return LAYERS.options(slot.options_layer)


def layers(module: tinynet.Module, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tinynet.Module]]:
    yield path, module
    for name, child in module.children.items():
        yield from layers(child, (*path, name))


def shown(data: Any, layout: Layout) -> Any:
    """A parameter's array through a transposed tie."""
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
        given = {id(storage.native): grad for storage, grad in zip(storages, grads, strict=True)}
        before = [parameter.grad for parameter in self.native.parameters]
        for parameter in self.native.parameters:
            parameter.grad = given.get(id(parameter))
        self.native.step()
        for parameter, grad in zip(self.native.parameters, before, strict=True):
            parameter.grad = grad


class AutogradAdapter(Adapter):
    """tinynet over autograd."""

    def wrap(self, native: Any, inputs: tuple[Any, ...]) -> TinynetHost:
        if not isinstance(native, tinynet.Module):
            raise Unrecognised(f"mp.wrap takes a tinynet.Module, not {type(native).__qualname__}.")
        return TinynetHost(native)

    def build(self, architecture: nn.Architecture, dtype: str) -> TinynetHost:
        if dtype == "bfloat16":
            raise Unsupported("NumPy has no bfloat16.")
        return TinynetHost(_build(architecture.root, dtype, {}))

    def to_numpy(self, array: Any) -> np.ndarray:
        return np.asarray(getval(array.data if isinstance(array, tinynet.Parameter) else array))

    def from_numpy(self, array: np.ndarray) -> np.ndarray:
        return np.array(array)

    def namespace(self, array: Any) -> Any:
        return anp

    def detach(self, array: Any) -> np.ndarray:
        return np.array(self.to_numpy(array))

    def mse(self, prediction: Any, target: Any) -> Any:
        return anp.mean((prediction - target) ** 2)

    def cross_entropy(self, logits: Any, labels: Any) -> Any:
        shifted = logits - anp.max(logits, axis=1, keepdims=True)
        chosen = shifted[np.arange(len(labels)), labels]
        return anp.mean(anp.log(anp.sum(anp.exp(shifted), axis=1)) - chosen)


def _build(node: nn.Node, dtype: str, made: dict[int, tinynet.Module]) -> tinynet.Module:
    """A layer that is used at several places is one module."""
    known = made.get(id(node.layer))
    if known is None:
        known = made[id(node.layer)] = _make(node, dtype, made)
    return known


def _make(node: nn.Node, dtype: str, made: dict[int, tinynet.Module]) -> tinynet.Module:
    layer, shape, n = node.layer, node.input, len(node.input) - 1
    match layer:
        case nn.Sequential():
            children = [_build(child, dtype, made) for child in node.children]
            return tinynet.Sequential(dict(zip(layer.names, children, strict=True)))
        case nn.Residual():
            return tinynet.Residual(_build(node.children[0], dtype, made))
        case nn.Linear():
            return tinynet.Linear(shape[-1], layer.out_features, layer.bias, dtype)
        case nn.Conv():
            sizes = (nn.sizes(each, n) for each in (layer.kernel_size, layer.stride, layer.padding, layer.dilation))
            return tinynet.Conv(shape[0], layer.out_channels, *sizes, layer.groups, layer.bias, dtype)
        case nn.MaxPool():
            return tinynet.MaxPool(*layer.windows(n))
        case nn.AvgPool():
            return tinynet.AvgPool(*layer.windows(n))
        case nn.BatchNorm():
            return tinynet.BatchNorm(shape[0], layer.eps, layer.momentum, dtype)
        case nn.LayerNorm():
            return tinynet.LayerNorm(shape[-1], layer.eps, dtype)
        case nn.Embedding():
            return tinynet.Embedding(layer.num_embeddings, layer.embedding_dim, dtype)
        case nn.Dropout():
            return tinynet.Dropout(layer.p)
        case nn.GELU():
            return tinynet.GELU(layer.approximate == "tanh")
    return getattr(tinynet, type(layer).__name__)()
