"""PyTorch's weight files, as ``torch.save`` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from multiparam.core.protocol import Host

from .adapter import from_numpy


def write(source: Host | Mapping[str, np.ndarray], path: Path) -> None:
    """A model's own ``state_dict()``, or a dictionary of tensors; an array under two names is stored once."""
    torch.save(_tensors(source) if isinstance(source, Mapping) else source.native.state_dict(), path)


def _tensors(state: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    made: dict[int, tuple[np.ndarray, torch.Tensor]] = {}  # the array stays, so that no other gets its id
    found: dict[str, torch.Tensor] = {}
    for name, array in state.items():
        if id(array) not in made:
            made[id(array)] = array, from_numpy(array)
        found[name] = made[id(array)][1]
    return found
