"""A Functional Keras model for an architecture: real Keras layers, channels last inside, channels first outside."""

from __future__ import annotations

import math
import re
from typing import Any

import keras
from keras import layers, ops

from multiparam import nn


@keras.saving.register_keras_serializable("multiparam")
class BatchNorm(layers.BatchNormalization):  # type: ignore[misc]
    """Keras' BatchNormalization with PyTorch's running variance, the unbiased one: n / (n - 1) times the batch's."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        kept = self.moving_variance * self.momentum
        outputs = super().call(inputs, training=training, mask=mask)
        if training and self.trainable:
            shape = ops.shape(inputs)
            n = ops.cast(ops.prod(ops.convert_to_tensor(shape[:-1])), kept.dtype)
            self.moving_variance.assign(kept + (self.moving_variance - kept) * (n / (n - 1)))
        return outputs


Place = tuple[tuple[str, ...], tuple[int, ...], Any]


def functional(architecture: nn.Architecture, dtype: str) -> tuple[Any, list[Place]]:
    """The model, and the path of every use of every layer that holds parameters."""
    made: dict[int, Any] = {}
    places: list[Place] = []
    x = keras.Input(shape=architecture.input, dtype=architecture.dtype)
    return keras.Model(x, _apply(architecture.root, x, made, places, dtype)), places


def _convert(x: Any, shape: nn.Shape, order: str | None) -> Any:
    return x if order is None else ops.transpose(x, nn.convert(shape, order))


def _apply(node: nn.Node, x: Any, made: dict[int, Any], places: list[Place], dtype: str) -> Any:
    x = _convert(x, node.input, node.convert)
    if isinstance(node.layer, nn.Residual):
        y = _apply(node.children[0], x, made, places, dtype)
        return ops.add(x, _convert(y, node.shape, node.after))
    if isinstance(node.layer, nn.Sequential):
        for child in node.children:
            x = _apply(child, x, made, places, dtype)
    else:
        x = _leaf(node, x, made, places, dtype)
    return _convert(x, node.shape, node.after)


def _leaf(node: nn.Node, x: Any, made: dict[int, Any], places: list[Place], dtype: str) -> Any:
    layer, n = node.layer, len(node.input) - 1
    match layer:
        case nn.MaxPool() | nn.AvgPool():
            kernel, stride, padding = layer.windows(n)
            if isinstance(layer, nn.MaxPool):
                return _max_pool(_pad(x, padding, float("-inf")), kernel, stride)
            return ops.average_pool(_pad(x, padding, 0.0), kernel, stride)
        case nn.Flatten():
            return layers.Flatten(dtype=dtype)(x)
        case nn.ReLU():
            return ops.relu(x)
        case nn.Tanh():
            return ops.tanh(x)
        case nn.Sigmoid():
            return ops.sigmoid(x)
        case nn.GELU():
            return _gelu(x, layer.approximate == "tanh")
        case nn.Softmax():
            return ops.softmax(x, axis=-1)
        case nn.Conv():
            x = _pad(x, nn.sizes(layer.padding, n), 0.0)
    known = made.get(id(layer))
    if known is None:
        known = made[id(layer)] = _make(node, dtype, len(places))
    places.append((node.path, node.positions, known))
    return known(x)


def _max_pool(x: Any, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Any:
    """In 3-D one axis after the others: TensorFlow's 3-D kernel takes no float64, and a maximum is separable."""
    if len(kernel) < 3:
        return ops.max_pool(x, kernel, stride)
    _, depth, *plane, channels = x.shape
    x = ops.max_pool(ops.reshape(x, (-1, *plane, channels)), kernel[1:], stride[1:])
    plane = x.shape[1:3]
    x = ops.reshape(x, (-1, depth, plane[0] * plane[1], channels))
    x = ops.max_pool(x, (kernel[0], 1), (stride[0], 1))
    return ops.reshape(x, (-1, x.shape[1], *plane, channels))


def _gelu(x: Any, tanh: bool) -> Any:
    """TensorFlow's own rounds its constants to float32, in float64 too."""
    if tanh:
        return 0.5 * x * (1 + ops.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + ops.erf(x * math.sqrt(0.5)))


def _pad(x: Any, padding: tuple[int, ...], value: float) -> Any:
    if not any(padding):
        return x
    return ops.pad(x, [(0, 0), *((p, p) for p in padding), (0, 0)], constant_values=value)


def _keras_name(node: nn.Node, number: int) -> str | None:
    """Keras' names go into TensorFlow scopes, which take few characters, and must be unique among Keras' own.

    They name nothing of ours. Positions are as they are, ``"2"`` or ``"0.1"``; others get a number behind a dot,
    which no name that Keras makes up has.
    """
    name = ".".join(node.path)
    if not name or re.fullmatch(r"[0-9.]+", name):
        return name or None
    return re.sub(r"[^A-Za-z0-9_]", "_", name).lstrip("_") + f".{number}"


def _make(node: nn.Node, dtype: str, number: int) -> Any:
    layer, n = node.layer, len(node.input) - 1
    common = {"dtype": dtype, "name": _keras_name(node, number)}
    match layer:
        case nn.Linear():
            return layers.Dense(layer.out_features, use_bias=layer.bias, **common)
        case nn.Conv():
            return (layers.Conv1D, layers.Conv2D, layers.Conv3D)[n - 1](
                layer.out_channels, nn.sizes(layer.kernel_size, n), nn.sizes(layer.stride, n), "valid",
                dilation_rate=nn.sizes(layer.dilation, n), groups=layer.groups, use_bias=layer.bias, **common,
            )  # fmt: skip
        case nn.BatchNorm():
            return BatchNorm(momentum=1 - layer.momentum, epsilon=layer.eps, **common)
        case nn.LayerNorm():
            return layers.LayerNormalization(epsilon=layer.eps, **common)
        case nn.Embedding():
            return layers.Embedding(layer.num_embeddings, layer.embedding_dim, **common)
        case nn.Dropout():
            return layers.Dropout(layer.p, **common)
        case _:
            raise TypeError(f"no Keras layer for {type(layer).__name__}")
