"""The seed documents' TensorFlow cells: built and read with Keras alone, then read through multiparam.

Cells that Keras 3 and tf_keras 2 answer alike run in both; the document's remarks about tf.keras are about the latter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multiparam as mp

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

pytestmark = [pytest.mark.needs("tensorflow"), pytest.mark.xdist_group("tensorflow")]


@pytest.fixture(params=["keras", pytest.param("tf_keras", marks=pytest.mark.needs("tf_keras"))])
def lib(request: pytest.FixtureRequest) -> Any:
    """Keras 3, then tf_keras 2."""
    library = pytest.importorskip(request.param)
    library.utils.set_random_seed(0)
    return library


@pytest.fixture
def tf_keras() -> Any:
    library = pytest.importorskip("tf_keras")
    library.utils.set_random_seed(0)
    return library


def batch(columns: int = 4) -> Any:
    return tf.random.uniform((2, columns), seed=1)


def mlp(lib: Any) -> Any:
    layers = lib.layers
    return lib.models.Sequential([layers.Flatten(), layers.Dense(4, activation=tf.nn.relu), layers.Dense(1)])


def mean_square(net: Any, X: Any, y: Any) -> Any:
    return tf.reduce_mean((net(X) - y) ** 2)


def tape_gradients(net: Any, X: Any, y: Any) -> tuple[Any, list[Any]]:
    """The loss and the gradient of every trainable variable, as a TensorFlow loop computes them."""
    with tf.GradientTape() as tape:
        loss = mean_square(net, X, y)
    return loss, tape.gradient(loss, net.trainable_variables)


def same(parameter: Any, native: Any) -> None:
    """One of ours holds exactly the values of a variable, a matrix being transposed between them; it is that one."""
    values = native.numpy()
    np.testing.assert_array_equal(parameter.numpy(), values.T)
    assert parameter.shape == values.T.shape
    assert parameter.native is native


# -- the MLP, and access


def test_wrapping_an_unbuilt_mlp_with_an_input_gives_it_the_shapes_a_call_gives(lib: Any) -> None:
    """001: net(X).shape, TensorFlow."""
    net, X = mlp(lib), batch()
    view = mp.wrap(net, X)
    assert tuple(view(X).shape) == tuple(net(X).shape) == (2, 1)
    assert view.native is net
    np.testing.assert_array_equal(mp.to_numpy(view(X)), net(X).numpy())


def test_an_unbuilt_mlp_without_an_input_is_refused_with_the_cure(lib: Any) -> None:
    """001: the variables are made in the first call."""
    with pytest.raises(mp.errors.UnknownShapes, match=r"mp\.wrap\(net, X\)"):
        mp.wrap(mlp(lib))


def test_the_second_dense_layer_holds_its_two_native_weights(lib: Any) -> None:
    """001: net.layers[2].weights."""
    net, X = mlp(lib), batch()
    net(X)
    layer = mp.wrap(net)[2].parameters()
    assert list(layer) == ["weight", "bias"]
    for parameter, native in zip(layer.values(), net.layers[2].weights, strict=True):
        same(parameter, native)


def test_the_flatten_layer_counts_as_a_position_and_holds_nothing(lib: Any) -> None:
    """001: the list of layers begins with Flatten."""
    net, X = mlp(lib), batch()
    view = mp.wrap(net, X)
    assert net.layers[0].weights == []
    with pytest.raises(mp.errors.PositionError, match="Positions with parameters: 1, 2"):
        view[0]


def test_the_bias_is_the_native_variable_with_its_value(lib: Any) -> None:
    """001: type(net.layers[2].weights[1]) and its tensor."""
    net, X = mlp(lib), batch()
    net(X)
    bias = mp.wrap(net)[2]["bias"]
    native = net.layers[2].weights[1]
    assert type(bias.native) is type(native)
    assert isinstance(native, keras.Variable if lib is keras else tf.Variable)
    same(bias, native)
    assert tf.is_tensor(bias.value)
    np.testing.assert_array_equal(bias.value.numpy(), tf.convert_to_tensor(native).numpy())
    assert (bias.dtype, bias.kind, bias.trainable) == ("float32", "linear", True)


def test_no_parameter_has_a_gradient_before_a_step(lib: Any) -> None:
    """001: the initial state; TensorFlow itself keeps no gradients."""
    net, X = mlp(lib), batch()
    assert [p.grad for p in mp.wrap(net, X)] == [None] * 4


def test_a_gradient_step_agrees_with_a_native_tape(lib: Any) -> None:
    """001: gradients, asked for through multiparam."""
    net, X, y = mlp(lib), batch(), batch(1)
    view = mp.wrap(net, X)
    loss, grads = view.value_and_grad(mp.losses.mse)(X, y)
    expected, natives = tape_gradients(net, X, y)
    np.testing.assert_allclose(float(loss), float(expected), rtol=1e-6)
    assert list(grads) == ["1.weight", "1.bias", "2.weight", "2.bias"]
    for parameter, grad, native in zip(view, grads.values(), natives, strict=True):
        np.testing.assert_allclose(mp.to_numpy(grad), native.numpy().T, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(mp.to_numpy(parameter.grad), mp.to_numpy(grad))
    assert mp.to_numpy(grads["2.bias"]).any()


def test_all_parameters_at_once_are_those_get_weights_gives(lib: Any) -> None:
    """001: net.get_weights(); a kernel is the transpose of a weight."""
    net, X = mlp(lib), batch()
    net(X)
    ours = mp.wrap(net).parameters()
    assert [(name, p.shape) for name, p in ours.items()] == [
        ("1.weight", (4, 4)),
        ("1.bias", (4,)),
        ("2.weight", (1, 4)),
        ("2.bias", (1,)),
    ]
    for parameter, native in zip(ours.values(), net.get_weights(), strict=True):
        np.testing.assert_array_equal(parameter.numpy(), native.T)


def test_the_flat_name_reaches_the_layers_bias(lib: Any) -> None:
    """003: '2.bias', in Keras."""
    net, X = mlp(lib), batch()
    view = mp.wrap(net, X)
    same(view["2.bias"], net.layers[2].bias)
    assert view["2.bias"] is view[2]["bias"]


# -- nested blocks


def block1(lib: Any, name: str) -> Any:
    layers = lib.layers
    return lib.models.Sequential([layers.Dense(8, activation="relu"), layers.Dense(4, activation="relu")], name=name)


def block2(lib: Any) -> Any:
    net = lib.models.Sequential()
    for i in range(4):
        net.add(block1(lib, f"block-{i}"))
    return net


def test_nested_blocks_are_indexed_as_a_nested_list(lib: Any) -> None:
    """003: rgnet[0][1][0].bias, in Keras; positions count whatever the children's names are."""
    rgnet, X = lib.models.Sequential([block2(lib), lib.layers.Dense(1)]), batch()
    view = mp.wrap(rgnet, X)
    same(view[0][1][0]["bias"], rgnet.layers[0].layers[1].layers[0].bias)
    assert view[0][1][0]["bias"].name == "0.block-1.0.bias"


