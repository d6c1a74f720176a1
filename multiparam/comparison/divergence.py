"""Following two passes layer by layer: the distances of each layer's inputs and outputs, and where they first part."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.distances import EPS, distance
from ..transfers.divergence import channel_orders, without_activation
from . import hints
from .activations import LayerCall, LayerCalls

FlattenPermutation = Callable[[np.ndarray], np.ndarray]
PERMUTED = "both flatten channels in one order, and the weight is permuted as if they did not"


@dataclass(frozen=True)
class LayerDistance:
    """One matched call of a layer.

    Attributes:
        reference: The layer's name in the reference; empty for the model itself.
        name: Its name in the candidate.
        inputs: How far apart its inputs are, in eps of the dtype that is judged.
        output: How far apart its outputs are, in the same unit.
        cut: The activation that one of the two has as a part of it, and that is undone in ``output``.
    """

    reference: str
    name: str
    inputs: float
    output: float
    cut: str = ""

    def __str__(self) -> str:
        name = self.reference or "the model"
        return name if self.name == self.reference else f"{name} -> {self.name or 'the model'}"


@dataclass(frozen=True)
class Divergence:
    """Where two passes part.

    Attributes:
        where: In words.
        call: The reference's call of a layer that it is at, or before; None after the last.
        at_layer: Whether it is at the layer itself, whose inputs agree.
        hints: Known causes.
        lines: Of source code, "model.py:12-15 here", where it is between two layers and the framework can tell.
    """

    where: str
    call: int | None = None
    at_layer: bool = False
    hints: Sequence[str] = ()
    lines: Sequence[str] = ()

    def __str__(self) -> str:
        return self.where + (f" ({', '.join(self.lines)})" if self.lines else "")


@dataclass(frozen=True)
class _Diverging:
    """The first call whose output is beyond the bound, and the one that came before it; each with its index."""

    index: int
    call: LayerCall
    before: tuple[int, LayerCall] | None


class Follower:
    """Holds the calls of a candidate, as they come, against the cached ones of the reference.

    ``layer_map``: the reference's layer -> the candidate's; calls of one layer are matched in order. ``permutations``:
    the candidate's layer -> the flatten permutation that the reference's inputs of it go through. Only the call at
    which they part, and the one before, are held.

    >>> from multiparam.comparison.activations import ActivationCache
    >>> x = np.ones((2, 3))
    >>> cache = ActivationCache([LayerCall("0", (x,), (x + 1,)), LayerCall("2", (x + 1,), (x,))])
    >>> follower = Follower(cache, {"0": "a", "2": "b"}, "float64", 64)
    >>> follower.on_call(LayerCall("a", (x,), (x + 1,)))
    >>> follower.on_call(LayerCall("b", (x + 1,), (x * 2,)))
    >>> follower.divergence(outputs_agree=False).where
    'at layer 2 -> b: its inputs agree (0 eps) and its output does not (4.5e+15 eps)'
    """

    def __init__(
        self,
        reference: LayerCalls,
        layer_map: Mapping[str, str],
        dtype: str,
        bound: float,
        permutations: Mapping[str, FlattenPermutation] | None = None,
    ) -> None:
        self._reference = reference
        self._dtype = dtype
        self._bound = bound
        self._permutations = permutations or {}
        self._waiting = queued(reference, layer_map)
        self._layers: dict[int, LayerDistance] = {}
        self._last: tuple[int, LayerCall] | None = None
        self._diverging: _Diverging | None = None

    def on_call(self, call: LayerCall) -> None:
        """The candidate's next call."""
        waiting = self._waiting.get(call.layer)
        if not waiting:
            return
        i = waiting.popleft()
        reference = self._reference[i]
        inputs = self._distance(self._permuted(reference, call).inputs, call.inputs, unpad=True)
        output, cut = self._distance(reference.outputs, call.outputs), ""
        if inputs <= self._bound < output:
            output, cut = without_activation(reference.outputs, call.outputs, output, self._bound, self._distance)
        layer = self._layers[i] = LayerDistance(reference.layer, call.layer, inputs, output, cut)
        if self._diverging is not None and self._diverging.index < i:
            return
        # Copied, since the framework writes into that memory again.
        held = LayerCall(call.layer, *(tuple(map(np.array, arrays)) for arrays in call[1:]))
        if layer.output > self._bound:  # its inputs may be cut otherwise, as where padding is a layer of its own
            self._diverging = _Diverging(i, held, self._last)
        self._last = i, held

    def _permuted(self, reference: LayerCall, call: LayerCall) -> LayerCall:
        return permuted_inputs(reference, self._permutations.get(call.layer))

    def layers(self) -> list[LayerDistance]:
        """What was matched, in the reference's order of execution."""
        return [self._layers[i] for i in sorted(self._layers)]

    def position(self, call: int) -> int | None:
        """The place of a call of the reference's among :meth:`layers`."""
        return sorted(self._layers).index(call) if call in self._layers else None

    def largest_distance(self) -> float:
        """The largest distance of an output."""
        return max((layer.output for layer in self._layers.values()), default=0.0)

    def divergence(self, outputs_agree: bool) -> Divergence | None:
        """Where the passes part first, if they do."""
        order = sorted(self._layers)
        if self._diverging is None:
            if outputs_agree:
                return None
            last = f"after layer {self._layers[order[-1]]}, whose output agrees" if order else "somewhere"
            return Divergence(last)
        i, call = self._diverging.index, self._diverging.call
        index, layer = order.index(i), self._layers[i]
        if layer.inputs <= self._bound:
            where = f"at layer {layer}: its inputs agree ({layer.inputs:.3g} eps) and its output does not "
            causes = hints.explain_layer(self._reference[i], call)
            return Divergence(f"{where}({layer.output:.3g} eps)", i, True, causes)
        since = f"between layers {self._layers[order[index - 1]]} and" if index else "before layer"
        where = f"{since} {layer}, whose inputs are {layer.inputs:.3g} eps apart"
        before, causes = self._diverging.before, []
        # What stands between two layers is only known where they came one after the other in the candidate too.
        if before is not None and index and before[0] == order[index - 1]:
            causes = self._causes_between(before, i, call)
        return Divergence(where, i, False, causes)

    def _causes_between(self, before: tuple[int, LayerCall], i: int, call: LayerCall) -> list[str]:
        """Why inputs of a layer differ where the output of the layer before agrees."""
        reference = self._reference[i]
        permuted = self._permuted(reference, call)
        if permuted is not reference and self._distance(reference.inputs, call.inputs) <= self._bound:
            return [PERMUTED]
        return hints.explain_between(self._reference[before[0]], before[1], permuted, call)

    def _distance(self, reference: Sequence[np.ndarray], candidate: Sequence[np.ndarray], unpad: bool = False) -> float:
        return layer_distance(reference, candidate, self._dtype, unpad)


