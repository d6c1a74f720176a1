"""What judges, held against truth written by hand, with numpy alone: distances, bounds, checks, layers, recordings.

Distances are made of exact numbers: where the largest one of the truth is 1, ``1 + n * EPS`` is n eps away.
"""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from multiparam import errors
from multiparam.comparison import activations, by_plan, hints, judge, models, networks, pairs
from multiparam.comparison.activations import ActivationCache, LayerCall, digest, select_layers, to_layer_call
from multiparam.comparison.divergence import Divergence, Follower, LayerDistance
from multiparam.comparison.judge import Check
from multiparam.comparison.reports.console import verdict
from multiparam.comparison.results import Comparison, Histogram, Pair
from multiparam.comparison.runs import NetworkRun
from multiparam.comparison.subjects import LiveSubject, NotInFloat64, RecordedSubject
from multiparam.comparison.tasks import Task
from multiparam.core import distances
from multiparam.core.distances import distance
from multiparam.core.protocol import Activation
from multiparam.transfers import apply as apply_module
from multiparam.transfers.manifest import Manifest, manifest_of_arrays
from multiparam.transfers.plan import Move
from multiparam.weights.metadata import FileMetadata

EPS, EPS32 = 2.0**-52, 2.0**-23


def array(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float64)


def single(*numbers: Any) -> np.ndarray:
    return np.array(numbers, np.float32)


@pytest.fixture
def causes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known causes that say what they were asked of: those there are have tests of their own."""

    def explain_layer(mine: LayerCall, theirs: LayerCall) -> list[str]:
        return [f"{mine.layer} there, {theirs.layer} here, which gives {theirs.outputs[0].tolist()}"]

    def explain_between(
        before: LayerCall, twin_before: LayerCall, after: LayerCall, twin_after: LayerCall
    ) -> list[str]:
        there, here = ((one.outputs[0], other.inputs[0]) for one, other in ((before, after), (twin_before, twin_after)))
        return [
            f"{before.layer} {there[0].tolist()} to {after.layer} {there[1].tolist()} there, "
            f"{twin_before.layer} {here[0].tolist()} to {twin_after.layer} {here[1].tolist()} here"
        ]

    monkeypatch.setattr(hints, "explain_layer", explain_layer)
    monkeypatch.setattr(hints, "explain_between", explain_between)


# -- distances


def test_the_distance_is_in_eps_of_the_largest_element() -> None:
    assert distance(array(1, 4 + 8 * EPS), array(1, 4), "float64") == 2
    assert distance(array(1 + 8 * EPS, 4), array(1, 4), "float64") == 2
    assert distance(array(1, -4 - 8 * EPS), array(1, -4), "float64") == 2
    assert distance(array(-0.5, -0.25 + EPS), array(-0.5, -0.25), "float64") == 2


@pytest.mark.parametrize("dtype, bits", [("float64", 52), ("float32", 23), ("float16", 10), ("bfloat16", 7)])
def test_each_dtype_is_measured_in_its_own_eps(dtype: str, bits: int) -> None:
    assert distance(array(1 + 3 * 2.0**-bits), array(1), dtype) == 3


def test_dtypes_are_looked_at_by_value() -> None:
    assert distance(np.array([1 + EPS32], np.float32), array(1), "float32") == 1
    assert distance(np.array([3]), np.array([2]), "float64") == 0.5 / EPS
    assert distance(np.array([2**53 + 1]), np.array([2**53]), "float64") == 0  # one number of float64


def test_equal_arrays_have_distance_zero() -> None:
    for numbers in ((1, 2), (0, 0), (), (math.nan, math.inf), (-math.inf, 1)):
        assert distance(array(*numbers), array(*numbers), "float64") == 0
    assert distance(array(0.0, -0.0), array(-0.0, 0.0), "float64") == 0


def test_a_number_that_both_do_not_know_does_not_count() -> None:
    assert distance(array(math.nan, 2 + 2 * EPS), array(math.nan, 2), "float64") == 1
    assert distance(array(2 + 2 * EPS, math.nan), array(2, math.nan), "float64") == 1


def test_infinities_at_the_same_places_are_equal() -> None:
    assert distance(array(-math.inf, 1, math.inf), array(-math.inf, 1, math.inf), "float64") == 0
    assert distance(array(math.inf, 2 + 2 * EPS), array(math.inf, 2), "float64") == 1
    assert distance(array(math.inf, math.nan, 2), array(math.nan, math.inf, 2), "float64") == math.inf


def test_both_parts_of_complex_numbers_count() -> None:
    one = np.array([1 + 1j, 0j])
    assert distance(one + 2j, one, "float64") == pytest.approx(2**0.5 / EPS)
    assert distance(one + [EPS, 0], one, "float64") == pytest.approx(2**-0.5)


@pytest.mark.parametrize(
    ("value", "truth"),
    [
        (array(1, 2), array(1, 2, 3)),
        (array(1), np.array(1.0)),
        (array(math.nan, 1), array(1, 1)),
        (array(1, 1), array(math.nan, 1)),
        (array(math.nan, math.nan), array(math.nan, 1)),
        (array(math.inf), array(1)),
        (array(1), array(math.inf)),
        (array(math.inf), array(-math.inf)),
        (array(1e-300), array(0)),
    ],
    ids=["shape", "rank", "nan", "nan in the truth", "one nan more", "infinity", "infinite truth", "two infinities",
         "a zero truth"],
)  # fmt: skip
def test_what_cannot_be_measured_is_infinitely_far(value: np.ndarray, truth: np.ndarray) -> None:
    with np.errstate(all="raise"):  # and nothing is said of it
        assert distance(value, truth, "float64") == math.inf


@pytest.mark.parametrize("far, at", [(0, 0), (2, 3), (4, 4)])
@pytest.mark.parametrize("largest", [0, 3, 4])
def test_the_largest_gap_and_the_largest_number_are_found_in_any_part(
    monkeypatch: pytest.MonkeyPatch, far: int, at: int, largest: int
) -> None:
    monkeypatch.setattr(distances, "PART", 2)
    truth = array(1, 1, 1, 1, 1)
    truth[largest] = -4
    value = truth.copy()
    value[at] += 16 * EPS
    value[(at + 2) % 5] += 4 * EPS  # nearer, in another part
    before = value.copy()
    assert distance(value, truth, "float64") == 4
    np.testing.assert_array_equal(value, before)


@pytest.mark.parametrize("at", range(5))
def test_a_nan_in_any_part_is_kept(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    monkeypatch.setattr(distances, "PART", 2)
    value = array(1, 2, 3, 4, 5)
    value[at] = math.nan
    assert distance(value, array(1.5, 2.5, 3.5, 4.5, 5.5), "float64") == math.inf
    assert distance(value, np.where(np.isnan(value), value, value + 5.5 * EPS), "float64") < math.inf


def test_parts_are_of_a_quarter_of_a_million_numbers() -> None:
    assert distances.PART == 262144
    truth = np.ones(2 * distances.PART + 3)
    value = truth.copy()
    value[-1] += 7 * EPS
    assert distance(value, truth, "float64") == 7


def test_what_is_small_is_measured_by_the_least_there_is() -> None:
    assert distance(array(0.25 + EPS), array(0.25), "float64", 0.5) == 2
    assert distance(array(-0.25 - EPS), array(-0.25), "float64", 0.125) == 4
    assert distance(array(3 * EPS, 0), array(0, 0), "float64", 1.0) == 3
    assert distance(array(1), array(1, 2), "float64", 1.0) == math.inf


def test_arrays_of_several_axes_are_one_row_of_numbers() -> None:
    truth = np.arange(1.0, 9).reshape(2, 2, 2)
    assert distance(truth + 8 * EPS, truth, "float64") == 1


# -- the judge of the networks built in: distances of several arrays


def test_the_worst_array_is_named() -> None:
    truth = {"a": array(1), "b": array(1), "c": array(1)}
    values = {"a": array(1 + EPS), "b": array(1 + 4 * EPS), "c": array(1)}
    assert judge.largest_distance(values, truth, "float64") == (4, "b")


def test_other_names_are_infinitely_far_and_named() -> None:
    values, truth = {"a": array(1), "c": array(1)}, {"a": array(1), "b": array(1)}
    assert judge.largest_distance(values, truth, "float64") == (math.inf, "b, c")


def test_nothing_at_all_is_no_distance() -> None:
    assert judge.largest_distance({}, {}, "float64") == (0.0, "")


def test_json_gets_a_word_for_infinity() -> None:
    assert [judge.json_number(far) for far in (math.inf, 3.5, None)] == ["inf", 3.5, None]


# -- its checks

OPTIMIZERS = ("sgd", "momentum", "adam")
BOUNDS = {"output": 32, "gradients": 256, "sgd": 1024, "momentum": 1024, "adam": 1024, "statistics": 1024}


def made(backend: str, dtype: str) -> NetworkRun:
    return NetworkRun(
        backend,
        dtype,
        names=["0.weight", "0.bias"],
        shapes=[(1, 2), (1,)],
        kinds=["linear", "linear"],
        ties=[("0.weight", "1.weight")],
        values={"0.weight": np.array([[1.0, 2.0]]), "0.bias": array(0.5)},
        output=np.array([[1.0]]),
        grads={"0.weight": np.array([[0.5, 1.0]]), "0.bias": array(1)},
        trained={name: {"0.weight": np.array([[0.5, 1.0]]), "0.bias": array(1)} for name in OPTIMIZERS},
        buffers={name: {"1.running_mean": array(1)} for name in OPTIMIZERS},
        network="net",
        version=f"{backend} 1.0",
    )


def runs(**changes: Any) -> list[NetworkRun]:
    """Two backends in both dtypes; the second one's float32 run is changed."""
    found = [made(*name) for name in (("one", "float64"), ("one", "float32"), ("two", "float64"), ("two", "float32"))]
    found[-1] = replace(found[-1], **changes)
    return found


def wrong(checks: Sequence[Check]) -> dict[tuple[str, str, str], str]:
    return {(check.check, check.backend, check.dtype): check.detail for check in checks if not check.agrees}


def test_the_bounds_of_the_networks_built_in() -> None:
    assert judge.BOUNDS == {"output": 32, "gradient": 256, "training": 1024}


def test_equal_runs_agree_in_every_check() -> None:
    facts = [
        Check("net", what, column, True)
        for column in ("one", "two")
        for what in ("structure", "ties", "initial values")
    ]
    numbers = [
        Check("net", what, column, True, dtype, 0.0, bound)
        for column, dtype in (("one", "float32"), ("two", "float64"), ("two", "float32"))
        for what, bound in BOUNDS.items()
    ]
    assert judge.judge_runs("net", runs()) == facts + numbers


def test_the_first_run_in_float64_is_the_reference() -> None:
    found = runs()
    found[2] = replace(found[2], output=np.array([[1 + 33 * EPS]]))
    assert wrong(judge.judge_runs("net", found)) == {("output", "two", "float64"): "output"}
    other = judge.judge_runs("net", [found[1], found[3], found[2], found[0]])
    assert wrong(other) == {("output", "one", "float64"): "output"}


@pytest.mark.parametrize(
    ("changes", "check", "dtype", "detail"),
    [
        ({"names": ["0.weight", "0.b"]}, "structure", "",
         "('0.b', (1,), 'linear') where one has ('0.bias', (1,), 'linear')"),
        ({"shapes": [(2, 1), (1,)]}, "structure", "",
         "('0.weight', (2, 1), 'linear') where one has ('0.weight', (1, 2), 'linear')"),
        ({"kinds": ["linear", "conv"]}, "structure", "",
         "('0.bias', (1,), 'conv') where one has ('0.bias', (1,), 'linear')"),
        ({"names": ["0.weight"], "shapes": [(1, 2)], "kinds": ["linear"]}, "structure", "", "1 of 2"),
        ({"names": ["0.weight", "0.bias", "a"], "shapes": [(1, 2), (1,), ()], "kinds": ["linear"] * 3}, "structure", "",
         "3 of 2"),
        ({"ties": []}, "ties", "", "[], not [('0.weight', '1.weight')]"),
        ({"values": {"0.weight": np.array([[1.0, 2.0]])}}, "initial values", "", "0.bias"),
        ({"values": {"0.weight": np.array([[1.0, 2 + 4 * EPS]]), "0.bias": array(0.5)}}, "initial values", "",
         "0.weight"),
        ({"values": {}}, "initial values", "", "0.weight, 0.bias"),
        ({"output": np.array([[1 + 33 * EPS32]])}, "output", "float32", "output"),
        ({"output": array(1)}, "output", "float32", "output"),
        ({"output": np.array([[math.nan]])}, "output", "float32", "output"),
        ({"grads": {"0.weight": np.array([[0.5, 1 + 257 * EPS32]]), "0.bias": array(1)}}, "gradients", "float32",
         "0.weight"),
        ({"grads": {"0.weight": np.array([[0.5, 1.0]])}}, "gradients", "float32", "0.bias"),
    ],
)  # fmt: skip
def test_each_check_fails_by_itself_and_names_what_is_wrong(
    changes: dict[str, Any], check: str, dtype: str, detail: str
) -> None:
    assert wrong(judge.judge_runs("net", runs(**changes))) == {(check, "two", dtype): detail}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_with_each_optimizer_is_judged_by_itself(optimizer: str) -> None:
    far = {"0.weight": np.array([[0.5, 1.0]]), "0.bias": array(1 + 1025 * EPS32)}
    trained = made("", "").trained | {optimizer: far}
    assert wrong(judge.judge_runs("net", runs(trained=trained))) == {(optimizer, "two", "float32"): "0.bias"}
    buffers = made("", "").buffers | {optimizer: {"1.running_mean": array(1 + 1025 * EPS32)}}
    assert wrong(judge.judge_runs("net", runs(buffers=buffers))) == {("statistics", "two", "float32"): "1.running_mean"}


def test_values_in_the_coarser_dtype_are_the_references_own() -> None:
    values = {"0.weight": single([1, 2]), "0.bias": single(0.5)}
    assert wrong(judge.judge_runs("net", runs(values=values))) == {}


