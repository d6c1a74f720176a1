"""One parameter's way from a source into a target, and what forbids it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import paths
from ..core import codes
from ..core.arrays import castable, dtype_kind, numpy_dtype, overflows
from ..core.layers import KINDS
from ..core.lazy import LazyArray, block
from ..core.slots import Box
from ..core.state import same
from .kernels import KINDS_OF_KERNELS
from .manifest import Manifest


@dataclass(frozen=True)
class Move:
    """One target parameter: the source names it is made of, what is done to them, and why they were chosen.

    Attributes:
        target: The target's name of the parameter or buffer.
        sources: The source's names; several where arrays are packed or summed, none where it is a constant.
        change: What is done to the arrays, in words; empty where they are as they were.
        why: The evidence: ``"name"``, ``"rule"`` or ``"guess: order, kind and shape"``.
        make: Gives the target's array, in canonical form, from the source's present values.
        of: The same as a function of the sources' arrays; None: it is made whole.
        inputs: Gives these arrays, each read by blocks and when it is asked for.
    """

    target: str
    sources: tuple[str, ...]
    change: str
    why: str
    make: Callable[[], np.ndarray] = field(repr=False, compare=False)
    permutation: Callable[[np.ndarray], np.ndarray] | None = field(default=None, repr=False, compare=False)
    gradient: Callable[..., np.ndarray] | None = field(default=None, repr=False, compare=False)
    plain: Move | None = field(default=None, repr=False, compare=False)
    flattened: bool | None = field(default=None, repr=False, compare=False)
    reversible: bool = field(default=True, repr=False, compare=False)
    of: Callable[..., Any] | None = field(default=None, repr=False, compare=False)
    inputs: Callable[[], list[LazyArray]] = field(default=list, repr=False, compare=False)

    def block(self, box: Box) -> np.ndarray:
        """A block of the target's array.

        Args:
            box: Start and stop on each axis of the target's canonical shape.

        Returns:
            The block, for which no more of the source is read than it needs, as far as the source can.
        """
        array: np.ndarray = block(self.make() if self.of is None else self.of(*self.inputs()), box)
        return array


def make_storages_once(moves: list[Move], source: Manifest, target: Manifest, refused: list[str]) -> list[Move]:
    """Each target storage is made once; a tied target may come from several source arrays, if those are equal."""
    source_entries, target_entries = source.entries(), target.entries()
    first_moves: dict[Any, Move] = {}  # by the storage they make
    for move in moves:
        first = first_moves.setdefault(target_entries[move.target].key, move)
        if first is move:
            continue
        transposed = target_entries[first.target].view != target_entries[move.target].view
        views = [[source_entries[name].view for name in each.sources] for each in (first, move)]
        if transposed or views[0] != views[1]:
            a, b = first.make(), move.make()
            if not same(a, b.T if transposed else b):
                refused.append(
                    f"{first.target} and {move.target} are tied in the target, and {' + '.join(first.sources)} and "
                    f"{' + '.join(move.sources)} have different values"
                )
    return list(first_moves.values())


def refuse_dtypes(moves: list[Move], source: Manifest, target: Manifest, cast: bool, refused: list[str]) -> None:
    """Other dtypes are refused, unless they may be cast; index tables, which are whole numbers in buffers, may be."""
    source_entries, target_entries = source.entries(), target.entries()
    for move in moves:
        for name in move.sources:
            a, b = source_entries[name].spec.dtype, target_entries[move.target].spec.dtype
            whole = a != b and {dtype_kind(a), dtype_kind(b)} <= {"i", "u"}
            table = whole and target_entries[move.target].buffer
            if whole and castable(a, b) and (table or cast) and overflows(source.read(name), numpy_dtype(b)):
                refused.append(f"{name} is {a}, with values beyond the range of {move.target}, which is {b}")
                break
            if scale := codes.beside(name, a, b, source_entries):
                refused.append(codes.refusal(name, a, scale))
                break
            if a != b and not table and not (cast and castable(a, b)):
                cure = "" if not castable(a, b) else "; say cast=True to convert it"
                refused.append(f"{name} is {a}, {move.target} is {b}{cure}")
                break


def refuse_own_layouts(moves: list[Move], source: Manifest, target: Manifest, refused: list[str]) -> None:
    """Arrays of a file that is in a framework's own layouts: of a square one nobody would see it."""
    entries = source.entries()
    for move in moves:
        kind = target.kind(paths.split(move.target)[0])
        for name in move.sources:
            # "kernel" is what Flax and Keras call a weight whose inputs come first.
            own = source.own_layouts or (not source.kinds and name.endswith("kernel"))
            axes = len(entries[name].spec.shape)
            if name in source.outputs_first:
                own = axes not in KINDS_OF_KERNELS.get(kind, ())
            if own and axes > 1 and (kind in KINDS or name in source.outputs_first) and kind != "embedding":
                refused.append(
                    f"{name} is in the file as its framework lays it out: load the file into its own model, and "
                    "transfer from that"
                )
