"""MXNet Gluon: a storage is a ``gluon.Parameter``; a slot is a key of a block's ``_reg_params``.

Arrays are of the kind in force when they are made: ``mx.np`` after ``npx.set_np()``, else ``mx.nd``.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from multiparam import nn, paths
from multiparam.core import layers as layer_kinds
from multiparam.core import layouts
from multiparam.core.arrays import contiguous
from multiparam.core.identity import LayerNames, Storages
from multiparam.core.protocol import Activation, Adapter, Host, Run, Slot
from multiparam.errors import UnknownShapes, Unrecognised, Unsupported

from .load import load

mx = load()
autograd, gluon, gnn = mx.autograd, mx.gluon, mx.gluon.nn

NORM = {"gamma": ("weight", "*"), "beta": ("bias", "*")}
CHANNEL_NORM = {"gamma": ("weight", "C"), "beta": ("bias", "C")}


def _activation(block: Any) -> str:
    return "linear" if block is None else str(getattr(block, "_act_type", type(block).__name__.lower()))


CONV: dict[str, Any] = {
    "stride": lambda block: tuple(block._kwargs["stride"]),
    "padding": lambda block: tuple(block._kwargs["pad"]),
    "dilation": lambda block: tuple(block._kwargs["dilate"]),
    "groups": lambda block: block._kwargs["num_group"],
    "activation": lambda block: _activation(block.act),
}
LAYERS = layer_kinds.Layers(
    {
        gnn.Dense: "linear",
        gnn.Conv1D: "conv",
        gnn.Conv2D: "conv",
        gnn.Conv3D: "conv",
        gnn.Conv1DTranspose: "conv_transpose",
        gnn.Conv2DTranspose: "conv_transpose",
        gnn.Conv3DTranspose: "conv_transpose",
        gnn.Embedding: "embedding",
        gnn.PReLU: "prelu",
        gnn.LayerNorm: "layernorm",
        gnn.GroupNorm: "groupnorm_by_group",
        gnn.InstanceNorm: "instancenorm",
        gnn.BatchNorm: "batchnorm",
        gluon.rnn.RNN: "rnn",
        gluon.rnn.LSTM: "lstm",
        gluon.rnn.GRU: "gru",
        gluon.rnn.RNNCell: "rnn_cell",
        gluon.rnn.LSTMCell: "lstm_cell",
        gluon.rnn.GRUCell: "gru_cell",
    },
    {
        "layernorm": NORM,
        "groupnorm_by_group": {"gamma": ("weight", "G"), "beta": ("bias", "G")},
        "instancenorm": CHANNEL_NORM,
        "batchnorm": CHANNEL_NORM,
        "prelu": {"alpha": ("weight", "C")},
    },
    {
        "linear": {"activation": lambda block: _activation(block.act)},
        "conv": CONV,
        "conv_transpose": {**CONV, "output_padding": lambda block: tuple(block._kwargs["adj"])},
        "layernorm": {"eps": "_epsilon"},
        "instancenorm": {"eps": "_epsilon"},
        "batchnorm": {
            "eps": lambda block: block._kwargs["eps"],
            "momentum": lambda block: layer_kinds.momentum_from_decay(block._kwargs["momentum"]),
        },
        "rnn": {"activation": lambda block: block._mode.removeprefix("rnn_")},
        "rnn_cell": {"activation": "_activation"},
        **dict.fromkeys(("lstm", "lstm_cell", "gru", "gru_cell"), layer_kinds.GATED),
    },
)
CHANNELS_LAST = {
    "conv": {"weight": ("weight", "O*I"), "bias": ("bias", "O")},
    "conv_transpose": {"weight": ("weight", "I*O"), "bias": ("bias", "O")},
}
RECURRENT = (gluon.rnn.rnn_layer._RNNLayer, gluon.rnn.RecurrentCell)
RECURRENT_NAMES = {
    "i2h_weight": "weight_ih",
    "h2h_weight": "weight_hh",
    "h2r_weight": "weight_hr",
    "i2h_bias": "bias_ih",
    "h2h_bias": "bias_hh",
}
RUNNING = {"running_mean", "running_var"}
_copies = itertools.count()


@functools.cache
def _recurrent_leaves(leaves: tuple[str, ...]) -> layer_kinds.LeafNames:
    """Gluon's names of a recurrent layer's leaves, "l0_i2h_weight", or a cell's, "i2h_weight"."""
    found = {}
    for leaf in leaves:
        match = re.fullmatch(r"(?:([lr])(\d+)_)?(\w+)", leaf)
        assert match is not None
        if match[3] in RECURRENT_NAMES:
            ending = "" if match[1] is None else f"_l{match[2]}{'_reverse' * (match[1] == 'r')}"
            found[leaf] = (RECURRENT_NAMES[match[3]] + ending, lambda shape: None)
    return found


