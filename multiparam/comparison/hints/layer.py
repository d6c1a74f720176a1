"""A layer that takes the same on both sides, and gives something else."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ...transfers.divergence import channel_orders
from ..activations import LayerCall
from .dropout import explain_dropout
from .numerics import ROWS, corner, differ, factor_of, harmless, is_close, matching_orders, rounding_of

EPSILONS = (0.0, 1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12)  # those of norms


class LayerPair(NamedTuple):
    """What a layer takes and gives in the reference, ``x`` and ``y``, and what it gives in the candidate, ``t``, with
    axes as they are in the reference.

    ``x`` is empty where it has another shape than ``y``. ``rounding`` is relative to the largest number.
    """

    x: np.ndarray
    y: np.ndarray
    t: np.ndarray
    rounding: float

    def along(self, axis: int) -> list[np.ndarray]:
        """A part of each as a matrix, whose columns are along an axis and, if they are not too long, whole."""
        whole = [each for each in range(self.y.ndim) if each != axis]
        arrays = (np.moveaxis(corner(array, whole), axis, -1) for array in (self.x, self.y, self.t))
        return [array.reshape(-1, array.shape[-1]) for array in arrays]

    def rows(self) -> list[np.ndarray]:
        """A part of each as a matrix of whole rows; none where they are too long."""
        arrays = [corner(array, [self.y.ndim - 1]) for array in (self.x, self.y, self.t)]
        length = self.y.shape[-1]
        return [array.reshape(-1, length) if array.shape[-1] == length else np.empty((0, 1)) for array in arrays]


@harmless(list)
def explain_layer(reference: LayerCall, candidate: LayerCall) -> list[str]:
    """Why a layer of equal inputs gives other outputs: the first cause that fits, if any does."""
    with np.errstate(all="ignore"):
        pair = _aligned(reference, candidate)
        if pair is None or not differ(pair.y, pair.t, pair.rounding):
            return []
        return list(itertools.islice(filter(None, (cause(pair) for cause in CAUSES)), 1))


def _aligned(reference: LayerCall, candidate: LayerCall) -> LayerPair | None:
    """Both calls with the axes of the reference, where that can be."""
    rounding = rounding_of(reference.outputs, candidate.outputs)
    if not rounding or not reference.outputs[0].size:
        return None
    y, views = reference.outputs[0], channel_orders(candidate.outputs[0])
    fitting = [i for i, view in enumerate(views) if view.shape == y.shape]
    if not fitting:
        return None
    if not rounding_of(reference.inputs, candidate.inputs) or reference.inputs[0].shape != y.shape:
        return LayerPair(np.empty(0), y, views[fitting[0]], rounding)
    x = reference.inputs[0]
    # Where axes have one length, only the inputs, which are equal, say which of the candidate's is which.
    same = matching_orders(x, candidate.inputs[0], rounding)
    return LayerPair(x, y, views[next((i for i in fitting if i in same), fitting[0])], rounding)


# -- causes: each gives a sentence, or nothing


def _dropout(pair: LayerPair) -> str:
    return explain_dropout(corner(pair.y), corner(pair.t), pair.rounding)


def _statistics(pair: LayerPair) -> str:
    """A norm in training mode: the mean of each channel is then its bias. Only where biases are equal, as in a norm
    just made, do the numbers show it: with others, other running statistics would give them too."""
    axes = dict.fromkeys((1, pair.y.ndim - 1)) if pair.x.ndim > 1 else ()
    for axis in axes:
        x, y, t = pair.along(axis)
        if len(x) < 3 or x.shape[1] < 2 or not all(_on_lines(x, each, pair.rounding) for each in (y, t)):
            continue
        level, there, here = (bool(np.ptp(a.mean(0)) <= pair.rounding * np.abs(a).max()) for a in (x, y, t))
        if there != here and not level:
            return f"it normalises by the batch's statistics {'there' if there else 'here'}: it is in training mode"
    return ""


def _lines(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and constant of the line of least squares through the points of each column."""
    gaps, mean = x - x.mean(0), y.mean(0)
    slope = (gaps * (y - mean)).sum(0) / (gaps * gaps).sum(0)
    return slope, mean - slope * x.mean(0)


def _on_lines(x: np.ndarray, y: np.ndarray, rounding: float) -> bool:
    slope, constant = _lines(x, y)
    return is_close(x * slope + constant, y, rounding)


