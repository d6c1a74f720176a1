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

from multiparam.adapter import require_known

from .framework import tf
from .replicas import on_replicas, scope_of, share, strategy_of
from .storage import tf_variable

ADAMS = ("adam", "adamw")


def coupled(variable: Any, gradient: Any, options: Mapping[str, Any]) -> Any:
    """A gradient with the decay in it, as PyTorch's SGD and Adam have it."""
    decay = options.get("weight_decay")
    return gradient + variable * tf.constant(decay, variable.dtype) if decay else gradient


def sgd(variable: Any, gradient: Any, velocity: Any, lr: Any, options: Mapping[str, Any]) -> None:
    """The velocity is PyTorch's, without the rate that Keras' has in it: that would be lost while the rate is 0."""
    change = gradient = coupled(variable, gradient, options)
    if velocity is not None:
        momentum = tf.constant(options["momentum"], variable.dtype)
        velocity.assign(momentum * velocity + gradient)
        change = momentum * velocity + gradient if options["nesterov"] else velocity
    variable.assign_sub(tf.cast(lr, variable.dtype) * change)


def adam(variable: Any, gradient: Any, mean: Any, square: Any, t: Any, lr: Any, options: Mapping[str, Any]) -> None:
    """Kingma and Ba (2015), section 2: eps is scaled by the correction that is taken out of the root.

    Of adamw, decay is decoupled from the moments (Loshchilov and Hutter, 2019), as PyTorch's AdamW does it.
    """
    if not options["decoupled"]:
        gradient = coupled(variable, gradient, options)
    elif options.get("weight_decay"):
        variable.assign_sub(variable * tf.cast(lr * options["weight_decay"], variable.dtype))
    beta1, beta2 = (tf.constant(options[name], tf.float64) for name in ("beta1", "beta2"))
    t = tf.cast(t, tf.float64)
    correction = tf.sqrt(1 - tf.pow(beta2, t))
    rate = tf.cast(lr * correction / (1 - tf.pow(beta1, t)), variable.dtype)
    eps = tf.cast(options["eps"] * correction, variable.dtype)
    mean.assign_add((gradient - mean) * tf.cast(1 - beta1, variable.dtype))
    square.assign_add((tf.square(gradient) - square) * tf.cast(1 - beta2, variable.dtype))
    variable.assign_sub(rate * mean / (tf.sqrt(square) + eps))


def _native(library: Any, name: str, options: Mapping[str, Any], lr: Any) -> Any:
    """An optimizer of ``library``, Keras or tf_keras, with our arithmetic."""
    options = {**options, "decoupled": name == "adamw"}
    base: Any = library.optimizers.Adam if name in ADAMS else library.optimizers.SGD
    three = library is keras

    class Optimizer(base):  # type: ignore[misc]
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any = None) -> None:  # Keras 3 gives it
            i = self._get_variable_index(variable) if three else self._index_dict[self._var_key(variable)]
            if name in ADAMS:
                mean, square = tf_variable(self._momentums[i]), tf_variable(self._velocities[i])
                adam(tf_variable(variable), gradient, mean, square, tf_variable(self.iterations) + 1, lr, options)
            else:
                velocity = tf_variable(self.momentums[i]) if self.momentum else None
                sgd(tf_variable(variable), gradient, velocity, lr, options)

    # tf_keras would compile with XLA, where there is a GPU, what tf.function below compiles already.
    extra = {} if three else {"jit_compile": False}
    if name in ADAMS:
        return Optimizer(options["lr"], options["beta1"], options["beta2"], options["eps"], **extra)
    return Optimizer(options["lr"], options.get("momentum", 0.0), bool(options.get("nesterov", False)), **extra)


class KerasOptimizer:
    """A Keras optimizer with its update compiled, once per set of updated variables."""

    def __init__(self, native: Any, storages: Sequence[Any]) -> None:
        self.native = native
        variables = [storage.native for storage in storages]
        if not getattr(native, "built", getattr(native, "_built", False)):
            with scope_of(strategy_of(variables)):
                native.build(variables)
        own = {native._var_key(storage.native) for storage in storages}
        require_known(len(set(_places(native)) - own))
        self._compiled: dict[tuple[int, ...], Callable[[list[Any]], None]] = {}

    @property
    def lr(self) -> float:
        return float(self.native.learning_rate)

    @lr.setter
    def lr(self, value: float) -> None:
        self.native.learning_rate = value

    def apply(self, storages: Sequence[Any], grads: Sequence[Any]) -> None:
        held, key_of = _places(self.native), self.native._var_key
        chosen = [(s.native, grad) for s, grad in zip(storages, grads, strict=True) if key_of(s.native) in held]
        variables = [variable for variable, _ in chosen]
        key = tuple(map(id, variables))
        if key not in self._compiled:
            strategy = strategy_of(variables)

            def update(grads: list[Any]) -> None:
                shares = [share(strategy, grad) for grad in grads]
                self.native.apply_gradients(zip(shares, variables, strict=True))

            self._compiled[key] = tf.function(on_replicas(strategy, update), autograph=False)
        self._compiled[key]([grad for _, grad in chosen])


def _places(native: Any) -> Mapping[Any, int]:
    """Where an optimizer keeps what it knows of each variable that it was built for, by the variable's key."""
    places: Mapping[Any, int] = getattr(native, "_index_dict", None) or native._trainable_variables_indices  # tf_keras
    return places


class NamedOptimizer(KerasOptimizer):
    """One of Keras' with our arithmetic, whose rate is a variable in float64."""

    def __init__(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> None:
        library = library_of(storages)
        self._rate = tf.Variable(options["lr"], dtype=tf.float64, trainable=False)
        self._lr = options["lr"]
        with scope_of(strategy_of([storage.native for storage in storages])):
            super().__init__(_native(library, name, options, self._rate), storages)

    @property
    def lr(self) -> float:
        return float(self._lr)

    @lr.setter
    def lr(self, value: float) -> None:
        self._rate.assign(value)
        self.native.learning_rate = value
        self._lr = value


def library_of(storages: Sequence[Any]) -> Any:
    """Keras, or tf_keras, whichever the variables of storages are of."""
    three = all(isinstance(storage.native, keras.Variable) for storage in storages)
    return keras if three else import_module("tf_keras")
