"""The experiment behind the noise floor, over PyTorch, JAX, Keras and Gluon: 315 verdicts, all of them right."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from support import verdicts

NEEDS = {"torch": "torch", "linen": "jax", "keras": "tensorflow", "gluon": "mxnet"}
SETTINGS = [
    pytest.param(*setting, count, id="-".join(map(str, setting)), marks=pytest.mark.needs("torch", NEEDS[setting[0]]))
    for setting, count in verdicts.CANDIDATES.items()
]


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "dtype", "island", "count"), SETTINGS)
def test_every_verdict_is_right(framework: str, dtype: str, island: bool, count: int) -> None:
    if framework == "keras":
        pytest.importorskip("keras")
    found = list(verdicts.judged(framework, dtype, island, range(count)))
    assert [each.report for each in found if not each.right] == []


@pytest.mark.needs("torch")
@pytest.mark.parametrize("island", [False, True])
def test_verdicts_of_other_weights_are_right(island: bool) -> None:
    found: list[Any] = list(verdicts.judged("torch", "float32", island, range(99, 100)))
    assert [each.report for each in found if not each.right] == [] and len(found) == len(verdicts.CASES)


def test_there_are_three_hundred() -> None:
    assert len(verdicts.CASES) * sum(verdicts.CANDIDATES.values()) >= 300
