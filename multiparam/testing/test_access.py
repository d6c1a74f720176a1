"""Access: a parameter by name or position, its values in canonical form, writing to it; and arrays."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import nn
from multiparam.core import registry
from multiparam.core.inputs import Inputs
from multiparam.core.layouts import Layout, concat

from .networks import X, assert_close, blocks, deep, feature, is_of, mlp


def test_a_parameter_by_name(backend: str) -> None:
    net = mlp(backend, dtype="float32")
    p = net["2.weight"]
    assert (p.name, p.names, p.shape, p.dtype, p.kind) == ("2.weight", ("2.weight",), (1, 8), "float32", "linear")
    assert p.trainable and not p.buffer and p.size == 8


def test_a_parameter_by_position_is_the_same_object(backend: str) -> None:
    net = blocks(backend)
    assert net[0][1][0]["bias"] is net["0.block 1.0.bias"]
    assert net[0]["block 2"][2]["weight"] is net["0.block 2.2.weight"]
    assert net["0.block 3"]["0.bias"] is net["0.block 3.0.bias"]
    assert list(net[0][1].parameters()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_any_alias_gives_the_same_parameter(backend: str) -> None:
    net = deep(backend, shared=True)
    assert net["4.weight"] is net["2.weight"] is net[4]["weight"]
    assert net["4.weight"].names == ("2.weight", "4.weight")


def test_values_come_in_canonical_layout(backend: str) -> None:
    """Against the definition: x @ W.T + b is what the network computes."""
    net = mp.build(nn.Linear(3), X, backend=backend, dtype="float64")
    w, b = net["weight"].numpy(), net["bias"].numpy()
    assert w.shape == mp.to_numpy(net["weight"].value).shape == (3, 4)
    np.testing.assert_array_equal(mp.to_numpy(net["weight"].value), w)
    assert_close(mp.to_numpy(net(X)), X @ w.T + b)


def test_value_is_the_frameworks_array_and_native_its_own_object(backend: str) -> None:
    net = mlp(backend)
    assert is_of(net["0.weight"].value, backend) and is_of(net["0.weight"].native, backend)


def test_numpy_is_independent_of_the_model(backend: str) -> None:
    net = mlp(backend)
    w = net["0.weight"].numpy()
    before = w.copy()
    w[:] = 7
    np.testing.assert_array_equal(net["0.weight"].numpy(), before)
    snapshot = net["0.weight"].numpy()
    net["0.weight"][:] = 9
    np.testing.assert_array_equal(snapshot, before)


def test_value_is_a_snapshot(backend: str) -> None:
    net = mlp(backend)
    value, before = net["0.bias"].value, net["0.bias"].numpy()
    net["0.bias"][:] = 3
    np.testing.assert_array_equal(mp.to_numpy(value), before)
    net["0.bias"].assign(np.arange(8.0))
    np.testing.assert_array_equal(mp.to_numpy(value), before)


def test_assign_keeps_no_alias_of_the_array(backend: str) -> None:
    """64-byte aligned memory is what zero-copy imports adopt."""
    net = mlp(backend)
    raw = np.zeros(8 * 8 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    source = raw[start : start + 64].view(np.float64)
    net["0.bias"].assign(source)
    source[:] = 5
    np.testing.assert_array_equal(net["0.bias"].numpy(), 0)


def test_assign_reaches_the_computation(backend: str) -> None:
    net = mp.build(nn.Linear(3), X, backend=backend, dtype="float64")
    w = np.arange(12.0).reshape(3, 4)
    net(X)  # whatever is compiled on first use must not keep the old values
    net["weight"].assign(w)
    net["bias"].assign([1, 2, 3])
    assert_close(mp.to_numpy(net(X)), X @ w.T + [1, 2, 3])


def test_item_assignment_and_in_place_arithmetic(backend: str) -> None:
    net = mlp(backend)
    p = net["0.weight"]
    truth = p.numpy()
    p[:] += 1
    truth += 1
    p[0, 0] = 42
    truth[0, 0] = 42
    p[1] = np.arange(4)
    truth[1] = np.arange(4)
    p[truth > 1.2] = 0
    truth[truth > 1.2] = 0
    p *= 2
    p -= 1
    p /= 4
    np.testing.assert_array_equal(p.numpy(), (truth * 2 - 1) / 4)


def test_assignment_by_name(backend: str) -> None:
    net = mlp(backend)
    truth = net["0.weight"].numpy()
    net["0.weight"] += 1
    np.testing.assert_array_equal(net["0.weight"].numpy(), truth + 1)
    net[0]["weight"] = truth
    np.testing.assert_array_equal(net["0.weight"].numpy(), truth)
    with pytest.raises(mp.errors.WrongType):
        net["0"] = truth


def test_numpy_functions_take_a_parameter(backend: str) -> None:
    p = mlp(backend)["0.weight"]
    assert np.asarray(p).shape == (8, 4)
    assert np.mean(p) == p.numpy().mean()


def test_values_of_a_square_weight_are_not_its_transpose(backend: str) -> None:
    """Where no shape tells."""
    net = mp.build(nn.Linear(4), X, backend=backend, dtype="float64")
    w = np.arange(16.0).reshape(4, 4)
    net["weight"].assign(w)
    np.testing.assert_array_equal(net["weight"].numpy(), w)
    np.testing.assert_array_equal(mp.to_numpy(net["weight"].value), w)
    assert_close(net(X), X @ w.T + net["bias"].numpy())


@feature("nn.Conv")
def test_values_of_a_convolution_are_out_in_and_space(backend: str) -> None:
    """Every axis of one size."""
    x = np.random.default_rng(2).normal(size=(2, 3, 3, 3))
    net = mp.build(nn.Conv(3, 3), x, backend=backend, dtype="float64")
    w = np.random.default_rng(3).normal(size=(3, 3, 3, 3))
    net["weight"].assign(w)
    np.testing.assert_array_equal(net["weight"].numpy(), w)
    truth = np.einsum("ncij,ocij->no", x, w) + net["bias"].numpy()
    assert_close(mp.to_numpy(net(x))[:, :, 0, 0], truth)


WRONG: dict[str, tuple[Callable[[mp.Model], Any], type[Exception]]] = {
    "another name": (lambda net: net["0.wieght"], mp.errors.ParameterNotFound),
    "another position": (lambda net: net[1], mp.errors.PositionError),
    "no name": (
        lambda net: net[1.5],  # type: ignore[call-overload]
        mp.errors.WrongType,
    ),
    "an array to broadcast": (lambda net: net["0.weight"].assign(np.zeros((1, 4))), mp.errors.ShapeError),
    "an array of one number": (lambda net: net["0.weight"].assign(1.0), mp.errors.ShapeError),
    "a transposed array": (lambda net: net["0.weight"].assign(np.zeros((4, 8))), mp.errors.ShapeError),
    "another dtype": (lambda net: net["0.bias"].assign(np.zeros(8, "float32")), mp.errors.DtypeError),
    "complex numbers": (lambda net: net["0.bias"].assign(np.zeros(8, "complex128"), cast=True), mp.errors.DtypeError),
    "an item out of range": (lambda net: net["0.bias"].__setitem__(9, 1.0), mp.errors.PositionError),
    "items that do not fit": (lambda net: net["0.bias"].__setitem__(slice(0, 2), [1, 2, 3]), mp.errors.ShapeError),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_an_error_and_changes_nothing(backend: str, case: str) -> None:
    net = mlp(backend)
    before = net.state_dict()
    act, error = WRONG[case]
    with pytest.raises(error):
        act(net)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_cast_is_made_where_it_is_asked_for(backend: str) -> None:
    net = mlp(backend)
    net["0.bias"].assign(np.full(8, 0.1, "float32"), cast=True)
    assert net["0.bias"].dtype == "float64" and net["0.bias"].numpy().dtype == np.float64
    np.testing.assert_array_equal(net["0.bias"].numpy(), np.float64(np.float32(0.1)))


def test_no_model_is_an_error_of_ours(backend: str) -> None:
    with pytest.raises(mp.errors.Unrecognised):
        registry.info(backend).load().wrap(object(), Inputs())


def test_a_native_model_wraps_as_what_was_built(backend: str) -> None:
    """Where the framework keeps parameters in the model; elsewhere they have to be given, or made."""
    net = deep(backend, shared=True)
    try:
        again = mp.wrap(net.native)
    except mp.errors.UnknownShapes:
        again = mp.wrap(net.native, X, variables=net.variables)
    assert again.backend == backend
    np.testing.assert_array_equal(again["0.weight"].numpy(), net["0.weight"].numpy())
    assert {names[0]: names for names in again.ties()} == {names[0]: names for names in net.ties()}
    assert_close(again(X), mp.to_numpy(net(X)))


@feature("activations")
def test_activations_are_what_each_layer_gives(backend: str) -> None:
    net = deep(backend, shared=True)
    calls = net.activations(X)
    assert [call.layer for call in calls] == ["0", "2", "4", "6"]
    for call in calls:
        inputs, output = np.array(mp.to_numpy(call.inputs[0])), np.array(mp.to_numpy(call.output))
        assert_close(output, inputs @ net[f"{call.layer}.weight"].numpy().T + net[f"{call.layer}.bias"].numpy())
    for before, after in itertools.pairwise(calls):
        assert_close(after.inputs[0], np.tanh(np.array(mp.to_numpy(before.output))))


@feature("options", "nn.BatchNorm", "nn.LayerNorm")
def test_options_are_in_pytorchs_words(backend: str) -> None:
    spec = nn.Sequential(nn.Linear(3), nn.BatchNorm(eps=0.25, momentum=0.5), nn.LayerNorm(eps=0.125))
    options = mp.build(spec, X, backend=backend).options()
    assert options["1"]["eps"] == 0.25 and options["1"]["momentum"] == 0.5 and options["2"]["eps"] == 0.125


# -- arrays


A = np.random.default_rng(4).normal(size=(2, 3, 4))
LAYOUTS = {
    "transpose": Layout(("transpose", (2, 0, 1))),
    "reshape": Layout(("reshape", (2, 3, 4), (6, 4))),
    "flip": Layout(("flip", (0, 2))),
    "reorder": Layout(("reorder", (1, 0))),
    "all": Layout(
        ("flip", (1,)), ("transpose", (1, 2, 0)), ("reshape", (3, 4, 2), (4, 6)), ("reorder", (3, 0, 2, 1))
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_arrays_change_layout_as_numpys_do(backend: str, case: str) -> None:
    adapter = registry.info(backend).load()
    native = adapter.from_numpy(A)
    moved = LAYOUTS[case].apply(native, adapter.namespace(native))
    np.testing.assert_array_equal(adapter.to_numpy(moved), LAYOUTS[case].apply(A, np))


@pytest.mark.parametrize("axis", [0, 1])
def test_arrays_are_joined_as_numpys_are(backend: str, axis: int) -> None:
    adapter = registry.info(backend).load()
    arrays = [adapter.from_numpy(A), adapter.from_numpy(2 * A)]
    joined = concat(adapter.namespace(arrays[0]), arrays, axis)
    np.testing.assert_array_equal(adapter.to_numpy(joined), np.concatenate([A, 2 * A], axis))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8"])
def test_an_array_keeps_its_dtype_and_has_its_own_memory(backend: str, dtype: str) -> None:
    adapter = registry.info(backend).load()
    source = np.arange(64, dtype=dtype).reshape(8, 8)
    array = adapter.from_numpy(source)
    copy = adapter.detach(array)
    source[:] = 7
    for each in (array, copy):
        back = np.array(adapter.to_numpy(each))
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, np.arange(64, dtype=dtype).reshape(8, 8))


def test_any_view_of_numpy_is_taken(backend: str) -> None:
    adapter = registry.info(backend).load()
    frozen = A.copy()
    frozen.flags.writeable = False
    for view in (A.T, A[::-1], A[:, ::2], frozen, np.float64(3.0).reshape(()), np.zeros((0, 3))):
        np.testing.assert_array_equal(adapter.to_numpy(adapter.from_numpy(view)), view)


def test_losses_are_means(backend: str) -> None:
    adapter = registry.info(backend).load()
    a, b = (array.reshape(6, 4).astype("float32") for array in (A, A[::-1]))
    loss = mp.to_numpy(adapter.mse(adapter.from_numpy(a), adapter.from_numpy(b)))
    assert loss.item() == pytest.approx(np.mean((a - b) ** 2), rel=1e-5)
    labels = np.array([0, 3, 1, 1, 2, 0])
    z = np.exp(a) / np.exp(a).sum(1, keepdims=True)
    loss = mp.to_numpy(adapter.cross_entropy(adapter.from_numpy(a), adapter.from_numpy(labels), 7))
    assert loss.item() == pytest.approx(-np.mean(np.log(z[np.arange(6), labels])), rel=1e-5)
    loss = mp.to_numpy(adapter.cross_entropy(adapter.from_numpy(a), adapter.from_numpy(labels), 1))
    assert loss.item() == pytest.approx(-np.mean(np.log(z[[0, 1, 4, 5], labels[[0, 1, 4, 5]]])), rel=1e-5)
