"""Planted faults: does the conformance kit notice? ``make mutants`` prints the score.

Each fault is one thing an adapter, its framework or the core could do wrong. It is planted by setting attributes, the
kit's tests of one verb run on the backend, in this process, until the first fails, and the attributes are put back.
The kit passes only if a test fails and says which verb and which backend.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module, invalidate_caches
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest

import multiparam as mp
from multiparam import drawing, testing
from multiparam.core import architecture, construction, filling, group, layouts, parameter, registry, store, ties

Changes = Iterable[tuple[Any, str, Any]]  # object, attribute, what it is to be


class Fault(NamedTuple):
    """What is wrong, what it is about, where, and the attributes to set. ``plant`` gets the adapter's module."""

    verb: str
    title: str
    backend: str
    plant: Callable[[Any], Changes]

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        adapter = registry.info(self.backend).adapter.partition(":")[0]
        with contextlib.ExitStack() as stack:
            for where, name, wrong in self.plant(import_module(adapter)):
                stack.enter_context(mock.patch.object(where, name, wrong))
            yield


FAULTS: list[Fault] = []


def fault(verb: str, title: str, backend: str = "autograd") -> Callable[[Callable[[Any], Changes]], None]:
    return lambda plant: FAULTS.append(Fault(verb, title, backend, plant))


def swapped(first: Any, axes: tuple[int, int] = (0, 1)) -> Any:
    """An array with two axes swapped where no shape tells."""
    same = first.ndim > max(axes) and first.shape[axes[0]] == first.shape[axes[1]]
    return np.swapaxes(first, *axes) if same else first


