"""Import MXNet 1.9.1 under a numpy that no longer has the names it reads.

MXNet 1.9.1 reads ``numpy.bool`` (gone since numpy 1.24) and about twenty names that numpy 2 removed.
:func:`install` puts a hook before Python's import, for ``mxnet`` alone, so that MXNet's own modules, and no others,
see a numpy that still has them. numpy itself is never changed. Selecting the backend installs the hook.

    >>> from multiparam_mxnet.load import load
    >>> mx = load()
    >>> import mxnet                       # from here on the plain import works too
    >>> mxnet is mx
    True
"""

from __future__ import annotations

import builtins
import importlib
import importlib.abc
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
    install()
    return importlib.import_module("mxnet")


def install() -> None:
    """Make the plain ``import mxnet`` work in this process. MXNet itself is not imported, and nothing else notices."""
    with _lock:
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds ``mxnet`` where it is, and lets nothing but its code see the numpy it needs."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "mxnet":
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """The loader that was found, with ``import numpy`` of MXNet's modules giving the stand-in while they load."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:  # resources and sources are the found one's
        return getattr(self._loader, name)

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        stand_in = _NumpyForMxnet("numpy", "numpy, with the names MXNet 1.9.1 still reads")
        with _lock:
            original = builtins.__import__

            def scoped(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
                module = original(name, globals, locals, fromlist, level)
                importer = (globals or {}).get("__name__") or ""
                return stand_in if module is numpy and importer.partition(".")[0] == "mxnet" else module

            builtins.__import__ = scoped
            try:
                self._loader.exec_module(module)
            finally:
                builtins.__import__ = original
