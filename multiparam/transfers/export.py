"""Weights into files of any format: safetensors here, what only a framework writes through its backend's hook."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from ..paths import did_you_mean
from ..weights.files import Replacement, describe, earlier_shards, encode_metadata, sync_folder
from ..weights.formats import damaged
from ..weights.safetensors import INDEX, Tensor
from ..weights.safetensors import write as write_safetensors
from .plan import Entry, manifest_of, renamed
from .rename import Rules

SAFETENSORS = ".safetensors"
Tick = Callable[[str], None]


def writer(path: Path, backend: str | None = None) -> tuple[BackendInfo | None, str]:
    """Who writes a file of such a name, None for multiparam itself, and the suffix.

    ``backend``, or ``"safetensors"``, must be the one that does. Raises InvalidArgument for an unknown suffix or name.

        >>> writer(Path("net.weights.h5"))[1], writer(Path("v1.safetensors"))
        ('.weights.h5', (None, '.safetensors'))
    """
    ours = SAFETENSORS[1:]
    known: dict[str, BackendInfo | None] = {SAFETENSORS: None, **registry.writers()}
    suffix = next((suffix for suffix in sorted(known, key=len, reverse=True) if path.name.endswith(suffix)), None)
    if backend is not None:
        names = [ours, *registry.registered()]
        if backend not in names:
            raise InvalidArgument(f"No format {backend!r}. {did_you_mean(backend, names)}")
        of_it = (SAFETENSORS,) if backend == ours else tuple(registry.info(backend).writes)
        if suffix not in of_it:
            raise InvalidArgument(f"{backend} files end in {' or '.join(of_it)}; {path.name!r} does not.")
    if suffix is None:
        hint = did_you_mean("".join(path.suffixes[-2:]), known)
        raise InvalidArgument(f"No weight file that can be written ends like {path.name!r}. {hint}")
    return known[suffix] if backend in (None, ours) else registry.info(str(backend)), suffix


@dataclass(frozen=True)
class Naming:
    """What is written under which name. ``stored``: name -> its source; ``aliases``: name -> the stored name whose
    values it has, and whether transposed; ``dropped``: source names that are left out."""

    stored: dict[str, Entry]
    aliases: dict[str, tuple[str, bool]]
    dropped: list[str]
    read: Callable[[str], np.ndarray]


def naming(source: Any, rules: Rules = None) -> Naming:
    """A source's names after the rules. Raises InvalidArgument for a rule that fits nothing, or two of one name."""
    side = manifest_of(source)
    groups, _, dropped = renamed(side, rules)
    stored: dict[str, Entry] = {}
    aliases: dict[str, tuple[str, bool]] = {}
    first: dict[Any, str] = {}
    for layer, leaves in groups.items():
        for leaf, entry in leaves.items():
            name = f"{layer}.{leaf}" if layer else leaf
            known = first.setdefault(entry.key, name)
            if known == name:
                stored[name] = entry
            else:
                aliases[name] = known, entry.view != stored[known].view
    order = {name: i for i, name in enumerate(describe(source)["parameters"])}  # a file's own may be by size
    ordered = sorted(stored.items(), key=lambda item: order.get(item[1].name, len(order)))
    return Naming(dict(ordered), aliases, dropped, side.read)


