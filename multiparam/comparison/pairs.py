"""One candidate judged against the reference: parameters, outputs, layers, gradients, and what training makes of them.

Where both can run in float64, that is where they must agree: there rounding is so small that a wrong eps shows. A plan,
as for a transfer, says which parameter and which layer of the candidate is which of the reference.
"""

from __future__ import annotations

import math
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
from . import hints, noise
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
CLOSE = 16.0  # eps of their own dtype that outputs may always be apart


class ReferenceJudge:
    """A reference, and how far candidates may be from it. What it computes is computed once for all of them."""

    def __init__(self, reference: Subject, bounds: Mapping[str, float], histograms: bool) -> None:
        self.reference = reference
        self.bounds = bounds
        self.histograms = histograms
        self._passes: dict[str, tuple[Outputs, LayerCalls]] = {}  # by dtype

    @cached_property
    def _own_distance(self) -> float:
        """How far the reference's outputs in its own dtype are from those in float64, in eps of float64."""
        truth, _ = self._passes["float64"]
        native = self.reference.native_dtype
        return 0.0 if native == "float64" else outputs_distance(truth, self.reference.run(native), _in_float64).eps

    @cached_property
    def _reference_floor(self) -> float:
        return self.reference.noise_floor()

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
        if self._is_stated("layer"):
            _settle_layers(pair)
        if candidate.task.steps:
            what, dtype = f"{candidate.task.steps} steps of {candidate.task.optimizer}", self._coarser(candidate)
            eps, where = _largest(plan.moves, self._trained, candidate.trained(), dtype)
            self._check(pair, what, "training", dtype, eps, where)
        return pair

    def _is_stated(self, kind: str) -> bool:
        """Whether a bound is ours, and not the user's."""
        return self.bounds[kind] == BOUNDS[kind]

    def _bound(self, kind: str, dtype: str) -> float:
        """As the user has it, or as stated; of a coarse dtype no more than makes an eighth of a number."""
        return min(self.bounds[kind], LOOSEST / EPS[dtype]) if self._is_stated(kind) else self.bounds[kind]

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
            check = self._follow(pair, plan, candidate, "float64" if wide else "")
        except NotInFloat64:
            return self._forward_passes(pair, plan, candidate)  # it is no longer among the dtypes
        if wide and self._coarser(candidate) != "float64":
            self._numeric(pair, candidate, check)

    def _numeric(self, pair: Pair, candidate: Subject, in_float64: Check) -> None:
        """The outputs of each model in its own dtype and under its own policy, from the reference's in float64."""
        dtype = self._coarser(candidate)
        truth, _ = self._passes["float64"]
        eps, where, _ = outputs_distance(truth, candidate.run(candidate.native_dtype), lambda a, b: dtype)
        own = self._own_distance * EPS["float64"] / EPS[dtype]  # how far the reference itself rounds
        bound = self._bound("numeric", dtype)
        if self._is_stated("numeric") and np.isfinite(own):
            # Where a part of float64's pass is none, it shows less, and the models' own numbers have to be close.
            bound = max(CLOSE, noise.MARGIN * own) if in_float64.floor else max(bound, noise.MARGIN * own)
            eps = max(eps, own)
        agrees = eps <= bound
        pair.checks.append(Check("", "outputs", pair.name, agrees, dtype, eps, bound, "" if agrees else where))

    def _follow(self, pair: Pair, plan: Plan, candidate: Subject, wide: str) -> Check:
        """Outputs and layers in one dtype: ``wide``, or else each model in its own. Gives the check of the outputs."""
        dtype = wide or self._coarser(candidate)
        run_in = wide or self.reference.native_dtype
        if run_in not in self._passes:
            self._passes[run_in] = self.reference.run_with_cache(run_in)
        truth, _ = self._passes[run_in]
        bound = self._bound("layer", dtype)
        follower, outputs = self._followed(plan, candidate, wide, bound)
        check = _outputs_check(pair.name, truth, outputs, dtype, self._bound("output", dtype))
        if wide and not check.agrees and not check.undecided and check.distance != float("inf"):
            floor = self._floor(plan, candidate)
            if floor:
                check = _outputs_check(pair.name, truth, outputs, dtype, self._bound("output", dtype), floor)
                bound = max(bound, noise.MARGIN * floor)
                follower, _ = self._followed(plan, candidate, wide, bound)
        pair.checks.append(check)
        self._layers(pair, plan, follower, dtype, bound, check)
        return check

    def _followed(self, plan: Plan, candidate: Subject, wide: str, bound: float) -> tuple[Follower, Outputs]:
        """A pass of the candidate, each call of a layer held against the reference's."""
        _, calls = self._passes[wide or self.reference.native_dtype]
        permuted = {paths.split(m.target)[0]: m.permutation for m in plan.moves if m.permutation is not None}
        follower = Follower(calls, dict(plan.layers), wide or self._coarser(candidate), bound, permuted)
        return follower, candidate.run(wide or candidate.native_dtype, follower.on_call)

    def _floor(self, plan: Plan, candidate: Subject) -> float:
        """How far rounding alone moves the outputs of either model in float64, in eps of it; nothing where the user has
        said how far they may be from each other.

        What parameters are computed from, as the sum of two biases, was rounded to the candidate's dtype.
        """
        if not self._is_stated("output"):
            return 0.0
        rounded = _rounded(plan, self.reference.manifest, candidate.manifest)
        moves = self.reference.response_to(rounded, EPS[candidate.native_dtype] / 2) if rounded else 0.0
        return max(self._reference_floor, candidate.noise_floor(), moves) / EPS["float64"]

    def _layers(self, pair: Pair, plan: Plan, follower: Follower, dtype: str, bound: float, outputs: Check) -> None:
        """The check of the layers on the way, and where the two first part."""
        divergence = follower.divergence(outputs.agrees or outputs.undecided)
        layers = pair.layers[""] = follower.layers()
        eps = follower.largest_distance()
        pair.checks.append(Check("", f"{len(layers)} layers on the way", pair.name, eps <= bound, dtype, eps, bound))
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