def test_all_parameters_of_nested_blocks_are_those_of_get_weights(lib: Any) -> None:
    """003: all of rgnet, in Keras."""
    rgnet, X = lib.models.Sequential([block2(lib), lib.layers.Dense(1)]), batch()
    ours = mp.wrap(rgnet, X).parameters()
    inner = [f"0.block-{i}.{j}.{leaf}" for i in range(4) for j in range(2) for leaf in ("weight", "bias")]
    assert list(ours) == [*inner, "1.weight", "1.bias"]
    for parameter, native in zip(ours.values(), rgnet.get_weights(), strict=True):
        np.testing.assert_array_equal(parameter.numpy(), native.T)


def test_the_names_given_to_the_blocks_of_a_functional_model_are_kept(lib: Any) -> None:
    """003: blocks with names, in a Functional model."""
    inputs = outputs = lib.Input((4,))
    blocks = [block1(lib, f"block-{i}") for i in range(4)]
    for block in blocks:
        outputs = block(outputs)
    rgnet = lib.Model(inputs, outputs)
    view = mp.wrap(rgnet)
    assert list(view.parameters())[4:8] == [f"block-1.{j}.{leaf}" for j in (0, 1) for leaf in ("weight", "bias")]
    same(view["block-1"][0]["bias"], blocks[1].layers[0].bias)


