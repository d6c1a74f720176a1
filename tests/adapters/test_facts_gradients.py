"""What was measured of gradients, and of one layer used twice; the truth is native autograd or central differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from support.flavours import in_framework

import multiparam as mp

rng = np.random.default_rng(0)
X = rng.normal(size=(6, 4)).astype("float32")
Y = rng.normal(size=(6, 1)).astype("float32")

State = Mapping[str, np.ndarray]


def arrays(grads: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(mp.to_numpy(g)) for name, g in grads.items()}


def near(ours: Any, truth: Any) -> None:
    np.testing.assert_allclose(mp.to_numpy(ours), truth, rtol=2e-4, atol=2e-6)


def differences(loss: Callable[[State], float], state: State, *names: str) -> dict[str, np.ndarray]:
    """Gradients of a loss written in numpy, by central differences in float64."""
    values = {name: value.astype(np.float64) for name, value in state.items()}
    found = {name: np.zeros_like(values[name]) for name in names or values}
    for name, grad in found.items():
        for index in np.ndindex(grad.shape):
            value, sides = values[name][index], []
            for h in (1e-6, -1e-6):
                values[name][index] = value + h
                sides.append(loss(values))
            values[name][index] = value
            grad[index] = (sides[0] - sides[1]) / 2e-6
    return found


# -- torch accumulates


def torch_mlp() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


@in_framework("torch")
def test_a_step_does_not_add_to_what_torch_has_accumulated() -> None:
    """Gradients, torch: None, then accumulates."""
    import torch

    native = torch_mlp()
    net = mp.wrap(native)

    def backward() -> None:
        torch.nn.functional.mse_loss(native(torch.tensor(X)), torch.tensor(Y)).backward()

    backward()
    once = net["0.weight"].grad.numpy().copy()
    backward()
    near(net["0.weight"].grad, 2 * once)
    step = net.value_and_grad(mp.losses.mse)
    for _ in range(2):
        _, grads = step(X, Y)
        near(grads["0.weight"], once)
    near(net["0.weight"].grad, once)


@in_framework("torch")
def test_a_step_leaves_no_gradient_where_torch_was_told_to_keep_none() -> None:
    """Gradients, torch: what a frozen parameter has accumulated is not what an optimizer may follow."""
    import torch

    native = torch_mlp()
    net = mp.wrap(native)
    torch.nn.functional.mse_loss(native(torch.tensor(X)), torch.tensor(Y)).backward()
    native[0].weight.requires_grad_(False)
    before = net["0.weight"].numpy()
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer("sgd", lr=1.0)
    _, grads = step(X, Y)
    opt.step()
    assert "0.weight" not in grads and net["0.weight"].grad is None
    np.testing.assert_array_equal(net["0.weight"].numpy(), before)


@in_framework("torch")
def test_zero_grad_makes_a_gradient_none_again() -> None:
    """Gradients, torch: zero_grad sets None; what an earlier step left is not a gradient of now."""
    native = torch_mlp()
    net = mp.wrap(native)
    net.value_and_grad(mp.losses.mse)(X, Y)
    opt = net.optimizer("sgd", lr=1.0)
    native.zero_grad()
    assert [p.grad for p in net] == [None] * 4
    with pytest.raises(mp.MultiparamError, match="gradient"):
        opt.step()


# -- Gluon overwrites, adds, or has none


def gluon_mlp(mx: Any, *between: Any, hybrid: bool = True) -> Any:
    nn = mx.gluon.nn
    native = nn.HybridSequential()
    native.add(nn.Dense(4, activation="tanh", in_units=4), *between, nn.Dense(1, in_units=4))
    native.initialize(mx.init.Xavier())
    if hybrid:
        native.hybridize()
    return native


def gluon_array(mx: Any, x: np.ndarray) -> Any:
    return (mx.np.array if mx.util.is_np_array() else mx.nd.array)(x)


def gluon_backward(mx: Any, native: Any, train: bool = True) -> None:
    with mx.autograd.record(train_mode=train):
        loss = ((native(gluon_array(mx, X)) - gluon_array(mx, Y)) ** 2).mean()
    loss.backward(train_mode=train)


def gluon_gradient(mx: Any, native: Any, train: bool = True) -> np.ndarray:
    """The first layer's, natively, in a model of grad_req 'write'."""
    gluon_backward(mx, native, train)
    return native[0].weight.grad().asnumpy()