def _variance(pair: LayerPair) -> str:
    """A layer norm that divides by n - 1 on one side only: the scale and bias that it has there, with the other
    variance, make what it gives here, and no other eps does."""
    x, y, t = pair.rows() if pair.x.ndim > 1 else [np.empty((0, 1))] * 3
    n = x.shape[1]
    if len(x) < 3 or n < 2:
        return ""
    small = np.abs(y - t).max() / 100
    centred = x - x.mean(1, keepdims=True)
    square = (centred * centred).sum(1, keepdims=True)
    for eps, less in itertools.product(EPSILONS, (0, 1)):
        there, here = (centred / np.sqrt(square / (n - k) + eps) for k in (less, 1 - less))
        scale, bias = _lines(there, y)
        if np.abs(there * scale + bias - y).max() < small and np.abs(here * scale + bias - t).max() < small:
            ratio = ((t - bias) ** 2).sum(1, keepdims=True) / ((there * scale) ** 2).sum(1, keepdims=True)
            needed = (square / (n - less) + eps) / ratio - square / (n - less)  # for each row the eps that would do it
            if not np.ptp(needed) > 0.1 * np.abs(needed).max():
                return ""
            names = ("unbiased", "biased") if less else ("biased", "unbiased")
            return f"it divides by the {names[0]} variance there, by the {names[1]} one here"
    return ""


def _transposed(pair: LayerPair) -> str:
    """A linear layer with its weight transposed: ``(W x) . z`` is ``(W' z) . x`` for any two inputs, but for what a
    bias adds, which is one number for each minus one for the other."""
    x, y, t = (rows[:ROWS] for rows in pair.rows()) if pair.x.ndim > 1 else [np.empty((0, 1))] * 3
    if len(x) < 3:
        return ""
    there, here = y @ x.T, t @ x.T
    gap = there - here.T
    bias = gap[:1]
    plain = is_close(there, here, 1e-3)  # what is the same for these inputs anyway shows nothing
    known = not plain and is_close(there - (bias - bias.T), here.T, pair.rounding)
    return "it multiplies by the transposed weight" if known else ""


def _scaled(pair: LayerPair) -> str:
    factor = factor_of(corner(pair.y), corner(pair.t), pair.rounding)
    return "" if factor is None else f"its output here is {factor:.6g} times that there"


def _bias(pair: LayerPair) -> str:
    """Outputs that differ by one number for each channel."""
    y, t = corner(pair.y), corner(pair.t)
    for axis in dict.fromkeys((y.ndim - 1, 1)) if y.ndim > 1 else ():
        there, here = (np.moveaxis(each, axis, -1).reshape(-1, y.shape[axis]) for each in (y, t))
        vary = not is_close(there, there[:1] + np.zeros_like(there), 1e-3)
        if vary and is_close(there + (here - there)[:1], here, pair.rounding):
            return "its outputs differ by the same numbers everywhere, as of a bias"
    return ""


def _shifted(pair: LayerPair) -> str:
    """Outputs of one side that are those of the other, a step further along an axis or along all but the channels."""
    y, t = corner(pair.y), corner(pair.t)
    axes = range(1, y.ndim) if y.ndim > 2 else ()
    for along in dict.fromkeys([*((axis,) for axis in axes), tuple(axes[1:]), tuple(axes[:-1])]):
        if not along or min(y.shape[axis] for axis in along) < 4:
            continue
        # Only the middle half of each axis: at the edges, padding is of another kind on either side.
        inside = {axis: (y.shape[axis] // 4, y.shape[axis] - y.shape[axis] // 4) for axis in along}
        for step in (1, -1):
            there, moved, here = (_cut(array, inside, by) for array, by in ((y, 0), (y, step), (t, 0)))
            if is_close(moved, here, pair.rounding) and not is_close(moved, there, 1e-3):
                return f"its output here is that there, shifted by one along axes {list(along)}"
    return ""


def _cut(array: np.ndarray, inside: Mapping[int, tuple[int, int]], by: int) -> np.ndarray:
    slices = [slice(None)] * array.ndim
    for axis, (start, stop) in inside.items():
        slices[axis] = slice(start + by, stop + by)
    return array[tuple(slices)]


# From the most specific down: a scale or a bias would also explain a part of what those before them do.
CAUSES = (_dropout, _statistics, _variance, _transposed, _scaled, _bias, _shifted)
