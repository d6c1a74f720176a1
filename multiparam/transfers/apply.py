"""Carrying a plan out, and running both models afterwards to see whether they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import paths
from ..core.arrays import numpy_dtype
from ..core.group import store_of
from ..core.inputs import Inputs
from ..core.model import Model
from ..core.outputs import Outputs, OutputsDistance, as_it_is, named_arrays, outputs_distance
from ..core.parameter import give_memory, needed_block, require_memory, write, write_blocks
from ..core.plain_text import PlainText
from ..core.slots import Activation
from ..core.state import counters
from ..core.user_code import raising_does_not_run
from ..errors import InvalidArgument, TransferError
from .divergence import first_divergence, smaller_dtype
from .manifest import manifest_of
from .match import GUESS
from .plan import WHEN_IT_TRAINS, Plan, plan_manifests
from .plan import plan as make_plan
from .proof import Candidate, Snapshot, candidates, is_inferred, proven
from .ranking import by_pairs
from .rename import Rules
from .search import LayerSearch, Pairs

BOUND = 256.0  # eps of the output's dtype that verification allows, unless told otherwise
MOST_NAMED = 8  # names of what is left behind that a report lists; plan.unused has all
# A plan's problems in a sentence, with what lets them pass.
PROBLEMS: Mapping[str, str] = {
    "refused": "something is refused",
    "missing": "target parameters are missing (partial=True leaves them as they are)",
    "guesses": "there are guesses (accept_guesses=True takes them)",
}


@dataclass(frozen=True, repr=False)
class Report(PlainText):
    """What a transfer did.

    Attributes:
        plan: The plan that was carried out.
        distance: The largest difference of the outputs, in eps of their dtype, where it was verified, else None. Of
            outputs of two dtypes it is that of the smaller one.
        bound: The distance up to which outputs agree.
        proved: How what was guessed was proved by the outputs, and what was tried; empty where nothing was guessed.
        parted: The first layer, by its source and target name, whose outputs differ by more than ``bound``; empty where
            the models agree.
        undecided: Why the outputs could not be judged, as where every number is NaN; else empty.
    """

    plan: Plan
    distance: float | None = None
    bound: float = BOUND
    parted: str = ""
    proved: str = ""
    undecided: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the two models compute the same; of an unverified transfer nobody knows."""
        return self.distance is not None and self.distance <= self.bound

    def __str__(self) -> str:
        lines = [f"{len(self.plan.moves)} parameters and buffers transferred; optimizer state does not travel."]
        # What outputs that agree have shown to be one thing, written in two ways, is no difference.
        options = [text for text in self.plan.options if not self.agrees or text.endswith(WHEN_IT_TRAINS)]
        if self.plan.unused:
            lines.append(_left_behind(self.plan.unused))
        lines += [*self.plan.ties, *(f"Outputs will differ: {text}" for text in options)]
        if self.distance is not None:
            verdict = "the models agree" if self.agrees else "the models DISAGREE"
            lines.append(f"Verified: {verdict}, {self.distance:.3g} eps apart (bound {self.bound:g}).")
        if self.undecided:
            lines.append(f"Undecided whether the models agree: {self.undecided}.")
        if self.proved:
            lines.append(self.proved)
        if self.parted:
            lines.append(f"They part first at {self.parted}.")
        return "\n".join(lines)

    def __repr__(self) -> str:
        verified = "not verified" if self.distance is None else "agrees" if self.agrees else "DISAGREES"
        return f"<Report: {len(self.plan.moves)} moves, {'undecided' if self.undecided else verified}>"


def _left_behind(names: list[str]) -> str:
    """The sentence that names what the source has and the target has no place for."""
    return f"Left behind, nothing in the target takes them: {paths.some(names, MOST_NAMED)}."


