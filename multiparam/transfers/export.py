"""Weights into files of any format: safetensors here, what only a framework writes through its backend's hook."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import paths
from ..core import registry
from ..core.arrays import numpy_dtype
from ..core.group import store_of
from ..core.model import Model
from ..core.registry import BackendInfo
from ..core.state import Source
from ..errors import FileError, InvalidArgument, MultiparamError
from ..weights.atomic import Replacement, atomic_path
from ..weights.formats import damaged, first_line
from ..weights.metadata import describe, encode_metadata
from ..weights.safetensors import Tensor, write_safetensors
from ..weights.sharded import INDEX, earlier_shards
from .manifest import Entry, manifest_of
from .rename import Rules, rename_layers

SAFETENSORS = ".safetensors"
Tick = Callable[[str], None]


# -- who writes, and under which names


def writer(path: Path, format: str | None = None) -> tuple[BackendInfo | None, str]:
    """Who writes a file of such a name, None for multiparam itself, and the suffix.

    ``format``, a backend's name or ``"safetensors"``, must be the one that does. Raises InvalidArgument for an unknown
    suffix or format.

        >>> writer(Path("net.weights.h5"))[1], writer(Path("v1.safetensors"))
        ('.weights.h5', (None, '.safetensors'))
    """
    own = SAFETENSORS[1:]
    writers: dict[str, BackendInfo | None] = {SAFETENSORS: None, **registry.writers()}
    suffix = next((suffix for suffix in sorted(writers, key=len, reverse=True) if path.name.endswith(suffix)), None)
    if format is not None:
        formats = [own, *registry.registered()]
        if format not in formats:
            raise InvalidArgument(f"No format {format!r}. {paths.did_you_mean(format, formats)}")
        suffixes = (SAFETENSORS,) if format == own else tuple(registry.info(format).writes)
        if suffix not in suffixes:
            raise InvalidArgument(f"{format} files end in {' or '.join(suffixes)}; {path.name!r} does not.")
    if suffix is None:
        hint = paths.did_you_mean("".join(path.suffixes[-2:]), writers)
        raise InvalidArgument(f"No weight file that can be written ends like {path.name!r}. {hint}")
    return writers[suffix] if format in (None, own) else registry.info(str(format)), suffix


@dataclass(frozen=True)
class ExportNames:
    """What is written under which name. ``stored``: name -> its source; ``aliases``: name -> the stored name whose
    values it has, and whether transposed; ``dropped``: source names that are left out."""

    stored: dict[str, Entry]
    aliases: dict[str, tuple[str, bool]]
    dropped: list[str]
    read: Callable[[str], np.ndarray]  # the values of a source name


def export_names(source: Any, rules: Rules = None) -> ExportNames:
    """A source's names after the rules. Raises InvalidArgument for a rule that fits nothing, or two of one name."""
    manifest = manifest_of(source)
    renamed = rename_layers(manifest, rules)
    stored: dict[str, Entry] = {}
    aliases: dict[str, tuple[str, bool]] = {}
    first_name: dict[Any, str] = {}  # of each storage
    for layer, leaves in renamed.layers.items():
        for leaf, entry in leaves.items():
            name = f"{layer}.{leaf}" if layer else leaf
            first = first_name.setdefault(entry.key, name)
            if first == name:
                stored[name] = entry
            else:
                aliases[name] = first, entry.view != stored[first].view
    order = {name: i for i, name in enumerate(describe(source)["parameters"])}  # a file's own may be by size
    ordered = sorted(stored.items(), key=lambda item: order.get(item[1].name, len(order)))
    return ExportNames(dict(ordered), aliases, renamed.dropped, manifest.read)


def is_native_export(source: Any, path: Path, format: str | None = None, *, renamed: bool = False) -> bool:
    """Whether a model is written by its own framework, in the framework's names: where that writes such files, and
    nothing is renamed. Raises InvalidArgument for a format that only a model of its framework can be written in."""
    backend, suffix = writer(path, format)
    if backend is None:
        return False
    native = not renamed and isinstance(source, Model) and source.backend == backend.name
    if not native and suffix in backend.models_only:
        raise InvalidArgument(
            f"A {suffix} file is laid out as the layers of a model are, so only a model of {backend.name} can be "
            "written as one, with its own names: give one as TARGET, and the file as --output."
        )
    return native


