"""safetensors files, written and read one tensor at a time.

The format: 8 bytes with the header's length, a JSON header that says each tensor's dtype, shape and place, and the
data, little endian and row by row. The official library reads what this writes, and this what it writes. It is not
used: it wants all tensors at once to write, where one at a time keeps a conversion in the memory of one; it reads into
no memory that is there (:mod:`~multiparam.weights.positioned` has what that is worth); and it maps files, where one
that another program cuts short kills the process.

Source: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..core.arrays import numpy_dtype
from ..core.blocks import box_shape, runs, widened, within
from ..core.slots import Box
from ..core.state import ArraySpec, Source
from ..core.state import spec as spec_of
from ..errors import FileError, InvalidArgument
from .checksums import crc32
from .positioned import LARGE, Positioned
from .strict_json import strict_json

# The format's name of a dtype -> numpy's (or ml_dtypes'), and its bytes. The kinds smaller than a byte are left out.
DTYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "F32": ("float32", 4),
    "C64": ("complex64", 8),
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
}
CODES: Mapping[str, tuple[str, int]] = {name: (code, size) for code, (name, size) in DTYPES.items()}
LARGEST_HEADER = 100_000_000  # bytes; the official library's bound
MOST_AXES = 32  # numpy 1's bound
CHUNK = 1 << 20  # bytes that are written at once
SHORT_RUN = 1 << 10  # bytes of a block that lie together, below which what is between them is read as well
CHECKSUMS = "multiparam.crc32.mib"  # the key of the checksums in the metadata: the header's, then each MiB's
WHOLE = "multiparam.crc32"  # that of files before 1.1, with one for each tensor
MIB = 1 << 20
FORMAT = "pt"  # which hubs' loaders ask for: names and layouts are PyTorch's
CURE = "The file is damaged, or another program has changed it; verify=False reads it all the same."


class Tensor(NamedTuple):
    """An array to be written: all but its values are known beforehand."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    @property
    def width(self) -> int:
        """The bytes of one number. Raises InvalidArgument for a dtype that safetensors has not."""
        if self.dtype not in CODES:
            raise InvalidArgument(
                f"{self.name!r} is {self.dtype}, which safetensors has not. It has: {', '.join(sorted(CODES))}."
            )
        return CODES[self.dtype][1]

    @property
    def nbytes(self) -> int:
        """The bytes of all of them."""
        return math.prod(self.shape) * self.width


class Place(NamedTuple):
    """Where a tensor's bytes are in the data."""

    spec: ArraySpec
    start: int
    end: int


# -- writing


