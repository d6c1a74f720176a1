"""What was measured of ties made after construction, and of compiled functions that go stale."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.flavours import in_framework

import multiparam as mp

rng = np.random.default_rng(0)
X = rng.normal(size=(6, 4)).astype("float32")
Y = rng.normal(size=(6, 1)).astype("float32")


def output(net: mp.Model) -> np.ndarray:
    """What the MLP of layers 0, 1, 2 computes, in numpy, from the values at every one of its names."""
    p = {name: q.numpy() for name, q in net.parameters(aliases=True).items()}
    names = [name.removesuffix(".weight") for name in p if name.endswith(".weight")]
    h: np.ndarray = X
    for i, name in enumerate(names):
        h = h @ p[f"{name}.weight"].T + p[f"{name}.bias"]
        h = np.tanh(h) if i < len(names) - 1 else h
    return h


def near(ours: Any, truth: Any) -> None:
    np.testing.assert_allclose(mp.to_numpy(ours), truth, rtol=2e-4, atol=2e-6)


# -- torch


def torch_mlp() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


@in_framework("torch")
def test_a_tie_is_the_same_native_parameter_in_torch() -> None:
    """Tying, torch: assign the same Parameter."""
    native = torch_mlp()
    net = mp.wrap(native)
    net.tie("2.weight", "0.weight")
    assert native[2].weight is native[0].weight
    assert len(list(native.parameters())) == 7


@in_framework("torch")
def test_a_torch_tie_survives_a_change_of_dtype_under_the_view() -> None:
    """Tying, torch: survives .to(dtype); parameters keep their identity there, buffers do not."""
    import torch

    native = torch_mlp()
    net = mp.wrap(native)
    net.tie("2.weight", "0.weight")
    native.to(torch.float64)
    assert native[2].weight is native[0].weight
    assert net.ties() == [("0.weight", "2.weight")]
    assert {p.dtype for p in net} == {"float64"}
    loss, grads = net.value_and_grad(mp.losses.mse)(X.astype("float64"), Y.astype("float64"))
    net.optimizer("sgd", lr=0.1).step()
    assert str(loss.dtype) == "torch.float64"
    assert native[2].weight is native[0].weight and len(grads) == 7


@in_framework("torch")
def test_a_torch_buffer_is_the_models_own_after_a_change_of_dtype() -> None:
    """Tying, torch: .to(dtype) puts new tensors in place of the buffers."""
    native = torch_mlp()
    net = mp.wrap(native)
    native.double()
    native[3].running_mean += 5
    assert net["3.running_mean"].dtype == "float64"
    np.testing.assert_array_equal(net["3.running_mean"].numpy(), [5.0] * 4)
    net["3.running_mean"].assign(np.full(4, 7.0))
    assert native[3].running_mean.tolist() == [7.0] * 4


@in_framework("torch")
def test_a_torch_buffer_is_not_taken_for_another_that_was_freed() -> None:
    """Tying, torch: after .to(dtype) a new tensor may live where an old one did, and have its id."""
    from torch import nn

    native = nn.Sequential(*[nn.BatchNorm1d(3) for _ in range(30)], nn.Linear(3, 3), nn.Linear(3, 3))
    net = mp.wrap(native)
    for i in range(20):
        native.double() if i % 2 == 0 else native.float()
        net.tie("31.weight", "30.weight")
        net.untie("31.weight")
        assert net.ties() == []
        for name, tensor in native.named_buffers():
            assert net[name].native is tensor, name


@in_framework("torch")
@pytest.mark.parametrize("way", [copy.deepcopy, lambda native: pickle.loads(pickle.dumps(native))], ids=["deep", "pkl"])
def test_a_torch_tie_survives_copies_and_pickles(way: Callable[[Any], Any]) -> None:
    """Tying, torch: survives deepcopy and pickle."""
    net = mp.wrap(torch_mlp())
    net.tie("2.weight", "0.weight")
    again = mp.wrap(way(net.native))
    assert again.ties() == [("0.weight", "2.weight")]
    assert again["0.weight"].native is not net["0.weight"].native
    again["2.weight"][:] = 0
    assert net["0.weight"].numpy().any()


@in_framework("torch")
def test_functional_call_replaces_both_places_of_a_torch_tie() -> None:
    """Tying, torch: survives functional_call."""
    import torch

    net = mp.wrap(torch_mlp())
    net.tie("2.weight", "0.weight")
    value = torch.full((4, 4), 0.1)
    x = torch.tensor(X)
    once = torch.func.functional_call(net.native.eval(), {"0.weight": value}, (x,))
    net["0.weight"].assign(value)
    near(once.detach(), mp.to_numpy(net(X)))


@in_framework("torch")
def test_an_optimizer_of_ours_does_not_hold_the_dead_parameter_after_a_tie() -> None:
    """Tying, torch: an optimizer made earlier holds the dead one; a native one would not move the tied layer."""
    net = mp.wrap(torch_mlp())
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer("sgd", lr=0.1)
    step(X, Y)
    opt.step()
    net.tie("0.weight", "2.weight")
    net.untie("2.weight")
    before = net.state_dict()
    _, grads = step(X, Y)
    opt.step()
    for name in ("0.weight", "2.weight"):
        near(net[name].numpy(), before[name] - 0.1 * mp.to_numpy(grads[name]))


# -- Gluon


def gluon_net(mx: Any) -> Any:
    nn = mx.gluon.nn

    class Net(nn.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.a, self.b, self.c = (nn.Dense(n, in_units=4) for n in (4, 4, 1))

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            tanh = F.np.tanh if mx.util.is_np_array() else F.tanh
            return self.c(tanh(self.b(tanh(self.a(x)))))

    native = Net()
    native.initialize(mx.init.Xavier())
    return native


def gluon_array(mx: Any, x: np.ndarray) -> Any:
    return (mx.np.array if mx.util.is_np_array() else mx.nd.array)(x)


@in_framework("mxnet")
@pytest.mark.parametrize("options", [{}, {"static_alloc": True, "static_shape": True}], ids=["dynamic", "static"])
def test_a_hybridized_gluon_block_is_not_stale_after_tie_and_untie(mx: Any, options: dict[str, bool]) -> None:
    """Tying, Gluon: replace it in three places, then hybridize() again; a CachedOp is silently wrong."""
    native, x = gluon_net(mx), gluon_array(mx, X)
    native.hybridize(**options)
    net = mp.wrap(native)
    near(native(x), output(net))
    net.tie("b.weight", "a.weight")
    near(native(x), output(net))
    net["b.weight"].assign(np.full((4, 4), 0.1, "float32"))
    near(native(x), output(net))
    net.untie("a.weight")
    net["a.weight"].assign(np.eye(4, dtype="float32"))
    near(native(x), output(net))
    assert not np.array_equal(net["b.weight"].numpy(), net["a.weight"].numpy())


@in_framework("mxnet")
def test_a_gluon_tie_is_in_all_three_places(mx: Any) -> None:
    """Tying, Gluon: attribute, _reg_params and _params._params."""
    native = gluon_net(mx)
    net = mp.wrap(native)
    dead = native.b.weight
    net.tie("b.weight", "a.weight")
    assert native.b.weight is native.b._reg_params["weight"] is native.a.weight
    assert dead not in native.b.params.values()
    assert dead not in native.collect_params().values()
    assert len(list(native.collect_params().keys())) == 5


@in_framework("mxnet")
def test_a_gluon_trainer_and_a_native_backward_follow_a_tie(mx: Any) -> None:
    """Tying, Gluon: what is collected after the tie is what trains."""
    native, x, y = gluon_net(mx), gluon_array(mx, X), gluon_array(mx, Y)
    native.hybridize()
    native(x)
    net = mp.wrap(native)
    net.tie("b.weight", "a.weight")
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    expected = net["a.weight"].numpy() - 0.5 * mp.to_numpy(grads["a.weight"])
    trainer = mx.gluon.Trainer(native.collect_params(), "sgd", {"learning_rate": 0.5})
    with mx.autograd.record():
        loss = ((native(x) - y) ** 2).mean()
    loss.backward()
    trainer.step(1)
    near(net["b.weight"].numpy(), expected)
    near(native(x), output(net))


@in_framework("mxnet")
def test_a_gluon_tie_made_with_params_can_be_untied(mx: Any) -> None:
    """Tying, Gluon: two blocks over one ParameterDict are two places of one Parameter."""
    nn = mx.gluon.nn
    native, shared = nn.HybridSequential(), nn.Dense(4, in_units=4, activation="tanh")
    native.add(shared, nn.Dense(4, in_units=4, activation="tanh", params=shared.params), nn.Dense(1, in_units=4))
    native.initialize(mx.init.Xavier())
    native.hybridize()
    x = gluon_array(mx, X)
    native(x)
    net = mp.wrap(native)
    assert net.ties() == [("0.weight", "1.weight"), ("0.bias", "1.bias")]
    net.untie("0.weight")
    assert net.ties() == [("0.bias", "1.bias")]
    net["0.weight"].assign(np.full((4, 4), 0.2, "float32"))
    near(native(x), output(net))
    assert {id(p) for p in native.collect_params().values()} == {id(p.native) for p in net}


# -- linen


@in_framework("jax")
def test_a_linen_tie_is_expanded_for_native_apply_and_stays_through_training() -> None:
    """Tying, linen: a tree without the alias, expanded before apply; copies of a leaf drift apart in one step."""
    from flax import linen

    module = linen.Sequential([linen.Dense(4), linen.tanh, linen.Dense(4), linen.tanh, linen.Dense(1)])
    net = mp.wrap(module, X)
    net.tie("2.weight", "0.weight")
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer("adam", lr=0.1)
    for _ in range(3):
        step(X, Y)
        opt.step()
    tree = net.variables["params"]
    assert sorted(tree) == ["layers_0", "layers_2", "layers_4"]
    np.testing.assert_array_equal(tree["layers_2"]["kernel"], tree["layers_0"]["kernel"])
    near(module.apply(net.variables, X), output(net))
    assert "2.weight" not in step(X, Y)[1]


# -- NNX


@in_framework("jax")
def test_an_nnx_tie_is_the_same_param_and_kept_by_native_training() -> None:
    """Tying, NNX: assign the same Param; rebuild the optimizer."""
    import optax
    from flax import nnx

    rngs = nnx.Rngs(0)
    native = nnx.Sequential(*[nnx.Linear(4, n, rngs=rngs) for n in (4, 4, 1)])
    net = mp.wrap(native)
    net.tie("1.weight", "0.weight")
    assert native.layers[1].kernel is native.layers[0].kernel
    optimizer = nnx.Optimizer(native, optax.sgd(0.1), wrt=nnx.Param)

    def loss(model: Any) -> Any:
        return ((model(X) - Y) ** 2).mean()

    _, ours = net.value_and_grad(mp.losses.mse)(X, Y)
    expected = net["0.weight"].numpy() - 0.1 * mp.to_numpy(ours["0.weight"])
    optimizer.update(native, nnx.grad(loss)(native))
    near(net["1.weight"].numpy(), expected)
    assert native.layers[1].kernel is native.layers[0].kernel
    assert mp.wrap(nnx.clone(native)).ties() == [("0.weight", "1.weight")]


# -- Keras, both generations


def keras_mlp(lib: Any, **options: Any) -> Any:
    dense = lib.layers.Dense
    hidden = [dense(4, activation="tanh", **options) for _ in range(3)]
    return lib.Sequential([lib.Input((4,)), *hidden, dense(1, **options)])


@in_framework("tensorflow")
@pytest.mark.parametrize("source", ["0.weight", "1.weight"])
def test_a_keras_tie_takes_the_right_one_of_two_equal_variables(lib: Any, source: str) -> None:
    """Tying, Keras 3: replace by identity; the tracker's own replacement uses ==, which equal values fool."""
    native = keras_mlp(lib, kernel_initializer="ones")
    net = mp.wrap(native)
    before = [id(w) for w in native.weights]
    target = native.layers[2].kernel
    net.tie("2.weight", source)
    after = [id(w) for w in native.weights]
    assert after == [i for i in before if i != id(target)]
    assert native.layers[2].kernel is native.layers[int(source[0])].kernel
    net["3.weight"].assign(np.full((1, 4), 0.5, "float32"))
    net["0.weight"][:] = 0.2
    near(native(X), output(net))
    others = {"0.weight", "1.weight"} - {source}
    assert net["2.weight"].names == (source, "2.weight") and net.ties() == [(source, "2.weight")]
    assert all(net[name].names == (name,) for name in others)


