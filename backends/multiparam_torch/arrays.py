"""Tensors and numpy's arrays."""

from __future__ import annotations

import numpy as np
import torch

# What torch and numpy do not exchange travels as integers of the same size.
CARRIERS = {
    "bfloat16": "int16",
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), "uint8"),
}


def dtype_name(tensor: torch.Tensor) -> str:
    """numpy's name of a tensor's dtype."""
    return str(tensor.dtype).removeprefix("torch.")


def from_numpy(array: np.ndarray) -> torch.Tensor:
    """A tensor that may alias a numpy array."""
    name = array.dtype.name
    if name in CARRIERS:
        return torch.from_numpy(np.array(array).view(CARRIERS[name])).view(getattr(torch, name))
    if any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = np.array(array)  # torch 2 has no negative strides, and warns of memory that nobody may write
    return torch.from_numpy(array)
