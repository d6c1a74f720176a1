"""Norms that Gluon 1.9.1 has not, or has otherwise: its GroupNorm scales groups and not channels, none has RMSNorm.

What Gluon has computes with an eps in float32; these are written out, so float64 is float64.
"""

from __future__ import annotations

import math
from typing import Any

from .load import load

mx = load()


def _times(F: Any, a: Any, b: Any) -> Any:
    return a * b if mx.util.is_np_array() else F.broadcast_mul(a, b)


def _plus(F: Any, a: Any, b: Any) -> Any:
    return a + b if mx.util.is_np_array() else F.broadcast_add(a, b)


class GroupNorm(mx.gluon.HybridBlock):  # type: ignore[misc,name-defined]
    """Groups of channels to mean 0 and deviation 1, then each channel scaled and moved; for one shape of input."""

    def __init__(self, shape: tuple[int, ...], groups: int, eps: float) -> None:
        super().__init__()
        self.num_groups, self._epsilon = groups, eps
        self._split = (-1, groups, math.prod(shape) // groups)
        self._whole, self._channels = (-1, *shape), (1, shape[0], *(1 for _ in shape[1:]))
        self.gamma = self.params.get("gamma", shape=(shape[0],), init="ones")
        self.beta = self.params.get("beta", shape=(shape[0],), init="zeros")

    def hybrid_forward(self, F: Any, x: Any, gamma: Any, beta: Any) -> Any:
        split = x.reshape(self._split)
        centred = _plus(F, split, -split.mean(axis=2, keepdims=True))
        variance = (centred * centred).mean(axis=2, keepdims=True)
        y = _times(F, centred, (variance + self._epsilon) ** -0.5).reshape(self._whole)
        return _plus(F, _times(F, y, gamma.reshape(self._channels)), beta.reshape(self._channels))


class InstanceNorm(GroupNorm):
    """A group for each channel."""


class RMSNorm(mx.gluon.HybridBlock):  # type: ignore[misc,name-defined]
    """The last axis by the root of its mean square, each number scaled."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self._epsilon = eps
        self.gamma = self.params.get("gamma", shape=(size,), init="ones")

    def hybrid_forward(self, F: Any, x: Any, gamma: Any) -> Any:
        scale = ((x * x).mean(axis=-1, keepdims=True) + self._epsilon) ** -0.5
        return _times(F, _times(F, x, scale), gamma)
