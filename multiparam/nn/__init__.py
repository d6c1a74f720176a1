"""Portable architectures: plain frozen descriptions that every backend builds natively.

Layers say what PyTorch's layers of the same name say (Source: the torch.nn documentation), with input sizes left out:
they are inferred from the inputs. Using one layer object twice shares it. Data is channels first, ``(N, C, *spatial)``.

    >>> shared = Linear(8)
    >>> spec = Sequential(Linear(8), ReLU(), shared, ReLU(), shared, ReLU(), Linear(1))
    >>> net = mp.build(spec, np.ones((2, 4)), backend="torch")
    >>> net.ties(), tuple(net(np.ones((2, 4))).shape)
    ([('2.weight', '4.weight'), ('2.bias', '4.bias')], (2, 1))
"""

from __future__ import annotations

from .further import (
    Add,
    Concat,
    ConvTranspose,
    GlobalAvgPool,
    GlobalMaxPool,
    GroupNorm,
    Identity,
    InstanceNorm,
    Join,
    RMSNorm,
    Tokens,
)
from .layers import (
    GELU,
    AvgPool,
    BatchNorm,
    Container,
    Conv,
    Dropout,
    Embedding,
    Flatten,
    Layer,
    LayerNorm,
    Linear,
    MaxPool,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    Softmax,
    Tanh,
    sizes,
)
from .layers import (
    Shape as Shape,
)
from .layers import (
    Size as Size,
)

__all__ = [
    "Add",
    "AvgPool",
    "BatchNorm",
    "Concat",
    "Container",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "Embedding",
    "Flatten",
    "GELU",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GroupNorm",
    "Identity",
    "InstanceNorm",
    "Join",
    "Layer",
    "LayerNorm",
    "Linear",
    "MaxPool",
    "RMSNorm",
    "ReLU",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "Tokens",
    "sizes",
]
