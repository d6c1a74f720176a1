"""Model: the five verbs over a host. wrap, build: how models come in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, overload

import numpy as np

from .. import initializers, nn, paths
from ..errors import InvalidArgument, ShapeError, UnknownShapes, UnsupportedAttribute
from . import registry, ties
from .arrays import numpy_dtype, to_numpy
from .group import Group, store_of
from .parameter import UNKNOWN_CURE, Parameter, parameter_at, slot_of, write
from .protocol import Activation, Adapter, Array, Host
from .store import Store
from .table import same_architecture
from .training import Optimizer, Step


class Model(Group):
    """A framework's model behind one face. Made by :func:`wrap` and :func:`build`.

    >>> X = np.ones((2, 4), "float32")
    >>> net = mp.build(mp.nn.Sequential(mp.nn.Linear(8), mp.nn.ReLU(), mp.nn.Linear(1)), X, backend="torch")
    >>> list(net.parameters())
    ['0.weight', '0.bias', '2.weight', '2.bias']
    >>> net[2]["bias"] is net["2.bias"]
    True
    >>> tuple(net(X).shape)
    (2, 1)
    """

    def __init__(self, host: Host, backend: str, adapter: Adapter) -> None:
        super().__init__(Store(host, backend, adapter))
        self.backend = backend
        self.adapter = adapter
        self._named: dict[str, Parameter] = self._store.named

    @property
    def native(self) -> Any:
        """The untouched framework model.

        Settable to another object of the same architecture, such as a reloaded one: names and known ties stay, see
        :meth:`check`. Raises InvalidArgument when its parameters have other names or shapes.
        """
        return self._store.host.native

    @native.setter
    def native(self, native: Any) -> None:
        store, host = self._store, self.adapter.wrap(native, ())
        same_architecture(store.table, store.read_table(host))
        store.host = host
        store.reread(keep_known=True)

    @property
    def variables(self) -> Any:
        """The plain pytree of a framework that keeps parameters apart from the model, ties expanded.

        Settable to one of the same structure, as native code gives it back; copies of a tied array must still be
        equal. Raises UnsupportedAttribute for one that keeps them inside: take them from ``native`` there.
        """
        self._require_variables()
        return self._store.host.variables

    @variables.setter
    def variables(self, tree: Any) -> None:
        self._require_variables()
        self._store.host.variables = tree

    def _require_variables(self) -> None:
        """By the host's class, since looking would expand the whole tree."""
        if type(self._store.host).variables is Host.variables:
            raise UnsupportedAttribute(f"{self.backend} keeps the parameters in the model itself: use net.native.")

    # -- running

    def __call__(self, *inputs: Any, train: bool | None = None, **kwargs: Any) -> Array:
        """The forward pass; numpy inputs are converted, the output is the framework's own.

        Dropout and batch statistics are off, unless ``train=True`` or inside a gradient step.
        """
        store = self._store
        mode = store.train if train is None else train
        return store.host.call(tuple(store.native_array(x) for x in inputs), kwargs, mode)

    def activations(self, *inputs: Any) -> list[Activation]:
        """What each layer with parameters takes and gives in a forward pass in evaluation, in order of execution.

        A layer used several times is there as often, under the name of each use.

            >>> net = mp.build(mp.nn.Sequential(mp.nn.Linear(2), mp.nn.ReLU()), np.ones((1, 3)), backend="torch")
            >>> [(call.layer, tuple(call.output.shape)) for call in net.activations(np.ones((4, 3)))]
            [('0', (4, 2))]
        """
        calls: list[Activation] = []
        self._store.host.activations(tuple(self.native_array(x) for x in inputs), calls.append)
        return calls

    def native_array(self, array: Any) -> Array:
        """numpy as the framework's array (floats in the model's dtype); anything else untouched."""
        return self._store.native_array(array)

    def to_numpy(self, array: Any) -> np.ndarray:
        """Any array, a Parameter or numbers, as numpy."""
        return to_numpy(array)

    @property
    def dtype(self) -> str | None:
        """The dtype of the first floating parameter that numpy knows."""
        return self._store.dtype

    # -- access

    @overload
    def __getitem__(self, key: int) -> Group: ...
    @overload
    def __getitem__(self, key: str) -> Parameter: ...
    def __getitem__(self, key: int | str) -> Parameter | Group:
        if type(key) is str:
            parameter = self._named.get(key)
            if parameter is not None:
                return parameter
            index = self._store.table.by_name.get(key)
            if index is not None:
                parameter = self._named[key] = parameter_at(self._store, index)
                return parameter
        return super().__getitem__(key)

    def _mapping(self, buffers: bool, aliases: bool) -> Mapping[str, Parameter]:
        store = self._store
        listed: Mapping[str, Parameter] | None = store.listed.get((buffers, aliases))
        if listed is None:
            table, slots = store.table, store.table.slots
            chosen = range(len(slots)) if aliases else table.first.values()
            shown = {table.names[i]: parameter_at(store, i) for i in chosen if slots[i].buffer is buffers}
            listed = store.listed[buffers, aliases] = MappingProxyType(shown)
        return listed

    # -- ties

    def ties(self, *, repair: bool = False) -> list[tuple[str, ...]]:
        """The groups of names that share one storage, in definition order.

        With ``repair``, those that :meth:`check` finds broken are tied again first, to the first of their names.
        """
        if repair:
            ties.repair(self._store)
        return self._store.table.groups()

    def tie(self, target: str, source: str, *, transpose: bool = False) -> Parameter:
        """Make ``target`` use ``source``'s storage from now on; ``target``'s own values are dropped.

        With ``transpose``, ``target`` is the transpose of ``source``, as a decoder's weight is of its encoder's. It
        stays a Parameter of its own shape, with the storage and all names in common. Where only the framework's own
        layouts differ, as Flax' and Keras' of an embedding and an output layer, nothing need be said.

        A layer used at several positions has one place for its weight, so tying one of its names ties them all.
        Raises ParameterNotFound, ShapeError or TieError; the model is then unchanged.

            >>> layers = mp.nn.Linear(2, bias=False), mp.nn.Linear(3, bias=False)
            >>> net = mp.build(mp.nn.Sequential(*layers), np.ones((1, 3)), backend="torch")
            >>> net.tie("1.weight", "0.weight", transpose=True).shape, net.ties()
            ((3, 2), [('0.weight', '1.weight')])
        """
        ties.tie(self._store, target, source, transpose)
        return self.parameter(target)

    def untie(self, name: str) -> Parameter:
        """Give ``name`` a storage of its own, with the values it has now. The gradient, of all uses, is dropped.

        Raises TieError when it is not tied, or when all its names are one layer used at several positions: one
        layer has one weight.
        """
        ties.untie(self._store, name)
        return self.parameter(name)

    def check(self) -> list[tuple[str, ...]]:
        """Look at the native model again: the known ties it no longer has, each as the names that were one.

        Frameworks lose ties without a word: torch's ``load_state_dict(assign=True)`` puts a tensor in each name's
        place, and a reloaded or mapped copy, given as ``net.native = copy``, may hold one for each.
        ``ties(repair=True)`` mends them. Raises Unsupported when the model's parameters are not those wrapped.

            >>> import torch
            >>> native = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
            >>> net = mp.wrap(native)
            >>> _ = net.tie("1.weight", "0.weight")
            >>> _ = native.load_state_dict({k: v.clone() for k, v in native.state_dict().items()}, assign=True)
            >>> net.check(), net.ties(repair=True), net.check()
            ([('0.weight', '1.weight')], [('0.weight', '1.weight')], [])
        """
        return ties.broken(self._store)

    def options(self) -> dict[str, dict[str, Any]]:
        """Layer name -> what its weights do not carry (eps, momentum, ...), in PyTorch's words.

        Layers of which the adapter tells nothing are left out.
        """
        store, options = self._store, dict[str, dict[str, Any]]()
        for slot in store.table.slots:
            layer = paths.text(slot.path[:-1])
            if not options.get(layer):
                options[layer] = dict(store.host.options(slot))
        return {layer: known for layer, known in options.items() if known}

    # -- gradients

    def value_and_grad(self, objective: Callable[..., Any], *, train: bool = True) -> Step:
        """A compiled gradient step for ``objective(net, *batch) -> native scalar``.

        Calling it gives the loss and a mapping of gradients, and leaves them in each ``.grad``. The network runs in
        training mode unless ``train=False``.

            >>> net = mp.build(mp.nn.Linear(1, bias=False), np.ones((1, 2)), backend="torch")
            >>> _ = net.init(mp.init.constant(1))
            >>> step = net.value_and_grad(mp.losses.mse)
            >>> loss, grads = step(np.array([[1., 2.]]), np.array([[0.]]))
            >>> float(loss), mp.to_numpy(grads["weight"]).tolist()
            (9.0, [[6.0, 12.0]])
        """
        return Step(self._store, partial(objective, self), train)

    def optimizer(self, name: str, **options: float | bool) -> Optimizer:
        """The framework's own ``"sgd"``, ``"momentum"`` or ``"adam"``, with PyTorch's meaning of each option.

        ``sgd(lr=0.01)``; ``momentum(lr=0.01, momentum=0.9, nesterov=False)``;
        ``adam(lr=0.001, beta1=0.9, beta2=0.999, eps=1e-8)``, eps being added to the root of the corrected second
        moment (Kingma and Ba, 2015, algorithm 1). Raises InvalidArgument for an unknown name or option.
        """
        return Optimizer(self._store, name, options)


