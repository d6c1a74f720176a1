"""What a weight file says besides its arrays: one JSON document in its metadata, under the key ``"multiparam"``.

::

    {"format": 1, "multiparam": "0.1.0",
     "parameters": {name: {"kind", "layout", "trainable", "buffer", "aliases", "transposed"}},
     "layers": {layer: {"eps": 1e-05, ...}}}

``layout`` is missing for a layer multiparam does not know, ``aliases`` (the other names of a tied parameter) and
``transposed`` (those of them that show its transpose) where there are none. ``"multiparam.crc32.mib"``, beside the
document, has the checksums, 8 hexadecimal digits each: of the header, then of each MiB of each tensor in the order of
the data, so that a part can be checked. Files before 1.1 have ``"multiparam.crc32"``, with one for each tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..core.group import Group, named_parameters
from ..core.layers import KINDS
from ..core.model import Model
from ..core.parameter import Parameter
from ..errors import FileError
from ..paths import split
from .safetensors import Tensor, TensorFile
from .sharded import Sharded

VERSION = 1
DOCUMENT = "multiparam"  # the key of the document in the metadata
TIED = ("aliases", "transposed")  # what a document has lists of names under


class FileMetadata(NamedTuple):
    """A file's document: of each parameter, and of each layer."""

    parameters: Mapping[str, Mapping[str, Any]] = {}
    layers: Mapping[str, Mapping[str, Any]] = {}


# -- writing


def describe(state: Group | Mapping[str, Any]) -> Mapping[str, Any]:
    """A model's parameters and layers as a document has them; of arrays from a file, that file's document."""
    if not isinstance(state, Group):
        return file_metadata(state)._asdict()
    parameters = named_parameters(state)
    names: dict[tuple[str, ...], list[str]] = {}
    for name, p in parameters.items():
        names.setdefault(p.names, []).append(name)
    entries = {tied[0]: _describe_parameter(tied, parameters) for tied in names.values()}
    layers = state.options() if isinstance(state, Model) else {}
    return {"parameters": entries, "layers": layers}


def _describe_parameter(names: list[str], parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """What a document says of one parameter, by all of its names."""
    p = parameters[names[0]]
    entry: dict[str, Any] = {"kind": p.kind, "trainable": p.trainable, "buffer": p.buffer}
    layout = KINDS.get(p.kind, {}).get(split(names[0])[1])
    if layout is not None:
        entry["layout"] = layout
    if len(names) > 1:
        entry["aliases"] = names[1:]
    transposed = [name for name in names if parameters[name] is not p]
    if transposed:
        entry["transposed"] = transposed
    return entry


def encode_metadata(document: Mapping[str, Any], tensors: Iterable[Tensor]) -> dict[str, str]:
    """The document with what concerns these tensors, as a file's metadata."""
    entries = document.get("parameters", {})
    parameters = {tensor.name: entries[tensor.name] for tensor in tensors if tensor.name in entries}
    content = {
        "format": VERSION,
        "multiparam": __version__,
        "parameters": parameters,
        "layers": document.get("layers", {}),
    }
    return {DOCUMENT: json.dumps(content, ensure_ascii=False, default=_plain)}


def _plain(value: Any) -> Any:
    """An option that JSON has no word for: numpy's numbers as numbers, the rest as text."""
    return value.item() if isinstance(value, np.generic) else str(value)


# -- reading


def file_metadata(source: Mapping[str, Any]) -> FileMetadata:
    """What a file says of its parameters; nothing where multiparam did not write it. Raises FileError."""
    files = source.shards if isinstance(source, Sharded) else [source] if isinstance(source, TensorFile) else []
    parameters: dict[str, Any] = {}
    layers: dict[str, Any] = {}
    for file in files:
        text = file.metadata.get(DOCUMENT)
        if text is not None:
            document = _decode(text, file.path)
            parameters.update(document["parameters"])
            layers.update(document["layers"])
    return FileMetadata(parameters, layers)


def _decode(text: str, path: Path) -> dict[str, Any]:
    """The document of a file, checked: a file may be written by a later multiparam, or by anybody."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    version = document.get("format") if isinstance(document, dict) else None
    if type(version) is int and version > VERSION:
        raise FileError(
            f"{str(path)!r} is of format {version}, written by multiparam {document.get('multiparam')!r}; this one, "
            f"{__version__}, reads format {VERSION}. Try: pip install --upgrade multiparam"
        )
    if type(version) is not int or version != VERSION or not _well_formed(document):
        raise FileError(f"{str(path)!r} has metadata under {DOCUMENT!r} that multiparam did not write.")
    return document  # type: ignore[no-any-return]


def _well_formed(document: Mapping[str, Any]) -> bool:
    parameters, layers = document.get("parameters"), document.get("layers")
    if not isinstance(parameters, dict) or not isinstance(layers, dict):
        return False
    if not all(isinstance(entry, dict) for entry in (*parameters.values(), *layers.values())):
        return False
    return all(_are_names(entry.get(key, [])) for entry in parameters.values() for key in TIED)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
