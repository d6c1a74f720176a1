"""What an adapter says of names besides the paths of slots: the part of :mod:`multiparam.core.host` for look-ups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ..paths import Path
from .slots import Slot


class Naming(Protocol):
    """Other names and positions of what a model holds; all of it has a default."""

    def stored_names(self, slots: Sequence[Slot]) -> Sequence[Sequence[str]]:
        """What the framework's own weight files call the arrays of this model.

        Args:
            slots: Each of one native array, as :meth:`slots` has listed them.

        Returns:
            A list for each way of naming that such files have, with a name for each slot, as
            :func:`multiparam.read` gives it, or an empty text where such files do not hold it. The arrays are those
            that the places use, in native layout. A ``#`` marks a count that the framework made up, and that is
            another in another process: ``"dense#3.kernel"`` is the second of ``dense#1`` and ``dense#3``. None by
            default, where files have the canonical names.
        """
        return []

    def aliases(self) -> Mapping[Path, Path]:
        """Where users see layers besides the paths of the slots, which are those of the framework's checkpoints.

        Asked when a look-up by name finds nothing: names cost what they do without. Look-ups find a layer there, and
        all in it; listings, files and transfers know its name only.

        Returns:
            Another path of a layer, such as attributes, ``("blocks", "0")`` -> its path, ``("blocks_0",)``; empty by
            default.
        """
        return {}

    def positions(self) -> Mapping[tuple[int, ...], Path]:
        """The positions of layers, where their slots do not state them; asked as :meth:`aliases`.

        Returns:
            Position at each level -> path or alias of the layer, or of the list of layers, that is there; empty by
            default.
        """
        return {}

    def count_children(self, path: Path) -> int | None:
        """How many children a layer has, as positions count them: asked for positions from the end.

        Args:
            path: Of a layer, or an alias of one or of a list of layers; ``()`` for the model.

        Returns:
            Their number, those without parameters included; None, as by default, where it is not known: such positions
            are refused then.
        """
        return None
