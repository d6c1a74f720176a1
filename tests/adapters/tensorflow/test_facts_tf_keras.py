"""tf_keras models as their users write them: the five verbs against a native tape, its optimizers and get_weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multiparam as mp

tf_keras = pytest.importorskip("tf_keras")
tf = pytest.importorskip("tensorflow")
layers = tf_keras.layers

pytestmark = [pytest.mark.needs("tensorflow", "tf_keras"), pytest.mark.xdist_group("tensorflow")]

rng = np.random.default_rng(0)
X = rng.normal(size=(6, 4)).astype("float32")
Y = rng.normal(size=(6, 1)).astype("float32")


def sequential() -> Any:
    return tf_keras.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(4, activation="tanh"),
            tf_keras.Sequential([layers.Dense(4), layers.BatchNormalization()]),
            layers.Dense(1),
        ]
    )


def functional() -> Any:
    """Two branches that meet, one layer used in both, auto-named layers beside one with a name."""
    x = layers.Input((4,))
    shared = layers.Dense(4, activation="tanh")
    left = shared(layers.Dense(4, activation="tanh", name="left.eye")(x))
    right = shared(layers.LayerNormalization()(x))
    return tf_keras.Model(x, layers.Dense(1)(layers.Concatenate()([left, right])))


class Block(layers.Layer):
    """A layer of one's own, with weights and a layer inside."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units
        self.inner = layers.Dense(units, activation="tanh")

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(name="any", shape=(self.units,), initializer="ones")
        self.calls = self.add_weight(name="any", shape=(), initializer="zeros", trainable=False)
        super().build(shape)

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.calls.assign_add(1.0)
        return self.inner(x) * self.scale


class Subclassed(tf_keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block(4), Block(4)]
        self.heads = {"main": layers.Dense(1)}

    def call(self, x: Any, training: bool = False) -> Any:
        for block in self.blocks:
            x = block(x, training=training)
        return self.heads["main"](x)


