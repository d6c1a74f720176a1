"""What torch modules hold besides parameters and buffers: extra state, packed weights, tensors in plain attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn as tnn

PLAIN = (
    "a tensor that asks for a gradient in a plain attribute, which torch lists nowhere. Make it a torch.nn.Parameter, "
    "and it is found."
)
EXTRA = "extra state of a module, which is no array: native.state_dict() has it, and no verb of multiparam carries it."
PACKED = (
    "state that a module keeps outside of its parameters and buffers, as quantised weights are: native.state_dict() "
    "has it, and no verb of multiparam carries it."
)
# What every module's __dict__ has.
STANDARD = frozenset(vars(tnn.Module()))


def unlisted(modules: Iterator[tuple[str, tnn.Module]]) -> dict[str, str]:
    """What modules hold that is neither parameter nor buffer.

    Args:
        modules: Name and module of each.

    Returns:
        Name -> what it is.
    """
    unlisted: dict[str, str] = {}
    for name, module in modules:
        prefix, cls = f"{name}." if name else "", type(module)
        for attribute in vars(module).keys() - STANDARD:
            value = vars(module)[attribute]
            if isinstance(value, torch.Tensor) and value.requires_grad and not isinstance(value, tnn.Parameter):
                unlisted[f"{prefix}{attribute}"] = PLAIN
        if cls.get_extra_state is not tnn.Module.get_extra_state:
            unlisted[f"{prefix}_extra_state"] = EXTRA
        if cls._save_to_state_dict is not tnn.Module._save_to_state_dict:
            unlisted.update((f"{prefix}{key}", PACKED) for key in _packed(module))
    return unlisted


def _packed(module: tnn.Module) -> list[str]:
    """What a module writes into its state besides its parameters and buffers."""
    state: dict[str, Any] = {}
    module._save_to_state_dict(state, "", False)
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    known = {"_extra_state", *(name for name, _ in own)}
    return [key for key, value in state.items() if key not in known and value is not None]


def constant_buffers(module: tnn.Module) -> list[str]:
    """The names of a module's buffers that are no part of its state, in their order."""
    names = module._non_persistent_buffers_set  # torch asks nowhere public
    return [name for name, buffer in module._buffers.items() if buffer is not None and name in names]
