"""Checkpoints that are folders: torch's distributed ones, Orbax' read and replaced, what trainers put around them."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.native_files import fill, linen
from support.states import bits

import multiparam as mp
from multiparam import errors
from multiparam.weights import atomic
from multiparam.weights.atomic import atomic_folder

with_torch = [pytest.mark.needs("torch"), pytest.mark.xdist_group("torch")]
with_orbax = [pytest.mark.needs("jax", "orbax"), pytest.mark.xdist_group("jax")]


def marked(*marks: Any) -> Any:
    def mark(test: Any) -> Any:
        for each in marks:
            test = each(test)
        return test

    return mark


# -- torch's


def distributed(path: Path) -> dict[str, Any]:
    """What a training writes: the model's state, the optimizer's and a number."""
    import torch
    from torch.distributed import checkpoint

    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2).bfloat16()
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9)
    net(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
        checkpoint.save(state, checkpoint_id=path)
    return {name: mp.to_numpy(tensor) for name, tensor in net.state_dict().items()}


@marked(*with_torch)
def test_a_distributed_checkpoint_of_a_training(tmp_path: Path) -> None:
    import torch

    truth = distributed(tmp_path / "w")
    state = mp.read(tmp_path / "w")
    assert state.spec("model.weight") == ((2, 3), "bfloat16") and "optimizer" in str(list(state))
    assert state["model.weight"].tobytes() == truth["weight"].tobytes()
    target = mp.wrap(torch.nn.Linear(3, 2).bfloat16())
    with pytest.warns(errors.MultiparamWarning, match="left out: optimizer, epoch"):
        mp.load(target, tmp_path / "w")
    assert {name: each.tobytes() for name, each in target.state_dict().items()} == {
        name: each.tobytes() for name, each in truth.items()
    }


def rewritten(folder: Path, change: Any) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


class Shell:
    def __reduce__(self) -> Any:
        return os.system, ("echo run > ran",)


def _elsewhere(metadata: Any) -> None:
    for info in metadata.storage_data.values():
        info.relative_path = "../secret"


def _without_a_block(metadata: Any) -> None:
    metadata.state_dict_metadata["model.weight"].chunks.clear()


def _beyond(metadata: Any) -> None:
    metadata.state_dict_metadata["model.weight"].chunks[0].sizes = (1, 6)


def _twice(metadata: Any) -> None:
    entry = metadata.state_dict_metadata["model.weight"]
    for chunk in (chunks := [entry.chunks[0], pickle.loads(pickle.dumps(entry.chunks[0]))]):
        chunk.sizes = (1, 3)
    entry.chunks = chunks


def _longer(metadata: Any) -> None:
    for info in metadata.storage_data.values():
        info.length += 1 << 40


def _enormous(metadata: Any) -> None:
    entry = metadata.state_dict_metadata["model.weight"]
    entry.size = entry.chunks[0].sizes = (1 << 20, 1 << 20)


def _runs(metadata: Any) -> None:
    metadata.planner_data = Shell()


def _nothing(metadata: Any) -> None:
    metadata.state_dict_metadata = None


HOSTILE = {
    _elsewhere: r"'\.\./secret', which is no file in the folder",
    _without_a_block: "the blocks of 'model.weight' do not make it up",
    _beyond: "do not make it up",
    _twice: "do not make it up",
    _longer: "ends before its data does",
    _enormous: "more than the 1073741824 that are unpacked",
    _nothing: "it lists no tensors",
}


@marked(*with_torch)
@pytest.mark.parametrize("change", HOSTILE)
def test_a_hostile_list_is_refused(tmp_path: Path, change: Any) -> None:
    distributed(tmp_path / "w")
    rewritten(tmp_path / "w", change)
    with pytest.raises(errors.FileError, match=HOSTILE[change]):
        mp.read(tmp_path / "w")


@marked(*with_torch)
def test_nothing_in_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    truth = distributed(tmp_path / "w")
    rewritten(tmp_path / "w", _runs)
    assert mp.read(tmp_path / "w")["model.weight"].tobytes() == truth["weight"].tobytes()
    assert not (tmp_path / "ran").exists()


@marked(*with_torch)
@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("how", ["cut", "pipe", "gone"])
def test_a_damaged_distributed_checkpoint(tmp_path: Path, name: str, how: str) -> None:
    distributed(tmp_path / "w")
    path = tmp_path / "w" / name
    data = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "pipe":
        os.mkfifo(path)
    with pytest.raises(errors.FileError):
        mp.read(tmp_path / "w")


TWO = """
import os, sys, time, torch
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
rank, folder = int(sys.argv[1]), sys.argv[2]
store = distributed.FileStore(f"{folder}/store", 2)
distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
whole = torch.arange(35.0).reshape(7, 5)
state = {"a": distribute_tensor(whole, mesh, [Shard(0)]), "b": distribute_tensor(whole, mesh, [Shard(1)]), "c": whole}
checkpoint.save(state, checkpoint_id=f"{folder}/w")
store.add("done", 1)
while store.add("done", 0) < 2:
    time.sleep(0.01)
