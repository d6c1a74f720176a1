"""PyTorch's zip files, read without PyTorch: every dtype and form of tensor, and nothing but tensors and plain data."""

from __future__ import annotations

import argparse
import resource
import sys
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.interpreter import python

import multiparam as mp
from multiparam import errors

pytestmark = [pytest.mark.needs("torch"), pytest.mark.xdist_group("torch")]
DTYPES = ("float64", "float32", "float16", "bfloat16", "complex64", "int64", "int16", "uint8", "bool", "float8_e4m3fn")


def save(tree: Any, path: Path) -> Path:
    import torch

    torch.save(tree, path)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: str, tmp_path: Path) -> None:
    import torch

    numbers = torch.arange(-6, 6).reshape(3, 4)
    tensor = (numbers.abs() if dtype in ("uint8", "bool") else numbers).to(getattr(torch, dtype))
    state = mp.read(save({"a": tensor, "empty": tensor[:0], "scalar": tensor[0, 0]}, tmp_path / "w.pt"))
    assert state.spec("a") == ((3, 4), dtype) and state.spec("scalar").shape == () and state["empty"].shape == (0, 4)
    assert state["a"].tobytes() == tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_views_parameters_and_shared_storages(tmp_path: Path) -> None:
    import torch

    whole = torch.arange(24.0).reshape(4, 6)
    tree = OrderedDict(
        a=whole, t=whole.T, rows=whole[1::2, 2:], p=torch.nn.Parameter(whole[0]), b=torch.nn.Buffer(whole[1]),
        spread=whole[0, 0].expand(2, 3), nested={"list": [whole[2], (whole[3],)]},
    )  # fmt: skip
    state = mp.read(save(tree, tmp_path / "w.pt"))
    flat = {**{k: tree[k] for k in ("a", "t", "rows", "p", "b", "spread")}, "nested.list.0": whole[2]}
    flat["nested.list.1.0"] = whole[3]
    assert set(state) == set(flat)
    for name, tensor in flat.items():
        np.testing.assert_array_equal(state[name], tensor.detach().numpy(), err_msg=name)


def test_without_torch(tmp_path: Path) -> None:
    import torch

    path = save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "w.pt")
    code = f"import sys, multiparam as mp; s = mp.read({str(path)!r}); print(s['weight'].shape, 'torch' in sys.modules)"
    assert python(code).strip().endswith("(2, 3) False")


def test_objects_without_tensors_are_left_out_and_not_imported(tmp_path: Path) -> None:
    import torch

    args = argparse.Namespace(lr=0.1, folder=Path("runs"))
    tree = {"state_dict": torch.nn.Linear(2, 2).state_dict(), "args": args, "scale": np.float32(2), "seen": {1, 2}}
    assert list(mp.read(save(tree, tmp_path / "w.pt"))) == ["state_dict.weight", "state_dict.bias"]


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


def test_what_hides_tensors_is_refused(tmp_path: Path) -> None:
    import torch

    sys.modules[__name__].Holder = Holder  # type: ignore[attr-defined]
    for tree, match in (
        (torch.nn.Linear(2, 2), "class torch.nn.modules.linear.Linear.*save its state_dict"),
        ({"model": torch.nn.Linear(2, 2)}, "class torch.nn.modules.linear.Linear with tensors in it"),
        ({"a": torch.ones(2), "b": Holder([torch.ones(1)])}, "Holder with tensors in it"),
        ({"q": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "of another kind.*qtensor"),
        ({"s": torch.eye(2).to_sparse()}, "of another kind.*sparse tensor"),
        ({"c": torch.ones(2, dtype=torch.complex64).conj()}, "a view of another kind"),
        (torch.ones(2), "no mapping of tensors"),
    ):
        with pytest.raises(errors.FileError, match=match) as caught:
            mp.read(save(tree, tmp_path / "w.pt"))
        assert "weights_only" not in str(caught.value)


def pickled(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", data)
        archive.writestr("w/version", "3")
    return path


DEEP = b"\x80\x02)" + b"q\x00h\x00\x86" * 60  # a tuple of two of the one before: to hash it takes 2 to the 60th steps
BOMBS = {
    "a large number of a memo": b"\x80\x02}r\xff\xff\xff\x1f.",
    "a long text of bytes": b"\x80\x04\x8e" + (1 << 44).to_bytes(8, "little") + b"x.",
    "a long bytearray": b"\x80\x05\x96" + (1 << 44).to_bytes(8, "little") + b"x.",
    "a bytearray of so many zeros": b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "a key that never ends": b"\x80\x02}" + DEEP[2:] + b"K\x01s.",
    "an item of a set that never ends": b"\x80\x04\x8f(" + DEEP[2:] + b"\x90.",
    "a pair that never ends": b"\x80\x02cbuiltins\ndict\n]" + DEEP[2:] + b"K\x01\x86a\x85R.",
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_few_bytes_that_ask_for_all_memory_or_time(tmp_path: Path, data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(errors.FileError):  # what holds no tensors may also be read
        assert list(mp.read(pickled(tmp_path / "w.pt", data))) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # KiB
