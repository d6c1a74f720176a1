"""The seed documents' PyTorch cells: each model is built and read with torch alone, then read through multiparam."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import multiparam as mp

torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = [pytest.mark.needs("torch"), pytest.mark.xdist_group("torch")]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def mlp() -> Any:
    """The lazy MLP most of the documents start from."""
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(1))


def explicit_mlp() -> Any:
    """The same with its sizes written out, as the Chinese notebook has it."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def batch() -> Any:
    return torch.rand(size=(2, 4))


def same(parameter: Any, native: Any) -> None:
    """One of ours holds exactly the values of a native tensor, and is that tensor."""
    assert parameter.shape == tuple(native.shape)
    np.testing.assert_array_equal(parameter.numpy(), native.detach().numpy())
    assert parameter.native is native


# -- the MLP, and access


def test_wrapping_a_lazy_mlp_with_an_input_gives_it_the_shapes_a_forward_pass_gives() -> None:
    """000, 001, 004: net(X).shape."""
    net, X = mlp(), batch()
    view = mp.wrap(net, X)
    assert tuple(view(X).shape) == tuple(net(X).shape) == (2, 1)
    assert view.native is net
    assert view["0.weight"].shape == tuple(net[0].weight.shape) == (8, 4)


def test_calling_the_view_computes_what_the_native_mlp_computes() -> None:
    """003: net(X) of the MLP with explicit sizes."""
    net, X = explicit_mlp(), batch()
    np.testing.assert_array_equal(mp.to_numpy(mp.wrap(net)(X)), net(X).detach().numpy())


def test_a_lazy_mlp_without_an_input_is_refused_with_the_cure() -> None:
    """000: parameters can be read only after a forward pass."""
    with pytest.raises(mp.errors.UnknownShapes, match=r"mp\.wrap\(net, X\)"):
        mp.wrap(mlp())


def test_the_second_dense_layer_holds_what_its_state_dict_holds() -> None:
    """000, 001, 003, 004: net[2].state_dict()."""
    net, X = mlp(), batch()
    net(X)
    ours, native = mp.wrap(net)[2].state_dict(), net[2].state_dict()
    assert list(ours) == list(native) == ["weight", "bias"]
    for name, tensor in native.items():
        np.testing.assert_array_equal(ours[name], tensor.numpy())


def test_the_layer_between_the_dense_ones_has_no_parameters() -> None:
    """000: the ReLU at position 1 counts as a position, but holds nothing."""
    net, X = mlp(), batch()
    view = mp.wrap(net, X)
    assert len(net[1].state_dict()) == 0
    with pytest.raises(mp.errors.PositionError, match="Positions with parameters: 0, 2"):
        view[1]


def test_the_bias_is_the_native_parameter_with_its_value() -> None:
    """000, 001, 003, 004: type(net[2].bias), net[2].bias.data."""
    net, X = mlp(), batch()
    net(X)
    bias = mp.wrap(net)[2]["bias"]
    assert type(bias.native) is type(net[2].bias) is nn.Parameter
    assert type(bias.value) is torch.Tensor
    same(bias, net[2].bias)
    assert torch.equal(bias.value, net[2].bias.data)
    assert (bias.dtype, bias.kind, bias.trainable) == ("float32", "linear", True)


def test_the_value_is_a_snapshot_that_later_writes_do_not_change() -> None:
    """003: the value is asked for explicitly, apart from the parameter."""
    net = explicit_mlp()
    bias = mp.wrap(net)["2.bias"]
    before = bias.value
    old = float(net[2].bias.data)
    net[2].bias.data += 1
    assert float(before) == old
    assert float(bias.value) == float(net[2].bias.data) != old


def test_no_parameter_has_a_gradient_before_backward() -> None:
    """000, 001, 003, 004: net[2].weight.grad == None."""
    net, X = mlp(), batch()
    view = mp.wrap(net, X)
    assert net[2].weight.grad is None
    assert [p.grad for p in view] == [None] * 4


def test_a_native_backward_is_seen_in_every_gradient() -> None:
    """003: a parameter holds a value and a gradient."""
    net, X = explicit_mlp(), batch()
    view = mp.wrap(net)
    net(X).sum().backward()
    for name, parameter in net.named_parameters():
        np.testing.assert_array_equal(mp.to_numpy(view[name].grad), parameter.grad.numpy())
    assert float(net[2].bias.grad) == 2.0  # one for each row


