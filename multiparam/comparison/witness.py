"""What is looked at of faults that are known: their causes, by numbers, and the lines of source code they are in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.outputs import Outputs
from . import hints
from .activations import LayerCall, LayerCalls, digest
from .divergence import PERMUTED, Divergence, LayerDistance, layer_distance
from .forcing import Arrays, Segment, Site, between, call_site

OUTPUTS = Segment(-1, False)  # the code after the last layer


@dataclass(frozen=True)
class Seen:
    """What was seen of a fault.

    Attributes:
        label: The layer's name, or both names.
        before: That of the layer that ran before.
        lines: Of source code.
        hints: Known causes.
        whole: Whether whole numbers differ.
    """

    label: str
    before: str
    lines: str
    hints: Sequence[str] = ()
    whole: bool = False


class Witness:
    """Looks at the faults in one more forced pass.

    Args:
        calls: What the reference's layers took and gave.
        layer_map: The reference's layer -> the model's.
        faults: Which parts to look at.
        own: Parts that go on with what they give of themselves.
        bound: How far numbers may be apart that agree, in eps of float64.
    """

    def __init__(
        self,
        calls: LayerCalls,
        layer_map: Mapping[str, str],
        faults: Collection[Segment],
        own: Collection[Segment],
        bound: float,
    ) -> None:
        self.seen: dict[Segment, Seen] = {}
        self._calls = calls
        self._layer_map = layer_map
        self._faults = faults
        self._own = own
        self._bound = bound
        self._inputs: dict[int, tuple[np.ndarray, ...]] = {}
        self._last: tuple[int, LayerCall] | None = None
        self._entering: set[tuple[bytes, ...]] = set()  # what was wrong already: several layers may take one array
        self._site = Site("", 0)

    def observe(self, part: Segment, layer: str, reference: Arrays, candidate: Arrays) -> bool:
        """A part has run: see :class:`~multiparam.comparison.forcing.Forcing`."""
        site = call_site()
        # Copied, since the framework writes into that memory again. What differs is given as the reference has it.
        held = tuple(map(np.array, candidate))
        given = tuple(reference) if part in self._faults and part not in self._own else held
        entering = () if part.layer else tuple(map(digest, held))
        if part in self._faults and not (entering and entering in self._entering):
            self._entering.add(entering)
            earlier = self._earlier(part.call)
            before = self._label(earlier[-1]) if earlier else ""
            lines = between(site if part.layer else self._site, site)
            causes = self._causes(part, layer, reference, held)
            whole = not any(array.dtype.kind == "f" for array in held)
            self.seen[part] = Seen(self._label(part.call), before, lines, causes, whole)
        if part.layer:
            self._last = part.call, LayerCall(layer, self._inputs.pop(part.call, ()), given)
        else:
            self._inputs[part.call] = given
        self._site = site
        return part in self._own

    def finish(self, outputs: Outputs) -> None:
        """The pass is over: what is after the last layer is after where that was called."""
        if self._last is not None and OUTPUTS in self._faults:
            label = self._label(self._last[0])
            self.seen[OUTPUTS] = Seen("", label, between(self._site, Site("", 0)))

    def divergence(self, part: Segment, distances: Mapping[Segment, float], there: Witness | None) -> Divergence:
        """A fault in words.

        Args:
            part: Which.
            distances: How far each part is from the reference's, in eps.
            there: The witness of the reference, which knows its lines.

        Returns:
            The fault.
        """
        seen, eps = self.seen[part], distances[part]
        if part.layer:
            inputs = distances.get(Segment(part.call, False), 0.0)
            agreeing = inputs if inputs <= self._bound else 0.0  # it was given the reference's
            text = (
                f"at layer {seen.label}: its inputs agree ({agreeing:.3g} eps) and its output does not ({eps:.3g} eps)"
            )
            return Divergence(text, part.call, True, seen.hints)
        apart = "other whole numbers" if seen.whole and eps == float("inf") else f"{eps:.3g} eps apart"
        since = f"between layers {seen.before} and" if seen.before else "before layer"
        text = f"{since} {seen.label}, whose inputs are {apart}"
        if part == OUTPUTS:
            text = f"after layer {seen.before}, whose output agrees"
        lines = {"here": seen.lines, "there": there.seen[part].lines if there and part in there.seen else ""}
        known = [f"{where} {side}" for side, where in lines.items() if where]
        call = None if part == OUTPUTS else part.call
        return Divergence(text, call, False, seen.hints, known)

    def _earlier(self, call: int) -> list[int]:
        """The calls that come before one in the reference, of layers that the model has."""
        layers = self._calls.layers
        return [i for i in range(call) if layers[i] in self._layer_map]

    def _label(self, call: int) -> str:
        layer = self._calls.layers[call]
        return str(LayerDistance(layer, self._layer_map[layer], 0.0, 0.0))

    def _causes(self, part: Segment, layer: str, reference: Arrays, candidate: tuple[np.ndarray, ...]) -> list[str]:
        call = self._calls[part.call]
        if part.layer:
            inputs = self._inputs.get(part.call, ())
            return hints.explain_layer(call, LayerCall(layer, inputs, candidate))
        permuted = len(reference) == len(call.inputs) and any(
            a is not b for a, b in zip(reference, call.inputs, strict=True)
        )
        if permuted and layer_distance(call.inputs, candidate, "float64") <= self._bound:
            return [PERMUTED]
        earlier = self._earlier(part.call)
        # What stands between two layers is only known where they came one after the other on both sides.
        if self._last is None or not earlier or earlier[-1] != self._last[0]:
            return []
        index, before = self._last
        after = call._replace(inputs=tuple(reference))
        return hints.explain_between(self._calls[index], before, after, LayerCall(layer, candidate, ()))