def both(*names: str) -> list[str]:
    return [f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")]


MAKE: dict[str, Callable[[], Any]] = {
    "sequential": sequential,
    "functional": functional,
    "subclassed": Subclassed,
}
NAMES = {
    "sequential": both("0", "1.0", "1.1", "2"),
    "functional": both(r"left\.eye", "layer_normalization", "dense", "dense_1"),
    "subclassed": [
        *(f"blocks.{i}.{leaf}" for i in (0, 1) for leaf in ("scale", "inner.weight", "inner.bias")),
        *both("heads.main"),
    ],
}
REACH: dict[str, dict[str, Callable[[Any], Any]]] = {
    "sequential": {
        "0.weight": lambda m: m.layers[0].kernel,
        "1.0.bias": lambda m: m.layers[1].layers[0].bias,
        "1.1.weight": lambda m: m.layers[1].layers[1].gamma,
        "1.1.running_var": lambda m: m.layers[1].layers[1].moving_variance,
        "2.weight": lambda m: m.layers[2].kernel,
    },
    "functional": {
        r"left\.eye.weight": lambda m: m.get_layer("left.eye").kernel,
        "layer_normalization.weight": lambda m: m.layers[2].gamma,
        "dense.bias": lambda m: m.layers[3].bias,
        "dense_1.weight": lambda m: m.layers[-1].kernel,
    },
    "subclassed": {
        "blocks.1.inner.weight": lambda m: m.blocks[1].inner.kernel,
        "blocks.0.scale": lambda m: m.blocks[0].scale,
        "blocks.1.calls": lambda m: m.blocks[1].calls,
        "heads.main.weight": lambda m: m.heads["main"].kernel,
    },
}
every_model = pytest.mark.parametrize("case", MAKE)


def make(case: str) -> Any:
    native = MAKE[case]()
    native(X)
    return native


def twins(case: str) -> tuple[Any, Any]:
    first, second = make(case), make(case)
    second.set_weights(first.get_weights())
    return first, second


def canonical(parameter: mp.Parameter, native: Any) -> np.ndarray:
    array = tf.convert_to_tensor(native).numpy()
    return array.T if parameter.kind == "linear" else array


def near(ours: Any, truth: Any) -> None:
    np.testing.assert_allclose(mp.to_numpy(ours), truth, rtol=2e-5, atol=5e-6)


def tape(native: Any) -> tuple[Any, dict[int, Any]]:
    with tf.GradientTape() as recorded:
        loss = tf.reduce_mean((native(X, training=True) - Y) ** 2)
    grads = recorded.gradient(loss, native.trainable_weights)
    return loss, {id(w): g for w, g in zip(native.trainable_weights, grads, strict=True)}


# -- access and all parameters


@every_model
def test_every_weight_is_listed_once_under_a_stable_name(case: str) -> None:
    native = make(case)
    net = mp.wrap(native)
    assert sorted(net.parameters()) == sorted(NAMES[case])
    assert {id(p.native) for p in net} == {id(w) for w in native.trainable_weights}
    assert {id(p.native) for p in net.buffers().values()} == {id(w) for w in native.non_trainable_weights}
    assert list(mp.wrap(make(case)).parameters()) == list(net.parameters())


@every_model
def test_a_name_reaches_the_variable_the_attributes_reach(case: str) -> None:
    native = make(case)
    net = mp.wrap(native)
    for name, reach in REACH[case].items():
        assert net[name].native is reach(native)
        np.testing.assert_array_equal(net[name].numpy(), canonical(net[name], reach(native)))
        net[name][...] = 0.5
        np.testing.assert_array_equal(reach(native).numpy(), 0.5)
        reach(native).assign_add(tf.ones_like(reach(native)))
        np.testing.assert_array_equal(net[name].numpy(), 1.5)


@pytest.mark.parametrize("nested", [False, True], ids=["sequential", "subclassed"])
def test_an_unbuilt_model_is_built_by_an_example_and_refused_without(nested: bool) -> None:
    """Layers: tf_keras .weights raises ValueError before it is built, or in a subclass gives what there is."""
    native = Subclassed() if nested else tf_keras.Sequential([layers.Dense(3), layers.Dense(1)])
    with pytest.raises(mp.errors.UnknownShapes, match="example inputs"):
        mp.wrap(native)
    assert len(mp.wrap(native, X)) == len(native.trainable_weights) > 0


def test_a_transposed_convolution_is_not_taken_for_a_convolution() -> None:
    """Layers: in tf_keras Conv2DTranspose derives from Conv2D, but its kernel is (h, w, out, in)."""
    x = np.ones((1, 5, 5, 2), "float32")
    native = tf_keras.Sequential([layers.Conv2DTranspose(7, 3)])
    net = mp.wrap(native, x)
    weight = next(p for p in net if p.native is native.layers[0].kernel)
    assert tuple(weight.native.shape) == (3, 3, 7, 2)
    assert (weight.kind, weight.shape) == ("conv_transpose", (2, 7, 3, 3))  # PyTorch's (in, out, h, w)
    np.testing.assert_array_equal(weight.numpy(), weight.native.numpy().transpose(3, 2, 0, 1))


# -- gradients and optimizers


@every_model
def test_the_forward_pass_and_a_steps_gradients_are_native(case: str) -> None:
    native, twin = twins(case)
    net = mp.wrap(native)
    near(net(X), twin(X, training=False).numpy())
    for _ in range(2):
        loss, grads = net.value_and_grad(mp.losses.mse)(X, Y)
        expected, truth = tape(twin)
        near(loss, expected.numpy())
        assert set(grads) == set(NAMES[case])
        positions = {id(w): i for i, w in enumerate(native.weights)}
        for name, g in grads.items():
            other = twin.weights[positions[id(net[name].native)]]
            near(g, canonical(net[name], truth[id(other)]))
            near(net[name].grad, canonical(net[name], truth[id(other)]))
    for ours, theirs in zip(native.weights, twin.weights, strict=True):  # statistics and counts have moved alike
        near(ours.numpy(), theirs.numpy())


@every_model
@pytest.mark.parametrize(
    ("name", "options", "rule"),
    [
        ("sgd", {"lr": 0.1}, lambda: tf_keras.optimizers.SGD(0.1)),
        ("momentum", {"lr": 0.1, "momentum": 0.8}, lambda: tf_keras.optimizers.SGD(0.1, 0.8)),
        ("momentum", {"lr": 0.1, "nesterov": True}, lambda: tf_keras.optimizers.SGD(0.1, 0.9, True)),
    ],
    ids=["sgd", "momentum", "nesterov"],
)
def test_training_ends_where_tf_keras_own_optimizer_ends(
    case: str, name: str, options: dict[str, Any], rule: Callable[[], Any]
) -> None:
    native, twin = twins(case)
    net, optimizer = mp.wrap(native), rule()
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer(name, **options)
    for _ in range(4):
        step(X, Y)
        opt.step()
        _, grads = tape(twin)
        optimizer.apply_gradients([(grads[id(w)], w) for w in twin.trainable_weights])
    for ours, theirs in zip(native.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_fit_trains_the_same_variables_and_its_results_are_seen() -> None:
    native, twin = twins("subclassed")
    net = mp.wrap(native)
    native.compile(tf_keras.optimizers.SGD(0.1), "mse")
    native.fit(X, Y, batch_size=6, epochs=1, verbose=0)
    view = mp.wrap(twin)
    view.value_and_grad(mp.losses.mse)(X, Y)
    view.optimizer("sgd", lr=0.1).step()
    for name, p in net.parameters().items():
        near(view[name].numpy(), p.numpy())


def test_evaluation_runs_without_training_and_moves_nothing() -> None:
    native = make("sequential")
    net = mp.wrap(native)
    before = net.state_dict()
    net.value_and_grad(mp.losses.mse, train=False)(X, Y)
    net(X)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    net(X, train=True)
    assert not np.array_equal(net["1.1.running_mean"].numpy(), before["1.1.running_mean"])


def test_a_shared_functional_layer_is_one_parameter_whose_gradient_is_the_sum() -> None:
    """The same layer used twice: against a twin with a layer for each use."""
    native = make("functional")
    x = layers.Input((4,))
    one, two = (layers.Dense(4, activation="tanh") for _ in range(2))
    left = one(layers.Dense(4, activation="tanh", name="left.eye")(x))
    right = two(layers.LayerNormalization()(x))
    twin = tf_keras.Model(x, layers.Dense(1)(layers.Concatenate()([left, right])))
    net = mp.wrap(native)
    for name, layer in {
        r"left\.eye": twin.get_layer("left.eye"),
        "dense": one,
        "dense_1": twin.layers[-1],
    }.items():
        layer.set_weights([net[f"{name}.weight"].numpy().T, net[f"{name}.bias"].numpy()])
    two.set_weights(one.get_weights())
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    _, truth = tape(twin)
    first, second = truth[id(one.kernel)].numpy(), truth[id(two.kernel)].numpy()
    assert first.any() and second.any()
    near(grads["dense.weight"], (first + second).T)


# -- tie and untie


def test_a_tie_keeps_the_order_of_the_native_weights_and_is_trained_natively() -> None:
    """Tying, tf_keras: plain assignment works; deleting first reorders the weights."""
    native = make("subclassed")
    net = mp.wrap(native)
    kernel, bias = native.blocks[1].inner.kernel, native.blocks[1].inner.bias
    net.tie("blocks.1.inner.weight", "blocks.0.inner.weight")
    assert native.blocks[1].inner.kernel is native.blocks[0].inner.kernel is not kernel
    assert [id(w) for w in native.blocks[1].inner.weights] == [id(native.blocks[0].inner.kernel), id(bias)]
    assert len(native.trainable_weights) == 7
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    _, truth = tape(native)
    near(grads["blocks.0.inner.weight"], truth[id(native.blocks[0].inner.kernel)].numpy().T)


def test_an_untied_variable_is_independent_and_in_the_layers_weights() -> None:
    native = make("subclassed")
    net = mp.wrap(native)
    net.tie("blocks.1.inner.weight", "blocks.0.inner.weight")
    net.untie("blocks.0.inner.weight")
    first, second = native.blocks[0].inner, native.blocks[1].inner
    np.testing.assert_array_equal(first.kernel.numpy(), second.kernel.numpy())
    net["blocks.0.inner.weight"][:] = 0
    assert second.kernel.numpy().any() and not first.kernel.numpy().any()
    assert [id(w) for w in first.weights] == [id(first.kernel), id(first.bias)]
    assert len(native.trainable_weights) == 8
    near(net(X), native(X).numpy())


def test_a_layer_used_twice_natively_cannot_be_untied_through_one_attribute_of_two() -> None:
    class Twice(tf_keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.one = layers.Dense(4, activation="tanh")
            self.two = self.one
            self.end = layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.end(self.two(self.one(x)))

    net = mp.wrap(Twice(), X)
    assert net.ties() == [("one.weight", "two.weight"), ("one.bias", "two.bias")]
    with pytest.raises(mp.errors.TieError, match="one layer used at 2 positions"):
        net.untie("two.weight")
    net.tie("one.weight", "two.weight")
    assert len(net) == 4


# -- init and freezing


@every_model
def test_initialisers_reach_the_native_variables_whatever_their_layout(case: str) -> None:
    native = make(case)
    net = mp.wrap(native)
    net.init(mp.init.normal(), seed=3)
    for name, reach in REACH[case].items():
        if not net[name].buffer:
            drawn = mp.init.draw(mp.init.normal(), net[name].shape, seed=3, name=name)
            np.testing.assert_array_equal(canonical(net[name], reach(native)), drawn)


def test_tf_keras_own_initialisers_see_the_native_layout_and_our_seed() -> None:
    native = tf_keras.Sequential([layers.Input((1000,)), layers.Dense(40), layers.Dense(1)])
    net = mp.wrap(native)
    rule = tf_keras.initializers.LecunNormal(seed=7)
    net.init(rule, "0.weight", seed=1)
    first = native.layers[0].kernel.numpy()
    assert first.std() == pytest.approx(1000**-0.5, rel=0.05)
    net.init(rule, "0.weight", seed=2)
    assert not np.array_equal(native.layers[0].kernel.numpy(), first)
    net.init(tf_keras.initializers.Constant(42), "1.weight")
    np.testing.assert_array_equal(native.layers[1].kernel.numpy(), 42)


def test_freezing_a_layer_is_seen_by_fit_and_undone_by_unfreeze() -> None:
    """Frozen: tf_keras per LAYER only."""
    native = make("sequential")
    net = mp.wrap(native)
    net.freeze("0.*")
    assert not native.layers[0].trainable and len(native.trainable_weights) == 6
    native.compile(tf_keras.optimizers.SGD(0.1), "mse")
    before = net.state_dict()
    native.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(net["0.weight"].numpy(), before["0.weight"])
    assert not np.array_equal(net["2.weight"].numpy(), before["2.weight"])
    net.unfreeze("*")
    assert len(native.trainable_weights) == 8
