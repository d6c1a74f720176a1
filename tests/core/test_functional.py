"""The functional form: outputs, and gradients by each framework's own autodiff, in float64; what stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import nn

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 2))
Gradients = Callable[[Callable[[Mapping[str, Any]], Any], Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def of_torch(loss: Any, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import torch

    grads = torch.func.grad(loss)({name: torch.from_numpy(value) for name, value in state.items()})
    return {name: grad.numpy() for name, grad in grads.items()}


def of_jax(loss: Any, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import jax

    return {name: np.asarray(grad) for name, grad in jax.jit(jax.grad(loss))(dict(state)).items()}


def of_tensorflow(loss: Any, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import tensorflow as tf

    tensors = {name: tf.constant(value) for name, value in state.items()}
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = loss(tensors)
    return {name: grad.numpy() for name, grad in tape.gradient(value, tensors).items()}


def of_mxnet(loss: Any, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import mxnet as mx

    arrays = {name: mx.nd.array(value, dtype=value.dtype) for name, value in state.items()}
    for array in arrays.values():
        array.attach_grad()
    with mx.autograd.record(train_mode=False):
        value = loss(arrays)
    value.backward(train_mode=False)
    return {name: array.grad.asnumpy() for name, array in arrays.items()}


NATIVE: dict[str, Gradients] = {"torch": of_torch, "jax": of_jax, "tensorflow": of_tensorflow, "mxnet": of_mxnet}


@pytest.fixture
def double(backend: str) -> Any:
    """JAX keeps float64 here, as its own users say it."""
    if backend != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield


def made(backend: str) -> mp.Model:
    layers = nn.Linear(4), nn.Tanh(), nn.Linear(4), nn.Tanh(), nn.Linear(2)
    net = mp.build(nn.Sequential(*layers), X, backend=backend, dtype="float64", seed=1)
    net.tie("2.weight", "0.weight", transpose=True)
    return net


def in_numpy(state: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The output, and the gradients of half the sum of squares, by the chain rule; layer 2 is layer 0 transposed."""
    w = state["0.weight"]
    a = np.tanh(X @ w.T + state["0.bias"])
    b = np.tanh(a @ w + state["2.bias"])
    y = b @ state["4.weight"].T + state["4.bias"]
    by_b = (y @ state["4.weight"]) * (1 - b**2)
    by_a = (by_b @ w.T) * (1 - a**2)
    grads = {"0.weight": by_a.T @ X + a.T @ by_b, "0.bias": by_a.sum(0), "2.bias": by_b.sum(0)}
    return y, {**grads, "4.weight": y.T @ b, "4.bias": y.sum(0)}


def numbers(net: mp.Model) -> dict[str, np.ndarray]:
    """Other numbers than the model's, of its shapes."""
    return {name: RNG.normal(size=value.shape) for name, value in net.state_dict().items()}


@pytest.mark.usefixtures("double")
def test_outputs_and_gradients_are_those_of_the_arrays_given(backend: str) -> None:
    net = made(backend)
    before, state = net.state_dict(), numbers(net)
    y, truth = in_numpy(state)
    assert np.allclose(mp.to_numpy(net.apply(state, X)), y, rtol=1e-13, atol=1e-13)

    grads = NATIVE[backend](lambda parameters: half_of_squares(net.apply(parameters, X)), state)
    assert grads.keys() == truth.keys()
    for name, grad in grads.items():
        assert np.allclose(grad, truth[name], rtol=1e-12, atol=1e-12), name
    assert all(np.array_equal(value, before[name]) for name, value in net.state_dict().items())


def half_of_squares(y: Any) -> Any:
    if type(y).__module__.startswith("tensorflow"):
        import tensorflow as tf

        return tf.reduce_sum(y**2) / 2
    return (y**2).sum() / 2


@pytest.mark.usefixtures("double")
def test_what_is_not_given_is_the_models_and_what_is_given_twice_must_be_one(backend: str) -> None:
    net = made(backend)
    state = numbers(net)
    expected = net.state_dict()
    expected["4.bias"] = state["4.bias"]
    assert np.allclose(mp.to_numpy(net.apply({"4.bias": state["4.bias"]}, X)), in_numpy(expected)[0], rtol=1e-13)
    expected["0.weight"] = state["0.weight"]
    by_alias = {"2.weight": state["0.weight"].T, "4.bias": net["4.bias"]}
    y = in_numpy({**expected, "4.bias": net["4.bias"].numpy()})[0]
    assert np.allclose(mp.to_numpy(net.apply(by_alias, X)), y, rtol=1e-13)
    both = {"0.bias": state["0.bias"], "4.bias": state["4.bias"]}
    net.tie("2.bias", "0.bias")
    y = mp.to_numpy(net.apply({**both, "2.bias": both["0.bias"].copy()}, X))
    assert np.array_equal(y, mp.to_numpy(net.apply(both, X)))
    with pytest.raises(mp.StateError, match=r"'0.bias' and '2.bias' are one parameter"):
        net.apply({**both, "2.bias": both["0.bias"] + 1}, X)
    with pytest.raises(mp.ShapeError, match=r"'4.bias' has shape \(2,\); the array has \(3,\)"):
        net.apply({"4.bias": np.ones(3)}, X)
    with pytest.raises(mp.ParameterNotFound, match=r"Did you mean '4.bias'"):
        net.apply({"4.bais": np.ones(2)}, X)
    with pytest.raises(mp.WrongType, match="a mapping name -> array; this is a list"):
        net.apply([np.ones(2)], X)  # type: ignore[arg-type]


