"""Random architectures, and a walk over a description: which parameters there are, and which share a storage."""

from __future__ import annotations

import math
from dataclasses import replace
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from .. import nn

Shape = tuple[int, ...]
State = dict[str, np.ndarray]

# No shrinking: the examples are small, and each may cost a framework a compilation.
SHORT = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def examples(count: int) -> settings:
    """This many examples, always the same; or what ``--hypothesis-profile=soak`` says."""
    if settings.get_current_profile_name() == "soak":
        return settings.get_profile("soak")
    return settings(SHORT, max_examples=count)


def philox(seed: int, name: str) -> np.random.Generator:
    """The documented source of initial values: Philox keyed by 128 bits of (seed, canonical name)."""
    key = blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


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
            arrays = {"weight": (layer.out_features, shape[-1]), "bias": (layer.out_features,)}
        case nn.Conv():
            kernel = nn.sizes(layer.kernel_size, len(shape) - 1)
            arrays = {"weight": (layer.out_channels, shape[0], *kernel), "bias": (layer.out_channels,)}
        case nn.LayerNorm():
            arrays = dict.fromkeys(("weight", "bias"), shape[-1:])
        case nn.BatchNorm():
            arrays = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), shape[:1])
        case _:
            arrays = {}
    return arrays if getattr(layer, "bias", True) else {"weight": arrays["weight"]}


def walk(
    layer: nn.Layer, shape: Shape, path: tuple[str, ...] = (), at: tuple[int, ...] = ()
) -> tuple[list[Slot], Shape]:
    """Every use of every array in order, and the shape of the output."""
    slots = [Slot(path, at, layer, leaf, size) for leaf, size in leaves(layer, shape).items()]
    for position, (name, child) in enumerate(children(layer)):
        below, shape = walk(child, shape, (*path, name), (*at, position))
        slots += below
    match layer:
        case nn.Linear():
            shape = (*shape[:-1], layer.out_features)
        case nn.Flatten():
            shape = (math.prod(shape),)
    return slots, shape


def children(layer: nn.Layer) -> list[tuple[str, nn.Layer]]:
    if isinstance(layer, nn.Residual):
        return [("body", layer.body)]
    return list(zip(layer.names, layer.layers, strict=True)) if isinstance(layer, nn.Container) else []


def uses(layer: nn.Layer) -> int:
    """How many layers run, containers not counted."""
    below = children(layer)
    return sum(uses(child) for _, child in below) if below else 1


def groups(slots: list[Slot]) -> list[tuple[str, ...]]:
    """The names of each storage, in definition order."""
    by_key: dict[Any, list[str]] = {}
    for slot in slots:
        by_key.setdefault(slot.key, []).append(slot.name)
    return [tuple(names) for names in by_key.values()]


def places(slots: list[Slot]) -> list[tuple[str, ...]]:
    """The names of each layer, in definition order."""
    by_layer: dict[int, dict[str, None]] = {}
    for slot in slots:
        by_layer.setdefault(id(slot.layer), {})[".".join(slot.path)] = None
    return [tuple(names) for names in by_layer.values()]


def untied(layer: Any) -> nn.Layer:
    """The same architecture with an object of its own at each place."""
    if isinstance(layer, nn.Sequential):
        return nn.Sequential(*[(name, untied(child)) for name, child in children(layer)])
    again: nn.Layer = nn.Residual(untied(layer.body)) if isinstance(layer, nn.Residual) else replace(layer)
    return again


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
        layer = draw(st.sampled_from(known))
        left[0] -= uses(layer)
        return layer
    if choice == "sequence":
        layer = new_sequence(draw, leaf, pool, left, depth)
    elif choice == "residual":
        layer = nn.Residual(new_layer(draw, leaf, pool, left, depth + 1))
    else:
        layer = draw(leaf)
        left[0] -= 1
    pool.append(layer)
    return layer


def new_sequence(draw: Any, leaf: Leaf, pool: list[nn.Layer], left: list[int], depth: int) -> nn.Layer:
    """A Sequential of up to five children, named by position or by random titles."""
    layers = [new_layer(draw, leaf, pool, left, depth + 1)]
    for _ in range(draw(st.sampled_from([2, 3, 4] if depth == 0 else [1, 2, 0]))):
        if left[0] > 0:
            layers.append(new_layer(draw, leaf, pool, left, depth + 1))
    titles = draw(st.none() | st.lists(TITLES, min_size=len(layers), max_size=len(layers), unique=True))
    return nn.Sequential(*layers) if titles is None else nn.Sequential(*zip(titles, layers, strict=True))


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


def values(slots: list[Slot], rng: np.random.Generator) -> State:
    """Random numbers for every storage under all its names; variances are positive."""
    storage: dict[Any, np.ndarray] = {}
    for slot in slots:
        drawn = rng.uniform(0.5, 2, slot.shape) if slot.leaf == "running_var" else rng.normal(0, 0.8, slot.shape)
        storage.setdefault(slot.key, drawn)
    return {slot.name: storage[slot.key] for slot in slots}
