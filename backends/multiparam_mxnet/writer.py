"""MXNet's ``.params`` files: a model's by Gluon, arrays by name without MXNet and one at a time, as they are read."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from multiparam.core.protocol import Host
from multiparam.errors import InvalidArgument

from .files import DENSE, DTYPES, LIST, V2, V3

CPU = (1, 0)  # the kind of device, and which


def write(source: Host | Mapping[str, np.ndarray], path: Path) -> None:
    """A model as ``save_parameters`` writes it, or arrays by name, as ``mx.nd.save`` does."""
    if not isinstance(source, Mapping):
        source.native.save_parameters(str(path))
        return
    with open(path, "wb") as file:
        file.write(struct.pack("<3q", LIST, 0, len(source)))
        for name, array in source.items():
            _check(name, array)
            # an array without axes, or without elements, has a shape only under numpy's rules: npx.set_np()
            magic = V2 if array.ndim and array.size else V3
            file.write(struct.pack("<Ii", magic, DENSE))
            file.write(struct.pack(f"<i{array.ndim}q", array.ndim, *array.shape))
            file.write(struct.pack("<3i", *CPU, DTYPES.index(array.dtype.name)))
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        file.write(struct.pack("<q", len(source)))
        for name in source:
            data = name.encode()
            file.write(struct.pack("<q", len(data)) + data)


def _check(name: str, array: np.ndarray) -> None:
    if array.dtype.name not in DTYPES:
        raise InvalidArgument(f"{name!r} is {array.dtype}, which MXNet has not. It knows {', '.join(DTYPES)}.")
