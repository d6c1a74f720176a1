"""The matrix: the five verbs mean the same in every backend. One test, one id per framework."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from native import GRADIENTS
from reference import forward

import multiparam as mp
from multiparam import nn

X = np.random.default_rng(0).normal(size=(6, 4))
Y = np.random.default_rng(1).normal(size=(6, 1))


def mlp(backend: str, **options: Any) -> mp.Model:
    options.setdefault("dtype", "float64")
    return mp.build(nn.Sequential(nn.Linear(8), nn.Tanh(), nn.Linear(1)), X, backend=backend, **options)


def deep(backend: str, shared: bool = False, **options: Any) -> mp.Model:
    """d2l's tied network, or its untied twin with the same architecture."""
    options.setdefault("dtype", "float64")
    a = nn.Linear(8)
    b = a if shared else nn.Linear(8)
    spec = nn.Sequential(nn.Linear(8), nn.Tanh(), a, nn.Tanh(), b, nn.Tanh(), nn.Linear(1))
    return mp.build(spec, X, backend=backend, **options)


def blocks(backend: str) -> mp.Model:
    """d2l's rgnet."""

    def block() -> nn.Layer:
        return nn.Sequential(nn.Linear(8), nn.ReLU(), nn.Linear(4), nn.ReLU())

    nested = nn.Sequential(*[(f"block {i}", block()) for i in range(4)])
    return mp.build(nn.Sequential(nested, nn.Linear(1)), X, backend=backend)


def arrays(mapping: Any) -> dict[str, np.ndarray]:
    return {name: np.array(mp.to_numpy(value)) for name, value in mapping.items()}


def assert_close(a: np.ndarray, b: np.ndarray, eps: float = 256) -> None:
    scale = max(float(np.max(np.abs(b))), 1e-300)
    assert float(np.max(np.abs(a - b))) <= eps * np.finfo(np.float64).eps * scale


# -- access


def test_a_parameter_by_name(backend: str) -> None:
    net = mlp(backend, dtype="float32")
    p = net["2.weight"]
    assert (p.name, p.names, p.shape, p.dtype, p.kind) == ("2.weight", ("2.weight",), (1, 8), "float32", "linear")
    assert p.trainable and not p.buffer and p.size == 8


