"""Native optimizers step our gradients as they step native ones; AdamW is PyTorch's in every framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.small_models import FLAVOURS, Make, X, Y, every_flavour

import multiparam as mp
from multiparam import errors


def _torch(net: mp.Model) -> Any:
    import torch

    return torch.optim.SGD(net.native.parameters(), lr=0.1, momentum=0.9)


def _optax(net: mp.Model) -> Any:
    import optax

    return optax.sgd(0.1, 0.9)


def _gluon(net: mp.Model) -> Any:
    from multiparam_mxnet.load import load

    options = {"learning_rate": 0.1, "momentum": 0.9}
    return load().gluon.Trainer(net.native.collect_params(), "sgd", options)


def _keras(net: mp.Model) -> Any:
    import keras

    return keras.optimizers.SGD(0.1, 0.9)


def _tf_keras(net: mp.Model) -> Any:
    import tf_keras

    return tf_keras.optimizers.SGD(0.1, 0.9)


NATIVE = [_torch, _gluon, _optax, _optax, _keras, _tf_keras]
PAIRS = [pytest.param(*f.values, own, id=f.id, marks=f.marks) for f, own in zip(FLAVOURS, NATIVE, strict=True)]
natives = pytest.mark.parametrize(("make", "own"), PAIRS)


def train(net: mp.Model, opt: mp.Optimizer, steps: int = 3) -> dict[str, np.ndarray]:
    net.init(mp.init.normal(), seed=1)
    step = net.value_and_grad(mp.losses.mse)
    for _ in range(steps):
        step(X, Y)
        opt.step()
    return net.state_dict()


@natives
def test_a_native_optimizer_is_taken_as_it_is(make: Make, own: Callable[[mp.Model], Any]) -> None:
    net, other = make(), make()
    found = train(net, net.optimizer(own(net)))
    right = train(other, other.optimizer("momentum", lr=0.1))
    for name, value in right.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


@natives
def test_what_is_frozen_stays(make: Make, own: Callable[[mp.Model], Any]) -> None:
    net = make()
    opt = net.optimizer(own(net))
    net.freeze("0.weight", "0.bias")  # tf_keras freezes whole layers
    net.init(mp.init.normal(), seed=1)
    before = net.state_dict()
    after = train(net, opt)
    assert {name for name, value in after.items() if (value != before[name]).any()} == {"1.weight", "1.bias"}
    with pytest.raises(errors.InvalidArgument, match="has its options already: lr"):
        net.optimizer(own(net), lr=0.1)


@every_flavour
def test_what_is_no_optimizer(make: Make) -> None:
    net = make()
    for wrong in (object(), Exception, None, 0.1):
        with pytest.raises(errors.WrongType, match=r"net\.optimizer takes 'sgd'.*or one of the optimizers of"):
            net.optimizer(wrong)


@every_flavour
def test_adamw_decays_apart_from_the_moments(make: Make) -> None:
    net = make()
    opt = net.optimizer("adamw", lr=0.1, weight_decay=0.5)
    net.init(mp.init.normal(), seed=1)
    values = {name: value.astype("float64") for name, value in net.state_dict().items()}
    moments = {name: (np.zeros_like(v), np.zeros_like(v)) for name, v in values.items()}
    step = net.value_and_grad(mp.losses.mse)
    for t in (1, 2, 3):
        _, grads = step(X, Y)
        for name, (mean, square) in moments.items():
            g = mp.to_numpy(grads[name]).astype("float64")
            mean += 0.1 * (g - mean)
            square += 0.001 * (g * g - square)
            root = np.sqrt(square / (1 - 0.999**t)) + 1e-8
            values[name] -= 0.1 * (0.5 * values[name] + mean / (1 - 0.9**t) / root)
        opt.step()
    for name, value in net.state_dict().items():
        np.testing.assert_allclose(value, values[name], rtol=1e-4, atol=1e-5)


def coupled(name: str, values: dict[str, np.ndarray], grads: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """torch.optim's formulas: decay is a part of the gradient. Rate 0.1, decay 0.5, momentum 0.9."""
    after = {}
    for key, start in values.items():
        p, velocity, mean, square = start.astype("float64"), np.zeros(start.shape), 0.0, 0.0
        for t, step in enumerate(grads, 1):
            g = step[key] + 0.5 * p
            if name == "adam":
                mean, square = mean + 0.1 * (g - mean), square + 0.001 * (g * g - square)
                p = p - 0.1 * (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
            else:
                velocity = 0.9 * velocity + g
                p = p - 0.1 * {"sgd": g, "momentum": velocity, "nesterov": g + 0.9 * velocity}[name]
        after[key] = p
    return after


@every_flavour
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam"])
def test_decay_is_a_part_of_the_gradient_but_for_adamw(make: Make, name: str) -> None:
    net = make()
    net.init(mp.init.normal(), seed=1)
    before = net.state_dict()
    rng = np.random.default_rng(0)
    grads = [{p.name: rng.normal(size=p.shape) for p in net} for _ in range(3)]
    options: dict[str, Any] = {"nesterov": True} if name == "nesterov" else {}
    opt = net.optimizer("momentum" if name == "nesterov" else name, lr=0.1, weight_decay=0.5, **options)
    for step in grads:
        opt.step(step)
    truth = coupled(name, {p.name: before[p.name] for p in net}, grads)
    for key, value in truth.items():
        np.testing.assert_allclose(net[key].numpy(), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_decay_in_float64(backend: str, name: str) -> None:
    net = mp.build(mp.nn.Linear(2), X.astype("float64"), backend=backend, dtype="float64")
    before = net.state_dict()
    grads = [{p.name: np.full(p.shape, 0.3 * t) for p in net} for t in range(1, 4)]
    opt = net.optimizer(name, lr=0.1, weight_decay=0.5)
    for step in grads:
        opt.step(step)
    for key, value in coupled(name, before, grads).items():
        np.testing.assert_allclose(net[key].numpy(), value, rtol=1e-12)


def classes(net: mp.Model) -> tuple[Any, dict[str, Any], Any]:
    """A native class, options of it, and one of it made natively."""
    if net.backend == "torch":
        import torch

        return torch.optim.RMSprop, {"lr": 0.1}, torch.optim.RMSprop(net.native.parameters(), lr=0.1)
    if net.backend == "jax":
        import optax

        return optax.rmsprop, {"learning_rate": 0.1}, optax.rmsprop(0.1)
    if net.backend == "mxnet":
        from multiparam_mxnet.load import load

        cls = load().optimizer.RMSProp
        return cls, {"learning_rate": 0.1}, cls(learning_rate=0.1)
    import keras

    library = keras if isinstance(net.native, keras.Layer) else __import__("tf_keras")
    return library.optimizers.RMSprop, {"learning_rate": 0.1}, library.optimizers.RMSprop(0.1)


@every_flavour
def test_a_class_is_made_over_the_parameters(make: Make) -> None:
    one, other = make(), make()
    cls, options, _ = classes(one)
    states = train(one, one.optimizer(cls, **options)), train(other, other.optimizer(classes(other)[2]))
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[1])


@pytest.mark.needs("torch")
def test_a_schedule_of_a_class_and_a_decay_that_is_none() -> None:
    import torch

    net = mp.build(mp.nn.Linear(1, bias=False), X, backend="torch")
    net.init(mp.init.constant(1))
    opt = net.optimizer(torch.optim.SGD, lr=lambda step: 0.5 / (1 + step), momentum=0.0)
    for _ in range(2):
        opt.step({"weight": np.ones((1, 4))})
    assert net["weight"].numpy().tolist() == [[0.25] * 4] and opt.lr == 0.5 / 3
    for wrong in (-0.1, float("nan"), "much"):
        with pytest.raises(errors.InvalidArgument, match=r"weight_decay is .*: it is finite and not negative"):
            net.optimizer("sgd", weight_decay=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("make", "own"), [each for each in PAIRS if each.values[1] is not _optax])  # it holds none
def test_an_optimizer_of_another_model_is_refused(make: Make, own: Callable[[mp.Model], Any]) -> None:
    other, net = make(), make()
    foreign = own(other)
    other.optimizer(foreign)  # Keras' is built by it
    with pytest.raises(errors.InvalidArgument, match="4 arrays that are no parameters of this model"):
        net.optimizer(foreign)


@pytest.mark.needs("torch")
def test_torch_one_that_a_tie_or_native_code_has_left_behind_is_refused_and_one_with_a_closure() -> None:
    import torch

    native = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    net = mp.wrap(native)
    opt = net.optimizer(torch.optim.SGD(native.parameters(), lr=0.1))
    step = net.value_and_grad(mp.losses.mse)
    step(X, np.zeros((6, 4), "float32"))
    opt.step()
    assert opt.lr == 0.1
    opt.lr = 0.2
    net.tie("1.weight", "0.weight")
    step(X, np.zeros((6, 4), "float32"))
    with pytest.raises(errors.InvalidArgument, match="1 arrays that are no parameters"):
        opt.step()
    with pytest.raises(errors.WrongType, match=r"a LBFGS: .*several times"):
        net.optimizer(torch.optim.LBFGS(native.parameters()))
    with pytest.raises(errors.WrongType, match=r"the class LBFGS: .*several times"):
        net.optimizer(torch.optim.LBFGS)
    with pytest.raises(errors.InvalidArgument, match=r"the class SGD cannot be made of rate=0\.1: .*'rate'"):
        net.optimizer(torch.optim.SGD, rate=0.1)
    with pytest.raises(errors.InvalidArgument, match="has its options already: lr cannot be set"):
        net.optimizer(torch.optim.SGD(native.parameters()), lr=0.1)


@pytest.mark.needs("jax")
def test_jax_an_optimizer_sees_the_whole_tree() -> None:
    """A clip by the global norm, a rate in the state, and labels by path."""
    import optax

    net = mp.build(mp.nn.Sequential(mp.nn.Linear(3), mp.nn.Linear(2)), X, backend="jax")
    net.init(mp.init.normal(), seed=0)
    before = net.state_dict()
    opt = net.optimizer(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)))
    _, grads = net.value_and_grad(mp.losses.mse)(X, np.full((6, 2), 9.0, "float32"))
    norm = float(np.sqrt(sum((mp.to_numpy(g) ** 2).sum() for g in grads.values())))
    opt.step()
    assert norm > 1
    for name, value in net.state_dict().items():
        np.testing.assert_allclose(value, before[name] - mp.to_numpy(grads[name]) / norm, rtol=1e-5, atol=1e-5)
    with pytest.raises(errors.UnsupportedAttribute, match="inject_hyperparams"):
        _ = opt.lr
    opt = net.optimizer(optax.inject_hyperparams(optax.sgd)(0.5))
    opt.lr = 0.0
    before = net.state_dict()
    opt.step()
    assert opt.lr == 0.0 and all((value == before[name]).all() for name, value in net.state_dict().items())


