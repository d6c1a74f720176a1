"""PyTorch: a storage is a ``torch.nn.Parameter`` or a buffer; a slot is a key of a module's ``_parameters``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn as tnn
from torch.nn.parameter import UninitializedTensorMixin
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization, remove_parametrizations

from multiparam import nn, paths
from multiparam.core import layers as layer_kinds
from multiparam.core.identity import LayerNames, Storages
from multiparam.core.layers import Layers
from multiparam.core.layouts import Layout
from multiparam.core.protocol import Activation, Adapter, Host, Run, Slot
from multiparam.errors import InvalidArgument, Unrecognised

CONV = {
    "stride": "stride",
    "padding": lambda layer: layer_kinds.padding(layer.padding, layer.kernel_size, layer.stride, layer.dilation),
    "dilation": "dilation",
    "groups": "groups",
}
# PyTorch is the canonical form, so the kinds' names are all that is needed.
LAYERS = Layers(
    {
        tnn.Linear: "linear",
        tnn.Conv1d: "conv",
        tnn.Conv2d: "conv",
        tnn.Conv3d: "conv",
        tnn.ConvTranspose1d: "conv_transpose",
        tnn.ConvTranspose2d: "conv_transpose",
        tnn.ConvTranspose3d: "conv_transpose",
        tnn.Embedding: "embedding",
        tnn.PReLU: "prelu",
        tnn.LayerNorm: "layernorm",
        tnn.RMSNorm: "rmsnorm",
        tnn.GroupNorm: "groupnorm",
        tnn.modules.instancenorm._InstanceNorm: "instancenorm",
        tnn.modules.batchnorm._BatchNorm: "batchnorm",
        tnn.RNN: "rnn",
        tnn.LSTM: "lstm",
        tnn.GRU: "gru",
        tnn.RNNCell: "rnn_cell",
        tnn.LSTMCell: "lstm_cell",
        tnn.GRUCell: "gru_cell",
        tnn.MultiheadAttention: "attention",
    },
    {},
    {
        "conv": CONV,
        "conv_transpose": {**CONV, "output_padding": "output_padding"},
        "layernorm": {"eps": "eps"},
        "rmsnorm": {"eps": lambda layer: torch.finfo(layer.weight.dtype).eps if layer.eps is None else layer.eps},
        "groupnorm": {"eps": "eps", "groups": "num_groups"},
        "instancenorm": {"eps": "eps", "momentum": "momentum"},
        "batchnorm": {"eps": "eps", "momentum": "momentum"},
        "rnn": {"activation": "nonlinearity"},
        "rnn_cell": {"activation": "nonlinearity"},
        **dict.fromkeys(("lstm", "lstm_cell", "gru", "gru_cell"), layer_kinds.GATED),
        "attention": {"heads": "num_heads"},
    },
)


class TorchStorage:
    """A Parameter or a buffer."""

    __slots__ = ("native",)

    def __init__(self, native: torch.Tensor) -> None:
        self.native = native

    @property
    def shape(self) -> tuple[int, ...] | None:
        return None if isinstance(self.native, UninitializedTensorMixin) else tuple(self.native.shape)

    @property
    def dtype(self) -> str:
        return str(self.native.dtype).removeprefix("torch.")

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


class TorchBuffer(TorchStorage):
    """A buffer. ``Module.to`` puts another tensor in its place, so it is looked up each time."""

    __slots__ = ("_name", "_table")

    def __init__(self, native: torch.Tensor, table: dict[str, Any], name: str) -> None:
        self._table, self._name = table, name

    @property
    def native(self) -> torch.Tensor:  # type: ignore[override]
        return self._table[self._name]  # type: ignore[no-any-return]


class Through(tnn.Module):
    """The parametrization of a transposed tie: a module computes with a layout of another's Parameter."""

    def __init__(self, layout: Layout, position: int) -> None:
        super().__init__()
        self.layout = layout
        self.position = position  # of the parameter among its module's, which torch forgets

    def forward(self, source: torch.Tensor) -> torch.Tensor:
        return self.layout.apply(source, torch)  # type: ignore[no-any-return]


