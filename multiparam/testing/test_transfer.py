"""Transfer: arrays and weights from any backend under test into any other, without a bit of difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import multiparam as mp
from multiparam import nn

from .networks import X, assert_close, deep, deep_spec, feature, mlp, state_of, without_counts
from .reference import forward


def test_assign_takes_any_frameworks_array(backend: str, multiparam_peers: list[str]) -> None:
    net, source = mlp(backend), np.arange(8.0)
    for name in multiparam_peers:
        peer = mp.build(nn.Linear(8), X, backend=name, dtype="float64")
        peer["bias"].assign(source)
        net["0.bias"][:] = 0
        net["0.bias"].assign(peer["bias"].value)
        np.testing.assert_array_equal(net["0.bias"].numpy(), source)


def test_a_state_fits_every_backend(backend: str, multiparam_peers: list[str]) -> None:
    truth = forward(deep_spec(), state_of(deep(backend, shared=True, seed=1)), X)
    for name in multiparam_peers:
        peer = deep(name, shared=True, seed=2)
        peer.load_state_dict(deep(backend, shared=True, seed=1).state_dict(native=True))
        assert_close(peer(X), truth)


@feature("nn.Conv", "nn.BatchNorm", "nn.LayerNorm")
def test_a_transfer_agrees_and_says_so(backend: str, multiparam_peers: list[str]) -> None:
    """Square kernels and weights, so that no shape tells a transposed one; channels become features."""
    x = np.random.default_rng(5).normal(size=(2, 3, 3, 3)).astype("float32")
    spec = nn.Sequential(
        nn.Conv(3, 3, padding=1), nn.BatchNorm(), nn.Flatten(), nn.Linear(27), nn.LayerNorm(), nn.Linear(27)
    )
    net = mp.build(spec, x, backend=backend, seed=1)
    net["1.running_mean"][:] = np.arange(3.0)
    net["1.running_var"][:] = np.arange(1.0, 4.0)
    for name in multiparam_peers:
        peer = mp.build(spec, x, backend=name, seed=2)
        report = mp.transfer(net, peer, verify=x)
        assert report.agrees, str(report)
        for each in without_counts(peer.state_dict()):
            np.testing.assert_array_equal(peer[each].numpy(), net[each].numpy())
        np.testing.assert_array_equal(peer["1.running_var"].numpy(), np.arange(1.0, 4.0))


def test_a_tie_goes_along(backend: str, multiparam_peers: list[str]) -> None:
    net = deep(backend, seed=1)
    net.tie("4.weight", "2.weight")
    for name in multiparam_peers:
        peer = deep(name, seed=2)
        peer.tie("4.weight", "2.weight")
        assert mp.transfer(net, peer, verify=X).agrees
        np.testing.assert_array_equal(peer["4.weight"].numpy(), net["2.weight"].numpy())


def test_a_transfer_that_does_not_fit_changes_nothing(backend: str) -> None:
    net = mlp(backend)
    before = state_of(net)
    peer = mp.build(nn.Sequential(nn.Linear(7), nn.Tanh(), nn.Linear(1)), X, backend=backend, dtype="float64")
    try:
        mp.transfer(peer, net)
    except mp.errors.TransferError:
        pass
    else:
        raise AssertionError("weights of another shape were transferred")
    for name, value in state_of(net).items():
        np.testing.assert_array_equal(value, before[name])


def test_a_file_goes_to_every_backend(backend: str, multiparam_peers: list[str], tmp_path: Path) -> None:
    net = deep(backend, seed=1)
    path = mp.save(net, tmp_path / "w.safetensors")
    for name in multiparam_peers:
        peer = deep(name, seed=2)
        mp.load(peer, path)
        for each, value in state_of(net).items():
            np.testing.assert_array_equal(peer[each].numpy(), value)