@in_framework("mxnet")
def test_a_step_neither_keeps_nor_adds_what_gluon_has_accumulated(mx: Any) -> None:
    """Gradients, Gluon: overwrites; 'add' accumulates."""
    native = gluon_mlp(mx)
    net = mp.wrap(native)
    once = gluon_gradient(mx, native)
    native.collect_params().setattr("grad_req", "add")
    gluon_backward(mx, native)
    gluon_backward(mx, native)
    near(net["0.weight"].grad, 2 * once)
    step = net.value_and_grad(mp.losses.mse)
    for _ in range(2):
        _, grads = step(X, Y)
        near(grads["0.weight"], once)
    assert native[0].weight.grad_req == "add"


@in_framework("mxnet")
def test_unfreezing_gives_gluons_add_back(mx: Any) -> None:
    """Gradients, Gluon: 'write', 'add' and 'null' are three things; a freeze must not turn one into another."""
    native = gluon_mlp(mx)
    net = mp.wrap(native)
    once = gluon_gradient(mx, native)
    native[0].weight.grad_req = "add"
    step = net.value_and_grad(mp.losses.mse)
    step(X, Y)
    net.freeze("0.weight")
    assert native[0].weight.grad_req == "null"
    net.unfreeze("0.weight")
    assert native[0].weight.grad_req == "add"
    near(step(X, Y)[1]["0.weight"], once)


@in_framework("mxnet")
def test_a_gluon_parameter_that_asks_for_no_gradient_has_none_and_stops_nothing(mx: Any) -> None:
    """Gradients, Gluon: 'null' makes .grad() raise."""
    native = gluon_mlp(mx)
    once = gluon_gradient(mx, native)
    native[0].bias.grad_req = "null"
    net = mp.wrap(native)
    with pytest.raises(RuntimeError):
        native[0].bias.grad()
    assert net["0.bias"].grad is None and not net["0.bias"].trainable
    before = net["0.bias"].numpy()
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer("adam", lr=0.1)
    _, grads = step(X, Y)
    opt.step()
    assert list(grads) == ["0.weight", "1.weight", "1.bias"]
    near(grads["0.weight"], once)
    np.testing.assert_array_equal(net["0.bias"].numpy(), before)


@in_framework("mxnet")
@pytest.mark.parametrize("hybrid", [False, True], ids=["plain", "hybrid"])
def test_the_bias_of_a_gluon_dense_whose_weight_is_frozen_still_gets_its_gradient(mx: Any, hybrid: bool) -> None:
    """Gradients, Gluon, beyond the page: in float32 MXNet 1.9.1 writes no bias gradient where the weight's is null."""
    native = gluon_mlp(mx, hybrid=hybrid)
    net = mp.wrap(native)
    gluon_backward(mx, native)
    truth = native[0].bias.grad().asnumpy()
    net.freeze("0.weight")
    step = net.value_and_grad(mp.losses.mse)
    _, grads = step(X, Y)
    near(grads["0.bias"], truth)
    near(net["0.bias"].grad, truth)
    assert list(grads) == ["0.bias", "1.weight", "1.bias"]
    assert not net["0.weight"].trainable and net["0.weight"].grad is None


@in_framework("mxnet")
def test_a_gluon_model_natively_frozen_as_a_whole_is_refused_and_not_run_backward(mx: Any) -> None:
    """Gradients, Gluon: all-null makes backward raise MXNet's own error."""
    native = gluon_mlp(mx)
    native.collect_params().setattr("grad_req", "null")
    net = mp.wrap(native)
    with pytest.raises(mp.MultiparamError, match="unfreeze"):
        net.value_and_grad(mp.losses.mse)(X, Y)