def _throughs(module: tnn.Module) -> dict[str, tnn.Module]:
    """A module's parameters that are transposed ties: name -> the list torch keeps of its parametrizations."""
    lists = module.parametrizations._modules  # type: ignore[union-attr]
    ours = {name: each for name, each in lists.items() if isinstance(each, ParametrizationList)}
    return {name: each for name, each in ours.items() if isinstance(each[0], Through)}


def _order(module: tnn.Module) -> list[str]:
    """The names of a module's parameters, those of transposed ties where they were."""
    names = list(module._parameters)
    tied = _throughs(module) if "parametrizations" in module._modules else {}
    for name, each in sorted(tied.items(), key=lambda item: item[1][0].position):  # type: ignore[index]
        names.insert(each[0].position, name)  # type: ignore[index]
    return names


class TorchHost(Host):
    """A Module."""

    def __init__(self, native: tnn.Module) -> None:
        self.native = native
        self._storages: Storages[TorchStorage] = Storages()

    def slots(self) -> list[Slot]:
        found: list[Slot] = []
        self._walk(self.native, (), (), found)
        self._storages.keep(found)
        return found

    def _walk(self, module: tnn.Module, path: tuple[str, ...], positions: tuple[int, ...], found: list[Slot]) -> None:
        if type(module).__name__ == "OptimizedModule":  # torch.compile wraps a module; its names are the module's
            return self._walk(module._modules["_orig_mod"], path, positions, found)  # type: ignore[arg-type]
        cls = type(module)
        kind, renamed, storages, start = LAYERS.of(cls), LAYERS.leaves(cls), self._storages, len(found)
        for table, buffer in ((module._parameters, False), (module._buffers, True)):
            for name, tensor in table.items():
                if tensor is not None:
                    storage = (
                        storages.of(tensor, TorchBuffer, table, name) if buffer else storages.of(tensor, TorchStorage)
                    )
                    leaf, layout = LAYERS.canonical(cls, name, tuple(tensor.shape)) if renamed else (name, None)
                    found.append(Slot((*path, leaf), positions, kind, storage, layout, module, name, buffer))
        tied = _throughs(module) if "parametrizations" in module._modules else {}
        for name, each in sorted(tied.items(), key=lambda item: item[1][0].position):  # type: ignore[index]
            leaf, layout = LAYERS.canonical(cls, name, ())
            storage, view = storages.of(each.original, TorchStorage), each[0]  # type: ignore[index]
            slot = Slot((*path, leaf), positions, kind, storage, layout, module, name, False, view.layout)
            found.insert(start + view.position, slot)
        for position, (name, child) in enumerate(module._modules.items()):
            if child is not None and not (name == "parametrizations" and len(tied) == len(child._modules)):
                self._walk(child, (*path, name), (*positions, position), found)

    def activations(self, inputs: tuple[Any, ...], on_call: Callable[[Activation], None]) -> Any:
        names = LayerNames(self._layers())

        def note(module: tnn.Module, given: Any, output: Any) -> None:
            on_call(Activation(names.next(module), given, output))

        hooks = [module.register_forward_hook(note) for module in names.layers]
        try:
            with torch.no_grad():
                return self.call(inputs, {}, False)
        finally:
            for hook in hooks:
                hook.remove()

    def _layers(self) -> Iterator[tuple[str, tnn.Module]]:
        """Each position of each module by canonical name, for those that have parameters of their own in it."""
        wanted = {slot.path[:-1] for slot in self.slots()}
        stack = [((), self.native)]
        while stack:
            path, module = stack.pop()
            if path in wanted:
                yield paths.text(path), module
            below = [((*path, name), child) for name, child in module._modules.items() if child is not None]
            stack += reversed(below)  # a layer's names in order of execution

    def in_float64(self) -> AbstractContextManager[None] | None:
        tensors = [*self.native.parameters(), *self.native.buffers()]
        if any(t.is_floating_point() and t.dtype != torch.float32 for t in tensors):
            return None
        return self._doubled()

    @contextmanager
    def _doubled(self) -> Iterator[None]:
        self.native.double()
        try:
            yield
        finally:
            self.native.float()

    def options(self, slot: Slot) -> Mapping[str, Any]:
        return LAYERS.options(slot.options_layer)

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        if self.native.training == train:
            return self.native(*inputs, **kwargs)
        return self._in_mode(train, lambda: self.native(*inputs, **kwargs))

    def _in_mode(self, train: bool, run: Callable[[], Any]) -> Any:
        """Run in a mode, then give each module back the one it had, which need not be the root's."""
        modes = [(module, module.training) for module in self.native.modules()]
        self.native.train(train)
        try:
            return run()
        finally:
            for module, mode in modes:
                module.training = mode

    def infer(self, inputs: tuple[Any, ...]) -> None:
        """Let lazy modules see an input; nothing else changes."""
        with torch.no_grad():
            self._in_mode(False, lambda: self.native(*inputs))

    def bind(self, slots: Sequence[Slot], storage: Any, view: Layout | None = None) -> None:
        module, name = slots[0].owner, slots[0].leaf
        table, order = module._parameters, _order(module)
        if slots[0].view is not None:
            # What torch leaves behind is written into the tensor it finds here, which must be nobody else's.
            module.parametrizations[name].original = tnn.Parameter(slots[0].storage.native.detach().clone())
            remove_parametrizations(module, name)
            table.update([(each, table.pop(each)) for each in order if each in table])
        if view is None:
            table[name] = storage.native
            return
        view = Through(view, order.index(name))
        register_parametrization(module, name, view, unsafe=True)
        module.parametrizations[name].original = storage.native

    def copy(self, storage: Any, view: Layout | None = None) -> TorchStorage:
        values = storage.native.detach()
        values = values.clone() if view is None else view.apply(values, torch).clone().contiguous()
        return self._storages.of(tnn.Parameter(values, requires_grad=storage.trainable), TorchStorage)

    def gradient(
        self, run: Run, storages: Sequence[Any], train: bool
    ) -> Callable[..., tuple[torch.Tensor, list[torch.Tensor]]]:
        parameters = [storage.native for storage in storages]

        def forward_and_backward(*batch: Any) -> torch.Tensor:
            for parameter in parameters:
                parameter.grad = None
            loss = run(self, *batch)
            loss.backward()
            return loss.detach()

        def step(*batch: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
            if self.native.training == train:
                loss = forward_and_backward(*batch)
            else:
                loss = self._in_mode(train, lambda: forward_and_backward(*batch))
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            return loss, [parameter.grad for parameter in parameters]

        return step

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> TorchOptimizer:
        return TorchOptimizer(name, options, storages)


class TorchOptimizer:
    """One of torch.optim."""

    def __init__(self, name: str, options: Mapping[str, Any], storages: Sequence[TorchStorage]) -> None:
        parameters = [storage.native for storage in storages]
        lr = options["lr"]
        self.native: torch.optim.Optimizer
        if name == "adam":
            betas = (options["beta1"], options["beta2"])
            self.native = torch.optim.Adam(parameters, lr=lr, betas=betas, eps=options["eps"])
        elif name == "momentum":
            momentum, nesterov = options["momentum"], bool(options["nesterov"])
            self.native = torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov)
        else:
            self.native = torch.optim.SGD(parameters, lr=lr)
        self._parameters = parameters

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
            parameter.grad = chosen.get(parameter)
        self.native.step()


