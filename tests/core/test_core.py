"""The core with no framework: paths, layouts, initialisers, plans, the registry and the errors."""

from __future__ import annotations

import importlib.metadata
import math
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import multiparam as mp
from multiparam import errors, initializers, nn, paths
from multiparam.core import layers as layer_kinds
from multiparam.core import layouts, registry
from multiparam.core.architecture import Node, data_permutation, infer_shapes

# -- paths


def test_a_path_reads_as_its_segments_joined_by_dots() -> None:
    assert paths.text(("0", "block 1", "weight")) == "0.block 1.weight"


def test_a_dot_inside_a_segment_is_escaped() -> None:
    assert paths.text(("a.b", "weight")) == r"a\.b.weight"


def test_a_backslash_inside_a_segment_is_escaped() -> None:
    assert paths.text(("a\\", "weight")) == r"a\\.weight"


segments = st.lists(st.text("a.\\", max_size=4), min_size=1, max_size=4).map(tuple)


@settings(deadline=None)
@given(segments, segments)
def test_two_paths_never_share_a_text(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert (paths.text(one) == paths.text(other)) == (one == other)


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("0.block 1.bias", "*.bias", True),
        ("0.block 1.bias", "0.*", True),
        ("0.block 1.bias", "0.block ?.bias", True),
        ("0.block 1.bias", "0.block [02].bias", False),
        ("0.block 1.bias", "bias", False),
        ("2.weight", "0.*", False),
        ("0.Weight", "0.weight", False),
        ("layers[0].weight", "layers[0].weight", True),
    ],
)
def test_a_glob_matches_whole_names_and_its_star_crosses_dots(name: str, pattern: str, expected: bool) -> None:
    assert paths.matches(name, pattern) is expected


def test_did_you_mean_names_the_nearest() -> None:
    assert paths.did_you_mean("2.wieght", ["0.bias", "2.weight"]) == "Did you mean '2.weight'?"


def test_did_you_mean_lists_what_there_is_when_nothing_is_near() -> None:
    assert paths.did_you_mean("zzz", ["a", "b"]) == "There are: 'a', 'b'."


def test_did_you_mean_cuts_a_long_list_short() -> None:
    sentence = paths.did_you_mean("zzz", [str(i) for i in range(9)])
    assert sentence == "There are: '0', '1', '2', '3', '4', '5', ...."


def test_did_you_mean_says_so_when_there_is_nothing() -> None:
    assert paths.did_you_mean("weight", []) == "There are none."


# -- layouts


@pytest.mark.parametrize(
    ("native", "canonical", "ndim", "expected"),
    [
        ("IO", "OI", 2, (1, 0)),
        ("OI", "OI", 2, None),
        ("*IO", "OI*", 3, (2, 1, 0)),
        ("*IO", "OI*", 5, (4, 3, 0, 1, 2)),
        ("O*I", "OI*", 4, (0, 3, 1, 2)),
        ("*", "*", 3, None),
        ("C", "C", 1, None),
    ],
)
def test_axes_is_the_permutation_from_native_to_canonical(
    native: str, canonical: str, ndim: int, expected: tuple[int, ...] | None
) -> None:
    assert layouts.axes(native, canonical, ndim) == expected


@settings(deadline=None)
@given(st.permutations("OI*"), st.permutations("OI*"), st.integers(2, 5))
def test_axes_and_back_is_no_change(native: list[str], canonical: list[str], ndim: int) -> None:
    there = layouts.axes("".join(native), "".join(canonical), ndim)
    back = layouts.axes("".join(canonical), "".join(native), ndim)
    assert (None if there is None else layouts.inverse(there)) == back


@settings(deadline=None)
@given(st.integers(1, 5).flatmap(lambda n: st.permutations(range(n))))
def test_the_inverse_undoes_a_permutation(order: list[int]) -> None:
    array = np.arange(math.factorial(len(order) + 1)).reshape(tuple(range(2, len(order) + 2)))
    back = layouts.inverse(tuple(order))
    assert back is not None
    assert np.array_equal(array.transpose(order).transpose(back), array)


class Known:
    pass


class Derived(Known):
    pass


def test_a_known_leaf_gets_its_canonical_name_and_permutation() -> None:
    layers = layer_kinds.Layers({Known: "conv"}, {"conv": {"kernel": ("weight", "*IO")}})
    expected = ("weight", layouts.Layout(("transpose", (3, 2, 0, 1))))
    assert layers.canonical(Known, "kernel", (3, 3, 8, 4)) == expected
    assert layers.canonical(Derived, "kernel", (3, 3, 8, 4)) == expected
    assert layers.of(Derived) == "conv"


