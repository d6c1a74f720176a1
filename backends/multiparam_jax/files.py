"""Flax's msgpack files, read and, arrays by name, written without Flax.

Flax puts arrays into msgpack's extension types: 1 is an array, of shape, dtype's name and bytes; 2 a complex number; 3
a scalar of numpy's, as an array. An array above 1 GiB is cut into chunks, under the keys below.

Source: ``flax/serialization.py`` of Flax 0.12.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

import multiparam.adapter as mpa
from multiparam.adapter import FileError
from multiparam.errors import InvalidArgument

ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
LARGEST_CHUNK = 1 << 30  # bytes


def read(path: Path) -> Mapping[str, Any]:
    """The arrays of a tree written by ``flax.serialization``, its keys, texts or whole numbers, joined with dots."""
    data = path.read_bytes()
    tree = msgpack.unpackb(data, ext_hook=_decoded, object_pairs_hook=_unique, raw=False, strict_map_key=False)
    return in_flaxs_layouts(mpa.flatten(_joined(tree)))


def in_flaxs_layouts(arrays: Any) -> Mapping[str, Any]:
    """The same arrays, which say whether they are in Flax' layouts: those written under canonical names are not, and
    no canonical name ends in ``kernel``."""
    arrays.own_layouts = any(name.endswith("kernel") for name in arrays)
    named: Mapping[str, Any] = arrays
    return named


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A mapping, unless a key stands in it twice."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        seen: set[Any] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise FileError(f"There are two entries called {twice!r}: which of them is meant cannot be told.")
    return mapping


def _decoded(code: int, data: bytes) -> Any:
    """What an extension type holds."""
    if code in (ARRAY, SCALAR):
        shape, dtype, buffer = msgpack.unpackb(data, raw=True)
        # numpy's names of dtypes, bfloat16 and the like among them; Flax up to 0.3 wrote V2 for that
        name = dtype.decode() if dtype != b"V2" else "bfloat16"
        array = np.frombuffer(buffer, mpa.numpy_dtype(name)).reshape(shape)
        return array if code == ARRAY else array[()]
    if code == COMPLEX:
        real, imaginary = msgpack.unpackb(data)
        return complex(real, imaginary)
    raise FileError(f"It holds msgpack's extension type {code}, which Flax does not write.")


def _joined(tree: Any) -> Any:
    """A tree with the arrays that Flax has cut into chunks made whole."""
    if not isinstance(tree, dict):
        return [_joined(each) for each in tree] if isinstance(tree, list) else tree
    if CHUNKED not in tree:
        return {key: _joined(value) for key, value in tree.items()}
    shape, chunks = (_in_order(tree[key]) for key in ("shape", "chunks"))
    if math.prod(shape) != sum(chunk.size for chunk in chunks):
        raise FileError("The chunks of an array do not make up its shape.")
    return np.concatenate(chunks).reshape(shape)


def _in_order(items: Any) -> list[Any]:
    """A list, which Flax writes as a mapping of its positions."""
    return [items[str(i)] for i in range(len(items))] if isinstance(items, Mapping) else list(items)


def write(source: mpa.Host | Mapping[str, np.ndarray], path: Path) -> None:
    """A model's own variables, or arrays by name as the tree that the dots in their names say."""
    tree = tree_to_write(source)
    path.write_bytes(msgpack.packb(tree, default=_encoded, strict_types=True))


def tree_to_write(source: mpa.Host | Mapping[str, np.ndarray]) -> Any:
    """A model's own variables, or arrays by name as the tree that the dots in their names say."""
    return _tree(source) if isinstance(source, Mapping) else _variables(source)


def _encoded(value: Any) -> Any:
    """An array as an extension type, or as chunks of it: msgpack's sizes end at 4 GiB, and Flax cuts at one."""
    if isinstance(value, np.generic):
        return msgpack.ExtType(SCALAR, _packed(np.asarray(value)))
    array = np.asarray(value)
    if array.nbytes <= LARGEST_CHUNK:
        return msgpack.ExtType(ARRAY, _packed(array))
    size = max(1, LARGEST_CHUNK // array.itemsize)
    flat = array.reshape(-1)
    chunks = {str(i): flat[start : start + size] for i, start in enumerate(range(0, flat.size, size))}
    return {CHUNKED: True, "shape": {str(i): n for i, n in enumerate(array.shape)}, "chunks": chunks}


def _packed(array: np.ndarray) -> bytes:
    data: bytes = msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True)
    return data


def _variables(net: mpa.Host) -> Any:
    """What linen's ``apply`` takes; of an NNX module the state but for random number generators, without its types."""
    from flax import nnx, serialization

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
