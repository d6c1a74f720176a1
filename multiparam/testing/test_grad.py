"""Gradients: None before the first step, then what backward left, canonical; freezing; optimizers of one meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import nn

from .networks import X, Y, arrays, assert_close, deep, deep_spec, mlp, state_of
from .reference import forward, gradients


def test_there_is_no_gradient_before_the_first_backward(backend: str) -> None:
    net = mlp(backend)
    net(X)
    assert all(p.grad is None for p in net)


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
        return net.adapter.mse(net["0.bias"].value, net.native_array(np.zeros(8)))

    step = net.value_and_grad(objective)
    net.value_and_grad(mp.losses.mse)(X, Y)
    _, grads = step(X)
    np.testing.assert_allclose(mp.to_numpy(grads["0.bias"]), net["0.bias"].numpy() / 4, rtol=1e-12)
    for name in ("0.weight", "2.weight", "2.bias"):
        np.testing.assert_array_equal(mp.to_numpy(grads[name]), 0)
        np.testing.assert_array_equal(mp.to_numpy(net[name].grad), 0)


TARGET = np.arange(8.0).reshape(1, 8)


def test_an_objective_may_penalise_values_and_use_the_net_it_closes_over(backend: str) -> None:
    net = mlp(backend)

    def objective(_: Any, x: Any, y: Any) -> Any:
        w = net["2.weight"].value  # canonical layout: (1, 8)
        return mp.losses.mse(net, x, y) + net.adapter.mse(w, net.native_array(TARGET))

    plain = arrays(net.value_and_grad(mp.losses.mse)(X, Y)[1])
    _, grads = net.value_and_grad(objective)(X, Y)
    truth = plain["2.weight"] + 2 * (net["2.weight"].numpy() - TARGET) / 8
    np.testing.assert_allclose(mp.to_numpy(grads["2.weight"]), truth, rtol=1e-12)
    np.testing.assert_allclose(mp.to_numpy(grads["0.weight"]), plain["0.weight"], rtol=1e-12)


@pytest.mark.parametrize("shared", [False, True], ids=["plain", "tied"])
def test_gradients_are_those_of_backpropagation(backend: str, shared: bool) -> None:
    net = deep(backend, shared=shared)
    state = state_of(net)
    loss, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    truth = gradients(deep_spec(), state, X, Y)
    assert mp.to_numpy(loss).item() == pytest.approx(np.mean((forward(deep_spec(), state, X) - Y) ** 2), rel=1e-12)
    for name, g in arrays(grads).items():
        assert_close(g, np.sum([truth[each] for each in net[name].names], axis=0))


def test_gradients_of_a_square_weight_are_not_transposed(backend: str) -> None:
    net = mp.build(nn.Linear(4), X, backend=backend, dtype="float64")
    _, grads = net.value_and_grad(mp.losses.mse)(X, np.zeros((6, 4)))
    y = X @ net["weight"].numpy().T + net["bias"].numpy()
    assert_close(grads["weight"], 2 * y.T @ X / y.size)
    assert_close(net["weight"].grad, 2 * y.T @ X / y.size)


def test_a_step_changes_no_value(backend: str) -> None:
    net = mlp(backend)
    before = state_of(net)
    net.value_and_grad(mp.losses.mse)(X, Y)
    for name, value in state_of(net).items():
        np.testing.assert_array_equal(value, before[name])


def test_a_step_sees_what_was_written_since(backend: str) -> None:
    net = deep(backend)
    step = net.value_and_grad(mp.losses.mse)
    step(X, Y)
    net["2.weight"][:] *= 2
    loss, grads = step(X, Y)
    state = state_of(net)
    assert mp.to_numpy(loss).item() == pytest.approx(np.mean((forward(deep_spec(), state, X) - Y) ** 2), rel=1e-12)
    assert_close(grads["0.weight"], gradients(deep_spec(), state, X, Y)["0.weight"])


@pytest.mark.parametrize("scale", [1.0, 0.0], ids=["gradient", "gradient of zero"])
def test_unfreezing_what_is_not_frozen_keeps_its_gradient(backend: str, scale: float) -> None:
    net = deep(backend)
    net["6.weight"][:] *= scale
    net.value_and_grad(mp.losses.mse)(X, Y)
    before = np.array(mp.to_numpy(net["0.weight"].grad))
    net.unfreeze("*")
    np.testing.assert_array_equal(mp.to_numpy(net["0.weight"].grad), before)


def test_a_gradient_from_before_a_freeze_is_gone(backend: str) -> None:
    """An optimizer's step without a new backward must not move by it."""
    net = deep(backend)
    net.value_and_grad(mp.losses.mse)(X, Y)
    net.freeze("0.weight")
    net.unfreeze("0.weight")
    before = net["0.weight"].numpy()
    assert net["0.weight"].grad is None
    net.optimizer("sgd", lr=0.1).step()
    np.testing.assert_array_equal(net["0.weight"].numpy(), before)


