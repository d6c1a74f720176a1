"""Storages over torch's Parameters and buffers, and what stands in the place of a transposed tie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn as tnn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from multiparam.adapter import Layout

from . import sharded
from .arrays import dtype_name


class TorchStorage:
    """A Parameter, looked up where its module keeps it: native code puts others there.

    Attributes:
        table: A module's ``_parameters`` or ``_buffers``; of a copy that no module has yet, one of its own.
        name: The key in it.
    """

    __slots__ = ("table", "name")

    def __init__(self, native: torch.Tensor, table: dict[str, Any], name: str) -> None:
        self.table, self.name = table, name

    @property
    def native(self) -> torch.Tensor:
        tensor: torch.Tensor = self.table[self.name]
        return tensor

    @property
    def shape(self) -> tuple[int, ...] | None:
        return None if is_lazy(self.native) else tuple(self.native.shape)

    @property
    def dtype(self) -> str:
        return dtype_name(self.native)

    @property
    def trainable(self) -> bool:
        return self.native.requires_grad

    @trainable.setter
    def trainable(self, flag: bool) -> None:
        self.native.requires_grad_(flag)
        if not flag:
            self.native.grad = None  # an optimizer would still follow it

    def read(self) -> torch.Tensor:
        return self.native

    def write(self, value: np.ndarray) -> None:
        sharded.write(self.native, value)

    def grad(self) -> torch.Tensor | None:
        return self.native.grad

    def hold_grad(self) -> Callable[[], None]:
        native, grad = self.native, self.native.grad  # the tensor itself: a step lets go of it and does not change it
        return lambda: setattr(native, "grad", grad)


class TiedView(tnn.Module):
    """The parametrization of a transposed tie: a module computes with a layout of another's Parameter."""

    def __init__(self, layout: Layout, position: int) -> None:
        super().__init__()
        self.layout = layout
        self.position = position  # of the parameter among its module's, which torch forgets

    def forward(self, source: torch.Tensor) -> Any:
        return self.layout.apply(source, torch)


def tied_leaves(module: tnn.Module) -> list[tuple[str, TiedView, tnn.Parameter]]:
    """A module's parameters that are transposed ties, in their order: name, view, and the Parameter it is a view of."""
    lists = module._modules.get("parametrizations")
    if lists is None:
        return []
    chains = [(name, chain) for name, chain in lists._modules.items() if isinstance(chain, ParametrizationList)]
    tied: list[Any] = [(name, chain[0], chain.original) for name, chain in chains if isinstance(chain[0], TiedView)]
    return sorted(tied, key=lambda leaf: leaf[1].position)


def with_memory(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the meta device as one of zeros, on the device that torch makes tensors on."""
    device = torch.get_default_device()
    values = torch.zeros_like(tensor, device="cpu" if device.type == "meta" else device)
    return tnn.Parameter(values, tensor.requires_grad) if isinstance(tensor, tnn.Parameter) else values
