"""What was measured of frozen parameters and buffers, and of initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.flavours import in_framework
from support.small_models import (
    FLAVOURS,
    Make,
    X,
    Y,
    every_flavour,
    keras_net,
    mxnet_net,
    net_of_keras,
    tf_keras_net,
    torch_net,
)

import multiparam as mp

# -- frozen


@every_flavour
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_a_frozen_parameter_does_not_move_by_a_single_bit(make: Make, name: str) -> None:
    """Frozen: optax.masked passes unmasked gradients through; the TF tape answers for frozen sources it is asked."""
    net = make()
    net.init(mp.init.normal(), seed=1)
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer(name, lr=0.1)
    step(X, Y)
    opt.step()
    frozen = {"0.weight", "0.bias" if make is tf_keras_net else "1.bias"}  # tf_keras freezes whole layers
    net.freeze(*frozen)
    before = net.state_dict()
    for _ in range(3):
        step(X, Y)
        opt.step()
    moved = {n for n, value in net.state_dict().items() if not np.array_equal(value, before[n])}
    assert moved == set(before) - frozen
    assert [n for n, p in net.parameters().items() if p.grad is None] == [n for n in before if n in frozen]


def _freeze_torch(net: mp.Model) -> None:
    net.native[0].requires_grad_(False)


def _freeze_mxnet(net: mp.Model) -> None:
    net.native[0].collect_params().setattr("grad_req", "null")


def _freeze_keras(net: mp.Model) -> None:
    net.native.layers[0].trainable = False


NATIVE_FREEZES = [
    pytest.param(torch_net, _freeze_torch, id="torch", marks=FLAVOURS[0].marks),
    pytest.param(mxnet_net, _freeze_mxnet, id="mxnet", marks=FLAVOURS[1].marks),
    pytest.param(keras_net, _freeze_keras, id="keras", marks=FLAVOURS[4].marks),
    pytest.param(tf_keras_net, _freeze_keras, id="tf_keras", marks=FLAVOURS[5].marks),
]


@pytest.mark.parametrize(("make", "freeze"), NATIVE_FREEZES)
@pytest.mark.parametrize("when", ["before wrapping", "after wrapping"])
def test_what_is_frozen_natively_is_frozen_for_us(make: Make, freeze: Callable[[Any], None], when: str) -> None:
    """Frozen: requires_grad; grad_req='null'; Keras 3 per variable; tf_keras per layer."""
    net = make()
    net.init(mp.init.normal(), seed=1)
    freeze(net)
    if when == "before wrapping":
        net = mp.wrap(net.native)
    assert [p.trainable for p in net] == [False, False, True, True]
    assert list(net.parameters()) == ["0.weight", "0.bias", "1.weight", "1.bias"] and not net.buffers()
    before = net.state_dict()
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    net.optimizer("adam", lr=0.1).step()
    assert list(grads) == ["1.weight", "1.bias"]
    np.testing.assert_array_equal(net["0.weight"].numpy(), before["0.weight"])
    assert not np.array_equal(net["1.weight"].numpy(), before["1.weight"])


@in_framework("tensorflow")
def test_a_keras_layer_made_frozen_holds_parameters_and_no_buffers(lib: Any) -> None:
    """Frozen: what is not trained now is not a buffer for it."""
    dense = lib.layers.Dense
    net = mp.wrap(lib.Sequential([lib.Input((4,)), dense(3, trainable=False), dense(1)]))
    assert [p.trainable for p in net] == [False, False, True, True]
    assert not net.buffers()
    net.unfreeze("0.*")
    assert len(net.native.trainable_weights) == 4


@in_framework("tensorflow")
def test_one_variable_of_a_keras_layer_freezes_alone_or_is_refused_but_never_with_the_other(lib: Any) -> None:
    """Frozen: Keras 3 per variable; tf_keras per LAYER only, so there the other would stop in silence too."""
    net = net_of_keras(lib, "float32")
    before = net.state_dict()
    if lib.__name__ == "tf_keras":
        with pytest.raises(mp.errors.Unsupported, match="whole layers"):
            net.freeze("1.*", "0.bias")
    else:
        net.freeze("0.bias")
    free = [n for n in before if n != "0.bias" or lib.__name__ == "tf_keras"]
    assert [n for n, p in net.parameters().items() if p.trainable] == free
    assert {id(w) for w in net.native.trainable_weights} == {id(net[n].native) for n in free}
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    net.optimizer("sgd", lr=0.1).step()
    assert list(grads) == free
    moved = {n for n, value in net.state_dict().items() if not np.array_equal(value, before[n])}
    assert "0.weight" in moved and moved <= set(free)


@in_framework("mxnet")
def test_a_gluon_trainer_leaves_what_we_froze(mx: Any) -> None:
    """Frozen: Gluon's grad_req='null'."""
    net = mxnet_net()
    net.init(mp.init.normal(), seed=1)
    native = net.native
    net.freeze("0.*")
    assert native[0].weight.grad_req == native[0].bias.grad_req == "null"
    before = net.state_dict()
    trainer = mx.gluon.Trainer(native.collect_params(), "sgd", {"learning_rate": 0.5})
    make = mx.np.array if mx.util.is_np_array() else mx.nd.array
    with mx.autograd.record():
        loss = ((native(make(X)) - make(Y)) ** 2).mean()
    loss.backward()
    trainer.step(1)
    moved = {n for n, value in net.state_dict().items() if not np.array_equal(value, before[n])}
    assert moved == {"1.weight", "1.bias"}


