"""The seed documents' JAX cells, in linen as there and in NNX: built and read with flax alone, then with multiparam.

A linen module holds no values: the view starts from the native pytree's arrays, and writing to the view leaves that
pytree alone. An NNX module holds its values, so writes are seen natively, and native writes in the view.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multiparam as mp

jax = pytest.importorskip("jax")
linen = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")
optax = pytest.importorskip("optax")
jnp = jax.numpy

pytestmark = [pytest.mark.needs("jax"), pytest.mark.xdist_group("jax")]


def key(seed: int = 0) -> Any:
    return jax.random.PRNGKey(seed)


def batch(columns: int = 4, seed: int = 1) -> Any:
    return jax.random.uniform(key(seed), (2, columns))


def mean_square(net: Any, params: Any, X: Any, y: Any) -> Any:
    return ((net.apply(params, X) - y) ** 2).mean()


def same(parameter: Any, native: Any) -> None:
    """One of ours holds exactly the values of a native array or Variable; a matrix is transposed between the two."""
    values = np.asarray(native[...])
    np.testing.assert_array_equal(parameter.numpy(), values.T)
    assert parameter.shape == values.T.shape
    assert parameter.native is native


# -- the MLP in linen, and access


def mlp() -> Any:
    return linen.Sequential([linen.Dense(8), linen.relu, linen.Dense(1)])


def test_the_linen_mlp_computes_through_the_view_what_apply_computes() -> None:
    """001: net.init, then net.apply(params, X).shape."""
    net, X = mlp(), batch()
    params = net.init(key(), X)
    view = mp.wrap(net, X, variables=params)
    assert view.native is net
    assert view(X).shape == net.apply(params, X).shape == (2, 1)
    np.testing.assert_array_equal(mp.to_numpy(view(X)), np.asarray(net.apply(params, X)))


def test_a_linen_module_without_values_or_an_input_is_refused_with_the_cure() -> None:
    """001: the network is initialised first, to have parameters at all."""
    with pytest.raises(mp.errors.UnknownShapes, match=r"mp\.wrap\(module, X, seed=0\)"):
        mp.wrap(mlp())


def test_linen_values_are_made_from_an_input_alone() -> None:
    """001: net.init, left to multiparam."""
    net, X = mlp(), batch()
    shapes = jax.tree_util.tree_map(lambda x: x.shape, net.init(key(), X))["params"]
    view = mp.wrap(net, X)
    assert view["0.weight"].shape == shapes["layers_0"]["kernel"][::-1] == (8, 4)
    assert view["2.bias"].shape == shapes["layers_2"]["bias"] == (1,)


def test_linens_second_dense_layer_holds_the_dictionary_of_layers_2() -> None:
    """001: params['params']['layers_2']."""
    net, X = mlp(), batch()
    params = net.init(key(), X)
    layer = mp.wrap(net, X, variables=params)[2]
    native = params["params"]["layers_2"]
    assert list(layer.parameters()) == ["weight", "bias"]
    assert sorted(native) == ["bias", "kernel"]
    same(layer["weight"], native["kernel"])
    same(layer["bias"], native["bias"])


def test_the_variables_alone_are_enough_for_a_linen_sequential() -> None:
    """001: the same access where no input is at hand."""
    net, X = mlp(), batch()
    params = net.init(key(), X)
    view = mp.wrap(net, variables=params)
    assert list(view.parameters()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    same(view["2.weight"], params["params"]["layers_2"]["kernel"])


def test_linens_bias_is_the_native_array_with_its_value() -> None:
    """001: type(bias), bias."""
    net, X = mlp(), batch()
    params = net.init(key(), X)
    bias = mp.wrap(net, X, variables=params)[2]["bias"]
    native = params["params"]["layers_2"]["bias"]
    assert type(bias.native) is type(bias.value) is type(native)
    assert bias.native is native
    assert bias.numpy().tolist() == native.tolist() == [0.0]
    assert (bias.dtype, bias.kind, bias.trainable) == ("float32", "linear", True)


def test_no_linen_parameter_has_a_gradient_before_a_step() -> None:
    """001: JAX keeps no gradients; in multiparam they are None until a step makes them."""
    net, X = mlp(), batch()
    view = mp.wrap(net, X, variables=net.init(key(), X))
    assert [p.grad for p in view] == [None] * 4


def test_a_gradient_step_agrees_with_jax_grad_in_linen() -> None:
    """001: the grad transformation."""
    net, X, y = mlp(), batch(), batch(1, 2)
    params = net.init(key(), X)
    view = mp.wrap(net, X, variables=params)
    loss, grads = view.value_and_grad(mp.losses.mse)(X, y)
    expected, native = jax.value_and_grad(lambda p: mean_square(net, p, X, y))(params)
    np.testing.assert_allclose(float(loss), float(expected), rtol=1e-6)
    for i in (0, 2):
        layer = native["params"][f"layers_{i}"]
        np.testing.assert_allclose(mp.to_numpy(grads[f"{i}.weight"]), layer["kernel"].T, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(mp.to_numpy(view[f"{i}.bias"].grad), layer["bias"], rtol=1e-5, atol=1e-7)


def test_all_linen_parameters_at_once_have_the_shapes_of_the_tree() -> None:
    """001: the tree_map over shapes; a kernel is the transpose of a weight."""
    net, X = mlp(), batch()
    params = net.init(key(), X)
    shapes = jax.tree_util.tree_map(lambda x: x.shape, params)["params"]
    ours = [(name, p.shape) for name, p in mp.wrap(net, X, variables=params).parameters().items()]
    assert ours == [
        ("0.weight", shapes["layers_0"]["kernel"][::-1]),
        ("0.bias", shapes["layers_0"]["bias"]),
        ("2.weight", shapes["layers_2"]["kernel"][::-1]),
        ("2.bias", shapes["layers_2"]["bias"]),
    ]
    assert ours[0] == ("0.weight", (8, 4)) and ours[2] == ("2.weight", (1, 8))


def test_linens_flat_name_reaches_the_value_in_the_tree() -> None:
    """003: '2.bias', in linen."""
    net, X = mlp(), batch()
    params = net.init(key(), X)
    view = mp.wrap(net, X, variables=params)
    same(view["2.bias"], params["params"]["layers_2"]["bias"])
    assert view["2.bias"] is view[2]["bias"]


# -- nested blocks in linen


def block1() -> Any:
    return linen.Sequential([linen.Dense(8), linen.relu, linen.Dense(4), linen.relu])


class Block2(linen.Module):
    """Four blocks with names of their own, one of them with a space."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        for i in range(4):
            x = linen.Sequential([linen.Dense(8), linen.relu, linen.Dense(4), linen.relu], name=f"block {i}")(x)
        return x


