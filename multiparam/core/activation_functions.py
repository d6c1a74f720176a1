"""The activation functions that may stand in a layer, or between two."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np


def _erf(x: np.ndarray) -> np.ndarray:
    values: np.ndarray = np.vectorize(math.erf, otypes=[x.dtype])(x)  # numpy has none, and SciPy is not needed for it
    return values


def _sigmoid(x: np.ndarray) -> np.ndarray:
    values: np.ndarray = 1 / (1 + np.exp(-x))
    return values


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    """The approximation of Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016)."""
    inner: np.ndarray = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + inner)


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """The softmax over an axis; ones, where there is no axis or nothing on it."""
    if not x.size or not x.ndim:
        return np.ones_like(x)
    power: np.ndarray = np.exp(x - x.max(axis, keepdims=True))
    total: np.ndarray = power.sum(axis, keepdims=True)
    return np.divide(power, total)


# By the names that hints have. Slopes are the defaults of PyTorch and JAX (0.01), of Keras 3's function (0.2) and of
# its layer (0.3).
FUNCTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "no activation": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "exact gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "tanh's gelu": _gelu_tanh,
    "quick gelu": lambda x: x * _sigmoid(1.702 * x),
    "silu": lambda x: x * _sigmoid(x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky relu (0.01)": lambda x: np.where(x > 0, x, 0.01 * x),
    "leaky relu (0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
    "leaky relu (0.3)": lambda x: np.where(x > 0, x, 0.3 * x),
    "relu6": lambda x: np.minimum(np.maximum(x, 0), 6),
    "softplus": lambda x: np.logaddexp(x, 0),
    "softmax": softmax,
    "log softmax": lambda x: np.log(softmax(x)),
}