@pytest.mark.parametrize("dtype, at, eps", [("float64", 2, EPS), ("float32", 3, EPS32)])
def test_a_distance_at_the_bound_agrees_and_just_above_does_not(dtype: str, at: int, eps: float) -> None:
    for far, agrees in ((32.0, True), (33.0, False)):
        found = runs()
        found[at] = replace(found[at], output=np.array([[1 + far * eps]]))
        (check,) = [check for check in judge.judge_runs("net", found) if check.distance]
        assert check == Check("net", "output", "two", agrees, dtype, far, 32, "" if agrees else "output")


def test_networks_without_statistics_have_no_check_of_them() -> None:
    found = [replace(run, buffers={name: {} for name in OPTIMIZERS}, trained={}) for run in runs()]
    assert {check.check for check in judge.judge_runs("net", found)} == {
        "structure", "ties", "initial values", "output", "gradients",
    }  # fmt: skip


def test_a_run_with_more_names_than_shapes_or_kinds_is_none() -> None:
    for at in (0, 3):
        found = runs()
        found[at] = replace(found[at], names=["0.weight", "0.bias", "a"])
        with pytest.raises(ValueError, match="zip"):
            judge.judge_runs("net", found)


def test_declared_statistics_are_shown_but_not_judged() -> None:
    buffers = made("", "").buffers | {"adam": {"1.running_mean": array(1 + 2048 * EPS32)}}
    checks = judge.judge_runs("net", runs(buffers=buffers, unsupported={"exact running statistics": "its own way"}))
    assert checks[-1] == Check(
        "net", "statistics", "two", True, "float32", 2048.0, None, "1.running_mean", expected="its own way"
    )
    assert [check.expected for check in checks[:-1]] == [""] * 23


# -- the networks built in, in their columns


def test_a_backend_of_one_file_is_a_column_of_its_name() -> None:
    found = networks.label_columns([replace(run, source="golden/a.safetensors") for run in runs()])
    assert [run.column for run in found] == ["one", "one", "two", "two"]


def test_a_backend_of_several_files_is_named_after_them() -> None:
    sources = ["a.safetensors", "a.safetensors", "b.safetensors", ""]
    found = networks.label_columns([replace(run, source=source) for run, source in zip(runs(), sources, strict=True)])
    assert [run.label for run in found] == ["one", "one", "two@b", "two@here"]
    assert [run.output for run in found] == [run.output for run in runs()]


def test_files_of_one_name_are_columns_with_their_folders() -> None:
    sources = ["old/run.safetensors", "old/run.safetensors", "new/run.safetensors", "new/run.safetensors"]
    found = [replace(run, backend="one", source=at) for run, at in zip(runs(), sources, strict=True)]
    assert {run.column for run in networks.label_columns(found)} == {"one@old/run", "one@new/run"}


def test_the_verdict_names_network_check_backend_parameter_and_distance() -> None:
    gradients = {"0.weight": np.array([[0.5, 1.0 + 1e-3]]), "0.bias": array(1)}
    lines = verdict(networks.judge_networks(runs(grads=gradients), {}))
    assert re.fullmatch(r"1 of \d+ checks disagree \(one one 1\.0, two two 1\.0\):", lines[0])
    assert re.fullmatch(r"  net, gradients float32, two: 0\.weight is \S+ eps away \(bound 256\)", lines[1])
    assert len(lines) == 2


def test_the_verdict_of_agreement_is_one_line() -> None:
    found = networks.judge_networks(runs(), {})
    assert verdict(found) == [f"All agree: {len(found.checks)} checks on 1 models with one one 1.0, two two 1.0."]


def passes(far: float = 0.0, at: str = "1") -> list[LayerCall]:
    """A pass through two layers, of which one's output is so many eps away."""
    x = np.array([[1.0, 0.5]])
    return [LayerCall(layer, (x,), (x + (far * EPS if layer == at else 0),)) for layer in ("0", "1")]


def columns(change: Callable[[NetworkRun], NetworkRun] = lambda run: run) -> list[NetworkRun]:
    """Two networks in two columns; the second one's float64 runs are changed."""
    found = []
    for network in ("net", "other"):
        for run in runs():
            run = replace(run, network=network, calls=passes())
            found.append(change(run) if (run.backend, run.dtype) == ("two", "float64") else run)
    return found


def test_columns_of_the_networks_built_in_agree() -> None:
    found = networks.judge_networks(columns(), {"steps": 1}, [{"name": "a"}])
    assert found.reference == "one" and found.agrees and found.bounds == judge.BOUNDS
    assert [pair.name for pair in found.pairs] == ["one", "two"]
    assert [len(pair.checks) for pair in found.pairs] == [18, 30]
    assert [check.network for check in found.pairs[0].checks] == ["net"] * 9 + ["other"] * 9
    assert found.options == {"steps": 1} and found.environments == [{"name": "a"}]
    assert found.models["one"] == {
        "backend": "one", "version": "one 1.0", "title": "", "parameters": None, "source": "",
    }  # fmt: skip
    assert list(found.models) == ["one", "two"]
    same = [LayerDistance("0", "0", 0.0, 0.0), LayerDistance("1", "1", 0.0, 0.0)]
    assert [pair.layers for pair in found.pairs] == [{}, {"net": same, "other": same}]
    assert [(pair.parted, pair.hints, pair.first) for pair in found.pairs] == [("", [], {})] * 2


def test_columns_without_an_environment_are_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "environment", lambda: {"python": "3.11"})
    assert networks.judge_networks(columns(), {}).environments == [{"python": "3.11", "name": "here"}]


def test_a_column_with_nothing_to_check_is_none() -> None:
    found = networks.judge_networks([run for run in columns() if run.dtype == "float64"], {})
    assert [pair.name for pair in found.pairs] == ["two"] and found.reference == "one"


def test_networks_that_part_are_placed_one_by_one(causes: None) -> None:
    def drifted(run: NetworkRun) -> NetworkRun:
        at = "1" if run.network == "net" else "0"
        return replace(run, output=run.output * 2, calls=passes(64, at))

    pair = networks.judge_networks(columns(drifted), {}).pairs[1]
    assert pair.parted == (
        "at layer 1: its inputs agree (0 eps) and its output does not (64 eps) (net); "
        "at layer 0: its inputs agree (0 eps) and its output does not (64 eps) (other)"
    )
    assert pair.first == {"net": 1, "other": 0}
    assert [hint.partition(", which")[0] for hint in pair.hints] == ["1 there, 1 here", "0 there, 0 here"]
    assert pair.layers["net"] == [LayerDistance("0", "0", 0.0, 0.0), LayerDistance("1", "1", 0.0, 64.0)]


@pytest.mark.parametrize("eps, parted", [(32, 0), (33, 1)])
def test_layers_of_the_networks_have_the_bound_of_outputs(eps: float, parted: int) -> None:
    found = networks.judge_networks(columns(lambda run: replace(run, output=run.output * 2, calls=passes(eps))), {})
    assert found.pairs[1].first == ({"net": 1, "other": 1} if parted else {})
    assert found.pairs[1].parted.startswith("at layer 1" if parted else "after layer 1, whose output agrees (net)")


def test_layers_that_differ_where_the_outputs_agree_part_nowhere() -> None:
    """Even where the gradients do not."""
    grads = {"0.weight": np.array([[0.5, 2.0]]), "0.bias": array(1)}
    pair = networks.judge_networks(columns(lambda run: replace(run, calls=passes(64), grads=grads)), {}).pairs[1]
    assert not pair.agrees and pair.parted == "" and pair.layers["net"][1].output == 64


# -- calls


class Untouchable:
    """An output that must not be made numpy."""

    def __array__(self, *given: Any, **options: Any) -> np.ndarray:
        raise AssertionError("it was looked at")


def test_an_activation_is_arrays_however_nested() -> None:
    x, y, z = array(1), array(2), array(3)
    call = to_layer_call(Activation("0", (x, [y, None]), {"a": z, "b": (x,)}))
    assert call.layer == "0"
    assert [a.tolist() for a in call.inputs] == [[1], [2]] and [a.tolist() for a in call.outputs] == [[3], [1]]


@pytest.mark.parametrize(
    "layers, names",
    [((), ["b0.up", "B0.up", "head"]), (("b*",), ["b0.up"]), (("head", "b*"), ["b0.up", "head"]), (("x",), [])],
)
def test_only_the_layers_that_a_glob_fits_are_shown(layers: Sequence[str], names: list[str]) -> None:
    found: list[LayerCall] = []
    show = select_layers(layers, found.append)
    for layer in ("b0.up", "B0.up", "head"):
        show(Activation(layer, (array(1),), array(2) if layer in names else Untouchable()))
    assert [call.layer for call in found] == names
    assert all(call.outputs[0].tolist() == [2] for call in found)


def test_equal_arrays_are_kept_once() -> None:
    x, y = array(1, 2), array(3, 4)
    cache = ActivationCache([LayerCall("0", (x,), (y,)), LayerCall("1", (y.copy(), x), ())])
    assert cache[1].inputs[0] is cache[0].outputs[0] and cache[1].inputs[1] is cache[0].inputs[0]


def test_what_is_kept_is_a_copy() -> None:
    x = array(1, 2)
    cache = ActivationCache()
    cache.add(LayerCall("0", (x,), (x,)))
    x[:] = 9
    cache.add(LayerCall("0", (x,), ()))
    assert [call.inputs[0].tolist() for call in cache] == [[1, 2], [9, 9]]


def test_calls_are_a_sequence_in_order() -> None:
    cache = ActivationCache([LayerCall(name, (), (array(i),)) for i, name in enumerate("aba")])
    assert cache.layers == ["a", "b", "a"] and len(cache) == 3
    assert [call.outputs[0][0] for call in cache] == [0, 1, 2] == [cache[i].outputs[0][0] for i in range(3)]


def test_bfloat16_is_what_it_was_on_disk() -> None:
    half = pytest.importorskip("ml_dtypes").bfloat16
    (found,) = ActivationCache([LayerCall("0", (np.array([1, 2], half),), ())], memory=0)[0].inputs
    assert found.dtype == half and found.tolist() == [1, 2]


def test_a_gigabyte_is_kept_in_memory() -> None:
    assert activations.MEMORY == 1024**3 and ActivationCache()._memory_left == activations.MEMORY


def test_what_is_beyond_the_memory_is_on_disk() -> None:
    arrays = [np.full(10, i, np.float32) for i in range(5)]  # of 40 bytes
    cache = ActivationCache(
        [LayerCall("0", (arrays[0],), (arrays[1], arrays[0])), LayerCall("1", (), tuple(arrays[2:]))], memory=80
    )
    found = [*cache[0].inputs, cache[0].outputs[0], *cache[1].outputs]
    assert [isinstance(a, np.memmap) for a in found] == [False, False, True, True, True]
    for a, b in zip(found, arrays, strict=True):
        assert a.dtype == np.float32 and a.tolist() == b.tolist()
    path = Path(found[-1].filename)  # type: ignore[attr-defined]
    assert path.parent.name.startswith("multiparam-") and len(list(path.parent.iterdir())) == 3
    with pytest.raises(ValueError, match="read-only"):
        found[-1][0] = 1
    del cache, found, a
    gc.collect()
    assert not path.parent.exists()


def test_a_digest_is_of_bits_shape_and_dtype() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert len(digest(x)) == 16
    assert digest(x) == digest(np.asfortranarray(x)) == digest(x.copy()) == digest(np.stack([x, x])[1])
    others = (x + 1, x.reshape(3, 2), x.ravel(), x.view(np.int32), x.astype(">f4"), -x * 0, x * 0)
    assert len({digest(each) for each in (x, *others)}) == 8
    assert digest(np.float32(1).reshape(())) != digest(single(1))


# -- following


def call(layer: str, inputs: Any, outputs: Any) -> LayerCall:
    return LayerCall(layer, (np.asarray(inputs, np.float64),), (np.asarray(outputs, np.float64),))


# Three layers, of which the last two come after a relu; the largest number of each array is 1.
Y, Z, W = array(1, -0.5), array(-0.25, 1), array(1, 0.75)
RELU_Y, RELU_Z = array(1, 0), array(0, 1)
CALLS = [call("a", W, Y), call("b", RELU_Y, Z), call("c", RELU_Z, W)]
TO = {"a": "A", "b": "B", "c": "C"}


def followed(
    *others: LayerCall, layer_map: Mapping[str, str] = TO, cache: Sequence[LayerCall] = CALLS, **options: Any
) -> Follower:
    follower = Follower(ActivationCache(cache), layer_map, "float64", 64, **options)
    for each in others:
        follower.on_call(each)
    return follower


def changed(at: int, *, inputs: Any = None, outputs: Any = None) -> list[LayerCall]:
    """The other model's calls, of which one has other inputs or outputs."""
    found = [each._replace(layer=TO[each.layer]) for each in CALLS]
    if inputs is not None:
        found[at] = found[at]._replace(inputs=(inputs,))
    if outputs is not None:
        found[at] = found[at]._replace(outputs=(outputs,))
    return found


def test_the_same_passes_part_nowhere() -> None:
    follower = followed(*changed(0))
    assert follower.layers() == [LayerDistance(a, b, 0.0, 0.0) for a, b in TO.items()]
    assert follower.largest_distance() == 0 and follower.divergence(outputs_agree=True) is None
    assert follower.divergence(outputs_agree=False) == Divergence("after layer c -> C, whose output agrees")


def test_nothing_that_was_followed_parts_somewhere() -> None:
    follower = followed(call("X", W, Y))
    assert follower.layers() == [] and follower.largest_distance() == 0
    assert follower.divergence(True) is None and follower.divergence(False) == Divergence("somewhere")


@pytest.mark.parametrize("far", [64, 65])
def test_an_output_at_the_bound_agrees_and_just_beyond_does_not(causes: None, far: int) -> None:
    follower = followed(*changed(1, outputs=Z + array(0, far * EPS)))
    assert follower.layers()[1] == LayerDistance("b", "B", 0.0, far) and follower.largest_distance() == far
    said = f"b there, B here, which gives {[-0.25, 1 + 65 * EPS]}"
    at = Divergence("at layer b -> B: its inputs agree (0 eps) and its output does not (65 eps)", 1, True, [said])
    assert follower.divergence(True) == (None if far == 64 else at)


