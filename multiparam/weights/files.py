"""Weight files: :func:`save` writes what a name says, :func:`load` takes all that :func:`multiparam.read` reads.

Names, shapes and data order are canonical, so a file written from one framework loads into any other. What a file says
besides its arrays is in :mod:`multiparam.weights.metadata`.
"""

from __future__ import annotations

import errno
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core.arrays import dtype_kind, numpy_dtype, to_numpy
from ..core.construction import FLOATS
from ..core.group import Group, named_parameters, store_of
from ..core.loaded import Loaded
from ..core.misfits import LINES
from ..core.model import Model
from ..core.parameter import Parameter, whole
from ..core.registry import BackendInfo
from ..core.relayed import Relayed
from ..core.slots import Box
from ..core.state import ArraySpec, load_state, options_equal, state_spec
from ..core.unlisted import warn_of_unlisted
from ..errors import InvalidArgument, MultiparamWarning, WrongType
from ..paths import did_you_mean
from .atomic import Replacement
from .formats import PathLike, read
from .kinds import INDEX
from .metadata import FileMetadata, describe, encode_metadata, file_metadata
from .native_files import as_model_has_it
from .safetensors import Tensor, write_safetensors
from .sharded import earlier_shards, split_tensors, write_shards
from .together import write_together
from .writers import ArraysToWrite, is_native_export, place_to_write, writer

# -- saving


def save(
    state: Group | Mapping[str, Any],
    path: PathLike,
    *,
    shard_size: int | str | None = None,
    dtype: str | None = None,
    format: str | None = None,
) -> Path:
    """Write a model, a group of one, or a mapping name -> array (any framework's) as the name of the file says.

    As ``.safetensors``: canonical names and layouts; a tied parameter once, with its other names in the metadata.
    Arrays are read and written one at a time. As a framework's own (``.pt``, ``.params``, ``.msgpack``,
    ``.weights.h5``, ``.orbax``): a model of that framework in its own names and layouts, as it writes itself; anything
    else under canonical names, where the format can hold it.

    The file appears whole or not at all: it is written under another name beside ``path``, brought to the disk, then
    renamed. Shards are renamed when all are complete, the index last; until then an older file or index loads as
    before, unless its shards have the very names of the new ones: a crash within these few renames leaves a set that
    :func:`load` refuses. What an earlier save to ``path`` left and this one does not use is then removed.

    Args:
        state: What to write.
        path: The file to write; its suffix says the format.
        shard_size: Bytes, or a text such as ``"500MB"``: what is larger is split into ``w-00001-of-00003.safetensors``
            and so on, with an index. None for one file of any size.
        dtype: A floating dtype that floating numbers are converted to on the way.
        format: The format as a suffix, such as ``"orbax"``, where the name does not say it.

    Returns:
        The path to load: the file, or the index.

    Raises:
        InvalidArgument: For a name, dtype or option that cannot be.
        FileError: Where a framework cannot write it.
        OSError: Where the disk refuses.

    Example:
        >>> import tempfile, pathlib
        >>> net = mp.build(mp.nn.Linear(2), np.ones((1, 3)), backend="torch")
        >>> path = mp.save(net, pathlib.Path(tempfile.mkdtemp()) / "w.safetensors")
        >>> path.name, mp.read(path)["weight"].shape
        ('w.safetensors', (2, 3))
    """
    path = Path(path)
    backend, suffix = writer(path, format)
    if dtype is not None and dtype not in FLOATS:
        raise InvalidArgument(f"No floating dtype {dtype!r}. {did_you_mean(str(dtype), FLOATS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder", str(path.parent))
    if backend is not None:
        return _save_native(state, path, (backend, suffix), format, shard_size, dtype)
    bound = math.inf if shard_size is None else parse_size(shard_size)
    if isinstance(state, Model):
        warn_of_unlisted(store_of(state).host)
    tensors = [_converted(tensor, dtype) for tensor in _tensors(state)]
    shards, document = split_tensors(tensors, bound), describe(state)
    if not isinstance(state, Group):
        return _write(path, shards, document)
    loadable = path if len(shards) == 1 else path.with_name(path.stem + INDEX)
    return write_together(store_of(state).host, shards, lambda counted: _write(path, counted, document), loadable)


def _save_native(
    state: Group | Mapping[str, Any],
    path: Path,
    writes: tuple[BackendInfo, str],
    format: str | None,
    shard_size: int | str | None,
    dtype: str | None,
) -> Path:
    """Write a framework's own file, by its adapter."""
    backend, suffix = writes
    own = is_native_export(state, path, format)
    if shard_size is not None or (own and dtype is not None):
        option = "shard_size" if shard_size is not None else "dtype"
        raise InvalidArgument(f"A {suffix.rstrip('/')} file is written without {option}=. Say it for .safetensors.")
    tensors = {tensor.name: _converted(tensor, dtype) for tensor in _tensors(state)}
    aliases = {
        alias: (name, alias in about.get("transposed", ()))
        for name, about in describe(state)["parameters"].items()
        for alias in about.get("aliases", ())
        if name in tensors and alias not in tensors
    }
    with place_to_write(path, suffix) as temporary:
        arrays = ArraysToWrite({name: tensor.read for name, tensor in tensors.items()}, aliases)
        backend.write(store_of(state).host if own and isinstance(state, Group) else arrays, temporary, suffix)
    return path


