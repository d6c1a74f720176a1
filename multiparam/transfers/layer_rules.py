"""From one layer's leaves to another's of the same kind, where frameworks cut them differently.

Everything is in canonical form already, so most leaves only move. What is left: one bias or two in recurrent layers,
packed or split projections in attention, and a bias or scale that one side leaves out because it would be 0 or 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Union

import numpy as np

from ..core.layers import BOOKKEEPING, KINDS, RECURRENT

Shapes = Mapping[str, tuple[int, ...]]
Read = Callable[[str], np.ndarray]


class Move(NamedTuple):
    """How a target leaf is made: of these source leaves, by this function of their arrays.

    ``gradient`` says how their gradients are the target's: True where ``make`` only moves numbers, and moves these too;
    another function; or False where they are not.
    """

    target: str
    sources: tuple[str, ...]
    make: Callable[..., np.ndarray]
    change: str = ""
    gradient: Union[Callable[..., np.ndarray], bool] = True


class Fit(NamedTuple):
    """How one layer goes into another: what moves, target leaves nothing makes, source leaves nothing takes, and what
    cannot be, with the reason."""

    moves: list[Move]
    missing: list[str]
    unused: list[str]
    refused: list[str]


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _first(array: np.ndarray, *_: np.ndarray) -> np.ndarray:
    """The first; of the gradients of a sum's terms, each is the sum's."""
    return array


REFUSED: Mapping[frozenset[str], str] = {
    frozenset({"gru", "gru_before"}): "one GRU resets after the recurrent product, the other before it",
    frozenset({"gru_cell", "gru_before_cell"}): "one GRU resets after the recurrent product, the other before it",
    frozenset({"groupnorm", "groupnorm_by_group"}): "MXNet's GroupNorm scales by group, this one by channel",
}


def fit(source: Shapes, target: Shapes, kinds: tuple[str, str], read: Read) -> Fit:
    """How the leaves of a source layer make those of a target layer.

    ``read`` gives a source leaf's array, for rules that hold only where numbers are zero.

    >>> source = {"weight_ih_l0": (4, 2), "weight_hh_l0": (4, 1), "bias_ih_l0": (4,), "bias_hh_l0": (4,)}
    >>> target = {name: source[name] for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")}
    >>> for move in fit(source, target, ("lstm", "lstm"), read=None).moves:
    ...     print(*move.sources, "->", *filter(None, (move.target, move.change)))
    weight_ih_l0 -> weight_ih_l0
    weight_hh_l0 -> weight_hh_l0
    bias_ih_l0 bias_hh_l0 -> bias_ih_l0 sum of two biases
    """
    one, other = kinds
    if one in KINDS and other in KINDS and one.removesuffix("_cell") != other.removesuffix("_cell"):
        reason = REFUSED.get(frozenset(kinds), f"it is a layer of kind {one!r}, the target is {other!r}")
        return Fit([], [], [], [reason])
    moves: list[Move] = []
    refused: dict[str, str] = {}  # by source leaf
    names = _cell_names(source, target) if KINDS.get(other) is RECURRENT else {}
    source = {names.get(leaf, leaf): shape for leaf, shape in source.items()}
    back = {new: old for old, new in names.items()}
    inner: Read = lambda leaf: read(back.get(leaf, leaf))  # noqa: E731
    if KINDS.get(other) is RECURRENT:
        moves += _biases(source, target, other, inner, refused)
    elif other == "attention":
        moves += _projections(source, target)
    made = {move.target for move in moves}
    taken = {leaf for move in moves for leaf in move.sources} | refused.keys()
    for leaf, shape in target.items():
        if leaf in made or leaf in BOOKKEEPING:
            continue
        if leaf in source:
            if source[leaf] == shape:
                moves.append(Move(leaf, (leaf,), _same))
            else:
                refused[leaf] = f"{leaf} is {source[leaf]}, the target's {shape}"
            taken.add(leaf)
            made.add(leaf)
        elif other in KINDS and one in KINDS and _neutral(other, leaf) is not None and source:
            moves.append(_constant(leaf, shape, _neutral(other, leaf)))
            made.add(leaf)
    unused = []
    for leaf in source:
        if leaf not in taken and leaf not in BOOKKEEPING:
            neutral = _neutral(other, leaf) if other in KINDS and one in KINDS else None
            if neutral is None:
                unused.append(leaf)
            elif (inner(leaf) != neutral).any():
                refused[leaf] = f"the target has no {leaf}, and this one is not all {neutral}"
    moves.sort(key=lambda move: list(target).index(move.target))
    restored = [move._replace(sources=tuple(back.get(leaf, leaf) for leaf in move.sources)) for move in moves]
    missing = [leaf for leaf in target if leaf not in made and leaf not in BOOKKEEPING]
    return Fit(restored, missing, [back.get(leaf, leaf) for leaf in unused], list(refused.values()))


def _neutral(kind: str, leaf: str) -> int | None:
    """What a leaf is where a layer of this kind has none."""
    if leaf.startswith("bias") or leaf.endswith(("_bias", ".bias")):
        return 0
    return 1 if leaf == "weight" and "norm" in kind else None


def _constant(leaf: str, shape: tuple[int, ...], value: int | None) -> Move:
    return Move(leaf, (), lambda: np.full(shape, value, np.float32), f"absent there: {value}")


def _cell_names(source: Shapes, target: Shapes) -> dict[str, str]:
    """The leaves of a cell by the names of a layer of one such cell, or the other way round."""
    mine, theirs = (any(re.search(r"_l\d", leaf) for leaf in side) for side in (source, target))
    if mine == theirs or any(re.search(r"_l[1-9]|_reverse", leaf) for leaf in (*source, *target)):
        return {}
    return {leaf: leaf.removesuffix("_l0") if mine else f"{leaf}_l0" for leaf in source}


def _biases(source: Shapes, target: Shapes, kind: str, read: Read, refused: dict[str, str]) -> list[Move]:
    """The biases of each layer and direction of a recurrent layer."""
    moves: list[Move] = []
    gru = kind.startswith("gru")
    for leaf in target:
        if not leaf.startswith("bias_ih"):
            continue
        ih, hh, hn = (f"bias_{which}{leaf[7:]}" for which in ("ih", "hh", "hn"))
        if source.get(ih) != target[ih]:
            continue  # absent or misshapen: the common rules see to it
        n = target[ih][0] // 3
        if hh in source and hh not in target and hn not in target and gru and read(hh)[2 * n :].any():
            refused[hh] = f"{hh} of the gate n is not zero, and the target has no such bias"
        elif hn in source and hh not in target and hn not in target and read(hn).any():
            refused[hn] = f"{hn} is not zero, and the target has no such bias"
        elif hh in source and hn in target:
            moves.append(Move(ih, (ih, hh), lambda a, b, n=n: a + _without_n(b, n), "sums of two biases", _first))
            moves.append(Move(hn, (hh,), lambda b, n=n: b[2 * n :], "the gate n of it"))
        elif hn in source and hh in target:
            moves.append(Move(ih, (ih,), _same))
            moves.append(Move(hh, (hn,), lambda b, n=n: _only_n(b, n), "of the gate n", False))
        elif hh in source and hh not in target:
            moves.append(Move(ih, (ih, hh), lambda a, b: a + b, "sum of two biases", _first))
        elif hn in source and hn not in target:
            moves.append(Move(ih, (ih, hn), _first, "the other is zero"))
    return moves


def _without_n(bias: np.ndarray, n: int) -> np.ndarray:
    """A GRU's bias with zeros for the gate n."""
    return np.concatenate([bias[: 2 * n], np.zeros(n, bias.dtype)])


def _only_n(bias: np.ndarray, n: int) -> np.ndarray:
    """The bias of a GRU's gate n with zeros for the others."""
    return np.concatenate([np.zeros(2 * n, bias.dtype), bias])


def _projections(source: Shapes, target: Shapes) -> list[Move]:
    """Queries, keys and values, packed or apart."""
    moves: list[Move] = []
    for whole, parts in (
        ("in_proj_weight", ("q_proj_weight", "k_proj_weight", "v_proj_weight")),
        ("in_proj_bias", ("q_proj_bias", "k_proj_bias", "v_proj_bias")),
    ):
        if whole in target and all(part in source for part in parts):
            if len({source[part][1:] for part in parts}) == 1:
                moves.append(Move(whole, parts, lambda *each: np.concatenate(each), "packed"))
        elif whole in source and all(part in target for part in parts):
            rows = [target[part][0] for part in parts]
            if sum(rows) == source[whole][0] and {target[part][1:] for part in parts} == {source[whole][1:]}:
                for i, part in enumerate(parts):
                    span = slice(sum(rows[:i]), sum(rows[: i + 1]))
                    moves.append(Move(part, (whole,), lambda a, span=span: a[span], "split"))
    return moves


def flatten(array: np.ndarray, channels: int, to: str) -> np.ndarray:
    """The inputs of a linear layer, (out, channels * positions), in the order of the other flattening.

    ``to="last"``: they came channel by channel and shall come position by position.

    >>> flatten(np.array([[10, 11, 20, 21, 30, 31]]), 3, "last").tolist()
    [[10, 20, 30, 11, 21, 31]]
    """
    rows = array.shape[0]
    split: Any = (rows, channels, -1) if to == "last" else (rows, -1, channels)
    return array.reshape(split).transpose(0, 2, 1).reshape(rows, -1)