def test_a_layers_name_may_hold_a_space() -> None:
    """003: 'block 1', as the name of a Keras 3 layer."""
    inputs = outputs = keras.Input((4,))
    for i in range(2):
        outputs = keras.layers.Dense(4, name=f"block {i}")(outputs)
    net = keras.Model(inputs, outputs)
    view = mp.wrap(net)
    assert list(view.parameters())[2:] == ["block 1.weight", "block 1.bias"]
    same(view["block 1.weight"], net.get_layer("block 1").kernel)


# -- initialisation


def my_init(lib: Any) -> Any:
    class MyInit(lib.initializers.Initializer):
        def __call__(self, shape: Any, dtype: Any = None, **kwargs: Any) -> Any:
            data = tf.random.uniform(shape, -10, 10, dtype=dtype)
            return data * tf.cast(tf.abs(data) >= 5, data.dtype)

    return MyInit()


def my_rule(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    w = rng.uniform(-10, 10, shape)
    return w * (np.abs(w) >= 5)


RANGES = {"normal": (0.0, 0.1), "constant": (1, 1), "custom": (5, 10)}


@pytest.mark.parametrize("which", RANGES)
def test_kerass_own_initialisers_are_seen(lib: Any, which: str) -> None:
    """003: normal, constant and custom weights, as kernel_initializer."""
    rules = lib.initializers
    rule = {"normal": rules.RandomNormal(stddev=0.01), "constant": rules.Constant(1), "custom": my_init(lib)}[which]
    first = lib.layers.Dense(8, kernel_initializer=rule, bias_initializer=rules.Zeros())
    net = lib.models.Sequential([first, lib.layers.Dense(1)])
    net(batch())
    view = mp.wrap(net)
    same(view["0.weight"], first.kernel)
    low, high = RANGES[which]
    assert low <= float(np.abs(view["0.weight"].numpy()).max()) <= high
    assert not view["0.bias"].numpy().any()


def test_xavier_and_42_by_block_done_in_keras_are_seen(lib: Any) -> None:
    """003: Xavier in the first layer, 42 in the second, as kernel_initializer."""
    rules = lib.initializers
    first = lib.layers.Dense(8, kernel_initializer=rules.GlorotUniform())
    net = lib.models.Sequential([first, lib.layers.Dense(1, kernel_initializer=rules.Constant(42))])
    net(batch())
    view = mp.wrap(net)
    same(view[0]["weight"], first.kernel)
    assert view[1]["weight"].numpy().tolist() == [[42.0] * 8]


def test_normal_weights_and_zero_biases_are_written_to_the_native_model(lib: Any) -> None:
    """003: normal with standard deviation 0.01, in multiparam's words."""
    net = lib.models.Sequential([lib.layers.Dense(80, bias_initializer="ones"), lib.layers.Dense(1)])
    view = mp.wrap(net, batch(400))
    view.init(mp.init.normal(std=0.01), "*.weight", seed=1)
    view.init(mp.init.zeros(), "*.bias")
    kernel = net.layers[0].kernel.numpy()
    assert abs(float(kernel.mean())) < 3e-4  # 32000 numbers: five standard errors
    assert float(kernel.std()) == pytest.approx(0.01, rel=0.03)
    assert not net.layers[0].bias.numpy().any()


def test_xavier_and_42_by_block_reach_only_their_block(lib: Any) -> None:
    """003: the same by block in multiparam's words."""
    net, X = mlp(lib), batch()
    view = mp.wrap(net, X)
    view["1.bias"][:] = 3
    view[1].init(mp.init.xavier_uniform(), "weight", seed=3)
    view[2].init(mp.init.constant(42), "weight")
    bound = (6 / (4 + 4)) ** 0.5
    assert bound / 2 < float(np.abs(net.layers[1].kernel.numpy()).max()) <= bound
    assert net.layers[2].kernel.numpy().tolist() == [[42.0]] * 4
    assert net.layers[1].bias.numpy().tolist() == [3.0] * 4


def test_kerass_own_initialisers_can_be_handed_to_a_block(lib: Any) -> None:
    """003: keras.initializers, given to multiparam, a reader's own among them."""
    net, X = mlp(lib), batch()
    view = mp.wrap(net, X)
    view[1].init(lib.initializers.GlorotUniform(), "weight", seed=1)
    assert 0 < float(np.abs(net.layers[1].kernel.numpy()).max()) <= (6 / 8) ** 0.5
    view[2].init(lib.initializers.Constant(42), "weight")
    assert net.layers[2].kernel.numpy().tolist() == [[42.0]] * 4
    view[1].init(my_init(lib), "weight", seed=1)
    w = net.layers[1].kernel.numpy()
    assert np.abs(w[w != 0]).min() >= 5 and np.abs(w).max() <= 10


def test_the_custom_distribution_has_its_three_parts(lib: Any) -> None:
    """003: U(5, 10), 0 and U(-10, -5) with chances 1/4, 1/2, 1/4."""
    net = lib.models.Sequential([lib.layers.Dense(200), lib.layers.Dense(1)])
    mp.wrap(net, batch(100)).init(my_rule, "*.weight", seed=2)
    w = net.layers[0].kernel.numpy()
    assert set(np.unique(np.sign(w))) == {-1.0, 0.0, 1.0}
    assert np.abs(w[w != 0]).min() >= 5 and np.abs(w).max() <= 10
    np.testing.assert_allclose([(w > 0).mean(), (w == 0).mean(), (w < 0).mean()], [0.25, 0.5, 0.25], atol=0.02)


def test_parameters_are_set_directly_and_natively_seen(lib: Any) -> None:
    """003: += 1 and [0, 0] = 42; an index is in (out, in)."""
    net, X = mlp(lib), batch()
    p = mp.wrap(net, X)[1]["weight"]
    expected = net.layers[1].kernel.numpy() + np.float32(1)
    expected[0, 0], expected[2, 3] = 42, 7
    p[:] += 1
    p[0, 0] = 42
    p[3, 2] = 7
    np.testing.assert_array_equal(net.layers[1].kernel.numpy(), expected)


def test_a_native_assignment_is_seen(lib: Any) -> None:
    """003: the same by assign, on a wrapped model."""
    net, X = mlp(lib), batch()
    p = mp.wrap(net, X)[1]["weight"]
    before = p.numpy()
    kernel = net.layers[1].weights[0]
    kernel.assign(kernel + 1)
    np.testing.assert_array_equal(p.numpy(), before + np.float32(1))
    same(p, kernel)


# -- tied layers


def tied(lib: Any) -> Any:
    """The document's: Flatten, one Dense twice, Dense."""
    shared = lib.layers.Dense(4, activation=tf.nn.relu)
    return lib.models.Sequential([lib.layers.Flatten(), shared, shared, lib.layers.Dense(1)])


def untied_twin(net: Any, X: Any) -> Any:
    """Layers of their own with the values of the tied MLP, in Keras 3 alone."""
    layers = keras.layers
    middle = [layers.Dense(4, activation=tf.nn.relu) for _ in range(2)]
    twin = keras.models.Sequential([layers.Flatten(), *middle, layers.Dense(1)])
    twin(X)
    shared, last = net.layers[1], net.layers[-1]
    twin.set_weights([*shared.get_weights(), *shared.get_weights(), *last.get_weights()])
    return twin


def test_keras_3_lists_four_layers_where_the_document_says_three() -> None:
    """001: len(net.layers); Keras 3 keeps the duplicate, and multiparam ties its names."""
    net, X = tied(keras), batch()
    net(X)
    view = mp.wrap(net)
    assert len(net.layers) == 4
    assert net.layers[1] is net.layers[2]
    assert list(view.layers()) == [("1", "2"), ("3",)]
    assert len(view.parameters()) == len(net.weights) == 4


def test_three_dense_layers_over_four_positions_are_three_layers_in_keras_3() -> None:
    """001: the tied MLP of the other tabs, in Keras 3."""
    shared = keras.layers.Dense(8, activation="relu")
    first, last = keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)
    net = keras.models.Sequential([first, shared, shared, last])
    view = mp.wrap(net, batch())
    assert list(view.layers()) == [("0",), ("1", "2"), ("3",)]
    assert len(view.parameters()) == len(net.weights) == 6