@in_framework("mxnet")
def test_a_gluon_batchnorm_without_scale_has_a_weight_that_stays(mx: Any) -> None:
    """Frozen: Gluon keeps a gamma it never trains; unfreezing everything must not train it."""
    nn = mx.gluon.nn
    native = nn.HybridSequential()
    native.add(nn.Dense(3, in_units=4), nn.BatchNorm(scale=False, in_channels=3), nn.Dense(1, in_units=3))
    native.initialize()
    net = mp.wrap(native)
    net.unfreeze("*")
    assert not net["1.weight"].trainable
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    net.optimizer("sgd", lr=1.0).step()
    assert "1.weight" not in grads
    np.testing.assert_array_equal(net["1.weight"].numpy(), 1)


# -- buffers


@in_framework("tensorflow")
def test_keras_seed_state_is_neither_a_parameter_nor_a_buffer(lib: Any) -> None:
    """Buffers: Keras 3 model.variables holds seed state; weights does not."""
    layers = lib.layers
    native = lib.Sequential(
        [lib.Input((4,)), layers.Dense(3), layers.Dropout(0.5), layers.GaussianNoise(0.1), layers.BatchNormalization()]
    )
    net = mp.wrap(native)
    assert list(net.parameters()) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert list(net.buffers()) == ["3.running_mean", "3.running_var"]
    assert len(native.weights) == 6
    if lib.__name__ == "keras":
        assert len(native.variables) == 8


# name -> (make, batch weight of a new statistic in one native training pass, by default)
def _torch_norm() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def _mxnet_norm() -> Any:
    from multiparam_mxnet.load import load

    nn = load().gluon.nn
    native = nn.HybridSequential()
    native.add(nn.Dense(3, in_units=4), nn.BatchNorm(in_channels=3), nn.Dense(1, in_units=3))
    native.initialize()
    return native


def _nnx_norm() -> Any:
    from flax import nnx

    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs))


def _linen_norm() -> Any:
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = linen.Dense(3, name="0")(x)
            return linen.Dense(1, name="2")(linen.BatchNorm(use_running_average=not train, name="1")(x))

    return Net()


def _keras_norm(lib: Any) -> Any:
    layers = lib.layers
    return lib.Sequential([lib.Input((4,)), layers.Dense(3), layers.BatchNormalization(), layers.Dense(1)])


def _keras3_norm() -> Any:
    import keras

    return _keras_norm(keras)


def _tf_keras_norm() -> Any:
    import tf_keras

    return _keras_norm(tf_keras)


NORMS = [
    pytest.param(make, weight, id=known.id, marks=known.marks)
    for known, make, weight in zip(
        FLAVOURS,
        [_torch_norm, _mxnet_norm, _linen_norm, _nnx_norm, _keras3_norm, _tf_keras_norm],
        [0.1, 0.1, 0.01, 0.01, 0.01, 0.01],
        strict=True,
    )
]


