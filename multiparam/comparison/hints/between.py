"""What stands between two layers on each side, where it is a known function of the first one's output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core.activation_functions import FUNCTIONS, softmax
from ...transfers.divergence import channel_orders
from ..activations import LayerCall
from .dropout import explain_branch_dropout, explain_dropout
from .numerics import (
    corner,
    differ,
    factor_of,
    harmless,
    is_close,
    matching_orders,
    rounding_of,
    transposed_rows,
    unpadded,
)

ELSE = "something else (a residual connection, a mask?)"


@harmless(list)
def explain_between(
    reference_before: LayerCall, candidate_before: LayerCall, reference_after: LayerCall, candidate_after: LayerCall
) -> list[str]:
    """Why the inputs of a layer differ where the output of the layer before does not, if the numbers tell."""
    befores, afters = (reference_before, candidate_before), (reference_after, candidate_after)
    rounding = rounding_of(*(call.outputs for call in befores), *(call.inputs for call in afters))
    if not rounding:
        return []
    with np.errstate(all="ignore"):
        (y, z), (a, b) = (call.outputs[0] for call in befores), (call.inputs[0] for call in afters)
        same = matching_orders(y, z, rounding)
        views = [(i not in same, i, view) for i, view in enumerate(channel_orders(b)) if view.shape == a.shape]
        if views:
            b = min(views, key=lambda view: view[:2])[2]
        if not differ(a, b, rounding) or not (y.size and np.ptp(corner(y)) > 0):
            return []
        text = (
            explain_dropout(corner(a), corner(b), rounding)
            or explain_branch_dropout(corner(y), corner(a), corner(b), rounding)
            or _reordered(a, b, y.shape, rounding)
            or _steps(befores, afters, rounding)
        )
        return [text] if text else []


def _reordered(a: np.ndarray, b: np.ndarray, shape: Sequence[int], rounding: float) -> str:
    """The same features in another order: of another flattening, or of heads put together otherwise."""
    k = transposed_rows(a, b, rounding)
    if not k:
        return ""
    parts = a.shape[-1] // k
    # Only where one of the two numbers is that of the channels is it known to be a flattening, and of which order.
    if a.ndim == 2 and len(shape) > 2 and (k == shape[1]) != (parts == shape[-1]):
        there, here = ("first", "last") if k == shape[1] else ("last", "first")
        return f"it is flattened with channels {there} there, {here} here"
    return f"its inputs are the same numbers in another order: as {k} x {parts} there, transposed here"


def _steps(befores: Sequence[LayerCall], afters: Sequence[LayerCall], rounding: float) -> str:
    """The step from the one layer to the other on each side, where they are not the same."""
    y, z = (call.outputs[0] for call in befores)
    if not is_close(corner(y), corner(z), rounding):  # one of the layers may have the activation in it
        for function in FUNCTIONS.values():
            if is_close(function(corner(y)), corner(z), rounding):
                z = y
            elif is_close(function(corner(z)), corner(y), rounding):
                y = z
    a, b = (call.inputs[0] for call in afters)
    there = _step(y, a, befores[0].inputs[:1], rounding)
    here = _step(z, b, befores[1].inputs[:1], rounding)
    if there == here == ELSE:
        return _sums(corner(y), corner(a), corner(b), rounding)
    return f"after the layer there is {there} there, {here} here" if there and here and there != here else ""


def _sums(y: np.ndarray, a: np.ndarray, b: np.ndarray, rounding: float) -> str:
    """Sums of a layer's output and something else, one of which has a factor on one side."""
    if a.shape != b.shape or y.shape != a.shape[a.ndim - y.ndim :]:  # what is added may be the same for a whole batch
        return ""
    y = np.broadcast_to(y, a.shape)
    of_the_rest, of_the_layer = factor_of(a - y, b - y, rounding), factor_of(y, b - a, rounding)
    if of_the_rest is not None:
        return f"what is added to the layer's output is {of_the_rest:.6g} times as much here"
    return "" if of_the_layer is None else f"the layer's output counts {1 + of_the_layer:.6g} times as much here"


def _step(y: np.ndarray, x: np.ndarray, entered: Sequence[np.ndarray], rounding: float) -> str:
    """What makes a layer's input of the output of one before that took ``entered``."""
    y, x = corner(y), corner(unpadded(x, y.shape))
    if not y.any():
        return ""
    views = [y] if x.shape == y.shape or x.size != y.size else [view.reshape(x.shape) for view in channel_orders(y)]
    for name, function in FUNCTIONS.items():
        if any(is_close(function(view), x, rounding) for view in views):
            return name
    for axis in range(y.ndim - 1):
        if is_close(softmax(y, axis), x, rounding):
            return f"softmax over axis {axis}"
    residuals = (view for each in entered for view in channel_orders(each) if view.shape == x.shape == y.shape)
    if any(is_close(y + corner(residual), x, rounding) for residual in residuals):
        return "a residual connection"
    factor, slope = factor_of(y, x, rounding), _slope(y, x, rounding)
    if factor is not None:
        return f"a factor of {factor:.6g}"
    return f"leaky relu ({slope:.6g})" if slope is not None else _gate(y, x, rounding) or ELSE


def _slope(y: np.ndarray, x: np.ndarray, rounding: float) -> float | None:
    """That of a leaky relu."""
    if y.shape != x.shape or not (y < 0).any():
        return None
    lowest = np.unravel_index(y.argmin(), y.shape)
    slope = float(x[lowest] / y[lowest])
    return slope if 0 < slope < 1 and is_close(np.where(y > 0, y, slope * y), x, rounding) else None


def _gate(y: np.ndarray, x: np.ndarray, rounding: float) -> str:
    """One half of the features gates the other."""
    if not y.ndim or y.shape[-1] % 2 or x.shape != (*y.shape[:-1], y.shape[-1] // 2):
        return ""
    first, second = np.split(y, 2, -1)
    for name, function in FUNCTIONS.items():
        if is_close(function(first) * second, x, rounding):
            return f"{name} of its first half times its second"
        if is_close(function(second) * first, x, rounding):
            return f"{name} of its second half times its first"
    return ""
