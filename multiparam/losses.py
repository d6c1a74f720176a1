"""Objectives in every framework: functions of a network and a batch that return a native scalar.

>>> step = net.value_and_grad(mp.losses.mse)                # doctest: +SKIP
>>> loss, grads = step(X, y)                                # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.model import Model


def mse(net: Model, inputs: Any, targets: Any) -> Any:
    """Mean squared error over all elements (``torch.nn.MSELoss``).

    Args:
        net: The network.
        inputs: One batch, numpy or native.
        targets: Numbers of the output's shape.

    Returns:
        A native scalar: the mean of (output - target)^2.

    >>> net = mp.build(mp.nn.Linear(1, bias=False), np.ones((1, 2)), backend="torch")
    >>> _ = net.init(mp.init.constant(1))
    >>> float(mse(net, np.array([[1.0, 2.0]]), np.array([[0.0]])))
    9.0
    """
    return net.adapter.mse(net(inputs), net.native_array(targets))


def cross_entropy(net: Model, inputs: Any, labels: Any) -> Any:
    """Mean cross-entropy of logits against labels (``torch.nn.CrossEntropyLoss``).

    Args:
        net: The network; it gives logits (N, C).
        inputs: One batch, numpy or native.
        labels: (N,) integers below C.

    Returns:
        A native scalar: the mean over the batch of ``-log softmax(logits)[label]``.

    >>> net = mp.build(mp.nn.Linear(2), np.ones((1, 1)), backend="torch")
    >>> _ = net.init(mp.init.zeros())
    >>> round(float(cross_entropy(net, np.ones((1, 1)), np.array([0]))), 4)  # log 2
    0.6931
    """
    return net.adapter.cross_entropy(net(inputs), net.native_array(labels))
