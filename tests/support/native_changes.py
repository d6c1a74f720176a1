"""Three linear layers in each framework, and what its users do to them behind a wrapper's back."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

import numpy as np

NEEDS = {"torch": "torch", "gluon": "mxnet", "nnx": "jax", "keras": "tensorflow"}


class Native(Protocol):
    """A framework's own code."""

    without: tuple[str, ...]

    def make(self, values: list[np.ndarray]) -> Any: ...
    def put_layer(self, model: Any, name: str, value: np.ndarray) -> None: ...
    def put_parameter(self, model: Any, name: str, value: np.ndarray) -> None: ...
    def write(self, model: Any, name: str, value: np.ndarray) -> None: ...
    def tie(self, model: Any, name: str, source: str) -> None: ...
    def read(self, model: Any, name: str) -> np.ndarray: ...


class Torch:
    without = ()

    def layer(self, value: np.ndarray) -> Any:
        import torch

        layer = torch.nn.Linear(3, 3, bias=False)
        layer.weight = torch.nn.Parameter(torch.tensor(value))
        return layer

    def make(self, values: list[np.ndarray]) -> Any:
        import torch

        return torch.nn.Sequential(OrderedDict(zip("abc", map(self.layer, values), strict=True)))

    def put_layer(self, model: Any, name: str, value: np.ndarray) -> None:
        setattr(model, name, self.layer(value))

    def put_parameter(self, model: Any, name: str, value: np.ndarray) -> None:
        getattr(model, name).weight = self.layer(value).weight

    def write(self, model: Any, name: str, value: np.ndarray) -> None:
        import torch

        with torch.no_grad():
            getattr(model, name).weight.copy_(torch.tensor(value))

    def tie(self, model: Any, name: str, source: str) -> None:
        getattr(model, name).weight = getattr(model, source).weight

    def read(self, model: Any, name: str) -> np.ndarray:
        return np.array(getattr(model, name).weight.detach())


class Gluon:
    # Gluon refuses another Parameter in the place of one: only a whole block can be put there
    without = ("native_parameter", "native_tie")

    def layer(self, value: np.ndarray) -> Any:
        import mxnet as mx

        layer = mx.gluon.nn.Dense(3, in_units=3, use_bias=False, flatten=False)
        layer.initialize()
        layer.weight.set_data(mx.nd.array(value))
        return layer

    def make(self, values: list[np.ndarray]) -> Any:
        import multiparam as mp

        with mp.use("mxnet"):
            import mxnet as mx

        class Chain(mx.gluon.nn.HybridBlock):
            def hybrid_forward(self, F: Any, x: Any) -> Any:
                return self.c(self.b(self.a(x)))

        model = Chain()
        for name, value in zip("abc", values, strict=True):
            setattr(model, name, self.layer(value))
        return model

    def put_layer(self, model: Any, name: str, value: np.ndarray) -> None:
        setattr(model, name, self.layer(value))

    def put_parameter(self, model: Any, name: str, value: np.ndarray) -> None:
        raise NotImplementedError

    def write(self, model: Any, name: str, value: np.ndarray) -> None:
        import mxnet as mx

        getattr(model, name).weight.set_data(mx.nd.array(value))

    def tie(self, model: Any, name: str, source: str) -> None:
        raise NotImplementedError

    def read(self, model: Any, name: str) -> np.ndarray:
        weight: np.ndarray = getattr(model, name).weight.data().asnumpy()
        return weight


class Nnx:
    without = ()

    def layer(self, value: np.ndarray) -> Any:
        from flax import nnx

        layer = nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0))
        layer.kernel = self.parameter(value)
        return layer

    def parameter(self, value: np.ndarray) -> Any:
        import jax.numpy as jnp
        from flax import nnx

        return nnx.Param(jnp.asarray(value.T.copy()))

    def make(self, values: list[np.ndarray]) -> Any:
        from flax import nnx

        class Chain(nnx.Module):
            def __init__(self, layers: list[Any]) -> None:
                self.a, self.b, self.c = layers

            def __call__(self, x: Any) -> Any:
                return self.c(self.b(self.a(x)))

        return Chain([self.layer(value) for value in values])

    def put_layer(self, model: Any, name: str, value: np.ndarray) -> None:
        setattr(model, name, self.layer(value))

    def put_parameter(self, model: Any, name: str, value: np.ndarray) -> None:
        getattr(model, name).kernel = self.parameter(value)

    def write(self, model: Any, name: str, value: np.ndarray) -> None:
        getattr(model, name).kernel[...] = value.T

    def tie(self, model: Any, name: str, source: str) -> None:
        getattr(model, name).kernel = getattr(model, source).kernel

    def read(self, model: Any, name: str) -> np.ndarray:
        return np.array(getattr(model, name).kernel[...]).T


class Keras:
    # a built Keras layer takes no other variable, nor another layer
    without = ("native_parameter", "native_layer")

    def make(self, values: list[np.ndarray]) -> Any:
        import keras

        layers = [keras.layers.Dense(3, use_bias=False, name=name) for name in "abc"]
        model = keras.Sequential([keras.Input((3,)), *layers])
        for layer, value in zip(layers, values, strict=True):
            layer.set_weights([value.T])
        return model

    def put_layer(self, model: Any, name: str, value: np.ndarray) -> None:
        raise NotImplementedError

    def put_parameter(self, model: Any, name: str, value: np.ndarray) -> None:
        raise NotImplementedError

    def write(self, model: Any, name: str, value: np.ndarray) -> None:
        model.get_layer(name).set_weights([value.T])

    def tie(self, model: Any, name: str, source: str) -> None:
        layer, variable = model.get_layer(name), model.get_layer(source).kernel
        vars(layer)["_kernel"] = layer._trainable_variables[0] = variable  # Keras locks what a built layer holds

    def read(self, model: Any, name: str) -> np.ndarray:
        return np.array(model.get_layer(name).kernel).T


FLAVOURS: dict[str, type[Native]] = {"torch": Torch, "gluon": Gluon, "nnx": Nnx, "keras": Keras}
