# pyright: standard
"""What users write, for a type checker to read; see tests/core/test_types.py. Run, it does what it says."""

from __future__ import annotations

from typing import assert_type

import numpy as np
import torch

import multiparam as mp

X, y = np.ones((2, 4), "float32"), np.zeros((2, 8), "float32")
net = mp.wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8)), X)
assert_type(net, mp.Model)

# look-ups
assert_type(net["2.bias"], mp.Parameter)
assert_type(net[2], mp.Group)
assert_type(net[2]["bias"], mp.Parameter)
assert_type(net.parameter("2.bias"), mp.Parameter)
assert_type(net.group("2"), mp.Group)
assert_type(net.select("*.bias", kind="linear"), mp.Group)
for name, p in net.parameters().items():
    assert_type(name, str)
    assert_type(p, mp.Parameter)
shape: tuple[int, ...] = net["0.weight"].shape
flag: bool = net["0.weight"].trainable

# writes
net["0.weight"].assign(np.zeros((8, 4), "float32"))
net[0]["weight"][0, 0] = 42
net["0.weight"] *= 2
net["0.bias"] = np.ones(8, "float32")
net["0.weight"][:] += 1
assert_type(net.init(mp.init.xavier_uniform(), "*.weight", seed=0), mp.Group)
assert_type(net.tie("2.weight", "2.weight"), mp.Parameter)
net.freeze("0.*").unfreeze()

# training
step = net.value_and_grad(mp.losses.mse)
loss, grads = step(X, y)
opt = net.optimizer("adam", lr=0.01)
opt.step(grads)
gradient: np.ndarray = mp.to_numpy(grads["2.weight"])

# another framework, files, comparison
twin = mp.build(mp.nn.Sequential(mp.nn.Linear(8), mp.nn.ReLU(), mp.nn.Linear(8)), X, backend="torch", seed=1)
plan = mp.plan(net, twin)
complete: bool = plan.complete
report = mp.transfer(net, twin, verify=X)
agrees: bool = report.agrees
state: dict[str, np.ndarray] = net.state_dict()
