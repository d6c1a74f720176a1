"""Native training of Flax models leaves alone what is frozen, by the mask; the first freeze says that it is needed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import errors

jax = pytest.importorskip("jax")
linen, nnx, optax = (pytest.importorskip(name) for name in ("flax.linen", "flax.nnx", "optax"))
pytestmark = [pytest.mark.needs("jax"), pytest.mark.xdist_group("jax")]
X = np.ones((2, 4), "float32")


def masked(mask: Any) -> Any:
    return optax.multi_transform({True: optax.sgd(0.1), False: optax.set_to_zero()}, mask)


class Net(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.a, self.bn = nnx.Linear(4, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(3, 3, rngs=rngs)])

    def __call__(self, x: Any) -> Any:
        return self.rest[0](self.bn(self.a(x)))


def moved(net: mp.Model, before: dict[str, np.ndarray]) -> set[str]:
    return {name for name, p in net.parameters().items() if (p.numpy() != before[name]).any()}


def test_nnx() -> None:
    native = Net()
    net = mp.wrap(native)
    with pytest.warns(mp.MultiparamWarning, match=r"Native training does not know.*net\.trainable_mask\(\)"):
        net.freeze("a.weight")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        net.freeze("rest.0.bias")
    before = net.state_dict()
    optimizer = nnx.Optimizer(native, masked(net.trainable_mask()), wrt=nnx.Param)
    X2 = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    optimizer.update(native, nnx.grad(lambda model: ((model(X2) - 1) ** 3).mean())(native))
    assert moved(net, before) & {"a.weight", "rest.0.bias"} == set() and "rest.0.weight" in moved(net, before)


def test_linen() -> None:
    class Two(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(3, name="b")(linen.Dense(3, name="a")(x))

    variables = Two().init(jax.random.key(0), X)
    net = mp.wrap(Two(), X, variables=variables)
    with pytest.warns(mp.MultiparamWarning):
        net.freeze("a.*")
    assert net.trainable_mask() == {"a": {"bias": False, "kernel": False}, "b": {"bias": True, "kernel": True}}
    params, tx = net.variables["params"], masked(net.trainable_mask())
    grads = jax.grad(lambda params: (Two().apply({"params": params}, X) ** 2).mean())(params)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert not np.any(updates["a"]["kernel"]) and np.any(updates["b"]["kernel"])


@pytest.mark.needs("torch")
def test_where_flags_are_in_the_model() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(errors.UnsupportedAttribute, match="frozen is so in the model itself"):
        mp.wrap(torch.nn.Linear(2, 2)).trainable_mask()
