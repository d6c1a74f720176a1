"""Compiled gradient steps, and optax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from .arrays import ArrayStorage, scope, x64

# host_of(values of the trained, values of the others, count) -> host over traced values, reader of the others after it
HostOf = Callable[[list[Any], list[Any], Any], tuple[Any, Callable[[], list[Any]]]]


def compiled_step(
    host_of: HostOf, run: Callable[..., Any], trained: Sequence[ArrayStorage], others: Sequence[ArrayStorage]
) -> Callable[..., tuple[Any, list[Any]]]:
    """A jitted gradient step. What the objective changed of ``others``, statistics for one, is written to the model."""
    changed: list[int] = []  # set while tracing, since an array that stays need not be an output of the computation

    def loss(values: list[Any], rest: list[Any], count: Any, batch: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        host, read = host_of(values, rest, count)
        result = run(host, *batch)
        after = read()
        changed[:] = [i for i, (old, new) in enumerate(zip(rest, after, strict=True)) if old is not new]
        return result, [after[i] for i in changed]

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    count = np.zeros((), np.uint32)  # an array, and no Python number, so that counting on compiles nothing again
    dtypes = {storage.dtype for storage in trained}

    def step(*batch: Any) -> tuple[Any, list[Any]]:
        nonlocal count
        with scope(dtypes):
            values, rest = ([storage.get() for storage in group] for group in (trained, others))
            (value, updated), grads = compiled(values, rest, count, batch)
        count = count + np.uint32(1)
        for i, array in zip(changed, updated, strict=True):
            others[i].set(array)
        for storage, grad in zip(trained, grads, strict=True):
            storage.gradient = grad
        return value, grads

    return step


class OptaxOptimizer:
    """An optax transformation, with one state per storage so that any subset can be updated."""

    def __init__(self, name: str, options: Mapping[str, Any], storages: Sequence[ArrayStorage]) -> None:
        # All at rate 1: the rate is an argument of the compiled update, so that changing it compiles nothing again.
        if name == "adam":
            self.native = optax.adam(1.0, options["beta1"], options["beta2"], options["eps"])
        else:
            self.native = optax.sgd(1.0, options.get("momentum"), bool(options.get("nesterov", False)))
        self.lr = options["lr"]
        with x64():
            self._states = {id(storage): self.native.init(storage.get()) for storage in storages}

        def update(grads: list[Any], states: list[Any], values: list[Any], lr: Any) -> tuple[list[Any], list[Any]]:
            pairs = [self.native.update(*each) for each in zip(grads, states, values, strict=True)]
            new = [value + lr * step for value, (step, _) in zip(values, pairs, strict=True)]
            return new, [state for _, state in pairs]

        self._update = jax.jit(update)

    def apply(self, storages: Sequence[Any], grads: Sequence[Any]) -> None:
        with x64():  # optax then computes Adam's 1 - beta ** t in float64: in float32 it is off by up to 6e-5
            states = [self._states[id(storage)] for storage in storages]
            values, states = self._update(list(grads), states, [s.get() for s in storages], self.lr)
        for storage, value, state in zip(storages, values, states, strict=True):
            storage.set(value)
            self._states[id(storage)] = state
