"""What PyTorch answers for a model and for arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn as tnn
from torch.nn.parameter import is_lazy

from multiparam.adapter import Adapter, Architecture, Inputs, Unrecognised, numpy_dtype

from .arrays import CARRIERS, dtype_name, from_numpy
from .build import make
from .host import TorchHost
from .sharded import local


class TorchAdapter(Adapter):
    """torch.nn and torch.optim."""

    def wrap(self, native: Any, inputs: Inputs) -> TorchHost:
        if not isinstance(native, tnn.Module):
            raise Unrecognised(f"mp.wrap takes a torch.nn.Module, not {type(native).__qualname__}.")
        host = TorchHost(native)
        if inputs and any(is_lazy(t) for t in [*native.parameters(), *native.buffers()]):
            host.infer(inputs)
        return host

    def build(self, architecture: Architecture, dtype: str) -> TorchHost:
        return TorchHost(architecture.assemble(make).to(getattr(torch, dtype)).train())

    def to_numpy(self, array: Any) -> np.ndarray:
        array = (
            local(array.detach()).cpu().resolve_conj().resolve_neg()
        )  # conj() and imag set a flag that numpy has not
        carrier = CARRIERS.get(dtype_name(array))
        if carrier is None:
            return np.asarray(array.numpy())
        integers = array.contiguous().view(getattr(torch, carrier)).numpy()
        return np.asarray(integers.view(numpy_dtype(dtype_name(array))))

    def from_numpy(self, array: np.ndarray) -> torch.Tensor:
        return from_numpy(array).clone()

    def namespace(self, array: torch.Tensor) -> Any:
        return torch

    def detach(self, array: torch.Tensor) -> torch.Tensor:
        return array.detach().clone()

    def mse(self, prediction: torch.Tensor, target: Any) -> torch.Tensor:
        return tnn.functional.mse_loss(prediction, target)

    def cross_entropy(self, logits: torch.Tensor, labels: Any, ignore_index: int) -> torch.Tensor:
        return tnn.functional.cross_entropy(logits, labels.long(), ignore_index=ignore_index)

    def settings(self) -> dict[str, Any]:
        now = {
            "default dtype": (str(torch.get_default_dtype()), "torch.float32"),
            "float32 matmul precision": (torch.get_float32_matmul_precision(), "highest"),
            "autocast on CPU": (torch.is_autocast_enabled("cpu"), False),
            "autocast on CUDA": (torch.is_autocast_enabled("cuda"), False),
            "deterministic algorithms": (torch.are_deterministic_algorithms_enabled(), False),
        }
        return {name: value for name, (value, default) in now.items() if value != default}

    def initializer(self, function: Any) -> Callable[[Any, int], None] | None:
        inner = function.func if isinstance(function, functools.partial) else function
        if getattr(inner, "__module__", None) != "torch.nn.init":
            return None

        def fill(storage: Any, seed: int) -> None:
            # torch.nn.init draws from the global generator: fork_rng gives the user's back as it was
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(seed)
                function(storage.native)

        return fill
