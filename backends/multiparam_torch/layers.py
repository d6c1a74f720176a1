"""The layers of torch.nn. PyTorch is the canonical form: the kinds are all there is to say of leaves and layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn as tnn

from multiparam.adapter import GATED, Layers, padding

CONV: dict[str, Any] = {
    "stride": "stride",
    "padding": lambda layer: padding(layer.padding, layer.kernel_size, layer.stride, layer.dilation),
    "dilation": "dilation",
    "groups": "groups",
}


def low_rank_scale(module: Any, path: Sequence[str]) -> float | None:
    """What a module that has low-rank factors multiplies their product with, as it runs now.

    ``path`` is that of the first factor in it: by adapter, as PEFT has them, or not, as loralib. None where the update
    is switched off, merged already, or is more than such a product.
    """
    scaling = getattr(module, "scaling", None)
    if getattr(module, "merged", False) or getattr(module, "disable_adapters", False):
        return None
    if isinstance(scaling, Mapping):
        name = path[1] if len(path) > 1 else ""
        varied = any(name in (getattr(module, what, None) or ()) for what in ("lora_variant", "lora_magnitude_vector"))
        runs = name in scaling and name in getattr(module, "active_adapters", scaling)
        return float(scaling[name]) if runs and not varied else None
    return float(scaling) if isinstance(scaling, (int, float)) else None


LAYERS = Layers(
    {
        tnn.Linear: "linear",
        **dict.fromkeys((tnn.Conv1d, tnn.Conv2d, tnn.Conv3d), "conv"),
        **dict.fromkeys((tnn.ConvTranspose1d, tnn.ConvTranspose2d, tnn.ConvTranspose3d), "conv_transpose"),
        tnn.Embedding: "embedding",
        tnn.PReLU: "prelu",
        tnn.LayerNorm: "layernorm",
        tnn.RMSNorm: "rmsnorm",
        tnn.GroupNorm: "groupnorm",
        tnn.modules.instancenorm._InstanceNorm: "instancenorm",  # the base of the lazy ones too
        tnn.modules.batchnorm._BatchNorm: "batchnorm",
        tnn.RNN: "rnn",
        tnn.LSTM: "lstm",
        tnn.GRU: "gru",
        tnn.RNNCell: "rnn_cell",
        tnn.LSTMCell: "lstm_cell",
        tnn.GRUCell: "gru_cell",
        tnn.MultiheadAttention: "attention",
    },
    {},
    {
        "conv": CONV,
        "conv_transpose": {**CONV, "output_padding": "output_padding"},
        "layernorm": {"eps": "eps"},
        # torch.nn.RMSNorm: eps=None is the machine epsilon of the input's dtype
        "rmsnorm": {"eps": lambda layer: torch.finfo(layer.weight.dtype).eps if layer.eps is None else layer.eps},
        "groupnorm": {"eps": "eps", "groups": "num_groups"},
        "instancenorm": {"eps": "eps", "momentum": "momentum"},
        "batchnorm": {"eps": "eps", "momentum": "momentum"},
        "rnn": {"activation": "nonlinearity"},
        "rnn_cell": {"activation": "nonlinearity"},
        **dict.fromkeys(("lstm", "lstm_cell", "gru", "gru_cell"), GATED),
        "attention": {"heads": "num_heads"},
    },
)
