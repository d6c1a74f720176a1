"""Model: the five verbs over a host. wrap, build: how models come in."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from . import initializers, paths, registry, ties
from .errors import (
    InvalidArgument,
    MultiparamWarning,
    ParameterNotFound,
    ShapeError,
    UnknownShapes,
    UnsupportedAttribute,
)
from .packed import Packed, bases, pack
from .parameter import UNKNOWN_CURE, Group, Parameter, _numpy_dtype
from .protocol import Activation, Array, Backend, Host, NativeOptimizer, Slot, Storage


class Table:
    """A model's slots grouped by storage, with the look-ups every access needs. Made once per wrap or tie."""

    def __init__(self, slots: list[Slot], adapter: Backend, packed: dict[Any, Packed]) -> None:
        self.slots = slots = pack(slots, adapter, packed)
        self.names: list[str] = []
        self.by_name: dict[str, int] = {}
        self.first: dict[int, int] = {}  # id of a storage -> its first slot
        self._names: dict[int, tuple[str, ...]] | None = None
        names, by_name, first = self.names, self.by_name, self.first
        for i, slot in enumerate(slots):
            path = slot.path
            name = ".".join(path)
            if "\\" in name or name.count(".") >= len(path):  # a dot inside a segment: see paths.text
                name = paths.text(path)
            names.append(name)
            by_name[name] = i
            key = id(slot.storage)
            if key not in first:
                first[key] = i
        if len(by_name) != len(slots):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"Two parameters of one name: {', '.join(twice)}. This is a defect of the adapter.")

    def names_of(self, storage: Storage) -> tuple[str, ...]:
        """All names of a storage in definition order."""
        if self._names is None:
            found: dict[int, list[str]] = {}
            for name, slot in zip(self.names, self.slots, strict=True):
                found.setdefault(id(slot.storage), []).append(name)
            self._names = {key: tuple(names) for key, names in found.items()}
        return self._names[id(storage)]

    def storages(self) -> list[Storage]:
        """Each native array of a parameter once, in definition order."""
        chosen = (self.slots[i].storage for i in self.first.values() if not self.slots[i].buffer)
        return list(dict.fromkeys(base for storage in chosen for base in bases(storage)))

    def view(self, index: int) -> int:
        """The first slot that shows the same storage in the same layout."""
        slot = self.slots[index]
        first = self.first[id(slot.storage)]
        if self.slots[first].layout == slot.layout:
            return first
        return next(i for i, s in enumerate(self.slots) if s.storage is slot.storage and s.layout == slot.layout)


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

    def __init__(self, host: Host, backend: str, adapter: Backend) -> None:
        super().__init__(None, (), None)
        self._host = host
        self.backend = backend
        self.adapter = adapter
        self._version = 0
        self._tracing = False
        self._train = False
        self._cache: dict[int, Parameter] = {}
        self._listed: dict[tuple[bool, bool], Mapping[str, Parameter]] = {}
        self._named: dict[str, Parameter] = {}
        self._packed: dict[Any, Packed] = {}
        self._table = Table(host.slots(), adapter, self._packed)
        self._known_ties = ties.known(self)

    @property
    def _net(self) -> Model:
        return self

    @property
    def native(self) -> Any:
        """The untouched framework model.

        Settable to another object of the same architecture, such as a reloaded one: names and known ties stay, see
        :meth:`check`. Raises InvalidArgument when its parameters have other names or shapes.
        """
        return self._host.native

    @native.setter
    def native(self, native: Any) -> None:
        host = self.adapter.wrap(native, ())
        ties.same_architecture(self._table, self._read(host, self._table.names))
        self._host, known = host, self._known_ties
        self._changed(slots=True)
        self._known_ties = known

    @property
    def variables(self) -> Any:
        """The plain pytree of a framework that keeps parameters apart from the model, ties expanded.

        Settable to one of the same structure, as native code gives it back; copies of a tied array must still be
        equal. Raises UnsupportedAttribute for one that keeps them inside: take them from ``native`` there.
        """
        return self._apart().variables

    @variables.setter
    def variables(self, tree: Any) -> None:
        self._apart().variables = tree

    def _apart(self) -> Any:
        """The host, if it keeps parameters apart; by its class, since looking would expand the whole tree."""
        if not hasattr(type(self._host), "variables"):
            raise UnsupportedAttribute(f"{self.backend} keeps the parameters in the model itself: use net.native.")
        return self._host

    # -- running

    def __call__(self, *inputs: Any, train: bool | None = None, **kwargs: Any) -> Array:
        """The forward pass; numpy inputs are converted, the output is the framework's own.

        Dropout and batch statistics are off, unless ``train=True`` or inside a gradient step.
        """
        mode = self._train if train is None else train
        return self._host.call(tuple(self.native_array(x) for x in inputs), kwargs, mode)

    def activations(self, *inputs: Any) -> list[Activation]:
        """What each layer with parameters takes and gives in a forward pass in evaluation, in order of execution.

        A layer used several times is there as often, under the name of each use.

            >>> net = mp.build(mp.nn.Sequential(mp.nn.Linear(2), mp.nn.ReLU()), np.ones((1, 3)), backend="torch")
            >>> [(call.layer, tuple(call.output.shape)) for call in net.activations(np.ones((4, 3)))]
            [('0', (4, 2))]
        """
        found: list[Activation] = []
        self._host.activations(tuple(self.native_array(x) for x in inputs), found.append)
        return found

    def native_array(self, array: Any) -> Array:
        """numpy as the framework's array (floats in the model's dtype); anything else untouched."""
        if not isinstance(array, (np.ndarray, np.generic)):
            return array
        array = np.asarray(array)
        if array.dtype.kind == "f" and self.dtype is not None:
            array = array.astype(self.dtype, copy=False)
        return self.adapter.from_numpy(array)

    def to_numpy(self, array: Any) -> np.ndarray:
        """Any array, a Parameter or numbers, as numpy."""
        return to_numpy(array)

    @property
    def dtype(self) -> str | None:
        """The dtype of the first floating parameter that numpy knows."""
        for slot in self._table.slots:
            if slot.storage.dtype.startswith("float"):
                return slot.storage.dtype
        return None

    # -- access

    def __getitem__(self, key: Any) -> Any:
        if type(key) is str:
            found = self._named.get(key)
            if found is not None:
                return found
            index = self._table.by_name.get(key)
            if index is not None:
                found = self._named[key] = self._parameter(index)
                return found
        return super().__getitem__(key)

    def _parameter(self, index: int) -> Parameter:
        index = self._table.view(index)
        found = self._cache.get(index)
        if found is None:
            found = self._cache[index] = Parameter(self, index)
        return found

    def _parameter_of(self, storage_id: int) -> Parameter:
        return self._parameter(self._table.first[storage_id])

    def _mapping(self, buffers: bool, aliases: bool) -> Mapping[str, Parameter]:
        listed = self._listed.get((buffers, aliases))
        if listed is None:
            table, slots = self._table, self._table.slots
            chosen = range(len(slots)) if aliases else table.first.values()
            found = {table.names[i]: self._parameter(i) for i in chosen if slots[i].buffer is buffers}
            listed = self._listed[buffers, aliases] = MappingProxyType(found)
        return listed

    def _changed(self, slots: bool = False) -> None:
        """Everything compiled for this model is stale; with ``slots``, so is the table."""
        self._version += 1
        if slots:
            self._table = self._read(self._host, self._table.names)
            self._listed.clear()
            self._named.clear()
            self._known_ties = ties.known(self)

    def _read(self, host: Host, names: list[str]) -> Table:
        """A host's table, in the order of ``names`` where those are its names: a copy may list its own otherwise."""
        table = Table(host.slots(), self.adapter, self._packed)
        if table.names == names or set(table.names) != set(names):
            return table
        return Table([table.slots[table.by_name[name]] for name in names], self.adapter, {})

    # -- ties

    def ties(self, *, repair: bool = False) -> list[tuple[str, ...]]:
        """The groups of names that share one storage, in definition order.

        With ``repair``, those that :meth:`check` finds broken are tied again first, to the first of their names.
        """
        if repair:
            ties.repair(self)
        groups = (self._table.names_of(storage) for storage in self._storages())
        return [names for names in groups if len(names) > 1]

    def _storages(self) -> list[Storage]:
        return [self._table.slots[i].storage for i in self._table.first.values()]

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
        ties.tie(self, target, source, transpose)
        return self[target]  # type: ignore[no-any-return]

    def untie(self, name: str) -> Parameter:
        """Give ``name`` a storage of its own, with the values it has now. The gradient, of all uses, is dropped.

        Raises TieError when it is not tied, or when all its names are one layer used at several positions: one
        layer has one weight.
        """
        ties.untie(self, name)
        return self._parameter(self._table.by_name[name])

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
        return ties.broken(self)

    def _slot(self, name: str) -> Slot:
        index = self._table.by_name.get(name)
        if index is None:
            raise ParameterNotFound(f"No parameter {name!r}. {paths.did_you_mean(name, self._table.names)}")
        return self._table.slots[index]

    def options(self) -> dict[str, dict[str, Any]]:
        """Layer name -> what its weights do not carry (eps, momentum, ...), in PyTorch's words.

        Layers of which the adapter tells nothing are left out.
        """
        found: dict[str, dict[str, Any]] = {}
        for slot in self._table.slots:
            layer = paths.text(slot.path[:-1])
            if not found.get(layer):
                found[layer] = dict(self._host.options(slot))
        return {layer: said for layer, said in found.items() if said}

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
        return Step(self, objective, train)

    def _through(self, host: Host, objective: Callable[..., Any], train: bool, batch: tuple[Any, ...]) -> Any:
        """Run an objective with this model looking at ``host``: itself, or one that holds traced values."""
        before = self._host, self._table, self._tracing, self._train
        if host is not self._host:
            self._host, self._table = host, Table(host.slots(), self.adapter, {})
        self._tracing, self._train = True, train
        try:
            return _scalar(objective(self, *batch))
        finally:
            self._host, self._table, self._tracing, self._train = before

    def optimizer(self, name: str, **options: float | bool) -> Optimizer:
        """The framework's own ``"sgd"``, ``"momentum"`` or ``"adam"``, with PyTorch's meaning of each option.

        ``sgd(lr=0.01)``; ``momentum(lr=0.01, momentum=0.9, nesterov=False)``;
        ``adam(lr=0.001, beta1=0.9, beta2=0.999, eps=1e-8)``, eps being added to the root of the corrected second
        moment (Kingma and Ba, 2015, algorithm 1). Raises InvalidArgument for an unknown name or option.
        """
        return Optimizer(self, name, options)