class GluonStorage:
    """A gluon Parameter."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self._request = "write" if native.grad_req == "null" else native.grad_req
        self._seen = False  # whether a backward has reached it: Gluon shows zeros before the first
        self._arrays = native._grad  # which gradient arrays that is said of: initialising again makes new ones

    @property
    def shape(self) -> tuple[int, ...] | None:
        return None if self.native._data is None else tuple(self.native.shape)

    @property
    def dtype(self) -> str:
        return np.dtype(self.native.dtype).name

    @property
    def trainable(self) -> bool:
        return bool(self.native.grad_req != "null")

    @trainable.setter
    def trainable(self, flag: bool) -> None:
        if flag != self.trainable:
            if not flag:
                self._request = self.native.grad_req  # "write" or "add", for when it is trained again
            self.native.grad_req = self._request if flag else "null"
            self._seen = False

    def read(self) -> Any:
        return self.native.data()

    def write(self, value: np.ndarray) -> None:
        value = value if value.flags.c_contiguous else contiguous(value)
        with autograd.pause():
            try:
                self.native.data()[:] = value
            except mx.MXNetError:  # a convolution that has run keeps its weight in MKLDNN's own format
                make = mx.np.array if _is_np(self.native.data()) else mx.nd.array
                self.native.data()[:] = make(value, dtype=value.dtype)

    def grad(self) -> Any | None:
        if not self.trainable or self.native._grad is None:
            return None
        grad = self.native.grad()
        if self._arrays is not self.native._grad:
            self._arrays, self._seen = self.native._grad, False
        if not self._seen:  # the flag is down again after a Trainer's step: then non-zero values tell
            self._seen = bool(self.native.data()._fresh_grad) or bool(grad.asnumpy().any())
        return grad if self._seen else None

    def mark(self) -> None:
        """The gradient is current, for us and for a Trainer."""
        self._seen = True
        self.native.data()._fresh_grad = True


def _is_np(array: Any) -> bool:
    return isinstance(array, (mx.np.ndarray, mx.sym.np._Symbol))


# What the array API standard names, on arrays and symbols of both kinds.
NP = SimpleNamespace(
    permute_dims=lambda array, axes: array.transpose(*axes),
    reshape=lambda array, shape: array.reshape(shape),
    flip=lambda array, axes: mx.np.flip(array, axes),
    concat=lambda arrays, axis: mx.np.concatenate(arrays, axis),
)
ND = SimpleNamespace(
    permute_dims=lambda array, axes: array.transpose(axes=axes),
    reshape=lambda array, shape: array.reshape(shape),
    flip=lambda array, axes: mx.nd.flip(array, axes),
    concat=lambda arrays, axis: mx.nd.concat(*arrays, dim=axis),
)


def namespace(array: Any) -> SimpleNamespace:
    """The namespace of an array's kind: numpy's or the older one."""
    return NP if _is_np(array) else ND


def _shown(change: Callable[[Any, Any], Any], array: Any) -> Any:
    """An array in a layout, or back."""
    return change(array, namespace(array))


class Through(gluon.Parameter):  # type: ignore[misc,name-defined]
    """What a block holds where a transposed tie is: another Parameter, ``source``, in this layout.

    Everything asked of it is asked of that one. It has no data, so no Trainer must know it: a block's own dictionary
    holds the source in its place.
    """

    def __init__(self, source: Any, layout: layouts.Layout) -> None:
        self.source = source
        self.view = layout
        super().__init__(f"{source.name}_through", source.grad_req, layout.shape(source.shape), source.dtype)

    @property
    def grad_req(self) -> str:
        return str(self.source.grad_req)

    @grad_req.setter
    def grad_req(self, request: str) -> None:
        if request != self.source.grad_req:
            self.source.grad_req = request

    def data(self, ctx: Any = None) -> Any:
        return _shown(self.view.apply, self.source.data(ctx))

    def list_data(self) -> list[Any]:
        return [_shown(self.view.apply, array) for array in self.source.list_data()]

    def grad(self, ctx: Any = None) -> Any:
        return _shown(self.view.apply, self.source.grad(ctx))

    def list_grad(self) -> list[Any]:
        return [_shown(self.view.apply, array) for array in self.source.list_grad()]

    def list_ctx(self) -> Any:
        return self.source.list_ctx()

    def var(self) -> Any:
        return _shown(self.view.apply, self.source.var())

    def set_data(self, data: Any) -> None:
        self.source.set_data(_shown(self.view.undo, data))

    def _reduce(self) -> Any:
        return _shown(self.view.apply, self.source._reduce())

    def _load_init(self, data: Any, ctx: Any, cast_dtype: bool = False, dtype_source: str = "current") -> None:
        array = data if isinstance(data, mx.nd.NDArray) else mx.nd.array(data)
        self.source._load_init(_shown(self.view.undo, array), ctx, cast_dtype, dtype_source)

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the source is initialised where it is held."""

    def zero_grad(self) -> None:
        self.source.zero_grad()

    def reset_ctx(self, ctx: Any) -> None:
        self.source.reset_ctx(ctx)

    def cast(self, dtype: Any) -> None:
        self.source.cast(dtype)
        self._dtype = np.dtype(dtype)