def _write(path: Path, shards: list[list[Tensor]], document: Mapping[str, Any]) -> Path:
    """Write one file, or shards and their index, and remove what an earlier save left. Gives the path to load."""
    index = path.with_name(path.stem + INDEX)
    earlier = earlier_shards(index)
    metadata = [encode_metadata(document, tensors) for tensors in shards]
    with Replacement(path.name) as replacement:
        if len(shards) == 1:
            write_safetensors(replacement.file(path), shards[0], metadata[0])
        else:
            write_shards(replacement, index, shards, metadata)
    # Only now: a crash before leaves the earlier files, which are still whole.
    for stale in earlier if len(shards) == 1 else [path, *earlier]:
        if stale not in replacement.written:
            stale.unlink(missing_ok=True)
    return path if len(shards) == 1 else index


def _tensors(state: Group | Mapping[str, Any]) -> list[Tensor]:
    """What there is to write, of which nothing is read yet."""
    if isinstance(state, Group):
        parameters = {**state.parameters(), **state.buffers()}
        return [Tensor(name, p.shape, p.dtype, partial(whole, p)) for name, p in parameters.items()]
    if not isinstance(state, Mapping):
        raise WrongType(f"mp.save takes a model, a group or a mapping of arrays, not {type(state).__qualname__}.")
    for name in state:
        if not isinstance(name, str):
            raise WrongType(f"Names are texts; {name!r} is {type(name).__qualname__}.")
    return [Tensor(name, *state_spec(state, name), _reader(state, name)) for name in state]


def _reader(state: Mapping[str, Any], name: str) -> Callable[[], np.ndarray]:
    return lambda: to_numpy(state[name])


def _converted(tensor: Tensor, dtype: str | None) -> Tensor:
    if dtype is None or dtype_kind(tensor.dtype) != "f" or tensor.dtype == dtype:
        return tensor
    return tensor._replace(dtype=dtype, read=lambda: tensor.read().astype(numpy_dtype(dtype)))


UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(size: int | str) -> int:
    """Bytes from a number or a text.

    >>> parse_size("500MB"), parse_size("1.5 GiB"), parse_size(10)
    (500000000, 1610612736, 10)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", str(size).upper())
    if isinstance(size, bool) or match is None or match[2] not in UNITS or float(match[1]) * UNITS[match[2]] < 1:
        raise InvalidArgument(f"No size {size!r}. Say bytes, or a text such as '500MB' or '2GiB'.")
    return int(float(match[1]) * UNITS[match[2]])


# -- loading


def load(
    net: Group,
    path: PathLike,
    *,
    strict: bool = True,
    cast: bool = False,
    verify: bool = True,
    materialise: bool = False,
    within: str | None = None,
) -> Loaded:
    """Write a weight file into a model, or a group of one, of any framework.

    A file under canonical names, the framework's own, or the part of a checkpoint that has the model's names. All is
    checked as in :meth:`Group.load_state_dict`; then all values are read once, to see that they can be, and only then
    again to be written, one at a time: a failed load changes nothing.

    Ties and flags of the model stay. Where the file ties what the model has apart, both get the values; where the model
    ties what the file has apart, the values must be equal. Either is a MultiparamWarning, and so are options, such as
    eps, that differ, and what else a checkpoint holds.

    Args:
        net: The model, or the group, to write into.
        path: A weight file, an index of shards, or a folder that holds one.
        strict: Whether names that only one side has are an error.
        cast: Whether to convert to the model's dtypes, where no fraction or imaginary part is lost.
        verify: Whether to read all values once before the first is written.
        materialise: Whether to give memory to a model made without: see :meth:`Model.materialise`.
        within: What the names of the weights begin with, such as ``"ema"``, where a checkpoint has several.

    Returns:
        The names that were left out on either side, where ``strict`` is False.

    Raises:
        NoValues: The model has shapes only, unless ``materialise``.
        StateError: Where names, shapes, dtypes or values do not suit the model, which is then unchanged.
        FileError: For a file that is damaged or of no known format.
        PackageMissing: Where a package is needed that is not installed.
        BackendMissing: Where only a framework reads the format, and it is not installed.
        OSError: Where the file cannot be opened or read.

    Example:
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
    with read(path, verify=verify, within=within) as file:
        parameters, metadata = named_parameters(net), file_metadata(file)
        source = as_model_has_it(file, net)
        state = _Renamed(source, _stored_names(source, metadata, parameters))
        constants = net.buffers(aliases=True, persistent=False)
        ready = partial(_warn_of, [*_left_out(source), *_differences(metadata, net, parameters)], path)
        how = {"strict": strict, "cast": cast, "verify": verify, "materialise": materialise}
        return load_state(parameters, state, ready=ready, constants=constants, **how)


