"""Layers that users write natively, in canonical form: the same numbers give PyTorch's outputs and gradients.

Each case is one layer in PyTorch, the truth, and its twins in the other libraries. The twin gets PyTorch's parameters
by canonical name through multiparam; then outputs and canonical gradients are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from support.flavours import GROUPS, NEEDS

import multiparam as mp

pytest.importorskip("torch")
import torch

RNG = np.random.default_rng(3)
IMAGE = RNG.normal(0.3, 1.5, (2, 4, 7, 6)).astype("float32")
SEQUENCE = RNG.normal(0.3, 1.5, (2, 4, 9)).astype("float32")
VOLUME = RNG.normal(0.3, 1.5, (2, 2, 4, 5, 3)).astype("float32")
ROWS = RNG.normal(0.3, 1.5, (5, 6)).astype("float32")


@dataclass
class Case:
    truth: Callable[[], Any]
    x: np.ndarray
    gluon: Callable[[Any], Any] | None = None
    linen: Callable[[Any], Any] | None = None
    nnx: Callable[[Any, Any], Any] | None = None
    keras: Callable[[Any], Any] | None = None  # for Keras 3 and tf_keras: it gets the layers module
    keras3_only: bool = False


T = torch.nn
CASES = {
    "linear": Case(
        lambda: T.Linear(6, 3),
        ROWS,
        lambda g: g.Dense(3),
        lambda f: f.Dense(3),
        lambda f, r: f.Linear(6, 3, rngs=r),
        lambda k: k.Dense(3),
    ),
    "conv1d": Case(
        lambda: T.Conv1d(4, 3, 3),
        SEQUENCE,
        lambda g: g.Conv1D(3, 3),
        lambda f: f.Conv(3, (3,), padding="VALID"),
        lambda f, r: f.Conv(4, 3, (3,), padding="VALID", rngs=r),
        lambda k: k.Conv1D(3, 3),
    ),
    "conv2d, grouped": Case(
        lambda: T.Conv2d(4, 6, (3, 2), groups=2),
        IMAGE,
        lambda g: g.Conv2D(6, (3, 2), groups=2),
        lambda f: f.Conv(6, (3, 2), padding="VALID", feature_group_count=2),
        lambda f, r: f.Conv(4, 6, (3, 2), padding="VALID", feature_group_count=2, rngs=r),
        lambda k: k.Conv2D(6, (3, 2), groups=2),
    ),
    "conv2d, depthwise": Case(
        lambda: T.Conv2d(4, 8, 3, groups=4),
        IMAGE,
        lambda g: g.Conv2D(8, 3, groups=4),
        lambda f: f.Conv(8, (3, 3), padding="VALID", feature_group_count=4),
        lambda f, r: f.Conv(4, 8, (3, 3), padding="VALID", feature_group_count=4, rngs=r),
        lambda k: k.DepthwiseConv2D(3, depth_multiplier=2),
    ),
    "conv3d": Case(
        lambda: T.Conv3d(2, 3, 2),
        VOLUME,
        lambda g: g.Conv3D(3, 2),
        lambda f: f.Conv(3, (2, 2, 2), padding="VALID"),
        lambda f, r: f.Conv(2, 3, (2, 2, 2), padding="VALID", rngs=r),
        lambda k: k.Conv3D(3, 2),
    ),
    "conv transpose 1d": Case(
        lambda: T.ConvTranspose1d(4, 3, 3, stride=2),
        SEQUENCE,
        lambda g: g.Conv1DTranspose(3, 3, 2),
        lambda f: f.ConvTranspose(3, (3,), (2,), padding="VALID"),
        lambda f, r: f.ConvTranspose(4, 3, (3,), (2,), padding="VALID", rngs=r),
        lambda k: k.Conv1DTranspose(3, 3, 2),
    ),
    "conv transpose 2d": Case(
        lambda: T.ConvTranspose2d(4, 3, (3, 2)),
        IMAGE,
        lambda g: g.Conv2DTranspose(3, (3, 2)),
        lambda f: f.ConvTranspose(3, (3, 2), padding="VALID"),
        lambda f, r: f.ConvTranspose(4, 3, (3, 2), padding="VALID", rngs=r),
        lambda k: k.Conv2DTranspose(3, (3, 2)),
    ),
    "conv transpose 2d with flax's transpose_kernel": Case(
        lambda: T.ConvTranspose2d(4, 3, (3, 2)),
        IMAGE,
        linen=lambda f: f.ConvTranspose(3, (3, 2), padding="VALID", transpose_kernel=True),
        nnx=lambda f, r: f.ConvTranspose(4, 3, (3, 2), padding="VALID", transpose_kernel=True, rngs=r),
    ),
    "layer norm": Case(
        lambda: T.LayerNorm(6),
        ROWS,
        lambda g: g.LayerNorm(),
        lambda f: f.LayerNorm(epsilon=1e-5),
        lambda f, r: f.LayerNorm(6, epsilon=1e-5, rngs=r),
        lambda k: k.LayerNormalization(epsilon=1e-5),
    ),
    "batch norm": Case(
        lambda: T.BatchNorm2d(4),
        IMAGE,
        lambda g: g.BatchNorm(),
        lambda f: f.BatchNorm(use_running_average=True),
        lambda f, r: f.BatchNorm(4, use_running_average=True, rngs=r),
        lambda k: k.BatchNormalization(epsilon=1e-5),
    ),
    "group norm": Case(
        lambda: T.GroupNorm(2, 4),
        IMAGE,
        linen=lambda f: f.GroupNorm(2, epsilon=1e-5),
        nnx=lambda f, r: f.GroupNorm(4, 2, epsilon=1e-5, rngs=r),
        keras=lambda k: k.GroupNormalization(2, epsilon=1e-5),
    ),
    "instance norm": Case(
        lambda: T.InstanceNorm2d(4, affine=True),
        IMAGE,
        lambda g: g.InstanceNorm(epsilon=1e-5, scale=True),
        lambda f: f.InstanceNorm(epsilon=1e-5),
    ),
    "rms norm": Case(
        lambda: T.RMSNorm(6, eps=1e-6),
        ROWS,
        linen=lambda f: f.RMSNorm(epsilon=1e-6),
        nnx=lambda f, r: f.RMSNorm(6, epsilon=1e-6, rngs=r),
        keras=lambda k: k.RMSNormalization(epsilon=1e-6),
        keras3_only=True,
    ),
    "prelu": Case(lambda: T.PReLU(), ROWS, lambda g: g.PReLU(), lambda f: f.PReLU(), lambda f, r: f.PReLU()),
}


def last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1) if x.ndim > 2 else x


def first(y: np.ndarray) -> np.ndarray:
    return np.moveaxis(y, -1, 1) if y.ndim > 2 else y


def gluon(case: Case) -> mp.Model:
    from multiparam_mxnet.load import load

    layer = case.gluon(load().gluon.nn)  # type: ignore[misc]
    layer.initialize()
    return mp.wrap(layer, case.x)


def linen(case: Case) -> mp.Model:
    from flax import linen as flax_linen

    return mp.wrap(case.linen(flax_linen), last(case.x))  # type: ignore[misc]


def nnx(case: Case) -> mp.Model:
    from flax import nnx as flax_nnx

    return mp.wrap(case.nnx(flax_nnx, flax_nnx.Rngs(0)))  # type: ignore[misc]


def keras(case: Case) -> mp.Model:
    import keras as keras3

    return mp.wrap(keras3.Sequential([case.keras(keras3.layers)]), last(case.x))


def tf_keras(case: Case) -> mp.Model:
    import tf_keras as keras2

    return mp.wrap(keras2.Sequential([case.keras(keras2.layers)]), last(case.x))  # type: ignore[misc]


FLAVOURS = {"gluon": gluon, "linen": linen, "nnx": nnx, "keras": keras, "tf_keras": tf_keras}
PAIRS = [
    pytest.param(
        name,
        flavour,
        id=f"{flavour}-{name}",
        marks=[
            pytest.mark.needs("torch", NEEDS[flavour]),
            pytest.mark.xdist_group(GROUPS[flavour]),
        ],
    )
    for name, case in CASES.items()
    for flavour in FLAVOURS
    if getattr(case, flavour.removeprefix("tf_")) is not None and not (flavour == "tf_keras" and case.keras3_only)
]


def truth_of(case: Case) -> mp.Model:
    """PyTorch's layer with numbers that nothing could mix up."""
    net = mp.wrap(case.truth())
    for name, p in [*net.parameters().items(), *net.buffers().items()]:
        if p.dtype == "float32":
            low, high = (0.5, 2.0) if name == "running_var" else (-1.0, 1.0)
            p.assign(np.random.default_rng(p.size + len(name)).uniform(low, high, p.shape).astype("float32"))
    return net


