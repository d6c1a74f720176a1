"""Layers by position, from the end and by slices, as the native nested list has them; and by native names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import nn

X = np.ones((2, 4), "float32")


@pytest.fixture
def net(backend: str) -> mp.Model:
    inner = nn.Sequential(nn.Linear(3), nn.ReLU())
    return mp.build(
        nn.Sequential(nn.Linear(4), nn.ReLU(), inner, nn.Residual(nn.Linear(3)), nn.Linear(2)), X, backend=backend
    )


def test_positions_count_from_the_end_over_all_children(net: mp.Model) -> None:
    assert net[-1]["weight"] is net["4.weight"] and net[-3][-2]["bias"] is net["2.0.bias"]
    with pytest.raises(mp.PositionError, match=r"'2' has no parameters at position -1. Positions with parameters: 0"):
        net[2][-1]  # an activation, as it is natively


def test_a_slice_is_a_group_whose_names_stay(net: mp.Model) -> None:
    assert list(net[0:3].parameters()) == ["0.weight", "0.bias", "2.0.weight", "2.0.bias"]
    assert list(net[-2:].state_dict()) == ["3.body.weight", "3.body.bias", "4.weight", "4.bias"]
    assert list(net[::4].parameters()) == ["0.weight", "0.bias", "4.weight", "4.bias"]
    assert list(net[:].parameters()) == list(net.parameters())


def test_positions_in_a_slice_are_those_of_the_slice(net: mp.Model) -> None:
    part = net[1:]
    assert part[1]["0.weight"] is net["2.0.weight"] and part[-1]["bias"] is net["4.bias"]
    assert part[1:3][-1]["body.bias"] is net["3.body.bias"]
    assert part.select("*.bias")[2]["body.bias"] is net["3.body.bias"]
    with pytest.raises(mp.PositionError, match=r"This slice of the model .* position 4. Positions with .*: 1, 2, 3\."):
        part[4]


def test_a_slice_takes_the_verbs_of_a_group(backend: str) -> None:
    net = mp.build(nn.Sequential(nn.Linear(4), nn.ReLU(), nn.Linear(2)), X, backend=backend)
    before = net["2.weight"].numpy()
    net[:2].init(mp.init.constant(3.0))
    assert np.all(net["0.bias"].numpy() == 3) and np.array_equal(net["2.weight"].numpy(), before)


@pytest.mark.needs("jax")
def test_lists_in_attributes_of_linen_modules() -> None:
    linen: Any = pytest.importorskip("flax.linen")

    class Net(linen.Module):  # type: ignore[misc]
        def setup(self) -> None:
            self.blocks = [linen.Dense(4), linen.Dense(4), linen.relu]
            self.head = linen.Dense(2)

        def __call__(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    net = mp.wrap(Net(), X)
    assert net[-1]["weight"] is net["head.weight"] and net[0][-2]["bias"] is net["blocks_1.bias"]
    assert list(net["blocks"][0:2].parameters()) == [
        f"blocks_{i}.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")
    ]


@pytest.mark.needs("jax")
def test_native_names_of_one_array_of_several_and_of_files() -> None:
    linen: Any = pytest.importorskip("flax.linen")
    from flax import nnx

    class Net(linen.Module):  # type: ignore[misc]
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.Dense(3, name="body")(x)
            return linen.LSTMCell(3, name="cell")((x, x), x)[1]

    net = mp.wrap(Net(), X)
    names = {"body.kernel": "body.weight", "params.body.kernel": "body.weight", "cell.ii.kernel": "cell.weight_ih"}
    for native, name in names.items():
        with pytest.raises(mp.ParameterNotFound, match=f"No parameter '{native}'. It is called '{name}' here."):
            net[native]
    rngs = nnx.Rngs(0)
    listed = mp.wrap(nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 2, rngs=rngs)))
    assert listed[-1]["weight"] is listed["2.weight"] and list(listed[:2].parameters()) == ["0.weight", "0.bias"]


@pytest.mark.needs("tensorflow")
def test_native_names_and_lists_of_keras() -> None:
    keras: Any = pytest.importorskip("keras")
    layers = keras.layers

    class Net(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = [layers.Dense(4), layers.BatchNormalization()], layers.Dense(2, name="top")

        def call(self, x: Any) -> Any:
            return self.head(self.blocks[1](self.blocks[0](x)))

    net = mp.wrap(Net(), X)
    assert net[-1]["weight"] is net["top.weight"] and net["blocks"][-1]["bias"] is net["blocks.1.bias"]
    names = {"top.kernel": "top.weight", "head.kernel": "top.weight", "blocks.1.moving_mean": "blocks.1.running_mean"}
    for native, name in names.items():
        with pytest.raises(mp.ParameterNotFound, match=f"It is called '{name}' here."):
            net[native]


def test_errors_that_messages_name_are_on_mp() -> None:
    assert {"ShardError", "NoGradient", "UnsupportedAttribute", "TieError"} <= set(dir(mp))
    kinds = [each for each in vars(mp.errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    assert all(getattr(mp, kind.__name__) is kind for kind in [*kinds, mp.MultiparamWarning])