@pytest.mark.parametrize("far", [64, 65])
def test_inputs_at_the_bound_agree_and_just_beyond_do_not(far: int) -> None:
    found = followed(*changed(1, inputs=RELU_Y + array(far * EPS, 0), outputs=Z * 2)).divergence(False)
    assert found is not None and found.call == 1 and found.at_layer is (far == 64)
    if far == 64:
        assert found.where == "at layer b -> B: its inputs agree (64 eps) and its output does not (4.5e+15 eps)"
    else:
        assert found.where == "between layers a -> A and b -> B, whose inputs are 65 eps apart"


def test_inputs_of_the_first_layer_are_before_it(causes: None) -> None:
    follower = followed(*changed(0, inputs=W * 2, outputs=Y * 3))
    assert follower.divergence(False) == Divergence(
        "before layer a -> A, whose inputs are 4.5e+15 eps apart", 0, False, []
    )


def test_inputs_alone_may_be_cut_otherwise() -> None:
    follower = followed(*changed(1, inputs=RELU_Y * 2))
    assert follower.layers()[1] == LayerDistance("b", "B", 1 / EPS, 0.0) and follower.divergence(True) is None


BETWEEN = "a [1.0, -0.5] to b [1.0, 0.0] there, A [1.0, -0.5] to B [0.5, 0.25] here"
APART = {"inputs": array(0.5, 0.25), "outputs": Z * 2}


def test_causes_are_looked_for_between_two_layers(causes: None) -> None:
    found = followed(*changed(1, **APART)).divergence(False)
    where = "between layers a -> A and b -> B, whose inputs are 2.25e+15 eps apart"
    assert found == Divergence(where, 1, False, [BETWEEN])


def test_causes_are_those_of_what_was_seen_though_its_memory_is_used_again(causes: None) -> None:
    follower = followed()
    for each in changed(1, **APART):
        memory = each._replace(inputs=tuple(map(np.copy, each.inputs)), outputs=tuple(map(np.copy, each.outputs)))
        follower.on_call(memory)
        for a in (*memory.inputs, *memory.outputs):
            a[:] = 0.125
    found = follower.divergence(False)
    assert found is not None and found.hints == [BETWEEN]


def test_no_cause_is_looked_for_between_layers_that_did_not_follow_each_other(causes: None) -> None:
    first, second, third = changed(2, inputs=RELU_Z / 2, outputs=W * 2)
    found = followed(second, first, third).divergence(False)  # a is before c as it comes, b in the reference's order
    assert found == Divergence("between layers b -> B and c -> C, whose inputs are 2.25e+15 eps apart", 2, False, [])
    alone = followed(third).divergence(False)
    assert alone == Divergence("before layer c -> C, whose inputs are 2.25e+15 eps apart", 2, False, [])
    found = followed(third, first, second).divergence(False)  # nothing was before it as it came
    assert found is not None and (found.call, found.hints) == (2, [])


def test_the_first_parting_is_the_first_in_the_references_order() -> None:
    first, second, third = changed(1, outputs=Z * 2)
    third = third._replace(outputs=(W * 2,))
    for order in ((first, second, third), (third, second, first), (second, first, third), (third, first, second)):
        found = followed(*order).divergence(False)
        assert (
            found is not None
            and found.where.startswith("at layer b -> B")
            and (found.call, found.at_layer) == (1, True)
        )


def test_the_layer_before_is_the_one_before_the_first_parting(causes: None) -> None:
    """A later one that was seen first, or comes after it, is none of its business."""
    first, second, third = changed(1, **APART)
    for order in ((first, second, third), (third._replace(outputs=(W * 2,)), first, second)):
        found = followed(*order).divergence(False)
        assert found is not None and found.hints == [BETWEEN]


def test_layers_that_are_not_matched_are_passed_over() -> None:
    others = [call("X", Z, Z), *changed(0)[:1], call("B", Z, Z), *changed(0)[2:], call("A", Y, Z)]
    follower = followed(*others, layer_map={"a": "A", "c": "C", "z": "X"})
    assert follower.layers() == [LayerDistance("a", "A", 0.0, 0.0), LayerDistance("c", "C", 0.0, 0.0)]
    assert follower.divergence(False) == Divergence("after layer c -> C, whose output agrees")


def test_a_layer_that_is_called_again_is_matched_call_by_call() -> None:
    cache = [call("a", W, Y), call("a", Y, Z), call("a", Z, W)]
    others = [call("A", W, Y), call("A", Y, Z * 2), call("A", Z, W), call("A", W, W)]
    follower = followed(*others, cache=cache)
    assert [layer.output for layer in follower.layers()] == [0, 1 / EPS, 0]
    found = follower.divergence(True)
    assert found is not None and found.call == 1


def test_two_layers_may_be_one_of_the_others() -> None:
    follower = followed(call("A", W, Y), call("A", RELU_Y, Z), layer_map={"a": "A", "b": "A"})
    assert follower.layers() == [LayerDistance("a", "A", 0.0, 0.0), LayerDistance("b", "A", 0.0, 0.0)]


def backwards(x: np.ndarray) -> np.ndarray:
    return x[:, ::-1]


def test_flattened_inputs_are_turned_as_the_weight_is() -> None:
    x, y = np.array([[1.0, 0.5]]), np.array([[0.25, 1.0]])
    cache = [call("a", x, y), call("b", x, y)]
    others = [call("A", x[:, ::-1], y), call("B", x, y)]
    assert [layer.inputs for layer in followed(*others, cache=cache).layers()] == [0.5 / EPS, 0]
    follower = followed(*others, cache=cache, permutations={"A": backwards})
    assert follower.layers() == [LayerDistance("a", "A", 0.0, 0.0), LayerDistance("b", "B", 0.0, 0.0)]


def test_outputs_and_inputs_of_other_axes_are_not_turned() -> None:
    x = np.array([[1.0, 0.5]])
    for a in (x[0], x[None]):
        assert followed(call("A", a, x), cache=[call("a", a, x)], permutations={"A": backwards}).layers()[0].inputs == 0
    assert (
        followed(call("A", x[:, ::-1], x), cache=[call("a", x, x)], permutations={"A": backwards}).largest_distance()
        == 0
    )


def test_causes_before_a_flattening_are_looked_for_in_one_order(causes: None) -> None:
    x = np.array([[1.0, 0.5]])
    cache = [call("a", x, x), call("b", x, x)]
    found = followed(call("A", x, x), call("B", x / 4, x * 2), cache=cache, permutations={"B": backwards}).divergence(
        False
    )
    assert found is not None
    assert found.hints == ["a [[1.0, 0.5]] to b [[0.5, 1.0]] there, A [[1.0, 0.5]] to B [[0.25, 0.125]] here"]


@pytest.mark.parametrize("far", [64, 65])
def test_a_permuted_weight_between_flattenings_of_one_order_is_a_cause(causes: None, far: int) -> None:
    x = np.array([[1.0, 0.5]])
    cache = [call("a", x, x), call("b", x, x)]
    others = [call("A", x, x), call("B", x + np.array([[far * EPS, 0]]), x * 2)]
    found = followed(*others, cache=cache, permutations={"B": backwards}).divergence(False)
    assert found is not None and (found.call, found.at_layer) == (1, False)
    if far == 64:
        assert found.hints == ["both flatten channels in one order, and the weight is permuted as if they did not"]
    else:
        assert found.hints[0].startswith("a [[1.0, 0.5]] to b [[0.5, 1.0]] there")


def test_zeros_around_the_inputs_of_one_are_its_padding() -> None:
    x = np.arange(1.0, 10).reshape(1, 1, 3, 3)
    zeros, ones = (np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=n) for n in (0, 1))
    for mine, theirs in ((x, zeros), (zeros, x), (x, np.moveaxis(zeros, 1, -1))):
        assert followed(call("A", theirs, x), cache=[call("a", mine, x)]).layers() == [
            LayerDistance("a", "A", 0.0, 0.0)
        ]
    for mine, theirs in ((x, ones), (ones, x)):
        assert followed(call("A", theirs, x), cache=[call("a", mine, x)]).layers()[0].inputs == math.inf
    assert followed(call("A", x, zeros), cache=[call("a", x, x)]).layers()[0].output == math.inf


@pytest.mark.parametrize("mine, theirs", [(Y, RELU_Y), (RELU_Y, Y)], ids=["here", "there"])
def test_an_activation_inside_a_layer_is_undone(mine: np.ndarray, theirs: np.ndarray) -> None:
    follower = followed(call("A", W, theirs), cache=[call("a", W, mine)])
    assert follower.layers() == [LayerDistance("a", "A", 0.0, 0.0, "relu")] and follower.divergence(True) is None


@pytest.mark.parametrize("theirs", [1.0, 0.0], ids=["softmax of one number", "log softmax of it, or relu"])
def test_a_function_that_gives_one_number_for_all_undoes_nothing(theirs: float) -> None:
    mine = np.array([[-1.0], [-2.0], [-3.0]])
    follower = followed(call("A", W, np.full((3, 1), theirs)), cache=[call("a", W, mine)])
    assert follower.layers()[0].cut == "" and follower.layers()[0].output > 1 / EPS / 4
    parting = follower.divergence(True)
    assert parting is not None and parting.at_layer


@pytest.mark.parametrize("far", [64, 65])
def test_what_is_left_of_an_activation_inside_has_the_same_bound(far: int) -> None:
    near = W + array(64 * EPS, 0)
    follower = followed(call("A", near, RELU_Y + array(far * EPS, 0)), cache=[call("a", W, Y)])
    assert follower.layers()[0].inputs == 64
    assert follower.layers()[0].cut == ("relu" if far == 64 else "")
    assert follower.layers()[0].output == (64 if far == 64 else 0.5 / EPS)


def test_activations_are_tried_in_silence() -> None:
    large = array(1e200, -1e200)
    with np.errstate(all="raise"):
        follower = followed(call("A", W, large * 2), cache=[call("a", W, large)])
    assert follower.layers() == [LayerDistance("a", "A", 0.0, 1 / EPS)]


def test_an_activation_is_not_looked_for_where_the_inputs_differ() -> None:
    follower = followed(call("A", W * 2, RELU_Y), cache=[call("a", W, Y)])
    assert follower.layers() == [LayerDistance("a", "A", 1 / EPS, 0.5 / EPS)]


def test_channels_may_be_elsewhere() -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    for other in (x, np.moveaxis(x, 1, -1), np.moveaxis(x, -1, 1)):
        follower = followed(call("A", other, other), cache=[call("a", x, x)])
        assert follower.layers() == [LayerDistance("a", "A", 0.0, 0.0)]
    assert followed(call("A", x[::-1], x), cache=[call("a", x, x)]).layers()[0].inputs > 64


def test_the_farthest_of_several_arrays_counts_and_whole_numbers_do_not() -> None:
    tokens = np.array([3, 4])
    mine = LayerCall("a", (tokens, Y), (Y, Z))
    follower = followed(LayerCall("A", (tokens + 1, Y), (Y + array(EPS, 0), Z + array(0, 3 * EPS), W)), cache=[mine])
    assert follower.layers() == [LayerDistance("a", "A", 0.0, 3.0)]
    assert followed(LayerCall("A", (), ()), cache=[mine]).layers() == [LayerDistance("a", "A", 0.0, 0.0)]


def test_single_precision_is_followed_in_its_own_eps() -> None:
    follower = Follower(ActivationCache([LayerCall("a", (single(1),), (single(1),))]), {"a": "A"}, "float32", 64)
    follower.on_call(LayerCall("A", (single(1 + 2 * EPS32),), (single(1 + 3 * EPS32),)))
    assert follower.layers() == [LayerDistance("a", "A", 2.0, 3.0)]


def test_bfloat16_which_numpy_has_not_is_followed_too() -> None:
    half = pytest.importorskip("ml_dtypes").bfloat16
    x, y = np.array([1, 2], half), np.array([1, 2.0625], half)
    follower = Follower(ActivationCache([LayerCall("a", (x,), (x,))]), {"a": "A"}, "bfloat16", 3)
    follower.on_call(LayerCall("A", (x,), (y,)))
    assert follower.layers() == [LayerDistance("a", "A", 0.0, 4.0)]


@pytest.mark.parametrize(
    "reference, name, text",
    [("a", "a", "a"), ("a", "b", "a -> b"), ("", "", "the model"), ("", "b", "the model -> b"),
     ("a", "", "a -> the model")],
)  # fmt: skip
def test_a_layer_is_called_by_both_names_where_they_differ(reference: str, name: str, text: str) -> None:
    assert str(LayerDistance(reference, name, 0.0, 0.0)) == text


# -- models: two sides made by hand

X = np.float32([[1, -1]])
VALUES = {
    "0.weight": np.float32([[1, 0.5], [0.25, 0.5]]),
    "0.bias": np.float32([0.5, -0.25]),
    "2.weight": np.float32([[1, -0.5], [0.5, 1]]),
    "2.bias": np.float32([0, 0]),
}
HIDDEN, OUTPUT = np.array([[1.0, -0.5]]), np.array([[1.0, 0.5]])  # of a linear layer, a relu and a linear layer
WAY = [LayerCall("0", (X,), (HIDDEN,)), LayerCall("2", (np.array([[1.0, 0.0]]),), (OUTPUT,))]
ONES = {name: np.ones_like(value) for name, value in VALUES.items()}
WIDE = ("float64", "float32")


def side(
    values: Mapping[str, np.ndarray] = VALUES,
    kinds: Mapping[str, str] = {},
    aliases: Mapping[str, Sequence[str]] = {},
    options: Mapping[str, Mapping[str, Any]] = {},
    order: str | None = None,
) -> Manifest:
    """Parameters by name, of linear layers but for those that ``kinds`` has."""
    about = {
        name: {"kind": kinds.get(name.rpartition(".")[0], "linear"), "aliases": aliases.get(name, ())}
        for name in values
    }
    return manifest_of_arrays(values, "net", FileMetadata(about, options), order)


def gone(
    outputs: Any = OUTPUT, way: Sequence[LayerCall] = WAY
) -> Callable[[], tuple[list[np.ndarray], ActivationCache]]:
    """A pass that a recording has: outputs and calls."""
    several = {f"[{i}]": each for i, each in enumerate(outputs)} if isinstance(outputs, list) else {"": outputs}
    return lambda: (several, ActivationCache(way))


