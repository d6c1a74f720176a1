"""Keras' own distribution: a model whose variables are laid out over the devices of a mesh. The truth is a model on one
device, and Keras' layout map."""

from __future__ import annotations

import pytest
from support.interpreter import python

pytestmark = [pytest.mark.needs("tensorflow"), pytest.mark.needs("jax"), pytest.mark.slow]
CODE = """
import os, tempfile
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["KERAS_BACKEND"] = "jax"
from pathlib import Path
import keras
import numpy as np
import multiparam as mp
from jax.sharding import PartitionSpec

def network():
    layers = [keras.Input((12,)), keras.layers.Dense(16, activation="relu", name="a"), keras.layers.Dense(8, name="b")]
    return keras.Sequential(layers)

whole = mp.wrap(network())
mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"), keras.distribution.list_devices())
places = keras.distribution.LayoutMap(mesh)
places[".*kernel"], places[".*bias"] = (None, "model"), ("model",)
keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=places, batch_dim_name="batch"))
net = mp.wrap(network())
X = np.random.default_rng(0).normal(size=(4, 12)).astype("float32")
path = Path(tempfile.mkdtemp()) / "w.safetensors"

def assigned(each):
    each["a.weight"] = np.arange(192.0).reshape(16, 12).astype("float32") / 100

def drawn(each):
    each.init(mp.init.orthogonal(), "*.weight", seed=3)
    each.init(mp.init.normal(), "*.bias", seed=4)

def loaded(each):
    mp.load(each, path)

drawn(whole)
mp.save(whole, path)
for write in (drawn, assigned, loaded):
    for each in (whole, net):
        write(each)
    for name, value in whole.state_dict().items():
        assert np.array_equal(value, net[name].numpy()), (write, name)
    for layer in net.native.layers:
        assert layer.kernel.value.sharding.spec == PartitionSpec(None, "model"), write
        assert layer.bias.value.sharding.spec == PartitionSpec("model"), write
assert np.allclose(mp.to_numpy(net(X)), mp.to_numpy(whole(X)), atol=1e-5)
net.init(mp.init.zeros())
assert mp.transfer(whole, net, verify=X).agrees
mp.save(net, path.with_name("again.safetensors"))
for name, value in mp.read(path.with_name("again.safetensors")).items():
    assert np.array_equal(value, whole[name].numpy()), name
print("done")
"""


def test_verbs_keep_the_layout_of_a_model_over_a_mesh() -> None:
    assert python(CODE).strip().endswith("done")
