"""From one layer's leaves to another's of the same kind, where frameworks cut them differently.

Everything is in canonical form already, so most leaves only move. What is left: one bias or two in recurrent layers,
packed or split projections in attention, and a bias or scale that one side leaves out because it would be 0 or 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, Union

import numpy as np

from ..core.layers import BOOKKEEPING, KINDS, RECURRENT
from .flattening import full_size_moves
from .low_rank import low_rank_moves
from .packing import LeafMove, Read, Shapes, packed_moves, stacked_moves


class LeafMatch(NamedTuple):
    """How the leaves of one layer go into another's: what moves, target leaves that nothing makes, source leaves that
    nothing takes, and what cannot be, with the reason."""

    moves: list[LeafMove]
    missing: list[str]
    unused: list[str]
    refused: list[str]

    @property
    def perfect(self) -> bool:
        """Whether every leaf of both layers has its place."""
        return not (self.missing or self.unused or self.refused)


# What leaves of layers that multiparam does not know are called, by what they are in canonical form.
LEAF_NAMES: Mapping[str, str] = {
    name: canonical
    for canonical, names in {
        "weight": ("weight", "kernel", "w", "scale", "gamma", "embedding"),
        "bias": ("bias", "b", "beta", "offset"),
        "running_mean": ("running_mean", "moving_mean", "mean"),
        "running_var": ("running_var", "moving_variance", "moving_var", "variance", "var"),
    }.items()
    for name in names
}
Convention = Callable[[str, str], Union[bool, None]]


def no_convention(source_leaf: str, target_leaf: str) -> bool | None:
    """Nothing is known of how two classes of layers lay out their matrices."""
    return None


def one_function(source_kind: str, target_kind: str) -> bool:
    """Whether layers of two kinds compute the same from the same numbers: a cell and a layer of it, and a linear layer
    and a convolution, which are one thing where the kernel has one position, or all that there are; shapes tell.

    >>> one_function("lstm_cell", "lstm"), one_function("linear", "conv"), one_function("linear", "embedding")
    (True, True, False)
    """
    kinds = {source_kind.removesuffix("_cell"), target_kind.removesuffix("_cell")}
    return len(kinds) == 1 or kinds == {"linear", "conv"}


def without_unit_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the axes that have one position, which one side may have where the other has not.

    >>> without_unit_axes((1, 8, 1, 1)), without_unit_axes((4, 3, 1, 1))
    ((8,), (4, 3))
    """
    return tuple(n for n in shape if n != 1)


def leaf_orientation(source: tuple[int, ...], target: tuple[int, ...]) -> bool | None:
    """Whether a matrix of one shape is the transpose of one of another, as far as shapes tell; None where they do not.

    >>> leaf_orientation((2, 3), (3, 2)), leaf_orientation((2, 3), (2, 3)), leaf_orientation((3, 3), (3, 3))
    (True, False, None)
    """
    if len(source) != 2 or source == source[::-1] or target not in (source, source[::-1]):
        return None
    return source != target


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


def match_leaves(
    source: Shapes,
    target: Shapes,
    kinds: tuple[str, str],
    read: Read,
    convention: Convention = no_convention,
    scale: float | None = None,
) -> LeafMatch:
    """How the leaves of a source layer make those of a target layer.

    ``kinds`` are those of the two layers, empty where a file does not say. ``read`` gives a source leaf's array, for
    rules that hold only where numbers are zero. ``convention`` says of layers that are not known whether one leaf is
    the transpose of another, where a square shape does not tell. ``scale`` is that of a low-rank update, if the source
    layer has one.

    >>> source = {"weight_ih_l0": (4, 2), "weight_hh_l0": (4, 1), "bias_ih_l0": (4,), "bias_hh_l0": (4,)}
    >>> target = {name: source[name] for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")}
    >>> for move in match_leaves(source, target, ("lstm", "lstm"), read=None).moves:
    ...     print(*move.sources, "->", *filter(None, (move.target, move.change)))
    weight_ih_l0 -> weight_ih_l0
    weight_hh_l0 -> weight_hh_l0
    bias_ih_l0 bias_hh_l0 -> bias_ih_l0 sum of two biases
    """
    source_kind, target_kind = kinds
    known = source_kind in KINDS and target_kind in KINDS
    if known and not one_function(source_kind, target_kind):
        reason = REFUSED.get(frozenset(kinds), f"it is a layer of kind {source_kind!r}, the target is {target_kind!r}")
        return LeafMatch([], [], [], [reason])
    recurrent = KINDS.get(target_kind) is RECURRENT
    names = _cell_names(source, target) if recurrent else {}
    original = {new: old for old, new in names.items()}
    matcher = _LeafMatcher(
        {names.get(leaf, leaf): shape for leaf, shape in source.items()},
        target,
        target_kind if known else "",
        lambda leaf: read(original.get(leaf, leaf)),
        convention,
    )
    if recurrent:
        matcher.add(_biases(matcher.source, target, target_kind, matcher.read, matcher.refused))
    else:
        matcher.add(packed_moves(source, target, matcher.read, matcher.refused))
        matcher.add(stacked_moves(source, target))
        matcher.add(full_size_moves(source, target, kinds))
        matcher.add(low_rank_moves(source, target, source_kind, scale))
    match = matcher.match()
    moves = [move._replace(sources=tuple(original.get(leaf, leaf) for leaf in move.sources)) for move in match.moves]
    return match._replace(moves=moves, unused=[original.get(leaf, leaf) for leaf in match.unused])