def test_a_gradient_step_agrees_with_native_autograd() -> None:
    """003: gradients, asked for through multiparam."""
    net, X, y = explicit_mlp(), batch(), torch.rand(2, 1)
    twin = copy.deepcopy(net)
    loss, grads = mp.wrap(net).value_and_grad(mp.losses.mse)(X, y)
    expected = nn.functional.mse_loss(twin(X), y)
    expected.backward()
    assert float(loss) == expected.item()
    assert list(grads) == [name for name, _ in twin.named_parameters()]
    for name, parameter in twin.named_parameters():
        np.testing.assert_array_equal(mp.to_numpy(grads[name]), parameter.grad.numpy())


def test_all_parameters_at_once_have_the_native_names_shapes_and_order() -> None:
    """000, 001, 003, 004: the list over net.named_parameters()."""
    net, X = mlp(), batch()
    net(X)
    ours = [(name, p.shape) for name, p in mp.wrap(net).parameters().items()]
    assert ours == [(name, tuple(p.shape)) for name, p in net.named_parameters()]
    assert ours == [("0.weight", (8, 4)), ("0.bias", (8,)), ("2.weight", (1, 8)), ("2.bias", (1,))]


def test_all_values_at_once_are_the_native_values() -> None:
    """004: the list of (name, param.data)."""
    net, X = mlp(), batch()
    net(X)
    view = mp.wrap(net).parameters()
    for name, parameter in net.named_parameters():
        same(view[name], parameter)


def test_the_first_layers_parameters_are_named_within_the_layer() -> None:
    """003: net[0].named_parameters()."""
    net = explicit_mlp()
    ours = [(name, p.shape) for name, p in mp.wrap(net)[0].parameters().items()]
    assert ours == [(name, tuple(p.shape)) for name, p in net[0].named_parameters()]


def test_the_flat_name_reaches_the_same_value_as_the_state_dict() -> None:
    """003: net.state_dict()['2.bias'].data."""
    net = explicit_mlp()
    view = mp.wrap(net)
    np.testing.assert_array_equal(view["2.bias"].numpy(), net.state_dict()["2.bias"].data.numpy())
    assert view["2.bias"] is view[2]["bias"]


# -- nested blocks


def block1() -> Any:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU())


def block2() -> Any:
    net = nn.Sequential()
    for i in range(4):
        net.add_module(f"block {i}", block1())
    return net


def regular() -> Any:
    return nn.Sequential(block2(), nn.Linear(4, 1))


def test_nested_blocks_keep_their_names_with_spaces() -> None:
    """003: rgnet with 'block 0' to 'block 3'."""
    rgnet = regular()
    view = mp.wrap(rgnet)
    assert list(view.parameters()) == [name for name, _ in rgnet.named_parameters()]
    assert list(view.parameters())[:2] == ["0.block 0.0.weight", "0.block 0.0.bias"]
    for name, parameter in rgnet.named_parameters():
        same(view[name], parameter)


def test_nested_blocks_are_indexed_as_a_nested_list() -> None:
    """003: rgnet[0][1][0].bias.data."""
    rgnet = regular()
    view = mp.wrap(rgnet)
    same(view[0][1][0]["bias"], rgnet[0][1][0].bias)
    assert view[0][1][0]["bias"].name == "0.block 1.0.bias"


def test_a_block_is_a_group_with_names_of_its_own() -> None:
    """003: the printed tree, one block of it."""
    rgnet = regular()
    block = mp.wrap(rgnet)["0.block 2"]
    assert list(block.parameters()) == [name for name, _ in rgnet[0][2].named_parameters()]
    same(block["2.weight"], rgnet[0][2][2].weight)


# -- initialisation


def init_normal(m: Any) -> None:
    if type(m) is nn.Linear:
        nn.init.normal_(m.weight, mean=0, std=0.01)
        nn.init.zeros_(m.bias)


def init_constant(m: Any) -> None:
    if type(m) is nn.Linear:
        nn.init.constant_(m.weight, 1)
        nn.init.zeros_(m.bias)


def init_xavier(m: Any) -> None:
    if type(m) is nn.Linear:
        nn.init.xavier_uniform_(m.weight)


def init_42(m: Any) -> None:
    if type(m) is nn.Linear:
        nn.init.constant_(m.weight, 42)


