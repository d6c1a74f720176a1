"""Ties that a framework loses are found and mended; models that come back another object; Keras on other backends."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
from support.flavours import in_framework

import multiparam as mp
from multiparam import errors
from multiparam.core.group import store_of
from multiparam.core.protocol import Host

X = np.linspace(-1, 1, 8, dtype="float32").reshape(2, 4)


def autoencoder() -> Any:
    return mp.nn.Sequential(mp.nn.Linear(3), mp.nn.Tanh(), mp.nn.Linear(4), mp.nn.Linear(4))


def tied(backend: str) -> mp.Model:
    """One plain tie and one transposed."""
    net = mp.build(mp.nn.Sequential(autoencoder(), mp.nn.Linear(4)), X, backend=backend)
    net.tie("1.weight", "0.3.weight")
    net.tie("0.2.weight", "0.0.weight", transpose=True)
    return net


GROUPS = [("0.0.weight", "0.2.weight"), ("0.3.weight", "1.weight")]


def test_a_whole_model_has_nothing_to_mend(backend: str) -> None:
    net = tied(backend)
    before = net.state_dict()
    assert net.check() == []
    assert net.ties(repair=True) == GROUPS
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    net.untie("1.weight")
    assert net.check() == []  # what was untied on purpose is not missed
    assert net.ties(repair=True) == GROUPS[:1]


@in_framework("torch")
def test_torch_assign_true_splits_ties_and_repair_mends_them() -> None:
    """Facts, tying after construction: ``load_state_dict(assign=True)`` breaks torch's ties."""
    net = tied("torch")
    native = net.native
    # torch itself lists the original of the transposed tie under its own key
    native.load_state_dict({name: value.clone() for name, value in native.state_dict().items()}, assign=True)
    assert native[0][3].weight is not native[1].weight
    assert net.check() == GROUPS
    assert net.ties() == []  # what is there now
    net["0.3.weight"][0, 0] = 7.0
    net["0.0.weight"][0, 1] = 5.0
    assert net.ties(repair=True) == GROUPS
    assert native[0][3].weight is native[1].weight
    assert native[1].weight[0, 0] == 7.0 and native[0][2].weight[1, 0] == 5.0
    assert net.check() == []


@in_framework("torch")
def test_parameters_follow_the_model_to_its_new_arrays() -> None:
    import torch

    native = torch.nn.Linear(4, 2)
    net = mp.wrap(native)
    weight = net["weight"]
    native.load_state_dict({"weight": torch.ones(2, 4), "bias": torch.ones(2)}, assign=True)
    net.check()
    assert weight.native is native.weight
    weight[0, 0] = 3.0
    assert native.weight[0, 0] == 3.0


@in_framework("torch")
def test_a_model_whose_layers_changed_is_read_again() -> None:
    import torch

    native = torch.nn.Sequential(torch.nn.Linear(4, 2))
    net = mp.wrap(native)
    native.append(torch.nn.Linear(2, 2))
    with pytest.warns(mp.MultiparamWarning, match="'1.weight', '1.bias' added"):
        assert net.check() == []
    assert list(net.parameters()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


@in_framework("jax")
def test_a_tree_map_over_an_nnx_module_splits_ties_and_repair_mends_them() -> None:
    """Facts, the same layer used twice: NNX modules are pytrees, and ``jax.tree.map`` splits their ties."""
    import jax
    from flax import nnx

    class Pair(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.embed = nnx.Embed(5, 4, rngs=rngs)
            self.head = nnx.Linear(4, 5, rngs=rngs)
            self.body = nnx.Linear(4, 4, rngs=rngs)
            self.more = nnx.Linear(4, 4, rngs=rngs)

    net = mp.wrap(Pair(nnx.Rngs(0)))
    net.tie("head.weight", "embed.weight")
    net.tie("more.weight", "body.weight")
    groups = net.ties()
    net.native = jax.tree.map(lambda a: a * 2, net.native)
    assert net.check() == groups
    assert net.ties(repair=True) == groups
    net["head.weight"][2, 1] = 9.0
    assert net.native.embed.embedding[2, 1] == 9.0 and net.native.more.kernel is net.native.body.kernel


@in_framework("tensorflow")
def test_a_reloaded_keras_model_has_lost_its_ties_and_repair_mends_them(tmp_path: Any) -> None:
    """Facts, tying after construction: a ``.keras`` reload loses the tie."""
    import keras

    native = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(4)])
    net = mp.wrap(native)
    net.tie("1.weight", "0.weight")
    native.save(tmp_path / "m.keras")
    net.native = keras.models.load_model(tmp_path / "m.keras")
    assert net.check() == [("0.weight", "1.weight")]
    assert net.ties(repair=True) == [("0.weight", "1.weight")]
    assert net.native.layers[0].kernel is net.native.layers[1].kernel


