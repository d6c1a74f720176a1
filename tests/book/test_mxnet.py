"""The seed documents' MXNet cells: each model is built and read with Gluon alone, then read through multiparam."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multiparam as mp

pytestmark = [pytest.mark.needs("mxnet"), pytest.mark.xdist_group("mxnet")]


@pytest.fixture
def mx(mx_np: None) -> Any:
    """MXNet with its numpy arrays, as the document's tab has them."""
    from multiparam_mxnet.load import load

    mx = load()
    mx.random.seed(0)
    return mx


@pytest.fixture(params=["np", "nd"])
def either(request: pytest.FixtureRequest) -> Any:
    """MXNet with its numpy arrays, and again with its older ones."""
    if request.param == "np":
        request.getfixturevalue("mx_np")
    from multiparam_mxnet.load import load

    mx = load()
    mx.random.seed(0)
    return mx


def uniform(mx: Any, *shape: int) -> Any:
    if mx.util.is_np_array():
        return mx.np.random.uniform(size=shape)
    return mx.nd.random.uniform(shape=shape)


def mlp(mx: Any) -> Any:
    nn = mx.gluon.nn
    net = nn.Sequential()
    net.add(nn.Dense(8, activation="relu"))
    net.add(nn.Dense(1))
    net.initialize()
    return net


def backward(mx: Any, net: Any, X: Any, y: Any) -> Any:
    """Record, run and go backward as a Gluon training loop does; the loss is the mean of the squares."""
    with mx.autograd.record():
        loss = ((net(X) - y) ** 2).mean()
    loss.backward()
    return loss


def same(parameter: Any, native: Any) -> None:
    """One of ours holds exactly the values of a gluon Parameter, and is that Parameter."""
    assert parameter.shape == tuple(native.shape)
    np.testing.assert_array_equal(parameter.numpy(), native.data().asnumpy())
    assert parameter.native is native


# -- the MLP, and access


def test_wrapping_a_deferred_mlp_with_an_input_gives_it_the_shapes_a_forward_pass_gives(mx: Any) -> None:
    """001: net(X).shape, Gluon."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    view = mp.wrap(net, X)
    assert tuple(view(X).shape) == tuple(net(X).shape) == (2, 1)
    assert view.native is net
    assert view["0.weight"].shape == tuple(net[0].weight.shape) == (8, 4)
    np.testing.assert_array_equal(mp.to_numpy(view(X)), net(X).asnumpy())


def test_a_deferred_mlp_without_an_input_is_refused_with_the_cure(mx: Any) -> None:
    """001: the shapes are made in the first forward pass."""
    with pytest.raises(mp.errors.UnknownShapes, match=r"mp\.wrap\(net, X\)"):
        mp.wrap(mlp(mx))


def test_the_second_dense_layer_holds_its_two_native_parameters(mx: Any) -> None:
    """001: net[1].params."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    net(X)
    layer = mp.wrap(net)[1].parameters()
    natives = list(net[1].params.values())
    assert list(layer) == ["weight", "bias"]
    for parameter, native in zip(layer.values(), natives, strict=True):
        same(parameter, native)
        assert native.name.endswith(parameter.name.rpartition(".")[2])


def test_the_bias_is_the_native_parameter_with_its_value(mx: Any) -> None:
    """001: type(net[1].bias), net[1].bias.data()."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    net(X)
    bias = mp.wrap(net)[1]["bias"]
    assert type(bias.native) is type(net[1].bias) is mx.gluon.Parameter
    assert type(bias.value) is type(net[1].bias.data())
    same(bias, net[1].bias)
    assert bias.numpy().tolist() == [0.0]
    assert (bias.dtype, bias.kind, bias.trainable) == ("float32", "linear", True)


def test_no_gradient_before_backward_though_gluon_shows_zeros(mx: Any) -> None:
    """001: net[1].weight.grad()."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    view = mp.wrap(net, X)
    assert net[1].weight.grad().asnumpy().tolist() == [[0.0] * 8]
    assert [p.grad for p in view] == [None] * 4


