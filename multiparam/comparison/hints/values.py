"""What two different values of a parameter have in common."""

from __future__ import annotations

import itertools

import numpy as np

from ...transfers.moves import Move
from .numerics import harmless, transposed_rows


@harmless(str)
def explain_values(reference: np.ndarray, candidate: np.ndarray, move: Move) -> str:
    """How the candidate's value could have been made of the reference's, if it has the same numbers."""
    if reference.shape != candidate.shape or not reference.size:
        return ""
    with np.errstate(all="ignore"):
        a, b = (array if array.dtype.kind == "c" else array.astype(np.float64) for array in (reference, candidate))
        if a.min() != b.min() or a.max() != b.max():  # which is soon known, and true of most that differ
            return ""
        text = _permuted(a, b, move.sources[0])
    return f"{move.target} {text}" if text else ""


def _permuted(a: np.ndarray, b: np.ndarray, source: str) -> str:
    # Beyond five axes there are too many permutations to try, and no layer has as many.
    for axes in itertools.permutations(range(a.ndim)) if a.ndim < 6 else ():
        if list(axes) != sorted(axes) and np.array_equal(a.transpose(axes), b):
            return f"is the transpose of {source}" if a.ndim == 2 else f"has axes {list(axes)} of {source}"
    if a.ndim > 2 and np.array_equal(np.flip(a, range(2, a.ndim)), b):
        return f"has the kernel of {source} flipped"
    if not np.array_equal(np.sort(a, None), np.sort(b, None)):
        return ""
    order = _blocks(a, b)
    k = 0 if order or a.dtype.kind == "c" else transposed_rows(a, b, 1e-12)
    what = f": its parts {order}" if order else f": its columns as {k} x {a.shape[-1] // k}, transposed" if k else ""
    return f"has the numbers of {source} in another order{what}"


def _blocks(a: np.ndarray, b: np.ndarray) -> list[int] | None:
    """How halves, thirds or quarters of the rows are permuted: gates, or queries, keys and values."""
    for n in (2, 3, 4):
        if a.ndim and a.shape[0] % n == 0:
            parts = np.split(a, n)
            order = [
                next((i for i, part in enumerate(parts) if np.array_equal(part, each)), -1) for each in np.split(b, n)
            ]
            if sorted(order) == list(range(n)):
                return order
    return None
