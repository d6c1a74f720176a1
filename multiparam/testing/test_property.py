"""Properties: random architectures, and random sequences of all operations, against numpy.

The same few examples each time; ``--hypothesis-profile=soak`` draws 10,000 new ones of each.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import multiparam as mp
from multiparam import nn
from multiparam.core import registry

from . import FEATURES
from .architectures import (
    Case,
    Slot,
    State,
    crossed_planes,
    crossed_vectors,
    examples,
    groups,
    networks,
    philox,
    places,
    untied,
    uses,
    values,
    walk,
)
from .networks import without_counts
from .reference import forward, mse, slope
from .sequences import OPERATIONS, TRAIN, play


def supported(case: Case, backend: str) -> bool:
    """Whether the backend builds every layer of a network."""
    declared = registry.info(backend).load().unsupported
    return not {f"nn.{type(layer).__name__}" for layer in all_of(case.spec)} & FEATURES.keys() & declared.keys()


def all_of(layer: nn.Layer) -> list[nn.Layer]:
    """A description and all that is in it."""
    inside = (
        layer.layers if isinstance(layer, nn.Sequential) else [layer.body] if isinstance(layer, nn.Residual) else []
    )
    return [layer, *(each for child in inside for each in all_of(child))]


def exact(backend: str) -> bool:
    """Whether running statistics are PyTorch's."""
    return "exact running statistics" not in registry.info(backend).load().unsupported


def check_structure(net: mp.Model, slots: list[Slot]) -> None:
    """Names, order, sharing, shapes, kinds and positions are those of the description."""
    parameters = [slot for slot in slots if not slot.buffer]
    assert list(net.parameters(aliases=True)) == [slot.name for slot in parameters]
    assert [p.names for p in net.parameters().values()] == groups(parameters)
    assert list(net.parameters()) == [names[0] for names in groups(parameters)]
    assert without_counts(net.buffers(aliases=True)) == [slot.name for slot in slots if slot.buffer]
    ties = [names for names in net.ties() if without_counts(names)]
    assert ties == [names for names in groups(slots) if len(names) > 1]
    assert list(net.layers()) == places(slots)
    for slot in slots:
        p = net[slot.name]
        group: mp.Group = net
        for position in slot.positions:
            group = group[position]
        assert group[slot.leaf] is p
        assert (p.shape, p.kind, p.dtype) == (slot.shape, type(slot.layer).__name__.lower(), "float64")
        assert p.buffer is slot.buffer and p.trainable is not slot.buffer


def check_start(net: mp.Model, slots: list[Slot], seed: int) -> None:
    """Initial values, to the bit: float32 uniforms within 1 / sqrt(fan_in), drawn by seed and first name."""
    first = {names[0] for names in groups(slots)}
    fan = {id(slot.layer): math.prod(slot.shape[1:]) for slot in slots if slot.leaf == "weight"}
    for slot in slots:
        if slot.name not in first:
            continue
        truth = np.full(slot.shape, float(slot.leaf in ("weight", "running_var")))
        if isinstance(slot.layer, (nn.Linear, nn.Conv)):
            bound = 1 / math.sqrt(fan[id(slot.layer)])
            truth = philox(seed, slot.name).random(slot.shape, np.float32)
            truth = truth * np.float32(2 * bound) + np.float32(-bound)
        np.testing.assert_array_equal(net[slot.name].numpy(), truth, err_msg=slot.name)


def check_values(net: mp.Model, state: State) -> None:
    for name, value in state.items():
        np.testing.assert_array_equal(net[name].numpy(), value, err_msg=name)


def check_output(net: mp.Model, spec: nn.Layer, state: State, x: np.ndarray) -> None:
    """64 eps of the largest number for each layer that runs."""
    truth = forward(spec, state, x)
    y = mp.to_numpy(net(x))
    assert y.shape == truth.shape
    assert np.max(np.abs(y - truth)) <= 64 * uses(spec) * np.finfo(np.float64).eps * np.max(np.abs(truth))


def write(net: mp.Model, state: State, names: tuple[str, ...], through: str, value: np.ndarray) -> None:
    """Into the network through one name, into the state under all."""
    if through == names[-1]:
        net[through][...] = value
    else:
        net[through].assign(value)
    state.update(dict.fromkeys(names, value))


def check_gradients(
    net: mp.Model, case: Case, slots: list[Slot], state: State, x: np.ndarray, rng: np.random.Generator
) -> None:
    """Against the slope of the loss in numpy, and against the sum over the uses in an untied twin."""
    y = rng.normal(size=forward(case.spec, state, x).shape)
    twin, sums = twin_gradients(net.backend, case.spec, slots, state, x, y)
    storages = groups([slot for slot in slots if not slot.buffer])
    direction = {names[0]: rng.normal(size=state[names[0]].shape) for names in storages}
    along = {name: direction[names[0]] for names in storages for name in names}
    loss, truth = mse(case.spec, state, x, y), slope(case.spec, state, along, x, y)
    scale = loss + max(float(np.max(np.abs(g))) for g in sums.values())
    value, gradients = net.value_and_grad(mp.losses.mse)(x, y)
    grads = {name: np.array(mp.to_numpy(g)) for name, g in gradients.items()}
    assert list(grads) == [names[0] for names in storages]
    assert mp.to_numpy(value).item() == pytest.approx(loss, rel=1e-11)
    predicted = sum(float(np.sum(g * direction[name])) for name, g in grads.items())
    assert predicted == pytest.approx(truth, rel=1e-6, abs=1e-7 * scale)
    for name, g in grads.items():
        np.testing.assert_allclose(g, sums[name], rtol=0, atol=1e-10 * scale, err_msg=name)
    if exact(net.backend):
        check_statistics(net, twin, slots, state)


