"""Weights into files of any format: safetensors here, what only a framework writes through its backend's hook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import paths
from ..core.arrays import numpy_dtype
from ..core.group import store_of
from ..core.model import Model
from ..core.state import Source
from ..weights.atomic import Replacement
from ..weights.kinds import INDEX
from ..weights.metadata import describe, encode_metadata
from ..weights.safetensors import Tensor, write_safetensors
from ..weights.sharded import earlier_shards
from ..weights.writers import ArraysToWrite, is_native_export, place_to_write, writer
from .manifest import Entry, manifest_of
from .rename import Rules, rename_layers

Tick = Callable[[str], None]


# -- under which names


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
    with place_to_write(path, suffix) as temporary:
        host = store_of(source).host if native and isinstance(source, Model) else None
        readers = {name: partial(names.read, entry.name) for name, entry in names.stored.items()}
        arrays = ArraysToWrite(readers, names.aliases, tick)
        backend.write(arrays if host is None else host, temporary, suffix)


def _export_safetensors(source: Model | Source, path: Path, names: ExportNames, tick: Tick) -> None:
    def reader(name: str, entry: Entry) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            tick(name)
            return names.read(entry.name).astype(numpy_dtype(entry.spec.dtype), copy=False)

        return read

    tensors = [Tensor(name, *entry.spec, reader(name, entry)) for name, entry in names.stored.items()]
    stale = earlier_shards(path.with_name(path.stem + INDEX))
    with Replacement(path.name) as replacement:
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
