"""Ties made after construction, plain and transposed: one storage seen in two orientations, in every flavour.

One network stands for both uses: an embedding whose table is the output layer's weight, and an autoencoder whose
decoder's weight is its encoder's transposed. By its sizes every weight is (5, 3) or (3, 5), so any two can be tied.
The truth is :class:`Truth`, names bound to numbered storages, with the network written out in numpy.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.flavours import in_framework
from support.native import multiparam_x64

import multiparam as mp
from multiparam import nn
from multiparam.core.group import store_of

State = dict[str, np.ndarray]
Tie = tuple[str, str, bool]  # target, source, transpose

RECTANGLE, SQUARE = (5, 3), (4, 4)  # (rows, columns) of the embedding's table
rng = np.random.default_rng(1)
TOKENS = np.array([0, 3, 1, 0, 2, 3])
TARGETS = {rows: rng.normal(size=(len(TOKENS), rows)) for rows, _ in (RECTANGLE, SQUARE)}


# -- the truth


def forward(p: State, x: np.ndarray = TOKENS) -> tuple[np.ndarray, ...]:
    e = p["embed.weight"][x]
    h = np.tanh(e @ p["enc.weight"].T + p["enc.bias"])
    r = h @ p["dec.weight"].T + p["dec.bias"]
    y = r @ p["head.weight"].T + p["head.bias"]
    z = np.tanh(r @ p["head2.weight"].T + p["head2.bias"]) if "head2.weight" in p else 0 * y
    return e, h, r, z, y + z


def backward(p: State, t: np.ndarray, x: np.ndarray = TOKENS) -> tuple[float, State]:
    """The mean squared error, and its gradient by each name as if nothing were tied."""
    e, h, r, z, out = forward(p, x)
    d = 2 * (out - t) / t.size
    g = {"head.weight": d.T @ r, "head.bias": d.sum(0)}
    dr = d @ p["head.weight"]
    if "head2.weight" in p:
        dz = d * (1 - z**2)
        g |= {"head2.weight": dz.T @ r, "head2.bias": dz.sum(0)}
        dr = dr + dz @ p["head2.weight"]
    g |= {"dec.weight": dr.T @ h, "dec.bias": dr.sum(0)}
    da = dr @ p["dec.weight"] * (1 - h**2)
    g |= {"enc.weight": da.T @ e, "enc.bias": da.sum(0)}
    g["embed.weight"] = np.zeros_like(p["embed.weight"])
    np.add.at(g["embed.weight"], x, da @ p["enc.weight"])
    return float(np.mean((out - t) ** 2)), g


class Truth:
    """Each name a storage and whether it shows it transposed."""

    def __init__(self, state: State) -> None:
        self.names = list(state)
        self.store = {i: state[name].copy() for i, name in enumerate(self.names)}
        self.bound = {name: (i, False) for i, name in enumerate(self.names)}

    def __getitem__(self, name: str) -> np.ndarray:
        storage, flip = self.bound[name]
        return self.store[storage].T if flip else self.store[storage]

    def __setitem__(self, name: str, value: np.ndarray) -> None:
        storage, flip = self.bound[name]
        self.store[storage] = np.array(value.T if flip else value)

    def tie(self, target: str, source: str, transpose: bool = False) -> None:
        storage, flip = self.bound[source]
        self.bound[target] = storage, flip ^ transpose

    def untie(self, name: str) -> None:
        self.store[new := 1 + max(self.store)] = self[name].copy()
        self.bound[name] = new, False

    def groups(self) -> list[tuple[str, ...]]:
        found: dict[int, list[str]] = {}
        for name in self.names:
            found.setdefault(self.bound[name][0], []).append(name)
        return [tuple(names) for names in found.values()]

    def state(self) -> State:
        return {name: self[name] for name in self.names}

    def gradients(self, t: np.ndarray) -> tuple[float, State]:
        """By each name, in its orientation: the sum over the storage's uses."""
        loss, uses = backward(self.state(), t)
        sums = {storage: np.zeros_like(self.store[storage]) for storage, _ in self.bound.values()}
        for name, (storage, flip) in self.bound.items():
            sums[storage] += uses[name].T if flip else uses[name]
        return loss, {name: sums[s].T if flip else sums[s] for name, (s, flip) in self.bound.items()}


def start(rows: int, columns: int, head2: bool) -> State:
    draw = np.random.default_rng(2)
    shapes = {"embed.weight": (rows, columns)}
    sizes = {"enc": (rows, columns), "dec": (columns, rows), "head": (rows, columns), "head2": (rows, columns)}
    for name, (out, inputs) in sizes.items():
        if head2 or name != "head2":
            shapes |= {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}
    return {name: draw.normal(0, 0.7, shape) for name, shape in shapes.items()}


# -- the network in every flavour, written as its users write it


