"""How far two arrays are apart, in units of a dtype's rounding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

EPS: Mapping[str, float] = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
PART = 1 << 18  # numbers looked at together


def distance(value: np.ndarray, truth: np.ndarray, dtype: str, least: float = 0.0) -> float:
    """Normwise distance in eps of ``dtype``; infinite for another shape or a NaN on one side only.

    A truth whose largest number is below ``least`` is measured as if that were it. Large arrays are looked at in parts,
    so that the distance of two needs little more memory than they have.

    >>> distance(np.array([1.0, 2.0 + 2**-51]), np.array([1.0, 2.0]), "float64")
    1.0
    """
    if value.shape != truth.shape:
        return float("inf")
    if np.array_equal(value, truth, equal_nan=True):
        return 0.0
    gap, scale = 0.0, least
    flat, true = value.reshape(-1), truth.reshape(-1)
    for start in range(0, flat.size, PART):
        a, b = (array[start : start + PART].astype(np.float64) for array in (flat, true))
        unknown = np.isnan(b)
        if unknown.any():
            counts = ~(unknown & np.isnan(a))
            a, b = a[counts], b[counts]
        scale = max(scale, float(b.max(initial=0)), -float(b.min(initial=0)))
        with np.errstate(invalid="ignore"):
            a -= b
        gap = float(np.maximum(gap, np.abs(a, out=a).max(initial=0)))  # unlike max, it keeps a NaN
    if gap == 0:
        return 0.0
    if not np.isfinite(gap) or not np.isfinite(scale) or scale == 0:
        return float("inf")
    return gap / scale / EPS[dtype]
