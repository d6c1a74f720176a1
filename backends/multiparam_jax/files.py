"""Flax's msgpack files, as ``flax.serialization`` reads and writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx, serialization

import multiparam.adapter as mpa
from multiparam.errors import InvalidArgument


def read(path: Path) -> Mapping[str, Any]:
    """The arrays of a tree written by ``flax.serialization``, its keys joined with dots."""
    return mpa.flatten(serialization.msgpack_restore(path.read_bytes()))


def write(source: mpa.Host | Mapping[str, np.ndarray], path: Path) -> None:
    """A model's own variables, or arrays by name as the tree that the dots in their names say."""
    tree = _tree(source) if isinstance(source, Mapping) else _variables(source)
    path.write_bytes(serialization.msgpack_serialize(tree))


def _variables(net: mpa.Host) -> Any:
    """What linen's ``apply`` takes; of an NNX module the state but for random number generators, without its types."""
    if not isinstance(net.native, nnx.Module):
        return serialization.to_state_dict(net.variables)
    return _keys_as_text(nnx.to_pure_dict(nnx.state(net.native, nnx.Not(nnx.RngState))))


def _keys_as_text(tree: Any) -> Any:
    """Positions in lists as texts, which is how flax writes lists."""
    return {str(key): _keys_as_text(value) for key, value in tree.items()} if isinstance(tree, Mapping) else tree


def _tree(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in state.items():
        *groups, leaf = mpa.paths.segments(name)
        node: Any = tree
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or leaf in node:
            raise InvalidArgument(f"{name!r} would stand inside another array, which a tree cannot have. Rename it.")
        node[leaf] = array
    return tree
