"""Variables that a strategy of ``tf.distribute`` keeps on several devices: steps and updates run on each of them.

A step then is what it is on one device: each replica is given the whole batch, and the first one's result is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .framework import tf
from .storage import tf_variable


def strategy_of(variables: Sequence[Any]) -> Any | None:
    """The strategy that keeps variables on several devices; None where each is one."""
    for variable in variables if tf is not None else ():
        held = tf_variable(variable)
        if isinstance(held, tf.distribute.DistributedValues):
            return held.distribute_strategy
    return None


def scope_of(strategy: Any | None) -> AbstractContextManager[Any]:
    """Where variables are made on the same devices."""
    scope: AbstractContextManager[Any] = nullcontext() if strategy is None else strategy.scope()
    return scope


def on_replicas(strategy: Any | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function run on each replica, with the same arguments; the first one's result."""
    if strategy is None:
        return function

    def run(*args: Any) -> Any:
        outputs = strategy.run(function, args=args)
        return tf.nest.map_structure(lambda output: strategy.experimental_local_results(output)[0], outputs)

    return run


def share(strategy: Any | None, gradient: Any) -> Any:
    """One replica's part of a gradient that all of them have: Keras' optimizers add up those of the replicas."""
    return gradient if strategy is None else gradient / strategy.num_replicas_in_sync