def test_a_copy_without_ties_replaces_a_model_whose_ties_change_layouts(backend: str) -> None:
    """An embedding and a head keep arrays of other shapes in some frameworks; a transposed tie in all."""
    tokens = np.zeros((2, 3), int)
    for spec, inputs, target, source, transpose in (
        (mp.nn.Sequential(mp.nn.Embedding(50, 16), mp.nn.Linear(50)), tokens, "1.weight", "0.weight", False),
        (mp.nn.Sequential(mp.nn.Linear(3), mp.nn.Linear(8)), np.ones((2, 8)), "1.weight", "0.weight", True),
    ):
        net, other = (mp.build(spec, inputs, backend=backend, seed=seed) for seed in (0, 1))
        if type(store_of(other).host).variables is not Host.variables:  # linen's module alone has no parameters
            continue
        net.tie(target, source, transpose=transpose)
        net.native = other.native
        assert net.check() == [(source, target)]
        assert net.ties(repair=True) == [(source, target)] and net.check() == []
        assert (net[source].numpy() == other[source].numpy()).all()


def test_another_architecture_is_no_replacement(backend: str) -> None:
    net = tied(backend)
    before = net.native
    for other in (
        mp.build(autoencoder(), X, backend=backend),
        mp.build(mp.nn.Sequential(autoencoder(), mp.nn.Linear(5)), X, backend=backend),
    ):
        if type(store_of(other).host).variables is not Host.variables:  # linen's module alone has no parameters
            continue
        with pytest.raises(errors.InvalidArgument, match=r"no parameter|has shape"):
            net.native = other.native
        assert net.native is before and net.ties() == GROUPS


@in_framework("jax")
def test_linen_variables_go_out_as_a_pytree_and_come_back_changed() -> None:
    import jax

    net = tied("jax")
    tree = net.variables
    np.testing.assert_array_equal(
        np.asarray(tree["params"]["layers_0"]["layers_0"]["kernel"]),
        np.asarray(tree["params"]["layers_0"]["layers_2"]["kernel"]).T,
    )
    net.variables = jax.tree.map(lambda a: a + 1, tree)
    assert net.ties() == GROUPS
    np.testing.assert_array_equal(
        net["0.0.weight"].numpy(), np.asarray(tree["params"]["layers_0"]["layers_0"]["kernel"]).T + 1
    )
    native = net.native.apply(net.variables, X)
    np.testing.assert_array_equal(np.asarray(native), np.asarray(net(X)))


@in_framework("jax")
def test_copies_of_a_tie_that_were_trained_apart_are_refused() -> None:
    """Facts, tying after construction: copies of a leaf do not tie (drift 0.44 in one step)."""
    net = tied("jax")
    before = net.state_dict()
    tree = net.variables
    tree["params"]["layers_1"]["kernel"] = tree["params"]["layers_1"]["kernel"] + 1
    with pytest.raises(errors.TieError, match="trains the copies apart"):
        net.variables = tree
    del tree["params"]["layers_1"]
    with pytest.raises(errors.ShapeError, match="another structure"):
        net.variables = tree
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@in_framework("torch")
def test_only_a_framework_that_keeps_them_apart_takes_variables() -> None:
    with pytest.raises(AttributeError, match=r"net\.native"):
        mp.build(mp.nn.Linear(2), X, backend="torch").variables = {}


