"""Import MXNet 1.9.1 under a numpy that no longer has the names it reads.

MXNet 1.9.1 reads ``numpy.bool`` (gone since numpy 1.24) and about twenty names that numpy 2 removed.
:func:`load` imports it so that MXNet's own modules, and no others, see a numpy that still has them.
numpy itself is never changed.

    >>> from multiparam_mxnet.load import load
    >>> mx = load()
    >>> import mxnet                       # from here on the plain import works too
    >>> mxnet is mx
    True
"""

from __future__ import annotations

import builtins
import sys
import threading
import types
from typing import Any

import numpy

_lock = threading.RLock()


def _moved(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("numpy's financial functions live in the package numpy-financial now")


# What numpy has dropped, by the definition each name had.
REMOVED: dict[str, Any] = {
    "bool": bool,
    "Inf": numpy.inf,
    "NAN": numpy.nan,
    "NaN": numpy.nan,
    "NINF": -numpy.inf,
    "PINF": numpy.inf,
    "NZERO": -0.0,
    "PZERO": 0.0,
    "alltrue": numpy.all,
    "sometrue": numpy.any,
    "product": numpy.prod,
    "round_": numpy.round,
    "in1d": lambda a, b, *args, **kw: numpy.isin(numpy.ravel(a), b, *args, **kw),
    "msort": lambda a: numpy.sort(a, axis=0),
    "trapz": lambda *args, **kw: vars(numpy)["trapezoid"](*args, **kw),  # numpy 1 has no trapezoid, and keeps trapz
    **dict.fromkeys(("mirr", "npv", "pmt", "ppmt", "pv", "rate"), _moved),
}


class _NumpyForMxnet(types.ModuleType):
    """A module whose attributes are numpy's own, and the removed names where numpy has none."""

    def __getattr__(self, name: str) -> Any:
        return REMOVED[name] if name in REMOVED and name not in vars(numpy) else getattr(numpy, name)


def load() -> Any:
    """The ``mxnet`` module, imported on the first call.

    Raises whatever MXNet's own import raises when it is missing or broken.
    """
    with _lock:
        if "mxnet" in sys.modules:
            return sys.modules["mxnet"]
        stand_in = _NumpyForMxnet("numpy", "numpy, with the names MXNet 1.9.1 still reads")
        original = builtins.__import__

        def scoped(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
            module = original(name, globals, locals, fromlist, level)
            importer = (globals or {}).get("__name__") or ""
            return stand_in if module is numpy and importer.partition(".")[0] == "mxnet" else module

        builtins.__import__ = scoped
        try:
            import mxnet
        finally:
            builtins.__import__ = original
        return mxnet
