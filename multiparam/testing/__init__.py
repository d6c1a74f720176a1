"""The conformance kit: what the verbs mean, as tests that every adapter passes.

    $ pytest --pyargs multiparam.testing --backend mybackend

A module of tests per verb, each test once per backend. The truth is numpy, in :mod:`multiparam.testing.reference`; the
kit imports no framework but through the adapter under test. What a backend declares in
:attr:`multiparam.core.protocol.Adapter.unsupported` is expected to fail, strictly; docs/write-an-adapter.md says
the rest.
"""

from __future__ import annotations

# What an adapter may declare, and what the tests that then fail strictly look at. A layer is "nn." and its class.
FEATURES: dict[str, str] = {
    "exact running statistics": "a step moves running statistics as PyTorch's does, by the unbiased variance",
    "float64 eps of LayerNorm": "an eps that float32 cannot hold, in float64",
    "float64 gradient of exact GELU": "the derivative of x Φ(x) to rounding",
    "transposed ties": "net.tie(..., transpose=True)",
    "activations": "net.activations(): what each layer gives",
    "options": "net.options(): what weights do not carry",
    **{
        f"nn.{name}": f"mp.nn.{name} in mp.build"
        for name in (
            *("Add", "AvgPool", "BatchNorm", "Concat", "Conv", "ConvTranspose", "Dropout", "Embedding", "GELU"),
            *("GlobalAvgPool", "GlobalMaxPool", "GroupNorm", "Identity", "InstanceNorm", "LayerNorm", "MaxPool"),
            *("RMSNorm", "Residual", "Tokens"),
        )
    },
}
