"""The blocks of Gluon for an architecture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from multiparam.adapter import Node, nn

from .load import load

mx = load()
gnn = mx.gluon.nn

# By the number of spatial axes.
CONVS = (gnn.Conv1D, gnn.Conv2D, gnn.Conv3D)
MAX_POOLS = (gnn.MaxPool1D, gnn.MaxPool2D, gnn.MaxPool3D)
AVG_POOLS = (gnn.AvgPool1D, gnn.AvgPool2D, gnn.AvgPool3D)
ACTIVATIONS: dict[type, str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}


class Residual(gnn.HybridBlock):  # type: ignore[misc,name-defined]
    """``x + body(x)``."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return x + self.body(x)


def _ops(F: Any, name: str) -> Any:
    """The operators of the kind of arrays in force; of the numpy kind those under one of its two names."""
    return getattr(F, name) if mx.util.is_np_array() else F


def _gelu(F: Any, x: Any) -> Any:
    """Because LeakyReLU("gelu") of MXNet 1.9.1 rounds its constants to float32, in float64 too."""
    return 0.5 * x * (1 + _ops(F, "npx").erf(x * math.sqrt(0.5)))


def _gelu_tanh(F: Any, x: Any) -> Any:
    return 0.5 * x * (1 + _ops(F, "np").tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _softmax(F: Any, x: Any) -> Any:
    return _ops(F, "npx").softmax(x, axis=-1)


def make(node: Node, build: Callable[[Node], Any]) -> Any:
    """The block of a node; ``build`` gives its children's."""
    layer, n = node.layer, len(node.input) - 1
    match layer:
        case nn.Sequential():
            sequence = gnn.HybridSequential()
            for name, child in zip(layer.names, node.children, strict=True):
                sequence.register_child(build(child), name)
            return sequence
        case nn.Residual():
            return Residual(build(node.children[0]))
        case nn.Linear():
            return gnn.Dense(layer.out_features, flatten=False, use_bias=layer.bias, in_units=node.input[-1])
        case nn.Conv():
            options = {"use_bias": layer.bias, "in_channels": node.input[0]}
            return CONVS[n - 1](layer.out_channels, *layer.windows(n), layer.groups, **options)
        case nn.MaxPool():
            return MAX_POOLS[n - 1](*layer.windows(n))
        case nn.AvgPool():
            return AVG_POOLS[n - 1](*layer.windows(n))
        case nn.BatchNorm():
            return gnn.BatchNorm(epsilon=layer.eps, momentum=1 - layer.momentum, in_channels=node.input[0])
        case nn.LayerNorm():
            return gnn.LayerNorm(epsilon=layer.eps, in_channels=node.input[-1])
        case nn.Embedding():
            return gnn.Embedding(layer.num_embeddings, layer.embedding_dim)
        case nn.Dropout():
            return gnn.Dropout(layer.p)
        case nn.Flatten():
            return gnn.Flatten()
        case nn.GELU():
            return gnn.HybridLambda(_gelu if layer.approximate == "none" else _gelu_tanh)
        case nn.Softmax():
            return gnn.HybridLambda(_softmax)
    return gnn.Activation(ACTIVATIONS[type(layer)])
