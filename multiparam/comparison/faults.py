"""Every fault of a candidate, each placed: found by forced passes, in which no fault reaches what comes after it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core.distances import EPS
from ..core.group import store_of
from ..core.outputs import Outputs, outputs_distance
from ..errors import DoesNotRun, ShardError
from ..transfers.divergence import without_activation
from . import noise
from .activations import LayerCalls
from .divergence import Divergence, FlattenPermutation, layer_distance
from .forcing import Arrays, Forcing, Observe, Perturbation, Segment
from .subjects import LiveSubject, Subject
from .witness import OUTPUTS, Witness

ROUNDED = 2.0**-18  # relative: what a part may be apart that rounds to float32 what is in no input, such as a table
GROSS = 2.0**-8  # relative: what an activation that one side has more makes, and a little rounding does not
Run = Callable[[Observe, "Perturbation | None"], Outputs]


@dataclass(frozen=True)
class Pairing:
    """What is held against each other, and how.

    Attributes:
        calls: What the reference's layers took and gave.
        truth: The reference's outputs.
        layer_map: The reference's layer -> the candidate's.
        permutations: The candidate's layer -> the flatten permutation of its inputs.
        dtype: In whose eps distances are.
        bound: How far parts may be apart, in eps.
        wide: The dtype that both are run in; empty: each in its own.
        rounds: Whether something rounds more coarsely than that, so that it has to be measured where.
        computed: The candidate's layers whose parameters were computed, and rounded, of several of the reference's.
    """

    calls: LayerCalls
    truth: Outputs
    layer_map: Mapping[str, str]
    permutations: Mapping[str, FlattenPermutation]
    dtype: str
    bound: float
    wide: str = ""
    rounds: bool = False
    computed: Collection[str] = ()


def find_faults(reference: Subject, candidate: Subject, pairing: Pairing) -> list[Divergence]:
    """The parts of a candidate that differ, given what the reference's took.

    Args:
        reference: The reference.
        candidate: The candidate; one that is recorded takes nothing.
        pairing: What is held against each other.

    Returns:
        The faults, in the reference's order of execution; none where nothing can be put into a pass of the candidate.
    """
    if not isinstance(candidate, LiveSubject):
        return []
    try:
        return _Finder(reference, candidate, pairing).faults()
    except (DoesNotRun, ShardError):  # what a layer takes or gives cannot be made again, or lies in several processes
        return []


class _Finder:
    def __init__(self, reference: Subject, candidate: LiveSubject, pairing: Pairing) -> None:
        self._reference = reference
        self._candidate = candidate
        self._pairing = pairing
        self._own: set[Segment] = set()  # parts that go on with what they give of themselves
        self._bounds: dict[Segment, float] = {}  # of those that round

    def faults(self) -> list[Divergence]:
        """See :func:`find_faults`."""
        distances = self._distances()
        suspects = self._beyond(distances)
        if suspects and self._pairing.rounds:
            self._measure(suspects)
            suspects = self._beyond(distances)
        distances, suspects = self._without_other_cuts(distances, suspects)
        least = ROUNDED / EPS[self._pairing.dtype] if self._pairing.rounds else 0.0
        faults = [part for part in suspects if part.layer or distances[part] > least] or suspects
        return self._explained(distances, faults) if faults else []

    def _bound(self, part: Segment) -> float:
        return self._bounds.get(part, self._pairing.bound)

    def _beyond(self, distances: Mapping[Segment, float]) -> list[Segment]:
        return [part for part, eps in distances.items() if eps > self._bound(part)]

    def _distances(self) -> dict[Segment, float]:
        """How far each part is from the reference's, where all before it is as the reference's."""
        distances: dict[Segment, float] = {}

        def layers_distance(reference: Arrays, candidate: Arrays) -> float:
            return layer_distance(reference, candidate, self._pairing.dtype)

        def observe(part: Segment, layer: str, reference: Arrays, candidate: Arrays) -> bool:
            eps = layer_distance(reference, candidate, self._pairing.dtype, unpad=not part.layer)
            if not part.layer and _other_whole_numbers(reference, candidate):
                eps = float("inf")
            if part.layer and eps > self._bound(part):
                loosely = self._bound(part)
                if eps > GROSS / EPS[self._pairing.dtype]:
                    loosely = max(loosely, ROUNDED / EPS[self._pairing.dtype])
                eps, cut = without_activation(reference, candidate, eps, loosely, layers_distance)
                if cut:  # what then is left is the rounding of one activation in two places
                    self._own.add(part)
                    self._bounds[part] = loosely
            distances[part] = eps
            return part in self._own

        forcing = self._forcing(observe)
        outputs = self._candidate.run_forced(self._run_in, forcing)
        for part in forcing.unfit:  # a layer that took neither what the reference's took nor its equal
            if not part.layer and distances[part] > self._bound(part):
                distances.pop(Segment(part.call, True), None)
        if distances:
            worst = outputs_distance(self._pairing.truth, outputs, lambda a, b: self._pairing.dtype)
            distances[OUTPUTS] = 0.0 if worst.undecided else worst.eps
        return distances

    @property
    def _run_in(self) -> str:
        return self._pairing.wide or self._candidate.native_dtype

    def _forcing(self, observe: Observe, move: Perturbation | None = None) -> Forcing:
        pairing, from_numpy = self._pairing, store_of(self._candidate.net).from_numpy
        return Forcing(pairing.calls, pairing.layer_map, pairing.permutations, from_numpy, observe, move)

    def _forced_candidate(self, observe: Observe, move: Perturbation | None = None) -> Outputs:
        return self._candidate.run_forced(self._run_in, self._forcing(observe, move))

    def _forced_reference(self, reference: LiveSubject, observe: Observe, move: Perturbation | None = None) -> Outputs:
        """A pass of the reference on what it took itself."""
        pairing, same = self._pairing, {layer: layer for layer in self._pairing.layer_map}
        forcing = Forcing(pairing.calls, same, {}, store_of(reference.net).from_numpy, observe, move)
        return reference.run_forced(pairing.wide or reference.native_dtype, forcing)

    def _without_other_cuts(
        self, distances: dict[Segment, float], suspects: list[Segment]
    ) -> tuple[dict[Segment, float], list[Segment]]:
        """Without the parts that are no faults: what one of them has too much the next has too little, as where a scale
        or an order of axes is inside a layer on one side. Where it goes on with its own, the next one agrees."""
        followed = [part for part in suspects if part.layer or Segment(part.call, True) in suspects]
        if len(suspects) < 2 or not followed:
            return distances, suspects
        before, order = set(self._own), list(distances)
        self._own |= set(followed)
        again = self._distances()
        own: set[Segment] = set()
        for part in suspects:
            if again.get(part, float("inf")) <= self._bound(part):
                own |= set([each for each in followed if order.index(each) < order.index(part)][-1:])
        self._own = before | own
        if not own:
            return distances, suspects
        last = self._distances()
        left = [part for part in self._beyond(last) if part not in own]
        if set(left) <= set(suspects):
            return last, left
        self._own = before
        return distances, suspects

    def _measure(self, suspects: Sequence[Segment]) -> None:
        """Bounds of those parts that round coarsely themselves, on either side."""
        reference, floors = self._reference, [_Responses(self._forced_candidate)]
        known = 0.0
        if isinstance(reference, LiveSubject):
            live = reference
            floors.append(_Responses(lambda observe, move: self._forced_reference(live, observe, move)))
        else:
            known = reference.noise_floor()
        layers = self._pairing.calls.layers
        for part in suspects:
            floor = max(known, *(responses.floor(part) for responses in floors))
            if part != OUTPUTS and self._pairing.layer_map[layers[part.call]] in self._pairing.computed:
                floor = max(floor, EPS[self._candidate.native_dtype] / 2)
            self._bounds[part] = max(self._pairing.bound, noise.MARGIN * floor / EPS["float64"])

    def _explained(self, distances: Mapping[Segment, float], faults: Sequence[Segment]) -> list[Divergence]:
        here = Witness(self._pairing.calls, self._pairing.layer_map, faults, self._own, self._pairing.bound)
        here.finish(self._forced_candidate(here.observe))
        there = None
        if isinstance(self._reference, LiveSubject):
            same = {layer: layer for layer in self._pairing.layer_map}
            there = Witness(self._pairing.calls, same, faults, (), self._pairing.bound)
            there.finish(self._forced_reference(self._reference, there.observe))
        in_order = sorted(here.seen, key=lambda part: (part == OUTPUTS, part.call, part.layer))
        faults_in_words = [here.divergence(part, distances, there) for part in in_order]
        return self._with_missing(faults_in_words, distances)

    def _with_missing(self, faults: Sequence[Divergence], distances: Mapping[Segment, float]) -> list[Divergence]:
        """The faults, the first one after a layer that the candidate never calls with a hint that says so."""
        pairing, hints = self._pairing, [list(fault.hints) for fault in faults]
        for i, layer in enumerate(pairing.calls.layers):
            if layer in pairing.layer_map and Segment(i, False) not in distances and Segment(i, True) not in distances:
                after = next((at for at, fault in enumerate(faults) if fault.call is None or fault.call > i), None)
                if after is not None:
                    hints[after].append(f"{layer} is called there, not here")
        return [replace(fault, hints=each) for fault, each in zip(faults, hints, strict=True)]


class _Responses:
    """How far each part of a model moves where all that it is given does."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._still = self._arrays(Perturbation(0.0, 0))
        self._moved: dict[Perturbation, dict[Segment, float]] = {}
        self._restless = self._response(Perturbation(0.0, 0))  # as where dropout is on: that is no rounding

    def floor(self, part: Segment) -> float:
        """How far rounding alone moves it, relative to its largest number; 0.0 where all is as wide as it runs."""
        if part not in self._still or self._restless[part] > 0:
            return 0.0

        def outputs(size: float, seed: int) -> Outputs:
            return {"": np.array([1.0, self._response(Perturbation(size, seed)).get(part, 0.0)])}

        return noise.noise_floor(outputs)

    def _response(self, move: Perturbation) -> dict[Segment, float]:
        if move not in self._moved:
            arrays = self._arrays(move)
            self._moved[move] = {
                part: layer_distance(still, arrays[part], "float64") * EPS["float64"]
                for part, still in self._still.items()
                if part in arrays
            }
        return self._moved[move]

    def _arrays(self, move: Perturbation) -> dict[Segment, list[np.ndarray]]:
        arrays: dict[Segment, list[np.ndarray]] = {}

        def observe(part: Segment, layer: str, reference: Arrays, candidate: Arrays) -> bool:
            arrays[part] = [np.array(array) for array in candidate]
            return False

        outputs = self._run(observe, move)
        arrays[OUTPUTS] = [array for array in outputs.values() if not isinstance(array, str)]
        return arrays


def _other_whole_numbers(reference: Arrays, candidate: Arrays) -> bool:
    """Whether a layer that takes whole numbers, such as positions, takes others."""
    pairs = [
        (a, b) for a, b in zip(reference, candidate, strict=False) if a.dtype.kind in "iu" and b.dtype.kind in "iu"
    ]
    return any(a.shape == b.shape and not np.array_equal(a, b) for a, b in pairs)