def test_an_unknown_leaf_or_kind_keeps_its_name_and_layout() -> None:
    layers = layer_kinds.Layers({Known: "linear"}, {"linear": {"kernel": ("weight", "IO")}})
    assert layers.canonical(Known, "scale", (2, 3)) == ("scale", None)
    assert layers.canonical(str, "kernel", (2, 3)) == ("kernel", None)
    assert layers.of(str) == "str"


def test_a_layout_is_exact_in_both_directions() -> None:
    native = np.arange(3 * 5 * 4 * 2).reshape(3, 5, 4, 2)
    layout = layouts.Layout(("flip", (0,)), ("transpose", (2, 3, 0, 1)), ("reshape", (4, 2, 3, 5), (8, 1, 3, 5)))
    canonical = layout.apply(native, np)
    assert canonical.shape == layout.shape(native.shape) == (8, 1, 3, 5)
    assert canonical[2 * 3 + 1, 0, 0, 4] == native[2, 4, 3, 1]
    assert np.array_equal(layout.undo(canonical, np), native)


def test_leaves_rank_in_pytorchs_order_and_unknown_ones_last() -> None:
    names = ["extra", "running_var", "bias", "running_mean", "weight"]
    ordered = sorted(names, key=lambda leaf: layer_kinds.rank("batchnorm", leaf))
    assert ordered == ["weight", "bias", "running_mean", "running_var", "extra"]


# -- initialisers


def drawn(function: Callable[..., object], shape: tuple[int, ...], seed: int = 0, name: str = "w") -> np.ndarray:
    return initializers.draw(function, shape, seed=seed, name=name)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 7), (7, 5)), ((8, 3, 5, 5), (75, 200)), ((6, 2, 3), (6, 18)), ((4, 1, 2, 2, 2), (8, 32))],
)
def test_fans_count_the_receptive_field_as_pytorch_does(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert initializers.fans(shape) == expected


@pytest.mark.parametrize("shape", [(), (5,)])
def test_fans_need_two_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(errors.ShapeError, match="two dimensions"):
        initializers.fans(shape)


@pytest.mark.parametrize(
    ("nonlinearity", "slope", "expected"),
    [
        ("linear", None, 1.0),
        ("sigmoid", None, 1.0),
        ("tanh", None, 1.6666666666666667),
        ("relu", None, 1.4142135623730951),
        ("selu", None, 0.75),
        ("leaky_relu", 1.0, 1.0),
        ("leaky_relu", 3.0, 0.4472135954999579),
    ],
)
def test_gains_are_pytorchs(nonlinearity: str, slope: float | None, expected: float) -> None:
    assert initializers.gain(nonlinearity, slope) == pytest.approx(expected, rel=1e-15)


def test_an_unknown_gain_or_mode_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="swish"):
        initializers.gain("swish")
    with pytest.raises(ValueError, match="fan_avg"):
        initializers.kaiming_normal(mode="fan_avg")


WIDE = (200, 50, 3, 3)  # fan_in 450, fan_out 1800

# initialiser -> the half width of its interval on WIDE, worked out by hand
UNIFORM = {
    "uniform": (initializers.uniform(-0.25, 0.25), 0.25),
    "xavier": (initializers.xavier_uniform(), math.sqrt(6 / 2250)),
    "xavier with a gain": (initializers.xavier_uniform(gain=2), 2 * math.sqrt(6 / 2250)),
    "kaiming": (initializers.kaiming_uniform(nonlinearity="relu"), math.sqrt(2) * math.sqrt(3 / 450)),
    "kaiming, fan out": (initializers.kaiming_uniform(mode="fan_out"), math.sqrt(2) * math.sqrt(3 / 1800)),
    "pytorch's linear": (initializers.kaiming_uniform(a=math.sqrt(5)), 1 / math.sqrt(450)),
    "default conv bias": (initializers.default("conv", "bias", WIDE), 1 / math.sqrt(450)),
}


@pytest.mark.parametrize("case", UNIFORM)
def test_a_uniform_initialiser_fills_its_interval(case: str) -> None:
    function, half = UNIFORM[case]
    values = drawn(function, WIDE)
    assert np.abs(values).max() <= np.float32(half)
    assert values.max() > 0.999 * half
    assert values.min() < -0.999 * half
    assert values.std() == pytest.approx(half / math.sqrt(3), rel=0.01)


