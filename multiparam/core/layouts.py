"""How native arrays show in canonical form: permutations, flips, reshapes and orders, exact in both directions.

A layout is written with one letter per axis, ``*`` standing for any number of spatial axes, as in
JAX's dimension numbers: a linear weight is ``"OI"`` here and ``"IO"`` in Flax and Keras. The adapters
write their native layouts in the same letters, and :func:`axes` finds the permutation between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np


class Layout:
    """How a native array shows in canonical form: steps that move numbers, exact in both directions.

    Args:
        *steps: One after another: ``("transpose", axes)``, ``("flip", axes)``, ``("reshape", before, after)``, or
            ``("reorder", order)`` along the first axis.

    >>> depthwise = Layout(("transpose", (2, 3, 0, 1)), ("reshape", (4, 2, 3, 5), (8, 1, 3, 5)))
    >>> depthwise.shape((3, 5, 4, 2))
    (8, 1, 3, 5)
    >>> native = np.arange(120).reshape(3, 5, 4, 2)
    >>> bool((depthwise.undo(depthwise.apply(native, np), np) == native).all())
    True
    """

    __slots__ = ("steps", "_inverse")

    def __init__(self, *steps: tuple[Any, ...]) -> None:
        self.steps = steps
        self._inverse: Layout | None = None

    def shape(self, native: tuple[int, ...]) -> tuple[int, ...]:
        """The canonical shape of a native one.

        Args:
            native: The native array's shape.

        Returns:
            That of the array it shows as.
        """
        for step in self.steps:
            if step[0] == "transpose":
                native = tuple(native[axis] for axis in step[1])
            elif step[0] == "reshape":
                native = step[2]
        return native

    def apply(self, array: Any, xp: Any) -> Any:
        """Canonical from native.

        Args:
            array: The native array.
            xp: The array's namespace: numpy, or what :meth:`Adapter.namespace` gives.

        Returns:
            The canonical array; a view where the namespace has such.
        """
        for step in self.steps:
            array = STEPS[step[0]](xp, array, step[-1])
        return array

    def undo(self, array: Any, xp: Any) -> Any:
        """Native from canonical.

        Args:
            array: The canonical array.
            xp: The array's namespace, as for :meth:`apply`.

        Returns:
            The native array.
        """
        return self.inverse.apply(array, xp)

    @property
    def inverse(self) -> Layout:
        """The way back.

        >>> Layout(("transpose", (2, 0, 1)), ("flip", (0,))).inverse
        Layout(('flip', (0,)), ('transpose', (1, 2, 0)))
        """
        if self._inverse is None:
            self._inverse = Layout(*(_back(step) for step in reversed(self.steps)))
        return self._inverse

    def lifted(self, stack: tuple[int, ...]) -> Layout:
        """The same for arrays that stand one behind another along axes in front.

        Args:
            stack: The sizes of these axes.

        Returns:
            The layout of the stack.

        Raises:
            ValueError: It reorders rows, which are not the first axis of a stack.

        >>> Layout(("transpose", (1, 0))).lifted((8,)).shape((8, 3, 4))
        (8, 4, 3)
        """
        n = len(stack)
        steps: list[tuple[Any, ...]] = []
        for step in self.steps:
            if step[0] == "reshape":
                steps.append(("reshape", (*stack, *step[1]), (*stack, *step[2])))
            elif step[0] == "transpose":
                steps.append(("transpose", (*range(n), *(n + axis for axis in step[1]))))
            elif step[0] == "flip":
                steps.append(("flip", tuple(n + axis for axis in step[1])))
            else:
                raise ValueError(f"{step[0]} is along the first axis, which is a stack's here")
        return Layout(*steps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.steps == other.steps

    def __hash__(self) -> int:
        return hash(self.steps)

    def __repr__(self) -> str:
        return f"Layout({', '.join(map(repr, self.steps))})"


# The array API standard (2023.12) names these functions; numpy before 2.0 and other namespaces have older names.
def permute_dims(xp: Any, array: Any, axes: tuple[int, ...]) -> Any:
    """``array`` with its axes in the order of ``axes``, differentiably where the namespace differentiates."""
    return (getattr(xp, "permute_dims", None) or getattr(xp, "permute", None) or xp.transpose)(array, axes)


def concat(xp: Any, arrays: Sequence[Any], axis: int) -> Any:
    """Arrays one after another along an axis."""
    return (getattr(xp, "concat", None) or xp.concatenate)(list(arrays), axis=axis)


def take(xp: Any, array: Any, order: tuple[int, ...]) -> Any:
    """``array[order]`` along the first axis, as runs of neighbours.

    >>> take(np, np.arange(6), (4, 5, 0, 1, 2)).tolist()
    [4, 5, 0, 1, 2]
    """
    if xp is np:
        return array[list(order)]
    # Slices are what every framework differentiates, a gather by a list is not; and an order is mostly a few blocks.
    starts = [i for i, n in enumerate(order) if not i or n != order[i - 1] + 1]
    runs = [array[order[a] : order[b - 1] + 1] for a, b in zip(starts, [*starts[1:], len(order)], strict=True)]
    return runs[0] if len(runs) == 1 else concat(xp, runs, 0)


STEPS: Mapping[str, Callable[[Any, Any, Any], Any]] = {
    "transpose": permute_dims,
    "flip": lambda xp, array, axes: xp.flip(array, axes),
    "reshape": lambda xp, array, shape: xp.reshape(array, shape),
    "reorder": take,
}
TRANSPOSED = Layout(("transpose", (1, 0)))


def _back(step: tuple[Any, ...]) -> tuple[Any, ...]:
    """The step that undoes a step; a flip is its own."""
    if step[0] == "reshape":
        return ("reshape", step[2], step[1])
    return step if step[0] == "flip" else (step[0], inverse(step[1]))


def join(*layouts: Layout | None) -> Layout | None:
    """One layout after another, with what undoes itself left out.

    Args:
        *layouts: Layouts; None stands for one that moves nothing.

    Returns:
        Their composition; None where nothing moves, so that a tie and its undoing compare as equal.

    >>> join(TRANSPOSED, TRANSPOSED) is None
    True
    >>> join(Layout(("transpose", (1, 2, 0))), None, Layout(("transpose", (1, 2, 0))))
    Layout(('transpose', (2, 0, 1)))
    """
    present = [layout for layout in layouts if layout is not None]
    if len(present) < 2:
        return present[0] if present else None
    # A table compares layouts to tell transposed ties from others, so those that do the same must have the same steps.
    steps: list[tuple[Any, ...]] = []
    for step in (step for layout in present for step in layout.steps):
        merged = _merge(steps[-1], step) if steps else step
        if merged is None:
            steps.append(step)
            continue
        if steps:
            steps.pop()
        if not _idle(merged):
            steps.append(merged)
    return Layout(*steps) if steps else None


def _merge(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Two steps of one sort as one."""
    if first[0] != second[0]:
        return None
    if first[0] == "reshape":
        return ("reshape", first[1], second[2])
    if first[0] == "flip":
        return ("flip", tuple(sorted(set(first[1]) ^ set(second[1]))))
    return (first[0], tuple(first[1][i] for i in second[1]))


