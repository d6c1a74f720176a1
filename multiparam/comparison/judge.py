"""Judge runs against each other: normwise distances in units of the dtype's eps, held under stated bounds.

Semantic equality is judged in float64, where frameworks must agree to rounding; numeric equality in float32, as
the distance to the reference's float64 result. ``distance = max|a - b| / max|b| / eps``: an elementwise relative
error would mean nothing where sums cancel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core.distances import distance
from .runs import NamedArrays, NetworkRun

# In eps. Measured on CPU (see the README); each bound leaves room for another machine's order of summation,
# and is far below what a wrong eps, padding or variance costs.
BOUNDS: Mapping[str, float] = {
    "output": 32,
    "gradient": 256,
    "training": 1024,
}


@dataclass(frozen=True)
class Check:
    """One candidate's verdict in one row of the table.

    Attributes:
        network: The network built in that it is of; empty for models of the user's.
        check: What is checked: ``"structure"``, ``"outputs"``, ...
        backend: The candidate's column: a backend's name, or a model's.
        agrees: The verdict.
        dtype: Whose eps the distance is in; empty where there is no distance.
        distance: ``max|a - b| / max|b|`` of the worst array, in eps of ``dtype``; None where things are equal or not.
        bound: How far it may be, in the same unit; None where it is shown and not judged.
        detail: What differs, where it disagrees or is not judged.
        items: The single differences of a check that has several.
        expected: Why it may differ: it then counts as agreeing.
        floor: How far rounding alone moves the outputs, in the same unit, where it was measured.
        undecided: Whether nothing could be told, as of outputs that are all NaN: it then does not agree.
    """

    network: str
    check: str
    backend: str
    agrees: bool
    dtype: str = ""
    distance: float | None = None
    bound: float | None = None
    detail: str = ""
    items: tuple[str, ...] = ()
    expected: str = ""
    floor: float | None = None
    undecided: bool = False


def json_number(distance: float | None) -> float | str | None:
    """A distance for JSON, which has no infinity."""
    return "inf" if distance == float("inf") else distance


def largest_distance(values: NamedArrays, truth: NamedArrays, dtype: str) -> tuple[float, str]:
    """The largest distance over named arrays, and the name it occurs at; infinite where names differ."""
    if values.keys() != truth.keys():
        return float("inf"), ", ".join(sorted(values.keys() ^ truth.keys()))
    distances = [(distance(values[name], truth[name], dtype), name) for name in truth]
    return max(distances, default=(0.0, ""))


def judge_runs(network: str, runs: Sequence[NetworkRun]) -> list[Check]:
    """All checks of one network. The first float64 run is the reference."""
    reference = next(run for run in runs if run.dtype == "float64")
    checks: list[Check] = []
    singles = {run.column: run for run in runs if run.dtype == "float32"}
    for column, run in singles.items():
        checks.append(_structure(network, column, run, reference))
        checks.append(_ties(network, column, run, reference))
        checks.append(_initial_values(network, column, run, reference))
    for run in runs:
        if run is not reference:
            checks.extend(_numbers(network, run, reference))
    return checks


def _structure(network: str, column: str, run: NetworkRun, reference: NetworkRun) -> Check:
    candidates = list(zip(run.names, run.shapes, run.kinds, strict=True))
    references = list(zip(reference.names, reference.shapes, reference.kinds, strict=True))
    detail = ""
    if candidates != references:
        first = next((pair for pair in zip(candidates, references, strict=False) if pair[0] != pair[1]), None)
        lengths = f"{len(candidates)} of {len(references)}"
        detail = f"{first[0]} where {reference.column} has {first[1]}" if first else lengths
    return Check(network, "structure", column, not detail, detail=detail)


def _ties(network: str, column: str, run: NetworkRun, reference: NetworkRun) -> Check:
    same = run.ties == reference.ties
    return Check(network, "ties", column, same, detail="" if same else f"{run.ties}, not {reference.ties}")


def _initial_values(network: str, column: str, run: NetworkRun, reference: NetworkRun) -> Check:
    """Bit for bit: seeds make the same numbers everywhere, which float32 then has without rounding."""
    differing = [
        name
        for name, value in reference.values.items()
        if name not in run.values or not np.array_equal(run.values[name].astype(np.float64), value)
    ]
    return Check(network, "initial values", column, not differing, detail=", ".join(differing))


def _numbers(network: str, run: NetworkRun, reference: NetworkRun) -> list[Check]:
    dtype = run.dtype

    def check(what: str, kind: str, largest: tuple[float, str]) -> Check:
        eps, name = largest
        bound = BOUNDS[kind]
        return Check(network, what, run.column, eps <= bound, dtype, eps, bound, name if eps > bound else "")

    checks = [
        check("output", "output", (distance(run.output, reference.output, dtype), "output")),
        check("gradients", "gradient", largest_distance(run.grads, reference.grads, dtype)),
    ]
    for name, truth in reference.trained.items():
        checks.append(check(name, "training", largest_distance(run.trained[name], truth, dtype)))
    if any(reference.buffers.values()):
        largest = max(largest_distance(run.buffers[name], truth, dtype) for name, truth in reference.buffers.items())
        checks.append(check("statistics", "training", largest))
        # A backend may declare that its statistics are of another formula: then they are shown, and not judged.
        reason = run.unsupported.get("exact running statistics")
        if reason:
            checks[-1] = replace(checks[-1], agrees=True, bound=None, expected=reason)
    return checks