class Subject:
    """A model of one flavour, its layers by the truth's names."""

    leaves = {"weight": "weight"}
    turned = False  # whether a linear layer's native weight is (in, out)

    def __init__(self, rows: int, columns: int) -> None:
        self.sizes = rows, columns
        self.t = TARGETS[rows]
        self.at: dict[str, str] = {}
        self.net = self.make(rows, columns)
        head2 = any(name.startswith("head2.") for name in self.net.parameters())
        self.truth = Truth(start(rows, columns, head2))
        for name in self.truth.names:
            self[name].assign(self.truth[name])

    def make(self, rows: int, columns: int) -> mp.Model:
        raise NotImplementedError

    def name(self, short: str) -> str:
        layer, dot, leaf = short.partition(".")
        return self.at.get(layer, layer) + dot + leaf

    def __getitem__(self, short: str) -> mp.Parameter:
        return self.net[self.name(short)]

    def tie(self, target: str, source: str, transpose: bool = False) -> mp.Parameter:
        p = self.net.tie(self.name(target), self.name(source), transpose=transpose)
        self.truth.tie(target, source, transpose)
        assert p is self[target]
        return p

    def untie(self, name: str) -> None:
        assert self.net.untie(self.name(name)) is self[name]
        self.truth.untie(name)

    def named(self, groups: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        return [tuple(map(self.name, names)) for names in groups]

    def layer(self, name: str) -> Any:
        """The native layer."""
        return getattr(self.net.native, name)

    def held(self, name: str) -> Any:
        """What the native layer holds as its weight."""
        return getattr(self.layer(name), self.leaf(name))

    def leaf(self, name: str) -> str:
        return "weight"

    def seen(self, name: str) -> np.ndarray:
        """The weight that the native layer computes with, in canonical layout."""
        array = self.read(self.held(name))
        return array.T if self.turned and name != "embed" else array

    def read(self, held: Any) -> np.ndarray:
        return np.array(mp.to_numpy(held))

    def poke(self, name: str, value: np.ndarray) -> None:
        """Write natively to the weight of a layer that is not a transposed view."""
        raise NotImplementedError

    def output(self) -> np.ndarray:
        """The native model called natively."""
        raise NotImplementedError

    def count(self) -> int:
        """How many arrays the framework trains."""
        raise NotImplementedError

    def plain(self, name: str) -> None:
        """Fail unless a layer is as the framework makes it."""
        raise NotImplementedError

    def native_gradients(self, ties: list[Tie], state: State) -> tuple[float, State]:
        """Loss and gradients by native code over leaves: a tied name has none, it is computed from its source's."""
        raise NotImplementedError

    def check(self) -> None:
        """All that can be seen of the model is what the truth says, to the bit."""
        net, truth = self.net, self.truth
        groups = self.named(truth.groups())
        names = [self.name(name) for name in truth.names]
        assert list(net.parameters(aliases=True)) == names
        assert list(net.parameters()) == [group[0] for group in groups]
        assert [p.names for p in net.parameters().values()] == groups
        assert [p.names for p in net] == groups and len(net) == len(groups)
        assert net.ties() == [group for group in groups if len(group) > 1]
        by_view: dict[tuple[int, bool], str] = {}
        for short in truth.names:
            first, p, value = by_view.setdefault(truth.bound[short], short), self[short], truth[short]
            assert p is self[first] and p.name == self.name(first) and self.name(short) in p.names
            assert p.shape == value.shape and p.size == value.size and p.dtype == "float64"
            np.testing.assert_array_equal(p.numpy(), value, err_msg=short)
            np.testing.assert_array_equal(mp.to_numpy(p.value), value, err_msg=short)
            assert tuple(p.value.shape) == value.shape
            assert net.parameters(aliases=True)[self.name(short)] is p
            if short.endswith(".weight"):
                np.testing.assert_array_equal(self.seen(short.removesuffix(".weight")), value, err_msg=short)
        assert len({id(self[name]) for name in truth.names}) == len(by_view)
        state = net.state_dict()
        assert list(state) == [group[0] for group in groups]
        for group, short in zip(groups, [each[0] for each in truth.groups()], strict=True):
            np.testing.assert_array_equal(state[group[0]], truth[short])
        for ours in (mp.to_numpy(net(TOKENS)), self.output()):
            near(ours, forward(truth.state())[-1])
        assert self.count() == len(groups)
        assert len(net.layers()) == len({name.partition(".")[0] for name in truth.names})

    def step(self) -> tuple[float, Any]:
        loss, grads = self.net.value_and_grad(mp.losses.mse)(TOKENS, self.t)
        return mp.to_numpy(loss).item(), grads


def near(ours: Any, truth: Any, eps: float = 1e-12) -> None:
    """Normwise."""
    ours, truth = np.asarray(mp.to_numpy(ours)), np.asarray(truth)
    assert ours.shape == truth.shape
    error, size = float(np.max(np.abs(ours - truth))), float(np.max(np.abs(truth)))
    assert error <= eps * size


def formula(p: Any, dot: Any, turn: Any, tanh: Any, rows: Any) -> Any:
    """The network in a framework's own operations."""
    h = tanh(dot(rows, turn(p["enc.weight"])) + p["enc.bias"])
    r = dot(h, turn(p["dec.weight"])) + p["dec.bias"]
    y = dot(r, turn(p["head.weight"])) + p["head.bias"]
    return y + tanh(dot(r, turn(p["head2.weight"])) + p["head2.bias"]) if "head2.weight" in p else y


def leaves_and_all(state: State, ties: list[Tie], make: Any, turn: Any) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """Native leaves for the names that no tie makes, and how all names come of them."""
    targets = {target for target, _, _ in ties}
    leaves = {name: make(value) for name, value in state.items() if name not in targets}

    def everything(leaves: Any) -> Any:
        p = dict(leaves)
        for target, source, transpose in ties:
            p[target] = turn(p[source]) if transpose else p[source]
        return p

    return leaves, everything


class Torch(Subject):
    def make(self, rows: int, columns: int) -> mp.Model:
        import torch
        from torch import nn as tnn

        class Net(tnn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed, self.enc = tnn.Embedding(rows, columns), tnn.Linear(columns, rows)
                self.dec, self.head = tnn.Linear(rows, columns), tnn.Linear(columns, rows)
                self.head2 = tnn.Linear(columns, rows)

            def forward(self, x: Any) -> Any:
                r = self.dec(torch.tanh(self.enc(self.embed(x))))
                return self.head(r) + torch.tanh(self.head2(r))

        return mp.wrap(Net().double())

    def output(self) -> np.ndarray:
        import torch

        return np.array(self.net.native(torch.tensor(TOKENS)).detach())

    def read(self, held: Any) -> np.ndarray:
        return np.array(held.detach())

    def poke(self, name: str, value: np.ndarray) -> None:
        import torch

        with torch.no_grad():
            self.held(name).copy_(torch.tensor(value))

    def count(self) -> int:
        return len(list(self.net.native.parameters()))

    def plain(self, name: str) -> None:
        from torch import nn as tnn

        layer = self.layer(name)
        assert type(layer) is (tnn.Embedding if name == "embed" else tnn.Linear)
        assert "parametrizations" not in layer._modules
        assert list(layer._parameters) == (["weight"] if name == "embed" else ["weight", "bias"])
        assert type(layer.weight) is tnn.Parameter and layer.weight.is_leaf

    def native_gradients(self, ties: list[Tie], state: State) -> tuple[float, State]:
        import torch

        leaves, everything = leaves_and_all(state, ties, lambda v: torch.tensor(v, requires_grad=True), lambda a: a.T)
        p = everything(leaves)
        rows = p["embed.weight"][torch.tensor(TOKENS)]
        loss = ((formula(p, torch.matmul, lambda a: a.T, torch.tanh, rows) - torch.tensor(self.t)) ** 2).mean()
        loss.backward()
        return float(loss), {name: leaf.grad.numpy() for name, leaf in leaves.items()}


class TorchSequential(Torch):
    def make(self, rows: int, columns: int) -> mp.Model:
        from torch import nn as tnn

        self.at = {"embed": "0", "enc": "1", "dec": "3", "head": "4"}
        layers = tnn.Embedding(rows, columns), tnn.Linear(columns, rows), tnn.Tanh(), tnn.Linear(rows, columns)
        return mp.wrap(tnn.Sequential(*layers, tnn.Linear(columns, rows)).double())

    def layer(self, name: str) -> Any:
        return self.net.native[int(self.at[name])]


class Gluon(Subject):
    hybrid = True

    def make(self, rows: int, columns: int) -> mp.Model:
        from multiparam_mxnet.load import load

        self.mx = mx = load()
        gnn = mx.gluon.nn

        class Net(gnn.HybridBlock):
            def __init__(self) -> None:
                super().__init__()
                with self.name_scope():
                    self.embed, self.enc = gnn.Embedding(rows, columns), gnn.Dense(rows, in_units=columns)
                    self.dec, self.head = gnn.Dense(columns, in_units=rows), gnn.Dense(rows, in_units=columns)
                    self.head2 = gnn.Dense(rows, in_units=columns)

            def hybrid_forward(self, F: Any, x: Any) -> Any:
                tanh = F.np.tanh if mx.util.is_np_array() else F.tanh
                r = self.dec(tanh(self.enc(self.embed(x))))
                return self.head(r) + tanh(self.head2(r))

        return self.started(Net())

    def started(self, native: Any) -> mp.Model:
        native.cast("float64")
        native.initialize(self.mx.init.Zero())
        if self.hybrid:
            native.hybridize()
        native(self.array(TOKENS, "int32"))  # a graph is compiled before any tie
        return mp.wrap(native)

    def array(self, x: np.ndarray, dtype: str = "float64") -> Any:
        return (self.mx.np if self.mx.util.is_np_array() else self.mx.nd).array(x, dtype=dtype)

    def output(self) -> np.ndarray:
        return self.net.native(self.array(TOKENS, "int32")).asnumpy()

    def read(self, held: Any) -> np.ndarray:
        return held.data().asnumpy()

    def poke(self, name: str, value: np.ndarray) -> None:
        self.held(name).set_data(self.array(value))

    def count(self) -> int:
        return len({id(p) for p in self.net.native.collect_params().values()})

    def plain(self, name: str) -> None:
        held = self.held(name)
        assert type(held) is self.mx.gluon.Parameter
        layer = self.layer(name)
        assert layer._reg_params["weight"] is held and any(p is held for p in layer.params.values())

    def native_gradients(self, ties: list[Tie], state: State) -> tuple[float, State]:
        mx, np_arrays = self.mx, self.mx.util.is_np_array()
        ops = mx.np if np_arrays else mx.nd
        leaves, everything = leaves_and_all(state, ties, self.array, lambda a: a.T)
        for leaf in leaves.values():
            leaf.attach_grad()
        with mx.autograd.record():
            p = everything(leaves)
            rows = ops.take(p["embed.weight"], self.array(TOKENS, "int32"), axis=0)
            loss = ((formula(p, ops.dot, lambda a: a.T, ops.tanh, rows) - self.array(self.t)) ** 2).mean()
        loss.backward()
        return loss.asnumpy().item(), {name: leaf.grad.asnumpy() for name, leaf in leaves.items()}


class GluonEager(Gluon):
    hybrid = False


class GluonSequential(Gluon):
    def make(self, rows: int, columns: int) -> mp.Model:
        from multiparam_mxnet.load import load

        self.mx = load()
        gnn = self.mx.gluon.nn
        self.at = {"embed": "0", "enc": "1", "dec": "2", "head": "3"}
        native = gnn.HybridSequential()
        native.add(gnn.Embedding(rows, columns), gnn.Dense(rows, activation="tanh", in_units=columns))
        native.add(gnn.Dense(columns, in_units=rows), gnn.Dense(rows, in_units=columns))
        return self.started(native)

    def layer(self, name: str) -> Any:
        return self.net.native[int(self.at[name])]


class Jax(Subject):
    turned = True

    def leaf(self, name: str) -> str:
        return "embedding" if name == "embed" else "kernel"

    def native_gradients(self, ties: list[Tie], state: State) -> tuple[float, State]:
        import jax
        import jax.numpy as jnp

        with multiparam_x64():
            leaves, everything = leaves_and_all(state, ties, jnp.asarray, lambda a: a.T)

            def loss(leaves: Any) -> Any:
                p = everything(leaves)
                rows = p["embed.weight"][TOKENS]
                return ((formula(p, jnp.dot, lambda a: a.T, jnp.tanh, rows) - self.t) ** 2).mean()

            value, grads = jax.value_and_grad(loss)(leaves)
            return float(value), {name: np.asarray(g) for name, g in grads.items()}


class LinenSetup(Jax):
    scopes = {name: name for name in ("embed", "enc", "dec", "head", "head2")}

    def module(self, rows: int, columns: int) -> Any:
        import jax.numpy as jnp
        from flax import linen

        class Net(linen.Module):
            def setup(self) -> None:
                self.embed, self.enc = linen.Embed(rows, columns), linen.Dense(rows)
                self.dec, self.head, self.head2 = linen.Dense(columns), linen.Dense(rows), linen.Dense(rows)

            def __call__(self, x: Any) -> Any:
                r = self.dec(jnp.tanh(self.enc(self.embed(x))))
                return self.head(r) + jnp.tanh(self.head2(r))

        return Net()

    def make(self, rows: int, columns: int) -> mp.Model:
        state = start(rows, columns, "head2" in self.scopes)
        tree: dict[str, Any] = {}
        for name, value in state.items():
            layer, leaf = name.split(".")
            leaf = self.leaf(layer) if leaf == "weight" else leaf
            native = value.T if leaf == "kernel" else value
            tree.setdefault(self.scopes[layer], {})[leaf] = np.zeros(native.shape)
        return mp.wrap(self.module(rows, columns), TOKENS, variables={"params": tree})

    def held(self, name: str) -> Any:
        return self.net.variables["params"][self.scopes[name]][self.leaf(name)]

    def poke(self, name: str, value: np.ndarray) -> None:
        """linen holds no arrays to write to: write by our name instead."""
        self[f"{name}.weight"].assign(value)

    def output(self) -> np.ndarray:
        with multiparam_x64():
            return np.asarray(self.net.native.apply(self.net.variables, TOKENS))

    def count(self) -> int:
        return len(self.net)  # nothing to count natively

    def plain(self, name: str) -> None:
        import jax

        tree = self.net.variables
        assert type(tree) is type(tree["params"]) is dict
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))