def test_linens_nested_blocks_are_named_as_in_the_tree_and_found_by_their_names_with_spaces() -> None:
    """003: rgnet with 'block 0' to 'block 3', in linen, which names layers after who made them."""
    rgnet, X = linen.Sequential([Block2(), linen.Dense(1)]), batch()
    params = rgnet.init(key(), X)
    view = mp.wrap(rgnet, X, variables=params)
    inner = [f"0.Dense_{i}.{leaf}" for i in range(8) for leaf in ("weight", "bias")]
    assert list(view.parameters()) == [*inner, "1.weight", "1.bias"]
    for i in range(4):
        native = params["params"]["layers_0"][f"Dense_{2 * i + 1}"]
        same(view[f"0.block {i}.2.weight"], native["kernel"])
        assert view[f"0.block {i}.2.weight"] is view[f"0.Dense_{2 * i + 1}.weight"]


def test_linens_blocks_with_names_are_indexed_by_their_positions() -> None:
    """003: rgnet[0][1][0].bias, in linen with the blocks named."""
    rgnet, X = linen.Sequential([Block2(), linen.Dense(1)]), batch()
    params = rgnet.init(key(), X)
    view = mp.wrap(rgnet, X, variables=params)
    same(view[0][1][0]["bias"], params["params"]["layers_0"]["Dense_2"]["bias"])
    assert view[0][1][0]["bias"].name == "0.Dense_2.bias"
    assert view["0"]["block 1"][0]["bias"] is view[0]["block 1.0.bias"] is view[0][1]["0.bias"]


def test_a_linen_layer_used_once_is_not_tied_to_itself() -> None:
    """003: the blocks of rgnet share nothing, though flax keeps their arrays under the module that made them."""
    rgnet, X = linen.Sequential([Block2(), linen.Dense(1)]), batch()
    params = rgnet.init(key(), X)
    view = mp.wrap(rgnet, X, variables=params)
    assert view.ties() == []
    assert len(view.parameters(aliases=True)) == len(jax.tree_util.tree_leaves(params)) == 18


def test_linens_nested_sequentials_are_indexed_as_a_nested_list() -> None:
    """003: rgnet[0][1][0].bias, in linen."""
    rgnet = linen.Sequential([linen.Sequential([block1() for _ in range(4)]), linen.Dense(1)])
    X = batch()
    params = rgnet.init(key(), X)
    view = mp.wrap(rgnet, X, variables=params)
    same(view[0][1][0]["bias"], params["params"]["layers_0"]["layers_1"]["layers_0"]["bias"])
    assert view[0][1][0]["bias"].name == "0.1.0.bias"


# -- initialisation in linen


def my_init(key: Any, shape: tuple[int, ...], dtype: Any = None) -> Any:
    data = jax.random.uniform(key, shape, minval=-10, maxval=10)
    return data * (jnp.abs(data) >= 5)