@in_framework("tensorflow")
def test_a_keras_tie_keeps_the_order_of_the_weights(lib: Any) -> None:
    """Tying, tf_keras: deleting the attribute first reorders the weights; get_weights would then mean others."""
    native = keras_mlp(lib)
    net = mp.wrap(native)
    shapes = [w.shape for w in native.layers[2].weights]
    net.tie("2.weight", "1.weight")
    assert [w.shape for w in native.layers[2].weights] == shapes
    kernel, bias = native.layers[2].get_weights()
    np.testing.assert_array_equal(kernel, net["1.weight"].numpy().T)
    np.testing.assert_array_equal(bias, net["2.bias"].numpy())
    fresh = keras_mlp(lib)
    for layer, other in zip(fresh.layers, native.layers, strict=True):
        layer.set_weights(other.get_weights())
    near(fresh(X), output(net))


@in_framework("tensorflow")
def test_keras_predict_evaluate_and_fit_are_not_stale_after_tie_and_untie(lib: Any) -> None:
    """Stale compiled functions: predict and fit go on with the old variable, silently wrong."""
    native = keras_mlp(lib)
    net = mp.wrap(native)

    def check() -> None:
        truth = output(net)
        near(native.predict(X, verbose=0), truth)
        near(native.predict_on_batch(X), truth)
        near(native.evaluate(X, Y, verbose=0), np.mean((truth - Y) ** 2))
        near(np.ravel(native.test_on_batch(X, Y))[0], np.mean((truth - Y) ** 2))

    native.compile(lib.optimizers.SGD(0.1), "mse")
    native.fit(X, Y, verbose=0)
    check()
    net.tie("2.weight", "1.weight")
    net["1.weight"].assign(np.eye(4, dtype="float32"))
    check()
    before = net["1.weight"].numpy()
    native.compile(lib.optimizers.SGD(0.1), "mse")
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    native.fit(X, Y, batch_size=6, verbose=0)
    near(net["2.weight"].numpy(), before - 0.1 * mp.to_numpy(grads["1.weight"]))
    with pytest.warns(mp.MultiparamWarning, match="compile"):
        net.untie("2.weight")
    net["2.weight"][:] = 0
    check()


