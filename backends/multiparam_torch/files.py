"""PyTorch's weight files, without running what a pickle says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from multiparam.formats import flatten


def read(path: Path) -> Mapping[str, Any]:
    """The tensors of a ``.pt``, ``.pth`` or ``.bin`` file on the CPU, mapped into memory where its format allows.

    Nested dictionaries are joined with dots. Raises UnpicklingError for a file that holds more than plain data.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format before PyTorch 1.6 is no zip file
        found = torch.load(path, map_location="cpu", weights_only=True)
    return flatten(found)