def my_rule(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    w = rng.uniform(-10, 10, shape)
    return w * (np.abs(w) >= 5)


RULES = {
    "normal": linen.initializers.normal(0.01),
    "constant": linen.initializers.constant(1),
    "custom": my_init,
}


@pytest.mark.parametrize("rule", RULES)
def test_linens_own_initialisers_are_seen(rule: str) -> None:
    """003: normal, constant and custom weights, as linen's kernel_init."""
    net = linen.Sequential([linen.Dense(8, kernel_init=RULES[rule]), linen.relu, linen.Dense(1)])
    X = batch()
    params = net.init(key(), X)
    view = mp.wrap(net, X, variables=params)
    same(view["0.weight"], params["params"]["layers_0"]["kernel"])
    largest = float(np.abs(view["0.weight"].numpy()).max())
    low, high = {"normal": (0.0, 0.1), "constant": (1, 1), "custom": (5, 10)}[rule]
    assert low <= largest <= high


def test_xavier_and_42_by_block_done_in_linen_are_seen() -> None:
    """003: Xavier in the first layer, 42 in the second, as kernel_init."""
    rules = linen.initializers
    first = linen.Dense(8, kernel_init=rules.xavier_uniform())
    net = linen.Sequential([first, linen.relu, linen.Dense(1, kernel_init=rules.constant(42))])
    X = batch()
    params = net.init(key(), X)
    view = mp.wrap(net, X, variables=params)
    same(view[0]["weight"], params["params"]["layers_0"]["kernel"])
    assert view[2]["weight"].numpy().tolist() == [[42.0] * 8]


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [
        (mp.init.normal(std=0.01), 1e-3, 0.1),
        (mp.init.constant(1), 1, 1),
        (mp.init.xavier_uniform(), 0.35, (6 / 12) ** 0.5),
        (my_rule, 5, 10),
    ],
    ids=["normal", "constant", "xavier", "custom"],
)
def test_what_multiparam_initialises_is_what_linen_then_applies(rule: Any, low: float, high: float) -> None:
    """003: the initialisers in multiparam's words, and the native arrays they leave."""
    net, X = mlp(), batch()
    view = mp.wrap(net, X, variables=net.init(key(), X))
    view.init(rule, "0.weight", seed=3)
    largest = float(jnp.abs(view["0.weight"].native).max())
    assert low <= largest <= high
    assert view["0.weight"].native.shape == (4, 8)
    np.testing.assert_array_equal(np.asarray(net.apply(view.variables, X)), mp.to_numpy(view(X)))


def test_xavier_and_42_by_block_reach_only_their_block_in_linen() -> None:
    """003: the same by block in multiparam's words."""
    net, X = mlp(), batch()
    params = net.init(key(), X)
    view = mp.wrap(net, X, variables=params)
    view[0].init(mp.init.xavier_uniform(), "weight", seed=3)
    view[2].init(mp.init.constant(42), "weight")
    assert 0.35 < float(np.abs(view[0]["weight"].numpy()).max()) <= (6 / 12) ** 0.5
    assert view[2]["weight"].native.tolist() == [[42.0]] * 8
    assert view[0]["bias"].native is params["params"]["layers_0"]["bias"]


def test_jaxs_own_initialisers_can_be_handed_to_a_block() -> None:
    """003: linen.initializers, given to multiparam; they see the native layout."""
    net, X = mlp(), batch()
    view = mp.wrap(net, X, variables=net.init(key(), X))
    view[0].init(linen.initializers.xavier_uniform(), "weight", seed=1)
    view[2].init(linen.initializers.constant(42), "weight")
    assert 0 < float(jnp.abs(view[0]["weight"].native).max()) <= (6 / 12) ** 0.5
    assert view[2]["weight"].native.tolist() == [[42.0]] * 8


def test_the_custom_distribution_has_its_three_parts_in_linen() -> None:
    """003: U(5, 10), 0 and U(-10, -5) with chances 1/4, 1/2, 1/4."""
    net, X = linen.Sequential([linen.Dense(200), linen.relu, linen.Dense(1)]), batch(100)
    view = mp.wrap(net, X, variables=net.init(key(), X))
    view.init(my_rule, "*.weight", seed=2)
    w = np.asarray(view["0.weight"].native)
    assert set(np.unique(np.sign(w))) == {-1.0, 0.0, 1.0}
    assert np.abs(w[w != 0]).min() >= 5 and np.abs(w).max() <= 10
    np.testing.assert_allclose([(w > 0).mean(), (w == 0).mean(), (w < 0).mean()], [0.25, 0.5, 0.25], atol=0.02)


def test_linen_parameters_are_set_directly_and_the_readers_pytree_is_left_alone() -> None:
    """003: += 1 and [0, 0] = 42, against .at[...] on the native array."""
    net, X = mlp(), batch()
    params = net.init(key(), X)
    kernel = params["params"]["layers_0"]["kernel"]
    before = np.asarray(kernel).copy()
    p = mp.wrap(net, X, variables=params)[0]["weight"]
    p[:] += 1
    p[0, 0] = 42
    p[5, 2] = 7
    expected = kernel.at[:].add(1).at[0, 0].set(42).at[2, 5].set(7)
    np.testing.assert_array_equal(np.asarray(p.native), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(params["params"]["layers_0"]["kernel"]), before)


# -- tied layers in linen


def tied() -> Any:
    shared = linen.Dense(8)
    return linen.Sequential([linen.Dense(8), linen.relu, shared, linen.relu, shared, linen.relu, linen.Dense(1)])


def untied_twin(params: Any) -> tuple[Any, Any]:
    """Four layers of their own with the values of the tied MLP, in linen alone."""
    net = linen.Sequential(
        [linen.Dense(8), linen.relu, linen.Dense(8), linen.relu, linen.Dense(8), linen.relu, linen.Dense(1)]
    )
    layers = params["params"]
    return net, {"params": {**layers, "layers_4": dict(layers["layers_2"])}}


def test_one_dense_used_twice_has_three_entries_in_linens_tree() -> None:
    """001: len(params['params']) == 3."""
    net, X = tied(), batch()
    params = net.init(key(), X)
    assert len(params["params"]) == 3
    view = mp.wrap(net, X, variables=params)
    assert list(view.layers()) == [("0",), ("2",), ("6",)]
    assert len(view.parameters()) == len(jax.tree_util.tree_leaves(params)) == 6