def transfer(
    source: Any,
    target: Model,
    rules: Rules = None,
    *,
    partial: bool = False,
    accept_guesses: bool = False,
    cast: bool = False,
    verify: Any = None,
    bound: float = BOUND,
    materialise: bool = False,
) -> Report:
    """Write a source's weights and buffers into a model, by :func:`plan`.

    Everything is checked before anything is written; values are read and written one at a time. Inputs and outputs of
    four or more axes are brought into each model's order of channels.

    Args:
        source: A Model, the path of a weight file, an open one (:func:`multiparam.read`), or a mapping name -> array.
        target: The model to write into.
        rules: What the source's names are in the target: see :func:`plan`.
        partial: Whether to leave target parameters that nothing makes as they are.
        accept_guesses: Whether to take pairs that only order, kind and shape speak for, and inferred flattenings. With
            ``verify`` they need not be accepted: at most six ways are tried (three orders, each with and without the
            flattenings), and what agrees is taken.
        cast: Whether to convert to the target's dtypes.
        verify: Example inputs of the source (numpy; a tuple of several; a mapping by keyword): both models run on them
            afterwards, and the report says how far their outputs are from each other, and what proved the guesses.
        bound: The distance up to which they agree, in eps of the output's dtype. Where they do not, the report names
            the first layer that is farther off.
        materialise: Whether to give memory to a target made without, as :func:`multiparam.load` does.

    Returns:
        What was done, and with ``verify`` whether the models agree.

    Raises:
        TransferError: With the plan in its text, when the plan is not complete or has guesses that were neither
            accepted nor proved; the target is then unchanged.
        NoValues: The target has shapes only, unless ``materialise``.
        InvalidArgument: For a rule that fits nothing, or ``verify`` with a source that cannot be run.

    Example:
        >>> import torch
        >>> native = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> spec = mp.nn.Sequential(mp.nn.Linear(3), mp.nn.ReLU(), mp.nn.Linear(2))
        >>> net = mp.build(spec, np.ones((1, 4)), backend="jax")
        >>> report = mp.transfer(mp.wrap(native), net, verify=np.ones((2, 4), "float32"))
        >>> report.agrees
        True
    """
    if verify is not None and not isinstance(source, Model):
        raise InvalidArgument("Only a model can be run to verify a transfer; this source is a file or a state.")
    plan = make_plan(source, target, rules, cast=cast)
    _require_complete(plan, partial=partial, accept_guesses=accept_guesses or verify is not None)
    _require_values(plan, target, materialise)
    if verify is None:
        apply_plan(plan, target)
        return Report(plan, bound=bound)
    accepted = Accepted(partial, accept_guesses)
    return transfer_verified(plan, source, target, verify, rules, cast=cast, bound=bound, accepted=accepted)


def _require_complete(plan: Plan, *, partial: bool, accept_guesses: bool) -> None:
    counts = plan.problems(partial=partial, accept_guesses=accept_guesses)
    if counts:
        problems = ", ".join(PROBLEMS[problem] for problem in counts)
        raise TransferError(f"Nothing was transferred: {problems}.\n{plan}")


def _require_values(plan: Plan, target: Model, materialise: bool) -> None:
    """Give the target memory, or refuse to write where it has none."""
    written = [target[move.target] for move in plan.moves]
    if materialise:
        give_memory(written + counters(target.buffers()))
    require_memory(written)


def transfer_for_judging(source: Any, target: Model, rules: Rules = None) -> Report:
    """:func:`transfer` from what cannot run, into a model whose outputs are judged next: flattenings are taken as they
    are inferred, since the judge would see a wrong one, and pairs that are guesses are refused."""
    inferred = all(move.permutation for move in make_plan(source, target, rules).guesses)
    return transfer(source, target, rules, accept_guesses=inferred)


def apply_plan(plan: Plan, target: Model, tick: Callable[[str], None] = lambda name: None) -> None:
    """Write the moves of a plan in which nothing is wrong, one value at a time; ``tick`` is called after each.

    A process that holds a shard of a parameter makes that, and no more.
    """
    for move in plan.moves:
        p = target[move.target]
        if needed_block(p) is None:
            write(p, move.make().astype(numpy_dtype(p.dtype), copy=False))
        else:
            write_blocks(p, move.block)
        tick(move.target)


