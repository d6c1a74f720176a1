"""Variables on two devices, as tf.distribute keeps them: names and numbers as on one. The truth is a plain twin.

In a process of its own, since TensorFlow takes the number of its devices at its start.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.needs("tensorflow")

CODE = """
import contextlib, sys, tempfile
import numpy as np, tensorflow as tf
import multiparam as mp

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
if sys.argv[1] == "tf_keras":
    import tf_keras as keras
else:
    import keras
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.HierarchicalCopyAllReduce())
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(6, 3)).astype("float32"), rng.normal(size=(6, 2)).astype("float32")

def network():
    layers = keras.layers
    hidden = layers.Dense(4), layers.BatchNormalization(), layers.Dense(4)
    return keras.Sequential([keras.Input((3,)), *hidden, layers.Dense(2)])

def replicas(p):
    held = p.native if isinstance(p.native, tf.Variable) else p.native._value
    return [each.numpy() for each in strategy.experimental_local_results(held)]

def equal(net, twin, what):
    for (name, p), q in zip({**net.parameters(), **net.buffers()}.items(),
                            {**twin.parameters(), **twin.buffers()}.values(), strict=True):
        first, second = replicas(p)
        assert np.array_equal(first, second), (what, name, "replicas")
        assert np.allclose(p.numpy(), q.numpy(), rtol=1e-5, atol=1e-6), (what, name)

with strategy.scope():
    mirrored = network()
net, twin = mp.wrap(mirrored), mp.wrap(network())
for inside in (False, True):
    for name in ("adam", "sgd") if inside else ("momentum", "adamw"):
        for each in (net, twin):
            with strategy.scope() if inside and each is net else contextlib.nullcontext():
                each.init(mp.init.normal(), seed=1)
                each[1]["running_mean"].assign(np.zeros(4, "float32"))
                each[1]["running_var"].assign(np.ones(4, "float32"))
        equal(net, twin, "init")
        losses = []
        for each in (net, twin):
            with strategy.scope() if inside and each is net else contextlib.nullcontext():
                each.freeze("0.*")  # as a whole: tf_keras freezes layers
                step, optimizer = each.value_and_grad(mp.losses.mse), each.optimizer(name, lr=0.1)
                for _ in range(3):
                    loss, grads = step(X, Y)
                    optimizer.step()
                losses.append((float(loss), list(grads)))
        assert np.isclose(losses[0][0], losses[1][0], rtol=1e-5) and losses[0][1] == losses[1][1], (name, losses)
        equal(net, twin, name)
path = mp.save(net, tempfile.mkdtemp() + "/w.safetensors")
net.init(mp.init.zeros())
mp.load(net, path)
equal(net, twin, "loaded")
for each in (net, twin):
    each.tie("2.bias", "1.bias")
    step, optimizer = each.value_and_grad(mp.losses.mse), each.optimizer("sgd", lr=0.1)
    step(X, Y)
    optimizer.step()
assert net.ties() == twin.ties() and len(net.ties()) == 1
equal(net, twin, "tied")
with strategy.scope():
    own = keras.optimizers.SGD(0.1)
for each, native in ((net, own), (twin, keras.optimizers.SGD(0.1))):
    step, optimizer = each.value_and_grad(mp.losses.mse), each.optimizer(native)
    step(X, Y)
    optimizer.step()
equal(net, twin, "own")
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("library", ["keras", pytest.param("tf_keras", marks=pytest.mark.needs("tf_keras"))])
def test_mirrored_variables_do_what_one_device_does(library: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, library], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("done\n"), done.stderr[-3000:]