def my_init(m: Any) -> None:
    if type(m) is nn.Linear:
        nn.init.uniform_(m.weight, -10, 10)
        m.weight.data *= m.weight.data.abs() >= 5


def my_rule(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    w = rng.uniform(-10, 10, shape)
    return w * (np.abs(w) >= 5)


@pytest.mark.parametrize("function", [init_normal, init_constant, my_init], ids=lambda f: f.__name__)
def test_a_native_apply_is_seen_at_once(function: Any) -> None:
    """003: net.apply(...) on a model that is already wrapped."""
    net = explicit_mlp()
    view = mp.wrap(net)
    before = view["0.weight"].numpy()
    net.apply(function)
    for name, parameter in net.named_parameters():
        same(view[name], parameter)
    assert not np.array_equal(before, view["0.weight"].numpy())


def test_normal_weights_and_zero_biases_are_written_to_the_native_model() -> None:
    """003: init_normal, in multiparam's words."""
    net = nn.Sequential(nn.Linear(400, 80), nn.ReLU(), nn.Linear(80, 10))
    view = mp.wrap(net)
    view.init(mp.init.normal(std=0.01), "*.weight", seed=1)
    view.init(mp.init.zeros(), "*.bias")
    assert abs(float(net[0].weight.data.mean())) < 3e-4  # 32000 numbers: five standard errors
    assert float(net[0].weight.data.std()) == pytest.approx(0.01, rel=0.03)
    assert not net[0].bias.data.any() and not net[2].bias.data.any()


def test_a_constant_and_zero_biases_are_written_to_the_native_model() -> None:
    """003: init_constant, in multiparam's words."""
    net, native = explicit_mlp(), explicit_mlp()
    mp.wrap(net).init(mp.init.constant(1), "*.weight")
    mp.wrap(net).init(mp.init.zeros(), "*.bias")
    native.apply(init_constant)
    for ours, theirs in zip(net.parameters(), native.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_xavier_and_42_by_block_done_natively_are_seen() -> None:
    """003: net[0].apply(init_xavier); net[2].apply(init_42)."""
    net = explicit_mlp()
    view = mp.wrap(net)
    net[0].apply(init_xavier)
    net[2].apply(init_42)
    same(view[0]["weight"], net[0].weight)
    assert view[2]["weight"].numpy().tolist() == [[42.0] * 8]


def test_xavier_and_42_by_block_reach_only_their_block() -> None:
    """003: the same by block in multiparam's words."""
    net = explicit_mlp()
    view = mp.wrap(net)
    biases = net[0].bias.detach().clone(), net[2].bias.detach().clone()
    view[0].init(mp.init.xavier_uniform(), "weight", seed=3)
    view[2].init(mp.init.constant(42), "weight")
    bound = (6 / (4 + 8)) ** 0.5
    weight = net[0].weight.data
    assert bound / 2 < float(weight.abs().max()) <= bound
    assert net[2].weight.data.tolist() == [[42.0] * 8]
    assert torch.equal(net[0].bias, biases[0]) and torch.equal(net[2].bias, biases[1])


def test_the_frameworks_own_initialiser_can_be_handed_to_a_block() -> None:
    """003: nn.init's functions, given to multiparam."""
    net = explicit_mlp()
    view = mp.wrap(net)
    view[0].init(nn.init.xavier_uniform_, "weight", seed=1)
    view[2].init(nn.init.ones_, "weight")
    assert 0 < float(net[0].weight.data.abs().max()) <= (6 / 12) ** 0.5
    assert net[2].weight.data.tolist() == [[1.0] * 8]


def test_the_custom_distribution_has_its_three_parts() -> None:
    """003: U(5, 10), 0 and U(-10, -5) with chances 1/4, 1/2, 1/4."""
    net = nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 1))
    mp.wrap(net).init(my_rule, "*.weight", seed=2)
    w = net[0].weight.data.numpy()
    assert set(np.unique(np.sign(w))) == {-1.0, 0.0, 1.0}
    assert abs(w[w != 0]).min() >= 5 and abs(w).max() <= 10
    shares = [(w > 0).mean(), (w == 0).mean(), (w < 0).mean()]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.02)  # 20000 numbers