def test_a_parameter_by_position_is_the_same_object(backend: str) -> None:
    net = blocks(backend)
    assert net[0][1][0]["bias"] is net["0.block 1.0.bias"]
    assert net[0]["block 2"][2]["weight"] is net["0.block 2.2.weight"]
    assert net["0.block 3"]["0.bias"] is net["0.block 3.0.bias"]
    assert list(net[0][1].parameters()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_any_alias_gives_the_same_parameter(backend: str) -> None:
    net = deep(backend, shared=True)
    assert net["4.weight"] is net["2.weight"] is net[4]["weight"]
    assert net["4.weight"].names == ("2.weight", "4.weight")


def test_values_come_in_canonical_layout(backend: str) -> None:
    """Against the definition: x @ W.T + b is what the network computes."""
    net = mp.build(nn.Linear(3), X, backend=backend, dtype="float64")
    w, b = net["weight"].numpy(), net["bias"].numpy()
    assert w.shape == mp.to_numpy(net["weight"].value).shape == (3, 4)
    np.testing.assert_array_equal(mp.to_numpy(net["weight"].value), w)
    assert_close(mp.to_numpy(net(X)), X @ w.T + b)


def test_value_is_the_frameworks_array_and_native_its_own_object(backend: str) -> None:
    net = mlp(backend)
    assert mp.registry.detect_array(net["0.weight"].value).name == backend
    assert mp.registry.detect_array(net["0.weight"].native).name == backend


def test_numpy_is_independent_of_the_model(backend: str) -> None:
    net = mlp(backend)
    w = net["0.weight"].numpy()
    before = w.copy()
    w[:] = 7
    np.testing.assert_array_equal(net["0.weight"].numpy(), before)
    kept = net["0.weight"].numpy()
    net["0.weight"][:] = 9
    np.testing.assert_array_equal(kept, before)


def test_value_is_a_snapshot(backend: str) -> None:
    net = mlp(backend)
    value, before = net["0.bias"].value, net["0.bias"].numpy()
    net["0.bias"][:] = 3
    np.testing.assert_array_equal(mp.to_numpy(value), before)
    net["0.bias"].assign(np.arange(8.0))
    np.testing.assert_array_equal(mp.to_numpy(value), before)


def test_assign_keeps_no_alias_of_the_array(backend: str) -> None:
    """64-byte aligned memory is what zero-copy imports adopt."""
    net = mlp(backend)
    raw = np.zeros(8 * 8 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    source = raw[start : start + 64].view(np.float64)
    net["0.bias"].assign(source)
    source[:] = 5
    np.testing.assert_array_equal(net["0.bias"].numpy(), 0)


def test_assign_reaches_the_computation(backend: str) -> None:
    net = mp.build(nn.Linear(3), X, backend=backend, dtype="float64")
    w = np.arange(12.0).reshape(3, 4)
    net(X)  # whatever is compiled on first use must not keep the old values
    net["weight"].assign(w)
    net["bias"].assign([1, 2, 3])
    assert_close(mp.to_numpy(net(X)), X @ w.T + [1, 2, 3])


def test_item_assignment_and_in_place_arithmetic(backend: str) -> None:
    net = mlp(backend)
    p = net["0.weight"]
    truth = p.numpy()
    p[:] += 1
    truth += 1
    p[0, 0] = 42
    truth[0, 0] = 42
    p[1] = np.arange(4)
    truth[1] = np.arange(4)
    p[truth > 1.2] = 0
    truth[truth > 1.2] = 0
    p *= 2
    p -= 1
    p /= 4
    np.testing.assert_array_equal(p.numpy(), (truth * 2 - 1) / 4)


def test_assignment_by_name(backend: str) -> None:
    net = mlp(backend)
    truth = net["0.weight"].numpy()
    net["0.weight"] += 1
    np.testing.assert_array_equal(net["0.weight"].numpy(), truth + 1)
    net[0]["weight"] = truth
    np.testing.assert_array_equal(net["0.weight"].numpy(), truth)
    with pytest.raises(mp.errors.WrongType):
        net["0"] = truth


def test_assign_takes_any_frameworks_array(backend: str) -> None:
    net, source = mlp(backend), np.arange(8.0)
    for name, status in mp.backends().items():
        if status:
            other = mp.build(nn.Linear(8), X, backend=name, dtype="float64")
            other["bias"].assign(source)
            net["0.bias"][:] = 0
            net["0.bias"].assign(other["bias"].value)
            np.testing.assert_array_equal(net["0.bias"].numpy(), source)


def test_numpy_functions_take_a_parameter(backend: str) -> None:
    p = mlp(backend)["0.weight"]
    assert np.asarray(p).shape == (8, 4)
    assert np.mean(p) == p.numpy().mean()


# -- all parameters


def test_all_parameters_in_definition_order(backend: str) -> None:
    net = mlp(backend)
    assert [(n, p.shape) for n, p in net.parameters().items()] == [
        ("0.weight", (8, 4)),
        ("0.bias", (8,)),
        ("2.weight", (1, 8)),
        ("2.bias", (1,)),
    ]
    assert [p.name for p in net] == list(net.parameters())
    assert len(net) == 4


def test_each_storage_once_and_aliases_on_request(backend: str) -> None:
    net = deep(backend, shared=True)
    assert list(net.parameters()) == ["0.weight", "0.bias", "2.weight", "2.bias", "6.weight", "6.bias"]
    every = net.parameters(aliases=True)
    assert list(every) == [f"{i}.{leaf}" for i in (0, 2, 4, 6) for leaf in ("weight", "bias")]
    assert every["4.bias"] is every["2.bias"]


def test_distinct_layers(backend: str) -> None:
    net = deep(backend, shared=True)
    assert list(net.layers()) == [("0",), ("2", "4"), ("6",)]
    assert list(net.layers()[("2", "4")].parameters()) == ["weight", "bias"]
    assert len(deep(backend).layers()) == 4


def test_buffers_are_no_parameters(backend: str) -> None:
    net = mp.build(nn.Sequential(nn.Conv(2, 1), nn.BatchNorm()), np.ones((1, 1, 3, 3)), backend=backend)
    assert list(net.parameters()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    running = [name for name in net.buffers() if not name.endswith("num_batches_tracked")]
    assert running == ["1.running_mean", "1.running_var"]
    p = net["1.running_mean"]
    assert p.buffer and not p.trainable and p.grad is None and p.kind == "batchnorm"


def test_select_by_glob_kind_and_predicate(backend: str) -> None:
    net = mp.build(nn.Sequential(nn.Conv(2, 1), nn.BatchNorm(), nn.Flatten(), nn.Linear(3)), np.ones((1, 1, 3, 3)),
                   backend=backend)  # fmt: skip
    assert [p.name for p in net.select("*.bias")] == ["0.bias", "1.bias", "3.bias"]
    assert [p.name for p in net.select(kind="conv")] == ["0.weight", "0.bias"]
    assert [p.name for p in net.select("*.weight", kind="linear")] == ["3.weight"]
    assert [p.name for p in net.select(lambda p: len(p.shape) == 1)] == ["0.bias", "1.weight", "1.bias", "3.bias"]
    assert [p.name for p in net.select("0.*", net["3.bias"])] == ["0.weight", "0.bias", "3.bias"]
    assert [p.name for p in net.select(["0.bias", "3.*"])] == ["0.bias", "3.weight", "3.bias"]


def test_an_alias_selects_its_storage(backend: str) -> None:
    net = deep(backend, shared=True)
    assert [p.name for p in net.select("4.*")] == ["2.weight", "2.bias"]


# -- tie


def test_a_tie_is_one_storage_seen_through_both_names(backend: str) -> None:
    net = deep(backend)
    net.tie("4.weight", "2.weight")
    assert net.ties() == [("2.weight", "4.weight")]
    assert net["4.weight"] is net["2.weight"]
    assert len(net.parameters()) == 7
    net["4.weight"][0, 0] = 100
    assert net["2.weight"].numpy()[0, 0] == 100


def test_a_tied_network_computes_with_the_shared_values(backend: str) -> None:
    net = deep(backend)
    net(X)
    net.tie("4.weight", "2.weight")
    net.tie("4.bias", "2.bias")
    state = {name: p.numpy() for name, p in net.parameters(aliases=True).items()}
    np.testing.assert_array_equal(state["4.weight"], state["2.weight"])
    assert_close(mp.to_numpy(net(X)), forward(_spec(), state, X))


def _spec() -> nn.Layer:
    return nn.Sequential(
        nn.Linear(8), nn.Tanh(), nn.Linear(8), nn.Tanh(), nn.Linear(8), nn.Tanh(), nn.Linear(1)
    )  # fmt: skip


@pytest.mark.parametrize("how", ["shared layer", "tied afterwards", "tied after a step"])
def test_tied_gradients_are_the_sum_over_an_untied_twin(backend: str, how: str) -> None:
    net = deep(backend, shared=how == "shared layer")
    if how != "shared layer":
        step = net.value_and_grad(mp.losses.mse)
        if how == "tied after a step":
            step(X, Y)
        for leaf in ("weight", "bias"):
            net.tie(f"4.{leaf}", f"2.{leaf}")
    else:
        step = net.value_and_grad(mp.losses.mse)
    twin = deep(backend)
    for name, p in net.parameters(aliases=True).items():
        twin[name].assign(p.numpy())
    _, grads = step(X, Y)
    truth = GRADIENTS[backend](twin, X, Y)
    _, untied = twin.value_and_grad(mp.losses.mse)(X, Y)
    untied = arrays(untied)
    assert len(truth) == 8 and list(grads) == ["0.weight", "0.bias", "2.weight", "2.bias", "6.weight", "6.bias"]
    for leaf in ("weight", "bias"):
        assert_close(mp.to_numpy(grads[f"2.{leaf}"]), untied[f"2.{leaf}"] + untied[f"4.{leaf}"])
    natively = sorted(float(np.abs(g).sum()) for g in truth.values())
    np.testing.assert_allclose(natively, sorted(float(np.abs(g).sum()) for g in untied.values()), rtol=1e-12)


def test_a_tie_survives_training_and_a_second_tie(backend: str) -> None:
    net = deep(backend)
    net.tie("4.weight", "2.weight")
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer("sgd", lr=0.1)
    for _ in range(2):
        step(X, Y)
        opt.step()
    net.tie("4.bias", "2.bias")
    step(X, Y)
    opt.step()
    assert net.ties() == [("2.weight", "4.weight"), ("2.bias", "4.bias")]
    state = {name: p.numpy() for name, p in net.parameters(aliases=True).items()}
    assert_close(mp.to_numpy(net(X)), forward(_spec(), state, X))


def test_a_chain_of_ties_is_one_group(backend: str) -> None:
    square = nn.Sequential(nn.Linear(4), nn.Linear(4), nn.Linear(4))
    net = mp.build(square, X, backend=backend, dtype="float64")
    net.tie("1.weight", "0.weight")
    net.tie("2.weight", "1.weight")
    assert net.ties() == [("0.weight", "1.weight", "2.weight")]
    net.untie("1.weight")
    assert net.ties() == [("0.weight", "2.weight")]


def test_tying_a_shared_layer_ties_all_its_positions(backend: str) -> None:
    net = deep(backend, shared=True)
    extra = mp.build(nn.Sequential(nn.Linear(8), (lambda s: nn.Sequential(s, s))(nn.Linear(8))), X, backend=backend)
    assert extra.tie("1.1.bias", "0.bias") is extra["1.0.bias"]
    assert extra.ties() == [("0.bias", "1.0.bias", "1.1.bias"), ("1.0.weight", "1.1.weight")]
    assert net.ties() == [("2.weight", "4.weight"), ("2.bias", "4.bias")]


def test_untie_gives_independent_storage_with_the_same_values(backend: str) -> None:
    net = deep(backend)
    net.tie("4.weight", "2.weight")
    before = net["2.weight"].numpy()
    net.untie("4.weight")
    assert net.ties() == [] and net["4.weight"] is not net["2.weight"]
    np.testing.assert_array_equal(net["4.weight"].numpy(), before)
    net["4.weight"][:] = 0
    np.testing.assert_array_equal(net["2.weight"].numpy(), before)
    state = {name: p.numpy() for name, p in net.parameters().items()}
    assert_close(mp.to_numpy(net(X)), forward(_spec(), state, X))


def test_untying_the_first_name_leaves_the_others_tied(backend: str) -> None:
    net = mp.build(nn.Sequential(nn.Linear(4), nn.Linear(4), nn.Linear(4)), X, backend=backend)
    net.tie("1.weight", "0.weight")
    net.tie("2.weight", "0.weight")
    net.untie("0.weight")
    assert net.ties() == [("1.weight", "2.weight")]


def test_a_parameter_held_from_before_a_tie_still_means_its_name(backend: str) -> None:
    net = deep(backend)
    p = net["4.weight"]
    net.tie("4.weight", "2.weight")
    p[0, 0] = 7
    assert net["2.weight"].numpy()[0, 0] == 7 and p.names == ("2.weight", "4.weight")


def test_a_compiled_step_is_not_stale_after_tie_and_untie(backend: str) -> None:
    net = deep(backend)
    step = net.value_and_grad(mp.losses.mse)
    step(X, Y)
    net.tie("4.weight", "2.weight")
    loss, grads = step(X, Y)
    state = {name: p.numpy() for name, p in net.parameters(aliases=True).items()}
    assert mp.to_numpy(loss).item() == pytest.approx(np.mean((forward(_spec(), state, X) - Y) ** 2), rel=1e-12)
    assert "4.weight" not in grads
    net.untie("4.weight")
    net["4.weight"][:] = 0
    loss, grads = step(X, Y)
    state = {name: p.numpy() for name, p in net.parameters(aliases=True).items()}
    assert mp.to_numpy(loss).item() == pytest.approx(np.mean((forward(_spec(), state, X) - Y) ** 2), rel=1e-12)
    assert "4.weight" in grads


@pytest.mark.needs("tensorflow")
@pytest.mark.xdist_group("tensorflow")
def test_keras_predict_and_fit_are_not_stale_after_a_tie() -> None:
    net = deep("tensorflow")
    net.native.compile("sgd", "mse")
    net.native.predict(X, verbose=0)
    net.native.fit(X, Y, verbose=0)
    net.tie("4.weight", "2.weight")
    net["2.weight"][:] = 0
    np.testing.assert_allclose(net.native.predict(X, verbose=0), mp.to_numpy(net(X)), rtol=1e-12)


@pytest.mark.needs("mxnet")
@pytest.mark.xdist_group("mxnet")
def test_a_hybridized_block_is_not_stale_after_a_tie() -> None:
    import mxnet

    net = deep("mxnet")
    x = mxnet.nd.array(X, dtype="float64")
    net.native(x)
    net.tie("4.weight", "2.weight")
    state = {name: p.numpy() for name, p in net.parameters(aliases=True).items()}
    assert_close(net.native(x).asnumpy(), forward(_spec(), state, X))
    assert len(list(net.native.collect_params())) == 7


# -- init


def test_an_initialiser_by_selector_leaves_the_rest(backend: str) -> None:
    net = mlp(backend)
    bias = net["0.bias"].numpy()
    net.init(mp.init.constant(1), "*.weight")
    np.testing.assert_array_equal(net["0.weight"].numpy(), 1)
    np.testing.assert_array_equal(net["2.weight"].numpy(), 1)
    np.testing.assert_array_equal(net["0.bias"].numpy(), bias)


def test_blocks_get_their_own_initialisers(backend: str) -> None:
    net = mlp(backend)
    net[0].init(mp.init.xavier_uniform(), "weight")
    net[2].init(mp.init.constant(42), "weight")
    bound = np.sqrt(6 / (4 + 8))
    w = net["0.weight"].numpy()
    assert np.abs(w).max() <= bound and w.std() > bound / 3
    np.testing.assert_array_equal(net["2.weight"].numpy(), 42)


def test_a_function_is_an_initialiser(backend: str) -> None:
    def my_init(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        w = rng.uniform(-10, 10, shape)
        return w * (np.abs(w) >= 5)

    net = mp.build(nn.Linear(100), np.ones((1, 100)), backend=backend)
    net.init(my_init, "weight", seed=1)
    w = net["weight"].numpy()
    assert np.all((w == 0) | ((np.abs(w) >= 5) & (np.abs(w) <= 10)))
    assert 0.47 < np.mean(w == 0) < 0.53 and 0.22 < np.mean(w > 0) < 0.28


INITIALISERS: dict[str, Callable[[], Any]] = {
    "normal": partial(mp.init.normal, std=0.01),
    "uniform": partial(mp.init.uniform, -2, 3),
    "truncated_normal": mp.init.truncated_normal,
    "xavier_uniform": mp.init.xavier_uniform,
    "xavier_normal": mp.init.xavier_normal,
    "kaiming_uniform": partial(mp.init.kaiming_uniform, nonlinearity="relu"),
    "kaiming_normal": partial(mp.init.kaiming_normal, mode="fan_out"),
    "orthogonal": mp.init.orthogonal,
    "zeros": mp.init.zeros,
    "ones": mp.init.ones,
}


@pytest.mark.parametrize("name", INITIALISERS)
def test_seeded_initialisers_are_bit_identical_to_the_drawn_array(backend: str, name: str) -> None:
    """Whatever the native layout, the canonical array is the one drawn from (seed, name)."""
    function = INITIALISERS[name]()
    x = np.ones((1, 3, 6, 6))
    net = mp.build(nn.Sequential(nn.Conv(8, 3), nn.Flatten(), nn.Linear(5)), x, backend=backend)
    net.init(function, "*.weight", seed=5)
    for p in net.select("*.weight"):
        drawn = mp.init.draw(function, p.shape, seed=5, name=p.name).astype("float32")
        np.testing.assert_array_equal(p.numpy(), drawn)


def test_a_seed_depends_on_the_name_and_not_on_the_order(backend: str) -> None:
    a, b = mlp(backend), mlp(backend)
    a.init(mp.init.normal(), seed=3)
    b.init(mp.init.normal(), "2.*", seed=3)
    b.init(mp.init.normal(), "0.*", seed=3)
    for name, value in a.state_dict().items():
        np.testing.assert_array_equal(b[name].numpy(), value)
    assert not np.array_equal(a["0.weight"].numpy().ravel()[:8], a["2.weight"].numpy().ravel())


def test_native_initialisers_are_accepted(backend: str) -> None:
    net = mlp(backend, dtype="float32")
    constant, spread = NATIVE[backend]()
    net.init(constant, "0.weight", seed=1)
    np.testing.assert_array_equal(net["0.weight"].numpy(), 0.5)
    wide = mp.build(nn.Linear(100), np.ones((1, 300), "float32"), backend=backend)
    wide.init(spread, "weight", seed=1)
    first = wide["weight"].numpy()
    assert first.std() == pytest.approx(0.02, rel=0.05)
    wide.init(spread, "weight", seed=1)
    np.testing.assert_array_equal(wide["weight"].numpy(), first)
    wide.init(spread, "weight", seed=2)
    assert not np.array_equal(wide["weight"].numpy(), first)


def _torch() -> tuple[Any, Any]:
    import torch

    return partial(torch.nn.init.constant_, val=0.5), partial(torch.nn.init.normal_, std=0.02)


def _mxnet() -> tuple[Any, Any]:
    import mxnet

    return mxnet.init.Constant(0.5), mxnet.init.Normal(0.02)


def _jax() -> tuple[Any, Any]:
    import jax

    return jax.nn.initializers.constant(0.5), jax.nn.initializers.normal(0.02)


def _tensorflow() -> tuple[Any, Any]:
    import keras

    return keras.initializers.Constant(0.5), keras.initializers.RandomNormal(stddev=0.02)


NATIVE = {"torch": _torch, "mxnet": _mxnet, "jax": _jax, "tensorflow": _tensorflow}


@pytest.mark.needs("jax")
@pytest.mark.xdist_group("jax")
def test_a_native_initialiser_sees_the_native_layout() -> None:
    """LeCun's in JAX reads fan_in from the axis before the last, which is the input only in (in, out)."""
    import jax

    net = mp.build(nn.Linear(40), np.ones((1, 1000), "float32"), backend="jax")
    net.init(jax.nn.initializers.lecun_normal(), "weight")
    assert net["weight"].numpy().std() == pytest.approx(1 / np.sqrt(1000), rel=0.03)


def test_init_writes_a_tied_storage_once_under_its_first_name(backend: str) -> None:
    net = deep(backend, shared=True)
    net.init(mp.init.normal(), "4.weight", seed=2)
    drawn = mp.init.draw(mp.init.normal(), (8, 8), seed=2, name="2.weight")
    np.testing.assert_array_equal(net["2.weight"].numpy(), drawn)


# -- gradient


def test_there_is_no_gradient_before_the_first_backward(backend: str) -> None:
    net = mlp(backend)
    net(X)
    assert all(p.grad is None for p in net)


@pytest.mark.parametrize("shared", [False, True], ids=["plain", "tied"])
def test_gradients_equal_the_frameworks_own(backend: str, shared: bool) -> None:
    net = deep(backend, shared=shared)
    loss, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    mine = {name: np.array(mp.to_numpy(g)) for name, g in grads.items()}
    truth = GRADIENTS[backend](net, X, Y)
    assert len(mine) == len(truth) == (6 if shared else 8)
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
    for g in truth.values():
        by_shape.setdefault(tuple(sorted(g.shape)), []).append(g)
    for name, g in mine.items():
        same = by_shape[tuple(sorted(g.shape))]
        assert any(_equal(g, native) or _equal(g, native.T) for native in same), name
    assert mp.to_numpy(loss).item() == pytest.approx(np.mean((mp.to_numpy(net(X)) - Y) ** 2), rel=1e-12)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-12, atol=1e-14))


def test_a_step_leaves_its_gradients_in_grad(backend: str) -> None:
    net = mlp(backend)
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    for name, p in net.parameters().items():
        np.testing.assert_array_equal(mp.to_numpy(p.grad), mp.to_numpy(grads[name]))
        assert mp.to_numpy(p.grad).shape == p.shape


def test_a_second_step_replaces_the_gradient_and_keeps_the_first_result(backend: str) -> None:
    net = mlp(backend)
    step = net.value_and_grad(mp.losses.mse)
    _, first = step(X, Y)
    before = arrays(first)
    _, second = step(2 * X, Y)
    for name, g in first.items():
        np.testing.assert_array_equal(mp.to_numpy(g), before[name])
        assert not np.array_equal(mp.to_numpy(second[name]), before[name])
        np.testing.assert_array_equal(mp.to_numpy(net[name].grad), mp.to_numpy(second[name]))


def test_frozen_parameters_get_no_gradient_and_do_not_move(backend: str) -> None:
    net = mlp(backend)
    net.freeze("0.*")
    assert [p.trainable for p in net] == [False, False, True, True]
    before = net.state_dict()
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer("adam", lr=0.1)
    _, grads = step(X, Y)
    opt.step()
    assert list(grads) == ["2.weight", "2.bias"]
    assert net["0.weight"].grad is None
    for name, value in net.state_dict().items():
        assert np.array_equal(value, before[name]) == name.startswith("0.")
    net.unfreeze("*")
    _, grads = step(X, Y)
    assert len(grads) == 4


def test_freezing_after_steps_stops_the_parameter(backend: str) -> None:
    """Momentum must not carry a frozen parameter on."""
    net = mlp(backend)
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer("momentum", lr=0.1)
    step(X, Y)
    opt.step()
    net.freeze("0.weight")
    before = net["0.weight"].numpy()
    step(X, Y)
    opt.step()
    np.testing.assert_array_equal(net["0.weight"].numpy(), before)


def test_a_parameter_the_loss_does_not_use_gets_zeros(backend: str) -> None:
    net = mlp(backend)

    def objective(net: mp.Model, x: Any) -> Any:
        square = net["0.bias"].value * net["0.bias"].value
        return square.sum() if hasattr(square, "sum") else _tf_sum(square)

    step = net.value_and_grad(objective)
    net.value_and_grad(mp.losses.mse)(X, Y)
    _, grads = step(X)
    np.testing.assert_allclose(mp.to_numpy(grads["0.bias"]), 2 * net["0.bias"].numpy(), rtol=1e-12)
    for name in ("0.weight", "2.weight", "2.bias"):
        np.testing.assert_array_equal(mp.to_numpy(grads[name]), 0)
        np.testing.assert_array_equal(mp.to_numpy(net[name].grad), 0)


def _tf_sum(value: Any) -> Any:
    import tensorflow as tf

    return tf.reduce_sum(value)


def test_an_objective_may_penalise_values_and_use_the_net_it_closes_over(backend: str) -> None:
    net = mlp(backend)

    def objective(_: Any, x: Any, y: Any) -> Any:
        w = net["2.weight"].value  # canonical layout: (1, 8)
        return mp.losses.mse(net, x, y) + 0.1 * (w * w)[0, 3]

    _, plain = net.value_and_grad(mp.losses.mse)(X, Y)
    plain = arrays(plain)
    _, grads = net.value_and_grad(objective)(X, Y)
    truth = plain["2.weight"]
    truth[0, 3] += 0.2 * net["2.weight"].numpy()[0, 3]
    np.testing.assert_allclose(mp.to_numpy(grads["2.weight"]), truth, rtol=1e-12)
    np.testing.assert_allclose(mp.to_numpy(grads["0.weight"]), plain["0.weight"], rtol=1e-12)


def test_a_failing_objective_leaves_the_model_usable(backend: str) -> None:
    net = mlp(backend)
    before = net.state_dict()

    def broken(net: mp.Model, x: Any) -> Any:
        net(x)
        raise RuntimeError("on purpose")

    with pytest.raises(Exception, match="on purpose"):
        net.value_and_grad(broken)(X)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert mp.to_numpy(net(X)).shape == (6, 1)
    assert len(net.value_and_grad(mp.losses.mse)(X, Y)[1]) == 4


def test_cross_entropy_is_the_mean_negative_log_likelihood(backend: str) -> None:
    labels = np.array([0, 2, 1, 2, 0, 1])
    net = mp.build(nn.Linear(3), X, backend=backend, dtype="float64")
    loss, grads = net.value_and_grad(mp.losses.cross_entropy)(X, labels)
    z = X @ net["weight"].numpy().T + net["bias"].numpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    assert mp.to_numpy(loss).item() == pytest.approx(-np.mean(np.log(p[np.arange(6), labels])), rel=1e-12)
    np.testing.assert_allclose(mp.to_numpy(grads["bias"]), (p - np.eye(3)[labels]).mean(0), rtol=1e-11, atol=1e-15)


@pytest.mark.needs("torch")
@pytest.mark.xdist_group("torch")
def test_a_users_backward_shows_up_in_torch() -> None:
    import torch

    net = mlp("torch")
    net.native(torch.tensor(X)).sum().backward()
    np.testing.assert_array_equal(mp.to_numpy(net["0.weight"].grad), net.native[0].weight.grad.numpy())
    net.native.zero_grad()
    assert net["0.weight"].grad is None


@pytest.mark.needs("mxnet")
@pytest.mark.xdist_group("mxnet")
def test_a_users_backward_shows_up_in_gluon_also_after_a_trainers_step() -> None:
    import mxnet

    net = mlp("mxnet")
    trainer = mxnet.gluon.Trainer(net.native.collect_params(), "sgd", {"learning_rate": 0.1})
    with mxnet.autograd.record():
        loss = net.native(mxnet.nd.array(X, dtype="float64")).sum()
    loss.backward()
    trainer.step(1)
    np.testing.assert_array_equal(mp.to_numpy(net["0.weight"].grad), net.native[0].weight.grad().asnumpy())


# -- optimizers


def formula(name: str, w: np.ndarray, grads: list[np.ndarray], lr: list[float], **o: float) -> np.ndarray:
    """PyTorch's documented update rules."""
    v = m = s = np.zeros_like(w)
    for t, (g, rate) in enumerate(zip(grads, lr, strict=True), 1):
        if name == "sgd":
            w = w - rate * g
        elif name == "momentum":
            v = o["momentum"] * v + g
            w = w - rate * (g + o["momentum"] * v if o.get("nesterov") else v)
        else:
            m = o["beta1"] * m + (1 - o["beta1"]) * g
            s = o["beta2"] * s + (1 - o["beta2"]) * g * g
            m_hat, s_hat = m / (1 - o["beta1"] ** t), s / (1 - o["beta2"] ** t)
            w = w - rate * m_hat / (np.sqrt(s_hat) + o["eps"])
    return w


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {}),
        ("momentum", {"momentum": 0.9}),
        ("momentum", {"momentum": 0.7, "nesterov": True}),
        ("adam", {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}),
        ("adam", {"beta1": 0.8, "beta2": 0.9, "eps": 0.1}),
    ],
    ids=["sgd", "momentum", "nesterov", "adam", "adam with a large eps"],
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_optimizer_has_one_meaning(backend: str, name: str, options: dict[str, float], dtype: str) -> None:
    """Given gradients, a learning rate that changes on the way, against the documented formula."""
    net = mp.build(nn.Linear(3), X, backend=backend, dtype=dtype)
    rng = np.random.default_rng(0)
    start = net["weight"].numpy().astype(np.float64)
    grads = [rng.normal(size=(3, 4)).astype(dtype) for _ in range(6)]
    rates = [0.1, 0.1, 0.03, 0.03, 0.2, 0.2]
    opt = net.optimizer(name, lr=rates[0], **options)
    for g, rate in zip(grads, rates, strict=True):
        opt.lr = rate
        opt.step({"weight": g})
    truth = formula(name, start, [g.astype(np.float64) for g in grads], rates, **options)
    np.testing.assert_allclose(net["weight"].numpy(), truth, rtol=1e-12 if dtype == "float64" else 5e-5)
    # MXNet's operator computes 1 - beta2 in float32, which is 1.3e-5 off for 0.999
    assert opt.lr == 0.2


