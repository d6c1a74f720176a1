"""Known causes of a disagreement, recognised by their numbers.

A hint is given where the numbers leave no other way, up to rounding. Nothing here raises, whatever arrays hold, and of
what layers take and give only a part is looked at where it is large. ``there`` is the reference, ``here`` its twin.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..transfers.apply import channel_orders
from ..transfers.plan import Move
from .activations import Call

LIMIT = 1 << 20  # numbers of an array that are looked at
ROWS = 64  # of those that a weight's transpose is recognised by
ROUNDING: Mapping[str, float] = {"float64": 1e-7, "float32": 1e-5}  # of the largest number; coarser ones say nothing
EPSILONS = (0.0, 1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12)  # those of norms
ELSE = "something else (a residual connection, a mask?)"


def _erf(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.vectorize(math.erf, otypes=[x.dtype])(x)
    return found


def _sigmoid(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = 1 / (1 + np.exp(-x))
    return found


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    inner: np.ndarray = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + inner)


def _softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    if not x.size or not x.ndim:
        return np.ones_like(x)
    power: np.ndarray = np.exp(x - x.max(axis, keepdims=True))
    total: np.ndarray = power.sum(axis, keepdims=True)
    return np.divide(power, total)


FUNCTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "no activation": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "exact gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "tanh's gelu": _gelu_tanh,
    "quick gelu": lambda x: x * _sigmoid(1.702 * x),
    "silu": lambda x: x * _sigmoid(x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky relu (0.01)": lambda x: np.where(x > 0, x, 0.01 * x),
    "leaky relu (0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
    "leaky relu (0.3)": lambda x: np.where(x > 0, x, 0.3 * x),
    "relu6": lambda x: np.minimum(np.maximum(x, 0), 6),
    "softplus": lambda x: np.logaddexp(x, 0),
    "softmax": _softmax,
    "log softmax": lambda x: np.log(_softmax(x)),
}


# -- a layer that does something else with equal inputs


class Seen(NamedTuple):
    """What a layer takes and gives there, ``x`` and ``y``, and what it gives here, ``t``, with axes as they are there.

    ``x`` is empty where it has another shape than ``y``.
    """

    x: np.ndarray
    y: np.ndarray
    t: np.ndarray
    rounding: float

    def along(self, axis: int) -> list[np.ndarray]:
        """A part of each as a matrix, whose columns are along an axis and, if they are not too long, whole."""
        whole = [each for each in range(self.y.ndim) if each != axis]
        arrays = (np.moveaxis(_part(array, whole), axis, -1) for array in (self.x, self.y, self.t))
        return [array.reshape(-1, array.shape[-1]) for array in arrays]

    def rows(self) -> list[np.ndarray]:
        """A part of each as a matrix of whole rows; none where they are too long."""
        arrays = [_part(array, [self.y.ndim - 1]) for array in (self.x, self.y, self.t)]
        length = self.y.shape[-1]
        return [array.reshape(-1, length) if array.shape[-1] == length else np.empty((0, 1)) for array in arrays]


def at(call: Call, twin: Call) -> list[str]:
    """Why a layer of equal inputs gives other outputs."""
    with np.errstate(all="ignore"):
        seen = _seen(call, twin)
        if seen is None or not _differ(seen.y, seen.t, seen.rounding):
            return []
        return list(itertools.islice(filter(None, (cause(seen) for cause in CAUSES)), 1))


def _seen(call: Call, twin: Call) -> Seen | None:
    rounding = _rounding(call.outputs, twin.outputs)
    if not rounding or not call.outputs[0].size:
        return None
    y, ways = call.outputs[0], channel_orders(twin.outputs[0])
    fitting = [i for i, way in enumerate(ways) if way.shape == y.shape]
    if not fitting:
        return None
    if not _rounding(call.inputs, twin.inputs) or call.inputs[0].shape != y.shape:
        return Seen(np.empty(0), y, ways[fitting[0]], rounding)
    x = call.inputs[0]
    same = _alike(x, twin.inputs[0], rounding)  # where axes have one length, only the inputs say which is which
    return Seen(x, y, ways[next((i for i in fitting if i in same), fitting[0])], rounding)


def _alike(mine: np.ndarray, theirs: np.ndarray, rounding: float) -> list[int]:
    """Which of another array's orders of axes make it this one."""
    return [i for i, way in enumerate(channel_orders(theirs)) if _close(_part(way), _part(mine), rounding)]


