"""Gradients through pooling are right in evaluation too, where MXNet's own are of memory that was never written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import errors

torch = pytest.importorskip("torch")
mx = pytest.importorskip("multiparam_mxnet.load").load()
gluon = mx.gluon

pytestmark = [pytest.mark.needs("mxnet", "torch"), pytest.mark.xdist_group("mxnet")]
X = np.random.default_rng(0).normal(size=(2, 1, 19, 19)).astype("float32")


def of_layers() -> Any:
    native = gluon.nn.HybridSequential()
    native.add(gluon.nn.Conv2D(4, 3), gluon.nn.MaxPool2D(2, 2), gluon.nn.Dense(2))
    return native


def of_a_function() -> Any:
    class Net(gluon.nn.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.dense = gluon.nn.Conv2D(4, 3), gluon.nn.Dense(2)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            return self.dense(F.Pooling(self.conv(x), kernel=(2, 2), stride=(2, 2), pool_type="max"))

    return Net()


@pytest.mark.parametrize("make", [of_layers, of_a_function])
@pytest.mark.parametrize("hybrid", [False, True])
def test_max_pooling_in_evaluation(make: Any, hybrid: bool) -> None:
    native = make()
    native.initialize(mx.init.Normal(0.3))
    if hybrid:
        native.hybridize()
    net = mp.wrap(native, X)
    layers = torch.nn.Conv2d(1, 4, 3), torch.nn.MaxPool2d(2, 2), torch.nn.Flatten(), torch.nn.Linear(4 * 8 * 8, 2)
    twin = mp.wrap(torch.nn.Sequential(*layers))
    for ours, theirs in zip(twin, net, strict=True):
        ours.assign(theirs.numpy())

    def objective(net: mp.Model, x: Any) -> Any:
        return (net(x) ** 2).mean()

    for train in (False, True):
        _, truth = twin.value_and_grad(objective, train=train)(X)
        step = net.value_and_grad(objective, train=train)
        for _ in range(3):
            _, grads = step(X)
            for true, grad in zip(truth.values(), grads.values(), strict=True):
                np.testing.assert_allclose(mp.to_numpy(grad), mp.to_numpy(true), rtol=1e-3, atol=1e-6)
    assert native._active is hybrid


def test_an_exported_graph_is_refused(tmp_path: Path) -> None:
    native = of_layers()
    native.initialize()
    native.hybridize()
    mp.wrap(native, X)(X)
    native.export(str(tmp_path / "net"))
    graph = gluon.SymbolBlock.imports(str(tmp_path / "net-symbol.json"), ["data"], str(tmp_path / "net-0000.params"))
    net = mp.wrap(graph)
    with pytest.raises(errors.Unsupported, match=r"max pooling in an exported graph.*train=True"):
        net.value_and_grad(lambda net, x: (net(x) ** 2).mean(), train=False)(X)
    net.value_and_grad(lambda net, x: (net(x) ** 2).mean())(X)
