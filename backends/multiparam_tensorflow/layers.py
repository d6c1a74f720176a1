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
    "prelu": ("PReLU",),
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


def _by_channel(shape: tuple[int, ...]) -> mpa.Layout:
    """A PReLU's slopes (1, 1, C), which all positions share, as (C,); those of each position as they are."""
    shared = [n for n in shape if n != 1] or [1]
    return mpa.Layout(("reshape", shape, tuple(shared))) if len(shared) == 1 else mpa.Layout()


LAYERS = mpa.Layers(
    {
        "multiparam_tensorflow.InstanceNorm": "instancenorm",
        **{f"{root}.{name}": kind for root in ROOTS for kind, names in CLASSES.items() for name in names},
    },
    {
        "linear": {"kernel": ("weight", "IO"), "bias": ("bias", "O")},
        "conv": {"kernel": ("weight", "*IO"), "bias": ("bias", "O")},
        "conv_transpose": {"kernel": ("weight", "*OI"), "bias": ("bias", "O")},
        "embedding": {"embeddings": ("weight", "VD")},
        "prelu": {"alpha": ("weight", _by_channel)},
        "layernorm": {"gamma": ("weight", "*"), "beta": ("bias", "*")},
        "rmsnorm": {"scale": ("weight", "*")},
        **dict.fromkeys(("groupnorm", "instancenorm"), NORM),
        **dict.fromkeys(("rnn_cell", "lstm_cell"), CELL),
        "batchnorm": {**NORM, "moving_mean": ("running_mean", "C"), "moving_variance": ("running_var", "C")},
    },
    {
        **dict.fromkeys(("linear", "rnn_cell"), ACTIVATION),
        "conv": CONV,
        "conv_transpose": SLIDING,
        **dict.fromkeys(("layernorm", "rmsnorm", "instancenorm"), EPS),
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


def _pointwise(shape: tuple[int, ...]) -> mpa.Layout:
    """A kernel (*k, I, O) as (O, I, *k)."""
    n = len(shape) - 2
    return mpa.Layout(("transpose", (n + 1, n, *range(n))))


# A separable convolution is a depthwise one and one of a single position, with nothing between them.
SEPARABLE = mpa.Composite(
    "conv",
    {
        "depthwise_kernel": mpa.Leaf("depthwise.weight", _depthwise, kind="conv"),
        "pointwise_kernel": mpa.Leaf("pointwise.weight", _pointwise, kind="conv"),
        "bias": mpa.Leaf("pointwise.bias", kind="conv"),
    },
)
ATTENTION = mpa.attention("query_dense", "key_dense", "value_dense", "output_dense")
COMPOSITES = {
    "MultiHeadAttention": ATTENTION,
    "GroupedQueryAttention": ATTENTION,
    "GRUCell": GRU_AFTER,
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), SEPARABLE),
    "RNN": mpa.Composite(within={r"cell\.cells\.(\d+)": r"_l\1", "cell": "_l0"}),
    "Bidirectional": mpa.Composite(within={"forward_layer": "", "backward_layer": "_reverse"}),
}
BY_CLASS = mpa.ByClass({f"{root}.{name}": each for root in ROOTS for name, each in COMPOSITES.items()})


def composite_of(layer: Any) -> mpa.Composite | None:
    """How a layer made of layers shows; a GRU's reset gate acts after or before the recurrent product."""
    composite = BY_CLASS.of(type(layer))
    return GRU_BEFORE if composite is GRU_AFTER and not layer.reset_after else composite


def options_of(slot: mpa.Slot) -> dict[str, Any]:
    """What weights do not carry; of a separable convolution that of the one of its two parts that the slot is in."""
    layer = slot.options_layer
    if composite_of(layer) is not SEPARABLE:
        return LAYERS.options(layer)
    options = {name: of(layer) for name, of in SLIDING.items()}
    if slot.path[-2] == "depthwise":
        return {**options, "activation": "linear", "groups": int(layer.depthwise_kernel.shape[-2])}
    n = len(layer.kernel_size)
    return {**options, "stride": (1,) * n, "padding": (0,) * n, "dilation": (1,) * n, "groups": 1}


def giving_path(path: tuple[str, ...], layer: Any) -> tuple[str, ...]:
    """The path of what gives a layer's output: of a separable convolution that of its second part."""
    return (*path, "pointwise") if composite_of(layer) is SEPARABLE else path
