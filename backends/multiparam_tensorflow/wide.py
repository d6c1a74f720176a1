"""Computing in float64 with a model that was made in a narrower dtype; its variables stay as they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
import numpy as np

import multiparam.adapter as mpa

from .framework import tf

WIDENED = ("float32", "float16", "bfloat16")  # whose numbers float64 has exactly
# What is changed is the process's: of two threads, one would put back what the other has changed.
_alone = threading.RLock()


def computing_in_float64(layers: Sequence[Any]) -> AbstractContextManager[None] | None:
    """Inside, these layers compute in float64; None where they cannot.

    Args:
        layers: Those of a model, and itself.

    Returns:
        A context; behind it, the layers are as they were.
    """
    computing = [layer for layer in layers if not _has_whole_numbers(layer)]
    if not all(isinstance(layer, keras.layers.Layer) and layer.dtype in WIDENED for layer in computing):
        return None  # tf_keras casts no variable up
    # Keras 3 casts its variables where a layer computes in another dtype, and up is exact.
    policies = {dtype: keras.DTypePolicy(dtype) for dtype in WIDENED}
    for policy in policies.values():
        policy._compute_dtype = "float64"
    computed = [(layer, "dtype_policy", policies[layer.dtype]) for layer in computing]
    return _with_wide_constants([*computed, *_taking_float64(computing)])


@contextmanager
def _with_wide_constants(changes: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Python's floats are float64 inside: else Keras makes them floatx, and tf.cast float32, on the way to float64.

    So tf.nn.gelu takes a square root of two that is 1e-8 off (TensorFlow 2.21), where the model's dtype rounds more.
    """
    with _alone:
        floatx = keras.config.floatx()
        keras.config.set_floatx("float64")
        try:
            with mpa.temporarily([*changes, *_wide_casts()]):
                yield
        finally:
            keras.config.set_floatx(floatx)


def _wide_casts() -> list[tuple[Any, str, Any]]:
    if tf is None:
        return []
    from tensorflow.python.ops import math_ops

    cast = math_ops.cast

    def wide_cast(x: Any, dtype: Any, name: str | None = None) -> Any:
        return cast(np.float64(x) if isinstance(x, float) else x, dtype, name)

    return [(math_ops, "cast", wide_cast), (tf, "cast", wide_cast)]


def _has_whole_numbers(layer: Any) -> bool:
    """Whether a layer has no float, as an input layer for tokens."""
    return str(layer.dtype).startswith(("int", "uint", "bool")) and not layer.weights


def _taking_float64(layers: Sequence[Any]) -> list[tuple[Any, str, Any]]:
    """The changes by which Functional models take float64: they cast what they take to what their inputs were made in.

    A Sequential model has such a model inside, once it is built, and casts to the dtype of its first layer.
    """
    models = [getattr(layer, "_functional", None) or layer for layer in layers]
    tensors = [tensor for model in models if hasattr(model, "_inputs_struct") for tensor in model.inputs]
    inputs = [layer for model in models for layer in getattr(model, "_operations", ()) if hasattr(layer, "batch_shape")]
    taken = [(each, "_dtype", "float64") for each in (*tensors, *inputs) if each.dtype in WIDENED]
    # Without an input layer, the dtype of the first layer's variables, which stay as they are, would count.
    own = [layer for layer in layers if isinstance(layer, keras.Sequential)]
    return [*taken, *((model, "_convert_input_args", False) for model in own)]