@in_framework("mxnet")
def test_an_adding_gluon_parameter_is_reset_under_set_np(mx_np: None) -> None:
    """Gradients, Gluon: Parameter.zero_grad() raises TypeError under set_np(), so a step cannot use it."""
    from multiparam_mxnet.load import load

    mx = load()
    native = gluon_mlp(mx)
    once = gluon_gradient(mx, native)
    native.collect_params().setattr("grad_req", "add")
    gluon_backward(mx, native)
    with pytest.raises(TypeError):
        native[0].weight.zero_grad()
    near(mp.wrap(native).value_and_grad(mp.losses.mse)(X, Y)[1]["0.weight"], once)


@in_framework("mxnet")
def test_gluons_batch_statistics_move_once_in_a_step_as_they_do_natively(mx: Any) -> None:
    """Gradients: MXNet BatchNorm updates its running statistics in backward."""
    twins = [gluon_mlp(mx, mx.gluon.nn.BatchNorm(in_channels=4)) for _ in range(2)]
    net, native = mp.wrap(twins[0]), twins[1]
    for name, p in mp.wrap(native).parameters().items():
        p.assign(net[name].numpy())
    gluon_backward(mx, native)
    net.value_and_grad(mp.losses.mse)(X, Y)
    moved = native[1].running_mean.data().asnumpy()
    assert np.abs(moved).max() > 0
    np.testing.assert_array_equal(net["1.running_mean"].numpy(), moved)
    np.testing.assert_array_equal(net["1.running_var"].numpy(), native[1].running_var.data().asnumpy())


@in_framework("mxnet")
def test_an_evaluation_gradient_uses_gluons_running_statistics_both_ways(mx: Any) -> None:
    """Gradients: record(train_mode=False) with a plain backward() gives wrong gradients below a BatchNorm."""
    native = gluon_mlp(mx, mx.gluon.nn.BatchNorm(in_channels=4))
    net = mp.wrap(native)
    net["1.running_mean"].assign(np.full(4, 0.5, "float32"))
    net["1.running_var"].assign(np.full(4, 3.0, "float32"))
    before = net.state_dict()

    def loss(p: State) -> float:
        h = np.tanh(X @ p["0.weight"].T + p["0.bias"])
        h = (h - p["1.running_mean"]) / np.sqrt(p["1.running_var"] + 1e-5) * p["1.weight"] + p["1.bias"]
        return float(np.mean((h @ p["2.weight"].T + p["2.bias"] - Y) ** 2))

    _, grads = net.value_and_grad(mp.losses.mse, train=False)(X, Y)
    truth = differences(loss, before, "0.weight", "0.bias", "1.weight", "1.bias")
    for name, expected in truth.items():
        near(grads[name], expected)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    trained = gluon_gradient(mx, native)
    assert not np.allclose(trained, truth["0.weight"], rtol=1e-2)


# -- stateless frameworks


@in_framework("tensorflow")
def test_a_keras_embeddings_gradient_is_an_array_of_its_shape(lib: Any) -> None:
    """Gradients: Keras Embedding gradients are IndexedSlices, one row per look-up, repeats included."""
    import tensorflow as tf

    layers = lib.layers
    native = lib.Sequential([lib.Input((2,)), layers.Embedding(7, 3), layers.Flatten(), layers.Dense(1)])
    rows = np.array([[1, 1], [5, 1], [0, 5], [1, 0], [2, 2], [1, 5]])
    net = mp.wrap(native, rows)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((native(rows) - Y) ** 2)
    sparse = tape.gradient(loss, native.trainable_weights)[0]
    assert isinstance(sparse, tf.IndexedSlices)
    _, grads = net.value_and_grad(mp.losses.mse)(rows, Y)
    dense = arrays(grads)["0.weight"]
    near(dense, tf.convert_to_tensor(sparse).numpy())
    assert dense.shape == (7, 3) and not dense[[3, 4, 6]].any() and dense[[0, 1, 2, 5]].any(1).all()
    near(net["0.weight"].grad, dense)
    before = net["0.weight"].numpy()
    net.optimizer("sgd", lr=0.1).step()
    near(net["0.weight"].numpy(), before - 0.1 * dense)