class _LeafMatcher:
    """The rules that hold for layers of all kinds, after those of one kind have added their moves.

    ``kind`` is that of both layers, or empty where one of them is not known: then nothing is left out, or added.
    """

    def __init__(self, source: Shapes, target: Shapes, kind: str, read: Read, convention: Convention) -> None:
        self.source, self.target, self.read = source, target, read
        self._convention = convention
        self.refused: dict[str, str] = {}  # source leaf -> reason
        self._kind = kind
        self._moves: dict[str, LeafMove] = {}  # by target leaf

    def add(self, moves: list[LeafMove]) -> None:
        """Moves that a rule has found; what they make and take is settled."""
        self._moves.update((move.target, move) for move in moves)

    def match(self) -> LeafMatch:
        """What the moves that were added and the common rules come to."""
        taken = {leaf for move in self._moves.values() for leaf in move.sources} | self.refused.keys()
        missing = self._make_targets(taken)
        unused = [leaf for leaf in self.source if leaf not in taken and self._is_unused(leaf)]
        moves = [self._moves[leaf] for leaf in self.target if leaf in self._moves]
        return LeafMatch(moves, missing, unused, list(self.refused.values()))

    def _make_targets(self, taken: set[str]) -> list[str]:
        """Move leaves of equal names, fill in what a source leaves out because it is 0 or 1; what nothing makes."""
        missing = []
        for leaf, shape in self.target.items():
            if leaf in self._moves or leaf in BOOKKEEPING:
                continue
            neutral = _neutral(self._kind, leaf)
            if leaf in self.source:
                taken.add(leaf)
                if self.source[leaf] == shape:
                    self._moves[leaf] = LeafMove(leaf, (leaf,), _same)
                elif without_unit_axes(self.source[leaf]) == without_unit_axes(shape):
                    self._moves[leaf] = _reshaped(leaf, leaf, shape)
                else:
                    self.refused[leaf] = f"{leaf} is {self.source[leaf]}, the target's {shape}"
            elif neutral is not None and self.source:
                self._moves[leaf] = _constant(leaf, shape, neutral)
            elif not self._kind and (other := self._called_otherwise(leaf, taken)) is not None:
                taken.add(other)
                self._move_renamed(other, leaf)
            else:
                missing.append(leaf)
        return missing

    def _called_otherwise(self, leaf: str, taken: set[str]) -> str | None:
        """The one source leaf that is called the same thing by another name, or that is the only one in both layers."""
        counted = [other for other in self.source if other not in BOOKKEEPING]
        if len(counted) == 1 and len(self.target.keys() - BOOKKEEPING) == 1:
            return counted[0] if counted[0] not in taken else None
        meaning = LEAF_NAMES.get(leaf)
        others = [other for other in self.source if other not in taken and other not in self.target]
        others = [other for other in others if meaning is not None and LEAF_NAMES.get(other) == meaning]
        return others[0] if len(others) == 1 else None

    def _move_renamed(self, source_leaf: str, leaf: str) -> None:
        """Vectors move as they are. Of a matrix the other name may mean the other layout: shapes tell, or else other
        layers of these two classes; of arrays of more axes, shapes in which no two axes are alike."""
        source, target = self.source[source_leaf], self.target[leaf]
        if source == target and (len(source) < 2 or len(set(source)) == len(source) > 2):
            self._moves[leaf] = LeafMove(leaf, (source_leaf,), _same)
            return
        if source != target and len(line := without_unit_axes(source)) < 2 and line == without_unit_axes(target):
            self._moves[leaf] = _reshaped(leaf, source_leaf, target)
            return
        transposed = leaf_orientation(source, target)
        if transposed is None and len(source) == 2 and source == target:
            transposed = self._convention(source_leaf, leaf)
        if transposed is None:
            self.refused[leaf] = f"{source_leaf} is {source}, and whether {leaf} {target} is laid out so nothing says"
        elif transposed:
            self._moves[leaf] = LeafMove(leaf, (source_leaf,), np.transpose, "transposed")
        else:
            self._moves[leaf] = LeafMove(leaf, (source_leaf,), _same)

    def _is_unused(self, leaf: str) -> bool:
        """Whether nothing takes a source leaf. One that changes nothing may be left out, and else is refused."""
        if leaf in BOOKKEEPING:
            return False
        neutral = _neutral(self._kind, leaf)
        if neutral is not None and (self.read(leaf) != neutral).any():
            self.refused[leaf] = f"the target has no {leaf}, and this one is not all {neutral}"
        return neutral is None


