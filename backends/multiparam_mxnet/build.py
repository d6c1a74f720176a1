"""The blocks of Gluon for an architecture."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from multiparam.adapter import Node, nn

from .load import load
from .norms import GroupNorm, InstanceNorm, RMSNorm

mx = load()
gnn = mx.gluon.nn

# By the number of spatial axes.
CONVS = (gnn.Conv1D, gnn.Conv2D, gnn.Conv3D)
CONVS_TRANSPOSED = (gnn.Conv1DTranspose, gnn.Conv2DTranspose, gnn.Conv3DTranspose)
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


class Joined(gnn.HybridSequential):  # type: ignore[misc,name-defined]
    """Branches of one input, whose outputs are added or concatenated."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.adds = adds

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        outputs = [branch(x) for branch in self._children.values()]
        if self.adds:
            return sum(outputs[1:], outputs[0])
        return F.np.concatenate(outputs, axis=1) if mx.util.is_np_array() else F.concat(*outputs, dim=1)


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


def _global_avg_pool(F: Any, x: Any) -> Any:
    return _flat(F, x).mean(axis=-1)


def _global_max_pool(F: Any, x: Any) -> Any:
    return _flat(F, x).max(axis=-1)


def _tokens(F: Any, x: Any) -> Any:
    return _ops(F, "np").transpose(_flat(F, x), (0, 2, 1))


def _flat(F: Any, x: Any) -> Any:
    """Space as one axis."""
    return F.npx.reshape(x, (-2, -2, -1)) if mx.util.is_np_array() else x.reshape((0, 0, -1))


def _identity(F: Any, x: Any) -> Any:
    return F.identity(x) if not mx.util.is_np_array() else x


FUNCTIONS: dict[type, Callable[[Any, Any], Any]] = {
    nn.Softmax: _softmax,
    nn.Identity: _identity,
    nn.GlobalAvgPool: _global_avg_pool,
    nn.GlobalMaxPool: _global_max_pool,
    nn.Tokens: _tokens,
}


def _conv(layer: Any, node: Node) -> Any:
    options, n = {"use_bias": layer.bias, "in_channels": node.input[0]}, len(node.input) - 2
    if isinstance(layer, nn.ConvTranspose):
        return CONVS_TRANSPOSED[n](layer.out_channels, *layer.windows(n + 1), **options)
    return CONVS[n](layer.out_channels, *layer.windows(n + 1), layer.groups, **options)


def _pool(layer: Any, node: Node) -> Any:
    n = len(node.input) - 1
    return (MAX_POOLS if isinstance(layer, nn.MaxPool) else AVG_POOLS)[n - 1](*layer.windows(n))


def _batch_norm(layer: Any, node: Node) -> Any:
    return gnn.BatchNorm(epsilon=layer.eps, momentum=1 - layer.momentum, in_channels=node.input[0])


MAKERS: dict[type, Callable[[Any, Node], Any]] = {
    nn.Linear: lambda at, node: gnn.Dense(at.out_features, flatten=False, use_bias=at.bias, in_units=node.input[-1]),
    **dict.fromkeys((nn.Conv, nn.ConvTranspose), _conv),
    **dict.fromkeys((nn.MaxPool, nn.AvgPool), _pool),
    nn.BatchNorm: _batch_norm,
    nn.LayerNorm: lambda at, node: gnn.LayerNorm(epsilon=at.eps, in_channels=node.input[-1]),
    nn.GroupNorm: lambda at, node: GroupNorm(node.input, at.num_groups, at.eps),
    nn.InstanceNorm: lambda at, node: InstanceNorm(node.input, node.input[0], at.eps),
    nn.RMSNorm: lambda at, node: RMSNorm(node.input[-1], at.eps),
    nn.Embedding: lambda at, node: gnn.Embedding(at.num_embeddings, at.embedding_dim),
    nn.Dropout: lambda at, node: gnn.Dropout(at.p),
    nn.Flatten: lambda at, node: gnn.Flatten(),
    nn.GELU: lambda at, node: gnn.HybridLambda(_gelu if at.approximate == "none" else _gelu_tanh),
    **{kind: partial(lambda function, at, node: gnn.HybridLambda(function), each) for kind, each in FUNCTIONS.items()},
    **{kind: partial(lambda name, at, node: gnn.Activation(name), each) for kind, each in ACTIVATIONS.items()},
}


def make(node: Node, build: Callable[[Node], Any]) -> Any:
    """The block of a node; ``build`` gives its children's."""
    layer = node.layer
    if isinstance(layer, nn.Residual):
        return Residual(build(node.children[0]))
    if not isinstance(layer, nn.Container):
        return MAKERS[type(layer)](layer, node)
    sequence = Joined(isinstance(layer, nn.Add)) if isinstance(layer, nn.Join) else gnn.HybridSequential()
    for name, child in zip(layer.names, node.children, strict=True):
        sequence.register_child(build(child), name)
    return sequence
