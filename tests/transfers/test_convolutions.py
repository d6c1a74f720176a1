"""Convolutions that are other layers: separable ones, and those over all positions. The truth is each model's pass."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import multiparam as mp

torch = pytest.importorskip("torch")
N = torch.nn
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(2, 3, 4, 5)).astype("float32")  # channels first


def filled(native: Any, *inputs: Any) -> mp.Model:
    net = mp.wrap(native, *inputs)
    net.init(mp.init.normal(std=0.5), seed=0)
    return net


# -- over all positions


def torch_linear() -> mp.Model:
    return filled(N.Sequential(N.Conv2d(3, 6, 1), N.Flatten(), N.Linear(6 * 20, 7)))


def torch_conv() -> mp.Model:
    return filled(N.Sequential(N.Conv2d(3, 6, 1), N.Conv2d(6, 7, (4, 5)), N.Flatten()))


def keras_linear() -> mp.Model:
    keras = pytest.importorskip("keras")
    layers = [keras.layers.Conv2D(6, 1), keras.layers.Flatten(), keras.layers.Dense(7)]
    return filled(keras.Sequential([keras.Input((4, 5, 3)), *layers]))


def keras_conv() -> mp.Model:
    keras = pytest.importorskip("keras")
    layers = [keras.layers.Conv2D(6, 1), keras.layers.Conv2D(7, (4, 5)), keras.layers.Flatten()]
    return filled(keras.Sequential([keras.Input((4, 5, 3)), *layers]))


FORMS = {"torch linear": torch_linear, "torch conv": torch_conv, "keras linear": keras_linear, "keras conv": keras_conv}


@pytest.mark.parametrize(("source", "target"), itertools.permutations(FORMS, 2))
def test_a_linear_layer_of_all_positions_is_a_convolution(source: str, target: str) -> None:
    a, b = FORMS[source](), FORMS[target]()
    b.init(mp.init.zeros())
    inputs = X if source.startswith("torch") else X.transpose(0, 2, 3, 1)
    if len({name.split()[1] for name in (source, target)}) == 2:
        with pytest.raises(mp.TransferError, match="guess"):  # how inputs were flattened is an inference
            mp.transfer(a, b)
        assert not any(p.numpy().any() for p in b.parameters().values())
    report = mp.transfer(a, b, verify=inputs)
    assert report.agrees and not report.plan.unused


def test_a_state_of_linear_layers_goes_into_convolutions() -> None:
    native = N.Linear(12, 7)
    state = {name: value.detach().numpy() for name, value in native.state_dict().items()}
    target = filled(N.Conv2d(3, 7, 2))
    mp.transfer(state, target, accept_guesses=True)
    x = GENERATOR.normal(size=(2, 3, 2, 2)).astype("float32")
    with torch.no_grad():
        expected = native(torch.from_numpy(x).flatten(1)).numpy()
    np.testing.assert_allclose(target(x).detach().numpy().reshape(2, 7), expected, rtol=1e-5, atol=1e-6)


# -- separable


def separable(multiplier: int, module: str = "keras") -> mp.Model:
    keras = pytest.importorskip(module)
    layer = keras.layers.SeparableConv2D(7, 3, strides=2, depth_multiplier=multiplier, padding="valid")
    return filled(keras.Sequential([keras.layers.InputLayer((8, 9, 3)), layer]))


def apart(multiplier: int) -> mp.Model:
    many = 3 * multiplier
    return filled(N.Sequential(N.Conv2d(3, many, 3, 2, groups=3, bias=False), N.Conv2d(many, 7, 1)))


@pytest.mark.parametrize("module", ["keras", "tf_keras"])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_separable_convolution_is_a_depthwise_and_a_pointwise_one(multiplier: int, module: str) -> None:
    net = separable(multiplier, module)
    assert list(net.parameters()) == ["0.depthwise.weight", "0.pointwise.weight", "0.pointwise.bias"]
    assert net[0][1]["bias"].shape == (7,) and net["0.depthwise.weight"].shape == (3 * multiplier, 1, 3, 3)
    x = GENERATOR.normal(size=(2, 3, 8, 9)).astype("float32")
    there = mp.transfer(net, apart(multiplier), verify=x.transpose(0, 2, 3, 1))
    assert there.agrees and not there.plan.guesses and not there.plan.options
    target = separable(multiplier, module)
    target.init(mp.init.zeros())
    back = mp.transfer(apart(multiplier), target, verify=x)
    assert back.agrees and not back.plan.guesses


def test_a_separable_convolution_is_compared_as_its_parts() -> None:
    x = GENERATOR.normal(size=(2, 3, 8, 9)).astype("float32")
    target = apart(2)
    mp.transfer(separable(2), target)
    other = target.native[0]
    target.native[0] = N.Conv2d(3, 6, 3, 2, padding=1, groups=3, bias=False)
    target.native[0].weight = other.weight
    report = mp.transfer(separable(2), target, verify=x.transpose(0, 2, 3, 1))
    assert not report.agrees and any("padding" in text for text in report.plan.options)


def test_gradients_of_a_separable_convolution_are_those_of_its_parts() -> None:
    net, target = separable(2), apart(2)
    mp.transfer(net, target)
    x = GENERATOR.normal(size=(2, 3, 8, 9)).astype("float32")
    report = mp.compare({"keras": net, "torch": target}, x.transpose(0, 2, 3, 1))
    assert report.agrees, str(report)


# -- slopes


@pytest.mark.parametrize("module", ["keras", "tf_keras"])
def test_slopes_that_all_positions_share_are_by_channel(module: str) -> None:
    keras = pytest.importorskip(module)
    layers = [keras.layers.Conv2D(6, 1), keras.layers.PReLU(shared_axes=(1, 2)), keras.layers.Conv2D(6, 1)]
    source = filled(keras.Sequential([keras.layers.InputLayer((4, 5, 3)), *layers]))
    target = filled(N.Sequential(N.Conv2d(3, 6, 1), N.PReLU(6), N.Conv2d(6, 6, 1)))
    assert source["1.weight"].shape == (6,)
    report = mp.transfer(source, target, verify=X.transpose(0, 2, 3, 1))
    assert report.agrees and not report.plan.guesses
    source.init(mp.init.zeros())
    assert mp.transfer(target, source, verify=X).agrees


def test_slopes_of_each_position_are_refused() -> None:
    keras = pytest.importorskip("keras")
    source = filled(keras.Sequential([keras.layers.InputLayer((4, 5, 3)), keras.layers.PReLU()]))
    assert source["0.weight"].shape == (4, 5, 3)
    assert not mp.plan(source, mp.wrap(N.Sequential(N.PReLU(3)))).complete