os._exit(0)  # what gloo's threads do at the end of a process aborts it at times
"""


@marked(*with_torch)
@pytest.mark.slow
def test_blocks_of_two_processes(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", TWO, str(rank), str(tmp_path)]) for rank in (0, 1)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    state = mp.read(tmp_path / "w")
    for name in "abc":
        np.testing.assert_array_equal(state[name], np.arange(35.0, dtype="float32").reshape(7, 5))


# -- Orbax'


@marked(*with_orbax)
def test_a_checkpoint_is_replaced_by_the_next_and_nothing_else_is(tmp_path: Path) -> None:
    first, second, target = (fill(linen(), seed=seed) for seed in (1, 2, 3))
    path = mp.save(first, tmp_path / "w", format="orbax")
    assert mp.save(second, path, format="orbax") == path
    assert mp.load(target, path) == ((), ()) and bits(target) == bits(second)
    assert [each.name for each in tmp_path.iterdir()] == ["w"]
    (tmp_path / "mine").mkdir()
    mp.save(first, tmp_path / "mine", format="orbax")  # an empty folder is nobody's
    for name, content in (("notes", True), ("w.orbax", False)):
        other = tmp_path / name
        if content:
            other.mkdir()
            (other / "notes.txt").write_text("mine")
        else:
            other.write_text("mine")
        with pytest.raises(errors.FileError, match="is there, and is nothing that multiparam would replace"):
            mp.save(first, other, format="orbax")
        assert (other / "notes.txt" if content else other).read_text() == "mine"


@marked(*with_orbax)
def test_a_save_that_fails_leaves_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fill(linen(), seed=1)
    path = mp.save(first, tmp_path / "w.orbax")
    for n in range(100):
        left = [n]
        for name in ("fsync", "chmod", "mkdir"):
            real = getattr(os, name)

            def failing(*arguments: Any, real: Any = real, left: list[int] = left, **options: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*arguments, **options)

            monkeypatch.setattr(os, name, failing)
        try:
            with atomic_folder(path) as temporary:
                shutil.copytree(path, temporary)
        except OSError:  # of shutil, several in one
            pass
        else:
            break
        finally:
            monkeypatch.undo()
        assert [each.name for each in tmp_path.iterdir()] == ["w.orbax"]
        target = fill(linen(), seed=2)
        assert mp.load(target, path) == ((), ()) and bits(target) == bits(first)
    assert 5 < n < 99


def test_a_folder_that_cannot_be_replaced_in_one_step_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "old").write_text("old")
    monkeypatch.setattr(atomic, "exchange_call", lambda: None)
    with pytest.raises(FileExistsError, match="remove it"), atomic_folder(tmp_path / "w") as temporary:
        temporary.mkdir()
    assert (tmp_path / "w" / "old").read_text() == "old"


KILLED = """
import os, sys
from pathlib import Path
from multiparam.weights import atomic
path, at = Path(sys.argv[1]), int(sys.argv[2])
def killing(real, left=[at]):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] < 0: os._exit(9)
        return real(*arguments, **options)
    return call
