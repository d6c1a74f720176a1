"""Where a pair parts, written into it: the check of the layers on the way, the places, and their causes."""

from __future__ import annotations

from collections.abc import Sequence

from ..transfers.plan import Plan
from .divergence import Divergence, Follower
from .judge import Check
from .results import Pair


def place(pair: Pair, plan: Plan, follower: Follower, dtype: str, bound: float, faults: Sequence[Divergence]) -> None:
    """Add the check of the layers on the way, and where the two part.

    Args:
        pair: What it is added to.
        plan: What goes where, and options that differ.
        follower: It has followed a pass of the candidate.
        dtype: In whose eps distances are.
        bound: How far layers may be apart.
        faults: Every fault that could be placed, or the first of the layers that differ.
    """
    layers = pair.layers[""] = follower.layers()
    eps = follower.largest_distance()
    pair.checks.append(Check("", f"{len(layers)} layers on the way", pair.name, eps <= bound, dtype, eps, bound))
    pair.dtype = dtype
    pair.faults = list(faults)
    for fault in faults:
        at = None if fault.call is None else follower.position(fault.call)
        name = "" if at is None else layers[at].name or "the model"
        causes = [*fault.hints, *(text for text in plan.options if fault.at_layer and text.startswith(f"{name}: "))]
        if fault is faults[0]:
            pair.parted = str(fault)
            pair.first.update({} if at is None else {"": at})
        else:
            causes = [text if text.startswith(f"{name}: ") else f"{name or 'at the end'}: {text}" for text in causes]
        pair.hints += [text for text in causes if text not in pair.hints]
