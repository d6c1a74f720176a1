"""What MXNet answers for a model and for arrays."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from multiparam.adapter import Adapter, Architecture, Inputs, UnknownShapes, Unrecognised, Unsupported

from .build import make
from .host import GluonHost
from .layers import blocks
from .load import load
from .storage import from_numpy, is_np, namespace, untied

mx = load()


class MxnetAdapter(Adapter):
    """mxnet.gluon 1.9.1."""

    unsupported = {
        "exact running statistics": (
            "MXNet's BatchNorm moves its running statistics inside the operator, in backward: by the biased variance "
            "of the batch, where PyTorch's is n / (n - 1) times that, and with its momentum in float32."
        ),
        "float64 eps of LayerNorm": (
            "MXNet keeps LayerNorm's eps in float32, so in float64 an output can be off by some hundred eps."
        ),
        "float64 gradient of exact GELU": (
            "MXNet's derivative of erf has its constant in float32, so the gradient is off by about 3e-8 of its size."
        ),
    }

    def wrap(self, native: Any, inputs: Inputs) -> GluonHost:
        if not isinstance(native, mx.gluon.Block):
            raise Unrecognised(f"mp.wrap takes a gluon Block, not {type(native).__qualname__}.")
        host = GluonHost(native)
        sources = [untied(p)[0] for b in blocks(native) for p in b._reg_params.values()]
        cold = [p.name for p in sources if p._data is None and not p._deferred_init]
        if cold:
            raise UnknownShapes(f"Parameter {cold[0]!r} is not initialised. Call net.initialize() before mp.wrap(net).")
        if inputs and any(p._data is None for p in sources):
            with mx.autograd.pause():
                inputs.call(native)
        return host

    def build(self, architecture: Architecture, dtype: str) -> GluonHost:
        if dtype == "bfloat16":
            raise Unsupported("MXNet 1.9.1 has no bfloat16. Use float32 or float16.")
        native = architecture.assemble(make)
        native.cast(dtype)
        native.initialize(mx.init.Zero())  # MXNet's random ones fail for float64; the core fills everything
        native.hybridize()
        return GluonHost(native)

    def to_numpy(self, array: Any) -> np.ndarray:
        return np.asarray((array.data() if isinstance(array, mx.gluon.Parameter) else array).asnumpy())

    def from_numpy(self, array: np.ndarray) -> Any:
        return from_numpy(array, mx.util.is_np_array())

    def namespace(self, array: Any) -> Any:
        return namespace(array)

    def detach(self, array: Any) -> Any:
        return array.detach().copy()

    def mse(self, prediction: Any, target: Any) -> Any:
        return ((prediction - target.astype(prediction.dtype)) ** 2).mean()

    def cross_entropy(self, logits: Any, labels: Any, ignore_index: int) -> Any:
        kept = (labels != ignore_index).astype(logits.dtype)
        losses = _cross_entropy(is_np(logits))(logits, labels * kept.astype(labels.dtype))
        return (losses * kept).sum() / kept.sum()

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in os.environ.items() if name.startswith("MXNET_")}

    def initializer(self, function: Any) -> Callable[[Any, int], None] | None:
        if not isinstance(function, mx.init.Initializer):
            return None

        def fill(storage: Any, seed: int) -> None:
            mx.random.seed(seed)
            # By its name alone an initializer fills some arrays with zeros or ones; "__init__" asks for itself.
            function(mx.init.InitDesc(storage.native.name, {"__init__": function}), storage.native.data())

        return fill


@functools.cache
def _cross_entropy(np_kind: bool) -> Any:
    """Gluon's own, compiled; one for each kind of arrays."""
    loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    loss.hybridize()
    return loss
