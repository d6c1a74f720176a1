"""What every view of one model shares: its host, its adapter, the table of its slots, and flags.

Parameters, groups, ties, steps and optimizers hold a store, not the model that made them, so that each can be
understood, and imported, before the next.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from .. import paths
from ..errors import MultiparamWarning, ParameterNotFound
from .arrays import numpy_dtype
from .composite import Packed
from .distances import EPS
from .protocol import Adapter, Array, Host, Slot
from .table import Table, Tie


class View(NamedTuple):
    """What a thread looks at: the model itself, or inside an objective what is traced of it."""

    host: Host
    table: Table
    tracing: bool
    train: bool


_views: ContextVar[Mapping[int, View]] = ContextVar("views", default=MappingProxyType({}))  # by a store's id


class Store:
    """The state behind a model.

    Attributes:
        backend: The framework's name.
        adapter: What answers for the framework.
        version: Counts what makes compiled functions stale: ties, freezing, another native model.
        known_ties: The ties at the last look, to notice those that the framework loses.
        views: Parameters by the index of their first slot; they stay when slots change storages.
        named: Parameters by full name, and ``listed`` those of a listing, until the table changes.

    ``constants`` makes it the store of the host's constants: see :meth:`Host.constants`.
    """

    def __init__(self, host: Host, backend: str, adapter: Adapter, constants: bool = False) -> None:
        self.backend = backend
        self.adapter = adapter
        self._of_constants = constants
        self._constants: Store | None = None
        self._packed: dict[Any, Packed] = {}
        self._traced = 0  # in how many threads and tasks an objective is running
        self._own = View(host, Table(host, adapter, self._packed, self._slots(host)), False, False)
        self.version = 0
        self.known_ties = self.table.ties()
        self.views: dict[int, Any] = {}
        self.named: dict[str, Any] = {}
        self.listed: dict[tuple[bool, bool], Any] = {}
        # The names under each numbering of the slots that there has been: views and groups hold numbers.
        self.numberings: list[list[str]] = [self.table.names]
        self._seen = host.fingerprint()

    def _slots(self, host: Host) -> list[Slot]:
        return host.constants() if self._of_constants else host.slots()

    @property
    def constants(self) -> Store:
        """The store of the constants, read anew: nothing says when a model changes these. The same one each time, so
        that each has one Parameter."""
        if self._constants is None:
            self._constants = Store(self.host, self.backend, self.adapter, True)
        else:
            self._constants.replace_host(self.host)
            self._constants.reread()
        return self._constants

    def read_table(self, host: Host) -> Table:
        """A host's table, in today's order of names where the names are the same: a copy may list its own otherwise."""
        # Parameters hold indices of slots, so a name must keep its index.
        table, names = Table(host, self.adapter, self._packed, self._slots(host)), self.table.names
        if table.names == names or set(table.names) != set(names):
            return table
        return Table(host, self.adapter, {}, [table.slots[table.by_name[name]] for name in names])

    def changed(self) -> None:
        """Everything compiled for this model is stale."""
        self.version += 1

    def reread(self, *, keep_known: bool = False) -> None:
        """The slots may be bound to other storages than before; with ``keep_known``, the known ties stay."""
        self._take(self.read_table(self.host))
        if not keep_known:
            self.known_ties = self.table.ties()

    def refresh(self, *, listing: bool = True) -> None:
        """Read the model again where native code has changed it since the last look, and say what changed.

        Every verb on the whole model begins with this. Where the framework has no cheap sign of a change, the model is
        listed anew, unless ``listing`` is false: steps and listings, which loops repeat, ask for no more than the sign.
        """
        if self.tracing or self._of_constants:
            return
        seen = self.host.fingerprint()
        if (seen == self._seen) if seen is not None else not listing:
            return
        before, table = self.table, self.read_table(self.host)
        text = _changes(before, table)
        if seen is None and not text:
            return
        self._take(table)
        self._remember_ties()
        if text:
            warnings.warn(
                f"The native model has changed since multiparam last looked: {text}. What follows acts on what the "
                "model holds now.",
                MultiparamWarning,
                stacklevel=3,
            )

    def slot(self, index: int) -> Slot:
        """A slot as the model has it now.

        Raises:
            ParameterNotFound: Native code has removed it.
        """
        if index >= 0:
            slot = self.table.slots[index]
            if self.tracing or all(map(self.host.holds, self.table.uses(slot))):
                return slot
            name = self.table.names[index]
            if self._of_constants:
                self.reread()
            self.refresh()
            if name in self.table.by_name:
                return self.table.slots[self.table.by_name[name]]
        raise ParameterNotFound("The native model has no longer the parameter or buffer that this was.")

    def renumbered(self, indices: Sequence[int], numbering: int) -> tuple[int, ...]:
        """The slots of an earlier numbering that are still there, by their names, in today's.

        Raises:
            ParameterNotFound: Native code has removed all of them.
        """
        names, by_name = self.numberings[numbering], self.table.by_name
        there = tuple(by_name[names[i]] for i in indices if names[i] in by_name)
        if indices and not there:
            raise ParameterNotFound(
                f"The native model has no longer {names[indices[0]]!r}, nor the rest of this group."
            )
        return there

    def _take(self, table: Table) -> None:
        """Go on with another table. Where its names are others, what holds a slot's number gets the new one."""
        self.changed()
        before, self.table = self.table, table
        self._seen = self.host.fingerprint()
        self.listed.clear()
        self.named.clear()
        if table.names != before.names:
            self.numberings.append(table.names)
            views, self.views = self.views, {}
            for index, view in views.items():
                now = table.by_name.get(before.names[index], -1) if index >= 0 else -1
                view.move(now)
                if now >= 0:
                    self.views[now] = view

    def _remember_ties(self) -> None:
        """Known ties stay known as far as their names are there, so that one lost can be mended; new ones are added."""
        known = [[tie for tie in group if tie.name in self.table.by_name] for group in self.known_ties]
        known = [group for group in known if len(group) > 1]
        names = {tie.name for group in known for tie in group}
        self.known_ties = known + [group for group in self.table.ties() if not names & {tie.name for tie in group}]

    @contextmanager
    def tracing_with(self, host: Host, train: bool) -> Iterator[None]:
        """Inside, everything that looks at this store looks at ``host``: its own, or one that holds traced values."""
        # A functional framework differentiates a host of its own, whose storages hold tracers. To swap it in here, and
        # not to hand it around, is what lets an objective use the net, its parameters and groups as they are. Only for
        # this thread and task: others go on looking at the model itself, and never see a traced value.
        table = self.table if host is self.host else Table(host, self.adapter, {})
        token = _views.set({**_views.get(), id(self): View(host, table, True, train)})
        self._traced += 1
        try:
            yield
        finally:
            self._traced -= 1
            _views.reset(token)

    @property
    def _view(self) -> View:
        """What this thread and task look at."""
        return _views.get().get(id(self), self._own) if self._traced else self._own

    @property
    def host(self) -> Host:
        """The live model; inside an objective one that may hold traced values."""
        return self._view.host

    def replace_host(self, host: Host) -> None:
        """Another model in the place of this one; its table is read by whoever replaces it.

        Args:
            host: The new one's.
        """
        self._own = self._own._replace(host=host)

    @property
    def table(self) -> Table:
        """The slots of ``host``."""
        return self._view.table

    @table.setter
    def table(self, table: Table) -> None:
        self._own = self._own._replace(table=table)

    @property
    def tracing(self) -> bool:
        """Whether an objective is running, so that values are tracked arrays."""
        return self._view.tracing

    @property
    def train(self) -> bool:
        """The mode of a forward pass whose caller names none."""
        return self._view.train

    @property
    def dtype(self) -> str | None:
        """The dtype of the first parameter of floats, those of ml_dtypes too; not of codes of eight bits or fewer."""
        dtypes = (slot.storage.dtype for slot in self.table.slots)
        return next((dtype for dtype in dtypes if dtype in EPS), None)

    def native_array(self, array: Any) -> Array:
        """numpy as the framework's array (floats in the model's dtype); anything else untouched."""
        if not isinstance(array, (np.ndarray, np.generic)):
            return array
        array = np.asarray(array)
        if array.dtype.kind == "f" and (dtype := self.dtype) is not None:
            array = array.astype(numpy_dtype(dtype), copy=False)
        return self.from_numpy(array)

    def from_numpy(self, array: np.ndarray) -> Array:
        """numpy as the framework's array in the same dtype, where the model computes."""
        return self.host.place(self.adapter.from_numpy(array))


def _changes(before: Table, now: Table) -> str:
    """What differs between two tables, in words; nothing where each name is bound as before."""
    old = {name: slot.storage for name, slot in zip(before.names, before.slots, strict=True)}
    new = {name: slot.storage for name, slot in zip(now.names, now.slots, strict=True)}
    # What is in the place of a tied storage has replaced one tensor, under all its names.
    kinds = {
        "replaced": [name for name in new if name in old and new[name] is not old[name]],
        "added": [name for name in new if name not in old],
        "gone": [name for name in old if name not in new],
        "no longer tied": [name for group in before.ties() if _parted(group, new) for name, _ in group],
    }
    return "; ".join(f"{paths.some(map(repr, names))} {what}" for what, names in kinds.items() if names)


def _parted(group: list[Tie], storages: dict[str, Any]) -> bool:
    return len({id(storages[name]) for name, _ in group if name in storages}) > 1


Objective = Callable[..., Any]  # objective(*batch) -> a native scalar
