"""Weight files: every bit comes back, in every framework, and other programs read what we write."""

from __future__ import annotations

import json
import math
import os
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.flavours import NEEDS, in_framework
from support.holders import CASES, FLAVOURS
from support.interpreter import LOADED, python
from support.states import X, bits, equal, made, refused, transposed, weights

import multiparam as mp
from multiparam import errors, nn
from multiparam.core.arrays import numpy_dtype
from multiparam.weights.files import parse_size

official = pytest.importorskip("safetensors")
PLAIN = {
    "a.weight": np.arange(12, dtype="float32").reshape(3, 4),
    "a.bias": np.zeros((), "float64"),
    "b\\.c.größe 重み": np.array([[1], [2]], "int16"),
    "empty": np.zeros((0, 3), "float16"),
    "flags": np.array([True, False]),
    "count": np.array(2**63 - 1, "int64"),
    "bytes": np.arange(7, dtype="uint8"),
}


def document(path: Path) -> dict[str, Any]:
    with official.safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["multiparam"])


# -- the file itself


def test_the_official_library_reads_what_we_write(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    path = mp.save(PLAIN, tmp_path / "w.safetensors")
    assert equal(load_file(path), PLAIN)
    with official.safe_open(path, framework="np") as file:
        assert set(file.keys()) == set(PLAIN)
        assert json.loads(file.metadata()["multiparam"])["format"] == 1
        assert file.get_slice("a.weight")[1:2].tolist() == [[4, 5, 6, 7]]


def test_we_read_what_the_official_library_writes(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(PLAIN, tmp_path / "w.safetensors")
    assert equal(mp.read(tmp_path / "w.safetensors"), PLAIN)


def test_wide_numbers_come_first_and_aligned(tmp_path: Path) -> None:
    path = mp.save(PLAIN, tmp_path / "w.safetensors")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0 and next(iter(header)) == "__metadata__"
    assert list(header)[1:] == ["a.bias", "count", "a.weight", "b\\.c.größe 重み", "empty", "bytes", "flags"]
    for entry in list(header.values())[1:]:
        width = {"F64": 8, "I64": 8, "F32": 4, "I16": 2, "F16": 2}.get(entry["dtype"], 1)
        assert entry["data_offsets"][0] % width == 0


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = mp.save(PLAIN, tmp_path / "a.safetensors"), mp.save(dict(PLAIN), tmp_path / "b.safetensors")
    assert one.read_bytes() == other.read_bytes()


def test_nothing_but_nothing(tmp_path: Path) -> None:
    assert dict(mp.read(mp.save({}, tmp_path / "w.safetensors"))) == {}


def test_other_orders_in_memory_and_of_bytes(tmp_path: Path) -> None:
    state = {
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "s": np.arange(9)[::2],
    }
    found = mp.read(mp.save(state, tmp_path / "w.safetensors"))
    assert all(np.array_equal(found[name], a) and found[name].dtype.isnative for name, a in state.items())


def test_a_read_array_is_the_callers_own(tmp_path: Path) -> None:
    found = mp.read(mp.save(PLAIN, tmp_path / "w.safetensors"))
    found["a.weight"][:] = 9
    assert equal(found, PLAIN)
    assert len(found) == 7 and "a.bias" in found and "x" not in found and found.get("x") is None
    with pytest.raises(KeyError):
        found["x"]


def test_the_file_that_was_opened_is_read_though_another_took_its_place(tmp_path: Path) -> None:
    path = mp.save(PLAIN, tmp_path / "w.safetensors")
    found = mp.read(path)
    mp.save({name: a + a for name, a in PLAIN.items() if name != "count"}, path)
    assert equal(found, PLAIN)


@pytest.mark.parametrize("path", ["w", "w.safetensor", "w.npz"])
def test_a_name_that_no_format_has_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="No weight file that can be written ends like"):
        mp.save(PLAIN, tmp_path / path)


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"__metadata__": np.zeros(1)}, "can be called '__metadata__'"),
        ({"a": np.zeros(1, "complex128")}, "'a' is complex128, which safetensors has not"),
        ({"a": np.array(["text"])}, "which safetensors has not"),
        ({"\ud800": np.zeros(1)}, "UTF-8"),
        ({1: np.zeros(1)}, "1 is int"),
        ([np.zeros(1)], "not list"),
    ],
    ids=["metadata", "complex128", "text", "surrogate", "number", "list"],
)
def test_what_cannot_be_written(tmp_path: Path, state: Any, match: str) -> None:
    with pytest.raises((errors.InvalidArgument, errors.WrongType), match=match):
        mp.save(state, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_file_has_the_permissions_of_the_users_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = mp.save(PLAIN, tmp_path / "w.safetensors")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_without_checksums_loads(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = mp.save(PLAIN, tmp_path / "w.safetensors")
    save_file(dict(mp.read(path)), path, metadata={"format": "pt"})
    assert equal(mp.read(path), PLAIN)


def test_a_file_another_program_changed_is_refused_unless_told_to_read_it(tmp_path: Path) -> None:
    path = mp.save(PLAIN, tmp_path / "w.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.FileError, match=r"'flags' are not those that were written.*verify=False"):
        dict(mp.read(path))
    assert mp.read(path, verify=False)["flags"].tolist() == [True, True]


# -- round trips


def test_a_model_comes_back(backend: str, tmp_path: Path) -> None:
    net, other = made(backend, seed=1), made(backend, seed=2)
    path = mp.save(net, tmp_path / "w.safetensors")
    assert path == tmp_path / "w.safetensors" and mp.load(other, path) == ((), ())
    assert bits(other) == bits(net)


def test_a_group_comes_back(backend: str, tmp_path: Path) -> None:
    net = made(backend)
    mp.save(net[0], tmp_path / "w.safetensors")
    other = made(backend, seed=1)
    mp.load(other[0], tmp_path / "w.safetensors")
    assert bits(other[0]) == bits(net[0]) and bits(other) != bits(net)


DTYPES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16",
    "uint8", "bool", "complex64",
)  # fmt: skip
LACKS = {"gluon": {"bfloat16", "int16", "uint16", "uint32", "uint64", "complex64"}}
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")


def every(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random bytes as numbers of a dtype, so NaNs and infinities too."""
    if dtype == "bool":
        return np.arange(math.prod(shape)).reshape(shape) % 2 == 0
    kind = numpy_dtype(dtype)
    return np.frombuffer(np.random.default_rng(0).bytes(math.prod(shape) * kind.itemsize), kind).reshape(shape).copy()


@pytest.mark.parametrize("flavour", CASES)
def test_every_dtype_and_shape_comes_back_bit_by_bit(flavour: str, tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")
    shapes = [(3, 5)] if flavour == "gluon" else [(3, 5), (), (0, 3)]  # Gluon initialises no scalars and nothing empty
    dtypes = [*DTYPES, *(FLOAT8 if flavour in ("torch", "linen", "nnx") else ())]
    state = {
        f"{dtype}_{i}": every(dtype, shape)
        for dtype in dtypes
        for i, shape in enumerate(shapes)
        if dtype not in LACKS.get(flavour, ())
    }
    net = FLAVOURS[flavour](state)
    path = mp.save(net, tmp_path / "w.safetensors")
    assert equal(mp.read(path), state)
    other = FLAVOURS[flavour]({name: np.zeros_like(a) for name, a in state.items()})
    mp.load(other, path)
    assert {name: other[name].dtype for name in state} == {name: a.dtype.name for name, a in state.items()}
    assert equal(other.state_dict(), state)


def layers(flavour: str) -> mp.Model:
    """Linear, a layer without weights, and batch norm, as a user of each library writes them."""
    if flavour == "torch":
        import torch

        return mp.wrap(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.BatchNorm1d(3)))
    if flavour == "gluon":
        from multiparam_mxnet.load import load

        native = load().gluon.nn.HybridSequential()
        native.add(load().gluon.nn.Dense(3), load().gluon.nn.Activation("relu"), load().gluon.nn.BatchNorm())
        native.initialize()
        return mp.wrap(native, X)
    if flavour == "linen":
        from flax import linen

        return mp.wrap(linen.Sequential([linen.Dense(3), linen.relu, linen.BatchNorm(use_running_average=True)]), X)
    if flavour == "nnx":
        from flax import nnx

        rngs = nnx.Rngs(0)
        return mp.wrap(nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.relu, nnx.BatchNorm(3, rngs=rngs)))
    make = __import__(flavour).layers
    return mp.wrap(__import__(flavour).Sequential([make.Dense(3), make.ReLU(), make.BatchNormalization()]), X)


@pytest.mark.parametrize("flavour", CASES)
def test_a_file_goes_to_every_library_by_hand_and_back(flavour: str, tmp_path: Path) -> None:
    """A file as any of them writes it; what comes out of this one is the same state."""
    rng = np.random.default_rng(0)
    truth = {
        "0.weight": rng.normal(size=(3, 4)).astype("float32"),
        **{f"2.{n}": rng.normal(size=3).astype("float32") for n in ("weight", "bias", "running_mean", "running_var")},
        "0.bias": rng.normal(size=3).astype("float32"),
    }
    mp.save(truth, tmp_path / "in.safetensors")
    net = layers(flavour)
    assert mp.load(net, tmp_path / "in.safetensors") == ((), ())
    found = dict(mp.read(mp.save(net, tmp_path / "out.safetensors")))
    found.pop("2.num_batches_tracked", None)
    assert equal(found, truth)
    said = document(tmp_path / "out.safetensors")["parameters"]
    assert said["0.weight"] == {"kind": "linear", "layout": "OI", "trainable": True, "buffer": False}
    assert said["2.running_mean"]["buffer"] and said["2.running_mean"]["kind"] == "batchnorm"


@pytest.mark.needs(*dict.fromkeys(NEEDS.values()))
def test_one_file_through_all_libraries(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    first = layers("torch")
    mp.save(first, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mp.MultiparamWarning)  # each has its own eps
        for i, flavour in enumerate(["gluon", "linen", "nnx", "keras", "tf_keras", "torch"], 1):
            net = layers(flavour)
            mp.load(net, path)
            path = mp.save(net, tmp_path / f"{i}.safetensors")
    assert bits(net) == bits(first)


def test_dtype_converts_floats_on_the_way(backend: str, tmp_path: Path) -> None:
    net, other = made(backend), made(backend, seed=1)
    path = mp.save(net, tmp_path / "w.safetensors", dtype="float16")
    found = mp.read(path)
    assert {a.dtype.name for name, a in found.items() if "num_batches" not in name} == {"float16"}
    with refused(other, match="'0.weight' is float32; the state has float16"):
        mp.load(other, path)
    mp.load(other, path, cast=True)
    assert np.array_equal(other["0.weight"].numpy(), net["0.weight"].numpy().astype("float16").astype("float32"))


def test_bfloat16_goes_where_there_is_none_when_told_to(backend: str, tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")
    path = mp.save(made(backend), tmp_path / "w.safetensors", dtype="bfloat16")
    assert mp.read(path)["0.weight"].dtype == "bfloat16"
    net = made(backend, seed=1)
    with refused(net, match="has bfloat16"):
        mp.load(net, path)
    mp.load(net, path, cast=True)
    assert np.allclose(net["0.weight"].numpy(), made(backend)["0.weight"].numpy(), rtol=2**-7)


@in_framework("torch")
def test_torchs_own_safetensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    net = made("torch", dtype="bfloat16")
    path = mp.save(net, tmp_path / "w.safetensors")
    loaded = load_file(path)
    assert all(torch.equal(loaded[name], p.native) for name, p in net.parameters().items())
    save_file({name: t * 2 for name, t in loaded.items()}, tmp_path / "t.safetensors")
    mp.load(net, tmp_path / "t.safetensors")
    assert torch.equal(net["0.weight"].native, loaded["0.weight"] * 2)


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match="Did you mean 'float16'"):
        mp.save(PLAIN, tmp_path / "w.safetensors", dtype="flaot16")


# -- what else the file says


def test_the_document(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = made(backend)
    net.freeze("0.*")
    monkeypatch.setattr(mp.Model, "options", lambda self: {"5": {"eps": 1e-5, "size": (1, np.float32(2))}})
    said = document(mp.save(net, tmp_path / "w.safetensors"))
    assert (said["format"], said["multiparam"]) == (1, mp.__version__)
    assert list(said["parameters"]) == list(net.state_dict())
    assert said["parameters"]["0.weight"] == {"kind": "linear", "layout": "OI", "trainable": False, "buffer": False}
    assert said["parameters"]["2.weight"]["aliases"] == ["4.weight"]
    assert said["layers"] == {"5": {"eps": 1e-5, "size": [1, 2.0]}}


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The same tensors, with another document and no checksums."""
    from safetensors.numpy import save_file

    said = document(path)
    changed = change(said)
    tensors = dict(mp.read(path))
    save_file(tensors, path, metadata={"multiparam": json.dumps(said if changed is None else changed)})
    return path


def test_a_newer_format_is_refused(backend: str, tmp_path: Path) -> None:
    path = mp.save(made(backend), tmp_path / "w.safetensors")
    rewritten(path, lambda said: said.update(format=2, multiparam="9.0"))
    with refused(
        made(backend), errors.FileError, r"is of format 2, written by multiparam '9\.0'; .*pip install --upgrade"
    ):
        mp.load(made(backend), path, verify=False)


@pytest.mark.parametrize(
    "document",
    [[], 1, {}, {"format": 0}, {"format": "1"}, {"format": 1, "parameters": [], "layers": {}},
     {"format": 1, "parameters": {"a": 1}, "layers": {}},
     {"format": 1, "parameters": {"0.weight": {"aliases": [1]}}, "layers": {}},
     {"format": True, "parameters": {}, "layers": {}}],
    ids=repr,
)  # fmt: skip
@in_framework("torch")
def test_a_document_that_is_not_ours(tmp_path: Path, document: Any) -> None:
    path = rewritten(mp.save(made("torch"), tmp_path / "w.safetensors"), lambda said: document)
    net = made("torch", seed=1)
    with refused(net, errors.FileError, "metadata under 'multiparam'"):
        mp.load(net, path, verify=False)


def test_options_that_differ_are_told(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = made(backend)
    monkeypatch.setattr(mp.Model, "options", lambda self: {"5": {"eps": 1e-5, "momentum": 0.1, "mine": 1}})
    path = mp.save(net, tmp_path / "w.safetensors")
    monkeypatch.setattr(mp.Model, "options", lambda self: {"5": {"eps": 1e-3, "momentum": np.float32(0.1), "other": 2}})
    with pytest.warns(
        mp.MultiparamWarning, match=r"layer '5' has eps=1e-05 in the file, 0\.001 in the model"
    ) as caught:
        mp.load(net, path)
    assert len(caught) == 1 and caught[0].filename == __file__ and "momentum" not in str(caught[0].message)


def test_hosts_tell_options(backend: str) -> None:
    assert all(isinstance(said, dict) and said for said in made(backend).options().values())


# -- ties


def apart(backend: str, seed: int = 5) -> mp.Model:
    """The untied twin."""
    untied = nn.Sequential(nn.Linear(5), nn.ReLU(), nn.Linear(5), nn.ReLU(), nn.Linear(5), nn.BatchNorm(), nn.Linear(2))
    return mp.build(untied, X, backend=backend, seed=seed)


def test_a_tie_that_the_model_has_not(backend: str, tmp_path: Path) -> None:
    path, net = mp.save(made(backend), tmp_path / "w.safetensors"), apart(backend)
    with pytest.warns(mp.MultiparamWarning, match="the file ties '2.weight' and '4.weight'; the model does not"):
        mp.load(net, path)
    assert not net.ties() and np.array_equal(net["4.weight"].numpy(), made(backend)["2.weight"].numpy())


def test_a_tie_that_the_file_has_not(backend: str, tmp_path: Path) -> None:
    net, other = made(backend), apart(backend)
    path = tmp_path / "w.safetensors"
    mp.save(other, path)
    with refused(net, match="'2.weight' and '4.weight' are one parameter"):
        mp.load(net, path)
    other["4.weight"].assign(other["2.weight"].numpy())
    other["4.bias"].assign(other["2.bias"].numpy())
    mp.save(other, path)
    with pytest.warns(mp.MultiparamWarning, match="the model ties '2.weight' and '4.weight'; the file has them apart"):
        mp.load(net, path)
    assert len(net.ties()) == 2 and np.array_equal(net["4.weight"].numpy(), other["2.weight"].numpy())


def test_equal_ties_are_nothing_to_tell(backend: str, tmp_path: Path) -> None:
    net = made(backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error", mp.MultiparamWarning)
        mp.load(net, mp.save(net, tmp_path / "w.safetensors"))


def test_values_are_found_under_an_alias(backend: str, tmp_path: Path) -> None:
    """The file's first name is one that the model has not."""
    one, other = nn.Linear(4), nn.Linear(4)
    net = mp.build(nn.Sequential(("a", one), ("b", one)), X, backend=backend)
    path = mp.save(net, tmp_path / "w.safetensors")
    net = mp.build(nn.Sequential(("b", other)), X, backend=backend, seed=3)
    assert mp.load(net, path) == ((), ())
    assert np.array_equal(net["b.weight"].numpy(), mp.read(path)["a.weight"])


@pytest.mark.parametrize("wide", [3, 4])
def test_a_transposed_tie(backend: str, tmp_path: Path, wide: int) -> None:
    net = transposed(backend, wide)
    path = mp.save(net, tmp_path / "w.safetensors")
    assert document(path)["parameters"]["0.weight"]["transposed"] == ["1.weight"]
    truth, again = net["0.weight"].numpy(), transposed(backend, wide)
    again["0.weight"][...] = 0
    mp.load(again, path)
    assert np.array_equal(again["1.weight"].numpy(), truth.T)
    again.untie("1.weight")
    again.init(mp.init.zeros())
    with pytest.warns(mp.MultiparamWarning, match="the file ties"):
        mp.load(again, path)
    assert np.array_equal(again["0.weight"].numpy(), truth) and np.array_equal(again["1.weight"].numpy(), truth.T)


def test_ties_survive_a_copy_of_the_file(backend: str, tmp_path: Path) -> None:
    net = made(backend)
    with mp.read(mp.save(net, tmp_path / "w.safetensors")) as source:
        copy = mp.save(source, tmp_path / "copy.safetensors")
    assert document(copy) == document(tmp_path / "w.safetensors")


# -- shards


def test_shards_as_hugging_face_writes_them(backend: str, tmp_path: Path) -> None:
    net, other = made(backend), made(backend, seed=1)
    index = mp.save(net, tmp_path / "w.safetensors", shard_size=150)
    files = sorted(path.name for path in tmp_path.iterdir())
    count = len(files) - 1
    assert files == [
        *(f"w-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)),
        "w.safetensors.index.json",
    ]
    said = json.loads(index.read_text())
    assert said["metadata"]["total_size"] == sum(a.nbytes for a in net.state_dict().values())
    assert list(said["weight_map"]) == list(net.state_dict()) and set(said["weight_map"].values()) == set(files[:-1])
    for path in (index, tmp_path, tmp_path / "w.safetensors"):
        other.init(mp.init.zeros())
        assert mp.load(other, path) == ((), ()) and bits(other) == bits(net)


def test_a_sharded_file_of_another_program(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for i, (name, array) in enumerate(PLAIN.items(), 1):
        save_file({name: array}, tmp_path / f"model-{i:05d}-of-00007.safetensors", metadata={"format": "pt"})
    where = {name: f"model-{i:05d}-of-00007.safetensors" for i, name in enumerate(PLAIN, 1)}
    index = {"metadata": {"total_size": 5}, "weight_map": where}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert equal(mp.read(tmp_path), PLAIN)


def test_what_fits_into_one_shard_is_one_file(tmp_path: Path) -> None:
    assert mp.save(PLAIN, tmp_path / "w.safetensors", shard_size="1GB").name == "w.safetensors"
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_an_array_larger_than_a_shard_has_one_to_itself(tmp_path: Path) -> None:
    state = {name: np.zeros(size) for name, size in (("a", 1), ("b", 100), ("c", 1), ("d", 1))}
    index = mp.save(state, tmp_path / "w.safetensors", shard_size=16)
    assert list(json.loads(index.read_text())["weight_map"].values()) == [
        f"w-0000{i}-of-00003.safetensors" for i in (1, 2, 3, 3)
    ]


def test_what_is_saved_last_is_what_a_path_gives(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for size in (None, 60, 8, None, 30):
        state = {f"{size} {name}": a for name, a in PLAIN.items()}
        result = mp.save(state, path, shard_size=size)
        assert equal(mp.read(path), state) and equal(mp.read(result), state)
        shards = set(json.loads(result.read_text())["weight_map"].values()) if size else {path.name}
        assert {each.name for each in tmp_path.iterdir()} == shards | {result.name}  # and nothing is left over


def test_another_programs_shards_are_not_removed(tmp_path: Path) -> None:
    test_a_sharded_file_of_another_program(tmp_path)
    mp.save(PLAIN, tmp_path / "model.safetensors")
    assert len(list(tmp_path.iterdir())) == 9


@pytest.mark.parametrize("size", ["", "MB", "0", 0, -1, "5 XB", "1.5.2MB", True, "1e3"], ids=repr)
def test_a_size_that_is_none(tmp_path: Path, size: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match="No size"):
        mp.save(PLAIN, tmp_path / "w.safetensors", shard_size=size)


def test_sizes() -> None:
    assert [parse_size(size) for size in ("7", "7b", "2KB", "2kib", "3 MB", "1.5GiB", "1T")] == [
        7, 7, 2000, 2048, 3_000_000, 3 * 2**29, 10**12,
    ]  # fmt: skip


def sharded(folder: Path) -> Path:
    return mp.save({"a": np.zeros(4), "b": np.ones(4)}, folder / "w.safetensors", shard_size=32)


def test_a_missing_shard(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    (tmp_path / "w-00002-of-00002.safetensors").unlink()
    with pytest.raises(errors.FileError, match=r"names the shard 'w-00002-of-00002\.safetensors', which is not there"):
        mp.read(index)


def test_shards_of_two_saves(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    kept = (tmp_path / "w-00001-of-00002.safetensors").read_bytes()
    sharded(tmp_path)
    (tmp_path / "w-00001-of-00002.safetensors").write_bytes(kept)
    with pytest.raises(errors.FileError, match="are not of one save"):
        mp.read(index)


@pytest.mark.parametrize(
    "name",
    ["../w.safetensors", "/etc/passwd", "a/../../w.safetensors", "..\\w.safetensors", "C:\\w.safetensors",
     "C:w.safetensors", "\\\\host\\share\\w", "", "a\0b", "..", 5, None],
    ids=repr,
)  # fmt: skip
def test_an_index_names_no_file_elsewhere(tmp_path: Path, name: Any) -> None:
    mp.save({"a": np.zeros(1)}, tmp_path / "w.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    index = folder / "w.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(errors.FileError, match="no file beside it"):
        mp.read(index)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}, "metadata": 1}',
        "{" * 9999,
        '{"weight_map": {"a": "x", "a": "y"}}',
        '{"weight_map": {}, "x": NaN}',
        '{"weight_map": {}, "metadata": {"multiparam.save": []}}',
    ],
    ids=lambda text: text[:30],
)
def test_a_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "w.safetensors.index.json").write_text(text)
    with pytest.raises(errors.FileError):
        mp.read(tmp_path)


def test_an_index_and_its_shards_must_agree(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    said = json.loads(index.read_text())
    del said["weight_map"]["a"]
    said["weight_map"]["c"] = "w-00001-of-00002.safetensors"
    index.write_text(json.dumps(said))
    with pytest.raises(errors.FileError, match="do not agree on whether it has 'a'"):
        mp.read(index)


def test_a_folder_with_no_index_or_several(tmp_path: Path) -> None:
    with pytest.raises(errors.FileError, match="holds no weight file"):
        mp.read(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
    with pytest.raises(errors.FileError, match=r"has several files to read: 'a\.safetensors\.index\.json', 'b"):
        mp.read(tmp_path)


# -- memory


class Made(Mapping[str, np.ndarray]):
    """Large arrays that exist only while somebody holds them."""

    def __iter__(self) -> Iterator[str]:
        return (f"{i}" for i in range(12))

    def __len__(self) -> int:
        return 12

    def __getitem__(self, name: str) -> np.ndarray:
        return np.full(SIZE, float(name), "float32")


SIZE = 1 << 19  # 2 MB each, 24 in all


def peak(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shard_size", [None, "5MB"])
def test_saving_holds_one_array_at_a_time(tmp_path: Path, shard_size: str | None) -> None:
    assert peak(lambda: mp.save(Made(), tmp_path / "w.safetensors", shard_size=shard_size)) < 2.5 * 4 * SIZE


@in_framework("torch")
@pytest.mark.parametrize("shard_size", [None, "5MB"])
def test_loading_holds_one_array_at_a_time(tmp_path: Path, shard_size: str | None) -> None:
    path = mp.save(Made(), tmp_path / "w.safetensors", shard_size=shard_size)
    net = FLAVOURS["torch"]({name: np.zeros(SIZE, "float32") for name in Made()})
    assert peak(lambda: mp.load(net, path)) < 2.5 * 4 * SIZE
    assert all((net[name].numpy() == float(name)).all() for name in Made())


@pytest.mark.slow
@in_framework("torch")
def test_a_file_of_two_gigabytes(tmp_path: Path) -> None:
    """In a process of its own, whose largest resident set is measured: the model, and little more."""
    code = f"""
import numpy as np, resource, torch, multiparam as mp
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
net = mp.wrap(torch.nn.Sequential(*[torch.nn.Linear(4096, 4096, bias=False) for _ in range(32)]))
before = used()
path = mp.save(net, {str(tmp_path / "w.safetensors")!r})
mp.load(net, path)
print(path.stat().st_size >> 20, used() - before)
"""
    size, more = python(code).split()
    assert int(size) == 2048 and float(more) < 3 * 64


# -- other formats


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **PLAIN)
    assert equal(mp.read(tmp_path / "w.npz"), PLAIN)
    np.savez(tmp_path / "w.npz", a=np.array([{"an": "object"}], object))
    with pytest.raises(errors.FileError, match="Python objects, which multiparam does not unpickle"):
        mp.read(tmp_path / "w.npz")["a"]
    np.save(tmp_path / "w.npy", np.zeros(3))
    os.rename(tmp_path / "w.npy", tmp_path / "w.npz")
    with pytest.raises(errors.FileError, match="no npz"):
        mp.read(tmp_path / "w.npz")


def test_a_state_saved_by_numpy_loads(backend: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **weights(backend))
    net = made(backend)
    assert mp.load(net, tmp_path / "w.npz") == ((), ()) and net.load_state_dict(mp.read(tmp_path / "w.npz")) == ((), ())
    assert bits(net) == bits(made(backend, seed=1))


@in_framework("torch")
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("old", [False, True])
def test_torchs_own_files(tmp_path: Path, suffix: str, old: bool) -> None:
    import torch

    net, other = made("torch", seed=1), made("torch")
    path = tmp_path / f"w{suffix}"
    torch.save(net.native.state_dict(), path, _use_new_zipfile_serialization=not old)
    assert set(mp.read(path)) == set(net.native.state_dict())
    mp.load(other, path)
    assert bits(other) == bits(net)
    other.init(mp.init.zeros())
    other.load_state_dict(mp.read(path))
    assert bits(other) == bits(net)


@in_framework("torch")
def test_a_training_checkpoint_of_torchs(tmp_path: Path) -> None:
    import torch

    net = made("torch")
    torch.save({"model": net.native.state_dict(), "epoch": 3, "best": [torch.ones(2)]}, tmp_path / "w.pt")
    found = mp.read(tmp_path / "w.pt")
    assert "model.0.weight" in found and found["best.0"].tolist() == [1, 1] and "epoch" not in found


@in_framework("torch")
def test_nothing_is_unpickled(tmp_path: Path) -> None:
    import torch

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"a": Evil()}, tmp_path / "w.pt")
    with pytest.raises(errors.FileError, match="does not unpickle"):
        mp.read(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@in_framework("mxnet")
def test_mxnets_own_files(tmp_path: Path, mx: Any) -> None:
    net, other = layers("gluon"), layers("gluon")
    path = str(tmp_path / "w.params")
    net.native.save_parameters(path)
    state = mp.read(path)
    assert {name: a.shape for name, a in state.items()}["0.weight"] == (3, 4)
    assert np.array_equal(state["0.weight"], net["0.weight"].numpy())
    named = {"2.gamma": "2.weight", "2.beta": "2.bias"}
    assert other.load_state_dict({named.get(name, name): a for name, a in state.items()}) == ((), ())
    assert bits(other) == bits(net)


@in_framework("mxnet")
def test_mxnets_older_files_and_all_its_dtypes(tmp_path: Path) -> None:
    from multiparam_mxnet.load import load

    mx = load()
    truth = {d: every(d, (2, 3)) for d in ("float64", "float32", "float16", "uint8", "int32", "int8", "int64", "bool")}
    arrays = {f"{'aux' if 'int' in d else 'arg'}:{d}": mx.nd.array(a, dtype=d) for d, a in truth.items()}
    mx.nd.save(str(tmp_path / "w.params"), arrays)
    assert equal(mp.read(tmp_path / "w.params"), truth)
    with mx.util.np_shape(True):
        mx.nd.save(str(tmp_path / "w.params"), {"s": mx.nd.array(3.0), "e": mx.nd.zeros((0, 3))})
    assert equal(mp.read(tmp_path / "w.params"), {"s": np.array(3, "float32"), "e": np.zeros((0, 3), "float32")})
    mx.nd.save(str(tmp_path / "w.params"), [mx.nd.ones((2,)), mx.nd.zeros((1,))])
    assert list(mp.read(tmp_path / "w.params")) == ["0", "1"]
    mx.nd.save(str(tmp_path / "w.params"), {"a": mx.nd.ones((2, 2)).tostype("csr")})
    with pytest.raises(errors.FileError, match="sparse"):
        mp.read(tmp_path / "w.params")


@in_framework("jax")
def test_flaxs_own_files(tmp_path: Path) -> None:
    from flax import serialization

    net = layers("linen")
    (tmp_path / "w.msgpack").write_bytes(serialization.to_bytes(net.variables))
    state = mp.read(tmp_path / "w.msgpack")
    assert np.array_equal(state["params.layers_0.kernel"], net["0.weight"].numpy().T)
    assert set(state) >= {"params.layers_0.bias", "batch_stats.layers_2.mean"}
    (tmp_path / "w.msgpack").write_bytes(b"\xc1nonsense")
    with pytest.raises(errors.FileError, match="cannot be read"):
        mp.read(tmp_path / "w.msgpack")


@in_framework("tensorflow")
def test_kerass_own_files(tmp_path: Path) -> None:
    net = layers("keras")
    kernel = net["0.weight"].numpy().T
    for name, key in (("w.weights.h5", "layers.dense.vars.0"), ("w.keras", "layers.dense.vars.0")):
        path = tmp_path / name
        (net.native.save if name.endswith(".keras") else net.native.save_weights)(path)
        state = mp.read(path)
        assert np.array_equal(state[key], kernel), list(state)
        assert not any("rng" in each for each in state)
        net.native.save_weights(tmp_path / "w.weights.h5")  # HDF5 locks what is open
    with pytest.raises(errors.FileError, match="was changed while it was read"):
        state = mp.read(tmp_path / "w.weights.h5")
        os.utime(tmp_path / "w.weights.h5", (1, 1))
        state["layers.dense.vars.0"]


@pytest.mark.needs("tf_keras")
@pytest.mark.xdist_group("tensorflow")
def test_the_older_kerass_own_files(tmp_path: Path) -> None:
    net = layers("tf_keras")
    kernel = net["0.weight"].numpy().T
    name = net.native.layers[0].name
    net.native.save_weights(tmp_path / "w.h5")
    assert np.array_equal(mp.read(tmp_path / "w.h5")[f"{name}.{name}.kernel:0"], kernel)
    net.native.save(tmp_path / "m.h5")
    assert np.array_equal(mp.read(tmp_path / "m.h5")[f"model_weights.{name}.{name}.kernel:0"], kernel)


@in_framework("tensorflow")
def test_keras_writes_bfloat16_as_bytes(tmp_path: Path) -> None:
    import keras

    layer = keras.Sequential([keras.layers.Dense(2, dtype="bfloat16")])
    layer.build((None, 3))
    layer.save_weights(tmp_path / "w.weights.h5")
    found = mp.read(tmp_path / "w.weights.h5")["layers.dense.vars.0"]
    assert found.dtype == "bfloat16"
    assert found.tobytes() == np.asarray(layer.weights[0]).tobytes()


def test_hdf5_follows_no_link_to_another_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(b"x" * 8)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("a", (8,), "u1", external=[(str(tmp_path / "secret"), 0, 8)])
    with pytest.raises(errors.FileError, match="kept in another file"):
        mp.read(tmp_path / "w.h5")


def test_a_missing_package_is_named_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.h5").write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(errors.PackageMissing, match="pip install h5py"):
        mp.read(tmp_path / "w.h5")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    path = mp.save({"a": np.zeros(2, ml_dtypes.bfloat16)}, tmp_path / "w.safetensors")

    def dtype(name: str) -> np.dtype[Any]:
        if name == "bfloat16":  # which numpy knows only because ml_dtypes has been imported here
            raise TypeError(f"data type {name!r} not understood")
        return np.dtype(name)

    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    monkeypatch.setattr("multiparam.core.arrays.np", SimpleNamespace(dtype=dtype))
    with pytest.raises(ImportError, match=r"bfloat16 without ml_dtypes\. Try: pip install ml_dtypes"):
        mp.read(path)["a"]


def test_a_suffix_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "w.safetensor").write_bytes(b"anything")
    with pytest.raises(errors.FileError, match=r"ends in '\.safetensor'\. Did you mean '\.safetensors'"):
        mp.read(tmp_path / "w.safetensor")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("w.safetensors", "w.npz", "w.pt", "w.h5", "w.params", "w.keras", "w"):
        with pytest.raises(FileNotFoundError):
            mp.read(tmp_path / name)


def test_reading_imports_no_framework_that_the_format_does_not_need(tmp_path: Path) -> None:
    mp.save(PLAIN, tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", **PLAIN)
    code = f"""
import multiparam as mp, numpy as np
for name in ("w.safetensors", "w.npz"): dict(mp.read({str(tmp_path)!r} + "/" + name))
from multiparam_mxnet import files"""
    assert python(f"{code}; {LOADED}") == ""