def _by_name(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What is said of a parameter, by each of its names."""
    said = document.get("parameters", {})
    return {each: about for name, about in said.items() for each in (name, *about.get("aliases", ()))}


def by_itself(source: Any, path: Path, to: str | None = None, *, renamed: bool = False) -> bool:
    """Whether a model is written by its own framework, in the framework's names: where that writes such files, and
    nothing is renamed. Raises InvalidArgument for a format that only a model of its framework can be written in."""
    backend, suffix = writer(path, to)
    if backend is None:
        return False
    own = not renamed and isinstance(source, Model) and source.backend == backend.name
    if not own and suffix in backend.models_only:
        raise InvalidArgument(
            f"A {suffix} file is laid out as the layers of a model are, so only a model of {backend.name} can be "
            "written as one, with its own names: give one as TARGET, and the file as --output."
        )
    return own


def write(
    source: Model | Source, path: Path, names: Naming, *, to: str | None = None, renamed: bool = False, tick: Tick
) -> None:
    """Write a source under these names, or by :func:`by_itself`; the file appears whole or not at all.

    Raises InvalidArgument, Unsupported or FileError for what the format cannot hold, OSError where the disk refuses.
    """
    own = by_itself(source, path, to, renamed=renamed)
    backend, suffix = writer(path, to)
    if backend is None:
        _safetensors(source, path, names, tick)
        return
    with atomically(path) as temporary, _refused(path):
        host = store_of(source).host if own and isinstance(source, Model) else None
        backend.write(State(names, tick) if host is None else host, temporary, suffix)


class State(Mapping[str, np.ndarray]):
    """Every name, aliases too, and its array, read when asked for; names of one array give one object."""

    def __init__(self, names: Naming, tick: Tick) -> None:
        self._names = names
        self._tick = tick
        self._shared = {stored for stored, _ in names.aliases.values()}
        self._tied: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        stored, turned = self._names.aliases.get(name, (name, False))
        array = self._tied.get(stored)
        if array is None:
            array = self._names.read(self._names.stored[stored].name)
            if stored in self._shared:
                self._tied[stored] = array
        self._tick(name)
        return array.T if turned else array

    def __iter__(self) -> Iterator[str]:
        yield from self._names.stored
        yield from self._names.aliases

    def __len__(self) -> int:
        return len(self._names.stored) + len(self._names.aliases)


def _safetensors(source: Model | Source, path: Path, names: Naming, tick: Tick) -> None:
    def reader(name: str, entry: Entry) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            tick(name)
            return names.read(entry.name).astype(numpy_dtype(entry.spec.dtype), copy=False)

        return read

    tensors = [Tensor(name, *entry.spec, reader(name, entry)) for name, entry in names.stored.items()]
    stale = earlier_shards(path.with_name(path.stem + INDEX))
    with Replacement() as replacement:
        write_safetensors(replacement.file(path), tensors, encode_metadata(_said(source, names), tensors))
    for old in stale:
        old.unlink(missing_ok=True)


def _said(source: Model | Source, names: Naming) -> Mapping[str, Any]:
    """The source's document under the new names."""
    document = describe(source)
    known, options = _by_name(document), document.get("layers", {})
    parameters: dict[str, dict[str, Any]] = {}
    layers: dict[str, Any] = {}
    for name, entry in names.stored.items():
        about = known.get(entry.name)
        aliases = {alias: turned for alias, (stored, turned) in names.aliases.items() if stored == name}
        if about is not None:
            kept = {key: value for key, value in about.items() if key not in ("aliases", "transposed")}
            if entry.name not in document["parameters"]:  # an alias in its place: another layer's
                kept = {key: value for key, value in kept.items() if key not in ("kind", "layout")}
            turned = [alias for alias, transposed in aliases.items() if transposed]
            parameters[name] = {
                **kept,
                **({"aliases": list(aliases)} if aliases else {}),
                **({"transposed": turned} if turned else {}),
            }
        old, new = (paths.split(each)[0] for each in (entry.name, name))
        if old in options:
            layers.setdefault(new, options[old])
    return {"parameters": parameters, "layers": layers}


class _refused(damaged):
    """What a framework raises when it cannot write, in a sentence."""

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, (MultiparamError, OSError)):
            said = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
            raise FileError(f"{str(self._path)!r} cannot be written. {said}") from error


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A place to write what ``path`` is to hold, of the same name since some writers look at it; it takes the place of
    ``path`` when the block ends, and is gone after an error."""
    with tempfile.TemporaryDirectory(prefix=".multiparam-", suffix=".tmp", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    sync_folder(path.parent)
