"""A small file that says it is large: refused before memory is asked for. Damage that a zip's checksum shows."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import errors
from multiparam.weights.archives import VARIABLE, largest_unpacked
from multiparam.weights.trees import flatten

GIB = 1 << 30


def npy(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def npz(path: Path, *members: bytes, name: str = "a.npy") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *arguments, **options: None)  # of two members of one name
        for member in members:
            archive.writestr(name, member)
    return path


def test_an_npz_whose_header_asks_for_more_than_it_has(tmp_path: Path) -> None:
    with pytest.raises(errors.FileError, match=r"w\.npz' is damaged: 'a\.npy' has .* its header asks for 17179869"):
        mp.read(npz(tmp_path / "w.npz", npy((2 * GIB,))))


def test_an_npz_of_objects(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.array([{}], dtype=object))
    with pytest.raises(errors.FileError, match="Python objects, which multiparam does not unpickle"):
        mp.read(tmp_path / "w.npz")


def test_two_members_of_one_name(tmp_path: Path) -> None:
    one = npy((1,), bytes(8))
    with pytest.raises(errors.FileError, match=r"2 members called 'a\.npy'"):
        mp.read(npz(tmp_path / "w.npz", one, one))


def test_a_bound_that_the_user_can_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npz(tmp_path / "w.npz", npy((1000,), bytes(8000)))
    assert path.stat().st_size < 1000
    monkeypatch.setenv(VARIABLE, "4000")
    with pytest.raises(errors.FileError, match=rf"more than the 4000 .* set the environment variable {VARIABLE}=8128"):
        mp.read(path)
    monkeypatch.setenv(VARIABLE, "8128")
    assert mp.read(path)["a"].shape == (1000,)
    monkeypatch.setenv(VARIABLE, "much")
    with pytest.raises(errors.InvalidArgument, match="a number of bytes, not 'much'"):
        mp.read(path)


def test_the_bound() -> None:
    assert largest_unpacked(0) == GIB and largest_unpacked(GIB) == 16 * GIB


def test_a_keras_file_is_not_unpacked_beyond_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")
    monkeypatch.setenv(VARIABLE, "100000")
    path = npz(tmp_path / "w.keras", bytes(1_000_000), name="model.weights.h5")
    with pytest.raises(errors.FileError, match=r"w\.keras' has .* would have 1000000"):
        mp.read(path)


@pytest.mark.needs("h5py")
def test_an_hdf5_dataset_without_data(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("a", (2 * GIB,), "float64", chunks=(1024,))
    assert (tmp_path / "w.h5").stat().st_size < 10_000
    with pytest.raises(errors.FileError, match=r"says that 'a' would have 17179869184"):
        mp.read(tmp_path / "w.h5")


@pytest.mark.needs("torch")
def test_a_view_that_expands_one_number(tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(1).expand(GIB)}, tmp_path / "w.pt")
    with pytest.raises(errors.FileError, match=r"says that 'a' would have 4294967296"):
        mp.read(tmp_path / "w.pt")


@pytest.mark.needs("torch")
def test_a_tree_that_never_ends(tmp_path: Path) -> None:
    import torch

    tree: Any = []
    for _ in range(40):
        tree = [tree] * 10
    torch.save({"a": tree}, tmp_path / "w.pt")
    assert len(pickle.dumps(tree)) < 2000
    with pytest.raises(errors.FileError, match="again and again"):
        mp.read(tmp_path / "w.pt")
    own: dict[str, Any] = {}
    own["own"] = own
    with pytest.raises(errors.FileError, match="holds itself"):
        flatten(own)


def test_a_shared_part_is_listed_under_each_name() -> None:
    part = {"w": np.zeros(1)}
    assert list(flatten({"model": part, "ema": part})) == ["model.w", "ema.w"]


@pytest.mark.parametrize("tree", [{"a.b": 0, "a": {"b": 0}}, {1: 0, "1": 0}, {"a": [0], "a.0": 0}])
def test_two_arrays_of_one_name(tree: Any) -> None:
    def arrays(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: arrays(value) for key, value in node.items()}
        return [arrays(each) for each in node] if isinstance(node, list) else np.zeros(1)

    with pytest.raises(errors.FileError, match=r"two arrays called '(a\.b|1|a\.0)'"):
        flatten(arrays(tree))


@pytest.mark.needs("torch")
@pytest.mark.parametrize("compressed", [False, True])
def test_a_bit_of_a_pt_file_that_has_changed(tmp_path: Path, compressed: bool) -> None:
    import torch

    path, value = tmp_path / "w.pt", np.arange(1000, dtype="float32") + 1
    torch.save({"a": torch.tensor(value)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(value.tobytes()) + 403] ^= 0x40
    path.write_bytes(data)
    net = mp.wrap(torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.zeros(1000))}))
    with pytest.raises(errors.FileError, match=r"w\.pt': the values of '.*data/0' are not those"):
        mp.load(net, path)
    assert not net["a"].numpy().any()
    assert (mp.read(path, verify=False)["a"] != value).sum() == 1


@pytest.mark.needs("torch")
def test_a_pt_file_without_checksums(tmp_path: Path) -> None:
    import torch

    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert mp.read(tmp_path / "w.pt")["a"].tolist() == [1, 1, 1]