def twin_gradients(
    backend: str, spec: nn.Layer, slots: list[Slot], state: State, x: np.ndarray, y: np.ndarray
) -> tuple[mp.Model, State]:
    """A network of the same function in which nothing is shared, after a step, and its gradients added up by tie."""
    twin = mp.build(untied(spec), x, backend=backend, dtype="float64")
    assert all(len(p.names) == 1 for p in twin)
    for name, value in state.items():
        twin[name].assign(value)
    _, grads = twin.value_and_grad(mp.losses.mse)(x, y)
    sums = {
        names[0]: np.sum([mp.to_numpy(grads[name]) for name in names], axis=0)
        for names in groups([slot for slot in slots if not slot.buffer])
    }
    return twin, sums


def check_statistics(net: mp.Model, twin: mp.Model, slots: list[Slot], state: State) -> None:
    """A shared BatchNorm moves once for each use, in order, by the batch that the twin saw there."""
    buffers = [slot for slot in slots if slot.buffer]
    for names in groups(buffers):
        norms = [slot.layer for slot in buffers if slot.name == names[0]]
        momentum: float = next(norm.momentum for norm in norms if isinstance(norm, nn.BatchNorm))
        moved = state[names[0]]
        for name in names:
            batch = (twin[name].numpy() - (1 - momentum) * state[name]) / momentum
            moved = (1 - momentum) * moved + momentum * batch
        np.testing.assert_allclose(net[names[0]].numpy(), moved, rtol=1e-10, atol=1e-10, err_msg=names[0])


def check_network(case: Case, seed: int, backend: str) -> None:
    """Names, ties, shapes, kinds, start, output, writing through any name, gradients: all as the description says."""
    rng = np.random.default_rng(seed)
    slots, _ = walk(case.spec, case.shape[1:])
    x = rng.normal(size=case.shape)
    net = mp.build(case.spec, x, backend=backend, dtype="float64", seed=seed)
    check_structure(net, slots)
    check_start(net, slots, seed)
    state: State = {}
    fresh = values(slots, rng)
    for names in groups(slots):
        write(net, state, names, names[rng.integers(len(names))], fresh[names[0]])
    check_values(net, state)
    check_output(net, case.spec, state, x)
    slot = slots[rng.integers(len(slots))]
    names = next(names for names in groups(slots) if slot.name in names)
    write(net, state, names, slot.name, values(slots, rng)[slot.name])
    check_values(net, state)
    check_output(net, case.spec, state, x)
    check_gradients(net, case, slots, state, x, rng)


@examples(8)
@given(case=networks(), seed=st.integers(0, 999))
@example(case=crossed_vectors(), seed=1)
@example(case=crossed_planes(), seed=2)
def test_a_random_network_is_what_its_description_says(case: Case, seed: int, backend: str) -> None:
    assume(supported(case, backend))
    check_network(case, seed, backend)


@examples(2)
@given(case=networks(), seed=st.integers(0, 999))
def test_a_seed_decides_the_start(case: Case, seed: int, backend: str) -> None:
    """Twice the same seed, twice the same numbers; another seed, others wherever numbers are drawn."""
    assume(supported(case, backend))
    slots, _ = walk(case.spec, case.shape[1:])
    x = np.ones(case.shape)
    a, b, c = (mp.build(case.spec, x, backend=backend, dtype="float64", seed=s) for s in (seed, seed, seed + 1))
    check_values(b, {name: p.numpy() for name, p in a.parameters().items()})
    for slot in slots:
        if isinstance(slot.layer, (nn.Linear, nn.Conv)):
            assert not np.any(a[slot.name].numpy() == c[slot.name].numpy())


@examples(6)
@given(operations=st.lists(OPERATIONS, min_size=6, max_size=10))
@example(
    operations=[("tie", "6.weight", "2.weight"), TRAIN, ("untie", "6.weight"), TRAIN, ("untie", "4.weight"), TRAIN]
)
@example(
    operations=[
        ("tie", "2.weight", "8.weight"),
        ("freeze", "8.weight"),
        TRAIN,
        ("untie", "4.weight"),
        ("unfreeze", "*"),
        TRAIN,
    ]
)
def test_any_sequence_of_operations_leaves_what_it_should(operations: list[tuple[Any, ...]], backend: str) -> None:
    """Names, ties, values, trainability, gradients and output after tie, untie, init, writing, freezing, training."""
    play(backend, operations)
