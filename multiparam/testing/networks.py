"""Small networks and comparisons that the kit's tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .. import nn
from ..core.arrays import to_numpy
from ..core.construction import build
from ..core.model import Model
from ..core.registry import detect_array

feature = pytest.mark.multiparam_feature

X = np.random.default_rng(0).normal(size=(6, 4))
Y = np.random.default_rng(1).normal(size=(6, 1))


def mlp(backend: str, **options: Any) -> Model:
    """4 - 8 - 1, in float64 by default."""
    options.setdefault("dtype", "float64")
    return build(nn.Sequential(nn.Linear(8), nn.Tanh(), nn.Linear(1)), X, backend=backend, **options)


def deep(backend: str, shared: bool = False, **options: Any) -> Model:
    """4 - 8 - 8 - 8 - 1, the two in the middle one layer, or an untied twin with the same architecture."""
    options.setdefault("dtype", "float64")
    a = nn.Linear(8)
    b = a if shared else nn.Linear(8)
    spec = nn.Sequential(nn.Linear(8), nn.Tanh(), a, nn.Tanh(), b, nn.Tanh(), nn.Linear(1))
    return build(spec, X, backend=backend, **options)


def deep_spec() -> nn.Sequential:
    """What :func:`deep` computes, for the reference."""
    linear = nn.Linear(8)
    return nn.Sequential(linear, nn.Tanh(), linear, nn.Tanh(), linear, nn.Tanh(), nn.Linear(1))


def blocks(backend: str) -> Model:
    """Four blocks of two layers, named, and a head: d2l's nested example."""

    def block() -> nn.Layer:
        return nn.Sequential(nn.Linear(8), nn.ReLU(), nn.Linear(4), nn.ReLU())

    nested = nn.Sequential(*[(f"block {i}", block()) for i in range(4)])
    return build(nn.Sequential(nested, nn.Linear(1)), X, backend=backend)


def state_of(net: Model) -> dict[str, np.ndarray]:
    """Every name with its values, buffers too."""
    parameters = {**net.parameters(aliases=True), **net.buffers(aliases=True)}
    return {name: p.numpy() for name, p in parameters.items()}


def arrays(mapping: Any) -> dict[str, np.ndarray]:
    """Copies as numpy."""
    return {name: np.array(to_numpy(value)) for name, value in mapping.items()}


def assert_close(a: Any, b: np.ndarray, eps: float = 256, dtype: str = "float64") -> None:
    """Normwise, in eps."""
    a = to_numpy(a)
    assert a.shape == b.shape
    scale = max(float(np.max(np.abs(b))), 1e-300)
    assert float(np.max(np.abs(a - b))) <= eps * np.finfo(dtype).eps * scale


def without_counts(names: Any) -> list[str]:
    """Without PyTorch's count of batches, which only some frameworks keep."""
    return [name for name in names if not name.endswith("num_batches_tracked")]


def is_of(array: Any, backend: str) -> bool:
    """Whether an array is the backend's own; where its arrays are numpy's, nobody else's."""
    known = detect_array(array)
    return isinstance(array, np.ndarray) if known is None else known.name == backend