def test_parameters_are_set_directly_as_natively() -> None:
    """003: weight.data[:] += 1; weight.data[0, 0] = 42."""
    net = explicit_mlp()
    twin = copy.deepcopy(net)
    p = mp.wrap(net)[0]["weight"]
    p[:] += 1
    p[0, 0] = 42
    twin[0].weight.data[:] += 1
    twin[0].weight.data[0, 0] = 42
    assert torch.equal(net[0].weight, twin[0].weight)
    assert net[0].weight.data[0, 0] == 42


def test_a_native_direct_write_is_seen() -> None:
    """003: the same two lines, natively, on a wrapped model."""
    net = explicit_mlp()
    p = mp.wrap(net)[0]["weight"]
    before = p.numpy()
    net[0].weight.data[:] += 1
    net[0].weight.data[0, 0] = 42
    expected = before + np.float32(1)
    expected[0, 0] = 42
    np.testing.assert_array_equal(p.numpy(), expected)


# -- tied layers


def tied() -> Any:
    """The lazy tied MLP of 000, 001 and 004."""
    shared = nn.LazyLinear(8)
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.LazyLinear(1))


def explicit_tied() -> Any:
    """The tied MLP of 003."""
    shared = nn.Linear(8, 8)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(8, 1))


@pytest.mark.parametrize("make", [tied, explicit_tied], ids=["lazy", "explicit"])
def test_one_module_used_twice_is_one_parameter_with_two_names(make: Any) -> None:
    """000, 001, 003, 004: shared at positions 2 and 4."""
    net, X = make(), batch()
    net(X)
    view = mp.wrap(net)
    assert view["2.weight"] is view["4.weight"]
    assert view["4.weight"].name == "2.weight"
    assert view["2.weight"].names == ("2.weight", "4.weight")
    assert view.ties() == [("2.weight", "4.weight"), ("2.bias", "4.bias")]
    assert list(view.parameters()) == [name for name, _ in net.named_parameters()]
    assert list(view.parameters(aliases=True)) == list(net.state_dict())
    same(view["4.weight"], net[2].weight)


def test_the_tied_mlp_has_three_distinct_layers() -> None:
    """001: three layers' worth of parameters over four positions."""
    view = mp.wrap(tied(), batch())
    assert list(view.layers()) == [("0",), ("2", "4"), ("6",)]


def test_a_native_write_to_one_tied_layer_is_seen_in_the_other() -> None:
    """000, 001, 003, 004: net[2].weight.data[0, 0] = 100."""
    net, X = tied(), batch()
    view = mp.wrap(net, X)
    assert (net[2].weight.data[0] == net[4].weight.data[0]).all()
    net[2].weight.data[0, 0] = 100
    assert float(view["4.weight"][0, 0]) == 100
    np.testing.assert_array_equal(view[4]["weight"].numpy()[0], net[4].weight.data[0].numpy())


def test_a_write_through_either_name_is_seen_in_both_native_layers() -> None:
    """000, 001, 003, 004: the same write through multiparam."""
    net, X = tied(), batch()
    mp.wrap(net, X)["4.weight"][0, 0] = 100
    assert net[2].weight.data[0, 0] == 100
    assert (net[2].weight.data[0] == net[4].weight.data[0]).all()


def test_equal_values_are_not_a_tie() -> None:
    """000, 001, 003, 004: the same object, not merely the same value."""
    net = explicit_tied()
    net[4] = copy.deepcopy(net[2])
    view = mp.wrap(net)
    np.testing.assert_array_equal(view["2.weight"].numpy(), view["4.weight"].numpy())
    assert view["2.weight"] is not view["4.weight"]
    assert view.ties() == []
    assert len(view.layers()) == 4
    view["2.weight"][0, 0] = 100
    assert net[4].weight.data[0, 0] != 100


