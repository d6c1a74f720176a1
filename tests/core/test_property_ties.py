"""Random trees of layers with random ties, plain and transposed, in every installed backend at once.

The machinery is that of tests/test_property.py. The truth is :class:`Truth`: each place of a parameter bound to a
numbered storage and whether it shows it transposed, the network and its gradients written out in numpy. After each
operation everything that can be seen of every network is compared with it, and the networks with one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.flavours import INSTALLED

import multiparam as mp
from multiparam import nn
from multiparam.core.parameter import storage_of
from multiparam.testing.architectures import Slot, drawing, examples, philox, walk
from multiparam.testing.sequences import outcome

pytestmark = pytest.mark.skipif(not INSTALLED, reason="no backend is installed")

RATE = 0.125
TOKENS = np.array([0, 2, 1, 0])
EPS = {"float32": 1e-4, "float64": 1e-10}  # normwise, after some steps
Place = tuple[int, str]
Operation = tuple[Any, ...]


class Tree(NamedTuple):
    """An embedding, or none, and a tree of layers behind it; ``width`` is the size of what comes into that."""

    table: nn.Embedding | None
    body: nn.Sequential
    width: int
    dtype: str

    @property
    def spec(self) -> nn.Layer:
        return self.body if self.table is None else nn.Sequential(("table", self.table), ("body", self.body))

    @property
    def x(self) -> np.ndarray:
        return TOKENS if self.table is not None else np.random.default_rng(0).normal(size=(4, self.width))

    def slots(self) -> list[Slot]:
        if self.table is None:
            return walk(self.body, (self.width,))[0]
        shape = self.table.num_embeddings, self.table.embedding_dim
        return [
            Slot(("table",), (0,), self.table, "weight", shape),
            *walk(self.body, (self.width,), ("body",), (1,))[0],
        ]

    def __repr__(self) -> str:
        return f"{self.dtype} {self.table} {self.width} -> {drawing(self.body, {})}"


@st.composite
def trees(draw: Any) -> Tree:
    """Three to five linear layers of two or three features, some twice, some in a block of their own, tanh between."""
    sizes = st.sampled_from([2, 3])
    first = width = draw(sizes)
    table = draw(st.sampled_from([None, nn.Embedding(3, width)]))
    layers: list[nn.Layer] = []
    shared: list[nn.Linear] = []
    taken: dict[int, int] = {}
    for _ in range(draw(st.integers(3, 5))):
        again = [each for each in shared if taken[id(each)] == width]
        if again and draw(st.integers(0, 3)) == 0:
            linear = draw(st.sampled_from(again))
        else:
            linear = nn.Linear(draw(sizes), draw(st.booleans()))
            shared.append(linear)
            taken[id(linear)] = width
        width = linear.out_features
        layers.append(draw(st.sampled_from([linear, nn.Sequential(linear), nn.Sequential(("a b", linear), nn.Tanh())])))
        if draw(st.booleans()):
            layers.append(nn.Tanh())
    return Tree(table, nn.Sequential(*layers), first, draw(st.sampled_from(["float32", "float64"])))


def chain(layer: nn.Layer, path: tuple[str, ...] = ()) -> Iterator[tuple[nn.Layer, str]]:
    """What runs, in order, with its name."""
    if isinstance(layer, nn.Sequential):
        for name, child in zip(layer.names, layer.layers, strict=True):
            yield from chain(child, (*path, name))
    else:
        yield layer, ".".join(path)


class Truth:
    """What a model is after any sequence of operations."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.slots = tree.slots()
        self.names = [slot.name for slot in self.slots]
        self.place: dict[str, Place] = {slot.name: slot.key for slot in self.slots}
        shapes = {slot.key: slot.shape for slot in self.slots}
        self.bound = {key: (i, False) for i, key in enumerate(shapes)}
        draw = np.random.default_rng(7)
        self.values = {i: draw.normal(0, 0.6, shape).astype(tree.dtype) for i, shape in enumerate(shapes.values())}
        self.frozen: set[int] = set()
        self.x, self.steps = tree.x, list(chain(tree.spec))
        self.y = np.random.default_rng(1).normal(size=self.activations()[-1].shape)

    def look(self, name: str, values: dict[int, np.ndarray]) -> np.ndarray:
        storage, flip = self.bound[self.place[name]]
        return values[storage].T if flip else values[storage]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.look(name, self.values)

    def groups(self) -> list[tuple[str, ...]]:
        found: dict[int, list[str]] = {}
        for name in self.names:
            found.setdefault(self.bound[self.place[name]][0], []).append(name)
        return [tuple(names) for names in found.values()]

    def tie(self, target: str, source: str, transpose: bool) -> None:
        shape = self[source].shape
        if transpose and len(shape) != 2:
            raise mp.errors.TieError
        if self[target].shape != (shape[::-1] if transpose else shape):
            raise mp.errors.ShapeError
        storage, flip = self.bound[self.place[source]]
        to, now = self.bound[self.place[target]]
        if to == storage:
            if now != flip ^ transpose:
                raise mp.errors.TieError
            return
        self.bound[self.place[target]] = storage, flip ^ transpose

    def untie(self, name: str) -> None:
        storage, _ = self.bound[self.place[name]]
        if [bound for bound, _ in self.bound.values()].count(storage) == 1:
            raise mp.errors.TieError
        new = 1 + max(self.values)
        self.values[new] = self[name].copy()
        self.frozen |= {new} & {new for _ in self.frozen & {storage}}
        self.bound[self.place[name]] = new, False

    def matching(self, pattern: str) -> list[tuple[int, str]]:
        """The storages any of whose names match, and the first name of each."""
        chosen = [names for names in self.groups() if any(fnmatchcase(name, pattern) for name in names)]
        if not chosen:
            raise mp.errors.ParameterNotFound
        return [(self.bound[self.place[names[0]]][0], names[0]) for names in chosen]

    def init(self, pattern: str, seed: int) -> None:
        """Drawn for the first name, in its shape."""
        for _, name in self.matching(pattern):
            drawn = philox(seed, name).standard_normal(self[name].shape, np.float32) * np.float32(0.5)
            self.assign(name, drawn.astype(self.tree.dtype))

    def assign(self, name: str, value: np.ndarray) -> None:
        storage, flip = self.bound[self.place[name]]
        self.values[storage] = np.array(value.T if flip else value)

    def item(self, name: str, number: float) -> None:
        value = self[name].copy()
        value[-1] = number
        self.assign(name, value)

    def freeze(self, pattern: str) -> None:
        self.frozen |= {storage for storage, _ in self.matching(pattern)}

    def unfreeze(self, pattern: str) -> None:
        self.frozen -= {storage for storage, _ in self.matching(pattern)}

    def activations(self) -> list[np.ndarray]:
        """The input, and what comes out of each layer."""
        found = [self.x]
        for layer, name in self.steps:
            h = found[-1]
            if isinstance(layer, nn.Embedding):
                h = self[f"{name}.weight"].astype("float64")[h]
            elif isinstance(layer, nn.Linear):
                h = h @ self[f"{name}.weight"].astype("float64").T + (self[f"{name}.bias"] if layer.bias else 0)
            else:
                h = np.tanh(h)
            found.append(h)
        return found

    def gradients(self) -> tuple[float, dict[int, np.ndarray]]:
        """The mean squared error and the gradient of every storage: each use adds to it, turned where it is."""
        seen = self.activations()
        grads = {storage: np.zeros(self.values[storage].shape) for storage, _ in self.bound.values()}

        def add(name: str, gradient: np.ndarray) -> None:
            storage, flip = self.bound[self.place[name]]
            grads[storage] += gradient.T if flip else gradient

        delta = 2 * (seen[-1] - self.y) / self.y.size
        for (layer, name), before, after in reversed(list(zip(self.steps, seen, seen[1:], strict=False))):
            if isinstance(layer, nn.Tanh):
                delta = delta * (1 - after**2)
            elif isinstance(layer, nn.Embedding):
                table = np.zeros(self[f"{name}.weight"].shape)
                np.add.at(table, before, delta)
                add(f"{name}.weight", table)
            else:
                add(f"{name}.weight", delta.T @ before)
                if layer.bias:
                    add(f"{name}.bias", delta.sum(0))
                delta = delta @ self[f"{name}.weight"]
        return float(np.mean((seen[-1] - self.y) ** 2)), grads

    def train(self) -> None:
        """A step of gradient descent."""
        _, grads = self.gradients()
        live = set(grads) - self.frozen
        if not live:
            raise mp.errors.InvalidArgument
        for storage in live:
            moved = self.values[storage] - RATE * grads[storage]
            self.values[storage] = moved.astype(self.tree.dtype)


