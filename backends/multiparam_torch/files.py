"""PyTorch's weight files, without running what a pickle says."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from multiparam.errors import FileError
from multiparam.weights.formats import flatten


def read(path: Path) -> Mapping[str, Any]:
    """The tensors of a ``.pt``, ``.pth`` or ``.bin`` file on the CPU, mapped into memory where its format allows.

    Nested dictionaries are joined with dots. Raises FileError for a file that holds more than plain data.
    """
    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before PyTorch 1.6 is no zip file
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own advice is to unpickle it
        raise FileError(
            f"{str(path)!r} is damaged, or holds more than tensors and plain data, which multiparam does not unpickle. "
            "Where you trust it, load it with PyTorch and save its state_dict()."
        ) from None
    return flatten(found)
