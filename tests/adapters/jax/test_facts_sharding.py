"""A write keeps its place: on its devices, sharded as it was. With eight devices, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import jax, numpy as np
import multiparam as mp
from flax import linen, nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

mesh = Mesh(np.array(jax.devices()), ("model",))
rows = NamedSharding(mesh, PartitionSpec("model"))
X = np.ones((2, 16), "float32")
module = linen.Dense(8)
variables = module.init(jax.random.key(0), X)
variables["params"]["kernel"] = jax.device_put(variables["params"]["kernel"], rows)
layer = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
layer.kernel.value = jax.device_put(layer.kernel.value, rows)
value = np.random.default_rng(0).normal(size=(8, 16)).astype("float32")
for net in (mp.wrap(module, variables=variables), mp.wrap(layer)):
    def check(what, net=net):
        array = net["weight"].native
        array = getattr(array, "value", array)
        assert array.sharding == rows and len(array.addressable_shards) == 8, (what, array.sharding)
    check("wrap")
    net["weight"].assign(value)
    check("assign")
    assert np.array_equal(net["weight"].numpy(), value)
    net["weight"][0, 0] = 42
    check("an item")
    assert net["weight"].numpy()[0, 0] == 42
    state = net.state_dict()
    net.init(mp.init.normal(), seed=1)
    check("init")
    net.load_state_dict(state)
    check("load_state_dict")
    assert np.array_equal(net["weight"].numpy(), state["weight"])
print("done")
"""


def test_a_write_keeps_the_sharding() -> None:
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=env, check=False)
    assert done.stdout.endswith("done\n"), done.stderr