class Actor:
    """The same operations on a network, with one compiled step and one optimizer for its whole life."""

    def __init__(self, backend: str, truth: Truth) -> None:
        self.truth, tree = truth, truth.tree
        x = tree.x if tree.table is not None else tree.x.astype(tree.dtype)
        self.x, self.y = x, truth.y.astype(tree.dtype)
        self.net = mp.build(tree.spec, x, backend=backend, dtype=tree.dtype)
        for name in truth.names:
            self.net[name].assign(truth[name])
        self.untie, self.freeze, self.unfreeze = self.net.untie, self.net.freeze, self.net.unfreeze
        self.gradient = self.net.value_and_grad(mp.losses.mse)
        self.optimizer = self.net.optimizer("sgd", lr=RATE)

    def tie(self, target: str, source: str, transpose: bool) -> None:
        self.net.tie(target, source, transpose=transpose)

    def init(self, pattern: str, seed: int) -> None:
        self.net.init(mp.init.normal(std=0.5), pattern, seed=seed)

    def assign(self, name: str, value: np.ndarray) -> None:
        self.net[name].assign(value)

    def item(self, name: str, number: float) -> None:
        self.net[name][-1] = number

    def train(self) -> None:
        """A step, whose loss and gradients are what they should be before the numbers move."""
        loss, grads = self.gradient(self.x, self.y)
        truth, eps = self.truth, EPS[self.truth.tree.dtype]
        expected, sums = truth.gradients()
        assert abs(mp.to_numpy(loss).item() - expected) <= eps * max(1, expected)
        live = [names for names in truth.groups() if truth.bound[truth.place[names[0]]][0] not in truth.frozen]
        assert list(grads) == [names[0] for names in live]
        size = max(np.max(np.abs(g)) for g in sums.values())
        for names in live:
            for name in names:
                p, g = self.net[name], truth.look(name, sums)
                assert p.grad is not None and tuple(p.grad.shape) == p.shape == g.shape
                assert np.max(np.abs(mp.to_numpy(p.grad) - g)) <= eps * size, name
        self.optimizer.step()


