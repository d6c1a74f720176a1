"""Models made by hand of arrays of any dtype, one for each library: what files must carry bit by bit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from support.flavours import GROUPS, NEEDS

import multiparam as mp

Arrays = Mapping[str, np.ndarray]


def torch(arrays: Arrays) -> mp.Model:
    import torch
    from multiparam_torch.arrays import from_numpy

    module = torch.nn.Module()
    for name, array in arrays.items():
        module.register_parameter(name, torch.nn.Parameter(from_numpy(array.copy()), requires_grad=False))
    return mp.wrap(module)


def gluon(arrays: Arrays) -> mp.Model:
    from multiparam_mxnet.load import load

    mx = load()

    class Holder(mx.gluon.Block):
        def __init__(self) -> None:
            super().__init__()
            for name, array in arrays.items():
                made = self.params.get(name, shape=array.shape, dtype=array.dtype, init=mx.init.Zero(), grad_req="null")
                setattr(self, name, made)

    block = Holder()
    block.initialize()
    net = mp.wrap(block)
    for name, array in arrays.items():
        net[name].assign(array)
    return net


def linen(arrays: Arrays) -> mp.Model:
    from flax import linen

    class Holder(linen.Module):
        @linen.compact
        def __call__(self) -> None:
            for name, array in arrays.items():
                self.param(name, lambda key, array=array: array)

    from multiparam_jax.arrays import x64

    with x64():
        return mp.wrap(Holder(), variables=Holder().init({"params": __import__("jax").random.key(0)}))


def nnx(arrays: Arrays) -> mp.Model:
    from flax import nnx
    from multiparam_jax.arrays import x64

    class Holder(nnx.Module):
        def __init__(self) -> None:
            import jax.numpy as jnp

            for name, array in arrays.items():
                setattr(self, name, nnx.Param(jnp.asarray(array)))

    with x64():
        return mp.wrap(Holder())


def keras(arrays: Arrays, library: str = "keras") -> mp.Model:
    made = __import__(library)

    class Holder(made.layers.Layer):
        def build(self, shape: object = None) -> None:
            for name, array in arrays.items():
                dtype = array.dtype.name
                setattr(
                    self,
                    name,
                    self.add_weight(name=name, shape=array.shape, dtype=dtype, initializer="zeros", trainable=False),
                )
            self.built = True

    layer = Holder()
    layer.build(())
    net = mp.wrap(layer)
    for name, array in arrays.items():
        net[name].assign(array)
    return net


def tf_keras(arrays: Arrays) -> mp.Model:
    return keras(arrays, "tf_keras")


FLAVOURS = {"torch": torch, "gluon": gluon, "linen": linen, "nnx": nnx, "keras": keras, "tf_keras": tf_keras}
CASES = [
    pytest.param(name, id=name, marks=[pytest.mark.needs(NEEDS[name]), pytest.mark.xdist_group(GROUPS[name])])
    for name in FLAVOURS
]
