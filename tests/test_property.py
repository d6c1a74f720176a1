"""Random architectures, random sequences of operations and random names, in every installed backend at once.

The truth is written out here in Python and numpy: a walk over the description says which parameters there are and
which names share a storage, tests/reference.py says what a network computes, :class:`Truth` says what each operation
leaves behind. ``HYPOTHESIS_PROFILE=soak`` runs 10,000 examples of each.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from reference import forward, mse, slope

import multiparam as mp
from multiparam import nn, registry

INSTALLED = [name for name, status in mp.backends().items() if status]
pytestmark = pytest.mark.skipif(not INSTALLED, reason="no backend is installed")

settings.register_profile(  # no shrinking: the examples are small, and each costs four frameworks a compilation
    "default",
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "soak",
    settings.get_profile("default"),
    max_examples=10_000,
    derandomize=False,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")

Shape = tuple[int, ...]
State = dict[str, np.ndarray]


def examples(count: int) -> settings:
    """The chosen profile, with this many examples unless it is the long one."""
    profile = settings.get_profile(PROFILE)
    return profile if PROFILE == "soak" else settings(profile, max_examples=count)


def philox(seed: int, name: str) -> np.random.Generator:
    """The documented source of initial values: Philox keyed by 128 bits of (seed, canonical name)."""
    key = blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


# -- architectures, and a walk over them


class Slot(NamedTuple):
    """One name of one parameter or buffer, as the description says it; equal keys share a storage."""

    path: tuple[str, ...]
    positions: tuple[int, ...]
    layer: nn.Layer
    leaf: str
    shape: Shape

    @property
    def name(self) -> str:
        return ".".join((*self.path, self.leaf))

    @property
    def key(self) -> tuple[int, str]:
        return id(self.layer), self.leaf

    @property
    def buffer(self) -> bool:
        return self.leaf.startswith("running_")


def leaves(layer: nn.Layer, shape: Shape) -> dict[str, Shape]:
    """The arrays of one layer that gets inputs of a shape (without the batch), in PyTorch's order."""
    match layer:
        case nn.Linear():
            found = {"weight": (layer.out_features, shape[-1]), "bias": (layer.out_features,)}
        case nn.Conv():
            kernel = (layer.kernel_size,) * (len(shape) - 1)
            found = {"weight": (layer.out_channels, shape[0], *kernel), "bias": (layer.out_channels,)}
        case nn.LayerNorm():
            found = dict.fromkeys(("weight", "bias"), shape[-1:])
        case nn.BatchNorm():
            found = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), shape[:1])
        case _:
            found = {}
    return found if getattr(layer, "bias", True) else {"weight": found["weight"]}


def walk(
    layer: nn.Layer, shape: Shape, path: tuple[str, ...] = (), at: tuple[int, ...] = ()
) -> tuple[list[Slot], Shape]:
    """Every use of every array in order, and the shape of the output."""
    found = [Slot(path, at, layer, leaf, size) for leaf, size in leaves(layer, shape).items()]
    for position, (name, child) in enumerate(children(layer)):
        below, shape = walk(child, shape, (*path, name), (*at, position))
        found += below
    match layer:
        case nn.Linear():
            shape = (*shape[:-1], layer.out_features)
        case nn.Flatten():
            shape = (math.prod(shape),)
    return found, shape


def children(layer: nn.Layer) -> list[tuple[str, nn.Layer]]:
    if isinstance(layer, nn.Residual):
        return [("body", layer.body)]
    return list(zip(layer.names, layer.layers, strict=True)) if isinstance(layer, nn.Sequential) else []


def uses(layer: nn.Layer) -> int:
    """How many layers run, containers not counted."""
    below = children(layer)
    return sum(uses(child) for _, child in below) if below else 1


def groups(slots: list[Slot]) -> list[tuple[str, ...]]:
    """The names of each storage, in definition order."""
    found: dict[Any, list[str]] = {}
    for slot in slots:
        found.setdefault(slot.key, []).append(slot.name)
    return [tuple(names) for names in found.values()]


