"""Inputs by keyword, calls and outputs of a model's own, several inputs of a Functional model."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import errors
from multiparam.core.inputs import Inputs

torch = pytest.importorskip("torch")
linen = pytest.importorskip("flax.linen")
pytestmark = [pytest.mark.needs("torch", "jax"), pytest.mark.xdist_group("inputs")]
rng = np.random.default_rng(0)
X, MASK = rng.normal(size=(3, 4)).astype("float32"), np.array([1, 0, 1], "float32")
INPUTS = {"x": X, "mask": MASK}


class Ours(torch.nn.Module):
    """Its arguments stand in another order than the other's."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(4, 4)

    def forward(self, mask: Any = None, past: Any = None, x: Any = None, double: bool = False) -> Any:
        assert past is None
        return {"y": self.up(x) * mask[..., None] * (2 if double else 1), "other": x}


class Theirs(linen.Module):
    @linen.compact
    def __call__(self, x: Any, mask: Any, double: bool = False) -> Any:
        return {"y": linen.Dense(4, name="up")(x) * mask[..., None] * (2 if double else 1), "other": x}


class Alone(linen.Module):
    """Another signature, and another output."""

    @linen.compact
    def __call__(self, a: Any, b: Any) -> Any:
        return (None, linen.Dense(4, name="up")(a) * b[..., None])


def theirs() -> mp.Model:
    return mp.wrap(Theirs(), INPUTS, seed=0)


@pytest.mark.parametrize("options", [{}, {"double": True}])
def test_a_mapping_goes_by_keyword_everywhere(options: dict[str, Any]) -> None:
    inputs, ours = {**INPUTS, **options}, mp.wrap(Ours())
    report = mp.transfer(ours, theirs(), verify=inputs)
    assert report.agrees
    found = mp.compare({"torch": ours, "flax": theirs()}, inputs, sync="torch")
    assert found.agrees and {check.check for check in found.checks} >= {"outputs", "gradients"}
    truth = ours.native.up(torch.tensor(X)).detach().numpy() * MASK[:, None] * (2 if options else 1)
    np.testing.assert_allclose(ours.to_numpy(ours(**inputs)["y"]), truth, rtol=1e-6)
    assert [call.layer for call in ours.activations(**inputs)] == ["up"]


def test_models_that_are_given_natively_are_wrapped_on_them() -> None:
    found = mp.compare({"flax": Theirs(), "torch": Ours()}, INPUTS, sync="flax")
    assert found.agrees


def test_a_difference_is_seen() -> None:
    class Other(Ours):
        def forward(self, x: Any, mask: Any) -> Any:  # type: ignore[override]
            return {"y": self.up(x) * mask[..., None] * 1.01, "other": x}

    found = mp.compare({"torch": Ours(), "other": Other()}, INPUTS, sync="torch")
    assert not found.agrees


def test_an_objective_takes_a_mapping() -> None:
    def objective(net: mp.Model, inputs: Any, targets: Any) -> Any:
        return net.adapter.mse(net(**inputs)["y"], targets)

    models = {"torch": mp.wrap(Ours()), "flax": theirs()}
    found = mp.compare(models, INPUTS, targets=np.zeros((3, 4), "float32"), objective=objective, sync="torch", steps=2)
    assert found.agrees


def test_the_losses_take_a_mapping() -> None:
    class Plain(torch.nn.Linear):
        def forward(self, x: Any) -> Any:
            return super().forward(x)

    net = mp.wrap(Plain(4, 4))
    loss, _ = net.value_and_grad(mp.losses.mse)({"x": X}, np.zeros((3, 4), "float32"))
    assert float(loss) == pytest.approx(float((net.native(torch.tensor(X)) ** 2).mean().detach()))


def test_a_recording_keeps_the_keywords(tmp_path: Path) -> None:
    ours = mp.wrap(Ours())
    path = mp.record(tmp_path / "run.safetensors", {"net": ours}, INPUTS)
    net = theirs()
    mp.transfer(ours, net)
    assert mp.compare({"net": net}, against=path).agrees
    assert mp.compare({"net": net}, INPUTS, against=path).agrees
    with pytest.raises(errors.InvalidArgument, match="keeps arrays: 'double' is none"):
        mp.record(path, {"net": ours}, {**INPUTS, "double": True})


def test_calls_and_outputs_of_ones_own() -> None:
    call = {"alone": lambda net, batch: net(batch["x"], batch["mask"])}
    models = {"torch": mp.wrap(Ours()), "alone": mp.wrap(Alone(), X, MASK)}
    output: dict[str, Any] = {"torch": "y", "alone": 1}
    assert mp.compare(models, INPUTS, sync="torch", call=call, output=output).agrees
    output["alone"] = lambda given: 2 * given[1]
    found = mp.compare(models, INPUTS, call=call, output=output)
    assert not found.agrees and found.pairs[0].parted