@pytest.mark.parametrize(("make", "weight"), NORMS)
def test_a_native_batchnorm_keeps_its_own_momentum(make: Callable[[], Any], weight: float) -> None:
    """Buffers: batch weight of running stats is 0.1 in torch and Gluon, 0.01 in Flax and Keras."""
    net = mp.wrap(make(), X)
    p = net.state_dict()
    hidden = X @ p["0.weight"].T + p["0.bias"]
    net.value_and_grad(mp.losses.mse)(X, Y)
    np.testing.assert_allclose(net["1.running_mean"].numpy(), weight * hidden.mean(0), rtol=1e-4, atol=1e-6)
    net(X)
    net.value_and_grad(mp.losses.mse, train=False)(X, Y)
    np.testing.assert_allclose(net["1.running_mean"].numpy(), weight * hidden.mean(0), rtol=1e-4, atol=1e-6)


# -- init


@in_framework("mxnet")
def test_glorot_in_a_channels_last_gluon_conv_has_the_bound_of_its_fans(mx: Any) -> None:
    """Init: Gluon's own Xavier on an NHWC conv is 0.485 of the bound."""
    native = mx.gluon.nn.Conv2D(32, (3, 5), in_channels=16, layout="NHWC")
    native.initialize()
    net = mp.wrap(native)
    net.init(mp.init.xavier_uniform(), "weight", seed=1)
    bound = math.sqrt(6 / ((16 + 32) * 15))
    assert 0.99 * bound < np.abs(native.weight.data().asnumpy()).max() <= bound


@in_framework("jax")
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_glorot_in_a_flax_conv_has_the_bound_of_its_fans(kind: str) -> None:
    """Init: a JAX initialiser given the canonical (out, in, h, w) would be 0.395 of the bound."""
    import jax
    from flax import linen, nnx

    if kind == "nnx":
        net = mp.wrap(nnx.Conv(16, 32, (3, 5), rngs=nnx.Rngs(0)))
    else:
        net = mp.wrap(linen.Conv(32, (3, 5)), np.ones((1, 8, 8, 16), "float32"))
    bound = math.sqrt(6 / ((16 + 32) * 15))
    for rule in (mp.init.xavier_uniform(), jax.nn.initializers.glorot_uniform()):
        net.init(rule, "weight", seed=1)
        assert net["weight"].shape == (32, 16, 3, 5)
        assert 0.99 * bound < np.abs(net["weight"].numpy()).max() <= bound


@in_framework("tensorflow")
def test_he_on_a_keras_embedding_has_torchs_fan(lib: Any) -> None:
    """Init: He on an Embedding: torch's fan is D, Keras' is V."""
    native = lib.Sequential([lib.layers.Embedding(2000, 20)])
    net = mp.wrap(native, np.zeros((1, 2), "int64"))
    net.init(mp.init.kaiming_uniform(nonlinearity="relu"), "*.weight", seed=1)
    bound = math.sqrt(6 / 20)
    assert 0.99 * bound < np.abs(native.layers[0].get_weights()[0]).max() <= bound


@every_flavour
def test_fans_of_one_dimension_are_refused_in_every_framework(make: Make) -> None:
    """Init: on 1-D torch, jax and mxnet raise, Keras allows; here nothing is filled."""
    net = make()
    before = net.state_dict()
    with pytest.raises(mp.errors.ShapeError, match="bias"):
        net.init(mp.init.xavier_uniform())
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@in_framework("mxnet")
def test_a_float64_gluon_model_can_be_filled_where_mxnets_own_initialisers_fail(mx: Any) -> None:
    """Init: MXNet's own random initialisers fail for float64, and may leave the Parameter uninitialised."""
    net = mxnet_net("float64")
    net.init(mp.init.normal(), seed=1)
    before = net.state_dict()
    drawn = mp.init.draw(mp.init.normal(), (3, 4), seed=1, name="0.weight")
    np.testing.assert_array_equal(before["0.weight"], drawn)
    try:
        net.init(mx.init.Normal(), "*.weight")
    except Exception:
        for name, value in net.state_dict().items():
            np.testing.assert_array_equal(value, before[name])
    else:
        assert not np.array_equal(net["0.weight"].numpy(), before["0.weight"])
    assert net(X.astype("float64")).shape == (6, 1)