class LinenCompact(LinenSetup):
    def module(self, rows: int, columns: int) -> Any:
        import jax.numpy as jnp
        from flax import linen

        class Net(linen.Module):
            @linen.compact
            def __call__(self, x: Any) -> Any:
                e = linen.Embed(rows, columns, name="embed")(x)
                r = linen.Dense(columns, name="dec")(jnp.tanh(linen.Dense(rows, name="enc")(e)))
                return linen.Dense(rows, name="head")(r) + jnp.tanh(linen.Dense(rows, name="head2")(r))

        return Net()


class LinenSequential(LinenSetup):
    scopes = {"embed": "layers_0", "enc": "layers_1", "dec": "layers_3", "head": "layers_4"}

    def module(self, rows: int, columns: int) -> Any:
        from flax import linen

        self.at = {"embed": "0", "enc": "1", "dec": "3", "head": "4"}
        layers = [linen.Embed(rows, columns), linen.Dense(rows), linen.tanh, linen.Dense(columns), linen.Dense(rows)]
        return linen.Sequential(layers)


class Nnx(Jax):
    def make(self, rows: int, columns: int) -> mp.Model:
        import jax.numpy as jnp
        from flax import nnx

        class Net(nnx.Module):
            def __init__(self, rngs: Any) -> None:
                wide = {"param_dtype": jnp.float64, "rngs": rngs}
                self.embed, self.enc = nnx.Embed(rows, columns, **wide), nnx.Linear(columns, rows, **wide)
                self.dec, self.head = nnx.Linear(rows, columns, **wide), nnx.Linear(columns, rows, **wide)
                self.head2 = nnx.Linear(columns, rows, **wide)

            def __call__(self, x: Any) -> Any:
                r = self.dec(jnp.tanh(self.enc(self.embed(x))))
                return self.head(r) + jnp.tanh(self.head2(r))

        with multiparam_x64():
            return mp.wrap(Net(nnx.Rngs(0)))

    def read(self, held: Any) -> np.ndarray:
        return np.asarray(held[...])

    def poke(self, name: str, value: np.ndarray) -> None:
        import jax.numpy as jnp

        with multiparam_x64():
            self.held(name)[...] = jnp.asarray(value.T if name != "embed" else value)

    def output(self) -> np.ndarray:
        with multiparam_x64():
            return np.asarray(self.net.native(TOKENS))

    def count(self) -> int:
        import jax
        from flax import nnx

        return len(jax.tree.leaves(nnx.state(self.net.native, nnx.Param)))

    def plain(self, name: str) -> None:
        from flax import nnx

        layer = self.layer(name)
        assert type(layer) is (nnx.Embed if name == "embed" else nnx.Linear)
        assert not [attribute for attribute in vars(layer) if "tied" in attribute]
        assert type(vars(layer)[self.leaf(name)]) is nnx.Param