def test_a_native_backward_is_seen_in_every_gradient(mx: Any) -> None:
    """001: a parameter holds a value and a gradient."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    view = mp.wrap(net, X)
    with mx.autograd.record():
        total = net(X).sum()
    total.backward()
    for name, native in (("0.weight", net[0].weight), ("1.weight", net[1].weight), ("1.bias", net[1].bias)):
        np.testing.assert_array_equal(mp.to_numpy(view[name].grad), native.grad().asnumpy())
    assert mp.to_numpy(view["1.bias"].grad).tolist() == [2.0]  # one for each row


def test_a_gradient_of_zeros_is_a_gradient_once_backward_has_run(mx: Any) -> None:
    """001: the initial state is None, and ends with the first backward even where that leaves zeros."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    view = mp.wrap(net, X)
    with mx.autograd.record():
        total = (net(X) * 0).sum()
    total.backward()
    assert mp.to_numpy(view["1.weight"].grad).tolist() == net[1].weight.grad().asnumpy().tolist() == [[0.0] * 8]


def test_a_gradient_step_agrees_with_native_autograd(mx: Any) -> None:
    """001: gradients, asked for through multiparam."""
    net, X, y = mlp(mx), uniform(mx, 2, 4), uniform(mx, 2, 1)
    loss, grads = mp.wrap(net, X).value_and_grad(mp.losses.mse)(X, y)
    expected = backward(mx, net, X, y)
    assert float(loss) == float(expected)
    assert list(grads) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    for native, grad in zip(net.collect_params().values(), grads.values(), strict=True):
        np.testing.assert_array_equal(mp.to_numpy(grad), native.grad().asnumpy())


def test_all_parameters_at_once_are_those_collect_params_gives(mx: Any) -> None:
    """001: net.collect_params()."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    net(X)
    view = mp.wrap(net).parameters()
    assert [(name, p.shape) for name, p in view.items()] == [
        ("0.weight", (8, 4)),
        ("0.bias", (8,)),
        ("1.weight", (1, 8)),
        ("1.bias", (1,)),
    ]
    for parameter, native in zip(view.values(), net.collect_params().values(), strict=True):
        same(parameter, native)


def test_the_flat_name_reaches_the_value_of_the_layers_bias(mx: Any) -> None:
    """003: the flat name, which Gluon's document has as net.collect_params()['dense1_bias']."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    view = mp.wrap(net, X)
    same(view["1.bias"], net.collect_params()[net[1].bias.name])
    assert view["1.bias"] is view[1]["bias"]


# -- nested blocks


def block1(mx: Any) -> Any:
    nn = mx.gluon.nn
    net = nn.Sequential()
    net.add(nn.Dense(8, activation="relu"), nn.Dense(4, activation="relu"))
    return net


def block2(mx: Any) -> Any:
    net = mx.gluon.nn.Sequential()
    for i in range(4):
        net.register_child(block1(mx), f"block {i}")
    return net


def regular(mx: Any) -> Any:
    net = mx.gluon.nn.Sequential()
    net.add(block2(mx), mx.gluon.nn.Dense(1))
    net.initialize()
    return net


def test_nested_blocks_keep_their_names_with_spaces(mx: Any) -> None:
    """003: rgnet with 'block 0' to 'block 3', in Gluon."""
    rgnet, X = regular(mx), uniform(mx, 2, 4)
    view = mp.wrap(rgnet, X).parameters()
    inner = [f"0.block {i}.{j}.{leaf}" for i in range(4) for j in range(2) for leaf in ("weight", "bias")]
    assert list(view) == [*inner, "1.weight", "1.bias"]
    for parameter, native in zip(view.values(), rgnet.collect_params().values(), strict=True):
        same(parameter, native)


def test_nested_blocks_are_indexed_as_a_nested_list(mx: Any) -> None:
    """003: rgnet[0][1][0].bias, in Gluon."""
    rgnet, X = regular(mx), uniform(mx, 2, 4)
    view = mp.wrap(rgnet, X)
    same(view[0][1][0]["bias"], rgnet[0][1][0].bias)
    assert view[0][1][0]["bias"].name == "0.block 1.0.bias"


# -- initialisation


def my_init(mx: Any) -> Any:
    class MyInit(mx.init.Initializer):
        def _init_weight(self, name: str, data: Any) -> None:
            data[:] = mx.np.random.uniform(-10, 10, data.shape)
            data *= mx.np.abs(data) >= 5

    return MyInit()


