"""Wrong input is refused with an error that names the cure, and leaves every bit of the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import Model, errors, nn

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4)
Y = np.linspace(0, 1, 12, dtype=np.float32).reshape(6, 2)


def spec() -> nn.Layer:
    """Layer 2 is layer 4; 5 has buffers; 0 and 7 are not square."""
    shared = nn.Linear(5)
    return nn.Sequential(nn.Linear(5), nn.ReLU(), shared, nn.ReLU(), shared, nn.BatchNorm(), nn.Linear(5), nn.Linear(2))


@pytest.fixture
def net(backend: str) -> Model:
    return mp.build(spec(), X, backend=backend)


def bits(net: Model) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (str(value.dtype), value.shape, value.tobytes()) for name, value in net.state_dict().items()}


@contextmanager
def unchanged(net: Model) -> Iterator[None]:
    """Every parameter and buffer bit for bit, every tie and every flag is afterwards what it was before."""
    before = bits(net), net.ties(), {p.name: p.trainable for p in net}
    yield
    assert (bits(net), net.ties(), {p.name: p.trainable for p in net}) == before


@contextmanager
def refused(net: Model, error: Any, match: str | None = None) -> Iterator[None]:
    with unchanged(net), pytest.raises(error, match=match):
        yield


# -- names


def test_an_unknown_name_gets_a_suggestion(net: Model) -> None:
    with refused(net, errors.ParameterNotFound, r"No parameter '7\.wieght'\. Did you mean '7\.weight'\?"):
        net["7.wieght"]


def test_an_unknown_name_is_a_key_error_too(net: Model) -> None:
    with refused(net, KeyError):
        net["nothing of the kind"]


def test_an_unknown_name_inside_a_group_names_the_group(net: Model) -> None:
    with refused(net, errors.ParameterNotFound, r"No parameter 'wieght' in '7'\. Did you mean 'weight'\?"):
        net[7]["wieght"]


def test_a_position_without_parameters_names_those_that_have_some(net: Model) -> None:
    with refused(net, errors.PositionError, r"position 1\. Positions with parameters: 0, 2, 4, 5, 6, 7"):
        net[1]


@pytest.mark.parametrize("key", [-7, -9, 8], ids=repr)  # -7 is 1, which is an activation
def test_a_position_from_the_end_without_parameters_is_refused(net: Model, key: int) -> None:
    with refused(net, errors.PositionError, f"position {key}\\. Positions with parameters: 0, 2, 4, 5, 6, 7"):
        net[key]


@pytest.mark.parametrize("key", [slice(1, 2), slice(3, 3), slice(8, None)], ids=repr)
def test_a_slice_without_parameters_is_refused(net: Model, key: slice) -> None:
    with refused(net, errors.PositionError, "no parameters at the positions"):
        net[key]


def test_a_slice_that_goes_backwards_is_refused(net: Model) -> None:
    with refused(net, ValueError, "in the order of the model"):
        net[::-1]


@pytest.mark.parametrize("key", [None, 1.0, True, (0, 1), slice("a"), b"0"], ids=repr)
def test_an_index_that_is_neither_a_name_nor_a_position_is_a_type_error(net: Model, key: object) -> None:
    with refused(net, TypeError, "by name or by position"):
        net[key]


def test_every_alias_gives_the_same_parameter(net: Model) -> None:
    assert net["2.weight"] is net["4.weight"]
    assert net[4]["weight"] is net["2.weight"]
    assert net["2.weight"] is not net["6.weight"]


# -- assignment


def test_an_array_of_another_shape_is_refused(net: Model) -> None:
    with refused(net, errors.ShapeError, r"'0\.weight' has shape \(5, 4\); the array has \(5,\)\.$"):
        net["0.weight"].assign(np.zeros(5, "float32"))


def test_a_transposed_array_is_refused_with_a_hint(net: Model) -> None:
    with refused(net, errors.ShapeError, r"\(5, 4\); the array has \(4, 5\)\. It is transposed"):
        net["0.weight"].assign(np.zeros((4, 5), "float32"))


def test_an_array_that_would_broadcast_is_refused(net: Model) -> None:
    with refused(net, errors.ShapeError):
        net["0.weight"].assign(np.zeros((1, 4), "float32"))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "bool", "complex64"])
def test_an_array_of_another_dtype_is_refused(net: Model, dtype: str) -> None:
    with refused(net, errors.DtypeError, rf"'0\.weight' is float32; the array is {dtype}\..*cast=True"):
        net["0.weight"].assign(np.zeros((5, 4), dtype))


def test_cast_converts_the_dtype(net: Model) -> None:
    value = np.linspace(0, 1, 20).reshape(5, 4)
    net["0.weight"].assign(value, cast=True)
    assert np.array_equal(net["0.weight"].numpy(), value.astype(np.float32))
    assert net["0.weight"].dtype == "float32"


def test_cast_does_not_excuse_a_shape(net: Model) -> None:
    with refused(net, errors.ShapeError):
        net["0.weight"].assign(np.zeros((4, 5)), cast=True)


def test_plain_numbers_fit_any_float(net: Model) -> None:
    net["0.bias"].assign([1, 2.5, 3, 4, 5])
    assert net["0.bias"].numpy().tolist() == [1, 2.5, 3, 4, 5]


def test_a_list_of_complex_numbers_does_not_lose_its_imaginary_part_in_silence(net: Model) -> None:
    with refused(net, TypeError):
        net["0.bias"].assign([1j, 2j, 3j, 4j, 5j])


@pytest.mark.parametrize("value", [["a", "b", "c", "d", "e"], [None] * 5, [[1], [2, 3]], None, "abcde", {1: 2}])
def test_what_is_no_array_of_numbers_is_refused(net: Model, value: object) -> None:
    with refused(net, (ValueError, TypeError)):
        net["0.bias"].assign(value)


def test_nan_and_infinity_may_be_assigned_on_purpose(net: Model) -> None:
    net["0.weight"][0, 0] = float("nan")
    net["0.bias"].assign(np.full(5, np.inf, "float32"))
    assert np.isnan(net["0.weight"].numpy()).sum() == 1
    assert np.isinf(net["0.bias"].numpy()).all()


# -- item assignment


@pytest.mark.parametrize("key", [(5, 0), (0, 4), (-6, 0), (0, 0, 0), 0.5, "a"], ids=repr)
def test_an_item_out_of_range_is_a_position_error(net: Model, key: Any) -> None:
    with refused(net, errors.PositionError, r"'0\.weight' has shape \(5, 4\)"):
        net["0.weight"][key] = 1


@pytest.mark.parametrize("shape", [(3,), (4, 5), (2, 5, 4)], ids=str)
def test_items_that_do_not_broadcast_are_a_shape_error(net: Model, shape: tuple[int, ...]) -> None:
    with refused(net, errors.ShapeError, r"'0\.weight'"):
        net["0.weight"][:] = np.zeros(shape, "float32")


@pytest.mark.parametrize("value", [1j, np.ones(4, "complex64"), [1j] * 4], ids=["number", "array", "list"])
def test_complex_items_do_not_go_into_a_float(net: Model, value: object) -> None:
    with refused(net, errors.DtypeError, r"'0\.weight' is float32"):
        net["0.weight"][0] = value


def test_an_in_place_sum_that_does_not_fit_is_refused(net: Model) -> None:
    p = net["0.weight"]
    with refused(net, ValueError):
        p += np.ones(3, "float32")


def test_an_array_read_from_a_parameter_does_not_write_to_it(net: Model) -> None:
    with unchanged(net):
        net["0.weight"].numpy()[:] = 7
        net.state_dict()["0.bias"][:] = 7


# -- ties


def test_a_tie_between_shapes_names_both(net: Model) -> None:
    with refused(net, errors.ShapeError, r"'0\.weight' \(5, 4\) to '6\.weight' \(5, 5\)"):
        net.tie("0.weight", "6.weight")


@pytest.mark.parametrize(
    ("target", "source"),
    [("5.running_mean", "5.running_var"), ("0.bias", "5.running_mean"), ("5.running_mean", "0.bias")],
)
def test_a_buffer_cannot_be_tied(net: Model, target: str, source: str) -> None:
    with refused(net, errors.TieError, r"'5\.running_mean' is a buffer"):
        net.tie(target, source)


@pytest.mark.parametrize(("target", "source"), [("6.wieght", "2.weight"), ("6.weight", "2.wieght"), ("6", "2")])
def test_a_tie_of_an_unknown_name_is_refused(net: Model, target: str, source: str) -> None:
    with refused(net, errors.ParameterNotFound, "No parameter '[26]"):
        net.tie(target, source)


def test_a_tie_to_itself_changes_nothing(net: Model) -> None:
    with unchanged(net):
        assert net.tie("0.weight", "0.weight") is net["0.weight"]
        assert net.tie("4.weight", "2.weight") is net["2.weight"]


def test_an_untied_parameter_cannot_be_untied(net: Model) -> None:
    with refused(net, errors.TieError, r"'6\.weight' is not tied"):
        net.untie("6.weight")


def test_an_unknown_name_cannot_be_untied(net: Model) -> None:
    with refused(net, errors.ParameterNotFound, r"Did you mean '6\.weight'"):
        net.untie("6.wieght")


@pytest.mark.parametrize("name", ["2.weight", "4.bias"])
def test_one_layer_used_twice_cannot_be_untied(net: Model, name: str) -> None:
    with refused(net, errors.TieError, "one layer used at 2 positions"):
        net.untie(name)


def test_a_failed_tie_leaves_a_working_net(net: Model) -> None:
    before = mp.to_numpy(net(X))
    with refused(net, errors.ShapeError):
        net.tie("0.weight", "6.weight")
    assert np.array_equal(mp.to_numpy(net(X)), before)


# -- selection and initialisation


@pytest.mark.parametrize("verb", ["select", "freeze", "unfreeze"])
def test_a_selector_that_matches_nothing_gets_a_suggestion(net: Model, verb: str) -> None:
    with refused(net, errors.ParameterNotFound, r"No parameter matches '7\.wieght'\. Did you mean '7\.weight'\?"):
        getattr(net, verb)("7.wieght")


def test_an_initialiser_for_nothing_is_refused(net: Model) -> None:
    with refused(net, errors.ParameterNotFound, r"No parameter matches '\*\.wieght'"):
        net.init(mp.init.zeros(), "*.wieght")


def test_a_kind_that_is_not_there_is_named(net: Model) -> None:
    with refused(net, errors.ParameterNotFound, "of kind 'conv'"):
        net.select("*", kind="conv")


def test_a_predicate_that_is_never_true_is_refused(net: Model) -> None:
    with refused(net, errors.ParameterNotFound, "this selector"):
        net.select(lambda p: False)


def test_a_buffer_is_not_selected(net: Model) -> None:
    with refused(net, errors.ParameterNotFound, "running_mean"):
        net.freeze("5.running_mean")


@pytest.mark.parametrize(
    "function", [mp.init.xavier_uniform(), mp.init.kaiming_normal(), mp.init.orthogonal()], ids=repr
)
def test_an_initialiser_that_cannot_fill_a_bias_names_it_and_fills_nothing(
    net: Model, function: Callable[..., Any]
) -> None:
    with refused(net, errors.ShapeError, r"mp\.init\.\w+\(.*\) cannot fill '0\.bias'"):
        net.init(function)


def test_a_users_initialiser_that_raises_midway_fills_nothing(net: Model) -> None:
    calls = []

    def init(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        calls.append(shape)
        if len(calls) == 3:
            raise ZeroDivisionError("midway")
        return rng.random(shape)

    with refused(net, ZeroDivisionError, "midway"):
        net.init(init)
    assert len(calls) == 3


def test_a_users_initialiser_of_the_wrong_shape_fills_nothing(net: Model) -> None:
    def init(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return np.zeros((5, 4))

    with refused(net, errors.ShapeError, r"'init' gave shape \(5, 4\) for '0\.bias'"):
        net.init(init)


def test_a_users_initialiser_of_complex_numbers_fills_nothing(net: Model) -> None:
    def init(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return rng.random(shape) * 1j

    with refused(net, TypeError):
        net.init(init)


# -- gradients and optimizers


def test_an_unknown_optimizer_gets_a_suggestion(net: Model) -> None:
    with refused(net, ValueError, r"No optimizer 'sgdd'\. Did you mean 'sgd'\?"):
        net.optimizer("sgdd")


def test_an_unknown_option_gets_a_suggestion(net: Model) -> None:
    with refused(net, ValueError, r"'adam' has no option 'beta'\. Did you mean 'beta[12]'\?"):
        net.optimizer("adam", beta=0.9)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_a_step_before_any_gradient_is_refused(net: Model, name: str) -> None:
    with refused(net, ValueError, "No trainable parameter has a gradient yet"):
        net.optimizer(name).step()


def test_there_is_no_gradient_when_everything_is_frozen(net: Model) -> None:
    net.freeze("*")
    with refused(net, ValueError, "No parameter is trainable"):
        net.value_and_grad(mp.losses.mse)(X, Y)


def test_an_unknown_gradient_gets_a_suggestion(net: Model) -> None:
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    with refused(net, errors.ParameterNotFound, r"No gradient '7\.wieght'\. Did you mean '7\.weight'\?"):
        grads["7.wieght"]


def test_a_gradient_of_an_unknown_name_is_refused(net: Model) -> None:
    with refused(net, errors.ParameterNotFound, r"Did you mean '7\.weight'"):
        net.optimizer("sgd").step({"0.bias": np.ones(5), "7.wieght": np.ones((2, 5))})


def test_a_gradient_of_the_wrong_shape_is_refused(net: Model) -> None:
    with refused(net, errors.ShapeError, r"gradient of '0\.weight' has shape \(4, 5\)"):
        net.optimizer("sgd").step({"0.bias": np.ones(5), "0.weight": np.ones((4, 5))})


def test_a_gradient_of_a_buffer_is_refused(net: Model) -> None:
    with refused(net, (errors.MultiparamError, ValueError)):
        net.optimizer("sgd").step({"5.running_mean": np.ones(5)})


def test_an_objective_that_raises_leaves_a_working_net(net: Model) -> None:
    before = mp.to_numpy(net(X))

    def objective(net: Model, x: Any) -> Any:
        raise ZeroDivisionError("mine")

    with refused(net, ZeroDivisionError, "mine"):
        net.value_and_grad(objective)(X)
    assert np.array_equal(mp.to_numpy(net(X)), before)
    loss, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    assert np.isfinite(mp.to_numpy(loss))
    assert len(grads) == len(net)


def test_an_objective_that_gives_no_scalar_is_refused(net: Model) -> None:
    with unchanged(net), pytest.raises(Exception, match=r"(?i)scalar"):
        net.value_and_grad(lambda net, x: net(x), train=False)(X)


def test_a_batch_that_does_not_fit_leaves_a_working_net(net: Model) -> None:
    before = mp.to_numpy(net(X))
    step = net.value_and_grad(mp.losses.mse)
    with unchanged(net), pytest.raises(Exception):  # noqa: B017  the framework's own error
        step(X[:, :3], Y)
    with unchanged(net), pytest.raises(Exception):  # noqa: B017
        mp.to_numpy(net(X[:, :3]))
    assert np.array_equal(mp.to_numpy(net(X)), before)


def everything_frozen(net: Model) -> None:
    net.freeze("*")
    net.value_and_grad(mp.losses.mse)(X, Y)


@pytest.mark.needs("torch")
@pytest.mark.xdist_group("torch")
@pytest.mark.parametrize(
    "wrong",
    [
        lambda net: net[None],
        lambda net: net.optimizer("sgdd"),
        lambda net: net.optimizer("sgd", rate=1),
        lambda net: net.optimizer("sgd").step(),
        everything_frozen,
        lambda net: mp.build(spec(), X, X, backend="torch"),
    ],
    ids=["index", "optimizer", "option", "no gradient", "frozen", "two inputs"],
)
def test_what_a_model_refuses_is_refused_with_an_error_of_ours(wrong: Callable[[Model], Any]) -> None:
    net = mp.build(spec(), X, backend="torch")
    with pytest.raises(errors.MultiparamError):
        wrong(net)


# -- build and wrap


def test_an_architecture_that_does_not_fit_names_the_layer(backend: str) -> None:
    architecture = nn.Sequential(nn.Linear(5), ("head", nn.Sequential(nn.Conv(4, 3))))
    with pytest.raises(errors.ShapeError, match=r"^At 'head\.0': Conv needs an input \(N, channels"):
        mp.build(architecture, X, backend=backend)


@pytest.mark.parametrize("count", [0, 2])
def test_build_takes_one_example_input(backend: str, count: int) -> None:
    with pytest.raises(ValueError, match=f"one example input.*gets {count}"):
        mp.build(spec(), *[X] * count, backend=backend)


def test_build_needs_a_batch_axis(backend: str) -> None:
    with pytest.raises(errors.ShapeError, match="batch axis"):
        mp.build(spec(), np.float32(1), backend=backend)


def test_build_takes_an_architecture_and_nothing_else(backend: str) -> None:
    with pytest.raises(TypeError, match=r"architecture of mp\.nn; it gets list"):
        mp.build([nn.Linear(2)], X, backend=backend)


@pytest.mark.parametrize("thing", [3, None, "net", [1], np.ones(3)], ids=repr)
def test_what_is_no_model_is_not_wrapped(thing: object) -> None:
    with pytest.raises(errors.Unrecognised, match=rf"type '{type(thing).__name__}' as a model"):
        mp.wrap(thing)


def test_a_native_class_in_place_of_an_instance_gets_a_hint(net: Model) -> None:
    with pytest.raises(errors.Unrecognised, match="Pass an instance, not the class"):
        mp.wrap(type(net.native))


def test_a_native_array_is_no_model(net: Model) -> None:
    with pytest.raises(errors.Unrecognised):
        mp.wrap(net["0.weight"].value)


def test_a_model_already_wrapped_is_not_wrapped_again(net: Model) -> None:
    with pytest.raises(errors.Unrecognised, match="'Model'"):
        mp.wrap(net)


# -- PyTorch


def in_torch(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.needs("torch")(pytest.mark.xdist_group("torch")(test))


def in_mxnet(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.needs("mxnet")(pytest.mark.xdist_group("mxnet")(test))


def in_jax(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.needs("jax")(pytest.mark.xdist_group("jax")(test))


def in_tensorflow(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.needs("tensorflow")(pytest.mark.xdist_group("tensorflow")(test))


def lazy() -> Any:
    from torch import nn as tnn

    return tnn.Sequential(
        tnn.BatchNorm1d(4), tnn.LazyLinear(3), tnn.LazyBatchNorm1d(), tnn.Dropout(0.5), tnn.LazyLinear(2)
    )


@in_torch
def test_a_lazy_torch_module_needs_inputs() -> None:
    with pytest.raises(errors.UnknownShapes, match=r"'1\.weight'.*mp\.wrap\(net, X\)"):
        mp.wrap(lazy())


@in_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inputs_give_a_lazy_torch_module_its_shapes(dtype: str) -> None:
    net = mp.wrap(lazy(), X.astype(dtype))
    assert {name: p.shape for name, p in net.parameters().items()} == {
        "0.weight": (4,), "0.bias": (4,), "1.weight": (3, 4), "1.bias": (3,), "2.weight": (3,), "2.bias": (3,),
        "4.weight": (2, 3), "4.bias": (2,),
    }  # fmt: skip


@in_torch
def test_inferring_torch_shapes_changes_neither_training_flags_nor_statistics() -> None:
    native = lazy().train()
    native[3].eval()
    before = {name: buffer.clone() for name, buffer in native[0].named_buffers()}
    mp.wrap(native, X)
    assert [module.training for module in native] == [True, True, True, False, True]
    assert native.training
    assert all(bool((buffer == before[name]).all()) for name, buffer in native[0].named_buffers())
    assert native[2].num_batches_tracked.item() == 0


@in_torch
def test_wrong_inputs_for_a_lazy_torch_module_leave_its_training_flags() -> None:
    native = lazy().train()
    native[3].eval()
    with pytest.raises(Exception):  # noqa: B017  PyTorch's own error
        mp.wrap(native, X[:, :3])
    assert [module.training for module in native] == [True, True, True, False, True]


@in_torch
def test_a_torch_tensor_parameter_or_optimizer_is_no_model() -> None:
    import torch

    weight = torch.nn.Parameter(torch.ones(3))
    for thing in (torch.ones(3), weight, torch.optim.SGD([weight], lr=0.1)):
        with pytest.raises(errors.Unrecognised, match=type(thing).__name__):
            mp.wrap(thing)


@in_torch
def test_torchs_own_initialiser_that_fails_midway_fills_nothing() -> None:
    from torch.nn.init import xavier_uniform_

    net = mp.build(spec(), X, backend="torch")
    with refused(net, ValueError, "fewer than 2 dimensions"):
        net.init(xavier_uniform_)


# -- MXNet


@in_mxnet
def test_a_gluon_block_that_is_not_initialised_says_so() -> None:
    from multiparam_mxnet.load import load

    gnn = load().gluon.nn
    native = gnn.HybridSequential()
    native.add(gnn.Dense(3, in_units=4), gnn.Dense(2, in_units=3))
    with pytest.raises(errors.UnknownShapes, match=r"is not initialised\. Call net\.initialize\(\)"):
        mp.wrap(native)
    with pytest.raises(errors.UnknownShapes, match="is not initialised"):
        mp.wrap(native, X)


def deferred() -> Any:
    from multiparam_mxnet.load import load

    gnn = load().gluon.nn
    native = gnn.HybridSequential()
    native.add(gnn.Dense(3), gnn.BatchNorm(), gnn.Dense(2))
    native.initialize()
    return native


@in_mxnet
def test_a_deferred_gluon_block_needs_inputs() -> None:
    with pytest.raises(errors.UnknownShapes, match=r"'0\.weight'.*mp\.wrap\(net, X\)"):
        mp.wrap(deferred())


@in_mxnet
def test_inputs_give_a_deferred_gluon_block_its_shapes() -> None:
    net = mp.wrap(deferred(), X)
    assert net["0.weight"].shape == (3, 4)
    assert net["2.weight"].shape == (2, 3)


@in_mxnet
def test_inferring_gluon_shapes_moves_no_statistics() -> None:
    net = mp.wrap(deferred(), X)
    assert net["1.running_mean"].numpy().tolist() == [0, 0, 0]
    assert net["1.running_var"].numpy().tolist() == [1, 1, 1]


@in_mxnet
def test_a_gluon_parameter_is_no_model() -> None:
    from multiparam_mxnet.load import load

    with pytest.raises(errors.Unrecognised, match="Parameter"):
        mp.wrap(load().gluon.Parameter("weight", shape=(2, 3)))


@in_mxnet
def test_mxnets_own_initialiser_that_fails_midway_fills_nothing() -> None:
    from multiparam_mxnet.load import load

    net = mp.build(spec(), X, backend="mxnet")
    with refused(net, ValueError):
        net.init(load().init.Xavier())


# -- JAX


@in_jax
def test_a_linen_module_needs_its_variables() -> None:
    from flax import linen

    with pytest.raises(errors.UnknownShapes, match=r"Dense has no parameters of its own.*variables="):
        mp.wrap(linen.Dense(3))


def compact() -> Any:
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.relu(linen.Dense(3)(x))
            return linen.Dense(2)(x)

    return Net()


@in_jax
def test_what_a_compact_linen_module_makes_is_told_from_its_arrays_where_they_can_be_nothing_else() -> None:
    import jax

    module = compact()
    variables = module.init(jax.random.key(0), X)
    net = mp.wrap(module, variables=variables)
    assert list(net.parameters()) == list(mp.wrap(module, X, variables=variables).parameters())
    assert {p.kind for p in net} == {"linear"} and net["Dense_0.weight"].shape == (3, X.shape[1])


@in_jax
def test_what_nothing_tells_of_a_compact_linen_module_stays_as_flax_has_it() -> None:
    import jax
    from flax import linen

    class Turned(linen.Module):
        """As a Dense to look at, with the kernel (out, in), as there are."""

        @linen.compact
        def __call__(self, x: Any) -> Any:
            kernel = self.param("kernel", linen.initializers.normal(1.0), (x.shape[-1], x.shape[-1]))
            return x @ kernel.T + self.param("bias", linen.initializers.zeros, (x.shape[-1],))

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(2, name="out")(Turned(name="mid")(x))

    variables = Net().init(jax.random.key(0), X)
    with pytest.warns(mp.MultiparamWarning, match=r"'mid'.*mp\.wrap\(module, X, variables="):
        net = mp.wrap(Net(), variables=variables)
    assert set(net.parameters()) == {"mid.kernel", "mid.bias", "out.weight", "out.bias"}
    assert np.array_equal(net["mid.kernel"].numpy(), np.asarray(variables["params"]["mid"]["kernel"]))


@in_jax
def test_inputs_show_what_a_compact_linen_module_makes() -> None:
    import jax

    module = compact()
    variables = module.init(jax.random.key(0), X)
    net = mp.wrap(module, X, variables=variables)
    assert list(net.parameters()) == ["Dense_0.weight", "Dense_0.bias", "Dense_1.weight", "Dense_1.bias"]
    assert np.array_equal(net["Dense_0.weight"].numpy(), np.asarray(variables["params"]["Dense_0"]["kernel"]).T)


@in_jax
def test_a_jax_array_is_no_model() -> None:
    import jax.numpy as jnp

    with pytest.raises(errors.Unrecognised, match="'ArrayImpl' as a model"):
        mp.wrap(jnp.ones(3))


@in_jax
def test_a_class_of_linen_or_nnx_gets_a_hint() -> None:
    from flax import linen, nnx

    for cls in (linen.Dense, nnx.Linear):
        with pytest.raises(errors.Unrecognised, match="Pass an instance, not the class"):
            mp.wrap(cls)


@in_jax
def test_jaxs_own_initialiser_that_fails_midway_fills_nothing() -> None:
    import jax

    net = mp.build(spec(), X, backend="jax")
    with refused(net, ValueError, "1-dimensional"):
        net.init(jax.nn.initializers.glorot_normal())


# -- TensorFlow


def unbuilt() -> Any:
    import keras

    return keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dense(2)])


@in_tensorflow
def test_an_unbuilt_keras_model_needs_inputs() -> None:
    with pytest.raises(errors.UnknownShapes, match=r"is not built.*mp\.wrap\(net, X\)"):
        mp.wrap(unbuilt())


@in_tensorflow
def test_inputs_build_a_keras_model_and_move_no_statistics() -> None:
    net = mp.wrap(unbuilt(), X)
    assert net["0.weight"].shape == (3, 4)
    assert net["2.weight"].shape == (2, 3)
    assert net["1.running_mean"].numpy().tolist() == [0, 0, 0]


@in_tensorflow
def test_a_keras_variable_or_optimizer_is_no_model() -> None:
    import keras

    for thing in (keras.Variable(1.0), keras.optimizers.SGD()):
        with pytest.raises(errors.Unrecognised, match=type(thing).__name__):
            mp.wrap(thing)