def changed(function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    """The function with something else done to its result."""
    return lambda *args, **kwargs: change(function(*args, **kwargs))


def watched_otherwise(watch: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    """The context with something else done to the calls it shows, all of them at its end."""

    @contextlib.contextmanager
    def other(self: Any, on_call: Callable[[Any], None], on_enter: Any = None) -> Iterator[None]:
        calls: list[Any] = []
        with watch(self, calls.append):
            yield
        for call in change(calls):
            on_call(call)

    return other


# -- tie


@fault("tie", "a tie that copies")
def _(a: Any) -> Changes:
    bind = a.TinynetHost.bind
    yield a.TinynetHost, "bind", lambda self, slots, s, view=None: bind(self, slots, self.copy(s), view)


@fault("tie", "a tie that does nothing")
def _(a: Any) -> Changes:
    yield a.TinynetHost, "bind", lambda self, slots, storage, view=None: None


@fault("tie", "a tie that the table shows and the model has not")
def _(a: Any) -> Changes:
    slots, bound = a.TinynetHost.slots, {}

    def bind(self: Any, slots: Any, storage: Any, view: Any = None) -> None:
        bound[id(slots[0].owner), slots[0].leaf] = storage

    def show(self: Any) -> Any:
        found = slots(self)
        for slot in found:
            slot.storage = bound.get((id(slot.owner), slot.leaf), slot.storage)
        return found

    yield a.TinynetHost, "bind", bind
    yield a.TinynetHost, "slots", show


@fault("tie", "gradient of one use only")
def _(a: Any) -> Changes:
    read, seen = a.tinynet.Module.__getitem__, []

    def once(self: Any, name: str) -> Any:
        data, value = self.parameters[name].data, read(self, name)
        if hasattr(data, "_value"):
            if any(data is each for each in seen):
                return a.getval(value)
            seen.append(data)
        return value

    yield a.tinynet.Module, "__getitem__", once


@fault("tie", "the mean of the uses' gradients, not the sum")
def _(a: Any) -> Changes:
    gradient = a.TinynetHost.gradient

    def wrong(self: Any, run: Any, storages: Any, train: bool) -> Any:
        uses = [sum(slot.storage is s for slot in self.slots()) for s in storages]
        step = gradient(self, run, storages, train)

        def mean(*batch: Any) -> Any:
            loss, _ = step(*batch)
            for storage, count in zip(storages, uses, strict=True):
                storage.native.grad = storage.native.grad / count
            return loss, [storage.native.grad for storage in storages]

        return mean

    yield a.TinynetHost, "gradient", wrong


@fault("tie", "slots stale after a tie")
def _(a: Any) -> Changes:
    slots, first = a.TinynetHost.slots, {}

    def wrong(self: Any) -> Any:
        if self not in first:
            first[self] = slots(self)
        return first[self]

    yield a.TinynetHost, "slots", wrong


@fault("tie", "a compiled step stale after a tie")
def _(a: Any) -> Changes:
    reread = store.Store.reread

    def wrong(self: Any, **options: Any) -> None:
        version = self.version
        reread(self, **options)
        self.version = version

    yield store.Store, "reread", wrong


@fault("tie", "an untied parameter that is still the same")
def _(a: Any) -> Changes:
    yield a.TinynetHost, "copy", lambda self, storage, view=None: storage


@fault("tie", "an untied parameter that starts from zero")
def _(a: Any) -> Changes:
    def wrong(self: Any, storage: Any, view: Any = None) -> Any:
        return a.ParameterStorage(a.tinynet.Parameter(np.zeros_like(storage.native.data)))

    yield a.TinynetHost, "copy", wrong


@fault("tie", "an untied parameter that is thawed")
def _(a: Any) -> Changes:
    copy = a.TinynetHost.copy

    def wrong(self: Any, storage: Any, view: Any = None) -> Any:
        made = copy(self, storage, view)
        made.native.trainable = True
        return made

    yield a.TinynetHost, "copy", wrong


@fault("tie", "an untied transpose in the other's layout")
def _(a: Any) -> Changes:
    copy = a.TinynetHost.copy
    yield a.TinynetHost, "copy", lambda self, storage, view=None: copy(self, storage)


@fault("tie", "a transposed tie whose gradient is of one side")
def _(a: Any) -> Changes:
    yield a, "tied_view", lambda data, layout: layout.apply(a.getval(data), np)


@fault("tie", "a wrong error for shapes that differ")
def _(a: Any) -> Changes:
    def wrong(net: Any, target: str, source: str, transpose: bool) -> None:
        if net[target].shape != net[source].shape and not transpose:
            raise RuntimeError("the shapes differ")

    yield ties, "_check", wrong


# -- access


def _other_layouts(a: Any, layout: layouts.Layout | None, where: Callable[[tuple[int, ...]], bool]) -> Changes:
    """Arrays of some native shapes show in another layout."""
    canonical = a.LAYERS.canonical

    def wrong(cls: type, leaf: str, shape: tuple[int, ...], leaves: Any = None) -> Any:
        name, right = canonical(cls, leaf, shape, leaves)
        return name, layout if where(shape) else right

    yield a.LAYERS, "canonical", wrong


@fault("access", "transposed where square")
def _(a: Any) -> Changes:
    return _other_layouts(a, None, lambda shape: len(shape) == 2 and shape[0] == shape[1])


@fault("access", "a convolution's channels in for out where equal")
def _(a: Any) -> Changes:
    layout = layouts.Layout(("transpose", (2, 3, 0, 1)))
    return _other_layouts(a, layout, lambda shape: len(shape) == 4 and shape[2] == shape[3])


@fault("access", "a convolution's height for its width where equal")
def _(a: Any) -> Changes:
    layout = layouts.Layout(("transpose", (3, 2, 1, 0)))
    return _other_layouts(a, layout, lambda shape: len(shape) == 4 and shape[0] == shape[1])


@fault("access", "the framework's own leaf names")
def _(a: Any) -> Changes:
    yield a.LAYERS, "canonical", lambda cls, leaf, shape, leaves=None: (leaf, None)


@fault("access", "a value that the next write changes")
def _(a: Any) -> Changes:
    def write(self: Any, value: Any) -> None:
        self.native.data[...] = value

    yield a.ParameterStorage, "write", write
    yield a.AutogradAdapter, "detach", lambda self, array: array


@fault("access", "a write that keeps the array")
def _(a: Any) -> Changes:
    yield a.ParameterStorage, "write", lambda self, value: setattr(self.native, "data", value)


@fault("access", "a write that rebinds")
def _(a: Any) -> Changes:
    yield a.ParameterStorage, "write", lambda self, value: setattr(self, "native", a.tinynet.Parameter(np.array(value)))


@fault("access", "a write that does not reach the model")
def _(a: Any) -> Changes:
    yield a.ParameterStorage, "write", lambda self, value: None


@fault("access", "a write that casts")
def _(a: Any) -> Changes:
    yield a.ParameterStorage, "write", lambda self, value: setattr(self.native, "data", np.array(value, "float32"))


@fault("access", "an assign that broadcasts")
def _(a: Any) -> Changes:
    checked = parameter.Parameter._checked

    def wrong(self: Any, array: Any, cast: bool) -> Any:
        return checked(self, np.array(np.broadcast_to(array, self.shape)), cast)

    yield parameter.Parameter, "_checked", wrong


@fault("access", "an assign that casts unasked")
def _(a: Any) -> Changes:
    checked = parameter.Parameter._checked
    yield parameter.Parameter, "_checked", lambda self, array, cast: checked(self, array, True)


@fault("access", "an assign that transposes what does not fit")
def _(a: Any) -> Changes:
    checked = parameter.Parameter._checked

    def wrong(self: Any, array: Any, cast: bool) -> Any:
        array = np.asarray(array)
        return checked(self, array.T if array.T.shape == self.shape else array, cast)

    yield parameter.Parameter, "_checked", wrong


@fault("access", "an array that shares numpy's memory")
def _(a: Any) -> Changes:
    yield a.AutogradAdapter, "from_numpy", lambda self, array: array


@fault("access", "a wrong error for no model")
def _(a: Any) -> Changes:
    def wrong(self: Any, native: Any, inputs: Any) -> Any:
        raise TypeError("not mine")

    yield a.AutogradAdapter, "wrap", wrong


@fault("access", "a wrong error for another name")
def _(a: Any) -> Changes:
    def wrong(self: Any, name: str) -> Any:
        return {}[name]

    yield group.Group, "_by_name", wrong


@fault("access", "positions that count from one")
def _(a: Any) -> Changes:
    def shift(slots: Any) -> Any:
        for slot in slots:
            slot.positions = tuple(position + 1 for position in slot.positions)
        return slots

    yield a.TinynetHost, "slots", changed(a.TinynetHost.slots, shift)


@fault("access", "a kind of its own")
def _(a: Any) -> Changes:
    yield a.LAYERS, "of", lambda cls: "dense"


def namespace_with(a: Any, **wrong: Any) -> Changes:
    """The namespace of the adapter's arrays with some functions that are wrong."""
    yield a.AutogradAdapter, "namespace", lambda self, array: SimpleNamespace(**{**vars(a.anp), **wrong})


@fault("access", "a reshape in the other order")
def _(a: Any) -> Changes:
    return namespace_with(a, reshape=lambda array, shape: np.reshape(array, shape, order="F"))


@fault("access", "a flip of the first axis only")
def _(a: Any) -> Changes:
    return namespace_with(a, flip=lambda array, axes: array[::-1])


@fault("access", "gates swapped: an order that is its inverse")
def _(a: Any) -> Changes:
    def inverse(xp: Any, array: Any, order: Any) -> Any:
        return layouts.take(xp, array, order if xp is np else tuple(np.argsort(order)[::-1].tolist()))

    yield layouts, "STEPS", {**layouts.STEPS, "reorder": inverse}


@fault("access", "arrays joined along the first axis always")
def _(a: Any) -> Changes:
    return namespace_with(a, concatenate=lambda arrays, axis: np.concatenate(list(arrays), 0))


@fault("access", "activations in the order of definition, reversed")
def _(a: Any) -> Changes:
    yield a.TinynetHost, "watch", watched_otherwise(a.TinynetHost.watch, lambda calls: calls[::-1])


@fault("access", "a shared layer's activations under its first name")
def _(a: Any) -> Changes:
    def first(found: Any) -> Any:
        return [call._replace(layer="2" if call.layer == "4" else call.layer) for call in found]

    yield a.TinynetHost, "watch", watched_otherwise(a.TinynetHost.watch, first)


@fault("access", "the momentum of the old statistics, as the framework says it")
def _(a: Any) -> Changes:
    def other(said: Any) -> Any:
        return {name: 1 - value + (value == 0.5) / 8 if name == "momentum" else value for name, value in said.items()}

    yield a.TinynetHost, "options", changed(a.TinynetHost.options, other)


# -- all parameters


@fault("parameters", "an alias missing")
def _(a: Any) -> Changes:
    def drop(slots: Any) -> Any:
        seen: set[int] = set()
        return [slot for slot in slots if not (id(slot.storage) in seen or seen.add(id(slot.storage)))]

    yield a.TinynetHost, "slots", changed(a.TinynetHost.slots, drop)


@fault("parameters", "aliases counted twice")
def _(a: Any) -> Changes:
    def unpacked(slots: Any) -> Any:
        for slot in slots:
            slot.storage = a.ParameterStorage(slot.storage.native)
        return slots

    yield a.TinynetHost, "slots", changed(a.TinynetHost.slots, unpacked)


@fault("parameters", "a shared layer made twice")
def _(a: Any) -> Changes:
    def assemble(self: Any, make: Any) -> Any:
        def build(node: Any) -> Any:
            return make(node, build)

        return build(self.root)

    yield architecture.Architecture, "assemble", assemble


@fault("parameters", "a buffer listed as parameter")
def _(a: Any) -> Changes:
    yield a.tinynet, "Buffer", type("Nothing", (), {})


@fault("parameters", "a bias listed as buffer")
def _(a: Any) -> Changes:
    def hide(slots: Any) -> Any:
        for slot in slots:
            slot.buffer = slot.buffer or slot.leaf == "bias"
        return slots

    yield a.TinynetHost, "slots", changed(a.TinynetHost.slots, hide)


@fault("parameters", "in alphabetical order")
def _(a: Any) -> Changes:
    yield a.TinynetHost, "slots", changed(a.TinynetHost.slots, lambda found: sorted(found, key=lambda slot: slot.path))


@fault("parameters", "the last layer first")
def _(a: Any) -> Changes:
    yield a.TinynetHost, "slots", changed(a.TinynetHost.slots, lambda found: found[-2:] + found[:-2])


# -- init


@fault("init", "the seed ignored")
def _(a: Any) -> Changes:
    generator = drawing.generator
    yield drawing, "generator", lambda seed, name, *chunk: generator(0, name, *chunk)


@fault("init", "a seed by order instead of name")
def _(a: Any) -> Changes:
    generator, count = drawing.generator, itertools.count()
    yield drawing, "generator", lambda seed, name, *chunk: generator(seed, str(next(count)), *chunk)


@fault("init", "the name ignored")
def _(a: Any) -> Changes:
    generator = drawing.generator
    yield drawing, "generator", lambda seed, name, *chunk: generator(seed, "", *chunk)


@fault("init", "drawn in the native layout")
def _(a: Any) -> Changes:
    def wrong(store: Any, slot: Any, value: Any) -> None:
        slot.storage.write(value.reshape(slot.storage.shape))

    for module in (filling, parameter):
        yield module, "write_canonical", wrong


@fault("init", "a tied parameter drawn by its last name")
def _(a: Any) -> Changes:
    fill, drawn = filling.fill, filling._drawn
    last: dict[int, str] = {}  # by the storage's id

    def noting(store: Any, indices: Any, function: Any, seed: int) -> None:
        last.update({id(storage): store.table.names_of(storage)[-1] for storage in store.table.all_storages()})
        fill(store, indices, function, seed)

    for module in (group, parameter):
        yield module, "fill", noting
    yield filling, "_drawn", lambda function, p, seed: drawn(function, p._replace(name=last[id(p.slot.storage)]), seed)


@fault("init", "a selector that takes everything")
def _(a: Any) -> Changes:
    yield group.Group, "select", lambda self, *selectors, kind=None: group.Group(self._store)


@fault("init", "an initialiser that fails half way")
def _(a: Any) -> Changes:
    def wrong(self: Any, function: Any, *selectors: Any, kind: Any = None, seed: int = 0) -> Any:
        chosen = self.select(*selectors, kind=kind) if selectors or kind else self
        for p in chosen:
            value = drawing.draw(function, p.shape, seed=seed, name=p.name)
            parameter.write(p, value.astype(p.dtype, copy=False))
        return chosen

    yield group.Group, "init", wrong


# -- gradients


@fault("grad", "gradient doubled")
def _(a: Any) -> Changes:
    yield a.tinynet, "value_and_grad", _after(a, lambda grad, before: 2 * grad)


def _after(a: Any, change: Callable[[Any, Any], Any]) -> Any:
    """tinynet's value_and_grad with something done to each gradient, given the one before."""
    value_and_grad = a.tinynet.value_and_grad

    def wrong(loss: Any, parameters: Any) -> Any:
        before = [each.grad for each in parameters]
        value = value_and_grad(loss, parameters)
        for each, old in zip(parameters, before, strict=True):
            each.grad = change(each.grad, old)
        return value

    return wrong


@fault("grad", "gradients that accumulate")
def _(a: Any) -> Changes:
    yield a.tinynet, "value_and_grad", _after(a, lambda grad, before: grad if before is None else grad + before)


@fault("grad", "a gradient transposed where square")
def _(a: Any) -> Changes:
    yield a.tinynet, "value_and_grad", _after(a, lambda grad, before: swapped(grad))


@fault("grad", "a gradient that the next step overwrites")
def _(a: Any) -> Changes:
    def reuse(grad: Any, before: Any) -> Any:
        if before is None:
            return grad
        before[...] = grad
        return before

    yield a.tinynet, "value_and_grad", _after(a, reuse)


@fault("grad", "None where the loss does not depend on it")
def _(a: Any) -> Changes:
    yield a.tinynet, "value_and_grad", _after(a, lambda grad, before: grad if grad.any() else None)


@fault("grad", "grad not None before backward")
def _(a: Any) -> Changes:
    yield (
        a.ParameterStorage,
        "grad",
        lambda self: np.zeros(self.shape) if self.native.grad is None else self.native.grad,
    )


@fault("grad", "grad not kept")
def _(a: Any) -> Changes:
    yield a.ParameterStorage, "grad", lambda self: None


@fault("grad", "frozen still updated")
def _(a: Any) -> Changes:
    def apply(self: Any, storages: Any, grads: Any) -> None:
        given = {id(storage.native): grad for storage, grad in zip(storages, grads, strict=True)}
        for each in self.native.parameters:
            each.grad = given.get(id(each), np.zeros_like(each.data))  # momentum goes on
        self.native.step()

    yield a.Optimizer, "apply", apply


@fault("grad", "a freeze that does nothing")
def _(a: Any) -> Changes:
    yield a.ParameterStorage, "trainable", property(lambda self: True, lambda self, flag: None)


@fault("grad", "a freeze that keeps the gradient")
def _(a: Any) -> Changes:
    flag = property(lambda self: self.native.trainable, lambda self, flag: setattr(self.native, "trainable", flag))
    yield a.ParameterStorage, "trainable", flag


@fault("grad", "an unfreeze that drops every gradient")
def _(a: Any) -> Changes:
    def wrong(self: Any, flag: bool) -> None:
        self.native.trainable, self.native.grad = flag, None

    yield a.ParameterStorage, "trainable", property(lambda self: self.native.trainable, wrong)


@fault("grad", "a step that moves the values")
def _(a: Any) -> Changes:
    value_and_grad = a.tinynet.value_and_grad

    def wrong(loss: Any, parameters: Any) -> Any:
        value = value_and_grad(loss, parameters)
        for each in parameters:
            each.data = each.data * (1 + 1e-12)
        return value

    yield a.tinynet, "value_and_grad", wrong


@fault("grad", "traced values left behind by an objective that fails")
def _(a: Any) -> Changes:
    value_and_grad = a.tinynet.value_and_grad

    def wrong(loss: Any, parameters: Any) -> Any:
        try:
            return value_and_grad(loss, parameters)
        except RuntimeError:
            parameters[0].data = parameters[0].data * np.nan
            raise

    yield a.tinynet, "value_and_grad", wrong


@fault("grad", "the sum of squares, not the mean")
def _(a: Any) -> Changes:
    yield a.AutogradAdapter, "mse", lambda self, y, t: a.anp.sum((y - t) ** 2)


@fault("grad", "cross entropy in bits")
def _(a: Any) -> Changes:
    yield a.AutogradAdapter, "cross_entropy", changed(a.AutogradAdapter.cross_entropy, lambda loss: loss / np.log(2))


@fault("grad", "Adam's eps inside the root")
def _(a: Any) -> Changes:
    def wrong(self: Any, i: int, grad: Any) -> Any:
        (b1, b2), self.count[i] = self.betas, self.count[i] + 1
        m = self.first[i] = b1 * self.first[i] + (1 - b1) * grad
        v = self.second[i] = b2 * self.second[i] + (1 - b2) * grad * grad
        root = np.sqrt(v / (1 - b2 ** self.count[i]) + self.eps)
        return self.lr * m / (1 - b1 ** self.count[i]) / root

    yield a.tinynet.Adam, "change", wrong


@fault("grad", "Nesterov's momentum ignored")
def _(a: Any) -> Changes:
    def wrong(self: Any, i: int, grad: Any) -> Any:
        self.velocity[i] = self.momentum * self.velocity[i] + grad
        return self.lr * self.velocity[i]

    yield a.tinynet.Momentum, "change", wrong


@fault("grad", "a learning rate that stays as it was")
def _(a: Any) -> Changes:
    yield a.Optimizer, "lr", property(lambda self: self.native.lr, lambda self, value: None)


@fault("grad", "an optimizer that moves copies")
def _(a: Any) -> Changes:
    optimizer = a.TinynetHost.optimizer
    yield (
        a.TinynetHost,
        "optimizer",
        lambda self, name, options, storages: optimizer(
            self, name, options, [self.copy(storage) for storage in storages]
        ),
    )


# -- state


@fault("state", "a half-written load")
def _(a: Any) -> Changes:
    def wrong(self: Any, state: Any, strict: bool = True, *, cast: bool = False) -> Any:
        for name in self.state_dict():
            if name not in state:
                raise mp.errors.StateError(f"{name!r} is missing")
            try:
                self[name].assign(state[name], cast=cast)
            except mp.MultiparamError as error:
                raise mp.errors.StateError(str(error)) from None
        return (), ()

    yield group.Group, "load_state_dict", wrong


@fault("state", "buffers left out")
def _(a: Any) -> Changes:
    state_dict = group.Group.state_dict

    def wrong(self: Any, native: bool = False) -> Any:
        return {name: value for name, value in state_dict(self, native).items() if name not in self.buffers()}

    yield group.Group, "state_dict", wrong


@fault("state", "a native state in native layout")
def _(a: Any) -> Changes:
    yield parameter.Parameter, "value", property(lambda self: self._store.adapter.detach(self._storage.read()))


@fault("state", "a state that is the model's memory")
def _(a: Any) -> Changes:
    def wrong(self: Any, native: bool = False) -> Any:
        held = {**self.parameters(), **self.buffers()}
        return {name: p._canonical(p._storage.read()) for name, p in held.items()}

    yield group.Group, "state_dict", wrong


@fault("state", "names of a load that nobody looks at")
def _(a: Any) -> Changes:
    load = group.Group.load_state_dict
    yield group.Group, "load_state_dict", lambda self, state, strict=True, cast=False: load(self, state, False)


# -- build


@fault("build", "the seed of a build ignored")
def _(a: Any) -> Changes:
    start = construction._start
    yield construction, "_start", lambda net, seed: start(net, 0)


@fault("build", "the framework's own eps")
def _(a: Any) -> Changes:
    make = a.tinynet.BatchNorm
    yield (
        a.tinynet,
        "BatchNorm",
        _class_like(make, lambda channels, eps, momentum, dtype: (channels, 1e-4, momentum, dtype)),
    )


def _class_like(cls: Any, change: Callable[..., tuple[Any, ...]]) -> Any:
    """A subclass made from other arguments."""
    return type(cls.__name__, (cls,), {"__init__": lambda self, *args: cls.__init__(self, *change(*args))})


@fault("build", "the weight of the old statistics")
def _(a: Any) -> Changes:
    make = a.tinynet.BatchNorm
    yield a.tinynet, "BatchNorm", _class_like(make, lambda channels, eps, m, dtype: (channels, eps, 1 - m, dtype))


@fault("build", "biased running variances")
def _(a: Any) -> Changes:
    follow = a.tinynet.BatchNorm.follow

    def wrong(self: Any, name: str, batch: Any) -> None:
        follow(self, name, batch * (23 / 24) if name == "var" else batch)

    yield a.tinynet.BatchNorm, "follow", wrong


@fault("build", "statistics that move in evaluation")
def _(a: Any) -> Changes:
    call = a.TinynetHost.call
    yield a.TinynetHost, "call", lambda self, inputs, kwargs, train: call(self, inputs, kwargs, True)


@fault("build", "evaluation while training")
def _(a: Any) -> Changes:
    call = a.TinynetHost.call
    yield a.TinynetHost, "call", lambda self, inputs, kwargs, train: call(self, inputs, kwargs, False)


@fault("build", "dropout that does not scale")
def _(a: Any) -> Changes:
    def wrong(self: Any, x: Any) -> Any:
        return x * (np.random.default_rng().random(x.shape) >= self.p) if self.training else x

    yield a.tinynet.Dropout, "__call__", wrong


@fault("build", "one dropout mask for ever")
def _(a: Any) -> Changes:
    def wrong(self: Any, x: Any) -> Any:
        kept = (np.random.default_rng(0).random(x.shape) >= self.p) / (1 - self.p)
        return x * kept.astype(x.dtype) if self.training else x

    yield a.tinynet.Dropout, "__call__", wrong


@fault("build", "padded zeros that do not count")
def _(a: Any) -> Changes:
    layers = import_module("tinynet.layers")
    yield a.tinynet.AvgPool, "reduce", lambda self, seen: layers.np.sum(seen, axis=0) / max((seen != 0).sum(0).min(), 1)


@fault("build", "a max pool padded with zeros")
def _(a: Any) -> Changes:
    yield a.tinynet.MaxPool, "fill", 0.0


@fault("build", "flattened channels last")
def _(a: Any) -> Changes:
    def wrong(self: Any, x: Any) -> Any:
        return a.anp.reshape(a.anp.moveaxis(x, 1, -1), (x.shape[0], -1))

    yield a.tinynet.Flatten, "__call__", wrong


@fault("build", "the tanh form of GELU always")
def _(a: Any) -> Changes:
    make = a.tinynet.GELU
    yield a.tinynet, "GELU", _class_like(make, lambda *tanh: (True,))


@fault("build", "a residual that forgets its input")
def _(a: Any) -> Changes:
    yield a.tinynet.Residual, "__call__", lambda self, x: self.children["body"](x)


@fault("build", "a stride that is ignored")
def _(a: Any) -> Changes:
    make = a.tinynet.Conv
    yield a.tinynet, "Conv", _class_like(make, lambda i, o, size, stride, *rest: (i, o, size, (1,) * len(size), *rest))


@fault("build", "groups in another order")
def _(a: Any) -> Changes:
    call = a.tinynet.Conv.__call__

    def wrong(self: Any, x: Any) -> Any:
        return call(self, x[:, ::-1] if self.groups > 1 else x)

    yield a.tinynet.Conv, "__call__", wrong


@fault("build", "float32 inside a float64 network")
def _(a: Any) -> Changes:
    call = a.TinynetHost.call
    yield a.TinynetHost, "call", changed(call, lambda y: y.astype("float32").astype("float64"))


# -- transfer


@fault("transfer", "values rounded on their way out")
def _(a: Any) -> Changes:
    to_numpy = a.AutogradAdapter.to_numpy

    def wrong(self: Any, array: Any) -> Any:
        found = to_numpy(self, array)
        return found.astype("float16").astype(found.dtype) if found.dtype.kind == "f" else found

    yield a.AutogradAdapter, "to_numpy", wrong


@fault("transfer", "square weights transposed on their way in")
def _(a: Any) -> Changes:
    write = a.ParameterStorage.write
    yield a.ParameterStorage, "write", lambda self, value: write(self, swapped(value))


@fault("transfer", "buffers left behind")
def _(a: Any) -> Changes:
    write = a.ParameterStorage.write

    def wrong(self: Any, value: Any) -> None:
        if not isinstance(self.native, a.tinynet.Buffer):
            write(self, value)

    yield a.ParameterStorage, "write", wrong


# -- the four frameworks' adapters


@fault("tie", "a tie that copies", "torch")
def _(a: Any) -> Changes:
    bind = a.TorchHost.bind
    yield a.TorchHost, "bind", lambda self, slots, s, view=None: bind(self, slots, self.copy(s), view)


@fault("grad", "gradients that accumulate", "torch")
def _(a: Any) -> Changes:
    gradient = a.TorchHost.gradient

    def wrong(self: Any, run: Any, storages: Any, train: bool) -> Any:
        def accumulate(*batch: Any) -> Any:
            loss = run(self, *batch)
            loss.backward()
            return loss.detach(), [s.native.grad for s in storages]

        gradient(self, run, storages, train)
        return accumulate

    yield a.TorchHost, "gradient", wrong


@fault("grad", "a frozen parameter's gradient kept", "torch")
def _(a: Any) -> Changes:
    flag = property(lambda self: self.native.requires_grad, lambda self, flag: self.native.requires_grad_(flag))
    yield import_module("multiparam_torch.storage").TorchStorage, "trainable", flag


@fault("access", "a value that the next write changes", "torch")
def _(a: Any) -> Changes:
    yield a.TorchAdapter, "detach", lambda self, array: array.detach()


@fault("parameters", "a buffer listed as parameter", "torch")
def _(a: Any) -> Changes:
    def show(slots: Any) -> Any:
        for slot in slots:
            slot.buffer = False
        return slots

    yield a.TorchHost, "slots", changed(a.TorchHost.slots, show)


@fault("tie", "a tie that copies", "jax")
def _(a: Any) -> Changes:
    host = import_module("multiparam_jax.linen").LinenHost
    bind = host.bind
    yield host, "bind", lambda self, slots, s, view=None: bind(self, slots, self.copy(s), view)


@fault("access", "transposed where square", "jax")
def _(a: Any) -> Changes:
    layers = import_module("multiparam_jax.layers").LAYERS
    canonical = layers.canonical

    def wrong(cls: type, leaf: str, shape: tuple[int, ...], leaves: Any = None) -> Any:
        name, layout = canonical(cls, leaf, shape, leaves)
        return name, None if len(shape) == 2 and shape[0] == shape[1] else layout

    yield layers, "canonical", wrong


@fault("tie", "a tie that copies", "mxnet")
def _(a: Any) -> Changes:
    bind = a.GluonHost.bind
    yield a.GluonHost, "bind", lambda self, slots, s, view=None: bind(self, slots, self.copy(s), view)


@fault("tie", "a tie that copies", "tensorflow")
def _(a: Any) -> Changes:
    bind = a.KerasHost.bind
    yield a.KerasHost, "bind", lambda self, slots, s, view=None: bind(self, slots, self.copy(s), view)


def run(each: Fault | None, verb: str, backend: str) -> list[pytest.TestReport]:
    """The kit's tests of a verb with a fault planted; the reports that failed."""
    failed: list[pytest.TestReport] = []

    class Watch:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                failed.append(report)

    path = Path(testing.__file__).parent / f"test_{verb}.py"
    arguments = [str(path), "--backend", backend, "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    with each.planted() if each else contextlib.nullcontext(), contextlib.redirect_stdout(io.StringIO()):
        pytest.main(arguments, plugins=[Watch()])
    return failed


def said(failed: list[pytest.TestReport], each: Fault) -> str:
    """The test that failed, where its report names the verb and the backend; nothing otherwise."""
    for report in failed:
        text = "\n".join(content for _, content in report.sections)
        if f"{each.verb} is not what it should be in backend {each.backend!r}" in text:
            return report.nodeid.rpartition("::")[2]
    return ""


def ready() -> None:
    """Install the example adapter into a folder of its own, where it is not there."""
    if find_spec("multiparam_autograd") is not None:
        return
    target = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", target]
    subprocess.run([*pip, str(Path(__file__).parents[1] / "tests" / "support" / "plugin")], check=True)
    sys.path.insert(0, target)
    invalidate_caches()
    registry.registered.cache_clear()


def chosen(backends: list[str], few: bool) -> list[Fault]:
    """The faults of some backends, or of all that are installed; with ``few``, two of each verb."""
    there = [name for name, status in mp.backends().items() if status]
    found = [each for each in FAULTS if each.backend in (backends or there)]
    if not few:
        return found
    by_verb: dict[tuple[str, str], list[Fault]] = {}
    for each in found:
        by_verb.setdefault((each.verb, each.backend), []).append(each)
    return [each for alike in by_verb.values() for each in alike[:2]]


def plant_only(faults: list[Fault]) -> int:
    """Exit status 0 where each fault finds what it changes; the others are printed. A rename breaks them silently."""
    lost = []
    for each in faults:
        try:
            with each.planted():
                pass
        except AttributeError as error:
            lost.append(f"NOT PLANTED {each.backend} {each.verb}: {each.title}: {error}")
    print(*lost, f"{len(faults) - len(lost)} of {len(faults)} faults planted.", sep="\n")
    return 1 if lost else 0


def main() -> int:
    """A run of each verb without a fault, then every fault; the score, and exit status 0 where all are noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", action="append", default=[], help="plant faults in this backend only; repeatable")
    parser.add_argument("--few", action="store_true", help="two faults of each verb")
    parser.add_argument("--plant", action="store_true", help="plant each, and run nothing: seconds")
    asked = parser.parse_args()
    ready()
    faults = chosen(asked.backend, asked.few)
    if asked.plant:
        return plant_only(faults)
    start, lines, noticed = time.perf_counter(), [], 0
    for verb, backend in dict.fromkeys((each.verb, each.backend) for each in faults):
        if run(None, verb, backend):
            lines.append(f"FAILS WITHOUT A FAULT: {verb}, {backend}")
    for each in faults:
        test = said(run(each, each.verb, each.backend), each)
        noticed += bool(test)
        lines.append(f"{'noticed' if test else 'MISSED '}  {each.backend} {each.verb}: {each.title}  [{test}]")
    seconds = time.perf_counter() - start
    print(*lines, f"{noticed} of {len(faults)} faults noticed in {seconds:.0f} s.", sep="\n")
    return 0 if noticed == len(faults) == len(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