def my_rule(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    w = rng.uniform(-10, 10, shape)
    return w * (np.abs(w) >= 5)


@pytest.mark.parametrize("which", ["normal", "constant", "custom"])
def test_a_native_reinitialisation_is_seen_at_once(mx: Any, which: str) -> None:
    """003: net.initialize(..., force_reinit=True) on a model that is already wrapped."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    view = mp.wrap(net, X)
    before = view["0.weight"].numpy()
    rule = {"normal": mx.init.Normal(sigma=0.01), "constant": mx.init.Constant(1), "custom": my_init(mx)}[which]
    net.initialize(init=rule, force_reinit=True)
    for parameter, native in zip(view, net.collect_params().values(), strict=True):
        same(parameter, native)
    assert not np.array_equal(before, view["0.weight"].numpy())


def test_normal_weights_and_zero_biases_are_written_to_the_native_model(mx: Any) -> None:
    """003: normal with standard deviation 0.01, in multiparam's words."""
    nn = mx.gluon.nn
    net = nn.Sequential()
    net.add(nn.Dense(80, activation="relu"), nn.Dense(1))
    net.initialize(mx.init.One())
    view = mp.wrap(net, uniform(mx, 2, 400))
    view["0.bias"][:] = 7
    view.init(mp.init.normal(std=0.01), "*.weight", seed=1)
    view.init(mp.init.zeros(), "*.bias")
    weight = net[0].weight.data().asnumpy()
    assert abs(float(weight.mean())) < 3e-4  # 32000 numbers: five standard errors
    assert float(weight.std()) == pytest.approx(0.01, rel=0.03)
    assert not net[0].bias.data().asnumpy().any()


def test_a_constant_is_written_to_the_native_model(mx: Any) -> None:
    """003: all ones, in multiparam's words."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    mp.wrap(net, X).init(mp.init.constant(1), "*.weight")
    assert net[0].weight.data().asnumpy().tolist() == [[1.0] * 4] * 8
    assert net[1].weight.data().asnumpy().tolist() == [[1.0] * 8]


def test_xavier_and_42_by_block_done_natively_are_seen(mx: Any) -> None:
    """003: Xavier in the first layer, 42 in the second, in Gluon."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    view = mp.wrap(net, X)
    net[0].weight.initialize(init=mx.init.Xavier(), force_reinit=True)
    net[1].initialize(init=mx.init.Constant(42), force_reinit=True)
    same(view[0]["weight"], net[0].weight)
    assert view[1]["weight"].numpy().tolist() == [[42.0] * 8]


def test_xavier_and_42_by_block_reach_only_their_block(mx: Any) -> None:
    """003: the same by block in multiparam's words."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    view = mp.wrap(net, X)
    view[0].init(mp.init.xavier_uniform(), "weight", seed=3)
    view[1].init(mp.init.constant(42), "weight")
    bound = (6 / (4 + 8)) ** 0.5
    assert bound / 2 < float(np.abs(net[0].weight.data().asnumpy()).max()) <= bound
    assert net[1].weight.data().asnumpy().tolist() == [[42.0] * 8]
    assert not net[0].bias.data().asnumpy().any() and not net[1].bias.data().asnumpy().any()


def test_the_frameworks_own_initialiser_can_be_handed_to_a_block(mx: Any) -> None:
    """003: mx.init's rules, given to multiparam."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    view = mp.wrap(net, X)
    view[0].init(mx.init.Xavier(), "weight", seed=1)
    view[1].init(mx.init.Constant(42), "weight")
    assert 0 < float(np.abs(net[0].weight.data().asnumpy()).max()) <= (6 / 12) ** 0.5
    assert net[1].weight.data().asnumpy().tolist() == [[42.0] * 8]


def test_a_custom_gluon_initialiser_can_be_handed_to_the_model(mx: Any) -> None:
    """003: the custom distribution as a Gluon Initializer, given to multiparam."""
    net = mlp(mx)
    mp.wrap(net, uniform(mx, 2, 400)).init(my_init(mx), "0.weight", seed=1)
    w = net[0].weight.data().asnumpy()
    assert np.abs(w[w != 0]).min() >= 5 and np.abs(w).max() <= 10


def test_the_custom_distribution_has_its_three_parts(mx: Any) -> None:
    """003: U(5, 10), 0 and U(-10, -5) with chances 1/4, 1/2, 1/4."""
    net = mlp(mx)
    mp.wrap(net, uniform(mx, 2, 2500)).init(my_rule, "*.weight", seed=2)
    w = net[0].weight.data().asnumpy()
    assert set(np.unique(np.sign(w))) == {-1.0, 0.0, 1.0}
    assert np.abs(w[w != 0]).min() >= 5 and np.abs(w).max() <= 10
    np.testing.assert_allclose([(w > 0).mean(), (w == 0).mean(), (w < 0).mean()], [0.25, 0.5, 0.25], atol=0.02)


def test_parameters_are_set_directly_as_natively(mx: Any) -> None:
    """003: += 1 and [0, 0] = 42, in Gluon."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    p = mp.wrap(net, X)[0]["weight"]
    expected = net[0].weight.data().copy()
    p[:] += 1
    p[0, 0] = 42
    expected[:] += 1
    expected[0, 0] = 42
    np.testing.assert_array_equal(net[0].weight.data().asnumpy(), expected.asnumpy())


def test_a_native_direct_write_is_seen(mx: Any) -> None:
    """003: the same two lines, natively, on a wrapped model."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    p = mp.wrap(net, X)[0]["weight"]
    expected = p.numpy() + np.float32(1)
    expected[0, 0] = 42
    net[0].weight.data()[:] += 1
    net[0].weight.data()[0, 0] = 42
    np.testing.assert_array_equal(p.numpy(), expected)


# -- tied layers


def tied(mx: Any) -> Any:
    nn = mx.gluon.nn
    net = nn.Sequential()
    shared = nn.Dense(8, activation="relu")
    net.add(
        nn.Dense(8, activation="relu"),
        shared,
        nn.Dense(8, activation="relu", params=shared.params),
        nn.Dense(10),
    )
    net.initialize()
    return net


def untied_twin(mx: Any, net: Any) -> Any:
    """Four layers of their own with the values of the tied MLP, in Gluon alone."""
    nn = mx.gluon.nn
    twin = nn.Sequential()
    twin.add(*[nn.Dense(8, activation="relu") for _ in range(3)], nn.Dense(10))
    twin.initialize()
    twin(uniform(mx, 2, 20))
    for i in range(4):
        twin[i].weight.set_data(net[i].weight.data())
        twin[i].bias.set_data(net[i].bias.data())
    return twin


def test_one_parameter_dictionary_used_twice_is_one_parameter_with_two_names(either: Any) -> None:
    """001: params=shared.params."""
    net, X = tied(either), uniform(either, 2, 20)
    net(X)
    view = mp.wrap(net)
    assert net[1].weight is net[2].weight
    assert view["1.weight"] is view["2.weight"]
    assert view["2.weight"].names == ("1.weight", "2.weight")
    assert view.ties() == [("1.weight", "2.weight"), ("1.bias", "2.bias")]
    assert len(view.parameters()) == len(net.collect_params().keys()) == 6
    assert len(view.parameters(aliases=True)) == 8
    same(view["2.weight"], net[1].weight)


def test_the_tied_mlp_has_three_distinct_layers(either: Any) -> None:
    """001: two blocks over one dictionary are one layer."""
    net, X = tied(either), uniform(either, 2, 20)
    assert len(net) == 4
    assert list(mp.wrap(net, X).layers()) == [("0",), ("1", "2"), ("3",)]


def test_a_native_write_to_one_tied_layer_is_seen_in_the_other(either: Any) -> None:
    """001: net[1].weight.data()[0, 0] = 100."""
    net, X = tied(either), uniform(either, 2, 20)
    view = mp.wrap(net, X)
    assert (net[1].weight.data()[0] == net[2].weight.data()[0]).asnumpy().all()
    net[1].weight.data()[0, 0] = 100
    assert view["2.weight"].numpy()[0, 0] == 100
    np.testing.assert_array_equal(view[2]["weight"].numpy(), net[2].weight.data().asnumpy())


def test_a_write_through_either_name_is_seen_in_both_native_layers(either: Any) -> None:
    """001: the same write through multiparam."""
    net, X = tied(either), uniform(either, 2, 20)
    mp.wrap(net, X)["2.weight"][0, 0] = 100
    assert net[1].weight.data().asnumpy()[0, 0] == 100
    assert (net[1].weight.data()[0] == net[2].weight.data()[0]).asnumpy().all()


def test_equal_values_are_not_a_tie(either: Any) -> None:
    """001: the same object, not merely the same value."""
    net, X = tied(either), uniform(either, 2, 20)
    net(X)
    view = mp.wrap(untied_twin(either, net))
    np.testing.assert_array_equal(view["1.weight"].numpy(), view["2.weight"].numpy())
    assert view["1.weight"] is not view["2.weight"]
    assert view.ties() == []
    assert len(view.layers()) == 4


def test_the_tied_gradient_is_the_sum_over_an_untied_twin(either: Any) -> None:
    """001: what becomes of the gradient of shared parameters."""
    net, X, y = tied(either), uniform(either, 2, 20), uniform(either, 2, 10)
    net(X)
    for _, parameter in net.collect_params("weight").items():  # MXNet's default weights are within 0.07
        parameter.set_data(parameter.data() * 10)
    twin = untied_twin(either, net)
    view = mp.wrap(net)
    _, grads = view.value_and_grad(mp.losses.mse)(X, y)
    backward(either, twin, X, y)
    parts = [twin[i].weight.grad().asnumpy() for i in (1, 2)]
    assert parts[0].any() and parts[1].any()
    np.testing.assert_allclose(mp.to_numpy(grads["1.weight"]), parts[0] + parts[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mp.to_numpy(view["2.weight"].grad), net[2].weight.grad().asnumpy())
    assert "2.weight" not in grads


def test_training_the_tied_mlp_natively_is_watched_layer_by_layer(either: Any) -> None:
    """001: the exercise, with a Gluon Trainer and multiparam looking on."""
    net, X, y = tied(either), uniform(either, 2, 20), uniform(either, 2, 10)
    view = mp.wrap(net, X)
    watch = mp.Recorder(view)
    trainer = either.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.5})
    norms, values = [], []
    for _ in range(5):
        watch.record(backward(either, net, X, y))
        norms.append(float(np.linalg.norm(net[2].weight.grad().asnumpy().astype(np.float64))))
        values.append(float(net[2].weight.data().asnumpy().astype(np.float64).mean()))
        trainer.step(1)
    assert len(list(watch)) == 6
    assert watch["2.weight"]["grad"]["norm"] == norms
    assert watch["1.weight"]["value"]["mean"] == values
    assert watch.losses[-1] < watch.losses[0]


