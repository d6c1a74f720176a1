"""What models are run on when they are compared: inputs, targets, an objective, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from ..core.arrays import to_numpy
from ..core.inputs import Inputs
from ..errors import InvalidArgument
from ..transfers import apply


def is_number(value: Any) -> bool:
    """Whether a value of the user's is a finite number that is not negative.

    >>> is_number(0.1), is_number(float("nan")), is_number(-1), is_number("1")
    (True, False, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < float("inf")


@dataclass(frozen=True)
class Task:
    """What models are run on. Arrays of four axes or more have their channels first."""

    inputs: Inputs
    targets: tuple[np.ndarray, ...] = ()
    objective: Callable[..., Any] | None = None
    steps: int = 0
    optimizer: str = "sgd"
    lr: float = 0.01
    layers: Sequence[str] = ()  # globs of those that are followed; all where there is none

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", Inputs.of(self.inputs))
        object.__setattr__(self, "layers", (self.layers,) if isinstance(self.layers, str) else tuple(self.layers))
        if isinstance(self.steps, bool) or not isinstance(self.steps, Integral) or self.steps < 0:
            raise InvalidArgument(f"steps={self.steps!r} is no number of training steps: say 0 or more.")
        if not callable(self.lr) and not is_number(self.lr):
            raise InvalidArgument(f"lr={self.lr!r} is no learning rate: say a finite number, 0 or more.")

    @property
    def name(self) -> str:
        """That of the objective, or nothing."""
        return getattr(self.objective, "__name__", type(self.objective).__name__) if self.objective else ""

    def channels_first(self, order: str | None) -> Task:
        """The same as numpy, with channels first, where the inputs had them ``"first"`` or ``"last"``."""
        inputs = self.inputs.map(lambda a: apply.to_data_order(order, to_numpy(a), back=True))
        return replace(self, inputs=inputs, targets=tuple(map(to_numpy, self.targets)))

    def completed(self, recorded: Task) -> Task:
        """What this one leaves open as in a recorded one."""
        training = recorded if not self.steps else self
        return replace(
            self, inputs=self.inputs or recorded.inputs, targets=self.targets or recorded.targets,
            objective=self.objective or recorded.objective, steps=training.steps, optimizer=training.optimizer,
            lr=training.lr,
        )  # fmt: skip

    def check_same(self, task: Task, name: str) -> None:
        """Raise InvalidArgument where this one, of the recording of that name, is another one than what is compared."""
        recorded, wanted = self.to_dict(), task.to_dict()
        for key in ("objective", "steps", "optimizer", "lr"):
            if recorded.get(key) != wanted.get(key):
                raise InvalidArgument(f"{name} was recorded with {key} {recorded.get(key)!r}, not {wanted.get(key)!r}.")
        for what, own, others in (("inputs", self.inputs, task.inputs), ("targets", self.targets, task.targets)):
            if len(own) != len(others) or not all(map(np.array_equal, own, others)):
                raise InvalidArgument(f"{name} was recorded on other {what}. Leave them out, and its own are taken.")

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        training = {"optimizer": self.optimizer, "lr": self.lr} if self.steps else {}
        return {
            "inputs": [{"shape": list(a.shape), "dtype": a.dtype.name} for a in self.inputs],
            **({"keywords": list(self.inputs.names)} if self.inputs.names else {}),
            "objective": self.name or "mean of the squared outputs",
            "steps": self.steps,
            **training,
            **({"layers": list(self.layers)} if self.layers else {}),
        }