def _scalar(loss: Any) -> Any:
    """A loss that is one number; some frameworks would sum another silently."""
    shape = tuple(getattr(loss, "shape", ()))
    if any(n is not None and n != 1 for n in shape):
        raise ShapeError(f"The objective must return a scalar; it returned shape {shape}. Take its mean or sum.")
    return loss


class Gradients(Mapping[str, Array]):
    """name -> gradient in canonical layout, each trainable storage once. Layouts are changed when looked at."""

    def __init__(
        self, adapter: Backend, slots: Mapping[str, Slot], where: Mapping[Storage, int], native: Sequence[Array]
    ) -> None:
        self._adapter = adapter
        self._slots = slots
        self._where = where
        self._native = native

    def __getitem__(self, name: str) -> Array:
        slot = self._slots.get(name)
        if slot is None:
            raise ParameterNotFound(f"No gradient {name!r}. {paths.did_you_mean(name, self._slots)}")
        if isinstance(slot.storage, Packed):
            return slot.storage.gather([self._native[self._where[base]] for base in slot.storage.bases])
        array = self._native[self._where[slot.storage]]
        return array if slot.layout is None else slot.layout.apply(array, self._adapter)

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def __repr__(self) -> str:
        return f"Gradients({list(self)})"


class Step:
    """A gradient step: ``loss, grads = step(*batch)``. Compiled on first use, and again after a tie or freeze."""

    def __init__(self, net: Model, objective: Callable[..., Any], train: bool) -> None:
        self._net = net
        self._objective = objective
        self._train = train
        self._version = -1
        self._slots: dict[str, Slot] = {}
        self._where: dict[Storage, int] = {}
        self._step: Callable[..., tuple[Array, list[Array]]]

    def _compile(self) -> None:
        net = self._net
        table = net._table
        self._slots = {
            table.names[i]: table.slots[i]
            for i in table.first.values()
            if not table.slots[i].buffer and table.slots[i].storage.trainable
        }
        unique = dict.fromkeys(base for slot in self._slots.values() for base in bases(slot.storage))
        self._where = {base: i for i, base in enumerate(unique)}
        if not self._slots:
            raise InvalidArgument("No parameter is trainable: there is nothing to differentiate. Say net.unfreeze().")
        objective, train = self._objective, self._train

        def run(host: Host, *batch: Any) -> Any:
            return net._through(host, objective, train, batch)

        self._step = net._host.gradient(run, list(self._where), train)
        self._version = net._version

    def __call__(self, *batch: Any) -> tuple[Array, Gradients]:
        net = self._net
        if self._version != net._version:
            self._compile()
        loss, native = self._step(*[net.native_array(x) for x in batch])
        return loss, Gradients(net.adapter, self._slots, self._where, native)