def wrap(native: Any, *inputs: Any, variables: Any = None, seed: int | None = None) -> Model:
    """A framework's model as a :class:`Model`; the framework is recognised by the object's classes.

    ``inputs``, numpy or native, let shapes be inferred that are made in the first forward pass; a linen module takes
    ``variables=``, or ``seed=`` to make them. Nothing of the model is changed.

    Raises Unrecognised for an object no backend knows, BackendMissing for a backend that does not import,
    and UnknownShapes for a model whose parameters do not exist yet.

        >>> import torch
        >>> net = wrap(torch.nn.Sequential(torch.nn.LazyLinear(8), torch.nn.ReLU()), np.ones((2, 4)))
        >>> net["0.weight"].shape
        (8, 4)
    """
    known = registry.detect(native)
    adapter = known.load()
    options = {name: value for name, value in (("variables", variables), ("seed", seed)) if value is not None}
    _check_options(adapter, known.name, options)
    net = Model(adapter.wrap(native, tuple(_example(adapter, x) for x in inputs), **options), known.name, adapter)
    table = store_of(net).table
    unknown = [name for name, slot in zip(table.names, table.slots, strict=True) if slot.storage.shape is None]
    if unknown:
        raise UnknownShapes(
            f"The shapes of {', '.join(map(repr, unknown[:4]))}{', ...' if len(unknown) > 4 else ''} are not known "
            f"before the first forward pass. {UNKNOWN_CURE}"
        )
    return net