def test_one_dense_used_twice_is_one_layer_that_is_found_at_both_positions() -> None:
    """001: shared at positions 2 and 4, in linen, whose tree has layers_2 alone."""
    net, X = tied(), batch()
    params = net.init(key(), X)
    view = mp.wrap(net, X, variables=params)
    assert view["2.weight"] is view["4.weight"] is view[4]["weight"]
    assert view["4.weight"].names == ("2.weight",)
    assert view.ties() == []
    same(view["4.weight"], params["params"]["layers_2"]["kernel"])


def test_a_write_through_either_name_reaches_both_uses_in_linen() -> None:
    """001: the write of 100, in linen: both uses read the one array."""
    net, X = tied(), batch()
    params = net.init(key(), X)
    view = mp.wrap(net, X, variables=params)
    view["4.weight"][0, 0] = 100
    assert view["2.weight"].numpy()[0, 0] == 100
    assert float(view.variables["params"]["layers_2"]["kernel"][0, 0]) == 100
    assert len(view.variables["params"]) == 3
    kernel = params["params"]["layers_2"]["kernel"].at[0, 0].set(100)
    changed = {"params": {**params["params"], "layers_2": {**params["params"]["layers_2"], "kernel": kernel}}}
    np.testing.assert_array_equal(mp.to_numpy(view(X)), np.asarray(net.apply(changed, X)))


def test_equal_values_are_not_a_tie_in_linen() -> None:
    """001: the same array, not merely the same value."""
    X = batch()
    net, params = untied_twin(tied().init(key(), X))
    params = jax.tree_util.tree_map(lambda x: x.copy(), params)
    view = mp.wrap(net, X, variables=params)
    np.testing.assert_array_equal(view["2.weight"].numpy(), view["4.weight"].numpy())
    assert view["2.weight"] is not view["4.weight"]
    assert view.ties() == []
    assert len(view.layers()) == len(params["params"]) == 4