def near(a: np.ndarray, b: np.ndarray, dtype: str) -> bool:
    return a.shape == b.shape and bool(np.max(np.abs(a - b)) <= EPS[dtype] * max(1.0, np.max(np.abs(b))))


def check(actor: Actor, where: str) -> None:
    """Each storage once, names consistent, aliases equal up to transpose, values as the truth says."""
    net, truth, dtype = actor.net, actor.truth, actor.truth.tree.dtype
    groups = truth.groups()
    assert list(net.parameters(aliases=True)) == truth.names, where
    assert list(net.parameters()) == list(net.state_dict()) == [names[0] for names in groups], where
    assert [p.names for p in net] == groups, where
    assert net.ties() == [names for names in groups if len(names) > 1], where
    storages = {id(p.native) for p in net} if net.backend != "jax" else {id(storage_of(p)) for p in net}
    assert len(storages) == len(groups), where
    views: dict[tuple[int, bool], str] = {}
    for name in truth.names:
        bound = truth.bound[truth.place[name]]
        p, first = net[name], net[views.setdefault(bound, name)]
        assert p is first and p.name == views[bound] and name in p.names, (where, name)
        assert p.trainable is (bound[0] not in truth.frozen), (where, name)
        assert p.shape == truth[name].shape and p.dtype == dtype, (where, name)
        assert near(p.numpy(), truth[name], dtype), (where, name)
        other = views.get((bound[0], not bound[1]))
        if other is not None:
            np.testing.assert_array_equal(p.numpy(), net[other].numpy().T, err_msg=f"{where} {name}")
            assert p is not net[other] and p.names == net[other].names, (where, name)
    assert near(mp.to_numpy(net(actor.x)), truth.activations()[-1], dtype), (where, "output")


def agree(actors: dict[str, Actor], where: str) -> None:
    """The networks with one another, normwise."""
    first, *others = actors.values()
    for other in others:
        for name in first.truth.names:
            assert near(other.net[name].numpy(), first.net[name].numpy(), first.truth.tree.dtype), (where, name)
        y, z = mp.to_numpy(first.net(first.x)), mp.to_numpy(other.net(other.x))
        assert near(z, y, first.truth.tree.dtype), (where, other.net.backend)