def test_training_the_tied_mlp_through_multiparam_ends_where_the_native_loop_ends(either: Any) -> None:
    """001: the exercise, with multiparam's step and optimizer."""
    net, X, y = tied(either), uniform(either, 2, 20), uniform(either, 2, 10)
    twin = tied(either)
    net(X), twin(X)
    for ours, theirs in zip(net.collect_params().values(), twin.collect_params().values(), strict=True):
        theirs.set_data(ours.data())
    view = mp.wrap(net)
    step, opt, watch = view.value_and_grad(mp.losses.mse), view.optimizer("sgd", lr=0.5), mp.Recorder(view)
    trainer = either.gluon.Trainer(twin.collect_params(), "sgd", {"learning_rate": 0.5})
    for _ in range(5):
        loss, _ = step(X, y)
        watch.record(loss)
        opt.step()
        backward(either, twin, X, y)
        trainer.step(1)
    assert watch.losses[-1] < watch.losses[0]
    for parameter, theirs in zip(view, twin.collect_params().values(), strict=True):
        np.testing.assert_allclose(parameter.numpy(), theirs.data().asnumpy(), rtol=1e-6, atol=1e-7)


# -- NestMLP


def nest_mlp(mx: Any) -> Any:
    nn = mx.gluon.nn

    class NestMLP(nn.Block):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential()
            self.net.add(nn.Dense(64, activation="relu"), nn.Dense(32, activation="relu"))
            self.dense = nn.Dense(16, activation="relu")

        def forward(self, X: Any) -> Any:
            return self.dense(self.net(X))

    return NestMLP()