OPTIMIZERS: Mapping[str, Mapping[str, float | bool]] = MappingProxyType(
    {
        "sgd": {"lr": 0.01},
        "momentum": {"lr": 0.01, "momentum": 0.9, "nesterov": False},
        "adam": {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    }
)


class Optimizer:
    """A framework's own optimizer over the trainable parameters. ``step()`` uses each ``.grad``.

    After a tie or untie the native optimizer is made anew, since the old one holds a storage that is gone; its
    moments start from zero, and a warning says so.
    """

    def __init__(self, net: Model, name: str, options: Mapping[str, float | bool]) -> None:
        if name not in OPTIMIZERS:
            raise InvalidArgument(f"No optimizer {name!r}. {paths.did_you_mean(name, OPTIMIZERS)}")
        for option in options:
            if option not in OPTIMIZERS[name]:
                hint = paths.did_you_mean(option, OPTIMIZERS[name])
                raise InvalidArgument(f"{name!r} has no option {option!r}. {hint}")
        self.name = name
        self._net = net
        self._options = {**OPTIMIZERS[name], **options}
        self._storages: list[Storage] = []
        self._native: NativeOptimizer | None = None
        self._steps = 0

    @property
    def lr(self) -> float:
        """The learning rate; settable between steps."""
        return float(self._options["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        self._options["lr"] = value
        if self._native is not None:
            self._native.lr = value

    def _current(self) -> NativeOptimizer:
        storages = self._net._table.storages()
        if self._native is None or [id(s) for s in storages] != [id(s) for s in self._storages]:
            if self._steps and self.name != "sgd":
                warnings.warn(
                    f"Parameters were tied or untied since this {self.name!r} optimizer was made: "
                    "its moments start from zero.",
                    MultiparamWarning,
                    stacklevel=3,
                )
            self._storages = storages
            self._native = self._net._host.optimizer(self.name, self._options, storages)
        return self._native

    def step(self, grads: Mapping[str, Any] | None = None) -> None:
        """One update by each parameter's ``.grad``, or by ``grads`` (names -> canonical arrays).

        Frozen parameters are left alone, and so is one that has no gradient. Raises InvalidArgument when no parameter
        has one, and ParameterNotFound or ShapeError for ``grads`` that do not fit.
        """
        native = self._current()
        if grads is None or isinstance(grads, Gradients):
            pairs = self._own() if grads is None else list(zip(grads._where, grads._native, strict=True))
        else:
            pairs = self._given(grads)
        pairs = [(storage, grad) for storage, grad in pairs if storage.trainable]
        if not pairs:
            raise InvalidArgument("No trainable parameter has a gradient yet. Run a step of net.value_and_grad first.")
        native.apply([storage for storage, _ in pairs], [grad for _, grad in pairs])
        self._steps += 1

    def _own(self) -> list[tuple[Storage, Array]]:
        pairs = ((storage, storage.grad()) for storage in self._storages if storage.trainable)
        return [(storage, grad) for storage, grad in pairs if grad is not None]

    def _given(self, grads: Mapping[str, Any]) -> list[tuple[Storage, Array]]:
        """Gradients by name as native ones of native arrays."""
        found: dict[int, tuple[Storage, np.ndarray]] = {}
        rows: dict[int, set[int]] = {}
        for name, grad in grads.items():
            for slot, array in self._checked(name, grad):
                storage = slot.storage
                if slot.row is not None:
                    _, whole = found.get(id(storage), (storage, np.zeros(storage.shape or (), array.dtype)))
                    whole[slot.row] = array
                    array = whole
                    rows.setdefault(id(storage), set()).add(slot.row)
                found[id(storage)] = storage, np.asarray(array, order="C")
        for key, given in rows.items():
            if len(given) < len(found[key][1]):
                names = ", ".join(repr(n) for n in grads)
                raise InvalidArgument(f"One native array holds a parameter of {names} and another one: give both.")
        return [(storage, self._net.adapter.from_numpy(array)) for storage, array in found.values()]

    def _checked(self, name: str, grad: Any) -> list[tuple[Slot, np.ndarray]]:
        slot = self._net._slot(name)
        if slot.buffer:
            raise InvalidArgument(f"{name!r} is a buffer, which no optimizer moves.")
        parameter = self._net[name]
        array = to_numpy(grad)
        if array.shape != parameter.shape:
            raise ShapeError(f"The gradient of {name!r} has shape {array.shape}; the parameter has {parameter.shape}.")
        array = array.astype(_numpy_dtype(parameter.dtype), copy=False)
        if isinstance(slot.storage, Packed):
            return slot.storage.scatter(array)
        return [(slot, array if slot.layout is None else slot.layout.undo(array, np))]


def wrap(native: Any, *inputs: Any, **options: Any) -> Model:
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
    host = adapter.wrap(native, tuple(_example(adapter, x) for x in inputs), **options)
    net = Model(host, known.name, adapter)
    unknown = [
        name for name, slot in zip(net._table.names, net._table.slots, strict=True) if slot.storage.shape is None
    ]
    if unknown:
        raise UnknownShapes(
            f"The shapes of {', '.join(map(repr, unknown[:4]))}{', ...' if len(unknown) > 4 else ''} are not known "
            f"before the first forward pass. {UNKNOWN_CURE}"
        )
    return net


def _example(adapter: Backend, x: Any) -> Any:
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
    from . import nn

    if len(inputs) != 1:
        raise InvalidArgument(f"mp.build needs one example input, since an architecture has one; it gets {len(inputs)}")
    shape = tuple(int(n) for n in inputs[0].shape)
    if not shape:
        raise ShapeError("The example input needs a batch axis; it is a scalar")
    if dtype not in FLOATS:
        raise InvalidArgument(f"No network of dtype {dtype!r}. {paths.did_you_mean(str(dtype), FLOATS)}")
    name = registry.selected(backend)
    kind = "int64" if "int" in str(inputs[0].dtype) else dtype
    plan = nn.plan(spec, shape[1:], kind)
    adapter = registry.info(name).load()
    net = Model(adapter.build(plan, dtype), name, adapter)
    _start(net, seed)
    return net


FLOATS = ("float32", "float64", "float16", "bfloat16")


def _start(net: Model, seed: int) -> None:
    """Fill a new network, buffers too, as PyTorch's layers start, from the seed."""
    weights = {p._slot.path[:-1]: p.shape for p in net if p._slot.path[-1] == "weight"}
    for p in [*net.parameters().values(), *net.buffers().values()]:
        path = p._slot.path
        weight = weights.get(path[:-1], p.shape)
        value = initializers.draw(initializers.default(p.kind, path[-1], weight), p.shape, seed=seed, name=p.name)
        p._write(value.astype(_numpy_dtype(p.dtype), copy=False))


def to_numpy(array: Any) -> np.ndarray:
    """Any framework's array, gradient-tracked or not, a Parameter, or plain numbers, as numpy. It may alias.

    >>> to_numpy([1, 2]).tolist()
    [1, 2]
    """
    if isinstance(array, Parameter):
        return array.numpy()
    if isinstance(array, (np.ndarray, np.generic, int, float, list, tuple)):
        return np.asarray(array)
    known = registry.detect_array(array)
    return np.asarray(array) if known is None else known.load().to_numpy(array)
