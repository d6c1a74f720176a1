"""Models made without memory: what has a shape and no numbers refuses to be read or written, until it is given some.

Every framework that has such arrays drops what is written into them, or fails with words about something else.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from .. import paths
from ..errors import MultiparamWarning, NoValues
from .composite import bases
from .slots import Slot, Storage
from .store import Store

CURE = (
    "The model was made without memory. mp.load(net, path, materialise=True) and mp.transfer(source, net, "
    "materialise=True) give it some; so does net.materialise(), with zeros."
)


def without_values(store: Store, slots: Iterable[Slot]) -> list[Storage]:
    """The native arrays behind some slots that have no numbers, each once."""
    every = dict.fromkeys(base for slot in slots for base in bases(slot.storage))
    return [base for base in every if not store.host.has_values(base)]


def require_values(store: Store, *slots: Slot) -> None:
    """See that what is read or written has numbers.

    Args:
        store: The model's.
        slots: Those that are looked at.

    Raises:
        NoValues: Where one has not; nothing is changed.
    """
    has_values = store.host.has_values
    bare = [slot for slot in slots if not all(map(has_values, bases(slot.storage)))]
    if bare and not store.tracing:
        name = paths.text(bare[0].path)
        number = f" and {len(bare) - 1} more have shapes" if len(bare) > 1 else " has a shape"
        raise NoValues(f"{name!r}{number} and no values. {CURE}")


def materialise(store: Store, slots: Iterable[Slot]) -> None:
    """Give memory to those arrays behind some slots that have none; they hold zeros afterwards, ties are kept."""
    bare = without_values(store, slots)
    if bare:
        store.host.allocate(bare)
        store.reread(keep_known=True)
    constants = store.constants
    if without_values(constants, constants.table.slots):
        warnings.warn(
            f"{constants.table.names[0]!r} has a shape and no values: the model's own code computes it when it is "
            "made, and no file has it. Compute it again, or make the model with memory.",
            MultiparamWarning,
            stacklevel=2,
        )
