"""Arrays that are read by blocks, when a block is asked for; what numpy moves of them is such an array again.

A transfer's moves are functions of arrays: transposed, reshaped, cut, packed, summed. Given these arrays in place of
numpy's, the same functions say which blocks of their sources a block of the target needs, so that a process that holds
a shard of the target reads no more. What is not known here is computed of whole arrays, which is right and reads more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .blocks import block_of, box_shape, whole_box
from .layouts import Layout
from .slots import Box

FUNCTIONS: dict[Any, Callable[..., Any]] = {}  # numpy's functions that move numbers, for LazyArrays


class LazyArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of which blocks are read.

    Args:
        shape: Its shape.
        dtype: Its dtype.
        read: Gives a block: start and stop on each axis.

    >>> whole = np.arange(24).reshape(4, 6)
    >>> asked = []
    >>> lazy = LazyArray((4, 6), whole.dtype, lambda box: asked.append(box) or whole[box])
    >>> np.concatenate([lazy.T[:3], lazy.T[3:]]).block((slice(4, 6), slice(0, 1))).tolist(), asked
    ([[4], [5]], [(slice(0, 1, None), slice(4, 6, None))])
    """

    def __init__(self, shape: Sequence[int], dtype: Any, read: Callable[[Box], np.ndarray]) -> None:
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.block = read

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def T(self) -> LazyArray:  # numpy's name
        """With its axes the other way round."""
        return self.transpose()

    def transpose(self, *axes: Any) -> LazyArray:
        """With its axes in another order, as numpy's."""
        order = axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
        order = tuple(axis % self.ndim for axis in order) or tuple(reversed(range(self.ndim)))
        return self._shown(("transpose", order))

    def reshape(self, *shape: Any) -> LazyArray:
        """With its numbers in another shape, as numpy's."""
        after = list(shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)
        if -1 in after:
            after[after.index(-1)] = self.size // max(-math.prod(after), 1)
        return self._shown(("reshape", self.shape, tuple(after)))

    def _shown(self, step: tuple[Any, ...]) -> LazyArray:
        layout = Layout(step)
        return LazyArray(
            layout.shape(self.shape), self.dtype, lambda box: block_of(layout, self.shape, box, self.block)
        )

    def astype(self, dtype: Any, copy: bool = True) -> LazyArray:
        """In another dtype; ``copy`` as for numpy's, whose blocks are copies."""
        return LazyArray(self.shape, dtype, lambda box: self.block(box).astype(dtype, copy=copy))

    def __getitem__(self, key: Any) -> Any:
        cuts = key if isinstance(key, tuple) else (key,)
        if len(cuts) > self.ndim or not all(_is_cut(cut, n) for cut, n in zip(cuts, self.shape, strict=False)):
            return np.asarray(self)[key]
        cuts = (*cuts, *(slice(None) for _ in self.shape[len(cuts) :]))
        outer = [
            slice(*cut.indices(n)[:2]) if isinstance(cut, slice) else slice(cut % n, cut % n + 1)
            for cut, n in zip(cuts, self.shape, strict=True)
        ]
        kept = [axis for axis, cut in enumerate(cuts) if isinstance(cut, slice)]

        def read(box: Box) -> np.ndarray:
            inner = dict(zip(kept, box, strict=True))
            parts = [
                slice(part.start + inner[axis].start, part.start + inner[axis].stop) if axis in inner else part
                for axis, part in enumerate(outer)
            ]
            return self.block(tuple(parts)).reshape(box_shape(box))

        shape = [max(outer[axis].stop - outer[axis].start, 0) for axis in kept]
        return LazyArray(shape, self.dtype, read)

    def __float__(self) -> float:
        return float(np.asarray(self))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python and numpy look for to see what this can do
            raise AttributeError(name)
        return getattr(np.asarray(self), name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.block(whole_box(self.shape)), dtype)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        lazily = FUNCTIONS.get(function)
        if lazily is not None and (made := lazily(*arguments, **options)) is not None:
            return made
        return function(*_as_numpy(arguments), **_as_numpy(options))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        shapes = {_shape(each) for each in inputs if _shape(each) != ()}
        one_by_one = method == "__call__" and ufunc.signature is None and shapes == {self.shape}
        if not one_by_one or kwargs or ufunc.nout != 1:
            return getattr(ufunc, method)(*_as_numpy(inputs), **_as_numpy(kwargs))
        empty = (np.empty((0,), each.dtype) if _shape(each) else each for each in inputs)
        dtype = ufunc(*empty).dtype
        return LazyArray(self.shape, dtype, lambda box: ufunc(*(block(each, box) for each in inputs)))


def block(array: Any, box: Box) -> Any:
    """A block of an array, lazy or numpy's; a number is the same everywhere."""
    if isinstance(array, LazyArray):
        return array.block(box)
    return array[box] if _shape(array) else array


def _shape(array: Any) -> tuple[int, ...]:
    """numpy's shape would read it: functions of numpy's are asked of the array."""
    return getattr(array, "shape", ())


def _is_cut(cut: Any, length: int) -> bool:
    """Whether an index takes what lies together along an axis."""
    if isinstance(cut, slice):
        return cut.step in (None, 1)
    return isinstance(cut, (int, np.integer)) and not isinstance(cut, bool) and bool(-length <= cut < length)


def _as_numpy(value: Any) -> Any:
    if isinstance(value, LazyArray):
        return np.asarray(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map(_as_numpy, value))
    return {key: _as_numpy(each) for key, each in value.items()} if isinstance(value, dict) else value


def _concatenate(arrays: Sequence[Any], axis: int = 0, **options: Any) -> LazyArray | None:
    if options or not isinstance(axis, int):
        return None
    ndim = len(_shape(arrays[0]))
    axis %= ndim
    ends = np.cumsum([_shape(each)[axis] for each in arrays]).tolist()
    shape = list(_shape(arrays[0]))
    shape[axis] = ends[-1]
    dtype = np.result_type(*(each.dtype for each in arrays))

    def read(box: Box) -> np.ndarray:
        parts = []
        for array, stop in zip(arrays, ends, strict=True):
            start = stop - _shape(array)[axis]
            first, last = max(box[axis].start, start), min(box[axis].stop, stop)
            if first < last:
                parts.append(block(array, (*box[:axis], slice(first - start, last - start), *box[axis + 1 :])))
        if not parts:
            return np.empty(box_shape(box), dtype)
        return np.asarray(parts[0] if len(parts) == 1 else np.concatenate(parts, axis), dtype)

    return LazyArray(shape, dtype, read)


def _stack(arrays: Sequence[Any], axis: int = 0, **options: Any) -> LazyArray | None:
    if options:
        return None
    axis %= len(_shape(arrays[0])) + 1
    return _concatenate([_with_axis(each, axis) for each in arrays], axis)


def _with_axis(array: Any, axis: int) -> LazyArray:
    """An array with an axis of one position more."""
    shape = _shape(array)

    def read(box: Box) -> np.ndarray:
        return np.expand_dims(block(array, (*box[:axis], *box[axis + 1 :])), axis)

    return LazyArray((*shape[:axis], 1, *shape[axis:]), array.dtype, read)


FUNCTIONS[np.concatenate] = _concatenate
FUNCTIONS[np.stack] = _stack
FUNCTIONS[np.transpose] = lambda array, axes=None: array.transpose(*(() if axes is None else (tuple(axes),)))