class NnxSequential(Nnx):
    def make(self, rows: int, columns: int) -> mp.Model:
        import jax.numpy as jnp
        from flax import nnx

        self.at = {"embed": "0", "enc": "1", "dec": "3", "head": "4"}
        with multiparam_x64():
            wide = {"param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
            first = nnx.Embed(rows, columns, **wide), nnx.Linear(columns, rows, **wide), jnp.tanh
            return mp.wrap(nnx.Sequential(*first, nnx.Linear(rows, columns, **wide), nnx.Linear(columns, rows, **wide)))

    def layer(self, name: str) -> Any:
        return self.net.native.layers[int(self.at[name])]


class Keras(Subject):
    turned = True
    library = "keras"

    def make(self, rows: int, columns: int) -> mp.Model:
        """A Functional model."""
        lib, (embed, enc, dec, head, head2) = self.lib, self.layers(rows, columns)
        x = lib.Input((), dtype="int32")
        r = dec(enc(embed(x)))
        return mp.wrap(lib.Model(x, lib.layers.Add(dtype="float64")([head(r), head2(r)])))

    @property
    def lib(self) -> Any:
        import importlib

        return importlib.import_module(self.library)

    def layers(self, rows: int, columns: int) -> list[Any]:
        layers, wide = self.lib.layers, {"dtype": "float64"}
        return [
            layers.Embedding(rows, columns, name="embed", **wide),
            layers.Dense(rows, "tanh", name="enc", **wide),
            layers.Dense(columns, name="dec", **wide),
            layers.Dense(rows, name="head", **wide),
            layers.Dense(rows, "tanh", name="head2", **wide),
        ]

    def layer(self, name: str) -> Any:
        return self.net.native.get_layer(name)

    def leaf(self, name: str) -> str:
        return "embeddings" if name == "embed" else "kernel"

    def read(self, held: Any) -> np.ndarray:
        return np.array(held)

    def poke(self, name: str, value: np.ndarray) -> None:
        self.held(name).assign(value.T if name != "embed" else value)

    def output(self) -> np.ndarray:
        return np.asarray(self.net.native(TOKENS))

    def count(self) -> int:
        assert len(self.net.native.weights) == len(self.net.native.trainable_weights)
        return len(self.net.native.trainable_weights)

    def plain(self, name: str) -> None:
        import tensorflow as tf

        layer, held = self.layer(name), self.held(name)
        assert isinstance(held, tf.Variable if self.library == "tf_keras" else self.lib.Variable)
        assert [w is held for w in layer.weights] == ([True] if name == "embed" else [True, False])
        assert tuple(held.shape) == tuple(layer.get_weights()[0].shape)

    def native_gradients(self, ties: list[Tie], state: State) -> tuple[float, State]:
        import tensorflow as tf

        leaves, everything = leaves_and_all(state, ties, tf.Variable, tf.transpose)
        with tf.GradientTape() as tape:
            p = everything(leaves)
            rows = tf.gather(p["embed.weight"], TOKENS)
            loss = tf.reduce_mean((formula(p, tf.matmul, tf.transpose, tf.tanh, rows) - self.t) ** 2)
        grads = tape.gradient(loss, leaves)
        return float(loss), {name: tf.convert_to_tensor(g).numpy() for name, g in grads.items()}


class KerasSequential(Keras):
    def make(self, rows: int, columns: int) -> mp.Model:
        return mp.wrap(self.lib.Sequential([self.lib.Input((), dtype="int32"), *self.layers(rows, columns)[:4]]))


class KerasSubclass(Keras):
    def make(self, rows: int, columns: int) -> mp.Model:
        made = self.layers(rows, columns)

        class Net(self.lib.Model):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__(dtype="float64")
                self.embed, self.enc, self.dec, self.head, self.head2 = made

            def call(self, x: Any) -> Any:
                r = self.dec(self.enc(self.embed(x)))
                return self.head(r) + self.head2(r)

        return mp.wrap(Net(), TOKENS)


class TfKeras(Keras):
    library = "tf_keras"


class TfKerasSequential(KerasSequential):
    library = "tf_keras"


class TfKerasSubclass(KerasSubclass):
    library = "tf_keras"


def flavour(name: str, cls: type[Subject], *needs: str, np_arrays: bool = False, slow: bool = False) -> Any:
    marks = [pytest.mark.needs(*needs), pytest.mark.xdist_group(needs[0]), *[pytest.mark.slow] * slow]
    return pytest.param((cls, np_arrays), id=name, marks=marks)


KERAS2 = ("tensorflow", "tf_keras")
MAIN = [
    flavour("torch", Torch, "torch"),
    flavour("gluon", Gluon, "mxnet", np_arrays=True),
    flavour("linen", LinenSetup, "jax"),
    flavour("nnx", Nnx, "jax"),
    flavour("keras", Keras, "tensorflow"),
    flavour("tf_keras", TfKeras, *KERAS2),
]
MORE = [
    flavour("torch-sequential", TorchSequential, "torch"),
    flavour("gluon-nd", Gluon, "mxnet"),
    flavour("gluon-eager", GluonEager, "mxnet", np_arrays=True),
    flavour("gluon-eager-nd", GluonEager, "mxnet", slow=True),
    flavour("gluon-sequential", GluonSequential, "mxnet", np_arrays=True, slow=True),
    flavour("linen-compact", LinenCompact, "jax"),
    flavour("linen-sequential", LinenSequential, "jax", slow=True),
    flavour("nnx-sequential", NnxSequential, "jax", slow=True),
    flavour("keras-sequential", KerasSequential, "tensorflow", slow=True),
    flavour("keras-subclass", KerasSubclass, "tensorflow"),
    flavour("tf_keras-sequential", TfKerasSequential, *KERAS2, slow=True),
    flavour("tf_keras-subclass", TfKerasSubclass, *KERAS2, slow=True),
]


def made(request: pytest.FixtureRequest) -> Callable[..., Subject]:
    cls, np_arrays = request.param
    if np_arrays:
        request.getfixturevalue("mx_np")
    return lambda sizes=RECTANGLE: cls(*sizes)


@pytest.fixture(params=[*MAIN, *MORE])
def every(request: pytest.FixtureRequest) -> Callable[..., Subject]:
    """The network in every flavour."""
    return made(request)


@pytest.fixture(params=MORE)
def more(request: pytest.FixtureRequest) -> Callable[..., Subject]:
    """The network in the flavours that are not main ones."""
    return made(request)


@pytest.fixture(params=MAIN)
def main(request: pytest.FixtureRequest) -> Callable[..., Subject]:
    """The network in one flavour of each library."""
    return made(request)


EMBED, ENC, DEC, HEAD, HEAD2 = (f"{name}.weight" for name in ("embed", "enc", "dec", "head", "head2"))
A: list[Tie] = [(HEAD, EMBED, False)]
B: list[Tie] = [(DEC, ENC, True)]
ONE: list[Tie] = [(HEAD, EMBED, False), (ENC, HEAD, False), (DEC, ENC, True)]  # all on one storage
BOTH = [*A, *B]
SCHEMES = {"both": BOTH, "one": ONE}
SINGLE = {"a": A, "b": B}
BACKWARDS: dict[str, list[Tie]] = {"a": [(EMBED, HEAD, False)], "b": [(ENC, DEC, True)]}


def tied(subject: Subject, ties: list[Tie]) -> Subject:
    for tie in ties:
        subject.tie(*tie)
    return subject


# -- 1: gradients


def check_gradients(s: Subject, ties: list[Tie]) -> None:
    before = s.truth.state()
    tied(s, ties)
    state = s.truth.state()
    untied_loss, uses = s.native_gradients([], state)
    loss, sums = s.native_gradients(ties, before)
    near(untied_loss, loss)
    ours, grads = s.step()
    near(ours, loss)
    predicted, truth = s.truth.gradients(s.t)
    near(loss, predicted)
    assert list(grads) == [s.name(names[0]) for names in s.truth.groups()]
    for names in s.truth.groups():
        flips = {name: s.truth.bound[name][1] ^ s.truth.bound[names[0]][1] for name in names}
        total = np.sum([uses[name].T if flips[name] else uses[name] for name in names], axis=0)
        near(grads[s.name(names[0])], total)
        leaf = next(name for name in names if name in sums)
        near(grads[s.name(names[0])], sums[leaf].T if flips[leaf] else sums[leaf])
        for name in names:
            near(s[name].grad, truth[name])
            near(s[name].grad, total.T if flips[name] else total)
            assert tuple(s[name].grad.shape) == s[name].shape
            if name != names[0]:
                with pytest.raises(mp.errors.ParameterNotFound):
                    grads[s.name(name)]


def test_the_gradient_is_the_sum_over_the_untied_uses(every: Any) -> None:
    check_gradients(every(), BOTH)


@pytest.mark.quick("torch", "nnx", "keras")  # the sum above is all flavours' law, and compiled in each
def test_the_gradient_of_one_matrix_in_four_places(main: Any) -> None:
    check_gradients(main(), ONE)


@pytest.mark.quick("torch", "gluon", "linen")
def test_the_gradient_of_ties_the_other_way_about(main: Any) -> None:
    """The later layer is the source."""
    check_gradients(main(), [*BACKWARDS["a"], *BACKWARDS["b"]])


def test_a_penalty_on_a_transposed_name_has_a_gradient(main: Any) -> None:
    s = tied(main(), B)
    weights = np.arange(15.0).reshape(3, 5)

    def objective(net: mp.Model, x: Any, t: Any) -> Any:
        return mp.losses.mse(net, x, t) + (net[s.name(DEC)].value * net.native_array(weights)).sum()

    def objective_tf(net: mp.Model, x: Any, t: Any) -> Any:
        import tensorflow as tf

        return mp.losses.mse(net, x, t) + tf.reduce_sum(net[s.name(DEC)].value * weights)

    _, plain = s.truth.gradients(s.t)
    s.net.value_and_grad(objective_tf if s.net.backend == "tensorflow" else objective)(TOKENS, s.t)
    near(s[DEC].grad, plain[DEC] + weights)
    near(s[ENC].grad, plain[ENC] + weights.T)


# -- 2: one storage under two orientations


def test_writes_go_through_by_every_name(every: Any) -> None:
    s = tied(every(), ONE)
    s.check()
    names = next(names for names in s.truth.groups() if len(names) > 1)
    for i, name in enumerate(names):
        fresh = np.random.default_rng(i).normal(size=s[name].shape)
        s[name].assign(fresh)
        s.truth[name] = fresh
        np.testing.assert_array_equal(s[DEC].numpy(), s.truth[DEC])
        s[name][1, 0] = 40 + i
        s[name][:, 2] += 0.5
        moved = np.array(s.truth[name])
        moved[1, 0] = 40 + i
        moved[:, 2] += 0.5
        s.truth[name] = moved
        s.check()
        s.net[s.name(name)] *= 2
        s.truth[name] = 2 * moved
    s.check()
    fresh = np.random.default_rng(9).normal(size=(5, 3))
    s.poke("embed", fresh)
    s.truth[EMBED] = fresh
    s.check()
    with pytest.raises(mp.errors.ShapeError):
        s[names[0]].assign(np.ones(s[names[0]].shape[::-1]))
    s.check()


@pytest.mark.parametrize("scheme", SINGLE)
def test_native_writes_to_the_tied_place_reach_the_source(every: Any, scheme: str) -> None:
    """Where the framework has something to write to."""
    s = tied(every(), SINGLE[scheme])
    target = SINGLE[scheme][0][0]
    layer, fresh = target.removesuffix(".weight"), np.random.default_rng(4).normal(size=s.truth[target].shape)
    if isinstance(s, Nnx):
        try:
            s.poke(layer, fresh)
        except Exception:
            s.check()  # refused, and nothing has changed
            return
    elif isinstance(s, Torch) and scheme == "b":
        import torch

        with torch.no_grad():
            s.layer(layer).parametrizations.weight.original.copy_(torch.tensor(fresh.T))
    else:
        s.poke(layer, fresh)
    s.truth[target] = fresh
    s.check()


def test_select_and_init_by_every_name(main: Any) -> None:
    s = tied(main(), BOTH)
    for name in (EMBED, HEAD, ENC, DEC):
        group = s.net.select(s.name(name))
        names = next(names for names in s.truth.groups() if name in names)
        assert [p.names for p in group] == s.named([names])
        assert s.net.select(s[name]).parameters().keys() == group.parameters().keys()
    fresh, twin = main(), s.truth
    for name, seed in ((HEAD, 1), (DEC, 2)):
        first = next(names for names in twin.groups() if name in names)[0]
        s.net.init(mp.init.normal(std=0.3), s.name(name), seed=seed)
        fresh.net.init(mp.init.normal(std=0.3), fresh.name(first), seed=seed)
        twin[first] = fresh[first].numpy()
        assert not np.array_equal(twin[first], start(5, 3, False)[first])
        s.check()
    s.net.init(lambda shape, rng: np.arange(15.0).reshape(shape), s.name(DEC))
    twin[ENC] = np.arange(15.0).reshape(5, 3)
    s.check()


def test_a_state_goes_out_and_in_by_every_name(main: Any) -> None:
    s = tied(main(), BOTH)
    other = tied(main(), BOTH)
    other.net.init(mp.init.constant(0))
    assert other.net.load_state_dict(s.net.state_dict()) == ((), ())
    other.check()
    aliases = {name: p.numpy() for name, p in s.net.parameters(aliases=True).items()}
    other.net.init(mp.init.constant(0))
    other.net.load_state_dict(aliases)
    other.check()
    for name in (ENC, EMBED):
        del aliases[s.name(name)]
    other.net.init(mp.init.constant(0))
    other.net.load_state_dict(aliases)
    other.check()
    fresh = np.random.default_rng(5).normal(size=(3, 5))
    other.net.load_state_dict({other.name(DEC): fresh}, strict=False)
    other.truth[DEC] = fresh
    other.check()
    with pytest.raises(mp.errors.StateError):
        other.net.load_state_dict({other.name(DEC): fresh, other.name(ENC): fresh.T + 1}, strict=False)
    with pytest.raises(mp.errors.StateError):
        other.net.load_state_dict({other.name(DEC): fresh.T}, strict=False)
    other.check()


def whole(s: Subject, name: str) -> list[str]:
    """What must be frozen together: tf_keras freezes layers."""
    if not isinstance(s, (TfKeras, TfKerasSequential, TfKerasSubclass)):
        return [s.name(name)]
    layers = {each.partition(".")[0] for each in next(group for group in s.truth.groups() if name in group)}
    return [s.name(each) for each in s.truth.names if each.partition(".")[0] in layers]


@pytest.mark.parametrize("frozen, thawed", [(HEAD, EMBED), (DEC, ENC)], ids=["head", "dec"])
@pytest.mark.quick("*-head", "torch-*")
def test_freeze_and_unfreeze_by_either_name(main: Any, frozen: str, thawed: str) -> None:
    s = tied(main(), BOTH)
    s.net.freeze(*whole(s, frozen))
    assert not s[frozen].trainable and not s[thawed].trainable
    before = s.truth.state()
    _, grads = s.step()
    assert s.name(frozen) not in grads and s.name(thawed) not in grads
    assert s[frozen].grad is None and s[thawed].grad is None
    s.net.optimizer("sgd", lr=0.1).step()
    _, truth = s.truth.gradients(s.t)
    for name in s.truth.names:
        if not s[name].trainable:
            np.testing.assert_array_equal(s[name].numpy(), before[name])
        else:
            near(s[name].numpy(), before[name] - 0.1 * truth[name])
            s.truth[name] = s[name].numpy()
    s.net.unfreeze(*whole(s, thawed))
    assert s[frozen].trainable and s[thawed].trainable
    s.check()
    s.step()
    near(s[frozen].grad, s.truth.gradients(s.t)[1][frozen])


@in_framework("tensorflow")
@pytest.mark.needs("tf_keras")
@pytest.mark.parametrize("scheme", ["a", "b"])
def test_a_frozen_tie_is_not_trained_by_tf_keras_either(scheme: str) -> None:
    """It is listed by two layers."""
    s = tied(TfKeras(*RECTANGLE), SINGLE[scheme])
    target, source, _ = SINGLE[scheme][0]
    s.net.freeze(*whole(s, source))
    variable = s[source].native
    assert all(variable is not v for v in s.net.native.trainable_weights)
    s.net.unfreeze(*whole(s, target))
    assert any(variable is v for v in s.net.native.trainable_weights)


@in_framework("tensorflow")
@pytest.mark.needs("tf_keras")
@pytest.mark.parametrize("scheme", ["a", "b"])
@pytest.mark.parametrize("which", ["target", "source"])
def test_tf_keras_freezes_the_layer_a_parameter_is_in_after_an_untie(scheme: str, which: str) -> None:
    s = tied(TfKeras(*RECTANGLE), SINGLE[scheme])
    target, source, _ = SINGLE[scheme][0]
    s.untie({"target": target, "source": source}[which])
    layer, other = (name.removesuffix(".weight") for name in (target, source))
    s.net.freeze(f"{layer}.*")
    assert not s.layer(layer).trainable and s.layer(other).trainable
    assert {p.name for p in s.net if not p.trainable} == {f"{layer}.weight", f"{layer}.bias"}
    s.net.unfreeze("*")
    s.net.freeze(f"{other}.*")
    assert s.layer(layer).trainable and not s.layer(other).trainable
    assert {p.name.partition(".")[0] for p in s.net if not p.trainable} == {other}


# -- 3: untie


def check_untied(s: Subject, ties: list[Tie], which: int) -> None:
    """``which``: 0 unties the targets, 1 the sources."""
    tied(s, ties)
    for tie in ties:
        s.untie(tie[which])
        s.check()
    for name in ("embed", "enc", "dec", "head"):
        s.plain(name)
    for target, source, _ in ties:
        for name in (target, source):
            fresh = np.random.default_rng(len(name)).normal(size=s.truth[name].shape)
            s[name].assign(fresh)
            s.truth[name] = fresh
        s.check()
        with pytest.raises(mp.errors.TieError, match="not tied"):
            s.net.untie(s.name(target))
    tied(s, ties).check()


@pytest.mark.parametrize("which", [0, 1], ids=["target", "source"])
def test_an_untied_pair_keeps_its_values_and_is_ordinary(every: Any, which: int) -> None:
    check_untied(every(), BOTH, which)


@pytest.mark.parametrize("which", [0, 1], ids=["target", "source"])
def test_an_untied_pair_that_was_tied_backwards(main: Any, which: int) -> None:
    check_untied(main(), [*BACKWARDS["a"], *BACKWARDS["b"]], which)


@pytest.mark.parametrize("which", [0, 1], ids=["target", "source"])
@pytest.mark.quick("*-target", "torch-*")
def test_gradient_steps_separate_an_untied_pair(main: Any, which: int) -> None:
    """One compiled step and one optimizer through tie and untie."""
    s = main()
    step, opt = s.net.value_and_grad(mp.losses.mse), s.net.optimizer("sgd", lr=0.3)

    def train() -> None:
        loss, grads = step(TOKENS, s.t)
        expected, truth = s.truth.gradients(s.t)
        near(mp.to_numpy(loss).item(), expected)
        assert list(grads) == [s.name(names[0]) for names in s.truth.groups()]
        opt.step()
        for names in s.truth.groups():
            s.truth[names[0]] = s.truth[names[0]] - 0.3 * truth[names[0]]
        for name in s.truth.names:
            near(s[name].numpy(), s.truth[name])
            s.truth[name] = s[name].numpy()
        s.check()

    train()
    tied(s, BOTH)
    train()
    for tie in BOTH:
        s.untie(tie[which])
    train()
    train()
    assert not np.allclose(s[HEAD].numpy(), s[EMBED].numpy())
    assert not np.allclose(s[DEC].numpy(), s[ENC].numpy().T)


@pytest.mark.parametrize("which", [0, 1], ids=["target", "source"])
def test_the_gradient_of_all_uses_is_gone_when_they_part(main: Any, which: int) -> None:
    """The same in all frameworks, whichever of the places computes through a layout; other parameters keep theirs."""
    s = tied(main(), BOTH)
    s.step()
    others = [name for name, p in s.net.parameters().items() if len(p.names) == 1]
    for tie in BOTH:
        s.untie(tie[which])
    for tie in BOTH:
        assert s[tie[0]].grad is None and s[tie[1]].grad is None
        assert s[tie[0]].trainable and s[tie[1]].trainable
    assert others and all(s[name].grad is not None for name in others)
    s.step()
    assert s[BOTH[0][0]].grad is not None


# -- 4: more than two names, in any order

Move = tuple[Any, ...]  # ("tie", target, source, transpose), ("untie", name)
T, U = "tie", "untie"
HISTORIES: dict[str, list[Move]] = {
    "a second transposed by the first": [(T, DEC, ENC, True), (T, EMBED, DEC, True), (T, HEAD, EMBED, False)],
    "untied from the source on": [
        *[(T, *tie) for tie in ONE], (U, EMBED), (U, ENC), (U, HEAD),
    ],
    "untied from the last on": [*[(T, *tie) for tie in ONE], (U, DEC), (U, HEAD), (U, EMBED)],
    "untied around the transposed one": [*[(T, *tie) for tie in ONE], (U, EMBED), (U, HEAD), (U, DEC)],
    "transposed source": [
        (T, ENC, DEC, True), (T, EMBED, DEC, True), (T, HEAD, ENC, False), (U, DEC), (U, EMBED), (T, DEC, HEAD, True),
    ],
    "another source": [(T, DEC, ENC, True), (T, DEC, EMBED, True), (T, HEAD, EMBED, False), (T, DEC, ENC, True)],
    "the source tied away": [(T, DEC, ENC, True), (T, ENC, EMBED, False), (T, HEAD, DEC, True), (U, EMBED)],
    "a plain source tied away": [(T, HEAD, EMBED, False), (T, EMBED, ENC, False), (U, HEAD) ],
    "the source tied away from two": [
        (T, DEC, ENC, True), (T, HEAD, ENC, False), (T, ENC, EMBED, False), (T, EMBED, DEC, True), (U, DEC),
    ],
    "about again": [(T, DEC, ENC, True), (U, ENC), (T, ENC, DEC, True), (U, ENC), (T, DEC, ENC, True), (U, DEC)],
}  # fmt: skip
HISTORIES["a plain source tied away"].pop()  # untied already


def play(s: Subject, moves: list[Move]) -> None:
    for verb, *arguments in moves:
        getattr(s, verb)(*arguments)
        s.check()
        for names in s.truth.groups():
            if len(names) == 1 and names[0].endswith(".weight"):
                s.plain(names[0].removesuffix(".weight"))


@pytest.mark.parametrize("history", HISTORIES)
def test_any_history_of_ties(main: Any, history: str) -> None:
    play(main(), HISTORIES[history])


@pytest.mark.parametrize("history", ["transposed source", "the source tied away from two"])
def test_some_histories_in_the_other_flavours(more: Any, history: str) -> None:
    play(more(), HISTORIES[history])


SQUARES: dict[str, list[Move]] = {
    "chain": [(T, DEC, ENC, True), (T, HEAD, DEC, False), (T, EMBED, HEAD, True), (U, ENC), (U, DEC)],
    "chain of two turns": [(T, DEC, ENC, True), (T, HEAD, DEC, True), (T, EMBED, DEC, False), (U, HEAD)],
    "the embedding turned": [(T, HEAD, EMBED, True), (T, DEC, HEAD, True), (U, EMBED), (U, DEC)],
    "another way, untied between": [(T, DEC, ENC, True), (U, DEC), (T, DEC, ENC, False), (U, ENC)],
}


@pytest.mark.parametrize("history", SQUARES)
def test_square_matrices(main: Any, history: str) -> None:
    """Here only the numbers tell whether it is the right way round."""
    play(main(SQUARE), SQUARES[history])


@pytest.mark.parametrize("ties", [[(DEC, ENC, True), (HEAD, DEC, False), (EMBED, HEAD, True)]], ids=["chain"])
def test_gradients_of_square_matrices(main: Any, ties: list[Tie]) -> None:
    check_gradients(main(SQUARE), ties)


def test_two_heads_on_one_embedding(main: Any) -> None:
    s = main()
    if HEAD2 not in s.truth.names:
        pytest.skip("a Sequential has one head")
    play(s, [(T, HEAD, EMBED, False), (T, HEAD2, HEAD, False), (T, DEC, HEAD2, True), (U, HEAD), (U, EMBED)])
    check_gradients(main(), [(HEAD, EMBED, False), (HEAD2, EMBED, False), (DEC, ENC, True)])


@pytest.mark.parametrize("sizes", [RECTANGLE, SQUARE], ids=["rectangle", "square"])
def test_a_second_tie_of_the_same_two_changes_nothing(main: Any, sizes: Any) -> None:
    s = tied(main(sizes), ONE)
    objects = {name: s[name] for name in s.truth.names}
    version = store_of(s.net).version
    for target, source, transpose in [
        *ONE,
        (ENC, DEC, True),
        (EMBED, ENC, False),
        (DEC, HEAD, True),
        (DEC, DEC, False),
    ]:
        assert s.tie(target, source, transpose) is objects[target]
    assert store_of(s.net).version == version
    s.check()


def test_the_other_way_round_is_refused(main: Any) -> None:
    s = tied(main(SQUARE), ONE)
    for target, source, transpose in [(DEC, ENC, False), (EMBED, HEAD, True), (HEAD, DEC, False), (ENC, ENC, True)]:
        with pytest.raises(mp.errors.TieError, match="tied already"):
            s.net.tie(target, source, transpose=transpose)
        s.check()


def test_a_tie_of_one_layout_is_plain(every: Any) -> None:
    s = tied(every(), [(HEAD, ENC, False)])
    assert s[HEAD] is s[ENC]
    for name in ("head", "enc"):
        s.plain(name)
    if not isinstance(s, LinenSetup):
        assert s.held("head") is s.held("enc")
    s.check()


def test_a_model_wrapped_again_has_its_ties(every: Any) -> None:
    s = tied(every(), ONE)
    if isinstance(s, LinenSetup):
        s.net = mp.wrap(s.net.native, TOKENS, variables=s.net.variables)  # linen's module knows of none
        assert s.net.ties() == []
        return
    s.net = mp.wrap(s.net.native)
    s.check()
    s.untie(ENC)
    s.check()
    s.untie(EMBED)
    s.check()


# -- 5: survival


def train_natively(s: Subject, train: Callable[[], None], eps: float = 1e-12) -> None:
    """One native step of gradient descent is the truth's."""
    lr = 0.1
    _, truth = s.truth.gradients(s.t)
    train()
    for names in s.truth.groups():
        s.truth[names[0]] = s.truth[names[0]] - lr * truth[names[0]]
    for name in s.truth.names:
        near(s[name].numpy(), s.truth[name], eps)
        s.truth[name] = s[name].numpy()
    s.check()


FLOAT32 = 1e-6  # MXNet's operators and Keras' losses keep some numbers in it


@in_framework("torch")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("make", [Torch, TorchSequential])
def test_a_torch_tie_survives(make: Any, scheme: str) -> None:
    import torch

    s = tied(make(*RECTANGLE), SCHEMES[scheme])
    s.net.native.to(torch.float32)
    assert {p.dtype for p in s.net} == {"float32"}
    assert s[DEC].value.dtype == torch.float32
    s.net.native.to(torch.float64)
    for name in s.truth.names:
        s.truth[name] = s.truth[name].astype("float32").astype("float64")
    s.check()
    optimizer = torch.optim.SGD(s.net.native.parameters(), lr=0.1)

    def train() -> None:
        optimizer.zero_grad()
        ((s.net.native(torch.tensor(TOKENS)) - torch.tensor(s.t)) ** 2).mean().backward()
        optimizer.step()

    train_natively(s, train)
    native, twin = s.net.native, copy.deepcopy(s.net.native)
    state = {name: t.clone() for name, t in native.state_dict().items()}
    s.net.init(mp.init.constant(0))
    native.load_state_dict(state)
    s.check()
    s.net = mp.wrap(twin)
    s.check()
    assert all(a is not b for a, b in zip(native.parameters(), twin.parameters(), strict=True))
    s[EMBED][:] = 1
    s[ENC][:] = 1
    for parameter in native.parameters():
        assert not (parameter == 1).all()


@in_framework("torch")
def test_a_torch_tie_is_pickled_or_refused() -> None:
    """PyTorch refuses parametrized modules; a plain tie goes through."""
    from torch import nn as tnn

    native = tnn.Sequential(tnn.Embedding(5, 3), tnn.Linear(3, 5), tnn.Linear(5, 3), tnn.Linear(3, 5))
    net = mp.wrap(native)
    net.tie("3.weight", "0.weight")
    assert mp.wrap(pickle.loads(pickle.dumps(native))).ties() == [("0.weight", "3.weight")]
    net.tie("2.weight", "1.weight", transpose=True)
    with pytest.raises(RuntimeError, match="parametriz"):
        pickle.dumps(native)
    net.untie("2.weight")
    assert mp.wrap(pickle.loads(pickle.dumps(native))).ties() == [("0.weight", "3.weight")]


@in_framework("torch")
@pytest.mark.parametrize("order", [("weight_ih", "weight_hh"), ("weight_hh", "weight_ih")], ids=["ih", "hh"])
def test_two_transposed_ties_in_one_torch_module_keep_the_order_of_its_parameters(order: tuple[str, str]) -> None:
    from torch import nn as tnn

    native = tnn.ModuleList([tnn.Linear(3, 3), tnn.RNNCell(3, 3)])
    net = mp.wrap(native)
    names, parameters = list(net.parameters()), list(native[1]._parameters)
    values = {leaf: net[f"1.{leaf}"].numpy() for leaf in order}
    for leaf in order:
        net.tie(f"1.{leaf}", "0.weight", transpose=True)
        assert list(net.parameters(aliases=True)) == names
        assert list(mp.wrap(native).parameters(aliases=True)) == names
    for leaf in order:
        net.untie(f"1.{leaf}")
        assert list(net.parameters(aliases=True)) == names
    assert list(native[1]._parameters) == parameters
    assert all(not np.array_equal(values[leaf], net[f"1.{leaf}"].numpy()) for leaf in order)


@in_framework("torch")
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("cls", ["RNN", "LSTM", "GRU"])
def test_a_tie_reaches_torchs_recurrent_layers(cls: str, transpose: bool) -> None:
    """They keep a second list of their weights."""
    import torch
    from torch import nn as tnn

    class Net(tnn.Module):
        def __init__(self) -> None:
            super().__init__()
            gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[cls]
            self.source = tnn.Linear(gates * 3, 3) if transpose else tnn.Linear(3, gates * 3)
            self.rnn = getattr(tnn, cls)(3, 3)

        def forward(self, x: Any) -> Any:
            return self.rnn(x)[0]

    native, x = Net().double(), torch.ones(2, 1, 3, dtype=torch.float64)
    net = mp.wrap(native)
    net.tie("rnn.weight_hh_l0", "source.weight", transpose=transpose)
    net["source.weight"][:] = np.linspace(-1, 1, net["source.weight"].size).reshape(net["source.weight"].shape)
    for untie in (False, True):
        if untie:
            net.untie("rnn.weight_hh_l0")
            net["rnn.weight_hh_l0"][:] *= 0.5
        twin = getattr(tnn, cls)(3, 3).double()
        twin.load_state_dict({leaf: torch.tensor(net[f"rnn.{leaf}"].numpy()) for leaf in twin.state_dict()})
        near(np.array(native(x).detach()), np.array(twin(x)[0].detach()))
        (native(x) ** 2).sum().backward()
        (twin(x)[0] ** 2).sum().backward()
        grad = np.array(twin.weight_hh_l0.grad)
        near(net["rnn.weight_hh_l0"].grad, grad)


@in_framework("mxnet")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("make", [Gluon, GluonEager, GluonSequential])
def test_a_gluon_tie_survives(make: Any, scheme: str, mx: Any, tmp_path: Any) -> None:
    s = tied(make(*RECTANGLE), SCHEMES[scheme])
    native = s.net.native
    native.hybridize(static_alloc=True, static_shape=True)
    s.check()
    native.cast("float32")
    assert {p.dtype for p in s.net} == {"float32"}
    assert s[DEC].value.dtype == np.float32
    native.cast("float64")
    for name in s.truth.names:
        s.truth[name] = s.truth[name].astype("float32").astype("float64")
    s.check()
    trainer = mx.gluon.Trainer(native.collect_params(), "sgd", {"learning_rate": 0.1})
    x, t = s.array(TOKENS, "int32"), s.array(s.t)

    def train() -> None:
        with mx.autograd.record():
            loss = ((native(x) - t) ** 2).mean()
        loss.backward()
        trainer.step(1)

    train_natively(s, train, FLOAT32)
    path = str(tmp_path / "w.params")
    for options in ({}, {"deduplicate": True}):
        native.save_parameters(path, **options)
        s.net.init(mp.init.constant(0))
        native.load_parameters(path)
        s.check()
    native.save_parameters(path)
    fresh = make(*RECTANGLE)
    fresh.net.native.load_parameters(path)
    for name in s.truth.names:  # a file has every name, in its place's layout
        np.testing.assert_array_equal(fresh[name].numpy(), s.truth[name])
    fresh[HEAD][:] += 1
    fresh[DEC][:] += 1
    fresh[EMBED][:] += 1
    fresh[ENC][:] += 1
    if scheme != "one":
        fresh.net.native.save_parameters(path)
        native.load_parameters(path)
        for name in s.truth.names:
            s.truth[name] = fresh[name].numpy()
        s.check()


@in_framework("jax")
@pytest.mark.parametrize("make, scheme", [(Nnx, "both"), (Nnx, "one"), (NnxSequential, "one")])
def test_an_nnx_tie_survives(make: Any, scheme: str) -> None:
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    s = tied(make(*RECTANGLE), SCHEMES[scheme])
    ours = s.net
    with multiparam_x64():
        native = ours.native
        near(np.asarray(nnx.jit(lambda m, x: m(x))(native, TOKENS)), forward(s.truth.state())[-1])
        merged = nnx.merge(*nnx.split(native))
        optimizer = nnx.Optimizer(native, optax.sgd(0.1), wrt=nnx.Param)

        @nnx.jit
        def train(model: Any, optimizer: Any) -> None:
            optimizer.update(model, nnx.grad(lambda m: ((m(TOKENS) - s.t) ** 2).mean())(model))

        for copied in (merged, nnx.clone(native), copy.deepcopy(native)):
            again = mp.wrap(copied)  # NNX orders a merged module's attributes by name
            assert sorted(map(sorted, again.ties())) == sorted(map(sorted, ours.ties()))
            for name, p in ours.parameters(aliases=True).items():
                np.testing.assert_array_equal(again[name].numpy(), p.numpy())
            near(np.asarray(copied(TOKENS)), forward(s.truth.state())[-1])
            if copied is not merged:  # that one has the Variables themselves
                again.init(mp.init.constant(0))
                s.check()
        train_natively(s, lambda: train(native, optimizer))
        state = jax.tree.map(jnp.copy, nnx.state(native))
        s.net.init(mp.init.constant(0))
        nnx.update(native, state)
        s.check()
        assert len(nnx.to_flat_state(state)) == len(s.truth.groups())


@in_framework("jax")
def test_a_transposed_nnx_tie_is_not_split_by_pickle() -> None:
    """It is refused, or goes through whole."""
    from flax import nnx

    native = nnx.Sequential(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), nnx.Linear(5, 3, rngs=nnx.Rngs(1)))
    net = mp.wrap(native)
    net.tie("1.weight", "0.weight", transpose=True)
    try:
        again = mp.wrap(pickle.loads(pickle.dumps(native)))
    except Exception as error:
        assert "pickle" in str(error).lower() or isinstance(error, pickle.PicklingError)
    else:
        assert again.ties() == net.ties()


