"""Arrays over the devices of several processes, each of which reaches its own blocks only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import multiparam.adapter as mpa

from .arrays import scope


def is_over_processes(array: Any) -> bool:
    """Whether other processes hold what this one does not."""
    return isinstance(array, jax.Array) and not (
        isinstance(array, jax.core.Tracer) or array.is_fully_addressable or array.is_fully_replicated
    )


def local_box(array: Any) -> mpa.Box | None:
    """The block of an array that the devices of this process hold together; None where it is all of it.

    Raises ShardError where they hold blocks that are no block together.
    """
    if not is_over_processes(array):
        return None
    shape = array.shape
    blocks = {
        tuple(part.indices(n)[:2] for part, n in zip(s.index, shape, strict=True)) for s in array.addressable_shards
    }
    box = tuple(
        slice(min(start for start, _ in axis), max(stop for _, stop in axis)) for axis in zip(*blocks, strict=True)
    )
    held = sum(math.prod(stop - start for start, stop in block) for block in blocks)
    if held != math.prod(part.stop - part.start for part in box):
        raise mpa.ShardError(
            f"Of an array of shape {shape} this process holds {len(blocks)} blocks that are none together, by the "
            f"order of devices in {array.sharding}."
        )
    return None if held == math.prod(shape) else box


def made(like: Any, make: Callable[[mpa.Box], np.ndarray]) -> Any:
    """Another array in the place of one, from blocks: each device of this process is given its own."""

    def block(index: Any) -> np.ndarray:
        parts = (slice(*part.indices(n)[:2]) for part, n in zip(index, like.shape, strict=True))
        return np.array(make(tuple(parts)), order="C")  # a copy, since JAX may adopt numpy's memory

    with scope([like.dtype]):
        return jax.make_array_from_callback(like.shape, like.sharding, block)


def whole(array: Any) -> Any:
    """All of an array, where this process can reach it. Raises ShardError where it cannot."""
    box = local_box(array)
    if box is None:
        return array
    block = ", ".join(f"{part.start}:{part.stop}" for part in box)
    raise mpa.ShardError(
        f"Of an array of shape {array.shape} this process holds [{block}] only. numpy(gather=True) puts it together, "
        "which every process must call."
    )


def gathered(array: Any) -> Any:
    """All of an array; a collective where it is over several processes."""
    return multihost_utils.process_allgather(array, tiled=True) if is_over_processes(array) else array


def all_succeeded(done: bool) -> bool:
    """Whether all processes have done their part; waits for them."""
    return bool(np.all(multihost_utils.process_allgather(np.array(done))))
