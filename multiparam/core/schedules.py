"""Learning rates that are functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Union

from ..errors import InvalidArgument, WrongType
from .arrays import to_numpy

Rate = Union[float, Callable[[int], Any]]


def rate_at(rate: Rate, step: int) -> float:
    """The learning rate of an update.

    Args:
        rate: A number, or a function of the number of updates made before, as optax' schedules are.
        step: That number.

    Returns:
        The rate as Python's float.

    Raises:
        WrongType: The function gives something else than a number.
        InvalidArgument: It gives a negative number, NaN or infinity.

    >>> rate_at(lambda step: 0.1 / (1 + step), 3), rate_at(0.5, 3)
    (0.025, 0.5)
    """
    if not callable(rate):
        return float(rate)
    given = rate(step)
    try:
        value = float(to_numpy(given)) if hasattr(given, "shape") else float(given)
    except (TypeError, ValueError) as error:
        raise WrongType(f"The schedule of lr gave {given!r:.80} for step {step}: let it return a number.") from error
    if not math.isfinite(value) or value < 0:
        raise InvalidArgument(f"The schedule of lr gave {value} for step {step}: a rate is finite and not negative.")
    return value