def test_it_is_differentiated_inside_an_objective_too(backend: str) -> None:
    net = made(backend)
    net.untie("2.weight")

    def through_apply(net: mp.Model, x: Any) -> Any:
        return half_of_squares(net.apply({name: p.value * 1.0 for name, p in net.parameters().items()}, x))

    _, grads = net.value_and_grad(through_apply)(X)
    grads = {name: np.array(mp.to_numpy(grad)) for name, grad in grads.items()}
    _, truth = net.value_and_grad(lambda net, x: half_of_squares(net(x)))(X)
    for name, grad in grads.items():
        assert np.allclose(grad, mp.to_numpy(truth[name]), rtol=1e-12, atol=1e-14), name


@pytest.mark.usefixtures("double")
def test_what_training_would_write_is_dropped(backend: str) -> None:
    net = mp.build(nn.Sequential(nn.Linear(4), nn.BatchNorm()), X, backend=backend, dtype="float64")
    before = net.state_dict()
    h = X @ before["0.weight"].T + before["0.bias"]
    truth = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
    for state in ({}, before):
        assert np.allclose(mp.to_numpy(net.apply(state, X, train=True)), truth, atol=1e-9)
        assert all(np.array_equal(value, before[name]) for name, value in net.state_dict().items())
    state = {**before, "1.running_mean": before["1.running_mean"] + 1}
    shifted = (h - 1) / np.sqrt(1 + 1e-5)
    assert np.allclose(mp.to_numpy(net.apply(state, X)), shifted, atol=1e-9)


def recurrent(backend: str) -> tuple[Any, np.ndarray]:
    """Layers whose parameters are cut otherwise than PyTorch's, as their own users make them."""
    x = RNG.normal(size=(2, 3, 4))
    if backend == "torch":
        import torch

        return torch.nn.GRU(4, 3, bidirectional=True).double(), x
    if backend == "mxnet":
        import mxnet as mx

        layer = mx.gluon.rnn.GRU(3, input_size=4, dtype="float64")
        layer.initialize()
        return layer, x
    if backend == "tensorflow":
        import keras

        model = keras.Sequential([keras.Input((3, 4)), keras.layers.GRU(3, dtype="float64")])
        return model, x
    from flax import linen

    return linen.RNN(linen.GRUCell(3, param_dtype="float64")), x


@pytest.mark.usefixtures("double")
def test_parameters_of_several_arrays_and_rows_of_one(backend: str) -> None:
    native, x = recurrent(backend)
    net = mp.wrap(native, x)
    state = {name: RNG.normal(size=value.shape) for name, value in net.state_dict().items()}

    def loss(net: Any, x: Any) -> Any:
        return half_of_squares(first(net(x)))

    def first(y: Any) -> Any:
        return y[0] if isinstance(y, (tuple, list)) else y

    grads = NATIVE[backend](lambda parameters: half_of_squares(first(net.apply(parameters, x))), state)
    one = next(name for name in state if "bias" in name)
    part = mp.to_numpy(first(net.apply({one: state[one]}, x)))
    before = net.state_dict()
    net[one].assign(state[one])
    assert np.allclose(part, mp.to_numpy(first(net(x))), rtol=1e-12)
    net.load_state_dict(before)
    applied = mp.to_numpy(first(net.apply(state, x)))
    net.load_state_dict(state)
    assert np.allclose(applied, mp.to_numpy(first(net(x))), rtol=1e-12)
    _, truth = net.value_and_grad(loss, train=False)(x)
    for name, grad in grads.items():
        assert np.allclose(grad, mp.to_numpy(truth[name]), rtol=1e-10, atol=1e-12), name


@pytest.mark.needs("jax")
def test_nnx_modules_and_vmap_over_models() -> None:
    import jax
    from flax import nnx

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(4, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs), nnx.relu, nnx.Linear(3, 2, rngs=rngs)
    )
    net = mp.wrap(model)
    x = X.astype("float32")
    state = net.state_dict(native=True)
    y = net.apply({**state, "3.bias": np.float32([1, 2])}, x, train=True)
    model.train()
    truth = model(x) + np.float32([1, 2])  # a bias is zeros at first
    assert np.allclose(y, truth, atol=1e-6)
    several = jax.tree.map(lambda a: np.stack([a, 2 * a]), state)
    outputs = jax.vmap(lambda parameters: net.apply(parameters, x))(several)
    assert np.allclose(outputs[1], net.apply({name: 2 * a for name, a in state.items()}, x), atol=1e-6)


@pytest.mark.needs("tensorflow")
def test_tf_keras_says_that_it_has_none() -> None:
    tf_keras: Any = pytest.importorskip("tf_keras")
    net = mp.wrap(tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)]))
    with pytest.raises(mp.Unsupported, match="tf_keras has no functional form"):
        net.apply(net.state_dict(), X)


@pytest.mark.needs("mxnet")
def test_hybridized_blocks_take_the_arrays_given() -> None:
    import mxnet as mx

    block = mx.gluon.nn.HybridSequential()
    block.add(mx.gluon.nn.Dense(3, in_units=4, activation="tanh"), mx.gluon.nn.Dense(2, in_units=3))
    block.initialize()
    block.hybridize()
    net = mp.wrap(block)
    x = X.astype("float32")
    state = {name: RNG.normal(size=value.shape).astype("float32") for name, value in net.state_dict().items()}
    y = np.tanh(x @ state["0.weight"].T + state["0.bias"]) @ state["1.weight"].T + state["1.bias"]
    net(x)
    assert np.allclose(mp.to_numpy(net.apply(state, x)), y, atol=1e-5)
    grads = of_mxnet(lambda parameters: half_of_squares(net.apply(parameters, x)), state)
    assert np.allclose(grads["1.bias"], y.sum(0), atol=1e-4)
