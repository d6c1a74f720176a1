"""What was measured of four frameworks in one process: import orders, numpy left alone, Keras on other backends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter; what it prints."""
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


ONE_AFTER_ANOTHER = """
import sys
import numpy
import multiparam as mp

def names():  # but for submodules, which anyone may import
    return {name for name in dir(numpy) if "numpy." + name not in sys.modules}

x = numpy.linspace(-1, 1, 8, dtype="float32").reshape(2, 4)

def torch():
    import torch
    return mp.wrap(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)))

def mxnet():
    from multiparam_mxnet.load import load
    gluon = load().gluon
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Dense(3), gluon.nn.Activation("tanh"), gluon.nn.Dense(1))
    net.initialize()
    return mp.wrap(net, x)

def jax():
    from flax import linen
    return mp.wrap(linen.Sequential([linen.Dense(3), linen.tanh, linen.Dense(1)]), x)

def tensorflow():
    import keras
    layers = keras.layers
    return mp.wrap(keras.Sequential([layers.Dense(3), layers.Activation("tanh"), layers.Dense(1)]), x)

before, values = names(), dict(vars(numpy))
outputs = []
nets = [globals()[name]() for name in ORDER]
for net in nets:
    net.init(mp.init.normal(), seed=1)
    assert list(net.parameters()) == ["0.weight", "0.bias", "2.weight", "2.bias"], net
    y = net.value_and_grad(mp.losses.mse)(x, numpy.ones((2, 1), "float32"))
    outputs.append(mp.to_numpy(net(x)))
    assert len(y[1]) == 4
for y in outputs[1:]:
    numpy.testing.assert_allclose(y, outputs[0], rtol=1e-5)
assert names() <= before, names() - before
assert all(getattr(numpy, name) is value for name, value in values.items() if name in before)
print([net.backend for net in nets])
"""


@pytest.mark.needs("torch", "mxnet", "jax", "tensorflow")
@pytest.mark.parametrize(
    "order",
    [["torch", "mxnet", "jax", "tensorflow"], ["tensorflow", "jax", "mxnet", "torch"]],
    ids=["torch first", "tensorflow first"],
)
@pytest.mark.quick("torch first")
def test_four_frameworks_work_in_one_process_in_either_order_and_numpy_stays_itself(order: list[str]) -> None:
    """All in one process: any import order; what MXNet misses in numpy is not given to numpy."""
    assert python(f"ORDER = {order}\n{ONE_AFTER_ANOTHER}") == str(order)


KERAS_ON_ANOTHER_BACKEND = """
import keras, numpy, multiparam as mp
net = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(3)])
X = numpy.ones((1, 3), "float32")
net(X)
wrapped = mp.wrap(net)
wrapped["0.bias"][0] = 7
wrapped.tie("1.weight", "0.weight")
try:
    wrapped.value_and_grad(mp.losses.mse)(X, X)
except mp.MultiparamError as error:
    said = "KERAS_BACKEND" in str(error)
    print(wrapped.backend, list(wrapped.parameters()), float(net.layers[0].bias[0]), type(error).__name__, said)
"""


KERAS_FIRST = "tensorflow ['0.weight', '0.bias', '1.bias'] 7.0 Unsupported True"


@pytest.mark.needs("tensorflow", "torch")
@pytest.mark.slow
def test_a_keras_model_on_torch_is_not_taken_for_a_torch_module() -> None:
    """All in one process, dispatch: a Keras model on the torch backend is a torch.nn.Module too."""
    assert python(KERAS_ON_ANOTHER_BACKEND, KERAS_BACKEND="torch") == KERAS_FIRST


@pytest.mark.needs("tensorflow", "jax")
def test_a_keras_model_on_jax_is_not_taken_for_an_nnx_module() -> None:
    """All in one process, dispatch: with NNX enabled a Keras model on jax is an nnx.Module too."""
    done = python(KERAS_ON_ANOTHER_BACKEND, KERAS_BACKEND="jax", KERAS_NNX_ENABLED="true")
    assert done == KERAS_FIRST
