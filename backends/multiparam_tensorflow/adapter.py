"""Keras, 3 and tf_keras 2, as one backend."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import multiparam.adapter as mpa
from multiparam.errors import MultiparamWarning, UnknownShapes, Unrecognised

from .build import functional
from .calls import call
from .framework import is_tensor, tf
from .host import KerasHost
from .storage import KerasStorage, namespace, to_numpy
from .walk import applied, is_layer, is_unbuilt, repeated, walk


class TensorflowAdapter(mpa.Adapter):
    """Keras on TensorFlow."""

    def wrap(self, native: Any, inputs: mpa.Inputs) -> KerasHost:
        if not is_layer(native):
            raise Unrecognised(f"mp.wrap takes a Keras model or layer, not {type(native).__qualname__}.")
        twice = repeated(native)
        idle = next((layer for _, _, layer in walk(native) if is_unbuilt(layer)), None) if native.built else native
        if idle is not None:
            # The layers of a Functional model have all been called: what these did not reach, no call reaches.
            complete = native.built and any(base.__name__ == "Functional" for base in type(native).__mro__)
            if not inputs and not complete:
                raise UnknownShapes(
                    f"The layer {idle.name!r} of the Keras model {native.name!r} was never called, so it has no "
                    "parameters. Pass example inputs, mp.wrap(net, X); a layer that no call reaches is left out."
                    if native.built
                    else f"The Keras model {native.name!r} is not built, so it has no parameters yet. "
                    "Pass example inputs, mp.wrap(net, X), or call it once."
                )
            if inputs:
                call(native, inputs.positional, inputs.keywords)
            elif complete:
                warnings.warn(
                    f"No call of {native.name!r} has reached its layer {idle.name!r}, which is left out. Where it "
                    "should have parameters, pass example inputs, mp.wrap(net, X).",
                    MultiparamWarning,
                    stacklevel=3,
                )
        if twice and len(applied(native)) < len(twice):
            positions = [i for i, layer in enumerate(twice) if twice.count(layer) > 1]
            warnings.warn(
                f"tf_keras applies a repeated layer of a Sequential once when its first call builds it: of "
                f"{twice[positions[0]].name!r}, at {' and '.join(map(str, positions))} of {native.name!r}, the first "
                "is left. Begin with tf_keras.Input, and it is applied each time.",
                MultiparamWarning,
                stacklevel=3,
            )
        return KerasHost(native)

    def build(self, architecture: mpa.Architecture, dtype: str) -> KerasHost:
        return KerasHost(functional(architecture, dtype))

    def to_numpy(self, array: Any) -> np.ndarray:
        return to_numpy(array)

    def from_numpy(self, array: np.ndarray) -> Any:
        on_tensorflow = keras.backend.backend() == "tensorflow"
        return tf.constant(array) if on_tensorflow else keras.ops.convert_to_tensor(np.array(array))

    def namespace(self, array: Any) -> Any:
        return namespace(array)

    def detach(self, array: Any) -> Any:
        if is_tensor(array):
            return tf.stop_gradient(array)
        return keras.ops.copy(keras.ops.stop_gradient(array))  # torch's may alias the variable

    def mse(self, prediction: Any, target: Any) -> Any:
        if not is_tensor(prediction):
            return keras.ops.mean(keras.ops.square(prediction - keras.ops.cast(target, prediction.dtype)))
        return tf.reduce_mean(tf.math.squared_difference(prediction, tf.cast(target, prediction.dtype)))

    def cross_entropy(self, logits: Any, labels: Any, ignore_index: int) -> Any:
        if not is_tensor(logits):
            return _cross_entropy(logits, labels, ignore_index)
        labels = tf.cast(labels, tf.int64)
        kept = tf.not_equal(labels, ignore_index)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.where(kept, labels, 0), logits)
        return tf.reduce_sum(tf.where(kept, losses, 0)) / tf.reduce_sum(tf.cast(kept, losses.dtype))

    def settings(self) -> dict[str, Any]:
        now = {
            "floatx": (keras.config.floatx(), "float32"),
            "dtype policy": (keras.mixed_precision.dtype_policy().name, keras.config.floatx()),
            **{name: (os.environ.get(name, ""), "") for name in ("TF_ENABLE_ONEDNN_OPTS", "TF_XLA_FLAGS", "XLA_FLAGS")},
        }
        return {name: value for name, (value, default) in now.items() if value != default}

    def initializer(self, function: Any) -> Callable[[Any, int], None] | None:
        roots = {base.__module__.partition(".")[0] for base in type(function).__mro__}
        if not roots & {"keras", "tf_keras", "tensorflow"} or not hasattr(function, "get_config"):
            return None

        def fill(storage: KerasStorage, seed: int) -> None:
            config = function.get_config()  # an initialiser keeps the seed it was made with: make one with ours
            seeded = type(function).from_config({**config, "seed": seed}) if "seed" in config else function
            storage.native.assign(seeded(storage.shape, dtype=storage.dtype))

        return fill


def _cross_entropy(logits: Any, labels: Any, ignore_index: int) -> Any:
    """On another backend of Keras'."""
    ops = keras.ops
    labels = ops.cast(labels, "int32")
    kept = ops.not_equal(labels, ignore_index)
    shown = ops.where(kept, labels, ops.zeros_like(labels))
    losses = ops.sparse_categorical_crossentropy(shown, logits, from_logits=True)
    kept = ops.cast(kept, losses.dtype)
    return ops.sum(losses * kept) / ops.sum(kept)
