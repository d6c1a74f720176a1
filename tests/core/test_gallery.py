"""The zoo: each network is one function in every framework, from one seed, and the function that its name says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import multiparam as mp
from multiparam import nn, zoo
from multiparam.testing.networks import state_of
from multiparam.testing.reference import forward

STAGES = ((1, 4), (1, 8))
# id -> (a small one, the shape of its input)
SMALL: dict[str, tuple[Callable[[], nn.Layer], tuple[int, ...]]] = {
    "lenet": (lambda: zoo.lenet(3, (2, 4), (8, 6)), (2, 1, 12, 12)),
    "vgg": (lambda: zoo.vgg(3, [(1, 4), (2, 6)], hidden=8), (2, 3, 8, 8)),
    "nin": (lambda: zoo.nin(3, [(4, 3, 1, 1), (6, 3, 1, 1)]), (2, 1, 15, 15)),
    "resnet18": (lambda: zoo.resnet18(3, STAGES, small=True), (2, 1, 8, 8)),
    "resnext": (lambda: zoo.resnext(3, ((1, 8), (1, 16)), groups=2, small=True), (2, 1, 8, 8)),
    "densenet": (lambda: zoo.densenet(3, 4, 2, (2, 1), small=True), (2, 1, 8, 8)),
    "googlenet": (lambda: zoo.googlenet(3, width=16), (2, 1, 32, 32)),
}
QUICK = ("lenet", "resnet18")
NETWORKS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SMALL]


def test_every_network_is_here() -> None:
    assert sorted(SMALL) == sorted(zoo.__all__)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_seed_is_one_function_in_every_framework(name: str) -> None:
    """The same bits, and the output of the definition in numpy; running statistics are as after some training."""
    make, shape = SMALL[name]
    spec, x = make(), np.random.default_rng(0).normal(size=shape)
    states = {}
    for backend in [name for name, installed in mp.backends().items() if installed]:
        net = mp.build(spec, x, backend=backend, seed=5, dtype="float64")
        states[backend] = {key: p.numpy() for key, p in net.parameters().items()}
        for key, p in net.buffers().items():
            if key.endswith("running_var"):
                p.assign(np.linspace(0.5, 2, p.size))
        truth = forward(spec, state_of(net), x)
        assert truth.shape == (2, 3)
        np.testing.assert_allclose(mp.to_numpy(net(x)), truth, rtol=1e-11, atol=1e-13)
    first = next(iter(states.values()))
    for state in states.values():
        assert list(state) == list(first)
        for key, value in state.items():
            np.testing.assert_array_equal(value, first[key])


@pytest.mark.slow
@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    "make, count", [(lambda: zoo.resnet18(1000), 11_689_512), (lambda: zoo.resnext(1000), 25_028_904)]
)
def test_published_sizes_have_the_published_number_of_parameters(make: Callable[[], nn.Layer], count: int) -> None:
    net = mp.build(make(), np.ones((1, 3, 64, 64), "float32"), backend="torch")
    assert sum(p.size for p in net.parameters().values()) == count


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_a_residual_network_is_the_native_one_after_a_transfer() -> None:
    """A block as users of PyTorch write it, its names others and its order of layers another."""
    import torch
    from torch.nn import functional as F

    class Block(torch.nn.Module):
        def __init__(self, before: int, channels: int, stride: int) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(before, channels, 3, stride, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(channels)
            self.conv2 = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.bn2 = torch.nn.BatchNorm2d(channels)
            self.projection = self.norm = None
            if stride > 1:
                self.projection = torch.nn.Conv2d(before, channels, 1, stride, bias=False)
                self.norm = torch.nn.BatchNorm2d(channels)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            return F.relu(y + (x if self.projection is None else self.norm(self.projection(x))))

    tnn = torch.nn
    stem = tnn.Sequential(tnn.Conv2d(1, 4, 3, padding=1, bias=False), tnn.BatchNorm2d(4), tnn.ReLU())
    head = tnn.Sequential(tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Linear(8, 3))
    native = tnn.Sequential(stem, Block(4, 4, 1), Block(4, 8, 2), head).double().eval()
    x = np.random.default_rng(0).normal(size=(2, 1, 8, 8))
    for backend in [name for name, installed in mp.backends().items() if installed]:
        net = mp.build(zoo.resnet18(3, STAGES, small=True), x, backend=backend, dtype="float64")
        mp.transfer(mp.wrap(native), net, verify=x)
        np.testing.assert_allclose(
            mp.to_numpy(net(x)), native(torch.tensor(x)).detach().numpy(), rtol=1e-11, atol=1e-13
        )