# -- whether both models compute the same


@dataclass(frozen=True)
class Accepted:
    """What a user lets pass: target parameters that nothing makes, and guesses that nothing proves."""

    partial: bool = False
    guesses: bool = False


def transfer_verified(
    plan: Plan,
    source: Model,
    target: Model,
    inputs: Any,
    rules: Rules = None,
    *,
    cast: bool = False,
    bound: float = BOUND,
    accepted: Accepted = Accepted(),
    tick: Callable[[str], None] = lambda name: None,
) -> Report:
    """Carry a plan out and run both models; where something in it is inferred, try the ways it can be until one agrees.

    Raises TransferError where guesses are neither proved nor accepted; the target has its own values again.
    """
    inputs = Inputs.of(inputs)
    if not is_inferred(plan):
        apply_plan(plan, target, tick)
        return verify_transfer(plan, source, target, inputs, bound)
    snapshot, trials = Snapshot(target, plan.moves), _Trials(source, target, inputs, bound, tick)
    try:
        for candidate in _candidates(source, target, inputs, rules, cast):
            if candidate.plan.problems(partial=accepted.partial, accept_guesses=True):
                continue
            if trials.agrees(candidate):
                return trials.report(candidate)
        if (by_layer := _layer_by_layer(plan, trials, rules, cast)) is not None:
            return trials.report(by_layer)
    except BaseException:
        snapshot.restore()
        raise
    if accepted.guesses or all(move.permutation for move in plan.guesses):
        apply_plan(plan, target)
        return verify_transfer(plan, source, target, inputs, bound, trials.first)
    snapshot.restore()
    ways = "; ".join(f"{how}: {distance:.3g} eps" for distance, how in trials.tried)
    raise TransferError(
        f"Nothing was transferred: there are guesses, and none of {len(trials.tried)} ways to take them gives the "
        f"source's outputs ({ways}; bound {bound:g}). Say rules=, or accept_guesses=True to see where they part.\n"
        f"{plan}"
    )


class _Trials:
    """Candidates carried out, and both models' outputs each time; the source runs once."""

    def __init__(self, source: Model, target: Model, inputs: Inputs, bound: float, tick: Callable[[str], None]) -> None:
        self.source, self.target, self.inputs, self.bound = source, target, inputs, bound
        self.tried: list[tuple[float, str]] = []
        self.first: OutputsDistance | None = None  # of the first candidate, which is the plan itself
        self._tick = tick
        self._expected = _outputs(source, source, inputs)

    def agrees(self, candidate: Candidate, carried_out: bool = False) -> bool:
        """Carry a candidate out, unless it is, and look whether the outputs agree."""
        if not carried_out:
            apply_plan(candidate.plan, self.target, self._tick)
        given = outputs_distance(self._expected, _outputs(self.source, self.target, self.inputs), smaller_dtype)
        self.first = self.first or given
        self.tried.append((given[0], candidate.how))
        return given[0] <= self.bound and not given[2]

    def report(self, candidate: Candidate) -> Report:
        """What was proved by the last trial."""
        proved = f"Guesses were proved by the outputs: {candidate.how} ({len(self.tried)} tried)."
        return Report(proven(candidate.plan), self.tried[-1][0], self.bound, proved=proved)