def _settle_layers(pair: Pair) -> None:
    """Outputs and gradients decide: where they agree, layers that differ on the way are shown, and do not overrule
    them. One model may have an activation, a flattening or a scale inside a layer that the other has beside it."""
    decisive = [check for check in pair.checks if check.check in ("outputs", "gradients", "values")]
    layers = next((i for i, check in enumerate(pair.checks) if check.check.endswith("layers on the way")), None)
    if layers is None or pair.checks[layers].agrees or not all(check.agrees for check in decisive):
        return
    if not any(check.check == "gradients" for check in decisive):
        return
    pair.checks[layers] = replace(
        pair.checks[layers],
        agrees=True,
        bound=None,
        expected="outputs and gradients agree: layers are cut otherwise",
    )
    pair.parted, pair.hints = "", []
    pair.first.clear()


def _rounded(plan: Plan, reference: Manifest, candidate: Manifest) -> list[str]:
    """The reference's parameters that a target is computed from, and not only put together of: it has fewer numbers."""
    sizes, targets = ({n: math.prod(e.spec.shape) for n, e in m.entries().items()} for m in (reference, candidate))
    computed = (m for m in plan.moves if len(m.sources) > 1 and m.target in targets)
    return [n for m in computed if targets[m.target] < sum(sizes[n] for n in m.sources) for n in m.sources]


def _in_float64(truth: np.ndarray, value: np.ndarray) -> str:
    return "float64"


def _outputs_check(
    name: str, truth: Outputs, outputs: Outputs, dtype: str, bound: float, floor: float | None = None
) -> Check:
    """The verdict on outputs. With a noise floor they may be some times it from each other."""
    eps, where, undecided = outputs_distance(truth, outputs, lambda a, b: dtype)
    if undecided:
        return Check("", "outputs", name, False, detail=undecided, undecided=True)
    bound = bound if floor is None else max(bound, noise.MARGIN * floor)
    agrees = eps <= bound
    return Check("", "outputs", name, agrees, dtype, eps, bound, "" if agrees else where, floor=floor)


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