@pytest.mark.needs("jax")
def test_jax_an_optimizer_with_arrays_of_its_own_is_refused() -> None:
    nnx = pytest.importorskip("flax.nnx")
    import optax

    native = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    net = mp.wrap(native)
    with pytest.raises(errors.WrongType, match="Give the optax transformation, its tx"):
        net.optimizer(nnx.Optimizer(native, optax.sgd(0.1), wrt=nnx.Param))


@pytest.mark.needs("torch")
def test_a_schedule_that_gives_no_rate_is_refused_and_leaves_the_model() -> None:
    net = mp.build(mp.nn.Linear(2), np.ones((1, 4)), backend="torch")
    with pytest.raises(errors.WrongType, match="schedule of lr gave None for step 0"):
        net.optimizer("sgd", lr=lambda step: None)
    before = net.state_dict()
    opt = net.optimizer("sgd", lr=lambda step: np.float32(0.1) if step < 1 else float("nan"))
    gradient = {"weight": np.ones((2, 4), "float32")}
    opt.step(gradient)
    after = net.state_dict()
    assert not np.array_equal(before["weight"], after["weight"])
    with pytest.raises(errors.InvalidArgument, match="gave nan for step 1: a rate is finite"):
        opt.step(gradient)
    np.testing.assert_array_equal(net.state_dict()["weight"], after["weight"])
    with pytest.raises(errors.InvalidArgument, match=r"gave -1\.0 for step 1"):
        opt.lr = lambda step: -1.0
