"""What torch puts around a module changes no name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multiparam as mp

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.needs("torch"), pytest.mark.xdist_group("torch")]


def model() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


@pytest.fixture
def one_process(tmp_path: Path) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def _checkpointed(module: Any) -> Any:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    return torch.nn.Sequential(checkpoint_wrapper(module[0]), module[1])


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "DistributedDataParallel": lambda module: torch.nn.parallel.DistributedDataParallel(module),
    "DataParallel": lambda module: torch.nn.DataParallel(module),
    "compiled": lambda module: torch.compile(module, backend="eager"),
    "both": lambda module: torch.nn.parallel.DistributedDataParallel(torch.compile(module, backend="eager")),
    "a checkpointed layer": _checkpointed,
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.usefixtures("one_process")
def test_names_are_the_inner_models(wrapper: Callable[[Any], Any]) -> None:
    inner = model()
    plain, net = mp.wrap(inner), mp.wrap(wrapper(inner))
    assert list(net.state_dict()) == list(plain.state_dict()) and net[0]["weight"].shape == (3, 4)
    net.init(mp.init.normal(), seed=1)
    X = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    np.testing.assert_array_equal(mp.to_numpy(net(X)), mp.to_numpy(plain(X)))
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer(torch.optim.SGD(net.native.parameters(), lr=0.1))
    before = inner[0].weight.detach().clone()
    step(X, np.zeros((5, 3), "float32"))
    opt.step()
    assert not torch.equal(inner[0].weight, before)


def test_a_class_of_that_name_of_the_users_is_a_module_like_another() -> None:
    class DataParallel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = torch.nn.Linear(4, 3)

    assert list(mp.wrap(DataParallel()).parameters()) == ["module.weight", "module.bias"]
