"""Weight files of every framework as names and arrays: :func:`read`.

safetensors, npz and HDF5 are read here. What only a framework's package reads is found through the registry: an
adapter says which suffixes it reads, and with which function.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Union

import numpy as np

from ..core import registry
from ..core.arrays import numpy_dtype, to_numpy
from ..core.state import ArraySpec, Source, spec
from ..errors import FileError, MultiparamError, PackageMissing
from ..paths import did_you_mean
from .safetensors import TensorFile
from .sharded import INDEX, Sharded

PathLike = Union[str, "os.PathLike[str]"]


def read(path: PathLike, *, verify: bool = True) -> Source:
    """The arrays of a weight file: a mapping name -> numpy array that reads one when it is asked for.

    By suffix: ``.safetensors`` (and ``.safetensors.index.json``, or a folder that holds one), ``.npz``, Keras' ``.h5``,
    ``.weights.h5`` and ``.keras``, and what the backends read: PyTorch's ``.pt``, ``.pth`` and ``.bin``, MXNet's
    ``.params``, Flax's ``.msgpack``. Names, shapes and dtypes are the file's, and so are the layouts: canonical ones
    where multiparam or PyTorch wrote it. Nothing is unpickled.

    Args:
        path: The file, an index of shards, or the folder that holds one.
        verify: Whether to look at checksums, where the file has them, whenever an array is read.

    Returns:
        A mapping, which can be closed, or used in a ``with`` block; it closes by itself when nobody uses it any more.
        Its ``spec(name)`` has the shape and dtype of an array that is not read yet.

    Raises:
        FileError: For a file that is damaged or of no known format.
        PackageMissing: Where a package is needed that is not installed.
        BackendMissing: Where only a framework reads the format, and it is not installed.
        OSError: Where the file cannot be opened.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "w.npz"
        >>> np.savez(path, weight=np.ones((2, 3)))
        >>> mp.read(path)["weight"].shape
        (2, 3)
    """
    path = _index_or_file(Path(path))
    os.stat(path)  # a file that is not there is an OSError, whoever reads the format
    if path.name.endswith(INDEX):
        return Sharded(path, verify)
    if path.suffix == ".safetensors":
        return TensorFile(path, verify)
    for suffix, reader in READERS.items():
        if path.name.endswith(suffix):
            return reader(path)
    return _read_by_backend(path)


def _index_or_file(path: Path) -> Path:
    """The index instead of the folder it is in, or of the one file that was split."""
    if path.is_dir():
        indexes = sorted(path.glob(f"*{INDEX}"))
        if len(indexes) != 1:
            names = ", ".join(repr(each.name) for each in indexes)
            raise FileError(f"The folder {str(path)!r} has {f'several: {names}' if indexes else 'no'} *{INDEX}.")
        return indexes[0]
    index = path.with_name(path.name.removesuffix(".safetensors") + INDEX)
    return index if path.suffix == ".safetensors" and not path.exists() and index.exists() else path


def _read_by_backend(path: Path) -> Source:
    """A file that a framework's package reads, by the hook its adapter has registered for the suffix."""
    backends = registry.readers()
    backend = backends.get(path.suffix)
    if backend is None:
        hint = did_you_mean(path.suffix, [".safetensors", *READERS, *backends])
        raise FileError(f"{str(path)!r}: no known weight file ends in {path.suffix!r}. {hint}")
    with damaged(path):
        return ArraySource(path, backend.read(path))


class damaged:
    """Whatever a reader raises inside, as a FileError; but for a file that is not there, and errors of ours.

    Readers of formats that others define raise anything on a damaged file: struct.error, IndexError, RuntimeError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        if error is None or isinstance(error, (MultiparamError, FileNotFoundError, PermissionError, MemoryError)):
            return
        if isinstance(error, Exception):
            raise FileError(f"{str(self.path)!r} cannot be read. {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """An error of somebody else's in one line that fits into a sentence."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]


