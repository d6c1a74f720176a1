"""Following two passes layer by layer: how far apart are the inputs and outputs of each, and where do they part?"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.distances import EPS, distance
from ..transfers.apply import channel_orders
from . import hints
from .activations import Call, Kept

Turn = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Layer:
    """One matched call of a layer: how far apart its inputs and its outputs are, in eps."""

    reference: str
    name: str
    inputs: float
    output: float
    cut: str = ""  # the activation that one of them has as a part of it, and that is undone in ``output``

    def __str__(self) -> str:
        name = self.reference or "the model"
        return name if self.name == self.reference else f"{name} -> {self.name or 'the model'}"


@dataclass(frozen=True)
class Parting:
    """Where two passes part first: in words, at which of the matched calls, and known causes."""

    where: str
    index: int | None = None
    at: bool = False  # at the layer itself, whose inputs agree
    hints: Sequence[str] = ()


class Follower:
    """Holds the calls of a model, as they come, against the kept ones of the reference.

    ``to``: reference's layer -> the other's; calls of one layer are matched in order. ``turns``: the other's layer ->
    what is done to the reference's inputs of it, where a flattening is in between. Only the call at which they part,
    and the one before, are held.

    >>> x = np.ones((2, 3))
    >>> follower = Follower(Kept([Call("0", (x,), (x + 1,)), Call("2", (x + 1,), (x,))]), {"0": "a", "2": "b"}, "float64", 64)
    >>> follower.see(Call("a", (x,), (x + 1,)))
    >>> follower.see(Call("b", (x + 1,), (x * 2,)))
    >>> follower.parting(outputs_agree=False).where
    'at layer 2 -> b: its inputs agree (0 eps) and its output does not (4.5e+15 eps)'
    """  # noqa: E501

    def __init__(
        self, kept: Kept, to: Mapping[str, str], dtype: str, bound: float, turns: Mapping[str, Turn] | None = None
    ) -> None:
        self._kept = kept
        self._dtype = dtype
        self._bound = bound
        self._turns = turns or {}
        self._waiting: dict[str, deque[int]] = {}
        for i, layer in enumerate(kept.layers):
            if layer in to:
                self._waiting.setdefault(to[layer], deque()).append(i)
        self._found: dict[int, Layer] = {}
        self._last: tuple[int, Call] | None = None
        self._parted: tuple[int, Call, tuple[int, Call] | None] | None = None

    def see(self, call: Call) -> None:
        """The other model's next call."""
        waiting = self._waiting.get(call.layer)
        if not waiting:
            return
        i = waiting.popleft()
        mine = self._kept[i]
        inputs = _apart(self._turned(mine, call).inputs, call.inputs, self._dtype, around=True)
        output, cut = _apart(mine.outputs, call.outputs, self._dtype), ""
        if inputs <= self._bound < output:
            output, cut = self._cut(mine.outputs, call.outputs, output)
        layer = self._found[i] = Layer(mine.layer, call.layer, inputs, output, cut)
        if self._parted is not None and self._parted[0] < i:
            return
        held = Call(call.layer, *(tuple(map(np.array, arrays)) for arrays in call[1:]))  # its memory is used again
        if layer.output > self._bound:  # its inputs may be cut otherwise, as where padding is a layer of its own
            self._parted = i, held, self._last
        self._last = i, held

    def _turned(self, mine: Call, call: Call) -> Call:
        """The reference's call with features in the order in which the other flattens them."""
        turn = self._turns.get(call.layer)
        if turn is None:
            return mine
        return mine._replace(inputs=tuple(turn(a) if a.ndim == 2 else a for a in mine.inputs))

    def _cut(self, mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray], output: float) -> tuple[float, str]:
        """The distance of outputs where one layer has the activation in it, as Keras' have, and the activation."""
        for name, function in hints.FUNCTIONS.items():
            for one, other in ((mine, theirs), (theirs, mine)):
                with np.errstate(all="ignore"):
                    made = [function(a) if a.dtype.name in EPS else a for a in one]
                if all(a.size == 0 or np.ptp(a) == 0 for a in made if a.dtype.name in EPS):
                    continue  # whatever went in: a softmax of one number, a relu of negative ones
                far = _apart(made, other, self._dtype)
                if far <= self._bound:
                    return far, name
        return output, ""

    def layers(self) -> list[Layer]:
        """What was matched, in the reference's order of execution."""
        return [self._found[i] for i in sorted(self._found)]

    def farthest(self) -> float:
        """The largest distance of an output."""
        return max((layer.output for layer in self._found.values()), default=0.0)

    def parting(self, outputs_agree: bool) -> Parting | None:
        """Where they part first, if they do."""
        order = sorted(self._found)
        if self._parted is None:
            if outputs_agree:
                return None
            last = f"after layer {self._found[order[-1]]}, whose output agrees" if order else "somewhere"
            return Parting(last)
        i, call, before = self._parted
        index, layer = order.index(i), self._found[i]
        if layer.inputs <= self._bound:
            where = f"at layer {layer}: its inputs agree ({layer.inputs:.3g} eps) and its output does not "
            return Parting(f"{where}({layer.output:.3g} eps)", index, True, hints.at(self._kept[i], call))
        since = f"between layers {self._found[order[index - 1]]} and" if index else "before layer"
        where = f"{since} {layer}, whose inputs are {layer.inputs:.3g} eps apart"
        causes: list[str] = []
        if before is not None and index and before[0] == order[index - 1]:
            mine = self._kept[i]
            turned = self._turned(mine, call)
            if turned is not mine and _apart(mine.inputs, call.inputs, self._dtype) <= self._bound:
                causes = ["both flatten channels in one order, and the weight is permuted as if they did not"]
            else:
                causes = hints.between(self._kept[before[0]], before[1], turned, call)
        return Parting(where, index, False, causes)


def _apart(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray], dtype: str, around: bool = False) -> float:
    """How far two layers' inputs or outputs are apart, whichever axis has their channels; ``around``: but for zeros
    around one of them, as where padding is a layer of its own."""

    def far(a: np.ndarray, b: np.ndarray) -> float:
        if around and a.shape != b.shape:
            a, b = hints.unpadded(a, b.shape), hints.unpadded(b, a.shape)
        return distance(b, a, dtype)

    pairs = [(a, b) for a, b in zip(mine, theirs, strict=False) if a.dtype.name in EPS]
    return max((min(far(a, way) for way in channel_orders(b)) for a, b in pairs), default=0.0)