def subject(name: str, **changes: Any) -> RecordedSubject:
    """What was recorded of a model, all of it the same in each but for the changes."""
    task = Task((X,), steps=2) if "final" in changes else Task((X,))
    passes = {"float64": gone(), "float32": gone()}
    found = RecordedSubject(
        name, name, "numpy", "1.0", side(), WIDE, passes, ONES, {}, task, f"{name}.safetensors", {"python": "3.11"}
    )
    return replace(found, **changes)


def otherwise(at: int, output: np.ndarray = OUTPUT, **changes: Any) -> dict[str, Any]:
    """The passes of a subject, of which one call in float64 is changed, and the output of that pass."""
    way = list(WAY)
    way[at] = way[at]._replace(**changes)
    return {"passes": {"float64": gone(output, way=way), "float32": gone()}}


Compare = Callable[..., Comparison]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Compare:
    """``mp.compare`` of subjects that are there already."""
    files: dict[str, list[RecordedSubject]] = {}

    def read(name: str, path: str | Path) -> list[RecordedSubject]:
        found = files[str(path)]
        return [replace(found[0], name=name)] if len(found) == 1 else found

    def compare(*subjects: RecordedSubject, against: Sequence[RecordedSubject] = (), **options: Any) -> Comparison:
        files.update({f"{each.name}.st": [each] for each in subjects})
        if against:
            files["golden.st"], options["against"] = list(against), "golden.st"
        return models.compare({each.name: f"{each.name}.st" for each in subjects}, **options)

    monkeypatch.setattr(models, "open_subjects", read)
    return compare


def facts(found: Comparison, *checks: str) -> list[tuple[Any, ...]]:
    """The first pair's checks of these names."""
    return [
        (check.check, check.agrees, check.detail, check.items)
        for check in found.pairs[0].checks
        if check.check in checks
    ]


def numbers(found: Comparison) -> list[tuple[Any, ...]]:
    """The first pair's checks that have a distance."""
    return [
        (check.check, check.dtype, check.distance, check.bound)
        for check in found.pairs[0].checks
        if check.distance is not None
    ]


def test_the_bounds_of_models() -> None:
    assert pairs.BOUNDS == {"output": 1024, "layer": 1024, "gradient": 16384, "training": 65536, "numeric": 16384}
    assert (by_plan.BINS, pairs.SHOWN) == (40, 4)


def test_equal_models_agree_in_every_check(compared: Compare) -> None:
    found = compared(subject("a", final=ONES), subject("b", final=ONES))
    (pair,) = found.pairs
    assert pair.checks == found.checks == [
        Check("", "structure", "b", True),
        Check("", "options", "b", True),
        Check("", "ties", "b", True),
        Check("", "values", "b", True),
        Check("", "outputs", "b", True, "float64", 0.0, 1024),
        Check("", "2 layers on the way", "b", True, "float64", 0.0, 1024),
        Check("", "outputs", "b", True, "float32", 0.0, 16384),
        Check("", "gradients", "b", True, "float32", 0.0, 16384),
        Check("", "2 steps of sgd", "b", True, "float32", 0.0, 65536),
    ]  # fmt: skip
    assert found.agrees and found.reference == "a" and found.bounds == pairs.BOUNDS
    layers = {"": [LayerDistance("0", "0", 0.0, 0.0), LayerDistance("2", "2", 0.0, 0.0)]}
    assert replace(pair, checks=[], plan=None) == Pair("b", layers=layers)
    assert pair.plan is not None and [move.target for move in pair.plan.moves] == list(VALUES)


def test_what_is_compared_is_said(compared: Compare) -> None:
    other = subject("c", version="2.0", environment={"python": "3.12"})
    found = compared(subject("a"), replace(subject("b"), source="a.safetensors"), other)
    assert found.models["b"] == {
        "backend": "numpy", "version": "1.0", "title": "net", "parameters": 12, "source": "a.safetensors",
    }  # fmt: skip
    assert list(found.models) == ["a", "b", "c"] and [pair.name for pair in found.pairs] == ["b", "c"]
    assert found.versions == {"numpy": "1.0 and 2.0"}
    assert found.environments == [
        {"python": "3.11", "name": "a.safetensors"}, {"python": "3.12", "name": "c.safetensors"},
    ]  # fmt: skip
    inputs = {"inputs": [{"shape": [1, 2], "dtype": "float32"}], "objective": "mean of the squared outputs", "steps": 0}
    assert found.options == inputs
    assert len(found.checks) == 16


def test_where_models_ran_is_a_possible_cause_of_numbers_that_differ(compared: Compare) -> None:
    old, new = ({"python": python, "packages": {"numpy": "1.26", name: "2.0"}, "name": name}
                for python, name in (("3.11", "a"), ("3.12", "b")))  # fmt: skip
    reference, same = subject("a", environment=old), subject("b", environment=new, settings={"precision": "low"})
    assert compared(reference, same).pairs[0].hints == []  # nothing is to be explained
    other = replace(same, **otherwise(0, output=OUTPUT * 2))
    hints = compared(reference, other).pairs[0].hints
    assert hints[-1] == "it may be where they ran: python is 3.11 there, 3.12 here; numpy's precision is 'low' here"
    variables = {**old, "variables": {"OMP_NUM_THREADS": "1"}}
    hints = compared(replace(other, environment=old, settings={}), subject("a", environment=variables)).pairs[0].hints
    assert hints[-1] == "it may be where they ran: OMP_NUM_THREADS is not set there, 1 here"


def test_a_comparison_as_text() -> None:
    checks = [
        Check("", "structure", "b", True),
        Check("", "options", "b", False, detail="0: eps is 1 there, 2 here"),
        Check("", "outputs", "b", False, "float64", 12345.0, 1024.0, "far"),
        Check("", "gradients", "b", True, expected="it gives none"),
    ]
    pairs = [Pair("b", checks, parted="at layer 0", hints=["a", "b"]), Pair("c", checks[:1])]
    assert str(Comparison("a", pairs, {}, {})).split("\n") == [
        "b DISAGREES with a",
        "  ok  structure",
        "  NOT options: 0: eps is 1 there, 2 here",
        "  NOT outputs: 1.23e+04 eps of float64 (bound 1024) far",
        "  ok  gradients: expected: it gives none",
        "  They part first at layer 0.",
        "  Hint: a.",
        "  Hint: b.",
        '  "there" is a, "here" is b.',
        "c agrees with a",
        "  ok  structure",
    ]


def test_a_comparison_agrees_where_all_of_it_does() -> None:
    checks = [Check("", "x", "b", True), Check("", "y", "b", False)]
    good, bad = Pair("b", checks[:1]), Pair("b", checks)
    assert good.agrees and not bad.agrees
    assert not Comparison("a", [good, bad], {}, {}).agrees and Comparison("a", [good, good], {}, {}).agrees
    versions = {name: {"backend": name[0], "version": name[1]} for name in ("t1", "j3", "t2", "t1 again")}
    assert Comparison("a", [], {}, versions).versions == {"t": "1 and 2", "j": "3"}


# -- models: bounds


def far(kind: str, eps: int) -> dict[str, Any]:
    """What is changed in a subject that is so many eps away in one kind of check."""
    large = {**ONES, "2.weight": np.float32([[1, 1], [1, 1 + eps * EPS32]])}
    return {
        "output": {"passes": {"float64": gone(OUTPUT + eps * EPS), "float32": gone()}},
        "numeric": {"passes": {"float64": gone(), "float32": gone(np.float32(OUTPUT + eps * EPS32))}},
        "layer": otherwise(0, outputs=(HIDDEN + [[0, eps * EPS]],)),
        "gradient": {"gradients": large},
        "training": {"final": large},
    }[kind]


@pytest.mark.parametrize("rtol_eps, bound", [(None, None), (64, 64), ({"kind": 128}, 128), ({}, None)],
                         ids=["stated", "one for all", "of its own", "of none"])  # fmt: skip
@pytest.mark.parametrize("kind", pairs.BOUNDS)
def test_a_distance_at_its_bound_agrees_and_one_beyond_does_not(
    compared: Compare, kind: str, rtol_eps: Any, bound: int | None
) -> None:
    rtol_eps = {kind: rtol_eps["kind"]} if rtol_eps and isinstance(rtol_eps, dict) else rtol_eps
    bound = bound or int(pairs.BOUNDS[kind])
    reference = subject("a", **({"final": ONES} if kind == "training" else {}))
    at = compared(reference, subject("b", **far(kind, bound)), rtol_eps=rtol_eps)
    beyond = compared(reference, subject("b", **far(kind, bound + 1)), rtol_eps=rtol_eps)
    assert at.agrees and max(check.distance or 0 for check in at.checks) == bound
    assert not any(check.detail for check in at.checks)
    if kind == "layer" and bound == pairs.BOUNDS[kind]:  # nobody asked for it: outputs and gradients decide
        (check,) = [check for check in beyond.checks if check.expected]
        assert beyond.agrees and (check.distance, check.bound) == (bound + 1, None)
        assert check.expected == "outputs and gradients agree: layers are cut otherwise"
        assert not beyond.pairs[0].parted and not beyond.pairs[0].first and not beyond.pairs[0].hints
        return
    (check,) = [check for check in beyond.checks if not check.agrees]
    assert (check.distance, check.bound) == (bound + 1, bound) and beyond.bounds[kind] == bound
    assert check.detail == ("2.weight" if kind in ("gradient", "training") else "")


def test_bounds_are_one_for_all_or_some_of_their_own() -> None:
    assert models._bounds(None) == pairs.BOUNDS
    assert models._bounds(7) == dict.fromkeys(pairs.BOUNDS, 7) and models._bounds(0.0)["output"] == 0
    assert models._bounds({"layer": 7}) == {**pairs.BOUNDS, "layer": 7}
    with pytest.raises(errors.InvalidArgument) as said:
        models._bounds({"outputs": 1})
    assert str(said.value) == "There is no bound of 'outputs'. Did you mean 'output'?"


# -- models: parameters


