"""linen models as their users write them: names, aliases and layouts against the variables that flax itself makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multiparam as mp

jax = pytest.importorskip("jax")
linen = pytest.importorskip("flax.linen")
traverse_util = pytest.importorskip("flax.traverse_util")
jnp = jax.numpy

pytestmark = [pytest.mark.needs("jax"), pytest.mark.xdist_group("jax")]

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}


def tree_names(variables: Any) -> set[str]:
    """The names in flax' own variables, with canonical leaves; positions of a Sequential are said by the tests."""
    paths = (path[1:] for path in traverse_util.flatten_dict(variables))
    return {".".join((*path[:-1], LEAVES.get(path[-1], path[-1]))) for path in paths}


def every_name(net: mp.Model) -> set[str]:
    return {*net.parameters(), *net.buffers()}


# -- names


class Block(linen.Module):
    width: int = 4

    def setup(self) -> None:
        self.dense = linen.Dense(self.width)
        self.norm = linen.BatchNorm(use_running_average=True)

    def __call__(self, x: Any) -> Any:
        return self.norm(self.dense(x))


class Collection(linen.Module):
    """As Hugging Face's models hold their layers: numbered by name, in an attribute that the tree does not show."""

    def setup(self) -> None:
        self.layers = [Block(name=str(i)) for i in range(11)]

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


class Encoder(linen.Module):
    def setup(self) -> None:
        self.embed = linen.Dense(4)
        self.layer = Collection()
        self.heads = {"a": linen.Dense(2), "b": [linen.Dense(3), linen.Dense(1)]}
        self.tail = linen.Sequential([linen.Dense(5), linen.relu, linen.Dense(2, name="given")])

    def __call__(self, x: Any) -> Any:
        x = self.layer(self.embed(x))
        return self.heads["a"](x), self.heads["b"][0](x), self.heads["b"][1](x), self.tail(x)


@pytest.mark.parametrize("given", ["inputs", "variables", "both", "sorted"])
def test_names_are_those_of_the_tree_and_in_definition_order(given: str) -> None:
    variables = Encoder().init(jax.random.key(0), X)
    if given == "sorted":  # as they come out of jax.tree.map and of files
        variables = jax.tree.map(np.asarray, variables)
    inputs = (X,) if given in ("inputs", "both") else ()
    net = mp.wrap(Encoder(), *inputs, **({} if given == "inputs" else {"variables": variables}))
    # flax names what setup itself makes with a name after it, in the module whose setup it is
    tree = {name.replace("tail.layers_0", "tail.0") for name in tree_names(variables)}
    assert every_name(net) == tree and "given.weight" in tree and "layer.10.dense.weight" in tree
    listed = [name for name in net.parameters() if name.startswith("layer.")]
    assert listed == [f"layer.{i}.{at}.{leaf}" for i in range(11) for at in ("dense", "norm") for leaf in LEAF]
    assert net["heads_b_1.weight"].shape == (1, 4)
    assert {p.kind for p in net} == {"linear", "batchnorm"}


LEAF = ("weight", "bias")


def test_attributes_and_positions_find_a_layer_that_is_listed_by_its_name() -> None:
    net = mp.wrap(Encoder(), X)
    kernel = net["layer.7.dense.weight"]
    assert net["layer.layers.7.dense.weight"] is net["layer.layers"][7]["dense"]["weight"] is net[1][0][7][0]["weight"]
    assert net["layer.layers.7.dense.weight"] is net["layer"]["layers.7.dense.weight"] is kernel
    assert kernel.name == "layer.7.dense.weight" and kernel.names == ("layer.7.dense.weight",)
    assert "layer.layers.7.dense.weight" not in net.parameters(aliases=True)
    assert (
        net["heads.b.1.weight"] is net["heads"]["b"][1]["weight"] is net[2][1][1]["weight"] is net["heads_b_1.weight"]
    )
    assert net["tail"][2]["weight"] is net["tail.2.weight"] is net["given.weight"]
    assert list(net["layer.layers"][3].parameters()) == [f"{at}.{leaf}" for at in ("dense", "norm") for leaf in LEAF]
    assert len(net["layer.layers"].parameters()) == 44 and len(net["heads"].parameters()) == 6
    with pytest.raises(
        mp.errors.ParameterNotFound, match=r"'layer\.layers\.7\.dense\.wieght'.*'layer\.7\.dense\.weight'"
    ):
        net["layer.layers.7.dense.wieght"]
    with pytest.raises(
        mp.errors.PositionError, match=r"no parameters at position 9\. Positions with parameters: 0, 1, 2, 3"
    ):
        net[9]


