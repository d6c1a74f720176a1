"""A small library of neural networks: NumPy arrays, and the autograd package for gradients.

It knows nothing of multiparam. Images have channels first; a kernel is stored (*space, in / groups, out).
"""

from .layers import (
    GELU,
    AvgPool,
    BatchNorm,
    Conv,
    Dropout,
    Embedding,
    Flatten,
    LayerNorm,
    Linear,
    MaxPool,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    Softmax,
    Tanh,
)  # fmt: skip
from .module import Buffer, Module, Parameter, value_and_grad
from .optim import SGD, Adam, Momentum

__all__ = [
    "GELU", "SGD", "Adam", "AvgPool", "BatchNorm", "Buffer", "Conv", "Dropout", "Embedding", "Flatten", "LayerNorm",
    "Linear", "MaxPool", "Module", "Momentum", "Parameter", "ReLU", "Residual", "Sequential", "Sigmoid", "Softmax",
    "Tanh", "value_and_grad",
]  # fmt: skip