def _check_options(adapter: Adapter, backend: str, options: Iterable[str]) -> None:
    """Raises InvalidArgument for an option that the adapter's wrap does not have."""
    taken = inspect.signature(adapter.wrap).parameters
    for name in options:
        if name not in taken:
            raise InvalidArgument(f"mp.wrap takes no {name}= for a model of {backend}, which holds its parameters.")


def _example(adapter: Adapter, x: Any) -> Any:
    """An example input as the framework's array; numpy's default float64 as float32, which models start in."""
    if not isinstance(x, np.ndarray):
        return x
    return adapter.from_numpy(x.astype(np.float32) if x.dtype == np.float64 else x)


def build(spec: Any, *inputs: Any, backend: str | None = None, seed: int = 0, dtype: str = "float32") -> Model:
    """The architecture ``spec`` (of ``mp.nn``) as native layers of the selected backend.

    ``inputs`` is one example batch, or anything with its ``shape``; input sizes are inferred from it. Parameters start
    as PyTorch's layers do, drawn from ``seed``: the same bits in every backend. The function computed is the same
    too: eps, momentum, padding, flatten order and data order are PyTorch's.

    Raises ShapeError naming the layer that does not fit, BackendUnknown or BackendMissing.

        >>> net = build(mp.nn.Conv(8, 3), np.ones((1, 3, 9, 9)), backend="torch", seed=1)
        >>> net["weight"].shape, type(net.native).__name__
        ((8, 3, 3, 3), 'Conv2d')
    """
    if len(inputs) != 1:
        raise InvalidArgument(f"mp.build needs one example input, since an architecture has one; it gets {len(inputs)}")
    shape = tuple(int(n) for n in inputs[0].shape)
    if not shape:
        raise ShapeError("The example input needs a batch axis; it is a scalar")
    if dtype not in FLOATS:
        raise InvalidArgument(f"No network of dtype {dtype!r}. {paths.did_you_mean(str(dtype), FLOATS)}")
    name = registry.selected(backend)
    kind = "int64" if "int" in str(inputs[0].dtype) else dtype
    architecture = nn.infer_shapes(spec, shape[1:], kind)
    adapter = registry.info(name).load()
    net = Model(adapter.build(architecture, dtype), name, adapter)
    _start(net, seed)
    return net


FLOATS = ("float32", "float64", "float16", "bfloat16")


def _start(net: Model, seed: int) -> None:
    """Fill a new network, buffers too, as PyTorch's layers start, from the seed."""
    weights = {slot_of(p).path[:-1]: p.shape for p in net if slot_of(p).path[-1] == "weight"}
    for p in [*net.parameters().values(), *net.buffers().values()]:
        path = slot_of(p).path
        weight = weights.get(path[:-1], p.shape)
        value = initializers.draw(initializers.default(p.kind, path[-1], weight), p.shape, seed=seed, name=p.name)
        write(p, value.astype(numpy_dtype(p.dtype), copy=False))
