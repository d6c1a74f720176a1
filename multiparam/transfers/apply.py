"""Carrying a plan out, and running both models afterwards to see whether they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.arrays import numpy_dtype
from ..core.group import store_of
from ..core.model import Model
from ..core.outputs import Outputs, OutputsDistance, named_arrays, outputs_distance
from ..core.parameter import write
from ..core.slots import Activation
from ..errors import InvalidArgument, TransferError
from .divergence import first_divergence, smaller_dtype
from .manifest import manifest_of
from .plan import WHEN_IT_TRAINS, Plan
from .plan import plan as make_plan
from .proof import Candidate, Snapshot, candidates, is_inferred, proven
from .rename import Rules

BOUND = 256.0  # eps of the output's dtype that verification allows, unless told otherwise
# A plan's problems in a sentence, with what lets them pass.
PROBLEMS: Mapping[str, str] = {
    "refused": "something is refused",
    "missing": "target parameters are missing (partial=True leaves them as they are)",
    "guesses": "there are guesses (accept_guesses=True takes them)",
}


@dataclass(frozen=True)
class Report:
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
        verify: Example inputs of the source (numpy; a tuple where there are several): both models run on them
            afterwards, and the report says how far their outputs are from each other, and what proved the guesses.
        bound: The distance up to which they agree, in eps of the output's dtype. Where they do not, the report names
            the first layer that is farther off.

    Returns:
        What was done, and with ``verify`` whether the models agree.

    Raises:
        TransferError: With the plan in its text, when the plan is not complete or has guesses that were neither
            accepted nor proved; the target is then unchanged.
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
    counts = plan.problems(partial=partial, accept_guesses=accept_guesses or verify is not None)
    if counts:
        problems = ", ".join(PROBLEMS[problem] for problem in counts)
        raise TransferError(f"Nothing was transferred: {problems}.\n{plan}")
    if verify is None:
        apply_plan(plan, target)
        return Report(plan, bound=bound)
    inputs = verify if isinstance(verify, tuple) else (verify,)
    accepted = Accepted(partial=partial, guesses=accept_guesses)
    return transfer_verified(plan, source, target, inputs, rules, cast=cast, bound=bound, accepted=accepted)


def transfer_for_judging(source: Any, target: Model, rules: Rules = None) -> Report:
    """:func:`transfer` from what cannot run, into a model whose outputs are judged next: flattenings are taken as they
    are inferred, since the judge would see a wrong one, and pairs that are guesses are refused."""
    inferred = all(move.permutation for move in make_plan(source, target, rules).guesses)
    return transfer(source, target, rules, accept_guesses=inferred)


def apply_plan(plan: Plan, target: Model, tick: Callable[[str], None] = lambda name: None) -> None:
    """Write the moves of a plan in which nothing is wrong, one value at a time; ``tick`` is called after each."""
    for move in plan.moves:
        p = target[move.target]
        write(p, move.make().astype(numpy_dtype(p.dtype), copy=False))
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
    inputs: tuple[Any, ...],
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
    if not is_inferred(plan):
        apply_plan(plan, target, tick)
        return verify_transfer(plan, source, target, inputs, bound)
    snapshot, tried = Snapshot(target, plan.moves), list[tuple[float, str]]()
    try:
        for candidate in _candidates(source, target, inputs, rules, cast):
            if candidate.plan.problems(partial=accepted.partial, accept_guesses=True):
                continue
            apply_plan(candidate.plan, target, tick)
            distance, _, undecided = _output_distance(source, target, inputs)
            tried.append((distance, candidate.how))
            if distance <= bound and not undecided:
                proved = f"Guesses were proved by the outputs: {candidate.how} ({len(tried)} tried)."
                return Report(proven(candidate.plan), distance, bound, proved=proved)
    except BaseException:
        snapshot.restore()
        raise
    if accepted.guesses or all(move.permutation for move in plan.guesses):
        apply_plan(plan, target)
        return verify_transfer(plan, source, target, inputs, bound)
    snapshot.restore()
    ways = "; ".join(f"{how}: {distance:.3g} eps" for distance, how in tried)
    raise TransferError(
        f"Nothing was transferred: there are guesses, and none of {len(tried)} ways to take them gives the source's "
        f"outputs ({ways}; bound {bound:g}). Say rules=, or accept_guesses=True to see where they part.\n{plan}"
    )


def _candidates(source: Model, target: Model, inputs: tuple[Any, ...], rules: Rules, cast: bool) -> Iterator[Candidate]:
    def calls() -> tuple[list[str], list[str]]:
        return tuple([call.layer for call in _calls(source, net, inputs)] for net in (source, target))  # type: ignore[return-value]

    return candidates(manifest_of(source), manifest_of(target), rules, cast=cast, calls=calls)


def _calls(source: Model, net: Model, inputs: tuple[Any, ...]) -> list[Activation]:
    return net.activations(*inputs_for(source, net, inputs))


def verify_transfer(plan: Plan, source: Model, target: Model, inputs: tuple[Any, ...], bound: float = BOUND) -> Report:
    """Run both models after a transfer, and where they disagree find the first layer that does."""
    eps, where, undecided = _output_distance(source, target, inputs)
    if undecided:
        return Report(plan, None, bound, undecided=undecided)
    if eps <= bound:
        return Report(plan, eps, bound)
    parted = f"the output, {where}" if where and eps == float("inf") else ""
    if not parted:
        source_calls, target_calls = _calls(source, source, inputs), _calls(source, target, inputs)
        parted = first_divergence(plan.layers, source_calls, target_calls, bound)
    return Report(plan, eps, bound, parted)


def _output_distance(source: Model, target: Model, inputs: tuple[Any, ...]) -> OutputsDistance:
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


def inputs_for(source: Model, net: Model, inputs: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
    """Example inputs of the source as another model takes them."""
    source_order, order = data_order(source), data_order(net)
    arrays = [to_data_order(source_order, net.to_numpy(x), back=True) for x in inputs]
    return tuple(np.ascontiguousarray(to_data_order(order, array)) for array in arrays)


def outputs_in_order(order: str | None, output: Any) -> Outputs:
    """What a model with this order of channels gave, with channels first."""
    named = named_arrays(output)
    return {n: leaf if isinstance(leaf, str) else to_data_order(order, leaf, back=True) for n, leaf in named.items()}


def _outputs(source: Model, net: Model, inputs: tuple[Any, ...]) -> Outputs:
    """What a model gives for the source's example inputs, with channels first."""
    return outputs_in_order(data_order(net), net(*inputs_for(source, net, inputs)))