def _layer_by_layer(plan: Plan, trials: _Trials, rules: Rules, cast: bool) -> Candidate | None:
    """The candidate that the layers' inputs lead to; None where they lead to none that agrees."""
    if len([match for match in plan.matches if match.evidence == GUESS]) < 2:
        return None
    sides = manifest_of(trials.source), manifest_of(trials.target)

    def plan_of(pairs: Pairs) -> Plan:
        return plan_manifests(*sides, rules, cast=cast, ranking=by_pairs(pairs))

    def run(each: Plan) -> list[Activation]:
        apply_plan(each, trials.target)
        return _calls(trials.source, trials.target, trials.inputs)

    how = "layer by layer, by their inputs"
    source_calls = _calls(trials.source, trials.source, trials.inputs)
    search = LayerSearch(
        plan_of, run, lambda each: trials.agrees(Candidate(each, how), True), source_calls, trials.bound
    )
    proved = search.find({})
    return None if proved is None else Candidate(proved, f"{how}, in {search.passes} passes")


def _candidates(source: Model, target: Model, inputs: Inputs, rules: Rules, cast: bool) -> Iterator[Candidate]:
    def calls() -> tuple[list[str], list[str]]:
        return tuple([call.layer for call in _calls(source, net, inputs)] for net in (source, target))  # type: ignore[return-value]

    return candidates(manifest_of(source), manifest_of(target), rules, cast=cast, calls=calls)


def _calls(source: Model, net: Model, inputs: Inputs) -> list[Activation]:
    return inputs_for(source, net, inputs).call(net.activations)  # type: ignore[no-any-return]


def verify_transfer(
    plan: Plan,
    source: Model,
    target: Model,
    inputs: Inputs,
    bound: float = BOUND,
    known: OutputsDistance | None = None,
) -> Report:
    """Run both models after a transfer, and where they disagree find the first layer that does.

    ``known`` is their outputs' distance, where it has been measured.
    """
    eps, where, undecided = known or _output_distance(source, target, inputs)
    if undecided:
        return Report(plan, None, bound, undecided=undecided)
    if eps <= bound:
        return Report(plan, eps, bound)
    parted = f"the output, {where}" if where and eps == float("inf") else ""
    if not parted:
        source_calls, target_calls = _calls(source, source, inputs), _calls(source, target, inputs)
        parted = first_divergence(plan.layers, source_calls, target_calls, bound)
    return Report(plan, eps, bound, parted)


def _output_distance(source: Model, target: Model, inputs: Inputs) -> OutputsDistance:
    """Of both models' outputs, in eps of the smaller dtype of the two: the other one cannot know better than that."""
    return outputs_distance(_outputs(source, source, inputs), _outputs(source, target, inputs), smaller_dtype)


# -- inputs and outputs in each model's order of channels


def data_order(net: Model) -> str:
    """Where a model has the channels of its data: ``"first"`` or ``"last"``."""
    return store_of(net).host.data_order


def to_data_order(order: str | None, array: np.ndarray, back: bool = False) -> np.ndarray:
    """An array of four or more axes from channels first to a model's order, or back."""
    if array.ndim < 4 or order != "last":
        return array
    return np.moveaxis(array, -1, 1) if back else np.moveaxis(array, 1, -1)


def inputs_for(source: Model, net: Model, inputs: Inputs) -> Inputs:
    """Example inputs of the source as another model takes them."""
    source_order, order = data_order(source), data_order(net)

    def reordered(x: Any) -> np.ndarray:
        array = to_data_order(source_order, net.to_numpy(x), back=True)
        return np.ascontiguousarray(to_data_order(order, array))

    return inputs.map(reordered)


def outputs_in_order(order: str | None, output: Any, gather: Callable[[Any], Any] = as_it_is) -> Outputs:
    """What a model with this order of channels gave, with channels first; ``gather`` as for ``named_arrays``."""
    named = named_arrays(output, gather)
    return {n: leaf if isinstance(leaf, str) else to_data_order(order, leaf, back=True) for n, leaf in named.items()}


def _outputs(source: Model, net: Model, inputs: Inputs) -> Outputs:
    """What a model gives for the source's example inputs, with channels first."""
    with raising_does_not_run(f"{type(net.native).__name__} of {net.backend} does not run on the inputs of verify="):
        return outputs_in_order(data_order(net), inputs_for(source, net, inputs).call(net))
