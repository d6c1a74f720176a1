"""What layers take and give, as numpy: cached for the reference, compared for a candidate as it comes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..core.outputs import arrays_of, as_it_is
from ..core.protocol import Activation

MEMORY = 1 << 30  # bytes of activations that a cache holds in memory; what is beyond goes to a temporary file each


class LayerCall(NamedTuple):
    """One call of a layer. Arrays are as the framework has them, whichever axis has the channels."""

    layer: str
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]


OnCall = Callable[[LayerCall], None]


class LayerCalls(Protocol):
    """The calls of a pass, in order, wherever they are: in memory, on disk or in a recording."""

    @property
    def layers(self) -> list[str]:
        """The layer of each call."""
        ...

    def __getitem__(self, index: int) -> LayerCall: ...
    def __iter__(self) -> Iterator[LayerCall]: ...
    def __len__(self) -> int: ...


def to_layer_call(activation: Activation, gather: Callable[[Any], Any] = as_it_is) -> LayerCall:
    """An activation as numpy; the arrays may alias the framework's."""
    inputs, outputs = (tuple(arrays_of(each, gather)) for each in (activation.inputs, activation.output))
    return LayerCall(activation.layer, inputs, outputs)


def select_layers(
    patterns: Sequence[str], on_call: OnCall, gather: Callable[[Any], Any] = as_it_is
) -> Callable[[Activation], None]:
    """Pass on the calls of the layers that one of the globs matches only; all, where there are no globs.

    Activations of the other layers are never made numpy: that copies them from an accelerator.
    """

    def on_activation(activation: Activation) -> None:
        if not patterns or any(fnmatchcase(activation.layer, pattern) for pattern in patterns):
            on_call(to_layer_call(activation, gather))

    return on_activation


class ActivationCache:
    """The calls of a pass, in order. Equal arrays, as one layer's output and the next one's input, are held once; those
    beyond ``memory`` bytes are on disk, in a folder that goes with this object.

    >>> cache, x = ActivationCache(memory=100), np.zeros(10)
    >>> cache.add(LayerCall("0", (x,), (x + 1,)))
    >>> cache.add(LayerCall("1", (x + 1,), (x + 2,)))
    >>> [type(array).__name__ for call in cache for array in (*call.inputs, *call.outputs)]
    ['ndarray', 'memmap', 'memmap', 'memmap']
    """

    def __init__(self, calls: Iterable[LayerCall] = (), memory: int = MEMORY) -> None:
        self._calls: list[LayerCall] = []
        self._arrays: dict[bytes, np.ndarray] = {}  # by digest
        self._memory_left = memory
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        for call in calls:
            self.add(call)

    def add(self, call: LayerCall) -> None:
        """Add a call. Its arrays are copied, since frameworks write into their memory again."""
        inputs, outputs = (tuple(map(self._add_array, arrays)) for arrays in (call.inputs, call.outputs))
        self._calls.append(LayerCall(call.layer, inputs, outputs))

    def _add_array(self, array: np.ndarray) -> np.ndarray:
        key = digest(array)
        cached = self._arrays.get(key)
        if cached is None:
            self._memory_left -= array.nbytes
            cached = self._arrays[key] = np.array(array) if self._memory_left >= 0 else self._on_disk(array)
        return cached

    def _on_disk(self, array: np.ndarray) -> np.ndarray:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="multiparam-")
        path = Path(self._folder.name) / f"{len(self._arrays)}.npy"
        np.save(path, array, allow_pickle=False)
        # numpy writes a dtype of ml_dtypes, such as bfloat16, as raw bytes: the view makes it what it was.
        return np.load(path, mmap_mode="r", allow_pickle=False).view(array.dtype)  # type: ignore[no-any-return]

    @property
    def layers(self) -> list[str]:
        """The layer of each call."""
        return [call.layer for call in self._calls]

    def __iter__(self) -> Iterator[LayerCall]:
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    def __getitem__(self, index: int) -> LayerCall:
        return self._calls[index]


def digest(array: np.ndarray) -> bytes:
    """The same for arrays of the same bits, shape and dtype only."""
    hash = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=16)
    # Through bytes, as hashlib takes no array that is not contiguous, and no buffer of a dtype it does not know.
    hash.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hash.digest()