@in_framework("jax")
def test_the_order_of_an_nnx_modules_parameters_is_kept_by_transposed_ties() -> None:
    """Also when the module is wrapped anew, and where no layer kind says the order."""
    import jax.numpy as jnp
    from flax import nnx

    class Two(nnx.Module):
        def __init__(self) -> None:
            self.a, self.b = nnx.Param(jnp.ones((2, 3))), nnx.Param(jnp.ones((3, 2)))

        def __call__(self, x: Any) -> Any:
            return x @ self.a @ self.b

    native = Two()
    net = mp.wrap(native)
    net.tie("a", "b", transpose=True)
    assert list(net.parameters(aliases=True)) == list(mp.wrap(native).parameters(aliases=True)) == ["a", "b"]
    net.untie("a")
    assert list(net.parameters(aliases=True)) == list(mp.wrap(native).parameters(aliases=True)) == ["a", "b"]


@in_framework("jax")
@pytest.mark.parametrize("container", ["List", "Dict"])
def test_transposed_ties_of_entries_of_an_nnx_container(container: str) -> None:
    """Made, or refused with nothing changed."""
    import jax.numpy as jnp
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self) -> None:
            a, b = nnx.Param(jnp.arange(6.0).reshape(2, 3)), nnx.Param(jnp.ones((3, 2)))
            self.w = nnx.List([a, b]) if container == "List" else nnx.Dict(a=a, b=b)

        def __call__(self, x: Any) -> Any:
            a, b = self.w if container == "List" else (self.w["a"], self.w["b"])
            return x @ a[...] @ b[...]

    native, x = Net(), np.ones((1, 2), "float32")
    net = mp.wrap(native)
    a, b = net.parameters()
    before = x @ net[a].numpy() @ net[b].numpy()
    try:
        net.tie(b, a, transpose=True)
    except mp.MultiparamError:
        assert net.ties() == []
    else:
        assert net.ties() == [(a, b)]
        np.testing.assert_array_equal(net[b].numpy(), net[a].numpy().T)
        before = x @ net[a].numpy() @ net[a].numpy().T
    np.testing.assert_allclose(mp.to_numpy(native(x)), before)
    np.testing.assert_allclose(mp.to_numpy(net(x)), before)


