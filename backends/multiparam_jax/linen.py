"""Flax linen: the module holds no parameters, so the host does: one :class:`Leaf` per array of the variables.

A tied slot has no leaf of its own. The pytree is expanded, every slot's array in its place, before ``apply``, so
gradients of all uses add up by themselves.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from multiparam import paths
from multiparam.core import layers as layer_kinds
from multiparam.core import layouts
from multiparam.core.composite import fold
from multiparam.core.protocol import Activation, Host, Run, Slot
from multiparam.errors import ShapeError, TieError, UnknownShapes

from .arrays import (
    COMPOSITES,
    FLOAT32,
    LAYERS,
    ArrayStorage,
    Namespace,
    OptaxOptimizer,
    compiled_step,
    from_numpy,
    in_float64,
    leaves_of,
    scope,
)
from .modules import Chain

Key = tuple[str, ...]  # collection, then the path in its tree
Scope = tuple[str, ...]  # a module's path

# Arguments of __call__ that say whether the module trains, and their value in training
MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


class Leaf(ArrayStorage):
    """One array of the variables."""

    def __init__(self, value: Any, trainable: bool = True) -> None:
        self.native = value
        self.trainable = trainable

    def get(self) -> Any:
        return self.native

    def set(self, array: Any) -> None:
        self.native = array


class LinenHost(Host):
    """A linen module and its variables.

    ``places`` are its slots as they were first, each owner and leaf a key; ``throughs`` the keys of transposed ties.
    """

    def __init__(
        self, module: linen.Module, leaves: dict[Key, Leaf], places: list[Slot], rng: Any,
        throughs: dict[Key, layouts.Layout] | None = None, modules: Mapping[Key, linen.Module] | None = None,
        shown: Mapping[Scope, list[tuple[str, ...]]] | None = None,
    ) -> None:  # fmt: skip
        self.native = module
        self._leaves = leaves
        self._places = places
        self._rng = rng
        self._throughs = {} if throughs is None else throughs
        self._modules = modules or {}
        self._shown = shown or {}  # where each submodule is seen, by its path in flax
        self._modes = modes_of(module)

    @property
    def variables(self) -> dict[str, Any]:
        """The plain pytree ``module.apply`` takes, ties expanded."""
        tree: dict[str, Any] = {}
        for key, leaf in self._leaves.items():
            node = tree
            for segment in key[:-1]:
                node = node.setdefault(segment, {})
            view = self._throughs.get(key)
            node[key[-1]] = leaf.native if view is None else view.apply(leaf.native, Namespace)
        return tree

    @variables.setter
    def variables(self, tree: Any) -> None:
        given = dict(flat(tree))
        if given.keys() != self._leaves.keys():
            odd = sorted(".".join(key) for key in given.keys() ^ self._leaves.keys())
            raise ShapeError(f"The variables given back have another structure: {', '.join(map(repr, odd[:4]))}.")
        values: dict[Leaf, tuple[Key, Any]] = {}
        for key, array in given.items():
            leaf, view = self._leaves[key], self._throughs.get(key)
            array = from_numpy(array) if isinstance(array, np.ndarray) else array
            array = array if view is None else view.undo(array, Namespace)
            if (array.shape, array.dtype) != (leaf.native.shape, leaf.native.dtype):
                is_, was = (f"{a.dtype}{list(a.shape)}" for a in (array, leaf.native))
                raise ShapeError(f"{'.'.join(key)!r} was given back as {is_}; it is {was}.")
            first, other = values.setdefault(leaf, (key, array))
            if other is not array and not np.array_equal(np.asarray(other), np.asarray(array), equal_nan=True):
                raise TieError(
                    f"{'.'.join(first)!r} and {'.'.join(key)!r} are tied, and were given back with different values: "
                    "native code trains the copies apart. Untie them, or give back equal ones."
                )
        for leaf, (_, array) in values.items():
            leaf.set(array)

    def slots(self) -> list[Slot]:
        keys = ((place, (*place.owner, place.leaf)) for place in self._places)
        return [place.replace(storage=self._leaves[key], view=self._throughs.get(key)) for place, key in keys]

    def _dtypes(self) -> set[Any]:
        return {leaf.native.dtype for leaf in self._leaves.values()}

    @property
    def data_order(self) -> str:  # type: ignore[override]
        return "first" if isinstance(self.native, Chain) else "last"

    def in_float64(self) -> AbstractContextManager[None] | None:
        wide = in_float64(list(dict.fromkeys(self._leaves.values())))
        return None if wide is None else self._doubled(wide)

    @contextmanager
    def _doubled(self, wide: AbstractContextManager[None]) -> Iterator[None]:
        """Layers that were told to compute in float32 do so in float64."""

        def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if getattr(context.module, "dtype", None) == FLOAT32:
                object.__setattr__(context.module, "dtype", jnp.float64)  # apply's own copy, which is frozen
            return call(*args, **kwargs)

        with wide, linen.intercept_methods(note):
            yield

    def activations(self, inputs: tuple[Any, ...], on_call: Callable[[Activation], None]) -> Any:
        holding = {place.path[:-1] for place in self._places}
        shown: dict[Scope, Iterator[str]] = {
            path: itertools.cycle(map(paths.text, places))
            for path, places in self._shown.items()
            if any(place in holding for place in places)
        }

        def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            concrete = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(output))  # not in a scan
            if concrete and context.method_name == "__call__" and context.module.path in shown:
                on_call(Activation(next(shown[context.module.path]), args, output))
            return output

        with linen.intercept_methods(note):
            return self.call(inputs, {}, False)

    def options(self, slot: Slot) -> Mapping[str, Any]:
        module = self._modules.get(slot.options_layer)
        return {} if module is None else LAYERS.options(module)

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        state = sorted({key[0] for key in self._leaves} - {"params"}) if train else []
        modes = {name: value is train for name, value in self._modes.items()}
        rngs = kwargs.pop("rngs", None)
        if rngs is None and train:
            self._rng, key = jax.random.split(self._rng)
            rngs = {"dropout": key}
        with scope([*self._dtypes(), *(x.dtype for x in inputs if hasattr(x, "dtype"))]):
            result = self.native.apply(self.variables, *inputs, rngs=rngs, mutable=state, **{**modes, **kwargs})
        output, updated = result
        for key, array in flat(updated):
            if key in self._leaves and array is not self._leaves[key].native:
                self._leaves[key].set(array)
        return output

    def bind(self, slots: Sequence[Slot], storage: Any, view: layouts.Layout | None = None) -> None:
        key = (*slots[0].owner, slots[0].leaf)
        self._leaves[key] = storage
        self._throughs.pop(key, None)
        if view is not None:
            self._throughs[key] = view

    def copy(self, storage: Any, view: layouts.Layout | None = None) -> Leaf:
        values = storage.native if view is None else view.apply(storage.native, Namespace)
        return Leaf(values, storage.trainable)

    def gradient(self, run: Run, storages: Sequence[Any], train: bool) -> Callable[..., tuple[Any, list[Any]]]:
        rest = list({id(leaf): leaf for leaf in self._leaves.values() if leaf not in storages}.values())

        def view(values: list[Any], others: list[Any], count: Any) -> tuple[LinenHost, Callable[[], list[Any]]]:
            traced = {
                id(leaf): Leaf(value)
                for leaf, value in zip([*storages, *rest], [*values, *others], strict=True)
            }  # fmt: skip
            leaves = {key: traced[id(leaf)] for key, leaf in self._leaves.items()}
            rng = jax.random.fold_in(self._rng, count)
            host = LinenHost(self.native, leaves, self._places, rng, self._throughs)
            return host, lambda: [traced[id(leaf)].native for leaf in rest]

        return compiled_step(view, run, storages, rest)

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> OptaxOptimizer:
        return OptaxOptimizer(name, options, storages)


def flat(tree: Any, prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """The leaves of nested dicts with their paths, in the dicts' own order."""
    for name, child in tree.items():
        if isinstance(child, Mapping):
            yield from flat(child, (*prefix, name))
        else:
            yield (*prefix, name), child


