"""Gradients' arrays, and optimizers with PyTorch's meaning of each option."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multiparam.adapter import Slot

from .load import load
from .storage import GluonStorage, is_np

mx = load()


def frozen_neighbours(slots: Sequence[Slot], storages: Sequence[Any]) -> list[Any]:
    """Frozen parameters of blocks that have others to differentiate. MXNet 1.9.1 writes no gradient of a bias in
    float32 where it is to write none of the weight, so these get one that is thrown away."""
    wanted = {id(storage) for storage in storages}
    parameters = [slot for slot in slots if not slot.buffer]
    owners = {id(slot.owner) for slot in parameters if id(slot.storage) in wanted}
    frozen = {
        id(slot.storage): slot.storage.native
        for slot in parameters
        if id(slot.owner) in owners and not slot.storage.trainable and slot.storage.native._differentiable
    }
    return list(frozen.values())


def mark_for_gradients(parameters: Sequence[Any]) -> None:
    """Let the next backward write gradients of parameters that have no arrays for them."""
    for parameter in parameters:
        arrays = parameter._data
        mx.autograd.mark_variables(arrays, [_empty_like(a) for a in arrays], ["write"] * len(arrays))


def renew_gradients(parameters: Sequence[Any]) -> None:
    """Give parameters new arrays for their gradients: backward overwrites them, and an earlier step's result must
    not change. Cheaper than copying every result, since nothing is filled or copied."""
    data, grads, requests = [], [], []
    for parameter in parameters:
        old = parameter._grad
        parameter._grad = [_empty_like(g) for g in old]
        if parameter.grad_req == "add":
            for g in parameter._grad:
                g[:] = 0
        data += parameter._data
        grads += parameter._grad
        requests += [parameter.grad_req] * len(old)
    mx.autograd.mark_variables(data, grads, requests)
    for array in data:
        array._fresh_grad = False


def _empty_like(array: Any) -> Any:
    if array.stype != "default":
        return mx.nd.sparse.zeros(array.stype, array.shape, array.context, array.dtype)
    new = mx.nd.empty(array.shape, array.context, array.dtype)
    return new.as_np_ndarray() if is_np(array) else new


class GluonOptimizer:
    """A gluon.Trainer."""

    def __init__(self, name: str, options: Mapping[str, Any], storages: Sequence[GluonStorage]) -> None:
        native: Any
        if name == "adam":
            native = Adam(options["lr"], options["beta1"], options["beta2"], options["eps"])
        else:
            native = Sgd(options["lr"], options.get("momentum", 0.0), bool(options.get("nesterov", False)))
        self._storages = list(storages)
        self.native = mx.gluon.Trainer([storage.native for storage in storages], native, kvstore=None)

    @property
    def lr(self) -> float:
        return float(self.native.learning_rate)

    @lr.setter
    def lr(self, value: float) -> None:
        if not isinstance(self.native._optimizer, Adam):  # its velocity holds the rate, PyTorch's does not
            for updater in self.native._updaters:
                for state in updater.states.values():
                    if state is not None:
                        state *= value / self.lr
        self.native.set_learning_rate(value)

    def apply(self, storages: Sequence[Any], grads: Sequence[Any]) -> None:
        for storage in self._storages:
            if storage.trainable:
                storage.native.data()._fresh_grad = False
        for storage, grad in zip(storages, grads, strict=True):
            own = storage.native.grad()
            if own is not grad:
                own[:] = grad
            storage.mark_fresh()
        self.native.step(1, ignore_stale_grad=True)  # it updates the fresh ones; 1: the loss is a mean already


# The update operators of MXNet 1.9.1 take their rates as float32. For float64 parameters the two optimizers below
# compute the same formulas by array arithmetic, which takes float64 rates; other dtypes use MXNet's operators.


class Sgd(mx.optimizer.NAG):  # type: ignore[misc]
    """MXNet's SGD, with momentum of either kind. The velocity is ``-lr`` times PyTorch's."""

    def __init__(self, lr: float, momentum: float, nesterov: bool) -> None:
        super().__init__(learning_rate=lr, momentum=momentum)
        self._nesterov = nesterov
        self._plain = mx.optimizer.SGD(learning_rate=lr, momentum=momentum)

    def update_multi_precision(self, index: Any, weight: Any, grad: Any, state: Any) -> None:
        if weight.dtype == np.float64:
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


class Adam(mx.optimizer.Adam):  # type: ignore[misc]
    """MXNet's Adam with PyTorch's eps: MXNet adds it before the bias correction, so it is scaled by that first."""

    def __init__(self, lr: float, beta1: float, beta2: float, eps: float) -> None:
        super().__init__(learning_rate=lr, beta1=beta1, beta2=beta2, epsilon=eps)
        self._eps = eps

    def update(self, index: Any, weight: Any, grad: Any, state: Any) -> None:
        t = self._index_update_count.get(index, self.begin_num_update) + 1
        correction = math.sqrt(1 - self.beta2**t)
        self.epsilon = self._eps * correction
        if weight.dtype != np.float64:
            super().update(index, weight, grad, state)
            return
        self._update_count(index)
        mean, square = state
        mean[:] = mean + (grad - mean) * (1 - self.beta1)
        square[:] = square + (grad * grad - square) * (1 - self.beta2)
        rate = self._get_lr(index) * correction / (1 - self.beta1**t)
        weight[:] = weight - mean * rate / (square.sqrt() + self.epsilon)