@pytest.mark.needs("tf_keras")
def test_tf_keras_lists_three_layers_as_the_document_says(tf_keras: Any) -> None:
    """001: len(net.layers) == 3; the duplicate is gone, and the layer is applied once."""
    net, X = tied(tf_keras), batch()
    native = net(X).numpy()
    view = mp.wrap(net)
    assert len(net.layers) == 3
    assert list(view.layers()) == [("1",), ("2",)]
    assert view.ties() == []
    same(view["1.weight"], net.layers[1].kernel)
    hidden = np.maximum(X.numpy() @ view["1.weight"].numpy().T + view["1.bias"].numpy(), 0)
    once = hidden @ view["2.weight"].numpy().T + view["2.bias"].numpy()
    np.testing.assert_allclose(native, once, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mp.to_numpy(view(X)), native)


@pytest.mark.needs("tf_keras")
def test_tf_keras_with_an_input_layer_lists_three_but_applies_the_shared_one_twice(tf_keras: Any) -> None:
    """001: the same list, built from an Input first."""
    layers = tf_keras.layers
    shared = layers.Dense(4, activation="relu")
    net = tf_keras.models.Sequential([layers.Input((4,)), layers.Flatten(), shared, shared, layers.Dense(1)])
    X, y = batch(), batch(1)
    view = mp.wrap(net)
    assert len(net.layers) == 3
    assert list(view.parameters()) == ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert view.ties() == [("1.weight", "2.weight"), ("1.bias", "2.bias")]  # what it computes, not what it lists
    hidden = X.numpy()
    for _ in range(2):
        hidden = np.maximum(hidden @ view["1.weight"].numpy().T + view["1.bias"].numpy(), 0)
    twice = hidden @ view["3.weight"].numpy().T + view["3.bias"].numpy()
    np.testing.assert_allclose(net(X).numpy(), twice, rtol=1e-5, atol=1e-6)
    _, grads = view.value_and_grad(mp.losses.mse)(X, y)
    _, natives = tape_gradients(net, X, y)
    np.testing.assert_allclose(mp.to_numpy(grads["1.weight"]), natives[0].numpy().T, rtol=1e-5, atol=1e-7)


