"""Labels of classes, looked at where a framework that traces an objective cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from ..errors import InvalidArgument


def check_classes(labels: np.ndarray, classes: int, ignore_index: int) -> None:
    """See that labels are whole numbers below ``classes``, or ``ignore_index``. Raises InvalidArgument."""
    # One pass where nothing is wrong: a number below zero is a huge one without its sign.
    unsigned = labels.view(f"u{labels.dtype.itemsize}")
    if not labels.size or int(unsigned.max()) < classes:
        return
    wrong = labels[((labels < 0) | (labels >= classes)) & (labels != ignore_index)]
    if wrong.size:
        raise InvalidArgument(
            f"The label {wrong.flat[0]} is no class: the network gives logits of {classes}, numbered from 0. "
            f"Labels of {ignore_index} are left out (ignore_index)."
        )


class BatchCheck:
    """Looks at the labels in a step's batches before the step, which then changes nothing where they are wrong: inside,
    a framework that traces the objective hides them.

    Which array of the batch is labels, and of how many classes, is known once the objective has run.
    """

    def __init__(self) -> None:
        self._classes: dict[int, tuple[int, int]] = {}  # place in the batch -> classes, and the label that is none
        self._batch: tuple[Any, ...] = ()

    def __call__(self, batch: tuple[Any, ...], to_numpy: Callable[[Any], np.ndarray]) -> None:
        """See that each label is a class. Raises InvalidArgument."""
        for i, (classes, ignore_index) in self._classes.items():
            check_classes(to_numpy(batch[i]), classes, ignore_index)

    @contextmanager
    def watch(self, batch: tuple[Any, ...]) -> Iterator[None]:
        """Inside, what :func:`cross_entropy` takes of this batch is noted."""
        self._batch, token = batch, watching.set(self)
        try:
            yield
        finally:
            self._batch = ()
            watching.reset(token)

    def note(self, labels: Any, classes: int, ignore_index: int) -> bool:
        """These labels are of so many classes; whether they are in the batch, and so are looked at here."""
        places = [i for i, each in enumerate(self._batch) if each is labels]
        self._classes.update((i, (classes, ignore_index)) for i in places)
        return bool(places)


watching: ContextVar[BatchCheck | None] = ContextVar("watching", default=None)