def test_optimizers_train(backend: str) -> None:
    for name in ("sgd", "momentum", "adam"):
        net = mlp(backend)
        step, opt = net.value_and_grad(mp.losses.mse), net.optimizer(name, lr=0.02)
        losses = []
        for _ in range(20):
            loss, _ = step(X, Y)
            losses.append(mp.to_numpy(loss).item())
            opt.step()
        assert losses[-1] < 0.9 * losses[0]


def test_an_optimizer_made_before_a_tie_goes_on_and_says_what_it_lost(backend: str) -> None:
    net = deep(backend)
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer("momentum", lr=0.1)
    step(X, Y)
    opt.step()
    net.tie("4.weight", "2.weight")
    before = net["2.weight"].numpy()
    _, grads = step(X, Y)
    with pytest.warns(mp.MultiparamWarning, match="start from zero"):
        opt.step()
    np.testing.assert_allclose(net["4.weight"].numpy(), before - 0.1 * mp.to_numpy(grads["2.weight"]), rtol=1e-12)


def test_a_recorder_watches_a_tied_training_run(backend: str) -> None:
    net = deep(backend, shared=True)
    watch = mp.Recorder(net)
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer("sgd", lr=0.1)
    norms, losses = [], []
    for _ in range(3):
        loss, grads = step(X, Y)
        losses.append(mp.to_numpy(loss).item())
        norms.append(float(np.linalg.norm(mp.to_numpy(grads["2.weight"]))))
        watch.record(loss)
        opt.step()
    assert list(watch) == ["0.weight", "0.bias", "2.weight", "2.bias", "6.weight", "6.bias"]
    assert watch["4.weight"]["grad"]["norm"] == pytest.approx(norms, rel=1e-12)
    assert watch.losses == losses and len(watch) == 3
    assert watch.table("value", "mean")["0.bias"][0] == pytest.approx(
        deep(backend, shared=True)["0.bias"].numpy().mean()
    )


# -- state


def test_state_dict_holds_each_storage_once_and_the_buffers(backend: str) -> None:
    net = deep(backend, shared=True)
    assert list(net.state_dict()) == list(net.parameters())
    conv = mp.build(nn.Sequential(nn.Conv(2, 1), nn.BatchNorm()), np.ones((1, 1, 3, 3)), backend=backend)
    assert [n for n in conv.state_dict() if "num_batches" not in n] == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
    ]
    assert list(conv[1].state_dict())[:2] == ["weight", "bias"]
