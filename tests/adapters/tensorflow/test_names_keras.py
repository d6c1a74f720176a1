"""What Keras' layers are called, and that each weight which Keras tracks and saves is listed once.

The truth is Keras itself: ``model.weights`` by identity, and the names that ``get_layer`` takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multiparam as mp

pytest.importorskip("tensorflow")

pytestmark = [pytest.mark.needs("tensorflow"), pytest.mark.xdist_group("tensorflow")]
X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")


@pytest.fixture(params=["keras", pytest.param("tf_keras", marks=pytest.mark.needs("tf_keras"))])
def lib(request: pytest.FixtureRequest) -> Any:
    """Keras 3, then tf_keras 2."""
    return pytest.importorskip(request.param)


def listed(make: Callable[[], Any]) -> list[str]:
    """The names of a model: each of Keras' own weights once, and the same for two that are made the same way."""
    nets = []
    for _ in range(2):
        native = make()
        nets.append(mp.wrap(native, X))
        ours = [*nets[-1].parameters().values(), *nets[-1].buffers().values()]
        natives = [part for p in ours for part in (p.native if isinstance(p.native, tuple) else (p.native,))]
        assert sorted(map(id, natives)) == sorted(map(id, native.weights))
    first, second = ([*net.parameters(), *net.buffers()] for net in nets)
    assert first == second
    return first