def test_the_tied_gradient_is_the_sum_over_an_untied_twin() -> None:
    """000, 001, 003, 004: what becomes of the gradient of a shared layer."""
    net, X, y = explicit_tied(), batch(), torch.rand(2, 1)
    twin = copy.deepcopy(net)
    twin[4] = copy.deepcopy(twin[2])
    view = mp.wrap(net)
    _, grads = view.value_and_grad(mp.losses.mse)(X, y)
    nn.functional.mse_loss(twin(X), y).backward()
    total = twin[2].weight.grad + twin[4].weight.grad
    assert twin[2].weight.grad.any() and twin[4].weight.grad.any()
    np.testing.assert_allclose(mp.to_numpy(grads["2.weight"]), total.numpy(), rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(mp.to_numpy(view["4.weight"].grad), mp.to_numpy(grads["2.weight"]))
    assert "4.weight" not in grads


def test_training_the_tied_mlp_natively_is_watched_layer_by_layer() -> None:
    """000, 001, 003: the exercise, with a native loop and multiparam looking on."""
    net, X, y = explicit_tied(), batch(), torch.rand(2, 1)
    view = mp.wrap(net)
    watch = mp.Recorder(view)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    norms, values = [], []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(X), y)
        loss.backward()
        watch.record(loss)
        norms.append(float(net[4].weight.grad.double().norm()))
        values.append(float(net[4].weight.data.double().mean()))
        optimizer.step()
    assert list(watch) == [name for name, _ in net.named_parameters()]
    np.testing.assert_allclose(watch["4.weight"]["grad"]["norm"], norms, rtol=1e-6)
    np.testing.assert_allclose(watch["2.weight"]["value"]["mean"], values, rtol=1e-6)
    assert watch.losses[-1] < watch.losses[0]


