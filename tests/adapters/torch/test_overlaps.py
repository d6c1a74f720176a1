"""Two Parameters in one memory: not one to torch, so no tie; named by check(), not both loaded with other values."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import errors

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.needs("torch")


def whole() -> Any:
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    net[1].weight = torch.nn.Parameter(net[0].weight.data)
    return net


def rows() -> Any:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(3, 2))
    net[1].weight = torch.nn.Parameter(net[0].weight.data[1:3])
    return net


def apart() -> Any:
    """Parts of one memory that have no number in common, as of a flattened optimizer's buffer."""
    flat = torch.arange(12.0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(3, 2))
    net[0].weight, net[1].weight = (torch.nn.Parameter(part.view(2, 3)) for part in (flat[:6], flat[6:]))
    return net


@pytest.mark.parametrize("make", [whole, rows])
def test_check_names_what_lies_in_one_memory(make: Any) -> None:
    net = mp.wrap(make())
    with pytest.warns(mp.MultiparamWarning, match=r"'0.weight' and '1.weight' share memory"):
        assert net.check() == []


@pytest.mark.parametrize("make", [whole, rows])
def test_values_that_would_change_each_other_are_not_loaded(make: Any) -> None:
    net = mp.wrap(make())
    before = {name: p.numpy() for name, p in net.parameters().items()}
    state = {name: np.full(value.shape, i, "float32") for i, (name, value) in enumerate(before.items())}
    with pytest.raises(errors.StateError, match=r"'0.weight' and '1.weight' share memory"):
        net.load_state_dict(state)
    assert all(np.array_equal(p.numpy(), before[name]) for name, p in net.parameters().items())


def test_the_same_numbers_load_where_all_is_shared(tmp_path: Any) -> None:
    net = mp.wrap(whole())
    state = net.state_dict()
    mp.load(net, mp.save(net, tmp_path / "w.safetensors"))
    assert all(np.array_equal(p.numpy(), state[name]) for name, p in net.parameters().items())


@pytest.mark.parametrize("make", [apart, lambda: torch.nn.LSTM(3, 4, 2)])
def test_parts_of_one_memory_without_a_number_in_common_are_no_finding(make: Any) -> None:
    net = mp.wrap(make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert net.check() == []
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()})
