"""A file of Flax or Keras for a model of another framework: kernels have their outputs last in both, and what a layer's
other arrays are called says what they are. Of which kind the layer is, the target has to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..core.slots import Box
from .manifest import Entry, Manifest

KERNEL = "kernel"
LEAVES: Mapping[str, str] = {
    KERNEL: "weight", "bias": "bias", "scale": "weight", "gamma": "weight", "beta": "bias", "mean": "running_mean",
    "var": "running_var", "moving_mean": "running_mean", "moving_variance": "running_var", "embedding": "weight",
    "embeddings": "weight",
}  # fmt: skip
KINDS_OF_KERNELS: Mapping[str, range] = {"linear": range(2, 3), "conv": range(3, 6)}  # kind -> its kernel's axes
ROOTS = ("params", "batch_stats", "model_weights")  # what such files have around all layers


def in_pytorchs_form(manifest: Manifest) -> Manifest:
    """The manifest of a file that is in a framework's own layouts, with the layers whose leaves are all known under
    PyTorch's names of leaves, and their kernels outputs first; the others as they are.

    The names of entries stay the file's. What was transposed is in ``outputs_first``: that holds for a linear
    layer and a convolution, and for nothing else.
    """
    layers: dict[str, dict[str, Entry]] = {}
    transposes: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    for layer, leaves in manifest.layers.items():
        bare = {leaf.partition(":")[0]: entry for leaf, entry in leaves.items()}  # kernel:0, as TensorFlow says
        if not bare.keys() <= LEAVES.keys() or (KERNEL in bare and not 2 <= len(bare[KERNEL].spec.shape) <= 5):
            layers.setdefault(layer, {}).update(leaves)
            continue
        for leaf, entry in bare.items():
            if leaf == KERNEL:
                shape = entry.spec.shape
                entry = entry._replace(spec=entry.spec._replace(shape=(shape[-1], shape[-2], *shape[:-2])))
                transposes[entry.name] = _outputs_first
            layers.setdefault(_bare(layer), {})[LEAVES[leaf]] = entry

    def read(name: str) -> np.ndarray:
        array = manifest.read(name)
        return transposes[name](array) if name in transposes else array

    entries = manifest.entries()

    def block(name: str, box: Box) -> np.ndarray:
        if name not in transposes:
            return manifest.block(name, box)
        show: Any = transposes[name]
        array: np.ndarray = show(manifest.lazy(entries[name])).block(box)
        return array

    return replace(
        manifest, layers=layers, read=read, read_block=block, order="last", outputs_first=frozenset(transposes)
    )


def _outputs_first(kernel: np.ndarray) -> np.ndarray:
    """(positions..., in, out) as (out, in, positions...)."""
    return kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))


def _bare(layer: str) -> str:
    """A layer's name without what the file has around all of them, nor its group's, which repeats it: d1.d1."""
    segments = layer.split(".")
    if segments[0] in ROOTS:
        segments = segments[1:]
    return ".".join(each for i, each in enumerate(segments) if i == 0 or each != segments[i - 1])
