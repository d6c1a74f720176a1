"""Layers that scan and vmap stack in one array are initialised a layer at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import errors
from multiparam.initializers import draw

jax = pytest.importorskip("jax")
linen, nnx = (pytest.importorskip(name) for name in ("flax.linen", "flax.nnx"))
pytestmark = [pytest.mark.needs("jax"), pytest.mark.xdist_group("jax")]
SPLIT = {"params": True}


class Cell(linen.Module):
    @linen.compact
    def __call__(self, x: Any, _: Any) -> Any:
        x = linen.Conv(6, (3, 3), name="conv")(x)
        x = linen.LayerNorm(name="norm")(x)
        own = self.param("own", linen.initializers.normal(), (6, 4))
        return linen.ConvTranspose(3, (2, 2), padding="SAME", name="up")(linen.Dense(6, name="dense")(x)) + own.sum(), _


class Scanned(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        scan = linen.scan(Cell, variable_axes={"params": 0}, split_rngs=SPLIT, length=8)
        x, _ = scan(name="layers")(x, None)
        vmap = linen.vmap(linen.Dense, variable_axes={"params": 1}, split_rngs=SPLIT, in_axes=None, axis_size=3)
        return vmap(5, name="heads")(x.mean((1, 2)))


def nnx_net() -> mp.Model:
    @nnx.split_rngs(splits=8)
    @nnx.vmap
    def layers(rngs: Any) -> Any:
        return nnx.List([nnx.Linear(4, 6, rngs=rngs), nnx.Conv(6, 3, (2, 2), rngs=rngs), nnx.LayerNorm(3, rngs=rngs)])

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.layers = layers(nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return x

    return mp.wrap(Net())


def linen_net() -> mp.Model:
    return mp.wrap(Scanned(), np.ones((2, 4, 4, 3), "float32"), seed=0)


SHAPES = {
    linen_net: {
        "layers.conv.weight": (8, 6, 3, 3, 3), "layers.dense.weight": (8, 6, 6), "layers.up.weight": (8, 6, 3, 2, 2),
        "layers.own": (8, 6, 4), "heads.weight": (3, 5, 3),
    },
    nnx_net: {"layers.0.weight": (8, 6, 4), "layers.1.weight": (8, 3, 6, 2, 2)},
}  # fmt: skip


@pytest.mark.parametrize("make", SHAPES)
def test_each_layer_is_drawn_by_itself(make: Any) -> None:
    net, functions = make(), (mp.init.orthogonal(), mp.init.kaiming_normal(mode="fan_out"), mp.init.xavier_uniform())
    for name, shape in SHAPES[make].items():
        assert net[name].shape == shape
        for function in functions:
            net.init(function, name, seed=3)
            values = net[name].numpy()
            for i, layer in enumerate(values):
                right = draw(function, shape[1:], seed=3, name=f"{name}[{i}]").astype("float32")
                np.testing.assert_array_equal(layer, right)
        assert len({layer.tobytes() for layer in values}) == shape[0]


@pytest.mark.parametrize("make", SHAPES)
def test_orthogonality_is_a_layers(make: Any) -> None:
    net = make()
    for name in SHAPES[make]:
        net.init(mp.init.orthogonal(), name)
        for layer in net[name].numpy().astype("float64"):
            rows = layer.reshape(layer.shape[0], -1)
            gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
            np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-6)


def test_a_function_gets_one_layers_shape_and_a_vector_per_layer_has_no_fans() -> None:
    net, shapes = nnx_net(), []

    def function(shape: Any, rng: np.random.Generator) -> Any:
        shapes.append(shape)
        return rng.normal(size=shape)

    net.init(function, "layers.0.weight")
    assert shapes == [(6, 4)] * 8
    for name in ("layers.0.bias", "layers.2.weight"):
        with pytest.raises(errors.ShapeError, match="at least two dimensions"):
            net.init(mp.init.xavier_normal(), name)


def test_a_native_initialiser_would_take_a_stack_for_one() -> None:
    net = linen_net()
    before = net.state_dict()
    with pytest.raises(errors.Unsupported, match=r"'layers.dense.weight' holds layers one behind another, \(8,\)"):
        net.init(jax.nn.initializers.lecun_normal(), "layers.dense.weight")
    assert all((value == before[name]).all() for name, value in net.state_dict().items())


def test_a_stacked_convolutions_weight_is_pytorchs_layer_by_layer() -> None:
    """Against the same cell run by itself on each layer's weights."""
    net = linen_net()
    kernel = np.asarray(net.variables["params"]["layers"]["conv"]["kernel"])
    np.testing.assert_array_equal(net["layers.conv.weight"].numpy(), kernel.transpose(0, 4, 3, 1, 2))
    up = np.asarray(net.variables["params"]["layers"]["up"]["kernel"])
    np.testing.assert_array_equal(net["layers.up.weight"].numpy(), up[:, ::-1, ::-1].transpose(0, 3, 4, 1, 2))
