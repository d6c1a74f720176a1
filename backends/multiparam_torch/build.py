"""The modules of torch.nn for an architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn as tnn

from multiparam.adapter import InvalidArgument, Node, nn

Module = Callable[..., tnn.Module]
# By the number of spatial axes; BatchNorm1d is of none as well.
CONVS: tuple[Module, ...] = (tnn.Conv1d, tnn.Conv2d, tnn.Conv3d)
MAX_POOLS: tuple[Module, ...] = (tnn.MaxPool1d, tnn.MaxPool2d, tnn.MaxPool3d)
AVG_POOLS: tuple[Module, ...] = (tnn.AvgPool1d, tnn.AvgPool2d, tnn.AvgPool3d)
BATCH_NORMS: tuple[Module, ...] = (tnn.BatchNorm1d, tnn.BatchNorm1d, tnn.BatchNorm2d, tnn.BatchNorm3d)
PLAIN: dict[type, Module] = {nn.Flatten: tnn.Flatten, nn.ReLU: tnn.ReLU, nn.Tanh: tnn.Tanh, nn.Sigmoid: tnn.Sigmoid}


class Residual(tnn.Module):
    """``x + body(x)``."""

    def __init__(self, body: tnn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> Any:
        return x + self.body(x)


def make(node: Node, build: Callable[[Node], tnn.Module]) -> tnn.Module:
    """The module of a node; ``build`` gives its children's."""
    layer, n = node.layer, len(node.input) - 1
    match layer:
        case nn.Sequential():
            sequence = tnn.Sequential()
            for name, child in zip(layer.names, node.children, strict=True):
                try:
                    sequence.add_module(name, build(child))
                except KeyError as error:  # a dot, nothing, or an attribute of Sequential
                    raise InvalidArgument(f"PyTorch takes no child named {name!r}: {error.args[0]}") from None
            return sequence
        case nn.Residual():
            return Residual(build(node.children[0]))
        case nn.Linear():
            return tnn.Linear(node.input[-1], layer.out_features, bias=layer.bias)
        case nn.Conv():
            return CONVS[n - 1](node.input[0], layer.out_channels, *layer.windows(n), layer.groups, layer.bias)
        case nn.MaxPool():
            return MAX_POOLS[n - 1](*layer.windows(n))
        case nn.AvgPool():
            return AVG_POOLS[n - 1](*layer.windows(n))
        case nn.BatchNorm():
            return BATCH_NORMS[n](node.input[0], layer.eps, layer.momentum)
        case nn.LayerNorm():
            return tnn.LayerNorm(node.input[-1], layer.eps)
        case nn.Embedding():
            return tnn.Embedding(layer.num_embeddings, layer.embedding_dim)
        case nn.Dropout():
            return tnn.Dropout(layer.p)
        case nn.GELU():
            return tnn.GELU(layer.approximate)
        case nn.Softmax():
            return tnn.Softmax(-1)
    return PLAIN[type(layer)]()
