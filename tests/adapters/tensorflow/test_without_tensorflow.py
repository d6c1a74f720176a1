"""Keras 3 on PyTorch or JAX where TensorFlow is not installed, in a fresh interpreter."""

from __future__ import annotations

import pytest
from support.interpreter import python

pytestmark = pytest.mark.needs("tensorflow")
HIDDEN = """
import os, sys
sys.modules["tensorflow"] = None  # not found
import numpy as np
import multiparam as mp
"""
CODE = """
os.environ["KERAS_BACKEND"] = {backend!r}
assert mp.backends()["tensorflow"]
import keras
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
net = mp.wrap(model)
X = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
net.init(mp.init.normal(), seed=1)
net["0.bias"][:] = 3
W, b, V, c = net.state_dict().values()
right = (X @ W.T + b) @ V.T + c
assert W.shape == (3, 4) and np.allclose(mp.to_numpy(net(X)), right, atol=1e-5)
assert np.allclose(float(mp.losses.mse(net, X, 0 * right)), (right**2).mean(), rtol=1e-5)
labels = np.array([0, 1, 1, -100, 0])
shifted = np.exp(right - right.max(1, keepdims=True))
chosen = np.log(shifted / shifted.sum(1, keepdims=True))[[0, 1, 2, 4], [0, 1, 1, 0]]
assert np.allclose(float(mp.losses.cross_entropy(net, X, labels)), -chosen.mean(), rtol=1e-5)
net.load_state_dict(dict((name, 0 * value) for name, value in net.state_dict().items()))
assert not net["1.weight"].numpy().any()
try:
    net.value_and_grad(mp.losses.mse)(X, right)
except mp.Unsupported as error:
    print(error)
"""


@pytest.mark.parametrize("other", [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("torch", "jax")])
def test_everything_but_gradients_works(other: str) -> None:
    said = python(HIDDEN + CODE.format(backend=other))
    assert said.startswith(f"This Keras runs on {other}")


def test_keras_on_tensorflow_needs_it() -> None:
    code = """
os.environ.pop("KERAS_BACKEND", None)
os.environ["KERAS_HOME"] = os.devnull
try:
    mp.build(mp.nn.Linear(2), np.ones((1, 3)), backend="tensorflow")
except mp.BackendMissing as error:
    print(error, bool(mp.backends()["tensorflow"]))
"""
    assert "(tensorflow not found)" in (said := python(HIDDEN + code)) and said.endswith("False")
