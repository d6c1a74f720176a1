"""Init: what an initialiser draws depends on the seed and the name, and lands in the canonical layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import nn

from .networks import deep, feature, mlp, state_of

INITIALISERS: dict[str, Callable[[], Any]] = {
    "normal": partial(mp.init.normal, std=0.01),
    "uniform": partial(mp.init.uniform, -2, 3),
    "truncated_normal": mp.init.truncated_normal,
    "xavier_uniform": mp.init.xavier_uniform,
    "xavier_normal": mp.init.xavier_normal,
    "kaiming_uniform": partial(mp.init.kaiming_uniform, nonlinearity="relu"),
    "kaiming_normal": partial(mp.init.kaiming_normal, mode="fan_out"),
    "orthogonal": mp.init.orthogonal,
    "zeros": mp.init.zeros,
    "ones": mp.init.ones,
}


def test_an_initialiser_by_selector_leaves_the_rest(backend: str) -> None:
    net = mlp(backend)
    bias = net["0.bias"].numpy()
    net.init(mp.init.constant(1), "*.weight")
    np.testing.assert_array_equal(net["0.weight"].numpy(), 1)
    np.testing.assert_array_equal(net["2.weight"].numpy(), 1)
    np.testing.assert_array_equal(net["0.bias"].numpy(), bias)


def test_blocks_get_their_own_initialisers(backend: str) -> None:
    net = mlp(backend)
    net[0].init(mp.init.xavier_uniform(), "weight")
    net[2].init(mp.init.constant(42), "weight")
    bound = np.sqrt(6 / (4 + 8))
    w = net["0.weight"].numpy()
    assert np.abs(w).max() <= bound and w.std() > bound / 3
    np.testing.assert_array_equal(net["2.weight"].numpy(), 42)


def test_a_function_is_an_initialiser(backend: str) -> None:
    def my_init(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        w = rng.uniform(-10, 10, shape)
        return w * (np.abs(w) >= 5)

    net = mp.build(nn.Linear(100), np.ones((1, 100)), backend=backend)
    net.init(my_init, "weight", seed=1)
    w = net["weight"].numpy()
    assert np.all((w == 0) | ((np.abs(w) >= 5) & (np.abs(w) <= 10)))
    assert 0.47 < np.mean(w == 0) < 0.53 and 0.22 < np.mean(w > 0) < 0.28


@feature("nn.Conv")
@pytest.mark.parametrize("name", INITIALISERS)
def test_seeded_initialisers_are_bit_identical_to_the_drawn_array(backend: str, name: str) -> None:
    """Whatever the native layout, the canonical array is the one drawn from (seed, name)."""
    function = INITIALISERS[name]()
    x = np.ones((1, 3, 6, 6))
    net = mp.build(nn.Sequential(nn.Conv(8, 3), nn.Flatten(), nn.Linear(5)), x, backend=backend)
    net.init(function, "*.weight", seed=5)
    for p in net.select("*.weight"):
        drawn = mp.init.draw(function, p.shape, seed=5, name=p.name).astype("float32")
        np.testing.assert_array_equal(p.numpy(), drawn)


def test_a_seed_depends_on_the_name_and_not_on_the_order(backend: str) -> None:
    a, b = mlp(backend), mlp(backend)
    a.init(mp.init.normal(), seed=3)
    b.init(mp.init.normal(), "2.*", seed=3)
    b.init(mp.init.normal(), "0.*", seed=3)
    for name, value in a.state_dict().items():
        np.testing.assert_array_equal(b[name].numpy(), value)
    assert not np.array_equal(a["0.weight"].numpy().ravel()[:8], a["2.weight"].numpy().ravel())


def test_init_writes_a_tied_storage_once_under_its_first_name(backend: str) -> None:
    net = deep(backend, shared=True)
    net.init(mp.init.normal(), "4.weight", seed=2)
    drawn = mp.init.draw(mp.init.normal(), (8, 8), seed=2, name="2.weight")
    np.testing.assert_array_equal(net["2.weight"].numpy(), drawn)


def test_the_same_seed_gives_the_same_bits_and_another_one_others(backend: str) -> None:
    a, b, c = mlp(backend, seed=1), mlp(backend, seed=1), mlp(backend, seed=2)
    for name, value in a.state_dict().items():
        np.testing.assert_array_equal(b[name].numpy(), value)
        assert not np.any(c[name].numpy() == value)
    for net, seed in ((a, 3), (b, 3), (c, 4)):
        net.init(mp.init.normal(), seed=seed)
    np.testing.assert_array_equal(a["0.weight"].numpy(), b["0.weight"].numpy())
    assert not np.any(a["0.weight"].numpy() == c["0.weight"].numpy())


def test_a_network_starts_with_the_documented_numbers(backend: str) -> None:
    """mp.init.default for each leaf, by the parameter's canonical name: the same bits in every framework."""
    net = mlp(backend, dtype="float32", seed=7)
    for name, p in net.parameters().items():
        weight = net[name.replace("bias", "weight")].shape
        drawn = mp.init.draw(mp.init.default("linear", name[2:], weight), p.shape, seed=7, name=name)
        np.testing.assert_array_equal(p.numpy(), drawn.astype("float32"))


def test_initialisers_leave_frozen_flags_and_ties_alone(backend: str) -> None:
    net = deep(backend)
    net.tie("4.weight", "2.weight")
    net.freeze("0.*")
    net.init(mp.init.normal(), seed=1)
    assert net.ties() == [("2.weight", "4.weight")] and not net["0.weight"].trainable


def test_an_initialiser_that_fails_leaves_the_model_as_it_was(backend: str) -> None:
    net = mlp(backend)
    before = state_of(net)

    def broken(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        if shape == (8,):
            raise RuntimeError("on purpose")
        return np.zeros(shape)

    def misshapen(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return np.zeros(shape if len(shape) == 2 else 3)

    with pytest.raises(RuntimeError, match="on purpose"):
        net.init(broken)
    with pytest.raises(mp.errors.ShapeError):
        net.init(misshapen)
    for name, value in state_of(net).items():
        np.testing.assert_array_equal(value, before[name])