def test_the_tied_gradient_is_the_sum_over_an_untied_twin_in_linen() -> None:
    """001: what becomes of the gradient of a shared layer."""
    net, X, y = tied(), batch(), batch(1, 2)
    params = net.init(key(), X)
    view = mp.wrap(net, X, variables=params)
    _, grads = view.value_and_grad(mp.losses.mse)(X, y)
    twin, values = untied_twin(params)
    native = jax.grad(lambda p: mean_square(twin, p, X, y))(values)["params"]
    first, second = (np.asarray(native[f"layers_{i}"]["kernel"]) for i in (2, 4))
    assert first.any() and second.any()
    np.testing.assert_allclose(mp.to_numpy(grads["2.weight"]), (first + second).T, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(mp.to_numpy(view["4.weight"].grad), mp.to_numpy(grads["2.weight"]))
    assert "4.weight" not in grads


def test_training_the_tied_linen_mlp_is_watched_and_ends_where_the_native_loop_ends() -> None:
    """001: the exercise; the native loop is jax.grad and optax over the pytree."""
    net, X, y = tied(), batch(), batch(1, 2)
    params = net.init(key(), X)
    view = mp.wrap(net, X, variables=params)
    step, opt, watch = view.value_and_grad(mp.losses.mse), view.optimizer("sgd", lr=0.1), mp.Recorder(view)
    native = optax.sgd(0.1)
    state = native.init(params)
    norms, means = [], []
    for _ in range(5):
        loss, _ = step(X, y)
        watch.record(loss)
        opt.step()
        grads = jax.grad(lambda p: mean_square(net, p, X, y))(params)
        norms.append(np.linalg.norm(np.asarray(grads["params"]["layers_2"]["kernel"])))
        means.append(np.asarray(params["params"]["layers_2"]["kernel"]).mean())
        updates, state = native.update(grads, state)
        params = optax.apply_updates(params, updates)
    assert list(watch) == ["0.weight", "0.bias", "2.weight", "2.bias", "6.weight", "6.bias"]
    np.testing.assert_allclose(watch["4.weight"]["grad"]["norm"], norms, rtol=1e-4)
    np.testing.assert_allclose(watch["2.weight"]["value"]["mean"], means, rtol=1e-4)
    assert watch.losses[-1] < watch.losses[0]
    for i in (0, 2, 6):
        expected = np.asarray(params["params"][f"layers_{i}"]["kernel"]).T
        np.testing.assert_allclose(view[f"{i}.weight"].numpy(), expected, rtol=1e-5, atol=1e-6)


# -- NestMLP, and what a parameter is, in linen


class NestMLP(linen.Module):
    """A Sequential and a dense layer inside a module of one's own."""

    def setup(self) -> None:
        self.net = linen.Sequential([linen.Dense(64), linen.relu, linen.Dense(32), linen.relu])
        self.dense = linen.Dense(16)

    def __call__(self, X: Any) -> Any:
        return self.dense(self.net(X))


def test_linens_nested_module_is_reached_by_attribute_names() -> None:
    """000, 001: the exercise on NestMLP, in linen."""
    net, X = NestMLP(), batch(20)
    params = net.init(key(), X)
    view = mp.wrap(net, X, variables=params)
    assert list(view.parameters()) == [
        f"{layer}.{leaf}" for layer in ("net.0", "net.2", "dense") for leaf in ("weight", "bias")
    ]
    same(view["net.2.weight"], params["params"]["net"]["layers_2"]["kernel"])
    same(view["dense"]["bias"], params["params"]["dense"]["bias"])
    assert view["net"][2]["weight"] is view["net.2.weight"]


def test_linens_nested_module_inside_a_sequential_is_reached_by_position_and_name() -> None:
    """000, 001: NestMLP as the first of several layers, in linen."""
    net, X = linen.Sequential([NestMLP(), linen.Dense(20)]), batch(20)
    params = net.init(key(), X)
    view = mp.wrap(net, X, variables=params)
    same(view[0]["net"][0]["weight"], params["params"]["layers_0"]["net"]["layers_0"]["kernel"])
    same(view[1]["weight"], params["params"]["layers_1"]["kernel"])


class Attributes(linen.Module):
    """One array of each sort."""

    cached: tuple[float, ...] = (2.0, 2.0, 2.0)

    @linen.compact
    def __call__(self, X: Any) -> Any:
        learned = self.param("learned", linen.initializers.ones, (3,))
        tracked = self.variable("state", "tracked", lambda: jnp.full((3,), 3.0))
        if self.is_mutable_collection("state") and not self.is_initializing():
            tracked.value = tracked.value + 1
        return X * learned + jnp.asarray(self.cached)


def test_only_linens_params_are_parameters_and_other_collections_are_buffers() -> None:
    """002: a parameter, a variable of another collection, and a plain field."""
    net, X = Attributes(), batch(3)
    variables = net.init(key(), X)
    view = mp.wrap(net, X, variables=variables)
    assert list(view.parameters()) == list(variables["params"]) == ["learned"]
    assert list(view.buffers()) == list(variables["state"]) == ["tracked"]
    assert view["learned"].trainable and not view["tracked"].trainable
    with pytest.raises(mp.errors.ParameterNotFound, match="cached"):
        view["cached"]


def test_linens_state_follows_a_training_forward_pass() -> None:
    """002: a buffer may be updated in the forward pass."""
    net, X = Attributes(), batch(3)
    variables = net.init(key(), X)
    view = mp.wrap(net, X, variables=variables)
    _, updated = net.apply(variables, X, mutable=["state"])
    view(X, train=True)
    np.testing.assert_array_equal(view["tracked"].numpy(), np.asarray(updated["state"]["tracked"]))
    assert view["tracked"].numpy().tolist() == [4.0, 4.0, 4.0]


def filters() -> np.ndarray:
    """Four filters of 4 by 4 over one channel, in PyTorch's layout."""
    return np.arange(64, dtype=np.float32).reshape(4, 1, 4, 4)


def test_given_filters_are_linens_convolutions_only_parameter() -> None:
    """002: a convolution with four filters of 4 by 4, in linen, whose kernel is (height, width, in, out)."""
    kernel = jnp.asarray(filters().transpose(2, 3, 1, 0))
    net = linen.Conv(4, (4, 4), use_bias=False, padding="VALID", kernel_init=lambda *_: kernel)
    X = jax.random.uniform(key(), (1, 8, 8, 1))
    params = net.init(key(), X)
    view = mp.wrap(net, X, variables=params)
    assert list(view.parameters()) == ["weight"]
    assert (view["weight"].kind, view["weight"].trainable) == ("conv", True)
    assert view["weight"].native is params["params"]["kernel"]
    np.testing.assert_array_equal(view["weight"].numpy(), filters())


class Two(linen.Module):
    """Two dense layers in attributes."""

    def setup(self) -> None:
        self.linear1 = linen.Dense(2)
        self.linear2 = linen.Dense(3)

    def __call__(self, X: Any) -> Any:
        return self.linear2(self.linear1(X))


def test_values_replaced_in_the_tree_are_the_ones_seen() -> None:
    """002: the module with replaced weights, in linen: another array in the tree."""
    net, X = Two(), batch(5)
    layers = net.init(key(), X)["params"]
    layers["linear1"] = {"kernel": jnp.zeros((5, 2)), "bias": jnp.ones(2)}
    view = mp.wrap(net, X, variables={"params": layers})
    assert [p.shape for p in view] == [(2, 5), (2,), (3, 2), (3,)]
    same(view["linear1.weight"], layers["linear1"]["kernel"])
    same(view["linear1.bias"], layers["linear1"]["bias"])
    np.testing.assert_array_equal(mp.to_numpy(view(X)), np.asarray(net.apply({"params": layers}, X)))


def test_a_native_adam_step_over_the_tree_is_the_one_multiparam_makes() -> None:
    """002: every parameter handed to Adam, in JAX the pytree to optax."""
    net, X, y = Two(), batch(5), batch(3, 2)
    params = net.init(key(), X)
    view = mp.wrap(net, X, variables=params)
    native = optax.adam(0.001)
    grads = jax.grad(lambda p: mean_square(net, p, X, y))(params)
    updates, _ = native.update(grads, native.init(params))
    after = optax.apply_updates(params, updates)["params"]
    view.value_and_grad(mp.losses.mse)(X, y)
    view.optimizer("adam", lr=0.001).step()
    for layer in ("linear1", "linear2"):
        kernel = np.asarray(after[layer]["kernel"])
        np.testing.assert_allclose(view[f"{layer}.weight"].numpy(), kernel.T, rtol=0, atol=1e-6)
        assert not np.array_equal(kernel, np.asarray(params["params"][layer]["kernel"]))
        again = mp.wrap(net, X, variables={"params": after})
        np.testing.assert_array_equal(again[f"{layer}.weight"].numpy(), kernel.T)


# -- NNX


def nnx_mlp() -> Any:
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 1, rngs=rngs))