for name in ("fsync", "chmod", "replace", "mkdir", "rmdir", "unlink"):
    setattr(os, name, killing(getattr(os, name)))
with atomic.atomic_folder(path) as temporary:
    temporary.mkdir()
    (temporary / "a").write_text("new")
    (temporary / "b").write_text("new")
"""


@pytest.mark.slow
@pytest.mark.skipif(atomic.exchange_call() is None, reason="a folder is replaced in one step on Linux")
def test_a_killed_save_leaves_the_old_folder_or_the_new(tmp_path: Path) -> None:
    found = set()
    for at in range(40):
        path = tmp_path / str(at) / "w"
        path.mkdir(parents=True)
        (path / "a").write_text("old")
        (path / "b").write_text("old")
        code = subprocess.run([sys.executable, "-c", KILLED, str(path), str(at)], check=False).returncode
        texts = {(path / name).read_text() for name in "ab"}
        assert len(texts) == 1
        found |= texts
        with atomic_folder(path) as temporary:
            temporary.mkdir()
        assert [each.name for each in path.parent.iterdir()] == ["w"]  # what the killed one left is gone
        if code == 0:
            break
    assert found == {"old", "new"} and code == 0


# -- what is around them


@marked(*with_orbax)
def test_the_steps_of_a_run(tmp_path: Path) -> None:
    from orbax import checkpoint

    net = fill(linen(), seed=1)
    with checkpoint.CheckpointManager(tmp_path / "run", item_names=("state", "about")) as manager:
        for step in (9, 10):
            about = checkpoint.args.JsonSave({"a": 1})
            manager.save(
                step, args=checkpoint.args.Composite(state=checkpoint.args.StandardSave(net.variables), about=about)
            )
        manager.wait_until_finished()
    with pytest.raises(errors.FileError, match=r"holds 2 checkpoints: '9', '10'\. Say which one, as in '.*run/10'"):
        mp.read(tmp_path / "run")
    target = fill(linen(), seed=2)
    assert mp.load(target, tmp_path / "run" / "10") == ((), ()) and bits(target) == bits(net)


def test_a_folder_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-500").mkdir()
    mp.save({"a": np.ones(2)}, tmp_path / "checkpoint-500" / "model.safetensors")
    assert list(mp.read(tmp_path)) == ["a"]
    shutil.copytree(tmp_path / "checkpoint-500", tmp_path / "checkpoint-1000")
    with pytest.raises(errors.FileError, match=r"'checkpoint-500', 'checkpoint-1000'\. Say which one"):
        mp.read(tmp_path)


@pytest.mark.parametrize("name", ["net-0000.params", "last.ckpt", "w.npz"])
def test_the_only_file_of_a_folder(tmp_path: Path, name: str) -> None:
    with open(tmp_path / name, "wb") as file:
        np.savez(file, a=np.ones(2))
    (tmp_path / "net-symbol.json").write_text("{}")
    (tmp_path / "x.safetensors").mkdir()  # a folder of that name is no file
    assert list(mp.read(tmp_path)) == ["a"]
    shutil.copy(tmp_path / name, tmp_path / f"1{name}")
    with pytest.raises(errors.FileError, match="several files to read"):
        mp.read(tmp_path)


def test_a_folder_with_a_pipe_is_not_given_to_a_package(tmp_path: Path) -> None:
    (tmp_path / "_METADATA").write_text("{}")
    os.mkfifo(tmp_path / "manifest.ocdbt")
    with pytest.raises(errors.FileError, match="no regular file but a named pipe"):
        mp.read(tmp_path)
