"""One candidate judged against the reference: parameters, outputs, layers, gradients, and what training makes of them.

Where both can run in float64, that is where they must agree: there rounding is so small that a wrong eps shows. A plan,
as for a transfer, says which parameter and which layer of the candidate is which of the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np

from .. import paths
from ..core.distances import EPS, distance
from ..core.outputs import Outputs, outputs_distance
from ..errors import Unsupported
from ..transfers import plan as planning
from ..transfers.moves import Move
from ..transfers.plan import WHEN_IT_TRAINS, Plan
from ..transfers.rename import Rules
from . import by_plan, hints, noise
from .activations import LayerCalls
from .divergence import Follower
from .environments import possible_causes
from .exercise import unexercised
from .faults import Pairing, find_faults
from .judge import Check
from .placing import place
from .results import Pair
from .settling import settle_layers, settle_options, settle_zeros
from .subjects import NamedArrays, NotInFloat64, Subject

# In eps, unless the user has others: room for a deep network, and far below what a wrong eps costs in float64.
# "numeric" is of outputs in the models' own dtype, where those in float64 are judged, too.
BOUNDS: Mapping[str, float] = {"output": 1024, "layer": 1024, "gradient": 16384, "training": 65536, "numeric": 16384}
SHOWN = 4  # of the differences of one check
LOOSEST = 0.125  # the relative distance that no bound of ours goes beyond
STEEP = 16.0  # times more than outputs, gradients may be moved by rounding
HALF = ("float16", "bfloat16")
ROUNDING = 2.0**-6  # the relative distance beyond which a dtype's outputs are no rounding of those in float64
FAINT = 2.0**-10  # eps of their own dtype that a part which rounds leaves in the outputs of float64, at least
CLOSE = 16.0  # eps of their own dtype that outputs may always be apart


class ReferenceJudge:
    """A reference, and how far candidates may be from it. What it computes is computed once for all of them."""

    def __init__(self, reference: Subject, bounds: Mapping[str, float], histograms: bool) -> None:
        self.reference = reference
        self.bounds = bounds
        self.histograms = histograms
        self._rounded, self._rounded_away = "", list[str]()  # of the candidate's weights, in words and by name
        self._is_only_rounded = False
        self._passes: dict[str, tuple[Outputs, LayerCalls]] = {}  # by dtype

    @cached_property
    def _own_outputs(self) -> Outputs:
        """The reference's in its own dtype."""
        return self.reference.run(self.reference.native_dtype)

    @cached_property
    def _own_distance(self) -> float:
        """How far the reference's outputs in its own dtype are from those in float64, in eps of float64."""
        truth, _ = self._passes["float64"]
        native = self.reference.native_dtype
        return 0.0 if native == "float64" else outputs_distance(truth, self._own_outputs, _in_float64).eps

    @property
    def _own_rounding(self) -> float:
        return _in_eps_of(self.reference.native_dtype, self._own_distance)

    @cached_property
    def _reference_floor(self) -> float:
        return self.reference.noise_floor()

    @cached_property
    def _grads(self) -> NamedArrays:
        return self.reference.grads()

    @cached_property
    def _wide_grads(self) -> NamedArrays | None:
        return self.reference.grads_in_float64()

    @cached_property
    def _unexercised(self) -> dict[str, float]:
        """The share of each of the reference's parameters that the inputs do not exercise."""
        kinds = self.reference.manifest.kinds
        return unexercised(self._grads, {n: kinds[key] for n in self._grads if (key := paths.split(n)) in kinds})

    @cached_property
    def _trained(self) -> NamedArrays:
        return self.reference.trained()

    def judge(self, candidate: Subject, rules: Rules) -> Pair:
        """All checks of one candidate. Where they fail, and a flattening was inferred that the values know nothing of,
        the plan without it is tried, and taken if the outputs then agree."""
        pair = self._judge_as_planned(candidate, rules)
        failed = [check for check in pair.checks if not check.agrees]
        if failed and not pair.hints and all(check.distance is not None for check in failed):
            pair.hints = possible_causes(self.reference, candidate)  # nothing of the models explains it
        return pair

    def _judge_as_planned(self, candidate: Subject, rules: Rules) -> Pair:
        plan = planning.plan_manifests(self.reference.manifest, candidate.manifest, rules, cast=True)
        pair = self._judge_by(plan, candidate)
        if not pair.agrees and any(move.permutation for move in plan.moves):
            again = self._judge_by(_as_flattened(plan, candidate), candidate)
            if all(check.agrees for check in again.checks if check.check == "outputs"):
                return again
        return pair

    def _judge_by(self, plan: Plan, candidate: Subject) -> Pair:
        pair = Pair(candidate.name, plan=plan)
        self._judge_parameters(pair, plan, candidate)
        self._forward_passes(pair, plan, candidate)
        if not (plan.missing or plan.refused):
            self._gradients(pair, plan, candidate)
        if any(check.check == "outputs" for check in pair.checks):
            truth, _ = self._passes["float64" if "float64" in self._passes else self.reference.native_dtype]
            settle_zeros(pair, truth, self._grads_or_none())
        if self._is_stated("layer"):
            settle_layers(pair)
        if self._is_stated("output"):
            settle_options(pair)
        if candidate.task.steps:
            what, dtype = f"{candidate.task.steps} steps of {candidate.task.optimizer}", self._coarser(candidate)
            eps, where = by_plan.largest(plan.moves, self._trained, candidate.trained(), dtype)
            self._check(pair, what, "training", dtype, eps, where)
        return pair

    def _grads_or_none(self) -> NamedArrays:
        """The reference's gradients; none where there are none to be had."""
        try:
            return self._grads
        except Unsupported:
            return {}

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

    def _judge_parameters(self, pair: Pair, plan: Plan, candidate: Subject) -> None:
        manifest = candidate.manifest
        structure = [
            *(f"nothing makes {name}" for name in plan.missing),
            *(f"{name} goes nowhere" for name in plan.unused),
            *plan.refused,
        ]
        training = candidate.task.steps > 0
        options = [text for text in plan.options if training or not text.endswith(WHEN_IT_TRAINS)]
        differing = [
            m for m in plan.moves if not plan.refused and not by_plan.same_value(m.make(), manifest.read(m.target))
        ]
        ties = [*plan.ties, *by_plan.untied(plan, self.reference.manifest, manifest)]
        differences = {"structure": structure, "options": options, "ties": ties}
        if not plan.refused:  # else values cannot be made
            differences["values"] = [move.target for move in differing]
            self._take_exact_values(plan, candidate)
        for what, items in differences.items():
            more = "; ..." if len(items) > SHOWN else ""
            detail = "; ".join(items[:SHOWN]) + more
            expected = self._rounded if what == "values" and not items else ""
            pair.checks.append(
                Check("", what, pair.name, not items, detail=detail, items=tuple(items), expected=expected)
            )
        if self.histograms:
            pair.histograms += [
                by_plan.histogram(move, "value", move.make(), manifest.read(move.target)) for move in plan.moves
            ]
        causes = (hints.explain_values(move.make(), manifest.read(move.target), move) for move in differing)
        pair.hints += [cause for cause in causes if cause]

    def _take_exact_values(self, plan: Plan, candidate: Subject) -> None:
        """A candidate whose weights are the reference's but for rounding, computes with the reference's in float64."""
        moves = {m.target: m for m in plan.moves if by_plan.are_rounded(m.make(), candidate.manifest.read(m.target))}
        taken = candidate.take_exact_values({name: move.make for name, move in moves.items()}) if moves else True
        self._rounded = ""
        if moves:
            dtype = self._coarser(candidate)
            self._rounded = f"rounded to {dtype}" + ("; in float64 both have the reference's" if taken else "")
        self._rounded_away = [] if taken else [name for move in moves.values() for name in move.sources]
        unit = EPS[self._coarser(candidate)] / 2
        # Where nobody can say how much of a difference in float64 is theirs, it shows nothing.
        self._is_only_rounded = not taken and not self.reference.response_to(self._rounded_away, unit)

    def _forward_passes(self, pair: Pair, plan: Plan, candidate: Subject) -> None:
        """Outputs and layers: in float64 where both can be run in it, and then the outputs in their own dtype too."""
        wide = all("float64" in each.dtypes for each in (self.reference, candidate)) and not self._is_only_rounded
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
        outputs = candidate.run(candidate.native_dtype)
        eps, where, _ = outputs_distance(truth, outputs, lambda a, b: dtype)
        own = self._own_distance * EPS["float64"] / EPS[dtype]  # how far the reference itself rounds
        if in_float64.agrees and own == float("inf") and self._is_stated("numeric"):
            # Too large for its dtype, or whole numbers that rounding decides: then that is what it gives there.
            eps, where, _ = min(outputs_distance(self._own_outputs, outputs, lambda a, b: dtype), (eps, where, ""))
            if eps == float("inf"):
                check = Check("", "outputs", pair.name, True, dtype, expected=f"in {dtype} the reference is not itself")
                pair.checks.append(check)
                return
        bound = self._bound("numeric", dtype)
        if self._is_stated("numeric") and np.isfinite(own):
            # Where a part of float64's pass is none, it shows less, and the models' own numbers have to be close.
            floor = 0.0 if self._rounded_away else in_float64.floor or 0.0
            coarse = floor * EPS["float64"] > FAINT * EPS[dtype]
            bound = max(CLOSE, noise.MARGIN * own) if coarse else max(bound, noise.MARGIN * own)
            eps = max(eps, own)
            if in_float64.agrees and bound < eps < self._bound("numeric", dtype) * noise.MARGIN * CLOSE:
                # The candidate may compute in a narrower dtype than its weights have, which only it can show.
                bound = max(bound, min(noise.MARGIN * candidate.own_floor(), LOOSEST) / EPS[dtype])
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
        floor = 0.0
        if wide and not check.agrees and not check.undecided and check.distance != float("inf"):
            floor = self._floor(plan, candidate, outputs)
            if floor:
                check = _outputs_check(pair.name, truth, outputs, dtype, self._bound("output", dtype), floor)
                bound = max(bound, noise.MARGIN * floor)
                follower, _ = self._followed(plan, candidate, wide, bound)
        pair.checks.append(check)
        first = follower.divergence(check.agrees or check.undecided)
        faults = [] if first is None else [first]
        if not check.agrees and not check.undecided:
            calls, computed = self._passes[run_in][1], by_plan.computed_layers(plan, self.reference, candidate)
            exact, permuted = self._bound("layer", dtype), by_plan.permutations(plan)
            pairing = Pairing(calls, truth, dict(plan.layers), permuted, dtype, exact, wide, floor > 0, computed)
            faults = find_faults(self.reference, candidate, pairing) or faults
        place(pair, plan, follower, dtype, bound, faults)
        return check

    def _followed(self, plan: Plan, candidate: Subject, wide: str, bound: float) -> tuple[Follower, Outputs]:
        """A pass of the candidate, each call of a layer held against the reference's."""
        _, calls = self._passes[wide or self.reference.native_dtype]
        permuted = by_plan.permutations(plan)
        follower = Follower(calls, dict(plan.layers), wide or self._coarser(candidate), bound, permuted)
        return follower, candidate.run(wide or candidate.native_dtype, follower.on_call)

    def _floor(self, plan: Plan, candidate: Subject, outputs: Outputs | None = None) -> float:
        """How far rounding alone moves the outputs of either model in float64, in eps of it; nothing where the user has
        said how far they may be from each other.

        What parameters are computed from, as the sum of two biases, was rounded to the candidate's dtype.
        """
        if not self._is_stated("output"):
            return 0.0
        rounded = [*by_plan.computed(plan, self.reference.manifest, candidate.manifest), *self._rounded_away]
        moves = self.reference.response_to(rounded, EPS[self._coarser(candidate)] / 2) if rounded else 0.0
        floor = max(self._reference_floor, candidate.noise_floor(), moves) / EPS["float64"]
        # What the models round in their own dtype, in eps of it, they round in float64 too.
        rounding = max(self._own_rounding, self._rounding(candidate, outputs))
        return max(floor, rounding) if noise.MARGIN * rounding > self._bound("output", "float64") else floor

    def _rounding(self, candidate: Subject, outputs: Outputs | None) -> float:
        """How far a candidate's outputs in its own dtype are from those in float64, as a multiple of eps of that."""
        native = candidate.native_dtype
        if native == "float64" or outputs is None:
            return 0.0
        far = outputs_distance(outputs, candidate.run(native), _in_float64).eps
        return _in_eps_of(native, far)

    def _gradients(self, pair: Pair, plan: Plan, candidate: Subject) -> None:
        try:
            truth, grads = self._grads, candidate.grads()
        except Unsupported as error:
            pair.checks.append(Check("", "gradients", pair.name, True, expected=str(error)))
            return
        pair.unexercised = self._unexercised
        dtype = self._coarser(candidate)
        eps, where = by_plan.largest(plan.moves, truth, grads, dtype, by_plan.small(plan.moves, truth))
        bound = self._bound("gradient", dtype)
        # Half precision shows little, and more than its bound may be rounding, as under mixed precision.
        if self._is_stated("gradient") and (dtype in HALF or bound < eps < float("inf")):
            bound = self._gradients_in_float64(pair, plan, candidate, bound)
        pair.checks.append(
            Check("", "gradients", pair.name, eps <= bound, dtype, eps, bound, where if eps > bound else "")
        )
        if self.histograms:
            both = by_plan.both(plan.moves, truth, grads)
            pair.histograms += [by_plan.histogram(move, "gradient", *arrays) for move, *arrays in both]

    def _mixed_rounding(self, pair: Pair) -> float:
        """How far gradients may be where outputs agree in float64, and in the models' own dtype are farther than its
        bound since a part computes in a narrower one; 0.0 where none does."""
        outputs = [check for check in pair.checks if check.check == "outputs" and check.agrees]
        own = [c.distance or 0.0 for c in outputs if c.dtype not in ("", "float64")]
        wide = any(check.dtype == "float64" for check in outputs)
        return noise.MARGIN * max(own) if wide and own and max(own) > self._bound("numeric", "float64") else 0.0

    def _gradients_in_float64(self, pair: Pair, plan: Plan, candidate: Subject, bound: float) -> float:
        """The check of gradients in float64, where both have them, and how far they may then be in their own dtype."""
        truth, grads = self._wide_grads, candidate.grads_in_float64()
        if truth is None or grads is None:
            return max(bound, self._mixed_rounding(pair))
        eps, where = by_plan.largest(plan.moves, truth, grads, "float64", by_plan.small(plan.moves, truth))
        wide = self._bound("gradient", "float64")
        floor = self._floor(plan, candidate) if wide < eps < float("inf") else 0.0
        wide = max(wide, STEEP * noise.MARGIN * floor)
        agrees = eps <= wide
        pair.checks.append(
            Check(
                "", "gradients", pair.name, agrees, "float64", eps, wide, "" if agrees else where, floor=floor or None
            )
        )
        both, least = {*truth} & {*self._grads}, by_plan.small(plan.moves, truth)
        rounding = (distance(self._grads[name], truth[name], self._coarser(candidate), least) for name in both)
        # The candidate may be the one that rounds, as under a policy of mixed precision: as much as its outputs do.
        outputs = (c.distance or 0.0 for c in pair.checks if c.check == "outputs" and c.dtype != "float64" and c.agrees)
        largest = max([*rounding, *outputs], default=0.0)
        return max(bound, noise.MARGIN * largest) if agrees else bound


def _in_eps_of(dtype: str, far: float) -> float:
    """A distance in eps of float64 as one in eps of another dtype; nothing where it is too far to be rounding."""
    return far * EPS["float64"] / EPS[dtype] if far * EPS["float64"] < ROUNDING else 0.0


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


def _as_flattened(plan: Plan, candidate: Subject) -> Plan:
    """The plan without a flattening that was inferred, where the values say that both sides flatten in one order."""

    def by_values(move: Move) -> Move:
        if move.plain is None:
            return move
        value = candidate.manifest.read(move.target)
        return (
            move.plain
            if not by_plan.same_value(move.make(), value) and by_plan.same_value(move.plain.make(), value)
            else move
        )

    return replace(plan, moves=[by_values(move) for move in plan.moves])
