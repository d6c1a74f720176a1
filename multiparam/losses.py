"""Objectives in every framework: functions of a network and a batch that return a native scalar.

What the frameworks take each in its own way is checked here, once: shapes that would broadcast, labels that are no
classes.

>>> step = net.value_and_grad(mp.losses.mse)                # doctest: +SKIP
>>> loss, grads = step(X, y)                                # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .core import labels as _labels
from .errors import DtypeError, ShapeError

if TYPE_CHECKING:
    from .core.model import Model

IGNORED = -100  # torch.nn.CrossEntropyLoss' default


def mse(net: Model, inputs: Any, targets: Any) -> Any:
    """Mean squared error over all elements (``torch.nn.MSELoss``).

    Args:
        net: The network.
        inputs: One batch, numpy or native; a mapping goes by keyword.
        targets: Numbers of the output's shape.

    Returns:
        A native scalar: the mean of (output - target)^2.

    Raises:
        ShapeError: The targets are of another shape, which would be broadcast.

    >>> net = mp.build(mp.nn.Linear(1, bias=False), np.ones((1, 2)), backend="torch")
    >>> _ = net.init(mp.init.constant(1))
    >>> float(mse(net, np.array([[1.0, 2.0]]), np.array([[0.0]])))
    9.0
    """
    outputs, targets = _outputs(net, inputs), net.native_array(targets)
    if not _fits(outputs.shape, targets.shape):
        raise ShapeError(
            f"mse takes targets of the output's shape, {tuple(outputs.shape)}; they are {tuple(targets.shape)}. "
            "Reshape one of them: broadcasting would take the mean over other pairs."
        )
    return net.adapter.mse(outputs, targets)


def cross_entropy(net: Model, inputs: Any, labels: Any, ignore_index: int = IGNORED) -> Any:
    """Mean cross-entropy of logits against labels (``torch.nn.CrossEntropyLoss``).

    Args:
        net: The network; it gives logits (N, C), or of sequences (N, T, C): classes are the last axis.
        inputs: One batch, numpy or native; a mapping goes by keyword.
        labels: Whole numbers below C, (N,) or (N, T).
        ignore_index: A label that is left out of the mean, such as padding's.

    Returns:
        A native scalar: the mean over the other labels of ``-log softmax(logits)[label]``.

    Raises:
        ShapeError: Labels that are not one for each row of logits.
        DtypeError: Labels that are no integers.
        InvalidArgument: A label that is no class; where a compiled step computes the labels itself, the framework's own
            answer to it: NaN, or its error.

    >>> net = mp.build(mp.nn.Linear(2), np.ones((1, 1)), backend="torch")
    >>> _ = net.init(mp.init.zeros())
    >>> round(float(cross_entropy(net, np.ones((1, 1)), np.array([0]))), 4)  # log 2
    0.6931
    """
    logits, labels = _outputs(net, inputs), net.native_array(labels)
    _check_shapes(logits, labels)
    step = _labels.watching.get()
    if step is None or not step.note(labels, logits.shape[-1], ignore_index):
        values = _concrete(net, labels)
        if values is not None:
            _labels.check_classes(values, logits.shape[-1], ignore_index)
    if len(logits.shape) > 2:
        rows = net.adapter.namespace(logits)
        logits, labels = rows.reshape(logits, (-1, logits.shape[-1])), rows.reshape(labels, (-1,))
    return net.adapter.cross_entropy(logits, labels, ignore_index)


def _concrete(net: Model, labels: Any) -> np.ndarray | None:
    """The labels' values, where no framework is tracing them."""
    try:
        return net.to_numpy(labels)
    except Exception:  # each framework has its own error for that
        return None


def _outputs(net: Model, inputs: Any) -> Any:
    """What the network gives; a mapping goes by keyword."""
    return net(**inputs) if isinstance(inputs, Mapping) else net(inputs)


def _fits(outputs: Sequence[Any], targets: Sequence[Any]) -> bool:
    """Whether two shapes are the same, as far as the framework knows them while it traces."""
    a, b = tuple(outputs), tuple(targets)
    return len(a) == len(b) and all(n == m or n is None or m is None for n, m in zip(a, b, strict=True))


def _check_shapes(logits: Any, labels: Any) -> None:
    shape = tuple(logits.shape)
    if len(shape) < 2 or not _fits(shape[:-1], labels.shape):
        raise ShapeError(
            f"cross_entropy takes one label for each row of logits, {shape[:-1]} for {shape}, whose last axis is the "
            f"classes; the labels are {tuple(labels.shape)}."
        )
    if "int" not in str(labels.dtype):
        raise DtypeError(f"Labels are whole numbers, of an integer dtype; these are {labels.dtype}. Convert them.")
