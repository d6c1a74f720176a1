"""How leaves that hold several parts become leaves that hold others: rows one below the other, and stacked layers.

A part is a projection, as ``q_proj_weight``; a whole is several of them one below the other, as ``in_proj_weight``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, Union

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]
Read = Callable[[str], np.ndarray]
WHOLES: Mapping[str, tuple[str, ...]] = {
    "in": ("q", "k", "v"),
    "k_v": ("k", "v"),
    "gate_up": ("gate", "up"),
    "up_gate": ("up", "gate"),
}
LEAF = re.compile(r"(in|[a-z]+(?:_[a-z]+)?)_proj_(weight|bias)")
STACKED = re.compile(r"(.+)\[(\d+)\]")


class LeafMove(NamedTuple):
    """How a target leaf is made: of these source leaves, by this function of their arrays.

    ``gradient`` says how their gradients are the target's: True where ``make`` only moves numbers, and moves these too;
    another function; or False where they are not.
    """

    target: str
    sources: tuple[str, ...]
    make: Callable[..., np.ndarray]
    change: str = ""
    gradient: Union[Callable[..., np.ndarray], bool] = True


class _Piece(NamedTuple):
    """Where the source has a part: in a leaf, from a row on, so many; no leaf: zeros."""

    leaf: str
    start: int
    rows: int


def parts_in(leaf: str) -> tuple[str, ...]:
    """The parts of which a leaf is made, one below the other; itself where it is one, none where it is no projection.

    >>> parts_in("in_proj_bias"), parts_in("gate_proj_weight"), parts_in("weight")
    (('q_proj_bias', 'k_proj_bias', 'v_proj_bias'), ('gate_proj_weight',), ())
    """
    match = LEAF.fullmatch(leaf)
    if match is None:
        return ()
    parts = WHOLES.get(match[1], (match[1],))
    return tuple(f"{part}_proj_{match[2]}" for part in parts)


def packed_moves(source: Shapes, target: Shapes, read: Read, refused: dict[str, str]) -> list[LeafMove]:
    """Moves of projections that one side has packed in another way than the other.

    Args:
        source: The source's leaves and their shapes.
        target: The target's.
        read: Gives a source leaf's array: a bias that the target has no place for must be zero.
        refused: Takes source leaves that cannot go anywhere, with the reason.

    Returns:
        The moves; leaves of one name on both sides are left to the common rules.

    >>> source = {f"{part}_proj_weight": (2, 3) for part in "qkv"}
    >>> packed_moves(source, {"in_proj_weight": (6, 3)}, None, {})[0].change
    'packed'
    """
    rows = _rows(source, target)
    pieces: dict[str, _Piece] = {}
    for leaf, shape in source.items():
        start = 0
        for part in parts_in(leaf):
            many = rows.get(part.rpartition("_")[0], 0)
            pieces[part] = _Piece(leaf, start, many)
            start += many
        if parts_in(leaf) and start != shape[0]:
            return []
    moves = []
    for leaf, shape in target.items():
        parts = parts_in(leaf)
        if leaf in source or not parts:
            continue
        of_parts = [pieces.get(part) or _zeros(part, pieces) for part in parts]
        if any(piece is None for piece in of_parts) or all(piece and not piece.leaf for piece in of_parts):
            continue
        each = [piece for piece in of_parts if piece is not None]
        columns = {source[piece.leaf][1:] for piece in each if piece.leaf}
        if sum(piece.rows for piece in each) == shape[0] and columns == {shape[1:]}:
            moves.append(_move(leaf, each, source))
    taken = {part for leaf in target for part in parts_in(leaf)}
    for part, piece in pieces.items():
        if part not in taken and any(piece.leaf in move.sources for move in moves):
            left = read(piece.leaf)[piece.start : piece.start + piece.rows]
            if part.endswith("weight") or left.any():
                refused[piece.leaf] = f"the target has no {part}, and the rows of {piece.leaf} are not zero there"
    return moves


def _rows(source: Shapes, target: Shapes) -> dict[str, int]:
    """How many rows each projection has: as a side says that has it apart, else as many as the others of a whole."""
    rows: dict[str, int] = {}
    wholes = []
    for leaf, shape in (*target.items(), *source.items()):
        parts = [part.rpartition("_")[0] for part in parts_in(leaf)]
        if len(parts) == 1:
            rows.setdefault(parts[0], shape[0])
        elif parts:
            wholes.append((parts, shape[0]))
    for parts, total in wholes:
        unknown = [part for part in parts if part not in rows]
        left = total - sum(rows.get(part, 0) for part in parts)
        if unknown and left % len(unknown) == 0:
            rows.update(dict.fromkeys(unknown, left // len(unknown)))
    return rows


def _zeros(part: str, pieces: Mapping[str, _Piece]) -> _Piece | None:
    """A bias that a projection of the source does not have."""
    weight = pieces.get(f"{part.removesuffix('bias')}weight") if part.endswith("bias") else None
    return None if weight is None else _Piece("", 0, weight.rows)


def _move(leaf: str, pieces: list[_Piece], source: Shapes) -> LeafMove:
    names = tuple(dict.fromkeys(piece.leaf for piece in pieces if piece.leaf))

    def make(*arrays: np.ndarray) -> np.ndarray:
        by_name = dict(zip(names, arrays, strict=True))
        rest = arrays[0]
        rows = [
            by_name[p.leaf][p.start : p.start + p.rows] if p.leaf else np.zeros((p.rows, *rest.shape[1:]), rest.dtype)
            for p in pieces
        ]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    whole = all(not piece.leaf or piece.rows == source[piece.leaf][0] for piece in pieces)
    absent = any(not piece.leaf for piece in pieces)
    change = "packed" if len(pieces) > 1 and whole else "split" if len(pieces) == 1 else "packed otherwise"
    # What the source has no bias for has no gradient there either.
    return LeafMove(leaf, names, make, change + ", zeros where there is no bias" * absent, not absent)


# -- stacked layers


def stacked_leaf(leaf: str, index: int) -> str:
    """The name of one layer's leaf where several layers are one.

    >>> stacked_leaf("weight", 2)
    'weight[2]'
    """
    return f"{leaf}[{index}]"


def stacked_moves(source: Shapes, target: Shapes) -> list[LeafMove]:
    """Moves between N leaves of one shape, ``weight[0]`` and so on, and one with N in front.

    >>> [move.sources for move in stacked_moves({"b[0]": (3,), "b[1]": (3,)}, {"b": (2, 3)})]
    [('b[0]', 'b[1]')]
    >>> stacked_moves({"b": (2, 3)}, {"b[0]": (3,), "b[1]": (3,)})[1].make(np.ones((2, 3))).shape
    (3,)
    """
    moves = []
    for leaf, shape in target.items():
        members = tuple(stacked_leaf(leaf, i) for i in range(shape[0] if shape else 0))
        if members and all(source.get(member) == shape[1:] for member in members):
            moves.append(LeafMove(leaf, members, lambda *each: np.stack(each), "stacked"))
        match = STACKED.fullmatch(leaf)
        whole = source.get(match[1]) if match else None
        if match and whole is not None and whole[1:] == shape and int(match[2]) < whole[0]:
            index = int(match[2])
            moves.append(LeafMove(leaf, (match[1],), lambda array, i=index: array[i], f"layer {index} of it"))
    return moves