def _left_out(source: Mapping[str, Any]) -> list[str]:
    left_out = getattr(source, "left_out", ())
    return [f"the file holds more, which is left out: {', '.join(left_out)}"] if left_out else []


def _differences(metadata: FileMetadata, net: Group, parameters: Mapping[str, Parameter]) -> list[str]:
    """Where file and model differ in what no weight carries."""
    options = _option_differences(metadata, net) if isinstance(net, Model) else []
    return _tie_differences(metadata, parameters) + options


def _warn_of(notes: list[str], path: PathLike) -> None:
    if notes:
        more = f"\n  ... and {len(notes) - LINES} more" if len(notes) > LINES else ""
        text = f"{str(path)!r} and the model differ:\n  " + "\n  ".join(notes[:LINES]) + more
        warnings.warn(text, MultiparamWarning, stacklevel=4)  # this, load_state, load, then the user's line


def _stored_names(
    source: Mapping[str, Any], metadata: FileMetadata, parameters: Mapping[str, Parameter]
) -> dict[str, tuple[str, bool]]:
    """Name in the model -> name in the file, and whether transposed. A name of the file's that the model has is taken
    as it is; an alias stands in where that leaves a parameter without values."""
    stored_names = {name: (name, False) for name in source if name in parameters}
    served: dict[tuple[str, ...], list[str]] = {}  # the names of a parameter -> those of them that get values
    for name in stored_names:
        served.setdefault(parameters[name].names, []).append(name)

    def implied(alias: str, stored: str, transposed: bool) -> bool:
        """Whether a name of the same parameter gives it the same values already."""
        return any(
            stored_names[name][0] == stored
            and (stored_names[name][1] != transposed) == (parameters[name] is not parameters[alias])
            for name in served.get(parameters[alias].names, ())
        )

    for name in source:
        entry = metadata.parameters.get(name, {})
        aliases = [alias for alias in entry.get("aliases", ()) if alias in parameters and alias not in source]
        for alias in aliases:
            transposed = alias in entry.get("transposed", ())
            if not implied(alias, name, transposed):
                stored_names[alias] = name, transposed
                served.setdefault(parameters[alias].names, []).append(alias)
        if name not in parameters and not aliases:
            stored_names[name] = name, False  # which load_state finds unexpected
    return stored_names


class _Renamed(Relayed):
    """A source under the model's names."""

    def __init__(self, source: Mapping[str, np.ndarray], stored_names: Mapping[str, tuple[str, bool]]) -> None:
        self._source = source
        self._stored_names = stored_names

    def origin(self, name: str) -> tuple[Mapping[str, Any], str]:
        return self._source, self._stored_names[name][0]

    def __getitem__(self, name: str) -> np.ndarray:
        array = super().__getitem__(name)
        return array.T if self._stored_names[name][1] else array

    def spec(self, name: str) -> ArraySpec:
        shape, dtype = super().spec(name)
        return ArraySpec(shape[::-1] if self._stored_names[name][1] else shape, dtype)

    def block(self, name: str, box: Box) -> np.ndarray:
        if not self._stored_names[name][1]:
            return super().block(name, box)
        return super().block(name, box[::-1]).T

    def verify_block(self, name: str, box: Box) -> None:
        super().verify_block(name, box[::-1] if self._stored_names[name][1] else box)

    def read_into(self, name: str, out: np.ndarray) -> bool:
        return not self._stored_names[name][1] and super().read_into(name, out)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored_names)

    def __len__(self) -> int:
        return len(self._stored_names)


def _tie_differences(metadata: FileMetadata, parameters: Mapping[str, Parameter]) -> list[str]:
    """Where the file's ties are not the model's."""
    notes = []
    stored_name: dict[str, str] = {}  # name in the model -> name its values have in the file
    for stored, entry in metadata.parameters.items():
        tied = [name for name in (stored, *entry.get("aliases", ())) if name in parameters]
        stored_name.update((name, stored) for name in tied)
        if len({parameters[name].names for name in tied}) > 1:
            names = " and ".join(map(repr, tied))
            notes.append(f"the file ties {names}; the model does not: each gets these values")
    tied_in_model: dict[tuple[str, ...], list[str]] = {}
    for name in stored_name:
        tied_in_model.setdefault(parameters[name].names, []).append(name)
    for tied in tied_in_model.values():
        if len({stored_name[name] for name in tied}) > 1:
            names = " and ".join(map(repr, tied))
            notes.append(f"the model ties {names}; the file has them apart, with equal values")
    return notes


def _option_differences(metadata: FileMetadata, net: Model) -> list[str]:
    """Options of layers that are not the file's, of those that both sides tell."""
    notes = []
    for layer, options in net.options().items():
        stored = metadata.layers.get(layer, {})
        for key, value in options.items():
            if key in stored and not options_equal(value, stored[key]):
                notes.append(f"layer {layer!r} has {key}={stored[key]!r} in the file, {value!r} in the model")
    return notes
