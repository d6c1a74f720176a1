"""Optimizers: ``step()`` moves each parameter that has a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .module import Parameter


class SGD:
    """Gradient descent."""

    def __init__(self, parameters: Sequence[Parameter], lr: float) -> None:
        self.parameters, self.lr = list(parameters), lr

    def step(self) -> None:
        for i, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                parameter.data = parameter.data - self.change(i, parameter.grad)

    def change(self, i: int, grad: np.ndarray) -> np.ndarray:
        return self.lr * grad


class Momentum(SGD):
    """The velocity is a sum of gradients, old ones weighing less and less."""

    def __init__(self, parameters: Sequence[Parameter], lr: float, momentum: float, nesterov: bool) -> None:
        super().__init__(parameters, lr)
        self.momentum, self.nesterov = momentum, nesterov
        self.velocity = [np.zeros_like(parameter.data) for parameter in self.parameters]

    def change(self, i: int, grad: np.ndarray) -> np.ndarray:
        v = self.velocity[i] = self.momentum * self.velocity[i] + grad
        return self.lr * (grad + self.momentum * v if self.nesterov else v)


class Adam(SGD):
    """Kingma and Ba, 2015, algorithm 1."""

    def __init__(self, parameters: Sequence[Parameter], lr: float, beta1: float, beta2: float, eps: float) -> None:
        super().__init__(parameters, lr)
        self.betas, self.eps = (beta1, beta2), eps
        self.first = [np.zeros_like(parameter.data) for parameter in self.parameters]
        self.second = [np.zeros_like(parameter.data) for parameter in self.parameters]
        self.count = [0] * len(self.parameters)

    def change(self, i: int, grad: np.ndarray) -> np.ndarray:
        a, b = self.betas
        self.count[i] += 1
        m = self.first[i] = a * self.first[i] + (1 - a) * grad
        v = self.second[i] = b * self.second[i] + (1 - b) * grad * grad
        root = np.sqrt(v / (1 - b ** self.count[i]))
        return self.lr * (m / (1 - a ** self.count[i])) / (root + self.eps)


class AdamW(Adam):
    """Loshchilov and Hutter, 2019: what decays does not go through the moments."""

    def __init__(self, parameters: Sequence[Parameter], weight_decay: float, **options: float) -> None:
        super().__init__(parameters, **options)
        self.weight_decay = weight_decay

    def change(self, i: int, grad: np.ndarray) -> np.ndarray:
        return super().change(i, grad) + self.lr * self.weight_decay * self.parameters[i].data