def test_an_alias_leads_out_of_no_selection() -> None:
    net = mp.wrap(Encoder(), X)
    chosen = net.select("layer.3.*", "heads_*")
    assert chosen["layer.layers.3.norm.bias"] is net["layer.3.norm.bias"]
    assert set(chosen[1][0][3].parameters()) == {f"{at}.{leaf}" for at in ("dense", "norm") for leaf in LEAF}
    for name in ("layer.layers.4.norm.bias", "tail"):
        with pytest.raises(mp.errors.ParameterNotFound, match="No parameter"):
            chosen[name]
    with pytest.raises(mp.errors.PositionError, match=r"no parameters at position 0\. Positions with parameters: 1, 2"):
        chosen[0]


def test_a_tie_a_step_and_an_optimizer_take_aliases() -> None:
    net = mp.wrap(Collection(), X)
    net.tie("layers.3.dense.weight", "layers.1.dense.weight")
    assert net.ties() == [("1.dense.weight", "3.dense.weight")]
    net.untie("layers.3.dense.weight")
    step = net.value_and_grad(lambda net, x: (net[0][2]["dense"]["weight"].value ** 2).sum() + 0 * net(x).sum())
    _, grads = step(X)
    assert [name for name, grad in grads.items() if np.asarray(grad).any()] == ["2.dense.weight"]


def test_looking_up_by_name_runs_no_users_code() -> None:
    """What it takes to know the aliases is done when a name finds nothing, and then once."""
    calls: list[str] = []

    class Counting(linen.Module):
        def setup(self) -> None:
            calls.append("setup")
            self.layers = [linen.Dense(4, name=f"d{i}") for i in range(2)]

        def __call__(self, x: Any) -> Any:
            return self.layers[1](self.layers[0](x))

    net = mp.wrap(Counting(), variables=Counting().init(jax.random.key(0), X))
    calls.clear()
    net["d0.weight"], net["d1"], net["d1"]["bias"], net.parameters(), net.state_dict()
    assert not calls
    assert net["layers.1.bias"].name == "d1.bias" and calls
    calls.clear()
    assert net["layers.0.bias"].name == "d0.bias" and net[0][1]["bias"].name == "d1.bias" and not calls


# -- one layer, one name


class Shared(linen.Module):
    def setup(self) -> None:
        self.inner = linen.Dense(4)
        self.again = self.inner
        self.both = linen.Sequential([self.inner, linen.tanh, linen.Dense(4)])

    def __call__(self, x: Any) -> Any:
        return self.both(self.again(self.inner(x)))


@pytest.mark.parametrize("inputs", [(), (X,)], ids=["variables", "inputs"])
def test_a_layer_in_two_attributes_is_one_layer_of_one_name(inputs: Any) -> None:
    variables = Shared().init(jax.random.key(0), X)
    net = mp.wrap(Shared(), *inputs, variables=variables)
    assert list(net.parameters(aliases=True)) == ["inner.weight", "inner.bias", "both.2.weight", "both.2.bias"]
    assert net["again.weight"] is net["both.0.weight"] is net["inner.weight"] and net.ties() == []
    names = [call.layer for call in net.activations(X)]
    assert names == ["inner", "inner", "inner", "both.2"]


