"""Sides of a transfer of which only names, kinds and shapes are there."""

from __future__ import annotations

import numpy as np

from multiparam.core.state import ArraySpec
from multiparam.transfers.manifest import Entry, Manifest


def manifest(layers: dict[str, dict[str, tuple[int, ...]]], kind: str = "linear") -> Manifest:
    """A side of which only names and shapes are there; its values are ones."""
    entries = {
        layer: {
            leaf: Entry(f"{layer}.{leaf}", ArraySpec(shape, "float32"), (layer, leaf)) for leaf, shape in leaves.items()
        }
        for layer, leaves in layers.items()
    }
    shapes = {entry.name: entry.spec.shape for leaves in entries.values() for entry in leaves.values()}
    kinds = {(layer, leaf): kind for layer, leaves in layers.items() for leaf in leaves}
    return Manifest("side", entries, kinds, lambda name: np.ones(shapes[name], "float32"), {})


def squares(*names: str, kind: str = "linear") -> Manifest:
    return manifest({name: {"weight": (3, 3)} for name in names}, kind)


def kinds_manifest(layers: dict[str, tuple[str, dict[str, tuple[int, ...]]]]) -> Manifest:
    """A side by layer -> its kind, and its leaves' shapes."""
    side = manifest({layer: leaves for layer, (_, leaves) in layers.items()})
    side.kinds = {(layer, leaf): kind for layer, (kind, leaves) in layers.items() for leaf in leaves}
    return side
