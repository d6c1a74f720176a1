"""Where two passes first part: layers held against each other, also where one has its activation inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ..core.activation_functions import FUNCTIONS
from ..core.distances import COMPLEX, EPS, distance
from ..core.outputs import arrays_of
from ..core.slots import Activation

Arrays = Sequence[np.ndarray]


def first_divergence(
    layers: Iterable[tuple[str, str]], source: Sequence[Activation], target: Sequence[Activation], bound: float
) -> str:
    """The first layer in the source's order of execution whose output differs in the target, by both names.

    Args:
        layers: The layers of the source and those of the target that they are.
        source: The calls of the source's pass.
        target: Those of the target's.
        bound: How far outputs may be, in eps of the smaller dtype of two arrays.

    Returns:
        The layer in words, or the two that what differs stands between; where all agree, that it is the output.
    """
    source_calls, target_calls = ({call.layer: call for call in calls} for calls in (source, target))
    target_of, before = dict(layers), ""
    for name, call in source_calls.items():
        twin = target_calls.get(target_of.get(name, ""))
        if twin is None:
            continue
        words = name if name == twin.layer else f"{name} -> {twin.layer}"
        outputs, twin_outputs = arrays_of(call.output), arrays_of(twin.output)
        eps = layers_distance(outputs, twin_outputs)
        if eps > bound:
            eps, _ = without_activation(outputs, twin_outputs, eps, bound, layers_distance)
        if eps > bound:
            inputs = layers_distance(arrays_of(call.inputs), arrays_of(twin.inputs))
            if before and bound < inputs < float("inf"):
                return f"what is between layers {before} and {words} ({inputs:.3g} eps)"
            return f"layer {words} ({eps:.3g} eps)"
        before = words
    return "the output: the outputs of all layers with parameters agree"


def layers_distance(source: Arrays, target: Arrays) -> float:
    pairs = zip(source, target, strict=False)
    distances = (min(distance(b, a, smaller_dtype(a, b)) for b in channel_orders(array)) for a, array in pairs)
    return max(distances, default=0.0)


def without_activation(
    reference: Arrays, candidate: Arrays, eps: float, bound: float, distance_of: Callable[[Arrays, Arrays], float]
) -> tuple[float, str]:
    """The distance of outputs where one layer has the activation in it, as Keras' have, and the activation.

    Args:
        reference: The outputs of the layer on one side.
        candidate: Those on the other.
        eps: How far they are as they are.
        bound: How far they may be.
        distance_of: Gives the distance of two layers' outputs.

    Returns:
        The distance with the activation undone, and which it is; else ``eps`` and nothing.
    """
    for name, function in FUNCTIONS.items():
        for plain, activated in ((reference, candidate), (candidate, reference)):
            with np.errstate(all="ignore"):
                outputs = [function(a) if a.dtype.name in EPS else a for a in plain]
            if all(a.size == 0 or np.ptp(a) == 0 for a in outputs if a.dtype.name in EPS):
                continue  # whatever went in: a softmax of one number, a relu of negative ones
            cut = distance_of(outputs, activated)
            if cut <= bound:
                return cut, name
    return eps, ""


def smaller_dtype(a: np.ndarray, b: np.ndarray) -> str:
    """The coarser dtype of two arrays, of complex ones that of their parts; float32 where neither has an eps."""
    names = (COMPLEX.get(array.dtype.name, array.dtype.name) for array in (a, b))
    return max((name for name in names if name in EPS), key=EPS.__getitem__, default="float32")


def channel_orders(array: np.ndarray) -> list[np.ndarray]:
    """A layer's output as it is and with its channels elsewhere: a built model's layers have another order inside."""
    return [array] if array.ndim < 3 else [array, np.moveaxis(array, -1, 1), np.moveaxis(array, 1, -1)]