@in_framework("tensorflow")
def test_a_compiled_model_inside_the_wrapped_one_is_not_stale_either(lib: Any) -> None:
    """Stale compiled functions: a nested model has a predict of its own."""
    inner = keras_mlp(lib)
    outer = lib.Sequential([lib.Input((4,)), inner])
    inner.compile("sgd", "mse")
    inner.predict(X, verbose=0)
    outer.predict(X, verbose=0)
    net = mp.wrap(outer)
    net.tie("0.2.weight", "0.1.weight")
    net["0.1.weight"][:] = 0.1
    near(outer.predict(X, verbose=0), output(net))
    near(inner.predict(X, verbose=0), output(net))


@in_framework("tensorflow")
@pytest.mark.parametrize("verb", ["tie", "untie"])
def test_a_tensorflow_checkpoint_holds_what_the_model_uses_after_a_tie(lib: Any, verb: str, tmp_path: Any) -> None:
    """Tying, Keras: the attribute is tracked by TensorFlow too, beside Keras' own lists."""
    import tensorflow as tf

    native, fresh = keras_mlp(lib), keras_mlp(lib)
    net = mp.wrap(native)
    net.tie("2.weight", "1.weight")
    if verb == "untie":
        net.untie("2.weight")
    else:
        mp.wrap(fresh).tie("2.weight", "1.weight")
    net["1.weight"][:] = 0.1
    net["2.weight"][:] = 0.3
    path = tf.train.Checkpoint(model=native).save(str(tmp_path / "at"))
    tf.train.Checkpoint(model=fresh).restore(path)
    for i, expected in enumerate(native.layers):
        np.testing.assert_array_equal(fresh.layers[i].get_weights()[0], expected.get_weights()[0])


