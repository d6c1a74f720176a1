"""Objectives in every framework: functions of a network and a batch that return a native scalar.

>>> step = net.value_and_grad(mp.losses.mse)                # doctest: +SKIP
>>> loss, grads = step(X, y)                                # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.model import Model


def mse(net: Model, inputs: Any, targets: Any) -> Any:
    """Mean squared error over all elements (``torch.nn.MSELoss``); ``targets`` has the output's shape."""
    return net.adapter.mse(net(inputs), net.native_array(targets))


def cross_entropy(net: Model, inputs: Any, labels: Any) -> Any:
    """Mean cross-entropy of logits (N, C) against integer labels (N,) (``torch.nn.CrossEntropyLoss``)."""
    return net.adapter.cross_entropy(net(inputs), net.native_array(labels))
