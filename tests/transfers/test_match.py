"""Which layer goes into which, on what evidence: names written differently, ranks, and what outputs prove."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multiparam as mp

torch = pytest.importorskip("torch")
N, L = torch.nn, torch.nn.Linear
X = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


class Named(N.Module):
    """Layers by name, run in the order given."""

    def __init__(self, *order: str, **layers: N.Module) -> None:
        super().__init__()
        self.order = order or tuple(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Any) -> Any:
        for name in self.order:
            x = torch.tanh(getattr(self, name)(x))
        return x


def named(*order: str, seed: int = 0, **layers: N.Module) -> mp.Model:
    net = mp.wrap(Named(*order, **layers))
    net.init(mp.init.normal(std=0.7), seed=seed)
    return net


# -- inside a pair


def test_a_linear_layer_is_a_convolution_of_one_position() -> None:
    source = mp.wrap(N.Sequential(N.Conv2d(4, 3, 1), N.Flatten()))
    target = mp.wrap(N.Sequential(L(4, 3)))
    for a, b, x in ((source, target, X[:, :, None, None]), (target, source, X)):
        a.init(mp.init.normal(std=1.0), seed=1)
        mp.transfer(a, b)
        other = X if x.ndim == 4 else X[:, :, None, None]
        np.testing.assert_allclose(mp.to_numpy(a(x)), mp.to_numpy(b(other)), rtol=1e-5)


# -- what outputs prove


def test_a_guess_is_proved_by_order_of_definition_or_of_execution() -> None:
    source = named("a", "b", "c", a=L(4, 4), b=L(4, 4), c=L(4, 4))
    for order in (("x", "y", "z"), ("z", "x", "y")):
        target = named(*order, x=L(4, 4), y=L(4, 4), z=L(4, 4), seed=9)
        with pytest.raises(mp.errors.TransferError, match="guesses"):
            mp.transfer(source, target)
        report = mp.transfer(source, target, verify=X)
        assert report.agrees and "proved by the outputs" in report.proved and not report.plan.guesses
        assert np.array_equal(target[f"{order[1]}.weight"].numpy(), source["b.weight"].numpy())
        np.testing.assert_array_equal(mp.to_numpy(source(X)), mp.to_numpy(target(X)))


@pytest.mark.parametrize("fails", [False, True])
def test_what_nothing_proves_leaves_the_target_as_it_was(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    source = named(a=L(4, 4), b=L(4, 4))
    target = named(x=L(4, 4), y=L(4, 4), seed=9)
    target.native.order = ("x", "y", "x")  # another function
    if fails:
        monkeypatch.setattr(target.native, "forward", lambda x: 1 / 0)
    before = {name: p.numpy().tobytes() for name, p in target.parameters().items()}
    with pytest.raises(mp.errors.DoesNotRun if fails else mp.errors.TransferError) as error:
        mp.transfer(source, target, verify=X)
    assert fails or "none of" in str(error.value)
    assert {name: p.numpy().tobytes() for name, p in target.parameters().items()} == before


def test_guesses_that_are_accepted_are_taken_and_judged() -> None:
    source, target = named(a=L(4, 4), b=L(4, 4)), named(x=L(4, 4), y=L(4, 4), seed=9)
    target.native.order = ("x", "y", "x")
    report = mp.transfer(source, target, accept_guesses=True, verify=X)
    assert not report.agrees and len(report.plan.guesses) == 4 and not report.proved


class Branches(N.Module):
    """Two branches, one of two layers; which runs first, and in which order they are defined, says ``order``."""

    def __init__(self, order: str, deep_first: bool) -> None:
        super().__init__()
        self.deep_first = deep_first
        for name in order:
            self.add_module(name, L(4, 4))

    def forward(self, x: Any) -> Any:
        single, first, second = (getattr(self, name) for name in ("abc" if hasattr(self, "a") else "xyz"))
        if self.deep_first:
            deep = second(torch.tanh(first(x)))
            return deep - single(x)
        alone = single(x)
        return second(torch.tanh(first(x))) - alone


@pytest.mark.parametrize("order", ["zyx", "yzx", "zxy"])
def test_what_no_order_tells_is_proved_layer_by_layer(order: str) -> None:
    source, target = mp.wrap(Branches("abc", False)), mp.wrap(Branches(order, True))
    source.init(mp.init.normal(std=0.7), seed=0)
    target.init(mp.init.normal(std=0.7), seed=1)
    report = mp.transfer(source, target, verify=X)
    assert report.agrees and not report.plan.guesses
    assert "layer by layer, by their inputs" in report.proved
    assert np.array_equal(target["x.weight"].numpy(), source["a.weight"].numpy())


def test_no_way_is_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = named(a=L(4, 4), b=L(4, 4)), named(x=L(4, 4), y=L(4, 4), seed=9)
    target.native.order = ("x", "y", "x")
    runs, forward = list[bytes](), source.native.forward
    monkeypatch.setattr(source.native, "forward", lambda x: [runs.append(b""), forward(x)][1])
    assert not mp.transfer(source, target, accept_guesses=True, verify=X).agrees
    # For the outputs, for the order of execution, for the layers' inputs, and for where they part.
    assert len(runs) == 4


def test_compare_takes_no_pair_that_nothing_proves() -> None:
    source, target = named(a=L(4, 4), b=L(4, 4)), named(x=L(4, 4), y=L(4, 4), seed=9)
    assert mp.compare({"one": source, "other": target}, X, sync="one").agrees
    target.native.order = ("x", "y", "x")
    with pytest.raises(mp.errors.TransferError, match="guesses"):
        mp.compare({"one": source, "other": target}, X, sync="one")


def test_weight_norm_has_one_name_whichever_version_of_pytorch_made_it() -> None:
    new = mp.wrap(N.Sequential(N.utils.parametrizations.weight_norm(L(4, 3))))
    old = {
        "0.weight_g": np.ones((3, 1), "float32"),
        "0.weight_v": np.full((3, 4), 2, "float32"),
        "0.bias": np.ones(3, "f4"),
    }
    plan = mp.plan(old, new)
    assert plan.complete and not plan.guesses and not plan.unused
    mp.transfer(old, new)
    assert new["0.parametrizations.weight.original1"].numpy().tolist() == old["0.weight_v"].tolist()
