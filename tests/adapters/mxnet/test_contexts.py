"""A Gluon model on another device than MXNet's own choice: numpy's arrays go where the model is."""

from __future__ import annotations

import numpy as np
import pytest

import multiparam as mp

pytestmark = pytest.mark.needs("mxnet")
X, Y = np.ones((4, 3), "float32"), np.zeros((4, 2), "float32")


def test_inputs_labels_and_writes_go_to_the_models_context() -> None:
    from multiparam_mxnet.load import load

    mx = load()
    native = mx.gluon.nn.Sequential()
    native.add(mx.gluon.nn.Dense(5, in_units=3), mx.gluon.nn.Dense(2, in_units=5))
    native.initialize(ctx=mx.cpu(1))
    net = mp.wrap(native)
    assert net(X).context == mx.cpu(1)
    step, optimizer = net.value_and_grad(mp.losses.mse), net.optimizer("sgd", lr=0.1)
    step(X, Y)
    optimizer.step()
    before = net["0.weight"].numpy()
    net["0.weight"].assign(before + 1)
    assert np.array_equal(native[0].weight.data(mx.cpu(1)).asnumpy(), before + 1)
    assert native[0].weight.list_ctx() == [mx.cpu(1)]