def places(slots: list[Slot]) -> list[tuple[str, ...]]:
    """The names of each layer, in definition order."""
    found: dict[int, dict[str, None]] = {}
    for slot in slots:
        found.setdefault(id(slot.layer), {})[".".join(slot.path)] = None
    return [tuple(names) for names in found.values()]


def untied(layer: nn.Layer) -> nn.Layer:
    """The same architecture with an object of its own at each place."""
    if isinstance(layer, nn.Sequential):
        return nn.Sequential(*[(name, untied(child)) for name, child in children(layer)])
    return nn.Residual(untied(layer.body)) if isinstance(layer, nn.Residual) else replace(layer)


def drawing(layer: nn.Layer, numbers: dict[int, int]) -> str:
    """A description in which one number is one object."""
    if id(layer) in numbers:
        return f"#{numbers[id(layer)]}"
    number = numbers[id(layer)] = len(numbers)
    inside = ", ".join(f"{name!r}: {drawing(child, numbers)}" for name, child in children(layer))
    return f"#{number}={type(layer).__name__}({inside})" if inside else f"#{number}={layer}"


class Case(NamedTuple):
    """An architecture and the shape of its input."""

    spec: nn.Layer
    shape: Shape

    def __repr__(self) -> str:
        return f"{self.shape} -> {drawing(self.spec, {})}"


# Values that float32 holds exactly: MXNet keeps LayerNorm's eps in it
EPS = st.sampled_from([2.0**-2, 2.0**-10])
TITLES = st.text("ab ", min_size=1, max_size=4)
SMOOTH = [st.builds(nn.Tanh), st.builds(nn.Sigmoid)]
NORMS = [st.builds(nn.LayerNorm, EPS), st.builds(nn.BatchNorm, EPS, st.sampled_from([0.125, 0.5]))]
Leaf = st.SearchStrategy[nn.Layer]


def either(*strategies: Leaf) -> Leaf:
    """One of them, each as likely."""
    return st.sampled_from(strategies).flatmap(lambda strategy: strategy)


def vectors(width: int) -> Leaf:
    """Layers that keep (N, width)."""
    linear = st.builds(nn.Linear, st.just(width), st.booleans())
    return either(linear, linear, linear, *NORMS, *SMOOTH)


