"""What a host knows of its linen module besides the arrays: slots, layers, and where else users see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import jax
from flax import linen

from multiparam.adapter import Inputs

from .arrays import LeafStorage, scope
from .build import Chain
from .linen_modules import NO_RUN, Key, Run, Scope, attributes, run_on_shapes
from .linen_walk import Layers, Path, warn_of


class Structure:
    """The layers of a module, for all hosts of it.

    Attributes:
        slots: Every slot in definition order.
        modules: Scope -> the module there, or what stands for it where only its options matter.
        paths: Scope -> its names.
        boxes: Key -> the box that the variables hold the array in, empty.
    """

    def __init__(
        self,
        module: linen.Module,
        leaves: Mapping[Key, LeafStorage],
        inputs: Inputs,
        run: Run | None,
        boxes: Mapping[Key, Any],
    ) -> None:
        self._module, self._inputs = module, inputs
        self.boxes = boxes
        layers = Layers(module, leaves, run)
        if layers.unknown and run is None and inputs:
            with scope({leaf.dtype for leaf in leaves.values()}):
                tree = tree_of({key: leaf.held for key, leaf in leaves.items()})
                layers = run_on_shapes(module, tree, inputs, lambda run: Layers(module, leaves, run))
        elif layers.unknown and run is None:
            warn_of(layers.unknown)
        self.slots, self.modules, self.paths = layers.slots, layers.modules, layers.paths
        # Enough to look at the module again. What is kept is no array, and no storage, whose shape a tie may change.
        self._shapes = {key: (leaf.held.shape, leaf.held.dtype) for key, leaf in leaves.items()}

    @cached_property
    def _seen(self) -> Uses | None:
        """What users see: attributes, and what a module calls."""
        struct: Any = jax.ShapeDtypeStruct
        shapes = {key: struct(*each) for key, each in self._shapes.items()}
        with scope({dtype for _, dtype in self._shapes.values()}):
            try:
                return Uses(self._module, tree_of(shapes), self._inputs)
            except Exception:  # of a user's code that cannot run on shapes alone; there are names all the same
                return None

    @property
    def _uses(self) -> list[tuple[Path, tuple[int, ...], Scope]]:
        """The places that users see layers at, with positions."""
        return [] if self._seen is None else self._seen.places

    @cached_property
    def counts(self) -> dict[Path, int]:
        """How many children layers and lists of them have, by name and by attribute path."""
        counts = {} if self._seen is None else dict(self._seen.counts)
        for path, _, scope_path in self._uses:
            for name in self.paths.get(scope_path, ()) if path in counts else ():
                counts.setdefault(name, counts[path])
        return counts

    @cached_property
    def aliases(self) -> dict[Path, Path]:
        """Attribute paths of layers -> their names."""
        names = ((path, self.paths[scope_path][0]) for path, _, scope_path in self._uses if scope_path in self.paths)
        return {path: name for path, name in names if path != name}

    @cached_property
    def positions(self) -> dict[tuple[int, ...], Path]:
        """Positions of layers -> their attribute paths, those of lists between them too."""
        return {
            positions[:depth]: path[:depth] for path, positions, _ in self._uses for depth in range(1, len(path) + 1)
        }


def tree_of(leaves: Mapping[Key, Any]) -> dict[str, Any]:
    """Nested dicts of leaves by key."""
    tree: dict[str, Any] = {}
    for key, leaf in leaves.items():
        node = tree
        for segment in key[:-1]:
            node = node.setdefault(segment, {})
        node[key[-1]] = leaf
    return tree


class Uses:
    """Every place of every submodule, a shared one's each. Made by binding all of them.

    Attributes:
        places: Path, positions and scope of each.
        counts: How many children each has, and each list between them.
    """

    def __init__(self, module: linen.Module, variables: Any, inputs: Inputs) -> None:
        self.places: list[tuple[Path, tuple[int, ...], Scope]] = []
        self.counts: dict[Path, int] = {}
        self._seen: set[Scope] = set()
        if inputs:
            run_on_shapes(module, variables, inputs, lambda run: self._visit(run.modules[()], (), (), run))
        else:
            jax.eval_shape(lambda variables: self._visit(module.bind(variables), (), (), NO_RUN), variables)

    def _visit(self, module: linen.Module, path: Path, positions: tuple[int, ...], run: Run) -> None:
        own, held = module.path, list(_children(module))
        self._seen.add(own)
        self.places.append((path, positions, own))
        for segments, places, child in held:
            self._visit(child, (*path, *segments), (*positions, *places), run)
        position, attached = len({segments[:1] for segments, _, _ in held}), {child.path for _, _, child in held}
        for name in run.called.get(own, ()):
            below = (*own, name)
            # One that was made here but only handed on, say to a Sequential, was visited there.
            if below not in attached and (below not in self._seen or (own, below) in run.calls):
                self._visit(run.modules[below], (*path, name), (*positions, position), run)
                position += 1
        if isinstance(module, (Chain, linen.Sequential)):
            if not isinstance(module, Chain) or None not in module.names:
                self.counts[path] = len(module.layers)
            return
        self.counts[path] = position
        for segments, places, _ in held:
            listed: Any = getattr(module, segments[0])
            for depth, place in enumerate(places[1:], 1):
                self.counts[(*path, *segments[:depth])] = len(listed)
                listed = list(listed.values() if isinstance(listed, Mapping) else listed)[place]


def _children(module: linen.Module) -> Iterator[tuple[Path, tuple[int, ...], linen.Module]]:
    """The bound modules in a module's attributes: path and positions below it."""
    if isinstance(module, (Chain, linen.Sequential)):
        names = module.names if isinstance(module, Chain) else map(str, range(len(module.layers)))
        for position, (name, child) in enumerate(zip(names, module.layers, strict=True)):
            if isinstance(child, linen.Module):
                yield ((), (), child) if name is None else ((name,), (position,), child)
        return
    order: dict[str, int] = {}
    for name, keys, places, child in attributes(module):
        if child.scope is not None:
            yield (name, *keys), (order.setdefault(name, len(order)), *places), child
