"""MXNet's ``.params`` files, read and, arrays by name, written without MXNet, one array at a time.

MXNet's own reader takes a file only under the shape semantics it was written with (``npx.set_np()`` or not), reads all
of it at once, and trusts what it says. The format is a list of arrays, then their names; little endian.

Source: ``src/ndarray/ndarray.cc`` of MXNet 1.9.1, ``NDArray::Save``.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from multiparam.adapter import ArraySpec, FileError, Host, InvalidArgument, Stamp, numpy_dtype

LIST, V1, V2, V3 = 0x112, 0xF993FAC8, 0xF993FAC9, 0xF993FACA  # V3: numpy's shapes, where () is a scalar
DENSE = 0
CPU = (1, 0)  # the kind of device, and which
SIZES = {
    "float32": 4, "float64": 8, "float16": 2, "uint8": 1, "int32": 4, "int8": 1, "int64": 8, "bool": 1,
    "int16": 2, "uint16": 2, "uint32": 4, "uint64": 8, "bfloat16": 2,
}  # fmt: skip
DTYPES = tuple(SIZES)  # by the numbers that files have for them
LONGEST_NAME = 1 << 16


class LazyArray:
    """One array of a file, read when numpy asks for it."""

    def __init__(self, stamp: Stamp, start: int, shape: tuple[int, ...], dtype: str) -> None:
        self._stamp = stamp
        self._start = start
        self.spec = ArraySpec(shape, dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        shape, name = self.spec
        with open(self._stamp.path, "rb") as file:
            self._stamp.check()
            file.seek(self._start)
            array = np.fromfile(file, numpy_dtype(name), math.prod(shape))
        if array.size != math.prod(shape):
            raise FileError(f"{str(self._stamp.path)!r} ends before its data does: it was cut short.")
        return array.reshape(shape) if dtype is None else array.reshape(shape).astype(dtype)


def read(path: Path) -> Mapping[str, Any]:
    """name -> array; ``arg:`` and ``aux:`` before a name are dropped, arrays without names are numbered.

    Raises FileError for a file that is damaged, or that holds sparse arrays.
    """
    with open(path, "rb") as file:
        return _File(path, file).arrays()


class _File:
    """A cursor over a file, which checks every length against what is left of it."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._stamp = Stamp(path)
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def _error(self, what: str) -> FileError:
        return FileError(f"{str(self._path)!r} is no .params file, or is damaged: {what}.")

    def _number(self, size: int) -> int:
        data = self._file.read(size)
        if len(data) < size:
            raise self._error("it ends too early")
        return int.from_bytes(data, "little", signed=True)

    def _skip(self, size: int) -> int:
        """Go past some bytes, which must be there; where they start."""
        at = self._file.tell()
        if size > self._size - at:
            raise self._error("it ends too early")
        self._file.seek(at + size)
        return at

    def arrays(self) -> dict[str, LazyArray]:
        if self._number(8) != LIST or self._number(8) != 0:
            raise self._error("it does not begin as one")
        arrays = [self._array() for _ in self._counted(8)]
        names = [self._name() for _ in self._counted(8)] or [str(i) for i in range(len(arrays))]
        if self._file.tell() != self._size:
            raise self._error("there is something behind its end")
        bare = [name.removeprefix("arg:").removeprefix("aux:") for name in names]
        if len(set(bare)) != len(arrays) or len(bare) != len(arrays):
            raise self._error(f"it has {len(arrays)} arrays and {len(set(bare))} names")
        return dict(zip(bare, arrays, strict=True))

    def _counted(self, least: int) -> Iterator[int]:
        """As many indices as a count says; each item takes so many bytes at least."""
        count = self._number(8)
        if not 0 <= count <= (self._size - self._file.tell()) // least:
            raise self._error(f"it would hold {count} of something")
        return iter(range(count))

    def _name(self) -> str:
        length = self._number(8)
        if not 0 <= length <= LONGEST_NAME:
            raise self._error(f"a name would be {length} bytes long")
        try:
            return self._file.read(length).decode()
        except UnicodeDecodeError:
            raise self._error("a name is no UTF-8") from None

    def _array(self) -> LazyArray:
        magic = self._number(4) & 0xFFFFFFFF
        if magic in (V2, V3) and self._number(4) != DENSE:
            raise self._error("it holds a sparse array, which multiparam does not read")
        if magic in (V1, V2, V3):
            shape = self._shape(self._number(4), 8)
        else:  # before MXNet 0.11: no magic number, and short axes
            shape = self._shape(magic, 4)
        if shape is None or (shape == () and magic != V3):
            raise self._error("it holds an array that was never filled")
        self._skip(8)  # the device
        code = self._number(4)
        if not 0 <= code < len(DTYPES):
            raise self._error(f"it holds an array of dtype number {code}")
        dtype = DTYPES[code]
        return LazyArray(self._stamp, self._skip(math.prod(shape) * SIZES[dtype]), shape, dtype)

    def _shape(self, ndim: int, size: int) -> tuple[int, ...] | None:
        if ndim == -1:
            return None
        if not 0 <= ndim <= 32:
            raise self._error(f"an array would have {ndim} axes")
        shape = tuple(self._number(size) for _ in range(ndim))
        if any(n < 0 for n in shape) or math.prod(n for n in shape if n) > 1 << 60:
            raise self._error(f"an array would have shape {shape}")
        return shape


def write(source: Host | Mapping[str, np.ndarray], path: Path) -> None:
    """A model as ``save_parameters`` writes it, or arrays by name, as ``mx.nd.save`` does."""
    if not isinstance(source, Mapping):
        source.native.save_parameters(str(path))
        return
    with open(path, "wb") as file:
        file.write(struct.pack("<3q", LIST, 0, len(source)))
        for name, array in source.items():
            if array.dtype.name not in DTYPES:
                known = ", ".join(DTYPES)
                raise InvalidArgument(f"{name!r} is {array.dtype}, which MXNet has not. It knows {known}.")
            # An array without axes, or without elements, has a shape only under numpy's rules: npx.set_np()
            magic = V2 if array.ndim and array.size else V3
            file.write(struct.pack("<Ii", magic, DENSE))
            file.write(struct.pack(f"<i{array.ndim}q", array.ndim, *array.shape))
            file.write(struct.pack("<3i", *CPU, DTYPES.index(array.dtype.name)))
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        file.write(struct.pack("<q", len(source)))
        for data in map(str.encode, source):
            file.write(struct.pack("<q", len(data)) + data)
