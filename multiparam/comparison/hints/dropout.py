"""Dropout that is still on: some numbers are zero, and the others larger by what makes up for it."""

from __future__ import annotations

import math

import numpy as np

from .numerics import is_close


def explain_dropout(reference: np.ndarray, candidate: np.ndarray, rounding: float) -> str:
    """Where one of two arrays is the other after dropout."""
    return dropout_text(dropped(reference, candidate, rounding), dropped(candidate, reference, rounding))


def explain_branch_dropout(y: np.ndarray, reference: np.ndarray, candidate: np.ndarray, rounding: float) -> str:
    """Dropout of an output ``y`` that is then added to something else, which makes the two arrays."""
    if not y.shape == reference.shape == candidate.shape:
        return ""
    here = dropped(y, y + (candidate - reference), rounding)
    return dropout_text(here, dropped(y, y + (reference - candidate), rounding))


def dropout_text(here: float | None, there: float | None) -> str:
    """On which sides it is on, from the p of each."""
    where = " or ".join(side for side, p in (("here", here), ("there", there)) if p is not None)
    return f"dropout (p = {there if here is None else here:.3g}) is still on {where}" if where else ""


def dropped(before: np.ndarray, after: np.ndarray, rounding: float) -> float | None:
    """The share of numbers that are zero afterwards, where all others have become larger by what makes up for it."""
    if before.shape != after.shape or not after.any():
        return None
    largest = np.unravel_index(np.abs(after).argmax(), after.shape)
    factor = float(after[largest] / before[largest])
    if not 1 + 100 * rounding < factor < math.inf:
        return None
    scaled = before * factor
    zero = np.abs(after) < np.abs(scaled) / 2
    if not is_close(np.where(zero, 0, scaled), after, rounding):
        return None
    counts = np.abs(before) > rounding * np.abs(before).max()  # those that would not show are not counted
    p, n, zeros = 1 - 1 / factor, int(counts.sum()), int((zero & counts).sum())
    # Within six standard deviations of the binomial distribution: else it is a mask, and a factor.
    likely = 0 < zeros < n and abs(zeros - n * p) <= 6 * math.sqrt(n * p * (1 - p))
    by_sign = any(np.array_equal(zero & counts, side & counts) for side in (before < 0, before > 0))  # or a relu
    return p if likely and not by_sign else None
