"""One small model in every flavour: linear 4 -> 3, then 3 -> 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multiparam as mp

rng = np.random.default_rng(0)

X = rng.normal(size=(6, 4)).astype("float32")

Y = rng.normal(size=(6, 1)).astype("float32")


def torch_net(dtype: str = "float32") -> mp.Model:
    import torch
    from torch import nn

    return mp.wrap(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)).to(getattr(torch, dtype)))


def mxnet_net(dtype: str = "float32") -> mp.Model:
    from multiparam_mxnet.load import load

    mx = load()
    native = mx.gluon.nn.HybridSequential()
    native.add(mx.gluon.nn.Dense(3, in_units=4), mx.gluon.nn.Dense(1, in_units=3))
    native.cast(dtype)
    native.initialize(mx.init.Zero())
    native.hybridize()
    return mp.wrap(native)


def x64() -> Any:
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def linen_net(dtype: str = "float32") -> mp.Model:
    import jax
    from flax import linen

    module = linen.Sequential([linen.Dense(n, param_dtype=dtype) for n in (3, 1)])
    with x64():
        variables = module.init(jax.random.key(0), X.astype(dtype))
    return mp.wrap(module, X.astype(dtype), variables=variables)


def nnx_net(dtype: str = "float32") -> mp.Model:
    from flax import nnx

    with x64():
        rngs = nnx.Rngs(0)
        sizes = ((4, 3), (3, 1))
        return mp.wrap(nnx.Sequential(*[nnx.Linear(i, o, param_dtype=dtype, rngs=rngs) for i, o in sizes]))


def net_of_keras(lib: Any, dtype: str) -> mp.Model:
    return mp.wrap(lib.Sequential([lib.Input((4,)), *[lib.layers.Dense(n, dtype=dtype) for n in (3, 1)]]))


def keras_net(dtype: str = "float32") -> mp.Model:
    import keras

    return net_of_keras(keras, dtype)


def tf_keras_net(dtype: str = "float32") -> mp.Model:
    import tf_keras

    return net_of_keras(tf_keras, dtype)


def flavour(make: Callable[..., mp.Model], *needed: str) -> Any:
    marks = [pytest.mark.needs(*needed), pytest.mark.xdist_group(needed[0])]
    return pytest.param(make, id=make.__name__.removesuffix("_net"), marks=marks)


FLAVOURS = [
    flavour(torch_net, "torch"),
    flavour(mxnet_net, "mxnet"),
    flavour(linen_net, "jax"),
    flavour(nnx_net, "jax"),
    flavour(keras_net, "tensorflow"),
    flavour(tf_keras_net, "tensorflow", "tf_keras"),
]

every_flavour = pytest.mark.parametrize("make", FLAVOURS)

Make = Callable[..., mp.Model]
