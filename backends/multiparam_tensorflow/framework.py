"""TensorFlow, where it is installed: Keras 3 runs on PyTorch or JAX without it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

try:
    tf: Any = import_module("tensorflow")
except ImportError:
    tf = None


def is_tensor(array: Any) -> bool:
    """Whether an array is TensorFlow's."""
    return tf is not None and bool(tf.is_tensor(array))


def is_variable(variable: Any) -> bool:
    """Whether a variable is TensorFlow's own."""
    return tf is not None and isinstance(variable, tf.Variable)