def planes(channels: int, width: int) -> Leaf:
    """Layers that keep (N, channels, height, width); those over the last axis want other data order than the rest."""
    conv = st.sampled_from([3, 1]).flatmap(
        lambda k: st.builds(nn.Conv, st.just(channels), st.just(k), padding=st.just(k // 2), bias=st.booleans())
    )
    pool = st.builds(nn.AvgPool, st.just(3), st.just(1), st.just(1))
    return either(conv, conv, pool, vectors(width), vectors(width))


def new_layer(draw: Any, leaf: Leaf, pool: list[nn.Layer], left: list[int], depth: int) -> nn.Layer:
    """A layer or a block that fits into ``left`` uses: a new one, or again one of ``pool``."""
    known = [each for each in pool if uses(each) <= left[0]]
    blocks = ["sequence", "sequence", "residual"] if depth < 3 else []
    choice = draw(st.sampled_from(["leaf", "leaf", *["again"] * (3 * bool(known)), *blocks]))
    if choice == "again":
        made = draw(st.sampled_from(known))
        left[0] -= uses(made)
        return made
    if choice == "sequence":
        made = new_sequence(draw, leaf, pool, left, depth)
    elif choice == "residual":
        made = nn.Residual(new_layer(draw, leaf, pool, left, depth + 1))
    else:
        made = draw(leaf)
        left[0] -= 1
    pool.append(made)
    return made


def new_sequence(draw: Any, leaf: Leaf, pool: list[nn.Layer], left: list[int], depth: int) -> nn.Layer:
    """A Sequential of up to five children, named by position or by random titles."""
    made = [new_layer(draw, leaf, pool, left, depth + 1)]
    for _ in range(draw(st.sampled_from([2, 3, 4] if depth == 0 else [1, 2, 0]))):
        if left[0] > 0:
            made.append(new_layer(draw, leaf, pool, left, depth + 1))
    titles = draw(st.none() | st.lists(TITLES, min_size=len(made), max_size=len(made), unique=True))
    return nn.Sequential(*made) if titles is None else nn.Sequential(*zip(titles, made, strict=True))


@st.composite
def networks(draw: Any) -> Case:
    """Some eight layers over vectors or over small images, any layer and any block shared anywhere."""
    width, channels = draw(st.integers(2, 5)), draw(st.sampled_from([0, 0, 2, 3]))
    shape = (channels, 2, width) if channels else (width,)
    leaf = planes(channels, width) if channels else vectors(width)
    pool: list[nn.Layer] = []
    left = [draw(st.integers(5, 7))]
    make = draw(st.sampled_from([new_sequence, new_sequence, new_sequence, new_layer]))
    spec = make(draw, leaf, pool, left, 0)
    if channels:
        spec = nn.Sequential(("planes", spec), ("flat", nn.Flatten()), ("head", nn.Linear(2)))
    elif not any(not slot.buffer for slot in walk(spec, shape)[0]):
        spec = nn.Sequential(spec, nn.Linear(1))
    return Case(spec, (4, *shape))


def crossed_vectors() -> Case:
    """A norm shared inside and outside a block that is itself shared, at three depths."""
    norm = nn.BatchNorm(0.25, 0.5)
    block = nn.Sequential(("a b", nn.Linear(3)), ("norm", norm))
    return Case(nn.Sequential(block, nn.Residual(block), norm, nn.Sequential(nn.Sequential(block))), (4, 3))


def crossed_planes() -> Case:
    """Shared layers that want channels last beside shared ones over the canonical last axis."""
    conv, linear, norm = nn.Conv(2, 3, padding=1), nn.Linear(3), nn.BatchNorm(0.25, 0.5)
    block = nn.Sequential(conv, linear, norm)
    again = nn.Residual(nn.Sequential(conv, block, nn.LayerNorm(0.25)))
    body = nn.Sequential(block, linear, again, nn.Residual(linear), nn.AvgPool(3, 1, 1), again)
    return Case(nn.Sequential(body, nn.Flatten(), nn.Linear(2)), (4, 2, 2, 3))


# -- what a network is


def check_structure(net: mp.Model, slots: list[Slot]) -> None:
    """Names, order, sharing, shapes, kinds and positions are those of the description."""
    mine = [slot for slot in slots if not slot.buffer]
    assert list(net.parameters(aliases=True)) == [slot.name for slot in mine]
    assert [p.names for p in net.parameters().values()] == groups(mine)
    assert list(net.parameters()) == [names[0] for names in groups(mine)]
    assert counted(net.buffers(aliases=True)) == [slot.name for slot in slots if slot.buffer]
    ties = [names for names in net.ties() if counted(names)]
    assert ties == [names for names in groups(slots) if len(names) > 1]
    assert list(net.layers()) == places(slots)
    for slot in slots:
        p, group = net[slot.name], net
        for position in slot.positions:
            group = group[position]
        assert group[slot.leaf] is p
        assert (p.shape, p.kind, p.dtype) == (slot.shape, type(slot.layer).__name__.lower(), "float64")
        assert p.buffer is slot.buffer and p.trainable is not slot.buffer


def counted(names: Any) -> list[str]:
    """Without PyTorch's count of batches, which only some frameworks keep."""
    return [name for name in names if not name.endswith("num_batches_tracked")]


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


def values(slots: list[Slot], rng: np.random.Generator) -> State:
    """Random numbers for every storage under all its names; variances are positive."""
    storage: dict[Any, np.ndarray] = {}
    for slot in slots:
        drawn = rng.uniform(0.5, 2, slot.shape) if slot.leaf == "running_var" else rng.normal(0, 0.8, slot.shape)
        storage.setdefault(slot.key, drawn)
    return {slot.name: storage[slot.key] for slot in slots}


def write(nets: dict[str, mp.Model], state: State, names: tuple[str, ...], through: str, value: np.ndarray) -> None:
    """Into the networks through one name, into the state under all."""
    for net in nets.values():
        if through == names[-1]:
            net[through][...] = value
        else:
            net[through].assign(value)
    state.update(dict.fromkeys(names, value))


def check_gradients(
    nets: dict[str, mp.Model], case: Case, slots: list[Slot], x: np.ndarray, rng: np.random.Generator
) -> None:
    """Against the slope of the loss in numpy, and against the sum over the uses in an untied twin."""
    state = {slot.name: nets[INSTALLED[0]][slot.name].numpy() for slot in slots}
    y = rng.normal(size=forward(case.spec, state, x).shape)
    twin, sums = twin_gradients(case.spec, slots, state, x, y)
    mine = groups([slot for slot in slots if not slot.buffer])
    direction = {names[0]: rng.normal(size=state[names[0]].shape) for names in mine}
    along = {name: direction[names[0]] for names in mine for name in names}
    loss, truth = mse(case.spec, state, x, y), slope(case.spec, state, along, x, y)
    scale = loss + max(float(np.max(np.abs(g))) for g in sums.values())
    for backend, net in nets.items():
        value, grads = net.value_and_grad(mp.losses.mse)(x, y)
        grads = {name: np.array(mp.to_numpy(g)) for name, g in grads.items()}
        assert list(grads) == [names[0] for names in mine]
        assert mp.to_numpy(value).item() == pytest.approx(loss, rel=1e-11)
        predicted = sum(float(np.sum(g * direction[name])) for name, g in grads.items())
        assert predicted == pytest.approx(truth, rel=1e-6, abs=1e-7 * scale), backend
        for name, g in grads.items():
            np.testing.assert_allclose(g, sums[name], rtol=0, atol=1e-10 * scale, err_msg=f"{backend} {name}")
        if "exact running statistics" not in registry.info(backend).load().unsupported:
            check_statistics(net, twin, slots, state)


def twin_gradients(
    spec: nn.Layer, slots: list[Slot], state: State, x: np.ndarray, y: np.ndarray
) -> tuple[mp.Model, State]:
    """A network of the same function in which nothing is shared, after a step, and its gradients added up by tie."""
    exact = [b for b in INSTALLED if "exact running statistics" not in registry.info(b).load().unsupported]
    twin = mp.build(untied(spec), x, backend=[*exact, *INSTALLED][0], dtype="float64")
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
        momentum = next(slot.layer.momentum for slot in buffers if slot.name == names[0])
        moved = state[names[0]]
        for name in names:
            batch = (twin[name].numpy() - (1 - momentum) * state[name]) / momentum
            moved = (1 - momentum) * moved + momentum * batch
        np.testing.assert_allclose(net[names[0]].numpy(), moved, rtol=1e-10, atol=1e-10, err_msg=names[0])


@examples(13)
@given(networks(), st.integers(0, 999))
@example(crossed_vectors(), 1)
@example(crossed_planes(), 2)
def test_a_random_network_is_the_same_in_every_backend(case: Case, seed: int) -> None:
    """Names, ties, shapes, kinds, start, output, writing through any name, gradients: all as the description says."""
    rng = np.random.default_rng(seed)
    slots, _ = walk(case.spec, case.shape[1:])
    x = rng.normal(size=case.shape)
    nets = {name: mp.build(case.spec, x, backend=name, dtype="float64", seed=seed) for name in INSTALLED}
    for net in nets.values():
        check_structure(net, slots)
        check_start(net, slots, seed)
    state: State = {}
    fresh = values(slots, rng)
    for names in groups(slots):
        write(nets, state, names, names[rng.integers(len(names))], fresh[names[0]])
    for net in nets.values():
        check_values(net, state)
        check_output(net, case.spec, state, x)
    slot = slots[rng.integers(len(slots))]
    names = next(names for names in groups(slots) if slot.name in names)
    write(nets, state, names, slot.name, values(slots, rng)[slot.name])
    for net in nets.values():
        check_values(net, state)
        check_output(net, case.spec, state, x)
    check_gradients(nets, case, slots, x, rng)


@examples(4)
@given(networks(), st.integers(0, 999), st.sampled_from(INSTALLED or ["none"]))
def test_a_seed_decides_the_start(case: Case, seed: int, backend: str) -> None:
    """Twice the same seed, twice the same numbers; another seed, others wherever numbers are drawn."""
    slots, _ = walk(case.spec, case.shape[1:])
    x = np.ones(case.shape)
    a, b, c = (mp.build(case.spec, x, backend=backend, dtype="float64", seed=s) for s in (seed, seed, seed + 1))
    check_values(b, {name: p.numpy() for name, p in a.parameters().items()})
    for slot in slots:
        if isinstance(slot.layer, (nn.Linear, nn.Conv)):
            assert not np.any(a[slot.name].numpy() == c[slot.name].numpy())


# -- sequences of operations


SHARED = nn.Linear(3)
MLP = nn.Sequential(
    nn.Linear(3), nn.Tanh(), SHARED, nn.Tanh(), SHARED, nn.Tanh(), nn.Linear(3), nn.Tanh(), nn.Linear(3)
)
LAYERS = ("0", "2", "4", "6", "8")
NAMES = [f"{layer}.{leaf}" for layer in LAYERS for leaf in ("weight", "bias")]
X, Y = np.random.default_rng(0).normal(size=(2, 5, 3))
RATE = 0.1


class Truth:
    """What a model is after any sequence of operations: names bound to numbered storages, and numpy."""

    def __init__(self, state: State) -> None:
        self.bound = {name: NAMES.index(self.place(name)) for name in NAMES}
        self.values = {self.bound[name]: value for name, value in state.items()}
        self.frozen: set[int] = set()
        self.grads: dict[int, np.ndarray] = {}

    @staticmethod
    def place(name: str) -> str:
        """Layer 4 is layer 2 once more: two names for one place."""
        return name.replace("4.", "2.")

    def groups(self) -> list[tuple[str, ...]]:
        found: dict[int, list[str]] = {}
        for name in NAMES:
            found.setdefault(self.bound[name], []).append(name)
        return [tuple(names) for names in found.values()]

    def matching(self, pattern: str) -> list[tuple[int, str]]:
        """The storages any of whose names match, and the first name of each."""
        chosen = [names for names in self.groups() if any(fnmatchcase(name, pattern) for name in names)]
        return [(self.bound[names[0]], names[0]) for names in chosen]

    def bind(self, name: str, storage: int) -> None:
        self.bound.update({other: storage for other in NAMES if self.place(other) == self.place(name)})

    def tie(self, target: str, source: str) -> None:
        to, of = self.bound[target], self.bound[source]
        if self.values[to].shape != self.values[of].shape:
            raise mp.errors.ShapeError
        self.bind(target, of)

    def untie(self, name: str) -> None:
        """The storage that is left keeps its gradient; the new one has not seen a backward yet."""
        places = {self.place(other) for other in NAMES if self.bound[other] == self.bound[name]}
        if len(places) == 1:
            raise mp.errors.TieError
        old, new = self.bound[name], 1 + max(self.values)
        self.values[new] = self.values[old].copy()
        self.frozen.update({new} & {new for _ in self.frozen & {old}})
        self.bind(name, new)

    def init(self, pattern: str, seed: int) -> None:
        for storage, name in self.matching(pattern):
            drawn = philox(seed, name).standard_normal(self.values[storage].shape, np.float32)
            self.values[storage] = (drawn * np.float32(0.5)).astype(np.float64)

    def assign(self, name: str, value: np.ndarray) -> None:
        self.values[self.bound[name]] = value.copy()

    def item(self, name: str, row: int, number: float) -> None:
        self.values[self.bound[name]] = self.values[self.bound[name]].copy()
        self.values[self.bound[name]][row] = number

    def add(self, name: str, number: float) -> None:
        self.values[self.bound[name]] = self.values[self.bound[name]] + number

    def freeze(self, pattern: str) -> None:
        """A frozen parameter has no gradient, and an optimizer that comes later must not follow an old one."""
        for storage, _ in self.matching(pattern):
            self.frozen.add(storage)
            self.grads.pop(storage, None)

    def unfreeze(self, pattern: str) -> None:
        self.frozen -= {storage for storage, _ in self.matching(pattern)}

    def activations(self) -> list[np.ndarray]:
        """The input, what comes out of each tanh, and the output."""
        found = [X]
        for layer in LAYERS:
            z = found[-1] @ self[f"{layer}.weight"].T + self[f"{layer}.bias"]
            found.append(z if layer == LAYERS[-1] else np.tanh(z))
        return found

    def backward(self) -> None:
        """Backpropagation of the mean squared error; each use adds to its storage."""
        if set(self.bound.values()) <= self.frozen:
            raise mp.errors.InvalidArgument
        seen = self.activations()
        grads = {storage: np.zeros_like(self.values[storage]) for storage in self.bound.values()}
        delta = 2 * (seen[-1] - Y) / Y.size
        for layer, before in zip(reversed(LAYERS), reversed(seen[:-1]), strict=True):
            grads[self.bound[f"{layer}.weight"]] += delta.T @ before
            grads[self.bound[f"{layer}.bias"]] += delta.sum(0)
            delta = delta @ self[f"{layer}.weight"] * (1 - before**2)
        self.grads.update({storage: g for storage, g in grads.items() if storage not in self.frozen})

    def step(self) -> None:
        """Gradient descent by the gradients there are."""
        moved = {storage for storage in self.bound.values() if storage in self.grads}
        if not moved:
            raise mp.errors.InvalidArgument
        for storage in moved:
            self.values[storage] = self.values[storage] - RATE * self.grads[storage]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[self.bound[name]]


class Actor:
    """The same operations on a network, with one compiled step and one optimizer for its whole life."""

    def __init__(self, backend: str) -> None:
        self.net = mp.build(MLP, X, backend=backend, dtype="float64", seed=5)
        self.tie, self.untie = self.net.tie, self.net.untie
        self.freeze, self.unfreeze = self.net.freeze, self.net.unfreeze
        self.gradient = self.net.value_and_grad(mp.losses.mse)
        self.step = self.net.optimizer("sgd", lr=RATE).step

    def init(self, pattern: str, seed: int) -> None:
        self.net.init(mp.init.normal(std=0.5), pattern, seed=seed)

    def assign(self, name: str, value: np.ndarray) -> None:
        self.net[name].assign(value)

    def item(self, name: str, row: int, number: float) -> None:
        self.net[name][row] = number

    def add(self, name: str, number: float) -> None:
        self.net[name][:] += number

    def backward(self) -> None:
        self.gradient(X, Y)


def outcome(act: Callable[..., Any], *arguments: Any) -> type | None:
    """The kind of error of ours that comes out; anything else is a failure."""
    try:
        act(*arguments)
    except mp.MultiparamError as error:
        return type(error)
    return None


def check_model(net: mp.Model, truth: Truth, where: str) -> None:
    """Everything one can see of the model is what the truth says."""
    assert list(net.parameters(aliases=True)) == NAMES, where
    assert [p.names for p in net] == truth.groups(), where
    assert net.ties() == [names for names in truth.groups() if len(names) > 1], where
    for names in truth.groups():
        p, storage = net[names[0]], truth.bound[names[0]]
        assert all(net[name] is p for name in names), where
        assert p.trainable is (storage not in truth.frozen), (where, names)
        assert near(p.numpy(), truth.values[storage]), (where, names)
        assert (p.grad is not None) is (storage in truth.grads), (where, names, "gradient")
        if storage in truth.grads:
            assert near(mp.to_numpy(p.grad), truth.grads[storage]), (where, names, "gradient")
    assert near(mp.to_numpy(net(X)), truth.activations()[-1]), (where, "output")


def near(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.max(np.abs(a - b)) <= 1e-9 * np.max(np.abs(b)))


NAME, PATTERN = st.sampled_from(NAMES), st.sampled_from(["*", "*.weight", "*.bias", "6.*", "4.*", *NAMES])
NUMBER = st.integers(-8, 8).map(lambda n: n / 8)
ALIKE = st.sampled_from(["weight", "bias"]).flatmap(
    lambda leaf: st.tuples(*[st.sampled_from([f"{layer}.{leaf}" for layer in LAYERS])] * 2)
)
OPERATIONS = st.one_of(
    ALIKE.map(lambda pair: ("tie", *pair)),
    st.tuples(st.just("tie"), NAME, NAME),
    st.tuples(st.just("untie"), NAME),
    st.tuples(st.just("init"), PATTERN, st.integers(0, 9)),
    st.tuples(st.just("assign"), NAME, st.integers(0, 9)),
    st.tuples(st.just("item"), NAME, st.integers(0, 2), NUMBER),
    st.tuples(st.just("add"), NAME, NUMBER),
    st.tuples(st.just("freeze"), PATTERN),
    st.tuples(st.just("unfreeze"), PATTERN),
    st.just(("backward",)),
    st.just(("step",)),
    st.just(("train",)),
)
TRAIN = ("train",)


def moves(operation: tuple[Any, ...], truth: Truth) -> Iterator[tuple[Any, ...]]:
    """An operation as calls: a training step is two, and an array is drawn from its seed."""
    if operation == TRAIN:
        yield from (("backward",), ("step",))
    elif operation[0] == "assign":
        _, name, seed = operation
        yield "assign", name, np.random.default_rng(seed).normal(0, 0.5, truth[name].shape)
    else:
        yield operation


def play(operations: list[tuple[Any, ...]]) -> None:
    """Do the operations to the truth and to a network in every backend, and look at all of them after each."""
    actors = {name: Actor(name) for name in INSTALLED}
    truth = Truth({name: actors[INSTALLED[0]].net[name].numpy() for name in NAMES})
    for operation in operations:
        for verb, *arguments in moves(operation, truth):
            expected = outcome(getattr(truth, verb), *arguments)
            for backend, actor in actors.items():
                assert outcome(getattr(actor, verb), *arguments) is expected, (backend, operation)
                check_model(actor.net, truth, f"{backend} after {operation}")


@examples(8)
@given(st.lists(OPERATIONS, min_size=6, max_size=10))
@example([("tie", "6.weight", "2.weight"), TRAIN, ("untie", "6.weight"), TRAIN, ("untie", "4.weight"), TRAIN])
@example(
    [("tie", "2.weight", "8.weight"), ("freeze", "8.weight"), TRAIN, ("untie", "4.weight"), ("unfreeze", "*"), TRAIN]
)
def test_any_sequence_of_operations_leaves_what_it_should(operations: list[tuple[Any, ...]]) -> None:
    """Names, ties, values, trainability, gradients and output after tie, untie, init, writing, freezing, training."""
    play(operations)


@pytest.mark.parametrize("scale", [1.0, 0.0], ids=["gradient", "gradient of zero"])
def test_unfreezing_what_is_not_frozen_keeps_its_gradient(backend: str, scale: float) -> None:
    actor = Actor(backend)
    actor.net["8.weight"][:] *= scale
    actor.backward()
    actor.step()
    before = np.array(mp.to_numpy(actor.net["0.weight"].grad))
    actor.unfreeze("*")
    np.testing.assert_array_equal(mp.to_numpy(actor.net["0.weight"].grad), before)


def test_a_gradient_from_before_a_freeze_is_gone(backend: str) -> None:
    """An optimizer's step without a new backward must not move by it."""
    actor = Actor(backend)
    actor.backward()
    actor.freeze("0.weight")
    actor.unfreeze("0.weight")
    before = actor.net["0.weight"].numpy()
    assert actor.net["0.weight"].grad is None
    actor.step()
    np.testing.assert_array_equal(actor.net["0.weight"].numpy(), before)


# -- names


def text(*path: str) -> str:
    """Segments joined with dots, a dot or a backslash inside a segment after a backslash."""
    return ".".join(re.sub(r"([.\\])", r"\\\1", segment) for segment in path)


def portable(name: str) -> bool:
    """PyTorch keeps children as attributes: no empty name, no dot, no name that a Sequential uses itself."""
    own = False
    if "torch" in INSTALLED:
        import torch

        own = hasattr(torch.nn.Sequential(), name)
    return bool(name) and "." not in name and not own


def refuses(spec: nn.Layer, backend: str, titles: tuple[str, ...]) -> bool:
    """Whether it cannot be built for a name; then an error of ours says which, and some framework is the reason."""
    try:
        mp.build(spec, np.ones((2, 3)), backend=backend, dtype="float64")
    except mp.MultiparamError as error:
        guilty = [title for title in titles if not portable(title)]
        assert any(repr(title) in str(error) for title in guilty), (backend, error)
        return True
    return False


def check_names(backend: str, titles: tuple[str, str, str, str]) -> None:
    """Every parameter and every layer is found by its name and its position, and is the one that computes there."""
    a, b, c, d = titles
    inner = nn.Sequential((c, nn.Linear(3)), (d, nn.Tanh()))
    spec = nn.Sequential((a, nn.Linear(3)), (b, inner), ("last", nn.Linear(3)))
    if refuses(spec, backend, titles):
        return
    x = np.ones((2, 3))
    net = mp.build(spec, x, backend=backend, dtype="float64")
    places = [(text(a), net[0]), (text(b, c), net[1][0]), ("last", net[2])]
    assert list(net.parameters()) == [f"{place}.{leaf}" for place, _ in places for leaf in ("weight", "bias")]
    for i, (place, group) in enumerate(places):
        assert list(net[place].parameters()) == list(group.parameters()) == ["weight", "bias"]
        assert net[place]["weight"] is group["weight"] is net[f"{place}.weight"]
        net[f"{place}.weight"].assign(np.full((3, 3), i / 8))
        net[f"{place}.bias"].assign(np.full(3, 1.0 + i))
    y = np.full((2, 3), math.tanh(3 / 8 + 2) * 6 / 8 + 3)
    np.testing.assert_allclose(mp.to_numpy(net(x)), y, rtol=1e-12)
    loss, _ = net.value_and_grad(mp.losses.mse)(x, x)
    assert mp.to_numpy(loss).item() == pytest.approx((y[0, 0] - 1) ** 2, rel=1e-12)


# fmt: off
ODD = ["a b", "a_b", "é", "è", "a/b", "tanh", "tanh_1", "flatten", "weight", "body", "forward", "a.b", "\\", "", "0"]
# fmt: on
TITLE = st.sampled_from(ODD) | st.text(max_size=4)
FOUR_TITLES = st.tuples(TITLE, TITLE, TITLE, TITLE).filter(lambda t: len({t[0], t[1], "last"}) == 3 and t[2] != t[3])


@examples(10)
@given(FOUR_TITLES)
@example(("a b", "c", "0", "1"))
def test_any_text_is_a_name(titles: tuple[str, str, str, str]) -> None:
    """Also with slashes, line ends, any alphabet, and names that look like a framework's own."""
    for backend in INSTALLED:
        check_names(backend, titles)


@pytest.mark.parametrize("pair", [("a b", "a_b"), ("é", "è")], ids=ascii)
def test_names_that_differ_in_a_space_or_an_accent_are_two(backend: str, pair: tuple[str, str]) -> None:
    check_names(backend, (*pair, "0", "1"))


def test_names_may_be_those_a_framework_makes_up(backend: str) -> None:
    """Keras numbers its operations through the whole process: tanh, tanh_1, ..."""
    if backend == "tensorflow":
        import keras

        keras.backend.clear_session()  # start the numbers again, so that they are among ours
    titles = [f"tanh_{i}" for i in range(40)]
    spec = nn.Sequential(*[(title, nn.Linear(3)) for title in titles], *[(f"f{i}", nn.Tanh()) for i in range(4)])
    net = mp.build(spec, np.ones((2, 3)), backend=backend)
    assert list(net.parameters())[::2] == [f"{title}.weight" for title in titles]


@pytest.mark.parametrize("name", ["", "a.b", "forward", "training"])
def test_a_name_that_a_framework_cannot_hold_is_refused_or_works(backend: str, name: str) -> None:
    check_names(backend, (name, "b", "0", "1"))


def test_a_nested_child_and_a_child_with_a_dot_are_two(backend: str) -> None:
    spec = nn.Sequential(("a", nn.Sequential(("b", nn.Linear(3)))), ("a.b", nn.Linear(3)))
    if not refuses(spec, backend, ("a.b",)):
        net = mp.build(spec, np.ones((2, 3)), backend=backend)
        assert list(net.parameters())[::2] == ["a.b.weight", "a\\.b.weight"]


@pytest.mark.parametrize("name", [0, None, "\ud800"], ids=ascii)
def test_a_name_that_is_no_text_is_an_error_of_ours(backend: str, name: Any) -> None:
    with pytest.raises(mp.MultiparamError, match="name"):
        mp.build(nn.Sequential((name, nn.Linear(3))), np.ones((2, 3)), backend=backend)
