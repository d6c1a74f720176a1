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
from .core.identity import Holders, LayerNames, Place, Storages, hook_calls, temporarily, walk, watch_calls
from .core.inputs import Inputs
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
from .core.optimizing import require_known
from .core.protocol import Activation, Adapter, Array, Host, NativeOptimizer, Piece, Run, Slot, Storage
from .core.registry import BackendInfo
from .core.slots import Box, KeptGradient, OnEnter
from .core.state import ArraySpec
from .core.training import compiled_if_possible, require_dependence
from .errors import (
    DtypeError,
    FileError,
    InvalidArgument,
    MultiparamWarning,
    PackageMissing,
    ShapeError,
    ShardError,
    TieError,
    UnknownShapes,
    Unrecognised,
    Unsupported,
    UnsupportedAttribute,
)
from .weights.formats import Stamp
from .weights.trees import flatten

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
    "Box",
    "ByClass",
    "Composite",
    "DtypeError",
    "FileError",
    "Holders",
    "Host",
    "Inputs",
    "InvalidArgument",
    "KeptGradient",
    "LayerNames",
    "Layers",
    "Layout",
    "Leaf",
    "LeafNames",
    "MultiparamWarning",
    "NativeOptimizer",
    "Node",
    "OnEnter",
    "PackageMissing",
    "Piece",
    "Place",
    "Run",
    "ShapeError",
    "ShardError",
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
    "compiled_if_possible",
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
    "require_dependence",
    "require_known",
    "temporarily",
    "walk",
    "watch_calls",
]