@in_framework("tensorflow")
def test_a_repeated_layer_that_tf_keras_drops_is_a_warning_that_names_it() -> None:
    """Facts, the same layer used twice: built lazily, tf_keras applies the shared layer once."""
    keras = pytest.importorskip("tf_keras")
    shared = keras.layers.Dense(4, name="shared")
    native = keras.Sequential([shared, keras.layers.ReLU(), shared, keras.layers.Dense(1)])
    with pytest.warns(mp.MultiparamWarning, match="'shared', at 0 and 2.*Input"):
        net = mp.wrap(native, X)
    assert net.ties() == []
    np.testing.assert_allclose(  # once, indeed
        np.asarray(net(X)),
        np.maximum(X @ net["shared.weight"].numpy().T, 0) @ list(net.parameters().values())[2].numpy().T,
        rtol=1e-5,
        atol=1e-6,
    )


@in_framework("tensorflow")
def test_a_repeated_layer_that_tf_keras_applies_twice_has_both_names() -> None:
    keras = pytest.importorskip("tf_keras")
    shared = keras.layers.Dense(4)
    native = keras.Sequential([keras.Input((4,)), shared, keras.layers.ReLU(), shared, keras.layers.Dense(1)])
    net = mp.wrap(native)
    assert net.ties() == [("0.weight", "2.weight"), ("0.bias", "2.bias")]
    assert len(native.layers) == 3  # all the same


@in_framework("tensorflow")
@pytest.mark.parametrize("root", ["keras", "tf_keras"])
def test_a_compiled_keras_optimizer_that_a_new_variable_is_foreign_to_is_a_warning(root: str) -> None:
    keras = pytest.importorskip(root)
    native = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(4)])
    native.compile("sgd", "mse")
    native.fit(X, X, verbose=0)
    net = mp.wrap(native)
    net.tie("1.weight", "0.weight")  # a variable the optimizer knows
    native.fit(X, X, verbose=0)
    with pytest.warns(mp.MultiparamWarning, match=r"compile\(\) the model again") as caught:
        net.untie("1.weight")
    assert caught[0].filename == __file__
    native.compile("sgd", "mse")
    before = net["1.weight"].numpy()
    native.fit(X, X, verbose=0)
    assert not np.array_equal(net["1.weight"].numpy(), before)