GAUSSIAN = {
    "normal": (initializers.normal(0.5, 0.02), 0.5, 0.02),
    "xavier": (initializers.xavier_normal(), 0.0, math.sqrt(2 / 2250)),
    "xavier with a gain": (initializers.xavier_normal(5 / 3), 0.0, 5 / 3 * math.sqrt(2 / 2250)),
    "kaiming": (initializers.kaiming_normal(nonlinearity="relu"), 0.0, math.sqrt(2 / 450)),
    "kaiming, fan out": (initializers.kaiming_normal(mode="fan_out"), 0.0, math.sqrt(2 / 1800)),
    "embedding": (initializers.default("embedding", "weight", WIDE), 0.0, 1.0),
}


@pytest.mark.parametrize("case", GAUSSIAN)
def test_a_gaussian_initialiser_has_its_mean_and_deviation(case: str) -> None:
    function, mean, std = GAUSSIAN[case]
    values = drawn(function, WIDE).astype(np.float64)  # 90,000 numbers: the mean is within 5 / sqrt(90000) deviations
    assert values.mean() == pytest.approx(mean, abs=std / 60)
    assert values.std() == pytest.approx(std, rel=0.02)
    assert np.mean(np.abs(values - mean) < std) == pytest.approx(0.6827, abs=0.01)


