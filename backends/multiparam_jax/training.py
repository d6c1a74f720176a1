"""Compiled gradient steps, and optax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

import multiparam.adapter as mpa

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
        mpa.require_dependence(isinstance(result, jax.core.Tracer))
        after = read()
        changed[:] = [i for i, (old, new) in enumerate(zip(rest, after, strict=True)) if old is not new]
        return result, [after[i] for i in changed]

    eager = jax.value_and_grad(loss, has_aux=True)
    compiled = mpa.compiled_if_possible(jax.jit(eager), eager, (jax.errors.ConcretizationTypeError,))
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
        self.native: optax.GradientTransformation
        decay = options.get("weight_decay")
        if name in ("adam", "adamw"):
            make = partial(optax.adamw, weight_decay=decay) if name == "adamw" else optax.adam
            self.native = make(1.0, options["beta1"], options["beta2"], options["eps"])
        else:
            self.native = optax.sgd(1.0, options.get("momentum"), bool(options.get("nesterov", False)))
        if decay and name != "adamw":
            self.native = optax.chain(optax.add_decayed_weights(decay), self.native)
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


def taken(native: Any, tree: Any) -> TreeOptimizer | None:
    """A user's own transformation over the pytree of a model's storages. Raises TypeError for what holds one."""
    if hasattr(native, "tx"):  # nnx.Optimizer, TrainState
        raise TypeError(
            "it keeps a state and arrays of its own. Give the optax transformation, its tx, or step it natively"
        )
    return TreeOptimizer(native, tree) if isinstance(native, optax.GradientTransformation) else None


def made(kind: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """What one of optax' functions makes; None of another one's."""
    if getattr(kind, "__module__", "").partition(".")[0] != "optax":
        return None
    return kind(**options)


class TreeOptimizer:
    """A user's optax transformation, over the whole pytree as natively: what clips by a global norm, masks or labels
    by path looks at all of it. Gradients that are not there count as zeros, and what has none keeps its value."""

    def __init__(self, native: optax.GradientTransformation, tree: Any) -> None:
        self.native = native
        self._places, self._structure = jax.tree.flatten(tree)  # a tied storage is at each of its places
        self._first = {storage: i for i, storage in reversed(list(enumerate(self._places)))}
        with self._precision():
            self._state = native.init(self._tree([storage.get() for storage in self._places]))

        def update(grads: Any, state: Any, values: Any) -> tuple[list[Any], Any]:
            steps, state = native.update(grads, state, values)
            return jax.tree.leaves(optax.apply_updates(values, steps)), state

        self._update = jax.jit(update)

    def _tree(self, leaves: list[Any]) -> Any:
        return jax.tree.unflatten(self._structure, leaves)

    def _precision(self) -> Any:
        return scope({storage.dtype for storage in self._places})

    def _rates(self) -> dict[str, Any]:
        rates = getattr(self._state, "hyperparams", {})
        if "learning_rate" not in rates:
            raise mpa.UnsupportedAttribute(
                "An optax transformation keeps its rate to itself: make it by optax.inject_hyperparams(...), which "
                "keeps it in the state."
            )
        return dict(rates)

    @property
    def lr(self) -> float:
        return float(self._rates()["learning_rate"])

    @lr.setter
    def lr(self, value: float) -> None:
        rates = self._rates()
        rates["learning_rate"] = jax.numpy.asarray(value, rates["learning_rate"].dtype)
        self._state = self._state._replace(hyperparams=rates)

    def apply(self, storages: Sequence[Any], grads: Sequence[Any]) -> None:
        given = {self._first[s]: grad for s, grad in zip(storages, grads, strict=True) if s in self._first}
        with self._precision():
            values = [storage.get() for storage in self._places]
            full = [given[i] if i in given else jax.numpy.zeros_like(value) for i, value in enumerate(values)]
            new, self._state = self._update(self._tree(full), self._state, self._tree(values))
        for i in given:
            self._places[i].set(new[i])