def test_the_nested_blocks_layers_are_reached_by_attribute_names(mx: Any) -> None:
    """000, 001: the exercise on NestMLP, in Gluon."""
    net, X = nest_mlp(mx), uniform(mx, 2, 20)
    net.initialize()
    view = mp.wrap(net, X)
    assert [(n, p.shape) for n, p in view.parameters().items() if n.endswith("weight")] == [
        ("net.0.weight", (64, 20)),
        ("net.1.weight", (32, 64)),
        ("dense.weight", (16, 32)),
    ]
    same(view["net.1.weight"], net.net[1].weight)
    same(view["dense"]["bias"], net.dense.bias)
    assert view["net"][1]["weight"] is view["net.1.weight"]


def test_a_nested_block_inside_a_sequential_is_reached_by_position_and_name(mx: Any) -> None:
    """000, 001: NestMLP as the first of several layers, in Gluon."""
    net, X = mx.gluon.nn.Sequential(), uniform(mx, 2, 20)
    net.add(nest_mlp(mx), mx.gluon.nn.Dense(20))
    net.initialize()
    view = mp.wrap(net, X)
    same(view[0]["net"][0]["weight"], net[0].net[0].weight)
    same(view["0.dense.weight"], net[0].dense.weight)
    same(view[1]["weight"], net[1].weight)