def arguments(operation: Operation, truth: Truth) -> tuple[str, list[Any]]:
    """An operation in terms of this tree: numbers choose names, and half the ties are made to fit."""
    verb, *numbers = operation
    names = truth.names
    name = names[numbers[0] % len(names)] if numbers else ""
    match verb:
        case "tie":
            _, other, transpose = numbers
            return verb, [name, names[other % len(names)], transpose]
        case "fit":
            _, other, transpose = numbers
            shape = truth[name].shape[::-1] if transpose and truth[name].ndim == 2 else truth[name].shape
            fitting = [each for each in names if truth[each].shape == shape] or names
            return "tie", [name, fitting[other % len(fitting)], transpose]
        case "assign":
            value = np.random.default_rng(numbers[1]).normal(0, 0.6, truth[name].shape)
            return verb, [name, value.astype(truth.tree.dtype)]
        case "untie":
            return verb, [name]
        case "train":
            return verb, []
        case "item":
            return verb, [name, numbers[1] / 8]
    pattern = [name, "*", "*.weight", name.rpartition(".")[0] + ".*" if "." in name else "*"][numbers[1] % 4]
    return verb, [pattern, *numbers[2:]]


N = st.integers(0, 59)
MOVES = [
    st.tuples(st.just("fit"), N, N, st.just(True)),
    st.tuples(st.just("fit"), N, N, st.just(True)),
    st.tuples(st.just("fit"), N, N, st.just(False)),
    st.tuples(st.just("tie"), N, N, st.booleans()),
    st.tuples(st.just("untie"), N),
    st.tuples(st.just("untie"), N),
    st.tuples(st.just("init"), N, N, st.integers(0, 9)),
    st.tuples(st.just("assign"), N, N),
    st.tuples(st.just("item"), N, st.integers(-8, 8)),
    st.tuples(st.sampled_from(["freeze", "unfreeze"]), N, N),
]
TRAIN: Operation = ("train",)
OPERATIONS = st.one_of(*MOVES, st.just(TRAIN), st.just(TRAIN))


def play(tree: Tree, operations: list[Operation]) -> None:
    truth = Truth(tree)
    actors = {name: Actor(name, truth) for name in INSTALLED}
    for actor in actors.values():
        check(actor, f"{actor.net.backend} at first")
    for operation in operations:
        verb, given = arguments(operation, truth)
        where = f"after {verb} {given}"
        results = {name: outcome(getattr(actor, verb), *given) for name, actor in actors.items()}
        expected = outcome(getattr(truth, verb), *given)
        assert results == dict.fromkeys(actors, expected), where
        for name, actor in actors.items():
            check(actor, f"{name} {where}")
        agree(actors, where)


SQUARES = nn.Sequential(nn.Linear(3), nn.Tanh(), nn.Linear(3), nn.Tanh(), nn.Linear(3))
TWICE = nn.Linear(2)
DEEP = nn.Sequential(nn.Sequential(TWICE), nn.Tanh(), nn.Linear(3), nn.Sequential(nn.Tanh(), TWICE))


@examples(5)
@given(trees(), st.lists(OPERATIONS, min_size=6, max_size=9))
@example(
    Tree(nn.Embedding(3, 3), SQUARES, 3, "float64"),  # names: table.weight, then weight and bias of three layers
    [("tie", 1, 0, True), ("tie", 3, 1, True), ("train",), ("tie", 0, 5, False), ("tie", 1, 0, False), ("untie", 3)],
)
@example(
    Tree(None, DEEP, 3, "float32"),
    [
        ("tie", 2, 0, True),
        ("freeze", 4, 0),
        ("train",),
        ("untie", 4),
        ("unfreeze", 0, 1),
        ("tie", 4, 2, True),
        ("train",),
    ],
)
def test_any_sequence_of_ties_leaves_what_it_should(tree: Tree, operations: list[Operation]) -> None:
    """Names, storages, views, values, trainability, output, loss and gradients after every operation."""
    play(tree, operations)


@examples(20)
@given(trees(), st.lists(st.one_of(*MOVES), min_size=8, max_size=14))
def test_any_sequence_of_ties_without_training(tree: Tree, operations: list[Operation]) -> None:
    """Longer, since nothing need be compiled, and in one backend."""
    truth = Truth(tree)
    actor = Actor(INSTALLED[0], truth)
    for operation in operations:
        verb, given = arguments(operation, truth)
        assert outcome(getattr(actor, verb), *given) is outcome(getattr(truth, verb), *given), (verb, given)
        check(actor, f"after {verb} {given}")
