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
from .runs import Arrays, Run

# In eps. Measured on CPU (see the README); each bound leaves room for another machine's order of summation,
# and is far below what a wrong eps, padding or variance costs.
BOUNDS: Mapping[str, float] = {
    "output": 32,
    "gradient": 256,
    "training": 1024,
}


@dataclass(frozen=True)
class Check:
    """One backend's verdict in one row of the table."""

    network: str  # one of those built in, or nothing
    check: str
    backend: str
    agrees: bool
    dtype: str = ""
    distance: float | None = None  # in eps; None where things are equal or not
    bound: float | None = None
    detail: str = ""  # what was found, where it disagrees or is not judged
    items: tuple[str, ...] = ()  # the single differences of a check that has several
    expected: str = ""  # why it may differ: it then counts as agreeing


def plain(distance: float | None) -> float | str | None:
    """A distance for JSON, which has no infinity."""
    return "inf" if distance == float("inf") else distance


def worst(values: Arrays, truth: Arrays, dtype: str) -> tuple[float, str]:
    """The largest distance over named arrays, and the name it occurs at; infinite where names differ."""
    if values.keys() != truth.keys():
        return float("inf"), ", ".join(sorted(values.keys() ^ truth.keys()))
    found = [(distance(values[name], truth[name], dtype), name) for name in truth]
    return max(found, default=(0.0, ""))


def judge(model: str, runs: Sequence[Run]) -> list[Check]:
    """All checks of one model. The first float64 run is the reference."""
    reference = next(run for run in runs if run.dtype == "float64")
    checks: list[Check] = []
    singles = {run.column: run for run in runs if run.dtype == "float32"}
    for backend, run in singles.items():
        checks.append(_structure(model, backend, run, reference))
        checks.append(_ties(model, backend, run, reference))
        checks.append(_bits(model, backend, run, reference))
    for run in runs:
        if run is not reference:
            checks.extend(_numbers(model, run, reference))
    return checks


def _structure(model: str, backend: str, run: Run, reference: Run) -> Check:
    mine = list(zip(run.names, run.shapes, run.kinds, strict=True))
    theirs = list(zip(reference.names, reference.shapes, reference.kinds, strict=True))
    detail = ""
    if mine != theirs:
        first = next((pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1]), None)
        detail = f"{first[0]} where {reference.column} has {first[1]}" if first else f"{len(mine)} of {len(theirs)}"
    return Check(model, "structure", backend, not detail, detail=detail)


def _ties(model: str, backend: str, run: Run, reference: Run) -> Check:
    same = run.ties == reference.ties
    return Check(model, "ties", backend, same, detail="" if same else f"{run.ties}, not {reference.ties}")


def _bits(model: str, backend: str, run: Run, reference: Run) -> Check:
    wrong = [
        name
        for name, value in reference.values.items()
        if name not in run.values or not np.array_equal(run.values[name].astype(np.float64), value)
    ]
    return Check(model, "initial values", backend, not wrong, detail=", ".join(wrong))


def _numbers(model: str, run: Run, reference: Run) -> list[Check]:
    dtype = run.dtype

    def check(what: str, kind: str, found: tuple[float, str]) -> Check:
        far, where = found
        bound = BOUNDS[kind]
        return Check(model, what, run.column, far <= bound, dtype, far, bound, where if far > bound else "")

    checks = [
        check("output", "output", (distance(run.output, reference.output, dtype), "output")),
        check("gradients", "gradient", worst(run.grads, reference.grads, dtype)),
    ]
    for name, truth in reference.trained.items():
        checks.append(check(name, "training", worst(run.trained[name], truth, dtype)))
    if any(reference.buffers.values()):
        found = max(worst(run.buffers[name], truth, dtype) for name, truth in reference.buffers.items())
        checks.append(check("statistics", "training", found))
        reason = run.unsupported.get("exact running statistics")
        if reason:
            checks[-1] = replace(checks[-1], agrees=True, bound=None, expected=reason)
    return checks
