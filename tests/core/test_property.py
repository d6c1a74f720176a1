"""Any text is a name, in every installed backend, or is refused where some framework is the reason.

Random architectures and sequences of operations are in the conformance kit, multiparam/testing/test_property.py.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.flavours import INSTALLED

import multiparam as mp
from multiparam import nn
from multiparam.testing.architectures import examples

pytestmark = pytest.mark.skipif(not INSTALLED, reason="no backend is installed")


def text(*path: str) -> str:
    """Segments joined with dots, a dot or a backslash inside a segment after a backslash."""
    return ".".join(re.sub(r"([.\\])", r"\\\1", segment) for segment in path)


def portable(name: str) -> bool:
    """PyTorch keeps children as attributes: no empty name, no dot, no name that a Sequential uses itself."""
    own = False
    if "torch" in INSTALLED:
        import torch

        own = hasattr(torch.nn.Sequential(), name)
    return bool(name) and "." not in name and not own


def refuses(spec: nn.Layer, backend: str, titles: tuple[str, ...]) -> bool:
    """Whether it cannot be built for a name; then an error of ours says which, and some framework is the reason."""
    try:
        mp.build(spec, np.ones((2, 3)), backend=backend, dtype="float64")
    except mp.MultiparamError as error:
        guilty = [title for title in titles if not portable(title)]
        assert any(repr(title) in str(error) for title in guilty), (backend, error)
        return True
    return False


def check_names(backend: str, titles: tuple[str, str, str, str]) -> None:
    """Every parameter and every layer is found by its name and its position, and is the one that computes there."""
    a, b, c, d = titles
    inner = nn.Sequential((c, nn.Linear(3)), (d, nn.Tanh()))
    spec = nn.Sequential((a, nn.Linear(3)), (b, inner), ("last", nn.Linear(3)))
    if refuses(spec, backend, titles):
        return
    x = np.ones((2, 3))
    net = mp.build(spec, x, backend=backend, dtype="float64")
    places = [(text(a), net[0]), (text(b, c), net[1][0]), ("last", net[2])]
    assert list(net.parameters()) == [f"{place}.{leaf}" for place, _ in places for leaf in ("weight", "bias")]
    for i, (place, group) in enumerate(places):
        assert list(net[place].parameters()) == list(group.parameters()) == ["weight", "bias"]
        assert net[place]["weight"] is group["weight"] is net[f"{place}.weight"]
        net[f"{place}.weight"].assign(np.full((3, 3), i / 8))
        net[f"{place}.bias"].assign(np.full(3, 1.0 + i))
    y = np.full((2, 3), math.tanh(3 / 8 + 2) * 6 / 8 + 3)
    np.testing.assert_allclose(mp.to_numpy(net(x)), y, rtol=1e-12)
    loss, _ = net.value_and_grad(mp.losses.mse)(x, x)
    assert mp.to_numpy(loss).item() == pytest.approx((y[0, 0] - 1) ** 2, rel=1e-12)


# fmt: off
ODD = ["a b", "a_b", "é", "è", "a/b", "tanh", "tanh_1", "flatten", "weight", "body", "forward", "a.b", "\\", "", "0"]
# fmt: on
TITLE = st.sampled_from(ODD) | st.text(max_size=4)
FOUR_TITLES = st.tuples(TITLE, TITLE, TITLE, TITLE).filter(lambda t: len({t[0], t[1], "last"}) == 3 and t[2] != t[3])


@examples(10)
@given(FOUR_TITLES)
@example(("a b", "c", "0", "1"))
def test_any_text_is_a_name(titles: tuple[str, str, str, str]) -> None:
    """Also with slashes, line ends, any alphabet, and names that look like a framework's own."""
    for backend in INSTALLED:
        check_names(backend, titles)


@pytest.mark.parametrize("pair", [("a b", "a_b"), ("é", "è")], ids=ascii)
def test_names_that_differ_in_a_space_or_an_accent_are_two(backend: str, pair: tuple[str, str]) -> None:
    check_names(backend, (*pair, "0", "1"))


def test_names_may_be_those_a_framework_makes_up(backend: str) -> None:
    """Keras numbers its operations through the whole process: tanh, tanh_1, ..."""
    if backend == "tensorflow":
        import keras

        keras.backend.clear_session()  # start the numbers again, so that they are among ours
    titles = [f"tanh_{i}" for i in range(40)]
    spec = nn.Sequential(*[(title, nn.Linear(3)) for title in titles], *[(f"f{i}", nn.Tanh()) for i in range(4)])
    net = mp.build(spec, np.ones((2, 3)), backend=backend)
    assert list(net.parameters())[::2] == [f"{title}.weight" for title in titles]


@pytest.mark.parametrize("name", ["", "a.b", "forward", "training"])
def test_a_name_that_a_framework_cannot_hold_is_refused_or_works(backend: str, name: str) -> None:
    check_names(backend, (name, "b", "0", "1"))


def test_a_nested_child_and_a_child_with_a_dot_are_two(backend: str) -> None:
    spec = nn.Sequential(("a", nn.Sequential(("b", nn.Linear(3)))), ("a.b", nn.Linear(3)))
    if not refuses(spec, backend, ("a.b",)):
        net = mp.build(spec, np.ones((2, 3)), backend=backend)
        assert list(net.parameters())[::2] == ["a.b.weight", "a\\.b.weight"]


@pytest.mark.parametrize("name", [0, None, "\ud800"], ids=ascii)
def test_a_name_that_is_no_text_is_an_error_of_ours(backend: str, name: Any) -> None:
    with pytest.raises(mp.MultiparamError, match="name"):
        mp.build(nn.Sequential((name, nn.Linear(3))), np.ones((2, 3)), backend=backend)
