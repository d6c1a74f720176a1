"""Outputs leaf by leaf: their names, and how far two models' are from each other."""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from multiparam.core.outputs import OutputsDistance, arrays_of, leaves, named_arrays, outputs_distance

Y = np.array([[1.0, -2.0], [0.5, 4.0]])
Named = collections.namedtuple("Named", "logits hidden")


@dataclasses.dataclass
class Output:
    logits: Any
    hidden: Any = None


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (Y, [""]),
        ((Y, Y), ["[0]", "[1]"]),
        ([Y, None, (Y,)], ["[0]", "[2][0]"]),
        ({"a": Y, "b": {"c": Y, "d": [Y]}}, ["a", "b.c", "b.d[0]"]),
        (Output(Y, (Y, Y)), ["logits", "hidden[0]", "hidden[1]"]),
        (Output(Y), ["logits"]),
        (Named(Y, Y), ["logits", "hidden"]),
        ({0: Y, "x": "text"}, ["[0]", "x"]),
        ((), []),
        (None, []),
    ],
    ids=str,
)
def test_leaves_have_the_names_and_positions_of_the_output(output: Any, names: list[str]) -> None:
    assert [name for name, _ in leaves(output)] == names


def test_arrays_are_those_of_numbers() -> None:
    assert [a.tolist() for a in arrays_of((1, "text", np.array(["x"], object), {"b": [True]}))] == [1, True]
    assert named_arrays({"a": 1, "t": "x"}) == {"a": np.array(1), "t": "x"}


def judged(reference: Any, candidate: Any) -> OutputsDistance:
    return outputs_distance(named_arrays(reference), named_arrays(candidate), lambda a, b: "float64")


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        ({"u": Y, "v": 2 * Y}, {"v": 2 * Y, "u": Y}),
        ((Y, 2 * Y), [Y, 2 * Y]),
        ((Y, 2 * Y), {"a": Y, "b": 2 * Y}),  # only one side has names
        (Y, {"logits": Y}),
        (Y, (Y,)),
        (Output(Y, 2 * Y), {"logits": Y, "hidden": 2 * Y}),
        ((Y, "cat"), (Y, "cat")),
        (np.array([3, 50_000]), np.array([3, 50_000], np.int32)),
        (np.where(Y > 0, -np.inf, Y), np.where(Y > 0, -np.inf, Y)),
        (np.where(Y > 0, np.nan, Y), np.where(Y > 0, np.nan, Y)),
        (Y * 1j, Y * 1j),
        ((Y[:0], Y), (Y[:0], Y)),
    ],
)
def test_equal_outputs(reference: Any, candidate: Any) -> None:
    assert judged(reference, candidate) == OutputsDistance(0.0)


@pytest.mark.parametrize(
    ("reference", "candidate", "where"),
    [
        ({"logits": Y}, {"loss": Y}, "only the reference gives logits; only the candidate gives loss"),
        ({"a": Y, "b": Y}, {"a": Y}, "only the reference gives b"),
        (((Y, Y), Y), (Y, (Y, Y)), "nested otherwise: [0][0], [0][1], [1], and [0], [1][0], [1][1]"),
        ((Y, Y), (Y,), "only the reference gives [1]"),
        ({"y": Y}, {"y": Y[:1]}, "y: of shape (2, 2) and (1, 2)"),
        (("cat", Y), ("dog", Y), "[0]: 'cat' and 'dog'"),
        (np.array([1, 2, 3]), np.array([1, 2, 4]), "1 of 3 whole numbers differ"),
        (np.array([True]), np.array([False]), "1 of 1 whole numbers differ"),
        ("1.0", np.array(1.0), "'1.0' and '1.0'"),
    ],
)
def test_what_differs_beyond_rounding_is_said(reference: Any, candidate: Any, where: str) -> None:
    assert judged(reference, candidate) == OutputsDistance(math.inf, where)


def test_the_farthest_leaf_is_named() -> None:
    found = judged({"u": Y, "v": Y}, {"u": Y * (1 + 2**-40), "v": Y * (1 + 2**-30)})
    assert found.where == "v" and found.eps == 2**22 and not found.undecided
    swapped = judged({"u": Y, "v": 2 * Y}, {"v": Y, "u": 2 * Y})
    assert swapped.eps == 2**52 and swapped.where == "u"


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (None, "the models give no output"),
        ((), "the models give no output"),
        (Y[:0], "every output is empty"),
        ({"a": Y[:0], "b": np.zeros((0, 2), int)}, "every output is empty"),
        (Y * np.nan, "every number of the outputs is NaN"),
        ((Y * np.nan, Y[:0]), "every number of the outputs is NaN"),
    ],
)
def test_nothing_compared_is_undecided(output: Any, why: str) -> None:
    assert judged(output, output) == OutputsDistance(0.0, undecided=why)
