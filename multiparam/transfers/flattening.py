"""Linear layers after a flattening: their inputs come channel by channel where data has its channels first, position by
position where it has them last. No file says that there was a flattening; it is inferred from the layers before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import paths
from ..core.layers import KINDS
from .manifest import Entry, Manifest
from .packing import LeafMove, Shapes


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


def as_matrix(array: np.ndarray) -> np.ndarray:
    """A kernel (out, in, positions...) as the matrix of a linear layer whose inputs come channel by channel."""
    return array.reshape(array.shape[0], -1)


def full_size_moves(source: Shapes, target: Shapes, kinds: tuple[str, str]) -> list[LeafMove]:
    """The move of a weight between a linear layer and a convolution over all positions of its inputs, which are one
    function where the linear layer's inputs are these flattened, channel by channel.

    >>> shapes = {"weight": (5, 12)}, {"weight": (5, 3, 2, 2)}
    >>> [move.change for move in full_size_moves(*shapes, ("linear", "conv"))]
    ['as (5, 3, 2, 2), over all positions']
    """
    source_shape, target_shape = source.get("weight", ()), target.get("weight", ())
    matrix, kernel = sorted((source_shape, target_shape), key=len)
    known = {kind for kind in kinds if kind}  # a file need not say
    if not known or not known <= {"linear", "conv"} or len(matrix) != 2 or math.prod(kernel[2:]) == 1:
        return []
    if (kernel[0], math.prod(kernel[1:])) != matrix:
        return []
    change = f"as {target_shape}, over all positions"
    return [LeafMove("weight", ("weight",), lambda array: array.reshape(target_shape), change)]


class Flattening(NamedTuple):
    """An order of flattened inputs that is inferred for the weight of a pair of layers.

    Attributes:
        words: What is inferred.
        permute: Brings the target's weight, made as if both sides flattened alike, into the order; None where they do.
        over_positions: Whether one of the layers is a convolution over all positions.
    """

    words: str
    permute: Callable[[np.ndarray], np.ndarray] | None
    over_positions: bool = False


def flattening_of(source: Manifest, target: Manifest, entries: Mapping[str, Entry], layer: str) -> Flattening | None:
    """The flattening that is inferred for a pair of layers; None where nothing is.

    Args:
        source: The manifest of the source.
        target: That of the target.
        entries: The leaves of the source's layer.
        layer: The target's layer.
    """
    shapes = [each["weight"].spec.shape if "weight" in each else () for each in (entries, target.layers.get(layer, {}))]
    kinds = next((source.kinds.get(paths.split(entry.name), "") for entry in entries.values()), ""), target.kind(layer)
    if full_size_moves({"weight": shapes[0]}, {"weight": shapes[1]}, kinds):
        from_linear = len(shapes[0]) == 2
        order, channels = (source.order, shapes[1][1]) if from_linear else (target.order, shapes[0][1])
        to = "first" if from_linear else "last"
        words = f"the inputs of the linear layer are {channels} channels, flattened"
        if order != "last":
            return Flattening(f"{words} channel by channel", None, True)
        return Flattening(f"{words} position by position", _permuter(channels, to), True)
    channels = flattened_channels(source, target, layer) if kinds[1] == "linear" else 0
    if not channels:
        return None
    words = f"rows permuted: {channels} channels were flattened {source.order}, here {target.order}"
    return Flattening(words, _permuter(channels, str(target.order)))


def _permuter(channels: int, to: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: permute_flattened(as_matrix(array), channels, to).reshape(array.shape)