@in_framework("tensorflow")
def test_a_keras_functional_layer_can_be_tied_to_one_in_a_nested_model(lib: Any) -> None:
    """Tying, Keras: a reference by identity reaches a variable wherever its layer is."""
    x = lib.Input((4,))
    inner = lib.Sequential([lib.layers.Dense(4, activation="tanh"), lib.layers.Dense(4, activation="tanh")], name="in")
    native = lib.Model(x, lib.layers.Dense(1, name="out")(lib.layers.Dense(4, "tanh", name="mid")(inner(x))))
    net = mp.wrap(native)
    net.tie("mid.weight", "in.1.weight")
    assert len(native.trainable_weights) == 7
    assert net.ties() == [("in.1.weight", "mid.weight")]
    net["mid.weight"][:] = 0.3
    near(native(X), output(net))
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    assert len(grads) == 7


@in_framework("tensorflow")
def test_an_untied_keras_variable_is_trained_natively(lib: Any) -> None:
    """Tying, Keras: a fresh variable must be in the layer's lists, or no optimizer sees it."""
    native = keras_mlp(lib)
    net = mp.wrap(native)
    net.tie("2.weight", "1.weight")
    net.untie("1.weight")
    assert len(native.trainable_weights) == 8
    native.compile(lib.optimizers.SGD(0.1), "mse")
    before = net.state_dict()
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    native.fit(X, Y, batch_size=6, verbose=0)
    for name in ("1.weight", "2.weight"):
        near(net[name].numpy(), before[name] - 0.1 * mp.to_numpy(grads[name]))
