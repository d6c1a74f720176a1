"""Trees, as frameworks' files hold them, as arrays by name; and the part of a file under one name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ..core.relayed import Relayed
from ..core.state import Source
from ..errors import FileError, InvalidArgument
from ..paths import did_you_mean

MOST_VISITS = 64  # of one container in a tree: ties are few, and a tree that repeats itself at each level never ends


class Arrays(dict[str, Any]):
    """Name -> array.

    Attributes:
        groups: The first keys of the tree that are mappings with arrays, such as ``"state_dict"``.
        left_out: Those that hold no array, such as ``"epoch"``.
        own_layouts: Whether they are in a framework's own layouts.
    """

    own_layouts = False

    groups: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def flatten(tree: Any, prefix: str = "") -> Arrays:
    """Nested mappings and lists as one mapping, keys joined with dots; what is no array is left out.

    Args:
        tree: A tree of mappings and lists, as a framework's file holds it.
        prefix: What all names start with.

    Returns:
        Name -> array, or whatever has a ``shape`` and a ``dtype``; and what of the tree holds none.

    Raises:
        FileError: Where two arrays get one name, as ``{"a.b": ..., "a": {"b": ...}}`` has them, or the keys 1 and
            ``"1"``; and for a tree that holds itself, or one mapping more than 64 times.

    Example:
        >>> flatten({"params": {"Dense_0": {"bias": np.zeros(2)}}, "step": None})
        {'params.Dense_0.bias': array([0., 0.])}
    """
    arrays = Arrays()
    visits: Counter[int] = Counter()

    def add(node: Any, name: str) -> None:
        if isinstance(node, (list, tuple, Mapping)):
            visits[id(node)] += 1
            if visits[id(node)] > MOST_VISITS:
                raise FileError(f"The tree at {name[:80]!r} holds itself, or one part of it again and again.")
            for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
                add(value, f"{name}.{key}" if name else str(key))
        elif hasattr(node, "shape") and hasattr(node, "dtype"):
            if name in arrays:
                raise FileError(f"There are two arrays called {name!r}: which of them is meant cannot be told.")
            arrays[name] = node

    if not isinstance(tree, Mapping):
        add(tree, prefix)
        return arrays
    visits[id(tree)] += 1
    groups, left_out = [], []
    for key, value in tree.items():
        count = len(arrays)
        add(value, f"{prefix}.{key}" if prefix else str(key))
        if len(arrays) > count and isinstance(value, Mapping):
            groups.append(str(key))
        elif len(arrays) == count and value is not None and not (isinstance(value, (Mapping, list)) and not value):
            left_out.append(str(key))
    arrays.groups, arrays.left_out = tuple(groups), tuple(left_out)
    return arrays


class Within(Relayed):
    """The arrays of a file whose names begin with one, under what follows it.

    Args:
        source: The file, or a mapping name -> array.
        name: The first segments of the names.

    Raises:
        InvalidArgument: There are none.
    """

    def __init__(self, source: Mapping[str, Any], name: str) -> None:
        self._source = source
        self._prefix = f"{name}." if name else ""
        self._names = [each.removeprefix(self._prefix) for each in source if each.startswith(self._prefix)]
        self.own_layouts = getattr(source, "own_layouts", False)
        if not self._names:
            near = dict.fromkeys(each.partition(".")[0] for each in source)
            raise InvalidArgument(f"The file has nothing within {name!r}. {did_you_mean(name, list(near))}")

    def origin(self, name: str) -> tuple[Mapping[str, Any], str]:
        return self._source, self._prefix + name

    def close(self) -> None:
        if isinstance(self._source, Source):
            self._source.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return f"{self._prefix}{name}" in self._source
