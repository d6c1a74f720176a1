"""One candidate judged against the reference: parameters, outputs, layers, gradients, and what training makes of them.

Where both can run in float64, that is where they must agree: there rounding is so small that a wrong eps shows. A plan,
as for a transfer, says which parameter and which layer of the candidate is which of the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from .. import paths
from ..core.distances import EPS, distance
from ..core.outputs import Outputs, outputs_distance
from ..errors import Unsupported
from ..transfers import plan as planning
from ..transfers.manifest import Manifest
from ..transfers.plan import Move, Plan, without_permutation
from ..transfers.rename import Rules
from . import hints
from .activations import LayerCalls
from .divergence import Follower
from .judge import Check
from .results import Histogram, Pair
from .subjects import NamedArrays, NotInFloat64, Subject

# In eps, unless the user has others: room for a deep network, and far below what a wrong eps costs in float64.
# "numeric" is of outputs in the models' own dtype, where those in float64 are judged, too.
BOUNDS: Mapping[str, float] = {"output": 1024, "layer": 1024, "gradient": 16384, "training": 65536, "numeric": 16384}
BINS = 40
SHOWN = 4  # of the differences of one check
LOOSEST = 0.125  # the relative distance that no bound of ours goes beyond
SMALL = 2.0**-10  # of the largest gradient


class ReferenceJudge:
    """A reference, and how far candidates may be from it. What it computes is computed once for all of them."""

    def __init__(self, reference: Subject, bounds: Mapping[str, float], histograms: bool) -> None:
        self.reference = reference
        self.bounds = bounds
        self.histograms = histograms
        self._passes: dict[str, tuple[Outputs, LayerCalls]] = {}  # by dtype

    @cached_property
    def _grads(self) -> NamedArrays:
        return self.reference.grads()

    @cached_property
    def _trained(self) -> NamedArrays:
        return self.reference.trained()

    def judge(self, candidate: Subject, rules: Rules) -> Pair:
        """All checks of one candidate. Where they fail, and a flattening was inferred that the values know nothing of,
        the plan without it is tried, and taken if the outputs then agree."""
        plan = planning.plan_manifests(self.reference.manifest, candidate.manifest, rules, cast=True)
        pair = self._judge_by(plan, candidate)
        if not pair.agrees and any(move.permutation for move in plan.moves):
            again = self._judge_by(_as_flattened(plan, self.reference, candidate), candidate)
            if all(check.agrees for check in again.checks if check.check == "outputs"):
                return again
        return pair

    def _judge_by(self, plan: Plan, candidate: Subject) -> Pair:
        pair = Pair(candidate.name, plan=plan)
        self._parameters(pair, plan, candidate)
        self._forward_passes(pair, plan, candidate)
        if not (plan.missing or plan.refused):
            self._gradients(pair, plan, candidate)
        if candidate.task.steps:
            what, dtype = f"{candidate.task.steps} steps of {candidate.task.optimizer}", self._coarser(candidate)
            eps, where = _largest(plan.moves, self._trained, candidate.trained(), dtype)
            self._check(pair, what, "training", dtype, eps, where)
        return pair

    def _bound(self, kind: str, dtype: str) -> float:
        """As the user has it, or as stated; of a coarse dtype no more than makes an eighth of a number."""
        bound = self.bounds[kind]
        return min(bound, LOOSEST / EPS[dtype]) if bound == BOUNDS[kind] else bound

    def _check(self, pair: Pair, what: str, kind: str, dtype: str, eps: float, where: str = "") -> None:
        bound = self._bound(kind, dtype)
        detail = where if eps > bound else ""
        pair.checks.append(Check("", what, pair.name, eps <= bound, dtype, eps, bound, detail))

    def _coarser(self, candidate: Subject) -> str:
        """The coarser of the dtypes that the models were made in."""
        return max(self.reference.native_dtype, candidate.native_dtype, key=EPS.__getitem__)

    def _parameters(self, pair: Pair, plan: Plan, candidate: Subject) -> None:
        manifest = candidate.manifest
        structure = [
            *(f"nothing makes {name}" for name in plan.missing),
            *(f"{name} goes nowhere" for name in plan.unused),
            *plan.refused,
        ]
        training = candidate.task.steps > 0
        options = [text for text in plan.options if training or not text.endswith("when it trains")]
        differing = [m for m in plan.moves if not plan.refused and not _same(m.make(), manifest.read(m.target))]
        ties = [*plan.ties, *_untied(plan, self.reference.manifest, manifest)]
        differences = {"structure": structure, "options": options, "ties": ties}
        if not plan.refused:  # else values cannot be made
            differences["values"] = [move.target for move in differing]
        for what, items in differences.items():
            more = "; ..." if len(items) > SHOWN else ""
            detail = "; ".join(items[:SHOWN]) + more
            pair.checks.append(Check("", what, pair.name, not items, detail=detail, items=tuple(items)))
        if self.histograms:
            pair.histograms += [
                _histogram(move, "value", move.make(), manifest.read(move.target)) for move in plan.moves
            ]
        causes = (hints.explain_values(move.make(), manifest.read(move.target), move) for move in differing)
        pair.hints += [cause for cause in causes if cause]

    def _forward_passes(self, pair: Pair, plan: Plan, candidate: Subject) -> None:
        """Outputs and layers: in float64 where both can be run in it, and then the outputs in their own dtype too."""
        wide = all("float64" in each.dtypes for each in (self.reference, candidate))
        try:
            self._follow(pair, plan, candidate, "float64" if wide else "")
        except NotInFloat64:
            return self._forward_passes(pair, plan, candidate)  # it is no longer among the dtypes
        native = candidate.native_dtype
        if wide and native != "float64":
            truth, _ = self._passes["float64"]
            self._outputs(pair, "numeric", native, truth, candidate.run(native))

    def _outputs(self, pair: Pair, kind: str, dtype: str, truth: Outputs, outputs: Outputs) -> bool:
        """The check of the outputs; whether they agree, or nothing can be told."""
        eps, where, undecided = outputs_distance(truth, outputs, lambda a, b: dtype)
        self._check(pair, "outputs", kind, dtype, eps, where)
        if undecided:
            pair.checks[-1] = Check("", "outputs", pair.name, False, detail=undecided, undecided=True)
        return not pair.checks[-1].detail or bool(undecided)

    def _follow(self, pair: Pair, plan: Plan, candidate: Subject, wide: str) -> None:
        """Outputs and layers in one dtype: ``wide``, or else each model in its own."""
        dtype = wide or self._coarser(candidate)
        run_in = wide or self.reference.native_dtype
        if run_in not in self._passes:
            self._passes[run_in] = self.reference.run_with_cache(run_in)
        truth, calls = self._passes[run_in]
        permuted = {paths.split(m.target)[0]: m.permutation for m in plan.moves if m.permutation is not None}
        follower = Follower(calls, dict(plan.layers), dtype, self._bound("layer", dtype), permuted)
        outputs = candidate.run(wide or candidate.native_dtype, follower.on_call)
        agrees = self._outputs(pair, "output", dtype, truth, outputs)
        divergence = follower.divergence(agrees)
        layers = pair.layers[""] = follower.layers()
        self._check(pair, f"{len(layers)} layers on the way", "layer", dtype, follower.largest_distance())
        pair.dtype = dtype
        if divergence is None:
            return
        pair.parted = divergence.where
        pair.hints += divergence.hints
        if divergence.index is not None:
            pair.first[""] = divergence.index
        if divergence.at_layer and divergence.index is not None:
            name = layers[divergence.index].name or "the model"
            pair.hints += [text for text in plan.options if text.startswith(f"{name}: ")]

    def _gradients(self, pair: Pair, plan: Plan, candidate: Subject) -> None:
        try:
            truth, grads = self._grads, candidate.grads()
        except Unsupported as error:
            pair.checks.append(Check("", "gradients", pair.name, True, expected=str(error)))
            return
        dtype = self._coarser(candidate)
        eps, where = _largest(plan.moves, truth, grads, dtype, _small(plan.moves, truth))
        self._check(pair, "gradients", "gradient", dtype, eps, where)
        if self.histograms:
            both = _both(plan.moves, truth, grads)
            pair.histograms += [_histogram(move, "gradient", *arrays) for move, *arrays in both]


def _as_flattened(plan: Plan, reference: Subject, candidate: Subject) -> Plan:
    """The plan without a flattening that was inferred, where the values say that both sides flatten in one order."""

    def by_values(move: Move) -> Move:
        plain = without_permutation(move, reference.manifest.read)
        value = candidate.manifest.read(move.target)
        return plain if not _same(move.make(), value) and _same(plain.make(), value) else move

    return replace(plan, moves=[move if move.permutation is None else by_values(move) for move in plan.moves])


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.astype(b.dtype, copy=False), b, equal_nan=True)


def _both(
    moves: Sequence[Move], reference: NamedArrays, candidate: NamedArrays
) -> Iterator[tuple[Move, np.ndarray, np.ndarray]]:
    """Each move's gradient, or trained value, as its sources make it and as its target has it; of those that both
    sides have."""
    for move in moves:
        known = move.sources and move.target in candidate and all(name in reference for name in move.sources)
        if known and move.gradient is not None:
            yield move, move.gradient(*(reference[name] for name in move.sources)), candidate[move.target]


def _small(moves: Sequence[Move], grads: NamedArrays) -> float:
    """A gradient so small that it is measured as if it were this: of one that should be zero, as that of the bias of an
    attention's keys, there is only the rounding of larger ones."""
    names = {name for move in moves for name in move.sources if name in grads}
    largest = (np.abs(grad).max(initial=0, where=np.isfinite(grad)) for grad in map(grads.__getitem__, names))
    return SMALL * max(map(float, largest), default=0.0)


def _largest(
    moves: Sequence[Move], reference: NamedArrays, candidate: NamedArrays, dtype: str, least: float = 0.0
) -> tuple[float, str]:
    """The largest distance of a target from what its sources make, in eps, and the target."""
    both = _both(moves, reference, candidate)
    distances = ((distance(value, truth, dtype, least), move.target) for move, truth, value in both)
    return max(distances, default=(0.0, ""))


def _histogram(move: Move, what: str, reference: np.ndarray, candidate: np.ndarray) -> Histogram:
    both = [array[np.isfinite(array)].astype(np.float64) for array in (reference, candidate)]
    low = min((float(array.min()) for array in both if array.size), default=0.0)
    high = max((float(array.max()) for array in both if array.size), default=0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = [np.histogram(array, BINS, (low, high))[0].tolist() for array in both]
    return Histogram(move.target, " + ".join(move.sources), what, low, high, *counts)


def _untied(plan: Plan, reference: Manifest, candidate: Manifest) -> list[str]:
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
