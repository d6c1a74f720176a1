"""Orbax checkpoints, read and written by Orbax; read as numpy arrays and not onto devices."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import multiparam.adapter as mpa

try:
    import jax
    from orbax import checkpoint
except ImportError:
    raise mpa.PackageMissing('Orbax checkpoints need orbax-checkpoint. Try: pip install "multiparam[orbax]"') from None

from .files import in_flaxs_layouts, tree_to_write


def read(path: Path) -> Mapping[str, Any]:
    """The arrays of a checkpoint's tree, its keys joined with dots."""
    folder = os.path.abspath(path)  # Orbax takes no other
    restorer = checkpoint.PyTreeCheckpointer()
    described: Any = restorer.metadata(folder)
    for attribute in ("item_metadata", "tree"):  # as of Orbax 0.11
        described = getattr(described, attribute, described)
    how = jax.tree.map(lambda _: checkpoint.RestoreArgs(restore_type=np.ndarray), described)
    return in_flaxs_layouts(mpa.flatten(restorer.restore(folder, restore_args=how)))


def write(source: mpa.Host | Mapping[str, np.ndarray], path: Path) -> None:
    """A model's own variables as a checkpoint's tree, or arrays by name as the tree that their dots say."""
    checkpoint.PyTreeCheckpointer().save(os.path.abspath(path), tree_to_write(source))
