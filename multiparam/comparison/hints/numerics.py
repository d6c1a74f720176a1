"""What all causes need: parts of large arrays, equality up to rounding, and a few relations between two arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from ...transfers.divergence import channel_orders

LIMIT = 1 << 20  # numbers of an array that are looked at
ROWS = 64  # of those that a transpose, of a weight or of features, is recognised by
ROUNDING: Mapping[str, float] = {"float64": 1e-7, "float32": 1e-5}  # of the largest number; coarser ones say nothing


Explain = TypeVar("Explain", bound=Callable[..., Any])


def harmless(none: Callable[[], Any]) -> Callable[[Explain], Explain]:
    """An explanation that fails is none: the verdict stands without it. ``none`` makes that: ``str`` or ``list``."""

    def guarded(explain: Explain) -> Explain:
        @wraps(explain)
        def explained(*arrays: Any) -> Any:
            try:
                return explain(*arrays)
            except Exception:  # whatever arrays of somebody's model hold
                return none()

        return explained  # type: ignore[return-value]

    return guarded


def rounding_of(*arrays: Sequence[np.ndarray]) -> float:
    """How far apart equal numbers may be in the first array of each; 0 where nobody can say."""
    roundings = [ROUNDING.get(each[0].dtype.name, 0.0) if each else 0.0 for each in arrays]
    return max(roundings) if all(roundings) else 0.0


def corner(array: np.ndarray, whole: Sequence[int] = ()) -> np.ndarray:
    """A corner of an array in float64, of ``LIMIT`` numbers at most, which has all of some axes if that can be."""
    for axis in sorted(range(array.ndim), key=lambda axis: axis in whole):
        if array.size > LIMIT:
            rest = array.size // array.shape[axis]
            array = np.moveaxis(np.moveaxis(array, axis, 0)[: max(1, LIMIT // rest)], 0, axis)
    return array.astype(np.float64)


def unpadded(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The middle of this shape of an array that has only zeros around it, as where padding is a layer of its own."""
    if array.ndim != len(shape) or array.shape == shape or any(n < m for n, m in zip(array.shape, shape, strict=True)):
        return array
    around = [(n - m) // 2 for n, m in zip(array.shape, shape, strict=True)]
    middle = array[tuple(slice(start, start + m) for start, m in zip(around, shape, strict=True))]
    return middle if np.count_nonzero(middle) == np.count_nonzero(array) else array


def padded(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    """An array with zeros around it, where another of a larger shape has them; else as it is."""
    if array.ndim != like.ndim or unpadded(like, array.shape).shape != array.shape:
        return array
    around = [((n - m) // 2, n - m - (n - m) // 2) for n, m in zip(like.shape, array.shape, strict=True)]
    return np.pad(array, around)


def is_close(a: np.ndarray, b: np.ndarray, rounding: float) -> bool:
    """Whether all numbers are the same, up to a rounding of the largest."""
    return a.shape == b.shape and bool(
        np.max(np.abs(a - b), initial=0) <= rounding * max(np.max(np.abs(b), initial=0), 1e-30)
    )


def differ(reference: np.ndarray, candidate: np.ndarray, rounding: float) -> bool:
    """Whether there is something to explain, and numbers to explain it with."""
    a, b = corner(reference), corner(candidate)
    return a.size > 0 and bool(np.ptp(a) > 0) and not is_close(a, b, rounding)


def matching_orders(reference: np.ndarray, candidate: np.ndarray, rounding: float) -> list[int]:
    """Which of the candidate's orders of axes, as ``channel_orders`` counts them, make it the reference's array."""
    views = enumerate(channel_orders(candidate))
    return [i for i, view in views if is_close(corner(view), corner(reference), rounding)]


def factor_of(y: np.ndarray, x: np.ndarray, rounding: float) -> float | None:
    """The one number that makes ``x`` of ``y``, by least squares."""
    if y.shape != x.shape or not y.any():
        return None
    factor = float((x * y).sum() / (y * y).sum())
    return factor if factor and is_close(y * factor, x, rounding) else None


def transposed_rows(a: np.ndarray, b: np.ndarray, rounding: float) -> int:
    """The k for which rows of one array, seen as (k, n / k) and transposed, are those of the other; 0 for none."""
    if a.shape != b.shape or a.ndim < 2 or not a.size:
        return 0
    n = a.shape[-1]
    a, b = (corner(each, [each.ndim - 1]) for each in (a, b))
    a, b = (each.reshape(-1, each.shape[-1])[:ROWS] for each in (a, b))
    if a.shape[-1] != n or is_close(a, b, rounding) or not is_close(np.sort(a), np.sort(b), rounding):
        return 0
    small = [k for k in range(2, math.isqrt(n) + 1) if n % k == 0]
    for k in dict.fromkeys([*small, *(n // k for k in small)]):
        if is_close(a.reshape(-1, k, n // k).swapaxes(1, 2).reshape(a.shape), b, rounding):
            return k
    return 0
