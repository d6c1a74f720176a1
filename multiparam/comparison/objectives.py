"""What gradients are taken of, where the user has not said."""

from __future__ import annotations

from typing import Any

from ..core.arrays import dtype_kind, dtype_name
from ..core.model import Model
from ..core.outputs import leaves
from ..errors import Unsupported


def mean_square(net: Model, output: Any) -> Any:
    """An objective for models that come with none: the mean of the squares of each output of floats, summed.

    In the order of their names, since another order of adding rounds otherwise. Raises Unsupported where no output has
    a gradient.
    """
    outputs = dict(sorted((name, leaf) for name, leaf in leaves(output) if hasattr(leaf, "dtype")))
    floats = [y for y in outputs.values() if dtype_kind(dtype_name(y.dtype)) == "f"]
    if not floats:
        kinds = ", ".join(dict.fromkeys(dtype_name(y.dtype) for y in outputs.values())) or "no array"
        raise Unsupported(f"The outputs are {kinds}, of which there is no gradient: give an objective.")
    return sum((net.adapter.mse(y, y * 0) for y in floats[1:]), net.adapter.mse(floats[0], floats[0] * 0))
