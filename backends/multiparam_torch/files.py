"""PyTorch's weight files as ``torch.save`` writes them, and those of its older format, read."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multiparam.adapter import FileError, Host, flatten

from .arrays import from_numpy


def read_legacy(path: Path) -> Mapping[str, Any]:
    """The tensors of a file in the format before PyTorch 1.6, which is no zip, on the CPU.

    Nested dictionaries are joined with dots. Raises FileError for a file that holds more than plain data.
    """
    try:
        with open(path, "rb") as file:  # by a name like w.safetensors torch would take it for that
            tree = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own advice is to unpickle it
        raise FileError(
            f"{str(path)!r} is damaged, or holds more than tensors and plain data, which multiparam does not unpickle. "
            "Where you trust it, load it with PyTorch and save its state_dict()."
        ) from None
    return flatten(tree)


def write(source: Host | Mapping[str, np.ndarray], path: Path) -> None:
    """A model's own ``state_dict()``, or a dictionary of tensors; an array under two names is stored once."""
    if not isinstance(source, Mapping):
        torch.save(source.native.state_dict(), path)
        return
    items = list(source.items())  # they stay, so that no other array gets the id of one
    tensors = {id(array): from_numpy(array) for _, array in items}
    torch.save({name: tensors[id(array)] for name, array in items}, path)