@in_framework("jax")
@pytest.mark.parametrize("make", [LinenSetup, LinenCompact, LinenSequential])
def test_linen_variables_are_a_plain_tree_with_every_layer_in_it(make: Any) -> None:
    import jax

    s = make(*RECTANGLE)
    shapes = jax.tree.map(np.shape, s.net.variables)
    order = [list(layer) for layer in s.net.variables["params"].values()]
    tied(s, ONE)
    assert jax.tree.map(np.shape, s.net.variables) == shapes
    assert [list(layer) for layer in s.net.variables["params"].values()] == order
    for name in ("enc", "dec", "head"):
        s.plain(name)
    with multiparam_x64():
        restored = jax.tree.map(lambda a: a, s.net.variables)
        near(np.asarray(s.net.native.apply(restored, TOKENS)), forward(s.truth.state())[-1])


@in_framework("tensorflow")
@pytest.mark.parametrize("kind, scheme", [("functional", "both"), ("sequential", "both"), ("subclass", "one")])
@pytest.mark.quick("keras-functional*", "tf_keras-subclass*")
def test_a_keras_tie_survives(lib: Any, scheme: str, kind: str, tmp_path: Any) -> None:
    """compile(), and every compiled function, from before the tie."""
    import tensorflow as tf

    classes = {"functional": Keras, "sequential": KerasSequential, "subclass": KerasSubclass}
    classes |= {f"tf_keras {k}": c for k, c in zip(classes, (TfKeras, TfKerasSequential, TfKerasSubclass), strict=True)}
    cls = classes[f"tf_keras {kind}" if lib.__name__ == "tf_keras" else kind]
    s = cls(*RECTANGLE)
    native, n = s.net.native, len(TOKENS)

    def fit() -> None:
        native.fit(TOKENS, s.t, batch_size=n, verbose=0)

    native.compile(lib.optimizers.SGD(0.1), "mse")
    train_natively(s, fit, FLOAT32)
    outside = tf.function(lambda x: native(x))

    def look() -> None:
        out = forward(s.truth.state())[-1]
        near(native.predict(TOKENS, verbose=0), out)
        near(np.ravel(native.evaluate(TOKENS, s.t, verbose=0))[0], np.mean((out - s.t) ** 2), 1e-6)

    look()
    tied(s, SCHEMES[scheme])
    s[DEC][0, 1] += 0.25
    s[EMBED][0, 1] += 0.25
    for name in s.truth.names:
        s.truth[name] = s[name].numpy()
    s.check()
    look()
    train_natively(s, fit, FLOAT32)
    train_natively(s, fit, FLOAT32)
    look()
    near(outside(TOKENS), forward(s.truth.state())[-1])
    path = str(tmp_path / "w.weights.h5")
    native.save_weights(path)
    weights = native.get_weights()
    checkpoint = tf.train.Checkpoint(model=native).save(str(tmp_path / "at"))
    for restore in (
        lambda: native.load_weights(path),
        lambda: native.set_weights(weights),
        lambda: tf.train.Checkpoint(model=native).restore(checkpoint),
    ):
        s.net.init(mp.init.constant(0))
        restore()
        s.check()
    twin = tied(cls(*RECTANGLE), SCHEMES[scheme])
    twin.truth = s.truth
    twin.net.native.load_weights(path)
    twin.check()
    twin.net.init(mp.init.constant(0))
    tf.train.Checkpoint(model=twin.net.native).restore(checkpoint)
    twin.check()


