"""Recorder: watch every parameter and its gradient over a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import to_numpy
from .selecting import Selector

if TYPE_CHECKING:
    from .model import Model

STATISTICS = ("mean", "std", "min", "max", "norm")


def statistics(array: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation, extremes and Euclidean norm, computed in float64.

    >>> statistics(np.array([3.0, 4.0]))["norm"]
    5.0
    """
    a = array.astype(np.float64).ravel()
    if not a.size:
        return dict.fromkeys(STATISTICS, float("nan"))
    return {
        "mean": float(a.mean()),
        "std": float(a.std()),
        "min": float(a.min()),
        "max": float(a.max()),
        "norm": float(np.linalg.norm(a)),
    }


class Recorder:
    """Statistics of each parameter and gradient, step by step. Each storage counts once, whatever its names.

    Args:
        net: The model.
        *selectors: Which of its parameters, as for :meth:`Group.select`; none at all: all of them.
        kind: Those of one kind of layer only.

    Attributes:
        losses: The loss of each step; NaN where none was recorded.

    >>> net = mp.build(mp.nn.Linear(1), np.ones((1, 2)), backend="torch")
    >>> step, opt = net.value_and_grad(mp.losses.mse), net.optimizer("sgd", lr=0.1)
    >>> watch = mp.Recorder(net, "*weight")
    >>> for _ in range(3):
    ...     loss, grads = step(np.ones((1, 2)), np.zeros((1, 1)))
    ...     watch.record(loss)
    ...     opt.step()
    >>> len(watch["weight"]["grad"]["norm"]), len(watch.losses)
    (3, 3)
    """

    def __init__(self, net: Model, *selectors: Selector, kind: str | None = None) -> None:
        self._group = net.select(*selectors, kind=kind) if selectors or kind else net
        self._net = net
        self.losses: list[float] = []
        self._history: dict[str, dict[str, dict[str, list[float]]]] = {}
        self._count = 0

    def record(self, loss: Any = None) -> None:
        """Add one step. A parameter without a gradient gets NaN in its gradient's columns.

        Args:
            loss: The step's loss, a number or any framework's scalar; None: not known.
        """
        self.losses.append(float("nan") if loss is None else float(to_numpy(loss).item()))
        for p in self._group:
            # One that is tied, or untied, later gets NaN for the steps before: all columns stay of one length.
            empty = {part: {name: [float("nan")] * self._count for name in STATISTICS} for part in ("value", "grad")}
            history = self._history.setdefault(p.name, empty)
            grad = p.grad
            parts = {"value": p.numpy(), "grad": np.empty(0) if grad is None else to_numpy(grad)}
            for part, array in parts.items():
                for name, number in statistics(array).items():
                    history[part][name].append(number)
        self._count += 1

    def __getitem__(self, name: str) -> dict[str, dict[str, list[float]]]:
        """The statistics of a parameter over the steps.

        Args:
            name: Any of its names.

        Returns:
            ``{"value": {"mean": [...], ...}, "grad": {...}}``: mean, std, min, max and (Euclidean) norm, in float64.
        """
        return self._history[self._net[name].name]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Any:
        return iter(self._history)

    def table(self, part: str = "grad", statistic: str = "norm") -> dict[str, list[float]]:
        """One statistic of every parameter, ready for a plot or a data frame.

        Args:
            part: ``"grad"`` or ``"value"``.
            statistic: ``"mean"``, ``"std"``, ``"min"``, ``"max"`` or ``"norm"``.

        Returns:
            Name -> the statistic's values, one a step.
        """
        return {name: list(history[part][statistic]) for name, history in self._history.items()}
