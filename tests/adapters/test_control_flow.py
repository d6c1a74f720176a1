"""Models that decide by values, as Python's while does, run and train as they are written; the user is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.flavours import in_framework

import multiparam as mp

X = np.random.default_rng(0).normal(size=(2, 20)).astype("float32")


def trained(net: mp.Model, objective: Any) -> tuple[float, np.ndarray]:
    step = net.value_and_grad(objective)
    with pytest.warns(mp.MultiparamWarning, match="decides by values.* not compiled"):
        step(X)
    loss, grads = step(X)  # once is enough
    return float(mp.to_numpy(loss)), mp.to_numpy(
        grads["Dense_0.bias" if "Dense_0.bias" in grads else next(iter(grads))]
    )


@in_framework("jax")
def test_linen() -> None:
    import jax
    import jax.numpy as jnp
    from flax import linen

    class Fixed(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.Dense(20)(x)
            while jnp.abs(x).sum() > 1:
                x = x / 2
            return x.sum()

    variables = Fixed().init(jax.random.key(0), X)
    truth, grads = jax.value_and_grad(lambda v: Fixed().apply(v, X))(variables)
    net = mp.wrap(Fixed(), X, variables=variables)
    assert float(net(X)) == pytest.approx(float(truth))
    loss, grad = trained(net, lambda net, x: net(x))
    assert loss == pytest.approx(float(truth))
    np.testing.assert_allclose(grad, grads["params"]["Dense_0"]["bias"], rtol=1e-5)


@in_framework("jax")
def test_nnx() -> None:
    import jax.numpy as jnp
    from flax import nnx

    class Fixed(nnx.Module):
        def __init__(self) -> None:
            self.dense = nnx.Linear(20, 20, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            x = self.dense(x)
            while jnp.abs(x).sum() > 1:
                x = x / 2
            return x.sum()

    native = Fixed()
    truth, grads = nnx.value_and_grad(lambda model: model(X))(native)
    loss, grad = trained(mp.wrap(native), lambda net, x: net(x))
    assert loss == pytest.approx(float(truth))
    np.testing.assert_allclose(grad, np.asarray(grads.dense.kernel[...]).T, rtol=1e-4)


@in_framework("tensorflow")
def test_keras() -> None:
    import keras
    import tensorflow as tf

    class Fixed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(20)

        def call(self, x: Any) -> Any:
            x = self.dense(x)
            while tf.reduce_sum(tf.abs(x)) > 1:
                x = x / 2
            return tf.reduce_sum(x)

    native = Fixed()
    net = mp.wrap(native, X)
    with tf.GradientTape() as tape:
        truth = native(X)
    grad_of = tape.gradient(truth, native.dense.kernel)
    loss, grad = trained(net, lambda net, x: net(x))
    assert loss == pytest.approx(float(truth))
    np.testing.assert_allclose(grad, grad_of.numpy().T, rtol=1e-4)
