"""Weight files of every framework as names and arrays: :func:`read`.

safetensors, npz and HDF5 are read here. What only a framework's package reads is found through the registry: an
adapter says which suffixes it reads, and with which function.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, Union

import numpy as np

from ..core import registry
from ..core.arrays import numpy_dtype, to_numpy
from ..core.regular import require_regular
from ..core.state import ArraySpec, Source, spec
from ..errors import BackendMissing, FileError, InvalidArgument, MultiparamError, PackageMissing
from ..paths import did_you_mean
from .archives import check_zip, require_possible, require_sound, require_whole_array
from .kinds import ANY_INDEX, INDEX, KERAS_MEMBER, file_kind, folder_kind, in_folder, index_beside, innermost
from .safetensors import TensorFile
from .sharded import Sharded, ShardIndex, ShardSource
from .trees import Within

PathLike = Union[str, "os.PathLike[str]"]
SAFETENSORS = ".safetensors"


def read(path: PathLike, *, verify: bool = True, format: str | None = None, within: str | None = None) -> Source:
    """The arrays of a weight file: a mapping name -> numpy array that reads one when it is asked for.

    What a file is its first bytes say, whatever it is called (``last.ckpt``, ``model.pth.tar``): ``.safetensors``,
    ``.npz``, Keras' ``.h5``, ``.weights.h5`` and ``.keras``, and what the backends read: PyTorch's ``.pt``, MXNet's
    ``.params``, Flax's ``.msgpack``. Of a folder, as hubs have them, the index of shards in it or its one file; Orbax'
    and TensorFlow's checkpoints by their own packages. Names, shapes and dtypes are the file's, and so are the layouts:
    canonical ones where multiparam or PyTorch wrote it.
    Nothing is unpickled.

    Args:
        path: The file, an index of shards, or a folder.
        verify: Whether to look at checksums, where the file has them, whenever an array is read.
        format: What it is, as a suffix such as ``".pt"``; None: what it looks like.
        within: Only the names that begin so, such as ``"ema"`` in a checkpoint of a training, without that.

    Returns:
        A mapping, which can be closed, or used in a ``with`` block; it closes by itself when nobody uses it any more.
        Its ``spec(name)`` has the shape and dtype of an array that is not read yet.

    Raises:
        FileError: For a file that is damaged or of no known format.
        InvalidArgument: For a ``format`` that is not read, and names that there are none of ``within``.
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
    source = _opened(Path(path), verify, format)
    return source if within is None else Within(source, within)


def _opened(path: Path, verify: bool, format: str | None) -> Source:
    if path.is_dir():
        path = innermost(path)
        if (folder := _read_folder(path)) is not None:
            return folder
    path = in_folder(path) if path.is_dir() else index_beside(path)
    known = [SAFETENSORS, *READERS, *(kind for kind in registry.readers() if kind.startswith("."))]
    if format is not None and f".{format.lstrip('.')}" not in known:
        raise InvalidArgument(f"No format {format!r} is read. {did_you_mean(format, known)}")
    if not require_regular(path).st_size:  # a file that is not there is an OSError, whoever reads the format
        raise FileError(f"{str(path)!r} is empty: it has 0 bytes, so that its download or copy did not finish.")
    if path.name.endswith(ANY_INDEX):
        return Sharded(path, verify) if path.name.endswith(INDEX) else ShardedFiles(path, verify)
    kind = file_kind(path, known) if format is None else f".{format.lstrip('.')}"
    if kind == SAFETENSORS:
        return TensorFile(path, verify)
    return READERS[kind](path) if kind in READERS else _read_by_backend(path, kind, verify)


def _read_folder(path: Path) -> Source | None:
    """A folder that only a framework's package reads; None for others."""
    kind = folder_kind(path)
    if kind not in registry.readers():
        return None
    length = sum(require_regular(each).st_size for each in path.rglob("*") if each.exists() and not each.is_dir())
    try:
        return ArraySource(path, registry.readers()[kind].read(path, kind), length=length)
    except (BackendMissing, PackageMissing) as missing:
        try:
            in_folder(path)
        except FileError as refusal:
            raise type(missing)(f"{refusal} {missing}") from None
        raise
    except MultiparamError:
        raise
    except Exception as error:
        try:
            in_folder(path)
        except FileError as refusal:
            raise FileError(f"{refusal} Reading it here failed: {first_line(error)}") from error
        raise