@pytest.mark.parametrize(("name", "flavour"), PAIRS)
def test_the_same_numbers_give_pytorchs_output_and_gradients(name: str, flavour: str) -> None:
    case = CASES[name]
    truth, twin = truth_of(case), FLAVOURS[flavour](case)
    prefix = "0." if "keras" in flavour else ""
    for leaf, p in [*truth.parameters().items(), *truth.buffers().items()]:
        if leaf != "num_batches_tracked":
            twin[prefix + leaf].assign(p.numpy())
            np.testing.assert_array_equal(twin[prefix + leaf].numpy(), p.numpy())  # written exactly
    assert {p.kind for p in twin} == {p.kind for p in truth}
    assert [n.removeprefix(prefix) for n in twin.parameters()] == list(truth.parameters())

    channels_last = flavour != "gluon"
    x = last(case.x) if channels_last else case.x
    y = mp.to_numpy(twin(x))
    expected = truth(case.x).detach().numpy()
    np.testing.assert_allclose(first(y) if channels_last else y, expected, rtol=1e-4, atol=2e-5)

    target = np.zeros_like(expected)
    _, wanted = truth.value_and_grad(mp.losses.mse, train=False)(case.x, target)
    _, grads = twin.value_and_grad(mp.losses.mse, train=False)(x, last(target) if channels_last else target)
    for leaf, g in wanted.items():
        np.testing.assert_allclose(mp.to_numpy(grads[prefix + leaf]), g.numpy(), rtol=2e-4, atol=2e-5, err_msg=leaf)