def nnx_tied() -> Any:
    rngs = nnx.Rngs(0)
    shared = nnx.Linear(8, 8, rngs=rngs)
    first, last = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)
    return nnx.Sequential(first, nnx.relu, shared, nnx.relu, shared, nnx.relu, last)


def nnx_square(net: Any, X: Any, y: Any) -> Any:
    return ((net(X) - y) ** 2).mean()


def test_the_nnx_mlp_computes_through_the_view_what_it_computes() -> None:
    """001: net(X).shape, in NNX."""
    net, X = nnx_mlp(), batch()
    view = mp.wrap(net)
    assert view.native is net
    assert view(X).shape == net(X).shape == (2, 1)
    np.testing.assert_array_equal(mp.to_numpy(view(X)), np.asarray(net(X)))


def test_all_nnx_parameters_at_once_are_the_params_of_the_module() -> None:
    """001: all parameters at once, in NNX."""
    net = nnx_mlp()
    ours = mp.wrap(net).parameters()
    assert [(name, p.shape) for name, p in ours.items()] == [
        ("0.weight", (8, 4)),
        ("0.bias", (8,)),
        ("2.weight", (1, 8)),
        ("2.bias", (1,)),
    ]
    assert len(jax.tree_util.tree_leaves(nnx.state(net, nnx.Param))) == 4
    same(ours["0.weight"], net.layers[0].kernel)
    same(ours["2.bias"], net.layers[2].bias)


def test_the_second_nnx_layer_is_at_the_position_it_has_in_the_sequential() -> None:
    """001: net[2], in NNX; the activation between counts as a position, as in the other frameworks."""
    net = nnx_mlp()
    view = mp.wrap(net)
    assert list(view[2].parameters()) == ["weight", "bias"]
    same(view[2]["bias"], net.layers[2].bias)
    assert view[2]["bias"] is view["2.bias"]


def test_nnxs_bias_is_the_native_param_with_its_value() -> None:
    """001: type(bias), bias, in NNX."""
    net = nnx_mlp()
    bias = mp.wrap(net)["2.bias"]
    assert type(bias.native) is type(net.layers[2].bias) is nnx.Param
    assert bias.native is net.layers[2].bias
    assert bias.numpy().tolist() == [0.0]
    assert (bias.dtype, bias.kind, bias.trainable) == ("float32", "linear", True)


def test_no_nnx_parameter_has_a_gradient_before_a_step() -> None:
    """001: the initial state of the gradient, in NNX."""
    assert [p.grad for p in mp.wrap(nnx_mlp())] == [None] * 4


def test_a_gradient_step_agrees_with_nnx_grad() -> None:
    """001: the grad transformation, in NNX."""
    net, X, y = nnx_mlp(), batch(), batch(1, 2)
    _, grads = mp.wrap(net).value_and_grad(mp.losses.mse)(X, y)
    native = nnx.grad(nnx_square)(net, X, y)
    for i in (0, 2):
        kernel, bias = native["layers"][i]["kernel"][...], native["layers"][i]["bias"][...]
        np.testing.assert_allclose(mp.to_numpy(grads[f"{i}.weight"]), kernel.T, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(mp.to_numpy(grads[f"{i}.bias"]), bias, rtol=1e-5, atol=1e-7)


def test_nnxs_nested_blocks_are_indexed_as_a_nested_list() -> None:
    """003: rgnet[0][1][0].bias, in NNX."""
    rngs = nnx.Rngs(0)

    def block() -> Any:
        return nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 4, rngs=rngs), nnx.relu)

    rgnet = nnx.Sequential(nnx.Sequential(*[block() for _ in range(4)]), nnx.Linear(4, 1, rngs=rngs))
    view = mp.wrap(rgnet)
    same(view[0][1][0]["bias"], rgnet.layers[0].layers[1].layers[0].bias)
    assert view[0][1][0]["bias"].name == "0.1.0.bias"
    assert len(view.parameters()) == 18


def test_nnxs_blocks_in_a_dictionary_keep_their_names_with_spaces() -> None:
    """003: 'block 0' to 'block 3', in NNX the keys of a dictionary of modules."""
    rngs = nnx.Rngs(0)

    class Named(nnx.Module):
        def __init__(self) -> None:
            self.blocks = nnx.Dict({f"block {i}": nnx.Linear(4, 4, rngs=rngs) for i in range(4)})

    net = Named()
    view = mp.wrap(net)
    assert list(view.parameters())[2:4] == ["blocks.block 1.weight", "blocks.block 1.bias"]
    same(view["blocks"]["block 1"]["weight"], net.blocks["block 1"].kernel)
    same(view["blocks"][1]["weight"], net.blocks["block 1"].kernel)


