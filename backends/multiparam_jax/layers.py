"""Flax's layers, linen's and NNX's: what kind each is, how its leaves are called and laid out, what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import linen, nnx

import multiparam.adapter as mpa

LIBRARIES = (linen, nnx)
BOTH = {
    "Conv": "conv",
    "ConvTranspose": "conv_transpose",
    "Embed": "embedding",
    "PReLU": "prelu",
    "LayerNorm": "layernorm",
    "RMSNorm": "rmsnorm",
    "GroupNorm": "groupnorm",
    "InstanceNorm": "instancenorm",
    "BatchNorm": "batchnorm",
    "SimpleCell": "rnn_cell",
    "LSTMCell": "lstm_cell",
    "OptimizedLSTMCell": "lstm_cell",
    "GRUCell": "gru_cell",
}
ONE = {
    linen.Dense: "linear",
    linen.recurrent.DenseParams: "linear",  # a gate of OptimizedLSTMCell
    linen.MultiHeadDotProductAttention: "attention",
    nnx.Linear: "linear",
    nnx.MultiHeadAttention: "attention",
}


def _spatial(name: str) -> Callable[[Any], tuple[int, ...]]:
    """An option with one number an axis, or one number for all of them."""
    return lambda module: mpa.per_axis(getattr(module, name), len(_kernel(module)))


def _kernel(module: Any) -> tuple[int, ...]:
    return (module.kernel_size,) if isinstance(module.kernel_size, int) else tuple(module.kernel_size)


def _flipped(shape: tuple[int, ...]) -> mpa.Layout:
    """A transposed convolution's kernel (*k, I, O), which flax applies spatially reversed."""
    n = len(shape) - 2
    return mpa.Layout(("flip", tuple(range(n))), ("transpose", (n, n + 1, *range(n))))


DENSE = {"kernel": ("weight", "IO"), "bias": ("bias", "O")}
NORM = {"scale": ("weight", "C"), "bias": ("bias", "C")}
EPS: dict[str, Any] = {"eps": "epsilon"}
SLIDING: dict[str, Any] = {
    "stride": _spatial("strides"),
    "padding": lambda module: mpa.padding(
        module.padding, _kernel(module), _spatial("strides")(module), _spatial("kernel_dilation")(module)
    ),
    "dilation": _spatial("kernel_dilation"),
}
ACTIVATION: dict[str, Any] = {"activation": lambda cell: cell.activation_fn.__name__}
GATED = {**ACTIVATION, "recurrent_activation": lambda cell: cell.gate_fn.__name__}
LAYERS = mpa.Layers(
    ONE | {getattr(library, name): kind for library in LIBRARIES for name, kind in BOTH.items()},
    {
        "linear": DENSE,
        "conv": {"kernel": ("weight", "*IO"), "bias": ("bias", "O")},
        "conv_transpose": {"kernel": ("weight", _flipped), "bias": ("bias", "O")},
        "embedding": {"embedding": ("weight", "VD")},
        "prelu": {"negative_slope": ("weight", lambda shape: mpa.Layout(("reshape", shape, (1,))))},
        "layernorm": {"scale": ("weight", "*"), "bias": ("bias", "*")},
        "rmsnorm": {"scale": ("weight", "*")},
        "groupnorm": NORM,
        "instancenorm": NORM,
        "batchnorm": {**NORM, "mean": ("running_mean", "C"), "var": ("running_var", "C")},
    },
    {
        "conv": {**SLIDING, "groups": "feature_group_count"},
        "conv_transpose": SLIDING,
        **dict.fromkeys(("layernorm", "rmsnorm", "instancenorm"), EPS),
        "groupnorm": {**EPS, "groups": "num_groups"},
        "batchnorm": {**EPS, "momentum": lambda module: mpa.momentum_from_decay(module.momentum)},
        "rnn_cell": ACTIVATION,
        "lstm_cell": GATED,
        "gru_cell": GATED,
        "attention": {"heads": "num_heads"},
    },
)
TRANSPOSE_KERNEL: mpa.LeafNames = {"kernel": ("weight", "*OI"), "bias": ("bias", "O")}


