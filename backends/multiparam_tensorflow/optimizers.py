"""Keras' optimizers with PyTorch's meaning, in the parameters' own precision.

Keras keeps rates in float32 and adds Adam's eps before the bias correction. The subclasses keep Keras' slots and
loops and replace one step's arithmetic: every rate is computed in float64 and rounded once. The learning rate is
a variable, so that changing it recompiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf


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


def _value(variable: Any) -> Any:
    """The tf.Variable behind a Keras 3 one."""
    return variable if isinstance(variable, tf.Variable) else variable._value


def _keras3(name: str, options: Mapping[str, Any], lr: tf.Variable) -> Any:
    class Sgd(keras.optimizers.SGD):  # type: ignore[misc]
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            velocity = _value(self.momentums[self._get_variable_index(variable)]) if self.momentum else None
            sgd(_value(variable), gradient, velocity, lr, options)

    class Adam(keras.optimizers.Adam):  # type: ignore[misc]
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            i = self._get_variable_index(variable)
            slots = _value(self._momentums[i]), _value(self._velocities[i])
            adam(_value(variable), gradient, *slots, self.iterations.value + 1, lr, options)

    if name == "adam":
        return Adam(options["lr"], options["beta1"], options["beta2"], options["eps"])
    return Sgd(options["lr"], options.get("momentum", 0.0), bool(options.get("nesterov", False)))


def _keras2(name: str, options: Mapping[str, Any], lr: tf.Variable) -> Any:
    import tf_keras

    class Sgd(tf_keras.optimizers.SGD):  # type: ignore[misc]
        def update_step(self, gradient: Any, variable: Any) -> None:
            i = self._index_dict[self._var_key(variable)]
            sgd(variable, gradient, self.momentums[i] if self.momentum else None, lr, options)

    class Adam(tf_keras.optimizers.Adam):  # type: ignore[misc]
        def update_step(self, gradient: Any, variable: Any) -> None:
            i = self._index_dict[self._var_key(variable)]
            adam(variable, gradient, self._momentums[i], self._velocities[i], self.iterations + 1, lr, options)

    if name == "adam":
        return Adam(options["lr"], options["beta1"], options["beta2"], options["eps"], jit_compile=False)
    momentum, nesterov = options.get("momentum", 0.0), bool(options.get("nesterov", False))
    return Sgd(options["lr"], momentum, nesterov, jit_compile=False)


class KerasOptimizer:
    """A Keras optimizer with its update compiled, once per set of updated variables."""

    def __init__(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> None:
        three = all(isinstance(storage.native, keras.Variable) for storage in storages)
        self._rate = tf.Variable(options["lr"], dtype=tf.float64, trainable=False)
        self.native = (_keras3 if three else _keras2)(name, options, self._rate)
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

            @tf.function(autograph=False)
            def update(grads: list[Any]) -> None:
                self.native.apply_gradients(zip(grads, variables, strict=True))

            self._compiled[key] = update
        self._compiled[key](list(grads))
