"""Distributed checkpoints of PyTorch (``torch.distributed.checkpoint``), read in one process, an array at a time.

Which file holds which block of which tensor stands in ``.metadata``, a pickle that PyTorch's own reader would run. Here
it is unpickled into records that do nothing, each of which is looked at; from them PyTorch's planner and reader get the
metadata that they work with. Blocks are read by PyTorch, with ``weights_only``.

Source: ``torch/distributed/checkpoint/metadata.py`` and ``filesystem.py`` of PyTorch 2.4 to 2.13.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from multiparam.adapter import ArraySpec, FileError, flatten

from .adapter import TorchAdapter
from .zip_files import DTYPES, PlainUnpickler

LIST = ".metadata"
MOST_BLOCKS = 1 << 12  # of one tensor that are compared with each other: more devices than any checkpoint is of


def read(path: Path) -> Mapping[str, Any]:
    """The tensors of a folder that ``torch.distributed.checkpoint.save`` wrote, nested keys joined with dots.

    Raises FileError for a list that is damaged, names anything outside of the folder, or leaves a part of a tensor out.
    """
    checkpoint = _Checkpoint(path)
    tree: dict[str, Any] = {}
    for name in checkpoint.names:
        first, rest = checkpoint.place(name)
        value: Any = checkpoint.tensors.get(name, "no tensor")
        if not rest:
            tree[first] = value
        else:
            part = tree.setdefault(first, {})
            if not isinstance(part, dict) or rest in part:
                raise FileError(f"{str(path)!r} has two entries called {name!r}.")
            part[rest] = value
    return flatten(tree)


class Record:
    """An object of a pickle: what it was made of, and its state. It does nothing."""

    called = ""
    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def field(self, name: str) -> Any:
        """A field, or None."""
        return self.state.get(name) if isinstance(self.state, dict) else None


class _Unpickler(PlainUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name == "Size":
            return tuple
        if module == "torch" and name in DTYPES:
            return name
        return type(name, (Record,), {"called": f"{module}.{name}"})


class Block(NamedTuple):
    """Where the bytes of a block are, under the names that PyTorch's reader asks for."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: list[str]


class Tensor:
    """A tensor of a checkpoint, read when numpy asks for it."""

    def __init__(self, checkpoint: _Checkpoint, name: str, spec: ArraySpec) -> None:
        self._checkpoint = checkpoint
        self._name = name
        self.spec = spec
        self.shape, self.dtype = spec

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = TorchAdapter().to_numpy(self._checkpoint.tensor(self._name))
        return array if dtype is None else array.astype(dtype)


