"""Look-ups by other paths than the names: attributes and positions that a framework's own names do not show.

A linen layer is named by its scope, ``blocks_0``, and users write ``blocks.0`` and ``net[1][0]`` for it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from .. import paths


class Aliased(Protocol):
    """What is asked of a host, once, when a look-up finds nothing by name."""

    def aliases(self) -> Mapping[paths.Path, paths.Path]: ...

    def positions(self) -> Mapping[tuple[int, ...], paths.Path]: ...


class Aliases:
    """Where users see layers besides their names.

    Args:
        host: Says the aliases and positions of its layers.

    >>> class Blocks:
    ...     def aliases(self): return {("blocks", "0"): ("blocks_0",), ("blocks", "1"): ("blocks_1",)}
    ...     def positions(self): return {(2,): ("blocks",), (2, 0): ("blocks", "0"), (2, 1): ("blocks", "1")}
    >>> aliases = Aliases(Blocks())
    >>> aliases.names("blocks.1.weight"), aliases.names("blocks"), aliases.below("blocks_1"), aliases.below("blocks")
    (['blocks_1.weight'], ['blocks_0', 'blocks_1'], {}, {0: 'blocks.0', 1: 'blocks.1'})
    """

    def __init__(self, host: Aliased) -> None:
        self._names = {paths.text(alias): paths.text(name) for alias, name in host.aliases().items()}
        self._positions: dict[str, tuple[int, ...]] = {"": ()}
        self._below: dict[tuple[int, ...], dict[int, str]] = {}
        for positions, path in host.positions().items():
            text = paths.text(path)
            self._positions.setdefault(text, positions)
            self._below.setdefault(positions[:-1], {})[positions[-1]] = text
        for alias, name in self._names.items():
            if alias in self._positions:
                self._positions.setdefault(name, self._positions[alias])

    def names(self, text: str) -> list[str]:
        """The names that a text stands for.

        Args:
            text: The text of a path, of a layer or of something in it.

        Returns:
            One where a layer's alias is all of the text or begins it, the longest; those below where it begins aliases.
        """
        segments = paths.segments(text)
        for end in range(len(segments), 0, -1):
            name = self._names.get(".".join(segments[:end]))
            if name is not None:
                return [".".join([name, *segments[end:]])]
        return list(dict.fromkeys(name for alias, name in self._names.items() if alias.startswith(text + ".")))

    def below(self, text: str) -> dict[int, str]:
        """The positions in a layer or a list of layers.

        Args:
            text: Its name or alias; empty: the model.

        Returns:
            Position -> the text of the path there.
        """
        positions = self._positions.get(text)
        return {} if positions is None else self._below.get(positions, {})
