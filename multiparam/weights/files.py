"""Weight files: :func:`save` writes safetensors, :func:`load` takes every format that :func:`multiparam.read` reads.

Names, shapes and data order are canonical, so a file written from one framework loads into any other. What a file says
besides is in its metadata, in one JSON document under the key ``"multiparam"``::

    {"format": 1, "multiparam": "0.1.0",
     "parameters": {name: {"kind", "layout", "trainable", "buffer", "aliases", "transposed"}},
     "layers": {layer: {"eps": 1e-05, ...}}}

``layout`` is missing for a layer multiparam does not know, ``aliases`` (the other names of a tied parameter) and
``transposed`` (those of them that show its transpose) where there are none. ``"multiparam.crc32"`` has the checksums,
8 hexadecimal digits each: of the header, then of each tensor in the order of the data.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .. import __version__
from ..core import layers as layer_kinds
from ..core.arrays import dtype_kind, numpy_dtype, to_numpy
from ..core.construction import FLOATS
from ..core.group import Group, named_parameters
from ..core.model import Model
from ..core.parameter import Parameter, peek
from ..core.state import LINES, ArraySpec, Loaded, Source, load_state, options_equal, spec
from ..errors import FileError, InvalidArgument, MultiparamWarning, WrongType
from ..paths import did_you_mean, split
from .formats import PathLike, read
from .safetensors import INDEX, SAVE, Sharded, Tensor, TensorFile, read_index, write

VERSION = 1
DOCUMENT = "multiparam"  # the key of the metadata


# -- saving


def save(
    state: Group | Mapping[str, Any], path: PathLike, *, shard_size: int | str | None = None, dtype: str | None = None
) -> Path:
    """Write a model, a group of one, or a mapping name -> array (any framework's) as ``.safetensors``.

    Canonical names and layouts; a tied parameter once, with its other names in the metadata. Arrays are read and
    written one at a time. ``shard_size``, bytes or a text such as ``"500MB"``, splits what is larger into
    ``w-00001-of-00003.safetensors`` and so on, with ``w.safetensors.index.json`` that says what is where. ``dtype``
    converts floating numbers on the way.

    The file appears whole or not at all: it is written under another name beside ``path``, brought to the disk, then
    renamed. Shards are renamed when all are complete, the index last; until then an older file or index loads as
    before, unless its shards have the very names of the new ones: a crash within these few renames leaves a set that
    :func:`load` refuses, since its shards are of two saves. What an earlier save to ``path`` left and this one does not
    use is then removed. Gives the path to load: the file, or the index.

    Raises InvalidArgument for a name, dtype or option that cannot be, OSError where the disk refuses.

        >>> import tempfile, pathlib
        >>> net = mp.build(mp.nn.Linear(2), np.ones((1, 3)), backend="torch")
        >>> path = mp.save(net, pathlib.Path(tempfile.mkdtemp()) / "w.safetensors")
        >>> path.name, mp.read(path)["weight"].shape
        ('w.safetensors', (2, 3))
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InvalidArgument(f"multiparam writes safetensors: give the file a name like {path.stem}.safetensors.")
    if dtype is not None and dtype not in FLOATS:
        raise InvalidArgument(f"No floating dtype {dtype!r}. {did_you_mean(str(dtype), FLOATS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder", str(path.parent))
    bound = math.inf if shard_size is None else _bytes(shard_size)
    tensors = [_converted(tensor, dtype) for tensor in _tensors(state)]
    document = describe(state)
    shards = _split(tensors, bound)
    index = path.with_name(path.stem + INDEX)
    old = earlier_shards(index)
    with Replacement() as replacement:
        if len(shards) == 1:
            write(replacement.file(path), tensors, encode_metadata(document, tensors))
            result = path
        else:
            _write_shards(replacement, index, shards, document)
            result = index
    for stale in old if result == path else [path, *old]:
        if stale not in replacement.written:
            stale.unlink(missing_ok=True)
    return result


def _tensors(state: Group | Mapping[str, Any]) -> list[Tensor]:
    if isinstance(state, Group):
        held = {**state.parameters(), **state.buffers()}
        return [Tensor(name, p.shape, p.dtype, partial(peek, p)) for name, p in held.items()]
    if not isinstance(state, Mapping):
        raise WrongType(f"mp.save takes a model, a group or a mapping of arrays, not {type(state).__qualname__}.")
    for name in state:
        if not isinstance(name, str):
            raise WrongType(f"Names are texts; {name!r} is {type(name).__qualname__}.")
    return [Tensor(name, *_spec_in(state, name), _reader(state, name)) for name in state]


def _spec_in(state: Mapping[str, Any], name: str) -> ArraySpec:
    return state.spec(name) if isinstance(state, Source) else spec(state[name])


def _reader(state: Mapping[str, Any], name: str) -> Callable[[], np.ndarray]:
    return lambda: to_numpy(state[name])


def _converted(tensor: Tensor, dtype: str | None) -> Tensor:
    if dtype is None or dtype_kind(tensor.dtype) != "f" or tensor.dtype == dtype:
        return tensor
    return tensor._replace(dtype=dtype, read=lambda: tensor.read().astype(numpy_dtype(dtype)))


UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def _bytes(size: int | str) -> int:
    """Bytes from a number or a text.

    >>> _bytes("500MB"), _bytes("1.5 GiB"), _bytes(10)
    (500000000, 1610612736, 10)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", str(size).upper())
    if isinstance(size, bool) or match is None or match[2] not in UNITS or float(match[1]) * UNITS[match[2]] < 1:
        raise InvalidArgument(f"No size {size!r}. Say bytes, or a text such as '500MB' or '2GiB'.")
    return int(float(match[1]) * UNITS[match[2]])


def _split(tensors: list[Tensor], bound: float) -> list[list[Tensor]]:
    """Tensors in their order, as many in each shard as fit; one that is larger has a shard to itself."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > bound:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _write_shards(
    replacement: Replacement, index: Path, shards: list[list[Tensor]], document: Mapping[str, Any]
) -> None:
    stem, token = index.name.removesuffix(INDEX), secrets.token_hex(8)
    where: dict[str, str] = {}
    for i, tensors in enumerate(shards, 1):
        name = f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
        metadata = {**encode_metadata(document, tensors), SAVE: token}
        write(replacement.file(index.with_name(name)), tensors, metadata)
        where.update((tensor.name, name) for tensor in tensors)
    size = sum(tensor.nbytes for tensors in shards for tensor in tensors)
    content = {"metadata": {"total_size": size, SAVE: token}, "weight_map": where}
    replacement.file(index).write(json.dumps(content, indent=2, ensure_ascii=False).encode())


