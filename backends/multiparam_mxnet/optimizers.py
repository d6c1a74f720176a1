"""Gluon's Trainer, and MXNet's optimizers with PyTorch's meaning in the parameters' own precision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multiparam.adapter import require_known

from .load import load
from .storage import GluonStorage

mx = load()
gluon = mx.gluon


def made(name: str, options: Mapping[str, Any]) -> Any:
    """One by its name here."""
    return Adam(**options, decoupled=name == "adamw") if name in ("adam", "adamw") else Sgd(**options)


def trainer(native: Any, storages: Sequence[GluonStorage]) -> Any:
    """The Trainer that steps storages by an optimizer."""
    return gluon.Trainer([storage.native for storage in storages], native, kvstore=None)


class GluonOptimizer:
    """A gluon.Trainer."""

    def __init__(self, native: Any, storages: Sequence[GluonStorage]) -> None:
        self._storages = list(storages)
        self.native = native
        self._followed()

    def _followed(self) -> list[Any]:
        held = list(self.native._params)
        own = {id(storage.native) for storage in self._storages}
        require_known(sum(id(parameter) not in own for parameter in held))
        return held

    @property
    def lr(self) -> float:
        return float(self.native.learning_rate)

    @lr.setter
    def lr(self, value: float) -> None:
        own = self.native._optimizer
        if isinstance(own, Sgd) and value:  # its velocity holds the rate, PyTorch's does not
            for updater in self.native._updaters:
                for state in updater.states.values():
                    if state is not None:
                        state *= value / own.held
            own.held = value
        self.native.set_learning_rate(value)

    def apply(self, storages: Sequence[Any], grads: Sequence[Any]) -> None:
        for parameter in self._followed():
            if parameter.grad_req != "null":
                parameter.data()._fresh_grad = False
        for storage, grad in zip(storages, grads, strict=True):
            own = storage.native.grad()
            if own is not grad:
                own[:] = grad
            storage.mark_fresh()
        self.native.step(1, ignore_stale_grad=True)  # it updates the fresh ones; 1: the loss is a mean already


# The update operators of MXNet 1.9.1 take their rates as float32. For float64 parameters the two optimizers below
# compute the same formulas by array arithmetic, which takes float64 rates; other dtypes use MXNet's operators.


class Sgd(mx.optimizer.NAG):  # type: ignore[misc,name-defined]
    """MXNet's SGD, with momentum of either kind. The velocity is ``-held`` times PyTorch's: the last rate but 0."""

    def __init__(self, lr: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> None:
        super().__init__(learning_rate=lr, momentum=momentum)
        self._nesterov, self._decay = nesterov, weight_decay
        self.held = lr or 1.0
        self._plain = mx.optimizer.SGD(learning_rate=lr, momentum=momentum)

    def update_multi_precision(self, index: Any, weight: Any, grad: Any, state: Any) -> None:
        if self._decay:  # not by MXNet's own wd, which a Parameter's wd_mult scales
            grad = grad + weight * self._decay
        if not self._get_lr(index):  # the operators would put nothing into the velocity
            if state is not None:
                state[:] = state * self.momentum - grad * self.held
        elif weight.dtype == np.float64:
            change = grad * -self._get_lr(index)
            if state is not None:
                state[:] = state * self.momentum + change
                change = state * self.momentum + change if self._nesterov else state
            weight[:] = weight + change
        elif self._nesterov:
            super().update(index, weight, grad, state)
        else:
            self._plain.set_learning_rate(self.learning_rate)
            self._plain.update([index], [weight], [grad], [state])


class Adam(mx.optimizer.Adam):  # type: ignore[misc,name-defined]
    """MXNet's Adam with PyTorch's eps: MXNet adds it before the bias correction, so it is scaled by that first."""

    def __init__(
        self, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float = 0.0, decoupled: bool = False
    ) -> None:
        super().__init__(learning_rate=lr, beta1=beta1, beta2=beta2, epsilon=eps)
        self._eps, self._decay, self._decoupled = eps, weight_decay, decoupled

    def update(self, index: Any, weight: Any, grad: Any, state: Any) -> None:
        t = self._index_update_count.get(index, self.begin_num_update) + 1
        correction = math.sqrt(1 - self.beta2**t)
        self.epsilon = self._eps * correction
        if self._decay and self._decoupled:
            weight *= 1 - self._get_lr(index) * self._decay
        elif self._decay:
            grad = grad + weight * self._decay
        if weight.dtype != np.float64:
            super().update(index, weight, grad, state)
            return
        self._update_count(index)
        mean, square = state
        mean[:] = mean + (grad - mean) * (1 - self.beta1)
        square[:] = square + (grad * grad - square) * (1 - self.beta2)
        rate = self._get_lr(index) * correction / (1 - self.beta1**t)
        weight[:] = weight - mean * rate / (square.sqrt() + self.epsilon)
