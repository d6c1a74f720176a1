"""Parameters in pieces: DTensors, which FSDP2 and tensor parallelism make, each process holding its own block.

What is private in torch 2.13 and used here: the offset of a block (``torch.distributed.tensor._utils``), and that FSDP2
makes a subclass of each module it owns (``FSDPModule``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn as tnn

from multiparam.adapter import Box, ShardError, TieError

from .arrays import from_numpy


def is_dtensor(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one over several processes; torch.distributed is not imported to see that."""
    return type(tensor).__name__ == "DTensor"


def local_box(tensor: Any) -> Box | None:
    """The block of a tensor that this process holds; None where it is all of it.

    Raises ShardError for blocks that are no boxes, such as partial sums and interleaved ones.
    """
    if not is_dtensor(tensor):
        return None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(placement.is_partial() or type(placement).__name__ == "_StridedShard" for placement in tensor.placements):
        raise ShardError(f"A tensor placed as {tensor.placements} has no block of its own in this process.")
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if tuple(shape) == tuple(tensor.shape):
        return None
    return tuple(slice(start, start + n) for start, n in zip(offset, shape, strict=True))


def local(tensor: Any) -> torch.Tensor:
    """All of a tensor, where this process holds it. Raises ShardError where it does not."""
    if not is_dtensor(tensor):
        whole: torch.Tensor = tensor
        return whole
    box = local_box(tensor)
    if box is not None:
        block = ", ".join(f"{part.start}:{part.stop}" for part in box)
        raise ShardError(
            f"Of an array of shape {tuple(tensor.shape)} this process holds [{block}] only. numpy(gather=True) puts it "
            "together, which every process must call."
        )
    held: torch.Tensor = tensor.to_local()
    return held


def write(tensor: Any, value: np.ndarray) -> None:
    """Write values into a tensor; into a sharded one each process its own block, without asking the others."""
    if is_dtensor(tensor):
        fill(tensor, lambda box: value[box])
        return
    with torch.no_grad():
        tensor.copy_(from_numpy(value))


def fill(tensor: Any, make: Callable[[Box], np.ndarray]) -> None:
    """Write the block that this process holds, which is all of a tensor that is not sharded."""
    box = local_box(tensor)
    with torch.no_grad():
        held = tensor.to_local() if is_dtensor(tensor) else tensor
        values = make(tuple(slice(0, n) for n in tensor.shape) if box is None else box)
        held.copy_(from_numpy(np.ascontiguousarray(values).reshape(values.shape)))


def write_on_device(tensor: Any, values: Any) -> bool:
    """Write a tensor that is on an accelerator into another one; whether that was done, as it is not for pieces."""
    if values.device.type in ("cpu", "meta") or is_dtensor(tensor) or is_dtensor(values):
        return False
    with torch.no_grad():
        tensor.copy_(values)
    return True


def gather(tensor: Any) -> torch.Tensor:
    """All of a tensor; a collective where it is sharded."""
    whole: torch.Tensor = tensor.full_tensor() if is_dtensor(tensor) else tensor
    return whole


def is_owned(module: tnn.Module) -> bool:
    """Whether FSDP2 keeps a module's parameters: it puts its own ones back at each forward pass."""
    return any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__)


def refuse_owned(modules: list[tnn.Module], tensor: torch.Tensor, name: str) -> None:
    """Raise TieError where another parameter that is put into a module's place would not stay there."""
    if is_dtensor(tensor) and any(map(is_owned, modules)):
        raise TieError(
            f"{name!r} is kept by FSDP2, which puts its own parameter back at the next forward pass. Tie before "
            "fully_shard: such ties stay."
        )


def reshard(modules: Callable[[], list[tnn.Module]]) -> None:
    """Let FSDP2's modules go back to their blocks, which after a forward pass the root's are not: what is written into
    the whole parameters that are there meanwhile is lost."""
    if "torch.distributed.fsdp" in sys.modules:
        for module in modules():
            if is_owned(module):
                module.reshard()  # type: ignore[operator]


def rank(modules: list[tnn.Module]) -> int:
    """This process' number, where modules have sharded parameters."""
    return torch.distributed.get_rank() if _meshes(modules) else 0


def all_succeeded(modules: list[tnn.Module], done: bool) -> bool:
    """Whether all processes that hold the modules have done their part; waits for them."""
    for mesh in _meshes(modules)[:1]:
        flag = torch.tensor(int(done), device=mesh.device_type)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
        return bool(flag.item())
    return done


def _meshes(modules: list[tnn.Module]) -> list[Any]:
    """Those over several processes."""
    tensors: Any = (tensor for module in modules for tensor in module.parameters(recurse=False))
    return [tensor.device_mesh for tensor in tensors if is_dtensor(tensor) and tensor.device_mesh.size() > 1]