EPS_IN_FLOAT32 = (gluon.nn.LayerNorm, gluon.nn.GroupNorm, gluon.nn.InstanceNorm)


def _with_exact_eps(block: Any) -> Callable[..., Any]:
    """A norm whose operator takes eps in float32: with inputs scaled by s it is the norm with eps / s ** 2, so that s
    can make that the eps the user wrote."""
    forward, eps = block.hybrid_forward, block._epsilon
    scale = math.sqrt(float(np.float32(eps)) / eps) if eps else 1.0
    return lambda F, x, *args, **parameters: forward(F, x * scale, *args, **parameters)


class GluonHost(Host):
    """A Block."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self._storages: Storages[GluonStorage] = Storages()

    def slots(self) -> list[Slot]:
        found: list[Slot] = []
        self._walk(self.native, (), (), found)
        alive = {id(slot.storage.native) for slot in found}
        lost = [p.name for p in self.native.collect_params().values() if id(p) not in alive]
        if lost:
            raise Unsupported(
                f"Parameter {lost[0]!r} is held by no attribute of its block, so it has no stable name. "
                "Assign what self.params.get returns to an attribute."
            )
        self._storages.keep(found)
        return found

    def _walk(self, block: Any, path: tuple[str, ...], positions: tuple[int, ...], found: list[Slot]) -> None:
        kind = LAYERS.of(type(block))
        last = CHANNELS_LAST.get(kind) if kind in CHANNELS_LAST and block._kwargs["layout"].endswith("C") else None
        own: list[Slot] = []
        known = _recurrent_leaves(tuple(block._reg_params)) if isinstance(block, RECURRENT) else last
        for leaf, parameter in block._reg_params.items():
            tied = isinstance(parameter, Through)
            storage = self._storages.of(parameter.source if tied else parameter, GluonStorage)
            name, layout = LAYERS.canonical(type(block), leaf, parameter.shape or (), known)
            buffer = leaf in RUNNING or isinstance(parameter, gluon.Constant)
            view = parameter.view if tied else None
            own.append(Slot((*path, name), positions, kind, storage, layout, block, leaf, buffer, view))
        if known is not last:  # Gluon lists all weights of a recurrent layer first
            own.sort(key=lambda slot: layer_kinds.rank(kind, slot.path[-1]))
        found += own
        for position, (name, child) in enumerate(block._children.items()):
            self._walk(child, (*path, name), (*positions, position), found)

    @property
    def data_order(self) -> str:  # type: ignore[override]
        convolutions = (b for b in _blocks(self.native) if LAYERS.of(type(b)) in CHANNELS_LAST)
        return "last" if any(block._kwargs["layout"].endswith("C") for block in convolutions) else "first"

    def in_float64(self) -> AbstractContextManager[None] | None:
        if any(slot.storage.dtype != "float32" for slot in self.slots()):
            return None
        return self._cast()

    @contextmanager
    def _cast(self) -> Iterator[None]:
        norms = [block for block in _blocks(self.native) if isinstance(block, EPS_IN_FLOAT32)]
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
        wanted = {slot.path[:-1] for slot in self.slots()}
        names = LayerNames((paths.text(path), block) for path, block in _places(self.native, ()) if path in wanted)
        active = [(b, b._active) for b in _blocks(self.native) if isinstance(b, gluon.HybridBlock)]
        hooks = [
            block.register_forward_hook(lambda block, *call: on_call(Activation(names.next(block), *call)))
            for block in names.layers
        ]
        try:
            for block, _ in active:  # a compiled graph calls no hooks
                block._active = False
            return self.call(inputs, {}, False)
        finally:
            for hook in hooks:
                hook.detach()
            for block, was in active:
                block._active = was

    def options(self, slot: Slot) -> Mapping[str, Any]:
        return LAYERS.options(slot.options_layer)

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        if autograd.is_recording():  # inside the user's own record(), or a step: the mode is decided there
            return self.native(*inputs, **kwargs)
        with autograd.train_mode() if train else autograd.predict_mode():
            return self.native(*inputs, **kwargs)

    def bind(self, slots: Sequence[Slot], storage: Any, view: layouts.Layout | None = None) -> None:
        block, leaf = slots[0].owner, slots[0].leaf
        old, new = slots[0].storage.native, storage.native
        # The three places a block keeps a parameter; plain assignment asserts that the two are the same.
        held = new if view is None else Through(new, view)
        object.__setattr__(block, leaf, held)
        block._reg_params[leaf] = held
        entries = [(new.name, new) if p is old else (name, p) for name, p in block._params._params.items()]
        block._params._params.clear()
        block._params._params.update(entries)
        self._storages.add(storage)
        for each in _blocks(self.native):
            if isinstance(each, gluon.HybridBlock):  # a compiled graph would go on using the old one
                each._clear_cached_op()

    def copy(self, storage: Any, view: layouts.Layout | None = None) -> GluonStorage:
        old = storage.native
        values = old.data() if view is None else _shown(view.apply, old.data())
        fresh = gluon.Parameter(f"{old.name}_copy{next(_copies)}", old.grad_req, values.shape, old.dtype)
        fresh.initialize(mx.init.Zero(), ctx=old.list_ctx())
        fresh.set_data(values)
        return self._storages.of(fresh, GluonStorage)

    def gradient(self, run: Run, storages: Sequence[Any], train: bool) -> Callable[..., tuple[Any, list[Any]]]:
        parameters = [storage.native for storage in storages]
        beside = self._frozen_beside(storages)

        def step(*batch: Any) -> tuple[Any, list[Any]]:
            _renew_gradients(parameters)
            for parameter in beside:
                arrays = parameter._data
                autograd.mark_variables(arrays, [_empty_like(a) for a in arrays], ["write"] * len(arrays))
            with autograd.record(train_mode=train):
                loss = run(self, *batch)
            loss.backward(train_mode=train)
            for parameter in beside:
                parameter._data = [array.detach() for array in parameter._data]
            for storage in storages:
                if not storage.native.data()._fresh_grad:
                    storage.native.grad()[:] = 0  # the loss does not depend on it
                storage.mark()
            return loss.detach(), [parameter.grad() for parameter in parameters]

        return step

    def _frozen_beside(self, storages: Sequence[Any]) -> list[Any]:
        """Frozen parameters of blocks that have others to differentiate. MXNet 1.9.1 writes no gradient of a bias in
        float32 where it is to write none of the weight, so these get one that is thrown away."""
        wanted = {id(storage) for storage in storages}
        slots = [slot for slot in self.slots() if not slot.buffer]
        blocks = {id(slot.owner) for slot in slots if id(slot.storage) in wanted}
        frozen = {
            id(slot.storage): slot.storage.native
            for slot in slots
            if id(slot.owner) in blocks and not slot.storage.trainable and slot.storage.native._differentiable
        }
        return list(frozen.values())

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> GluonOptimizer:
        return GluonOptimizer(name, options, storages)


def _renew_gradients(parameters: Sequence[Any]) -> None:
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
    return new.as_np_ndarray() if isinstance(array, mx.np.ndarray) else new


class GluonOptimizer:
    """A gluon.Trainer."""

    def __init__(self, name: str, options: Mapping[str, Any], storages: Sequence[GluonStorage]) -> None:
        native: Any
        if name == "adam":
            native = Adam(options["lr"], options["beta1"], options["beta2"], options["eps"])
        else:
            native = Sgd(options["lr"], options.get("momentum", 0.0), bool(options.get("nesterov", False)))
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
            storage.mark()
        self.native.step(1, ignore_stale_grad=True)  # it updates the fresh ones; 1: the loss is a mean already


# MXNet's update operators take their rates as float32. For float64 parameters the two optimizers below compute
# the same formulas by array arithmetic, which takes float64 rates; other dtypes use MXNet's operators.


class Sgd(mx.optimizer.NAG):  # type: ignore[misc,name-defined]
    """MXNet's SGD, with momentum of either kind. The velocity is ``-lr`` times PyTorch's."""

    def __init__(self, lr: float, momentum: float, nesterov: bool) -> None:
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


class MxnetAdapter(Adapter):
    """mxnet.gluon 1.9.1."""

    unsupported = {
        "exact running statistics": (
            "MXNet's BatchNorm moves its running statistics inside the operator, in backward: by the biased variance "
            "of the batch, where PyTorch's is n / (n - 1) times that, and with its momentum in float32."
        ),
        "float64 eps of LayerNorm": (
            "MXNet keeps LayerNorm's eps in float32, so in float64 an output can be off by some hundred eps."
        ),
        "float64 gradient of exact GELU": (
            "MXNet's derivative of erf has its constant in float32, so the gradient is off by about 3e-8 of its size."
        ),
    }

    def wrap(self, native: Any, inputs: tuple[Any, ...]) -> GluonHost:
        if not isinstance(native, gluon.Block):
            raise Unrecognised(f"mp.wrap takes a gluon Block, not {type(native).__qualname__}.")
        host = GluonHost(native)
        held = [parameter for block in _blocks(native) for parameter in block._reg_params.values()]
        parameters = [p.source if isinstance(p, Through) else p for p in held]
        cold = [p.name for p in parameters if p._data is None and not p._deferred_init]
        if cold:
            raise UnknownShapes(f"Parameter {cold[0]!r} is not initialised. Call net.initialize() before mp.wrap(net).")
        if inputs and any(p._data is None for p in parameters):
            with autograd.pause():
                native(*inputs)
        return host

    def build(self, architecture: nn.Architecture, dtype: str) -> GluonHost:
        if dtype == "bfloat16":
            raise Unsupported("MXNet 1.9.1 has no bfloat16. Use float32 or float16.")
        native = _build(architecture.root, {})
        native.cast(dtype)
        native.initialize(mx.init.Zero())  # MXNet's random ones fail for float64; the core fills everything
        native.hybridize()
        return GluonHost(native)

    def to_numpy(self, array: Any) -> np.ndarray:
        if isinstance(array, gluon.Parameter):
            array = array.data()
        return array.asnumpy()  # type: ignore[no-any-return]

    def from_numpy(self, array: np.ndarray) -> Any:
        make = mx.np.array if mx.util.is_np_array() else mx.nd.array
        return make(array, dtype=array.dtype)

    def namespace(self, array: Any) -> SimpleNamespace:
        return namespace(array)

    def detach(self, array: Any) -> Any:
        return array.detach().copy()

    def mse(self, prediction: Any, target: Any) -> Any:
        return ((prediction - target.astype(prediction.dtype)) ** 2).mean()

    def cross_entropy(self, logits: Any, labels: Any) -> Any:
        return _cross_entropy(isinstance(logits, mx.np.ndarray))(logits, labels).mean()

    def initializer(self, function: Any) -> Callable[[Any, int], None] | None:
        if not isinstance(function, mx.init.Initializer):
            return None

        def fill(storage: GluonStorage, seed: int) -> None:
            mx.random.seed(seed)
            data = storage.native.data()
            function(mx.init.InitDesc(storage.native.name, {"__init__": function}), data)

        return fill


@functools.cache
def _cross_entropy(np_arrays: bool) -> Any:
    """Gluon's own, compiled; one for each kind of arrays."""
    loss = gluon.loss.SoftmaxCrossEntropyLoss()
    loss.hybridize()
    return loss


