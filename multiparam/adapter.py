"""All that an adapter of another framework imports: the protocol, and what helps to answer it.

An adapter is a package with two parts. Its front door, which imports no framework, registers a :class:`BackendInfo`
under the entry point group ``multiparam.backends``; what that names, a subclass of :class:`Adapter`, makes a
:class:`Host` of a model, which lists its :class:`Slot` s, each with a :class:`Storage`. docs/write-an-adapter.md builds
one step by step, and :mod:`multiparam.testing` is the contract as tests.

    >>> import multiparam.adapter as mpa
    >>> mpa.permutation("IO", "OI", 2)
    Layout(('transpose', (1, 0)))
"""

from __future__ import annotations

from . import nn, paths
from .core.arrays import contiguous, numpy_dtype
from .core.composite import Composite, Leaf, attention, fold, gates
from .core.identity import LayerNames, Storages, temporarily, watch_calls
from .core.layers import (
    GATED,
    KINDS,
    RECURRENT,
    ByClass,
    Layers,
    LeafNames,
    momentum_from_decay,
    padding,
    per_axis,
    rank,
)
from .core.layouts import Layout, axes, inverse, join, permutation
from .core.protocol import Activation, Adapter, Array, Host, NativeOptimizer, Piece, Run, Slot, Storage
from .core.registry import BackendInfo
from .weights.formats import Stamp, flatten

__all__ = [
    "GATED",
    "KINDS",
    "RECURRENT",
    "Activation",
    "Adapter",
    "Array",
    "BackendInfo",
    "ByClass",
    "Composite",
    "Host",
    "LayerNames",
    "Layers",
    "Layout",
    "Leaf",
    "LeafNames",
    "NativeOptimizer",
    "Piece",
    "Run",
    "Slot",
    "Stamp",
    "Storage",
    "Storages",
    "attention",
    "axes",
    "contiguous",
    "flatten",
    "fold",
    "gates",
    "inverse",
    "join",
    "momentum_from_decay",
    "nn",
    "numpy_dtype",
    "padding",
    "paths",
    "per_axis",
    "permutation",
    "rank",
    "temporarily",
    "watch_calls",
]
