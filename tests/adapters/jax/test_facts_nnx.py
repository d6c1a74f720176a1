"""NNX models as their users write them: the five verbs against flax's own nnx.grad, nnx.Optimizer and nnx.state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multiparam as mp

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
optax = pytest.importorskip("optax")
jnp = jax.numpy

pytestmark = [pytest.mark.needs("jax"), pytest.mark.xdist_group("jax")]

rng = np.random.default_rng(0)
X = rng.normal(size=(6, 4)).astype("float32")
Y = rng.normal(size=(6, 1)).astype("float32")


class Named(nnx.Module):
    """Attributes whose order is not the alphabet's: two layers of one shape, and a Param between them."""

    def __init__(self, rngs: Any) -> None:
        self.second = nnx.Linear(4, 4, rngs=rngs)
        self.scale = nnx.Param(jnp.linspace(0.5, 1.5, 4))
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(nnx.tanh(self.second(nnx.tanh(self.first(x)) * self.scale[...])))


class Block(nnx.Module):
    def __init__(self, rngs: Any) -> None:
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.25, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.drop(nnx.tanh(self.norm(self.linear(x))))


class Deep(nnx.Module):
    """A list of blocks with batch statistics and dropout, then a head."""

    def __init__(self, rngs: Any) -> None:
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Shared(nnx.Module):
    """One layer under two names, and one Param in two layers."""

    def __init__(self, rngs: Any) -> None:
        self.inner = nnx.Linear(4, 4, rngs=rngs)
        self.again = self.inner
        self.after = nnx.Linear(4, 4, rngs=rngs)
        self.after.kernel = self.inner.kernel
        self.end = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for layer in (self.inner, self.again, self.after):
            x = nnx.tanh(layer(x))
        return self.end(x)


class Tables(nnx.Module):
    """Raw Params in a list and in a dictionary whose keys have dots and spaces."""

    def __init__(self, rngs: Any) -> None:
        draw = nnx.initializers.normal(0.5)
        self.steps = nnx.List([nnx.Param(draw(rngs.params(), (4, 4))) for _ in range(3)])
        self.heads = nnx.Dict({"out.0": nnx.Param(draw(rngs.params(), (4, 1)))})

    def __call__(self, x: Any) -> Any:
        for w in self.steps:
            x = nnx.tanh(x @ w[...])
        return x @ self.heads["out.0"][...]


MODELS: dict[str, Callable[[Any], Any]] = {"named": Named, "deep": Deep, "shared": Shared, "tables": Tables}
NAMES = {
    "named": ["second.weight", "second.bias", "first.weight", "first.bias", "scale", "head.weight", "head.bias"],
    "deep": [
        *(f"blocks.{i}.{layer}.{leaf}" for i in (0, 1) for layer in ("linear", "norm") for leaf in ("weight", "bias")),
        "head.weight",
        "head.bias",
    ],
    "shared": ["inner.weight", "inner.bias", "after.bias", "end.weight", "end.bias"],
    "tables": ["steps.0", "steps.1", "steps.2", r"heads.out\.0"],
}
NATIVE: dict[str, dict[str, Callable[[Any], Any]]] = {
    "named": {
        "second.weight": lambda m: m.second.kernel,
        "second.bias": lambda m: m.second.bias,
        "first.weight": lambda m: m.first.kernel,
        "first.bias": lambda m: m.first.bias,
        "scale": lambda m: m.scale,
        "head.weight": lambda m: m.head.kernel,
        "head.bias": lambda m: m.head.bias,
    },
    "deep": {
        "blocks.0.linear.weight": lambda m: m.blocks[0].linear.kernel,
        "blocks.1.linear.bias": lambda m: m.blocks[1].linear.bias,
        "blocks.0.norm.weight": lambda m: m.blocks[0].norm.scale,
        "blocks.1.norm.bias": lambda m: m.blocks[1].norm.bias,
        "blocks.1.norm.running_mean": lambda m: m.blocks[1].norm.mean,
        "blocks.0.norm.running_var": lambda m: m.blocks[0].norm.var,
        "head.weight": lambda m: m.head.kernel,
    },
    "shared": {
        "inner.weight": lambda m: m.inner.kernel,
        "again.weight": lambda m: m.inner.kernel,
        "after.weight": lambda m: m.inner.kernel,
        "after.bias": lambda m: m.after.bias,
        "again.bias": lambda m: m.inner.bias,
        "end.weight": lambda m: m.end.kernel,
    },
    "tables": {
        "steps.2": lambda m: m.steps[2],
        r"heads.out\.0": lambda m: m.heads["out.0"],
    },
}
every_model = pytest.mark.parametrize("case", MODELS)


