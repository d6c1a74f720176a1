"""Keras' weight files, as ``save_weights`` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from multiparam.errors import InvalidArgument, Unsupported
from multiparam.model import Model


def write(source: Model | Mapping[str, np.ndarray], path: Path) -> None:
    """A Keras model's weights. Raises InvalidArgument for arrays: the file is laid out as a model's layers are."""
    if not isinstance(source, Model):
        raise InvalidArgument(
            "Keras lays out a .weights.h5 file as the layers of a model are, so arrays alone cannot be written as one: "
            "transfer them into a Keras model, and save that."
        )
    if not hasattr(source.native, "save_weights"):
        raise Unsupported(f"A Keras layer, {type(source.native).__name__}, has no save_weights: wrap it in a model.")
    source.native.save_weights(str(path))
