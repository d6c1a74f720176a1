"""What is no regular file is refused at once: a named pipe would be waited for, a device read for ever."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from support.interpreter import python

import multiparam as mp
from multiparam import errors
from multiparam.comparison.config import read_config
from multiparam.core.regular import require_regular
from multiparam.transfers.rename import renamer

SUFFIXES = ("safetensors", "npz", "pt", "params", "h5", "keras", "msgpack", "safetensors.index.json")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a link to a device"])
def test_no_reader_opens_it(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"w.{suffix}"
    if kind == "a named pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(
        errors.FileError, match=rf"w\.{suffix}' is no regular file but {kind.removeprefix('a link to ')}"
    ):
        mp.read(path)


def test_nor_a_shard(tmp_path: Path) -> None:
    index = mp.save({"a": np.zeros(9), "b": np.zeros(9)}, tmp_path / "w.safetensors", shard_size=80)
    shard = tmp_path / "w-00002-of-00002.safetensors"
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(errors.FileError, match=r"00002-of-00002\.safetensors' is no regular file but a named pipe"):
        mp.read(index)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_nor_an_index_that_names_itself(tmp_path: Path, suffix: str) -> None:
    index = tmp_path / f"w.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": index.name}}))
    with pytest.raises(errors.FileError, match="which is an index itself"):
        mp.read(index)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file_is_called_so(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"w.{suffix}").touch()
    with pytest.raises(errors.FileError, match="is empty: it has 0 bytes"):
        mp.read(tmp_path / f"w.{suffix}")


@pytest.mark.parametrize("read", [lambda path: read_config(path), lambda path: renamer(path)("a")])
def test_nor_a_text(tmp_path: Path, read: object) -> None:
    os.mkfifo(tmp_path / "agree.toml")
    with pytest.raises(
        errors.FileError, match="no regular file but a named pipe: copy what it gives into a file first"
    ):
        read(tmp_path / "agree.toml")  # type: ignore[operator]


def test_what_else_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.FileError, match="but a folder: give a file in it"):
        require_regular(tmp_path)
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(errors.FileError, match="but a socket"):
            require_regular(Path("s"))


def test_a_file_that_nobody_may_read(tmp_path: Path) -> None:
    """As another user: the superuser may read everything."""
    path = mp.save({"a": np.zeros(1)}, tmp_path / "w.safetensors")
    path.chmod(0)
    code = f"""
import os, multiparam as mp
tmp = {str(path)!r}
from multiparam.core import regular
real = os.access
regular.os.access = lambda p, mode: mode != os.R_OK
for reader in (mp.read, mp.read):
    try: reader(tmp)
    except PermissionError as error: print(error.strerror, error.filename == tmp)
"""
    assert python(code).splitlines() == ["Permission denied True"] * 2
