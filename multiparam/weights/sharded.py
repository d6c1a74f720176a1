"""Several safetensors files and the index that says which tensor is in which, as Hugging Face writes them.

``w-00001-of-00003.safetensors`` and so on, and ``w.safetensors.index.json`` with ``{"metadata": {"total_size": bytes},
"weight_map": {tensor: file}}``. To that multiparam adds one random text for all shards of a save, in each shard's
metadata and in the index: files of two saves, which a crash or a copy can mix, are then not read as one.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Generic, NamedTuple, TypeVar

from ..core.regular import require_regular
from ..core.relayed import Relayed
from ..core.state import Source
from ..errors import FileError
from .atomic import Replacement
from .kinds import ANY_INDEX, INDEX
from .safetensors import LARGEST_HEADER, Tensor, TensorFile, write_safetensors
from .strict_json import strict_json

SAVE = "multiparam.save"  # the key of the text that all shards of a save share


# -- writing


def split_tensors(tensors: Sequence[Tensor], bound: float) -> list[list[Tensor]]:
    """Tensors in their order, as many in each shard as ``bound`` bytes hold; a larger one has a shard to itself."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > bound:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def write_shards(
    replacement: Replacement, index: Path, shards: Sequence[Sequence[Tensor]], metadata: Sequence[Mapping[str, str]]
) -> None:
    """Write shards, each with its metadata, and last the index."""
    stem, token = index.name.removesuffix(INDEX), secrets.token_hex(8)
    weight_map: dict[str, str] = {}
    for i, (tensors, texts) in enumerate(zip(shards, metadata, strict=True), 1):
        name = f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(replacement.file(index.with_name(name)), tensors, {**texts, SAVE: token})
        weight_map.update((tensor.name, name) for tensor in tensors)
    size = sum(tensor.nbytes for tensors in shards for tensor in tensors)
    content = {"metadata": {"total_size": size, SAVE: token}, "weight_map": weight_map}
    replacement.file(index).write(json.dumps(content, indent=2, ensure_ascii=False).encode())


def earlier_shards(index: Path) -> list[Path]:
    """An index and its shards that an earlier save has left; another program's are not ours to remove."""
    try:
        content = read_index(index)
    except (OSError, FileError):
        return []
    if content.save is None:
        return []
    pattern = re.escape(index.name.removesuffix(INDEX)) + r"-\d{5}-of-\d{5}\.safetensors"
    files = sorted(set(content.weight_map.values()))
    return [index, *(index.with_name(name) for name in files if re.fullmatch(pattern, name))]


# -- reading


class ShardIndex(NamedTuple):
    """What an index says: the file of each tensor, and the text of the save where multiparam wrote it."""

    weight_map: Mapping[str, str]
    save: str | None


def read_index(path: Path) -> ShardIndex:
    """The content of an index. Raises FileError for one that is damaged, or names a file that is not beside it."""
    if require_regular(path).st_size > LARGEST_HEADER:
        raise FileError(f"{str(path)!r} is too long for an index.")
    content = strict_json(path.read_bytes(), path)
    weight_map, metadata = content.get("weight_map"), content.get("metadata", {})
    if not isinstance(weight_map, dict) or not isinstance(metadata, dict):
        raise FileError(f"{str(path)!r} is no index of shards: it has no 'weight_map'.")
    if not isinstance(metadata.get(SAVE), (str, type(None))):
        raise FileError(f"{str(path)!r} is damaged: {SAVE!r} is no text.")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _inside(file):
            raise FileError(f"{str(path)!r} says that {name!r} is in {file!r}, which is no file beside it.")
        if file.endswith(ANY_INDEX):
            raise FileError(f"{str(path)!r} says that {name!r} is in {file!r}, which is an index itself.")
    return ShardIndex(weight_map, metadata.get(SAVE))


def _inside(name: str) -> bool:
    """Whether a file's name cannot lead out of its folder, on any system: an index may come from a stranger."""
    windows = PureWindowsPath(name)
    parts = {*PurePosixPath(name).parts, *windows.parts}
    return bool(parts) and not (windows.drive or windows.root or name.startswith("/") or ".." in parts or "\0" in name)


Shard = TypeVar("Shard", bound=Source)


class ShardSource(Relayed, Generic[Shard]):
    """The arrays of several files, by an index beside them. Raises FileError where index and files do not fit."""

    def __init__(self, path: Path, verify: bool = True) -> None:
        self.path = path
        index = read_index(path)
        self.files: dict[str, Shard] = {}
        try:
            for file in dict.fromkeys(index.weight_map.values()):
                self.files[file] = self.open_shard(file, verify)
            self._places = self.places(index)
        except BaseException:
            self.close()
            raise

    def open_shard(self, file: str, verify: bool) -> Shard:
        """One of the files, by its name."""
        raise NotImplementedError

    def places(self, index: ShardIndex) -> Mapping[str, tuple[str, str]]:
        """Name -> a file, and what it calls the array; index and files are checked against each other."""
        raise NotImplementedError

    def missing(self, file: str) -> FileError:
        """The error of a shard that is not there."""
        return FileError(f"{str(self.path)!r} names the shard {file!r}, which is not there.")

    def close(self) -> None:
        for shard in self.files.values():
            shard.close()

    def origin(self, name: str) -> tuple[Shard, str]:
        file, stored = self._places[name]
        return self.files[file], stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places


class Sharded(ShardSource[TensorFile]):
    """The tensors of all shards, by one index.

    Raises FileError for an index that is damaged or names a file elsewhere, for a shard that is missing, and for shards
    of different saves.
    """

    def __init__(self, path: Path, verify: bool = True) -> None:
        super().__init__(path, verify)
        self.shards = list(self.files.values())
        self.metadata: Mapping[str, str] = self.shards[0].metadata if self.shards else {}

    def open_shard(self, file: str, verify: bool) -> TensorFile:
        try:
            return TensorFile(self.path.parent / file, verify)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise self.missing(file) from None

    def places(self, index: ShardIndex) -> Mapping[str, tuple[str, str]]:
        """Index and shards name the same tensors, and are of one save."""
        listed: dict[str, set[str]] = {file: set() for file in self.files}
        for name, file in index.weight_map.items():
            listed[file].add(name)
        for file, shard in self.files.items():
            if listed[file] != set(shard):
                odd = sorted(listed[file] ^ set(shard))[0]
                raise FileError(f"{str(self.path)!r} and its shard {file!r} do not agree on whether it has {odd!r}.")
        saves = {shard.metadata.get(SAVE) for shard in self.files.values()} | {index.save}
        if self.files and len(saves) > 1:
            raise FileError(
                f"The shards that {str(self.path)!r} names are not of one save: a save over them was interrupted, or "
                "files were mixed."
            )
        return {name: (file, name) for name, file in index.weight_map.items()}
