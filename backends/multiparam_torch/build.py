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
CONVS_TRANSPOSED: tuple[Module, ...] = (tnn.ConvTranspose1d, tnn.ConvTranspose2d, tnn.ConvTranspose3d)
INSTANCE_NORMS: tuple[Module, ...] = (tnn.InstanceNorm1d, tnn.InstanceNorm2d, tnn.InstanceNorm3d)


class Residual(tnn.Module):
    """``x + body(x)``."""

    def __init__(self, body: tnn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> Any:
        return x + self.body(x)


class Joined(tnn.Sequential):
    """Branches of one input, whose outputs are added or concatenated."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.adds = adds

    def forward(self, x: torch.Tensor) -> Any:
        outputs = [branch(x) for branch in self]
        return sum(outputs[1:], outputs[0]) if self.adds else torch.cat(outputs, 1)


class GlobalAvgPool(tnn.Module):
    """The mean over all spatial axes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).mean(-1)


class GlobalMaxPool(tnn.Module):
    """The maximum over all spatial axes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).amax(-1)


class Tokens(tnn.Module):
    """(N, channels, *spatial) as (N, positions, channels)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


PLAIN: dict[type, Module] = {
    nn.Flatten: tnn.Flatten,
    nn.ReLU: tnn.ReLU,
    nn.Tanh: tnn.Tanh,
    nn.Sigmoid: tnn.Sigmoid,
    nn.Identity: tnn.Identity,
    nn.GlobalAvgPool: GlobalAvgPool,
    nn.GlobalMaxPool: GlobalMaxPool,
    nn.Tokens: Tokens,
}


def _space(classes: tuple[Module, ...], node: Node) -> Module:
    return classes[len(node.input) - 2]


def _windows(node: Node) -> Any:
    layer: Any = node.layer
    return layer.windows(len(node.input) - 1)


def _conv(layer: Any, node: Node) -> tnn.Module:
    return _space(CONVS, node)(node.input[0], layer.out_channels, *_windows(node), layer.groups, layer.bias)


def _conv_transpose(layer: Any, node: Node) -> tnn.Module:
    return _space(CONVS_TRANSPOSED, node)(node.input[0], layer.out_channels, *_windows(node), bias=layer.bias)


MAKERS: dict[type, Callable[[Any, Node], tnn.Module]] = {
    nn.Linear: lambda at, node: tnn.Linear(node.input[-1], at.out_features, bias=at.bias),
    nn.Conv: _conv,
    nn.ConvTranspose: _conv_transpose,
    nn.MaxPool: lambda at, node: _space(MAX_POOLS, node)(*_windows(node)),
    nn.AvgPool: lambda at, node: _space(AVG_POOLS, node)(*_windows(node)),
    nn.BatchNorm: lambda at, node: BATCH_NORMS[len(node.input) - 1](node.input[0], at.eps, at.momentum),
    nn.LayerNorm: lambda at, node: tnn.LayerNorm(node.input[-1], at.eps),
    nn.GroupNorm: lambda at, node: tnn.GroupNorm(at.num_groups, node.input[0], at.eps),
    nn.InstanceNorm: lambda at, node: _space(INSTANCE_NORMS, node)(node.input[0], at.eps, affine=True),
    nn.RMSNorm: lambda at, node: tnn.RMSNorm(node.input[-1], at.eps),
    nn.Embedding: lambda at, node: tnn.Embedding(at.num_embeddings, at.embedding_dim),
    nn.Dropout: lambda at, node: tnn.Dropout(at.p),
    nn.GELU: lambda at, node: tnn.GELU(at.approximate),
    nn.Softmax: lambda at, node: tnn.Softmax(-1),
}


def make(node: Node, build: Callable[[Node], tnn.Module]) -> tnn.Module:
    """The module of a node; ``build`` gives its children's."""
    layer = node.layer
    if isinstance(layer, nn.Residual):
        return Residual(build(node.children[0]))
    if not isinstance(layer, nn.Container):
        return MAKERS[type(layer)](layer, node) if type(layer) in MAKERS else PLAIN[type(layer)]()
    sequence = Joined(isinstance(layer, nn.Add)) if isinstance(layer, nn.Join) else tnn.Sequential()
    for name, child in zip(layer.names, node.children, strict=True):
        try:
            sequence.add_module(name, build(child))
        except KeyError as error:  # a dot, nothing, or an attribute of Sequential
            raise InvalidArgument(f"PyTorch takes no child named {name!r}: {error.args[0]}") from None
    return sequence
