"""Parameters, modules that hold them, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import autograd
import numpy as np


class Parameter:
    """An array that is trained. ``grad``: what the last :func:`value_and_grad` found."""

    def __init__(self, data: np.ndarray, trainable: bool = True) -> None:
        self.data: Any = data  # while a gradient is taken, autograd's box around it
        self.grad: np.ndarray | None = None
        self.trainable = trainable


class Buffer(Parameter):
    """State that is not trained."""

    def __init__(self, data: np.ndarray) -> None:
        super().__init__(data, trainable=False)


class Module:
    """Holds parameters under their names, and other modules under theirs."""

    def __init__(self) -> None:
        self.parameters: dict[str, Parameter] = {}
        self.children: dict[str, Module] = {}
        self.views: dict[str, Callable[[Any], Any]] = {}  # what a parameter is seen through, such as a transpose
        self.training = False

    def __getitem__(self, name: str) -> Any:
        """A parameter's array, as this module sees it."""
        data = self.parameters[name].data
        return self.views[name](data) if name in self.views else data

    def __call__(self, x: Any) -> Any:
        raise NotImplementedError

    def modules(self) -> Iterator[Module]:
        """This one and all below it; one that is used twice, twice."""
        yield self
        for child in self.children.values():
            yield from child.modules()


def value_and_grad(loss: Callable[[], Any], parameters: Sequence[Parameter]) -> Any:
    """The loss, with its gradients left in ``grad`` of the parameters: zeros where it does not depend on one."""
    before = [parameter.data for parameter in parameters]

    def traced(values: list[Any]) -> Any:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        return loss()

    try:
        value, grads = autograd.value_and_grad(traced)(list(before))
    finally:
        for parameter, data in zip(parameters, before, strict=True):
            parameter.data = data
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = np.array(grad, parameter.data.dtype)
    return value