@pytest.mark.parametrize("rule", RULES)
def test_a_native_nnx_write_of_fresh_values_is_seen_at_once(rule: str) -> None:
    """003: normal, constant and custom weights, written into the Param of a wrapped module."""
    net = nnx_mlp()
    view = mp.wrap(net)
    net.layers[0].kernel[...] = RULES[rule](key(5), (4, 8), jnp.float32)
    same(view["0.weight"], net.layers[0].kernel)
    low, high = {"normal": (0.0, 0.1), "constant": (1, 1), "custom": (5, 10)}[rule]
    assert low <= float(np.abs(view["0.weight"].numpy()).max()) <= high


def test_xavier_and_42_by_layer_reach_the_nnx_params() -> None:
    """003: by block, in multiparam's words, seen in NNX."""
    net = nnx_mlp()
    view = mp.wrap(net)
    view["0"].init(mp.init.xavier_uniform(), "weight", seed=3)
    view["2"].init(mp.init.constant(42), "weight")
    assert 0.35 < float(jnp.abs(net.layers[0].kernel[...]).max()) <= (6 / 12) ** 0.5
    assert net.layers[2].kernel[...].tolist() == [[42.0]] * 8


def test_nnx_parameters_are_set_directly_and_natively_seen() -> None:
    """003: += 1 and [0, 0] = 42, in NNX."""
    net = nnx_mlp()
    expected = net.layers[0].kernel[...].at[:].add(1).at[0, 0].set(42)
    p = mp.wrap(net)["0.weight"]
    p[:] += 1
    p[0, 0] = 42
    np.testing.assert_array_equal(np.asarray(net.layers[0].kernel[...]), np.asarray(expected))


def test_one_nnx_linear_used_twice_is_one_parameter_with_two_names() -> None:
    """001: shared at positions 2 and 4, in NNX."""
    net = nnx_tied()
    view = mp.wrap(net)
    assert len(nnx.find_duplicates(net)) == 1
    assert view["2.weight"] is view["4.weight"]
    assert view.ties() == [("2.weight", "4.weight"), ("2.bias", "4.bias")]
    assert list(view.layers()) == [("0",), ("2", "4"), ("6",)]
    assert len(view.parameters()) == len(jax.tree_util.tree_leaves(nnx.state(net, nnx.Param))) == 6
    same(view["4.weight"], net.layers[2].kernel)


def test_a_native_write_to_one_tied_nnx_layer_is_seen_in_the_other() -> None:
    """001: the write of 100, natively in NNX and back."""
    net = nnx_tied()
    view = mp.wrap(net)
    net.layers[2].kernel[...] = net.layers[2].kernel[...].at[0, 0].set(100)
    assert view["4.weight"].numpy()[0, 0] == 100
    view["4.weight"][1, 0] = 200
    assert float(net.layers[2].kernel[0, 1]) == float(net.layers[4].kernel[0, 1]) == 200


def test_equal_values_are_not_a_tie_in_nnx() -> None:
    """001: the same Param, not merely the same value."""
    net = nnx_tied()
    net.layers[4] = nnx.clone(net.layers[2])
    view = mp.wrap(net)
    np.testing.assert_array_equal(view["2.weight"].numpy(), view["4.weight"].numpy())
    assert view.ties() == []
    assert len(view.layers()) == 4


def test_the_tied_gradient_is_the_sum_over_an_untied_twin_in_nnx() -> None:
    """001: what becomes of the gradient of a shared layer, in NNX."""
    net, X, y = nnx_tied(), batch(), batch(1, 2)
    twin = nnx.clone(net)
    twin.layers[4] = nnx.clone(twin.layers[2])
    _, grads = mp.wrap(net).value_and_grad(mp.losses.mse)(X, y)
    native = nnx.grad(nnx_square)(twin, X, y)["layers"]
    first, second = (np.asarray(native[i]["kernel"][...]) for i in (2, 4))
    assert first.any() and second.any()
    np.testing.assert_allclose(mp.to_numpy(grads["2.weight"]), (first + second).T, rtol=1e-5, atol=1e-7)


def test_training_the_tied_nnx_mlp_natively_is_seen_step_by_step() -> None:
    """001: the exercise, with nnx.Optimizer and multiparam looking on."""
    net, X, y = nnx_tied(), batch(), batch(1, 2)
    view = mp.wrap(net)
    watch = mp.Recorder(view)
    optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)
    means = []
    for _ in range(5):
        loss, grads = nnx.value_and_grad(nnx_square)(net, X, y)
        watch.record(loss)
        means.append(np.asarray(net.layers[4].kernel[...], np.float64).mean())
        optimizer.update(net, grads)
    np.testing.assert_allclose(watch["4.weight"]["value"]["mean"], means, rtol=1e-12)
    assert len(set(means)) == 5
    assert watch.losses[-1] < watch.losses[0]
    same(view["2.weight"], net.layers[2].kernel)
    assert view["2.weight"] is view["4.weight"]


def test_training_the_tied_nnx_mlp_through_multiparam_ends_where_the_native_loop_ends() -> None:
    """001: the exercise, with multiparam's step and optimizer, in NNX."""
    net, X, y = nnx_tied(), batch(), batch(1, 2)
    twin = nnx.clone(net)
    view = mp.wrap(net)
    step, opt, watch = view.value_and_grad(mp.losses.mse), view.optimizer("sgd", lr=0.1), mp.Recorder(view)
    optimizer = nnx.Optimizer(twin, optax.sgd(0.1), wrt=nnx.Param)
    norms = []
    for _ in range(5):
        loss, _ = step(X, y)
        watch.record(loss)
        opt.step()
        grads = nnx.grad(nnx_square)(twin, X, y)
        norms.append(np.linalg.norm(np.asarray(grads["layers"][2]["kernel"][...])))
        optimizer.update(twin, grads)
    np.testing.assert_allclose(watch["4.weight"]["grad"]["norm"], norms, rtol=1e-4)
    for i in (0, 2, 4, 6):
        expected = np.asarray(twin.layers[i].kernel[...])
        np.testing.assert_allclose(np.asarray(net.layers[i].kernel[...]), expected, rtol=1e-5, atol=1e-6)