@pytest.mark.needs("torch")
def test_a_users_own_layer_is_added_by_data() -> None:
    """A layer that stores (in, out), as a subclass of nothing multiparam knows, in and out of canonical form."""

    class Affine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = torch.nn.Parameter(torch.arange(12.0).reshape(4, 3))
            self.shift = torch.nn.Parameter(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.kernel + self.shift

    before = mp.wrap(Affine())
    assert list(before.parameters()) == ["kernel", "shift"] and before["kernel"].kind == "Affine"
    mp.register_layer(Affine, "linear", {"kernel": ("weight", "IO"), "shift": ("bias", "O")})
    net = mp.wrap(Affine())
    assert list(net.parameters()) == ["weight", "bias"]
    assert net["weight"].shape == (3, 4) and net["weight"].kind == "linear"
    np.testing.assert_array_equal(net["weight"].numpy(), net.native.kernel.detach().numpy().T)
    w = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    net["weight"].assign(w)
    x = np.ones((2, 4), "float32")
    np.testing.assert_allclose(net(x).detach().numpy(), x @ w.T, rtol=1e-6)
    _, grads = net.value_and_grad(mp.losses.mse)(x, np.zeros((2, 3)))
    assert grads["weight"].shape == (3, 4)


@pytest.mark.needs("torch")
def test_a_new_kind_needs_its_form_and_fitting_layouts() -> None:
    class Odd(torch.nn.Module):
        pass

    with pytest.raises(mp.errors.InvalidArgument, match="new kind"):
        mp.register_layer(Odd, "bilinear")
    with pytest.raises(mp.errors.InvalidArgument, match="no leaf 'wait'"):
        mp.register_layer(Odd, "linear", {"w": ("wait", "IO")})
    with pytest.raises(mp.errors.InvalidArgument, match="axes"):
        mp.register_layer(Odd, "linear", {"w": ("weight", "IX")})
    mp.register_layer(Odd, "bilinear-of-this-test", {"w": ("weight", "IJO")}, form={"weight": "OIJ"})
