"""Native code and our verbs change one model in random order; a plain numpy model says what it must hold.

Each place of a weight is bound to a numbered array. After each operation every weight is read natively, through each
wrapper there is, and through Parameters taken at any time before.
"""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.native_changes import FLAVOURS, NEEDS, Native

import multiparam as mp
from multiparam.testing.architectures import philox

NAMES = ("a", "b", "c")
X = np.arange(12, dtype="float32").reshape(4, 3) / 16 - 0.4
RATE = 0.125


class Truth:
    """Names bound to numbered arrays."""

    def __init__(self, values: list[np.ndarray]) -> None:
        self.bound = [0, 1, 2]
        self.values = dict(enumerate(values))
        self.frozen: set[int] = set()

    def put(self, i: int, value: np.ndarray) -> None:
        """An array of its own."""
        self.bound[i] = 1 + max(self.values)
        self.values[self.bound[i]] = value

    def weights(self) -> list[np.ndarray]:
        return [self.values[number] for number in self.bound]

    def gradients(self) -> dict[int, np.ndarray]:
        """Of the mean square of the output, by array."""
        a, b, c = (w.astype("float64") for w in self.weights())
        up = X @ a.T @ b.T @ c.T / 6
        hidden = [X.astype("float64"), X @ a.T, X @ a.T @ b.T]
        found: dict[int, np.ndarray] = {}
        for number, x, g in zip(self.bound, hidden, (up @ c @ b, up @ c, up), strict=True):
            found[number] = found.get(number, 0) + g.T @ x
        return found

    def step(self) -> None:
        for number, gradient in self.gradients().items():
            if number not in self.frozen:
                self.values[number] = self.values[number] - RATE * gradient