class Stamp:
    """Which file it was that was looked at first, for readers that open it again.

    Args:
        path: The file, which must be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._first = self._now()

    def _now(self) -> tuple[int, int, int]:
        about = os.stat(self.path)
        return about.st_ino, about.st_size, about.st_mtime_ns

    def check(self) -> None:
        """See that the file is still the one that was looked at first.

        Raises:
            FileError: Where another file has taken its place, or it was written to.
        """
        if self._now() != self._first:
            raise FileError(f"{str(self.path)!r} was changed while it was read. Read it again.")


class ArraySource(Source):
    """Arrays that a framework has read, or mapped into memory, already."""

    def __init__(self, path: Path, arrays: Mapping[str, Any]) -> None:
        self.path = path
        self._arrays = arrays

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._arrays[name]
        with damaged(self.path):
            return to_numpy(array)

    def spec(self, name: str) -> ArraySpec:
        array = self._arrays[name]
        with damaged(self.path):
            return array.spec if hasattr(array, "spec") else spec(array)

    def verify(self, name: str) -> None:
        self[name]

    def close(self) -> None:
        self._arrays = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping, keys joined with dots; what is no array is left out.

    Args:
        tree: A tree of mappings and lists, as a framework's file holds it.
        prefix: What all names start with.

    Returns:
        Name -> array, or whatever has a ``shape`` and a ``dtype``.

    Example:
        >>> flatten({"params": {"Dense_0": {"bias": np.zeros(2)}}, "step": None})
        {'params.Dense_0.bias': array([0., 0.])}
    """
    if isinstance(tree, (list, tuple)):
        tree = dict(enumerate(tree))
    if isinstance(tree, Mapping):
        arrays: dict[str, Any] = {}
        for key, value in tree.items():
            arrays.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
        return arrays
    return {prefix: tree} if hasattr(tree, "shape") and hasattr(tree, "dtype") else {}


# -- npz


class Npz(Source):
    """numpy's ``.npz``, without pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with damaged(path):
            if not zipfile.is_zipfile(path):
                raise FileError(f"{str(path)!r} is no npz: it is no zip file, or was cut short.")
            self._file = np.load(path, allow_pickle=False)
        self._close = weakref.finalize(self, self._file.close)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._file.files:
            raise KeyError(name)
        with damaged(self.path):
            array: np.ndarray = self._file[name]
        if not isinstance(array, np.ndarray):
            raise FileError(f"{str(self.path)!r}: {name!r} is no array.")
        return array

    def verify(self, name: str) -> None:
        """Asking for the shape has read it, and zip files have checksums."""

    def close(self) -> None:
        self._close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.files)

    def __len__(self) -> int:
        return len(self._file.files)


# -- HDF5


class Hdf5(Source):
    """Keras' HDF5 files. Names are the paths of groups, joined with dots.

    The file is open only while something is read: HDF5 locks it, and Keras could not write it meanwhile.
    """

    own_layouts = True

    def __init__(self, path: Path, open_file: Callable[[], Any] | None = None) -> None:
        self.path = path
        self._open = open_file or (lambda: _h5py().File(path, "r"))
        self._stamp = Stamp(path)
        self._specs: dict[str, tuple[str, ArraySpec]] = {}
        with damaged(path), self._open() as file:
            file.visititems(self._add)

    def _add(self, place: str, item: Any) -> None:
        """A dataset, if it holds numbers, into the table of contents."""
        if not isinstance(item, _h5py().Dataset) or item.shape is None or item.dtype.kind in "OSU":
            return
        if item.external or item.is_virtual:  # a stranger's file could name any file of ours
            raise FileError(f"{str(self.path)!r}: {place!r} is kept in another file, which is not followed.")
        dtype = _text(item.attrs.get("dtype", "")) or item.dtype.name
        name = place.replace("/", ".")
        if name in self._specs:
            raise FileError(f"{str(self.path)!r} has two arrays called {name!r}.")
        self._specs[name] = place, ArraySpec(tuple(item.shape), dtype)

    def __getitem__(self, name: str) -> np.ndarray:
        place, (shape, dtype) = self._specs[name]
        with damaged(self.path):
            self._stamp.check()
            with self._open() as file:
                array = np.asarray(file[place][()])
            if array.dtype.name != dtype:  # Keras writes bfloat16 as plain bytes, and says so beside them
                array = array.view(numpy_dtype(dtype))
            if array.shape != shape:
                raise FileError(f"{str(self.path)!r}: {name!r} changed while it was read.")
        return array

    def spec(self, name: str) -> ArraySpec:
        return self._specs[name][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise PackageMissing('Reading HDF5 needs h5py. Try: pip install h5py, or "multiparam[tensorflow]"') from None
    return h5py


WEIGHTS = "model.weights.h5"  # inside a .keras file


def _keras(path: Path) -> Hdf5:
    """The weights inside a ``.keras`` file, in an unnamed copy: HDF5 seeks, and a zip's member is read in order."""
    h5py = _h5py()
    copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - goes when the reader goes
    with damaged(path), zipfile.ZipFile(path) as archive:
        if WEIGHTS not in archive.namelist():
            raise FileError(f"{str(path)!r} is no Keras model: it has no {WEIGHTS!r}.")
        with archive.open(WEIGHTS) as member:
            shutil.copyfileobj(member, copy, 1 << 20)
    source = Hdf5(path, lambda: h5py.File(copy, "r"))
    weakref.finalize(source, copy.close)
    return source


# What is read here, by the end of the name; ".h5" is the end of ".weights.h5" too.
READERS: Mapping[str, Callable[[Path], Source]] = {
    ".npz": Npz,
    ".h5": Hdf5,
    ".hdf5": Hdf5,
    ".keras": _keras,
}
