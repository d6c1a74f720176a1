"""Models of each library around some layers, as its users write them, with numbers that nothing could mix up."""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from support.flavours import NEEDS
from support.native import multiparam_x64 as x64

import multiparam as mp

pytest.importorskip("torch")
import torch

F64 = "float64"
FLAVOURS, FIRST = tuple(NEEDS), ("torch", "gluon")  # FIRST: where images have their channels first


def drawn(name: str, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Multiples of 1/64, so that sums of two are exact."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return np.asarray(rng.integers(round(low * 64), round(high * 64), shape, endpoint=True) / 64)


def turned(x: np.ndarray, flavour: str, back: bool = False) -> np.ndarray:
    """Channels first as a library has its images, or back."""
    if flavour in FIRST:
        return x
    return np.moveaxis(x, -1, 1) if back else np.ascontiguousarray(np.moveaxis(x, 1, -1))


@functools.cache
def library(flavour: str) -> Any:
    if flavour == "gluon":
        from multiparam_mxnet.load import load

        return load().gluon
    names = {"torch": "torch.nn", "linen": "flax.linen", "nnx": "flax.nnx", "keras": "keras", "tf_keras": "tf_keras"}
    return import_module(names[flavour])


class Lib:
    """The layers of a library in one dtype: ``Lib("linen", F64).Dense(3)`` is ``linen.Dense(3, param_dtype=F64)``."""

    def __init__(self, flavour: str, dtype: str) -> None:
        self.flavour, self.dtype, self.library = flavour, dtype, library(flavour)

    def __getattr__(self, name: str) -> Any:
        lib, more = self.library, {}
        if self.flavour == "gluon":
            return getattr(lib.nn, name, None) or getattr(lib.rnn, name)
        if "keras" in self.flavour:
            lib, more = lib.layers, {"dtype": self.dtype}
        elif self.flavour in ("linen", "nnx") and name not in ("RNN", "Bidirectional"):
            more = {"param_dtype": self.dtype}
        if self.flavour == "nnx" and name != "PReLU":
            more["rngs"] = lib.Rngs(0)
        return functools.partial(getattr(lib, name), **more)


def model(
    flavour: str, layers: Mapping[str, Any], forward: Any, x: np.ndarray, dtype: str = F64, *more: np.ndarray
) -> mp.Model:
    """A model of the library's class for them, with an attribute for each layer; ``forward(self, x)`` is its call."""
    lib, of = library(flavour), Lib(flavour, dtype)

    def fill(self: Any, *_: Any) -> None:
        for name, make in layers.items():
            setattr(self, name, make(of))

    base = {"torch": "Module", "gluon": "Block", "linen": "Module", "nnx": "Module"}.get(flavour, "Model")
    call = {"linen": "__call__", "nnx": "__call__"}.get(flavour, "call" if "keras" in flavour else "forward")

    def start(self: Any) -> None:
        super(Net, self).__init__(**({"dtype": dtype} if "keras" in flavour else {}))
        if flavour == "gluon":
            with self.name_scope():
                return fill(self)
        fill(self)

    body = {call: lambda self, *x: forward(self, *x), "setup" if flavour == "linen" else "__init__": fill}
    if flavour != "linen":
        body["__init__"] = start
    Net = type("Net", (getattr(lib, base if flavour != "gluon" else "Block"),), body)
    with x64() if flavour in ("linen", "nnx") and dtype == F64 else contextlib.nullcontext():
        net = Net()
        if flavour == "torch":
            return mp.wrap(net.to(getattr(torch, dtype)))
        if flavour == "gluon":
            net.cast(dtype)
            net.initialize(init="zeros")
        given = [net_input(flavour, each, dtype) for each in (x, *more)]
        return mp.wrap(net) if flavour == "nnx" else mp.wrap(net, *given)


def net_input(flavour: str, x: np.ndarray, dtype: str = F64) -> Any:
    """Channels first as the library's own array."""
    x = x.astype(dtype) if x.dtype.kind == "f" else x
    backend = {"gluon": "mxnet", "linen": "jax", "nnx": "jax"}.get(
        flavour, "torch" if flavour == "torch" else "tensorflow"
    )
    from multiparam.core import registry

    return registry.info(backend).load().from_numpy(x)


def fill(net: mp.Model, seed: str = "") -> mp.Model:
    """Numbers that nothing could mix up, by canonical name."""
    for name, p in {**net.parameters(), **net.buffers()}.items():
        low, high = (0.5, 2.0) if name.endswith("running_var") else (-1.0, 1.0)
        p.assign(drawn(seed + name, p.shape, low, high).astype(p.dtype))
    return net


def bits(net: mp.Model) -> dict[str, bytes]:
    return {name: p.numpy().tobytes() for name, p in {**net.parameters(), **net.buffers()}.items()}


def far(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype
    return float(np.abs(a - b).max() / np.abs(b).max() / np.finfo(a.dtype).eps)


class Torch(torch.nn.Module):
    """Layers in attributes; ``forward`` is given."""

    def __init__(self, forward: Any, **layers: Any) -> None:
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *x: Any) -> Any:
        return self._forward(self, *x)
