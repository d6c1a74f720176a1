"""torch.optim over the Parameters of storages."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from multiparam.adapter import require_known


def made(name: str, options: Mapping[str, Any], parameters: Sequence[Any]) -> torch.optim.Optimizer:
    """One of torch.optim by its name here, over Parameters."""
    lr, decay = options["lr"], options.get("weight_decay", 0.0)
    if name in ("adam", "adamw"):
        kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
        betas = (options["beta1"], options["beta2"])
        return kind(parameters, lr=lr, betas=betas, eps=options["eps"], weight_decay=decay)
    momentum, nesterov = options.get("momentum", 0.0), bool(options.get("nesterov", False))  # "sgd" has no momentum
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay)


def taken(native: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """A user's own, if it steps by gradients that are there. Raises TypeError where it asks for them again."""
    closure = inspect.signature(native.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError("computes the loss several times in a step: call its step(closure) yourself")
    return native


class TorchOptimizer:
    """One of torch.optim. What it holds is looked up at each step: native code adds groups."""

    def __init__(self, native: torch.optim.Optimizer, storages: Sequence[Any]) -> None:
        self.native = native
        self._storages = list(storages)
        self._followed()

    def _followed(self) -> list[Any]:
        held = [parameter for group in self.native.param_groups for parameter in group["params"]]
        own = {id(storage.native) for storage in self._storages}
        require_known(sum(id(parameter) not in own for parameter in held))
        return held

    @property
    def lr(self) -> float:
        return float(self.native.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.native.param_groups:
            group["lr"] = value

    def apply(self, storages: Sequence[Any], grads: Sequence[torch.Tensor]) -> None:
        chosen = {storage.native: grad for storage, grad in zip(storages, grads, strict=True)}
        for parameter in self._followed():
            parameter.grad = chosen.get(parameter)  # torch.optim leaves out what has None, its momentum too
        self.native.step()