REFUSED = {
    "torhc": ({"call": {"torhc": lambda net, batch: None}}, "names no model 'torhc'. Did you mean 'torch'"),
    "no mapping": ({"call": lambda net, batch: None}, "a mapping model -> function"),
    "no function": ({"call": {"torch": 3}}, "give a function of the model and a batch"),
    "no path": ({"output": 3.5}, "give a path, an index or a function"),
    "no such key": ({"output": "z"}, "There is no output 'z': at 'z' there is 'y', 'other'"),
    "no such part": ({"output": "y.logits.0"}, "at 'logits' there is a Tensor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_called(case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(errors.MultiparamError, match=message.replace("(", r"\(")):
        mp.compare({"torch": mp.wrap(Ours()), "flax": theirs()}, INPUTS, **options)


def test_inputs() -> None:
    assert Inputs.of(None) == () and Inputs.of(X)[0] is X and len(Inputs.of((X, MASK))) == 2
    inputs = Inputs.of({"x": 1.0, "mask": MASK, "n": 2})
    assert inputs.keywords == {"mask": MASK, "x": 1.0, "n": 2} and inputs.positional == () and len(inputs) == 1
    assert inputs.map(lambda a: a + 1).keywords["mask"].tolist() == [2, 1, 2]


# -- modes that are fields


class Field(linen.Module):
    training: bool = False

    def setup(self) -> None:
        off = not self.training
        self.net = linen.Sequential(
            [linen.Dense(8), linen.BatchNorm(off), linen.Dropout(0.5, deterministic=off), linen.Dense(2)]
        )

    def __call__(self, x: Any) -> Any:
        return self.net(x)


@pytest.mark.parametrize("training", [False, True])
def test_a_mode_that_is_a_field(training: bool) -> None:
    net = mp.wrap(Field(training=training), X, seed=0)
    assert (net.to_numpy(net(X)) == net.to_numpy(net(X))).all()
    before = net["net.1.running_mean"].numpy()
    step = net.value_and_grad(lambda net, x: (net(x) ** 2).mean())
    assert len({float(step(X)[0]) for _ in range(4)}) > 1
    assert np.abs(net["net.1.running_mean"].numpy() - before).max() > 0
    assert net.native.training is training


# -- Functional models of several inputs


def functional(keras: Any, how: str) -> Any:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    shared = keras.layers.Dense(4, name="shared")
    out = keras.layers.Dense(2, name="out")(keras.layers.Concatenate()([shared(a), shared(b)]))
    return keras.Model({"a": a, "b": b} if how == "dict" else [a, b], out)


class Twin(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.out = torch.nn.Linear(4, 4), torch.nn.Linear(8, 2)

    def forward(self, a: Any, b: Any) -> Any:
        return self.out(torch.cat([self.shared(a), self.shared(b)], 1))


@pytest.mark.needs("tensorflow", "tf_keras")
@pytest.mark.parametrize("how", ["list", "dict"])
@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_a_functional_model_of_several_inputs(package: str, how: str) -> None:
    keras = pytest.importorskip(package)
    native = functional(keras, how)
    b = X[::-1].copy()
    truth = np.asarray(native({"a": X, "b": b} if how == "dict" else [X, b]))
    net = mp.wrap(native)
    for given in ((X, b), {"a": X, "b": b}, {"b": b, "a": X}):
        output = net(**given) if isinstance(given, dict) else net(*given)
        np.testing.assert_allclose(mp.to_numpy(output), truth, rtol=1e-5)
        twin = mp.wrap(Twin())
        assert mp.transfer(net, twin, verify=given).agrees
        assert mp.compare({"keras": native, "torch": twin}, given).agrees
    for given in ([X, b], {"a": X, "b": b} if how == "dict" else [X, b]):  # as Keras' own users call it
        np.testing.assert_allclose(mp.to_numpy(net(given)), truth, rtol=1e-5)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"rtol_eps": -1}, "rtol_eps=-1 is no bound"),
        ({"rtol_eps": float("nan")}, "rtol_eps=nan is no bound"),
        ({"rtol_eps": {"output": "1"}}, "rtol_eps='1' is no bound"),
        ({"steps": -1}, "steps=-1 is no number of training steps"),
        ({"steps": 1.5}, "steps=1.5 is no number of training steps"),
        ({"steps": 1, "lr": float("nan")}, "lr=nan is no learning rate"),
        ({"steps": 1, "lr": -0.1}, "lr=-0.1 is no learning rate"),
        ({"layers": "wieght"}, "layers='wieght' fits no layer. There are: 'weight_layer'"),
        ({"layers": ["weight_layr"]}, "layers='weight_layr' fits no layer. Did you mean 'weight_layer'?"),
    ],
)
def test_numbers_and_globs_of_users_are_looked_at(options: dict[str, Any], words: str) -> None:
    models = {}
    for name in ("a", "b"):
        torch.manual_seed(0)
        models[name] = torch.nn.Sequential(OrderedDict(weight_layer=torch.nn.Linear(3, 2)))
    with pytest.raises(errors.InvalidArgument, match=re.escape(words)):
        mp.compare(models, np.ones((2, 3), "float32"), **options)
    assert mp.compare(models, np.ones((2, 3), "float32"), layers="weight*").agrees