def _dropout(seen: Seen) -> str:
    return _masked(_part(seen.y), _part(seen.t), seen.rounding)


def _masked(y: np.ndarray, t: np.ndarray, rounding: float) -> str:
    return _dropout_text(_dropped(y, t, rounding), _dropped(t, y, rounding))


def _dropout_text(here: float | None, there: float | None) -> str:
    where = " or ".join(side for side, p in (("here", here), ("there", there)) if p is not None)
    return f"dropout (p = {there if here is None else here:.3g}) is still on {where}" if where else ""


def _dropped(before: np.ndarray, after: np.ndarray, rounding: float) -> float | None:
    """The share of numbers that are zero afterwards, where all others have become larger by what makes up for it."""
    if before.shape != after.shape or not after.any():
        return None
    largest = np.unravel_index(np.abs(after).argmax(), after.shape)
    factor = float(after[largest] / before[largest])
    if not 1 + 100 * rounding < factor < math.inf:
        return None
    scaled = before * factor
    zero = np.abs(after) < np.abs(scaled) / 2
    if not _close(np.where(zero, 0, scaled), after, rounding):
        return None
    counts = np.abs(before) > rounding * np.abs(before).max()  # those that would not show are not counted
    p, n, zeros = 1 - 1 / factor, int(counts.sum()), int((zero & counts).sum())
    likely = 0 < zeros < n and abs(zeros - n * p) <= 6 * math.sqrt(n * p * (1 - p))  # else it is a mask, and a factor
    by_sign = any(np.array_equal(zero & counts, side & counts) for side in (before < 0, before > 0))  # or a relu
    return p if likely and not by_sign else None


def _statistics(seen: Seen) -> str:
    """A norm in training mode: the mean of each channel is then its bias. Only where biases are equal, as in a norm
    just made, do the numbers show it: with others, other running statistics would give them too."""
    axes = dict.fromkeys((1, seen.y.ndim - 1)) if seen.x.ndim > 1 else ()
    for axis in axes:
        x, y, t = seen.along(axis)
        if len(x) < 3 or x.shape[1] < 2 or not all(_on_lines(x, each, seen.rounding) for each in (y, t)):
            continue
        level, there, here = (bool(np.ptp(a.mean(0)) <= seen.rounding * np.abs(a).max()) for a in (x, y, t))
        if there != here and not level:
            return f"it normalises by the batch's statistics {'there' if there else 'here'}: it is in training mode"
    return ""


