"""Native code changes a wrapped torch model: every verb acts on what it holds now, and says so once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import errors

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.needs("torch")

X, Y = np.ones((2, 4), "float32"), np.zeros((2, 3), "float32")


def model() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


def new_layer(native: Any) -> None:
    native[1] = torch.nn.Linear(4, 3)


def new_parameter(native: Any) -> None:
    native[1].weight = torch.nn.Parameter(torch.full((3, 4), 2.0))


def assign(native: Any) -> None:
    native.load_state_dict({name: value.clone() + 1 for name, value in native.state_dict().items()}, assign=True)


def to_empty(native: Any) -> None:
    native.to_empty(device="cpu")
    native.load_state_dict({name: torch.ones_like(value) for name, value in native.state_dict().items()})


CHANGES = [new_layer, new_parameter, assign, to_empty]
Change = Callable[[Any], None]


def quietly(verb: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mp.MultiparamWarning)
        return verb()


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_read_written_and_saved_is_the_models(change: Change, tmp_path: Path) -> None:
    native = model()
    net = mp.wrap(native)
    held = net["1.weight"]
    change(native)
    np.testing.assert_array_equal(quietly(held.numpy), native[1].weight.detach().numpy())
    quietly(lambda: held.assign(np.full((3, 4), 5, "float32")))
    assert (native[1].weight == 5).all()
    with mp.read(quietly(lambda: mp.save(net, tmp_path / "w.safetensors"))) as file:
        for name, value in native.state_dict().items():
            np.testing.assert_array_equal(file[name], value.numpy())


@pytest.mark.parametrize("change", CHANGES)
def test_a_step_and_an_optimizer_made_before_train_what_is_there(change: Change) -> None:
    native = model()
    net = mp.wrap(native)
    step, optimizer = net.value_and_grad(mp.losses.mse), net.optimizer("momentum", lr=0.1)
    step(X, Y)
    optimizer.step()
    change(native)
    before = native[1].bias.detach().clone(), native[2].bias.detach().clone()
    quietly(lambda: step(X, Y))
    quietly(optimizer.step)
    assert any((now != old).any() for now, old in zip((native[1].bias, native[2].bias), before, strict=True))
    assert native[2].bias.grad is not None


def test_a_change_is_said_once_and_named() -> None:
    native = model()
    net = mp.wrap(native)
    new_layer(native)
    with pytest.warns(mp.MultiparamWarning, match="'1.weight', '1.bias' replaced"):
        net.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.state_dict()
        net.parameters()
        native(torch.ones(2, 4))  # running statistics move, which is no change of the model
        net.state_dict()


def test_what_is_gone_raises_and_the_rest_keeps_its_place() -> None:
    native = model()
    net = mp.wrap(native)
    first, last, group = net["0.weight"], net["2.weight"], net["2"]
    del native[0]  # torch counts the rest anew
    quietly(net.parameters)
    assert list(net.parameters()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert first.shape == (3, 4)  # what has its name now
    with pytest.raises(errors.ParameterNotFound):
        last.numpy()
    with pytest.raises(errors.ParameterNotFound, match="no longer"):
        group.parameters()


def test_two_wrappers_of_one_model_agree() -> None:
    native = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    one, other = mp.wrap(native), mp.wrap(native)
    one.tie("1.weight", "0.weight")
    assert quietly(other.ties) == [("0.weight", "1.weight")]
    other.untie("1.weight")
    assert quietly(one.ties) == []
    other["1.weight"][:] = 3
    assert (one["1.weight"].numpy() == 3).all() and not (one["0.weight"].numpy() == 3).any()


def test_a_lost_tie_stays_known_where_layers_were_added() -> None:
    native = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    net = mp.wrap(native)
    net.tie("1.weight", "0.weight")
    native[1].weight = torch.nn.Parameter(torch.zeros(4, 4))
    native.append(torch.nn.Linear(4, 2))
    assert quietly(net.check) == [("0.weight", "1.weight")]
    assert net.ties(repair=True) == [("0.weight", "1.weight")]
    assert native[1].weight is native[0].weight and net["2.weight"].shape == (2, 4)


def test_a_child_left_in_training_is_evaluated_and_left_so() -> None:
    native = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Dropout(0.5)).eval()
    native[1].train()
    net = mp.wrap(native)
    assert torch.equal(net(X), net(X))
    assert native[1].training and not native.training
