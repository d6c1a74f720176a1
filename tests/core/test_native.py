"""What is native in each framework: its own gradients, initialisers and compiled functions; users going on in it.

What all backends have in common is in the conformance kit, multiparam/testing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from support.native import GRADIENTS

import multiparam as mp
from multiparam import nn
from multiparam.testing.networks import X, Y, assert_close, deep, deep_spec, mlp
from multiparam.testing.reference import forward, gradients


@pytest.mark.parametrize("how", ["shared layer", "tied afterwards"])
def test_the_frameworks_own_gradients_are_the_sums_over_the_uses(backend: str, how: str) -> None:
    net = deep(backend, shared=how == "shared layer")
    if how == "tied afterwards":
        for leaf in ("weight", "bias"):
            net.tie(f"4.{leaf}", f"2.{leaf}")
    state = {name: p.numpy() for name, p in net.parameters(aliases=True).items()}
    apart = gradients(deep_spec(), state, X, Y)
    sums = [np.sum([apart[name] for name in p.names], axis=0) for p in net]
    truth = GRADIENTS[backend](net, X, Y)
    mine = sorted(float(np.abs(g).sum()) for g in sums)
    if len(truth) == 8:  # a framework without ties of its own gives each use its part
        mine = sorted(float(np.abs(g).sum()) for g in apart.values())
    np.testing.assert_allclose(sorted(float(np.abs(g).sum()) for g in truth.values()), mine, rtol=1e-11)


@pytest.mark.needs("tensorflow")
@pytest.mark.xdist_group("tensorflow")
def test_keras_predict_and_fit_are_not_stale_after_a_tie() -> None:
    net = deep("tensorflow")
    net.native.compile("sgd", "mse")
    net.native.predict(X, verbose=0)
    net.native.fit(X, Y, verbose=0)
    net.tie("4.weight", "2.weight")
    net["2.weight"][:] = 0
    np.testing.assert_allclose(net.native.predict(X, verbose=0), mp.to_numpy(net(X)), rtol=1e-12)


@pytest.mark.needs("mxnet")
@pytest.mark.xdist_group("mxnet")
def test_a_hybridized_block_is_not_stale_after_a_tie() -> None:
    import mxnet

    net = deep("mxnet")
    x = mxnet.nd.array(X, dtype="float64")
    net.native(x)
    net.tie("4.weight", "2.weight")
    state = {name: p.numpy() for name, p in net.parameters(aliases=True).items()}
    assert_close(net.native(x).asnumpy(), forward(deep_spec(), state, X))
    assert len(list(net.native.collect_params())) == 7


def test_native_initialisers_are_accepted(backend: str) -> None:
    net = mlp(backend, dtype="float32")
    constant, spread = NATIVE[backend]()
    net.init(constant, "0.weight", seed=1)
    np.testing.assert_array_equal(net["0.weight"].numpy(), 0.5)
    wide = mp.build(nn.Linear(100), np.ones((1, 300), "float32"), backend=backend)
    wide.init(spread, "weight", seed=1)
    first = wide["weight"].numpy()
    assert first.std() == pytest.approx(0.02, rel=0.05)
    wide.init(spread, "weight", seed=1)
    np.testing.assert_array_equal(wide["weight"].numpy(), first)
    wide.init(spread, "weight", seed=2)
    assert not np.array_equal(wide["weight"].numpy(), first)


def _torch() -> tuple[Any, Any]:
    import torch

    return partial(torch.nn.init.constant_, val=0.5), partial(torch.nn.init.normal_, std=0.02)


def _mxnet() -> tuple[Any, Any]:
    import mxnet

    return mxnet.init.Constant(0.5), mxnet.init.Normal(0.02)


def _jax() -> tuple[Any, Any]:
    import jax

    return jax.nn.initializers.constant(0.5), jax.nn.initializers.normal(0.02)


def _tensorflow() -> tuple[Any, Any]:
    import keras

    return keras.initializers.Constant(0.5), keras.initializers.RandomNormal(stddev=0.02)


NATIVE = {"torch": _torch, "mxnet": _mxnet, "jax": _jax, "tensorflow": _tensorflow}


@pytest.mark.needs("jax")
@pytest.mark.xdist_group("jax")
def test_a_native_initialiser_sees_the_native_layout() -> None:
    """LeCun's in JAX reads fan_in from the axis before the last, which is the input only in (in, out)."""
    import jax

    net = mp.build(nn.Linear(40), np.ones((1, 1000), "float32"), backend="jax")
    net.init(jax.nn.initializers.lecun_normal(), "weight")
    assert net["weight"].numpy().std() == pytest.approx(1 / np.sqrt(1000), rel=0.03)