def values(changed: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters, of which some are others."""
    return {**VALUES, **{name: np.asarray(value) for name, value in changed.items()}}


def test_parameters_that_nothing_makes_or_takes_are_structure(compared: Compare) -> None:
    more = {f"{i}.gamma": np.zeros(i, np.float32) for i in (5, 6)}
    less = {"4.table": np.zeros((3, 7), np.float32)}
    found = compared(
        subject("a", manifest=side({**VALUES, **less}), final=ONES),
        subject("b", manifest=side({**VALUES, **more}), final=ONES),
    )
    items = ("nothing makes 5.gamma", "nothing makes 6.gamma", "4.table goes nowhere")
    assert facts(found, "structure") == [("structure", False, "; ".join(items), items)]
    assert facts(found, "values", "gradients") == [("values", True, "", ())]  # no gradients of another model
    assert facts(found, "2 steps of sgd") == [("2 steps of sgd", True, "", ())]


def test_parameters_that_fit_nothing_are_structure_and_no_values(compared: Compare) -> None:
    wide = side(values({"0.weight": np.float32([[1, 2, 3], [4, 5, 6]]), "2.bias": np.float32([9, 9])}))
    found = compared(subject("a"), subject("b", manifest=wide))
    items = ("0.weight goes nowhere", "0 -> 0: weight is (2, 2), the target's (2, 3)")
    assert facts(found, "structure", "values", "gradients") == [("structure", False, "; ".join(items), items)]


def test_only_unused_parameters_leave_gradients_to_compare(compared: Compare) -> None:
    more = {"4.table": np.zeros((3, 7), np.float32)}
    found = compared(subject("a", manifest=side({**VALUES, **more})), subject("b"))
    assert facts(found, "structure", "gradients") == [
        ("structure", False, "4.table goes nowhere", ("4.table goes nowhere",)), ("gradients", True, "", ()),
    ]  # fmt: skip


def test_a_rule_says_what_goes_where(compared: Compare) -> None:
    renamed = {name.replace("0.", "first."): value for name, value in VALUES.items()}
    found = compared(subject("a"), subject("b", manifest=side(renamed)), rules={"0": "first"})
    assert facts(found, "structure", "values") == [("structure", True, "", ()), ("values", True, "", ())]
    assert found.pairs[0].plan is not None and found.pairs[0].plan.moves[0].why == "rule"


def test_of_many_differences_four_are_shown(compared: Compare) -> None:
    for n in (4, 5):
        less = {f"{i}.table": np.zeros((3, i), np.float32) for i in range(4, 4 + n)}
        found = compared(subject("a", manifest=side({**VALUES, **less})), subject("b"))
        ((_, _, detail, items),) = facts(found, "structure")
        shown = "; ".join(f"{i}.table goes nowhere" for i in range(4, 8))
        assert detail == (shown if n == 4 else f"{shown}; ...") and len(items) == n


def test_the_momentum_of_statistics_counts_where_it_trains(compared: Compare) -> None:
    one, other = ({"0": {"eps": eps, "momentum": momentum}} for eps, momentum in ((1e-5, 0.1), (1e-6, 0.01)))
    eps, momentum = "0: eps is 1e-05 there, 1e-06 here", "0: momentum is 0.1 there, 0.01 here, when it trains"
    step = {"task": Task((X,), steps=1), "final": ONES}
    for end, items, agrees in (({}, (eps,), True), (step, (eps, momentum), False)):
        found = compared(
            subject("a", manifest=side(options=one), **end), subject("b", manifest=side(options=other), **end)
        )
        assert facts(found, "options") == [("options", agrees, "; ".join(items), items)]


@pytest.mark.parametrize("outputs", [ONES, {name: 2 * value for name, value in ONES.items()}])
def test_an_option_counts_unless_exact_outputs_and_gradients_agree(compared: Compare, outputs: Any) -> None:
    one, other = ({"0": {"padding": padding}} for padding in ((0, 0), "same"))
    found = compared(
        subject("a", manifest=side(options=one)), subject("b", manifest=side(options=other), gradients=outputs)
    )
    check = next(check for check in found.checks if check.check == "options")
    assert check.agrees is (outputs is ONES)
    assert ("on these inputs it makes no difference that 0: padding" in check.expected) is check.agrees


TIED = {"0.weight": np.float32([[1, 2], [3, 4]]), "1.weight": np.float32([[1, 2], [3, 4]])}
ONE = {"0.weight": TIED["0.weight"]}


def test_ties_of_one_side_only_are_found(compared: Compare) -> None:
    tied, loose = side(ONE, aliases={"0.weight": ["1.weight"]}), side(TIED)
    found = compared(subject("a", manifest=tied), subject("b", manifest=tied))
    assert facts(found, "ties") == [("ties", True, "", ())]
    found = compared(subject("a", manifest=loose), subject("b", manifest=tied))
    text = "0.weight and 1.weight are tied here, not there"
    assert facts(found, "ties") == [("ties", False, text, (text,))]
    found = compared(subject("a", manifest=tied), subject("b", manifest=loose))
    text = "0.weight and 1.weight are tied there, their targets are not: say net.tie('1.weight', '0.weight')"
    assert facts(found, "ties") == [("ties", False, text, (text,))]


def test_a_tie_of_what_nothing_makes_is_no_tie_more(compared: Compare) -> None:
    """And neither is one of what is made of nothing, as a bias that is absent there."""
    other = {**TIED, "1.bias": np.float32([0, 0]), "5.gamma": np.float32([1, 2, 3])}
    tied = side(other, aliases={"5.gamma": ["6.gamma"], "1.bias": ["0.bias"]})
    found = compared(subject("a", manifest=side(TIED)), subject("b", manifest=tied))
    assert facts(found, "ties") == [("ties", True, "", ())]


def test_values_that_differ_are_named_and_known_causes_are_hints(
    compared: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cause(mine: np.ndarray, theirs: np.ndarray, move: Move) -> str:
        return f"{move.target} {mine.tolist()} {theirs.tolist()}" if "bias" in move.target else ""

    monkeypatch.setattr(hints, "explain_values", cause)
    other = side(values({"0.bias": np.float32([0.5, -0.5]), "2.weight": np.float32([[1, 2], [3, 4]])}))
    found = compared(subject("a"), subject("b", manifest=other))
    items = ("0.bias", "2.weight")
    assert facts(found, "structure", "values") == [
        ("structure", True, "", ()), ("values", False, "0.bias; 2.weight", items),
    ]  # fmt: skip
    assert found.pairs[0].hints == ["0.bias [0.5, -0.25] [0.5, -0.5]"]


def test_values_are_the_same_in_the_coarser_of_both_dtypes(compared: Compare) -> None:
    wide = values({"0.bias": np.float64([0.1, math.nan])})
    narrow = values({"0.bias": np.float32([0.1, math.nan])})
    else_ = values({"0.bias": np.float64([0.100001, math.nan])})
    pairs_of = [(wide, narrow, True, "rounded to float32"), (narrow, wide, True, "rounded to float32"),
                (narrow, narrow, True, ""), (narrow, else_, False, ""), (else_, narrow, False, "")]  # fmt: skip
    for one, other, same, said in pairs_of:
        found = compared(subject("a", manifest=side(one)), subject("b", manifest=side(other)))
        (check,) = [check for check in found.checks if check.check == "values"]
        assert (check.agrees, check.expected) == (same, said)


# -- models: histograms


def test_histograms_are_of_values_and_gradients(compared: Compare) -> None:
    grads = {**ONES, "2.bias": np.float32([3, 1])}
    assert compared(subject("a"), subject("b")).pairs[0].histograms == []
    found = compared(subject("a"), subject("b", gradients=grads), histograms=True).pairs[0].histograms
    assert [(each.what, each.parameter, each.reference) for each in found] == [
        (what, name, name) for what in ("value", "gradient") for name in VALUES
    ]
    weight = [1, *[0] * 12, 2, *[0] * 25, 1]  # 0.25, twice 0.5, and 1, in 40 bins
    assert found[0] == Histogram("0.weight", "0.weight", "value", 0.25, 1.0, weight, weight)
    assert found[3] == Histogram("2.bias", "2.bias", "value", -0.5, 0.5, *[[*[0] * 20, 2, *[0] * 19]] * 2)
    assert found[7] == Histogram("2.bias", "2.bias", "gradient", 1.0, 3.0, [2, *[0] * 39], [1, *[0] * 38, 1])


def test_histograms_of_what_is_not_finite_or_not_there(compared: Compare) -> None:
    empty = {"4.weight": np.zeros((0, 2), np.float32)}
    one = {"0.bias": np.float32([math.nan, -2]), "2.bias": np.float32([math.inf, math.nan])}
    other = {"0.bias": np.float32([-math.inf, 6]), "2.bias": np.float32([math.nan, math.nan])}
    sides = [side({**VALUES, **each, **empty}) for each in (one, other)]
    subjects = [subject(name, manifest=each) for name, each in zip("ab", sides, strict=True)]
    found = compared(*subjects, histograms=True).pairs[0].histograms
    nothing = [0] * 40
    assert found[1] == Histogram("0.bias", "0.bias", "value", -2.0, 6.0, [1, *[0] * 39], [*[0] * 39, 1])
    assert found[3] == Histogram("2.bias", "2.bias", "value", -0.5, 0.5, nothing, nothing)
    assert found[4] == Histogram("4.weight", "4.weight", "value", -0.5, 0.5, nothing, nothing)


# -- models: outputs and layers


def test_the_farthest_of_several_outputs_counts(compared: Compare) -> None:
    one, two = [OUTPUT, OUTPUT], [OUTPUT + 5 * EPS, OUTPUT + 3 * EPS]
    for outputs, eps in ((two, 5.0), (two[::-1], 5.0), ([OUTPUT], math.inf), ([*one, OUTPUT], math.inf)):
        found = compared(
            subject("a", passes={dtype: gone(one) for dtype in WIDE}),
            subject("b", passes={dtype: gone(outputs) for dtype in WIDE}),
        )
        assert numbers(found)[0] == ("outputs", "float64", eps, 1024)
    nothing = {dtype: gone([]) for dtype in WIDE}
    assert numbers(compared(subject("a", passes=nothing), subject("b", passes=nothing)))[0][2] == 0.0


def test_the_other_models_outputs_are_held_against_the_references(compared: Compare) -> None:
    found = compared(subject("a"), subject("b", passes={dtype: gone(OUTPUT * 4) for dtype in WIDE}))
    assert numbers(found)[0][2] == 3 / EPS
    pair = found.pairs[0]
    assert pair.parted == "after layer 2, whose output agrees" and (pair.hints, pair.first) == ([], {})


OPTION = ({"0": {"eps": 1e-5}, "2": {"eps": 1e-5}}, {"0": {"eps": 1e-6}, "2": {"eps": 1e-3}})


def test_the_layer_at_which_they_part_is_named_with_its_options(compared: Compare, causes: None) -> None:
    one, other = (side(options=options) for options in OPTION)
    way = otherwise(1, output=OUTPUT * 2, outputs=(OUTPUT * 2,))
    found = compared(subject("a", manifest=one), subject("b", manifest=other, **way))
    (pair,) = found.pairs
    assert pair.parted == "at layer 2: its inputs agree (0 eps) and its output does not (4.5e+15 eps)"
    assert pair.hints == ["2 there, 2 here, which gives [[2.0, 1.0]]", "2: eps is 1e-05 there, 0.001 here"]
    assert pair.first == {"": 1} and pair.dtype == "float64"
    assert pair.layers == {"": [LayerDistance("0", "0", 0.0, 0.0), LayerDistance("2", "2", 0.0, 1 / EPS)]}
    assert numbers(found)[1] == ("2 layers on the way", "float64", 1 / EPS, 1024)


def test_options_are_no_cause_of_what_differs_before_a_layer(compared: Compare, causes: None) -> None:
    one, other = (side(options=options) for options in OPTION)
    way = otherwise(1, output=OUTPUT * 2, inputs=(np.array([[0.25, 0.0]]),), outputs=(OUTPUT * 2,))
    pair = compared(subject("a", manifest=one), subject("b", manifest=other, **way)).pairs[0]
    assert pair.parted == "between layers 0 and 2, whose inputs are 3.38e+15 eps apart" and pair.first == {"": 1}
    assert pair.hints == ["0 [[1.0, -0.5]] to 2 [[1.0, 0.0]] there, 0 [[1.0, -0.5]] to 2 [[0.25, 0.0]] here"]


def test_a_model_that_is_one_layer_has_options_too(compared: Compare, causes: None) -> None:
    weight = {"weight": VALUES["0.weight"]}
    one, other = (side(weight, options={"": {"eps": eps}}) for eps in (1e-5, 1e-6))
    ways = [{dtype: gone(OUTPUT * n, way=[LayerCall("", (X,), (HIDDEN * n,))]) for dtype in WIDE} for n in (1, 2)]
    pair = compared(subject("a", manifest=one, passes=ways[0]), subject("b", manifest=other, passes=ways[1])).pairs[0]
    assert pair.parted.startswith("at layer the model: ") and pair.hints[1:] == [
        "the model: eps is 1e-05 there, 1e-06 here"
    ]


def test_layers_of_other_names_are_followed_as_their_parameters_go(compared: Compare) -> None:
    renamed = {name.replace("0.", "first."): value for name, value in VALUES.items()}
    way = [WAY[0]._replace(layer="first"), WAY[1]]
    other = subject("b", manifest=side(renamed), passes={dtype: gone(way=way) for dtype in WIDE})
    assert compared(subject("a"), other).pairs[0].layers == {
        "": [LayerDistance("0", "first", 0.0, 0.0), LayerDistance("2", "2", 0.0, 0.0)]
    }


def test_inputs_after_a_flattening_are_followed_in_the_order_of_the_other(compared: Compare) -> None:
    """Two channels of two positions: channel by channel there, position by position here."""
    kernel = np.zeros((2, 1, 1, 1), np.float32)
    there = {"0.weight": kernel, "1.weight": np.float32([[10, 11, 20, 21, 30, 31][:4]])}
    here = {**there, "1.weight": np.float32([[10, 20, 11, 21]])}
    sides = [side(each, {"0": "conv"}, order=order) for each, order in ((there, "first"), (here, "last"))]
    flat = np.array([[1.0, 2.0, 3.0, 4.0]])
    ways = [[LayerCall("1", (each,), (OUTPUT,))] for each in (flat, flat[:, [0, 2, 1, 3]])]
    grads = [{"1.weight": each["1.weight"]} for each in (there, here)]
    subjects = [
        subject(name, manifest=each, passes={dtype: gone(way=way) for dtype in WIDE}, gradients=grad)
        for name, each, way, grad in zip("ab", sides, ways, grads, strict=True)
    ]
    found = compared(*subjects)
    assert found.agrees and found.pairs[0].layers == {"": [LayerDistance("1", "1", 0.0, 0.0)]}


# -- models: which dtype is judged


def one_of(name: str, dtypes: Sequence[str], eps: float) -> RecordedSubject:
    """A subject whose outputs are as many of float64's eps away, twice of them in its own dtype."""
    passes = {dtype: gone(OUTPUT + i * eps * EPS) for i, dtype in enumerate(dtypes, 1)}
    return subject(name, dtypes=tuple(dtypes), passes=passes)


@pytest.mark.parametrize(
    "mine, theirs, outputs",
    [
        (WIDE, WIDE, [("outputs", "float64", 8.0, 1024), ("outputs", "float32", 16 * EPS / EPS32, 16384)]),
        (["float64"], ["float64"], [("outputs", "float64", 8.0, 1024)]),
        (["float64"], WIDE, [("outputs", "float64", 8.0, 1024), ("outputs", "float32", 16 * EPS / EPS32, 16384)]),
        (["float32"], WIDE, [("outputs", "float32", 16 * EPS / EPS32, 1024)]),
        (WIDE, ["float32"], [("outputs", "float32", 8 * EPS / EPS32, 1024)]),
        (["float64"], ["float32"], [("outputs", "float32", 8 * EPS / EPS32, 1024)]),
        (["float16"], ["float32"], [("outputs", "float16", 8 * EPS * 1024, 128)]),
        (["float32"], ["float16"], [("outputs", "float16", 8 * EPS * 1024, 128)]),
        (["float64", "float16"], WIDE,
         [("outputs", "float64", 8.0, 1024), ("outputs", "float16", 16 * EPS * 1024, 128)]),
    ],
    ids=str,
)  # fmt: skip
def test_outputs_are_judged_in_float64_where_both_can_and_in_their_own_dtype(
    compared: Compare, mine: Sequence[str], theirs: Sequence[str], outputs: list[Any]
) -> None:
    found = compared(one_of("a", mine, 0), one_of("b", theirs, 8))
    assert [each for each in numbers(found) if each[0] == "outputs"] == outputs
    assert found.pairs[0].dtype == outputs[0][1] == numbers(found)[1][1]


def test_the_reference_is_run_in_its_own_dtype_where_float64_is_not_both() -> None:
    """What float64 gives is no truth for a model of float32 where the other one cannot be run so."""
    reference = one_of("a", WIDE, 4)
    reference_judge = pairs.ReferenceJudge(reference, pairs.BOUNDS, False)
    assert reference_judge.judge(one_of("b", ["float32"], 8), None).checks[4].distance == 0.0


@pytest.mark.parametrize(
    "own, eps, gradient, training",
    [("float16", 2.0**-10, 128, 128), ("float32", EPS32, 16384, 65536), ("float64", EPS, 16384, 65536)],
)
def test_gradients_and_training_are_judged_in_the_coarser_of_both_dtypes(
    compared: Compare, own: str, eps: float, gradient: float, training: float
) -> None:
    """In half precision no stated bound is more than an eighth."""
    large = {name: value.astype(np.float64) + 0.5 for name, value in ONES.items()}
    for dtypes in ((["float64"], [own]), ([own], ["float64"])):
        pair = [
            subject(name, dtypes=tuple(each), passes={dtype: gone() for dtype in each}, gradients=grads, final=grads)
            for name, each, grads in zip("ab", dtypes, (ONES, large), strict=True)
        ]
        assert numbers(compared(*pair))[-2:] == [
            ("gradients", own, 0.5 / eps, gradient), ("2 steps of sgd", own, 0.5 / eps, training),
        ]  # fmt: skip


def test_a_bound_that_is_asked_for_counts_in_half_precision_too(compared: Compare) -> None:
    pair = one_of("a", ["float16"], 0), one_of("b", ["float16"], 8)
    assert {check.bound for check in compared(*pair, rtol_eps=5000).checks} == {None, 5000}


class Narrow(RecordedSubject):
    """A model that was thought to run in float64, and then does not."""

    def run(self, dtype: str, on_call: Any = None) -> list[np.ndarray]:
        return super().run(self._narrowed(dtype), on_call)

    def run_with_cache(self, dtype: str) -> tuple[list[np.ndarray], Any]:
        return super().run_with_cache(self._narrowed(dtype))

    def _narrowed(self, dtype: str) -> str:
        if dtype == "float64":
            self.dtypes = ("float32",)
            raise NotInFloat64
        return dtype


@pytest.mark.parametrize("at", [0, 1], ids=["the reference", "the other"])
def test_a_model_that_does_not_run_in_float64_is_judged_in_its_own_dtype(compared: Compare, at: int) -> None:
    subjects = [one_of("a", WIDE, 0), one_of("b", WIDE, 8)]
    subjects[at] = Narrow(**vars(subjects[at]))
    found = compared(*subjects, one_of("c", WIDE, 8))
    assert numbers(found) == [
        ("outputs", "float32", 16 * EPS / EPS32, 1024),
        ("2 layers on the way", "float32", 0.0, 1024),
        ("gradients", "float32", 0.0, 16384),
    ]
    assert found.pairs[0].dtype == "float32"
    assert found.pairs[1].dtype == ("float32" if at == 0 else "float64")


class Counted(RecordedSubject):
    """A recording that counts what it is asked for."""

    asked: list[str]

    def run_with_cache(self, dtype: str) -> tuple[list[np.ndarray], Any]:
        self.asked.append(dtype)
        return super().run_with_cache(dtype)

    def grads(self) -> Any:
        self.asked.append("gradients")
        return super().grads()

    def trained(self) -> Any:
        self.asked.append("training")
        return super().trained()


def test_the_reference_is_asked_once() -> None:
    reference = Counted(**vars(subject("a", final=ONES)))
    reference.asked = []
    reference_judge = pairs.ReferenceJudge(reference, pairs.BOUNDS, False)
    for dtypes in (WIDE, WIDE, ["float32"]):
        assert reference_judge.judge(subject("b", final=ONES, dtypes=tuple(dtypes)), None).agrees
    assert reference.asked == ["float64", "gradients", "training", "float32"]


# -- models: gradients and training


@pytest.mark.parametrize("missing", ["a", "b"])
def test_gradients_that_one_does_not_give_are_expected(compared: Compare, missing: str) -> None:
    found = compared(*(subject(name, gradients=None if name == missing else ONES) for name in "ab"), histograms=True)
    assert found.checks[-1] == Check(
        "", "gradients", "b", True, expected=f"{missing} was recorded without: numpy gave none."
    )
    assert found.agrees and len(found.pairs[0].histograms) == 4


def test_the_farthest_gradient_is_named(compared: Compare) -> None:
    grads = {**ONES, "0.bias": np.float32([1, 2]), "2.weight": np.float32([[1, 1.5], [1, 1]])}
    found = compared(subject("a"), subject("b", gradients=grads))
    assert found.checks[-1] == Check("", "gradients", "b", False, "float32", 1 / EPS32, 16384, "0.bias")


SMALL = 2.0**-20  # 8 eps of float32


@pytest.mark.parametrize(
    "largest, truth, eps",
    [(1, 0, 2.0**13), (1, SMALL, 2.0**13), (1, 2.0**-9, 2.0**12), (4, 0, 2.0**11), (0, 0, math.inf)],
)
def test_gradients_that_should_be_zero_are_measured_by_the_largest(
    compared: Compare, largest: float, truth: float, eps: float
) -> None:
    """By a thousandth of the largest that is a number and goes somewhere: there is only the rounding of others."""
    assert by_plan.SMALL == 1 / 1024
    more = {"4.table": np.float32([[9, 9, 9]])}  # which goes nowhere
    mine = {name: np.zeros_like(value) for name, value in VALUES.items()}
    mine |= {"0.weight": np.float32([[0, 0], [-largest, math.nan]]), "0.bias": np.float32([math.inf, 0])}
    mine |= {"2.bias": np.float32([truth, 0])}
    theirs = {**mine, "2.bias": np.float32([truth, SMALL])}
    reference = subject("a", gradients={**mine, **more}, manifest=side({**VALUES, **more}), final=mine)
    found = compared(reference, subject("b", gradients=theirs, final=theirs))
    assert found.checks[-2] == Check(
        "", "gradients", "b", eps < math.inf, "float32", eps, 16384, "" if eps < math.inf else "2.bias"
    )
    assert found.checks[-1].distance == (SMALL / truth / EPS32 if truth else math.inf)  # of what is trained, by its own


def test_gradients_of_nothing_are_not_apart(compared: Compare) -> None:
    assert compared(subject("a", gradients={}), subject("b", gradients={})).checks[-1].distance == 0


def test_training_is_named_after_its_steps_and_optimizer(compared: Compare) -> None:
    task = Task((X,), steps=3, optimizer="adam", lr=0.5)
    end = {**ONES, "2.weight": np.float32([[1, 1.5], [1, 1]])}
    found = compared(subject("a", final=ONES, task=task), subject("b", final=end, task=task))
    assert found.checks[-1] == Check("", "3 steps of adam", "b", False, "float32", 0.5 / EPS32, 65536, "2.weight")
    assert found.options["optimizer"] == "adam" and found.options["lr"] == 0.5


def test_gradients_of_what_only_one_side_has_are_not_compared(compared: Compare) -> None:
    less = {name: value for name, value in ONES.items() if name != "0.bias"}
    for one, other in ((less, ONES), (ONES, less)):
        found = compared(subject("a", gradients=one), subject("b", gradients=other))
        assert found.agrees and numbers(found)[-1][2] == 0.0


def cells(**leaves: Any) -> dict[str, np.ndarray]:
    return {f"0.{name}_l0": np.asarray(value, np.float32) for name, value in leaves.items()}


def test_gradients_go_as_the_parameters_do(compared: Compare) -> None:
    """Of two biases that are summed each has the sum's; of one that stays zero in part nobody knows."""
    weights = {"weight_ih": np.ones((3, 2)), "weight_hh": np.ones((3, 1))}
    one = cells(**weights, bias_ih=[1, 2, 3], bias_hh=[1, 1, 0])
    other = cells(**weights, bias_ih=[2, 3, 3])
    grads = cells(bias_ih=[1, 0.5, 0.25], bias_hh=[1, 0.5, 0.125])
    gru = [side(each, {"0": "gru"}) for each in (one, other)]
    subjects = [subject(name, manifest=each, gradients=grads) for name, each in zip("ab", gru, strict=True)]
    found = compared(*subjects, histograms=True)
    assert found.checks[3].agrees and numbers(found)[-1] == ("gradients", "float32", 0.0, 16384)
    assert found.pairs[0].histograms[2].reference == "0.bias_ih_l0 + 0.bias_hh_l0"
    weights["bias_ih"] = np.float32([1, 2, 3])
    one, other = cells(**weights, bias_hn=[4]), cells(**weights, bias_hh=[0, 0, 4])
    gru = [side(each, {"0": "gru"}) for each in (one, other)]
    found = compared(
        subject("a", manifest=gru[0], gradients=cells(bias_hn=[5])),
        subject("b", manifest=gru[1], gradients=cells(bias_hh=[7, 7, 7])),
        histograms=True,
    )
    assert found.checks[3].agrees and numbers(found)[-1] == ("gradients", "float32", 0.0, 16384)
    assert {each.what for each in found.pairs[0].histograms} == {"value"}


def test_a_bias_that_is_absent_there_has_no_gradient_to_compare(compared: Compare) -> None:
    less = {name: value for name, value in VALUES.items() if name != "2.bias"}
    found = compared(subject("a", manifest=side(less)), subject("b", gradients={**ONES, "2.bias": np.float32([9, 9])}))
    assert found.agrees, str(found)


# -- models: what is compared with what


def test_each_is_held_against_the_one_of_its_name_or_else_the_first(compared: Compare) -> None:
    def giving(name: str, eps: int) -> RecordedSubject:
        return subject(name, passes={dtype: gone(OUTPUT + eps * EPS) for dtype in WIDE})

    golden = [replace(giving("one", 0), name="one@golden"), replace(giving("two", 100), name="two@golden")]
    found = compared(giving("two", 100), giving("three", 7), giving("one", 3), against=golden)
    assert found.reference == "one@golden" and [pair.name for pair in found.pairs] == ["two", "three", "one"]
    assert [pair.checks[4].distance for pair in found.pairs] == [0, 7, 3]
    assert list(found.models) == ["one@golden", "two", "three", "one"]
    assert [each["name"] for each in found.environments] == [
        "one.safetensors", "two.safetensors", "three.safetensors",
    ]  # fmt: skip


def test_without_a_golden_file_all_are_held_against_the_first(compared: Compare) -> None:
    """Even where recordings of other files have the same names."""
    twin = replace(subject("b"), model="a")
    found = compared(subject("a"), twin, subject("c"))
    assert [pair.name for pair in found.pairs] == ["b", "c"] and found.reference == "a"


def test_fewer_than_two_models_are_nothing_to_compare(compared: Compare) -> None:
    for given, count in ((lambda: compared(subject("a")), 1), (lambda: models.compare({}, X), 0),
                         (lambda: compared(against=[subject("b")]), 1)):  # fmt: skip
        with pytest.raises(errors.InvalidArgument, match=rf"^mp\.compare needs two models .* it gets {count}\.$"):
            given()
    assert compared(subject("a"), against=[subject("b")]).reference == "golden"  # after its file


def test_recordings_of_another_task_are_not_compared(compared: Compare) -> None:
    with pytest.raises(errors.InvalidArgument) as said:
        compared(subject("a"), subject("b", task=Task((X + 1,))))
    assert str(said.value) == "b was recorded on other inputs. Leave them out, and its own are taken."
    with pytest.raises(errors.InvalidArgument) as said:
        compared(subject("a"), subject("b", task=Task((X,), objective=max)))
    assert str(said.value) == "b was recorded with objective 'max', not 'mean of the squared outputs'."


# -- models: live ones, of which only what compare asks of them is there


class Net:
    """Stands for a wrapped model: where its data has the channels, and what is other than in ``subject``."""

    def __init__(self, order: str | None = None, **changes: Any) -> None:
        self._store = SimpleNamespace(host=SimpleNamespace(data_order=order))
        self.changes = changes


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What was done with models that are live: wrapped, run on a task, given weights, recorded."""
    done: dict[str, list[Any]] = {"wrapped": [], "run": [], "given": [], "recorded": []}

    class Ran(LiveSubject):
        def __init__(self, name: str, net: Any, task: Task, caller: Any) -> None:
            vars(self).update(
                vars(subject(name, **net.changes)) | {"net": net, "task": task, "source": "", "_caller": caller}
            )
            done["run"].append(self)

        run, run_with_cache = RecordedSubject.run, RecordedSubject.run_with_cache
        grads, trained = RecordedSubject.grads, RecordedSubject.trained

    def wrap(native: Any, examples: Any) -> Net:
        done["wrapped"].append((native, *examples))
        return Net()

    monkeypatch.setattr(models, "Model", Net)
    monkeypatch.setattr(models, "LiveSubject", Ran)
    monkeypatch.setattr(models, "wrap", wrap)

    def transfer(*given: Any, **options: Any) -> Any:
        done["given"].append((*given, options))
        return SimpleNamespace(plan=SimpleNamespace(moves=[]))

    monkeypatch.setattr(apply_module, "transfer", transfer)
    monkeypatch.setattr(apply_module, "transfer_for_judging", transfer)
    monkeypatch.setattr(models, "write_models", lambda *given: done["recorded"].append(given))
    return done


def test_native_models_are_wrapped_and_run_on_what_is_asked_for(live: dict[str, list[Any]]) -> None:
    y = np.array([1])
    found = models.compare(
        {"a": b"native", "b": Net()}, (X, X + 1), targets=y, objective=max, steps=4, optimizer="adam", lr=0.5,
        layers=["0*"],
    )  # fmt: skip
    assert found.reference == "a" and [pair.name for pair in found.pairs] == ["b"]
    assert [each.name for each in live["run"]] == ["a", "b"]
    ((native, *examples),) = live["wrapped"]
    assert native == b"native" and [each.tolist() for each in examples] == [[[1, -1]], [[2, 0]]]
    for each in live["run"]:
        task = each.task
        assert [a.tolist() for a in task.inputs] == [[[1, -1]], [[2, 0]]] and task.targets[0] is y
        assert task.objective is max and (task.steps, task.optimizer, task.lr) == (4, "adam", 0.5)
        assert task.layers == ("0*",)
    assert found.environments == [{"python": "3.11", "name": "here"}]
    assert found.options["layers"] == ["0*"] and "sync" not in found.options
    assert found.checks[-1].check == "4 steps of adam"


def test_one_array_and_what_is_not_asked_for(live: dict[str, list[Any]]) -> None:
    models.compare({"a": Net(), "b": Net()}, X)
    (a,) = live["run"][0].task.inputs
    assert a is X and replace(live["run"][0].task, inputs=()) == Task(())
    with pytest.raises(errors.InvalidArgument) as said:
        models.compare({"a": Net(), "b": Net()})
    assert str(said.value) == "Models are compared on inputs: give some."


IMAGES = np.zeros((1, 4, 4, 3), np.float32)


@pytest.mark.parametrize(
    "orders, recorded, shape",
    [
        (("last", "first"), None, (1, 3, 4, 4)),
        (("first", "last"), None, (1, 4, 4, 3)),
        ((None, "last"), None, (1, 4, 4, 3)),
        (("last",), "first", (1, 3, 4, 4)),  # the live one is the reference
    ],
)
def test_inputs_are_in_the_order_of_the_reference(
    compared: Compare, live: dict[str, list[Any]], orders: Sequence[str], recorded: str | None, shape: tuple[int, ...]
) -> None:
    given: dict[str, Any] = {f"m{i}": Net(order) for i, order in enumerate(orders)}
    if recorded:
        other = subject("r", manifest=side(order=recorded), task=Task((np.moveaxis(IMAGES, -1, 1),)))
        compared(other, against=[other])  # it is a file now
        given["r"] = Path("r.st")
    models.compare(given, IMAGES)
    assert [each.task.inputs[0].shape for each in live["run"]] == [shape] * len(orders)


@pytest.mark.parametrize("order, shape", [("last", (1, 3, 4, 4)), ("first", (1, 4, 4, 3)), (None, (1, 4, 4, 3))])
@pytest.mark.parametrize("golden", [True, False])
def test_inputs_are_in_the_order_of_a_recorded_reference(
    compared: Compare, live: dict[str, list[Any]], order: str | None, shape: tuple[int, ...], golden: bool
) -> None:
    other = subject("r", manifest=side(order=order), task=Task((np.zeros(shape, np.float32),)))
    compared(other, against=[other])
    if golden:
        models.compare({"m": Net("last" if order == "first" else "first")}, IMAGES, against=Path("golden.st"))
    else:
        models.compare({"r": "r.st", "m": Net("last" if order == "first" else "first")}, IMAGES)
    assert live["run"][0].task.inputs[0].shape == shape


def test_a_recordings_task_is_that_of_live_models_too(compared: Compare, live: dict[str, list[Any]]) -> None:
    task = Task((X,), (np.array([1]),), max, 2, "adam", 0.25)
    other = subject("r", task=task, final=ONES)
    compared(other, against=[other])
    found = models.compare({"m": b"native", "r": "r.st", "n": Net()})
    assert [pair.name for pair in found.pairs] == ["r", "n"] and found.reference == "m"
    assert live["run"][0].task == live["run"][1].task == task
    assert live["wrapped"] == [(b"native", X)]


def test_the_weights_of_one_are_given_to_the_others_that_are_live(live: dict[str, list[Any]]) -> None:
    nets = {"a": Net(), "b": Net(), "c": Net()}
    rules = {"x": "y"}
    with pytest.raises(errors.InvalidArgument, match="fits no source name"):  # it was to be handed on
        models.compare(nets, X, sync="a", rules=rules)
    assert [each[:3] for each in live["given"]] == [(nets["a"], nets[name], rules) for name in "bc"]
    assert all(options.keys() == {"verify"} for *_, options in live["given"])  # guesses are to be proved
    live["given"].clear()
    found = models.compare(nets, X, sync="b")
    assert [each[:3] for each in live["given"]] == [(nets["b"], nets[name], None) for name in "ac"]
    assert found.options["sync"] == "b" and found.options["steps"] == 0


def test_rules_are_of_the_reference_alone(live: dict[str, list[Any]]) -> None:
    nets = {"a": Net(), "b": Net()}
    models.compare(nets, X, sync="b", rules={"0": "0"})
    assert [each[:3] for each in live["given"]] == [(nets["b"], nets["a"], None)]


def test_the_weights_of_a_recording_are_given_to_live_models(compared: Compare, live: dict[str, list[Any]]) -> None:
    golden = [replace(subject("one"), name="one@golden"), replace(subject("two"), name="two@golden")]
    compared(subject("r"), against=golden)
    net = Net()
    for sync, source in (("one@golden", golden[0]), ("two", golden[1]), ("r", None)):
        live["given"].clear()
        models.compare({"m": net, "r": "r.st"}, against="golden.st", sync=sync)
        ((weights, target, rules, options),) = live["given"]
        assert options == {}  # a recording cannot be run to prove a guess
        assert target is net and rules is None
        assert weights is source.manifest if source else weights.title == "net"


def test_weights_of_nobody(compared: Compare) -> None:
    with pytest.raises(errors.InvalidArgument) as said:
        compared(subject("a"), subject("b"), sync="c")
    assert str(said.value) == "sync='c' names no model of 'a', 'b'."


def test_what_is_recorded(live: dict[str, list[Any]], tmp_path: Path) -> None:
    net, path = Net("last"), tmp_path / "run.safetensors"
    assert models.record(str(path), net, IMAGES, steps=3) == path
    assert models.record(path, {"a": net, "b": b"native"}, X, targets=(X,), objective=max, optimizer="adam", lr=0.5,
                         layers=["2"]) == path  # fmt: skip
    (one, two) = live["recorded"]
    assert one[0] == two[0] == path
    assert [each.name for each in one[1]] == ["model"] and [each.name for each in two[1]] == ["a", "b"]
    assert one[1][0].task.inputs[0].shape == (1, 3, 4, 4) and one[1][0].task.steps == 3
    task = two[1][0].task
    assert replace(task, inputs=(), targets=()) == Task((), (), max, 0, "adam", 0.5, ("2",))
    assert task.inputs[0].tolist() == X.tolist() and task.targets[0] is X
    assert replace(one[1][0].task, inputs=()) == Task((), steps=3)


def test_what_cannot_be_recorded(live: dict[str, list[Any]]) -> None:
    recorded = "mp.record takes models, not recordings of them."
    for path, given, text in (
        ("folder/run.pt", Net(), "A recording is a .safetensors file, not 'run.pt'."),
        ("run.safetensors", {"a": Net(), "b": Path("b.safetensors")}, recorded),
        ("run.safetensors", "b.safetensors", recorded),
    ):
        with pytest.raises(errors.InvalidArgument) as said:
            models.record(path, given, X)
        assert str(said.value) == text
    assert live["recorded"] == []


# -- a flattening that is inferred from the layers

KERNEL = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
ROWS = np.arange(24, dtype=np.float32).reshape(3, 8)  # of inputs that are two channels of four
TURNED = ROWS.reshape(3, 2, 4).transpose(0, 2, 1).reshape(3, 8)  # channels last


def convolutional(name: str, weight: np.ndarray, order: str, **changes: Any) -> RecordedSubject:
    """A convolution whose channels a linear layer takes flattened, in this order as far as layers tell."""
    arrays = {"0.weight": KERNEL, "2.weight": weight}
    about = side(arrays, {"0": "conv"}, order=order)
    return subject(name, manifest=about, gradients={**arrays, "2.weight": weight + 1}, **changes)


def test_a_flattening_is_inferred_where_the_orders_differ(compared: Compare) -> None:
    found = compared(convolutional("a", ROWS, "first"), convolutional("b", TURNED, "last"))
    move = found.pairs[0].plan.moves[1]  # type: ignore[union-attr]
    assert found.agrees and move.permutation is not None and move.make().tolist() == TURNED.tolist()
    assert [check.distance for check in found.checks if check.check == "gradients"] == [0.0]


def test_a_flattening_that_the_values_know_nothing_of_is_left_out_where_outputs_agree(compared: Compare) -> None:
    found = compared(convolutional("a", ROWS, "first"), convolutional("b", ROWS, "last"))
    moves = found.pairs[0].plan.moves  # type: ignore[union-attr]
    assert found.agrees, str(found)
    assert [move.target for move in moves] == ["0.weight", "2.weight"] and moves[1].permutation is None
    assert moves[1].make().tolist() == ROWS.tolist() and moves[0].make().tolist() == KERNEL.tolist()
    assert [check.distance for check in found.checks if check.check == "gradients"] == [0.0]


@pytest.mark.parametrize("weight", [ROWS, ROWS + 1, TURNED], ids=["as there", "another", "permuted"])
def test_a_flattening_stays_inferred_where_outputs_do_not_agree(compared: Compare, weight: np.ndarray) -> None:
    far = {"passes": {dtype: gone(OUTPUT + 1) for dtype in WIDE}}
    found = compared(convolutional("a", ROWS, "first"), convolutional("b", weight, "last", **far))
    move = found.pairs[0].plan.moves[1]  # type: ignore[union-attr]
    assert not found.agrees and move.permutation is not None and move.make().tolist() == TURNED.tolist()
    wrong = [check.items for check in found.checks if check.check == "values"]
    assert wrong == [() if weight is TURNED else ("2.weight",)]
    assert len([check for check in found.checks if check.check == "structure"]) == 1


def test_another_difference_leaves_the_flattening_too(compared: Compare) -> None:
    """Values of neither order say nothing of it: the pair is judged as it was planned."""
    found = compared(convolutional("a", ROWS, "first"), convolutional("b", ROWS + 1, "last"))
    assert not found.agrees and found.pairs[0].plan.moves[1].permutation is not None  # type: ignore[union-attr]


# -- models: how far rounding alone goes


class Responding(RecordedSubject):
    """A recording that knows how far its outputs go where some parameters move, and keeps what it was asked."""

    response = 0.0
    asked: list[tuple[list[str], float]]

    def response_to(self, names: Any, size: float) -> float:
        self.asked.append((list(names), size))
        return self.response


def responding(name: str, response: float, **changes: Any) -> Responding:
    """Such a subject."""
    made = Responding(**vars(subject(name, **changes)))
    made.asked, made.response = [], response
    return made


def judged(reference: RecordedSubject, candidate: RecordedSubject, **bounds: float) -> Pair:
    """One pair, with stated bounds but for those that are given."""
    return pairs.ReferenceJudge(reference, {**pairs.BOUNDS, **bounds}, False).judge(candidate, None)


def check_of(pair: Pair, name: str, dtype: str = "") -> Check:
    """The pair's one check of this name, in this dtype."""
    (check,) = [each for each in pair.checks if each.check.endswith(name) and (not dtype or each.dtype == dtype)]
    return check


def away(eps: float, way: Sequence[LayerCall] = WAY) -> dict[str, Any]:
    """Passes of which the second output in float64 is so many eps from the usual one."""
    exact = [OUTPUT, OUTPUT]
    return {"passes": {"float64": gone([OUTPUT, OUTPUT + eps * EPS], way=way), "float32": gone(exact)}}


@pytest.mark.parametrize("floors", [(1024, 0), (0, 1024), (1024, 512), (512, 1024)], ids=str)
def test_outputs_beyond_their_bound_are_held_under_the_larger_noise_floor(floors: tuple[int, int]) -> None:
    reference, candidate = (subject(name, floor=eps * EPS) for name, eps in zip("ab", floors, strict=True))
    at = judged(replace(reference, **away(0)), replace(candidate, **away(8192)))
    beyond = judged(replace(reference, **away(0)), replace(candidate, **away(8193)))
    assert check_of(at, "outputs", "float64") == Check("", "outputs", "b", True, "float64", 8192, 8192, floor=1024)
    assert check_of(beyond, "outputs", "float64") == Check(
        "", "outputs", "b", False, "float64", 8193, 8192, "[1]", floor=1024
    )
    assert check_of(at, "layers on the way").bound == 8192  # what goes into the outputs is as noisy


def test_layers_are_followed_again_under_the_noise_floor(causes: None) -> None:
    """The first layer is within the noise, the second is not."""
    way = [
        WAY[0]._replace(outputs=(HIDDEN + [[0, 4096 * EPS]],)),
        WAY[1]._replace(inputs=(np.array([[1.0, 4096 * EPS]]),), outputs=(OUTPUT * 2,)),
    ]
    pair = judged(subject("a", floor=1024 * EPS, **away(0)), subject("b", **away(9000, way)))
    assert pair.first == {"": 1} and pair.parted.startswith("at layer 2: its inputs agree (4.1e+03 eps)")


def test_a_noise_floor_below_the_bound_changes_nothing() -> None:
    pair = judged(subject("a", floor=10 * EPS, **away(0)), subject("b", **away(1025)))
    check = check_of(pair, "outputs", "float64")
    assert (check.agrees, check.bound, check.floor) == (False, 1024, 10)
    assert check_of(pair, "layers on the way").bound == 1024


@pytest.mark.parametrize(
    "change",
    [
        away(1024),  # they agree without
        {"passes": {dtype: gone([OUTPUT, OUTPUT[:, :1]]) for dtype in WIDE}},  # no rounding explains a shape
        {"dtypes": ("float32",), "passes": {"float32": gone([OUTPUT, OUTPUT * 2])}},
    ],
    ids=["agree", "shape", "not in float64"],
)
def test_no_noise_is_measured_where_it_decides_nothing(change: dict[str, Any]) -> None:
    pair = judged(subject("a", floor=1024 * EPS, **away(0)), subject("b", floor=1024 * EPS, **change))
    assert all(check.floor is None for check in pair.checks)


def test_no_noise_is_measured_where_the_user_says_how_far() -> None:
    pair = judged(subject("a", floor=1024 * EPS, **away(0)), subject("b", **away(2049)), output=2048)
    check = check_of(pair, "outputs", "float64")
    assert (check.agrees, check.bound, check.floor) == (False, 2048, None)


def test_outputs_that_are_no_numbers_are_undecided() -> None:
    """And no noise is measured of them, nor of the reference's own dtype."""
    nothing = {"passes": {dtype: gone(np.full((1, 2), math.nan)) for dtype in WIDE}}
    pair = judged(subject("a", floor=1024 * EPS, **nothing), subject("b", **nothing))
    why = "every number of the outputs is NaN"
    assert [each for each in pair.checks if each.undecided] == [
        Check("", "outputs", "b", False, detail=why, undecided=True)
    ]


SUMMED = {"weight_ih": np.ones((3, 2)), "weight_hh": np.ones((3, 1))}


def gru(**leaves: Any) -> dict[str, Any]:
    """What is another in a subject whose only layer is a GRU."""
    arrays = cells(**SUMMED, **leaves)
    return {"manifest": side(arrays, {"0": "gru"}), "gradients": {name: np.ones_like(a) for name, a in arrays.items()}}


def test_what_was_rounded_when_it_was_computed_is_noise() -> None:
    """The sum of two biases was rounded to the dtype that the candidate was made in: by half an eps of it at most."""
    there, here = gru(bias_ih=[1, 2, 3], bias_hh=[1, 1, 0]), gru(bias_ih=[2, 3, 3])
    reference = responding("a", 2048 * EPS, floor=1024 * EPS, **there, **away(0))
    pair = judged(reference, subject("b", **here, **away(16384)))
    assert reference.asked == [(["0.bias_ih_l0", "0.bias_hh_l0"], EPS32 / 2)]
    check = check_of(pair, "outputs", "float64")
    assert (check.agrees, check.bound, check.floor) == (True, 16384, 2048)


@pytest.mark.parametrize("packed", ["there", "here", "nowhere"])
def test_what_was_only_put_together_was_not_rounded(packed: str) -> None:
    """Queries, keys and values one below the other are the same numbers, and so are those that are taken apart."""
    apart = {f"0.{part}_proj_weight": np.full((2, 2), i, np.float32) for i, part in enumerate("qkv", 1)}
    whole = {"0.in_proj_weight": np.concatenate(list(apart.values()))}
    sides = {"there": (whole, apart), "here": (apart, whole), "nowhere": (apart, apart)}[packed]
    manifests = [side(each, {"0": "attention"}) for each in sides]
    reference = responding("a", 2048 * EPS, manifest=manifests[0], floor=1024 * EPS, **away(0))
    pair = judged(reference, subject("b", manifest=manifests[1], **away(16384)))
    assert pair.plan is not None and not pair.plan.missing and not pair.plan.refused
    assert reference.asked == [] and check_of(pair, "outputs", "float64").floor == 1024


# -- models: outputs in the models' own dtype


def own(there: Any, here: Any = OUTPUT, in_float64: float = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Passes of two models that give these in float32, and in float64 what is so many eps away."""
    passes = ((OUTPUT, there), (OUTPUT + in_float64 * EPS, here))
    first, second = ({"passes": {"float64": gone(wide), "float32": gone(narrow)}} for wide, narrow in passes)
    return first, second


@pytest.mark.parametrize("rounds, bound", [(1024, 16384), (4096, 32768)])
def test_outputs_may_be_some_times_as_far_as_the_reference_rounds(rounds: int, bound: int) -> None:
    for eps, agrees in ((bound, True), (bound + 1, False)):
        there, here = own(OUTPUT + rounds * EPS32, OUTPUT + eps * EPS32)
        check = check_of(judged(subject("a", **there), subject("b", **here)), "outputs", "float32")
        assert check == Check("", "outputs", "b", agrees, "float32", eps, bound)


def test_a_candidate_is_not_nearer_than_the_reference_itself() -> None:
    there, here = own(OUTPUT + 100 * EPS32)
    assert check_of(judged(subject("a", **there), subject("b", **here)), "outputs", "float32").distance == 100


def test_the_output_that_is_farthest_in_the_own_dtype_is_named() -> None:
    exact = [OUTPUT, OUTPUT]
    passes = [{"float64": gone(exact), "float32": gone([OUTPUT, OUTPUT + eps * EPS32])} for eps in (0, 16385, 5)]
    far, near = (judged(subject("a", passes=passes[0]), subject("b", passes=each)) for each in passes[1:])
    assert check_of(far, "outputs", "float32").detail == "[1]"
    assert check_of(near, "outputs", "float32").detail == ""


def test_a_reference_of_float64_rounds_not_at_all() -> None:
    """And is not run again to see it."""

    class Once(RecordedSubject):
        def run(self, dtype: str, on_call: Any = None) -> Any:
            raise AssertionError("it was run with its calls before")

    reference = Once(**vars(subject("a", dtypes=("float64",))))
    assert check_of(judged(reference, subject("b")), "outputs", "float32").distance == 0.0


def test_how_the_reference_rounds_counts_only_where_it_is_a_number_and_nobody_says_how_far() -> None:
    there, here = own(np.array([[math.inf, 0.5]]))
    check = check_of(judged(subject("a", **there), subject("b", **here)), "outputs", "float32")
    assert (check.distance, check.bound) == (0.0, 16384)
    there, here = own(OUTPUT + 4096 * EPS32)
    check = check_of(judged(subject("a", **there), subject("b", **here), numeric=100), "outputs", "float32")
    assert (check.distance, check.bound) == (0.0, 100)


@pytest.mark.parametrize("rounds, bound", [(1, 16), (4, 32)])
def test_where_float64_shows_less_the_own_numbers_have_to_be_close(rounds: int, bound: int) -> None:
    for eps, agrees in ((bound, True), (bound + 1, False)):
        there, here = own(OUTPUT + rounds * EPS32, OUTPUT + eps * EPS32, in_float64=2.0**20)
        check = check_of(judged(subject("a", floor=2.0**20 * EPS, **there), subject("b", **here)), "outputs", "float32")
        assert (check.agrees, check.distance, check.bound) == (agrees, eps, bound)


def test_a_floor_that_is_far_below_the_own_dtype_asks_for_no_closeness() -> None:
    """As where a difference of large numbers is taken in float64: no part of it is float32's."""
    for floor, bound in ((2.0**19, 16384), (2.0**19 + 1, 16)):
        there, here = own(OUTPUT, in_float64=2.0**20)
        check = check_of(judged(subject("a", floor=floor * EPS, **there), subject("b", **here)), "outputs", "float32")
        assert check.bound == bound


def test_what_a_model_rounds_more_it_rounds_in_float64_too() -> None:
    """In eps of either dtype; and no more than rounding can be."""
    for eps, agrees in ((1599, True), (1601, False)):
        for there, here in (own(OUTPUT, OUTPUT + EPS32 * 200, eps), own(OUTPUT + EPS32 * 200, OUTPUT, eps)):
            check = check_of(judged(subject("a", **there), subject("b", **here)), "outputs", "float64")
            assert (check.agrees, check.bound, check.floor) == (agrees, pytest.approx(1600), pytest.approx(200))
    there, here = own(OUTPUT, OUTPUT + 0.5, in_float64=2000)
    check = check_of(judged(subject("a", **there), subject("b", **here)), "outputs", "float64")
    assert (check.agrees, check.bound, check.floor) == (False, 1024, None)


def test_zeros_alone_are_undecided() -> None:
    nothing, zeros = np.zeros_like(OUTPUT), {name: np.zeros_like(value) for name, value in ONES.items()}
    passes = {"float64": gone(nothing), "float32": gone(nothing)}
    for grads, undecided in ((zeros, True), (None, True), (ONES, False), ({**zeros, "2.bias": ONES["2.bias"]}, False)):
        pair = judged(*(subject(name, passes=passes, gradients=grads) for name in "ab"))
        assert (pair.undecided, pair.agrees) == (undecided, not undecided)
    for leaf in (np.zeros((1, 2), int), OUTPUT):  # whole numbers are what they are
        more = {"float64": gone([nothing, leaf]), "float32": gone([nothing, leaf])}
        assert judged(*(subject(name, passes=more, gradients=zeros) for name in "ab")).agrees


# -- models: what outputs and gradients settle


def padded(padding: Any, **changes: Any) -> dict[str, Any]:
    """What is another in a subject whose first layer has this padding."""
    return {"manifest": side(options={"0": {"padding": padding}}), **changes}


@pytest.mark.parametrize(
    "reference, candidate, settled",
    [
        ({}, {}, True),
        ({}, {"passes": {"float64": gone(OUTPUT * 2), "float32": gone()}}, False),
        ({"floor": 1024 * EPS}, {"passes": {"float64": gone(OUTPUT + 2048 * EPS), "float32": gone()}}, False),
        ({"dtypes": ("float32",)}, {"dtypes": ("float32",)}, False),
        ({}, {"gradients": None}, False),
        ({}, {"gradients": {name: 2 * value for name, value in ONES.items()}}, False),
    ],
    ids=["exact", "far", "noisy", "single precision", "no gradients", "other gradients"],
)
def test_only_exact_outputs_and_gradients_settle_an_option(
    reference: dict[str, Any], candidate: dict[str, Any], settled: bool
) -> None:
    pair = judged(subject("a", **padded((0, 0), **reference)), subject("b", **padded("same", **candidate)))
    assert check_of(pair, "options").agrees is settled


def test_outputs_alone_settle_no_layers(causes: None) -> None:
    """Gradients are not compared where something is missing, or one side gives none."""
    cut = otherwise(0, outputs=(HIDDEN * 2,))
    more = side({**VALUES, "5.gamma": np.float32([1, 2, 3])})
    for change in ({"manifest": more}, {}):
        pair = judged(subject("a"), subject("b", **cut, **change))
        assert check_of(pair, "layers on the way").agrees is (not change)


def test_a_layer_under_two_names_is_no_tie_of_two() -> None:
    twice = side(ONE, aliases={"0.weight": ["1.weight"]})
    pair = judged(subject("a", manifest=side(ONE)), subject("b", manifest=twice))
    assert check_of(pair, "ties") == Check("", "ties", "b", True)


# -- models: gradients in float64, where their own dtype shows little


class Wide(RecordedSubject):
    """A subject that has gradients in float64, too."""

    wide: Any = None

    def grads_in_float64(self) -> Any:
        return self.wide


def wide(name: str, grads: Any, in_float64: Any, **changes: Any) -> Wide:
    """Such a subject."""
    made = Wide(**vars(subject(name, gradients=grads, **changes)))
    made.wide = in_float64
    return made


def slope(*away: tuple[float, float]) -> dict[str, np.ndarray]:
    """Gradients of which the largest is 1, and one so many of so large a unit from a half."""
    return {**ONES, "2.weight": array(1, 1, 1, 0.5 + sum(n * unit for n, unit in away)).reshape(2, 2)}


def slopes(pair: Pair) -> list[Check]:
    return [check for check in pair.checks if check.check == "gradients"]


@pytest.mark.parametrize("far, agrees", [(24000, True), (24001, False)])
def test_gradients_beyond_their_bound_are_judged_in_float64(far: int, agrees: bool) -> None:
    """They then may be some times as far in their own dtype as the reference's are from its own in float64."""
    reference = wide("a", slope(), slope((3000, EPS32)), floor=1024 * EPS)
    candidate = wide("b", slope((far, EPS32)), slope((3000, EPS32), (16384, EPS)), floor=1024 * EPS)
    assert slopes(judged(reference, candidate)) == [
        Check("", "gradients", "b", True, "float64", 16384, 16384),
        Check("", "gradients", "b", agrees, "float32", far, 24000, "" if agrees else "2.weight"),
    ]


def test_gradients_that_differ_in_float64_may_not_be_farther() -> None:
    reference = wide("a", slope(), slope((3000, EPS32)))
    candidate = wide("b", slope((24000, EPS32)), slope((3000, EPS32), (16385, EPS)))
    assert slopes(judged(reference, candidate)) == [
        Check("", "gradients", "b", False, "float64", 16385, 16384, "2.weight"),
        Check("", "gradients", "b", False, "float32", 24000, 16384, "2.weight"),
    ]


def test_gradients_in_float64_have_the_noise_of_the_outputs_and_more() -> None:
    bound = pairs.STEEP * 8 * 4096
    for far, agrees in ((bound, True), (bound + 1, False)):
        reference = wide("a", slope(), slope(), floor=4096 * EPS)
        check, _ = slopes(judged(reference, wide("b", slope((24000, EPS32)), slope((far, EPS)))))
        assert (check.agrees, check.distance, check.bound, check.floor) == (agrees, far, bound, 4096)


@pytest.mark.parametrize("there, here", [(None, ONES), (ONES, None), (None, None)])
def test_gradients_that_one_side_has_not_in_float64_are_judged_in_their_own_dtype(there: Any, here: Any) -> None:
    (check,) = slopes(judged(wide("a", slope(), there), wide("b", slope((16385, EPS32)), here)))
    assert (check.agrees, check.dtype, check.bound) == (False, "float32", 16384)


@pytest.mark.parametrize(
    "dtype, grads, bounds, count",
    [
        ("float32", slope((16384, EPS32)), {}, 1),  # within the bound
        ("float32", {**ONES, "2.weight": np.full((2, 2), math.nan)}, {}, 1),  # no rounding explains it
        ("float32", slope((101, EPS32)), {"gradient": 100}, 1),  # somebody says how far
        ("float16", slope(), {}, 2),  # half precision shows little
    ],
    ids=["within", "not a number", "asked for", "half precision"],
)
def test_gradients_are_judged_in_float64_where_it_decides_something(
    dtype: str, grads: Any, bounds: dict[str, float], count: int
) -> None:
    changes = {"dtypes": ("float64", dtype), "passes": {each: gone() for each in ("float64", dtype)}}
    pair = judged(wide("a", slope(), slope(), **changes), wide("b", grads, slope(), **changes), **bounds)
    assert len(slopes(pair)) == count


# -- models: a reference that its own dtype cannot hold


def test_a_reference_that_is_not_itself_in_its_own_dtype_is_no_truth_there() -> None:
    there, here = own(np.array([[math.inf, 0.5]]), np.array([[math.nan, 0.5]]))
    pair = judged(subject("a", **there), subject("b", **here))
    why = "in float32 the reference is not itself"
    assert [each for each in pair.checks if each.check == "outputs" and each.dtype == "float32"] == [
        Check("", "outputs", "b", True, "float32", expected=why)
    ]
    there, here = own(np.array([[math.inf, 0.5]]), np.array([[math.inf, 0.5]]))
    check = check_of(judged(subject("a", **there), subject("b", **here)), "outputs", "float32")
    assert (check.agrees, check.distance, check.bound) == (True, 0.0, 16384)


@pytest.mark.parametrize("rounds", [100, 128])
def test_rounding_within_the_bound_is_no_noise(rounds: int) -> None:
    there, here = own(OUTPUT + rounds * EPS32, OUTPUT + 2000 * EPS, in_float64=2000)
    pair = judged(subject("a", floor=10 * EPS, **there), subject("b", **here))
    assert check_of(pair, "outputs", "float64").floor == 10


# -- models: values that were rounded


@pytest.mark.parametrize(
    "a, b, same, rounded",
    [
        (array(0.1, math.nan), single(0.1, math.nan), True, True),
        (array(0.5, math.nan), single(0.5, math.nan), True, False),
        (array(0.1), single(0.2), False, False),
        (array(0.1), array(0.1), True, False),
        (array(0.1), array(0.1, 0.1), False, False),
        (np.array([2**24 + 1]), single(2**24), True, False),  # whole numbers are of no dtype that rounds
        (np.array([0]), single(0.5), False, False),
        (np.array([1]), np.array([1]), True, False),
    ],
    ids=["rounded", "exact", "others", "one dtype", "shape", "whole", "a half", "both whole"],
)
def test_values_are_the_same_in_the_coarser_dtype(a: np.ndarray, b: np.ndarray, same: bool, rounded: bool) -> None:
    assert (by_plan.same_value(a, b), by_plan.are_rounded(a, b)) == (same, rounded)
    if a.dtype.kind == "f":
        assert (by_plan.same_value(b, a), by_plan.are_rounded(b, a)) == (same, rounded)
    else:
        assert not by_plan.are_rounded(b, a)
