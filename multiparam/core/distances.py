"""How far two arrays are apart, in units of a dtype's rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

EPS: Mapping[str, float] = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
COMPLEX: Mapping[str, str] = {"complex64": "float32", "complex128": "float64"}  # the dtype of the parts
PART = 1 << 18  # numbers looked at together


def distance(value: np.ndarray, truth: np.ndarray, dtype: str, least: float = 0.0) -> float:
    """Normwise distance in eps of ``dtype``; infinite for another shape, and where a NaN or an infinity is on one
    side only. Of complex numbers both parts count.

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
    wide: Any = np.complex128 if "c" in (value.dtype.kind, truth.dtype.kind) else np.float64
    for start in range(0, flat.size, PART):
        a, b = (array[start : start + PART].astype(wide) for array in (flat, true))
        # Equal infinities are equal, and a NaN on both sides is one; what is left of either is a difference.
        special = ~np.isfinite(b) | ~np.isfinite(a)
        if special.any():
            if not np.array_equal(a[special], b[special], equal_nan=True):
                return float("inf")
            a, b = a[~special], b[~special]
        scale = max(scale, float(np.abs(b).max(initial=0)))
        a -= b
        gap = max(gap, float(np.abs(a).max(initial=0)))
    if gap == 0:
        return 0.0
    return float("inf") if scale == 0 else gap / scale / EPS[dtype]
