"""Blocks of arrays: which one of the array before holds what a block after a layout needs, and how it is cut from it.

A process that holds a block of a parameter asks a file for no more than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from .layouts import Layout
from .slots import Box

Read = Callable[[Box], np.ndarray]


def whole_box(shape: Sequence[int]) -> Box:
    """The block that is all of an array.

    >>> whole_box((2, 3))
    (slice(0, 2, None), slice(0, 3, None))
    """
    return tuple(slice(0, n) for n in shape)


def box_shape(box: Box) -> tuple[int, ...]:
    """The shape of a block."""
    return tuple(part.stop - part.start for part in box)


def within(box: Box, outer: Box) -> Box:
    """A block as it stands in a larger one that holds it.

    >>> within((slice(3, 5),), (slice(2, 8),))
    (slice(1, 3, None),)
    """
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, outer, strict=True))


def runs(shape: tuple[int, ...], box: Box) -> tuple[int, Iterator[int]]:
    """Where a block's numbers lie in an array that is stored row by row.

    Args:
        shape: The array's shape.
        box: The block.

    Returns:
        How many numbers lie together, and where each such run starts.

    >>> length, starts = runs((4, 6), (slice(1, 3), slice(2, 5)))
    >>> length, list(starts)
    (3, [8, 14])
    """
    inner = _innermost_cut(shape, box)
    length = math.prod(box_shape(box[inner:]))
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    rows = product(*(range(part.start, part.stop) for part in box[:inner])) if length else ()
    first = box[inner].start * strides[inner] if shape else 0
    return length, (first + sum(n * stride for n, stride in zip(row, strides, strict=False)) for row in rows)


def widened(shape: tuple[int, ...], box: Box, least: int) -> Box:
    """A block with axes made whole until at least so many numbers lie together.

    >>> widened((4, 6), (slice(1, 3), slice(2, 5)), 8)
    (slice(1, 3, None), slice(0, 6, None))
    """
    inner = _innermost_cut(shape, box)
    while inner and math.prod(box_shape(box[inner:])) < least:
        box = (*box[:inner], *whole_box(shape[inner:]))
        inner = _innermost_cut(shape, box)
    return box


def _innermost_cut(shape: tuple[int, ...], box: Box) -> int:
    """The last axis that is not whole, below which numbers lie together; the first where all are."""
    return next((axis for axis in reversed(range(len(shape))) if box[axis] != slice(0, shape[axis])), 0)


def block_of(layout: Layout | None, shape: tuple[int, ...], box: Box, read: Read) -> np.ndarray:
    """A block of what an array shows as in a layout.

    Args:
        layout: The layout; None: as it is.
        shape: The array's own shape.
        box: The block of ``layout.apply(array, np)``.
        read: Gives a block of the array: it is asked once, for the smallest that holds all that is needed.

    Returns:
        The block; it may alias what ``read`` gave.

    >>> array = np.arange(24).reshape(4, 6)
    >>> block_of(Layout(("transpose", (1, 0))), (4, 6), (slice(2, 4), slice(0, 1)), lambda box: array[box]).tolist()
    [[2], [3]]
    """
    shapes = [shape]
    for step in layout.steps if layout is not None else ():
        shapes.append(Layout(step).shape(shapes[-1]))
    return _block(layout.steps if layout is not None else (), shapes, box, read)


def cover(layout: Layout | None, shape: tuple[int, ...], box: Box) -> Box:
    """The block of an array that a block of what it shows as needs.

    Args:
        layout: The layout; None: as it is.
        shape: The array's own shape.
        box: The block of ``layout.apply(array, np)``.

    Returns:
        Exact for transposes and flips, a span of rows for reorders; reshapes widen it to whole rows.

    >>> cover(Layout(("transpose", (1, 0)), ("flip", (0,))), (4, 6), (slice(0, 2), slice(1, 3)))
    (slice(1, 3, None), slice(4, 6, None))
    """
    covers: list[Box] = []

    def note(each: Box) -> np.ndarray:
        covers.append(each)
        return np.broadcast_to(np.zeros((), bool), box_shape(each))

    block_of(layout, shape, box, note)
    return covers[0]


def keeps_blocks(layout: Layout | None) -> bool:
    """Whether a block of an array is one block of what the array shows as in a layout, and the other way round."""
    return layout is None or all(step[0] in ("transpose", "flip") for step in layout.steps)


def _block(steps: Sequence[tuple[Any, ...]], shapes: Sequence[tuple[int, ...]], box: Box, read: Read) -> np.ndarray:
    if not steps:
        return read(box)

    def before(each: Box) -> np.ndarray:
        return _block(steps[:-1], shapes[:-1], each, read)

    return CUTS[steps[-1][0]](steps[-1][-1], shapes[-2], box, before)


def _transposed(axes: tuple[int, ...], shape: tuple[int, ...], box: Box, before: Read) -> np.ndarray:
    return before(tuple(box[axes.index(axis)] for axis in range(len(shape)))).transpose(axes)


def _flipped(axes: tuple[int, ...], shape: tuple[int, ...], box: Box, before: Read) -> np.ndarray:
    mirrored = (
        slice(n - part.stop, n - part.start) if axis in axes else part
        for axis, (n, part) in enumerate(zip(shape, box, strict=True))
    )
    return np.flip(before(tuple(mirrored)), axes)


def _reordered(order: tuple[int, ...], shape: tuple[int, ...], box: Box, before: Read) -> np.ndarray:
    rows = order[box[0]]
    start, stop = (min(rows), max(rows) + 1) if rows else (0, 0)
    return before((slice(start, stop), *box[1:]))[[row - start for row in rows]]


def _reshaped(after: tuple[int, ...], shape: tuple[int, ...], box: Box, before: Read) -> np.ndarray:
    """Axes in front that stay are cut as they are; below them, whole rows of the array before that hold the block."""
    same = next((i for i, (n, m) in enumerate(zip(shape, after, strict=False)) if n != m), min(len(shape), len(after)))
    front, rest = box[:same], box[same:]
    lead = box_shape(front)
    if same == len(after) or same == len(shape):  # axes of one more or less
        array = before((*front, *whole_box(shape[same:]))).reshape((*lead, *after[same:]))
        return array[(*whole_box(lead), *rest)]
    width, row = math.prod(after[same + 1 :]), math.prod(shape[same + 1 :])
    first, last = rest[0].start * width, rest[0].stop * width  # as the numbers lie one after another
    rows = slice(first // row, -(-last // row)) if row else slice(0, shape[same])
    array = before((*front, rows, *whole_box(shape[same + 1 :]))).reshape((*lead, (rows.stop - rows.start) * row))
    start = first - rows.start * row
    array = array[..., start : start + last - first].reshape((*lead, rest[0].stop - rest[0].start, *after[same + 1 :]))
    return array[(*whole_box(array.shape[: same + 1]), *rest[1:])]


CUTS: dict[str, Callable[[Any, tuple[int, ...], Box, Read], np.ndarray]] = {
    "transpose": _transposed,
    "flip": _flipped,
    "reorder": _reordered,
    "reshape": _reshaped,
}