def test_zeros_ones_and_constant_fill_every_element() -> None:
    assert drawn(initializers.zeros(), (2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert drawn(initializers.ones(), (2,)).tolist() == [1, 1]
    assert drawn(initializers.constant(-1.5), (2,)).tolist() == [-1.5, -1.5]


@pytest.mark.parametrize(
    "function", [initializers.zeros(), initializers.uniform(), initializers.normal(), initializers.xavier_normal()]
)
def test_numbers_are_drawn_in_float32(function: initializers.Initializer) -> None:
    assert drawn(function, (3, 4)).dtype == np.float32


@pytest.mark.parametrize(
    ("kind", "leaf", "expected"),
    [("batchnorm", "weight", 1), ("batchnorm", "running_var", 1), ("batchnorm", "running_mean", 0),
     ("layernorm", "weight", 1), ("layernorm", "bias", 0)],
)  # fmt: skip
def test_normalisation_layers_start_as_pytorchs(kind: str, leaf: str, expected: float) -> None:
    assert drawn(initializers.default(kind, leaf, (3,)), (3,)).tolist() == [expected] * 3


def test_the_same_seed_and_name_draw_the_same_numbers_whatever_is_drawn_between() -> None:
    before = drawn(initializers.normal(), (5, 4), name="a")
    drawn(initializers.normal(), (7,), name="b")
    assert np.array_equal(drawn(initializers.normal(), (5, 4), name="a"), before)


def test_another_seed_or_another_name_draws_other_numbers() -> None:
    first = drawn(initializers.normal(), (50,), seed=0, name="a")
    assert not np.isin(first, drawn(initializers.normal(), (50,), seed=1, name="a")).any()
    assert not np.isin(first, drawn(initializers.normal(), (50,), seed=0, name="b")).any()


def test_a_users_function_draws_from_the_seed_and_the_name_too() -> None:
    def coins(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, 2, shape)

    assert np.array_equal(drawn(coins, (64,), name="a"), drawn(coins, (64,), name="a"))
    assert not np.array_equal(drawn(coins, (64,), name="a"), drawn(coins, (64,), name="b"))


@pytest.mark.parametrize(
    "function", [initializers.normal(0.1, 0.3), initializers.uniform(-1, 1), initializers.truncated_normal(std=0.7)]
)
def test_a_large_array_is_its_chunks_drawn_one_after_another(function: initializers.Initializer) -> None:
    shape = (2 * initializers.CHUNK + 6) // 3, 3
    lengths = [initializers.CHUNK, initializers.CHUNK, shape[0] * 3 - 2 * initializers.CHUNK]
    serial = [function((n,), initializers.generator(4, "w", chunk)) for chunk, n in enumerate(lengths)]
    assert np.array_equal(drawn(function, shape, seed=4).ravel(), np.concatenate(serial))


def test_the_bounds_of_a_large_array_come_from_its_whole_shape() -> None:
    values = drawn(initializers.xavier_uniform(), (1000, 500))
    assert np.abs(values).max() == pytest.approx(math.sqrt(6 / 1500), rel=1e-4)


def test_chunks_do_not_repeat_each_other() -> None:
    values = drawn(initializers.normal(), (initializers.CHUNK + 100,))
    assert not np.array_equal(values[-100:], values[:100])


@pytest.mark.needs("torch")
def test_a_large_array_is_drawn_into_the_models_own_memory_with_the_same_numbers() -> None:
    import torch

    linear = torch.nn.Linear(600, 500)
    net, expected = mp.wrap(linear), drawn(initializers.normal(0.5, 2.0), (500, 600), name="weight")
    place, loss = linear.weight.data_ptr(), linear(torch.ones(1, 600, requires_grad=True)).sum()
    net.init(mp.init.normal(0.5, 2.0), "weight", seed=0)
    assert linear.weight.data_ptr() == place
    np.testing.assert_array_equal(linear.weight.detach().numpy(), expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # what it has saved is no longer there
    wide = mp.wrap(torch.nn.Linear(600, 500, dtype=torch.float64)).init(mp.init.normal(0.5, 2.0), "weight", seed=0)
    np.testing.assert_array_equal(wide["weight"].numpy(), expected.astype("float64"))


@pytest.mark.parametrize("shape", [(4, 10), (10, 4), (5, 5), (12, 2, 3, 3)])
def test_an_orthogonal_matrix_is_orthogonal(shape: tuple[int, ...]) -> None:
    q = drawn(initializers.orthogonal(gain=3), shape).reshape(shape[0], -1) / 3
    gram = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
    assert np.allclose(gram, np.eye(len(gram)), atol=1e-14)


def test_a_truncated_normal_stays_in_its_absolute_bounds() -> None:
    values = drawn(initializers.truncated_normal(mean=0.25, std=1, a=-0.5, b=1), (20_000,))
    assert values.min() >= -0.5
    assert values.max() <= 1
    assert values.min() < -0.49
    assert values.max() > 0.99
    assert values.mean() == pytest.approx(0.25, abs=0.01)  # the bounds are symmetric around the mean


@pytest.mark.parametrize(("a", "b"), [(2, 2), (3, 1), (20, 30)])
def test_an_interval_with_nothing_of_the_normal_in_it_is_refused(a: float, b: float) -> None:
    with pytest.raises(ValueError, match="truncated_normal"):
        initializers.truncated_normal(0, 1, a, b)


class Counting:
    """A generator that refuses to go on drawing without end."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.draws = 0

    def standard_normal(self, size: object = None, dtype: type = np.float32, out: np.ndarray | None = None) -> object:
        self.draws += 1
        assert self.draws < 10_000, "10,000 redraws and still not done"
        return self.rng.standard_normal(size, dtype, out)

    def __getattr__(self, name: str) -> object:
        return getattr(self.rng, name)


def test_a_truncated_normal_far_in_the_tail_is_refused_or_drawn_but_never_endless() -> None:
    try:
        function = initializers.truncated_normal(0, 1, a=7, b=9)
    except ValueError:
        return
    values = function((4,), Counting())  # type: ignore[arg-type]
    assert values.min() >= 7
    assert values.max() <= 9


def test_a_users_function_of_the_wrong_shape_is_a_shape_error_that_names_both() -> None:
    def wrong(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return rng.random(shape[::-1])

    with pytest.raises(errors.ShapeError, match=r"'wrong' gave shape \(3, 2\) for '0.weight', which has \(2, 3\)"):
        drawn(wrong, (2, 3), name="0.weight")


COMPLEX_INITIALISERS = [
    (initializers.normal(1.0, 0.5), 1.0, 0.25),
    (initializers.uniform(-1, 3), 1.0, 16 / 12),
    (initializers.kaiming_normal(), 0.0, 2 / 100),
    (initializers.xavier_uniform(), 0.0, 2 / 700),
    (initializers.truncated_normal(0.0, 1.0), 0.0, 0.7737),
    (initializers.constant(3.0), 3.0, 0.0),
]


@pytest.mark.parametrize(("function", "mean", "variance"), COMPLEX_INITIALISERS, ids=repr)
def test_complex_numbers_have_the_real_ones_variance_half_in_each_part(
    function: initializers.Initializer, mean: float, variance: float
) -> None:
    values = initializers.draw(function, (600, 100), seed=0, name="w", imaginary=True)
    assert values.dtype == "complex64" and abs(values.mean() - mean) < 0.02
    for part in ((values - mean).real, values.imag):
        assert np.mean(part**2) == pytest.approx(variance / 2, rel=0.03, abs=1e-12)


def test_a_complex_orthogonal_matrix_is_unitary() -> None:
    for shape in ((4, 6), (6, 4), (5, 5)):
        q = initializers.draw(initializers.orthogonal(2.0), shape, seed=0, name="w", imaginary=True) / 2
        small = q @ q.conj().T if shape[0] <= shape[1] else q.conj().T @ q
        np.testing.assert_allclose(small, np.eye(min(shape)), atol=1e-12)
        assert np.abs(q.imag).max() > 0.1


@pytest.mark.parametrize(
    "function",
    [initializers.xavier_uniform(), initializers.kaiming_normal(), initializers.orthogonal()],
    ids=repr,
)
def test_an_initialiser_that_needs_fans_refuses_one_dimension(function: initializers.Initializer) -> None:
    with pytest.raises(errors.ShapeError, match=r"\(5,\)"):
        function.check((5,))


# -- plans


def shapes(spec: nn.Layer, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [node.shape for node in infer_shapes(spec, shape).leaves()]


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(5), (7,), (5,)),
        (nn.Linear(5), (2, 3, 7), (2, 3, 5)),
        (nn.Conv(8, 3), (1, 28, 28), (8, 26, 26)),
        (nn.Conv(8, 3, padding=1), (1, 28, 28), (8, 28, 28)),
        (nn.Conv(8, 3, stride=2, padding=1), (1, 28, 28), (8, 14, 14)),
        (nn.Conv(8, 3, stride=2), (1, 28, 27), (8, 13, 13)),
        (nn.Conv(8, 3, dilation=2), (1, 28, 28), (8, 24, 24)),
        (nn.Conv(8, (3, 5), stride=(1, 2), padding=(0, 2)), (1, 10, 10), (8, 8, 5)),
        (nn.Conv(6, 3, groups=2), (4, 9), (6, 7)),
        (nn.Conv(6, 2), (3, 5, 6, 7), (6, 4, 5, 6)),
        (nn.MaxPool(2), (3, 9, 8), (3, 4, 4)),
        (nn.MaxPool(3, stride=1), (3, 9), (3, 7)),
        (nn.AvgPool(3, stride=2, padding=1), (3, 8, 9), (3, 4, 5)),
        (nn.BatchNorm(), (3, 8, 9), (3, 8, 9)),
        (nn.LayerNorm(), (8, 9), (8, 9)),
        (nn.Embedding(11, 4), (6,), (6, 4)),
        (nn.Flatten(), (3, 8, 9), (216,)),
        (nn.Dropout(), (3, 8), (3, 8)),
    ],
)
def test_a_layers_output_shape_is_inferred(layer: nn.Layer, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert infer_shapes(layer, shape).root.shape == expected


def test_shapes_flow_through_a_convolutional_net() -> None:
    spec = nn.Sequential(
        nn.Conv(6, 5, padding=2), nn.AvgPool(2), nn.Conv(16, 5), nn.AvgPool(2), nn.Flatten(), nn.Linear(10)
    )
    assert shapes(spec, (1, 28, 28)) == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (400,), (10,)]


def test_paths_and_positions_follow_the_nesting() -> None:
    spec = nn.Sequential(nn.ReLU(), nn.Sequential(("block", nn.Residual(nn.Linear(3)))))
    paths_and_positions = [(node.path, node.positions) for node in infer_shapes(spec, (3,)).leaves()]
    assert paths_and_positions == [(("0",), (0,)), (("1", "block", "body"), (1, 0, 0))]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv(8, 9),
        nn.Conv(8, 3, groups=2),
        nn.Conv(8, (3, 3, 3)),
        nn.MaxPool(9),
        nn.MaxPool(2, padding=2),
        nn.Sequential(nn.Flatten(), nn.Conv(8, 3)),
    ],
    ids=["kernel too large", "groups", "kernel of another rank", "pool too large", "pool padding", "no channels"],
)
def test_a_layer_that_does_not_fit_is_a_shape_error_that_names_its_path(layer: nn.Layer) -> None:
    spec = nn.Sequential(nn.ReLU(), ("block", nn.Sequential(layer)))
    with pytest.raises(errors.ShapeError, match=r"^At 'block\.0"):
        infer_shapes(spec, (3, 8, 8))


def test_too_many_spatial_axes_are_refused() -> None:
    with pytest.raises(errors.ShapeError, match="1 to 3 spatial axes"):
        infer_shapes(nn.Conv(8, 1), (3, 2, 2, 2, 2))


def test_a_residual_whose_body_changes_the_shape_is_refused() -> None:
    with pytest.raises(errors.ShapeError, match=r"Residual at '1'.*\(4,\) into \(5,\)"):
        infer_shapes(nn.Sequential(nn.Linear(4), nn.Residual(nn.Linear(5))), (3,))


def test_a_shared_layer_with_different_inputs_is_refused_and_both_places_named() -> None:
    shared = nn.Linear(8)
    with pytest.raises(errors.ShapeError, match=r"'0' and '2'.*\(3,\) and \(5,\)"):
        infer_shapes(nn.Sequential(shared, nn.Linear(5), shared), (3,))


def test_a_shared_layer_is_known_to_be_shared() -> None:
    shared = nn.Linear(8)
    assert infer_shapes(nn.Sequential(nn.Linear(8), shared, shared), (8,)).shared == {id(shared)}


def test_equal_descriptions_are_different_layers() -> None:
    assert infer_shapes(nn.Sequential(nn.Linear(8), nn.Linear(8)), (8,)).shared == frozenset()


def test_what_is_no_layer_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"'1'.*str"):
        nn.Sequential(nn.ReLU(), "relu")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="int"):
        infer_shapes(3, (4,))  # type: ignore[arg-type]


def test_an_empty_sequence_or_two_children_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        nn.Sequential()
    with pytest.raises(ValueError, match="one name"):
        nn.Sequential(("a", nn.ReLU()), ("a", nn.ReLU()))


def marks(spec: nn.Layer, shape: tuple[int, ...]) -> dict[str, tuple[str | None, str | None]]:
    """path -> (convert, after), where either is set."""
    found = {}

    def visit(node: Node) -> None:
        if node.convert or node.after:
            found[".".join(node.path)] = (node.convert, node.after)
        for child in node.children:
            visit(child)

    visit(infer_shapes(spec, shape).root)
    return found


def test_a_conv_net_turns_its_data_once_on_the_way_in_and_once_at_flatten() -> None:
    spec = nn.Sequential(nn.Conv(4, 3), nn.BatchNorm(), nn.ReLU(), nn.MaxPool(2), nn.Flatten(), nn.Linear(2))
    assert marks(spec, (1, 8, 8)) == {"0": ("last", None), "4": ("first", None)}


def test_a_net_that_ends_in_images_turns_them_back() -> None:
    assert marks(nn.Sequential(nn.Conv(4, 3), nn.ReLU()), (1, 8, 8)) == {"0": ("last", None), "": (None, "first")}


def test_a_single_conv_turns_in_and_back() -> None:
    assert marks(nn.Conv(4, 3), (1, 8, 8)) == {"": ("last", "first")}


def test_a_net_without_space_turns_nothing() -> None:
    assert marks(nn.Sequential(nn.Linear(4), nn.BatchNorm(), nn.Dropout(), nn.Softmax()), (3,)) == {}


def test_a_linear_over_images_sees_the_canonical_last_axis() -> None:
    assert marks(nn.Sequential(nn.Conv(4, 3), nn.Linear(2)), (1, 8, 8)) == {"0": ("last", None), "1": ("first", None)}


def test_a_residual_of_convs_between_convs_turns_nothing() -> None:
    spec = nn.Sequential(nn.Conv(4, 1), nn.Residual(nn.Conv(4, 3, padding=1)), nn.MaxPool(2))
    assert marks(spec, (3, 8, 8)) == {"0": ("last", None), "": (None, "first")}


def test_a_residual_whose_body_turns_its_data_gives_back_the_order_it_got() -> None:
    spec = nn.Sequential(nn.Conv(4, 1), nn.Residual(nn.Softmax()), nn.MaxPool(2))
    expected = {"0": ("last", None), "1.body": ("first", None), "1": (None, "last"), "": (None, "first")}
    assert marks(spec, (3, 8, 8)) == expected


def test_a_residual_of_a_conv_at_the_top_adds_in_canonical_order() -> None:
    assert marks(nn.Residual(nn.Conv(3, 3, padding=1)), (3, 8, 8)) == {"body": ("last", None), "": (None, "first")}


def test_a_shared_container_looks_the_same_at_each_place() -> None:
    block = nn.Sequential(nn.Conv(4, 3, padding=1), nn.ReLU())
    spec = nn.Sequential(nn.Conv(4, 1), block, block, nn.Flatten())
    assert marks(spec, (3, 8, 8)) == {
        "0": ("last", None),
        "1": ("first", "first"),  # it is called with channels first at both places
        "1.0": ("last", None),
        "2": (None, "first"),
        "2.0": ("last", None),
    }


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 9), (3, 8, 9, 10)])
def test_turning_channels_last_and_back_is_no_change(shape: tuple[int, ...]) -> None:
    batch = np.arange(2 * math.prod(shape)).reshape(2, *shape)
    last = batch.transpose(data_permutation(shape, "last"))
    assert last.shape == (2, *shape[1:], 3)
    assert np.array_equal(last.transpose(data_permutation(shape, "first")), batch)


# -- the registry


class Point:
    """An entry point that needs no installed package."""

    def __init__(self, info: registry.BackendInfo, value: str | None = None) -> None:
        self.name = info.name
        self.value = value or f"{info.name}_package:backend"
        self._info = info

    def load(self) -> registry.BackendInfo:
        return self._info


def fake(name: str, *, requires: tuple[str, ...] = ("json",), adapter: str = "") -> registry.BackendInfo:
    return registry.BackendInfo(
        name,
        recognises=(f"{name}_frame",),
        arrays=(f"{name}_frame",),
        requires=requires,
        adapter=adapter or f"{name}_package.adapter:Adapter",
        install=f'pip install "{name}"',
    )


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Call it with backends: they are the only ones registered, and nothing is selected."""
    monkeypatch.setattr(registry, "_process", [])
    monkeypatch.delenv(registry.VARIABLE, raising=False)

    def register(*found: registry.BackendInfo | Point) -> None:
        points = [item if isinstance(item, Point) else Point(item) for item in found]
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda *, group: points if group == registry.GROUP else []
        )
        registry.registered.cache_clear()

    yield register
    registry.registered.cache_clear()


def test_a_third_partys_backend_registers_like_ours(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    class Adapter:
        pass

    module = types.ModuleType("fifth_package.adapter")
    module.Adapter = Adapter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fifth_package.adapter", module)
    monkeypatch.setitem(sys.modules, "fifth_package", types.ModuleType("fifth_package"))
    install(fake("fifth"))
    assert isinstance(registry.info("fifth").load(), Adapter)
    assert registry.info("fifth").load() is registry.info("fifth").load()


def test_ours_come_before_third_parties(install: Install) -> None:
    install(fake("theirs"), fake("ours", adapter="multiparam_ours.adapter:Adapter"))
    assert list(registry.backends()) == ["ours", "theirs"]


def test_two_packages_of_one_name_are_an_error_that_names_both(install: Install) -> None:
    install(Point(fake("a"), "one:backend"), Point(fake("a"), "other:backend"))
    with pytest.raises(errors.BackendUnknown, match="'a': one:backend and other:backend"):
        registry.backends()


def test_one_package_seen_twice_is_no_error(install: Install) -> None:
    install(Point(fake("a")), Point(fake("a")))
    assert list(registry.backends()) == ["a"]


def test_the_argument_comes_before_the_with_block(install: Install) -> None:
    install(fake("a"), fake("b"))
    with registry.use("b"):
        assert registry.selected("a") == "a"


def test_the_with_block_comes_before_use(install: Install) -> None:
    install(fake("a"), fake("b"))
    registry.use("a")
    with registry.use("b"):
        assert registry.selected() == "b"
    assert registry.selected() == "a"


def test_use_comes_before_the_environment(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(fake("a"), fake("b"))
    monkeypatch.setenv(registry.VARIABLE, "b")
    registry.use("a")
    assert registry.selected() == "a"


def test_the_environment_comes_before_the_only_one_installed(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(fake("a"), fake("b", requires=("no_such_module",)))
    monkeypatch.setenv(registry.VARIABLE, "b")
    assert registry.selected() == "b"


def test_the_only_one_installed_needs_no_choice(install: Install) -> None:
    install(fake("a"), fake("b", requires=("no_such_module",)))
    assert registry.selected() == "a"


def test_with_blocks_nest(install: Install) -> None:
    install(fake("a"), fake("b"))
    with registry.use("a"):
        with registry.use("b"):
            assert registry.selected() == "b"
        assert registry.selected() == "a"


def test_a_with_block_ends_when_it_raises(install: Install) -> None:
    install(fake("a"), fake("b"))
    registry.use("a")
    with pytest.raises(ZeroDivisionError), registry.use("b"):
        raise ZeroDivisionError
    assert registry.selected() == "a"


def test_several_installed_and_none_selected_is_an_error_that_says_how_to_select(install: Install) -> None:
    install(fake("a"), fake("b"))
    with pytest.raises(errors.BackendUnknown, match=r"\(a, b\).*mp\.use\('a'\).*MULTIPARAM_BACKEND"):
        registry.selected()


def test_none_installed_is_an_error_with_every_pip_line(install: Install) -> None:
    install(fake("a", requires=("no_such_module",)), fake("b", requires=("no_such_module",)))
    with pytest.raises(errors.BackendMissing, match=r'pip install "a"\n  pip install "b"'):
        registry.selected()


@pytest.mark.parametrize("how", ["argument", "use", "environment"])
def test_an_unknown_name_gets_a_suggestion(install: Install, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    install(fake("alpha"), fake("beta"))
    if how == "environment":
        monkeypatch.setenv(registry.VARIABLE, "alhpa")
    with pytest.raises(errors.BackendUnknown, match=r"No backend named 'alhpa'. Did you mean 'alpha'\?"):
        registry.use("alhpa") if how == "use" else registry.selected("alhpa" if how == "argument" else None)


def test_a_missing_backend_names_what_is_missing_and_the_pip_line(install: Install) -> None:
    install(fake("a", requires=("json", "no_such_module")))
    with pytest.raises(errors.BackendMissing, match=r'no_such_module not found.*Try: pip install "a"'):
        registry.info("a").load()


def test_use_of_a_missing_backend_leaves_the_selection_as_it_was(install: Install) -> None:
    install(fake("a"), fake("b", requires=("no_such_module",)))
    registry.use("a")
    with pytest.raises(errors.BackendMissing):
        registry.use("b")
    with pytest.raises(errors.BackendUnknown):
        registry.use("c")
    assert registry.selected() == "a"


def test_a_broken_installation_shows_its_own_error(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_adapter.py").write_text("raise OSError('libfoo.so.5: cannot open')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    install(fake("a", adapter="broken_adapter:Adapter"))
    with pytest.raises(errors.BackendMissing, match=r"does not import: OSError: libfoo\.so\.5") as caught:
        registry.info("a").load()
    assert type(caught.value.__cause__) is OSError


def test_a_status_is_the_version_and_true_when_installed(install: Install) -> None:
    install(fake("a", requires=("numpy",)))
    status = registry.backends()["a"]
    assert status == np.__version__
    assert status
    assert status.installed is True


def test_a_status_is_the_pip_line_and_false_when_not_installed(install: Install) -> None:
    install(fake("a", requires=("no_such_module",)))
    status = registry.backends()["a"]
    assert status == 'not installed. Try: pip install "a"'
    assert not status
    assert status.installed is False


def test_a_module_of_no_distribution_has_an_unknown_version(install: Install) -> None:
    install(fake("a", requires=("json",)))
    assert registry.backends()["a"] == "unknown version"
    assert registry.backends()["a"]


def of_module(name: str, base: type = object) -> type:
    return type("Thing", (base,), {"__module__": name})


def test_an_object_is_recognised_by_its_class_and_by_a_base_class(install: Install) -> None:
    install(fake("a"), fake("b"))
    native = of_module("b_frame.layers")
    assert registry.detect(native()).name == "b"
    assert registry.detect(of_module("users_code", native)()).name == "b"


def test_the_nearest_class_decides(install: Install) -> None:
    install(fake("a"), fake("b"))
    assert registry.detect(of_module("a_frame", of_module("b_frame"))()).name == "a"


def test_only_the_root_module_counts(install: Install) -> None:
    install(fake("a"))
    with pytest.raises(errors.Unrecognised, match=r"'Thing'.*a_frame"):
        registry.detect(of_module("users.a_frame")())
    with pytest.raises(errors.Unrecognised):
        registry.detect(of_module("a_framework")())


def test_a_class_in_place_of_an_instance_gets_a_hint(install: Install) -> None:
    install(fake("a"))
    with pytest.raises(errors.Unrecognised, match="Pass an instance, not the class"):
        registry.detect(of_module("a_frame"))


def test_an_array_nobody_knows_is_none(install: Install) -> None:
    install(fake("a"))
    assert registry.detect_array(3) is None
    found = registry.detect_array(of_module("a_frame")())
    assert found is not None
    assert found.name == "a"


# -- errors


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ParameterNotFound, KeyError),
        (errors.PositionError, IndexError),
        (errors.ShapeError, ValueError),
        (errors.DtypeError, TypeError),
        (errors.UnknownShapes, RuntimeError),
        (errors.TieError, ValueError),
        (errors.BackendMissing, ImportError),
        (errors.BackendUnknown, ValueError),
        (errors.Unrecognised, TypeError),
        (errors.Unsupported, NotImplementedError),
    ],
)
def test_an_error_is_ours_and_the_builtin_a_caller_expects(error: type, builtin: type) -> None:
    assert issubclass(error, errors.MultiparamError)
    assert issubclass(error, builtin)


def test_no_error_of_ours_is_without_a_builtin() -> None:
    ours = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.MultiparamError)]
    builtin = (KeyError, IndexError, ValueError, TypeError, RuntimeError, ImportError)
    assert all(issubclass(error, builtin) for error in ours if error is not errors.MultiparamError)


def test_a_missing_parameters_message_is_not_shown_as_a_repr() -> None:
    assert str(errors.ParameterNotFound("No parameter 'x'.")) == "No parameter 'x'."


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: initializers.gain("swish"),
        lambda: initializers.kaiming_normal(mode="fan_avg"),
        lambda: initializers.truncated_normal(a=2, b=1),
        lambda: nn.GELU("erf"),
        lambda: nn.Sequential(),
        lambda: nn.Sequential(3),  # type: ignore[arg-type]
        lambda: infer_shapes(3, (4,)),  # type: ignore[arg-type]
    ],
    ids=["gain", "mode", "truncation", "approximation", "empty", "no layer", "no architecture"],
)
def test_what_the_core_refuses_is_refused_with_an_error_of_ours(wrong: Callable[[], object]) -> None:
    with pytest.raises(errors.MultiparamError):
        wrong()