def write_safetensors(file: BinaryIO, tensors: Iterable[Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, reading one tensor at a time.

    The checksums stand in the metadata, before the data: room of fixed width is kept for them, and filled in last.
    Raises InvalidArgument for a name or dtype the format has not.

        >>> import io
        >>> file = io.BytesIO()
        >>> write_safetensors(file, [Tensor("a", (2,), "int8", lambda: np.array([1, 2], "int8"))], {})
        >>> file.getvalue()[-2:]
        b'\\x01\\x02'
    """
    ordered = in_written_order(tensors)
    header = _header(ordered, metadata)
    text = _encode(header)
    file.write(len(text).to_bytes(8, "little") + text)
    checksums = [_header_checksum(header), *(each for tensor in ordered for each in _write_values(file, tensor))]
    mark = f'"{CHECKSUMS}":"'.encode()  # the first key of the first value, so the first such bytes
    file.seek(8 + text.index(mark) + len(mark))
    file.write("".join(f"{each:08x}" for each in checksums).encode())


def in_written_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Wide numbers first, as the official library writes: each tensor is then aligned to the width of its numbers."""
    return sorted(tensors, key=lambda tensor: (-tensor.width, tensor.name))


def _header(ordered: list[Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    count = 1 + sum(-(-tensor.nbytes // MIB) for tensor in ordered)
    texts = {CHECKSUMS: "0" * 8 * count, "format": FORMAT, **metadata}
    header: dict[str, Any] = {"__metadata__": texts}
    start = 0
    for tensor in ordered:
        if tensor.name in header:
            raise InvalidArgument(f"No tensor can be called {tensor.name!r} in a safetensors file, or two of them.")
        end = start + tensor.nbytes
        header[tensor.name] = {
            "dtype": CODES[tensor.dtype][0],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    return header


def _encode(header: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"A name cannot be written as UTF-8: {error.object[error.start :][:40]!r}.") from None
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8, the widest number
    if len(text) > LARGEST_HEADER:
        raise InvalidArgument(f"A header of {len(text)} bytes is more than safetensors allows. Say shard_size=.")
    return text


def _header_checksum(header: Mapping[str, Any]) -> int:
    """The checksum of what a header says, but for the checksums in it; spaces and order do not count."""
    metadata = {key: value for key, value in header["__metadata__"].items() if key not in (CHECKSUMS, WHOLE)}
    return crc32(json.dumps({**header, "__metadata__": metadata}, sort_keys=True).encode())


def _write_values(file: BinaryIO, tensor: Tensor) -> list[int]:
    """Write the values of one tensor, and give their checksums."""
    array = tensor.read()
    if spec_of(array) != (tensor.shape, tensor.dtype):
        raise InvalidArgument(f"{tensor.name!r} was {tensor.shape} {tensor.dtype}, and changed while it was saved.")
    data = _little_endian(array)
    if len(data) < LARGE:
        file.write(data)
        return _checksums_of(data, MIB)
    with ThreadPoolExecutor(1) as pool:  # neither the checksum nor the disk needs the interpreter
        checksums = pool.submit(_checksums_of, data, MIB)
        for start in range(0, len(data), CHUNK):
            file.write(data[start : start + CHUNK])
        return checksums.result()


def _checksums_of(data: memoryview, step: int) -> list[int]:
    return [crc32(data[start : start + step]) for start in range(0, len(data), step)]


def _little_endian(array: np.ndarray) -> memoryview:
    """An array's bytes, little endian; no copy where it is so already."""
    if (array.dtype.byteorder == ">") or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.byteswap()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


# -- reading


class TensorFile(Source):
    """One safetensors file. The header is checked when it is opened, values are read when they are asked for.

    The file stays open, so that what is read is one file even if another is put in its place. ``verify`` is whether
    checksums are looked at, where the file has them. Raises FileError for a file that is not whole or not what it says.
    """

    def __init__(self, path: Path, verify: bool = True) -> None:
        self.path = path
        self._bytes = Positioned(path)
        self._close = weakref.finalize(self, self._bytes.file.close)
        self._verified: dict[str, tuple[int, int]] = {}  # as long as nobody writes to the file
        try:
            header, self._start, size = _read_header(self._bytes.file, path)
            self.metadata: Mapping[str, str] = _metadata(header, path)
            self._places = _places(header, size, path)
            self._checksums = _checksums(header, self._places, path) if verify else {}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._close()

    def __getitem__(self, name: str) -> np.ndarray:
        shape, dtype = self.spec(name)
        array = np.empty(shape, numpy_dtype(dtype))
        self._read(name, array)
        return self._sound(name, array)

    def _read(self, name: str, out: np.ndarray) -> None:
        data = out.reshape(-1).view(np.uint8).data
        self._bytes.fill(data, self._start + self._places[name].start)
        if name in self._checksums and self._verified.get(name) != self._bytes.stamp():
            self._check(name, _checksums_of(data, self._checksums[name][0]))

    def _sound(self, name: str, array: np.ndarray) -> np.ndarray:
        """What was read, in the machine's order of bytes."""
        if array.dtype == bool and array.size and int(array.view(np.uint8).max()) > 1:  # numpy would compute nonsense
            raise FileError(f"{str(self.path)!r}: {name!r} is bool, but holds numbers that are neither 0 nor 1.")
        return array.byteswap() if sys.byteorder == "big" else array

    def read_into(self, name: str, out: np.ndarray) -> bool:
        if self.spec(name).dtype == "bool" or sys.byteorder == "big":  # which are looked at, or turned round
            return False
        self._read(name, out)
        return True

    def spec(self, name: str) -> ArraySpec:
        return self._places[name].spec

    def verify(self, name: str) -> None:
        if self.spec(name).dtype == "bool":
            self[name]
            return
        stamp, place = self._bytes.stamp(), self._places[name]
        step = self._checksums[name][0] if name in self._checksums else MIB
        self._check(name, self._bytes.checksums(self._start + place.start, self._start + place.end, step))
        self._verified[name] = stamp

    def block(self, name: str, box: Box) -> np.ndarray:
        """The runs of bytes that hold the block; what is between short ones is read as well."""
        shape, dtype = self.spec(name)
        size = numpy_dtype(dtype).itemsize
        wider = widened(shape, box, SHORT_RUN // size)
        array = np.empty(box_shape(wider), numpy_dtype(dtype))
        data, (length, starts) = array.reshape(-1).view(np.uint8).data, runs(shape, wider)
        for i, start in enumerate(starts):
            run = data[i * length * size : (i + 1) * length * size]
            self._bytes.fill(run, self._start + self._places[name].start + start * size)
        return self._sound(name, array if wider == box else array[within(box, wider)].copy())

    def verify_block(self, name: str, box: Box) -> None:
        """Those MiB that hold a part of the block. Without checksums there is nothing to hold it against: that the file
        is as long as its header says was seen when it was opened, and to read it twice would double what is read."""
        shape, dtype = self.spec(name)
        if dtype == "bool":
            self.block(name, box)
        length, starts = runs(shape, box)
        places = list(starts) if name in self._checksums and dtype != "bool" else []
        if not places or not length:
            return
        (step, _), size = self._checksums[name], numpy_dtype(dtype).itemsize
        first, last = places[0] * size // step, (places[-1] + length) * size
        start, end = (self._start + at for at in self._places[name][1:])
        stop = min(start + -(-last // step) * step, end)
        self._check(name, self._bytes.checksums(start + first * step, stop, step), first)

    def _check(self, name: str, checksums: list[int], first: int = 0) -> None:
        """See that checksums are those of the file, from so many of them on."""
        if name in self._checksums and self._checksums[name][1][first : first + len(checksums)] != checksums:
            raise FileError(f"{str(self.path)!r}: the values of {name!r} are not those that were written. {CURE}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places


def _exactly(file: Any, size: int, path: Path) -> bytes:
    """So many bytes; one read may give fewer."""
    parts = []
    while size:
        part = file.read(size)
        if not part:
            raise FileError(f"{str(path)!r} ends before its data does: it was cut short.")
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_header(file: Any, path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, where the data starts, and how long it is."""
    size = os.fstat(file.fileno()).st_size
    if size < 10:
        raise FileError(f"{str(path)!r} is no safetensors file: it has only {size} bytes.")
    length = int.from_bytes(_exactly(file, 8, path), "little")
    if length > LARGEST_HEADER:
        raise FileError(f"{str(path)!r} is no safetensors file: its header would be {length} bytes long.")
    if length > size - 8:
        raise FileError(f"{str(path)!r} is cut short: its header has {length} bytes, the file {size}.")
    text = _exactly(file, length, path)
    if not text.startswith(b"{"):
        raise FileError(f"{str(path)!r} is no safetensors file: its header is no JSON object.")
    return strict_json(text, path), 8 + length, size - 8 - length


def _metadata(header: dict[str, Any], path: Path) -> dict[str, str]:
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileError(f"{str(path)!r} has a damaged header: its metadata are not texts.")
    return metadata


def _places(header: Mapping[str, Any], size: int, path: Path) -> dict[str, Place]:
    """Where each tensor is, in the order of the data, which they fill without gap or overlap."""
    places = {name: _place(name, entry, path) for name, entry in header.items() if name != "__metadata__"}
    ordered = dict(sorted(places.items(), key=lambda item: item[1][1:]))
    end = 0
    for name, place in ordered.items():
        if place.start != end:
            raise FileError(f"{str(path)!r} has a damaged header: {name!r} does not start where the one before ends.")
        end = place.end
    if end != size:
        raise FileError(f"{str(path)!r} was cut short or made longer: it has {size} bytes of data; {end} are named.")
    return ordered


def _place(name: str, entry: Any, path: Path) -> Place:
    """Where a tensor is, by its entry in the header, of which nothing is believed before it was looked at."""

    def damaged(what: str) -> FileError:
        return FileError(f"{str(path)!r} has a damaged header: {name!r} {what}.")

    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise damaged("has not a dtype, a shape and offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise damaged(f"is of dtype {code!r}, which multiparam does not know")
    if not _naturals(shape) or len(shape) > MOST_AXES:
        raise damaged(f"has no shape: {shape!r:.80}")
    if not _naturals(offsets) or len(offsets) != 2:
        raise damaged(f"has no offsets: {offsets!r:.80}")
    dtype, bytes_each = DTYPES[code]
    if math.prod(n for n in shape if n) * bytes_each > sys.maxsize:
        raise damaged(f"has a shape too large: {shape!r:.80}")
    if offsets[1] - offsets[0] != math.prod(shape) * bytes_each:
        raise damaged(f"is {tuple(shape)} {dtype}, which {offsets[1] - offsets[0]} bytes are not")
    return Place(ArraySpec(tuple(shape), dtype), *offsets)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)  # True is an int, but no size


def _checksums(header: Mapping[str, Any], places: Mapping[str, Place], path: Path) -> dict[str, tuple[int, list[int]]]:
    """name -> of how many bytes each checksum is, and they, where the file has any. Raises FileError where the header
    is not as it was written."""
    metadata = header.get("__metadata__", {})
    text = metadata.get(CHECKSUMS, metadata.get(WHOLE))
    if text is None and not any(key.startswith("multiparam") for key in metadata):
        return {}
    sizes = {name: place.end - place.start for name, place in places.items()}
    steps = {name: MIB if CHECKSUMS in metadata else max(size, 1) for name, size in sizes.items()}
    counts = [-(-size // steps[name]) if CHECKSUMS in metadata else 1 for name, size in sizes.items()]
    try:
        checksums = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    except (TypeError, ValueError):
        checksums = []
    if len(checksums) != 1 + sum(counts) or checksums[0] != _header_checksum(header):
        raise FileError(f"{str(path)!r} has a header that is not the one written. {CURE}")
    known, at = {}, 1
    for name, count in zip(places, counts, strict=True):
        known[name] = steps[name], checksums[at : at + count] if sizes[name] else []
        at += count
    return known