class _Checkpoint:
    """A folder, by its list, all of which is looked at before anything is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with open(path / LIST, "rb") as file:
            tree = _Unpickler(file).read_all()
        entries, stored, paths = (
            tree.field(name) if isinstance(tree, Record) else None
            for name in ("state_dict_metadata", "storage_data", "planner_data")
        )
        if not isinstance(entries, dict) or not isinstance(stored, dict):
            raise self._error("it lists no tensors")
        self.names = [self._text(name) for name in entries]
        self._paths = paths if isinstance(paths, dict) else {}
        self._infos = dict(self._info(key, value) for key, value in stored.items())
        self._entries = {
            name: self._entry(name, entry)
            for name, entry in entries.items()
            if not isinstance(entry, Record) or not entry.called.endswith(".BytesStorageMetadata")
        }
        self.tensors = {
            name: Tensor(self, name, ArraySpec(tuple(entry.size), str(entry.properties.dtype).removeprefix("torch.")))
            for name, entry in self._entries.items()
        }

    def _error(self, what: str) -> FileError:
        return FileError(f"{str(self._path / LIST)!r} is no list of a distributed checkpoint, or is damaged: {what}.")

    def _text(self, name: Any) -> str:
        if not isinstance(name, str):
            raise self._error(f"a name is {type(name).__name__}")
        return name

    def place(self, name: str) -> tuple[str, str]:
        """The first key of a name, and what is below it, as the tree that was saved had them."""
        path = self._paths.get(name)
        if not isinstance(path, tuple) or len(path) < 2 or not all(isinstance(key, (str, int)) for key in path):
            return name, ""
        return str(path[0]), ".".join(map(str, path[1:]))

    def _natural(self, values: Any, name: str) -> torch.Size:
        if not isinstance(values, tuple) or not all(type(n) is int and 0 <= n < 1 << 60 for n in values):
            raise self._error(f"{name!r} has no shape")
        return torch.Size(values)

    def _info(self, key: Any, value: Any) -> tuple[dcp.MetadataIndex, Block]:
        """Where a block is: in a file of the folder, and inside of that."""
        if not isinstance(key, Record) or not isinstance(value, Record):
            raise self._error("it does not say where a block is")
        name, offset = self._text(key.field("fqn")), key.field("offset")
        file, start, length = (value.field(each) for each in ("relative_path", "offset", "length"))
        if not isinstance(file, str) or len(PurePosixPath(file).parts) != 1 or file in ("..", "."):
            raise self._error(f"{name!r} is in {file!r:.80}, which is no file in the folder")
        if not (self._path / file).is_file():
            raise FileError(f"{str(self._path)!r} names the file {file!r}, which is not there.")
        if type(start) is not int or type(length) is not int or start < 0 or length < 0:
            raise self._error(f"{name!r} has no place in {file!r}")
        if start + length > os.stat(self._path / file).st_size:
            raise FileError(f"{str(self._path / file)!r} ends before its data does: it was cut short.")
        info = Block(file, start, length, [self._text(each) for each in value.field("transform_descriptors") or ()])
        return dcp.MetadataIndex(name, None if offset is None else self._natural(offset, name)), info

    def _entry(self, name: str, entry: Any) -> dcp.TensorStorageMetadata:
        """A tensor, all of whose numbers are in blocks that are there."""
        properties = entry.field("properties") if isinstance(entry, Record) else None
        state = properties.state if isinstance(properties, Record) else None
        dtype = state[0] if isinstance(state, tuple) and state else None
        if dtype not in DTYPES:
            raise self._error(f"{name!r} is of no known dtype")
        size, chunks = self._natural(entry.field("size"), name), entry.field("chunks")
        if not isinstance(chunks, list) or not all(isinstance(each, Record) for each in chunks):
            raise self._error(f"{name!r} has no blocks")
        blocks = [
            dcp.ChunkStorageMetadata(
                self._natural(each.field("offsets"), name), self._natural(each.field("sizes"), name)
            )
            for each in chunks
        ]
        if not _make_up(size, blocks) or any(dcp.MetadataIndex(name, b.offsets) not in self._infos for b in blocks):
            raise self._error(f"the blocks of {name!r} do not make it up")
        return dcp.TensorStorageMetadata(dcp.TensorProperties(getattr(torch, dtype)), size, blocks)

    def tensor(self, name: str) -> torch.Tensor:
        """Read a tensor. No other process is asked: planner and reader are those of one."""
        entry = self._entries[name]
        state = {name: torch.empty(entry.size, dtype=entry.properties.dtype)}
        known = dcp.Metadata({name: entry}, storage_data=self._infos)
        planner = DefaultLoadPlanner(flatten_state_dict=False)
        planner.set_up_planner(state, known, True)
        reader = filesystem.FileSystemReader(self._path)
        reader.set_up_storage_reader(known, True)
        reader.read_data(planner.create_local_plan(), planner).wait()
        return state[name]


def _make_up(size: torch.Size, blocks: list[dcp.ChunkStorageMetadata]) -> bool:
    """Whether blocks lie inside of an array, do not overlap, and leave nothing of it out."""
    if any(len(block.offsets) != len(size) or len(block.sizes) != len(size) for block in blocks):
        return False
    if sum(math.prod(block.sizes) for block in blocks) != math.prod(size) or len(blocks) > MOST_BLOCKS:
        return False
    starts = np.array([block.offsets for block in blocks], "int64").reshape(len(blocks), len(size))
    ends = starts + np.array([block.sizes for block in blocks], "int64").reshape(starts.shape)
    return bool((ends <= np.array(size, "int64")).all()) and not any(_overlapping(starts, ends))


def _overlapping(starts: np.ndarray, ends: np.ndarray) -> Iterator[bool]:
    """Of each block, whether one that comes after it has numbers of its."""
    for i in range(len(starts) - 1):
        yield bool(((starts[i] < ends[i + 1 :]) & (starts[i + 1 :] < ends[i])).all(axis=1).any())
