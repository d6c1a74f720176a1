"""The layers of Gluon 1.9.1: their kinds, what their leaves are called and how they are laid out, their options."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from multiparam.adapter import GATED, Holders, Layers, LeafNames, Place, momentum_from_decay, walk

from .load import load
from .norms import GroupNorm, InstanceNorm, RMSNorm

mx = load()
gnn, rnn = mx.gluon.nn, mx.gluon.rnn

CHANNEL_NORM = {"gamma": ("weight", "C"), "beta": ("bias", "C")}


def _activation(block: Any) -> str:
    return "linear" if block is None else str(getattr(block, "_act_type", type(block).__name__.lower()))


def _scale(block: Any) -> bool:
    """False where BatchNorm(scale=False) computes as if gamma were ones, whatever it holds; else there is no option."""
    if not block._kwargs["fix_gamma"]:
        raise AttributeError
    return False


CONV: dict[str, Any] = {
    "stride": lambda block: tuple(block._kwargs["stride"]),
    "padding": lambda block: tuple(block._kwargs["pad"]),
    "dilation": lambda block: tuple(block._kwargs["dilate"]),
    "groups": lambda block: block._kwargs["num_group"],
    "activation": lambda block: _activation(block.act),
}
LAYERS = Layers(
    {
        gnn.Dense: "linear",
        **dict.fromkeys((gnn.Conv1D, gnn.Conv2D, gnn.Conv3D), "conv"),
        **dict.fromkeys((gnn.Conv1DTranspose, gnn.Conv2DTranspose, gnn.Conv3DTranspose), "conv_transpose"),
        gnn.Embedding: "embedding",
        gnn.PReLU: "prelu",
        gnn.LayerNorm: "layernorm",
        gnn.GroupNorm: "groupnorm_by_group",
        gnn.InstanceNorm: "instancenorm",
        GroupNorm: "groupnorm",
        InstanceNorm: "instancenorm",
        RMSNorm: "rmsnorm",
        gnn.BatchNorm: "batchnorm",
        rnn.RNN: "rnn",
        rnn.LSTM: "lstm",
        rnn.GRU: "gru",
        rnn.RNNCell: "rnn_cell",
        rnn.LSTMCell: "lstm_cell",
        rnn.GRUCell: "gru_cell",
    },
    {
        "layernorm": {"gamma": ("weight", "*"), "beta": ("bias", "*")},
        "groupnorm_by_group": {"gamma": ("weight", "G"), "beta": ("bias", "G")},
        **dict.fromkeys(("groupnorm", "instancenorm", "batchnorm"), CHANNEL_NORM),
        "rmsnorm": {"gamma": ("weight", "*")},
        "prelu": {"alpha": ("weight", "C")},
    },
    {
        "linear": {"activation": lambda block: _activation(block.act)},
        "conv": CONV,
        "conv_transpose": {**CONV, "output_padding": lambda block: tuple(block._kwargs["adj"])},
        "layernorm": {"eps": "_epsilon"},
        "instancenorm": {"eps": "_epsilon"},
        "rmsnorm": {"eps": "_epsilon"},
        "groupnorm": {"eps": "_epsilon", "groups": "num_groups"},
        "batchnorm": {
            "eps": lambda block: block._kwargs["eps"],
            "momentum": lambda block: momentum_from_decay(block._kwargs["momentum"]),
            "scale": _scale,
        },
        "rnn": {"activation": lambda block: block._mode.removeprefix("rnn_")},
        "rnn_cell": {"activation": "_activation"},
        **dict.fromkeys(("lstm", "lstm_cell", "gru", "gru_cell"), GATED),
    },
)
CHANNELS_LAST: dict[str, LeafNames] = {
    "conv": {"weight": ("weight", "O*I"), "bias": ("bias", "O")},
    "conv_transpose": {"weight": ("weight", "I*O"), "bias": ("bias", "O")},
}
RECURRENT_BLOCKS = (rnn.rnn_layer._RNNLayer, rnn.RecurrentCell)


def places(block: Any) -> Iterator[Place]:
    """Every use of every block below one."""
    return walk(block, _children)


def _children(block: Any) -> list[tuple[str, Any]]:
    """A block's children by name. Names that Gluon made up, as in ``register_child(child, child.name)``, count the
    blocks of the process: without the parent's they are what the user called the child, or else its position."""
    if not block._children:  # most blocks of a large model
        return []
    keys, children = list(block._children), list(block._children.values())
    names = [_child_name(block, *each) for each in zip(range(len(keys)), keys, children, strict=True)]
    for i, key in enumerate(keys):
        if names[i] != key and names.count(names[i]) > 1:
            names[i] = f"{i}_{children[i]._alias()}"
    return list(zip(names, children, strict=True))