# -- 6: training


def by_hand(truth: Truth, t: np.ndarray, name: str, steps: int) -> list[float]:
    """The optimizer's definition, one state per storage."""
    lr = {"sgd": 0.1, "momentum": 0.05, "adam": 0.02}[name]
    velocity = {names[0]: np.zeros_like(truth[names[0]]) for names in truth.groups()}
    square = copy.deepcopy(velocity)
    losses = []
    for i in range(1, steps + 1):
        loss, grads = truth.gradients(t)
        losses.append(loss)
        for names in truth.groups():
            key, g = names[0], grads[names[0]]
            if name == "adam":
                velocity[key] = 0.9 * velocity[key] + 0.1 * g
                square[key] = 0.999 * square[key] + 0.001 * g**2
                change = velocity[key] / (1 - 0.9**i) / (np.sqrt(square[key] / (1 - 0.999**i)) + 1e-8)
            else:
                velocity[key] = (0.9 if name == "momentum" else 0) * velocity[key] + g
                change = velocity[key]
            truth[key] = truth[key] - lr * change
    return losses


def check_training(s: Subject, name: str, steps: int) -> None:
    lr = {"sgd": 0.1, "momentum": 0.05, "adam": 0.02}[name]
    expected = by_hand(s.truth, s.t, name, steps)
    step, opt = s.net.value_and_grad(mp.losses.mse), s.net.optimizer(name, lr=lr)
    losses = []
    for _ in range(steps):
        loss, _ = step(TOKENS, s.t)
        opt.step()
        losses.append(mp.to_numpy(loss).item())
    near(losses, expected, 1e-11)
    for each in s.truth.names:
        near(s[each].numpy(), s.truth[each], 1e-10)
        s.truth[each] = s[each].numpy()
    s.check()


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.quick("*-adam", "torch*")
def test_training_a_tied_model(main: Any, optimizer: str) -> None:
    s = tied(main(), [(HEAD, EMBED, False), (DEC, ENC, True)])
    check_training(s, optimizer, 5)


def test_training_a_model_with_one_matrix_in_four_places(main: Any) -> None:
    check_training(tied(main(), ONE), "adam", 5)


# -- 7: errors


@pytest.fixture(params=MAIN)
def small(request: pytest.FixtureRequest) -> Any:
    return made(request)()


def picture(net: mp.Model) -> Any:
    held = {**net.parameters(aliases=True), **net.buffers(aliases=True)}
    return {name: (p.numpy().tobytes(), p.shape, p.names, p.trainable) for name, p in held.items()}, net.ties()


WRONG: dict[str, tuple[str, str, bool, type[Exception], str]] = {
    "shapes that fit transposed": (DEC, ENC, False, mp.errors.ShapeError, "transpose=True"),
    "shapes that fit plainly": (HEAD, EMBED, True, mp.errors.ShapeError, "transposed"),
    "a bias": ("enc.bias", "head.bias", True, mp.errors.TieError, "only a matrix"),
    "a matrix to a bias": (DEC, "enc.bias", True, mp.errors.TieError, "only a matrix"),
    "a bias to a matrix": ("enc.bias", ENC, False, mp.errors.ShapeError, "shapes differ"),
    "no such target": ("dec.wieght", ENC, True, mp.errors.ParameterNotFound, "dec.weight"),
    "no such source": (DEC, "enc.wieght", True, mp.errors.ParameterNotFound, "enc.weight"),
    "a group": ("dec", "enc", True, mp.errors.ParameterNotFound, "dec"),
}