def make(case: str, seed: int = 0) -> Any:
    return MODELS[case](nnx.Rngs(seed))


def canonical(parameter: mp.Parameter, native: Any) -> np.ndarray:
    array = np.asarray(native)
    return array.T if parameter.kind == "linear" and array.ndim == 2 else array


def near(ours: Any, truth: Any) -> None:
    np.testing.assert_allclose(mp.to_numpy(ours), truth, rtol=2e-5, atol=1e-6)


def loss_of(model: Any) -> Any:
    return ((model(X) - Y) ** 2).mean()


def flat_path(name: str, case: str) -> tuple[Any, ...]:
    """Where nnx's flat state keeps what we call ``name``."""
    leaves = {"weight": "scale" if ".norm." in name else "kernel", "bias": "bias"}
    if case == "tables":
        return ("heads", "out.0") if name.startswith("heads") else ("steps", int(name[-1]))
    path: list[Any] = [int(s) if s.isdigit() else s for s in name.split(".")]
    if path[-1] in leaves:
        path[-1] = leaves[path[-1]]
    return tuple(path)


def gradients(case: str, model: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The loss and nnx's gradients by our names, in nnx's layout."""
    loss, grads = nnx.value_and_grad(loss_of)(model)
    flat = dict(nnx.to_flat_state(grads))
    assert len(flat) == len(NAMES[case])
    # a tied Param is listed under the alphabet's first path
    alias = {"inner.weight": "after.weight", "inner.bias": "again.bias"} if case == "shared" else {}
    found = {}
    for name in NAMES[case]:
        leaf = flat[flat_path(alias.get(name, name), case)]
        found[name] = np.asarray(leaf[...] if isinstance(leaf, nnx.Variable) else leaf)
    return loss, found


# -- access and all parameters


@every_model
def test_every_param_is_listed_once_in_definition_order(case: str) -> None:
    native = make(case)
    net = mp.wrap(native)
    if case == "named":  # a module's own Params come before its submodules'
        assert sorted(net.parameters()) == sorted(NAMES[case])
        assert [n for n in net.parameters() if n != "scale"] == [n for n in NAMES[case] if n != "scale"]
    else:
        assert list(net.parameters()) == NAMES[case]
    assert len(net) == len(jax.tree.leaves(nnx.state(native, nnx.Param)))


@every_model
def test_a_name_reaches_the_variable_the_attributes_reach(case: str) -> None:
    native = make(case)
    net = mp.wrap(native)
    for name, reach in NATIVE[case].items():
        assert net[name].native is reach(native), name
        np.testing.assert_array_equal(net[name].numpy(), canonical(net[name], reach(native)[...]))


@every_model
def test_a_write_is_in_the_native_model_and_a_native_write_in_ours(case: str) -> None:
    native = make(case)
    net = mp.wrap(native)
    for name, reach in NATIVE[case].items():
        net[name][...] = 0.5
        np.testing.assert_array_equal(np.asarray(reach(native)[...]), 0.5)
        reach(native)[...] = reach(native)[...] + 1
        np.testing.assert_array_equal(net[name].numpy(), 1.5)


@every_model
def test_the_forward_pass_is_the_native_one(case: str) -> None:
    native, twin = make(case), make(case)
    twin.eval()
    np.testing.assert_array_equal(mp.to_numpy(mp.wrap(native)(X)), np.asarray(twin(X)))


def test_batch_statistics_are_buffers_and_random_streams_are_nothing() -> None:
    net = mp.wrap(make("deep"))
    assert list(net.buffers()) == [f"blocks.{i}.norm.running_{s}" for i in (0, 1) for s in ("mean", "var")]
    assert net["blocks"][1]["norm"]["weight"] is net["blocks.1.norm.weight"]
    assert net["blocks.0.norm.weight"].kind == "batchnorm"


def test_a_variable_of_a_users_own_type_is_a_buffer_that_a_step_moves() -> None:
    class Count(nnx.Variable):
        pass

    class Net(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.steps = Count(jnp.zeros(()))
            self.out = nnx.Linear(4, 1, rngs=rngs)
            self.constants, self.size = jnp.ones(3), (1, 2)

        def __call__(self, x: Any) -> Any:
            self.steps[...] = self.steps[...] + 1
            return self.out(x)

    native = Net(nnx.Rngs(0))
    net = mp.wrap(native)
    step = net.value_and_grad(mp.losses.mse)
    for _ in range(3):
        step(X, Y)
    assert list(net.parameters()) == ["out.weight", "out.bias"] and list(net.buffers()) == ["steps"]
    assert float(native.steps[...]) == net["steps"].numpy() == 3


def test_a_module_that_refers_back_to_its_parent_can_be_wrapped() -> None:
    class Child(nnx.Module):
        def __init__(self, parent: Any, rngs: Any) -> None:
            self.parent = parent
            self.linear = nnx.Linear(4, 1, rngs=rngs)

    class Parent(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.child = Child(self, rngs)

        def __call__(self, x: Any) -> Any:
            return self.child.linear(x)

    net = mp.wrap(Parent(nnx.Rngs(0)))
    assert list(net.parameters()) == ["child.linear.weight", "child.linear.bias"]


# -- gradients and optimizers


@every_model
@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "after native training"])
def test_a_steps_gradients_are_those_of_nnx_grad(case: str, trained: bool) -> None:
    """The twin has its own copy of the same random streams, so dropout drops the same elements."""
    native, twin = make(case), make(case)
    net = mp.wrap(native)
    if trained:  # nnx's own transformations put the attributes of a module in another order
        for model in (native, twin):
            model.train()
            nnx.value_and_grad(loss_of)(model)
    twin.train()
    for _ in range(2):
        loss, grads = net.value_and_grad(mp.losses.mse)(X, Y)
        expected, truth = gradients(case, twin)
        near(loss, expected)
        assert set(grads) == set(truth)
        for name, g in truth.items():
            near(grads[name], canonical(net[name], g))
            near(net[name].grad, canonical(net[name], g))


def test_batch_statistics_and_dropout_streams_move_as_they_do_natively() -> None:
    native, twin = make("deep"), make("deep")
    net = mp.wrap(native)
    twin.train()
    step = net.value_and_grad(mp.losses.mse)
    for _ in range(3):
        step(X, Y)
        nnx.value_and_grad(loss_of)(twin)
    for i in (0, 1):
        near(net[f"blocks.{i}.norm.running_mean"].numpy(), np.asarray(twin.blocks[i].norm.mean[...]))
        near(net[f"blocks.{i}.norm.running_var"].numpy(), np.asarray(twin.blocks[i].norm.var[...]))
    native.train()
    np.testing.assert_allclose(np.asarray(native(X)), np.asarray(twin(X)), rtol=1e-5, atol=1e-6)


def test_evaluation_moves_nothing_and_gives_each_layer_its_mode_back() -> None:
    native = make("deep")
    native.blocks[0].drop.deterministic = True
    net = mp.wrap(native)
    before = net.state_dict()
    net(X)
    net.value_and_grad(mp.losses.mse, train=False)(X, Y)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert native.blocks[0].drop.deterministic is True and native.blocks[1].drop.deterministic is False
    assert native.blocks[1].norm.use_running_average is False


@every_model
@pytest.mark.parametrize(
    ("name", "options", "rule"),
    [
        ("sgd", {"lr": 0.1}, lambda: optax.sgd(0.1)),
        ("momentum", {"lr": 0.1, "momentum": 0.8, "nesterov": True}, lambda: optax.sgd(0.1, 0.8, True)),
        ("adam", {"lr": 0.05, "eps": 1e-3}, lambda: optax.adam(0.05, eps=1e-3)),  # a bias before a norm has only noise
    ],
    ids=["sgd", "nesterov", "adam"],
)
@pytest.mark.quick("adam-deep", "sgd-named", "nesterov-shared")
def test_training_ends_where_nnxs_own_optimizer_ends(
    case: str, name: str, options: dict[str, Any], rule: Callable[[], Any]
) -> None:
    native, twin = make(case), make(case)
    net = mp.wrap(native)
    twin.train()
    optimizer = nnx.Optimizer(twin, rule(), wrt=nnx.Param)
    native_step = nnx.jit(lambda model, optimizer: optimizer.update(model, nnx.grad(loss_of)(model)))
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer(name, **options)
    for _ in range(3):
        step(X, Y)
        opt.step()
        native_step(twin, optimizer)
    for path, value in mp.wrap(twin).state_dict().items():
        np.testing.assert_allclose(net[path].numpy(), value, rtol=2e-3, atol=2e-4, err_msg=path)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_frozen_param_stays_while_the_rest_trains(name: str) -> None:
    """Frozen: optax.masked would pass the unmasked gradient through."""
    net = mp.wrap(make("named"))
    net.freeze("second.*", "scale")
    before = net.state_dict()
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer(name, lr=0.1)
    for _ in range(2):
        step(X, Y)
        opt.step()
    moved = {n for n, value in net.state_dict().items() if not np.array_equal(value, before[n])}
    assert moved == {"first.weight", "first.bias", "head.weight", "head.bias"}


def test_an_objective_may_use_positions_and_names_of_the_traced_net() -> None:
    """Inside a trace the module is a copy, whose attributes flax keeps in the alphabet's order."""
    net = mp.wrap(make("named"))
    seen: list[tuple[str, ...]] = []

    def objective(net: mp.Model, x: Any) -> Any:
        seen.append(tuple(net.parameters()))
        return (net[0]["weight"].value ** 2).sum() + 0 * net(x).sum()

    outside = net[0]["weight"].name
    _, grads = net.value_and_grad(objective)(X)
    assert seen[0] == tuple(net.parameters())
    assert [name for name, g in grads.items() if mp.to_numpy(g).any()] == [outside]
    near(grads[outside], 2 * net[outside].numpy())


def test_a_lifted_stack_of_layers_can_be_read_written_and_differentiated() -> None:
    """nnx.vmap makes one Linear whose kernel has an axis more, as NNX users write deep stacks."""

    @nnx.vmap
    def stack(key: Any) -> Any:
        return nnx.Linear(4, 4, rngs=nnx.Rngs(key))

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.layers = stack(jax.random.split(jax.random.key(0), 3))

        def __call__(self, x: Any) -> Any:
            @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            def forward(layer: Any, x: Any) -> Any:
                return nnx.tanh(layer(x))

            return forward(self.layers, x)

    native = Net()
    net = mp.wrap(native)
    kernel = next(p for p in net if p.native is native.layers.kernel)
    assert kernel.size == kernel.numpy().size == 48
    target = np.zeros((6, 4), "float32")
    truth = nnx.grad(lambda m: ((m(X) - target) ** 2).mean())(native)["layers"]["kernel"][...]
    _, grads = net.value_and_grad(mp.losses.mse)(X, target)
    ours = mp.to_numpy(grads[kernel.name])
    np.testing.assert_allclose(np.sort(ours.ravel()), np.sort(np.asarray(truth).ravel()), rtol=1e-4, atol=1e-7)
    kernel[...] = 0
    assert not np.asarray(native.layers.kernel[...]).any()


# -- tie and untie


def test_a_tie_and_an_untie_are_those_of_the_native_attributes() -> None:
    native = make("named")
    net = mp.wrap(native)
    net.tie("second.weight", "first.weight")
    assert native.second.kernel is native.first.kernel
    assert len(jax.tree.leaves(nnx.state(native, nnx.Param))) == 6
    near(mp.to_numpy(net(X)), np.asarray(native(X)))
    net.untie("first.weight")
    assert native.second.kernel is not native.first.kernel
    net["first.weight"][:] = 0
    assert np.asarray(native.second.kernel[...]).any() and not np.asarray(native.first.kernel[...]).any()


def test_tied_gradients_are_those_of_nnx_grad() -> None:
    native, twin = make("named"), make("named")
    net = mp.wrap(native)
    net.tie("second.weight", "first.weight")
    twin.second.kernel = twin.first.kernel
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    truth = nnx.grad(loss_of)(twin)
    assert len(grads) == 6 and net.ties() == [("second.weight", "first.weight")]
    near(grads["second.weight"], np.asarray(truth["first"]["kernel"][...]).T)
    near(grads["head.weight"], np.asarray(truth["head"]["kernel"][...]).T)


def test_entries_of_lists_and_dictionaries_can_be_tied_and_untied() -> None:
    native = make("tables")
    net = mp.wrap(native)
    net.tie("steps.2", "steps.0")
    assert native.steps[2] is native.steps[0]
    native.heads["more"] = nnx.Param(jnp.ones((4, 1)))
    net = mp.wrap(native)
    net.tie("heads.more", r"heads.out\.0")
    assert native.heads["more"] is native.heads["out.0"]
    assert net.ties() == [("steps.0", "steps.2"), (r"heads.out\.0", "heads.more")]
    net.untie("steps.0")
    assert native.steps[2] is not native.steps[0]
    assert net.ties() == [(r"heads.out\.0", "heads.more")]


def test_a_layer_under_two_names_is_one_place_that_cannot_be_untied() -> None:
    net = mp.wrap(make("shared"))
    assert net.ties() == [("inner.weight", "again.weight", "after.weight"), ("inner.bias", "again.bias")]
    with pytest.raises(mp.errors.TieError, match="one layer used at 2 positions"):
        net.untie("again.bias")
    net.untie("after.weight")
    assert net.ties() == [("inner.weight", "again.weight"), ("inner.bias", "again.bias")]


def test_a_parameter_held_through_native_training_and_a_tie_still_means_its_name() -> None:
    """nnx's own transformations put a module's attributes in the alphabet's order."""
    native = make("named")
    net = mp.wrap(native)
    held = {name: net[name] for name in NAMES["named"]}
    native.train()
    nnx.jit(loss_of)(native)
    nnx.value_and_grad(loss_of)(native)
    net.tie("second.bias", "first.bias")
    for name, p in held.items():
        assert name in p.names
        assert p.native is NATIVE["named"][name](native)
        assert net[name].native is NATIVE["named"][name](native)
    assert net[0]["weight"].native is held["second.weight"].native


# -- init


@every_model
def test_initialisers_reach_the_native_variables_whatever_their_layout(case: str) -> None:
    native = make(case)
    net = mp.wrap(native)
    net.init(mp.init.normal(), seed=3)
    for name, reach in NATIVE[case].items():
        p = net[name]
        if not p.buffer:
            drawn = mp.init.draw(mp.init.normal(), p.shape, seed=3, name=p.name)
            np.testing.assert_array_equal(canonical(p, reach(native)[...]), drawn)


def test_flaxs_own_initialisers_see_the_native_layout() -> None:
    native = nnx.Sequential(nnx.Linear(1000, 40, rngs=nnx.Rngs(0)), nnx.Linear(40, 1, rngs=nnx.Rngs(0)))
    net = mp.wrap(native)
    net.init(nnx.initializers.lecun_normal(), "0.weight", seed=1)
    assert np.asarray(native.layers[0].kernel[...]).std() == pytest.approx(1000**-0.5, rel=0.05)
    net.init(nnx.initializers.constant(42), "1.weight")
    np.testing.assert_array_equal(np.asarray(native.layers[1].kernel[...]), 42)


def test_a_param_keeps_its_identity_shape_and_dtype_through_every_write() -> None:
    """Init: NNX 0.12.0 replaces any shape and dtype, 0.12.8 broadcasts and casts."""
    native = make("named")
    net = mp.wrap(native)
    held = native.first.kernel
    net["first.weight"].assign(np.ones((4, 4), "float64"), cast=True)
    p = net["first.weight"]
    p *= 2
    net["first.weight"][0, 1] = 3
    net.init(mp.init.orthogonal(), "first.weight")
    net.value_and_grad(mp.losses.mse)(X, Y)
    net.optimizer("adam").step()
    assert native.first.kernel is held
    assert (held[...].shape, held[...].dtype) == ((4, 4), np.float32)


def test_a_users_own_jit_over_a_wrapped_model_with_modes_evaluates_it() -> None:
    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.a, self.bn, self.drop = nnx.Linear(4, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs), nnx.Dropout(0.5)

        def __call__(self, x: Any) -> Any:
            return self.drop(self.bn(self.a(x)))

    net = mp.wrap(Net())
    X = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    before, modes = net.state_dict(), [net.native.bn.use_running_average, net.native.drop.deterministic]
    np.testing.assert_allclose(jax.jit(lambda x: net(x))(X), mp.to_numpy(net(X)), rtol=1e-6, atol=1e-6)
    assert [net.native.bn.use_running_average, net.native.drop.deterministic] == modes
    assert all((value == before[name]).all() for name, value in net.state_dict().items())
