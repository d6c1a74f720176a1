"""Causes are recognised by their numbers; other numbers give no hint, and none raises or warns."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from multiparam.comparison import hints
from multiparam.comparison.activations import LayerCall
from multiparam.transfers.plan import Move

Rng = np.random.Generator
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(["float32", "float64"])


def call(inputs: Any, outputs: Any) -> LayerCall:
    return LayerCall("layer", (inputs,), (outputs,))


def at(x: np.ndarray, y: np.ndarray, t: np.ndarray, dtype: str = "float64") -> list[str]:
    x, y, t = (array.astype(dtype) for array in (x, y, t))
    return hints.explain_layer(call(x, y), call(x, t))


def between(y: np.ndarray, a: np.ndarray, b: np.ndarray, dtype: str = "float64", x: Any = None) -> list[str]:
    """What is said where a layer gives ``y`` on both sides, and the next one takes ``a`` there and ``b`` here."""
    y, a, b = (array.astype(dtype) for array in (y, a, b))
    before = call(np.zeros(1, dtype) if x is None else x.astype(dtype), y)
    return hints.explain_between(before, before, call(a, a), call(b, b))


# -- a layer


def normal(x: np.ndarray, axes: Any, less: int = 0, eps: float = 1e-5) -> np.ndarray:
    n = math.prod(x.shape[axis] for axis in axes)
    gap = x - x.mean(axes, keepdims=True)
    return gap / np.sqrt((gap**2).sum(axes, keepdims=True) / (n - less) + eps)  # type: ignore[no-any-return]


def dropped(rng: Rng, x: np.ndarray, p: float) -> np.ndarray:
    return np.where(rng.random(x.shape) < p, 0, x / (1 - p))


def a_dropout(rng: Rng) -> tuple[np.ndarray, ...]:
    y = rng.normal(size=(8, 40))
    return rng.normal(size=(8, 3)), y, dropped(rng, y, 0.2)


def a_dropout_there(rng: Rng) -> tuple[np.ndarray, ...]:
    x, y, t = a_dropout(rng)
    return x, t, y


def a_batch_norm(rng: Rng) -> tuple[np.ndarray, ...]:
    x, scale = rng.normal(0.3, 2, size=(4, 3, 5, 6)), rng.uniform(0.5, 2, (3, 1, 1))
    mean, variance = rng.normal(size=(3, 1, 1)), rng.uniform(0.5, 2, (3, 1, 1))
    return x, (x - mean) / np.sqrt(variance + 1e-5) * scale + 0.1, normal(x, (0, 2, 3)) * scale + 0.1


def a_batch_norm_of_features(rng: Rng) -> tuple[np.ndarray, ...]:
    x, scale = rng.normal(0.3, 2, size=(20, 3)), rng.uniform(0.5, 2, 3)
    mean, variance = rng.normal(size=3), rng.uniform(0.5, 2, 3)
    return x, (x - mean) / np.sqrt(variance + 1e-5) * scale, normal(x, (0,)) * scale


def a_layer_norm(rng: Rng) -> tuple[np.ndarray, ...]:
    x, scale, bias = rng.normal(size=(2, 5, 16)), rng.normal(size=16), rng.normal(size=16)
    return x, normal(x, (2,)) * scale + bias, normal(x, (2,), 1) * scale + bias


def a_linear_layer(rng: Rng) -> tuple[np.ndarray, ...]:
    x, weight, bias = rng.normal(size=(2, 5, 16)), rng.normal(size=(16, 16)), rng.normal(size=16)
    return x, x @ weight + bias, x @ weight.T + bias


def a_factor(rng: Rng) -> tuple[np.ndarray, ...]:
    y = rng.normal(size=(2, 5, 16))
    return rng.integers(0, 9, (2, 5)), y, 4 * y


def a_bias(rng: Rng) -> tuple[np.ndarray, ...]:
    y = rng.normal(size=(2, 7, 5, 6))
    return rng.normal(size=(2, 3, 5, 6)), y, y + rng.normal(size=(7, 1, 1))


def a_shift(rng: Rng) -> tuple[np.ndarray, ...]:
    wide = rng.normal(size=(2, 3, 9, 10))
    return rng.normal(size=(2, 3, 8, 9)), wide[:, :, :-1, :-1], wide[:, :, 1:, 1:]


def a_shift_in_time(rng: Rng) -> tuple[np.ndarray, ...]:
    wide = rng.normal(size=(2, 9, 4))
    return rng.normal(size=(2, 8, 3)), wide[:, :-1], wide[:, 1:]


LAYERS = {
    a_dropout: "dropout (p = 0.2) is still on here",
    a_dropout_there: "dropout (p = 0.2) is still on there",
    a_batch_norm: "it normalises by the batch's statistics here: it is in training mode",
    a_batch_norm_of_features: "it normalises by the batch's statistics here: it is in training mode",
    a_layer_norm: "it divides by the biased variance there, by the unbiased one here",
    a_linear_layer: "it multiplies by the transposed weight",
    a_factor: "its output here is 4 times that there",
    a_bias: "its outputs differ by the same numbers everywhere, as of a bias",
    a_shift: "its output here is that there, shifted by one along axes [2, 3]",
    a_shift_in_time: "its output here is that there, shifted by one along axes [1]",
}
Make = Callable[[Rng], tuple[np.ndarray, ...]]


def named(table: dict[Any, str]) -> Any:
    return pytest.mark.parametrize("make, text", [pytest.param(*row, id=row[0].__name__[2:]) for row in table.items()])


@named(LAYERS)
@settings(max_examples=20)
@given(seed=seeds, dtype=dtypes)
def test_what_a_layer_does_otherwise_is_recognised(make: Make, text: str, seed: int, dtype: str) -> None:
    x, y, t = make(np.random.default_rng(seed))
    assert at(x, y, t, dtype) == [text]
    assert at(x, y, y, dtype) == []


@named(LAYERS)
def test_a_twin_may_have_its_channels_elsewhere(make: Make, text: str) -> None:
    x, y, t = make(np.random.default_rng(0))
    if y.ndim == 4:
        assert hints.explain_layer(call(x, y), call(np.moveaxis(x, 1, -1), np.moveaxis(t, 1, -1))) == [text]


def test_of_axes_of_one_length_the_inputs_say_which_is_which() -> None:
    x, y, t = (a[:3, :, :3, :3] for a in a_batch_norm(np.random.default_rng(0)))
    y, t = x - 1, normal(x, (0, 2, 3))
    assert hints.explain_layer(call(x, y), call(np.moveaxis(x, 1, -1), np.moveaxis(t, 1, -1))) == [LAYERS[a_batch_norm]]


@settings(max_examples=50)
@given(seed=seeds, dtype=dtypes, shape=st.sampled_from([(6, 8), (2, 5, 8), (4, 4, 4), (2, 3, 6, 6), (50, 2)]))
def test_unrelated_outputs_give_no_hint(seed: int, dtype: str, shape: tuple[int, ...]) -> None:
    x, y, t = np.random.default_rng(seed).normal(size=(3, *shape))
    assert at(x, y, t, dtype) == []
    assert between(y, x, t, dtype) == []


def test_what_only_looks_like_a_cause_gives_no_hint() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20, 16))
    assert at(x, y, 2 * np.maximum(y, 0)) == []  # half of the numbers are zero, and all others are doubled
    mask = np.arange(20)[:, None] < 18
    assert at(x, y, 2 * y * mask) == []  # padding, not dropout of a half
    scale, bias = rng.normal(size=(2, 16))
    assert at(x, normal(x, (1,)) * scale + bias, normal(x, (1,), eps=1e-1) * scale + bias) == []
    level = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)  # an eps of 1/15 is what 15 instead of 16 is
    assert at(level, normal(level, (1,), eps=0.0) * scale + bias, normal(level, (1,), eps=1 / 15) * scale + bias) == []
    running = x - x.mean(0)
    assert at(running, running * scale, running * scale + bias) == [LAYERS[a_bias]]  # means are biases here
    assert at(x, y, y * (1 + 1e-9)) == []  # one of them computes in float32


# -- between layers


def test_functions_are_told_apart() -> None:
    y = np.random.default_rng(0).normal(0, 4, size=(5, 16))
    for there, here in itertools.permutations(hints.FUNCTIONS, 2):
        a, b = (hints.FUNCTIONS[name](y) for name in (there, here))
        assert between(y, a, b) == [f"after the layer there is {there} there, {here} here"]


def test_an_activation_may_be_a_part_of_the_layer() -> None:
    y = np.random.default_rng(0).normal(size=(5, 16))
    relu, gelu = (hints.FUNCTIONS[name](y) for name in ("relu", "exact gelu"))
    found = hints.explain_between(call(y, y), call(y, gelu), call(relu, relu), call(gelu, gelu))
    assert found == ["after the layer there is relu there, exact gelu here"]
    found = hints.explain_between(call(y, relu), call(y, y), call(relu, relu), call(gelu, gelu))
    assert found == ["after the layer there is relu there, exact gelu here"]


def halves(y: np.ndarray) -> list[np.ndarray]:
    return np.split(y, 2, -1)


STEPS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray], str]] = {
    "a residual connection": (
        lambda y, x, r: y + x, lambda y, x, r: y, "{} a residual connection there, no activation here",
    ),
    "a factor": (lambda y, x, r: y, lambda y, x, r: 3 * y, "{} no activation there, a factor of 3 here"),
    "a slope": (
        lambda y, x, r: np.maximum(y, 0), lambda y, x, r: np.where(y > 0, y, 0.07 * y),
        "{} relu there, leaky relu (0.07) here",
    ),
    "a gate": (
        lambda y, x, r: halves(y)[0] * hints.FUNCTIONS["sigmoid"](halves(y)[1]),
        lambda y, x, r: halves(y)[1] * hints.FUNCTIONS["sigmoid"](halves(y)[0]),
        "{} sigmoid of its second half times its first there, sigmoid of its first half times its second here",
    ),
    "softmax": (
        lambda y, x, r: hints.FUNCTIONS["softmax"](y),
        lambda y, x, r: np.moveaxis(hints.FUNCTIONS["softmax"](np.moveaxis(y, 1, -1)), -1, 1),
        "{} softmax there, softmax over axis 1 here",
    ),
    "nothing known": (
        lambda y, x, r: y + r, lambda y, x, r: y,
        "{} something else (a residual connection, a mask?) there, no activation here",
    ),
    "a scaled branch": (
        lambda y, x, r: r + y, lambda y, x, r: r + 0.5 * y, "the layer's output counts 0.5 times as much here",
    ),
    "a scaled sum": (
        lambda y, x, r: r + y, lambda y, x, r: 2 * r + y,
        "what is added to the layer's output is 2 times as much here",
    ),
    "heads": (
        lambda y, x, r: y, lambda y, x, r: y.reshape(2, 5, 2, 8).swapaxes(2, 3).reshape(2, 5, 16),
        "its inputs are the same numbers in another order: as 2 x 8 there, transposed here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
@settings(max_examples=20)
@given(seed=seeds, dtype=dtypes)
def test_what_stands_between_layers_is_recognised(name: str, seed: int, dtype: str) -> None:
    y, x, rest = np.random.default_rng(seed).normal(size=(3, 2, 5, 16))
    there, here, text = STEPS[name]
    a, b = there(y, x, rest), here(y, x, rest)
    assert between(y, a, b, dtype, x) == [text.format("after the layer there is")]
    assert between(y, a, a, dtype, x) == []


@settings(max_examples=20)
@given(seed=seeds, dtype=dtypes, p=st.sampled_from([0.1, 0.25, 0.9]))
def test_dropout_between_layers_is_recognised(seed: int, dtype: str, p: float) -> None:
    rng = np.random.default_rng(seed)
    y, rest = rng.normal(size=(2, 20, 40))
    off = dropped(rng, y, p)
    for plain, masked in ((y, off), (rest + y, rest + off), (np.tanh(y), np.tanh(y) * (off != 0) / (1 - p))):
        assert between(y, plain, masked, dtype) == [f"dropout (p = {p:.3g}) is still on here"]
        assert between(y, masked, plain, dtype) == [f"dropout (p = {p:.3g}) is still on there"]


def test_of_a_sum_dropout_of_one_half_does_not_say_where_it_is() -> None:
    rng = np.random.default_rng(0)
    y, rest = rng.normal(size=(2, 20, 40))
    assert between(y, rest + y, rest + dropped(rng, y, 0.5)) == ["dropout (p = 0.5) is still on here or there"]


def test_what_is_added_may_be_the_same_for_the_whole_batch() -> None:
    places, words = np.random.default_rng(0).normal(size=(5, 16)), np.random.default_rng(1).normal(size=(2, 5, 16))
    text = "what is added to the layer's output is 0.25 times as much here"
    assert between(places, 4 * words + places, words + places) == [text]


@pytest.mark.parametrize("shape", [(4, 6, 3, 5), (4, 6, 5, 3), (4, 4, 2, 2)])
def test_the_order_of_flattening_is_recognised(shape: tuple[int, ...]) -> None:
    y = np.random.default_rng(0).normal(size=shape)
    first, last = y.reshape(4, -1), np.moveaxis(y, 1, -1).reshape(4, -1)
    text = "it is flattened with channels first there, last here"
    assert between(y, first, last) == [text]
    assert between(y, np.maximum(first, 0), np.maximum(last, 0)) == [text]
    turned = np.moveaxis(y, 1, -1)  # the reference has its channels last
    found = between(turned, last, first)
    assert found == ["it is flattened with channels last there, first here"]
    means = y.reshape(4, shape[1], -1, 1).mean(3, keepdims=True)
    assert between(means, means.reshape(4, -1), np.maximum(means.reshape(4, -1), 0)) == [
        "after the layer there is no activation there, relu here"
    ]


def test_zeros_around_a_layers_input_are_padding() -> None:
    y = np.random.default_rng(0).normal(size=(2, 3, 6, 6))
    padded = np.pad(np.tanh(y), ((0, 0), (0, 0), (1, 1), (1, 1)))
    found = hints.explain_between(call(y, y), call(y, y), call(np.maximum(y, 0), y), call(padded, y))
    assert found == ["after the layer there is relu there, tanh here"]
    np.testing.assert_array_equal(hints.unpadded(padded, y.shape), np.tanh(y))
    assert hints.unpadded(padded + 1, y.shape).shape == padded.shape
    assert hints.unpadded(y, padded.shape).shape == y.shape


# -- anything at all


def arrays() -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
    kinds = st.sampled_from(["float64", "float32", "float16", "int64", "bool", "complex128", ">f4", "<U1"])
    return kinds.flatmap(lambda kind: hnp.arrays(kind, shapes))


calls = st.lists(arrays(), max_size=2).map(tuple)
anything = st.builds(LayerCall, st.just("layer"), calls, calls)


@st.composite
def alike(draw: st.DrawFn) -> list[LayerCall]:
    """Calls whose arrays have one shape, so that they are looked into."""
    dtype = draw(dtypes)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    numbers = st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0])
    array = hnp.arrays(dtype, shape, elements=numbers)
    few = draw(st.lists(array, min_size=1, max_size=4))
    return [LayerCall("layer", (draw(st.sampled_from(few)),), (draw(st.sampled_from(few)),)) for _ in range(4)]


def unguarded(explain: Any) -> Callable[..., Any]:
    """Without what catches its errors."""
    return explain.__wrapped__  # type: ignore[no-any-return]


def test_a_hint_that_fails_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Move("b", (), "", "", lambda: np.zeros(1))  # no source, whose name a hint would say
    with pytest.raises(IndexError):
        unguarded(hints.explain_values)(np.arange(4.0), np.arange(4.0)[::-1], broken)
    assert hints.explain_values(np.arange(4.0), np.arange(4.0)[::-1], broken) == ""
    assert hints.explain_layer(call([1.0], [2.0]), call([1.0], [3.0])) == []


def test_a_layer_that_gives_other_features_than_it_takes_is_no_residual() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 8, 4)), rng.normal(size=(2, 8, 12))
    before = call(x, y)
    a, b = rng.normal(size=(2, 8, 4)), rng.normal(size=(2, 8, 4))
    assert unguarded(hints.explain_between)(before, before, call(a, a), call(b, b)) == []


@settings(max_examples=200)
@given(st.lists(anything, min_size=4, max_size=4) | alike())
def test_hints_never_raise_or_warn(given: list[LayerCall]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for found in (unguarded(hints.explain_layer)(*given[:2]), unguarded(hints.explain_between)(*given)):
            assert len(found) < 2 and all(isinstance(text, str) and text for text in found)


MOVE = Move("b", ("a",), "", "", lambda: np.zeros(1))


@settings(max_examples=100)
@given(arrays(), arrays())
def test_hints_of_values_never_raise_or_warn(mine: np.ndarray, theirs: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (theirs, mine, mine.T, mine[::-1] if mine.ndim else mine):
            if mine.dtype.kind != "U" and other.dtype.kind != "U":
                assert isinstance(unguarded(hints.explain_values)(mine, other, MOVE), str)


def test_of_large_arrays_a_part_is_looked_at() -> None:
    """Arrays of 10 TB, of which few bytes are in memory: whoever reads them all does not come back."""
    line = np.random.default_rng(0).normal(size=1 << 10)
    y = np.broadcast_to(line, (1 << 15, 1 << 15, 1 << 10))
    t = np.broadcast_to(np.maximum(line, 0), y.shape)
    assert between_views(y, y, t) == ["after the layer there is no activation there, relu here"]
    assert hints.explain_layer(call(y, y), call(y, t)) == []
    assert hints.explain_layer(call(y, t), call(y, np.broadcast_to(3 * t[0, 0], y.shape))) == [
        "its output here is 3 times that there"
    ]
    alike = np.broadcast_to(line[:, None], (1 << 10, 1 << 40))  # a part of it is one number
    assert hints.explain_layer(call(alike, alike), call(alike, np.broadcast_to(line[::-1, None], alike.shape))) == []


def between_views(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> list[str]:
    return hints.explain_between(call(y, y), call(y, y), call(a, a), call(b, b))


def test_coarse_numbers_give_no_hint() -> None:
    y = np.random.default_rng(0).normal(size=(5, 16))
    assert between(y, y, np.maximum(y, 0), "float16") == []
    assert at(y, y, 2 * y, "float16") == []


# -- values


def of(mine: np.ndarray, theirs: np.ndarray) -> str:
    return hints.explain_values(mine, theirs, MOVE)


def test_values_in_another_place_are_named() -> None:
    rng = np.random.default_rng(0)
    square, kernel, gates = rng.normal(size=(4, 4)), rng.normal(size=(4, 4, 3, 3)), rng.normal(size=(12, 5))
    assert of(square, square.T) == "b is the transpose of a"
    assert of(kernel, kernel.swapaxes(0, 1)) == "b has axes [1, 0, 2, 3] of a"
    assert of(kernel, kernel[:, :, ::-1, ::-1]) == "b has the kernel of a flipped"
    for order in ([1, 0], [1, 0, 2], [0, 2, 1, 3]):
        other = np.concatenate([np.split(gates, len(order))[i] for i in order])
        assert of(gates, other) == f"b has the numbers of a in another order: its parts {order}"
    columns = gates.reshape(20, 3)[:12].reshape(3, 12)
    turned = columns.reshape(3, 4, 3).swapaxes(1, 2).reshape(3, 12)
    assert of(columns, turned) == "b has the numbers of a in another order: its columns as 4 x 3, transposed"
    assert of(gates, rng.permuted(gates)) == "b has the numbers of a in another order"
    assert of(gates, gates + 1) == of(gates, rng.normal(size=(12, 5))) == of(gates, gates.T) == ""
    assert of(np.array([0.0, 0, 1, 1]), np.array([0.0, 1, 0, 1])) == "b has the numbers of a in another order"
