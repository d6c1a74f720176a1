"""The canonical form of each layer kind: PyTorch's names and layouts.

A layout is written with one letter per axis, ``*`` standing for any number of spatial axes, as in
JAX's dimension numbers: a linear weight is ``"OI"`` here and ``"IO"`` in Flax and Keras. The adapters
write their native layouts in the same letters, and :func:`axes` finds the permutation between the two.

Source of names and layouts: the ``Variables`` sections of the torch.nn documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Union

from .errors import InvalidArgument

# kind -> leaf -> layout; the order is PyTorch's, parameters first, then buffers
KINDS: dict[str, Mapping[str, str]] = {
    "linear": {"weight": "OI", "bias": "O"},
    "conv": {"weight": "OI*", "bias": "O"},
    "embedding": {"weight": "VD"},
    "conv_transpose": {"weight": "IO*", "bias": "O"},
    "prelu": {"weight": "C"},
    "layernorm": {"weight": "*", "bias": "*"},
    "rmsnorm": {"weight": "*"},
    "groupnorm": {"weight": "C", "bias": "C"},
    "instancenorm": {
        "weight": "C",
        "bias": "C",
        "running_mean": "C",
        "running_var": "C",
        "num_batches_tracked": "",
    },
    "batchnorm": {
        "weight": "C",
        "bias": "C",
        "running_mean": "C",
        "running_var": "C",
        "num_batches_tracked": "",
    },
}

# Leaves only some frameworks keep: a count that no output depends on.
BOOKKEEPING = frozenset({"num_batches_tracked"})


class Layout:
    """How a native array shows in canonical form: transposes, reshapes and flips, exact in both directions.

    A step is ``("transpose", axes)``, ``("flip", axes)`` or ``("reshape", before, after)``.

    >>> depthwise = Layout(("transpose", (2, 3, 0, 1)), ("reshape", (4, 2, 3, 5), (8, 1, 3, 5)))
    >>> depthwise.shape((3, 5, 4, 2))
    (8, 1, 3, 5)
    >>> native = np.arange(120).reshape(3, 5, 4, 2)
    >>> bool((depthwise.undo(depthwise.apply(native, np), np) == native).all())
    True
    """

    __slots__ = ("steps",)

    def __init__(self, *steps: tuple[Any, ...]) -> None:
        self.steps = steps

    def shape(self, native: tuple[int, ...]) -> tuple[int, ...]:
        """The canonical shape of a native one."""
        for step in self.steps:
            if step[0] == "transpose":
                native = tuple(native[axis] for axis in step[1])
            elif step[0] == "reshape":
                native = step[2]
        return native

    def apply(self, array: Any, ops: Any) -> Any:
        """Canonical from native; ``ops`` is numpy or a backend."""
        for step in self.steps:
            array = getattr(ops, step[0])(array, step[-1])
        return array

    def undo(self, array: Any, ops: Any) -> Any:
        """Native from canonical."""
        for step in reversed(self.steps):
            back = inverse(step[1]) if step[0] == "transpose" else step[1]
            array = getattr(ops, step[0])(array, back)
        return array

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.steps == other.steps

    def __hash__(self) -> int:
        return hash(self.steps)

    def __repr__(self) -> str:
        return f"Layout({', '.join(map(repr, self.steps))})"


# What an adapter writes down, per kind: native leaf -> (canonical leaf, native layout). The layout is a text in the
# letters above or, where axes alone do not tell, a function of the native shape.
LeafNames = Mapping[str, tuple[str, Union[str, Callable[[tuple[int, ...]], Union[Layout, None]]]]]
Leaves = Mapping[str, LeafNames]


@cache
def axes(native: str, canonical: str, ndim: int) -> tuple[int, ...] | None:
    """The permutation with ``canonical_array = native_array.transpose(axes)``; None where none is needed.

    >>> axes("IO", "OI", 2)
    (1, 0)
    >>> axes("*IO", "OI*", 4)
    (3, 2, 0, 1)
    >>> axes("OI*", "OI*", 4) is None
    True
    >>> axes("IO", "OI", 3)
    (0, 2, 1)
    """
    spatial = ndim - (len(native) - ("*" in native))
    digits = "".join(chr(ord("a") + i) for i in range(spatial))
    if "*" in native:
        source, goal = native.replace("*", digits), canonical.replace("*", digits)
    else:  # more axes than letters: stacked layers, as linen's scan makes them, stacked in front
        source, goal = digits + native, digits + canonical
    order = tuple(source.index(letter) for letter in goal)
    return None if order == tuple(range(ndim)) else order


@cache
def rank(kind: str, leaf: str) -> int:
    """The place of a leaf in its kind's order; leaves a kind does not name come last."""
    leaves = list(KINDS.get(kind, ()))
    return leaves.index(leaf) if leaf in leaves else len(leaves)