class Play:
    """One model, its wrappers, and the truth."""

    def __init__(self, native: Native, seed: int, folder: Path) -> None:
        self.native, self.random, self.folder = native, random.Random(seed), folder
        self.rng = np.random.default_rng(seed)
        values = [self.drawn() for _ in NAMES]
        self.model = native.make(values)
        self.truth = Truth(values)
        self.nets = [self.wrap()]
        self.held: list[tuple[int, Any]] = []
        self.steps: list[tuple[Any, Any]] = []
        self.log: list[str] = []

    def drawn(self) -> np.ndarray:
        return self.rng.normal(size=(3, 3)).astype("float32") / 2

    def wrap(self) -> mp.Model:
        return mp.wrap(self.model, X)

    def one(self) -> tuple[int, mp.Model]:
        return self.random.randrange(3), self.random.choice(self.nets)

    # -- native code

    def native_layer(self) -> None:
        i, value = self.random.randrange(3), self.drawn()
        self.native.put_layer(self.model, NAMES[i], value)
        self.truth.put(i, value)

    def native_parameter(self) -> None:
        i, value = self.random.randrange(3), self.drawn()
        self.native.put_parameter(self.model, NAMES[i], value)
        self.truth.put(i, value)

    def native_values(self) -> None:
        i, value = self.random.randrange(3), self.drawn()
        self.native.write(self.model, NAMES[i], value)
        self.truth.values[self.truth.bound[i]] = value

    def native_tie(self) -> None:
        i, j = self.random.sample(range(3), 2)
        self.native.tie(self.model, NAMES[i], NAMES[j])
        self.truth.bound[i] = self.truth.bound[j]

    def wrapper(self) -> None:
        self.nets = [*self.nets[-1:], self.wrap()]

    # -- our verbs

    def take(self) -> None:
        i, net = self.one()
        parameter = net[f"{NAMES[i]}.weight"]
        self.held.append((self.truth.bound.index(self.truth.bound[i]), parameter))  # tied names are one Parameter

    def assign(self) -> None:
        i, net = self.one()
        if self.held and self.random.random() < 0.5:
            i, parameter = self.random.choice(self.held)
        else:
            parameter = net[f"{NAMES[i]}.weight"]
        value = self.drawn()
        parameter.assign(value)
        self.truth.values[self.truth.bound[i]] = value

    def init(self) -> None:
        _, net = self.one()
        seed = self.random.randrange(9)
        net.init(mp.init.normal(std=0.5), seed=seed)
        for i in reversed(range(3)):  # the first name of an array is what it is drawn by
            value = philox(seed, f"{NAMES[i]}.weight").standard_normal((3, 3), np.float32) * np.float32(0.5)
            self.truth.values[self.truth.bound[i]] = value

    def tie(self) -> None:
        _, net = self.one()
        i, j = self.random.sample(range(3), 2)
        net.tie(f"{NAMES[i]}.weight", f"{NAMES[j]}.weight")
        self.truth.bound[i] = self.truth.bound[j]

    def untie(self) -> None:
        i, net = self.one()
        if self.truth.bound.count(self.truth.bound[i]) > 1:
            net.untie(f"{NAMES[i]}.weight")
            frozen = self.truth.bound[i] in self.truth.frozen
            self.truth.put(i, self.truth.values[self.truth.bound[i]])
            self.truth.frozen |= {self.truth.bound[i]} if frozen else set()

    def freeze(self) -> None:
        i, net = self.one()
        if self.truth.bound[i] in self.truth.frozen:
            net.unfreeze(f"{NAMES[i]}.weight")
            self.truth.frozen.discard(self.truth.bound[i])
        elif not set(self.truth.bound) <= {*self.truth.frozen, self.truth.bound[i]}:
            net.freeze(f"{NAMES[i]}.weight")
            self.truth.frozen.add(self.truth.bound[i])

    def file(self) -> None:
        _, net = self.one()
        path = self.folder / "w.safetensors"
        mp.save(net, path)
        kept = self.truth.weights()
        self.random.choice(self.nets).init(mp.init.constant(7))
        mp.load(self.random.choice(self.nets), path)
        for i in range(3):
            self.truth.values[self.truth.bound[i]] = kept[i]

    def step(self) -> None:
        if set(self.truth.bound) <= self.truth.frozen:
            return
        if not self.steps or self.random.random() < 0.3:
            _, net = self.one()
            self.steps.append((net.value_and_grad(mp.losses.mse), net.optimizer("sgd", lr=RATE)))
        step, optimizer = self.random.choice(self.steps)
        step(X, 0 * X)
        optimizer.step()
        self.truth.step()

    def check(self) -> None:
        """All that can be seen."""
        truth = self.truth.weights()
        groups = [tuple(f"{NAMES[i]}.weight" for i in range(3) if self.truth.bound[i] == n) for n in self.truth.bound]
        for i, value in enumerate(truth):
            same(self.native.read(self.model, NAMES[i]), value, self.log)
        for net in self.nets:
            for name, value in net.state_dict().items():
                same(value, truth["abc".index(name[0])], self.log)
            assert net.ties() == list(dict.fromkeys(group for group in groups if len(group) > 1)), self.log
            same(mp.to_numpy(net(X)), X @ truth[0].T @ truth[1].T @ truth[2].T, self.log)
        for i, parameter in self.held:
            same(parameter.numpy(), truth[i], self.log)

    def run(self, length: int) -> None:
        verbs = [self.native_layer, self.native_parameter, self.native_values, self.native_tie, self.wrapper]
        verbs += [self.take, self.assign, self.init, self.tie, self.untie, self.freeze, self.file, self.step]
        for _ in range(length):
            verb = self.random.choice([v for v in verbs if v.__name__ not in self.native.without])
            self.log.append(verb.__name__)
            verb()
            self.check()


def same(value: Any, truth: np.ndarray, log: list[str]) -> None:
    np.testing.assert_allclose(np.asarray(value), truth, rtol=1e-4, atol=1e-5, err_msg=" ".join(log))


def flavours() -> list[Any]:
    marks = ((name, [pytest.mark.needs(NEEDS[name]), pytest.mark.xdist_group(NEEDS[name])]) for name in FLAVOURS)
    return [pytest.param(name, marks=each) for name, each in marks]


def play(flavour: str, seeds: range, folder: Path, length: int = 10) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mp.MultiparamWarning)
        for seed in seeds:
            Play(FLAVOURS[flavour](), seed, folder).run(length)


@pytest.mark.parametrize("flavour", flavours())
def test_every_verb_acts_on_what_the_model_holds(flavour: str, tmp_path: Path, pytestconfig: Any) -> None:
    soak = pytestconfig.getoption("--hypothesis-profile", None) == "soak"
    play(flavour, range(10_000 if soak else 3), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("flavour", flavours())
def test_every_verb_acts_on_what_the_model_holds_in_more_sequences(flavour: str, tmp_path: Path) -> None:
    play(flavour, range(3, 15), tmp_path)