class NnxNestMLP(nnx.Module):
    """A Sequential and a linear layer inside a module of one's own."""

    def __init__(self, rngs: Any) -> None:
        self.net = nnx.Sequential(nnx.Linear(20, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 32, rngs=rngs), nnx.relu)
        self.dense = nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, X: Any) -> Any:
        return self.dense(self.net(X))


def test_nnxs_nested_module_is_reached_by_attribute_names() -> None:
    """000, 001: the exercise on NestMLP, in NNX."""
    net = NnxNestMLP(nnx.Rngs(0))
    view = mp.wrap(net)
    assert list(view.parameters()) == [
        f"{layer}.{leaf}" for layer in ("net.0", "net.2", "dense") for leaf in ("weight", "bias")
    ]
    same(view["net.2.weight"], net.net.layers[2].kernel)
    same(view["dense"]["bias"], net.dense.bias)
    assert view["net"]["2"]["weight"] is view["net.2.weight"]


class NnxAttributes(nnx.Module):
    """One array of each sort."""

    def __init__(self) -> None:
        self.learned = nnx.Param(jnp.ones(3))
        self.cached = jnp.full((3,), 2.0)
        self.tracked = nnx.Variable(jnp.full((3,), 3.0))

    def __call__(self, X: Any) -> Any:
        self.tracked[...] = self.tracked[...] + 1
        return X * self.learned[...] + self.cached


def test_only_an_nnx_param_is_listed_and_a_plain_array_is_nowhere() -> None:
    """002: a Param, another Variable, and an array that is neither."""
    net = NnxAttributes()
    view = mp.wrap(net)
    assert list(view.parameters()) == ["learned"]
    assert list(view.buffers()) == ["tracked"]
    assert view["learned"].trainable and not view["tracked"].trainable
    same(view["learned"], net.learned)
    with pytest.raises(mp.errors.ParameterNotFound, match="cached"):
        view["cached"]
    net(jnp.zeros(3))
    assert view["tracked"].numpy().tolist() == net.tracked[...].tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize(
    "put",
    [
        lambda conv, kernel: setattr(conv, "kernel", nnx.Param(kernel)),
        lambda conv, kernel: conv.kernel.__setitem__(..., kernel),
    ],
    ids=["a new Param", "the same Param"],
)
def test_given_filters_are_the_nnx_convolutions_only_parameter(put: Callable[[Any, Any], None]) -> None:
    """002: a convolution with four filters of 4 by 4, in NNX."""
    conv = nnx.Conv(1, 4, (4, 4), use_bias=False, padding="VALID", rngs=nnx.Rngs(0))
    put(conv, jnp.asarray(filters().transpose(2, 3, 1, 0)))
    view = mp.wrap(conv)
    assert list(view.parameters()) == ["weight"]
    assert view["weight"].kind == "conv" and view["weight"].native is conv.kernel
    np.testing.assert_array_equal(view["weight"].numpy(), filters())


def test_nnx_weights_replaced_after_construction_are_the_ones_seen() -> None:
    """002: the module with replaced weights, in NNX."""

    class Replaced(nnx.Module):
        def __init__(self, in_dim: int, hid: int, out_dim: int) -> None:
            self.linear1 = nnx.Linear(in_dim, hid, rngs=nnx.Rngs(0))
            self.linear2 = nnx.Linear(hid, out_dim, rngs=nnx.Rngs(1))
            self.linear1.kernel = nnx.Param(jnp.zeros((in_dim, hid)))
            self.linear1.bias = nnx.Param(jnp.ones(hid))

        def __call__(self, X: Any) -> Any:
            return self.linear2(self.linear1(X))

    net, X = Replaced(5, 2, 3), batch(5)
    view = mp.wrap(net)
    assert [p.shape for p in view] == [(2, 5), (2,), (3, 2), (3,)]
    same(view["linear1.weight"], net.linear1.kernel)
    view["linear1.bias"][:] = 0
    assert net.linear1(X).tolist() == [[0.0, 0.0]] * 2


def test_a_native_nnx_adam_step_is_seen() -> None:
    """002: every parameter handed to Adam, in NNX an nnx.Optimizer."""
    net, X, y = nnx_mlp(), batch(), batch(1, 2)
    view = mp.wrap(net)
    before = view.state_dict()
    optimizer = nnx.Optimizer(net, optax.adam(0.001), wrt=nnx.Param)
    optimizer.update(net, nnx.grad(nnx_square)(net, X, y))
    same(view["2.weight"], net.layers[2].kernel)
    moved = before["2.bias"] - view["2.bias"].numpy()
    np.testing.assert_allclose(np.abs(moved), 0.001, atol=1e-6)  # Adam's first step is lr, whatever the gradient
