"""What a framework itself writes goes into its model, by mp.load and mp.transfer alike, without a rule, bit by bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.flavours import GROUPS, NEEDS
from support.native_files import ALSO, WRITERS, fill, flax_params_only, linen
from support.states import bits, refused

import multiparam as mp
from multiparam import errors


def packages(flavour: str, name: str) -> tuple[str, ...]:
    return (NEEDS[flavour], *([ALSO[name]] if name in ALSO else []))


CASES = [
    pytest.param(
        make,
        write,
        name,
        id=f"{flavour}-{name}",
        marks=[pytest.mark.needs(*packages(flavour, name)), pytest.mark.xdist_group(GROUPS[flavour])],
    )
    for flavour, make, write, name in WRITERS
]
MAKERS = {flavour: make for flavour, make, _, name in WRITERS if name != "nhwc.params"}
Make, Write = Callable[[], mp.Model], Callable[[mp.Model, Path], Any]


@pytest.mark.parametrize("make, write, name", CASES)
def test_a_frameworks_own_file_goes_into_its_model(make: Make, write: Write, name: str, tmp_path: Path) -> None:
    source, path = fill(make(), seed=1), tmp_path / name
    write(source, path)
    loaded, transferred = fill(make(), seed=2), fill(make(), seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.MultiparamWarning)
        assert mp.load(loaded, path) == ((), ())
        report = mp.transfer(path, transferred)
    assert bits(loaded) == bits(source) == bits(transferred)
    assert report.plan.complete and not report.plan.guesses


@pytest.mark.needs("jax")
@pytest.mark.xdist_group("jax")
def test_parameters_without_statistics(tmp_path: Path) -> None:
    """Many save variables["params"] alone: what is not in the file is missing, and the rest goes where it belongs."""
    source = fill(linen(), seed=1)
    flax_params_only(source, tmp_path / "w.msgpack")
    target = fill(linen(), seed=2)
    with refused(target, match=r"missing \(2\)"):
        mp.load(target, tmp_path / "w.msgpack")
    missing, unexpected = mp.load(target, tmp_path / "w.msgpack", strict=False)
    assert set(missing) == set(target.buffers()) and unexpected == ()
    for name, p in target.parameters().items():
        np.testing.assert_array_equal(p.numpy(), source.parameter(name).numpy())


@pytest.mark.needs("jax")
@pytest.mark.xdist_group("jax")
def test_whole_numbers_as_keys_and_arrays_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ml_dtypes
    from flax import serialization

    tree = {"layers": {0: {"kernel": np.arange(6.0).reshape(2, 3)}, 1: {"kernel": np.ones(2, ml_dtypes.bfloat16)}}}
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 16)
    data = serialization.msgpack_serialize(tree)
    (tmp_path / "w.msgpack").write_bytes(data)
    state = mp.read(tmp_path / "w.msgpack")
    assert list(state) == ["layers.0.kernel", "layers.1.kernel"]
    for i in (0, 1):
        assert state[f"layers.{i}.kernel"].tobytes() == tree["layers"][i]["kernel"].tobytes()
        assert state[f"layers.{i}.kernel"].dtype == tree["layers"][i]["kernel"].dtype


@pytest.mark.needs("jax")
@pytest.mark.xdist_group("jax")
def test_flax_reads_what_is_written_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flax import serialization
    from multiparam_jax import files

    monkeypatch.setattr(files, "LARGEST_CHUNK", 16)
    arrays = {"a.b": np.arange(6.0).reshape(2, 3), "a.c": np.array(3, "int8"), "d": np.zeros((0, 2), "float16")}
    files.write(arrays, tmp_path / "w.msgpack")
    tree = serialization.msgpack_restore((tmp_path / "w.msgpack").read_bytes())
    assert tree["a"]["b"].tolist() == [[0, 1, 2], [3, 4, 5]] and tree["a"]["c"] == 3 and tree["d"].shape == (0, 2)


# -- written by mp.save


def load_torch(net: mp.Model, path: Path) -> None:
    net.native.load_state_dict(__import__("torch").load(path, weights_only=True))


def load_flax(net: mp.Model, path: Path) -> None:
    from flax import serialization

    net.variables = serialization.from_bytes(net.variables, path.read_bytes())


def load_nnx(net: mp.Model, path: Path) -> None:
    from flax import nnx, serialization

    state = nnx.state(net.native, nnx.Not(nnx.RngState))
    tree = serialization.msgpack_restore(path.read_bytes())
    tree["layers"] = {int(key): value for key, value in tree["layers"].items()}  # a list's keys are written as texts
    nnx.replace_by_pure_dict(state, tree)
    nnx.update(net.native, state)


def load_orbax(net: mp.Model, path: Path) -> None:
    from orbax import checkpoint

    net.variables = checkpoint.StandardCheckpointer().restore(path, net.variables)


def load_nnx_orbax(net: mp.Model, path: Path) -> None:
    from flax import nnx
    from orbax import checkpoint

    state = nnx.state(net.native, nnx.Not(nnx.RngState))
    tree = checkpoint.PyTreeCheckpointer().restore(path)
    tree["layers"] = {int(key): value for key, value in tree["layers"].items()}
    nnx.replace_by_pure_dict(state, tree)
    nnx.update(net.native, state)


LOADERS: list[tuple[str, Write, str]] = [
    ("torch", load_torch, "w.pt"),
    ("torch", load_torch, "w.pth"),
    ("gluon", lambda net, path: net.native.load_parameters(str(path)), "w.params"),
    ("linen", load_flax, "w.msgpack"),
    ("nnx", load_nnx, "w.msgpack"),
    ("linen", load_orbax, "w.orbax"),
    ("nnx", load_nnx_orbax, "w.orbax"),
    ("keras", lambda net, path: net.native.load_weights(path), "w.weights.h5"),
    ("tf_keras", lambda net, path: net.native.load_weights(str(path)), "w.weights.h5"),
]


@pytest.mark.parametrize(
    "flavour, load, name",
    [
        pytest.param(*case, id="-".join((case[0], case[2])), marks=[
            pytest.mark.needs(*packages(case[0], case[2])), pytest.mark.xdist_group(GROUPS[case[0]])
        ])
        for case in LOADERS
    ],
)  # fmt: skip
def test_what_is_saved_as_a_frameworks_own_goes_into_its_own_loader(
    flavour: str, load: Write, name: str, tmp_path: Path
) -> None:
    make = MAKERS[flavour]
    source = fill(make(), seed=1)
    path = mp.save(source, tmp_path / name)
    native, ours = fill(make(), seed=2), fill(make(), seed=3)
    load(native, path)
    assert mp.load(ours, path) == ((), ())
    assert bits(native) == bits(source) == bits(ours)


@pytest.mark.needs("torch")
@pytest.mark.xdist_group("torch")
@pytest.mark.parametrize(
    "name", ["w.pt", "w.params", "w.msgpack", pytest.param("w.orbax", marks=pytest.mark.needs("jax", "orbax"))]
)
def test_arrays_by_name_come_back(name: str, tmp_path: Path) -> None:
    from support.native_files import torch

    source = fill(torch(), seed=1)
    source["3.bias"].assign(source["1.bias"].numpy())
    source.tie("3.bias", "1.bias")
    target = fill(torch(), seed=2)
    mp.save(source, tmp_path / name)  # as torch writes it, or under canonical names
    assert set(mp.read(tmp_path / name)) >= {"3.bias", "1.bias"}  # every name: such files have no place for ties
    assert mp.load(target, tmp_path / name) == ((), ())
    for each in bits(target):
        assert target.parameter(each).numpy().tobytes() == source.parameter(each).numpy().tobytes(), each
    mp.save(source.state_dict(), tmp_path / name, dtype="float64")
    assert mp.read(tmp_path / name)["0.weight"].dtype == "float64"


def test_what_a_format_of_a_framework_has_not_is_refused(tmp_path: Path) -> None:
    arrays = {"a": np.zeros(3, "float32")}
    with pytest.raises(errors.InvalidArgument, match="without shard_size="):
        mp.save(arrays, tmp_path / "w.params", shard_size="1MB")
    with pytest.raises(errors.InvalidArgument, match="only a model of tensorflow can be written as one"):
        mp.save(arrays, tmp_path / "w.weights.h5")
    with pytest.raises(errors.InvalidArgument, match=r"No weight file that can be written ends like 'w\.txt'"):
        mp.save(arrays, tmp_path / "w.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("jax")
def test_a_key_twice_in_one_msgpack_map(tmp_path: Path) -> None:
    import msgpack
    from multiparam_jax import files

    files.write({"a": np.ones(2)}, tmp_path / "w.msgpack")
    entry = (tmp_path / "w.msgpack").read_bytes()[1:]
    (tmp_path / "w.msgpack").write_bytes(b"\x82" + entry + entry)
    assert list(msgpack.unpackb(b"\x82" + entry + entry)) == ["a"]  # the package itself takes the last
    with pytest.raises(errors.FileError, match="two entries called 'a'"):
        mp.read(tmp_path / "w.msgpack")