def test_a_layer_that_is_used_twice_in_a_sequential_has_the_name_that_flax_gives_it() -> None:
    """flax registers the layers in the order of their names as texts: layers_10 before layers_2."""
    dense = linen.Dense(4)
    module = linen.Sequential([linen.tanh, linen.tanh, dense, *[linen.tanh] * 7, dense])
    variables = module.init(jax.random.key(0), X)
    (scope,) = variables["params"]
    net = mp.wrap(module, variables=variables)
    assert list(net.parameters()) == [f"{scope[7:]}.{leaf}" for leaf in LEAF]
    assert net["2.weight"] is net["10.weight"] is net[2]["weight"] is net[10]["weight"]


# -- classes without inputs


class Resident(linen.Module):
    """What it holds is in fields, handed in from outside."""

    first: Any
    rest: Any

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = self.first(x)
        for layer in self.rest:
            x = x + layer(x)
        return x


class Random(linen.Module):
    """A setup that needs a bound module."""

    def setup(self) -> None:
        self.table = self.param("table", linen.initializers.normal(1.0), (4,))
        self.square = linen.Dense(4, use_bias=self.is_initializing() or self.has_variable("params", "table"))

    def __call__(self, x: Any) -> Any:
        return self.square(x * self.table)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Resident(linen.Dense(4, name="ignored"), [linen.Dense(4), linen.LayerNorm()]),
        lambda: linen.Sequential([linen.Conv(4, (1,)), linen.Sequential([linen.Dense(4), Block()]), Random()]),
        lambda: linen.RNN(linen.LSTMCell(4)),
        lambda: linen.Sequential([linen.SelfAttention(2), linen.RNN(linen.GRUCell(4))]),
        Random,
    ],
    ids=["fields", "nested", "recurrent", "attention", "setup"],
)
def test_variables_alone_say_what_a_run_says(make: Any) -> None:
    variables = make().init(jax.random.key(0), X)
    alone, run = mp.wrap(make(), variables=variables), mp.wrap(make(), X, variables=variables)
    assert {p.name: (p.kind, p.shape) for p in alone} == {p.name: (p.kind, p.shape) for p in run}
    assert alone.options() == run.options()
    for name, value in run.state_dict().items():
        np.testing.assert_array_equal(alone[name].numpy(), value)
    np.testing.assert_array_equal(np.asarray(alone(X)), np.asarray(make().apply(variables, X)))


def test_arrays_in_dicts_of_a_param_are_parameters() -> None:
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            table = self.param("table", lambda key: {"kernel": jnp.ones((4, 4)), "b": {"c": jnp.zeros(4)}})
            return linen.Dense(2)(x @ table["kernel"] + table["b"]["c"])

    net = mp.wrap(Net(), X)
    assert set(net.parameters()) == {"table.kernel", "table.b.c", "Dense_0.weight", "Dense_0.bias"}


# -- transformations


