"""State: names to arrays and back, checked as a whole before anything is written; files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import multiparam as mp
from multiparam import nn

from .networks import X, assert_close, deep, feature, is_of, mlp, state_of

State = dict[str, np.ndarray]


@feature("nn.Conv", "nn.BatchNorm")
def test_state_dict_holds_each_storage_once_and_the_buffers(backend: str) -> None:
    net = deep(backend, shared=True)
    assert list(net.state_dict()) == list(net.parameters())
    conv = mp.build(nn.Sequential(nn.Conv(2, 1), nn.BatchNorm()), np.ones((1, 1, 3, 3)), backend=backend)
    assert [n for n in conv.state_dict() if "num_batches" not in n] == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
    ]
    assert list(conv[1].state_dict())[:2] == ["weight", "bias"]


def bits(net: mp.Model) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What a load that is refused must leave."""
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in state_of(net).items()}


def test_a_state_is_independent_of_the_model(backend: str) -> None:
    net = mlp(backend)
    state, before = net.state_dict(), bits(net)
    copies = {name: value.copy() for name, value in state.items()}
    for value in state.values():
        value[...] = 7
    assert bits(net) == before
    state = net.state_dict()
    net["0.weight"][:] = 9
    np.testing.assert_array_equal(state["0.weight"], copies["0.weight"])


def test_a_native_state_has_the_frameworks_arrays(backend: str) -> None:
    net = mlp(backend)
    for name, array in net.state_dict(native=True).items():
        assert is_of(array, backend)
        np.testing.assert_array_equal(mp.to_numpy(array), net[name].numpy())


@pytest.mark.parametrize("native", [False, True], ids=["numpy", "native"])
def test_a_state_makes_another_model_the_same(backend: str, native: bool) -> None:
    net, second = deep(backend, shared=True, seed=1), deep(backend, shared=True, seed=2)
    assert second.load_state_dict(net.state_dict(native=native)) == ((), ())
    assert bits(second) == bits(net)
    assert_close(second(X), mp.to_numpy(net(X)))


@pytest.mark.parametrize("alias", ["2.weight", "4.weight"])
def test_a_tied_parameter_is_loaded_by_any_of_its_names(backend: str, alias: str) -> None:
    net = deep(backend, shared=True)
    state = net.state_dict()
    state[alias] = state.pop("2.weight") + 1
    net.load_state_dict(state)
    np.testing.assert_array_equal(net["2.weight"].numpy(), state[alias])


def _missing(state: State) -> None:
    del state["6.bias"]


def _unexpected(state: State) -> None:
    state["7.weight"] = np.zeros(3)


def _transposed(state: State) -> None:
    state["6.weight"] = state["6.weight"].T


def _broadcast(state: State) -> None:
    state["6.weight"] = np.zeros((1, 1))


def _cast(state: State) -> None:
    state["6.bias"] = state["6.bias"].astype("float32")


def _conflict(state: State) -> None:
    state["4.bias"] = state["2.bias"] + 1


MISFITS: dict[str, Callable[[State], None]] = {
    "missing": _missing,
    "unexpected": _unexpected,
    "transposed": _transposed,
    "broadcast": _broadcast,
    "dtype": _cast,
    "two values for one parameter": _conflict,
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_state_that_does_not_fit_is_refused_as_a_whole(backend: str, case: str) -> None:
    """The misfit comes last, when everything before it could have been written."""
    net = deep(backend, shared=True)
    state = {name: value + 1 for name, value in net.state_dict().items()}
    MISFITS[case](state)
    before = bits(net)
    with pytest.raises(mp.errors.StateError):
        net.load_state_dict(state)
    assert bits(net) == before


def test_a_loaded_state_keeps_no_alias(backend: str) -> None:
    net = mlp(backend)
    state = {name: np.asarray(value) for name, value in net.state_dict().items()}
    net.load_state_dict(state)
    before = bits(net)
    for value in state.values():
        value[...] = 7
    assert bits(net) == before


def test_a_loaded_state_reaches_what_was_compiled(backend: str) -> None:
    net = mlp(backend)
    net(X)
    state = {name: np.zeros_like(value) for name, value in net.state_dict().items()}
    state["2.bias"] += 3
    net.load_state_dict(state)
    np.testing.assert_array_equal(mp.to_numpy(net(X)), 3)


@feature("nn.BatchNorm")
def test_buffers_are_part_of_a_state(backend: str) -> None:
    net = mp.build(nn.BatchNorm(), X, backend=backend, dtype="float64")
    state = net.state_dict()
    state["running_mean"], state["running_var"] = np.arange(4.0), np.arange(1.0, 5.0)
    net.load_state_dict(state)
    np.testing.assert_array_equal(net["running_var"].numpy(), np.arange(1.0, 5.0))
    assert_close(net(X), (X - np.arange(4.0)) / np.sqrt(np.arange(1.0, 5.0) + 1e-5), eps=2**28)


@feature("nn.Conv", "nn.BatchNorm")
def test_a_file_brings_back_every_bit(backend: str, tmp_path: Path) -> None:
    x = np.ones((1, 2, 5, 5))
    shared = nn.Conv(2, 3, padding=1)
    spec = nn.Sequential(shared, nn.BatchNorm(), shared, nn.Flatten(), nn.Linear(3))
    net = mp.build(spec, x, backend=backend, dtype="float64", seed=1)
    second = mp.build(spec, x, backend=backend, dtype="float64", seed=2)
    path = mp.save(net, tmp_path / "w.safetensors")
    assert mp.load(second, path) == ((), ())
    assert bits(second) == bits(net)


def test_a_damaged_file_changes_nothing(backend: str, tmp_path: Path) -> None:
    net = mlp(backend)
    path = mp.save(net, tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    before = bits(net)
    with pytest.raises(mp.MultiparamError):
        mp.load(net, path)
    assert bits(net) == before
