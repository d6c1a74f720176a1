"""The submodules of a linen module: where each is used, and the slots of their arrays."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import linen

import multiparam.adapter as mpa
from multiparam.errors import UnknownShapes

from .arrays import ArrayStorage, scope
from .build import Chain
from .layers import COMPOSITES, LAYERS, leaves_of

Key = tuple[str, ...]  # collection, then the path in its tree
Scope = tuple[str, ...]  # a module's path in flax
Use = tuple[tuple[str, ...], tuple[int, ...], linen.Module]  # path and positions below the parent

# Arguments of __call__ that decide whether the module trains, and their value in training
MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def modes_of(module: linen.Module, train: bool) -> dict[str, Any]:
    """The arguments of a module's call that decide whether it trains; none that a field has decided already."""
    parameters = inspect.signature(type(module).__call__).parameters
    undecided = (name for name in MODES if name in parameters and getattr(module, name, None) is None)
    return {name: MODES[name] is bool(train) for name in undecided}


def flat(tree: Mapping[str, Any], prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """The leaves of nested dicts with their paths, in the dicts' own order."""
    for name, child in tree.items():
        if isinstance(child, Mapping):
            yield from flat(child, (*prefix, name))
        else:
            yield (*prefix, name), child


class Structure:
    """What is known of a linen module once it has been walked.

    Submodules in attributes (``setup``, fields) are there on a bound module; those a compact method makes only exist
    while it runs, which it does here on shapes only. Raises UnknownShapes where that would need inputs.

    Attributes:
        slots: Every slot in definition order.
        modules: The module behind each slot's owner or options layer.
        paths: Where each submodule is used, by its path in flax.
    """

    def __init__(
        self, module: linen.Module, variables: Any, inputs: tuple[Any, ...], leaves: Mapping[Key, ArrayStorage]
    ) -> None:
        self.slots: list[mpa.Slot] = []
        self.modules: dict[Key, linen.Module] = {}
        self.paths: dict[Scope, list[tuple[str, ...]]] = {}
        self._owners: dict[Key, Key] = {}
        self._calls: set[tuple[Scope, Scope]] = set()  # which module called which
        self._leaves: dict[Scope, list[tuple[Key, ArrayStorage]]] = {}
        for key, leaf in leaves.items():
            self._leaves.setdefault(key[1:-1], []).append((key, leaf))
        called = self._run(module, variables, inputs, leaves) if inputs else {(): module.bind(variables)}
        self._called: dict[Scope, list[linen.Module]] = {}
        for path, child in called.items():
            if path:
                self._called.setdefault(path[:-1], []).append(child)
        self._visit(called[()], (), ())
        reached = {(*slot.owner, slot.leaf) for slot in self.slots}
        lost = [key for key in leaves if key not in reached]
        if lost:
            raise UnknownShapes(
                f"{'.'.join(lost[0])!r} belongs to a submodule that only shows itself when the module runs. "
                "Pass example inputs too: mp.wrap(module, X, variables=variables)."
            )

    def _run(
        self, module: linen.Module, variables: Any, inputs: tuple[Any, ...], leaves: Mapping[Key, ArrayStorage]
    ) -> dict[Scope, linen.Module]:
        """Run on shapes; the modules that were called, in the order of their first calls."""
        called: dict[Scope, linen.Module] = {}
        stack: list[Scope] = []

        def on_call(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.module.scope is None:
                return call(*args, **kwargs)
            path = context.module.path
            called.setdefault(path, context.module)
            self._calls.update((caller, path) for caller in stack[-1:])
            stack.append(path)
            try:
                return call(*args, **kwargs)
            finally:
                stack.pop()

        def forward(variables: Any) -> Any:
            with linen.intercept_methods(on_call):
                rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
                return module.apply(variables, *inputs, rngs=rngs, mutable=True, **modes_of(module, False))

        with scope({leaf.native.dtype for leaf in leaves.values()}):
            jax.eval_shape(forward, variables)
        return called

    def _visit(self, module: Any, path: tuple[str, ...], positions: tuple[int, ...]) -> None:
        hasattr(module, "_multiparam_")  # flax 0.12 runs setup() when an attribute is missing
        scope_path: Scope = module.scope.path
        self.paths.setdefault(scope_path, []).append(path)
        start = len(self.slots)
        self.slots += self._own(module, path, positions)
        attributes = list(_children(module))
        held = {child.path for _, _, child in attributes}
        for segments, places, child in attributes:
            self._visit(child, (*path, *segments), (*positions, *places))
        position = len(attributes)
        for child in self._called.get(scope_path, ()):
            # One that was made here but only handed on, say to a Sequential, was visited there.
            handed_on = child.path in self.paths and (scope_path, child.path) not in self._calls
            if child.path not in held and not handed_on:
                self._visit(child, (*path, str(child.path[-1])), (*positions, position))
                position += 1
        composite, options_layer = COMPOSITES.of(type(module)), ("params", *scope_path)
        self.modules[options_layer] = module
        if composite is not None:
            mpa.fold(composite, self.slots, start, len(path), options_layer)

    def _own(self, module: Any, path: tuple[str, ...], positions: tuple[int, ...]) -> list[mpa.Slot]:
        """The slots of a module's own arrays, in canonical order."""
        kind, leaves, own = LAYERS.of(type(module)), leaves_of(module), []
        for key, leaf in self._leaves.get(module.scope.path, ()):
            name, layout = LAYERS.canonical(type(module), key[-1], tuple(leaf.native.shape), leaves)
            owner = self._owners.setdefault(key[:-1], key[:-1])  # owners are compared by identity
            self.modules[owner] = module
            own.append(mpa.Slot((*path, name), positions, kind, leaf, layout, owner, key[-1], key[0] != "params"))
        return sorted(own, key=lambda slot: mpa.rank(kind, slot.path[-1]))


def _children(module: linen.Module) -> Iterator[Use]:
    """The submodules in a bound module's attributes, with their names and positions; shared ones each time."""
    if isinstance(module, (Chain, linen.Sequential)):
        names = module.names if isinstance(module, Chain) else map(str, range(len(module.layers)))
        for position, (name, child) in enumerate(zip(names, module.layers, strict=True)):
            if isinstance(child, linen.Module):
                yield ((), (), child) if name is None else ((name,), (position,), child)
        return
    position = 0
    for name, value in vars(module).items():
        if name not in ("parent", "name", "scope") and not name.startswith("_"):
            nested = list(_modules(value))
            for segments, places, child in nested:
                yield (name, *segments), (position, *places), child
            position += bool(nested)


def _modules(value: Any) -> Iterator[Use]:
    """The bound modules in a value of an attribute: itself, or those in lists and mappings."""
    if isinstance(value, linen.Module) and value.scope is not None:
        yield (), (), value
    items: Any = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, (list, tuple)):
        items = enumerate(value)
    for position, (name, child) in enumerate(items):
        for segments, places, module in _modules(child):
            yield (str(name), *segments), (position, *places), module
