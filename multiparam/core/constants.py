"""Constants: buffers that are no part of a model's state, such as position tables that its code computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from .. import paths
from .parameter import Parameter, parameter_at
from .store import Store


def constants_below(
    store: Store, prefix: paths.Path, chosen: Iterable[int], aliases: bool = False
) -> Mapping[str, Parameter]:
    """The constants of a group, by their names relative to it: none of a selection, which has no buffers either."""
    depth, inside = len(prefix), set(chosen)
    if any(i not in inside for i, slot in enumerate(store.table.slots) if slot.path[:depth] == prefix):
        return MappingProxyType({})
    constants, listed = store.constants, set[int]()  # ids of storages
    named: dict[str, Parameter] = {}
    for i, slot in enumerate(constants.table.slots):
        if slot.path[:depth] == prefix and (aliases or id(slot.storage) not in listed):
            listed.add(id(slot.storage))
            named[paths.text(slot.path[depth:])] = parameter_at(constants, i)
    return MappingProxyType(named)
