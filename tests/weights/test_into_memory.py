"""Files are read straight into the parameters' own memory, by two threads where there are many bytes, and checked."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.states import bits

import multiparam as mp
from multiparam import errors
from multiparam.weights import positioned

SIZE = 5 * (1 << 20) // 4 + 3  # float32: five MiB and a little, so that two threads have unequal parts
BIG = {"a": np.arange(SIZE, dtype="float32"), "b": np.arange(7, dtype="int64"), "c": np.zeros((0, 3), "float16")}


def changed(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [-1, -4 * SIZE, -2 * SIZE])
def test_a_bit_of_any_mebibyte_is_seen(tmp_path: Path, at: int) -> None:
    path = mp.save({"a": BIG["a"]}, tmp_path / "w.safetensors")
    with mp.read(path) as file:
        file.verify("a")
        assert file["a"].tobytes() == BIG["a"].tobytes()
    changed(path, at)
    with mp.read(path) as file, pytest.raises(errors.FileError, match="the values of 'a' are not those"):
        file.verify("a")
    with mp.read(path) as file, pytest.raises(errors.FileError, match="the values of 'a' are not those"):
        file["a"]
    assert mp.read(path, verify=False)["a"].tobytes() != BIG["a"].tobytes()


def test_what_was_verified_and_then_changed_is_looked_at_again(tmp_path: Path) -> None:
    path = mp.save(BIG, tmp_path / "w.safetensors")
    with mp.read(path) as file:
        for name in BIG:
            file.verify(name)
        with open(path, "r+b") as other:
            other.seek(-1, 2)
            other.write(b"\xff")
        with pytest.raises(errors.FileError, match="are not those that were written"):
            [file[name] for name in BIG]


def older(path: Path) -> None:
    """The file as multiparam wrote it before, with one checksum for each tensor."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header["__metadata__"]
    text = metadata.pop("multiparam.crc32.mib")[:8]
    places = sorted(each["data_offsets"] for name, each in header.items() if name != "__metadata__")
    metadata["multiparam.crc32"] = text + "".join(f"{zlib.crc32(values[a:b]):08x}" for a, b in places)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + values)


def test_files_with_a_checksum_for_each_tensor_are_read(tmp_path: Path) -> None:
    path = mp.save(BIG, tmp_path / "w.safetensors")
    older(path)
    with mp.read(path) as file:
        for name, array in BIG.items():
            file.verify(name)
            assert file[name].tobytes() == array.tobytes()
    changed(path, -1)
    with mp.read(path) as file, pytest.raises(errors.FileError, match="are not those"):
        [file.verify(name) for name in BIG]


def test_the_checksums_are_zlibs(tmp_path: Path) -> None:
    path = mp.save({"a": BIG["a"]}, tmp_path / "w.safetensors")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text, values = json.loads(data[8 : 8 + length])["__metadata__"]["multiparam.crc32.mib"], data[8 + length :]
    expected = [zlib.crc32(values[at : at + (1 << 20)]) for at in range(0, len(values), 1 << 20)]
    assert [int(text[at : at + 8], 16) for at in range(8, len(text), 8)] == expected and len(expected) == 6


def test_without_positioned_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mp.save(BIG, tmp_path / "w.safetensors")
    monkeypatch.delattr(positioned.os, "preadv", raising=False)
    with mp.read(path) as file:
        file.verify("a")
        assert all(file[name].tobytes() == array.tobytes() for name, array in BIG.items())


# -- torch


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def conv(torch: Any, dtype: str = "float32") -> Any:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(5, 3))
    return net.to(getattr(torch, dtype))


FORMS = {
    "as they are": lambda net: None,
    "channels last": lambda net: net.to(memory_format=__import__("torch").channels_last),
    "rows of a larger array": lambda net: setattr(net[2].weight, "data", net[2].weight.data.repeat(2, 2)[::2, 2:7]),
    "a part of one memory": lambda net: setattr(net[2].bias, "data", net[2].bias.data.new_ones(9)[3:6]),
}


@pytest.mark.needs("torch")
@pytest.mark.xdist_group("torch")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_every_form(torch: Any, tmp_path: Path, form: str, dtype: str) -> None:
    source, target = conv(torch, dtype), conv(torch, dtype)
    for tensor in target.state_dict().values():
        tensor.zero_()
    FORMS[form](target)
    before = {name: (id(t), t.data_ptr(), t.stride()) for name, t in target.named_parameters()}
    path = mp.save(mp.wrap(source), tmp_path / "w.safetensors")
    assert mp.load(mp.wrap(target), path) == ((), ())
    assert all(
        torch.equal(a, b) for a, b in zip(target.state_dict().values(), source.state_dict().values(), strict=True)
    )
    assert {name: (id(t), t.data_ptr(), t.stride()) for name, t in target.named_parameters()} == before
    assert all(p.requires_grad for p in target.parameters())
    if form == "a part of one memory":
        assert target[2].bias.data.as_strided((9,), (1,), 0).tolist()[:3] == [1, 1, 1]


@pytest.mark.needs("torch")
@pytest.mark.xdist_group("torch")
def test_a_backward_that_needs_the_old_values_fails_as_after_any_write(torch: Any, tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    path = mp.save(mp.wrap(net), tmp_path / "w.safetensors")
    loss = net(torch.ones(1, 2)).sum()
    mp.load(mp.wrap(net), path)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.needs("torch")
@pytest.mark.xdist_group("torch")
def test_a_bit_that_has_changed_leaves_the_model(torch: Any, tmp_path: Path) -> None:
    source, target = mp.wrap(torch.nn.Linear(1300, 1100)), mp.wrap(torch.nn.Linear(1300, 1100))
    path = mp.save(source, tmp_path / "w.safetensors")
    changed(path, -5)
    before = bits(target)
    with pytest.raises(errors.FileError, match="are not those that were written"):
        mp.load(target, path)
    assert bits(target) == before
    mp.load(target, path, verify=False)
    assert target["bias"].numpy().tobytes() == source["bias"].numpy().tobytes()
