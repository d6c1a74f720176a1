# pyright: standard
"""Mistakes that a type checker must find: one on each line that says so. Never run."""

from __future__ import annotations

import numpy as np
import torch

import multiparam as mp

net = mp.wrap(torch.nn.Linear(4, 8))
net["weight"].asign(np.ones((8, 4)))  # mistake: no such method
net.parameter("weight").asign(3)  # mistake: no such method
net[0].assign(3)  # mistake: a group has none
net[1.5]  # mistake: neither a name nor a position
net.parameter(0)  # mistake: a position is no name
net["weight"].shape = (4, 8)  # mistake: it cannot be set
mp.wrap(torch.nn.Linear(4, 8), seed="zero")  # mistake: a seed is a number
mp.wrap(torch.nn.Linear(4, 8), varables=None)  # mistake: no such option
net.value_and_grad(mp.losses.mse, trian=False)  # mistake: no such option
mp.transfer(net)  # mistake: a transfer has a target
mp.save(net)  # mistake: no path
print(net.missing)  # mistake: no such attribute
