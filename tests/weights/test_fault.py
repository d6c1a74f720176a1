"""Damaged and hostile files, full disks and killed processes: a clear error or the very values, never anything else."""

from __future__ import annotations

import errno
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.flavours import in_framework
from support.interpreter import python
from support.states import equal

import multiparam as mp
from multiparam import errors
from multiparam.testing.architectures import examples
from multiparam.weights import positioned, safetensors

OLD = {"a": np.arange(6, dtype="float32").reshape(2, 3), "b.bias": np.zeros(4), "c": np.array([True, False, True])}
NEW = {name: a + a for name, a in OLD.items()}


def read_all(path: Path) -> dict[str, np.ndarray]:
    with mp.read(path) as found:
        return dict(found)


# -- hostile files, one by one


def tensors(**entries: Any) -> dict[str, Any]:
    return {"__metadata__": {}, **entries}


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "too short for a length": b"\1\2\3",
    "length only": struct.pack("<Q", 0),
    "header of no bytes": file(b"", b"12345678"),
    "header longer than the file": file({}, b"", 10**6),
    "header longer than the bound": file({}, b"", 2**63),
    "largest length": file({}, b"", 2**64 - 1),
    "no JSON": file(b"{not json}"),
    "no object": file(b"[1, 2, 3]"),
    "no brace first": file(b" {}"),
    "no UTF-8": file(b'{"\xff": 1}'),
    "deep nesting": file(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "a number of a million digits": file(b'{"a":' + b"9" * 1_000_000 + b"}"),
    "NaN": file(b'{"a": NaN}'),
    "one name twice": file(b'{"a": %s, "a": %s}' % ((json.dumps(F32).encode(),) * 2), bytes(8)),
    "metadata that are no texts": file({"__metadata__": {"a": 1}}),
    "metadata that are a list": file({"__metadata__": []}),
    "entry that is a number": file(tensors(a=1)),
    "entry without dtype": file(tensors(a={"shape": [2], "data_offsets": [0, 8]}), bytes(8)),
    "unknown dtype": file(tensors(a={**F32, "dtype": "F33"}), bytes(8)),
    "dtype that is a list": file(tensors(a={**F32, "dtype": ["F32"]}), bytes(8)),
    "negative axis": file(tensors(a={**F32, "shape": [-2]}), bytes(8)),
    "two negative axes": file(tensors(a={**F32, "shape": [-2, -1]}), bytes(8)),
    "axis that is a float": file(tensors(a={**F32, "shape": [2.0]}), bytes(8)),
    "axis that is a bool": file(tensors(a={**F32, "shape": [2, True]}), bytes(8)),
    "shape that is a number": file(tensors(a={**F32, "shape": 2}), bytes(8)),
    "a thousand axes": file(tensors(a={**F32, "shape": [1] * 1000 + [2]}), bytes(8)),
    "huge axes that multiply to nothing": file(tensors(a={**F32, "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]})),
    "axes that overflow": file(tensors(a={**F32, "shape": [2**32, 2**32], "data_offsets": [0, 0]})),
    "three offsets": file(tensors(a={**F32, "data_offsets": [0, 8, 8]}), bytes(8)),
    "negative offset": file(tensors(a={**F32, "data_offsets": [-8, 0]}), bytes(8)),
    "offsets the wrong way round": file(tensors(a={**F32, "data_offsets": [8, 0]}), bytes(8)),
    "offsets beyond the end": file(tensors(a={**F32, "data_offsets": [8, 16]}), bytes(8)),
    "offsets at infinity": file(tensors(a={**F32, "data_offsets": [10**30, 10**30 + 8]}), bytes(8)),
    "shape that does not fill its bytes": file(tensors(a={**F32, "shape": [1]}), bytes(8)),
    "hole before": file(tensors(a={**F32, "data_offsets": [8, 16]}), bytes(16)),
    "hole between": file(tensors(a=F32, b={**F32, "data_offsets": [12, 20]}), bytes(20)),
    "overlap": file(tensors(a=F32, b={**F32, "data_offsets": [4, 12]}), bytes(12)),
    "one place for two": file(tensors(a=F32, b=F32), bytes(8)),
    "bytes behind": file(tensors(a=F32), bytes(9)),
    "bytes missing": file(tensors(a=F32), bytes(7)),
    "checksums missing": file({"__metadata__": {"multiparam": "{}"}, "a": F32}, bytes(8)),
    "checksums that are none": file({"__metadata__": {"multiparam.crc32": "x" * 16}, "a": F32}, bytes(8)),
    "checksums too many": file({"__metadata__": {"multiparam.crc32": "0" * 80}, "a": F32}, bytes(8)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(errors.FileError, match=r"w\.safetensors"):
        mp.read(path)


def test_a_bool_that_is_neither(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(file(tensors(a={"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}), b"\0\1\2"))
    with pytest.raises(errors.FileError, match="neither 0 nor 1"):
        mp.read(path)["a"]


def test_a_folder_or_a_device_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "link.safetensors").symlink_to("/dev/null")
    with pytest.raises(errors.FileError, match="no regular file"):
        mp.read(tmp_path / "link.safetensors")


# -- damage


def damaged(data: bytes, draw: st.DataObject) -> bytes:
    """Some bytes changed, a piece cut out or put in, or the end gone."""
    changed = bytearray(data)
    place = st.integers(0, len(data) - 1)
    match draw.draw(st.sampled_from(["flip", "bytes", "cut", "drop", "insert", "append"])):
        case "flip":
            changed[draw.draw(place)] ^= 1 << draw.draw(st.integers(0, 7))
        case "bytes":
            for at in draw.draw(st.lists(place, min_size=1, max_size=4)):
                changed[at] = draw.draw(st.integers(0, 255))
        case "cut":
            del changed[draw.draw(place) :]
        case "drop":
            at = draw.draw(place)
            del changed[at : at + draw.draw(st.integers(1, 16))]
        case "insert":
            at = draw.draw(place)
            changed[at:at] = draw.draw(st.binary(min_size=1, max_size=16))
        case "append":
            changed += draw.draw(st.binary(min_size=1, max_size=16))
    return bytes(changed)


def saved(state: Any, **options: Any) -> dict[str, bytes]:
    """The files of a save, by name."""
    with tempfile.TemporaryDirectory() as folder:
        mp.save(state, Path(folder) / "w.safetensors", **options)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


SINGLE, SHARDS = saved(OLD), saved(OLD, shard_size=24)


@examples(150)
@given(st.data())
def test_a_damaged_file_gives_an_error_or_the_very_values(draw: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        path.write_bytes(damaged(SINGLE["w.safetensors"], draw))
        try:
            found = read_all(path)
        except errors.FileError:
            return
        assert equal(found, OLD)


@examples(150)
@given(st.data())
def test_so_does_a_damaged_shard_or_index(draw: st.DataObject) -> None:
    chosen = draw.draw(st.sampled_from(list(SHARDS)))
    with tempfile.TemporaryDirectory() as folder:
        for name, data in SHARDS.items():
            (Path(folder) / name).write_bytes(damaged(data, draw) if name == chosen else data)
        try:
            found = read_all(Path(folder))
        except errors.FileError:
            return
        assert equal(found, OLD)


@in_framework("torch")
@examples(50)
@given(st.data())
def test_a_damaged_file_leaves_a_model_as_it_was_or_loads_into_it(draw: st.DataObject) -> None:
    nn = mp.nn
    net = mp.build(nn.Sequential(nn.Linear(2), nn.BatchNorm()), np.ones((1, 3)), backend="torch")
    other = mp.build(nn.Sequential(nn.Linear(2), nn.BatchNorm()), np.ones((1, 3)), backend="torch", seed=1)
    before, truth = other.state_dict(), net.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        path.write_bytes(damaged(saved(net)["w.safetensors"], draw))
        try:
            mp.load(other, path)
        except (errors.FileError, errors.StateError):
            assert equal(other.state_dict(), before)
        else:
            assert equal(other.state_dict(), truth)


def others(folder: Path) -> Iterator[Path]:
    """Files of other formats, which have no checksums of ours."""
    np.savez(folder / "w.npz", **OLD)
    yield folder / "w.npz"
    params = struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<IiIqqiiI", 0xF993FAC9, 0, 2, 2, 3, 1, 0, 0)
    params += OLD["a"].tobytes() + struct.pack("<QQ", 1, 5) + b"arg:a"
    (folder / "w.params").write_bytes(params)
    yield folder / "w.params"


@examples(100)
@given(st.data())
def test_other_damaged_formats_give_arrays_or_an_error(draw: st.DataObject) -> None:
    """They have no checksums but zip's, so what is damaged may be read; but nothing else comes out."""
    with tempfile.TemporaryDirectory() as folder:
        for path in others(Path(folder)):
            read_all(path)
            path.write_bytes(damaged(path.read_bytes(), draw))
            try:
                found = read_all(path)
            except (errors.FileError, errors.PackageMissing):
                continue
            assert all(isinstance(a, np.ndarray) for a in found.values())


@pytest.mark.parametrize("suffix", [".npz", ".params", ".h5", ".keras", ".pt", ".msgpack"])
@pytest.mark.parametrize(
    "content", [b"", b"nonsense", bytes(4096), b"PK\3\4" + bytes(64), b"\x89HDF\r\n\x1a\n" + bytes(64)]
)
@pytest.mark.needs("torch", "jax", "h5py")
def test_what_is_no_such_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(errors.FileError, match=rf"w\{suffix}"):
        read_all(path)


@pytest.mark.needs("h5py")
@pytest.mark.parametrize("keep", [9, 100, 800, 0.5, 0.99])
def test_a_truncated_hdf5_file(tmp_path: Path, keep: float) -> None:
    import h5py

    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as h5:
        h5["group/a"] = np.arange(1000.0)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(errors.FileError):
        read_all(path)


# -- disks that fail


class Failing:
    """Fails at the nth call of any of some functions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *targets: tuple[Any, str]) -> None:
        self.left = -1
        for owner, name in targets:
            monkeypatch.setattr(owner, name, self._wrap(getattr(owner, name)))

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any, **options: Any) -> Any:
            if self.left == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.left -= 1
            return function(*arguments, **options)

        return failing


@pytest.mark.parametrize("shard_size", [None, 24])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_size: int | None
) -> None:
    path = mp.save(OLD, tmp_path / "w.safetensors")
    before = path.read_bytes()
    writing = ((safetensors, name) for name in ("_write_values", "_encode"))
    failing = Failing(monkeypatch, *((os, name) for name in ("open", "fsync", "replace")), *writing)
    for n in range(100):
        failing.left = n
        try:
            mp.save(NEW, path, shard_size=shard_size)
        except OSError:
            failing.left = -1
            names = {each.name for each in tmp_path.iterdir()}
            if "w.safetensors" in names and path.read_bytes() == before:
                assert not any(name.endswith(".tmp") for name in names)
                continue
            assert equal(read_all(path), NEW)  # only the folder's own entry did not reach the disk
        else:
            break
    failing.left = -1
    assert 5 < n < 99 and equal(read_all(path), NEW)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder: '.*nowhere'"):
        mp.save(OLD, tmp_path / "nowhere" / "w.safetensors")


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    class Interrupted(dict[str, np.ndarray]):
        seen = 0

        def __getitem__(self, name: str) -> np.ndarray:
            self.seen += 1
            if self.seen > 4:
                raise KeyboardInterrupt
            return super().__getitem__(name)

    path = mp.save(OLD, tmp_path / "w.safetensors")
    with pytest.raises(KeyboardInterrupt):
        mp.save(Interrupted(NEW), path)
    assert equal(read_all(path), OLD) and [each.name for each in tmp_path.iterdir()] == ["w.safetensors"]


def test_an_array_that_changes_its_shape_meanwhile_is_refused(tmp_path: Path) -> None:
    class Changing(dict[str, np.ndarray]):
        size = 1

        def __getitem__(self, name: str) -> np.ndarray:
            self.size += 1
            return np.zeros(self.size)

    with pytest.raises(errors.InvalidArgument, match="changed while it was saved"):
        mp.save(Changing(a=np.zeros(1)), tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


@in_framework("torch")
def test_a_disk_that_fails_while_a_file_is_looked_through_changes_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nn = mp.nn
    net = mp.build(nn.Sequential(nn.Linear(2), nn.Linear(3)), np.ones((1, 3)), backend="torch")
    path = mp.save(net, tmp_path / "w.safetensors")
    net.init(mp.init.constant(7))
    before = net.state_dict()
    failing = Failing(monkeypatch, (safetensors, "_exactly"), (positioned.Positioned, "_fill"))
    for n in range(2 + 4):  # the length, the header and four arrays
        failing.left = n
        with pytest.raises(OSError, match="No space"):
            mp.load(net, path)
        assert equal(net.state_dict(), before)
    failing.left = 2 + 4 + 2
    with pytest.raises(OSError, match="No space") as caught:
        mp.load(net, path)
    assert "2 of 4 parameters have their new values" in caught.value.__notes__[0]


# -- processes that are killed

KILL = """
import io, os, shutil, sys
from pathlib import Path
import numpy as np, multiparam as mp
sys.path.insert(0, {tests!r})
from multiparam.weights import atomic

OLD, NEW, folder, size, before = {old}, {new}, Path({folder!r}), {size}, {before}
arrays = lambda state: {{name: np.array(a) for name, a in state.items()}}
path = folder / "w.safetensors"

def same(found, truth):
    return found.keys() == truth.keys() and all(np.array_equal(found[n], truth[n]) for n in truth)

class Dying(io.BufferedWriter):
    def write(self, data):
        if step(): # half of it reaches the file
            super().write(bytes(data)[: len(data) // 2]); super().flush(); os._exit(9)
        return super().write(data)
    def flush(self):
        die(); super().flush()

left = 0
def step():
    global left
    left -= 1
    return left == 0
def die():
    if step(): os._exit(9)
def dying(function):
    def wrapped(*args):
        die(); result = function(*args); die()
        return result
    return wrapped

seen = []
mp.save(arrays(OLD), path, shard_size=before)
start = {{each: each.read_bytes() for each in folder.iterdir()}}
for n in range(1, 1000):
    for each in folder.iterdir(): shutil.rmtree(each) if each.is_dir() else each.unlink()
    for each, data in start.items(): each.write_bytes(data)
    child = os.fork()
    if not child:
        left = n
        atomic.open = lambda path, mode: Dying(io.FileIO(path, "x"))
        for name in ("replace", "fsync", "unlink"): setattr(os, name, dying(getattr(os, name)))
        try: mp.save(arrays(NEW), path, shard_size=size)
        except BaseException: os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try: found = dict(mp.read(path))
    except mp.errors.FileError as error: state = "refused" if "not of one save" in str(error) else "broken"
    else: state = "old" if same(found, arrays(OLD)) else "new" if same(found, arrays(NEW)) else "wrong"
    seen.append(state)
    if code == 0: break
    assert code == 9, code
    if n % 8 == 0:  # what was left does not stand in the way
        mp.save(arrays(NEW), path, shard_size=size)
        assert same(dict(mp.read(path)), arrays(NEW))
        assert not [each for each in folder.iterdir() if each.name.endswith(".tmp")]
print(*seen)
"""


def killed(folder: Path, before: int | None, size: int | None) -> list[str]:
    """What can be read after a save was killed at its nth step, for all n; the last one was not killed."""
    old, new = ({name: a.tolist() for name, a in state.items()} for state in (OLD, NEW))
    tests = str(Path(__file__).parent)
    return python(KILL.format(old=old, new=new, folder=str(folder), size=size, before=before, tests=tests)).split()


@pytest.mark.parametrize(
    ("before", "size"),
    [(None, None), (24, 40), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((None, 24), (24, None)))],
)
def test_a_killed_save_leaves_the_old_file_whole(tmp_path: Path, before: int | None, size: int | None) -> None:
    """In shards too, as long as their names are others: here one file, two shards or three."""
    seen = killed(tmp_path, before, size)
    assert len(seen) > 8 and set(seen) == {"old", "new"} and seen == sorted(seen, reverse=True)


def test_a_killed_save_over_shards_of_the_same_names_is_never_a_mixture(tmp_path: Path) -> None:
    seen = killed(tmp_path, 24, 24)
    assert set(seen) == {"old", "refused", "new"} and seen == sorted(seen, key=["old", "refused", "new"].index)
