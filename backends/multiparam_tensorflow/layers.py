"""Keras' layers, of Keras 3 and tf_keras: what kind each is, how its leaves are called and laid out."""

from __future__ import annotations

from typing import Any

import multiparam.adapter as mpa

# Kind -> classes in both generations; by name, so that tf_keras need not be imported to recognise its layers.
CLASSES = {
    "linear": ("Dense",),
    "conv": ("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D"),
    "conv_transpose": ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
    "embedding": ("Embedding",),
    "layernorm": ("LayerNormalization",),
    "rmsnorm": ("RMSNormalization",),
    "groupnorm": ("GroupNormalization",),
    "batchnorm": ("BatchNormalization",),
    "rnn_cell": ("SimpleRNNCell",),
    "lstm_cell": ("LSTMCell",),
    "attention": ("MultiHeadAttention",),
}
ROOTS = ("keras", "tf_keras")
NORM = {"gamma": ("weight", "C"), "beta": ("bias", "C")}
CELL = {"kernel": ("weight_ih", "IO"), "recurrent_kernel": ("weight_hh", "IO"), "bias": ("bias_ih", "O")}
EPS: dict[str, Any] = {"eps": "epsilon"}
ACTIVATION: dict[str, Any] = {"activation": lambda layer: layer.activation.__name__}
SLIDING: dict[str, Any] = {
    "stride": lambda layer: tuple(layer.strides),
    "padding": lambda layer: mpa.padding(layer.padding, layer.kernel_size, layer.strides, layer.dilation_rate),
    "dilation": lambda layer: tuple(layer.dilation_rate),
    **ACTIVATION,
}
CONV: dict[str, Any] = {
    **SLIDING,  # a depthwise convolution has as many groups as channels, which Keras keeps in its description of inputs
    "groups": lambda layer: layer.input_spec.axes[-1] if hasattr(layer, "depth_multiplier") else layer.groups,
}
GATED = {**ACTIVATION, "recurrent_activation": lambda cell: cell.recurrent_activation.__name__}
LAYERS = mpa.Layers(
    {f"{root}.{name}": kind for root in ROOTS for kind, names in CLASSES.items() for name in names},
    {
        "linear": {"kernel": ("weight", "IO"), "bias": ("bias", "O")},
        "conv": {"kernel": ("weight", "*IO"), "bias": ("bias", "O")},
        "conv_transpose": {"kernel": ("weight", "*OI"), "bias": ("bias", "O")},
        "embedding": {"embeddings": ("weight", "VD")},
        "layernorm": {"gamma": ("weight", "*"), "beta": ("bias", "*")},
        "rmsnorm": {"scale": ("weight", "*")},
        "groupnorm": NORM,
        **dict.fromkeys(("rnn_cell", "lstm_cell"), CELL),
        "batchnorm": {**NORM, "moving_mean": ("running_mean", "C"), "moving_variance": ("running_var", "C")},
    },
    {
        **dict.fromkeys(("linear", "rnn_cell"), ACTIVATION),
        "conv": CONV,
        "conv_transpose": SLIDING,
        **dict.fromkeys(("layernorm", "rmsnorm"), EPS),
        "groupnorm": {**EPS, "groups": "groups"},
        "batchnorm": {**EPS, "momentum": lambda layer: mpa.momentum_from_decay(layer.momentum)},
        **dict.fromkeys(("lstm_cell", "GRUCell"), GATED),
        "attention": {"heads": "_num_heads"},
    },
)


def _depthwise(shape: tuple[int, ...]) -> mpa.Layout:
    """A depthwise kernel (*k, C, m) as that of a grouped convolution, (C * m, 1, *k)."""
    *kernel, channels, multiplier = shape
    n = len(kernel)
    split = (channels, multiplier, *kernel)
    joined = (channels * multiplier, 1, *kernel)
    return mpa.Layout(("transpose", (n, n + 1, *range(n))), ("reshape", split, joined))


# A depthwise convolution is a grouped one; Keras 3 and tf_keras call its kernel differently.
DEPTHWISE: mpa.LeafNames = {
    **dict.fromkeys(("kernel", "depthwise_kernel"), ("weight", _depthwise)),
    "bias": ("bias", "O"),
}


def leaves_of(layer: Any) -> mpa.LeafNames | None:
    """The leaves of one layer where its options change their layout."""
    return DEPTHWISE if hasattr(layer, "depth_multiplier") and LAYERS.of(type(layer)) == "conv" else None


def _gru(shape: tuple[int, ...]) -> mpa.Layout:
    """Gates z r h of a kernel (I, 3H) or a bias (3H,) as PyTorch's r z n, one below the other."""
    *inputs, many = shape
    whole, split = (many, *inputs), (3, many // 3, *inputs)
    transpose = [("transpose", (1, 0))] if inputs else []
    return mpa.Layout(*transpose, ("reshape", whole, split), ("reorder", (1, 0, 2)), ("reshape", split, whole))


GRU = {"kernel": mpa.Leaf("weight_ih", _gru), "recurrent_kernel": mpa.Leaf("weight_hh", _gru)}
GRU_BIASES = (mpa.Leaf("bias_ih", _gru, row=0), mpa.Leaf("bias_hh", _gru, row=1))
GRU_AFTER = mpa.Composite("gru_cell", {**GRU, "bias": GRU_BIASES})
GRU_BEFORE = mpa.Composite("gru_before_cell", {**GRU, "bias": mpa.Leaf("bias_ih", _gru)})
ATTENTION = mpa.attention("query_dense", "key_dense", "value_dense", "output_dense")
COMPOSITES = {
    "MultiHeadAttention": ATTENTION,
    "GroupedQueryAttention": ATTENTION,
    "GRUCell": GRU_AFTER,
    "RNN": mpa.Composite(within={r"cell\.cells\.(\d+)": r"_l\1", "cell": "_l0"}),
    "Bidirectional": mpa.Composite(within={"forward_layer": "", "backward_layer": "_reverse"}),
}
BY_CLASS = mpa.ByClass({f"{root}.{name}": each for root in ROOTS for name, each in COMPOSITES.items()})


def composite_of(layer: Any) -> mpa.Composite | None:
    """How a layer made of layers shows; a GRU's reset gate acts after or before the recurrent product."""
    composite = BY_CLASS.of(type(layer))
    return GRU_BEFORE if composite is GRU_AFTER and not layer.reset_after else composite
