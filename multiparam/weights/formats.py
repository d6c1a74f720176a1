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
from .safetensors import INDEX, Sharded, TensorFile

PathLike = Union[str, "os.PathLike[str]"]


def read(path: PathLike, *, verify: bool = True) -> Source:
    """The arrays of a weight file: a mapping name -> numpy array that reads one when it is asked for.

    By suffix: ``.safetensors`` (and ``.safetensors.index.json``, or a folder that holds one), ``.npz``, Keras' ``.h5``,
    ``.weights.h5`` and ``.keras``, and what the backends read: PyTorch's ``.pt``, ``.pth`` and ``.bin``, MXNet's
    ``.params``, Flax's ``.msgpack``. Names and layouts are the file's. Nothing is unpickled. ``verify=False`` skips the
    checksums of files that have them.

    Raises FileError for a file that is damaged or of no known format, PackageMissing or BackendMissing where a package
    is needed that is not installed, and OSError where the file cannot be opened.

        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "w.npz"
        >>> np.savez(path, weight=np.ones((2, 3)))
        >>> mp.read(path)["weight"].shape
        (2, 3)
    """
    path = _whole(Path(path))
    os.stat(path)  # a file that is not there is an OSError, whoever reads the format
    if path.name.endswith(INDEX):
        return Sharded(path, verify)
    if path.suffix == ".safetensors":
        return TensorFile(path, verify)
    for suffix, reader in OWN.items():
        if path.name.endswith(suffix):
            return reader(path)
    return _of_a_framework(path)


def _whole(path: Path) -> Path:
    """The index instead of the folder it is in, or of the one file that was split."""
    if path.is_dir():
        found = sorted(path.glob(f"*{INDEX}"))
        if len(found) != 1:
            names = ", ".join(repr(each.name) for each in found)
            raise FileError(f"The folder {str(path)!r} has {f'several: {names}' if found else 'no'} *{INDEX}.")
        return found[0]
    index = path.with_name(path.name.removesuffix(".safetensors") + INDEX)
    return index if path.suffix == ".safetensors" and not path.exists() and index.exists() else path


def _of_a_framework(path: Path) -> Source:
    known = registry.readers()
    found = known.get(path.suffix)
    if found is None:
        suffixes = [".safetensors", *OWN, *known]
        hint = did_you_mean(path.suffix, suffixes)
        raise FileError(f"{str(path)!r}: no known weight file ends in {path.suffix!r}. {hint}")
    with damaged(path):
        return Arrays(path, found.read(path))


class damaged:
    """Whatever a reader raises inside, as a FileError; but for a file that is not there, and errors of ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        if error is None or isinstance(error, (MultiparamError, FileNotFoundError, PermissionError, MemoryError)):
            return
        if isinstance(error, Exception):
            said = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
            raise FileError(f"{str(self._path)!r} cannot be read. {said}") from error


class Stamp:
    """Which file it was that was looked at first, for readers that open it again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._now()

    def _now(self) -> tuple[int, int, int]:
        found = os.stat(self.path)
        return found.st_ino, found.st_size, found.st_mtime_ns

    def check(self) -> None:
        """Raise FileError where another file has taken its place, or it was written to."""
        if self._now() != self._seen:
            raise FileError(f"{str(self.path)!r} was changed while it was read. Read it again.")


class Arrays(Source):
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
    """Nested mappings and lists as one, keys joined with dots; what is no array is left out.

    >>> flatten({"params": {"Dense_0": {"bias": np.zeros(2)}}, "step": None})
    {'params.Dense_0.bias': array([0., 0.])}
    """
    if isinstance(tree, (list, tuple)):
        tree = dict(enumerate(tree))
    if isinstance(tree, Mapping):
        found: dict[str, Any] = {}
        for key, value in tree.items():
            found.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
        return found
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

    def __init__(self, path: Path, opened: Callable[[], Any] | None = None) -> None:
        self.path = path
        self._open = opened or (lambda: _h5py().File(path, "r"))
        self._stamp = Stamp(path)
        self._specs: dict[str, tuple[str, ArraySpec]] = {}
        with damaged(path), self._open() as file:
            file.visititems(self._note)

    def _note(self, where: str, found: Any) -> None:
        if not isinstance(found, _h5py().Dataset) or found.shape is None or found.dtype.kind in "OSU":
            return
        if found.external or found.is_virtual:
            raise FileError(f"{str(self.path)!r}: {where!r} is kept in another file, which is not followed.")
        dtype = _text(found.attrs.get("dtype", "")) or found.dtype.name
        name = where.replace("/", ".")
        if name in self._specs:
            raise FileError(f"{str(self.path)!r} has two arrays called {name!r}.")
        self._specs[name] = where, ArraySpec(tuple(found.shape), dtype)

    def __getitem__(self, name: str) -> np.ndarray:
        where, (shape, dtype) = self._specs[name]
        with damaged(self.path):
            self._stamp.check()
            with self._open() as file:
                array = np.asarray(file[where][()])
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
    found = Hdf5(path, lambda: h5py.File(copy, "r"))
    weakref.finalize(found, copy.close)
    return found


OWN: Mapping[str, Callable[[Path], Source]] = {
    ".npz": Npz,
    ".h5": Hdf5,
    ".hdf5": Hdf5,
    ".keras": _keras,
}
