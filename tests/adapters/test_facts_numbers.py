"""What was measured of numerics and of memory; the six flavours of a small model are those of support.small_models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.flavours import in_framework
from support.small_models import FLAVOURS, Make, X, Y, every_flavour, linen_net, mxnet_net, nnx_net

import multiparam as mp

# -- numerics


@in_framework("mxnet")
def test_one_optimizer_step_is_trainer_step_one_for_a_mean_and_step_n_for_a_sum(mx: Any) -> None:
    """Numerics: Gluon Trainer.step(n) multiplies by 1/n; our loss is a mean already."""
    make = mx.np.array if mx.util.is_np_array() else mx.nd.array
    nets = [mxnet_net() for _ in range(3)]
    for net in nets:
        net.init(mp.init.normal(), seed=1)
    ours, mean, total = nets
    ours.value_and_grad(mp.losses.mse)(X, Y)
    ours.optimizer("sgd", lr=0.1).step()
    for net, n in ((mean, 1), (total, len(X))):
        trainer = mx.gluon.Trainer(net.native.collect_params(), "sgd", {"learning_rate": 0.1})
        with mx.autograd.record():
            errors = (net.native(make(X)) - make(Y)) ** 2
            loss = errors.mean() if n == 1 else errors.sum()
        loss.backward()
        trainer.step(n)
        for name, value in net.state_dict().items():
            np.testing.assert_allclose(ours[name].numpy(), value, rtol=1e-5, atol=1e-6)


@every_flavour
def test_adams_eps_is_torchs_where_gradients_are_as_small_as_eps(make: Make) -> None:
    """Numerics: torch and optax add eps to the corrected root; Gluon and Keras put it outside the correction."""
    net = make()
    net.init(mp.init.constant(0))
    opt = net.optimizer("adam", lr=1.0, eps=1e-6)
    g, value, mean, square = 1e-6, 0.0, 0.0, 0.0
    for t in range(1, 4):
        opt.step({"1.bias": np.array([g], "float32")})
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        value -= mean / (1 - 0.9**t) / (math.sqrt(square / (1 - 0.999**t)) + 1e-6)
    assert value == pytest.approx(-1.5)
    assert net["1.bias"].numpy().item() == pytest.approx(value, rel=1e-4)


@every_flavour
def test_float64_stays_float64_through_every_verb(make: Make) -> None:
    """Numerics: JAX needs jax_enable_x64, else it silently makes float32."""
    net = make("float64")
    net.init(mp.init.normal(), seed=1)
    fine = 1 + 2.0**-40
    net["0.bias"].assign(np.full(3, fine))
    np.testing.assert_array_equal(net["0.bias"].numpy(), fine)
    net["0.bias"][0] = fine - 1
    assert net["0.bias"][0] == fine - 1
    assert mp.to_numpy(net["0.weight"].value).dtype == np.float64
    x, y = X.astype("float64"), Y.astype("float64")
    loss, grads = net.value_and_grad(mp.losses.mse)(x, y)
    opt = net.optimizer("adam", lr=2.0**-40, eps=1e-30)
    before = net.state_dict()
    opt.step()
    assert mp.to_numpy(net(x)).dtype == mp.to_numpy(loss).dtype == np.float64
    assert {mp.to_numpy(g).dtype.name for g in grads.values()} == {p.dtype for p in net} == {"float64"}
    change = before["1.weight"] - net["1.weight"].numpy()
    np.testing.assert_allclose(np.abs(change), 2.0**-40, rtol=1e-3)
    p = net.state_dict()
    truth = (x @ p["0.weight"].T + p["0.bias"]) @ p["1.weight"].T + p["1.bias"]
    np.testing.assert_allclose(mp.to_numpy(net(x)), truth, rtol=1e-12, atol=1e-14)


@in_framework("jax")
@pytest.mark.parametrize("make", [linen_net, nnx_net])
def test_float64_in_jax_leaves_the_flag_of_the_process_alone(make: Make) -> None:
    """Numerics: jax_enable_x64 is the process's; users' own float32 code must not change."""
    import jax
    import jax.numpy as jnp

    before = jax.config.jax_enable_x64
    net = make("float64")
    seen: list[bool] = []

    def objective(net: mp.Model, x: Any, y: Any) -> Any:
        seen.append(jnp.ones(3, "float64").dtype == np.float64)
        return mp.losses.mse(net, x, y)

    net.value_and_grad(objective)(X.astype("float64"), Y.astype("float64"))
    net.optimizer("adam").step()
    with pytest.raises(RuntimeError):
        net.value_and_grad(lambda net, x: (_ for _ in ()).throw(RuntimeError("on purpose")))(X)
    assert jax.config.jax_enable_x64 is before
    assert jnp.ones(3).dtype == (np.float64 if before else np.float32)
    assert any(seen)


# -- memory


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros in 64-byte aligned memory, which zero-copy imports adopt."""
    size = math.prod(shape) * 4
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)


def _torch_table() -> Any:
    from torch import nn

    return nn.Embedding(64, 32)


def _mxnet_table() -> Any:
    from multiparam_mxnet.load import load

    native = load().gluon.nn.Embedding(64, 32)
    native.initialize()
    return native


def _linen_table() -> Any:
    from flax import linen

    return linen.Embed(64, 32)