def earlier_shards(index: Path) -> list[Path]:
    """An index and its shards that an earlier save has left; another program's are not ours to remove."""
    try:
        found = read_index(index)
    except (OSError, FileError):
        return []
    if found["save"] is None:
        return []
    pattern = re.escape(index.name.removesuffix(INDEX)) + r"-\d{5}-of-\d{5}\.safetensors"
    listed = sorted(set(found["weight_map"].values()))
    return [index, *(index.with_name(name) for name in listed if re.fullmatch(pattern, name))]


# -- what a file says besides


def describe(state: Group | Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said of a model's parameters and layers, or by the file that arrays come from."""
    if not isinstance(state, Group):
        return file_metadata(state)._asdict()
    known = named_parameters(state)
    names: dict[tuple[str, ...], list[str]] = {}
    for name, p in known.items():
        names.setdefault(p.names, []).append(name)
    parameters = {same[0]: _described(same, known) for same in names.values()}
    layers = state.options() if isinstance(state, Model) else {}
    return {"parameters": parameters, "layers": layers}


def _described(names: list[str], known: Mapping[str, Parameter]) -> dict[str, Any]:
    p = known[names[0]]
    said: dict[str, Any] = {"kind": p.kind, "trainable": p.trainable, "buffer": p.buffer}
    layout = layer_kinds.KINDS.get(p.kind, {}).get(split(names[0])[1])
    if layout is not None:
        said["layout"] = layout
    if len(names) > 1:
        said["aliases"] = names[1:]
    transposed = [name for name in names if known[name] is not p]
    if transposed:
        said["transposed"] = transposed
    return said


def encode_metadata(document: Mapping[str, Any], tensors: Iterable[Tensor]) -> dict[str, str]:
    """The document with what concerns these tensors, as a file's metadata."""
    said = document.get("parameters", {})
    parameters = {tensor.name: said[tensor.name] for tensor in tensors if tensor.name in said}
    whole = {"format": VERSION, "multiparam": __version__, "parameters": parameters}
    layers = document.get("layers", {})
    return {DOCUMENT: json.dumps({**whole, "layers": layers}, ensure_ascii=False, default=_plain)}


def _plain(value: Any) -> Any:
    """An option that JSON has no word for: numpy's numbers as numbers, the rest as text."""
    return value.item() if isinstance(value, np.generic) else str(value)


class FileMetadata(NamedTuple):
    """A file's document: of each parameter, and of each layer."""

    parameters: Mapping[str, Mapping[str, Any]] = {}
    layers: Mapping[str, Mapping[str, Any]] = {}


def file_metadata(source: Mapping[str, Any]) -> FileMetadata:
    """What a file says of its parameters; nothing where multiparam did not write it. Raises FileError."""
    files = source.shards if isinstance(source, Sharded) else [source] if isinstance(source, TensorFile) else []
    parameters: dict[str, Any] = {}
    layers: dict[str, Any] = {}
    for file in files:
        text = file.metadata.get(DOCUMENT)
        if text is not None:
            found = _parsed(text, file.path)
            parameters.update(found["parameters"])
            layers.update(found["layers"])
    return FileMetadata(parameters, layers)


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    version = found.get("format") if isinstance(found, dict) else None
    if type(version) is int and version > VERSION:
        raise FileError(
            f"{str(path)!r} is of format {version}, written by multiparam {found.get('multiparam')!r}; this one, "
            f"{__version__}, reads format {VERSION}. Try: pip install --upgrade multiparam"
        )
    if type(version) is not int or version != VERSION or not _well_formed(found):
        raise FileError(f"{str(path)!r} has metadata under {DOCUMENT!r} that multiparam did not write.")
    return found  # type: ignore[no-any-return]


def _well_formed(found: Mapping[str, Any]) -> bool:
    parameters, layers = found.get("parameters"), found.get("layers")
    if not isinstance(parameters, dict) or not isinstance(layers, dict):
        return False
    if not all(isinstance(each, dict) for each in (*parameters.values(), *layers.values())):
        return False
    return all(_names(said.get(key, [])) for said in parameters.values() for key in TIED)


TIED = ("aliases", "transposed")


def _names(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(each, str) for each in found)


# -- loading


def load(net: Group, path: PathLike, *, strict: bool = True, cast: bool = False, verify: bool = True) -> Loaded:
    """Write a weight file into a model, or a group of one, of any framework.

    Every format of :func:`multiparam.read` whose names and layouts are canonical. Shapes, dtypes and names are checked
    as in :meth:`Group.load_state_dict`, by the header; then all values are read once, for their checksums or to see
    that they can be read, and only then again to be written, one at a time. So a failed load changes nothing, as long
    as nobody writes to the file meanwhile; ``verify=False`` leaves the first reading out.

    Ties of the model stay as they are. Where the file ties what the model has apart, both get the values; where the
    model ties what the file has apart, the values must be equal. Either is a MultiparamWarning, and so are options of
    a layer, such as eps, that differ: no weight carries them. Flags such as ``trainable`` are not changed.

    Raises StateError, FileError, PackageMissing, BackendMissing or OSError. Gives what was left out: see there.

        >>> import tempfile, pathlib
        >>> net = mp.build(mp.nn.Linear(2), np.ones((1, 3)), backend="torch", seed=1)
        >>> path = mp.save(net, pathlib.Path(tempfile.mkdtemp()) / "w.safetensors")
        >>> other = mp.build(mp.nn.Linear(2), np.ones((1, 3)), backend="jax")
        >>> mp.load(other, path)
        Loaded(missing=(), unexpected=())
        >>> bool((other["weight"].numpy() == net["weight"].numpy()).all())
        True
    """
    if not isinstance(net, Group):
        raise WrongType(f"mp.load takes a model first, then the file; it gets {type(net).__qualname__}.")
    with read(path, verify=verify) as source:
        said = file_metadata(source)
        known = named_parameters(net)
        state = _Renamed(source, _wanted(source, said, known))
        notes = [*_ties(said, known), *(_options(said, net) if isinstance(net, Model) else [])]

        def warn() -> None:
            if notes:
                more = f"\n  ... and {len(notes) - LINES} more" if len(notes) > LINES else ""
                text = f"{str(path)!r} and the model differ:\n  " + "\n  ".join(notes[:LINES]) + more
                warnings.warn(text, MultiparamWarning, stacklevel=4)

        return load_state(known, state, strict=strict, cast=cast, verify=verify, ready=warn)


def _wanted(source: Source, said: FileMetadata, known: Mapping[str, Parameter]) -> dict[str, tuple[str, bool]]:
    """Name in the model -> name in the file, and whether transposed. A name of the file's that the model has is taken
    as it is; an alias stands in where that leaves a parameter without values."""
    wanted = {name: (name, False) for name in source if name in known}
    served: dict[tuple[str, ...], list[str]] = {}
    for name in wanted:
        served.setdefault(known[name].names, []).append(name)

    def implied(alias: str, stored: str, turned: bool) -> bool:
        """Whether a name of the same parameter gives it the same values already."""
        return any(
            wanted[name][0] == stored and (wanted[name][1] != turned) == (known[name] is not known[alias])
            for name in served.get(known[alias].names, ())
        )

    for name in source:
        about = said.parameters.get(name, {})
        aliases = [alias for alias in about.get("aliases", ()) if alias in known and alias not in source]
        for alias in aliases:
            turned = alias in about.get("transposed", ())
            if not implied(alias, name, turned):
                wanted[alias] = name, turned
                served.setdefault(known[alias].names, []).append(alias)
        if name not in known and not aliases:
            wanted[name] = name, False  # which load_state finds unexpected
    return wanted


class _Renamed(Source):
    """A source under the model's names."""

    def __init__(self, source: Source, wanted: Mapping[str, tuple[str, bool]]) -> None:
        self._source = source
        self._wanted = wanted

    def __getitem__(self, name: str) -> np.ndarray:
        stored, transposed = self._wanted[name]
        return self._source[stored].T if transposed else self._source[stored]

    def spec(self, name: str) -> ArraySpec:
        stored, transposed = self._wanted[name]
        shape, dtype = self._source.spec(stored)
        return ArraySpec(shape[::-1] if transposed else shape, dtype)

    def verify(self, name: str) -> None:
        self._source.verify(self._wanted[name][0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)


def _ties(said: FileMetadata, known: Mapping[str, Parameter]) -> list[str]:
    """Where the file's ties are not the model's."""
    notes = []
    place: dict[str, str] = {}  # name in the model -> name its values have in the file
    for stored, about in said.parameters.items():
        same = [name for name in (stored, *about.get("aliases", ())) if name in known]
        place.update((name, stored) for name in same)
        if len({known[name].names for name in same}) > 1:
            names = " and ".join(map(repr, same))
            notes.append(f"the file ties {names}; the model does not: each gets these values")
    tied: dict[tuple[str, ...], list[str]] = {}
    for name in place:
        tied.setdefault(known[name].names, []).append(name)
    for same in tied.values():
        if len({place[name] for name in same}) > 1:
            names = " and ".join(map(repr, same))
            notes.append(f"the model ties {names}; the file has them apart, with equal values")
    return notes


def _options(said: FileMetadata, net: Model) -> list[str]:
    """Options of layers that are not the file's, of those that both sides tell."""
    notes = []
    for layer, options in net.options().items():
        theirs = said.layers.get(layer, {})
        for key, mine in options.items():
            if key in theirs and not options_equal(mine, theirs[key]):
                notes.append(f"layer {layer!r} has {key}={theirs[key]!r} in the file, {mine!r} in the model")
    return notes


# -- files that appear whole or not at all


def written_whole(path: Path, text: str) -> None:
    """Write a text so that the file is the old one or the new one, never a part."""
    with Replacement() as replacement:
        replacement.file(path).write(text.encode())


class Replacement:
    """Files written under temporary names beside those they replace; renamed in order when all are complete.

    After an error the temporary files are gone and nothing is replaced. After a crash one may be left:
    ``.multiparam-*.tmp``.
    """

    def __init__(self) -> None:
        self._files: list[tuple[BinaryIO, Path, Path]] = []

    @property
    def written(self) -> list[Path]:
        """The files' final names."""
        return [path for _, _, path in self._files]

    def file(self, path: Path) -> BinaryIO:
        """A file to write what ``path`` is to hold. The one before is complete, and brought to the disk, so that no
        more than one is open."""
        self._finish_last()
        temporary = path.with_name(f".multiparam-{secrets.token_hex(8)}.tmp")
        file = open(temporary, "xb")  # noqa: SIM115 - not by tempfile, whose files nobody else may read
        self._files.append((file, temporary, path))
        return file

    def _finish_last(self) -> None:
        for file, _, _ in self._files[-1:]:
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def __enter__(self) -> Replacement:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        try:
            if error is None:
                self._finish_last()
                for i, (_, temporary, path) in enumerate(self._files):
                    if i and i == len(self._files) - 1:
                        sync_folder(path.parent)  # on the disk too, an index comes after what it names
                    os.replace(temporary, path)
                for path in self.written[-1:]:
                    sync_folder(path.parent)
        finally:
            for file, temporary, _ in self._files:
                with suppress(OSError):
                    file.close()
                with suppress(OSError):
                    temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can do that."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems do not know it
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