def _read_by_backend(path: Path, kind: str, verify: bool) -> Source:
    """A file that a framework's package reads, by the hook its adapter has registered for the kind."""
    with damaged(path):
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                require_sound(archive, path)
        arrays = registry.readers()[kind].read(path, kind)
        return ArraySource(path, arrays, partial(check_zip, path) if zipped and verify else None)


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

    def __init__(
        self,
        path: Path,
        arrays: Mapping[str, Any],
        check: Callable[[], None] | None = None,
        length: int | None = None,  # of all files, where the path is a folder
    ) -> None:
        self.path = path
        self._arrays = arrays
        self.own_layouts = getattr(arrays, "own_layouts", False)
        self.left_out = getattr(arrays, "left_out", ())
        self.groups = getattr(arrays, "groups", ())
        self._check = check  # of the whole file, made once, before the first values are given
        length = os.stat(path).st_size if length is None else length
        for name in arrays:  # an expanded view of one number can be of any size
            shape, dtype = self.spec(name)
            require_possible(math.prod(shape) * numpy_dtype(dtype).itemsize, length, path, repr(name))

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._arrays[name]
        if self._check is not None:
            self._check()
            self._check = None
        with damaged(self.path):
            return to_numpy(array)

    def spec(self, name: str) -> ArraySpec:
        array = self._arrays[name]
        with damaged(self.path):
            return array.spec if hasattr(array, "spec") else spec(array)

    def close(self) -> None:
        self._arrays = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


class ShardedFiles(ShardSource[Source]):
    """The arrays of several files of a framework's own, by an index beside them: name -> file."""

    def __init__(self, path: Path, verify: bool = True) -> None:
        super().__init__(path, verify)
        self.own_layouts = any(file.own_layouts for file in self.files.values())

    def open_shard(self, file: str, verify: bool) -> Source:
        if not (self.path.parent / file).is_file():
            raise self.missing(file)
        return read(self.path.parent / file, verify=verify)

    def places(self, index: ShardIndex) -> Mapping[str, tuple[str, str]]:
        """Index and shards name the same arrays. Flax' have the whole path of one in one key, with slashes."""
        places = {name.replace("/", "."): (file, name) for file, each in self.files.items() for name in each}
        odd = {name.replace("/", ".") for name in index.weight_map} ^ places.keys()
        if odd:
            raise FileError(f"{str(self.path)!r} and its shards do not agree on whether there is {sorted(odd)[0]!r}.")
        return places


# -- npz


class Npz(Source):
    """numpy's ``.npz``, without pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with damaged(path):
            if not zipfile.is_zipfile(path):
                raise FileError(f"{str(path)!r} is no npz: it is no zip file, or was cut short.")
            with zipfile.ZipFile(path) as archive:
                require_sound(archive, path)
                for member in archive.infolist():
                    with archive.open(member) as file:
                        require_whole_array(file, member.file_size, path, member.filename)
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
        self._length = os.stat(path).st_size
        self._specs: dict[str, tuple[str, ArraySpec]] = {}
        with damaged(path), self._open() as file:
            file.visititems(self._add)

    def _add(self, place: str, item: Any) -> None:
        """A dataset, if it holds numbers, into the table of contents."""
        if not isinstance(item, _h5py().Dataset) or item.shape is None or item.dtype.kind in "OSU" or item.dtype.names:
            return
        if item.external or item.is_virtual:  # a stranger's file could name any file of ours
            raise FileError(f"{str(self.path)!r}: {place!r} is kept in another file, which is not followed.")
        require_possible(item.nbytes, self._length, self.path, repr(place))
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


def _keras(path: Path) -> Hdf5:
    """The weights inside a ``.keras`` file, in an unnamed copy: HDF5 seeks, and a zip's member is read in order."""
    h5py = _h5py()
    copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - goes when the reader goes
    with damaged(path), zipfile.ZipFile(path) as archive:
        if KERAS_MEMBER not in archive.namelist():
            raise FileError(f"{str(path)!r} is no Keras model: it has no {KERAS_MEMBER!r}.")
        require_sound(archive, path)
        with archive.open(KERAS_MEMBER) as member:
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
