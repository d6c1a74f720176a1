"""PyTorch's weight files, as ``torch.save`` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from multiparam.model import Model

from .adapter import from_numpy


def write(source: Model | Mapping[str, np.ndarray], path: Path) -> None:
    """A model's own ``state_dict()``, or a dictionary of tensors; an array under two names is stored once."""
    torch.save(source.native.state_dict() if isinstance(source, Model) else _tensors(source), path)


def _tensors(state: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    made: dict[int, tuple[np.ndarray, torch.Tensor]] = {}  # the array stays, so that no other gets its id
    found: dict[str, torch.Tensor] = {}
    for name, array in state.items():
        if id(array) not in made:
            made[id(array)] = array, from_numpy(array)
        found[name] = made[id(array)][1]
    return found