class TorchAdapter(Adapter):
    """torch.nn and torch.optim."""

    def wrap(self, native: Any, inputs: tuple[Any, ...]) -> TorchHost:
        if not isinstance(native, tnn.Module):
            raise Unrecognised(f"mp.wrap takes a torch.nn.Module, not {type(native).__qualname__}.")
        host = TorchHost(native)
        if inputs and any(isinstance(t, UninitializedTensorMixin) for t in [*native.parameters(), *native.buffers()]):
            host.infer(inputs)
        return host

    def build(self, architecture: nn.Architecture, dtype: str) -> TorchHost:
        made: dict[int, tnn.Module] = {}
        native = _build(architecture.root, made).to(getattr(torch, dtype))
        return TorchHost(native.train())

    def to_numpy(self, array: Any) -> np.ndarray:
        array = array.detach().cpu().resolve_conj().resolve_neg()
        name = str(array.dtype).removeprefix("torch.")
        if name in CARRIERS:
            import ml_dtypes

            return array.contiguous().view(getattr(torch, CARRIERS[name])).numpy().view(getattr(ml_dtypes, name))
        return array.numpy()

    def from_numpy(self, array: np.ndarray) -> torch.Tensor:
        return from_numpy(array).clone()

    def namespace(self, array: torch.Tensor) -> Any:
        return torch

    def detach(self, array: torch.Tensor) -> torch.Tensor:
        return array.detach().clone()

    def mse(self, prediction: torch.Tensor, target: Any) -> torch.Tensor:
        return tnn.functional.mse_loss(prediction, target)

    def cross_entropy(self, logits: torch.Tensor, labels: Any) -> torch.Tensor:
        return tnn.functional.cross_entropy(logits, labels.long())

    def initializer(self, function: Any) -> Callable[[Any, int], None] | None:
        inner = function.func if isinstance(function, functools.partial) else function
        if getattr(inner, "__module__", None) != "torch.nn.init":
            return None

        def fill(storage: TorchStorage, seed: int) -> None:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(seed)
                function(storage.native)

        return fill


