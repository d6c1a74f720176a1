"""A Functional Keras model for an architecture: real Keras layers, channels last inside, channels first outside."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import layers, ops

from multiparam import nn
from multiparam.adapter import Architecture, Node, data_permutation

from .walk import built, counts

Apply = Callable[[Any], Any]


@keras.saving.register_keras_serializable("multiparam")
class BatchNorm(layers.BatchNormalization):  # type: ignore[misc]
    """Keras' BatchNormalization with PyTorch's running variance, the unbiased one: n / (n - 1) times the batch's."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        old = self.moving_variance * self.momentum
        outputs = super().call(inputs, training=training, mask=mask)
        if training and self.trainable:
            shape = ops.shape(inputs)
            n = ops.cast(ops.prod(ops.convert_to_tensor(shape[:-1])), old.dtype)
            self.moving_variance.assign(old + (self.moving_variance - old) * (n / (n - 1)))
        return outputs


@keras.saving.register_keras_serializable("multiparam")
class InstanceNorm(layers.GroupNormalization):  # type: ignore[misc]
    """Keras' GroupNormalization with a group for each channel."""


def functional(architecture: Architecture, dtype: str) -> Any:
    """The model; the places of the layers that are layers in Keras too are noted, and the others plain functions."""
    natives: dict[int, Any] = {}

    def make(node: Node, build: Callable[[Node], Apply]) -> Apply:
        """What a layer does to data in its order, and the change of order behind it, which is the same at each use."""
        steps = [(child, build(child)) for child in node.children]
        function = None if steps else _function(node, dtype)
        if function is None and not steps:
            native = natives[id(node.layer)] = _native(node, dtype, len(natives))
            padding = nn.sizes(node.layer.padding, len(node.input) - 1) if isinstance(node.layer, nn.Conv) else ()
            function = lambda x: _cut(native(_pad(x, padding, 0.0)), node)  # noqa: E731

        def apply(x: Any) -> Any:
            if isinstance(node.layer, nn.Join):
                return _permute(
                    _joined(node, [_branch(child, step, x) for child, step in steps]), node.shape, node.after
                )
            y = x if function is None else function(x)
            for child, step in steps:
                y = step(_permute(y, child.input, child.convert))
            y = _permute(y, node.shape, node.after)
            return ops.add(x, y) if isinstance(node.layer, nn.Residual) else y

        return apply

    root, apply = architecture.root, architecture.assemble(make)
    x = keras.Input(shape=architecture.input, dtype=architecture.dtype)
    model = keras.Model(x, apply(_permute(x, root.input, root.convert)))
    uses = [node for node in architecture.leaves() if id(node.layer) in natives]
    built[model] = [(node.path, node.positions, natives[id(node.layer)]) for node in uses]
    counts[model] = {node.path: len(node.children) for node in _containers(root)}
    return model


def _branch(node: Node, step: Apply, x: Any) -> Any:
    return _permute(step(_permute(x, node.input, node.convert)), node.shape, node.rejoin)


def _joined(node: Node, outputs: list[Any]) -> Any:
    if isinstance(node.layer, nn.Concat):
        return ops.concatenate(outputs, node.axis)
    return functools.reduce(ops.add, outputs)


def _cut(y: Any, node: Node) -> Any:
    """Of a transposed convolution, what PyTorch's padding leaves."""
    if not isinstance(node.layer, nn.ConvTranspose):
        return y
    padding = nn.sizes(node.layer.padding, len(node.input) - 1)
    return y[(slice(None), *(slice(p, p + n) for p, n in zip(padding, node.shape[1:], strict=True)))]


def _over_space(reduce: Callable[..., Any]) -> Apply:
    return lambda x: reduce(x, axis=tuple(range(1, len(x.shape) - 1)))


def _tokens(x: Any) -> Any:
    return ops.transpose(ops.reshape(x, (-1, x.shape[1], math.prod(x.shape[2:]))), (0, 2, 1))


FUNCTIONS: dict[type, Apply] = {
    nn.ReLU: ops.relu,
    nn.Tanh: ops.tanh,
    nn.Sigmoid: ops.sigmoid,
    nn.Softmax: ops.softmax,
    nn.Identity: lambda x: x,
    nn.GlobalAvgPool: _over_space(ops.mean),
    nn.GlobalMaxPool: _over_space(ops.max),
    nn.Tokens: _tokens,
}


def _containers(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _containers(child)


def _permute(x: Any, shape: nn.Shape, order: str | None) -> Any:
    return x if order is None else ops.transpose(x, data_permutation(shape, order))


def _function(node: Node, dtype: str) -> Apply | None:
    """What a layer without parameters does; None for the others."""
    match node.layer:
        case nn.MaxPool() | nn.AvgPool() as layer:
            kernel, stride, padding = layer.windows(len(node.input) - 1)
            if isinstance(layer, nn.MaxPool):
                return lambda x: _max_pool(_pad(x, padding, float("-inf")), kernel, stride)
            return lambda x: ops.average_pool(_pad(x, padding, 0.0), kernel, stride)
        case nn.Flatten():
            return lambda x: layers.Flatten(dtype=dtype)(x)
        case nn.GELU(approximate):
            return lambda x: _gelu(x, approximate == "tanh")
        case layer:
            return FUNCTIONS.get(type(layer))


def _max_pool(x: Any, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Any:
    """In 3-D one axis after the others: TensorFlow 2.21's 3-D kernel takes no float64, and a maximum is separable."""
    if len(kernel) < 3:
        return ops.max_pool(x, kernel, stride)
    _, depth, *plane, channels = x.shape
    x = ops.max_pool(ops.reshape(x, (-1, *plane, channels)), kernel[1:], stride[1:])
    plane = x.shape[1:3]
    x = ops.reshape(x, (-1, depth, plane[0] * plane[1], channels))
    x = ops.max_pool(x, (kernel[0], 1), (stride[0], 1))
    return ops.reshape(x, (-1, x.shape[1], *plane, channels))


def _gelu(x: Any, tanh: bool) -> Any:
    """TensorFlow 2.21's own rounds its constants to float32, in float64 too."""
    if tanh:
        return 0.5 * x * (1 + ops.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + ops.erf(x * math.sqrt(0.5)))


def _pad(x: Any, padding: tuple[int, ...], value: float) -> Any:
    widths = [(0, 0), *((p, p) for p in padding), (0, 0)]
    return ops.pad(x, widths, constant_values=value) if any(padding) else x


def _keras_name(node: Node, number: int) -> str | None:
    """Keras' names go into TensorFlow scopes, which take few characters, and must be unique among Keras' own.

    They name nothing of ours. Positions are as they are, ``"2"`` or ``"0.1"``; others get a number behind a dot,
    which no name that Keras makes up has.
    """
    name = ".".join(node.path)
    if not name or re.fullmatch(r"[0-9.]+", name):
        return name or None
    return re.sub(r"[^A-Za-z0-9_]", "_", name).lstrip("_") + f".{number}"


def _native(node: Node, dtype: str, number: int) -> Any:
    """The Keras layer of one of ours that has parameters or a mode."""
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
        case nn.ConvTranspose():
            kernel, stride, _ = layer.windows(n)
            convs = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
            return convs[n - 1](layer.out_channels, kernel, stride, "valid", use_bias=layer.bias, **common)
        case nn.GroupNorm():
            return layers.GroupNormalization(layer.num_groups, epsilon=layer.eps, **common)
        case nn.InstanceNorm():
            return InstanceNorm(node.input[0], epsilon=layer.eps, **common)
        case nn.RMSNorm():
            return layers.RMSNormalization(epsilon=layer.eps, **common)
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