def _lines(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and constant of the line through the points of each column."""
    gaps, mean = x - x.mean(0), y.mean(0)
    slope = (gaps * (y - mean)).sum(0) / (gaps * gaps).sum(0)
    return slope, mean - slope * x.mean(0)


def _on_lines(x: np.ndarray, y: np.ndarray, rounding: float) -> bool:
    slope, constant = _lines(x, y)
    return _close(x * slope + constant, y, rounding)


def _variance(seen: Seen) -> str:
    """A layer norm that divides by n - 1 on one side only: the scale and bias that it has there, with the other
    variance, make what it gives here, and no other eps does."""
    x, y, t = seen.rows() if seen.x.ndim > 1 else [np.empty((0, 1))] * 3
    n = x.shape[1]
    if len(x) < 3 or n < 2:
        return ""
    small = np.abs(y - t).max() / 100
    centred = x - x.mean(1, keepdims=True)
    square = (centred * centred).sum(1, keepdims=True)
    for eps, less in itertools.product(EPSILONS, (0, 1)):
        mine, theirs = (centred / np.sqrt(square / (n - k) + eps) for k in (less, 1 - less))
        scale, bias = _lines(mine, y)
        if np.abs(mine * scale + bias - y).max() < small and np.abs(theirs * scale + bias - t).max() < small:
            ratio = ((t - bias) ** 2).sum(1, keepdims=True) / ((mine * scale) ** 2).sum(1, keepdims=True)
            others = (square / (n - less) + eps) / ratio - square / (n - less)  # for each row the eps that would do it
            if not np.ptp(others) > 0.1 * np.abs(others).max():
                return ""
            there, here = ("unbiased", "biased") if less else ("biased", "unbiased")
            return f"it divides by the {there} variance there, by the {here} one here"
    return ""


def _transposed(seen: Seen) -> str:
    """A linear layer with its weight transposed: ``(W x) . z`` is ``(W' z) . x`` for any two inputs, but for what a
    bias adds, which is one number for each minus one for the other."""
    x, y, t = (rows[:ROWS] for rows in seen.rows()) if seen.x.ndim > 1 else [np.empty((0, 1))] * 3
    if len(x) < 3:
        return ""
    there, here = y @ x.T, t @ x.T
    gap = there - here.T
    bias = gap[:1]
    plain = _close(there, here, 1e-3)  # what is the same for these inputs anyway shows nothing
    known = not plain and _close(there - (bias - bias.T), here.T, seen.rounding)
    return "it multiplies by the transposed weight" if known else ""


def _scaled(seen: Seen) -> str:
    factor = _factor(_part(seen.y), _part(seen.t), seen.rounding)
    return "" if factor is None else f"its output here is {factor:.6g} times that there"


def _bias(seen: Seen) -> str:
    """Outputs that differ by one number for each channel."""
    y, t = _part(seen.y), _part(seen.t)
    for axis in dict.fromkeys((y.ndim - 1, 1)) if y.ndim > 1 else ():
        mine, theirs = (np.moveaxis(each, axis, -1).reshape(-1, y.shape[axis]) for each in (y, t))
        vary = not _close(mine, mine[:1] + np.zeros_like(mine), 1e-3)
        if vary and _close(mine + (theirs - mine)[:1], theirs, seen.rounding):
            return "its outputs differ by the same numbers everywhere, as of a bias"
    return ""


def _shifted(seen: Seen) -> str:
    """Outputs of one side that are those of the other, a step further along an axis or along all but the channels."""
    y, t = _part(seen.y), _part(seen.t)
    axes = range(1, y.ndim) if y.ndim > 2 else ()
    for along in dict.fromkeys([*((axis,) for axis in axes), tuple(axes[1:]), tuple(axes[:-1])]):
        if not along or min(y.shape[axis] for axis in along) < 4:
            continue
        inside = {axis: (y.shape[axis] // 4, y.shape[axis] - y.shape[axis] // 4) for axis in along}
        for step in (1, -1):
            mine, moved, theirs = (_cut(array, inside, by) for array, by in ((y, 0), (y, step), (t, 0)))
            if _close(moved, theirs, seen.rounding) and not _close(moved, mine, 1e-3):
                return f"its output here is that there, shifted by one along axes {list(along)}"
    return ""


def _cut(array: np.ndarray, inside: Mapping[int, tuple[int, int]], by: int) -> np.ndarray:
    slices = [slice(None)] * array.ndim
    for axis, (start, stop) in inside.items():
        slices[axis] = slice(start + by, stop + by)
    return array[tuple(slices)]


CAUSES = (_dropout, _statistics, _variance, _transposed, _scaled, _bias, _shifted)


# -- between two layers


def between(before: Call, twin_before: Call, after: Call, twin_after: Call) -> list[str]:
    """What stands between two layers on each side, where it is a known function of the first one's output."""
    rounding = _rounding(before.outputs, twin_before.outputs, after.inputs, twin_after.inputs)
    if not rounding:
        return []
    with np.errstate(all="ignore"):
        (y, *_), (z, *_), (a, *_), (b, *_) = before.outputs, twin_before.outputs, after.inputs, twin_after.inputs
        same = _alike(y, z, rounding)
        ways = [(i not in same, i, way) for i, way in enumerate(channel_orders(b)) if way.shape == a.shape]
        if ways:
            b = min(ways, key=lambda way: way[:2])[2]
        if not _differ(a, b, rounding) or not np.ptp(_part(y)) > 0:
            return []
        text = (
            _masked(_part(a), _part(b), rounding)
            or _masked_branch(_part(y), _part(a), _part(b), rounding)
            or _reordered(a, b, y.shape, rounding)
            or _steps((before, twin_before), (after, twin_after), rounding)
        )
        return [text] if text else []


def _masked_branch(y: np.ndarray, a: np.ndarray, b: np.ndarray, rounding: float) -> str:
    """Dropout of an output that is then added to something else."""
    if not y.shape == a.shape == b.shape:
        return ""
    return _dropout_text(_dropped(y, y + (b - a), rounding), _dropped(y, y + (a - b), rounding))


def _reordered(a: np.ndarray, b: np.ndarray, shape: Sequence[int], rounding: float) -> str:
    """The same features in another order: of another flattening, or of heads put together otherwise."""
    k = _parts(a, b, rounding)
    if not k:
        return ""
    parts = a.shape[-1] // k
    if a.ndim == 2 and len(shape) > 2 and (k == shape[1]) != (parts == shape[-1]):
        there, here = ("first", "last") if k == shape[1] else ("last", "first")
        return f"it is flattened with channels {there} there, {here} here"
    return f"its inputs are the same numbers in another order: as {k} x {parts} there, transposed here"


def _parts(a: np.ndarray, b: np.ndarray, rounding: float) -> int:
    """The k for which rows of one array, seen as (k, n / k) and transposed, are those of the other."""
    if a.shape != b.shape or a.ndim < 2 or not a.size:
        return 0
    n = a.shape[-1]
    a, b = (_part(each, [each.ndim - 1]) for each in (a, b))
    a, b = (each.reshape(-1, each.shape[-1])[:ROWS] for each in (a, b))
    if a.shape[-1] != n or _close(a, b, rounding) or not _close(np.sort(a), np.sort(b), rounding):
        return 0
    small = [k for k in range(2, math.isqrt(n) + 1) if n % k == 0]
    for k in dict.fromkeys([*small, *(n // k for k in small)]):
        if _close(a.reshape(-1, k, n // k).swapaxes(1, 2).reshape(a.shape), b, rounding):
            return k
    return 0


def _steps(before: Sequence[Call], after: Sequence[Call], rounding: float) -> str:
    y, z = (call.outputs[0] for call in before)
    if not _close(_part(y), _part(z), rounding):  # one of the layers may have the activation in it
        for function in FUNCTIONS.values():
            if _close(function(_part(y)), _part(z), rounding):
                z = y
            elif _close(function(_part(z)), _part(y), rounding):
                y = z
    a, b = (call.inputs[0] for call in after)
    there = _step(y, a, before[0].inputs[:1], rounding)
    here = _step(z, b, before[1].inputs[:1], rounding)
    if there == here == ELSE:
        return _sums(_part(y), _part(a), _part(b), rounding)
    return f"after the layer there is {there} there, {here} here" if there and here and there != here else ""


def _sums(y: np.ndarray, a: np.ndarray, b: np.ndarray, rounding: float) -> str:
    """Sums of a layer's output and something else, one of which has a factor on one side."""
    if a.shape != b.shape or y.shape != a.shape[a.ndim - y.ndim :]:  # what is added may be the same for a whole batch
        return ""
    y = np.broadcast_to(y, a.shape)
    other, own = _factor(a - y, b - y, rounding), _factor(y, b - a, rounding)
    if other is not None:
        return f"what is added to the layer's output is {other:.6g} times as much here"
    return "" if own is None else f"the layer's output counts {1 + own:.6g} times as much here"


def _step(y: np.ndarray, x: np.ndarray, entered: Sequence[np.ndarray], rounding: float) -> str:
    """What makes a layer's input of the output of one before that took ``entered``."""
    y, x = _part(y), _part(unpadded(x, y.shape))
    if not y.any():
        return ""
    ways = [y] if x.shape == y.shape or x.size != y.size else [way.reshape(x.shape) for way in channel_orders(y)]
    for name, function in FUNCTIONS.items():
        if any(_close(function(way), x, rounding) for way in ways):
            return name
    for axis in range(y.ndim - 1):
        if _close(_softmax(y, axis), x, rounding):
            return f"softmax over axis {axis}"
    if any(
        _close(y + _part(x0), x, rounding) for each in entered for x0 in channel_orders(each) if x0.shape == x.shape
    ):
        return "a residual connection"
    factor, slope = _factor(y, x, rounding), _slope(y, x, rounding)
    if factor is not None:
        return f"a factor of {factor:.6g}"
    return f"leaky relu ({slope:.6g})" if slope is not None else _gate(y, x, rounding) or ELSE


def _slope(y: np.ndarray, x: np.ndarray, rounding: float) -> float | None:
    """That of a leaky relu."""
    if y.shape != x.shape or not (y < 0).any():
        return None
    lowest = np.unravel_index(y.argmin(), y.shape)
    slope = float(x[lowest] / y[lowest])
    return slope if 0 < slope < 1 and _close(np.where(y > 0, y, slope * y), x, rounding) else None


def _gate(y: np.ndarray, x: np.ndarray, rounding: float) -> str:
    """One half of the features gates the other."""
    if not y.ndim or y.shape[-1] % 2 or x.shape != (*y.shape[:-1], y.shape[-1] // 2):
        return ""
    first, second = np.split(y, 2, -1)
    for name, function in FUNCTIONS.items():
        if _close(function(first) * second, x, rounding):
            return f"{name} of its first half times its second"
        if _close(function(second) * first, x, rounding):
            return f"{name} of its second half times its first"
    return ""


# -- arrays


def _rounding(*arrays: Sequence[np.ndarray]) -> float:
    """How far apart equal numbers may be in the first array of each; 0 where nobody can say."""
    found = [ROUNDING.get(each[0].dtype.name, 0.0) if each else 0.0 for each in arrays]
    return max(found) if all(found) else 0.0


def _part(array: np.ndarray, whole: Sequence[int] = ()) -> np.ndarray:
    """A corner of an array, of ``LIMIT`` numbers at most, which has all of some axes if that can be."""
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


def _close(a: np.ndarray, b: np.ndarray, rounding: float) -> bool:
    return a.shape == b.shape and bool(
        np.max(np.abs(a - b), initial=0) <= rounding * max(np.max(np.abs(b), initial=0), 1e-30)
    )


def _differ(mine: np.ndarray, theirs: np.ndarray, rounding: float) -> bool:
    """Whether there is something to explain, and numbers to explain it with."""
    a, b = _part(mine), _part(theirs)
    return a.size > 0 and bool(np.ptp(a) > 0) and not _close(a, b, rounding)


def _factor(y: np.ndarray, x: np.ndarray, rounding: float) -> float | None:
    """The one number that makes ``x`` of ``y``."""
    if y.shape != x.shape or not y.any():
        return None
    factor = float((x * y).sum() / (y * y).sum())
    return factor if factor and _close(y * factor, x, rounding) else None


# -- values


def of_values(mine: np.ndarray, theirs: np.ndarray, move: Move) -> str:
    """What two different arrays have in common."""
    if mine.shape != theirs.shape or not mine.size:
        return ""
    with np.errstate(all="ignore"):
        a, b = (array if array.dtype.kind == "c" else array.astype(np.float64) for array in (mine, theirs))
        if a.min() != b.min() or a.max() != b.max():  # which is soon seen
            return ""
        found = _moved(a, b, move.sources[0])
    return f"{move.target} {found}" if found else ""


def _moved(a: np.ndarray, b: np.ndarray, source: str) -> str:
    for axes in itertools.permutations(range(a.ndim)) if a.ndim < 6 else ():
        if list(axes) != sorted(axes) and np.array_equal(a.transpose(axes), b):
            return f"is the transpose of {source}" if a.ndim == 2 else f"has axes {list(axes)} of {source}"
    if a.ndim > 2 and np.array_equal(np.flip(a, range(2, a.ndim)), b):
        return f"has the kernel of {source} flipped"
    if not np.array_equal(np.sort(a, None), np.sort(b, None)):
        return ""
    order = _blocks(a, b)
    k = 0 if order or a.dtype.kind == "c" else _parts(a, b, 1e-12)
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
