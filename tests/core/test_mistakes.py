"""What people write by mistake: a sentence that names the thing and the cure, and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import errors

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.needs("torch")]
X, Y = np.ones((2, 4), "float32"), np.zeros((2, 3), "float32")


MISTAKES: dict[str, tuple[Callable[[mp.Model], Any], type[Exception], str]] = {
    "a name": (
        lambda net: net.init("xavier_unifrom"),
        errors.WrongType,
        r"mean 'mp\.init\.xavier_uniform\(\)'",
    ),
    "not called": (lambda net: net.init(mp.init.normal), errors.WrongType, r"say mp\.init\.normal\(\)"),
    "of torch's, that needs two axes": (
        lambda net: net.init(torch.nn.init.xavier_uniform_),
        errors.DoesNotRun,
        "native initialiser cannot fill '0.bias'",
    ),
    "an objective by name": (lambda net: net.value_and_grad("mse"), errors.WrongType, "a function of the network"),  # type: ignore[arg-type]
    "a list for a state": (lambda net: net.load_state_dict([1]), errors.WrongType, "a mapping name -> array"),  # type: ignore[arg-type]
    "a layer for an array": (
        lambda net: net["0.weight"].assign(torch.nn.Linear(4, 3)),
        errors.WrongType,
        "An array is asked for; this is a Linear",
    ),
    "nothing for an array": (lambda net: mp.to_numpy({"a": 1}), errors.WrongType, "this is a dict"),
    "inputs that do not fit": (
        lambda net: mp.transfer(net, net, verify=np.ones((2, 9), "float32")),
        errors.DoesNotRun,
        "does not run on the inputs of verify=",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_gets_a_sentence(mistake: str) -> None:
    make, error, message = MISTAKES[mistake]
    net = mp.wrap(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 3)))
    before = net.state_dict()
    with pytest.raises(error, match=message):
        make(net)
    assert all((value == before[name]).all() for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "make",
    [
        lambda: mp.nn.Linear(-2), lambda: mp.nn.Linear(0), lambda: mp.nn.Conv(4, 0), lambda: mp.nn.Conv(4, 3, stride=0),
        lambda: mp.nn.Conv(4, (3, -1)), lambda: mp.nn.Conv(4, 3, padding=-1), lambda: mp.nn.MaxPool(0),
        lambda: mp.nn.Embedding(0, 2),
    ],
)  # fmt: skip
def test_sizes_that_no_layer_has(make: Callable[[], Any]) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"has \w+=.*; it is [01] or more"):
        make()
