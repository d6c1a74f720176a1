"""Arrays over the devices of two processes: names and numbers as in one. The truth is a twin that one device holds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.needs("jax"), pytest.mark.xdist_group("processes")]

CODE = """
import sys
from pathlib import Path
import jax, numpy as np
rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, rank)
import multiparam as mp
from flax import linen, nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

mesh = Mesh(np.array(jax.devices()), ("model",))
X, Y = np.random.default_rng(0).normal(size=(4, 8)).astype("float32"), np.zeros((4, 4), "float32")
SPECS = {"0.weight": P(None, "model"), "0.bias": P("model"), "1.weight": P("model"), "1.bias": P()}  # of kernels
HALVES = slice(0, 4), slice(4, 8)
BLOCKS = {"0.weight": (HALVES[rank], slice(0, 8)), "0.bias": (HALVES[rank],), "1.weight": (slice(0, 4), HALVES[rank]),
          "1.bias": None}

def put(array, spec):
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

class Chain(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)])
    def __call__(self, x):
        return self.layers[1](jax.nn.tanh(self.layers[0](x)))

class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        hidden = jax.nn.tanh(linen.Dense(8)(x))
        return linen.Dense(4)(hidden)

def of_nnx():
    net, twin = Chain(), Chain()
    for i, layer in enumerate(net.layers):
        layer.kernel.value = put(layer.kernel.value, SPECS[f"{i}.weight"])
        layer.bias.value = put(layer.bias.value, SPECS[f"{i}.bias"])
    return mp.wrap(net), mp.wrap(twin)

def of_linen():
    module = Linen()
    variables = module.init(jax.random.key(0), X)
    sharded = {f"Dense_{i}": {"kernel": put(layer["kernel"], SPECS[f"{i}.weight"]),
                              "bias": put(layer["bias"], SPECS[f"{i}.bias"])}
               for i, layer in enumerate(variables["params"].values())}
    return mp.wrap(module, variables={"params": sharded}), mp.wrap(module, variables=variables)

def equal(net, twin, what, close=False):
    for p, q in zip(net.parameters().values(), twin.parameters().values(), strict=True):
        a, b = p.numpy(gather=True), q.numpy()
        assert np.allclose(a, b, atol=1e-6) if close else np.array_equal(a, b), (what, p.name)

def refused(what, call):
    try:
        call()
    except mp.errors.ShardError as error:
        assert "numpy(gather=True) puts it together" in str(error), (what, error)
    else:
        raise AssertionError(what)

for make in (of_nnx, of_linen):
    net, twin = make()
    parameters = list(net.parameters().values())
    assert [p.sharding for p in parameters] == list(BLOCKS.values()), [p.sharding for p in parameters]
    assert [p.shape for p in parameters] == [q.shape for q in twin.parameters().values()]
    equal(net, twin, "wrapped")
    refused("numpy", parameters[0].numpy)
    refused("state_dict", net.state_dict)
    for each in (net, twin):
        each.init(mp.init.xavier_uniform(), "*weight", seed=1)
        list(each.parameters().values())[1].assign(np.arange(8, dtype="float32"))
    equal(net, twin, "initialised")
    path = mp.save(net, folder / f"{make.__name__}.safetensors")
    net.init(mp.init.zeros())
    mp.load(net, path, verify=False)
    equal(net, twin, "loaded")
    net.init(mp.init.zeros())
    mp.transfer(path, net)
    equal(net, twin, "transferred")
    assert mp.compare({"sharded": net, "whole": twin}, X).agrees
    first = next(iter(twin.parameters()))
    twin[first][0, 0] += 0.1
    pair = mp.compare({"sharded": net, "whole": twin}, X).pairs[0]
    assert not pair.agrees and first in str(pair), str(pair)
    twin[first][0, 0] -= 0.1
    mp.load(twin, path)
    losses = []
    for each in (net, twin):
        each.freeze(list(each.parameters())[1])
        step, optimizer = each.value_and_grad(mp.losses.mse), each.optimizer("momentum", lr=0.1)
        for _ in range(3):
            loss, grads = step(X, Y)
            optimizer.step()
        losses.append(float(loss))
    assert np.isclose(*losses, rtol=1e-5), losses
    equal(net, twin, "trained", close=True)
    assert [p.sharding for p in parameters] == list(BLOCKS.values())
    assert np.allclose(np.asarray(net(X)), np.asarray(twin(X)), atol=1e-5)
    if make is of_nnx:
        from jax.experimental import multihost_utils
        if rank == 0:
            (folder / "bad.safetensors").symlink_to("/dev/null")
        multihost_utils.sync_global_devices("link")
        try:
            mp.save(net, folder / "bad.safetensors")
        except mp.errors.FileError as error:
            assert ("no regular file" if rank == 0 else "another process failed") in str(error), error
        else:
            raise AssertionError("a failure reaches all")
print("done")
"""


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(rank), port, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for rank in range(2)
    ]
    for process in started:
        stdout, stderr = process.communicate()
        assert stdout.endswith("done\n"), stderr[-3000:]
