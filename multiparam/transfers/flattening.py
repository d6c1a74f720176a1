"""Linear layers after a flattening: their inputs come channel by channel where data has its channels first, position by
position where it has them last. No file says that there was a flattening; it is inferred from the layers before."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.layers import KINDS
from .manifest import Manifest


def flattened_channels(source: Manifest, target: Manifest, layer: str) -> int:
    """How many channels a linear layer's inputs were flattened from, where the two sides do it in another order: those
    of the last convolution or norm of channels before it, when it has a multiple of them as inputs; else 0."""
    if source.order is None or target.order is None or source.order == target.order:
        return 0
    channels = 0
    for name, leaves in target.layers.items():
        kind, weight = target.kind(name), leaves.get("weight")
        if name == layer:
            inputs = weight.spec.shape[1] if weight else 0
            return channels if channels and inputs > channels and inputs % channels == 0 else 0
        if weight is not None and kind in ("conv", "conv_transpose"):
            groups = target.options.get(name, {}).get("groups", 1)
            channels = weight.spec.shape[0] if kind == "conv" else weight.spec.shape[1] * groups
        elif channels and kind in ("batchnorm", "groupnorm", "instancenorm"):
            channels = next(iter(leaves.values())).spec.shape[0]  # the outputs of several convolutions may be joined
        elif kind in KINDS and kind not in ("prelu", "layernorm", "rmsnorm"):
            channels = 0  # it gives features of its own
    return 0


def permute_flattened(array: np.ndarray, channels: int, to: str) -> np.ndarray:
    """The inputs of a linear layer, (out, channels * positions), in the order of the other flattening.

    ``to="last"``: they came channel by channel and shall come position by position.

    >>> permute_flattened(np.array([[10, 11, 20, 21, 30, 31]]), 3, "last").tolist()
    [[10, 20, 30, 11, 21, 31]]
    """
    rows = array.shape[0]
    split: Any = (rows, channels, -1) if to == "last" else (rows, -1, channels)
    return array.reshape(split).transpose(0, 2, 1).reshape(rows, -1)
