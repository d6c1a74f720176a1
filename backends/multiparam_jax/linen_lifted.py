"""What flax's transformations did to a class of modules: the axes its arrays are stacked along, whether it is scanned.

``linen.scan(Cell, ...)`` is a subclass of ``Cell`` whose methods hold what the transformation was told.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, NamedTuple

from flax import linen
from flax.core.scope import in_filter

import multiparam.adapter as mpa

Axes = tuple[tuple[Any, int], ...]  # collections as flax filters them -> axis; those of outer transformations first


class Lifted(NamedTuple):
    """What the transformations of a class do.

    Attributes:
        axes: Where they stack arrays.
        scanned: Whether one of them is a scan.
    """

    axes: Axes
    scanned: bool


@cache
def lifted(cls: Any) -> Lifted:
    """What the transformations of a class of modules do; nothing for a class that somebody wrote."""
    axes: list[tuple[Any, int]] = []
    scanned = False
    for base in cls.__mro__:
        if base is linen.Module:
            break
        for method in filter(inspect.isfunction, vars(base).values()):
            told = inspect.getclosurevars(method).nonlocals if method.__closure__ else {}
            name = getattr(told.get("transform"), "__name__", "")
            if name not in ("scan", "vmap"):
                continue
            scanned = scanned or name == "scan"
            stacked: Any = told["trafo_kwargs"].get("variable_axes") or next(iter(told["trafo_args"]), {})
            for collections, axis in stacked.items():
                axis = getattr(axis, "axis", axis)  # In(axis) and Out(axis) are of one direction only
                if isinstance(axis, int):
                    axes.append((collections, axis))
            break
    return Lifted(tuple(axes), scanned)


def to_front(axes: Axes, collection: str, ndim: int) -> mpa.Layout | None:
    """The layout that has the axes along which an array is stacked in front, the outermost first."""
    order = list(range(ndim))
    at = 0
    for collections, axis in axes:
        if in_filter(collections, collection) and at < ndim:
            order.insert(at, order.pop(at + axis % (ndim - at)))
            at += 1
    return None if order == sorted(order) else mpa.Layout(("transpose", tuple(order)))


def stacks(axes: Axes, collection: str) -> bool:
    """Whether arrays of a collection are stacked."""
    return any(in_filter(collections, collection) for collections, _ in axes)
