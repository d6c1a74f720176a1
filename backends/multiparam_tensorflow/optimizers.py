"""Keras' optimizers with PyTorch's meaning, in the parameters' own precision.

Keras, as of 3.15, keeps rates in float32 and adds Adam's eps before the bias correction. The subclasses keep Keras'
slots and loops and replace one step's arithmetic: every rate is computed in float64 and rounded once. The learning
rate is a variable, so that changing it recompiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import keras
import tensorflow as tf

from .storage import tf_variable


def sgd(variable: Any, gradient: Any, velocity: Any, lr: Any, options: Mapping[str, Any]) -> None:
    """Momentum's velocity is ``-lr`` times PyTorch's, as in Keras."""
    change = -tf.cast(lr, variable.dtype) * gradient
    if velocity is not None:
        momentum = tf.constant(options["momentum"], variable.dtype)
        velocity.assign(momentum * velocity + change)
        change = momentum * velocity + change if options["nesterov"] else velocity
    variable.assign_add(change)


def adam(variable: Any, gradient: Any, mean: Any, square: Any, t: Any, lr: Any, options: Mapping[str, Any]) -> None:
    """Kingma and Ba (2015), section 2: eps is scaled by the correction that is taken out of the root."""
    beta1, beta2 = (tf.constant(options[name], tf.float64) for name in ("beta1", "beta2"))
    t = tf.cast(t, tf.float64)
    correction = tf.sqrt(1 - tf.pow(beta2, t))
    rate = tf.cast(lr * correction / (1 - tf.pow(beta1, t)), variable.dtype)
    eps = tf.cast(options["eps"] * correction, variable.dtype)
    mean.assign_add((gradient - mean) * tf.cast(1 - beta1, variable.dtype))
    square.assign_add((tf.square(gradient) - square) * tf.cast(1 - beta2, variable.dtype))
    variable.assign_sub(rate * mean / (tf.sqrt(square) + eps))


def _native(library: Any, name: str, options: Mapping[str, Any], lr: tf.Variable) -> Any:
    """An optimizer of ``library``, Keras or tf_keras, with our arithmetic."""
    base: Any = library.optimizers.Adam if name == "adam" else library.optimizers.SGD
    three = library is keras

    class Optimizer(base):  # type: ignore[misc]
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any = None) -> None:  # Keras 3 gives it
            i = self._get_variable_index(variable) if three else self._index_dict[self._var_key(variable)]
            if name == "adam":
                mean, square = tf_variable(self._momentums[i]), tf_variable(self._velocities[i])
                adam(tf_variable(variable), gradient, mean, square, tf_variable(self.iterations) + 1, lr, options)
            else:
                velocity = tf_variable(self.momentums[i]) if self.momentum else None
                sgd(tf_variable(variable), gradient, velocity, lr, options)

    # tf_keras would compile with XLA, where there is a GPU, what tf.function below compiles already.
    extra = {} if three else {"jit_compile": False}
    if name == "adam":
        return Optimizer(options["lr"], options["beta1"], options["beta2"], options["eps"], **extra)
    return Optimizer(options["lr"], options.get("momentum", 0.0), bool(options.get("nesterov", False)), **extra)


class KerasOptimizer:
    """A Keras optimizer with its update compiled, once per set of updated variables."""

    def __init__(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> None:
        three = all(isinstance(storage.native, keras.Variable) for storage in storages)
        library = keras if three else import_module("tf_keras")
        self._rate = tf.Variable(options["lr"], dtype=tf.float64, trainable=False)
        self.native = _native(library, name, options, self._rate)
        self.native.build([storage.native for storage in storages])
        self._lr = options["lr"]
        self._compiled: dict[tuple[int, ...], Callable[[list[Any]], None]] = {}

    @property
    def lr(self) -> float:
        return float(self._lr)

    @lr.setter
    def lr(self, value: float) -> None:
        if not hasattr(self.native, "beta_2"):  # the velocity holds the rate, PyTorch's does not
            for velocity in getattr(self.native, "momentums", None) or []:
                velocity.assign(velocity * (value / self._lr))
        self._rate.assign(value)
        self.native.learning_rate = value
        self._lr = value

    def apply(self, storages: Sequence[Any], grads: Sequence[Any]) -> None:
        key = tuple(id(storage) for storage in storages)
        if key not in self._compiled:
            variables = [storage.native for storage in storages]

            def update(grads: list[Any]) -> None:
                self.native.apply_gradients(zip(grads, variables, strict=True))

            self._compiled[key] = tf.function(update, autograph=False)
        self._compiled[key](list(grads))
