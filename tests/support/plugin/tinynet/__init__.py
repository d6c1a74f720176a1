"""A small library of neural networks: NumPy arrays, and the autograd package for gradients.

It knows nothing of multiparam. Images have channels first; a kernel is stored (*space, in / groups, out).
"""

from .layers import (
    GELU,
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    ConvTranspose,
    Dropout,
    Embedding,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    GroupNorm,
    Identity,
    InstanceNorm,
    LayerNorm,
    Linear,
    MaxPool,
    ReLU,
    Residual,
    RMSNorm,
    Sequential,
    Sigmoid,
    Softmax,
    Tanh,
    Tokens,
)  # fmt: skip
from .module import Buffer, Module, Parameter, value_and_grad
from .optim import SGD, Adam, AdamW, Momentum

__all__ = [
    "Adam", "AdamW", "Add", "AvgPool", "BatchNorm", "Buffer", "Concat", "Conv", "ConvTranspose", "Dropout",
    "Embedding", "Flatten", "GELU", "GlobalAvgPool", "GlobalMaxPool", "GroupNorm", "Identity", "InstanceNorm",
    "LayerNorm", "Linear", "MaxPool", "Module", "Momentum", "Parameter", "RMSNorm", "ReLU", "Residual", "SGD",
    "Sequential", "Sigmoid", "Softmax", "Tanh", "Tokens", "value_and_grad",
]  # fmt: skip