# -- what a Parameter is


def attributes(mx: Any) -> Any:
    class Attributes(mx.gluon.nn.Block):
        """One array of each sort."""

        def __init__(self) -> None:
            super().__init__()
            self.learned = self.params.get("learned", shape=(3,), init=mx.init.One())
            self.cached = mx.np.full((3,), 2.0)
            self.tracked = self.params.get_constant("tracked", mx.np.full((3,), 3.0))

        def forward(self, X: Any) -> Any:
            return X * self.learned.data() + self.cached + self.tracked.data()

    net = Attributes()
    net.initialize()
    return net


def test_only_a_parameter_is_listed_and_a_plain_array_is_nowhere(mx: Any) -> None:
    """002: Gluon's Parameter, its Constant, and an array that is neither."""
    net = attributes(mx)
    view = mp.wrap(net)
    assert list(view.parameters()) == ["learned"]
    assert list(view.buffers()) == ["tracked"]
    same(view["learned"], net.learned)
    same(view["tracked"], net.tracked)
    with pytest.raises(mp.errors.ParameterNotFound, match="cached"):
        view["cached"]


def test_a_parameter_is_trainable_unless_told_otherwise(mx: Any) -> None:
    """002: grad_req is 'write' by default, and 'null' for a constant."""
    net = attributes(mx)
    view = mp.wrap(net)
    assert net.learned.grad_req == "write" and view["learned"].trainable
    assert net.tracked.grad_req == "null" and not view["tracked"].trainable
    net.learned.grad_req = "null"
    assert not view["learned"].trainable


def test_given_filters_are_the_convolutions_only_parameter(mx: Any) -> None:
    """002: a convolution with four filters of 4 by 4, in Gluon."""
    nn = mx.gluon.nn
    weight = mx.np.arange(64).astype("float32").reshape(4, 1, 4, 4)

    class Filters(nn.Block):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2D(4, kernel_size=tuple(weight.shape[2:]), in_channels=1, use_bias=False)
            self.conv.initialize()
            self.conv.weight.set_data(weight)

    net = Filters()
    view = mp.wrap(net)
    assert list(view.parameters()) == ["conv.weight"]
    assert (view["conv.weight"].kind, view["conv.weight"].trainable) == ("conv", True)
    same(view["conv.weight"], net.conv.weight)
    np.testing.assert_array_equal(view["conv.weight"].numpy(), weight.asnumpy())


def test_values_replaced_after_construction_are_the_ones_seen(mx: Any) -> None:
    """002: the module with replaced weights, in Gluon: set_data on given sizes."""
    nn = mx.gluon.nn

    class Replaced(nn.Block):
        def __init__(self, in_dim: int, hid: int, out_dim: int) -> None:
            super().__init__()
            self.linear1 = nn.Dense(hid, in_units=in_dim)
            self.linear2 = nn.Dense(out_dim, in_units=hid)
            self.initialize()
            self.linear1.weight.set_data(mx.np.zeros((hid, in_dim)))
            self.linear1.bias.set_data(mx.np.ones(hid))

        def forward(self, X: Any) -> Any:
            return self.linear2(self.linear1(X))

    net = Replaced(5, 2, 3)
    view = mp.wrap(net)
    assert [p.shape for p in view] == [tuple(p.shape) for p in net.collect_params().values()]
    assert view["linear1.weight"].numpy().tolist() == [[0.0] * 5] * 2
    assert view["linear1.bias"].numpy().tolist() == [1.0, 1.0]


def test_a_native_adam_step_over_the_collected_parameters_is_seen(mx: Any) -> None:
    """002: every parameter handed to Adam, in Gluon a Trainer."""
    net, X = mlp(mx), uniform(mx, 2, 4)
    view = mp.wrap(net, X)
    before = view.state_dict()
    trainer = mx.gluon.Trainer(net.collect_params(), "adam", {"learning_rate": 0.001})
    backward(mx, net, X, uniform(mx, 2, 1))
    trainer.step(1)
    moved = 0
    for (name, parameter), native in zip(view.parameters().items(), net.collect_params().values(), strict=True):
        same(parameter, native)
        moved += int((before[name] != parameter.numpy()).sum())
        assert np.abs(before[name] - parameter.numpy()).max() <= 0.001 * 1.01
    assert moved > 8
