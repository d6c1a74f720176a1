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
from .core.architecture import Architecture, Node, data_permutation, infer_shapes
from .core.arrays import contiguous, numpy_dtype
from .core.composite import Composite, Leaf, attention, fold, gates
from .core.identity import LayerNames, Place, Storages, hook_calls, temporarily, walk, watch_calls
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
from .core.state import ArraySpec
from .errors import (
    DtypeError,
    FileError,
    InvalidArgument,
    MultiparamWarning,
    PackageMissing,
    ShapeError,
    TieError,
    UnknownShapes,
    Unrecognised,
    Unsupported,
    UnsupportedAttribute,
)
from .weights.formats import Stamp, flatten

__all__ = [
    "GATED",
    "KINDS",
    "RECURRENT",
    "Activation",
    "Adapter",
    "Architecture",
    "Array",
    "ArraySpec",
    "BackendInfo",
    "ByClass",
    "Composite",
    "DtypeError",
    "FileError",
    "Host",
    "InvalidArgument",
    "LayerNames",
    "Layers",
    "Layout",
    "Leaf",
    "LeafNames",
    "MultiparamWarning",
    "NativeOptimizer",
    "Node",
    "PackageMissing",
    "Piece",
    "Place",
    "Run",
    "ShapeError",
    "Slot",
    "Stamp",
    "Storage",
    "Storages",
    "TieError",
    "UnknownShapes",
    "Unrecognised",
    "Unsupported",
    "UnsupportedAttribute",
    "attention",
    "axes",
    "contiguous",
    "data_permutation",
    "flatten",
    "fold",
    "gates",
    "infer_shapes",
    "hook_calls",
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
    "walk",
    "watch_calls",
]