WRONG = {
    "one row": np.ones((1, 4), "float32"),
    "a scalar": np.float32(1),
    "native layout": np.ones((4, 3), "float32"),
    "one axis more": np.ones((1, 3, 4), "float32"),
    "float64": np.ones((3, 4)),
    "float16": np.ones((3, 4), "float16"),
    "int32": np.ones((3, 4), "int32"),
}


@every_flavour
@pytest.mark.parametrize("wrong", WRONG)
def test_an_array_of_another_shape_or_dtype_is_refused_by_every_flavour(make: Make, wrong: str) -> None:
    """Init: NNX 0.12.0 takes any shape and dtype, 0.12.8 broadcasts and casts; torch copy_ broadcasts."""
    net = make()
    native = net["0.weight"].native
    before = net["0.weight"].numpy()
    with pytest.raises((mp.errors.ShapeError, mp.errors.DtypeError)):
        net["0.weight"].assign(WRONG[wrong])
    assert net["0.weight"].native is native
    assert (net["0.weight"].shape, net["0.weight"].dtype) == ((3, 4), "float32")
    np.testing.assert_array_equal(net["0.weight"].numpy(), before)


def _torch_scalar() -> Any:
    import torch

    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Any) -> Any:
            return x * self.factor

    return Scale()


def _linen_scalar() -> Any:
    from flax import linen

    class Scale(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return x * self.param("factor", linen.initializers.constant(2.0), ())

    return Scale()


def _nnx_scalar() -> Any:
    from flax import nnx

    class Scale(nnx.Module):
        def __init__(self) -> None:
            self.factor = nnx.Param(np.float32(2) * nnx.initializers.ones(nnx.Rngs(0)(), ()))

        def __call__(self, x: Any) -> Any:
            return x * self.factor[...]

    return Scale()


def _keras_scalar(lib: Any) -> Any:
    class Scale(lib.layers.Layer):
        def build(self, shape: Any) -> None:
            self.factor = self.add_weight(name="factor", shape=(), initializer=lib.initializers.Constant(2.0))
            self.built = True

        def call(self, x: Any) -> Any:
            return x * self.factor

    return Scale()


def _keras3_scalar() -> Any:
    import keras

    return _keras_scalar(keras)


def _tf_keras_scalar() -> Any:
    import tf_keras

    return _keras_scalar(tf_keras)


SCALARS = [
    pytest.param(make, id=known.id, marks=known.marks)
    for known, make in zip(
        [known for known in FLAVOURS if known.id != "mxnet"],  # which cannot initialise a scalar natively
        [_torch_scalar, _linen_scalar, _nnx_scalar, _keras3_scalar, _tf_keras_scalar],
        strict=True,
    )
]


@pytest.mark.parametrize("make", SCALARS)
def test_a_scalar_parameter_can_be_read_written_and_trained(make: Callable[[], Any]) -> None:
    """Init: check shape and dtype yourself; np.ascontiguousarray gives a number of no dimension one."""
    net = mp.wrap(make(), X)
    p = net["factor"]
    assert p.shape == p.numpy().shape == () and float(p.numpy()) == 2
    p.assign(np.float32(3))
    p[...] = p.numpy() + 1
    assert float(p.numpy()) == 4
    net.init(mp.init.constant(0.5))
    _, grads = net.value_and_grad(mp.losses.mse)(X, np.zeros_like(X))
    assert mp.to_numpy(grads["factor"]).shape == ()
    np.testing.assert_allclose(float(mp.to_numpy(grads["factor"])), np.mean(X**2), rtol=1e-5)
    opt = net.optimizer("sgd", lr=0.1)
    opt.step({"factor": np.float32(2)})
    np.testing.assert_allclose(float(p.numpy()), 0.3, rtol=1e-6)
    assert p.shape == ()
