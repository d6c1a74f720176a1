"""The canonical form of each layer kind: PyTorch's names and layouts.

A layout is written with one letter per axis, ``*`` standing for any number of spatial axes, as in
JAX's dimension numbers: a linear weight is ``"OI"`` here and ``"IO"`` in Flax and Keras. The adapters
write their native layouts in the same letters, and :func:`axes` finds the permutation between the two.

Source of names and layouts: the ``Variables`` sections of the torch.nn documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

# kind -> leaf -> layout; the order is PyTorch's, parameters first, then buffers
KINDS: Mapping[str, Mapping[str, str]] = {
    "linear": {"weight": "OI", "bias": "O"},
    "conv": {"weight": "OI*", "bias": "O"},
    "embedding": {"weight": "VD"},
    "layernorm": {"weight": "*", "bias": "*"},
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

# native leaf -> (canonical leaf, native layout), per kind: what an adapter writes down
Leaves = Mapping[str, Mapping[str, tuple[str, str]]]


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


def canonical(kind: str, leaf: str, ndim: int, leaves: Leaves) -> tuple[str, tuple[int, ...] | None]:
    """Canonical leaf name and permutation of a native leaf; unknown ones keep their own name and layout."""
    known = leaves.get(kind, {}).get(leaf)
    if known is None:
        return leaf, None
    name, layout = known
    return name, axes(layout, KINDS[kind][name], ndim)


def inverse(order: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The permutation that undoes ``order``.

    >>> inverse((3, 2, 0, 1))
    (2, 3, 1, 0)
    """
    if order is None:
        return None
    back = [0] * len(order)
    for position, axis in enumerate(order):
        back[axis] = position
    return tuple(back)