@cache
def permutation(native: str, canonical: str, ndim: int) -> Layout | None:
    """The layout between two texts; None where nothing moves."""
    order = axes(native, canonical, ndim)
    return None if order is None else Layout(("transpose", order))


class Layers:
    """The layers an adapter knows: class -> kind, and how each kind's leaves are called and laid out natively.

    A class is given itself, or as ``"root.Name"`` where its package need not be imported; a subclass is of its
    nearest known base's kind. What users add with :func:`register_layer` comes first.
    """

    def __init__(self, kinds: Mapping[Any, str], leaves: Leaves) -> None:
        self._kinds = dict(kinds)
        self._leaves = leaves
        self._known: dict[type, tuple[str, LeafNames]] = {}
        _tables.append(self)

    def of(self, cls: type) -> str:
        """The kind of a class of layers; its own name where nobody knows it."""
        return self._look_up(cls)[0]

    def leaves(self, cls: type) -> LeafNames:
        """What is known of the leaves of a class; empty where they are canonical already."""
        return self._look_up(cls)[1]

    def _look_up(self, cls: type) -> tuple[str, LeafNames]:
        found = self._known.get(cls)
        if found is None:
            found = self._known[cls] = self._search(cls)
        return found

    def _search(self, cls: type) -> tuple[str, LeafNames]:
        for base in cls.__mro__:
            if base in _registered:
                return _registered[base]
            kind = self._kinds.get(base) or self._kinds.get(f"{base.__module__.partition('.')[0]}.{base.__name__}")
            if kind is not None:
                return kind, self._leaves.get(kind, {})
        return cls.__name__, {}

    def canonical(
        self, cls: type, leaf: str, shape: tuple[int, ...], leaves: LeafNames | None = None
    ) -> tuple[str, Layout | None]:
        """Canonical leaf name and layout of a native leaf; unknown ones keep their own name and layout.

        ``leaves`` stand in for the kind's where one layer's options change its layout.
        """
        kind, names = self._look_up(cls)
        known = (leaves or names).get(leaf)
        if known is None:
            return leaf, None
        name, layout = known
        if not isinstance(layout, str):
            return name, layout(shape)
        return name, permutation(layout, KINDS[kind][name], len(shape))


_tables: list[Layers] = []
_registered: dict[type, tuple[str, LeafNames]] = {}


def register_layer(
    cls: type, kind: str, leaves: LeafNames | None = None, form: Mapping[str, str] | None = None
) -> None:
    """Teach multiparam a class of layers, of any framework; its subclasses too.

    ``leaves`` says, per native leaf, the canonical name and the native layout; leaves left out keep theirs. A new
    ``kind`` needs its canonical ``form``, leaf -> layout, in PyTorch's order. Models wrapped before keep what they had.
    Raises InvalidArgument for a kind, leaf or layout that does not fit.

        >>> import torch
        >>> class MyDense(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.kernel = torch.nn.Parameter(torch.zeros(4, 8))
        >>> mp.register_layer(MyDense, "linear", {"kernel": ("weight", "IO")})
        >>> mp.wrap(MyDense())["weight"].shape
        (8, 4)
    """
    if form is None and kind not in KINDS:
        raise InvalidArgument(f"{kind!r} is a new kind of layer: give its canonical form, such as {{'weight': 'OI'}}.")
    forms = KINDS[kind] if form is None else form
    for leaf, (name, layout) in (leaves or {}).items():
        if name not in forms:
            raise InvalidArgument(f"{leaf!r}: a {kind!r} has no leaf {name!r}; it has {', '.join(forms)}.")
        if isinstance(layout, str) and sorted(layout) != sorted(forms[name]):
            raise InvalidArgument(f"{leaf!r}: the layout {layout!r} has not the axes of {name!r}, {forms[name]!r}.")
    KINDS[kind] = forms
    _registered[cls] = kind, leaves or {}
    for table in _tables:
        table._known.clear()
    rank.cache_clear()


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes ``order``.

    >>> inverse((3, 2, 0, 1))
    (2, 3, 1, 0)
    """
    back = [0] * len(order)
    for position, axis in enumerate(order):
        back[axis] = position
    return tuple(back)
