"""What layers take and give, as numpy: kept for the reference, compared for others as it comes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..core.protocol import Activation
from ..transfers.apply import arrays_of

MEMORY = 1 << 30  # bytes of activations that are kept in memory; what is beyond goes to a temporary file each


class Call(NamedTuple):
    """One call of a layer. Arrays are as the framework has them, whichever axis has the channels."""

    layer: str
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]


def call_of(seen: Activation) -> Call:
    """An activation as numpy; the arrays may alias the framework's."""
    return Call(seen.layer, tuple(arrays_of(seen.inputs)), tuple(arrays_of(seen.output)))


def chosen(layers: Sequence[str], see: Callable[[Call], None]) -> Callable[[Activation], None]:
    """Show only the calls of layers that one of the globs fits, all where there is none, and nothing of the others is
    made numpy."""

    def shown(seen: Activation) -> None:
        if not layers or any(fnmatchcase(seen.layer, pattern) for pattern in layers):
            see(call_of(seen))

    return shown


class Kept:
    """The calls of a pass, in order. Equal arrays, as one layer's output and the next one's input, are kept once; those
    beyond ``memory`` bytes are on disk, in a folder that goes with this object.

    >>> kept, x = Kept(memory=100), np.zeros(10)
    >>> kept.add(Call("0", (x,), (x + 1,)))
    >>> kept.add(Call("1", (x + 1,), (x + 2,)))
    >>> [type(array).__name__ for call in kept for array in (*call.inputs, *call.outputs)]
    ['ndarray', 'memmap', 'memmap', 'memmap']
    """

    def __init__(self, calls: Iterable[Call] = (), memory: int = MEMORY) -> None:
        self._calls: list[Call] = []
        self._arrays: dict[bytes, np.ndarray] = {}
        self._left = memory
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        for call in calls:
            self.add(call)

    def add(self, call: Call) -> None:
        """Keep a call: its arrays are copied, since frameworks write into their memory again."""
        inputs, outputs = (tuple(map(self._keep, arrays)) for arrays in (call.inputs, call.outputs))
        self._calls.append(Call(call.layer, inputs, outputs))

    def _keep(self, array: np.ndarray) -> np.ndarray:
        key = digest(array)
        known = self._arrays.get(key)
        if known is None:
            self._left -= array.nbytes
            known = self._arrays[key] = np.array(array) if self._left >= 0 else self._on_disk(array)
        return known

    def _on_disk(self, array: np.ndarray) -> np.ndarray:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="multiparam-")
        path = Path(self._folder.name) / f"{len(self._arrays)}.npy"
        np.save(path, array, allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False).view(array.dtype)  # type: ignore[no-any-return]

    @property
    def layers(self) -> list[str]:
        """The layer of each call."""
        return [call.layer for call in self._calls]

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    def __getitem__(self, index: int) -> Call:
        return self._calls[index]


def digest(array: np.ndarray) -> bytes:
    """The same for arrays of the same bits, shape and dtype only."""
    sum = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=16)
    sum.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sum.digest()