@in_framework("tensorflow")
def test_a_keras_variable_the_loss_does_not_reach_gets_zeros(lib: Any) -> None:
    """Gradients: an unused TF variable gives None."""

    class Two(lib.Model):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.other = lib.layers.Dense(1), lib.layers.Dense(2)

        def call(self, x: Any) -> Any:
            self.other(x)
            return self.used(x)

    net = mp.wrap(Two(), X)
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    assert mp.to_numpy(grads["used.weight"]).any()
    np.testing.assert_array_equal(mp.to_numpy(grads["other.weight"]), np.zeros((2, 4)))


# -- one layer used twice: in a forward method, where each framework's users write it


def torch_tied() -> Any:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)

        def forward(self, x: Any) -> Any:
            return self.last(torch.tanh(self.shared(torch.tanh(self.shared(torch.tanh(self.first(x)))))))

    return Net()


def mxnet_tied() -> Any:
    from multiparam_mxnet.load import load

    nn = load().gluon.nn

    class Net(nn.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.first, self.shared, self.last = nn.Dense(8), nn.Dense(8), nn.Dense(1)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            return self.last(F.tanh(self.shared(F.tanh(self.shared(F.tanh(self.first(x)))))))

    native = Net()
    native.initialize()
    native.hybridize()
    return native


def linen_tied() -> Any:
    from flax import linen

    class Net(linen.Module):
        def setup(self) -> None:
            self.first, self.shared, self.last = linen.Dense(8), linen.Dense(8), linen.Dense(1)

        def __call__(self, x: Any) -> Any:
            tanh = linen.tanh
            return self.last(tanh(self.shared(tanh(self.shared(tanh(self.first(x)))))))

    return Net()


def compact_tied() -> Any:
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.tanh(linen.Dense(8, name="first")(x))
            shared = linen.Dense(8, name="shared")
            return linen.Dense(1, name="last")(linen.tanh(shared(linen.tanh(shared(x)))))

    return Net()


def nnx_tied() -> Any:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.first, self.shared = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
            self.last = nnx.Linear(8, 1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.last(nnx.tanh(self.shared(nnx.tanh(self.shared(nnx.tanh(self.first(x)))))))

    return Net(nnx.Rngs(0))


def _functional(lib: Any) -> Any:
    layers = lib.layers
    x = lib.Input((4,))
    shared = layers.Dense(8, activation="tanh", name="shared")
    hidden = shared(shared(layers.Dense(8, activation="tanh", name="first")(x)))
    return lib.Model(x, layers.Dense(1, name="last")(hidden))


def _subclass(lib: Any) -> Any:
    class Net(lib.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared = lib.layers.Dense(8, "tanh"), lib.layers.Dense(8, "tanh")
            self.last = lib.layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.last(self.shared(self.shared(self.first(x))))

    return Net()


def keras_functional() -> Any:
    import keras

    return _functional(keras)


def keras_subclass() -> Any:
    import keras

    return _subclass(keras)


def tf_keras_functional() -> Any:
    import tf_keras

    return _functional(tf_keras)


def tf_keras_subclass() -> Any:
    import tf_keras

    return _subclass(tf_keras)


def case(make: Callable[[], Any], *needed: str) -> Any:
    marks = [pytest.mark.needs(*needed), pytest.mark.xdist_group(needed[0])]
    return pytest.param(make, id=make.__name__.replace("_", " "), marks=marks)


TIED = [
    case(torch_tied, "torch"),
    case(mxnet_tied, "mxnet"),
    case(linen_tied, "jax"),
    case(compact_tied, "jax"),
    case(nnx_tied, "jax"),
    case(keras_functional, "tensorflow"),
    case(keras_subclass, "tensorflow"),
    case(tf_keras_functional, "tensorflow", "tf_keras"),
    case(tf_keras_subclass, "tensorflow", "tf_keras"),
]


def tied_loss(p: State) -> float:
    h = np.tanh(X @ p["first.weight"].T + p["first.bias"])
    for _ in range(2):
        h = np.tanh(h @ p["shared.weight"].T + p["shared.bias"])
    return float(np.mean((h @ p["last.weight"].T + p["last.bias"] - Y) ** 2))


@pytest.mark.parametrize("make", TIED)
def test_a_layer_called_twice_is_six_parameters_and_its_gradient_the_sum_of_both_calls(
    make: Callable[[], Any],
) -> None:
    """The same layer used twice: 6 unique parameters, gradient = sum over both positions."""
    net = mp.wrap(make(), X)
    layers = ("first", "shared", "last")
    assert set(net.parameters()) == {f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")}
    net.init(mp.init.xavier_normal(), "*.weight", seed=1)
    state = net.state_dict()
    loss, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    assert len(grads) == 6
    assert mp.to_numpy(loss).item() == pytest.approx(tied_loss(state), rel=1e-5)
    for name, expected in differences(tied_loss, state).items():
        near(grads[name], expected)


@pytest.mark.parametrize("make", TIED)
def test_a_layer_called_twice_takes_one_update_of_the_sum(make: Callable[[], Any]) -> None:
    """The same layer used twice: an update for each use would move it twice."""
    net = mp.wrap(make(), X)
    net.init(mp.init.xavier_normal(), "*.weight", seed=1)
    before = net.state_dict()
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer("sgd", lr=0.5)
    step(X, Y)
    opt.step()
    for name, grad in differences(tied_loss, before).items():
        near(net[name].numpy(), before[name] - 0.5 * grad)


@in_framework("jax")
def test_an_nnx_step_keeps_a_tie_where_jaxs_own_grad_splits_it() -> None:
    """The same layer used twice, NNX: jax.grad on the module splits ties in silence; nnx.grad keeps them."""
    import jax
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.a, self.b = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
            self.c = nnx.Linear(4, 1, rngs=rngs)
            self.b.kernel = self.a.kernel

        def __call__(self, x: Any) -> Any:
            return self.c(nnx.tanh(self.b(nnx.tanh(self.a(x)))))

    native = Net(nnx.Rngs(0))

    def loss(model: Any) -> Any:
        return ((model(X) - Y) ** 2).mean()

    net = mp.wrap(native)
    assert net.ties() == [("a.weight", "b.weight")]
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    truth = nnx.grad(loss)(native)
    near(grads["a.weight"], np.asarray(truth["a"]["kernel"][...]).T)
    near(grads["b.bias"], np.asarray(truth["b"]["bias"][...]))
    split = jax.tree.leaves(jax.grad(loss)(native))
    assert len(split) == 6 and len(grads) == 5
    opt = net.optimizer("sgd", lr=0.1)
    for _ in range(3):
        opt.step()
        assert native.b.kernel is native.a.kernel
        net.value_and_grad(mp.losses.mse)(X, Y)
    assert net.ties() == [("a.weight", "b.weight")]


@in_framework("tensorflow")
@pytest.mark.needs("tf_keras")
def test_tf_keras_nesting_a_lazily_built_shared_layer_counts_it_once() -> None:
    """The same layer used twice: tf_keras drops the second entry of a Sequential, and applies the layer once."""
    import tf_keras

    layers = tf_keras.layers
    shared = layers.Dense(4, activation="tanh")
    native = tf_keras.Sequential([tf_keras.Sequential([shared, shared]), layers.Dense(1)])
    net = mp.wrap(native, X)

    def loss(p: State) -> float:
        h = np.tanh(X @ p["0.0.weight"].T + p["0.0.bias"])
        return float(np.mean((h @ p["1.weight"].T + p["1.bias"] - Y) ** 2))

    assert list(net.parameters(aliases=True)) == ["0.0.weight", "0.0.bias", "1.weight", "1.bias"]
    state = net.state_dict()
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    for name, expected in differences(loss, state).items():
        near(grads[name], expected)
