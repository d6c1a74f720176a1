"""States: every name, shape, dtype and tie is checked before anything is written, and all that is wrong is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from support.holders import CASES, FLAVOURS
from support.states import X, bits, made, refused, transposed, weights

import multiparam as mp
from multiparam import nn
from multiparam.core import registry
from multiparam.core.state import same


@pytest.fixture
def net(backend: str) -> mp.Model:
    return made(backend)


# -- what a state is


def test_a_state_has_each_storage_once_and_the_buffers(net: mp.Model) -> None:
    state = net.state_dict()
    assert list(state) == [*net.parameters(), *net.buffers()]
    assert "2.weight" in state and "4.weight" not in state and "5.running_mean" in state
    assert all(type(a) is np.ndarray for a in state.values())


def test_a_native_state_has_the_frameworks_arrays_in_canonical_layout(net: mp.Model, backend: str) -> None:
    state = net.state_dict(native=True)
    assert list(state) == list(net.state_dict())
    for name, array in state.items():
        assert registry.detect_array(array).name == backend
        np.testing.assert_array_equal(mp.to_numpy(array), net[name].numpy())


def test_a_state_loads_into_another_model(net: mp.Model, backend: str) -> None:
    state = made(backend, seed=1).state_dict()
    assert net.load_state_dict(state) == ((), ())
    assert bits(net) == bits(made(backend, seed=1))


@pytest.mark.parametrize("native", [False, True])
def test_any_frameworks_arrays_load(backend: str, native: bool) -> None:
    """From every installed backend to this one."""
    for name, installed in mp.backends().items():
        if installed:
            net = made(backend)
            net.load_state_dict(made(name, seed=1).state_dict(native=native))
            found, truth = bits(net), bits(made(name, seed=1))
            assert all(found[each] == truth[each] for each in weights(name))


def test_the_state_may_be_the_models_own_arrays(net: mp.Model) -> None:
    before = bits(net)
    net.load_state_dict(net.state_dict(native=True))
    assert bits(net) == before


def test_a_group_has_a_state_of_its_own(net: mp.Model) -> None:
    assert list(net[0].state_dict()) == ["weight", "bias"]
    net[0].load_state_dict({"weight": np.full((5, 4), 2, "float32"), "bias": np.zeros(5, "float32")})
    assert (net["0.weight"].numpy() == 2).all()


def test_loading_keeps_no_alias_of_the_arrays(net: mp.Model, backend: str) -> None:
    state = weights(backend)
    net.load_state_dict(state)
    before = bits(net)
    for array in state.values():
        array[...] = 7
    assert bits(net) == before


# -- ties


@pytest.mark.parametrize("name", ["2.weight", "4.weight"])
def test_any_alias_is_accepted(net: mp.Model, backend: str, name: str) -> None:
    state = weights(backend)
    state[name] = state.pop("2.weight")
    net.load_state_dict(state)
    assert np.array_equal(net["2.weight"].numpy(), state[name])
    assert net.ties() == [("2.weight", "4.weight"), ("2.bias", "4.bias")]


def test_several_names_of_one_parameter_with_equal_values(net: mp.Model, backend: str) -> None:
    state = weights(backend)
    state["2.weight"][0, 0] = np.nan
    state["4.weight"] = state["2.weight"].copy()
    net.load_state_dict(state)
    assert np.array_equal(net["4.weight"].numpy(), state["2.weight"], equal_nan=True)


def test_several_names_of_one_parameter_with_different_values(net: mp.Model, backend: str) -> None:
    state = weights(backend)
    state["4.weight"] = state["2.weight"].copy()
    state["4.weight"][-1, -1] += 1
    for strict in (True, False):
        with refused(net, match=r"conflicts \(1\):\n  '2\.weight' and '4\.weight' are one parameter"):
            net.load_state_dict(state, strict=strict)


def test_an_untied_parameter_is_missing_by_its_own_name(net: mp.Model, backend: str) -> None:
    apart = mp.build(nn.Sequential(nn.Linear(5), nn.Linear(5), nn.Linear(5)), X, backend=backend)
    apart.tie("2.weight", "1.weight")
    state = apart.state_dict()
    apart.untie("2.weight")
    with refused(apart, match=r"missing \(1\):\n  '2\.weight', \(5, 5\) float32"):
        apart.load_state_dict(state)


@pytest.mark.parametrize("wide", [3, 4])
def test_a_transposed_alias_is_compared_transposed(backend: str, wide: int) -> None:
    net = transposed(backend, wide)
    value = np.arange(4 * wide, dtype="float32").reshape(wide, 4)
    net.load_state_dict({"0.weight": value, "1.weight": value.T})
    assert np.array_equal(net["0.weight"].numpy(), value) and np.array_equal(net["1.weight"].numpy(), value.T)
    net.load_state_dict({"1.weight": value.T + 1})
    assert np.array_equal(net["0.weight"].numpy(), value + 1)
    if wide == 4:
        with refused(net, match="conflicts"):
            net.load_state_dict({"0.weight": value, "1.weight": value})


# -- misfits


def test_all_that_is_wrong_is_told_at_once(net: mp.Model, backend: str) -> None:
    state = weights(backend)
    state["6.wieght"] = state.pop("6.weight")
    state["0.weight"] = state["0.weight"].T
    state["0.bias"] = state["0.bias"].astype("float64")
    state["2.bias"] = state["2.bias"][:4]
    with refused(net) as caught:
        net.load_state_dict(state)
    assert str(caught.value) == "\n".join(
        [
            "The state does not fit the model, which is unchanged.",
            "missing (1):",
            "  '6.weight', (2, 5) float32",
            "unexpected (1):",
            "  '6.wieght'. Did you mean '6.weight'?",
            "misfits (3):",
            "  '0.weight' has shape (5, 4); the state has (4, 5). It is transposed: multiparam's layout is PyTorch's, "
            "weight (out, in)",
            "  '0.bias' is float32; the state has float64. Convert it, or say cast=True",
            "  '2.bias' has shape (5,); the state has (4,)",
        ]
    )


def test_long_lists_are_cut(net: mp.Model) -> None:
    with refused(net) as caught:
        net.load_state_dict({f"strange {i}": np.zeros(1) for i in range(30)})
    lines = str(caught.value).splitlines()
    assert "unexpected (30):" in lines and "  ... and 20 more" in lines and len(lines) < 25


def test_what_fits_is_loaded_and_the_rest_told_when_not_strict(net: mp.Model, backend: str) -> None:
    state = weights(backend)
    bias = net["6.bias"].numpy()
    del state["6.bias"]
    state["new"] = np.zeros(3)
    assert net.load_state_dict(state, strict=False) == (("6.bias",), ("new",))
    assert np.array_equal(net["6.weight"].numpy(), state["6.weight"])
    assert np.array_equal(net["6.bias"].numpy(), bias)


def test_a_misshapen_array_is_an_error_even_when_not_strict(net: mp.Model) -> None:
    with refused(net, match="misfits"):
        net.load_state_dict({"0.bias": np.zeros(5, "float32"), "6.bias": np.zeros(3, "float32")}, strict=False)


def test_a_count_that_only_some_frameworks_keep_is_neither_missing_nor_unexpected(net: mp.Model, backend: str) -> None:
    state = weights(backend)
    assert net.load_state_dict(state) == ((), ())
    state["5.num_batches_tracked"] = np.array(3, "int64")
    assert net.load_state_dict(state) == ((), ())


def test_a_state_error_is_a_value_error(net: mp.Model) -> None:
    with refused(net, ValueError):
        net.load_state_dict({})


@pytest.mark.parametrize("value", [None, "text", object(), [[1], [2, 3]], {1: 2}], ids=lambda v: type(v).__name__)
def test_what_is_no_array_is_refused(net: mp.Model, backend: str, value: object) -> None:
    with refused(net, (ValueError, TypeError)):
        net.load_state_dict({**weights(backend), "6.bias": value}, cast=True)


def test_a_state_that_fails_while_it_is_looked_at_changes_nothing(net: mp.Model, backend: str) -> None:
    class Failing(Mapping[str, np.ndarray]):
        inner = weights(backend)

        def __getitem__(self, name: str) -> np.ndarray:
            if name == "6.bias":
                raise OSError("gone")
            return self.inner[name]

        def __iter__(self) -> Iterator[str]:
            return iter(self.inner)

        def __len__(self) -> int:
            return len(self.inner)

    with refused(net, OSError, "gone"):
        net.load_state_dict(Failing())


# -- dtypes


def test_cast_converts_floats(net: mp.Model, backend: str) -> None:
    state = {name: a.astype("float64") + 1e-12 for name, a in weights(backend).items()}
    net.load_state_dict(state, cast=True)
    for name, array in state.items():
        assert np.array_equal(net[name].numpy(), array.astype("float32"))


def test_bfloat16_is_cast_too(net: mp.Model, backend: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    state = {name: a.astype(ml_dtypes.bfloat16) for name, a in weights(backend).items()}
    with refused(net, match="'0.weight' is float32; the state has bfloat16"):
        net.load_state_dict(state)
    net.load_state_dict(state, cast=True)
    assert np.array_equal(net["0.weight"].numpy(), state["0.weight"].astype("float32"))


def test_no_cast_loses_an_imaginary_part(net: mp.Model, backend: str) -> None:
    state = {**weights(backend), "6.bias": np.ones(2, "complex64")}
    with refused(net, match=r"'6\.bias' is float32; complex64 values cannot be converted"):
        net.load_state_dict(state, cast=True)


@pytest.mark.parametrize("scale", ["0.scale", "0.weight_scale", "0.weight.scale", "0.zero_point"])
def test_codes_beside_a_scale_are_no_weights(net: mp.Model, backend: str, scale: str) -> None:
    state = {**weights(backend), scale: np.ones(1, "float32")}
    for dtype in ("int8", "uint8"):
        state["0.weight"] = weights(backend)["0.weight"].astype(dtype)
        for cast in (False, True):
            with refused(net, match=f"'0.weight' holds codes .{dtype}., which {scale!r}") as error:
                net.load_state_dict(state, strict=False, cast=cast)
            assert "cast=True" not in str(getattr(error, "value", ""))


@pytest.mark.parametrize("flavour", CASES)
def test_whole_numbers_never_wrap_round(flavour: str) -> None:
    net = FLAVOURS[flavour]({"w": np.arange(3, dtype="int8")})
    net.load_state_dict({"w": np.array([-128, 0, 127], "int64")}, cast=True)
    assert net["w"].numpy().tolist() == [-128, 0, 127]
    with refused(net, match="int64 values beyond its range"):
        net.load_state_dict({"w": np.array([0, 0, 128], "int64")}, cast=True)
    with refused(net, match="float32 values cannot be converted"):
        net.load_state_dict({"w": np.zeros(3, "float32")}, cast=True)


def test_same_bits() -> None:
    a = np.array([1.0, np.nan, 0.0])
    assert same(a, a.copy()) and same(np.zeros((0, 3)), np.zeros((0, 3)))
    assert not same(a, np.array([1.0, np.nan, -0.0])) and not same(a, a.astype("float32")) and not same(a, a[:2])
    assert same(a + 0j, a + 0j) and not same(a * 1j, a)