def layer_distance(
    reference: Sequence[np.ndarray], candidate: Sequence[np.ndarray], dtype: str, unpad: bool = False
) -> float:
    """The distance of two layers' inputs or outputs, whichever axis has their channels; ``unpad``: but for zeros
    around one of them, as where padding is a layer of its own."""

    def unpadded_distance(a: np.ndarray, b: np.ndarray) -> float:
        if unpad and a.shape != b.shape:
            a, b = hints.unpadded(a, b.shape), hints.unpadded(b, a.shape)
        return distance(b, a, dtype)

    # Whole numbers, such as tokens, have no eps: what is made of them is compared by what follows.
    pairs = [(a, b) for a, b in zip(reference, candidate, strict=False) if a.dtype.name in EPS]
    distances = (min(unpadded_distance(a, view) for view in channel_orders(b)) for a, b in pairs)
    return max(distances, default=0.0)


def queued(reference: LayerCalls, layer_map: Mapping[str, str]) -> dict[str, deque[int]]:
    """The candidate's layers -> the calls of the reference that theirs are held against, in order."""
    waiting: dict[str, deque[int]] = {}
    for i, layer in enumerate(reference.layers):
        if layer in layer_map:
            waiting.setdefault(layer_map[layer], deque()).append(i)
    return waiting


def permuted_inputs(reference: LayerCall, permute: FlattenPermutation | None) -> LayerCall:
    """The reference's call with features in the order in which the candidate flattens them."""
    if permute is None:
        return reference
    return reference._replace(inputs=tuple(permute(a) if a.ndim == 2 else a for a in reference.inputs))