def _child_name(parent: Any, position: int, key: str, child: Any) -> str:
    if key.isdigit() or child is None or vars(parent).get(key) is child:
        return key
    inside = key.removeprefix(parent.prefix).rstrip("_") or key
    made_up = key.rstrip("_") == child.name and re.fullmatch(rf"(.*_)?{re.escape(child._alias())}\d+", inside)
    return str(position) if made_up else inside


def held_children(root: Any, all_places: Iterable[Place]) -> Holders:
    """Under which key each block is held by the one above it."""
    holders, by_path = Holders(root), dict[tuple[str, ...], Any]()
    for path, _, block in all_places:
        by_path[path] = block
        if path:
            above = by_path[path[:-1]]
            key = next(key for key, child in above._children.items() if child is block)
            key = path[-1] if above._children.get(path[-1]) is block else key
            holders.add(path, path[:-1], block, above._children.get, key)
    return holders


def fingerprint(root: Any) -> Any:
    """What is another where a block or a Parameter has been put in the place of one, added or taken away."""
    every: dict[int, Any] = {}  # a block used twice once
    waiting, names, held = [root], list[str](), list[Any]()
    while waiting:
        block = waiting.pop()
        if id(block) in every:
            continue
        every[id(block)] = block
        if children := block._children:
            names += children
            waiting += children.values()
        registered, all_of_it = block._reg_params, block._params._params
        names += registered
        held += registered.values()
        if len(all_of_it) > len(registered):  # some are in no attribute
            names += all_of_it
            held += all_of_it.values()
    return names, [*every], [*map(id, held)]


def blocks(block: Any, kind: Any = mx.gluon.Block) -> list[Any]:
    """Those of one kind, without their paths."""
    return [each for _, _, each in places(block) if isinstance(each, kind)]


def channels_last(block: Any) -> bool:
    """Whether a block is a convolution over data whose channels are the last axis."""
    return LAYERS.of(type(block)) in CHANNELS_LAST and str(block._kwargs["layout"]).endswith("C")


def leaf_names(block: Any) -> LeafNames | None:
    """A block's leaves, where its options decide how they are called or laid out; None: those of its kind."""
    if isinstance(block, RECURRENT_BLOCKS):
        return _recurrent_leaves(tuple(block._reg_params))
    return CHANNELS_LAST[LAYERS.of(type(block))] if channels_last(block) else None


@functools.cache
def _recurrent_leaves(leaves: tuple[str, ...]) -> LeafNames:
    """Gluon's names of a recurrent layer's leaves, "l0_i2h_weight", or a cell's, "i2h_weight"."""
    names = {}
    for leaf in leaves:
        if match := re.fullmatch(r"(?:([lr])(\d+)_)?(i2h|h2h|h2r)_(weight|bias)", leaf):
            side, number, between, name = match.groups()
            ending = "" if side is None else f"_l{number}{'_reverse' * (side == 'r')}"
            names[leaf] = (f"{name}_{between.replace('2', '')}{ending}", lambda shape: None)
    return names
