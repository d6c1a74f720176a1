"""Tensors and numpy's arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from multiparam.adapter import numpy_dtype

# What torch and numpy do not exchange travels as integers of the same size.
CARRIERS = {
    "bfloat16": "int16",
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), "uint8"),
}


def dtype_name(tensor: torch.Tensor) -> str:
    """numpy's name of a tensor's dtype."""
    return str(tensor.dtype).removeprefix("torch.")


def from_numpy(array: np.ndarray) -> torch.Tensor:
    """A tensor that may alias a numpy array."""
    name = array.dtype.name
    if name in CARRIERS:
        return torch.from_numpy(np.array(array).view(CARRIERS[name])).view(getattr(torch, name))
    if any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = np.array(array)  # torch 2 has no negative strides, and warns of memory that nobody may write
    return torch.from_numpy(array)


def memory(tensor: torch.Tensor) -> np.ndarray | None:
    """A plain tensor's own memory, to be written into: autograd is told of that now. None for any other tensor."""
    if (
        type(tensor) not in (torch.Tensor, torch.nn.Parameter)
        or tensor.device.type != "cpu"
        or tensor.layout != torch.strided
        or not tensor.is_contiguous()
    ):
        return None
    if tensor.is_conj() or tensor.is_neg() or torch.is_inference(tensor):
        return None
    with torch.no_grad():
        tensor.view(-1)[:0].zero_()  # a backward that has saved the old values is to fail, as after any write
    carrier = CARRIERS.get(dtype_name(tensor))
    if carrier is None:
        return np.asarray(tensor.detach().numpy())
    return np.asarray(tensor.detach().view(getattr(torch, carrier)).numpy().view(numpy_dtype(dtype_name(tensor))))


def overlaps(tensors: Sequence[torch.Tensor]) -> list[tuple[int, int, bool]]:
    """Pairs of tensors whose numbers lie in one memory, by place, and whether both are the same numbers of it."""
    spans: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
    for i, tensor in enumerate(tensors):
        if type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided and tensor.numel():
            start = tensor.data_ptr()
            reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
            if start:  # no memory is behind those of the meta device
                memory_of = str(tensor.device), tensor.untyped_storage().data_ptr()
                spans.setdefault(memory_of, []).append((start, start + (reach + 1) * tensor.element_size(), i))
    return [pair for group in spans.values() if len(group) > 1 for pair in _overlaps(sorted(group), tensors)]


def _overlaps(spans: list[tuple[int, int, int]], tensors: Sequence[torch.Tensor]) -> Iterator[tuple[int, int, bool]]:
    for k, (start, end, i) in enumerate(spans):
        for other, _, j in spans[k + 1 :]:
            if other >= end:
                break
            a, b = tensors[i], tensors[j]
            whole = start == other and (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
            yield min(i, j), max(i, j), whole