def test_one_dense_used_twice_is_one_parameter_with_two_names() -> None:
    """001: shared at positions 1 and 2, in Keras 3."""
    net, X = tied(keras), batch()
    view = mp.wrap(net, X)
    assert view["1.weight"] is view["2.weight"]
    assert view["2.weight"].names == ("1.weight", "2.weight")
    assert view.ties() == [("1.weight", "2.weight"), ("1.bias", "2.bias")]
    assert len(view.parameters(aliases=True)) == 6
    same(view["2.weight"], net.layers[1].kernel)


def test_a_write_to_one_tied_layer_is_seen_in_the_other_from_both_sides() -> None:
    """001: the write of 100, natively in Keras 3 and back."""
    net, X = tied(keras), batch()
    view = mp.wrap(net, X)
    kernel = net.layers[1].kernel.numpy()
    kernel[0, 0] = 100
    net.layers[1].kernel.assign(kernel)
    assert view["2.weight"].numpy()[0, 0] == 100
    view["2.weight"][0, 1] = 200
    assert net.layers[1].kernel.numpy()[1, 0] == net.layers[2].kernel.numpy()[1, 0] == 200


def test_equal_values_are_not_a_tie() -> None:
    """001: the same variable, not merely the same value."""
    net, X = tied(keras), batch()
    net(X)
    view = mp.wrap(untied_twin(net, X))
    np.testing.assert_array_equal(view["1.weight"].numpy(), view["2.weight"].numpy())
    assert view["1.weight"] is not view["2.weight"]
    assert view.ties() == []
    assert list(view.layers()) == [("1",), ("2",), ("3",)]


def positive(net: Any) -> None:
    """Weights for which no ReLU of the tied MLP is shut, so both uses have a gradient."""
    net.set_weights([np.linspace(0.1, 0.5, w.size, dtype=np.float32).reshape(w.shape) for w in net.get_weights()])


def test_the_tied_gradient_is_the_sum_over_an_untied_twin() -> None:
    """001: what becomes of the gradient of a shared layer."""
    net, X, y = tied(keras), batch(), batch(1)
    net(X)
    positive(net)
    view, twin = mp.wrap(net), untied_twin(net, X)
    _, grads = view.value_and_grad(mp.losses.mse)(X, y)
    _, natives = tape_gradients(twin, X, y)
    first, second = natives[0].numpy(), natives[2].numpy()
    assert first.any() and second.any()
    np.testing.assert_allclose(mp.to_numpy(grads["1.weight"]), (first + second).T, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mp.to_numpy(view["2.weight"].grad), mp.to_numpy(grads["1.weight"]))
    assert "2.weight" not in grads