def both(*names: str) -> list[str]:
    return [f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")]


# -- given names


def test_the_names_given_in_a_sequential_are_names_and_others_are_positions(lib: Any) -> None:
    dense = lib.layers.Dense
    make = lambda: lib.Sequential([dense(4, name="first"), lib.layers.ReLU(), dense(3), dense(2, name="head")])  # noqa: E731
    assert listed(make) == both("first", "2", "head")
    native = make()
    net = mp.wrap(native, X)
    assert net[3]["weight"].native is net["head.weight"].native is native.get_layer("head").kernel


def test_the_names_given_in_nested_functional_models_are_names(lib: Any) -> None:
    def make() -> Any:
        x = lib.Input((4,))
        inner = lib.Model(x, lib.layers.Dense(4, name="query")(lib.layers.Dense(4)(x)), name="encoder")
        return lib.Model(x, lib.layers.Dense(1, name="head")(inner(x)))

    assert listed(make) == both("encoder.dense", "encoder.query", "head")


def test_the_names_given_in_a_model_of_ones_own_are_names_and_others_are_attributes(lib: Any) -> None:
    class Net(lib.Model):
        def __init__(self) -> None:
            super().__init__()
            self.stem = lib.layers.Dense(4)
            self.blocks = [lib.layers.Dense(4, name=f"block_{i}") for i in range(2)] + [lib.layers.Dense(4)]
            self.out = lib.layers.Dense(1, name="head")

        def call(self, x: Any) -> Any:
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.out(x)

    assert listed(Net) == both("stem", "block_0", "block_1", "blocks.2", "head")


def test_attributes_and_positions_of_named_layers_are_aliases_for_look_ups(lib: Any) -> None:
    dense = lib.layers.Dense

    class Net(lib.Model):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = lib.Sequential([dense(4, name="first"), dense(4)], name="enc")
            self.blocks = [dense(4, name=f"block_{i}") for i in range(2)]

        def call(self, x: Any) -> Any:
            return self.blocks[1](self.blocks[0](self.encoder(x)))

    native = Net()
    net = mp.wrap(native, X)
    assert list(net.parameters()) == both("enc.first", "enc.1", "block_0", "block_1")
    first = net["enc.first.weight"]
    assert first.native is native.encoder.layers[0].kernel
    for name in ("encoder.0.weight", "enc.0.weight", "encoder.first.weight"):
        assert net[name] is first
    assert net["encoder"]["1.bias"] is net["enc.1.bias"] is net["encoder.1.bias"]
    assert net["blocks.1.bias"] is net["block_1.bias"]
    with pytest.raises(mp.errors.ParameterNotFound):
        net["blocks.2.bias"]


def test_a_name_that_two_layers_have_or_an_attribute_has_gives_way_to_the_attributes(lib: Any) -> None:
    class Net(lib.Model):
        def __init__(self) -> None:
            super().__init__()
            self.a = lib.layers.Dense(4, name="same")
            self.b = lib.layers.Dense(4, name="same")
            self.c = lib.layers.Dense(4, name="d")
            self.d = lib.layers.Dense(4)

        def call(self, x: Any) -> Any:
            return self.d(self.c(self.b(self.a(x))))

    assert listed(Net) == both("a", "b", "c", "d")


def test_a_given_digit_does_not_clash_with_a_position(lib: Any) -> None:
    dense = lib.layers.Dense
    assert listed(lambda: lib.Sequential([dense(4, name="1"), dense(3)])) == both("0", "1")


def test_the_counter_in_a_parents_name_does_not_show_in_names_made_of_it(lib: Any) -> None:
    class CountedBlock(lib.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = lib.layers.Dense(4, name=self.name + "_projection")

        def build(self, shape: Any) -> None:
            self.inner.build(shape)
            self.built = True

        def call(self, x: Any) -> Any:
            return self.inner(x)

    assert listed(lambda: lib.Sequential([CountedBlock(), CountedBlock()])) == both("0.projection", "1.projection")


def test_a_private_classs_counter_does_not_show(lib: Any) -> None:
    class _Head(lib.layers.Dense):
        pass

    def make() -> Any:
        x = lib.Input((4,))
        return lib.Model(x, _Head(1)(_Head(4)(x)))

    names = listed(make)
    assert len(names) == 4
    assert not any(digit in name for digit in "23456789" for name in names)


def test_parts_that_keras_names_itself_keep_the_canonical_names(lib: Any) -> None:
    def make() -> Any:
        x = lib.Input((4, 4))
        y = lib.layers.MultiHeadAttention(2, 2, name="attention")(x, x)
        return lib.Model(x, lib.layers.LSTM(3, name="memory")(y))

    first, second = mp.wrap(make()), mp.wrap(make())
    assert list(first.parameters()) == list(second.parameters())
    assert list(first.parameters()) == [
        *(f"attention.in_proj_{leaf}" for leaf in ("weight", "bias")),
        *both("attention.out_proj"),
        *(f"memory.{leaf}_l0" for leaf in ("weight_ih", "weight_hh", "bias_ih")),
    ]


# -- where layers and variables are held


def test_layers_in_private_attributes_lists_mappings_and_sets_are_found_once(lib: Any) -> None:
    class Net(lib.Model):
        def __init__(self) -> None:
            super().__init__()
            dense = lib.layers.Dense
            self._self_attention_layer = dense(4)
            self._blocks = [dense(4), [dense(4)]]
            self._heads = {"main": dense(4), "more": {"deep": dense(4)}}
            self.used = [self._self_attention_layer, *self._blocks[:1]]
            if lib.__name__ == "keras":
                self._set = {dense(4)}

        def call(self, x: Any) -> Any:
            layers = [self._self_attention_layer, self._blocks[0], self._blocks[1][0]]
            layers += [self._heads["main"], self._heads["more"]["deep"], *getattr(self, "_set", ())]
            for layer in layers:
                x = layer(x)
            return x

    names = both("used.0", "used.1", "blocks.1.0", "heads.main", "heads.more.deep")
    assert listed(Net) == names + (both("dense") if lib.__name__ == "keras" else [])


def test_a_layer_that_a_subclass_of_sequential_keeps_beside_its_list_is_found(lib: Any) -> None:
    """Keras saves and computes with it, though its ``weights`` leave it out."""

    class Net(lib.Sequential):
        def __init__(self) -> None:
            super().__init__([lib.layers.Dense(4)])
            self.extra = lib.layers.Dense(4)

        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            return self.extra(super().call(inputs))

    native = Net()
    native(X)
    net = mp.wrap(native)
    assert list(net.parameters()) == both("0", "extra")
    assert net["extra.weight"].native is native.extra.kernel


def test_variables_in_lists_and_mappings_and_nowhere_are_found(lib: Any) -> None:
    class Weights(lib.layers.Layer):
        def build(self, shape: Any) -> None:
            new = lambda name: self.add_weight(shape=(4,), initializer="ones", name=name)  # noqa: E731
            self.scales = [new("scale"), new("scale")]
            self.table = {"shift": new("shift")}
            new("unheld")
            self.built = True

        def call(self, x: Any) -> Any:
            return x * self.scales[0] * self.scales[1] + self.table["shift"] + self.weights[-1]

    make = lambda: lib.Sequential([Weights()])  # noqa: E731
    assert listed(make) == ["0.scales.0", "0.scales.1", "0.table.shift", "0.unheld"]
    native = make()
    net = mp.wrap(native, X)
    net["0.scales.1"].assign(np.arange(4, dtype="float32"))
    np.testing.assert_allclose(mp.to_numpy(net(X)), X * np.arange(4) + 2, rtol=1e-6)
    with pytest.raises(mp.errors.Unsupported, match="in no attribute"):
        net.tie("0.scales.1", "0.scales.0")


def test_layers_without_variables_that_no_call_reaches_need_no_inputs(lib: Any) -> None:
    class Net(lib.Model):
        def __init__(self) -> None:
            super().__init__()
            self.idle = lib.layers.Dropout(0.5)
            self.out = lib.layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.out(x)

    native = Net()
    native(X)
    assert list(mp.wrap(native).parameters()) == both("out")


def test_a_layer_no_call_of_a_functional_model_reaches_is_left_out(lib: Any) -> None:
    class Half(lib.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = lib.layers.Dense(4), lib.layers.Dense(4)

        def build(self, shape: Any) -> None:
            self.used.build(shape)
            self.built = True

        def call(self, x: Any) -> Any:
            return self.used(x)

    x = lib.Input((4,))
    native = lib.Model(x, Half()(x))
    with pytest.warns(mp.MultiparamWarning, match=r"reached its layer 'dense.*', which is left out"):
        net = mp.wrap(native)
    assert list(net.parameters()) == both("half.used")
    assert list(mp.wrap(native, X).parameters()) == both("half.used")


# -- one layer under two attributes


def shared(lib: Any) -> Any:
    class Net(lib.Model):
        def __init__(self) -> None:
            super().__init__()
            self.embed = self.again = lib.layers.Dense(4)
            self.out = lib.layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.out(self.again(self.embed(x)))

    native = Net()
    native(X)
    return native


def test_a_layer_under_two_attributes_is_one_layer_with_an_alias(lib: Any) -> None:
    net = mp.wrap(shared(lib))
    assert list(net.parameters()) == both("embed", "out")
    assert net["again.weight"] is net["embed.weight"]
    assert net["embed.weight"].names == ("embed.weight", "again.weight")
    assert list(net.layers()) == [("embed", "again"), ("out",)]


@pytest.mark.needs("torch")
def test_a_layer_under_two_attributes_blocks_no_transfer_and_no_comparison(lib: Any) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

        def forward(self, x: Any) -> Any:
            return self.out(self.embed(self.embed(x)))

    for source, target in (
        (mp.wrap(Net()), mp.wrap(shared(lib))),
        (mp.wrap(shared(lib)), mp.wrap(Net())),
        (mp.wrap(shared(lib)), mp.wrap(shared(lib))),
    ):
        plan = mp.plan(source, target)
        assert plan.complete
        assert not (plan.guesses or plan.unused or plan.ties)
        assert mp.transfer(source, target, verify=X).agrees
        assert mp.compare({"reference": source, "candidate": target}, X).agrees