def host_for(module: linen.Module, inputs: tuple[Any, ...], variables: Any, seed: int) -> LinenHost:
    """A host for a user's module. Raises UnknownShapes without variables and inputs to make them from."""
    rng = jax.random.key(seed)
    if variables is None:
        if not inputs:
            raise UnknownShapes(
                f"The linen module {type(module).__name__} has no parameters of its own. Pass them, "
                "mp.wrap(module, X, variables=module.init(key, X)), or let them be made: mp.wrap(module, X, seed=0)."
            )
        modes = _modes(module)
        variables = module.init({"params": rng, "dropout": rng}, *inputs, **modes)
    leaves = {key: Leaf(from_numpy(a) if isinstance(a, np.ndarray) else a) for key, a in flat(variables)}
    places, tree = describe(module, variables, inputs, leaves)
    return LinenHost(module, leaves, places, rng, modules=tree.owned, shown=tree.at)


def modes_of(module: linen.Module) -> dict[str, bool]:
    """The arguments of a module's call that say whether it trains; none that a field has decided already."""
    parameters = inspect.signature(type(module).__call__).parameters
    return {name: value for name, value in MODES.items() if name in parameters and getattr(module, name, None) is None}


def _modes(module: linen.Module) -> dict[str, bool]:
    return {name: not value for name, value in modes_of(module).items()}


