"""A file is what its first bytes say, and a folder what is in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import errors

STATE = {"a.weight": np.arange(6, dtype="float32").reshape(2, 3), "a.bias": np.ones(2, "float32")}


def same(source: Any, state: Any = STATE) -> bool:
    return source.keys() == state.keys() and all((source[name] == value).all() for name, value in state.items())


def write_safetensors(path: Path) -> None:
    mp.save(STATE, path.with_suffix(".safetensors")).rename(path)


def write_npz(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, **STATE)


def write_pt(path: Path) -> None:
    import torch

    torch.save({name: torch.tensor(value) for name, value in STATE.items()}, path)


def write_legacy_pt(path: Path) -> None:
    import torch

    state = {name: torch.tensor(value) for name, value in STATE.items()}
    torch.save(state, path, _use_new_zipfile_serialization=False)


def write_msgpack(path: Path) -> None:
    from flax import serialization

    tree = {"a": {"weight": STATE["a.weight"], "bias": STATE["a.bias"]}}
    path.write_bytes(serialization.msgpack_serialize(tree))


def write_h5(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, value in STATE.items():
            file[name.replace(".", "/")] = value


def write_keras(path: Path) -> None:
    import zipfile

    write_h5(path.with_name("inner.h5"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_name("inner.h5"), "model.weights.h5")
    path.with_name("inner.h5").unlink()


def write_params(path: Path) -> None:
    from multiparam_mxnet import files

    files.write(STATE, path)


WRITERS = [
    pytest.param(writer, marks=pytest.mark.needs(*needs))
    for writer, needs in (
        (write_safetensors, ()), (write_npz, ()), (write_pt, ("torch",)), (write_legacy_pt, ("torch",)),
        (write_msgpack, ("jax",)), (write_h5, ("h5py",)), (write_keras, ("h5py",)), (write_params, ("mxnet",)),
    )
]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["w", "last.ckpt", "model.pth.tar", "W.PT", "w.npz", "w.safetensors", "w.msgpack"])
def test_whatever_a_file_is_called(tmp_path: Path, write: Any, name: str) -> None:
    write(tmp_path / name)
    assert same(mp.read(tmp_path / name))


def test_a_format_may_be_said(tmp_path: Path) -> None:
    write_npz(tmp_path / "w")
    assert same(mp.read(tmp_path / "w", format="npz")) and same(mp.read(tmp_path / "w", format=".npz"))
    with pytest.raises(errors.FileError):
        mp.read(tmp_path / "w", format="safetensors")
    with pytest.raises(errors.InvalidArgument, match=r"No format 'nzp' is read"):
        mp.read(tmp_path / "w", format="nzp")


def test_what_is_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.dat").write_bytes(b"hello, world, nothing else")
    with pytest.raises(errors.FileError, match=r"no known weight file begins like it.*Say format="):
        mp.read(tmp_path / "w.dat")


@pytest.mark.needs("torch")
def test_torchscript_is_refused_with_a_way_out(tmp_path: Path) -> None:
    import torch

    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "net.pt"))
    with pytest.raises(errors.FileError, match=r"TorchScript, a program.*state_dict"):
        mp.read(tmp_path / "net.pt")


# -- folders


def test_a_folder_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    mp.save(STATE, tmp_path / "model.safetensors")
    assert same(mp.read(tmp_path))
    mp.save(STATE, tmp_path / "other.safetensors")
    assert same(mp.read(tmp_path))  # model.safetensors is the folder's own
    (tmp_path / "model.safetensors").rename(tmp_path / "third.safetensors")
    with pytest.raises(errors.FileError, match=r"several files to read: 'other\.safetensors', 'third\.safetensors'"):
        mp.read(tmp_path)


@pytest.mark.needs("torch")
def test_a_folder_of_shards_of_a_frameworks_own(tmp_path: Path) -> None:
    import torch

    weight_map = {name: f"pytorch_model-{i:05d}-of-00002.bin" for i, name in enumerate(STATE, 1)}
    for name, file in weight_map.items():
        torch.save({name: torch.tensor(STATE[name])}, tmp_path / file)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert same(mp.read(tmp_path)) and same(mp.read(index)) and same(mp.read(tmp_path / "pytorch_model.bin"))
    index.write_text(json.dumps({"weight_map": {**weight_map, "b": weight_map["a.bias"]}}))
    with pytest.raises(errors.FileError, match="do not agree on whether there is 'b'"):
        mp.read(index)
    (tmp_path / weight_map["a.bias"]).unlink()
    with pytest.raises(errors.FileError, match=r"names the shard .* which is not there"):
        mp.read(tmp_path)


@pytest.mark.parametrize(
    ("mark", "what"),
    [
        ("saved_model.pb", "SavedModel"),
        ("checkpoint", "tf.train"),
        ("_METADATA", "Orbax"),
        (".metadata", "dcp_to_torch"),
    ],
)
def test_what_another_folder_is(tmp_path: Path, mark: str, what: str) -> None:
    (tmp_path / mark).write_bytes(b"")
    with pytest.raises(errors.FileError, match=what):
        mp.read(tmp_path)


def test_our_files_say_whose_names_they_have(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    path = mp.save(STATE, tmp_path / "w.safetensors")
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata()["format"] == "pt"


@pytest.mark.needs("jax")
def test_a_list_has_numbers_for_keys(tmp_path: Path) -> None:
    from flax import serialization

    path = tmp_path / "w.msgpack"
    path.write_bytes(serialization.msgpack_serialize({"layers": {0: {"w": np.ones(2)}, 1: {"w": np.zeros(2)}}}))
    assert list(mp.read(path)) == ["layers.0.w", "layers.1.w"]
    shutil.copy(path, tmp_path / "w")
    assert list(mp.read(tmp_path / "w")) == ["layers.0.w", "layers.1.w"]


@pytest.mark.needs("jax", "orbax")
@pytest.mark.xdist_group("jax")
def test_an_orbax_checkpoint(tmp_path: Path) -> None:
    from orbax import checkpoint
    from support.native_files import fill, linen
    from support.states import bits

    source, target = fill(linen(), seed=1), fill(linen(), seed=2)
    checkpoint.PyTreeCheckpointer().save(tmp_path / "w", source.variables)
    assert "params.Dense_0.kernel" in mp.read(tmp_path / "w")
    assert mp.load(target, tmp_path / "w") == ((), ())
    assert bits(target) == bits(source)


@pytest.mark.needs("tensorflow")
@pytest.mark.xdist_group("tensorflow")
def test_a_tensorflow_checkpoint_and_a_saved_model(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.w, module.layers = tf.Variable([[1.0, 2.0]]), [tf.Variable(3)]
    tf.train.CheckpointManager(tf.train.Checkpoint(module), str(tmp_path / "ckpt"), 1).save()
    tf.saved_model.save(module, str(tmp_path / "saved"))
    for folder in ("ckpt", "saved"):
        state = mp.read(tmp_path / folder)
        assert state["w"].tolist() == [[1, 2]] and state.spec("w") == ((1, 2), "float32"), list(state)
        assert state["layers.0"] == 3 and len(state) == 2


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_length_of_safetensors_header_is_no_pickle(length: int, tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    (tmp_path / "w.safetensors").write_bytes(length.to_bytes(8, "little") + header + np.float32(3).tobytes())
    with mp.read(tmp_path / "w.safetensors") as file:
        assert file["w"].tolist() == [3]