def _nnx_table() -> Any:
    from flax import nnx

    return nnx.Embed(64, 32, rngs=nnx.Rngs(0))


def _keras3_table() -> Any:
    import keras

    return keras.layers.Embedding(64, 32)


def _tf_keras_table() -> Any:
    import tf_keras

    return tf_keras.layers.Embedding(64, 32)


TABLES = [
    pytest.param(make, id=known.id, marks=known.marks)
    for known, make in zip(
        FLAVOURS, [_torch_table, _mxnet_table, _linen_table, _nnx_table, _keras3_table, _tf_keras_table], strict=True
    )
]
ROWS = np.array([[1, 2]])


@pytest.mark.parametrize("make", TABLES)
def test_an_assigned_array_is_copied_even_where_it_could_be_adopted(make: Callable[[], Any]) -> None:
    """Memory: jnp.asarray of 64-byte aligned memory and tf assign of a DLPack import alias."""
    net = mp.wrap(make(), ROWS)
    source = aligned((64, 32))
    net["weight"].assign(source)
    source[:] = 7
    assert not net["weight"].numpy().any()
    given = net.native_array(source)
    source[:] = 9
    np.testing.assert_array_equal(mp.to_numpy(given), 7)


@pytest.mark.parametrize("make", TABLES)
def test_an_assigned_torch_tensor_is_copied(make: Callable[[], Any]) -> None:
    """Memory: zero-copy by DLPack works in all tested directions, so another framework's array could be adopted."""
    torch = pytest.importorskip("torch")
    net = mp.wrap(make(), ROWS)
    tensor = torch.from_numpy(aligned((64, 32)))
    net["weight"].assign(tensor)
    tensor[:] = 7
    assert not net["weight"].numpy().any()
    net["weight"][:] = 5
    assert bool((tensor == 7).all())


@pytest.mark.parametrize("make", TABLES)
def test_neither_value_nor_numpy_is_a_window_on_the_model(make: Callable[[], Any]) -> None:
    """Memory: writes through an alias mutate "immutable" jax arrays and tf constants."""
    net = mp.wrap(make(), ROWS)
    before = net["weight"].numpy()
    value, copy = net["weight"].value, net["weight"].numpy()
    copy[:] = 3
    window = mp.to_numpy(value)
    if window.flags.writeable:
        window[:] = 4
    np.testing.assert_array_equal(net["weight"].numpy(), before)
    kept = net["weight"].value
    net["weight"][1] = 9
    net.value_and_grad(lambda net, rows: net(rows).mean() if hasattr(net(rows), "mean") else _mean(net(rows)))(ROWS)
    net.optimizer("sgd", lr=1.0).step()
    np.testing.assert_array_equal(mp.to_numpy(kept), before)
    assert not np.array_equal(net["weight"].numpy(), before)


def _mean(y: Any) -> Any:
    import tensorflow as tf

    return tf.reduce_mean(y)


@in_framework("jax")
def test_a_jax_array_is_not_copied_later_from_memory_that_has_changed_meanwhile() -> None:
    """Memory, beyond the page: jnp.array copies a large numpy array in the background, after it has returned."""
    from flax import nnx

    net = mp.wrap(nnx.Embed(2048, 2048, rngs=nnx.Rngs(0)))
    late = []
    for i in range(1, 31):
        batch = np.full((2048, 2048), i, "float32")
        given = net.native_array(batch)
        batch[:] = -1  # as a loader does that fills one buffer again and again
        late += [f"input {i}"] * bool((mp.to_numpy(given) != i).any())
        values = np.full((2048, 2048), i, "float32")
        net["weight"].assign(values)
        values[:] = -1
        late += [f"weight {i}"] * bool((net["weight"].numpy() != i).any())
    assert late == []


@in_framework("jax")
def test_a_jax_array_cannot_be_written_through_what_we_hand_out() -> None:
    """Memory: writes through an alias mutate "immutable" jax arrays."""
    net = mp.wrap(_nnx_table())
    held = net.native.embedding[...]
    before = np.array(held)
    window = mp.to_numpy(held)
    with pytest.raises(ValueError):
        window[:] = 1
    net["weight"].numpy()[:] = 1
    net["weight"][:] = 1
    np.testing.assert_array_equal(np.asarray(held), before)


@in_framework("jax")
def test_linen_variables_given_as_numpy_are_no_window_on_the_model() -> None:
    """Memory: a tree of numpy arrays, as loaded from a file, must not be aliased by the model or by value."""
    from flax import linen

    table = aligned((64, 32))
    net = mp.wrap(linen.Embed(64, 32), ROWS, variables={"params": {"embedding": table}})
    value = mp.to_numpy(net["weight"].value)
    if value.flags.writeable:
        value[:] = 3
    assert not net["weight"].numpy().any()
    table[:] = 7
    assert not net["weight"].numpy().any()


@in_framework("jax")
def test_a_jax_array_handed_to_torch_is_not_written_by_it() -> None:
    """Memory: a write in torch through a zero-copy import would change the jax array."""
    jnp = pytest.importorskip("jax.numpy")
    pytest.importorskip("torch")
    net = mp.wrap(_torch_table())
    source = jnp.zeros((64, 32))
    net["weight"].assign(source)
    net["weight"][:] = 5
    net.native.weight.data.fill_(6)
    assert not np.asarray(source).any()
