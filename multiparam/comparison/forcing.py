"""A forced pass: each layer of a model takes what the reference's took, and gives what the reference's gave.

So each layer, and the code between two of them, is judged by itself, as if nothing before it were wrong: several faults
show in one pass, and rounding in one part blurs no other.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core import registry
from ..core.arrays import dtype_kind, to_numpy
from ..core.distances import distance
from ..core.outputs import arrays_of, with_leaves
from ..core.slots import Activation
from ..transfers.divergence import channel_orders
from . import noise
from .activations import LayerCalls
from .divergence import FlattenPermutation, permuted_inputs, queued
from .hints import padded

Arrays = Sequence[np.ndarray]


class Segment(NamedTuple):
    """A part of a model that is judged by itself: a layer, or the code that makes its inputs of what came before.

    Attributes:
        call: The index of the reference's call of the layer.
        layer: Whether it is the layer, and not the code before it.
    """

    call: int
    layer: bool


class Perturbation(NamedTuple):
    """A move of all that is given in a forced pass: how large, relative to each number, and from which seed."""

    size: float
    seed: int


Observe = Callable[[Segment, str, Arrays, Arrays], bool]
"""(part, the model's layer, the reference's arrays, the model's) -> whether the model keeps its own; as each part of a
pass has run."""


class Forcing:
    """What a host's ``watch`` calls in a forced pass.

    Args:
        reference: The calls that are given.
        layer_map: The reference's layer -> the model's.
        permutations: The model's layer -> the flatten permutation that the reference's inputs of it go through.
        from_numpy: Makes the framework's arrays.
        observe: Gets what each part gives of itself, in order of execution.
        move: How far all that is given is moved; None: not at all.
    """

    def __init__(
        self,
        reference: LayerCalls,
        layer_map: Mapping[str, str],
        permutations: Mapping[str, FlattenPermutation],
        from_numpy: Callable[[np.ndarray], Any],
        observe: Observe,
        move: Perturbation | None = None,
    ) -> None:
        self._reference = reference
        self._permutations = permutations
        self._waiting = queued(reference, layer_map)
        self._from_numpy = from_numpy
        self._observe = observe
        self._move = move
        self._entered: dict[str, deque[int | None]] = {}
        self.unfit: set[Segment] = set()  # those that went on with their own, since the reference's have another shape

    def on_enter(self, layer: str, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """A layer is called: it gets the reference's inputs."""
        waiting = self._waiting.get(layer)
        i = waiting.popleft() if waiting else None
        self._entered.setdefault(layer, deque()).append(i)
        if i is None:
            return inputs
        reference = permuted_inputs(self._reference[i], self._permutations.get(layer))
        given: tuple[Any, ...] = self._given(Segment(i, False), layer, inputs, reference.inputs)
        return given

    def on_call(self, activation: Activation) -> Any:
        """A layer has run: it gives the reference's outputs."""
        i = self._entered[activation.layer].pop()
        if i is None:
            return None
        return self._given(Segment(i, True), activation.layer, activation.output, self._reference[i].outputs)

    def _given(self, part: Segment, layer: str, native: Any, arrays: Arrays) -> Any:
        """The reference's arrays in the place of the model's own, as far as they fit."""
        own_arrays = arrays_of(native)
        left = iter(own_arrays if self._observe(part, layer, arrays, own_arrays) else arrays)

        def replace(leaf: Any) -> Any:
            own = None if isinstance(leaf, str) else to_numpy(leaf)
            if own is None or not dtype_kind(own.dtype.name):
                return leaf
            other = next(left, None)
            view = None if other is None or not hasattr(leaf, "dtype") else _fitting(other, own)
            if view is None:
                self.unfit.add(part)
                return leaf
            if self._move is not None:
                view = noise.moved(view, *self._move)
            # A copy: what runs on it may write into it.
            return self._from_numpy(np.array(view, dtype=own.dtype, order="C"))

        return with_leaves(native, replace)


def _fitting(array: np.ndarray, like: np.ndarray) -> np.ndarray | None:
    """An array with its channels where another has them, and the zeros around it that the other has, if they have one
    shape then."""
    views = [view for view in (padded(each, like) for each in channel_orders(array)) if view.shape == like.shape]
    if len(views) > 1 and "c" not in (array.dtype.kind, like.dtype.kind):
        return min(views, key=lambda view: distance(like, view, "float64"))
    return views[0] if views else None


class Site(NamedTuple):
    """A line of source code; no file where nobody knows."""

    file: str
    line: int


def call_site() -> Site:
    """The innermost line of the user's code that is running a layer: of neither a framework nor this library."""
    frames = _frames()
    at = next(((frame.f_code.co_filename, frame.f_lineno) for frame in frames), None)
    return Site("", 0) if at is None else Site(_short(at[0]), at[1])


def _frames() -> Iterator[Any]:
    """The frames of the user's code, from the innermost out to where the model was called."""
    frame: Any = sys._getframe(1)
    others = _frameworks()
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name == "multiparam.comparison.subjects":
            return
        if name.partition(".")[0] not in others and not name.startswith("multiparam"):
            yield frame
        frame = frame.f_back


@lru_cache
def _frameworks() -> set[str]:
    known = [registry.info(backend) for backend in registry.backends()]
    modules = {name for info in known for name in (*info.recognises, *info.arrays, *info.requires)}
    return modules | {"contextlib", "functools"}


def _short(file: str) -> str:
    """A file as a reader knows it: below the working directory, or below where packages are installed."""
    path = Path(file)
    if "site-packages" in path.parts:
        return Path(*path.parts[path.parts.index("site-packages") + 1 :]).as_posix()
    below = os.path.relpath(file)
    return path.name if below.startswith("..") else Path(below).as_posix()


def between(before: Site, after: Site) -> str:
    """The lines between two sites, in words; empty where they are not known.

    >>> between(Site("bert.py", 12), Site("bert.py", 15)), between(Site("", 0), Site("bert.py", 7))
    ('bert.py:12-15', 'bert.py:7')
    """
    if not after.file or not before.file:
        known = after if after.file else before
        return f"{known.file}:{known.line}" if known.file else ""
    if before.file != after.file:
        return f"{before.file}:{before.line} to {after.file}:{after.line}"
    first, last = sorted((before.line, after.line))
    return f"{after.file}:{first}" + (f"-{last}" if last > first else "")