@pytest.mark.parametrize("before", [[], ONE[1:]], ids=["untied", "tied"])
def test_a_tie_that_cannot_be_leaves_the_model_as_it_was(small: Subject, before: list[Tie]) -> None:
    tied(small, before)
    seen = picture(small.net)
    objects = {name: small[name] for name in small.truth.names}
    for target, source, transpose, error, text in WRONG.values():
        with pytest.raises(error, match=text) as caught:
            small.net.tie(target, source, transpose=transpose)
        assert isinstance(caught.value, mp.MultiparamError)
        assert picture(small.net) == seen
        assert all(small[name] is p for name, p in objects.items())
    if not before:
        with pytest.raises(mp.errors.TieError, match="not tied"):
            small.net.untie(DEC)
    small.check()


def test_a_hint_is_given_only_where_it_helps(backend: str) -> None:
    spec = nn.Sequential(nn.Linear(3), nn.Linear(4), nn.Linear(3))
    net = mp.build(spec, np.ones((1, 5)), backend=backend)
    for target, source, hint in (("1.weight", "0.weight", False), ("2.weight", "1.weight", True)):
        with pytest.raises(mp.errors.ShapeError) as caught:
            net.tie(target, source)
        assert ("transpose=True" in str(caught.value)) is hint


def test_buffers_and_four_axes_are_not_transposed(backend: str) -> None:
    spec = nn.Sequential(nn.Conv(3, 3, padding=1), nn.BatchNorm(), nn.Conv(3, 3, padding=1), nn.BatchNorm())
    net = mp.build(spec, np.ones((1, 3, 4, 4)), backend=backend)
    before = picture(net)
    for transpose in (False, True):
        for target, source in (
            ("1.running_mean", "3.running_mean"),
            ("1.running_mean", "3.bias"),
            ("1.bias", "3.running_var"),
        ):
            with pytest.raises(mp.errors.TieError, match="buffer"):
                net.tie(target, source, transpose=transpose)
    with pytest.raises(mp.errors.TieError, match="only a matrix"):
        net.tie("2.weight", "0.weight", transpose=True)
    assert picture(net) == before
    net.tie("2.weight", "0.weight")
    assert net.ties() == [("0.weight", "2.weight")]


@in_framework("torch")
def test_dtypes_that_differ_are_refused_in_torch() -> None:
    from torch import nn as tnn

    check_dtypes(mp.wrap(tnn.Sequential(tnn.Linear(3, 5), tnn.Linear(5, 3).double())))


@in_framework("mxnet")
def test_dtypes_that_differ_are_refused_in_gluon(mx: Any) -> None:
    gnn, native = mx.gluon.nn, mx.gluon.nn.Sequential()
    native.add(gnn.Dense(5, in_units=3), gnn.Dense(3, in_units=5))
    native[1].cast("float64")
    native.initialize(mx.init.Zero())
    check_dtypes(mp.wrap(native))


@in_framework("jax")
def test_dtypes_that_differ_are_refused_in_flax() -> None:
    import jax.numpy as jnp
    from flax import linen, nnx

    layers = [linen.Dense(5), linen.Dense(3, param_dtype=jnp.float16)]
    check_dtypes(mp.wrap(linen.Sequential(layers), np.ones((1, 3), "float32")))
    rngs = nnx.Rngs(0)
    check_dtypes(
        mp.wrap(nnx.Sequential(nnx.Linear(3, 5, rngs=rngs), nnx.Linear(5, 3, param_dtype=jnp.float16, rngs=rngs)))
    )


@in_framework("tensorflow")
def test_dtypes_that_differ_are_refused_in_keras(lib: Any) -> None:
    check_dtypes(mp.wrap(lib.Sequential([lib.Input((3,)), lib.layers.Dense(5), lib.layers.Dense(3, dtype="float64")])))


def check_dtypes(net: mp.Model) -> None:
    before = picture(net)
    for target, source in (("0.weight", "1.weight"), ("1.weight", "0.weight")):
        with pytest.raises(mp.errors.TieError, match="dtypes differ"):
            net.tie(target, source, transpose=True)
        assert picture(net) == before


# -- layouts that are no mere transpose


def check_convolutions(net: mp.Model, twin: mp.Model, x: np.ndarray, target: str, source: str) -> None:
    """A tie of two convolutions that keep their kernels differently, against an untied twin."""
    for name, p in twin.parameters().items():
        net[name].assign(np.random.default_rng(len(name)).normal(size=p.shape).astype(p.dtype))
    net.tie(target, source)
    assert net.ties() == [tuple(sorted((target, source)))] and net[target] is net[source]
    net[target].assign(np.random.default_rng(3).normal(size=net[target].shape).astype("float32"))
    for name in twin.parameters():
        twin[name].assign(net[name].numpy())
    near(mp.to_numpy(net(x)), mp.to_numpy(twin(x)), 1e-5)
    y = np.zeros(mp.to_numpy(net(x)).shape, "float32")
    net.value_and_grad(mp.losses.mse)(x, y)
    _, uses = twin.value_and_grad(mp.losses.mse)(x, y)
    near(net[target].grad, mp.to_numpy(uses[target]) + mp.to_numpy(uses[source]), 1e-4)
    net.untie(source)
    for name in (source, target):
        np.testing.assert_array_equal(net[name].numpy(), twin[name].numpy())
    near(mp.to_numpy(net(x)), mp.to_numpy(twin(x)), 1e-5)
    net[source][:] = 0
    assert net[target].numpy().any()


IMAGE = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype("float32")


@in_framework("tensorflow")
@pytest.mark.parametrize("way", [("1.weight", "0.weight"), ("0.weight", "1.weight")], ids=["conv", "depthwise"])
def test_a_depthwise_and_a_grouped_convolution_in_keras(lib: Any, way: tuple[str, str]) -> None:
    def build() -> mp.Model:
        layers = lib.layers.DepthwiseConv2D((3, 2)), lib.layers.Conv2D(3, (3, 2), groups=3, use_bias=False)
        return mp.wrap(lib.Sequential([lib.Input((5, 6, 3)), *layers]))

    check_convolutions(build(), build(), IMAGE, *way)


@in_framework("jax")
@pytest.mark.parametrize("way", [("1.weight", "0.weight"), ("0.weight", "1.weight")], ids=["plain", "reversed"])
@pytest.mark.parametrize("library", ["linen", "nnx"])
@pytest.mark.quick("linen-plain", "nnx-reversed")
def test_two_sorts_of_transposed_convolution_in_flax(library: str, way: tuple[str, str]) -> None:
    from flax import linen, nnx

    def build() -> mp.Model:
        if library == "linen":
            layers = [linen.ConvTranspose(3, (3, 2)), linen.ConvTranspose(3, (3, 2), transpose_kernel=True)]
            return mp.wrap(linen.Sequential(layers), IMAGE)
        rngs = nnx.Rngs(0)
        turned = nnx.ConvTranspose(3, 3, (3, 2), transpose_kernel=True, rngs=rngs)
        return mp.wrap(nnx.Sequential(nnx.ConvTranspose(3, 3, (3, 2), rngs=rngs), turned))

    check_convolutions(build(), build(), IMAGE, *way)


@in_framework("mxnet")
@pytest.mark.parametrize("target, source", [("1.weight", "0.weight"), ("0.weight", "1.weight")], ids=["NCHW", "NHWC"])
def test_two_data_orders_in_gluon(mx: Any, target: str, source: str) -> None:
    """On the CPU MXNet runs none with channels last, so the arrays tell alone."""
    gnn = mx.gluon.nn
    native = gnn.HybridSequential()
    native.add(gnn.Conv2D(3, (3, 2), in_channels=3, layout="NHWC"), gnn.Conv2D(3, (3, 2), in_channels=3))
    native.initialize(mx.init.Xavier())
    net = mp.wrap(native)
    net.tie(target, source)
    assert [native[i].weight.shape for i in (0, 1)] == [(3, 3, 2, 3), (3, 3, 3, 2)]
    net[target][:] = np.arange(54.0).reshape(3, 3, 3, 2)
    np.testing.assert_array_equal(native[0].weight.data().asnumpy(), net[source].numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(native[1].weight.data().asnumpy(), net[source].numpy())
    net.untie(source)
    net[source][:] = 0
    np.testing.assert_array_equal(net[target].numpy(), np.arange(54.0).reshape(3, 3, 3, 2))
    assert type(native[0].weight) is type(native[1].weight) is mx.gluon.Parameter


def test_a_layer_at_two_positions_is_one_place_of_a_transposed_tie(backend: str) -> None:
    shared = nn.Linear(5)
    spec = nn.Sequential(shared, nn.Tanh(), nn.Linear(3), nn.Tanh(), shared)
    x = np.random.default_rng(0).normal(size=(4, 3))
    net = mp.build(spec, x, backend=backend, dtype="float64")
    for target, source in (("4.weight", "2.weight"), ("2.weight", "4.weight")):
        net.tie(target, source, transpose=True)
        assert net.ties() == [("0.weight", "2.weight", "4.weight"), ("0.bias", "4.bias")]
        net["4.weight"][:] = w = np.random.default_rng(1).normal(size=(5, 3))
        b, c = net["0.bias"].numpy(), net["2.bias"].numpy()
        h = np.tanh(np.tanh(x @ w.T + b) @ w + c)
        near(mp.to_numpy(net(x)), h @ w.T + b)
        net.untie("0.weight")
        assert net.ties() == [("0.weight", "4.weight"), ("0.bias", "4.bias")]
        net["2.weight"][:] = 0
        near(mp.to_numpy(net(x)), np.tanh(np.tile(c, (4, 1))) @ w.T + b)
