"""Containers that are each the only one with what they hold, on manifests alone."""

from __future__ import annotations

import pytest
from support.manifests import kinds_manifest, squares

from multiparam.transfers.manifest import Manifest
from multiparam.transfers.match import GUESS, ONLY, WITHIN
from multiparam.transfers.plan import plan_manifests


def whys(source: Manifest, target: Manifest) -> dict[str, tuple[str, str]]:
    return {m.target: (m.source, m.evidence) for m in plan_manifests(source, target).matches}


def stages(
    *stages: tuple[str, int], inside: tuple[str, ...] = ("0.conv1", "0.conv2", "1.conv1", "1.conv2")
) -> Manifest:
    return kinds_manifest({f"{stage}.{at}": ("conv", {"weight": (n, n, 3, 3)}) for stage, n in stages for at in inside})


@pytest.mark.parametrize("back", [False, True])
def test_containers_of_other_names(back: bool) -> None:
    sides = stages(("b2", 4), ("b3", 8)), stages(("1", 4), ("x.layers_2", 8))
    expected = {"1.0.conv2": "b2.0.conv2", "x.layers_2.1.conv1": "b3.1.conv1"}
    found = whys(*(sides[::-1] if back else sides))
    assert len(found) == 8
    for at, of in expected.items():
        assert found[of if back else at] == ((at if back else of), WITHIN)


def test_numbers_that_count_other_things_are_no_name() -> None:
    found = whys(squares("m.0", "m.2", "m.5"), squares("n.0", "n.1", "n.2"))
    assert len(found) == 3 and {why for _, why in found.values()} == {GUESS}


def test_stages_are_told_apart_by_what_they_hold() -> None:
    found = whys(stages(("b2", 4), ("b3", 8)), stages(("2", 8), ("1", 4)))
    assert found["1.0.conv2"] == ("b2.0.conv2", WITHIN) and found["2.1.conv1"] == ("b3.1.conv1", WITHIN)
    assert len(found) == 8


def test_stages_that_hold_the_same_are_guesses() -> None:
    found = whys(stages(("b2", 4), ("b3", 4)), stages(("x", 4), ("y", 4)))
    assert len(found) == 8 and {why for _, why in found.values()} == {GUESS}


def test_one_of_two_alike_on_one_side_only_is_a_guess() -> None:
    found = whys(squares("a.0", "a.1", "b.k", "b.v"), squares("x.0", "x.1", "y.0", "y.1"))
    assert len(found) == 4 and {why for _, why in found.values()} == {GUESS}


def test_words_that_differ_are_no_container() -> None:
    found = whys(stages(("b2", 4), inside=("k", "v")), stages(("x", 4), inside=("query", "w")))
    assert {why for _, why in found.values()} == {GUESS}


def test_numbers_in_words_are_words() -> None:
    found = whys(squares("m.conv1", "m.conv3"), squares("n.conv1", "n.conv2"))
    assert {why for _, why in found.values()} == {GUESS}


def test_what_is_left_makes_all_of_it_a_guess() -> None:
    found = whys(squares("0", "2", "4"), squares("0", "1"))
    assert {why for _, why in found.values()} <= {GUESS, "name"}
    assert whys(squares("m.0", "m.1", "k"), squares("n.0", "n.1", "q", "z"))["n.0"][1] == GUESS


def test_shapes_that_do_not_fit_are_no_container() -> None:
    source = kinds_manifest({"m.0": ("linear", {"weight": (3, 4)}), "m.1": ("linear", {"weight": (5, 3)})})
    target = kinds_manifest({"n.0": ("linear", {"weight": (5, 3)}), "n.1": ("linear", {"weight": (3, 4)})})
    assert whys(source, target) == {"n.0": ("m.1", ONLY), "n.1": ("m.0", ONLY)}


def test_two_layers_of_the_same_words_are_no_container() -> None:
    found = whys(squares("m.a.b", "m.a_b"), squares("n.a.b", "n.a_b"))
    assert {why for _, why in found.values()} <= {GUESS}