CARRIERS = {
    "bfloat16": "int16",
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), "uint8"),
}


def from_numpy(array: np.ndarray) -> torch.Tensor:
    """A tensor that may alias a numpy array; what numpy knows only through ml_dtypes travels as integers."""
    name = array.dtype.name
    if name in CARRIERS:
        return torch.from_numpy(np.array(array).view(CARRIERS[name])).view(getattr(torch, name))
    if any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = np.array(array)
    return torch.from_numpy(array)


class Residual(tnn.Module):
    """``x + body(x)``."""

    def __init__(self, body: tnn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def _build(node: nn.Node, made: dict[int, tnn.Module]) -> tnn.Module:
    known = made.get(id(node.layer))
    if known is None:
        known = made[id(node.layer)] = _make(node, made)
    return known


def _make(node: nn.Node, made: dict[int, tnn.Module]) -> tnn.Module:
    layer, n = node.layer, len(node.input) - 1
    match layer:
        case nn.Sequential():
            sequence = tnn.Sequential()
            for name, child in zip(layer.names, node.children, strict=True):
                try:
                    sequence.add_module(name, _build(child, made))
                except KeyError as error:  # a dot, nothing, or an attribute of Sequential
                    raise InvalidArgument(f"PyTorch takes no child named {name!r}: {error.args[0]}") from None
            return sequence
        case nn.Residual():
            return Residual(_build(node.children[0], made))
        case nn.Linear():
            return tnn.Linear(node.input[-1], layer.out_features, bias=layer.bias)
        case nn.Conv():
            return (tnn.Conv1d, tnn.Conv2d, tnn.Conv3d)[n - 1](  # type: ignore[no-any-return]
                node.input[0], layer.out_channels, nn.sizes(layer.kernel_size, n), nn.sizes(layer.stride, n),
                nn.sizes(layer.padding, n), nn.sizes(layer.dilation, n), layer.groups, layer.bias,
            )  # fmt: skip
        case nn.MaxPool():
            return (tnn.MaxPool1d, tnn.MaxPool2d, tnn.MaxPool3d)[n - 1](*layer.windows(n))  # type: ignore[no-any-return]
        case nn.AvgPool():
            return (tnn.AvgPool1d, tnn.AvgPool2d, tnn.AvgPool3d)[n - 1](*layer.windows(n))  # type: ignore[no-any-return]
        case nn.BatchNorm():
            return (tnn.BatchNorm1d, tnn.BatchNorm1d, tnn.BatchNorm2d, tnn.BatchNorm3d)[n](  # type: ignore[no-any-return]
                node.input[0], layer.eps, layer.momentum
            )
        case nn.LayerNorm():
            return tnn.LayerNorm(node.input[-1], layer.eps)
        case nn.Embedding():
            return tnn.Embedding(layer.num_embeddings, layer.embedding_dim)
        case nn.Dropout():
            return tnn.Dropout(layer.p)
        case nn.GELU():
            return tnn.GELU(layer.approximate)
        case nn.Softmax():
            return tnn.Softmax(-1)
        case _:
            return {nn.Flatten: tnn.Flatten, nn.ReLU: tnn.ReLU, nn.Tanh: tnn.Tanh, nn.Sigmoid: tnn.Sigmoid}[
                type(layer)
            ]()
