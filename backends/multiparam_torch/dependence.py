"""Why a loss has no gradient: something was detached, or gradients were switched off where it was computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Watch(TorchFunctionMode):
    """Sees whether anything that has a gradient is computed."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen = self.seen or (isinstance(result, torch.Tensor) and result.requires_grad)
        return result


def computes_without_gradients(run: Callable[[], Any]) -> bool:
    """Whether nothing on the way to a loss has a gradient, as under ``torch.no_grad``; else it was lost on the way."""
    with _Watch() as watch:
        run()
    return not watch.seen