def stacked(layer: Any, axis: int, times: int = 3) -> Any:
    class Body(linen.Module):
        @linen.compact
        def __call__(self, x: Any, _: Any) -> Any:
            return layer(name="at")(x), None

    class Deep(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            options = {"variable_axes": {"params": axis}, "split_rngs": {"params": True}, "length": times}
            return linen.scan(linen.remat(Body), **options)(name="layers")(x, None)[0]

    return Deep()


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("times", [3, 4], ids=["told apart by size", "all axes of one size"])
def test_layers_stacked_along_any_axis_are_stacked_in_front(axis: int, times: int) -> None:
    net = mp.wrap(stacked(lambda name: linen.Dense(4, name=name), axis, times), X)
    kernel = np.asarray(net.variables["params"]["layers"]["at"]["kernel"])
    weight = net["layers.at.weight"]
    assert weight.shape == (times, 4, 4) and weight.kind == "linear"
    np.testing.assert_array_equal(weight.numpy(), np.moveaxis(kernel, axis, 0).transpose(0, 2, 1))
    weight[1] = 7
    moved = np.asarray(net.variables["params"]["layers"]["at"]["kernel"])
    assert (np.take(moved, 1, axis) == 7).all() and not (np.take(moved, 0, axis) == 7).any()


def test_attention_stacked_along_another_axis_is_packed_layer_by_layer() -> None:
    net = mp.wrap(stacked(lambda name: linen.SelfAttention(2, name=name), 1), X)
    tree = net.variables["params"]["layers"]["at"]
    kernels = [np.asarray(tree[name]["kernel"])[:, 2].reshape(4, 4).T for name in ("query", "key", "value")]
    np.testing.assert_array_equal(net["layers.at.in_proj_weight"].numpy()[2], np.concatenate(kernels))
    out = np.asarray(tree["out"]["kernel"])[:, 2].reshape(4, 4).T
    np.testing.assert_array_equal(net["layers.at.out_proj.weight"].numpy()[2], out)


def test_a_vmap_in_a_scan_has_both_axes_in_front() -> None:
    def heads(name: str) -> Any:
        options = {"variable_axes": {"params": -1}, "split_rngs": {"params": True}}
        return linen.vmap(linen.Dense, in_axes=-1, out_axes=-1, axis_size=4, **options)(3, name=name)

    net = mp.wrap(stacked(heads, 1, 2), np.ones((5, 3, 4), "float32"))
    kernel = np.asarray(net.variables["params"]["layers"]["at"]["kernel"])
    assert kernel.shape == (3, 2, 3, 4) and net["layers.at.weight"].shape == (2, 4, 3, 3)
    np.testing.assert_array_equal(net["layers.at.weight"].numpy()[1, 3], kernel[:, 1, :, 3].T)


@pytest.mark.parametrize(("cell", "kind"), [("LSTMCell", "lstm"), ("OptimizedLSTMCell", "lstm"), ("GRUCell", "gru")])
def test_a_cell_that_is_scanned_over_time_is_a_recurrent_layer(cell: str, kind: str) -> None:
    options = {"variable_broadcast": "params", "split_rngs": {"params": False}, "in_axes": 1, "out_axes": 1}
    scanned = linen.scan(getattr(linen, cell), **options)

    class Net(linen.Module):
        def setup(self) -> None:
            self.rnn = scanned(5)

        def __call__(self, x: Any) -> Any:
            return self.rnn(self.rnn.initialize_carry(jax.random.key(0), x[:, 0].shape), x)[1]

    class Twin(linen.Module):
        def setup(self) -> None:
            self.rnn = linen.RNN(getattr(linen, cell)(5))

        def __call__(self, x: Any) -> Any:
            return self.rnn(x)

    net, twin = mp.wrap(Net(), X), mp.wrap(Twin(), X)
    assert {p.kind for p in net} == {kind}
    assert {p.name: p.shape for p in net} == {p.name: p.shape for p in twin}
    alone = mp.wrap(Net(), variables=net.variables)
    assert list(alone.parameters()) == list(net.parameters())
    twin.load_state_dict(net.state_dict())
    np.testing.assert_allclose(np.asarray(twin(X)), np.asarray(net(X)), rtol=1e-6, atol=1e-7)


# -- boxes


def test_partitioned_variables_are_read_out_of_their_boxes_and_stay_in_them() -> None:
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            draw = linen.initializers.lecun_normal()
            x = linen.Dense(3, kernel_init=linen.with_partitioning(draw, ("in", "out")), name="up")(x)
            return linen.Dense(2, kernel_init=linen.with_logical_partitioning(draw, ("in", "out")), name="down")(x)

    variables = Net().init(jax.random.key(0), X)
    for net in (mp.wrap(Net(), X), mp.wrap(Net(), variables=variables)):
        assert jax.tree.structure(net.variables) == jax.tree.structure(variables)
        assert net["up.weight"].shape == (3, 4) and isinstance(net["up.weight"].native, jax.Array)
        net.value_and_grad(mp.losses.mse)(X, np.zeros((2, 3, 2), "float32"))
        net.optimizer("sgd", lr=0.1).step()
        net["up.weight"][...] = 1
        net.variables = jax.tree.map(lambda array: 2 * array, net.variables)
        box = net.variables["params"]["up"]["kernel"]
        assert isinstance(box, linen.Partitioned) and box.names == ("in", "out") and (np.asarray(box.value) == 2).all()
        assert (net["up.weight"].numpy() == 2).all()