def test_a_frozen_parameter_can_still_be_written(backend: str) -> None:
    net = mlp(backend)
    net.freeze("0.weight")
    net["0.weight"].assign(np.ones((8, 4)))
    np.testing.assert_array_equal(net["0.weight"].numpy(), 1)
    assert not net["0.weight"].trainable


def test_with_everything_frozen_there_is_nothing_to_differentiate(backend: str) -> None:
    net = mlp(backend)
    net.freeze("*")
    with pytest.raises(mp.errors.InvalidArgument):
        net.value_and_grad(mp.losses.mse)(X, Y)


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


def test_an_optimizer_moves_what_was_written_since(backend: str) -> None:
    """Writing replaces values, not the storage that the optimizer holds."""
    net = mlp(backend)
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer("sgd", lr=0.1)
    step(X, Y)
    opt.step()
    net["0.weight"].assign(np.ones((8, 4)))
    _, grads = step(X, Y)
    opt.step()
    assert_close(net["0.weight"].numpy(), 1 - 0.1 * mp.to_numpy(grads["0.weight"]))


def test_an_optimizer_has_no_step_before_a_gradient(backend: str) -> None:
    net = mlp(backend)
    with pytest.raises(mp.errors.InvalidArgument):
        net.optimizer("sgd", lr=0.1).step()


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_an_optimizer_moves_a_tied_parameter_once(backend: str, name: str) -> None:
    net = deep(backend, shared=True)
    before = state_of(net)
    options = {"momentum": 0.9} if name == "momentum" else {"eps": 1e-3} if name == "adam" else {}
    grads = arrays(net.value_and_grad(mp.losses.mse)(X, Y)[1])
    net.optimizer(name, lr=0.1, **options).step()
    full = {"momentum": 0.9} if name == "momentum" else {"beta1": 0.9, "beta2": 0.999, "eps": 1e-3}
    truth = formula(name, before["4.weight"], [grads["2.weight"]], [0.1], **full)
    np.testing.assert_allclose(net["4.weight"].numpy(), truth, rtol=1e-10)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_a_rate_may_be_a_function_of_the_step_and_0_on_the_way(backend: str, name: str) -> None:
    """A warm-up starts from 0; momentum's velocity and Adam's moments go on while the rate is 0."""
    net = mp.build(nn.Linear(3), X, backend=backend, dtype="float32")
    rates, seen = [0.0, 0.1, 0.0, 0.2], list[int]()
    grads = [np.random.default_rng(i).normal(size=(3, 4)).astype("float32") for i in range(4)]
    options = {"momentum": {"momentum": 0.9}, "adam": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}}.get(name, {})
    start = net["weight"].numpy().astype(np.float64)

    def schedule(step: int) -> float:
        seen.append(step)
        return rates[min(step, 3)]

    opt = net.optimizer(name, lr=schedule, **options)
    for i, g in enumerate(grads):
        assert opt.lr == rates[i]
        opt.step({"weight": g})
    assert sorted(set(seen)) == [0, 1, 2, 3, 4][: max(seen) + 1]
    truth = formula(name, start, [g.astype(np.float64) for g in grads], rates, **options)
    np.testing.assert_allclose(net["weight"].numpy(), truth, rtol=1e-4, atol=1e-6)
    opt.lr = 0.5  # a number ends the schedule
    opt.step({"weight": grads[0]})
    assert opt.lr == 0.5