OTHER_KERAS = """
import numpy as np
import keras
import multiparam as mp
from multiparam.core.group import store_of
from multiparam.core.protocol import Host
from multiparam import errors

X = np.linspace(-1, 1, 24, dtype="float32").reshape(2, 3, 4)
native = keras.Sequential([
    keras.Input((3, 4)), keras.layers.GRU(4, return_sequences=True), keras.layers.Dense(4, activation="tanh"),
    keras.layers.Dense(4), keras.layers.Bidirectional(keras.layers.LSTM(2)), keras.layers.BatchNormalization(),
])
net = mp.wrap(native)
assert net.backend == "tensorflow", net.backend  # Keras first, whatever it runs on
assert list(net["0"].parameters()) == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
assert list(net["3"].parameters())[3:] == ["weight_ih_l0_reverse", "weight_hh_l0_reverse", "bias_ih_l0_reverse"]
assert list(net.buffers()) == ["4.running_mean", "4.running_var"]
assert type(net["1.weight"].value).__module__.split(".")[0] in ("jaxlib", "torch"), type(net["1.weight"].value)
net["0.bias_hh_l0"][:] = np.arange(12, dtype="float32")
assert native.layers[0].cell.bias[1][0] == 4  # Keras' first gate is z, PyTorch's second
net.tie("2.weight", "1.weight", transpose=True)
w = net["1.weight"].numpy()
hidden = keras.ops.convert_to_numpy(native.layers[0](X))
expected = np.tanh(hidden @ w.T + net["1.bias"].numpy()) @ w + net["2.bias"].numpy()
tied = keras.ops.convert_to_numpy(native.layers[2](native.layers[1](hidden)))
np.testing.assert_allclose(tied, expected, rtol=1e-5, atol=1e-6)
net["2.weight"][0, 1] = 5
assert net["1.weight"][1, 0] == 5 and float(native.layers[1].kernel[0, 1]) == 5
snapshot = net["1.weight"].value
net["1.weight"].assign(w)
assert float(snapshot[1, 0]) == 5
net.init(mp.init.normal(), "*.weight", seed=1)
net.init(keras.initializers.GlorotUniform(), "3.*weight*", seed=1)
net.freeze("1.*")
assert not native.layers[1].kernel.trainable
state = net.state_dict()
net.untie("2.weight")
assert net.ties() == [] and native.layers[2].kernel.shape == (4, 4)
for name, value in net.state_dict().items():
    np.testing.assert_array_equal(value, state.get(name, state["1.weight"].T if name == "2.weight" else None))
net(X)
try:
    net.value_and_grad(mp.losses.mse)(X, X)
except errors.Unsupported as error:
    assert "KERAS_BACKEND=tensorflow" in str(error) and "gradients" in str(error), error
else:
    raise AssertionError("no error")
print("all is well")
"""