def test_training_the_tied_mlp_natively_is_seen_step_by_step() -> None:
    """001: the exercise, with a tape, a Keras optimizer, and multiparam looking on."""
    net, X, y = tied(keras), batch(), batch(1)
    net(X)
    positive(net)
    view = mp.wrap(net)
    watch = mp.Recorder(view)
    optimizer = keras.optimizers.SGD(0.01)
    means = []
    for _ in range(5):
        loss, grads = tape_gradients(net, X, y)
        watch.record(loss)
        means.append(net.layers[2].kernel.numpy().astype(np.float64).mean())
        optimizer.apply_gradients(zip(grads, net.trainable_variables, strict=True))
    np.testing.assert_allclose(watch["2.weight"]["value"]["mean"], means, rtol=1e-12)
    assert len(set(means)) == 5
    assert watch.losses[-1] < watch.losses[0]
    same(view["2.weight"], net.layers[1].kernel)


def test_training_the_tied_mlp_through_multiparam_ends_where_the_native_loop_ends() -> None:
    """001: the exercise, with multiparam's step and optimizer."""
    net, twin, X, y = tied(keras), tied(keras), batch(), batch(1)
    for model in (net, twin):
        model(X)
        positive(model)
    view = mp.wrap(net)
    step, opt, watch = view.value_and_grad(mp.losses.mse), view.optimizer("sgd", lr=0.01), mp.Recorder(view)
    optimizer = keras.optimizers.SGD(0.01)
    norms = []
    for _ in range(5):
        loss, _ = step(X, y)
        watch.record(loss)
        opt.step()
        _, grads = tape_gradients(twin, X, y)
        norms.append(np.linalg.norm(grads[0].numpy()))
        optimizer.apply_gradients(zip(grads, twin.trainable_variables, strict=True))
    np.testing.assert_allclose(watch["2.weight"]["grad"]["norm"], norms, rtol=1e-4)
    assert watch.losses[-1] < watch.losses[0]
    for ours, theirs in zip(net.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_fit_learns_is_seen(lib: Any) -> None:
    """001: training as a Keras reader does it, with compile and fit."""
    net, X = mlp(lib), batch()
    view = mp.wrap(net, X)
    before = view["2.bias"].numpy()
    net.compile(optimizer=lib.optimizers.SGD(0.1), loss="mse")
    net.fit(X, tf.fill((2, 1), 5.0), epochs=1, verbose=0)
    for parameter, native in zip(view, net.weights, strict=True):
        same(parameter, native)
    assert view["2.bias"].numpy() > before


# -- NestMLP


def nest_mlp(lib: Any) -> Any:
    class NestMLP(lib.Model):
        """A Sequential and a dense layer inside a model of one's own."""

        def __init__(self) -> None:
            super().__init__()
            self.net = lib.models.Sequential()
            self.net.add(lib.layers.Dense(64, activation=tf.nn.relu))
            self.net.add(lib.layers.Dense(32, activation=tf.nn.relu))
            self.dense = lib.layers.Dense(16, activation=tf.nn.relu)

        def call(self, inputs: Any) -> Any:
            return self.dense(self.net(inputs))

    return NestMLP()


def test_the_nested_models_layers_are_reached_by_attribute_names(lib: Any) -> None:
    """000, 001: the exercise on NestMLP, in Keras."""
    net, X = nest_mlp(lib), batch(20)
    view = mp.wrap(net, X)
    assert list(view.parameters()) == [
        f"{layer}.{leaf}" for layer in ("net.0", "net.1", "dense") for leaf in ("weight", "bias")
    ]
    same(view["net.1.weight"], net.net.layers[1].kernel)
    same(view["dense"]["bias"], net.dense.bias)
    assert view["net"][1]["weight"] is view["net.1.weight"]


def test_a_nested_model_inside_a_sequential_is_reached_by_position_and_name(lib: Any) -> None:
    """000, 001: NestMLP as the first of several layers, in Keras."""
    net, X = lib.models.Sequential([nest_mlp(lib), lib.layers.Dense(20)]), batch(20)
    view = mp.wrap(net, X)
    same(view[0]["net"][0]["weight"], net.layers[0].net.layers[0].kernel)
    same(view["0.dense.weight"], net.layers[0].dense.kernel)
    same(view[1]["weight"], net.layers[1].kernel)


# -- what a parameter is


def attributes(lib: Any) -> Any:
    class Attributes(lib.layers.Layer):
        """One array of each sort."""

        def build(self, shape: Any) -> None:
            self.learned = self.add_weight(shape=(3,), initializer="ones", name="learned")
            self.cached = tf.fill((3,), 2.0)
            self.tracked = self.add_weight(shape=(3,), initializer="zeros", trainable=False, name="tracked")
            self.built = True

        def call(self, inputs: Any) -> Any:
            self.tracked.assign(self.tracked + 1)
            return inputs * self.learned + self.cached

    return Attributes()


def test_only_a_trainable_weight_is_a_parameter_and_a_plain_tensor_is_nowhere(lib: Any) -> None:
    """002: a weight, a weight that is not trained, and a tensor that is neither."""
    net = attributes(lib)
    net(batch(3))
    view = mp.wrap(net)
    assert list(view.parameters()) == ["learned"]
    assert list(view.buffers()) == ["tracked"]
    same(view["learned"], net.trainable_weights[0])
    same(view["tracked"], net.non_trainable_weights[0])
    assert view["learned"].trainable and not view["tracked"].trainable
    with pytest.raises(mp.errors.ParameterNotFound, match="cached"):
        view["cached"]


def test_a_weight_that_is_not_trained_follows_the_forward_pass(lib: Any) -> None:
    """002: a buffer may be updated in the forward pass."""
    net = attributes(lib)
    net(batch(3))
    view = mp.wrap(net)
    net(batch(3))
    assert view["tracked"].numpy().tolist() == net.tracked.numpy().tolist() == [2.0, 2.0, 2.0]


def test_given_filters_are_the_convolutions_only_parameter(lib: Any) -> None:
    """002: a convolution with four filters of 4 by 4; Keras' kernel is (height, width, in, out)."""
    filters = np.arange(64, dtype=np.float32).reshape(4, 1, 4, 4)
    conv = lib.layers.Conv2D(4, (4, 4), use_bias=False)
    net = lib.models.Sequential([lib.layers.Input((8, 8, 1)), conv])
    conv.set_weights([filters.transpose(2, 3, 1, 0)])
    view = mp.wrap(net)
    assert list(view.parameters()) == ["0.weight"]
    weight = view["0.weight"]
    assert (weight.kind, weight.trainable, weight.native is conv.kernel) == ("conv", True, True)
    np.testing.assert_array_equal(weight.numpy(), filters)


def test_values_replaced_after_construction_are_the_ones_seen(lib: Any) -> None:
    """002: the module with replaced weights, in Keras: set_weights."""
    net = lib.models.Sequential([lib.layers.Dense(2), lib.layers.Dense(3)])
    net(batch(5))
    net.layers[0].set_weights([np.zeros((5, 2), np.float32), np.ones(2, np.float32)])
    view = mp.wrap(net)
    assert [p.shape for p in view] == [(2, 5), (2,), (3, 2), (3,)]
    assert view["0.weight"].numpy().tolist() == [[0.0] * 5] * 2
    assert view["0.bias"].numpy().tolist() == [1.0, 1.0]
    same(view["0.weight"], net.layers[0].kernel)


def test_a_native_adam_step_over_the_trainable_variables_is_seen(lib: Any) -> None:
    """002: every parameter handed to Adam, in Keras apply_gradients."""
    net = lib.models.Sequential([lib.layers.Dense(2), lib.layers.Dense(3)])
    X = batch(5)
    view = mp.wrap(net, X)
    before = view.state_dict()
    _, grads = tape_gradients(net, X, tf.zeros((2, 3)))
    optimizer = lib.optimizers.Adam(0.001)
    optimizer.apply_gradients(zip(grads, net.trainable_variables, strict=True))
    for (name, parameter), native in zip(view.parameters().items(), net.trainable_variables, strict=True):
        same(parameter, native)
        # Adam's first step is lr in the direction of the gradient's sign, whatever its size
        np.testing.assert_allclose(np.abs(before[name] - parameter.numpy()), 0.001, atol=1e-5)