def _idle(step: tuple[Any, ...]) -> bool:
    """Whether a step moves nothing."""
    if step[0] == "reshape":
        return bool(step[1] == step[2])
    return not step[1] if step[0] == "flip" else step[1] == tuple(range(len(step[1])))


@cache  # every leaf of every listing asks, and there are few answers
def axes(native: str, canonical: str, ndim: int) -> tuple[int, ...] | None:
    """The permutation with ``canonical_array = native_array.transpose(axes)``.

    Args:
        native: The native layout, one letter an axis, ``*`` for any number of spatial ones.
        canonical: The canonical layout in the same letters.
        ndim: How many axes the array has; more than letters: layers stacked in front.

    Returns:
        The axes; None where none moves.

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


@cache  # one object for one layout: its inverse is then computed once
def permutation(native: str, canonical: str, ndim: int) -> Layout | None:
    """The layout between two texts: :func:`axes` as a :class:`Layout`.

    Args:
        native: The native layout, such as ``"*IO"``.
        canonical: The canonical one, such as ``"OI*"``.
        ndim: How many axes the array has.

    Returns:
        The layout; None where nothing moves.
    """
    order = axes(native, canonical, ndim)
    return None if order is None else Layout(("transpose", order))


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes another.

    Args:
        order: The axes, or indices, in their new order.

    Returns:
        Those that bring them back.

    >>> inverse((3, 2, 0, 1))
    (2, 3, 1, 0)
    """
    back = [0] * len(order)
    for position, axis in enumerate(order):
        back[axis] = position
    return tuple(back)
