"""A framework's own file into a model of another framework: where the target says the kind, the layout is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.flavours import in_framework
from support.native_files import fill

import multiparam as mp
from multiparam import errors

X = np.linspace(-1, 1, 200, dtype=np.float32).reshape(2, 5, 5, 4)


def torch_net(flat: bool = False) -> mp.Model:
    """Square in all that could be taken for its transpose."""
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, eps=1e-5)
            self.out = nn.Linear(36 if flat else 4, 4)

        def forward(self, x: Any) -> Any:
            x = self.norm(self.conv(x)).relu()
            return self.out(x.flatten(1) if flat else x.mean((2, 3)))

    return mp.wrap(Net().eval())


def linen_net(flat: bool = False) -> mp.Model:
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(4, (3, 3), padding="VALID", name="conv")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
            return nn.Dense(4, name="out")(x.reshape(len(x), -1) if flat else x.mean((1, 2)))

    return mp.wrap(Net(), X)


def keras_net(library: str, flat: bool = False) -> mp.Model:
    k = __import__(library)
    make = k.layers
    x = k.Input((5, 5, 4))
    y = make.ReLU()(make.BatchNormalization(epsilon=1e-5, name="norm")(make.Conv2D(4, 3, name="conv")(x)))
    y = make.Flatten()(y) if flat else make.GlobalAveragePooling2D()(y)
    return mp.wrap(k.Model(x, make.Dense(4, name="out")(y)))


def filled(net: mp.Model) -> mp.Model:
    fill(net)
    net["norm.running_var"].assign(np.abs(net["norm.running_var"].numpy()) + 0.5)
    return net


def outputs(net: mp.Model, x: np.ndarray) -> np.ndarray:
    return mp.to_numpy(net(x))


@pytest.mark.needs("torch")
@in_framework("jax")
def test_flaxs_msgpack_into_torch(tmp_path: Path) -> None:
    source, target = filled(linen_net()), torch_net()
    mp.save(source, tmp_path / "w.msgpack")
    report = mp.transfer(tmp_path / "w.msgpack", target)
    assert not report.plan.guesses and not report.plan.unused
    np.testing.assert_array_equal(target["out.weight"].numpy(), source["out.weight"].numpy())
    np.testing.assert_allclose(outputs(target, X.transpose(0, 3, 1, 2).copy()), outputs(source, X), atol=1e-5)


@pytest.mark.needs("torch")
@in_framework("tensorflow")
@pytest.mark.parametrize("library", ["keras", pytest.param("tf_keras", marks=pytest.mark.needs("tf_keras"))])
def test_legacy_h5_into_torch(library: str, tmp_path: Path) -> None:
    source, target = filled(keras_net(library)), torch_net()
    source.native.save(str(tmp_path / "w.h5"))
    report = mp.transfer(tmp_path / "w.h5", target)
    assert not report.plan.guesses
    np.testing.assert_array_equal(target["conv.weight"].numpy(), source["conv.weight"].numpy())
    np.testing.assert_allclose(outputs(target, X.transpose(0, 3, 1, 2).copy()), outputs(source, X), atol=1e-5)


@pytest.mark.needs("torch")
@in_framework("jax")
def test_what_the_kind_does_not_fix_is_refused_or_a_guess(tmp_path: Path) -> None:
    from torch import nn

    mp.save(filled(linen_net(flat=True)), tmp_path / "w.msgpack")
    assert any("flattened" in move.why for move in mp.plan(tmp_path / "w.msgpack", torch_net(flat=True)).guesses)
    from flax import linen

    class Up(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.ConvTranspose(4, (3, 3), name="up")(x)

    mp.save(fill(mp.wrap(Up(), X)), tmp_path / "up.msgpack")
    target = mp.wrap(nn.ModuleDict({"up": nn.ConvTranspose2d(4, 4, 3)}))
    with pytest.raises(errors.TransferError, match="as its framework lays it out"):
        mp.transfer(tmp_path / "up.msgpack", target)