def test_training_the_tied_mlp_through_multiparam_ends_where_the_native_loop_ends() -> None:
    """000, 001, 003: the exercise, with multiparam's step and optimizer."""
    net, X, y = explicit_tied(), batch(), torch.rand(2, 1)
    twin = copy.deepcopy(net)
    view = mp.wrap(net)
    step, opt, watch = view.value_and_grad(mp.losses.mse), view.optimizer("sgd", lr=0.1), mp.Recorder(view)
    native = torch.optim.SGD(twin.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss, _ = step(X, y)
        watch.record(loss)
        opt.step()
        native.zero_grad()
        expected = nn.functional.mse_loss(twin(X), y)
        expected.backward()
        losses.append(expected.item())
        native.step()
    assert watch.losses == losses
    for name, parameter in twin.named_parameters():
        np.testing.assert_array_equal(view[name].numpy(), parameter.detach().numpy())
    assert net[2].weight is net[4].weight


# -- NestMLP


class NestMLP(nn.Module):
    """A Sequential and a linear layer inside a module of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(64), nn.ReLU(), nn.LazyLinear(32), nn.ReLU())
        self.linear = nn.LazyLinear(16)

    def forward(self, X: Any) -> Any:
        return self.linear(self.net(X))


def test_the_nested_modules_layers_are_reached_by_attribute_names() -> None:
    """000, 001: the exercise on NestMLP."""
    net, X = NestMLP(), torch.rand(2, 20)
    view = mp.wrap(net, X)
    assert [(n, p.shape) for n, p in view.parameters().items()] == [
        (n, tuple(p.shape)) for n, p in net.named_parameters()
    ]
    same(view["net.2.weight"], net.net[2].weight)
    same(view["linear"]["bias"], net.linear.bias)
    assert view["net"][2]["weight"] is view["net.2.weight"]


def test_a_nested_module_inside_a_sequential_is_reached_by_position_and_name() -> None:
    """000, 001: NestMLP as the first of several layers."""
    net, X = nn.Sequential(NestMLP(), nn.LazyLinear(20)), torch.rand(2, 20)
    view = mp.wrap(net, X)
    same(view[0]["net"][0]["weight"], net[0].net[0].weight)
    same(view["0.linear.weight"], net[0].linear.weight)
    same(view[1]["weight"], net[1].weight)


# -- what a Parameter is


class Attributes(nn.Module):
    """One array of each sort."""

    def __init__(self) -> None:
        super().__init__()
        self.learned = nn.Parameter(torch.ones(3))
        self.cached = torch.full((3,), 2.0)
        self.register_buffer("tracked", torch.full((3,), 3.0))

    def forward(self, X: Any) -> Any:
        self.tracked += 1
        return X * self.learned + self.cached


def test_only_a_parameter_is_listed_and_a_plain_tensor_is_nowhere() -> None:
    """002: a Parameter registers itself, another tensor does not."""
    net = Attributes()
    view = mp.wrap(net)
    assert list(view.parameters()) == [name for name, _ in net.named_parameters()] == ["learned"]
    assert list(view.buffers()) == [name for name, _ in net.named_buffers()] == ["tracked"]
    same(view["learned"], net.learned)
    with pytest.raises(mp.errors.ParameterNotFound, match="cached"):
        view["cached"]


def test_a_parameter_is_trainable_unless_told_otherwise() -> None:
    """002: requires_grad is set by default."""
    net = Attributes()
    view = mp.wrap(net)
    assert net.learned.requires_grad and view["learned"].trainable
    assert not net.tracked.requires_grad and not view["tracked"].trainable
    net.learned.requires_grad_(False)
    assert not view["learned"].trainable


def test_a_buffer_is_saved_with_the_module_and_follows_its_forward_pass() -> None:
    """002: a buffer travels with the module and may be updated in forward."""
    net = Attributes()
    view = mp.wrap(net)
    assert set(view.state_dict()) == set(net.state_dict()) == {"learned", "tracked"}
    net(torch.zeros(3))
    np.testing.assert_array_equal(view["tracked"].numpy(), net.tracked.numpy())
    assert view["tracked"].numpy().tolist() == [4.0, 4.0, 4.0]


class Filters(nn.Module):
    """A convolution that starts from given filters."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        k_height, k_width = weight.shape[2:]
        self.conv = nn.Conv2d(1, 4, kernel_size=(k_height, k_width), bias=False)
        self.conv.weight = nn.Parameter(weight)

    def forward(self, X: Any) -> Any:
        return self.conv(X)


def test_given_filters_are_the_convolutions_only_parameter() -> None:
    """002: self.conv.weight = nn.Parameter(weight)."""
    weight = torch.arange(64.0).reshape(4, 1, 4, 4)
    net = Filters(weight)
    view = mp.wrap(net)
    assert list(view.parameters()) == ["conv.weight"]
    assert (view["conv.weight"].kind, view["conv.weight"].trainable) == ("conv", True)
    same(view["conv.weight"], net.conv.weight)
    np.testing.assert_array_equal(view["conv.weight"].numpy(), weight.numpy())


class Replaced(nn.Module):
    """Linear layers whose parameters are replaced after construction, in whatever shape one pleases."""

    def __init__(self, in_dim: int, hid: int, out_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(in_dim, hid)
        self.linear2 = nn.Linear(hid, out_dim)
        self.linear1.weight = nn.Parameter(torch.zeros(in_dim, hid))
        self.linear1.bias = nn.Parameter(torch.ones(hid))
        self.linear2.weight = nn.Parameter(torch.zeros(in_dim, hid))
        self.linear2.bias = nn.Parameter(torch.ones(hid))

    def forward(self, X: Any) -> Any:
        return self.linear2(self.linear1(X))


class Fitting(nn.Module):
    """The same with the shapes a forward pass needs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(5, 2)
        self.linear2 = nn.Linear(2, 3)
        self.linear1.weight = nn.Parameter(torch.full((2, 5), 0.5))
        self.linear1.bias = nn.Parameter(torch.ones(2))
        self.linear2.weight = nn.Parameter(torch.full((3, 2), 0.25))

    def forward(self, X: Any) -> Any:
        return self.linear2(self.linear1(X))


def test_replaced_weights_are_listed_with_the_shapes_they_were_given() -> None:
    """002: the sizes printed for the module with replaced weights."""
    net = Replaced(5, 2, 3)
    view = mp.wrap(net)
    assert [p.shape for p in view] == [tuple(p.size()) for p in net.parameters()] == [(5, 2), (2,), (5, 2), (2,)]
    for name, parameter in net.named_parameters():
        same(view[name], parameter)


def test_a_weight_replaced_before_wrapping_is_the_one_that_is_written() -> None:
    """002: writing reaches the new Parameter, and the layer uses it."""
    net = Fitting()
    mp.wrap(net)["linear1.weight"][:] = 0
    assert not net.linear1.weight.detach().any()
    assert net.linear1(torch.ones(1, 5)).tolist() == [[1.0, 1.0]]


def test_a_native_adam_step_over_the_list_of_parameters_is_seen() -> None:
    """002: list(net.parameters()) handed to Adam."""
    net = Fitting()
    view = mp.wrap(net)
    before = view.state_dict()
    optimizer = torch.optim.Adam(list(net.parameters()), lr=0.001)
    net(torch.rand(4, 5)).sum().backward()
    optimizer.step()
    for name, parameter in net.named_parameters():
        same(view[name], parameter)
        # Adam's first step is lr in the direction of the gradient's sign, whatever its size
        np.testing.assert_allclose(before[name] - view[name].numpy(), 0.001 * parameter.grad.sign(), atol=1e-6)
