"""Random sequences of operations, a network to do them to, and the truth: what each leaves behind, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from hypothesis import strategies as st

import multiparam as mp
from multiparam import nn

from .architectures import State, philox

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
        by_storage: dict[int, list[str]] = {}
        for name in NAMES:
            by_storage.setdefault(self.bound[name], []).append(name)
        return [tuple(names) for names in by_storage.values()]

    def matching(self, pattern: str) -> list[tuple[int, str]]:
        """The storages any of whose names match, and the first name of each."""
        chosen = [names for names in self.groups() if any(fnmatchcase(name, pattern) for name in names)]
        return [(self.bound[names[0]], names[0]) for names in chosen]

    def bind(self, name: str, storage: int) -> None:
        self.bound.update({alias: storage for alias in NAMES if self.place(alias) == self.place(name)})

    def tie(self, target: str, source: str) -> None:
        to, of = self.bound[target], self.bound[source]
        if self.values[to].shape != self.values[of].shape:
            raise mp.errors.ShapeError
        self.bind(target, of)

    def untie(self, name: str) -> None:
        """The gradient, that of all uses together, is nobody's when they part."""
        places = {self.place(alias) for alias in NAMES if self.bound[alias] == self.bound[name]}
        if len(places) == 1:
            raise mp.errors.TieError
        old, new = self.bound[name], 1 + max(self.values)
        self.values[new] = self.values[old].copy()
        self.frozen.update({new} & {new for _ in self.frozen & {old}})
        self.grads.pop(old, None)
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
        outputs = [X]
        for layer in LAYERS:
            z = outputs[-1] @ self[f"{layer}.weight"].T + self[f"{layer}.bias"]
            outputs.append(z if layer == LAYERS[-1] else np.tanh(z))
        return outputs

    def backward(self) -> None:
        """Backpropagation of the mean squared error; each use adds to its storage."""
        if set(self.bound.values()) <= self.frozen:
            raise mp.errors.InvalidArgument
        outputs = self.activations()
        grads = {storage: np.zeros_like(self.values[storage]) for storage in self.bound.values()}
        delta = 2 * (outputs[-1] - Y) / Y.size
        for layer, before in zip(reversed(LAYERS), reversed(outputs[:-1]), strict=True):
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


def play(backend: str, operations: list[tuple[Any, ...]]) -> None:
    """Do the operations to the truth and to a network, and look at all of it after each."""
    actor = Actor(backend)
    truth = Truth({name: actor.net[name].numpy() for name in NAMES})
    for operation in operations:
        for verb, *arguments in moves(operation, truth):
            expected = outcome(getattr(truth, verb), *arguments)
            assert outcome(getattr(actor, verb), *arguments) is expected, (backend, operation)
            check_model(actor.net, truth, f"{backend} after {operation}")