def describe(
    module: linen.Module, variables: Any, inputs: tuple[Any, ...], leaves: Mapping[Key, Leaf]
) -> tuple[list[Slot], Tree]:
    """Every slot of a module in definition order, and what was seen of its modules.

    Submodules in attributes (``setup``, fields) show themselves on a bound module; those a compact method makes show
    themselves when it runs, which it does here on shapes only.
    """
    called: dict[Scope, linen.Module] = {}
    calls: set[tuple[Scope, Scope]] = set()
    stack: list[Scope] = []
    if inputs:

        def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.module.scope is None:
                return call(*args, **kwargs)
            path = context.module.path
            called.setdefault(path, context.module)
            calls.update((caller, path) for caller in stack[-1:])
            stack.append(path)
            try:
                return call(*args, **kwargs)
            finally:
                stack.pop()

        def forward(variables: Any) -> Any:
            with linen.intercept_methods(watch):
                rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
                return module.apply(variables, *inputs, rngs=rngs, mutable=True, **_modes(module))

        with scope({leaf.native.dtype for leaf in leaves.values()}):
            jax.eval_shape(forward, variables)
        root = called[()]
    else:
        root = module.bind(variables)
    tree = Tree(leaves, called, calls)
    places: list[Slot] = []
    _visit(root, (), (), tree, places)
    seen = {(*place.owner, place.leaf) for place in places}
    lost = [key for key in leaves if key not in seen]
    if lost:
        raise UnknownShapes(
            f"{'.'.join(lost[0])!r} belongs to a submodule that only shows itself when the module runs. "
            "Pass example inputs too: mp.wrap(module, X, variables=variables)."
        )
    return places, tree


class Tree:
    """The leaves and the submodules that showed themselves, by the path of the module they belong to."""

    def __init__(
        self, leaves: Mapping[Key, Leaf], called: Mapping[Scope, linen.Module], calls: set[tuple[Scope, Scope]]
    ) -> None:
        self.all = leaves
        self.owners: dict[Key, Key] = {}
        self.owned: dict[Key, linen.Module] = {}
        self.at: dict[Scope, list[tuple[str, ...]]] = {}
        self.calls = calls
        self.shown: set[Scope] = set()
        self.leaves: dict[Scope, list[tuple[Key, tuple[int, ...]]]] = {}
        for key, leaf in leaves.items():
            self.leaves.setdefault(key[1:-1], []).append((key, tuple(leaf.native.shape)))
        self.made: dict[Scope, list[linen.Module]] = {}
        for path, module in called.items():
            if path:
                self.made.setdefault(path[:-1], []).append(module)