def _places(block: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, block
    for name, child in block._children.items():
        yield from _places(child, (*path, name))


def _blocks(block: Any) -> Iterator[Any]:
    yield block
    for child in block._children.values():
        yield from _blocks(child)


class Residual(gnn.HybridBlock):  # type: ignore[misc,name-defined]
    """``x + body(x)``."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return x + self.body(x)


def _gelu(F: Any, x: Any) -> Any:
    """MXNet's own rounds its constants to float32, in float64 too."""
    ops = F.npx if mx.util.is_np_array() else F
    return 0.5 * x * (1 + ops.erf(x * math.sqrt(0.5)))


def _gelu_tanh(F: Any, x: Any) -> Any:
    ops = F.np if mx.util.is_np_array() else F
    return 0.5 * x * (1 + ops.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _softmax(F: Any, x: Any) -> Any:
    return (F.npx if mx.util.is_np_array() else F).softmax(x, axis=-1)


def _build(node: nn.Node, made: dict[int, Any]) -> Any:
    known = made.get(id(node.layer))
    if known is None:
        known = made[id(node.layer)] = _make(node, made)
    return known


def _make(node: nn.Node, made: dict[int, Any]) -> Any:
    layer, n = node.layer, len(node.input) - 1
    match layer:
        case nn.Sequential():
            sequence = gnn.HybridSequential()
            for name, child in zip(layer.names, node.children, strict=True):
                sequence.register_child(_build(child, made), name)
            return sequence
        case nn.Residual():
            return Residual(_build(node.children[0], made))
        case nn.Linear():
            return gnn.Dense(layer.out_features, flatten=False, use_bias=layer.bias, in_units=node.input[-1])
        case nn.Conv():
            return (gnn.Conv1D, gnn.Conv2D, gnn.Conv3D)[n - 1](
                layer.out_channels, nn.sizes(layer.kernel_size, n), nn.sizes(layer.stride, n),
                nn.sizes(layer.padding, n), nn.sizes(layer.dilation, n), layer.groups,
                use_bias=layer.bias, in_channels=node.input[0],
            )  # fmt: skip
        case nn.MaxPool():
            return (gnn.MaxPool1D, gnn.MaxPool2D, gnn.MaxPool3D)[n - 1](*layer.windows(n))
        case nn.AvgPool():
            return (gnn.AvgPool1D, gnn.AvgPool2D, gnn.AvgPool3D)[n - 1](*layer.windows(n))
        case nn.BatchNorm():
            return gnn.BatchNorm(epsilon=layer.eps, momentum=1 - layer.momentum, in_channels=node.input[0])
        case nn.LayerNorm():
            return gnn.LayerNorm(epsilon=layer.eps, in_channels=node.input[-1])
        case nn.Embedding():
            return gnn.Embedding(layer.num_embeddings, layer.embedding_dim)
        case nn.Dropout():
            return gnn.Dropout(layer.p)
        case nn.Flatten():
            return gnn.Flatten()
        case nn.GELU():
            return gnn.HybridLambda(_gelu if layer.approximate == "none" else _gelu_tanh)
        case nn.Softmax():
            return gnn.HybridLambda(_softmax)
        case _:
            return gnn.Activation({nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}[type(layer)])
