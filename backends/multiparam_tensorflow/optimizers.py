"""Keras' optimizers with PyTorch's meaning, in the parameters' own precision.

Keras keeps the learning rate in float32 and adds Adam's eps before the bias correction; the subclasses here
pass an exact rate and scale eps by the correction first. Both generations of Keras have the same formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf


class Exact:
    """Mixed into a Keras 3 optimizer: its update uses ``rate``, a float64 variable."""

    rate: tf.Variable
    beta_2: float
    iterations: Any
    eps: float | None = None

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if self.eps is not None:
            t = tf.cast(self.iterations + 1, tf.float64)
            corrected = self.eps * tf.sqrt(1 - tf.pow(tf.constant(self.beta_2, tf.float64), t))
            self.epsilon = tf.cast(corrected, variable.dtype)
        super().update_step(gradient, variable, tf.cast(self.rate, variable.dtype))  # type: ignore[misc]


class Sgd(Exact, keras.optimizers.SGD):  # type: ignore[misc]
    pass


class Adam(Exact, keras.optimizers.Adam):  # type: ignore[misc]
    pass


def _keras3(name: str, options: Mapping[str, Any]) -> Any:
    native: Any
    if name == "adam":
        native = Adam(options["lr"], options["beta1"], options["beta2"], options["eps"])
        object.__setattr__(native, "eps", options["eps"])
    else:
        native = Sgd(options["lr"], options.get("momentum", 0.0), bool(options.get("nesterov", False)))
    object.__setattr__(native, "rate", tf.Variable(options["lr"], dtype=tf.float64, trainable=False))
    return native


def _keras2(name: str, options: Mapping[str, Any]) -> Any:
    import tf_keras

    class Adam2(tf_keras.optimizers.Adam):  # type: ignore[misc]
        def update_step(self, gradient: Any, variable: Any) -> None:
            t = tf.cast(self.iterations + 1, tf.float64)
            corrected = options["eps"] * tf.sqrt(1 - tf.pow(tf.constant(options["beta2"], tf.float64), t))
            self.epsilon = tf.cast(corrected, variable.dtype)
            super().update_step(gradient, variable)

    if name == "adam":
        return Adam2(options["lr"], options["beta1"], options["beta2"], options["eps"], jit_compile=False)
    momentum, nesterov = options.get("momentum", 0.0), bool(options.get("nesterov", False))
    return tf_keras.optimizers.SGD(options["lr"], momentum, nesterov, jit_compile=False)


class KerasOptimizer:
    """A Keras optimizer with its update compiled, once per set of updated variables."""

    def __init__(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> None:
        three = all(isinstance(storage.native, keras.Variable) for storage in storages)
        self.native = (_keras3 if three else _keras2)(name, options)
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
        if hasattr(self.native, "rate"):
            self.native.rate.assign(value)
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