def _visit(
    module: linen.Module, path: tuple[str, ...], positions: tuple[int, ...], tree: Tree, places: list[Slot]
) -> None:
    hasattr(module, "_multiparam_")  # a missing attribute makes linen run setup()
    scope_path = module.scope.path  # type: ignore[union-attr]
    tree.shown.add(scope_path)
    tree.at.setdefault(scope_path, []).append(path)
    kind, leaves = LAYERS.of(type(module)), leaves_of(module)
    own = []
    for key, shape in tree.leaves.get(scope_path, ()):
        name, layout = LAYERS.canonical(type(module), key[-1], shape, leaves)
        owner = tree.owners.setdefault(key[:-1], key[:-1])
        tree.owned[owner] = module
        own.append(Slot((*path, name), positions, kind, tree.all[key], layout, owner, key[-1], key[0] != "params"))
    own.sort(key=lambda place: layer_kinds.rank(kind, place.path[-1]))
    start = len(places)
    places.extend(own)
    attributes = list(_children(module))
    there = {child.scope.path for _, _, child in attributes}  # type: ignore[union-attr]
    for segments, at, child in attributes:
        _visit(child, (*path, *segments), (*positions, *at), tree, places)
    position = len(attributes)
    for child in tree.made.get(scope_path, ()):
        # One that was made here but only handed on, say to a Sequential, has shown itself there.
        handed_on = child.path in tree.shown and (scope_path, child.path) not in tree.calls
        if child.path not in there and not handed_on:
            _visit(child, (*path, child.path[-1]), (*positions, position), tree, places)
            position += 1
    composite, options_layer = COMPOSITES.of(type(module)), ("params", *scope_path)
    tree.owned[options_layer] = module
    if composite is not None:
        fold(composite, places, start, len(path), options_layer)


def _children(module: linen.Module) -> Iterator[tuple[tuple[str, ...], tuple[int, ...], linen.Module]]:
    """The submodules in a bound module's attributes, with their names and positions; shared ones each time."""
    if isinstance(module, Chain):
        for position, (name, child) in enumerate(zip(module.names, module.layers, strict=True)):
            if isinstance(child, linen.Module):
                yield ((), ()) + (child,) if name is None else ((name,), (position,), child)
        return
    if isinstance(module, linen.Sequential):
        for position, child in enumerate(module.layers):
            if isinstance(child, linen.Module):
                yield (str(position),), (position,), child
        return
    attributes = [
        (name, value)
        for name, value in vars(module).items()
        if name not in ("parent", "name", "scope") and not name.startswith("_")
    ]
    position = 0
    for name, value in attributes:
        nested = list(_modules(value))
        for segments, at, child in nested:
            yield (name, *segments), (position, *at), child
        position += bool(nested)


def _modules(value: Any) -> Iterator[tuple[tuple[str, ...], tuple[int, ...], linen.Module]]:
    if isinstance(value, linen.Module):
        if value.scope is not None:
            yield (), (), value
        return
    items: Any = ()
    if isinstance(value, (list, tuple)):
        items = ((str(i), child) for i, child in enumerate(value))
    elif isinstance(value, Mapping):
        items = ((str(name), child) for name, child in value.items())
    for position, (name, child) in enumerate(items):
        for segments, at, module in _modules(child):
            yield (name, *segments), (position, *at), module


def zeros(module: linen.Module, x: np.ndarray, dtype: str) -> dict[str, Any]:
    """The variables of a module with every number zero, in one dtype (flax makes statistics float32 at first)."""
    with scope([dtype]):
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x))
        return jax.tree.map(lambda s: jax.numpy.zeros(s.shape, dtype), shapes)  # type: ignore[no-any-return]
