"""Keras' weight files, as ``save_weights`` writes them."""

from __future__ import annotations

from pathlib import Path

from multiparam.adapter import Host
from multiparam.errors import Unsupported


def write(source: Host, path: Path) -> None:
    """A model's weights. Raises Unsupported for a layer, which Keras does not save."""
    if not hasattr(source.native, "save_weights"):
        raise Unsupported(f"A Keras layer, {type(source.native).__name__}, has no save_weights: put it in a model.")
    source.native.save_weights(str(path))
