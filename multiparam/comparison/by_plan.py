"""What goes where by a plan: values, gradients and ties of one side held against what the other side's make of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from .. import paths
from ..core.distances import EPS, distance
from ..transfers.manifest import Manifest
from ..transfers.moves import Move
from ..transfers.plan import Plan
from .divergence import FlattenPermutation
from .results import Histogram
from .subjects import NamedArrays, Subject

BINS = 40
SMALL = 2.0**-10  # of the largest gradient


def computed(plan: Plan, reference: Manifest, candidate: Manifest) -> list[str]:
    """The reference's parameters that a target is computed from, and not only put together of: it has fewer numbers."""
    sizes, targets = ({n: math.prod(e.spec.shape) for n, e in m.entries().items()} for m in (reference, candidate))
    computed = (m for m in plan.moves if len(m.sources) > 1 and m.target in targets)
    return [n for m in computed if targets[m.target] < sum(sizes[n] for n in m.sources) for n in m.sources]


def computed_layers(plan: Plan, reference: Subject, candidate: Subject) -> set[str]:
    """The candidate's layers with a parameter that is computed of several of the reference's."""
    sources = set(computed(plan, reference.manifest, candidate.manifest))
    return {paths.split(move.target)[0] for move in plan.moves if not sources.isdisjoint(move.sources)}


def permutations(plan: Plan) -> dict[str, FlattenPermutation]:
    """The candidate's layer -> the flatten permutation that the reference's inputs of it go through."""
    return {paths.split(m.target)[0]: m.permutation for m in plan.moves if m.permutation is not None}


def same_value(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two values are the same in the coarser of their dtypes."""
    if a.shape != b.shape:
        return False
    if EPS.get(a.dtype.name, 0.0) > EPS.get(b.dtype.name, 1.0):
        a, b = b, a
    return np.array_equal(a.astype(b.dtype, copy=False), b, equal_nan=True)


def are_rounded(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two values are the same but for what the coarser dtype cannot hold."""
    if a.dtype == b.dtype or a.dtype.name not in EPS or b.dtype.name not in EPS or not same_value(a, b):
        return False
    return not np.array_equal(a.astype(np.float64), b.astype(np.float64), equal_nan=True)


def both(
    moves: Sequence[Move], reference: NamedArrays, candidate: NamedArrays
) -> Iterator[tuple[Move, np.ndarray, np.ndarray]]:
    """Each move's gradient, or trained value, as its sources make it and as its target has it; of those that both
    sides have."""
    for move in moves:
        known = move.sources and move.target in candidate and all(name in reference for name in move.sources)
        if known and move.gradient is not None:
            yield move, move.gradient(*(reference[name] for name in move.sources)), candidate[move.target]


def small(moves: Sequence[Move], grads: NamedArrays) -> float:
    """A gradient so small that it is measured as if it were this: of one that should be zero, as that of the bias of an
    attention's keys, there is only the rounding of larger ones."""
    names = {name for move in moves for name in move.sources if name in grads}
    largest = (np.abs(grad).max(initial=0, where=np.isfinite(grad)) for grad in map(grads.__getitem__, names))
    return SMALL * max(map(float, largest), default=0.0)


def largest(
    moves: Sequence[Move], reference: NamedArrays, candidate: NamedArrays, dtype: str, least: float = 0.0
) -> tuple[float, str]:
    """The largest distance of a target from what its sources make, in eps, and the target."""
    known = both(moves, reference, candidate)
    distances = ((distance(value, truth, dtype, least), move.target) for move, truth, value in known)
    return max(distances, default=(0.0, ""))


def histogram(move: Move, what: str, reference: np.ndarray, candidate: np.ndarray) -> Histogram:
    finite = [array[np.isfinite(array)].astype(np.float64) for array in (reference, candidate)]
    low = min((float(array.min()) for array in finite if array.size), default=0.0)
    high = max((float(array.max()) for array in finite if array.size), default=0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = [np.histogram(array, BINS, (low, high))[0].tolist() for array in finite]
    return Histogram(move.target, " + ".join(move.sources), what, low, high, *counts)


def untied(plan: Plan, reference: Manifest, candidate: Manifest) -> list[str]:
    """Ties of the candidate between what are layers of their own in the reference. A layer that is only held under two
    names, of which the reference has one, is no such tie."""
    layer_of = {target: source for source, target in plan.layers}
    source_of = {move.target: move.sources[0] for move in plan.moves if move.sources}
    tied = {name for names in reference.ties() for name in names}
    notes = []
    for names in candidate.ties():
        sources = {source_of[name] for name in names if name in source_of}
        layers = {layer_of[layer] for layer in (paths.split(name)[0] for name in names) if layer in layer_of}
        if sources and not sources & tied and len(layers) > 1:
            notes.append(f"{' and '.join(names)} are tied here, not there")
    return notes
