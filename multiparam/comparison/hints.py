"""Known causes of a disagreement, recognised by their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from ..plans import Move
from ..transferring import orders
from .calls import Call


def _gelu(x: np.ndarray) -> np.ndarray:
    erf: np.ndarray = np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))
    return 0.5 * x * (1 + erf)


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    inner: np.ndarray = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + inner)


def _softmax(x: np.ndarray) -> np.ndarray:
    power: np.ndarray = np.exp(x - x.max(-1, keepdims=True))
    total: np.ndarray = power.sum(-1, keepdims=True)
    return np.divide(power, total)


FUNCTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "no activation": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "exact gelu": _gelu,
    "tanh's gelu": _gelu_tanh,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky relu (0.01)": lambda x: np.where(x > 0, x, 0.01 * x),
    "leaky relu (0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
    "leaky relu (0.3)": lambda x: np.where(x > 0, x, 0.3 * x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "softmax": lambda x: _softmax(x),
}


def at(call: Call, twin: Call) -> list[str]:
    """Why a layer of equal inputs gives other outputs."""
    return []


def between(before: Call, twin_before: Call, after: Call, twin_after: Call) -> list[str]:
    """What stands between two layers on each side, where it is a known function of the first one's output."""
    there, here = _step(before, after), _step(twin_before, twin_after)
    return [f"after the layer there is {there} there, {here} here"] if there and here and there != here else []


def _step(before: Call, after: Call) -> str:
    outputs, inputs, entered = before.outputs, after.inputs, before.inputs
    if not outputs or not inputs:
        return ""
    y, x = outputs[0].astype(np.float64), inputs[0].astype(np.float64)
    with np.errstate(all="ignore"):
        for name, function in FUNCTIONS.items():
            if _close(function(y), x):
                return name
        for x0 in orders(entered[0].astype(np.float64)) if entered else ():
            if x0.shape == y.shape and _close(y + x0, x):
                return "a residual connection"
    factor = _factor(y, x)
    return f"a factor of {factor:.6g}" if factor is not None else "something else (a residual connection, a mask?)"


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(
        np.max(np.abs(a - b), initial=0) <= 1e-5 * max(np.max(np.abs(b), initial=0), 1e-30)
    )


def _factor(y: np.ndarray, x: np.ndarray) -> float | None:
    """The one number that makes ``x`` of ``y``."""
    if y.shape != x.shape or not y.any():
        return None
    factor = float((x * y).sum() / (y * y).sum())
    return factor if factor and _close(y * factor, x) else None


def of_values(mine: np.ndarray, theirs: np.ndarray, move: Move) -> str:
    """What two different arrays have in common."""
    a, b = mine.astype(np.float64), theirs.astype(np.float64)
    if a.shape != b.shape or not a.size:
        return ""
    if a.ndim == 2 and a.shape[0] == a.shape[1] and np.array_equal(a.T, b):
        return f"{move.target} is the transpose of {move.sources[0]}"
    if np.array_equal(np.sort(a, None), np.sort(b, None)):
        order = _blocks(a, b)
        what = f"in another order: its parts {order}" if order else "in another order"
        return f"{move.target} has the numbers of {move.sources[0]} {what}"
    return ""


def _blocks(a: np.ndarray, b: np.ndarray) -> list[int] | None:
    """How thirds or quarters of the rows are permuted: gates, or queries, keys and values."""
    for n in (3, 4):
        if a.shape[0] % n == 0:
            parts = np.split(a, n)
            order = [
                next((i for i, part in enumerate(parts) if np.array_equal(part, each)), -1) for each in np.split(b, n)
            ]
            if -1 not in order:
                return order
    return None