def _reshaped(leaf: str, source_leaf: str, shape: tuple[int, ...]) -> LeafMove:
    return LeafMove(leaf, (source_leaf,), lambda array: array.reshape(shape), f"as {shape}")


def _neutral(kind: str, leaf: str) -> int | None:
    """What a leaf of a known kind of layer is where such a layer has none."""
    if not kind:
        return None
    if leaf.startswith("bias") or leaf.endswith(("_bias", ".bias")):
        return 0
    return 1 if leaf == "weight" and "norm" in kind else None


def _constant(leaf: str, shape: tuple[int, ...], value: int) -> LeafMove:
    return LeafMove(leaf, (), lambda: np.full(shape, value, np.float32), f"absent there: {value}")


def _cell_names(source: Shapes, target: Shapes) -> dict[str, str]:
    """The leaves of a cell by the names of a layer of one such cell, or the other way round."""
    source_numbered, target_numbered = (any(re.search(r"_l\d", leaf) for leaf in side) for side in (source, target))
    if source_numbered == target_numbered or any(re.search(r"_l[1-9]|_reverse", leaf) for leaf in (*source, *target)):
        return {}
    return {leaf: leaf.removesuffix("_l0") if source_numbered else f"{leaf}_l0" for leaf in source}


def _biases(source: Shapes, target: Shapes, kind: str, read: Read, refused: dict[str, str]) -> list[LeafMove]:
    """The biases of each layer and direction of a recurrent layer."""
    moves: list[LeafMove] = []
    for leaf in target:
        if leaf.startswith("bias_ih") and source.get(leaf) == target[leaf]:  # else the common rules see to it
            moves += _recurrent_biases(source, target, leaf, kind.startswith("gru"), read, refused)
    return moves


def _recurrent_biases(
    source: Shapes, target: Shapes, ih: str, gru: bool, read: Read, refused: dict[str, str]
) -> list[LeafMove]:
    """The biases of one layer and direction, of which both sides have that of the inputs, ``ih``.

    Frameworks have one bias, as the sum of two is all that counts, or two; and of a GRU, in whose gate n the second
    is inside a product, the second for the gate n only (``hn``).
    """
    hh, hn = (ih.replace("bias_ih", which, 1) for which in ("bias_hh", "bias_hn"))
    n = target[ih][0] // 3
    if hh in source and hh not in target and hn not in target and gru and read(hh)[2 * n :].any():
        refused[hh] = f"{hh} of the gate n is not zero, and the target has no such bias"
    elif hn in source and hh not in target and hn not in target and read(hn).any():
        refused[hn] = f"{hn} is not zero, and the target has no such bias"
    elif hh in source and hn in target:
        return [
            LeafMove(ih, (ih, hh), lambda a, b: a + _without_n(b, n), "sums of two biases", _first),
            LeafMove(hn, (hh,), lambda b: b[2 * n :], "the gate n of it"),
        ]
    elif hn in source and hh in target:
        return [LeafMove(ih, (ih,), _same), LeafMove(hh, (hn,), lambda b: _only_n(b, n), "of the gate n", False)]
    elif hh in source and hh not in target:
        return [LeafMove(ih, (ih, hh), lambda a, b: a + b, "sum of two biases", _first)]
    elif hn in source and hn not in target:
        return [LeafMove(ih, (ih, hn), _first, "the other is zero")]
    return []


def _without_n(bias: np.ndarray, n: int) -> np.ndarray:
    """A GRU's bias with zeros for the gate n."""
    return np.concatenate([bias[: 2 * n], np.zeros(n, bias.dtype)])


def _only_n(bias: np.ndarray, n: int) -> np.ndarray:
    """The bias of a GRU's gate n with zeros for the others."""
    return np.concatenate([np.zeros(2 * n, bias.dtype), bias])