@in_framework("tensorflow")
@pytest.mark.parametrize("other", ["jax", "torch"])
@pytest.mark.quick("jax")
def test_keras_on_another_backend_has_all_but_gradients(other: str) -> None:
    code = f"import os; os.environ['KERAS_BACKEND'] = {other!r}\n" + textwrap.dedent(OTHER_KERAS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip().endswith("all is well"), done.stderr[-3000:]


OPTIONS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "conv": [("0", {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": 1})],
    "batchnorm": [("1", {"eps": 1e-3, "momentum": 0.2})],
    "layernorm": [("2", {"eps": 1e-4})],
}


def test_what_weights_do_not_carry_is_told_in_one_language(backend: str) -> None:
    spec = mp.nn.Sequential(
        mp.nn.Conv(4, 3, stride=2, padding=1), mp.nn.BatchNorm(eps=1e-3, momentum=0.2), mp.nn.LayerNorm(eps=1e-4)
    )
    net = mp.build(spec, np.ones((1, 3, 9, 9)), backend=backend)
    told = net.options()
    padded = backend == "tensorflow"  # a Keras convolution pads only "same", so mp.build pads before it
    for expected in OPTIONS.values():
        for layer, options in expected:
            for name, value in options.items():
                assert told[layer][name] == ((0, 0) if padded and name == "padding" else value), (layer, name)


@in_framework("jax")
def test_linen_takes_frozen_variables_collections_of_ones_own_and_random_streams() -> None:
    import jax
    from flax import linen
    from flax.core import freeze

    class Counting(linen.Module):
        @linen.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            seen = self.variable("counts", "seen", lambda: np.zeros((), "int32"))
            if train and not self.is_initializing():
                seen.value = seen.value + x.shape[0]
            x = linen.Dropout(0.5, deterministic=not train)(linen.Dense(16)(x))
            return linen.BatchNorm(use_running_average=not train)(x)

    module = Counting()
    variables = freeze(module.init(jax.random.key(0), X))
    net = mp.wrap(module, X, variables=variables)
    assert list(net.parameters()) == ["Dense_0.weight", "Dense_0.bias", "BatchNorm_0.weight", "BatchNorm_0.bias"]
    assert list(net.buffers()) == ["seen", "BatchNorm_0.running_mean", "BatchNorm_0.running_var"]
    key = jax.random.key(7)
    mine = net(X, train=True, rngs={"dropout": key})
    truth, state = module.apply(variables, X, train=True, rngs={"dropout": key}, mutable=["counts", "batch_stats"])
    np.testing.assert_array_equal(np.asarray(mine), np.asarray(truth))
    assert int(net["seen"].numpy()) == int(state["counts"]["seen"]) == len(X)
    np.testing.assert_array_equal(
        net["BatchNorm_0.running_mean"].numpy(), np.asarray(state["batch_stats"]["BatchNorm_0"]["mean"])
    )
    assert not np.array_equal(np.asarray(net(X, train=True)), np.asarray(net(X, train=True)))  # a new mask each time
    net.variables = variables
    assert int(net["seen"].numpy()) == 0


# -- what native code freezes


def _torch_flag(net: mp.Model, flag: bool) -> None:
    net.native[0].weight.requires_grad_(flag)


def _mxnet_flag(net: mp.Model, flag: bool) -> None:
    net.native[0].weight.grad_req = "write" if flag else "null"


def _keras_flag(net: mp.Model, flag: bool) -> None:
    net.native.layers[1].trainable = flag  # after the input's


def _other_wrapper(net: mp.Model, flag: bool) -> None:
    other = mp.wrap(net.native)
    (other.unfreeze if flag else other.freeze)("0.weight")
    assert net["0.weight"].trainable is flag


FLAGS = {
    "torch": ("torch", _torch_flag),
    "mxnet": ("mxnet", _mxnet_flag),
    "keras": ("tensorflow", _keras_flag),
    "another wrapper in torch": ("torch", _other_wrapper),
    "another wrapper in mxnet": ("mxnet", _other_wrapper),
    "another wrapper in keras": ("tensorflow", _other_wrapper),
}
LAYERS = mp.nn.Sequential(mp.nn.Linear(3, bias=False), mp.nn.Linear(1, bias=False))


def _nnx() -> mp.Model:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.first = nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0))
            self.second = nnx.Linear(3, 1, use_bias=False, rngs=nnx.Rngs(1))

        def __call__(self, x: Any) -> Any:
            return self.second(self.first(x))

    return mp.wrap(Net())


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=[pytest.mark.needs(b), pytest.mark.xdist_group(b)]) for way, (b, _) in FLAGS.items()],
)
def test_steps_follow_what_is_frozen_and_unfrozen_elsewhere(way: str) -> None:
    backend, put = FLAGS[way]
    _follows(mp.build(LAYERS, X, backend=backend), put, ("0.weight", "1.weight"))


@in_framework("jax")
def test_the_wrappers_of_an_nnx_module_agree_about_what_is_frozen() -> None:
    def put(net: mp.Model, flag: bool) -> None:
        other = mp.wrap(net.native)
        (other.unfreeze if flag else other.freeze)("first.weight")
        assert net["first.weight"].trainable is flag

    with pytest.warns(errors.MultiparamWarning, match="Native training does not know of it"):
        _follows(_nnx(), put, ("first.weight", "second.weight"))


def _follows(net: mp.Model, put: Any, names: tuple[str, str]) -> None:
    """Steps of gradient descent, computed by numpy beside; the first weight is frozen at some."""
    first, second = (net[name].numpy().astype("float64") for name in names)
    step, optimizer = net.value_and_grad(mp.losses.mse), net.optimizer("sgd", lr=0.1)
    for flag in (True, False, True, True, False):
        put(net, flag)
        _, grads = step(X, np.ones((2, 1), "float32"))
        assert list(grads) == list(names if flag else names[1:])
        optimizer.step()
        hidden = X @ first.T
        error = 2 * (hidden @ second.T - 1) / 2  # of the mean over two
        by_first, by_second = (error @ second).T @ X, error.T @ hidden
        first, second = first - 0.1 * by_first * flag, second - 0.1 * by_second
        np.testing.assert_allclose(net[names[0]].numpy(), first, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(net[names[1]].numpy(), second, rtol=1e-4, atol=1e-6)
