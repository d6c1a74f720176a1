"""A textbook's networks, as its four tabs would build them, from PyTorch to each other. Native outputs must be equal.

The folder with the networks is given by ``--d2l``; nothing of it is here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

from pairs import Pair, apart

import multiparam as mp

TITLE = "a textbook's networks, PyTorch → MXNet, JAX, TensorFlow"
NEEDS = ("torch", "mxnet", "flax", "tensorflow")
RECORDED = (
    "lenet/jax", "lenet/mxnet", "vgg/tf", "resnet18/mxnet", "transformer_enc/mxnet", "g_chimera/jax", "multihead/tf",
)  # fmt: skip


def lacking() -> str:
    """Why the section cannot run; empty where it can."""
    return "" if os.environ.get("MULTIPARAM_D2L") else "--d2l does not say where the networks are"


def folder(module: str) -> ModuleType:
    """A module of the folder."""
    from importlib import import_module

    at = Path(os.environ["MULTIPARAM_D2L"])
    if str(at) not in sys.path:
        sys.path[:0] = [str(at), str(at.parent)]
    return import_module(module)


def names() -> list[str]:
    """Each network in each other tab, where both compute one function."""
    inputs, differs = folder("inputs"), folder("expected").DIFFERS
    return [
        f"{network}/{tab}"
        for tab in inputs.TABS[1:]
        for network in inputs.INPUTS
        if (network, tab) not in inputs.ABSENT and (network, tab) not in differs and (network, "*") not in differs
    ]


def make(name: str) -> Pair:
    """A pair by its network and tab."""
    network, tab = name.split("/")
    natives, given = folder("natives"), folder("inputs").INPUTS[network]

    def wrapped(tab: str) -> mp.Model:
        natives.seed(tab)
        return mp.wrap(natives.networks(tab).NETS[network](), *natives.own(tab, network))

    from pairs import noisy_torch

    source = wrapped("torch")
    noisy_torch(source.native)
    outputs = natives.output("torch", source, network)

    def judge(net: mp.Model) -> str:
        return apart(outputs, natives.output(tab, net, network))

    return Pair(source, lambda: wrapped(tab), judge, given)