@pytest.mark.parametrize("shared", [False, True], ids=["plain", "tied"])
def test_gradients_equal_the_frameworks_own(backend: str, shared: bool) -> None:
    net = deep(backend, shared=shared)
    loss, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    mine = {name: np.array(mp.to_numpy(g)) for name, g in grads.items()}
    truth = GRADIENTS[backend](net, X, Y)
    assert len(mine) == len(truth) == (6 if shared else 8)
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
    for g in truth.values():
        by_shape.setdefault(tuple(sorted(g.shape)), []).append(g)
    for name, g in mine.items():
        same = by_shape[tuple(sorted(g.shape))]
        assert any(_equal(g, native) or _equal(g, native.T) for native in same), name
    assert mp.to_numpy(loss).item() == pytest.approx(np.mean((mp.to_numpy(net(X)) - Y) ** 2), rel=1e-12)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-12, atol=1e-14))


@pytest.mark.needs("torch")
@pytest.mark.xdist_group("torch")
def test_a_users_backward_shows_up_in_torch() -> None:
    import torch

    net = mlp("torch")
    net.native(torch.tensor(X)).sum().backward()
    np.testing.assert_array_equal(mp.to_numpy(net["0.weight"].grad), net.native[0].weight.grad.numpy())
    net.native.zero_grad()
    assert net["0.weight"].grad is None


@pytest.mark.needs("mxnet")
@pytest.mark.xdist_group("mxnet")
def test_a_users_backward_shows_up_in_gluon_also_after_a_trainers_step() -> None:
    import mxnet

    net = mlp("mxnet")
    trainer = mxnet.gluon.Trainer(net.native.collect_params(), "sgd", {"learning_rate": 0.1})
    with mxnet.autograd.record():
        loss = net.native(mxnet.nd.array(X, dtype="float64")).sum()
    loss.backward()
    trainer.step(1)
    np.testing.assert_array_equal(mp.to_numpy(net["0.weight"].grad), net.native[0].weight.grad().asnumpy())


@pytest.mark.needs("torch")
def test_a_user_can_go_on_in_native_torch() -> None:
    import torch

    net = mp.build(nn.Sequential(nn.Linear(2), nn.ReLU()), np.ones((1, 3)), backend="torch")
    assert type(net.native) is torch.nn.Sequential and type(net.native[0]) is torch.nn.Linear


@pytest.mark.needs("mxnet")
def test_a_user_can_go_on_in_native_gluon() -> None:
    net = mp.build(nn.Sequential(nn.Linear(2), nn.ReLU()), np.ones((1, 3)), backend="mxnet")
    from mxnet.gluon import nn as gnn

    assert type(net.native) is gnn.HybridSequential and type(net.native[0]) is gnn.Dense


@pytest.mark.needs("jax")
def test_a_user_can_go_on_in_native_flax() -> None:
    x = np.ones((1, 3), "float32")
    net = mp.build(nn.Sequential(nn.Linear(2), nn.ReLU()), x, backend="jax")
    np.testing.assert_array_equal(net.native.apply(net.variables, x), net(x))
    assert set(net.variables["params"]) == {"layers_0"}


@pytest.mark.needs("tensorflow")
def test_a_user_can_go_on_in_native_keras(tmp_path: object) -> None:
    import keras

    shared = nn.Linear(3)
    x = np.ones((1, 3), "float32")
    net = mp.build(nn.Sequential(shared, nn.ReLU(), shared), x, backend="tensorflow")
    assert isinstance(net.native, keras.Model)
    path = f"{tmp_path}/model.keras"
    net.native.save(path)
    again = keras.models.load_model(path)
    np.testing.assert_array_equal(again(x), net(x))
    assert len(again.trainable_variables) == 2
