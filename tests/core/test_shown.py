"""What a REPL or a notebook shows, and what names lead to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multiparam as mp

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.needs("torch")]
X = np.ones((2, 4), "float32")


def model() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


def test_results_are_a_line_each() -> None:
    found = mp.compare({"a": model(), "b": model()}, X, sync="a")
    assert repr(found) == "<Comparison: b agrees with a>" and "outputs" in found._repr_html_()
    plan = mp.plan(mp.wrap(model()), mp.wrap(model()))
    assert repr(plan) == "<Plan: torch Sequential -> torch Sequential, 6 moves, complete>"
    part = mp.plan({"0.weight": np.ones((3, 4), "float32")}, mp.wrap(model()))
    assert "missing" in repr(part) and len(repr(part)) < 120
    report = mp.transfer(mp.wrap(model()), mp.wrap(model()))
    assert repr(report) == "<Report: 6 moves, not verified>"
    assert "-&gt;" in plan._repr_html_() and report._repr_html_().startswith("<pre>")


def test_a_model_says_how_many_buffers_it_has() -> None:
    assert repr(mp.wrap(model())) == "<Model torch Sequential: 4 parameters, 3 buffers>"


@pytest.mark.needs("jax")
def test_a_native_name_leads_to_the_one_here() -> None:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    net = mp.wrap(Net())
    with pytest.raises(mp.ParameterNotFound, match=r"No parameter 'head.kernel'. It is called 'head.weight' here."):
        net["head.kernel"]
    with pytest.raises(mp.ParameterNotFound, match=r"It is called 'weight' here."):
        net.group("head")["kernel"]


def test_frameworks_have_other_names() -> None:
    for alias, name in {"pytorch": "torch", "flax": "jax", "keras": "tensorflow", "gluon": "mxnet"}.items():
        if mp.backends()[name]:
            with mp.use(alias) as chosen:
                assert chosen.name == name
                assert mp.build(mp.nn.Linear(2), X).backend == name
    with pytest.raises(mp.BackendUnknown, match="Did you mean 'keras'"):
        mp.use("kears")


def test_errors_and_initialisers_are_found_where_they_are_looked_for() -> None:
    assert mp.TieError is mp.errors.TieError and "StateError" in dir(mp)
    assert all(callable(getattr(mp.init, name)) for name in dir(mp.init)) and "orthogonal" in dir(mp.init)
    assert "fans" not in dir(mp.init)