def leaves_of(module: Any) -> mpa.LeafNames | None:
    """The leaves of one module where its options change their layout: ``transpose_kernel`` reverses nothing."""
    return TRANSPOSE_KERNEL if vars(module).get("transpose_kernel") else None


def _cell(
    kind: str, inputs: Sequence[str], hidden: Sequence[str], biases: Mapping[str, Sequence[str]]
) -> mpa.Composite:
    """A cell with a Dense per gate; ``biases``: which of them hold each canonical bias."""
    table = {"weight_ih": [f"{n}.weight" for n in inputs], "weight_hh": [f"{n}.weight" for n in hidden]}
    return mpa.gates(kind, table | {name: [f"{n}.bias" for n in gates] for name, gates in biases.items()})


def _lstm(i: str, f: str, g: str, o: str) -> mpa.Composite:
    hidden = ("hi", "hf", "hg", "ho")
    return _cell("lstm_cell", (i, f, g, o), hidden, {"bias_ih": hidden})


def _packed(kind: str, inputs: str = "dense_i", hidden: str = "dense_h") -> mpa.Composite:
    """A cell with all gates in one Dense of the inputs and one of the state; the bias is the one that is there."""
    weights = {f"{inputs}.weight": mpa.Leaf("weight_ih"), f"{hidden}.weight": mpa.Leaf("weight_hh")}
    return mpa.Composite(kind, {**weights, **{f"{name}.bias": mpa.Leaf("bias_ih") for name in (inputs, hidden)}})


ATTENTION = mpa.attention("query", "key", "value", "out")
GRU_BIASES = {"bias_ih": ("ir", "iz", "in"), "bias_hn": ("hn",)}
# What the layers below these are, which exist only while they run.
PARTS: mpa.ByClass[Any] = mpa.ByClass(
    {
        linen.MultiHeadDotProductAttention: linen.DenseGeneral,
        linen.OptimizedLSTMCell: linen.recurrent.DenseParams,
        **dict.fromkeys((linen.LSTMCell, linen.GRUCell, linen.SimpleCell), linen.Dense),
    }
)
COMPOSITES = mpa.ByClass(
    {
        **{library.RNN: mpa.Composite(within={"cell": "_l0"}) for library in LIBRARIES},
        **{
            library.Bidirectional: mpa.Composite(within={"forward_rnn": "", "backward_rnn": "_reverse"})
            for library in LIBRARIES
        },
        linen.MultiHeadDotProductAttention: ATTENTION,
        linen.LSTMCell: _lstm("ii", "if", "ig", "io"),
        linen.OptimizedLSTMCell: _lstm("ii", "if", "ig", "io"),
        linen.GRUCell: _cell("gru_cell", ("ir", "iz", "in"), ("hr", "hz", "hn"), GRU_BIASES),
        linen.SimpleCell: _packed("rnn_cell", "i", "h"),
        nnx.MultiHeadAttention: ATTENTION,
        nnx.LSTMCell: _lstm("ii", "if_", "ig", "io"),
        nnx.OptimizedLSTMCell: _packed("lstm_cell"),
        nnx.GRUCell: _packed("gru_cell"),
        nnx.SimpleCell: _packed("rnn_cell"),
    }
)


def stacked_in_front(kind: str, module: Any, shape: tuple[int, ...]) -> int:
    """How many axes of a layer's array ``nnx.vmap`` has put in front, where its kind leaves the number of axes open."""
    if kind in ("conv", "conv_transpose") and len(shape) > 2:
        return max(0, len(shape) - 2 - len(_kernel(module)))
    return max(0, len(shape) - 1) if kind in ("layernorm", "rmsnorm") else 0
