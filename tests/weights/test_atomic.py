"""What a save leaves: links and permissions as they were, and nothing that a killed one had begun."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import multiparam as mp
from multiparam import errors
from multiparam.weights.atomic import Replacement, atomic_path, write_text_atomically

OLD, NEW = {"a": np.zeros(2, "float32")}, {"a": np.ones(2, "float32")}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("target", ["real.safetensors", "elsewhere/real.safetensors"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_save_goes_through_a_link(tmp_path: Path, target: str, exists: bool) -> None:
    real, link = tmp_path / target, tmp_path / "latest.safetensors"
    real.parent.mkdir(exist_ok=True)
    if exists:
        mp.save(OLD, real)
    link.symlink_to(target)
    mp.save(NEW, link)
    assert link.is_symlink() and os.readlink(link) == target and not real.is_symlink()
    assert mp.read(real)["a"].tolist() == [1, 1]


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o444])
def test_permissions_stay(tmp_path: Path, permissions: int) -> None:
    path = mp.save(OLD, tmp_path / "w.safetensors")
    path.chmod(permissions)
    mp.save(NEW, path)
    assert mode(path) == permissions and mp.read(path)["a"].tolist() == [1, 1]
    text = tmp_path / "report.json"
    text.write_text("old")
    text.chmod(permissions)
    write_text_atomically(text, "new")
    with atomic_path(text) as temporary:
        temporary.write_text("newest")
    assert mode(text) == permissions and text.read_text() == "newest"


def test_a_new_file_gets_the_permissions_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert mode(mp.save(OLD, tmp_path / "w.safetensors")) == 0o640
    finally:
        os.umask(before)


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").symlink_to("/dev/null")
    with pytest.raises(errors.FileError, match=r"w\.safetensors' is no regular file but a device"):
        mp.save(OLD, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").is_char_device() and [each.name for each in tmp_path.iterdir()] == [
        "w.safetensors"
    ]


KILLED = """
import os, sys
from pathlib import Path
from multiparam.weights.atomic import Replacement
with Replacement("w.safetensors") as replacement:
    for name in ("w-00001-of-00002.safetensors", "w-00002-of-00002.safetensors"):
        replacement.file(Path(sys.argv[1]) / name).write(b"half")
    os._exit(9)
"""


def test_the_next_save_of_a_name_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    mp.save(OLD, tmp_path / "other.safetensors")
    assert len(list(tmp_path.iterdir())) == 2  # another name's are not looked at
    mp.save(OLD, tmp_path / "w.safetensors")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other.safetensors", "w.safetensors"]


def test_a_save_that_is_still_being_made_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with Replacement(path.name) as replacement:
        replacement.file(path).write(b"the last to finish")
        mp.save(OLD, path)
        assert mp.read(path)["a"].tolist() == [0, 0]
    assert path.read_bytes() == b"the last to finish" and [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_long_name_has_room_for_its_hidden_folder(tmp_path: Path) -> None:
    path = mp.save(OLD, tmp_path / f"{'w' * 240}.safetensors")
    mp.save(NEW, path)
    assert mp.read(path)["a"].tolist() == [1, 1]