# -- writing


def export_file(
    source: Model | Source,
    path: Path,
    names: ExportNames,
    *,
    format: str | None = None,
    renamed: bool = False,
    tick: Tick,
) -> None:
    """Write a source under these names, or its own (:func:`is_native_export`); the file appears whole or not at all.

    Raises InvalidArgument, Unsupported or FileError for what the format cannot hold, OSError where the disk refuses.
    """
    native = is_native_export(source, path, format, renamed=renamed)
    backend, suffix = writer(path, format)
    if backend is None:
        _export_safetensors(source, path, names, tick)
        return
    with atomic_path(path) as temporary, _unwritable(path):
        host = store_of(source).host if native and isinstance(source, Model) else None
        backend.write(ExportedArrays(names, tick) if host is None else host, temporary, suffix)


class ExportedArrays(Mapping[str, np.ndarray]):
    """Every name, aliases too, and its array, read when it is looked up; names of one array give one object."""

    def __init__(self, names: ExportNames, tick: Tick) -> None:
        self._names = names
        self._tick = tick
        self._tied_names = {stored for stored, _ in names.aliases.values()}
        self._tied: dict[str, np.ndarray] = {}  # only these stay in memory

    def __getitem__(self, name: str) -> np.ndarray:
        stored, transposed = self._names.aliases.get(name, (name, False))
        array = self._tied.get(stored)
        if array is None:
            array = self._names.read(self._names.stored[stored].name)
            if stored in self._tied_names:
                self._tied[stored] = array
        self._tick(name)
        return array.T if transposed else array

    def __iter__(self) -> Iterator[str]:
        yield from self._names.stored
        yield from self._names.aliases

    def __len__(self) -> int:
        return len(self._names.stored) + len(self._names.aliases)


def _export_safetensors(source: Model | Source, path: Path, names: ExportNames, tick: Tick) -> None:
    def reader(name: str, entry: Entry) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            tick(name)
            return names.read(entry.name).astype(numpy_dtype(entry.spec.dtype), copy=False)

        return read

    tensors = [Tensor(name, *entry.spec, reader(name, entry)) for name, entry in names.stored.items()]
    stale = earlier_shards(path.with_name(path.stem + INDEX))
    with Replacement() as replacement:
        metadata = encode_metadata(_renamed_document(source, names), tensors)
        write_safetensors(replacement.file(path), tensors, metadata)
    for earlier in stale:
        earlier.unlink(missing_ok=True)


def _renamed_document(source: Model | Source, names: ExportNames) -> Mapping[str, Any]:
    """The source's document under the new names."""
    document = describe(source)
    options = document.get("layers", {})
    about_names = {
        name: about for first, about in document["parameters"].items() for name in (first, *about.get("aliases", ()))
    }
    parameters: dict[str, dict[str, Any]] = {}
    layers: dict[str, Any] = {}
    for name, entry in names.stored.items():
        about = about_names.get(entry.name)
        if about is not None:
            dropped = {"aliases", "transposed"}
            if entry.name not in document["parameters"]:  # an alias in its place: another layer's
                dropped |= {"kind", "layout"}
            aliases = {alias: transposed for alias, (stored, transposed) in names.aliases.items() if stored == name}
            transposed = [alias for alias, is_transposed in aliases.items() if is_transposed]
            parameters[name] = {
                **{key: value for key, value in about.items() if key not in dropped},
                **({"aliases": list(aliases)} if aliases else {}),
                **({"transposed": transposed} if transposed else {}),
            }
        old, new = (paths.split(each)[0] for each in (entry.name, name))
        if old in options:
            layers.setdefault(new, options[old])
    return {"parameters": parameters, "layers": layers}


class _unwritable(damaged):
    """What a framework raises when it cannot write, in a sentence."""

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, (MultiparamError, OSError)):
            raise FileError(f"{str(self.path)!r} cannot be written. {first_line(error)}") from error
