"""What a transfer reads and holds, from shapes alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..core.arrays import numpy_dtype
from ..core.blocks import box_shape
from ..core.lazy import LazyArray, block
from ..core.model import Model
from ..core.parameter import needed_block
from ..core.slots import Box
from .moves import Move
from .plan import Plan


class Cost(NamedTuple):
    """Bytes in this process.

    Attributes:
        own: What it writes: its shards, or all of each parameter.
        read: What it reads of the source for that.
        peak: The most it holds at a time beside the model: one array as it is made, with what it is made of.
    """

    own: int
    read: int
    peak: int


def cost(plan: Plan, target: Model) -> Cost:
    """What carrying a plan out costs this process.

    Args:
        plan: One that :func:`multiparam.plan` has made.
        target: Its target.

    Returns:
        The bytes; nothing is read for it.

    >>> net = mp.build(mp.nn.Linear(2), np.ones((1, 3)), backend="torch")
    >>> cost(mp.plan({"weight": np.ones((2, 3), "float32"), "bias": np.ones(2, "float32")}, net), net)
    Cost(own=32, read=32, peak=48)
    """
    own = read = peak = 0
    for move in plan.moves:
        p = target.parameter(move.target)
        box = needed_block(p)
        made = math.prod(p.shape if box is None else box_shape(box)) * numpy_dtype(p.dtype).itemsize
        taken = _bytes_read(move, box)
        own, read, peak = own + made, read + taken, max(peak, made + taken)
    return Cost(own, read, peak)


def _bytes_read(move: Move, box: Box | None) -> int:
    """What a block is made of: the move itself says so, over arrays of nothing that note what is asked of them."""
    inputs, counts = move.inputs(), list[int]()
    if box is None or move.of is None:
        return sum(array.size * array.dtype.itemsize for array in inputs)

    def noting(array: LazyArray) -> LazyArray:
        def read(part: Box) -> np.ndarray:
            counts.append(math.prod(box_shape(part)) * array.dtype.itemsize)
            return np.broadcast_to(np.zeros((), array.dtype), box_shape(part))

        return LazyArray(array.shape, array.dtype, read)

    block(move.of(*map(noting, inputs)), box)
    return sum(counts)
