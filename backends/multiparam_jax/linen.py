"""Flax linen: the module holds no parameters, so the host does: one storage per array of the variables.

A tied slot has no storage of its own. The pytree is expanded, every slot's array in its place, before ``apply``, so
gradients of all uses add up by themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

import multiparam.adapter as mpa
from multiparam.errors import ShapeError, TieError, UnknownShapes

from .arrays import (
    NAMESPACE,
    LeafStorage,
    computes_narrower,
    from_numpy,
    in_float64,
    is_concrete,
    scope,
)
from .build import Chain
from .host import ArrayHost
from .layers import LAYERS
from .linen_modules import Key, Scope, boxes, flat, in_mode, initialised, modes_of
from .linen_structure import Structure, tree_of
from .training import compiled_step


class LinenHost(ArrayHost):
    """A linen module and its variables.

    ``leaves`` are their arrays by key, the same storage at the keys of a tie, and ``views`` the layouts of transposed
    ties. The slots of ``structure`` are as they were first: their owner and leaf are the key of their array.
    """

    def __init__(
        self,
        module: linen.Module,
        leaves: dict[Key, LeafStorage],
        structure: Structure,
        rng: Any,
        views: dict[Key, mpa.Layout] | None = None,
    ) -> None:
        self.native = module
        self._leaves = leaves
        self._structure = structure
        self._rng = rng
        self._views = {} if views is None else views
        self._modes = {train: modes_of(module, train) for train in (False, True)}
        self._in_mode = {train: in_mode(module, train) for train in (False, True)}

    @property
    def variables(self) -> dict[str, Any]:
        """The plain pytree ``module.apply`` takes, ties expanded."""
        tree: dict[str, Any] = {}
        for key, leaf in self._leaves.items():
            node = tree
            for segment in key[:-1]:
                node = node.setdefault(segment, {})
            view, box = self._views.get(key), self._structure.boxes.get(key)
            array = leaf.native if view is None else view.apply(leaf.native, NAMESPACE)
            node[key[-1]] = array if box is None else box.replace_boxed(array)
        return tree

    @variables.setter
    def variables(self, tree: Any) -> None:
        arrays = dict(flat(tree))
        if arrays.keys() != self._leaves.keys():
            odd = sorted(".".join(key) for key in arrays.keys() ^ self._leaves.keys())
            raise ShapeError(f"The variables given back have another structure: {', '.join(map(repr, odd[:4]))}.")
        values: dict[LeafStorage, tuple[Key, Any]] = {}
        for key, array in arrays.items():
            leaf, view = self._leaves[key], self._views.get(key)
            array = from_numpy(array) if isinstance(array, np.ndarray) else array
            array = array if view is None else view.undo(array, NAMESPACE)
            if (array.shape, array.dtype) != (leaf.native.shape, leaf.native.dtype):
                now, before = (f"{a.dtype}{list(a.shape)}" for a in (array, leaf.native))
                raise ShapeError(f"{'.'.join(key)!r} was given back as {now}; it is {before}.")
            first, known = values.setdefault(leaf, (key, array))
            if known is not array and not np.array_equal(np.asarray(known), np.asarray(array), equal_nan=True):
                raise TieError(
                    f"{'.'.join(first)!r} and {'.'.join(key)!r} are tied, and were given back with different values: "
                    "native code trains the copies apart. Untie them, or give back equal ones."
                )
        for leaf, (_, array) in values.items():
            leaf.set(array)

    def slots(self) -> list[mpa.Slot]:
        slots = []
        for slot in self._structure.slots:
            key = (*slot.owner, slot.leaf)
            storage, view = self._leaves[key], self._views.get(key)
            as_first = storage is slot.storage and view is None
            slots.append(slot if as_first else slot.replace(storage=storage, view=view))
        return slots

    @property
    def data_order(self) -> str:
        return "first" if isinstance(self.native, Chain) else "last"

    def in_float64(self) -> AbstractContextManager[None] | None:
        wide = in_float64(self._leaves.values())
        return None if wide is None else self._computing_in_float64(wide)

    @contextmanager
    def _computing_in_float64(self, wide: AbstractContextManager[None]) -> Iterator[None]:
        """Layers that have a ``dtype`` compute in float64."""

        def widen(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if computes_narrower(context.module):
                object.__setattr__(context.module, "dtype", jnp.float64)  # apply's own copy, which is frozen
            return call(*args, **kwargs)

        with wide, linen.intercept_methods(widen):
            yield

    def watch(
        self, on_call: Callable[[mpa.Activation], Any], on_enter: mpa.OnEnter | None = None
    ) -> AbstractContextManager[None]:
        holding = {slot.path[:-1] for slot in self._structure.slots}
        names: dict[Scope, Iterator[str]] = {
            scope_path: itertools.cycle(map(mpa.paths.text, paths))
            for scope_path, paths in self._structure.paths.items()
            if not holding.isdisjoint(paths)
        }

        def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name != "__call__" or context.module.path not in names:
                return call(*args, **kwargs)
            entering = on_enter is not None and is_concrete(args)
            name = next(names[context.module.path]) if entering else ""
            if on_enter is not None and entering:
                args = on_enter(name, args)
            output = call(*args, **kwargs)
            if not is_concrete(output):
                return output
            name = name if entering else next(names[context.module.path])
            given = on_call(mpa.Activation(name, args, output))
            return output if given is None else given

        context: AbstractContextManager[None] = linen.intercept_methods(record)
        return context

    def stored_names(self, slots: Sequence[mpa.Slot]) -> list[list[str]]:
        return [[".".join((*slot.owner, slot.leaf)) for slot in slots]]

    def _parameter_tree(self) -> dict[str, Any]:
        return tree_of({key[1:]: leaf for key, leaf in self._leaves.items() if key[0] == "params"})

    def options(self, slot: mpa.Slot) -> Mapping[str, Any]:
        module = self._structure.modules.get(slot.options_layer[1:])
        return {} if module is None else LAYERS.options(module)

    def aliases(self) -> Mapping[mpa.paths.Path, mpa.paths.Path]:
        return self._structure.aliases

    def positions(self) -> Mapping[tuple[int, ...], mpa.paths.Path]:
        return self._structure.positions

    def count_children(self, path: mpa.paths.Path) -> int | None:
        return self._structure.counts.get(path)

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        state = sorted({key[0] for key in self._leaves} - {"params"}) if train else []
        rngs = kwargs.pop("rngs", None)  # linen draws from keys it is given only: each call in training gets a new one
        if rngs is None and train:
            self._rng, key = jax.random.split(self._rng)
            rngs = {"dropout": key}
        dtypes = {leaf.native.dtype for leaf in self._leaves.values()}
        with scope([*dtypes, *(x.dtype for x in inputs if hasattr(x, "dtype"))]):
            options = {**self._modes[train], **kwargs}
            module = self._in_mode[bool(train)]
            output, updated = module.apply(self.variables, *inputs, rngs=rngs, mutable=state, **options)
        for key, array in flat(updated):
            if key in self._leaves and array is not self._leaves[key].native:
                self._leaves[key].set(array)
        return output

    def call_with(self, values: Mapping[Any, Any], inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        copies = {leaf: LeafStorage(values.get(leaf, leaf.held)) for leaf in self._leaves.values()}
        leaves = {key: copies[leaf] for key, leaf in self._leaves.items()}
        host = LinenHost(self.native, leaves, self._structure, self._rng, self._views)
        return host.call(inputs, kwargs, train)

    def bind(self, slots: Sequence[mpa.Slot], storage: Any, view: mpa.Layout | None = None) -> None:
        key = (*slots[0].owner, slots[0].leaf)
        self._leaves[key] = storage
        self._views.pop(key, None)
        if view is not None:
            self._views[key] = view

    def copy(self, storage: Any, view: mpa.Layout | None = None) -> LeafStorage:
        values = storage.native if view is None else view.apply(storage.native, NAMESPACE)
        return LeafStorage(values, storage.trainable)

    def gradient(self, run: mpa.Run, storages: Sequence[Any], train: bool) -> Callable[..., tuple[Any, list[Any]]]:
        others = [leaf for leaf in dict.fromkeys(self._leaves.values()) if leaf not in storages]

        def host_of(values: list[Any], rest: list[Any], count: Any) -> tuple[LinenHost, Callable[[], list[Any]]]:
            pairs = zip([*storages, *others], [*values, *rest], strict=True)
            traced = {leaf: LeafStorage(value) for leaf, value in pairs}
            leaves = {key: traced[leaf] for key, leaf in self._leaves.items()}
            rng = jax.random.fold_in(self._rng, count)
            host = LinenHost(self.native, leaves, self._structure, rng, self._views)
            return host, lambda: [traced[leaf].native for leaf in others]

        return compiled_step(host_of, run, storages, others)


def host_for(module: linen.Module, inputs: mpa.Inputs, variables: Any, seed: int) -> LinenHost:
    """A host for a user's module. Raises UnknownShapes without variables and inputs to make them from."""
    rng, run = jax.random.key(seed), None
    if variables is None:
        if not inputs:
            raise UnknownShapes(
                f"The linen module {type(module).__name__} has no parameters of its own. Pass them, "
                "mp.wrap(module, X, variables=module.init(key, X)), or let them be made: mp.wrap(module, X, seed=0)."
            )
        variables, run = initialised(module, rng, inputs)
    leaves = {key: LeafStorage(a) for key, a in flat(variables)}
    return LinenHost(module, leaves, Structure(module, leaves, inputs, run, dict(boxes(variables))), rng)


def zeros(module: linen.Module, x: np.ndarray, dtype: str) -> dict[str, Any]:
    """The variables of a module with every number zero, in one dtype (flax 0.12 makes statistics float32 at first)."""
    with scope([dtype]):
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x))
        tree: dict[str, Any] = jax.tree.map(lambda s: jnp.zeros(s.shape, dtype), shapes)
        return tree
