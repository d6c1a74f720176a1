"""Do the backends agree, and where do they first part? The main job: ``multiparam compare``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .judge import Check, judge
from .record import Run, record
from .zoo import ZOO

__all__ = ["ZOO", "Check", "Run", "compare_zoo", "judge", "record"]

TICKS = 4  # of progress per record: the look, and each optimizer


def compare_zoo(
    models: Sequence[str],
    backends: Sequence[str],
    *,
    steps: int,
    seed: int,
    tick: Callable[[str], None] = lambda what: None,
) -> list[Check]:
    """Build each model in each backend, in float64 and float32, and judge them; the first backend is the reference."""
    checks: list[Check] = []
    for model in models:
        runs = []
        for backend in backends:
            for dtype in ("float64", "float32"):
                what = f"{model} in {backend}, {dtype}"
                runs.append(
                    record(ZOO[model], backend, dtype, steps=steps, seed=seed, tick=lambda what=what: tick(what))  # type: ignore[misc]
                )
        checks.extend(judge(model, runs))
    return checks
