"""What every view of one model shares: its host, its adapter, the table of its slots, and flags.

Parameters, groups, ties, steps and optimizers hold a store, not the model that made them, so that each can be
understood, and imported, before the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .arrays import numpy_dtype
from .composite import Packed
from .distances import EPS
from .protocol import Adapter, Array, Host, Slot
from .table import Table


class Store:
    """The state behind a model.

    Attributes:
        backend: The framework's name.
        adapter: What answers for the framework.
        host: The live model; inside an objective one that may hold traced values.
        table: The slots of ``host``.
        version: Counts what makes compiled functions stale: ties, freezing, another native model.
        tracing: Whether an objective is running, so that values are tracked arrays.
        train: The mode of a forward pass whose caller names none.
        known_ties: The ties at the last look, to notice those that the framework loses.
        views: Parameters by the index of their first slot; they stay when slots change storages.
        named: Parameters by full name, and ``listed`` those of a listing, until the table changes.

    ``constants`` makes it the store of the host's constants: see :meth:`Host.constants`.
    """

    def __init__(self, host: Host, backend: str, adapter: Adapter, constants: bool = False) -> None:
        self.backend = backend
        self.adapter = adapter
        self.host = host
        self._of_constants = constants
        self._constants: Store | None = None
        self._packed: dict[Any, Packed] = {}
        self.table = Table(host, adapter, self._packed, self._slots(host))
        self.version = 0
        self.tracing = False
        self.train = False
        self.known_ties = self.table.ties()
        self.views: dict[int, Any] = {}
        self.named: dict[str, Any] = {}
        self.listed: dict[tuple[bool, bool], Any] = {}

    def _slots(self, host: Host) -> list[Slot]:
        return host.constants() if self._of_constants else host.slots()

    @property
    def constants(self) -> Store:
        """The store of the constants, read anew: nothing says when a model changes these. The same one each time, so
        that each has one Parameter."""
        if self._constants is None:
            self._constants = Store(self.host, self.backend, self.adapter, True)
        else:
            self._constants.host = self.host
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
        self.changed()
        self.table = self.read_table(self.host)
        self.listed.clear()
        self.named.clear()
        if not keep_known:
            self.known_ties = self.table.ties()

    @contextmanager
    def tracing_with(self, host: Host, train: bool) -> Iterator[None]:
        """Inside, everything that looks at this store looks at ``host``: its own, or one that holds traced values."""
        # A functional framework differentiates a host of its own, whose storages hold tracers. To swap it in here, and
        # not to hand it around, is what lets an objective use the net, its parameters and groups as they are.
        before = self.host, self.table, self.tracing, self.train
        if host is not self.host:
            self.host, self.table = host, Table(host, self.adapter, {})
        self.tracing, self.train = True, train
        try:
            yield
        finally:
            self.host, self.table, self.tracing, self.train = before

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
        return self.adapter.from_numpy(array)


Objective = Callable[..., Any]  # objective(*batch) -> a native scalar
