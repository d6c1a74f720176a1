"""What each scope of a linen module's variables is: the names of its arrays, their kinds and layouts.

A name is the path in the variables, as in Flax' checkpoints. The classes, which say kinds and layouts, are read off
modules that are not bound: fields hold submodules, and ``setup`` makes the others. Binding them all, as flax does,
takes a hundred times as long; it is done for one module where reading is not enough. What a compact method makes is
seen while it runs, on shapes, where inputs are there; else its arrays may tell.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flax import linen
from flax.core.scope import in_filter

import multiparam.adapter as mpa

from .arrays import LeafStorage
from .build import Chain, Residual
from .layers import COMPOSITES, LAYERS, PARTS, leaves_of
from .linen_lifted import Axes, lifted, stacks, to_front
from .linen_modules import Key, Run, Scope, attributes, field_names, made_by, stand_in

Path = tuple[str, ...]
LISTED = re.compile(r"layers_(\d+)")
NUMBERED = re.compile(r"([A-Za-z]\w*)_\d+")


class Node:
    """One scope of the variables: its own arrays, and the scopes below it by name."""

    __slots__ = ("arrays", "below")

    def __init__(self) -> None:
        self.arrays: list[tuple[Key, LeafStorage]] = []
        self.below: dict[str, Node] = {}

    @classmethod
    def of(cls, leaves: Mapping[Key, LeafStorage]) -> Node:
        """The root of a model's variables, of all collections."""
        root = cls()
        for key, leaf in leaves.items():
            node = root
            for name in key[1:-1]:
                child = node.below.get(name)
                if child is None:
                    child = node.below[name] = cls()
                node = child
            node.arrays.append((key, leaf))
        return root

    def names(self) -> list[str]:
        """The scopes below in the order they were made in, as far as it is known: JAX sorts a dict's keys as texts."""
        names = list(self.below)
        if len(names) < 3 or names != sorted(names):
            return names
        return sorted(names, key=lambda name: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", name)])

    def variables(self, depth: int) -> dict[str, Any]:
        """Its part of the variables, as the module of this scope takes them."""
        tree: dict[str, Any] = {}
        stack = [self]
        while stack:
            node = stack.pop()
            stack += node.below.values()
            for key, leaf in node.arrays:
                inner = tree.setdefault(key[0], {})
                for name in key[depth + 1 : -1]:
                    inner = inner.setdefault(name, {})
                inner[key[-1]] = leaf.held
        return tree


class Place(NamedTuple):
    """A scope on the way through the variables.

    Attributes:
        scope: Its path.
        path: The names of it.
        positions: Its positions as far as they are known without binding.
        module: What is there, bound or not; None where that is not known.
        base: The scope that a bound module's own path starts from.
        axes: Where transformations of modules above stack the arrays.
        part: The class that what is here has as a part of the layer above.
    """

    scope: Scope
    path: Path
    positions: tuple[int, ...]
    module: Any = None
    base: Scope = ()
    axes: Axes = ()
    part: type | None = None

    def below(self, name: str, segment: str | None, position: int | None, module: Any, base: Scope = ()) -> Place:
        """The place of a scope below; ``segment`` is None where it adds no level to the names."""
        path = self.path if segment is None else (*self.path, segment)
        known = segment is not None and position is not None and len(self.positions) == len(self.path)
        positions = (*self.positions, position) if known else self.positions
        return Place((*self.scope, name), path, positions, module, base, self.axes)  # type: ignore[arg-type]


class Layers:
    """The slots of a linen module, and what is known of the layers they are in.

    Attributes:
        slots: Every slot in definition order.
        modules: Scope -> the module there, or what stands for it where only its options matter.
        paths: Scope -> its names: several only for one that ``mp.build`` uses at several positions.
        unknown: The scopes whose class neither the modules nor a run tells, though there are arrays.
    """

    def __init__(self, module: linen.Module, leaves: Mapping[Key, LeafStorage], run: Run | None = None) -> None:
        self.slots: list[mpa.Slot] = []
        self.modules: dict[Scope, Any] = {}
        self.paths: dict[Scope, list[Path]] = {}
        self.unknown: list[Scope] = []
        self._owners: dict[Key, Key] = {}
        # Of layers of one class, of arrays of the same names and shapes: large models have thousands of them.
        self._known_leaves: dict[Any, tuple[str, list[tuple[int, str, mpa.Layout | None, int]]]] = {}
        self._run = run or Run({}, {}, set(), {})
        self._elsewhere: dict[Scope, tuple[Any, Scope]] = {}  # modules that were handed on to another one
        self._taken: set[Scope] = set()  # of cells: an RNN is one layer with its cell, wherever that was made
        for scope, each in self._run.modules.items():
            self._take(scope, each, ())
        self._root = Node.of(leaves)
        known = self._run.modules.get((), module)
        self._run.classes.setdefault((), type(module))
        self._visit(self._root, Place((), (), (), known))
        for scope in self.modules:
            self.modules[scope] = stand_in(self.modules[scope])
        del self._run, self._elsewhere, self._root, self._known_leaves  # they hold arrays, or tracers

    def _visit(self, node: Node, place: Place) -> None:
        module, start = place.module, len(self.slots)
        cls = self._run.classes.get(place.scope) or (type(module) if module is not None else inferred(place, node))
        if cls is None:  # arrays in dicts, or of a submodule that only shows itself in a run
            cls = linen.Module
            if node.arrays:
                self.unknown.append(place.scope)
        transformed = lifted(cls)
        if transformed.axes:
            place = place._replace(axes=(*place.axes, *transformed.axes))
        self.paths.setdefault(place.scope, []).append(place.path)
        if module is not None:
            self.modules[place.scope] = module
        if node.arrays:
            self._own(node, place, cls)
        if node.below or isinstance(module, (Chain, Residual)) or holds_cells(module):
            for child, below in self._children(node, place):
                self._visit(child, below)
        composite = COMPOSITES.of(cls)
        if composite is not None:
            mpa.fold(composite, self.slots, start, len(place.path), ("params", *place.scope))
        if transformed.scanned and not stacks(place.axes, "params"):
            self.slots[start:] = map(_in_time, self.slots[start:])

    def _own(self, node: Node, place: Place, cls: type) -> None:
        """The slots of a scope's own arrays, in canonical order."""
        leaves = None if place.module is None else leaves_of(place.module)
        alike = cls, leaves is None, place.axes, *((key[0], key[-1], leaf.shape) for key, leaf in node.arrays)
        known = self._known_leaves.get(alike)
        if known is None:
            kind = LAYERS.of(cls)
            named = [_form(cls, key, leaf.shape, leaves, place.axes) for key, leaf in node.arrays]
            order = sorted(range(len(named)), key=lambda i: mpa.rank(kind, named[i][0]))
            known = self._known_leaves[alike] = kind, [(i, *named[i]) for i in order]
        kind, forms = known
        for i, name, layout, stacked in forms:
            key, leaf = node.arrays[i]
            owner = self._owners.setdefault(key[:-1], key[:-1])  # owners are compared by identity
            path, buffer = (*place.path, name), key[0] != "params"
            piece = mpa.Piece(options_layer=owner, stacked=stacked) if stacked else None
            slot = mpa.Slot(path, place.positions, kind, leaf, layout, owner, key[-1], buffer, None, piece)
            self.slots.append(slot)

    def _children(self, node: Node, place: Place) -> Iterator[tuple[Node, Place]]:
        """The scopes below in definition order: in attributes, then as they are called, then whatever is there."""
        if isinstance(place.module, (Chain, Residual)):
            yield from self._uses(place)
            return
        seen: set[str] = set()
        for below in self._held(node, place):
            if below.scope[-1] not in seen and (below.scope not in self._taken or below.scope[:-1] != place.scope):
                seen.add(below.scope[-1])
                yield self._node(below.scope), below
        numbered = self._numbered(node, place)
        part = None if place.module is None else PARTS.of(type(place.module))
        for name in (*self._run.called.get(place.scope, ()), *node.names()):
            scope = (*place.scope, name)
            module, base = self._known(scope)
            if (name in node.below or holds_cells(module)) and name not in seen and scope not in self._taken:
                seen.add(name)
                below = place.below(name, name[7:] if numbered else name, None, module, base)
                yield self._node(scope), below if part is None else below._replace(part=part)

    def _numbered(self, node: Node, place: Place) -> bool:
        """Whether the scopes below are a Sequential's layers, though it is not known as a module."""
        cls = inferred(place, node) if place.module is None else type(place.module)
        return cls is not None and issubclass(cls, linen.Sequential) and all(map(LISTED.fullmatch, node.below))

    def _known(self, scope: Scope) -> tuple[Any, Scope]:
        module = self._run.modules.get(scope)
        return (module, ()) if module is not None else self._elsewhere.get(scope, (None, ()))

    def _held(self, node: Node, place: Place) -> list[Place]:
        """The scopes of modules in attributes. The module is bound where that explains more of what is there."""
        module = place.module
        if module is None:
            return []
        if type(module) is linen.Sequential and module.scope is None:
            return self._listed(node, place)
        held = list(self._attributes(node, place))
        if module.scope is None and made_by(module) and {below.scope[-1] for below in held} != node.below.keys():
            bound = module.bind(node.variables(len(place.scope)))
            try:
                again = list(self._attributes(node, place._replace(module=bound, base=place.scope)))
            except Exception:  # a user's setup that wants more than variables, as a random stream: a run will tell
                return held
            held = again if len(again) >= len(held) else held
        for below in held:
            self._take(below.scope, below.module, below.base)
        return held

    def _take(self, scope: Scope, module: Any, base: Scope) -> None:
        """Remember the cells of a recurrent layer that were made elsewhere."""
        if holds_cells(module):
            inside = (held.module for held in attributes(module) if held.module.scope is not None)
            cells = ((*base, *cell.path) for cell in inside)
            self._taken.update(cell for cell in cells if cell[:-1] != scope)

    def _listed(self, node: Node, place: Place) -> list[Place]:
        """The layers of a Sequential that is not bound."""
        layers = []
        for i, child in enumerate(place.module.layers):
            if isinstance(child, linen.Module):
                name = f"layers_{i}"
                name = name if name in node.below or not child.name else child.name
                if name in node.below:
                    layers.append(place.below(name, str(i), i, child))
        return layers

    def _attributes(self, node: Node, place: Place) -> Iterator[Place]:
        """Those of a module as it is."""
        module, base = place.module, place.base
        listed = isinstance(module, linen.Sequential)
        for attribute, keys, _, child in attributes(module):
            position = int(keys[0]) if listed and attribute == "layers" and len(keys) == 1 else None
            if child.scope is not None:
                scope = (*base, *child.path)
                if scope in self._taken and holds_cells(module):
                    yield place.below(scope[-1], attribute, None, child, base)._replace(scope=scope)
                    continue
                if scope[:-1] != place.scope or not (scope[-1] in node.below or holds_cells(child)):
                    self._hand_on(child, base)
                    continue
                name = scope[-1]
            else:  # flax names by the attribute what comes from outside, and keeps the names that setup gives
                name = "_".join((attribute, *keys))
                if child.name and (name not in node.below or attribute not in field_names(type(module))):
                    name = child.name
            if name in node.below or (holds_cells(child) and child.scope is not None):
                yield place.below(name, name if position is None else str(position), position, child, base)

    def _hand_on(self, module: linen.Module, base: Scope) -> None:
        """Remember a bound module that is held where its scope is not, and what that holds."""
        scope = (*base, *module.path)
        if scope not in self._elsewhere:
            self._elsewhere[scope] = module, base
            for held in attributes(module):
                if held.module.scope is not None:
                    self._hand_on(held.module, base)

    def _uses(self, place: Place) -> Iterator[tuple[Node, Place]]:
        """The parts of what mp.build made, each use of a shared one: its names are those of the architecture."""
        module, base = place.module, place.base
        if module.scope is None:
            module, base = module.bind(self._node(place.scope).variables(len(place.scope))), place.scope
        layers: Sequence[Any] = module.layers if isinstance(module, Chain) else (module.body,)
        names: Sequence[str | None] = module.names if isinstance(module, Chain) else ("body",)
        for position, (name, child) in enumerate(zip(names, layers, strict=True)):
            if isinstance(child, linen.Module):
                scope = (*base, *child.path)
                below = place.below(scope[-1], name, position, child, base)
                yield self._node(scope), below._replace(scope=scope)

    def _node(self, scope: Scope) -> Node:
        node = self._root
        for name in scope:
            node = node.below.get(name) or Node()
        return node


def holds_cells(module: Any) -> bool:
    """Whether a module is a recurrent layer around a cell."""
    composite = None if module is None else COMPOSITES.of(type(module))
    return composite is not None and bool(composite.within)


def _form(
    cls: type, key: Key, shape: tuple[int, ...], leaves: mpa.LeafNames | None, axes: Axes
) -> tuple[str, mpa.Layout | None, int]:
    """Canonical leaf and layout of an array, and how many axes along which layers are stacked are in front there."""
    before = to_front(axes, key[0], len(shape)) if axes else None
    shape = shape if before is None else before.shape(shape)
    stacked = min(sum(in_filter(collections, key[0]) for collections, _ in axes), len(shape))
    name, layout = LAYERS.canonical(cls, key[-1], shape[stacked:], leaves)
    if layout is not None and stacked:
        layout = layout.lifted(shape[:stacked])
    return name, mpa.join(before, layout), stacked


def _in_time(slot: mpa.Slot) -> mpa.Slot:
    """A slot of a cell that is scanned with one set of weights: of a recurrent layer."""
    if mpa.KINDS.get(slot.kind) is not mpa.RECURRENT or not slot.kind.endswith("_cell"):
        return slot
    return slot.replace(path=(*slot.path[:-1], f"{slot.path[-1]}_l0"), kind=slot.kind.removesuffix("_cell"))


def inferred(place: Place, node: Node) -> type | None:
    """The class of a submodule that is not known, where its arrays can be of no other; None else."""
    numbered = NUMBERED.fullmatch(place.scope[-1])  # flax numbers by class what a compact method does not name
    cls = getattr(linen, numbered[1], None) if numbered else None
    if cls is linen.Sequential and not node.arrays and all(map(LISTED.fullmatch, node.below)):
        return linen.Sequential
    own = {key[-1]: leaf.shape for key, leaf in node.arrays}
    if node.below or len(own) != len(node.arrays):
        return None
    if place.part is not None and own.keys() <= {"kernel", "bias"}:
        return place.part
    kernel, bias = own.get("kernel", ()), own.get("bias")
    # A square kernel may be the other way round: there are such layers.
    if own.keys() == {"kernel", "bias"} and len(kernel) == 2 and bias == kernel[-1:] != kernel[:1]:
        return linen.Dense
    if own.keys() == {"embedding"} and len(own["embedding"]) == 2:
        return linen.Embed
    if own.keys() == {"scale", "bias", "mean", "var"} and len(set(own.values())) == 1 and len(own["mean"]) == 1:
        return linen.BatchNorm
    if isinstance(cls, type) and issubclass(cls, linen.Module) and own and own.keys() <= LAYERS.leaves(cls).keys():
        plain = own.keys() <= {"scale", "bias", "mean", "var"} or (cls is linen.Dense and len(kernel) == 2)
        return cls if plain or (cls is linen.Conv and len(kernel) > 2 and bias in (None, kernel[-1:])) else None
    return None


def warn_of(unknown: Sequence[Scope]) -> None:
    """Say which layers keep their own names since nobody knows what they are."""
    shown = ", ".join(repr(mpa.paths.text(scope)) for scope in unknown[:4]) + ", ..." * (len(unknown) > 4)
    warnings.warn(
        f"The class of {shown} only shows when the module runs: leaf names and layouts stay as flax has them. "
        "Pass example inputs, too: mp.wrap(module, X, variables=variables).",
        mpa.MultiparamWarning,
        stacklevel=6,  # through Structure, host_for, and both wraps, to the line of the user
    )
