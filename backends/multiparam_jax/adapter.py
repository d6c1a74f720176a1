"""JAX: one backend over two libraries of modules, linen and NNX."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as flax_linen
from flax import nnx as flax_nnx

import multiparam.adapter as mpa
from multiparam.errors import Unrecognised

from .arrays import CONFIG, NAMESPACE, from_numpy, scope
from .build import chain
from .linen import LinenHost, host_for, zeros
from .nnx import NnxHost
from .sharded import whole


class JaxAdapter(mpa.Adapter):
    """flax.linen, flax.nnx and optax."""

    def wrap(self, native: Any, inputs: mpa.Inputs, variables: Any = None, seed: int = 0) -> mpa.Host:
        if isinstance(native, flax_linen.Module):
            return host_for(native, inputs, variables, seed)
        if isinstance(native, flax_nnx.Module):
            return NnxHost(native)
        raise Unrecognised(f"mp.wrap takes a linen or an NNX module, not {type(native).__qualname__}.")

    def build(self, architecture: mpa.Architecture, dtype: str) -> LinenHost:
        module = chain(architecture, dtype)
        x = np.zeros((2, *architecture.input), architecture.dtype)
        return host_for(module, mpa.Inputs((x,)), zeros(module, x, dtype), 0)

    def to_numpy(self, array: Any) -> np.ndarray:
        if isinstance(array, flax_nnx.Variable):
            array = array[...]
        return np.asarray(whole(array))

    def from_numpy(self, array: np.ndarray) -> jax.Array:
        return from_numpy(array)

    def namespace(self, array: Any) -> SimpleNamespace:
        return NAMESPACE

    def detach(self, array: Any) -> Any:
        return array  # immutable

    def mse(self, prediction: Any, target: Any) -> Any:
        with scope([prediction.dtype]):
            return jnp.mean((prediction - target) ** 2)

    def cross_entropy(self, logits: Any, labels: Any, ignore_index: int) -> Any:
        with scope([logits.dtype]):
            kept = labels != ignore_index
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(kept, labels, 0))
            return losses.mean(where=kept)

    def settings(self) -> dict[str, Any]:
        now = {
            "jax_enable_x64": (CONFIG.jax_enable_x64, False),
            "jax_default_matmul_precision": (CONFIG.jax_default_matmul_precision, None),
            "XLA_FLAGS": (os.environ.get("XLA_FLAGS", ""), ""),
        }
        return {name: value for name, (value, default) in now.items() if value != default}

    def initializer(self, function: Any) -> Callable[[Any, int], None] | None:
        module = getattr(function, "__module__", None) or ""
        if not module.startswith(("jax._src.nn.initializers", "jax.nn.initializers", "flax.")):
            return None

        def fill(storage: Any, seed: int) -> None:
            with scope([storage.dtype]):
                storage.put(function(jax.random.key(seed), storage.shape, jnp.dtype(storage.dtype)))

        return fill
